package table

import (
	"math"
	"math/bits"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// groupSize ids fill a cache line. To find a counter, or that there is none, is
// to read one or two such lines, which nobody writes while counters only count.
const groupSize = 8

// group is eight counters: a key under one kind and window of limit each. It has no
// pointers, so that the garbage collector passes it over, and no key: a fingerprint
// tells a counter from the others of its shard.
type group struct {
	ids   [groupSize]id // 0 where the slot is free
	slots [groupSize]slot
}

// slot is what a counter holds.
type slot struct {
	when uint64 // flags, and the state's T
	what uint64 // the state's A and B
}

// place is where a counter is, or could be. The zero place is nowhere.
type place struct {
	*group
	at uint
}

func (p place) id() *id     { return &p.ids[p.at%groupSize] }
func (p place) slot() *slot { return &p.slots[p.at%groupSize] }

// move puts the counter at p, and nothing where it was.
func (p place) move(from place) {
	*p.id(), *p.slot() = *from.id(), *from.slot()
	*from.id(), *from.slot() = 0, slot{}
}

// find returns the place of an id, or nowhere. It is most often the first it looks at.
func (b *group) find(of id) place {
	for i := range uint(groupSize) {
		if at := of.first() + i; (b.ids[at%groupSize]^of)>>shapeBits == 0 {
			return place{b, at}
		}
	}
	return place{}
}

// free returns which slots are free, a bit each: in a full table that is a matter of
// chance, which branches would guess wrong.
func (b *group) free() (set uint8) {
	for i, id := range b.ids {
		set |= uint8(^(id|-id)>>63) << i
	}
	return set
}

// vacant returns a free place for an id, or nowhere.
func (b *group) vacant(of id) place {
	first := of.first()
	if b.ids[first%groupSize] == 0 {
		return place{b, first}
	}
	free := b.free()
	if free == 0 {
		return place{}
	}
	return place{b, first + uint(bits.TrailingZeros8(bits.RotateLeft8(free, -int(first%groupSize))))}
}

// id is a fingerprint of 58 bits, which is never 0. In the 6 bits below it a slot has
// the number of the shape of limit that it was last used under; they are no part of
// what tells it from others.
type id uint64

const (
	shapeBits = 6
	maxShapes = 1 << shapeBits

	flagRefused = 1 << 63 // its key did not get what it last asked for
	flagEmpty   = 1 << 62 // no unit was left when it was last seen
	flagSplit   = 1 << 61 // what is A alone: B is in the shard's rest
	timeMask    = flagSplit - 1
)

func (i id) fingerprint() id { return i &^ (maxShapes - 1) }

// first is where a counter stands in its group if it can, in the bits above 0.
func (i id) first() uint { return uint(i >> shapeBits) }

// set writes a state, with the flags that go with it. It reports what did not fit
// in: B, where A and B together are out of the ordinary. T is never negative on the
// store's clock, and reaches flagSplit in 73 years.
func (s *slot) set(l *rule.Limit, state rule.State, flags uint64) (rest int64, split bool) {
	s.when = uint64(max(0, state.T))&timeMask | flags
	switch l.Kind {
	case rule.Fixed:
		s.what = uint64(state.A)
		return 0, false
	case rule.Sliding:
		if uint64(state.A|state.B) <= math.MaxUint32 {
			s.what = uint64(state.A)<<32 | uint64(state.B)
			return 0, false
		}
	default: // the level in Window-ths of a unit
		hi, lo := bits.Mul64(uint64(state.A), uint64(l.Window))
		lo, carry := bits.Add64(lo, uint64(state.B), 0)
		if hi+carry == 0 {
			s.what = lo
			return 0, false
		}
	}
	s.when |= flagSplit
	s.what = uint64(state.A)
	return state.B, true
}

// state reads it back; where it is split, B is still to be added.
func (s *slot) state(l *rule.Limit) rule.State {
	state := rule.State{T: int64(s.when & timeMask)}
	switch {
	case s.when&flagSplit != 0 || l.Kind == rule.Fixed:
		state.A = int64(s.what)
	case l.Kind == rule.Sliding:
		state.A, state.B = int64(s.what>>32), int64(s.what&math.MaxUint32)
	default:
		state.A, state.B = int64(s.what/uint64(l.Window)), int64(s.what%uint64(l.Window))
	}
	return state
}

// flags tells what is to be remembered of an answer. Who asks for more than there
// can ever be is not refused by the counter.
func flags(a rule.Answer) (f uint64) {
	if a.Remaining == 0 {
		f = flagEmpty
	}
	if a.Retry != 0 && a.Retry != rule.Never {
		f |= flagRefused
	}
	return f
}

// empty tells whether the counter had no unit left when it was last seen, and may
// have none now: a bucket has one after the time that one takes to leak.
func (s *slot) empty(l *rule.Limit, now int64) bool {
	if s.when&flagEmpty == 0 {
		return false
	}
	return l.Kind != rule.Bucket || now-int64(s.when&timeMask) < (l.Window+l.N-1)/l.N
}

// fresh is when the counter will hold nothing worth keeping, under a limit of its
// shape. Where it is split it may say so a little late.
func (s *slot) fresh(l *rule.Limit) int64 {
	t, w := int64(s.when&timeMask), l.Window
	split := s.when&flagSplit != 0
	switch {
	case l.Kind == rule.Fixed:
		return t + w
	case l.Kind == rule.Sliding && split:
		return t + 2*w
	case l.Kind == rule.Sliding:
		if a := int64(s.what >> 32); a > 0 {
			return t + 2*w - (w+a-1)/a + 1
		}
		b := max(1, int64(s.what&math.MaxUint32))
		return t + w - (w+b-1)/b + 1
	case l.Kind == rule.Bucket && !split:
		return t + int64(min(s.what/uint64(l.N), rule.MaxSpan)) + 1
	case l.Kind == rule.Bucket:
		return t + rule.Limit{N: l.N, Window: w, Burst: int64(s.what) + 1}.Refill()
	}
	return t + w // a shape without a number: w is how long such a counter lives at most
}
