package storetest

import (
	"cmp"
	"math"
	"slices"

	"github.com/ratelimit-go/ratelimit"
)

// units returns a counter of n units of a window or a bucket.
func units(l ratelimit.Limit, now, n int64) counter {
	if isBucket(l) {
		return counter{t: now, level: product(n, int64(l.Window()))}
	}
	return counter{t: now, units: n}
}

// negative lets counts fall below zero where it says so.
func negative(where func(l ratelimit.Limit, c counter, n, age int64) bool) func(*reference) {
	return func(s *reference) {
		s.used = func(l ratelimit.Limit, c counter, now int64) int64 { return max(0, used(l, c, now)) }
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if !isBucket(l) && n < 0 && where(l, c, n, age) {
				c.units += max(n, -100)
				return c
			}
			return move(l, c, n, now, age)
		}
	}
}

var adjustFaults = []fault{
	{caught: "refund", does: "gives back more than was taken", breaks: negative(func(_ ratelimit.Limit, c counter, n, _ int64) bool { return !c.empty() })},
	{caught: "refund", does: "negates the smallest number", breaks: beforeAdjust(func(c *call) {
		if c.n == math.MinInt64 {
			c.n = math.MaxInt64
		}
	})},
	{caught: "refund", does: "keeps units in 32 bits", breaks: beforeAdjust(func(c *call) { c.n = int64(int32(c.n)) })},
	{caught: "refund", does: "gives nothing back", breaks: beforeAdjust(func(c *call) { c.n = max(0, c.n) })},
	{caught: "refund", does: "returns what it has given back", breaks: func(s *reference) {
		s.onAdjust = func(c *call) (int64, error) {
			charged, err := s.adjust(c)
			return max(charged, -max(c.n, -100)), err
		}
	}},
	{caught: "refund-unknown", does: "makes a counter below zero", breaks: negative(func(_ ratelimit.Limit, c counter, n, _ int64) bool { return c.empty() })},
	{caught: "refund-unknown", does: "charges a new key for a refund", breaks: func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if c.empty() && n < 0 {
				return units(l, now, min(l.Burst(), -max(n, -100)))
			}
			return move(l, c, n, now, age)
		}
	}},
	{caught: "refund-several", does: "gives back under the first limit only", breaks: beforeAdjust(func(c *call) {
		if c.n < 0 {
			c.limits = c.limits[:1]
		}
	})},
	{caught: "charge", does: "does not charge a key without a counter", breaks: func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if c.empty() {
				return c
			}
			return move(l, c, n, now, age)
		}
	}},
	{caught: "charge", does: "charges nothing", breaks: beforeAdjust(func(c *call) { c.n = min(0, c.n) })},
	{caught: "charge-above", does: "charges only what fits", breaks: func(s *reference) {
		s.onAdjust = func(c *call) (int64, error) {
			if c.n < 0 {
				return s.adjust(c)
			}
			results := make([]ratelimit.Result, len(c.limits))
			if err := s.take(&call{ctx: c.ctx, key: c.key, n: c.n, limits: c.limits, results: results}); err != nil || !admitted(results) {
				return 0, err
			}
			return c.n, nil
		}
	}},
	{caught: "charge-above", does: "returns what it was asked to charge", breaks: func(s *reference) {
		s.onAdjust = func(c *call) (int64, error) {
			_, err := s.adjust(c)
			return max(0, c.n), err
		}
	}},
	{caught: "charge-above", does: "goes above the limit", breaks: func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if n > 0 {
				return add(l, c, min(n, 1<<40))
			}
			return move(l, c, n, now, age)
		}
	}},
	{caught: "charge-several", does: "returns the most that a limit was charged", breaks: func(s *reference) {
		s.onAdjust = func(c *call) (charged int64, err error) {
			for _, l := range c.limits {
				one, err := s.adjust(&call{ctx: c.ctx, key: c.key, n: c.n, at: c.at, limits: []ratelimit.Limit{l}})
				if charged = max(charged, one); err != nil {
					return 0, err
				}
			}
			return charged, nil
		}
	}},
	{caught: "charge-several", does: "charges each limit by the least of what fits", breaks: func(s *reference) {
		beforeAdjust(func(c *call) {
			if c.n > 0 {
				results := make([]ratelimit.Result, len(c.limits))
				s.take(&call{ctx: c.ctx, key: c.key, limits: c.limits, results: results})
				for _, res := range results {
					c.n = min(c.n, res.Remaining)
				}
			}
		})(s)
	}},
	{caught: "charge-lowered", does: "cuts a count to a limit that was lowered", breaks: func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if c.units > l.N() {
				c.units = l.N()
			}
			return move(l, c, n, now, age)
		}
	}},
	{caught: "adjust-by-none", does: "opens a window", breaks: func(s *reference) { beforeAdjust(s.opensWindows())(s) }},
	{caught: "adjust-by-none", does: "counts a unit", breaks: beforeAdjust(func(c *call) {
		if c.n == 0 {
			c.n = 1
		}
	})},
	{caught: "now", does: "ignores units that are still to come", breaks: beforeAdjust(func(c *call) {
		if c.at != ratelimit.Now && c.at > 1<<62-1 {
			c.n = 0
		}
	})},
	{caught: "now", does: "takes the end of time for the beginning", breaks: beforeAdjust(func(c *call) {
		if c.at == ratelimit.Now {
			c.at = 0
		}
	})},
}

// atPresent lets Adjust ignore when the units were taken.
func atPresent(where func(l ratelimit.Limit, n int64) bool) func(*reference) {
	return func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if where(l, n) {
				age = 0
			}
			return move(l, c, n, now, age)
		}
	}
}

// ignoresPastUnits lets Adjust ignore units that were taken before now.
func ignoresPastUnits(where func(l ratelimit.Limit, n int64) bool) func(*reference) {
	return func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if where(l, n) && age > 0 {
				n = 0
			}
			return move(l, c, n, now, age)
		}
	}
}

var pastUnitsFaults = []fault{
	// A store for PostgreSQL with this fault has passed an earlier version of the suite.
	{caught: "late-charge-fixed", does: "charges a window for units of an earlier one", breaks: atPresent(func(l ratelimit.Limit, n int64) bool { return isFixed(l) && n > 0 })},
	{caught: "late-charge-fixed", does: "charges an open window for units of an earlier one", breaks: func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if isFixed(l) && n > 0 && !c.empty() {
				age = 0
			}
			return move(l, c, n, now, age)
		}
	}},
	{caught: "late-charge-fixed", does: "opens a window when it charges, not when the units were taken", breaks: func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if isFixed(l) && n > 0 && c.empty() && age < int64(l.Window()) {
				age = 0
			}
			return move(l, c, n, now, age)
		}
	}},
	{caught: "late-charge-fixed", does: "ignores late charges", breaks: ignoresPastUnits(func(l ratelimit.Limit, n int64) bool { return isFixed(l) && n > 0 })},
	{caught: "late-charge-fixed", does: "ignores charges for units from before the open window", breaks: func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if isFixed(l) && n > 0 && !c.empty() && age > now-c.t {
				n = 0
			}
			return move(l, c, n, now, age)
		}
	}},
	{caught: "late-charge-sliding", does: "charges the present window for units of an earlier one", breaks: atPresent(func(l ratelimit.Limit, n int64) bool { return isSliding(l) && n > 0 })},
	{caught: "late-charge-sliding", does: "ignores units of the window before", breaks: func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if isSliding(l) && n > 0 && age > now-c.t {
				n = 0
			}
			return move(l, c, n, now, age)
		}
	}},
	{caught: "late-charge-sliding", does: "takes all that is older for the window before", breaks: func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if isSliding(l) && n > 0 {
				age = min(age, now-c.t+int64(l.Window()))
			}
			return move(l, c, n, now, age)
		}
	}},
	// And so has one with this fault.
	{caught: "late-charge-bucket", does: "ignores what has leaked of the units that it charges", breaks: atPresent(func(l ratelimit.Limit, n int64) bool { return isBucket(l) && n > 0 })},
	{caught: "late-charge-bucket", does: "ignores late charges", breaks: ignoresPastUnits(func(l ratelimit.Limit, n int64) bool { return isBucket(l) && n > 0 })},
	{caught: "late-charge-bucket", does: "returns parts of a unit as whole units", breaks: func(s *reference) {
		s.onAdjust = func(c *call) (int64, error) {
			charged, err := s.adjust(c)
			if c.n > charged && charged > 0 {
				charged++
			}
			return charged, err
		}
	}},
	{caught: "late-refund-fixed", does: "gives back into whatever window is open", breaks: atPresent(func(l ratelimit.Limit, n int64) bool { return isFixed(l) && n < 0 })},
	{caught: "late-refund-fixed", does: "makes a counter below zero once the window has closed", breaks: negative(func(l ratelimit.Limit, c counter, n, age int64) bool { return isFixed(l) && c.empty() && age > 0 })},
	{caught: "late-refund-fixed", does: "ignores late refunds", breaks: ignoresPastUnits(func(l ratelimit.Limit, n int64) bool { return isFixed(l) && n < 0 })},
	{caught: "late-refund-sliding", does: "gives back into the present window", breaks: atPresent(func(l ratelimit.Limit, n int64) bool { return isSliding(l) && n < 0 })},
	{caught: "late-refund-sliding", does: "ignores units of the window before", breaks: func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n, now, age int64) counter {
			if isSliding(l) && n < 0 && age > now-c.t {
				n = 0
			}
			return move(l, c, n, now, age)
		}
	}},
	{caught: "late-refund-bucket", does: "gives back what has leaked already", breaks: atPresent(func(l ratelimit.Limit, n int64) bool { return isBucket(l) && n < 0 })},
	{caught: "late-refund-bucket", does: "ignores late refunds", breaks: ignoresPastUnits(func(l ratelimit.Limit, n int64) bool { return isBucket(l) && n < 0 })},
	{caught: "late-under-several", does: "charges nothing if one limit has nothing to charge", breaks: func(s *reference) {
		s.onAdjust = func(c *call) (int64, error) {
			for _, l := range c.limits {
				s.mu.Lock()
				now := s.clock()
				was := s.get(c.key, l, now)
				is := s.move(l, was, c.n, now, now-min(now, int64(c.at)))
				s.mu.Unlock()
				if grown(l, was, is) == 0 {
					return 0, nil
				}
			}
			return s.adjust(c)
		}
	}},
	{caught: "late-under-several", does: "measures lateness by the shortest window", breaks: beforeAdjust(func(c *call) {
		shortest := slices.MinFunc(c.limits, func(a, b ratelimit.Limit) int { return cmp.Compare(a.Window(), b.Window()) })
		if c.n < 0 && len(c.limits) > 1 {
			c.limits = []ratelimit.Limit{shortest}
		}
	})},
}
