package ratelimit_test

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestProblemNamesTheLimitsThatDenied reads the body of a denial as JSON, like a
// client.
func TestProblemNamesTheLimitsThatDenied(t *testing.T) {
	hostile := `a"b\c é </script>`
	limits := []Limit{FixedWindow(2, time.Hour).Named(hostile), FixedWindow(9, time.Minute).Named("calm"), FixedWindow(1, time.Second).Named("s")}
	for _, test := range []struct {
		cost int64
		want []string
	}{{2, []string{"s"}}, {3, []string{hostile, "s"}}, {10, []string{hostile, "calm", "s"}}} {
		l := httpLimiter(t, Options{Limits: limits, Message: `"no" </p>`, Cost: func(*http.Request) int64 { return test.cost }})
		w := httptest.NewRecorder()
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET", "Accept: application/problem+json"))
		require.NoError(t, l.Close())

		body, _ := io.ReadAll(w.Result().Body)
		var problem struct {
			Type, Title, Detail string
			Status              int
			Violated            []string `json:"violated-policies"`
		}
		decoder := json.NewDecoder(strings.NewReader(string(body)))
		decoder.DisallowUnknownFields()
		require.NoError(t, decoder.Decode(&problem))
		assert.Equal(t, "https://iana.org/assignments/http-problem-types#quota-exceeded", problem.Type)
		assert.Equal(t, "Request cannot be satisfied as assigned quota has been exceeded", problem.Title)
		assert.Equal(t, `"no" </p>`, problem.Detail)
		assert.Equal(t, w.Code, problem.Status)
		assert.Equal(t, test.want, problem.Violated)
		assert.Equal(t, strconv.Itoa(len(body)), w.Header().Get("Content-Length"))
	}
}

// zipped is a common gzip wrapper.
type zipped struct {
	http.ResponseWriter
	zip *gzip.Writer
}

func (z zipped) Write(b []byte) (int, error) { return z.zip.Write(b) }

func TestDenialIsReadableThroughACompressor(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Hour)}})
	limited := l.Middleware(httpServed)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Cache-Control", "public, max-age=3600")
		w.Header().Set("ETag", `"x"`)
		zip := gzip.NewWriter(w)
		defer zip.Close()
		limited.ServeHTTP(zipped{w, zip}, r)
	}))
	defer server.Close()
	for range 2 {
		resp, err := http.Get(server.URL) // the client's transport decompresses the body
		require.NoError(t, err)
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusTooManyRequests {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "Too many requests, please try again later.", string(body))
		require.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
		require.Empty(t, resp.Header.Get("ETag"), "of the answer that it is not")
		return
	}
	t.Fatal("never denied")
}

// TestAnswerDenied answers in Options.Denied as the limiter does without it.
func TestAnswerDenied(t *testing.T) {
	limits := []Limit{FixedWindow(1, time.Hour).Named("a"), FixedWindow(9, time.Minute).Named("b")}
	denied := func(name string, opts Options, wrap func(http.Handler) http.Handler, fields ...string) *httptest.ResponseRecorder {
		opts.Limits = limits
		l := httpLimiterNamed(t, t.Name()+name, opts)
		h := wrap(l.Middleware(httpServed))
		h.ServeHTTP(httptest.NewRecorder(), httpRequest("GET", fields...))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httpRequest("GET", fields...))
		return w
	}
	asItIs := func(h http.Handler) http.Handler { return h }
	withTimeout := func(h http.Handler) http.Handler { return http.TimeoutHandler(h, time.Minute, "") }
	add := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "help")
		AnswerDenied(w, r.WithContext(WithActor(r.Context(), "a derived context")))
	})
	for name, wrap := range map[string]func(http.Handler) http.Handler{"alone": asItIs, "in a TimeoutHandler": withTimeout} {
		for _, accept := range []string{"*/*", "application/json"} {
			want := denied(name+accept+" 1", Options{Message: "Stop."}, wrap, "Accept: "+accept)
			got := denied(name+accept+" 2", Options{Message: "Stop.", Denied: add}, wrap, "Accept: "+accept)
			assert.Equal(t, "help", got.Header().Get("Link"))
			got.Header().Del("Link")
			assert.Equal(t, 429, got.Code)
			assert.Equal(t, want.Header(), got.Header(), "%s, %s", name, accept)
			assert.Equal(t, want.Body.String(), got.Body.String(), "%s, %s", name, accept)
		}
	}
	w := httptest.NewRecorder()
	AnswerDenied(w, httpRequest("GET"))
	assert.Equal(t, 429, w.Code)
	assert.Equal(t, "Too Many Requests", w.Body.String())
	assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
}

// Writers of other middleware, which a ResponseController can go around. Each has some
// methods of its own in addition to Unwrap.
type (
	copyingWriter   struct{ unwrapping }
	flushingWriter  struct{ unwrapping }
	failingWriter   struct{ unwrapping }
	hijackingWriter struct{ unwrapping }
	pushingWriter   struct{ flushingWriter }
	flushingCopier  struct {
		flushingWriter
		io.ReaderFrom
	}
	failingCopier struct {
		failingWriter
		io.ReaderFrom
	}
	hijackingCopier struct {
		hijackingWriter
		io.ReaderFrom
	}
	completeWriter struct {
		flushingCopier
		http.Hijacker
	}
)

func (c copyingWriter) ReadFrom(src io.Reader) (int64, error) { return io.Copy(c.ResponseWriter, src) }
func (f flushingWriter) Flush()                               { http.NewResponseController(f.ResponseWriter).Flush() }
func (f failingWriter) FlushError() error {
	return http.NewResponseController(f.ResponseWriter).Flush()
}
func (h hijackingWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(h.ResponseWriter).Hijack()
}
func (pushingWriter) Push(string, *http.PushOptions) error { return http.ErrNotSupported }

// unwrappingWriters make them, by the methods that they have.
var unwrappingWriters = map[string]func(unwrapping) http.ResponseWriter{
	"":         func(u unwrapping) http.ResponseWriter { return u },
	"Unwrap":   func(u unwrapping) http.ResponseWriter { return unwrapping{u} },
	"ReadFrom": func(u unwrapping) http.ResponseWriter { return copyingWriter{u} },
	"Flush":    func(u unwrapping) http.ResponseWriter { return flushingWriter{u} },
	"Flush, ReadFrom": func(u unwrapping) http.ResponseWriter {
		return flushingCopier{flushingWriter{u}, copyingWriter{u}}
	},
	"Flush, Push": func(u unwrapping) http.ResponseWriter { return pushingWriter{flushingWriter{u}} },
	"FlushError":  func(u unwrapping) http.ResponseWriter { return failingWriter{u} },
	"FlushError, ReadFrom": func(u unwrapping) http.ResponseWriter {
		return failingCopier{failingWriter{u}, copyingWriter{u}}
	},
	"Hijack": func(u unwrapping) http.ResponseWriter { return hijackingWriter{u} },
	"Hijack, ReadFrom": func(u unwrapping) http.ResponseWriter {
		return hijackingCopier{hijackingWriter{u}, copyingWriter{u}}
	},
	"Flush, Hijack, ReadFrom": func(u unwrapping) http.ResponseWriter {
		return completeWriter{flushingCopier{flushingWriter{u}, copyingWriter{u}}, hijackingWriter{u}}
	},
}

// TestWritersOfOthersKeepTheirInterfaces has writers of other middleware around limiters.
// They keep their methods, and get only methods that a ResponseController would find at the
// server's writer. A flush by a controller does not go around the limiters.
func TestWritersOfOthersKeepTheirInterfaces(t *testing.T) {
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		for name, wrap := range unwrappingWriters {
			t.Run(name, func(t *testing.T) {
				counting, counted := countingLimiters(t)
				var bare, allowed []string
				check := func(limiters int) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						before := len(counted.all())
						got := strings.Fields(powers(w))
						assert.Len(t, counted.all(), before+limiters, "at the flush")
						assert.Subset(t, got, bare)
						assert.Subset(t, allowed, got)
					})
				}
				s := start(http.HandlerFunc(func(server http.ResponseWriter, r *http.Request) {
					w := wrap(unwrapping{server})
					bare, allowed = strings.Fields(powers(w)), strings.Fields(powers(w))
					hijacks := strings.Contains(powers(server), "Hijacker")
					if hijacks {
						allowed = append(allowed, "Hijacker")
						// Nothing can be pushed on a connection that can be hijacked.
						bare = slices.DeleteFunc(bare, func(name string) bool { return name == "Pusher" })
					}
					if _, flushes := w.(http.Flusher); !flushes || hijacks {
						allowed = append(allowed, "FlushError")
					}
					counting[0].Middleware(check(1)).ServeHTTP(w, r)
					counting[0].Middleware(counting[1].Middleware(counting[2].Middleware(check(3)))).ServeHTTP(w, r)
					counting[0].Middleware(http.HandlerFunc(func(inner http.ResponseWriter, r *http.Request) {
						counting[1].Middleware(check(2)).ServeHTTP(wrap(unwrapping{inner}), r)
					})).ServeHTTP(server, r)
				}))
				fetch(t, s.Client(), "GET", s.URL)
			})
		}
	})
}

// TestFieldsStayAfterInformationalResponses has limiters around a reverse proxy, whose
// upstream sends 103, or 100 because the client expects it. The fields are the same as
// without these responses.
func TestFieldsStayAfterInformationalResponses(t *testing.T) {
	theirs := http.Header{
		"X-Ratelimit-Limit": {"9"}, "X-Ratelimit-Remaining": {"7"}, "X-Ratelimit-Reset": {"1700000000"},
		"Ratelimit": {`"theirs";r=7;t=17`}, "Ratelimit-Policy": {`"theirs";q=9;w=17`},
	}
	always := func(*http.Request, int) bool { return true }
	const h10, h7, h6, old, none = HeadersDraft10, HeadersDraft7, HeadersDraft6, HeadersLegacy, HeadersNone
	times := regexp.MustCompile(`35[0-9][0-9]|[0-9]{10}|\b(59|60|61)\b`)
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		for name, test := range map[string]struct {
			outer, inner Options
			denied       bool // by the inner limiter, and the page is the upstream's
		}{
			"Count":                        {outer: Options{Count: always}, inner: Options{Headers: none}},
			"Count that gives back":        {outer: Options{Count: failures}, inner: Options{Headers: none}},
			"draft 10 and legacy":          {outer: Options{Headers: h10 | old}, inner: Options{Headers: none}},
			"legacy":                       {outer: Options{Headers: none}, inner: Options{Headers: old}},
			"drafts 6 and 7":               {outer: Options{Headers: h6 | h7}, inner: Options{Headers: none}},
			"both are watched":             {outer: Options{Headers: h10 | old}, inner: Options{Headers: h10 | h6, Count: always}},
			"the outer is watched":         {outer: Options{Count: always}, inner: Options{}},
			"the inner is watched":         {outer: Options{}, inner: Options{Count: always}},
			"denied":                       {outer: Options{}, inner: Options{}, denied: true},
			"denied, older styles":         {outer: Options{Headers: h7}, inner: Options{Headers: h7 | old}, denied: true},
			"denied, the inner has none":   {outer: Options{}, inner: Options{Headers: none}, denied: true},
			"denied, in a watched limiter": {outer: Options{Count: always}, inner: Options{}, denied: true},
		} {
			for whose, fields := range map[string]http.Header{"none": nil, "theirs": theirs} {
				t.Run(name+", "+whose, func(t *testing.T) {
					proxy := proxyToHandler(t, func(w http.ResponseWriter, r *http.Request) {
						maps.Copy(w.Header(), fields)
						for range r.Header["Hints"] {
							w.Header().Set("Link", "</x.css>; rel=preload")
							w.WriteHeader(103)
						}
						io.Copy(w, r.Body)
					})
					if test.inner.Key, test.outer.Key = HeaderKey("X-Key"), HeaderKey("X-Key"); test.denied {
						test.inner.Denied = proxy
					}
					out, in := stacked(t, test.outer, test.inner, 8, 5)
					s := start(out.Middleware(in.Middleware(proxy)))
					informed := 0
					trace := &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error { informed++; return nil }}
					get := func(key string, more http.Header) string {
						r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "POST", s.URL, strings.NewReader("body"))
						require.NoError(t, err)
						maps.Copy(r.Header, more)
						r.Header.Set("X-Key", key)
						if test.denied {
							decide(t, in, key, 5)
						}
						answer, err := s.Client().Do(r)
						require.NoError(t, err)
						body, err := io.ReadAll(answer.Body)
						require.NoError(t, err)
						answer.Body.Close()
						assert.Equal(t, "body", string(body))
						assert.Equal(t, test.denied, answer.Header["Retry-After"] != nil)
						return times.ReplaceAllString(fmt.Sprint(answer.StatusCode, answer.Header["Retry-After"], limitFields(answer.Header)), "3600")
					}
					want := get("a", nil)
					assert.Zero(t, informed)
					assert.Contains(t, strings.ToLower(want), "ratelimit")
					assert.Equal(t, want, get("b", http.Header{"Hints": {"1"}}))
					assert.Equal(t, 1, informed)
					assert.Equal(t, want, get("c", http.Header{"Hints": {"1", "2", "3"}}))
					assert.Equal(t, 4, informed)
					assert.Equal(t, want, get("d", http.Header{"Expect": {"100-continue"}}))
				})
			}
		}
	})
}

// TestHandlerMayRemoveFieldsAfterInformationalResponses has handlers that send 103 and then
// change the header themselves. Only if they clear all of it, the limiter's fields are back.
func TestHandlerMayRemoveFieldsAfterInformationalResponses(t *testing.T) {
	ours := http.Header{"Ratelimit": {`"x";r=8;t=3600`}, "Ratelimit-Policy": {`"x";q=9;w=3600`}}
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		for name, test := range map[string]struct {
			handle func(h http.Header, w http.ResponseWriter)
			want   http.Header
		}{
			"nothing": {func(http.Header, http.ResponseWriter) {}, ours},
			"cleared, and the status": {func(h http.Header, w http.ResponseWriter) {
				clear(h)
				w.WriteHeader(200)
			}, ours},
			"cleared, and a body": {func(h http.Header, w http.ResponseWriter) {
				clear(h)
				io.WriteString(w, "x")
			}, ours},
			"cleared, and nothing written": {func(h http.Header, w http.ResponseWriter) { clear(h) }, ours},
			"cleared and added to": {func(h http.Header, w http.ResponseWriter) {
				clear(h)
				w.Header().Add("RateLimit", `"y";r=1;t=1`)
			}, http.Header{"Ratelimit": {`"x";r=8;t=3600`, `"y";r=1;t=1`}, "Ratelimit-Policy": {`"x";q=9;w=3600`}}},
			"one removed": {func(h http.Header, w http.ResponseWriter) {
				h.Del("RateLimit-Policy")
				w.WriteHeader(200)
			}, http.Header{"Ratelimit": {`"x";r=8;t=3600`}}},
			"one replaced": {func(h http.Header, w http.ResponseWriter) {
				w.Header().Set("RateLimit", `"y";r=1;t=1`)
				w.WriteHeader(200)
			}, http.Header{"Ratelimit": {`"y";r=1;t=1`}, "Ratelimit-Policy": {`"x";q=9;w=3600`}}},
			"cleared after the status": {func(h http.Header, w http.ResponseWriter) {
				w.WriteHeader(200)
				clear(h)
				assert.Empty(t, w.Header())
			}, ours},
		} {
			t.Run(name, func(t *testing.T) {
				l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour).Named("x")}, Count: func(*http.Request, int) bool { return true }})
				s := start(l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.WriteHeader(103)
					test.handle(w.Header(), w)
				})))
				answer, err := s.Client().Get(s.URL)
				require.NoError(t, err)
				answer.Body.Close()
				assert.Equal(t, test.want, limitFields(answer.Header))
			})
		}
	})
}

// proxyToHandler makes a reverse proxy to an upstream with this handler.
func proxyToHandler(t *testing.T, h http.HandlerFunc) http.Handler {
	upstream := httptest.NewServer(h)
	t.Cleanup(upstream.Close)
	target, err := url.Parse(upstream.URL)
	require.NoError(t, err)
	return httputil.NewSingleHostReverseProxy(target)
}
