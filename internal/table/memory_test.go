package table

import (
	"reflect"
	"runtime"
	"strconv"
	"testing"
	"unsafe"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// TestSlotSize checks the size of a counter, and that the garbage collector finds no
// pointers in it.
func TestSlotSize(t *testing.T) {
	if size := unsafe.Sizeof(group{}); size != 24*groupSize {
		t.Errorf("a counter has %d bytes, want 24", size/groupSize)
	}
	if size := unsafe.Sizeof(group{}.ids); size != 64 {
		t.Errorf("the ids of a bucket have %d bytes, want a cache line", size)
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[id](), reflect.TypeFor[slot]().Field(0).Type, reflect.TypeFor[slot]().Field(1).Type} {
		if typ.Kind() != reflect.Uint64 {
			t.Errorf("a counter holds a %v", typ)
		}
	}
	if size := unsafe.Sizeof(shard{}); size%128 != 0 {
		t.Errorf("a shard has %d bytes: two of them share a pair of cache lines", size)
	}
}

// TestBytesPerCounter: at any size, also right after a shard has grown, a counter
// costs at most 32 bytes of live heap, plus the few bytes of an empty table.
func TestBytesPerCounter(t *testing.T) {
	const most = 2 << 20
	l := fixed(5, hour)
	before := liveHeap()
	tab := newTimed(most)
	n := 0
	sizes := []int{50_000, 100_000, 300_000, 1_000_000, 1 << 20, 1_300_000, 1_600_000}
	for _, upTo := range sizes[:underRace(len(sizes), 3)] {
		for ; n < upTo; n++ {
			tab.TakeOne(strconv.Itoa(n), 1, &l)
		}
		if got := float64(liveHeap()-before) / float64(n); got > 34 && n < 300_000 || got > 32 && n >= 300_000 {
			t.Errorf("%d counters have %.1f bytes each, want at most 32", n, got)
		}
	}
	if got := tab.Stats(); got != (Stats{Counters: n}) {
		t.Errorf("%+v, want %d counters and no eviction", got, n)
	}
	runtime.KeepAlive(tab)
}

// underRace returns how large an input of a test is: large, or small if the race detector
// is on. It is for tests of one goroutine, about memory or about floods.
func underRace(large, small int) int {
	if raceDetector {
		return small
	}
	return large
}

func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestFillsNearlyToItsMaximum: the keys of a table do not spread evenly over its
// shards, and not every key finds a place in a nearly full shard. Both effects begin
// at about 95 % of the maximum. (The fullest of 256 shards is 8 % above the mean once
// in 100,000 tables. So this test uses 92 %.)
func TestFillsNearlyToItsMaximum(t *testing.T) {
	sizes := []int{1, 5, 100, 1000, 5000, 20_000, 100_000, 1 << 20}
	for _, most := range sizes[:underRace(len(sizes), 7)] {
		tab := newTimed(most)
		l := fixed(5, hour)
		n := 0
		for ; tab.Stats().Evicted == 0; n++ {
			for range max(1, most/1000) {
				tab.TakeOne(strconv.Itoa(n)+"/"+strconv.Itoa(int(tab.clock.Add(1))), 1, &l)
			}
		}
		if held := tab.Stats().Counters; float64(held) < 0.92*float64(most)-1 {
			t.Errorf("of a maximum of %d there were %d when the first was evicted", most, held)
		}
	}
}

// TestManyShapes: if there are more kinds and windows than numbers, their counters
// are still distinct and kept. For limits without a number, the table does not
// know when they expire.
func TestManyShapes(t *testing.T) {
	tab := newTimed(10_000)
	for i := range int64(500) {
		l := fixed(2, minute+i)
		tab.take("k", 2, l)
	}
	for i := range int64(500) {
		if l := fixed(2, minute+i); tab.take("k", 1, l) {
			t.Fatalf("%+v: a third unit was admitted", l)
		}
	}
	if tab.shapes.of(&rule.Limit{Kind: rule.Fixed, N: 2, Window: minute + 499}, 0) >= classes {
		t.Error("the 500th shape has a number: the test does not test what it means to")
	}
	tab.at(2 * minute)
	for i := range int64(500) {
		if !tab.take("k", 2, fixed(2, minute+i)) {
			t.Fatalf("shape %d: denied when its window is over", i)
		}
	}
	checkInvariants(t, tab.Table)
}

// TestSplitCounters: states that are too large for a slot are kept exactly,
// however they change between large and small, and leave nothing behind.
func TestSplitCounters(t *testing.T) {
	const huge = int64(1e14)
	for _, l := range []rule.Limit{sliding(huge, hour), bucket(huge, hour, huge)} {
		tab := newTimed(100)
		var reference rule.State
		r := newRand(t)
		now := int64(1)
		for range 2000 {
			now += r.Int64N(hour / 10)
			n := []int64{1, 3, 1 << 31, 1 << 33, huge / 3, -1, -(1 << 33), -huge}[r.IntN(8)]
			tab.at(now)
			if n < 0 {
				reference = l.Adjust(reference, now, n, 0)
				tab.Adjust("k", n, now, []rule.Limit{l})
			} else {
				var want, got rule.Answer
				reference, want = l.Take(reference, now, n)
				got, _ = tab.TakeOne("k", n, &l)
				if got != want {
					t.Fatalf("%+v at %d: %d units: %+v, want %+v", l, now, n, got, want)
				}
			}
			checkInvariants(t, tab.Table)
		}
		tab.Reset("k", []rule.Limit{l})
		checkInvariants(t, tab.Table)
	}
}

// TestSlowestRateDecidesExpiry: if one shape is used with several rates, as by
// plans, a bucket does not expire because another plan's bucket would be empty.
func TestSlowestRateDecidesExpiry(t *testing.T) {
	slow, fast := bucket(1, hour, 10), bucket(3600, hour, 10)
	for _, first := range []rule.Limit{slow, fast} {
		tab := newTimed(8)
		tab.take("other", 1, first)
		tab.take("k", 10, slow)
		tab.take("other", 1, fast)
		tab.at(minute) // fast would be empty by now
		flood(tab, 100, fast)
		if tab.Stats().EvictedDenied == 0 && tab.left("k", slow) != 0 {
			t.Errorf("with %+v first: the bucket was let go of before it had leaked", first)
		}
	}
}

// TestBytesPerLearnedCounter: keys that another store has refused cost no more, with
// one limit or with eight, in a table that is large enough for them.
func TestBytesPerLearnedCounter(t *testing.T) {
	for _, n := range []int{1, MaxLimits} {
		keys := underRace(1<<16, 1<<14)
		limits, states := remoteLimits(n)
		before := liveHeap()
		tab, owner := New(keys*n*8/7, func() int64 { return 0 }), NewOwner()
		for i := range keys {
			tab.Learn(tab.Hash("198.51."+strconv.Itoa(i), owner), 1, 2, limits, Learnt{States: states})
		}
		if got := float64(liveHeap()-before) / float64(keys*n); got > 32 {
			t.Errorf("%d limits: %.1f bytes for a counter, want at most 32", n, got)
		} else {
			t.Logf("%d limits: %.1f bytes for a counter", n, got)
		}
		if got := tab.Stats(); got.Counters+int(got.Evicted) != keys*n || got.Evicted > uint64(keys*n)/1000 {
			t.Errorf("%d limits: %+v", n, got)
		}
		runtime.KeepAlive(tab)
	}
}
