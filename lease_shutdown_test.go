package ratelimit_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// closingHandler is a logger that calls f once, at a message.
type closingHandler struct {
	slog.Handler
	at string
	f  atomic.Pointer[func()]
}

func (h *closingHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h *closingHandler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *closingHandler) WithGroup(string) slog.Handler            { return h }
func (h *closingHandler) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, h.at) {
		if f := h.f.Swap(nil); f != nil {
			(*f)()
		}
	}
	return nil
}

// TestCloseRightAfterAReloadLosesNothing closes the Registry after a Reload, or after the
// Reload has put its limiters in place and before they begin. For the latter, the logger's
// hook does what another goroutine could do at that time. In both cases the store receives
// the units that it is owed, and gets the leased units back.
func TestCloseRightAfterAReloadLosesNothing(t *testing.T) {
	for _, when := range []string{"after", "between"} {
		synctest.Test(t, func(t *testing.T) {
			backend := &remoteBackend{Store: memory(t, "backend")}
			limit := FixedWindow(100_000, time.Hour)
			reg := new(Registry)
			hook := &closingHandler{at: "limiter counts in a remote store"}
			opts := Options{Limits: []Limit{limit}, Store: backend, Lease: time.Second, Logger: slog.New(hook)}
			l, err := reg.New("l", opts)
			require.NoError(t, err)
			for range 2000 {
				decide(t, l, "leased", 1)
				time.Sleep(100 * time.Microsecond)
			}
			startOutage(t, backend, l, refused)
			decide(t, l, "owed", 50)
			backend.set(up)
			time.Sleep(10 * time.Millisecond)
			if when == "between" {
				f := func() { reg.Close() }
				hook.f.Store(&f)
			}
			time.Sleep(time.Second)
			err = reg.Reload(func(next *Registry) error {
				_, err := next.New("l", opts)
				return err
			})
			t.Log("Reload:", err)
			if when == "after" {
				reg.Close()
			}
			l.Close()
			synctest.Wait()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			owed, leased := 100_000-backend.remaining(t, "owed", limit), 100_000-backend.remaining(t, "leased", limit)
			t.Log(when, "owed units sent:", owed, "of 50; leased key counts", leased, "of 2000")
			if owed != 50 || leased != 2000 {
				t.Errorf("%s: owed units sent: %d of 50; leased key counts %d of 2000", when, owed, leased)
			}
		})
	}
}

// TestCloseDuringALeaseLosesNothing closes a limiter while a decision is in flight, which may also
// ask for the units of a lease. The store gets the units back that nobody has got.
func TestCloseDuringALeaseLosesNothing(t *testing.T) {
	leased := 0
	for calls := range 40 {
		synctest.Test(t, func(t *testing.T) {
			backend := &remoteBackend{Store: memory(t, "backend")}
			limit := FixedWindow(100_000, time.Hour)
			l := processOf(t, backend, Options{Limits: []Limit{limit}, Lease: time.Second})
			for range calls {
				decide(t, l, "key", 1)
				time.Sleep(100 * time.Microsecond)
			}
			backend.delay(time.Millisecond)
			done := make(chan Decision)
			go func() { done <- decide(t, l, "key", 1) }()
			synctest.Wait()
			go l.Close()
			admitted := calls
			if (<-done).Allowed {
				admitted++
			}
			if 100_000-backend.remaining(t, "key", limit) > int64(admitted) {
				leased++
			}
			time.Sleep(10 * time.Second)
			require.EqualValues(t, admitted, 100_000-backend.remaining(t, "key", limit), "after %d calls", calls)
		})
	}
	require.Positive(t, leased, "decisions that took units for a lease")
}

// TestPanicDoesNotEndLeasing has a store that panics. Afterwards a key is leased again, and the
// goroutine that gives leases back ends when there are none.
func TestPanicDoesNotEndLeasing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		l := processOf(t, backend, Options{Limits: []Limit{FixedWindow(1_000_000, time.Hour)}, Lease: 20 * time.Millisecond})
		use := func(key string, n int) {
			for range n {
				func() {
					defer func() { recover() }()
					l.Take(ctx, key)
				}()
				time.Sleep(100 * time.Microsecond)
			}
		}
		before := goroutines()
		use("key", 300)
		require.NotZero(t, l.Stats().Remote.Leased)
		backend.setFor("key", panics)
		use("key", 600)
		backend.set(up)
		use("key", 100)
		time.Sleep(100 * time.Millisecond)
		calls := backend.calls.Load()
		use("key", 1000)
		if n := backend.calls.Load() - calls; n > 500 {
			t.Errorf("1000 requests for the key made %d calls after one panic", n)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		require.LessOrEqual(t, goroutines(), before, "an hour after the last request")
	})
}

// TestLongKeyIsNotOwedForGood has owed units of a long key under a bucket. They leak within
// 18 seconds. The limiter must settle or forget them within a hundred hours.
func TestLongKeyIsNotOwedForGood(t *testing.T) {
	remotely(t, Options{Limits: []Limit{TokenBucket(10, time.Minute, 10)}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		decide(t, l, strings.Repeat("k", 600), 3)
		backend.set(up)
		for range 100 {
			time.Sleep(time.Hour)
			decide(t, l, "other", 1)
			synctest.Wait()
		}
		require.Zero(t, l.Stats().Remote.Owed)
	})
}

// TestFewNearKeysAreRefusedOrEnough sets NearKeys below the number of limits of a key. Either New
// refuses that, or the limits hold in an outage.
func TestFewNearKeysAreRefusedOrEnough(t *testing.T) {
	for _, keys := range []int{1, 2, 4} {
		limits := []Limit{FixedWindow(5, time.Hour), FixedWindow(6, 2*time.Hour), FixedWindow(7, 3*time.Hour), FixedWindow(8, 4*time.Hour),
			FixedWindow(9, 5*time.Hour), FixedWindow(10, 6*time.Hour), FixedWindow(11, 7*time.Hour), FixedWindow(12, 8*time.Hour)}
		synctest.Test(t, func(t *testing.T) {
			backend := &remoteBackend{Store: memory(t, "backend")}
			l, err := new(Registry).New("l", Options{Limits: limits, Store: backend, NearKeys: keys, Logger: quietly})
			if err != nil {
				t.Log("refused:", err)
				return
			}
			defer l.Close()
			backend.set(refused)
			admitted := 0
			for range 100 {
				if decide(t, l, "key", 1).Allowed {
					admitted++
				}
			}
			if admitted > 5 {
				t.Errorf("NearKeys %d: %d admitted of 5", keys, admitted)
			}
		})
	}
}

// TestFourteenWindowsKeepTheirLimits has plans with 14 windows, during and after an outage.
func TestFourteenWindowsKeepTheirLimits(t *testing.T) {
	var plan []Limit
	opts := Options{Limits: []Limit{hour}, Key: StaticKey("key"), LimitsFor: func(*http.Request) []Limit { return plan }}
	remotely(t, opts, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		handler := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		admitted := map[int]int{}
		ask := func(i int) {
			w := httptest.NewRecorder()
			plan = []Limit{FixedWindow(5, time.Duration(i+1)*time.Hour), SlidingWindow(50, time.Duration(i+1)*time.Minute)}
			handler.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			if w.Code == 200 {
				admitted[i]++
			}
		}
		for round := range 40 {
			backend.set([]mode{up, refused}[round/10%2])
			for i := range 14 {
				ask(i)
			}
			time.Sleep(20 * time.Millisecond)
		}
		for i := range 14 {
			require.Equal(t, 5, admitted[i], i)
		}
	})
}

// TestClosedClientsAreErrors closes a client of each kind under a live limiter.
func TestClosedClientsAreErrors(t *testing.T) {
	m := newMini(t)
	for name, client := range map[string]redis.UniversalClient{
		"single":   redis.NewClient(&redis.Options{Addr: m.Addr()}),
		"cluster":  redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{m.Addr()}}),
		"ring":     redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": m.Addr()}}),
		"sentinel": redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{m.Addr()}}),
	} {
		t.Run(name, func(t *testing.T) {
			l, err := new(Registry).New(name, Options{Limits: []Limit{FixedWindow(5, time.Hour)}, Redis: client, Timeout: time.Minute, Logger: quietly})
			require.NoError(t, err)
			defer l.Close()
			l.Take(ctx, "key")
			client.Close()
			for i := range 10 {
				d, err := l.Take(ctx, fmt.Sprint("key", i))
				require.Error(t, err, "%+v", d)
			}
		})
	}
}
