package storetest

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// The waits that a take returns.
var waitCases = []testCase{
	{
		name:  "results",
		rules: []int{3},
		rule:  "each field of each result is set anew, whatever the buffer has held",
		check: func(r *run) {
			long := ratelimit.Result{Remaining: 1, RetryAfter: r.window, MoreAfter: r.window, ResetAfter: r.window, Blocked: true, BlockBegan: true}
			for _, l := range r.three(3) {
				for _, n := range []int64{0, 4} {
					results := []ratelimit.Result{long}
					want := ratelimit.Result{Remaining: 3}
					if n == 4 {
						want.RetryAfter = ratelimit.Never
					}
					if _, err := r.store.Take(context.Background(), "key", n, []ratelimit.Limit{l}, results); err != nil || results[0] != want {
						r.problem("Take of %d units under %v: %+v, %v, want %+v", n, l, results[0], err, want)
					}
				}
			}
		},
	},
	{
		name:  "waits",
		rules: []int{3},
		rule:  "RetryAfter is until the units fit, MoreAfter until one more is left, ResetAfter until the limit is whole",
		check: func(r *run) {
			for i, tc := range []struct {
				limit             ratelimit.Limit
				taken, asked      int64
				retry, more, sets int64 // in eighths of the window
			}{
				{ratelimit.FixedWindow(4, r.window), 1, 0, 0, 8, 8},
				{ratelimit.FixedWindow(4, r.window), 3, 2, 8, 8, 8},
				{ratelimit.FixedWindow(4, r.window), 4, 4, 8, 8, 8},
				{ratelimit.SlidingWindow(4, r.window), 1, 0, 0, 8, 8},
				{ratelimit.SlidingWindow(4, r.window), 4, 1, 8, 8, 14},
				{ratelimit.SlidingWindow(4, r.window), 4, 3, 12, 8, 14},
				{ratelimit.SlidingWindow(4, r.window), 4, 4, 14, 8, 14},
				{ratelimit.TokenBucket(4, r.window, 4), 1, 0, 0, 2, 2},
				{ratelimit.TokenBucket(4, r.window, 4), 3, 2, 2, 2, 6},
				{ratelimit.TokenBucket(4, r.window, 4), 4, 3, 6, 2, 8},
				{ratelimit.TokenBucket(8, r.window, 4), 4, 4, 4, 1, 4},
				{ratelimit.TokenBucket(1, r.window, 2), 2, 2, 16, 8, 16},
			} {
				key := fmt.Sprint("key ", i)
				r.admits(key, tc.taken, tc.limit)
				res := r.take(key, tc.asked, tc.limit)[0]
				what := fmt.Sprintf(" of %d units under %v, of which %d were taken,", tc.asked, tc.limit, tc.taken)
				r.about("RetryAfter"+what, res.RetryAfter, r.eighths(tc.retry))
				r.about("MoreAfter"+what, res.MoreAfter, r.eighths(tc.more))
				r.about("ResetAfter"+what, res.ResetAfter, r.eighths(tc.sets))
			}
		},
	},
	{
		name:  "retry-after",
		rules: []int{3},
		rule:  "a caller that waits exactly RetryAfter is admitted, and one that waits less is not",
		waits: true,
		check: func(r *run) {
			r.laneFor(r.unevenThree(3), func(r *run, l ratelimit.Limit) {
				r.admits("key", 2, l)
				r.until(l.Window() / 5)
				r.admits("key", 1, l)
				wait := r.take("key", 2, l)[0].RetryAfter
				r.sleep(wait - r.step())
				r.denies("key", 2, l)
				r.sleep(r.step())
				r.admits("key", 2, l)
			})
		},
	},
	{
		name:  "more-after",
		rules: []int{3},
		rule:  "Remaining grows after MoreAfter, and not before",
		waits: true,
		check: func(r *run) {
			r.laneFor(r.unevenThree(3), func(r *run, l ratelimit.Limit) {
				wait := r.take("key", 3, l)[0].MoreAfter
				r.sleep(wait - r.step())
				r.remains("key", 0, l)
				r.sleep(r.step())
				if left := r.take("key", 0, l)[0].Remaining; left < 1 {
					r.problem("after MoreAfter under %v nothing more is left", l)
				}
			})
		},
	},
	{
		name:  "reset-after",
		rules: []int{3},
		rule:  "the limit is whole after ResetAfter, and not before",
		waits: true,
		check: func(r *run) {
			r.laneFor(r.unevenThree(3), func(r *run, l ratelimit.Limit) {
				wait := r.take("key", 3, l)[0].ResetAfter
				r.sleep(wait - r.step())
				if left := r.take("key", 0, l)[0].Remaining; left == 3 {
					r.problem("before ResetAfter under %v the limit is whole", l)
				}
				r.sleep(r.step())
				r.remains("key", 3, l)
			})
		},
	},
	{
		name:  "fractions",
		rules: []int{1, 3},
		rule:  "a window that is no whole number of seconds is as long as it says",
		waits: true,
		check: func(r *run) {
			window := 1500 * time.Millisecond
			if r.slack > 0 && r.window < time.Second {
				window = r.window
			} else if r.slack > 0 {
				window = r.window.Truncate(time.Second) + 500*time.Millisecond
			}
			limits := []ratelimit.Limit{ratelimit.FixedWindow(1, window), ratelimit.SlidingWindow(1, window), ratelimit.TokenBucket(1, window, 1)}
			r.laneFor(limits, func(r *run, l ratelimit.Limit) {
				r.about(fmt.Sprintf("ResetAfter under %v", l), r.take("key", 1, l)[0].ResetAfter, window)
				r.until(window - window/6)
				r.denies("key", 1, l)
				r.resets("key", window/6, l)
				r.until(window + r.step())
				r.admits("key", 1, l)
			})
		},
	},
}

// step is the shortest time in which a store must notice a difference.
func (r *run) step() time.Duration { return max(r.resolution, 1) + r.slack }

// unevenThree is like three, with windows that are no whole number of seconds.
func (r *run) unevenThree(n int64) []ratelimit.Limit {
	uneven := *r
	uneven.window -= r.window / 7
	return uneven.three(n)
}

// How time passes for counters.
var timeCases = []testCase{
	{
		name:  "fixed-window",
		rules: []int{1, 2},
		rule:  "a fixed window closes one window after the key's first unit, and neither later units nor denials move that",
		waits: true,
		check: func(r *run) {
			r.laneFor([]ratelimit.Limit{ratelimit.FixedWindow(2, r.window)}, func(r *run, l ratelimit.Limit) {
				r.admits("key", 1, l)
				r.until(r.eighths(4))
				r.admits("key", 1, l)
				r.until(r.eighths(6))
				for range 2 {
					r.about("RetryAfter", r.take("key", 1, l)[0].RetryAfter, r.eighths(2))
				}
				r.until(r.eighths(9))
				r.remains("key", 2, l)
				r.until(r.eighths(10)) // the next window opens at the next unit, not where the last one closed
				r.admits("key", 2, l)
				r.resets("key", r.window, l)
				r.denies("key", 1, l)
			})
		},
	},
	{
		name:  "sliding-window",
		rules: []int{1},
		rule:  "a sliding window counts the window before it, weighted by the part that a window ending now covers",
		waits: true,
		check: func(r *run) {
			l := ratelimit.SlidingWindow(4, r.window)
			r.lanes(func(r *run) {
				r.admits("weighted", 4, l)
				r.until(r.eighths(11)) // of 4 units 2.5 count
				r.remains("weighted", 2, l)
				r.admits("weighted", 2, l)
				r.denies("weighted", 1, l)
			}, func(r *run) {
				r.admits("in a row", 2, l)
				r.until(r.eighths(10)) // of 2 units 1.5 count
				r.admits("in a row", 3, l)
				r.denies("in a row", 1, l)
				r.until(r.eighths(17)) // of 3 units 2.6 count, and the first 2 not any more
				r.remains("in a row", 2, l)
			})
		},
	},
	{
		name:  "token-bucket",
		rules: []int{1},
		rule:  "a token bucket refills by one unit every per/n without rounding, and never above its burst",
		waits: true,
		check: func(r *run) {
			l := ratelimit.TokenBucket(4, r.window, 2)
			r.lanes(func(r *run) {
				r.admits("level", 2, l)
				r.until(r.eighths(3))
				r.admits("level", 1, l)
				r.denies("level", 1, l)
				r.until(r.eighths(10))
				r.admits("level", 2, l)
				r.denies("level", 1, l)
			}, func(r *run) { // parts of a unit add up
				r.admits("parts", 2, l)
				r.until(3 * r.window / 8) // 1.5 units are back
				r.admits("parts", 1, l)
				r.until(11 * r.window / 16) // 2.75
				r.admits("parts", 1, l)
				r.until(14 * r.window / 16) // 3.5
				r.remains("parts", 1, l)
			})
		},
	},
	{
		name:  "large-units",
		rules: []int{1, 6},
		rule:  "no arithmetic overflows when the largest number of units leaks, or weighs less",
		waits: true,
		check: func(r *run) {
			const most = 999_999_999_999_999
			about := func(r *run, what string, got int64, want float64) {
				if off := float64(got)/most - want; math.Abs(off) > float64(r.slack+r.resolution+1)/float64(r.window) {
					r.problem("%d units are left of %s, want %.3f of all", got, what, want)
				}
			}
			r.lanes(func(r *run) {
				l := ratelimit.TokenBucket(most, r.window, most)
				r.admits("bucket", most, l)
				at := r.at
				r.until(r.eighths(4))
				about(r, "a bucket", r.take("bucket", 0, l)[0].Remaining, 0.5)
				r.charges("bucket", math.MinInt64, 0, at, l)
				r.remains("bucket", most, l)
				r.adjust("bucket", most, at, l)
				about(r, "a bucket after a late charge", r.take("bucket", 0, l)[0].Remaining, 0.5)
			}, func(r *run) {
				l := ratelimit.SlidingWindow(most, r.window)
				r.admits("sliding", most, l)
				at := r.at
				r.until(r.eighths(10))
				about(r, "a sliding window", r.take("sliding", 0, l)[0].Remaining, 0.25)
				r.charges("sliding", math.MinInt64, 0, at, l)
				r.remains("sliding", most, l)
			})
		},
	},
	{
		name:  "border",
		rules: []int{1, 9},
		rule:  "at the end of a key's window its next window gets exactly n units, and other keys keep what they have counted",
		waits: true,
		check: func(r *run) {
			l := ratelimit.FixedWindow(20, r.window)
			r.admits("key", 20, l)
			r.until(r.eighths(4))
			r.admits("other", 12, l)
			r.until(r.eighths(9))
			if got, _ := r.hammer([]ratelimit.Store{r.store}, "key", 1, l); got != 20 {
				r.problem("%d units were admitted in the next window, want 20", got)
			}
			r.remains("key", 0, l)
			r.remains("other", 8, l)
			r.resets("other", r.eighths(3), l)
		},
	},
	{
		name:  "instants",
		rules: []int{5},
		rule:  "the instants of takes, denials and looks are nanoseconds on one clock, never negative and never earlier than the last",
		waits: true,
		check: func(r *run) {
			l := ratelimit.FixedWindow(2, r.window)
			var last ratelimit.Instant
			next := func(n, want int64) {
				r.until(r.eighths(want))
				last = r.at
				if r.take("key", n, l); r.at < max(0, last) {
					r.problem("an instant is %d, after one of %d", r.at, last)
				}
			}
			next(2, 0)
			first := r.at
			next(0, 0)
			next(1, 1)
			next(0, 2)
			r.about("the time between two instants", time.Duration(r.at-first), r.eighths(2))
			next(1, 4)
			r.about("the time between two instants", time.Duration(r.at-first), r.eighths(4))
		},
	},
	{
		name:  "expiry",
		rules: []int{2, 16},
		rule:  "whatever was done to a key, it is whole again after ResetAfter: no counter stays for ever",
		waits: true,
		check: func(r *run) {
			var parts []func(r *run)
			for _, l := range r.three(4) {
				for _, op := range []struct {
					key string
					do  func(r *run, key string)
				}{
					{"take", func(r *run, key string) {}},
					{"look", func(r *run, key string) { r.remains(key, 0, l) }},
					{"denial", func(r *run, key string) { r.denies(key, 1, l) }},
					{"refund", func(r *run, key string) { r.refunds(key, 1, ratelimit.Now, l) }},
					{"charge", func(r *run, key string) { r.adjust(key, 2, ratelimit.Now, l) }},
					{"changed limit", func(r *run, key string) { r.take(key, 1, withSize(l, 6)) }},
				} {
					parts = append(parts, func(r *run) {
						r.admits(op.key, 4, l)
						op.do(r, op.key)
						r.sleep(r.take(op.key, 0, l)[0].ResetAfter + r.slack)
						r.remains(op.key, 4, l)
						r.refunds(op.key, 2, ratelimit.Now, l) // the key has no counter
						r.admits(op.key, 4, l)
						r.denies(op.key, 1, l)
						r.sleep(r.take(op.key, 0, l)[0].ResetAfter + r.slack)
						r.remains(op.key, 4, l)
					})
				}
			}
			r.lanes(parts...)
		},
	},
}
