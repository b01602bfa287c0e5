package ratelimit_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// plainWrapper hides everything but the methods of Store.
type plainWrapper struct{ Store }

func (w plainWrapper) Unwrap() Store { return w.Store }

// embedder has the methods of KindStore from the store that it embeds, and a Take of its
// own that loses the ladders.
type embedder struct{ *MemoryStore }

func (e embedder) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	return e.MemoryStore.Take(ctx, key, n, half(limits), results)
}

// embedsEmbedder embeds a wrapper that embeds.
type embedsEmbedder struct{ embedder }

// redisEmbedder embeds a RedisStore.
type redisEmbedder struct{ *RedisStore }

// noKinds implements KindStore, and counts no blocks.
type noKinds struct{ *kindWrapper }

func (noKinds) Kinds() Kinds { return 0 }

// kindWrapper implements KindStore in full, and counts its calls.
type kindWrapper struct {
	inner   *MemoryStore
	pending int
}

func (w *kindWrapper) Prefix() string { return w.inner.Prefix() }
func (w *kindWrapper) Unwrap() Store  { return w.inner }
func (w *kindWrapper) Kinds() Kinds   { return w.inner.Kinds() }

func (w *kindWrapper) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	return w.inner.Take(ctx, key, n, limits, results)
}

func (w *kindWrapper) TakePending(ctx context.Context, key string, n int64, pending []Pending, limits []Limit, results []Result) (Instant, error) {
	w.pending++
	return w.inner.TakePending(ctx, key, n, pending, limits, results)
}

func (w *kindWrapper) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	return w.inner.Adjust(ctx, key, n, at, limits)
}

func (w *kindWrapper) Reset(ctx context.Context, key string, limits []Limit) error {
	return w.inner.Reset(ctx, key, limits)
}

func (w *kindWrapper) Block(ctx context.Context, key string, b Block, limits []Limit) error {
	return w.inner.Block(ctx, key, b, limits)
}

// TestStoresWithoutBlocksAreRefused: New, SetLimits, LimitsFor, TakeLimits and Block refuse
// a store that cannot count blocks, or might lose them, and name the limit and the store.
func TestStoresWithoutBlocksAreRefused(t *testing.T) {
	redisStore := redisStore(t, unreachableClient(t), "p:")
	blocking := hour.Block(time.Minute)
	for name, tc := range map[string]struct {
		store func(*MemoryStore) Store
		want  string
	}{
		"wraps a RedisStore":    {func(*MemoryStore) Store { return &plainWrapper{redisStore} }, `plainWrapper (prefix "p:") does not count blocks`},
		"embeds a RedisStore":   {func(*MemoryStore) Store { return &redisEmbedder{redisStore} }, "redisEmbedder (prefix \"p:\") embeds a store of this package"},
		"foreign":               {func(m *MemoryStore) Store { return &plainWrapper{m} }, "plainWrapper (prefix"},
		"embeds":                {func(m *MemoryStore) Store { return &embedder{m} }, "embeds a store of this package, so its own methods may hand on other limits"},
		"embeds what embeds":    {func(m *MemoryStore) Store { return &embedsEmbedder{embedder{m}} }, "embedsEmbedder"},
		"counts other kinds":    {func(m *MemoryStore) Store { return &noKinds{&kindWrapper{inner: m}} }, "noKinds"},
		"wraps an own embedder": {func(m *MemoryStore) Store { return &plainWrapper{&embedder{m}} }, "does not count blocks"},
	} {
		t.Run(name, func(t *testing.T) {
			o := quiet(blocking)
			o.Store = tc.store(memory(t, name))
			_, err := new(Registry).New("login", o)
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, err, `ratelimit: limiter "login": `)
			require.ErrorContains(t, err, "5/1h fixed block=1m")

			o.Limits = []Limit{hour}
			l, err := new(Registry).New("login", o)
			require.NoError(t, err)
			defer l.Close()
			err = l.SetLimits(hour, FixedWindow(7, time.Second).Block(time.Hour))
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, err, "limit 7/1s fixed block=1h")
			_, err = l.TakeLimits(ctx, "k", 1, blocking)
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, l.Block(ctx, "k", time.Hour), tc.want)
		})
	}
}

// TestKindStoreOfAnotherMake: a wrapper that implements KindStore is called through its
// own methods, and blocks as a MemoryStore does.
func TestKindStoreOfAnotherMake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wrapper := &kindWrapper{inner: memory(t, "inner")}
		var seen observed
		o := quiet(FixedWindow(2, time.Second).Block(time.Minute, time.Hour))
		o.Store, o.Observe = wrapper, seen.add
		l := httpLimiter(t, o)
		took(t, l, "k", 2)
		blockedFor(t, l, "k", time.Minute)
		blockedFor(t, l, "k", time.Minute)
		time.Sleep(time.Minute)
		took(t, l, "k", 2)
		blockedFor(t, l, "k", time.Hour)
		require.NoError(t, l.Block(ctx, "k", 2*time.Hour))
		blockedFor(t, l, "k", 2*time.Hour)
		require.NoError(t, l.Reset(ctx, "k"))
		took(t, l, "k", 1)
		blocks := 0
		for _, e := range seen.events {
			if e.Kind == EventBlocked {
				blocks++
			}
		}
		require.Equal(t, 3, blocks)
		_, _, err := l.TakeUpTo(ctx, "k", 5)
		require.ErrorContains(t, err, "TakeUpTo: a limit has Block, and kindWrapper is asked for fewer units until they fit")
	})
}
