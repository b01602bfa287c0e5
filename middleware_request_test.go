package ratelimit_test

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestOuterHandlersSeeWhatInnerOnesSet checks that the limiter does not hide
// what the handler inside learns about the request.
func TestOuterHandlersSeeWhatInnerOnesSet(t *testing.T) {
	var countedStatuses statuses
	for name, opts := range map[string]Options{"plain": {}, "counting": {Count: countedStatuses.count}} {
		opts.Limits = []Limit{FixedWindow(9, time.Hour)}
		t.Run(name+", pattern", func(t *testing.T) {
			mux := http.NewServeMux()
			mux.Handle("GET /users/{id}", httpServed)
			limited := httpLimiter(t, opts).Middleware(mux)
			r := httptest.NewRequest("GET", "/users/7", nil)
			limited.ServeHTTP(httptest.NewRecorder(), r)
			assert.Equal(t, "GET /users/{id}", r.Pattern, "for a log or metrics around the limiter")
			_, ok := DecisionFrom(r.Context())
			assert.False(t, ok, "the request can be served again, and counts again")
		})
		t.Run(name+", temporary files", func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("TMPDIR", dir)
			files := func() int {
				entries, err := os.ReadDir(dir)
				require.NoError(t, err)
				return len(entries)
			}
			during := 0
			s := httptest.NewServer(httpLimiter(t, opts).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				assert.NoError(t, r.ParseMultipartForm(1))
				during = files()
			})))
			var body bytes.Buffer
			form := multipart.NewWriter(&body)
			part, err := form.CreateFormFile("upload", "large")
			require.NoError(t, err)
			fmt.Fprintf(part, "%10000000d", 1)
			require.NoError(t, form.Close())
			answer, err := http.Post(s.URL, form.FormDataContentType(), &body)
			require.NoError(t, err)
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
			s.Close()
			assert.Equal(t, http.StatusOK, answer.StatusCode)
			assert.Equal(t, 1, during)
			assert.Zero(t, files(), "the server removes an upload's files when the request is over")
		})
	}
}

func TestRequestServedTwiceCountsTwice(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}})
	h, r := l.Middleware(httpServed), httpRequest("GET")
	for range 3 {
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	assert.EqualValues(t, 6, leftOf(t, l, httpKey))
}

// TestFilesOfADeniedPagesFormAreRemoved has a page for denials that reads an upload.
func TestFilesOfADeniedPagesFormAreRemoved(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	during := 0
	count := func() int {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		return len(entries)
	}
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.NoError(t, r.ParseMultipartForm(1))
		during = count()
	})
	s := httptest.NewServer(httpLimiter(t, Options{Limits: []Limit{hour}, Cost: func(*http.Request) int64 { return 9 }, Denied: page}).Middleware(httpServed))
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	part, err := form.CreateFormFile("upload", "large")
	require.NoError(t, err)
	fmt.Fprintf(part, "%10000000d", 1)
	require.NoError(t, form.Close())
	answer, err := http.Post(s.URL, form.FormDataContentType(), &body)
	require.NoError(t, err)
	answer.Body.Close()
	s.Close()
	assert.Equal(t, 429, answer.StatusCode)
	assert.Equal(t, 1, during)
	assert.Zero(t, count())
}
