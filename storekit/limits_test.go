package storekit

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

func TestHowLimitsCount(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	endOfDay := time.Date(2026, 3, 30, 0, 0, 0, 0, berlin)
	for _, tc := range []struct {
		limit ratelimit.Limit
		name  string
		rule  rule.Limit
	}{
		{ratelimit.FixedWindow(5, time.Hour), "fixed-1h", rule.Limit{Kind: rule.Fixed, N: 5, Window: int64(time.Hour)}},
		{ratelimit.SlidingWindow(5, 90*time.Second).Named("a"), "sliding-1m30s", rule.Limit{Kind: rule.Sliding, N: 5, Window: int64(90 * time.Second)}},
		{ratelimit.TokenBucket(5, time.Second, 9), "bucket-1s", rule.Limit{Kind: rule.Bucket, N: 5, Window: int64(time.Second), Burst: 9}},
		{ratelimit.Rolling(5, time.Minute), "rolling-1m", rule.Limit{Kind: rule.Rolling, N: 5, Window: int64(time.Minute)}},
		// A day of 23 hours.
		{ratelimit.Daily(5, berlin), "day-Europe/Berlin", rule.Limit{Kind: rule.Calendar, N: 5, Window: int64(23 * time.Hour), Burst: endOfDay.UnixNano()}},
	} {
		var cache limitCache
		for range 2 { // made, and known
			how, err := cache.of(tc.limit)
			require.NoError(t, err, tc.name)
			assert.Equal(t, tc.name, how.Name)
			assert.Nil(t, how.Ladder)
			assert.Equal(t, tc.rule, how.At(endOfDay.Add(-12*time.Hour)), tc.name)
		}
	}
	var cache limitCache
	blocks, err := cache.of(ratelimit.FixedWindow(5, time.Hour).Block(time.Minute, time.Hour))
	require.NoError(t, err)
	require.NotNil(t, blocks.Ladder)
	assert.Equal(t, rule.Ladder{N: 2, Rungs: [4]int64{int64(time.Minute), int64(time.Hour)}}, *blocks.Ladder)

	for _, l := range []ratelimit.Limit{{}, ratelimit.Deny, ratelimit.Unlimited, ratelimit.InFlight(5, time.Minute), ratelimit.FixedWindow(0, time.Hour)} {
		_, err := cache.of(l)
		assert.Error(t, err, l.String())
	}
}

// Limits that keep changing do not fill the memory, and no limit gets the rule of another.
func TestLimitsThatKeepChanging(t *testing.T) {
	var cache limitCache
	for n := range int64(3 * maxLimits) {
		how, err := cache.of(ratelimit.FixedWindow(n+1, time.Hour).Named(fmt.Sprint(n)))
		require.NoError(t, err)
		require.Equal(t, n+1, how.Rule.N)
		require.LessOrEqual(t, len(cache.limits), maxLimits)
	}
}
