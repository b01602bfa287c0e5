package redisstore

import (
	"errors"
	"math"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// op says what a call asks for. This file has one caller's call, and works out its
// answer from a result that it may share with others.
type op uint8

const (
	take op = iota
	adjust
	block
	reset
	takeHold // a take with a hold beside its units
	hold     // about holds alone
)

// A call is one caller's request, and what is needed to answer it.
type call struct {
	op    op
	key   string
	set   *limitSet
	units int64
	upTo  bool  // of a take: take as many of the units as fit, as if each belonged to another caller
	at    int64 // of an adjust: the server's instant at which the units were taken, in nanoseconds

	pending []rule.Pending // of a take: see engine.Request
	given   rule.Block     // of a block: see engine.Engine
	holding rule.Holding   // of a takeHold or a hold

	// group has the callers that share a take with this one. It is set from
	// when a round trip begins until the queue calls answered.
	group *group

	// The round trip writes the rest. After that it belongs to the caller.
	result
	index  int64 // this caller's index in its group
	newest bool  // no caller of the group that is still waiting comes after this one
	err    error
}

// A result is what a reply says about one key. It is the same for all callers of
// a group. What each of them gets follows from its place.
type result struct {
	now      int64 // the server's time, in microseconds
	admitted int64 // of a take: how many callers of the group were admitted, the first ones; if upTo is set, how many units
	before   [rule.MaxLimits]rule.State
	after    [rule.MaxLimits]rule.State // of an adjust
	blocked  bool                       // of a take: blocks has the counters' blocks, after the last caller
	blocks   [rule.MaxLimits]rule.Block // in microseconds
	logs     []logs                     // of a take: of each limit that is a rolling window; nil without one
	held     rule.Held                  // of a takeHold or a hold
	began    uint8                      // the blocks that the first caller who was denied has started, as in engine.Reply
}

// logs are the log of a rolling window before the first caller of a group, and after the
// last one, in microseconds.
type logs struct{ before, after rule.Log }

// copyFrom copies the parts of r that a call with this number of limits uses. It
// does not copy all, because the arrays are large.
func (to *result) copyFrom(r *result, op op, limits int) {
	to.now, to.admitted, to.logs, to.held = r.now, r.admitted, r.logs, r.held
	copy(to.before[:limits], r.before[:limits])
	if op == adjust {
		copy(to.after[:limits], r.after[:limits])
	}
	if to.blocked = r.blocked; r.blocked {
		to.blocks, to.began = r.blocks, r.began
	}
}

// alone reports whether a take needs a command of its own: redisscript.AppendOptions is
// about the only take of a command.
func (c *call) alone() bool {
	return c.set.ladders != nil && (len(c.pending) > 0 || c.upTo)
}

// wasAdmitted reports whether a take was admitted.
func (c *call) wasAdmitted() bool { return c.index < c.admitted }

// taken returns how many units a take has taken for its caller.
func (c *call) taken() int64 {
	switch {
	case c.upTo:
		return max(0, c.admitted)
	case c.wasAdmitted():
		return c.units
	}
	return 0
}

// asked returns how many units must fit, or the call is denied: all of its
// units, or one if upTo is set.
func (c *call) asked() int64 {
	if c.upTo {
		return 1
	}
	return c.units
}

// counted returns how many units of the group are in each counter when this caller is
// done, including its own.
func (c *call) counted() int64 {
	if c.upTo {
		return c.taken()
	}
	return c.units*min(c.index, c.admitted) + c.taken()
}

// answer works out the caller's answers to a take, as if the callers of the group
// had come one after the other. So this caller has found the state before the
// group, plus the units of the callers that were admitted before it. It also returns
// which of the limits are blocked, and which blocks this caller has started.
func (c *call) answer(answers []rule.Answer) (blocked, began uint8, err error) {
	admitted, refused := c.wasAdmitted(), c.op == takeHold && c.held.Denied
	for i := range c.set.micros {
		a := c.answerOf(i)
		refused = refused || a.Retry > 0
		if left := c.blockedFor(i); left > 0 {
			a = a.Over(left, c.asked())
			blocked |= 1 << i
			refused = refused || a.Retry > 0
		}
		answers[i] = rule.Answer{
			Remaining: a.Remaining,
			Retry:     int64(redisscript.Nanos(a.Retry)),
			More:      int64(redisscript.Nanos(a.More)),
			Reset:     int64(redisscript.Nanos(a.Reset)),
		}
	}
	if refused == admitted {
		return 0, 0, errors.New("the script's arithmetic is not this library's: is there a proxy that changes replies?")
	}
	if c.index == c.admitted {
		began = c.began
	}
	return blocked, began, nil
}

// answerOf works out the answer of one limit without its block.
func (c *call) answerOf(limit int) (a rule.Answer) {
	l := c.set.micros[limit]
	if l.Kind == rule.Rolling {
		log := &c.logs[limit]
		if c.wasAdmitted() {
			return l.Ask(&log.before, c.now, c.counted())
		}
		if a = l.Ask(&log.after, c.now, c.asked()); a.Retry == 0 {
			a = l.Ask(&log.after, c.now, 0)
		}
		return a
	}
	state := c.before[limit]
	state.A += c.counted()
	l = l.Around(c.before[limit], c.now)
	if !c.wasAdmitted() {
		_, a = l.Take(state, c.now, c.asked())
	}
	if a.Retry == 0 { // admitted, or denied by another limit: report what this one allows
		_, a = l.Take(state, c.now, 0)
	}
	return a
}

// blockedFor returns how long a limit's counter is blocked for this caller, in
// microseconds. A block that the group has started is one for the callers that were
// denied.
func (c *call) blockedFor(limit int) int64 {
	if !c.blocked || c.began>>limit&1 != 0 && c.wasAdmitted() {
		return 0
	}
	return c.blocks[limit].Left(c.now)
}

// blocksAfter fills in the counters' blocks after the whole group.
func (c *call) blocksAfter(blocks []rule.Block) {
	if !c.blocked {
		return
	}
	for i := range blocks {
		b := c.blocks[i]
		blocks[i] = rule.Block{Until: b.Until * 1000, Rung: b.Rung, Forget: b.Forget * 1000}
	}
}

// states fills in the states after a take, as this caller finds them, and the logs of
// rolling windows. It reports whether they are exact. They are not if a window is not a
// whole number of microseconds, because Redis then has another window.
func (c *call) states(states []rule.State, logs []rule.Log) (exact bool) {
	for i, l := range c.set.rules {
		if l.Window%1000 != 0 {
			return false
		}
		if l.Kind == rule.Rolling {
			log := c.logs[i].after
			if !c.upTo && c.counted() < c.units*c.admitted { // without the callers after this one
				log = countedOn(&c.set.micros[i], c.logs[i].before, c.now, c.counted())
			}
			logs[i] = log.Map(func(instant int64) int64 { return instant * 1000 })
			continue
		}
		s := c.before[i]
		s.A += c.counted()
		s.T *= 1000
		if l.Kind == rule.Bucket {
			s.B *= 1000 // B counts Window-ths of a unit, so it scales with the window
		}
		states[i] = s
	}
	return true
}

// charged returns how many units an adjust has charged under every limit.
func (c *call) charged() int64 {
	charged := int64(math.MaxInt64)
	for i, l := range c.set.micros {
		l = l.Around(c.after[i], c.now)
		charged = min(charged, l.Charged(c.before[i], c.after[i], c.now))
	}
	return min(charged, max(0, c.units))
}
