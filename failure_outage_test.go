package ratelimit_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestFallbackContinuesFromWhatIsKnown checks a blocked key and a half-used key
// in an outage. Afterwards the store receives the admitted units that still
// count.
func TestFallbackContinuesFromWhatIsKnown(t *testing.T) {
	for _, limit := range algorithms(6, time.Hour) {
		for _, m := range []mode{refused, silent} {
			t.Run(fmt.Sprint(limit.Algorithm(), m), func(t *testing.T) {
				remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
					decide(t, l, "blocked", 6)
					decide(t, l, "half", 3)
					startOutage(t, backend, l, m)
					for range 5 { // also after the time for a recheck
						time.Sleep(time.Second)
						require.False(t, decide(t, l, "blocked", 1).Allowed)
					}
					for i := range 5 {
						d := decide(t, l, "half", 1)
						require.Equal(t, i < 3, d.Allowed)
						require.Equal(t, SourceFallback, d.Source)
						require.EqualValues(t, max(0, 2-i), d.Remaining)
					}
					require.EqualValues(t, 3, backend.remaining(t, "half", limit))
					require.EqualValues(t, 6, decide(t, l, "unknown", 0).Remaining)
					endOutage(t, backend, l)
					require.Zero(t, backend.remaining(t, "half", limit))
					require.False(t, decide(t, l, "half", 1).Allowed)
					require.False(t, decide(t, l, "blocked", 1).Allowed)
				})
			})
		}
	}
}

func TestRaisedLimitEndsDenialsInAnOutage(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}, DenyRecheck: -1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		decide(t, l, "key", 5)
		require.False(t, decide(t, l, "key", 1).Allowed)
		require.NoError(t, l.SetLimits(FixedWindow(10, time.Hour)))
		backend.set(refused)
		for range 5 {
			require.True(t, decide(t, l, "key", 1).Allowed)
		}
		require.False(t, decide(t, l, "key", 1).Allowed)
		endOutage(t, backend, l)
		require.Zero(t, backend.remaining(t, "key", FixedWindow(10, time.Hour)))
	})
}

// TestRefundInAnOutageReachesTheStore also checks a refund of which nobody
// knows whether the store has applied it. It is an error.
func TestRefundInAnOutageReachesTheStore(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		decide(t, l, "key", 5)
		require.False(t, decide(t, l, "key", 1).Allowed)
		startOutage(t, backend, l, refused)
		require.NoError(t, l.Refund(ctx, "key", 3))
		require.True(t, decide(t, l, "key", 1).Allowed)
		require.EqualValues(t, 2, decide(t, l, "key", 0).Remaining)
		endOutage(t, backend, l)
		require.EqualValues(t, 2, backend.remaining(t, "key", hour))
	})
	// If nobody knows whether the store has applied the refund, the caller gets an error.
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		decide(t, l, "key", 5)
		backend.set(lost)
		require.ErrorIs(t, l.Refund(ctx, "key", 1), context.DeadlineExceeded)
		endOutage(t, backend, l)
		require.EqualValues(t, 1, backend.remaining(t, "key", hour))
	})
}

// TestEachProcessHasTheLimitInAnOutage runs three processes. Each one admits
// the limit of a key that it does not know, and what was left of a key that it
// knows.
func TestEachProcessHasTheLimitInAnOutage(t *testing.T) {
	const processes = 3
	synctest.Test(t, func(t *testing.T) {
		shared := memory(t, "backend")
		var backends []*remoteBackend
		var all []*Limiter
		for range processes {
			f := &remoteBackend{Store: shared}
			backends, all = append(backends, f), append(all, processOf(t, f, Options{Limits: []Limit{hour}}))
		}
		decide(t, all[0], "half", 3)
		decide(t, all[0], "blocked", 5)
		for i, l := range all {
			decide(t, l, "half", 0)
			decide(t, l, "blocked", 1)
			startOutage(t, backends[i], l, refused)
		}
		admitted := map[string]int{}
		for range 10 {
			for _, l := range all {
				for _, key := range []string{"new", "half", "blocked"} {
					if decide(t, l, key, 1).Allowed {
						admitted[key]++
					}
				}
			}
		}
		require.Equal(t, map[string]int{"new": processes * 5, "half": processes * 2}, admitted)
		for i, l := range all {
			endOutage(t, backends[i], l)
		}
		for _, l := range all {
			for _, key := range []string{"new", "half", "blocked"} {
				require.False(t, decide(t, l, key, 1).Allowed, "the store knows of all of it")
			}
		}
	})
}

// TestLongKeysAreLimitedInAnOutage uses keys that are too long to be kept.
func TestLongKeysAreLimitedInAnOutage(t *testing.T) {
	for _, length := range []int{512, 513, 1 << 20} {
		remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			key, other := strings.Repeat("x", length), strings.Repeat("x", length-1)+"y"
			decide(t, l, key, 5)
			startOutage(t, backend, l, refused)
			require.False(t, decide(t, l, key, 1).Allowed)
			require.True(t, decide(t, l, other, 3).Allowed)
			require.False(t, decide(t, l, other, 3).Allowed)
			backend.set(up)
			time.Sleep(2 * time.Second)
			decide(t, l, other, 0)
			synctest.Wait()
			require.Zero(t, l.Stats().Remote.Owed)
			require.EqualValues(t, 2, backend.remaining(t, other, hour))
			require.False(t, decide(t, l, other, 3).Allowed)
			require.Zero(t, l.Stats().Remote.Forgotten)
		})
	}
}

// TestFloodInAnOutageUnlocksNoKey also checks that memory is bounded.
func TestFloodInAnOutageUnlocksNoKey(t *testing.T) {
	for _, n := range []int64{1, 5} { // of 1, the flood's keys are all blocked themselves
		remotely(t, Options{Limits: []Limit{FixedWindow(n, time.Hour)}, NearKeys: 6400}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			decide(t, l, "blocked", n)
			decide(t, l, "blocked", 1)
			startOutage(t, backend, l, refused)
			for i := range 100_000 {
				decide(t, l, fmt.Sprint(i), 1)
				if i%100 == 0 {
					require.False(t, decide(t, l, "blocked", 1).Allowed, i)
				}
			}
			stats := l.Stats().Remote
			require.LessOrEqual(t, stats.Owed, 2*6400)
			require.GreaterOrEqual(t, stats.Forgotten, uint64(100_000-2*6400))
			endOutage(t, backend, l)
		})
	}
}
