package ratelimit_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/clock"
)

// waitingServer is a server over real connections, whose limiter lets one request through in
// an hour and makes others wait.
func waitingServer(t *testing.T, change func(*Options)) (*Limiter, *httptest.Server) {
	o := quiet(FixedWindow(1, time.Hour))
	o.MaxWait = 2 * time.Hour
	o.Key = func(*http.Request) (string, error) { return "k", nil }
	if change != nil {
		change(&o)
	}
	l := httpLimiter(t, o)
	s := httptest.NewServer(l.Middleware(httpServed))
	t.Cleanup(s.Close)
	return l, s
}

// untilWaiting waits until that many callers wait.
func untilWaiting(t *testing.T, l *Limiter, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return l.Stats().Waiting == n }, 20*time.Second, time.Millisecond)
}

// TestClientLeavesTheLine: a request whose client disconnects while it waits takes no units,
// and the next one is served in its place.
func TestClientLeavesTheLine(t *testing.T) {
	l, s := waitingServer(t, nil)
	took(t, l, "k", 1)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		r, _ := http.NewRequestWithContext(ctx, "GET", s.URL, nil)
		_, err := http.DefaultClient.Do(r)
		left <- err
	}()
	untilWaiting(t, l, 1)
	served := make(chan int, 1)
	go func() {
		if response, err := http.Get(s.URL); err == nil {
			response.Body.Close()
			served <- response.StatusCode
		}
	}()
	untilWaiting(t, l, 2)
	cancel()
	require.ErrorIs(t, <-left, context.Canceled)
	untilWaiting(t, l, 1)
	require.NoError(t, l.Refund(t.Context(), "k", 1))
	require.Equal(t, http.StatusNoContent, <-served)
	require.Eventually(t, func() bool { return l.Stats().Failed == 1 }, 20*time.Second, time.Millisecond, "who leaves is no decision")
	stats := l.Stats()
	require.EqualValues(t, 2, stats.Allowed)
	require.EqualValues(t, 0, stats.Denied)
	require.Zero(t, stats.Waiting)
}

// TestShutdownLetsWaitersGo: Close answers all requests that wait, so that a server can shut
// down.
func TestShutdownLetsWaitersGo(t *testing.T) {
	l, s := waitingServer(t, nil)
	took(t, l, "k", 1)
	s.Config.RegisterOnShutdown(func() { l.Close() })
	var group sync.WaitGroup
	var unavailable atomic.Int64
	for range 10 {
		group.Go(func() {
			if response, err := http.Get(s.URL); err == nil {
				if response.Body.Close(); response.StatusCode == http.StatusServiceUnavailable {
					unavailable.Add(1)
				}
			}
		})
	}
	untilWaiting(t, l, 10)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, s.Config.Shutdown(ctx))
	group.Wait()
	require.EqualValues(t, 10, unavailable.Load())
	require.Zero(t, l.Stats().Warnings[CodeClosed], "a shutdown is no mistake")
}

// TestCheckWaits: Check waits as Middleware does.
func TestCheckWaits(t *testing.T) {
	o := quiet(FixedWindow(1, time.Hour))
	o.MaxWait = 2 * time.Hour
	l := httpLimiter(t, o)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.Check(w, r) {
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	defer s.Close()
	key := "127.0.0.1"
	took(t, l, key, 1)
	served := make(chan int, 1)
	go func() {
		if response, err := http.Get(s.URL); err == nil {
			response.Body.Close()
			served <- response.StatusCode
		}
	}()
	untilWaiting(t, l, 1)
	require.NoError(t, l.Reset(t.Context(), key))
	require.Equal(t, http.StatusNoContent, <-served)
}

// TestDeadlineOfARequestEndsItsWait: a request with a deadline of its own, as behind an
// http.TimeoutHandler, is denied at once if its units do not fit before that.
func TestDeadlineOfARequestEndsItsWait(t *testing.T) {
	o := quiet(FixedWindow(1, time.Hour))
	o.MaxWait = 2 * time.Hour
	o.Key = func(*http.Request) (string, error) { return "k", nil }
	l := httpLimiter(t, o)
	s := httptest.NewServer(http.TimeoutHandler(l.Middleware(httpServed), 30*time.Minute, "too slow"))
	defer s.Close()
	took(t, l, "k", 1)
	start := clock.Now()
	response, err := http.Get(s.URL)
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, http.StatusTooManyRequests, response.StatusCode)
	require.Less(t, time.Duration(clock.Now()-start), time.Minute)
}

// TestShadowWaitsForNothing: in Shadow, and for a request that costs nothing, no request
// waits.
func TestShadowWaitsForNothing(t *testing.T) {
	for _, change := range []func(*Options){
		func(o *Options) { o.Shadow = true },
		func(o *Options) { o.Cost = func(*http.Request) int64 { return 0 } },
	} {
		l, s := waitingServer(t, change)
		took(t, l, "k", 1)
		response, err := http.Get(s.URL)
		require.NoError(t, err)
		response.Body.Close()
		require.Equal(t, http.StatusNoContent, response.StatusCode)
		require.Zero(t, l.Stats().Waited)
	}
}

// TestPanickingStoreReleasesTheLine: a store that panics for the head does not keep the ones
// behind it waiting.
func TestPanickingStoreReleasesTheLine(t *testing.T) {
	store := &remoteBackend{Store: memory(t, "backend")}
	o := quiet(FixedWindow(1, time.Hour))
	o.Store = struct{ Store }{store} // not a RemoteStore, so nobody recovers for it
	l := httpLimiter(t, o)
	took(t, l, "k", 1)
	ended := make(chan error, 2)
	for i := range 2 {
		go func() {
			defer func() {
				if with := recover(); with != nil {
					ended <- errors.New("panicked")
				}
			}()
			ended <- l.Wait(t.Context(), "k", 1)
		}()
		untilWaiting(t, l, i+1)
	}
	store.set(panics)
	require.NoError(t, l.SetLimits(FixedWindow(2, time.Hour))) // wakes the head
	require.EqualError(t, <-ended, "panicked")
	require.EqualError(t, <-ended, "panicked")
	require.Zero(t, l.Stats().Waiting)
}
