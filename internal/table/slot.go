package table

import (
	"math"
	"math/bits"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// groupSize ids fill a cache line. Finding a counter, or finding that there is
// none, reads one or two of these lines. They are not written while counters
// only count.
const groupSize = 8

// group is a hash bucket of eight counters. It has no pointers, so the garbage
// collector skips it. It stores no keys: a fingerprint distinguishes a counter from
// the other counters of its shard.
type group struct {
	ids   [groupSize]id // 0 where the slot is free
	slots [groupSize]slot
}

// slot is what a counter holds.
type slot struct {
	when uint64 // flags, and the state's T
	what uint64 // the state's A and B
}

// place is the position of a counter, or of a free slot. The zero place is
// none.
type place struct {
	*group
	at uint
}

func (p place) id() *id     { return &p.ids[p.at%groupSize] }
func (p place) slot() *slot { return &p.slots[p.at%groupSize] }

// move moves the counter at from to p, and frees from.
func (p place) move(from place) {
	*p.id(), *p.slot() = *from.id(), *from.slot()
	*from.id(), *from.slot() = 0, slot{}
}

// find returns the place of an id, or the zero place. The first slot that it checks is
// usually the right one.
func (b *group) find(of id) place {
	for i := range uint(groupSize) {
		if at := of.first() + i; (b.ids[at%groupSize]^of)>>shapeBits == 0 {
			return place{b, at}
		}
	}
	return place{}
}

// free returns a bit set of the free slots. It has no branches, because in a full
// table they would be mispredicted too often.
func (b *group) free() (set uint8) {
	for i, id := range b.ids {
		set |= uint8(^(id|-id)>>63) << i
	}
	return set
}

// vacant returns a free place for an id, or the zero place.
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

// id is a fingerprint of 58 bits, which is never 0. The 6 bits below it hold the
// number of the limit's shape that the slot was last used under. They are not part of
// the identity.
type id uint64

const (
	shapeBits = 6
	maxShapes = 1 << shapeBits

	flagRefused = 1 << 63 // the last request of its key was denied
	flagEmpty   = 1 << 62 // no unit was left after its last use
	flagSplit   = 1 << 61 // what holds A alone, and B is in the shard's rest, or the ring in its rings
	timeMask    = flagSplit - 1
)

func (i id) fingerprint() id { return i &^ (maxShapes - 1) }

// first returns the preferred slot of a counter in its group. It uses the bits
// above the shape.
func (i id) first() uint { return uint(i >> shapeBits) }

// packed is a state as a place has it, in a form that is quick to read, compare and write.
type packed struct {
	when uint64 // the slot's, without flagRefused and flagEmpty
	what uint64
	rest int64 // B, which is elsewhere, if flagSplit is set
}

// pack returns a state in packed form. T is never negative on the table's clock, and reaches
// flagSplit after 73 years. wall is what the wall clock is ahead; see calendar.go.
func pack(l *rule.Limit, state rule.State, wall int64) packed {
	if l.Kind == rule.Calendar {
		state.T = toSlot(state.T, wall)
	}
	when := uint64(max(0, state.T)) & timeMask
	switch l.Kind {
	case rule.Fixed, rule.Calendar:
		return packed{when, uint64(state.A), 0}
	case rule.Sliding:
		if uint64(state.A|state.B) <= math.MaxUint32 {
			return packed{when, uint64(state.A)<<32 | uint64(state.B), 0}
		}
	default: // the level, in Window-ths of a unit
		hi, lo := bits.Mul64(uint64(state.A), uint64(l.Window))
		lo, carry := bits.Add64(lo, uint64(state.B), 0)
		if hi+carry == 0 {
			return packed{when, lo, 0}
		}
	}
	return packed{when | flagSplit, uint64(state.A), state.B}
}

// unpack is the inverse of pack.
func (x packed) unpack(l *rule.Limit, wall int64) rule.State {
	if x.fresh() {
		return rule.State{}
	}
	state := rule.State{T: int64(x.when & timeMask)}
	switch {
	case x.when&flagSplit != 0:
		state.A, state.B = int64(x.what), x.rest
	case l.Kind == rule.Fixed:
		state.A = int64(x.what)
	case l.Kind == rule.Calendar:
		state.T, state.A = fromSlot(state.T, wall), int64(x.what)
	case l.Kind == rule.Sliding:
		state.A, state.B = int64(x.what>>32), int64(x.what&math.MaxUint32)
	default:
		state.A, state.B = int64(x.what/uint64(l.Window)), int64(x.what%uint64(l.Window))
	}
	return state
}

// fresh reports whether the state holds no units.
func (x packed) fresh() bool { return x.what == 0 && x.rest == 0 }

// take is [rule.Limit.Take] for a state in packed form. The conversion is most of the work
// for some kinds, so it is left out where it can be.
func (x packed) take(l *rule.Limit, now, n, wall int64) (after packed, a rule.Answer) {
	switch {
	case l.Kind == rule.Fixed: // T and A as they are
		state, a := l.TakeFixed(rule.State{T: int64(x.when), A: int64(x.what)}, now, n)
		return packed{when: uint64(state.T) & timeMask, what: uint64(state.A)}, a
	case x.when&flagSplit != 0:
	case l.Kind == rule.Sliding:
		state, a := l.TakeSliding(rule.State{T: int64(x.when), A: int64(x.what >> 32), B: int64(x.what & math.MaxUint32)}, now, n)
		if state.A <= math.MaxUint32 {
			return packed{when: uint64(state.T) & timeMask, what: uint64(state.A)<<32 | uint64(state.B)}, a
		}
		return pack(l, state, wall), a
	case l.Kind == rule.Bucket:
		level, a, ok := l.TakeLevel(x.what, int64(x.when), now, n)
		switch {
		case ok && n > 0 && a.Retry == 0:
			return packed{when: uint64(now) & timeMask, what: level}, a
		case ok:
			return x, a
		}
	}
	state, a := l.Take(x.unpack(l, wall), now, n)
	return pack(l, state, wall), a
}

// flags returns the flags to store for an answer. A request for more units than
// the limit can ever have does not mark the counter as refused.
func flags(a rule.Answer) (f uint64) {
	if a.Remaining == 0 {
		f = flagEmpty
	}
	if a.Retry != 0 && a.Retry != rule.Never {
		f |= flagRefused
	}
	return f
}

// empty reports whether the counter had no unit left after its last use, and may
// still have none. A bucket has one again after the time in which a unit leaks.
func (s *slot) empty(l *rule.Limit, now int64) bool {
	if s.when&flagEmpty == 0 {
		return false
	}
	return l.Kind != rule.Bucket || now-int64(s.when&timeMask) < (l.Window+l.N-1)/l.N
}

// fresh returns the instant from which on the counter need not be kept, under a
// limit of its shape. For a split counter this may be slightly late. wall is what the wall
// clock is ahead; see [Table.SetWall].
func (s *slot) fresh(l *rule.Limit, wall int64) int64 {
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
	case l.Kind == rule.Calendar:
		return fromSlot(t, wall)
	case l.Kind == rule.Blocked:
		return s.block().Forgotten()
	case l.Kind == rule.Bucket:
		level := rule.Limit{N: l.N, Window: w, Burst: int64(s.what) + 1}
		return t + level.Refill()
	}
	return t + w // a shape without a number: w is the longest life of such a counter
}
