package redistest_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

func TestSentinel(t *testing.T) {
	t.Parallel()
	s := redistest.StartSentinel(t, redistest.SentinelOptions{})
	c := s.Client()
	require.NoError(t, c.Set(t.Context(), "key", "value", 0).Err())
	require.Same(t, s.Master, s.Current())

	s.Failover()
	require.Same(t, s.Replica, s.Current())
	require.Eventually(t, func() bool {
		return c.Set(t.Context(), "key", "again", 0).Err() == nil && s.Replica.Do("GET", "key") == "again"
	}, patience, 50*time.Millisecond, "the client finds the new master")
}

// TestSentinels: the majority of three sentinels agrees that a master that
// hangs is down.
func TestSentinels(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	s := redistest.StartSentinel(t, redistest.SentinelOptions{Sentinels: 3, DownAfter: 500 * time.Millisecond})
	s.Master.Hang()
	s.AwaitPromoted(s.Replica)
	require.NoError(t, s.Replica.Client().Set(t.Context(), "key", "value", 0).Err())
}
