package storetest

import (
	"fmt"
	"math"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// How blocks start, and what they deny.
var blockCases = []testCase{
	{
		name:   "block",
		rules:  []int{19},
		rule:   "the first denial under a limit with Block blocks the key for the first duration; without Block, none does",
		blocks: true,
		check: func(r *run) {
			kinds := r.store.(ratelimit.KindStore).Kinds()
			for _, l := range r.three(2) {
				blocking := l.Block(3*r.window, 9*r.window)
				r.admits("key", 2, blocking)
				r.free("key", blocking)
				r.begins("key", 1, 3*r.window, blocking)
				r.blocked("key", 3*r.window, blocking)
				r.admits("without Block", 2, l)
				r.denies("without Block", 1, l)
				r.free("without Block", l, ratelimit.FixedWindow(2, 2*r.window))
			}
			if now := r.store.(ratelimit.KindStore).Kinds(); now != kinds {
				r.problem("Kinds() was %b and is now %b", kinds, now)
			}
		},
	},
	{
		name:   "block-results",
		rules:  []int{3, 19},
		rule:   "during a block nothing remains, and each wait is as without the block, but not before its end",
		blocks: true,
		check: func(r *run) {
			fixed, sliding, bucket := ratelimit.FixedWindow(4, r.window), ratelimit.SlidingWindow(4, r.window), ratelimit.TokenBucket(4, r.window, 4)
			for i, tc := range []struct {
				limit              ratelimit.Limit
				taken, left, asked int64
				retry, more, sets  int64 // as left, in eighths of the window; a negative one is Never
			}{
				{fixed, 0, 2, 4, 2, 2, 2},
				{fixed, 1, 2, 0, 0, 2, 8},
				{fixed, 1, 2, 3, 2, 2, 8},
				{fixed, 1, 2, 4, 8, 2, 8},
				{fixed, 1, 12, 4, 12, 12, 12},
				{fixed, 1, 12, 5, -1, 12, 12},
				{sliding, 4, 2, 1, 8, 8, 14},
				{sliding, 4, 10, 1, 10, 10, 14},
				{sliding, 4, 10, 4, 14, 10, 14},
				{bucket, 4, 4, 0, 0, 4, 8},
				{bucket, 4, 4, 1, 4, 4, 8},
				{bucket, 4, 4, 3, 6, 4, 8},
				{bucket, 4, 4, 5, -1, 4, 8},
				{bucket, 2, 1, 2, 1, 1, 4},
			} {
				key := fmt.Sprint("key ", i)
				r.admits(key, tc.taken, tc.limit)
				r.block(key, ratelimit.Block{Left: r.eighths(tc.left)}, tc.limit)
				res := r.take(key, tc.asked, tc.limit)[0]
				what := fmt.Sprintf(" of %d units under %v, of which %d were taken, in a block of %v,", tc.asked, tc.limit, tc.taken, r.eighths(tc.left))
				if !res.Blocked {
					r.problem("Blocked%s is not set", what)
				}
				if tc.retry < 0 {
					if res.RetryAfter != ratelimit.Never {
						r.problem("RetryAfter%s is %v, want Never", what, res.RetryAfter)
					}
				} else {
					r.about("RetryAfter"+what, res.RetryAfter, r.eighths(tc.retry))
				}
				r.about("MoreAfter"+what, res.MoreAfter, r.eighths(tc.more))
				r.about("ResetAfter"+what, res.ResetAfter, r.eighths(tc.sets))
			}
		},
	},
	{
		name:   "block-denies",
		rules:  []int{2, 19},
		rule:   "a denial during a block changes nothing: it does not extend the block, and no limit of the call counts",
		blocks: true,
		check: func(r *run) {
			other := ratelimit.FixedWindow(9, 2*r.window)
			for _, l := range r.three(5) {
				key, blocking := l.Algorithm(), l.Block(3*r.window, 9*r.window)
				r.admits(key, 5, blocking, other)
				r.begins(key, 1, 3*r.window, blocking)
				for i := range 20 {
					if res := r.take(key, []int64{1, 3, 6}[i%3], other, blocking)[1]; !res.Blocked || res.BlockBegan {
						r.problem("denial %d during a block under %v: %+v", i+1, blocking, res)
					}
				}
				r.blocked(key, 3*r.window, blocking)
				r.remains(key, 4, other)
				r.free(key, other)
			}
		},
	},
	{
		name:   "block-look",
		rules:  []int{2, 19},
		rule:   "a look is admitted during a block, and starts none",
		blocks: true,
		check: func(r *run) {
			for _, l := range r.three(2) {
				blocking := l.Block(3*r.window, 9*r.window)
				r.admits("key", 2, blocking)
				for range 3 {
					r.free("key", blocking)
				}
				r.begins("key", 1, 3*r.window, blocking)
				for range 3 {
					if res := r.take("key", 0, blocking)[0]; !res.Blocked {
						r.problem("a look during a block under %v: %+v, want Blocked", blocking, res)
					}
				}
				r.blocked("key", 3*r.window, blocking)
			}
		},
	},
	{
		name:   "block-never",
		rules:  []int{2, 19},
		rule:   "a cost that one of the limits can never hold starts no block, under this limit or another",
		blocks: true,
		check: func(r *run) {
			for _, l := range r.three(5) {
				key, blocking := l.Algorithm(), l.Block(3*r.window)
				large := ratelimit.FixedWindow(10, 3*r.window).Block(3 * r.window)
				r.admits(key, 4, large, blocking)
				for _, n := range []int64{6, 7, math.MaxInt64} { // 7 do not fit under the large limit now
					r.denies(key, n, blocking)
					r.denies(key, n, blocking, large)
					r.denies(key, n, large, blocking)
				}
				r.free(key, blocking, large)
				r.admits(key, 1, blocking)
				r.begins(key, 1, 3*r.window, blocking)
			}
		},
	},
	{
		name:   "block-counter",
		rules:  []int{7, 19},
		rule:   "a block belongs to the counter: another n, burst or name does not lift it, nor does a limit without Block",
		blocks: true,
		check: func(r *run) {
			for _, l := range r.three(2) {
				r.admits("key", 2, l)
				r.begins("key", 1, 3*r.window, l.Block(3*r.window))
				for _, other := range []ratelimit.Limit{l, l.Named("other"), withSize(l, 9), withSize(l, 9).Block(9 * r.window)} {
					r.blocked("key", 3*r.window, other)
				}
				if l.Algorithm() == "bucket" {
					r.blocked("key", 3*r.window, ratelimit.TokenBucket(2, r.window, 9))
				}
			}
		},
	},
	{
		name:   "block-elsewhere",
		rules:  []int{8, 9, 19},
		rule:   "a block denies under no other algorithm or window, for no other key, and at no other prefix",
		blocks: true,
		check: func(r *run) {
			for _, l := range r.three(2) {
				key := l.Algorithm()
				r.admits(key, 2, l)
				r.begins(key, 1, 3*r.window, l.Block(3*r.window))
				for _, other := range r.three(2) {
					if other != l {
						r.admits(key, 2, other)
					}
					r.admits(key, 2, withWindow(other, r.window+time.Millisecond))
				}
				r.admits(key+"2", 2, l)
				r.admits("block", 2, l)
				here := r.store
				r.store = r.newStore(r.t, "storetest:"+key+":")
				r.admits(key, 2, l)
				r.store = here
				r.blocked(key, 3*r.window, l)
			}
		},
	},
	{
		name:   "block-adjust",
		rules:  []int{2, 19},
		rule:   "an Adjust neither starts a block nor moves nor lifts one, but moves the counter",
		blocks: true,
		check: func(r *run) {
			for _, l := range r.three(4) {
				blocking := l.Block(r.eighths(2), 9*r.window)
				r.charges("charged", 4, 4, ratelimit.Now, blocking)
				r.charges("charged", 4, 0, ratelimit.Now, blocking)
				r.free("charged", blocking)

				// How long 4 units have to wait shows what is counted beneath the block.
				wait := func(eighths int64) {
					res := r.take("key", 4, blocking)[0]
					r.about(fmt.Sprintf("RetryAfter of 4 units during a block under %v", l), res.RetryAfter, r.eighths(eighths))
					if !res.Blocked || res.BlockBegan {
						r.problem("after an Adjust under %v: %+v, want Blocked", l, res)
					}
				}
				whole := map[string]int64{"fixed": 8, "sliding": 14, "bucket": 8}[l.Algorithm()]
				r.admits("key", 4, blocking)
				at := r.at
				r.block("key", ratelimit.Block{Left: r.eighths(2)}, blocking)
				wait(whole)
				r.refunds("key", 4, at, blocking)
				wait(2)
				r.refunds("key", 4, ratelimit.Now, blocking)
				wait(2)
				r.charges("key", 9, 4, ratelimit.Now, blocking)
				wait(whole)
			}
		},
	},
	{
		name:   "block-reset",
		rules:  []int{9, 19},
		rule:   "a reset lifts the block of a counter and forgets its ladder, and that of no other counter or key",
		blocks: true,
		check: func(r *run) {
			limits := r.three(2)
			for _, key := range []string{"key", "other"} {
				for _, l := range limits {
					r.admits(key, 2, l)
					r.begins(key, 1, 3*r.window, l.Block(3*r.window, 9*r.window))
				}
			}
			for i, l := range limits {
				r.reset("key", l)
				for _, other := range limits[i+1:] {
					r.blocked("key", 3*r.window, other)
				}
				r.blocked("other", 3*r.window, l)
				if res := r.take("key", 0, l)[0]; res != (ratelimit.Result{Remaining: 2}) {
					r.problem("after a reset under %v: %+v, want 2 remaining, no waits and no block", l, res)
				}
				r.admits("key", 2, l)
				r.begins("key", 1, 3*r.window, l.Block(3*r.window, 9*r.window))
			}
		},
	},
	{
		name:   "block-pending",
		rules:  []int{19},
		rule:   "a denial that there would not be without the pending units is a denial, but starts no block",
		blocks: true,
		check: func(r *run) {
			for _, l := range r.three(4) {
				blocking := l.Block(3 * r.window)
				for i, tc := range []struct {
					pending []int64
					asked   int64
					blocks  bool
				}{
					{nil, 1, true},
					{[]int64{0}, 1, true},
					{[]int64{1}, 1, false},
					{[]int64{1}, 2, true},
					{[]int64{1, 2}, 2, false},
					{[]int64{2, 1}, 2, false},
					{[]int64{1, 1}, 3, true},
					{[]int64{3}, 3, false},
					{[]int64{4}, 4, false},
					{[]int64{math.MaxInt64, math.MaxInt64}, 4, false},
				} {
					key := fmt.Sprint("key ", i)
					r.admits(key, 4, blocking)
					var pending []ratelimit.Pending
					for _, units := range tc.pending {
						pending = append(pending, ratelimit.Pending{Units: units, At: r.at})
					}
					for range 2 {
						res := r.takePending(key, tc.asked, pending, blocking)[0]
						if res.RetryAfter == 0 || res.Blocked != tc.blocks {
							r.problem("%d units under %v, with pending units %v: %+v, want a denial and Blocked %v", tc.asked, blocking, tc.pending, res, tc.blocks)
						}
					}
					if !tc.blocks {
						r.begins(key, 1, 3*r.window, blocking)
					}
				}
				r.takePending("takes", 3, []ratelimit.Pending{{Units: 2, At: r.at}}, blocking)
				r.remains("takes", 1, blocking)
				r.takePending("takes", 0, []ratelimit.Pending{{Units: 2, At: r.at}}, blocking)
				r.takePending("takes", 5, nil, blocking) // can never fit
				r.free("takes", blocking)
				r.remains("takes", 1, blocking)
			}
		},
	},
	{
		name:   "block-concurrent",
		rules:  []int{1, 19},
		rule:   "one of the denials from many goroutines starts the block, and exactly n units are admitted before",
		blocks: true,
		check: func(r *run) {
			for _, l := range r.three(100) {
				took, began := r.hammer([]ratelimit.Store{r.store}, "key", 1, l.Block(3*r.window, 9*r.window))
				if took != 100 || began != 1 {
					r.problem("%d units were admitted under %v, and %d denials have started a block; want 100 and 1", took, l, began)
				}
				r.blocked("key", 3*r.window, l)
			}
		},
	},
	{
		name:   "block-extremes",
		rules:  []int{6, 19},
		rule:   "no arithmetic overflows with the longest blocks and windows, nor with the shortest",
		blocks: true,
		check: func(r *run) {
			const years = 50 * 365 * 24 * time.Hour
			for _, l := range []ratelimit.Limit{
				ratelimit.FixedWindow(1, years), ratelimit.SlidingWindow(1, years), ratelimit.TokenBucket(1, years, 1),
				ratelimit.FixedWindow(1, time.Hour), ratelimit.TokenBucket(1, time.Hour, 1),
			} {
				blocking := l.Block(years, years, years, years)
				key := blocking.String()
				r.admits(key, 1, blocking)
				r.begins(key, 1, years, blocking)
				r.block(key, ratelimit.Block{Left: years, Rung: 4, Forget: years}, blocking)
				r.block(key, ratelimit.Block{Left: -years, Rung: 4, Forget: years}, blocking)
				r.block(key, ratelimit.Block{Left: 1, Forget: 1}, blocking)
				r.blocked(key, years, blocking)
				if res := r.take(key, math.MaxInt64, blocking)[0]; !res.Blocked || res.RetryAfter != ratelimit.Never {
					r.problem("%d units in a block under %v: %+v, want RetryAfter Never", int64(math.MaxInt64), blocking, res)
				}
				r.reset(key, blocking)
				r.admits(key, 1, blocking)
			}
			short := ratelimit.FixedWindow(1, r.window).Block(time.Millisecond)
			r.admits("short", 1, short)
			r.begins("short", 1, r.window, short)
		},
	},
}

// Blocks under several limits.
var severalBlockCases = []testCase{
	{
		name:   "block-several",
		rules:  []int{4, 19},
		rule:   "each limit with Block that denies starts a block of its own; a limit that fits or has no Block starts none",
		blocks: true,
		check: func(r *run) {
			first, second := ratelimit.FixedWindow(2, r.window).Block(2*r.window), ratelimit.SlidingWindow(2, 2*r.window).Block(4*r.window)
			without, fits := ratelimit.FixedWindow(2, 3*r.window), ratelimit.TokenBucket(9, r.window, 9).Block(5*r.window)
			limits := []ratelimit.Limit{fits, second, without, first}
			r.admits("key", 2, limits...)
			for i, res := range r.take("key", 1, limits...) {
				want := []struct {
					began bool
					retry time.Duration
				}{{false, 0}, {true, 4 * r.window}, {false, 3 * r.window}, {true, 2 * r.window}}[i]
				if res.Blocked != want.began || res.BlockBegan != want.began {
					r.problem("the result of limit %d is %+v, want BlockBegan %v", i, res, want.began)
				}
				r.about(fmt.Sprint("RetryAfter of limit ", i), res.RetryAfter, want.retry)
			}
			r.remains("key", 7, fits)
			r.blocked("key", 2*r.window, first)
			r.blocked("key", 4*r.window, second)
			r.free("key", fits, without)

			r.admits("other", 2, first, without)
			r.admits("other", 1, fits)
			r.reset("other", first)
			r.denies("other", 1, first, without, fits)
			r.free("other", first, without, fits)
			r.remains("other", 2, first)
		},
	},
	{
		name:   "block-in-force",
		rules:  []int{4, 19},
		rule:   "while one counter of a call is blocked, no limit counts, and no other block starts",
		blocks: true,
		check: func(r *run) {
			for at := range 2 {
				key := fmt.Sprint("key ", at)
				tight, loose := ratelimit.FixedWindow(2, r.window).Block(2*r.window), ratelimit.SlidingWindow(4, 2*r.window).Block(4*r.window)
				both := []ratelimit.Limit{loose, tight}
				if at == 0 {
					both = []ratelimit.Limit{tight, loose}
				}
				r.admits(key, 2, both...)
				r.begins(key, 1, 2*r.window, tight)
				for _, n := range []int64{1, 2, 3, 3} { // 3 do not fit under the loose limit either
					res := r.take(key, n, both...)
					if !res[at].Blocked || res[1-at].Blocked {
						r.problem("%d units during a block of counter %d: %+v", n, at, res)
					}
				}
				r.free(key, loose)
				r.remains(key, 2, loose)
				r.blocked(key, 2*r.window, tight)
				r.begins(key, 3, 4*r.window, loose)
			}
		},
	},
	{
		name:   "block-pending-several",
		rules:  []int{4, 19},
		rule:   "whether a denial would be one without the pending units is decided for each limit",
		blocks: true,
		check: func(r *run) {
			first, second := ratelimit.FixedWindow(4, r.window).Block(2*r.window), ratelimit.SlidingWindow(6, 2*r.window).Block(4*r.window)
			r.admits("key", 2, second)
			r.admits("key", 4, first, second)
			pending := []ratelimit.Pending{{Units: 2, At: r.at}}
			for i, res := range r.takePending("key", 3, pending, first, second) {
				if res.RetryAfter == 0 || !res.BlockBegan {
					r.problem("3 units, with 2 that are pending: result %d is %+v, want BlockBegan", i, res)
				}
			}
			r.reset("key", first, second)

			r.admits("key", 3, second)
			r.admits("key", 3, first, second)
			pending[0].At = r.at
			res := r.takePending("key", 3, pending, first, second)
			if res[0].RetryAfter == 0 || res[0].Blocked || !res[1].BlockBegan {
				r.problem("3 units, with 2 that are pending: %+v, want a denial without a block and one with a block", res)
			}
		},
	},
}

// Blocks by hand.
var handBlockCases = []testCase{
	{
		name:   "block-by-hand",
		rules:  []int{9, 19},
		rule:   "Block blocks a key under each of the limits that it is given, also one without a counter",
		blocks: true,
		check: func(r *run) {
			limits := r.three(2)
			r.block("key", ratelimit.Block{Left: 3 * r.window}, limits[0], limits[2])
			r.blocked("key", 3*r.window, limits[0])
			r.admits("key", 1, limits[1])
			r.blocked("key", 3*r.window, limits[2])
			for _, l := range limits {
				r.admits("key2", 1, l)
				r.block("key2", ratelimit.Block{Left: 3 * r.window}, l)
				r.blocked("key2", 3*r.window, l.Block(9*r.window))
				r.reset("key2", l)
				r.remains("key2", 2, l)
			}
		},
	},
	{
		name:   "block-joined",
		rules:  []int{19},
		rule:   "of two blocks of a counter the later end stands, and a shorter block changes nothing",
		blocks: true,
		check: func(r *run) {
			for _, l := range r.three(2) {
				blocking := l.Block(3 * r.window)
				r.block("key", ratelimit.Block{Left: 2 * r.window}, l)
				r.block("key", ratelimit.Block{Left: 4 * r.window}, l)
				r.blocked("key", 4*r.window, l)
				for _, left := range []time.Duration{3 * r.window, 1, 0, -r.window} {
					r.block("key", ratelimit.Block{Left: left}, l)
					r.blocked("key", 4*r.window, blocking)
				}
				r.admits("denied", 2, blocking)
				r.begins("denied", 1, 3*r.window, blocking)
				r.block("denied", ratelimit.Block{Left: 2 * r.window}, blocking)
				r.blocked("denied", 3*r.window, blocking)
				r.block("denied", ratelimit.Block{Left: 5 * r.window}, blocking)
				r.blocked("denied", 5*r.window, blocking)
			}
		},
	},
	{
		name:   "block-many-limits",
		rules:  []int{9, 19},
		rule:   "Block may have more limits than MaxLimits",
		blocks: true,
		check: func(r *run) {
			var limits []ratelimit.Limit
			for i := range 3 * ratelimit.MaxLimits {
				limits = append(limits, withWindow(r.three(2)[i%3], time.Duration(i+1)*r.window))
			}
			r.block("key", ratelimit.Block{Left: 99 * r.window}, limits...)
			for _, l := range limits {
				r.blocked("key", 99*r.window, l)
			}
			r.reset("key", limits...)
			for _, l := range limits {
				r.admits("key", 2, l)
			}
		},
	},
	{
		name:   "block-rung",
		rules:  []int{19},
		rule:   "Block hands on how many denials have blocked a key, also when that block is over: the higher number stands, and the last duration repeats",
		blocks: true,
		check: func(r *run) {
			over := func(rung int) ratelimit.Block { return ratelimit.Block{Left: -1, Rung: rung, Forget: 99 * r.window} }
			for _, l := range r.three(2) {
				rungs := []time.Duration{2 * r.window, 3 * r.window, 5 * r.window, 9 * r.window}
				for i, tc := range []struct {
					joined []int // rungs
					ladder int   // how many durations it has
					want   int   // the index of the one that is next
				}{
					{[]int{0}, 4, 0}, {[]int{1}, 4, 1}, {[]int{2}, 4, 2}, {[]int{3}, 4, 3}, {[]int{4}, 4, 3},
					{[]int{1, 2}, 4, 2}, {[]int{2, 1}, 4, 2}, {[]int{2, 0}, 4, 2},
					{[]int{3}, 2, 1}, {[]int{1}, 1, 0},
				} {
					key, blocking := fmt.Sprint("key ", i), l.Block(rungs[:tc.ladder]...)
					for _, rung := range tc.joined {
						r.block(key, over(rung), l)
						r.free(key, l)
					}
					r.admits(key, 2, blocking)
					r.begins(key, 1, rungs[tc.want], blocking)
				}
			}
		},
	},
}

// How blocks end.
var blockTimeCases = []testCase{
	{
		name:   "block-ends",
		rules:  []int{3, 19},
		rule:   "a block lasts exactly as long as its duration, or RetryAfter without it if that is longer; then the counter goes on by its own rule",
		waits:  true,
		blocks: true,
		check: func(r *run) {
			var parts []func(r *run)
			for i, tc := range []struct {
				limit        ratelimit.Limit
				asked        int64
				lasts, until int64 // the duration, and the end of the block, in eighths of the window
				left         int64 // Remaining after that
			}{
				{ratelimit.FixedWindow(4, r.window), 1, 11, 11, 4},
				{ratelimit.FixedWindow(4, r.window), 1, 3, 8, 4},
				{ratelimit.SlidingWindow(4, r.window), 1, 11, 11, 2},
				{ratelimit.SlidingWindow(4, r.window), 4, 3, 14, 4},
				{ratelimit.TokenBucket(4, r.window, 4), 1, 3, 3, 1},
				{ratelimit.TokenBucket(4, r.window, 4), 3, 1, 6, 3},
			} {
				parts = append(parts, func(r *run) {
					key, blocking := fmt.Sprint("key ", i), tc.limit.Block(r.eighths(tc.lasts))
					r.admits(key, 4, blocking)
					r.begins(key, tc.asked, r.eighths(tc.until), blocking)
					r.sleep(r.eighths(tc.until / 3))
					r.blocked(key, r.eighths(tc.until-tc.until/3), blocking)
					r.unblocks(key, r.take(key, 1, blocking)[0].RetryAfter, tc.limit)
					r.remains(key, tc.left, tc.limit)
				})
			}
			r.lanes(parts...)
		},
	},
	{
		name:   "block-ladder",
		rules:  []int{19},
		rule:   "the next denial after a block uses the next duration; denials during the block do not count",
		waits:  true,
		blocks: true,
		check: func(r *run) {
			short := *r
			short.window = r.eighths(2)
			r.laneFor(short.three(1), func(r *run, l ratelimit.Limit) {
				blocking := l.Block(r.eighths(3), r.eighths(6), r.eighths(9))
				r.admits("key", 1, blocking)
				r.begins("key", 1, r.eighths(3), blocking)
				for _, rung := range []int64{3, 6} {
					r.unblocks("key", r.eighths(rung), blocking)
					r.admits("key", 1, blocking)
					r.begins("key", 1, r.eighths(rung+3), blocking)
				}
			})
		},
	},
	{
		name:   "block-forgotten",
		rules:  []int{19},
		rule:   "the ladder is forgotten when the key was not blocked for the longest duration, or the window if that is longer, and not before",
		waits:  true,
		blocks: true,
		check: func(r *run) {
			short, long := ratelimit.FixedWindow(1, r.eighths(2)), ratelimit.TokenBucket(8, r.window, 1)
			var parts []func(r *run)
			for _, tc := range []struct {
				what          string
				limit         ratelimit.Limit
				first, second int64 // durations, in eighths of the window
				forgets       int64 // after the end of the block
				only          bool  // the first denial is under a limit with the first duration alone
				forgot        bool
			}{
				{what: "longest duration", limit: short, first: 3, second: 8, forgets: 8},
				{what: "longest duration, over", limit: short, first: 3, second: 8, forgets: 8, forgot: true},
				{what: "window", limit: long, first: 2, second: 6, forgets: 8},
				{what: "window, over", limit: long, first: 2, second: 6, forgets: 8, forgot: true},
				{what: "first duration alone, over", limit: short, first: 3, second: 8, forgets: 3, only: true, forgot: true},
			} {
				parts = append(parts, func(r *run) {
					blocking := tc.limit.Block(r.eighths(tc.first), r.eighths(tc.second))
					before := blocking
					if tc.only {
						before = tc.limit.Block(r.eighths(tc.first))
					}
					r.admits(tc.what, 1, before)
					r.begins(tc.what, 1, r.eighths(tc.first), before)
					r.forgets(tc.what, r.eighths(tc.first+tc.forgets), tc.forgot, blocking)
				})
			}
			r.lanes(parts...)
		},
	},
	{
		name:   "block-by-hand-ends",
		rules:  []int{19},
		rule:   "a block by hand ends on time; it does not change which duration is next, and its end counts as the key's last",
		waits:  true,
		blocks: true,
		check: func(r *run) {
			l := ratelimit.FixedWindow(4, r.window)
			short := ratelimit.FixedWindow(1, r.eighths(1)).Block(r.eighths(3), r.eighths(7))
			r.lanes(func(r *run) {
				r.admits("shorter and longer", 1, l)
				r.block("shorter and longer", ratelimit.Block{Left: r.eighths(3)}, l)
				r.block("shorter and longer", ratelimit.Block{Left: r.eighths(6)}, l)
				r.block("shorter and longer", ratelimit.Block{Left: r.eighths(3)}, l)
				r.unblocks("shorter and longer", r.eighths(6), l)
				r.remains("shorter and longer", 3, l)
			}, func(r *run) {
				r.admits("after a denial", 1, short)
				r.begins("after a denial", 1, r.eighths(3), short)
				r.block("after a denial", ratelimit.Block{Left: r.eighths(6)}, short)
				r.forgets("after a denial", r.eighths(13), false, short)
			}, func(r *run) {
				r.block("with a rung", ratelimit.Block{Left: r.eighths(3), Rung: 1, Forget: r.eighths(7)}, short)
				r.unblocks("with a rung", r.eighths(3), short)
				r.admits("with a rung", 1, short)
				r.begins("with a rung", 1, r.eighths(7), short)
			}, func(r *run) { // a block that has been over for a time
				r.until(r.eighths(2))
				r.block("over", ratelimit.Block{Left: -r.eighths(1), Rung: 1, Forget: r.eighths(6)}, short)
				r.free("over", short)
				r.forgets("over", r.eighths(5), false, short)
			}, func(r *run) {
				r.until(r.eighths(2))
				r.block("forgotten", ratelimit.Block{Left: -r.eighths(1), Rung: 1, Forget: r.eighths(6)}, short)
				r.forgets("forgotten", r.eighths(5), true, short)
			})
		},
	},
	{
		name:   "block-late-pending",
		rules:  []int{5, 19},
		rule:   "pending units keep a block from starting only as far as they still count",
		waits:  true,
		blocks: true,
		check: func(r *run) {
			denies := func(r *run, key string, n int64, at ratelimit.Instant, blocks bool, l ratelimit.Limit) {
				res := r.takePending(key, n, []ratelimit.Pending{{Units: 4, At: at}}, l.Block(3*r.window))[0]
				if res.RetryAfter == 0 || res.BlockBegan != blocks {
					r.problem("%d units under %v, with 4 that are pending: %+v, want a denial and BlockBegan %v", n, l, res, blocks)
				}
			}
			fixed, sliding, bucket := ratelimit.FixedWindow(4, r.window), ratelimit.SlidingWindow(4, r.window), ratelimit.TokenBucket(4, r.window, 4)
			r.lanes(func(r *run) {
				r.until(r.eighths(3))
				r.admits("in the window", 1, fixed)
				opened := r.at
				r.admits("in the window", 3, fixed)
				denies(r, "in the window", 4, opened, false, fixed)
				denies(r, "in the window", 1, opened-ratelimit.Instant(r.eighths(1)), true, fixed)
			}, func(r *run) {
				r.admits("of the window before", 4, fixed)
				at := r.at
				r.until(r.eighths(9))
				r.admits("of the window before", 4, fixed)
				denies(r, "of the window before", 1, at, true, fixed)
			}, func(r *run) {
				r.admits("sliding", 4, sliding)
				at := r.at
				r.until(r.eighths(10)) // 3 of them count
				r.admits("sliding", 1, sliding)
				denies(r, "sliding", 3, at, false, sliding)
				denies(r, "sliding", 4, at, true, sliding)
			}, func(r *run) {
				r.admits("two windows before", 4, sliding)
				at := r.at
				r.until(r.eighths(17))
				r.admits("two windows before", 4, sliding)
				denies(r, "two windows before", 1, at, true, sliding)
			}, func(r *run) {
				r.admits("bucket", 4, bucket)
				at := r.at
				r.until(r.eighths(5)) // 1.5 of them are left, but which ones is not known
				r.admits("bucket", 2, bucket)
				denies(r, "bucket", 3, at, false, bucket)
				r.until(r.eighths(9)) // it would be whole again without the others
				r.admits("bucket", 2, bucket)
				denies(r, "bucket", 1, at, true, bucket)
			})
		},
	},
}

// forgets sleeps until the ladder of a key is forgotten, which is due after this time. If
// forgotten is not set, it sleeps until just before. It is a problem if a denial then
// blocks for another duration than the first one, or than the second one if the ladder
// is not forgotten.
func (r *run) forgets(key string, after time.Duration, forgotten bool, l ratelimit.Limit) {
	want := l.Ladder()[0]
	if forgotten {
		after += r.slack // as in unblocks
	} else {
		after, want = after-r.step(), l.Ladder()[1]
	}
	r.sleep(after)
	r.admits(key, 1, l)
	r.begins(key, 1, want, l)
}
