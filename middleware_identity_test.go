package ratelimit_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

type anyKey struct{}

// betweens are handlers that pass on their request or a copy.
var betweens = map[string]func(http.Handler) http.Handler{
	"nothing": func(next http.Handler) http.Handler { return next },
	"a clone": changed(func(r *http.Request) *http.Request {
		return r.Clone(context.WithValue(r.Context(), anyKey{}, "user"))
	}),
	"two clones": changed(func(r *http.Request) *http.Request { return r.Clone(r.Context()).Clone(r.Context()) }),
	"a clone with a field": changed(func(r *http.Request) *http.Request {
		clone := r.Clone(r.Context())
		clone.Header.Set("X-User", "alice")
		return clone
	}),
	"a clone with another address": changed(func(r *http.Request) *http.Request { // like a middleware that reads X-Real-IP
		clone := r.Clone(r.Context())
		clone.RemoteAddr = "198.51.100.1:1"
		return clone
	}),
	"a clone with a bounded body": changed(func(r *http.Request) *http.Request {
		clone := r.Clone(r.Context())
		clone.Body = http.MaxBytesReader(nil, r.Body, 1000)
		return clone
	}),
	"another context": changed(func(r *http.Request) *http.Request {
		return r.WithContext(context.WithValue(r.Context(), anyKey{}, "user"))
	}),
	"a clone by hand":  changed(func(r *http.Request) *http.Request { other := *r; other.Header = r.Header.Clone(); return &other }),
	"a new header map": changed(func(r *http.Request) *http.Request { r.Header = r.Header.Clone(); return r }),
	"another method":   changed(func(r *http.Request) *http.Request { r.Method = "DELETE"; return r }),
	"another path": changed(func(r *http.Request) *http.Request { // like a middleware that rewrites paths
		clone := r.Clone(r.Context())
		clone.URL.Path, clone.URL.RawQuery = "/v2/elsewhere", "y=z"
		return clone
	}),
	"a shorter path":            func(next http.Handler) http.Handler { return http.StripPrefix("/api", next) },
	"a timeout":                 timeout,
	"a timeout around a clone":  func(next http.Handler) http.Handler { return timeout(cloned(next)) },
	"a timeout in a clone":      func(next http.Handler) http.Handler { return cloned(timeout(next)) },
	"a timeout, a shorter path": func(next http.Handler) http.Handler { return timeout(cloned(http.StripPrefix("/api", next))) },
	"a mux":                     inMux,
	"a writer of its own":       loggingWriter,
	"all of them": func(next http.Handler) http.Handler {
		return loggingWriter(cloned(timeout(inMux(http.StripPrefix("/api", cloned(unwrappingWriter(next)))))))
	},
}

// changed makes a handler that changes its request.
func changed(change func(*http.Request) *http.Request) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, change(r)) })
	}
}

func cloned(next http.Handler) http.Handler {
	return changed(func(r *http.Request) *http.Request { return r.Clone(r.Context()) })(next)
}

func timeout(next http.Handler) http.Handler { return http.TimeoutHandler(next, time.Hour, "") }

func inMux(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", next)
	return mux
}

// TestCopyOfARequestIsTheSameRequest has handlers between two limiters, or between a
// limiter and itself. Over a network, units go back to the outer one if the inner one
// denies, and a request that passes one limiter twice counts once.
func TestCopyOfARequestIsTheSameRequest(t *testing.T) {
	for name, between := range betweens {
		t.Run(name, func(t *testing.T) {
			out, in := stacked(t, Options{Key: StaticKey("k")}, Options{Key: StaticKey("k")}, 9, 2)
			s := httptest.NewServer(out.Middleware(between(in.Middleware(httpServed))))
			t.Cleanup(s.Close)
			for i, want := range []int{204, 204, 429, 429} {
				answer, err := http.Get(s.URL + "/api/users?x=1")
				require.NoError(t, err)
				answer.Body.Close()
				assert.Equal(t, want, answer.StatusCode, i)
			}
			assert.EqualValues(t, 7, leftOf(t, out, "k"), "what was denied inside is given back")

			log := new(logged)
			twice := httpLimiterNamed(t, t.Name()+" twice", Options{Limits: []Limit{hour}, Key: StaticKey("k"), Logger: log.logger()})
			s2 := httptest.NewServer(twice.Middleware(between(twice.Middleware(httpServed))))
			t.Cleanup(s2.Close)
			answer, err := http.Post(s2.URL+"/api/users?x=1", "text/plain", strings.NewReader("body"))
			require.NoError(t, err)
			answer.Body.Close()
			assert.Equal(t, 204, answer.StatusCode)
			assert.EqualValues(t, 4, leftOf(t, twice, "k"))
			assert.Equal(t, []Code{CodeCountedOnce}, log.codes())
		})
	}
}

// TestRequestOfAHandlerIsAnotherRequest has a handler behind a limiter that makes its own
// requests, like a batch endpoint, with the context of its request. Each of them counts.
// If one of them is denied, the units of the handler's request are not given back.
func TestRequestOfAHandlerIsAnotherRequest(t *testing.T) {
	parse := func(s string) *url.URL { u, _ := url.Parse(s); return u }
	for name, make := range map[string]func(r *http.Request) *http.Request{
		"a new one": func(r *http.Request) *http.Request {
			sub, _ := http.NewRequestWithContext(r.Context(), "POST", "/login", nil)
			sub.RemoteAddr = r.RemoteAddr
			return sub
		},
		"a new one for the same path": func(r *http.Request) *http.Request {
			sub, _ := http.NewRequestWithContext(r.Context(), r.Method, r.URL.String(), nil)
			return sub
		},
		"a new one with the same fields": func(r *http.Request) *http.Request {
			sub, _ := http.NewRequestWithContext(r.Context(), r.Method, "/login", nil)
			sub.Header = r.Header
			return sub
		},
		"a request of a test": func(r *http.Request) *http.Request {
			return httptest.NewRequest("POST", "/login", nil).WithContext(r.Context())
		},
		"a clone for another path": func(r *http.Request) *http.Request {
			sub := r.Clone(r.Context())
			sub.URL = parse("/login")
			return sub
		},
		"a clone for the end of the path": func(r *http.Request) *http.Request {
			sub := r.Clone(r.Context())
			sub.URL = parse("/atch")
			return sub
		},
		"a clone for the same path": func(r *http.Request) *http.Request { return r.Clone(r.Context()) },
		"a copy whose path is changed in place": func(r *http.Request) *http.Request {
			sub := r.WithContext(r.Context())
			sub.URL.Path = "/login"
			return sub
		},
		"a clone without a path": func(r *http.Request) *http.Request {
			sub := r.Clone(r.Context())
			sub.URL = &url.URL{Opaque: "x"}
			return sub
		},
		"a clone with another method": func(r *http.Request) *http.Request {
			sub := r.Clone(r.Context())
			sub.Method = "DELETE"
			return sub
		},
		"a clone with another query": func(r *http.Request) *http.Request {
			sub := r.Clone(r.Context())
			sub.URL.RawQuery = "user=bob"
			return sub
		},
		"a copy for another path": func(r *http.Request) *http.Request {
			sub := r.WithContext(r.Context())
			sub.URL = parse("/login")
			return sub
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(4, time.Hour)}, Key: StaticKey("k")})
			in := httpLimiterNamed(t, t.Name()+" in", Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Key: StaticKey("k")})
			served := 0
			inner := l.Middleware(in.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++ })))
			var statuses []int
			s := httptest.NewServer(l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for range 3 {
					recorder := httptest.NewRecorder()
					inner.ServeHTTP(recorder, make(r))
					statuses = append(statuses, recorder.Code)
					assert.NotContains(t, recorder.Header().Get("RateLimit"), ", \""+l.Name()+"\"", "no fields of the request around it")
					assert.Equal(t, 1, strings.Count(recorder.Header().Get("RateLimit"), l.Name()+`"`))
				}
			})))
			defer s.Close()
			answer, err := http.Post(s.URL+"/batch?x=1", "text/plain", nil)
			require.NoError(t, err)
			answer.Body.Close()
			assert.Equal(t, []int{200, 429, 429}, statuses)
			assert.Equal(t, 1, served)
			assert.EqualValues(t, 2, leftOf(t, l, "k"), "one for the batch, one for what was served in it")
		})
	}
}

// TestAnotherKeyOfARequestCounts checks a request twice: first it is known by its
// address, and then by a user.
func TestAnotherKeyOfARequestCounts(t *testing.T) {
	userOrAddress := FirstKey(func(r *http.Request) (string, error) {
		if user, ok := r.Context().Value(anyKey{}).(string); ok {
			return user, nil
		}
		return "", ErrNoKey
	}, ClientIP{}.Key)
	login := changed(func(r *http.Request) *http.Request {
		return r.WithContext(context.WithValue(r.Context(), anyKey{}, r.Header.Get("User")))
	})
	log := new(logged)
	for name, mount := range map[string]func(l *Limiter) http.Handler{
		"Middleware twice": func(l *Limiter) http.Handler { return l.Middleware(login(l.Middleware(httpServed))) },
		"with a clone":     func(l *Limiter) http.Handler { return l.Middleware(cloned(login(l.Middleware(httpServed)))) },
		"Check twice": func(l *Limiter) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !l.Check(w, r) {
					return
				}
				login(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					admitted := l.Check(w, r)
					if admitted && l.Check(w, r) { // the third time it is known by the same key
						httpServed(w, r)
					}
				})).ServeHTTP(w, r)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(3, time.Hour)}, Key: userOrAddress, Logger: log.logger()})
			h := mount(l)
			for _, user := range []string{"alice", "alice", "bob"} {
				assert.Contains(t, httpAnswer(h, httpRequest("GET", "User: "+user)), "204\n")
			}
			assert.EqualValues(t, 1, leftOf(t, l, "0=alice"))
			assert.EqualValues(t, 2, leftOf(t, l, "0=bob"))
			assert.EqualValues(t, 0, leftOf(t, l, "1="+httpKey))
			assert.Contains(t, httpAnswer(h, httpRequest("GET", "User: carol")), "429\n", "the address is at its limit")
			assert.EqualValues(t, 3, leftOf(t, l, "0=carol"))

			require.NoError(t, l.Reset(ctx, "1="+httpKey))
			_, err := l.TakeN(ctx, "0=bob", 2)
			require.NoError(t, err)
			assert.Contains(t, httpAnswer(h, httpRequest("GET", "User: bob")), "429\n", "the user is at its limit")
			assert.EqualValues(t, 3, leftOf(t, l, "1="+httpKey), "the address has its unit back")
		})
	}
}

// TestAdapterCanTellADenialFromAFailure uses Check like an adapter that writes the
// responses to refused requests itself.
func TestAdapterCanTellADenialFromAFailure(t *testing.T) {
	for name, test := range map[string]struct {
		opts    Options
		status  int
		decided bool
	}{
		"denied":             {Options{Cost: func(*http.Request) int64 { return 9 }}, 429, true},
		"denied, with page":  {Options{Cost: func(*http.Request) int64 { return 9 }, Denied: http.NotFoundHandler()}, 404, true},
		"no key":             {Options{Key: emptyKey}, 400, false},
		"option failed":      {Options{Cost: func(*http.Request) int64 { return -1 }}, 500, false},
		"store failed":       {Options{Store: &brokenStore{err: context.DeadlineExceeded}}, 503, false},
		"allowed":            {Options{}, 200, true},
		"allowed, no fields": {Options{Headers: HeadersNone}, 200, true},
		"exempt":             {Options{Skip: func(*http.Request) bool { return true }}, 200, false},
	} {
		test.opts.Limits = []Limit{hour}
		l := httpLimiterNamed(t, name, test.opts)
		w, r := httptest.NewRecorder(), httpRequest("GET")
		admitted := l.Check(w, r)
		d, decided := DecisionFrom(r.Context())
		assert.Equal(t, test.status, w.Code, name)
		assert.Equal(t, test.decided, decided, name)
		assert.Equal(t, admitted && decided, d.Allowed, name)
		if test.status == 429 {
			assert.Equal(t, Never, d.RetryAfter)
			assert.Error(t, l.AddCost(r.Context(), 1), "it was not admitted")
		}
	}
	// An outer limiter's decision is not the inner one's failure.
	out, in := stacked(t, Options{}, Options{Store: &brokenStore{err: context.DeadlineExceeded}}, 9, 9)
	r := httpRequest("GET")
	require.True(t, out.Check(httptest.NewRecorder(), r))
	require.False(t, in.Check(httptest.NewRecorder(), r))
	d, ok := DecisionFrom(r.Context())
	assert.True(t, ok && d.Allowed, fmt.Sprint(d))
}
