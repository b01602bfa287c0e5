package storetest

import (
	"math/big"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

func isBucket(l ratelimit.Limit) bool  { return l.Algorithm() == "bucket" }
func isSliding(l ratelimit.Limit) bool { return l.Algorithm() == "sliding" }
func isFixed(l ratelimit.Limit) bool   { return l.Algorithm() == "fixed" }

var waitFaults = []fault{
	{caught: "results", does: "sets RetryAfter only if it denies", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			before := c.results[0]
			err := take(c)
			if err == nil && c.results[0].RetryAfter == 0 {
				c.results[0].RetryAfter = before.RetryAfter
			}
			return err
		}
	}},
	{caught: "results", does: "sets MoreAfter and ResetAfter only if something was taken", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			before := c.results[0]
			err := take(c)
			if res := &c.results[0]; err == nil && res.ResetAfter == 0 {
				res.MoreAfter, res.ResetAfter = before.MoreAfter, before.ResetAfter
			}
			return err
		}
	}},
	{caught: "results", does: "sets Blocked and BlockBegan only during a block", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			before := c.results[0]
			err := take(c)
			if res := &c.results[0]; err == nil && !res.Blocked {
				res.Blocked, res.BlockBegan = before.Blocked, before.BlockBegan
			}
			return err
		}
	}},
	{caught: "waits", does: "returns the whole window for each wait", breaks: func(s *reference) {
		eachResult(func(_ *call, l ratelimit.Limit, res *ratelimit.Result) {
			for _, d := range []*time.Duration{&res.RetryAfter, &res.MoreAfter, &res.ResetAfter} {
				if *d != 0 && *d != ratelimit.Never {
					*d = l.Window()
				}
			}
		})(s)
	}},
	{caught: "waits", does: "returns ResetAfter for MoreAfter", breaks: eachResult(func(_ *call, _ ratelimit.Limit, res *ratelimit.Result) { res.MoreAfter = res.ResetAfter })},
	{caught: "waits", does: "returns the wait for one unit for RetryAfter", breaks: eachResult(func(_ *call, _ ratelimit.Limit, res *ratelimit.Result) {
		if res.RetryAfter != ratelimit.Never {
			res.RetryAfter = min(res.RetryAfter, res.MoreAfter)
		}
	})},
	{caught: "waits", does: "forgets in ResetAfter that units weigh in the next window", breaks: eachResult(func(_ *call, l ratelimit.Limit, res *ratelimit.Result) {
		if isSliding(l) {
			res.ResetAfter = min(res.ResetAfter, l.Window())
		}
	})},
	{caught: "waits", does: "returns when RetryAfter ends, in seconds since 1970", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			for i := range c.results {
				if d := &c.results[i].RetryAfter; *d > 0 && *d != ratelimit.Never {
					*d += time.Duration(c.at)
				}
			}
		})
	}},
	{caught: "retry-after", does: "rounds down to seconds", breaks: rounded(func(d time.Duration) time.Duration { return d.Truncate(time.Second) })},
	{caught: "retry-after", does: "rounds up to seconds", breaks: rounded(func(d time.Duration) time.Duration { return (d + time.Second - 1).Truncate(time.Second) })},
	{caught: "retry-after", does: "is a millisecond early", breaks: rounded(func(d time.Duration) time.Duration { return max(1, d-time.Millisecond) }), fine: true},
	{caught: "retry-after", does: "is a millisecond late", breaks: rounded(func(d time.Duration) time.Duration { return d + time.Millisecond }), fine: true},
	{caught: "more-after", does: "rounds down to seconds", breaks: rounded(func(d time.Duration) time.Duration { return d.Truncate(time.Second) })},
	{caught: "more-after", does: "rounds up to seconds", breaks: rounded(func(d time.Duration) time.Duration { return (d + time.Second - 1).Truncate(time.Second) })},
	{caught: "reset-after", does: "rounds down to seconds", breaks: rounded(func(d time.Duration) time.Duration { return d.Truncate(time.Second) })},
	{caught: "reset-after", does: "rounds up to seconds", breaks: rounded(func(d time.Duration) time.Duration { return (d + time.Second - 1).Truncate(time.Second) })},
	{caught: "fractions", does: "keeps a key for whole seconds", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			if now-c.t >= int64(l.Window().Truncate(time.Second)) {
				return counter{t: now}
			}
			return aged(l, c, now)
		}
	}},
	{caught: "fractions", does: "cuts windows to whole seconds", breaks: otherLimits(func(l ratelimit.Limit) ratelimit.Limit {
		return withWindow(l, max(time.Second, l.Window().Truncate(time.Second)))
	})},
}

var timeFaults = []fault{
	{caught: "fixed-window", does: "extends the window on every denial", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if !admitted(c.results) {
				s.edit(c, func(_ ratelimit.Limit, was *counter, now int64) { was.t = now })
			}
		})
	}},
	{caught: "fixed-window", does: "extends the window with every unit", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.n > 0 && admitted(c.results) {
				s.edit(c, func(_ ratelimit.Limit, was *counter, now int64) { was.t = now })
			}
		})
	}},
	{caught: "fixed-window", does: "opens windows on the clock", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			if c = aged(l, c, now); c.empty() && isFixed(l) {
				c.t -= (now + int64(l.Window())/3) % int64(l.Window())
			}
			return c
		}
	}},
	{caught: "fixed-window", does: "opens a window where the last one closed", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			if passed := now - c.t; isFixed(l) && !c.empty() && passed >= int64(l.Window()) {
				return counter{t: now - passed%int64(l.Window())}
			}
			return aged(l, c, now)
		}
	}},
	{caught: "fixed-window", does: "never opens another window", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			if passed := now - c.t; isFixed(l) && !c.empty() && passed >= int64(l.Window()) {
				c.t += passed - passed%int64(l.Window())
				return c
			}
			return aged(l, c, now)
		}
	}},
	{caught: "sliding-window", does: "forgets the window before", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			c = aged(l, c, now)
			if isSliding(l) {
				c.before = 0
			}
			return c
		}
	}},
	{caught: "sliding-window", does: "counts all of the window before", breaks: func(s *reference) {
		s.used = func(l ratelimit.Limit, c counter, now int64) int64 {
			if isSliding(l) {
				return c.units + c.before
			}
			return used(l, c, now)
		}
	}},
	{caught: "sliding-window", does: "adds up all windows in a row", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			older := c.before
			c = aged(l, c, now)
			if c.before > 0 {
				c.before = max(c.before, c.before+older-c.before)
				c.before += older
			}
			return c
		}
	}},
	{caught: "token-bucket", does: "refills all at once", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			if isBucket(l) && now-c.t < int64(l.Window()) && !c.empty() {
				return c
			}
			return aged(l, c, now)
		}
	}},
	{caught: "token-bucket", does: "saves up more than the burst", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			if isBucket(l) && !c.empty() {
				saved := product(-l.Burst(), int64(l.Window()))
				return counter{t: now, level: most(saved, new(big.Int).Sub(parts(c.level), product(l.N(), now-c.t)))}
			}
			return aged(l, c, now)
		}
		eachResult(func(_ *call, l ratelimit.Limit, res *ratelimit.Result) { res.Remaining = min(res.Remaining, l.Burst()) })(s)
	}},
	{caught: "token-bucket", does: "forgets parts of a unit with each take", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			s.edit(c, func(l ratelimit.Limit, was *counter, now int64) {
				if w := big.NewInt(int64(l.Window())); isBucket(l) && c.n > 0 && admitted(c.results) {
					up := new(big.Int).Add(parts(was.level), new(big.Int).Sub(w, big.NewInt(1)))
					was.level = up.Mul(up.Div(up, w), w)
				}
			})
		})
	}},
	{caught: "large-units", does: "multiplies units and time in 64 bits", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			if isBucket(l) && !c.empty() {
				leaked := big.NewInt(max(0, l.N()*(now-c.t)))
				return counter{t: now, level: most(new(big.Int).Sub(parts(c.level), leaked), new(big.Int))}
			}
			return aged(l, c, now)
		}
	}},
	{caught: "large-units", does: "weighs units in 64 bits", breaks: func(s *reference) {
		s.used = func(l ratelimit.Limit, c counter, now int64) int64 {
			if isSliding(l) {
				return c.units + max(0, c.before*(int64(l.Window())-(now-c.t))/int64(l.Window()))
			}
			return used(l, c, now)
		}
	}},
	{caught: "border", does: "forgets all keys at the end of one window", breaks: func(s *reference) {
		s.beforeTake(func(c *call) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if was, ok := s.counters[s.name(c.key, c.limits[0])]; ok && !was.empty() && s.get(c.key, c.limits[0], s.clock()).empty() {
				clear(s.counters)
			}
		})
	}},
	{caught: "border", does: "lets each of those set the count that come while a window opens", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			s.mu.Lock()
			was, ok := s.counters[s.name(c.key, c.limits[0])]
			opens := ok && !was.empty() && s.get(c.key, c.limits[0], s.clock()).empty()
			s.mu.Unlock()
			err := take(c)
			if time.Sleep(time.Microsecond); opens && c.n > 0 && err == nil && admitted(c.results) {
				s.edit(c, func(_ ratelimit.Limit, was *counter, _ int64) { was.units = c.n })
			}
			return err
		}
	}},
	{caught: "instants", does: "returns seconds", breaks: func(s *reference) { s.afterTake(func(c *call) { c.at /= ratelimit.Instant(time.Second) }) }},
	{caught: "instants", does: "returns no instant with a look", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.n == 0 {
				c.at = 0
			}
		})
	}},
	{caught: "instants", does: "returns no instant with a denial", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if !admitted(c.results) {
				c.at = 0
			}
		})
	}},
	{caught: "instants", does: "returns the instant at which the window opened", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			s.edit(c, func(_ ratelimit.Limit, was *counter, _ int64) { c.at = ratelimit.Instant(was.t) })
		})
	}},
	{caught: "instants", does: "counts time down", breaks: func(s *reference) { s.afterTake(func(c *call) { c.at = ratelimit.Now/2 - c.at }) }},
	{caught: "expiry", does: "keeps a key for ever once it was adjusted, as one without a time to live", breaks: func(s *reference) {
		adjusted := map[string]bool{}
		beforeAdjust(func(c *call) { adjusted[c.key] = true })(s)
		s.beforeTake(func(c *call) {
			s.mu.Lock()
			defer s.mu.Unlock()
			name, now := s.name(c.key, c.limits[0]), s.clock()
			if stored := s.counters[name]; adjusted[c.key] && s.aged(c.limits[0], stored, now).empty() {
				stored.t = now
				s.counters[name] = stored
			}
		})
	}},
	{caught: "expiry", does: "is not whole when the time of the first limit is over", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			if l.N() == 4 && c.units > 4 {
				return c
			}
			return aged(l, c, now)
		}
	}},
}
