package table

import "github.com/ratelimit-go/ratelimit/internal/rule"

// This file has the holds of in-flight limits; see [rule.Holds]. They have no places in the
// shard's groups, and do not count for the table's maximum: a key is here only as long as it
// has holds, and each of them is a request that runs. No flood of other keys evicts it.

// Hold is [Table.TakeBlocking] for a key with an in-flight limit beside the others, of which
// there may be none: it carries out h.Action as well, and takes units only if a hold begins.
// It fills in h.Held. The decision is not counted. It locks the key's shard.
func (t *Table) Hold(key string, n int64, limits []rule.Limit, answers []rule.Answer, blocking *Blocking, h *rule.Holding) (at int64, marks Marks) {
	hash := t.hash(key)
	d := decision{blocking: blocking}
	hash.fill(&d.ids, limits)
	s, now := t.lock(hash)
	defer s.mu.Unlock()
	of := s.holdsOf(hash)
	d.full = h.Action == rule.AddHold && of.Room(h, now) < 1
	at = inPeriods(now, limits)
	begun := int64(0)
	if d.take(s, &t.shapes, n, n, at, limits, answers) && h.Action == rule.AddHold {
		begun = 1
	}
	s.setHolds(hash, of.Apply(h, now, begun))
	return at, d.marks
}

// holdsOf returns the holds of a key.
func (s *shard) holdsOf(h keyHash) rule.Holds {
	if s.apart == nil {
		return nil
	}
	return s.apart.holds[h]
}

// setHolds sets the holds of a key.
func (s *shard) setHolds(h keyHash, of rule.Holds) {
	switch {
	case len(of) == 0 && s.apart != nil:
		delete(s.apart.holds, h)
	case len(of) > 0:
		if s.apart == nil {
			s.apart = new(apart)
		}
		if s.apart.holds == nil {
			s.apart.holds = make(map[keyHash]rule.Holds)
		}
		s.apart.holds[h] = of
	}
}

// HeldKeys returns how many keys have records of holds. It locks each shard for a moment.
func (t *Table) HeldKeys() (keys int) {
	for s := range t.shards.used {
		s.mu.Lock()
		if s.apart != nil {
			keys += len(s.apart.holds)
		}
		s.mu.Unlock()
	}
	return keys
}
