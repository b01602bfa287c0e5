package table

import (
	"slices"
)

// room finds a place for an id, or nowhere if the shard has to grow.
func (s *shard) room(of id, own []id, shapes *shapes, now int64) place {
	a, b := s.pair(of)
	if s.used < s.max {
		if p := s.vacant(of, a, b); p.group != nil {
			return p
		}
	}
	var worst victim
	worst.considerAll(&s.groups[a], own, shapes, now)
	worst.considerAll(&s.groups[b], own, shapes, now)
	if worst.group != nil && worst.fresh <= now {
		return worst.place // expired: nothing is lost, and nothing grows
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
	if worst.group == nil { // there is room in its groups, but not in the shard: somebody elsewhere has to go
		for i := s.hand; worst.group == nil; i++ {
			worst.considerAll(&s.groups[i%len(s.groups)], own, shapes, now)
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

// count keeps account of an eviction, unless nothing is lost by it.
func (s *shard) count(v victim, now int64) {
	if v.fresh <= now {
		return
	}
	s.evicted++
	if v.slot().when&flagRefused != 0 {
		s.evictedDenied++
	}
}

// displace is for groups in which everybody would be missed. One of them leaves for
// the other group of its own, where somebody of a lower rank has to go. That puts
// 144 slots in reach: with nine tenths of all counters denied, one in four million
// evictions finds nobody else.
func (s *shard) displace(a, b int, below rank, own []id, shapes *shapes, now int64) place {
	for _, start := range [2]int{a, b} {
		for i := range uint(groupSize) {
			p := place{&s.groups[start], i}
			if *p.id() == 0 {
				continue
			}
			var v victim
			v.considerAll(&s.groups[s.other(*p.id(), start)], own, shapes, now)
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

// victim is the counter that is missed least, so far.
type victim struct {
	place
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

func (v *victim) considerAll(b *group, own []id, shapes *shapes, now int64) {
	for i, id := range b.ids {
		if id == 0 {
			continue
		}
		c, l := &b.slots[i], shapes.limit(id)
		r, fresh := rankOpen, c.fresh(l)
		switch {
		case fresh <= now:
			fresh = now
		case slices.Contains(own, id.fingerprint()):
			r = rankOwn
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
