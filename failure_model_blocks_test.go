package ratelimit_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// This file has the second model with blocks. It checks these promises:
//
//   - While a block is in force that a process knows of, the process admits no unit of
//     the key, except as FailOpen documents.
//   - A block that a process has started, or that was started by hand, is at the store
//     when the process owes the store nothing.
//   - Each block has the duration that is next in its limit's ladder. If replies are lost,
//     or several processes start blocks during an outage, it may have an earlier one.
//   - No key is blocked for longer than that, or than the limit alone denies.
//
// The books have blocks as the rules define them. What is at the store follows from its
// answers, so that is exact. What a process knows is a lower bound, and for each counter
// there is an upper bound.

// A blockEntry has the block of one counter. Times are since the beginning of the history.
type blockEntry struct {
	end    time.Duration
	rung   int           // how many denials have blocked the key
	forget time.Duration // how long after end the rung is remembered
}

func (b blockEntry) at(now time.Duration) blockEntry {
	if b.end+b.forget <= now {
		return blockEntry{}
	}
	return b
}

// rememberedLate is how much longer than exactly a memory store remembers a rung at most.
const rememberedLate = 8 * time.Nanosecond

// start returns the block that a denial by l starts, and that lasts for a known time. If
// the rung may be remembered, and the duration does not show it, the rung is forgotten.
func (b blockEntry) start(l Limit, lasts, now time.Duration) blockEntry {
	rung := b.at(now).rung
	if late := now - rememberedLate; b.next(l, late) > b.next(l, now) && lasts == b.next(l, late) {
		rung = b.at(late).rung
	}
	return blockEntry{now + lasts, min(rung+1, 4), max(slices.Max(l.Ladder()), l.Window())}
}

func (b blockEntry) join(o blockEntry, now time.Duration) blockEntry {
	b = b.at(now)
	return blockEntry{max(b.end, o.end), max(b.rung, o.rung), max(b.forget, o.forget)}
}

// byHand returns the block after a block by hand, which has an end. If doubtful is true,
// the store may forget the rung as if there had been none by hand: this process still owes
// the store a block, or a call that it does not know of has shortened how long the rung is
// remembered.
func (b blockEntry) byHand(end, now time.Duration, doubtful bool) blockEntry {
	joined := b.join(blockEntry{end: end}, now)
	if doubtful {
		joined.rung, joined.forget = 0, 0
	}
	return joined
}

// next returns the duration of the block that a denial by l starts.
func (b blockEntry) next(l Limit, now time.Duration) time.Duration {
	ladder := l.Ladder()
	return ladder[min(b.at(now).rung, len(ladder)-1)]
}

// blockBooks have the blocks of all keys. Several processes may share them.
type blockBooks struct {
	begin   time.Time
	largest map[counterID]Limit // of a world's counters, without a key
	all     []*blockWatch       // one for each process

	mu    sync.Mutex // calls of the limiters' own goroutines change what follows
	store map[counterID]blockEntry
	most  map[counterID]blockEntry
	lossy bool   // replies may have been lost
	wrong string // what is wrong with a block at the store
}

func newBlockBooks(w *world) *blockBooks {
	b := &blockBooks{
		begin:   time.Now().Add(-1), // no end is at 0
		largest: map[counterID]Limit{}, store: map[counterID]blockEntry{}, most: map[counterID]blockEntry{},
	}
	for _, l := range w.counters {
		b.largest[counterOf("", l)] = l
	}
	return b
}

func counterOf(key string, l Limit) counterID { return counterID{key, l.Algorithm(), l.Window()} }

func (b *blockBooks) now() time.Duration { return time.Since(b.begin) }

// longestDenial returns for how long a limit denies at most, without a block.
func (b *blockBooks) longestDenial(l Limit) time.Duration {
	if l.Algorithm() == "bucket" {
		refill := float64(l.Window()) / float64(l.N())
		return time.Duration(refill * float64(2*b.largest[counterOf("", l)].Burst()+1))
	}
	return 2 * l.Window()
}

// startedAtStore enters the blocks that a take has started at the store. It does nothing
// for nil books.
func (b *blockBooks) startedAtStore(key string, limits []Limit, results []Result) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, r := range results {
		if !r.BlockBegan {
			continue
		}
		id, l, now := counterOf(key, limits[i]), limits[i], b.now()
		if what := b.checkDuration(l, r.RetryAfter, b.store[id], b.most[id], now); what != "" {
			b.wrong = "at the store: " + what
		}
		b.store[id] = b.store[id].start(l, r.RetryAfter, now)
		b.raise(id, l, r.RetryAfter, now)
	}
}

// raise raises the upper bound for a denial that has started a block. The books must be
// locked.
func (b *blockBooks) raise(id counterID, l Limit, lasts, now time.Duration) {
	began := b.most[id].start(l, lasts, now)
	began.rung = min(b.most[id].at(now-rememberedLate).rung+1, 4)
	b.most[id] = b.most[id].join(began, now-rememberedLate)
}

// checkDuration checks for how long a block lasts. Its rung is between the rungs
// of two entries. The books must be locked.
func (b *blockBooks) checkDuration(l Limit, lasts time.Duration, least, most blockEntry, now time.Duration) string {
	shortest, longest := least.next(l, now), max(most.next(l, now-rememberedLate), b.longestDenial(l))
	if lasts < shortest || lasts > longest {
		return fmt.Sprintf("a block of %v lasts %v: want %v to %v", l, lasts, shortest, longest)
	}
	return ""
}

// loses enters that a call has no reply.
func (b *blockBooks) loses() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lossy = true
}

// joinedAtStore enters a block that a limiter has sent to the store.
func (b *blockBooks) joinedAtStore(key string, limits []Limit, block Block) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range limits {
		id, now := counterOf(key, l), b.now()
		b.store[id] = b.store[id].join(blockEntry{now + block.Left, block.Rung, block.Forget}, now)
	}
}

// resetAtStore enters that the store forgets a key.
func (b *blockBooks) resetAtStore(key string, limits []Limit) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range limits {
		delete(b.store, counterOf(key, l))
	}
}

// forgetKey deletes what entries have about a key.
func forgetKey(entries map[counterID]blockEntry, key string) {
	maps.DeleteFunc(entries, func(id counterID, _ blockEntry) bool { return id.key == key })
}

// A blockWatch checks the blocks of one process.
type blockWatch struct {
	*blockBooks
	process *bounded
	known   map[counterID]blockEntry // what the process knows at least
	opened  map[string]time.Duration // when FailOpen has admitted a key that is blocked

	// permitted has until when the process may deny a key without the store, because of a
	// block. Without that, FailOpen admits the key. The block of another limit may
	// last for longer.
	permitted map[string]time.Duration

	eventsMu sync.Mutex
	denied   *Decision // of the present step
	blocked  *Event    // a denial has started this block in the present step
}

func (p *bounded) watchBlocks(b *blockBooks) {
	w := &blockWatch{blockBooks: b, process: p, known: map[counterID]blockEntry{}, opened: map[string]time.Duration{}, permitted: map[string]time.Duration{}}
	b.all = append(b.all, w)
	p.watch, p.link.blocks = w, b
	p.registry.Observe(func(_ context.Context, e Event) {
		w.eventsMu.Lock()
		defer w.eventsMu.Unlock()
		switch {
		case e.Kind == EventDenied:
			w.denied = &e.Decision
		case e.Kind == EventBlocked && e.Policy != "":
			w.blocked = &e
		}
	})
}

// restarted enters that the process knows nothing.
func (w *blockWatch) restarted() {
	clear(w.known)
	clear(w.permitted)
}

// step checks and enters a step that the process has carried out. It returns what is
// wrong, or "".
func (w *blockWatch) step(s step, key string, limits []Limit, o outcome, record *callRecord, start time.Time) string {
	w.eventsMu.Lock()
	denied, blocked := w.denied, w.blocked
	w.denied, w.blocked = nil, nil
	w.eventsMu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	now, owed := w.now(), w.process.limiter.Stats().Remote.Owed > 0
	switch s.do {
	case doBlock:
		for _, l := range record.blocked {
			id, at := counterOf(key, l), record.at.Sub(w.begin) // the call may have taken time since then
			w.most[id] = w.most[id].join(blockEntry{end: now + s.wait}, at-rememberedLate)
			if o.err == nil {
				w.known[id] = w.known[id].byHand(at+s.wait, at, owed || len(w.all) > 1 || w.lossy)
				w.permitted[key] = max(w.permitted[key], at+s.wait)
			}
		}
	case doReset:
		for _, other := range w.all {
			forgetKey(other.known, key)
		}
		delete(w.permitted, key)
		if o.err == nil && len(w.all) == 1 {
			forgetKey(w.most, key)
		}
	case doRefund, doAddCost, doEnd:
		if s.do == doRefund {
			delete(w.permitted, key)
		} else if o.inflight != nil {
			delete(w.permitted, o.inflight.key)
		}
	case doTake, doTakeReplaced, doServe, doCheck, doTakeShortDeadline:
		if what := w.decision(s, key, limits, o, denied, blocked, start.Sub(w.begin), now); what != "" {
			return what
		}
	}
	if w.wrong != "" {
		return w.wrong
	}
	if !owed {
		return w.missing(maps.Keys(w.known), now)
	}
	return ""
}

// decision checks and enters a decision. The books must be locked.
func (w *blockWatch) decision(s step, key string, limits []Limit, o outcome, denied *Decision, blocked *Event, start, now time.Duration) string {
	d := o.decision
	if denied != nil {
		d = *denied
	}
	if d == (Decision{}) {
		return "" // an error, or a request without a key
	}
	var ids []counterID
	for _, l := range limits {
		ids = append(ids, counterOf(key, l))
	}
	if d.Allowed && s.n > 0 {
		left := time.Duration(0)
		for _, id := range ids {
			left = max(left, w.known[id].end-now)
		}
		if left > 0 && !w.mayOpen(key, &d, start) {
			return fmt.Sprintf("%d units were admitted by %v, and this process knows of a block that lasts for another %v", s.n, d.Source, left)
		}
	}
	if blocked != nil && d.Source != SourceStore { // startedAtStore enters the others
		id, l := counterOf(key, blocked.Limit), blocked.Limit
		if what := w.checkDuration(l, blocked.Duration, w.known[id], w.most[id], now); what != "" {
			return what
		}
		w.known[id] = w.known[id].start(l, blocked.Duration, now)
		delete(w.permitted, key)
		for _, other := range limits { // may have started shorter ones
			if other.Ladder() != nil {
				w.raise(counterOf(key, other), other, blocked.Duration, now)
			}
		}
	}
	if d.Blocked {
		end := time.Duration(0)
		retry := time.Duration(0)
		for i, id := range ids {
			end = max(end, w.most[id].end)
			retry = max(retry, w.longestDenial(limits[i]))
		}
		if end <= now {
			return fmt.Sprintf("the key is blocked, and its last block should have ended %v ago", now-end)
		}
		if !d.Allowed && d.RetryAfter != Never && d.RetryAfter > max(end-now, retry) {
			return fmt.Sprintf("RetryAfter is %v: want at most %v", d.RetryAfter, max(end-now, retry))
		}
	}
	if d.Source == SourceStore {
		if what := w.missing(slices.Values(ids), now); what != "" {
			return what
		}
		for _, id := range ids {
			w.known[id] = w.store[id]
		}
		switch {
		case d.Blocked && !d.Allowed:
			w.permitted[key] = 0
			for _, id := range ids {
				w.permitted[key] = max(w.permitted[key], w.known[id].end)
			}
		case s.n > 0:
			delete(w.permitted, key)
		}
	}
	return ""
}

// mayOpen reports whether FailOpen may admit a key although it is blocked: once in each
// DenyRecheck, or if the process has lost its permission to deny the key. start is when the
// call began.
func (w *blockWatch) mayOpen(key string, d *Decision, start time.Duration) bool {
	const early = 66 * time.Microsecond // permissions end so much earlier
	if d.Source != SourceFailOpen || w.permitted[key]-early <= start {
		return d.Source == SourceFailOpen
	}
	recheck := w.process.world.opts.DenyRecheck
	if recheck == 0 {
		recheck = time.Second // see Options.DenyRecheck
	}
	last, before := w.opened[key]
	w.opened[key] = start
	return recheck > 0 && (!before || start-last >= recheck-early)
}

// missing returns which of the blocks that the process knows of is not at the store, or
// "". The books must be locked.
func (w *blockWatch) missing(ids func(func(counterID) bool), now time.Duration) (what string) {
	for id := range ids {
		// A block that has ended later may have come from another process or have had no
		// reply. Its rung may be remembered for a shorter time.
		known, store := w.known[id].at(now), w.store[id]
		if known.end > now && store.end < known.end || store.end <= known.end && store.rung < known.rung {
			what = fmt.Sprintf("the store has the block %+v under %s %v, and should have %+v; it is %v now", w.store[id], id.algorithm, id.window, known, now)
		}
	}
	return what
}

// settled checks the blocks of a process that owes the store nothing. It also asks the
// store for them.
func (w *blockWatch) settled() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if what := w.missing(maps.Keys(w.known), now); what != "" {
		return what
	}
	for id, b := range w.store {
		limit, ok := w.largest[counterID{"", id.algorithm, id.window}]
		if !ok { // a window of a plan that was written by hand
			continue
		}
		var result [1]Result
		if _, err := w.process.link.Store.Take(context.Background(), id.key, 0, []Limit{limit}, result[:]); err != nil {
			return err.Error()
		}
		if result[0].Blocked != (b.end > now) {
			return fmt.Sprintf("the store answers %+v under %s %v, and the block is %+v; it is %v now", result[0], id.algorithm, id.window, b, now)
		}
	}
	return ""
}

// blockFamilies are the families of histories with blocks.
func blockFamilies() map[string]worldSpec {
	families := map[string]worldSpec{}
	for name, spec := range boundFamilies() {
		spec.blocks = true
		families[name] = spec
	}
	return families
}

func blockScript(modes []mode) script {
	sc := boundScript
	sc.modes = modes
	sc.weights[doBlock] = 3
	sc.weights[doWait] += 6
	return sc
}

// TestBlocksWhileAStoreComesAndGoes runs histories of one process.
func TestBlocksWhileAStoreComesAndGoes(t *testing.T) {
	for name, spec := range blockFamilies() {
		t.Run(name, func(t *testing.T) {
			runSeeds(t, 40, func(t *testing.T, seed int) {
				failIfWrong(t, newHistory(seeded("blocks "+name, seed), spec, blockScript(boundModes[seed%len(boundModes)])), runOneProcess)
			})
		})
	}
}

// TestBlocksOfProcessesThatShareAStore runs histories of two processes.
func TestBlocksOfProcessesThatShareAStore(t *testing.T) {
	for name, spec := range blockFamilies() {
		t.Run(name, func(t *testing.T) {
			runSeeds(t, 20, func(t *testing.T, seed int) {
				sc := blockScript(boundModes[seed%3])
				sc.processes = 2
				sc.weights[doRestart] = 0
				sc.weights[doRefund] = 0 // see TestProcessesShareAStore
				failIfWrong(t, newHistory(seeded("blocks "+name, seed), spec, sc), runShared)
			})
		})
	}
}

// TestBlocksUnderEachPolicy runs histories of a limiter whose OnFailure changes with each
// Reload. It does not check units: FailOpen counts none.
func TestBlocksUnderEachPolicy(t *testing.T) {
	for name, spec := range blockFamilies() {
		spec.policies = []FailurePolicy{FailOpen, FailOpen, FailClosed, FallbackLocal}
		t.Run(name, func(t *testing.T) {
			runSeeds(t, 20, func(t *testing.T, seed int) {
				failIfWrong(t, newHistory(seeded("policies "+name, seed), spec, blockScript(boundModes[seed%len(boundModes)])), runOneProcess)
			})
		})
	}
}
