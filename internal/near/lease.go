package near

import (
	"slices"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// lease is units of a key that the store has counted already, to be handed out here.
type lease struct {
	limits []rule.Limit // under which they were counted
	left   int64
	size   int64
	until  int64 // when what is left goes back
	told   int64 // the store's instant of the earliest of them
	asking bool  // a caller is on its way for more

	since  int64
	used   int64 // units asked for since then
	before int64 // in the age before that
}

const (
	// A key that is asked for less often than so many times in an age has no lease.
	leaseBusy = 8
	// A lease takes at most this part of what is left, so that the last units of a limit
	// are there for everybody. It is also the most that a process can take with it when
	// it is killed.
	leaseShare = 16
	// A lease is fetched anew when this part of it is left.
	leaseLow = 4
)

// Spend takes n units of key out of its lease, if it has so many, and fills in
// answers. If refill is true it is time to ask the store for more, by way of Want.
// An age, here and below, is how long a lease may be held, in nanoseconds.
func (c *Cache) Spend(key string, n int64, limits []rule.Limit, now, age int64, answers []rule.Answer) (told int64, ok, refill bool) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil {
		return 0, false, false
	}
	l := &e.lease
	l.demand(n, now, age)
	if n > l.left || now >= l.until || !slices.Equal(l.limits, limits) {
		return 0, false, false
	}
	l.left -= n
	for i := range limits {
		_, a := limits[i].Take(e.state(&limits[i]), now, 0)
		a.Remaining = min(a.Remaining+l.left, limits[i].Cap())
		answers[i] = a
	}
	s.use(e, owing)
	return l.told, true, !l.asking && l.left < l.size/leaseLow
}

// Unspend puts units back into the lease that they have come from, if there still is one that so
// many are missing from.
func (c *Cache) Unspend(key string, n int64, limits []rule.Limit, now int64) bool {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil || n > e.lease.size-e.lease.left || now >= e.lease.until || !slices.Equal(e.lease.limits, limits) {
		return false
	}
	e.lease.left += n
	return true
}

// Want tells how many units to take for a lease, beside those that are needed now. If
// it is any, [Cache.Leased] is to be called with what has come of it.
func (c *Cache) Want(key string, limits []rule.Limit, now int64) (extra int64) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil || e.lease.asking || e.indebted {
		return 0
	}
	busy := max(e.lease.used, e.lease.before)
	if busy < leaseBusy {
		return 0
	}
	extra = busy / 2 // enough for half an age
	for i := range limits {
		counter := e.find(&limits[i])
		if counter == nil || counter.limit != limits[i] {
			return 0
		}
		_, a := limits[i].Take(counter.state, now, 0)
		extra = min(extra, a.Remaining/leaseShare)
	}
	e.lease.asking = extra > 0
	return extra
}

// Leased takes over units that the store has counted at its instant told, for a
// request sent at asked, or takes note that there were none. It returns what is left
// of a lease that was over before.
func (c *Cache) Leased(key string, extra int64, limits []rule.Limit, answers []rule.Answer, told, asked, now, age int64) (lapsed Lapsed, ok bool) {
	s, k := c.lock(key)
	defer s.mu.Unlock()
	e := s.keys[k]
	if e == nil { // evicted meanwhile
		return Lapsed{key, extra, told, slices.Clone(limits)}, extra > 0
	}
	l := &e.lease
	l.asking = false
	if extra == 0 {
		return Lapsed{}, false
	}
	if now >= l.until || !slices.Equal(l.limits, limits) {
		lapsed, ok = e.lapse()
		l.limits = slices.Clone(limits)
		l.told = told
	}
	l.left += extra
	l.size = l.left
	l.until = asked + age
	for i := range limits {
		if limits[i].Kind == rule.Fixed { // they are of a window, which ends no earlier than this
			l.until = min(l.until, asked+answers[i].Reset)
		}
	}
	if s.leased == nil {
		s.leased = make(map[*entry]struct{})
	}
	s.leased[e] = struct{}{}
	return lapsed, ok
}

// Lapsed is what was left of a lease, for the store to be given back.
type Lapsed struct {
	Key    string
	Units  int64
	Told   int64 // the store's instant at which they were counted
	Limits []rule.Limit
}

// Lapse ends the leases whose time is over, or all of them. It also reports whether there are
// others.
func (c *Cache) Lapse(now int64, all bool) (lapsed []Lapsed, more bool) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for e := range s.leased {
			if !all && now < e.lease.until {
				more = true
				continue
			}
			if l, ok := e.lapse(); ok {
				lapsed = append(lapsed, l)
			}
			delete(s.leased, e)
		}
		s.mu.Unlock()
	}
	return lapsed, more
}

func (e *entry) lapse() (Lapsed, bool) {
	l := &e.lease
	lapsed := Lapsed{Key: e.key, Units: l.left, Told: l.told, Limits: l.limits}
	l.left, l.size, l.until = 0, 0, 0
	return lapsed, lapsed.Units > 0 && !e.hashed
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
	l.used += n
}
