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

// TestStoreThatComesAndGoesMintsNothing has a store that fails and comes back a
// hundred times a minute. Only calls that were sent and not answered may be
// admitted above the limit, because nobody knows whether the store has counted
// them.
func TestStoreThatComesAndGoesMintsNothing(t *testing.T) {
	for _, m := range []mode{refused, silent, lost} {
		for _, limit := range algorithms(2500, 24*time.Hour) {
			t.Run(fmt.Sprint(limit.Algorithm(), m), func(t *testing.T) {
				remotely(t, Options{Limits: []Limit{limit}, Timeout: 10 * time.Millisecond}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
					admitted, start := int64(0), time.Now()
					for i := range 100 {
						backend.set(m * mode(i%2))
						for until := time.Now().Add(600 * time.Millisecond); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
							if decide(t, l, "key", 1).Allowed {
								admitted++
							}
						}
					}
					bound := int64(2500) + backend.unknown.Load()
					if limit.Algorithm() == "bucket" {
						bound += int64(time.Since(start) * 2500 / (24 * time.Hour))
					}
					require.LessOrEqual(t, admitted, bound)
					require.GreaterOrEqual(t, admitted, int64(2500)-backend.unknown.Load())
					require.Greater(t, l.Stats().Remote.BreakerOpened, uint64(20))
					endOutage(t, backend, l)
					for range 2600 {
						if decide(t, l, "key", 1).Allowed {
							admitted++
						}
					}
					require.LessOrEqual(t, admitted, bound+1)
				})
			})
		}
	}
}

// TestStoreReceivesUnitsThatStillCount checks what the store has after outages
// of different lengths.
func TestStoreReceivesUnitsThatStillCount(t *testing.T) {
	for _, tc := range []struct {
		limit Limit
		after time.Duration
		want  int64 // remaining of 10, at the store
	}{
		{FixedWindow(10, time.Minute), 30 * time.Second, 4},
		{FixedWindow(10, time.Minute), time.Minute, 10},
		{SlidingWindow(10, time.Minute), 30 * time.Second, 4},
		{SlidingWindow(10, time.Minute), 90 * time.Second, 7},
		{SlidingWindow(10, time.Minute), 3 * time.Minute, 10},
		{TokenBucket(10, time.Minute, 10), 6 * time.Second, 4}, // a part of a unit counts as one
		{TokenBucket(10, time.Minute, 10), 37 * time.Second, 10},
	} {
		t.Run(fmt.Sprint(tc.limit, tc.after), func(t *testing.T) {
			remotely(t, Options{Limits: []Limit{tc.limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
				startOutage(t, backend, l, refused)
				decide(t, l, "key", 6)
				for range 5 { // at times when the breaker sends no probe
					decide(t, l, "other", 1)
				}
				time.Sleep(tc.after - 1300*time.Millisecond)
				endOutage(t, backend, l) // takes 1300 ms
				require.Equal(t, tc.want, backend.remaining(t, "key", tc.limit))
				require.Zero(t, l.Stats().Remote.Forgotten)
			})
		})
	}
}

// TestUnansweredAdjustIsNotRepeated sends what the store has missed and loses
// the reply. The rest is still sent.
func TestUnansweredAdjustIsNotRepeated(t *testing.T) {
	limits := []Limit{FixedWindow(100, time.Hour), TokenBucket(100, 1000*time.Hour, 100)}
	remotely(t, Options{Limits: limits}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		decide(t, l, "key", 30)
		backend.set(adjustsLost)
		time.Sleep(time.Second)
		decide(t, l, "key", 0)
		time.Sleep(time.Minute)
		endOutage(t, backend, l)
		require.EqualValues(t, 70, backend.remaining(t, "key", limits[0]))
		require.EqualValues(t, 70, backend.remaining(t, "key", limits[1]), "and the store gets the rest nevertheless")
	})
}

// TestNothingIsSentWhileCallsFail has units that are owed after a single failure, and then
// a store that gives no answers. If the units were sent at once, their reply would be lost,
// and they would not be sent again.
func TestNothingIsSentWhileCallsFail(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		decide(t, l, "key", 1)
		backend.set(refused)
		decide(t, l, "key", 1)
		require.Equal(t, 1, l.Stats().Remote.Owed)
		backend.set(silent)
		for range 2 {
			decide(t, l, "key", 1)
		}
		require.False(t, l.Stats().Remote.BreakerOpen)
		require.Zero(t, backend.adjusted.Load())
		endOutage(t, backend, l)
		require.EqualValues(t, 1, backend.remaining(t, "key", hour))
	})
}

// TestUnansweredTakeIsNotRepeated checks that the units are not charged later,
// either.
func TestUnansweredTakeIsNotRepeated(t *testing.T) {
	for m, want := range map[mode]int64{silent: 5, lost: 3} {
		remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			backend.set(m)
			d := decide(t, l, "key", 2)
			require.True(t, d.Allowed)
			require.Equal(t, SourceFallback, d.Source)
			require.EqualValues(t, 3, d.Remaining)
			require.EqualValues(t, 1, backend.calls.Load())
			require.Zero(t, l.Stats().Remote.Owed)
			endOutage(t, backend, l)
			require.Equal(t, want, backend.remaining(t, "key", hour))
			require.Zero(t, backend.adjusted.Load())
		})
	}
}

// TestUncertainUnitsAreNotGivenBack has responses that do not count while the
// store does not answer. It may not have counted the units: giving them back
// would give back units of others.
func TestUncertainUnitsAreNotGivenBack(t *testing.T) {
	count := func(_ *http.Request, status int) bool { return status >= 400 }
	remotely(t, Options{Limits: []Limit{hour}, Key: StaticKey("key"), Count: count}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		status, admitted := http.StatusUnauthorized, 0
		handler := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			backend.set(up)
			w.WriteHeader(status)
		}))
		serve := func() int {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			return w.Code
		}
		for range 20 {
			status = http.StatusUnauthorized
			for range 4 {
				if serve() == status {
					admitted++
				}
			}
			status = http.StatusNoContent
			for range 4 {
				backend.set(silent)
				serve()
			}
			backend.set(up)
		}
		require.LessOrEqual(t, admitted, 5)
	})
}

// TestBusyKeyReturnsToTheStoreWithItsUnits uses a key all the time, from many
// goroutines.
func TestBusyKeyReturnsToTheStoreWithItsUnits(t *testing.T) {
	limit := FixedWindow(1_000_000, time.Hour)
	remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.delay(3 * time.Millisecond)
		startOutage(t, backend, l, refused)
		var admitted, atStore atomic.Int64
		done := make(chan struct{})
		for range 16 {
			go func() {
				for tick := time.Tick(time.Millisecond); ; {
					select {
					case <-done:
						return
					case <-tick:
					}
					if d, _ := l.Take(ctx, "key"); d.Allowed {
						admitted.Add(1)
						if d.Source == SourceStore {
							atStore.Add(1)
						}
					}
				}
			}()
		}
		time.Sleep(time.Second)
		require.Zero(t, atStore.Load())
		backend.set(up)
		time.Sleep(1200 * time.Millisecond)
		before := l.Stats().Remote.Fallback
		atStore.Store(0)
		time.Sleep(time.Second)
		require.Equal(t, before, l.Stats().Remote.Fallback, "none of them is decided here any more")
		require.NotZero(t, atStore.Load())
		close(done)
		time.Sleep(time.Second)
		require.Equal(t, 1_000_000-admitted.Load(), backend.remaining(t, "key", limit))
	})
}

// TestForeignValueHoldsUpOnlyItsKey has a foreign value in the place of a
// counter. Its units stay owed, the store is asked now and then, and other keys
// are not affected.
func TestForeignValueHoldsUpOnlyItsKey(t *testing.T) {
	remotely(t, Options{Limits: []Limit{FixedWindow(100, time.Hour)}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		for i := range 40 {
			decide(t, l, fmt.Sprint(i), 1)
		}
		decide(t, l, "junk", 30)
		backend.setFor("junk", junk)
		time.Sleep(2 * time.Second)
		decide(t, l, "0", 0)
		synctest.Wait()
		decide(t, l, "0", 0)
		time.Sleep(time.Second)
		require.Equal(t, 1, l.Stats().Remote.Owed)
		adjusted := backend.adjusted.Load()
		for range 1000 {
			decide(t, l, "other", 0)
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		require.InDelta(t, 10, backend.adjusted.Load()-adjusted, 2)
		require.False(t, l.Stats().Remote.BreakerOpen)
		require.Equal(t, SourceFallback, decide(t, l, "junk", 30).Source)
		endOutage(t, backend, l)
		require.EqualValues(t, 40, backend.remaining(t, "junk", FixedWindow(100, time.Hour)))
	})
}
