package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// soon is a timeout for calls that hang.
const soon = 30 * time.Millisecond

// TestCallersOfAHungServerAreAnsweredInTime makes 10,000 calls to a server that hangs, with a
// client whose own timeouts are an hour. All are answered by their deadlines, and few
// connections and goroutines are left.
func TestCallersOfAHungServerAreAnsweredInTime(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	s := redisStore(t, redistest.Client(t, proxy.Addr, patient), "rl:")
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
			case !errors.As(err, &e), e.Unsent: // no RedisError if the deadline had passed before the call
				unsent.Add(1)
			default:
				unknown.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 10_000, unsent.Load()+unknown.Load())
	const batches = 14 + 2 // in flight, and the store's own calls
	eventually(t, "few connections", func() bool { return proxy.Open() <= batches })
	eventually(t, "few goroutines: each has its own and those of the proxy", func() bool { return runtime.NumGoroutine()-before <= 8*batches })

	// When the server continues, it executes exactly what was sent.
	server.Continue()
	results, _ := take(t, s, "k", 1, hour)
	require.EqualValues(t, 3, results[0].Remaining)
	require.NoError(t, s.Close())
	server.Do("DEL", "rl:place")
	require.LessOrEqual(t, server.Do("DBSIZE").(int64), 1+unknown.Load())
}

// TestTimeoutBoundsEveryStage lets a limiter's call hang while it dials the first connection,
// while it waits for a reply, and while it reconnects.
func TestTimeoutBoundsEveryStage(t *testing.T) {
	for _, stage := range []string{"before the first call", "in mid-traffic", "reconnecting"} {
		for _, enabled := range []bool{false, true} {
			t.Run(fmt.Sprint(stage, enabled), func(t *testing.T) {
				server := redistest.Start(t)
				proxy := redistest.NewProxy(t, server.Addr)
				release := make(chan struct{})
				var mu sync.Mutex // held by dials that do not hang
				dialsHang := false
				hangDials := func() {
					mu.Lock()
					defer mu.Unlock()
					dialsHang = true
				}
				client := redistest.Client(t, proxy.Addr, patient, func(o *redis.Options) {
					o.ContextTimeoutEnabled = enabled
					o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
						mu.Lock()
						if !dialsHang {
							defer mu.Unlock()
							return new(net.Dialer).DialContext(ctx, network, addr)
						}
						mu.Unlock()
						select {
						case <-release:
						case <-ctx.Done():
						}
						return new(net.Dialer).DialContext(ctx, network, addr)
					}
				})
				var reg Registry
				opts := redisOptions(client, hour)
				opts.Timeout = soon
				l := Must(reg.New("api", opts))
				t.Cleanup(func() {
					close(release)
					server.Continue()
					proxy.Blackhole(false)
					l.Close() // waits for calls that are under way
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
					hangDials()
					proxy.Refuse(true) // this also resets connections that it has not accepted yet
				default:
					hangDials()
				}
				for range 3 { // without the timeout each takes an hour
					_, err := l.Take(ctx, "k")
					require.Error(t, err)
				}
			})
		}
	}
}

// TestTimeoutIncludesTheHandshake checks that a call has one timeout for everything that it
// waits for.
func TestTimeoutIncludesTheHandshake(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	var reg Registry
	opts := redisOptions(redistest.Client(t, proxy.Addr, patient), hour)
	opts.Timeout = 100 * time.Millisecond
	l := Must(reg.New("api", opts))
	defer l.Close()
	require.Eventually(t, func() bool { _, err := l.Take(ctx, "k"); return err == nil }, time.Minute, time.Millisecond)
	proxy.Latency(40 * time.Millisecond)
	proxy.Cut()
	start := time.Now()
	_, err := l.Take(ctx, "k")
	require.Error(t, err)
	require.Less(t, time.Since(start), 10*time.Second) // a hang takes an hour
}

// TestTimeoutSaysWhetherCommandWasSent checks RedisError.Unsent. The units of a command that
// was sent stay taken, because the caller may have admitted the request without Redis.
func TestTimeoutSaysWhetherCommandWasSent(t *testing.T) {
	server := redistest.Start(t)
	s := redisStore(t, server.Client(patient), "rl:")
	take(t, s, "warm", 1, hour)
	server.Hang()
	unsent := func(key string) bool {
		_, err := s.Take(within(t, soon), key, 1, []Limit{hour}, make([]Result, 1))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var e *RedisError
		if !errors.As(err, &e) { // its time had ended before the call
			return true
		}
		require.ErrorContains(t, err, `RedisStore (prefix "rl:"): timed out`)
		return e.Unsent
	}
	const batches = 14 // that can be in flight
	for i := range batches {
		eventually(t, "a command to be sent in time", func() bool { return !unsent(fmt.Sprint("sent", i)) })
	}
	for i := range 5 {
		require.True(t, unsent(fmt.Sprint("unsent", i)))
	}
	server.Continue()
	require.NoError(t, s.Close())
	require.EqualValues(t, 1+batches, server.Do("DBSIZE"))
	s = redisStore(t, server.Client(), "rl:")
	results, _ := take(t, s, "sent7", 0, hour)
	require.EqualValues(t, 4, results[0].Remaining)
}

// TestLongestTimeoutDoesNotOverflow checks that a call with the longest timeout succeeds.
func TestLongestTimeoutDoesNotOverflow(t *testing.T) {
	o := quiet(hour)
	o.Redis, o.Timeout = redistest.Start(t).Client(), math.MaxInt64
	l := Must(new(Registry).New("patient", o))
	defer l.Close()
	for range 3 {
		d, err := l.Take(ctx, "key")
		require.NoError(t, err)
		require.Equal(t, SourceStore, d.Source)
	}
}

// TestCallersWithShorterDeadlinesAreNoStoreFailures has callers whose own deadlines are shorter
// than the limiter's timeout. When they expire, that is no failure of the store.
func TestCallersWithShorterDeadlinesAreNoStoreFailures(t *testing.T) {
	t.Parallel()
	for _, callers := range []int{1, 8} {
		for _, honoursDeadline := range []bool{false, true} {
			server := redistest.Start(t)
			client := redistest.Client(t, server.Addr, patient, func(o *redis.Options) { o.ContextTimeoutEnabled = honoursDeadline })
			l := newLimiter(t, "api", Options{Limits: []Limit{hour}, Redis: client, Timeout: time.Minute})
			decide(t, l, "first", 1)
			server.Hang()
			var all sync.WaitGroup
			for range callers {
				all.Go(func() {
					for i := range 20 {
						_, err := l.Take(within(t, 2*time.Millisecond), fmt.Sprint("key", i))
						if !errors.Is(err, context.DeadlineExceeded) {
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
			server.Continue()
			require.Zero(t, l.Stats().Remote.Failures)
		}
	}
}
