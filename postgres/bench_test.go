package postgres_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/postgres"
)

// benchServer starts a server with its durable settings.
func benchServer(b *testing.B) *pgtest.Server {
	return migrated(b, "fsync=on", "autovacuum=on", "shared_buffers=256MB")
}

// inParallel calls f from a number of goroutines until b.N calls are made, and reports
// how many there were per second.
func inParallel(b *testing.B, goroutines int, f func(r *rand.Rand) error) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range goroutines {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for left.Add(-1) >= 0 {
				if err := f(r); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

const benchKeys = 10_000

// BenchmarkTake is this library's store: takes of one unit that are admitted.
func BenchmarkTake(b *testing.B) {
	server := benchServer(b)
	pool := newPool(b, server.URL(pgtest.Superuser))
	many := int64(1_000_000_000)
	fixed, bucket := ratelimit.FixedWindow(many, time.Hour), ratelimit.TokenBucket(many, time.Hour, many)
	for _, tc := range []struct {
		name   string
		limits []ratelimit.Limit
	}{
		{"fixed", []ratelimit.Limit{fixed}},
		{"sliding", []ratelimit.Limit{ratelimit.SlidingWindow(many, time.Hour)}},
		{"bucket", []ratelimit.Limit{bucket}},
		{"daily", []ratelimit.Limit{ratelimit.Daily(many, nil)}},
		{"two", []ratelimit.Limit{fixed, bucket}},
		{"block", []ratelimit.Limit{fixed.Block(time.Hour)}},
		{"rolling", []ratelimit.Limit{ratelimit.Rolling(1000, 50*time.Millisecond)}},
	} {
		for _, callers := range []int{1, 64, 256} {
			for _, keys := range []int{benchKeys, 1} {
				if callers == 256 && keys == 1 {
					continue
				}
				b.Run(fmt.Sprintf("%s/callers=%d/keys=%d", tc.name, callers, keys), func(b *testing.B) {
					store := newStore(b, pool, b.Name())
					benchTake(b, pool, store, callers, keys, tc.limits)
				})
			}
		}
	}
	b.Run("durable/callers=64/keys=10000", func(b *testing.B) {
		benchTake(b, pool, newStore(b, pool, b.Name(), postgres.Durable()), 64, benchKeys, []ratelimit.Limit{fixed})
	})
	b.Run("denied/callers=64/keys=10000", func(b *testing.B) {
		benchTake(b, pool, newStore(b, pool, b.Name()), 64, benchKeys, []ratelimit.Limit{ratelimit.FixedWindow(1, 24*time.Hour)})
	})
}

func benchTake(b *testing.B, pool *pgxpool.Pool, store *postgres.Store, callers, keys int, limits []ratelimit.Limit) {
	names := make([]string, keys)
	var fill sync.WaitGroup
	for i := range names { // all rows exist
		names[i] = fmt.Sprint("203.0.113.", i)
		fill.Go(func() {
			_, err := store.Take(context.Background(), names[i], 1, limits, make([]ratelimit.Result, len(limits)))
			require.NoError(b, err)
		})
	}
	fill.Wait()
	written := func() (bytes int64) {
		require.NoError(b, pool.QueryRow(context.Background(), "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").Scan(&bytes))
		return bytes
	}
	_, err := pool.Exec(context.Background(), "CHECKPOINT") // after it, each page is written in full once
	require.NoError(b, err)
	before := written()
	inParallel(b, callers, func(r *rand.Rand) error {
		var results [2]ratelimit.Result
		_, err := store.Take(context.Background(), names[r.IntN(keys)], 1, limits, results[:len(limits)])
		return err
	})
	b.ReportMetric(float64(written()-before)/float64(b.N), "WAL-B/call")
}
