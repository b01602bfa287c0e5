// Package memorystore has a Store that is a Limiter with FixedWindow limits. It keeps
// which limit a key has, as a service knows the plans of its customers.
package memorystore

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/sethvargo/go-limiter"
)

type Config struct {
	Tokens                     uint64
	Interval                   time.Duration
	SweepInterval, SweepMinTTL time.Duration // here, nothing is swept
}

type store struct {
	limiter  *ratelimit.Limiter
	standard plan
	plans    sync.Map // key to plan, of keys that have been used or set
}

type plan struct {
	tokens, extra uint64
	interval      time.Duration
}

func (p plan) limit() ratelimit.Limit {
	return ratelimit.FixedWindow(int64(p.tokens+p.extra), p.interval)
}

var stores int64

func New(c *Config) (limiter.Store, error) {
	s := &store{standard: plan{tokens: c.Tokens, interval: c.Interval}}
	var err error
	s.limiter, err = ratelimit.New(fmt.Sprint("store-", atomic.AddInt64(&stores, 1)), ratelimit.Options{
		Limits: []ratelimit.Limit{s.standard.limit()},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	return s, err
}

func (s *store) Take(ctx context.Context, key string) (tokens, remaining, reset uint64, ok bool, err error) {
	value, _ := s.plans.LoadOrStore(key, s.standard)
	p := value.(plan)
	d, err := s.limiter.TakeLimits(ctx, key, 1, p.limit())
	return p.tokens, uint64(d.Remaining), uint64(time.Now().Add(d.ResetAfter).UnixNano()), d.Allowed, err
}

func (s *store) Get(ctx context.Context, key string) (tokens, remaining uint64, err error) {
	value, ok := s.plans.Load(key)
	if !ok {
		return 0, 0, nil
	}
	p := value.(plan)
	d, err := s.limiter.TakeLimits(ctx, key, 0, p.limit())
	return p.tokens, uint64(d.Remaining), err
}

func (s *store) Set(ctx context.Context, key string, tokens uint64, interval time.Duration) error {
	s.plans.Store(key, plan{tokens: tokens, interval: interval})
	return s.limiter.Reset(ctx, key)
}

// Burst raises the limit of a key.
func (s *store) Burst(ctx context.Context, key string, tokens uint64) error {
	value, _ := s.plans.LoadOrStore(key, s.standard)
	p := value.(plan)
	p.extra += tokens
	s.plans.Store(key, p)
	return nil
}

func (s *store) Close(context.Context) error { return s.limiter.Close() }
