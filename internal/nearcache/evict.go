package nearcache

import "strings"

// list is of entries by their last use.
type list struct{ newest, oldest *entry }

// Where there is room for no more keys, those of the lowest rank go first.
const (
	plain = iota
	owing // or with a lease: to forget it loses some units
	spent // all that it had, when it was last used: to forget it hands all of them out again
	ranks
)

// add makes an entry, in the place of another if the shard is full.
func (c *Cache) add(s *shard, k, key string, now int64) *entry {
	if len(s.keys) >= c.most {
		e := s.dispensable(now)
		if e.indebted {
			c.lost.Add(1)
		}
		c.drop(s, e)
	}
	if s.keys == nil {
		s.keys = make(map[string]*entry)
	}
	e := &entry{key: strings.Clone(k), hashed: k != key}
	s.keys[e.key] = e
	s.lists[plain].push(e)
	return e
}

// dispensable is the entry that has been used least lately, of the lowest rank that there is.
func (s *shard) dispensable(now int64) *entry {
	for rank := range s.lists {
		// What holds no longer holds for the oldest first, and there are more of those than
		// come meanwhile.
		const reach = 4
		for range reach {
			if e := s.lists[rank].oldest; e != nil && e.rank(now) < rank {
				s.use(e, e.rank(now))
			}
		}
	}
	for rank := range s.lists {
		if e := s.lists[rank].oldest; e != nil {
			return e
		}
	}
	return nil
}

// rank tells in which list an entry belongs.
func (e *entry) rank(now int64) int {
	for i := range e.counters {
		c := &e.counters[i]
		if _, a := c.limit.Take(c.state, now, 0); a.Remaining == 0 {
			return spent
		}
	}
	if e.indebted || e.lease.size > 0 {
		return owing
	}
	return plain
}

// drop takes an entry out. Who waits for its debts to be told waits no more.
func (c *Cache) drop(s *shard, e *entry) {
	if e.indebted {
		c.debts.Add(-1)
	}
	if e.settling != nil {
		close(e.settling)
	}
	e.unlink()
	delete(s.keys, e.key)
}

// use notes that an entry was used, and what is at stake with it.
func (s *shard) use(e *entry, rank int) {
	if rank == plain && (e.indebted || e.lease.size > 0) {
		rank = owing
	}
	if l := &s.lists[rank]; l.newest != e {
		e.unlink()
		l.push(e)
	}
}

func (l *list) push(e *entry) {
	e.list, e.older = l, l.newest
	if l.newest != nil {
		l.newest.newer = e
	} else {
		l.oldest = e
	}
	l.newest = e
}

func (e *entry) unlink() {
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		e.list.newest = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		e.list.oldest = e.newer
	}
	e.newer, e.older = nil, nil
}
