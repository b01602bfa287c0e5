// Package table keeps counters in memory: a bounded, concurrent table from
// hashed keys to states, without a goroutine of its own.
//
// The exported methods are the seam to the rest of the library, which knows
// nothing of what is behind them.
package table

import (
	"hash/maphash"
	"math"
	"runtime"
	"sync"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// MaxLimits is the most limits that one call may have.
const MaxLimits = 8

// Table holds at most a fixed number of counters, one for each key and each kind
// and window of limit that it is under. It is safe for concurrent use.
//
// A key is known by a 128-bit hash under seeds that are the table's secret: a
// counter's size does not depend on what a client sends, and a client cannot choose
// keys that meet. The chance that any two of a million do is 1e12 / 2^129, 1.5e-27.
type Table struct {
	clock  func() int64
	seeds  [2]maphash.Seed
	shards []shard
}

type keyHash [2]uint64

// counterID is a counter's identity within the table: the hash of its key, with the
// kind and window of its limit folded in. Those fill 62 bits at most and are not
// hashed, so that the counters of one key never meet.
type counterID [2]uint64

func (h keyHash) of(l rule.Limit) counterID {
	return counterID{h[0], h[1] ^ (uint64(l.Window)<<2 | uint64(l.Kind))}
}

// minPerShard keeps the shards of a small table few, so that it can be filled
// nearly to its maximum: at 1,024 counters a shard, the fullest of 64 stands
// about 8 % above the mean.
const minPerShard = 1024

// New returns a table of at most max counters; max is at least 1. The clock tells
// nanoseconds and never runs backwards.
func New(max int, clock func() int64) *Table {
	n := 1 // shards: a power of two, and so many that two processors seldom meet in one
	for n < 16*runtime.GOMAXPROCS(0) && 2*n*minPerShard <= max {
		n *= 2
	}
	t := &Table{
		clock:  clock,
		seeds:  [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		shards: make([]shard, n),
	}
	for i := range t.shards {
		s := &t.shards[i]
		s.counters = make(map[counterID]*counter)
		s.max = max / n
		if i < max%n {
			s.max++
		}
	}
	return t
}

// TakeOne takes n units of key under one limit. It is Take, without all that several
// limits need: most limiters have one.
func (t *Table) TakeOne(key string, n int64, l rule.Limit) (rule.Answer, int64) {
	h := t.hash(key)
	s, now := t.lock(h)
	defer s.mu.Unlock()
	id := h.of(l)
	c := s.counters[id]
	var state rule.State
	if c != nil {
		state = c.state
	}
	state, answer := l.Take(state, now, n)
	if c == nil && !state.Fresh() {
		c = s.insert(id, now)
	}
	if c != nil {
		s.set(c, state, answer, now)
	}
	return answer, now
}

// Take takes n units of key under every limit, or under none, in one step, and
// fills answers, which is as long as limits. It returns the instant of the decision.
func (t *Table) Take(key string, n int64, limits []rule.Limit, answers []rule.Answer) int64 {
	h := t.hash(key)
	s, now := t.lock(h)
	defer s.mu.Unlock()

	var found [MaxLimits]*counter
	var before, after [MaxLimits]rule.State
	admitted := true
	for i, l := range limits {
		if found[i] = s.counters[h.of(l)]; found[i] != nil {
			before[i] = found[i].state
		}
		after[i], answers[i] = l.Take(before[i], now, n)
		admitted = admitted && answers[i].Retry == 0
	}
	for i, l := range limits {
		if !admitted && answers[i].Retry == 0 {
			after[i], answers[i] = l.Take(before[i], now, 0)
		}
		c := found[i]
		if c != nil && c.queue == nil { // evicted just now, for one of the others
			c = nil
		}
		if c == nil && !after[i].Fresh() {
			c = s.insert(h.of(l), now)
		}
		if c != nil {
			s.set(c, after[i], answers[i], now)
		}
	}
	return now
}

// Adjust moves what is counted for key by n units that were taken at an instant,
// as [rule.Limit.Adjust] does, under every limit in one step.
func (t *Table) Adjust(key string, n, at int64, limits []rule.Limit) {
	h := t.hash(key)
	s, now := t.lock(h)
	defer s.mu.Unlock()
	for _, l := range limits {
		id := h.of(l)
		c := s.counters[id]
		var state rule.State
		if c != nil {
			state = c.state
		}
		state = l.Adjust(state, now, n, now-min(at, now))
		switch {
		case state.Fresh() && c != nil:
			s.remove(c)
		case !state.Fresh():
			if c == nil {
				c = s.insert(id, now)
			}
			_, answer := l.Take(state, now, 0)
			s.set(c, state, answer, now)
		}
	}
}

// Reset forgets what is counted for key under every limit.
func (t *Table) Reset(key string, limits []rule.Limit) {
	h := t.hash(key)
	s, _ := t.lock(h)
	defer s.mu.Unlock()
	for _, l := range limits {
		if c := s.counters[h.of(l)]; c != nil {
			s.remove(c)
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
		sum.Counters += len(s.counters)
		sum.Evicted += s.evicted
		sum.EvictedDenied += s.evictedDenied
		s.mu.Unlock()
	}
	return sum
}

func (t *Table) hash(key string) keyHash {
	return keyHash{maphash.String(t.seeds[0], key), maphash.String(t.seeds[1], key)}
}

// lock locks the shard of a key and reads the clock. That is done before the lock
// is held, to hold it the shorter, and again where another was first and later.
//
// A clock that is behind even then is another clock: a test's, in a bubble of
// testing/synctest of its own. Counters stand still until it comes to where they
// are, or start from it where that is too far (see [rule.Limit.Take]).
func (t *Table) lock(h keyHash) (s *shard, now int64) {
	s = &t.shards[h[0]&uint64(len(t.shards)-1)]
	now = t.clock()
	s.mu.Lock()
	if now < s.now {
		now = t.clock()
	}
	s.now = now
	return s, now
}

// shard is a part of the table under one lock.
type shard struct {
	mu            sync.Mutex
	now           int64
	max           int
	counters      map[counterID]*counter
	open          queue // by when a counter is as good as none
	denied        queue // counters found without a unit left, by when they have one
	evicted       uint64
	evictedDenied uint64
	_             [64]byte // keeps the next shard's lock in another cache line
}

// counter is one key's state under one limit. It stands in one of its shard's
// queues, where its place may be too early but never too late: a Take, which moves
// its times forward, does not touch the queue, and who comes upon it at the head
// of the queue puts it right.
type counter struct {
	id    counterID
	state rule.State
	fresh int64 // when state is as good as none
	more  int64 // when a unit fits again, if none does; else 0

	queue *queue
	index int
	place int64 // what the queue is ordered by: fresh or more, as it was
}

func (s *shard) set(c *counter, state rule.State, a rule.Answer, now int64) {
	c.state = state
	c.fresh = now + a.Reset
	c.more = 0
	if a.Remaining == 0 {
		c.more = now + a.More
	}
	if a.Retry != 0 && a.Retry != rule.Never { // denied, if only for its size
		c.more = now + a.Retry
	}
	due := c.fresh
	if c.queue == &s.denied {
		due = c.more
	}
	if due < c.place {
		c.queue.move(c, due)
	}
}

// insert makes room if it has to, and returns a new counter. What has expired
// leaves a little faster than new counters come, so that the table shrinks as it is used.
func (s *shard) insert(id counterID, now int64) *counter {
	for range 2 {
		if c := s.first(now, 8); c != nil && c.fresh <= now {
			s.remove(c)
		}
	}
	if len(s.counters) >= s.max {
		s.evict(now)
	}
	// A place of 0 is too early: the counter's times are not known before it is set.
	c := &counter{id: id}
	s.counters[id] = c
	s.open.push(c, 0)
	return c
}

// evict removes the counter that is closest to fresh, and one that is being
// denied only if all are: then the one whose denial ends first.
func (s *shard) evict(now int64) {
	c := s.first(now, math.MaxInt)
	if c == nil {
		c = s.denied[0]
		s.evictedDenied++
	}
	if c.fresh > now {
		s.evicted++
	}
	s.remove(c)
}

// first returns the counter that is fresh first among those that are not being
// denied, or nil if there is none or it is not found in so many steps.
func (s *shard) first(now int64, steps int) *counter {
	for ; len(s.denied) > 0 && steps > 0; steps-- {
		c := s.denied[0]
		if c.more <= now {
			s.denied.remove(c)
			s.open.push(c, c.fresh)
		} else if c.place < c.more {
			s.denied.move(c, c.more)
		} else {
			break
		}
	}
	for ; len(s.open) > 0 && steps > 0; steps-- {
		c := s.open[0]
		if c.place < c.fresh {
			s.open.move(c, c.fresh)
		} else if c.more > now {
			s.open.remove(c)
			s.denied.push(c, c.more)
		} else {
			return c
		}
	}
	return nil
}

func (s *shard) remove(c *counter) {
	delete(s.counters, c.id)
	c.queue.remove(c)
	c.queue = nil
}
