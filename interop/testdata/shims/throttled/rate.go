// Package throttled has a GCRARateLimiterCtx that is a Limiter with a TokenBucket, in place
// of rate.go. Its store is storekit's, on the GCRAStoreCtx that it is given: so the tests
// set the clock, and make writes fail. The rest of the package is the library's own.
package throttled

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/storekit"
)

type RateLimiterCtx interface {
	RateLimitCtx(ctx context.Context, key string, quantity int) (bool, RateLimitResult, error)
}

type RateLimitResult struct {
	Limit, Remaining       int
	ResetAfter, RetryAfter time.Duration
}

type Rate struct {
	period time.Duration
	count  int
}

type RateQuota struct {
	MaxRate  Rate
	MaxBurst int
}

func PerSec(n int) Rate                       { return PerDuration(n, time.Second) }
func PerMin(n int) Rate                       { return PerDuration(n, time.Minute) }
func PerHour(n int) Rate                      { return PerDuration(n, time.Hour) }
func PerDuration(n int, d time.Duration) Rate { return Rate{d / time.Duration(n), n} }

type GCRARateLimiterCtx struct {
	limiter *ratelimit.Limiter
	backend *backend
}

var limiters int64

// NewGCRARateLimiterCtx makes a limiter that asks the store about each call, and returns
// its errors.
func NewGCRARateLimiterCtx(st GCRAStoreCtx, quota RateQuota) (*GCRARateLimiterCtx, error) {
	name := fmt.Sprint("gcra-", atomic.AddInt64(&limiters, 1))
	b := &backend{store: st, attempts: 10}
	l, err := ratelimit.New(name, ratelimit.Options{
		Limits:      []ratelimit.Limit{ratelimit.TokenBucket(1, quota.MaxRate.period, int64(quota.MaxBurst)+1)},
		Store:       storekit.New(name, b),
		Timeout:     time.Minute,
		DenyRecheck: 1,
		OnFailure:   ratelimit.FailClosed,
		Logger:      slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	return &GCRARateLimiterCtx{l, b}, err
}

func (g *GCRARateLimiterCtx) SetMaxCASAttemptsLimit(n int) { g.backend.attempts = n }

// RateLimitCtx is TakeN. A look at a key that is used up has the time until one unit fits.
func (g *GCRARateLimiterCtx) RateLimitCtx(ctx context.Context, key string, quantity int) (bool, RateLimitResult, error) {
	d, err := g.limiter.TakeN(ctx, key, int64(quantity))
	r := RateLimitResult{Limit: int(d.Limit.Burst()), Remaining: int(d.Remaining), ResetAfter: d.ResetAfter, RetryAfter: -1}
	switch {
	case quantity == 0 && d.Remaining == 0:
		r.RetryAfter = d.MoreAfter
	case !d.Allowed && d.RetryAfter != ratelimit.Never:
		r.RetryAfter = d.RetryAfter
	}
	return !d.Allowed, r, err
}

// A backend keeps records where a GCRAStoreCtx keeps one number for each key: the number
// is the record's index.
type backend struct {
	store    GCRAStoreCtx
	attempts int

	mu      sync.Mutex
	records [][]byte
}

func (b *backend) Update(ctx context.Context, key string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := 0; i < b.attempts; i++ {
		index, now, err := b.store.GetWithTime(ctx, key)
		if err != nil {
			return err
		}
		var old []byte
		if index >= 0 {
			old = b.records[index]
		}
		record, ttl := f(old, now)
		if bytes.Equal(old, record) {
			return nil
		}
		next, written := int64(len(b.records)), false
		b.records = append(b.records, record)
		if index < 0 {
			written, err = b.store.SetIfNotExistsWithTTL(ctx, key, next, ttl)
		} else {
			written, err = b.store.CompareAndSwapWithTTL(ctx, key, index, next, ttl)
		}
		if written || err != nil {
			return err
		}
	}
	return fmt.Errorf("nothing was written for key %s in %d attempts", key, b.attempts)
}

func (b *backend) Delete(context.Context, string) error { panic("no test resets a key") }
