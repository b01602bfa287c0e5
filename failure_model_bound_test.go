package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// This file has the second model: what a limiter admits while its store comes and
// goes. It is counted from outside: only by what was admitted when, and given back.

// unreached is a mode of waySTore, beside those of farStore: a call hangs until its
// time is over, and has certainly changed nothing.
const unreached mode = 100

// wayStore is a process's way to a store that keeps its counters.
type wayStore struct {
	Store
	mode atomic.Int32
	lost func(key string, n int64, limits []Limit) // a charge that no caller waits for was not answered and not carried out
}

// callRecord is what has become of the last take of a caller. A caller's context
// has it; what the limiter does beside has another context.
type callRecord struct {
	unanswered bool
	applied    bool
	at         time.Time // when the store has counted it
}

type callRecordKey struct{}

func (s *wayStore) Fault(err error) Fault {
	if errors.Is(err, errFarRefused) {
		return FaultRefused
	}
	return FaultUnknown
}

// call takes a call along the way, and reports whether it is carried out.
func (s *wayStore) call(ctx context.Context, carryOut func(context.Context) error) (carriedOut bool, err error) {
	there := context.WithoutCancel(ctx)
	switch mode(s.mode.Load()) {
	case refused:
		return false, errFarRefused
	case unreached:
		<-ctx.Done()
		return false, errFarRefused
	case silent:
		<-ctx.Done()
		return false, ctx.Err()
	case lost:
		carryOut(there)
		<-ctx.Done()
		return true, ctx.Err()
	}
	return true, carryOut(there)
}

func (s *wayStore) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (at Instant, err error) {
	fits, counted := true, time.Now()
	carriedOut, err := s.call(ctx, func(ctx context.Context) (err error) {
		there := make([]Result, len(limits)) // the caller does not wait for them to be written
		at, err = s.Store.Take(ctx, key, n, limits, there)
		for _, r := range there {
			fits = fits && r.RetryAfter == 0
		}
		copy(results, there)
		return err
	})
	if record, ok := ctx.Value(callRecordKey{}).(*callRecord); ok && n > 0 {
		*record = callRecord{unanswered: s.Fault(err) == FaultUnknown && err != nil, applied: carriedOut && fits, at: counted}
	}
	return at, err
}

func (s *wayStore) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (charged int64, err error) {
	carriedOut, err := s.call(ctx, func(ctx context.Context) (err error) {
		charged, err = s.Store.Adjust(ctx, key, n, at, limits)
		return err
	})
	if _, ok := ctx.Value(callRecordKey{}).(*callRecord); !ok && n > 0 && !carriedOut && s.Fault(err) == FaultUnknown {
		s.lost(key, n, limits)
	}
	return charged, err
}

func (s *wayStore) Reset(ctx context.Context, key string, limits []Limit) error {
	_, err := s.call(ctx, func(ctx context.Context) error { return s.Store.Reset(ctx, key, limits) })
	return err
}

// counterID is a counter of a key.
type counterID struct {
	key       string
	algorithm string
	window    time.Duration
}

func idOf(key string, l Limit) counterID { return counterID{key, l.Algorithm(), l.Window()} }

// books are all that was admitted.
type books struct {
	begin    time.Time
	slack    time.Duration // how much later than the store has counted them units may be admitted
	alone    bool          // units that a process admits alone are above the bound: others do not know of them
	accounts map[counterID]*account

	mu     sync.Mutex
	losses []loss // that no account has yet; guarded by mu
}

// account is what was admitted of a key under one algorithm and window.
type account struct {
	limit   Limit // the largest that it was under
	entries []*entry
	excess  []excess
	windows map[time.Duration]int64 // units kept by the end of their window, where that is known
	level   level
}

// entry is units that were admitted at once.
type entry struct {
	account *account
	at      time.Duration // when the store has counted them, or else when they were admitted
	kept    int64         // and not given back
	stolen  int64         // of those that were given back, those that Refund gave back
	window  time.Duration // when their window ends; 0 if that is not known
	alone   bool
}

// excess is units that may be admitted above the bound, in intervals that begin no
// later than this.
type excess struct {
	at time.Duration
	n  int64
}

// level is how full a bucket would be that all has gone through. It counts in
// Window-ths of a unit.
type level struct {
	at   time.Duration
	full int64
}

func (l *level) leak(limit Limit, now time.Duration) {
	hi, leaked := bits.Mul64(uint64(limit.N()), uint64(now-l.at))
	l.at = now
	if hi > 0 || leaked >= uint64(l.full) {
		l.full = 0
		return
	}
	l.full -= int64(leaked)
}

func (b *books) now() time.Duration { return time.Since(b.begin) }

// loss is units that a store may have missed.
type loss struct {
	key    string
	limits []Limit
	excess excess
}

// lose notes a loss. It may be called from any goroutine; the other methods are the
// history's own.
func (b *books) lose(key string, n int64, limits []Limit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.losses = append(b.losses, loss{key, slices.Clone(limits), excess{b.now(), n}})
}

// account returns the account of a key under a limit, which may be larger than
// before, with all losses so far.
func (b *books) account(key string, l Limit) *account {
	b.mu.Lock()
	losses := b.losses
	b.losses = nil
	b.mu.Unlock()
	for _, x := range losses {
		for _, l := range x.limits {
			a := b.accountOf(x.key, l)
			a.excess = append(a.excess, x.excess)
		}
	}
	return b.accountOf(key, l)
}

func (b *books) accountOf(key string, l Limit) *account {
	id := idOf(key, l)
	a := b.accounts[id]
	if a == nil {
		a = &account{limit: l, windows: map[time.Duration]int64{}}
		b.accounts[id] = a
	}
	if l.Burst() > a.limit.Burst() {
		a.limit = l
	}
	return a
}

// admit enters units, and says which bound they exceed, if any.
func (b *books) admit(key string, limits []Limit, n int64, at, window time.Duration, alone bool) (entries []*entry, exceeded string) {
	for _, l := range limits {
		a := b.account(key, l)
		e := &entry{account: a, at: at, kept: n, alone: alone}
		if len(limits) == 1 && l.Algorithm() == "fixed" {
			e.window = window
			a.windows[window] += n
		}
		a.entries = append(a.entries, e)
		if alone && b.alone {
			a.excess = append(a.excess, excess{at, n})
		}
		if l.Algorithm() == "bucket" {
			a.level.leak(l, at)
			a.level.full += n * int64(l.Window())
		}
		entries = append(entries, e)
		if exceeded == "" {
			exceeded = a.exceeded(e, b.slack)
		}
	}
	return entries, exceeded
}

// open enters that a window may have opened, though nothing was admitted.
func (b *books) open(key string, limits []Limit, at time.Duration) {
	for _, l := range limits {
		a := b.account(key, l)
		a.entries = append(a.entries, &entry{account: a, at: at})
	}
}

// exceeded checks every interval that ends now.
func (a *account) exceeded(last *entry, slack time.Duration) string {
	l, units, n := a.limit, int64(0), a.limit.N()
	window := l.Window()
	var above int64
	for _, x := range a.excess {
		above += x.n
	}
	for i := len(a.entries) - 1; i >= 0; i-- {
		first := a.entries[i]
		units += first.kept
		span := last.at - first.at
		allowed := int64(0)
		for _, x := range a.excess {
			if x.at >= first.at {
				allowed += x.n
			}
		}
		switch {
		case l.Algorithm() == "bucket":
			over := units - l.Burst() - allowed
			if over > 0 && less(n, int64(span+slack), over, int64(window)) {
				return fmt.Sprintf("%v: %d units kept in %v, from %v to %v, %d of them in excess", l, units, span, first.at, last.at, allowed)
			}
		case i == 0 && span < window && units > n+allowed:
			return fmt.Sprintf("%v: %d units kept in the first window, from %v to %v, %d of them in excess", l, units, first.at, last.at, allowed)
		case span+slack < window && units > 2*n+allowed:
			return fmt.Sprintf("%v: %d units kept in %v, from %v to %v, %d of them in excess", l, units, span, first.at, last.at, allowed)
		}
	}
	if kept := a.windows[last.window]; last.window != 0 && kept > n+above {
		return fmt.Sprintf("%v: %d units kept in the window that ends at %v, %d of them in excess", l, kept, last.window, above)
	}
	brim := (l.Burst() + above) * int64(window)
	if l.Algorithm() == "bucket" && a.level.full > brim && less(n, int64(slack), a.level.full-brim, 1) {
		return fmt.Sprintf("%v: the bucket would hold %.3f units, %d of them in excess", l, float64(a.level.full)/float64(window), above)
	}
	return ""
}

// less reports whether a*b < c*d.
func less(a, b, c, d int64) bool {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	hi2, lo2 := bits.Mul64(uint64(c), uint64(d))
	return hi < hi2 || hi == hi2 && lo < lo2
}

// giveBack takes units out of an entry, or as many as there are, and returns how
// many it took.
func (e *entry) giveBack(n int64, now time.Duration, alone bool) int64 {
	n = min(n, e.kept)
	e.kept -= n
	if e.window != 0 {
		e.account.windows[e.window] -= n
	}
	if e.alone && alone && n > 0 {
		// The store had no room for all that was admitted without it: to give back what
		// it did not count frees room for as much of what others have taken.
		e.account.excess = append(e.account.excess, excess{now, n})
	}
	return n
}

func (a *account) drain(n int64, now time.Duration) {
	if a.limit.Algorithm() == "bucket" {
		a.level.leak(a.limit, now)
		a.level.full -= min(a.level.full/int64(a.limit.Window())+1, n) * int64(a.limit.Window())
		a.level.full = max(0, a.level.full)
	}
}

// newest gives back units of whatever was admitted last.
func (a *account) newest(n int64, now time.Duration, alone bool) {
	for i := len(a.entries) - 1; i >= 0 && n > 0; i-- {
		given := a.entries[i].giveBack(n, now, alone)
		a.entries[i].stolen += given
		n -= given
	}
}

// refund is [Limiter.Refund]: of what was taken last.
func (b *books) refund(key string, limits []Limit, n int64) {
	for _, l := range limits {
		a := b.account(key, l)
		a.drain(n, b.now())
		a.newest(n, b.now(), b.alone)
	}
}

// giveBack is for a request's units, which it has taken or was charged for. What
// it was charged for is not in the books.
func (b *books) giveBack(entries []*entry, n int64) {
	for _, e := range entries {
		e.account.drain(n, b.now())
		left := n - e.giveBack(n, b.now(), b.alone)
		// Units that Refund has given back before are given back once more: others' now.
		again := min(left, e.stolen)
		e.stolen -= again
		e.account.newest(again, b.now(), b.alone)
	}
}

// reset forgets all of a key.
func (b *books) reset(key string) {
	for id := range b.accounts {
		if id.key == key {
			delete(b.accounts, id)
		}
	}
}

var boundScript = script{
	steps: 120,
	weights: [actions]int{
		doWait: 30, doTake: 24, doDrain: 8, doRefund: 4, doReset: 1, doLook: 2,
		doServe: 14, doCheck: 4, doAddCost: 12, doEnd: 12, doSetLimits: 3, doReload: 2,
		doTakeReplaced: 1, doCloseReplaced: 1, doRestart: 1, doMode: 10,
	},
	units: []int64{0, 1, 1, 1, 2, 2, 3, 4, 6},
	costs: []int64{least, -3, -2, -1, -1, 0, 1, 1, 2, 3, 5, 12, most},
	waits: 6,
}

var boundModes = [][]mode{
	{up, up, refused},
	{up, up, refused, unreached, lost},
	{up, up, refused, unreached, lost, silent},
}

func boundFamilies() map[string]worldSpec {
	families := neverFamilies()
	for name, spec := range neverFamilies() {
		spec.leases, spec.huge = []time.Duration{0}, false
		families[name] = spec
		spec.leases = []time.Duration{20 * time.Millisecond}
		spec.sizes = []int64{20, 50, 100, 200}
		spec.windows = []int{1, 1, 2, 3}
		spec.scales = []time.Duration{200 * time.Millisecond, time.Second, time.Minute}
		families[name+" with leases"] = spec
	}
	return families
}

// TestStoreComesAndGoes: a limiter whose store comes and goes, and keeps its
// counters, admits no more in any interval than its algorithm does, but for calls of
// which it cannot know whether the store has counted them.
func TestStoreComesAndGoes(t *testing.T) {
	for name, spec := range boundFamilies() {
		t.Run(name, func(t *testing.T) {
			for seed := range modelSeeds(t, 40) {
				if !t.Run(strconv.Itoa(seed), func(t *testing.T) {
					sc := boundScript
					sc.modes = boundModes[seed%len(boundModes)]
					failIfWrong(t, newHistory(seeded(uint64(seed)), spec, sc), runComesAndGoes)
				}) {
					return
				}
			}
		})
	}
}

// runComesAndGoes takes one process through a history.
func runComesAndGoes(t *testing.T, h history) *wrong {
	h.world.opts.Shadow = false
	b := &books{begin: time.Now().Add(-1), slack: h.world.opts.Lease, accounts: map[counterID]*account{}}
	way := &wayStore{Store: modelMemory(t)}
	way.lost = b.lose
	p := &bounded{subject: newSubject(h.world, func() Store { return way }), books: b, way: way}
	defer p.end()
	for i, s := range h.steps {
		if what := p.step(s); what != "" {
			return &wrong{i, what}
		}
		synctest.Wait()
	}
	if what := p.wholeAgain(); what != "" {
		return &wrong{len(h.steps), what}
	}
	return nil
}

// bounded is a subject whose admissions are entered.
type bounded struct {
	*subject
	books   *books
	way     *wayStore
	flown   map[*flight][]*entry
	decided Decision
}

// step takes the process one step further, and says which bound is exceeded.
func (p *bounded) step(s step) string {
	key := p.world.keys[s.key]
	switch s.do {
	case doWait:
		s.sleep(p.decided)
		return ""
	case doMode:
		p.way.mode.Store(int32(s.mode))
		return ""
	case doReset:
		for _, f := range p.flights {
			if f.key == key {
				return "" // what it gives back afterwards would be others' units
			}
		}
		p.books.reset(key)
	case doRestart:
		return p.startOver(s)
	case doDrain:
		return p.drain(s.key)
	case doTakeReplaced:
		if p.replaced == nil {
			return ""
		}
	}
	limits := p.limiter.Limits()
	if s.do == doTakeReplaced {
		limits = p.replaced.Limits()
	}
	record := new(callRecord)
	o := p.do(context.WithValue(context.Background(), callRecordKey{}, record), s)
	if o.decision != (Decision{}) || s.do == doTake {
		p.decided = o.decision
	}
	switch s.do {
	case doRefund:
		p.books.refund(key, limits, s.n)
	case doAddCost:
		if o.flight != nil && s.n < 0 {
			p.books.giveBack(p.flown[o.flight], -max(s.n, -most))
		} else if o.flight != nil {
			p.books.open(o.flight.key, o.flight.limits, p.books.now())
		}
	case doEnd:
		if o.flight != nil && o.flight.request == nil && !counts(s.status) {
			p.books.giveBack(p.flown[o.flight], most)
		}
	case doTake, doTakeReplaced, doServe, doCheck:
		if o.flight != nil {
			limits = o.flight.limits
		}
		if record.applied || record.unanswered {
			p.books.open(key, limits, record.at.Sub(p.books.begin))
		}
		if !o.decision.Allowed || s.n == 0 {
			return ""
		}
		at, alone := p.books.now(), o.decision.Source == SourceFallback
		window := at + o.decision.ResetAfter
		if alone && record.unanswered {
			if !record.applied {
				return "" // nobody can know that the store has not counted it
			}
			at, alone = record.at.Sub(p.books.begin), false
		}
		entries, exceeded := p.books.admit(key, limits, s.n, at, window, alone)
		if o.flight != nil {
			if p.flown == nil {
				p.flown = map[*flight][]*entry{}
			}
			p.flown[o.flight] = entries
		}
		return exceeded
	}
	return ""
}

// drain takes what there is, up to some units.
func (p *bounded) drain(key int) string {
	for range 300 {
		if what := p.step(step{do: doTake, key: key, n: 1}); what != "" {
			return what
		}
		if !p.decided.Allowed {
			break
		}
	}
	return ""
}

// startOver is a restart of the process while it owes nothing, and after which it has
// looked at every key.
func (p *bounded) startOver(s step) string {
	if mode(p.way.mode.Load()) != up || p.limiter.Stats().Remote.Owed > 0 || p.limiter.Stats().Remote.BreakerOpen {
		return ""
	}
	p.do(context.Background(), s)
	for key := range p.world.keys {
		p.do(context.Background(), step{do: doTake, key: key})
		for plan := range p.world.plans {
			p.do(context.Background(), step{do: doLook, key: key, plan: plan})
		}
	}
	return ""
}

// wholeAgain has the store back for good. When nothing counts any more, each key has
// all of its units.
func (p *bounded) wholeAgain() string {
	for len(p.flights) > 0 {
		p.do(context.Background(), step{do: doEnd, status: http.StatusUnauthorized})
	}
	p.way.mode.Store(int32(up))
	time.Sleep(2000 * time.Hour)
	for range 3 {
		for key := range p.world.keys {
			p.do(context.Background(), step{do: doTake, key: key})
		}
		time.Sleep(2 * time.Second)
	}
	time.Sleep(2000 * time.Hour)
	for i, key := range p.world.keys {
		for plan := range p.world.plans {
			for _, s := range p.do(context.Background(), step{do: doLook, key: i, plan: plan}).standings {
				if s.Remaining != s.Limit.Burst() {
					return fmt.Sprintf("key %.40q is not whole again: %+v", key, s)
				}
			}
		}
	}
	if owed := p.limiter.Stats().Remote.Owed; owed > 0 {
		return fmt.Sprintf("%d keys are still owed", owed)
	}
	return ""
}
