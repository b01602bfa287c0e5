package ratelimit_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestServerClockThatJumpsAheadFreesNobody has Redis's clock jump ahead, so that counters
// expire at Redis. Keys that this process knows to be denied stay denied by the process's
// own clock. Units that Redis has counted in the meantime are given back.
func TestServerClockThatJumpsAheadFreesNobody(t *testing.T) {
	for _, limit := range algorithms(5, time.Hour) {
		for _, wrapped := range []bool{false, true} {
			m := newMini(t)
			var store Store = redisStore(t, m.client(t), "rl:")
			if wrapped {
				store = &wrapper{store}
			}
			l, err := new(Registry).New("login", Options{Limits: []Limit{limit}, Store: store, DenyRecheck: time.Nanosecond, Timeout: time.Minute, Logger: quietly})
			require.NoError(t, err)
			for range 5 {
				require.True(t, decide(t, l, "key", 1).Allowed)
			}
			require.False(t, decide(t, l, "key", 1).Allowed)
			m.advance(2 * time.Hour)
			for range 20 {
				d := decide(t, l, "key", 1)
				require.False(t, d.Allowed, "%v, wrapped: %v", limit, wrapped)
				require.Positive(t, d.RetryAfter)
			}
			require.True(t, decide(t, l, "another", 5).Allowed, "what this process does not know is up to the store")
			require.Eventually(t, func() bool {
				results, _ := take(t, store, "key", 0, limit)
				return results[0].Remaining == 5
			}, 20*time.Second, time.Millisecond, "%v", limit)
			require.NoError(t, l.Close())

			next, err := new(Registry).New("login", Options{Limits: []Limit{limit}, Store: store, Timeout: time.Minute, Logger: quietly})
			require.NoError(t, err)
			require.True(t, decide(t, next, "key", 1).Allowed, "a new process knows nothing of it")
			require.NoError(t, next.Close())
		}
	}
}
