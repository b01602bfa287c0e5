package table

import (
	"fmt"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// crowdShapes uses more shapes than there are numbers for: rates of buckets, one of
// which takes a month to be whole.
func crowdShapes(tab *timed, shapes int, longest int64) {
	for i := range shapes {
		l := bucket(int64(i+1), second, 5)
		if i == shapes-1 {
			l.Window = longest
		}
		tab.take("k", 1, l)
	}
}

// TestShapesWithoutANumber: counters whose limit has no number are freed soon after
// they expire, whatever other limits without a number there are.
func TestShapesWithoutANumber(t *testing.T) {
	short := bucket(150, second, 5) // a unit leaks in 7 ms
	for _, row := range []struct {
		name string
		also []rule.Limit // of their own, used before
		most int
	}{
		{"one of a month", nil, 8000},
		{"one of a minute", []rule.Limit{bucket(5, minute+1, 5), fixed(3, minute/2+1)}, 8000},
		{"one of a second", []rule.Limit{bucket(5, second+1, 5)}, 8000},
	} {
		tab := newTimed(1 << 16).at(1)
		crowdShapes(tab, 200, 30*24*hour)
		for _, l := range row.also {
			tab.take("other", 1, l)
		}
		if of := tab.shapes.of(&short, 0); of >= classes {
			t.Fatalf("shape %d: the test does not test what it means to", of)
		}
		for i := range int64(60_000) { // a minute
			tab.at(i*second/1000).take(fmt.Sprint(i), 1, short)
		}
		if got := tab.Stats(); got.Counters > row.most || got.Evicted > 0 {
			t.Errorf("%s: %+v after a minute of keys that are whole after 7 ms each", row.name, got)
		}
		checkInvariants(t, tab.Table)
	}
}

// TestShapeClasses: a counter of a limit without a number is not freed early,
// whatever its life is.
func TestShapeClasses(t *testing.T) {
	tab := newTimed(1 << 16)
	crowdShapes(tab, 100, second)
	for life := int64(rule.MinSpan); life < rule.MaxSpan/4; life = life*3 + 1 {
		for _, l := range []rule.Limit{fixed(3, life), sliding(3, life), bucket(1, life, 3)} {
			of := tab.shapes.of(&l, 0)
			if of >= classes {
				t.Fatalf("%+v has number %d", l, of)
			}
			if got := tab.shapes.limit(of).Window; got < life {
				t.Errorf("%+v is thought to live for %d", l, got)
			}
			if of > 0 && tab.shapes.limit(of).Window > classLives[of] {
				t.Errorf("class %d lives for %d", of, tab.shapes.limit(of).Window)
			}
		}
	}
}

// TestForgetsWithoutNewKeys: a table that is in use frees expired counters and
// releases their memory, even if only one key is used, and rarely.
func TestForgetsWithoutNewKeys(t *testing.T) {
	for _, row := range []struct {
		every int64 // between two calls
		calls int
		taken int64 // by each
	}{
		{20 * second / 1000, 15_000, 1}, // five minutes
		{20 * second / 1000, 15_000, 0},
		{second, 600, 1},
		{minute, 60 * 10, 0},
	} {
		const n = 50_000
		busy := fixed(rule.MaxUnits, 1000*hour)
		tab := newTimed(1 << 16).at(hour)
		tab.take("busy", 1, busy)
		flood(tab, n, fixed(5, minute))
		grown := groupCount(tab.Table)
		if got := tab.Stats().Counters; got != n+1 {
			t.Fatalf("%d counters", got)
		}
		now := 2 * hour
		for range row.calls {
			now += row.every
			tab.at(now).take("busy", row.taken, busy)
		}
		if got := tab.Stats(); got != (Stats{Counters: 1}) || groupCount(tab.Table) > grown/50 {
			t.Errorf("%d calls, one every %d ms: %+v in %d groups, which were %d", row.calls, row.every/1e6, got, groupCount(tab.Table), grown)
		}
		checkInvariants(t, tab.Table)
	}
}

func groupCount(tab *Table) (n int) {
	for s := range tab.shards.used {
		n += len(s.groups)
	}
	return n
}

// TestSweepTakesNothing: counters that still count stay, however often the table is
// swept.
func TestSweepTakesNothing(t *testing.T) {
	tab := newTimed(1 << 16).at(1)
	for i := range 10_000 {
		tab.take(fmt.Sprint(i), 2, fixed(3, hour), bucket(3, 2*hour, 3))
	}
	for now := second; now < hour; now += second {
		tab.at(now).take("other", 0, fixed(3, hour))
	}
	for i := range 10_000 {
		if got := tab.left(fmt.Sprint(i), fixed(3, hour)); got != 1 {
			t.Fatalf("%d units left of three, want 1", got)
		}
	}
	if got := tab.Stats(); got != (Stats{Counters: 20_000}) {
		t.Errorf("%+v", got)
	}
}

// TestSweepIsShort: one call checks at most as many counters as one shard has.
func TestSweepIsShort(t *testing.T) {
	tab := newTimed(1 << 20).at(1)
	flood(tab, 100_000, fixed(5, minute))
	before := tab.Stats().Counters
	tab.at(100*hour).take("k", 0, fixed(5, minute))
	if freed := before - tab.Stats().Counters; freed > 16*sweepGroups*groupSize {
		t.Errorf("one call has freed %d counters", freed)
	}
}
