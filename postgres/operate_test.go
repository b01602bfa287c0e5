package postgres_test

import (
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/postgres"
)

// This file tests what happens to a database in operation: a pooler in front of it, too few
// connections, a transaction that stays open, and many rows.

// takeMany calls from 64 goroutines, for one key under an hourly limit and a rolling window, and
// returns how many calls were admitted. Each of the stores is in use.
func takeMany(t *testing.T, stores []*postgres.Store, calls int, limit int64) (admitted int64) {
	t.Helper()
	var n atomic.Int64
	var wg sync.WaitGroup
	limits := []ratelimit.Limit{ratelimit.FixedWindow(limit, time.Hour), ratelimit.TokenBucket(limit, 10_000*time.Hour, limit)}
	for c := range 64 {
		wg.Go(func() {
			for i := range calls / 64 {
				var result ratelimit.Result
				err := patiently(func() (err error) {
					result, err = takeOne(stores[(c+i)%len(stores)], "key", limits, 20*time.Second)
					return err
				})
				assert.NoError(t, err)
				if err == nil && result.RetryAfter == 0 {
					n.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return n.Load()
}

// TestPgBouncer counts through a real PgBouncer in transaction mode, and kills it.
func TestPgBouncer(t *testing.T) {
	server := migrated(t)
	bouncer := server.Bouncer(3)
	exec := func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec }
	var stores []*postgres.Store
	for range 4 { // as in four processes
		stores = append(stores, newStore(t, newPool(t, bouncer.URL(), exec), "bounced"))
	}
	require.EqualValues(t, 500, takeMany(t, stores, 1600, 500))
	for _, of := range [][]ratelimit.Limit{{ratelimit.Rolling(3, time.Hour)}, {ratelimit.FixedWindow(3, time.Minute).Block(time.Hour)}} {
		for i := range 5 {
			result, err := takeOne(stores[i%4], "another", of, 5*time.Second)
			require.NoError(t, err)
			require.Equal(t, i >= 3, result.RetryAfter > 0)
		}
	}

	five := []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)}
	limiter := newLimiter(t, stores[0], five, func(o *ratelimit.Options) { o.Timeout = 5 * time.Second })
	for range 5 {
		d, err := limiter.Take(ctx, "used up")
		require.NoError(t, err)
		require.True(t, d.Allowed)
	}
	bouncer.Kill()
	for range 5 {
		d, err := limiter.Take(ctx, "used up")
		require.NoError(t, err)
		require.False(t, d.Allowed)
	}
	_, err := takeOne(stores[1], "key", five, 5*time.Second)
	require.Error(t, err)
	bouncer.Start()
	decidesAgain(t, limiter)
	require.Eventually(t, func() bool { return counted(t, stores[1], "used up") == 5 }, 20*time.Second, 20*time.Millisecond)
}

// TestTooManyConnections takes all connections of a server. Calls say what to do, and nothing
// is counted.
func TestTooManyConnections(t *testing.T) {
	server := migrated(t, "max_connections=8", "superuser_reserved_connections=2", "max_wal_senders=0")
	admin := connect(t, server.URL(pgtest.Superuser))
	_, err := admin.Exec(ctx, "CREATE ROLE shop LOGIN; GRANT ratelimit_application TO shop")
	require.NoError(t, err)
	var others []*pgx.Conn
	for {
		conn, err := pgx.Connect(ctx, server.URL("shop"))
		if err != nil {
			break
		}
		others = append(others, conn)
	}
	store := newStore(t, newPool(t, server.URL("shop")), "p")
	_, err = takeOne(store, "key", hourly, 5*time.Second)
	require.ErrorContains(t, err, "raise max_connections")
	require.Equal(t, ratelimit.FaultRefused, store.Fault(err))
	for _, conn := range others {
		require.NoError(t, conn.Close(ctx))
	}
	require.Zero(t, counted(t, store, "key"))
}

// TestIdleTransaction counts a hot key while a transaction elsewhere stays open, so that no
// dead version of its row can be removed. RATELIMIT_POSTGRES_IDLE is how long that takes, such
// as 60s.
func TestIdleTransaction(t *testing.T) {
	server := migrated(t)
	stores := []*postgres.Store{newStore(t, newPool(t, server.URL(pgtest.Superuser)), "idle"), newStore(t, newPool(t, server.URL(pgtest.Superuser)), "idle")}
	idle, err := connect(t, server.URL(pgtest.Superuser)).BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	require.NoError(t, err)
	_, err = idle.Exec(ctx, "SELECT count(*) FROM ratelimit.counter")
	require.NoError(t, err)

	lasts, began := time.Second, time.Now()
	if text := os.Getenv("RATELIMIT_POSTGRES_IDLE"); text != "" {
		lasts, err = time.ParseDuration(text)
		require.NoError(t, err)
	}
	const calls = 6400
	limit, sent := int64(1_000_000_000), int64(0)
	round := func() time.Duration {
		began := time.Now()
		sent += calls
		require.EqualValues(t, calls, takeMany(t, stores, calls, limit))
		return time.Since(began)
	}
	first := round()
	last := first
	for time.Since(began) < lasts {
		last = round()
	}
	require.NoError(t, idle.Rollback(ctx))
	_, err = connect(t, server.URL(pgtest.Superuser)).Exec(ctx, "VACUUM ratelimit.counter")
	require.NoError(t, err)
	after := round()
	t.Logf("%d calls took %v at first, %v after %v, and %v when the transaction was over", calls, first, last, time.Since(began), after)
	result, err := takeOne(stores[0], "key", []ratelimit.Limit{ratelimit.FixedWindow(limit, time.Hour)}, 5*time.Second)
	require.NoError(t, err)
	require.Equal(t, limit-sent-1, result.Remaining)
}

// TestManyRows counts in a table with RATELIMIT_POSTGRES_ROWS rows, such as 10000000.
func TestManyRows(t *testing.T) {
	rows := 200_000
	if text := os.Getenv("RATELIMIT_POSTGRES_ROWS"); text != "" {
		var err error
		rows, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	server := migrated(t, "autovacuum=on", "shared_buffers=256MB")
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "many")
	admin := connect(t, server.URL(pgtest.Superuser))
	limits := []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)}
	_, err := takeOne(store, "key", limits, 5*time.Second)
	require.NoError(t, err)
	// Copies of the row of a real key, for other keys of the same prefix.
	_, err = admin.Exec(ctx, `INSERT INTO ratelimit.counter (ends, t1, a1, b1, t2, a2, b2, t3, a3, b3, until, shape, g, key)
		SELECT c.ends, c.t1, c.a1, c.b1, c.t2, c.a2, c.b2, c.t3, c.a3, c.b3, c.until, c.shape, c.g, split_part(c.key, ':', 1) || ':user-' || i
		FROM ratelimit.counter c, generate_series(1, $1) i`, rows)
	require.NoError(t, err)
	var size string
	require.NoError(t, admin.QueryRow(ctx, "SELECT pg_size_pretty(pg_total_relation_size('ratelimit.counter'))").Scan(&size))
	var slowest atomic.Int64
	began := time.Now()
	const calls = 6400
	var wg sync.WaitGroup
	for c := range 64 {
		wg.Go(func() {
			for i := range calls / 64 {
				key := "user-" + strconv.Itoa(1+(c*7919+i*104_729)%rows)
				before := time.Now()
				result, err := takeOne(store, key, limits, 20*time.Second)
				assert.NoError(t, err)
				if took := int64(time.Since(before)); took > slowest.Load() {
					slowest.Store(took)
				}
				if err == nil && result.RetryAfter == 0 && result.Remaining > 3 {
					t.Errorf("%s has %d units left, and one was counted before", key, result.Remaining)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d rows, %s: %d calls for spread keys in %v, the slowest in %v", rows, size, calls, time.Since(began), time.Duration(slowest.Load()))
}
