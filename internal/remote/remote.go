// Package remote is between a limiter and a store outside of this process. It adds
// what such a store needs: a timeout, a breaker, a cache of denials, leases of units
// for busy keys, and decisions while the store fails.
//
// The files, from the outside in:
//
//	remote.go  a decision: lease, denials, store, failure policy
//	ask.go     one call to the store: timeout, breaker, what its error means
//	lease.go   units that are taken ahead for busy keys
//	settle.go  units that were admitted without the store, until it knows of them
//	outage.go  what the log says of an outage
//
// What is known of each key, and the counting without the store, is in package
// nearcache. The package knows no particular store: it calls an [engine.Engine].
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
	FromLease        // out of units that the store has counted ahead
	FromFallback
	FromFailOpen
)

// Options are the settings of a [Remote]. All are required, except that zero has a
// meaning for Lease and NearKeys.
type Options struct {
	Engine    engine.Engine
	Limits    *engine.Limits // in force at first; see SetLimits
	Timeout   time.Duration  // of a decision; negative is none
	Recheck   time.Duration  // how long a denial is remembered; negative: until it is over
	Lease     time.Duration  // how long units may be held; 0 leases none
	NearKeys  int            // how many counters are remembered; 0 shares SharedNearKeys with the process
	OnFailure Policy
	Report    Reporter
}

// A Reporter logs what an operator must know. It may be called from any number of
// goroutines.
type Reporter interface {
	// StoreFailed: a decision was made without the store.
	StoreFailed(err error)
	// StoreDown: the breaker is open. outages is how many times it has opened, and
	// cause why it did last.
	StoreDown(outages uint64, cause error)
	// StoreBack: it has closed, after an outage that StoreDown was called for.
	StoreBack(outages uint64, lasted time.Duration)
}

// Stats are counts over a Remote's life.
type Stats struct {
	Failures, Spared     uint64 // calls that failed, and that were not made
	BreakerOpen          bool
	BreakerOpened        uint64
	Cached, Leased       uint64 // decisions by their source
	Fallback, FailedOpen uint64
	Owed                 int    // keys with units that the store does not know of
	Forgotten            uint64 // keys for which that could not be kept
	Evicted              uint64 // counters that had to go, of all limiters that share the budget
}

// SharedNearKeys is how many counters all limiters of a process remember together.
const SharedNearKeys = 1 << 18

// ledgerBytes bounds what one limiter notes of units that the store does not know
// of: some ten thousand keys. A limiter with a budget of its own has as much for
// each key.
const (
	ledgerBytes       = 1 << 20
	ledgerBytesPerKey = 128
)

var sharedMemory = sync.OnceValue(func() *nearcache.Memory { return nearcache.NewMemory(SharedNearKeys) })

func newNear(keys int) *nearcache.Cache {
	switch {
	case keys > 0:
		return nearcache.New(nearcache.NewMemory(keys), keys*ledgerBytesPerKey)
	case clock.Virtual():
		return nearcache.New(nearcache.NewMemory(SharedNearKeys), ledgerBytes)
	}
	return nearcache.New(sharedMemory(), ledgerBytes)
}

// What a limiter sets if its user does not.
const (
	DefaultTimeout = 100 * time.Millisecond
	DefaultRecheck = time.Second
)

// MaxWaiting bounds the callers that wait for a store: at a hundred thousand
// decisions a second, as many arrive in 40 ms.
const MaxWaiting = 4096

// SideTimeout bounds a call that no request waits for. That is long for a store,
// and short for a goroutine to be kept.
const SideTimeout = 5 * time.Second

// closeTimeout bounds how long Close gives leases back: some ten thousand of them.
const closeTimeout = time.Second

// NothingTaken is the instant of a decision that the store does not know of, or
// may not know of. Nothing can be given back for it: that would be somebody else's
// units.
const NothingTaken = math.MinInt64

// Remote decides for one limiter. Its methods may be called from any number of
// goroutines.
//
// When a Reload replaces a limiter, both generations share what is known of the
// store and its keys (state). Requests that are in flight at the old generation are
// decided there, by its own settings and with its own client. But one generation,
// the owner, does everything that goes on beside the decisions.
type Remote struct {
	opts   Options
	limits atomic.Pointer[engine.Limits]
	*state

	waiting atomic.Int64 // callers that wait for the store
	hasty   atomic.Int64 // calls in a row that their callers' deadlines have ended

	failures, spared, cached, leased, fallback, failedOpen atomic.Uint64

	// What goes on beside the decisions while this is the owner:
	settling  atomic.Bool  // a goroutine sends the store what it is owed
	settleNot atomic.Int64 // before this instant
	sweeping  atomic.Bool  // a goroutine gives back leases whose time is over
	watching  atomic.Bool  // a goroutine reports an outage
	looking   atomic.Bool  // a goroutine looks whether the store answers

	replaced chan struct{}      // closed when another one becomes the owner: loops end
	closing  context.Context    // done with Close: calls end, too
	cancel   context.CancelFunc // of closing
	mu       sync.Mutex         // orders Close and replace against start
	stopped  bool               // one of them has been called; guarded by mu
	running  sync.WaitGroup
}

// state is what all generations of a limiter know.
type state struct {
	owner   atomic.Pointer[Remote]
	near    *nearcache.Cache
	breaker breaker.Breaker
	outage  outage
}

// New returns a Remote.
func New(opts Options) *Remote {
	r := &Remote{opts: opts, state: &state{near: newNear(opts.NearKeys)}, replaced: make(chan struct{})}
	r.outage.changed = make(chan struct{}, 1)
	r.owner.Store(r)
	r.limits.Store(opts.Limits)
	r.closing, r.cancel = context.WithCancel(context.Background())
	return r
}

// Succeed shares what old knows of the keys, which is of the same name and prefix,
// of the generation before. Old stays the owner until Begin. r has not been used
// yet.
func (r *Remote) Succeed(old *Remote) { r.state = old.state }

// Begin makes r the owner. The owner before, if there is one, ends what it does
// beside its decisions, and r goes on with it.
func (r *Remote) Begin() {
	if before := r.owner.Swap(r); before != r {
		before.replace()
	}
	if r.isReplaced() { // closed in the meantime, when it was not the owner yet
		r.finish()
		return
	}
	// What the owner before has started since then, it has started here.
	if r.near.HasLeases() {
		r.sweep()
	}
	if r.near.Owing() > 0 {
		r.settleAll("")
	}
	r.watchOutage()
}

// replace ends the loops of an owner that is one no longer. Calls to the store that
// are under way go on.
func (r *Remote) replace() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.stopped {
		r.stopped = true
		close(r.replaced)
	}
}

// Close ends what goes on beside the decisions and waits for it. The owner then
// sends the store what it is owed, and gives back what is leased, for a second at
// most.
func (r *Remote) Close() {
	r.replace()
	r.cancel()
	r.running.Wait()
	if r.owner.Load() == r {
		r.finish()
	}
}

// finish sends the store what it is owed and gives back what is leased.
func (r *Remote) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if debtors := r.near.OwingKeys(clock.Now()); len(debtors) > 0 && r.answers(ctx, debtors[0]) {
		r.settleKeys(ctx, debtors)
	}
	r.endLeases(ctx)
}

// Beside runs f on a goroutine of its own, and reports whether it does: not after
// Close, which ends closing and waits for f.
func (r *Remote) Beside(f func(closing context.Context)) bool {
	return r.beside(func(owner *Remote) { f(owner.closing) })
}

// beside runs f on a goroutine of its own, for the owner, and reports whether it
// does: not after the owner's Close, which waits for it.
func (r *Remote) beside(f func(owner *Remote)) bool {
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

func (r *Remote) start(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return false
	}
	r.running.Go(r.recovering(f))
	return true
}

// recovering keeps a store that panics from ending the process: on these
// goroutines nobody else recovers.
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

// A question is what a caller wants to know, and what is known before the store is
// asked. The clock is read once before the store is asked and once after: where
// many callers share a round trip, reading it is a good part of a decision's cost.
type question struct {
	key     string
	units   int64
	limits  *engine.Limits
	now     int64
	until   int64        // when the timeout is over; 0 is never
	version uint64       // of what is known of the key
	states  []rule.State // a buffer for the engine
	upTo    bool         // take as many of the units as fit
	granted int64        // how many of them were taken, if upTo is set and there was no error
}

// least is how many units must fit for the question not to be denied.
func (q *question) least() int64 {
	if q.upTo {
		return 1
	}
	return q.units
}

// Take decides about n >= 0 units of key, and fills in answers, which is as long
// as the limits. It waits for the store, but not longer than the timeout. The
// instant is for Adjust; see instants.go. If the caller has left, the error is
// ctx.Err(). Otherwise it is, with the policy FailClosed or if this process is shutting
// down, the store's.
func (r *Remote) Take(ctx context.Context, key string, n int64, limits *engine.Limits, answers []rule.Answer) (at int64, source Source, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	n = min(n, rule.MaxUnits+1) // which no limit can hold, and to which a lease can be added
	now := clock.Now()
	q := question{key: key, units: n, limits: limits, now: now, until: r.until(now)}
	if at, ok := r.takeLeased(&q, answers); ok {
		r.leased.Add(1)
		return at, FromLease, nil
	}
	if r.isDenied(&q, answers) {
		r.cached.Add(1)
		return NothingTaken, FromCache, nil
	}
	at, err = r.takeFromStore(ctx, &q, answers)
	if err == nil {
		return at, FromStore, nil
	}
	return r.takeWithoutStore(ctx, &q, err, answers)
}

// TakeUpTo is Take for as many of n > 0 units as fit, and returns how many. What this
// process holds as a lease comes first; the rest is asked of the store.
func (r *Remote) TakeUpTo(ctx context.Context, key string, n int64, limits *engine.Limits, answers []rule.Answer) (granted int64, source Source, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	now := clock.Now()
	q := question{key: key, units: min(n, rule.MaxUnits), limits: limits, now: now, until: r.until(now), upTo: true}
	leased := r.spendUpTo(&q, answers)
	if q.units -= leased; q.units == 0 {
		return leased, FromLease, nil
	}
	switch {
	case r.isDenied(&q, answers):
		r.cached.Add(1)
		source = FromCache
	default:
		if _, err = r.takeFromStore(ctx, &q, answers); err != nil {
			_, source, err = r.takeWithoutStore(ctx, &q, err, answers)
		}
	}
	if leased > 0 {
		if err != nil || q.granted == 0 { // what is left of the limits has been said before
			source, err = FromLease, nil
		}
		for i := range answers {
			answers[i].Retry = 0
		}
	}
	if err != nil {
		return 0, 0, err
	}
	return leased + q.granted, source, nil
}

// isDenied reports whether the key is known to be denied. Once in each Recheck it
// does not, so that one caller asks the store.
func (r *Remote) isDenied(q *question, answers []rule.Answer) (denied bool) {
	denied, q.version = r.near.Denied(q.key, q.least(), q.now, int64(r.opts.Recheck), q.limits.Rules, answers)
	return denied
}

// takeFromStore has the store decide, if it can be asked.
func (r *Remote) takeFromStore(ctx context.Context, q *question, answers []rule.Answer) (at int64, err error) {
	start := q.now
	owes, waited := r.awaitSettled(ctx, q.key)
	if owes {
		return 0, errOwing
	}
	if q.units > 0 && r.breaker.Open() && r.opts.OnFailure == FallbackLocal {
		// The store may be back. A call that takes no units finds out: if it gets
		// no answer, nothing was taken that this process does not know of.
		if err := r.look(ctx, q.key, q.limits, q.until); err != nil {
			return 0, untaken{err}
		}
		waited = true
	}
	if waited {
		q.now = clock.Now()
	}
	if r.leases() && q.units > 0 && !q.upTo {
		return r.takeAndLease(ctx, q, answers)
	}
	if at, err = r.consult(ctx, q, answers); err != nil {
		return 0, err
	}
	if r.leases() && q.units == 0 { // a look: what this process holds is left, too
		addHeld(answers, q.limits.Rules, r.near.Leased(q.key, start, q.limits.Rules))
	}
	return at, nil
}

// takeWithoutStore decides after the store has failed with err.
func (r *Remote) takeWithoutStore(ctx context.Context, q *question, err error, answers []rule.Answer) (int64, Source, error) {
	if left := ctx.Err(); left != nil {
		return 0, 0, left
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= 0 { // as its context is about to say
		return 0, 0, context.DeadlineExceeded
	}
	if r.fault(err) == engine.Closed {
		return 0, 0, err // this process is shutting down, and the store may be well: it decides nothing in its place
	}
	policy := r.opts.OnFailure
	if err == errOwing {
		policy = FallbackLocal // the store is there: only this process knows all that is counted
	} else {
		r.opts.Report.StoreFailed(err)
	}
	rules := q.limits.Rules
	switch policy {
	case FailClosed:
		return 0, 0, err
	case FailOpen:
		for i := range answers {
			answers[i] = rule.Answer{Remaining: max(0, rules[i].Cap()-q.units)}
		}
		q.granted = q.units
		r.failedOpen.Add(1)
		return NothingTaken, FromFailOpen, nil
	}
	unchanged := r.unchanged(err)
	var here int64
	if q.upTo {
		q.granted, here = r.near.TakeUpTo(q.key, q.units, clock.Now(), rules, answers, unchanged)
	} else {
		_, here = r.near.Take(q.key, q.units, clock.Now(), rules, answers, unchanged)
	}
	r.fallback.Add(1)
	if !unchanged {
		return NothingTaken, FromFallback, nil
	}
	return takenHere(here), FromFallback, nil
}

// Adjust is [engine.Engine.Adjust]. at is the instant that Take has returned, or
// [engine.Now], and wait how long the store may take. What cannot be sent to
// the store now is owed to it with the policy FallbackLocal.
func (r *Remote) Adjust(ctx context.Context, key string, n, at int64, limits *engine.Limits, wait time.Duration) (charged int64, err error) {
	if at == NothingTaken {
		return 0, nil
	}
	n = max(-rule.MaxUnits, min(n, rule.MaxUnits))
	taken, start := r.taken(at), clock.Now()
	if r.leases() && r.adjustLease(key, n, taken, limits) {
		return max(0, n), nil
	}
	if owes, _ := r.awaitSettled(ctx, key); owes {
		err = errOwing
	} else if wait -= time.Duration(clock.Now() - start); wait <= 0 {
		err = untaken{context.DeadlineExceeded}
	} else {
		charged, err = r.move(ctx, key, n, r.sendAt(taken), limits, wait)
	}
	owed := err != nil && r.opts.OnFailure == FallbackLocal && ctx.Err() != context.Canceled && r.unchanged(err) && r.fault(err) != engine.Closed
	if err != nil && !owed {
		return 0, err
	}
	chargedHere := r.near.Adjust(key, n, taken, clock.Now(), limits.Rules, owed)
	if owed {
		return chargedHere, nil
	}
	return charged, nil
}

// Reset is [engine.Engine.Reset]. It returns the store's error, and is tried even
// while the breaker is open: somebody waits for a user to be unblocked.
func (r *Remote) Reset(ctx context.Context, key string, limits *engine.Limits) error {
	ctx, cancel := context.WithTimeout(ctx, SideTimeout)
	defer cancel()
	if _, settled := r.near.Owes(key); settled != nil { // otherwise it would be charged after the reset
		select {
		case <-settled:
		case <-ctx.Done():
		}
	}
	r.near.Forget(key, clock.Now(), limits.Rules)
	err := r.opts.Engine.Reset(ctx, key, limits)
	r.near.Forget(key, clock.Now(), limits.Rules) // a decision that was under way may have been learnt from
	return err
}

// SetLimits says which limits are in force from now on. Leases under the limits
// before are given back, on a goroutine of their own.
func (r *Remote) SetLimits(limits *engine.Limits) {
	r.limits.Store(limits)
	r.beside(func(o *Remote) { o.endLeases(o.closing) })
}

// until is when the timeout is over for what begins now; 0 is never.
func (r *Remote) until(now int64) int64 {
	if t := int64(r.opts.Timeout); t >= 0 && t <= math.MaxInt64-now {
		return now + t
	}
	return 0
}

// Stats may be called at any time.
func (r *Remote) Stats() Stats {
	return Stats{
		Failures: r.failures.Load(), Spared: r.spared.Load(),
		BreakerOpen: r.breaker.Open(), BreakerOpened: r.breaker.Opened(),
		Cached: r.cached.Load(), Leased: r.leased.Load(), Fallback: r.fallback.Load(), FailedOpen: r.failedOpen.Load(),
		Owed: r.near.Owing(), Forgotten: r.near.Lost(), Evicted: r.near.Evicted(),
	}
}
