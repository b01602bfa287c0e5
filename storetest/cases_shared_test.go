package storetest

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

var sharedFaults = []fault{
	{caught: "shared-take", does: "takes one unit more", breaks: sharedOnly(func(c *call) {
		if c.n > 0 && c.n < math.MaxInt64 {
			c.n++
		}
	})},
	{caught: "shared-take", does: "takes under the first limit only", breaks: sharedOnly(func(c *call) { c.limits = c.limits[:1] })},
	{caught: "shared-blocks", does: "ignores pending units", breaks: sharedOnly(func(c *call) { c.pending = nil })},
	{caught: "shared-blocks", does: "starts no block", breaks: startsIf(func(starts bool, c *call, _ ratelimit.Limit) bool { return starts && !c.shared })},
	{caught: "shared-calendar", does: "takes one unit more in a calendar period", breaks: sharedOnly(func(c *call) {
		if isCalendar(c.limits[0]) && c.n > 0 && c.n < math.MaxInt64 {
			c.n++
		}
	})},
	{caught: "shared-reply", does: "returns no instant", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.shared {
				c.at = 0
			}
		})
	}},
	{caught: "shared-reply", does: "returns no instant with a denial", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.shared && !admitted(c.results) {
				c.at = 0
			}
		})
	}},
	{caught: "shared-reply", does: "says that another caller gets a newer answer", breaks: sharedOnly(func(c *call) { c.newest = false })},
	{caught: "shared-reply", does: "counts apart from Take", breaks: sharedOnly(func(c *call) { c.n = min(c.n, 1) })},
	{caught: "shared-up-to", does: "takes all units or none", breaks: func(s *reference) { s.beforeTake(func(c *call) { c.upTo = false }) }},
	{caught: "shared-up-to", does: "returns what was asked for", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			asked := c.n
			err := take(c)
			if c.upTo && c.granted > 0 {
				c.granted = asked
			}
			return err
		}
	}},
	{caught: "shared-up-to", does: "returns a unit that was not taken", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.upTo {
				c.granted = max(1, c.granted)
			}
		})
	}},
	{caught: "shared-up-to", does: "takes what fits under the first limit", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			look := call{ctx: c.ctx, key: c.key, limits: c.limits[:1], results: make([]ratelimit.Result, 1)}
			if err := take(&look); err != nil {
				return err
			}
			if c.upTo {
				c.n, c.upTo = max(1, min(c.n, look.results[0].Remaining)), false
			}
			return take(c)
		}
	}},
	{caught: "shared-up-to", does: "denies all units if none fits", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			asked := c.n
			err := take(c)
			if c.upTo && err == nil && c.granted == 0 {
				c.n, c.upTo = asked, false
				err = take(c)
			}
			return err
		}
	}},
	{caught: "shared-up-to-concurrent", does: "looks first and takes then", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			if !c.upTo {
				return take(c)
			}
			look := *c
			look.n, look.upTo = 0, false
			if err := take(&look); err != nil {
				return err
			}
			time.Sleep(time.Microsecond)
			c.at, c.granted = look.at, min(c.n, look.results[0].Remaining)
			s.edit(c, func(l ratelimit.Limit, was *counter, _ int64) { *was = add(l, *was, c.granted) })
			return nil
		}
	}},
	{caught: "shared-deadline", does: "ignores the context", breaks: sharedOnly(func(c *call) {
		if errors.Is(c.ctx.Err(), context.Canceled) {
			c.ctx = context.Background()
		}
	})},
	{caught: "shared-deadline", does: "ignores the deadline", breaks: sharedOnly(func(c *call) {
		if errors.Is(c.ctx.Err(), context.DeadlineExceeded) {
			c.ctx = context.Background()
		}
	})},
	{caught: "shared-deadline", does: "acts, and then returns the error", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			err := c.ctx.Err()
			if c.shared {
				c.ctx = context.Background()
			}
			return errors.Join(take(c), err)
		}
	}},
	{caught: "shared-up-to-blocks", does: "starts a block if fewer units fit than were asked for", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			asked := c.n
			err := take(c)
			if c.upTo && c.granted < asked {
				s.editBlocks(c, func(l ratelimit.Limit, b *block, now int64) {
					if b.until <= now && l.Ladder() != nil {
						*b = start(l, *b, 0, now)
					}
				})
			}
			return err
		}
	}},
	{caught: "shared-up-to-blocks", does: "starts no block", breaks: startsIf(func(starts bool, c *call, _ ratelimit.Limit) bool { return starts && !c.upTo })},
	{caught: "shared-up-to-blocks", does: "grants units during a block by hand", breaks: func(s *reference) {
		recalled := s.recall
		s.onTake = func(c *call) error {
			s.recall = func(l ratelimit.Limit, b block, now int64) block {
				if c.upTo && b.rung == 0 {
					return block{}
				}
				return recalled(l, b, now)
			}
			return s.take(c)
		}
	}},
	{caught: "shared-up-to-blocks", does: "ignores pending units", breaks: sharedOnly(func(c *call) { c.pending = nil })},
}

// sharedOnly changes the call before a take by TakeShared.
func sharedOnly(change func(c *call)) func(*reference) {
	return func(s *reference) {
		s.beforeTake(func(c *call) {
			if c.shared {
				change(c)
			}
		})
	}
}
