package storetest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"math"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// resets lets a reset forget every counter whose key matches.
func resets(matches func(reset, key string) bool) func(*reference) {
	return func(s *reference) {
		keys := map[string]bool{}
		s.beforeTake(func(c *call) { keys[c.key] = true })
		reset := s.onReset
		s.onReset = func(c *call) error {
			for key := range keys {
				if matches(c.key, key) {
					reset(&call{ctx: c.ctx, key: key, limits: c.limits})
				}
			}
			return reset(c)
		}
	}
}

var resetFaults = []fault{
	{caught: "reset", does: "takes the key for a pattern", breaks: resets(func(pattern, key string) bool { ok, _ := path.Match(pattern, key); return ok })},
	{caught: "reset", does: "takes the key for a prefix", breaks: resets(func(prefix, key string) bool { return strings.HasPrefix(key, prefix) })},
	{caught: "reset", does: "takes the key for a pattern of LIKE", breaks: resets(func(pattern, key string) bool {
		ok, _ := path.Match(strings.NewReplacer("*", "\\*", "?", "\\?", "[", "\\[", "%", "*", "_", "?").Replace(pattern), key)
		return ok
	})},
	{caught: "reset", does: "forgets all keys", breaks: resets(func(string, string) bool { return true })},
	{caught: "reset", does: "does nothing", breaks: func(s *reference) { s.onReset = func(*call) error { return nil } }},
	{caught: "reset-limits", does: "forgets all limits of the key", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			for name := range s.counters {
				if strings.HasPrefix(name, s.begins(c.key)) {
					delete(s.counters, name)
				}
			}
			return nil
		}
	}},
	{caught: "reset-limits", does: "forgets the first limit only", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			c.limits = c.limits[:1]
			return s.reset(c)
		}
	}},
	{caught: "reset-unknown", does: "fails if there is nothing to forget", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			for _, l := range c.limits {
				if _, ok := s.counters[s.name(c.key, l)]; !ok {
					return errors.New("no such key")
				}
			}
			return s.reset(c)
		}
	}},
	{caught: "reset-many", does: "refuses more than MaxLimits", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			if len(c.limits) > ratelimit.MaxLimits {
				return errors.New("too many limits")
			}
			return s.reset(c)
		}
	}},
	{caught: "reset-many", does: "forgets the first MaxLimits only", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			c.limits = c.limits[:min(len(c.limits), ratelimit.MaxLimits)]
			return s.reset(c)
		}
	}},
	{caught: "reset-ends-windows", does: "sets the count to zero and leaves the window open", breaks: func(s *reference) {
		open := s.opensWindows()
		s.afterTake(func(c *call) {
			if c.n > 0 {
				open(c)
			}
		})
	}},
}

var changeFaults = []fault{
	{caught: "changed-n", does: "has n in the counter's name", breaks: otherNames(func(key string, l ratelimit.Limit) string { return fmt.Sprintf("%q %s", key, l.Named("")) })},
	{caught: "changed-n", does: "returns a negative Remaining", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			s.edit(c, func(l ratelimit.Limit, was *counter, now int64) {
				if c.results[0].Remaining == 0 && !isBucket(l) {
					c.results[0].Remaining = l.Burst() - used(l, *was, now)
				}
			})
		})
	}},
	{caught: "changed-n", does: "counts by the first limit that it has seen", breaks: func(s *reference) {
		first := map[string]ratelimit.Limit{}
		otherLimits(func(l ratelimit.Limit) ratelimit.Limit {
			kind := l.Algorithm() + l.Window().String()
			if _, ok := first[kind]; !ok {
				first[kind] = l
			}
			return first[kind]
		})(s)
	}},
	{caught: "changed-n", does: "denies until the window ends once a key was denied", breaks: func(s *reference) {
		denied := map[string]ratelimit.Result{}
		s.afterTake(func(c *call) {
			name := s.name(c.key, c.limits[0])
			if was, ok := denied[name]; ok && c.n > 0 {
				c.results[0] = was
			} else if res := c.results[0]; res.RetryAfter != 0 && res.Remaining == 0 {
				denied[name] = res
			}
		})
	}},
	{caught: "changed-n", does: "forgets the counter if n changes", breaks: func(s *reference) {
		n := map[string]int64{}
		s.beforeTake(func(c *call) {
			name := s.name(c.key, c.limits[0])
			if was, ok := n[name]; ok && was != c.limits[0].N() {
				s.reset(c)
			}
			n[name] = c.limits[0].N()
		})
	}},
	{caught: "changed-burst", does: "has the burst in the counter's name", breaks: otherNames(func(key string, l ratelimit.Limit) string {
		return fmt.Sprintf("%q %s %d %d", key, l.Algorithm(), l.Window(), l.Burst()-l.N())
	})},
	{caught: "changed-burst", does: "keeps what is left instead of what was counted", breaks: func(s *reference) {
		bursts := map[string]int64{}
		s.beforeTake(func(c *call) {
			s.edit(c, func(l ratelimit.Limit, was *counter, now int64) {
				name := s.name(c.key, l)
				if b, ok := bursts[name]; ok && isBucket(l) {
					was.level = most(parts(nil), parts(was.level).Add(parts(was.level), product(l.Burst()-b, int64(l.Window()))))
				}
				bursts[name] = l.Burst()
			})
		})
	}},
	{caught: "changed-waits", does: "opens a window anew if n changes", breaks: func(s *reference) {
		n := map[string]int64{}
		s.beforeTake(func(c *call) {
			s.edit(c, func(l ratelimit.Limit, was *counter, now int64) {
				if b, ok := n[s.name(c.key, l)]; ok && b != l.N() {
					was.t = now
				}
				n[s.name(c.key, l)] = l.N()
			})
		})
	}},
	{caught: "changed-waits", does: "leaks at the rate of the first limit", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			if isBucket(l) {
				l = withN(l, l.Burst())
			}
			return aged(l, c, now)
		}
	}},
	{caught: "kinds", does: "has one counter for all windows", breaks: otherNames(func(key string, l ratelimit.Limit) string { return fmt.Sprintf("%q %s", key, l.Algorithm()) })},
	{caught: "kinds", does: "has one counter for all algorithms", breaks: otherNames(func(key string, l ratelimit.Limit) string { return fmt.Sprintf("%q %d", key, l.Window()) })},
	{caught: "kinds", does: "has the window in milliseconds in the counter's name", breaks: otherNames(func(key string, l ratelimit.Limit) string {
		return fmt.Sprintf("%q %s %d", key, l.Algorithm(), l.Window().Milliseconds())
	})},
	{caught: "kinds", does: "has the limit's name in the counter's", breaks: otherNames(func(key string, l ratelimit.Limit) string {
		return fmt.Sprintf("%q %s %d %s", key, l.Algorithm(), l.Window(), l.Name())
	})},
}

var keyFaults = []fault{
	{caught: "keys", does: "folds case", breaks: otherKeys(strings.ToLower)},
	{caught: "keys", does: "folds case as Unicode does", breaks: otherKeys(func(k string) string { return strings.ToLower(strings.ToUpper(k)) })},
	{caught: "keys", does: "trims keys", breaks: otherKeys(strings.TrimSpace)},
	{caught: "keys", does: "ignores spaces at the end", breaks: otherKeys(func(k string) string { return strings.TrimRight(k, " ") })},
	{caught: "keys", does: "cuts keys to 255 bytes", breaks: otherKeys(func(k string) string { return k[:min(len(k), 255)] })},
	{caught: "keys", does: "keeps the end of long keys", breaks: otherKeys(func(k string) string { return k[max(0, len(k)-128):] })},
	{caught: "keys", does: "leaves out the middle of long keys", breaks: otherKeys(func(k string) string { return k[:min(len(k), 100)] + k[max(0, len(k)-100):] })},
	{caught: "keys", does: "ends keys at a zero byte", breaks: otherKeys(func(k string) string { k, _, _ = strings.Cut(k, "\x00"); return k })},
	{caught: "keys", does: "repairs what is not UTF-8", breaks: otherKeys(func(k string) string { return strings.ToValidUTF8(k, "\ufffd") })},
	{caught: "keys", does: "leaves out what is not UTF-8", breaks: otherKeys(func(k string) string { return strings.ToValidUTF8(k, "") })},
	{caught: "keys", does: "normalizes Unicode", breaks: otherKeys(strings.NewReplacer("a\u0301", "á").Replace)},
	{caught: "keys", does: "decodes percent signs", breaks: otherKeys(func(k string) string {
		if u, err := url.PathUnescape(k); err == nil {
			return u
		}
		return k
	})},
	{caught: "keys", does: "cleans keys as paths", breaks: otherKeys(path.Clean)},
	{caught: "keys", does: "ends keys at a colon", breaks: otherKeys(func(k string) string { k, _, _ = strings.Cut(k, ":"); return k })},
	{caught: "keys", does: "counts by hash tag", breaks: otherKeys(func(k string) string {
		if _, tag, ok := strings.Cut(k, "{"); ok {
			if tag, _, ok := strings.Cut(tag, "}"); ok && tag != "" {
				return tag
			}
		}
		return k
	})},
	{caught: "keys", does: "reads numbers", breaks: otherKeys(func(k string) string {
		var n float64
		if _, err := fmt.Sscan(k, &n); err == nil {
			return fmt.Sprint(n)
		}
		return k
	})},
	{caught: "hashed-keys", does: "hashes keys with FNV-1a", breaks: otherKeys(func(k string) string {
		h := fnv.New32a()
		h.Write([]byte(k))
		return fmt.Sprint(h.Sum32())
	})},
	{caught: "hashed-keys", does: "hashes keys with CRC-32", breaks: otherKeys(func(k string) string { return fmt.Sprint(crc32.ChecksumIEEE([]byte(k))) })},
	{caught: "hashed-keys", does: "keeps 32 bits of SHA-256", breaks: otherKeys(func(k string) string {
		sum := sha256.Sum256([]byte(k))
		return fmt.Sprintf("%x", sum[:4])
	})},
	{caught: "keys-and-limits", does: "joins key and window", breaks: otherNames(func(key string, l ratelimit.Limit) string { return key + l.Algorithm()[:0] + l.Window().String() })},
	{caught: "keys-and-limits", does: "joins key and seconds", breaks: otherNames(func(key string, l ratelimit.Limit) string {
		return l.Algorithm() + key + fmt.Sprint(int64(l.Window()/time.Second))
	})},
	{caught: "prefixes", does: "joins prefix and key", breaks: func(s *reference) {
		s.name = func(key string, l ratelimit.Limit) string { return s.prefix + key + l.String() }
	}},
	{caught: "prefixes", does: "ignores the prefix", breaks: func(s *reference) {
		s.name = func(key string, l ratelimit.Limit) string { return key + l.String() }
	}},
	{caught: "prefixes", does: "folds the case of prefixes", breaks: func(s *reference) {
		s.name = func(key string, l ratelimit.Limit) string {
			return fmt.Sprintf("%q %q %s", strings.ToLower(s.prefix), key, l)
		}
	}},
	{caught: "prefixes", does: "resets under all prefixes", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			for _, prefix := range []string{"rl:", "rl:api:"} {
				other := s.store(prefix)
				for _, l := range c.limits {
					delete(s.counters, other.name(c.key, l))
				}
			}
			return nil
		}
	}},
	{caught: "prefix", does: "has no prefix", breaks: func(s *reference) { s.prefix = "" }},
	{caught: "prefix", does: "has the same prefix as another store", breaks: func(s *reference) { s.prefix = "mystore" }},
	{caught: "prefix", does: "changes its prefix", breaks: func(s *reference) { s.beforeTake(func(*call) { s.prefix += "!" }) }},
	{caught: "extremes", does: "returns Remaining in 32 bits", breaks: eachResult(func(_ *call, _ ratelimit.Limit, res *ratelimit.Result) { res.Remaining = int64(int32(res.Remaining)) })},
	{caught: "extremes", does: "charges in 32 bits", breaks: beforeAdjust(func(c *call) { c.n = max(math.MinInt32, min(c.n, math.MaxInt32)) })},
	{caught: "extremes", does: "waits for 292 years at most, in 64 bits of nanoseconds", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if res := &c.results[0]; res.ResetAfter > 40*365*24*time.Hour {
				res.ResetAfter *= 8
			}
		})
	}},
}
