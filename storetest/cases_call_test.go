package storetest

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/ratelimit-go/ratelimit"
)

var callFaults = []fault{
	{caught: "context", does: "takes although the context is done", breaks: func(s *reference) { s.beforeTake(func(c *call) { c.ctx = context.Background() }) }},
	{caught: "context", does: "adjusts although the context is done", breaks: beforeAdjust(func(c *call) { c.ctx = context.Background() })},
	{caught: "context", does: "resets although the context is done", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			c.ctx = context.Background()
			return s.reset(c)
		}
	}},
	{caught: "context", does: "blocks although the context is done", breaks: beforeBlock(func(_ *reference, c *call) { c.ctx = context.Background() })},
	{caught: "context", does: "acts, and then returns the context's error", breaks: beforeAdjustThenError},
	{caught: "context", does: "returns an error of its own", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			if take(c) != nil {
				return errors.New("given up")
			}
			return nil
		}
	}},
	{caught: "context", does: "looks although the deadline is over", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			if c.n == 0 && errors.Is(c.ctx.Err(), context.DeadlineExceeded) {
				c.ctx = context.Background()
			}
			return take(c)
		}
	}},
	{caught: "abandoned", does: "makes a call again if it does not know what has happened", breaks: func(s *reference) {
		s.delay = 2 * slowCall
		s.onTake = func(c *call) error {
			err := s.take(c)
			for range 3 {
				if err == nil || s.closed {
					return err
				}
				c.ctx = context.Background()
				s.take(c)
			}
			return err
		}
	}},
	{caught: "limits-slice", does: "changes the limits", breaks: func(s *reference) {
		s.beforeTake(func(c *call) { c.limits[0] = c.limits[0].Named("changed") })
	}},
	{caught: "limits-slice", does: "sorts the limits", breaks: beforeAdjust(func(c *call) {
		slices.SortFunc(c.limits, func(a, b ratelimit.Limit) int { return cmp.Compare(a.Window(), b.Window()) })
	})},
	{caught: "limits-slice", does: "appends to the limits", breaks: func(s *reference) {
		reset := s.onReset
		s.onReset = func(c *call) error {
			_ = append(c.limits, c.limits[0])
			return reset(c)
		}
	}},
	{caught: "limits-slice", does: "keeps the limits", breaks: func(s *reference) {
		var kept []ratelimit.Limit
		s.beforeTake(func(c *call) {
			if len(c.limits) == 2 && kept == nil {
				kept = c.limits
			}
			if len(c.limits) == 1 && kept != nil && kept[0].Algorithm() == "fixed" {
				c.limits = kept[:1]
			}
		})
	}},
	{caught: "limits-slice", does: "sorts the limits of a block", breaks: beforeBlock(func(_ *reference, c *call) { slices.Reverse(c.limits) })},
	{caught: "limits-slice", does: "changes the pending units", breaks: func(s *reference) {
		s.beforeTake(func(c *call) {
			for i := range c.pending {
				c.pending[i].Units = 0
			}
		})
	}},
	{caught: "limits-slice", does: "appends to the pending units", breaks: func(s *reference) {
		s.beforeTake(func(c *call) { _ = append(c.pending, ratelimit.Pending{}) })
	}},
	{caught: "results-slice", does: "goes on to write to the results", breaks: func(s *reference) {
		var kept []ratelimit.Result
		s.afterTake(func(c *call) {
			for i := range kept {
				kept[i] = c.results[i]
			}
			kept = c.results
		})
	}},
	{caught: "results-slice", does: "appends to the results", breaks: func(s *reference) {
		s.afterTake(func(c *call) { _ = append(c.results, c.results[0]) })
	}},
	{caught: "closed", does: "goes on after Close", breaks: func(s *reference) {
		s.beforeTake(func(*call) { s.closed = false })
	}},
	{caught: "closed", does: "blocks after Close", breaks: beforeBlock(func(s *reference, _ *call) { s.closed = false })},
	{caught: "closed", does: "has an error of its own after Close", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			if s.closed {
				return errors.New("closed")
			}
			return s.reset(c)
		}
	}},
}

// beforeAdjustThenError adjusts whatever the context is, and returns its error.
func beforeAdjustThenError(s *reference) {
	s.onAdjust = func(c *call) (int64, error) {
		withoutCancel := *c
		withoutCancel.ctx = context.Background()
		charged, err := s.adjust(&withoutCancel)
		if err == nil {
			err = c.ctx.Err()
		}
		return charged, err
	}
}
