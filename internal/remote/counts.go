package remote

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Counts are what the generations of a limiter count together of their calls to the
// store. The zero value has counted nothing. It may be used from any number of
// goroutines.
type Counts struct {
	failures, spared atomic.Uint64 // calls that failed, and calls that were not made because of the breaker or MaxWaiting
	callTime         atomic.Int64
	callTimes        atomic.Pointer[[TimeBuckets]atomic.Uint64] // nil before the first call: many limiters never make one
}

// Counted are the values of [Counts] at some instant.
type Counted struct {
	Calls, Failures, Spared uint64
	CallTime                time.Duration
	CallTimes               [TimeBuckets]uint64 // element i: up to 2^(i+FirstBound) seconds; the last one has no bound
}

const (
	TimeBuckets = 18
	FirstBound  = -14 // 2^-14 seconds, 61 microseconds, is less than a round trip in one data center
)

// called counts a call that took some nanoseconds.
func (c *Counts) called(took int64) {
	took = max(0, took)
	c.callTime.Add(took)
	if c.callTimes.Load() == nil {
		c.callTimes.CompareAndSwap(nil, new([TimeBuckets]atomic.Uint64)) // another caller may have been first
	}
	c.callTimes.Load()[bucket(took)].Add(1)
}

// bucket returns the first element of CallTimes whose bound is at least a time in
// nanoseconds.
func bucket(took int64) int {
	// The least e such that took <= 2^e seconds is the least e such that
	// took * 2^-FirstBound <= 1e9 * 2^(e-FirstBound).
	const most = 4_000_000_000 // the bound of the element before the last
	if took > most {
		return TimeBuckets - 1
	}
	if took == 0 {
		return 0
	}
	// Rounding up keeps a time that is exactly a bound in the element of the bound.
	scaled := (uint64(took)<<-FirstBound + 999_999_999) / 1_000_000_000
	return bits.Len64(scaled - 1)
}

// Load returns the present counts.
func (c *Counts) Load() Counted {
	all := Counted{Failures: c.failures.Load(), Spared: c.spared.Load(), CallTime: time.Duration(c.callTime.Load())}
	if times := c.callTimes.Load(); times != nil {
		for i := range times {
			all.CallTimes[i] = times[i].Load()
			all.Calls += all.CallTimes[i]
		}
	}
	return all
}
