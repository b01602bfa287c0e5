package interop_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/throttled/throttled/v2"
	"github.com/throttled/throttled/v2/store/memstore"
	"golang.org/x/time/rate"

	. "github.com/ratelimit-go/ratelimit"
)

// TestBucketsDecideTheSame calls a TokenBucket, throttled's GCRA and x/time/rate with the same
// units at the same instants of one clock, and compares the answers.
//
// All times are multiples of 1/512 s, a whole number of nanoseconds, and intervals are that times a power of
// two: x/time/rate counts in floating-point numbers, which represent those exactly. With
// other intervals it may be off by a nanosecond or two.
func TestBucketsDecideTheSame(t *testing.T) {
	const tick = time.Second / 512
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		allowed, denied := 0, 0
		for round := range 200 {
			r := rand.New(rand.NewPCG(uint64(round), 1))
			interval, burst := tick<<r.IntN(12), 1+r.Int64N(1<<r.IntN(12))
			ours := newLimiter(t, fmt.Sprint("bucket ", round), Options{Limits: []Limit{TokenBucket(1, interval, burst)}})
			store, err := memstore.NewCtx(0)
			require.NoError(t, err)
			gcra, err := throttled.NewGCRARateLimiterCtx(store, throttled.RateQuota{MaxRate: throttled.PerDuration(1, interval), MaxBurst: int(burst - 1)})
			require.NoError(t, err)
			xtime := rate.NewLimiter(rate.Every(interval), int(burst))
			for range 500 {
				n := 1 + r.Int64N(1<<r.IntN(4))
				if r.IntN(50) == 0 {
					n = burst + r.Int64N(2)
				}
				d, err := ours.TakeN(ctx, "key", n)
				require.NoError(t, err)
				limited, result, err := gcra.RateLimitCtx(ctx, "key", int(n))
				require.NoError(t, err)
				at := fmt.Sprintf("round %d: %d units of burst %d, one per %v", round, n, burst, interval)
				require.Equal(t, !limited, d.Allowed, "throttled, %s", at)
				require.Equal(t, xtime.AllowN(time.Now(), int(n)), d.Allowed, "x/time/rate, %s", at)
				if n <= burst { // of more units, throttled reports a full bucket
					require.Equal(t, int64(result.Remaining), d.Remaining, at)
					require.Equal(t, result.ResetAfter, d.ResetAfter, at)
				}
				switch {
				case d.Allowed:
					allowed++
				case d.RetryAfter == Never:
					require.Equal(t, time.Duration(-1), result.RetryAfter, at)
					denied++
				default:
					require.Equal(t, result.RetryAfter, d.RetryAfter, at)
					denied++
				}
				wait := tick * time.Duration(r.Int64N(1<<r.IntN(10)))
				if !d.Allowed && d.RetryAfter != Never && r.IntN(3) == 0 {
					wait = d.RetryAfter // then the same units fit, and not before
				}
				time.Sleep(wait)
			}
		}
		require.Greater(t, allowed, 10_000)
		require.Greater(t, denied, 10_000)
	})
}
