package nearcache

import (
	"math"
	"sync"
	"sync/atomic"
)

// Instant is the time at which units were taken, on both clocks, in
// nanoseconds. This file has the conversion between the two clocks.
type Instant struct {
	Here  int64 // on this process's monotonic clock
	Store int64 // on the store's clock; or unknown, if the store has not counted the units
}

// unknown is Instant.Store for units that were decided here.
const unknown = math.MinInt64

// AnyTime is the Instant of units if it is not known when they were taken.
var AnyTime = Instant{math.MaxInt64, math.MaxInt64}

// Here returns the Instant of units that [Cache.Take] has taken, given the instant on our
// clock.
func Here(at int64) Instant { return Instant{at, unknown} }

// InstantOf returns the Instant of units that the store has taken, given the store's
// instant.
func (c *Cache) InstantOf(at int64) Instant { return Instant{c.clock.here(at), at} }

// Observe notes that the store's clock showed at when ours showed now or slightly
// earlier. Learn does that, too. Observe is for answers that are not learnt. It may take
// the clock's lock.
func (c *Cache) Observe(at, now int64) { c.clock.observe(at, now) }

// StoreTime returns what the store's clock shows when ours shows now. known is false as
// long as the store has never answered.
func (c *Cache) StoreTime(now int64) (at int64, known bool) { return c.clock.store(now) }

// clock converts between the two clocks by an offset: the store's clock minus ours. An
// answer shows the offset minus the time that the answer has travelled. So the greatest
// offset seen is the most accurate one. It also does not change with each answer, so
// units that are in one window at the store are in one window here, too.
//
// Clocks drift and are set. Therefore the offset in use is the greatest one of the
// present period and the period before. An offset that is wrong by more than any answer
// takes is replaced at once.
type clock struct {
	offset atomic.Int64 // in use
	best   atomic.Int64 // the greatest of this period
	until  atomic.Int64 // the end of this period; 0 before the first answer

	// When the store's clock was last seen to have jumped ahead, 0 for never, and how
	// far it has jumped in all.
	jumped, jumpedBy atomic.Int64
	odd              atomic.Bool // whether it has jumped ahead an odd number of times
	mu               sync.Mutex  // held while these fields are changed; reads take no lock
}

const (
	clockPeriod = 60 * 1_000_000_000
	maxLatency  = 5 * 1_000_000_000
)

// observe updates the offset from an answer that the store has given at its
// instant at and that arrived here at now. It takes the lock only if something
// changes.
func (k *clock) observe(at, now int64) {
	measured, best := at-now, k.best.Load()
	if until := k.until.Load(); until != 0 && now < until && measured <= best && measured > best-maxLatency {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	until, best := k.until.Load(), k.best.Load()
	if until != 0 && measured > k.offset.Load()+maxLatency {
		k.jumpedBy.Add(measured - k.offset.Load())
		k.jumped.Store(now)
		k.odd.Store(!k.odd.Load())
	}
	switch {
	case until == 0 || measured <= k.offset.Load()-maxLatency: // the first, or another clock
		k.offset.Store(measured)
		k.best.Store(measured)
	case now >= until:
		k.offset.Store(max(best, measured))
		k.best.Store(measured)
	case measured > best:
		k.offset.Store(max(k.offset.Load(), measured))
		k.best.Store(measured)
		return
	default:
		return
	}
	k.until.Store(max(1, now+clockPeriod))
}

// here returns what our clock showed when the store's clock showed at.
func (k *clock) here(at int64) int64 {
	return before(at, k.offset.Load())
}

// before returns at - offset for at >= 0, or the last instant if that is too large.
func before(at, offset int64) int64 {
	if offset < 0 && at > math.MaxInt64+offset {
		return math.MaxInt64
	}
	return at - offset
}

// store returns what the store's clock shows when ours shows now. known is false
// if the store has never answered.
func (k *clock) store(now int64) (at int64, known bool) {
	if k.until.Load() == 0 {
		return 0, false
	}
	return now + k.offset.Load(), true
}
