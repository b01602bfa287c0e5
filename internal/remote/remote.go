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
//	holds.go   holds of in-flight limits: they are renewed, and their ends are reported
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
	"github.com/ratelimit-go/ratelimit/internal/guard"
	"github.com/ratelimit-go/ratelimit/internal/holds"
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
	AskAlways bool // only the store decides: no cache of denials, and no decision here; OnFailure is FailClosed
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

	// Work beside the decisions, while this generation is the owner:
	finished      atomic.Bool  // finish has done all
	sending       atomic.Bool  // a goroutine sends the store what it is owed
	sendNotBefore atomic.Int64 // no sending before this instant
	sweeping      atomic.Bool  // a goroutine gives back leases whose time is over
	watching      atomic.Bool  // a goroutine reports an outage
	resending     atomic.Bool  // a goroutine sends the store what it is owed until it has all
	renewing      atomic.Int64 // the period of the goroutine that renews holds; 0 without one
	reporting     atomic.Int64 // goroutines that report holds to the store

	shorterHold  chan struct{}      // receives if holds must be renewed more often
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
	book    *holds.Book
	breaker breaker.Breaker
	hasty   atomic.Int64 // calls in a row that their callers' deadlines have ended
	looking atomic.Bool  // a goroutine checks whether the store answers
	outage  outage
}

// New returns a Remote, which is its own owner. It starts no goroutine.
func New(opts Options) *Remote {
	r := &Remote{opts: opts, state: &state{near: newNear(opts.NearKeys)}, loopsStopped: make(chan struct{}), shorterHold: make(chan struct{}, 1)}
	r.outage.changed = make(chan struct{}, 1)
	r.book = holds.NewBook(r.reportHolds)
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
	if r.near.Owing() > 0 { // it may be a block, for whose key nobody asks
		r.settleUntilNone()
	}
	r.reportHolds()
	r.renewHolds(math.MaxInt64)
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
// that, for closeTimeout at most. It does not panic if the store does.
func (r *Remote) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	r.recovering(func() { // the goroutines of all the rest recover by themselves
		if owingKeys := r.near.OwingKeys(clock.Now()); len(owingKeys) > 0 && r.storeAnswers(ctx, owingKeys[0]) == nil {
			r.settleKeys(ctx, owingKeys)
		}
	})()
	r.endLeases(ctx)
	r.book.Retry(clock.Now()) // Close has cut off some reports
	r.reportAllHolds(ctx)
	r.finished.Store(true)
	r.reportHolds() // of requests that have ended in the meantime
}

// Go runs f on its own goroutine. Close cancels the context that f gets, and waits for f. After
// Close, the context ends after timeout, and nothing waits for f.
func (r *Remote) Go(timeout time.Duration, f func(closing context.Context)) {
	if !r.goOwner(func(owner *Remote) { f(owner.closing) }) {
		r.goAfterClose(timeout, func(ctx context.Context, _ *Remote) { f(ctx) })
	}
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

// goAlways runs f on its own goroutine, for the owner, also after the owner's Close: then f has
// closeTimeout, and Close does not wait for it. It is for units that the store has counted and
// nobody has got. ctx is done when f must end.
func (r *Remote) goAlways(f func(ctx context.Context, owner *Remote)) {
	if !r.goOwner(func(o *Remote) { f(o.closing, o) }) {
		r.goAfterClose(closeTimeout, f)
	}
}

// goAfterClose is goAlways after the owner's Close. f has as long as timeout.
func (r *Remote) goAfterClose(timeout time.Duration, f func(ctx context.Context, owner *Remote)) {
	go r.recovering(func() {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		f(ctx, r.owner.Load())
	})()
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

// recovering returns f with a recover, so that a store or a logger that panics does not
// end the process. Nothing else recovers on these goroutines.
func (r *Remote) recovering(f func()) func() {
	return func() { guard.Run(f, func(p guard.Panic) { r.opts.Report.StoreFailed(p) }) }
}

// A Request asks for units of a key.
type Request struct {
	Key    string
	Units  int64
	UpTo   bool // take as many of the units, of at least one, as fit
	Limits *engine.Limits
	Turn   Turn       // may be nil
	Hold   *holds.Ask // what the request asks of its key's holds; nil without an in-flight limit
}

// A Turn has the units of a request's key that may yet be given back. A denial that there
// would not be without them starts no block. They only are all such units while no other
// request of the key is being decided.
type Turn interface {
	// Begin waits until no other request of the key is being decided. begun reports whether
	// that has come, and waited whether there was one. Begin waits until ctx is done, or
	// until an instant, where 0 means never.
	Begin(ctx context.Context, until int64) (begun, waited bool)
	// Begun reports whether the request has its turn.
	Begun() bool
	// Pending returns the units, at the instants that Take has returned.
	Pending() []rule.Pending
}

// A Decision is what has been decided about a request, beside its answers.
type Decision struct {
	At int64 // for Adjust; see instants.go

	// Counted is At, or when this process has counted the units of a call whose outcome is
	// unknown, also if they were denied here: the store may have counted them, too. They
	// can lead to denials, but they cannot be given back. It is NothingTaken otherwise.
	Counted int64

	Granted int64 // how many units were taken, if the request has UpTo set
	Source  Source

	// Blocked and Began have a bit for each limit whose counter is blocked, and for each
	// limit that has started a block now.
	Blocked, Began uint8

	Hold *holds.Hold // that the request has got, or nil
	Held rule.Answer // of the in-flight limit, if Request.Hold is set
}

// A storeRequest is a caller's request, with what is known before the store is asked.
// The clock is read once before the store is asked and once after. If many callers
// share a round trip, reading the clock is a large part of the cost of a decision.
type storeRequest struct {
	Request
	now     int64
	until   int64  // when the timeout is over; 0 means never
	version uint64 // the cache's version of the key, for Learn

	// more is how many units are asked for beside the request's own, for a lease. A
	// denial of these starts no block.
	more int64

	// leased is how many units of a request with UpTo set the lease has granted. If it has
	// granted any, the request is admitted, and a denial of the rest starts no block.
	leased int64

	decided Decision
}

// left returns how much of the timeout is left at req.now.
func (req *storeRequest) left() time.Duration {
	if req.until == 0 {
		return math.MaxInt64
	}
	return time.Duration(req.until - req.now)
}

// least returns how many units must fit, or the question is denied.
func (req *storeRequest) least() int64 {
	if req.UpTo {
		return 1
	}
	return req.Units + req.more
}

// startsBlocks reports whether a denial starts blocks. It must not if there may be other
// units that are given back, if no client has asked for all of the units, or if the client
// has got some.
func (req *storeRequest) startsBlocks() bool {
	return req.Limits.Ladders != nil && req.more == 0 && req.leased == 0 && req.Units > 0 && (req.Turn == nil || req.Turn.Begun())
}

// turnUntil returns until when the request waits for its turn. The rest of the timeout is
// for the store.
func (r *Remote) turnUntil(req *storeRequest) int64 {
	if req.until == 0 {
		return 0
	}
	return req.until - int64(r.opts.Timeout/2)
}

// Take decides a request for 0 units or more. It fills answers, which is as long as the
// limits. It waits for the store, but not longer than the timeout. If the caller's
// context is done, the error is ctx.Err(). With FailClosed, or if this process is
// shutting down, the error may also be the store's error.
//
// A request with UpTo set uses the units that this process holds as a lease first, and
// asks the store for the rest.
func (r *Remote) Take(ctx context.Context, request Request, answers []rule.Answer) (Decision, error) {
	if err := ctx.Err(); err != nil {
		return Decision{}, err
	}
	now := clock.Now()
	req := storeRequest{Request: request, now: now, until: r.until(now)}
	req.Units = min(req.Units, rule.MaxUnits+1) // no limit can hold that many, and adding a lease cannot overflow
	if r.leases() && req.Turn != nil {
		req.Turn.Begin(ctx, r.turnUntil(&req))
		req.now = clock.Now()
	}
	if req.UpTo {
		return r.takeUpTo(ctx, &req, answers)
	}
	if req.Hold == nil && r.takeLeased(&req, answers) {
		return req.decided, nil
	}
	return r.takeUnleased(ctx, &req, answers)
}

// takeUnleased decides a request without a lease.
func (r *Remote) takeUnleased(ctx context.Context, req *storeRequest, answers []rule.Answer) (Decision, error) {
	if r.isDenied(req, answers) {
		return req.decided, nil
	}
	if err := r.takeFromStore(ctx, req, answers); err != nil {
		return r.takeWithoutStore(ctx, req, err, answers)
	}
	return req.decided, nil
}

// takeUpTo is Take for a request with UpTo set.
func (r *Remote) takeUpTo(ctx context.Context, req *storeRequest, answers []rule.Answer) (Decision, error) {
	leased := r.spendUpTo(req, answers)
	fromLease := Decision{At: req.decided.At, Counted: req.decided.At, Granted: leased, Source: FromLease}
	req.leased = leased
	if req.Units -= leased; req.Units == 0 {
		return fromLease, nil
	}
	d, err := r.takeUnleased(ctx, req, answers)
	if leased == 0 {
		return d, err
	}
	if err != nil || d.Granted == 0 { // the lease has already filled in answers
		d = fromLease
	} else {
		d.Granted += leased
	}
	// The lease has granted some: the decision is an admission, so no answer may
	// deny, whatever the rest has got.
	for i := range answers {
		answers[i].Retry = 0
	}
	d.Blocked = 0
	return d, nil
}

// isDenied reports whether the key is known to be denied. Once in each Recheck it
// returns false, so that one caller asks the store. It also returns false for a denial
// that starts a block: only the store may start one.
func (r *Remote) isDenied(req *storeRequest, answers []rule.Answer) (denied bool) {
	if len(answers) == 0 || r.opts.AskAlways { // how many holds there are is never answered from what is known
		return false
	}
	var blocked uint8
	denied, blocked, req.version = r.near.Denied(req.Key, req.least(), req.now, r.recheck(req, 0), req.Limits.Rules, answers)
	if denied && blocked == 0 && r.wouldBlock(req, answers) && (r.opts.OnFailure == FallbackLocal || !r.breaker.Open()) {
		return false
	}
	if denied {
		req.decided = Decision{At: NothingTaken, Counted: NothingTaken, Source: FromCache, Blocked: blocked, Held: r.heldHere(req, false)}
	}
	return denied
}

// recheck returns how long a denial is answered without the store, if these limits are
// blocked. A denial that has started no block because of pending units may start one when
// their requests are over. So it is answered for DefaultRecheck at most, even if Options
// has no such bound.
func (r *Remote) recheck(req *storeRequest, blocked uint8) int64 {
	if r.opts.Recheck < 0 && blocked == 0 && req.Limits.Ladders != nil && req.Turn != nil {
		return int64(DefaultRecheck)
	}
	return int64(r.opts.Recheck)
}

// wouldBlock reports whether a denial with these answers, of a key that is not blocked,
// starts a block. The store has denied without starting one, for example because of units
// that were pending then, or under limits without ladders.
func (r *Remote) wouldBlock(req *storeRequest, answers []rule.Answer) (would bool) {
	if req.Limits.Ladders == nil || req.leased > 0 {
		return false
	}
	pending := r.pending(req, here)
	for i := range answers {
		if answers[i].Retry == rule.Never {
			return false
		}
		if would || answers[i].Retry == 0 || req.Limits.Ladders[i] == nil {
			continue
		}
		would = len(pending) == 0 || r.near.DeniesWithout(req.Key, pending, req.least(), req.now, &req.Limits.Rules[i])
	}
	return would
}

// takeFromStore asks the store for a decision. It may wait for the request's turn, for
// owed units to be settled, for a probe of an open breaker, and for the store's reply.
func (r *Remote) takeFromStore(ctx context.Context, req *storeRequest, answers []rule.Answer) error {
	start := req.now
	if req.Turn != nil {
		// If its turn does not come, the store is asked nevertheless, for a decision that
		// starts no block.
		_, waited := req.Turn.Begin(ctx, r.turnUntil(req))
		if err := ctx.Err(); err != nil {
			return err
		}
		req.now = clock.Now()
		if waited && r.isDenied(req, answers) { // the requests before it have found out
			return nil
		}
	}
	owes, waited := r.awaitSettled(ctx, req.Key, req.left())
	if owes {
		return errOwing
	}
	if req.Units > 0 && r.breaker.Open() && r.opts.OnFailure == FallbackLocal {
		// The store may have recovered. A call that takes no units finds out. If
		// that call gets no reply, the store has certainly taken no units.
		if err := r.look(ctx, req.Key, r.limitsToLook(req), req.until); err != nil {
			return nothingTakenError{err}
		}
		waited = true
	}
	if waited {
		req.now = clock.Now()
	}
	if r.leases() && req.Units > 0 && !req.UpTo && req.Hold == nil {
		return r.takeAndLease(ctx, req, answers)
	}
	if err := r.consult(ctx, req, answers); err != nil {
		return err
	}
	if r.leases() && req.Units == 0 { // a look: the units of the lease are available, too
		addHeld(answers, req.Limits.Rules, r.near.Leased(req.Key, start, req.Limits.Rules))
	}
	return nil
}

// takeWithoutStore decides by the failure policy, after the store has failed
// with err. It does not wait.
func (r *Remote) takeWithoutStore(ctx context.Context, req *storeRequest, err error, answers []rule.Answer) (Decision, error) {
	if left := ctx.Err(); left != nil {
		return Decision{}, left
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= 0 { // its context is about to report that
		return Decision{}, context.DeadlineExceeded
	}
	if r.fault(err) == engine.Closed {
		return Decision{}, err // this process is shutting down and the store may be working: do not decide in its place
	}
	policy := r.opts.OnFailure
	switch {
	case err == errOwing && !r.opts.AskAlways:
		policy = FallbackLocal // the store is available, but only this process knows all units
	case policy == FailOpen && req.Units == 0:
		policy = FallbackLocal // a look: what is known here is what denies requests
		fallthrough
	default:
		r.opts.Report.StoreFailed(err)
	}
	switch policy {
	case FailClosed:
		return Decision{}, err
	case FailOpen:
		for i := range answers {
			answers[i] = rule.Answer{Remaining: max(0, req.Limits.Rules[i].Cap()-req.Units)}
		}
		d := Decision{At: NothingTaken, Counted: NothingTaken, Granted: req.Units, Source: FromFailOpen}
		if req.Hold != nil {
			d.Held.Remaining = max(0, req.Hold.Most-1)
		}
		return d, nil
	}
	if req.Hold != nil {
		return r.takeHoldHere(req, err, answers), nil
	}
	return r.takeUnitsHere(req, err, answers), nil
}

// takeUnitsHere decides a request in this process, after the store has failed with err.
func (r *Remote) takeUnitsHere(req *storeRequest, err error, answers []rule.Answer) Decision {
	owed := r.storeUnchanged(err)
	req.Limits = req.Limits.Present()
	taking := nearcache.Taking{Units: req.Units, UpTo: req.UpTo, Limits: req.Limits.Rules}
	if req.startsBlocks() {
		taking.Ladders, taking.Pending = req.Limits.Ladders, r.pending(req, here)
	}
	taken, at, marks := r.near.Take(req.Key, taking, clock.Now(), answers, owed)
	d := Decision{At: NothingTaken, Counted: takenHere(at), Granted: taken, Source: FromFallback, Blocked: marks.Blocked, Began: marks.Began}
	if owed {
		d.At = d.Counted
		if rule.Denied(answers) {
			d.Counted = NothingTaken
		}
	}
	return d
}

// pending returns the units of the request's key that may yet be given back. instantOf
// selects one of the two clocks.
func (r *Remote) pending(req *storeRequest, instantOf func(*Remote, nearcache.Instant) int64) []rule.Pending {
	if req.Turn == nil {
		return nil
	}
	pending := req.Turn.Pending()
	for i := range pending {
		pending[i].At = instantOf(r, r.taken(pending[i].At))
	}
	return pending
}

func here(_ *Remote, at nearcache.Instant) int64 { return at.Here }

// Adjust is [engine.Engine.Adjust]. at is the instant that Take has returned, or
// [engine.Now]. wait bounds how long Adjust waits for the store, including the time
// until units that are owed for the key have been sent. With FallbackLocal, a
// change that certainly did not reach the store is added to what the store is owed.
func (r *Remote) Adjust(ctx context.Context, key string, n, at int64, limits *engine.Limits, wait time.Duration) (charged int64, err error) {
	if at == NothingTaken {
		return 0, nil
	}
	n = max(-rule.MaxUnits, min(n, rule.MaxUnits))
	taken, start, recorded := r.taken(at), clock.Now(), engine.Recordable(ctx) != nil
	if r.leases() && !recorded && r.adjustLease(key, n, taken, limits) {
		return max(0, n), nil
	}
	if owes, _ := r.awaitSettled(ctx, key, wait); owes {
		err = errOwing
	} else if wait -= time.Duration(clock.Now() - start); wait <= 0 {
		err = nothingTakenError{context.DeadlineExceeded}
	} else {
		charged, err = r.move(ctx, key, n, r.sendAt(taken), limits, wait)
	}
	owed := err != nil && r.opts.OnFailure == FallbackLocal && !recorded && ctx.Err() != context.Canceled && r.storeUnchanged(err) && r.fault(err) != engine.Closed
	if err != nil && !owed {
		return 0, err
	}
	chargedHere := r.near.Adjust(key, n, taken, clock.Now(), limits.Present().Rules, owed)
	if owed {
		return chargedHere, nil
	}
	return charged, nil
}

// Reset is [engine.Engine.Reset]. It returns the store's error. It asks the store
// even if the breaker is open, because somebody waits for a user to be unblocked.
// It waits for at most SideTimeout. After an error the key has been forgotten in this process
// alone; with [engine.WithRecordable] it has not.
func (r *Remote) Reset(ctx context.Context, key string, limits *engine.Limits) error {
	ctx, cancel := context.WithTimeout(ctx, SideTimeout)
	defer cancel()
	if _, sending := r.near.Owes(key); sending != nil { // otherwise units that are being sent would be charged after the reset
		select {
		case <-sending:
		case <-ctx.Done():
		}
	}
	start, recorded := clock.Now(), engine.Recordable(ctx) != nil
	if !recorded {
		r.near.Erase(key, start, limits.Rules)
	}
	err := r.opts.Engine.Reset(ctx, key, limits)
	r.opts.Counts.called(clock.Now() - start)
	if recorded && err != nil {
		return err
	}
	r.near.Erase(key, clock.Now(), limits.Rules) // a decision that was in flight may have been learnt
	return err
}

// Block is [engine.Engine.Block]. The key is blocked in this process at once. It returns
// the store's error. With FallbackLocal, a block is owed to a store that fails, and that is
// no error. With the other policies, the key stays blocked here until the store answers
// about it. Like Reset it asks the store even if the breaker is open, and waits for at most
// SideTimeout. With [engine.WithRecordable], nothing is blocked or owed after an error.
func (r *Remote) Block(ctx context.Context, key string, b rule.Block, limits *engine.Limits) error {
	ctx, cancel := context.WithTimeout(ctx, SideTimeout)
	defer cancel()
	start, recorded := clock.Now(), engine.Recordable(ctx) != nil
	local := b
	local.Until = rule.Lasting(b.Until, start)
	if !recorded {
		r.blockHere(key, local, limits, false)
	}
	err := r.opts.Engine.Block(ctx, key, b, limits)
	end := clock.Now()
	r.opts.Counts.called(end - start)
	fault := engine.Unknown
	if err != nil {
		if recorded {
			return err
		}
		fault = r.fault(err)
	}
	owed := err != nil && r.opts.OnFailure == FallbackLocal && ctx.Err() != context.Canceled && fault != engine.Key && fault != engine.Closed
	r.blockHere(key, local, limits, owed) // a decision that was in flight may have been learnt
	if owed {
		r.settleUntilNone()
		return nil
	}
	return err
}

// blockHere blocks a key in this process, and gives its lease back.
func (r *Remote) blockHere(key string, b rule.Block, limits *engine.Limits, owed bool) {
	if ended, ok := r.near.Block(key, b, clock.Now(), int64(r.opts.Recheck), limits.Rules, owed); ok {
		r.goAlways(func(ctx context.Context, o *Remote) { o.giveBack(ctx, ended) })
	}
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
