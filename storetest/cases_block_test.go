package storetest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

var blockFaults = []fault{
	{caught: "block", does: "starts no block", breaks: startsIf(func(bool, *call, ratelimit.Limit) bool { return false })},
	{caught: "block", does: "starts a block under any limit", breaks: func(s *reference) {
		startsIf(func(_ bool, c *call, _ ratelimit.Limit) bool { return !c.blocked && !c.never })(s)
		s.start = func(l ratelimit.Limit, b block, retry time.Duration, now int64) block {
			if l.Ladder() == nil {
				l = l.Block(3 * l.Window())
			}
			return start(l, b, retry, now)
		}
	}},
	{caught: "block", does: "starts a block with the last unit", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			s.editBlocks(c, func(l ratelimit.Limit, b *block, now int64) {
				if c.n > 0 && admitted(c.results) && c.results[0].Remaining == 0 && l.Ladder() != nil {
					*b = start(l, *b, 0, now)
				}
			})
		})
	}},
	{caught: "block", does: "begins with the last duration", breaks: afterStart(func(l ratelimit.Limit, b *block, now int64) {
		b.until = now + int64(l.Ladder()[len(l.Ladder())-1])
	})},
	{caught: "block", does: "sets BlockBegan during a block", breaks: eachResult(func(c *call, l ratelimit.Limit, res *ratelimit.Result) {
		res.BlockBegan = res.Blocked && c.n > 0
	})},
	{caught: "block", does: "does not set BlockBegan", breaks: eachResult(func(_ *call, _ ratelimit.Limit, res *ratelimit.Result) { res.BlockBegan = false })},
	{caught: "block", does: "does not set Blocked with BlockBegan", breaks: eachResult(func(_ *call, _ ratelimit.Limit, res *ratelimit.Result) {
		res.Blocked = res.Blocked && !res.BlockBegan
	})},
	{caught: "block", does: "counts other kinds after the first block", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.results[0].BlockBegan {
				s.kinds = ratelimit.KindBlock
			}
		})
	}},
	{caught: "block-results", does: "returns what would remain without the block", breaks: otherResults(func(was ratelimit.Result, res *ratelimit.Result, _ time.Duration) {
		res.Remaining = was.Remaining
	})},
	{caught: "block-results", does: "returns the end of the block as RetryAfter of units that fit later", breaks: otherResults(func(_ ratelimit.Result, res *ratelimit.Result, left time.Duration) {
		if res.RetryAfter > 0 && res.RetryAfter != ratelimit.Never {
			res.RetryAfter = left
		}
	})},
	{caught: "block-results", does: "returns the end of the block as RetryAfter of units that never fit", breaks: otherResults(func(_ ratelimit.Result, res *ratelimit.Result, left time.Duration) {
		if res.RetryAfter == ratelimit.Never {
			res.RetryAfter = left
		}
	})},
	{caught: "block-results", does: "returns MoreAfter without the block", breaks: otherResults(func(was ratelimit.Result, res *ratelimit.Result, left time.Duration) {
		res.MoreAfter = cmp.Or(was.MoreAfter, left)
	})},
	{caught: "block-results", does: "returns MoreAfter without the block if it is later", breaks: otherResults(func(was ratelimit.Result, res *ratelimit.Result, left time.Duration) {
		res.MoreAfter = max(was.MoreAfter, left)
	})},
	{caught: "block-results", does: "returns the end of the block as ResetAfter", breaks: otherResults(func(_ ratelimit.Result, res *ratelimit.Result, left time.Duration) {
		res.MoreAfter, res.ResetAfter = left, left
	})},
	{caught: "block-denies", does: "makes the block longer with each denial", breaks: inBlock(func(_ *call, _ ratelimit.Limit, b *block, now int64) {
		b.until += (b.until - now) / 100
	})},
	{caught: "block-denies", does: "makes the block shorter with each denial", breaks: inBlock(func(_ *call, _ ratelimit.Limit, b *block, now int64) {
		b.until -= (b.until - now) / 100
	})},
	{caught: "block-denies", does: "counts under the limits that are not blocked", breaks: countsInBlock},
	{caught: "block-look", does: "denies a look", breaks: otherResults(func(_ ratelimit.Result, res *ratelimit.Result, left time.Duration) {
		res.RetryAfter = max(res.RetryAfter, left)
	})},
	{caught: "block-look", does: "starts a block when it looks", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			s.editBlocks(c, func(l ratelimit.Limit, b *block, now int64) {
				if c.n == 0 && c.results[0].Remaining == 0 && b.until <= now && l.Ladder() != nil {
					*b = start(l, *b, 0, now)
				}
			})
		})
	}},
	{caught: "block-look", does: "lifts a block when it looks", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.n == 0 {
				s.editBlocks(c, func(_ ratelimit.Limit, b *block, now int64) { b.until = min(b.until, now) })
			}
		})
	}},
	{caught: "block-never", does: "starts a block for a cost that can never fit", breaks: func(s *reference) {
		startsIf(func(_ bool, c *call, l ratelimit.Limit) bool { return l.Ladder() != nil && !c.blocked })(s)
		s.start = func(l ratelimit.Limit, b block, retry time.Duration, now int64) block {
			if retry == ratelimit.Never {
				retry = 0
			}
			return start(l, b, retry, now)
		}
	}},
	{caught: "block-never", does: "starts a block for a cost that can never fit under another limit", breaks: startsIf(func(_ bool, c *call, l ratelimit.Limit) bool {
		return l.Ladder() != nil && !c.blocked && c.n <= l.Burst()
	})},
	{caught: "block-counter", does: "lifts a block under a limit without Block", breaks: func(s *reference) {
		s.recall = func(l ratelimit.Limit, b block, now int64) block {
			if l.Ladder() == nil {
				return block{}
			}
			return recall(l, b, now)
		}
	}},
	{caught: "block-counter", does: "has a block for each n", breaks: otherBlockNames(func(key string, l ratelimit.Limit) string { return fmt.Sprint(l.N()) })},
	{caught: "block-counter", does: "has a block for each burst", breaks: otherBlockNames(func(key string, l ratelimit.Limit) string { return fmt.Sprint(l.Burst()) })},
	{caught: "block-counter", does: "has a block for each name", breaks: otherBlockNames(func(key string, l ratelimit.Limit) string { return l.Name() })},
	{caught: "block-elsewhere", does: "has one block for all limits of a key", breaks: func(s *reference) {
		s.blockName = func(key string, _ ratelimit.Limit) string { return s.begins(key) }
	}},
	{caught: "block-elsewhere", does: "has one block for all algorithms", breaks: func(s *reference) {
		s.blockName = func(key string, l ratelimit.Limit) string { return s.begins(key) + l.Window().String() }
	}},
	{caught: "block-elsewhere", does: "keeps the windows of blocks in seconds", breaks: func(s *reference) {
		s.blockName = func(key string, l ratelimit.Limit) string {
			return fmt.Sprint(s.begins(key), l.Algorithm(), l.Window().Truncate(time.Second))
		}
	}},
	{caught: "block-elsewhere", does: "has one block for all keys", breaks: func(s *reference) {
		s.blockName = func(_ string, l ratelimit.Limit) string { return s.name("key", l) }
	}},
	{caught: "block-elsewhere", does: "has one block for all prefixes", breaks: func(s *reference) {
		s.blockName = func(key string, l ratelimit.Limit) string { return fmt.Sprint(key, l.Algorithm(), l.Window()) }
	}},
	{caught: "block-adjust", does: "lifts a block with a refund", breaks: func(s *reference) {
		beforeAdjust(func(c *call) {
			if c.n < 0 {
				s.editBlocks(c, func(_ ratelimit.Limit, b *block, _ int64) { *b = block{} })
			}
		})(s)
	}},
	{caught: "block-adjust", does: "starts a block with a charge above the limit", breaks: func(s *reference) {
		adjust := s.onAdjust
		s.onAdjust = func(c *call) (int64, error) {
			charged, err := adjust(c)
			if err == nil && charged < c.n {
				s.editBlocks(c, func(l ratelimit.Limit, b *block, now int64) { *b = start(l, *b, 0, now) })
			}
			return charged, err
		}
	}},
	{caught: "block-adjust", does: "makes a block longer with a charge", breaks: func(s *reference) {
		beforeAdjust(func(c *call) {
			s.editBlocks(c, func(_ ratelimit.Limit, b *block, now int64) {
				if c.n > 0 && b.until > now {
					b.until = now + 20*(b.until-now)
				}
			})
		})(s)
	}},
	{caught: "block-adjust", does: "adjusts nothing during a block", breaks: func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
			if s.recall(l, s.blocks[s.blockName("key", l)], now).until > now {
				return c
			}
			return move(l, c, n, now, age)
		}
	}},
	{caught: "block-reset", does: "does not lift a block", breaks: changedReset(func(_ *reference, was block, _ int64) block { return was })},
	{caught: "block-reset", does: "does not forget the ladder", breaks: changedReset(func(_ *reference, was block, now int64) block {
		was.until = min(was.until, now)
		return was
	})},
	{caught: "block-reset", does: "lifts all blocks of a key", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			err := s.reset(c)
			s.mu.Lock()
			defer s.mu.Unlock()
			for name := range s.blocks {
				if strings.HasPrefix(name, s.begins(c.key)) {
					delete(s.blocks, name)
				}
			}
			return err
		}
	}},
	{caught: "block-reset", does: "lifts the block of each key", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			err := s.reset(c)
			s.mu.Lock()
			defer s.mu.Unlock()
			clear(s.blocks)
			return err
		}
	}},
	{caught: "block-pending", does: "ignores pending units", breaks: otherPending(func([]ratelimit.Pending) []ratelimit.Pending { return nil })},
	{caught: "block-pending", does: "starts no block while there are pending units", breaks: startsIf(func(starts bool, c *call, _ ratelimit.Limit) bool {
		return starts && len(c.pending) == 0
	})},
	{caught: "block-pending", does: "gives back the first pending units alone", breaks: otherPending(func(p []ratelimit.Pending) []ratelimit.Pending { return p[:min(1, len(p))] })},
	{caught: "block-pending", does: "gives back the last pending units alone", breaks: otherPending(func(p []ratelimit.Pending) []ratelimit.Pending { return p[max(0, len(p)-1):] })},
	{caught: "block-pending", does: "starts no block if one unit would fit without the pending ones", breaks: func(s *reference) {
		s.starts = func(c *call, l ratelimit.Limit, counted counter, now int64) bool {
			one := *c
			if len(c.pending) > 0 {
				one.n = 1
			}
			return s.startsBlock(&one, l, counted, now)
		}
	}},
	{caught: "block-pending", does: "admits what would fit without the pending units", breaks: eachResult(func(c *call, _ ratelimit.Limit, res *ratelimit.Result) {
		if len(c.pending) > 0 && !res.Blocked {
			res.RetryAfter = 0
		}
	})},
	{caught: "block-pending", does: "takes nothing while there are pending units", breaks: func(s *reference) {
		s.beforeTake(func(c *call) {
			if len(c.pending) > 0 && c.n == 3 && c.key == "takes" {
				c.n = 0
			}
		})
	}},
	{caught: "block-concurrent", does: "starts the block after the denial, in a step of its own", breaks: func(s *reference) {
		s.starts = func(*call, ratelimit.Limit, counter, int64) bool { return false }
		s.afterTake(func(c *call) {
			if res := &c.results[0]; res.RetryAfter > 0 && !res.Blocked && c.limits[0].Ladder() != nil {
				time.Sleep(time.Microsecond)
				s.editBlocks(c, func(l ratelimit.Limit, b *block, now int64) { *b = start(l, *b, res.RetryAfter, now) })
				over(res, c.limits[0].Ladder()[0], c.n)
				res.BlockBegan = true
			}
		})
	}},
	{caught: "block-extremes", does: "keeps the end of a block in 32 bits", breaks: afterStart(func(_ ratelimit.Limit, b *block, _ int64) {
		b.until = int64(int32(b.until/int64(time.Second))) * int64(time.Second)
	})},
	{caught: "block-extremes", does: "adds the end of a block and the ladder's time in too few bits", breaks: func(s *reference) {
		s.recall = func(l ratelimit.Limit, b block, now int64) block {
			if b.until > 1<<61 && 2*b.forget > 1<<61 {
				return block{}
			}
			return recall(l, b, now)
		}
	}},
}

var severalBlockFaults = []fault{
	{caught: "block-several", does: "starts a block under the first limit that denies only", breaks: startsIf(func(starts bool, c *call, l ratelimit.Limit) bool {
		return starts && !slices.ContainsFunc(c.results[:slices.Index(c.limits, l)], func(res ratelimit.Result) bool { return res.BlockBegan })
	})},
	{caught: "block-several", does: "starts a block under each limit with Block if one denies", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if slices.ContainsFunc(c.results, func(res ratelimit.Result) bool { return res.BlockBegan }) {
				s.editBlocks(c, func(l ratelimit.Limit, b *block, now int64) {
					if l.Ladder() != nil && b.until <= now {
						*b = start(l, *b, 0, now)
					}
				})
			}
		})
	}},
	{caught: "block-several", does: "starts a block under all limits with Block when another denies", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if !admitted(c.results) && len(c.limits) > 1 {
				s.editBlocks(c, func(l ratelimit.Limit, b *block, now int64) {
					if l.Ladder() != nil && b.until <= now {
						*b = start(l, *b, 0, now)
					}
				})
			}
		})
	}},
	{caught: "block-several", does: "starts no block if a limit without Block denies", breaks: startsIf(func(starts bool, c *call, _ ratelimit.Limit) bool {
		return starts && !slices.ContainsFunc(c.limits, func(l ratelimit.Limit) bool { return l.Ladder() == nil })
	})},
	{caught: "block-in-force", does: "starts another block during one", breaks: startsIf(func(starts bool, c *call, l ratelimit.Limit) bool {
		return starts || l.Ladder() != nil && !c.never
	})},
	{caught: "block-in-force", does: "counts under the limits that are not blocked", breaks: countsInBlock},
	{caught: "block-in-force", does: "has one block for all limits of a key", breaks: func(s *reference) {
		s.blockName = func(key string, _ ratelimit.Limit) string { return s.begins(key) }
	}},
	{caught: "block-in-force", does: "looks for the block of the first limit only", breaks: func(s *reference) {
		s.onTake = func(c *call) error {
			recalled := s.recall
			s.recall = func(l ratelimit.Limit, b block, now int64) block {
				if len(c.limits) > 1 && l != c.limits[0] {
					return block{}
				}
				return recalled(l, b, now)
			}
			defer func() { s.recall = recalled }()
			return s.take(c)
		}
	}},
	{caught: "block-pending-several", does: "starts no block if one of the limits would not deny without the pending units", breaks: func(s *reference) {
		s.starts = func(c *call, l ratelimit.Limit, _ counter, now int64) bool {
			return !slices.ContainsFunc(c.limits, func(l ratelimit.Limit) bool { return !s.startsBlock(c, l, s.get(c.key, l, now), now) })
		}
	}},
	{caught: "block-pending-several", does: "starts all blocks if one of the limits would deny without the pending units", breaks: func(s *reference) {
		s.starts = func(c *call, l ratelimit.Limit, _ counter, now int64) bool {
			return slices.ContainsFunc(c.limits, func(l ratelimit.Limit) bool { return s.startsBlock(c, l, s.get(c.key, l, now), now) })
		}
	}},
}

var handBlockFaults = []fault{
	{caught: "block-by-hand", does: "blocks under the first limit only", breaks: beforeBlock(func(_ *reference, c *call) { c.limits = c.limits[:1] })},
	{caught: "block-by-hand", does: "blocks only keys with a counter", breaks: beforeBlock(func(s *reference, c *call) {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.limits = slices.DeleteFunc(slices.Clone(c.limits), func(l ratelimit.Limit) bool { return s.counters[s.name(c.key, l)].empty() })
	})},
	{caught: "block-by-hand", does: "blocks under limits with Block only", breaks: beforeBlock(func(_ *reference, c *call) {
		c.limits = slices.DeleteFunc(slices.Clone(c.limits), func(l ratelimit.Limit) bool { return l.Ladder() == nil })
	})},
	{caught: "block-joined", does: "replaces the block", breaks: func(s *reference) { s.join = func(_, joined block) block { return joined } }},
	{caught: "block-joined", does: "keeps the block that is in force", breaks: func(s *reference) {
		s.join = func(b, joined block) block {
			if b.until > 0 {
				return b
			}
			return joined
		}
	}},
	{caught: "block-joined", does: "appends the block to the one in force", breaks: func(s *reference) {
		onBlock := s.onBlock
		s.onBlock = func(c *call) error {
			now := s.clock()
			s.join = func(b, joined block) block {
				if joined.until > now && b.until > now {
					joined.until += b.until - now
				}
				return join(b, joined)
			}
			return onBlock(c)
		}
	}},
	{caught: "block-many-limits", does: "blocks under MaxLimits limits at most", breaks: beforeBlock(func(_ *reference, c *call) {
		c.limits = c.limits[:min(len(c.limits), ratelimit.MaxLimits)]
	})},
	{caught: "block-rung", does: "ignores the rung", breaks: beforeBlock(func(_ *reference, c *call) { c.given.Rung = 0 })},
	{caught: "block-rung", does: "ignores a block that is over", breaks: beforeBlock(func(_ *reference, c *call) {
		if c.given.Left < 0 {
			c.given = ratelimit.Block{}
		}
	})},
	{caught: "block-rung", does: "keeps the last rung", breaks: func(s *reference) {
		s.join = func(b, joined block) block {
			b = join(b, joined)
			b.rung = joined.rung
			return b
		}
	}},
	{caught: "block-rung", does: "adds the rungs", breaks: func(s *reference) {
		s.join = func(b, joined block) block {
			sum := b.rung + joined.rung
			b = join(b, joined)
			b.rung = sum
			return b
		}
	}},
	{caught: "block-rung", does: "counts a block by hand as one more denial", breaks: beforeBlock(func(_ *reference, c *call) { c.given.Rung++ })},
	{caught: "block-rung", does: "begins again after the last duration", breaks: func(s *reference) {
		s.start = func(l ratelimit.Limit, b block, retry time.Duration, now int64) block {
			b.rung %= len(l.Ladder())
			return start(l, b, retry, now)
		}
	}},
}

var blockTimeFaults = []fault{
	{caught: "block-ends", does: "begins the block again with each denial", breaks: inBlock(func(_ *call, l ratelimit.Limit, b *block, now int64) {
		b.until = now + int64(l.Ladder()[0])
	})},
	{caught: "block-ends", does: "blocks for the duration, although the limit denies for longer", breaks: func(s *reference) {
		s.start = func(l ratelimit.Limit, b block, _ time.Duration, now int64) block { return start(l, b, 0, now) }
	}},
	{caught: "block-ends", does: "blocks for the duration after RetryAfter", breaks: func(s *reference) {
		s.start = func(l ratelimit.Limit, b block, retry time.Duration, now int64) block {
			return start(l, b, retry+l.Ladder()[0], now)
		}
	}},
	{caught: "block-ends", does: "ends blocks at whole minutes", breaks: afterStart(func(_ ratelimit.Limit, b *block, _ int64) {
		b.until += int64(time.Minute) - b.until%int64(time.Minute)
	})},
	{caught: "block-ends", does: "resets the counter when it starts a block", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.results[0].BlockBegan {
				s.edit(c, func(_ ratelimit.Limit, was *counter, now int64) { *was = counter{t: now} })
			}
		})
	}},
	{caught: "block-ends", does: "stops the counter during a block", breaks: func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			if b := s.blocks[s.blockName("key 0", l)]; b.until > 0 && isFixed(l) {
				c.t = max(c.t, min(now, b.until))
				return c
			}
			return aged(l, c, now)
		}
	}},
	{caught: "block-ends", does: "charges what it denies in a block", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.results[0].Blocked && c.n > 0 {
				s.edit(c, func(l ratelimit.Limit, was *counter, now int64) { *was = move(l, *was, c.n, now, 0) })
			}
		})
	}},
	{caught: "block-ladder", does: "uses the first duration each time", breaks: afterStart(func(_ ratelimit.Limit, b *block, _ int64) { b.rung = 0 })},
	{caught: "block-ladder", does: "forgets the ladder at the end of the block", breaks: afterStart(func(_ ratelimit.Limit, b *block, _ int64) { b.forget = 0 })},
	{caught: "block-ladder", does: "counts denials during a block", breaks: inBlock(func(_ *call, _ ratelimit.Limit, b *block, _ int64) { b.rung++ })},
	{caught: "block-forgotten", does: "never forgets", breaks: func(s *reference) {
		s.recall = func(_ ratelimit.Limit, b block, _ int64) block { return b }
	}},
	{caught: "block-forgotten", does: "forgets a moment too late", fine: true, breaks: afterStart(func(_ ratelimit.Limit, b *block, _ int64) { b.forget++ })},
	{caught: "block-forgotten", does: "forgets a moment too early", fine: true, breaks: afterStart(func(_ ratelimit.Limit, b *block, _ int64) { b.forget-- })},
	{caught: "block-forgotten", does: "forgets that long after the beginning of the block", breaks: afterStart(func(_ ratelimit.Limit, b *block, now int64) { b.forget -= b.until - now })},
	{caught: "block-forgotten", does: "forgets after the longest duration, although the window is longer", breaks: afterStart(func(l ratelimit.Limit, b *block, _ int64) {
		b.forget = int64(l.Ladder()[len(l.Ladder())-1])
	})},
	{caught: "block-forgotten", does: "forgets after the window, although a duration is longer", breaks: afterStart(func(l ratelimit.Limit, b *block, _ int64) { b.forget = int64(l.Window()) })},
	{caught: "block-forgotten", does: "forgets after the first duration", breaks: afterStart(func(l ratelimit.Limit, b *block, _ int64) {
		b.forget = int64(max(l.Window(), l.Ladder()[0]))
	})},
	{caught: "block-forgotten", does: "forgets after the longest duration of the limit that asks", breaks: func(s *reference) {
		s.recall = func(l ratelimit.Limit, b block, now int64) block {
			if ladder := l.Ladder(); ladder != nil {
				b.forget = int64(max(l.Window(), ladder[len(ladder)-1]))
			}
			return recall(l, b, now)
		}
	}},
	{caught: "block-by-hand-ends", does: "ends blocks by hand at whole minutes", breaks: beforeBlock(func(s *reference, c *call) {
		c.given.Left += time.Minute - (c.given.Left+time.Duration(s.clock()))%time.Minute
	})},
	{caught: "block-by-hand-ends", does: "takes what would fit when it blocks", breaks: beforeBlock(func(s *reference, c *call) {
		s.edit(c, func(l ratelimit.Limit, was *counter, now int64) { *was = add(l, *was, 1) })
	})},
	{caught: "block-by-hand-ends", does: "does not count a block by hand as the last one", breaks: func(s *reference) {
		s.join = func(b, joined block) block {
			both := join(b, joined)
			if joined.rung == 0 {
				both.forget = b.forget - (both.until - b.until)
			}
			return both
		}
	}},
	{caught: "block-by-hand-ends", does: "forgets the rung of a block at its end", breaks: beforeBlock(func(_ *reference, c *call) { c.given.Forget = 0 })},
	{caught: "block-by-hand-ends", does: "remembers a block that is over as one that ends now", breaks: beforeBlock(func(_ *reference, c *call) { c.given.Left = max(0, c.given.Left) })},
	{caught: "block-by-hand-ends", does: "remembers a block for the shorter of two times", breaks: func(s *reference) {
		s.join = func(b, joined block) block {
			both := join(b, joined)
			if b != (block{}) {
				both.forget = min(b.forget, joined.forget)
			}
			return both
		}
	}},
	{caught: "block-late-pending", does: "gives pending units back as if they had just been taken", breaks: func(s *reference) {
		otherPending(func(p []ratelimit.Pending) []ratelimit.Pending {
			p = slices.Clone(p)
			for i := range p {
				p[i].At = ratelimit.Now
			}
			return p
		})(s)
	}},
	{caught: "block-late-pending", does: "gives back pending units of this moment only", breaks: func(s *reference) {
		otherPending(func(p []ratelimit.Pending) []ratelimit.Pending {
			return slices.DeleteFunc(slices.Clone(p), func(p ratelimit.Pending) bool { return int64(p.At) < s.clock()-int64(time.Second)/4 })
		})(s)
	}},
	{caught: "block-late-pending", does: "gives back pending units of one window back", breaks: func(s *reference) {
		s.starts = func(c *call, l ratelimit.Limit, counted counter, now int64) bool {
			pending := *c
			for _, p := range c.pending {
				if now-int64(p.At) <= int64(l.Window()) {
					counted.units -= min(counted.units, p.Units)
					pending.pending = nil
				}
			}
			return s.startsBlock(&pending, l, counted, now)
		}
	}},
}

// The rest are parts of faults.

// editBlocks changes the blocks of a call, as they are remembered now.
func (r *reference) editBlocks(c *call, change func(l ratelimit.Limit, b *block, now int64)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock()
	for _, l := range c.limits {
		b := r.blockOf(c.key, l, now)
		change(l, &b, now)
		r.blocks[r.blockName(c.key, l)] = b
	}
}

// startsIf changes when a denial starts a block.
func startsIf(change func(starts bool, c *call, l ratelimit.Limit) bool) func(*reference) {
	return func(s *reference) {
		s.starts = func(c *call, l ratelimit.Limit, counted counter, now int64) bool {
			return change(s.startsBlock(c, l, counted, now), c, l)
		}
	}
}

// afterStart changes the blocks that denials start.
func afterStart(change func(l ratelimit.Limit, b *block, now int64)) func(*reference) {
	return func(s *reference) {
		s.start = func(l ratelimit.Limit, b block, retry time.Duration, now int64) block {
			b = start(l, b, retry, now)
			change(l, &b, now)
			return b
		}
	}
}

// otherResults changes the results of counters that are blocked.
func otherResults(change func(was ratelimit.Result, res *ratelimit.Result, left time.Duration)) func(*reference) {
	return func(s *reference) {
		s.over = func(res *ratelimit.Result, left time.Duration, n int64) {
			was := *res
			over(res, left, n)
			change(was, res, left)
		}
	}
}

// inBlock changes a block with each denial while it is in force.
func inBlock(change func(c *call, l ratelimit.Limit, b *block, now int64)) func(*reference) {
	return func(s *reference) {
		s.beforeTake(func(c *call) {
			s.editBlocks(c, func(l ratelimit.Limit, b *block, now int64) {
				if c.n > 0 && b.until > now && l.Ladder() != nil {
					change(c, l, b, now)
				}
			})
		})
	}
}

// countsInBlock counts under the limits that are not blocked.
func countsInBlock(s *reference) {
	s.afterTake(func(c *call) {
		for i, l := range c.limits {
			if res := c.results[i]; res.RetryAfter == 0 && !admitted(c.results) {
				s.adjust(&call{ctx: c.ctx, key: c.key, n: c.n, at: ratelimit.Now, limits: []ratelimit.Limit{l}})
			}
		}
	})
}

// otherBlockNames adds to the names of blocks.
func otherBlockNames(part func(key string, l ratelimit.Limit) string) func(*reference) {
	return func(s *reference) {
		s.blockName = func(key string, l ratelimit.Limit) string { return s.name(key, l) + "\x00" + part(key, l) }
	}
}

// changedReset puts a block back, changed, after a reset.
func changedReset(change func(s *reference, was block, now int64) block) func(*reference) {
	return func(s *reference) {
		s.onReset = func(c *call) error {
			was := map[string]block{}
			s.editBlocks(c, func(l ratelimit.Limit, b *block, now int64) { was[s.blockName(c.key, l)] = change(s, *b, now) })
			err := s.reset(c)
			s.editBlocks(c, func(l ratelimit.Limit, b *block, _ int64) { *b = was[s.blockName(c.key, l)] })
			return err
		}
	}
}

// beforeBlock changes the call before a block by hand.
func beforeBlock(change func(s *reference, c *call)) func(*reference) {
	return func(s *reference) {
		onBlock := s.onBlock
		s.onBlock = func(c *call) error {
			change(s, c)
			return onBlock(c)
		}
	}
}

// otherPending changes the pending units of each call.
func otherPending(change func([]ratelimit.Pending) []ratelimit.Pending) func(*reference) {
	return func(s *reference) { s.beforeTake(func(c *call) { c.pending = change(c.pending) }) }
}
