package ratelimit_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// sharedBackend is a remote store with TakeShared, and counts its calls.
type sharedBackend struct {
	*remoteBackend
	taken, shared atomic.Int64
	pending       atomic.Int64 // units of the last call
}

func (s *sharedBackend) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	s.taken.Add(1)
	return s.remoteBackend.Take(ctx, key, n, limits, results)
}

func (s *sharedBackend) TakePending(ctx context.Context, key string, n int64, pending []Pending, limits []Limit, results []Result) (Instant, error) {
	s.taken.Add(1)
	return s.remoteBackend.TakePending(ctx, key, n, pending, limits, results)
}

// TakeShared takes as many units as fit by trying fewer and fewer. So that the last one
// alone may start a block, the others have no ladder.
func (s *sharedBackend) TakeShared(ctx context.Context, r SharedRequest, results []Result) (reply SharedReply, err error) {
	s.shared.Add(1)
	units := int64(0)
	for _, p := range r.Pending {
		units += p.Units
	}
	s.pending.Store(units)
	if !r.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, r.Deadline)
		defer cancel()
	}
	reply.Newest = true
	for n := r.Units; ; n-- {
		limits := r.Limits
		if r.UpTo && n > 1 {
			limits = bare(r.Limits)
		}
		if reply.At, err = s.remoteBackend.TakePending(ctx, r.Key, n, r.Pending, limits, results); err != nil {
			return reply, err
		}
		denied := false
		for _, result := range results {
			denied = denied || result.RetryAfter > 0
		}
		if !denied {
			reply.Granted = n
		}
		if !denied || !r.UpTo || n == 1 {
			return reply, nil
		}
	}
}

// bare returns the limits without their ladders.
func bare(limits []Limit) (bare []Limit) {
	for _, l := range limits {
		switch l.Algorithm() {
		case "fixed":
			l = FixedWindow(l.N(), l.Window())
		case "sliding":
			l = SlidingWindow(l.N(), l.Window())
		default:
			l = TokenBucket(l.N(), l.Window(), l.Burst())
		}
		bare = append(bare, l)
	}
	return bare
}

// remoteKindWrapper holds a remote KindStore in a field, and implements both by itself.
type remoteKindWrapper struct {
	inner *remoteBackend
	calls atomic.Int64
}

func (w *remoteKindWrapper) Prefix() string        { return w.inner.Prefix() }
func (w *remoteKindWrapper) Unwrap() Store         { return w.inner }
func (w *remoteKindWrapper) Kinds() Kinds          { return w.inner.Kinds() }
func (w *remoteKindWrapper) Fault(err error) Fault { return w.inner.Fault(err) }
func (w *remoteKindWrapper) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	w.calls.Add(1)
	return w.inner.Take(ctx, key, n, limits, results)
}
func (w *remoteKindWrapper) TakePending(ctx context.Context, key string, n int64, pending []Pending, limits []Limit, results []Result) (Instant, error) {
	w.calls.Add(1)
	return w.inner.TakePending(ctx, key, n, pending, limits, results)
}
func (w *remoteKindWrapper) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	w.calls.Add(1)
	return w.inner.Adjust(ctx, key, n, at, limits)
}
func (w *remoteKindWrapper) Reset(ctx context.Context, key string, limits []Limit) error {
	w.calls.Add(1)
	return w.inner.Reset(ctx, key, limits)
}
func (w *remoteKindWrapper) Block(ctx context.Context, key string, b Block, limits []Limit) error {
	w.calls.Add(1)
	return w.inner.Block(ctx, key, b, limits)
}

// TestTakeSharedIsCalled: in place of Take and TakePending, also for looks, TakeUpTo and with
// pending units.
func TestTakeSharedIsCalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(5, time.Hour).Block(3*time.Hour, day)
		backend := &sharedBackend{remoteBackend: &remoteBackend{Store: memory(t, "backend")}}
		s := newLogins(t, Options{Store: backend, Limits: []Limit{limit}, DenyRecheck: 1})
		s.begin("a", "b", "c", "d", "e")
		require.EqualValues(t, 5, backend.shared.Load())
		s.try(200)
		require.EqualValues(t, 5, backend.pending.Load())
		s.denied(t, time.Hour, false)
		s.end(200, "a", "b", "c", "d", "e")
		for range 5 {
			s.try(401)
		}
		s.denied(t, 3*time.Hour, true)
		require.NoError(t, s.limiter.Reset(ctx, httpKey))
		granted, _, err := s.limiter.TakeUpTo(ctx, httpKey, 9)
		require.NoError(t, err)
		require.EqualValues(t, 5, granted)
		require.Zero(t, backend.taken.Load())
	})
}

// TestWrapperOfARemoteKindStore: a wrapper that holds the store in a field is called through
// its own methods, blocks as the store does, and is watched as a remote store.
func TestWrapperOfARemoteKindStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(2, time.Minute).Block(time.Hour, 2*time.Hour, day)
		w := &remoteKindWrapper{inner: &remoteBackend{Store: memory(t, "backend")}}
		l := processOf(t, w, Options{Limits: []Limit{limit}})
		took(t, l, "key", 2)
		blockedFor(t, l, "key", time.Hour)
		time.Sleep(time.Hour)
		startOutage(t, w.inner, l, refused)
		took(t, l, "key", 2)
		blockedFor(t, l, "key", 2*time.Hour)
		endOutage(t, w.inner, l)
		require.NotZero(t, w.inner.blocked(t, "key", limit))
		time.Sleep(2 * time.Hour)
		took(t, l, "key", 2)
		blockedFor(t, l, "key", day)
		require.Equal(t, w.calls.Load(), w.inner.calls.Load())
	})
}
