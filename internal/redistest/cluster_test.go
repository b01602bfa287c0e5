package redistest_test

import (
	"fmt"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

func TestCluster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	client := c.Client()
	for i := range 100 {
		require.NoError(t, client.Set(t.Context(), fmt.Sprint("key", i), i, 0).Err())
	}
	require.Len(t, c.Addrs(), 3)
	for _, node := range c.Nodes {
		require.NotZero(t, node.Do("DBSIZE"), "keys spread over all masters")
	}

	// A slot moves, with a key in it, while a client reads and writes.
	const key = "{moving}1"
	slot := c.Slot(key)
	from := c.Owner(slot)
	to := c.Nodes[0]
	if to == from {
		to = c.Nodes[1]
	}
	incr := func(key string, want int64) {
		t.Helper()
		n, err := client.Incr(t.Context(), key).Result()
		require.NoError(t, err)
		require.Equal(t, want, n)
	}
	incr(key, 1)
	m := c.BeginMigration(slot, to)
	incr(key, 2)
	incr("{moving}2", 1) // made at its new place
	require.Equal(t, 1, m.MoveKeys(10))
	incr(key, 3)
	require.Equal(t, 0, m.MoveKeys(10))
	m.Finish()
	require.Same(t, to, c.Owner(slot))
	incr(key, 4)
	incr("{moving}2", 2)
	c.Migrate(slot, from)
	require.Same(t, from, c.Owner(slot))
	incr(key, 5)

	// The other masters continue without one of them, and all slots are served
	// when it is back.
	from.Kill()
	other := c.Owner(c.Slot(key))
	require.Nil(t, other)
	require.NoError(t, to.Client().Ping(t.Context()).Err())
	from.Restart()
	c.AwaitOK()
	require.Same(t, from, c.Owner(slot))
}

// TestClusterFailover: the replica of a killed master takes its slots.
func TestClusterFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{Replicas: 1})
	require.Len(t, c.Nodes, 6)
	slot := c.Slot("key")
	master := c.Owner(slot)
	require.NoError(t, c.Client().Set(t.Context(), "key", "value", 0).Err())
	require.EqualValues(t, 1, c.Client().Do(t.Context(), "WAIT", "1", "0").Val())
	master.Kill()
	c.AwaitOK()
	require.NotSame(t, master, c.Owner(slot))
	value, err := c.Client(func(o *redis.ClusterOptions) { o.MaxRedirects = 20 }).Get(t.Context(), "key").Result()
	require.NoError(t, err)
	require.Equal(t, "value", value)
}
