package ratelimit_test

import (
	"slices"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/storetest"
)

// mini is a server in this process whose clock the test sets.
type mini struct {
	*miniredis.Miniredis
	now time.Time
}

func newMini(t testing.TB) *mini {
	m := &mini{miniredis.RunT(t), time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)}
	m.SetTime(m.now)
	m.ClockTTL(true)
	return m
}

// advance moves the clock on, to a whole millisecond: a time to live that is none is
// rounded otherwise than by Redis.
func (m *mini) advance(d time.Duration) {
	const ms = time.Millisecond
	m.now = m.now.Add((d + ms - 1) / ms * ms)
	m.SetTime(m.now)
}

func (m *mini) client(t testing.TB) *redis.Client { return redisClient(t, m.Addr()) }

func redisClient(t testing.TB, addr string, opts ...func(*redis.Options)) *redis.Client {
	o := &redis.Options{Addr: addr}
	for _, opt := range opts {
		opt(o)
	}
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

func redisStore(t testing.TB, client redis.UniversalClient, prefix string, opts ...RedisOption) *RedisStore {
	s, err := NewRedisStore(client, prefix, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// withRedis are options for a limiter that asks the server about each request, has all
// the time it needs, and returns the server's errors.
func withRedis(client redis.UniversalClient, limits ...Limit) Options {
	o := quiet(limits...)
	o.Redis, o.Timeout, o.OnFailure, o.DenyRecheck = client, time.Minute, FailClosed, 1
	return o
}

// take takes n units, and returns the results and whether they were admitted.
func take(t testing.TB, s Store, key string, n int64, limits ...Limit) ([]Result, bool) {
	t.Helper()
	results := make([]Result, len(limits))
	_, err := s.Take(ctx, key, n, limits, results)
	require.NoError(t, err)
	return results, !slices.ContainsFunc(results, func(r Result) bool { return r.RetryAfter > 0 })
}

func TestRedisStoreOnMiniredis(t *testing.T) {
	var m *mini
	storetest.Run(t, func(t *testing.T, prefix string) Store {
		if prefix == "storetest:" { // the first of a case
			m = newMini(t)
		}
		return redisStore(t, m.client(t), prefix)
	}, storetest.Clock(func(d time.Duration) { m.advance(d) }, 2*time.Millisecond))
}
