package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Store is where a limiter's counters live. One store belongs to one limiter; a
// [Registry] refuses to let two have it. This package has [MemoryStore] and,
// for several processes, [RedisStore]. Others can be written against this contract
// and run through package storetest.
//
// A counter is identified by the store's prefix, the key, and the limit's
// algorithm and window. A limit's N, burst and name are not part of it: they may
// differ from call to call, and what was counted stays counted (see [Limit]).
// Periods of a calendar are identified by their unit, first day and zone; see [KindStore].
// Keys are any bytes but never empty, and two keys never share a counter.
//
// A limit with [Limit.Block] reaches a store only if it is a [KindStore].
//
// Limits are valid, at most [MaxLimits], and no two limits of one call share a counter. A
// call neither keeps nor changes the slices that it is given. Methods may be called from
// any number of goroutines.
//
// An error means that no decision could be made; a denial is no error. A call
// whose effect is not known is never repeated, by the store or by its caller: it
// is better to count a unit that was not used than to count one twice. A call
// whose ctx is done before anything was sent or changed returns ctx.Err() and
// leaves everything as it was.
type Store interface {
	// Prefix names the part of the backend that the store writes to. It is the
	// same for the life of the store, and no two limiters of a registry may have
	// stores of the same prefix: two clients may be one server.
	Prefix() string

	// Take takes n >= 0 units of key under every limit, or under none if one of
	// them does not have n left; in one atomic step. It fills results, which is
	// as long as limits, with the state of key under each of them afterwards. It
	// was admitted if no result has a RetryAfter.
	//
	// n of 0 looks without taking and is always admitted. A denied call changes
	// nothing. The Instant is the time of the decision.
	Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error)

	// Adjust moves what is counted for key under each limit by n units, without
	// asking, for units that were taken at an instant that Take returned, or
	// [Now]: n < 0 gives back, n > 0 charges, and n may be any int64. Both reach only as far as those units
	// still count: not into a window that opened after they were taken, and in a
	// bucket only the part that has not leaked since. There is one exception: a charge
	// of units that were taken less than a fixed window ago counts in the window that
	// is open, because these units would have opened one that is still open, too.
	//
	// Nothing falls below zero, rises above the limit, or is given back to a key that
	// has no counter. A charge makes a counter, with a window that opened when the units
	// were taken. Adjust returns how many whole units it has charged under every limit:
	// the least of what there was room for under each, and 0 if n < 0.
	Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (charged int64, err error)

	// Reset forgets what is counted for key under each limit. There may be more
	// limits than [MaxLimits]. To forget what is not there is no error.
	Reset(ctx context.Context, key string, limits []Limit) error
}

// Result is the state of a key under one limit after a [Store.Take]. Durations run
// from the moment of the decision, and hold for a key that nobody else uses.
type Result struct {
	Remaining  int64         // units that would fit now, never negative
	RetryAfter time.Duration // until the units asked for fit: 0 if they do, [Never] if they cannot
	MoreAfter  time.Duration // until Remaining grows; 0 if the limit is whole
	ResetAfter time.Duration // until the limit is whole again

	// Blocked means that a block of the counter is in force, and BlockBegan that this
	// call has started it. Only a [KindStore] sets them.
	Blocked, BlockBegan bool

	// state, if a limiter has set it, is where a store of this package puts what its
	// counter holds. It travels through wrappers that hand the results on. A limiter
	// that gets none guesses the state from the fields above.
	state *reportedState
}

// Never is the RetryAfter of a cost that is above what a limit can ever hold. It is the
// longest Duration, some 292 years, so a sum with it overflows, and as a number of
// milliseconds it is 9223372036854. Handle it before you calculate:
//
//	if d.RetryAfter == ratelimit.Never {
//		// waiting is of no use
//	}
const Never time.Duration = math.MaxInt64

// A reportedState belongs to one call of a limiter. A wrapper may copy the results,
// and hand the copy to a call that ends later.
type reportedState struct {
	mu    sync.Mutex
	state rule.State
	log   rule.Log // of a rolling window, which has no state; never changed
	block rule.Block
	known bool
}

// reportedBlock returns the counter's block.
func (r *reportedState) reportedBlock() (b rule.Block, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.block, r.known
}

// get returns the state or the log, if it explains what a limiter got: the wrapper may have
// asked for other units or under another limit, or have changed the result.
func (r *reportedState) get(l rule.Limit, n, at int64, got *Result) (s rule.State, g rule.Log, ok bool) {
	r.mu.Lock()
	s, g, ok = r.state, r.log, r.known
	r.mu.Unlock()
	if !ok || got.state != r {
		return s, g, false
	}
	if got.RetryAfter == 0 {
		n = 0
	}
	l = l.Around(s, at)
	ask := func(n int64) (a rule.Answer) {
		if l.Kind == rule.Rolling {
			return l.Ask(&g, at, n)
		}
		_, a = l.Take(s, at, n)
		return a
	}
	a := ask(n)
	if got.Blocked {
		b, _ := r.reportedBlock()
		if a.Retry == 0 { // another limit has denied, or nothing but the block
			a = ask(0)
		}
		a = a.Over(b.Left(at), n)
	}
	near := func(a int64, b time.Duration) bool { // Redis rounds windows to milliseconds
		return a == int64(b) || max(a, int64(b))-min(a, int64(b)) <= int64(time.Millisecond)
	}
	return s, g, a.Remaining == got.Remaining && near(a.Retry, got.RetryAfter) && near(a.Reset, got.ResetAfter)
}

// report fills in the result, and what the counter holds if that is wanted.
func (r *Result) report(a rule.Answer, s rule.State, g rule.Log, b rule.Block) {
	wanted := r.state
	*r = resultOf(a)
	if r.state = wanted; wanted != nil {
		wanted.mu.Lock()
		wanted.state, wanted.log, wanted.block, wanted.known = s, g, b, true
		wanted.mu.Unlock()
	}
}

// Instant is a time on a store's own clock, in nanoseconds from a beginning that
// only the store knows. It is never negative, and never runs backwards for a key.
type Instant int64

// Now means the instant at which a store sees the call. Every instant in the future
// means the same.
const Now Instant = math.MaxInt64

// KindStore is a [Store] that counts more than the three algorithms. [New],
// [Limiter.SetLimits], Options.LimitsFor and [Limiter.TakeLimits] refuse limits that
// need more than the store's Kinds. A store with [KindInFlight] is a [HoldStore], too.
//
// A store with [KindBlock] keeps the block of a counter beside it: when the block ends,
// and how many denials have blocked the key. See [Limit.Block] for the rules. Take
// changes as follows:
//
//   - If a counter of the call is blocked, n > 0 units are denied and nothing changes.
//     The Result of a blocked counter has Blocked set and no Remaining. Its RetryAfter,
//     MoreAfter and ResetAfter are as without the block, but not before its end. If units
//     are left beneath the block, MoreAfter is its end. n of 0 is admitted.
//   - If none is, each limit that denies and has a [Limit.Ladder] starts a block, in the
//     same step. Its Result also has BlockBegan set. If RetryAfter of one limit is
//     [Never], no limit starts a block.
//
// Adjust neither starts, moves nor lifts a block. Reset lifts it.
//
// A store with [KindRolling] counts limits made by [Rolling]. A unit counts from the
// instant at which it was taken until one window later, exclusive. Adjust with n > 0 counts
// units from their instant. With n < 0 it gives back units of that instant, and none of
// another instant. If no unit is of an instant in the future, such as [Now], Adjust gives
// back the youngest units. Another N keeps all units.
//
// A store with [KindCalendar] counts limits of [Daily], [Weekly] and [Monthly]:
//
//   - A counter is identified by the period's unit, first day and zone, in place of a window.
//     [Limit.Calendar] returns the three as text. Two zones with the same time have two
//     counters.
//   - The store's wall clock decides which period is in force. It ends at midnight in the
//     limit's zone, at the instant that [Limit.Period] returns. The next period starts with
//     N units.
//   - The call that counts the first units of a period writes its end beside them. Until
//     then, this period is in force for every process, also for one whose tz database has
//     another end.
//   - Adjust only reaches the period in which its instant lies. The exception for charges in
//     a fixed window does not apply.
//   - RetryAfter, MoreAfter and ResetAfter are the time to the end of the period, unless they
//     are 0 or [Never].
//
// A wrapper that embeds a store of this package has the methods of KindStore, too, but
// limits with Block, of a calendar and of a rolling window are refused for it: its own methods may hand on other
// limits. A wrapper that should count them holds the store in a field, implements KindStore
// itself, and hands on the limits that it gets, with their ladders.
type KindStore interface {
	Store

	// Kinds returns what the store counts. It is the same for the life of the store.
	Kinds() Kinds

	// TakePending is Take for a key of which some units may yet be given back, because
	// nobody knows yet whether they count; see Options.Count. Without pending units both
	// are the same. A limit that would not deny without the pending units starts no block.
	// In a window or a period, the pending units count that Adjust would give back. In a bucket, all
	// pending units count for as long as the bucket takes to be whole again, because it is
	// not known which units have leaked.
	//
	// TakePending is called with a lock held that holds up other requests of the key, and
	// of one in 64 of all other keys, unless the store is a [RemoteStore]. A limiter does
	// not call it if the store is a [SharedStore].
	TakePending(ctx context.Context, key string, n int64, pending []Pending, limits []Limit, results []Result) (Instant, error)

	// Block joins a block with the block of key's counter under each limit: of two ends
	// the later one stays, of two rungs the higher one, and the rung is remembered for
	// the longer of the two times. There may be more limits than [MaxLimits], and
	// counters need not exist.
	Block(ctx context.Context, key string, b Block, limits []Limit) error
}

// Block is a block that a limiter hands to a [KindStore]: one by hand, or one that has
// begun while the store was away.
type Block struct {
	// Left is how long the block lasts from now on, 50 years at most. It is negative
	// for a block that is over, whose rung is still remembered.
	Left time.Duration

	// Rung is how many denials have blocked the key, 0 to 4: so it is the index of the
	// next one's duration in a [Limit.Ladder]. A block by hand has 0.
	Rung int

	// Forget is for how long Rung is remembered after the end of the block: the longest
	// duration of the ladder, or the window if that is longer.
	Forget time.Duration
}

// validate returns an error for a block that no limiter hands out.
func (b Block) validate() error {
	if b.Left > rule.MaxSpan || b.Rung < 0 || b.Rung > rule.MaxRungs || b.Forget < 0 || b.Forget > rule.MaxSpan {
		return fmt.Errorf("%+v: want at most 50 years, and a rung of 0 to %d", b, rule.MaxRungs)
	}
	return nil
}

// rule returns the block as the counting rules take it, without its end.
func (b Block) rule() rule.Block { return rule.Block{Rung: uint8(b.Rung), Forget: int64(b.Forget)} }

// Kinds is a set of what a [KindStore] counts beside the three algorithms.
type Kinds uint32

// What a KindStore may count.
const (
	KindBlock    Kinds = 1 << iota // limits with [Limit.Block], and blocks by hand
	KindRolling                    // limits of [Rolling]
	KindCalendar                   // limits of [Daily], [Weekly] and [Monthly]
	KindInFlight                   // limits of [InFlight]; see [HoldStore]
)

// String returns what is in the set, such as "blocks" or "blocks and rolling windows".
func (k Kinds) String() string {
	var names []string
	for i, name := range [...]string{"blocks", "rolling windows", "calendar periods", "in-flight limits"} {
		if k>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " and ")
}

// allKinds are the kinds that the stores of this package count.
const allKinds = KindBlock | KindRolling | KindCalendar | KindInFlight

// pendingRules are pending units as the counting rules take them.
func pendingRules(pending []Pending) (rules []rule.Pending) {
	for _, p := range pending {
		rules = append(rules, rule.Pending{Units: max(0, p.Units), At: int64(max(0, p.At))})
	}
	return rules
}

// Pending are units that [Store.Take] has taken at an instant and that may yet be given
// back.
type Pending struct {
	Units int64
	At    Instant
}

// storeName returns the type of a store without its package.
func storeName(s Store) string {
	name := reflect.TypeOf(s).String()
	return name[strings.LastIndexByte(name, '.')+1:]
}

// RemoteStore is a [Store] whose counters are outside of this process, where they
// may be slow, full or gone. A limiter adds what that needs: a timeout, a cache of
// denials, a breaker, and Options.OnFailure. The store itself tries once and says
// what went wrong; its calls return as soon as their context is done.
type RemoteStore interface {
	Store

	// Fault says what an error of one of the store's calls means. It is not asked
	// about the error of a context that its caller has cancelled.
	Fault(err error) Fault
}

// SharedStore is a [RemoteStore] whose calls share commands: one command of the backend
// decides for several callers of this process. A limiter calls TakeShared in place of
// Take. It has the arguments of Take and [KindStore.TakePending], and what such a store can use:
// a deadline that needs no context of its own, and a way to say that another caller of
// the command gets a newer answer about the key.
//
// A limiter only uses the TakeShared of the outermost store. If that embeds a store of
// this package and has no TakeShared of its own, the limiter calls its Take.
type SharedStore interface {
	RemoteStore

	// TakeShared decides a request and fills in results, which is as long as its limits.
	// It returns when ctx is done or the deadline has passed.
	TakeShared(ctx context.Context, r SharedRequest, results []Result) (SharedReply, error)
}

// SharedRequest is what a limiter asks of a [SharedStore].
type SharedRequest struct {
	Key      string
	Units    int64 // as for Store.Take
	UpTo     bool  // take as many of the units, of at least 1, as fit; if none fits, the answer is a denial of 1 unit
	Limits   []Limit
	Pending  []Pending // as for KindStore.TakePending
	Deadline time.Time // of the call, in addition to its context's; zero for none
}

// SharedReply is what a [SharedStore] returns beside the results.
type SharedReply struct {
	At      Instant // the time of the decision
	Granted int64   // how many units were taken, if the request had UpTo set
	Newest  bool    // no other caller of the same command gets a newer answer about the key
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

// Errors of stores.
var (
	// ErrStoreClosed is returned by a store that has been closed. A store adds how to
	// get an open one.
	ErrStoreClosed = errors.New("ratelimit: the store has been closed")

	// ErrPrefixClaimed is the error of a store made with [RefuseSharedPrefix] while a
	// limiter of another name, in another process, counts under its prefix.
	ErrPrefixClaimed = errors.New("ratelimit: a limiter of another name counts under this prefix in another process")
)

// Unwrapper is a [Store] that wraps another one. Every wrapper should have this
// method: a limiter looks through it, so that a registry refuses the store inside
// to a second limiter, and so that the store inside can check the limits and keep
// its record of who owns its prefix.
type Unwrapper interface{ Unwrap() Store }

// Validator is a [Store] that may have a reason not to count under some limits. [New],
// [Limiter.SetLimits], Options.LimitsFor and [Limiter.TakeLimits] call Validate of each layer
// of a store before they count under limits, and return its error.
type Validator interface{ Validate(limits []Limit) error }

// layers returns a store and what it wraps, down to maxLayers.
func layers(s Store) (all []Store) {
	for s != nil && len(all) <= maxLayers {
		all = append(all, s)
		u, ok := s.(Unwrapper)
		if !ok {
			break
		}
		s = u.Unwrap()
	}
	return all
}

// prefixesOf returns the prefixes that layers of a store write to: a wrapper may
// have another one than the store inside. That goes also for a wrapper that has no
// Unwrap but embeds a store of this package.
func prefixesOf(layers []Store) (all []string) {
	add := func(prefix string) {
		if !slices.Contains(all, prefix) {
			all = append(all, prefix)
		}
	}
	for _, s := range layers {
		add(s.Prefix())
		if e, ok := s.(embeddable); ok {
			add(e.embedded().Prefix())
		}
	}
	return all
}

// innermost returns the store inside of all layers. Two stores that count in one place have the
// same one, also if a wrapper was made again.
func innermost(layers []Store) Store {
	s := layers[len(layers)-1]
	if e, ok := s.(embeddable); ok {
		return e.embedded()
	}
	return s
}

// maxLayers ends the walk through a store that wraps itself. Nobody wraps a store
// so often on purpose.
const maxLayers = 16

// What a limiter asks of each layer of its store, beside the contract. A wrapper
// that embeds a store of this package has its methods, too.
type (
	// An embeddable store returns itself: called through a wrapper that embeds it,
	// that is not the wrapper.
	embeddable interface{ embedded() Store }

	// A recordStore keeps a record of its limiter for other processes.
	recordStore interface {
		adopt(limiter string, limits []Limit, report *reporter)
	}

	// An adviceStore says how to give each limiter a store of its own.
	adviceStore interface{ unshare() string }
)

// rulesOf are the limits' counting rules, at present.
func rulesOf(limits []Limit) []rule.Limit {
	rules, _, _ := appendRules(nil, limits)
	return rules
}

// appendRules appends the limits' counting rules, at present. If some of them are of a
// calendar, it also returns what the wall clock is ahead of package clock.
func appendRules(rules []rule.Limit, limits []Limit) (_ []rule.Limit, ahead int64, calendars bool) {
	for i := range limits {
		l := &limits[i]
		if l.calendar == nil {
			rules = append(rules, l.rule)
			continue
		}
		if !calendars {
			ahead, calendars = clock.WallAhead(), true
		}
		rules = append(rules, l.present(ahead))
	}
	return rules, ahead, calendars
}

func resultOf(a rule.Answer) Result {
	return Result{
		Remaining:  a.Remaining,
		RetryAfter: time.Duration(a.Retry),
		MoreAfter:  time.Duration(a.More),
		ResetAfter: time.Duration(a.Reset),
	}
}

// mark sets which of the results are of counters that are blocked: bit i is for result i.
func mark(results []Result, blocked, began uint8) {
	if blocked == 0 {
		return
	}
	for i := range results {
		results[i].Blocked, results[i].BlockBegan = blocked>>i&1 != 0, began>>i&1 != 0
	}
}

// noCopy makes go vet report copies of what contains it.
type noCopy struct{}

func (*noCopy) Lock()   {}
func (*noCopy) Unlock() {}
