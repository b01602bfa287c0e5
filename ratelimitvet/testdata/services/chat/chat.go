// Package chat limits messages by user, and connections by address.
package chat

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

type user struct{}

var limits = sync.OnceValue(func() (l struct{ messages, connections *ratelimit.Limiter }) {
	l.messages = ratelimit.Must(ratelimit.New("messages", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.TokenBucket(5, time.Second, 10)},
		Key:    byUser,
	}))
	l.connections = ratelimit.Must(ratelimit.New("connections", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.InFlight(3, 30*time.Second)},
	}))
	return l
})

func byUser(r *http.Request) (string, error) {
	name, ok := r.Context().Value(user{}).(string)
	if !ok {
		return "", ratelimit.ErrNoKey
	}
	return name, nil
}

// Handler serves connections.
func Handler(next http.Handler) http.Handler { return limits().connections.Middleware(next) }

var errTooFast = errors.New("too many messages")

// Receive is called for each message.
func Receive(ctx context.Context, from string) error {
	d, err := limits().messages.Take(ctx, from)
	switch {
	case err != nil:
		return err
	case !d.Allowed:
		return fmt.Errorf("%w, try again in %v", errTooFast, d.RetryAfter)
	}
	return nil
}
