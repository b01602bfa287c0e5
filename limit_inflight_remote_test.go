package ratelimit_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// acquires takes holds of a key until one is denied, and returns how to release them.
func acquires(t *testing.T, l *Limiter, key string, most int) (release []func()) {
	t.Helper()
	for range most {
		end, d, err := l.Acquire(ctx, key)
		require.NoError(t, err)
		if !d.Allowed {
			break
		}
		release = append(release, end)
	}
	return release
}

func releaseAll(release []func()) {
	for _, end := range release {
		end()
	}
	synctest.Wait()
}

// inFlight3 is the limit of these tests.
func inFlight3(onFailure FailurePolicy) Options {
	o := quiet(InFlight(3, 30*time.Second))
	o.OnFailure = onFailure
	return o
}

// TestHoldsInAnOutage: each process goes on with what it knows, and the store learns of the
// holds when it is back.
func TestHoldsInAnOutage(t *testing.T) {
	for name, m := range map[string]mode{"refused": refused, "silent": silent, "lost": lost} {
		t.Run(name, func(t *testing.T) {
			remotely(t, inFlight3(FallbackLocal), func(t *testing.T, backend *remoteBackend, l *Limiter) {
				otherBackend := &remoteBackend{Store: backend.Store}
				other := processOf(t, otherBackend, inFlight3(FallbackLocal))
				mine, theirs := acquires(t, l, "a", 1), acquires(t, other, "a", 1)
				_, err := l.LookKey(ctx, "a")
				require.NoError(t, err)

				backend.set(m)
				time.Sleep(200 * time.Millisecond)
				more := acquires(t, l, "a", 9)
				require.Len(t, more, 1, "one is the other's, as far as is known")
				unknown := 1 // to the store
				if m == lost {
					unknown = 0
				}
				require.Len(t, acquires(t, other, "a", 9), unknown)
				require.EqualValues(t, 2, l.Stats().InFlight)
				backend.set(up)
				time.Sleep(11 * time.Second)
				synctest.Wait()
				require.EqualValues(t, 3+unknown, backend.held(t, "a"), "the store knows all that run")
				require.Empty(t, acquires(t, l, "a", 9))
				require.Empty(t, acquires(t, other, "a", 9))

				releaseAll(mine)
				releaseAll(more)
				require.EqualValues(t, 1+unknown, backend.held(t, "a"))
				require.Len(t, acquires(t, l, "a", 9), 2-unknown)
				releaseAll(theirs)
			})
		})
	}
}

// TestHoldsAreRenewedByKey: holds of requests last as long as their process. Holds of Acquire
// end after hold. A process that does nothing keeps them.
func TestHoldsAreRenewedByKey(t *testing.T) {
	remotely(t, inFlight3(FailClosed), func(t *testing.T, backend *remoteBackend, l *Limiter) {
		w := newWorkshop(processOf(t, &remoteBackend{Store: backend.Store}, waitingFor(0, InFlight(3, 30*time.Second))), time.Hour)
		go w.request(ctx, "runs")
		acquires(t, l, "a", 2)
		calls := backend.holds.Load()
		time.Sleep(29 * time.Second)
		require.EqualValues(t, 3, backend.held(t, "a"))
		require.LessOrEqual(t, backend.holds.Load()-calls, int64(3), "one call renews all holds of a key")
		time.Sleep(2 * time.Second)
		require.EqualValues(t, 1, backend.held(t, "a"))
		require.Zero(t, l.Stats().InFlight)
		time.Sleep(time.Hour - time.Minute)
		require.EqualValues(t, 1, backend.held(t, "a"))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Zero(t, backend.held(t, "a"))
		calls = backend.holds.Load()
		time.Sleep(time.Hour)
		require.Equal(t, calls, backend.holds.Load(), "nobody renews what is not there")
	})
}

// TestHoldsOfAKilledProcessEnd end after hold, and not before.
func TestHoldsOfAKilledProcessEnd(t *testing.T) {
	remotely(t, inFlight3(FallbackLocal), func(t *testing.T, backend *remoteBackend, l *Limiter) {
		killed := &remoteBackend{Store: backend.Store}
		acquires(t, processOf(t, killed, inFlight3(FallbackLocal)), "a", 3)
		killed.set(silent) // it is heard of no more
		time.Sleep(29 * time.Second)
		require.Empty(t, acquires(t, l, "a", 1))
		time.Sleep(2 * time.Second)
		require.Len(t, acquires(t, l, "a", 9), 3)
	})
}

// TestLostReplyLeavesNoHold: a hold that the store has given to a call without a reply is given back.
func TestLostReplyLeavesNoHold(t *testing.T) {
	remotely(t, inFlight3(FailClosed), func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.set(lost)
		for range 2 {
			_, _, err := l.Acquire(ctx, "a")
			require.Error(t, err)
		}
		require.EqualValues(t, 2, backend.held(t, "a"))
		backend.set(up)
		time.Sleep(6 * time.Second) // a sixth of hold, and the breaker
		synctest.Wait()
		require.Zero(t, backend.held(t, "a"))
		require.Len(t, acquires(t, l, "a", 9), 3)
	})
}

// TestLostReleases: an end that could not be reported is reported again.
func TestLostReleases(t *testing.T) {
	for name, m := range map[string]mode{"refused": refused, "silent": silent, "lost": lost, "panics": panics} {
		t.Run(name, func(t *testing.T) {
			remotely(t, inFlight3(FailClosed), func(t *testing.T, backend *remoteBackend, l *Limiter) {
				held := acquires(t, l, "a", 3)
				backend.set(m)
				releaseAll(held)
				time.Sleep(6 * time.Second)
				backend.set(up)
				time.Sleep(6 * time.Second)
				synctest.Wait()
				require.Zero(t, backend.held(t, "a"))
			})
		})
	}
}

// TestHoldsOnStoresThatForget: the holds that run are reported to a store that has lost its data.
func TestHoldsOnStoresThatForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &heldWrapper{inside: memory(t, "first")}
		backend := &remoteBackend{Store: server}
		l := processOf(t, backend, inFlight3(FallbackLocal))
		held := acquires(t, l, "a", 2)
		server.swap(memory(t, "second"))
		require.Zero(t, backend.held(t, "a"))
		time.Sleep(11 * time.Second)
		synctest.Wait()
		require.EqualValues(t, 2, backend.held(t, "a"))
		require.Len(t, acquires(t, l, "a", 9), 1)
		releaseAll(held)
		require.EqualValues(t, 1, backend.held(t, "a"))
	})
}

// TestFailOpenHasNoHolds: FailOpen admits without holds, FailClosed returns the error.
func TestFailOpenHasNoHolds(t *testing.T) {
	remotely(t, inFlight3(FailOpen), func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.set(refused)
		require.Len(t, acquires(t, l, "a", 9), 9)
		require.Zero(t, l.Stats().InFlight)
		backend.set(up)
		time.Sleep(2 * time.Second)
		require.Len(t, acquires(t, l, "a", 9), 3)
	})
	remotely(t, inFlight3(FailClosed), func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.set(refused)
		release, _, err := l.Acquire(ctx, "a")
		require.ErrorIs(t, err, errBackendRefused)
		require.NotNil(t, release)
	})
}

// TestHoldAndUnitsTogether: neither is taken without the other, at the store and in an outage.
func TestHoldAndUnitsTogether(t *testing.T) {
	for _, policy := range []FailurePolicy{FailClosed, FallbackLocal} {
		o := quiet(FixedWindow(4, time.Hour), InFlight(2, 30*time.Second))
		o.OnFailure = policy
		remotely(t, o, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			if policy == FallbackLocal {
				backend.set(refused)
				for i := range 5 {
					releaseAll(acquires(t, l, fmt.Sprint("breaks down ", i), 1))
				}
				require.True(t, l.Stats().Remote.BreakerOpen)
			}
			left := func() (units, holds int64) {
				standings, err := l.LookKey(ctx, "a")
				require.NoError(t, err)
				return standings[0].Remaining, standings[1].Remaining
			}
			sees := func(units, holds int64) {
				t.Helper()
				u, h := left()
				require.Equal(t, []int64{units, holds}, []int64{u, h})
			}
			sees(4, 2)
			held := acquires(t, l, "a", 9)
			require.Len(t, held, 2)
			sees(2, 0)
			_, d, err := l.Acquire(ctx, "a")
			require.NoError(t, err)
			require.Equal(t, "l-inflight", d.Policy)
			sees(2, 0)
			releaseAll(held)
			sees(2, 2)
			releaseAll(acquires(t, l, "a", 9))
			sees(0, 2)
			_, d, err = l.Acquire(ctx, "a")
			require.NoError(t, err)
			require.False(t, d.Allowed)
			require.Equal(t, "l-1h", d.Policy)
			require.Equal(t, time.Hour, d.RetryAfter.Round(time.Minute))
			sees(0, 2)
			if policy == FallbackLocal {
				endOutage(t, backend, l)
				sees(0, 2)
			}
		})
	}
}

// TestHoldsAcrossReload: holds go on, and the new generation reports the ends.
func TestHoldsAcrossReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		r := new(Registry)
		build := func(r *Registry) error {
			o := inFlight3(FallbackLocal)
			o.Store = backend
			_, err := r.New("l", o)
			return err
		}
		require.NoError(t, r.Reload(build))
		old, _ := r.Lookup("l")
		held := acquires(t, old, "a", 2)
		require.NoError(t, r.Reload(build))
		l, _ := r.Lookup("l")
		t.Cleanup(func() { l.Close() })
		require.EqualValues(t, 2, l.Stats().InFlight)
		require.Len(t, acquires(t, l, "a", 9), 1)
		time.Sleep(20 * time.Second)
		releaseAll(held)
		require.EqualValues(t, 1, backend.held(t, "a"))
		require.EqualValues(t, 1, l.Stats().InFlight)
		require.NoError(t, l.Close())
		require.Zero(t, backend.held(t, "a"), "Close ends what Acquire has given out")
		require.Zero(t, l.Stats().InFlight)
		_, _, err := l.Acquire(ctx, "a")
		require.True(t, errors.Is(err, ErrClosed))
	})
}

// TestReportsWhileStoreAndLoggerPanic: a store panics when the ends of holds are reported, and so
// does the logger when it gets that. The ends are reported when the store works again.
func TestReportsWhileStoreAndLoggerPanic(t *testing.T) {
	o, log := inFlight3(FailClosed), &logged{panics: panicAt(CodeStoreFailed)}
	o.Logger = log.logger()
	remotely(t, o, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		held := acquires(t, l, "a", 3)
		backend.set(panics)
		releaseAll(held)
		require.Contains(t, log.text(), "panic: a bug")
		backend.set(up)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		require.Zero(t, backend.held(t, "a"))
	})
}
