package e2e_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// calendars returns a limit of each unit.
func calendars(t *testing.T, n int64) []Limit {
	zone, err := time.LoadLocation("America/Santiago")
	require.NoError(t, err)
	limits := []Limit{Daily(n, zone), Weekly(n, time.Sunday, zone), Monthly(n, 31, zone)}
	if _, ends, _ := limits[0].Period(time.Now()); time.Until(ends) < time.Minute {
		time.Sleep(time.Until(ends)) // so that no period ends during the test
	}
	return limits
}

// TestCalendarKeysEndWithTheirPeriods: after every pair of operations, each key expires at
// the end of its period.
func TestCalendarKeysEndWithTheirPeriods(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:calendar:")
	limits := calendars(t, 7)
	names := map[string]int{"day-America/Santiago": 0, "week-sunday-America/Santiago": 1, "month-31-America/Santiago": 2}
	for _, first := range operations {
		for _, second := range operations {
			for _, op := range []func(Store, string, []Limit) error{first.do, second.do} {
				require.NoError(t, op(s, "k", limits), "%s, then %s", first.name, second.name)
				results, _ := take(t, s, "k", 0, limits...)
				now := time.Now()
				for name, i := range names {
					ends, err := c.PExpireTime(ctx, "rl:calendar:{k}:"+name).Result()
					require.NoError(t, err)
					if results[i].ResetAfter == 0 {
						require.EqualValues(t, -2, ends, "%s, then %s: %s", first.name, second.name, name)
						continue
					}
					// The result was there before now, by less than the slack.
					left := time.UnixMilli(ends.Milliseconds()).Sub(now)
					require.InDelta(t, results[i].ResetAfter, left, float64(slack), "%s, then %s: %s", first.name, second.name, name)
					require.Zero(t, ends%time.Second, "a period ends on a whole second")
				}
			}
		}
		require.NoError(t, s.Reset(ctx, "k", limits))
	}
}

// TestCalendarIsExactAcrossProcesses: callers of several clients get the units of a period
// once, all or none under several limits.
func TestCalendarIsExactAcrossProcesses(t *testing.T) {
	server := redistest.Start(t)
	const n = 500
	limits := append(calendars(t, n), FixedWindow(2*n, time.Hour), TokenBucket(1, time.Hour, n+50), Rolling(n+7, time.Hour))
	var admitted atomic.Int64
	var all sync.WaitGroup
	for range 3 {
		s := redisStore(t, server.Client(), "rl:exact:")
		for range 8 {
			all.Go(func() {
				for range 40 {
					results := make([]Result, len(limits))
					if _, err := s.Take(ctx, "k", 1, limits, results); err != nil {
						t.Error(err)
						return
					}
					denied := false
					for _, r := range results {
						denied = denied || r.RetryAfter > 0
					}
					if !denied {
						admitted.Add(1)
					}
				}
			})
		}
	}
	all.Wait()
	require.EqualValues(t, n, admitted.Load())
	results, _ := take(t, redisStore(t, server.Client(), "rl:exact:"), "k", 0, limits...)
	require.Equal(t, []int64{0, 0, 0, n, 50, 7}, []int64{
		results[0].Remaining, results[1].Remaining, results[2].Remaining, results[3].Remaining, results[4].Remaining, results[5].Remaining,
	}, "all or none")
}
