package ratelimit_test

import (
	"fmt"
	"log/slog"
	"net/http/httptest"
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

// TestCloseAdmitsNobody: calls that are under way while a limiter is closed are
// decided by its store, or refused. A closed store is no outage. Each limiter is a
// new one, which knows nothing of a key that is used up.
func TestCloseAdmitsNobody(t *testing.T) {
	m := newMini(t)
	client := m.client(t)
	limit := FixedWindow(3, time.Hour)
	_, all := take(t, redisStore(t, client, "rl:login:"), "key", 3, limit)
	require.True(t, all)
	for round := range 1000 {
		l, err := new(Registry).New("login", Options{Limits: []Limit{limit}, Redis: client, Logger: quietly})
		require.NoError(t, err)
		var callers sync.WaitGroup
		var admitted atomic.Int64
		for range 4 {
			callers.Go(func() {
				for range 3 {
					if d, err := l.Take(ctx, "key"); err == nil && d.Allowed {
						admitted.Add(1)
					}
				}
			})
		}
		if round%2 == 1 {
			runtime.Gosched()
		}
		l.Close()
		callers.Wait()
		require.Zero(t, admitted.Load(), "round %d", round)
	}
}

// TestClosedStoreRefuses: whoever closes a store under a live limiter gets errors,
// whatever the store and the policy, and 503 over HTTP.
func TestClosedStoreRefuses(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		m := newMini(t)
		onRedis := redisStore(t, m.client(t), "rl:")
		inMemory := memory(t, fmt.Sprint("closed", policy))
		wrapped := redisStore(t, m.client(t), "wrapped:")
		lent := m.client(t)
		for name, test := range map[string]struct {
			store Store
			close func() error
		}{
			"RedisStore":         {onRedis, onRedis.Close},
			"MemoryStore":        {inMemory, inMemory.Close},
			"wrapped RedisStore": {&wrapper{wrapped}, wrapped.Close},
			"wrapped memory":     {&farStore{Store: memory(t, fmt.Sprint("far", policy))}, nil},
			"the client":         {redisStore(t, lent, "lent:"), lent.Close},
		} {
			if test.close == nil {
				test.close = test.store.(*farStore).Store.(*MemoryStore).Close
			}
			l, err := new(Registry).New("login", Options{
				Limits: []Limit{hour}, Store: test.store, OnFailure: policy, Key: StaticKey("k"), Logger: quietly,
			})
			require.NoError(t, err)
			require.True(t, decide(t, l, "k", 1).Allowed, name)
			require.NoError(t, test.close())
			for range 10 {
				_, err = l.Take(ctx, "another")
				require.Error(t, err, "%s, %v", name, policy)
				if name != "the client" {
					require.ErrorIs(t, err, ErrStoreClosed, "%s, %v", name, policy)
				}
			}
			w := httptest.NewRecorder()
			l.Middleware(nil).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			require.Equal(t, 503, w.Code, "%s, %v", name, policy)
			require.False(t, l.Stats().Remote.BreakerOpen, name)
			require.NoError(t, l.Close())
		}
	}
}

// quietly is a logger for tests that do not look at the log.
var quietly = slog.New(slog.DiscardHandler)

// goroutines returns how many there are.
func goroutines() int { return runtime.NumGoroutine() }

// wrapper is a store around another one, as for metrics.
type wrapper struct{ Store }

func (w *wrapper) Unwrap() Store { return w.Store }

// TestReloadHandsLeasesOn: a replaced limiter leaves nothing running, however busy a
// key is, and its units go on to be used by its successor.
func TestReloadHandsLeasesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &farStore{Store: memory(t, "")}
		opts := Options{Limits: []Limit{FixedWindow(100_000, time.Hour)}, Store: store, Lease: 20 * time.Millisecond, Logger: quietly}
		reg := new(Registry)
		l, err := reg.New("hot", opts)
		require.NoError(t, err)
		admitted := int64(0)
		use := func(l *Limiter) {
			for range 200 {
				if decide(t, l, "key", 1).Allowed {
					admitted++
				}
				time.Sleep(100 * time.Microsecond)
			}
		}
		use(l)
		require.NotZero(t, l.Stats().Remote.Leased)
		before := goroutines()
		for range 30 {
			require.NoError(t, reg.Reload(func(next *Registry) error {
				_, err := next.New("hot", opts)
				return err
			}))
			old := l
			l, _ = reg.Lookup("hot")
			decide(t, old, "key", 1) // a request in flight
			admitted++
			use(l)
			synctest.Wait()
		}
		require.Less(t, goroutines(), before+5, "goroutines, of 30 reloads")
		time.Sleep(time.Second)
		synctest.Wait()
		d, err := l.TakeN(ctx, "key", 0)
		require.NoError(t, err)
		require.EqualValues(t, 100_000-admitted, d.Remaining, "no unit is lost")
		require.NoError(t, reg.Close())
		synctest.Wait()
		results := make([]Result, 1)
		_, err = store.Store.Take(ctx, "key", 0, opts.Limits, results)
		require.NoError(t, err)
		require.EqualValues(t, 100_000-admitted, results[0].Remaining, "at the store")
	})
}

// TestReloadedClientClosed: the successor gives back what the old generation's
// client cannot.
func TestReloadedClientClosed(t *testing.T) {
	m := newMini(t)
	old, successor := m.client(t), m.client(t)
	limits := []Limit{FixedWindow(100_000, time.Hour)}
	options := func(c redis.UniversalClient) Options {
		return Options{Limits: limits, Redis: c, Lease: 50 * time.Millisecond, Logger: quietly}
	}
	reg := new(Registry)
	l, err := reg.New("hot", options(old))
	require.NoError(t, err)
	admitted := int64(0)
	for range 400 {
		if decide(t, l, "key", 1).Allowed {
			admitted++
		}
	}
	require.NotZero(t, l.Stats().Remote.Leased)
	require.NoError(t, reg.Reload(func(next *Registry) error {
		_, err := next.New("hot", options(successor))
		return err
	}))
	require.NoError(t, l.Close())
	require.NoError(t, old.Close())
	require.NoError(t, reg.Close(), "gives back what is leased")
	left, _ := take(t, redisStore(t, successor, "rl:hot:"), "key", 0, limits[0])
	require.EqualValues(t, 100_000-admitted, left[0].Remaining)
}
