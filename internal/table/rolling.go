package table

import (
	"maps"
	"slices"
	"sync"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file has the counters of rolling windows; see [rule.Log]. The methods of a shard
// here require that it is locked.
//
// The slot of such a counter has the instant of the youngest unit, and the number of
// units. Nothing else is needed if all units are of one instant, as for a key with one
// request. Otherwise the slot is split, and the shard has a ring of instants beside it.
//
// A ring needs more memory than its counter's place has. So it takes further places of the
// shard: shard.max, the most places that may be used, is lower by as many. The promised
// memory of a table therefore includes its rings. If a ring grows, counters of other keys
// may be evicted for it.

// rings are the rings of one shard.
type rings struct {
	of     map[id]*rule.Ring
	most   int // the most rings since the map was made
	places int // how many places they take
	hand   int // the group that spare has looked at last
}

// ringOverhead is what a ring takes beside its instants, as a number of instants: 32 bytes
// for itself, and 20 to 40 for its entry in the map.
const ringOverhead = 8

// placesOf returns how many places a ring takes: one for every 24 bytes. A nil Ring takes
// none.
func placesOf(r *rule.Ring) int {
	if r == nil {
		return 0
	}
	return (r.Cap() + ringOverhead + 2) / 3
}

// RollingPlaces returns how many places of a table a counter takes at most if it holds n
// units, with the place that every counter takes.
func RollingPlaces(n int64) int {
	instants := make([]int64, max(1, min(n, rule.MaxRolling)))
	instants[0]--
	return 1 + placesOf(rule.LogOf(instants).Ring)
}

// log returns what a rolling counter holds. For the zero place it returns a log without
// units. A caller that changes the log must call liftRing before, and putLog after that.
func (s *shard) log(p place) rule.Log {
	if p.group == nil {
		return rule.Log{}
	}
	c := p.slot()
	g := rule.Log{T: int64(c.when & timeMask), N: int64(c.what)}
	if all := s.rings(); c.when&flagSplit != 0 && all != nil {
		g.Ring = all.of[p.id().fingerprint()]
	}
	return g
}

// rings returns the rings of the shard, or nil if there are none.
func (s *shard) rings() *rings {
	if s.apart == nil {
		return nil
	}
	return s.apart.rings
}

// takePlaces changes how many places the rings take.
func (s *shard) takePlaces(n int) {
	if n != 0 {
		s.apart.rings.places += n
		s.max -= n
	}
}

// liftRing must be called before a log is changed, and returns its ring. The ring takes no
// places until putLog is called, because its size may change in the meantime.
func (s *shard) liftRing(g *rule.Log) *rule.Ring {
	s.takePlaces(-placesOf(g.Ring))
	return g.Ring
}

// putLog writes a log that was changed. p is the place of the counter, as is its id with
// the shape, and had is the ring before the change. If there is no counter, putLog makes
// one. If the log has no units, it frees the counter. own has the counters of the key. The
// ring may have grown, so putLog may evict other counters, and move all of them: places are
// not valid after it.
func (s *shard) putLog(p place, as id, own []id, shapes *shapes, g *rule.Log, had *rule.Ring, flags uint64, now int64) {
	if g.N == 0 {
		if p.group != nil {
			s.forgetRing(p)
			s.free(p)
		}
		return
	}
	if p.group == nil {
		p = s.insert(as.fingerprint(), own, shapes, now)
	}
	switch g.Ring {
	case had: // it may have grown
	case nil:
		s.forgetRing(p)
	default: // also in place of another ring
		s.keepRing(as, g.Ring)
	}
	if g.Ring != nil {
		flags |= flagSplit
	}
	*p.id(), *p.slot() = as, slot{uint64(max(0, g.T))&timeMask | flags, uint64(g.N)}
	s.takePlaces(placesOf(g.Ring))
	if s.used > s.max {
		s.evictFor(as.fingerprint(), own, shapes, now)
	}
}

// keepRing adds the ring of a counter, which takes no places yet.
func (s *shard) keepRing(of id, r *rule.Ring) {
	if s.apart == nil {
		s.apart = new(apart)
	}
	if s.apart.rings == nil {
		s.apart.rings = &rings{of: make(map[id]*rule.Ring)}
	}
	all := s.apart.rings
	all.of[of.fingerprint()] = r
	all.most = max(all.most, len(all.of))
}

// dropRing forgets the ring of a counter and gives back its places.
func (s *shard) dropRing(p place) {
	if all := s.rings(); all != nil {
		s.takePlaces(-placesOf(all.of[p.id().fingerprint()]))
		s.forgetRing(p)
	}
}

// forgetRing forgets the ring of a counter, which takes no places. Maps do not shrink, so a
// map of which a quarter is left is made again.
func (s *shard) forgetRing(p place) {
	all := s.rings()
	if p.slot().when&flagSplit == 0 || all == nil {
		return
	}
	p.slot().when &^= flagSplit
	delete(all.of, p.id().fingerprint())
	const small = 64
	switch n := len(all.of); {
	case n == 0:
		s.apart.rings = nil
	case n < all.most/4 && all.most > small:
		of := make(map[id]*rule.Ring, n)
		maps.Copy(of, all.of)
		all.of, all.most = of, n
	}
}

// evictFor evicts counters until the shard has no more than its maximum, because the ring
// of a counter has grown. That counter stays: if its ring is larger than the whole shard,
// it is the only one. A MemoryStore refuses limits that lead to this.
//
// Each evicted counter makes the groups emptier. They shrink in small steps, as they grow,
// because the ring uses their memory.
func (s *shard) evictFor(of id, own []id, shapes *shapes, now int64) {
	for s.used > s.max && s.used > 1 {
		v := s.spare(of, own, shapes, now)
		s.count(v, now)
		s.free(v.place)
	}
	if n := groupsFor(s.used); larger(n) < len(s.groups) {
		s.resize(n)
	}
}

// spareGroups is among how many groups evictFor chooses: about as many counters as an
// insert has to choose from in a full shard.
const spareGroups = 16

// spare returns the best counter to evict among the counters of the next groups. It is not
// the counter with the id of. It is another counter of the same key only if the shard has
// no counter of another key.
func (s *shard) spare(of id, own []id, shapes *shapes, now int64) (v victim) {
	hand := &s.apart.rings.hand
	for seen := range s.groups {
		if seen >= spareGroups && v.group != nil && v.rank < rankSibling {
			return v
		}
		*hand = (*hand + 1) % len(s.groups)
		v.considerAll(&s.groups[*hand], own, shapes, now, s.wall)
	}
	if v.id().fingerprint() != of {
		return v
	}
	for i := range s.groups { // all others are of this key
		for j, other := range s.groups[i].ids {
			if other != 0 && other.fingerprint() != of {
				return victim{place: place{&s.groups[i], uint(j)}, rank: rankSibling, fresh: rule.Never}
			}
		}
	}
	return v
}

// takeOneRolling is [Table.TakeOne] for a rolling window.
func (t *Table) takeOneRolling(h keyHash, n int64, l *rule.Limit, policy uint8) (a rule.Answer, now int64, blocked bool, held *sync.Mutex) {
	of := h.id(l)
	s, now := t.lock(h)
	if s.blocks != 0 && s.block(of).Left(now) > 0 {
		return t.takeOneBlocked(s, of, n, now, l, policy), now, true, &s.mu
	}
	c := s.find(of)
	g := s.log(c)
	a = l.Ask(&g, now, n)
	switch {
	case n == 0:
	case a.Retry == 0:
		s.decisions.allow(n, l.IsNear(a.Remaining))
		s.countRolling(c, of, []id{of}, &t.shapes, &g, l, n, now, a)
	default:
		s.decisions.deny(n, policy)
		s.refuseRolling(c, of, &t.shapes, &g, l, now, a)
	}
	return a, now, false, &s.mu
}

// askRolling returns the answer for n units under a rolling window, and changes nothing.
func (s *shard) askRolling(of id, l *rule.Limit, n, now int64) rule.Answer {
	g := s.log(s.find(of))
	return l.Ask(&g, now, n)
}

// settleRolling writes what a call has decided about n > 0 units under a rolling window. a
// is the answer for its counter, of which the units are taken if they are admitted.
func (s *shard) settleRolling(of id, own []id, shapes *shapes, l *rule.Limit, n, now int64, a rule.Answer, admitted bool) {
	c := s.find(of)
	g := s.log(c)
	if admitted {
		s.countRolling(c, of, own, shapes, &g, l, n, now, a)
	} else {
		s.refuseRolling(c, of, shapes, &g, l, now, a)
	}
}

// countRolling counts n > 0 units that fit.
func (s *shard) countRolling(c place, of id, own []id, shapes *shapes, g *rule.Log, l *rule.Limit, n, now int64, a rule.Answer) {
	had := s.liftRing(g)
	l.Count(g, now, n)
	s.putLog(c, of|shapes.of(l, 0), own, shapes, g, had, flags(a), now)
}

// refuseRolling marks a counter under which units were denied, by its limit or by another
// one of the call. It moves no unit, except in a log that is repaired; see
// [rule.Limit.Repair].
func (s *shard) refuseRolling(c place, of id, shapes *shapes, g *rule.Log, l *rule.Limit, now int64, a rule.Answer) {
	if c.group == nil {
		return
	}
	marks := flags(a) | s.flags(c)&flagRefused
	switch as := of | shapes.of(l, 0); {
	case l.Repairs(g, now):
		had := s.liftRing(g)
		l.Repair(g, now)
		s.putLog(c, as, nil, shapes, g, had, marks, now)
	case marks != 0:
		*c.id() = as
		c.slot().when = c.slot().when&^(flagRefused|flagEmpty) | marks
	}
}

// adjustRolling is adjust under one rolling window. It returns how many units it has
// charged or given back, and the instant of the oldest of them.
func (s *shard) adjustRolling(of id, own []id, shapes *shapes, l *rule.Limit, n, at, now int64) (moved, oldest int64) {
	c := s.find(of)
	if n == 0 || n < 0 && c.group == nil {
		return 0, 0
	}
	g := s.log(c)
	was := l.Ask(&g, now, 0)
	had := s.liftRing(&g)
	moved, oldest = l.AdjustLog(&g, now, n, at)
	marks := s.flags(c)
	if moved != 0 {
		is := l.Ask(&g, now, 0)
		marks = flags(is) | s.refusedStill(c, was, is)
	}
	s.putLog(c, of|shapes.of(l, 0), own, shapes, &g, had, marks, now)
	return moved, oldest
}

// learnRolling is [Table.Learn] under one rolling window. is is the log that the other
// store has reported, which the table keeps.
func (s *shard) learnRolling(of id, own []id, shapes *shapes, l *rule.Limit, is rule.Log, older bool, refused, now int64) {
	c := s.find(of)
	was := s.log(c)
	had := s.liftRing(&was)
	left, leaves := l.Ask(&was, now, 0), l.Ask(&is, now, 0)
	kept := s.refusedStill(c, left, leaves)
	most := *l
	most.N = rule.MaxRolling
	if older && holdsMore(most.Ask(&was, now, 0), most.Ask(&is, now, 0)) {
		is, leaves, kept = was, left, s.flags(c)&flagRefused
	}
	if leaves.Reset == 0 {
		is = rule.Log{}
	}
	s.putLog(c, of|shapes.of(l, 0), own, shapes, &is, had, learntFlags(l, leaves, refused)|kept, now)
}

// deniesWithout reports whether n units are denied without the pending units; see
// [rule.Limit.DeniesWithout]. state is the state of a counter that is no rolling one.
func (s *shard) deniesWithout(pending []rule.Pending, of id, l *rule.Limit, state packed, n, now int64) bool {
	if l.Kind == rule.Rolling {
		g := s.log(s.find(of))
		return l.LogDeniesWithout(pending, &g, now, n)
	}
	return l.DeniesWithout(pending, state.unpack(l, s.wall), now, n)
}

// ask returns the answer for n units, and changes nothing. state is the state of a counter
// that is no rolling one.
func (s *shard) ask(of id, l *rule.Limit, state packed, now, n int64) rule.Answer {
	if l.Kind == rule.Rolling {
		return s.askRolling(of, l, n, now)
	}
	_, a := state.take(l, now, n, s.wall)
	return a
}

// logsOf returns copies of the logs that have rings, for a [Mirror].
func (s *shard) logsOf() map[id][]int64 {
	held := s.rings()
	if held == nil {
		return nil
	}
	units := 0
	for _, r := range held.of {
		units += r.Cap()
	}
	logs, all := make(map[id][]int64, len(held.of)), make([]int64, 0, units)
	for of := range held.of {
		g, from := s.log(s.find(of)), len(all)
		all = g.AppendTo(all)
		logs[of] = all[from:len(all):len(all)]
	}
	return logs
}

// applyLog sets the counter with this id to what was kept of a rolling counter. l is the
// limit of its number, which may have no kind.
func (s *shard) applyLog(of id, from *Counter, l *rule.Limit, shapes *shapes, shift, now int64) error {
	t, n := int64(from.When&timeMask), int64(from.What)
	switch {
	case l.Kind != 0 && l.Kind != rule.Rolling, n < 1 || n > rule.MaxRolling || from.Split() != (from.Log != nil):
		return errCounter
	case from.Log != nil && (int64(len(from.Log)) != n || from.Log[0] < 0 || from.Log[n-1] != t || !slices.IsSorted(from.Log)):
		return errCounter
	}
	// Instants in the future are moved to now, as for other counters.
	move := func(instant int64) int64 { return min(max(0, instant+shift), now) }
	g := rule.Log{T: move(t), N: n}
	if from.Log != nil {
		moved := make([]int64, n)
		for i, instant := range from.Log {
			moved[i] = move(instant)
		}
		g = rule.LogOf(moved)
	}
	if c := s.find(of); c.group != nil {
		s.free(c)
	}
	if g.T+l.Window <= now { // it expired while there was no table
		return nil
	}
	as := of | shapes.of(l, 0)
	if l.Kind == 0 {
		as = of | shapes.class(l.Window)
	}
	s.putLog(place{}, as, []id{of}, shapes, &g, nil, from.When&(flagRefused|flagEmpty), now)
	return nil
}
