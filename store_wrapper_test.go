package ratelimit_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// sharded spreads each key over two counters of half the limit, which is common for a hot
// key. Units are taken from the counter that has more left.
type sharded struct{ *remoteBackend }

func (s sharded) Unwrap() Store { return s.remoteBackend }

func half(limits []Limit) []Limit {
	halves := make([]Limit, len(limits))
	for i, l := range limits {
		halves[i] = FixedWindow(l.N()/2, l.Window())
	}
	return halves
}

func (s sharded) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (at Instant, err error) {
	for i := range 2 {
		if at, err = s.remoteBackend.Take(ctx, fmt.Sprint(key, "/", i), n, half(limits), results); err != nil {
			return 0, err
		}
		if !slices.ContainsFunc(results, func(r Result) bool { return r.RetryAfter > 0 }) {
			break
		}
	}
	return at, nil
}

// TestWrapperOverTwoCounters checks that a key that the wrapper has denied stays denied in an
// outage. The state of one of its two counters is not the state of the key.
func TestWrapperOverTwoCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		l := processOf(t, sharded{backend}, Options{Limits: []Limit{FixedWindow(10, time.Hour)}})
		admitted := 0
		for range 20 {
			if decide(t, l, "key", 1).Allowed {
				admitted++
			}
		}
		require.Equal(t, 10, admitted)
		require.False(t, decide(t, l, "key", 1).Allowed)
		backend.set(refused)
		for range 20 {
			if decide(t, l, "key", 1).Allowed {
				admitted++
			}
		}
		require.Equal(t, 10, admitted, "what was denied stays denied in an outage")
	})
}

// strict denies a list of keys that the inner store admits. For these keys it returns its
// own results.
type strict struct{ *remoteBackend }

func (s strict) Unwrap() Store { return s.remoteBackend }

func (s strict) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	at, err := s.remoteBackend.Take(ctx, key, n, limits, results)
	if err == nil && key == "banned" && n > 0 {
		s.remoteBackend.Adjust(ctx, key, -n, at, limits)
		for i := range results {
			results[i] = Result{RetryAfter: time.Hour, MoreAfter: time.Hour, ResetAfter: time.Hour}
		}
	}
	return at, err
}

// TestWrapperThatDenies checks the same for a wrapper that replaces the results.
func TestWrapperThatDenies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		l := processOf(t, strict{backend}, Options{Limits: []Limit{FixedWindow(10, time.Hour)}})
		require.False(t, decide(t, l, "banned", 1).Allowed)
		require.False(t, decide(t, l, "banned", 1).Allowed)
		backend.set(refused)
		require.False(t, decide(t, l, "banned", 1).Allowed, "denied a moment ago")
	})
}

// finer counts tenths of a unit: n and the limits times ten.
type finer struct{ *remoteBackend }

func (s finer) Unwrap() Store { return s.remoteBackend }

func (s finer) tenths(limits []Limit) (fine []Limit) {
	for _, l := range limits {
		fine = append(fine, FixedWindow(10*l.N(), l.Window()))
	}
	return fine
}

func (s finer) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	at, err := s.remoteBackend.Take(ctx, key, 10*n, s.tenths(limits), results)
	for i := range results {
		results[i].Remaining /= 10
	}
	return at, err
}

func (s finer) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	charged, err := s.remoteBackend.Adjust(ctx, key, 10*n, at, s.tenths(limits))
	return charged / 10, err
}

// TestWrapperOfFinerUnits checks that a key with 9 of 10 units left is admitted in an outage.
func TestWrapperOfFinerUnits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		l := processOf(t, finer{backend}, Options{Limits: []Limit{FixedWindow(10, time.Hour)}})
		require.EqualValues(t, 9, decide(t, l, "key", 1).Remaining)
		backend.set(refused)
		require.True(t, decide(t, l, "key", 1).Allowed)
	})
}

// hedged asks twice and uses the first answer. Each call gets its own copy of the results, so
// the caller's results do not change after hedged has returned.
type hedged struct {
	Store
	RemoteStore
	secondCalls sync.WaitGroup
	startSecond chan struct{}
}

func (h *hedged) Prefix() string { return "hedged" }
func (h *hedged) Unwrap() Store  { return h.Store }
func (h *hedged) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	return h.Store.Adjust(ctx, key, n, at, limits)
}
func (h *hedged) Reset(ctx context.Context, key string, limits []Limit) error {
	return h.Store.Reset(ctx, key, limits)
}
func (h *hedged) Fault(error) Fault { return FaultUnknown }

func (h *hedged) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	copied, limits := slices.Clone(results), slices.Clone(limits)
	h.secondCalls.Go(func() {
		<-h.startSecond
		h.Store.Take(context.WithoutCancel(ctx), key, 0, limits, copied) // a second opinion
	})
	return h.Store.Take(ctx, key, n, limits, results)
}

// TestWrapperThatAsksTwice needs -race. It checks that a late answer for one key is not written
// into the buffer of a call for another key.
func TestWrapperThatAsksTwice(t *testing.T) {
	store := memory(t, "backend")
	h := &hedged{Store: store, startSecond: make(chan struct{})}
	l := processOf(t, h, Options{Limits: []Limit{FixedWindow(10, time.Hour)}, Timeout: time.Minute})
	var callers sync.WaitGroup
	go func() {
		for {
			select {
			case h.startSecond <- struct{}{}:
			case <-t.Context().Done():
				return
			}
		}
	}()
	for g := range 4 {
		callers.Go(func() {
			for i := range 2000 {
				l.Take(ctx, fmt.Sprint(g, i%50))
			}
		})
	}
	callers.Wait()
	h.secondCalls.Wait()
}

// TestWrapperThatAsksTwiceForAnotherKey has a late answer for a key that is used up. It does not
// affect another key. Unlike the test above, it does not need the race detector.
func TestWrapperThatAsksTwiceForAnotherKey(t *testing.T) {
	backend := &remoteBackend{Store: memory(t, "backend")}
	lag := &lagging{remoteBackend: backend}
	l := processOf(t, lag, Options{Limits: []Limit{FixedWindow(10, time.Hour)}, Timeout: time.Minute})
	decide(t, l, "used up", 10)
	denied := 0
	for i := range 50 {
		lag.finish = nil
		decide(t, l, "used up", 0) // leaves a copy
		finish := lag.finish
		lag.after = finish // the late answer arrives during a call for another key
		key := fmt.Sprint("fresh", i)
		decide(t, l, key, 1)
		lag.after = nil
		backend.set(refused)
		if !decide(t, l, key, 1).Allowed {
			denied++
		}
		backend.set(up)
		time.Sleep(time.Millisecond)
	}
	require.Zero(t, denied, "of 50 keys that have used 1 of 10")
}

type lagging struct {
	*remoteBackend
	finish func()
	after  func()
}

func (s *lagging) Unwrap() Store { return s.remoteBackend }

func (s *lagging) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	// A goroutine that settles may look at a fresh key.
	if key == "used up" {
		copied := slices.Clone(results)
		s.finish = func() { s.Store.Take(context.Background(), key, 0, slices.Clone(limits), copied) }
	}
	at, err := s.remoteBackend.Take(ctx, key, n, limits, results)
	if key != "used up" && n > 0 && s.after != nil {
		s.after()
	}
	return at, err
}

// valueWrapper cannot be the key of a map.
type valueWrapper struct {
	Store
	_ []string
}

func (v valueWrapper) Unwrap() Store { return v.Store }

func TestWrapperThatIsNoMapKey(t *testing.T) {
	require.NotPanics(t, func() {
		l, err := new(Registry).New("api", Options{Limits: []Limit{hour}, Store: valueWrapper{Store: memory(t, "v")}, Logger: quietly})
		t.Log(l, err)
		if err == nil {
			l.Close()
		}
	})
	require.NotPanics(t, func() { // the registry is still usable
		done := make(chan bool)
		go func() {
			new(Registry).New("b", Options{Limits: []Limit{hour}, Store: memory(t, "w"), Logger: quietly})
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Error("New hangs")
		}
	})
}
