package postgres_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/postgres"
)

// TestDenialsWriteNothing makes 5,000 denied calls of each kind. No transaction gets an id,
// and no byte of WAL is written.
func TestDenialsWriteNothing(t *testing.T) {
	server := migrated(t, "wal_level=minimal", "max_wal_senders=0", "checkpoint_timeout=1h", "bgwriter_delay=10s")
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "denied")
	admin := connect(t, server.URL(pgtest.Superuser))
	written := func() (next, wal string) {
		require.NoError(t, admin.QueryRow(ctx, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text, pg_current_wal_insert_lsn()::text").Scan(&next, &wal))
		return next, wal
	}
	fixed := ratelimit.FixedWindow(1, 24*time.Hour)
	for name, limits := range map[string][]ratelimit.Limit{
		"fixed":    {fixed},
		"sliding":  {ratelimit.SlidingWindow(1, 24*time.Hour)},
		"bucket":   {ratelimit.TokenBucket(1, 24*time.Hour, 1)},
		"calendar": {ratelimit.Monthly(1, 1, nil)},
		"two":      {ratelimit.FixedWindow(100, time.Hour), ratelimit.TokenBucket(1, 24*time.Hour, 1)},
		"rolling":  {ratelimit.Rolling(1, 24*time.Hour)},
		"blocked":  {fixed.Block(48 * time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			const keys, calls = 50, 5000
			// Takes until the call is denied and starts no block any more.
			for range 3 {
				for i := range keys {
					_, err := takeOne(store, fmt.Sprint(name, i), limits, 5*time.Second)
					require.NoError(t, err)
				}
			}
			nextBefore, walBefore := written()
			var wg sync.WaitGroup
			for g := range 50 {
				wg.Go(func() {
					for i := range calls / 50 {
						results := make([]ratelimit.Result, len(limits))
						_, err := store.Take(ctx, fmt.Sprint(name, (g+i)%keys), 1, limits, results)
						assert.NoError(t, err)
						assert.Positive(t, results[len(results)-1].RetryAfter)
					}
				})
			}
			wg.Wait()
			next, wal := written()
			assert.Equal(t, nextBefore, next, "the next transaction id")
			assert.Equal(t, walBefore, wal, "the end of the WAL")
		})
	}
}

// TestTableThatGrowsInOneSession plans the functions while the table is tiny, and calls them
// in the same session when it has 100,000 rows. A plan that looks at all rows would take a
// hundred times as long.
func TestTableThatGrowsInOneSession(t *testing.T) {
	server := migrated(t)
	config := func(name string) *postgres.Store {
		return newStore(t, newPool(t, server.URL(pgtest.Superuser)+"&pool_max_conns=1"), name)
	}
	admin := connect(t, server.URL(pgtest.Superuser))
	limits := map[string][]ratelimit.Limit{
		"fast": {ratelimit.FixedWindow(1000, time.Hour), ratelimit.TokenBucket(1000, time.Hour, 1000)}, "general": {ratelimit.Rolling(500, time.Hour)},
	}
	stores := map[string]*postgres.Store{}
	// takes makes calls for 64 keys that come at once, and returns how long the fastest of some
	// rounds took.
	takes := func(name string) time.Duration {
		best := time.Hour
		for range 8 {
			began := time.Now()
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() {
					_, err := takeOne(stores[name], fmt.Sprint("key", i), limits[name], 20*time.Second)
					assert.NoError(t, err)
				})
			}
			wg.Wait()
			best = min(best, time.Since(began))
		}
		return best
	}
	for _, state := range []string{"", "VACUUM ANALYZE ratelimit.counter", "DELETE FROM ratelimit.counter; VACUUM ANALYZE ratelimit.counter"} {
		_, err := admin.Exec(ctx, "TRUNCATE ratelimit.counter")
		require.NoError(t, err)
		for name := range limits {
			stores[name] = config(name)
			takes(name)
			for _, s := range strings.Split(state, ";") {
				if s != "" {
					_, err := admin.Exec(ctx, s)
					require.NoError(t, err)
				}
			}
			tiny := takes(name)
			_, err := admin.Exec(ctx, `INSERT INTO ratelimit.counter (ends, shape, g, key)
				SELECT 4000000000000000000, 0, 0, $1 || ':' || i FROM generate_series(1, 100000) i`, name)
			require.NoError(t, err)
			grown := takes(name)
			for try := 0; grown >= 8*tiny+10*time.Millisecond && try < 3; try++ {
				grown = takes(name)
			}
			t.Logf("%s, %q: %v with few rows, %v with many", name, state, tiny, grown)
			assert.Less(t, grown, 8*tiny+10*time.Millisecond, "%s, %q", name, state)
			_, err = admin.Exec(ctx, "DELETE FROM ratelimit.counter WHERE key LIKE $1", name+":%")
			require.NoError(t, err)
		}
	}
}

// TestHostileKeys counts keys that text cannot hold, or that look like each other.
func TestHostileKeys(t *testing.T) {
	server := migrated(t)
	pool := newPool(t, server.URL(pgtest.Superuser))
	store, other := newStore(t, pool, "hostile"), newStore(t, pool, "hostile:")
	long := strings.Repeat("x", 5000)
	keys := []string{
		"a", "a\x00", "\x00", "\xff\xfe", "%00", "%", "a b", "a%20b", "é", "'; DROP TABLE ratelimit.counter; --", `"`, `\`, `\\x00`, "{1,2}", ":", "1:a", "hostile",
		long, long + "y", "%sha256:" + strings.Repeat("0", 64), strings.Repeat("z", 128), strings.Repeat("z", 129), strings.Repeat("\x00", 128), "𝄞", "\u202e",
	}
	one := []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)}
	for _, s := range []*postgres.Store{store, other} {
		for _, limits := range [][]ratelimit.Limit{one, {ratelimit.Rolling(1, time.Hour)}} {
			for _, key := range keys {
				first, err := takeOne(s, key, limits, 5*time.Second)
				require.NoError(t, err, "%.40q", key)
				assert.Zero(t, first.RetryAfter, "%.40q shares a counter with another key", key)
				again, err := takeOne(s, key, limits, 5*time.Second)
				require.NoError(t, err)
				assert.Positive(t, again.RetryAfter, "%.40q has no counter", key)
			}
		}
	}
}

// TestStanding reads the view for people with psql, as an auditor.
func TestStanding(t *testing.T) {
	server := migrated(t)
	admin := connect(t, server.URL(pgtest.Superuser))
	_, err := admin.Exec(ctx, "CREATE ROLE auditor LOGIN; GRANT ratelimit_auditor TO auditor")
	require.NoError(t, err)
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "login")
	limiter := newLimiter(t, store, []ratelimit.Limit{ratelimit.FixedWindow(2, time.Hour).Block(2 * time.Hour), ratelimit.Rolling(9, time.Minute), ratelimit.InFlight(5, time.Minute)},
		func(o *ratelimit.Options) { o.Timeout = 5 * time.Second })
	for range 3 {
		_, _, err := limiter.Acquire(ctx, "203.0.113.7")
		require.NoError(t, err)
	}
	_, err = takeOne(store, "198.51.100.1", []ratelimit.Limit{ratelimit.Daily(5, nil), ratelimit.TokenBucket(5, time.Second, 5)}, 5*time.Second)
	require.NoError(t, err)
	rows, err := connect(t, server.URL("auditor")).Query(ctx, `SELECT format('%s %s %s %s', prefix, key, "limit", units) || CASE WHEN blocked_until > now() THEN ' blocked' ELSE '' END FROM ratelimit.standing ORDER BY 1`)
	require.NoError(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	assert.Equal(t, []string{
		"login 198.51.100.1 bucket-1s 1", "login 198.51.100.1 day-UTC 1",
		"login 203.0.113.7 fixed-1h 2 blocked", "login 203.0.113.7 inflight 2", "login 203.0.113.7 rolling-1m 2",
	}, lines)

	// Reset lifts the block and leaves the holds, also with an in-flight limit.
	require.NoError(t, limiter.Reset(ctx, "203.0.113.7"))
	_, d, err := limiter.Acquire(ctx, "203.0.113.7")
	require.NoError(t, err)
	assert.True(t, d.Allowed)
	require.NoError(t, limiter.Block(ctx, "203.0.113.7", time.Hour))
	_, d, err = limiter.Acquire(ctx, "203.0.113.7")
	require.NoError(t, err)
	assert.True(t, d.Blocked)
}

// TestExpiredRowsAreDeleted lets time pass and sweeps. Rows that still count stay.
func TestExpiredRowsAreDeleted(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server)
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "swept")
	short, long := []ratelimit.Limit{ratelimit.FixedWindow(5, time.Minute)}, []ratelimit.Limit{ratelimit.Rolling(5, time.Hour)}
	for i := range 300 {
		for name, limits := range map[string][]ratelimit.Limit{"short": short, "long": long} {
			_, err := takeOne(store, fmt.Sprint(name, i), limits, 5*time.Second)
			require.NoError(t, err)
		}
	}
	sweep := func() (rows int) {
		var page, deleted, pages int64
		for ok := true; ok; ok = page < pages {
			require.NoError(t, clock.conn.QueryRow(ctx, "SELECT r_deleted, r_pages FROM ratelimit.sweep($1)", page).Scan(&deleted, &pages))
			page += 256
		}
		require.NoError(t, clock.conn.QueryRow(ctx, "SELECT count(*) FROM ratelimit.counter").Scan(&rows))
		return rows
	}
	clock.advance(90 * time.Second)
	assert.Equal(t, 600, sweep(), "a row is kept for a minute longer than it counts")
	clock.advance(45 * time.Second)
	assert.Equal(t, 300, sweep())
	clock.advance(2 * time.Hour)
	assert.Equal(t, 0, sweep())
	_, err := takeOne(store, "short1", short, 5*time.Second)
	require.NoError(t, err)
	assert.Equal(t, 1, sweep())
}

// TestMigrateWhileInUse migrates in several sessions at once while a store counts.
func TestMigrateWhileInUse(t *testing.T) {
	server := pgtest.Start(t)
	var migrations sync.WaitGroup
	for range 4 {
		conn := connect(t, server.URL(pgtest.Superuser))
		migrations.Go(func() { assert.NoError(t, postgres.Migrate(ctx, conn)) })
	}
	migrations.Wait()
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "in use")
	stop := make(chan struct{})
	var callers sync.WaitGroup
	var admitted atomic.Int64
	for range 8 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := takeOne(store, "key", hourly, 5*time.Second); isLockedOut(err) {
					continue
				} else if assert.NoError(t, err) {
					admitted.Add(1)
				}
			}
		})
	}
	conn := connect(t, server.URL(pgtest.Superuser))
	for range 3 {
		assert.NoError(t, postgres.Migrate(ctx, conn))
	}
	close(stop)
	callers.Wait()
	assert.Equal(t, admitted.Load(), counted(t, store, "key"))
}
