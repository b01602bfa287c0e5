package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestHugeRefundsInAnOutageDoNotOverflow makes two refunds of math.MaxInt64. Their sum must
// not overflow.
func TestHugeRefundsInAnOutageDoNotOverflow(t *testing.T) {
	limit := FixedWindow(5, time.Hour)
	remotely(t, Options{Limits: []Limit{limit}, DenyRecheck: -1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.Store.Take(ctx, "key", 3, []Limit{limit}, make([]Result, 1)) // by another process
		startOutage(t, backend, l, refused)
		for range 2 {
			require.NoError(t, l.Refund(ctx, "key", math.MaxInt64))
		}
		endOutage(t, backend, l)
		require.EqualValues(t, 5, backend.remaining(t, "key", limit), "3 were taken, and more than that given back")
	})
}

// shifted is a store that has another clock and reports no states.
type shifted struct {
	*remoteBackend
	clockOffset int64
}

func (s shifted) Unwrap() Store { return s.remoteBackend }

func (s shifted) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	withoutStates := make([]Result, len(results))
	at, err := s.remoteBackend.Take(ctx, key, n, limits, withoutStates)
	copy(results, withoutStates)
	return at + Instant(s.clockOffset), err
}

func (s shifted) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	if at != Now {
		at -= Instant(s.clockOffset)
	}
	return s.remoteBackend.Adjust(ctx, key, n, at, limits)
}

// TestInstantsOfAnyStoreGiveBackNoMore has stores whose clocks begin at 0, below 0, or near the
// largest instant. Units are given back during and after an outage.
func TestInstantsOfAnyStoreGiveBackNoMore(t *testing.T) {
	for _, alg := range algorithms(10, time.Hour) {
		for _, begin := range []int64{0, 1, -int64(time.Hour), math.MaxInt64 - int64(100*time.Hour)} {
			t.Run(fmt.Sprint(alg.Algorithm(), begin), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					backend := &remoteBackend{Store: memory(t, "backend")}
					probe := make([]Result, 1)
					at, err := backend.Store.Take(ctx, "probe", 0, []Limit{alg}, probe)
					require.NoError(t, err)
					count := true
					l := processOf(t, shifted{backend, begin - int64(at)}, Options{Limits: []Limit{alg}, Key: StaticKey("key"), DenyRecheck: time.Nanosecond, Count: func(*http.Request, int) bool { return count }})
					handler := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
					kept := 0
					for i := range 60 {
						backend.set([]mode{up, up, refused}[i/5%3])
						count = i%2 == 0
						w, _ := serveOnce(handler)
						if w.Code == 200 && count {
							kept++
						}
						time.Sleep(10 * time.Millisecond)
					}
					endOutage(t, backend, l)
					for range 20 {
						count = true
						if w, _ := serveOnce(handler); w.Code == 200 {
							kept++
						}
					}
					require.LessOrEqual(t, kept, 10)
					if kept < 10 {
						t.Logf("kept only %d of 10", kept)
					}
				})
			})
		}
	}
}

// TestSetLimitsInAFailedReloadChangesNoRecord calls SetLimits on a limiter of a Reload that
// fails. The prefix's owner record does not change.
func TestSetLimitsInAFailedReloadChangesNoRecord(t *testing.T) {
	m := newMini(t)
	store := redisStore(t, m.client(t), "rl:")
	options := func(n int64) Options {
		return Options{Limits: []Limit{FixedWindow(n, time.Hour)}, Store: store, Timeout: time.Minute, Logger: quietly}
	}
	reg := new(Registry)
	l, err := reg.New("login", options(5))
	require.NoError(t, err)
	decide(t, l, "k", 1)
	require.Eventually(t, func() bool { return m.Exists("rl:owner") }, 20*time.Second, time.Millisecond)
	require.Error(t, reg.Reload(func(next *Registry) error {
		l, err := next.New("login", options(5))
		require.NoError(t, err)
		require.NoError(t, l.SetLimits(FixedWindow(6, time.Hour)))
		return errors.New("wrong")
	}))
	decide(t, l, "k", 1)
	time.Sleep(100 * time.Millisecond)
	require.NoError(t, reg.Close())
	require.NoError(t, store.Close())
	text, _ := m.Get("rl:owner")
	require.Contains(t, text, `"5/1h fixed"`)
}

// TestCloseInEveryOrderMintsNothing closes limiter, registry, store and client in every order
// while requests run.
func TestCloseInEveryOrderMintsNothing(t *testing.T) {
	m := newMini(t)
	rounds := 10 // 150 rounds pass as well, and take 25 s
	for round := range rounds {
		before := runtime.NumGoroutine()
		client := redis.NewClient(&redis.Options{Addr: m.Addr(), MaxRetries: -1})
		store, err := NewRedisStore(client, fmt.Sprint("rl:", round, ":"))
		require.NoError(t, err)
		opts := Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Store: store, Lease: 5 * time.Millisecond, Timeout: 5 * time.Second, Logger: quietly}
		reg := new(Registry)
		l, err := reg.New("l", opts)
		require.NoError(t, err)
		var admitted atomic.Int64
		var callers sync.WaitGroup
		stop := make(chan struct{})
		for range 8 {
			callers.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					if d, err := l.Take(ctx, "key"); err == nil && d.Allowed {
						admitted.Add(1)
					}
					if i%7 == 0 {
						if now, ok := reg.Lookup("l"); ok {
							if d, err := now.Take(ctx, "key"); err == nil && d.Allowed {
								admitted.Add(1)
							}
						}
					}
				}
			})
		}
		steps := []func(){
			func() { l.Close() }, func() { reg.Close() }, func() { store.Close() }, func() { client.Close() },
			func() { reg.Reload(func(next *Registry) error { _, err := next.New("l", opts); return err }) },
			func() {
				defer func() { recover() }()
				reg.Reload(func(next *Registry) error { next.New("l", opts); panic("build") })
			},
		}
		var all sync.WaitGroup
		for _, i := range rand.Perm(len(steps)) {
			if rand.IntN(2) == 0 {
				all.Go(steps[i])
			} else {
				steps[i]()
			}
			time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		}
		all.Wait()
		close(stop)
		callers.Wait()
		for _, l := range reg.All() {
			l.Close()
		}
		l.Close()
		store.Close()
		client.Close()
		if n := admitted.Load(); n > 50 {
			t.Errorf("round %d: %d admitted of 50", round, n)
		}
		for until := time.Now().Add(3 * time.Second); runtime.NumGoroutine() > before+2 && time.Now().Before(until); {
			time.Sleep(5 * time.Millisecond)
		}
		if n := runtime.NumGoroutine(); n > before+2 {
			t.Errorf("round %d: %d goroutines, %d before", round, n, before)
			buf := make([]byte, 1<<16)
			t.Logf("%s", buf[:runtime.Stack(buf, true)])
			return
		}
	}
}

// TestResetAndLeasesAtOnceKeepTheLimit resets, leases and reloads at the same time. Each reset
// may admit one more limit, and no more. In the end the store has counted the units that were
// admitted since the last reset.
func TestResetAndLeasesAtOnceKeepTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		limit := FixedWindow(1000, 24*time.Hour)
		opts := Options{Limits: []Limit{limit}, Store: backend, Lease: 20 * time.Millisecond, Logger: quietly}
		reg := new(Registry)
		l, err := reg.New("l", opts)
		require.NoError(t, err)
		var now atomic.Pointer[Limiter]
		now.Store(l)
		backend.delay(3 * time.Millisecond)
		var admitted atomic.Int64
		resets := int64(0)
		stop := atomic.Bool{}
		var callers sync.WaitGroup
		for range 8 {
			callers.Go(func() {
				for !stop.Load() {
					if d, err := now.Load().Take(ctx, "key"); err == nil && d.Allowed {
						admitted.Add(1)
					}
					time.Sleep(300 * time.Microsecond)
				}
			})
		}
		for i := range 200 {
			time.Sleep(17 * time.Millisecond)
			switch i % 5 {
			case 0:
				require.NoError(t, now.Load().Reset(ctx, "key"))
				resets++
			case 3:
				require.NoError(t, reg.Reload(func(next *Registry) error {
					l, err := next.New("l", opts)
					now.Store(l)
					return err
				}))
			}
		}
		stop.Store(true)
		callers.Wait()
		backend.delay(0)
		require.LessOrEqual(t, admitted.Load(), 1000*(resets+1))
		require.NoError(t, now.Load().Reset(ctx, "key"))
		before := admitted.Load()
		for range 3000 {
			if d, err := now.Load().Take(context.Background(), "key"); err == nil && d.Allowed {
				admitted.Add(1)
			}
			time.Sleep(time.Millisecond)
		}
		require.EqualValues(t, 1000, admitted.Load()-before)
		require.NoError(t, reg.Close())
		time.Sleep(10 * time.Second)
		require.Zero(t, backend.remaining(t, "key", limit))
	})
}
