package postgres

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/guard"
)

// This file deletes rows that have ended. PostgreSQL has no time to live, so each store that
// is in use looks at a part of the table from time to time. No cron job is needed. Rows that
// are locked are left for the next time.

const (
	sweepEvery = 10 * time.Second // looks at 2 MB
	sweepSoon  = time.Second      // if there was much to delete
	sweepMuch  = 200              // rows
	sweepPages = 256              // that one call of the function sweep looks at
)

// A sweeper is where a store's cleanup is.
type sweeper struct {
	next atomic.Int64 // when to sweep again, by clock.Now
	page atomic.Int64 // from where
	runs atomic.Int64 // how many there were
}

// sweepSometimes starts a sweep if it is time for one. It does not wait.
func (s *Store) sweepSometimes() {
	now := clock.Now()
	next := s.sweeps.next.Load()
	if now < next || !s.sweeps.next.CompareAndSwap(next, now+int64(sweepEvery)) {
		return
	}
	if next == 0 { // not all processes at once after a start
		s.sweeps.next.Store(now + rand.Int64N(int64(sweepEvery)))
		return
	}
	s.aside(func(ctx context.Context, conn *pgxpool.Conn) {
		if deleted, err := s.sweep(ctx, conn); err == nil && deleted >= sweepMuch {
			s.sweeps.next.Store(clock.Now() + int64(sweepSoon))
		}
	})
}

// aside runs f on a goroutine, with a connection, unless the store is closed. Close waits for its
// end. ctx ends after callTimeout. f does not run if there is no connection in time. If a hook of
// the pool panics, the connection goes back, and the first such panic is logged.
func (s *Store) aside(f func(ctx context.Context, conn *pgxpool.Conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return
	}
	s.running.Go(func() {
		guard.Run(func() {
			ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
			defer cancel()
			conn, err := s.pool.Acquire(ctx)
			if err != nil {
				return
			}
			defer conn.Release() // QueryRow of the pool does not release it if a hook panics
			f(ctx, conn)
		}, s.logPanic)
	})
}

func (s *Store) logPanic(p guard.Panic) {
	s.panicLogged.Do(func() {
		slog.Error("ratelimit: postgres.Store: a hook of the pool has panicked outside of the calls: old rows may not be deleted", "prefix", s.prefix, "error", p)
	})
}

// sweep looks at one part of the table and returns how many rows it has deleted. After the
// first part it goes on at a random one, so that processes do not do the same work.
func (s *Store) sweep(ctx context.Context, conn *pgxpool.Conn) (deleted int64, err error) {
	page := s.sweeps.page.Load()
	var pages int64
	if err := conn.QueryRow(ctx, "SELECT r_deleted, r_pages FROM ratelimit.sweep($1)", page).Scan(&deleted, &pages); err != nil {
		return 0, err
	}
	if s.sweeps.runs.Add(1) == 1 {
		page = rand.Int64N(pages/sweepPages+1) * sweepPages
	} else if page += sweepPages; page >= pages {
		page = 0
	}
	s.sweeps.page.Store(page)
	return deleted, nil
}
