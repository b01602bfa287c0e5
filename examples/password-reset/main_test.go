package main

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
)

// ask asks for a code from an address, or with no e-mail whether there is one.
func ask(r *reset, address, email string) *httptest.ResponseRecorder {
	req := httptest.NewRequest("GET", "/codes", nil)
	if email != "" {
		req = httptest.NewRequest("POST", "/codes", strings.NewReader(url.Values{"email": {email}}.Encode()))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.RemoteAddr = address + ":1234"
	w := httptest.NewRecorder()
	r.handler().ServeHTTP(w, req)
	return w
}

// TestCodes: three for an address and three for a mailbox, whichever is spent first;
// an hour from the first one on, whatever happens to the program in between.
func TestCodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		start := func() *reset {
			r, err := newReset(ratelimit.FixedWindow(3, time.Hour), dir)
			require.NoError(t, err)
			return r
		}
		r := start()
		require.Equal(t, 204, ask(r, "192.0.2.1", "").Code)
		require.Equal(t, 400, ask(r, "192.0.2.1", "nobody").Code)
		require.Equal(t, 400, ask(r, "192.0.2.1", "Ada <ada@example.com>").Code)
		for _, email := range []string{"ada@example.com", "Ada@Example.com", "ADA@example.com"} {
			require.Equal(t, 204, ask(r, "192.0.2.1", email).Code)
			time.Sleep(time.Minute)
		}
		refused := func(address, email string, minutes string) {
			t.Helper()
			w := ask(r, address, email)
			require.Equal(t, http.StatusTooManyRequests, w.Code)
			require.Equal(t, minutes, w.Header().Get("Retry-After"))
		}
		for range 3 {
			refused("192.0.2.1", "", "3420")
			refused("192.0.2.1", "grace@example.com", "3420")
			refused("192.0.2.2", "aDa@example.com", "3420")
			require.Equal(t, 204, ask(r, "192.0.2.2", "").Code, "who is refused for the mailbox has spent nothing")
			require.NoError(t, r.close())
			r = start()
		}
		time.Sleep(57*time.Minute - time.Nanosecond)
		refused("192.0.2.1", "", "1")
		time.Sleep(time.Nanosecond)
		require.Equal(t, 204, ask(r, "192.0.2.1", "ada@example.com").Code)
		require.NoError(t, r.close())
	})
}

// TestPage: it is there, and other sites cannot ask on a visitor's behalf.
func TestPage(t *testing.T) {
	r, err := newReset(ratelimit.FixedWindow(3, time.Hour), t.TempDir())
	require.NoError(t, err)
	defer r.close()
	w := httptest.NewRecorder()
	r.handler().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	require.Equal(t, 200, w.Code)
	require.Contains(t, w.Body.String(), "Forgot password")

	req := httptest.NewRequest("POST", "/codes", strings.NewReader("email=ada%40example.com"))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	w = httptest.NewRecorder()
	r.handler().ServeHTTP(w, req)
	require.Equal(t, 403, w.Code)
}
