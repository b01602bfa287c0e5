package main

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// limits are what each client may use: requests at the same time, tokens per minute, and
// tokens per month.
var limits = []ratelimit.Limit{
	ratelimit.InFlight(2, 30*time.Second).Named("streams"),
	ratelimit.TokenBucket(1000, time.Minute, 1000).Named("tokens"),
	ratelimit.Monthly(20_000, 1, time.UTC).Named("month"),
}

// An api streams a model's answers to clients.
type api struct {
	limiter *ratelimit.Limiter
	clients map[string]string                                         // their names, by API key
	model   func(ctx context.Context, prompt string) iter.Seq[string] // the tokens of an answer
}

// clientKey counts by client, and not by API key: a client can have several.
func (a *api) clientKey(r *http.Request) (string, error) {
	return a.clients[r.Header.Get("X-API-Key")], nil
}

func (a *api) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /complete", a.limiter.Middleware(http.HandlerFunc(a.complete)))
	mux.HandleFunc("GET /usage", a.usage)
	return a.known(mux)
}

// known refuses requests without a valid API key, before anything is counted.
func (a *api) known(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.clients[r.Header.Get("X-API-Key")] == "" {
			http.Error(w, "X-API-Key is missing or wrong", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// complete streams an answer as server-sent events. The request holds one of the client's
// streams until complete returns, which it also does when the client has left.
func (a *api) complete(w http.ResponseWriter, r *http.Request) {
	sent := int64(0)
	defer func() {
		// The request took one token when it was admitted.
		if err := a.limiter.AddCost(r.Context(), sent-1); err != nil {
			slog.Error("tokens are not charged", "tokens", sent, "error", err)
		}
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	response := http.NewResponseController(w)
	for token := range a.model(r.Context(), r.FormValue("prompt")) {
		sent++
		fmt.Fprintf(w, "data: %s\n\n", token)
		if response.Flush() != nil {
			return // the client has left
		}
	}
}

// usage shows what the client has left. It takes nothing.
func (a *api) usage(w http.ResponseWriter, r *http.Request) {
	standings, err := a.limiter.Look(r)
	if err != nil {
		http.Error(w, "the limits cannot be shown just now", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(standings)
}
