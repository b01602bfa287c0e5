package storetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// Takes under one limit, and from many goroutines.
var takeCases = []testCase{
	{
		name:  "limit",
		rules: []int{1},
		rule:  "n units fit, one at a time or at once, and no more; Remaining is what is left after the take",
		check: func(r *run) {
			for _, l := range r.three(5) {
				for left := int64(4); left >= 0; left-- {
					if res := r.take("one", 1, l); !admitted(res) || res[0].Remaining != left {
						r.problem("under %v: %+v, want admitted with %d remaining", l, res, left)
					}
				}
				r.denies("one", 1, l)
				r.admits("all", 5, l)
				r.denies("all", 1, l)
			}
		},
	},
	{
		name:  "cost",
		rules: []int{1},
		rule:  "a take of several units needs room for all of them, and takes all of them",
		check: func(r *run) {
			for _, l := range r.three(5) {
				r.admits("key", 3, l)
				r.remains("key", 2, l)
				r.denies("key", 3, l)
				r.admits("key", 2, l)
				r.remains("key", 0, l)
			}
		},
	},
	{
		name:  "burst",
		rules: []int{1},
		rule:  "a token bucket holds burst units at once, whether that is more or less than n",
		check: func(r *run) {
			for _, l := range []ratelimit.Limit{ratelimit.TokenBucket(2, r.window, 6), ratelimit.TokenBucket(6, r.window, 2)} {
				key := l.String()
				r.remains(key, l.Burst(), l)
				r.admits(key, l.Burst(), l)
				r.denies(key, 1, l)
			}
		},
	},
	{
		name:  "denied",
		rules: []int{2},
		rule:  "a denied take changes nothing: what was left is left, and the wait grows no longer",
		check: func(r *run) {
			for _, l := range r.three(5) {
				r.admits("key", 3, l)
				before := r.take("key", 3, l)[0]
				for range 20 {
					r.denies("key", 3, l)
				}
				after := r.take("key", 3, l)[0]
				r.about(fmt.Sprintf("RetryAfter under %v after denials", l), after.RetryAfter, before.RetryAfter)
				r.about(fmt.Sprintf("ResetAfter under %v after denials", l), after.ResetAfter, before.ResetAfter)
				r.remains("key", 2, l)
				r.admits("key", 2, l)
			}
		},
	},
	{
		name:  "never",
		rules: []int{2, 6},
		rule:  "a cost above what the limit can hold is denied with RetryAfter Never, and changes nothing",
		check: func(r *run) {
			for _, l := range r.three(5) {
				for _, left := range []int64{5, 2} {
					r.admits("key", 5-left, l)
					if left == 5 {
						r.remains("key", 5, l)
					}
					for _, n := range []int64{6, 1 << 31, 1<<32 + 1, 1<<53 + 1, math.MaxInt64 - 2, math.MaxInt64} {
						if res := r.take("key", n, l)[0]; res.RetryAfter != ratelimit.Never || res.Remaining != left {
							r.problem("%d units under %v: %+v, want RetryAfter Never and %d remaining", n, l, res, left)
						}
					}
					r.remains("key", left, l)
				}
			}
		},
	},
	{
		name:  "look",
		rules: []int{2},
		rule:  "a take of 0 units is always admitted, takes nothing, and returns what is left",
		check: func(r *run) {
			for _, l := range r.three(3) {
				for range 2 {
					if res := r.take("key", 0, l); res[0] != (ratelimit.Result{Remaining: 3}) {
						r.problem("a look at a new key under %v: %+v, want 3 remaining and no waits", l, res[0])
					}
				}
				r.admits("key", 3, l)
				r.remains("key", 0, l)
				r.remains("key", 0, l)
				r.remains("key", 0, withSize(l, 1)) // more was taken than this limit allows
			}
		},
	},
	{
		name:  "look-opens-no-window",
		rules: []int{2},
		rule:  "a window opens at the first unit, not at a look",
		waits: true,
		check: func(r *run) {
			r.laneFor(r.three(1)[:2], func(r *run, l ratelimit.Limit) {
				r.remains("key", 1, l)
				r.until(r.eighths(4))
				r.admits("key", 1, l)
				r.resets("key", r.window, l)
			})
		},
	},
	{
		name:  "look-moves-no-window",
		rules: []int{2},
		rule:  "a look keeps a window open no longer",
		waits: true,
		check: func(r *run) {
			r.laneFor(r.three(4), func(r *run, l ratelimit.Limit) {
				r.admits("key", 2, l)
				want := r.take("key", 0, l)[0].ResetAfter - r.eighths(3)
				r.until(r.eighths(3))
				r.remains("key", map[string]int64{"fixed": 2, "sliding": 2, "bucket": 3}[l.Algorithm()], l)
				r.resets("key", want, l)
			})
		},
	},
	{
		name:  "concurrent",
		rules: []int{1},
		rule:  "exactly n units are admitted, however many goroutines ask for them",
		check: func(r *run) {
			for _, l := range r.three(100) {
				for _, cost := range []int64{1, 3} {
					key, want := fmt.Sprint("cost ", cost), 100/cost
					if got, _ := r.hammer([]ratelimit.Store{r.store}, key, cost, l); got != want {
						r.problem("%d takes of %d units were admitted under %v, want %d", got, cost, l, want)
					}
					r.remains(key, 100-cost*want, l)
				}
			}
		},
	},
	{
		name:  "concurrent-limits",
		rules: []int{1, 4},
		rule:  "a take under several limits is one atomic step, however many goroutines ask and in whatever order the limits are",
		check: func(r *run) {
			tight, loose := ratelimit.FixedWindow(50, r.window), ratelimit.SlidingWindow(200, r.window)
			bucket := ratelimit.TokenBucket(120, 2*r.window, 120)
			if got, _ := r.hammer([]ratelimit.Store{r.store}, "key", 1, loose, bucket, tight); got != 50 {
				r.problem("%d units were admitted, want 50", got)
			}
			r.remains("key", 0, tight)
			r.remains("key", 150, loose)
			r.remains("key", 70, bucket)
		},
	},
	{
		name:  "concurrent-refunds",
		rules: []int{1, 2},
		rule:  "takes and refunds from many goroutines lose and mint nothing: when all is given back, the limit is whole",
		check: func(r *run) {
			limits := r.three(50)
			if r.slack > 0 { // units that leak at the same time leave a part of a unit
				limits = limits[:2]
			}
			for _, l := range limits {
				var held, most atomic.Int64
				r.inParallel(func(int) error {
					results := make([]ratelimit.Result, 1)
					at, err := r.store.Take(context.Background(), "key", 1, []ratelimit.Limit{l}, results)
					if err != nil || !admitted(results) {
						return err
					}
					for now := held.Add(1); ; {
						if before := most.Load(); now <= before || most.CompareAndSwap(before, now) {
							break
						}
					}
					held.Add(-1)
					_, err = r.store.Adjust(context.Background(), "key", -1, at, []ratelimit.Limit{l})
					return err
				})
				if got := most.Load(); got > 50 {
					r.problem("%d units were held at once under %v", got, l)
				}
				r.remains("key", 50, l)
				r.admits("key", 50, l)
				r.denies("key", 1, l)
			}
		},
	},
	{
		name:  "concurrent-charges",
		rules: []int{1},
		rule:  "charges from many goroutines are all counted, and those that are returned add up to what was charged",
		check: func(r *run) {
			for _, l := range r.three(100) {
				var sum atomic.Int64
				r.inParallel(func(int) error {
					charged, err := r.store.Adjust(context.Background(), "key", 1, ratelimit.Now, []ratelimit.Limit{l})
					sum.Add(charged)
					return err
				})
				if got := sum.Load(); got != 100 {
					r.problem("%d units were charged under %v, want 100", got, l)
				}
				r.remains("key", 0, l)
			}
		},
	},
	{
		name:  "concurrent-keys",
		rules: []int{1, 9},
		rule:  "many goroutines, each with a key of its own, do not disturb each other with takes, refunds, charges and resets",
		check: func(r *run) {
			var wrong atomic.Int64
			r.inParallel(func(number int) error {
				ctx, key, limits := context.Background(), fmt.Sprint("key ", number), r.three(2)[number%3:][:1]
				n := int64(1 + number%2)
				expect := func(what bool) {
					if !what {
						wrong.Add(1)
					}
				}
				forget := func(ratelimit.Instant) error { return r.store.Reset(ctx, key, limits) }
				move := func(at ratelimit.Instant) error {
					_, err := r.store.Adjust(ctx, key, -1, at, limits)
					charged, other := r.store.Adjust(ctx, key, 2, ratelimit.Now, limits)
					expect(charged == 3-n)
					return errors.Join(err, other, forget(at))
				}
				then := []func(ratelimit.Instant) error{forget, move}
				if n == 2 { // so that resets meet everything else
					slices.Reverse(then)
				}
				for _, then := range then {
					results := make([]ratelimit.Result, 1)
					at, err := r.store.Take(ctx, key, n, limits, results)
					expect(admitted(results) && results[0].Remaining == 2-n)
					if err := errors.Join(err, then(at)); err != nil {
						return err
					}
				}
				return nil
			})
			if got := wrong.Load(); got > 0 {
				r.problem("%d calls for keys of their own went wrong", got)
			}
		},
	},
	{
		name:  "processes",
		rules: []int{1, 5},
		rule:  "two stores of one prefix have the same counters and the same clock, if they are outside of this process",
		check: func(r *run) {
			if _, ok := r.store.(ratelimit.RemoteStore); !ok {
				return
			}
			here, there := r.newStore(r.t, "storetest:shared:"), r.newStore(r.t, "storetest:shared:")
			both := []ratelimit.Store{here, there}
			for _, l := range r.three(100) {
				if got, _ := r.hammer(both, "key", 1, l); got != 100 {
					r.problem("two stores of one prefix admitted %d units under %v, want 100", got, l)
				}
				r.store = here
				r.denies("key", 1, l)
				at := r.at
				want := r.take("key", 0, l)[0].ResetAfter
				r.store = there
				r.resets("key", want, l)
				r.about("the time between the instants of two stores", time.Duration(r.at-at), 0)
				r.refunds("key", 100, at, l)
				r.remains("key", 100, l)
				r.charges("key", 60, 60, ratelimit.Now, l)
				r.store = here
				r.remains("key", 40, l)
				r.reset("key", l)
				r.store = there
				r.remains("key", 100, l)
				if _, ok := kindStore(here); ok {
					r.admits("blocked", 100, l)
					r.begins("blocked", 1, 3*r.window, l.Block(3*r.window))
					r.store = here
					r.blocked("blocked", 3*r.window, l)
					r.reset("blocked", l)
					r.store = there
					r.free("blocked", l)
				}
			}
		},
	},
}
