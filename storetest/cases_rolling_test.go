package storetest

import (
	"math"
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

var rollingFaults = []fault{
	{caught: "rolling", does: "counts as a fixed window", breaks: agedLog(func(l ratelimit.Limit, log []int64, now int64) []int64 {
		if len(log) > 0 && now-log[0] < int64(l.Window()) {
			return log
		}
		return nil
	})},
	{caught: "rolling", does: "counts as a window that slides on with every unit", breaks: agedLog(func(l ratelimit.Limit, log []int64, now int64) []int64 {
		if len(log) > 0 && now-log[len(log)-1] < int64(l.Window()) {
			return log
		}
		return nil
	})},
	{caught: "rolling", does: "counts in windows on the clock", breaks: agedLog(func(l ratelimit.Limit, log []int64, now int64) []int64 {
		return slices.DeleteFunc(log, func(at int64) bool { return at < now-now%int64(l.Window()) })
	})},
	{caught: "rolling", does: "counts in quarters of the window", breaks: agedLog(func(l ratelimit.Limit, log []int64, now int64) []int64 {
		quarter := int64(l.Window()) / 4
		return slices.DeleteFunc(log, func(at int64) bool { return at-at%quarter+3*quarter <= now })
	})},
	{caught: "rolling", does: "counts a unit for longer than its window", breaks: agedLog(func(l ratelimit.Limit, log []int64, now int64) []int64 {
		return slices.DeleteFunc(log, func(at int64) bool { return now-at >= int64(l.Window())*5/4 })
	})},
	{caught: "rolling", does: "names other kinds after the first unit", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.n > 0 {
				s.kinds = ratelimit.KindRolling
			}
		})
	}},
	{caught: "rolling-ends", does: "counts a unit for a moment too long", fine: true, breaks: agedLog(func(l ratelimit.Limit, log []int64, now int64) []int64 {
		return slices.DeleteFunc(log, func(at int64) bool { return now-at > int64(l.Window())+int64(l.Window())/100 })
	})},
	{caught: "rolling-ends", does: "returns a RetryAfter that is a sixth too long", breaks: eachResult(func(_ *call, _ ratelimit.Limit, res *ratelimit.Result) {
		res.RetryAfter += res.RetryAfter / 6
		res.ResetAfter += res.ResetAfter / 6
	})},
	{caught: "rolling-waits", does: "says to wait for the first unit, whatever is asked for", breaks: eachResult(func(_ *call, _ ratelimit.Limit, res *ratelimit.Result) {
		res.RetryAfter = min(res.RetryAfter, res.MoreAfter)
	})},
	{caught: "rolling-waits", does: "says to wait until all units have left", breaks: eachResult(func(_ *call, _ ratelimit.Limit, res *ratelimit.Result) {
		if res.RetryAfter > 0 {
			res.RetryAfter = res.ResetAfter
		}
	})},
	{caught: "rolling-waits", does: "resets with the oldest unit", breaks: eachResult(func(_ *call, _ ratelimit.Limit, res *ratelimit.Result) { res.ResetAfter = res.MoreAfter })},
	{caught: "rolling-waits", does: "has more when all units have left", breaks: eachResult(func(_ *call, _ ratelimit.Limit, res *ratelimit.Result) { res.MoreAfter = res.ResetAfter })},
	{caught: "rolling-refund", does: "gives back the youngest units, whatever the instant", breaks: rolls(func(n, now, at int64) (int64, int64) {
		if n < 0 {
			at = math.MaxInt64
		}
		return n, at
	})},
	{caught: "rolling-refund", does: "gives back no units for Now", breaks: rolls(func(n, now, at int64) (int64, int64) {
		if n < 0 && at > now {
			n = 0
		}
		return n, at
	})},
	{caught: "rolling-refund", does: "gives back the oldest units for Now", breaks: func(s *reference) {
		s.roll = func(l ratelimit.Limit, c counter, n, now, at int64) counter {
			if n < 0 && at > now {
				c.log = c.log[min(-max(n, -1000), int64(len(c.log))):]
				return c
			}
			return roll(l, c, n, now, at)
		}
	}},
	{caught: "rolling-refund", does: "gives back units of any instant if there are not enough", breaks: func(s *reference) {
		s.roll = func(l ratelimit.Limit, c counter, n, now, at int64) counter {
			after := roll(l, c, n, now, at)
			if left := -max(n, -1000) - int64(len(c.log)-len(after.log)); n < 0 && left > 0 {
				after = roll(l, after, -left, now, math.MaxInt64)
			}
			return after
		}
	}},
	{caught: "rolling-refund", does: "gives back one unit at most", breaks: rolls(func(n, now, at int64) (int64, int64) { return max(n, -1), at })},
	{caught: "rolling-charge", does: "charges from now", breaks: rolls(func(n, now, at int64) (int64, int64) {
		if n > 0 {
			at = now
		}
		return n, at
	})},
	{caught: "rolling-charge", does: "charges units that have left", breaks: func(s *reference) {
		s.roll = func(l ratelimit.Limit, c counter, n, now, at int64) counter {
			return roll(l, c, n, now, max(at, now-int64(l.Window())+1))
		}
	}},
	{caught: "rolling-charge", does: "charges more than n", breaks: func(s *reference) {
		s.roll = func(l ratelimit.Limit, c counter, n, now, at int64) counter {
			return roll(withN(l, 1000), c, n, now, at)
		}
	}},
	{caught: "rolling-charge", does: "charges all or nothing", breaks: func(s *reference) {
		s.roll = func(l ratelimit.Limit, c counter, n, now, at int64) counter {
			if n > l.N()-int64(len(c.log)) {
				return c
			}
			return roll(l, c, n, now, at)
		}
	}},
	{caught: "rolling-n", does: "has a counter for each n", breaks: otherNames(func(key string, l ratelimit.Limit) string {
		return key + "\x00" + withWindow(l.Named(""), l.Window()).String()
	})},
	{caught: "rolling-n", does: "drops the units that are too many", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			c = aged(l, c, now)
			c.log = c.log[max(0, int64(len(c.log))-l.N()):]
			return c
		}
	}},
	{caught: "rolling-n", does: "has one counter for all algorithms", breaks: otherNames(func(key string, l ratelimit.Limit) string { return key + l.Window().String() })},
	{caught: "rolling-n", does: "has one counter for all windows", breaks: otherNames(func(key string, l ratelimit.Limit) string { return key + l.Algorithm() })},
	{caught: "rolling-n", does: "does not reset", breaks: func(s *reference) { s.onReset = func(*call) error { return nil } }},
	{caught: "rolling-denied", does: "counts what it denies, from now on", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.n > 0 && c.n <= c.limits[0].N() && !admitted(c.results) {
				s.edit(c, func(l ratelimit.Limit, was *counter, now int64) { *was = roll(l, *was, 1, now, now) })
			}
		})
	}},
	{caught: "rolling-denied", does: "counts a look", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.n == 0 {
				s.edit(c, func(l ratelimit.Limit, was *counter, now int64) { *was = roll(l, *was, 1, now, now) })
			}
		})
	}},
	{caught: "rolling-denied", does: "lets a client that is denied wait for units that can never fit", breaks: eachResult(func(_ *call, l ratelimit.Limit, res *ratelimit.Result) {
		if res.RetryAfter == ratelimit.Never {
			res.RetryAfter = l.Window()
		}
	})},
	{caught: "rolling-several", does: "takes under a rolling window what another limit denies", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.n > 0 && !admitted(c.results) {
				s.edit(c, func(l ratelimit.Limit, was *counter, now int64) {
					if l.Algorithm() == "rolling" {
						*was = roll(l, *was, c.n, now, now)
					}
				})
			}
		})
	}},
	{caught: "rolling-several", does: "takes under the others what a rolling window denies", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.n > 0 && !admitted(c.results) {
				s.edit(c, func(l ratelimit.Limit, was *counter, now int64) {
					if l.Algorithm() != "rolling" {
						*was = move(l, *was, c.n, now, 0)
					}
				})
			}
		})
	}},
	{caught: "rolling-concurrent", does: "takes in two steps", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			if c.n == 0 {
				return take(c)
			}
			look := *c
			look.n = 0
			if err := take(&look); err != nil {
				return err
			}
			time.Sleep(time.Millisecond) // others look in the meantime
			for i, l := range c.limits {
				if c.n > look.results[i].Remaining {
					return take(c)
				}
				s.edit(c, func(of ratelimit.Limit, was *counter, now int64) {
					if of == l {
						*was = add(l, *was, c.n)
					}
				})
			}
			c.at = look.at
			return nil
		}
	}},
	{caught: "rolling-block", does: "starts no block under a rolling window", breaks: startsIf(func(starts bool, _ *call, l ratelimit.Limit) bool {
		return starts && l.Algorithm() != "rolling"
	})},
	{caught: "rolling-block", does: "takes no notice of pending units", breaks: otherPending(func([]ratelimit.Pending) []ratelimit.Pending { return nil })},
	{caught: "rolling-block", does: "takes one of the pending units into account", breaks: otherPending(func(p []ratelimit.Pending) []ratelimit.Pending { return p[:min(1, len(p))] })},
	{caught: "rolling-block", does: "lifts the block with a refund", breaks: func(s *reference) {
		adjust := s.onAdjust
		s.onAdjust = func(c *call) (int64, error) {
			s.editBlocks(c, func(_ ratelimit.Limit, b *block, _ int64) { *b = block{} })
			return adjust(c)
		}
	}},
	{caught: "rolling-extremes", does: "keeps 512 units", breaks: agedLog(func(l ratelimit.Limit, log []int64, now int64) []int64 {
		log = slices.DeleteFunc(log, func(at int64) bool { return now-at >= int64(l.Window()) })
		return log[:min(512, len(log))]
	})},
	{caught: "rolling-extremes", does: "has windows of 30 bits of seconds", breaks: agedLog(func(l ratelimit.Limit, log []int64, now int64) []int64 {
		seconds := int64(l.Window()/time.Second) % (1 << 30)
		return slices.DeleteFunc(log, func(at int64) bool { return now-at >= seconds*int64(time.Second)-int64(time.Hour*24*365*20) })
	})},
}

// agedLog changes which units of a rolling window count.
func agedLog(counting func(l ratelimit.Limit, log []int64, now int64) []int64) func(*reference) {
	return func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			if l.Algorithm() != "rolling" {
				return aged(l, c, now)
			}
			return counter{t: now, log: counting(l, slices.Clone(c.log), now)}
		}
	}
}

// rolls changes the units and the instant of each Adjust under a rolling window.
func rolls(change func(n, now, at int64) (int64, int64)) func(*reference) {
	return func(s *reference) {
		s.roll = func(l ratelimit.Limit, c counter, n, now, at int64) counter {
			n, at = change(n, now, at)
			return roll(l, c, n, now, at)
		}
	}
}
