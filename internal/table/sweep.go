package table

import (
	"sync"
	"sync/atomic"
)

// A table that is in use forgets expired counters also if no new key comes, and gives
// their memory back. There is no goroutine for that: every now and then a call looks
// over a few groups before it does what it was made for. A table that nobody calls
// keeps its memory.

// sweep is where in the table, and when, the next groups are looked over.
type sweep struct {
	due   atomic.Int64 // read by every call
	every int64        // between two steps
	mu    sync.Mutex   // of what is below: one caller at a time sweeps
	shard int
	group int
}

const (
	// sweepRound is how long it takes until every group of a table in constant use has
	// been looked over.
	sweepRound = 240 * 1_000_000_000
	// sweepGroups are looked over in one step, which takes some 3 µs.
	sweepGroups = 64
	// sweepSteps are made up for at most by the first call after a pause.
	sweepSteps = 16
)

// sweepSome looks over the groups that are due. The caller must hold no lock of a shard.
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
		if t.shards[w.shard].expire(w.group, &t.shapes, now) {
			w.group += sweepGroups
		} else {
			w.group = 0
			w.shard = (w.shard + 1) % len(t.shards)
		}
	}
}

// expire frees the expired counters in some groups from one on. It reports whether
// there are more groups after those. After the last ones, the shard shrinks if little
// is left in it.
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
		s.now = now // by which a Mirror knows that something has changed
	}
	return more
}
