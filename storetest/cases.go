package storetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// The numbers in names and rules are those of the library's design: what a limiter
// promises whatever store it is on.
var cases = []testCase{
	{
		name: "limit",
		rule: "n units fit, one at a time or at once, and no more; Remaining falls by what is taken",
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
		name: "concurrent",
		rule: "exactly n units are admitted under any number of goroutines",
		check: func(r *run) {
			for _, l := range r.three(100) {
				if got := r.hammer("key", l); got != 100 {
					r.problem("%d units were admitted under %v, want 100", got, l)
				}
			}
		},
	},
	{
		name: "concurrent-limits",
		rule: "several limits are one atomic step under any number of goroutines",
		check: func(r *run) {
			tight, loose := ratelimit.FixedWindow(50, r.window), ratelimit.FixedWindow(200, 2*r.window)
			if got := r.hammer("key", loose, tight); got != 50 {
				r.problem("%d units were admitted, want 50", got)
			}
			r.remains("key", 150, loose)
		},
	},
	{
		name: "all-or-none",
		rule: "a take that one limit denies takes from none, and each result tells of the limit at its place",
		check: func(r *run) {
			loose, tight := ratelimit.FixedWindow(10, r.window), ratelimit.FixedWindow(2, 2*r.window)
			r.admits("key", 2, loose, tight)
			res := r.take("key", 1, loose, tight)
			if res[0].RetryAfter != 0 || res[1].RetryAfter == 0 {
				r.problem("RetryAfter does not tell that the second limit denied: %+v", res)
			}
			if res[0].Remaining != 8 || res[1].Remaining != 0 {
				r.problem("8 and 0 units should be left: %+v", res)
			}
			r.remains("key", 8, loose)
			r.remains("key", 0, tight)
			r.denies("key", 1, tight, loose)
			r.remains("key", 8, loose)
		},
	},
	{
		name: "denied",
		rule: "a denied take changes nothing: what was left is left, and the wait grows no longer",
		check: func(r *run) {
			for _, l := range r.three(5) {
				r.admits("key", 3, l)
				before := r.take("key", 3, l)[0].RetryAfter
				for range 20 {
					r.denies("key", 3, l)
				}
				r.about(fmt.Sprintf("RetryAfter under %v after denials", l), r.take("key", 3, l)[0].RetryAfter, before)
				r.remains("key", 2, l)
				r.admits("key", 2, l)
			}
		},
	},
	{
		name: "never",
		rule: "a cost above what the limit can hold is denied with RetryAfter Never, and changes nothing",
		check: func(r *run) {
			for _, l := range r.three(5) {
				for _, n := range []int64{6, 1 << 40, math.MaxInt64} {
					if res := r.take("key", n, l); res[0].RetryAfter != ratelimit.Never {
						r.problem("%d units under %v: RetryAfter is %v, want Never", n, l, res[0].RetryAfter)
					}
				}
				r.remains("key", 5, l)
			}
		},
	},
	{
		name: "look",
		rule: "a take of 0 units is admitted, takes nothing, starts no window, and tells what is left",
		check: func(r *run) {
			for _, l := range r.three(3) {
				res := r.take("key", 0, l)
				if res[0] != (ratelimit.Result{Remaining: 3}) {
					r.problem("a look at a new key under %v: %+v, want 3 remaining and no waits", l, res[0])
				}
				r.admits("key", 3, l)
				r.remains("key", 0, l)
				r.remains("key", 0, l)
			}
		},
	},
	{
		name:  "look-starts-no-window",
		rule:  "a fixed window opens at the first unit, not at a look",
		waits: true,
		check: func(r *run) {
			l := ratelimit.FixedWindow(3, r.window)
			r.remains("key", 3, l)
			r.sleep(r.window / 2)
			r.about("ResetAfter of the first unit", r.take("key", 1, l)[0].ResetAfter, r.window)
		},
	},
	{
		name:  "fixed-window",
		rule:  "a fixed window closes one window after the key's first unit, not after its last or its last denial",
		waits: true,
		check: func(r *run) {
			l := ratelimit.FixedWindow(2, r.window)
			r.admits("key", 1, l)
			r.sleep(r.window / 2)
			r.admits("key", 1, l)
			res := r.take("key", 1, l)[0]
			r.about("RetryAfter", res.RetryAfter, r.window/2)
			r.about("ResetAfter", res.ResetAfter, r.window/2)
			r.sleep(res.RetryAfter + r.slack)
			r.admits("key", 2, l)
			r.denies("key", 1, l)
		},
	},
	{
		name:  "sliding-window",
		rule:  "a sliding window counts the window before it, weighted by the part that a window ending now covers",
		waits: true,
		check: func(r *run) {
			l := ratelimit.SlidingWindow(4, r.window)
			r.admits("key", 4, l)
			r.about("ResetAfter", r.take("key", 0, l)[0].ResetAfter, r.window+3*r.window/4)
			r.sleep(r.window + 3*r.window/8) // of 4 units 2.5 count
			r.remains("key", 2, l)
			r.admits("key", 2, l)
			r.denies("key", 1, l)
		},
	},
	{
		name:  "token-bucket",
		rule:  "a token bucket gives burst units at once and then one every per/n",
		waits: true,
		check: func(r *run) {
			l := ratelimit.TokenBucket(4, r.window, 2)
			r.admits("key", 2, l)
			res := r.take("key", 1, l)[0]
			r.about("RetryAfter", res.RetryAfter, r.window/4)
			r.about("MoreAfter", res.MoreAfter, r.window/4)
			r.about("ResetAfter", res.ResetAfter, r.window/2)
			r.sleep(3 * r.window / 8)
			r.admits("key", 1, l)
			r.denies("key", 1, l)
			r.sleep(3 * r.window)
			r.admits("key", 2, l)
			r.denies("key", 1, l)
		},
	},
	{
		name:  "retry-after",
		rule:  "who waits RetryAfter is admitted; who waits less is not; and MoreAfter is when Remaining grows",
		waits: true,
		check: func(r *run) {
			step := max(r.resolution, 1) + r.slack
			for _, l := range r.three(3) {
				r.admits("key", 2, l)
				r.sleep(r.window / 5)
				r.admits("key", 1, l)
				res := r.take("key", 2, l)[0]
				r.sleep(res.RetryAfter - step)
				r.denies("key", 2, l)
				r.sleep(step)
				r.admits("key", 2, l)

				res = r.take("more", 3, l)[0]
				r.sleep(res.MoreAfter - step)
				r.remains("more", 0, l)
				r.sleep(step)
				if left := r.take("more", 0, l)[0].Remaining; left < 1 {
					r.problem("after MoreAfter under %v nothing more is left", l)
				}
			}
		},
	},
	{
		name:  "expiry",
		rule:  "whatever was done to a key, it is whole again after ResetAfter: no counter stays for ever",
		waits: true,
		check: func(r *run) {
			ops := []struct {
				name string
				do   func(key string, l ratelimit.Limit)
			}{
				{"take", func(key string, l ratelimit.Limit) {}},
				{"look", func(key string, l ratelimit.Limit) { r.remains(key, 0, l) }},
				{"denial", func(key string, l ratelimit.Limit) { r.denies(key, 1, l) }},
				{"refund", func(key string, l ratelimit.Limit) { r.adjust(key, -1, ratelimit.Now, l) }},
				{"charge", func(key string, l ratelimit.Limit) { r.adjust(key, 2, ratelimit.Now, l) }},
				{"changed limit", func(key string, l ratelimit.Limit) { r.take(key, 1, r.sameShape(l, 6)) }},
			}
			each := func(l ratelimit.Limit, check func(key string)) {
				for _, op := range ops {
					check(op.name + l.Algorithm())
				}
			}
			// All of them wait at once, and each as long as it says.
			limits, resets := r.three(4), make(map[ratelimit.Limit]time.Duration)
			for _, l := range limits {
				for _, op := range ops {
					key := op.name + l.Algorithm()
					r.admits(key, 4, l)
					op.do(key, l)
				}
			}
			for _, l := range limits {
				each(l, func(key string) { resets[l] = max(resets[l], r.take(key, 0, l)[0].ResetAfter) })
			}
			slices.SortFunc(limits, func(a, b ratelimit.Limit) int { return cmp.Compare(resets[a], resets[b]) })
			waited := time.Duration(0)
			for _, l := range limits {
				r.sleep(resets[l] - waited + r.slack)
				waited = resets[l] + r.slack
				each(l, func(key string) {
					r.remains(key, 4, l)
					r.adjust(key, -2, ratelimit.Now, l) // a refund that comes late
				})
			}
			r.sleep(2*r.window + r.slack)
			for _, l := range limits {
				each(l, func(key string) {
					r.admits(key, 4, l)
					r.denies(key, 1, l)
				})
			}
			r.sleep(2*r.window + r.slack)
			for _, l := range limits {
				each(l, func(key string) { r.remains(key, 4, l) })
			}
		},
	},
	{
		name: "refund",
		rule: "a refund gives units back, never lifts a key above its limit, and does nothing to a key without a counter",
		check: func(r *run) {
			for _, l := range r.three(3) {
				r.adjust("unknown", -2, ratelimit.Now, l)
				r.admits("unknown", 3, l)
				r.denies("unknown", 1, l)

				r.admits("key", 3, l)
				r.adjust("key", -1, ratelimit.Now, l)
				r.remains("key", 1, l)
				r.adjust("key", -100, ratelimit.Now, l)
				r.adjust("key", math.MinInt64, ratelimit.Now, l)
				r.remains("key", 3, l)
				r.admits("key", 3, l)
				r.denies("key", 1, l)
			}
		},
	},
	{
		name:  "late-refund",
		rule:  "a refund reaches units that still count: not into a window opened since, and not what a bucket has leaked",
		waits: true,
		check: func(r *run) {
			fixed := ratelimit.FixedWindow(3, r.window)
			r.admits("fixed", 3, fixed)
			taken := r.at
			r.sleep(r.window + r.slack)
			r.admits("fixed", 2, fixed)
			r.adjust("fixed", -3, taken, fixed)
			r.remains("fixed", 1, fixed)
			r.adjust("fixed", -2, r.at, fixed)
			r.remains("fixed", 3, fixed)

			bucket := ratelimit.TokenBucket(4, r.window, 4)
			r.admits("bucket", 4, bucket)
			taken = r.at
			r.sleep(5 * r.window / 8) // 2.5 units have leaked
			r.admits("bucket", 2, bucket)
			r.adjust("bucket", -4, taken, bucket) // of which 1.5 are still there
			r.remains("bucket", 2, bucket)
		},
	},
	{
		name: "charge",
		rule: "a charge takes units without asking, up to the limit, also of a new key, and tells how many",
		check: func(r *run) {
			for _, l := range r.three(5) {
				r.admits("key", 1, l)
				r.charges("key", 2, 2, l)
				r.remains("key", 2, l)
				r.charges("key", math.MaxInt64, 2, l)
				r.charges("key", 1, 0, l)
				r.remains("key", 0, l)
				if res := r.take("key", 1, l)[0]; res.RetryAfter > 2*r.window {
					r.problem("a charge under %v went beyond the limit: RetryAfter is %v", l, res.RetryAfter)
				}
				r.charges("new", 2, 2, l)
				r.charges("new", 0, 0, l)
				r.charges("new", -1, 0, l)
				r.remains("new", 4, l)
			}
			narrow, wide := ratelimit.FixedWindow(2, r.window), ratelimit.FixedWindow(10, 2*r.window)
			r.charges("both", 5, 2, narrow, wide)
			r.remains("both", 5, wide)
		},
	},
	{
		name: "reset",
		rule: "a reset forgets one key, taken literally, under the limits it is given, and no other",
		check: func(r *run) {
			l, other := ratelimit.FixedWindow(2, r.window), ratelimit.FixedWindow(2, 2*r.window)
			for _, key := range []string{"key", "key2", "*", "k?y", "[a-z]*"} {
				r.admits(key, 2, l, other)
			}
			for _, pattern := range []string{"*", "k?y", "[a-z]*"} {
				r.reset(pattern, l)
				r.remains(pattern, 2, l)
				r.remains(pattern, 0, other)
			}
			r.remains("key", 0, l)
			r.remains("key2", 0, l)
			r.reset("key", l, other)
			r.reset("key", l, other)
			r.remains("key", 2, l)
			r.remains("key", 2, other)
			r.remains("key2", 0, l)
		},
	},
	{
		name: "changed-limit",
		rule: "changing n or the burst keeps what was counted: raising is felt at once, lowering leaves at least 0",
		check: func(r *run) {
			for _, l := range r.three(5) {
				r.admits("key", 4, l)
				r.remains("key", 6, r.sameShape(l, 10))
				r.remains("key", 0, r.sameShape(l, 3))
				r.denies("key", 1, r.sameShape(l, 3))
				r.remains("key", 1, l)
				r.admits("key", 5, r.sameShape(l, 10))
				r.remains("key", 0, l)
			}
		},
	},
	{
		name: "identity",
		rule: "another algorithm or window is another counter; the name of a limit is not part of it",
		check: func(r *run) {
			for _, l := range append(r.three(2), ratelimit.FixedWindow(2, 2*r.window), ratelimit.SlidingWindow(2, 2*r.window), ratelimit.TokenBucket(2, 2*r.window, 2)) {
				r.admits("key", 2, l)
				r.denies("key", 1, l.Named("other"))
			}
		},
	},
	{
		name: "keys",
		rule: "two keys never share a counter, whatever bytes they hold",
		check: func(r *run) {
			l := ratelimit.FixedWindow(1, r.window)
			for _, key := range hostileKeys {
				r.admits(key, 1, l)
			}
			for _, key := range hostileKeys {
				r.denies(key, 1, l)
			}
		},
	},
	{
		name: "prefixes",
		rule: "two prefixes never share a counter, also where one begins with the other; Prefix does not change",
		check: func(r *run) {
			l := ratelimit.FixedWindow(1, r.window)
			type pair struct{ prefix, key string }
			for _, p := range []pair{{"rl:", "api:x"}, {"rl:api:", "x"}, {"rl:", "x"}, {"rl:", "{api:x}"}, {"rl:api", ":x"}, {"r", "l:x"}} {
				r.store = r.newStore(r.t, p.prefix)
				before := r.store.Prefix()
				r.admits(p.key, 1, l)
				r.denies(p.key, 1, l)
				if after := r.store.Prefix(); before == "" || before != after {
					r.problem("Prefix() was %q and then %q", before, after)
				}
			}
		},
	},
	{
		name: "extremes",
		rule: "no arithmetic overflows with the largest units and windows that a Limit may have",
		check: func(r *run) {
			const most, years = 999_999_999_999_999, 50 * 365 * 24 * time.Hour
			for _, l := range []ratelimit.Limit{
				ratelimit.FixedWindow(most, years), ratelimit.SlidingWindow(most, years), ratelimit.TokenBucket(most, years, most),
				ratelimit.FixedWindow(most, time.Millisecond*10), ratelimit.TokenBucket(most, time.Second, 1), ratelimit.TokenBucket(1, 2*years/100, 50),
			} {
				burst := l.Burst()
				r.admits("key", burst, l)
				r.adjust("key", math.MinInt64, ratelimit.Now, l)
				r.adjust("key", math.MaxInt64, ratelimit.Now, l)
				r.take("key", math.MaxInt64, l)
				r.reset("key", l)
				r.remains("key", burst, l)
			}
		},
	},
	{
		name: "context",
		rule: "a call whose context is done returns the context's error and changes nothing",
		check: func(r *run) {
			l := ratelimit.FixedWindow(2, r.window)
			r.admits("key", 1, l)
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			results := make([]ratelimit.Result, 1)
			if _, err := r.store.Take(ctx, "key", 1, []ratelimit.Limit{l}, results); !errors.Is(err, context.Canceled) {
				r.problem("Take returned %v, want context.Canceled", err)
			}
			if _, err := r.store.Adjust(ctx, "key", -1, ratelimit.Now, []ratelimit.Limit{l}); !errors.Is(err, context.Canceled) {
				r.problem("Adjust returned %v, want context.Canceled", err)
			}
			if err := r.store.Reset(ctx, "key", []ratelimit.Limit{l}); !errors.Is(err, context.Canceled) {
				r.problem("Reset returned %v, want context.Canceled", err)
			}
			r.remains("key", 1, l)
		},
	},
	{
		name: "slices",
		rule: "a call neither changes nor keeps the slices that it is given",
		check: func(r *run) {
			limits := []ratelimit.Limit{ratelimit.FixedWindow(3, r.window), ratelimit.SlidingWindow(2, r.window)}
			want := fmt.Sprint(limits)
			r.admits("key", 1, limits...)
			r.adjust("key", 1, ratelimit.Now, limits...)
			if got := fmt.Sprint(limits); got != want {
				r.problem("the limits were %s and are now %s", want, got)
			}
			fixed := limits[0]
			limits[0], limits[1] = ratelimit.FixedWindow(9, r.window), ratelimit.FixedWindow(9, 2*r.window)
			r.remains("key", 1, fixed)
		},
	},
}

// hostileKeys are meant to meet each other in a store that joins, cuts, trims,
// folds or hashes keys carelessly.
var hostileKeys = []string{
	"a", "A", " a", "a ", "a\x00", "\x00a", "a\n", "a\r\n", "á", "a\u0301",
	"a:b", "a", "a:", ":a", "a:b:c", "a%3Ab", "a\\:b", "a/b", "a,b",
	"{", "}", "{}", "{}x", "x{}", "{a}", "{a}b", "a}b", "a{b", "{{a}}", "}{", "a}:fixed-1h", "{a}:fixed-1h",
	"*", "?", "[a]", "\\", "\\x00", "%00", "%", "%25",
	"\xff", "\xfe", "\xc3\x28", "\ufffd", "<nil>", "nil", "0", "00", "-0", "127.0.0.1", "::1", "::ffff:127.0.0.1",
	strings.Repeat("k", 127), strings.Repeat("k", 128), strings.Repeat("k", 129), strings.Repeat("k", 1<<20), strings.Repeat("k", 1<<20) + "!",
	"sha256:" + strings.Repeat("0", 64),
}

func init() { // the list has a duplicate only by mistake
	seen := make(map[string]bool)
	kept := hostileKeys[:0]
	for _, k := range hostileKeys {
		if !seen[k] {
			kept = append(kept, k)
		}
		seen[k] = true
	}
	hostileKeys = kept
}

// sameShape returns l with another n, and burst if it has one.
func (r *run) sameShape(l ratelimit.Limit, n int64) ratelimit.Limit {
	switch l.Algorithm() {
	case "fixed":
		return ratelimit.FixedWindow(n, l.Window())
	case "sliding":
		return ratelimit.SlidingWindow(n, l.Window())
	}
	return ratelimit.TokenBucket(n, l.Window(), n)
}

// hammer takes units of a key one by one from 64 goroutines, far more than fit, and
// returns how many were admitted.
func (r *run) hammer(key string, limits ...ratelimit.Limit) int64 {
	var count atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			results := make([]ratelimit.Result, len(limits))
			for range 10 {
				if _, err := r.store.Take(context.Background(), key, 1, limits, results); err != nil {
					failed.Store(&err)
				} else if admitted(results) {
					count.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		r.problem("Take: error: %v", *err)
	}
	return count.Load()
}
