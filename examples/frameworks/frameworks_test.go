package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/gofiber/fiber/v3"
	"github.com/labstack/echo/v5"

	"github.com/ratelimit-go/ratelimit"
)

func TestFrameworks(t *testing.T) {
	for name, build := range frameworks {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			hello := func(ctx context.Context) string {
				calls.Add(1)
				return greet(ctx)
			}
			get := start(t, build(newLimiter(t, "hello", nil), hello))

			for _, left := range []string{"2", "1", "0"} {
				res, body := get(http.MethodGet, nil)
				if res.StatusCode != http.StatusOK {
					t.Fatalf("with %s left: status %d, want 200", left, res.StatusCode)
				}
				if want := "hello, " + left + " left\n"; body != want {
					t.Errorf("body %q, want %q: DecisionFrom does not see the decision", body, want)
				}
				wantField(t, res, "RateLimit-Policy", `"hello";q=3;w=60`)
				wantField(t, res, "RateLimit", `"hello";r=`+left+`;t=\d+`)
				wantField(t, res, "Retry-After", "")
			}

			res, body := get(http.MethodGet, nil)
			if res.StatusCode != http.StatusTooManyRequests {
				t.Fatalf("the fourth request: status %d, want 429", res.StatusCode)
			}
			if want := "Too many requests, please try again later."; body != want {
				t.Errorf("denied: body %q, want %q", body, want)
			}
			wantField(t, res, "Content-Type", "text/plain; charset=utf-8")
			wantField(t, res, "RateLimit-Policy", `"hello";q=3;w=60`)
			wantField(t, res, "RateLimit", `"hello";r=0;t=\d+`)
			if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err != nil || s < 1 || s > 60 {
				t.Errorf("denied: Retry-After %q, want 1 to 60", res.Header.Get("Retry-After"))
			}
			if n := calls.Load(); n != 3 {
				t.Errorf("the handler ran %d times, want 3: not for a denied request", n)
			}

			res, body = get(http.MethodGet, http.Header{"Accept": {"application/problem+json"}})
			wantField(t, res, "Content-Type", `application/problem\+json`)
			if !strings.Contains(body, `"violated-policies":["hello"]`) {
				t.Errorf("denied: body %q, want problem details", body)
			}
		})
	}
}

// TestKeys checks that key functions can read more of a request than its address.
func TestKeys(t *testing.T) {
	keys := map[string]ratelimit.KeyFunc{
		"header":  ratelimit.HeaderKey("X-API-Key"),
		"pattern": ratelimit.PatternKey,
		"lines": func(r *http.Request) (string, error) {
			return strings.Join(r.Header.Values("X-Forwarded-For"), "|"), nil
		},
		"url": func(r *http.Request) (string, error) {
			return r.Method + " " + r.Host + r.URL.Path + "?" + r.URL.RawQuery, nil
		},
	}
	for name, build := range frameworks {
		t.Run(name, func(t *testing.T) {
			for what, key := range keys {
				var got atomic.Value
				limiter := newLimiter(t, what, func(r *http.Request) (string, error) {
					k, err := key(r)
					got.Store(k)
					return k, err
				})
				get := start(t, build(limiter, greet))
				res, _ := get(http.MethodGet, http.Header{
					"X-Api-Key":       {"alice"},
					"X-Forwarded-For": {"192.0.2.1", "198.51.100.2"},
				})
				want := map[string]string{
					"header":  "alice",
					"pattern": "/hello",
					"lines":   "192.0.2.1|198.51.100.2",
					"url":     "GET " + res.Request.Host + "/hello?q=1",
				}[what]
				// Only some routers have the method at the beginning of a pattern.
				if k := strings.TrimPrefix(got.Load().(string), "GET "); k != strings.TrimPrefix(want, "GET ") {
					t.Errorf("%s: key %q, want %q", what, k, want)
				}
				if res.StatusCode != http.StatusOK {
					t.Errorf("%s: status %d, want 200", what, res.StatusCode)
				}
			}
		})
	}
}

// logins are small programs, one per framework, with GET /hello behind limiter. Each
// refuses a wrong password in its framework's usual way.
var logins = map[string]func(limiter *ratelimit.Limiter) server{
	"chi": func(limiter *ratelimit.Limiter) server {
		router := chi.NewRouter()
		router.With(Chi(limiter)).Get("/hello", func(w http.ResponseWriter, r *http.Request) {
			switch r.Header.Get("Password") {
			case "right":
				fmt.Fprint(w, "welcome")
			default:
				http.Error(w, "no", http.StatusUnauthorized)
			}
		})
		return netHTTP(router)
	},
	"gin": func(limiter *ratelimit.Limiter) server {
		gin.SetMode(gin.ReleaseMode)
		router := gin.New()
		router.GET("/hello", Gin(limiter), func(c *gin.Context) {
			switch c.GetHeader("Password") {
			case "right":
				c.String(http.StatusOK, "welcome")
			default:
				c.AbortWithStatusJSON(http.StatusUnauthorized, gin.H{"error": "no"})
			}
		})
		return netHTTP(router)
	},
	"echo": func(limiter *ratelimit.Limiter) server {
		router := echo.New()
		router.GET("/hello", func(c *echo.Context) error {
			switch c.Request().Header.Get("Password") {
			case "right":
				return c.String(http.StatusOK, "welcome")
			case "nothing":
				return nil
			}
			return echo.NewHTTPError(http.StatusUnauthorized, "no")
		}, Echo(limiter))
		return netHTTP(router)
	},
	"fiber": func(limiter *ratelimit.Limiter) server {
		app := fiber.New()
		app.Get("/hello", Fiber(limiter), func(c fiber.Ctx) error {
			if c.Get("Password") == "right" {
				return c.SendString("welcome")
			}
			return fiber.ErrUnauthorized
		})
		return fiberServer(app)
	},
}

// TestFailuresCount has a limit of three failures. A success gives its units back, also if
// the framework writes errors after the middleware has returned.
func TestFailuresCount(t *testing.T) {
	for name, build := range logins {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			limiter := newLimiterOf(t, "login", ratelimit.Options{
				Count:  func(_ *http.Request, status int) bool { return status >= 400 },
				Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn})),
			})
			get := start(t, build(limiter))
			login := func(password string, want int) {
				t.Helper()
				res, _ := get(http.MethodGet, http.Header{"Password": {password}})
				if res.StatusCode != want {
					t.Fatalf("%s: status %d, want %d", password, res.StatusCode, want)
				}
			}
			for range 5 {
				login("right", 200)
			}
			if name == "echo" {
				for range 5 {
					login("nothing", 200)
				}
			}
			for range 3 {
				login("wrong", 401)
			}
			login("wrong", 429)
			login("right", 429)
			if log.Len() > 0 {
				t.Errorf("warnings:\n%s", log.String())
			}
		})
	}
}

// around are small programs, one per framework, with GET /hello behind limiter. Middleware
// around the limiter sets a context with a timeout, and header fields for a response that
// caches may store.
var around = map[string]func(limiter *ratelimit.Limiter, timeout time.Duration, handle func(context.Context)) server{
	"chi": func(limiter *ratelimit.Limiter, timeout time.Duration, handle func(context.Context)) server {
		router := chi.NewRouter()
		router.With(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithTimeout(r.Context(), timeout)
				defer cancel()
				setFields(w.Header().Add)
				next.ServeHTTP(w, r.WithContext(ctx))
			})
		}, Chi(limiter)).Get("/hello", func(w http.ResponseWriter, r *http.Request) { handle(r.Context()) })
		return netHTTP(router)
	},
	"gin": func(limiter *ratelimit.Limiter, timeout time.Duration, handle func(context.Context)) server {
		gin.SetMode(gin.ReleaseMode)
		router := gin.New()
		router.GET("/hello", func(c *gin.Context) {
			ctx, cancel := context.WithTimeout(c.Request.Context(), timeout)
			defer cancel()
			setFields(c.Writer.Header().Add)
			c.Request = c.Request.WithContext(ctx)
			c.Next()
		}, Gin(limiter), func(c *gin.Context) { handle(c.Request.Context()) })
		return netHTTP(router)
	},
	"echo": func(limiter *ratelimit.Limiter, timeout time.Duration, handle func(context.Context)) server {
		router := echo.New()
		router.GET("/hello", func(c *echo.Context) error {
			handle(c.Request().Context())
			return c.NoContent(http.StatusOK)
		}, func(next echo.HandlerFunc) echo.HandlerFunc {
			return func(c *echo.Context) error {
				ctx, cancel := context.WithTimeout(c.Request().Context(), timeout)
				defer cancel()
				setFields(c.Response().Header().Add)
				c.SetRequest(c.Request().WithContext(ctx))
				return next(c)
			}
		}, Echo(limiter))
		return netHTTP(router)
	},
	"fiber": func(limiter *ratelimit.Limiter, timeout time.Duration, handle func(context.Context)) server {
		app := fiber.New()
		app.Get("/hello", func(c fiber.Ctx) error {
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			setFields(c.Response().Header.Add)
			c.SetContext(ctx)
			return c.Next()
		}, Fiber(limiter), Fiber(limiter), func(c fiber.Ctx) error {
			handle(c.Context())
			return nil
		})
		return fiberServer(app)
	},
}

// setFields sets header fields of a response that caches may store, cookies, and a field with
// several lines.
func setFields(add func(name, value string)) {
	for _, field := range [][2]string{
		{"Surrogate-Control", "max-age=3600"}, {"Cache-Control", "max-age=3600"}, {"Etag", `"1"`}, {"Expires", "Thu, 01 Jan 2099 00:00:00 GMT"},
		{"Set-Cookie", "a=1; Path=/"}, {"Set-Cookie", "b=2"}, {"Link", "</a>"}, {"Link", "</b>"}, {"X-Request-Id", "7"},
	} {
		add(field[0], field[1])
	}
}

// TestContextsEnd checks that a handler's context ends with the context that middleware around
// the limiter has set.
func TestContextsEnd(t *testing.T) {
	for name, build := range around {
		t.Run(name, func(t *testing.T) {
			get := start(t, build(newLimiter(t, "hello", nil), 200*time.Millisecond, func(ctx context.Context) {
				if _, ok := ctx.Deadline(); !ok {
					t.Error("the context has no deadline")
				}
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Second):
					t.Error("the context does not end")
				}
				if err := context.Cause(ctx); err != context.DeadlineExceeded || ctx.Err() != err {
					t.Errorf("the context has ended with %v, %v", ctx.Err(), err)
				}
				if _, ok := ratelimit.DecisionFrom(ctx); !ok {
					t.Error("the context has no decision")
				}
			}))
			if res, _ := get(http.MethodGet, nil); res.StatusCode != http.StatusOK {
				t.Errorf("status %d, want 200", res.StatusCode)
			}
		})
	}
}

// TestDenialsAreNotStored checks that a denial has none of the fields that let caches store
// it. Other fields of middleware around the limiter stay.
func TestDenialsAreNotStored(t *testing.T) {
	for name, build := range around {
		t.Run(name, func(t *testing.T) {
			get := start(t, build(newLimiter(t, "hello", nil), time.Minute, func(context.Context) {}))
			for i := range 4 {
				res, _ := get(http.MethodGet, nil)
				stored, cache := []string{`"1"`, "max-age=3600", "Thu, 01 Jan 2099 00:00:00 GMT"}, "max-age=3600"
				if i == 3 {
					stored, cache = []string{"", "", ""}, "no-store"
					if res.StatusCode != http.StatusTooManyRequests {
						t.Errorf("status %d, want 429", res.StatusCode)
					}
				}
				for i, field := range []string{"Etag", "Surrogate-Control", "Expires"} {
					wantField(t, res, field, stored[i])
				}
				wantField(t, res, "Cache-Control", cache)
				wantField(t, res, "X-Request-Id", "7")
				for field, want := range map[string]string{"Set-Cookie": "a=1; Path=/, b=2", "Link": "</a>, </b>"} {
					if got := strings.Join(res.Header.Values(field), ", "); got != want {
						t.Errorf("%d: %s is %q, want %q", res.StatusCode, field, got, want)
					}
				}
			}
		})
	}
}

// TestFiberStacked nests limiters. Fiber's response is not an http.ResponseWriter, so the
// example must pass on the fields of outer limiters and responses without a body.
func TestFiberStacked(t *testing.T) {
	outer, inner := newLimiter(t, "outer", nil), newLimiter(t, "inner", nil)
	app := fiber.New()
	app.Use(Fiber(outer))
	app.Get("/hello", Fiber(inner), func(c fiber.Ctx) error {
		if err := outer.AddCost(c.Context(), 1); err != nil {
			t.Errorf("AddCost: %v", err)
		}
		return c.SendString("hello")
	})
	get := start(t, fiberServer(app))

	res, _ := get(http.MethodGet, nil)
	wantField(t, res, "RateLimit-Policy", `"outer";q=3;w=60, "inner";q=3;w=60`)
	wantField(t, res, "RateLimit", `"outer";r=2;t=\d+, "inner";r=2;t=\d+`)
	res, _ = get(http.MethodGet, nil)
	wantField(t, res, "RateLimit", `"outer";r=0;t=\d+, "inner";r=1;t=\d+`)

	res, body := get(http.MethodHead, nil)
	if res.StatusCode != http.StatusTooManyRequests || body != "" {
		t.Errorf("HEAD: status %d, body %q, want 429 and none", res.StatusCode, body)
	}
	wantField(t, res, "RateLimit", `"outer";r=0;t=\d+`)
	wantField(t, res, "Retry-After", `\d+`)
}

// TestFiberCountsOnce mounts one limiter twice.
func TestFiberCountsOnce(t *testing.T) {
	limiter := newLimiter(t, "twice", nil)
	app := fiber.New()
	app.Use(Fiber(limiter))
	app.Get("/hello", Fiber(limiter), func(c fiber.Ctx) error { return c.SendString("hello") })
	get := start(t, fiberServer(app))

	for remaining := range 3 {
		res, _ := get(http.MethodGet, nil)
		wantField(t, res, "RateLimit", fmt.Sprintf(`"twice";r=%d;t=\d+`, 2-remaining))
	}
	if res, _ := get(http.MethodGet, nil); res.StatusCode != http.StatusTooManyRequests {
		t.Errorf("the fourth request: status %d, want 429", res.StatusCode)
	}
}

// newLimiter returns a limiter of 3 requests a minute. It is closed and its counters are
// deleted when the test ends.
func newLimiter(t *testing.T, name string, key ratelimit.KeyFunc) *ratelimit.Limiter {
	t.Helper()
	return newLimiterOf(t, name, ratelimit.Options{Key: key, Logger: slog.New(slog.DiscardHandler)})
}

// newLimiterOf does the same with other options, and other limits if these have some.
func newLimiterOf(t *testing.T, name string, opts ratelimit.Options) *ratelimit.Limiter {
	t.Helper()
	store := ratelimit.Memory(t.Name() + " " + name)
	registry := new(ratelimit.Registry)
	if opts.Store = store; opts.Limits == nil {
		opts.Limits = []ratelimit.Limit{ratelimit.FixedWindow(3, time.Minute)}
	}
	limiter, err := registry.New(name, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		registry.Close()
		store.Close()
	})
	return limiter
}

// start serves on a loopback socket until the test ends. It returns a function that
// requests /hello.
func start(t *testing.T, s server) func(method string, header http.Header) (*http.Response, string) {
	t.Helper()
	base, client := listen(t, s)
	return getter(t, base, client)
}

// listen serves on a loopback socket until the test ends.
func listen(t *testing.T, s server) (base string, client *http.Transport) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, listener, s) }()
	transport := new(http.Transport)
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return "http://" + listener.Addr().String(), transport
}

func getter(t *testing.T, base string, transport *http.Transport) func(method string, header http.Header) (*http.Response, string) {
	return func(method string, header http.Header) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequest(method, base+"/hello?q=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		if header != nil {
			req.Header = header
		}
		res, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		res.Request = req
		return res, string(body)
	}
}

// wantField checks that a response has one line of a header field and that it matches form,
// a regular expression. If form is empty, the response must not have the field.
func wantField(t *testing.T, res *http.Response, name, form string) {
	t.Helper()
	lines := res.Header.Values(name)
	if form == "" && len(lines) == 0 {
		return
	}
	if len(lines) != 1 || !regexp.MustCompile(`^(?:`+form+`)$`).MatchString(lines[0]) {
		t.Errorf("%d: %s is %q, want %q", res.StatusCode, name, lines, form)
	}
}
