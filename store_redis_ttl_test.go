package ratelimit_test

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

// requireTTL asks that every key under the prefix has a time to live that is no longer
// than until it is whole again, rounded up to a millisecond.
func requireTTL(t *testing.T, c redis.UniversalClient, s Store, key string, limits ...Limit) {
	t.Helper()
	found, err := c.Keys(ctx, s.Prefix()+"*").Result()
	require.NoError(t, err)
	for _, k := range found {
		pttl, err := c.PTTL(ctx, k).Result()
		require.NoError(t, err)
		if pttl == -2 { // gone since
			continue
		}
		require.Positive(t, pttl, k)
		for _, l := range limits {
			if !strings.HasSuffix(k, ":"+l.Algorithm()+"-"+windowOf(l)) {
				continue
			}
			// A longer one than this cannot be: the look comes after it.
			results, _ := take(t, s, key, 0, l)
			require.LessOrEqual(t, pttl, results[0].ResetAfter+time.Millisecond+slack, k)
		}
	}
}

// slack is for the time that passes between two commands.
const slack = 10 * time.Second

func windowOf(l Limit) string {
	_, rest, _ := strings.Cut(l.String(), "/")
	window, _, _ := strings.Cut(rest, " ")
	return window
}

// every are the operations on a store.
var every = []struct {
	name string
	do   func(s Store, key string, limits []Limit) error
}{
	{"take", func(s Store, key string, limits []Limit) error { return takeErr(s, key, 1, limits) }},
	{"take all", func(s Store, key string, limits []Limit) error { return takeErr(s, key, limits[0].Burst(), limits) }},
	{"denied", func(s Store, key string, limits []Limit) error { return takeErr(s, key, limits[0].Burst()+1, limits) }},
	{"look", func(s Store, key string, limits []Limit) error { return takeErr(s, key, 0, limits) }},
	{"refund", func(s Store, key string, limits []Limit) error {
		_, err := s.Adjust(ctx, key, -1, Now, limits)
		return err
	}},
	{"charge", func(s Store, key string, limits []Limit) error {
		_, err := s.Adjust(ctx, key, 2, Now, limits)
		return err
	}},
	{"refund all", func(s Store, key string, limits []Limit) error {
		_, err := s.Adjust(ctx, key, -limits[0].Burst(), Now, limits)
		return err
	}},
	{"reset", func(s Store, key string, limits []Limit) error { return s.Reset(ctx, key, limits) }},
}

func takeErr(s Store, key string, n int64, limits []Limit) error {
	_, err := s.Take(ctx, key, n, limits, make([]Result, len(limits)))
	return err
}

// TestRedisTTL: after every operation, on a key in every state, every key has one.
func TestRedisTTL(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:ttl:")
	for _, limits := range [][]Limit{slow(7)[:1], slow(7)[1:2], slow(7)[2:], slow(7), {FixedWindow(7, time.Hour), FixedWindow(7, time.Minute)}} {
		for _, first := range every {
			for _, second := range every {
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

// TestRedisTTLIsExact: on a clock that stands still the time to live is what is left until
// the limit is whole, rounded up to a millisecond: no longer and no shorter.
func TestRedisTTLIsExact(t *testing.T) {
	m := newMini(t)
	s := redisStore(t, m.client(t), "rl:")
	for _, l := range []Limit{
		FixedWindow(7, time.Hour), SlidingWindow(7, time.Hour), TokenBucket(7, time.Hour, 3), TokenBucket(999, time.Second, 5),
		SlidingWindow(999, 7*time.Millisecond), FixedWindow(1, time.Millisecond), FixedWindow(2, 1500*time.Microsecond),
	} {
		for i, steps := range [][]int64{{1}, {2, 1}, {2, -1}, {2, 0}, {3, 3, 3}} {
			key := fmt.Sprint(i)
			for _, n := range steps {
				if n < 0 {
					_, err := s.Adjust(ctx, key, n, Now, []Limit{l})
					require.NoError(t, err)
				} else {
					take(t, s, key, min(n, l.Burst()), l)
				}
				m.advance(3 * time.Millisecond)
				name := "rl:{" + key + "}:" + l.Algorithm() + "-" + windowOf(l)
				if results, _ := take(t, s, key, 0, l); results[0].ResetAfter == 0 {
					require.False(t, m.Exists(name), "%v %v", l, steps)
				} else {
					const ms = time.Millisecond
					require.Equal(t, (results[0].ResetAfter+ms-1)/ms*ms, m.TTL(name), "%v %v", l, steps)
				}
			}
		}
	}
}

// TestRedisTTLRepair: a key that is found without one gets one, whoever comes upon it, and
// what it counts is believed meanwhile.
func TestRedisTTLRepair(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:")
	for _, l := range slow(7) {
		for _, also := range [][]Limit{{l}, {l, FixedWindow(7, time.Minute)}} {
			for _, op := range every {
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

// TestRedisForeignValues: what is no counter is an error that names the key, and stays.
func TestRedisForeignValues(t *testing.T) {
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
		for i, l := range slow(7) {
			require.NoError(t, c.FlushDB(ctx).Err())
			key := "rl:login:{k}:" + l.Algorithm() + "-" + windowOf(l)
			require.NoError(t, put(key))
			before := c.Dump(ctx, key).Val()
			for _, limits := range [][]Limit{{l}, {FixedWindow(5, time.Minute), l}} {
				for _, op := range every {
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
			require.NoError(t, s.Reset(ctx, "k", slow(7)[i:i+1]), "a reset gets rid of it")
			take(t, s, "k", 7, l)
		}
	}
}

// TestRedisKeys: what is to be seen in redis-cli.
func TestRedisKeys(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:login:")
	hourly := FixedWindow(5, time.Hour)
	take(t, s, "203.0.113.7", 3, hourly)
	take(t, s, "203.0.113.7", 1, hourly, SlidingWindow(100, 15*time.Minute), TokenBucket(10, time.Second, 20))
	require.Equal(t, "4", c.Get(ctx, "rl:login:{203.0.113.7}:fixed-1h").Val(), "a fixed window is a plain counter")
	keys, err := c.Keys(ctx, "rl:login:*").Result()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{
		"rl:login:{203.0.113.7}:fixed-1h", "rl:login:{203.0.113.7}:sliding-15m", "rl:login:{203.0.113.7}:bucket-1s",
	}, keys)
	// A counter that an operator lowers or raises by hand is believed.
	require.NoError(t, c.DecrBy(ctx, "rl:login:{203.0.113.7}:fixed-1h", 3).Err())
	results, _ := take(t, s, "203.0.113.7", 0, hourly)
	require.EqualValues(t, 4, results[0].Remaining)
}
