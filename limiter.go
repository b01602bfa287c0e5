package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/guard"
	"github.com/ratelimit-go/ratelimit/internal/holds"
	"github.com/ratelimit-go/ratelimit/internal/remote"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Limiter is a named set of limits over one space of keys, counted in one store.
// Make one for each thing that must be limited, at start, with [New]; mount it
// on all routes that share it. A customer, a user or an address is a key and
// not a limiter: a limiter has tables and a store of its own, and the store stays
// after Close. All methods may be called from any number of goroutines.
type Limiter struct {
	name   string
	opts   Options // with its defaults filled in
	site   string  // file:line of the call that made it
	report *reporter
	events emitter

	store        Store
	layers       []Store        // store, and what it wraps
	prefixes     []string       // of all layers
	memory       *MemoryStore   // store, if it is one: its calls need nothing on the heap
	engine       engine.Engine  // that decides, unless memory or remote does
	holds        holds.Local    // of in-flight limits, unless remote has them
	remote       *remote.Remote // that decides, if store is outside of this process
	createdRedis *RedisStore    // store, if it was made for Options.Redis and ends with the limiter

	policy   atomic.Pointer[policy]
	plans    plans
	used     *usedLimits               // shared with the limiter that this one has replaced
	underway *atomic.Pointer[underway] // shared by generations; points to nil until it is needed: see underwayUnder
	nested   atomic.Bool               // a limiter further in has decided a request of this one
	lines    lines                     // of callers that wait
	acquired acquired                  // the holds that Acquire has given out
	key      probe                     // what Options.Key is made of
	message  []byte                    // the body of a denial in plain text
	problem  []byte                    // the constant part of it as problem details

	begun     atomic.Bool // it owns what it counts with: until then its store's table does not count for it
	closed    atomic.Bool
	replaced  atomic.Bool // by a Reload
	responded atomic.Bool // Responded has been called for one of its requests
	expecting atomic.Bool // a request of Check is watched, in case that nobody calls Responded
	noStatus  atomic.Bool // such a request was over before a call of Responded
	counts    *counts     // shared with the limiter that this one has replaced
	succeeded *Limiter    // that this one replaces, until begin

	registry *Registry // that it is claimed in, or nil; guarded by claims
}

// New makes a limiter in the [DefaultRegistry]; see [Registry.New].
func New(name string, opts Options) (*Limiter, error) { return DefaultRegistry.New(name, opts) }

// Must returns l, and panics if err is not nil. It is for limiters that are made
// when a program starts:
//
//	var login = ratelimit.Must(ratelimit.New("login", options))
func Must(l *Limiter, err error) *Limiter {
	if err != nil {
		panic(err)
	}
	return l
}

// newLimiter makes a limiter that nothing is claimed for yet.
func newLimiter(name string, opts Options) (*Limiter, error) {
	err := validateName("its name", name, false)
	if err == nil {
		err = opts.validate(name)
	}
	if err != nil {
		return nil, fmt.Errorf("ratelimit: limiter %q: %w", name, err)
	}
	l := &Limiter{name: name, opts: opts.withDefaults(), store: opts.Store}
	l.counts, l.used = new(counts), new(usedLimits)
	l.underway = new(atomic.Pointer[underway])
	l.plans.Most = maxPlans
	l.report = &reporter{
		name: name, logger: l.opts.Logger, silence: l.opts.Silence,
		counts: &l.counts.warnings, observed: l.events.warned,
	}
	l.events.report, l.events.own, l.events.audit = l.report, l.opts.Observe, l.opts.Audit
	l.events.inStore, _ = recordingOf(l.store, l.opts.Audit) // opts.validate has returned the error
	l.key = probeKey(l.opts.Key)
	l.message, l.problem = defaultDenial, defaultProblem
	if l.opts.Message != defaultMessage {
		l.message, l.problem = []byte(l.opts.Message), problemHead(l.opts.Message)
	}
	p := newPolicy(name, opts.Limits)
	l.counts.policies.register(p)
	l.policy.Store(p)
	l.opts.Limits = nil // they are in the policy
	switch {
	case opts.Redis != nil:
		l.createdRedis = limiterRedisStore(opts.Redis, name)
		l.store = l.createdRedis
	case l.store == nil:
		l.store = Memory(name)
	}
	l.memory, _ = l.store.(*MemoryStore)
	l.layers = layers(l.store)
	l.prefixes = prefixesOf(l.layers)
	var isRemote bool
	l.engine, isRemote = engineOf(l.store)
	l.holds.Engine, l.holds.Panicked = l.engine, func(p guard.Panic) { l.report.warn(warnStoreFailed, "error", p) }
	if isRemote {
		l.remote = remote.New(remote.Options{
			Engine: l.engine, Limits: l.policy.Load().countedUnder(),
			Timeout: l.opts.Timeout, Recheck: l.opts.DenyRecheck, Lease: l.opts.Lease, NearKeys: l.opts.NearKeys,
			OnFailure: remote.Policy(l.opts.OnFailure), Report: remoteReporter{l.report, l.opts.OnFailure},
			AskAlways: l.events.inStore == RecordsDecisions,
			Counts:    &l.counts.remote,
		})
	}
	return l, nil
}

// Name returns the limiter's name.
func (l *Limiter) Name() string { return l.name }

// Limits returns the limits in force, in a slice of the caller's own.
func (l *Limiter) Limits() []Limit { return slices.Clone(l.policy.Load().given) }

// SetLimits replaces the limits, for all requests that come after it. Keys keep
// what was counted under limits whose algorithm and window stay the same: raising
// N or the burst is in effect at once, and lowering it leaves at least 0. Where an
// error is returned, nothing has changed: where the limits are refused as by [New],
// or the limiter has been closed, or replaced by a [Reload], also while Options.Audit
// records the call. Other processes keep their limits: call it in each of them.
// Requests whose limits come from Options.LimitsFor keep them: change your plans there.
func (l *Limiter) SetLimits(limits ...Limit) error {
	return l.SetLimitsContext(context.Background(), limits...)
}

// SetLimitsContext is [Limiter.SetLimits] with a context that names who changes the
// limits, and why: see [WithActor] and [WithReason]. Without Options.Audit it does not
// wait, and does not look whether ctx is done.
func (l *Limiter) SetLimitsContext(ctx context.Context, limits ...Limit) error {
	if err := l.settable(); err != nil {
		return err
	}
	err := validateLimits(l.name, limits)
	if err == nil {
		err = l.opts.others(l.events.inStore).suit(limits)
	}
	if err == nil {
		err = validateStore(l.store, counted(limits))
	}
	var p *policy
	if err == nil {
		p = newPolicy(l.name, limits)
		err = l.recordLimits(ctx, p)
	}
	if err != nil {
		return fmt.Errorf("ratelimit: limiter %q: SetLimits: %w", l.name, err)
	}
	old, inForce, err := l.setPolicy(p)
	if err != nil {
		return err
	}
	l.lines.wakeAll()
	if inForce {
		l.reportLimits(ctx, p, old)
	}
	return nil
}

// settable returns the error of a SetLimits if l has been closed or replaced.
func (l *Limiter) settable() error {
	if l.closed.Load() {
		return l.wrap(ErrClosed)
	}
	if l.replaced.Load() {
		return fmt.Errorf("ratelimit: limiter %q: SetLimits: a Reload has replaced this limiter: Lookup its successor", l.name)
	}
	return nil
}

// reportLimits reports each limit of p, unless the policy old had the same ones in force.
func (l *Limiter) reportLimits(ctx context.Context, p, old *policy) {
	for _, e := range limitsChanged(p, old) {
		l.events.emit(ctx, e)
	}
}

// recordLimits hands the events of a SetLimits to the auditor, which may take long.
func (l *Limiter) recordLimits(ctx context.Context, p *policy) error {
	if l.events.audit == nil {
		return nil
	}
	for _, e := range limitsChanged(p, l.policy.Load()) {
		if err := l.events.record(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// limitsChanged returns an event for each limit of p, or none if the policy old has the same
// limits in force.
func limitsChanged(p, old *policy) (events []Event) {
	if p.always != nil && old.always != nil && *p.always == *old.always || p.always == nil && slices.Equal(p.counted(), old.counted()) {
		return nil
	}
	for i, name := range p.names {
		events = append(events, Event{Kind: EventLimitsChanged, Policy: name, Limit: *p.limit(i)})
	}
	return events
}

// succeed takes over what the limiter has that l replaces: its counts, the record of the
// limits that it has used and, on the same store, what it knows of the store's keys. claims
// must be held for writing.
//
// Both limiters add to one record of used limits. A request that still reaches old may be the
// first one under some plan, and Reset of l has to forget that plan's counters, too.
func (l *Limiter) succeed(old *Limiter) {
	l.succeeded = old
	l.used = old.used
	l.used.add(old.policy.Load().limits) // and again by replace: SetLimits may change them until then
	l.counts, l.report.counts = old.counts, &old.counts.warnings
	l.counts.policies.register(l.policy.Load())
	l.nested.Store(old.nested.Load())
	if slices.Equal(old.prefixes, l.prefixes) {
		l.underway = old.underway // its requests may still give units back
		l.lines.share(&old.lines) // its callers keep their places in line
		if l.remote == nil && old.remote == nil && innermost(l.layers) == innermost(old.layers) {
			// Another store of the same prefix knows nothing of old's holds: a MemoryStore that was
			// closed and opened again, for example. With old's book, l would add these holds to its
			// store, and report all ends to old's store.
			l.holds.Share(&old.holds)
		}
	}
	if l.remote == nil {
		return
	}
	l.remote.CountIn(&l.counts.remote)
	if l.continues(old) {
		l.remote.TakeOver(old.remote)
	}
}

// continues reports whether l counts where old does, outside of this process.
func (l *Limiter) continues(old *Limiter) bool {
	return l.remote != nil && old.remote != nil && slices.Equal(old.prefixes, l.prefixes)
}

// inForce reports whether l owns its name and its store in a registry that is not being
// built: it has been neither closed nor replaced. claims must be held, for reading at least.
func (l *Limiter) inForce() bool { return l.registry != nil && l.registry.base == nil }

// begin is called when l owns what it counts with: by New, or when the Reload that l
// was made in has succeeded. It calls no observer. It takes claims for reading.
//
// Lookup finds l a moment before. So l may have been closed or replaced before it begins. Then
// begin leaves the record of the store alone, which may be the next owner's.
func (l *Limiter) begin() {
	l.begun.Store(true)
	claims.RLock()
	if l.inForce() {
		l.counts.policies.use(l.policy.Load())
		l.adoptStore()
	}
	claims.RUnlock()
	old := l.succeeded
	l.succeeded = nil
	if l.remote != nil {
		l.remote.Begin()
	}
	if old != nil && !l.continues(old) {
		old.endWork()
	}
}

// endWork ends the work beside the decisions of a limiter that a Reload has replaced, or left
// out, so that no other one does this work. It does not wait: a goroutine sends the store what it
// is owed, for a second at most. Requests that still reach the limiter are decided.
func (l *Limiter) endWork() {
	if l.remote != nil {
		go l.remote.Close()
	}
}

// adoptStore makes stores that keep a record of their limiter keep it of l. It calls no server:
// the record is sent after the next decision. claims must be held. Otherwise the record could be
// of older limits, or of a limiter that is not in force any more.
func (l *Limiter) adoptStore() {
	for _, s := range l.layers {
		if s, ok := s.(recordStore); ok {
			s.adopt(l.name, l.policy.Load().counted(), l.report)
		}
	}
}

// setPolicy puts p in force. It returns the policy before, and whether l itself is in force. A
// limiter that a Reload is making is not: the running generation keeps its record and its leases.
// setPolicy returns an error, and changes nothing, if l has been closed or replaced.
//
// It takes claims for writing. So the steps of two calls do not mix, and a Close or a Reload comes
// before all steps of a call, or after them.
func (l *Limiter) setPolicy(p *policy) (old *policy, inForce bool, err error) {
	claims.Lock()
	defer claims.Unlock()
	if err := l.settable(); err != nil {
		return nil, false, err
	}
	l.counts.policies.register(p)
	old = l.policy.Load()
	l.used.add(old.limits) // before they are out of force: a Reset forgets those in force and those in used
	l.policy.Store(p)
	if !l.inForce() {
		return old, false, nil
	}
	l.counts.policies.use(p)
	l.adoptStore()
	if l.remote != nil {
		l.remote.SetLimits(p.countedUnder()) // which waits for no store
	}
	return old, true, nil
}

// Take takes one unit of key. See [Limiter.TakeN].
func (l *Limiter) Take(ctx context.Context, key string) (d Decision, err error) {
	err = l.takeInto(&d, ctx, key, 1)
	return d, err
}

// TakeN takes n units of key under every limit, or under none. A denial is a
// Decision, not an error. n of 0 looks without taking and is always allowed:
// Remaining is what is left. (Under [Deny] a look is denied.) It is an error if n is
// negative, n is above 0 and one of the limits is [InFlight], key is empty ([ErrNoKey]), ctx
// is done, the limiter is closed ([ErrClosed]) or the store
// fails; then nothing was decided, and the Decision is zero. The limits are those
// of [Limiter.Limits]: Options.LimitsFor is for requests, and TakeLimits has the same
// for other callers.
func (l *Limiter) TakeN(ctx context.Context, key string, n int64) (d Decision, err error) {
	if n < 0 {
		return d, l.negative(n)
	}
	err = l.takeInto(&d, ctx, key, n)
	return d, err
}

// TakeLimits is [Limiter.TakeN] under other limits than [Limiter.Limits], for plans
// and tiers outside of HTTP: what Options.LimitsFor does for requests. No limits means
// Limiter.Limits. Everything that TakeN has for a store outside of this process goes
// for it too, and Reset forgets its counters. As with LimitsFor, choose the limits
// by the client and not by the request. A limit that is not valid is an error.
func (l *Limiter) TakeLimits(ctx context.Context, key string, n int64, limits ...Limit) (d Decision, err error) {
	if n < 0 {
		return d, l.negative(n)
	}
	p, err := l.policyOf(limits)
	if err != nil {
		return d, fmt.Errorf("ratelimit: limiter %q: TakeLimits: %w", l.name, err)
	}
	err = l.takeAll(&d, ctx, key, n, p)
	return d, err
}

// TakeUpTo takes as many of n units of key as fit under every limit, in one atomic
// step, and returns how many: a batch that sends what it may. If none fits, granted is
// 0 and the Decision is a denial whose RetryAfter is the time until one unit fits. n
// above what a limit can hold grants what is left. It is an error if n is less than 1,
// and where [Limiter.TakeN] has one.
//
// A store of another make, or a wrapper, is asked for fewer units until they fit, with
// its Take: what is granted has fitted at one instant, but more may have been free
// between these calls. While a store fails, [FailOpen] grants n.
func (l *Limiter) TakeUpTo(ctx context.Context, key string, n int64) (granted int64, d Decision, err error) {
	if n < 1 {
		return 0, d, fmt.Errorf("ratelimit: limiter %q: cannot take up to %d units: want 1 or more; TakeN with 0 looks", l.name, n)
	}
	p := l.policy.Load()
	if adapter, ok := l.engine.(storeEngine); ok && l.memory == nil && p.ladders != nil && adapter.shared == nil {
		return 0, d, fmt.Errorf("ratelimit: limiter %q: TakeUpTo: a limit has Block, and %s is asked for fewer units until they fit, "+
			"of which the first denial would start the block: use TakeN, or implement SharedStore", l.name, storeName(l.store))
	}
	var results [MaxLimits]Result
	t, err := l.take(ctx, key, n, forUpTo, p, results[:p.width()])
	if err != nil {
		return 0, d, err
	}
	d.fill(p, &t, &results[t.bound])
	if !d.Allowed {
		l.reportDenial(ctx, EventDenied, key, n, &d, p, &t, results[:])
	}
	return t.granted, d, nil
}

// policies returns the policy in force, and the policies of the plans in use.
func (l *Limiter) policies() []*policy { return append([]*policy{l.policy.Load()}, l.plans.All()...) }

// policyOf returns the policy of a plan's limits, or the limiter's own if the plan has
// none.
func (l *Limiter) policyOf(plan []Limit) (*policy, error) {
	if len(plan) == 0 {
		return l.policy.Load(), nil
	}
	return l.planOf(plan)
}

// planOf returns the policy of a plan's limits, which need not be valid. A new policy's
// limits are added to used, and its names to the counts.
func (l *Limiter) planOf(limits []Limit) (*policy, error) {
	hash, same := planHash(limits), func(p *policy) bool { return slices.Equal(p.given, limits) }
	if p, ok := l.plans.Find(hash, same); ok {
		return p, nil
	}
	return l.makePlan(hash, slices.Clone(limits))
}

// makePlan is planOf for a plan that is not cached, whose limits do not change any more.
func (l *Limiter) makePlan(hash uint64, limits []Limit) (*policy, error) {
	if err := validateLimits(l.name, limits); err != nil {
		return nil, err
	}
	if err := l.opts.others(l.events.inStore).suit(limits); err != nil {
		return nil, err
	}
	p := newPolicy(l.name, limits)
	if err := validateStore(l.store, p.counted()); err != nil {
		return nil, err
	}
	p.plan = true
	l.counts.policies.register(p)
	l.counts.policies.use(p)
	l.used.add(p.limits)
	p, unused := l.plans.Put(hash, p, clock.Now(), p.same,
		func(dropped *policy) { l.used.add(dropped.limits) }) // used may have forgotten them while the plan was cached
	if unused > 0 && unused < planThrash {
		l.report.warn(warnTooManyPlans)
	}
	return p, nil
}

func (l *Limiter) negative(n int64) error {
	return fmt.Errorf("ratelimit: limiter %q: cannot take %d units: want 0 or more; Refund gives units back", l.name, n)
}

// takeInto fills in the caller's Decision in place, because it is large to copy.
func (l *Limiter) takeInto(d *Decision, ctx context.Context, key string, n int64) error {
	p := l.policy.Load()
	if !l.isDirect(p) {
		return l.takeAll(d, ctx, key, n, p)
	}
	answer, _, blocked, held, err := l.takeDirect(ctx, key, n, p, p.numbers[0])
	if err != nil {
		return err
	}
	result := resultOf(answer)
	t := taken{blocked: blocked}
	d.fill(p, &t, &result)
	held.Unlock() // no defer: nothing above can panic, and it costs 4 ns
	if !d.Allowed {
		l.reportDenial(ctx, EventDenied, key, n, d, p, &t, nil)
	}
	return nil
}

// isDirect reports whether a decision under p needs no more than one counter in this
// process's memory: the common case.
func (l *Limiter) isDirect(p *policy) bool { return l.memory != nil && p.single && l.begun.Load() }

// takeDirect takes n units of key if isDirect. number is the one under which the table
// counts the decision. If err is nil, the caller must unlock held once it has copied the
// answer; see [table.Table.TakeOne].
func (l *Limiter) takeDirect(ctx context.Context, key string, n int64, p *policy, number uint8) (a rule.Answer, at int64, blocked bool, held *sync.Mutex, err error) {
	if err := l.ready(key); err != nil {
		return a, 0, false, nil, err
	}
	if err := l.memory.ready(ctx); err != nil {
		return a, 0, false, nil, l.wrap(err)
	}
	a, at, blocked, held = l.memory.table.TakeOne(key, n, &p.limits[0].rule, number)
	return a, at, blocked, held, nil
}

// takeAll is takeInto for any number of limits and any store.
func (l *Limiter) takeAll(d *Decision, ctx context.Context, key string, n int64, p *policy) error {
	var results [MaxLimits]Result
	t, err := l.take(ctx, key, n, forAll, p, results[:p.width()])
	if err != nil {
		return err
	}
	d.fill(p, &t, &results[t.bound])
	if !d.Allowed && n > 0 { // a look, which Deny denies, is no event
		l.reportDenial(ctx, EventDenied, key, n, d, p, &t, results[:])
	}
	return nil
}

// reportDenial reports a denial of n units, and the block that it has started, if any. t and
// results are of the decision.
func (l *Limiter) reportDenial(ctx context.Context, kind EventKind, key string, n int64, d *Decision, p *policy, t *taken, results []Result) {
	if !l.events.observed() {
		return
	}
	l.events.emit(ctx, Event{Kind: kind, Key: key, Policy: d.Policy, Limit: d.Limit, Decision: *d, Units: n})
	if t.began == 0 {
		return
	}
	i := int(t.began - 1)
	l.events.emit(ctx, Event{
		Kind: EventBlocked, Key: key, Policy: p.names[i], Limit: *p.limit(i), Decision: *d, Units: n, Duration: results[i].RetryAfter,
	})
}

// asking is how take asks for units.
type asking uint8

const (
	forAll     asking = iota // all of them, or none
	forUpTo                  // as many as fit, of at least one
	forRequest               // as forAll, for a request that Options.Count may decide about later
	asShadow                 // as forRequest forAll, and a denial is let through
	forAcquire               // as forAll, with a hold that ends by itself

	uncounted asking = 1 << 7 // with one of the others: the decision is not counted
)

// take decides, where this limiter counts. It counts the decision, unless n is 0.
// results does not escape: what an interface is given does, so engines fill a pooled
// buffer.
func (l *Limiter) take(ctx context.Context, key string, n int64, how asking, p *policy, results []Result) (t taken, err error) {
	u := l.underwayUnder(p)
	if u == nil {
		if how != forUpTo && how <= asShadow && l.isDirect(p) {
			return l.takeOne(ctx, key, n, how, p, &results[0])
		}
		return l.takeWith(ctx, key, n, how, p, results, nil, nil)
	}
	asks := how &^ uncounted
	isRecorded := (asks == forRequest || asks == asShadow) && l.mayGiveBack() // also of cost 0: AddCost can follow
	if l.remote == nil {
		s := u.lock(key)
		defer s.mu.Unlock()
		t, err = l.takeWith(ctx, key, n, how, p, results, s.pending(key, p), nil)
		if err == nil && isRecorded && results[t.bound].RetryAfter == 0 && t.counted != nothingTaken {
			t.pending = s.add(key, n, t.counted, p, false)
		}
		return t, err
	}
	own := turn{underway: u, key: key, policy: p}
	if isRecorded {
		own.units = n
	}
	took := false
	defer func() { // also if the store panics
		t.pending = own.end(took, n, t.counted)
		if took && results[t.bound].RetryAfter > 0 {
			// The store may have taken the units of a request that was denied here.
			t.pending.keep()
			t.pending = nil
		}
	}()
	t, err = l.takeWith(ctx, key, n, how, p, results, nil, &own)
	if err == nil && t.counted != nothingTaken {
		took = isRecorded
	}
	return t, err
}

// takeOne is takeWith if isDirect.
func (l *Limiter) takeOne(ctx context.Context, key string, n int64, how asking, p *policy, result *Result) (t taken, err error) {
	number := p.numbers[0]
	if how == asShadow {
		t.shadow, number = true, p.shadow[0]
	}
	answer, at, blocked, held, err := l.takeDirect(ctx, key, n, p, number)
	if err != nil {
		return t, err
	}
	*result = resultOf(answer)
	result.Blocked = blocked
	held.Unlock()
	t.at, t.counted, t.blocked = Instant(at), Instant(at), blocked
	return t, nil
}

// mayGiveBack reports whether the units of a request that is admitted may be given back
// later: by Options.Count, or because a limiter further in denies the request.
func (l *Limiter) mayGiveBack() bool { return l.opts.Count != nil || l.nested.Load() }

// underwayUnder returns the units under way that a decision under p needs or changes. It
// is nil if no limit with Block has been in force where units may be given back, in this
// generation of the limiter or an earlier one.
func (l *Limiter) underwayUnder(p *policy) *underway {
	if u := l.underway.Load(); u != nil {
		return u
	}
	if p.ladders == nil || !l.mayGiveBack() {
		return nil
	}
	l.underway.CompareAndSwap(nil, newUnderway())
	return l.underway.Load()
}

// takeWith is take for a key of which some units may yet be given back: the pending ones,
// or for a store outside of this process the units of the request's turn. Both may be nil.
func (l *Limiter) takeWith(ctx context.Context, key string, n int64, how asking, p *policy, results []Result, pending []rule.Pending, own *turn) (t taken, err error) {
	numbers := &p.numbers
	counted := how&uncounted == 0
	if how &^= uncounted; how == asShadow {
		t.shadow, numbers = true, &p.shadow
	}
	if !counted {
		numbers = nil
	}
	if err := l.ready(key); err != nil {
		return t, err
	}
	if p.always != nil {
		if err := ctx.Err(); err != nil {
			return t, l.wrap(err)
		}
		results[0] = p.decides()
		t.at, t.counted = nothingTaken, nothingTaken
		if results[0].RetryAfter == 0 {
			t.granted = n
		}
		if counted {
			l.count(n, p, how, &t, results)
		}
		return t, nil
	}
	if l.memory != nil && p.inFlight == nil {
		if err := l.memory.ready(ctx); err != nil {
			return t, l.wrap(err)
		}
		inTable := l.begun.Load() // read once, so that the decision is counted once
		if !inTable {
			numbers = nil // the table may be counting for another limiter
		}
		blocking := startsBlocks(p.ladders, pending)
		switch {
		case how == forUpTo:
			t.granted, t.bound = l.memory.takeUpTo(key, n, p.limits, results, numbers, blocking)
		case p.calendars:
			t.at, t.bound = l.memory.take(key, n, p.limits, results, numbers, blocking)
		default:
			t.at, t.bound = l.memory.takeUnder(key, n, p.present().under.Rules, results, numbers, blocking)
		}
		t.counted = t.at
		l.noteBlocks(&t, results)
		if counted && !inTable {
			l.count(n, p, how, &t, results)
		}
		return t, nil
	}
	if l.events.inStore == RecordsDecisions && n > 0 {
		ctx = l.events.recordable(ctx, Event{}, p.names)
	}
	buf := answers.Get().(*[MaxLimits]rule.Answer)
	defer answers.Put(buf)
	decided := remote.Decision{Source: remote.FromStore}
	rates := buf[:p.width()]
	var ask *holds.Ask
	if p.inFlight != nil {
		if n > 0 && (how == forAll || how == forUpTo) {
			return t, l.wrap(p.inFlight.errNoEnd())
		}
		ask = p.asksForHold(how == forAcquire)
		rates = rates[:len(p.limits)]
	}
	if l.remote == nil {
		var reply engine.Reply
		request := engine.Request{
			Key: key, Units: n, UpTo: how == forUpTo, Limits: p.present().under, StartsBlocks: p.ladders != nil, Pending: pending,
		}
		if ask == nil {
			reply, err = l.engine.Take(ctx, request, rates)
		} else {
			reply, decided.Hold, decided.Held, err = l.holds.Take(ctx, request, *ask, rates)
		}
		decided.At, decided.Counted, decided.Granted = reply.At, reply.At, reply.Granted
		decided.Blocked, decided.Began = reply.Blocked, reply.Began
	} else {
		request := remote.Request{Key: key, Units: n, UpTo: how == forUpTo, Limits: p.present().under, Hold: ask}
		if own != nil {
			request.Turn = own
		}
		decided, err = l.remote.Take(ctx, request, rates)
	}
	if err != nil {
		return taken{}, l.wrap(publicError(err))
	}
	if ask != nil {
		buf[len(rates)] = decided.Held
		t.held = l.holding(decided.Hold, key)
	}
	for i := range results {
		results[i] = resultOf(buf[i])
	}
	t.at, t.counted = Instant(decided.At), Instant(decided.Counted)
	t.granted, t.source = decided.Granted, Source(decided.Source)
	t.bound = rule.Binding(buf[:len(results)])
	mark(results, decided.Blocked, decided.Began)
	l.noteBlocks(&t, results)
	if counted {
		l.count(n, p, how, &t, results)
	}
	return t, nil
}

// noteBlocks finds the blocks among the results, and counts the decision if it has started one.
func (l *Limiter) noteBlocks(t *taken, results []Result) {
	t.noteBlocks(results)
	if t.began != 0 {
		l.counts.blocksBegun.Add(1)
	}
}

// holding counts a hold, and returns it with what must be done when it ends. For nil it returns nil.
func (l *Limiter) holding(h *holds.Hold, key string) *held {
	if h == nil {
		return nil
	}
	l.counts.inFlight.Add(1)
	counts, lines := l.counts, &l.lines
	return &held{hold: h, over: func() {
		counts.inFlight.Add(-1)
		lines.wake(key) // somebody may wait for it
	}}
}

// count counts a decision about n units that the limiter's own table has not counted.
func (l *Limiter) count(n int64, p *policy, how asking, t *taken, results []Result) {
	if how == forUpTo && t.granted > 0 {
		n = t.granted // a denial is one of the units asked for
	}
	if n > 0 {
		l.counts.decided(n, p, t, results)
	}
}

var answers = sync.Pool{New: func() any { return new([MaxLimits]rule.Answer) }}

// nothingTaken is the instant of a decision for which nothing can be given back.
const nothingTaken = Instant(remote.NothingTaken)

// timeout is how long the limiter may hold up an answer.
func (l *Limiter) timeout() time.Duration {
	if l.opts.Timeout < 0 {
		return remote.SideTimeout
	}
	return l.opts.Timeout
}

// adjust is [Store.Adjust]. It waits for at most wait for a store outside of this process.
func (l *Limiter) adjust(ctx context.Context, key string, n int64, at Instant, limits *engine.Limits, wait time.Duration) (charged int64, err error) {
	if n < 0 {
		defer l.lines.wake(key)
	}
	if l.events.inStore == RecordsDecisions && engine.Recordable(ctx) == nil {
		ctx = l.events.recordable(ctx, Event{}, nil)
	}
	switch {
	case len(limits.Rules) == 0: // under Unlimited, Deny or InFlight
	case l.remote != nil:
		charged, err = l.remote.Adjust(ctx, key, n, int64(at), limits, wait)
	case l.memory != nil:
		charged, err = l.engine.Adjust(ctx, key, n, int64(at), limits)
	default:
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		charged, err = l.engine.Adjust(ctx, key, n, int64(at), limits)
	}
	return charged, l.wrap(publicError(err))
}

// Refund gives n units of key back under every limit in [Limiter.Limits], as if they had not been
// taken: never above a limit, and never to a key without a counter. It is for
// units taken just now; a fixed window that has opened since they were taken is
// given them too. It is an error if n is negative, and where TakeN has one.
func (l *Limiter) Refund(ctx context.Context, key string, n int64) error {
	p := l.policy.Load()
	if err := p.countsUnits(); err != nil {
		return fmt.Errorf("ratelimit: limiter %q: Refund: %w", l.name, err)
	}
	if n < 0 {
		return fmt.Errorf("ratelimit: limiter %q: cannot refund %d units: want 0 or more; TakeN takes units", l.name, n)
	}
	if err := l.ready(key); err != nil || n == 0 || len(p.limits) == 0 {
		return err
	}
	refunded, byHand, recorded := Event{Kind: EventRefunded, Key: key, Units: n}, actorOf(ctx) != "", ctx
	if byHand {
		var err error
		if recorded, err = l.record(ctx, "Refund", refunded); err != nil {
			return err
		}
	}
	_, err := l.adjust(recorded, key, -n, Now, p.present().under, remote.SideTimeout)
	if err == nil && byHand {
		l.events.emit(ctx, refunded)
	}
	return err
}

// Reset forgets what is counted for key, under the present limits and under all
// limits that this limiter has used before, and lifts its blocks: it unblocks a user.
// The key is one that Options.Key makes, to the letter: for IPv6 "2001:db8:1:2::/64", and from
// FirstKey with its mark, "1=203.0.113.7". It is an error if key is empty, ctx
// is done, the limiter is closed or the store fails, but none if nothing was
// counted. It waits for a [RemoteStore] for at most 5 seconds, or until ctx ends. If
// the store fails, the key has been forgotten in this process alone; for a [RecordingStore]
// it has not.
//
// A limiter remembers 1,024 algorithms and windows that it has used, by
// SetLimits or Options.LimitsFor. If there were more, Reset forgets what is
// counted under those it remembers, and returns an error: the key may still be
// counted under others, until their windows end.
func (l *Limiter) Reset(ctx context.Context, key string) error {
	if err := l.ready(key); err != nil {
		return err
	}
	recorded, err := l.record(ctx, "Reset", Event{Kind: EventReset, Key: key})
	if err != nil {
		return err
	}
	limits, dropped := l.used.with(l.policies())
	reset := l.engine.Reset
	if l.remote != nil {
		reset = l.remote.Reset
	}
	// There may be more than MaxLimits. Neither Reset nor Block uses ladders.
	err = reset(recorded, key, engineLimits(withoutBlocks(limits)))
	l.lines.wake(key) // also if only this process has forgotten the key
	if err != nil {
		err = publicError(err)
		if l.remote != nil && l.events.inStore == RecordsNothing && ctx.Err() == nil {
			err = fmt.Errorf("Reset has forgotten the key in this process alone: %w", err)
		}
		return l.wrap(err)
	}
	l.events.emit(ctx, Event{Kind: EventReset, Key: key})
	if dropped {
		return fmt.Errorf("ratelimit: limiter %q: Reset: it has used limits of more than %d algorithms and windows: the key was reset "+
			"under the last %[2]d, and may be counted under others until their windows end: use fewer in Options.LimitsFor and SetLimits",
			l.name, maxUsed)
	}
	return nil
}

// Block blocks key by hand for d, which is from 1 ms to 50 years: until then every request
// that costs something is denied, as during a block that a denial has started; see
// [Limit.Block]. The limits need not have Block. If the key is blocked for longer already,
// that stays: to block it for a shorter time, Reset it first. [Limiter.Reset] lifts the
// block. The key is one that Options.Key makes; see [Limiter.KeyOf].
//
// The block is one of each counter that Reset would forget. So it does not hold under a
// plan, or after a SetLimits, with an algorithm and window that the limiter has never used
// before. A block by hand does not change which duration of a ladder is next.
//
// It is an error if d is out of range, the store counts no blocks (see [KindStore]), the
// limiter counts under no limit, and where Reset has one. A [RemoteStore] that fails gets
// the block when it answers again, with [FallbackLocal]; that is no error. With the other
// policies it is one, and the key stays blocked in this process until the store answers
// about it. For a [RecordingStore] it is an error, and the key is not blocked. Other processes learn of the block when they ask the store about the key: for
// a key that they have denied within Options.DenyRecheck, and a key whose units they hold
// by Options.Lease within that time. The plan [Unlimited] asks no store. Observers get an
// [EventBlocked] with the actor and the reason of ctx; see [WithActor].
func (l *Limiter) Block(ctx context.Context, key string, d time.Duration) error {
	if err := l.ready(key); err != nil {
		return err
	}
	if err := validateBlock(d); err != nil {
		return fmt.Errorf("ratelimit: limiter %q: Block has %w", l.name, err)
	}
	if _, err := kindStore(l.store, KindBlock); err != nil {
		return fmt.Errorf("ratelimit: limiter %q: Block: %w", l.name, err)
	}
	limits, dropped := l.used.with(l.policies())
	if len(limits) == 0 {
		return fmt.Errorf("ratelimit: limiter %q: Block: its limits count nothing, so it cannot block: add one that counts to Options.Limits", l.name)
	}
	blocked := Event{Kind: EventBlocked, Key: key, Duration: d}
	recorded, err := l.record(ctx, "Block", blocked)
	if err != nil {
		return err
	}
	block := l.engine.Block
	if l.remote != nil {
		block = l.remote.Block
	}
	if err := block(recorded, key, rule.Block{Until: int64(d)}, engineLimits(withoutBlocks(limits))); err != nil {
		return l.wrap(publicError(err))
	}
	l.events.emit(ctx, blocked)
	if dropped {
		return fmt.Errorf("ratelimit: limiter %q: Block: it has used limits of more than %d algorithms and windows: the key is blocked "+
			"under the last %[2]d alone: use fewer in Options.LimitsFor and SetLimits", l.name, maxUsed)
	}
	return nil
}

// record hands the event of a call to the auditor, or to the store in the context that it
// returns. After an error the call must not change anything.
func (l *Limiter) record(ctx context.Context, call string, e Event) (context.Context, error) {
	err := ctx.Err()
	if l.events.inStore != RecordsNothing && err == nil {
		return l.events.recordable(ctx, e, nil), nil
	}
	if err = l.events.record(ctx, e); err != nil {
		return ctx, fmt.Errorf("ratelimit: limiter %q: %s: %w", l.name, call, err)
	}
	return ctx, nil
}

// Stats returns what the limiter has counted of itself. It may be called at any time,
// and waits for no store. It locks each part of a memory store for a moment.
func (l *Limiter) Stats() LimiterStats { return l.counts.stats() }

// Info says what a limiter is.
type Info struct {
	Name      string
	Site      string // file:line of the call that has made it
	Store     string // the type of its store, such as "MemoryStore"
	Remote    bool   // the store's counters are outside of this process
	Prefix    string // of its store
	Capacity  int    // the most counters that a MemoryStore holds; 0 for other stores
	OnFailure FailurePolicy
	Shadow    bool // denials are counted, and requests are let through
}

// Info returns what the limiter is.
func (l *Limiter) Info() Info {
	info := Info{Name: l.name, Site: l.site, Store: storeName(l.store), Remote: l.remote != nil, Prefix: l.store.Prefix(), OnFailure: l.opts.OnFailure, Shadow: l.opts.Shadow}
	if l.memory != nil {
		info.Capacity = l.memory.opts.MaxKeys
	}
	return info
}

// Close gives up the limiter's name, store and prefix, so that another limiter
// can have them. It is idempotent. The store's counters stay, and a later limiter
// of the same name finds them. It ends the holds that [Limiter.Acquire] has given out. Holds of
// requests end with their requests, but a [RemoteStore] counts them for at most the limit's
// hold from now on. Requests that still reach the limiter are answered with 503, and so are
// requests that wait because of Options.MaxWait: to let them wait for their units first, shut
// the server down before. Calls of Wait end with [ErrClosed]. Requests and calls that wait at
// limiters that this one has replaced end, too. A store made for Options.Redis is closed,
// which takes as long as the client's timeouts at most; its client is not.
// The error is always nil.
func (l *Limiter) Close() error {
	l.closed.Store(true)
	claims.Lock()
	wasInForce := l.inForce() // only in the first of several calls
	if l.registry != nil {
		l.registry.release(l)
	}
	claims.Unlock()
	if wasInForce || l.replaced.Load() { // otherwise its Reload has failed, and the one before it goes on
		l.lines.close()
	}
	l.lines.wakeAll()
	l.acquired.releaseAll()
	if l.remote != nil {
		l.remote.Close()
	}
	if l.createdRedis != nil {
		l.createdRedis.Close()
	}
	if wasInForce {
		l.events.emit(context.Background(), Event{Kind: EventClosed})
	}
	return nil
}

// ErrClosed is returned by a limiter that has been closed.
var ErrClosed = errors.New("ratelimit: the limiter is closed")

func (l *Limiter) ready(key string) error {
	if l.closed.Load() || key == "" {
		return l.notReady()
	}
	return nil
}

func (l *Limiter) notReady() error {
	if l.closed.Load() {
		return l.wrap(ErrClosed)
	}
	return l.wrap(ErrNoKey)
}

// wrap says whose error it is.
func (l *Limiter) wrap(err error) error {
	if err == nil {
		return nil
	}
	return &limiterError{l.name, err}
}

// limiterError says whose an error is, and the library's name only once.
type limiterError struct {
	limiter string
	err     error
}

func (e *limiterError) Error() string {
	return fmt.Sprintf("ratelimit: limiter %q: %s", e.limiter, strings.TrimPrefix(e.err.Error(), "ratelimit: "))
}

func (e *limiterError) Unwrap() error { return e.err }

// logStore says where the limiter counts, and whether it found counters there: the
// first question when a limit seems to have been forgotten.
func (l *Limiter) logStore() {
	if l.remote != nil {
		l.report.info("limiter counts in a remote store",
			"store", storeName(l.store), "prefix", l.store.Prefix(), "on_failure", l.opts.OnFailure, "timeout", l.opts.Timeout)
	}
	if l.memory != nil {
		l.memory.reportTo(l.report)
	}
}
