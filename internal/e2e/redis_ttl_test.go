package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// requireTTL checks that every key under the prefix has a time to live, and that it is not
// longer than the time until the limit is whole again, rounded up to a millisecond.
func requireTTL(t *testing.T, c redis.UniversalClient, s Store, key string, limits ...Limit) {
	t.Helper()
	found, err := c.Keys(ctx, s.Prefix()+"*").Result()
	require.NoError(t, err)
	for _, k := range found {
		pttl, err := c.PTTL(ctx, k).Result()
		require.NoError(t, err)
		if pttl == -2 { // it has expired in the meantime
			continue
		}
		require.Positive(t, pttl, k)
		for _, l := range limits {
			if !strings.HasSuffix(k, ":"+l.Algorithm()+"-"+windowOf(l)) {
				continue
			}
			// The look comes after the PTTL, so its ResetAfter may be shorter by the slack.
			results, _ := take(t, s, key, 0, l)
			require.LessOrEqual(t, pttl, results[0].ResetAfter+time.Millisecond+slack, k)
		}
	}
}

// slack allows for the time that passes between two commands.
const slack = 10 * time.Second

// TestEveryKeyHasATTLAfterEveryOperation does every pair of operations on a key, under every
// algorithm.
func TestEveryKeyHasATTLAfterEveryOperation(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:ttl:")
	for _, limits := range [][]Limit{algorithms(7)[:1], algorithms(7)[1:2], algorithms(7)[2:3], algorithms(7)[3:], algorithms(7), {FixedWindow(7, time.Hour), FixedWindow(7, time.Minute)}, {Rolling(7, time.Hour), Rolling(7, time.Minute)}} {
		for _, first := range operations {
			for _, second := range operations {
				for _, op := range []func(Store, string, []Limit) error{first.do, second.do} {
					require.NoError(t, op(s, "k", limits), "%s, then %s: %v", first.name, second.name, limits)
					requireTTL(t, c, s, "k", limits...)
				}
			}
			require.NoError(t, s.Reset(ctx, "k", limits))
			left, err := c.Keys(ctx, "*").Result()
			require.NoError(t, err)
			require.Empty(t, left)
		}
	}
}

// TestMissingTTLIsRepaired removes the time to live of a key. Every operation repairs it, and
// what the key counts is still used.
func TestMissingTTLIsRepaired(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:")
	for _, l := range algorithms(7) {
		for _, also := range [][]Limit{{l}, {l, FixedWindow(7, time.Minute)}} {
			for _, op := range operations {
				for _, taken := range []int64{3, 7} {
					require.NoError(t, c.FlushDB(ctx).Err())
					take(t, s, "k", taken, l)
					name := "rl:{k}:" + l.Algorithm() + "-" + windowOf(l)
					require.True(t, c.Persist(ctx, name).Val())
					_, admitted := take(t, s, "k", 8-taken, also...) // denied, by this limit
					require.False(t, admitted)
					requireTTL(t, c, s, "k", l)
					require.EqualValues(t, 1, c.Exists(ctx, name).Val())

					require.True(t, c.Persist(ctx, name).Val())
					require.NoError(t, op.do(s, "k", also), "%s: %v", op.name, also)
					requireTTL(t, c, s, "k", l)
					if op.name == "look" || op.name == "denied" {
						results, _ := take(t, s, "k", 0, l)
						require.Equal(t, 7-taken, results[0].Remaining, "%s: %v", op.name, also)
					}
				}
			}
		}
	}
}

// TestForeignValuesAreKeptAndReported puts other values in the place of counters. They cause an
// error that names the key, and they do not change.
func TestForeignValuesAreKeptAndReported(t *testing.T) {
	server := redistest.Start(t)
	c := server.Client()
	s := redisStore(t, c, "rl:login:")
	foreign := map[string]func(key string) error{
		"list": func(key string) error { return c.RPush(ctx, key, "x").Err() },
		"hash": func(key string) error { return c.HSet(ctx, key, "f", "v").Err() },
		"set":  func(key string) error { return c.SAdd(ctx, key, "x").Err() },
		"zset": func(key string) error { return c.ZAdd(ctx, key, redis.Z{Member: "x"}).Err() },
		"stream": func(key string) error {
			return c.XAdd(ctx, &redis.XAddArgs{Stream: key, Values: []string{"f", "v"}}).Err()
		},
		"big number": func(key string) error { return c.Set(ctx, key, "1180591620717411303424", 0).Err() },
	}
	for _, junk := range []string{"", "junk", "-3", "3.5", "1e3", " 3", "3 ", "0x3", "３", "nan", "inf", "1 2", "1 2 3 4", "-1 2 3", "1 -2 3", "1 2 -3", "1  2 3", "1 2 3\n", "9999999999999999"} {
		foreign["string "+junk] = func(key string) error { return c.Set(ctx, key, junk, 0).Err() }
		foreign["expiring "+junk] = func(key string) error { return c.Set(ctx, key, junk, time.Hour).Err() }
	}
	for name, put := range foreign {
		for i, l := range algorithms(7) {
			require.NoError(t, c.FlushDB(ctx).Err())
			key := "rl:login:{k}:" + l.Algorithm() + "-" + windowOf(l)
			require.NoError(t, put(key))
			before := c.Dump(ctx, key).Val()
			for _, limits := range [][]Limit{{l}, {FixedWindow(5, time.Minute), l}} {
				for _, op := range operations {
					if op.name == "reset" {
						continue
					}
					err := op.do(s, "k", limits)
					var redisErr *RedisError
					require.ErrorAs(t, err, &redisErr, "%s, %s, %v", name, op.name, l)
					require.ErrorContains(t, err, fmt.Sprintf("the key %q holds something else than a counter", key))
					require.True(t, redisErr.Unsent)
					require.Equal(t, before, c.Dump(ctx, key).Val(), "%s, %s, %v", name, op.name, l)
				}
				require.EqualValues(t, 1, c.DBSize(ctx).Val(), "and nothing else was written")
			}
			take(t, s, "other", 1, l)
			require.NoError(t, s.Reset(ctx, "k", algorithms(7)[i:i+1]), "a reset gets rid of it")
			take(t, s, "k", 7, l)
		}
	}
}

// TestKeysAreReadable checks what redis-cli shows.
func TestKeysAreReadable(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:login:")
	hourly := FixedWindow(5, time.Hour)
	take(t, s, "203.0.113.7", 3, hourly)
	take(t, s, "203.0.113.7", 1, hourly, SlidingWindow(100, 15*time.Minute), TokenBucket(10, time.Hour, 20))
	require.Equal(t, "4", c.Get(ctx, "rl:login:{203.0.113.7}:fixed-1h").Val(), "a fixed window is a plain counter")
	keys, err := c.Keys(ctx, "rl:login:*").Result()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{
		"rl:login:{203.0.113.7}:fixed-1h", "rl:login:{203.0.113.7}:sliding-15m", "rl:login:{203.0.113.7}:bucket-1h",
	}, keys)
	// An operator may change a counter by hand.
	require.NoError(t, c.DecrBy(ctx, "rl:login:{203.0.113.7}:fixed-1h", 3).Err())
	results, _ := take(t, s, "203.0.113.7", 0, hourly)
	require.EqualValues(t, 4, results[0].Remaining)
}
