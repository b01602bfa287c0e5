package ratelimit_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// TestRedisMovingSlotIsNoOutage: while a slot of a Cluster moves, calls for its
// keys may fail. The store goes on deciding about all other keys, and the
// breaker stays closed.
func TestRedisMovingSlotIsNoOutage(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	l := httpLimiterNamed(t, "api", Options{Limits: slow(30)[:2], Redis: c.Client(), OnFailure: FailClosed})
	decide(t, l, "moves", 1)
	slot := c.Slot("rl:api:{moves}:any")
	to := c.Nodes[0]
	if c.Owner(slot) == to {
		to = c.Nodes[1]
	}
	m := c.BeginMigration(slot, to)
	m.MoveKeys(1) // of the two that the key has
	for range 20 {
		_, err := l.Take(ctx, "moves")
		require.ErrorContains(t, err, "TRYAGAIN")
	}
	require.Equal(t, SourceStore, decide(t, l, "stays", 1).Source)
	require.Zero(t, l.Stats().Remote.BreakerOpened)
	m.MoveKeys(1)
	m.Finish()
	require.EqualValues(t, 28, decide(t, l, "moves", 1).Remaining)
}
