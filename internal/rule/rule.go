// Package rule holds the counting rules: pure functions from a counter's state,
// a limit, a number of units and an instant to a new state and an answer.
//
// There is no clock, no lock and no I/O here. Instants and spans are int64
// nanoseconds on a clock that the caller chooses; only differences matter.
// All arithmetic is exact: products that do not fit in 64 bits are taken in 128.
package rule

import (
	"math"
	"math/bits"
)

// Kind names an algorithm.
type Kind uint8

const (
	Fixed    Kind = iota + 1 // a window that opens at the first unit
	Sliding                  // two windows, the older one weighted
	Bucket                   // a bucket that leaks N units per Window and holds Burst
	Rolling                  // the units of the last Window, each by its instant; see rolling.go
	Calendar                 // a period of a calendar; see calendar.go
	InFlight                 // holds, at most N at the same time; see holds.go
)

// The bounds that a Limit must keep for the arithmetic below to be exact.
const (
	// MaxUnits is the largest Integer of a structured field (RFC 9651, section
	// 3.3.1). It is therefore the largest quota that a header can report to a
	// client.
	MaxUnits = 999_999_999_999_999
	// MaxSpan is 50 years in nanoseconds. An int64 still holds the longest wait,
	// three windows, plus the instant that it is added to.
	MaxSpan = 50 * 365 * 24 * 3600 * 1_000_000_000
	// MinSpan is a millisecond, the finest time to live that Redis keeps.
	MinSpan = 1_000_000
)

// MaxLimits is the most limits that one call asks under. It bounds what a call
// keeps on its stack, and how long it holds a lock or a server.
const MaxLimits = 8

// Never is the wait for units that can never fit.
const Never = math.MaxInt64

// farAway caps a wait that would overflow an int64. Such a wait is only
// possible if the counter was filled under a far larger limit. It is not Never,
// because the wait ends.
const farAway = math.MaxInt64 / 2

// Limit is N units per Window. Burst is the most that a Bucket holds, and 0 for the
// other kinds. The functions below require 1 <= N, Burst <= MaxUnits and MinSpan <=
// Window <= MaxSpan. An empty bucket must be whole again within MaxSpan.
//
// A Calendar has a number, and the period that is in force: Window is its length, and Burst
// its end (see [Limit.End]). They change with each period, so the caller sets both before
// each call: for the instant of the call, or for one shortly before. The call is then
// decided as if it came before the end, so that no period has more than N units.
type Limit struct {
	Kind   Kind
	Number uint32 // of a Calendar; 0 for the other kinds
	N      int64
	Window int64
	Burst  int64
}

// Identity returns what distinguishes the counters of a key, beside the kind: the window, or
// the number of a Calendar, or nothing for InFlight.
func (l *Limit) Identity() int64 {
	switch l.Kind {
	case Calendar:
		return int64(l.Number)
	case InFlight:
		return 0
	}
	return l.Window
}

// SameCounter reports whether a key has one counter under both limits.
func (l *Limit) SameCounter(other *Limit) bool {
	return l.Kind == other.Kind && l.Identity() == other.Identity()
}

// Same reports whether both limits count in the same way. The ends of a Calendar's period
// may be a minute apart: they are worked out from two clocks, which are set again and
// again.
func (l *Limit) Same(other *Limit) bool {
	if l.Kind != Calendar {
		return *l == *other
	}
	const minute = 60 * 1_000_000_000
	apart := l.End() - other.End()
	return l.SameCounter(other) && l.N == other.N && max(apart, -apart) < minute
}

// State is what a store keeps of one key under one limit. Its meaning depends on
// the kind; it does not depend on N or Burst, so both can change under it. A
// state without units (A and B both 0) is a fresh one, whatever T says.
//
//	Fixed    T: when the window opened      A: units in it
//	Sliding  T: when this window opened     A: units in it           B: units in the one before
//	Bucket   T: when A and B were true      A: whole units in it     B: and this many Window-ths of one
//	Calendar T: when its period ends        A: units in it
//
// A rolling window needs more than a State and has a [Log], and an in-flight limit has
// [Holds]. The functions below that take a State are not for them.
type State struct {
	T, A, B int64
}

// Fresh reports whether s holds no units.
func (s State) Fresh() bool { return s.A == 0 && s.B == 0 }

// Answer is the state of a key under a limit, as reported to a caller. Waits
// are counted from now, in nanoseconds, and are exact if nothing else uses the
// key in the meantime. It has four fields: the compiler keeps no larger struct in
// registers, and with a fifth one a decision took twice as long.
type Answer struct {
	Remaining int64 // units that would fit now
	Retry     int64 // until the units asked for fit: 0 if they do, Never if they cannot
	More      int64 // until Remaining grows; 0 if the limit is whole
	Reset     int64 // until the limit is whole
}

// Denied reports whether one of the answers is a denial.
func Denied(answers []Answer) bool {
	for i := range answers {
		if answers[i].Retry > 0 {
			return true
		}
	}
	return false
}

// Take asks for n >= 0 units. If they fit, it returns the state with the units
// added. If they do not fit, it returns s unchanged. A request for 0 units
// always fits.
//
// There is one exception: a state from a clock that was more than a window ahead
// is moved back to now. It keeps its units, and it is moved even if the requested
// units do not fit.
func (l *Limit) Take(s State, now, n int64) (State, Answer) {
	if l.Kind == Calendar {
		return l.takePeriod(s, now, n)
	}
	switch l.Kind {
	case Fixed:
		return l.TakeFixed(s, now, n)
	case Sliding:
		return l.TakeSliding(s, now, n)
	}
	return l.takeBucket(s, now, n)
}

// TakeFixed is Take for a fixed window. It needs no division, so the most common limit is
// the cheapest.
func (l *Limit) TakeFixed(s State, now, n int64) (State, Answer) {
	s = l.repair(s, now)
	c, closes := s, l.Window-(now-s.T)
	if s.Fresh() || closes <= 0 || closes > l.Window && s.T < now { // the last: now-s.T overflows
		c, closes = State{T: now}, l.Window
	}
	left := max(0, l.N-c.A)
	var a Answer
	switch {
	case n > l.N:
		a.Retry = Never
	case n > left:
		a.Retry = closes
	case n > 0:
		left -= n
		c.A += n
		s = c
	}
	if a.Remaining = left; left < l.N {
		a.More, a.Reset = closes, closes
	}
	return s, a
}

// TakeSliding is Take for a sliding window. It needs one division while nothing is left of the
// window before, and three otherwise.
func (l *Limit) TakeSliding(s State, now, n int64) (State, Answer) {
	s = l.repair(s, now)
	c, age := s, now-s.T
	switch {
	case s.Fresh() || age >= 2*l.Window || age < 0 && s.T < now: // the last: now-s.T overflows
		c, age = State{T: now}, 0
	case age >= l.Window:
		c, age = State{T: s.T + l.Window, B: s.A}, age-l.Window
	}
	older := int64(0)
	if c.B > 0 {
		older = l.weight(c.B, age)
	}
	if older == 0 && c.A == 0 {
		c, age = State{T: now}, 0
	}
	left := max(0, l.N-c.A-older)
	fits := n <= left
	if fits && n > 0 {
		// The weight of the window before does not depend on A. So the remaining units
		// decrease by exactly n.
		left -= n
		c.A += n
		s = c
	}
	a := Answer{Remaining: left}
	if left < l.N {
		a.Reset = l.slides(c, age, l.N)
		a.More = a.Reset
		if left+1 < l.N {
			a.More = l.slides(c, age, left+1)
		}
	}
	switch {
	case fits:
	case n > l.N:
		a.Retry = Never
	case n == left+1:
		a.Retry = a.More
	default:
		a.Retry = l.slides(c, age, n)
	}
	return s, a
}

// takeBucket is Take for a bucket. [Limit.TakeLevel] does the same for most states.
func (l *Limit) takeBucket(s State, now, n int64) (State, Answer) {
	s = l.repair(s, now)
	c := l.at(s, now)
	used := c.A
	if c.B > 0 { // a unit that has begun to leak still takes its place
		used++
	}
	left := max(0, l.Burst-used)
	fits := n <= left
	if fits && n > 0 {
		// The fraction does not depend on A. So the remaining units decrease by exactly n.
		left -= n
		c.A += n
		s = c
	}
	a := Answer{Remaining: left}
	if left < l.Burst {
		a.Reset = l.leaks(c, now, l.Burst)
		a.More = l.leaks(c, now, left+1)
	}
	switch {
	case fits:
	case n > l.Burst:
		a.Retry = Never
	default:
		a.Retry = l.leaks(c, now, n)
	}
	return s, a
}

// leaks returns the nanoseconds until n units, at most Burst, fit into a bucket. The state
// must be at now, and must have no room for n units yet.
func (l *Limit) leaks(s State, now, n int64) int64 {
	over := s.A + n - l.Burst // with B, what must leak before n fit
	return max(0, s.T-now) + mulAddDivCeil(over, l.Window, s.B, l.N)
}

// Adjust changes the counter by n units that were taken age >= 0 ago, without
// checking that they fit. It gives back units if n < 0, and charges them if n > 0.
// In both cases only the part that still counts now is applied. The counter never
// falls below zero, and a charge never raises a window or bucket above the limit.
func (l *Limit) Adjust(s State, now, n, age int64) State {
	if l.Kind == Calendar {
		return l.adjustPeriod(s, now, n, age)
	}
	s = l.repair(s, now)
	c := l.at(s, now)
	if n == 0 || (n < 0 && c.Fresh()) {
		return s
	}
	then, elapsed := now-age, max(0, now-c.T)
	switch {
	case l.Kind == Bucket:
		// Units leak in the order in which they came. rest is the part of the
		// |n| units taken then that has not leaked yet.
		rest := l.at(State{T: then, A: clampAbs(n, MaxUnits)}, now)
		if n < 0 {
			c = l.drain(c, rest.A, rest.B)
		} else {
			c = l.fill(c, rest.A, rest.B)
		}
	case c.Fresh():
		c = l.at(State{T: then, A: min(n, l.N)}, now)
	case age <= elapsed, l.Kind == Fixed && n > 0 && age < l.Window:
		// A charge from shortly before the window opened would have opened a
		// window itself. That window would still be open now.
		c.A = l.shift(c.A, n)
	case l.Kind == Sliding && age-elapsed <= l.Window:
		c.B = l.shift(c.B, n)
	default: // taken in a window that is gone
		return s
	}
	if c.Fresh() {
		return State{}
	}
	return c
}

// Charged returns how many whole units an Adjust has added, given the states before
// and after it.
func (l *Limit) Charged(before, after State, now int64) int64 {
	switch l.Kind {
	case Calendar:
		now = l.inPeriod(now)
		return max(0, l.atPeriod(after, now).A-l.atPeriod(before, now).A)
	case Rolling: // A is how many units count
		return max(0, after.A-before.A)
	}
	before, after = l.at(l.repair(before, now), now), l.at(l.repair(after, now), now)
	units := after.A - before.A
	switch {
	case l.Kind == Sliding:
		units += after.B - before.B
	case after.B < before.B:
		units--
	}
	return max(0, units)
}

// Cap is the most units that fit at once.
func (l *Limit) Cap() int64 {
	if l.Kind == Bucket {
		return l.Burst
	}
	return l.N
}

// IsNear reports whether what remains is at most a fifth of what the limit can hold.
// The product does not overflow, because nothing that remains is above MaxUnits.
func (l *Limit) IsNear(remaining int64) bool { return 5*remaining <= l.Cap() }

// NearLimit reports whether any of the limits is near, by their answers.
func NearLimit(limits []Limit, answers []Answer) bool {
	for i := range answers {
		if limits[i].IsNear(answers[i].Remaining) {
			return true
		}
	}
	return false
}

// Binding returns the index of the limit that binds: among the limits that denied, the
// one that denies for the longest; if none denied, the one with the least remaining.
// Among equal ones it is the first.
func Binding(answers []Answer) int {
	binding := 0
	for i := 1; i < len(answers); i++ {
		a, b := &answers[i], &answers[binding]
		if a.Retry > b.Retry || a.Retry == b.Retry && a.Remaining < b.Remaining {
			binding = i
		}
	}
	return binding
}

// repair moves a state that is more than a window ahead of the clock to now, with
// all of its units. Such a distance is not skew between two servers: one of the
// clocks was wrong. Without the repair, a blocked client would stay blocked until
// the clock reaches the state's instant.
func (l *Limit) repair(s State, now int64) State {
	if s.T > now && s.T-now > l.Window {
		s.T = now
	}
	return s
}

// Lasts is for how long units count, at most.
func (l *Limit) Lasts() int64 {
	switch l.Kind {
	case Sliding:
		return 2 * l.Window
	case Bucket:
		return l.Refill()
	}
	return l.Window
}

// Refill is how long an empty bucket takes to be whole: Burst units at N per Window.
func (l *Limit) Refill() int64 { return mulAddDivCeil(l.Burst, l.Window, 0, l.N) }

// at brings s forward to now. It returns a fresh state as soon as s leaves as
// many units as a fresh one. If the clock is behind s, at returns s unchanged, so
// no units are created. This happens after a failover to a server whose clock is
// late.
func (l *Limit) at(s State, now int64) State {
	if s.Fresh() {
		return State{T: now}
	}
	if s.T >= now {
		return s
	}
	elapsed := now - s.T
	if elapsed < 0 { // T of a charge from before the clock began, and now near its end
		elapsed = math.MaxInt64
	}
	switch l.Kind {
	case Fixed:
		if elapsed >= l.Window {
			return State{T: now}
		}
	case Sliding:
		if elapsed >= 2*l.Window {
			return State{T: now}
		}
		if elapsed >= l.Window {
			s = State{T: s.T + l.Window, B: s.A}
		}
		if s.A == 0 && l.weight(s.B, now-s.T) == 0 {
			return State{T: now}
		}
	case Bucket:
		hi, lo := bits.Mul64(uint64(l.N), uint64(elapsed))
		if hi >= uint64(l.Window) { // more units than 64 bits hold
			return State{T: now}
		}
		whole, part := bits.Div64(hi, lo, uint64(l.Window))
		s = l.drain(s, int64(min(whole, math.MaxInt64)), int64(part))
		s.T = now
	}
	return s
}

// weight returns what units of the window before count for, in whole units, at an age of this
// window: the units times the fraction of them that a window ending now still covers. It
// rounds down, so that units just over Window/N apart always fit. The age is negative if the
// clock is behind.
func (l *Limit) weight(units, age int64) int64 {
	return mulDiv(units, l.Window-max(0, age), l.Window)
}

// slides returns the nanoseconds until n units, at most N, fit into a sliding window, at an
// age of this window. The age is negative if the clock is behind. There must be no room for
// n units yet.
func (l *Limit) slides(s State, age, n int64) int64 {
	if room := l.N - s.A - n; room >= 0 {
		return l.weighsAtMost(room, s.B) - age
	}
	// Even without the older half it does not fit: this half has to age.
	return l.Window + l.weighsAtMost(l.N-n, s.A) - age
}

// weighsAtMost returns how far into a window the units of the window before have
// aged to a weight of room. There must be more than room of them. The result is the
// first e for which floor(units*(Window-e)/Window) <= room, that is Window-e <
// (room+1)*Window/units.
func (l *Limit) weighsAtMost(room, units int64) int64 {
	if room+1 == units { // the division would give Window
		return 1
	}
	return l.Window - mulDivCeil(room+1, l.Window, units) + 1
}

// drain takes whole units and part Window-ths of a unit out of a bucket.
func (l *Limit) drain(s State, whole, part int64) State {
	s.A -= whole
	s.B -= part
	if s.B < 0 {
		s.A--
		s.B += l.Window
	}
	if s.A < 0 {
		return State{T: s.T}
	}
	return s
}

// fill adds whole units and part Window-ths of a unit to a bucket, up to Burst.
func (l *Limit) fill(s State, whole, part int64) State {
	if s.A >= l.Burst {
		return s
	}
	s.A += whole
	s.B += part
	if s.B >= l.Window {
		s.A++
		s.B -= l.Window
	}
	if s.A >= l.Burst {
		s.A, s.B = l.Burst, 0
	}
	return s
}

// shift changes the count of a window by n, and keeps it between zero and the
// limit. A count that is already above the limit, because the limit was
// lowered, stays.
func (l *Limit) shift(count, n int64) int64 {
	if n < 0 {
		return max(0, count+max(n, -MaxUnits))
	}
	return max(count, min(count+min(n, MaxUnits), l.N))
}

func clampAbs(n, most int64) int64 {
	if n < 0 {
		n = -max(n, -most)
	}
	return min(n, most)
}

// mulDiv is floor(a*b/c) for a, b >= 0, c > 0 and b <= c.
func mulDiv(a, b, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	q, _ := bits.Div64(hi, lo, uint64(c))
	return int64(q)
}

// mulDivCeil is ceil(a*b/c) for 0 <= a <= c, b >= 0 and c > 0.
func mulDivCeil(a, b, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	q, r := bits.Div64(hi, lo, uint64(c))
	if r > 0 {
		q++
	}
	return int64(q)
}

// mulAddDivCeil is ceil((a*b+add)/c) for a, b, add >= 0 and c > 0, at most farAway.
func mulAddDivCeil(a, b, add, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	lo, carry := bits.Add64(lo, uint64(add), 0)
	hi += carry
	if hi >= uint64(c) {
		return farAway
	}
	q, r := bits.Div64(hi, lo, uint64(c))
	if q >= farAway {
		return farAway
	}
	if r > 0 {
		q++
	}
	return int64(q)
}
