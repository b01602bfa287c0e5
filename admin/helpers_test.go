package admin_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/admin"
)

var ctx = context.Background()

// quiet is a logger that logs nothing.
var quiet = slog.New(slog.DiscardHandler)

// hourly is a limit whose window does not end during a test.
var hourly = ratelimit.FixedWindow(5, time.Hour)

// newLimiter makes a limiter in a registry. It and its counters are gone when the test ends.
func newLimiter(t testing.TB, r *ratelimit.Registry, name string, opts ratelimit.Options) *ratelimit.Limiter {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = quiet
	}
	if opts.Limits == nil {
		opts.Limits = []ratelimit.Limit{hourly}
	}
	if opts.Store == nil && opts.Redis == nil {
		store := ratelimit.Memory(t.Name() + "/" + name)
		t.Cleanup(func() { store.Close() })
		opts.Store = store
	}
	l, err := r.New(name, opts)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// deny uses a key up, and has it denied n times.
func deny(t testing.TB, l *ratelimit.Limiter, key string, n int) {
	t.Helper()
	for range int(l.Limits()[0].Burst()) + n {
		_, err := l.Take(ctx, key)
		require.NoError(t, err)
	}
}

// anna lets every request in as anna.
func anna(*http.Request) (string, bool) { return "anna", true }

// A site is a handler of the admin page, as its clients see it.
type site struct {
	testing.TB
	handler http.Handler
	path    string // of the mount
}

func newSite(t testing.TB, opts admin.Options) *site { return &site{t, admin.Handler(opts), "/admin/"} }

// send sends a request from this machine.
func (s *site) send(method, page string, form url.Values, change ...func(*http.Request)) *httptest.ResponseRecorder {
	s.Helper()
	r := httptest.NewRequest(method, "http://127.0.0.1:8080"+s.path+page, strings.NewReader(form.Encode()))
	r.RemoteAddr = "127.0.0.1:40000"
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, f := range change {
		f(r)
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return w
}

// get returns a page that must be there.
func (s *site) get(page string) string {
	s.Helper()
	w := s.send("GET", page, nil)
	require.Equal(s, http.StatusOK, w.Code, "%s: %s", page, w.Body)
	return w.Body.String()
}

// json returns a page as JSON.
func (s *site) json(page string) (v map[string]any) {
	s.Helper()
	w := s.send("GET", page, nil, accepting("application/json"))
	require.Equal(s, http.StatusOK, w.Code, "%s: %s", page, w.Body)
	require.Equal(s, "application/json", w.Header().Get("Content-Type"))
	require.NoError(s, json.Unmarshal(w.Body.Bytes(), &v))
	return v
}

// post sends a form and returns the page that it leads to.
func (s *site) post(page string, form url.Values) (to string) {
	s.Helper()
	w := s.send("POST", page, form)
	require.Equal(s, http.StatusSeeOther, w.Code, "%s: %s", page, w.Body)
	return w.Header().Get("Location")
}

// find looks a key up, and returns the page that it leads to.
func (s *site) find(limiter, key string) string {
	s.Helper()
	return s.post("key", url.Values{"limiter": {limiter}, "key": {key}})
}

func accepting(types string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Accept", types) }
}

func with(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header[name] = []string{value} }
}

// at returns part of JSON: names of fields, and numbers of elements.
func at(v any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			v = v.(map[string]any)[step]
		case int:
			v = v.([]any)[step]
		}
	}
	return v
}

// text returns the text of a page, without tags.
func text(page string) string {
	page = regexp.MustCompile(`<[^>]*>`).ReplaceAllString(page, "")
	return strings.Join(strings.Fields(page), " ")
}
