package nearcache

import "github.com/ratelimit-go/ratelimit/internal/rule"

// owe notes units that the store is to be told of.
func (c *Cache) owe(e *entry, limits []rule.Limit, n, now int64) {
	for i := range limits {
		counter := e.find(&limits[i])
		counter.owed += max(-rule.MaxUnits, min(n, rule.MaxUnits))
		counter.owed = max(-rule.MaxUnits, min(counter.owed, rule.MaxUnits))
		counter.last = now
	}
	c.count(e)
}

// count keeps the number of keys that something is owed for.
func (c *Cache) count(e *entry) {
	is := e.settling != nil || e.owes()
	if is != e.indebted {
		e.indebted = is
		if is {
			c.debts.Add(1)
		} else {
			c.debts.Add(-1)
		}
	}
}

func (e *entry) owes() bool {
	for i := range e.counters {
		if e.counters[i].owed != 0 {
			return true
		}
	}
	return false
}

// Debts is how many keys something is owed for, and Lost how many have been dropped with that.
func (c *Cache) Debts() int   { return int(c.debts.Load()) }
func (c *Cache) Lost() uint64 { return c.lost.Load() }

// A Debt is units of a key, taken or given back at an instant, that the store is to count.
type Debt struct {
	Limit rule.Limit
	Units int64
	At    int64
}

// Owes reports whether something is owed for a key. If the store is being told of it just
// now, told is closed when that is over; else it is nil.
func (c *Cache) Owes(key string) (owes bool, told <-chan struct{}) {
	if c.debts.Load() == 0 {
		return false, nil
	}
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil || !e.indebted {
		return false, nil
	}
	return true, e.settling
}

// Collect hands out what is owed for a key, for the store to be told. Until Settle is
// called the key goes on to be in debt, and nobody else is handed anything.
func (c *Cache) Collect(key string, now int64) (debts []Debt) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil || e.settling != nil {
		return nil
	}
	for i := range e.counters {
		counter := &e.counters[i]
		debts = counter.debts(debts, now)
		counter.owed = 0
	}
	if debts != nil {
		e.settling = make(chan struct{})
	}
	c.count(e)
	return debts
}

// debts is what the store has to know of what is owed: of units taken, those that still count.
func (c *counter) debts(to []Debt, now int64) []Debt {
	add := func(units, at int64) {
		if units != 0 {
			to = append(to, Debt{c.limit, units, at})
		}
	}
	elapsed := now - c.state.T
	switch {
	case c.owed <= 0:
		add(c.owed, c.last)
	case c.limit.Kind == rule.Fixed && elapsed < c.limit.Window:
		add(min(c.owed, c.state.A), c.state.T) // its window began with the first of them
	case c.limit.Kind == rule.Sliding && elapsed < 2*c.limit.Window:
		newer := min(c.owed, c.state.A)
		add(newer, c.last)
		if elapsed < c.limit.Window {
			add(min(c.owed-newer, c.state.B), c.state.T-1)
		}
	case c.limit.Kind == rule.Bucket:
		whole := c.limit
		whole.Burst = rule.MaxUnits
		_, a := whole.Take(c.state, now, 0)
		add(min(c.owed, rule.MaxUnits-a.Remaining), now) // the rest has leaked, and a part of a unit counts as one
	}
	return to
}

// Settle takes back the debts that the store could not be told of.
func (c *Cache) Settle(key string, unpaid []Debt) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil {
		return
	}
	if e.settling != nil {
		close(e.settling)
		e.settling = nil
	}
	for _, d := range unpaid {
		if counter := e.find(&d.Limit); counter != nil {
			counter.owed += d.Units
			counter.last = max(counter.last, d.At)
		}
	}
	c.count(e)
}

// Debtors returns the keys that something is owed for, but for long ones.
func (c *Cache) Debtors(now int64) (keys []string) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for i := range s.lists[owing:] {
			for e := s.lists[owing+i].newest; e != nil; e = e.older {
				switch {
				case !e.owes():
				case e.hashed:
					c.forgive(e, now)
				default:
					keys = append(keys, e.key)
				}
			}
		}
		s.mu.Unlock()
	}
	return keys
}

// forgive drops what is owed for a key and does not count any more.
func (c *Cache) forgive(e *entry, now int64) {
	for i := range e.counters {
		if e.counters[i].debts(nil, now) == nil {
			e.counters[i].owed = 0
		}
	}
	c.count(e)
}
