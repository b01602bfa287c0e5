// Nats is a server whose login limit is counted in a NATS JetStream key-value bucket: for
// services that run NATS already. Start NATS 2.11 or later with JetStream, and the program
// twice:
//
//	nats-server -js -sd /var/lib/nats
//	go run . -addr 127.0.0.1:8081 -nats nats://127.0.0.1:4222
//	go run . -addr 127.0.0.1:8082 -nats nats://127.0.0.1:4222
//
// Both processes count together. The limit is 5 login attempts per hour and client:
//
//	curl -i -X POST http://127.0.0.1:8081/login   # 4 attempts are left
//	curl -i -X POST http://127.0.0.1:8082/login   # 3 attempts are left
//
// The counters are still there after a restart of the programs, and of the NATS server.
// While the server is down, the limiter goes on in each process with what it last knew; see
// [ratelimit.FallbackLocal]. A server without replicas writes to the disk every two minutes
// unless sync_interval is always, so a power failure can lose what was counted since then.
//
// The file backend.go has all that a store on another backend with revisions needs, such as
// etcd, Consul or DynamoDB.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/storekit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` to serve on")
	url := flag.String("nats", "nats://127.0.0.1:4222", "`URL` of the NATS server")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, *url, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// timeout is how long a decision may take at NATS. After that, this process decides by
// itself.
var timeout = ratelimit.DefaultTimeout

// run serves until ctx is done. Then it waits for the requests in flight.
func run(ctx context.Context, addr, url string, out io.Writer) error {
	nc, err := connect(url)
	if err != nil {
		return err
	}
	defer nc.Close() // after the limiter, which still uses it
	backend, err := newBackend(nc, "ratelimit")
	if err != nil {
		return err
	}
	login, err := ratelimit.New("login", ratelimit.Options{
		Limits:  []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
		Store:   storekit.New("login", backend), // each limiter has a prefix of its own
		Timeout: timeout,
		Message: "Too many login attempts, please try again later.",
	})
	if err != nil {
		return err
	}
	defer login.Close()

	mux := http.NewServeMux()
	mux.Handle("POST /login", login.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "welcome\n")
	})))
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "serving on http://%s, counting at %s\n", listener.Addr(), url)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	shutdown, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return server.Shutdown(shutdown)
}
