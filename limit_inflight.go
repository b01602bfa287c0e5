package ratelimit

import (
	"fmt"
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// InFlight allows n requests at the same time. Each has a hold, which ends when its handler
// returns or panics ([Limiter.Middleware]), when its context ends ([Limiter.Check]), or when
// it is released ([Limiter.Acquire]). A connection that was hijacked or upgraded holds until
// its handler returns. A request has one hold whatever it costs, and none if it costs 0. On a
// store outside of this process, other processes know of the end of a hold a moment later.
//
// hold, of at least 10 ms, is how long a hold outlives its process: the holds of a process
// that was killed end after it. While requests run, their process renews their holds, three
// times in each hold. A process that was paused for longer than hold has lost them: its
// requests go on, and count no longer. A hold of Acquire is not renewed for its caller, and
// ends after hold.
//
// Bound: at most n holds at any instant, over all processes. More requests run only after a
// process was paused for longer than hold, or could not reach the store for so long, after
// the store has lost its data, or while it fails: with [FallbackLocal], each process then
// admits what it does not know to be held, at most n. Such holds count when the store answers
// again, and then no request is admitted until there is room. With [FailOpen] requests have
// no holds while the store fails. hold should be much longer than Options.Timeout.
//
// RetryAfter is an estimate: until the first hold would end by itself, at most hold. A
// request that ends earlier makes room earlier, and one that goes on makes none. With
// Options.MaxWait a request waits for room. Clients see the limit as
// q=20;qu="concurrent-requests", without times.
//
// A limiter has at most one such limit. With other limits beside it, a request gets a hold
// and its units, or neither. Units stay taken when the hold ends. [Limiter.Reset] and
// [Limiter.Refund] leave holds as they are, and so do [Limiter.AddCost] and Options.Count.
// Take, TakeN, TakeLimits, TakeUpTo and Wait are errors for such a limiter, because they
// could not say when the hold ends: use Acquire. Another hold is the same counter.
//
// A [MemoryStore] and a [RedisStore] count holds, and so do stores that implement
// [HoldStore]. [New] refuses the limit for other stores. Holds are in no SnapshotFile, and
// take no places of MemoryOptions.MaxKeys.
func InFlight(n int64, hold time.Duration) Limit {
	return Limit{rule: rule.Limit{Kind: rule.InFlight, N: n, Window: int64(hold)}}
}

// errNoEnd is the error of calls that would take a hold, and could not say when it ends.
func (l *Limit) errNoEnd() error {
	return fmt.Errorf("limit %v counts requests at the same time, and this call could not say when its hold ends: use Acquire, Middleware or Check", *l)
}

// splitInFlight returns the limits without the in-flight one, and that one, or nil.
func splitInFlight(limits []Limit) (rates []Limit, inFlight *Limit) {
	i := slices.IndexFunc(limits, Limit.isInFlight)
	if i < 0 {
		return limits, nil
	}
	l := limits[i]
	return slices.Concat(limits[:i], limits[i+1:]), &l
}
