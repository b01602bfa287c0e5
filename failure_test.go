package ratelimit_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestFailClosedAnswers503 checks that nothing is decided, and that the client
// learns nothing about the store.
func TestFailClosedAnswers503(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}, OnFailure: FailClosed, Key: StaticKey("key")}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		for _, m := range []mode{refused, silent, junk} {
			backend.set(m)
			for range 10 { // the last calls find the breaker open
				_, err := l.Take(ctx, "key")
				require.Error(t, err)
				w := httptest.NewRecorder()
				l.Middleware(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
				require.Equal(t, 503, w.Code)
				require.Equal(t, "1", w.Header().Get("Retry-After"))
				require.Equal(t, "Service Unavailable", w.Body.String())
				require.NotContains(t, fmt.Sprint(w.Header()), "10.9.8.7")
				_, err = l.Look(httptest.NewRequest("GET", "/", nil))
				require.Error(t, err)
			}
			endOutage(t, backend, l)
		}
		require.EqualValues(t, 5, decide(t, l, "key", 0).Remaining)
	})
}

// TestFailOpenAdmitsAndTakesNothing also checks that nothing is given back
// later.
func TestFailOpenAdmitsAndTakesNothing(t *testing.T) {
	opts := Options{Limits: []Limit{hour}, OnFailure: FailOpen, Key: StaticKey("key"), Count: func(*http.Request, int) bool { return false }}
	remotely(t, opts, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		decide(t, l, "key", 5)
		for _, m := range []mode{refused, silent} {
			startOutage(t, backend, l, m)
			for range 20 {
				d := decide(t, l, "other", 1)
				require.Equal(t, Decision{Allowed: true, Limit: hour, Remaining: 4, Source: SourceFailOpen, Policy: "l"}, d)
			}
			l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				endOutage(t, backend, l) // while the request is being served
			})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
			require.Zero(t, backend.remaining(t, "key", hour), "nothing was given back")
			require.False(t, decide(t, l, "key", 1).Allowed)
		}
		require.Zero(t, backend.adjusted.Load())
		require.NotZero(t, l.Stats().Remote.FailedOpen)
	})
}

// TestAllCallsWorkInAnOutage looks, adds to a cost, changes limits, resets and
// closes.
func TestAllCallsWorkInAnOutage(t *testing.T) {
	remotely(t, Options{Limits: []Limit{FixedWindow(20, time.Hour)}, Key: StaticKey("key")}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		limit := FixedWindow(20, time.Hour)
		startOutage(t, backend, l, refused)
		r := httptest.NewRequest("GET", "/", nil)
		l.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			d, ok := DecisionFrom(r.Context())
			require.True(t, ok)
			require.Equal(t, SourceFallback, d.Source)
			require.NoError(t, l.AddCost(r.Context(), 6))
			require.NoError(t, l.AddCost(r.Context(), -2))
		})).ServeHTTP(httptest.NewRecorder(), r)
		standings, err := l.Look(r)
		require.NoError(t, err)
		require.EqualValues(t, 15, standings[0].Remaining)
		require.NoError(t, l.SetLimits(FixedWindow(7, time.Hour)))
		require.EqualValues(t, 2, decide(t, l, "key", 0).Remaining)
		require.True(t, decide(t, l, "key", 2).Allowed)
		require.False(t, decide(t, l, "key", 1).Allowed)
		require.ErrorIs(t, l.Reset(ctx, "key"), errBackendRefused)
		require.EqualValues(t, 7, decide(t, l, "key", 0).Remaining, "here it is done")
		decide(t, l, "key", 3)
		endOutage(t, backend, l)
		require.EqualValues(t, 17, backend.remaining(t, "key", limit))
		require.NoError(t, l.Reset(ctx, "key"))
		require.EqualValues(t, 20, backend.remaining(t, "key", limit))

		// The bubble checks that no goroutine is left.
		startOutage(t, backend, l, silent)
		decide(t, l, "key", 1)
		time.Sleep(100 * time.Millisecond)
		decide(t, l, "key", 1) // sends the store the units that it has missed
		require.NoError(t, l.Close())
	})
}

// TestBusyKeysReturnToTheStore uses a key all the time, without a timeout and
// with a long one.
func TestBusyKeysReturnToTheStore(t *testing.T) {
	for _, timeout := range []time.Duration{-1, -2, time.Second} {
		remotely(t, Options{Limits: []Limit{FixedWindow(200, time.Hour)}, Timeout: timeout}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			otherBackend := &remoteBackend{Store: backend.Store}
			other := processOf(t, otherBackend, Options{Limits: []Limit{FixedWindow(200, time.Hour)}, Timeout: timeout})
			backend.set(refused)
			otherBackend.set(refused)
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
			for _, f := range []*remoteBackend{backend, otherBackend} {
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

// TestDecisionHasOneTimeoutForAllItsCalls has a decision that sends what the
// store has missed, probes the store and takes units.
func TestDecisionHasOneTimeoutForAllItsCalls(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}, Timeout: time.Second}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.set(refused)
		decide(t, l, "key", 1)
		require.Equal(t, 1, l.Stats().Remote.Owed)
		backend.set(up)
		backend.delay(400 * time.Millisecond)
		start, done := time.Now(), make(chan struct{})
		go func() {
			defer close(done)
			decide(t, l, "key", 1)
		}()
		synctest.Wait()
		backend.delay(0)
		time.Sleep(50 * time.Millisecond)
		startOutage(t, backend, l, refused)
		backend.set(silent)
		<-done
		require.LessOrEqual(t, time.Since(start), time.Second)
	})
}
