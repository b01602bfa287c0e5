package postgres

import (
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/storekit"
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
	key string // as it is stored, without the id of the prefix
	set *limitSet

	units   int64
	upTo    bool  // of a take: take as many of the units as fit
	at      int64 // of an adjust: when the units were taken
	pending []ratelimit.Pending
	given   ratelimit.Block // of a block
	holding ratelimit.HoldRequest

	// The answer.
	decided int64 // when the call was carried out, by the server's clock, and not before a window in which it counts
	results [rule.MaxLimits + 1]ratelimit.Result
	held    ratelimit.HoldReply
	taken   int64 // units
	charged int64 // of an adjust
	newest  bool
	err     error

	recording *recording // nil if the call is not recorded

	of *group // the calls for the same key; set while a round trip runs
}

// apply carries out a call on a record at an instant. It sets the answer, also if it is called
// again for a newer record.
func (c *call) apply(rec *storekit.Record, now int64) (err error) {
	c.decided, c.taken, c.charged = now, 0, 0
	at, limits := time.Unix(0, now), c.set.limits
	switch c.op {
	case take:
		var reply ratelimit.SharedReply
		reply, err = rec.Take(at, ratelimit.SharedRequest{Units: c.units, UpTo: c.upTo, Limits: limits, Pending: c.pending}, c.results[:len(limits)])
		c.taken = reply.Granted
	case hold:
		results := c.results[:len(limits)+1]
		c.held, err = rec.Hold(at, c.holding, results)
		if c.holding.Action == ratelimit.HoldAdd && !slices.ContainsFunc(results, func(r ratelimit.Result) bool { return r.RetryAfter > 0 }) {
			c.taken = c.holding.Units
		}
	case adjust:
		c.charged, err = rec.Adjust(at, c.units, ratelimit.Instant(c.at), limits)
	case block:
		err = rec.Block(at, c.given, limits)
	default:
		rec.Reset(limits)
	}
	return err
}

// asked returns how many units must fit, or the call is denied.
func (c *call) asked() int64 {
	if c.upTo {
		return 1
	}
	return c.units
}

// resultOf is for the answer of one limit. [rule.Never] is [ratelimit.Never].
func resultOf(a rule.Answer) ratelimit.Result {
	return ratelimit.Result{
		Remaining: a.Remaining, RetryAfter: time.Duration(a.Retry), MoreAfter: time.Duration(a.More), ResetAfter: time.Duration(a.Reset),
	}
}
