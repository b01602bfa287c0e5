package storetest

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

var takeFaults = []fault{
	{caught: "limit", does: "admits one unit more", breaks: otherLimits(func(l ratelimit.Limit) ratelimit.Limit { return withSize(l, l.N()+1) })},
	{caught: "limit", does: "denies the last unit", breaks: otherLimits(func(l ratelimit.Limit) ratelimit.Limit { return withSize(l, max(1, l.N()-1)) })},
	{caught: "limit", does: "returns what was left before the take", breaks: eachResult(func(c *call, l ratelimit.Limit, res *ratelimit.Result) {
		if res.RetryAfter == 0 {
			res.Remaining = min(res.Remaining+c.n, l.Burst())
		}
	})},
	{caught: "limit", does: "sets Blocked with a denial, although it counts no blocks", breaks: func(s *reference) {
		s.kinds = 0
		eachResult(func(c *call, _ ratelimit.Limit, res *ratelimit.Result) {
			res.Blocked = res.RetryAfter > 0 && res.Remaining == 0
		})(s)
	}},
	{caught: "cost", does: "takes one unit whatever the cost", breaks: func(s *reference) { s.beforeTake(func(c *call) { c.n = min(c.n, 1) }) }},
	{caught: "cost", does: "admits any cost while a unit is left", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			n := c.n
			c.n = 0
			if err := take(c); err != nil {
				return err
			}
			if c.n = n; c.results[0].Remaining > 0 {
				c.n = min(n, c.results[0].Remaining)
			}
			return take(c)
		}
	}},
	{caught: "burst", does: "ignores the burst", breaks: otherLimits(func(l ratelimit.Limit) ratelimit.Limit {
		if l.Algorithm() == "bucket" {
			return ratelimit.TokenBucket(l.N(), l.Window(), l.N())
		}
		return l
	})},
	{caught: "denied", does: "charges what it denies", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if !admitted(c.results) {
				s.adjust(&call{ctx: c.ctx, key: c.key, n: c.n, at: ratelimit.Now, limits: c.limits})
			}
		})
	}},
	{caught: "denied", does: "lets the wait grow with each denial", breaks: func(s *reference) {
		denials := 0
		s.afterTake(func(c *call) {
			if !admitted(c.results) {
				denials++
				s.edit(c, func(l ratelimit.Limit, was *counter, now int64) { was.t += int64(l.Window() / 100) })
			}
		})
	}},
	{caught: "never", does: "returns a finite wait for what never fits", breaks: eachResult(func(_ *call, l ratelimit.Limit, res *ratelimit.Result) {
		res.RetryAfter = min(res.RetryAfter, l.Window())
	})},
	{caught: "never", does: "overflows when it adds the units of a take", breaks: func(s *reference) {
		s.beforeTake(func(c *call) {
			if c.n > math.MaxInt64-2 {
				c.n = 0
			}
		})
	}},
	{caught: "never", does: "keeps units in 32 bits", breaks: func(s *reference) { s.beforeTake(func(c *call) { c.n = max(0, int64(int32(c.n))) }) }},
	{caught: "look", does: "takes a unit when it looks", breaks: func(s *reference) { s.beforeTake(func(c *call) { c.n = max(c.n, 1) }) }},
	{caught: "look", does: "denies a look if nothing is left", breaks: eachResult(func(c *call, _ ratelimit.Limit, res *ratelimit.Result) {
		if c.n == 0 && res.Remaining == 0 {
			res.RetryAfter = res.MoreAfter
		}
	})},
	{caught: "look-opens-no-window", does: "opens a window when it looks", breaks: func(s *reference) {
		openWindow := s.opensWindows()
		s.beforeTake(func(c *call) {
			if c.n == 0 {
				openWindow(c)
			}
		})
	}},
	{caught: "look-moves-no-window", does: "extends the window when it looks", breaks: func(s *reference) {
		s.beforeTake(func(c *call) {
			if c.n == 0 {
				s.edit(c, func(_ ratelimit.Limit, was *counter, now int64) { was.t = now })
			}
		})
	}},
	{caught: "concurrent", does: "looks first and takes then", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			n := c.n
			c.n = 0
			if err := take(c); err != nil {
				return err
			}
			if c.n = n; n > c.results[0].Remaining {
				return take(c)
			}
			time.Sleep(time.Microsecond)
			s.edit(c, func(l ratelimit.Limit, was *counter, _ int64) { *was = add(l, *was, n) })
			return nil
		}
	}},
	{caught: "concurrent", does: "gives up when others are faster", breaks: func(s *reference) {
		var calls atomic.Int64
		s.beforeTake(func(*call) {
			calls.Add(1)
			time.Sleep(time.Microsecond)
		})
		take := s.onTake
		s.onTake = func(c *call) error {
			defer calls.Add(-1)
			if err := take(c); err != nil || calls.Load() <= 10 {
				return err
			}
			return errors.New("too many attempts")
		}
	}},
	{caught: "concurrent-limits", does: "takes under one limit after the other, and gives back too much", breaks: inTurn(true)},
	{caught: "concurrent-limits", does: "fails if two callers lock its counters in different orders", breaks: func(s *reference) {
		locked := map[string]bool{}
		take := s.onTake
		s.onTake = func(c *call) error {
			for i, l := range c.limits {
				name := s.name(c.key, l)
				s.mu.Lock()
				busy := locked[name]
				if !busy {
					locked[name] = true
				}
				s.mu.Unlock()
				if !busy {
					defer func() {
						s.mu.Lock()
						defer s.mu.Unlock()
						delete(locked, name)
					}()
				} else if i > 0 {
					return errors.New("deadlock detected")
				} else {
					time.Sleep(time.Millisecond)
					return s.onTake(c)
				}
				time.Sleep(time.Microsecond)
			}
			return take(c)
		}
	}},
	{caught: "concurrent-keys", does: "resets all keys", breaks: func(s *reference) {
		pause := func(*call) { time.Sleep(rand.N(5 * time.Microsecond)) }
		s.beforeTake(pause)
		beforeAdjust(pause)(s)
		s.onReset = func(*call) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			clear(s.counters)
			return nil
		}
	}},
	{caught: "concurrent-keys", does: "has one buffer for the results of all callers", breaks: func(s *reference) {
		var buffer [ratelimit.MaxLimits]ratelimit.Result
		var mu sync.Mutex
		take := s.onTake
		s.onTake = func(c *call) error {
			unshared := *c
			unshared.results = make([]ratelimit.Result, len(c.limits))
			err := take(&unshared)
			mu.Lock()
			copy(buffer[:], unshared.results)
			mu.Unlock()
			time.Sleep(time.Microsecond)
			mu.Lock()
			copy(c.results, buffer[:])
			mu.Unlock()
			c.at = unshared.at
			return err
		}
	}},
	{caught: "concurrent-refunds", does: "reads and writes without a lock when it gives back", breaks: func(s *reference) { s.racesToAdjust(-1) }},
	{caught: "concurrent-charges", does: "reads and writes without a lock when it charges", breaks: func(s *reference) { s.racesToAdjust(1) }},
	{caught: "processes", does: "keeps blocks in the process", breaks: func(s *reference) {
		s.processes++
		process := s.processes
		s.blockName = func(key string, l ratelimit.Limit) string { return fmt.Sprint(process, s.name(key, l)) }
	}},
	{caught: "processes", does: "counts in each process for itself", breaks: func(s *reference) {
		separate := newServer()
		separate.delay = s.delay
		s.server = separate
	}},
	{caught: "processes", does: "takes the time from its own process", breaks: func(s *reference) {
		clock := s.clock
		s.processes++
		clockOffset := s.processes * int64(2*time.Hour)
		s.clock = func() int64 { return clock() + clockOffset }
	}},
}

// opensWindows makes windows open at instants that the returned function records, if
// that is before their first unit.
func (r *reference) opensWindows() (open func(c *call)) {
	openedAt := map[string]int64{}
	r.afterTake(func(c *call) {
		r.edit(c, func(l ratelimit.Limit, was *counter, now int64) {
			if at, ok := openedAt[r.name(c.key, l)]; ok && !was.empty() && now-at < int64(l.Window()) {
				was.t = at
			}
		})
	})
	return func(c *call) {
		for _, l := range c.limits {
			if name := r.name(c.key, l); openedAt[name] == 0 {
				openedAt[name] = r.clock()
			}
		}
	}
}

// racesToAdjust adjusts by a number of this sign in two steps: others may be between.
func (r *reference) racesToAdjust(sign int64) {
	r.onAdjust = func(c *call) (int64, error) {
		if c.n*sign < 0 {
			return r.adjust(c)
		}
		l := c.limits[0]
		r.mu.Lock()
		now := r.clock()
		before := r.get(c.key, l, now)
		r.mu.Unlock()
		time.Sleep(time.Microsecond)
		after := r.move(l, before, c.n, now, 0)
		r.edit(c, func(_ ratelimit.Limit, was *counter, _ int64) { *was = after })
		return max(0, grown(l, before, after)), nil
	}
}
