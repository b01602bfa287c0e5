// Package nearcache keeps what a process last learnt of each key from a store that is
// somewhere else. It answers for keys that are known to be denied, and it decides
// where the store cannot, from where each key stood; what it has admitted then is
// owed to the store, until that is told.
//
// It has no clock: instants are nanoseconds that the caller reads off one that does not
// run backwards.
package nearcache

import (
	"crypto/sha256"
	"hash/maphash"
	"slices"
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
	lists   [ranks]list
	version atomic.Uint64       // moves on when units were given back here
	denied  atomic.Int64        // when no key is known to be denied any more
	leased  map[*entry]struct{} // those evicted too, until their units are back
	forgets uint64
}

type entry struct {
	key          string
	newer, older *entry
	list         *list // that it is in; nil for an entry that nobody has added
	counters     []counter
	lease        lease
	told         int64         // the store's instant of what was last learnt
	learnt       int64         // ours
	again        int64         // when to ask the store about a denial again
	settling     chan struct{} // open while its debts are being told, else nil
	indebted     bool          // and counted in Cache.debts
	hashed       bool          // key is a hash: only who comes with the key itself can tell the store
}

// counter is a key under one limit.
type counter struct {
	limit rule.Limit
	state rule.State
	cost  int64 // the least that is denied until retry
	retry int64
	whole int64 // when the store's counter is whole again, if it is as it was learnt; else 0
	owed  int64 // units taken here that the store does not know of, or given back if negative
	last  int64 // when the last of those were
}

// longKey is the longest key that is kept as it is. Keys are the client's to choose, and memory is not.
const longKey = 512

// New returns a cache of about maxKeys keys.
func New(maxKeys int) *Cache {
	return &Cache{seed: maphash.MakeSeed(), most: max(1, maxKeys/shards)}
}

// lock is shard, locked.
func (c *Cache) lock(key string) (*shard, string) {
	s, key := c.shard(key)
	s.mu.Lock()
	return s, key
}

// shard returns the shard of a key, and what the key goes by in it.
func (c *Cache) shard(key string) (*shard, string) {
	if len(key) > longKey {
		sum := sha256.Sum256([]byte(key))
		key = string(sum[:])
	}
	return &c.shards[maphash.String(c.seed, key)%shards], key
}

// Denied reports whether it is known that n units of key are denied and for how long, and
// fills in answers if so. Once in every recheck it does not, so that its caller asks the store.
// The version is that of Version.
func (c *Cache) Denied(key string, n int64, limits []rule.Limit, now, recheck int64, answers []rule.Answer) (denied bool, version uint64) {
	s, k := c.shard(key)
	version = s.version.Load()
	if n == 0 || now >= s.denied.Load() {
		return false, version
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil || !e.denies(n, limits, now, answers) {
		return false, version
	}
	if recheck > 0 && now >= e.again {
		e.again = now + recheck // the others need not
		return false, version
	}
	s.use(e, spent)
	return true, version
}

func (e *entry) denies(n int64, limits []rule.Limit, now int64, answers []rule.Answer) bool {
	denied := false
	for i := range limits {
		counter := e.find(&limits[i])
		if counter == nil || counter.limit != limits[i] {
			return false
		}
		denied = denied || counter.denies(n, now)
	}
	if !denied {
		return false
	}
	for i := range limits {
		if !e.find(&limits[i]).answer(n, now, &answers[i]) {
			return false
		}
	}
	return true
}

func (c *counter) denies(n, now int64) bool { return c.retry > now && n >= c.cost }

// answer is what the store would say of n units, unless only it knows.
func (c *counter) answer(n, now int64, a *rule.Answer) (known bool) {
	if !c.denies(n, now) || n > c.cost {
		// Other units than the store was asked for wait for longer. A sliding window's guess
		// does not tell how long.
		if _, *a = c.limit.Take(c.state, now, n); a.Retry > 0 && a.Retry != rule.Never && c.limit.Kind == rule.Sliding {
			return false
		}
		if c.whole > now {
			a.Reset = c.whole - now
		}
		return true
	}
	_, *a = c.limit.Take(c.state, now, 0)
	a.Retry = c.retry - now
	a.Remaining = min(a.Remaining, c.cost-1)
	a.Reset = max(c.whole-now, a.Retry)
	if a.More == 0 || a.Remaining == c.cost-1 {
		a.More = a.Retry
	}
	return true
}

// Version is what Learn needs to know of the time before the store was asked.
func (c *Cache) Version(key string) uint64 {
	s, _ := c.shard(key)
	return s.version.Load()
}

// Learn takes over the store's answers to a request for n units of key, which it gave at told
// by its own clock. What is owed for a key goes before what the store says of it.
func (c *Cache) Learn(key string, n int64, limits []rule.Limit, answers []rule.Answer, told, now, recheck int64, version uint64) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil {
		e = c.add(s, k, key, now)
	}
	// Replies overtake each other, by less than a second. A clock that is further
	// behind is another server's.
	const late = 1_000_000_000
	if e.settling != nil || e.owes() || told < e.told && now-e.learnt < late {
		return
	}
	e.told, e.learnt, e.again = told, now, now+recheck
	c.hold(e, limits)
	rank := plain
	for i := range limits {
		counter, a := e.find(&limits[i]), &answers[i]
		counter.limit, counter.state = limits[i], limits[i].Guess(*a, now)
		counter.retry, counter.whole = 0, now+a.Reset
		if a.Remaining == 0 {
			rank = spent
		}
		if a.Retry > 0 && a.Retry != rule.Never && s.version.Load() == version {
			counter.retry, counter.cost = now+a.Retry, n
			s.denied.Store(max(s.denied.Load(), counter.retry))
		}
	}
	s.use(e, rank)
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
	admitted, rank := true, plain
	for i := range limits {
		states[i], answers[i] = limits[i].Take(e.state(&limits[i]), now, n)
		admitted = admitted && answers[i].Retry == 0
		if answers[i].Remaining == 0 {
			rank = spent
		}
	}
	if !admitted {
		for i := range limits {
			if answers[i].Retry == 0 { // as it was, then
				_, answers[i] = limits[i].Take(e.state(&limits[i]), now, 0)
			}
		}
		if e.list != nil {
			s.use(e, spent)
		}
		return false
	}
	if n == 0 {
		return true
	}
	if e.list == nil {
		e = c.add(s, k, key, now)
	}
	c.hold(e, limits)
	for i := range limits {
		counter := e.find(&limits[i])
		counter.limit, counter.state, counter.retry, counter.whole = limits[i], states[i], 0, 0
	}
	if owed {
		c.owe(e, limits, n, now)
	}
	s.use(e, rank)
	return true
}

// maxLimits is the most limits of one call.
const maxLimits = 8

// Adjust moves a key's counters here, as the store's were, or are to be if that is owed.
func (c *Cache) Adjust(key string, n int64, limits []rule.Limit, now int64, owed bool) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	s.version.Add(1)
	e := s.keys[k]
	if e == nil {
		if !owed {
			return
		}
		e = c.add(s, k, key, now)
	}
	c.hold(e, limits)
	for i := range limits {
		counter := e.find(&limits[i])
		counter.limit, counter.retry, counter.whole = limits[i], 0, 0
		counter.state = limits[i].Adjust(counter.state, now, n, 0)
	}
	if owed {
		c.owe(e, limits, n, now)
	}
	s.use(e, e.rank(now))
}

// Forget drops a key, and what is owed for it.
func (c *Cache) Forget(key string) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	s.version.Add(1)
	s.forgets++
	if e := s.keys[k]; e != nil {
		c.drop(s, e)
		delete(s.leased, e)
	}
}

func (e *entry) find(l *rule.Limit) *counter {
	for i := range e.counters {
		if c := &e.counters[i]; c.isOf(*l) {
			return c
		}
	}
	return nil
}

func (c *counter) isOf(l rule.Limit) bool {
	return c.limit.Kind == l.Kind && c.limit.Window == l.Window
}

// state is how the key stands under a limit.
func (e *entry) state(l *rule.Limit) rule.State {
	if c := e.find(l); c != nil {
		return c.state
	}
	return rule.State{}
}

// hold makes counters for limits, in the place of others if there are too many.
func (c *Cache) hold(e *entry, limits []rule.Limit) {
	missing := 0
	for i := range limits {
		if e.find(&limits[i]) == nil {
			missing++
		}
	}
	if missing == 0 {
		return
	}
	excess := len(e.counters) + missing - maxLimits
	e.counters = slices.DeleteFunc(e.counters, func(other counter) bool {
		if excess <= 0 || slices.ContainsFunc(limits, other.isOf) {
			return false
		}
		if excess--; other.owed != 0 {
			c.lost.Add(1)
		}
		return true
	})
	for i := range limits {
		if e.find(&limits[i]) == nil {
			e.counters = append(e.counters, counter{limit: limits[i]})
		}
	}
	c.count(e)
}
