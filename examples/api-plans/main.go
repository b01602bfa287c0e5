// Command api-plans is an HTTP API that is sold in plans. Each customer has a rate, a burst
// and a daily quota. Some requests cost more than others. All callers can see what they have
// left.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` to listen on")
	flag.Parse()
	if err := run(*addr); err != nil {
		log.Fatal(err)
	}
}

func run(addr string) error {
	a, err := newAPI(ratelimit.DefaultRegistry, ratelimit.Memory("api"))
	if err != nil {
		return err
	}
	a.add("free-key", "ada", free)
	a.add("pro-key", "grace", pro)

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	server := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	fmt.Printf(usage, "http://"+listener.Addr().String())

	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		stop() // a second Ctrl-C does not wait for the requests in flight
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(server.Shutdown(ctx), a.limiter.Close())
}

const usage = `
GET  /search?q=…   1 unit, and 1 more for every 5 results
POST /reports      10 units, for customers
GET  /me/limits    free: what you have left
POST /me/upgrade   free: from plan free to plan pro

  curl -i '%[1]s/search?q=http'
  curl -i -H 'X-API-Key: free-key' '%[1]s/search?q=http'
  curl -i -H 'X-API-Key: free-key' -X POST %[1]s/reports
  curl -s -H 'X-API-Key: free-key' %[1]s/me/limits
  curl -s -H 'X-API-Key: free-key' -X POST %[1]s/me/upgrade
  curl -i -H 'X-API-Key: pro-key' '%[1]s/search?q='
  curl -i -H 'X-API-Key: invented' '%[1]s/search?q=http'

Or open %[1]s/me/limits in a browser, which has no key and counts by address.

`
