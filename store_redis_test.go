package ratelimit_test

import (
	"fmt"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
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

// hammer takes units one by one from many goroutines, and returns how many were admitted.
func hammer(t testing.TB, s Store, key string, goroutines, each int, limits ...Limit) int64 {
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			results := make([]Result, len(limits))
			for range each {
				_, err := s.Take(ctx, key, 1, limits, results)
				if err != nil {
					t.Error(err)
					return
				}
				if !slices.ContainsFunc(results, func(r Result) bool { return r.RetryAfter > 0 }) {
					admitted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return admitted.Load()
}

// slow are limits of each algorithm, for n units at once, under which no time passes while
// a test runs.
func slow(n int64) []Limit { return algorithms(n, 1000*time.Hour) }

// ring returns a client that spreads keys over servers.
func ring(t testing.TB, servers ...*redistest.Server) *redis.Ring {
	addrs := make(map[string]string)
	for i, s := range servers {
		addrs[fmt.Sprint("shard", i)] = s.Addr
	}
	c := redis.NewRing(&redis.RingOptions{Addrs: addrs})
	t.Cleanup(func() { c.Close() })
	return c
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

// TestRedisStoreOnServers runs the suite on every kind of setup, by the servers' own
// clocks. How time passes does not depend on the setup, so only one has cases that wait;
// their windows are long, so that a busy machine is no trouble, and so they wait together.
func TestRedisStoreOnServers(t *testing.T) {
	for name, client := range map[string]func(t *testing.T) redis.UniversalClient{
		"cluster": func(t *testing.T) redis.UniversalClient {
			return redistest.StartCluster(t, redistest.ClusterOptions{}).Client()
		},
		"sentinel": func(t *testing.T) redis.UniversalClient {
			return redistest.StartSentinel(t, redistest.SentinelOptions{}).Client()
		},
		"ring": func(t *testing.T) redis.UniversalClient { return ring(t, redistest.Start(t), redistest.Start(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			suite(t, client(t), func(int) bool { return true }, 0)
		})
	}
}

func TestRedisStoreOnServer(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	const groups = 8 // of cases that run one after the other
	var together sync.WaitGroup
	defer together.Wait()
	for group := range groups {
		together.Go(func() {
			t.Run(fmt.Sprint(group), func(t *testing.T) {
				suite(t, client, func(number int) bool { return number%groups == group }, 1500*time.Millisecond)
			})
		})
	}
}

// suite runs those cases whose numbers are chosen.
func suite(t *testing.T, client redis.UniversalClient, choose func(number int) bool, window time.Duration) {
	number := 0
	storetest.Run(t, func(t *testing.T, prefix string) Store {
		if prefix == "storetest:" { // the first of a case
			if number++; !choose(number) {
				t.SkipNow()
			}
		}
		return redisStore(t, client, path.Base(t.Name())+":"+prefix)
	}, storetest.RealTime(window, 150*time.Millisecond))
}
