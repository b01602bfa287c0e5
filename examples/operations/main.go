// Command operations is a small shop with rate limits that an operator can watch: it
// exports metrics to Prometheus, logs denials, lists the keys that are denied most, and has
// an admin page. It sends itself traffic, so that there is something to see.
package main

import (
	"context"
	"crypto/subtle"
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

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/admin"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/postgres"
	"github.com/ratelimit-go/ratelimit/promratelimit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` to serve on")
	redisAddr := flag.String("redis", "", "`address` of a Redis server to count failed logins on; empty: in memory")
	database := flag.String("postgres", "", "`URL` of a PostgreSQL database to count failed logins in; empty: none")
	auditFile := flag.String("audit", "", "`file` to keep a trail of denials in; empty: none")
	operators := flag.String("operators", "", "`name:password` with which an operator may act on the admin page; empty: it is read-only")
	visitors := flag.Bool("traffic", true, "send traffic to the shop")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := settings{*addr, *redisAddr, *database, *auditFile, *operators, *visitors}
	if err := run(ctx, s, os.Stdout); err != nil {
		slog.Error("the shop has ended", "error", err)
		os.Exit(1)
	}
}

// settings are the flags.
type settings struct {
	addr, redis, postgres, audit, operator string
	visitors                               bool
}

// run serves until ctx is done. Then it waits for the requests in flight.
func run(ctx context.Context, s settings, out io.Writer) (err error) {
	logins, closeLogins, err := openStore(ctx, s)
	if err != nil {
		return err
	}
	defer closeLogins()
	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		return err
	}

	// The collector reads the limiters of the default registry on each scrape, and does
	// nothing in between.
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(promratelimit.NewCollector(nil))

	var top offenders
	defer ratelimit.DefaultRegistry.Observe(logDenials(slog.Default()))()
	defer ratelimit.DefaultRegistry.Observe(top.observe)()

	var auditor ratelimit.Auditor // nil records nothing
	var records audit.Reader      // nil: the admin page does not show any
	if s.audit != "" {
		trail, closeTrail, openErr := openTrail(s.audit)
		if openErr != nil {
			return errors.Join(openErr, listener.Close())
		}
		defer func() { err = errors.Join(err, closeTrail()) }()
		defer ratelimit.DefaultRegistry.Observe(trail.Observe)()
		auditor, records = trail, trail
	}

	mux := http.NewServeMux()
	if err := addShop(mux, logins, metrics, auditor); err != nil {
		return errors.Join(err, listener.Close())
	}
	// The next two are for operators. In production, serve them on an address that only
	// you can reach: /offenders has the addresses of clients.
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.Handle("GET /offenders", &top)
	mux.Handle("/admin/", adminPage(s.operator, records))

	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	url := "http://" + listener.Addr().String()
	fmt.Fprintf(out, usage, url)
	if s.visitors {
		sendTraffic(ctx, url)
	}

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	fmt.Fprintln(out, "shutting down")
	shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return errors.Join(server.Shutdown(shutdown), ratelimit.DefaultRegistry.Close())
}

// openStore returns the store of failed logins, or options for one: see addShop. closeStore
// closes it, after the limiters.
func openStore(ctx context.Context, s settings) (store ratelimit.Options, closeStore func(), err error) {
	switch {
	case s.redis != "":
		client := redis.NewClient(&redis.Options{
			Addr:          s.redis,
			DialerRetries: 1, // with more, the log shows a timeout and not the refused connection behind it
		})
		return ratelimit.Options{Redis: client}, func() { client.Close() }, nil
	case s.postgres != "":
		return openPostgres(ctx, s.postgres)
	}
	return ratelimit.Options{}, func() {}, nil // in memory
}

// openPostgres makes the schema and the store. In production, the schema is a step of the
// deployment.
func openPostgres(ctx context.Context, url string) (ratelimit.Options, func(), error) {
	var none ratelimit.Options
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return none, nil, err
	}
	defer conn.Close(ctx)
	if err := postgres.Migrate(ctx, conn); err != nil {
		return none, nil, err
	}
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return none, nil, err
	}
	store, err := postgres.NewStore(pool, "login")
	if err != nil {
		pool.Close()
		return none, nil, err
	}
	return ratelimit.Options{Store: store}, func() { store.Close(); pool.Close() }, nil
}

// adminPage returns the admin page. Without an operator it is read-only, and answers only
// requests from this machine.
func adminPage(operator string, records audit.Reader) http.Handler {
	if operator == "" {
		return admin.Handler(admin.Options{Audit: records})
	}
	signedIn := func(r *http.Request) (who string, ok bool) {
		who, password, _ := r.BasicAuth()
		return who, subtle.ConstantTimeCompare([]byte(who+":"+password), []byte(operator)) == 1
	}
	page := admin.Handler(admin.Options{Actor: signedIn, Audit: records})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := signedIn(r); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="operators"`)
			http.Error(w, "Sign in first.", http.StatusUnauthorized)
			return
		}
		page.ServeHTTP(w, r)
	})
}

// openTrail opens a trail in a file of JSON lines, with the secrets of its pseudonyms beside it.
func openTrail(name string) (trail *audit.Trail, closeTrail func() error, err error) {
	file, err := audit.OpenFile(name)
	if err != nil {
		return nil, nil, err
	}
	secrets, err := audit.OpenSecrets(name+".secrets", 90*24*time.Hour)
	if err == nil {
		trail, err = audit.New(audit.Options{Sink: file, Secrets: secrets, Service: "shop"})
	}
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return trail, func() error { return errors.Join(trail.Close(), file.Close()) }, nil
}

const usage = `serving on %[1]s

  curl %[1]s/metrics | grep ^ratelimit_
  curl %[1]s/offenders
  open %[1]s/admin/ in a browser
  curl -i -X POST %[1]s/login -d password=guess      # repeat it
  curl -i %[1]s/search                               # repeat it, or send: -H 'X-API-Key: pro-1'

`
