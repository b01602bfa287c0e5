package ratelimit_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestRedisTTLIsExact uses a clock that does not move. The time to live is the
// time until the limit is whole again, rounded up to a millisecond.
func TestRedisTTLIsExact(t *testing.T) {
	m := newMini(t)
	s := redisStore(t, m.client(t), "rl:")
	for _, l := range []Limit{
		FixedWindow(7, time.Hour), SlidingWindow(7, time.Hour), TokenBucket(7, time.Hour, 3), TokenBucket(999, time.Second, 5),
		SlidingWindow(999, 7*time.Millisecond), FixedWindow(1, time.Millisecond), FixedWindow(2, 1500*time.Microsecond),
		Rolling(7, time.Hour), Rolling(999, time.Second), Rolling(1, time.Millisecond), Rolling(5, 7*time.Millisecond), Rolling(2, 1500*time.Microsecond), Rolling(3, years),
	} {
		for i, steps := range [][]int64{{1}, {2, 1}, {2, -1}, {2, 0}, {3, 3, 3}} {
			key := fmt.Sprint(i)
			for _, n := range steps {
				if n < 0 {
					_, err := s.Adjust(ctx, key, n, Now, []Limit{l})
					require.NoError(t, err)
				} else {
					take(t, s, key, min(n, l.Burst()), l)
				}
				m.advance(3 * time.Millisecond)
				name := "rl:{" + key + "}:" + l.Algorithm() + "-" + windowOf(l)
				if results, _ := take(t, s, key, 0, l); results[0].ResetAfter == 0 {
					require.False(t, m.Exists(name), "%v %v", l, steps)
				} else {
					const ms = time.Millisecond
					require.Equal(t, (results[0].ResetAfter+ms-1)/ms*ms, m.TTL(name), "%v %v", l, steps)
				}
			}
		}
	}
}

// TestEndOfAShortWindowKeepsTheLongOne lets the shorter of a key's two windows end,
// again and again.
func TestEndOfAShortWindowKeepsTheLongOne(t *testing.T) {
	m := newMini(t)
	s := redisStore(t, m.client(t), "rl:")
	short, long := FixedWindow(1, time.Second), FixedWindow(3, time.Hour)
	for i := range 3 {
		_, admitted := take(t, s, "k", 1, short, long)
		require.True(t, admitted, i)
		_, admitted = take(t, s, "k", 1, short, long)
		require.False(t, admitted, i)
		m.advance(time.Second)
	}
	results, _ := take(t, s, "k", 1, short, long)
	require.Equal(t, Result{Remaining: 1}, results[0])
	require.Equal(t, time.Hour-3*time.Second, results[1].RetryAfter)
}
