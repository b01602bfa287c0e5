// Package table keeps counters in memory: a bounded, concurrent table from keys to
// states, in flat memory and without a goroutine of its own.
//
// The rest of the library uses only the exported methods, and does not depend
// on how the table stores its counters. The files:
//
//	table.go      the table and the methods that count
//	shards.go     the table's shards, which are made when they are first needed
//	shard.go      one shard: its groups, and how it grows and shrinks
//	slot.go       how one counter is packed
//	block.go      blocks, each in a place beside its counter's
//	calendar.go   counters of calendars, which go by the wall clock
//	rolling.go    counters of rolling windows, which have a ring of instants beside the slot
//	holds.go      holds of in-flight limits, which have no slots
//	evict.go      which counter is evicted when the table is full
//	decisions.go  counts of decisions
//	sweep.go      how expired counters are freed
//	hash.go       how keys are hashed, with siphash.go for a secret that outlives the process
//	shapes.go     the limits that slots refer to by number
//	remote.go     methods for package nearcache
//	snapshot.go   export and import of counters for package snapshot
package table

import (
	"sync"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// MaxLimits is the most limits that one call may have.
const MaxLimits = rule.MaxLimits

// Table holds a bounded number of counters: one for each key and each kind and
// window of limit that the key is used under. It is safe for concurrent use.
//
// A key is identified by its shard and a fingerprint of 58 bits. Both come from two
// 64-bit hashes under seeds that only the table knows. So a client can neither choose
// keys that collide nor fill one shard, and the length of a key does not matter. With
// n keys in s shards the probability that any two of them collide is n²/(s·2^59):
// 7e-9 for a million keys in 256 shards, 9e-8 for ten million in 2,048.
type Table struct {
	clock  func() int64
	secret secret  // used if kept is nil
	kept   *Secret // a secret that outlives the process; see NewKept
	shards shards
	sweep  sweep
	shapes shapes
	wall   atomic.Int64 // see SetWall
}

// perShard is roughly the largest number of counters in a shard. It is small
// because a shard grows in one step, and a caller waits for that.
const perShard = 4096

// New returns a table of at most max counters; max must be at least 1. The clock
// returns nanoseconds, which are never negative and never run backwards.
func New(max int, clock func() int64) *Table {
	return newTable(max, shardsFor(max), clock)
}

// shardsFor returns how many shards a table of max counters has.
func shardsFor(max int) int {
	n := 1
	for n < MaxShards && 2*n*perShard <= max {
		n *= 2
	}
	return n
}

// newTable returns a table of n shards for max counters; n must be a power of two.
func newTable(max, n int, clock func() int64) *Table {
	t := &Table{clock: clock, secret: newSecret(), shards: newShards(max, n)}
	steps := n * (1 + groupsFor(t.shards.share(0))/sweepGroups)
	t.sweep.every = sweepRound / int64(steps)
	return t
}

// TakeOne takes n units of key under one limit, whose number in [Policies] is policy.
// It is Take without the work that several limits need, because most limiters have one
// limit. It starts no block.
// blocked is whether the counter is blocked.
//
// TakeOne returns with the shard locked: the caller must unlock held once it has copied
// the answer. Copying it after the unlock is 4 ns slower. The answer has just been
// written in parts, and the CPU cannot read it as a whole before the writes have reached
// the cache. The unlock waits for them anyway.
func (t *Table) TakeOne(key string, n int64, l *rule.Limit, policy uint8) (a rule.Answer, now int64, blocked bool, held *sync.Mutex) {
	h := t.hash(key)
	if l.Kind == rule.Rolling {
		return t.takeOneRolling(h, n, l, policy)
	}
	of := h.id(l)
	s, now := t.lock(h)
	if s.blocks != 0 && s.block(of).Left(now) > 0 {
		return t.takeOneBlocked(s, of, n, now, l, policy), now, true, &s.mu
	}
	c := s.find(of)
	before := s.read(c)
	after, a := before.take(l, now, n, s.wall)
	switch {
	case n == 0:
	case a.Retry == 0:
		s.decisions.allow(n, l.IsNear(a.Remaining))
	default:
		s.decisions.deny(n, policy)
	}
	if n > 0 && !after.fresh() {
		likely := id(0)
		if c.group == nil {
			c = s.insert(of, nil, &t.shapes, now)
		} else {
			likely = *c.id()
		}
		flags := flags(a)
		if a.Retry != 0 {
			flags |= c.slot().when & flagRefused
		}
		if flags != 0 || after != before {
			s.put(c, of|t.shapes.of(l, likely), after, flags)
		}
	}
	return a, now, false, &s.mu
}

// Take takes n units of key under every limit, or under none, in one step. It fills
// answers, which must be as long as limits, and returns the instant of the decision.
// It locks the key's shard.
//
// A call with n = 0 is a look and writes nothing. It neither creates a counter nor
// removes a counter's protection from eviction.
func (t *Table) Take(key string, n int64, limits []rule.Limit, answers []rule.Answer, policies *Policies) (at int64, marks Marks) {
	h := t.hash(key)
	d := decision{policies: policies}
	h.fill(&d.ids, limits)
	s, now := t.lock(h)
	defer s.mu.Unlock()
	now = inPeriods(now, limits)
	d.take(s, &t.shapes, n, n, now, limits, answers)
	return now, d.marks
}

// TakeAt is Take for a key that has been hashed, at an instant that the caller has read from
// its own clock. If the shard has already seen a later instant, that one is used. TakeAt
// returns the instant used, and whether the units were admitted. If after is not nil, it must
// be as long as limits, and is filled with the states after the call. It locks the key's
// shard.
func (t *Table) TakeAt(h Hash, n, now int64, limits []rule.Limit, answers []rule.Answer, after []rule.State) (admitted bool, at int64) {
	var d decision
	h.fill(&d.ids, limits)
	s, now := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	now = inPeriods(now, limits)
	admitted = d.take(s, &t.shapes, n, n, now, limits, answers)
	d.states(s, limits, after)
	return admitted, now
}

// decision holds the intermediate results of a Take under several limits.
type decision struct {
	policies      *Policies
	blocking      *Blocking
	marks         Marks
	full          bool // there is no room for the hold of the call, so its units do not fit
	touched       id   // see shard.touch
	ids           [MaxLimits]id
	places        [MaxLimits]place // not of rolling windows
	before, after [MaxLimits]packed
}

// states fills states, which may be nil, with the states after a call. A rolling window has
// none.
func (d *decision) states(s *shard, limits []rule.Limit, states []rule.State) {
	for i := range states {
		states[i] = d.after[i].unpack(&limits[i], s.wall)
	}
}

// fitting returns how many of n > 0 units fit without a block, and at least 1.
func (d *decision) fitting(s *shard, n, now int64, limits []rule.Limit) int64 {
	for i := range limits {
		n = min(n, s.ask(d.ids[i], &limits[i], s.read(s.find(d.ids[i])), now, 0).Remaining)
	}
	return max(n, 1)
}

// take is Take in a shard that is locked. d.ids must be filled in. A denial is counted
// as one of the units asked for.
func (d *decision) take(s *shard, shapes *shapes, n, asked, now int64, limits []rule.Limit, answers []rule.Answer) (admitted bool) {
	admitted = !d.full
	d.touched = s.touch(d.ids[:len(limits)])
	for i := range limits {
		if limits[i].Kind == rule.Rolling { // it has no states
			answers[i] = s.askRolling(d.ids[i], &limits[i], n, now)
		} else {
			d.places[i] = s.find(d.ids[i])
			d.before[i] = s.read(d.places[i])
			d.after[i], answers[i] = d.before[i].take(&limits[i], now, n, s.wall)
		}
		admitted = admitted && answers[i].Retry == 0
	}
	if s.blocks != 0 {
		d.marks.Blocked = s.denyBlocked(d.ids[:len(limits)], d.before[:], n, now, limits, answers)
		if d.marks.Blocked != 0 {
			d.after = d.before
			s.decisions.decided(asked, false, limits, answers, d.policies)
			return n == 0
		}
	}
	if n == 0 {
		return true
	}
	if admitted {
		asked = n
	}
	d.settle(s, shapes, n, now, limits, answers, admitted)
	if !admitted && d.blocking != nil {
		d.startBlocks(s, shapes, n, now, limits, answers)
	}
	s.decisions.decided(asked, admitted, limits, answers, d.policies)
	return admitted
}

// settle writes what has been decided about n > 0 units. If they are denied, it also
// corrects the answers of the limits under which they would fit.
func (d *decision) settle(s *shard, shapes *shapes, n, now int64, limits []rule.Limit, answers []rule.Answer, admitted bool) {
	moved := false // places may have been evicted or used for other counters
	for i := range limits {
		l := &limits[i]
		if l.Kind == rule.Rolling {
			if !admitted && answers[i].Retry == 0 {
				answers[i] = s.askRolling(d.ids[i], l, 0, now)
			}
			s.settleRolling(d.ids[i], d.ids[:len(limits)], shapes, l, n, now, answers[i], admitted)
			moved = true
			continue
		}
		if !admitted && answers[i].Retry == 0 {
			d.after[i], answers[i] = d.before[i].take(l, now, 0, s.wall)
		}
		if d.after[i].fresh() {
			continue
		}
		c := d.places[i]
		if moved {
			c = s.find(d.ids[i])
		}
		s.settle(c, d.ids[i], d.ids[:len(limits)], shapes, l, d.before[i], d.after[i], answers[i], admitted, now)
		moved = moved || c.group == nil
	}
}

// settle writes what has been decided about units under one limit to the counter at c, which
// is created if there is none. after must not be fresh.
func (s *shard) settle(c place, of id, own []id, shapes *shapes, l *rule.Limit, before, after packed, a rule.Answer, admitted bool, now int64) {
	flags := flags(a)
	if !admitted {
		// A denial changes no units, so a key that was refused before still counts as
		// refused. This also holds if another limit denied it this time, or if its
		// cost can never fit.
		flags |= s.flags(c) & flagRefused
	}
	if flags != 0 || after != before {
		s.write(c, of, own, shapes, l, after, flags, now)
	}
}

// Adjust changes the counters of key by n units that were taken at an instant, as
// [rule.Limit.Adjust] does, under every limit in one step. It returns how many of
// the units it has charged under every limit. It locks the key's shard.
func (t *Table) Adjust(key string, n, at int64, limits []rule.Limit) (charged int64) {
	h := t.hash(key)
	var room [MaxLimits]id
	ids := h.fill(&room, limits)
	s, now := t.lock(h)
	defer s.mu.Unlock()
	return s.adjust(ids, &t.shapes, n, at, now, limits, nil)
}

// A Move is the change that [Table.AdjustAt] has made under one limit.
type Move struct {
	// Units is how many units the counter has changed by, and negative if units were
	// given back. Only buckets change by fractions of a unit, and these are rounded
	// up: a charged fraction counts as a unit, and a fraction given back counts as
	// none.
	Units int64
	After rule.State // not of a rolling window

	// Oldest is the instant of the oldest unit that a rolling window has charged or given
	// back.
	Oldest int64
}

// AdjustAt is Adjust for a key that has been hashed, at an instant that the caller has
// read from its own clock, as for [Table.TakeAt]. It also returns the instant used. It
// fills moves, which must be as long as limits, with the change under each limit: if
// one limit is full, the units may still have been charged under the others. It locks
// the key's shard.
func (t *Table) AdjustAt(h Hash, n, at, now int64, limits []rule.Limit, moves []Move) (charged, used int64) {
	var room [MaxLimits]id
	ids := h.fill(&room, limits)
	s, now := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	return s.adjust(ids, &t.shapes, n, at, now, limits, moves), now
}

// adjust is Adjust in a shard that is locked.
func (s *shard) adjust(ids []id, shapes *shapes, n, at, now int64, limits []rule.Limit, moves []Move) (charged int64) {
	age := now - max(0, min(at, now))
	charged = max(0, n)
	for i := range limits {
		l := &limits[i]
		if l.Kind == rule.Rolling {
			units, oldest := s.adjustRolling(ids[i], ids, shapes, l, n, at, now)
			charged = min(charged, units)
			if moves != nil {
				moves[i] = Move{Units: units, Oldest: oldest}
				if n < 0 {
					moves[i].Units = -units
				}
			}
			continue
		}
		c := s.find(ids[i])
		before := s.get(c, l)
		after := l.Adjust(before, now, n, age)
		charged = min(charged, l.Charged(before, after, now))
		if moves != nil {
			moves[i] = Move{Units: moved(l, before, after, now, n), After: after}
		}
		switch {
		case after == before:
			// Nothing has moved, so the counter keeps its flags, too.
		case after.Fresh():
			s.free(c)
		default:
			_, was := l.Take(before, now, 0)
			_, is := l.Take(after, now, 0)
			s.write(c, ids[i], ids, shapes, l, pack(l, after, s.wall), flags(is)|s.refusedStill(c, was, is), now)
		}
	}
	return charged
}

// moved returns how many units, rounded up, an Adjust by n has changed a
// counter by.
func moved(l *rule.Limit, before, after rule.State, now, n int64) int64 {
	if n < 0 {
		return -l.Charged(after, before, now)
	}
	units := l.Charged(before, after, now)
	if l.Kind == rule.Bucket && units < n {
		// Less than a unit is charged only if the bucket became full. The Take
		// brings the state before to now; how many units it takes does not matter.
		whole := *l
		whole.Burst = rule.MaxUnits
		if before, _ = whole.Take(before, now, 1); before.B != after.B {
			units++
		}
	}
	return units
}

// refusedStill returns flagRefused if the counter at c has it and no more units are
// left than before. A counter that has been whole in the meantime loses the flag.
func (s *shard) refusedStill(c place, was, is rule.Answer) uint64 {
	if was.Reset == 0 || is.Remaining > was.Remaining {
		return 0
	}
	return s.flags(c) & flagRefused
}

// Reset deletes the counters of key under every limit, and their blocks. The number of
// limits may be larger than [MaxLimits]. It locks the key's shard.
func (t *Table) Reset(key string, limits []rule.Limit) {
	h := t.hash(key)
	s, _ := t.lock(h)
	defer s.mu.Unlock()
	s.forget(h, limits)
}

// forget is Reset in a shard that is locked.
func (s *shard) forget(h keyHash, limits []rule.Limit) {
	for i := range limits {
		of := h.id(&limits[i])
		if c := s.find(of); c.group != nil {
			s.free(c)
		}
		s.unblock(of)
	}
}

// Stats are counts over the table's life, and how full it is now.
type Stats struct {
	Counters      int    // held now, including expired ones that are not freed yet
	Evicted       uint64 // pushed out while they still counted something
	EvictedDenied uint64 // evicted counters that had no unit left
}

// Stats adds up the shards. It locks one shard at a time, so each is counted at
// its own instant.
func (t *Table) Stats() Stats {
	sum, _ := t.Counts()
	return sum
}

// Counts is Stats with the counts of decisions. A decision is in all of them or in
// none. Counts does not look at shards that were never used: in a process with many
// tables, most of its time is spent on cache lines that it has to fetch.
func (t *Table) Counts() (sum Stats, decisions Decisions) {
	for s := range t.shards.used {
		s.mu.Lock()
		sum.Counters += s.used
		if r := s.decisions.rare; r != nil {
			sum.Evicted += r.evicted
			sum.EvictedDenied += r.evictedDenied
		}
		decisions.add(&s.decisions)
		s.mu.Unlock()
	}
	return sum, decisions
}

// write puts a state that is not fresh into the counter at c, which is created if c is the
// zero place.
func (s *shard) write(c place, of id, own []id, shapes *shapes, l *rule.Limit, x packed, flags uint64, now int64) {
	likely := id(0)
	if c.group == nil {
		c = s.insert(of, own, shapes, now)
	} else {
		likely = *c.id()
	}
	s.put(c, of|shapes.of(l, likely), x, flags)
}

// lock locks the shard of a key and reads the clock. It reads the clock before it
// takes the lock, so that the lock is held for a shorter time. If another caller
// with a later instant got the lock first, it reads the clock again. Before it takes
// the lock, lock may free some expired counters; see sweep.go.
//
// If the clock is still behind, it is a different clock: for example, a test
// runs in its own bubble of testing/synctest. Counters then do not age until
// that clock reaches their instants. If they are more than a window ahead, they
// start from the new clock; see [rule.Limit.Take].
func (t *Table) lock(h keyHash) (s *shard, now int64) {
	if s = t.shards.made(h.shard); s == nil {
		s = t.shards.make(h.shard)
	}
	now = t.clock()
	if now >= t.sweep.due.Load() {
		t.sweepSome(now)
	}
	s.mu.Lock()
	if s.now == 0 {
		t.shards.use(h.shard)
	}
	if now < s.now {
		now = t.clock()
	}
	s.now = now
	s.wall = t.wall.Load()
	return s, now
}

// maxBehind is how far an instant may be behind its shard's last one, in nanoseconds. A
// caller may have waited for a store after it read the clock. An instant that is
// further behind belongs to another clock; see [Table.lock].
const maxBehind = 3600 * 1_000_000_000

// lockAt is lock for an instant that the caller has read. If the shard's last
// instant is later, lockAt returns that one, so time never runs backwards for a
// key.
func (t *Table) lockAt(h keyHash, now int64) (*shard, int64) {
	s := t.shards.made(h.shard)
	if s == nil {
		s = t.shards.make(h.shard)
	}
	if now >= t.sweep.due.Load() {
		t.sweepSome(now)
	}
	s.mu.Lock()
	if s.now == 0 {
		t.shards.use(h.shard)
	}
	if s.now-now > maxBehind {
		s.now = now
	}
	s.now = max(s.now, now)
	s.wall = t.wall.Load()
	return s, s.now
}
