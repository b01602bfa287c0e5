package ratelimit_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// BenchmarkSnapshotLatency times single decisions on a million live keys, for ten
// seconds at about 20,000 a second, with and without a SnapshotFile. It also reports the
// memory per counter.
func BenchmarkSnapshotLatency(b *testing.B) {
	const keys = 1_000_000
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprint("203.0.113.", i)
	}
	took := make([]time.Duration, 0, 10*keys)
	for _, file := range []string{"", "file"} {
		b.Run("SnapshotFile="+file, func(b *testing.B) {
			opts := MemoryOptions{MaxKeys: 2 * keys}
			if file != "" {
				opts.SnapshotFile = filepath.Join(b.TempDir(), file)
			}
			before := memLiveHeap()
			s, err := NewMemoryStore(b.Name(), opts)
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			limits, results := []Limit{FixedWindow(1000, time.Hour)}, make([]Result, 1)
			for _, key := range names {
				s.Take(ctx, key, 1, limits, results)
			}
			for b.Loop() {
				took = took[:0]
				for begun := time.Now(); time.Since(begun) < 10*time.Second; {
					for range 100 {
						key := names[rand.IntN(keys)]
						start := time.Now()
						s.Take(ctx, key, 1, limits, results)
						took = append(took, time.Since(start))
					}
					time.Sleep(4 * time.Millisecond)
				}
			}
			b.ReportMetric(float64(memLiveHeap()-before)/keys, "B/counter")
			slices.Sort(took)
			for _, p := range []float64{50, 99, 99.9, 99.99} {
				b.ReportMetric(float64(took[int(float64(len(took))*p/100)]), fmt.Sprintf("p%v-ns", p))
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
