package table

import (
	"math/rand/v2"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file has the methods for package nearcache, which caches a store in another
// process: key spaces for several owners, storing states and blocks that the store has
// reported, and checking for known denials. [Table.TakeBlocking] and [Table.AdjustAt],
// which the cache uses for counting while the store is unavailable, are in block.go and
// table.go.

// Owner keeps the keys of one user of a table apart from the keys of all others. Methods
// that take a key instead of a [Hash] use the zero Owner.
type Owner struct{ shard, slot uint64 }

// NewOwner returns a random Owner, which no other user of the table has.
func NewOwner() Owner { return Owner{rand.Uint64(), rand.Uint64()} }

// Hash identifies a key in a table. A caller that makes several calls for a key
// needs to hash it only once.
type Hash struct{ keyHash }

// Hash returns the Hash of an owner's key in t.
func (t *Table) Hash(key string, of Owner) Hash {
	h := t.hash(key)
	return Hash{keyHash{h.shard ^ of.shard, h.slot ^ of.slot}}
}

// Bits returns 64 bits of h, for data structures beside the table. They do not
// reveal where in the table the key is.
func (h Hash) Bits() uint64 { return (h.shard ^ h.slot) * 0x9e3779b97f4a7c15 }

// Denied reports whether n > 0 units of a key that has been refused before, or that is
// blocked, are denied now. If so, it fills answers, which must be as long as limits. Bit i
// of blocked is set if the counter under limit i is blocked. Denied writes no counter. It
// locks the key's shard.
//
// A key is known to be refused under a limit if its counter is marked as refused, by a
// denied Take or by Learn. So without a block Denied never denies a key for the first
// time, or for a cost that can never fit. A block denies every cost. Other limits of the
// same key may have no counter; they are answered as for an unused key.
func (t *Table) Denied(h Hash, n, now int64, limits []rule.Limit, answers []rule.Answer) (denied bool, blocked uint8) {
	var room [MaxLimits]id
	ids := h.fill(&room, limits)
	s, now := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	var before [MaxLimits]packed
	for i := range limits {
		c := s.find(ids[i])
		before[i] = s.read(c)
		answers[i] = s.ask(ids[i], &limits[i], before[i], now, n)
		if retry := answers[i].Retry; retry != 0 && retry != rule.Never && s.flags(c)&flagRefused != 0 {
			denied = true
		}
	}
	if s.blocks != 0 && n > 0 {
		if blocked = s.denyBlocked(ids, before[:], n, now, limits, answers); blocked != 0 {
			return true, blocked
		}
	}
	if !denied {
		return false, 0
	}
	for i := range limits {
		if answers[i].Retry == 0 {
			answers[i] = s.ask(ids[i], &limits[i], before[i], now, 0)
		}
	}
	return true, 0
}

// DeniesWithout reports whether n units of a key are denied under a limit even if all
// pending units are given back; see [rule.Limit.DeniesWithout]. It locks the key's shard.
func (t *Table) DeniesWithout(h Hash, pending []rule.Pending, n, now int64, l *rule.Limit) bool {
	s, now := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	of := h.id(l)
	return s.deniesWithout(pending, of, l, s.read(s.find(of)), n, now)
}

// Learnt is what another store has reported about a key under some limits. Its instants
// must be on the table's clock.
type Learnt struct {
	// States has the state under each limit. If StatesOlder is set, they may be older
	// than the states here.
	States      []rule.State
	StatesOlder bool

	// Logs has the log under each limit that is a rolling window, which has no state. The
	// table keeps them. It may be nil if there are none.
	Logs []rule.Log

	// Blocks has the block under each limit, and the zero Block where there is none. It is
	// nil if the store counts no blocks. Their ends must be 0 to [rule.MaxUntil], their
	// rungs at most [rule.MaxRungs], and Forget 0 to [rule.MaxSpan]. If BlocksOlder is set,
	// they may be older than the blocks here.
	Blocks      []rule.Block
	BlocksOlder bool
	Odd         bool // a bit to keep with these blocks; see [Table.BlockOf]
}

// Learn replaces the counters and blocks of a key with what another store has reported. A
// state that is whole at now frees its counter. A block that is forgotten by now frees its
// place. Learn returns which limits are blocked after that: bit i is for limit i. It locks
// the key's shard.
//
// If the states may be older, then under each limit the stricter one stays: the state that
// holds more units, or as many for longer. The present limit does not matter for this
// comparison, because the counter may also be used under a higher limit. A counter that is
// not here may have been evicted, so the reported state is used. If the blocks may be
// older, both are joined.
//
// refused is the number of units that the store has just refused, or 0 if it has admitted
// the request. A counter that was marked as refused stays marked unless more units are
// left now. So a look at the store does not remove its protection from eviction.
func (t *Table) Learn(h Hash, refused, now int64, limits []rule.Limit, r Learnt) (blocked uint8) {
	var room [MaxLimits]id
	ids := h.fill(&room, limits)
	s, now := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	for i := range limits {
		l := &limits[i]
		if l.Kind == rule.Rolling {
			s.learnRolling(ids[i], ids, &t.shapes, l, r.Logs[i], r.StatesOlder, refused, now)
			continue
		}
		c := s.find(ids[i])
		was := s.get(c, l)
		is := r.States[i]
		is.T = max(0, is.T)
		if l.Kind != rule.Calendar { // of which it is the end of the period
			is.T = min(is.T, now) // a state in the future would count for longer than its window
		}
		_, left := l.Take(was, now, 0)
		_, leaves := l.Take(is, now, 0)
		kept := s.refusedStill(c, left, leaves)
		if r.StatesOlder && holdsMore(unlimited(l, was, now), unlimited(l, is, now)) {
			is, leaves, kept = was, left, s.flags(c)&flagRefused
		}
		if leaves.Reset == 0 {
			if c.group != nil {
				s.free(c)
			}
			continue
		}
		s.write(c, ids[i], ids, &t.shapes, l, pack(l, is, s.wall), learntFlags(l, leaves, refused)|kept, now)
	}
	for i := range r.Blocks {
		switch b := r.Blocks[i]; {
		case s.blocks == 0 && b == rule.Block{}:
		case r.BlocksOlder:
			s.joinBlock(ids[i], ids, &t.shapes, b, r.Odd, now)
		default:
			s.setBlock(ids[i], ids, &t.shapes, b, r.Odd, now)
		}
	}
	if s.blocks != 0 {
		blocked, _ = s.blocked(ids, now)
	}
	return blocked
}

// learntFlags returns the flags of a counter that Learn writes.
func learntFlags(l *rule.Limit, leaves rule.Answer, refused int64) uint64 {
	if refused > leaves.Remaining && refused <= l.Cap() {
		return flags(leaves) | flagRefused
	}
	return flags(leaves)
}

// unlimited returns the answer for 0 units if the limit were as high as it can be.
func unlimited(l *rule.Limit, s rule.State, now int64) rule.Answer {
	most := *l
	if most.N = rule.MaxUnits; l.Kind == rule.Bucket {
		most.N, most.Burst = l.N, rule.MaxUnits // it leaks at the same rate
	}
	_, a := most.Take(s, now, 0)
	return a
}

// holdsMore reports whether the counter of the first answer holds more units than the one of
// the other, or as many for longer. Both answers are for 0 units under the highest limit.
func holdsMore(a, b rule.Answer) bool {
	return a.Remaining < b.Remaining || a.Remaining == b.Remaining && a.Reset > b.Reset
}

// State returns the state of a key under a limit, as it was last written. If held is
// false there is no counter: the key is unused, is whole again, or was evicted. It
// locks the key's shard.
func (t *Table) State(h Hash, now int64, l *rule.Limit) (state rule.State, held bool) {
	s, _ := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	c := s.find(h.id(l))
	return s.get(c, l), c.group != nil
}

// LogOf returns a copy of the log of a key's counter under a limit, which is empty if that is
// no rolling window. It locks the key's shard.
func (t *Table) LogOf(h Hash, now int64, l *rule.Limit) rule.Log {
	if l.Kind != rule.Rolling {
		return rule.Log{}
	}
	s, _ := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	g := s.log(s.find(h.id(l)))
	return g.Clone()
}

// States fills states with the states of a key under limits, as they were last written. It
// returns which limits are blocked: bit i is for limit i. It locks the key's shard.
func (t *Table) States(h Hash, now int64, limits []rule.Limit, states []rule.State) (blocked uint8) {
	var room [MaxLimits]id
	ids := h.fill(&room, limits)
	s, now := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	for i := range limits {
		states[i] = s.get(s.find(ids[i]), &limits[i])
	}
	if s.blocks != 0 {
		blocked, _ = s.blocked(ids, now)
	}
	return blocked
}

// BlockOf returns the block of a key's counter under a limit, with the bit that was passed
// by the last call that has changed the end of the block. It locks the key's shard.
func (t *Table) BlockOf(h Hash, now int64, l *rule.Limit) (b rule.Block, odd bool) {
	s, _ := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	of := h.id(l)
	return s.block(of), s.isOdd(of)
}

// BlockAt is [Table.Block] for a key that has been hashed, with the end of the block on the
// table's clock. b must be within the bounds of [Learnt]. odd is a bit to keep with the
// block; see BlockOf.
func (t *Table) BlockAt(h Hash, b rule.Block, odd bool, now int64, limits []rule.Limit) {
	s, now := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	s.blockAll(h.keyHash, &t.shapes, b, odd, now, limits)
}

// Forget is [Table.Reset] for a key that has been hashed. It locks the key's
// shard.
func (t *Table) Forget(h Hash, now int64, limits []rule.Limit) {
	s, _ := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	s.forget(h.keyHash, limits)
}
