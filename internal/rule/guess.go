package rule

import "math/bits"

// GuessLog is [Limit.Guess] for a rolling window and the answer to a request for n units.
// The guess never counts for less than the real log. A denial of n units ends when it really
// does, and so does the wait for the next unit that fits. The instants of all other units
// are not known, so they get the latest possible one.
func (l *Limit) GuessLog(a Answer, now, n int64) Log {
	used := min(l.N-a.Remaining, MaxRolling)
	if used <= 0 {
		return Log{}
	}
	instants := make([]int64, used)
	for i := range instants {
		instants[i] = now + a.Reset - l.Window
	}
	upTo := func(number, wait int64) { // the oldest units have left when the wait is over
		for i := range min(number, used) {
			instants[i] = min(instants[i], now+wait-l.Window)
		}
	}
	if a.Retry > 0 && a.Retry != Never {
		upTo(used+n-l.N, a.Retry)
	}
	upTo(1, a.More)
	return LogOf(instants)
}

// Guess returns a state for which l gives the answer a at now. For a fixed window or a period it is exactly the
// state behind a. For a bucket the rounding of Reset may hide a fraction of a unit. For a sliding
// window the guess never counts for less than the real state at any later time, and may count for
// longer. This holds if nothing uses the key in the meantime. It is for stores that report answers
// but not their states.
func (l *Limit) Guess(a Answer, now int64) State {
	used := l.Cap() - a.Remaining
	if used <= 0 {
		return State{}
	}
	switch l.Kind {
	case Calendar:
		return State{T: l.inPeriod(now) + a.Reset, A: used}
	case Fixed:
		return State{T: now + min(a.Reset, l.Window) - l.Window, A: used}
	case Bucket:
		// These are the units that leak until the bucket is whole. Because Reset is
		// rounded, the result may be slightly too large, but never larger than the used
		// units.
		if a.Reset < mulAddDivCeil(used, l.Window, 0, l.N) {
			hi, lo := bits.Mul64(uint64(a.Reset), uint64(l.N))
			whole, part := bits.Div64(hi, lo, uint64(l.Window))
			return State{T: now, A: int64(whole), B: int64(part)}
		}
		return State{T: now, A: used}
	default:
		// The answer does not say how the units are spread over the two windows. So all of
		// them are put into one window, which ends just before the last of them stops
		// counting.
		return State{T: now - max(0, l.Window+1-a.Reset), A: used}
	}
}
