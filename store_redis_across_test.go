package ratelimit_test

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestAcrossSlotsNeedsACluster: a client for a single server is fine, as its calls share scripts
// anyway. Other clients are refused.
func TestAcrossSlotsNeedsACluster(t *testing.T) {
	addrs := []string{"127.0.0.1:1"}
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs})
	single := redis.NewClient(&redis.Options{Addr: addrs[0]})
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": addrs[0]}})
	for _, client := range []redis.UniversalClient{cluster, single} {
		s, err := NewRedisStore(client, "rl:", AcrossSlots())
		require.NoError(t, err)
		require.False(t, s.Stats().AcrossSlotsRefused)
		require.NoError(t, s.Close())
		client.Close()
	}
	defer ring.Close()
	_, err := NewRedisStore(ring, "rl:", AcrossSlots())
	require.EqualError(t, err, `ratelimit: RedisStore "rl:": AcrossSlots is for a *redis.ClusterClient, and the client is a *redis.Ring: `+
		"leave AcrossSlots out, or make the client with redis.NewClusterClient")
}
