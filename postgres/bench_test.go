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

// BenchmarkRivals are the statements that others use, through the same driver, for a fixed
// window: an UPSERT for each call, with and without waiting for the disk, and one UPSERT for
// 64 keys.
func BenchmarkRivals(b *testing.B) {
	server := benchServer(b)
	pool := newPool(b, server.URL(pgtest.Superuser), func(c *pgxpool.Config) { c.MaxConns = 32 })
	_, err := pool.Exec(context.Background(), `CREATE TABLE flat (key text COLLATE "C" PRIMARY KEY, points int NOT NULL, expire bigint) WITH (fillfactor = 70)`)
	require.NoError(b, err)
	// The statement of rate-limiter-flexible.
	const upsert = `INSERT INTO flat VALUES ($1, $2, $3) ON CONFLICT (key) DO UPDATE SET
		points = CASE WHEN flat.expire <= $4 THEN $2 ELSE flat.points + $2 END,
		expire = CASE WHEN flat.expire <= $4 THEN $3 ELSE flat.expire END RETURNING points, expire`
	async := newPool(b, server.URL(pgtest.Superuser)+"&synchronous_commit=off", func(c *pgxpool.Config) { c.MaxConns = 32 })
	one := func(pool *pgxpool.Pool, key string) error {
		var points int
		var expire int64
		now := time.Now().UnixMilli()
		return pool.QueryRow(context.Background(), upsert, key, 1, now+3_600_000, now).Scan(&points, &expire)
	}
	for name, pool := range map[string]*pgxpool.Pool{"upsert": pool, "upsert-async": async} {
		for _, callers := range []int{1, 64, 256} {
			for _, keys := range []int{benchKeys, 1} {
				b.Run(fmt.Sprintf("%s/callers=%d/keys=%d", name, callers, keys), func(b *testing.B) {
					inParallel(b, callers, func(r *rand.Rand) error { return one(pool, fmt.Sprint("203.0.113.", r.IntN(keys))) })
				})
			}
		}
	}
	// A floor: 64 keys in one UPSERT, with nothing that makes calls share it.
	const batch = `INSERT INTO flat SELECT k, 1, $2 FROM unnest($1::text[]) k ORDER BY k COLLATE "C" ON CONFLICT (key) DO UPDATE SET
		points = CASE WHEN flat.expire <= $3 THEN 1 ELSE flat.points + 1 END,
		expire = CASE WHEN flat.expire <= $3 THEN $2 ELSE flat.expire END RETURNING points, expire`
	b.Run("upsert-of-64/connections=4/keys=10000", func(b *testing.B) {
		inParallel(b, 4, func(r *rand.Rand) error {
			keys := make([]string, 0, 64)
			for i := range 64 {
				keys = append(keys, fmt.Sprint("203.0.113.", (r.IntN(benchKeys/64)*64+i)%benchKeys))
			}
			now := time.Now().UnixMilli()
			rows, err := async.Query(context.Background(), batch, keys, now+3_600_000, now)
			if err != nil {
				return err
			}
			rows.Close()
			return rows.Err()
		})
		b.ReportMetric(64*float64(b.N)/b.Elapsed().Seconds(), "keys/s")
	})
	b.Run("select-1/callers=1", func(b *testing.B) {
		inParallel(b, 1, func(*rand.Rand) error {
			var n int
			return pool.QueryRow(context.Background(), "SELECT 1").Scan(&n)
		})
	})
}
