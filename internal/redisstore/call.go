package redisstore

import (
	"errors"
	"math"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

type op uint8

const (
	take op = iota
	adjust
	reset
)

// A call is one caller's question, and what is needed to answer it.
type call struct {
	op    op
	key   string
	set   *limitSet
	units int64
	upTo  bool  // of a take: as many of the units as fit, as if each was a caller's
	at    int64 // of an adjust: the server's instant at which the units were taken, in nanoseconds

	// group is the callers that share a take with this one, from the moment
	// that a round trip begins until the queue calls answered.
	group *group

	// The rest is written by the round trip, and is the caller's after that.
	result
	place  int64 // this caller's index in its group
	newest bool  // no caller of the group that is still waiting comes after this one
	err    error
}

// A result is what a reply says about one key. It is the same for all callers of
// a group: what each of them gets follows from its place.
type result struct {
	now      int64 // the server's time, in microseconds
	admitted int64 // of a take: how many callers of the group were admitted, the first ones; or units, if upTo
	before   [rule.MaxLimits]rule.State
	after    [rule.MaxLimits]rule.State // of an adjust
}

// copyFrom copies the parts of r that a call with this number of limits uses: the
// arrays are large.
func (to *result) copyFrom(r *result, op op, limits int) {
	to.now, to.admitted = r.now, r.admitted
	copy(to.before[:limits], r.before[:limits])
	if op == adjust {
		copy(to.after[:limits], r.after[:limits])
	}
}

// wasAdmitted reports whether a take was.
func (c *call) wasAdmitted() bool { return c.place < c.admitted }

// taken is how many units a take has taken for its caller.
func (c *call) taken() int64 {
	switch {
	case c.upTo:
		return max(0, c.admitted)
	case c.wasAdmitted():
		return c.units
	}
	return 0
}

// asked is what a denial is about: the call's units, or one of them.
func (c *call) asked() int64 {
	if c.upTo {
		return 1
	}
	return c.units
}

// held is how many units of its group the caller finds in each counter, its own among
// them.
func (c *call) held() int64 {
	if c.upTo {
		return c.taken()
	}
	return c.units*min(c.place, c.admitted) + c.taken()
}

// answer works out the caller's answers to a take: as if the callers of the group
// had come one after the other. So this caller has found the state before the
// group, and in it the units of the admitted callers before it.
func (c *call) answer(answers []rule.Answer) error {
	admitted, refused := c.wasAdmitted(), false
	for i, l := range c.set.micros {
		state := c.before[i]
		state.A += c.held()
		var a rule.Answer
		if !admitted {
			_, a = l.Take(state, c.now, c.asked())
		}
		if a.Retry > 0 {
			refused = true
		} else { // admitted, or another limit refuses: what this one allows
			_, a = l.Take(state, c.now, 0)
		}
		answers[i] = rule.Answer{
			Remaining: a.Remaining,
			Retry:     int64(redisscript.Nanos(a.Retry)),
			More:      int64(redisscript.Nanos(a.More)),
			Reset:     int64(redisscript.Nanos(a.Reset)),
		}
	}
	if refused == admitted {
		return errors.New("the script's arithmetic is not this library's: is there a proxy that changes replies?")
	}
	return nil
}

// states fills in the states after a take, as this caller finds them, and reports
// whether they are exact: a window that is no whole number of microseconds is
// another one at Redis.
func (c *call) states(states []rule.State) (exact bool) {
	for i, l := range c.set.rules {
		if l.Window%1000 != 0 {
			return false
		}
		s := c.before[i]
		s.A += c.held()
		s.T *= 1000
		if l.Kind == rule.Bucket {
			s.B *= 1000 // it counts parts of a window
		}
		states[i] = s
	}
	return true
}

// charged returns how many units an adjust has charged: under every limit.
func (c *call) charged() int64 {
	charged := int64(math.MaxInt64)
	for i, l := range c.set.micros {
		charged = min(charged, l.Charged(c.before[i], c.after[i], c.now))
	}
	return min(charged, max(0, c.units))
}
