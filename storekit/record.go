package storekit

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Record is what is counted for one key: a counter for each limit, and the holds of an
// in-flight limit. The zero Record is a key that nothing is known about.
//
// Its methods are the calls of a store, as [ratelimit.Store], [ratelimit.KindStore],
// [ratelimit.SharedStore] and [ratelimit.HoldStore] describe them, for one key. They only
// change the record. Each of them is one atomic step if the store reads the record, calls
// the method, and writes the record in one atomic step. They return an error, and change
// nothing, for arguments that no limiter hands to a store. They may not be called
// concurrently.
//
// Instants are in Unix nanoseconds, from 0 to 1<<62-1, which is in the year 2116. now is the
// time of the store's clock. Every process of a store should pass the same clock: see
// [Backend]. A clock that is set back frees no units.
type Record struct {
	Counters []Counter
	Holds    []Hold

	changed bool
}

// Counter is what is counted for a key under one limit. It does not depend on the limit's
// N or burst.
//
// What T, A and B are depends on the algorithm:
//
//	fixed     T: when the window opened       A: units in it
//	sliding   T: when this window opened      A: units in it           B: units in the one before
//	bucket    T: when A and B were true       A: whole units in it     B: and this many Window-ths of one, in nanoseconds
//	calendar  T: when its period ends         A: units in it
type Counter struct {
	// Name identifies the limits that have the counter: the algorithm and the window, such
	// as "fixed-1h", or what [ratelimit.Limit.Calendar] returns.
	Name string

	// End is the instant from which on the counter need not be kept: the limit is whole
	// again, and its block is forgotten.
	End int64

	T, A, B int64
	Log     []int64 // for a rolling window: the instants of its units, from the oldest on

	Until  int64         // when a block ends or has ended; 0 for none
	Rung   int           // how many denials have blocked the key; see ratelimit.Block
	Forget time.Duration // for how long Rung is remembered after Until
}

// Hold is what is known of the holds that one process has of a key; see
// [ratelimit.HoldStore].
type Hold struct {
	Process      string
	Began, Ended int64
	Until        int64         // when it counts no longer
	Lasts        time.Duration // for how long it counted when the process wrote it last
}

// Changed reports whether one of the methods has changed the record. If none has, nothing
// needs to be written.
func (r *Record) Changed() bool { return r.changed }

// Take takes the units of the request under every limit, or under none. If UpTo is set, it
// takes as many of them as fit. It fills in results, which must be as long as the limits.
// Key and Deadline of the request are not used.
func (r *Record) Take(now time.Time, q ratelimit.SharedRequest, results []ratelimit.Result) (ratelimit.SharedReply, error) {
	if q.Units < 0 || q.UpTo && q.Units < 1 || len(results) != len(q.Limits) {
		return ratelimit.SharedReply{}, fmt.Errorf("Take of %d units with %d limits and %d results: want 0 units or more, 1 or more up to which to take, "+
			"and as many results as limits", q.Units, len(q.Limits), len(results))
	}
	counters, at, err := r.counters(now, q.Limits)
	if err != nil {
		return ratelimit.SharedReply{}, err
	}
	n := q.Units
	if q.UpTo {
		for i := range counters {
			_, a := counters[i].ask(at, 0)
			n = min(n, a.Remaining)
		}
		n = max(1, n)
	}
	reply := ratelimit.SharedReply{At: ratelimit.Instant(at), Newest: true}
	if r.take(counters, at, n, false, q.Pending, results) {
		reply.Granted = n
	}
	return reply, nil
}

// Hold carries out a call of [ratelimit.HoldStore]. It fills in results, which must have one
// element more than the limits. Key and Deadline of the request are not used.
func (r *Record) Hold(now time.Time, q ratelimit.HoldRequest, results []ratelimit.Result) (ratelimit.HoldReply, error) {
	h := rule.Holding{
		Action: rule.HoldAction(q.Action), Most: q.Most, Lasts: int64(q.Lasts), Process: q.Process, Began: q.Began, Ended: q.Ended, Alone: q.Alone,
	}
	if !h.Valid() || q.Units < 0 || len(results) != len(q.Limits)+1 {
		return ratelimit.HoldReply{}, fmt.Errorf("Hold of %+v with %d results: want no negative numbers, a Process, and one result more than limits", q, len(results))
	}
	counters, at, err := r.counters(now, q.Limits)
	if err != nil {
		return ratelimit.HoldReply{}, err
	}
	var records rule.Holds
	for _, hold := range r.Holds {
		records = append(records, rule.HoldRecord{Process: hold.Process, Began: hold.Began, Ended: hold.Ended, Until: hold.Until, Lasts: int64(hold.Lasts)})
	}
	full, begun := h.Action == rule.AddHold && records.Room(&h, at) < 1, int64(0)
	if r.take(counters, at, q.Units, full, q.Pending, results[:len(counters)]) && h.Action == rule.AddHold {
		begun = 1
	}
	if after := records.Apply(&h, at, begun); !slices.Equal(after, records) {
		r.Holds, r.changed = nil, true
		for _, hold := range after {
			r.Holds = append(r.Holds, Hold{hold.Process, hold.Began, hold.Ended, hold.Until, time.Duration(hold.Lasts)})
		}
	}
	results[len(counters)] = resultOf(h.Answer())
	return ratelimit.HoldReply{
		At: ratelimit.Instant(at), Began: h.Held.Began, Ended: h.Held.Ended, Others: h.Held.Others, OthersLeft: time.Duration(h.Held.OthersLeft),
	}, nil
}

// take takes n units under every counter, or under none, and fills in results. full means
// that there is no room for a hold that must begin with them.
func (r *Record) take(counters []counter, now, n int64, full bool, pending []ratelimit.Pending, results []ratelimit.Result) (admitted bool) {
	var after [rule.MaxLimits]rule.State
	var answers [rule.MaxLimits]rule.Answer
	fits, isBlocked := !full, false
	for i := range counters {
		c := &counters[i]
		after[i], answers[i] = c.ask(now, n)
		fits = fits && answers[i].Retry == 0
		isBlocked = isBlocked || c.block.Left(now) > 0
	}
	admitted = n == 0 && !full || fits && !isBlocked
	for i := range counters {
		c := &counters[i]
		if !admitted && answers[i].Retry == 0 { // another limit denies, or a block does
			_, answers[i] = c.ask(now, 0)
		}
		if n > 0 && !isBlocked {
			r.settle(c, after[i], now, n, admitted)
		}
	}
	began := uint8(0)
	if n > 0 && !admitted && !isBlocked {
		began = r.startBlocks(counters, answers[:len(counters)], now, n, pending)
	}
	for i := range counters {
		left := counters[i].block.Left(now)
		if left > 0 {
			answers[i] = answers[i].Over(left, n)
		}
		results[i] = resultOf(answers[i])
		results[i].Blocked, results[i].BlockBegan = left > 0, began>>i&1 != 0
	}
	return admitted
}

// settle writes what a call for n > 0 units makes of a counter. after is the state with the
// units. A denial changes no units, but if the clock was far ahead before, what it has counted
// is moved back to now; see [rule.Limit.Take].
func (r *Record) settle(c *counter, after rule.State, now, n int64, admitted bool) {
	switch {
	case c.rule.Kind == rule.Rolling && admitted:
		c.rule.Count(&c.log, now, n)
	case c.rule.Kind == rule.Rolling && c.rule.Repairs(&c.log, now):
		c.rule.Repair(&c.log, now)
	case c.rule.Kind == rule.Rolling:
		return
	case admitted:
		c.state = after
	default:
		repaired, _ := c.ask(now, 0)
		if repaired == c.state {
			return
		}
		c.state = repaired
	}
	r.put(c, now)
}

// startBlocks starts the blocks that follow from a denial of n units, and returns which
// limits have started one. No counter is blocked.
func (r *Record) startBlocks(counters []counter, answers []rule.Answer, now, n int64, pending []ratelimit.Pending) (began uint8) {
	if slices.ContainsFunc(answers, func(a rule.Answer) bool { return a.Retry == rule.Never }) {
		return 0
	}
	for i := range counters {
		if c := &counters[i]; c.ladder != nil && answers[i].Retry > 0 && c.deniesWithout(pending, now, n) {
			c.block = c.block.Start(c.ladder, c.rule.Window, answers[i].Retry, now)
			r.put(c, now)
			began |= 1 << i
		}
	}
	return began
}

// Adjust moves what is counted under each limit by n units of an instant, and returns how
// many whole units it has charged under every limit.
func (r *Record) Adjust(now time.Time, n int64, of ratelimit.Instant, limits []ratelimit.Limit) (charged int64, err error) {
	counters, at, err := r.counters(now, limits)
	if err != nil {
		return 0, err
	}
	charged = max(0, n)
	for i := range counters {
		c := &counters[i]
		var moved bool
		if c.rule.Kind == rule.Rolling {
			repairs := n != 0 && c.rule.Repairs(&c.log, at)
			units, _ := c.rule.AdjustLog(&c.log, at, n, int64(of))
			charged = min(charged, units)
			moved = units > 0 || repairs
		} else {
			before := c.state
			c.state = c.rule.Adjust(before, at, n, at-max(0, min(int64(of), at)))
			charged = min(charged, c.rule.Charged(before, c.state, at))
			moved = c.state != before
		}
		if moved {
			r.put(c, at)
		}
	}
	return charged, nil
}

// Block joins a block with the block of the counter under each limit. There may be any
// number of limits.
func (r *Record) Block(now time.Time, b ratelimit.Block, limits []ratelimit.Limit) error {
	if b.Left > rule.MaxSpan || b.Rung < 0 || b.Rung > rule.MaxRungs || b.Forget < 0 || b.Forget > rule.MaxSpan {
		return fmt.Errorf("Block has %+v: want at most 50 years, and a rung of 0 to %d", b, rule.MaxRungs)
	}
	for some := range slices.Chunk(limits, rule.MaxLimits) {
		counters, at, err := r.counters(now, some)
		if err != nil {
			return err
		}
		for i := range counters {
			c := &counters[i]
			c.block = c.block.Join(rule.Block{Until: rule.Lasting(int64(b.Left), at), Rung: uint8(b.Rung), Forget: int64(b.Forget)}, at)
			r.put(c, at)
		}
	}
	return nil
}

// Reset forgets the counters under each limit, with their blocks. There may be any number of
// limits.
func (r *Record) Reset(limits []ratelimit.Limit) {
	for _, l := range limits {
		how, err := knownLimits.of(l)
		if err != nil {
			continue // nothing was ever counted under it
		}
		if i := r.index(how.Name); i >= 0 {
			r.Counters, r.changed = slices.Delete(r.Counters, i, i+1), true
		}
	}
}

// Validate returns an error if no call can have left such a record. A store that reads
// counters from columns of its own calls it, so that numbers that somebody else has written
// do no harm. [DecodeRecord] has checked its record.
func (r *Record) Validate() error {
	if !r.valid() {
		return errors.New("its counters or holds are not ones that this package counts: delete it with Limiter.Reset")
	}
	return nil
}

func (r *Record) valid() bool {
	names := make(map[string]bool, len(r.Counters))
	for i := range r.Counters {
		c := &r.Counters[i]
		inRange := min(c.T, c.A, c.B, c.End, c.Until, int64(c.Rung), int64(c.Forget)) >= 0 && max(c.T, c.End, c.Until) <= rule.MaxUntil &&
			c.A <= rule.MaxUnits && c.B <= rule.MaxSpan && c.Rung <= rule.MaxRungs && c.Forget <= rule.MaxSpan && len(c.Log) <= rule.MaxRolling
		if !inRange || c.Name == "" || names[c.Name] || !slices.IsSorted(c.Log) ||
			len(c.Log) > 0 && (c.Log[0] < 0 || c.Log[len(c.Log)-1] > rule.MaxUntil) {
			return false
		}
		names[c.Name] = true
	}
	processes := make(map[string]bool, len(r.Holds))
	for i := range r.Holds {
		h := &r.Holds[i]
		if h.Process == "" || h.Ended < 0 || h.Ended > h.Began || h.Began > maxBegan || h.Lasts <= 0 || h.Lasts > rule.MaxSpan ||
			h.Until < 0 || h.Until > rule.MaxUntil || processes[h.Process] {
			return false
		}
		processes[h.Process] = true
	}
	return true
}

// maxBegan is the most holds that have begun in a process: one more than a limiter says.
const maxBegan = rule.MaxUnits + 1

// index returns the index of a counter, or -1.
func (r *Record) index(name string) int {
	return slices.IndexFunc(r.Counters, func(c Counter) bool { return c.Name == name })
}

// A counter is a [Counter] as the counting rules take it, with its limit.
type counter struct {
	name   string
	rule   rule.Limit
	ladder *rule.Ladder // nil if the limit starts no blocks
	state  rule.State
	log    rule.Log
	block  rule.Block
}

// counters returns the counters of a call with these limits, and the time as an instant.
func (r *Record) counters(now time.Time, limits []ratelimit.Limit) (counters []counter, at int64, err error) {
	if err := validateTime(now); err != nil {
		return nil, 0, err
	}
	if len(limits) > rule.MaxLimits {
		return nil, 0, fmt.Errorf("%d limits: want at most %d", len(limits), rule.MaxLimits)
	}
	counters = make([]counter, 0, len(limits))
	for _, l := range limits {
		how, err := knownLimits.of(l)
		if err != nil {
			return nil, 0, err
		}
		c := counter{name: how.Name, rule: how.At(now), ladder: how.Ladder}
		if i := r.index(c.name); i >= 0 {
			stored := &r.Counters[i]
			if c.rule.Kind == rule.Bucket && stored.B >= c.rule.Window || c.rule.Kind != rule.Rolling && len(stored.Log) > 0 {
				return nil, 0, errNotRecord
			}
			c.state, c.log, c.block = rule.State{T: stored.T, A: stored.A, B: stored.B}, rule.LogOf(stored.Log), stored.block()
		}
		counters = append(counters, c)
	}
	return counters, now.UnixNano(), nil
}

// put writes a counter into the record, or deletes it if there is nothing to remember. A
// limit that is whole may have units that do not weigh any more. They stay for a minute: after
// that the clock is not set back.
func (r *Record) put(c *counter, now int64) {
	_, a := c.ask(now, 0)
	put := Counter{Name: c.name, End: rule.Lasting(a.Reset, now), T: c.state.T, A: c.state.A, B: c.state.B}
	hasUnits, hasBlock := !c.state.Fresh() || c.log.N > 0, c.block.Forgotten()+kept > now
	if hasBlock {
		put.End = max(put.End, c.block.Forgotten())
		put.Until, put.Rung, put.Forget = c.block.Until, int(c.block.Rung), time.Duration(c.block.Forget)
	}
	r.changed = true
	switch i := r.index(c.name); {
	case i >= 0 && (hasUnits || hasBlock):
		put.Log = c.log.AppendTo(r.Counters[i].Log[:0])
		r.Counters[i] = put
	case i >= 0:
		r.Counters = slices.Delete(r.Counters, i, i+1)
	case hasUnits || hasBlock:
		put.Log = c.log.AppendTo(nil)
		r.Counters = append(r.Counters, put)
	}
}

// ask returns the answer for n units, and the state if they are taken alone.
func (c *counter) ask(now, n int64) (rule.State, rule.Answer) {
	if c.rule.Kind == rule.Rolling {
		return c.state, c.rule.Ask(&c.log, now, n)
	}
	return c.rule.Take(c.state, now, n)
}

// deniesWithout reports whether n units are denied without the pending ones, too.
func (c *counter) deniesWithout(pending []ratelimit.Pending, now, n int64) bool {
	var rules []rule.Pending
	for _, p := range pending {
		rules = append(rules, rule.Pending{Units: max(0, p.Units), At: int64(max(0, p.At))})
	}
	if c.rule.Kind == rule.Rolling {
		return c.rule.LogDeniesWithout(rules, &c.log, now, n)
	}
	return c.rule.DeniesWithout(rules, c.state, now, n)
}

func (c *Counter) block() rule.Block {
	return rule.Block{Until: c.Until, Rung: uint8(c.Rung), Forget: int64(c.Forget)}
}

func resultOf(a rule.Answer) ratelimit.Result {
	return ratelimit.Result{
		Remaining: a.Remaining, RetryAfter: time.Duration(a.Retry), MoreAfter: time.Duration(a.More), ResetAfter: time.Duration(a.Reset),
	}
}

// validateTime returns an error for a time that no clock shows.
func validateTime(now time.Time) error {
	if year := now.UTC().Year(); year < 1970 || year > 2115 {
		return fmt.Errorf("%w: it is %v, and should be in 1970 to 2115", errClock, now.UTC())
	}
	return nil
}

var errClock = errors.New("the backend's clock is wrong")

var errEmptyKey = errors.New("the key is empty: a request without a key must not be counted together with others")
