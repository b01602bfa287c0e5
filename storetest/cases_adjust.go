package storetest

import (
	"fmt"
	"math"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// Adjust for units that have just been taken.
var adjustCases = []testCase{
	{
		name:  "refund",
		rules: []int{2},
		rule:  "a refund gives back its units, and never lifts a key above its limit",
		check: func(r *run) {
			for _, l := range r.three(3) {
				r.admits("key", 3, l)
				r.refunds("key", 1, ratelimit.Now, l)
				r.remains("key", 1, l)
				for _, n := range []int64{100, 1<<32 + 1, math.MaxInt64} {
					r.refunds("key", n, ratelimit.Now, l)
					r.remains("key", 3, l)
					r.admits("key", 3, l)
					r.denies("key", 1, l)
				}
				r.charges("key", math.MinInt64, 0, ratelimit.Now, l)
				r.admits("key", 3, l)
				r.denies("key", 1, l)
			}
		},
	},
	{
		name:  "refund-unknown",
		rules: []int{2},
		rule:  "a refund has no effect on a key that has no counter",
		check: func(r *run) {
			for _, l := range r.three(3) {
				r.remains("key", 3, l)
				r.refunds("key", 2, r.at, l)
				if res := r.take("key", 0, l)[0]; res != (ratelimit.Result{Remaining: 3}) {
					r.problem("after a refund of a new key under %v: %+v, want 3 remaining and no waits", l, res)
				}
				r.admits("key", 3, l)
				r.denies("key", 1, l)

				r.admits("reset", 3, l)
				at := r.at
				r.reset("reset", l)
				r.refunds("reset", 2, at, l)
				r.admits("reset", 3, l)
				r.denies("reset", 1, l)
			}
		},
	},
	{
		name:  "refund-several",
		rules: []int{2, 4},
		rule:  "a refund moves every limit that it is given, and no other",
		check: func(r *run) {
			limits := append(r.three(3), ratelimit.FixedWindow(3, 2*r.window))
			r.admits("key", 3, limits...)
			r.refunds("key", 2, r.at, limits[2], limits[0])
			for i, l := range limits {
				r.remains("key", []int64{2, 0, 2, 0}[i], l)
			}
			r.refunds("key", 1, r.at, limits...)
			for i, l := range limits {
				r.remains("key", []int64{3, 1, 3, 1}[i], l)
			}
		},
	},
	{
		name:  "charge",
		rules: []int{1},
		rule:  "a charge takes units without asking, also of a key without a counter, and returns how many",
		check: func(r *run) {
			for _, l := range r.three(5) {
				r.admits("key", 1, l)
				r.charges("key", 2, 2, ratelimit.Now, l)
				r.remains("key", 2, l)
				r.charges("new", 2, 2, ratelimit.Now, l)
				r.remains("new", 3, l)
				r.admits("new", 3, l)
				r.denies("new", 1, l)
			}
		},
	},
	{
		name:  "charge-above",
		rules: []int{1, 6},
		rule:  "a charge above what is left takes what is left, and returns that; the limit is not exceeded",
		check: func(r *run) {
			for _, l := range r.three(5) {
				for i, n := range []int64{4, 1 << 32, 1<<53 + 1, math.MaxInt64 - 1, math.MaxInt64} {
					key := fmt.Sprint("key ", i)
					r.admits(key, 2, l)
					r.charges(key, n, 3, ratelimit.Now, l)
					r.charges(key, 1, 0, ratelimit.Now, l)
					res := r.take(key, 1, l)[0]
					if res.Remaining != 0 || res.RetryAfter > l.Window()+max(1, r.resolution) {
						r.problem("after a charge of %d units under %v: %+v", n, l, res)
					}
					r.refunds(key, 1, ratelimit.Now, l)
					r.remains(key, 1, l)
				}
			}
		},
	},
	{
		name:  "charge-several",
		rules: []int{4},
		rule:  "each limit is charged as far as it has room, and the least of that is returned",
		check: func(r *run) {
			narrow, wide, bucket := ratelimit.FixedWindow(2, r.window), ratelimit.SlidingWindow(10, 2*r.window), ratelimit.TokenBucket(4, r.window, 4)
			r.charges("key", 3, 2, ratelimit.Now, wide, narrow, bucket)
			r.remains("key", 7, wide)
			r.remains("key", 0, narrow)
			r.remains("key", 1, bucket)
			r.charges("key", 3, 1, ratelimit.Now, bucket, wide)
			r.remains("key", 4, wide)
			r.charges("key", 3, 0, ratelimit.Now, wide, narrow)
			r.remains("key", 1, wide)
		},
	},
	{
		name:  "charge-lowered",
		rules: []int{1, 7},
		rule:  "a charge under a limit that was lowered below what is counted changes nothing; a refund gives back",
		check: func(r *run) {
			for _, l := range r.three(5) {
				lowered := withSize(l, 2)
				r.admits("key", 4, l)
				r.charges("key", 1, 0, ratelimit.Now, lowered)
				r.remains("key", 1, l)
				r.refunds("key", 1, ratelimit.Now, lowered)
				r.remains("key", 0, lowered)
				r.remains("key", 2, l)
			}
		},
	},
	{
		name:  "adjust-by-none",
		rules: []int{2},
		rule:  "an Adjust by 0 units changes nothing, and opens no window",
		waits: true,
		check: func(r *run) {
			r.laneFor(r.three(2), func(r *run, l ratelimit.Limit) {
				r.charges("key", 0, 0, ratelimit.Now, l)
				r.until(r.eighths(2))
				r.admits("key", 1, l)
				whole := map[string]int64{"fixed": 8, "sliding": 8, "bucket": 4}[l.Algorithm()]
				r.resets("key", r.eighths(whole), l)
				r.charges("key", 0, 0, ratelimit.Now, l)
				r.remains("key", 1, l)
			})
		},
	},
	{
		name:  "now",
		rules: []int{2, 5},
		rule:  "Now, and each instant that is still to come, is the instant at which the store gets to see it",
		check: func(r *run) {
			for _, l := range r.three(8) {
				r.admits("key", 8, l)
				for i, at := range []ratelimit.Instant{ratelimit.Now, ratelimit.Now - 1, math.MaxInt64 / 2, r.later()} {
					r.refunds("key", 1, at, l)
					r.remains("key", int64(i)+1, l)
				}
				for i, at := range []ratelimit.Instant{ratelimit.Now, ratelimit.Now - 1, math.MaxInt64 / 2, r.later()} {
					r.charges("key", 1, 1, at, l)
					r.remains("key", 3-int64(i), l)
				}
			}
		},
	},
}

// A late row is an Adjust for units that were taken some time ago. It takes first units at
// 0 and remembers the instant. If first is 0, that is a look: the units were counted
// elsewhere. It takes second units at again. At when, it adjusts by n for units of the first
// instant. All times are in eighths of the window.
type late struct {
	what             string
	first            int64
	again, second    int64
	when, n          int64
	charged          int64 // that Adjust must return
	left, wholeAfter int64 // Remaining and ResetAfter of a look after that
}

// adjustsLate returns the check of a case that consists of late rows under one limit.
func adjustsLate(limit func(window time.Duration) ratelimit.Limit, rows []late) func(r *run) {
	return func(r *run) {
		l := limit(r.window)
		var parts []func(r *run)
		for _, row := range rows {
			parts = append(parts, func(r *run) {
				r.admits(row.what, row.first, l)
				at := r.at
				if row.second > 0 {
					r.until(r.eighths(row.again))
					r.admits(row.what, row.second, l)
				}
				r.until(r.eighths(row.when))
				r.charges(row.what, row.n, row.charged, at, l)
				r.remains(row.what, row.left, l)
				r.resets(row.what, r.eighths(row.wholeAfter), l)
				r.admits(row.what, row.left, l)
				r.denies(row.what, 1, l)
			})
		}
		r.lanes(parts...)
	}
}

func fixed5(w time.Duration) ratelimit.Limit   { return ratelimit.FixedWindow(5, w) }
func sliding8(w time.Duration) ratelimit.Limit { return ratelimit.SlidingWindow(8, w) }
func bucket4(w time.Duration) ratelimit.Limit  { return ratelimit.TokenBucket(4, w, 4) }

// Adjust for units that were taken some time ago.
var lateCases = []testCase{
	{
		name:  "late-charge-fixed",
		rules: []int{1, 5},
		rule: "a late charge counts in the fixed window in which its units were taken, or would have opened; " +
			"if that has closed, it has no effect",
		waits: true,
		check: adjustsLate(fixed5, []late{
			{what: "in its window", first: 1, when: 4, n: 2, charged: 2, left: 2, wholeAfter: 4},
			{what: "in its window, others since", first: 1, again: 2, second: 1, when: 4, n: 2, charged: 2, left: 1, wholeAfter: 4},
			{what: "in its window, more than fits", first: 1, when: 4, n: math.MaxInt64, charged: 4, left: 0, wholeAfter: 4},
			{what: "no counter, its window would be open", when: 4, n: 2, charged: 2, left: 3, wholeAfter: 4},
			{what: "no counter, more than fits", when: 6, n: math.MaxInt64, charged: 5, left: 0, wholeAfter: 2},
			{what: "no counter, its window would have closed", when: 12, n: 2, left: 5},
			{what: "half a window late", first: 2, when: 12, n: 2, left: 5},
			{what: "several windows late", first: 2, when: 20, n: 2, left: 5},
			{what: "half a window late, the next is open", first: 2, again: 9, second: 1, when: 12, n: 2, left: 4, wholeAfter: 5},
			{what: "several windows late, another is open", first: 2, again: 18, second: 1, when: 20, n: 2, left: 4, wholeAfter: 6},
			{what: "its window would include the open one", again: 3, second: 1, when: 5, n: 2, charged: 2, left: 2, wholeAfter: 6},
			{what: "its window would have closed in the open one", again: 5, second: 1, when: 10, n: 2, left: 4, wholeAfter: 3},
		}),
	},
	{
		name:  "late-charge-sliding",
		rules: []int{1, 5},
		rule:  "a late charge counts in the sliding window in which its units were taken, and weighs as they do; before that window it has no effect",
		waits: true,
		check: adjustsLate(sliding8, []late{
			{what: "in its window", first: 2, when: 4, n: 2, charged: 2, left: 4, wholeAfter: 10},
			{what: "in its window, more than fits", first: 2, when: 4, n: math.MaxInt64, charged: 6, left: 0, wholeAfter: 11},
			{what: "no counter, in its window", when: 4, n: 4, charged: 4, left: 4, wholeAfter: 10},
			{what: "no counter, from the window before", when: 11, n: 4, charged: 4, left: 6, wholeAfter: 3},
			{what: "from the window before", first: 2, again: 9, second: 1, when: 11, n: 2, charged: 2, left: 5, wholeAfter: 5},
			{what: "two windows late, units in a row", first: 2, again: 9, second: 2, when: 19, n: 4, left: 7, wholeAfter: 1},
			{what: "two windows late, another is open", first: 2, again: 17, second: 1, when: 19, n: 4, left: 7, wholeAfter: 6},
			{what: "several windows late", first: 2, when: 20, n: 4, left: 8},
			{what: "no counter, several windows late", when: 20, n: 4, left: 8},
		}),
	},
	{
		name:  "late-charge-bucket",
		rules: []int{1, 5},
		rule:  "a late charge fills a bucket only with what would not have leaked since its units were taken",
		waits: true,
		check: adjustsLate(bucket4, []late{
			{what: "no counter, a part has leaked", when: 5, n: 4, charged: 1, left: 2, wholeAfter: 3},
			{what: "no counter, all has leaked", when: 9, n: 2, left: 4},
			{what: "a part has leaked", again: 1, second: 3, when: 5, n: 4, charged: 1, left: 1, wholeAfter: 5},
			{what: "all has leaked", first: 2, again: 9, second: 3, when: 12, n: 2, left: 2, wholeAfter: 3},
			{what: "more than fits", first: 3, when: 3, n: math.MaxInt64, charged: 2, left: 0, wholeAfter: 8},
			{what: "several windows late", first: 2, when: 20, n: 2, left: 4},
			{what: "several windows late, units since", first: 2, again: 17, second: 3, when: 20, n: 2, left: 2, wholeAfter: 3},
		}),
	},
	{
		name:  "late-refund-fixed",
		rules: []int{2, 5},
		rule:  "a late refund gives back in the fixed window in which its units were taken, never in a later one",
		waits: true,
		check: adjustsLate(fixed5, []late{
			{what: "in its window", first: 3, when: 4, n: -1, left: 3, wholeAfter: 4},
			{what: "in its window, others since", first: 3, again: 2, second: 1, when: 4, n: -2, left: 3, wholeAfter: 4},
			{what: "half a window late", first: 3, when: 12, n: -3, left: 5},
			{what: "several windows late", first: 3, when: 20, n: -3, left: 5},
			{what: "half a window late, the next is open", first: 3, again: 9, second: 2, when: 12, n: -3, left: 3, wholeAfter: 5},
			{what: "several windows late, another is open", first: 3, again: 18, second: 2, when: 20, n: -3, left: 3, wholeAfter: 6},
			{what: "units from before the open window", again: 3, second: 2, when: 5, n: -1, left: 3, wholeAfter: 6},
		}),
	},
	{
		name:  "late-refund-sliding",
		rules: []int{2, 5},
		rule:  "a late refund gives back in the sliding window in which its units were taken, never in a later one",
		waits: true,
		check: adjustsLate(sliding8, []late{
			{what: "in its window", first: 4, when: 4, n: -2, left: 6, wholeAfter: 8},
			{what: "from the window before", first: 6, again: 9, second: 1, when: 11, n: -2, left: 5, wholeAfter: 5},
			{what: "from the window before, which had less", first: 2, again: 9, second: 2, when: 11, n: -3, left: 6, wholeAfter: 9},
			{what: "two windows late, another is open", first: 2, again: 17, second: 2, when: 19, n: -2, left: 6, wholeAfter: 10},
			{what: "several windows late", first: 4, when: 20, n: -4, left: 8},
		}),
	},
	{
		name:  "late-refund-bucket",
		rules: []int{2, 5},
		rule:  "a late refund takes from a bucket only what has not leaked since its units were taken",
		waits: true,
		check: adjustsLate(bucket4, []late{
			{what: "a part has leaked", first: 4, again: 5, second: 2, when: 5, n: -4, left: 2, wholeAfter: 4},
			{what: "all has leaked", first: 2, again: 9, second: 3, when: 12, n: -2, left: 2, wholeAfter: 3},
			{what: "nothing is left", first: 4, when: 5, n: -4, left: 4},
			{what: "several windows late", first: 4, when: 20, n: -4, left: 4},
			{what: "several windows late, units since", first: 4, again: 17, second: 3, when: 20, n: -4, left: 2, wholeAfter: 3},
		}),
	},
	{
		name:  "late-under-several",
		rules: []int{4, 5},
		rule:  "a late Adjust reaches each limit as far as its units still count there",
		waits: true,
		check: func(r *run) {
			short, long, bucket := fixed5(r.window), fixed5(4*r.window), bucket4(r.window)
			r.lanes(func(r *run) {
				r.admits("charge", 1, short, long, bucket)
				at := r.at
				r.until(r.eighths(12))
				r.charges("charge", 2, 0, at, short, long, bucket)
				r.remains("charge", 5, short)
				r.remains("charge", 2, long)
				r.remains("charge", 4, bucket)
			}, func(r *run) {
				r.admits("refund", 3, bucket, long, short)
				at := r.at
				r.until(r.eighths(11))
				r.admits("refund", 2, bucket, long, short)
				r.until(r.eighths(12))
				r.refunds("refund", 3, at, bucket, long, short)
				r.remains("refund", 3, short)
				r.remains("refund", 3, long)
				r.remains("refund", 2, bucket)
			})
		},
	},
}
