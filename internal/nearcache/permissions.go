package nearcache

import (
	"sync"
	"sync/atomic"
)

// permissions say until when this process may deny a key without asking the store, if
// the key is known to be denied. A permission may get lost, because another one replaces
// it or because units were given back. Then the store is asked once more. So the set
// need not be exact, except that a key without a permission is not denied here. Whether
// a key is denied is not decided here, but by the table.
//
// A permission is 8 bytes: an instant whose last 16 bits are replaced by 16 bits of the
// key's hash, which makes it up to 65 µs early. The hash selects two sets, each one cache
// line. The permission may be in any of the 8 places of either set. If two keys of one
// set have the same 16 bits, each of them uses the permission of the other. A key is
// still denied only if the table knows it to be denied.
type permissions struct {
	sets atomic.Pointer[[]permissionSet]
	old  atomic.Pointer[[]permissionSet] // the sets before the last growth; nil after a while
	most int                             // sets

	mu        sync.Mutex // held while the sets are replaced
	puts      atomic.Int64
	displaced atomic.Int64
}

const (
	setSize   = 8
	minSets   = 64 // 4 kB
	tagBits   = 16
	tagMask   = 1<<tagBits - 1
	growAfter = setSize // after this many puts for each set, grow decides whether to grow
)

type (
	permission    struct{ atomic.Int64 }
	permissionSet [setSize]permission
)

// tag returns the bits by which a permission is found in its set. A permission for exactly
// n units has other bits than a permission for any number of units, for which n is 0.
func tag(bits uint64, n int64) int64 {
	return max(1, int64((bits^uint64(n)*0x9e3779b97f4a7c15)>>(64-tagBits)))
}

// pair returns the two sets of a key.
func pair(sets *[]permissionSet, bits uint64) (a, b *permissionSet) {
	n := uint64(len(*sets))
	return &(*sets)[bits%n], &(*sets)[bits*0xbf58476d1ce4e5b9>>32%n]
}

// find returns the permission to deny n units of a key, and when it ends. It returns
// nil if there is none. It takes no lock.
func (ps *permissions) find(bits uint64, n int64) (p *permission, until int64) {
	any, only := tag(bits, 0), tag(bits, n)
	for _, sets := range [2]*[]permissionSet{ps.sets.Load(), ps.old.Load()} {
		if sets == nil {
			break
		}
		a, b := pair(sets, bits)
		for _, set := range [2]*permissionSet{a, b} {
			for i := range set {
				if until := set[i].Load(); until != 0 && (until&tagMask == any || until&tagMask == only) {
					return &set[i], until
				}
			}
		}
	}
	return nil, 0
}

// extend moves the end of a permission that is over. It returns false if another caller
// has changed the permission first.
func (p *permission) extend(from, until int64) bool {
	return p.CompareAndSwap(from, until&^tagMask|from&tagMask)
}

// put adds a permission to deny n units of a key, or any number of units if n is 0.
// It takes mu only to grow. If another caller changes the same place at the same
// time, the permission is lost.
func (ps *permissions) put(bits uint64, n, until, now int64) {
	if until&^tagMask <= now {
		return
	}
	sets := ps.grow()
	of := tag(bits, n)
	a, b := pair(sets, bits)
	p, have, live := a.findFor(of, now)
	if have&tagMask != of || have == 0 {
		if q, other, others := b.findFor(of, now); other&tagMask == of && other != 0 || others < live {
			p, have, live = q, other, others
		}
	}
	if live == setSize && have&tagMask != of {
		ps.displaced.Add(1)
	}
	p.CompareAndSwap(have, until&^tagMask|of)
}

// findFor returns where a set has the permission with a tag, or would put it. It also
// returns the value there, and how many permissions of the set are not over. That
// count is only complete if the tag is not in the set.
func (s *permissionSet) findFor(of, now int64) (p *permission, have int64, live int) {
	p, have = &s[0], s[0].Load()
	for i := range s {
		other := s[i].Load()
		if other > now {
			live++
		}
		if other != 0 && other&tagMask == of {
			return &s[i], other, live
		}
		if other < have {
			p, have = &s[i], other
		}
	}
	return p, have, live
}

// drop removes the permission to deny any number of units of a key. It takes no
// lock.
func (ps *permissions) drop(bits uint64) {
	any := tag(bits, 0)
	for _, sets := range [2]*[]permissionSet{ps.sets.Load(), ps.old.Load()} {
		if sets == nil {
			return
		}
		a, b := pair(sets, bits)
		for _, set := range [2]*permissionSet{a, b} {
			for i := range set {
				if have := set[i].Load(); have&tagMask == any {
					set[i].CompareAndSwap(have, 0)
				}
			}
		}
	}
}

// grow returns the sets to put a permission into. If one in 16 of the last puts has
// displaced another permission, grow doubles the number of sets. The old sets are still
// searched until enough permissions were put into the new ones. grow may take mu.
func (ps *permissions) grow() *[]permissionSet {
	sets := ps.sets.Load()
	if sets != nil && ps.puts.Add(1) < int64(growAfter*len(*sets)) {
		return sets
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if now := ps.sets.Load(); sets != now {
		return now // another caller was first
	}
	most := max(1, ps.most)
	var grown []permissionSet
	switch {
	case sets == nil:
		grown = make([]permissionSet, min(minSets, most))
	case len(*sets) < most && ps.displaced.Load() > ps.puts.Load()/16:
		grown = make([]permissionSet, min(2*len(*sets), most))
	}
	ps.puts.Store(0)
	ps.displaced.Store(0)
	if len(grown) == 0 {
		ps.old.Store(nil)
		return sets
	}
	ps.old.Store(sets)
	ps.sets.Store(&grown)
	return &grown
}
