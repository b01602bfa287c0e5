package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/breaker"
	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/near"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// RemoteStore is a [Store] whose counters are somewhere else: over there it may be slow,
// full or gone. A limiter puts in front of it all that this needs: a time limit, a
// cache of denials, a breaker, and Options.OnFailure. The store itself tries once and
// says what went wrong; its calls return as soon as their context is done.
type RemoteStore interface {
	Store

	// Fault tells what an error of one of the store's calls means. It is not asked about the
	// error of a context that its caller has cancelled.
	Fault(err error) Fault
}

// Fault is what an error of a [RemoteStore] means.
type Fault uint8

const (
	// FaultUnknown: the backend is in doubt, and so is whether the call took effect.
	FaultUnknown Fault = iota
	// FaultRefused: the backend is in doubt, and the call has changed nothing: it was
	// never sent, or it was answered with an error.
	FaultRefused
	// FaultKey: the call has changed nothing, and others may well succeed: what is
	// stored for its key cannot be used.
	FaultKey
)

// FailurePolicy says what becomes of requests while a store fails.
type FailurePolicy uint8

const (
	// FallbackLocal decides in this process, from where each key last stood. A blocked
	// key stays blocked and a half-used one half used; keys of which this process knows nothing
	// start afresh, so n processes may admit up to n times the limit of those. What was
	// admitted is charged to the store when it answers again. A store that comes back without
	// its counters is believed: its keys start afresh.
	FallbackLocal FailurePolicy = iota
	// FailOpen admits every request. Header fields then say what would be left of a whole limit.
	FailOpen
	// FailClosed decides nothing: requests are answered with 503, and Take returns the error. But
	// a key that is known to be denied is denied, with 429: only one request in each
	// Options.DenyRecheck asks.
	FailClosed
)

var failurePolicies = [...]string{FallbackLocal: "FallbackLocal", FailOpen: "FailOpen", FailClosed: "FailClosed"}

func (p FailurePolicy) String() string {
	if int(p) < len(failurePolicies) {
		return failurePolicies[p]
	}
	return fmt.Sprintf("FailurePolicy(%d)", p)
}

// RemoteStats tell how a limiter gets on with a [RemoteStore].
type RemoteStats struct {
	// Failures counts the calls that failed, and Spared those that were not made, because
	// the breaker was open or too many callers were waiting.
	Failures, Spared uint64
	// BreakerOpen tells that the store has failed so often that only one call at a time
	// goes there, to see; BreakerOpened how often that was so.
	BreakerOpen   bool
	BreakerOpened uint64
	// Cached counts the requests denied from what was known, Leased those admitted from a
	// lease; Fallback those decided in this process because the store failed, and
	// FailedOpen those let through.
	Cached, Leased, Fallback, FailedOpen uint64
	// Owed is the number of keys with units that the store is still to be told of.
	// Forgotten counts keys for which that could not be kept.
	Owed      int
	Forgotten uint64
}

var (
	errBreakerOpen = errors.New("the store has failed so often that it is asked only now and then")
	errTooMany     = fmt.Errorf("%d callers are waiting for the store", maxWaiting)
)

// maxWaiting bounds the callers who wait for a store: at a hundred thousand decisions a
// second, so many come in 40 ms.
const maxWaiting = 4096

// remote stands between a limiter and a store that is somewhere else.
type remote struct {
	l       *Limiter
	store   Store // the limiter's, which may wrap the one below
	far     RemoteStore
	recheck int64 // Options.DenyRecheck
	age     int64 // Options.Lease
	near    *near.Cache
	breaker breaker.Breaker

	waiting atomic.Int64
	ahead   atomic.Int64 // the store's clock less ours, as last seen
	seen    atomic.Bool

	failures, spared, cached, leased, fallback, opened atomic.Uint64

	outages  outages
	settling atomic.Bool  // debts are being told
	resettle atomic.Int64 // when that may be next
	sweeping atomic.Bool  // leases are being looked after

	// What goes on beside the decisions ends with the limiter.
	closing context.Context
	close   context.CancelFunc
	mu      sync.Mutex // of closing against beside
	running sync.WaitGroup
}

// newRemote returns what is to stand before l's store, or nil if that is in this process.
func newRemote(l *Limiter) *remote {
	for _, s := range l.layers {
		if far, ok := s.(RemoteStore); ok {
			r := &remote{l: l, store: l.store, far: far, near: near.New(l.opts.NearKeys), recheck: int64(l.opts.DenyRecheck), age: int64(l.opts.Lease)}
			r.closing, r.close = context.WithCancel(context.Background())
			return r
		}
	}
	return nil
}

// numbers are limits and results as internal/near wants them.
type numbers struct {
	rules   [MaxLimits]rule.Limit
	answers [MaxLimits]rule.Answer
	n       int
}

func (s *numbers) set(limits []Limit) {
	s.n = len(limits)
	for i := range limits {
		s.rules[i] = limits[i].rule
	}
}

func (s *numbers) results(results []Result) {
	for i := range results {
		results[i] = resultOf(s.answers[i])
	}
}

// take decides about a request for n units of key, at the store if that can be.
func (r *remote) take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (at Instant, source Source, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	n = min(n, rule.MaxUnits+1) // which no limit can hold, and to which a lease can be added
	var s numbers
	s.set(limits)
	start := clock.Now()
	if r.age > 0 && n > 0 {
		told, ok, refill := r.near.Spend(key, n, s.rules[:s.n], start, r.age, s.answers[:s.n])
		if refill {
			r.refill(key, limits, &s)
		}
		if ok {
			r.leased.Add(1)
			s.results(results)
			return Instant(told), SourceLease, nil
		}
	}
	denied, version := r.near.Denied(key, n, s.rules[:s.n], start, r.recheck, s.answers[:s.n])
	if denied {
		r.cached.Add(1)
		s.results(results)
		return r.instant(start), SourceCache, nil
	}
	q := question{key, n, limits, start, r.until(start), version}
	owes, late := r.owes(ctx, key)
	if !owes && n > 0 && r.breaker.Open() && r.l.opts.OnFailure == FallbackLocal {
		// To learn whether the store is back takes no units: there may be no answer.
		if failed := r.look(ctx, key, q.until); failed != nil {
			err = untaken{failed}
		}
		late = true
	}
	if late {
		q.now = clock.Now()
	}
	switch {
	case err != nil:
	case owes:
		err = errOwing
	case r.age > 0 && n > 0:
		at, err = r.takeMore(ctx, q, &s, results)
	default:
		at, err = r.consult(ctx, q, &s, results)
	}
	if err != nil {
		return r.fail(ctx, key, n, err, &s, results)
	}
	if r.age > 0 && n == 0 {
		addHeld(results, limits, r.near.Held(key, s.rules[:s.n], start))
	}
	return at, SourceStore, nil
}

// question is what the store is to be asked. Where many share a round trip, reading a clock is a
// good part of what a decision takes: it is read once before and once after.
type question struct {
	key     string
	n       int64
	limits  []Limit
	now     int64
	until   int64  // 0 is without end
	version uint64 // of what is known of the key
}

// until is when the limiter's timeout is over for what begins now.
func (r *remote) until(now int64) int64 {
	if t := int64(r.l.opts.Timeout); t >= 0 && t <= math.MaxInt64-now {
		return now + t
	}
	return 0
}

// consult asks the store and learns from its answer.
func (r *remote) consult(ctx context.Context, q question, s *numbers, results []Result) (at Instant, err error) {
	var latest bool
	now, err := r.ask(ctx, q.now, func(ctx context.Context) (err error) {
		at, latest, err = r.call(ctx, q, results)
		return err
	})
	if err != nil {
		return 0, err
	}
	r.ahead.Store(int64(at) - now)
	r.seen.Store(true)
	for i, res := range results { // in bounds, whoever has written the store
		s.answers[i] = rule.Answer{
			Remaining: max(0, min(res.Remaining, s.rules[i].Cap())),
			Retry:     max(0, int64(res.RetryAfter)),
			More:      max(0, int64(res.MoreAfter)),
			Reset:     max(0, int64(res.ResetAfter)),
		}
	}
	if latest {
		r.near.Learn(q.key, q.n, s.rules[:s.n], s.answers[:s.n], int64(at), now, r.recheck, q.version)
	}
	return at, nil
}

// call asks the store, within what is left of the limiter's timeout. What it says is the latest
// there is to know, unless another is told more by the same command.
func (r *remote) call(ctx context.Context, q question, results []Result) (at Instant, latest bool, err error) {
	if q.until != 0 {
		if q.now >= q.until {
			return 0, false, untaken{context.DeadlineExceeded}
		}
		if s, ok := r.store.(*RedisStore); ok {
			return s.takeBy(q.now, q.until, ctx, q.key, q.n, q.limits, results)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, clock.Time(q.until))
		defer cancel()
	}
	at, err = r.store.Take(ctx, q.key, q.n, q.limits, results)
	return at, true, err
}

// ask makes a call to the store, unless that is known to be of no use, and tells when it came back.
func (r *remote) ask(ctx context.Context, start int64, call func(context.Context) error) (now int64, err error) {
	ok, probe := r.breaker.Allow(start)
	if !ok {
		r.spared.Add(1)
		return start, errBreakerOpen
	}
	outcome := breaker.Unclear
	if r.waiting.Add(1) > maxWaiting {
		r.waiting.Add(-1)
		r.spared.Add(1)
		r.breaker.Done(start, probe, outcome)
		return start, errTooMany
	}
	defer func() { // also where the store panics
		now = clock.Now()
		r.waiting.Add(-1)
		if r.breaker.Done(now, probe, outcome) {
			r.noteOutage(err)
		}
		if outcome == breaker.Succeeded && r.near.Debts() > 0 {
			r.settleAll("")
		}
	}()
	err = call(ctx)
	switch {
	case err == nil:
		outcome = breaker.Succeeded
	case ctx.Err() == context.Canceled, r.hurried(ctx, start):
		// Whoever asked has left, or gave less time than the limiter does: the store is not to blame.
	case r.far.Fault(err) == FaultKey:
		outcome = breaker.Succeeded
		r.failures.Add(1)
	default:
		outcome = breaker.Failed
		r.failures.Add(1)
	}
	return now, err
}

// hurried reports whether a caller's own deadline is over, and was before the limiter's timeout. Its
// context may say so a little later.
func (r *remote) hurried(ctx context.Context, start int64) bool {
	deadline, ok := ctx.Deadline()
	if !ok || time.Until(deadline) > 0 {
		return false
	}
	until := r.until(start)
	return until == 0 || deadline.Before(clock.Time(until))
}

// fail decides where the store could not.
func (r *remote) fail(ctx context.Context, key string, n int64, err error, s *numbers, results []Result) (Instant, Source, error) {
	if left := ctx.Err(); left != nil {
		return 0, 0, left
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= 0 { // as its context is about to say
		return 0, 0, context.DeadlineExceeded
	}
	policy := r.l.opts.OnFailure
	if err != errOwing {
		r.l.report.warn(warnStoreFailed, "on_failure", policy, "error", err)
	}
	now := clock.Now()
	switch policy {
	case FailClosed:
		return 0, 0, err
	case FailOpen:
		for i := range results {
			results[i] = Result{Remaining: max(0, s.rules[i].Cap()-n)}
		}
		r.opened.Add(1)
		return nothingTaken, SourceFailOpen, nil
	}
	unchanged := r.unchanged(err)
	r.near.Take(key, n, s.rules[:s.n], now, unchanged, s.answers[:s.n])
	s.results(results)
	r.fallback.Add(1)
	if !unchanged {
		return nothingTaken, SourceFallback, nil
	}
	return r.instant(now), SourceFallback, nil
}

// nothingTaken is the instant of a decision that the store does not know of, or may not: there
// is nothing to be given back of it, or somebody else's units would be.
const nothingTaken Instant = math.MinInt64

// unchanged reports whether a call that failed has certainly left the store as it was.
func (r *remote) unchanged(err error) bool { return r.fault(err) != FaultUnknown }

func (r *remote) fault(err error) Fault {
	if _, ok := err.(untaken); ok || err == errBreakerOpen || err == errTooMany || err == errOwing {
		return FaultRefused
	}
	return r.far.Fault(err)
}

// instant is what the store's clock shows when ours shows now.
func (r *remote) instant(now int64) Instant {
	if !r.seen.Load() {
		return Now
	}
	return Instant(now + r.ahead.Load())
}

// adjust is [Store.Adjust]. Where the store cannot be told, it will be.
func (r *remote) adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (charged int64, err error) {
	var s numbers
	s.set(limits)
	if r.age > 0 && r.adjustLease(key, n, at, limits, &s) {
		return max(0, n), nil
	}
	if owes, _ := r.owes(ctx, key); owes {
		err = errOwing
	} else {
		charged, err = r.move(ctx, key, n, at, limits)
	}
	owed := err != nil && r.l.opts.OnFailure == FallbackLocal && ctx.Err() == nil && r.unchanged(err)
	if err == nil || owed {
		r.near.Adjust(key, n, s.rules[:s.n], clock.Now(), owed)
	}
	if owed {
		return max(0, n), nil
	}
	return charged, err
}

// move adjusts units at the store, unless that is known to be of no use.
func (r *remote) move(ctx context.Context, key string, n int64, at Instant, limits []Limit) (charged int64, err error) {
	_, err = r.ask(ctx, clock.Now(), func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, adjustTimeout)
		defer cancel()
		charged, err = r.store.Adjust(ctx, key, n, at, limits)
		return err
	})
	return charged, err
}

// reset is [Store.Reset]. Whoever unblocks somebody is told if that has failed, and
// the breaker does not keep it from being tried.
func (r *remote) reset(ctx context.Context, key string, limits []Limit) error {
	ctx, cancel := context.WithTimeout(ctx, adjustTimeout)
	defer cancel()
	if _, told := r.near.Owes(key); told != nil { // and would be told after the reset
		select {
		case <-told:
		case <-ctx.Done():
		}
	}
	r.near.Forget(key)
	err := r.store.Reset(ctx, key, limits)
	r.near.Forget(key) // a decision that was under way may have been learnt from
	return err
}

// closeTimeout is how long Close may take to give leases back, some ten thousand of them.
const closeTimeout = time.Second

// beside runs f beside the decisions, unless the limiter has been closed.
func (r *remote) beside(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing.Err() != nil {
		return false
	}
	r.running.Go(r.safely(f))
	return true
}

// safely keeps a store that panics from ending the process where nobody else recovers.
func (r *remote) safely(f func()) func() {
	return func() {
		defer func() {
			if with := recover(); with != nil {
				r.l.report.warn(warnStoreFailed, "on_failure", r.l.opts.OnFailure, "error", fmt.Errorf("panic: %v", with))
			}
		}()
		f()
	}
}

// succeed takes over what another limiter's remote knows of the keys: it is of the
// same name and prefix, of the generation before.
func (r *remote) succeed(old *remote) {
	r.near = old.near
	r.ahead.Store(old.ahead.Load())
	r.seen.Store(old.seen.Load())
}

// stop ends what is under way beside the decisions, and gives back what is leased.
func (r *remote) stop() {
	r.mu.Lock()
	r.close()
	r.mu.Unlock()
	r.running.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	r.endLeases(ctx)
}

func (r *remote) stats() RemoteStats {
	return RemoteStats{
		Failures: r.failures.Load(), Spared: r.spared.Load(),
		BreakerOpen: r.breaker.Open(), BreakerOpened: r.breaker.Opened(),
		Cached: r.cached.Load(), Leased: r.leased.Load(), Fallback: r.fallback.Load(), FailedOpen: r.opened.Load(),
		Owed: r.near.Debts(), Forgotten: r.near.Lost(),
	}
}
