package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// memStore opens a store under the test's own name, and closes it after the test
// so that the next run starts with a new one.
func memStore(t *testing.T, opts MemoryOptions) *MemoryStore {
	t.Helper()
	s, err := NewMemoryStore(t.Name(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// memTake takes n units, which has to work, and returns how key stands then.
func memTake(t *testing.T, s *MemoryStore, key string, n int64, limits ...Limit) []Result {
	t.Helper()
	results := make([]Result, len(limits))
	if _, err := s.Take(t.Context(), key, n, limits, results); err != nil {
		t.Fatalf("Take(%.20q, %d): %v", key, n, err)
	}
	return results
}

// memTogether runs f in 64 goroutines at once.
func memTogether(f func(g int)) {
	var start, done sync.WaitGroup
	start.Add(1)
	for g := range 64 {
		done.Go(func() {
			start.Wait()
			f(g)
		})
	}
	start.Done()
	done.Wait()
}

// TestMemoryIsOnePerName: a name stands for one store in the whole process, whoever
// asks for it, however, and at the same time as whom.
func TestMemoryIsOnePerName(t *testing.T) {
	var stores [64]*MemoryStore
	memTogether(func(g int) {
		if g%2 == 0 {
			stores[g] = Memory(t.Name())
			return
		}
		s, err := NewMemoryStore(t.Name(), MemoryOptions{})
		if err != nil {
			t.Error(err)
		}
		stores[g] = s
	})
	t.Cleanup(func() { stores[0].Close() })
	for g, s := range stores {
		if s == nil || s != stores[0] {
			t.Fatalf("goroutine %d got store %p, goroutine 0 got %p", g, s, stores[0])
		}
	}
	other := Memory(t.Name() + "/other")
	defer other.Close()
	if other == stores[0] {
		t.Error("two names have one store")
	}
	if got, want := stores[0].Prefix(), "memory:"+t.Name(); got != want || stores[0].Name() != t.Name() {
		t.Errorf("prefix %q of %q, want %q of %q", got, stores[0].Name(), want, t.Name())
	}
}

// TestMemoryOptionsAreTheStores: an open store keeps its options. To ask for the same
// ones again, or for none in particular, is to ask for that store; others are an error.
func TestMemoryOptionsAreTheStores(t *testing.T) {
	for _, row := range []struct {
		name        string
		first, then MemoryOptions
		conflict    bool
	}{
		{"the same", MemoryOptions{MaxKeys: 10}, MemoryOptions{MaxKeys: 10}, false},
		{"zero and the default", MemoryOptions{}, MemoryOptions{MaxKeys: DefaultMaxKeys}, false},
		{"the default and zero", MemoryOptions{MaxKeys: DefaultMaxKeys}, MemoryOptions{}, false},
		{"others", MemoryOptions{MaxKeys: 10}, MemoryOptions{MaxKeys: 20}, true},
		{"zero is not whatever there is", MemoryOptions{MaxKeys: 10}, MemoryOptions{}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := memStore(t, row.first)
			again, err := NewMemoryStore(t.Name(), row.then)
			if Memory(t.Name()) != s {
				t.Error("Memory returned another store")
			}
			if !row.conflict {
				if err != nil || again != s {
					t.Errorf("got %p, %v; want the open store, %p", again, err, s)
				}
				return
			}
			if err == nil || again != nil {
				t.Fatalf("got %p, %v; want an error", again, err)
			}
			then := row.then.MaxKeys
			if then == 0 {
				then = DefaultMaxKeys
			}
			memErrorNames(t, err, t.Name(), fmt.Sprintf("is open with MemoryOptions.MaxKeys %d, not %d: ", row.first.MaxKeys, then))
		})
	}
}

// memErrorNames checks that an error is this package's and tells all of parts.
func memErrorNames(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range append(parts, "ratelimit: ") {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v, want one with %q", err, part)
		}
	}
}

// TestNewMemoryStoreRefuses: names are printable and short, as they stand in logs
// and header fields; an error names the field and the value.
func TestNewMemoryStoreRefuses(t *testing.T) {
	for _, row := range []struct {
		name string
		opts MemoryOptions
		want string
	}{
		{"", MemoryOptions{}, "empty"},
		{"a\nb", MemoryOptions{}, `"a\nb" has a control`},
		{"a\x00b", MemoryOptions{}, `"a\x00b" has a control`},
		{"a\u202eb", MemoryOptions{}, "invisible"},
		{"a\xffb", MemoryOptions{}, `"a\xffb" is not valid UTF-8`},
		{strings.Repeat("a", 129), MemoryOptions{}, "129 bytes"},
		{t.Name(), MemoryOptions{MaxKeys: -1}, "MaxKeys is -1"},
	} {
		s, err := NewMemoryStore(row.name, row.opts)
		if s != nil {
			t.Errorf("%q, %+v: got a store", row.name, row.opts)
			s.Close()
		}
		memErrorNames(t, err, row.want)
	}
	longest, err := NewMemoryStore(strings.Repeat("é", 64), MemoryOptions{MaxKeys: 1})
	if err != nil {
		t.Fatalf("a name of 128 bytes: %v", err)
	}
	longest.Close()
	memStore(t, MemoryOptions{MaxKeys: 3}) // no refusal has left a store of other options behind
}

// TestMemoryClose: Close gives up the name and the counters, for good and once.
func TestMemoryClose(t *testing.T) {
	closed := memStore(t, MemoryOptions{MaxKeys: 10})
	l := FixedWindow(1, time.Hour)
	memTake(t, closed, "k", 1, l)
	for range 2 {
		if err := closed.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	results := []Result{{Remaining: -1}}
	if _, err := closed.Take(t.Context(), "k", 1, []Limit{l}, results); !errors.Is(err, ErrStoreClosed) || results[0].Remaining != -1 {
		t.Errorf("Take: %v, %+v; want %v and results as they were", err, results, ErrStoreClosed)
	}
	if _, err := closed.Adjust(t.Context(), "k", -1, Now, []Limit{l}); !errors.Is(err, ErrStoreClosed) {
		t.Errorf("Adjust: %v, want %v", err, ErrStoreClosed)
	}
	if err := closed.Reset(t.Context(), "k", []Limit{l}); !errors.Is(err, ErrStoreClosed) {
		t.Errorf("Reset: %v, want %v", err, ErrStoreClosed)
	}

	next := memStore(t, MemoryOptions{MaxKeys: 20}) // other options are no conflict any more
	if next == closed || next.Stats() != (MemoryStats{}) {
		t.Errorf("the next store is the closed one: %v, or not empty: %+v", next == closed, next.Stats())
	}
	if r := memTake(t, next, "k", 1, l); r[0].RetryAfter != 0 {
		t.Errorf("the next store remembers: %+v", r)
	}
	closed.Close()
	if Memory(t.Name()) != next {
		t.Error("closing a store again took the name from the next one")
	}
}

// TestMemoryCloseUnderTraffic: a call that meets Close is decided in full or gets
// ErrStoreClosed; after Close there are no others.
func TestMemoryCloseUnderTraffic(t *testing.T) {
	s, l := memStore(t, MemoryOptions{}), []Limit{FixedWindow(1000, time.Hour)}
	var admitted atomic.Int64
	memTogether(func(g int) {
		for i := range 100 {
			if g == 0 && i == 50 {
				s.Close()
			}
			var results [1]Result
			_, err := s.Take(context.Background(), "k", 1, l, results[:])
			switch {
			case err != nil && !errors.Is(err, ErrStoreClosed):
				t.Errorf("Take: %v, want %v", err, ErrStoreClosed)
			case err == nil && g == 0 && i >= 50:
				t.Error("a Take after Close was decided")
			case err == nil && results[0].RetryAfter == 0:
				admitted.Add(1)
			}
		}
	})
	if got := admitted.Load(); got > 1000 {
		t.Errorf("%d admitted, at most 1000", got)
	}
}

// TestMemoryStats: one counter for each key, algorithm and window, never more than
// MaxKeys, and a count of what had to go for it.
func TestMemoryStats(t *testing.T) {
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

// TestMemoryDoneContext: a call whose context is done returns its error and
// leaves everything as it was.
func TestMemoryDoneContext(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	late, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
	defer cancel()
	s, l := memStore(t, MemoryOptions{}), []Limit{FixedWindow(5, time.Hour)}
	memTake(t, s, "k", 2, l...)
	for _, ctx := range []context.Context{canceled, late} {
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

// memWaits is a limit of 3 and how long a key that has spent it waits for a unit.
var memWaits = []struct {
	l           Limit
	more, reset time.Duration
}{
	{FixedWindow(3, time.Hour), time.Hour, time.Hour},
	{SlidingWindow(3, time.Hour), time.Hour + 1, time.Hour + 40*time.Minute + 1},
	{TokenBucket(1, time.Hour, 3), time.Hour, 3 * time.Hour},
}

// TestMemoryClock: the store's time is that of package time, and the waits that it
// tells are exact to the nanosecond by it.
func TestMemoryClock(t *testing.T) {
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

// TestMemoryOtherClock: a store that has been used outside a bubble of
// testing/synctest, or in one, neither forgets who is denied in the next one, whose
// clock is behind, nor denies for longer there; and outside it does not stand still.
func TestMemoryOtherClock(t *testing.T) {
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

// TestMemoryKeysNeverShare: two keys have two counters, whatever bytes they hold.
func TestMemoryKeysNeverShare(t *testing.T) {
	long := strings.Repeat("a", 1<<20)
	keys := []string{
		" ", "  ", "\x00", "\x00\x00", "a", "A", "a\x00", "\x00a", "a ", "\xff", "\xfe", "\xff\xfe", "\ufffd", "é", "e\u0301",
		"a:b", "b", "{a}", "a\n", long, long + "a", long + "b", "b" + long[1:], long[1:], "203.0.113.7", "::ffff:203.0.113.7",
	}
	s, l := memStore(t, MemoryOptions{}), FixedWindow(100, time.Hour)
	for i, key := range keys { // each takes a number of units that is its own
		memTake(t, s, key, int64(i)+1, l)
	}
	for i, key := range keys {
		if got, want := memTake(t, s, key, 0, l)[0].Remaining, 100-int64(i)-1; got != want {
			t.Errorf("%.20q of %d bytes: %d units left, want %d", key, len(key), got, want)
		}
	}
}

// TestMemoryOfLongKeys: what is kept of a key does not grow with it.
func TestMemoryOfLongKeys(t *testing.T) {
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

func memLiveHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what a finalizer or a pool held on to through the first
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestMemoryHasNoGoroutine: a store costs nothing while idle. The bubble is a second
// witness: it does not end while a goroutine that was started in it is left.
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

// TestMemoryTakeAllocatesNothing: a decision on an existing key, either way, under
// one limit or several.
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
