package rule

import "math/bits"

// This file has the rule of a token bucket once more, for a counter that is stored as one
// number. takeBucket is the rule, and [Limit.TakeLevel] returns the same for most states, with
// fewer divisions.

// maxLevel bounds the numbers of TakeLevel, so that a sum of two of them and a rate fits into
// 64 bits.
const maxLevel = 1 << 62

// TakeLevel is Take for a Bucket in the state {T: t, A: level/Window, B: level%Window}: its
// level is in Window-ths of a unit. TakeLevel returns the level after the call. It is at now
// if n > 0 units were taken. Otherwise nothing has changed, and it is the level before, at t.
// If ok is false, it returns nothing, and Take must be used: the clock is behind t, or a
// number is too large.
//
// It follows from takeBucket in this way:
//
//   - In at, a level leaks N parts per nanosecond. Without the split into A and B, this is one
//     product and no division.
//   - What is left is Burst, less A, less 1 if B > 0. So it is Burst less the level in units,
//     rounded up.
//   - In leaks, (A+n-Burst)*Window + B parts must leak until n units fit. That is the level,
//     plus n units, less the full level. It is divided by N for Reset, where n is Burst, for
//     More, where n is left+1, and for Retry. For a denial of left+1 units, which is most
//     often a single one, Retry is More.
//
// So three divisions remain.
func (l *Limit) TakeLevel(level uint64, t, now, n int64) (after uint64, a Answer, ok bool) {
	window, rate, burst := uint64(l.Window), uint64(l.N), uint64(l.Burst)
	over, full := bits.Mul64(burst, window)
	if t > now || over != 0 || full|level >= maxLevel {
		return 0, a, false
	}
	before := level
	far, leaked := bits.Mul64(rate, uint64(now-t))
	if far != 0 {
		leaked = level
	}
	level -= min(level, leaked)
	used := (level + window - 1) / window
	left := burst - min(used, burst)
	ask := uint64(n)
	fits := ask <= left
	if fits {
		level += ask * window
		left -= ask
	}
	a.Remaining = int64(left)
	if left < burst {
		a.Reset = int64((level + rate - 1) / rate)
		a.More = a.Reset
		if left+1 < burst {
			a.More = int64((level + (left+1)*window - full + rate - 1) / rate)
		}
	}
	switch {
	case fits && n > 0:
		return level, a, true
	case fits:
	case ask > burst:
		a.Retry = Never
	case ask == left+1:
		a.Retry = a.More
	default:
		a.Retry = int64((level + ask*window - full + rate - 1) / rate)
	}
	return before, a, true
}
