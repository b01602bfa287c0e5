package ratelimit

import (
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// MaxRolling is the most units that a [Rolling] limit may allow.
const MaxRolling = 1000

const _ = uint(-(MaxRolling ^ rule.MaxRolling)) // one number for both

// Rolling allows at most n units in any interval as long as the window, wherever the
// interval begins. The store keeps the instant of each unit: a unit that was taken at
// the instant t counts until t + window, exclusive. n is at most [MaxRolling], because
// each unit takes 8 bytes of memory for as long as it counts, or 7 at Redis, whose replies
// have them all.
//
// Bound: at most n units in any interval as long as the window. The other algorithms
// admit up to twice as many at a bad moment. On Redis, the bound is as good as
// Options.OnFailure: with [FallbackLocal], each process admits up to n units of a key by
// itself while Redis is away, and one more for each call that gets no reply. Choose
// [FailClosed] if the bound must hold then, too.
//
// RetryAfter is when enough of the oldest units leave the window. Units come back one by
// one, each one window after it was taken. If n is lowered below what a key has taken, the
// units stay and leave by themselves.
//
// [Limiter.Refund] gives back the youngest units. A unit that is given back because of
// Options.Count, a response or a limiter further in is the unit of that request, and
// none if that unit has left the window. A charge of [Limiter.AddCost] counts from when
// its request came, and one of [Store.Adjust] from its instant, up to n units in all.
//
// In a [MemoryStore], a key takes one place of MemoryOptions.MaxKeys if its units are of
// one instant. Otherwise it takes further places, one for every 24 bytes: about n/3 of
// them and 3 more. A [RedisStore] keeps instants to the microsecond. What a limiter admits
// while Redis is away counts there, later, for up to a 64th of the window too long. Stores that are
// no [KindStore] with [KindRolling] do not count the limit, and Options.Lease cannot lease
// its units: [New] refuses both.
func Rolling(n int64, window time.Duration) Limit {
	return Limit{rule: rule.Limit{Kind: rule.Rolling, N: n, Window: int64(window)}}
}
