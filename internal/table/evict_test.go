package table

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// flood takes a unit for each of n keys that no other call uses.
func flood(tab *timed, n int, l rule.Limit) {
	limits, answers := []rule.Limit{l}, make([]rule.Answer, 1)
	for i := range n {
		tab.Take("flood"+strconv.Itoa(i), 1, limits, answers)
	}
}

// TestCap: whatever clients send, the table never holds more than its maximum. A
// client whose key is being denied cannot get it evicted by sending other keys.
func TestCap(t *testing.T) {
	most := underRace(100_000, 20_000)
	keys := 10 * most
	l := fixed(5, hour)
	tab := newTimed(most)
	tab.take("blocked", 5, l)
	if tab.take("blocked", 1, l) {
		t.Fatal("a sixth unit was admitted")
	}
	flood(tab.at(1), keys, l)
	// Nothing has expired, so every counter that is gone was evicted.
	if got, want := tab.Stats(), (Stats{Counters: most, Evicted: uint64(keys + 1 - most)}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if tab.take("blocked", 1, l) {
		t.Error("the flood has unblocked a denied key")
	}
	checkInvariants(t, tab.Table)
}

// TestDeniedSurvive: denied keys survive a flood, also if they fill half of the
// table, and whether they arrive in an empty table or in a full one.
func TestDeniedSurvive(t *testing.T) {
	const most = 20_000
	l := fixed(5, hour)
	for name, full := range map[string]bool{"into an empty table": false, "into a full table": true} {
		tab := newTimed(most)
		if full {
			flood(tab, 2*most, fixed(5, minute))
		}
		for i := range most / 2 {
			tab.take(fmt.Sprint("blocked", i), 5, l)
		}
		flood(tab.at(1), 10*most, sliding(5, hour)) // fresh later than the blocked, but not denied
		for i := range most / 2 {
			if key := fmt.Sprint("blocked", i); tab.left(key, l) != 0 {
				t.Fatalf("%s: the flood has unblocked %s", name, key)
			}
		}
		if got := tab.Stats(); got.EvictedDenied != 0 || got.Counters > most {
			t.Errorf("%s: %+v, want at most %d counters, and no denied one evicted", name, got, most)
		}
		checkInvariants(t, tab.Table)
	}
}

// spend is a number of units that a key takes. Rows with the same key are one
// counter.
type spend struct {
	key   string
	at, n int64
	l     rule.Limit
}

// newcomer is denied from the start and for longer than all others, so that it
// is evicted last and does not disturb the order of the others.
var newcomer = fixed(1, 1000*hour)

// victims sends newcomers into a full table until no spender is left, and
// returns the spenders in the order in which they were evicted.
func victims(t *testing.T, tab *timed, spent []spend) []string {
	t.Helper()
	limits := make(map[string]rule.Limit)
	for _, s := range spent {
		limits[s.key] = s.l
	}
	var gone []string
	for i := range 100 {
		for _, s := range spent {
			if l, waiting := limits[s.key]; waiting && !tab.holds(s.key, l) {
				gone = append(gone, s.key)
				delete(limits, s.key)
			}
		}
		if len(limits) == 0 {
			return gone
		}
		tab.take(fmt.Sprint("newcomer", i), 1, newcomer)
		tab.take(fmt.Sprint("newcomer", i), 1, newcomer)
		checkInvariants(t, tab.Table)
	}
	t.Fatalf("after 100 newcomers %v are still there, gone are %v", limits, gone)
	return nil
}

// TestVictims: expired counters go first, then the counters that become fresh
// first. Denied ones go only when all are denied.
func TestVictims(t *testing.T) {
	tenMinutes := bucket(1, 10*minute, 2)
	for _, row := range []struct {
		name            string
		now             int64
		spent           []spend // fills one table; the last letter says which counter must go when
		evicted, denied uint64
	}{
		{"earliest fresh first", 0, []spend{{"c", 0, 1, fixed(9, 3*hour)}, {"a", 0, 1, fixed(9, hour)}, {"b", 0, 1, fixed(9, 2*hour)}}, 3, 0},
		{"by kind", 0, []spend{{"b", 0, 1, sliding(9, hour)}, {"c", 0, 3, bucket(1, hour, 9)}, {"a", 0, 1, fixed(9, hour)}}, 3, 0},
		{"expired first", 2 * minute, []spend{{"b", 0, 1, fixed(9, hour)}, {"a", 0, 1, fixed(9, 2*minute)}, {"c", 0, 9, fixed(9, 3*minute)}}, 2, 1},
		{"denied and expired first", 2 * minute, []spend{{"b", 0, 1, fixed(9, hour)}, {"a", 0, 9, fixed(9, 2*minute)}}, 1, 0},
		{"1 ns before it expires", 2*minute - 1, []spend{{"b", 0, 9, fixed(9, 2*minute)}, {"a", 0, 1, fixed(9, hour)}}, 2, 1},
		{"denied last", 0, []spend{{"b", 0, 9, fixed(9, minute)}, {"a", 0, 8, fixed(9, 9*hour)}}, 2, 1},
		{"all denied", 0, []spend{{"c", 0, 9, fixed(9, 3*hour)}, {"a", 0, 9, fixed(9, hour)}, {"b", 0, 9, fixed(9, 2*hour)}}, 3, 3},
		{"denied, by freshness", 0, []spend{{"a", 0, 9, fixed(9, 2*hour)}, {"b", 0, 9, bucket(1, hour, 9)}}, 2, 2},
		{"a bucket stays denied until it is whole", 19 * minute, []spend{{"a", 0, 1, fixed(9, hour)}, {"c", 0, 2, tenMinutes}, {"b", 0, 9, fixed(9, 19*minute+1)}}, 3, 2},
		{"used again, so fresh later", 0, []spend{{"b", 0, 1, bucket(1, hour, 9)}, {"a", 0, 2, bucket(1, hour, 9)}, {"b", 0, 2, bucket(1, hour, 9)}}, 2, 0},
		{"used again, so denied later", hour, []spend{{"b", 0, 2, bucket(1, hour, 2)}, {"a", 0, 9, fixed(9, 2*hour-1)}, {"b", hour, 1, bucket(1, hour, 2)}}, 2, 2},
		{"denied for its size", 0, []spend{{"b", 0, 7, fixed(9, hour)}, {"a", 0, 7, fixed(9, 2*hour)}, {"b", 0, 3, fixed(9, hour)}}, 2, 1},
		{"a size that never fits is no denial", 0, []spend{{"a", 0, 7, fixed(9, hour)}, {"b", 0, 7, fixed(9, 2*hour)}, {"a", 0, 10, fixed(9, hour)}}, 2, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			keys := make(map[string]bool)
			for _, s := range row.spent {
				keys[s.key] = true
			}
			tab := newTimed(len(keys))
			for _, s := range row.spent {
				tab.at(s.at).take(s.key, s.n, s.l)
				if tab.left(s.key, s.l) == 0 {
					tab.take(s.key, 1, s.l) // and is denied
				}
			}
			gone := victims(t, tab.at(row.now), row.spent)
			for i, key := range gone {
				if want := string(rune('a' + i)); key != want {
					t.Fatalf("gone in the order %v", gone)
				}
			}
			if got := tab.Stats(); got.Evicted != row.evicted || got.EvictedDenied != row.denied {
				t.Errorf("%+v, want %d evicted, %d of them denied", got, row.evicted, row.denied)
			}
		})
	}
}

// TestEmptyGoesBeforeRefused: a key without units left outlives a key that has some,
// and a key that was denied outlives both, whichever becomes fresh first.
func TestEmptyGoesBeforeRefused(t *testing.T) {
	tab := newTimed(3)
	tab.take("refused", 2, fixed(2, minute))
	tab.take("refused", 1, fixed(2, minute))
	tab.take("empty", 2, fixed(2, hour))
	tab.take("open", 1, fixed(2, 2*hour))
	for i, want := range []string{"open", "empty", "refused"} {
		held := map[string]bool{"open": tab.holds("open", fixed(2, 2*hour)), "empty": tab.holds("empty", fixed(2, hour)), "refused": tab.holds("refused", fixed(2, minute))}
		if !held[want] {
			t.Fatalf("%s is gone before its turn: %v", want, held)
		}
		key := fmt.Sprint("newcomer", i)
		tab.take(key, 1, newcomer)
		tab.take(key, 1, newcomer)
	}
	if got := tab.Stats(); got != (Stats{Counters: 3, Evicted: 3, EvictedDenied: 1}) {
		t.Errorf("%+v", got)
	}
}

// TestPlansOfOneBucket: buckets of one window with several rates each expire by
// their own rate. So a slow plan does not keep the dead counters of a fast one.
func TestPlansOfOneBucket(t *testing.T) {
	const most = 20_000
	fast, slow, blocked := bucket(100_000, hour, 10), bucket(1, hour, 1), fixed(5, 30*minute)
	tab := newTimed(most)
	tab.take("slow", 1, slow)
	for i := range 1000 {
		key := fmt.Sprint("blocked", i)
		tab.take(key, 5, blocked)
		tab.take(key, 1, blocked)
	}
	for i := range int64(60_000) { // a thousand keys a second, each spent at once and whole in 0.36 s
		tab.at(i*second/1000).take(fmt.Sprint("fast", i), 10, fast)
	}
	for i := range 1000 {
		if key := fmt.Sprint("blocked", i); tab.left(key, blocked) != 0 {
			t.Fatalf("%s has been forgotten: %+v", key, tab.Stats())
		}
	}
	if got := tab.Stats(); got.Evicted != 0 {
		t.Errorf("%+v, want nothing evicted", got)
	}
}

// TestVictimsTimesMovedBack: if a counter becomes fresh earlier than before, or
// is no longer denied, that takes effect. In each row "freed" is denied until
// something frees it. "blocked" stays denied throughout and must not go first,
// although its denial ends before the original denial of "freed".
func TestVictimsTimesMovedBack(t *testing.T) {
	l := fixed(10, 2*hour)
	for _, row := range []struct {
		name  string
		spent int64 // by "freed", which is then denied another 10 - spent + 1
		free  func(tab *timed)
	}{
		{"a refund", 10, func(tab *timed) { tab.Adjust("freed", -5, 0, []rule.Limit{l}) }},
		{"a higher limit", 10, func(tab *timed) { tab.take("freed", 1, fixed(20, 2*hour)) }},
		{"a smaller cost", 7, func(tab *timed) { tab.take("freed", 1, l) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			tab := newTimed(3)
			tab.take("blocked", 10, fixed(10, hour))
			tab.take("freed", row.spent, l)
			tab.take("freed", 10-row.spent+1, l)
			tab.take("first", 1, newcomer) // meets the other two while they are denied
			row.free(tab)
			tab.take("second", 1, newcomer)
			if !tab.holds("blocked", fixed(10, hour)) {
				t.Error("a denied key was evicted while another one was not denied")
			}
			if got := tab.Stats(); got != (Stats{Counters: 3, Evicted: 1}) {
				t.Errorf("%+v, want one evicted, not denied", got)
			}
		})
	}
}

// TestVictimsRandom compares each eviction of random histories with a search
// through all counters. The order is the one of TestVictims, except that the
// counters of the key that needs room go last.
func TestVictimsRandom(t *testing.T) {
	for _, row := range []struct {
		name                      string
		costs, refunds, newLimits bool
	}{
		{name: "single units"},
		{name: "costs", costs: true},
		{name: "refunds", refunds: true},
		{name: "new limits", newLimits: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRand(t)
			for range 200 {
				tab, now := newTimed(1+r.IntN(8)), int64(0)
				for range 200 {
					now += r.Int64N(8)
					tab.at(now)
					key := string(rune('a' + r.IntN(16)))
					l := []rule.Limit{fixed(4, 50), sliding(4, 40), bucket(1, 10, 4), fixed(2, 90)}[r.IntN(4)]
					n := int64(1)
					if row.costs {
						n = r.Int64N(5)
					}
					if row.newLimits && l.Kind == rule.Bucket {
						l.Burst = 1 + r.Int64N(8)
					} else if row.newLimits {
						l.N = 1 + r.Int64N(8)
					}
					if row.refunds && r.IntN(3) == 0 {
						tab.Adjust(key, -n, now, []rule.Limit{l})
						continue
					}
					before, stats := snapshot(tab.Table, now), tab.Stats()
					tab.take(key, n, l)
					checkVictims(t, tab.Table, now, tab.secret.hash(key).id(&l), before, stats)
				}
			}
		})
	}
}

// victims in a table of one shard and at most two groups, so that all of it is
// within reach.
type candidate struct {
	id             id
	fresh          int64
	refused, empty bool
}

func snapshot(tab *Table, now int64) (all []candidate) {
	for p := range places(tab.shards.of(0)) {
		if of, c := *p.id(), p.slot(); of != 0 {
			l := tab.shapes.limit(of)
			all = append(all, candidate{of.fingerprint(), c.fresh(l, 0), c.when&flagRefused != 0, c.empty(l, now)})
		}
	}
	return all
}

func checkVictims(t *testing.T, tab *Table, now int64, requested id, before []candidate, was Stats) {
	t.Helper()
	slices.SortFunc(before, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.rank(now, requested), b.rank(now, requested)), cmp.Compare(max(a.fresh, now), max(b.fresh, now)))
	})
	for _, c := range before {
		if tab.shards.of(0).find(c.id).group != nil || c.fresh <= now {
			continue
		}
		was.Evicted++
		if c.refused {
			was.EvictedDenied++
		}
		switch first := before[0]; {
		case first.fresh <= now:
			t.Fatalf("at %d %+v went, and the expired %+v stayed", now, c, first)
		case len(before) < tab.shards.of(0).max:
			t.Fatalf("at %d %+v went from a table with room", now, c)
		case first.rank(now, requested) < c.rank(now, requested) || first.fresh < c.fresh:
			t.Fatalf("at %d %+v went, want %+v", now, c, first)
		}
	}
	if is := tab.Stats(); is.Evicted != was.Evicted || is.EvictedDenied != was.EvictedDenied {
		t.Fatalf("at %d %+v, want %d evicted, %d of them denied", now, is, was.Evicted, was.EvictedDenied)
	}
}

func (c candidate) rank(now int64, requested id) int {
	switch {
	case c.fresh <= now:
		return 0
	case c.id == requested:
		return 4
	case c.refused:
		return 3
	case c.empty:
		return 2
	}
	return 1
}

// TestRoomInBucketsButNotInShard: a key whose groups are empty in a full shard evicts
// a counter elsewhere, and is itself stored in its own group.
func TestRoomInBucketsButNotInShard(t *testing.T) {
	const most = 400
	l := fixed(1, hour)
	for seed := range underRace(200, 40) {
		tab := newTimed(most)
		flood(tab, most, l)
		// A quarter of them are freed, all in a few groups, and others take their
		// place.
		s := tab.shards.of(0)
		for i := range 8 {
			b := &s.groups[(seed%4*8+i)%len(s.groups)]
			for at, id := range b.ids {
				if id != 0 {
					s.free(place{b, uint(at)})
				}
			}
		}
		s.max = s.used
		for i := range 100 {
			key := fmt.Sprint("late", seed, "/", i)
			if !tab.take(key, 1, l) || tab.take(key, 1, l) {
				t.Fatalf("%s: not exactly one unit was admitted", key)
			}
			checkInvariants(t, tab.Table)
		}
	}
}
