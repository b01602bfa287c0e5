package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// patient are a client's settings that leave it to the store to give up.
func patient(o *redis.Options) {
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = time.Hour, time.Hour, time.Hour, time.Hour
	o.MaxRetries, o.DialerRetries = 10, 1
}

// within is a context that is over soon, where nothing is to come.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(ctx, d)
	t.Cleanup(cancel)
	return ctx
}

const soon = 30 * time.Millisecond

// TestRedisHangs: 10,000 callers of a server that hangs are answered in time, by a client
// whose own timeouts are far off, and leave little behind.
func TestRedisHangs(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := redisStore(t, redisClient(t, proxy.Addr, patient), "rl:")
	take(t, s, "k", 1, hour)
	before := runtime.NumGoroutine()
	server.Hang()
	var unsent, unknown atomic.Int64
	var wg sync.WaitGroup
	for i := range 10_000 {
		wg.Go(func() {
			_, err := s.Take(within(t, soon), fmt.Sprint(i), 1, []Limit{hour}, make([]Result, 1))
			var e *RedisError
			switch {
			case !errors.Is(err, context.DeadlineExceeded):
				t.Errorf("%v", err)
			case !errors.As(err, &e), e.Unsent: // the first if it was over before it began
				unsent.Add(1)
			default:
				unknown.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 10_000, unsent.Load()+unknown.Load())
	const flights = 14 + 2 // and what is asked beside them
	require.LessOrEqual(t, proxy.Open(), flights)
	require.LessOrEqual(t, runtime.NumGoroutine()-before, 8*flights, "each has its goroutine, and the proxy's")

	// All that was sent is carried out once the server goes on, and nothing else is.
	server.Continue()
	results, _ := take(t, s, "k", 1, hour)
	require.EqualValues(t, 3, results[0].Remaining)
	require.NoError(t, s.Close())
	server.Do("DEL", "rl:place")
	require.LessOrEqual(t, server.Do("DBSIZE").(int64), 1+unknown.Load())
}

// TestRedisLimiterHangs: a limiter's callers are answered in time whatever it is that
// hangs, also when they make their calls themselves.
func TestRedisLimiterHangs(t *testing.T) {
	for _, stage := range []string{"before the first call", "in mid-traffic", "reconnecting"} {
		for _, enabled := range []bool{false, true} {
			t.Run(fmt.Sprint(stage, enabled), func(t *testing.T) {
				server := redistest.Start(t)
				proxy := redistest.NewProxy(t, server.Addr)
				release := make(chan struct{})
				var dialling atomic.Bool // does not come to an end
				client := redisClient(t, proxy.Addr, patient, func(o *redis.Options) {
					o.ContextTimeoutEnabled = enabled
					o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
						if dialling.Load() {
							select {
							case <-release:
							case <-ctx.Done():
							}
						}
						return new(net.Dialer).DialContext(ctx, network, addr)
					}
				})
				var reg Registry
				opts := withRedis(client, hour)
				opts.Timeout = soon
				l := Must(reg.New("api", opts))
				t.Cleanup(func() {
					close(release)
					server.Continue()
					proxy.Blackhole(false)
					l.Close() // waits for what is under way
				})
				if stage != "before the first call" {
					for range 3 {
						require.Eventually(t, func() bool { _, err := l.Take(ctx, "k"); return err == nil }, time.Minute, time.Millisecond)
					}
				}
				switch stage {
				case "in mid-traffic":
					server.Hang()
				case "reconnecting":
					dialling.Store(true)
					proxy.Cut()
				default:
					dialling.Store(true)
				}
				for range 3 { // an hour each if it is not answered in time
					_, err := l.Take(ctx, "k")
					require.Error(t, err)
				}
			})
		}
	}
}

// TestRedisSlowHandshake: the timeout is one for all that a call has to wait for.
func TestRedisSlowHandshake(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	var reg Registry
	opts := withRedis(redisClient(t, proxy.Addr, patient), hour)
	opts.Timeout = 100 * time.Millisecond
	l := Must(reg.New("api", opts))
	defer l.Close()
	require.Eventually(t, func() bool { _, err := l.Take(ctx, "k"); return err == nil }, time.Minute, time.Millisecond)
	proxy.Latency(40 * time.Millisecond)
	proxy.Cut()
	start := time.Now()
	_, err := l.Take(ctx, "k")
	require.Error(t, err)
	require.Less(t, time.Since(start), 10*time.Second) // for a hang
}

// faulty are clients whose every connection goes through a proxy. They would retry often.
func faulty(t *testing.T) map[string]struct {
	client  redis.UniversalClient
	proxies []*redistest.Proxy
	server  func(key string) *redistest.Server // that has a key
} {
	type setup = struct {
		client  redis.UniversalClient
		proxies []*redistest.Proxy
		server  func(key string) *redistest.Server
	}
	alone := redistest.Start(t)
	proxy := redistest.NewProxy(t, alone.Addr)
	all := map[string]setup{"standalone": {redisClient(t, proxy.Addr, patient), []*redistest.Proxy{proxy}, func(string) *redistest.Server { return alone }}}

	cluster := redistest.StartCluster(t, redistest.ClusterOptions{})
	proxies := make(map[string]*redistest.Proxy)
	var list []*redistest.Proxy
	for _, addr := range cluster.Addrs() {
		proxies[addr] = redistest.NewProxy(t, addr)
		list = append(list, proxies[addr])
	}
	client := cluster.Client(func(o *redis.ClusterOptions) {
		o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = time.Hour, time.Hour, time.Hour, time.Hour
		o.MaxRetries, o.MaxRedirects, o.DialerRetries = 10, 10, 1
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, proxies[addr].Addr)
		}
	})
	all["cluster"] = setup{client, list, func(key string) *redistest.Server { return cluster.Owner(cluster.Slot(key)) }}
	return all
}

// TestRedisLostReply: a command whose reply is lost is never sent again, whether it went
// alone or with others, and whatever the client would do on its own account.
func TestRedisLostReply(t *testing.T) {
	t.Parallel()
	for name, setup := range faulty(t) {
		t.Run(name, func(t *testing.T) {
			s := redisStore(t, setup.client, "rl:")
			name := func(key string) string { return "rl:{" + key + "}:fixed-1h" }
			take(t, s, "warm", 1, hour)
			var warm sync.WaitGroup
			for i := range 500 { // a connection to each node, and its scripts: those of one key and of many
				warm.Go(func() { take(t, s, fmt.Sprint("warm", i%20), 0, hour) })
			}
			warm.Wait()
			lose := func(on bool) {
				for _, p := range setup.proxies {
					p.LoseReplies(on)
				}
			}
			arrived := func(keys ...string) {
				t.Helper()
				for _, key := range keys {
					require.Eventually(t, func() bool { return setup.server(name(key)).Do("GET", name(key)) != nil }, time.Minute, time.Millisecond, key)
				}
			}
			var wg sync.WaitGroup
			var failed atomic.Int64
			call := func(key string) {
				wg.Go(func() {
					_, err := s.Take(ctx, key, 1, []Limit{hour}, make([]Result, 1))
					var e *RedisError
					if !errors.As(err, &e) || e.Unsent {
						t.Errorf("%s: %v", key, err)
						return
					}
					failed.Add(1)
				})
			}
			connect(t, setup.client, setup.proxies)
			lose(true)
			call("alone1") // fly at once
			call("alone2")
			arrived("alone1", "alone2")
			lose(false) // which cuts them
			wg.Wait()
			require.EqualValues(t, 2, failed.Load())

			// Those who come while all are out, to each server, share a pipeline on the next connection.
			connect(t, setup.client, setup.proxies)
			lose(true)
			var out []string
			to := make(map[*redistest.Server]int)
			for i := 0; len(out) < 4*len(setup.proxies); i++ {
				key := fmt.Sprint("out", i)
				if server := setup.server(name(key)); to[server] < 4 {
					to[server]++
					out = append(out, key)
				}
			}
			for _, key := range out {
				wg.Go(func() {
					_, err := s.Take(within(t, time.Second), key, 1, []Limit{hour}, make([]Result, 1))
					if err == nil {
						t.Errorf("%s was told", key)
					}
				})
				arrived(key)
				time.Sleep(time.Millisecond) // before which the third would not set off
			}
			var together []string
			for i := range 20 {
				together = append(together, fmt.Sprint("together", i))
				call(together[i])
			}
			arrived(together...)
			lose(false)
			wg.Wait()
			require.EqualValues(t, 22, failed.Load())
			for _, key := range slices.Concat(together, out, []string{"alone1", "alone2"}) {
				results, _ := take(t, s, key, 0, hour)
				require.EqualValues(t, 4, results[0].Remaining, key)
			}
		})
	}
}

// connect gives a client more connections to each server than a store needs by itself: for
// single commands, and for pipelines, which go-redis may keep apart.
func connect(t *testing.T, client redis.UniversalClient, proxies []*redistest.Proxy) {
	for _, p := range proxies {
		p.Latency(10 * time.Millisecond) // so that all of them are in use at once
		defer p.Latency(0)
	}
	ping := func(ctx context.Context, c *redis.Client) error {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				pipe := c.Pipeline()
				pipe.Ping(ctx)
				_, err := pipe.Exec(ctx)
				if err = errors.Join(err, c.Ping(ctx).Err()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		return nil
	}
	switch c := client.(type) {
	case *redis.Client:
		ping(ctx, c)
	case *redis.ClusterClient:
		require.NoError(t, c.ForEachMaster(ctx, ping))
	}
}

// TestRedisCancelled: a caller who has gone before anything is sent changes nothing, and one
// who goes while his command is on its way has his units given back.
func TestRedisCancelled(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	client := redisClient(t, proxy.Addr)
	s := redisStore(t, client, "rl:")
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, err := s.Take(gone, "k", 1, []Limit{hour}, make([]Result, 1))
	require.ErrorIs(t, err, context.Canceled)
	_, err = s.Adjust(gone, "k", 1, Now, []Limit{hour})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, s.Reset(gone, "k", []Limit{hour}), context.Canceled)
	require.ErrorIs(t, s.Reset(gone, "k", nil), context.Canceled)
	require.Zero(t, proxy.Accepted(), "nothing was sent")

	var reg Registry
	defer reg.Close()
	l := Must(reg.New("api", withRedis(client, slow(5)...)))
	for _, call := range []func(ctx context.Context) error{
		func(ctx context.Context) error {
			_, err := s.Take(ctx, "k", 3, slow(5), make([]Result, 3))
			return err
		},
		func(ctx context.Context) error { _, err := l.TakeN(ctx, "k", 3); return err },
	} {
		require.NoError(t, call(ctx))
		require.NoError(t, s.Reset(ctx, "k", slow(5)))
		require.NoError(t, l.Reset(ctx, "k"))
		for range 10 {
			server.Hang() // until the caller has gone
			ctx, cancel := context.WithCancel(ctx)
			done := make(chan error)
			go func() { done <- call(ctx) }()
			time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
			cancel()
			server.Continue()
			if err := <-done; err != nil {
				require.ErrorIs(t, err, context.Canceled)
				continue
			}
			// The reply came first, and the units are the caller's to give back.
			require.NoError(t, l.Refund(t.Context(), "k", 3))
			_, err := s.Adjust(t.Context(), "k", -3, Now, slow(5))
			require.NoError(t, err)
		}
		require.Eventually(t, func() bool {
			d, err := l.TakeN(ctx, "k", 0)
			results, _ := take(t, s, "k", 0, slow(5)...)
			return err == nil && d.Remaining == 5 && results[0].Remaining == 5 && results[1].Remaining == 5 && results[2].Remaining == 5
		}, time.Minute, time.Millisecond)
	}
}

// TestRedisDeadline: an error tells whether the command may have been carried out. If it
// may, its units stay taken: who has given up on a store may have admitted the request.
func TestRedisDeadline(t *testing.T) {
	server := redistest.Start(t)
	s := redisStore(t, server.Client(patient), "rl:")
	take(t, s, "warm", 1, hour)
	server.Hang()
	fails := func(key string) *RedisError {
		_, err := s.Take(within(t, soon), key, 1, []Limit{hour}, make([]Result, 1))
		var e *RedisError
		require.ErrorAs(t, err, &e)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, `RedisStore (prefix "rl:"): timed out`)
		return e
	}
	const flights = 14
	for i := range flights {
		require.False(t, fails(fmt.Sprint("sent", i)).Unsent)
	}
	for i := range 5 {
		require.True(t, fails(fmt.Sprint("unsent", i)).Unsent)
	}
	server.Continue()
	require.NoError(t, s.Close())
	require.EqualValues(t, 1+flights, server.Do("DBSIZE"))
	s = redisStore(t, server.Client(), "rl:")
	results, _ := take(t, s, "sent7", 0, hour)
	require.EqualValues(t, 4, results[0].Remaining)
}

// TestRedisDown: what is refused has changed nothing, and says so.
func TestRedisDown(t *testing.T) {
	server := redistest.Start(t)
	once := func(o *redis.Options) { o.DialerRetries, o.MaxRetries = 1, -1 }
	s := redisStore(t, server.Client(once), "rl:")
	take(t, s, "k", 1, hour)
	server.Kill()
	var e *RedisError
	require.Eventually(t, func() bool { // the first may find the old connection
		require.ErrorAs(t, takeErr(s, "k", 1, []Limit{hour}), &e)
		return e.Unsent
	}, time.Minute, time.Millisecond)
	require.ErrorContains(t, e, "connection refused")
	server.Restart()
	require.Eventually(t, func() bool { return takeErr(s, "k", 1, []Limit{hour}) == nil }, time.Minute, 10*time.Millisecond)

	server.RestartLoading(3 * time.Second)
	require.Eventually(t, func() bool {
		err := takeErr(s, "k", 1, []Limit{hour})
		require.ErrorAs(t, err, &e)
		return e.Unsent
	}, time.Minute, time.Millisecond)
	require.ErrorContains(t, e, "the server is reading its data")
}

// TestRedisMovingSlot: several limits of a key that a slot's migration tears apart are an
// error for so long, since Redis runs no script on half of its keys; never a wrong count.
func TestRedisMovingSlot(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	s := redisStore(t, c.Client(), "rl:")
	limits := slow(5)
	take(t, s, "k", 2, limits...)
	slot := c.Slot("rl:{k}:any")
	to := c.Nodes[0]
	if c.Owner(slot) == to {
		to = c.Nodes[1]
	}
	m := c.BeginMigration(slot, to)
	take(t, s, "k", 1, limits...)
	m.MoveKeys(1)
	var e *RedisError
	require.ErrorAs(t, takeErr(s, "k", 1, limits), &e)
	require.True(t, e.Unsent)
	require.ErrorContains(t, e, "TRYAGAIN")
	for m.MoveKeys(1) > 0 {
	}
	take(t, s, "k", 1, limits...)
	m.Finish()
	results, _ := take(t, s, "k", 0, limits...)
	for _, r := range results {
		require.EqualValues(t, 1, r.Remaining)
	}
}

// TestRedisClose: a store that is closed in mid-traffic leaves nothing under way, and never
// closes the client.
func TestRedisClose(t *testing.T) {
	client := redistest.Start(t).Client()
	for range 20 {
		var reg Registry
		l := Must(reg.New("api", withRedis(client, FixedWindow(1_000_000, time.Hour))))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					if _, err := l.Take(ctx, "k"); err != nil {
						if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrStoreClosed) {
							t.Error(err)
						}
						return
					}
				}
			})
		}
		l.Close()
		wg.Wait()
	}
	require.NoError(t, client.Ping(ctx).Err())
	s, err := NewRedisStore(client, "rl:")
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, takeErr(s, "k", 1, []Limit{hour}), ErrStoreClosed)
	require.ErrorIs(t, s.Reset(ctx, "k", []Limit{hour}), ErrStoreClosed)
}
