package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// proxiedSetup is a Redis setup whose client reaches every server through a proxy. The client
// would retry often.
type proxiedSetup struct {
	client  redis.UniversalClient
	proxies []*redistest.Proxy
	server  func(key string) *redistest.Server // the server that has a key
}

// proxiedSetups starts a server alone and a cluster, with proxies in front.
func proxiedSetups(t *testing.T) map[string]proxiedSetup {
	singleServer := redistest.Start(t)
	proxy := redistest.NewProxy(t, singleServer.Addr)
	all := map[string]proxiedSetup{"standalone": {redistest.Client(t, proxy.Addr, patient), []*redistest.Proxy{proxy}, func(string) *redistest.Server { return singleServer }}}

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
	all["cluster"] = proxiedSetup{client, list, func(key string) *redistest.Server { return cluster.Owner(cluster.Slot(key)) }}
	return all
}

// connect gives a client more connections to each server than a store needs: for single
// commands and for pipelines, which go-redis may keep apart.
func connect(t *testing.T, client redis.UniversalClient, proxies []*redistest.Proxy) {
	for _, p := range proxies {
		p.Latency(10 * time.Millisecond) // so that all of them are in use at the same time
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

// TestCommandWithLostReplyIsNotSentAgain drops the replies of commands that were sent alone
// and of commands in a pipeline. The store and the client do not send them again.
func TestCommandWithLostReplyIsNotSentAgain(t *testing.T) {
	t.Parallel()
	for name, setup := range proxiedSetups(t) {
		t.Run(name, func(t *testing.T) {
			s := redisStore(t, setup.client, "rl:")
			name := func(key string) string { return "rl:{" + key + "}:fixed-1h" }
			take(t, s, "warm", 1, hour)
			var warm sync.WaitGroup
			for i := range 500 { // connect to each node, and load the scripts for one key and for many
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
			call("alone1") // each is sent at once, on a connection of its own
			call("alone2")
			arrived("alone1", "alone2")
			lose(false) // this cuts the connections
			wg.Wait()
			require.EqualValues(t, 2, failed.Load())

			// Calls that are made while every server has four batches in flight share a pipeline on the
			// next connection.
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
					_, err := s.Take(within(t, 5*time.Second), key, 1, []Limit{hour}, make([]Result, 1))
					if err == nil {
						t.Errorf("%s got a reply", key)
					}
				})
				arrived(key)
				time.Sleep(time.Millisecond) // otherwise the third batch would wait
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

// TestCancelledCallTakesNothing cancels calls before their command is sent, which changes
// nothing, and while it is in flight. The units are given back then.
func TestCancelledCallTakesNothing(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	client := redistest.Client(t, proxy.Addr)
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
	l := Must(reg.New("api", redisOptions(client, algorithms(5)...)))
	for _, call := range []func(ctx context.Context) error{
		func(ctx context.Context) error {
			_, err := s.Take(ctx, "k", 3, algorithms(5), make([]Result, 4))
			return err
		},
		func(ctx context.Context) error { _, err := l.TakeN(ctx, "k", 3); return err },
	} {
		require.NoError(t, call(ctx))
		require.NoError(t, s.Reset(ctx, "k", algorithms(5)))
		require.NoError(t, l.Reset(ctx, "k"))
		for range 10 {
			server.Hang() // until the call is cancelled
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
			// The reply was faster. The test gives the units back.
			require.NoError(t, l.Refund(t.Context(), "k", 3))
			_, err := s.Adjust(t.Context(), "k", -3, Now, algorithms(5))
			require.NoError(t, err)
		}
		require.Eventually(t, func() bool {
			d, err := l.TakeN(ctx, "k", 0)
			results, _ := take(t, s, "k", 0, algorithms(5)...)
			return err == nil && d.Remaining == 5 && !slices.ContainsFunc(results, func(r Result) bool { return r.Remaining != 5 })
		}, time.Minute, time.Millisecond)
	}
}

// TestCancelledCallDoesNotWaitForItsRefund cancels a call. It returns before its units have
// been given back.
func TestCancelledCallDoesNotWaitForItsRefund(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := redisStore(t, redistest.Client(t, proxy.Addr, patient), "rl:")
	take(t, s, "key", 1, hour)
	taken := server.Commands()["incrby"]
	proxy.Latency(2 * time.Second)
	callCtx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		o := quiet(hour)
		o.Store, o.Timeout = s, time.Minute
		_, err := Must(new(Registry).New("l", o)).Take(callCtx, "key")
		require.ErrorIs(t, err, context.Canceled)
	})
	time.Sleep(20 * time.Millisecond)
	cancel()
	wg.Wait()
	eventually(t, "the units to be taken", func() bool { return server.Commands()["incrby"] > taken })
	proxy.Latency(0)
	require.Eventually(t, func() bool {
		results, _ := take(t, s, "key", 0, hour)
		return results[0].Remaining == 4
	}, time.Minute, 5*time.Millisecond)
}

// TestDenialOfASharedCommandIsRemembered has the latest of the callers that share a command
// leave before the reply. The denial is then cached from the last caller that still waits.
func TestDenialOfASharedCommandIsRemembered(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	direct, client := server.Client(), server.Client(patient)
	before, shared, after := make(chan struct{}), make(chan struct{}, 16), make(chan struct{})
	client.AddHook(redistest.Hook(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
		switch args := fmt.Sprint(cmd.Args()...); {
		case strings.Contains(args, "{out"):
			direct.Process(ctx, cmd)
			<-before
		case strings.Contains(args, "{key}"):
			direct.Process(ctx, cmd)
			shared <- struct{}{}
			<-after
		default:
			return next(ctx, cmd)
		}
		return cmd.Err()
	}))
	l := newLimiter(t, "api", Options{Limits: []Limit{hour}, Redis: client, Timeout: time.Minute, DenyRecheck: time.Minute})
	decide(t, l, "warm", 1)
	take(t, redisStore(t, server.Client(), "rl:api:"), "key", 5, hour) // another process has used it up

	var all sync.WaitGroup
	for i := range 4 { // as many batches as may be in flight
		all.Go(func() { l.Take(ctx, fmt.Sprint("out", i)) })
		time.Sleep(5 * time.Millisecond)
	}
	for range 8 {
		all.Go(func() {
			d, err := l.Take(ctx, "key")
			require.NoError(t, err)
			require.False(t, d.Allowed)
		})
	}
	time.Sleep(5 * time.Millisecond)
	callCtx, cancel := context.WithCancel(ctx)
	left := make(chan error)
	go func() {
		_, err := l.Take(callCtx, "key")
		left <- err
	}()
	time.Sleep(5 * time.Millisecond)
	close(before)
	<-shared
	cancel()
	require.ErrorIs(t, <-left, context.Canceled)
	close(after)
	all.Wait()
	server.Kill()
	for range 5 {
		d, err := l.Take(ctx, "key")
		require.NoError(t, err)
		require.False(t, d.Allowed)
	}
}
