package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/calendar"
	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/redisstore"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// An engineStore has an engine that a limiter may call in its place. A wrapper that
// embeds such a store has these methods, too, but it must be called itself: it may
// have a Take of its own.
type engineStore interface {
	embeddable
	engineOf() engine.Engine
}

// engineOf returns the engine of a store. Every store has one: a wrapper of
// whatever kind is called through its public methods. It also returns whether the
// store is outside of this process.
func engineOf(s Store) (e engine.Engine, isRemote bool) {
	adapter := storeEngine{store: s, shared: sharedStore(s)}
	for _, layer := range layers(s) {
		if r, ok := layer.(RemoteStore); ok {
			adapter.remote = r
			break
		}
	}
	isRemote = adapter.remote != nil
	if own, ok := s.(engineStore); ok && own.embedded() == s {
		return own.engineOf(), isRemote
	}
	return adapter, isRemote
}

// sharedStore returns the store as a SharedStore whose methods are its own, or nil.
func sharedStore(s Store) SharedStore {
	if e, embeds := s.(embeddable); embeds && e.embedded() != s {
		return nil
	}
	shared, _ := s.(SharedStore)
	return shared
}

// storeEngine makes an engine of any [Store].
type storeEngine struct {
	store  Store
	shared SharedStore // the store, if it is one
	remote RemoteStore // the store, or the first one that it wraps, that classifies errors; nil if none does
}

// results are buffers, because what an interface's method is given escapes.
var results = sync.Pool{New: func() any { return new([MaxLimits]Result) }}

// Take implements [engine.Engine]. A store may answer anything: its answers are
// brought into bounds.
func (e storeEngine) Take(ctx context.Context, r engine.Request, answers []rule.Answer) (engine.Reply, error) {
	if r.Holding != nil {
		return e.hold(ctx, &r, answers)
	}
	if r.UpTo && e.shared == nil {
		return e.takeUpTo(ctx, r, answers)
	}
	buf := results.Get().(*[MaxLimits]Result)
	*buf = [MaxLimits]Result{}
	states := make([]reportedState, len(r.States)) // not used again: a wrapper may keep what points to them
	for i := range states {
		buf[i].state = &states[i]
	}
	reply, err := e.takeFrom(ctx, &r, buf[:len(answers)])
	if err != nil {
		return engine.Reply{}, err // the buffer is not used again: the store may still write to it
	}
	asked := r.Units
	if r.UpTo {
		denied := slices.ContainsFunc(buf[:len(answers)], func(r Result) bool { return r.RetryAfter > 0 })
		if reply.Granted < 0 || reply.Granted > r.Units || (reply.Granted == 0) != denied {
			return engine.Reply{}, fmt.Errorf("%s (prefix %q): TakeShared of up to %d units has granted %d, and a RetryAfter in its results is %v: "+
				"want either units or a RetryAfter", storeName(e.store), e.store.Prefix(), r.Units, reply.Granted, denied)
		}
		asked = 1
	}
	reply.Exact = len(r.States) > 0
	for i := range states {
		var ok bool
		r.States[i], r.Logs[i], ok = states[i].get(r.Limits.Rules[i], asked, reply.At, &buf[i])
		reply.Exact = reply.Exact && ok
	}
	answersOf(buf[:len(answers)], r.Limits.Rules, answers, &reply)
	for i := range r.Blocks {
		r.Blocks[i] = blockOf(&buf[i], states, i, answers[i], reply.At)
	}
	results.Put(buf)
	return reply, nil
}

// answersOf brings results into bounds, and makes answers of them.
func answersOf(results []Result, rules []rule.Limit, answers []rule.Answer, reply *engine.Reply) {
	for i, result := range results {
		answers[i] = rule.Answer{
			Remaining: max(0, min(result.Remaining, rules[i].Cap())),
			Retry:     max(0, int64(result.RetryAfter)),
			More:      max(0, int64(result.MoreAfter)),
			Reset:     max(0, int64(result.ResetAfter)),
		}
		if result.Blocked {
			reply.Blocked |= 1 << i
		}
		if result.BlockBegan {
			reply.Began |= 1 << i
		}
	}
}

// hold is Take for a request about holds.
func (e storeEngine) hold(ctx context.Context, r *engine.Request, answers []rule.Answer) (engine.Reply, error) {
	store, err := holdStore(e.store)
	if err != nil {
		return engine.Reply{}, err
	}
	h := r.Holding
	limits := publicLimits(r.Limits)
	if !r.StartsBlocks && anyBlocks(limits) {
		limits = withoutBlocks(limits)
	}
	request := HoldRequest{
		Action: HoldAction(h.Action), Key: r.Key, Most: h.Most, Lasts: time.Duration(h.Lasts), Process: h.Process, Began: h.Began, Ended: h.Ended, Alone: h.Alone,
		Units: r.Units, Limits: limits, Pending: publicPending(r.Pending),
	}
	if r.Until != 0 {
		request.Deadline = clock.Time(r.Until)
	}
	results := make([]Result, len(answers)+1) // the store may keep it
	got, err := store.Hold(ctx, request, results)
	if err != nil {
		return engine.Reply{}, err
	}
	reply := engine.Reply{At: int64(got.At), Newest: true}
	answersOf(results[:len(answers)], r.Limits.Rules, answers, &reply)
	for i := range r.Blocks {
		r.Blocks[i] = blockOf(&results[i], nil, i, answers[i], reply.At)
	}
	of := &results[len(answers)]
	h.Held = rule.Held{
		Began: max(0, got.Began), Ended: max(0, min(got.Ended, got.Began)), Others: max(0, got.Others), OthersLeft: max(0, int64(got.OthersLeft)),
		Soonest: max(0, int64(of.MoreAfter)), Denied: h.Action == rule.AddHold && of.RetryAfter > 0,
	}
	return reply, nil
}

// blockOf returns the block of a result: as the store has reported it, or a guess. A block
// ends no later than any of the waits of the result. How many denials have blocked the key
// is not known then.
func blockOf(result *Result, states []reportedState, i int, a rule.Answer, at int64) rule.Block {
	if i < len(states) && result.state == &states[i] {
		if b, known := states[i].reportedBlock(); known && (b.Left(at) > 0) == result.Blocked {
			return b
		}
	}
	if !result.Blocked {
		return rule.Block{}
	}
	left := min(a.More, a.Reset)
	if a.Retry > 0 {
		left = min(left, a.Retry)
	}
	return rule.Block{Until: rule.Lasting(left, at)}
}

// takeFrom calls the store.
func (e storeEngine) takeFrom(ctx context.Context, r *engine.Request, results []Result) (engine.Reply, error) {
	limits := publicLimits(r.Limits)
	if !r.StartsBlocks && anyBlocks(limits) {
		limits = withoutBlocks(limits)
	}
	pending := publicPending(r.Pending)
	if e.shared != nil {
		shared := SharedRequest{Key: r.Key, Units: r.Units, UpTo: r.UpTo, Limits: limits, Pending: pending}
		if r.Until != 0 {
			shared.Deadline = clock.Time(r.Until)
		}
		reply, err := e.shared.TakeShared(ctx, shared, results)
		return engine.Reply{At: int64(reply.At), Granted: reply.Granted, Newest: reply.Newest}, err
	}
	if r.Until != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, clock.Time(r.Until))
		defer cancel()
	}
	var at Instant
	var err error
	if k, ok := e.store.(KindStore); ok && len(pending) > 0 {
		at, err = k.TakePending(ctx, r.Key, r.Units, pending, limits, results)
	} else {
		at, err = e.store.Take(ctx, r.Key, r.Units, limits, results)
	}
	return engine.Reply{At: int64(at), Newest: true}, err
}

func publicPending(rules []rule.Pending) (pending []Pending) {
	for _, p := range rules {
		pending = append(pending, Pending{p.Units, Instant(p.At)})
	}
	return pending
}

// takeUpTo asks the store for fewer and fewer units, until they fit or one does not. A
// denied call changes nothing, so only the last one counts.
func (e storeEngine) takeUpTo(ctx context.Context, r engine.Request, answers []rule.Answer) (engine.Reply, error) {
	r.UpTo = false
	for _, l := range r.Limits.Rules {
		r.Units = min(r.Units, l.Cap())
	}
	most := r.Units
	for {
		reply, err := e.Take(ctx, r, answers)
		if err != nil {
			return reply, err
		}
		least, denied := r.Units-1, false
		for _, a := range answers {
			least = min(least, a.Remaining)
			denied = denied || a.Retry > 0
		}
		if !denied {
			reply.Granted = r.Units
		}
		if !denied || r.Units == 1 {
			return reply, nil
		}
		r.Units = max(1, min(least, most))
		most = r.Units / 2 // whatever the store says: others may take units, or it may not mean it
	}
}

// Adjust implements [engine.Engine].
func (e storeEngine) Adjust(ctx context.Context, key string, n, at int64, limits *engine.Limits) (charged int64, err error) {
	return e.store.Adjust(ctx, key, n, Instant(at), publicLimits(limits))
}

// Reset implements [engine.Engine].
func (e storeEngine) Reset(ctx context.Context, key string, limits *engine.Limits) error {
	return e.store.Reset(ctx, key, publicLimits(limits))
}

// Block implements [engine.Engine].
func (e storeEngine) Block(ctx context.Context, key string, b rule.Block, limits *engine.Limits) error {
	k, err := kindStore(e.store, KindBlock)
	if err != nil {
		return err
	}
	handed := Block{Left: time.Duration(b.Until), Rung: int(b.Rung), Forget: time.Duration(b.Forget)}
	return k.Block(ctx, key, handed, publicLimits(limits))
}

// Fault implements [engine.Engine].
func (e storeEngine) Fault(err error) engine.Fault {
	var inside *redisstore.Error
	if errors.Is(err, ErrStoreClosed) || errors.As(err, &inside) && inside.Fault == engine.Closed {
		return engine.Closed // which a wrapper cannot say
	}
	if e.remote != nil {
		if fault := e.remote.Fault(err); fault <= FaultKey {
			return engine.Fault(fault)
		}
	}
	return engine.Unknown
}

// engineLimits are limits as an engine takes them, with the periods that are in force.
func engineLimits(limits []Limit) *engine.Limits {
	l := &engine.Limits{Rules: rulesOf(limits), Ladders: laddersOf(limits), Public: limits}
	if anyCalendar(limits) {
		l.Refresh = func() *engine.Limits { return engineLimits(limits) }
	}
	return l
}

// publicLimits is the inverse of engineLimits. Limits that an engine's caller has
// made of rules alone, as for units that it owes, have no names.
func publicLimits(l *engine.Limits) []Limit {
	if limits, ok := l.Public.([]Limit); ok {
		return limits
	}
	limits := make([]Limit, len(l.Rules))
	for i := range limits {
		limits[i] = publicLimit(l.Rules[i])
	}
	return limits
}

func publicLimit(r rule.Limit) Limit {
	l := Limit{rule: r}
	if c := calendar.Of(r.Number); c != nil {
		l.calendar = c
		l.rule.Window, l.rule.Burst = c.Unit.Nominal(), 0 // as the constructor has set them
	}
	return l
}
