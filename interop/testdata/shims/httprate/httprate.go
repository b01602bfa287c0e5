// Package httprate has the names of github.com/go-chi/httprate that its tests use, on
// this library: a RateLimiter is a Limiter with a SlidingWindow. Requests pass its
// Middleware or Check, which take the units and write the header fields and the answers.
package httprate

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

type (
	KeyFunc = ratelimit.KeyFunc
	Option  func(*settings)
)

// JoinKeys is ratelimit.JoinKeys: a part that is empty is an error.
func JoinKeys(fns ...KeyFunc) KeyFunc { return ratelimit.JoinKeys(fns...) }

// KeyByEndpoint returns the path. There is no ServeMux in the tests, so PatternKey
// would find no pattern.
func KeyByEndpoint(r *http.Request) (string, error) { return r.URL.Path, nil }

// KeyByIP and KeyByRealIP are the default key: ClientIP, which trusts no field.
func KeyByIP(r *http.Request) (string, error)     { return ratelimit.ClientIP{}.Key(r) }
func KeyByRealIP(r *http.Request) (string, error) { return ratelimit.ClientIP{}.Key(r) }

// CanonicalizeIP returns what ClientIP makes of an address, without the length of the
// prefix. What is no address has no key.
func CanonicalizeIP(ip string) string {
	key, _ := ratelimit.ClientIP{}.Key(&http.Request{RemoteAddr: ip})
	key, _, _ = strings.Cut(key, "/")
	return key
}

// ResponseHeaders are the names of header fields. This library has two of the sets.
type ResponseHeaders struct {
	Limit, Remaining, Increment, Reset, RetryAfter string
}

func (h ResponseHeaders) style() ratelimit.Headers {
	switch h.Limit {
	case "X-RateLimit-Limit":
		return ratelimit.HeadersLegacy
	case "RateLimit-Limit":
		return ratelimit.HeadersDraft6
	}
	return ratelimit.HeadersNone
}

type settings struct {
	denied  http.HandlerFunc
	headers ResponseHeaders
}

func WithLimitHandler(h http.HandlerFunc) Option { return func(s *settings) { s.denied = h } }

func WithResponseHeaders(h ResponseHeaders) Option { return func(s *settings) { s.headers = h } }

type contextKey int

const (
	incrementKey contextKey = iota
	limitKey
	clientKey
)

func WithIncrement(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, incrementKey, n)
}

func WithRequestLimit(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, limitKey, n)
}

type RateLimiter struct{ limiter *ratelimit.Limiter }

func Limit(n int, window time.Duration, options ...Option) func(http.Handler) http.Handler {
	return newRateLimiter(n, window, ratelimit.StaticKey("*"), options).limiter.Middleware
}

func LimitAll(n int, window time.Duration) func(http.Handler) http.Handler { return Limit(n, window) }

func LimitBy(n int, window time.Duration, key KeyFunc, options ...Option) func(http.Handler) http.Handler {
	return newRateLimiter(n, window, key, options).limiter.Middleware
}

func LimitByIP(n int, window time.Duration) func(http.Handler) http.Handler {
	return LimitBy(n, window, KeyByIP)
}

// NewRateLimiter makes a limiter for RespondOnLimit.
func NewRateLimiter(n int, window time.Duration, options ...Option) *RateLimiter {
	return newRateLimiter(n, window, func(r *http.Request) (string, error) {
		return r.Context().Value(clientKey).(string), nil
	}, options)
}

func newRateLimiter(n int, window time.Duration, key KeyFunc, options []Option) *RateLimiter {
	s := settings{
		denied: func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, http.StatusText(http.StatusTooManyRequests), http.StatusTooManyRequests)
		},
		headers: ResponseHeaders{Limit: "X-RateLimit-Limit"},
	}
	for _, option := range options {
		option(&s)
	}
	return &RateLimiter{newLimiter(ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.SlidingWindow(int64(n), window)},
		LimitsFor: func(r *http.Request) []ratelimit.Limit {
			if n, ok := r.Context().Value(limitKey).(int); ok {
				return []ratelimit.Limit{ratelimit.SlidingWindow(int64(n), window)}
			}
			return nil
		},
		Cost: func(r *http.Request) int64 {
			if n, ok := r.Context().Value(incrementKey).(int); ok {
				return int64(n)
			}
			return 1
		},
		Key:     key,
		Denied:  s.denied,
		Headers: s.headers.style(),
	})}
}

// RespondOnLimit answers a request of a key if it is denied.
func (l *RateLimiter) RespondOnLimit(w http.ResponseWriter, r *http.Request, key string) bool {
	return !l.limiter.Check(w, r.WithContext(context.WithValue(r.Context(), clientKey, key)))
}

// A localCounter counts without a limit, in windows that the caller names: each
// window of a key is a key of a limiter.
type localCounter struct{ limiter *ratelimit.Limiter }

func NewLocalLimitCounter(window time.Duration) *localCounter {
	return &localCounter{newLimiter(ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.FixedWindow(math.MaxInt32, 2*window)}})}
}

func (c *localCounter) IncrementBy(key string, window time.Time, n int) error {
	_, err := c.limiter.TakeN(context.Background(), keyIn(key, window), int64(n))
	return err
}

func (c *localCounter) Get(key string, current, previous time.Time) (int, int, error) {
	n, err := c.count(keyIn(key, current))
	if err != nil {
		return 0, 0, err
	}
	before, err := c.count(keyIn(key, previous))
	return n, before, err
}

func (c *localCounter) count(key string) (int, error) {
	d, err := c.limiter.TakeN(context.Background(), key, 0)
	return int(d.Limit.N() - d.Remaining), err
}

func keyIn(key string, window time.Time) string { return fmt.Sprint(window.Unix(), " ", key) }

var limiters atomic.Int64

// newLimiter makes a limiter with a name, and so a store, of its own.
func newLimiter(opts ratelimit.Options) *ratelimit.Limiter {
	opts.Logger = slog.New(slog.DiscardHandler)
	return ratelimit.Must(ratelimit.New(fmt.Sprint("httprate-", limiters.Add(1)), opts))
}
