package ratelimit_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func serveOnce(h http.Handler) (*httptest.ResponseRecorder, time.Duration) {
	w, start := httptest.NewRecorder(), time.Now()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	return w, time.Since(start)
}

// TestAddCostOfAnOwingKeyIsInTime checks that AddCost's timeout includes the wait for owed
// units.
func TestAddCostOfAnOwingKeyIsInTime(t *testing.T) {
	opts := Options{Limits: []Limit{FixedWindow(100, time.Hour)}, Key: StaticKey("key")}
	remotely(t, opts, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.setFor("key", junk) // only this key has errors, so the breaker stays closed
		handler := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			backend.set(up)
			backend.delay(45 * time.Millisecond)
			start := time.Now()
			go func() { time.Sleep(46 * time.Millisecond); backend.delay(0); backend.set(adjustsHang) }()
			l.AddCost(r.Context(), 7)
			if d := time.Since(start); d > 100*time.Millisecond {
				t.Errorf("AddCost took %v with a Timeout of 100ms", d)
			}
		}))
		w, _ := serveOnce(handler)
		require.Equal(t, 200, w.Code)
	})
}

// TestAddCostWithLittleTimeLeftIsInTime has a second AddCost that waits for the first one,
// which hangs. When the first one has ended, the key is owed units, and sending them
// takes longer than the second one has left.
func TestAddCostWithLittleTimeLeftIsInTime(t *testing.T) {
	opts := Options{Limits: []Limit{FixedWindow(100, time.Hour)}, Key: StaticKey("key")}
	remotely(t, opts, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		handler := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			backend.set(silent)
			go l.AddCost(r.Context(), 7) // for 100 ms
			time.Sleep(30 * time.Millisecond)
			start, done := time.Now(), make(chan time.Duration)
			go func() { l.AddCost(r.Context(), 7); done <- time.Since(start) }()
			time.Sleep(30 * time.Millisecond)
			backend.setFor("key", junk) // only this key has errors, so the breaker stays closed
			require.Equal(t, SourceFallback, decide(t, l, "key", 1).Source)
			require.Equal(t, 1, l.Stats().Remote.Owed)
			backend.set(up)
			backend.delay(200 * time.Millisecond)
			require.Equal(t, 100*time.Millisecond, <-done)
		}))
		w, _ := serveOnce(handler)
		require.Equal(t, 200, w.Code)
	})
}

// TestTwoAddCostsAreInTime makes several calls for one request while the store hangs. None of
// them takes longer than the timeout. It runs in real time: in a bubble, a caller that waits for
// a mutex stops the clock. A busy machine makes calls slower but never faster, so the fastest
// of ten tries counts.
func TestTwoAddCostsAreInTime(t *testing.T) {
	fastest := time.Hour
	for try := 0; try < 10 && fastest > 200*time.Millisecond; try++ {
		backend := &remoteBackend{Store: memory(t, fmt.Sprint("backend ", try))}
		l := processOf(t, backend, Options{Limits: []Limit{FixedWindow(100, time.Hour)}, Key: StaticKey("key")})
		handler := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			backend.set(adjustsHang)
			start := time.Now()
			done := make(chan bool)
			for range 4 {
				go func() { l.AddCost(r.Context(), 7); done <- true }()
			}
			for range 4 {
				<-done
			}
			fastest = min(fastest, time.Since(start))
		}))
		serveOnce(handler)
	}
	if fastest > 200*time.Millisecond {
		t.Errorf("4 AddCosts at once took %v with a Timeout of 100ms", fastest)
	}
}

// TestClosedOuterLimitersDoNotHoldUpADenial closes the outer limiters, whose stores hang,
// during a request. The denial is in time nevertheless.
func TestClosedOuterLimitersDoNotHoldUpADenial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var outers []*Limiter
		var backends []*remoteBackend
		for i := range 3 {
			backend := &remoteBackend{Store: memory(t, fmt.Sprint("outer", i))}
			backends = append(backends, backend)
			outers = append(outers, processOf(t, backend, Options{Limits: []Limit{hour}, Key: StaticKey("key")}))
		}
		inner, err := new(Registry).New("inner", Options{Limits: []Limit{hour}, Key: StaticKey("key"), Store: memory(t, "inner"), Logger: quietly})
		require.NoError(t, err)
		defer inner.Close()
		decide(t, inner, "key", 5)
		var at time.Time
		var handler http.Handler = inner.Middleware(http.NotFoundHandler())
		shutdown := func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for i := range outers {
					outers[i].Close()
					backends[i].set(adjustsHang)
				}
				at = time.Now()
				next.ServeHTTP(w, r)
			})
		}
		handler = shutdown(handler)
		for _, o := range outers {
			handler = o.Middleware(handler)
		}
		w, _ := serveOnce(handler)
		require.Equal(t, 429, w.Code)
		if d := time.Since(at); d > 100*time.Millisecond {
			t.Errorf("the 429 took %v with a Timeout of 100ms", d)
		}
	})
}

// TestNestedCountsShareOneTimeout nests several limiters with Count. Together they delay the
// response by one timeout at most.
func TestNestedCountsShareOneTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var handler http.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
		for range 3 {
			backend := &remoteBackend{Store: memory(t, "")}
			backend.set(adjustsHang)
			l := processOf(t, backend, Options{Limits: []Limit{hour}, Key: StaticKey("key"), Count: func(*http.Request, int) bool { return false }})
			handler = l.Middleware(handler)
		}
		_, d := serveOnce(handler)
		if d > 100*time.Millisecond {
			t.Errorf("the 200 took %v with a Timeout of 100ms", d)
		}
	})
}

// TestResetDuringSettlingForgetsAll resets a key while the store is sent the units that it is
// owed. Reset also forgets units that are admitted at that time.
func TestResetDuringSettlingForgetsAll(t *testing.T) {
	limit := FixedWindow(100, time.Hour)
	remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		decide(t, l, "key", 40)
		backend.set(up)
		backend.delay(70 * time.Millisecond) // settling takes longer than callers wait
		time.Sleep(1100 * time.Millisecond)
		decide(t, l, "comes back", 0)
		var stop atomic.Bool
		for range 4 {
			go func() {
				for !stop.Load() {
					l.TakeN(ctx, "key", 10)
					time.Sleep(time.Millisecond)
				}
			}()
		}
		time.Sleep(30 * time.Millisecond)
		stop.Store(true)
		require.NoError(t, l.Reset(ctx, "key"))
		left := backend.remaining(t, "key", limit)
		backend.delay(0)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if now := backend.remaining(t, "key", limit); left != 100 || now != 100 {
			t.Errorf("left after Reset: %d, and later %d, of 100", left, now)
		}
	})
}

// TestStoreThatPanicsAfterClose: a request ends after Close, and the store panics when its unit
// is given back.
func TestStoreThatPanicsAfterClose(t *testing.T) {
	log := new(logged)
	opts := Options{Limits: []Limit{hour}, Logger: log.logger(), Count: func(*http.Request, int) bool { return false }}
	remotely(t, opts, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		handler := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			l.Close()
			backend.set(panics)
			w.WriteHeader(http.StatusNoContent)
		}))
		w, _ := serveOnce(handler)
		synctest.Wait()
		require.Equal(t, http.StatusNoContent, w.Code)
		require.EqualValues(t, 1, backend.adjusted.Load())
		require.Equal(t, []Code{CodeStoreFailed}, log.codes())
		require.Contains(t, log.text(), "panic: a bug")
	})
}
