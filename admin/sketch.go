package admin

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// This file finds the keys that a limiter denies most, in bounded memory: the space-saving
// algorithm (Metwally, Agrawal and El Abbadi, "Efficient Computation of Frequent and Top-k
// Elements in Data Streams", 2005).

const (
	// sketchSize is how many keys of a limiter are followed.
	sketchSize = 64

	// maxKept is the longest key, in bytes, that is kept as a whole. A link to a key of this
	// length still fits the 8 kB that proxies allow for the first line of a request.
	maxKept = 5632

	// cutKept is how much is kept of a longer key: enough to recognise it.
	cutKept = 128

	// Keys of more than freeKept bytes may have maxLong bytes together, in all sketches of a
	// watch. Those that find no room are cut.
	freeKept = 256
	maxLong  = 16 << 20

	// runEnds is for how long a key may be quiet within one run of denials. The audit trail
	// uses the same time for its episodes.
	runEnds = 5 * time.Minute
)

// denials are the denials of one key.
type denials struct {
	key    string // its first cutKept bytes, if it was too long to keep
	hash   uint64 // of the whole key
	length int    // of the whole key, in bytes
	count  uint64 // never too low
	excess uint64 // count is too high by at most this
	since  time.Time
	last   time.Time // since and last are of the present run of denials
	policy string    // the limit that has denied last
}

// whole reports whether the key is kept as a whole.
func (d *denials) whole() bool { return len(d.key) == d.length }

// A sketch counts denials by key. Its methods need a lock of the caller's.
type sketch struct {
	long  *atomic.Int64 // what long keys take in all sketches, in bytes
	seed  maphash.Seed
	index map[uint64]int // a key's hash to its place in top
	top   []denials
}

// add counts a denial. A key that finds no room takes the place of the key with the lowest
// count, and goes on from that count.
func (s *sketch) add(key, policy string, now time.Time) {
	if s.index == nil {
		s.seed, s.index = maphash.MakeSeed(), make(map[uint64]int, sketchSize)
	}
	hash := maphash.String(s.seed, key)
	i, ok := s.index[hash]
	if !ok {
		i = s.place(hash)
		was := &s.top[i]
		s.drop(was.key)
		*was = denials{key: s.keep(key), hash: hash, length: len(key), count: was.count, excess: was.count}
	}
	d := &s.top[i]
	if d.last.IsZero() || now.Sub(d.last) >= runEnds {
		d.since = now
	}
	d.count++
	d.last, d.policy = now, policy
}

// place returns where a new key goes.
func (s *sketch) place(hash uint64) int {
	if len(s.top) < sketchSize {
		s.top = append(s.top, denials{})
		s.index[hash] = len(s.top) - 1
		return len(s.top) - 1
	}
	least := 0
	for i := range s.top {
		if s.top[i].count < s.top[least].count {
			least = i
		}
	}
	delete(s.index, s.top[least].hash)
	s.index[hash] = least
	return least
}

// keep returns what is kept of a key. The request that it comes from is not kept.
func (s *sketch) keep(key string) string {
	if n := int64(len(key)); n > maxKept || n > freeKept && s.long.Add(n) > maxLong {
		if n <= maxKept {
			s.long.Add(-n)
		}
		key = key[:cutKept]
	}
	return strings.Clone(key)
}

// drop gives up what was kept of a key.
func (s *sketch) drop(kept string) {
	if len(kept) > freeKept {
		s.long.Add(-int64(len(kept)))
	}
}

// clear forgets all keys.
func (s *sketch) clear() {
	for i := range s.top {
		s.drop(s.top[i].key)
	}
	s.top, s.index = nil, nil
}

// find returns what is known of a key.
func (s *sketch) find(key string) (denials, bool) {
	if s.index == nil {
		return denials{}, false
	}
	i, ok := s.index[maphash.String(s.seed, key)]
	if !ok {
		return denials{}, false
	}
	return s.top[i], true
}

// endRun ends the run of denials of a key: it was unblocked.
func (s *sketch) endRun(key string) {
	if s.index == nil {
		return
	}
	if i, ok := s.index[maphash.String(s.seed, key)]; ok {
		s.top[i].last = time.Time{}
	}
}

// ranked returns the keys, the one with the most denials first.
func (s *sketch) ranked() []denials {
	all := slices.Clone(s.top)
	slices.SortFunc(all, func(a, b denials) int {
		return cmp.Or(cmp.Compare(b.count, a.count), strings.Compare(a.key, b.key))
	})
	return all
}
