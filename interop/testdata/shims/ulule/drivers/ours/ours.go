// Package ours has the limiter of this library that is behind each store. Each package that
// sees go-redis's types takes seconds to compile, and Limiter has them among its own. So
// a Store has methods of a limiter and not the limiter, and what makes it is not inlined.
package ours

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/redis/go-redis/v9"
	"github.com/ulule/limiter/v3"
)

// A Store is a limiter whose callers name the limit each time.
type Store struct {
	// Take takes n units, and returns how many are left, for how long, and whether it is denied.
	Take func(ctx context.Context, key string, n int64, rate limiter.Rate) (remaining int64, resetAfter time.Duration, denied bool, err error)

	reset      func(ctx context.Context, key string) error
	Middleware func(http.Handler) http.Handler                   // for requests that a Request is in
	Check      func(w http.ResponseWriter, r *http.Request) bool // likewise
}

// NewMemory makes a store in memory.
//
//go:noinline
func NewMemory() *Store { return newStore(ratelimit.Options{}) }

// NewRedis makes a store that waits for Redis and returns its errors: this process decides
// nothing by itself if Redis fails.
func NewRedis(client redis.UniversalClient, prefix string) (*Store, error) {
	store, err := ratelimit.NewRedisStore(client, prefix)
	if err != nil {
		return nil, err
	}
	return newStore(ratelimit.Options{Store: store, Timeout: time.Minute, OnFailure: ratelimit.FailClosed}), nil
}

var stores int64

func newStore(opts ratelimit.Options) *Store {
	opts.Limits = []ratelimit.Limit{ratelimit.Deny} // no call is decided by it
	opts.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	opts.Key = func(r *http.Request) (string, error) { return requestFrom(r).Key, nil }
	opts.Skip = func(r *http.Request) bool { return requestFrom(r).Skip }
	opts.LimitsFor = func(r *http.Request) []ratelimit.Limit {
		return []ratelimit.Limit{limitOf(requestFrom(r).Rate)}
	}
	opts.Headers = ratelimit.HeadersLegacy
	l := ratelimit.Must(ratelimit.New(fmt.Sprint("store-", atomic.AddInt64(&stores, 1)), opts))
	return &Store{
		Take: func(ctx context.Context, key string, n int64, rate limiter.Rate) (int64, time.Duration, bool, error) {
			d, err := l.TakeLimits(ctx, key, n, limitOf(rate))
			return d.Remaining, d.ResetAfter, !d.Allowed, err
		},
		reset:      l.Reset,
		Middleware: l.Middleware,
		Check:      l.Check,
	}
}

func limitOf(rate limiter.Rate) ratelimit.Limit {
	return ratelimit.FixedWindow(rate.Limit, rate.Period)
}

func (s *Store) Increment(ctx context.Context, key string, n int64, rate limiter.Rate) (limiter.Context, error) {
	remaining, resetAfter, denied, err := s.Take(ctx, key, n, rate)
	return limiter.Context{Limit: rate.Limit, Remaining: remaining, Reset: time.Now().Add(resetAfter).Unix(), Reached: denied}, err
}

func (s *Store) Get(ctx context.Context, key string, rate limiter.Rate) (limiter.Context, error) {
	return s.Increment(ctx, key, 1, rate)
}

func (s *Store) Peek(ctx context.Context, key string, rate limiter.Rate) (limiter.Context, error) {
	return s.Increment(ctx, key, 0, rate)
}

func (s *Store) Reset(ctx context.Context, key string, rate limiter.Rate) (limiter.Context, error) {
	if err := s.reset(ctx, key); err != nil {
		return limiter.Context{}, err
	}
	return s.Peek(ctx, key, rate)
}

// A Request is what a middleware says about a request.
type Request struct {
	Key  string
	Rate limiter.Rate
	Skip bool
}

type contextKey struct{}

// In returns a copy of r that says so.
func (q Request) In(r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), contextKey{}, q))
}

func requestFrom(r *http.Request) Request { return r.Context().Value(contextKey{}).(Request) }
