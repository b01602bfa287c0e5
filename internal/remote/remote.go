// Package remote has the code between a limiter and a store outside of this process.
// It adds what such a store needs: a timeout, a breaker, a cache of denials, leases
// of units for busy keys, and decisions while the store fails.
//
// The files, from the outside in:
//
//	remote.go  a decision: lease, denials, store, failure policy
//	ask.go     one call to the store: timeout, breaker, what its error means
//	lease.go   units that are taken ahead for busy keys
//	settle.go  units that were admitted without the store, until it knows of them
//	outage.go  what the log says of an outage
//
// What this process knows about each key, and the counting without the store, is
// in package nearcache. Package remote depends on no particular store: it calls
// an [engine.Engine].
package remote

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/breaker"
	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/nearcache"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Policy says how requests are decided while the store fails.
type Policy uint8

const (
	FallbackLocal Policy = iota // in this process, from what is known of each key
	FailOpen                    // all are admitted
	FailClosed                  // none is decided
)

// Source says where a decision was made.
type Source uint8

const (
	FromStore Source = iota
	FromCache        // the key is known to be denied
	FromLease        // from units that the store has counted in advance
	FromFallback
	FromFailOpen
)

// Options are the settings of a [Remote]. All are required, except that zero is a
// valid value of Lease and NearKeys.
type Options struct {
	Engine    engine.Engine
	Limits    *engine.Limits // in force at first; see SetLimits
	Timeout   time.Duration  // of a decision; negative means none
	Recheck   time.Duration  // how long a denial is answered without the store; negative: until it is over
	Lease     time.Duration  // how long units may be held; 0 turns leases off
	NearKeys  int            // how many counters are cached; 0 shares SharedNearKeys with all limiters of the process
	OnFailure Policy
	Report    Reporter
	Counts    *Counts // where calls are counted; generations of a limiter share it
}

// A Reporter logs what an operator must know. Its methods may be called from any
// number of goroutines.
type Reporter interface {
	// StoreFailed: a decision was made without the store.
	StoreFailed(err error)
	// StoreDown: the breaker is open. outages is how many times it has opened so
	// far, and cause is the error that has opened it last.
	StoreDown(outages uint64, cause error)
	// StoreBack: the breaker has closed, after an outage that was reported to
	// StoreDown.
	StoreBack(outages uint64, lasted time.Duration)
}

// Stats are counts of a store's parts over their life.
type Stats struct {
	BreakerOpen   bool
	BreakerOpened uint64
	Owed          int    // keys with units that the store does not know of
	Forgotten     uint64 // keys whose owed units were dropped before the store knew of them
	Evicted       uint64 // evicted counters, of all limiters that share the budget
}

// SharedNearKeys is how many counters all limiters of a process cache together.
const SharedNearKeys = 1 << 18

// ledgerBytes bounds the memory in which one limiter notes units that the store
// does not know of. It is enough for about 3,500 keys of 13 bytes. A limiter with a
// budget of its own has room for as many short keys as the budget has counters: see
// [nearcache.LedgerBytes].
const ledgerBytes = 1 << 20

var sharedMemory = sync.OnceValue(func() *nearcache.Memory { return nearcache.NewMemory(SharedNearKeys) })

func newNear(keys int) *nearcache.Cache {
	switch {
	case keys > 0:
		return nearcache.New(nearcache.NewMemory(keys), nearcache.LedgerBytes(keys))
	case clock.Virtual():
		return nearcache.New(nearcache.NewMemory(SharedNearKeys), ledgerBytes)
	}
	return nearcache.New(sharedMemory(), ledgerBytes)
}

// Defaults for a limiter whose user has not set these options.
const (
	DefaultTimeout = 100 * time.Millisecond
	DefaultRecheck = time.Second
)

// MaxWaiting is the largest number of callers that wait for a store. At a
// hundred thousand decisions per second, that many arrive in 40 ms.
const MaxWaiting = 4096

// SideTimeout is the timeout of a call that no request waits for. It is long for
// a store, and short for keeping a goroutine.
const SideTimeout = 5 * time.Second

// closeTimeout is the longest time for which Close sends what is owed and gives
// leases back. It is enough for about ten thousand leases.
const closeTimeout = time.Second

// NothingTaken is the instant of a decision after which there is nothing to give
// back: a denial, an admission by FailOpen, or a call whose outcome is unknown.
// Adjust does nothing for it: it could give back units that another caller has
// taken.
const NothingTaken = math.MinInt64

// Remote decides for one limiter. Its methods may be called from any number of
// goroutines.
//
// When a Reload replaces a limiter, both generations share what is known about the
// store and its keys (state). A request that is in flight at the old generation is
// decided there, with its settings and its client. All work beside the decisions is
// done by one generation, the owner.
type Remote struct {
	opts       Options
	limits     atomic.Pointer[engine.Limits]
	generation int // how many generations have shared the state before this one
	*state

	waiting atomic.Int64 // callers that wait for the store
	hasty   atomic.Int64 // calls in a row that their callers' deadlines have ended

	// Work beside the decisions, while this generation is the owner:
	sending       atomic.Bool  // a goroutine sends the store what it is owed
	sendNotBefore atomic.Int64 // no sending before this instant
	sweeping      atomic.Bool  // a goroutine gives back leases whose time is over
	watching      atomic.Bool  // a goroutine reports an outage
	looking       atomic.Bool  // a goroutine checks whether the store answers

	loopsStopped chan struct{}      // closed by stopLoops
	closing      context.Context    // cancelled by Close: calls end, too
	cancel       context.CancelFunc // of closing
	mu           sync.Mutex         // orders Close and stopLoops against start
	stopped      bool               // stopLoops was called; guarded by mu
	running      sync.WaitGroup
}

// state is shared by all generations of a limiter.
type state struct {
	owner   atomic.Pointer[Remote]
	near    *nearcache.Cache
	breaker breaker.Breaker
	outage  outage
}

// New returns a Remote, which is its own owner. It starts no goroutine.
func New(opts Options) *Remote {
	r := &Remote{opts: opts, state: &state{near: newNear(opts.NearKeys)}, loopsStopped: make(chan struct{})}
	r.outage.changed = make(chan struct{}, 1)
	r.owner.Store(r)
	r.limits.Store(opts.Limits)
	r.closing, r.cancel = context.WithCancel(context.Background())
	return r
}

// TakeOver makes r share the state of old, the generation before it with the same
// name and prefix. old stays the owner until Begin. TakeOver must be called before
// any other method of r.
func (r *Remote) TakeOver(old *Remote) { r.state, r.generation = old.state, old.generation+1 }

// CountIn makes r count in c from now on. It must be called before any other method
// of r, except TakeOver.
func (r *Remote) CountIn(c *Counts) { r.opts.Counts = c }

// Begin makes r the owner. The previous owner, if there is one, ends its work
// beside the decisions, and r continues it. If a later generation has begun in the
// meantime, that one stays the owner. Begin may start goroutines.
func (r *Remote) Begin() {
	for before := r.owner.Load(); before != r; before = r.owner.Load() {
		if before.generation > r.generation {
			r.stopLoops()
			return
		}
		if r.owner.CompareAndSwap(before, r) {
			before.stopLoops()
			break
		}
	}
	if r.areLoopsStopped() { // r was closed before it was the owner
		r.finish()
		return
	}
	// Start the goroutines that the previous owner was running. Work that began
	// after the swap already runs for r.
	if r.near.HasLeases() {
		r.sweep()
	}
	if r.near.Owing() > 0 {
		r.settleAll("")
	}
	r.watchOutage()
}

// stopLoops ends the loops of a generation that is closed or no longer the owner.
// Calls to the store that are in flight go on. It takes r.mu.
func (r *Remote) stopLoops() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.stopped {
		r.stopped = true
		close(r.loopsStopped)
	}
}

// Close ends the work beside the decisions and waits for its goroutines. If r is
// the owner, Close then sends the store what it is owed, and gives leases back.
// It spends at most closeTimeout, a second, on that.
func (r *Remote) Close() {
	r.stopLoops()
	r.cancel()
	r.running.Wait()
	if r.owner.Load() == r {
		r.finish()
	}
}

// finish sends the store what it is owed and gives leases back. It waits for
// that, for closeTimeout at most.
func (r *Remote) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if owingKeys := r.near.OwingKeys(clock.Now()); len(owingKeys) > 0 && r.storeAnswers(ctx, owingKeys[0]) {
		r.settleKeys(ctx, owingKeys)
	}
	r.endLeases(ctx)
}

// Go runs f on its own goroutine and reports whether it does. It does not
// after Close. Close cancels the context that f gets, and waits for f.
func (r *Remote) Go(f func(closing context.Context)) bool {
	return r.goOwner(func(owner *Remote) { f(owner.closing) })
}

// goOwner runs f on its own goroutine, for the owner, and reports whether it
// does. It does not after the owner's Close. Close waits for f. goOwner takes the
// owner's mu.
func (r *Remote) goOwner(f func(owner *Remote)) bool {
	for {
		owner := r.owner.Load()
		if owner.start(func() { f(owner) }) {
			return true
		}
		if r.owner.Load() == owner {
			return false
		}
	}
}

// start runs f on its own goroutine, unless its loops were stopped. It takes r.mu.
func (r *Remote) start(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return false
	}
	r.running.Go(r.recovering(f))
	return true
}

// recovering returns f with a recover, so that a store that panics does not end
// the process. Nothing else recovers on these goroutines.
func (r *Remote) recovering(f func()) func() {
	return func() {
		defer func() {
			if with := recover(); with != nil {
				r.opts.Report.StoreFailed(panicError{with})
			}
		}()
		f()
	}
}

// A storeRequest is a caller's request, with what is known before the store is asked.
// The clock is read once before the store is asked and once after. If many callers
// share a round trip, reading the clock is a large part of the cost of a decision.
type storeRequest struct {
	key     string
	units   int64
	limits  *engine.Limits
	now     int64
	until   int64        // when the timeout is over; 0 means never
	version uint64       // the cache's version of the key, for Learn
	states  []rule.State // a buffer for the engine
	upTo    bool         // take as many of the units as fit
	granted int64        // how many of them were taken, if upTo is set and there was no error
}

// least returns how many units must fit, or the question is denied.
func (req *storeRequest) least() int64 {
	if req.upTo {
		return 1
	}
	return req.units
}

// Take decides a request for n >= 0 units of key. It fills answers, which is as long as
// the limits. It waits for the store, but not longer than the timeout. The returned
// instant is for Adjust; see instants.go. If the caller's context is done, the error is
// ctx.Err(). With FailClosed, or if this process is shutting down, the error may also
// be the store's error.
func (r *Remote) Take(ctx context.Context, key string, n int64, limits *engine.Limits, answers []rule.Answer) (at int64, source Source, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	n = min(n, rule.MaxUnits+1) // no limit can hold that many, and adding a lease cannot overflow
	now := clock.Now()
	req := storeRequest{key: key, units: n, limits: limits, now: now, until: r.until(now)}
	if at, ok := r.takeLeased(&req, answers); ok {
		return at, FromLease, nil
	}
	if r.isDenied(&req, answers) {
		return NothingTaken, FromCache, nil
	}
	at, err = r.takeFromStore(ctx, &req, answers)
	if err == nil {
		return at, FromStore, nil
	}
	return r.takeWithoutStore(ctx, &req, err, answers)
}

// TakeUpTo is Take for as many of n > 0 units as fit, and returns how many. It uses
// the units that this process holds as a lease first, and asks the store for the
// rest.
func (r *Remote) TakeUpTo(ctx context.Context, key string, n int64, limits *engine.Limits, answers []rule.Answer) (granted int64, source Source, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	now := clock.Now()
	req := storeRequest{key: key, units: min(n, rule.MaxUnits), limits: limits, now: now, until: r.until(now), upTo: true}
	leased := r.spendUpTo(&req, answers)
	if req.units -= leased; req.units == 0 {
		return leased, FromLease, nil
	}
	switch {
	case r.isDenied(&req, answers):
		source = FromCache
	default:
		if _, err = r.takeFromStore(ctx, &req, answers); err != nil {
			_, source, err = r.takeWithoutStore(ctx, &req, err, answers)
		}
	}
	if leased > 0 {
		if err != nil || req.granted == 0 { // the lease has already filled in answers
			source, err = FromLease, nil
		}
		// The lease has granted some: the decision is an admission, so no answer may
		// deny, whatever the rest has got.
		for i := range answers {
			answers[i].Retry = 0
		}
	}
	if err != nil {
		return 0, 0, err
	}
	return leased + req.granted, source, nil
}

// isDenied reports whether the key is known to be denied. Once in each Recheck it
// returns false, so that one caller asks the store.
func (r *Remote) isDenied(req *storeRequest, answers []rule.Answer) (denied bool) {
	denied, req.version = r.near.Denied(req.key, req.least(), req.now, int64(r.opts.Recheck), req.limits.Rules, answers)
	return denied
}

// takeFromStore asks the store for a decision. It may wait for owed units to be
// settled, for a probe of an open breaker, and for the store's reply.
func (r *Remote) takeFromStore(ctx context.Context, req *storeRequest, answers []rule.Answer) (at int64, err error) {
	start := req.now
	owes, waited := r.awaitSettled(ctx, req.key, math.MaxInt64)
	if owes {
		return 0, errOwing
	}
	if req.units > 0 && r.breaker.Open() && r.opts.OnFailure == FallbackLocal {
		// The store may have recovered. A call that takes no units finds out. If
		// that call gets no reply, the store has certainly taken no units.
		if err := r.look(ctx, req.key, req.limits, req.until); err != nil {
			return 0, nothingTakenError{err}
		}
		waited = true
	}
	if waited {
		req.now = clock.Now()
	}
	if r.leases() && req.units > 0 && !req.upTo {
		return r.takeAndLease(ctx, req, answers)
	}
	if at, err = r.consult(ctx, req, answers); err != nil {
		return 0, err
	}
	if r.leases() && req.units == 0 { // a look: the units of the lease are available, too
		addHeld(answers, req.limits.Rules, r.near.Leased(req.key, start, req.limits.Rules))
	}
	return at, nil
}

// takeWithoutStore decides by the failure policy, after the store has failed
// with err. It does not wait.
func (r *Remote) takeWithoutStore(ctx context.Context, req *storeRequest, err error, answers []rule.Answer) (int64, Source, error) {
	if left := ctx.Err(); left != nil {
		return 0, 0, left
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= 0 { // its context is about to report that
		return 0, 0, context.DeadlineExceeded
	}
	if r.fault(err) == engine.Closed {
		return 0, 0, err // this process is shutting down and the store may be working: do not decide in its place
	}
	policy := r.opts.OnFailure
	if err == errOwing {
		policy = FallbackLocal // the store is available, but only this process knows all units
	} else {
		r.opts.Report.StoreFailed(err)
	}
	rules := req.limits.Rules
	switch policy {
	case FailClosed:
		return 0, 0, err
	case FailOpen:
		for i := range answers {
			answers[i] = rule.Answer{Remaining: max(0, rules[i].Cap()-req.units)}
		}
		req.granted = req.units
		return NothingTaken, FromFailOpen, nil
	}
	owed := r.storeUnchanged(err)
	var here int64
	if req.upTo {
		req.granted, here = r.near.TakeUpTo(req.key, req.units, clock.Now(), rules, answers, owed)
	} else {
		_, here = r.near.Take(req.key, req.units, clock.Now(), rules, answers, owed)
	}
	if !owed {
		return NothingTaken, FromFallback, nil
	}
	return takenHere(here), FromFallback, nil
}

// Adjust is [engine.Engine.Adjust]. at is the instant that Take has returned, or
// [engine.Now]. wait bounds how long Adjust waits for the store, including the time
// until units that are owed for the key have been sent. With FallbackLocal, a
// change that certainly did not reach the store is added to what the store is owed.
func (r *Remote) Adjust(ctx context.Context, key string, n, at int64, limits *engine.Limits, wait time.Duration) (charged int64, err error) {
	if at == NothingTaken {
		return 0, nil
	}
	n = max(-rule.MaxUnits, min(n, rule.MaxUnits))
	taken, start := r.taken(at), clock.Now()
	if r.leases() && r.adjustLease(key, n, taken, limits) {
		return max(0, n), nil
	}
	if owes, _ := r.awaitSettled(ctx, key, wait); owes {
		err = errOwing
	} else if wait -= time.Duration(clock.Now() - start); wait <= 0 {
		err = nothingTakenError{context.DeadlineExceeded}
	} else {
		charged, err = r.move(ctx, key, n, r.sendAt(taken), limits, wait)
	}
	owed := err != nil && r.opts.OnFailure == FallbackLocal && ctx.Err() != context.Canceled && r.storeUnchanged(err) && r.fault(err) != engine.Closed
	if err != nil && !owed {
		return 0, err
	}
	chargedHere := r.near.Adjust(key, n, taken, clock.Now(), limits.Rules, owed)
	if owed {
		return chargedHere, nil
	}
	return charged, nil
}

// Reset is [engine.Engine.Reset]. It returns the store's error. It asks the store
// even if the breaker is open, because somebody waits for a user to be unblocked.
// It waits for at most SideTimeout.
func (r *Remote) Reset(ctx context.Context, key string, limits *engine.Limits) error {
	ctx, cancel := context.WithTimeout(ctx, SideTimeout)
	defer cancel()
	if _, sending := r.near.Owes(key); sending != nil { // otherwise units that are being sent would be charged after the reset
		select {
		case <-sending:
		case <-ctx.Done():
		}
	}
	start := clock.Now()
	r.near.Erase(key, start, limits.Rules)
	err := r.opts.Engine.Reset(ctx, key, limits)
	r.opts.Counts.called(clock.Now() - start)
	r.near.Erase(key, clock.Now(), limits.Rules) // a decision that was in flight may have been learnt
	return err
}

// SetLimits replaces the limits that are in force. A goroutine gives back the
// leases under the previous limits; SetLimits does not wait for it.
func (r *Remote) SetLimits(limits *engine.Limits) {
	r.limits.Store(limits)
	r.goOwner(func(o *Remote) { o.endLeases(o.closing) })
}

// until returns when the timeout of a decision that begins now is over; 0 means
// never.
func (r *Remote) until(now int64) int64 {
	if t := int64(r.opts.Timeout); t >= 0 && t <= math.MaxInt64-now {
		return now + t
	}
	return 0
}

// Stats returns the present counts. It may be called at any time, and waits for
// no store.
func (r *Remote) Stats() Stats {
	return Stats{
		BreakerOpen: r.breaker.Open(), BreakerOpened: r.breaker.Opened(),
		Owed: r.near.Owing(), Forgotten: r.near.Forgotten(), Evicted: r.near.Evicted(),
	}
}
