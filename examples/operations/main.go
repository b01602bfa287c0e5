// Command operations is a small shop with rate limits that an operator can watch: it
// exports metrics to Prometheus, logs denials, and lists the keys that are denied most.
// It sends itself traffic, so that there is something to see.
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

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/promratelimit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` to serve on")
	redisAddr := flag.String("redis", "", "`address` of a Redis server to count failed logins on; empty: in memory")
	auditFile := flag.String("audit", "", "`file` to keep a trail of denials in; empty: none")
	visitors := flag.Bool("traffic", true, "send traffic to the shop")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, *redisAddr, *auditFile, *visitors, os.Stdout); err != nil {
		slog.Error("the shop has ended", "error", err)
		os.Exit(1)
	}
}

// run serves until ctx is done. Then it waits for the requests in flight.
func run(ctx context.Context, addr, redisAddr, auditFile string, visitors bool, out io.Writer) (err error) {
	var client redis.UniversalClient // nil counts in memory
	if redisAddr != "" {
		c := redis.NewClient(&redis.Options{
			Addr:          redisAddr,
			DialerRetries: 1, // with more, the log shows a timeout and not the refused connection behind it
		})
		defer c.Close()
		client = c
	}
	listener, err := net.Listen("tcp", addr)
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
	if auditFile != "" {
		trail, closeTrail, openErr := openTrail(auditFile)
		if openErr != nil {
			return errors.Join(openErr, listener.Close())
		}
		defer func() { err = errors.Join(err, closeTrail()) }()
		defer ratelimit.DefaultRegistry.Observe(trail.Observe)()
		auditor = trail
	}

	mux := http.NewServeMux()
	if err := addShop(mux, client, metrics, auditor); err != nil {
		return errors.Join(err, listener.Close())
	}
	// The next two are for operators. In production, serve them on an address that only
	// you can reach: /offenders has the addresses of clients.
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.Handle("GET /offenders", &top)

	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	url := "http://" + listener.Addr().String()
	fmt.Fprintf(out, usage, url)
	if visitors {
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
  curl -i -X POST %[1]s/login -d password=guess      # repeat it
  curl -i %[1]s/search                               # repeat it, or send: -H 'X-API-Key: pro-1'

`
