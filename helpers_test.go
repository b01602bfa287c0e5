package ratelimit_test

import (
	"bytes"
	"context"
	"log/slog"
	"math"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
)

// ctx is for calls that nothing cancels.
var ctx = context.Background()

// hour is a limit whose window does not end during a test.
var hour = FixedWindow(5, time.Hour)

// algorithms returns a limit of each algorithm, for n units per window.
func algorithms(n int64, window time.Duration) []Limit {
	return []Limit{FixedWindow(n, window), SlidingWindow(n, window), TokenBucket(n, window, n)}
}

// windows returns n limits with different windows.
func windows(n int) (limits []Limit) {
	for i := range n {
		limits = append(limits, FixedWindow(1, time.Duration(i+1)*time.Second))
	}
	return limits
}

// quietly is a logger that logs nothing.
var quietly = slog.New(slog.DiscardHandler)

// quiet returns options for a limiter that logs nothing.
func quiet(limits ...Limit) Options {
	return Options{Limits: limits, Logger: slog.New(slog.DiscardHandler)}
}

// with returns options for a limiter on a store.
func with(store Store) Options {
	o := quiet(hour)
	o.Store = store
	return o
}

// memory returns a memory store of the test. It is closed when the test ends.
func memory(t *testing.T, name string) *MemoryStore {
	s := Memory(t.Name() + "/" + name)
	t.Cleanup(func() { s.Close() })
	return s
}

// limiter makes a limiter. It and its counters are deleted when the test ends.
func limiter(t *testing.T, limits ...Limit) *Limiter { return ratelimittest.New(t, quiet(limits...)) }

// decide takes n units from a limiter. An error ends the test.
func decide(t *testing.T, l *Limiter, key string, n int64) Decision {
	t.Helper()
	d, err := l.TakeN(ctx, key, n)
	require.NoError(t, err)
	return d
}

// leftOf returns how many units a key has left, under the limit with the
// fewest.
func leftOf(t testing.TB, l *Limiter, key string) int64 {
	t.Helper()
	d, err := l.TakeN(context.Background(), key, 0)
	require.NoError(t, err)
	return d.Remaining
}

// take takes n units from a store, and returns the results and whether the
// units were admitted. An error ends the test.
func take(t testing.TB, s Store, key string, n int64, limits ...Limit) ([]Result, bool) {
	t.Helper()
	results := make([]Result, len(limits))
	_, err := s.Take(ctx, key, n, limits, results)
	require.NoError(t, err)
	return results, !slices.ContainsFunc(results, func(r Result) bool { return r.RetryAfter > 0 })
}

// takeErr takes n units from a store and returns the error alone.
func takeErr(s Store, key string, n int64, limits []Limit) error {
	_, err := s.Take(ctx, key, n, limits, make([]Result, len(limits)))
	return err
}

// counted makes a limiter on a store and takes a unit of key. It returns the
// decision and the limiter's log.
func counted(t *testing.T, s *MemoryStore, key string, limit Limit) (Decision, string) {
	t.Helper()
	var reg Registry
	defer reg.Close()
	var log bytes.Buffer
	opts := with(s)
	opts.Limits, opts.Logger = []Limit{limit}, slog.New(slog.NewTextHandler(&log, nil))
	d, err := Must(reg.New(t.Name(), opts)).Take(ctx, key)
	require.NoError(t, err)
	return d, log.String()
}

// goroutines returns the number of goroutines, without goroutines of the runtime.
// runtime.NumGoroutine sometimes counts some of these.
func goroutines() int {
	buf := make([]byte, 1<<20)
	return bytes.Count(buf[:runtime.Stack(buf, true)], []byte("\ngoroutine ")) + 1
}

// allocations returns the number of allocations that a call of f makes, and
// their bytes. It is the least average of several rounds: what other goroutines
// allocate at the same time can only add to a round.
func allocations(f func()) (count, bytes float64) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // like testing.AllocsPerRun
	const rounds, calls = 10, 1000
	f()
	count, bytes = math.Inf(1), math.Inf(1)
	for range rounds {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range calls {
			f()
		}
		runtime.ReadMemStats(&after)
		count = min(count, float64(after.Mallocs-before.Mallocs)/calls)
		bytes = min(bytes, float64(after.TotalAlloc-before.TotalAlloc)/calls)
	}
	return count, bytes
}
