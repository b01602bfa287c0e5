package ratelimit_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// overNetwork runs test with servers of HTTP/1.1 and HTTP/2.
func overNetwork(t *testing.T, test func(t *testing.T, start func(http.Handler) *httptest.Server)) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			test(t, func(h http.Handler) *httptest.Server {
				s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					assert.Equal(t, protocol, r.Proto)
					h.ServeHTTP(w, r)
				}))
				s.Config.ErrorLog = log.New(io.Discard, "", 0)
				if s.EnableHTTP2 = protocol == "HTTP/2.0"; s.EnableHTTP2 {
					s.StartTLS()
				} else {
					s.Start()
				}
				t.Cleanup(s.Close)
				return s
			})
		})
	}
}

// fetch returns the response of a server in the form of httpAnswer, without a Date. Times
// in it are as if no time had passed.
func fetch(t *testing.T, client *http.Client, method, url string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	require.NoError(t, err)
	r.Header.Set("X-Key", "k")
	answer, err := client.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	answer.Header.Del("Date")
	same := httpAnswer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for name, values := range answer.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(answer.StatusCode)
		w.Write(body)
	}), r)
	return aboutAnHour.ReplaceAllString(same, "${1}3600")
}

// aboutAnHour matches the seconds left of an hour after a moment of real time.
var aboutAnHour = regexp.MustCompile(`(t=|Retry-After: )35[0-9][0-9]`)

func TestAnswersOverANetworkAreTheSame(t *testing.T) {
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(2, time.Hour).Named("x")}, Key: HeaderKey("X-Key")})
		s := start(l.Middleware(httpServed))
		for _, want := range []string{
			"204\nRatelimit: \"x\";r=1;t=3600\nRatelimit-Policy: \"x\";q=2;w=3600",
			"204\nRatelimit: \"x\";r=0;t=3600\nRatelimit-Policy: \"x\";q=2;w=3600",
			unindent(`429` + denialHead + `
			Ratelimit: "x";r=0;t=3600
			Ratelimit-Policy: "x";q=2;w=3600
			Retry-After: 3600
			X-Content-Type-Options: nosniff
			> Too many requests, please try again later.`),
		} {
			assert.Equal(t, want, fetch(t, s.Client(), "GET", s.URL))
		}
		assert.Equal(t, unindent(`429`+denialHead+`
			Ratelimit: "x";r=0;t=3600
			Ratelimit-Policy: "x";q=2;w=3600
			Retry-After: 3600
			X-Content-Type-Options: nosniff`), fetch(t, s.Client(), "HEAD", s.URL))
	})
}

// powers returns the optional interfaces of a ResponseWriter, and the methods that a
// ResponseController can use on it.
func powers(w http.ResponseWriter) string {
	var can []string
	add := func(name string, ok bool) {
		if ok {
			can = append(can, name)
		}
	}
	_, ok := w.(http.Flusher)
	add("Flusher", ok)
	_, ok = w.(interface{ FlushError() error })
	add("FlushError", ok)
	_, ok = w.(http.Hijacker)
	add("Hijacker", ok)
	_, ok = w.(io.ReaderFrom)
	add("ReaderFrom", ok)
	_, ok = w.(io.StringWriter)
	add("StringWriter", ok)
	_, ok = w.(http.Pusher)
	add("Pusher", ok)
	c := http.NewResponseController(w)
	add("SetReadDeadline", c.SetReadDeadline(time.Time{}) == nil)
	add("SetWriteDeadline", c.SetWriteDeadline(time.Time{}) == nil)
	add("EnableFullDuplex", c.EnableFullDuplex() == nil)
	add("Flush", c.Flush() == nil)
	return strings.Join(can, " ")
}

// TestWriterKeepsItsInterfaces compares the server's writer with the writer
// that a handler gets if Count is set, behind one limiter and behind three. Without Count
// it is the same writer.
func TestWriterKeepsItsInterfaces(t *testing.T) {
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		counting, _ := countingLimiters(t)
		plain := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}})
		var bare, same, one, three string
		get := func(can *string) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { *can = powers(w) })
		}
		s := start(http.HandlerFunc(func(server http.ResponseWriter, r *http.Request) {
			bare = powers(server)
			plain.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				same = fmt.Sprint(w == server)
			})).ServeHTTP(server, r)
			counting[0].Middleware(get(&one)).ServeHTTP(server, r)
			counting[0].Middleware(counting[1].Middleware(counting[2].Middleware(get(&three)))).ServeHTTP(server, r)
		}))
		fetch(t, s.Client(), "GET", s.URL)
		t.Log(bare)
		assert.Equal(t, "true", same)
		assert.Contains(t, bare, "Flusher")
		assert.Equal(t, bare, one)
		assert.Equal(t, bare, three)
	})
}

// countingLimiters returns three limiters with Count, and the statuses that they were asked about.
func countingLimiters(t *testing.T) (limiters [3]*Limiter, counted *statuses) {
	counted = new(statuses)
	for i := range limiters {
		limiters[i] = httpLimiterNamed(t, fmt.Sprint(t.Name(), i), Options{Limits: []Limit{FixedWindow(99, time.Hour)}, Count: counted.count})
	}
	return limiters, counted
}

// TestCountGetsTheStatusOverANetwork has handlers that do different things with
// a real connection.
func TestCountGetsTheStatusOverANetwork(t *testing.T) {
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		hints := 0
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { hints++; return nil }}
		for _, test := range []struct {
			name   string
			handle http.HandlerFunc
			want   int
			body   string
		}{
			{"copied", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, strings.NewReader("copied")) }, 200, "copied"},
			{"copied after status", func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(404)
				io.Copy(w, strings.NewReader("copied"))
			}, 404, "copied"},
			{"served from a file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, "go.sum") }, 200, ""},
			{"early hints", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(103); w.WriteHeader(503) }, 503, ""},
			{"streamed", func(w http.ResponseWriter, r *http.Request) {
				for range 3 {
					io.WriteString(w, "x")
					http.NewResponseController(w).Flush()
				}
			}, 200, "xxx"},
			{"aborted", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, 500, ""},
			{"panicked", func(w http.ResponseWriter, r *http.Request) { panic("no") }, 500, ""},
		} {
			t.Run(test.name, func(t *testing.T) {
				var countedStatuses statuses
				l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}, Count: countedStatuses.count, Key: StaticKey("k")})
				over := make(chan struct{})
				s := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer close(over)
					l.Middleware(test.handle).ServeHTTP(w, r)
				}))
				r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "POST", s.URL, nil) // never sent again
				require.NoError(t, err)
				answer, err := s.Client().Do(r)
				if err == nil {
					body, _ := io.ReadAll(answer.Body)
					answer.Body.Close()
					assert.Equal(t, test.want, answer.StatusCode)
					if test.body != "" {
						assert.Equal(t, test.body, string(body))
					}
				} else {
					assert.Equal(t, 500, test.want, err)
				}
				<-over
				assert.Equal(t, []int{test.want}, countedStatuses.all())
				assert.EqualValues(t, 9, leftOf(t, l, "k"))
			})
		}
		assert.Equal(t, 1, hints)
	})
}

func TestRequestOfAClientThatLeavesCounts(t *testing.T) {
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		var countedStatuses statuses
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}, Count: countedStatuses.count, Key: StaticKey("k")})
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan struct{})
		s := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer close(over)
			l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				assert.EqualValues(t, 8, leftOf(t, l, "k"))
				cancel()
				<-r.Context().Done()
				panic(http.ErrAbortHandler)
			})).ServeHTTP(w, r)
		}))
		r, _ := http.NewRequestWithContext(ctx, "GET", s.URL, nil)
		_, err := s.Client().Do(r)
		assert.ErrorIs(t, err, context.Canceled)
		<-over
		assert.Equal(t, []int{500}, countedStatuses.all())
		assert.EqualValues(t, 8, leftOf(t, l, "k"), "it counts, whatever Options.Count says")
	})
}

// TestHijackedConnectionWorks has a handler that hijacks, behind the server's writer and
// behind one that a ResponseController can go around.
func TestHijackedConnectionWorks(t *testing.T) {
	for name, hijack := range map[string]func(http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error){
		"directly": func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) { return w.(http.Hijacker).Hijack() },
		"by a controller": func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
			return http.NewResponseController(w).Hijack()
		},
		"by a controller, unwrapping": func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
			return http.NewResponseController(w).Hijack()
		},
	} {
		t.Run(name, func(t *testing.T) {
			var countedStatuses statuses
			l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}, Count: countedStatuses.count, Key: StaticKey("k")})
			over := make(chan struct{})
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(over)
				if strings.Contains(name, "unwrapping") {
					w = unwrapping{w}
				}
				l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					conn, rw, err := hijack(w)
					if assert.NoError(t, err) {
						defer conn.Close()
						rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello")
						rw.Flush()
					}
				})).ServeHTTP(w, r)
			}))
			defer s.Close()
			conn, err := net.Dial("tcp", s.Listener.Addr().String())
			require.NoError(t, err)
			defer conn.Close()
			fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			received, err := io.ReadAll(conn)
			require.NoError(t, err)
			assert.True(t, strings.HasSuffix(string(received), "\r\n\r\nhello"), "%q", received)
			<-over
			assert.Equal(t, []int{101}, countedStatuses.all())
			assert.EqualValues(t, 9, leftOf(t, l, "k"))
		})
	}
}

// TestFailedHijackDoesNotCountAsOne uses HTTP/2, which has no hijacking.
func TestFailedHijackDoesNotCountAsOne(t *testing.T) {
	var countedStatuses statuses
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}, Count: countedStatuses.count})
	s := httptest.NewUnstartedServer(l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _, err := http.NewResponseController(w).Hijack()
		assert.ErrorIs(t, err, errors.ErrUnsupported)
		w.WriteHeader(426)
	})))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	assert.Contains(t, fetch(t, s.Client(), "GET", s.URL), "426\n")
	assert.Equal(t, []int{426}, countedStatuses.all())
}

// TestPushReachesTheServersPusher uses a client that refuses pushes.
func TestPushReachesTheServersPusher(t *testing.T) {
	var countedStatuses statuses
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}, Count: countedStatuses.count})
	s := httptest.NewUnstartedServer(l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.ErrorIs(t, w.(http.Pusher).Push("/x", nil), http.ErrNotSupported)
	})))
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{}
	s.StartTLS()
	defer s.Close()
	fetch(t, s.Client(), "GET", s.URL)
	assert.Equal(t, []int{200}, countedStatuses.all())
}

// TestUnixPeerIsAProxyIfProxiesAreTrusted has peers without an address. If no
// proxy is trusted, they cannot be distinguished, whatever the name of their
// socket.
func TestUnixPeerIsAProxyIfProxiesAreTrusted(t *testing.T) {
	t.Chdir(t.TempDir())
	limits := []Limit{FixedWindow(9, time.Hour).Named("x")}
	const counted = "204\nRatelimit: \"x\";r=8;t=3600\nRatelimit-Policy: \"x\";q=9;w=3600"
	const refused = "400\nCache-Control: no-store\nContent-Length: 11\nContent-Type: text/plain; charset=utf-8\nX-Content-Type-Options: nosniff\n> Bad Request"
	trusted := ClientIP{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	for i, test := range []struct {
		name, peer, field string
		key               KeyFunc
		want, counts      string
		codes             []Code
	}{
		{"no proxies", "", "", nil, refused, "", []Code{CodeNoAddress}},
		{"no proxies, a field", "", "X-Forwarded-For: 198.51.100.1", nil, refused, "", []Code{CodeNoAddress}},
		{"proxies, no field", "", "", trusted.Key, refused, "", []Code{CodeNoAddress}},
		{"proxies, a client", "", "X-Forwarded-For: 203.0.113.66, 198.51.100.1, 10.0.0.7", trusted.Key, counted, "198.51.100.1", nil},
		{"proxies, nothing to be believed", "", "X-Forwarded-For: 203.0.113.66, unknown", trusted.Key, refused, "", []Code{CodeNoAddress}},
		{"a peer with a name", "peer.sock", "X-Forwarded-For: 198.51.100.1", trusted.Key, counted, "198.51.100.1", nil},
		{"a peer that is called like an address", "192.0.2.7:80", "", nil, refused, "", []Code{CodeNoAddress}},
		{"a trusted peer that is called like an address", "192.0.2.8:80", "X-Forwarded-For: 198.51.100.1", trusted.Key, counted, "198.51.100.1", nil},
		{"a peer that is called like a proxy", "10.0.0.1", "", trusted.Key, refused, "", []Code{CodeNoAddress}},
		{"another key", "", "X-Key: k", HeaderKey("X-Key"), counted, "k", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			log := new(logged)
			l := httpLimiter(t, Options{Limits: limits, Key: test.key, Logger: log.logger()})
			listener, err := net.Listen("unix", fmt.Sprint(i, ".sock"))
			require.NoError(t, err)
			s := &httptest.Server{Listener: listener, Config: &http.Server{Handler: l.Middleware(httpServed)}}
			s.Start()
			defer s.Close()
			dialer := &net.Dialer{}
			if test.peer != "" {
				dialer.LocalAddr = &net.UnixAddr{Name: test.peer, Net: "unix"}
			}
			transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", filepath.Base(listener.Addr().String()))
			}}
			defer transport.CloseIdleConnections()
			name, value, _ := strings.Cut(test.field, ": ")
			client := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				if r.Header = make(http.Header); name != "" {
					r.Header.Set(name, value)
				}
				return transport.RoundTrip(r)
			})}
			assert.Equal(t, test.want, fetch(t, client, "GET", "http://unix/"))
			assert.Equal(t, test.codes, log.codes())
			if test.counts != "" {
				assert.EqualValues(t, 8, leftOf(t, l, test.counts))
			}
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
