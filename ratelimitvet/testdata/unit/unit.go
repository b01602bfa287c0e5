package unit

import (
	"context"
	"math"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

const minute = time.Minute
const sixty = 60

func limits(ctx context.Context, login *ratelimit.Limiter, seconds int) {
	_ = ratelimit.FixedWindow(5, 60)                     // want `60 is a duration of 60ns: write its unit, as in 60\*time.Second`
	_ = ratelimit.SlidingWindow(5, 15*60)                // want `15\*60 is a duration of 900ns`
	_ = ratelimit.TokenBucket(10, 1, 20)                 // want `1 is a duration of 1ns`
	_ = ratelimit.Rolling(5, sixty)                      // want `sixty is a duration of 60ns`
	_ = ratelimit.InFlight(5, time.Duration(30))         // want `time.Duration\(30\) is a duration of 30ns`
	_ = ratelimit.FixedWindow(5, minute).Block(60, 3600) // want `60 is a duration` `3600 is a duration`
	login.Block(ctx, "key", 300)                         // want `300 is a duration`
	_ = ratelimit.Options{
		Timeout: 100, // want `100 is a duration of 100ns`
		MaxWait: 2,   // want `2 is a duration`
	}
	_ = ratelimit.MemoryOptions{SnapshotEvery: 5} // want `5 is a duration`

	_ = ratelimit.FixedWindow(5, minute)
	_ = ratelimit.FixedWindow(5, 15*time.Minute)
	_ = ratelimit.FixedWindow(5, time.Duration(seconds)*time.Second)
	_ = ratelimit.TokenBucket(10, time.Second, 20)
	_ = ratelimit.Options{Timeout: -1, DenyRecheck: time.Nanosecond, MaxWaiting: 10, Lease: 0}
	_ = ratelimit.Options{MaxWait: math.MaxInt64}
	time.Sleep(1) // not of this library
}
