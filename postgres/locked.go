package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/clock"
)

// This file keeps a row that somebody else has locked from holding up the calls for other
// keys. That happens if a person changes a row in psql and does not end the transaction. The
// first batch with the row waits for a second and fails. Then its row is left out of batches
// until it is free: calls for its key fail at once, with an error about this key alone.

// lookEvery is how often a batch looks at a locked row, if it has calls for its key. It is
// short, because a row that a batch of another process has locked by then counts as locked.
const lookEvery = 100 * time.Millisecond

// waitEvery is how often a goroutine waits for a row that a look has found locked, for 100 ms at
// most. A row that several processes keep busy may be locked at every look, but not for that
// long. Without the wait, its key could be refused for as long as the others are busy.
const waitEvery = time.Second

// lockedKeys are the keys of rows that are locked. The zero value has none.
type lockedKeys struct {
	any  atomic.Bool      // so that the usual case takes no lock
	mu   sync.Mutex       // not held while a statement runs
	next map[string]int64 // when to look at the row again, by clock.Now

	wait atomic.Int64 // when to wait for a row again, by clock.Now
}

// isLockTimeout reports whether a statement has waited too long for a lock.
func isLockTimeout(err error) bool {
	var reply *pgconn.PgError
	return errors.As(err, &reply) && reply.Code == "55P03"
}

// leaveOut fails the calls of groups whose rows are locked, and returns the other groups. It
// may ask the server.
func (t *trip) leaveOut(groups []*group) (free []*group) {
	l := &t.locked
	if !l.any.Load() {
		return groups
	}
	var locked, due []*group
	now := clock.Now()
	l.mu.Lock()
	for _, g := range groups {
		switch next, ok := l.next[g.key]; {
		case !ok:
			free = append(free, g)
		case now < next:
			locked = append(locked, g)
		default:
			l.next[g.key] = now + int64(lookEvery) // other batches do not look
			due = append(due, g)
		}
	}
	l.mu.Unlock()
	if len(due) > 0 {
		still, others := t.findLocked(due, false)
		t.waitSometimes(still)
		locked, free = append(locked, still...), append(free, others...)
	}
	for _, g := range locked {
		t.failAll(g.jobs, t.fail(ratelimit.FaultKey, fmt.Errorf("another transaction has locked the row of the key %q", g.jobs[0].Value.key), lockHint))
	}
	return free
}

// waitSometimes starts a goroutine that waits for one of some rows that are locked, if it is
// time for that. It does not wait itself, because the batch has calls for other keys.
func (s *Store) waitSometimes(locked []*group) {
	l := &s.locked
	now, wait := clock.Now(), l.wait.Load()
	if len(locked) == 0 || now < wait || !l.wait.CompareAndSwap(wait, now+int64(waitEvery)) {
		return
	}
	key := locked[rand.IntN(len(locked))].key // any of them, so that each has its turn
	s.aside(func(ctx context.Context, conn *pgxpool.Conn) {
		if conn.QueryRow(ctx, "SELECT ratelimit.held($1)", key).Scan(new(bool)) == nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.next, key)
			l.any.Store(len(l.next) > 0)
		}
	})
}

// maxHeld is how many rows a batch waits for to see whether they stay locked.
const maxHeld = 5

// findLocked asks the server which rows of groups are locked, and notes it. If that fails,
// they count as free.
//
// A row may be locked by another batch, for a moment. So confirm waits for each of the first
// ones, to see whether it stays locked. It does that row by row: a statement that waited for
// a row with the lock of another one would hold up batches. Without confirm, which is for
// rows that were locked before, findLocked waits for no row.
func (t *trip) findLocked(groups []*group, confirm bool) (locked, free []*group) {
	keys := make([]string, len(groups))
	for i, g := range groups {
		keys[i] = g.key
	}
	var numbers []int32
	if err := t.conn.QueryRow(t.ctx, "SELECT r_o FROM ratelimit.locked($1)", keys).Scan(&numbers); err != nil {
		numbers = nil
	}
	l := &t.locked
	if confirm {
		l.wait.Store(clock.Now() + int64(waitEvery))
		numbers = slices.DeleteFunc(numbers[:min(len(numbers), maxHeld)], func(o int32) bool {
			return !isLockTimeout(t.conn.QueryRow(t.ctx, "SELECT ratelimit.held($1)", keys[o-1]).Scan(new(bool)))
		})
	}
	now := clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == nil {
		l.next = make(map[string]int64)
	}
	for i, g := range groups {
		if slices.Contains(numbers, int32(i+1)) {
			l.next[g.key] = now + int64(lookEvery)
			locked = append(locked, g)
		} else {
			delete(l.next, g.key)
			free = append(free, g)
		}
	}
	// Keys that are not called any more.
	maps.DeleteFunc(l.next, func(_ string, next int64) bool { return next < now-int64(time.Minute) })
	l.any.Store(len(l.next) > 0)
	return locked, free
}
