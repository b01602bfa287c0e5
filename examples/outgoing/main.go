// Command outgoing calls an API as fast as the API allows, and no faster. It starts the API
// itself, unless -url names another one.
//
// The limit must not have a larger burst than the API allows at once: after a pause, the
// whole burst is sent together. A request that is answered with Retry-After is sent up to
// three times, and a denial without Retry-After is not repeated.
//
//	go run ./examples/outgoing
//	go run ./examples/outgoing -url https://api.example.com/ -limit '5/1s bucket burst=1' -n 20
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

func main() {
	url := flag.String("url", "", "what to call; empty starts a server that allows 10 requests per second")
	text := flag.String("limit", "10/1s bucket burst=1", "what the API allows")
	n := flag.Int("n", 30, "how many requests to send, all at once")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	limit, err := ratelimit.ParseLimit(*text)
	if err != nil {
		log.Fatal(err)
	}
	if *url == "" {
		server := httptest.NewServer(api())
		defer server.Close()
		*url = server.URL
	}
	outgoing := ratelimit.Must(ratelimit.New("outgoing", ratelimit.Options{Limits: []ratelimit.Limit{limit}}))
	client := &http.Client{Transport: &transport{outgoing, http.DefaultTransport}}
	start := time.Now()
	var group sync.WaitGroup
	for i := range *n {
		group.Go(func() { call(ctx, client, *url, i+1, start) })
	}
	group.Wait()
	stats := outgoing.Stats()
	fmt.Printf("%d requests waited for %v on average\n", stats.Waited, (stats.WaitTime / time.Duration(max(1, stats.Waited))).Round(time.Millisecond))
}

// call sends one request and prints what comes back.
func call(ctx context.Context, client *http.Client, url string, number int, start time.Time) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		log.Fatal(err)
	}
	status := ""
	response, err := client.Do(r)
	if err != nil {
		status = err.Error()
	} else {
		response.Body.Close()
		status = response.Status
	}
	fmt.Printf("%5d ms  request %d: %s\n", time.Since(start).Milliseconds(), number, status)
}

// api is an API that allows 10 requests per second, and denies the others.
func api() http.Handler {
	l := ratelimit.Must(ratelimit.New("api", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.TokenBucket(10, time.Second, 2)},
		Logger: slog.New(slog.DiscardHandler),
	}))
	return l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }))
}
