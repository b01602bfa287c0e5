// Package memory counts in memory.
package memory

import (
	"context"
	"time"

	"github.com/ulule/limiter/v3"
	"github.com/ulule/limiter/v3/drivers/ours"
)

func NewStore() limiter.Store { return ours.NewMemory() }

func NewStoreWithOptions(limiter.StoreOptions) limiter.Store { return NewStore() }

// A Cache counts without a limit.
type Cache struct{ store *ours.Store }

func NewCache(time.Duration) Cache { return Cache{ours.NewMemory()} }

const many = 999999999999999 // the most that a limit can have

func (c Cache) Increment(key string, n int64, period time.Duration) (int64, time.Time) {
	remaining, resetAfter, _, err := c.store.Take(context.Background(), key, n, limiter.Rate{Limit: many, Period: period})
	if err != nil {
		panic(err)
	}
	return many - remaining, time.Now().Add(resetAfter)
}

func (c Cache) Get(key string, period time.Duration) (int64, time.Time) {
	return c.Increment(key, 0, period)
}

func (c Cache) Reset(key string, period time.Duration) (int64, time.Time) {
	if _, err := c.store.Reset(context.Background(), key, limiter.Rate{Limit: many, Period: period}); err != nil {
		panic(err)
	}
	return c.Get(key, period)
}
