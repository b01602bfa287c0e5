package ratelimit_test

import (
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
)

// httpKey is the default key of httpRequest.
const httpKey = "192.0.2.1"

// httpLimiter makes a limiter of the test that logs nothing, unless opts has a logger.
func httpLimiter(t testing.TB, opts Options) *Limiter {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = quietly
	}
	return ratelimittest.New(t, opts)
}

// httpLimiterNamed does the same as httpLimiter, with a name.
func httpLimiterNamed(t testing.TB, name string, opts Options) *Limiter {
	t.Helper()
	if opts.Store == nil {
		t.Cleanup(func() { Memory(name).Close() })
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	reg := new(Registry)
	t.Cleanup(func() { reg.Close() })
	l, err := reg.New(name, opts)
	require.NoError(t, err)
	return l
}

// httpRequest makes a request from 192.0.2.1 with header fields such as
// "Accept: */*".
func httpRequest(method string, fields ...string) *http.Request {
	r := httptest.NewRequest(method, "/", nil)
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		r.Header.Add(name, value)
	}
	return r
}

// from makes a request from a peer, with header fields such as "Accept: */*".
func from(peer string, fields ...string) *http.Request {
	r := httpRequest("GET", fields...)
	r.RemoteAddr = peer
	return r
}

// emptyKey is a KeyFunc that finds nothing.
func emptyKey(*http.Request) (string, error) { return "", nil }

// networksOf returns the networks that s lists.
func networksOf(s string) (list []netip.Prefix) {
	for _, one := range strings.Fields(s) {
		list = append(list, netip.MustParsePrefix(one))
	}
	return list
}

// httpServed is the handler behind a limiter. A status of 204 shows that it was
// called.
var httpServed = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })

// httpAnswer returns the whole answer of h: the status, the header fields in
// the order of their names, and the body after "> ".
func httpAnswer(h http.Handler, r *http.Request) string {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	lines := []string{fmt.Sprint(w.Code)}
	for _, name := range slices.Sorted(maps.Keys(w.Header())) {
		for _, value := range w.Header()[name] {
			lines = append(lines, name+": "+value)
		}
	}
	if w.Body.Len() > 0 {
		lines = append(lines, "> "+w.Body.String())
	}
	return strings.Join(lines, "\n")
}

// httpFields returns the header fields about limits in the answer of h, in the
// order of their names.
func httpFields(h http.Handler, r *http.Request) string {
	var about []string
	for line := range strings.Lines(httpAnswer(h, r)) {
		if strings.Contains(line, "Ratelimit") || strings.HasPrefix(line, "Retry-After") {
			about = append(about, strings.TrimSpace(line))
		}
	}
	return strings.Join(about, "\n")
}

// unindent turns an indented literal into what httpAnswer returns.
func unindent(s string) string {
	return strings.ReplaceAll(strings.TrimSpace(s), "\n\t\t\t", "\n")
}

// denialHead is the beginning of the header of a denial in plain text.
const denialHead = `
			Cache-Control: no-store
			Content-Length: 42
			Content-Type: text/plain; charset=utf-8`

// statuses are the statuses that Options.Count was called with. None of them
// counts.
type statuses struct {
	mu   sync.Mutex
	list []int
}

// count is an Options.Count.
func (s *statuses) count(_ *http.Request, status int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, status)
	return false
}

// all returns the statuses so far.
func (s *statuses) all() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list
}

// statusOf returns the status of h's answer.
func statusOf(h http.Handler) int {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httpRequest("GET"))
	return w.Code
}

// stacked makes two limiters to be nested. Their policies are "out" and "in".
func stacked(t testing.TB, outer, inner Options, nOut, nIn int64) (out, in *Limiter) {
	outer.Limits = []Limit{FixedWindow(nOut, time.Hour).Named("out")}
	inner.Limits = []Limit{SlidingWindow(nIn, time.Minute).Named("in")}
	return httpLimiterNamed(t, t.Name()+" out", outer), httpLimiterNamed(t, t.Name()+" in", inner)
}
