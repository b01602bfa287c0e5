package ratelimit_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestBreaker: what a dead store costs, and what opens and closes it.
func TestBreaker(t *testing.T) {
	remotely(t, Options{Limits: []Limit{FixedWindow(10_000, time.Hour)}}, func(t *testing.T, far *farStore, l *Limiter) {
		breakDown(t, far, l, silent)
		require.EqualValues(t, 5, far.calls.Load())
		start := time.Now()
		for range 100 {
			require.Equal(t, SourceFallback, decide(t, l, "key", 1).Source)
		}
		require.Zero(t, time.Since(start), "nobody waits")
		time.Sleep(100 * time.Millisecond)
		for range 64 { // one of them probes
			go l.Take(ctx, "another key")
		}
		synctest.Wait()
		require.EqualValues(t, 6, far.calls.Load())
		time.Sleep(10 * time.Second)
		calls := far.calls.Load()
		for range 600 {
			decide(t, l, "key", 1)
			time.Sleep(100 * time.Millisecond)
		}
		require.InDelta(t, 60, far.calls.Load()-calls, 10, "one a second")
		require.EqualValues(t, 1, l.Stats().Remote.BreakerOpened)
		comeBack(t, far, l)
		require.Equal(t, SourceStore, decide(t, l, "new key", 1).Source)
	})
}

// TestLeavingProbe: a client that leaves while its request probes keeps nobody from probing.
func TestLeavingProbe(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		remotely(t, Options{Limits: []Limit{hour}, OnFailure: policy}, func(t *testing.T, far *farStore, l *Limiter) {
			far.set(refused)
			for range 5 {
				l.Take(ctx, "key")
			}
			far.set(silent)
			time.Sleep(time.Second)
			leaving, leave := context.WithCancel(ctx)
			go l.Take(leaving, "probe")
			synctest.Wait()
			leave()
			synctest.Wait()
			far.set(up)
			require.Equal(t, SourceStore, decide(t, l, "new", 1).Source)
		})
	}
}

// TestClientsThatLeave trip nothing, take nothing, and are nothing to log.
func TestClientsThatLeave(t *testing.T) {
	var log bytes.Buffer
	remotely(t, Options{Limits: []Limit{hour}, Logger: slog.New(slog.NewTextHandler(&log, nil)), Key: StaticKey("key")}, func(t *testing.T, far *farStore, l *Limiter) {
		far.delay(50 * time.Millisecond)
		require.Contains(t, log.String(), "limiter counts in a remote store")
		log.Reset()
		handler := l.Middleware(http.NotFoundHandler())
		for range 30 {
			leaving, leave := context.WithCancel(ctx)
			go func() {
				_, err := l.Take(leaving, "key")
				require.ErrorIs(t, err, context.Canceled)
			}()
			go handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(leaving))
			synctest.Wait()
			leave()
			synctest.Wait()
			_, err := l.Take(leaving, "key")
			require.ErrorIs(t, err, context.Canceled)
		}
		stats := l.Stats().Remote
		stats.Spared = 0
		require.Zero(t, stats)
		require.Empty(t, log.String())
		require.EqualValues(t, 5, decide(t, l, "key", 0).Remaining)
	})
}

// TestPressure: of the callers that wait for a slow store there is a most; the next one is
// answered by the policy, at once.
func TestPressure(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		remotely(t, Options{Limits: []Limit{hour}, OnFailure: policy, Timeout: time.Minute}, func(t *testing.T, far *farStore, l *Limiter) {
			far.delay(10 * time.Second)
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

// TestPanickingStore: a bug in a store does not use up the places to wait, and does not keep the probe's.
func TestPanickingStore(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, far *farStore, l *Limiter) {
		far.set(panics)
		for range 5000 {
			require.Panics(t, func() { l.Take(ctx, "key") })
		}
		breakDown(t, far, l, refused)
		far.set(panics)
		time.Sleep(time.Second)
		require.Panics(t, func() { l.Take(ctx, "key") })
		far.set(up)
		require.Equal(t, SourceStore, decide(t, l, "key", 1).Source)
	})
}

// TestFailClosed: nothing is decided, and the client learns nothing of the store.
func TestFailClosed(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}, OnFailure: FailClosed, Key: StaticKey("key")}, func(t *testing.T, far *farStore, l *Limiter) {
		for _, m := range []mode{refused, silent, junk} {
			far.set(m)
			for range 10 { // and then the breaker is open
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
			comeBack(t, far, l)
		}
		require.EqualValues(t, 5, decide(t, l, "key", 0).Remaining)
	})
}

// TestFailOpen: everything is admitted and nothing taken, so that there is nothing to give back.
func TestFailOpen(t *testing.T) {
	opts := Options{Limits: []Limit{hour}, OnFailure: FailOpen, Key: StaticKey("key"), Count: func(*http.Request, int) bool { return false }}
	remotely(t, opts, func(t *testing.T, far *farStore, l *Limiter) {
		decide(t, l, "key", 5)
		for _, m := range []mode{refused, silent} {
			breakDown(t, far, l, m)
			for range 20 {
				d := decide(t, l, "other", 1)
				require.Equal(t, Decision{Allowed: true, Limit: hour, Remaining: 4, Source: SourceFailOpen}, d)
			}
			l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				comeBack(t, far, l) // while the request is being served
			})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
			require.Zero(t, far.there(t, "key", hour), "nothing was given back")
			require.False(t, decide(t, l, "key", 1).Allowed)
		}
		require.Zero(t, far.adjusted.Load())
		require.NotZero(t, l.Stats().Remote.FailedOpen)
	})
}

// TestRequestsInAnOutage: looking, adding to a cost, other limits, resetting and closing.
func TestRequestsInAnOutage(t *testing.T) {
	remotely(t, Options{Limits: []Limit{FixedWindow(20, time.Hour)}, Key: StaticKey("key")}, func(t *testing.T, far *farStore, l *Limiter) {
		limit := FixedWindow(20, time.Hour)
		breakDown(t, far, l, refused)
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
		require.ErrorIs(t, l.Reset(ctx, "key"), errFarRefused)
		require.EqualValues(t, 7, decide(t, l, "key", 0).Remaining, "here it is done")
		decide(t, l, "key", 3)
		comeBack(t, far, l)
		require.EqualValues(t, 17, far.there(t, "key", limit))
		require.NoError(t, l.Reset(ctx, "key"))
		require.EqualValues(t, 20, far.there(t, "key", limit))

		// The bubble sees to it that no goroutine is left.
		breakDown(t, far, l, silent)
		decide(t, l, "key", 1)
		time.Sleep(100 * time.Millisecond)
		decide(t, l, "key", 1) // has the store told of it
		require.NoError(t, l.Close())
	})
}

// TestAnyRemoteStore: a store of another make gets all of this, also in a wrapper.
func TestAnyRemoteStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &farStore{Store: memory(t, "far")}
		l := processOf(t, &wrapped{&wrapped{far}}, Options{Limits: []Limit{hour}})
		decide(t, l, "key", 3)
		breakDown(t, far, l, silent)
		require.True(t, decide(t, l, "key", 2).Allowed)
		require.False(t, decide(t, l, "key", 1).Allowed)
		comeBack(t, far, l)
		require.Zero(t, far.there(t, "key", hour))
	})
}

// TestRemoteStats: each of them moves.
func TestRemoteStats(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, far *farStore, l *Limiter) {
		decide(t, l, "key", 5)
		decide(t, l, "key", 1)
		decide(t, l, "key", 1)
		breakDown(t, far, l, refused)
		decide(t, l, "new", 1)
		require.Equal(t, RemoteStats{Failures: 5, Spared: 1, BreakerOpen: true, BreakerOpened: 1, Cached: 1, Fallback: 6, Owed: 6}, l.Stats().Remote)
		comeBack(t, far, l)
		stats := l.Stats().Remote
		require.False(t, stats.BreakerOpen)
		require.Zero(t, stats.Owed)
	})
	remotely(t, Options{Limits: []Limit{hour}, NearKeys: 1}, func(t *testing.T, far *farStore, l *Limiter) {
		breakDown(t, far, l, refused)
		for i := range 1000 {
			decide(t, l, fmt.Sprint(i), 1)
		}
		stats := l.Stats().Remote
		require.LessOrEqual(t, stats.Owed, 64)
		require.EqualValues(t, 1005-stats.Owed, stats.Forgotten)
	})
	require.Zero(t, limiter(t, hour).Stats().Remote, "in this process nothing is remote")
}

// TestOutagesAreLogged: not in the words of clients. Each outage of a second is
// logged, with its length; a breaker that opens and closes all the time makes two
// lines in ten seconds.
func TestOutagesAreLogged(t *testing.T) {
	var log syncBuffer
	remotely(t, Options{Limits: []Limit{hour}, Logger: slog.New(slog.NewTextHandler(&log, nil))}, func(t *testing.T, far *farStore, l *Limiter) {
		count := func(code string) int { return strings.Count(log.String(), "code="+code) }
		for i, outage := range []time.Duration{500 * time.Millisecond, 1100 * time.Millisecond, 500 * time.Millisecond} {
			log.Reset()
			for range 50 {
				far.set(refused)
				for i := range 20 {
					decide(t, l, fmt.Sprint("evil\nkey", i), 1)
				}
				synctest.Wait()
				far.set(up)
				time.Sleep(outage)
				decide(t, l, "evil\nkey", 0)
				synctest.Wait()
			}
			require.Equal(t, 1, count(CodeStoreFailed))
			lines := 3 // one in each 10 s of 25
			if outage > time.Second {
				lines = 50
			}
			require.Equal(t, lines, count(CodeStoreDown))
			require.Equal(t, lines, count(CodeStoreBack))
			require.Equal(t, lines, strings.Count(log.String(), fmt.Sprint(" lasted=", outage)))
			require.Contains(t, log.String(), fmt.Sprintf("code=store-down outages=%d on_failure=FallbackLocal error=", 50*i+1))
			require.NotContains(t, log.String(), "evil")
			time.Sleep(time.Minute)
		}
	})
}

// TestLastWordOnAnOutage: what the log says last is so, however soon after another an outage
// begins.
func TestLastWordOnAnOutage(t *testing.T) {
	var log syncBuffer
	remotely(t, Options{Limits: []Limit{hour}, Logger: slog.New(slog.NewTextHandler(&log, nil))}, func(t *testing.T, far *farStore, l *Limiter) {
		said := func() (codes []string) {
			synctest.Wait()
			for _, code := range regexp.MustCompile("code=store-(down|back)").FindAllStringSubmatch(log.String(), -1) {
				codes = append(codes, code[1])
			}
			return codes
		}
		breakDown(t, far, l, refused)
		require.Equal(t, []string{"down"}, said())
		comeBack(t, far, l)
		require.Equal(t, []string{"down", "back"}, said())
		breakDown(t, far, l, refused)
		require.Equal(t, []string{"down", "back"}, said(), "it may be over soon")
		time.Sleep(time.Second - 1)
		require.Equal(t, []string{"down", "back"}, said())
		time.Sleep(time.Nanosecond)
		require.Equal(t, []string{"down", "back", "down"}, said())
		comeBack(t, far, l)
		require.Equal(t, []string{"down", "back", "down", "back"}, said(), "at once")
		breakDown(t, far, l, refused)
		far.set(up)
		time.Sleep(200 * time.Millisecond)
		decide(t, l, "comes back", 0)
		time.Sleep(time.Minute)
		require.Equal(t, []string{"down", "back", "down", "back"}, said(), "one that was over soon is not told of, but counted")
		breakDown(t, far, l, refused)
		require.Len(t, said(), 5)
		require.Contains(t, log.String(), "code=store-down outages=4 ")
		comeBack(t, far, l)
		breakDown(t, far, l, refused)
		require.NoError(t, l.Close(), "and does not wait to tell of it")
		require.Len(t, said(), 6)
	})
}

// TestRefundIntoALease: no more goes back into a lease than was taken out of it.
func TestRefundIntoALease(t *testing.T) {
	limit := FixedWindow(1000, time.Hour)
	remotely(t, Options{Limits: []Limit{limit}, Lease: 250 * time.Millisecond}, func(t *testing.T, far *farStore, l *Limiter) {
		admitted := int64(0)
		for range 100 {
			if decide(t, l, "key", 1).Allowed {
				admitted++
			}
			time.Sleep(time.Millisecond)
		}
		require.NotZero(t, l.Stats().Remote.Leased)
		require.NoError(t, l.Refund(ctx, "key", 1_000_000))
		for range 5000 {
			if decide(t, l, "key", 1).Allowed {
				admitted++
			}
			time.Sleep(time.Millisecond)
		}
		require.LessOrEqual(t, admitted, int64(1000+100+1000/16), "the limit, what was given back, and what was leased then")
	})
}
