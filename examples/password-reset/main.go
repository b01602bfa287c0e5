// Command password-reset serves a page on which people ask for a code by e-mail. Each
// client address gets three codes an hour, and so does each mailbox. A refresh of the page
// or a restart of the program for any reason does not give anybody a fourth code.
//
//	go run ./examples/password-reset
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
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
	limit := flag.String("limit", "3/1h fixed", "how many codes there are")
	dir := flag.String("dir", ".", "`directory` to keep the counters in")
	flag.Parse()
	if err := run(*addr, *limit, *dir, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(addr, limit, dir string, out io.Writer) (err error) {
	codes, err := ratelimit.ParseLimit(limit)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := newReset(codes, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }() // after the last request

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: r.handler(), ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Fprintf(out, "open http://%s in a browser: %v; the codes are in this log\n", listener.Addr(), codes)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return server.Shutdown(ctx)
}
