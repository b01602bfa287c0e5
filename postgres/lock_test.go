package postgres_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
)

// TestLockedRow holds a lock on the row of one key in another session, while callers use this
// key and others. Soon no call for another key fails any more. Calls for the locked key fail
// until the lock is gone, with an error about this key.
func TestLockedRow(t *testing.T) {
	server := migrated(t)
	pool := newPool(t, server.URL(pgtest.Superuser))
	for name, limits := range map[string][]ratelimit.Limit{
		"one statement": hourly, "look and write": {hourly[0], ratelimit.Rolling(50, time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			store := newStore(t, pool, name)
			limiter := newLimiter(t, store, limits, func(o *ratelimit.Options) {
				o.OnFailure, o.Timeout = ratelimit.FailClosed, 300*time.Millisecond
			})
			const keys = 20
			for i := range keys {
				_, err := takeOne(store, fmt.Sprint("key", i), limits, 5*time.Second)
				require.NoError(t, err)
			}
			tx, err := connect(t, server.URL(pgtest.Superuser)).Begin(ctx)
			require.NoError(t, err)
			// As somebody does in psql to forget a key.
			tag, err := tx.Exec(ctx, `DELETE FROM ratelimit.counter c USING ratelimit.prefix p WHERE p.prefix = $1 AND c.key = p.id || ':key0'`, name)
			require.NoError(t, err)
			require.EqualValues(t, 1, tag.RowsAffected())

			var inARow, locked atomic.Int64 // calls that the store has decided: for other keys since one of them has failed, and for the locked one
			var stop atomic.Bool
			var callers sync.WaitGroup
			defer callers.Wait()
			defer stop.Store(true)
			for c := range 32 {
				callers.Go(func() {
					for i := c; !stop.Load(); i++ {
						switch _, err := limiter.Take(ctx, fmt.Sprint("key", i%keys)); {
						case i%keys == 0 && err == nil:
							locked.Add(1)
						case err == nil:
							inARow.Add(1)
						case i%keys != 0:
							inARow.Store(0)
						}
						time.Sleep(time.Millisecond) // not to keep the processors busy
					}
				})
			}
			require.Eventually(t, func() bool { return inARow.Load() > 1000 }, time.Minute, time.Millisecond)
			_, err = takeOne(store, "key0", limits, 5*time.Second)
			assert.ErrorContains(t, err, `locked the row of the key "key0"`)
			assert.Equal(t, ratelimit.FaultKey, store.Fault(err))
			assert.Zero(t, locked.Load())
			require.NoError(t, tx.Rollback(ctx))
			require.Eventually(t, func() bool { return locked.Load() > 0 }, 20*time.Second, time.Millisecond)
		})
	}
}

// lockRow locks the row of a key in a session of its own, until the transaction ends.
func lockRow(t *testing.T, server *pgtest.Server, key string) pgx.Tx {
	t.Helper()
	tx, err := connect(t, server.URL(pgtest.Superuser)).Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `SELECT FROM ratelimit.counter WHERE key LIKE '%:' || $1 FOR UPDATE`, key)
	require.NoError(t, err)
	return tx
}

// findAllLocked makes a look find every row locked, as it may find a busy one.
func findAllLocked(t *testing.T, server *pgtest.Server) {
	t.Helper()
	_, err := connect(t, server.URL(pgtest.Superuser)).Exec(ctx, `CREATE OR REPLACE FUNCTION ratelimit.locked(p_keys text[], OUT r_o int[]) LANGUAGE sql AS
		'SELECT array_agg(o) FROM generate_series(1, cardinality(p_keys)) o'`)
	require.NoError(t, err)
}

// TestBusyRowIsNotLocked has a row that is locked most of the time, but never for long, while
// somebody else keeps another row of the same batches locked. No call for the busy one fails
// because of its lock.
func TestBusyRowIsNotLocked(t *testing.T) {
	server := migrated(t)
	pool := newPool(t, server.URL(pgtest.Superuser))
	store := newStore(t, pool, "busy")
	for _, key := range []string{"busy", "locked"} {
		_, err := takeOne(store, key, hourly, 5*time.Second)
		require.NoError(t, err)
	}
	defer lockRow(t, server, "locked").Rollback(ctx)
	findAllLocked(t, server)

	var stop atomic.Bool
	var others sync.WaitGroup
	defer others.Wait()
	defer stop.Store(true)
	for range 2 { // one waits for the lock while the other one has it
		conn := connect(t, server.URL(pgtest.Superuser))
		others.Go(func() {
			for !stop.Load() { // in one statement: a client that stalls does not keep the lock
				_, err := conn.Exec(ctx, `DO $$ BEGIN PERFORM FROM ratelimit.counter WHERE key LIKE '%:busy' FOR UPDATE; PERFORM pg_sleep(0.01); END $$`)
				assert.NoError(t, err)
			}
		})
	}
	err := errors.New("no call for the busy row has shared a batch with the locked one")
	// A backend that stalls may keep the busy row locked for long, too. So there are three tries.
	for shared, round := 0, 0; shared < 3 && round < 20; round++ {
		store := newStore(t, pool, "busy")
		// The first calls share a batch with the locked row, and time out with it.
		var timedOut atomic.Bool
		var first sync.WaitGroup
		for range 8 {
			for _, key := range []string{"busy", "locked"} {
				first.Go(func() {
					if _, err := takeOne(store, key, hourly, 5*time.Second); err != nil && key == "busy" {
						timedOut.Store(true)
					}
				})
			}
		}
		first.Wait()
		if !timedOut.Load() {
			continue
		}
		shared++
		_, err = takeOne(store, "locked", hourly, 5*time.Second)
		require.ErrorContains(t, err, `locked the row of the key "locked"`)
		err = nil
		for i := 0; i < 20 && err == nil; i++ {
			_, err = takeOne(store, "busy", hourly, 5*time.Second)
		}
		if err == nil {
			return
		}
	}
	require.NoError(t, err)
}

// TestBusyRowIsUsedAgain has a row that somebody else locks for long, and that others then
// keep so busy that it is locked at every look. The next calls for its key fail, but not for
// as long as it stays busy.
func TestBusyRowIsUsedAgain(t *testing.T) {
	server := migrated(t)
	store := newStore(t, newPool(t, server.URL(pgtest.Superuser)), "busy")
	_, err := takeOne(store, "key", hourly, 5*time.Second)
	require.NoError(t, err)
	tx := lockRow(t, server, "key")
	require.Eventually(t, func() bool {
		_, err := takeOne(store, "key", hourly, 5*time.Second)
		return store.Fault(err) == ratelimit.FaultKey
	}, 20*time.Second, time.Millisecond)
	findAllLocked(t, server)
	require.NoError(t, tx.Rollback(ctx))
	require.Eventually(t, func() bool {
		_, err := takeOne(store, "key", hourly, 5*time.Second)
		return err == nil
	}, 20*time.Second, time.Millisecond)
}
