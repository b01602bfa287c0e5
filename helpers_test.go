package ratelimit_test

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// takeErr takes n units from a store and returns the error alone.
func takeErr(s Store, key string, n int64, limits []Limit) error {
	_, err := s.Take(ctx, key, n, limits, make([]Result, len(limits)))
	return err
}

// requireTTL checks that every key under the prefix has a time to live, and that it
// is not longer than the time until the limit is whole again, rounded up to a
// millisecond.
func requireTTL(t *testing.T, c redis.UniversalClient, s Store, key string, limits ...Limit) {
	t.Helper()
	found, err := c.Keys(ctx, s.Prefix()+"*").Result()
	require.NoError(t, err)
	for _, k := range found {
		pttl, err := c.PTTL(ctx, k).Result()
		require.NoError(t, err)
		require.Positive(t, pttl, k)
		for _, l := range limits {
			if !strings.HasSuffix(k, ":"+l.Algorithm()+"-"+windowOf(l)) {
				continue
			}
			results, _ := take(t, s, key, 0, l)
			require.LessOrEqual(t, pttl, results[0].ResetAfter+time.Millisecond+slack, k)
		}
	}
}

// slack is for the time that passes between two commands.
const slack = 10 * time.Second
