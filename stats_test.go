package ratelimit_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestRemoteStatsCountEachSource(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		decide(t, l, "key", 5)
		decide(t, l, "key", 1)
		decide(t, l, "key", 1)
		startOutage(t, backend, l, refused)
		decide(t, l, "new", 1)
		require.Equal(t, RemoteStats{Calls: 7, CallTimes: CallTimes{7}, Failures: 5, Spared: 1, BreakerOpen: true, BreakerOpened: 1, Cached: 1, Fallback: 6, Owed: 6}, l.Stats().Remote)
		endOutage(t, backend, l)
		stats := l.Stats().Remote
		require.False(t, stats.BreakerOpen)
		require.Zero(t, stats.Owed)
	})
	remotely(t, Options{Limits: []Limit{hour}, NearKeys: 1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		for i := range 5000 {
			decide(t, l, fmt.Sprint(i), 1)
		}
		stats := l.Stats().Remote
		require.LessOrEqual(t, stats.Owed, 1000)
		require.EqualValues(t, 5005-stats.Owed, stats.Forgotten)
	})
	require.Zero(t, limiter(t, hour).Stats().Remote, "in this process nothing is remote")
}

// TestEachOfNearKeysIsOwedItsUnits uses as many keys in an outage as NearKeys says. The
// units of all of them reach the store.
func TestEachOfNearKeysIsOwedItsUnits(t *testing.T) {
	for _, keys := range []int{1, 2, 16, 140, 256, 1000, 8192} {
		remotely(t, Options{Limits: []Limit{hour}, NearKeys: keys}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			startOutage(t, backend, l, refused) // with five more keys
			key := func(i int) string { return fmt.Sprintf("198.51.%06d", i) }
			for i := range keys {
				require.True(t, decide(t, l, key(i), 2).Allowed)
			}
			require.Equal(t, keys+5, l.Stats().Remote.Owed)
			require.Zero(t, l.Stats().Remote.Forgotten)
			endOutage(t, backend, l)
			for i := range keys {
				require.EqualValues(t, 3, backend.remaining(t, key(i), hour))
			}
		})
	}
}

// TestStatsHoldNoKeys sends a flood of new keys. Only the numbers of the statistics
// change.
func TestStatsHoldNoKeys(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		for i := range 1000 {
			decide(t, l, fmt.Sprint(secret, i), 6)
		}
		require.NotContains(t, fmt.Sprintf("%+v", l.Stats()), secret)
	})
	s := memStore(t, MemoryOptions{MaxKeys: 100})
	for i := range 1000 {
		memTake(t, s, fmt.Sprint(secret, i), 6, hour)
	}
	require.NotContains(t, fmt.Sprintf("%+v", s.Stats()), secret)
}
