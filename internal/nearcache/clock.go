package nearcache

import (
	"math"
	"sync"
	"sync/atomic"
)

// Instant is when units were taken, on both clocks, in nanoseconds.
type Instant struct {
	Here  int64 // on this process's monotonic clock
	Store int64 // on the store's; or unknown if the store has not counted the units
}

// unknown is the store's instant of units that were decided here.
const unknown = math.MinInt64

// AnyTime is the instant of units of which it is not known when they were taken.
var AnyTime = Instant{math.MaxInt64, math.MaxInt64}

// Here is the Instant of units that [Cache.Take] has taken at an instant of this process.
func Here(at int64) Instant { return Instant{at, unknown} }

// InstantOf is the Instant of units that the store has taken at an instant of its own.
func (c *Cache) InstantOf(at int64) Instant { return Instant{c.clock.here(at), at} }

// Observe takes note of the store's clock: it showed at when ours showed now, or a little
// earlier. Learn does that as well. For calls that are not learnt from.
func (c *Cache) Observe(at, now int64) { c.clock.observe(at, now) }

// StoreTime is what the store's clock shows when ours shows now. It is not known as long
// as the store has never answered.
func (c *Cache) StoreTime(now int64) (at int64, known bool) { return c.clock.store(now) }

// clock converts between the two clocks by an offset: the store's less ours. An answer
// shows the offset less the time that it took to come. So the greatest offset seen is the
// nearest to the truth, and one that does not move with each answer: what belongs into
// one window at the store, belongs into one window here.
//
// Clocks drift and are set. Therefore the offset is the greatest seen in this period and
// the one before, and one that is off by more than any answer takes is replaced at once.
type clock struct {
	offset atomic.Int64 // in use
	best   atomic.Int64 // the greatest of this period
	until  atomic.Int64 // the end of this period; 0 before the first answer

	// When the store's clock was last seen to have jumped ahead, 0 for never, and how
	// far it has jumped in all.
	jumped, jumpedBy atomic.Int64
	mu               sync.Mutex // of changing more than one of these
}

const (
	clockPeriod = 60 * 1_000_000_000
	maxLatency  = 5 * 1_000_000_000
)

// observe learns from an answer of the store's instant at that came at now.
func (k *clock) observe(at, now int64) {
	seen, best := at-now, k.best.Load()
	if until := k.until.Load(); until != 0 && now < until && seen <= best && seen > best-maxLatency {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	until, best := k.until.Load(), k.best.Load()
	if until != 0 && seen > k.offset.Load()+maxLatency {
		k.jumpedBy.Add(seen - k.offset.Load())
		k.jumped.Store(now)
	}
	switch {
	case until == 0 || seen <= k.offset.Load()-maxLatency: // the first, or another clock
		k.offset.Store(seen)
		k.best.Store(seen)
	case now >= until:
		k.offset.Store(max(best, seen))
		k.best.Store(seen)
	case seen > best:
		k.offset.Store(max(k.offset.Load(), seen))
		k.best.Store(seen)
		return
	default:
		return
	}
	k.until.Store(max(1, now+clockPeriod))
}

// here is what our clock showed when the store's showed at.
func (k *clock) here(at int64) int64 {
	return at - k.offset.Load()
}

// store is what the store's clock shows when ours shows now, if it was ever seen.
func (k *clock) store(now int64) (at int64, known bool) {
	if k.until.Load() == 0 {
		return 0, false
	}
	return now + k.offset.Load(), true
}
