package ratelimit_test

import (
	"bytes"
	"context"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// mini is a server in this process whose clock the test sets.
type mini struct {
	*miniredis.Miniredis
	now time.Time
}

// advance moves the clock forward, to a whole millisecond. Redis rounds other
// times to live in another way.
func (m *mini) advance(d time.Duration) {
	const ms = time.Millisecond
	m.now = m.now.Add((d + ms - 1) / ms * ms)
	m.SetTime(m.now)
}

// client returns a client of the server.
func (m *mini) client(t testing.TB) *redis.Client { return redisClient(t, m.Addr()) }

// needMiniredis skips the test on a 32-bit machine. It must be called outside of a
// bubble of testing/synctest, or the test is reported as passed.
func needMiniredis(t testing.TB) {
	if bits.UintSize < 64 {
		t.Skip("miniredis keeps integers in an int, and the scripts have larger ones; internal/redisscript and internal/redisstore use redis-server")
	}
}

// inBubbles runs a test on miniredis some times, in a bubble each, with random numbers of its
// own. The name of each run has its seed.
func inBubbles(t *testing.T, times int, stream uint64, test func(t *testing.T, r *rand.Rand)) {
	needMiniredis(t)
	for range times {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, rand.New(rand.NewPCG(seed, stream))) })
		})
	}
}

// newMini starts a server that is closed when the test ends.
func newMini(t testing.TB) *mini {
	needMiniredis(t)
	m := &mini{miniredis.RunT(t), time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)}
	m.SetTime(m.now)
	m.ClockTTL(true)
	return m
}

// redisClient returns a client that is closed when the test ends.
func redisClient(t testing.TB, addr string, opts ...func(*redis.Options)) *redis.Client {
	o := &redis.Options{Addr: addr}
	for _, opt := range opts {
		opt(o)
	}
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

// unreachableClient returns a client whose server does not exist.
func unreachableClient(t testing.TB) *redis.Client {
	return redisClient(t, "127.0.0.1:1", func(o *redis.Options) { o.MaxRetries, o.DialerRetries = -1, 1 })
}

// redisStore makes a store that is closed when the test ends.
func redisStore(t testing.TB, client redis.UniversalClient, prefix string, opts ...RedisOption) *RedisStore {
	s, err := NewRedisStore(client, prefix, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// withRedis returns options for a limiter that asks Redis about each request,
// waits as long as it takes, and returns Redis's errors.
func withRedis(client redis.UniversalClient, limits ...Limit) Options {
	o := quiet(limits...)
	o.Redis, o.Timeout, o.OnFailure, o.DenyRecheck = client, time.Minute, FailClosed, 1
	return o
}

// slack allows for the time that passes between two commands.
const slack = 10 * time.Second

// requireTTL checks that every key under the prefix has a time to live, and
// that it is not longer than the time until the limit is whole again, rounded
// up to a millisecond.
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

// windowOf returns a limit's window as it is written in keys.
func windowOf(l Limit) string {
	_, rest, _ := strings.Cut(l.String(), "/")
	window, _, _ := strings.Cut(rest, " ")
	return window
}

// piped returns a client of a server in this bubble. Keys expire by the
// bubble's clock.
func piped(t *testing.T, m *miniredis.Miniredis) *redis.Client {
	m.ClockTTL(true)
	c := pipe(t, m)
	t.Cleanup(m.Close)
	return c
}

// pipe returns a client that works in a bubble of testing/synctest.
func pipe(t *testing.T, m *miniredis.Miniredis) *redis.Client {
	c := redis.NewClient(&redis.Options{
		Addr:                     "127.0.0.1:1",                                                     // nothing to look up
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}, // no ticker
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			conn, err := m.Dial()
			if err != nil {
				return nil, err
			}
			return newBuffered(conn), nil
		},
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// A buffered connection does not make a writer wait until the other side reads, as a
// net.Pipe does: a server that answers the first command of a pipeline before it reads
// the last one would wait for the client, and the client for the server.
type buffered struct {
	net.Conn
	writes chan []byte
	closed chan struct{}
	once   sync.Once
}

func newBuffered(conn net.Conn) *buffered {
	b := &buffered{Conn: conn, writes: make(chan []byte, 1000), closed: make(chan struct{})}
	go func() {
		for {
			select {
			case p := <-b.writes:
				if _, err := conn.Write(p); err != nil {
					return
				}
			case <-b.closed:
				return
			}
		}
	}()
	return b
}

func (b *buffered) Write(p []byte) (int, error) {
	select {
	case <-b.closed:
		return 0, net.ErrClosed
	case b.writes <- bytes.Clone(p):
		return len(p), nil
	}
}

func (b *buffered) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Conn.Close()
}

func (b *buffered) SetDeadline(t time.Time) error    { return b.Conn.SetReadDeadline(t) }
func (b *buffered) SetWriteDeadline(time.Time) error { return nil }

// bubble runs a test in a bubble, with a server in it and a client of that
// server.
func bubble(t *testing.T, test func(t *testing.T, m *miniredis.Miniredis, c *redis.Client)) {
	needMiniredis(t)
	synctest.Test(t, func(t *testing.T) {
		m := miniredis.NewMiniRedis()
		test(t, m, piped(t, m))
	})
}
