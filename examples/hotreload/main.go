// Command hotreload is a server whose limits are in a file. If you edit the file or send
// SIGHUP, the limits change without a restart, and no counter is lost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` to serve on")
	admin := flag.String("admin", "127.0.0.1:8081", "`address` of the admin handler, for nobody else to reach")
	config := flag.String("config", "limits.conf", "`file` with the limits")
	flag.Parse()
	if err := run(*addr, *admin, *config, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(addr, admin, config string, out io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{config: config}
	if err := a.reload(); err != nil {
		return fmt.Errorf("%s: %w", config, err)
	}
	changes, err := watch(ctx, config)
	if err != nil {
		return err
	}
	go a.follow(changes)

	servers := []*http.Server{{Handler: a}, {Handler: adminRoutes()}}
	failed := make(chan error, len(servers))
	var urls []any
	for i, addr := range []string{addr, admin} {
		listener, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		urls = append(urls, "http://"+listener.Addr().String())
		servers[i].ReadHeaderTimeout = 5 * time.Second
		go func() { failed <- servers[i].Serve(listener) }()
	}
	fmt.Fprintf(out, usage, append(urls, config, os.Getpid())...)

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return errors.Join(servers[0].Shutdown(ctx), servers[1].Shutdown(ctx), ratelimit.DefaultRegistry.Close())
}

const usage = `serving on %[1]s, admin on %[2]s; the limits are in %[3]s

  curl -i %[1]s/login                                 # repeat it
  edit %[3]s, or kill -HUP %[4]d
  curl -X PUT -d '9/1h fixed' %[2]s/limits/login      # until the next reload

`

// adminRoutes changes the limits of one limiter at once, without the file: PUT
// /limits/{name} with the limits, separated by commas. The counts stay.
func adminRoutes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /limits/{name}", func(w http.ResponseWriter, r *http.Request) {
		limiter, ok := ratelimit.DefaultRegistry.Lookup(r.PathValue("name"))
		if !ok {
			http.Error(w, "there is no such limiter", http.StatusNotFound)
			return
		}
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<10))
		var limits []ratelimit.Limit
		if err == nil {
			limits, err = parseLimits(string(text))
		}
		if err == nil {
			err = limiter.SetLimits(limits...)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		slog.Info("limits set", "limiter", limiter.Name(), "limits", fmt.Sprint(limits))
		fmt.Fprintln(w, limits)
	})
	return mux
}
