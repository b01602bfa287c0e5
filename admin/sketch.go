package admin

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
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

	// runEnds is for how long a key may be quiet within one run of denials. The audit trail
	// uses the same time for its episodes.
	runEnds = 5 * time.Minute
)

// denials are the denials of one key.
type denials struct {
	key    string // its first cutKept bytes, if it is longer than maxKept
	length int    // of the whole key, in bytes
	count  uint64 // never too low
	excess uint64 // count is too high by at most this
	since  time.Time
	last   time.Time // since and last are of the present run of denials
	policy string    // the limit that has denied last
}

// whole reports whether the key is kept as a whole.
func (d *denials) whole() bool { return len(d.key) == d.length }

// A sketch counts denials by key. The zero value is ready to use. Its methods need a lock of
// the caller's.
type sketch struct {
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
		kept := key
		if len(kept) > maxKept {
			kept = kept[:cutKept]
		}
		s.top[i] = denials{key: strings.Clone(kept), length: len(key), count: s.top[i].count, excess: s.top[i].count}
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
	for other, i := range s.index {
		if i == least {
			delete(s.index, other)
			break
		}
	}
	s.index[hash] = least
	return least
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
