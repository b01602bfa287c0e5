package nearcache

import (
	"slices"
	"strings"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A lease is units of a busy key that the store has counted already, to be handed out
// here without asking it. Only keys with a lease, or for which one has been asked for,
// have an entry here. How busy a key is, is known by its hash.

type lease struct {
	limits []rule.Limit // under which the units were counted
	older  units        // what is left of earlier units
	newer  units        // the units that came last
	size   int64        // of both when the last ones came
	asking bool         // a caller is on its way for more
	asked  int64        // since then
}

type units struct {
	left  int64
	until int64   // when what is left of them goes back
	at    Instant // of the earliest of them
}

func (l *lease) left() int64 { return l.older.left + l.newer.left }

// oldest is what is spent next, and what the lease ends with.
func (l *lease) oldest() *units {
	if l.older.left > 0 {
		return &l.older
	}
	return &l.newer
}

func (l *lease) live(now int64) bool { return now < l.oldest().until }

// serves reports whether units of the lease can be used under limits.
func (l *lease) serves(limits []rule.Limit, now int64) bool {
	return l != nil && l.live(now) && slices.Equal(l.limits, limits)
}

const (
	// A key needs this many units asked for in an age to have a lease.
	leaseBusy = 8
	// A process holds at most this part of what is left of a key, so that the last units of a
	// limit are there for everybody. It is also the most that it can take with it when it
	// is killed.
	leaseShare = 16
	// More of a lease is asked for when this part of it is left.
	leaseLow = 4
)

// demand is how busy one key is.
type demand struct {
	tag    uint64
	since  int64 // the begin of this age
	used   int64 // units asked for since then
	before int64 // in the age before
}

// demandSet holds the busiest of the keys whose hash names it. A newcomer takes the place
// of the one that is asked for least, so that a flood of keys that come once displaces
// its own kind.
type demandSet [4]demand

// demand returns how busy a key is, in the place of another if need be. The stripe of
// the key is locked.
func (c *Cache) demand(p *place, now, age int64) *demand {
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

// turn begins a new age if the old one is over.
func (d *demand) turn(now, age int64) {
	if span := now - d.since; span >= age {
		d.before = 0
		if span < 2*age {
			d.before = d.used
		}
		d.since, d.used = now, 0
	}
}

// TakeLeased takes n units of key out of its lease, if it has n left, and fills
// answers. at is when the store counted them. If refill is true it is time to ask for
// more, with WantLease. An age, here and below, is how long units may be held, in
// nanoseconds.
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
	for i := range limits {
		state, _ := c.memory.table.State(p.Hash, now, &limits[i])
		_, a := limits[i].Take(state, now, 0)
		a.Remaining = min(a.Remaining+l.left()-n, limits[i].Cap())
		answers[i] = a
	}
	at = l.oldest().at
	old := min(n, l.older.left)
	l.older.left -= old
	l.newer.left -= n - old
	return at, true, !l.asking && l.left() < l.size/leaseLow
}

// GiveBackLeased puts n units that were taken at an instant back into the lease, if they
// are of its time and there is room where they have come from.
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

// Leased is how many units of key can be taken out of its lease.
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

// LeaseRequest is a question to the store for units of a lease.
type LeaseRequest struct {
	Units   int64
	at      int64
	forgets uint64
}

// WantLease returns how many units to take for a lease, in addition to the units that a
// request needs. If that is more than 0, the caller must call [Cache.AddLease] with the
// outcome. A key without a counter here is taken for whole. If it is not, the store
// denies the lease.
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
	wanted := busy / 2 // enough for half an age
	for i := range limits {
		state, _ := c.memory.table.State(p.Hash, now, &limits[i])
		_, a := limits[i].Take(state, now, 0)
		wanted = min(wanted, a.Remaining/leaseShare)
	}
	if l != nil && l.live(now) && l.left() > 0 {
		if !slices.Equal(l.limits, limits) {
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
	return LeaseRequest{wanted, now, p.forgets}
}

// AddLease takes over the units of a request when the store has counted them at its
// instant at. If none have come, Units of the request must be 0. It returns how many units
// can be taken now. If ok is true, what was left of a lease before has ended and must be
// given back.
func (c *Cache) AddLease(r LeaseRequest, key string, at, now, age int64, limits []rule.Limit, answers []rule.Answer) (held int64, ended EndedLease, ok bool) {
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.leases[key]
	if (l == nil || l.asked != r.at) && p.forgets != r.forgets {
		return 0, EndedLease{}, false // the store has forgotten the key, and perhaps these units
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
	if !l.serves(limits, now) {
		ended, ok = l.end(key)
		l.limits = slices.Clone(limits)
	}
	if l.older.left > 0 {
		l.older.left += l.newer.left
	} else {
		l.older = l.newer
	}
	l.newer = units{r.Units, r.at + age, taken}
	l.size = l.left()
	for i := range limits {
		if limits[i].Kind == rule.Fixed { // they are of a window, which ends no earlier than this
			l.newer.until = min(l.newer.until, r.at+answers[i].Reset)
		}
	}
	return l.left(), ended, ok
}

// EndedLease is what was left of a lease, to be given back to the store.
type EndedLease struct {
	Key    string
	Units  int64
	At     Instant // when the store counted the earliest of them
	Limits []rule.Limit
}

// EndLeases ends the leases whose time is over, or all of them, and returns what was
// left of each.
func (c *Cache) EndLeases(now int64, all bool) (ended []EndedLease) {
	for i := range c.stripes {
		s := &c.stripes[i]
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

// HasLeases reports whether a key has a lease, or one has been asked for.
func (c *Cache) HasLeases() bool {
	for i := range c.stripes {
		s := &c.stripes[i]
		s.mu.Lock()
		n := len(s.leases)
		s.mu.Unlock()
		if n > 0 {
			return true
		}
	}
	return false
}

func (l *lease) end(key string) (EndedLease, bool) {
	ended := EndedLease{Key: key, Units: l.left(), At: l.oldest().at, Limits: l.limits}
	l.older, l.newer, l.size = units{}, units{}, 0
	return ended, ended.Units > 0
}
