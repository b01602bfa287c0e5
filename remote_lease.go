package ratelimit

import (
	"context"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/near"
)

// takeMore takes n units at the store and, for a key that is busy, more of them for a
// lease: the next requests need not ask.
func (r *remote) takeMore(ctx context.Context, start int64, spent time.Duration, key string, n int64, limits []Limit, s *numbers, results []Result) (at Instant, err error) {
	extra := r.near.Want(key, s.rules[:s.n], start)
	if extra == 0 {
		return r.consult(ctx, spent, key, n, limits, s, results)
	}
	at, err = r.consult(ctx, spent, key, n+extra, limits, s, results)
	if err != nil || denied(results) {
		r.keep(key, 0, 0, start, s)
		if err != nil {
			return 0, err
		}
		// There is less left than was thought.
		return r.consult(ctx, max(1, time.Duration(monotonic()-start)), key, n, limits, s, results)
	}
	r.keep(key, extra, at, start, s)
	for i := range results {
		results[i].Remaining = min(results[i].Remaining+extra, limits[i].rule.Cap())
	}
	return at, nil
}

func denied(results []Result) bool {
	for i := range results {
		if results[i].RetryAfter > 0 {
			return true
		}
	}
	return false
}

// refill takes units for a lease that runs low, beside the decisions.
func (r *remote) refill(key string, limits []Limit) {
	s := new(numbers)
	s.set(limits)
	start := monotonic()
	extra := r.near.Want(key, s.rules[:s.n], start)
	if extra == 0 {
		return
	}
	key = strings.Clone(key)
	r.beside(func() {
		results := make([]Result, len(limits))
		at, err := r.consult(r.closing, 0, key, extra, limits, s, results)
		if err != nil || denied(results) {
			extra = 0
		}
		r.keep(key, extra, at, start, s)
	})
}

// keep takes over what has come of asking for a lease at start.
func (r *remote) keep(key string, extra int64, at Instant, start int64, s *numbers) {
	lapsed, ok := r.near.Leased(key, extra, s.rules[:s.n], s.answers[:s.n], int64(at), start, monotonic(), r.age)
	if ok {
		r.beside(func() { r.giveBack(r.closing, lapsed) })
	}
	if extra > 0 {
		r.sweep()
	}
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
			var lapsed []near.Lapsed
			lapsed, more = r.near.Lapse(monotonic(), false)
			if !more {
				r.sweeping.Store(false)
				_, more = r.near.Lapse(0, false) // one that came just before
				more = more && r.sweeping.CompareAndSwap(false, true)
			}
			for _, l := range lapsed {
				r.giveBack(r.closing, l)
			}
		}
	})
}

// endLeases gives all leases back, because the limits have changed or the limiter is
// being closed.
func (r *remote) endLeases(ctx context.Context) {
	lapsed, _ := r.near.Lapse(0, true)
	for _, l := range lapsed {
		if r.giveBack(ctx, l) != nil {
			return // the rest counts as used, as all of it does
		}
	}
}

// giveBack tells the store that units were not used.
func (r *remote) giveBack(ctx context.Context, l near.Lapsed) error {
	limits := make([]Limit, len(l.Limits))
	for i := range limits {
		limits[i].rule = l.Limits[i]
	}
	return r.ask(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, adjustTimeout)
		defer cancel()
		_, err := r.store.Adjust(ctx, l.Key, -l.Units, Instant(l.Told), limits)
		return err
	})
}
