package ratelimit

import (
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// MaxRolling is the most units that a [Rolling] limit may allow.
const MaxRolling = rule.MaxRolling

// Rolling allows at most n units in any interval as long as the window, wherever the
// interval begins. The store keeps the instant of each unit: a unit that was taken at
// the instant t counts until t + window, exclusive. n is at most [MaxRolling], because
// each unit takes 8 bytes of memory for as long as it counts.
//
// Bound: at most n units in any interval as long as the window. The other algorithms
// admit up to twice as many at a bad moment.
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
// them and 3 more. Only a MemoryStore counts rolling windows in this version, and stores
// in the same process that implement [KindStore]. [New] refuses the limit for all others.
func Rolling(n int64, window time.Duration) Limit {
	return Limit{rule: rule.Limit{Kind: rule.Rolling, N: n, Window: int64(window)}}
}
