package ratelimit

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/near"
)

// takeMore takes n units at the store and, for a key that is busy, more of them for a
// lease: the next requests need not ask.
func (r *remote) takeMore(ctx context.Context, q question, s *numbers, results []Result) (at Instant, err error) {
	ask := r.near.Want(q.key, s.rules[:s.n], q.now)
	more := q
	more.n += ask.Units
	at, err = r.consult(ctx, more, s, results)
	if ask.Units == 0 {
		return at, err
	}
	if err != nil || denied(results) {
		ask.Units = 0
		r.keep(q.key, ask, 0, s)
		if err != nil {
			return 0, err
		}
		// There is less left than was thought.
		q.now = clock.Now()
		return r.consult(ctx, q, s, results)
	}
	addHeld(results, q.limits, r.keep(q.key, ask, at, s))
	return at, nil
}

// addHeld counts what this process has ahead as remaining.
func addHeld(results []Result, limits []Limit, held int64) {
	for i := range results {
		results[i].Remaining = min(results[i].Remaining+held, limits[i].rule.Cap())
	}
}

func denied(results []Result) bool {
	for i := range results {
		if results[i].RetryAfter > 0 {
			return true
		}
	}
	return false
}

// adjustLease gives back to a lease, or charges it: the store may have nothing left to charge
// because it is all here.
func (r *remote) adjustLease(key string, n int64, at Instant, limits []Limit, s *numbers) bool {
	now := clock.Now()
	if n < 0 {
		return r.near.Unspend(key, -n, s.rules[:s.n], now, int64(at))
	}
	_, ok, refill := r.near.Spend(key, n, s.rules[:s.n], now, r.age, s.answers[:s.n])
	if refill {
		r.refill(key, limits, s)
	}
	return ok
}

// refill takes units for a lease that runs low, beside the decisions.
func (r *remote) refill(key string, limits []Limit, now *numbers) {
	ask := r.near.Want(key, now.rules[:now.n], clock.Now())
	if ask.Units == 0 {
		return
	}
	s, key := *now, strings.Clone(key)
	r.beside(func() {
		start, results := clock.Now(), make([]Result, len(limits))
		q := question{key, ask.Units, limits, start, r.until(start), r.near.Version(key)}
		at, err := r.consult(r.closing, q, &s, results)
		if err != nil || denied(results) {
			ask.Units = 0
		}
		r.keep(key, ask, at, &s)
	})
}

// keep takes over what has come of asking for a lease. It returns what it holds now.
func (r *remote) keep(key string, ask near.Ask, at Instant, s *numbers) (held int64) {
	held, lapsed, ok := r.near.Leased(ask, key, s.rules[:s.n], s.answers[:s.n], int64(at), clock.Now(), r.age)
	if ok {
		r.beside(func() { r.giveBack(r.closing, lapsed) })
	}
	if held > 0 {
		r.sweep()
	}
	return held
}

// sweep gives leases back when their time is over, as long as there are any.
func (r *remote) sweep() {
	if !r.sweeping.CompareAndSwap(false, true) {
		return
	}
	r.beside(func() {
		tick := time.NewTicker(max(time.Duration(r.age)/2, time.Millisecond))
		defer tick.Stop()
		for more := true; more; {
			select {
			case <-tick.C:
			case <-r.closing.Done():
				return
			}
			r.giveBackAll(r.closing, r.near.Lapse(clock.Now(), false))
			if more = r.near.Leases(); !more {
				r.sweeping.Store(false)
				more = r.near.Leases() && r.sweeping.CompareAndSwap(false, true) // one that came just before
			}
		}
	})
}

// endLeases gives all leases back, because the limits have changed or the limiter is
// being closed.
func (r *remote) endLeases(ctx context.Context) { r.giveBackAll(ctx, r.near.Lapse(0, true)) }

func (r *remote) giveBackAll(ctx context.Context, lapsed []near.Lapsed) {
	var workers sync.WaitGroup
	for part := range slices.Chunk(lapsed, 1+len(lapsed)/settleWorkers) {
		workers.Go(r.safely(func() {
			for _, l := range part {
				if r.giveBack(ctx, l) != nil {
					return // the rest counts as used, as all of it does
				}
			}
		}))
	}
	workers.Wait()
}

// giveBack tells the store that units were not used.
func (r *remote) giveBack(ctx context.Context, l near.Lapsed) error {
	limits := make([]Limit, len(l.Limits))
	for i := range limits {
		limits[i].rule = l.Limits[i]
	}
	_, err := r.move(ctx, l.Key, -l.Units, Instant(l.Told), limits)
	return err
}
