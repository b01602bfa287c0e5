package nearcache

import (
	"slices"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// lease is units of a key that the store has counted already, to be handed out here:
// those that came last, and the rest of those before.
type lease struct {
	limits []rule.Limit // under which they were counted
	old    batch
	new    batch
	size   int64 // of both when the last ones came
	asking bool  // a caller is on its way for more
	asked  int64 // since then

	since  int64
	used   int64 // units asked for since then
	before int64 // in the age before that
}

type batch struct {
	units int64
	until int64 // when what is left of them goes back
	told  int64 // the store's instant of the earliest of them
}

func (l *lease) left() int64 { return l.old.units + l.new.units }

// oldest is what is spent next, and what the lease ends with.
func (l *lease) oldest() *batch {
	if l.old.units > 0 {
		return &l.old
	}
	return &l.new
}

func (l *lease) live(now int64) bool { return now < l.oldest().until }

const (
	// A key that is asked for less often than so many times in an age has no lease.
	leaseBusy = 8
	// A process holds at most this part of what is left of a key, so that the last units of a
	// limit are there for everybody. It is also the most that it can take with it when it
	// is killed.
	leaseShare = 16
	// A lease is fetched anew when this part of it is left.
	leaseLow = 4
)

// Spend takes n units of key out of its lease, if it has so many, and fills in
// answers. If refill is true it is time to ask the store for more, by way of Want.
// An age, here and below, is how long units may be held, in nanoseconds.
func (c *Cache) Spend(key string, n int64, limits []rule.Limit, now, age int64, answers []rule.Answer) (told int64, ok, refill bool) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil {
		return 0, false, false
	}
	l := &e.lease
	l.demand(n, now, age)
	if n > l.left() || !l.live(now) || !slices.Equal(l.limits, limits) {
		return 0, false, false
	}
	for i := range limits {
		_, a := limits[i].Take(e.state(&limits[i]), now, 0)
		a.Remaining = min(a.Remaining+l.left()-n, limits[i].Cap())
		answers[i] = a
	}
	told = l.oldest().told
	old := min(n, l.old.units)
	l.old.units -= old
	l.new.units -= n - old
	s.use(e, owing)
	return told, true, !l.asking && l.left() < l.size/leaseLow
}

// Unspend puts units that were taken at the store's instant at back into the lease, if
// they are of its time and there is room where they have come from.
func (c *Cache) Unspend(key string, n int64, limits []rule.Limit, now, at int64) bool {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil || !slices.Equal(e.lease.limits, limits) {
		return false
	}
	l := &e.lease
	if !l.live(now) || at < l.oldest().told || n > l.size-l.left() {
		return false
	}
	l.oldest().units += n
	return true
}

// Held is how many units of key are there to be spent.
func (c *Cache) Held(key string, limits []rule.Limit, now int64) int64 {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil || !e.lease.live(now) || !slices.Equal(e.lease.limits, limits) {
		return 0
	}
	return e.lease.left()
}

// An Ask is to the store, for units of a lease.
type Ask struct {
	Units int64
	at    int64
	era   uint64
}

// Want tells how many units to take for a lease, beside those that are needed now. If
// it is any, [Cache.Leased] is to be called with what has come of it.
func (c *Cache) Want(key string, limits []rule.Limit, now int64) Ask {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil || e.lease.asking || e.indebted || e.hashed {
		return Ask{}
	}
	l := &e.lease
	busy := max(l.used, l.before)
	if busy < leaseBusy {
		return Ask{}
	}
	units := busy / 2 // enough for half an age
	for i := range limits {
		counter := e.find(&limits[i])
		if counter == nil || counter.limit != limits[i] {
			return Ask{}
		}
		_, a := limits[i].Take(counter.state, now, 0)
		units = min(units, a.Remaining/leaseShare)
	}
	if l.live(now) && l.left() > 0 {
		if !slices.Equal(l.limits, limits) {
			return Ask{} // one lease at a time
		}
		units -= l.left()
	}
	if units <= 0 {
		return Ask{}
	}
	l.asking, l.asked = true, now
	return Ask{units, now, s.forgets}
}

// Leased takes over the units of an ask, of which there may have come none, when the store has
// counted them at its instant told. It returns how many there are to be spent now, and
// what is left of a lease that was over before.
func (c *Cache) Leased(ask Ask, key string, limits []rule.Limit, answers []rule.Answer, told, now, age int64) (held int64, lapsed Lapsed, ok bool) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if (e == nil || e.lease.asked != ask.at) && s.forgets != ask.era {
		return 0, Lapsed{}, false // the store has forgotten the key, and perhaps that these were taken
	}
	if e == nil { // evicted meanwhile
		return 0, Lapsed{key, ask.Units, told, slices.Clone(limits)}, ask.Units > 0
	}
	l := &e.lease
	l.asking = false
	if ask.Units == 0 {
		return 0, Lapsed{}, false
	}
	if !l.live(now) || !slices.Equal(l.limits, limits) {
		lapsed, ok = e.lapse()
		l.limits = slices.Clone(limits)
	}
	if l.old.units > 0 {
		l.old.units += l.new.units
	} else {
		l.old = l.new
	}
	l.new = batch{ask.Units, ask.at + age, told}
	l.size = l.left()
	for i := range limits {
		if limits[i].Kind == rule.Fixed { // they are of a window, which ends no earlier than this
			l.new.until = min(l.new.until, ask.at+answers[i].Reset)
		}
	}
	if s.leased == nil {
		s.leased = make(map[*entry]struct{})
	}
	s.leased[e] = struct{}{}
	return l.left(), lapsed, ok
}

// Lapsed is what was left of a lease, for the store to be given back.
type Lapsed struct {
	Key    string
	Units  int64
	Told   int64 // the store's instant at which they were counted
	Limits []rule.Limit
}

// Lapse ends the leases whose time is over, or all of them.
func (c *Cache) Lapse(now int64, all bool) (lapsed []Lapsed) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for e := range s.leased {
			if !all && e.lease.live(now) {
				continue
			}
			if l, ok := e.lapse(); ok {
				lapsed = append(lapsed, l)
			}
			delete(s.leased, e)
		}
		s.mu.Unlock()
	}
	return lapsed
}

// Leases reports whether there are any.
func (c *Cache) Leases() bool {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n := len(s.leased)
		s.mu.Unlock()
		if n > 0 {
			return true
		}
	}
	return false
}

func (e *entry) lapse() (Lapsed, bool) {
	l := &e.lease
	lapsed := Lapsed{Key: e.key, Units: l.left(), Told: l.oldest().told, Limits: l.limits}
	l.old, l.new, l.size = batch{}, batch{}, 0
	return lapsed, lapsed.Units > 0
}

// demand keeps count of how busy a key is.
func (l *lease) demand(n, now, age int64) {
	if span := now - l.since; span >= age {
		l.before = 0
		if span < 2*age {
			l.before = l.used
		}
		l.since, l.used = now, 0
	}
	l.used = min(l.used+min(n, rule.MaxUnits), rule.MaxUnits)
}
