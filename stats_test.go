package ratelimit_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestRemoteStatsCountEachSource(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		decide(t, l, "key", 5)
		decide(t, l, "key", 1)
		decide(t, l, "key", 1)
		startOutage(t, backend, l, refused)
		decide(t, l, "new", 1)
		require.Equal(t, RemoteStats{Calls: 7, CallTimes: CallTimes{7}, Failures: 5, Spared: 1, BreakerOpen: true, BreakerOpened: 1, Cached: 1, Fallback: 6, Owed: 6}, l.Stats().Remote)
		endOutage(t, backend, l)
		stats := l.Stats().Remote
		require.False(t, stats.BreakerOpen)
		require.Zero(t, stats.Owed)
	})
	remotely(t, Options{Limits: []Limit{hour}, NearKeys: 1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		for i := range 5000 {
			decide(t, l, fmt.Sprint(i), 1)
		}
		stats := l.Stats().Remote
		require.LessOrEqual(t, stats.Owed, 1000)
		require.EqualValues(t, 5005-stats.Owed, stats.Forgotten)
	})
	require.Zero(t, limiter(t, hour).Stats().Remote, "in this process nothing is remote")
}

// TestEachOfNearKeysIsOwedItsUnits uses as many keys in an outage as NearKeys says. The
// units of all of them reach the store.
func TestEachOfNearKeysIsOwedItsUnits(t *testing.T) {
	for _, keys := range []int{1, 2, 16, 140, 256, 1000, 8192} {
		remotely(t, Options{Limits: []Limit{hour}, NearKeys: keys}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			startOutage(t, backend, l, refused) // with five more keys
			key := func(i int) string { return fmt.Sprintf("198.51.%06d", i) }
			for i := range keys {
				require.True(t, decide(t, l, key(i), 2).Allowed)
			}
			require.Equal(t, keys+5, l.Stats().Remote.Owed)
			require.Zero(t, l.Stats().Remote.Forgotten)
			endOutage(t, backend, l)
			for i := range keys {
				require.EqualValues(t, 3, backend.remaining(t, key(i), hour))
			}
		})
	}
}

// TestStatsHoldNoKeys sends a flood of new keys. Only the numbers of the statistics
// change.
func TestStatsHoldNoKeys(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		for i := range 1000 {
			decide(t, l, fmt.Sprint(secret, i), 6)
		}
		require.NotContains(t, fmt.Sprintf("%+v", l.Stats()), secret)
	})
	s := memStore(t, MemoryOptions{MaxKeys: 100})
	for i := range 1000 {
		memTake(t, s, fmt.Sprint(secret, i), 6, hour)
	}
	require.NotContains(t, fmt.Sprintf("%+v", s.Stats()), secret)
}

// TestStatsCountEachDecision makes decisions of every kind from many goroutines, on each
// kind of store, across reloads.
func TestStatsCountEachDecision(t *testing.T) {
	gold := []Limit{Unlimited}
	for name, store := range map[string]func(*testing.T) Store{
		"memory": func(t *testing.T) Store { return memory(t, "a") }, "wrapped": func(t *testing.T) Store { return &wrapper{memory(t, "b")} },
		"Redis": func(t *testing.T) Store { return redisStore(t, newMini(t).client(t), "rl:") }, "failing": func(t *testing.T) Store { return &remoteBackend{Store: memory(t, "c"), mode: refused} },
	} {
		t.Run(name, func(t *testing.T) {
			var reg Registry
			defer reg.Close()
			opts := quiet(FixedWindow(50, time.Hour))
			opts.Store, opts.Timeout = store(t), time.Minute
			opts.LimitsFor = func(r *http.Request) []Limit {
				return map[string][]Limit{"gold": gold, "bad": {Deny}, "two": {FixedWindow(40, time.Hour), SlidingWindow(9, time.Minute)}}[r.Header.Get("Plan")]
			}
			l, err := reg.New("x", opts)
			require.NoError(t, err)
			var allowed, denied atomic.Uint64
			countDecision := func(ok bool) {
				if ok {
					allowed.Add(1)
				} else {
					denied.Add(1)
				}
			}
			for range 3 {
				var all sync.WaitGroup
				h := l.Middleware(httpServed)
				for range 4 {
					all.Go(func() {
						for i := range 25 {
							d, err := l.TakeN(ctx, "key", 1+int64(i%3))
							assert.NoError(t, err)
							countDecision(d.Allowed)
							l.TakeN(ctx, "key", 0) // a look
							d, err = l.TakeLimits(ctx, "key", 1, gold...)
							assert.NoError(t, err)
							countDecision(d.Allowed)
							granted, _, err := l.TakeUpTo(ctx, "key", 3)
							assert.NoError(t, err)
							countDecision(granted > 0)
							for _, plan := range []string{"", "gold", "bad", "two"} {
								w := httptest.NewRecorder()
								h.ServeHTTP(w, httpRequest("GET", "Plan: "+plan))
								countDecision(w.Code == 204)
							}
							_, err = l.Take(ctx, "")
							assert.Error(t, err)
						}
					})
				}
				all.Wait()
				stats := l.Stats()
				assert.Equal(t, allowed.Load(), stats.Allowed)
				assert.Equal(t, denied.Load(), stats.Denied)
				require.NoError(t, reg.Reload(func(next *Registry) (err error) {
					l, err = next.New("x", opts)
					return err
				}))
			}
			assert.Equal(t, allowed.Load()+denied.Load(), l.Stats().Allowed+l.Stats().Denied, "a Reload goes on with the counts")
			require.NoError(t, l.Close())
			l, err = reg.New("x", opts)
			require.NoError(t, err)
			assert.Zero(t, l.Stats().Allowed+l.Stats().Denied, "a new limiter begins with none")
		})
	}
}
