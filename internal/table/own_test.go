package table

import (
	"slices"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// These tests have calls with several limits in a table so full that it has to
// evict counters of the same key.

// TestFewerCountersThanLimits: a table with room for fewer counters than one call
// needs still enforces as many limits as it has room for, whatever their order.
func TestFewerCountersThanLimits(t *testing.T) {
	all := []rule.Limit{fixed(3, hour), sliding(3, hour), bucket(1, hour, 3), fixed(3, minute)}
	for most := 1; most <= len(all); most++ {
		for turn := range all {
			limits := slices.Concat(all[turn:], all[:turn])
			tab := newTimed(most)
			for i := range int64(3) {
				if !tab.take("k", 1, limits...) {
					t.Fatalf("room for %d of %+v: unit %d was denied", most, limits, i+1)
				}
				checkInvariants(t, tab.Table)
			}
			if tab.take("k", 1, limits...) {
				t.Errorf("room for %d of %+v: a fourth unit was admitted", most, limits)
			}
			full := 0
			for _, l := range limits {
				if tab.left("k", l) == 0 {
					full++
				}
			}
			if full == 0 || tab.Stats().Counters != most {
				t.Errorf("room for %d of %+v: %d limits are full, %+v", most, limits, full, tab.Stats())
			}
		}
	}
}

// TestOwnCountersStay: in a full table, where all other counters are fresh
// later, the limits of one key do not evict each other. Other counters make
// room, in whatever order the limits are given, and each limit is enforced. No
// other key is used.
func TestOwnCountersStay(t *testing.T) {
	s, m, h := fixed(5, second), fixed(100, minute), fixed(1000, hour)
	for _, limits := range [][]rule.Limit{
		{s, h}, {h, s}, {s, m, h}, {s, h, m}, {m, s, h}, {m, h, s}, {h, s, m}, {h, m, s},
	} {
		tab := newTimed(1000)
		flood(tab, 1000, fixed(1000, 2*hour))
		admitted := int64(0)
		for i := range int64(900) { // a call each millisecond: one window of s
			if tab.at(minute+i*second/1000).take("k", 1, limits...) {
				admitted++
			}
		}
		if admitted != s.N {
			t.Errorf("%+v: %d units admitted, want %d", limits, admitted, s.N)
		}
		checkInvariants(t, tab.Table)
	}
}

// TestOwnCountersStayAmongDenied: the same if all other keys are being denied, and
// for longer. One unit exhausts the key's shorter limits, so their counters are
// marked as denied, too.
func TestOwnCountersStayAmongDenied(t *testing.T) {
	s, m, h := fixed(1, second), fixed(2, minute), fixed(1000, hour)
	for _, limits := range [][]rule.Limit{
		{s, h}, {h, s}, {s, m, h}, {s, h, m}, {m, s, h}, {m, h, s}, {h, s, m}, {h, m, s},
	} {
		tab := newTimed(100)
		flood(tab, 100, newcomer)
		for i := range int64(3) {
			if got, want := tab.at(i).take("k", 1, limits...), i == 0; got != want {
				t.Errorf("%+v, unit %d: admitted %v, want %v", limits, i+1, got, want)
			}
		}
		checkInvariants(t, tab.Table)
	}
}

// TestAdjustReturnsCharged: Adjust returns the smallest number that was charged
// under any limit, and 0 for units given back.
func TestAdjustReturnsCharged(t *testing.T) {
	tab, limits := newTimed(100), []rule.Limit{fixed(5, hour), sliding(9, hour), bucket(1, hour, 7)}
	for i, row := range []struct{ n, want int64 }{{2, 2}, {4, 3}, {1, 0}, {-3, 0}, {0, 0}, {2, 2}, {rule.MaxUnits, 1}} {
		if got := tab.Adjust("k", row.n, 0, limits); got != row.want {
			t.Errorf("call %d, by %d: %d charged, want %d", i+1, row.n, got, row.want)
		}
	}
}

// TestOwnCounterEvicted: the units under one limit are not lost if its counter
// is the first to be evicted when the call needs room for another one.
func TestOwnCounterEvicted(t *testing.T) {
	short, long := fixed(5, minute), fixed(5, hour)
	tab := newTimed(2)
	tab.take("other", 1, fixed(5, 10*minute))
	tab.take("k", 4, short)
	if !tab.take("k", 1, long, short) {
		t.Fatal("the fifth unit was denied")
	}
	if got := tab.left("k", short); got != 0 {
		t.Errorf("%d units left of five taken, want 0: the eviction has lost them", got)
	}
	if got := tab.left("k", long); got != 4 {
		t.Errorf("%d units left of one taken, want 4", got)
	}
	if tab.holds("other", fixed(5, 10*minute)) {
		t.Error("the counter that is fresh first was not the one to go")
	}
	checkInvariants(t, tab.Table)
}

// TestOwnCounterExpired: the same if the counter is freed because it has
// expired.
func TestOwnCounterExpired(t *testing.T) {
	short, long := fixed(5, minute), fixed(5, hour)
	for _, most := range []int{1, 2, 100} {
		tab := newTimed(most)
		tab.take("k", 5, short)
		tab.at(minute)
		for i := range 5 {
			if !tab.take("k", 1, long, short) {
				t.Fatalf("room for %d: unit %d of the new window was denied", most, i+1)
			}
		}
		if tab.take("k", 1, short) {
			t.Errorf("room for %d: a sixth unit was admitted", most)
		}
		checkInvariants(t, tab.Table)
	}
}

// TestDeniedOwnCounter: a denied call makes no counter, so it evicts none.
func TestDeniedOwnCounter(t *testing.T) {
	tight, loose := fixed(1, hour), fixed(5, minute)
	tab := newTimed(2)
	tab.take("k", 1, tight)
	tab.take("other", 1, loose)
	for range 3 {
		if tab.take("k", 1, loose, tight) {
			t.Fatal("a second unit was admitted")
		}
	}
	if got := tab.Stats(); got != (Stats{Counters: 2}) || !tab.holds("other", loose) {
		t.Errorf("%+v, want both counters as they were", got)
	}
	if got := tab.left("k", loose); got != 5 {
		t.Errorf("%d units left under the limit that did not deny, want 5", got)
	}
}
