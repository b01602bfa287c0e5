package ratelimit

import (
	"context"
	"errors"
	"sync"

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
	adapter := storeEngine{store: s}
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

// storeEngine makes an engine of any [Store].
type storeEngine struct {
	store  Store
	remote RemoteStore // the store, or the first one that it wraps, that classifies errors; nil if none does
}

// results are buffers, because what an interface's method is given escapes.
var results = sync.Pool{New: func() any { return new([MaxLimits]Result) }}

// Take implements [engine.Engine]. A store may answer anything: its answers are
// brought into bounds.
func (e storeEngine) Take(ctx context.Context, r engine.Request, answers []rule.Answer) (engine.Reply, error) {
	if r.UpTo {
		return e.takeUpTo(ctx, r, answers)
	}
	if r.Until != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, clock.Time(r.Until))
		defer cancel()
	}
	buf := results.Get().(*[MaxLimits]Result)
	*buf = [MaxLimits]Result{}
	states := make([]reportedState, len(r.States)) // not used again: a wrapper may keep what points to them
	for i := range states {
		buf[i].state = &states[i]
	}
	at, err := e.takeFrom(ctx, &r, buf[:len(answers)])
	if err != nil {
		return engine.Reply{}, err // the buffer is not used again: the store may still write to it
	}
	exact := len(r.States) > 0
	for i := range states {
		var ok bool
		r.States[i], ok = states[i].get(r.Limits.Rules[i], r.Units, int64(at), &buf[i])
		exact = exact && ok
	}
	reply := engine.Reply{At: int64(at), Newest: true, Exact: exact}
	for i, result := range buf[:len(answers)] {
		answers[i] = rule.Answer{
			Remaining: max(0, min(result.Remaining, r.Limits.Rules[i].Cap())),
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
	results.Put(buf)
	return reply, nil
}

// takeFrom calls the store.
func (e storeEngine) takeFrom(ctx context.Context, r *engine.Request, results []Result) (Instant, error) {
	limits := publicLimits(r.Limits)
	if k, ok := e.store.(KindStore); ok && len(r.Pending) > 0 {
		pending := make([]Pending, len(r.Pending))
		for i, p := range r.Pending {
			pending[i] = Pending{p.Units, Instant(p.At)}
		}
		return k.TakePending(ctx, r.Key, r.Units, pending, limits, results)
	}
	return e.store.Take(ctx, r.Key, r.Units, limits, results)
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

// engineLimits are limits as an engine takes them.
func engineLimits(limits []Limit) *engine.Limits {
	return &engine.Limits{Rules: rulesOf(limits), Public: limits}
}

// publicLimits is the inverse of engineLimits. Limits that an engine's caller has
// made of rules alone, as for units that it owes, have no names.
func publicLimits(l *engine.Limits) []Limit {
	if limits, ok := l.Public.([]Limit); ok {
		return limits
	}
	limits := make([]Limit, len(l.Rules))
	for i := range limits {
		limits[i].rule = l.Rules[i]
	}
	return limits
}
