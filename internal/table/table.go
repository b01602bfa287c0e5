// Package table keeps counters in memory: a bounded, concurrent table from keys to
// states, in flat memory and without a goroutine of its own.
//
// The exported methods are the seam to the rest of the library, which knows
// nothing of what is behind them.
package table

import (
	"sync"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// MaxLimits is the most limits that one call may have.
const MaxLimits = 8

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
	if c.group != nil || !after.Fresh() {
		if c.group == nil {
			c = s.insert(of, nil, &t.shapes, now)
		}
		if flags := flags(a); flags != 0 || after != before {
			s.put(c, of|shape, l, after, flags)
		}
	}
	return a, now, &s.mu
}

// Take takes n units of key under every limit, or under none, in one step, and
// fills answers, which is as long as limits. It returns the instant of the decision.
func (t *Table) Take(key string, n int64, limits []rule.Limit, answers []rule.Answer) int64 {
	h := t.hash(key)
	var ids [MaxLimits]id
	for i := range limits {
		ids[i] = h.id(&limits[i])
	}
	s, now := t.lock(h)
	defer s.mu.Unlock()

	var before, after [MaxLimits]rule.State
	admitted := true
	for i := range limits {
		before[i] = s.get(s.find(ids[i]), &limits[i])
		after[i], answers[i] = limits[i].Take(before[i], now, n)
		admitted = admitted && answers[i].Retry == 0
	}
	for i := range limits {
		l := &limits[i]
		if !admitted && answers[i].Retry == 0 {
			after[i], answers[i] = l.Take(before[i], now, 0)
		}
		if !after[i].Fresh() && (after[i] != before[i] || flags(answers[i]) != 0) {
			s.write(ids[i], ids[:len(limits)], &t.shapes, l, after[i], answers[i], now)
		}
	}
	return now
}

// Adjust moves what is counted for key by n units that were taken at an instant,
// as [rule.Limit.Adjust] does, under every limit in one step. It returns how many
// of them it has charged under every limit.
func (t *Table) Adjust(key string, n, at int64, limits []rule.Limit) (charged int64) {
	h := t.hash(key)
	ids := make([]id, len(limits))
	for i := range limits {
		ids[i] = h.id(&limits[i])
	}
	s, now := t.lock(h)
	defer s.mu.Unlock()
	charged = max(0, n)
	for i := range limits {
		l := &limits[i]
		c := s.find(ids[i])
		before := s.get(c, l)
		after := l.Adjust(before, now, n, now-max(0, min(at, now)))
		charged = min(charged, l.Charged(before, after, now))
		if !after.Fresh() {
			_, answer := l.Take(after, now, 0)
			s.write(ids[i], ids, &t.shapes, l, after, answer, now)
		} else if c.group != nil {
			s.free(c)
		}
	}
	return charged
}

// Reset forgets what is counted for key under every limit.
func (t *Table) Reset(key string, limits []rule.Limit) {
	h := t.hash(key)
	s, _ := t.lock(h)
	defer s.mu.Unlock()
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
	EvictedDenied uint64 // those of them that had no unit left
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

// write puts a state into the slot of an id, which it makes if there is none.
func (s *shard) write(of id, own []id, shapes *shapes, l *rule.Limit, state rule.State, a rule.Answer, now int64) {
	c := s.find(of)
	if c.group == nil {
		c = s.insert(of, own, shapes, now)
	}
	s.put(c, of|shapes.of(l), l, state, flags(a))
}

// lock locks the shard of a key and reads the clock. That is done before the lock
// is held, to hold it the shorter, and again where another was first and later.
//
// A clock that is behind even then is another clock: a test's, in a bubble of
// testing/synctest of its own. Counters stand still until it comes to where they
// are, or start from it where that is too far (see [rule.Limit.Take]).
func (t *Table) lock(h keyHash) (s *shard, now int64) {
	s = &t.shards[h.shard&uint64(len(t.shards)-1)]
	now = t.clock()
	s.mu.Lock()
	if now < s.now {
		now = t.clock()
	}
	s.now = now
	return s, now
}

// shapes numbers the limits that a table has seen, as far as it matters to when a
// counter expires: by kind, window and, of buckets, rate. Limiters have a few. From
// the 64th on they are all number 0, and thought to live as long as the longest of them.
type shapes struct {
	known  [maxShapes]atomic.Pointer[rule.Limit]
	others atomic.Int64 // the longest life of a counter of a shape without a number
}

// of returns the number of a limit's shape.
func (s *shapes) of(l *rule.Limit) id {
	for i := 1; i < maxShapes; i++ {
		known := s.known[i].Load()
		if known == nil {
			copied := *l
			if s.known[i].CompareAndSwap(nil, &copied) {
				return id(i)
			}
			known = s.known[i].Load()
		}
		if known.Kind == l.Kind && known.Window == l.Window && (known.N == l.N || l.Kind != rule.Bucket) {
			return id(i)
		}
	}
	life := 2 * l.Window
	if l.Kind == rule.Bucket {
		life = l.Refill()
	}
	for longest := s.others.Load(); life > longest && !s.others.CompareAndSwap(longest, life); {
		longest = s.others.Load()
	}
	return 0
}

// limit returns the limit of a slot's shape, or one that has no kind and the longest
// life of those without a number.
func (s *shapes) limit(of id) *rule.Limit {
	if l := s.known[of&(maxShapes-1)].Load(); l != nil {
		return l
	}
	return &rule.Limit{Window: s.others.Load(), N: 1}
}
