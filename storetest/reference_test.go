package storetest

import (
	"context"
	"fmt"
	"math/big"
	"math/bits"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// A server has the counters of all references of one test. It is as simple as the
// contract allows, and shares no code with the stores of the library.
type server struct {
	mu       sync.Mutex
	clock    func() int64  // nanoseconds
	delay    time.Duration // of a call, there and back
	counters map[string]counter
	blocks   map[string]block
	holds    map[string]map[string]holdRecord // of a key, by process

	calls     int
	processes int64 // for a fault: stores that were made
}

// A counter is the units in a window that opened at t, and in the window before. For
// a bucket, it is the level at t, in parts: a unit has as many as the limit's window
// has nanoseconds. For a calendar, t is the end of the period.
type counter struct {
	t             int64
	units, before int64
	level         *big.Int // nil is 0
	log           []int64  // of a rolling window: the instants of its units, in order, as of t
}

// A block is the last one of a counter. It is remembered for some time after its end.
type block struct {
	until, forget int64
	rung          int // how many denials have blocked the counter
}

// A holdRecord is what a process has of a key.
type holdRecord struct{ began, ended, until int64 }

func (h holdRecord) held() int64 { return h.began - h.ended }

func newServer() *server {
	return &server{
		clock: func() int64 { return time.Now().UnixNano() }, counters: map[string]counter{}, blocks: map[string]block{}, holds: map[string]map[string]holdRecord{},
	}
}

// A reference is a store on a server. Its parts are fields, so that a test can break
// any of them.
type reference struct {
	*server
	clock  func() int64 // the server's
	prefix string
	closed bool
	kinds  ratelimit.Kinds

	onTake   func(c *call) error
	onAdjust func(c *call) (charged int64, err error)
	onReset  func(c *call) error
	onBlock  func(c *call) error
	onHold   func(c *call) (ratelimit.HoldReply, error)

	// The counting, by a counter that aged has brought to now.
	name func(key string, l ratelimit.Limit) string                          // of a counter at the server
	aged func(l ratelimit.Limit, c counter, now int64) counter               // the counter as it is now
	used func(l ratelimit.Limit, c counter, now int64) int64                 // the units that have no room now
	move func(l ratelimit.Limit, c counter, n int64, now, age int64) counter // Adjust by n units of this age

	roll func(l ratelimit.Limit, c counter, n int64, now, at int64) counter // move, under a rolling window, by units of an instant

	blockName func(key string, l ratelimit.Limit) string                             // as name
	recall    func(l ratelimit.Limit, b block, now int64) block                      // the block as far as it is remembered now
	starts    func(c *call, l ratelimit.Limit, counted counter, now int64) bool      // whether a denial under l starts a block
	start     func(l ratelimit.Limit, b block, retry time.Duration, now int64) block // after the block b
	join      func(b, joined block) block
	over      func(res *ratelimit.Result, left time.Duration, n int64) // changes a result without the block

	holdName func(key string) string                                                                    // of the records at the server
	merge    func(stored holdRecord, q *ratelimit.HoldRequest) holdRecord                               // what the process has
	until    func(stored holdRecord, q *ratelimit.HoldRequest, began bool, now int64) int64             // when its record ends after a call
	stores   func(q *ratelimit.HoldRequest, stored, own holdRecord, began bool) bool                    // whether it is stored
	room     func(q *ratelimit.HoldRequest, own holdRecord, others map[string]holdRecord) (holds int64) // that may begin
	deletes  func(q *ratelimit.HoldRequest) bool                                                        // whether a record without holds is deleted
	alive    func(h holdRecord, now int64) bool                                                         // whether a record counts
}

// A call is the arguments of one, and the instant that it returns.
type call struct {
	ctx     context.Context
	key     string
	n       int64
	at      ratelimit.Instant
	limits  []ratelimit.Limit
	results []ratelimit.Result

	pending []ratelimit.Pending
	given   ratelimit.Block // by hand
	shared  bool            // TakeShared
	upTo    bool
	granted int64
	newest  bool
	hold    ratelimit.HoldRequest
	full    bool // there is no room for the hold

	fits, blocked, never bool // under all limits, a counter is, under one limit
}

func (s *server) store(prefix string) *reference {
	r := &reference{server: s, clock: s.clock, prefix: prefix, kinds: ratelimit.KindBlock | ratelimit.KindRolling | ratelimit.KindCalendar | ratelimit.KindInFlight | 1<<31} // and one that nobody knows
	r.onTake, r.onAdjust, r.onReset, r.onBlock = r.take, r.adjust, r.reset, r.block
	r.name = func(key string, l ratelimit.Limit) string {
		return r.begins(key) + fmt.Sprint(l.Algorithm(), int64(l.Window()), l.Calendar())
	}
	r.aged, r.used, r.move, r.roll = aged, used, move, roll
	r.blockName = func(key string, l ratelimit.Limit) string { return r.name(key, l) }
	r.recall, r.starts, r.start, r.join, r.over = recall, r.startsBlock, start, join, over
	r.onHold, r.holdName, r.merge, r.until, r.stores, r.room = r.heldBy, r.begins, merge, until, stores, room
	r.deletes = func(q *ratelimit.HoldRequest) bool { return q.Alone }
	r.alive = func(h holdRecord, now int64) bool { return h.until > now }
	return r
}

// begins is what the names of all counters of a key begin with.
func (r *reference) begins(key string) string {
	return fmt.Sprintf("%d:%s%d:%s", len(r.prefix), r.prefix, len(key), key)
}

func (r *reference) Prefix() string { return r.prefix }

func (r *reference) Take(ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	c := &call{ctx: ctx, key: key, n: n, limits: limits, results: results}
	err := r.onTake(c)
	return c.at, err
}

func (r *reference) Adjust(ctx context.Context, key string, n int64, at ratelimit.Instant, limits []ratelimit.Limit) (int64, error) {
	return r.onAdjust(&call{ctx: ctx, key: key, n: n, at: at, limits: limits})
}

func (r *reference) Reset(ctx context.Context, key string, limits []ratelimit.Limit) error {
	return r.onReset(&call{ctx: ctx, key: key, limits: limits})
}

func (r *reference) Kinds() ratelimit.Kinds { return r.kinds }

func (r *reference) TakePending(ctx context.Context, key string, n int64, pending []ratelimit.Pending, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	c := &call{ctx: ctx, key: key, n: n, limits: limits, results: results, pending: pending}
	err := r.onTake(c)
	return c.at, err
}

func (r *reference) Block(ctx context.Context, key string, b ratelimit.Block, limits []ratelimit.Limit) error {
	return r.onBlock(&call{ctx: ctx, key: key, given: b, limits: limits})
}

func (r *reference) TakeShared(ctx context.Context, q ratelimit.SharedRequest, results []ratelimit.Result) (ratelimit.SharedReply, error) {
	if !q.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, q.Deadline)
		defer cancel()
	}
	c := &call{ctx: ctx, key: q.Key, n: q.Units, limits: q.Limits, results: results, pending: q.Pending, shared: true, upTo: q.UpTo, newest: true}
	err := r.onTake(c)
	return ratelimit.SharedReply{At: c.at, Granted: c.granted, Newest: c.newest}, err
}

func (r *reference) Hold(ctx context.Context, q ratelimit.HoldRequest, results []ratelimit.Result) (ratelimit.HoldReply, error) {
	if !q.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, q.Deadline)
		defer cancel()
	}
	return r.onHold(&call{ctx: ctx, key: q.Key, n: q.Units, limits: q.Limits, results: results, pending: q.Pending, hold: q})
}

func (r *reference) Fault(error) ratelimit.Fault { return ratelimit.FaultUnknown }

func (r *reference) Close() error {
	r.closed = true
	return nil
}

// begin takes the way to the server and locks it. The caller unlocks.
func (r *reference) begin(ctx context.Context) error {
	if r.closed {
		return ratelimit.ErrStoreClosed
	}
	if err := r.waitHalfDelay(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	r.calls++
	return nil
}

func (r *reference) waitHalfDelay(ctx context.Context) error {
	if r.delay > 0 && ctx.Err() == nil {
		select {
		case <-time.After(r.delay / 2):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

func (r *reference) get(key string, l ratelimit.Limit, now int64) counter {
	return r.aged(l, r.counters[r.name(key, l)], now)
}

func (r *reference) take(c *call) error {
	if err := r.begin(c.ctx); err != nil {
		return err
	}
	r.takeLocked(c, r.clock())
	r.mu.Unlock()
	return r.waitHalfDelay(c.ctx)
}

func (r *reference) takeLocked(c *call, now int64) {
	if c.upTo {
		for _, l := range c.limits {
			c.n = max(1, min(c.n, l.Burst()-r.used(l, r.get(c.key, l, now), now)))
		}
	}
	c.fits, c.blocked, c.never = true, false, false
	for _, l := range c.limits {
		c.fits = c.fits && (c.n == 0 || c.n <= l.Burst()-r.used(l, r.get(c.key, l, now), now))
		c.blocked = c.blocked || r.blockOf(c.key, l, now).until > now
		c.never = c.never || c.n > l.Burst()
	}
	takes := c.fits && !c.full && (c.n == 0 || !c.blocked)
	for i, l := range c.limits {
		counted, asked := r.get(c.key, l, now), c.n
		if takes {
			asked = 0
			if c.n > 0 {
				counted = add(l, counted, c.n)
				r.counters[r.name(c.key, l)] = counted
			}
		}
		left := max(0, l.Burst()-r.used(l, counted, now))
		c.results[i] = ratelimit.Result{Remaining: left}
		if asked > left {
			c.results[i].RetryAfter = r.wait(l, counted, now, asked)
		}
		if left < l.Burst() {
			c.results[i].MoreAfter, c.results[i].ResetAfter = r.wait(l, counted, now, left+1), r.wait(l, counted, now, l.Burst())
		}
		b := r.blockOf(c.key, l, now)
		if asked > left && r.starts(c, l, counted, now) {
			b = r.start(l, b, c.results[i].RetryAfter, now)
			r.blocks[r.blockName(c.key, l)] = b
			c.results[i].BlockBegan = true
		}
		if b.until > now {
			r.over(&c.results[i], time.Duration(b.until-now), c.n)
		}
	}
	if takes {
		c.granted = c.n
	}
	c.at = ratelimit.Instant(now)
}

// wait searches for the time after which n units fit.
func (r *reference) wait(l ratelimit.Limit, c counter, now, n int64) time.Duration {
	if n > l.Burst() {
		return ratelimit.Never
	}
	fits := func(d int64) bool { return n <= l.Burst()-r.used(l, r.aged(l, c, now+d), now+d) }
	short, long := int64(0), int64(l.Window()) // not long enough, and long enough
	for long < 1<<61 && !fits(long) {
		short, long = long, 2*long
	}
	for long-short > 1 {
		if d := short + (long-short)/2; fits(d) {
			long = d
		} else {
			short = d
		}
	}
	return time.Duration(long)
}

func (r *reference) adjust(c *call) (charged int64, err error) {
	if err := r.begin(c.ctx); err != nil {
		return 0, err
	}
	now := r.clock()
	age := now - max(0, min(now, int64(c.at)))
	charged = max(0, c.n)
	for _, l := range c.limits {
		before := r.get(c.key, l, now)
		after := r.moved(l, before, c.n, now, age, int64(c.at))
		if _, ok := r.counters[r.name(c.key, l)]; ok || !after.empty() {
			r.counters[r.name(c.key, l)] = after
		}
		charged = min(charged, max(0, grown(l, before, after)))
	}
	r.mu.Unlock()
	return charged, r.waitHalfDelay(c.ctx)
}

func (r *reference) reset(c *call) error {
	if err := r.begin(c.ctx); err != nil {
		return err
	}
	for _, l := range c.limits {
		delete(r.counters, r.name(c.key, l))
		delete(r.blocks, r.blockName(c.key, l))
	}
	r.mu.Unlock()
	return r.waitHalfDelay(c.ctx)
}

func (r *reference) block(c *call) error {
	if err := r.begin(c.ctx); err != nil {
		return err
	}
	now := r.clock()
	for _, l := range c.limits {
		given := block{now + int64(c.given.Left), int64(c.given.Forget), c.given.Rung}
		r.blocks[r.blockName(c.key, l)] = r.join(r.blockOf(c.key, l, now), given)
	}
	r.mu.Unlock()
	return r.waitHalfDelay(c.ctx)
}

func (r *reference) heldBy(c *call) (reply ratelimit.HoldReply, err error) {
	if err := r.begin(c.ctx); err != nil {
		return reply, err
	}
	now, q := r.clock(), &c.hold
	others := map[string]holdRecord{} // and the own one, at first
	for process, h := range r.holds[r.holdName(c.key)] {
		if r.alive(h, now) {
			others[process] = h
		}
	}
	stored := others[q.Process]
	delete(others, q.Process)
	own := r.merge(stored, q)
	c.full = q.Action == ratelimit.HoldAdd && r.room(q, own, others) < 1
	r.takeLocked(c, now)
	began := q.Action == ratelimit.HoldAdd && !c.full && admitted(c.results[:len(c.limits)])
	if began {
		own.began++
	}
	own.until = r.until(stored, q, began, now)
	soonest, latest := int64(0), int64(0)
	if own.held() > 0 {
		soonest = own.until - now
	}
	for _, h := range others {
		if h.held() == 0 {
			continue
		}
		reply.Others += h.held()
		latest = max(latest, h.until-now)
		if soonest == 0 || h.until-now < soonest {
			soonest = h.until - now
		}
	}
	if r.stores(q, stored, own, began) {
		if others[q.Process] = own; own.held() == 0 && r.deletes(q) {
			delete(others, q.Process)
		}
		r.holds[r.holdName(c.key)] = others
	}
	last := ratelimit.Result{Remaining: max(0, q.Most-own.held()-reply.Others), MoreAfter: time.Duration(soonest), ResetAfter: time.Duration(soonest)}
	if c.full {
		last.RetryAfter = last.MoreAfter
	}
	c.results[len(c.limits)] = last
	reply.At, reply.Began, reply.Ended, reply.OthersLeft = c.at, own.began, own.ended, time.Duration(latest)
	r.mu.Unlock()
	return reply, r.waitHalfDelay(c.ctx)
}

func merge(stored holdRecord, q *ratelimit.HoldRequest) holdRecord {
	return holdRecord{began: max(stored.began, q.Began), ended: max(stored.ended, q.Ended)}
}

func until(stored holdRecord, q *ratelimit.HoldRequest, began bool, now int64) int64 {
	if began || q.Action == ratelimit.HoldRenew || stored == (holdRecord{}) {
		return max(stored.until, now+int64(q.Lasts))
	}
	return stored.until
}

func stores(q *ratelimit.HoldRequest, stored, own holdRecord, began bool) bool {
	return q.Action != ratelimit.HoldLook && (own.held() > 0 || stored != holdRecord{})
}

func room(q *ratelimit.HoldRequest, own holdRecord, others map[string]holdRecord) int64 {
	left := q.Most - own.held()
	for _, h := range others {
		left -= h.held()
	}
	return left
}

func (r *reference) blockOf(key string, l ratelimit.Limit, now int64) block {
	return r.recall(l, r.blocks[r.blockName(key, l)], now)
}

func recall(_ ratelimit.Limit, b block, now int64) block {
	if now >= b.until+b.forget {
		return block{}
	}
	return b
}

// startsBlock reports whether a denial starts a block, also without the pending units.
func (r *reference) startsBlock(c *call, l ratelimit.Limit, counted counter, now int64) bool {
	if l.Ladder() == nil || c.blocked || c.never {
		return false
	}
	for _, p := range c.pending {
		age := now - max(0, min(now, int64(p.At)))
		if l.Algorithm() == "bucket" {
			if age*l.N() >= l.Burst()*int64(l.Window()) {
				continue
			}
			age = 0
		}
		counted = r.moved(l, counted, -p.Units, now, age, int64(p.At))
	}
	return c.n > l.Burst()-r.used(l, counted, now)
}

func start(l ratelimit.Limit, b block, retry time.Duration, now int64) block {
	ladder := l.Ladder()
	lasts := max(retry, ladder[min(b.rung, len(ladder)-1)])
	return block{now + int64(lasts), int64(max(l.Window(), ladder[len(ladder)-1])), min(b.rung+1, 4)}
}

func join(b, joined block) block {
	return block{max(b.until, joined.until), max(b.forget, joined.forget), max(b.rung, joined.rung)}
}

func over(res *ratelimit.Result, left time.Duration, n int64) {
	res.Blocked = true
	if res.MoreAfter = max(res.MoreAfter, left); res.Remaining > 0 {
		res.MoreAfter = left
	}
	res.Remaining, res.ResetAfter = 0, max(res.ResetAfter, left)
	if n > 0 {
		res.RetryAfter = max(res.RetryAfter, left)
	}
}

func (c counter) empty() bool {
	return c.units == 0 && c.before == 0 && parts(c.level).Sign() == 0 && len(c.log) == 0
}

// moved is a counter after an Adjust by n units of an instant, which are of this age.
func (r *reference) moved(l ratelimit.Limit, c counter, n, now, age, at int64) counter {
	if l.Algorithm() == "rolling" {
		return r.roll(l, c, n, now, at)
	}
	return r.move(l, c, n, now, age)
}

func roll(l ratelimit.Limit, c counter, n int64, now, at int64) counter {
	c.log = slices.Clone(c.log)
	if n > 0 {
		at = max(0, min(at, now))
		for ; n > 0 && at > now-int64(l.Window()) && int64(len(c.log)) < l.N(); n-- {
			c.log = append(c.log, at)
		}
		slices.Sort(c.log)
		return c
	}
	matches := slices.Contains(c.log, at)
	for ; n < 0; n++ {
		i := slices.Index(c.log, at)
		if !matches && at > now {
			i = len(c.log) - 1
		}
		if i < 0 {
			break
		}
		c.log = slices.Delete(c.log, i, i+1)
	}
	return c
}

func parts(level *big.Int) *big.Int {
	if level == nil {
		return new(big.Int)
	}
	return level
}

// product is a*b.
func product(a, b int64) *big.Int { return new(big.Int).Mul(big.NewInt(a), big.NewInt(b)) }

// least and most of two numbers.
func least(a, b *big.Int) *big.Int {
	if a.Cmp(b) < 0 {
		return a
	}
	return b
}

func most(a, b *big.Int) *big.Int {
	if a.Cmp(b) > 0 {
		return a
	}
	return b
}

func aged(l ratelimit.Limit, c counter, now int64) counter {
	w, passed := int64(l.Window()), now-c.t
	switch {
	case isCalendar(l):
		if c.empty() || now >= c.t {
			return counter{t: ends(l, now)}
		}
		return c
	case c.empty():
		return counter{t: now}
	case l.Algorithm() == "bucket":
		level := new(big.Int).Sub(parts(c.level), product(l.N(), max(0, passed)))
		return counter{t: now, level: most(level, new(big.Int))}
	case l.Algorithm() == "rolling":
		since, _ := slices.BinarySearch(c.log, now-w+1)
		return counter{t: now, log: slices.Clone(c.log[since:])}
	case l.Algorithm() == "sliding" && passed >= w && passed < 2*w:
		c = counter{t: c.t + w, before: c.units}
	case passed >= w:
		return counter{t: now}
	}
	if used(l, c, now) == 0 {
		return counter{t: now}
	}
	return c
}

func isCalendar(l ratelimit.Limit) bool { return l.Calendar() != "" }

// ends returns the end of the period of a calendar in which an instant lies.
func ends(l ratelimit.Limit, at int64) int64 {
	_, end, _ := l.Period(time.Unix(0, at))
	return end.UnixNano()
}

// begins returns the beginning of the period of a calendar that has an end.
func begins(l ratelimit.Limit, end int64) int64 {
	begin, _, _ := l.Period(time.Unix(0, end-1))
	return begin.UnixNano()
}

func used(l ratelimit.Limit, c counter, now int64) int64 {
	if isCalendar(l) {
		return c.units
	}
	w := int64(l.Window())
	if l.Algorithm() == "bucket" {
		up := new(big.Int).Add(parts(c.level), big.NewInt(w-1))
		return up.Div(up, big.NewInt(w)).Int64()
	}
	if l.Algorithm() == "rolling" {
		return int64(len(c.log))
	}
	hi, lo := bits.Mul64(uint64(c.before), uint64(max(0, w-max(0, now-c.t))))
	older, _ := bits.Div64(hi, lo, uint64(w))
	return c.units + int64(older)
}

func add(l ratelimit.Limit, c counter, n int64) counter {
	switch l.Algorithm() {
	case "bucket":
		c.level = new(big.Int).Add(parts(c.level), product(n, int64(l.Window())))
	case "rolling":
		c.log = slices.Clone(c.log)
		for range n {
			c.log = append(c.log, c.t)
		}
	default:
		c.units += n
	}
	return c
}

func move(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
	const units = 1 << 50 // more than any limit
	n = max(-units, min(n, units))
	if isCalendar(l) {
		if now-age >= begins(l, c.t) {
			c.units = shifted(c.units, n, l.N())
		}
		return c
	}
	w, open := int64(l.Window()), !c.empty()
	switch since := age - (now - c.t); { // from the units to the window
	case n == 0 || n < 0 && !open:
	case l.Algorithm() == "bucket":
		still := most(new(big.Int).Sub(product(max(n, -n), w), product(l.N(), age)), new(big.Int))
		if n > 0 {
			full := most(product(l.Burst(), w), parts(c.level))
			c.level = least(full, new(big.Int).Add(parts(c.level), still))
		} else {
			c.level = most(new(big.Int), new(big.Int).Sub(parts(c.level), still))
		}
	case !open:
		return aged(l, counter{t: now - age, units: min(n, l.N())}, now)
	case since <= 0 || l.Algorithm() == "fixed" && n > 0 && age < w:
		c.units = shifted(c.units, n, l.N())
	case l.Algorithm() == "sliding" && since <= w:
		c.before = shifted(c.before, n, l.N())
	}
	return c
}

// shifted is count moved by n, between 0 and the limit. A count that is above the
// limit stays.
func shifted(count, n, limit int64) int64 {
	if n < 0 {
		return max(0, count+n)
	}
	return max(count, min(count+n, limit))
}

// grown is how many whole units a counter has grown by.
func grown(l ratelimit.Limit, before, after counter) int64 {
	level := new(big.Int).Sub(parts(after.level), parts(before.level))
	level.Div(level, big.NewInt(int64(l.Window())))
	return after.units + after.before - before.units - before.before + level.Int64() + int64(len(after.log)-len(before.log))
}

// TestReferenceConforms runs the suite on the store that the broken ones are made of,
// with each clock that a test can set.
func TestReferenceConforms(t *testing.T) {
	var now time.Duration
	advance := func(d time.Duration) { now += d }
	for _, tc := range []struct {
		clock  string
		set    func(*reference)
		option Option
	}{
		{"bubble", func(*reference) {}, func(*config) {}},
		{"nanoseconds", func(s *reference) { s.clock = func() int64 { return int64(now) } }, Clock(advance, 1)},
		{"milliseconds", func(s *reference) {
			s.clock = func() int64 { return int64(now.Truncate(time.Millisecond)) }
			rounded(func(d time.Duration) time.Duration { return (d + time.Millisecond - 1).Truncate(time.Millisecond) })(s)
		}, Clock(advance, time.Millisecond)},
	} {
		t.Run(tc.clock, func(t *testing.T) {
			wall := WallClock(func() time.Time { return time.Unix(0, int64(now)) })
			if tc.clock == "bubble" {
				wall = func(*config) {}
			}
			servers := map[string]*server{} // one for each case
			Run(t, func(t *testing.T, prefix string) ratelimit.Store {
				if servers[t.Name()] == nil {
					servers[t.Name()] = newServer()
				}
				s := servers[t.Name()].store(prefix)
				tc.set(s)
				return s
			}, wall, tc.option)
		})
	}
}

// TestReferenceConformsInRealTime runs the suite on a server with slow calls and a clock
// that goes on by itself, and checks what the package comment says of its time.
func TestReferenceConformsInRealTime(t *testing.T) {
	const slow = 5 * time.Millisecond
	window := onOwnClock().window
	var waited time.Duration
	calls := 0
	for _, c := range cases {
		if c.days {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := newServer()
				server.delay = slow
				began := time.Now()
				for _, p := range c.run(t, onOwnClock(), func(_ *testing.T, prefix string) ratelimit.Store { return server.store(prefix) }) {
					t.Error(p)
				}
				if calls += server.calls; c.waits {
					took := time.Since(began)
					waited += took
					t.Logf("%.1f windows", float64(took)/float64(window))
				}
			})
		})
	}
	if windows := float64(waited) / float64(window); windows > 60 || windows < 58 {
		t.Errorf("the cases that wait take %.1f windows; the package comment says 60 at most", windows)
	}
	t.Logf("%d calls", calls)
}
