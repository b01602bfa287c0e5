package ratelimit_test

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// What somebody who means harm has tried, or who means well and is careless.

// A stream that was admitted under a fast bucket must not go on to fill it at that
// rate when SetLimits has made it slow.
func TestAddCostFillsAtTheRateInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{TokenBucket(60_000, time.Minute, 100)}})
		admitted := 0
		l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.NoError(t, l.SetLimits(TokenBucket(1, time.Minute, 100)))
			for range 60 {
				for {
					d, err := l.Take(r.Context(), httpKey)
					require.NoError(t, err)
					if !d.Allowed {
						break
					}
					admitted++
				}
				require.NoError(t, l.AddCost(r.Context(), 1))
				time.Sleep(time.Second)
			}
		})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
		require.LessOrEqual(t, admitted, 101, "a burst, and one in the minute")
	})
}

// hanging is a store that answers no Adjust before its context is done.
type hanging struct{ *MemoryStore }

func (s *hanging) Adjust(ctx context.Context, _ string, _ int64, _ Instant, _ []Limit) (int64, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

// A denial does not wait for what is given back further out, and that does not wait
// for ever, also when the client has left.
func TestHangingAdjust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := httpLimiterNamed(t, t.Name()+"out", Options{Limits: []Limit{hour}, Store: &hanging{memory(t, "out")}})
		in := httpLimiterNamed(t, t.Name()+"in", Options{Limits: []Limit{hour}, Cost: func(*http.Request) int64 { return 6 }})
		left, cancel := context.WithCancel(t.Context())
		w := httptest.NewRecorder()
		done := make(chan struct{})
		go func() {
			defer close(done)
			out.Middleware(in.Middleware(httpServed)).ServeHTTP(w, httpRequest("GET").WithContext(left))
		}()
		synctest.Wait()
		require.Equal(t, 429, w.Code, "answered while the store hangs")
		cancel()
		start := time.Now()
		<-done
		require.LessOrEqual(t, time.Since(start), 10*time.Second)
	})
}

// late is a store that times out, and writes its results when nobody waits for them
// any longer.
type late struct {
	fakeStore
	mu      sync.Mutex
	results [][]Result
}

func (s *late) Take(_ context.Context, key string, _ int64, _ []Limit, results []Result) (Instant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key == "times out" {
		s.results = append(s.results, results)
		return 0, errors.New("timeout")
	}
	for _, r := range s.results {
		clear(r) // which admits
	}
	results[0] = Result{RetryAfter: time.Second}
	for _, r := range s.results {
		clear(r)
	}
	return 0, nil
}

func TestLateWriterHarmsNobodyElse(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{hour}, Store: &late{fakeStore: fakeStore{prefix: "late:"}}})
	for range 1000 {
		_, err := l.Take(ctx, "times out")
		require.Error(t, err)
		d, err := l.Take(ctx, "denied")
		require.NoError(t, err)
		require.False(t, d.Allowed)
	}
}

// zipped is the gzip wrapper that everybody has written once.
type zipped struct {
	http.ResponseWriter
	zip *gzip.Writer
}

func (z zipped) Write(b []byte) (int, error) { return z.zip.Write(b) }

func TestDenialThroughACompressor(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Hour)}})
	limited := l.Middleware(httpServed)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Cache-Control", "public, max-age=3600")
		w.Header().Set("ETag", `"x"`)
		zip := gzip.NewWriter(w)
		defer zip.Close()
		limited.ServeHTTP(zipped{w, zip}, r)
	}))
	defer server.Close()
	for range 2 {
		resp, err := http.Get(server.URL) // the client's transport unpacks it
		require.NoError(t, err)
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusTooManyRequests {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "Too many requests, please try again later.", string(body))
		require.Empty(t, resp.Header.Get("Cache-Control")+resp.Header.Get("ETag"), "of the answer that it is not")
		return
	}
	t.Fatal("never denied")
}

func TestResetReachesEveryLimit(t *testing.T) {
	plan := []Limit{FixedWindow(1, 7*time.Hour)}
	limits := plan
	l := httpLimiter(t, Options{Limits: []Limit{hour}, LimitsFor: func(*http.Request) []Limit { return limits }})
	handler := l.Middleware(httpServed)
	send := func() int {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httpRequest("GET"))
		return w.Code
	}
	l.TakeN(ctx, httpKey, 5)
	require.Equal(t, []int{204, 429}, []int{send(), send()})
	for i := range 100 { // more windows than are remembered
		limits = []Limit{FixedWindow(9, time.Duration(i+1)*time.Second)}
		require.Equal(t, 204, send())
	}
	limits = plan
	require.Equal(t, 429, send())
	require.NoError(t, l.Reset(ctx, httpKey))
	require.Equal(t, 204, send())
	d, err := l.Take(ctx, httpKey)
	require.NoError(t, err)
	require.True(t, d.Allowed)
}

// A batch endpoint makes requests with the context of its own: each of them counts.
func TestRequestsWithinARequestCount(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(3, time.Hour)}})
	served := 0
	inner := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++ }))
	l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 10 {
			sub, err := http.NewRequestWithContext(r.Context(), "POST", "/login", nil)
			require.NoError(t, err)
			sub.RemoteAddr = r.RemoteAddr
			inner.ServeHTTP(httptest.NewRecorder(), sub)
		}
	})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
	require.Equal(t, 2, served)
}

// A Denied that sends the request round again does not get it served.
func TestDeniedThatDispatchesAgain(t *testing.T) {
	mux := http.NewServeMux()
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Denied: mux})
	served := 0
	mux.Handle("/", l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++ })))
	for range 5 {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httpRequest("GET"))
		if served == 1 && w.Code == 200 {
			continue
		}
		require.Equal(t, 429, w.Code)
	}
	require.Equal(t, 1, served)
}

// lying is a store that says it charged what nobody asked it to.
type lying struct{ *MemoryStore }

func (s *lying) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	_, err := s.MemoryStore.Adjust(ctx, key, n, at, limits)
	return -50, err
}

func TestGarbageFromAdjustMintsNothing(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(20, time.Hour)}, Store: &lying{memory(t, "s")}})
	_, err := l.TakeN(ctx, httpKey, 10)
	require.NoError(t, err)
	l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.NoError(t, l.AddCost(r.Context(), 3))
		assert.NoError(t, l.AddCost(r.Context(), -100))
	})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
	require.LessOrEqual(t, leftOf(t, l, httpKey), int64(10))
}

// A middleware that changes header values in place changes its own response only.
func TestHeaderValuesAreTheResponsesOwn(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Hour)}})
	for range 3 {
		w := httptest.NewRecorder()
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
		for name, values := range w.Header() {
			require.NotContains(t, values[0], "changed", name)
			values[0] += "changed"
		}
	}
}

func TestInvalidLimitsInACallToTheStore(t *testing.T) {
	s := memory(t, "s")
	for _, l := range []Limit{{}, TokenBucket(0, time.Second, 5), FixedWindow(5, 0), TokenBucket(1, -1, 5)} {
		_, err := s.Take(ctx, "key", 1, []Limit{l}, make([]Result, 1))
		require.ErrorContains(t, err, "is not valid")
	}
	require.Zero(t, s.Stats().Counters)
}

func TestNormalizeIsBounded(t *testing.T) {
	long := Normalize(strings.Repeat("\ufdfa", 1<<20))
	require.Less(t, len(long), 100)
	require.NotEqual(t, long, Normalize(strings.Repeat("\ufdfa", 1<<20)+"a"))
	for _, invisible := range []string{"\u034f", "\ufe0f", "\u180b", "\u115f", "\u3164", "\u17b4", "\U000e0100"} {
		require.Equal(t, "bob", Normalize("b"+invisible+"ob"), fmt.Sprintf("%+q", invisible))
	}
}
