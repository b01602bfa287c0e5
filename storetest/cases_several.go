package storetest

import (
	"fmt"
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// Takes under several limits.
var severalCases = []testCase{
	{
		name:  "all-or-none",
		rules: []int{2, 4},
		rule:  "a take that one limit denies takes from none, whichever of them it is",
		check: func(r *run) {
			for tight := range 4 {
				sizes := []int64{10, 10, 10, 10}
				sizes[tight] = 2
				limits := []ratelimit.Limit{
					ratelimit.FixedWindow(sizes[0], r.window), ratelimit.SlidingWindow(sizes[1], r.window),
					ratelimit.TokenBucket(sizes[2], r.window, sizes[2]), ratelimit.FixedWindow(sizes[3], 2*r.window),
				}
				key := fmt.Sprint("key ", tight)
				r.admits(key, 2, limits...)
				for range 3 {
					r.denies(key, 1, limits...)
				}
				for i, l := range limits {
					r.remains(key, sizes[i]-2, l)
				}
			}
		},
	},
	{
		name:  "several-results",
		rules: []int{3, 4},
		rule:  "of a denied take, RetryAfter is 0 for the limits that it fits, and each of the others has its own wait",
		check: func(r *run) {
			fits, short, long := ratelimit.SlidingWindow(10, r.window), ratelimit.FixedWindow(2, r.window), ratelimit.FixedWindow(2, 2*r.window)
			bucket := ratelimit.TokenBucket(4, r.window, 3)
			r.admits("key", 2, fits, short, long, bucket)
			for i, res := range r.take("key", 2, fits, short, long, bucket) {
				want := []struct {
					remaining int64
					retry     time.Duration
				}{{8, 0}, {0, r.window}, {0, 2 * r.window}, {1, r.window / 4}}[i]
				if res.Remaining != want.remaining || (res.RetryAfter == 0) != (want.retry == 0) {
					r.problem("the result of limit %d is %+v, want %+v", i, res, want)
				}
				r.about(fmt.Sprint("RetryAfter of limit ", i), res.RetryAfter, want.retry)
			}
		},
	},
	{
		name:  "never-under-one",
		rules: []int{2, 4},
		rule:  "a cost that one of the limits can never hold has RetryAfter Never there only, and takes from none",
		check: func(r *run) {
			small, large, bucket := ratelimit.FixedWindow(5, r.window), ratelimit.SlidingWindow(10, r.window), ratelimit.TokenBucket(8, r.window, 8)
			for range 2 {
				res := r.take("key", 7, large, small, bucket)
				if res[0].RetryAfter != 0 || res[1].RetryAfter != ratelimit.Never || res[2].RetryAfter != 0 {
					r.problem("RetryAfter should be 0, Never and 0: %+v", res)
				}
				if res[0].Remaining != 10 || res[1].Remaining != 5 || res[2].Remaining != 8 {
					r.problem("all of 10, 5 and 8 units should be left: %+v", res)
				}
			}
		},
	},
	{
		name:  "order",
		rules: []int{4},
		rule:  "each result is that of the limit at its index, in whatever order the limits are",
		check: func(r *run) {
			limits := []ratelimit.Limit{
				ratelimit.TokenBucket(30, 3*r.window, 30), ratelimit.FixedWindow(60, r.window),
				ratelimit.SlidingWindow(40, 4*r.window), ratelimit.FixedWindow(50, 2*r.window),
			}
			taken := int64(0)
			var permute func(chosen, left []ratelimit.Limit)
			permute = func(chosen, left []ratelimit.Limit) {
				if len(left) == 0 {
					taken++
					for i, res := range r.take("key", 1, chosen...) {
						if want := chosen[i].N() - taken; res.Remaining != want {
							r.problem("under %v, result %d has %d remaining, want %d", chosen, i, res.Remaining, want)
						}
					}
				}
				for i, l := range left {
					permute(append(slices.Clone(chosen), l), slices.Delete(slices.Clone(left), i, i+1))
				}
			}
			permute(nil, limits)
		},
	},
	{
		name:  "most-limits",
		rules: []int{4},
		rule:  "a call has up to MaxLimits limits, and each of them counts",
		check: func(r *run) {
			for tight := range ratelimit.MaxLimits {
				var limits []ratelimit.Limit
				for i := range ratelimit.MaxLimits {
					window, n := time.Duration(i+1)*r.window, int64(10+i)
					if i == tight {
						n = 3
					}
					limits = append(limits, []ratelimit.Limit{
						ratelimit.FixedWindow(n, window), ratelimit.SlidingWindow(n, window), ratelimit.TokenBucket(n, window, n),
					}[i%3])
				}
				key := fmt.Sprint("key ", tight)
				r.admits(key, 3, limits...)
				r.denies(key, 1, limits...)
				for _, l := range limits {
					r.remains(key, l.N()-3, l)
				}
			}
		},
	},
	{
		name:  "windows-end-apart",
		rules: []int{4, 7},
		rule:  "the windows of one key begin and end on their own: the end of a short one changes nothing in a long one",
		waits: true,
		check: func(r *run) {
			short, long, other := ratelimit.FixedWindow(5, r.window), ratelimit.FixedWindow(5, 2*r.window), ratelimit.SlidingWindow(5, 2*r.window)
			r.admits("key", 2, short, long, other)
			r.until(r.eighths(9))
			for i, res := range r.take("key", 1, short, long, other) {
				if want := []int64{4, 2, 2}[i]; res.Remaining != want {
					r.problem("under limit %d are %d units left, want %d", i, res.Remaining, want)
				}
			}
			r.resets("key", r.window, short)
			r.resets("key", r.eighths(7), long)
		},
	},
}
