package ratelimit_test

import (
	"context"
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestCheckAnswersDenials uses Check like a framework that has its own writer,
// request and handlers.
func TestCheckAnswersDenials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(2, time.Hour).Named("x")}})
		for i, want := range []string{
			"200\nRatelimit: \"x\";r=1;t=3600\nRatelimit-Policy: \"x\";q=2;w=3600",
			"200\nRatelimit: \"x\";r=0;t=3600\nRatelimit-Policy: \"x\";q=2;w=3600",
			unindent(`429` + denialHead + `
			Ratelimit: "x";r=0;t=3600
			Ratelimit-Policy: "x";q=2;w=3600
			Retry-After: 3600
			X-Content-Type-Options: nosniff
			> Too many requests, please try again later.`),
		} {
			r := httpRequest("GET")
			same := r // frameworks keep the pointer
			var admitted bool
			got := httpAnswer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { admitted = l.Check(w, r) }), r)
			assert.Equal(t, want, got)
			assert.Equal(t, i < 2, admitted)

			d, ok := DecisionFrom(same.Context())
			assert.True(t, ok, "so that an adapter can tell 429 from 503")
			assert.Equal(t, admitted, d.Allowed)
			if admitted {
				assert.NoError(t, l.AddCost(same.Context(), 0))
			}
		}
	})
}

// TestCheckKeepsTheRequest checks everything that belongs to a request.
func TestCheckKeepsTheRequest(t *testing.T) {
	type key struct{}
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(2, time.Hour)}, Skip: func(r *http.Request) bool { return r.Method == "HEAD" }})
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "kept"))
	r := httpRequest("GET").WithContext(ctx)
	r.SetPathValue("id", "7")
	require.True(t, l.Check(httptest.NewRecorder(), r))
	assert.Equal(t, "kept", r.Context().Value(key{}))
	assert.Equal(t, "7", r.PathValue("id"))
	derived, cancelDerived := context.WithCancel(r.Context())
	defer cancelDerived()
	cancel()
	assert.ErrorIs(t, r.Context().Err(), context.Canceled)
	assert.ErrorIs(t, derived.Err(), context.Canceled)

	skipped := httpRequest("HEAD")
	require.True(t, l.Check(httptest.NewRecorder(), skipped))
	_, ok := DecisionFrom(skipped.Context())
	assert.False(t, ok)
}

// TestShadowNeverDenies has requests that fail in different ways. Stats counts
// the requests that would have been denied.
func TestShadowNeverDenies(t *testing.T) {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for _, test := range []struct {
		name string
		opts Options
		ctx  context.Context
		want uint64
	}{
		{"limit", Options{}, context.Background(), 3},
		{"cost that never fits", Options{Cost: func(*http.Request) int64 { return math.MaxInt64 }}, context.Background(), 5},
		{"no key", Options{Key: emptyKey}, context.Background(), 0},
		{"broken store", Options{Store: &brokenStore{err: errors.New("no")}}, context.Background(), 0},
		{"client gone", Options{}, gone, 0},
		{"denied handler", Options{Denied: http.NotFoundHandler()}, context.Background(), 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.opts.Shadow, test.opts.Limits = true, []Limit{FixedWindow(2, time.Hour)}
			l := httpLimiter(t, test.opts)
			for range 5 {
				assert.Equal(t, "204", httpAnswer(l.Middleware(httpServed), httpRequest("GET").WithContext(test.ctx)))
			}
			assert.Equal(t, test.want, l.Stats().ShadowDenied)
		})
	}
}

func TestLookTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := []Limit{FixedWindow(5, time.Hour), SlidingWindow(3, time.Minute).Named("m")}
		pro := []Limit{FixedWindow(50, time.Hour).Named("pro")}
		l := httpLimiterNamed(t, "look", Options{
			Limits: limits,
			LimitsFor: func(r *http.Request) []Limit {
				if r.Header.Get("Plan") == "pro" {
					return pro
				}
				return nil
			},
			Key: FirstKey(HeaderKey("X-API-Key"), func(r *http.Request) (string, error) {
				return "", map[string]error{"HEAD": ErrExempt, "GET": ErrNoKey}[r.Method]
			}),
		})
		alice := httpRequest("GET", "X-API-Key: alice")
		httpAnswer(l.Middleware(httpServed), alice)
		for range 3 { // looking takes nothing
			got, err := l.Look(alice)
			require.NoError(t, err)
			assert.Equal(t, []Standing{
				{"look-1h", limits[0], Result{Remaining: 4, MoreAfter: time.Hour, ResetAfter: time.Hour}},
				{"m", limits[1], Result{Remaining: 2, MoreAfter: time.Minute + 1, ResetAfter: time.Minute + 1}},
			}, got)
		}
		got, err := l.Look(httpRequest("GET", "X-API-Key: alice", "Plan: pro"))
		require.NoError(t, err)
		assert.Equal(t, []Standing{{"pro", pro[0], Result{Remaining: 49, MoreAfter: time.Hour, ResetAfter: time.Hour}}}, got)

		for method, want := range map[string]error{"GET": ErrNoKey, "HEAD": ErrExempt} {
			_, err := l.Look(httpRequest(method))
			assert.ErrorIs(t, err, want)
		}
		require.NoError(t, l.Close())
		_, err = l.Look(alice)
		assert.ErrorIs(t, err, ErrClosed)
	})
}

func TestClosedLimiterAnswers503(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(5, time.Hour)}})
	require.NoError(t, l.Close())
	assert.Contains(t, httpAnswer(l.Middleware(httpServed), httpRequest("GET")), "503\n")
}
