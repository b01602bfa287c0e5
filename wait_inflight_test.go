package ratelimit_test

import (
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// A workshop serves requests that each last for some time.
type workshop struct {
	*Limiter
	handler http.Handler
	running atomic.Int64
	most    atomic.Int64 // of running
	mu      sync.Mutex
	order   []string
	codes   map[string]int
	took    map[string]time.Duration // until the answer or the handler
}

func newWorkshop(l *Limiter, lasts time.Duration) *workshop {
	w := &workshop{Limiter: l, codes: make(map[string]int), took: make(map[string]time.Duration)}
	w.handler = l.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		now := w.running.Add(1)
		defer w.running.Add(-1)
		for most := w.most.Load(); now > most && !w.most.CompareAndSwap(most, now); most = w.most.Load() {
		}
		w.mu.Lock()
		w.order = append(w.order, r.Header.Get("Name"))
		w.took[r.Header.Get("Name")] = time.Since(r.Context().Value(began{}).(time.Time))
		w.mu.Unlock()
		time.Sleep(lasts)
	}))
	return w
}

type began struct{}

// request sends a request and waits for its answer.
func (w *workshop) request(ctx context.Context, name string) {
	start := time.Now()
	r := httptest.NewRequestWithContext(context.WithValue(ctx, began{}, start), "GET", "/", nil)
	r.Header.Set("Name", name)
	recorder := httptest.NewRecorder()
	w.handler.ServeHTTP(recorder, r)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.codes[name] = recorder.Code
	if recorder.Code != http.StatusOK {
		w.took[name] = time.Since(start)
	}
}

// answers returns the status of each request that was answered. Requests that still run have none.
func (w *workshop) answers() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.codes)
}

func waitingFor(maxWait time.Duration, limits ...Limit) Options {
	o := quiet(limits...)
	o.MaxWait = maxWait
	o.Key = func(*http.Request) (string, error) { return "a", nil }
	return o
}

// TestRequestsWaitForHolds: requests are served one after the other, in order, and each makes
// about one decision.
func TestRequestsWaitForHolds(t *testing.T) {
	remotely(t, waitingFor(time.Minute, InFlight(2, 30*time.Second)), func(t *testing.T, backend *remoteBackend, l *Limiter) {
		w := newWorkshop(l, time.Second)
		var all sync.WaitGroup
		for _, name := range strings.Split("abcdefgh", "") {
			all.Go(func() { w.request(ctx, name) })
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		require.Equal(t, 6, l.Stats().Waiting)
		all.Wait()
		require.Equal(t, "abcdefgh", strings.Join(w.order, ""))
		require.EqualValues(t, 2, w.most.Load())
		require.InDelta(t, 3, w.took["h"].Seconds(), 0.1)
		stats := l.Stats()
		require.EqualValues(t, 8, stats.Allowed)
		require.EqualValues(t, 6, stats.Waited)
		require.Zero(t, stats.Denied+uint64(stats.InFlight)+uint64(stats.Waiting))
		// A request asks once when it comes and once when it is admitted, a hold that has ended
		// is reported, and the head asks once per second: it might be another process's.
		require.LessOrEqual(t, backend.holds.Load(), int64(8+6+8+3))
		synctest.Wait()
		require.Zero(t, backend.held(t, "a"))
	})
}

// TestRequestsDoNotWaitForHoldsForever: each request is denied when its own time is over,
// also behind others.
func TestRequestsDoNotWaitForHoldsForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := processOf(t, memory(t, "store"), waitingFor(2*time.Second, InFlight(1, 30*time.Second)))
		w := newWorkshop(l, time.Hour)
		var all sync.WaitGroup
		all.Go(func() { w.request(ctx, "runs") })
		synctest.Wait()
		hurried, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		for _, c := range []struct {
			name string
			ctx  context.Context
		}{{"first", ctx}, {"second", ctx}, {"hurried", hurried}, {"third", ctx}} {
			all.Go(func() { w.request(c.ctx, c.name) })
			synctest.Wait()
			time.Sleep(100 * time.Millisecond)
		}
		gone, leave := context.WithCancel(ctx)
		all.Go(func() { w.request(gone, "gone") })
		synctest.Wait()
		leave()
		synctest.Wait()
		require.Equal(t, map[string]int{"gone": http.StatusServiceUnavailable}, w.answers())
		time.Sleep(4 * time.Second)
		w.mu.Lock()
		for _, name := range []string{"first", "second", "third"} {
			require.Equal(t, http.StatusTooManyRequests, w.codes[name], name)
			require.Equal(t, 2*time.Second, w.took[name], name)
		}
		require.Equal(t, http.StatusTooManyRequests, w.codes["hurried"])
		require.Equal(t, 300*time.Millisecond, w.took["hurried"], "its deadline was 500 ms after the first one came")
		w.mu.Unlock()
		require.EqualValues(t, 4, l.Stats().Denied)
		require.Zero(t, l.Stats().Waiting)
		time.Sleep(time.Hour)
		all.Wait()
	})
}

// TestRequestsWaitForAnotherProcess: a hold that another process has ended is found within
// DenyRecheck.
func TestRequestsWaitForAnotherProcess(t *testing.T) {
	o := waitingFor(time.Minute, InFlight(1, 30*time.Second))
	o.DenyRecheck = 300 * time.Millisecond
	remotely(t, o, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		other := processOf(t, &remoteBackend{Store: backend.Store}, waitingFor(0, InFlight(1, 30*time.Second)))
		release, d, err := other.Acquire(ctx, "a")
		require.NoError(t, err)
		require.True(t, d.Allowed)
		w := newWorkshop(l, 0)
		var all sync.WaitGroup
		all.Go(func() { w.request(ctx, "waits") })
		time.Sleep(10 * time.Second)
		require.Empty(t, w.answers())
		release()
		all.Wait()
		require.Equal(t, http.StatusOK, w.codes["waits"])
		require.InDelta(t, 10, w.took["waits"].Seconds(), 0.31)
	})
}

// TestWaitingForHoldAndUnits: a request waits for both, and is denied at once if the units come
// too late.
func TestWaitingForHoldAndUnits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := processOf(t, memory(t, "store"), waitingFor(10*time.Second, FixedWindow(2, 5*time.Second), FixedWindow(3, time.Hour), InFlight(1, time.Minute)))
		w := newWorkshop(l, time.Second)
		var all sync.WaitGroup
		for _, name := range []string{"a", "b", "c"} {
			all.Go(func() { w.request(ctx, name) })
			synctest.Wait()
		}
		all.Wait()
		require.Equal(t, 0*time.Second, w.took["a"])
		require.Equal(t, 1*time.Second, w.took["b"], "after the hold of a")
		require.Equal(t, 5*time.Second, w.took["c"], "in the next window")
		w.request(ctx, "d")
		require.Equal(t, http.StatusTooManyRequests, w.codes["d"])
		require.Zero(t, w.took["d"], "the hour is used up")
		release, d, err := l.Acquire(ctx, "a")
		require.NoError(t, err)
		require.False(t, d.Allowed)
		release()
	})
}

// TestCloseLetsThoseGoThatWaitForHolds: they are answered with 503 at once.
func TestCloseLetsThoseGoThatWaitForHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := processOf(t, memory(t, "store"), waitingFor(time.Minute, InFlight(1, time.Minute)))
		w := newWorkshop(l, 30*time.Second)
		var all sync.WaitGroup
		for _, name := range []string{"a", "b", "c"} {
			all.Go(func() { w.request(ctx, name) })
			synctest.Wait()
		}
		require.NoError(t, l.Close())
		synctest.Wait()
		require.Equal(t, map[string]int{"b": http.StatusServiceUnavailable, "c": http.StatusServiceUnavailable}, w.answers())
		all.Wait()
		require.Equal(t, http.StatusOK, w.codes["a"])
	})
}
