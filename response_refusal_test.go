package ratelimit_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// successFields are fields that handlers set for a successful response.
var successFields = http.Header{
	"Cache-Control": {"public, max-age=300", "s-maxage=600"}, "Expires": {"Thu, 01 Dec 2050 16:00:00 GMT"}, "Pragma": {"public"}, "Age": {"1"},
	"Cdn-Cache-Control": {"max-age=300"}, "Cloudflare-Cdn-Cache-Control": {"max-age=300"},
	"Surrogate-Control": {"max-age=300"}, "X-Accel-Expires": {"300"}, "Edge-Control": {"max-age=300"}, "Surrogate-Key": {"a"}, "Cache-Tag": {"a"},
	"Content-Length": {"1234"}, "Content-Encoding": {"br"}, "Content-Range": {"bytes 0-9/10"}, "Content-Disposition": {`attachment; filename="export.csv"`},
	"Content-Language": {"de"}, "Content-Location": {"/export.csv"}, "Content-Md5": {"x"}, "Content-Digest": {"x"}, "Repr-Digest": {"x"}, "Digest": {"x"},
	"Accept-Ranges": {"bytes"}, "Location": {"/elsewhere"}, "Refresh": {"1"},
	"X-Accel-Redirect": {"/internal/file"}, "X-Sendfile": {"/file"}, "Etag": {`"x"`}, "Last-Modified": {"Mon, 01 Dec 2025 16:00:00 GMT"},
}

// unusualFields are the same under names that nobody else uses, or that are not in
// canonical form.
var unusualFields = http.Header{
	"Somebodys-Cache-Control": {"max-age=300"}, "Content-Somehow": {"x"}, "ETag": {`"x"`}, "last-modified": {"Mon, 01 Dec 2025 16:00:00 GMT"},
	"CDN-Cache-Control": {"max-age=300"},
}

// otherFields are fields for any response.
var otherFields = http.Header{
	"Set-Cookie": {"s=1"}, "Access-Control-Allow-Origin": {"*"}, "Strict-Transport-Security": {"max-age=300"}, "X-Request-Id": {"7"},
	"Content-Security-Policy": {"default-src 'self'"}, "Vary": {"Origin"}, "X-Frame-Options": {"DENY"}, "Link": {"</x>; rel=help"},
}

// presetFields is a handler that sets fields and calls the next one.
func presetFields(next http.Handler, sets ...http.Header) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, fields := range sets {
			for name, values := range fields {
				w.Header()[name] = values
			}
		}
		next.ServeHTTP(w, r)
	})
}

// refusal is a way in which a limiter refuses a request.
type refusal struct {
	opts   Options
	fields []string
	status int
	body   string
}

// refusals are all ways to refuse a request.
func refusals() map[string]refusal {
	fails := func(err error) KeyFunc { return func(*http.Request) (string, error) { return "", err } }
	expensive := func(*http.Request) int64 { return 10 }
	page := func(w http.ResponseWriter) { io.WriteString(w, "<p>wait</p>") }
	denied := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { page(w) })
	failed := func(w http.ResponseWriter, r *http.Request, status int, err error) { page(w) }
	const text, wait = "Too many requests, please try again later.", "<p>wait</p>"
	const jsonType = "Accept: application/json"
	problem := func(status int) string {
		return fmt.Sprintf(`{"type":"about:blank","title":"%s","status":%d}`, http.StatusText(status), status)
	}
	all := map[string]refusal{
		"denied":                   {Options{}, nil, 429, text},
		"denied, no fields":        {Options{Headers: HeadersNone}, nil, 429, text},
		"denied, older fields":     {Options{Headers: HeadersDraft7 | HeadersDraft6 | HeadersLegacy}, nil, 429, text},
		"denied, for a program":    {Options{}, []string{jsonType}, 429, problemOf + `["denied, for a program"]}`},
		"a cost that never fits":   {Options{Cost: expensive}, nil, 429, text},
		"never fits, no fields":    {Options{Cost: expensive, Headers: HeadersNone}, nil, 429, text},
		"denied, with a page":      {Options{Denied: denied}, nil, 429, wait},
		"never fits, with a page":  {Options{Denied: denied, Cost: expensive}, nil, 429, wait},
		"counted, denied":          {Options{Count: func(*http.Request, int) bool { return true }}, nil, 429, text},
		"no key":                   {Options{Key: emptyKey}, nil, 400, "Bad Request"},
		"no key, no fields":        {Options{Key: emptyKey, Headers: HeadersNone}, nil, 400, "Bad Request"},
		"no key, for a program":    {Options{Key: emptyKey}, []string{jsonType}, 400, problem(400)},
		"no key, with a page":      {Options{Key: emptyKey, Failed: failed}, nil, 400, wait},
		"option failed":            {Options{Key: fails(errors.New("no"))}, nil, 500, "Internal Server Error"},
		"option failed, program":   {Options{Key: fails(errors.New("no"))}, []string{jsonType}, 500, problem(500)},
		"option failed, page":      {Options{Key: fails(errors.New("no")), Failed: failed}, nil, 500, wait},
		"broken store":             {Options{Store: &brokenStore{err: errors.New("no")}}, nil, 503, "Service Unavailable"},
		"broken store, program":    {Options{Store: &brokenStore{err: errors.New("no")}}, []string{jsonType}, 503, problem(503)},
		"broken store, page":       {Options{Store: &brokenStore{err: errors.New("no")}, Failed: failed}, []string{jsonType}, 503, wait},
		"broken store, no page of": {Options{Store: &brokenStore{err: errors.New("no")}, Denied: denied}, nil, 503, "Service Unavailable"},
	}
	return all
}

// TestRefusalsHaveNothingOfTheSuccess puts handlers around a limiter that set fields
// for the successful response. Over a network, a refusal has none of them. It forbids
// caches to store it, and its body is complete.
func TestRefusalsHaveNothingOfTheSuccess(t *testing.T) {
	all := func(next http.Handler) http.Handler {
		return presetFields(next, successFields, unusualFields, otherFields)
	}
	around := map[string]func(http.Handler) http.Handler{
		"directly": all,
		"behind a timeout": func(next http.Handler) http.Handler {
			return presetFields(http.TimeoutHandler(next, time.Hour, ""), successFields, otherFields)
		},
		"in and around a timeout": func(next http.Handler) http.Handler {
			return presetFields(http.TimeoutHandler(all(next), time.Hour, ""), successFields, otherFields)
		},
	}
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		for nesting, wrap := range around {
			for name, test := range refusals() {
				t.Run(nesting+", "+name, func(t *testing.T) {
					test.opts.Limits = []Limit{FixedWindow(1, time.Hour).Named(name)}
					if test.opts.Key == nil {
						test.opts.Key = StaticKey("k")
					}
					l := httpLimiter(t, test.opts)
					s := start(wrap(l.Middleware(httpServed)))
					if test.status == 429 {
						_, err := l.Take(t.Context(), "k")
						require.NoError(t, err)
					}
					for _, method := range []string{"GET", "HEAD"} {
						r, err := http.NewRequestWithContext(t.Context(), method, s.URL, nil)
						require.NoError(t, err)
						for _, f := range test.fields {
							name, value, _ := strings.Cut(f, ": ")
							r.Header.Set(name, value)
						}
						r.Header.Set("Accept-Encoding", "gzip") // which a compressor outside would have removed
						answer, err := s.Client().Do(r)
						require.NoError(t, err)
						body, err := io.ReadAll(answer.Body)
						answer.Body.Close()
						require.NoError(t, err)
						assert.Equal(t, test.status, answer.StatusCode)
						assert.Equal(t, []string{"no-store"}, answer.Header.Values("Cache-Control"))
						if method == "GET" {
							assert.Equal(t, test.body, string(body))
						}
						for _, fields := range []http.Header{successFields, unusualFields} {
							for name := range fields {
								if name != "Cache-Control" && name != "Content-Length" {
									assert.Empty(t, answer.Header.Values(name), name)
								}
							}
						}
						if length := answer.Header.Get("Content-Length"); method == "GET" && length != "" {
							assert.Equal(t, strconv.Itoa(len(test.body)), length)
						}
						for name, want := range otherFields {
							assert.Equal(t, want, answer.Header.Values(name), name)
						}
					}
				})
			}
		}
	})
}

// TestPagesAreNotStored has pages that allow caches to store them. Their other fields
// about their content stay.
func TestPagesAreNotStored(t *testing.T) {
	for name, test := range map[string]struct{ says, want string }{
		"public":          {"public, max-age=60", "no-store"},
		"nothing":         {"", "no-store"},
		"no-cache":        {"no-cache", "no-store"},
		"no-store":        {"private, No-Store", "no-store"},
		"a similar word":  {"x-no-storm", "no-store"},
		"for some caches": {"must-understand, no-store, max-age=600", "no-store"},
	} {
		page := func(w http.ResponseWriter) {
			h := w.Header()
			if test.says != "" {
				h.Set("Cache-Control", test.says)
			}
			h.Set("Expires", "Thu, 01 Dec 2050 16:00:00 GMT")
			h["CDN-Cache-Control"] = []string{"max-age=60"}
			h.Set("Surrogate-Control", "max-age=60")
			h.Set("Content-Language", "de")
			io.WriteString(w, "warten")
		}
		for kind, opts := range map[string]Options{
			"Denied": {Cost: func(*http.Request) int64 { return 9 }, Denied: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { page(w) })},
			"Failed": {Key: emptyKey, Failed: func(w http.ResponseWriter, r *http.Request, status int, err error) { page(w) }},
		} {
			opts.Limits = []Limit{FixedWindow(1, time.Hour)}
			w := httptest.NewRecorder()
			httpLimiterNamed(t, name+kind, opts).Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
			assert.Equal(t, []string{test.want}, w.Header()["Cache-Control"], name)
			assert.Equal(t, "de", w.Header().Get("Content-Language"))
			for _, field := range []string{"Expires", "CDN-Cache-Control", "Cdn-Cache-Control", "Surrogate-Control"} {
				assert.Empty(t, w.Header()[field], name)
			}
		}
	}
}

// TestPageWithoutAStatusHasTheLimiters has pages that write in every way. They are
// served over a network, by Options.Denied and Options.Failed.
func TestPageWithoutAStatusHasTheLimiters(t *testing.T) {
	const limiters = 0
	pages := map[string]struct {
		write func(w http.ResponseWriter)
		want  int // the status; 0 means the limiter's
		body  string
	}{
		"body":                    {func(w http.ResponseWriter) { w.Write([]byte("x")) }, limiters, "x"},
		"string":                  {func(w http.ResponseWriter) { io.WriteString(w, "x") }, limiters, "x"},
		"copied":                  {func(w http.ResponseWriter) { io.Copy(w, strings.NewReader("x")) }, limiters, "x"},
		"large":                   {func(w http.ResponseWriter) { w.Write(bytes.Repeat([]byte("x"), 1<<20)) }, limiters, strings.Repeat("x", 1<<20)},
		"flushed":                 {func(w http.ResponseWriter) { http.NewResponseController(w).Flush(); w.Write([]byte("x")) }, limiters, "x"},
		"nothing":                 {func(w http.ResponseWriter) {}, limiters, ""},
		"only fields":             {func(w http.ResponseWriter) { w.Header().Set("X-Y", "z") }, limiters, ""},
		"early hints, then body":  {func(w http.ResponseWriter) { w.WriteHeader(103); w.Write([]byte("x")) }, limiters, "x"},
		"early hints alone":       {func(w http.ResponseWriter) { w.WriteHeader(103) }, limiters, ""},
		"its own status":          {func(w http.ResponseWriter) { w.WriteHeader(403); w.Write([]byte("x")) }, 403, "x"},
		"success, if it says so":  {func(w http.ResponseWriter) { w.WriteHeader(200); w.Write([]byte("x")) }, 200, "x"},
		"an error":                {func(w http.ResponseWriter) { http.Error(w, "x", 420) }, 420, "x\n"},
		"two statuses, the first": {func(w http.ResponseWriter) { w.WriteHeader(451); w.WriteHeader(200) }, 451, ""},
	}
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		for name, page := range pages {
			for status, opts := range map[int]Options{
				429: {Cost: func(*http.Request) int64 { return 9 }},
				400: {Key: emptyKey},
				500: {Cost: func(*http.Request) int64 { return -1 }},
				503: {Store: &brokenStore{err: errors.New("no")}},
			} {
				t.Run(fmt.Sprint(name, status), func(t *testing.T) {
					opts.Limits = []Limit{FixedWindow(1, time.Hour)}
					opts.Denied = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { page.write(w) })
					opts.Failed = func(w http.ResponseWriter, r *http.Request, got int, err error) {
						assert.Equal(t, status, got)
						page.write(w)
					}
					s := start(httpLimiter(t, opts).Middleware(httpServed))
					answer, err := s.Client().Get(s.URL)
					require.NoError(t, err)
					defer answer.Body.Close()
					body, err := io.ReadAll(answer.Body)
					require.NoError(t, err)
					want := page.want
					if want == limiters {
						want = status
					}
					assert.Equal(t, want, answer.StatusCode)
					assert.Equal(t, page.body, string(body))
					assert.Equal(t, "no-store", answer.Header.Get("Cache-Control"))
				})
			}
		}
	})
}

// TestFailedGetsTheCause also checks that it is not called for other answers.
func TestFailedGetsTheCause(t *testing.T) {
	down := errors.New("dial tcp 10.0.0.5:6379: refused")
	wrong := errors.New("wrong")
	for name, test := range map[string]struct {
		opts   Options
		status int
		cause  error
		text   string
	}{
		"no key":     {Options{Key: HeaderKey("X-Key")}, 400, ErrNoKey, `ratelimit: limiter "no key": the request has no key: want one header X-Key`},
		"empty key":  {Options{Key: emptyKey}, 400, ErrNoKey, `ratelimit: limiter "empty key": the request has no key`},
		"key failed": {Options{Key: func(*http.Request) (string, error) { return "", wrong }}, 500, wrong, `ratelimit: limiter "key failed": Options.Key: wrong`},
		"cost":       {Options{Cost: func(*http.Request) int64 { return -1 }}, 500, nil, `ratelimit: limiter "cost": Options.Cost returned -1: want 0 or more`},
		"plan":       {Options{LimitsFor: func(*http.Request) []Limit { return make([]Limit, 1) }}, 500, nil, `ratelimit: limiter "plan": Options.LimitsFor: `},
		"store":      {Options{Store: &brokenStore{err: down}}, 503, down, `ratelimit: limiter "store": dial tcp`},
		"denied":     {Options{Cost: func(*http.Request) int64 { return 9 }}, 0, nil, ""},
		"allowed":    {Options{}, 0, nil, ""},
		"exempt":     {Options{Key: func(*http.Request) (string, error) { return "", ErrExempt }}, 0, nil, ""},
		"shadow":     {Options{Shadow: true, Key: emptyKey}, 0, nil, ""},
	} {
		calls := 0
		test.opts.Limits = []Limit{FixedWindow(1, time.Hour)}
		test.opts.Failed = func(w http.ResponseWriter, r *http.Request, status int, err error) {
			calls++
			assert.Equal(t, test.status, status, name)
			if test.cause != nil {
				assert.ErrorIs(t, err, test.cause, name)
			}
			assert.True(t, strings.HasPrefix(err.Error(), test.text), "%s: %v", name, err)
			_, decided := DecisionFrom(r.Context())
			assert.False(t, decided)
		}
		l := httpLimiterNamed(t, name, test.opts)
		l.Middleware(httpServed).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
		assert.Equal(t, test.status != 0, calls == 1, name)
	}
}

// TestFailuresAreProblemsForPrograms checks problem details by what RFC 9457 says of
// "about:blank".
func TestFailuresAreProblemsForPrograms(t *testing.T) {
	for status, opts := range map[int]Options{
		400: {Key: emptyKey},
		500: {Cost: func(*http.Request) int64 { return -1 }},
		503: {Store: &brokenStore{err: errors.New("no")}},
	} {
		opts.Limits = []Limit{FixedWindow(1, time.Hour)}
		h := httpLimiterNamed(t, fmt.Sprint(status), opts).Middleware(httpServed)
		for accept, want := range map[string]string{
			"application/json":                        "application/problem+json",
			"application/problem+json":                "application/problem+json",
			"text/plain;q=0.5, application/json":      "application/problem+json",
			"text/html, */*":                          "text/plain; charset=utf-8",
			"application/json;q=0.1, text/plain;q=.2": "text/plain; charset=utf-8",
			"": "text/plain; charset=utf-8",
		} {
			w := httptest.NewRecorder()
			r := httpRequest("GET")
			if accept != "" {
				r.Header.Set("Accept", accept)
			}
			h.ServeHTTP(w, r)
			assert.Equal(t, status, w.Code)
			assert.Equal(t, want, w.Header().Get("Content-Type"), accept)
			if strings.HasPrefix(want, "application") {
				var problem map[string]any
				require.NoError(t, json.Unmarshal(w.Body.Bytes(), &problem))
				assert.Equal(t, map[string]any{"type": "about:blank", "title": http.StatusText(status), "status": float64(status)}, problem)
			}
		}
	}
}

// TestCompressorsKeepTheirField has writers that compress, and writers that only
// count, inside a handler that sets Content-Encoding. The client reads the denial.
func TestCompressorsKeepTheirField(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Cost: func(*http.Request) int64 { return 2 }})
	counting := httpLimiterNamed(t, "counting", Options{Limits: []Limit{FixedWindow(math.MaxInt32, time.Hour)}, Headers: HeadersNone})
	for name, test := range map[string]struct {
		between  func(http.Handler) http.Handler
		accepts  string
		encoding string
	}{
		"the server's own writer":     {func(next http.Handler) http.Handler { return next }, "gzip", ""},
		"another limiter in between":  {counting.Middleware, "gzip", ""},
		"a timeout in between":        {func(next http.Handler) http.Handler { return http.TimeoutHandler(next, time.Hour, "") }, "gzip", ""},
		"what the client cannot read": {loggingWriter, "br", ""},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			test.between(l.Middleware(httpServed)).ServeHTTP(w, r)
		}))
		r, err := http.NewRequest("GET", s.URL, nil)
		require.NoError(t, err)
		r.Header.Set("Accept-Encoding", test.accepts)
		answer, err := s.Client().Do(r)
		require.NoError(t, err)
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		answer.Body.Close()
		s.Close()
		assert.Equal(t, test.encoding, answer.Header.Get("Content-Encoding"), name)
		assert.Equal(t, "Too many requests, please try again later.", string(body), name)
	}
}

// loggingWriter is a middleware that has its own writer.
func loggingWriter(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(struct{ http.ResponseWriter }{w}, r)
	})
}

// unwrapping is a writer that a ResponseController can go around.
type unwrapping struct{ http.ResponseWriter }

func (u unwrapping) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// unwrappingWriter is a middleware with such a writer.
func unwrappingWriter(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(unwrapping{w}, r) })
}

// gzipped compresses in the way of gorilla/handlers: it sets the field first, and takes
// Accept-Encoding out of the request.
func gzipped(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Add("Vary", "Accept-Encoding")
		r.Header.Del("Accept-Encoding")
		zip := gzip.NewWriter(w)
		defer zip.Close()
		next.ServeHTTP(zipped{w, zip}, r)
	})
}

// TestRefusalsAreReadableThroughCompressors has compressors around other writers. The
// client unpacks what it gets.
func TestRefusalsAreReadableThroughCompressors(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{hour}, Cost: func(*http.Request) int64 { return 9 }})
	counting := httpLimiterNamed(t, "counting", Options{Limits: []Limit{FixedWindow(math.MaxInt32, time.Hour)}, Count: failures})
	for name, between := range map[string]func(http.Handler) http.Handler{
		"directly": gzipped, "around a timeout": func(next http.Handler) http.Handler { return gzipped(timeout(next)) },
		"in a timeout":        func(next http.Handler) http.Handler { return timeout(gzipped(next)) },
		"in another writer":   func(next http.Handler) http.Handler { return unwrappingWriter(gzipped(loggingWriter(next))) },
		"between limiters":    func(next http.Handler) http.Handler { return counting.Middleware(gzipped(next)) },
		"around two limiters": func(next http.Handler) http.Handler { return gzipped(counting.Middleware(next)) },
	} {
		s := httptest.NewServer(between(l.Middleware(httpServed)))
		answer, err := s.Client().Get(s.URL)
		require.NoError(t, err)
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, err, name)
		answer.Body.Close()
		s.Close()
		assert.Equal(t, 429, answer.StatusCode)
		assert.Equal(t, "Too many requests, please try again later.", string(body), name)
		assert.Equal(t, "no-store", answer.Header.Get("Cache-Control"))
	}
}

// TestControllersDoNotGoAroundTheLimiter has writers that only have Unwrap, as many
// do, so that a ResponseController finds the server's writer behind them.
func TestControllersDoNotGoAroundTheLimiter(t *testing.T) {
	flush := func(w http.ResponseWriter) {
		w.Header().Set("Cache-Control", "public, max-age=300")
		assert.NoError(t, http.NewResponseController(w).Flush())
		io.WriteString(w, "wait")
	}
	denied := httpLimiterNamed(t, "denied", Options{Limits: []Limit{hour}, Cost: func(*http.Request) int64 { return 9 }, Key: StaticKey("k"),
		Denied: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { flush(w) })})
	s := httptest.NewServer(unwrappingWriter(denied.Middleware(httpServed)))
	answer, err := http.Get(s.URL)
	require.NoError(t, err)
	answer.Body.Close()
	s.Close()
	assert.Equal(t, 429, answer.StatusCode)
	assert.Equal(t, "no-store", answer.Header.Get("Cache-Control"))

	streams := httpLimiterNamed(t, "streams", Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Count: failures, Key: StaticKey("k")})
	end := make(chan struct{})
	s = httptest.NewServer(unwrappingWriter(streams.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		<-end
	}))))
	for range 3 {
		answer, err := http.Get(s.URL)
		require.NoError(t, err)
		defer answer.Body.Close()
		assert.Equal(t, 200, answer.StatusCode)
	}
	close(end)
	s.Close()

	var countedStatuses statuses
	hijacks := httpLimiterNamed(t, "hijacks", Options{Limits: []Limit{hour}, Count: countedStatuses.count, Key: StaticKey("k")})
	s = httptest.NewServer(unwrappingWriter(hijacks.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if assert.NoError(t, err) {
			rw.WriteString("HTTP/1.1 204 No Content\r\n\r\n")
			rw.Flush()
			conn.Close()
		}
	}))))
	answer, err = http.Get(s.URL)
	require.NoError(t, err)
	answer.Body.Close()
	s.Close()
	assert.Equal(t, []int{101}, countedStatuses.all())
}

// TestStatusOfACopyThatSendsNothing copies from sources that fail or are empty: net/http
// sends no header for them, and the handler's own status comes later.
func TestStatusOfACopyThatSendsNothing(t *testing.T) {
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		for name, src := range map[string]io.Reader{"failing": iotest.ErrReader(errors.New("no")), "empty": strings.NewReader("")} {
			var countedStatuses statuses
			l := httpLimiterNamed(t, name, Options{Limits: []Limit{hour}, Count: countedStatuses.count, Key: StaticKey("k")})
			s := start(l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(w, src)
				http.Error(w, "no", http.StatusUnauthorized)
			})))
			answer, err := s.Client().Get(s.URL)
			require.NoError(t, err)
			answer.Body.Close()
			assert.Equal(t, 401, answer.StatusCode)
			assert.Equal(t, []int{401}, countedStatuses.all(), name)
			require.NoError(t, l.Close())
			Memory(name).Close()
		}
		large := bytes.Repeat([]byte("x"), 1<<20)
		var countedStatuses statuses
		l := httpLimiter(t, Options{Limits: []Limit{hour}, Count: countedStatuses.count, Key: StaticKey("k")})
		s := start(l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, iotest.OneByteReader(bytes.NewReader(large[:2000])))
		})))
		answer, err := s.Client().Get(s.URL)
		require.NoError(t, err)
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		answer.Body.Close()
		assert.Len(t, body, 2000)
		assert.Equal(t, []int{200}, countedStatuses.all())
	})
}

// TestPageThatPanicsAllowsNoCaching has a handler further out that answers instead.
func TestPageThatPanicsAllowsNoCaching(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{hour}, Cost: func(*http.Request) int64 { return 9 }, Denied: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=300")
		panic("no")
	})})
	w := httptest.NewRecorder()
	func() {
		defer func() { recover(); w.WriteHeader(500) }()
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
	}()
	assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
}

// proxyTo makes a reverse proxy to an upstream that sends fields and a status.
func proxyTo(t *testing.T, fields http.Header, status int) http.Handler {
	return proxyToHandler(t, func(w http.ResponseWriter, r *http.Request) {
		for name, values := range fields {
			w.Header()[name] = values
		}
		w.WriteHeader(status)
	})
}

// TestFieldsOfAnUpstreamMakeOneSet has a limiter around a reverse proxy. For styles
// without lists, the complete set with the least remaining is sent.
func TestFieldsOfAnUpstreamMakeOneSet(t *testing.T) {
	theirs := http.Header{
		"X-Ratelimit-Limit": {"70"}, "X-Ratelimit-Remaining": {"7"}, "X-Ratelimit-Reset": {"1700000000"},
		"Ratelimit-Limit": {"70"}, "Ratelimit-Remaining": {"7"}, "Ratelimit-Reset": {"17"},
		"Ratelimit": {"limit=70, remaining=7, reset=17"}, "Ratelimit-Policy": {"70;w=17"},
	}
	partly := http.Header{"X-Ratelimit-Limit": {"70"}, "X-Ratelimit-Remaining": {"7"}}
	junk := http.Header{"X-Ratelimit-Limit": {"x"}, "X-Ratelimit-Remaining": {"many"}, "X-Ratelimit-Reset": {""}}
	const reset = `[0-9]{10}`
	for _, test := range []struct {
		name     string
		styles   Headers
		upstream http.Header
		n        int64
		want     string // fields in the order of their names, as regular expressions
	}{
		{"legacy, ours", HeadersLegacy, theirs, 5, `X-Ratelimit-Limit: 5|X-Ratelimit-Remaining: 4|X-Ratelimit-Reset: ` + reset},
		{"legacy, theirs", HeadersLegacy, theirs, 50, `X-Ratelimit-Limit: 70|X-Ratelimit-Remaining: 7|X-Ratelimit-Reset: 1700000000`},
		{"legacy, a part of theirs", HeadersLegacy, partly, 50, `X-Ratelimit-Limit: 70|X-Ratelimit-Remaining: 7`},
		{"legacy, junk", HeadersLegacy, junk, 50, `X-Ratelimit-Limit: 50|X-Ratelimit-Remaining: 49|X-Ratelimit-Reset: ` + reset},
		{"draft 6, ours", HeadersDraft6, theirs, 5, `Ratelimit-Limit: 5|Ratelimit-Policy: 5;w=3600|Ratelimit-Remaining: 4|Ratelimit-Reset: 3600`},
		{"draft 6, theirs", HeadersDraft6, theirs, 50, `Ratelimit-Limit: 70|Ratelimit-Policy: 70;w=17|Ratelimit-Remaining: 7|Ratelimit-Reset: 17`},
		{"draft 7, ours", HeadersDraft7, theirs, 5, `Ratelimit: limit=5, remaining=4, reset=3600|Ratelimit-Policy: 5;w=3600`},
		{"draft 7, theirs", HeadersDraft7, theirs, 50, `Ratelimit: limit=70, remaining=7, reset=17|Ratelimit-Policy: 70;w=17`},
		{"all of them", HeadersDraft7 | HeadersDraft6 | HeadersLegacy, theirs, 5, `Ratelimit: limit=5, remaining=4, reset=3600|Ratelimit-Limit: 5|` +
			`Ratelimit-Policy: 5;w=3600|Ratelimit-Remaining: 4|Ratelimit-Reset: 3600|X-Ratelimit-Limit: 5|X-Ratelimit-Remaining: 4|X-Ratelimit-Reset: ` + reset},
		{"nothing of theirs", HeadersDraft6, nil, 5, `Ratelimit-Limit: 5|Ratelimit-Policy: 5;w=3600|Ratelimit-Remaining: 4|Ratelimit-Reset: 3600`},
	} {
		overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
			for _, status := range []int{200, 404, 429} {
				l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(test.n, time.Hour)}, Headers: test.styles, Key: StaticKey("k")})
				s := start(l.Middleware(proxyTo(t, test.upstream, status)))
				answer, err := s.Client().Get(s.URL)
				require.NoError(t, err)
				answer.Body.Close()
				assert.Equal(t, status, answer.StatusCode)
				for _, field := range strings.Split(test.want, "|") {
					name, value, _ := strings.Cut(field, ": ")
					if assert.Len(t, answer.Header.Values(name), 1, "%s: %s", test.name, name) {
						assert.Regexp(t, "^"+value+"$", answer.Header.Get(name), test.name)
					}
				}
				if test.upstream == nil || strings.Contains(test.name, "part") {
					assert.Len(t, answer.Header, len(strings.Split(test.want, "|"))+2, "%s: %v", test.name, answer.Header) // and Date and Content-Length
				}
				require.NoError(t, l.Close())
				Memory(l.Name()).Close()
			}
		})
	}
}
