package storetest

import (
	"math"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// What a reset forgets.
var resetCases = []testCase{
	{
		name:  "reset",
		rules: []int{9},
		rule:  "a reset forgets exactly one key: it is no pattern, no prefix and no part of another",
		check: func(r *run) {
			l := ratelimit.FixedWindow(2, r.window)
			keys := []string{"key", "key2", "key:sub", "Key", "a", "*", "k*", "k?y", "k_y", "%", "k%", "_", "[a-z]*", "{key}", "key\x00", " "}
			for _, key := range keys {
				r.admits(key, 2, l)
			}
			for i, key := range keys {
				r.reset(key, l)
				r.remains(key, 2, l)
				for _, other := range keys[i+1:] {
					r.remains(other, 0, l)
				}
			}
		},
	},
	{
		name:  "reset-limits",
		rules: []int{7, 9},
		rule:  "a reset forgets what is counted under every limit that it is given, and under no other",
		check: func(r *run) {
			limits := append(r.three(2), ratelimit.FixedWindow(2, 2*r.window), ratelimit.SlidingWindow(2, 2*r.window))
			r.admits("key", 2, limits...)
			r.reset("key", limits[3], withSize(limits[1], 9))
			for i, l := range limits {
				r.remains("key", []int64{0, 2, 0, 2, 0}[i], l)
			}
			r.reset("key", limits...)
			for _, l := range limits {
				r.remains("key", 2, l)
			}
		},
	},
	{
		name:  "reset-unknown",
		rules: []int{9},
		rule:  "to reset a key without a counter, or a second time, is no error",
		check: func(r *run) {
			limits := r.three(2)
			r.reset("key", limits...)
			r.admits("key", 2, limits[0])
			r.reset("key", limits...)
			r.reset("key", limits...)
			for _, l := range limits {
				r.remains("key", 2, l)
			}
		},
	},
	{
		name:  "reset-many",
		rules: []int{9},
		rule:  "a reset may have more limits than MaxLimits",
		check: func(r *run) {
			var limits []ratelimit.Limit
			for i := range 3 * ratelimit.MaxLimits {
				limits = append(limits, withWindow(r.three(2)[i%3], time.Duration(i+1)*r.window))
			}
			for _, l := range limits {
				r.admits("key", 2, l)
			}
			r.reset("key", limits...)
			for _, l := range limits {
				r.remains("key", 2, l)
			}
		},
	},
	{
		name:  "reset-ends-windows",
		rules: []int{3, 9},
		rule:  "after a reset the next unit opens a window, as for a new key",
		waits: true,
		check: func(r *run) {
			r.laneFor(r.three(4), func(r *run, l ratelimit.Limit) {
				r.admits("key", 4, l)
				r.until(r.eighths(2))
				r.reset("key", l)
				if res := r.take("key", 0, l)[0]; res != (ratelimit.Result{Remaining: 4}) {
					r.problem("after a reset under %v: %+v, want 4 remaining and no waits", l, res)
				}
				r.admits("key", 1, l)
				whole := map[string]int64{"fixed": 8, "sliding": 8, "bucket": 2}[l.Algorithm()]
				r.resets("key", r.eighths(whole), l)
			})
		},
	},
}

// Limits that differ from call to call.
var changeCases = []testCase{
	{
		name:  "changed-n",
		rules: []int{7},
		rule:  "another n keeps what was counted: a raise takes effect at once, and after a cut at least 0 is left",
		check: func(r *run) {
			for _, l := range r.three(5) {
				raised, cut := withSize(l, 10), withSize(l, 3)
				r.admits("key", 4, l)
				r.remains("key", 6, raised)
				r.remains("key", 0, cut)
				r.denies("key", 1, cut)
				r.remains("key", 1, l)
				r.admits("key", 5, raised)
				r.remains("key", 0, l)
				r.denies("key", 1, l)
				r.remains("key", 1, raised)
			}
		},
	},
	{
		name:  "changed-burst",
		rules: []int{7},
		rule:  "another burst keeps what was counted in a bucket",
		check: func(r *run) {
			burst := func(n int64) ratelimit.Limit { return ratelimit.TokenBucket(4, r.window, n) }
			r.admits("key", 4, burst(5))
			r.remains("key", 6, burst(10))
			res := r.take("key", 1, burst(3))[0]
			r.about("RetryAfter under the smaller burst", res.RetryAfter, r.window/2)
			r.about("ResetAfter under the smaller burst", res.ResetAfter, r.window)
			if res.Remaining != 0 {
				r.problem("under the smaller burst %d units are left, want 0", res.Remaining)
			}
			r.remains("key", 1, burst(5))
			r.admits("key", 6, burst(10))
		},
	},
	{
		name:  "changed-waits",
		rules: []int{3, 7},
		rule:  "another n does not move a window, and a bucket leaks at the new rate",
		waits: true,
		check: func(r *run) {
			r.laneFor(r.three(4), func(r *run, l ratelimit.Limit) {
				r.admits("key", 4, l)
				r.until(r.eighths(3))
				double := withN(l, 8)
				switch l.Algorithm() {
				case "fixed":
					r.about("RetryAfter after a cut", r.take("key", 2, withN(l, 2))[0].RetryAfter, r.eighths(5))
					r.admits("key", 4, double)
					r.resets("key", r.eighths(5), double)
				case "sliding":
					r.about("RetryAfter after a cut", r.take("key", 2, withN(l, 2))[0].RetryAfter, r.eighths(11))
					r.admits("key", 4, double)
					r.resets("key", r.eighths(12), double)
				case "bucket": // 4 units, which leak by one every eighth
					r.admits("key", 3, double)
					r.resets("key", r.eighths(4), double)
					r.about("RetryAfter at the old rate", r.take("key", 1, l)[0].RetryAfter, r.eighths(2))
				}
			})
		},
	},
	{
		name:  "kinds",
		rules: []int{7},
		rule:  "another algorithm or window is another counter, however little the windows differ; a limit's name makes no difference",
		check: func(r *run) {
			var limits []ratelimit.Limit
			for _, window := range []time.Duration{r.window, 2 * r.window, r.window + time.Second, r.window + time.Millisecond, r.window + 1} {
				for _, l := range r.three(2) {
					limits = append(limits, withWindow(l, window))
				}
			}
			for _, l := range limits {
				r.admits("key", 2, l.Named("one"))
			}
			for _, l := range limits {
				r.denies("key", 1, l.Named("other"))
				r.remains("key", 0, l)
			}
		},
	},
}

// withWindow returns l with another window, and the same number of units.
func withWindow(l ratelimit.Limit, window time.Duration) ratelimit.Limit {
	switch l.Algorithm() {
	case "fixed":
		return ratelimit.FixedWindow(l.N(), window)
	case "sliding":
		return ratelimit.SlidingWindow(l.N(), window)
	case "rolling":
		return ratelimit.Rolling(l.N(), window)
	}
	return ratelimit.TokenBucket(l.N(), window, l.Burst())
}

// Keys, limits and prefixes never share a counter.
var keyCases = []testCase{
	{
		name:  "keys",
		rules: []int{9},
		rule:  "two keys never share a counter, whatever bytes they hold and however long they are",
		check: func(r *run) { r.apart(hostileKeys()) },
	},
	{
		name:  "hashed-keys",
		rules: []int{9},
		rule:  "two keys never share a counter, even if a hash of 32 bits is the same for both",
		check: func(r *run) {
			for _, pair := range collidingKeys {
				r.apart(pair[:])
			}
		},
	},
	{
		name:  "keys-and-limits",
		rules: []int{7, 9},
		rule:  "a key and a limit never make the counter of another key and limit, however they are joined",
		check: func(r *run) {
			type pair struct {
				key    string
				window time.Duration
			}
			pairs := []pair{
				{"k", 11 * time.Hour}, {"k1", time.Hour}, // "11h" and "1h"
				{"k3", 9600 * time.Second}, {"k39", 600 * time.Second}, // 11h is 39600s
				{"k:fixed", time.Hour}, {"k:1h", time.Hour}, {"k:fixed:1h", time.Hour}, {"k:fixed-1h", 11 * time.Hour}, {"fixed:k", time.Hour},
			}
			for _, p := range pairs {
				r.admits(p.key, 2, ratelimit.FixedWindow(2, p.window))
			}
			for _, p := range pairs {
				r.remains(p.key, 0, ratelimit.FixedWindow(2, p.window))
			}
		},
	},
	{
		name:  "prefixes",
		rules: []int{8, 9},
		rule:  "two prefixes never share a counter, even if one begins with the other, and a reset reaches one of them",
		check: func(r *run) {
			l := ratelimit.FixedWindow(1, r.window)
			pairs := []struct{ prefix, key string }{
				{"rl:", "api:x"}, {"rl:api:", "x"}, {"rl:", "x"}, {"rl:", "{api:x}"}, {"rl:api", ":x"}, {"r", "l:x"}, {"RL:", "x"},
			}
			var stores []ratelimit.Store
			for _, p := range pairs {
				r.store = r.newStore(r.t, p.prefix)
				stores = append(stores, r.store)
				r.admits(p.key, 1, l)
				r.denies(p.key, 1, l)
			}
			r.store = stores[2]
			r.reset(pairs[2].key, l)
			for i, p := range pairs {
				r.store = stores[i]
				r.remains(p.key, map[bool]int64{true: 1}[i == 2], l)
			}
		},
	},
	{
		name:  "prefix",
		rules: []int{8},
		rule:  "Prefix is never empty, is the same for the life of the store, and another one for each prefix",
		check: func(r *run) {
			seen := map[string]string{}
			for _, prefix := range []string{"rl:one:", "rl:two:", "rl:"} {
				s := r.newStore(r.t, prefix)
				r.store = s
				before := s.Prefix()
				r.admits("key", 1, ratelimit.FixedWindow(1, r.window))
				r.reset("key", ratelimit.FixedWindow(1, r.window))
				if after := s.Prefix(); before == "" || before != after {
					r.problem("Prefix() was %q and then %q", before, after)
				}
				if other, ok := seen[before]; ok {
					r.problem("Prefix() is %q for both %q and %q", before, other, prefix)
				}
				seen[before] = prefix
			}
		},
	},
	{
		name:  "extremes",
		rules: []int{6},
		rule:  "no arithmetic overflows with the largest units and windows that a Limit may have, nor with the smallest",
		check: func(r *run) {
			const most, years = 999_999_999_999_999, 50 * 365 * 24 * time.Hour
			for _, l := range []ratelimit.Limit{
				ratelimit.FixedWindow(most, years), ratelimit.SlidingWindow(most, years), ratelimit.TokenBucket(most, years, most),
				ratelimit.FixedWindow(1, years), ratelimit.SlidingWindow(1, years), ratelimit.TokenBucket(1, years, 1),
				ratelimit.FixedWindow(most, 10*time.Millisecond), ratelimit.TokenBucket(most, time.Second, 1), ratelimit.TokenBucket(1, years/50, 50),
			} {
				key, burst := l.String(), l.Burst()
				r.admits(key, burst, l)
				if r.slack == 0 {
					r.denies(key, 1, l)
					r.denies(key, burst, l)
				}
				r.take(key, math.MaxInt64, l)
				r.adjust(key, math.MinInt64, ratelimit.Now, l)
				r.remains(key, burst, l)
				if charged := r.adjust(key, math.MaxInt64, ratelimit.Now, l); charged != burst {
					r.problem("%d units were charged under %v, want %d", charged, l, burst)
				}
				r.take(key, 1, l)
				r.reset(key, l)
				r.remains(key, burst, l)
			}
		},
	},
}

// apart takes one unit of each key under a limit of one. It is a problem if two of
// them share a counter.
func (r *run) apart(keys []string) {
	l := ratelimit.FixedWindow(1, r.window)
	for _, key := range keys {
		r.admits(key, 1, l)
	}
	for _, key := range keys {
		r.denies(key, 1, l)
	}
}

// hostileKeys are keys that meet in a store that joins, cuts, trims, folds, decodes
// or normalizes keys carelessly.
func hostileKeys() []string {
	long := strings.Repeat("k", 1<<20)
	return []string{
		"a", "A", " a", "a ", "a\t", "a\x00", "\x00a", "a\x00b", "a\n", "a\r\n", "a\u200b", "a\x7f",
		"á", "a\u0301", "Á", "ß", "ss", "ſs", "K", "\u212a", "ı", "i", "I", "ａ",
		"a:b", "a:", ":a", "a:b:c", ":", "::", "a%3Ab", "a%3ab", "a\\:b", "a/b", "a//b", "a/./b", "/a/b", "a,b", "a.b", "a_b", "a-b", "a+b", "a b", "a%20b",
		"{", "}", "{}", "{}x", "x{}", "{a}", "{a}b", "a}b", "a{b", "{{a}}", "}{", "a}:fixed-1h", "{a}:fixed-1h",
		"*", "?", "[a]", "\\", "\\\\", "\\x00", "%00", "%", "%%", "%25", "_", "'", "''", "\"", "a'--", "$1", "`", ";",
		"\xff", "\xfe", "\xc3\x28", "\xc3", "\ufffd", "\ufffd\ufffd",
		"<nil>", "nil", "null", "NULL", "true", "0", "00", "-0", "0.0", "1", "1e0", "owner", "place", "lock",
		"127.0.0.1", "::1", "::ffff:127.0.0.1", "0:0:0:0:0:0:0:1",
		long[:63], long[:64], long[:65], long[:127], long[:128], long[:129], long[:255], long[:256], long[:257], long, long + "!", "!" + long,
		long[:200] + "!" + long[:200], long[:200] + "?" + long[:200],
		"sha256:" + strings.Repeat("0", 64), "%sha256:" + strings.Repeat("0", 64),
	}
}

// collidingKeys are pairs with the same hash of 32 bits.
var collidingKeys = [][2]string{
	{"17tbz2u5uxtk4", "19zrer8zvifzj"}, // FNV-1
	{"2zo060cn3xolf", "1pjc77ft6b1an"}, // FNV-1a
	{"32m1oyi2q4dul", "20jcci9gwrx0j"}, // CRC-32, IEEE
	{"3klg4k5qe73e9", "17o7nauzf54zf"}, // CRC-32, Castagnoli
	{"3mvq2qbl5bz8p", "1z9gmxbsz01el"}, // Adler-32
	{"2i8tfisde8d3j", "3uqgut3iijqu3"}, // h*31 + c, as in Java
	{"2anre18m8d3zx", "pveok0tr5qei"},  // djb2: h*33 + c
	{"2b99miq0z0pm2", "3eb0qf3jtmra0"}, // djb2: h*33 ^ c
	{"1v3i2gwzj87tl", "2ydnw579b3mqu"}, // MurmurHash3
	{"tadftxluzncr", "3r4ibklqr4g7a"},  // SHA-256, cut
	{"xeo6n9kilow8", "2t0wyaymtt0n8"},  // SHA-1, cut
	{"34y6chijk0ok5", "3iay2dbwtm7wb"}, // MD5, cut
}
