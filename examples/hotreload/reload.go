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

// app serves by the configuration that was last read without an error.
type app struct {
	config string
	text   string                       // as it was last read, right or wrong
	routes atomic.Pointer[http.Handler] // by the one that was right
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*a.routes.Load()).ServeHTTP(w, r) }

// reload reads the configuration, and builds limiters and handlers anew. On an error
// nothing has changed: requests go on to the old handlers, whose limiters still are
// what the registry has. Otherwise a limiter has the counters of the one before it
// of the same name.
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

// follow reloads for each change, and logs what came of it.
func (a *app) follow(changes <-chan change) {
	for c := range changes {
		if text, err := os.ReadFile(a.config); err == nil && string(text) == a.text && !c.forced {
			continue // another file of the directory, or a second event of one change
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

// quiet is how long a file must not change before it is read: editors write in steps.
const quiet = 100 * time.Millisecond

// watch tells of SIGHUP and of changes to a file, until ctx is done. What is watched is
// the file's directory: editors and deployments put a new file in the place of the old.
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
