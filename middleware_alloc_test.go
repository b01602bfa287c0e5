package ratelimit_test

import (
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	. "github.com/ratelimit-go/ratelimit"
)

// allocationFreeWriter is a ResponseWriter that allocates nothing of its own.
type allocationFreeWriter struct {
	header http.Header
	status int
}

func (f *allocationFreeWriter) Header() http.Header         { return f.header }
func (f *allocationFreeWriter) Write(b []byte) (int, error) { return len(b), nil }
func (f *allocationFreeWriter) WriteHeader(status int)      { f.status = status }

// TestRequestStaysWithinItsAllocations measures a request on its way through a
// limiter, with a handler that reads the decision. The names and the numbers in
// header fields have fixed lengths, because they are part of the bytes.
func TestRequestStaysWithinItsAllocations(t *testing.T) {
	admitted := 0
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d, ok := DecisionFrom(r.Context()); ok && d.Allowed {
			admitted++
		}
	})
	const n = 1_000_000_000
	proxies := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	plan := []Limit{FixedWindow(n, time.Hour), TokenBucket(n, time.Hour, n)}
	for _, test := range []struct {
		name   string
		opts   Options
		fields []string
		denied bool
		want   float64 // allocations, at most
		bytes  float64 // at most; 0 means any number
	}{
		{"default", Options{}, nil, false, 2, 512},
		{"no fields", Options{Headers: HeadersNone}, nil, false, 1, 480},
		{"two limits", Options{Limits: []Limit{FixedWindow(n, time.Hour), SlidingWindow(n, time.Minute)}}, nil, false, 2, 544},
		{"a plan", Options{LimitsFor: func(*http.Request) []Limit { return plan }}, nil, false, 2, 560},
		{"a header as the key", Options{Key: HeaderKey("X-Key")}, []string{"X-Key: abc"}, false, 2, 512},
		{"behind a proxy", Options{Key: ClientIP{TrustedProxies: proxies}.Key}, []string{"X-Forwarded-For: 203.0.113.66, 198.51.100.1"}, false, 3, 528},
		{"skipped", Options{Skip: func(*http.Request) bool { return true }}, nil, false, 0, 0},
		{"denied, no fields", Options{Headers: HeadersNone, Cost: func(*http.Request) int64 { return 1 << 50 }}, nil, true, 1, 256},
		{"denied", Options{Cost: func(*http.Request) int64 { return 1 << 50 }}, nil, true, 2, 280},
		{"denied, for a program", Options{Cost: func(*http.Request) int64 { return 1 << 50 }}, []string{"Accept: application/json"}, true, 5, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.opts.Limits == nil {
				test.opts.Limits = []Limit{FixedWindow(n, time.Hour)}
			}
			limited := httpLimiterNamed(t, "login", test.opts).Middleware(h)
			w, r := &allocationFreeWriter{header: make(http.Header)}, httpRequest("GET", test.fields...)
			got, bytes := allocations(func() {
				clear(w.header)
				limited.ServeHTTP(w, r)
			})
			assert.Equal(t, test.denied, w.status == http.StatusTooManyRequests)
			assert.LessOrEqual(t, got, test.want, "allocations")
			if test.bytes > 0 {
				assert.LessOrEqual(t, bytes, test.bytes, "bytes")
			}
			t.Logf("%v allocations, %v bytes", got, bytes)
		})
	}
	assert.Positive(t, admitted)
}
