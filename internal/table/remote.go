package table

import (
	"math/rand/v2"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// What a table offers to a cache of a store in another process: key spaces for several
// owners, methods that take states from that store, and a look for known denials.
// [Table.TakeAt] and [Table.AdjustAt], which such a cache counts with while the store
// is away, are in table.go.

// Owner keeps the keys of one user of a table apart from the keys of all others. Methods
// that take a key instead of a [Hash] use the zero Owner.
type Owner struct{ shard, slot uint64 }

// NewOwner returns an Owner unlike any other.
func NewOwner() Owner { return Owner{rand.Uint64(), rand.Uint64()} }

// Hash is what a table knows a key by. A caller that makes several calls for a key
// needs to hash it only once.
type Hash struct{ keyHash }

// Hash returns what the owner's key is known by in t.
func (t *Table) Hash(key string, of Owner) Hash {
	h := t.hash(key)
	return Hash{keyHash{h.shard ^ of.shard, h.slot ^ of.slot}}
}

// Bits returns 64 bits of h, for structures that its owner keeps beside the table.
// They say nothing about where in the table the key is.
func (h Hash) Bits() uint64 { return (h.shard ^ h.slot) * 0x9e3779b97f4a7c15 }

// Denied reports whether n units of a key that has been refused before are denied now,
// and if so fills answers, which must be as long as limits. It writes no counter.
//
// A key is known to be refused under a limit if its counter there is marked so: by a
// Take that was denied, or by Learn. So only what was refused once is denied here, and
// never a cost that can never fit. Other limits of the same key may have no counter. They
// are then answered as for an unused key.
func (t *Table) Denied(h Hash, n, now int64, limits []rule.Limit, answers []rule.Answer) bool {
	var room [MaxLimits]id
	ids := h.fill(&room, limits)
	s, now := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	var before [MaxLimits]rule.State
	denied := false
	for i := range limits {
		c := s.find(ids[i])
		before[i] = s.get(c, &limits[i])
		_, answers[i] = limits[i].Take(before[i], now, n)
		if retry := answers[i].Retry; retry != 0 && retry != rule.Never && s.flags(c)&flagRefused != 0 {
			denied = true
		}
	}
	if !denied {
		return false
	}
	for i := range limits {
		if answers[i].Retry == 0 {
			_, answers[i] = limits[i].Take(before[i], now, 0)
		}
	}
	return true
}

// Learn replaces the counters of a key with states that another store has reported, on
// the clock of now. A state that is whole by now frees its counter.
//
// If older is true, the states may be older than what is here. Then under each limit
// the stricter of the two stays: the one that holds more units, or the same for longer,
// whatever the present limit leaves of it. Another limit may be a higher one. A
// counter that is not here may have been evicted, so it is no stricter than any.
//
// If the store has just refused units of the key, refused is how many, and zero if it has
// admitted what it was asked for. A counter that was marked as refused before stays
// marked unless more is left now, so that a look at the store takes no protection away.
func (t *Table) Learn(h Hash, refused, now int64, limits []rule.Limit, states []rule.State, older bool) {
	var room [MaxLimits]id
	ids := h.fill(&room, limits)
	s, now := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	for i := range limits {
		l := &limits[i]
		c := s.find(ids[i])
		was := s.get(c, l)
		is := states[i]
		is.T = max(0, min(is.T, now)) // one that is yet to come would count for longer than its window
		_, left := l.Take(was, now, 0)
		_, leaves := l.Take(is, now, 0)
		kept := s.refusedStill(c, left, leaves)
		if older && holdsMore(l, was, is, now) {
			is, leaves, kept = was, left, s.flags(c)&flagRefused
		}
		if leaves.Reset == 0 {
			if c.group != nil {
				s.free(c)
			}
			continue
		}
		flags := flags(leaves) | kept
		if refused > leaves.Remaining && refused <= l.Cap() {
			flags |= flagRefused
		}
		s.write(ids[i], ids, &t.shapes, l, is, flags, now)
	}
}

// holdsMore reports whether a state holds more units than another one, or the same for
// longer.
func holdsMore(l *rule.Limit, a, b rule.State, now int64) bool {
	most := *l
	if most.N = rule.MaxUnits; l.Kind == rule.Bucket {
		most.N, most.Burst = l.N, rule.MaxUnits // it leaks at the same rate
	}
	_, is := most.Take(a, now, 0)
	_, other := most.Take(b, now, 0)
	return is.Remaining < other.Remaining || is.Remaining == other.Remaining && is.Reset > other.Reset
}

// State returns the state of a key under a limit, as it was last written. If held is
// false there is no counter: the key is unused, or whole again, or it was evicted.
func (t *Table) State(h Hash, now int64, l *rule.Limit) (state rule.State, held bool) {
	s, _ := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	c := s.find(h.id(l))
	return s.get(c, l), c.group != nil
}

// Forget is [Table.Reset] for a key that has been hashed.
func (t *Table) Forget(h Hash, now int64, limits []rule.Limit) {
	s, _ := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	s.forget(h.keyHash, limits)
}
