// Package near keeps what a process last learnt of each key from a store that is
// somewhere else. It answers for keys that are known to be denied, and it decides
// where the store cannot, from where each key stood; what it has admitted then is
// owed to the store, until that is told.
//
// It has no clock: instants are nanoseconds that the caller reads off one that does not
// run backwards.
package near

import (
	"crypto/sha256"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A Cache holds a bounded number of keys. Methods may be called from any number of
// goroutines.
type Cache struct {
	seed   maphash.Seed
	most   int // keys in each shard
	shards [shards]shard
	debts  atomic.Int64 // keys that something is owed for
	lost   atomic.Uint64
}

// Enough that 64 callers seldom meet at one lock.
const shards = 64

type shard struct {
	mu      sync.Mutex
	keys    map[string]*entry
	newest  *entry // by use
	oldest  *entry
	version uint64 // moves on when units were given back here
	leased  map[*entry]struct{}
}

type entry struct {
	key          string
	newer, older *entry
	counters     []counter
	lease        lease
	told         int64 // the store's instant of what was last learnt
	learnt       int64 // ours
	again        int64 // when to ask the store about a denial again
	settling     bool  // its debts are being told
	indebted     bool  // and counted in Cache.debts
	hashed       bool  // key is a hash, and the store cannot be told of it
}

// counter is a key under one limit.
type counter struct {
	limit rule.Limit
	state rule.State
	cost  int64 // the least that is denied until retry
	retry int64
	owed  int64 // units taken here that the store does not know of, or given back if negative
	last  int64 // when the last of those were
}

// longKey is the longest key that is kept as it is. Keys are the client's to choose, and memory is not.
const longKey = 512

// New returns a cache of about maxKeys keys.
func New(maxKeys int) *Cache {
	return &Cache{seed: maphash.MakeSeed(), most: max(1, maxKeys/shards)}
}

// lock returns the shard of a key, locked, and what the key goes by in it.
func (c *Cache) lock(key string) (*shard, string) {
	if len(key) > longKey {
		sum := sha256.Sum256([]byte(key))
		key = string(sum[:])
	}
	s := &c.shards[maphash.String(c.seed, key)%shards]
	s.mu.Lock()
	return s, key
}

// Denied reports whether n units of key are known to be denied, and fills in answers if so. Once in
// every recheck it does not, so that its caller asks the store.
func (c *Cache) Denied(key string, n int64, limits []rule.Limit, now, recheck int64, answers []rule.Answer) bool {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil {
		return false
	}
	denied := false
	for i := range limits {
		counter := e.find(&limits[i])
		if counter == nil || counter.limit != limits[i] {
			return false
		}
		if counter.retry > now && n >= counter.cost {
			denied = true
		}
	}
	if !denied {
		return false
	}
	if recheck > 0 && now >= e.again {
		e.again = now + recheck // the others need not
		return false
	}
	for i := range limits {
		counter := e.find(&limits[i])
		_, a := limits[i].Take(counter.state, now, 0)
		if counter.retry > now && n >= counter.cost {
			a.Retry = counter.retry - now
			a.Remaining = min(a.Remaining, counter.cost-1)
			a.Reset = max(a.Reset, a.Retry)
			if a.More == 0 || a.Remaining == counter.cost-1 {
				a.More = a.Retry
			}
		}
		answers[i] = a
	}
	s.use(e)
	return true
}

// Version is what Learn needs to know of the time before the store was asked.
func (c *Cache) Version(key string) uint64 {
	s, _ := c.lock(key)
	defer s.mu.Unlock()
	return s.version
}

// Learn takes over the store's answers to a request for n units of key, which it gave at told
// by its own clock. What is owed for a key goes before what the store says of it.
func (c *Cache) Learn(key string, n int64, limits []rule.Limit, answers []rule.Answer, told, now, recheck int64, version uint64) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil {
		e = c.add(s, k, key)
	}
	// Replies overtake each other, by less than a second. A clock that is further
	// behind is another server's.
	const late = 1_000_000_000
	if e.settling || e.owes() || told < e.told && now-e.learnt < late {
		return
	}
	e.told, e.learnt, e.again = told, now, now+recheck
	for i := range limits {
		counter, a := e.findOrAdd(&limits[i]), &answers[i]
		counter.limit, counter.state = limits[i], limits[i].Guess(*a, now)
		counter.retry = 0
		if a.Retry > 0 && a.Retry != rule.Never && s.version == version {
			counter.retry, counter.cost = now+a.Retry, n
		}
	}
	s.use(e)
}

// Take decides here. If the units that it admits are owed, the store does not have
// them yet.
func (c *Cache) Take(key string, n int64, limits []rule.Limit, now int64, owed bool, answers []rule.Answer) (admitted bool) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil {
		e = &entry{}
	}
	var states [maxLimits]rule.State
	admitted = true
	for i := range limits {
		var before rule.State
		if counter := e.find(&limits[i]); counter != nil {
			before = counter.state
		}
		states[i], answers[i] = limits[i].Take(before, now, n)
		admitted = admitted && answers[i].Retry == 0
	}
	if !admitted {
		for i := range limits {
			if answers[i].Retry == 0 { // as it was, then
				var before rule.State
				if counter := e.find(&limits[i]); counter != nil {
					before = counter.state
				}
				_, answers[i] = limits[i].Take(before, now, 0)
			}
		}
		return false
	}
	if n == 0 {
		return true
	}
	if e.key == "" {
		e = c.add(s, k, key)
	}
	for i := range limits {
		counter := e.findOrAdd(&limits[i])
		counter.limit, counter.state = limits[i], states[i]
	}
	if owed {
		c.owe(e, limits, n, now)
	}
	s.use(e)
	return true
}

// maxLimits is the most limits of one call.
const maxLimits = 8

// Adjust moves a key's counters here, as the store's were, or are to be if that is owed.
func (c *Cache) Adjust(key string, n int64, limits []rule.Limit, now int64, owed bool) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	s.version++
	e := s.keys[k]
	if e == nil {
		if !owed {
			return
		}
		e = c.add(s, k, key)
	}
	for i := range limits {
		counter := e.findOrAdd(&limits[i])
		counter.limit, counter.retry = limits[i], 0
		counter.state = limits[i].Adjust(counter.state, now, n, 0)
	}
	if owed {
		c.owe(e, limits, n, now)
	}
}

// Forget drops a key, and what is owed for it.
func (c *Cache) Forget(key string) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	s.version++
	if e := s.keys[k]; e != nil {
		c.drop(s, e)
	}
}

// owe notes units that the store is to be told of.
func (c *Cache) owe(e *entry, limits []rule.Limit, n, now int64) {
	if e.hashed {
		c.lost.Add(1)
		return
	}
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
	is := e.settling || e.owes()
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

// Owes reports whether something is owed for a key.
func (c *Cache) Owes(key string) bool {
	if c.debts.Load() == 0 {
		return false
	}
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	return e != nil && e.indebted
}

// Collect hands out what is owed for a key, for the store to be told. Until Settle is
// called the key goes on to be in debt, and nobody else is handed anything.
func (c *Cache) Collect(key string, now int64) (debts []Debt) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil || e.settling {
		return nil
	}
	for i := range e.counters {
		counter := &e.counters[i]
		if debt, ok := counter.debt(now); ok {
			debts = append(debts, debt)
		}
		counter.owed = 0
	}
	e.settling = len(debts) > 0
	c.count(e)
	return debts
}

// debt is what the store has to know of what is owed: of units taken, those that still count.
func (c *counter) debt(now int64) (Debt, bool) {
	d := Debt{c.limit, c.owed, c.last}
	if c.owed > 0 {
		left := c.limit
		left.N, left.Burst = rule.MaxUnits, min(left.Burst, 1)*rule.MaxUnits
		if left.Kind == rule.Bucket {
			left.N = c.limit.N
		}
		_, a := left.Take(c.state, now, 0)
		d.Units = min(d.Units, rule.MaxUnits-a.Remaining)
		switch c.limit.Kind {
		case rule.Fixed:
			d.At = c.state.T // its window began with the first of them
		case rule.Bucket:
			d.At = now // and the rest has leaked
		}
	}
	return d, d.Units != 0
}

// Settle takes back the debts that the store could not be told of.
func (c *Cache) Settle(key string, unpaid []Debt) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil {
		return
	}
	e.settling = false
	for _, d := range unpaid {
		if counter := e.find(&d.Limit); counter != nil {
			counter.owed += d.Units
			counter.last = max(counter.last, d.At)
		}
	}
	c.count(e)
}

// Debtors returns the keys that something is owed for.
func (c *Cache) Debtors() (keys []string) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for e := s.newest; e != nil; e = e.older {
			if e.owes() {
				keys = append(keys, e.key)
			}
		}
		s.mu.Unlock()
	}
	return keys
}

func (e *entry) find(l *rule.Limit) *counter {
	for i := range e.counters {
		if c := &e.counters[i]; c.limit.Kind == l.Kind && c.limit.Window == l.Window {
			return c
		}
	}
	return nil
}

func (e *entry) findOrAdd(l *rule.Limit) *counter {
	if c := e.find(l); c != nil {
		return c
	}
	if len(e.counters) == maxLimits { // of ever new windows
		e.counters = append(e.counters[:0], e.counters[1:]...)
	}
	e.counters = append(e.counters, counter{limit: *l})
	return &e.counters[len(e.counters)-1]
}

// add makes an entry, in the place of another if the shard is full.
func (c *Cache) add(s *shard, k, key string) *entry {
	if len(s.keys) >= c.most {
		c.drop(s, s.dispensable())
	}
	if s.keys == nil {
		s.keys = make(map[string]*entry)
	}
	e := &entry{key: strings.Clone(k), hashed: k != key}
	s.keys[e.key] = e
	s.push(e)
	return e
}

// dispensable is the entry that has been used least lately, but for a few that block
// their key or owe something.
func (s *shard) dispensable() *entry {
	const reach = 16
	e := s.oldest
	for range reach {
		if e == nil {
			break
		}
		if !e.indebted && e.lease.size == 0 && !e.blocks() {
			return e
		}
		e = e.newer
	}
	return s.oldest
}

// blocks reports whether the key has spent all that it had when it was last used.
func (e *entry) blocks() bool {
	for i := range e.counters {
		c := &e.counters[i]
		if _, a := c.limit.Take(c.state, max(e.learnt, c.last), 0); a.Remaining == 0 {
			return true
		}
	}
	return false
}

func (c *Cache) drop(s *shard, e *entry) {
	if e.indebted {
		c.debts.Add(-1)
		c.lost.Add(1)
	}
	s.unlink(e)
	delete(s.keys, e.key)
	delete(s.leased, e)
}

func (s *shard) use(e *entry) {
	if s.newest != e {
		s.unlink(e)
		s.push(e)
	}
}

func (s *shard) push(e *entry) {
	e.older = s.newest
	if s.newest != nil {
		s.newest.newer = e
	} else {
		s.oldest = e
	}
	s.newest = e
}

func (s *shard) unlink(e *entry) {
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		s.newest = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		s.oldest = e.newer
	}
	e.newer, e.older = nil, nil
}
