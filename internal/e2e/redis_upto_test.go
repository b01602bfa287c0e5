package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// wrapper is a store of another make around one of this package.
type wrapper struct{ Store }

func (w *wrapper) Unwrap() Store { return w.Store }

// upToClients are a server and a Cluster.
func upToClients(t *testing.T) map[string]redis.UniversalClient {
	return map[string]redis.UniversalClient{
		"server": redistest.Start(t).Client(), "Cluster": redistest.StartCluster(t, redistest.ClusterOptions{}).Client(),
	}
}

// TestTakeUpToIsAtomicAtRedis has limiters of two processes' kind, each with a client of
// many callers, that take as much as they can get. Together they get what the limits
// allow, together with callers of TakeN for the same keys.
func TestTakeUpToIsAtomicAtRedis(t *testing.T) {
	for name, client := range upToClients(t) {
		for i, limits := range append(limitSets(1000), algorithms(1000)[:3]) {
			for _, wrap := range []bool{false, true} {
				if wrap && slices.ContainsFunc(limits, func(l Limit) bool { return l.Algorithm() == "rolling" }) {
					continue // a wrapper must name what it counts
				}
				var limiters []*Limiter
				for range 2 {
					opts := redisOptions(nil, limits...)
					opts.Redis = nil
					opts.Store = redisStore(t, client, fmt.Sprintf("rl:%d%v:", i, wrap))
					if wrap {
						opts.Store = &wrapper{opts.Store}
					}
					opts.Timeout, opts.OnFailure, opts.DenyRecheck = time.Minute, FailClosed, 1
					limiters = append(limiters, newLimiter(t, "upto", opts))
				}
				var total atomic.Int64
				var all sync.WaitGroup
				for g := range 16 {
					all.Go(func() {
						r, l := rand.New(rand.NewPCG(uint64(g), 1)), limiters[g%2]
						for denied := 0; denied < 2; {
							n := 1 + r.Int64N(40)
							if g%4 == 0 {
								d, err := l.TakeN(ctx, "key", n)
								if !assert.NoError(t, err) {
									return
								}
								if d.Allowed {
									total.Add(n)
								} else if denied++; d.Remaining > 0 {
									denied = 0
									n = 1
								}
								continue
							}
							granted, d, err := l.TakeUpTo(ctx, "key", n)
							if !assert.NoError(t, err) {
								return
							}
							if total.Add(granted); granted == 0 {
								denied++
								assert.Positive(t, d.RetryAfter)
							}
						}
					})
				}
				all.Wait()
				assert.EqualValues(t, 1000, total.Load(), "%s, %v, wrapped: %v", name, limits, wrap)
			}
		}
	}
}

// TestTakeUpToCountsLikeMemory compares random takes at Redis and in memory. No time
// passes that matters.
func TestTakeUpToCountsLikeMemory(t *testing.T) {
	for name, client := range upToClients(t) {
		for _, limits := range limitSets(50) {
			inRedis := newLimiter(t, "redis", redisOptions(client, limits...))
			inMemory := newLimiter(t, "memory", quiet(limits...))
			r := rand.New(rand.NewPCG(5, 6))
			for i := range 400 {
				key, n := fmt.Sprint("key", r.IntN(4)), 1+r.Int64N(20)
				if r.IntN(40) == 0 {
					require.NoError(t, inRedis.Reset(ctx, key))
					require.NoError(t, inMemory.Reset(ctx, key))
				}
				a, da, err := inRedis.TakeUpTo(ctx, key, n)
				require.NoError(t, err)
				b, db, err := inMemory.TakeUpTo(ctx, key, n)
				require.NoError(t, err)
				require.Equal(t, b, a, "%s, %v, operation %d: %d of %s", name, limits, i, n, key)
				require.Equal(t, db.Remaining, da.Remaining)
				require.Equal(t, db.Allowed, da.Allowed)
			}
			require.NoError(t, inRedis.Close())
			require.NoError(t, inMemory.Close())
			require.NoError(t, Memory("memory").Close())
			masters(t, client, func(c redis.UniversalClient) { require.NoError(t, c.FlushAll(ctx).Err()) })
		}
	}
}

// masters calls f for each server that has keys, one after the other.
func masters(t *testing.T, client redis.UniversalClient, f func(redis.UniversalClient)) {
	cluster, ok := client.(*redis.ClusterClient)
	if !ok {
		f(client)
		return
	}
	var mu sync.Mutex
	require.NoError(t, cluster.ForEachMaster(ctx, func(_ context.Context, c *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		f(c)
		return nil
	}))
}

// TestHashedKeysAtRedis reads the keys of a server and of a Cluster.
func TestHashedKeysAtRedis(t *testing.T) {
	for name, client := range upToClients(t) {
		opts := redisOptions(nil, algorithms(5)...)
		opts.Redis, opts.Store = nil, redisStore(t, client, "rl:", HashKeys([]byte("0123456789abcdef")))
		l := newLimiter(t, "hashed", opts)
		for i := range 20 {
			key := fmt.Sprintf("user%d@example.com", i)
			require.EqualValues(t, 3, decide(t, l, key, 2).Remaining)
			require.NoError(t, l.Refund(ctx, key, 1))
			require.EqualValues(t, 2, decide(t, l, key, 2).Remaining)
			require.NoError(t, l.Reset(ctx, key))
			require.EqualValues(t, 4, decide(t, l, key, 1).Remaining)
		}
		found := 0
		masters(t, client, func(c redis.UniversalClient) {
			keys, err := c.Keys(ctx, "*").Result()
			require.NoError(t, err)
			for _, key := range keys {
				require.NotContains(t, key, "example", name)
				if strings.Contains(key, "{") {
					found++
				}
			}
		})
		require.Equal(t, 80, found, name)
		require.NoError(t, l.Close())
	}
}
