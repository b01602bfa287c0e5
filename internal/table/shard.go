package table

import (
	"slices"
	"sync"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// slotsPerBucket slots lie side by side, in three cache lines. A counter is in one
// of the two buckets that its id names, and may be moved to the other: so more than
// nine tenths of the slots can fill before one finds no place.
const slotsPerBucket = 8

// shard is a part of the table under one lock.
type shard struct {
	mu    sync.Mutex
	now   int64
	slots []slot // whole buckets
	used  int    // slots that are not free
	max   int    // the most that may be
	hand  int    // the bucket that is looked over next for expired counters, at every other insert
	rest  map[id]int64

	evicted       uint64
	evictedDenied uint64
	odd           bool
	_             [39]byte // two shards' locks are never in one cache line, nor in the pair of it
}

// buckets returns where the two buckets of an id begin.
func (s *shard) buckets(of id) (int, int) {
	n := uint64(len(s.slots) / slotsPerBucket)
	of = of.fingerprint()
	// The high halves of products spread 32 bits evenly over any n.
	a, b := uint64(of)>>32*n>>32, uint64(uint32(of))*n>>32
	if a == b {
		if b++; b == n {
			b = 0
		}
	}
	return int(a) * slotsPerBucket, int(b) * slotsPerBucket
}

// otherBucket returns the one of an id's buckets that does not begin at start.
func (s *shard) otherBucket(of id, start int) int {
	a, b := s.buckets(of)
	if a == start {
		return b
	}
	return a
}

// find returns the slot of an id, or nil.
func (s *shard) find(of id) *slot {
	if len(s.slots) == 0 {
		return nil
	}
	a, b := s.buckets(of)
	for i := range slotsPerBucket {
		if (s.slots[a+i].id^of)>>shapeBits == 0 {
			return &s.slots[a+i]
		}
	}
	for i := range slotsPerBucket {
		if (s.slots[b+i].id^of)>>shapeBits == 0 {
			return &s.slots[b+i]
		}
	}
	return nil
}

// get reads the state of a slot that may be nil.
func (s *shard) get(c *slot, l *rule.Limit) rule.State {
	if c == nil {
		return rule.State{}
	}
	state := c.state(l)
	if c.when&flagSplit != 0 {
		state.B = s.rest[c.id.fingerprint()]
	}
	return state
}

// put writes a state that is not fresh into a slot, of the shape that id has.
func (s *shard) put(c *slot, as id, l *rule.Limit, state rule.State, flags uint64) {
	was := c.when&flagSplit != 0
	rest, split := c.set(l, state, flags)
	c.id = as
	if split {
		if s.rest == nil {
			s.rest = make(map[id]int64)
		}
		s.rest[c.id.fingerprint()] = rest
	} else if was {
		delete(s.rest, c.id.fingerprint())
	}
}

// free empties a slot.
func (s *shard) free(c *slot) {
	if c.when&flagSplit != 0 {
		delete(s.rest, c.id.fingerprint())
	}
	*c = slot{}
	s.used--
}

// insert returns a slot for an id that has none. It takes one that is free or has
// expired, grows the shard, or evicts; own are ids that are not to be evicted if
// that can be helped.
func (s *shard) insert(of id, own []id, shapes *shapes, now int64) *slot {
	if len(s.slots) == 0 {
		s.resize(slotsPerBucket)
	}
	if s.odd = !s.odd; s.odd {
		s.tidy(shapes, now)
	}
	c := s.room(of, own, shapes, now)
	for c == nil {
		s.grow()
		c = s.room(of, own, shapes, now)
	}
	if c.id != 0 {
		s.free(c)
	}
	*c = slot{id: of}
	s.used++
	return c
}

// room finds a slot for an id, or nil if the shard has to grow.
func (s *shard) room(of id, own []id, shapes *shapes, now int64) *slot {
	a, b := s.buckets(of)
	if s.used < s.max {
		if c := s.vacant(a, b); c != nil {
			return c
		}
	}
	var worst victim
	for _, start := range [2]int{a, b} {
		worst.considerAll(s.slots[start:start+slotsPerBucket], own, shapes, now)
	}
	if worst.slot != nil && worst.fresh <= now {
		return worst.slot // expired: nothing is lost, and nothing grows
	}
	if s.used < s.max {
		if c := s.vacate(a, b); c != nil {
			return c
		}
		if len(s.slots) < slotsFor(s.max) {
			return nil
		}
	}
	if worst.slot == nil { // there is room in its buckets, but not in the shard: somebody elsewhere has to go
		for i := s.hand; worst.slot == nil; i += slotsPerBucket {
			start := i % len(s.slots)
			worst.considerAll(s.slots[start:start+slotsPerBucket], own, shapes, now)
		}
		s.count(worst, now)
		s.free(worst.slot)
		return s.vacant(a, b)
	}
	if worst.rank > rankOpen {
		if c := s.displace(of, worst.rank, own, shapes, now); c != nil {
			return c
		}
	}
	s.count(worst, now)
	return worst.slot
}

// count keeps account of an eviction, unless nothing is lost by it.
func (s *shard) count(v victim, now int64) {
	if v.fresh <= now {
		return
	}
	s.evicted++
	if v.slot.when&flagRefused != 0 {
		s.evictedDenied++
	}
}

// displace is for buckets in which everybody would be missed. One of them leaves for
// the other bucket of its own, where somebody of a lower rank has to go. That puts
// 144 slots in reach: with nine tenths of all counters denied, one in four million
// evictions finds nobody else.
func (s *shard) displace(of id, below rank, own []id, shapes *shapes, now int64) *slot {
	a, b := s.buckets(of)
	for _, start := range [2]int{a, b} {
		for i := range slotsPerBucket {
			c := &s.slots[start+i]
			if c.id == 0 {
				continue
			}
			other := s.otherBucket(c.id, start)
			var v victim
			v.considerAll(s.slots[other:other+slotsPerBucket], own, shapes, now)
			if v.slot != nil && v.rank < below {
				s.count(v, now)
				s.free(v.slot)
				*v.slot, *c = *c, slot{}
				return c
			}
		}
	}
	return nil
}

// vacant returns a free slot of the emptier of two buckets, or nil.
func (s *shard) vacant(a, b int) *slot {
	inA, freeA := s.vacancy(a)
	inB, freeB := s.vacancy(b)
	if freeB > freeA {
		return inB
	}
	return inA
}

// vacate frees a slot of two full buckets, if somebody in them can leave for the
// other bucket of its own.
func (s *shard) vacate(a, b int) *slot {
	for _, start := range [2]int{a, b} {
		for i := range slotsPerBucket {
			c := &s.slots[start+i]
			if to, n := s.vacancy(s.otherBucket(c.id, start)); n > 0 {
				*to, *c = *c, slot{}
				return c
			}
		}
	}
	return nil
}

// vacancy returns a free slot of a bucket, and how many it has.
func (s *shard) vacancy(start int) (c *slot, n int) {
	for i := range slotsPerBucket {
		if s.slots[start+i].id == 0 {
			c = &s.slots[start+i]
			n++
		}
	}
	return c, n
}

// victim is the counter that is missed least, so far.
type victim struct {
	slot  *slot
	rank  rank
	fresh int64
}

// rank orders counters by how much they are missed, before when they are fresh.
type rank int

const (
	rankOpen    rank = iota
	rankEmpty        // it has no unit left
	rankRefused      // being denied: to forget it is to let somebody in
	rankOwn          // of the key that there is to be room for: its limits are not to push each other out
)

func (v *victim) considerAll(slots []slot, own []id, shapes *shapes, now int64) {
	for i := range slots {
		c := &slots[i]
		if c.id == 0 {
			continue
		}
		l := shapes.limit(c.id)
		r, fresh := rankOpen, c.fresh(l)
		switch {
		case fresh <= now:
			fresh = now
		case slices.Contains(own, c.id.fingerprint()):
			r = rankOwn
		case c.when&flagRefused != 0:
			r = rankRefused
		case c.empty(l, now):
			r = rankEmpty
		}
		if v.slot == nil || r < v.rank || r == v.rank && fresh < v.fresh {
			*v = victim{c, r, fresh}
		}
	}
}

// tidy looks over one bucket and frees what has expired. Once round, the shard has
// let go of all that expired before, and it shrinks if little is left.
func (s *shard) tidy(shapes *shapes, now int64) {
	if s.hand >= len(s.slots) {
		s.hand = 0
		if half := (len(s.slots)/2 + slotsPerBucket - 1) / slotsPerBucket * slotsPerBucket; slotsFor(s.used) < half {
			s.resize(half) // and no more: those who have gone may come back
		}
	}
	for i := range slotsPerBucket {
		if c := &s.slots[s.hand+i]; c.id != 0 && c.fresh(shapes.limit(c.id)) <= now {
			s.free(c)
		}
	}
	s.hand += slotsPerBucket
}

// slotsFor is how many slots n counters fit into: a seventh more, in whole buckets.
func slotsFor(n int) int {
	return (n + n/7 + slotsPerBucket) / slotsPerBucket * slotsPerBucket
}

// grow makes the shard a fifth larger, up to what its maximum needs: by so little,
// because memory that is held for later is memory all the same.
func (s *shard) grow() {
	s.resize(min(larger(len(s.slots)), slotsFor(s.max)))
}

func larger(n int) int { return n + max(1, n/5/slotsPerBucket)*slotsPerBucket }

// resize moves all counters to so many slots, or more where one finds no place.
func (s *shard) resize(n int) {
	old := s.slots
	for {
		// Memory comes in sizes of its own: take all of what is handed out.
		s.slots = slices.Grow([]slot(nil), n)
		s.slots = s.slots[:cap(s.slots)/slotsPerBucket*slotsPerBucket]
		s.hand = 0
		if s.adopt(old) {
			return
		}
		n = larger(n)
	}
}

// adopt copies counters into empty slots, and reports whether all found a place.
func (s *shard) adopt(old []slot) bool {
	for i := range old {
		if old[i].id == 0 {
			continue
		}
		a, b := s.buckets(old[i].id)
		c := s.vacant(a, b)
		if c == nil {
			c = s.vacate(a, b)
		}
		if c == nil {
			return false
		}
		*c = old[i]
	}
	return true
}
