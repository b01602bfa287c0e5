package ratelimit_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestProbesTakeNothing: the calls that look whether a silent store is back cost no
// units, and debts are not lost on them.
func TestProbesTakeNothing(t *testing.T) {
	remotely(t, Options{Limits: []Limit{FixedWindow(100, time.Hour)}}, func(t *testing.T, far *farStore, l *Limiter) {
		breakDown(t, far, l, silent)
		unknown := far.unknown.Load()
		for range 50 {
			require.True(t, decide(t, l, "key", 1).Allowed)
			time.Sleep(300 * time.Millisecond)
		}
		require.Equal(t, unknown, far.unknown.Load())
		require.Greater(t, l.Stats().Remote.Failures, uint64(10), "it was looked")
		for i := range 10 {
			decide(t, l, fmt.Sprint("new ", i), 7)
			time.Sleep(1100 * time.Millisecond)
		}
		require.Greater(t, l.Stats().Remote.Failures, uint64(20))
		comeBack(t, far, l)
		require.EqualValues(t, 50, far.there(t, "key", FixedWindow(100, time.Hour)))
		for i := range 10 {
			require.EqualValues(t, 93, far.there(t, fmt.Sprint("new ", i), FixedWindow(100, time.Hour)))
		}
	})
}

// TestToldOnce: what the store was told without an answer it is not told again.
func TestToldOnce(t *testing.T) {
	limits := []Limit{FixedWindow(100, time.Hour), TokenBucket(100, 1000*time.Hour, 100)}
	remotely(t, Options{Limits: limits}, func(t *testing.T, far *farStore, l *Limiter) {
		breakDown(t, far, l, refused)
		decide(t, l, "key", 30)
		far.set(adjustsLost)
		time.Sleep(time.Second)
		decide(t, l, "key", 0)
		time.Sleep(time.Minute)
		comeBack(t, far, l)
		require.EqualValues(t, 70, far.there(t, "key", limits[0]))
		require.EqualValues(t, 70, far.there(t, "key", limits[1]), "and the rest is told all the same")
	})
}

// TestUnknownFate: a take that was sent and not answered is neither sent nor charged again.
func TestUnknownFate(t *testing.T) {
	for m, want := range map[mode]int64{silent: 5, lost: 3} {
		remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, far *farStore, l *Limiter) {
			far.set(m)
			d := decide(t, l, "key", 2)
			require.True(t, d.Allowed)
			require.Equal(t, SourceFallback, d.Source)
			require.EqualValues(t, 3, d.Remaining)
			require.EqualValues(t, 1, far.calls.Load())
			require.Zero(t, l.Stats().Remote.Owed)
			comeBack(t, far, l)
			require.Equal(t, want, far.there(t, "key", hour))
			require.Zero(t, far.adjusted.Load())
		})
	}
}

// TestRefundInAnOutage: units given back meanwhile are given back to the store afterwards.
func TestRefundInAnOutage(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, far *farStore, l *Limiter) {
		decide(t, l, "key", 5)
		require.False(t, decide(t, l, "key", 1).Allowed)
		breakDown(t, far, l, refused)
		require.NoError(t, l.Refund(ctx, "key", 3))
		require.True(t, decide(t, l, "key", 1).Allowed)
		require.EqualValues(t, 2, decide(t, l, "key", 0).Remaining)
		comeBack(t, far, l)
		require.EqualValues(t, 2, far.there(t, "key", hour))
	})
	// Where there is no saying whether it was done, whoever asked is told.
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, far *farStore, l *Limiter) {
		decide(t, l, "key", 5)
		far.set(lost)
		require.ErrorIs(t, l.Refund(ctx, "key", 1), context.DeadlineExceeded)
		comeBack(t, far, l)
		require.EqualValues(t, 1, far.there(t, "key", hour))
	})
}

// TestProcessesInAnOutage: n processes admit at most n times the limit of a key that they
// knew nothing of, and of one that all of them knew what was left of it, each.
func TestProcessesInAnOutage(t *testing.T) {
	const processes = 3
	synctest.Test(t, func(t *testing.T) {
		backend := memory(t, "far")
		var far []*farStore
		var all []*Limiter
		for range processes {
			f := &farStore{Store: backend}
			far, all = append(far, f), append(all, processOf(t, f, Options{Limits: []Limit{hour}}))
		}
		decide(t, all[0], "half", 3)
		decide(t, all[0], "blocked", 5)
		for i, l := range all {
			decide(t, l, "half", 0)
			decide(t, l, "blocked", 1)
			breakDown(t, far[i], l, refused)
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
			comeBack(t, far[i], l)
		}
		for _, l := range all {
			for _, key := range []string{"new", "half", "blocked"} {
				require.False(t, decide(t, l, key, 1).Allowed, "the store knows of all of it")
			}
		}
	})
}

// TestLongKeys: a key that is too long to be kept is limited like any other.
func TestLongKeys(t *testing.T) {
	for _, length := range []int{512, 513, 1 << 20} {
		remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, far *farStore, l *Limiter) {
			key, other := strings.Repeat("x", length), strings.Repeat("x", length-1)+"y"
			decide(t, l, key, 5)
			breakDown(t, far, l, refused)
			require.False(t, decide(t, l, key, 1).Allowed)
			require.True(t, decide(t, l, other, 3).Allowed)
			require.False(t, decide(t, l, other, 3).Allowed)
			far.set(up)
			time.Sleep(2 * time.Second)
			decide(t, l, other, 0)
			synctest.Wait()
			require.Zero(t, l.Stats().Remote.Owed)
			require.EqualValues(t, 2, far.there(t, other, hour))
			require.False(t, decide(t, l, other, 3).Allowed)
			require.Zero(t, l.Stats().Remote.Forgotten)
		})
	}
}

// TestFloodInAnOutage: new keys do not free one that is blocked, and memory is bounded.
func TestFloodInAnOutage(t *testing.T) {
	for _, n := range []int64{1, 5} { // of 1, the flood's keys are all blocked themselves
		remotely(t, Options{Limits: []Limit{FixedWindow(n, time.Hour)}, NearKeys: 6400}, func(t *testing.T, far *farStore, l *Limiter) {
			decide(t, l, "blocked", n)
			decide(t, l, "blocked", 1)
			breakDown(t, far, l, refused)
			for i := range 100_000 {
				decide(t, l, fmt.Sprint(i), 1)
				if i%100 == 0 {
					require.False(t, decide(t, l, "blocked", 1).Allowed, i)
				}
			}
			stats := l.Stats().Remote
			require.LessOrEqual(t, stats.Owed, 6400)
			require.GreaterOrEqual(t, stats.Forgotten, uint64(100_000-6400))
			comeBack(t, far, l)
		})
	}
}

// TestBusyKeyGoesBack: a key that is in use all the time goes back to the store too, and what
// was taken meanwhile is in it.
func TestBusyKeyGoesBack(t *testing.T) {
	limit := FixedWindow(1_000_000, time.Hour)
	remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, far *farStore, l *Limiter) {
		far.delay(3 * time.Millisecond)
		breakDown(t, far, l, refused)
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
		far.set(up)
		time.Sleep(1200 * time.Millisecond)
		before := l.Stats().Remote.Fallback
		atStore.Store(0)
		time.Sleep(time.Second)
		require.Equal(t, before, l.Stats().Remote.Fallback, "none of them is decided here any more")
		require.NotZero(t, atStore.Load())
		close(done)
		time.Sleep(time.Second)
		require.Equal(t, 1_000_000-admitted.Load(), far.there(t, "key", limit))
	})
}

// TestKeyThatCannotBeTold: a key with something else in its place keeps its debts, bothers
// the store now and then, and holds nobody else up.
func TestKeyThatCannotBeTold(t *testing.T) {
	remotely(t, Options{Limits: []Limit{FixedWindow(100, time.Hour)}}, func(t *testing.T, far *farStore, l *Limiter) {
		breakDown(t, far, l, refused)
		for i := range 40 {
			decide(t, l, fmt.Sprint(i), 1)
		}
		decide(t, l, "junk", 30)
		far.setFor("junk", junk)
		time.Sleep(2 * time.Second)
		decide(t, l, "0", 0)
		synctest.Wait()
		decide(t, l, "0", 0)
		time.Sleep(time.Second)
		require.Equal(t, 1, l.Stats().Remote.Owed)
		adjusted := far.adjusted.Load()
		for range 1000 {
			decide(t, l, "other", 0)
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		require.InDelta(t, 10, far.adjusted.Load()-adjusted, 2)
		require.False(t, l.Stats().Remote.BreakerOpen)
		require.Equal(t, SourceFallback, decide(t, l, "junk", 30).Source)
		comeBack(t, far, l)
		require.EqualValues(t, 40, far.there(t, "junk", FixedWindow(100, time.Hour)))
	})
}
