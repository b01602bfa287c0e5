package table

import (
	"slices"
)

// room returns a place for an id, or the zero place if the shard has to grow.
// It frees or evicts a counter if necessary. This file has the choice of that
// counter; the caller holds the shard's lock in all functions here.
func (s *shard) room(of id, own []id, shapes *shapes, now int64) place {
	a, b := s.pair(of)
	if s.used < s.max {
		if p := s.vacant(of, a, b); p.group != nil {
			return p
		}
	}
	var worst victim
	worst.considerAll(&s.groups[a], own, shapes, now, s.wall)
	worst.considerAll(&s.groups[b], own, shapes, now, s.wall)
	if worst.group != nil && worst.fresh <= now {
		return worst.place // it has expired: nothing is lost, and the shard need not grow
	}
	if s.used < s.max {
		grows := len(s.groups) < groupsFor(s.max)
		if grows && s.crowded() {
			return place{}
		}
		if p := s.vacate(a, b); p.group != nil {
			return p
		}
		if grows {
			return place{}
		}
	}
	if worst.group == nil { // there is room in its groups, but not in the shard: evict a counter elsewhere
		for i := s.hand; worst.group == nil; i++ {
			worst.considerAll(&s.groups[i%len(s.groups)], own, shapes, now, s.wall)
		}
		s.count(worst, now)
		s.free(worst.place)
		return s.vacant(of, a, b)
	}
	if worst.rank > rankOpen {
		if p := s.displace(a, b, worst.rank, own, shapes, now); p.group != nil {
			return p
		}
	}
	s.count(worst, now)
	return worst.place
}

// count counts an eviction, unless the counter has expired and nothing is lost.
func (s *shard) count(v victim, now int64) {
	if v.fresh <= now {
		return
	}
	rare := s.decisions.rarely()
	rare.evicted++
	if v.id().isBlock() && v.slot().block().Left(now) == 0 {
		return // only the rung is lost
	}
	if v.slot().when&flagRefused != 0 {
		rare.evictedDenied++
	}
}

// displace is for groups in which each counter still matters. It moves one of them
// to the other group of that counter, and evicts a counter of a lower rank there.
// So an insert can choose among 144 slots. If nine tenths of all counters are
// denied, one in four million evictions finds no counter of a lower rank.
func (s *shard) displace(a, b int, below rank, own []id, shapes *shapes, now int64) place {
	for _, start := range [2]int{a, b} {
		for i := range uint(groupSize) {
			p := place{&s.groups[start], i}
			if *p.id() == 0 {
				continue
			}
			var v victim
			v.considerAll(&s.groups[s.other(*p.id(), start)], own, shapes, now, s.wall)
			if v.group != nil && v.rank < below {
				s.count(v, now)
				s.free(v.place)
				v.place.move(p)
				return p
			}
		}
	}
	return place{}
}

// victim is the best counter to evict among those considered so far.
type victim struct {
	place
	rank  rank
	fresh int64
}

// rank orders counters by how much their loss would matter. Among counters of
// the same rank, the one that becomes fresh first is evicted.
type rank int

const (
	rankOpen    rank = iota
	rankEmpty        // it has no unit left
	rankRefused      // its key is being denied: evicting it would admit that client
	rankSibling      // it belongs to the key that needs room: the limits of one key must not evict each other
)

// considerAll makes v the best counter to evict among v and the counters in b.
func (v *victim) considerAll(b *group, own []id, shapes *shapes, now, wall int64) {
	for i, id := range b.ids {
		if id == 0 {
			continue
		}
		c, l := &b.slots[i], shapes.limit(id)
		r, fresh := rankOpen, c.fresh(l, wall)
		switch {
		case fresh <= now:
			fresh = now
		case slices.Contains(own, id.counter()):
			r = rankSibling
		case id.isBlock() && c.block().Left(now) == 0:
			r = rankEmpty // its key is not denied, but would be blocked for a shorter time
		case c.when&flagRefused != 0:
			r = rankRefused
		case c.empty(l, now):
			r = rankEmpty
		}
		if v.group == nil || r < v.rank || r == v.rank && fresh < v.fresh {
			*v = victim{place{b, uint(i)}, r, fresh}
		}
	}
}
