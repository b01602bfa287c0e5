// Sqlite is a server whose login limit is counted in a SQLite file: for a service in
// several processes on one host, without another server beside it.
//
//	go run . -addr 127.0.0.1:8081 -file limits.db
//	go run . -addr 127.0.0.1:8082 -file limits.db
//
// Both processes count together. The limit is 5 login attempts per hour and client:
//
//	curl -i -X POST http://127.0.0.1:8081/login   # 4 attempts are left
//	curl -i -X POST http://127.0.0.1:8082/login   # 3 attempts are left
//
// The counters are still there after a restart, and after kill -9.
//
// The file backend.go has all that a store on another SQL database needs, too: a read, and a
// transaction that locks what it changes. The file must be on a local disk, because SQLite
// needs the locks of its file system. If the file is locked or the disk is full, the limiter
// goes on in each process with what it last knew; see [ratelimit.FallbackLocal].
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
	file := flag.String("file", "limits.db", "`file` with the counters, the same for all processes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, *file, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// timeout is how long a decision may take at SQLite. After that, this process decides by
// itself.
var timeout = ratelimit.DefaultTimeout

// run serves until ctx is done. Then it waits for the requests in flight.
func run(ctx context.Context, addr, file string, out io.Writer) error {
	backend, err := openBackend(ctx, file)
	if err != nil {
		return err
	}
	defer backend.Close() // after the limiter, which still uses it
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
	fmt.Fprintf(out, "serving on http://%s, counting in %s\n", listener.Addr(), file)
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
