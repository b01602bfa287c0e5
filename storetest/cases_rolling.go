package storetest

import (
	"fmt"
	"math"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// Rolling windows.
var rollingCases = []testCase{
	{
		name:    "rolling",
		rules:   []int{1, 20},
		rule:    "a rolling window admits at most n units in any interval as long as the window: each unit leaves one window after it came",
		waits:   true,
		rolling: true,
		check: func(r *run) {
			kinds, l := r.store.(ratelimit.KindStore).Kinds(), ratelimit.Rolling(4, r.window)
			r.admits("key", 1, l)
			r.until(r.eighths(4))
			r.admits("key", 3, l)
			r.denies("key", 1, l)
			r.until(r.eighths(7))
			r.denies("key", 1, l)
			r.remains("key", 0, l)
			r.until(r.eighths(9)) // the first unit has left
			r.denies("key", 2, l)
			r.admits("key", 1, l)
			r.denies("key", 1, l)
			r.until(r.eighths(11))
			r.denies("key", 1, l)
			r.until(r.eighths(13)) // and the next three
			r.admits("key", 3, l)
			r.denies("key", 1, l)
			if now := r.store.(ratelimit.KindStore).Kinds(); now != kinds {
				r.problem("Kinds() was %b and is now %b", kinds, now)
			}
		},
	},
	{
		name:    "rolling-ends",
		rules:   []int{3, 20},
		rule:    "a unit counts until one window after it came, exclusive, and RetryAfter is until then",
		waits:   true,
		rolling: true,
		check: func(r *run) {
			l := ratelimit.Rolling(2, r.window)
			r.admits("key", 2, l)
			retry := r.take("key", 2, l)[0].RetryAfter
			r.about("RetryAfter of units that have just been taken", retry, r.window)
			r.sleep(retry - r.step())
			r.denies("key", 1, l)
			r.sleep(r.step())
			r.admits("key", 2, l)
		},
	},
	{
		name:    "rolling-waits",
		rules:   []int{3, 20},
		rule:    "RetryAfter is until enough of the oldest units have left, MoreAfter until the first leaves, ResetAfter until all have",
		waits:   true,
		rolling: true,
		check: func(r *run) {
			l := ratelimit.Rolling(5, r.window)
			r.admits("key", 2, l)
			r.until(r.eighths(2))
			r.admits("key", 1, l)
			r.until(r.eighths(4))
			r.admits("key", 1, l)
			for asked, retry := range []int64{0, 0, 4, 4, 6, 8} { // in eighths of the window
				if asked == 1 {
					continue // it would be admitted
				}
				res := r.take("key", int64(asked), l)[0]
				what := fmt.Sprintf(" of %d units under %v", asked, l)
				r.about("RetryAfter"+what, res.RetryAfter, r.eighths(retry))
				r.about("MoreAfter"+what, res.MoreAfter, r.eighths(4))
				r.about("ResetAfter"+what, res.ResetAfter, r.eighths(8))
			}
		},
	},
	{
		name:    "rolling-refund",
		rules:   []int{2, 20},
		rule:    "a refund gives back units of the instant that it names, and none of another one; Now gives back the youngest",
		waits:   true,
		rolling: true,
		check: func(r *run) {
			l := ratelimit.Rolling(6, r.window)
			var at [3]ratelimit.Instant // two units each
			for i := range at {
				r.until(r.eighths(2 * int64(i)))
				r.admits("key", 2, l)
				at[i] = r.at
			}
			r.refunds("key", 1, at[1]+ratelimit.Instant(time.Millisecond), l) // a store may round instants
			r.remains("key", 0, l)
			r.refunds("key", 3, at[1], l) // of which two were taken then
			r.remains("key", 2, l)
			r.refunds("key", 1, at[1], l)
			r.remains("key", 2, l)
			r.refunds("key", 1, at[0], l)
			r.remains("key", 3, l)
			r.about("MoreAfter when one of the oldest units is left", r.take("key", 0, l)[0].MoreAfter, r.eighths(4))
			r.resets("key", r.eighths(8), l)
			r.refunds("key", 2, ratelimit.Now, l)
			r.remains("key", 5, l)
			r.resets("key", r.eighths(4), l)
			r.admits("key", 1, l)
			r.until(r.eighths(10))
			r.refunds("key", 1, at[0], l) // they have left
			r.remains("key", 5, l)
			r.refunds("key", 1, r.later(), l)
			r.refunds("key", math.MaxInt64, ratelimit.Now, l)
			r.charges("key", math.MinInt64, 0, ratelimit.Now, l)
			r.remains("key", 6, l)
		},
	},
	{
		name:    "rolling-charge",
		rules:   []int{2, 20},
		rule:    "charged units count from their instant, and there is room for n in all",
		waits:   true,
		rolling: true,
		check: func(r *run) {
			l, other := ratelimit.Rolling(4, r.window), ratelimit.FixedWindow(9, 4*r.window)
			r.admits("key", 1, l)
			began := r.at
			r.until(r.eighths(4))
			r.charges("key", 1, 1, ratelimit.Now, l, other)
			r.charges("key", 1, 1, began, l)
			r.resets("key", r.eighths(8), l)
			res := r.take("key", 3, l)[0] // two of three must leave
			r.about("RetryAfter when two units are of the first instant", res.RetryAfter, r.eighths(4))
			r.charges("key", 9, 1, r.later(), l, other)
			r.charges("key", 1, 0, ratelimit.Now, l)
			r.remains("key", 0, l)
			r.remains("key", 0, other)
			r.until(r.eighths(10))
			r.remains("key", 2, l)
			r.charges("key", 1, 0, began, l)
			r.charges("new", 1, 0, began, l)
			r.remains("key", 2, l)
			r.remains("new", 4, l)
		},
	},
	{
		name:    "rolling-n",
		rules:   []int{7, 20},
		rule:    "under another n what was counted is counted, also if it is more than n; another window is another counter",
		rolling: true,
		check: func(r *run) {
			l := ratelimit.Rolling(6, r.window)
			r.admits("key", 5, l)
			for n, left := range map[int64]int64{1000: 995, 6: 1, 5: 0, 4: 0, 1: 0} {
				r.remains("key", left, ratelimit.Rolling(n, r.window).Named("other"))
			}
			low := ratelimit.Rolling(2, r.window)
			r.denies("key", 1, low)
			r.charges("key", 1, 0, ratelimit.Now, low)
			r.refunds("key", 2, ratelimit.Now, low)
			r.remains("key", 0, low)
			r.remains("key", 3, l)
			for _, other := range append(r.three(6), withWindow(l, r.window+time.Millisecond), withWindow(l, 2*r.window)) {
				r.remains("key", 6, other)
				r.admits("key", 1, other)
			}
			r.remains("key", 3, l)
			r.remains("another", 6, l)
			r.reset("key", l)
			r.remains("key", 6, l)
		},
	},
	{
		name:    "rolling-denied",
		rules:   []int{2, 20},
		rule:    "a denied take changes nothing, nor does a look; a cost above n is denied with RetryAfter Never",
		rolling: true,
		check: func(r *run) {
			l := ratelimit.Rolling(5, r.window)
			r.refunds("key", 1, ratelimit.Now, l)
			r.admits("key", 3, l)
			before := r.take("key", 3, l)[0]
			for range 10 {
				r.denies("key", 3, l)
				r.remains("key", 2, l)
				for _, n := range []int64{6, 1 << 31, math.MaxInt64} {
					if res := r.take("key", n, l)[0]; res.RetryAfter != ratelimit.Never {
						r.problem("%d units under %v: %+v, want RetryAfter Never", n, l, res)
					}
				}
			}
			after := r.take("key", 3, l)[0]
			r.about("RetryAfter after denials", after.RetryAfter, before.RetryAfter)
			r.about("ResetAfter after denials", after.ResetAfter, before.ResetAfter)
			r.admits("key", 2, l)
		},
	},
	{
		name:    "rolling-several",
		rules:   []int{4, 20},
		rule:    "units are taken under a rolling window and all other limits of a call, or under none",
		rolling: true,
		check: func(r *run) {
			for _, other := range r.three(3) {
				key, l := other.Algorithm(), ratelimit.Rolling(5, r.window)
				r.admits(key, 2, l, other)
				r.denies(key, 2, l, other)
				r.denies(key, 2, other, l)
				r.remains(key, 3, l)
				r.remains(key, 1, other)
				r.admits(key, 2, l)
				r.denies(key, 2, withSize(other, 9), l)
				r.remains(key, 1, other)
				r.charges(key, 3, 1, ratelimit.Now, other, l)
				r.remains(key, 0, l)
			}
		},
	},
	{
		name:    "rolling-concurrent",
		rules:   []int{1, 4, 20},
		rule:    "exactly n units are admitted, however many goroutines ask",
		rolling: true,
		check: func(r *run) {
			l := ratelimit.Rolling(100, r.window)
			if took, _ := r.hammer([]ratelimit.Store{r.store}, "key", 1, l); took != 100 {
				r.problem("%d units were admitted under %v", took, l)
			}
			tight := ratelimit.FixedWindow(60, r.window)
			if took, _ := r.hammer([]ratelimit.Store{r.store}, "both", 1, l, tight); took != 60 {
				r.problem("%d units were admitted under %v and %v", took, l, tight)
			}
			r.remains("both", 40, l)
		},
	},
	{
		name:    "rolling-block",
		rules:   []int{19, 20},
		rule:    "a rolling window can have Block, and pending units excuse a denial",
		rolling: true,
		blocks:  true,
		check: func(r *run) {
			l := ratelimit.Rolling(4, r.window).Block(3*r.window, 9*r.window)
			r.admits("key", 4, l)
			pending := []ratelimit.Pending{{Units: 1, At: r.at}, {Units: 1, At: r.at}}
			if res := r.takePending("key", 2, pending, l)[0]; res.RetryAfter == 0 || res.Blocked {
				r.problem("2 units, with 2 pending units, under %v: %+v, want a denial without a block", l, res)
			}
			if res := r.takePending("key", 3, pending, l)[0]; !res.BlockBegan {
				r.problem("3 units, with 2 pending units, under %v: %+v, want a block", l, res)
			}
			r.blocked("key", 3*r.window, l)
			r.refunds("key", 4, ratelimit.Now, l)
			r.blocked("key", 3*r.window, l)
			r.reset("key", l)
			r.admits("key", 4, l)
			r.begins("key", 1, 3*r.window, l)
		},
	},
	{
		name:    "rolling-extremes",
		rules:   []int{6, 20},
		rule:    "the longest and the shortest windows and the largest n are counted as all others",
		rolling: true,
		check: func(r *run) {
			const years = 50 * 365 * 24 * time.Hour
			for _, l := range []ratelimit.Limit{ratelimit.Rolling(ratelimit.MaxRolling, years), ratelimit.Rolling(1, years), ratelimit.Rolling(ratelimit.MaxRolling, r.window)} {
				key := l.String()
				for left := l.N(); left > 0; left -= min(left, 100) {
					r.admits(key, min(left, 100), l)
				}
				r.denies(key, 1, l)
				if res := r.take(key, l.N(), l)[0]; res.RetryAfter <= 0 || res.RetryAfter > l.Window() {
					r.problem("%d units under %v: %+v, want a RetryAfter of up to the window", l.N(), l, res)
				}
				r.refunds(key, l.N(), r.at, l)
				r.refunds(key, l.N(), ratelimit.Now, l)
				r.remains(key, l.N(), l)
			}
		},
	},
}
