package rule

import "math/bits"

// Guess is a state for which l answers as a did, now. It is a's own, but for a bucket where the
// rounding of Reset hides a part of a unit, and for a sliding window. There it counts for no less than
// a's own at any later time, for a key that nobody uses meanwhile, and may count for longer.
func (l Limit) Guess(a Answer, now int64) State {
	used := l.Cap() - a.Remaining
	if used <= 0 {
		return State{}
	}
	switch l.Kind {
	case Fixed:
		return State{T: now + min(a.Reset, l.Window) - l.Window, A: used}
	case Bucket:
		// What leaks until it is whole: with the rounding of Reset that may be a little
		// more than there is, but not more than what is missing.
		if a.Reset < mulAddDivCeil(used, l.Window, 0, l.N) {
			hi, lo := bits.Mul64(uint64(a.Reset), uint64(l.N))
			whole, part := bits.Div64(hi, lo, uint64(l.Window))
			return State{T: now, A: int64(whole), B: int64(part)}
		}
		return State{T: now, A: used}
	default:
		// All of it as units of one window, which ends just before the last of them goes: how
		// they lie in two windows an answer does not tell.
		return State{T: now - max(0, l.Window+1-a.Reset), A: used}
	}
}
