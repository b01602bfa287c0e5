package storetest

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// A fault is one thing that a store does wrong.
type fault struct {
	caught string // the case that is meant for it
	does   string // the store …
	breaks func(s *reference)
	fine   bool // too small a difference for a clock that nobody sets
}

// TestBrokenStoresAreCaught runs, for each fault, the case that is meant for it on a
// store that has this fault only. Many of them are in libraries that exist. The case
// must fail on a clock that the test sets, and on one that goes on by itself if it runs
// there.
func TestBrokenStoresAreCaught(t *testing.T) {
	faults := slices.Concat(takeFaults, severalFaults, waitFaults, timeFaults, adjustFaults, pastUnitsFaults, resetFaults, changeFaults, keyFaults, callFaults,
		blockFaults, severalBlockFaults, handBlockFaults, blockTimeFaults, rollingFaults, calendarFaults, calendarTimeFaults, calendarBlockFaults,
		holdFaults, holdTimeFaults, sharedFaults)
	for _, f := range faults {
		t.Run(f.caught+"/"+f.does, func(t *testing.T) {
			i := slices.IndexFunc(cases, func(c testCase) bool { return c.name == f.caught })
			if i < 0 {
				t.Fatalf("there is no case %q", f.caught)
			}
			found := cases[i].run(t, onSetClock(), onServer(f.breaks, 0))
			report(t, "a clock that is set", found, false)
			if cases[i].days {
				return
			}
			synctest.Test(t, func(t *testing.T) {
				found := cases[i].run(t, onOwnClock(), onServer(f.breaks, slowCall))
				report(t, "a clock that goes on by itself", found, f.fine)
			})
		})
	}
	for _, c := range cases {
		if !slices.ContainsFunc(faults, func(f fault) bool { return f.caught == c.name }) {
			t.Errorf("no broken store shows that case %q can fail", c.name)
		}
	}
}

// slowCall is how long a call takes of a store in real time.
const slowCall = 2 * time.Millisecond

func report(t *testing.T, clock string, found []string, mayPass bool) {
	if len(found) == 0 && !mayPass {
		t.Errorf("with %s the case does not fail", clock)
	}
	for _, problem := range found {
		t.Logf("with %s: %.300s", clock, problem)
	}
}

// onSetClock is the suite's setting for a store in a bubble.
func onSetClock() config { return inBubble() }

// onOwnClock is the suite's setting for a server nearby. In a bubble nothing waits.
func onOwnClock() config {
	cfg := inBubble()
	RealTime(1500*time.Millisecond, 150*time.Millisecond)(&cfg)
	return cfg
}

// onServer returns a function that makes broken stores on one server.
func onServer(breaks func(*reference), delay time.Duration) func(*testing.T, string) ratelimit.Store {
	server := newServer()
	server.delay = delay
	return func(t *testing.T, prefix string) ratelimit.Store {
		s := server.store(prefix)
		breaks(s)
		return s
	}
}

// The rest are parts of faults.

// before changes the call before a take.
func (r *reference) beforeTake(change func(c *call)) {
	take := r.onTake
	r.onTake = func(c *call) error {
		change(c)
		return take(c)
	}
}

// afterTake changes what a take that has succeeded returns.
func (r *reference) afterTake(change func(c *call)) {
	take := r.onTake
	r.onTake = func(c *call) error {
		err := take(c)
		if err == nil {
			change(c)
		}
		return err
	}
}

// eachResult changes each result of a take.
func eachResult(change func(c *call, l ratelimit.Limit, res *ratelimit.Result)) func(*reference) {
	return func(s *reference) {
		s.afterTake(func(c *call) {
			for i, l := range c.limits {
				change(c, l, &c.results[i])
			}
		})
	}
}

// beforeAdjust changes the call before an Adjust.
func beforeAdjust(change func(c *call)) func(*reference) {
	return func(s *reference) {
		adjust := s.onAdjust
		s.onAdjust = func(c *call) (int64, error) {
			change(c)
			return adjust(c)
		}
	}
}

// otherLimits changes the limits of each call.
func otherLimits(change func(ratelimit.Limit) ratelimit.Limit) func(*reference) {
	return func(s *reference) {
		changed := func(c *call) *call {
			other := *c
			other.limits = make([]ratelimit.Limit, len(c.limits))
			for i, l := range c.limits {
				other.limits[i] = change(l)
			}
			return &other
		}
		take, adjust, reset := s.onTake, s.onAdjust, s.onReset
		s.onTake = func(c *call) error {
			other := changed(c)
			err := take(other)
			c.at = other.at
			return err
		}
		s.onAdjust = func(c *call) (int64, error) { return adjust(changed(c)) }
		s.onReset = func(c *call) error { return reset(changed(c)) }
	}
}

// otherNames changes the names of counters.
func otherNames(name func(key string, l ratelimit.Limit) string) func(*reference) {
	return func(s *reference) {
		s.name = func(key string, l ratelimit.Limit) string { return s.prefix + "\x00" + name(key, l) }
	}
}

// otherKeys changes the key of each call.
func otherKeys(change func(string) string) func(*reference) {
	return func(s *reference) {
		name := s.name
		s.name = func(key string, l ratelimit.Limit) string { return name(change(key), l) }
	}
}

// edit changes the counters of a call, as they are now.
func (r *reference) edit(c *call, change func(l ratelimit.Limit, was *counter, now int64)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock()
	for _, l := range c.limits {
		counted := r.get(c.key, l, now)
		change(l, &counted, now)
		r.counters[r.name(c.key, l)] = counted
	}
}

// rounded changes the durations that are returned.
func rounded(round func(time.Duration) time.Duration) func(*reference) {
	return eachResult(func(_ *call, _ ratelimit.Limit, res *ratelimit.Result) {
		for _, d := range []*time.Duration{&res.RetryAfter, &res.MoreAfter, &res.ResetAfter} {
			if *d != 0 && *d != ratelimit.Never {
				*d = round(*d)
			}
		}
	})
}
