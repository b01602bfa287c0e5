package ratelimit_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// These tests check when a response arrives, and clients that do not wait for it. They use
// real connections: net/http sends a small response only when the handler has returned, and
// a recorder does not show that.

// TestAnswersDoNotWaitForUnitsToBeGivenBack checks denials, whose outer
// limiters get their units back, and responses that do not count.
func TestAnswersDoNotWaitForUnitsToBeGivenBack(t *testing.T) {
	const timeout = 200 * time.Millisecond
	for _, test := range []struct {
		name   string
		outer  int // limiters on a store that hangs when units are given back
		count  func(*http.Request, int) bool
		inner  Limit
		status int
	}{
		{"a denial inside of one limiter", 1, nil, FixedWindow(1, time.Hour), 429},
		{"a denial inside of three", 3, nil, FixedWindow(1, time.Hour), 429},
		{"a response that does not count", 1, func(*http.Request, int) bool { return false }, FixedWindow(9, time.Hour), 200},
		{"two that do not count it", 2, func(*http.Request, int) bool { return false }, FixedWindow(9, time.Hour), 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			inner := httpLimiterNamed(t, "inner", Options{Limits: []Limit{test.inner}, Store: memory(t, "inner"), Key: StaticKey("k")})
			var handler http.Handler = inner.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "done") }))
			var stores []*remoteBackend
			for i := range test.outer {
				store := &remoteBackend{Store: memory(t, fmt.Sprint("outer", i))}
				stores = append(stores, store)
				outer := httpLimiterNamed(t, fmt.Sprint("outer", i), Options{Limits: []Limit{hour}, Store: store, Key: StaticKey("k"), Timeout: timeout, Count: test.count})
				handler = outer.Middleware(handler)
			}
			server := httptest.NewServer(handler)
			defer server.Close()
			get := func() (status int, took time.Duration) {
				start := time.Now()
				response, err := server.Client().Get(server.URL)
				require.NoError(t, err)
				_, err = io.Copy(io.Discard, response.Body)
				require.NoError(t, err)
				response.Body.Close()
				return response.StatusCode, time.Since(start)
			}
			get()
			for _, store := range stores {
				store.set(adjustsHang)
			}
			status, took := get()
			assert.Equal(t, test.status, status)
			assert.Less(t, took, 4*time.Second, "a call that gives units back takes 5 s")
			for _, store := range stores {
				store.set(up)
			}
		})
	}
}

// hanging is a store whose Adjust returns only when its context is done.
type hanging struct{ *MemoryStore }

func (s *hanging) Adjust(ctx context.Context, _ string, _ int64, _ Instant, _ []Limit) (int64, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

// TestDenialDoesNotWaitForAHangingAdjust nests two limiters. The inner one
// denies while the store of the outer one hangs. Giving the units back ends in
// time, also after the client has left.
func TestDenialDoesNotWaitForAHangingAdjust(t *testing.T) {
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

// TestGuessesOfClientsThatHangUpCount has handlers that answer a cancelled
// context with different statuses.
func TestGuessesOfClientsThatHangUpCount(t *testing.T) {
	failed := func(r *http.Request, status int) bool { return status == http.StatusUnauthorized }
	began := make(chan struct{}, 1)
	login := func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-r.Context().Done() // by then, the handler has checked the password
		switch r.URL.Query().Get("then") {
		case "":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "nothing":
		case "panic":
			panic(http.ErrAbortHandler)
		case "success":
			w.WriteHeader(http.StatusNoContent)
		}
	}
	for _, test := range []struct {
		name, query string
		wrap        func(http.Handler) http.Handler
		left        int64
	}{
		{"answered with 503", "", nil, 0},
		{"answered with nothing", "nothing", nil, 0},
		{"aborted", "panic", nil, 0},
		{"a TimeoutHandler inside", "", func(h http.Handler) http.Handler { return http.TimeoutHandler(h, time.Minute, "too late") }, 0},
		{"known to have succeeded", "success", nil, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := httpLimiterNamed(t, "login", Options{Limits: []Limit{FixedWindow(5, time.Hour)}, Store: memory(t, ""), Key: StaticKey("k"), Count: failed})
			var handler http.Handler = http.HandlerFunc(login)
			if test.wrap != nil {
				handler = test.wrap(handler)
			}
			ended := make(chan struct{}, 1)
			limited := l.Middleware(handler)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() { ended <- struct{}{} }()
				limited.ServeHTTP(w, r)
			}))
			defer server.Close()
			for range 5 {
				ctx, cancel := context.WithCancel(t.Context())
				go func() { <-began; cancel() }()
				r, err := http.NewRequestWithContext(ctx, "POST", server.URL+"?then="+test.query, nil)
				require.NoError(t, err)
				_, err = server.Client().Do(r)
				require.ErrorIs(t, err, context.Canceled)
				<-ended
			}
			d, err := l.TakeN(t.Context(), "k", 0)
			require.NoError(t, err)
			assert.Equal(t, test.left, d.Remaining)
		})
	}
}
