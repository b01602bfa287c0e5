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
	Fixed   Kind = iota + 1 // a window that opens at the first unit
	Sliding                 // two windows, the older one weighted
	Bucket                  // a bucket that leaks N units per Window and holds Burst
)

// The bounds that a Limit must keep for the arithmetic below to be exact.
const (
	// MaxUnits is the largest Integer of a structured field (RFC 9651, section
	// 3.3.1), and so the largest quota that can be told to a client.
	MaxUnits = 999_999_999_999_999
	// MaxSpan is 50 years in nanoseconds: the longest wait, three windows, and an
	// instant to add it to still fit in an int64.
	MaxSpan = 50 * 365 * 24 * 3600 * 1_000_000_000
	// MinSpan is a millisecond, the finest time to live that Redis keeps.
	MinSpan = 1_000_000
)

// MaxLimits is the most limits that one call asks under. It bounds what a call
// keeps on its stack, and how long it holds a lock or a server.
const MaxLimits = 8

// Never is the wait for units that can never fit.
const Never = math.MaxInt64

// farAway caps a wait that arithmetic alone would push past int64: it can only
// be met where a counter was filled under a far larger limit. It is not Never.
const farAway = math.MaxInt64 / 2

// Limit is N units per Window; Burst is the most a Bucket holds, and 0 elsewhere.
// The functions below ask for 1 <= N, Burst <= MaxUnits, MinSpan <= Window <= MaxSpan
// and a bucket that is whole again within MaxSpan.
type Limit struct {
	Kind   Kind
	N      int64
	Window int64
	Burst  int64
}

// State is what a store keeps of one key under one limit. Its meaning depends on
// the kind; it does not depend on N or Burst, so both can change under it. A
// state without units (A and B both 0) is a fresh one, whatever T says.
//
//	Fixed    T: when the window opened      A: units in it
//	Sliding  T: when this window opened     A: units in it           B: units in the one before
//	Bucket   T: when A and B were true      A: whole units in it     B: and this many Window-ths of one
type State struct {
	T, A, B int64
}

// Fresh reports whether s holds no units.
func (s State) Fresh() bool { return s.A == 0 && s.B == 0 }

// Answer tells how a key stands under a limit. Waits are spans from now on,
// for a key that nobody else uses meanwhile, exact to the nanosecond.
type Answer struct {
	Remaining int64 // units that would fit now
	Retry     int64 // until the units asked for fit: 0 if they do, Never if they cannot
	More      int64 // until Remaining grows; 0 if the limit is whole
	Reset     int64 // until the limit is whole
}

// Take asks for n >= 0 units. Where they fit it returns the state with them in
// it; where they do not, it returns s as it was. No units always fit.
//
// A state from a clock that was more than a window ahead is the one exception to
// that: it is brought back to now, full as it is, even where the units do not fit.
func (l Limit) Take(s State, now, n int64) (State, Answer) {
	s = l.repair(s, now)
	if l.Kind == Fixed {
		return l.takeFixed(s, now, n)
	}
	c := l.at(s, now)
	left := l.left(c, now)
	if n > left {
		a := l.answer(c, now, left)
		a.Retry = l.wait(c, now, n)
		return s, a
	}
	if n == 0 {
		return s, l.answer(c, now, left)
	}
	c.A += n
	// A sliding window's weighted part does not depend on A, and a bucket's
	// fraction neither, so what is left falls by exactly n.
	return c, l.answer(c, now, left-n)
}

// takeFixed is what the rest of Take comes to for a fixed window, which needs no
// division: the most common limit is the cheapest.
func (l Limit) takeFixed(s State, now, n int64) (State, Answer) {
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

// Adjust moves the counter by n units without asking, for units that were taken
// age >= 0 ago: n < 0 gives them back, n > 0 charges them, both only as far as
// they still count now. Nothing falls below zero, and no window or bucket is charged
// above the limit.
func (l Limit) Adjust(s State, now, n, age int64) State {
	s = l.repair(s, now)
	c := l.at(s, now)
	if n == 0 || (n < 0 && c.Fresh()) {
		return s
	}
	then, elapsed := now-age, max(0, now-c.T)
	switch {
	case l.Kind == Bucket:
		// Units leak in the order they came, so of |n| units taken then
		// this much is still in the bucket.
		rest := l.at(State{T: then, A: clampAbs(n, MaxUnits)}, now)
		if n < 0 {
			c = l.drain(c, rest.A, rest.B)
		} else {
			c = l.fill(c, rest.A, rest.B)
		}
	case c.Fresh():
		c = l.at(State{T: then, A: min(n, l.N)}, now)
	case age <= elapsed, l.Kind == Fixed && n > 0 && age < l.Window:
		// A charge from shortly before the window opened would have opened it:
		// it belongs to a window that would still be open.
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

// Charged is how many whole units an Adjust has added, when it made after of before.
func (l Limit) Charged(before, after State, now int64) int64 {
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
func (l Limit) Cap() int64 {
	if l.Kind == Bucket {
		return l.Burst
	}
	return l.N
}

// repair moves a state that is more than a window ahead of the clock to now, with
// all that it holds. That far is no skew between two servers but a clock that was
// wrong, and whoever is blocked would stay so until the clock gets there.
func (l Limit) repair(s State, now int64) State {
	if s.T > now && s.T-now > l.Window {
		s.T = now
	}
	return s
}

// Refill is how long an empty bucket takes to be whole: Burst units at N per Window.
func (l Limit) Refill() int64 { return mulAddDivCeil(l.Burst, l.Window, 0, l.N) }

// at brings s forward to now. It gives back a fresh state as soon as s cannot be
// told from one by what is left. Where the clock is behind s, as after a failover
// to a server whose clock is late, the counter stands still: nothing is minted.
func (l Limit) at(s State, now int64) State {
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
		if s.A == 0 && l.older(s, now) == 0 {
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

// older is the weight of a sliding window's older half: its units times the part
// of it that a window ending now still covers, in whole units. A part of a unit
// does not count, so that units just over Window/N apart always fit.
func (l Limit) older(s State, now int64) int64 {
	return mulDiv(s.B, l.Window-max(0, now-s.T), l.Window)
}

// left is what still fits into s, which must be at now. It is 0 where a lowered
// limit has left the counter above it.
func (l Limit) left(s State, now int64) int64 {
	used := s.A
	switch l.Kind {
	case Sliding:
		used += l.older(s, now)
	case Bucket:
		if s.B > 0 { // a unit that has begun to leak still takes its place
			used++
		}
	}
	return max(0, l.Cap()-used)
}

func (l Limit) answer(s State, now, left int64) Answer {
	a := Answer{Remaining: left}
	if full := l.Cap(); left < full {
		a.Reset = l.wait(s, now, full)
		a.More = a.Reset
		if l.Kind != Fixed && left+1 < full {
			a.More = l.wait(s, now, left+1)
		}
	}
	return a
}

// wait is the span until n units fit into s, which must be at now and too full for them.
func (l Limit) wait(s State, now, n int64) int64 {
	if n > l.Cap() {
		return Never
	}
	w := l.Window
	behind, elapsed := max(0, s.T-now), max(0, now-s.T)
	switch l.Kind {
	case Fixed:
		return behind + w - elapsed
	case Sliding:
		if room := l.N - s.A - n; room >= 0 {
			return behind + l.weighsAtMost(room, s.B) - elapsed
		}
		// Even without the older half it does not fit: this half has to age.
		return behind + w - elapsed + l.weighsAtMost(l.N-n, s.A)
	default:
		over := s.A + n - l.Burst // with B, what must leak before n fit
		return behind + mulAddDivCeil(over, w, s.B, l.N)
	}
}

// weighsAtMost is how far into a window the units of the one before, more than
// room of them, have aged to a weight of room: the first e for which
// floor(units*(Window-e)/Window) <= room, that is Window-e < (room+1)*Window/units.
func (l Limit) weighsAtMost(room, units int64) int64 {
	return l.Window - mulDivCeil(room+1, l.Window, units) + 1
}

// drain takes whole units and part Window-ths of one out of a bucket.
func (l Limit) drain(s State, whole, part int64) State {
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

// fill puts whole units and part Window-ths of one into a bucket, up to its brim.
func (l Limit) fill(s State, whole, part int64) State {
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

// shift moves the count of a window by n, between zero and the limit; a count
// that a lowered limit has left above it stays.
func (l Limit) shift(count, n int64) int64 {
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
