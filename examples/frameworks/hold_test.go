package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/gofiber/fiber/v3"
	fiberrecover "github.com/gofiber/fiber/v3/middleware/recover"
	"github.com/labstack/echo/v5"

	"github.com/ratelimit-go/ratelimit"
)

// work is what handlers do in tests of holds.
type work struct {
	started chan bool
	finish  chan error // how a request ends: nil for a response, or a panic
}

func newWork() *work { return &work{make(chan bool, 10), make(chan error)} }

// do returns at once, unless the request has the header field Wait.
func (w *work) do(wait string) {
	if wait == "" {
		return
	}
	w.started <- true
	if err := <-w.finish; err != nil {
		panic(err)
	}
}

var errBug = errors.New("a bug")

// workers are small programs, one per framework, with GET /hello behind limiter.
var workers = map[string]func(limiter *ratelimit.Limiter, w *work) server{
	"chi": func(limiter *ratelimit.Limiter, work *work) server {
		router := chi.NewRouter()
		router.With(Chi(limiter)).Get("/hello", func(w http.ResponseWriter, r *http.Request) { work.do(r.Header.Get("Wait")) })
		return netHTTP(recovers(router))
	},
	"gin": func(limiter *ratelimit.Limiter, work *work) server {
		gin.SetMode(gin.ReleaseMode)
		router := gin.New()
		router.GET("/hello", Gin(limiter), func(c *gin.Context) { work.do(c.GetHeader("Wait")) })
		return netHTTP(recovers(router))
	},
	"echo": func(limiter *ratelimit.Limiter, work *work) server {
		router := echo.New()
		router.GET("/hello", func(c *echo.Context) error {
			work.do(c.Request().Header.Get("Wait"))
			return c.NoContent(http.StatusOK)
		}, Echo(limiter))
		return netHTTP(recovers(router))
	},
	"fiber": func(limiter *ratelimit.Limiter, work *work) server {
		app := fiber.New()
		app.Use(fiberrecover.New())
		app.Get("/hello", Fiber(limiter), func(c fiber.Ctx) error {
			work.do(c.Get("Wait"))
			return nil
		})
		return fiberServer(app)
	},
}

// recovers answers a panic with 500.
func recovers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if recover() != nil {
				w.WriteHeader(http.StatusInternalServerError)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// oneAtATime returns a limiter of one request at the same time.
func oneAtATime(t *testing.T) *ratelimit.Limiter {
	return newLimiterOf(t, "work", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.InFlight(1, time.Minute)}, Logger: slog.New(slog.DiscardHandler),
	})
}

var waits = http.Header{"Wait": {"yes"}}

// TestHolds checks that a request holds until its handler returns or panics, and that a
// client that leaves makes room, too.
func TestHolds(t *testing.T) {
	for name, build := range workers {
		t.Run(name, func(t *testing.T) {
			limiter, work := oneAtATime(t), newWork()
			base, client := listen(t, build(limiter, work))
			get := getter(t, base, client)
			for _, end := range []error{nil, errBug, nil} {
				status := make(chan int, 1)
				go func() {
					res, _ := get(http.MethodGet, waits)
					status <- res.StatusCode
				}()
				<-work.started
				if res, _ := get(http.MethodGet, nil); res.StatusCode != http.StatusTooManyRequests {
					t.Fatalf("a second request at the same time: status %d, want 429", res.StatusCode)
				}
				work.finish <- end
				want := http.StatusOK
				if end != nil {
					want = http.StatusInternalServerError
				}
				if got := <-status; got != want {
					t.Errorf("the first request: status %d, want %d", got, want)
				}
				wantRoom(t, limiter, get)
			}

			ctx, leave := context.WithCancel(context.Background())
			defer leave()
			left := make(chan bool)
			go func() {
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, base+"/hello", nil)
				req.Header = waits
				if res, err := client.RoundTrip(req); err == nil {
					res.Body.Close()
				}
				close(left)
			}()
			<-work.started
			leave()
			<-left
			work.finish <- nil
			wantRoom(t, limiter, get)
		})
	}
}

// TestRequestsInARow checks that a client that waits for each response is never denied.
func TestRequestsInARow(t *testing.T) {
	for name, build := range workers {
		t.Run(name, func(t *testing.T) {
			get := start(t, build(oneAtATime(t), newWork()))
			for i := range 300 {
				if res, _ := get(http.MethodGet, nil); res.StatusCode != http.StatusOK {
					t.Fatalf("request %d: status %d, want 200", i, res.StatusCode)
				}
			}
		})
	}
}

// TestFiberStreams checks that a response that fiber writes after its handlers have returned
// holds until it is written, or the client has left. A hijacked connection holds until its
// handler returns.
func TestFiberStreams(t *testing.T) {
	limiter, stream, hijacked := oneAtATime(t), make(chan bool), make(chan bool)
	app := fiber.New()
	app.Use(Fiber(limiter), Fiber(limiter))
	app.Get("/hello", func(c fiber.Ctx) error { return c.SendString("hello") })
	app.Get("/stream", func(c fiber.Ctx) error {
		return c.SendStreamWriter(func(w *bufio.Writer) {
			for i := 0; ; i++ {
				fmt.Fprintf(w, "data: %d\n\n", i)
				if w.Flush() != nil { // the client has left
					return
				}
				select {
				case <-stream:
					return
				case <-time.After(time.Millisecond):
				}
			}
		})
	})
	app.Get("/hijack", func(c fiber.Ctx) error {
		c.RequestCtx().Hijack(func(conn net.Conn) {
			<-hijacked
		})
		return nil
	})
	base, client := listen(t, fiberServer(app))
	get := getter(t, base, client)
	open := func(path string) *http.Response {
		req, _ := http.NewRequest(http.MethodGet, base+path, nil)
		res, err := new(http.Transport).RoundTrip(req) // on a connection of its own
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusOK {
			t.Fatalf("%s: status %d, want 200", path, res.StatusCode)
		}
		return res
	}
	for _, end := range []struct {
		path string
		how  func(res *http.Response)
	}{
		{"/stream", func(res *http.Response) { stream <- true }},
		{"/stream", func(res *http.Response) { res.Body.Close() }},
		{"/hijack", func(res *http.Response) { hijacked <- true }},
	} {
		res := open(end.path)
		if end.path == "/stream" {
			io.ReadFull(res.Body, make([]byte, 4))
		}
		if second, _ := get(http.MethodGet, nil); second.StatusCode != http.StatusTooManyRequests {
			t.Fatalf("beside %s: status %d, want 429", end.path, second.StatusCode)
		}
		end.how(res)
		wantRoom(t, limiter, get)
		res.Body.Close()
	}
}

// wantRoom checks that holds end, and that the next request is admitted.
func wantRoom(t *testing.T, limiter *ratelimit.Limiter, get func(string, http.Header) (*http.Response, string)) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); limiter.Stats().InFlight > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the hold does not end")
		}
	}
	if res, _ := get(http.MethodGet, nil); res.StatusCode != http.StatusOK {
		t.Fatalf("the next request: status %d, want 200", res.StatusCode)
	}
}
