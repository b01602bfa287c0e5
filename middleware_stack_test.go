package ratelimit_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestRequestsOfABatchEndpointCount has a handler that makes requests with the
// context of its own request. Each of them counts.
func TestRequestsOfABatchEndpointCount(t *testing.T) {
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

// TestDeniedHandlerCannotServeTheRequest uses an Options.Denied that sends the
// request to the mux again.
func TestDeniedHandlerCannotServeTheRequest(t *testing.T) {
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

// TestNestedLimitersShareHeaderFields checks that lists have the limits of
// both, and that the outer limiter's come first. A field that cannot hold a list
// reports the binding limit of both.
func TestNestedLimitersShareHeaderFields(t *testing.T) {
	const h10, h7, h6, old, none = HeadersDraft10, HeadersDraft7, HeadersDraft6, HeadersLegacy, HeadersNone
	for _, test := range []struct {
		name         string
		outer, inner Headers
		nOut, nIn    int64
		before       int
		want         string
	}{
		{"allowed", h10, h10, 9, 9, 0, `
			Ratelimit: "out";r=8;t=3600, "in";r=8;t=60
			Ratelimit-Policy: "out";q=9;w=3600, "in";q=9;w=60`},
		{"denied inside", h10, h10, 9, 2, 2, `
			Ratelimit: "out";r=6;t=3600, "in";r=0;t=60
			Ratelimit-Policy: "out";q=9;w=3600, "in";q=2;w=60
			Retry-After: 61`},
		{"denied outside", h10, h10, 2, 9, 2, `
			Ratelimit: "out";r=0;t=3600
			Ratelimit-Policy: "out";q=2;w=3600
			Retry-After: 3600`},
		{"the inner tells nothing", h10, none, 9, 9, 0, `
			Ratelimit: "out";r=8;t=3600
			Ratelimit-Policy: "out";q=9;w=3600`},
		{"the outer tells nothing", none, h10, 9, 9, 0, `
			Ratelimit: "in";r=8;t=60
			Ratelimit-Policy: "in";q=9;w=60`},
		{"draft 7, the inner binds", h7, h7, 9, 2, 0, `
			Ratelimit: limit=2, remaining=1, reset=60
			Ratelimit-Policy: 9;w=3600, 2;w=60`},
		{"draft 7, the outer binds", h7, h7, 2, 9, 0, `
			Ratelimit: limit=2, remaining=1, reset=3600
			Ratelimit-Policy: 2;w=3600, 9;w=60`},
		{"draft 7, as much is left: the outer", h7, h7, 3, 3, 0, `
			Ratelimit: limit=3, remaining=2, reset=3600
			Ratelimit-Policy: 3;w=3600, 3;w=60`},
		{"draft 6, the inner binds", h6, h6, 9, 2, 0, `
			Ratelimit-Limit: 2
			Ratelimit-Policy: 9;w=3600, 2;w=60
			Ratelimit-Remaining: 1
			Ratelimit-Reset: 60`},
		{"draft 6, the outer binds", h6, h6, 2, 9, 0, `
			Ratelimit-Limit: 2
			Ratelimit-Policy: 2;w=3600, 9;w=60
			Ratelimit-Remaining: 1
			Ratelimit-Reset: 3600`},
		{"draft 6, denied inside", h6, h6, 3, 2, 2, `
			Ratelimit-Limit: 2
			Ratelimit-Policy: 3;w=3600, 2;w=60
			Ratelimit-Remaining: 0
			Ratelimit-Reset: 90
			Retry-After: 61`},
		{"legacy, the inner binds", old, old, 9, 2, 0, `
			X-Ratelimit-Limit: 2
			X-Ratelimit-Remaining: 1
			X-Ratelimit-Reset: 946684860`},
		{"legacy, the outer binds", old, old, 2, 9, 0, `
			X-Ratelimit-Limit: 2
			X-Ratelimit-Remaining: 1
			X-Ratelimit-Reset: 946688400`},
		{"all that goes together", h10 | h6 | old, h10 | h6 | old, 2, 9, 0, `
			Ratelimit: "out";r=1;t=3600, "in";r=8;t=60
			Ratelimit-Limit: 2
			Ratelimit-Policy: "out";q=2;w=3600, "in";q=9;w=60
			Ratelimit-Remaining: 1
			Ratelimit-Reset: 3600
			X-Ratelimit-Limit: 2
			X-Ratelimit-Remaining: 1
			X-Ratelimit-Reset: 946688400`},
		{"draft 10 around legacy, the outer binds", h10, old, 2, 9, 0, `
			Ratelimit: "out";r=1;t=3600
			Ratelimit-Policy: "out";q=2;w=3600
			X-Ratelimit-Limit: 2
			X-Ratelimit-Remaining: 1
			X-Ratelimit-Reset: 946688400`},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				out, in := stacked(t, Options{Headers: test.outer}, Options{Headers: test.inner}, test.nOut, test.nIn)
				h := out.Middleware(in.Middleware(httpServed))
				for range test.before {
					httpFields(h, httpRequest("GET"))
				}
				assert.Equal(t, unindent(test.want), httpFields(h, httpRequest("GET")))
			})
		})
	}
}

// TestInnerDenialGivesOuterUnitsBack checks that a client that one limiter
// denies does not drain the limiters around it, and does not get more units
// than it had.
func TestInnerDenialGivesOuterUnitsBack(t *testing.T) {
	all := func(n int64) Options {
		return Options{Limits: []Limit{FixedWindow(n, time.Hour), TokenBucket(n, time.Hour, n), SlidingWindow(n, time.Minute)}}
	}
	for _, test := range []struct {
		name                string
		outer               Options
		first, middle, last int64 // limits, from the outside in
		want                [3]int64
	}{
		{"by the last", Options{}, 9, 9, 1, [3]int64{8, 8, 0}},
		{"by the one in the middle", Options{}, 9, 1, 9, [3]int64{8, 0, 8}},
		{"by the first", Options{}, 1, 9, 9, [3]int64{0, 8, 8}},
		{"of a higher cost", Options{Cost: func(*http.Request) int64 { return 3 }}, 9, 9, 1, [3]int64{6, 8, 0}},
		{"of no cost", Options{Cost: func(*http.Request) int64 { return 0 }}, 9, 9, 1, [3]int64{9, 8, 0}},
		{"once, where the denial does not count either", Options{Count: func(_ *http.Request, status int) bool { return status != 429 }}, 9, 9, 1, [3]int64{8, 8, 0}},
		{"nothing, where nothing was taken", Options{Shadow: true}, 1, 9, 1, [3]int64{0, 8, 0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test.outer.Limits = all(test.first).Limits
				limiters := []*Limiter{
					httpLimiterNamed(t, t.Name()+" 1", test.outer),
					httpLimiterNamed(t, t.Name()+" 2", all(test.middle)),
					httpLimiterNamed(t, t.Name()+" 3", all(test.last)),
				}
				h := limiters[0].Middleware(limiters[1].Middleware(limiters[2].Middleware(httpServed)))
				for range 4 { // one is served, three are not
					httpAnswer(h, httpRequest("GET"))
				}
				for i, l := range limiters {
					assert.Equal(t, test.want[i], leftOf(t, l, httpKey), "limiter %d", i+1)
				}
			})
		})
	}
}

// TestOnlyInnerDenialsGiveUnitsBack has inner limiters that fail or admit. The
// outer units stay taken.
func TestOnlyInnerDenialsGiveUnitsBack(t *testing.T) {
	for _, test := range []struct {
		name  string
		inner Options
		want  int
	}{
		{"no key", Options{Key: emptyKey}, 400},
		{"broken store", Options{Store: &brokenStore{err: context.DeadlineExceeded}}, 503},
		{"shadow", Options{Shadow: true, Cost: func(*http.Request) int64 { return 100 }}, 204},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, in := stacked(t, Options{}, test.inner, 9, 9)
			w := httptest.NewRecorder()
			out.Middleware(in.Middleware(httpServed)).ServeHTTP(w, httpRequest("GET"))
			assert.Equal(t, test.want, w.Code)
			assert.EqualValues(t, 8, leftOf(t, out, httpKey))
		})
	}
}

// TestLimiterMountedTwiceCountsOnce checks that there is one set of fields and
// one warning, which says where.
func TestLimiterMountedTwiceCountsOnce(t *testing.T) {
	for name, mount := range map[string]func(a, b *Limiter) http.Handler{
		"around itself":       func(a, b *Limiter) http.Handler { return a.Middleware(a.Middleware(httpServed)) },
		"around another":      func(a, b *Limiter) http.Handler { return a.Middleware(b.Middleware(a.Middleware(httpServed))) },
		"around and in a mux": muxed,
		"Check behind Middleware": func(a, b *Limiter) http.Handler {
			return a.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for range 2 {
					if !a.Check(w, r) {
						return
					}
				}
				httpServed(w, r)
			}))
		},
		"Middleware behind Check": func(a, b *Limiter) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if a.Check(w, r) {
					a.Middleware(httpServed).ServeHTTP(w, r)
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := new(logged)
				a := httpLimiterNamed(t, t.Name()+" a", Options{Limits: []Limit{FixedWindow(5, time.Hour).Named("a")}, Logger: log.logger()})
				b := httpLimiterNamed(t, t.Name()+" b", Options{Limits: []Limit{FixedWindow(5, time.Hour).Named("b")}, Headers: HeadersNone})
				h := mount(a, b)
				for _, left := range []string{"4", "3", "2", "1", "0"} {
					assert.Equal(t, "204\nRatelimit: \"a\";r="+left+";t=3600\nRatelimit-Policy: \"a\";q=5;w=3600", httpAnswer(h, httpRequest("GET")))
				}
				assert.Contains(t, httpAnswer(h, httpRequest("GET")), "429\n")
				assert.Equal(t, []Code{CodeCountedOnce}, log.codes())
			})
		})
	}
}

func muxed(a, _ *Limiter) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", a.Middleware(httpServed))
	return a.Middleware(mux)
}

// TestNestedLimitersAllowOtherWritersBetween puts a handler between two
// limiters that removes or changes the fields of the outer one. They stay
// removed.
func TestNestedLimitersAllowOtherWritersBetween(t *testing.T) {
	for name, between := range map[string]func(http.Handler) http.Handler{
		"removed": func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				clear(w.Header())
				next.ServeHTTP(w, r)
			})
		},
		"emptied": func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for name := range w.Header() {
					w.Header()[name] = nil
				}
				next.ServeHTTP(w, r)
			})
		},
	} {
		for _, styles := range []Headers{HeadersDraft10 | HeadersDraft6, HeadersDraft7 | HeadersLegacy} {
			t.Run(fmt.Sprint(name, styles), func(t *testing.T) {
				out, in := stacked(t, Options{Headers: styles}, Options{Headers: styles}, 9, 2)
				w := httptest.NewRecorder()
				require.NotPanics(t, func() {
					out.Middleware(between(in.Middleware(httpServed))).ServeHTTP(w, httpRequest("GET"))
				})
				assert.Equal(t, http.StatusNoContent, w.Code)
				if styles&HeadersDraft10 != 0 {
					assert.Equal(t, []string{`"in";r=1;t=60`}, w.Header()["Ratelimit"])
					assert.Equal(t, []string{`"in";q=2;w=60`}, w.Header()["Ratelimit-Policy"])
				} else {
					assert.Equal(t, []string{"limit=2, remaining=1, reset=60"}, w.Header()["Ratelimit"])
				}
			})
		}
	}
}

// TestFieldsOfAHandlerBetweenLimitersStay has a handler between two limiters that adds
// lines of its own. With draft 10, they are members of the list. The older styles have no
// lists.
func TestFieldsOfAHandlerBetweenLimitersStay(t *testing.T) {
	const h10, h7, h6, old, none = HeadersDraft10, HeadersDraft7, HeadersDraft6, HeadersLegacy, HeadersNone
	gateway := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("RateLimit", "")
			w.Header().Add("RateLimit", `"gateway";r=1;t=5`)
			w.Header().Add("RateLimit", `"cdn";r=7;t=5`)
			w.Header().Add("RateLimit-Policy", `"gateway";q=2;w=5`)
			next.ServeHTTP(w, r)
		})
	}
	const others = `"gateway";r=1;t=5, "cdn";r=7;t=5`
	for _, test := range []struct {
		name         string
		outer, inner Headers
		want         string
	}{
		{"draft 10", h10, h10, `
			Ratelimit: "out";r=8;t=3600, ` + others + `, "in";r=8;t=60
			Ratelimit-Policy: "out";q=9;w=3600, "gateway";q=2;w=5, "in";q=9;w=60`},
		{"draft 10 around another style as well", h10, h10 | h6, `
			Ratelimit: "out";r=8;t=3600, ` + others + `, "in";r=8;t=60
			Ratelimit-Limit: 9
			Ratelimit-Policy: "out";q=9;w=3600, "gateway";q=2;w=5, "in";q=9;w=60
			Ratelimit-Remaining: 8
			Ratelimit-Reset: 3600`},
		{"the inner shows nothing", h10, none, `
			Ratelimit: "out";r=8;t=3600
			Ratelimit:
			Ratelimit: "gateway";r=1;t=5
			Ratelimit: "cdn";r=7;t=5
			Ratelimit-Policy: "out";q=9;w=3600
			Ratelimit-Policy: "gateway";q=2;w=5`},
		{"draft 7", h7, h7, `
			Ratelimit: limit=9, remaining=8, reset=3600
			Ratelimit-Policy: 9;w=3600, 9;w=60`},
		{"draft 10 inside of draft 7", h7 | old, h10, `
			Ratelimit: "in";r=8;t=60
			Ratelimit-Policy: "in";q=9;w=60
			X-Ratelimit-Limit: 9
			X-Ratelimit-Remaining: 8
			X-Ratelimit-Reset: 946688400`},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				out, in := stacked(t, Options{Headers: test.outer}, Options{Headers: test.inner}, 9, 9)
				assert.Equal(t, unindent(test.want), httpFields(out.Middleware(gateway(in.Middleware(httpServed))), httpRequest("GET")))
			})
		})
	}
}

func TestNilLimiterFailsWhereItIsMounted(t *testing.T) {
	l, err := new(Registry).New("", Options{})
	require.Error(t, err)
	require.PanicsWithValue(t, "ratelimit: Middleware of a nil *Limiter: check the error of New, or use Must", func() { l.Middleware(httpServed) })
}

func TestNilHandlerIsTheDefaultMux(t *testing.T) {
	h := httpLimiter(t, Options{Limits: []Limit{FixedWindow(5, time.Hour).Named("a")}}).Middleware(nil)
	assert.True(t, strings.HasPrefix(httpAnswer(h, httpRequest("GET")), "404\n"))
}
