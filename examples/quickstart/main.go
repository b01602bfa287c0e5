// Quickstart serves three routes, each with its own limiter.
//
//	go run ./examples/quickstart
//	go run ./examples/quickstart -redis localhost:6379
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "address to serve on")
	redisAddr := flag.String("redis", "", "address of a Redis server to count on; none: in memory")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, *redisAddr, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run serves until ctx is done. Then it waits for the requests in flight.
func run(ctx context.Context, addr, redisAddr string, out io.Writer) error {
	var client redis.UniversalClient // one for all limiters
	if redisAddr != "" {
		client = redis.NewUniversalClient(&redis.UniversalOptions{
			Addrs:         []string{redisAddr},
			DialerRetries: 1, // with more, the log shows a timeout and not the refused connection behind it
		})
		defer client.Close()
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	handler, err := routes(client)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	usage(out, listener.Addr())

	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	fmt.Fprintln(out, "shutting down")
	shutdown, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = server.Shutdown(shutdown)
	return errors.Join(err, ratelimit.DefaultRegistry.Close())
}

// timeout is how long a decision may take at Redis. After that, this process decides by
// itself.
var timeout = ratelimit.DefaultTimeout

// routes makes one limiter per route. Each has its own store. Without a client, the store is
// in this process's memory. With a client it is on Redis, for all processes together.
func routes(client redis.UniversalClient) (http.Handler, error) {
	api, err := ratelimit.New("api", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(100, 15*time.Minute)},
		Redis:  client,
	})
	if err != nil {
		return nil, err
	}
	signIn, err := ratelimit.New("sign-in", ratelimit.Options{
		Limits:  []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
		Redis:   client,
		Timeout: timeout,
		Message: "Too many login attempts, please try again later.",
	})
	if err != nil {
		return nil, err
	}
	chat, err := ratelimit.New("chat-token", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(300, 15*time.Minute)},
		Redis:  client,
	})
	if err != nil {
		return nil, err
	}

	mux := http.NewServeMux()
	mux.Handle("/api/", api.Middleware(text("Here is your data.\n")))
	mux.Handle("POST /api/auth/signin", signIn.Middleware(text("Wrong password.\n")))
	mux.Handle("POST /api/chat/token", chat.Middleware(text("Here is your token.\n")))
	return logDenials(mux), nil
}

func text(s string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, s) })
}

// logDenials logs each request that is answered with 429. It logs the route's pattern and
// not the path, because the client chooses the path.
func logDenials(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := &statusWriter{ResponseWriter: w}
		next.ServeHTTP(status, r)
		if status.code == http.StatusTooManyRequests {
			slog.Info("denied", "route", r.Pattern, "client", r.RemoteAddr, "retry_after", w.Header().Get("Retry-After"))
		}
	})
}

type statusWriter struct {
	http.ResponseWriter
	code int
}

func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController use the methods of the wrapped writer.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func usage(out io.Writer, addr net.Addr) {
	fmt.Fprintf(out, `serving on http://%[1]s, each route with a limit of its own per client address:

  /api/                  100 per 15 min
  POST /api/auth/signin    5 per hour
  POST /api/chat/token   300 per 15 min

try, and repeat the second until it is refused:

  curl -i http://%[1]s/api/
  curl -i -X POST http://%[1]s/api/auth/signin
  curl -i -X POST http://%[1]s/api/chat/token
  curl -i -X POST -H 'Accept: application/json' http://%[1]s/api/auth/signin

`, addr)
}
