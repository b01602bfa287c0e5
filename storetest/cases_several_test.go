package storetest

import (
	"cmp"
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

var severalFaults = []fault{
	{caught: "all-or-none", does: "takes under one limit after the other", breaks: inTurn(false)},
	{caught: "all-or-none", does: "asks only the first limit", breaks: func(s *reference) {
		s.onTake = func(c *call) error {
			first := call{ctx: c.ctx, key: c.key, n: c.n, limits: c.limits[:1], results: c.results[:1]}
			if err := s.take(&first); err != nil || first.results[0].RetryAfter != 0 {
				first.limits, first.results = c.limits, c.results
				return s.take(&first)
			}
			s.adjust(&call{ctx: c.ctx, key: c.key, n: c.n, at: ratelimit.Now, limits: c.limits[1:]})
			look := call{ctx: c.ctx, key: c.key, limits: c.limits, results: c.results}
			return s.take(&look)
		}
	}},
	{caught: "all-or-none", does: "takes where there is room when another limit denies", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			for i, l := range c.limits {
				if !admitted(c.results) && c.results[i].RetryAfter == 0 {
					s.adjust(&call{ctx: c.ctx, key: c.key, n: c.n, at: ratelimit.Now, limits: []ratelimit.Limit{l}})
				}
			}
		})
	}},
	{caught: "several-results", does: "returns a wait for the first limit that denies only", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if i := slices.IndexFunc(c.results, func(res ratelimit.Result) bool { return res.RetryAfter != 0 }); i >= 0 {
				for j := range c.results[i+1:] {
					c.results[i+1+j].RetryAfter = 0
				}
			}
		})
	}},
	{caught: "several-results", does: "returns the longest wait for each limit", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			longest := time.Duration(0)
			for _, res := range c.results {
				longest = max(longest, res.RetryAfter)
			}
			for i := range c.results {
				c.results[i].RetryAfter = longest
			}
		})
	}},
	{caught: "never-under-one", does: "returns Never for each limit", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			for _, res := range c.results {
				if res.RetryAfter == ratelimit.Never {
					for i := range c.results {
						c.results[i].RetryAfter = ratelimit.Never
					}
				}
			}
		})
	}},
	{caught: "order", does: "sorts the results by their windows", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			sorted := *c
			sorted.limits = slices.Clone(c.limits)
			slices.SortFunc(sorted.limits, func(a, b ratelimit.Limit) int { return cmp.Compare(a.Window(), b.Window()) })
			err := take(&sorted)
			c.at = sorted.at
			return err
		}
	}},
	{caught: "order", does: "returns the results in the opposite order", breaks: func(s *reference) { s.afterTake(func(c *call) { slices.Reverse(c.results) }) }},
	{caught: "order", does: "returns the tightest limit for each", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			for i := range c.results {
				c.results[i] = slices.MinFunc(c.results, func(a, b ratelimit.Result) int { return cmp.Compare(a.Remaining, b.Remaining) })
			}
		})
	}},
	{caught: "most-limits", does: "counts under four limits at most", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			for i := range c.results {
				c.results[i] = ratelimit.Result{Remaining: c.limits[i].Burst()}
			}
			few := *c
			few.limits = c.limits[:min(4, len(c.limits))]
			err := take(&few)
			c.at = few.at
			return err
		}
	}},
	{caught: "windows-end-apart", does: "forgets all limits of a key at the end of one window", breaks: func(s *reference) {
		s.beforeTake(func(c *call) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, l := range c.limits {
				if was, ok := s.counters[s.name(c.key, l)]; ok && !was.empty() && s.get(c.key, l, s.clock()).empty() {
					for _, l := range c.limits {
						delete(s.counters, s.name(c.key, l))
					}
				}
			}
		})
	}},
}

// inTurn takes under one limit after the other.
func inTurn(giveBack bool) func(*reference) {
	return func(s *reference) {
		s.onTake = func(c *call) error {
			for i := range c.limits {
				one := call{ctx: c.ctx, key: c.key, n: c.n, limits: c.limits[i : i+1], results: c.results[i : i+1]}
				if err := s.take(&one); err != nil {
					return err
				}
				c.at = one.at
				if time.Sleep(time.Microsecond); giveBack && i > 0 && c.results[i].RetryAfter != 0 {
					s.adjust(&call{ctx: c.ctx, key: c.key, n: -c.n - 1, at: ratelimit.Now, limits: c.limits[:i]})
				}
			}
			return nil
		}
	}
}
