// Redis is a server that runs in several processes. They share their limits on a Redis
// server:
//
//	go run ./examples/redis -addr 127.0.0.1:8081
//	go run ./examples/redis -addr 127.0.0.1:8082
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
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
	redisAddr := flag.String("redis", "localhost:6379", "address of the Redis server")
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
	// One client for all limiters, and for everything else that the program does with Redis.
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs:         []string{redisAddr},
		DialerRetries: 1, // with more, the log shows a timeout and not the refused connection behind it
	})
	defer client.Close()

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	handler, err := routes(client, "from "+listener.Addr().String())
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	fmt.Fprintf(out, "serving on http://%s, counting on %s\n", listener.Addr(), redisAddr)

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
	return errors.Join(server.Shutdown(shutdown), ratelimit.DefaultRegistry.Close())
}

// timeout is how long a decision may take at Redis. After that, this process decides by
// itself.
var timeout = ratelimit.DefaultTimeout

// routes makes one limiter per route. Each makes its own store on the client, with its own
// prefix: "rl:login:" and "rl:api:".
func routes(client redis.UniversalClient, who string) (http.Handler, error) {
	login, err := ratelimit.New("login", ratelimit.Options{
		Limits:  []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
		Redis:   client,
		Timeout: timeout,
		Message: "Too many login attempts, please try again later.",
	})
	if err != nil {
		return nil, err
	}
	api, err := ratelimit.New("api", ratelimit.Options{
		Limits: []ratelimit.Limit{
			ratelimit.TokenBucket(10, time.Second, 20),
			ratelimit.FixedWindow(1000, 24*time.Hour),
		},
		Redis:   client,
		Timeout: timeout,
	})
	if err != nil {
		return nil, err
	}

	mux := http.NewServeMux()
	mux.Handle("POST /login", login.Middleware(text("welcome, "+who+"\n")))
	mux.Handle("/api/", api.Middleware(text("data, "+who+"\n")))
	return mux, nil
}

func text(s string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, s) })
}
