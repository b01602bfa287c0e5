package ratelimit_test

import (
	"fmt"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestCallsDuringCloseAreDecidedOrRefused closes limiters under traffic. Each
// limiter is new, so it knows nothing about the key, which is used up. A closed
// store is no outage.
func TestCallsDuringCloseAreDecidedOrRefused(t *testing.T) {
	m := newMini(t)
	client := m.client(t)
	limit := FixedWindow(3, time.Hour)
	_, all := take(t, redisStore(t, client, "rl:login:"), "key", 3, limit)
	require.True(t, all)
	for round := range 1000 {
		l, err := new(Registry).New("login", Options{Limits: []Limit{limit}, Redis: client, Timeout: time.Minute, Logger: quietly})
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

// TestClosedStoreIsAnErrorUnderEachPolicy closes the store of an open limiter.
// Over HTTP the status is 503.
func TestClosedStoreIsAnErrorUnderEachPolicy(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		m := newMini(t)
		onRedis := redisStore(t, m.client(t), "rl:")
		inMemory := memory(t, fmt.Sprint("closed", policy))
		wrapped := redisStore(t, m.client(t), "wrapped:")
		callersClient := m.client(t)
		for name, test := range map[string]struct {
			store Store
			close func() error
		}{
			"RedisStore":         {onRedis, onRedis.Close},
			"MemoryStore":        {inMemory, inMemory.Close},
			"wrapped RedisStore": {&wrapper{wrapped}, wrapped.Close},
			"wrapped memory":     {&remoteBackend{Store: memory(t, fmt.Sprint("backend", policy))}, nil},
			"the client":         {redisStore(t, callersClient, "lent:"), callersClient.Close},
		} {
			if test.close == nil {
				test.close = test.store.(*remoteBackend).Store.(*MemoryStore).Close
			}
			l, err := new(Registry).New("login", Options{
				Limits: []Limit{hour}, Store: test.store, OnFailure: policy, Key: StaticKey("k"), Timeout: time.Minute, Logger: quietly,
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
