package ratelimit_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestBreakerBoundsCallsToADeadStore also checks that no caller waits, and that
// the breaker closes again.
func TestBreakerBoundsCallsToADeadStore(t *testing.T) {
	remotely(t, Options{Limits: []Limit{FixedWindow(10_000, time.Hour)}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, silent)
		require.EqualValues(t, 5, backend.calls.Load())
		start := time.Now()
		for range 100 {
			require.Equal(t, SourceFallback, decide(t, l, "key", 1).Source)
		}
		require.Zero(t, time.Since(start), "nobody waits")
		time.Sleep(100 * time.Millisecond)
		for range 64 { // one of the 64 calls is the probe
			go l.Take(ctx, "another key")
		}
		synctest.Wait()
		require.EqualValues(t, 6, backend.calls.Load())
		time.Sleep(10 * time.Second)
		calls := backend.calls.Load()
		for range 600 {
			decide(t, l, "key", 1)
			time.Sleep(100 * time.Millisecond)
		}
		require.InDelta(t, 60, backend.calls.Load()-calls, 10, "one a second")
		require.EqualValues(t, 1, l.Stats().Remote.BreakerOpened)
		endOutage(t, backend, l)
		require.Equal(t, SourceStore, decide(t, l, "new key", 1).Source)
	})
}

func TestCancelledProbeDoesNotBlockTheNext(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		remotely(t, Options{Limits: []Limit{hour}, OnFailure: policy}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			backend.set(refused)
			for range 5 {
				l.Take(ctx, "key")
			}
			backend.set(silent)
			time.Sleep(time.Second)
			callCtx, cancel := context.WithCancel(ctx)
			go l.Take(callCtx, "probe")
			synctest.Wait()
			cancel()
			synctest.Wait()
			backend.set(up)
			require.Equal(t, SourceStore, decide(t, l, "new", 1).Source)
		})
	}
}

// TestProbesTakeNothing probes a silent store many times. The store then
// receives all units that were admitted without it.
func TestProbesTakeNothing(t *testing.T) {
	remotely(t, Options{Limits: []Limit{FixedWindow(100, time.Hour)}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, silent)
		unknown := backend.unknown.Load()
		for range 50 {
			require.True(t, decide(t, l, "key", 1).Allowed)
			time.Sleep(300 * time.Millisecond)
		}
		require.Equal(t, unknown, backend.unknown.Load())
		require.Greater(t, l.Stats().Remote.Failures, uint64(10), "it was looked")
		for i := range 10 {
			decide(t, l, fmt.Sprint("new ", i), 7)
			time.Sleep(1100 * time.Millisecond)
		}
		require.Greater(t, l.Stats().Remote.Failures, uint64(20))
		endOutage(t, backend, l)
		require.EqualValues(t, 50, backend.remaining(t, "key", FixedWindow(100, time.Hour)))
		for i := range 10 {
			require.EqualValues(t, 93, backend.remaining(t, fmt.Sprint("new ", i), FixedWindow(100, time.Hour)))
		}
	})
}

// TestCancelledCallsAreNoFailures checks that they open no breaker, take no
// units, and log nothing.
func TestCancelledCallsAreNoFailures(t *testing.T) {
	var log syncBuffer
	remotely(t, Options{Limits: []Limit{hour}, Logger: slog.New(slog.NewTextHandler(&log, nil)), Key: StaticKey("key")}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.delay(50 * time.Millisecond)
		require.Contains(t, log.String(), "limiter counts in a remote store")
		log.Reset()
		handler := l.Middleware(http.NotFoundHandler())
		for range 30 {
			callCtx, cancel := context.WithCancel(ctx)
			go func() {
				_, err := l.Take(callCtx, "key")
				require.ErrorIs(t, err, context.Canceled)
			}()
			go handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(callCtx))
			synctest.Wait()
			cancel()
			synctest.Wait()
			_, err := l.Take(callCtx, "key")
			require.ErrorIs(t, err, context.Canceled)
		}
		stats := l.Stats().Remote
		stats.Spared, stats.Calls, stats.CallTimes = 0, 0, CallTimes{}
		require.Zero(t, stats)
		require.Empty(t, log.String())
		require.EqualValues(t, 5, decide(t, l, "key", 0).Remaining)
	})
}

// TestCallersOfASlowStoreAreBounded checks that the next caller is answered at
// once, by Options.OnFailure.
func TestCallersOfASlowStoreAreBounded(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		remotely(t, Options{Limits: []Limit{hour}, OnFailure: policy, Timeout: time.Minute}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			backend.delay(10 * time.Second)
			for i := range 4096 {
				go l.Take(ctx, fmt.Sprint(i))
			}
			synctest.Wait()
			start := time.Now()
			d, err := l.Take(ctx, "one more")
			require.Zero(t, time.Since(start))
			switch policy {
			case FallbackLocal:
				require.Equal(t, SourceFallback, d.Source)
				require.EqualValues(t, 4, d.Remaining)
			case FailOpen:
				require.Equal(t, SourceFailOpen, d.Source)
			case FailClosed:
				require.ErrorContains(t, err, "4096 callers are waiting")
			}
			require.EqualValues(t, 1, l.Stats().Remote.Spared)
			time.Sleep(20 * time.Second)
			require.Equal(t, SourceStore, decide(t, l, "another", 1).Source)
			require.Zero(t, l.Stats().Remote.BreakerOpened)
		})
	}
}

// TestPanickingStoreBlocksNoCallers checks that a bug in a store uses up neither
// the room for waiting callers nor the one probe.
func TestPanickingStoreBlocksNoCallers(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.set(panics)
		for range 5000 {
			require.Panics(t, func() { l.Take(ctx, "key") })
		}
		startOutage(t, backend, l, refused)
		backend.set(panics)
		time.Sleep(time.Second)
		require.Panics(t, func() { l.Take(ctx, "key") })
		backend.set(up)
		require.Equal(t, SourceStore, decide(t, l, "key", 1).Source)
	})
}

// TestCallersWithShortDeadlinesAreDecided has callers with deadlines shorter than Timeout.
// When these deadlines expire, that is no failure of the store. But the limiter still
// notices that the store hangs.
func TestCallersWithShortDeadlinesAreDecided(t *testing.T) {
	for _, deadline := range []time.Duration{150 * time.Millisecond, 50 * time.Millisecond} {
		remotely(t, Options{Limits: []Limit{FixedWindow(1_000_000, 24*time.Hour)}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			decide(t, l, "key", 1)
			backend.set(silent)
			failed := 0
			for i := range 1000 {
				ctx, cancel := context.WithTimeout(ctx, deadline)
				if _, err := l.Take(ctx, fmt.Sprint(i)); err != nil {
					failed++
				}
				cancel()
				time.Sleep(10 * time.Millisecond)
			}
			require.LessOrEqual(t, failed, 50, "callers with deadlines of %v", deadline)
			require.EqualValues(t, 1, l.Stats().Remote.BreakerOpened)
		})
	}
}
