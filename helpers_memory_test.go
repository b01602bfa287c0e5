package ratelimit_test

import (
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// memStore opens a store under the test's name. It is closed when the test
// ends, so that the next run starts with a new one.
func memStore(t *testing.T, opts MemoryOptions) *MemoryStore {
	t.Helper()
	s, err := NewMemoryStore(t.Name(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// memTake takes n units from a store and returns the results. An error ends the
// test.
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

// memErrorNames checks that an error is of this package and contains all parts.
func memErrorNames(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range append(parts, "ratelimit: ") {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v, want one with %q", err, part)
		}
	}
}

// memWaits are limits of 3, and how long a key with no units left waits for
// one.
var memWaits = []struct {
	l           Limit
	more, reset time.Duration
}{
	{FixedWindow(3, time.Hour), time.Hour, time.Hour},
	{SlidingWindow(3, time.Hour), time.Hour + 1, time.Hour + 40*time.Minute + 1},
	{TokenBucket(1, time.Hour, 3), time.Hour, 3 * time.Hour},
}

// memLiveHeap returns the bytes on the heap that are in use.
func memLiveHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // frees objects that a finalizer or a pool kept during the first collection
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// inFile returns options for a store with a file in a folder of the test.
func inFile(t *testing.T) MemoryOptions {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	return MemoryOptions{SnapshotFile: filepath.Join(dir, "counters.snapshot")}
}
