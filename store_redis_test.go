package ratelimit_test

import (
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

func (m *mini) client(t testing.TB) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: m.Addr()})
	t.Cleanup(func() { c.Close() })
	return c
}

func redisStore(t testing.TB, client redis.UniversalClient, prefix string, opts ...RedisOption) *RedisStore {
	s, err := NewRedisStore(client, prefix, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
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

func TestRedisStoreOnServer(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	storetest.Run(t, func(t *testing.T, prefix string) Store {
		require.NoError(t, client.FlushAll(ctx).Err())
		return redisStore(t, client, prefix)
	}, storetest.RealTime(300*time.Millisecond, 25*time.Millisecond))
}
