package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// remoteBackend is a remote store: a memory store behind a network that can fail.
type remoteBackend struct {
	Store // of the server

	calls    atomic.Int64 // all calls
	unknown  atomic.Int64 // takes of units that the store may have counted, or not
	adjusted atomic.Int64 // calls of Adjust
	blocks   atomic.Int64 // calls of Block
	holds    atomic.Int64 // calls of Hold

	mu   sync.Mutex
	mode mode
	wait time.Duration // the latency of a call
	only string        // the key that the mode is for; empty for all keys
}

// set changes the mode for all keys.
func (s *remoteBackend) set(m mode) { s.setFor("", m) }

// setFor changes the mode for one key. Calls for other keys succeed.
func (s *remoteBackend) setFor(key string, m mode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode, s.only = m, key
}

// delay changes the latency.
func (s *remoteBackend) delay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wait = d
}

// call makes a call in the mode of its key.
func (s *remoteBackend) call(ctx context.Context, key string, carryOut func() error) error {
	s.calls.Add(1)
	s.mu.Lock()
	m, wait := s.mode, s.wait
	if s.only != "" && s.only != key {
		m = up
	}
	s.mu.Unlock()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	switch m {
	case refused:
		return errBackendRefused
	case junk:
		return errForeignValue
	case panics:
		panic("a bug")
	case silent, lost:
		if m == lost {
			carryOut()
		}
		<-ctx.Done()
		return ctx.Err()
	}
	return carryOut()
}

func (s *remoteBackend) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (at Instant, err error) {
	return s.take(ctx, key, n, func(ctx context.Context) (Instant, error) { return s.Store.Take(ctx, key, n, limits, results) })
}

func (s *remoteBackend) TakePending(ctx context.Context, key string, n int64, pending []Pending, limits []Limit, results []Result) (Instant, error) {
	return s.take(ctx, key, n, func(ctx context.Context) (Instant, error) {
		return s.Store.(KindStore).TakePending(ctx, key, n, pending, limits, results)
	})
}

func (s *remoteBackend) take(ctx context.Context, key string, n int64, carryOut func(context.Context) (Instant, error)) (at Instant, err error) {
	err = s.call(ctx, key, func() (err error) {
		at, err = carryOut(context.WithoutCancel(ctx))
		return err
	})
	if errors.Is(err, context.DeadlineExceeded) && n > 0 {
		s.unknown.Add(1)
	}
	return at, err
}

func (s *remoteBackend) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (charged int64, err error) {
	s.adjusted.Add(1)
	err = s.call(ctx, key, func() (err error) {
		s.mu.Lock()
		m := s.mode
		s.mu.Unlock()
		if m == adjustsHang {
			<-ctx.Done()
			return ctx.Err()
		}
		charged, err = s.Store.Adjust(context.WithoutCancel(ctx), key, n, at, limits)
		if m == adjustsLost {
			<-ctx.Done()
			return ctx.Err()
		}
		return err
	})
	return charged, err
}

func (s *remoteBackend) Reset(ctx context.Context, key string, limits []Limit) error {
	return s.call(ctx, key, func() error { return s.Store.Reset(context.WithoutCancel(ctx), key, limits) })
}

// Kinds returns what the server counts.
func (s *remoteBackend) Kinds() Kinds {
	if k, ok := s.Store.(KindStore); ok {
		return k.Kinds()
	}
	return 0
}

func (s *remoteBackend) Block(ctx context.Context, key string, b Block, limits []Limit) error {
	s.blocks.Add(1)
	return s.call(ctx, key, func() error { return s.Store.(KindStore).Block(context.WithoutCancel(ctx), key, b, limits) })
}

func (s *remoteBackend) Hold(ctx context.Context, r HoldRequest, results []Result) (reply HoldReply, err error) {
	if !r.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, r.Deadline)
		defer cancel()
	}
	s.holds.Add(1)
	err = s.call(ctx, r.Key, func() (err error) {
		reply, err = s.Store.(HoldStore).Hold(context.WithoutCancel(ctx), r, results)
		return err
	})
	return reply, err
}

// held returns how many holds of a key the store has, from the view of another process.
func (s *remoteBackend) held(t *testing.T, key string) int64 {
	t.Helper()
	reply, err := s.Store.(HoldStore).Hold(ctx, HoldRequest{Key: key, Process: "another", Lasts: time.Second}, make([]Result, 1))
	require.NoError(t, err)
	return reply.Others
}

// blocked returns for how long a key is blocked in the store, from the view of another
// process.
func (s *remoteBackend) blocked(t *testing.T, key string, limit Limit) time.Duration {
	t.Helper()
	results := make([]Result, 1)
	_, err := s.Store.Take(ctx, key, 0, []Limit{limit}, results)
	require.NoError(t, err)
	if !results[0].Blocked {
		return 0
	}
	return min(results[0].MoreAfter, results[0].ResetAfter)
}

func (s *remoteBackend) Fault(err error) Fault {
	switch {
	case errors.Is(err, errBackendRefused):
		return FaultRefused
	case errors.Is(err, errForeignValue):
		return FaultKey
	}
	return FaultUnknown
}

// remaining returns how many units a key has left in the store, from the view of
// another process.
func (s *remoteBackend) remaining(t *testing.T, key string, limits ...Limit) int64 {
	t.Helper()
	results := make([]Result, len(limits))
	_, err := s.Store.Take(ctx, key, 0, limits, results)
	require.NoError(t, err)
	return results[0].Remaining
}

// mode is what happens to calls.
type mode int

const (
	up          mode = iota
	refused          // not applied: an error at once
	silent           // not applied, without a reply
	lost             // applied, without a reply
	junk             // the key holds a foreign value
	panics           // the store panics
	adjustsLost      // like lost, for Adjust only
	adjustsHang      // like silent, for Adjust only
)

// The errors of the modes refused and junk.
var (
	errBackendRefused = errors.New("10.9.8.7:6379: refused")
	errForeignValue   = errors.New("10.9.8.7:6379: wrong type")
)

// remotely runs a test in a bubble, with a limiter on a remote store.
func remotely(t *testing.T, opts Options, test func(t *testing.T, backend *remoteBackend, l *Limiter)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		l := processOf(t, backend, opts)
		test(t, backend, l)
	})
}

// processOf makes the limiter of one process. It is closed when the test ends.
func processOf(t *testing.T, store Store, opts Options) *Limiter {
	opts.Store = store
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	l := Must(new(Registry).New("l", opts))
	t.Cleanup(func() { l.Close() })
	return l
}

// startOutage opens the breaker, with calls for other keys.
func startOutage(t *testing.T, backend *remoteBackend, l *Limiter, m mode) {
	t.Helper()
	backend.set(m)
	for i := range 5 {
		decide(t, l, fmt.Sprint("breaks down ", i), 1)
	}
	require.True(t, l.Stats().Remote.BreakerOpen)
}

// endOutage lets the store answer again, and waits until the limiter knows that
// and has sent everything that the store had missed.
func endOutage(t *testing.T, backend *remoteBackend, l *Limiter) {
	t.Helper()
	backend.set(up)
	settled(t, l)
}

// settled waits until the limiter knows that its store answers again, and has sent everything
// that the store had missed.
func settled(t *testing.T, l *Limiter) {
	t.Helper()
	time.Sleep(1100 * time.Millisecond)
	decide(t, l, "comes back", 0)
	time.Sleep(200 * time.Millisecond)
	decide(t, l, "comes back", 0)
	synctest.Wait()
	require.False(t, l.Stats().Remote.BreakerOpen)
	require.Zero(t, l.Stats().Remote.Owed)
}
