// Command frameworks serves GET /hello under a limit, in a web framework that you choose.
// For each framework, another file of this folder has a middleware to copy.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/gofiber/fiber/v3"
	"github.com/labstack/echo/v5"

	"github.com/ratelimit-go/ratelimit"
)

func main() {
	names := slices.Sorted(maps.Keys(frameworks))
	framework := flag.String("framework", "chi", strings.Join(names, ", "))
	addr := flag.String("addr", "127.0.0.1:8080", "`address` to listen on")
	flag.Parse()
	if err := run(*framework, *addr); err != nil {
		log.Fatal(err)
	}
}

func run(framework, addr string) error {
	build, ok := frameworks[framework]
	if !ok {
		return fmt.Errorf("-framework is %q: want one of %v", framework, slices.Sorted(maps.Keys(frameworks)))
	}
	limiter, err := ratelimit.New("hello", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(3, time.Minute)},
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	fmt.Printf("%s: try this four times\n\n  curl -i http://%s/hello\n\n", framework, listener.Addr())
	return serve(ctx, listener, build(limiter, greet))
}

// greeting is the body of /hello.
type greeting func(context.Context) string

// greet returns what is left. The decision must be in the context.
func greet(ctx context.Context) string {
	if d, ok := ratelimit.DecisionFrom(ctx); ok {
		return fmt.Sprintf("hello, %d left\n", d.Remaining)
	}
	return "hello\n"
}

// frameworks are small programs, one per framework, with GET /hello behind limiter.
var frameworks = map[string]func(limiter *ratelimit.Limiter, hello greeting) server{
	"chi": func(limiter *ratelimit.Limiter, hello greeting) server {
		router := chi.NewRouter()
		router.With(Chi(limiter)).Get("/hello", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, hello(r.Context()))
		})
		return netHTTP(router)
	},
	"gin": func(limiter *ratelimit.Limiter, hello greeting) server {
		gin.SetMode(gin.ReleaseMode)
		router := gin.New()
		router.GET("/hello", Gin(limiter), func(c *gin.Context) {
			c.String(http.StatusOK, "%s", hello(c.Request.Context()))
		})
		return netHTTP(router)
	},
	"echo": func(limiter *ratelimit.Limiter, hello greeting) server {
		router := echo.New()
		router.GET("/hello", func(c *echo.Context) error {
			return c.String(http.StatusOK, hello(c.Request().Context()))
		}, Echo(limiter))
		return netHTTP(router)
	},
	"fiber": func(limiter *ratelimit.Limiter, hello greeting) server {
		app := fiber.New()
		app.Get("/hello", Fiber(limiter), func(c fiber.Ctx) error {
			return c.SendString(hello(c.Context()))
		})
		return fiberServer(app)
	},
}

// server has the functions that the servers of all frameworks have.
type server struct {
	serve    func(net.Listener) error
	shutdown func(context.Context) error
}

func netHTTP(h http.Handler) server {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	return server{s.Serve, s.Shutdown}
}

func fiberServer(app *fiber.App) server {
	listen := func(l net.Listener) error {
		return app.Listener(l, fiber.ListenConfig{DisableStartupMessage: true})
	}
	return server{listen, app.ShutdownWithContext}
}

// serve serves until ctx is done. Then it waits for the requests in flight.
func serve(ctx context.Context, l net.Listener, s server) error {
	ended := make(chan error, 1)
	go func() { ended <- s.serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := s.shutdown(ctx); err != nil {
		return err
	}
	if err := <-ended; err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
