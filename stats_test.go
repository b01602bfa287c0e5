package ratelimit_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestRemoteStatsCountEachSource(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, far *farStore, l *Limiter) {
		decide(t, l, "key", 5)
		decide(t, l, "key", 1)
		decide(t, l, "key", 1)
		breakDown(t, far, l, refused)
		decide(t, l, "new", 1)
		require.Equal(t, RemoteStats{Failures: 5, Spared: 1, BreakerOpen: true, BreakerOpened: 1, Cached: 1, Fallback: 6, Owed: 6}, l.Stats().Remote)
		comeBack(t, far, l)
		stats := l.Stats().Remote
		require.False(t, stats.BreakerOpen)
		require.Zero(t, stats.Owed)
	})
	remotely(t, Options{Limits: []Limit{hour}, NearKeys: 1}, func(t *testing.T, far *farStore, l *Limiter) {
		breakDown(t, far, l, refused)
		for i := range 1000 {
			decide(t, l, fmt.Sprint(i), 1)
		}
		stats := l.Stats().Remote
		require.LessOrEqual(t, stats.Owed, 64)
		require.EqualValues(t, 1005-stats.Owed, stats.Forgotten)
	})
	require.Zero(t, limiter(t, hour).Stats().Remote, "in this process nothing is remote")
}

// TestStatsHoldNoKeys: a flood of new keys adds nothing to the statistics but
// to their numbers.
func TestStatsHoldNoKeys(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, far *farStore, l *Limiter) {
		breakDown(t, far, l, refused)
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
