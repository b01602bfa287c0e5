package ratelimit_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestCountGetsTheStatusOfEachResponse ends a response in every way. Count is
// called once, and the units are given back.
func TestCountGetsTheStatusOfEachResponse(t *testing.T) {
	for _, test := range []struct {
		name   string
		handle http.HandlerFunc
		want   int
		panics any
	}{
		{"nothing written", func(w http.ResponseWriter, r *http.Request) {}, 200, nil},
		{"status", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403) }, 403, nil},
		{"body", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("x")) }, 200, nil},
		{"string", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x") }, 200, nil},
		{"status and body", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404); w.Write([]byte("x")) }, 404, nil},
		{"two statuses", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401); w.WriteHeader(200) }, 401, nil},
		{"body, then status", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("x")); w.WriteHeader(500) }, 200, nil},
		{"flushed", func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); w.WriteHeader(500) }, 200, nil},
		{"flushed by a controller", func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).Flush()
			w.WriteHeader(500)
		}, 200, nil},
		{"informational, then final", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(103); w.WriteHeader(422) }, 422, nil},
		{"informational, then body", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(103); w.Write(nil) }, 200, nil},
		{"informational only", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(102) }, 200, nil},
		{"switching protocols", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(101) }, 101, nil},
		{"panic", func(w http.ResponseWriter, r *http.Request) { panic("no") }, 500, "no"},
		{"abort", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, 500, http.ErrAbortHandler},
		{"panic after status", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(201); panic("no") }, 201, "no"},
		{"panic after body", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("x")); panic("no") }, 200, "no"},
		{"panic after an informational status", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(103); panic("no") }, 500, "no"},
		{"no such status", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(0) }, 500, "invalid WriteHeader code 0"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, 302, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var countedStatuses statuses
			l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}, Count: countedStatuses.count})
			_, err := l.TakeN(t.Context(), httpKey, 3)
			require.NoError(t, err)
			during := int64(-1)
			h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				during = leftOf(t, l, httpKey)
				test.handle(w, r)
			}))
			serve := func() { h.ServeHTTP(httptest.NewRecorder(), httpRequest("GET")) }
			if test.panics != nil {
				assert.PanicsWithValue(t, test.panics, serve)
			} else {
				serve()
			}
			assert.EqualValues(t, 5, during)
			assert.Equal(t, []int{test.want}, countedStatuses.all())
			assert.EqualValues(t, 6, leftOf(t, l, httpKey))
		})
	}
}

// TestHandlerThatExitsCountsAs500 ends the goroutine of a handler, as a failed
// test does. Count gets the same status as after a panic.
func TestHandlerThatExitsCountsAs500(t *testing.T) {
	var countedStatuses statuses
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}, Count: countedStatuses.count})
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { runtime.Goexit() })).
			ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
	}()
	<-done
	assert.Equal(t, []int{500}, countedStatuses.all())
	assert.EqualValues(t, 9, leftOf(t, l, httpKey))
}

// TestResponsesThatDoNotCountTakeNoUnits limits failed logins.
func TestResponsesThatDoNotCountTakeNoUnits(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(3, time.Hour)}, Count: func(r *http.Request, status int) bool { return status == 401 }})
	h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Password") != "right" {
			w.WriteHeader(401)
		}
	}))
	var got []int
	for _, password := range []string{"right", "wrong", "right", "right", "wrong", "right", "wrong", "right"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httpRequest("GET", "Password: "+password))
		got = append(got, w.Code)
	}
	assert.Equal(t, []int{200, 401, 200, 200, 401, 200, 401, 429}, got)
}

func TestCountIsNotCalledForUncountedRequests(t *testing.T) {
	for name, opts := range map[string]Options{
		"denied":  {Cost: func(*http.Request) int64 { return 100 }},
		"skipped": {Skip: func(*http.Request) bool { return true }},
		"exempt":  {Key: func(*http.Request) (string, error) { return "", ErrExempt }},
		"no key":  {Key: emptyKey},
	} {
		t.Run(name, func(t *testing.T) {
			var countedStatuses statuses
			opts.Limits, opts.Count = []Limit{FixedWindow(9, time.Hour)}, countedStatuses.count
			l := httpLimiter(t, opts)
			httpAnswer(l.Middleware(httpServed), httpRequest("GET"))
			assert.Empty(t, countedStatuses.all())
		})
	}
}

// TestCountThroughCheckWarns uses Check, which does not see the response.
func TestCountThroughCheckWarns(t *testing.T) {
	var countedStatuses statuses
	log := new(logged)
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}, Count: countedStatuses.count, Logger: log.logger()})
	for range 3 {
		assert.True(t, l.Check(httptest.NewRecorder(), httpRequest("GET")))
	}
	assert.Empty(t, countedStatuses.all())
	assert.EqualValues(t, 6, leftOf(t, l, httpKey))
	assert.Equal(t, []Code{CodeCountIgnored}, log.codes())
}

// TestUnitsGoBackIntoTheirWindow has slow handlers. Their units go back into
// the window that they were taken from, and not into a window that has begun
// since.
func TestUnitsGoBackIntoTheirWindow(t *testing.T) {
	const n = 4
	for _, test := range []struct {
		name  string
		limit Limit
		slow  time.Duration // the time that the handler takes
		other time.Duration // after this time, another request takes 2 units
		want  int64         // what is left when the handler has returned
	}{
		{"the same window", FixedWindow(n, time.Minute), 30 * time.Second, 10 * time.Second, 2},
		{"the window's last moment", FixedWindow(n, time.Minute), time.Minute - 1, 10 * time.Second, 2},
		{"a new window", FixedWindow(n, time.Minute), 90 * time.Second, 70 * time.Second, 2},
		{"no window", FixedWindow(n, time.Minute), 90 * time.Second, 10 * time.Second, 4},
		{"sliding: the same window", SlidingWindow(n, time.Minute), 30 * time.Second, 10 * time.Second, 2},
		{"sliding: the one before", SlidingWindow(n, time.Minute), 61 * time.Second, 10 * time.Second, 3},
		{"sliding: one long gone", SlidingWindow(n, time.Minute), 150 * time.Second, 130 * time.Second, 2},
		{"bucket: nothing has leaked", TokenBucket(n, time.Hour, n), 0, 0, 2},
		{"bucket: the part that has not leaked", TokenBucket(n, time.Minute, n), 10 * time.Second, 9 * time.Second, 2},
		{"bucket: all has leaked", TokenBucket(n, time.Minute, n), 90 * time.Second, 90 * time.Second, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var countedStatuses statuses
				l := httpLimiter(t, Options{Limits: []Limit{test.limit}, Count: countedStatuses.count})
				l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(test.other)
					d, err := l.TakeN(r.Context(), httpKey, 2)
					require.NoError(t, err)
					require.True(t, d.Allowed)
					time.Sleep(test.slow - test.other)
				})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
				assert.Equal(t, test.want, leftOf(t, l, httpKey))
			})
		})
	}
}

// TestUnitsGoBackAfterTheClientHasLeft sends a success after the request's
// context is done. The response is known, so it decides.
func TestUnitsGoBackAfterTheClientHasLeft(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var countedStatuses statuses
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}, Count: countedStatuses.count})
	l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
		w.WriteHeader(204)
	})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET").WithContext(ctx))
	assert.Equal(t, []int{204}, countedStatuses.all())
	assert.EqualValues(t, 9, leftOf(t, l, httpKey))
}

// unsteadyStore is a memory store whose Adjust fails.
type unsteadyStore struct{ *MemoryStore }

func (s *unsteadyStore) Adjust(context.Context, string, int64, Instant, []Limit) (int64, error) {
	return 0, errors.New("connection lost")
}

// TestUnitsThatCannotGoBackStayTaken checks that the failure is logged, and not
// retried.
func TestUnitsThatCannotGoBackStayTaken(t *testing.T) {
	var countedStatuses statuses
	log := new(logged)
	store := Memory(t.Name())
	defer store.Close()
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}, Count: countedStatuses.count, Store: &unsteadyStore{store}, Logger: log.logger()})
	l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.ErrorContains(t, l.AddCost(r.Context(), 1), `ratelimit: limiter "TestUnitsThatCannotGoBackStayTaken": connection lost`)
		w.WriteHeader(http.StatusOK)
	})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
	assert.EqualValues(t, 8, leftOf(t, l, httpKey))
	assert.Equal(t, []Code{CodeStoreFailed}, log.codes())
}

func TestDecisionFromReturnsTheDecision(t *testing.T) {
	_, ok := DecisionFrom(context.Background())
	assert.False(t, ok)

	b, f := TokenBucket(10, 10*time.Second, 2).Named("b"), FixedWindow(9, time.Minute)
	synctest.Test(t, func(t *testing.T) {
		var got Decision
		h := httpLimiter(t, Options{Limits: []Limit{b, f}, Shadow: true}).Middleware(http.HandlerFunc(
			func(w http.ResponseWriter, r *http.Request) { got, _ = DecisionFrom(r.Context()) }))
		for _, want := range []Decision{
			{Allowed: true, Limit: b, Remaining: 1, ResetAfter: time.Second, MoreAfter: time.Second, Policy: "b"},
			{Allowed: true, Limit: b, Remaining: 0, ResetAfter: 2 * time.Second, MoreAfter: time.Second, Policy: "b"},
			{Limit: b, Remaining: 0, ResetAfter: 2 * time.Second, RetryAfter: time.Second, MoreAfter: time.Second, Policy: "b"},
		} {
			h.ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
			assert.Equal(t, want, got)
			assert.Equal(t, "store", got.Source.String())
		}
	})
}

func TestDecisionFromIsOfTheInnermostLimiter(t *testing.T) {
	out, in := stacked(t, Options{}, Options{}, 2, 9)
	requireDecisionOf := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			d, ok := DecisionFrom(r.Context())
			assert.True(t, ok)
			assert.Equal(t, name, d.Limit.Name())
			if name == "out" {
				in.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					d, _ := DecisionFrom(r.Context())
					assert.Equal(t, "in", d.Limit.Name())
				})).ServeHTTP(w, r)
			}
		}
	}
	out.Middleware(requireDecisionOf("out")).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
}
