package table

import (
	"math/bits"
	"slices"
	"sync"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// shard is a part of the table under one lock: mu guards all other fields. All
// methods of shard require that mu is held, except expire, which takes it. This
// file has how counters are placed in hash buckets (groups) and how a shard
// grows and shrinks. Which counter is evicted is in evict.go.
type shard struct {
	mu     sync.Mutex
	now    int64
	groups []group // a counter is in one of the two that its id names, and may be moved between them
	used   int     // slots that are not free
	hand   int     // the next group that tidy checks for expired counters
	apart  *apart  // nil until a counter needs it

	decisions decisions
	blocks    int32 // places that hold a block: without any, nobody looks for one
	inserts   uint8
	wall      int64 // as of the last call; see Table.SetWall
	// Two shards' locks are never in one cache line, nor in the pair of it. On a 64-bit
	// machine the other fields have 128 bytes; on a 32-bit one, each of 8 words above has 4
	// bytes less.
	_ [8 * (64 - bits.UintSize) / 8]byte
	// max is the most slots that may be used; rings take of it. It is last because decisions
	// do not access it: the allocator may begin a block of shards 8 bytes after a cache line,
	// and then the last word of a shard is in the line of the next one's lock.
	max int
}

// apart is what some counters of a shard have beside their slots. Most shards have none,
// and then it takes no more than a pointer.
type apart struct {
	rest  map[id]int64 // B of the split counters that are no rolling windows
	rings *rings       // nil if there are none
	holds map[keyHash]rule.Holds
}

// rest returns the map of B, which may be nil.
func (s *shard) rest() map[id]int64 {
	if s.apart == nil {
		return nil
	}
	return s.apart.rest
}

// keepRest sets B of a split counter.
func (s *shard) keepRest(of id, b int64) {
	if s.apart == nil {
		s.apart = new(apart)
	}
	if s.apart.rest == nil {
		s.apart.rest = make(map[id]int64)
	}
	s.apart.rest[of.fingerprint()] = b
}

// pair returns the two groups of an id.
func (s *shard) pair(of id) (a, b int) {
	n := uint64(len(s.groups))
	of = of.fingerprint()
	// The high halves of products spread 32 bits evenly over any n.
	x, y := uint64(of)>>32*n>>32, uint64(uint32(of))*n>>32
	if x == y {
		if y++; y == n {
			y = 0
		}
	}
	return int(x), int(y)
}

// find returns the place of an id, or the zero place.
func (s *shard) find(of id) place {
	if len(s.groups) == 0 {
		return place{}
	}
	a, b := s.pair(of)
	p := s.groups[a].find(of)
	if p.group == nil {
		p = s.groups[b].find(of)
	}
	return p
}

// touch loads what find and read will most likely need for ids, all at once. Otherwise the
// processor waits for the memory of one counter before it asks for the memory of the next
// counter. The result means nothing, but the caller must store it: otherwise the compiler may
// leave the loads out.
func (s *shard) touch(ids []id) (x id) {
	if len(s.groups) == 0 {
		return 0
	}
	for _, of := range ids {
		a, b := s.pair(of)
		first := of.first() % groupSize
		x ^= s.groups[a].ids[first] ^ s.groups[b].ids[first] ^ id(s.groups[a].slots[first].when)
	}
	return x
}

// read returns the state at a place. For the zero place it returns the zero value, which is
// fresh.
func (s *shard) read(p place) packed {
	if p.group == nil {
		return packed{}
	}
	c := p.slot()
	if c.when&flagSplit != 0 {
		return s.readSplit(p)
	}
	return packed{when: c.when & timeMask, what: c.what}
}

// readSplit is read for a split slot. It is apart from it, and putRest from put, so that the
// usual case is short.
func (s *shard) readSplit(p place) packed {
	c := p.slot()
	return packed{c.when & (flagSplit | timeMask), c.what, s.rest()[p.id().fingerprint()]}
}

// get is read, unpacked.
func (s *shard) get(p place, l *rule.Limit) rule.State { return s.read(p).unpack(l, s.wall) }

// flags returns flagRefused and flagEmpty of the counter at a place. For the zero place
// it returns 0.
func (s *shard) flags(p place) uint64 {
	if p.group == nil {
		return 0
	}
	return p.slot().when & (flagRefused | flagEmpty)
}

// put writes a state that is not fresh to a place. as has the number of the limit's shape.
func (s *shard) put(p place, as id, x packed, flags uint64) {
	c := p.slot()
	was := c.when
	c.when, c.what = x.when|flags, x.what
	if *p.id() != as { // no write if it is the same: the cache line stays shared between cores
		*p.id() = as
	}
	if (was|x.when)&flagSplit != 0 {
		s.putRest(as, x)
	}
}

// putRest is the part of put for B of a split slot, or of one that was split before.
func (s *shard) putRest(as id, x packed) {
	if x.when&flagSplit != 0 {
		s.keepRest(as, x.rest)
	} else {
		delete(s.rest(), as.fingerprint())
	}
}

// free empties a place.
func (s *shard) free(p place) {
	if p.slot().when&flagSplit != 0 {
		delete(s.rest(), p.id().fingerprint())
		s.dropRing(p)
	}
	if p.id().isBlock() {
		s.blocks--
	}
	*p.id(), *p.slot() = 0, slot{}
	s.used--
}

// tidyEvery is the number of inserts for each group that tidy checks. So two slots
// are checked for each new counter, and the shard is checked completely before it
// has filled up again.
const tidyEvery = 4

// insert returns a place for an id that has none. It uses a free or expired slot,
// grows the shard, or evicts a counter. own lists ids that must not be evicted as
// long as there is another choice.
func (s *shard) insert(of id, own []id, shapes *shapes, now int64) place {
	if s.inserts++; s.inserts%tidyEvery == 0 {
		s.tidy(shapes, now)
	}
	if len(s.groups) == 0 {
		s.resize(1)
	}
	p := s.room(of, own, shapes, now)
	for p.group == nil {
		s.grow()
		p = s.room(of, own, shapes, now)
	}
	if *p.id() != 0 {
		s.free(p)
	}
	*p.id() = of
	s.used++
	return p
}

// vacant returns a free place for an id in the emptier of its two groups, or the zero
// place.
func (s *shard) vacant(of id, a, b int) place {
	if bits.OnesCount8(s.groups[b].free()) > bits.OnesCount8(s.groups[a].free()) {
		a = b
	}
	return s.groups[a].vacant(of)
}

// vacate frees a place in one of two full groups. It moves a counter to the other group
// of that counter. If that group is full too, it first moves a counter out of that
// group in the same way.
func (s *shard) vacate(a, b int) place {
	for moves := 1; moves <= 2; moves++ {
		for _, at := range [2]int{a, b} {
			if p := s.vacateOne(at, moves); p.group != nil {
				return p
			}
		}
	}
	return place{}
}

func (s *shard) vacateOne(at, moves int) place {
	for i := range uint(groupSize) {
		p := place{&s.groups[at], i}
		other := s.other(*p.id(), at)
		to := s.groups[other].vacant(*p.id())
		if to.group == nil && moves > 1 {
			to = s.vacateOne(other, moves-1)
		}
		if to.group != nil {
			to.move(p)
			return p
		}
	}
	return place{}
}

// other returns the one of an id's groups that is not at.
func (s *shard) other(of id, at int) int {
	a, b := s.pair(of)
	if a == at {
		return b
	}
	return a
}

// tidy frees the expired counters of one group. When it has gone through all
// groups, every counter that had expired before is freed, and the shard shrinks
// if few are left.
func (s *shard) tidy(shapes *shapes, now int64) {
	if s.hand >= len(s.groups) {
		s.hand = 0
		s.shrink()
	}
	if s.hand < len(s.groups) {
		s.freeExpired(s.hand, shapes, now)
		s.hand++
	}
}

// freeExpired frees the expired counters in one group.
func (s *shard) freeExpired(at int, shapes *shapes, now int64) {
	b := &s.groups[at]
	for i, id := range b.ids {
		if id != 0 && b.slots[i].fresh(shapes.limit(id), s.wall) <= now {
			s.free(place{b, uint(i)})
		}
	}
}

// shrink halves the shard if less than half of it is needed. It does not shrink
// further at once, because keys that are gone may come back. An empty shard releases
// all of its memory.
func (s *shard) shrink() {
	if s.used == 0 {
		s.groups, s.hand = nil, 0
	} else if half := (len(s.groups) + 1) / 2; groupsFor(s.used) < half {
		s.resize(half)
	}
}

// crowded reports whether the shard is so full that growing is cheaper than
// searching for room: filling the last few slots takes longer and longer.
func (s *shard) crowded() bool {
	slots := len(s.groups) * groupSize
	return s.used > slots-slots/32
}

// groupsFor returns how many groups n counters need. It allows for a seventh
// more slots than counters.
func groupsFor(n int) int { return (n+n/7)/groupSize + 1 }

// grow makes the shard a fifth larger, up to the size that its maximum needs. The
// step is small because memory that is reserved for later is in use, too.
func (s *shard) grow() {
	s.resize(min(larger(len(s.groups)), groupsFor(s.max)))
}

func larger(n int) int { return n + max(1, n/5) }

// resize moves all counters to n groups, or to more if one of them finds no
// place.
func (s *shard) resize(n int) {
	old := s.groups
	for {
		// The allocator rounds sizes up: use all of the memory that it returns.
		s.groups = slices.Grow([]group(nil), n)
		s.groups = s.groups[:cap(s.groups)]
		s.hand = 0
		if s.adopt(old) {
			return
		}
		n = larger(n)
	}
}

// adopt copies the counters of old into empty groups, and reports whether all of
// them found a place. A counter in its first old group goes to its first new group,
// and likewise for the second. Groups are in the order of the ids, so old and new
// groups are both accessed from one end to the other, and not at random.
func (s *shard) adopt(old []group) bool {
	before := shard{groups: old}
	for i := range old {
		for j, id := range old[i].ids {
			if id == 0 {
				continue
			}
			a, b := s.pair(id)
			if first, _ := before.pair(id); first != i {
				a, b = b, a
			}
			to := s.groups[a].vacant(id)
			if to.group == nil {
				to = s.groups[b].vacant(id)
			}
			if to.group == nil {
				to = s.vacate(a, b)
			}
			if to.group == nil {
				return false
			}
			*to.id(), *to.slot() = id, old[i].slots[j]
		}
	}
	return true
}
