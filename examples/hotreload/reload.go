package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/ratelimit-go/ratelimit"
)

// app serves with the configuration that was last read without an error.
type app struct {
	config string
	text   string                       // as it was last read, valid or not
	routes atomic.Pointer[http.Handler] // from the last valid configuration
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*a.routes.Load()).ServeHTTP(w, r) }

// reload reads the configuration, and builds new limiters and handlers. On an error, nothing
// changes: the old handlers serve all requests, and their limiters stay in the registry.
// Otherwise each limiter gets the counters of the previous limiter with the same name.
func (a *app) reload() error {
	text, err := os.ReadFile(a.config)
	if err != nil {
		return err
	}
	a.text = string(text)
	routes, err := parse(a.text)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	err = ratelimit.Reload(func(next *ratelimit.Registry) error {
		for _, r := range routes {
			limiter, err := next.New(r.name, ratelimit.Options{Limits: r.limits})
			if err != nil {
				return &configError{r.line, r.name, err}
			}
			mux.Handle("/"+r.name, limiter.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				io.WriteString(w, "here you are\n")
			})))
		}
		return nil
	})
	if err != nil {
		return err
	}
	var handler http.Handler = mux
	a.routes.Store(&handler)
	return nil
}

// follow reloads for each change, and logs the result.
func (a *app) follow(changes <-chan change) {
	for c := range changes {
		if text, err := os.ReadFile(a.config); err == nil && string(text) == a.text && !c.forced {
			continue // another file of the directory, or another event of the same change
		}
		err := a.reload()
		var where *configError
		switch {
		case errors.As(err, &where):
			slog.Error("the limits stay as they were", "file", a.config, "line", where.line, "field", where.field, "error", where.err)
		case err != nil:
			slog.Error("the limits stay as they were", "file", a.config, "error", err)
		default:
			for name, limiter := range ratelimit.DefaultRegistry.All() {
				slog.Info("reloaded", "limiter", name, "limits", fmt.Sprint(limiter.Limits()))
			}
		}
	}
}

// change is a reason to look at the configuration.
type change struct{ forced bool }

// quiet is the time without a change after which a file is read, because editors write in
// steps.
const quiet = 100 * time.Millisecond

// watch sends SIGHUPs and changes of a file to a channel until ctx is done. It watches the
// file's directory, because editors and deployments replace the file by a new one.
func watch(ctx context.Context, config string) (<-chan change, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := watcher.Add(filepath.Dir(config)); err != nil {
		return nil, errors.Join(err, watcher.Close())
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	changes := make(chan change)
	go func() {
		defer close(changes)
		defer watcher.Close()
		var settled <-chan time.Time
		for {
			var c change
			select {
			case <-ctx.Done():
				return
			case <-watcher.Events:
				settled = time.After(quiet)
				continue
			case err := <-watcher.Errors:
				slog.Error("watching the configuration", "file", config, "error", err)
				continue
			case <-settled:
				settled = nil
			case <-hangup:
				c.forced = true
			}
			select {
			case changes <- c:
			case <-ctx.Done():
				return
			}
		}
	}()
	return changes, nil
}
