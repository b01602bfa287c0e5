// Shared-store shows a mistake that this library refuses: two limiters with one store, so
// that API calls would count as login attempts.
//
//	go run ./examples/shared-store
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(out io.Writer) error {
	var registry ratelimit.Registry
	defer registry.Close()
	logger := slog.New(slog.DiscardHandler)
	apiLimit := []ratelimit.Limit{ratelimit.FixedWindow(100, 15*time.Minute)}
	loginLimit := []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)}

	// Wrong: one store for both. New returns an error for the second limiter.
	shared := ratelimit.Memory("rl")
	api, err := registry.New("api", ratelimit.Options{Limits: apiLimit, Store: shared, Logger: logger})
	if err != nil {
		return err
	}
	//ratelimitvet:ignore this is the mistake that the example shows
	_, err = registry.New("login", ratelimit.Options{Limits: loginLimit, Store: shared, Logger: logger})
	if !errors.Is(err, ratelimit.ErrStoreShared) {
		return fmt.Errorf("one store was given to two limiters: %v", err)
	}
	fmt.Fprintf(out, "one store for two limiters is refused:\n\n  %v\n\n", err)

	// Right: each limiter has its own store, which is the default if Store is not set.
	login, err := registry.New("login", ratelimit.Options{Limits: loginLimit, Logger: logger})
	if err != nil {
		return err
	}
	const client = "203.0.113.7"
	for range 50 {
		if _, err := api.Take(context.Background(), client); err != nil {
			return err
		}
	}
	decision, err := login.Take(context.Background(), client)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "with a store each, 50 API calls later a login is allowed: %v, %d left\n", decision.Allowed, decision.Remaining)
	return nil
}
