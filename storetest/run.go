package storetest

import (
	"context"
	"fmt"
	"iter"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// A run is a case that is running. It collects problems instead of failing a test, so
// that the suite itself can be tested with stores that are broken.
type run struct {
	config
	t        *testing.T
	newStore func(t *testing.T, prefix string) ratelimit.Store
	store    ratelimit.Store
	at       ratelimit.Instant // of the last take
	moved    adjustment        // the last one
	called   time.Time         // the wall clock's time just before it, if known
	began    time.Time
	waited   time.Duration
	*findings
}

// An adjustment is a call of Adjust, for the problems that a later look finds.
type adjustment struct {
	key     string
	n       int64
	at      ratelimit.Instant
	charged int64
}

// after returns what the last adjustment of a key was, for the end of a sentence, or "".
func (r *run) after(key string) string {
	if r.moved.key != key {
		return ""
	}
	return fmt.Sprintf("; the last Adjust(%.40q, %d, %d) returned %d", key, r.moved.n, r.moved.at, r.moved.charged)
}

// findings are what all lanes of a run have found.
type findings struct {
	problems []string
	slowest  time.Duration // the longest call, and the time for which it was late
	last     time.Time     // when the last call returned, or the sleep after it should have ended
}

// run runs a case and returns its problems. If the case waits in real time and a call was
// late, its problems say nothing about the store. So it runs again, twice at most. Each
// run has another prefix, and so it has no counters yet.
func (c testCase) run(t *testing.T, cfg config, newStore func(*testing.T, string) ratelimit.Store) (problems []string) {
	prefix, late := "storetest:", false
	for range 3 {
		if problems, late = c.runOnce(t, cfg, newStore, prefix); !late || !c.waits {
			break
		}
		prefix += "again:"
	}
	return problems
}

// runOnce runs a case once. If there are problems, late reports whether a call took
// longer than the slack.
func (c testCase) runOnce(t *testing.T, cfg config, newStore func(*testing.T, string) ratelimit.Store, prefix string) (problems []string, late bool) {
	r := &run{config: cfg, newStore: newStore, findings: new(findings)}
	if cfg.slack > 0 && !c.waits {
		r.window, r.slack = 1000*time.Hour, time.Minute // the time that the case takes makes no difference
	}
	r.advance = func(d time.Duration) {
		cfg.advance(d)
		r.last = r.last.Add(d)
	}
	missing := ""
	check := func(t *testing.T) {
		r.t = t
		if r.store = newStore(t, prefix); r.store == nil {
			t.Fatal("newStore returned no store")
		}
		if missing = c.missing(r.store, cfg); missing != "" {
			return
		}
		if r.slack > 0 && c.waits {
			r.connect()
		}
		r.began = time.Now()
		r.last = r.began
		c.check(r)
	}
	if cfg.bubble {
		synctest.Test(t, check)
	} else {
		check(t)
	}
	if missing != "" { // a skip in a bubble is not reported
		t.Skip(missing)
	}
	late = len(r.problems) > 0 && r.slack > 0 && r.slowest > r.slack
	if late {
		r.problem("a call took %v, which is longer than the slack of %v: connect in newStore, or give RealTime more slack and a longer window",
			r.slowest, r.slack)
	}
	return r.problems, late
}

// connect calls every method under each algorithm, in a way that changes nothing.
// The case reports errors.
func (r *run) connect() {
	ctx := context.Background()
	const key = "storetest: connect"
	for _, l := range r.three(1) {
		limits, results := []ratelimit.Limit{l}, make([]ratelimit.Result, 1)
		r.store.Take(ctx, key, 0, limits, results)
		r.store.Adjust(ctx, key, 0, ratelimit.Now, limits)
		if k, ok := kindStore(r.store); ok {
			k.TakePending(ctx, key, 0, nil, []ratelimit.Limit{l.Block(r.window)}, results)
			k.Block(ctx, key, ratelimit.Block{}, limits)
		}
		if countsHolds(r.store) {
			h := r.store.(ratelimit.HoldStore)
			look := ratelimit.HoldRequest{Key: key, Most: 1, Lasts: r.window, Process: "connect"}
			h.Hold(ctx, look, results)
			look.Limits = limits
			h.Hold(ctx, look, make([]ratelimit.Result, 2))
		}
		if s, ok := r.store.(ratelimit.SharedStore); ok {
			s.TakeShared(ctx, ratelimit.SharedRequest{Key: key, Limits: limits}, results)
		}
		r.store.Reset(ctx, key, limits)
	}
}

// kindStore returns a store as a KindStore that counts blocks, if it is one.
func kindStore(s ratelimit.Store) (ratelimit.KindStore, bool) {
	k, _ := s.(ratelimit.KindStore)
	return k, counts(s, ratelimit.KindBlock)
}

// counts reports whether a store is a KindStore that counts a kind.
func counts(s ratelimit.Store, kind ratelimit.Kinds) bool {
	k, ok := s.(ratelimit.KindStore)
	return ok && k.Kinds()&kind != 0
}

// countsHolds reports whether a store is a HoldStore with KindInFlight.
func countsHolds(s ratelimit.Store) bool {
	_, ok := s.(ratelimit.HoldStore)
	return ok && counts(s, ratelimit.KindInFlight)
}

func (r *run) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// sleep lets some time pass. No store that is right makes a case wait for longer than
// four windows at a time.
func (r *run) sleep(d time.Duration) {
	switch {
	case d > 4*r.window:
		r.problem("a wait of %v is too long for windows of %v", d, r.window)
	case d > 0:
		r.waited += d
		r.advance(d)
	}
}

// until sleeps until this time has passed since the case, or its lane, began.
func (r *run) until(d time.Duration) {
	passed := r.waited
	if r.slack > 0 {
		passed = time.Since(r.began)
	}
	r.sleep(d - passed)
}

// eighths is a part of the window.
func (r *run) eighths(n int64) time.Duration { return time.Duration(n) * r.window / 8 }

// lanes runs parts of a case that do not depend on each other. If time passes on its
// own, the parts wait at the same time: a part runs while the others wait. The store
// gets one call at a time in any case.
func (r *run) lanes(parts ...func(r *run)) {
	if r.slack == 0 {
		for _, part := range parts {
			lane := *r
			lane.waited = 0
			part(&lane)
		}
		return
	}
	type lane struct {
		until  time.Time // zero before its beginning
		resume func() (sleeps time.Duration, ok bool)
	}
	var waiting []lane
	for _, part := range parts {
		resume, stop := iter.Pull(func(yield func(time.Duration) bool) {
			lane := *r
			lane.began, lane.advance = time.Now(), func(d time.Duration) { yield(d) }
			part(&lane)
		})
		defer stop()
		waiting = append(waiting, lane{resume: resume})
	}
	for len(waiting) > 0 {
		first := 0
		for i, l := range waiting {
			if l.until.Before(waiting[first].until) {
				first = i
			}
		}
		l := &waiting[first]
		if d := time.Until(l.until); d > 0 {
			r.advance(d)
		}
		if !l.until.IsZero() { // calls of other parts may have held it up, each for a moment
			r.slowest = max(r.slowest, time.Since(l.until))
		}
		if d, ok := l.resume(); ok {
			l.until = time.Now().Add(d)
		} else {
			waiting = append(waiting[:first], waiting[first+1:]...)
		}
	}
}

// laneFor runs the part for each limit, in lanes.
func (r *run) laneFor(limits []ratelimit.Limit, part func(r *run, l ratelimit.Limit)) {
	var parts []func(r *run)
	for _, l := range limits {
		parts = append(parts, func(r *run) { part(r, l) })
	}
	r.lanes(parts...)
}

// timed makes a call and notes how much time has passed since the call or sleep before it.
func (r *run) timed(call func()) {
	call()
	now := time.Now()
	r.slowest = max(r.slowest, now.Sub(r.last))
	r.last = now
}

// junk is what the buffers for results hold before a call.
var junk = ratelimit.Result{Remaining: -7, RetryAfter: -7, MoreAfter: -7, ResetAfter: -7, Blocked: true, BlockBegan: true}

// take takes n units of key and returns the results. It is a problem if there is an
// error, or if the results contradict each other.
func (r *run) take(key string, n int64, limits ...ratelimit.Limit) []ratelimit.Result {
	return r.takeBy("Take", key, n, limits, func(results []ratelimit.Result) (ratelimit.Instant, error) {
		return r.store.Take(context.Background(), key, n, limits, results)
	})
}

// takePending is take by TakePending.
func (r *run) takePending(key string, n int64, pending []ratelimit.Pending, limits ...ratelimit.Limit) []ratelimit.Result {
	return r.takeBy("TakePending", key, n, limits, func(results []ratelimit.Result) (ratelimit.Instant, error) {
		return r.store.(ratelimit.KindStore).TakePending(context.Background(), key, n, pending, limits, results)
	})
}

// takeUpTo takes as many of n units as fit. It is a problem if the store grants another
// number. If want is 0, one unit is denied.
func (r *run) takeUpTo(key string, n, want int64, limits ...ratelimit.Limit) []ratelimit.Result {
	reply, results := r.takeShared(ratelimit.SharedRequest{Key: key, Units: n, UpTo: true, Limits: limits})
	if reply.Granted != want || admitted(results) != (want > 0) {
		r.problem("of up to %d units of %.40q under %v, %d were granted, want %d: %+v", n, key, limits, reply.Granted, want, results)
	}
	return results
}

// takeShared is take by TakeShared.
func (r *run) takeShared(request ratelimit.SharedRequest) (reply ratelimit.SharedReply, results []ratelimit.Result) {
	n := request.Units
	if request.UpTo {
		n = 1 // of which a denial is
	}
	results = r.takeBy("TakeShared", request.Key, n, request.Limits, func(results []ratelimit.Result) (_ ratelimit.Instant, err error) {
		reply, err = r.store.(ratelimit.SharedStore).TakeShared(context.Background(), request, results)
		return reply.At, err
	})
	return reply, results
}

// takeBy makes a call that takes n units, and returns the results.
func (r *run) takeBy(call, key string, n int64, limits []ratelimit.Limit, take func([]ratelimit.Result) (ratelimit.Instant, error)) []ratelimit.Result {
	results := make([]ratelimit.Result, len(limits))
	for i := range results {
		results[i] = junk
	}
	if wall, ok := r.wallClock(); ok {
		r.called = wall()
	}
	var err error
	r.timed(func() { r.at, err = take(results) })
	if err != nil {
		r.problem("%s(%.40q, %d, %v): error: %v", call, key, n, limits, err)
		return make([]ratelimit.Result, len(limits))
	}
	all := admitted(results)
	for i, res := range results {
		wrong := contradiction(res, limits[i], n, all)
		if wrong == "" {
			wrong = r.wrongBlock(res, limits[i], n, results)
		}
		if wrong != "" {
			r.problem("%s(%.40q, %d, %v): %s: %+v", call, key, n, limits[i], wrong, res)
		}
	}
	if n == 0 && !all {
		r.problem("a look at %.40q was denied under %v: %+v", key, limits, results)
	}
	return results
}

// contradiction returns what is wrong with a result by itself, or "".
func contradiction(res ratelimit.Result, l ratelimit.Limit, n int64, admitted bool) string {
	whole := res.Remaining == l.Burst()
	waits := res.RetryAfter > 0 && res.RetryAfter != ratelimit.Never
	switch {
	case res.Remaining < 0 || res.RetryAfter < 0 || res.MoreAfter < 0 || res.ResetAfter < 0:
		return "a field is negative, or was not set"
	case res.Remaining > l.Burst():
		return "more remains than the limit holds"
	case (res.MoreAfter == 0) != whole || (res.ResetAfter == 0) != whole:
		return "MoreAfter and ResetAfter must be 0 if the limit is whole, and only then"
	case res.MoreAfter > res.ResetAfter:
		return "ResetAfter is before MoreAfter"
	case !admitted && (res.RetryAfter > 0) != (n > res.Remaining):
		return "RetryAfter must be 0 if the units fit, and only then"
	case !admitted && (res.RetryAfter == ratelimit.Never) != (n > l.Burst()):
		return "RetryAfter must be Never if the limit can never hold the units, and only then"
	case waits && (res.RetryAfter < res.MoreAfter || res.RetryAfter > res.ResetAfter):
		return "RetryAfter must be from MoreAfter to ResetAfter"
	}
	return ""
}

// wrongBlock returns what is wrong with the marks of a block in one of the results, or "".
func (r *run) wrongBlock(res ratelimit.Result, l ratelimit.Limit, n int64, results []ratelimit.Result) string {
	_, counts := kindStore(r.store)
	switch {
	case !res.Blocked && !res.BlockBegan:
		return ""
	case !counts:
		return "only a KindStore with KindBlock sets Blocked and BlockBegan"
	case !res.Blocked:
		return "BlockBegan is set without Blocked"
	case res.Remaining != 0:
		return "units remain of a counter that is blocked"
	case n > 0 && res.RetryAfter == 0:
		return "units of a counter that is blocked were admitted"
	case res.BlockBegan && (n == 0 || l.Ladder() == nil):
		return "only a denial under a limit with Block starts a block"
	case res.BlockBegan && slices.ContainsFunc(results, func(res ratelimit.Result) bool { return res.Blocked && !res.BlockBegan }):
		return "a block began while another one was in force"
	}
	return ""
}

func admitted(results []ratelimit.Result) bool {
	for _, res := range results {
		if res.RetryAfter != 0 {
			return false
		}
	}
	return true
}

// admits takes. It is a problem if that is denied.
func (r *run) admits(key string, n int64, limits ...ratelimit.Limit) {
	if results := r.take(key, n, limits...); !admitted(results) {
		r.problem("%d units of %.40q were denied under %v: %+v", n, key, limits, results)
	}
}

// denies takes. It is a problem if that is admitted.
func (r *run) denies(key string, n int64, limits ...ratelimit.Limit) {
	if admitted(r.take(key, n, limits...)) {
		r.problem("%d units of %.40q were admitted under %v%s", n, key, limits, r.after(key))
	}
}

// remains looks. It is a problem if another number of units is left.
func (r *run) remains(key string, want int64, limit ratelimit.Limit) {
	if got := r.take(key, 0, limit)[0].Remaining; got != want {
		r.problem("%d units of %.40q are left under %v, want %d%s", got, key, limit, want, r.after(key))
	}
}

// resets looks. It is a problem if the limit is not whole again after this time.
func (r *run) resets(key string, want time.Duration, limit ratelimit.Limit) {
	r.about(fmt.Sprintf("ResetAfter of %.40q under %v", key, limit), r.take(key, 0, limit)[0].ResetAfter, want)
}

// adjust adjusts and returns what was charged. An error is a problem.
func (r *run) adjust(key string, n int64, at ratelimit.Instant, limits ...ratelimit.Limit) (charged int64) {
	var err error
	r.timed(func() { charged, err = r.store.Adjust(context.Background(), key, n, at, limits) })
	if err != nil {
		r.problem("Adjust(%.40q, %d, %d, %v): error: %v", key, n, at, limits, err)
	}
	r.moved = adjustment{key, n, at, charged}
	return charged
}

// charges adjusts. It is a problem if another number of units is charged.
func (r *run) charges(key string, n, want int64, at ratelimit.Instant, limits ...ratelimit.Limit) {
	if got := r.adjust(key, n, at, limits...); got != want {
		r.problem("Adjust(%.40q, %d, %d, %v) returned %d units charged, want %d", key, n, at, limits, got, want)
	}
}

// refunds gives n units back. It is a problem if units are charged.
func (r *run) refunds(key string, n int64, at ratelimit.Instant, limits ...ratelimit.Limit) {
	r.charges(key, -n, 0, at, limits...)
}

// reset resets. An error is a problem.
func (r *run) reset(key string, limits ...ratelimit.Limit) {
	var err error
	r.timed(func() { err = r.store.Reset(context.Background(), key, limits) })
	if err != nil {
		r.problem("Reset(%.40q, %v): error: %v", key, limits, err)
	}
}

// begins takes n units. It is a problem if that does not start a block that lasts this
// long.
func (r *run) begins(key string, n int64, want time.Duration, l ratelimit.Limit) {
	r.blockedBy(r.take(key, n, l)[0], key, true, want, l)
}

// blocked takes a unit. It is a problem if the counter has not been blocked before, for
// this long from now on.
func (r *run) blocked(key string, want time.Duration, l ratelimit.Limit) {
	r.blockedBy(r.take(key, 1, l)[0], key, false, want, l)
}

func (r *run) blockedBy(res ratelimit.Result, key string, began bool, want time.Duration, l ratelimit.Limit) {
	if !res.Blocked || res.BlockBegan != began {
		r.problem("%.40q under %v: %+v, want Blocked true and BlockBegan %v", key, l, res, began)
	}
	r.about(fmt.Sprintf("RetryAfter of %.40q, blocked under %v", key, l), res.RetryAfter, want)
}

// free looks. It is a problem if a counter is blocked.
func (r *run) free(key string, limits ...ratelimit.Limit) {
	for i, res := range r.take(key, 0, limits...) {
		if res.Blocked {
			r.problem("%.40q is blocked under %v: %+v", key, limits[i], res)
		}
	}
}

// block joins a block by hand. An error is a problem.
func (r *run) block(key string, b ratelimit.Block, limits ...ratelimit.Limit) {
	var err error
	r.timed(func() { err = r.store.(ratelimit.KindStore).Block(context.Background(), key, b, limits) })
	if err != nil {
		r.problem("Block(%.40q, %+v, %v): error: %v", key, b, limits, err)
	}
}

// unblocks sleeps until a block that was there a moment ago, and that lasts this long,
// is over. It is a problem if the block ends at another time. Time that passes on its own may
// have passed before the block began, so the block may end later by the slack.
func (r *run) unblocks(key string, after time.Duration, l ratelimit.Limit) {
	r.sleep(after - r.step())
	if res := r.take(key, 1, l)[0]; !res.Blocked || res.BlockBegan {
		r.problem("before its end the block of %.40q under %v is over: %+v", key, l, res)
	}
	r.sleep(r.step() + r.slack)
	r.free(key, l)
}

// about reports a problem if a wait is not as wanted: longer by more than a step of the
// clock, or shorter by more than the time that has passed on its own.
func (r *run) about(what string, got, want time.Duration) {
	if got > want+max(r.resolution, 1) || got < want-r.slack-r.resolution {
		r.problem("%s is %v, want %v", what, got, want)
	}
}

// three returns a limit of each algorithm: n units at once, and n in a window.
func (r *run) three(n int64) []ratelimit.Limit {
	return []ratelimit.Limit{
		ratelimit.FixedWindow(n, r.window),
		ratelimit.SlidingWindow(n, r.window),
		ratelimit.TokenBucket(n, r.window, n),
	}
}

// withN returns l with another n, and the same burst if it has one.
func withN(l ratelimit.Limit, n int64) ratelimit.Limit {
	switch l.Algorithm() {
	case "fixed":
		return ratelimit.FixedWindow(n, l.Window())
	case "sliding":
		return ratelimit.SlidingWindow(n, l.Window())
	case "rolling":
		return ratelimit.Rolling(n, l.Window())
	}
	return ratelimit.TokenBucket(n, l.Window(), l.Burst())
}

// withSize returns l with another n, which is also the burst if it has one.
func withSize(l ratelimit.Limit, n int64) ratelimit.Limit {
	if l.Algorithm() == "bucket" {
		return ratelimit.TokenBucket(n, l.Window(), n)
	}
	return withN(l, n)
}

// goroutines is how many call the store at once, and rounds how often each does.
const goroutines, rounds = 64, 4

// inParallel calls f on many goroutines, several times on each. It is a problem if
// f returns an error.
func (r *run) inParallel(f func(number int) error) {
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			for range rounds {
				if err := f(i); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		r.problem("a call from one of %d goroutines: error: %v", goroutines, *err)
	}
}

// hammer takes n units of a key at a time, from many goroutines, in turn on each of
// the stores, and with the limits in both orders. It returns how many of the takes
// were admitted, and how many have started a block.
func (r *run) hammer(stores []ratelimit.Store, key string, n int64, limits ...ratelimit.Limit) (took, began int64) {
	reversed := slices.Clone(limits)
	slices.Reverse(reversed)
	orders := [][]ratelimit.Limit{limits, reversed}
	var admissions, beginnings atomic.Int64
	r.inParallel(func(number int) error {
		results := make([]ratelimit.Result, len(limits))
		_, err := stores[number%len(stores)].Take(context.Background(), key, n, orders[number/2%2], results)
		if err == nil && admitted(results) {
			admissions.Add(1)
		}
		if err == nil && slices.ContainsFunc(results, func(res ratelimit.Result) bool { return res.BlockBegan }) {
			beginnings.Add(1)
		}
		return err
	})
	return admissions.Load(), beginnings.Load()
}

// later is an instant that is still to come.
func (r *run) later() ratelimit.Instant {
	return min(r.at, math.MaxInt64/2) + ratelimit.Instant(100*r.window)
}
