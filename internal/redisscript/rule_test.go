package redisscript_test

import (
	"context"
	_ "embed"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strconv"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// These tests compare the scripts with package rule, number by number and to the
// microsecond, on a clock of the test's own, by which keys expire, too: see
// shim_test.lua.

//go:embed shim_test.lua
var shim string

var (
	take   = redis.NewScript(shim + redisscript.Take.Text.(string))
	across = redis.NewScript(shim + redisscript.TakeAcross.Text.(string))
	adjust = redis.NewScript(shim + redisscript.Adjust.Text.(string))
	block  = redis.NewScript(shim + redisscript.Block.Text.(string))
)

// mini returns a client of a miniredis, which runs scripts in gopher-lua.
func mini(t testing.TB) *redis.Client {
	if bits.UintSize < 64 {
		t.Skip("miniredis keeps integers in an int, and the scripts have larger ones")
	}
	c := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
	t.Cleanup(func() { c.Close() })
	return c
}

// server returns a client of a real server.
func server(t testing.TB) *redis.Client { return redistest.Start(t).Client() }

// model has the results that the scripts must agree with: the rules, on states
// that expire.
type model struct {
	t      testing.TB
	c      *redis.Client
	now    int64
	off    int64               // how many periods the clock of the client is ahead
	key    string              // the key whose counters are used now
	states map[string]*counter // by the names of the counters

	windows map[uint32]int64 // of calendars
	log     []string
	logs    []string // of the last reply
}

type counter struct {
	rule.State          // of no rolling window
	log        rule.Log // of a rolling window
	ends       int64    // in milliseconds
	block      rule.Block
	lasts      int64 // the duration of block
	long       bool  // its value has a block, which may be forgotten by now
}

// blocking says how takes start blocks. The zero blocking starts none.
type blocking struct {
	ladders [3]*rule.Ladder // of each limit; in microseconds, as all spans here
	upTo    bool
	pending []rule.Pending
}

// nanos returns a ladder as Args takes it.
func nanos(l *rule.Ladder) *rule.Ladder {
	if l == nil {
		return nil
	}
	in := *l
	for i := range in.Rungs {
		in.Rungs[i] *= 1000
	}
	return &in
}

func newModel(t testing.TB, c *redis.Client, now int64) *model {
	if err := c.FlushAll(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
	m := &model{t: t, c: c, states: make(map[string]*counter), windows: make(map[uint32]int64)}
	m.setClock(now)
	return m
}

func (m *model) setClock(now int64) {
	m.now = now
	m.log = append(m.log, fmt.Sprint("clock ", now))
	if err := m.c.Set(context.Background(), "clock", now, 0).Err(); err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) fail(format string, args ...any) {
	m.t.Helper()
	for _, line := range m.log[max(0, len(m.log)-12):] {
		m.t.Log(line)
	}
	m.t.Fatalf(format, args...)
}

func shapeOf(l rule.Limit) string {
	if l.Kind == rule.Calendar {
		return fmt.Sprint(l.Kind, "-", l.Number)
	}
	return fmt.Sprint(l.Kind, "-", l.Window)
}

// begins returns when a period of a calendar begins. One period is 9/8 of the window long, and
// the next one 7/8 of it.
func begins(window, period int64) int64 { return period*window + period%2*(window/8000*1000) }

// periodAt returns the number of the period that an instant is in.
func periodAt(window, instant int64) int64 {
	if period := instant / window; begins(window, period) <= instant {
		return period
	}
	return instant/window - 1
}

// present returns the limits with the periods of calendars that are in force.
func (m *model) present(limits []rule.Limit) []rule.Limit {
	limits = slices.Clone(limits)
	for i := range limits {
		if l := &limits[i]; l.Kind == rule.Calendar {
			window, period := l.Window, periodAt(l.Window, m.now)
			m.windows[l.Number] = window
			l.Burst = begins(window, period+1)
			l.Window = l.Burst - begins(window, period)
		}
	}
	return limits
}

// periods returns what a client sends whose clock may be a period off.
func (m *model) periods(l rule.Limit) (p redisscript.Periods) {
	if l.Kind != rule.Calendar {
		return p
	}
	window := m.windows[l.Number]
	for i := range p {
		p[i] = begins(window, periodAt(window, m.now)+int64(i)-1+m.off)
	}
	return p
}

// ahead reports whether a clock that was wrong has written a counter, which is repaired.
func (m *model) ahead(l rule.Limit, c *counter) bool {
	switch l.Kind {
	case rule.Rolling:
		return l.Repairs(&c.log, m.now)
	case rule.Calendar:
		return c.T-l.End() > l.Window+l.Window/2
	}
	return c.T-m.now > l.Window
}

// ask returns the answer for n units.
func (m *model) ask(l rule.Limit, c *counter, n int64) rule.Answer {
	if l.Kind == rule.Rolling {
		return l.Ask(&c.log, m.now, n)
	}
	_, a := l.Take(c.State, m.now, n)
	return a
}

// whole reports whether all units of a counter are left.
func (m *model) whole(l rule.Limit, c *counter) bool { return m.ask(l, c, 0).Reset == 0 }

// count counts n units that fit, or brings a counter back that is ahead of the clock.
func (m *model) count(l rule.Limit, c *counter, n int64) {
	if l.Kind != rule.Rolling {
		s, _ := l.Take(c.State, m.now, n)
		m.set(l, c, s, true)
		return
	}
	if l.Repair(&c.log, m.now); n > 0 {
		l.Count(&c.log, m.now, n)
	}
	m.written(l, c)
}

// units returns the instants that count under a rolling window.
func (m *model) units(l rule.Limit, g rule.Log) []int64 {
	instants := g.AppendTo(nil)
	if l.Repairs(&g, m.now) {
		for i := range instants {
			instants[i] = min(instants[i], m.now)
		}
	}
	return slices.DeleteFunc(instants, func(t int64) bool { return t+l.Window <= m.now })
}

// summary is what Adjust replies about a rolling window.
func (m *model) summary(l rule.Limit, g rule.Log) rule.State {
	units := m.units(l, g)
	if len(units) == 0 {
		return rule.State{T: m.now}
	}
	return rule.State{T: units[len(units)-1], A: int64(len(units))}
}

// isCount reports whether the value of a counter without a block is a number.
func isCount(l rule.Limit) bool { return l.Kind == rule.Fixed || l.Kind == rule.Calendar }

func (m *model) counterOf(l rule.Limit) string { return m.key + shapeOf(l) }

// run runs a script on the counters of some keys.
func (m *model) run(s *redis.Script, keys []string, limits []rule.Limit, with blocking, rest ...any) []int64 {
	m.t.Helper()
	var args []any
	for i, l := range limits {
		args = append(args, redisscript.Args(l, m.periods(l), nanos(with.ladders[i]))...)
	}
	var counters []string
	for _, m.key = range keys {
		for _, l := range limits {
			counters = append(counters, m.counterOf(l))
		}
	}
	args = append(args, rest...)
	if s == take && len(m.log)%2 == 0 { // the same in the form for keys of several slots
		keys := []any{len(counters)}
		for _, counter := range counters {
			keys = append(keys, counter)
		}
		s, counters, args = across, nil, append(keys, args...)
	}
	reply, err := s.Run(context.Background(), m.c, counters, args...).Slice()
	if err != nil {
		m.fail("%v", err)
	}
	var numbers []int64
	if numbers, m.logs, err = redisscript.Numbers(reply); err != nil {
		m.fail("%v", err)
	}
	return numbers
}

// get returns the counter of a limit, or a fresh one.
func (m *model) get(l rule.Limit) *counter {
	c := m.states[m.counterOf(l)]
	if c == nil || m.now/1000 > c.ends {
		c = new(counter)
		m.states[m.counterOf(l)] = c
	}
	return c
}

// set replaces the counter of a limit. A fixed window ends on a whole millisecond.
func (m *model) set(l rule.Limit, c *counter, s rule.State, written bool) {
	wasFresh := m.look(l, c.State).Reset == 0
	if m.look(l, s).Reset == 0 {
		s = rule.State{}
	}
	if l.Kind == rule.Fixed && wasFresh && !s.Fresh() {
		s.T = ceil(s.T+l.Window, 1000)*1000 - l.Window
	}
	c.State = s
	if written && (!isCount(l) || wasFresh || c.long) {
		m.written(l, c)
	}
}

// written is for a counter whose value is written with a new time to live.
func (m *model) written(l rule.Limit, c *counter) {
	if c.ends = m.end(l, c.State); l.Kind == rule.Rolling {
		c.log = rule.LogOf(m.units(l, c.log)) // what has left is not written
		if c.ends = ceil(m.now, 1000); c.log.N > 0 {
			c.ends = ceil(c.log.T+l.Window, 1000)
		}
	}
	if c.long = c.block.Forgotten() > m.now; c.long {
		c.ends = max(c.ends, ceil(c.block.Forgotten(), 1000))
	} else {
		c.block = rule.Block{}
	}
}

// blockOf returns the block of a counter, and whether the clock was set back since it
// began. Then it has no more left than its duration.
func (m *model) blockOf(c *counter) (b rule.Block, setBack bool) {
	if setBack = c.block.Left(m.now) > c.lasts; setBack {
		c.block.Until = m.now + c.lasts
	}
	if c.block.Forgotten() <= m.now {
		return rule.Block{}, setBack
	}
	return c.block, setBack
}

func (m *model) setBlock(c *counter, b rule.Block) {
	if b.Until != c.block.Until {
		c.lasts = b.Left(m.now)
	}
	c.block = b
}

// join is a Block of one counter.
func (m *model) join(key string, left int64, b rule.Block, limits []rule.Limit) {
	m.t.Helper()
	limits = m.present(limits)
	m.log = append(m.log, fmt.Sprintf("block %s for %d, %+v of %+v", key, left, b, limits))
	given := rule.Block{Until: left * 1000, Rung: b.Rung, Forget: b.Forget * 1000}
	if reply := m.run(block, []string{key}, limits, blocking{}, redisscript.BlockArgs(nil, given)...); len(reply) != 1 || reply[0] != m.now {
		m.fail("%d", reply)
	}
	for _, l := range limits {
		c := m.get(l)
		have, _ := m.blockOf(c)
		b.Until = rule.Lasting(left, m.now)
		m.setBlock(c, have.Join(b, m.now))
		m.setAsRead(l, c)
	}
	m.check(limits)
}

// repair is for a window that was moved back to now, after a clock that was wrong.
func (m *model) repair(l rule.Limit, c *counter) {
	if isCount(l) && !c.Fresh() {
		if l.Kind == rule.Fixed {
			c.T = ceil(c.T+l.Window, 1000)*1000 - l.Window
		}
		m.written(l, c)
	}
}

// end returns when a state begins to count as a fresh one.
func (m *model) end(l rule.Limit, s rule.State) int64 {
	if over := min(l.N, s.A); l.Kind != rule.Bucket && over > 0 { // as if N were the units it holds
		l.N = s.A
	}
	reset := m.look(l, s).Reset
	if reset > math.MaxInt64/4 {
		return math.MaxInt64
	}
	return ceil(m.now+reset, 1000)
}

func ceil(a, b int64) int64 { return (a + b - 1) / b }

func (m *model) look(l rule.Limit, s rule.State) rule.Answer {
	_, a := l.Take(s, m.now, 0)
	return a
}

// same reports whether two states give the same answer to every request.
func (m *model) same(what string, l rule.Limit, got, want rule.State) {
	m.t.Helper()
	if g, w := m.look(l, got), m.look(l, want); g != w {
		m.fail("%s of %+v: the script has %+v: %+v; the rule has %+v: %+v", what, l, got, g, want, w)
	}
}

// asked is a take of one key.
type asked struct {
	key           string
	cost, callers int64
}

// take runs takes of several keys as one command, and expects the results that they would
// have one by one.
func (m *model) take(limits []rule.Limit, asks ...asked) {
	m.t.Helper()
	m.takeBlocking(limits, blocking{}, asks...)
}

func (m *model) takeBlocking(limits []rule.Limit, with blocking, asks ...asked) {
	m.t.Helper()
	limits = m.present(limits)
	m.log = append(m.log, fmt.Sprintf("take %v of %+v, blocking %+v", asks, limits, with))
	for _, l := range with.ladders {
		if l != nil {
			m.log = append(m.log, fmt.Sprintf("  ladder %+v", *l))
		}
	}
	var keys []string
	var args []any
	for i, ask := range asks {
		keys = append(keys, ask.key)
		args = redisscript.AppendTake(args, i, ask.cost, ask.callers)
	}
	if with.upTo || with.pending != nil {
		pending := slices.Clone(with.pending)
		for i := range pending {
			if pending[i].At != math.MaxInt64 {
				pending[i].At *= 1000
			}
		}
		args = redisscript.AppendOptions(args, with.upTo, pending)
	}
	reply := m.run(take, keys, limits, with, args...)
	takes, err := redisscript.ParseTakes(reply, m.logs, len(asks), limits)
	if err != nil || takes.Now != m.now {
		m.fail("now %d: %v", takes.Now, err)
	}
	incomplete := maps.Collect(takes.Incomplete())
	blocks := make(map[int]map[int]redisscript.Blocked)
	for i, b := range takes.Blocks() {
		if blocks[i] == nil {
			blocks[i] = make(map[int]redisscript.Blocked)
		}
		blocks[i][b.Limit] = b
	}
	before := make([]rule.State, len(limits))
	for i, ask := range asks {
		m.key = ask.key
		takes.States(i, before)
		for j, l := range limits {
			if l.Kind == rule.Rolling {
				got, ok := takes.Log(i, j)
				if want := m.units(l, m.get(l).log); !ok || !slices.Equal(got.AppendTo(nil), want) {
					m.fail("the log of %+v is %d, not %d", l, got.AppendTo(nil), want)
				}
			}
		}
		admitted, ok := incomplete[i]
		if !ok {
			admitted = ask.callers
		}
		m.took(limits, with, ask, before, admitted, blocks[i])
	}
}

// took compares one of them.
func (m *model) took(limits []rule.Limit, with blocking, ask asked, before []rule.State, admitted int64, blocks map[int]redisscript.Blocked) {
	m.t.Helper()
	m.key = ask.key
	for i, l := range limits {
		if l.Kind != rule.Rolling {
			m.same("state before", l, before[i], m.get(l).State)
		}
	}
	want, began, moved := int64(0), make(map[int]bool), make(map[int]bool)
	for range ask.callers {
		fits, blocked, never := true, false, false
		for i, l := range limits {
			c := m.get(l)
			a := m.ask(l, c, ask.cost)
			fits, never = fits && a.Retry == 0, never || a.Retry == rule.Never
			moved[i] = moved[i] || m.ahead(l, c)
			b, setBack := m.blockOf(c)
			if setBack {
				m.setAsRead(l, c)
			}
			blocked = blocked || b.Left(m.now) > 0
		}
		fits = fits && (!blocked || ask.cost == 0)
		starts := !fits && !blocked && !never && !(with.upTo && want > 0)
		for i, l := range limits {
			c, n := m.get(l), ask.cost
			if !fits {
				n = 0
			}
			aheadOfWindow := m.ahead(l, c)
			if starts && with.ladders[i] != nil {
				if a := m.ask(l, c, ask.cost); a.Retry > 0 && m.deniesWithout(l, with.pending, c, ask.cost) {
					b, _ := m.blockOf(c)
					b = b.Start(with.ladders[i], l.Window, a.Retry, m.now)
					b.Until = min(b.Until, 1<<52+1<<51) // as late as the script writes an end
					m.setBlock(c, b)
					began[i] = true
					m.setAsRead(l, c)
				}
			}
			if n > 0 || aheadOfWindow { // otherwise the stored value stays unchanged
				m.count(l, c, n)
			}
			if aheadOfWindow {
				m.repair(l, c)
			}
		}
		if fits {
			want++
		}
	}
	if admitted != want {
		m.fail("%d were admitted, not %d", admitted, want)
	}
	for i, l := range limits {
		b, _ := m.blockOf(m.get(l))
		got := blocks[i]
		if moved[i] && got.Block.Until < b.Until && b.Until < got.Block.Until+1000 {
			// The script starts the block before it rounds the end of a window that it has
			// moved back.
			c := m.get(l)
			c.block.Until, b.Until = got.Block.Until, got.Block.Until
			c.lasts = b.Left(m.now)
			m.written(l, c)
		}
		if got.Block != b || got.Began != began[i] {
			m.fail("%s: the block of %+v is %+v, not %+v, began %v", ask.key, l, got, b, began[i])
		}
	}
	m.check(limits)
}

// deniesWithout is DeniesWithout of the rule, with the time that a fixed window may begin
// late.
func (m *model) deniesWithout(l rule.Limit, pending []rule.Pending, c *counter, n int64) bool {
	s := c.State
	switch l.Kind {
	case rule.Rolling:
		return l.LogDeniesWithout(pending, &c.log, m.now, n)
	case rule.Bucket:
		return l.DeniesWithout(pending, s, m.now, n)
	}
	for _, p := range pending {
		s = l.Adjust(s, m.now, -p.Units, m.ageInWindow(l, s, -p.Units, max(0, m.now-p.At)))
	}
	_, a := l.Take(s, m.now, n)
	return a.Retry != 0
}

// setAsRead is for a counter that is written because of its block. Its state is brought
// forward to now.
func (m *model) setAsRead(l rule.Limit, c *counter) {
	roomy := l
	aheadOfWindow := m.ahead(l, c)
	if l.Kind == rule.Rolling {
		l.Repair(&c.log, m.now)
		m.written(l, c)
		return
	}
	if roomy.Kind == rule.Bucket {
		roomy.Burst = rule.MaxUnits + 1
	} else {
		roomy.N = 2*rule.MaxUnits + 1
	}
	s, _ := roomy.Take(c.State, m.now, 1)
	s.A--
	m.set(l, c, s, false)
	if m.written(l, c); aheadOfWindow {
		m.repair(l, c)
	}
}

func (m *model) adjust(key string, n, at int64, limits []rule.Limit) {
	m.t.Helper()
	limits = m.present(limits)
	m.log = append(m.log, fmt.Sprintf("adjust %s by %d at %d of %+v", key, n, at, limits))
	before, after := make([]rule.State, len(limits)), make([]rule.State, len(limits))
	arg := any(at)
	if at == math.MaxInt64 {
		arg = "now"
	}
	now, err := redisscript.ParseAdjust(m.run(adjust, []string{key}, limits, blocking{}, n, arg), before, after)
	if err != nil || now != m.now {
		m.fail("now %d: %v", now, err)
	}
	for i, l := range limits {
		c := m.get(l)
		m.blockOf(c)
		if l.Kind == rule.Rolling {
			m.adjusted(l, c, n, at, before[i], after[i])
			continue
		}
		m.same("state before", l, before[i], c.State)
		aheadOfWindow := !c.Fresh() && m.ahead(l, c)
		s := l.Adjust(c.State, m.now, n, m.ageInWindow(l, c.State, n, max(0, m.now-at)))
		charged := l.Charged(before[i], after[i], m.now)
		if want := l.Charged(c.State, s, m.now); n > 0 && charged != want {
			m.fail("%d units of %+v were charged, not %d", charged, l, want)
		}
		if near := (rule.State{T: min(c.T, m.now), A: c.A, B: c.B}); s == c.State || s == near {
			s = before[i] // nothing was changed, but the state was brought forward to now
		}
		hasKey := c.ends >= m.now/1000
		if m.set(l, c, s, true); hasKey && c.long {
			m.written(l, c)
		}
		m.same("state after", l, after[i], c.State)
		if aheadOfWindow {
			m.repair(l, c)
		}
	}
	m.check(limits)
}

// adjusted compares an Adjust under a rolling window.
func (m *model) adjusted(l rule.Limit, c *counter, n, at int64, before, after rule.State) {
	m.t.Helper()
	if want := m.summary(l, c.log); before != want {
		m.fail("state before of %+v: %+v, not %+v", l, before, want)
	}
	l.Repair(&c.log, m.now) // also if n is 0
	moved, _ := l.AdjustLog(&c.log, m.now, n, at)
	if charged := l.Charged(before, after, m.now); n > 0 && charged != moved {
		m.fail("%d units of %+v were charged, not %d", charged, l, moved)
	}
	if want := m.summary(l, c.log); after != want {
		m.fail("state after of %+v: %+v, not %+v", l, after, want)
	}
	m.written(l, c)
}

// ageInWindow returns how old units are. Units that opened a fixed window are in it,
// although the window may begin up to two milliseconds after them because of
// rounding.
func (m *model) ageInWindow(l rule.Limit, s rule.State, n, age int64) int64 {
	if elapsed := max(0, m.now-s.T); l.Kind == rule.Fixed && age <= elapsed+2000 {
		return min(age, elapsed)
	}
	return age
}

// check compares what the keys hold. Each must expire, at the right time.
func (m *model) check(limits []rule.Limit) {
	m.t.Helper()
	for _, l := range limits {
		c := m.get(l)
		ends, err := m.c.HGet(context.Background(), m.counterOf(l), "ends").Result()
		if err != nil && err != redis.Nil {
			m.fail("%v", err)
		}
		if b, _ := m.blockOf(c); b == (rule.Block{}) && m.whole(l, c) && (err == redis.Nil || l.Kind != rule.Bucket) {
			continue // nothing is kept, or what is has ended
		}
		got, _ := strconv.ParseInt(ends, 10, 64)
		if got != c.ends && (c.ends < 1<<52/1000 || got < 1<<52/1000) {
			m.fail("the key of %+v, state %+v, ends at %d (%v), not %d: now is %d", l, c.State, got, err, c.ends, m.now)
		}
	}
}

const start = 1_767_323_045_678_901 // a day of 2026

// history runs random operations, with extreme limits, instants and costs, and
// compares each with the model.
func history(t testing.TB, c *redis.Client, r *rand.Rand, steps int) {
	t.Helper()
	m := newModel(t, c, start+r.Int64N(1_000_000))
	among := func(numbers ...int64) int64 { return numbers[r.IntN(len(numbers))] }
	const longest = rule.MaxSpan / 1000
	windows := []int64{
		among(1000, 1001, 1999, 2000), among(1_000_000, 60_000_000, 3_600_000_000, 1000+r.Int64N(1_000_000)),
		among(longest, longest-1, longest/2+1, 1000+r.Int64N(longest-1000)),
	}
	var kinds []rule.Limit // the counters
	for _, w := range windows {
		for _, kind := range []rule.Kind{rule.Fixed, rule.Sliding, rule.Bucket, rule.Rolling} {
			kinds = append(kinds, rule.Limit{Kind: kind, Window: w})
		}
	}
	units := func() int64 {
		return among(1, 2, 3, 5, 10, 1000, 1<<33-1, 1<<49, rule.MaxUnits-1, rule.MaxUnits, 1+r.Int64N(100), 1+r.Int64N(rule.MaxUnits))
	}
	number := func(l *rule.Limit) {
		if l.N = units(); l.Kind == rule.Rolling {
			l.N = among(1, 2, 3, 5, 10, 1000, 1+r.Int64N(rule.MaxRolling))
		}
		if l.Kind == rule.Bucket {
			l.Burst = units()
			for l.Refill() > longest {
				l.Burst = max(1, l.Burst/10)
				l.N = min(rule.MaxUnits, l.N*2)
			}
		}
	}
	for i, w := range windows {
		kinds = append(kinds, rule.Limit{Kind: rule.Calendar, Number: uint32(i), Window: max(10, ceil(w, 1000)) * 1000})
	}
	for i := range kinds {
		number(&kinds[i])
	}
	instants, keys := []int64{0, math.MaxInt64}, []string{"a", "b", "c", "d"}
	ladder := func() *rule.Ladder {
		l := &rule.Ladder{N: r.IntN(rule.MaxRungs + 1)}
		if l.N == 0 {
			return nil
		}
		for i := range l.N {
			l.Rungs[i] = among(1000, windows[0], windows[1], 1000+r.Int64N(2*windows[0]))
			if i > 0 {
				l.Rungs[i] += l.Rungs[i-1]
			}
		}
		return l
	}
	for range steps {
		limits := make([]rule.Limit, 0, 4)
		for range among(1, 1, 2, 3) {
			i := r.IntN(len(kinds))
			if r.IntN(8) == 0 {
				number(&kinds[i])
			}
			if l := kinds[i]; !slices.ContainsFunc(limits, func(o rule.Limit) bool { return shapeOf(o) == shapeOf(l) }) {
				limits = append(limits, l)
			}
		}
		l := limits[0]
		w := l.Window
		step := among(0, 0, 0, 1, 2, 999, 1000, 1001, w/l.N, w/l.N+1, w-1, w, w+1, 2*w-1, 2*w, r.Int64N(w), r.Int64N(3*w), -1, -1000, -w/2, -w-1, -3*w)
		if now := m.now + step; step != 0 && now > start/2 && now < 1<<52 {
			m.setClock(now)
		}
		cost := func() int64 {
			return among(0, 1, 1, 1, 2, l.N/2, l.N-1, l.N, l.N+1, l.Cap(), l.Cap()/2, rule.MaxUnits+1, r.Int64N(l.Cap())+1)
		}
		m.off = among(-1, 0, 0, 1)
		key, n := keys[r.IntN(2)], min(cost(), rule.MaxUnits)
		switch r.IntN(10) {
		default:
			r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
			var asks []asked
			for _, key := range keys[:among(1, 1, 2, 4)] {
				asks = append(asks, asked{key, cost(), among(1, 1, 1, 2, 5)})
			}
			with := blocking{}
			if r.IntN(2) == 0 {
				for i := range limits {
					with.ladders[i] = ladder()
				}
			}
			if len(asks) == 1 && r.IntN(2) == 0 {
				if asks[0].cost == 1 {
					with.upTo = r.IntN(2) == 0
				}
				for range among(0, 1, 3) {
					with.pending = append(with.pending, rule.Pending{Units: cost(), At: instants[r.IntN(len(instants))]})
				}
			}
			m.takeBlocking(limits, with, asks...)
			instants = append(instants, m.now)
		case 4:
			m.adjust(key, -n, instants[r.IntN(len(instants))], limits)
		case 5:
			m.adjust(key, n, instants[r.IntN(len(instants))], limits)
		case 6:
			m.adjust(key, among(n, -n), max(0, m.now-among(0, 1, 999, 1000, 1999, 2000, 2001, w-1, w, w+1, r.Int64N(2*w))), limits)
		case 7:
			m.take(limits, asked{key, 0, 1})
		case 8:
			m.join(key, among(-w, -1, 0, 1, w, 2*w, r.Int64N(w)), rule.Block{Rung: uint8(r.IntN(rule.MaxRungs + 1)), Forget: among(0, w, r.Int64N(w))}, limits)
		}
	}
}

// TestScriptsFollowTheRules: random histories of takes and adjusts have the same
// results in the scripts and in package rule: under one to three limits, of one
// to four keys, and on a clock that is set back at times.
func TestScriptsFollowTheRules(t *testing.T) {
	for name, client := range map[string]func(testing.TB) *redis.Client{"server": server, "gopher-lua": mini} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t)
			for range 20 {
				seed := rand.Uint64()
				t.Run(fmt.Sprint(seed), func(t *testing.T) { history(t, c, rand.New(rand.NewPCG(seed, 1)), 150) })
			}
		})
	}
}

// TestScriptsRounding: a key's end is rounded up from the microsecond. Three
// numbers are exact, also if they are quotients of a product of 2^53 or more: what
// has leaked from a bucket, the weight of a sliding window's older half, and the
// end of a bucket.
func TestScriptsRounding(t *testing.T) {
	for name, client := range map[string]func(testing.TB) *redis.Client{"server": server, "gopher-lua": mini} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t)
			const longest = rule.MaxSpan / 1000
			for _, l := range []rule.Limit{
				{Kind: rule.Sliding, N: 7, Window: 1_000_000},
				{Kind: rule.Bucket, N: 7, Window: 1_000_000, Burst: 20},
				{Kind: rule.Bucket, N: 23, Window: longest - 6, Burst: 23},
			} {
				for n := range l.Cap() {
					_, full := l.Take(rule.State{}, 0, n+1)
					for _, over := range []int64{0, 1, 999} { // of a millisecond
						m := newModel(t, c, start-(start+full.Reset)%1000+over)
						m.take([]rule.Limit{l}, asked{"a", n + 1, 1})
					}
				}
			}
			r := rand.New(rand.NewPCG(rand.Uint64(), 3))
			for range 100 {
				n := 6 + r.Int64N(15)
				l := []rule.Limit{{Kind: rule.Bucket, N: n, Window: longest - r.Int64N(1000), Burst: n}}
				m := newModel(t, c, start)
				m.take(l, asked{"a", n, 1})
				m.setClock(start + l[0].Window - 1 - r.Int64N(1000))
				m.take(l, asked{"a", 1, 1})
				m.take(l, asked{"a", 0, 1})
			}
			for range 100 {
				l := rule.Limit{Kind: rule.Sliding, N: rule.MaxUnits, Window: longest - r.Int64N(1000)}
				m := newModel(t, c, start)
				m.take([]rule.Limit{l}, asked{"a", rule.MaxUnits - r.Int64N(1000), 1})
				m.setClock(start + l.Window + 1 + r.Int64N(l.Window/2))
				left := m.look(l, m.get(l).State).Remaining
				m.take([]rule.Limit{l}, asked{"a", left + 1, 1})
				m.take([]rule.Limit{l}, asked{"a", left, 1})
			}
		})
	}
}

// TestScriptsEdges: takes within a microsecond of the instants at which a window
// ends, or the one after it, or a bucket is empty.
func TestScriptsEdges(t *testing.T) {
	for name, client := range map[string]func(testing.TB) *redis.Client{"server": server, "gopher-lua": mini} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t)
			const w = 1_000_003
			for _, l := range []rule.Limit{
				{Kind: rule.Fixed, N: 5, Window: w}, {Kind: rule.Sliding, N: 5, Window: w}, {Kind: rule.Bucket, N: 5, Window: w, Burst: 5},
			} {
				limits := []rule.Limit{l}
				for _, elapsed := range []int64{w/2 - 1, w / 2, w/2 + 1, w - 1, w, w + 1, 2*w - 1, 2 * w, 2*w + 1} {
					for n := range l.N {
						m := newModel(t, c, start)
						m.take(limits, asked{"a", n + 1, 1})
						m.setClock(start + elapsed)
						m.take(limits, asked{"a", 2, 3})
						m.setClock(start + elapsed + w/3)
						m.take(limits, asked{"a", 1, 1})
						m.adjust("a", -1, start, limits)
						m.take(limits, asked{"a", 0, 1})
					}
				}
			}
		})
	}
}

// TestAdjustHeldUp: units are given back to the window in which they were taken,
// and to no other, even if the server is held up between PTTL and TIME.
func TestAdjustHeldUp(t *testing.T) {
	const ms int64 = 1000
	often := make([]any, 64)
	for i := range often {
		often[i] = 3 * ms
	}
	for name, client := range map[string]func(testing.TB) *redis.Client{"server": server, "gopher-lua": mini} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t)
			for _, tc := range []struct {
				what string
				at   int64 // since the window has opened
				held []any // after each PTTL
				left int64 // of 3 units
			}{
				{"the first of the window", -999, []any{0 * ms}, 0},
				{"held up", -999, []any{22 * ms}, 0},
				{"held up twice", -999, []any{3 * ms, 5 * ms}, 0},
				{"held up for half the window", -999, []any{3_600_000 * ms}, 0},
				{"the clock set back", -999, []any{-22 * ms}, 0},
				{"of the window before", -2001, []any{0 * ms}, 3},
				{"of the window before, held up", -2001, []any{22 * ms}, 3},
				{"of the window before, the clock set back", -2001, []any{-5 * ms}, 3},
				{"held up every time", -2001, often, 3},
			} {
				l := rule.Limit{Kind: rule.Fixed, N: 5, Window: 7_200_000 * ms}
				m := newModel(t, c, start)
				m.take([]rule.Limit{l}, asked{"a", 3, 1})
				openedAt := m.get(l).T
				m.setClock(start + 30*ms)
				if err := c.RPush(context.Background(), "held", tc.held...).Err(); err != nil {
					t.Fatal(err)
				}
				before, after := make([]rule.State, 1), make([]rule.State, 1)
				_, err := redisscript.ParseAdjust(m.run(adjust, []string{"a"}, []rule.Limit{l}, blocking{}, -3, openedAt+tc.at), before, after)
				if err != nil || before[0].A != 3 || after[0].A != tc.left {
					t.Errorf("%s: %v, from %+v to %+v, not %d", tc.what, err, before, after, tc.left)
				}
			}
		})
	}
}

// FuzzScripts runs histories that the fuzzer chooses. It runs them on Redis where that is
// installed.
func FuzzScripts(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(binary.LittleEndian.AppendUint64(nil, seed))
	}
	client := mini
	if _, err := exec.LookPath("redis-server"); err == nil {
		client = server
	}
	c := client(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		history(t, c, rand.New(&source{b: b}), 20)
	})
}

// source returns random numbers from bytes, and then from a generator.
type source struct {
	b    []byte
	rest rand.PCG
}

func (s *source) Uint64() uint64 {
	if len(s.b) >= 8 {
		n := binary.LittleEndian.Uint64(s.b)
		s.b = s.b[8:]
		s.rest.Seed(n, s.rest.Uint64())
		return n
	}
	return s.rest.Uint64()
}
