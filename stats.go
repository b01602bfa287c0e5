package ratelimit

// LimiterStats are counts over a limiter's life.
type LimiterStats struct {
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
