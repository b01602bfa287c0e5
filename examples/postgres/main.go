// Postgres is a server that runs in several processes. They share their limits in a
// PostgreSQL database:
//
//	cd examples/postgres
//	go run . -addr 127.0.0.1:8081 -db postgres://localhost/shop
//	go run . -addr 127.0.0.1:8082 -db postgres://localhost/shop
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

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/postgres"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "address to serve on")
	db := flag.String("db", "postgres://localhost/postgres", "URL of the database")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, *db, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run serves until ctx is done. Then it waits for the requests in flight.
func run(ctx context.Context, addr, db string, out io.Writer) error {
	if err := migrate(ctx, db); err != nil {
		return err
	}
	// All limiters share one pool. The rest of the program can use it, too.
	pool, err := pgxpool.New(ctx, db)
	if err != nil {
		return err
	}
	defer pool.Close()

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	handler, closeAll, err := routes(pool, "from "+listener.Addr().String())
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	fmt.Fprintf(out, "serving on http://%s\n", listener.Addr())

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
	return errors.Join(server.Shutdown(shutdown), closeAll())
}

// migrate makes the schema. In production this is a step of the deployment, with a role of
// its own that may create a schema.
func migrate(ctx context.Context, db string) error {
	conn, err := pgx.Connect(ctx, db)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return postgres.Migrate(ctx, conn)
}

// timeout is how long a decision may take at PostgreSQL. After that, this process decides by
// itself.
var timeout = ratelimit.DefaultTimeout

// routes makes one limiter per route, each with a store of its own. closeAll closes the
// limiters first, and then the stores.
func routes(pool *pgxpool.Pool, who string) (handler http.Handler, closeAll func() error, err error) {
	loginStore, err := postgres.NewStore(pool, "login", postgres.Durable())
	if err != nil {
		return nil, nil, err
	}
	login, err := ratelimit.New("login", ratelimit.Options{
		Limits:  []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
		Store:   loginStore,
		Timeout: timeout,
		Message: "Too many login attempts, please try again later.",
	})
	if err != nil {
		return nil, nil, err
	}
	apiStore, err := postgres.NewStore(pool, "api")
	if err != nil {
		return nil, nil, err
	}
	api, err := ratelimit.New("api", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.TokenBucket(10, time.Second, 20), ratelimit.FixedWindow(1000, 24*time.Hour)},
		Store:  apiStore,
	})
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /login", login.Middleware(text("welcome, "+who+"\n")))
	mux.Handle("/api/", api.Middleware(text("data, "+who+"\n")))
	return mux, func() error {
		return errors.Join(ratelimit.DefaultRegistry.Close(), loginStore.Close(), apiStore.Close())
	}, nil
}

func text(s string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, s) })
}
