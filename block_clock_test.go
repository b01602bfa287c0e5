package ratelimit_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// These tests have a Redis server whose clock jumps while a key is blocked.

// TestServerClockSetBackKeepsBlocks: no key is freed, and none is blocked for longer than the
// duration of its block. The ladder goes on, and the key has a time to live.
func TestServerClockSetBackKeepsBlocks(t *testing.T) {
	for _, algorithm := range algorithms(3, time.Minute) {
		for _, back := range []time.Duration{time.Millisecond, 10 * time.Minute, 90 * time.Minute, 3 * time.Hour, 1000 * time.Hour} {
			t.Run(fmt.Sprint(algorithm.Algorithm(), back), func(t *testing.T) {
				m := newMini(t)
				limit := algorithm.Block(2*time.Hour, 5*time.Hour)
				store := redisStore(t, m.client(t), "rl:")
				_, admitted := take(t, store, "k", 3, limit)
				require.True(t, admitted)
				results, _ := take(t, store, "k", 1, limit)
				require.True(t, results[0].BlockBegan)
				m.advance(time.Hour)
				m.now = m.now.Add(-back)
				m.SetTime(m.now)
				want := min(time.Hour+back, 2*time.Hour)
				for _, n := range []int64{1, 0, 1} {
					results, _ = take(t, store, "k", n, limit)
					require.True(t, results[0].Blocked)
					require.False(t, results[0].BlockBegan)
					require.Equal(t, want, min(results[0].MoreAfter, results[0].ResetAfter), "%d units", n)
				}
				key := "rl:{k}:" + algorithm.Algorithm() + "-1m"
				pttl := m.TTL(key)
				require.Positive(t, pttl)
				require.LessOrEqual(t, pttl, want+5*time.Hour+time.Millisecond)
				require.NoError(t, store.Block(ctx, "k", Block{Left: time.Minute}, []Limit{limit}))
				_, err := store.Adjust(ctx, "k", -1, Now, []Limit{limit})
				require.NoError(t, err)
				m.advance(want)
				results, admitted = take(t, store, "k", 3, limit)
				require.True(t, admitted, "%+v", results)
				results, _ = take(t, store, "k", 1, limit)
				require.Equal(t, 5*time.Hour, results[0].RetryAfter)
			})
		}
	}
}

// TestServerClockThatJumpsAheadEndsNoKnownBlock: a process that knows the block goes on with
// it by its own clock, and gives back what Redis admits. A new process knows nothing of it.
func TestServerClockThatJumpsAheadEndsNoKnownBlock(t *testing.T) {
	for _, algorithm := range algorithms(3, time.Minute) {
		for _, byHand := range []bool{false, true} {
			m := newMini(t)
			limit := algorithm.Block(2*time.Hour, 5*time.Hour)
			store := redisStore(t, m.client(t), "rl:")
			o := Options{Limits: []Limit{limit}, Store: store, DenyRecheck: time.Nanosecond, Timeout: time.Minute, Logger: quietly}
			l, err := new(Registry).New("login", o)
			require.NoError(t, err)
			took(t, l, "k", 3)
			if byHand {
				require.NoError(t, l.Block(ctx, "k", 2*time.Hour))
			} else {
				require.True(t, decide(t, l, "k", 1).Blocked)
			}
			m.advance(20 * time.Hour)
			for range 10 {
				d := decide(t, l, "k", 1)
				require.False(t, d.Allowed, "%v", algorithm)
				require.True(t, d.Blocked)
				require.InDelta(t, 2*time.Hour, d.RetryAfter, float64(time.Minute))
			}
			require.True(t, decide(t, l, "another", 3).Allowed)
			require.Eventually(t, func() bool {
				results, _ := take(t, store, "k", 0, limit)
				return results[0].Remaining == 3
			}, 20*time.Second, time.Millisecond, "%v: what Redis has admitted is given back", algorithm)
			require.NoError(t, l.Reset(ctx, "k"), "an operator lifts it")
			took(t, l, "k", 1)
			require.NoError(t, l.Close())
		}
	}
}
