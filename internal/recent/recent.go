// Package recent caches what is made of settings that callers bring with each call, such as
// the limits of a plan. A cache is bounded, finding an entry takes no lock, and the time for
// it does not depend on the number of entries.
package recent

import (
	"hash/maphash"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A Cache holds at most Most values. When it is full, a new value replaces one that was not
// found for a while. So it must hold only values that can be made again. The zero value
// with Most set is an empty cache, and allocates nothing before the first Put. Its methods
// may be called from any number of goroutines.
//
// The values are in hash buckets, and each bucket is a list. Find follows a list without a
// lock, while Put changes it: entries are added at the front, and an entry that was removed
// still leads to the entries behind it.
type Cache[V any] struct {
	Most int

	buckets atomic.Pointer[[]bucket[V]] // a power of two of them
	mu      sync.Mutex                  // guards the fields below, and changes of the lists
	entries int
	hand    int // the bucket in which the next entry to replace is searched for
}

type bucket[V any] struct{ atomic.Pointer[entry[V]] }

type entry[V any] struct {
	value V
	hash  uint64
	found atomic.Bool // since the hand was here
	since int64       // when it was put, or when the hand was here after it was found; guarded by Cache.mu
	next  bucket[V]
}

// Find returns the value with a hash for which same returns true.
func (c *Cache[V]) Find(hash uint64, same func(V) bool) (v V, ok bool) {
	buckets := c.buckets.Load()
	if buckets == nil {
		return v, false
	}
	for e := (*buckets)[hash&uint64(len(*buckets)-1)].Load(); e != nil; e = e.next.Load() {
		if e.hash == hash && same(e.value) {
			if !e.found.Load() { // no write if it is set: the cache line stays shared between cores
				e.found.Store(true)
			}
			return e.value, true
		}
	}
	return v, false
}

// Put adds a value, unless another caller has added the same one in the meantime, and
// returns the value that is in the cache. now is an instant in nanoseconds.
//
// If the cache is full, it calls drop with the value that it is about to remove. drop must
// not use the cache. unused is for how many nanoseconds that value was not found, or 0 if
// none was removed: a short time means that more than Most values are in use.
//
// Put takes a lock.
func (c *Cache[V]) Put(hash uint64, v V, now int64, same func(V) bool, drop func(V)) (kept V, unused int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if kept, ok := c.Find(hash, same); ok {
		return kept, 0
	}
	if c.entries >= c.Most {
		unused = max(1, now-c.replace(now, drop))
	}
	c.grow()
	buckets := *c.buckets.Load()
	push(buckets, &entry[V]{value: v, hash: hash, since: now})
	c.entries++
	return v, unused
}

func push[V any](buckets []bucket[V], e *entry[V]) {
	at := &buckets[e.hash&uint64(len(buckets)-1)]
	e.next.Store(at.Load())
	at.Store(e)
}

// grow makes as many buckets as there are entries, if there are fewer. c.mu must be held.
// It copies the entries, because calls of Find may be following the old lists.
func (c *Cache[V]) grow() {
	var old []bucket[V]
	if p := c.buckets.Load(); p != nil {
		old = *p
	}
	if c.entries < len(old) {
		return
	}
	grown := make([]bucket[V], max(4, 2*len(old)))
	for i := range old {
		for e := old[i].Load(); e != nil; e = e.next.Load() {
			copied := &entry[V]{value: e.value, hash: e.hash, since: e.since}
			copied.found.Store(e.found.Load())
			push(grown, copied)
		}
	}
	c.hand = 0
	c.buckets.Store(&grown)
}

// replace removes an entry and returns its since. c.mu must be held, and there must be an
// entry. The hand goes around the buckets. An entry that was found since the hand was there
// last stays for another round. After two rounds the next entry goes in any case.
func (c *Cache[V]) replace(now int64, drop func(V)) (since int64) {
	buckets := *c.buckets.Load()
	for steps := 0; ; steps++ {
		at := &buckets[c.hand&(len(buckets)-1)]
		for e := at.Load(); e != nil; e = e.next.Load() {
			if steps < 2*len(buckets) && e.found.Swap(false) {
				e.since = now
				at = &e.next
				continue
			}
			drop(e.value)
			at.Store(e.next.Load())
			c.entries--
			return e.since
		}
		c.hand++
	}
}

// All returns the values in the cache. A value that is added or removed in the meantime may
// be missing.
func (c *Cache[V]) All() (all []V) {
	if buckets := c.buckets.Load(); buckets != nil {
		for i := range *buckets {
			for e := (*buckets)[i].Load(); e != nil; e = e.next.Load() {
				all = append(all, e.value)
			}
		}
	}
	return all
}

// Hashes are made with numbers that differ in each process, because a client may have an
// influence on the limits of a plan: it must not be able to fill one bucket.
var (
	seed         = maphash.MakeSeed()
	first        = maphash.String(seed, "first")
	secondFactor = maphash.String(seed, "second")
)

// Hash is the hash of a value so far. It begins at 0.
type Hash uint64

// Add adds a number.
func (h Hash) Add(x uint64) Hash {
	high, low := bits.Mul64(uint64(h)^first, x^secondFactor)
	return Hash(high ^ low)
}

// AddString adds a text.
func (h Hash) AddString(s string) Hash {
	if s == "" {
		return h
	}
	return h.Add(maphash.String(seed, s))
}

// AddLimit adds a limit. The present period of a calendar is not part of the hash.
func (h Hash) AddLimit(l *rule.Limit) Hash {
	h = h.Add(uint64(l.Kind)<<32 | uint64(l.Number)).Add(uint64(l.N))
	if l.Kind == rule.Calendar {
		return h
	}
	return h.Add(uint64(l.Window)).Add(uint64(l.Burst))
}

// AddLadder adds a ladder, which may be nil.
func (h Hash) AddLadder(l *rule.Ladder) Hash {
	if l == nil {
		return h
	}
	h = h.Add(uint64(l.N))
	for _, rung := range l.Rungs {
		h = h.Add(uint64(rung))
	}
	return h
}
