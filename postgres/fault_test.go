package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/postgres"
)

var ctx = context.Background()

// hourly is a limit that no test reaches.
var hourly = []ratelimit.Limit{ratelimit.FixedWindow(1_000_000, time.Hour)}

// takeOne takes a unit under a timeout.
func takeOne(store *postgres.Store, key string, limits []ratelimit.Limit, timeout time.Duration) (ratelimit.Result, error) {
	results := make([]ratelimit.Result, len(limits))
	_, err := store.TakeShared(ctx, ratelimit.SharedRequest{Key: key, Units: 1, Limits: limits, Deadline: time.Now().Add(timeout)}, results)
	return results[0], err
}

// counted returns how many units are counted for a key under an hourly limit.
func counted(t *testing.T, store *postgres.Store, key string) int64 {
	t.Helper()
	results := make([]ratelimit.Result, 1)
	var err error
	for range 100 { // the pool may have connections that are gone
		if _, err = store.Take(ctx, key, 0, hourly, results); err == nil {
			return hourly[0].N() - results[0].Remaining
		}
		time.Sleep(20 * time.Millisecond)
	}
	require.NoError(t, err)
	return 0
}

// isLockedOut reports whether a call was refused because another statement has kept a lock for
// too long, or because such refusals have opened the breaker. A backend that stalls in the
// middle of a statement causes that. Nothing was written.
func isLockedOut(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "SQLSTATE 55P03") || strings.Contains(err.Error(), "has locked the row") || strings.Contains(err.Error(), "asked only now and then"))
}

// patiently makes a call, and makes it again while it is locked out.
func patiently(call func() error) (err error) {
	for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(10 * time.Millisecond) {
		if err = call(); !isLockedOut(err) {
			break
		}
	}
	return err
}

// newLimiter returns a limiter with a store.
func newLimiter(t *testing.T, store ratelimit.Store, limits []ratelimit.Limit, set func(*ratelimit.Options)) *ratelimit.Limiter {
	t.Helper()
	var registry ratelimit.Registry
	options := ratelimit.Options{Limits: limits, Store: store, Logger: slog.New(slog.DiscardHandler)}
	set(&options)
	limiter, err := registry.New("test", options)
	require.NoError(t, err)
	t.Cleanup(func() { limiter.Close() })
	return limiter
}

// TestHungServerIsAnsweredWithinTimeout stops all processes of the server.
func TestHungServerIsAnsweredWithinTimeout(t *testing.T) {
	server := migrated(t)
	limiter := newLimiter(t, newStore(t, newPool(t, server.URL(pgtest.Superuser)), "hung"), hourly, func(o *ratelimit.Options) { o.Timeout = 200 * time.Millisecond })
	_, err := limiter.Take(ctx, "key")
	require.NoError(t, err)
	server.Hang()
	defer server.Continue()
	assert.Less(t, fastestFailure(t, limiter), 600*time.Millisecond)
	server.Continue()
	decidesAgain(t, limiter)
}

// fastestFailure returns how long the fastest of four calls takes that the store does not
// answer. The next failure would open the breaker, so there are no more.
func fastestFailure(t *testing.T, limiter *ratelimit.Limiter) time.Duration {
	t.Helper()
	fastest := time.Hour
	for range 4 {
		began := time.Now()
		d, err := limiter.Take(ctx, "key")
		require.NoError(t, err)
		assert.Equal(t, ratelimit.SourceFallback, d.Source)
		fastest = min(fastest, time.Since(began))
	}
	return fastest
}

// decidesAgain waits until a limiter's store decides.
func decidesAgain(t *testing.T, limiter *ratelimit.Limiter) {
	t.Helper()
	require.Eventually(t, func() bool {
		d, err := limiter.Take(ctx, "key")
		return err == nil && d.Source == ratelimit.SourceStore
	}, 20*time.Second, 20*time.Millisecond)
}

// TestRestart shuts the server down and starts it again. Nothing is lost.
func TestRestart(t *testing.T) {
	server := migrated(t)
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "restart")
	limiter := newLimiter(t, store, hourly, func(o *ratelimit.Options) { o.OnFailure, o.Timeout = ratelimit.FailClosed, 5*time.Second })
	for range 10 {
		_, err := limiter.Take(ctx, "before")
		require.NoError(t, err)
	}
	server.Stop()
	_, err := takeOne(store, "key", hourly, time.Second)
	assert.Error(t, err)
	_, err = takeOne(store, "key", hourly, 20*time.Second)
	assert.Equal(t, ratelimit.FaultRefused, store.Fault(err), "nobody listens: %v", err)
	server.Restart()
	decidesAgain(t, limiter)
	assert.EqualValues(t, 10, counted(t, store, "before"))
}

// TestDurableUnitsSurviveAKilledServer kills the server, again and again, while callers
// count. Every unit that was admitted is counted, and at most one for each failed call more.
func TestDurableUnitsSurviveAKilledServer(t *testing.T) {
	server := migrated(t, "fsync=on")
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "killed", postgres.Durable())
	var admitted, unknown atomic.Int64
	for range 2 {
		stop, callers := atomic.Bool{}, sync.WaitGroup{}
		for range 16 {
			callers.Go(func() {
				for !stop.Load() {
					if _, err := takeOne(store, "key", hourly, time.Second); err == nil {
						admitted.Add(1)
					} else if store.Fault(err) == ratelimit.FaultUnknown {
						unknown.Add(1)
					}
				}
			})
		}
		at := admitted.Load()
		for admitted.Load() < at+200 {
			time.Sleep(time.Millisecond)
		}
		server.Kill()
		time.Sleep(50 * time.Millisecond)
		server.Restart()
		at = admitted.Load()
		for admitted.Load() < at+50 {
			time.Sleep(time.Millisecond)
		}
		stop.Store(true)
		callers.Wait()
	}
	got := counted(t, store, "key")
	assert.GreaterOrEqual(t, got, admitted.Load())
	assert.LessOrEqual(t, got, admitted.Load()+unknown.Load())
	t.Logf("%d admitted, %d of unknown effect, %d counted", admitted.Load(), unknown.Load(), got)
}

// TestTerminatedBackends ends connections in the middle of batches. No call is made twice.
func TestTerminatedBackends(t *testing.T) {
	server := migrated(t)
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "terminated")
	admin := connect(t, server.URL(pgtest.Superuser))
	limits := [][]ratelimit.Limit{hourly, {hourly[0], ratelimit.Rolling(1000, time.Hour)}}
	var admitted, unknown, refused atomic.Int64
	var callers sync.WaitGroup
	stop := atomic.Bool{}
	for i := range 64 {
		callers.Go(func() {
			for n := 0; !stop.Load(); n++ {
				of := limits[0]
				if i == 0 && n < 300 {
					of = limits[1]
				}
				switch _, err := takeOne(store, "key", of, 5*time.Second); {
				case err == nil:
					admitted.Add(1)
				case store.Fault(err) == ratelimit.FaultUnknown:
					unknown.Add(1)
				default:
					refused.Add(1)
				}
			}
		})
	}
	for range 60 {
		time.Sleep(10 * time.Millisecond)
		_, err := admin.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'")
		require.NoError(t, err)
	}
	stop.Store(true)
	callers.Wait()
	got := counted(t, store, "key")
	assert.GreaterOrEqual(t, got, admitted.Load())
	assert.LessOrEqual(t, got, admitted.Load()+unknown.Load())
	assert.Positive(t, unknown.Load()+refused.Load(), "no connection was in use when it was ended")
	t.Logf("%d admitted, %d of unknown effect, %d refused, %d counted", admitted.Load(), unknown.Load(), refused.Load(), got)
}

// TestLostReplyCountsOnce lets statements through and drops their replies.
func TestLostReplyCountsOnce(t *testing.T) {
	server := migrated(t)
	proxy := redistest.NewProxy(t, server.Addr())
	pool := newPool(t, "postgres://postgres@"+proxy.Addr+"/postgres?sslmode=disable")
	store := newStore(t, pool, "lost")
	direct := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "lost") // past the proxy
	for _, limits := range [][]ratelimit.Limit{hourly, {hourly[0], ratelimit.Rolling(500, time.Hour)}} {
		key := fmt.Sprint("key of ", len(limits))
		sent, reached := int64(0), false
		// In some tries no statement reaches the server: a call that stalls has no time left to
		// send it, and pgxpool first checks a connection that was idle for a second.
		for try := 0; try < 10 && !reached; try++ {
			pool.Reset()                     // without the connections of the last try
			before := counted(t, store, key) // a connection is open after that
			proxy.LoseReplies(true)
			const calls = 5
			var wg sync.WaitGroup
			for range calls {
				wg.Go(func() {
					_, err := takeOne(store, key, limits, 300*time.Millisecond)
					assert.ErrorIs(t, err, context.DeadlineExceeded)
					assert.NotEqual(t, ratelimit.FaultKey, store.Fault(err))
				})
			}
			wg.Wait()
			sent += calls
			for i := 0; i < 100 && !reached; i++ { // what was sent is carried out
				time.Sleep(10 * time.Millisecond)
				reached = counted(t, direct, key) > before
			}
			proxy.LoseReplies(false)
			if len(limits) > 1 { // a look, and a write only after its reply
				break
			}
		}
		assert.LessOrEqual(t, counted(t, store, key), sent)
		assert.Equal(t, len(limits) == 1, reached, "a statement has counted")
	}
}

// TestLockedTable holds a lock on the whole table in another session.
func TestLockedTable(t *testing.T) {
	server := migrated(t)
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "locked")
	limiter := newLimiter(t, store, hourly, func(o *ratelimit.Options) { o.Timeout = 200 * time.Millisecond })
	_, err := limiter.Take(ctx, "key")
	require.NoError(t, err)
	stranger := connect(t, server.URL(pgtest.Superuser))
	tx, err := stranger.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, "LOCK TABLE ratelimit.counter")
	require.NoError(t, err)
	assert.Less(t, fastestFailure(t, limiter), 600*time.Millisecond)
	_, err = takeOne(store, "key", hourly, 10*time.Second)
	require.Error(t, err)
	assert.Contains(t, err.Error(), "LOCK TABLE")
	assert.Equal(t, ratelimit.FaultRefused, store.Fault(err))
	require.NoError(t, tx.Rollback(ctx))
	decidesAgain(t, limiter)
}

// TestBadSetup checks the errors for a server, a role or a pool with a wrong setup.
func TestBadSetup(t *testing.T) {
	server := pgtest.Start(t)
	admin := connect(t, server.URL(pgtest.Superuser))
	run := func(sql ...string) {
		t.Helper()
		for _, s := range sql {
			_, err := admin.Exec(ctx, s)
			require.NoError(t, err, s)
		}
	}
	fails := func(pool *pgxpool.Pool, prefix, want string) error {
		t.Helper()
		store := newStore(t, pool, prefix)
		_, err := takeOne(store, "key", hourly, 5*time.Second)
		require.Error(t, err)
		assert.Contains(t, err.Error(), want)
		assert.Equal(t, ratelimit.FaultRefused, store.Fault(err), "%v", err)
		return err
	}
	setting := func(name, value string) func(*pgxpool.Config) {
		return func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams[name] = value }
	}
	superuser := server.URL(pgtest.Superuser)

	fails(newPool(t, superuser), "p", "run postgres.Migrate")
	run("CREATE ROLE shop LOGIN", "CREATE ROLE blog LOGIN")
	shop := connect(t, server.URL("shop"))
	err := postgres.Migrate(ctx, shop)
	assert.ErrorContains(t, err, "permission denied")

	require.NoError(t, postgres.Migrate(ctx, admin))
	require.NoError(t, postgres.Migrate(ctx, admin), "a second time")
	fails(newPool(t, server.URL("shop")), "p", "grant ratelimit_application")
	run("GRANT ratelimit_application TO shop, blog")
	shopStore := newStore(t, newPool(t, server.URL("shop")), "p")
	_, err = takeOne(shopStore, "key", hourly, 5*time.Second)
	require.NoError(t, err)
	assert.ErrorIs(t, fails(newPool(t, server.URL("blog")), "p", `the role shop`), ratelimit.ErrPrefixClaimed)
	// A role that knows the id of a prefix could name its rows to the functions.
	for _, sql := range []string{"DELETE FROM ratelimit.counter", "SELECT id FROM ratelimit.prefix", "SELECT key FROM ratelimit.counter"} {
		_, err = connect(t, server.URL("blog")).Exec(ctx, sql)
		assert.ErrorContains(t, err, "permission denied")
	}

	fails(newPool(t, superuser, setting("default_transaction_isolation", "repeatable read")), "q", "default_transaction_isolation")
	fails(newPool(t, superuser, setting("default_transaction_read_only", "on")), "q", "connect to the primary")
	run("CREATE ROLE " + pgtest.WithPassword + " LOGIN PASSWORD 'secret'")
	wrong := "postgres://" + pgtest.WithPassword + ":wrong@" + server.Addr() + "/postgres?sslmode=disable"
	fails(newPool(t, wrong), "q", "check the role, its password")
	fails(newPool(t, "postgres://postgres@"+server.Addr()+"/nosuch?sslmode=disable"), "q", "the database does not exist")

	// The schema goes away and comes back while a store is in use.
	store := newStore(t, newPool(t, superuser), "r")
	_, err = takeOne(store, "key", hourly, 5*time.Second)
	require.NoError(t, err)
	run("DROP SCHEMA ratelimit CASCADE")
	_, err = takeOne(store, "key", hourly, 5*time.Second)
	assert.ErrorContains(t, err, "run postgres.Migrate")
	require.NoError(t, postgres.Migrate(ctx, admin))
	assert.EqualValues(t, 0, counted(t, store, "key"))

	closed := newPool(t, superuser)
	closed.Close()
	assert.ErrorIs(t, fails(closed, "r", "close limiters and stores first"), ratelimit.ErrStoreClosed)

	// A row that this library has not written.
	run(`UPDATE ratelimit.counter SET a1 = -5`)
	_, err = takeOne(store, "key", hourly, 5*time.Second)
	assert.NoError(t, err, "a new row is not there yet")
	run(`UPDATE ratelimit.counter SET shape = 0, more = '{"counters": 7}'`)
	_, err = takeOne(store, "key", hourly, 5*time.Second)
	require.Error(t, err)
	assert.Equal(t, ratelimit.FaultKey, store.Fault(err), "%v", err)
}

// TestFullDisk fills the disk of the table. New keys get an error that says so, and rows that
// exist are counted.
func TestFullDisk(t *testing.T) {
	server := migrated(t)
	disk := server.Disk("table", 1<<20)
	admin := connect(t, server.URL(pgtest.Superuser))
	for _, sql := range []string{
		"CREATE TABLESPACE small LOCATION '" + disk.Path + "'", "ALTER TABLE ratelimit.counter SET TABLESPACE small",
		"ALTER INDEX ratelimit.counter_pkey SET TABLESPACE small",
	} {
		_, err := admin.Exec(ctx, sql)
		require.NoError(t, err)
	}
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "full")
	_, err := takeOne(store, "key", hourly, 5*time.Second)
	require.NoError(t, err)
	disk.Fill()
	admitted := 0
	for ; err == nil && admitted < 10_000; admitted++ {
		_, err = takeOne(store, fmt.Sprint("new ", admitted), hourly, 5*time.Second)
	}
	require.ErrorContains(t, err, "the server's disk is full")
	assert.Equal(t, ratelimit.FaultRefused, store.Fault(err))
	_, err = takeOne(store, "key", hourly, 5*time.Second)
	require.NoError(t, err)
	disk.Free()
	assert.EqualValues(t, 2, counted(t, store, "key"))
	assert.EqualValues(t, 0, counted(t, store, fmt.Sprint("new ", admitted-1)))
	assert.EqualValues(t, 1, counted(t, store, "new 0"))
}

// TestClockSetBack sets the server's clock back by less than a window, and by more.
func TestClockSetBack(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server)
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "back")
	for name, limit := range map[string]ratelimit.Limit{
		"fixed": ratelimit.FixedWindow(4, time.Hour), "sliding": ratelimit.SlidingWindow(4, time.Hour), "bucket": ratelimit.TokenBucket(4, time.Hour, 4),
		"rolling": ratelimit.Rolling(4, time.Hour), "day": ratelimit.Daily(4, nil),
	} {
		t.Run(name, func(t *testing.T) {
			limits := []ratelimit.Limit{limit}
			take := func(key string, n int64) ratelimit.Result {
				t.Helper()
				results := make([]ratelimit.Result, 1)
				_, err := store.Take(ctx, name+key, n, limits, results)
				require.NoError(t, err)
				return results[0]
			}
			take("used up", 4)
			take("half", 2)
			for _, back := range []time.Duration{30 * time.Minute, 5 * time.Hour} {
				clock.advance(-back)
				assert.EqualValues(t, 2, take("half", 0).Remaining, "after %v", back)
				denied := take("used up", 1)
				assert.Positive(t, denied.RetryAfter, "after %v", back)
				if name != "day" { // which ends at midnight
					assert.LessOrEqual(t, denied.RetryAfter, 2*limit.Window(), "after %v", back)
				}
			}
		})
	}
}

// TestBadArguments has calls that are refused without a server.
func TestBadArguments(t *testing.T) {
	_, err := postgres.NewStore(nil, "login")
	assert.ErrorContains(t, err, "pgxpool.New")
	pool := newPool(t, "postgres://127.0.0.1:1/none")
	for _, prefix := range []string{"", "a\x00b", "\xff", string(make([]byte, 200))} {
		_, err = postgres.NewStore(pool, prefix)
		assert.ErrorContains(t, err, "its prefix", "%q", prefix)
	}
	assert.ErrorContains(t, postgres.Migrate(ctx, nil), "pgx.Connect")
	store := newStore(t, pool, "login")
	_, err = takeOne(store, "", hourly, time.Second)
	assert.ErrorContains(t, err, "key is empty")
	_, err = takeOne(store, "key", []ratelimit.Limit{ratelimit.FixedWindow(0, time.Hour)}, time.Second)
	assert.ErrorContains(t, err, "it allows 0 units")
	_, err = store.Take(ctx, "key", -1, hourly, make([]ratelimit.Result, 1))
	assert.Error(t, err)
	_, err = takeOne(store, "key", hourly, 20*time.Second)
	assert.Equal(t, ratelimit.FaultRefused, store.Fault(err), "nobody listens: %v", err)
	require.NoError(t, store.Close())
	_, err = takeOne(store, "key", hourly, time.Second)
	assert.True(t, errors.Is(err, ratelimit.ErrStoreClosed))
}

// TestPromotedStandby kills the primary and promotes its standby. The pool finds it, and
// what it has received of the primary is counted.
func TestPromotedStandby(t *testing.T) {
	primary := migrated(t)
	standby := primary.Standby()
	url := fmt.Sprintf("postgres://postgres@%s,%s/postgres?sslmode=disable&target_session_attrs=read-write", primary.Addr(), standby.Addr())
	store := newStore(t, newPool(t, url), "promoted")
	limiter := newLimiter(t, store, hourly, func(o *ratelimit.Options) { o.Timeout = time.Second })
	for range 25 {
		_, err := takeOne(store, "before", hourly, 20*time.Second)
		require.NoError(t, err)
	}
	// On the standby itself, a store cannot count.
	readOnly := newStore(t, newPool(t, standby.URL(pgtest.Superuser)), "promoted")
	_, err := takeOne(readOnly, "before", hourly, 5*time.Second)
	require.Error(t, err)
	assert.Contains(t, err.Error(), "connect to the primary")
	assert.Equal(t, ratelimit.FaultRefused, readOnly.Fault(err))

	var written string
	require.NoError(t, connect(t, primary.URL(pgtest.Superuser)).QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()::text").Scan(&written))
	admin := connect(t, standby.URL(pgtest.Superuser))
	require.Eventually(t, func() bool {
		var rows int64
		return admin.QueryRow(ctx, "SELECT a1 FROM ratelimit.counter WHERE pg_last_wal_replay_lsn() >= $1::text::pg_lsn", written).Scan(&rows) == nil && rows == 25
	}, 10*time.Second, 20*time.Millisecond)
	primary.Kill()
	_, err = admin.Exec(ctx, "SELECT pg_promote()")
	require.NoError(t, err)
	decidesAgain(t, limiter)
	assert.EqualValues(t, 25, counted(t, store, "before"))
}
