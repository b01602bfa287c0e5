package ratelimit_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestRoutesOfOneLimiterCountTogether mounts a limiter on two routes with
// Middleware and on a third one with Check.
func TestRoutesOfOneLimiterCountTogether(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(4, time.Hour)}})
	mux := http.NewServeMux()
	mux.Handle("GET /login", l.Middleware(httpServed))
	mux.Handle("GET /reset", l.Middleware(httpServed))
	mux.HandleFunc("GET /code", func(w http.ResponseWriter, r *http.Request) {
		if l.Check(w, r) {
			httpServed(w, r)
		}
	})
	for i, path := range []string{"/login", "/reset", "/code", "/login", "/reset", "/code", "/login"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if i < 4 {
			require.Equal(t, http.StatusNoContent, w.Code, "request %d, %s", i, path)
		} else {
			require.Equal(t, http.StatusTooManyRequests, w.Code, "request %d, %s", i, path)
		}
	}
}

// TestRequestTargetAndBodyMakeNoKey sends requests of one client that differ in
// everything that a client can choose freely. By default all of them have the
// same key.
func TestRequestTargetAndBodyMakeNoKey(t *testing.T) {
	requests := []struct{ method, target, contentType, body string }{
		{"GET", "/login", "", ""},
		{"GET", "/login/", "", ""},
		{"GET", "/Login", "", ""},
		{"GET", "//login", "", ""},
		{"GET", "/./login", "", ""},
		{"GET", "/%6Cogin", "", ""},
		{"GET", "/login;x=1", "", ""},
		{"GET", "/login?email=a@example.com", "", ""},
		{"GET", "http://other.example/login", "", ""},
		{"HEAD", "/login", "", ""},
		{"POST", "/login", "application/x-www-form-urlencoded", "email=a@example.com"},
		{"POST", "/login", "application/x-www-form-urlencoded", "email=b@example.com"},
		{"POST", "/login", "application/json", `{"email": "c@example.com"}`},
	}
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(100, time.Hour)}})
	h := l.Middleware(httpServed)
	for i, test := range requests {
		r := httptest.NewRequest(test.method, test.target, strings.NewReader(test.body))
		r.Header.Set("Content-Type", test.contentType)
		h.ServeHTTP(httptest.NewRecorder(), r)
		require.EqualValues(t, 100-i-1, leftOf(t, l, httpKey), "%s %s %s", test.method, test.target, test.body)
	}
}
