package ratelimit_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// These tests have holds of requests over real connections: when they end, and that no
// client can keep one for ever or end one early.

// mounts are the ways to put a limiter in front of a handler.
var mounts = map[string]func(*Limiter, http.Handler) http.Handler{
	"Middleware": (*Limiter).Middleware,
	"Check": func(l *Limiter, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if l.Check(w, r) {
				next.ServeHTTP(w, r)
			}
		})
	},
}

// overMounts runs test with each protocol and each way to mount a limiter.
func overMounts(t *testing.T, test func(t *testing.T, mount string, start func(*Limiter, http.Handler) *httptest.Server)) {
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		for name, mount := range mounts {
			t.Run(name, func(t *testing.T) {
				test(t, name, func(l *Limiter, h http.Handler) *httptest.Server { return start(mount(l, h)) })
			})
		}
	})
}

// oneAtATime makes a limiter that allows one request at the same time, for all clients.
func oneAtATime(t *testing.T) *Limiter {
	o := quiet(InFlight(1, time.Minute))
	o.Key = func(*http.Request) (string, error) { return "k", nil }
	return httpLimiter(t, o)
}

// A runner is a handler that sends a line, and returns when the test lets it. Requests for
// /quick return at once.
type runner struct {
	t       *testing.T
	started chan context.Context // of each request that runs
	finish  chan bool            // false panics
	now     atomic.Int64         // how many run
	most    atomic.Int64         // how many have run at the same time
}

func newRunner(t *testing.T) *runner {
	return &runner{t: t, started: make(chan context.Context, 1000), finish: make(chan bool)}
}

func (h *runner) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/quick" {
		return
	}
	if n := h.now.Add(1); n > h.most.Load() {
		h.most.Store(n)
	}
	defer h.now.Add(-1)
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, "data: 1\n\n")
	http.NewResponseController(w).Flush()
	h.started <- r.Context()
	h.run()
	fmt.Fprint(w, "data: 2\n\n")
}

// run waits until the test lets the handler go.
func (h *runner) run() {
	select {
	case ok := <-h.finish:
		if !ok {
			panic(http.ErrAbortHandler)
		}
	case <-time.After(time.Minute):
		panic("nobody has let the handler go")
	}
}

// start returns the context of the next request that runs.
func (h *runner) start() context.Context {
	h.t.Helper()
	return receive(h.t, h.started)
}

// end lets a request go.
func (h *runner) end(ok bool) {
	h.t.Helper()
	select {
	case h.finish <- ok:
	case <-time.After(20 * time.Second):
		h.t.Fatal("no handler runs")
	}
}

// receive waits for a value.
func receive[T any](t *testing.T, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing has come")
	}
	return v
}

// open sends a request and returns when the response has begun. leave disconnects the client.
func open(t *testing.T, s *httptest.Server, method, path string) (response *http.Response, leave func()) {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	t.Cleanup(leave)
	r, err := http.NewRequestWithContext(ctx, method, s.URL+path, nil)
	require.NoError(t, err)
	response, err = s.Client().Do(r)
	require.NoError(t, err)
	t.Cleanup(func() { response.Body.Close() })
	return response, leave
}

// quick returns the status of a request that the handler answers at once.
func quick(t *testing.T, s *httptest.Server) int {
	t.Helper()
	response, _ := open(t, s, "GET", "/quick")
	io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

// wantFree checks that all holds of a limiter have ended, and that the next request is admitted.
func wantFree(t *testing.T, l *Limiter, s *httptest.Server) {
	t.Helper()
	eventually(t, func() bool { return l.Stats().InFlight == 0 })
	eventually(t, func() bool { return quick(t, s) == 200 }) // a pipelined request may come before
	eventually(t, func() bool { return l.Stats().InFlight == 0 })
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, 20*time.Second, time.Millisecond)
}

// TestStreamHolds: server-sent events hold until their handler returns or panics. As soon as
// the client has the end of the response, its next request is admitted.
func TestStreamHolds(t *testing.T) {
	overMounts(t, func(t *testing.T, mount string, start func(*Limiter, http.Handler) *httptest.Server) {
		l, h := oneAtATime(t), newRunner(t)
		s := start(l, h)
		for _, ok := range []bool{true, false, true} {
			stream, _ := open(t, s, "GET", "/")
			h.start()
			require.Equal(t, 429, quick(t, s))
			require.EqualValues(t, 1, l.Stats().InFlight)
			h.end(ok)
			body, err := io.ReadAll(stream.Body)
			require.Equal(t, ok, err == nil)
			if ok {
				require.Equal(t, "data: 1\n\ndata: 2\n\n", string(body))
				require.Equal(t, 200, quick(t, s), "at once")
			}
			wantFree(t, l, s)
		}
	})
}

// TestRequestsInARow: a client that sends one request after the other is never denied, also
// if its next request is in the server's buffer when one ends. Check learns too
// late for that that a context has ended.
func TestRequestsInARow(t *testing.T) {
	for store, limiter := range map[string]func(t *testing.T) *Limiter{
		"memory": oneAtATime,
		"Redis": func(t *testing.T) *Limiter {
			return processOf(t, redisStore(t, newMini(t).client(t), "rl:row:"), Options{Limits: []Limit{InFlight(1, time.Minute)}, Timeout: time.Minute})
		},
	} {
		for name, mount := range mounts {
			t.Run(store+", "+name, func(t *testing.T) {
				l := limiter(t)
				s := httptest.NewServer(mount(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })))
				defer s.Close()
				for i := range 500 {
					require.Equal(t, 200, quick(t, s), "request %d", i)
				}
				const n = 200
				conn := dial(t, s)
				go io.WriteString(conn, strings.Repeat("GET /quick HTTP/1.1\r\nHost: a\r\n\r\n", n))
				r := bufio.NewReader(conn)
				for range n {
					response, err := http.ReadResponse(r, nil)
					require.NoError(t, err)
					require.Equal(t, 200, response.StatusCode)
					io.Copy(io.Discard, response.Body)
				}
				eventually(t, func() bool { return l.Stats().InFlight == 0 })
			})
		}
	}
}

// dial opens a connection to a server of HTTP/1.1.
func dial(t *testing.T, s *httptest.Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestHijackedConnectionHolds: a connection that its handler has taken over holds until the
// handler returns, with Middleware also if the client has left.
func TestHijackedConnectionHolds(t *testing.T) {
	for name, mount := range mounts {
		for _, count := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, Count %v", name, count), func(t *testing.T) {
				o := quiet(InFlight(1, time.Minute))
				if count {
					o.Count = func(*http.Request, int) bool { return true }
				}
				l, h := httpLimiter(t, o), newRunner(t)
				s := httptest.NewServer(mount(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/quick" {
						w.Write(nil)
						return
					}
					conn, rw, err := http.NewResponseController(w).Hijack()
					if err != nil {
						panic(err)
					}
					defer conn.Close()
					rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
					rw.Flush()
					line, _ := rw.ReadString('\n')
					rw.WriteString(line)
					rw.Flush()
					rw.ReadByte() // until the client has left
					h.started <- r.Context()
					h.run()
				})))
				defer s.Close()
				conn := dial(t, s)
				fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				r := bufio.NewReader(conn)
				response, err := http.ReadResponse(r, nil)
				require.NoError(t, err)
				require.Equal(t, 101, response.StatusCode)
				require.Equal(t, 429, quick(t, s))
				fmt.Fprintln(conn, "hello")
				line, err := r.ReadString('\n')
				require.NoError(t, err)
				require.Equal(t, "hello\n", line)
				require.Equal(t, 429, quick(t, s))
				conn.Close()
				ctx := h.start()
				if name == "Middleware" {
					require.Equal(t, 429, quick(t, s))
				} else {
					require.Error(t, ctx.Err(), "reading from the connection has ended it")
				}
				h.end(true)
				wantFree(t, l, s)
			})
		}
	}
}

// TestTimeoutHandlerHolds: inside an http.TimeoutHandler, Middleware holds for as long as the
// handler runs, and Check until the timeout, which ends the context. Outside, the timeout
// ends the hold, and the handler goes on without one.
func TestTimeoutHandlerHolds(t *testing.T) {
	timeout := func(h http.Handler) http.Handler {
		late := http.TimeoutHandler(h, 3*time.Second, "late")
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/quick" {
				h.ServeHTTP(w, r)
				return
			}
			late.ServeHTTP(w, r)
		})
	}
	for name, mount := range mounts {
		for _, inside := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, inside %v", name, inside), func(t *testing.T) {
				t.Parallel()
				l, h := oneAtATime(t), newRunner(t)
				handler := mount(l, timeout(h))
				if inside {
					handler = timeout(mount(l, h))
				}
				s := httptest.NewServer(handler)
				defer s.Close()
				stream, _ := open(t, s, "GET", "/")
				require.Equal(t, 503, stream.StatusCode)
				ctx := h.start()
				receive(t, ctx.Done())
				if name == "Middleware" && inside {
					require.Equal(t, 429, quick(t, s))
					require.EqualValues(t, 1, l.Stats().InFlight)
				} else {
					wantFree(t, l, s)
				}
				h.end(true)
				wantFree(t, l, s)
			})
		}
	}
}

// TestClientLeaves: if the client disconnects, Middleware holds until the handler returns, and
// Check until the request's context ends.
func TestClientLeaves(t *testing.T) {
	overMounts(t, func(t *testing.T, mount string, start func(*Limiter, http.Handler) *httptest.Server) {
		l, h := oneAtATime(t), newRunner(t)
		s := start(l, h)
		_, leave := open(t, s, "GET", "/")
		ctx := h.start()
		leave()
		receive(t, ctx.Done())
		if mount == "Middleware" {
			require.Equal(t, 429, quick(t, s))
			require.EqualValues(t, 1, l.Stats().InFlight)
		} else {
			require.Equal(t, 200, quick(t, s), "at once")
		}
		h.end(true)
		wantFree(t, l, s)
	})
}

// TestOneHoldForARequest: a request that passes the limiter more than once has one hold.
func TestOneHoldForARequest(t *testing.T) {
	for name, twice := range map[string]func(l *Limiter, h http.Handler) http.Handler{
		"Middleware": func(l *Limiter, h http.Handler) http.Handler { return l.Middleware(l.Middleware(h)) },
		"Check":      func(l *Limiter, h http.Handler) http.Handler { return mounts["Check"](l, mounts["Check"](l, h)) },
		"both":       func(l *Limiter, h http.Handler) http.Handler { return mounts["Check"](l, l.Middleware(h)) },
		"both, and Middleware outside": func(l *Limiter, h http.Handler) http.Handler {
			return l.Middleware(mounts["Check"](l, h))
		},
		"a TimeoutHandler between": func(l *Limiter, h http.Handler) http.Handler {
			return l.Middleware(http.TimeoutHandler(l.Middleware(h), time.Minute, "late"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, h := oneAtATime(t), newRunner(t)
			s := httptest.NewServer(twice(l, h))
			defer s.Close()
			served := make(chan int, 1)
			go func() {
				if response, err := http.Get(s.URL); err == nil {
					io.Copy(io.Discard, response.Body) // to close it before would disconnect
					response.Body.Close()
					served <- response.StatusCode
				}
			}()
			h.start()
			require.EqualValues(t, 1, l.Stats().InFlight)
			require.Equal(t, 429, quick(t, s))
			h.end(true)
			require.Equal(t, 200, receive(t, served))
			wantFree(t, l, s)
			require.EqualValues(t, 2, l.Stats().Allowed)
			require.EqualValues(t, 1, l.Stats().Denied)
		})
	}
}

// TestInnerLimiterDenies: a request that an inner limiter denies gives back its hold of the
// outer one.
func TestInnerLimiterDenies(t *testing.T) {
	overMounts(t, func(t *testing.T, mount string, start func(*Limiter, http.Handler) *httptest.Server) {
		outer, inner, h := limiterOf(t, "outer", 2), limiterOf(t, "inner", 1), newRunner(t)
		s := start(outer, mounts[mount](inner, h))
		stream, _ := open(t, s, "GET", "/")
		h.start()
		for range 10 {
			require.Equal(t, 429, quick(t, s))
		}
		eventually(t, func() bool { return outer.Stats().InFlight == 1 })
		require.EqualValues(t, 1, inner.Stats().InFlight)
		require.EqualValues(t, 10, inner.Stats().Denied, "the outer limiter had room for all of them")
		h.end(true)
		io.Copy(io.Discard, stream.Body)
		wantFree(t, outer, s)
		wantFree(t, inner, s)
	})
}

// limiterOf makes a limiter of n requests at the same time.
func limiterOf(t *testing.T, name string, n int64) *Limiter {
	return httpLimiterNamed(t, t.Name()+name, quiet(InFlight(n, time.Minute)))
}

// TestDeniedAnswerHoldsNothing: while Options.Denied answers, there is no hold of the request.
func TestDeniedAnswerHoldsNothing(t *testing.T) {
	for name, mount := range mounts {
		t.Run(name, func(t *testing.T) {
			h, denied := newRunner(t), newRunner(t)
			o := quiet(InFlight(1, time.Minute))
			o.Denied = denied
			l := httpLimiter(t, o)
			s := httptest.NewServer(mount(l, h))
			defer s.Close()
			stream, _ := open(t, s, "GET", "/")
			h.start()
			answer, _ := open(t, s, "GET", "/")
			require.Equal(t, 429, answer.StatusCode)
			denied.start()
			require.EqualValues(t, 1, l.Stats().InFlight)
			h.end(true)
			io.Copy(io.Discard, stream.Body)
			wantFree(t, l, s)
			denied.end(true)
			io.Copy(io.Discard, answer.Body)
			wantFree(t, l, s)
		})
	}
}

// TestShadowHolds: what Shadow lets through has no hold.
func TestShadowHolds(t *testing.T) {
	for name, mount := range mounts {
		t.Run(name, func(t *testing.T) {
			o := quiet(InFlight(1, time.Minute))
			o.Shadow = true
			l, h := httpLimiter(t, o), newRunner(t)
			s := httptest.NewServer(mount(l, h))
			defer s.Close()
			open(t, s, "GET", "/")
			h.start()
			open(t, s, "GET", "/")
			h.start()
			require.EqualValues(t, 1, l.Stats().InFlight)
			require.EqualValues(t, 1, l.Stats().ShadowDenied)
			h.end(true)
			h.end(true)
			wantFree(t, l, s)
			require.EqualValues(t, 1, l.Stats().ShadowDenied)
		})
	}
}

// TestShutdownEndsHolds: a server that shuts down waits for the requests in flight, and their
// holds end with them. If it does not wait, they end when their handlers return, also after
// the limiter was closed.
func TestShutdownEndsHolds(t *testing.T) {
	overMounts(t, func(t *testing.T, mount string, start func(*Limiter, http.Handler) *httptest.Server) {
		for _, waits := range []bool{true, false} {
			l, h := oneAtATime(t), newRunner(t)
			s := start(l, h)
			open(t, s, "GET", "/")
			h.start()
			if waits {
				down := make(chan error, 1)
				go func() { down <- s.Config.Shutdown(t.Context()) }()
				require.EqualValues(t, 1, l.Stats().InFlight)
				h.end(true)
				require.NoError(t, receive(t, down))
				require.NoError(t, l.Close())
			} else {
				s.Config.Close()
				require.NoError(t, l.Close())
				if mount == "Middleware" {
					require.EqualValues(t, 1, l.Stats().InFlight)
				}
				h.end(true)
			}
			eventually(t, func() bool { return l.Stats().InFlight == 0 })
		}
	})
}

// TestClientsThatReset: a client that opens streams and resets them cannot have more handlers
// than the limit at the same time, although these do not care for their contexts.
func TestClientsThatReset(t *testing.T) {
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		l, h := limiterOf(t, "", 3), newRunner(t)
		s := start(l.Middleware(h))
		for range 3 {
			_, leave := open(t, s, "GET", "/")
			leave()
		}
		for range 3 {
			receive(t, h.start().Done())
		}
		var clients sync.WaitGroup
		for range 10 {
			clients.Go(func() {
				for range 10 {
					ctx, leave := context.WithCancel(t.Context())
					time.AfterFunc(time.Millisecond, leave)
					r, _ := http.NewRequestWithContext(ctx, "GET", s.URL, nil)
					if response, err := s.Client().Do(r); err == nil {
						response.Body.Close()
					}
					leave()
				}
			})
		}
		clients.Wait()
		require.Equal(t, 429, quick(t, s))
		require.EqualValues(t, 3, h.now.Load())
		require.EqualValues(t, 3, h.most.Load())
		free := make(chan struct{})
		var ends sync.WaitGroup
		ends.Go(func() {
			for { // a request whose client has left may still begin, as soon as there is room
				select {
				case h.finish <- true:
				case <-free:
					return
				}
			}
		})
		wantFree(t, l, s)
		close(free)
		ends.Wait()
	})
}

// TestOddClients: what clients do to a connection ends no hold early and keeps none.
func TestOddClients(t *testing.T) {
	type client struct {
		head  string
		then  func(t *testing.T, conn net.Conn) // while the handler runs
		body  bool                              // the handler reads the body, and returns when that ends
		keeps bool                              // the connection works after that
	}
	closes := func(t *testing.T, conn net.Conn) { conn.Close() }
	resets := func(t *testing.T, conn net.Conn) {
		require.NoError(t, conn.(*net.TCPConn).SetLinger(0))
		conn.Close()
	}
	stops := func(t *testing.T, conn net.Conn) { require.NoError(t, conn.(*net.TCPConn).CloseWrite()) }
	send := func(text string) func(t *testing.T, conn net.Conn) {
		return func(t *testing.T, conn net.Conn) {
			_, err := io.WriteString(conn, text)
			require.NoError(t, err)
		}
	}
	const slow = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nslow"
	const chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nslow\r\n"
	const expects = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
	for name, c := range map[string]client{
		"closes":                        {head: "GET / HTTP/1.1\r\nHost: a\r\n\r\n", then: closes},
		"resets":                        {head: "GET / HTTP/1.1\r\nHost: a\r\n\r\n", then: resets},
		"closes one half":               {head: "GET / HTTP/1.1\r\nHost: a\r\n\r\n", then: stops},
		"HEAD":                          {head: "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", keeps: true},
		"HTTP/1.0":                      {head: "GET / HTTP/1.0\r\n\r\n"},
		"HTTP/1.0, closes":              {head: "GET / HTTP/1.0\r\n\r\n", then: closes},
		"pipelines":                     {head: "GET / HTTP/1.1\r\nHost: a\r\n\r\n", then: send("GET /quick HTTP/1.1\r\nHost: a\r\n\r\n")},
		"pipelines and closes":          {head: "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /quick HTTP/1.1\r\nHost: a\r\n\r\n", then: closes},
		"sends garbage":                 {head: "GET / HTTP/1.1\r\nHost: a\r\n\r\n", then: send("\x00\r\n\r\n\r\n")},
		"upgrades":                      {head: "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", keeps: true},
		"upgrades and closes":           {head: "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", then: closes},
		"expects and closes":            {head: expects, then: closes},
		"expects, body read":            {head: expects, then: send("hello"), body: true, keeps: true},
		"expects, body read, closes":    {head: expects, then: closes, body: true},
		"slow body, not read":           {head: slow, then: resets},
		"slow body, closes":             {head: slow, then: closes, body: true},
		"slow body, resets":             {head: slow, then: resets, body: true},
		"slow body, closes one half":    {head: slow, then: stops, body: true},
		"chunked body, closes one half": {head: chunked, then: stops, body: true},
		"chunked body, garbage":         {head: chunked, then: send("zzz\r\n"), body: true},
	} {
		for mount, mounted := range mounts {
			t.Run(name+", "+mount, func(t *testing.T) {
				l, h := oneAtATime(t), newRunner(t)
				s := httptest.NewUnstartedServer(mounted(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path != "/quick" {
						h.started <- r.Context()
						if c.body {
							io.Copy(io.Discard, r.Body)
						}
						h.run()
					}
				})))
				s.Config.ErrorLog = log.New(io.Discard, "", 0)
				s.Start()
				defer s.Close()
				conn := dial(t, s)
				_, err := io.WriteString(conn, c.head)
				require.NoError(t, err)
				h.start()
				require.Equal(t, 429, quick(t, s))
				if c.then != nil {
					c.then(t, conn)
				}
				if mount == "Middleware" {
					require.Equal(t, 429, quick(t, s))
				}
				h.end(true)
				if c.keeps {
					r := bufio.NewReader(conn)
					for {
						response, err := http.ReadResponse(r, &http.Request{Method: c.head[:4]})
						require.NoError(t, err)
						if response.StatusCode != 100 {
							require.Equal(t, 200, response.StatusCode)
							break
						}
					}
					fmt.Fprint(conn, "GET /quick HTTP/1.1\r\nHost: a\r\n\r\n")
					response, err := http.ReadResponse(r, nil)
					require.NoError(t, err)
					require.Equal(t, 200, response.StatusCode, "on the same connection")
				}
				wantFree(t, l, s)
			})
		}
	}
}
