package table

import (
	"sync"
	"sync/atomic"
)

// This file frees expired counters even if no new key arrives, and releases their
// memory. There is no goroutine for it. Instead, from time to time a call checks some
// groups before it does its own work. A table that is not called keeps its memory.

// sweep says which groups are checked next, and when.
type sweep struct {
	due   atomic.Int64 // read by every call
	every int64        // between two steps
	mu    sync.Mutex   // guards shard and group: one caller at a time sweeps
	shard int
	group int
}

const (
	// sweepRound is the time in nanoseconds in which every group of a table in
	// constant use is checked once.
	sweepRound = 240 * 1_000_000_000
	// sweepGroups is how many groups one step checks. A step takes about 3 µs.
	sweepGroups = 64
	// sweepSteps is the largest number of steps that the first call after a
	// pause makes up for.
	sweepSteps = 16
)

// sweepSome checks the groups that are due. It does nothing if another caller is
// sweeping. It locks one shard at a time, so the caller must hold no lock of a shard.
func (t *Table) sweepSome(now int64) {
	w := &t.sweep
	if !w.mu.TryLock() {
		return
	}
	defer w.mu.Unlock()
	due := w.due.Load()
	if now < due {
		return // another call has just done it
	}
	w.due.Store(now + w.every)
	for range min((now-due)/w.every+1, sweepSteps) {
		if s := t.shards.made(uint64(w.shard)); s != nil && s.expire(w.group, &t.shapes, now) {
			w.group += sweepGroups
		} else {
			w.group = 0
			w.shard = (w.shard + 1) % t.Shards()
		}
	}
}

// expire frees the expired counters in up to sweepGroups groups, starting at from. It
// reports whether there are more groups after these. After the last group, the shard
// shrinks if few counters are left. It locks the shard.
func (s *shard) expire(from int, shapes *shapes, now int64) (more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = max(now, s.now)
	used := s.used
	to := min(from+sweepGroups, len(s.groups))
	for at := from; at < to; at++ {
		s.freeExpired(at, shapes, now)
	}
	more = to < len(s.groups)
	if !more {
		s.shrink()
	}
	if s.used != used {
		s.now = now // so that a Mirror notices the change
	}
	return more
}
