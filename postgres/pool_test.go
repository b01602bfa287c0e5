package postgres_test

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"os"
	"strings"
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
)

// TestExecModes calls everything in each mode in which pgx may send statements. The ones
// without prepared statements are for PgBouncer in transaction mode.
func TestExecModes(t *testing.T) {
	server := migrated(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			pool := newPool(t, server.URL(pgtest.Superuser), func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			store := newStore(t, pool, mode.String())
			fixed, rolling := ratelimit.FixedWindow(10, time.Hour), ratelimit.Rolling(10, time.Hour)
			limits := []ratelimit.Limit{ratelimit.Daily(10, nil), fixed, ratelimit.TokenBucket(1, time.Hour, 10)}
			for i, of := range [][]ratelimit.Limit{limits, limits, {fixed, rolling}, {fixed.Block(time.Hour)}} {
				result, err := takeOne(store, "key", of, 5*time.Second)
				require.NoError(t, err)
				assert.EqualValues(t, 9-i, result.Remaining)
			}
			charged, err := store.Adjust(ctx, "key", 2, ratelimit.Now, []ratelimit.Limit{fixed, rolling})
			require.NoError(t, err)
			assert.EqualValues(t, 2, charged)
			require.NoError(t, store.Block(ctx, "key", ratelimit.Block{Left: time.Hour}, []ratelimit.Limit{fixed}))
			require.NoError(t, store.Reset(ctx, "key", limits))
			// Several keys and callers, with different costs.
			var wg sync.WaitGroup
			for i := range 40 {
				wg.Go(func() {
					assert.NoError(t, patiently(func() error {
						_, err := store.Take(ctx, string(rune('a'+i%20)), int64(1+i%3), limits, make([]ratelimit.Result, 3))
						return err
					}))
				})
			}
			wg.Wait()
		})
	}
}

// TestCancelledCallerLosesNothing cancels callers while their calls wait for a locked row.
// Their units are given back.
func TestCancelledCallerLosesNothing(t *testing.T) {
	server := migrated(t)
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "cancelled")
	_, err := takeOne(store, "key", hourly, 5*time.Second)
	require.NoError(t, err)
	stranger := connect(t, server.URL(pgtest.Superuser))
	_, err = stranger.Exec(ctx, "ALTER FUNCTION ratelimit.take_f SET lock_timeout = '1min'") // the callers leave first
	require.NoError(t, err)
	tx, err := stranger.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, "SELECT FROM ratelimit.counter FOR UPDATE")
	require.NoError(t, err)
	cancelled, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			_, err := store.Take(cancelled, "key", 1, hourly, make([]ratelimit.Result, 1))
			assert.ErrorIs(t, err, context.Canceled)
		})
	}
	time.Sleep(200 * time.Millisecond) // until they wait for the row
	cancel()
	wg.Wait()
	require.NoError(t, tx.Rollback(ctx))
	require.Eventually(t, func() bool { return counted(t, store, "key") == 1 }, 20*time.Second, 10*time.Millisecond)
}

// TestCloseLeavesThePool closes stores while callers count. The pool goes on, and Close
// returns when nothing of the store runs any more.
func TestCloseLeavesThePool(t *testing.T) {
	server := migrated(t)
	pool := newPool(t, server.URL(pgtest.Superuser))
	for range 5 {
		store := newStore(t, pool, "closed")
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				for {
					if _, err := takeOne(store, "key", hourly, 5*time.Second); err != nil && !isLockedOut(err) {
						assert.ErrorIs(t, err, ratelimit.ErrStoreClosed)
						return
					}
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		require.NoError(t, store.Close())
		wg.Wait()
		assert.Zero(t, pool.Stat().AcquiredConns())
	}
	require.NoError(t, pool.Ping(ctx))
}

// panickyTracer is a hook of a pool that panics at sweeps.
type panickyTracer struct{ sweeps atomic.Int64 }

func (p *panickyTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "ratelimit.sweep") {
		p.sweeps.Add(1)
		panic("a bug")
	}
	return ctx
}

func (p *panickyTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestHookThatPanicsInASweep waits for a sweep in which a hook of the pool panics. The store goes
// on, and the connection of the sweep goes back to the pool.
func TestHookThatPanicsInASweep(t *testing.T) {
	var logged bytes.Buffer
	before, flags := slog.Default(), log.Flags()
	slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))
	defer func() { // SetDefault has changed package log, too
		slog.SetDefault(before)
		log.SetOutput(os.Stderr)
		log.SetFlags(flags)
	}()
	tracer := new(panickyTracer)
	pool := newPool(t, migrated(t).URL(pgtest.Superuser), func(c *pgxpool.Config) { c.ConnConfig.Tracer = tracer })
	store := newStore(t, pool, "sweep")
	take := func() {
		_, err := takeOne(store, "key", hourly, 5*time.Second)
		require.NoError(t, err)
	}
	for began := time.Now(); tracer.sweeps.Load() == 0; time.Sleep(50 * time.Millisecond) { // 10 seconds at most
		require.Less(t, time.Since(began), time.Minute)
		take()
	}
	take()
	require.NoError(t, store.Close())
	require.Zero(t, pool.Stat().AcquiredConns())
	require.Contains(t, logged.String(), "panic: a bug")
}
