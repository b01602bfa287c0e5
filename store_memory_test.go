package ratelimit_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestMemoryStoreRefusesInvalidLimits(t *testing.T) {
	s := memory(t, "s")
	for _, l := range []Limit{{}, TokenBucket(0, time.Second, 5), FixedWindow(5, 0), TokenBucket(1, -1, 5)} {
		_, err := s.Take(ctx, "key", 1, []Limit{l}, make([]Result, 1))
		require.ErrorContains(t, err, "is not valid")
	}
	require.Zero(t, s.Stats().Counters)
}

// TestMemoryStoreRefusesToTakeLessThanNothing checks that such a call does not give
// units back: under several limits it would, under some of them.
func TestMemoryStoreRefusesToTakeLessThanNothing(t *testing.T) {
	s := memory(t, "s")
	limits := []Limit{SlidingWindow(3, time.Hour), TokenBucket(3, time.Hour, 3)}
	memTake(t, s, "key", 3, limits...)
	_, err := s.Take(ctx, "key", -3, limits, make([]Result, 2))
	require.ErrorContains(t, err, "Take of -3 units: want 0 units or more")
	for i, l := range limits {
		require.Zero(t, memTake(t, s, "key", 0, limits...)[i].Remaining, l)
	}
}

// TestMemoryStatsCountsCountersAndEvictions checks that there is one counter
// for each key, algorithm and window, and never more than MaxKeys.
func TestMemoryStatsCountsCountersAndEvictions(t *testing.T) {
	s := memStore(t, MemoryOptions{MaxKeys: 4})
	hourly, daily := FixedWindow(2, time.Hour), FixedWindow(2, 24*time.Hour)
	steps := []struct {
		name string
		do   func()
		want MemoryStats
	}{
		{"new", func() {}, MemoryStats{}},
		{"two limits are two counters", func() { memTake(t, s, "a", 1, hourly, daily) }, MemoryStats{Counters: 2}},
		{"another N is the same counter", func() { memTake(t, s, "a", 0, FixedWindow(9, time.Hour)) }, MemoryStats{Counters: 2}},
		{"a look makes none", func() { memTake(t, s, "b", 0, hourly, daily) }, MemoryStats{Counters: 2}},
		{"another key", func() { memTake(t, s, "b", 2, hourly, daily) }, MemoryStats{Counters: 4}},
		{"a's hourly counter goes", func() { memTake(t, s, "c", 2, daily) }, MemoryStats{Counters: 4, Evicted: 1}},
		{"a's daily counter goes", func() { memTake(t, s, "d", 2, daily) }, MemoryStats{Counters: 4, Evicted: 2}},
		{"a denied take is of the same counter", func() {
			for _, key := range []string{"b", "c", "d"} {
				memTake(t, s, key, 1, daily)
			}
			memTake(t, s, "b", 1, hourly)
		}, MemoryStats{Counters: 4, Evicted: 2}},
		{"b's hourly counter goes, denied", func() { memTake(t, s, "e", 2, daily) }, MemoryStats{Counters: 4, Evicted: 3, EvictedDenied: 1}},
		{"Reset", func() { s.Reset(t.Context(), "e", []Limit{hourly, daily}) }, MemoryStats{Counters: 3, Evicted: 3, EvictedDenied: 1}},
		{"all given back", func() { s.Adjust(t.Context(), "d", -2, Now, []Limit{daily}) }, MemoryStats{Counters: 2, Evicted: 3, EvictedDenied: 1}},
	}
	for _, step := range steps {
		if step.do(); s.Stats() != step.want {
			t.Fatalf("%s: %+v, want %+v", step.name, s.Stats(), step.want)
		}
	}
}

func TestMemoryCallWithADoneContextChangesNothing(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	expired, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
	defer cancel()
	s, l := memStore(t, MemoryOptions{}), []Limit{FixedWindow(5, time.Hour)}
	memTake(t, s, "k", 2, l...)
	for _, ctx := range []context.Context{canceled, expired} {
		results := []Result{{Remaining: -1}}
		if _, err := s.Take(ctx, "k", 1, l, results); err != ctx.Err() || results[0].Remaining != -1 {
			t.Errorf("Take: %v, %+v; want %v and results as they were", err, results, ctx.Err())
		}
		if _, err := s.Adjust(ctx, "k", 1, Now, l); err != ctx.Err() {
			t.Errorf("Adjust: %v, want %v", err, ctx.Err())
		}
		if err := s.Reset(ctx, "k", l); err != ctx.Err() {
			t.Errorf("Reset: %v, want %v", err, ctx.Err())
		}
		if got := memTake(t, s, "k", 0, l...)[0].Remaining; got != 3 {
			t.Errorf("%d units left after calls that were not made, want 3", got)
		}
	}
}

// TestMemoryWaitsAreExact waits for a nanosecond less than the store says, and
// for exactly as long. The clock is package time's.
func TestMemoryWaitsAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memStore(t, MemoryOptions{})
		for _, row := range memWaits {
			name := row.l.String()
			if got, want := memTake(t, s, name, 3, row.l)[0], (Result{MoreAfter: row.more, ResetAfter: row.reset}); got != want {
				t.Errorf("%v: %+v after 3 units, want %+v", row.l, got, want)
			}
			time.Sleep(row.more - 1)
			if got := memTake(t, s, name, 1, row.l)[0]; got.RetryAfter != 1 {
				t.Errorf("%v: %+v 1 ns before the wait is over, want RetryAfter 1ns", row.l, got)
			}
			time.Sleep(time.Nanosecond)
			if got := memTake(t, s, name, 1, row.l)[0]; got.RetryAfter != 0 {
				t.Errorf("%v: %+v when the wait is over, want it admitted", row.l, got)
			}
			time.Sleep(10 * time.Hour)
			if got := memTake(t, s, name, 0, row.l)[0]; got != (Result{Remaining: 3}) {
				t.Errorf("%v: %+v much later, want it whole", row.l, got)
			}
		}
	})
}

// TestMemoryDenialsSurviveAnotherClock uses a store in bubbles of
// testing/synctest and outside. The clock of the next bubble is behind. Keys
// stay denied there, and not for longer.
func TestMemoryDenialsSurviveAnotherClock(t *testing.T) {
	s, l := memStore(t, MemoryOptions{}), FixedWindow(1, time.Hour)
	memTake(t, s, "outside", 1, l)
	for _, key := range []string{"outside", "first bubble"} {
		synctest.Test(t, func(t *testing.T) {
			for _, want := range []time.Duration{time.Hour, 0} {
				if got := memTake(t, s, key, 1, l)[0].RetryAfter; got != want {
					t.Errorf("%s: RetryAfter %v, want %v", key, got, want)
				}
				time.Sleep(time.Hour)
			}
			time.Sleep(100 * time.Hour)
			memTake(t, s, "first bubble", 1, l)
		})
	}
	if got := memTake(t, s, "first bubble", 0, l)[0]; got != (Result{Remaining: 1}) {
		t.Errorf("%+v, want it whole by the clock outside, which is years ahead", got)
	}
}

// TestMemoryKeysNeverShare uses keys of any bytes.
func TestMemoryKeysNeverShare(t *testing.T) {
	long := strings.Repeat("a", 1<<20)
	keys := []string{
		" ", "  ", "\x00", "\x00\x00", "a", "A", "a\x00", "\x00a", "a ", "\xff", "\xfe", "\xff\xfe", "\ufffd", "é", "e\u0301",
		"a:b", "b", "{a}", "a\n", long, long + "a", long + "b", "b" + long[1:], long[1:], "203.0.113.7", "::ffff:203.0.113.7",
	}
	s, l := memStore(t, MemoryOptions{}), FixedWindow(100, time.Hour)
	for i, key := range keys { // each key takes another number of units
		memTake(t, s, key, int64(i)+1, l)
	}
	for i, key := range keys {
		if got, want := memTake(t, s, key, 0, l)[0].Remaining, 100-int64(i)-1; got != want {
			t.Errorf("%.20q of %d bytes: %d units left, want %d", key, len(key), got, want)
		}
	}
}

func TestMemoryOfAKeyDoesNotGrowWithItsLength(t *testing.T) {
	const keys, size = 128, 1 << 20
	s, l := memStore(t, MemoryOptions{}), []Limit{FixedWindow(5, time.Hour), FixedWindow(9, 24*time.Hour)}
	before := memLiveHeap()
	for i := range keys {
		memTake(t, s, strings.Repeat("k", size)+fmt.Sprint(i), 1, l[:1+i%2]...)
	}
	if got := s.Stats().Counters; got != keys*3/2 {
		t.Errorf("%d counters, want %d", got, keys*3/2)
	}
	if grown := memLiveHeap() - before; grown > keys*size/8 {
		t.Errorf("the live heap has grown by %d bytes with %d keys of %d bytes", grown, keys, size)
	}
	runtime.KeepAlive(s)
}

// TestMemoryHasNoGoroutine has idle stores. The bubble checks it, too: it does
// not end while a goroutine that was started in it still runs.
func TestMemoryHasNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	for i := range 10 {
		s, err := NewMemoryStore(fmt.Sprint(t.Name(), i), MemoryOptions{MaxKeys: 10})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		for k := range 100 {
			memTake(t, s, fmt.Sprint(k), 1, FixedWindow(5, time.Hour))
		}
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines with ten open stores, %d before", after, before)
	}
	synctest.Test(t, func(t *testing.T) {
		memTake(t, memStore(t, MemoryOptions{}), "k", 1, FixedWindow(5, time.Hour))
	})
}

// TestMemoryTakeAllocatesNothing admits and denies an existing key, under one
// limit and under several.
func TestMemoryTakeAllocatesNothing(t *testing.T) {
	s, results := memStore(t, MemoryOptions{}), make([]Result, 3)
	l := []Limit{memWaits[0].l, memWaits[1].l, memWaits[2].l}
	memTake(t, s, "k", 1, l...)
	for _, limits := range [][]Limit{l[:1], l[1:2], l[2:], l} {
		for _, n := range []int64{0, 1, 1, 4} {
			if got := testing.AllocsPerRun(100, func() { s.Take(t.Context(), "k", n, limits, results) }); got != 0 {
				t.Errorf("%v: %v allocations to take %d, want 0", limits, got, n)
			}
		}
	}
}
