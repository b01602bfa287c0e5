package rule

import "math/bits"

// Guess is a state for which l answers as a did, now. Where several do it is one that
// counts for no less and no shorter than any of them, so that who goes on from it
// admits nothing that a's own state would not.
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
		// All of it as units of one window, which opened so that the last one goes
		// when a says, but not before now. However the units lie in two windows, they
		// go no later and no slower: TestGuess tries them all.
		elapsed := 2*l.Window - mulDivCeil(1, l.Window, used) + 1 - a.Reset
		return State{T: now - max(0, min(elapsed, l.Window)), A: used}
	}
}
