// Package redis_rate has a Limiter that counts in token buckets on Redis.
package redis_rate

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/redis/go-redis/v9"
)

type Limit struct {
	Rate, Burst int
	Period      time.Duration
}

func PerSecond(rate int) Limit { return Limit{rate, rate, time.Second} }

func (l Limit) IsZero() bool { return l == Limit{} }

func (l Limit) String() string {
	return fmt.Sprintf("%d req/%s (burst %d)", l.Rate, strings.TrimPrefix(l.Period.String(), "1"), l.Burst)
}

func (l Limit) bucket() ratelimit.Limit {
	return ratelimit.TokenBucket(int64(l.Rate), l.Period, int64(l.Burst))
}

type Limiter struct{ limiter *ratelimit.Limiter }

// NewLimiter makes a limiter that waits for Redis and returns its errors: this process
// decides nothing by itself if Redis fails.
func NewLimiter(client redis.UniversalClient) *Limiter {
	return &Limiter{ratelimit.Must(new(ratelimit.Registry).New("rate", ratelimit.Options{
		Limits:    []ratelimit.Limit{PerSecond(10).bucket()}, // callers name the limit
		Redis:     client,
		Timeout:   time.Minute,
		OnFailure: ratelimit.FailClosed,
		Logger:    slog.New(slog.NewTextHandler(io.Discard, nil)),
	}))}
}

type Result struct {
	Limit                  Limit
	Allowed, Remaining     int
	RetryAfter, ResetAfter time.Duration
}

func result(limit Limit, granted int64, d ratelimit.Decision, err error) (*Result, error) {
	r := &Result{limit, int(granted), int(d.Remaining), d.RetryAfter, d.ResetAfter}
	if d.Allowed {
		r.RetryAfter = -1
	}
	return r, err
}

func (l *Limiter) Allow(ctx context.Context, key string, limit Limit) (*Result, error) {
	return l.AllowN(ctx, key, limit, 1)
}

func (l *Limiter) AllowN(ctx context.Context, key string, limit Limit, n int) (*Result, error) {
	d, err := l.limiter.TakeLimits(ctx, key, int64(n), limit.bucket())
	if !d.Allowed {
		n = 0
	}
	return result(limit, int64(n), d, err)
}

// AllowAtMost is TakeUpTo, which takes the limiter's own limits.
func (l *Limiter) AllowAtMost(ctx context.Context, key string, limit Limit, n int) (*Result, error) {
	if n == 0 {
		return l.AllowN(ctx, key, limit, 0)
	}
	if err := l.limiter.SetLimits(limit.bucket()); err != nil {
		return nil, err
	}
	granted, d, err := l.limiter.TakeUpTo(ctx, key, int64(n))
	return result(limit, granted, d, err)
}

func (l *Limiter) Reset(ctx context.Context, key string) error { return l.limiter.Reset(ctx, key) }
