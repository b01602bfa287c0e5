package ratelimit_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestRedisStoresCountByTheServersClock makes stores in processes whose clocks
// are years apart, like the clock of a bubble after each sleep. The server's clock
// does not move.
func TestRedisStoresCountByTheServersClock(t *testing.T) {
	needMiniredis(t)
	synctest.Test(t, func(t *testing.T) {
		m := miniredis.NewMiniRedis()
		now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		m.SetTime(now)
		client := piped(t, m)
		for left := int64(2); left >= 0; left-- {
			s := redisStore(t, client, "rl:")
			for _, l := range algorithms(3, time.Hour) {
				results := make([]Result, 1)
				at, err := s.Take(ctx, "k", 1, []Limit{l}, results)
				require.NoError(t, err)
				require.Equal(t, now.UnixNano(), int64(at))
				require.Zero(t, results[0].RetryAfter)
				require.Equal(t, left, results[0].Remaining)
				charged, err := s.Adjust(ctx, "k", -1, at, []Limit{l})
				require.NoError(t, err)
				require.Zero(t, charged)
				_, admitted := take(t, s, "k", 1, l)
				require.True(t, admitted)
			}
			time.Sleep(10 * 365 * 24 * time.Hour)
		}
		for _, l := range algorithms(3, time.Hour) {
			_, admitted := take(t, redisStore(t, client, "rl:"), "k", 1, l)
			require.False(t, admitted)
		}
	})
}

// TestOlderServerClockNeitherMintsNorBans fails over to a server whose clock is
// behind.
func TestOlderServerClockNeitherMintsNorBans(t *testing.T) {
	for _, setBack := range []time.Duration{time.Millisecond, time.Minute, 59 * time.Minute, time.Hour, 61 * time.Minute, 3 * time.Hour, 365 * 24 * time.Hour} {
		for _, l := range algorithms(3, time.Hour) {
			m := newMini(t)
			s := redisStore(t, m.client(t), "rl:")
			_, admitted := take(t, s, "full", 3, l)
			require.True(t, admitted)
			take(t, s, "half", 2, l)
			m.now = m.now.Add(-setBack)
			m.SetTime(m.now)

			_, admitted = take(t, s, "full", 1, l)
			require.False(t, admitted, "%v back, %v", setBack, l)
			_, admitted = take(t, s, "half", 2, l)
			require.False(t, admitted, "%v back, %v", setBack, l)
			results, admitted := take(t, s, "half", 1, l)
			require.True(t, admitted, "%v back, %v", setBack, l)
			require.Zero(t, results[0].Remaining)
			results, _ = take(t, s, "full", 1, l)
			require.LessOrEqual(t, results[0].RetryAfter, 2*time.Hour+time.Microsecond, "%v back, %v", setBack, l)
			requireTTL(t, m.client(t), s, "full", l)
			m.advance(results[0].RetryAfter)
			_, admitted = take(t, s, "full", 1, l)
			require.True(t, admitted, "%v back, %v", setBack, l)
			results, _ = take(t, s, "full", 0, l)
			require.LessOrEqual(t, results[0].ResetAfter, 3*time.Hour, "%v back, %v", setBack, l)
			m.advance(results[0].ResetAfter)
			_, admitted = take(t, s, "full", 3, l)
			require.True(t, admitted)
		}
	}
}
