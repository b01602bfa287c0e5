package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// This file has the second model: what limiters admit while their store comes
// and goes. It checks these promises, in every interval:
//
//   - One process admits no more than the algorithm's documented bound, less
//     what is given back. Only a call that the store has not carried out and
//     not answered may be above it, because the limiter cannot know that it
//     must count it.
//   - Several processes on one store admit no more than that bound, plus the
//     units that each of them has admitted alone. When the store has counted
//     those, nothing more is admitted.
//   - No decision is an error or takes longer than Options.Timeout.
//   - When nothing is counted any more, each key has all of its units.

// unreached is a mode that remoteBackend does not have: a call hangs until its
// timeout, and has certainly changed nothing.
const unreached mode = 100

// linkStore is a process's link to a store that keeps its counters.
type linkStore struct {
	Store
	mode   atomic.Int32
	blocks *blockBooks // nil if blocks are not checked

	mu     sync.Mutex
	missed []missedCharge

	unknown []missedCharge // carried out and not answered
}

// A missedCharge has units that the limiter has charged to the store outside of
// decisions, in a call that was not carried out and not answered.
type missedCharge struct {
	key    string
	limits []Limit
	n      int64
}

// A callRecord describes the last take of a caller. The caller's
// context has it, and contexts of the limiter's own calls do not.
type callRecord struct {
	unanswered bool
	applied    bool      // the store has counted the units
	at         time.Time // when the call reached the store
	blocked    []Limit   // of a block by hand: the limits whose counters are blocked
}

type callRecordKey struct{}

func (s *linkStore) Fault(err error) Fault {
	if errors.Is(err, errBackendRefused) {
		return FaultRefused
	}
	return FaultUnknown
}

// call makes a call by the present mode, and reports whether it was carried
// out.
func (s *linkStore) call(ctx context.Context, carryOut func(context.Context) error) (done bool, err error) {
	switch mode(s.mode.Load()) {
	case refused:
		return false, errBackendRefused
	case unreached:
		<-ctx.Done()
		return false, errBackendRefused
	case silent:
		s.blocks.loses()
		<-ctx.Done()
		return false, ctx.Err()
	case lost:
		s.blocks.loses()
		carryOut(context.WithoutCancel(ctx))
		<-ctx.Done()
		return true, ctx.Err()
	}
	return true, carryOut(context.WithoutCancel(ctx))
}

// Take implements [Store].
func (s *linkStore) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	return s.TakePending(ctx, key, n, nil, limits, results)
}

// TakePending implements [KindStore].
func (s *linkStore) TakePending(ctx context.Context, key string, n int64, pending []Pending, limits []Limit, results []Result) (at Instant, err error) {
	start, fits := time.Now(), true
	done, err := s.call(ctx, func(ctx context.Context) (err error) {
		at, err = s.Store.(KindStore).TakePending(ctx, key, n, pending, limits, results)
		for _, r := range results {
			fits = fits && r.RetryAfter == 0
		}
		s.blocks.startedAtStore(key, limits, results)
		return err
	})
	if record, ok := ctx.Value(callRecordKey{}).(*callRecord); ok && n > 0 {
		*record = callRecord{unanswered: err != nil && s.Fault(err) == FaultUnknown, applied: done && fits, at: start}
	}
	return at, err
}

// Adjust implements [Store].
func (s *linkStore) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (charged int64, err error) {
	done, err := s.call(ctx, func(ctx context.Context) (err error) {
		charged, err = s.Store.Adjust(ctx, key, n, at, limits)
		return err
	})
	if n > 0 && err != nil && s.Fault(err) == FaultUnknown {
		s.mu.Lock()
		defer s.mu.Unlock()
		if done {
			s.unknown = append(s.unknown, missedCharge{key, limits, n})
		} else if ctx.Value(callRecordKey{}) == nil {
			s.missed = append(s.missed, missedCharge{key, limits, n})
		}
	}
	return charged, err
}

// Reset implements [Store].
func (s *linkStore) Reset(ctx context.Context, key string, limits []Limit) error {
	_, err := s.call(ctx, func(ctx context.Context) error {
		s.blocks.resetAtStore(key, limits)
		return s.Store.Reset(ctx, key, limits)
	})
	return err
}

// Kinds implements [KindStore].
func (s *linkStore) Kinds() Kinds { return KindBlock | KindRolling | KindCalendar }

// Block implements [KindStore].
func (s *linkStore) Block(ctx context.Context, key string, b Block, limits []Limit) error {
	if record, ok := ctx.Value(callRecordKey{}).(*callRecord); ok {
		record.blocked, record.at = limits, time.Now()
	}
	_, err := s.call(ctx, func(ctx context.Context) error {
		s.blocks.joinedAtStore(key, limits, b)
		return s.Store.(KindStore).Block(ctx, key, b, limits)
	})
	return err
}

var boundScript = script{
	steps: 100,
	weights: [actions]int{
		doWait: 22, doTake: 20, doDrain: 12, doRefund: 4, doReset: 1, doLook: 2,
		doServe: 12, doCheck: 3, doAddCost: 14, doEnd: 14, doSetLimits: 4, doReload: 2,
		doTakeReplaced: 1, doCloseReplaced: 1, doRestart: 1, doMode: 12,
	},
	units: []int64{0, 1, 1, 1, 2, 2, 3, 4, 6},
	costs: []int64{least, -3, -2, -1, -1, 0, 1, 1, 2, 3, 5, 12, most},
	exact: 8,
}

// boundModes are chosen by a history's seed. Only in the last one may units be
// above the bound of a single process.
var boundModes = [][]mode{
	{up, up, refused},
	{up, lost},
	{up, up, refused, unreached, lost},
	{up, up, refused, unreached, lost, silent},
}

// boundFamilies are the families of histories of stores that come and go,
// without and with leases. Leases need larger limits.
func boundFamilies() map[string]worldSpec {
	families := map[string]worldSpec{}
	for name, spec := range neverFamilies() {
		if spec.blocks {
			continue // see blockFamilies
		}
		spec.leases, spec.huge = []time.Duration{0}, false
		spec.windows = []int{1, 1, 1, 2, 3, 9, 14}
		spec.scales = []time.Duration{20 * time.Millisecond, time.Second, time.Minute, time.Hour, time.Hour}
		families[name] = spec
		if slices.Contains(spec.algorithms, "rolling") {
			continue // New refuses Lease
		}
		spec.leases = []time.Duration{20 * time.Millisecond}
		spec.windows = []int{1, 1, 2, 3}
		spec.scales = []time.Duration{200 * time.Millisecond, time.Second, time.Minute}
		spec.sizes = []int64{20, 40, 60, 100}
		families[name+" with leases"] = spec
	}
	return families
}

// TestStoreComesAndGoes runs histories of one process.
func TestStoreComesAndGoes(t *testing.T) {
	for name, spec := range boundFamilies() {
		t.Run(name, func(t *testing.T) {
			runSeeds(t, 50, func(t *testing.T, seed int) {
				sc := boundScript
				sc.modes = boundModes[seed%len(boundModes)]
				failIfWrong(t, newHistory(seeded(name, seed), spec, sc), runOneProcess)
			})
		})
	}
}

// TestProcessesShareAStore runs histories of two processes. In half of them no
// window ends, so that the store's knowledge can be checked to the unit.
func TestProcessesShareAStore(t *testing.T) {
	for name, spec := range boundFamilies() {
		t.Run(name, func(t *testing.T) {
			runSeeds(t, 20, func(t *testing.T, seed int) {
				sc, spec := boundScript, spec
				sc.processes = 2
				sc.modes = boundModes[seed%3]
				sc.weights[doRestart] = 0
				sc.weights[doRefund] = 0 // it would give back units of the other process, which gives them back later
				if seed%4 > 1 {
					// All limits have the same size. Otherwise the store may
					// count units only up to a smaller limit than they were
					// admitted under.
					spec.scales, spec.sizes = []time.Duration{lasting}, spec.sizes[2:3]
					sc.exact, sc.sleep = 0, time.Second
				}
				failIfWrong(t, newHistory(seeded(name, seed), spec, sc), runShared)
			})
		})
	}
}

// lasting is the length of a window that does not end before its history does.
const lasting = 100 * time.Hour

// runOneProcess runs a history of one process.
func runOneProcess(t *testing.T, h history) *wrong {
	p := newBounded(h.world, modelMemory(t, h.world), newBooks(h.world))
	if h.world.blocks {
		p.watchBlocks(newBlockBooks(h.world))
	}
	if !h.world.blocks { // a block denies for longer
		p.holds = newHolds()
	}
	defer p.end()
	for i, s := range h.steps {
		if what := p.step(s); what != "" {
			return &wrong{i, what}
		}
	}
	if what := p.drainAll(); what != "" {
		return &wrong{len(h.steps), what}
	}
	if what := p.wholeAgain(); what != "" {
		return &wrong{len(h.steps), what}
	}
	return nil
}

// runShared runs a history of two processes.
func runShared(t *testing.T, h history) *wrong {
	b := newBooks(h.world)
	b.shared, b.lasting = true, h.world.counters[0].Window() >= lasting
	store, blocks := modelMemory(t, h.world), newBlockBooks(h.world)
	var all []*bounded
	for range 2 {
		p := newBounded(h.world, store, b)
		if h.world.blocks {
			p.watchBlocks(blocks)
		}
		defer p.end()
		all = append(all, p)
	}
	pending := func() (owed, requests int) {
		for _, p := range all {
			owed += p.limiter.Stats().Remote.Owed
			requests += len(p.requests)
		}
		return owed, requests
	}
	for i, s := range h.steps {
		if s.do == doReset {
			if owed, requests := pending(); owed+requests > 0 {
				continue // the store would count or get back units from before the Reset
			}
			time.Sleep(2 * h.world.opts.Lease) // until none are leased
		}
		if what := all[s.in].step(s); what != "" {
			return &wrong{i, what}
		}
		if owed, _ := pending(); owed == 0 {
			b.sync(int64(len(all)))
		}
	}
	for _, p := range all {
		if what := p.endOutage(); what != "" {
			return &wrong{len(h.steps), what}
		}
	}
	b.sync(int64(len(all)))
	for key := range h.world.keys {
		for i, p := range all {
			if what := p.drain(key); what != "" {
				return &wrong{len(h.steps), fmt.Sprintf("process %d: %s", i, what)}
			}
		}
	}
	return nil
}

// A bounded is a subject whose admissions are entered in books.
type bounded struct {
	*subject
	books   *books
	link    *linkStore
	entries map[*inflight][]*entry
	last    Decision
	watch   *blockWatch // nil if blocks are not checked
	holds   *holds      // nil if denials are not checked
}

func newBounded(w *world, store Store, b *books) *bounded {
	w.opts.Shadow = false // otherwise denied requests would be served
	link := &linkStore{Store: store}
	return &bounded{
		subject: newSubject(w, func() Store { return link }),
		books:   b, link: link, entries: map[*inflight][]*entry{},
	}
}

// step carries out a step. It returns what is wrong, or "".
func (p *bounded) step(s step) string {
	key := p.world.keys[s.key]
	limits := p.limiter.Limits()
	switch s.do {
	case doWait:
		s.sleep(p.last)
		return ""
	case doMode:
		p.link.mode.Store(int32(s.mode))
		if p.holds != nil {
			p.holds.era++
		}
		return ""
	case doDrain:
		return p.drain(s.key)
	case doRestart:
		p.startOver(s)
		return ""
	case doBlock:
		if key == "" {
			return ""
		}
	case doReset:
		for _, f := range p.requests {
			if f.key == key {
				return "" // units from before the Reset are given back after it
			}
		}
	case doRefund:
		if p.world.opts.Lease > 0 {
			// A Refund of more than was taken also takes leased units out of
			// the store.
			s.n = min(s.n, p.books.refundable(key, limits))
		}
	case doTakeReplaced:
		if p.replaced == nil {
			return ""
		}
		limits = p.replaced.Limits()
	}
	record, start, to := new(callRecord), time.Now(), p.reach()
	o := p.do(context.WithValue(context.Background(), callRecordKey{}, record), s)
	took := time.Since(start)
	synctest.Wait() // until the limiter's goroutines are done, or wait for the store
	p.link.mu.Lock()
	for _, m := range p.link.missed {
		p.books.mayExceed(m.key, m.limits, m.n) // the limiter cannot know that it must charge them again
	}
	for _, m := range p.link.unknown {
		p.books.mayNotKnow(m.key, m.limits)
	}
	p.link.missed, p.link.unknown = nil, nil
	p.link.mu.Unlock()
	if o.inflight != nil {
		limits = o.inflight.limits
	}
	if p.watch != nil {
		if what := p.watch.step(s, key, limits, o, record, start); what != "" {
			return what
		}
	}

	if p.holds != nil {
		if what := p.holds.step(p, s, key, limits, o, record, to); what != "" {
			return what
		}
	}

	switch s.do {
	case doReset:
		p.books.reset(key, o.err == nil)
	case doRefund:
		p.books.refund(key, limits, s.n)
	case doAddCost:
		if o.inflight != nil && s.n < 0 {
			p.books.giveBack(p.entries[o.inflight], -max(s.n, -most))
		} else if o.inflight != nil {
			p.books.charge(o.inflight, p.entries[o.inflight], s.n)
		}
	case doEnd:
		if o.inflight != nil && o.inflight.request == nil && s.status != 0 && !counts(s.status) {
			p.books.giveBack(p.entries[o.inflight], most)
		}
	case doTake, doTakeReplaced, doServe, doCheck:
		p.last = o.decision
		if timeout := timeoutOf(p.world); took > timeout {
			return fmt.Sprintf("the decision took %v, with a Timeout of %v", took, timeout)
		}
		if p.world.policies != nil {
			return "" // FailClosed decides nothing, and FailOpen counts nothing
		}
		if key != "" && (o.err != nil || o.status == http.StatusServiceUnavailable) {
			return fmt.Sprintf("no decision: %v", o)
		}
		return p.enter(key, limits, s.n, o, record)
	}
	return ""
}

// enter enters a decision. It returns which bound is exceeded, or "".
func (p *bounded) enter(key string, limits []Limit, n int64, o outcome, record *callRecord) string {
	how := admission{
		at: p.books.now(), window: p.books.now() + o.decision.ResetAfter,
		local: o.decision.Source == SourceFallback, leased: o.decision.Source == SourceLease,
	}
	if record.unanswered {
		// The store has perhaps counted the units when the call reached it, and
		// its window may have ended since.
		how.at, how.window, how.local = record.at.Sub(p.books.begin), 0, false
		if !record.applied {
			n = 0 // the limiter cannot know that it must count them
		}
		p.books.open(key, limits, how.at)
	}
	if !o.decision.Allowed {
		return ""
	}
	var entries []*entry
	var exceeded string
	if n == 0 {
		entries = p.books.open(key, limits, how.at)
	} else {
		entries, exceeded = p.books.admit(key, limits, n, how)
	}
	if o.inflight != nil {
		p.entries[o.inflight] = entries
	}
	return exceeded
}

// drain takes single units of a key until one is denied.
func (p *bounded) drain(key int) string {
	for range 300 {
		if what := p.step(step{do: doTake, key: key, n: 1}); what != "" {
			return what
		}
		if !p.last.Allowed {
			break
		}
	}
	return ""
}

// drainAll has the store back, and drains each key under all limits.
func (p *bounded) drainAll() string {
	if what := p.endOutage(); what != "" {
		return what
	}
	for key := range p.world.keys {
		if what := p.drain(key); what != "" {
			return what
		}
		for plan := range p.world.plans {
			for admitted := true; admitted; admitted = p.last.Allowed {
				if what := p.step(step{do: doCheck, key: key, plan: plan, n: 1}); what != "" {
					return what
				}
			}
		}
	}
	return ""
}

// startOver restarts the process, if the store knows of all units. The new
// limiter looks at each key. Otherwise it would not know the units of the key,
// and admit them again in an outage.
func (p *bounded) startOver(s step) {
	stats := p.limiter.Stats().Remote
	if mode(p.link.mode.Load()) != up || stats.Owed > 0 || stats.BreakerOpen {
		return
	}
	p.do(context.Background(), s)
	if p.holds != nil {
		p.holds.closed()
	}
	p.world.introduce(p.limiter, p.world.keys...)
	if p.watch != nil {
		p.watch.restarted()
	}
}

// endOutage has the store back for good, and waits until it knows of all units.
func (p *bounded) endOutage() string {
	p.link.mode.Store(int32(up))
	if p.holds != nil {
		p.holds.era++
	}
	time.Sleep(6 * time.Second) // until no call hangs any more
	for range 5 {
		time.Sleep(400 * time.Millisecond)
		for key := range p.world.keys {
			p.do(context.Background(), step{do: doTake, key: key})
		}
		synctest.Wait()
	}
	if owed := p.limiter.Stats().Remote.Owed; owed > 0 {
		return fmt.Sprintf("units or blocks of %d keys are still owed to the store", owed)
	}
	if p.watch != nil {
		return p.watch.settled()
	}
	return ""
}

// wholeAgain waits until nothing is counted, and checks that each key has all of
// its units.
func (p *bounded) wholeAgain() string {
	for len(p.requests) > 0 {
		p.do(context.Background(), step{do: doEnd, status: http.StatusUnauthorized})
	}
	time.Sleep(2000 * time.Hour)
	if what := p.endOutage(); what != "" {
		return what
	}
	time.Sleep(2000 * time.Hour)
	for i, key := range p.world.keys {
		for plan := range p.world.plans {
			for _, s := range p.do(context.Background(), step{do: doLook, key: i, plan: plan}).standings {
				if s.Remaining != s.Limit.Burst() || s.Blocked {
					return fmt.Sprintf("key %.40q is not whole again: %+v", key, s)
				}
			}
		}
	}
	return ""
}
