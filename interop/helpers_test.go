package interop_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// newLimiter makes a limiter in a registry and on a memory store of its own. Both
// are closed when the test ends.
func newLimiter(t testing.TB, name string, opts Options) *Limiter {
	t.Helper()
	opts.Logger = slog.New(slog.DiscardHandler)
	reg := new(Registry)
	l, err := reg.New(name, opts)
	require.NoError(t, err)
	t.Cleanup(func() { closeLimiter(t, l) })
	return l
}

// closeLimiter closes a limiter and its memory store. The name is then free, and
// the counters are gone.
func closeLimiter(t testing.TB, l *Limiter) {
	t.Helper()
	require.NoError(t, l.Close())
	require.NoError(t, Memory(l.Name()).Close())
}

// request makes a GET request from 192.0.2.1.
func request() *http.Request { return httptest.NewRequest("GET", "/", nil) }

// served is the handler behind a limiter: 204 shows that it was reached.
var served = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })

// fieldsOf returns the header fields of l's response to a request.
func fieldsOf(l *Limiter) http.Header {
	w := httptest.NewRecorder()
	l.Middleware(served).ServeHTTP(w, request())
	return w.Header()
}
