// Package table keeps counters in memory: a bounded, concurrent table from keys to
// states, in flat memory and without a goroutine of its own.
//
// The exported methods are the seam to the rest of the library, which knows
// nothing of what is behind them.
package table

import (
	"sync"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// MaxLimits is the most limits that one call may have.
const MaxLimits = rule.MaxLimits

// Table holds at most a fixed number of counters, one for each key and each kind
// and window of limit that it is under. It is safe for concurrent use.
//
// A key is known by its shard and a fingerprint of 58 bits, of two 64-bit hashes
// under seeds that are the table's secret: what a client sends can neither be chosen
// to meet another key, nor to fill one shard, nor does its length matter. With n keys
// in s shards the chance that any two of them meet is n²/(s·2^59): 7e-9 for a million
// in 256 shards, 9e-8 for ten million in 2,048.
type Table struct {
	clock  func() int64
	secret secret  // unless kept is set
	kept   *Secret // one that outlives the process
	shards []shard
	sweep  sweep
	shapes shapes
}

// perShard is how many counters a shard holds at most, about: few, because a shard
// grows in one go, and a caller waits for that.
const perShard = 4096

// MaxShards is how many shards a table has at most.
const MaxShards = 1 << 16

// New returns a table of at most max counters; max is at least 1. The clock tells
// nanoseconds, is not negative and never runs backwards.
func New(max int, clock func() int64) *Table {
	n := 1
	for n < MaxShards && 2*n*perShard <= max {
		n *= 2
	}
	t := &Table{clock: clock, secret: newSecret()}
	t.divide(max, n)
	return t
}

// divide makes n empty shards for max counters.
func (t *Table) divide(max, n int) {
	t.shards = make([]shard, n)
	for i := range t.shards {
		t.shards[i].max = max / n
		if i < max%n {
			t.shards[i].max++
		}
	}
	steps := n * (1 + groupsFor(t.shards[0].max)/sweepGroups)
	t.sweep.every = sweepRound / int64(steps)
}

// TakeOne takes n units of key under one limit. It is Take, without all that several
// limits need: most limiters have one.
//
// A lock is still held, for the caller to unlock as soon as the answer is where it is
// to be. Whoever copies it from there would else wait 4 ns: what has just been written
// in parts is not read as a whole before it is in the cache, and an unlock sees to that.
func (t *Table) TakeOne(key string, n int64, l *rule.Limit) (a rule.Answer, now int64, held *sync.Mutex) {
	h := t.hash(key)
	of := h.id(l)
	shape := t.shapes.of(l)
	s, now := t.lock(h)
	c := s.find(of)
	before := s.get(c, l)
	after, a := l.Take(before, now, n)
	s.decided(n, a.Retry == 0)
	if n > 0 && (c.group != nil || !after.Fresh()) {
		if c.group == nil {
			c = s.insert(of, nil, &t.shapes, now)
		}
		flags := flags(a)
		if a.Retry != 0 {
			flags |= c.slot().when & flagRefused
		}
		if flags != 0 || after != before {
			s.put(c, of|shape, l, after, flags)
		}
	}
	return a, now, &s.mu
}

// Take takes n units of key under every limit, or under none, in one step. It fills
// answers, which must be as long as limits, and returns the instant of the decision.
//
// A call with n of 0 is a look: it writes nothing, so it neither makes a counter nor
// takes its protection from eviction away.
func (t *Table) Take(key string, n int64, limits []rule.Limit, answers []rule.Answer) (at int64) {
	h := t.hash(key)
	var d decision
	h.fill(&d.ids, limits)
	s, now := t.lock(h)
	defer s.mu.Unlock()
	d.take(s, &t.shapes, n, now, limits, answers)
	return now
}

// TakeAt is Take for a key that has been hashed, at an instant that the caller has
// read off its own clock. If the shard has seen a later one, that one is used. TakeAt returns
// the instant used, and whether the units were admitted. If after is not nil, it must
// be as long as limits, and is filled with the states after the call.
func (t *Table) TakeAt(h Hash, n, now int64, limits []rule.Limit, answers []rule.Answer, after []rule.State) (admitted bool, at int64) {
	var d decision
	h.fill(&d.ids, limits)
	s, now := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	admitted = d.take(s, &t.shapes, n, now, limits, answers)
	copy(after, d.after[:len(limits)])
	return admitted, now
}

// TakeUpToAt is TakeAt for as many of n > 0 units as fit. It returns how many were
// taken; if none fits, the answers are for a denial of one unit.
func (t *Table) TakeUpToAt(h Hash, n, now int64, limits []rule.Limit, answers []rule.Answer, after []rule.State) (taken, at int64) {
	var d decision
	h.fill(&d.ids, limits)
	s, now := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	for i := range limits {
		_, a := limits[i].Take(s.get(s.find(d.ids[i]), &limits[i]), now, 0)
		n = min(n, a.Remaining)
	}
	n = max(n, 1)
	admitted := d.take(s, &t.shapes, n, now, limits, answers)
	copy(after, d.after[:len(limits)])
	if !admitted {
		n = 0
	}
	return n, now
}

// decision is what a Take under several limits works with.
type decision struct {
	ids           [MaxLimits]id
	before, after [MaxLimits]rule.State
}

// take is Take in a shard that is locked, with the ids filled in.
func (d *decision) take(s *shard, shapes *shapes, n, now int64, limits []rule.Limit, answers []rule.Answer) (admitted bool) {
	admitted = true
	for i := range limits {
		d.before[i] = s.get(s.find(d.ids[i]), &limits[i])
		d.after[i], answers[i] = limits[i].Take(d.before[i], now, n)
		admitted = admitted && answers[i].Retry == 0
	}
	if n == 0 {
		return true
	}
	s.decided(n, admitted)
	for i := range limits {
		l := &limits[i]
		if !admitted && answers[i].Retry == 0 {
			d.after[i], answers[i] = l.Take(d.before[i], now, 0)
		}
		if d.after[i].Fresh() {
			continue
		}
		flags := flags(answers[i])
		if !admitted {
			// A denial changes nothing, so a key that was refused before still is: also if
			// this time another limit has denied it, or for a cost that can never fit.
			flags |= s.flags(s.find(d.ids[i])) & flagRefused
		}
		if flags != 0 || d.after[i] != d.before[i] {
			s.write(d.ids[i], d.ids[:len(limits)], shapes, l, d.after[i], flags, now)
		}
	}
	return admitted
}

// Adjust moves what is counted for key by n units that were taken at an instant,
// as [rule.Limit.Adjust] does, under every limit in one step. It returns how many
// of them it has charged under every limit.
func (t *Table) Adjust(key string, n, at int64, limits []rule.Limit) (charged int64) {
	h := t.hash(key)
	var room [MaxLimits]id
	ids := h.fill(&room, limits)
	s, now := t.lock(h)
	defer s.mu.Unlock()
	return s.adjust(ids, &t.shapes, n, at, now, limits, nil)
}

// A Move is what [Table.AdjustAt] has done under one limit.
type Move struct {
	// Units is how many units the counter has moved by: negative if they were given
	// back. A part of a unit, which only buckets have, is rounded up: a part that was
	// charged is a unit, and a part that was given back is none.
	Units int64
	After rule.State
}

// AdjustAt is Adjust for a key that has been hashed, at an instant that the caller has
// read off its own clock, as for [Table.TakeAt]. It returns also the instant used. It
// fills moves, which must be as long as limits, with what was done under each of
// them: an n that a full limit has no room for may have been charged under the others.
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
		c := s.find(ids[i])
		before := s.get(c, l)
		after := l.Adjust(before, now, n, age)
		charged = min(charged, l.Charged(before, after, now))
		if moves != nil {
			moves[i] = Move{moved(l, before, after, now, n), after}
		}
		switch {
		case after == before:
			// Nothing has moved, so the counter keeps its flags, too.
		case after.Fresh():
			s.free(c)
		default:
			_, was := l.Take(before, now, 0)
			_, is := l.Take(after, now, 0)
			s.write(ids[i], ids, shapes, l, after, flags(is)|s.refusedStill(c, was, is), now)
		}
	}
	return charged
}

// moved is how many units, rounded up, an Adjust by n has moved a counter by.
func moved(l *rule.Limit, before, after rule.State, now, n int64) int64 {
	if n < 0 {
		return -l.Charged(after, before, now)
	}
	units := l.Charged(before, after, now)
	if l.Kind == rule.Bucket && units < n {
		// Only at the brim is less than a unit charged. A Take brings the state of
		// before to now, whatever it takes.
		whole := *l
		whole.Burst = rule.MaxUnits
		if before, _ = whole.Take(before, now, 1); before.B != after.B {
			units++
		}
	}
	return units
}

// refusedStill returns flagRefused if the counter at c has it, and not more is left
// than when it got it: a counter that has become whole was refused in another life.
func (s *shard) refusedStill(c place, was, is rule.Answer) uint64 {
	if was.Reset == 0 || is.Remaining > was.Remaining {
		return 0
	}
	return s.flags(c) & flagRefused
}

// Reset forgets what is counted for key under every limit. The number of limits may be
// larger than [MaxLimits].
func (t *Table) Reset(key string, limits []rule.Limit) {
	h := t.hash(key)
	s, _ := t.lock(h)
	defer s.mu.Unlock()
	s.forget(h, limits)
}

// forget is Reset in a shard that is locked.
func (s *shard) forget(h keyHash, limits []rule.Limit) {
	for i := range limits {
		if c := s.find(h.id(&limits[i])); c.group != nil {
			s.free(c)
		}
	}
}

// Stats are counts over the table's life, and how full it is now.
type Stats struct {
	Counters      int    // held now, among them expired ones that nothing has met yet
	Evicted       uint64 // pushed out while they still counted something
	EvictedDenied uint64 // evicted counters that had no unit left
}

// Stats adds up the shards, each at its own instant.
func (t *Table) Stats() Stats {
	var sum Stats
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		sum.Counters += s.used
		sum.Evicted += s.evicted
		sum.EvictedDenied += s.evictedDenied
		s.mu.Unlock()
	}
	return sum
}

// Decisions returns how many decisions about at least one unit were made, by whether
// they admitted the units.
func (t *Table) Decisions() (allowed, denied uint64) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		allowed += s.allowed
		denied += s.denied
		s.mu.Unlock()
	}
	return allowed, denied
}

// write puts a state into the slot of an id, which it makes if there is none.
func (s *shard) write(of id, own []id, shapes *shapes, l *rule.Limit, state rule.State, flags uint64, now int64) {
	c := s.find(of)
	if c.group == nil {
		c = s.insert(of, own, shapes, now)
	}
	s.put(c, of|shapes.of(l), l, state, flags)
}

// lock locks the shard of a key and reads the clock. That is done before the lock
// is held, to hold it the shorter, and again where another was first and later.
// Before that, expired counters elsewhere are forgotten if it is time, see sweep.go.
//
// A clock that is behind even then is another clock: a test's, in a bubble of
// testing/synctest of its own. Counters stand still until it comes to where they
// are, or start from it where that is too far (see [rule.Limit.Take]).
func (t *Table) lock(h keyHash) (s *shard, now int64) {
	s = &t.shards[h.shard&uint64(len(t.shards)-1)]
	now = t.clock()
	if now >= t.sweep.due.Load() {
		t.sweepSome(now)
	}
	s.mu.Lock()
	if now < s.now {
		now = t.clock()
	}
	s.now = now
	return s, now
}

// maxLate is how far an instant may be behind its shard's last one: a caller may have
// waited for a store after it read the clock. An instant that is further behind is
// another clock's, see [Table.lock].
const maxLate = 3600 * 1_000_000_000

// lockAt is lock at an instant that the caller has read, or at the shard's last one
// if that is later: so time does not run back for a key.
func (t *Table) lockAt(h keyHash, now int64) (*shard, int64) {
	s := &t.shards[h.shard&uint64(len(t.shards)-1)]
	if now >= t.sweep.due.Load() {
		t.sweepSome(now)
	}
	s.mu.Lock()
	if s.now-now > maxLate {
		s.now = now
	}
	s.now = max(s.now, now)
	return s, s.now
}
