package rule

// This file has blocks: denials that last longer than the limit itself would. A block
// belongs to a counter and does not depend on the limit's N or Burst. It is a state of
// its own beside [State], which it never changes.

// Blocked is the kind of a place that holds a [Block] and not a [State]. It is not an
// algorithm, so no [Limit] that counts has it.
const Blocked Kind = 64

// MaxRungs is the most durations that a [Ladder] has.
const MaxRungs = 4

// Ladder has how long the first, second, ... denial blocks a key: the first N of Rungs,
// each MinSpan to MaxSpan and none shorter than the one before. N is 1 to MaxRungs.
type Ladder struct {
	Rungs [MaxRungs]int64
	N     int
}

// Forget is how long after the end of a block the ladder is remembered, for a limit with
// this window: the longest duration, or the window if that is longer.
func (l *Ladder) Forget(window int64) int64 { return max(l.Rungs[l.N-1], window) }

// Block is what is kept of a key that was blocked. A key has the zero Block if it was
// never blocked, or if that is forgotten.
type Block struct {
	Until  int64 // when the last block ends, or has ended
	Rung   uint8 // how many denials have blocked the key: the next one uses this rung
	Forget int64 // for how long Rung is remembered after Until
}

// MaxUntil is the latest end of a block. It is 146 years on a clock that begins at 0: more
// than 50 years after any instant of package clock.
const MaxUntil = 1<<62 - 1

// Left returns how long the block still lasts, or 0 if it is over.
func (b Block) Left(now int64) int64 {
	if b.Until <= now {
		return 0
	}
	return b.Until - now
}

// Forgotten returns the instant from which on the block need not be kept.
func (b Block) Forgotten() int64 {
	if b.Forget > MaxUntil-b.Until {
		return MaxUntil
	}
	return b.Until + b.Forget
}

// at returns b, or the zero Block if b is forgotten at now.
func (b Block) at(now int64) Block {
	if b.Forgotten() <= now {
		return Block{}
	}
	return b
}

// Start returns the block that a denial at now starts, for a key that is not blocked. The
// limit that denies has the ladder l and the given window. Units that it has denied would
// fit after retry, without a block.
func (b Block) Start(l *Ladder, window, retry, now int64) Block {
	b = b.at(now)
	lasts := max(l.Rungs[min(int(b.Rung), l.N-1)], retry)
	return Block{
		Until:  Lasting(lasts, now),
		Rung:   min(b.Rung+1, MaxRungs),
		Forget: l.Forget(window),
	}
}

// Join returns the block of a counter that has b and is given o: of two ends the later
// one stays, of two rungs the higher one, and the rung is remembered for the longer of the
// two times. A block by hand has no rung, so it does not change which one is next.
func (b Block) Join(o Block, now int64) Block {
	b = b.at(now)
	return Block{Until: max(b.Until, o.Until), Rung: max(b.Rung, o.Rung), Forget: max(b.Forget, o.Forget)}
}

// Lasting returns the instant that is left after now, and at most MaxUntil. left may be
// negative. The result is not.
func Lasting(left, now int64) int64 {
	if left <= 0 {
		return max(0, now+left)
	}
	return min(left, MaxUntil-min(now, MaxUntil)) + now
}

// Over returns the answer for n units during a block that lasts for another left > 0. a
// is the answer without the block.
func (a Answer) Over(left, n int64) Answer {
	if a.Remaining > 0 || a.More < left {
		a.More = left // then the units that remain are available
	}
	a.Remaining, a.Reset = 0, max(a.Reset, left)
	if n > 0 {
		a.Retry = max(a.Retry, left)
	}
	return a
}

// Pending are units that were taken and may yet be given back.
type Pending struct {
	Units int64
	At    int64 // when they were taken
}

// DeniesWithout reports whether n units are denied even if all of the pending units are
// given back at now.
//
// A window gets exactly the units back that still count. How much of a unit in a
// bucket has leaked depends on all other units, and is not known. So a bucket gets the
// whole unit back for as long as any of it may be left: a refill after it was taken.
func (l *Limit) DeniesWithout(pending []Pending, s State, now, n int64) bool {
	for _, p := range pending {
		age := max(0, now-p.At)
		switch {
		case l.Kind != Bucket:
			s = l.Adjust(s, now, -p.Units, age)
		case age < l.Refill():
			s = l.drain(l.at(l.repair(s, now), now), p.Units, 0)
		}
	}
	_, a := l.Take(s, now, n)
	return a.Retry != 0
}
