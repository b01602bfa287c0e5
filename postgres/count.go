package postgres

import (
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// op says what a call asks for.
type op uint8

const (
	take op = iota
	adjust
	block
	reset
	hold // a take with a hold beside its units, or about holds alone
)

// A call is one caller's request and its answer. This file carries out a call on the record
// of its key. The functions take_* do the same for the usual takes: see fast.go.
type call struct {
	op  op
	key string // as it is stored, with the number of the prefix once that is known
	set *limitSet

	units   int64
	upTo    bool  // of a take: take as many of the units as fit
	at      int64 // of an adjust: when the units were taken
	pending []rule.Pending
	given   rule.Block // of a block: Until is how long it lasts from now on
	holding rule.Holding

	// The answer.
	now            int64 // when the call was carried out, by the server's clock
	decided        int64 // the same, and not before a window in which the call counts
	answers        [rule.MaxLimits]rule.Answer
	blocked, began uint8 // a bit for each limit
	taken          int64 // units
	charged        int64 // of an adjust
	newest         bool
	err            error

	of *group // the calls for the same key; set while a round trip runs
}

// apply carries out a call on a record at an instant. It reports whether the record has
// changed. It sets the answer, also if it is called again for a newer record.
func (c *call) apply(rec *record, now int64) (changed bool) {
	c.now, c.decided, c.blocked, c.began, c.taken, c.charged, c.err = now, now, 0, 0, 0, 0, nil
	rules := c.set.at(now).rules
	switch c.op {
	case take, hold:
		return c.take(rec, rules, now)
	case adjust:
		return c.adjust(rec, rules, now)
	case block:
		for _, name := range c.set.names {
			of := rec.counter(name)
			given := c.given
			given.Until = rule.Lasting(given.Until, now)
			of.block = of.block.Join(given, now)
		}
		return true
	default:
		for _, name := range c.set.names {
			if rec.counters[name] != nil {
				*rec.counters[name], changed = counter{}, true
			}
		}
		return changed
	}
}

// ask returns the answer for n units under a limit, and the state if they are taken.
func (of *counter) ask(l *rule.Limit, now, n int64) (after rule.State, a rule.Answer) {
	if l.Kind == rule.Rolling {
		return of.state, l.Ask(&of.log, now, n)
	}
	return l.Take(of.state, now, n)
}

// asked returns how many units must fit, or the call is denied.
func (c *call) asked() int64 {
	if c.upTo {
		return 1
	}
	return c.units
}

// take carries out a take, and what it asks about holds. Blocks come first, then units and
// holds, all or none.
func (c *call) take(rec *record, rules []rule.Limit, now int64) (changed bool) {
	n := c.units
	if c.upTo {
		for i, name := range c.set.names {
			_, a := rec.counter(name).ask(&rules[i], now, 0)
			n = min(n, a.Remaining)
		}
		n = max(n, 1)
	}
	h := c.holding
	adds := c.op == hold && h.Action == rule.AddHold
	admitted := !adds || rec.holds.Room(&h, now) >= 1
	var after [rule.MaxLimits]rule.State
	for i, name := range c.set.names {
		of := rec.counter(name)
		after[i], c.answers[i] = of.ask(&rules[i], now, n)
		admitted = admitted && c.answers[i].Retry == 0
		if of.block.Left(now) > 0 {
			c.blocked |= 1 << i
		}
	}
	if c.blocked != 0 {
		admitted = admitted && n == 0
		c.denyBlocked(rec, rules, now, n)
	} else {
		for i, name := range c.set.names {
			of, l := rec.counters[name], &rules[i]
			if !admitted && c.answers[i].Retry == 0 {
				after[i], c.answers[i] = of.ask(l, now, 0)
			}
			changed = of.settle(l, after[i], now, n, admitted) || changed
		}
		if !admitted {
			changed = c.startBlocks(rec, rules, now, n) || changed
		}
	}
	if admitted {
		c.taken = n
	}
	if c.op == hold {
		begun := int64(0)
		if adds && admitted {
			begun = 1
		}
		holds := rec.holds.Apply(&h, now, begun)
		changed = changed || !slices.Equal(holds, rec.holds)
		rec.holds, c.holding.Held = holds, h.Held
	}
	return changed
}

// settle changes a counter after a take of n units that was admitted or denied. It reports
// whether there was anything to change.
func (of *counter) settle(l *rule.Limit, after rule.State, now, n int64, admitted bool) (changed bool) {
	if n == 0 {
		return false
	}
	if l.Kind == rule.Rolling {
		if changed = admitted || l.Repairs(&of.log, now); changed {
			of.log = of.log.Clone()
			if admitted {
				l.Count(&of.log, now, n)
			} else {
				l.Repair(&of.log, now)
			}
		}
	} else if changed = !after.Fresh() && after != of.state; changed {
		of.state = after
	}
	if changed {
		of.expire(l, now)
	}
	return changed
}

// expire sets from when on a counter counts no longer under a limit.
func (of *counter) expire(l *rule.Limit, now int64) {
	_, a := of.ask(l, now, 0)
	of.ends = rule.Lasting(a.Reset, now)
}

// denyBlocked sets the answers to n units of a key of which a counter is blocked.
func (c *call) denyBlocked(rec *record, rules []rule.Limit, now, n int64) {
	for i, name := range c.set.names {
		of := rec.counters[name]
		if c.answers[i].Retry == 0 { // as if the units had not been taken
			_, c.answers[i] = of.ask(&rules[i], now, 0)
		}
		if left := of.block.Left(now); left > 0 {
			c.answers[i] = c.answers[i].Over(left, n)
		}
	}
}

// startBlocks starts the blocks that follow from a denial of n units. No counter is blocked.
func (c *call) startBlocks(rec *record, rules []rule.Limit, now, n int64) (changed bool) {
	for i := range rules {
		if c.answers[i].Retry == rule.Never {
			return false
		}
	}
	for i, name := range c.set.names {
		of, l, ladder := rec.counters[name], rules[i], c.set.ladders[i]
		if ladder == nil || c.answers[i].Retry == 0 || !of.deniesWithout(c.pending, &l, now, n) {
			continue
		}
		of.block = of.block.Start(ladder, int64(c.set.limits[i].Window()), c.answers[i].Retry, now)
		c.answers[i] = c.answers[i].Over(of.block.Left(now), n)
		c.blocked |= 1 << i
		c.began |= 1 << i
		changed = true
	}
	return changed
}

// deniesWithout reports whether a limit denies n units also without the pending ones.
func (of *counter) deniesWithout(pending []rule.Pending, l *rule.Limit, now, n int64) bool {
	if l.Kind == rule.Rolling {
		return l.LogDeniesWithout(pending, &of.log, now, n)
	}
	return l.DeniesWithout(pending, of.state, now, n)
}

// adjust moves the counters by units that were taken before.
func (c *call) adjust(rec *record, rules []rule.Limit, now int64) (changed bool) {
	age := now - max(0, min(c.at, now))
	c.charged = max(0, c.units)
	for i, name := range c.set.names {
		of, l := rec.counter(name), &rules[i]
		moved := false
		if l.Kind == rule.Rolling {
			log, repairs := of.log.Clone(), c.units != 0 && l.Repairs(&of.log, now)
			units, _ := l.AdjustLog(&log, now, c.units, c.at)
			if c.units > 0 {
				c.charged = min(c.charged, units)
			}
			if moved = units > 0 || repairs; moved {
				of.log = log
			}
		} else {
			before := of.state
			of.state = l.Adjust(before, now, c.units, age)
			moved = of.state != before
			c.charged = min(c.charged, l.Charged(before, of.state, now))
		}
		if moved {
			of.expire(l, now)
			changed = true
		}
	}
	return changed
}

// results fills in the results of a take.
func (c *call) results(results []ratelimit.Result) {
	for i := range results {
		a := c.answers[i]
		results[i] = ratelimit.Result{
			Remaining: a.Remaining, RetryAfter: span(a.Retry), MoreAfter: span(a.More), ResetAfter: span(a.Reset),
			Blocked: c.blocked>>i&1 != 0, BlockBegan: c.began>>i&1 != 0,
		}
	}
}

// span returns a wait as a Duration. [rule.Never] is [ratelimit.Never].
func span(wait int64) time.Duration { return time.Duration(wait) }
