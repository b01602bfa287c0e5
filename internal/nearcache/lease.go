package nearcache

import (
	"slices"
	"strings"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A lease has units of a busy key that the store has already counted. This process
// hands them out without asking the store. This file decides which keys get a lease,
// how many units it has and when it ends. Taking the units at the store and giving
// them back is up to package remote. A key is in the map of leases only if it has a
// lease, or if one has been requested. How busy a key is, is counted by its hash.

type lease struct {
	limits  []rule.Limit // the limits under which the store counted the units
	earlier units        // what is left of the units before the last request
	latest  units        // what is left of the units of the last request
	size    int64        // units of both when the last request was answered
	asking  bool         // a caller is asking the store for more
	asked   int64        // when that caller began, on our clock
}

type units struct {
	left  int64
	until int64   // when the rest of them is given back
	at    Instant // when the store counted the earliest of them
}

func (l *lease) left() int64 { return l.earlier.left + l.latest.left }

// oldest returns the units that are spent next. The lease ends when their time
// is over.
func (l *lease) oldest() *units {
	if l.earlier.left > 0 {
		return &l.earlier
	}
	return &l.latest
}

// live reports whether the time of the lease is not over.
func (l *lease) live(now int64) bool { return now < l.oldest().until }

// serves reports whether units of the lease can be used under limits at now. It
// returns false for a nil lease.
func (l *lease) serves(limits []rule.Limit, now int64) bool {
	return l != nil && l.live(now) && sameLimits(l.limits, limits)
}

func sameLimits(a, b []rule.Limit) bool {
	return slices.EqualFunc(a, b, func(x, y rule.Limit) bool { return x.Same(&y) })
}

// stopLease ends the time of a key's lease, because the key is blocked: no unit of it is
// handed out any more, and the next EndLeases returns the rest. The key's stripe must be
// locked.
func (p *keyRef) stopLease(key string) {
	if l := p.leases[key]; l != nil {
		l.earlier.until, l.latest.until = 0, 0
	}
}

const (
	// leaseBusy is how many units of a key must be requested in an age before
	// the key gets a lease.
	leaseBusy = 8
	// leaseShare bounds a lease to this part of the units that are left of a key (a
	// sixteenth). So the last units of a limit are available to all processes. It also bounds
	// how many units are lost if the process is killed.
	leaseShare = 16
	// leaseLow is the part of a lease (a quarter) below which more units are
	// requested.
	leaseLow = 4
)

// demand is how busy one key is.
type demand struct {
	tag    uint64
	since  int64 // when the present age began
	used   int64 // units requested since then
	before int64 // units requested in the age before
}

// demandSet has the busiest keys among those with the same part of the hash. A new key
// replaces the key with the fewest requested units. So a flood of keys that are used once
// mostly replaces keys of the same flood.
type demandSet [4]demand

// demand returns the demand of a key. If there is none, it makes one and may replace
// another key's. The stripe of the key must be locked.
func (c *Cache) demand(p *keyRef, now, age int64) *demand {
	sets := c.demands.Load()
	if sets == nil {
		c.demands.CompareAndSwap(nil, new([marks]demandSet))
		sets = c.demands.Load()
	}
	set := &sets[p.bits>>32%marks]
	least := &set[0]
	for i := range set {
		d := &set[i]
		if d.tag == p.bits {
			d.turn(now, age)
			return d
		}
		if d.turn(now, age); d.units() < least.units() {
			least = d
		}
	}
	*least = demand{tag: p.bits, since: now}
	return least
}

func (d *demand) units() int64 { return max(d.used, d.before) }

// turn begins a new age if the present one is over.
func (d *demand) turn(now, age int64) {
	if span := now - d.since; span >= age {
		d.before = 0
		if span < 2*age {
			d.before = d.used
		}
		d.since, d.used = now, 0
	}
}

// TakeLeased takes n units of key out of its lease and fills answers, if n units are
// left and none of the key's counters is blocked. at is when the store counted them. If
// refill is true, the lease is running low, and the caller should request more with
// WantLease. age, here and below, is how long units may be held, in nanoseconds.
// TakeLeased locks the key's stripe.
func (c *Cache) TakeLeased(key string, n, now, age int64, limits []rule.Limit, answers []rule.Answer) (at Instant, ok, refill bool) {
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	d := c.demand(&p, now, age)
	d.used = min(d.used+min(n, rule.MaxUnits), rule.MaxUnits)
	l := p.leases[key]
	if !l.serves(limits, now) || n > l.left() {
		return Instant{}, false, false
	}
	var states [MaxLimits]rule.State
	if c.memory.table.States(p.Hash, now, limits, states[:len(limits)]) != 0 {
		return Instant{}, false, false
	}
	for i := range limits {
		_, a := limits[i].Take(states[i], now, 0)
		a.Remaining = min(a.Remaining+l.left()-n, limits[i].Cap())
		answers[i] = a
	}
	at = l.oldest().at
	old := min(n, l.earlier.left)
	l.earlier.left -= old
	l.latest.left -= n - old
	return at, true, !l.asking && l.left() < l.size/leaseLow
}

// GiveBackLeased puts n units that were taken at an instant back into the lease. It
// reports whether it did. It does not if the units are older than the lease, or if the
// lease has no room for them. It locks the key's stripe.
func (c *Cache) GiveBackLeased(key string, n int64, at Instant, now int64, limits []rule.Limit) bool {
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.leases[key]
	if !l.serves(limits, now) || at.Store < l.oldest().at.Store || n > l.size-l.left() {
		return false
	}
	l.oldest().left += n
	return true
}

// Leased returns how many units of key can be taken out of its lease. It locks
// the key's stripe.
func (c *Cache) Leased(key string, now int64, limits []rule.Limit) int64 {
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.leases[key]
	if !l.serves(limits, now) {
		return 0
	}
	return l.left()
}

// LeaseRequest describes units that a caller must take at the store for a
// lease.
type LeaseRequest struct {
	Units  int64
	at     int64
	erases uint64
}

// WantLease returns how many units to take for a lease, in addition to the units that a
// request needs. If that is more than 0, the caller must call [Cache.AddLease] with the
// outcome. It is 0 for a key that is blocked. A key without a counter here is assumed to be
// unused. If it is not, the store denies the lease. WantLease locks the key's stripe.
func (c *Cache) WantLease(key string, now, age int64, limits []rule.Limit) LeaseRequest {
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.leases[key]
	if e := p.ledger.keys[p.Hash]; e != nil || l != nil && l.asking || len(key) > longKey {
		return LeaseRequest{}
	}
	busy := c.demand(&p, now, age).units()
	if busy < leaseBusy {
		return LeaseRequest{}
	}
	var states [MaxLimits]rule.State
	if c.memory.table.States(p.Hash, now, limits, states[:len(limits)]) != 0 {
		return LeaseRequest{}
	}
	wanted := busy / 2 // enough for half an age
	for i := range limits {
		_, a := limits[i].Take(states[i], now, 0)
		wanted = min(wanted, a.Remaining/leaseShare)
	}
	if l != nil && l.live(now) && l.left() > 0 {
		if !sameLimits(l.limits, limits) {
			return LeaseRequest{} // one lease at a time
		}
		wanted -= l.left()
	}
	if wanted <= 0 {
		return LeaseRequest{}
	}
	if l == nil {
		l = new(lease)
		if p.leases == nil {
			p.leases = make(map[string]*lease)
		}
		p.leases[strings.Clone(key)] = l
	}
	l.asking, l.asked = true, now
	return LeaseRequest{wanted, now, p.erases}
}

// AddLease adds the units of a request to the lease after the store has counted them at
// its instant at. If the store has granted none, the caller must set Units of the request
// to 0. AddLease returns how many units can be taken now. If ok is true, units of ended
// must be given back to the store by the caller: the rest of an earlier lease, or the units
// of the request if the key has been blocked in the meantime. AddLease locks the key's
// stripe.
func (c *Cache) AddLease(r LeaseRequest, key string, at, now, age int64, limits []rule.Limit, answers []rule.Answer) (held int64, ended EndedLease, ok bool) {
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.leases[key]
	if (l == nil || l.asked != r.at) && p.erases != r.erases {
		return 0, EndedLease{}, false // the key was reset, and perhaps these units with it
	}
	taken := c.InstantOf(at)
	if l == nil {
		return 0, EndedLease{key, r.Units, taken, slices.Clone(limits)}, r.Units > 0
	}
	l.asking = false
	if r.Units == 0 {
		if l.left() == 0 {
			delete(p.leases, key)
		}
		return 0, EndedLease{}, false
	}
	var states [MaxLimits]rule.State
	if c.memory.table.States(p.Hash, now, limits, states[:len(limits)]) != 0 {
		// The rest of an earlier lease stays, because it may be of other limits. It was
		// stopped when the block became known, so the next EndLeases returns it.
		if l.left() == 0 {
			delete(p.leases, key)
		}
		return 0, EndedLease{key, r.Units, taken, slices.Clone(limits)}, true
	}
	if !l.serves(limits, now) {
		ended, ok = l.end(key)
		l.limits = slices.Clone(limits)
	}
	if l.earlier.left > 0 {
		l.earlier.left += l.latest.left
	} else {
		l.earlier = l.latest
	}
	l.latest = units{r.Units, r.at + age, taken}
	l.size = l.left()
	for i := range limits {
		if limits[i].Kind == rule.Fixed || limits[i].Kind == rule.Calendar { // the units belong to a window, which ends no earlier than this
			l.latest.until = min(l.latest.until, r.at+answers[i].Reset)
		}
	}
	return l.left(), ended, ok
}

// EndedLease has the rest of a lease, which must be given back to the store.
type EndedLease struct {
	Key    string
	Units  int64
	At     Instant // when the store counted the earliest of them
	Limits []rule.Limit
}

// EndLeases ends the leases whose time is over, or all of them, and returns the rest
// of each. It locks one stripe at a time.
func (c *Cache) EndLeases(now int64, all bool) (ended []EndedLease) {
	for s := range c.made {
		s.mu.Lock()
		for key, l := range s.leases {
			if !all && l.live(now) {
				continue
			}
			if e, ok := l.end(key); ok {
				ended = append(ended, e)
			}
			if !l.asking {
				delete(s.leases, key)
			}
		}
		s.mu.Unlock()
	}
	return ended
}

// HasLeases reports whether any key has a lease, or one has been requested. It
// locks one stripe at a time.
func (c *Cache) HasLeases() bool {
	for s := range c.made {
		s.mu.Lock()
		n := len(s.leases)
		s.mu.Unlock()
		if n > 0 {
			return true
		}
	}
	return false
}

// end empties a lease. It returns what was left, and whether that was more than 0.
func (l *lease) end(key string) (EndedLease, bool) {
	ended := EndedLease{Key: key, Units: l.left(), At: l.oldest().at, Limits: l.limits}
	l.earlier, l.latest, l.size = units{}, units{}, 0
	return ended, ended.Units > 0
}
