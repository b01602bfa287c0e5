package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// TestHugeCostAndLease: a lease is not added to a cost that is as large as there is room for.
func TestHugeCostAndLease(t *testing.T) {
	client := redistest.Start(t).Client()
	for _, limit := range []Limit{FixedWindow(1000, time.Hour), SlidingWindow(1000, time.Hour), TokenBucket(1, time.Hour, 1000)} {
		o := quiet(limit)
		o.Redis, o.Lease, o.Timeout = client, 200*time.Millisecond, time.Minute
		l := Must(new(Registry).New("huge "+limit.Algorithm(), o))
		defer l.Close()
		admitted := 0
		for i := range 5000 {
			if i%20 == 10 {
				d, err := l.TakeN(ctx, "key", math.MaxInt64-int64(i))
				require.NoError(t, err)
				require.False(t, d.Allowed)
				require.Equal(t, Never, d.RetryAfter)
			}
			if d, err := l.Take(ctx, "key"); err == nil && d.Allowed {
				admitted++
			}
		}
		require.Equal(t, 1000, admitted, limit)
	}
}

// TestNothingToGiveBack: of a unit that the store may not have counted none is given
// back, or it would be somebody else's.
func TestNothingToGiveBack(t *testing.T) {
	count := func(_ *http.Request, status int) bool { return status >= 400 }
	remotely(t, Options{Limits: []Limit{hour}, Key: StaticKey("key"), Count: count}, func(t *testing.T, far *farStore, l *Limiter) {
		status, admitted := http.StatusUnauthorized, 0
		handler := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			far.set(up)
			w.WriteHeader(status)
		}))
		serve := func() int {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			return w.Code
		}
		for range 20 {
			status = http.StatusUnauthorized
			for range 4 {
				if serve() == status {
					admitted++
				}
			}
			status = http.StatusNoContent
			for range 4 {
				far.set(silent)
				serve()
			}
			far.set(up)
		}
		require.LessOrEqual(t, admitted, 5)
	})
}

// TestReloadInAnOutage: the next generation knows what the last one knew of each key, and
// tells the store what that owes.
func TestReloadInAnOutage(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(func(o *redis.Options) { o.DialerRetries = 1 })
	var r Registry
	build := func(next *Registry) error {
		o := quiet(hour)
		o.Redis = client
		_, err := next.New("login", o)
		return err
	}
	use := func(key string) (admitted int) {
		l, _ := r.Lookup("login")
		for range 10 {
			if d, err := l.Take(ctx, key); err == nil && d.Allowed {
				admitted++
			}
		}
		return admitted
	}
	require.NoError(t, r.Reload(build))
	t.Cleanup(func() { r.Close() })
	require.Equal(t, 5, use("blocked"))
	server.Kill()
	require.Equal(t, 0, use("blocked"))
	require.Equal(t, 5, use("new"))
	for range 3 {
		require.NoError(t, r.Reload(build))
		require.Equal(t, 0, use("blocked"))
		require.Equal(t, 0, use("new"))
	}
}

// TestNoTimeout: where nobody waits for the store for a limited time, a key in use gets
// back to it all the same.
func TestNoTimeout(t *testing.T) {
	for _, timeout := range []time.Duration{-1, -2, time.Second} {
		remotely(t, Options{Limits: []Limit{FixedWindow(200, time.Hour)}, Timeout: timeout}, func(t *testing.T, far *farStore, l *Limiter) {
			far2 := &farStore{Store: far.Store}
			other := processOf(t, far2, Options{Limits: []Limit{FixedWindow(200, time.Hour)}, Timeout: timeout})
			far.set(refused)
			far2.set(refused)
			admitted := 0
			take := func(l *Limiter) {
				if d := decide(t, l, "key", 1); d.Allowed {
					admitted++
				}
			}
			for range 10 {
				take(l)
				take(other)
			}
			for _, f := range []*farStore{far, far2} {
				f.set(up)
				f.delay(time.Millisecond)
			}
			time.Sleep(2 * time.Second)
			for range 300 {
				take(l)
				take(other)
				time.Sleep(time.Millisecond)
			}
			require.Equal(t, 200, admitted, timeout)
		})
	}
}

// TestRedisGiveBackIsNotWaitedFor: whoever leaves is let go, whatever becomes of the
// units that are given back.
func TestRedisGiveBackIsNotWaitedFor(t *testing.T) {
	proxy := redistest.NewProxy(t, redistest.Start(t).Addr)
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr})
	t.Cleanup(func() { client.Close() })
	s := redisStore(t, client, "rl:")
	take(t, s, "key", 1, hour)
	proxy.Latency(100 * time.Millisecond)
	leaving, leave := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		l := with(s)
		l.Limits, l.Timeout = []Limit{hour}, time.Minute
		_, err := Must(new(Registry).New("l", l)).Take(leaving, "key")
		require.ErrorIs(t, err, context.Canceled)
	})
	time.Sleep(20 * time.Millisecond)
	leave()
	wg.Wait()
	proxy.Latency(0)
	require.Eventually(t, func() bool {
		results, _ := take(t, s, "key", 0, hour)
		return results[0].Remaining == 4
	}, 10*time.Second, 5*time.Millisecond)
}

// TestRedisStoreInput: what no script is to see is refused before.
func TestRedisStoreInput(t *testing.T) {
	s, err := NewRedisStore(redis.NewClient(&redis.Options{}), "rl:", nil)
	require.NoError(t, err)
	many := make([]Limit, 0, 9)
	for i := range 9 {
		many = append(many, FixedWindow(1, time.Duration(1+i)*time.Hour))
	}
	for name, take := range map[string]func() error{
		"negative": func() error { _, err := s.Take(ctx, "k", -1, []Limit{hour}, make([]Result, 1)); return err },
		"many":     func() error { _, err := s.Take(ctx, "k", 1, many, make([]Result, 9)); return err },
		"none":     func() error { _, err := s.Take(ctx, "k", 1, nil, nil); return err },
		"results":  func() error { _, err := s.Take(ctx, "k", 1, []Limit{hour}, nil); return err },
		"zero":     func() error { _, err := s.Take(ctx, "k", 1, []Limit{{}}, make([]Result, 1)); return err },
		"adjust":   func() error { _, err := s.Adjust(ctx, "k", 1, Now, []Limit{{}}); return err },
		"reset":    func() error { return s.Reset(ctx, "k", []Limit{{}}) },
	} {
		require.ErrorContains(t, take(), "want", name)
	}
}

// TestLongestTimeout: a timeout that ends after time does is none.
func TestLongestTimeout(t *testing.T) {
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

// TestOneTimeout: to tell the store of what is owed, to see whether it is back, and to ask it take
// one Timeout together.
func TestOneTimeout(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}, Timeout: time.Second}, func(t *testing.T, far *farStore, l *Limiter) {
		far.set(refused)
		decide(t, l, "key", 1)
		require.Equal(t, 1, l.Stats().Remote.Owed)
		far.set(up)
		far.delay(400 * time.Millisecond)
		start, done := time.Now(), make(chan struct{})
		go func() {
			defer close(done)
			decide(t, l, "key", 1)
		}()
		synctest.Wait()
		far.delay(0)
		time.Sleep(50 * time.Millisecond)
		breakDown(t, far, l, refused)
		far.set(silent)
		<-done
		require.LessOrEqual(t, time.Since(start), time.Second)
	})
}

// TestHurriedCallers: those who give less time than the limiter does say nothing of the store.
func TestHurriedCallers(t *testing.T) {
	t.Parallel()
	for _, callers := range []int{1, 8} {
		for _, prompt := range []bool{false, true} {
			server := redistest.Start(t)
			client := redisClient(t, server.Addr, patient, func(o *redis.Options) { o.ContextTimeoutEnabled = prompt })
			l := httpLimiterNamed(t, "api", Options{Limits: []Limit{hour}, Redis: client, Timeout: time.Minute})
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

// TestLastSharerLeaves: of callers who share a command the last that is still there knows most. What
// it was told is remembered, though another has left that came later.
func TestLastSharerLeaves(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	direct, client := server.Client(), server.Client(patient)
	before, shared, after := make(chan struct{}), make(chan struct{}, 1), make(chan struct{})
	client.AddHook(hook(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
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
	l := httpLimiterNamed(t, "api", Options{Limits: []Limit{hour}, Redis: client, Timeout: time.Minute, DenyRecheck: time.Minute})
	decide(t, l, "warm", 1)
	take(t, redisStore(t, server.Client(), "rl:api:"), "key", 5, hour) // another process has used it up

	var all sync.WaitGroup
	for i := range 4 { // all that may be under way are
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
	leaving, leave := context.WithCancel(ctx)
	left := make(chan error)
	go func() {
		_, err := l.Take(leaving, "key")
		left <- err
	}()
	time.Sleep(5 * time.Millisecond)
	close(before)
	<-shared
	leave()
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
