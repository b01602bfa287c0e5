package ratelimit

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/remote"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// This file has the counts that a limiter keeps of itself. Decisions in a limiter's own memory
// store are counted by the store's table, whose locks are held anyway, and all others
// by counts. Nothing is added up before somebody asks.

// LimiterStats are counts over a limiter's life. A limiter that a [Reload] puts in the
// place of another one of the same name goes on with its counts, so they never fall. Only
// Memory is about the store that the limiter has now.
// Each request is counted as exactly one of Allowed, Denied, ShadowDenied, Exempt, NoKey
// and Failed, and each call that asked for units as Allowed or Denied. A request that was
// decided and passes the limiter again is not counted again. A request in which one of
// the options' functions panics is not counted.
type LimiterStats struct {
	// Allowed and Denied count decisions, also under [Unlimited] and [Deny]. Looks, and
	// calls that ended with an error, are not counted.
	Allowed, Denied uint64

	// AllowedUnits and DeniedUnits are what these decisions were about, at most the
	// largest int64. An allowed TakeUpTo counts with the units that it has granted. Units
	// that are given back or charged later change nothing here.
	AllowedUnits, DeniedUnits uint64

	// ShadowDenied counts the requests that would have been denied, and were let through
	// by Shadow.
	ShadowDenied uint64

	// BlocksBegun counts the denials that have started a block, also in Shadow, as
	// [EventBlocked] reports them. Blocks by hand are not counted.
	BlocksBegun uint64

	// NearLimit counts the decisions in Allowed that left at most a fifth of any of
	// their limits.
	NearLimit uint64

	// Waiting is how many callers wait now, because of Options.MaxWait or in [Limiter.Wait].
	// Waited counts the decisions in Allowed and Denied whose callers have waited, and
	// WaitTime is for how long together.
	Waiting  int
	Waited   uint64
	WaitTime time.Duration

	// InFlight is how many holds of an [InFlight] limit this process has now.
	InFlight int

	// Exempt counts requests that were exempted by Skip, SkipPreflight or [ErrExempt].
	// NoKey counts requests without a key, which are answered with 400, and Failed those
	// answered with 500 or 503; in Shadow, they go on to their handlers.
	Exempt, NoKey, Failed uint64

	// Policies has the denials of each limit that the limiter has been used under, by
	// its name and in the order of their first use; their sum is Denied. 64 names of
	// plans have entries of their own, and 62 names that Options.Limits and SetLimits
	// have used. All further names share an entry with the name "other".
	Policies []PolicyStats

	// Warnings has how often each warning had a cause, logged or not. Codes that had
	// none are missing.
	Warnings map[Code]uint64

	Memory MemoryStats // zero if the store is no MemoryStore
	Remote RemoteStats // zero for a store in this process
}

// RemoteStats are what a limiter has counted of its [RemoteStore].
type RemoteStats struct {
	// Calls counts the calls that were made to the store, failed ones included.
	// CallTime is how long they took together, as their callers saw it, and CallTimes
	// how they are distributed. Callers that shared a round trip are counted one by
	// one.
	Calls     uint64
	CallTime  time.Duration
	CallTimes CallTimes
	// Failures counts the calls that failed. Spared counts calls that were not made,
	// because the breaker was open or too many callers were waiting.
	Failures, Spared uint64
	// BreakerOpen means that the store has failed so often that only one call at a
	// time goes there, to see whether it is back. BreakerOpened counts how often
	// that has begun.
	BreakerOpen   bool
	BreakerOpened uint64
	// Cached counts the decisions made from what was known, Leased those made from a
	// lease, Fallback those made in this process because the store failed, and
	// FailedOpen those let through.
	Cached, Leased, Fallback, FailedOpen uint64
	// Owed is the number of keys with units or blocks that the store does not know of yet.
	// Forgotten counts keys for which that could not be kept.
	Owed      int
	Forgotten uint64
	// Evicted counts the counters that this process had to forget before they were
	// whole again, over all limiters that share Options.NearKeys.
	Evicted uint64
}

// CallTimes is a histogram: element i counts the calls that took longer than
// Bound(i-1) and at most Bound(i).
type CallTimes [remote.TimeBuckets]uint64

// Bound returns the upper bound of element i in seconds: 2 to the power of i-14, which
// is 61 microseconds for the first element and 4 seconds for the one before the last.
// The last element has no bound, which is infinity. These are also the bounds of
// Prometheus's native histograms of schema 0.
func (CallTimes) Bound(i int) float64 {
	if i >= remote.TimeBuckets-1 {
		return math.Inf(1)
	}
	return math.Ldexp(1, i+remote.FirstBound)
}

// counts are what all generations of a limiter count together. Its methods may be
// called from any number of goroutines.
type counts struct {
	// Decisions about at least one unit that were not made in a table of tables. Most
	// are about one unit: moreAllowed and moreDenied are the units beyond that.
	sources                 [len(sources)]struct{ allowed, denied, shadow atomic.Uint64 }
	moreAllowed, moreDenied atomic.Uint64
	nearLimit, blocksBegun  atomic.Uint64

	freeAllowed, freeDenied atomic.Uint64 // requests that cost 0

	inFlight atomic.Int64  // holds
	waiting  atomic.Int64  // callers that wait
	waited   atomic.Uint64 // decisions whose callers have waited
	waitTime atomic.Int64  // for how long together

	letThrough            atomic.Uint64 // requests that Shadow has let through, for the log
	exempt, noKey, failed atomic.Uint64
	policies              policyCounts
	warnings              warningCounts
	remote                remote.Counts

	mu     sync.Mutex // guards the fields below
	tables []*countedTable
	over   table.Decisions // of tables that are not in tables any more
	memory *MemoryStore    // of the present generation, or nil
	store  *remote.Remote  // of the present generation, or nil

	// What the remote stores that a Reload has replaced had counted, modulo 2^64: what
	// other limiters have evicted may be part of both stores' counts.
	carried remote.Stats
}

// use makes a generation's stores the present ones; either may be nil. From now on the
// memory store's decisions are counted here. Counts of a remote store go on where they
// are.
func (c *counts) use(memory *MemoryStore, store *remote.Remote) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if memory != nil {
		if t := memory.countFor(c.tables); t != nil {
			c.tables = append(c.tables, t)
		}
	}
	c.tables = slices.DeleteFunc(c.tables, func(t *countedTable) bool { // so that closed stores can be freed
		over := t.store != memory && t.isOver()
		if over {
			t.addTo(&c.over)
		}
		return over
	})
	was := c.remoteStats()
	c.carried, c.memory, c.store = remote.Stats{}, memory, store
	is := c.remoteStats()
	c.carried = remote.Stats{
		BreakerOpened: was.BreakerOpened - is.BreakerOpened, Forgotten: was.Forgotten - is.Forgotten, Evicted: was.Evicted - is.Evicted,
	}
}

// decided counts a decision about n > 0 units that was not made in the limiter's own
// table. Each counter only grows, at every instant at which it can be read.
func (c *counts) decided(n int64, p *policy, t *taken, results []Result) {
	source := &c.sources[t.source]
	switch denied := results[t.bound].RetryAfter != 0; {
	case denied && t.shadow:
		source.shadow.Add(1)
	case denied:
		source.denied.Add(1)
		p.entries[t.bound].denied.Add(1)
		if n > 1 {
			addUnits(&c.moreDenied, n-1)
		}
	default:
		source.allowed.Add(1)
		if n > 1 {
			addUnits(&c.moreAllowed, n-1)
		}
		c.countNear(p, results)
	}
}

func addUnits(sum *atomic.Uint64, n int64) {
	for {
		before := sum.Load()
		if sum.CompareAndSwap(before, table.AddUnits(before, uint64(n))) {
			return
		}
	}
}

// decidedFree counts a request that costs 0. To the store it is a look.
func (c *counts) decidedFree(p *policy, t *taken, results []Result) {
	switch denied := results[t.bound].RetryAfter != 0; {
	case denied && t.shadow:
		c.sources[t.source].shadow.Add(1)
	case denied:
		c.freeDenied.Add(1)
		p.entries[t.bound].denied.Add(1)
	default:
		c.freeAllowed.Add(1)
		c.countNear(p, results)
	}
}

// countNear counts an admission that has left at most a fifth of any limit.
func (c *counts) countNear(p *policy, results []Result) {
	for i := range p.width() {
		if p.always == nil && p.limit(i).rule.IsNear(results[i].Remaining) {
			c.nearLimit.Add(1)
			return
		}
	}
}

// stats adds up what is counted. The numbers are of slightly different instants. Each
// count is read once, so what is a sum or a difference of them does not fall either.
func (c *counts) stats() LimiterStats {
	stats := LimiterStats{
		NearLimit: c.nearLimit.Load(), BlocksBegun: c.blocksBegun.Load(), Exempt: c.exempt.Load(), NoKey: c.noKey.Load(), Failed: c.failed.Load(),
		InFlight: int(c.inFlight.Load()), Waiting: int(c.waiting.Load()), Waited: c.waited.Load(), WaitTime: time.Duration(c.waitTime.Load()),
		Warnings: make(map[Code]uint64),
	}
	for w := range warningCount {
		if n := c.warnings.load(w); n > 0 {
			stats.Warnings[warnings[w].code] = n
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := c.over
	sum.DeniedBy = slices.Clone(sum.DeniedBy)
	for _, t := range c.tables {
		if held := t.addTo(&sum); t.store == c.memory {
			stats.Memory = c.memory.statsOf(held)
		}
	}
	var bySource [len(sources)]uint64
	for i := range c.sources {
		allowed, denied, shadow := c.sources[i].allowed.Load(), c.sources[i].denied.Load(), c.sources[i].shadow.Load()
		stats.Allowed += allowed
		stats.Denied += denied
		stats.ShadowDenied += shadow
		bySource[i] = allowed + denied + shadow
	}
	stats.AllowedUnits = table.AddUnits(stats.Allowed+c.moreAllowed.Load(), sum.AllowedUnits)
	stats.DeniedUnits = table.AddUnits(stats.Denied+c.moreDenied.Load(), sum.DeniedUnits)
	stats.Allowed += sum.Allowed + c.freeAllowed.Load()
	stats.Denied += sum.Denied + c.freeDenied.Load()
	stats.ShadowDenied += sum.ShadowDenied
	stats.NearLimit += sum.NearLimit
	stats.Policies = c.policies.stats(sum.DeniedBy)

	calls, parts := c.remote.Load(), c.remoteStats()
	stats.Remote = RemoteStats{
		Calls: calls.Calls, CallTime: calls.CallTime, CallTimes: calls.CallTimes,
		Failures: calls.Failures, Spared: calls.Spared, BreakerOpen: parts.BreakerOpen, BreakerOpened: parts.BreakerOpened,
		Cached: bySource[SourceCache], Leased: bySource[SourceLease],
		Fallback: bySource[SourceFallback], FailedOpen: bySource[SourceFailOpen],
		Owed: parts.Owed, Forgotten: parts.Forgotten, Evicted: parts.Evicted,
	}
	return stats
}

// remoteStats returns the stats of the present remote store, whose counts include those
// of replaced stores. c.mu must be held.
func (c *counts) remoteStats() (s remote.Stats) {
	if c.store != nil {
		s = c.store.Stats()
	}
	s.BreakerOpened += c.carried.BreakerOpened
	s.Forgotten += c.carried.Forgotten
	s.Evicted += c.carried.Evicted
	return s
}
