package ratelimit_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// heldWrapper is a wrapper that hands holds on.
type heldWrapper struct {
	mu     sync.Mutex
	inside HoldStore
}

func (w *heldWrapper) in() HoldStore {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inside
}

// swap puts another store in place of the one inside.
func (w *heldWrapper) swap(inside HoldStore) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inside = inside
}

func (w *heldWrapper) Prefix() string { return w.in().Prefix() }
func (w *heldWrapper) Unwrap() Store  { return w.in() }
func (w *heldWrapper) Kinds() Kinds   { return w.in().Kinds() }
func (w *heldWrapper) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	return w.in().Take(ctx, key, n, limits, results)
}
func (w *heldWrapper) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	return w.in().Adjust(ctx, key, n, at, limits)
}
func (w *heldWrapper) Reset(ctx context.Context, key string, limits []Limit) error {
	return w.in().Reset(ctx, key, limits)
}
func (w *heldWrapper) TakePending(ctx context.Context, key string, n int64, pending []Pending, limits []Limit, results []Result) (Instant, error) {
	return w.in().TakePending(ctx, key, n, pending, limits, results)
}
func (w *heldWrapper) Block(ctx context.Context, key string, b Block, limits []Limit) error {
	return w.in().Block(ctx, key, b, limits)
}
func (w *heldWrapper) Hold(ctx context.Context, r HoldRequest, results []Result) (HoldReply, error) {
	return w.in().Hold(ctx, r, results)
}

// TestAcquire has holds of one key in each kind of store: at most n at the same time.
func TestAcquire(t *testing.T) {
	for name, store := range map[string]func(t *testing.T) Store{
		"memory":  func(t *testing.T) Store { return memory(t, "store") },
		"wrapper": func(t *testing.T) Store { return &heldWrapper{inside: memory(t, "store")} },
		"Redis":   func(t *testing.T) Store { return redisStore(t, newMini(t).client(t), "rl:export:") },
		"remote":  func(t *testing.T) Store { return &remoteBackend{Store: memory(t, "store")} },
	} {
		t.Run(name, func(t *testing.T) {
			l := processOf(t, store(t), Options{Limits: []Limit{InFlight(2, time.Hour)}, Timeout: time.Minute})
			first, d, err := l.Acquire(ctx, "a")
			require.NoError(t, err)
			require.True(t, d.Allowed)
			require.EqualValues(t, 1, d.Remaining)
			second, d, err := l.Acquire(ctx, "a")
			require.NoError(t, err)
			require.True(t, d.Allowed)
			require.EqualValues(t, 2, l.Stats().InFlight)
			nothing, d, err := l.Acquire(ctx, "a")
			require.NoError(t, err)
			require.False(t, d.Allowed)
			require.Equal(t, "l", d.Policy)
			require.InDelta(t, time.Hour, d.RetryAfter, float64(time.Minute))
			nothing()
			_, d, err = l.Acquire(ctx, "b")
			require.NoError(t, err)
			require.True(t, d.Allowed, "another key")

			first()
			first()
			third, d, err := l.Acquire(ctx, "a")
			require.NoError(t, err)
			require.True(t, d.Allowed)
			second()
			third()
			require.EqualValues(t, 1, l.Stats().InFlight)
			require.EqualValues(t, 4, l.Stats().Allowed)
			require.EqualValues(t, 1, l.Stats().Denied)
		})
	}
}

// TestHoldOfARequest: a request holds until its handler returns or panics.
func TestHoldOfARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := processOf(t, memory(t, "store"), quiet(InFlight(1, time.Minute)))
		finish := make(chan bool)
		h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if <-finish {
				panic(http.ErrAbortHandler)
			}
		}))
		serve := func() int {
			w := httptest.NewRecorder()
			defer func() { recover() }()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			return w.Code
		}
		for _, panics := range []bool{false, true} {
			var running sync.WaitGroup
			running.Go(func() { serve() })
			synctest.Wait()
			require.Equal(t, http.StatusTooManyRequests, serve())
			time.Sleep(time.Hour) // the hold of a request does not end by itself
			require.Equal(t, http.StatusTooManyRequests, serve())
			finish <- panics
			running.Wait()
		}
		close(finish)
		require.Equal(t, http.StatusOK, serve())
		require.Zero(t, l.Stats().InFlight)
	})
}

// panickyHolds is a store in this process that panics when it gets a report of holds.
type panickyHolds struct {
	*heldWrapper
	panics atomic.Bool
}

func (s *panickyHolds) Hold(ctx context.Context, r HoldRequest, results []Result) (HoldReply, error) {
	if r.Action == HoldRenew && s.panics.Load() {
		panic("a bug")
	}
	return s.heldWrapper.Hold(ctx, r, results)
}

// TestStoreThatPanicsWhenHoldsEnd: a store in this process panics when a hold ends, on the
// goroutine of its time, of a request's context or of a caller. The holds that end later are
// reported.
func TestStoreThatPanicsWhenHoldsEnd(t *testing.T) {
	for name, end := range map[string]func(release, cancel func()){
		"time":    func(release, cancel func()) { time.Sleep(time.Minute) },
		"context": func(release, cancel func()) { cancel() },
		"release": func(release, cancel func()) { release() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, store := new(logged), &panickyHolds{heldWrapper: &heldWrapper{inside: memory(t, "store")}}
				o := quiet(InFlight(1, time.Minute))
				o.Key, o.Logger = HeaderKey("User"), log.logger()
				l := processOf(t, store, o)
				release, _, err := l.Acquire(ctx, "acquired")
				require.NoError(t, err)
				requestCtx, cancel := context.WithCancel(ctx)
				defer cancel()
				require.True(t, l.Check(httptest.NewRecorder(), httpRequest("GET", "User: checked").WithContext(requestCtx)))
				store.panics.Store(true)
				end(release, cancel)
				synctest.Wait()
				require.Equal(t, 1, l.Stats().InFlight)
				require.Contains(t, log.text(), "panic: a bug")

				store.panics.Store(false)
				release()
				cancel()
				synctest.Wait()
				require.Zero(t, l.Stats().InFlight)
				for _, key := range []string{"checked", "acquired"} {
					end, d, err := l.Acquire(ctx, key)
					require.NoError(t, err)
					require.True(t, d.Allowed, key)
					end()
				}
			})
		})
	}
}
