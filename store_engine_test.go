package ratelimit_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestStoreErrorsAreReturned(t *testing.T) {
	var reg Registry
	defer reg.Close()
	l := Must(reg.New("x", with(&failing{fakeStore{prefix: "f:"}})))
	d, err := l.Take(ctx, "key")
	require.ErrorIs(t, err, errBackend)
	require.ErrorContains(t, err, `ratelimit: limiter "x": `)
	require.Zero(t, d, "no decision was made")
	require.ErrorIs(t, l.Refund(ctx, "key", 1), errBackend)
	require.ErrorIs(t, l.Reset(ctx, "key"), errBackend)
}

// TestWrappedStoreCounts uses a store of a type that the package does not know.
func TestWrappedStoreCounts(t *testing.T) {
	var reg Registry
	defer reg.Close()
	l := Must(reg.New("x", with(&wrapped{memory(t, "inner")})))
	for want := int64(4); want >= 0; want-- {
		d, err := l.Take(ctx, "key")
		require.NoError(t, err)
		require.Equal(t, want, d.Remaining)
	}
	require.NoError(t, l.Refund(ctx, "key", 2))
	d, _ := l.TakeN(ctx, "key", 0)
	require.EqualValues(t, 2, d.Remaining)
	require.NoError(t, l.Reset(ctx, "key"))
	d, _ = l.TakeN(ctx, "key", 0)
	require.EqualValues(t, 5, d.Remaining)
}

// TestForeignRemoteStoreHasAFallback uses a remote store of a type that the
// package does not know, in wrappers.
func TestForeignRemoteStoreHasAFallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		l := processOf(t, &wrapped{&wrapped{backend}}, Options{Limits: []Limit{hour}})
		decide(t, l, "key", 3)
		startOutage(t, backend, l, silent)
		require.True(t, decide(t, l, "key", 2).Allowed)
		require.False(t, decide(t, l, "key", 1).Allowed)
		endOutage(t, backend, l)
		require.Zero(t, backend.remaining(t, "key", hour))
	})
}

// writesAfterTimeout is a store that times out, and writes its results when nobody waits for them
// any longer.
type writesAfterTimeout struct {
	fakeStore
	mu      sync.Mutex
	results [][]Result
}

func (s *writesAfterTimeout) Take(_ context.Context, key string, _ int64, _ []Limit, results []Result) (Instant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key == "times out" {
		s.results = append(s.results, results)
		return 0, errors.New("timeout")
	}
	for _, r := range s.results {
		clear(r) // an admission
	}
	results[0] = Result{RetryAfter: time.Second}
	for _, r := range s.results {
		clear(r)
	}
	return 0, nil
}

func TestResultsWrittenTooLateAreIgnored(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{hour}, Store: &writesAfterTimeout{fakeStore: fakeStore{prefix: "late:"}}})
	for range 1000 {
		_, err := l.Take(ctx, "times out")
		require.Error(t, err)
		d, err := l.Take(ctx, "denied")
		require.NoError(t, err)
		require.False(t, d.Allowed)
	}
}

// TestStoreThatEmbedsARedisStoreIsCalled uses a wrapper that embeds a
// RedisStore and has no Unwrap. The limiter calls the wrapper, and the store
// writes the record of its owner.
func TestStoreThatEmbedsARedisStoreIsCalled(t *testing.T) {
	m := newMini(t)
	s := &embeds{RedisStore: redisStore(t, m.client(t), "rl:"), prefix: "own"}
	l, err := new(Registry).New("login", Options{Limits: []Limit{hour}, Store: s, Timeout: time.Minute, Logger: quietly})
	require.NoError(t, err)
	decide(t, l, "k", 1)
	require.Equal(t, 1, s.takes)
	require.NoError(t, l.Close())
	require.NoError(t, s.Close(), "which waits for the record")
	record, err := m.Get("rl:owner")
	require.NoError(t, err)
	require.Contains(t, record, `"limiter":"login"`)
}

// TestWrappedMemoryStoreIsValidated looks through every layer, when a limiter
// is made and when its limits change.
func TestWrappedMemoryStoreIsValidated(t *testing.T) {
	small, err := NewMemoryStore(t.Name(), MemoryOptions{MaxKeys: 1})
	require.NoError(t, err)
	two := []Limit{hour, FixedWindow(1, time.Minute)}
	for name, store := range map[string]Store{
		"itself": small, "wrapped": &renamed{small, "own"}, "twice": &wrapper{&renamed{small, "own"}},
	} {
		_, err := new(Registry).New("login", Options{Limits: two, Store: store, Logger: quietly})
		require.ErrorContains(t, err, "raise MemoryOptions.MaxKeys", name)
		l, err := new(Registry).New("login", Options{Limits: two[:1], Store: store, Logger: quietly})
		require.NoError(t, err)
		require.ErrorContains(t, l.SetLimits(two...), "raise MemoryOptions.MaxKeys", name)
		require.NoError(t, l.Close())
	}
	_, err = new(Registry).New("login", Options{Limits: two, Store: &wrapper{(*MemoryStore)(nil)}, Logger: quietly})
	require.ErrorContains(t, err, "Options.Store wraps a nil *ratelimit.MemoryStore")
	require.NoError(t, small.Close())
	_, err = new(Registry).New("login", Options{Limits: two[:1], Store: &renamed{small, "own"}, Logger: quietly})
	require.ErrorContains(t, err, "which has been closed")
}
