package ratelimit

import "sync/atomic"

// LimiterStats are counts over a limiter's life. A limiter that a [Reload] puts in the
// place of another one of the same name and store goes on with its counts.
type LimiterStats struct {
	// Allowed and Denied count decisions, of requests and of calls that asked for
	// units, also under [Unlimited] and [Deny]. Looks, and calls that ended with an
	// error, are not counted. A denial that Shadow has let through is in Denied.
	Allowed, Denied uint64

	ShadowDenied uint64      // requests let through by Shadow that would have been denied
	Remote       RemoteStats // zero for a store in this process
}

// RemoteStats are what a limiter has counted of its [RemoteStore].
type RemoteStats struct {
	// Failures counts the calls that failed. Spared counts calls that were not made,
	// because the breaker was open or too many callers were waiting.
	Failures, Spared uint64
	// BreakerOpen means that the store has failed so often that only one call at a
	// time goes there, to see whether it is back. BreakerOpened counts how often
	// that has begun.
	BreakerOpen   bool
	BreakerOpened uint64
	// Cached counts the requests denied from what was known, Leased those admitted
	// from a lease, Fallback those decided in this process because the store failed,
	// and FailedOpen those let through.
	Cached, Leased, Fallback, FailedOpen uint64
	// Owed is the number of keys with units that the store does not know of yet.
	// Forgotten counts keys for which that could not be kept.
	Owed      int
	Forgotten uint64
	// Evicted counts the counters that this process had to forget before they were
	// whole again, over all limiters that share Options.NearKeys.
	Evicted uint64
}

// decisions counts decisions that were not made in the limiter's own table, which
// counts the others.
type decisions struct{ allowed, denied atomic.Uint64 }

func (d *decisions) count(n int64, allowed bool) {
	switch {
	case n == 0:
	case allowed:
		d.allowed.Add(1)
	default:
		d.denied.Add(1)
	}
}
