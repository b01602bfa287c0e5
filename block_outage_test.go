package ratelimit_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// These tests are about blocks while a remote store fails, and about blocks that the store
// is owed.

// TestBlockedKeyStaysBlockedInAnOutage: under each policy, to the end of the block. With
// FailOpen, one request in each DenyRecheck asks the store and is admitted.
func TestBlockedKeyStaysBlockedInAnOutage(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		for _, m := range []mode{refused, silent, lost} {
			for _, recheck := range []time.Duration{-1, time.Second} {
				t.Run(fmt.Sprint(policy, m, recheck), func(t *testing.T) {
					limit := FixedWindow(3, time.Minute).Block(time.Hour)
					opts := Options{Limits: []Limit{limit}, OnFailure: policy, DenyRecheck: recheck}
					remotely(t, opts, func(t *testing.T, backend *remoteBackend, l *Limiter) {
						took(t, l, "key", 3)
						blockedFor(t, l, "key", time.Hour)
						start := time.Now()
						backend.set(m)
						for i := range 5 {
							l.Take(ctx, fmt.Sprint("breaks down ", i))
						}
						require.True(t, l.Stats().Remote.BreakerOpen)
						rechecks := 0
						for time.Since(start) < 59*time.Minute {
							time.Sleep(time.Minute)
							for range 3 {
								d, err := l.Take(ctx, "key")
								if err != nil || d.Allowed {
									rechecks++
									continue
								}
								require.True(t, d.Blocked)
								require.Equal(t, time.Hour-time.Since(start), d.RetryAfter)
							}
						}
						if recheck < 0 || policy == FallbackLocal {
							require.Zero(t, rechecks)
						} else {
							require.LessOrEqual(t, rechecks, 60)
						}
						time.Sleep(time.Hour - time.Since(start))
						d, err := l.Take(ctx, "key")
						require.Equal(t, policy != FailClosed, err == nil && d.Allowed)
						backend.set(up)
						time.Sleep(5 * time.Second)
					})
				})
			}
		}
	}
}

// TestBlockThatBeginsInAnOutageReachesTheStore: with its end and its rung, whatever happens to
// the limiter in the meantime, and also if the window is over by then.
func TestBlockThatBeginsInAnOutageReachesTheStore(t *testing.T) {
	for _, m := range []mode{refused, silent, lost} {
		for _, algorithm := range algorithms(3, time.Minute) {
			for _, outage := range []time.Duration{5 * time.Second, 10 * time.Minute, 59 * time.Minute} {
				for _, end := range []string{"comes back", "reload", "close"} {
					t.Run(fmt.Sprint(m, algorithm.Algorithm(), outage, end), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { owedBlock(t, m, algorithm.Block(time.Hour, 3*time.Hour, day), outage, end) })
					})
				}
			}
		}
	}
}

func owedBlock(t *testing.T, m mode, limit Limit, outage time.Duration, end string) {
	backend := &remoteBackend{Store: memory(t, "backend")}
	reg := new(Registry)
	defer reg.Close()
	var seen recorder
	var l *Limiter
	reload := func() {
		require.NoError(t, reg.Reload(func(next *Registry) (err error) {
			l, err = next.New("l", Options{Limits: []Limit{limit}, Store: backend, Logger: quietly, Observe: seen.observe})
			return err
		}))
	}
	reload()
	startOutage(t, backend, l, m)
	took(t, l, "key", 3)
	start := time.Now()
	blockedFor(t, l, "key", time.Hour)
	d := decide(t, l, "key", 1)
	require.Equal(t, time.Hour, d.RetryAfter)
	began := seen.of(EventBlocked)
	require.Len(t, began, 1)
	require.Equal(t, time.Hour, began[0].Duration)
	require.Equal(t, SourceFallback, began[0].Decision.Source)

	time.Sleep(outage)
	if end == "reload" {
		reload()
		require.True(t, decide(t, l, "key", 1).Blocked)
	}
	backend.set(up)
	if end == "close" {
		time.Sleep(1100 * time.Millisecond) // the breaker allows a call
		require.NoError(t, reg.Close())
		synctest.Wait()
	} else {
		endOutage(t, backend, l)
	}
	left := time.Hour - time.Since(start)
	require.Equal(t, left, backend.blocked(t, "key", limit), "with its end")
	require.EqualValues(t, 1, backend.blocks.Load(), "it was sent once")

	other := processOf(t, &remoteBackend{Store: backend.Store}, Options{Limits: []Limit{limit}})
	blockedFor(t, other, "key", left)
	time.Sleep(left)
	took(t, other, "key", 3)
	blockedFor(t, other, "key", 3*time.Hour) // with its rung
}

// TestBlockThatIsOverStillBringsItsRung: the store comes back after the end of a block.
func TestBlockThatIsOverStillBringsItsRung(t *testing.T) {
	limit := FixedWindow(3, time.Minute).Block(time.Hour, 3*time.Hour, day)
	for _, tc := range []struct {
		after time.Duration // the end of the block
		next  time.Duration
	}{{time.Minute, 3 * time.Hour}, {23 * time.Hour, 3 * time.Hour}, {25 * time.Hour, time.Hour}} {
		remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			startOutage(t, backend, l, refused)
			took(t, l, "key", 3)
			blockedFor(t, l, "key", time.Hour)
			time.Sleep(time.Hour + tc.after)
			endOutage(t, backend, l)
			require.Zero(t, backend.blocked(t, "key", limit))
			other := processOf(t, &remoteBackend{Store: backend.Store}, Options{Limits: []Limit{limit}})
			took(t, other, "key", 3)
			blockedFor(t, other, "key", tc.next)
			require.True(t, decide(t, l, "key", 1).Blocked)
		})
	}
}

// TestLadderGoesOnInAnOutage: from the rung that the store has reported, and the store goes
// on from there.
func TestLadderGoesOnInAnOutage(t *testing.T) {
	limit := FixedWindow(2, time.Minute).Block(time.Hour, 2*time.Hour, 3*time.Hour, 4*time.Hour)
	for _, m := range []mode{refused, silent} {
		remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			took(t, l, "key", 2)
			blockedFor(t, l, "key", time.Hour)
			startOutage(t, backend, l, m)
			time.Sleep(2 * time.Hour)
			for _, rung := range []time.Duration{2 * time.Hour, 3 * time.Hour} {
				took(t, l, "key", 2)
				blockedFor(t, l, "key", rung)
				time.Sleep(rung)
			}
			endOutage(t, backend, l)
			took(t, l, "key", 2)
			blockedFor(t, l, "key", 4*time.Hour)
		})
	}
}

// TestDenialWithoutAReplyIsOneBlock: the store may have started a block whose reply is lost.
// This process starts it, too, and sends it until the store has it. All of these are one
// block, with one rung.
func TestDenialWithoutAReplyIsOneBlock(t *testing.T) {
	limit := FixedWindow(2, time.Minute).Block(time.Hour, 2*time.Hour, day)
	for _, m := range []mode{lost, silent} {
		var seen recorder
		remotely(t, Options{Limits: []Limit{limit}, Observe: seen.observe}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			for _, rung := range []time.Duration{time.Hour, 2 * time.Hour, day} {
				took(t, l, "key", 2)
				backend.set(m)
				calls := backend.calls.Load()
				d := decide(t, l, "key", 1)
				ends := time.Now().Add(rung)
				require.False(t, d.Allowed)
				require.True(t, d.Blocked)
				require.Equal(t, SourceFallback, d.Source)
				require.Equal(t, rung, d.RetryAfter)
				require.Equal(t, calls+1, backend.calls.Load())
				for range 10 {
					wait := decide(t, l, "key", 1).RetryAfter
					require.Equal(t, time.Until(ends), wait)
				}
				require.Len(t, seen.of(EventBlocked), 1)
				seen.all()
				backend.set(up)
				time.Sleep(6 * time.Second) // the call that settles the key ends after five
				endOutage(t, backend, l)
				left := backend.blocked(t, "key", limit)
				require.InDelta(t, time.Until(ends), left, float64(100*time.Millisecond))
				time.Sleep(rung)
			}
		})
	}
	// If the reply to an owed block is lost, it is not sent again, and nothing escalates.
	remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		took(t, l, "key", 2)
		blockedFor(t, l, "key", time.Hour)
		backend.set(lost)
		time.Sleep(2 * time.Second)
		backend.set(adjustsLost)
		time.Sleep(time.Minute)
		endOutage(t, backend, l)
		require.EqualValues(t, 1, backend.blocks.Load())
		time.Sleep(time.Hour)
		took(t, l, "key", 2)
		blockedFor(t, l, "key", 2*time.Hour)
	})
}

// TestBlocksOfSeveralLimitsInAnOutage: each limit that denies and has Block starts its own,
// and the store gets each.
func TestBlocksOfSeveralLimitsInAnOutage(t *testing.T) {
	limits := []Limit{
		FixedWindow(2, time.Second).Block(time.Minute, time.Hour).Named("second"),
		FixedWindow(30, day).Named("day"),
		SlidingWindow(2, 2*time.Second).Block(2 * time.Minute).Named("two"),
		TokenBucket(100, time.Second, 100).Block(time.Hour).Named("bucket"),
	}
	var seen recorder
	remotely(t, Options{Limits: limits, Observe: seen.observe}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		took(t, l, "key", 2)
		blockedFor(t, l, "key", 2*time.Minute)
		began := seen.of(EventBlocked)
		require.Len(t, began, 1)
		require.Equal(t, "two", began[0].Policy)
		require.Equal(t, 2*time.Minute, began[0].Duration)
		require.Equal(t, "two", decide(t, l, "key", 1).Policy)
		d := decide(t, l, "key", 101)
		require.Equal(t, Never, d.RetryAfter)
		endOutage(t, backend, l)
		passed := 1300 * time.Millisecond
		for i, want := range []time.Duration{time.Minute, 0, 2 * time.Minute, 0} {
			require.Equal(t, max(0, want-passed), backend.blocked(t, "key", limits[i]), limits[i].Name())
		}
		require.EqualValues(t, 28, backend.remaining(t, "key", limits[1:2]...), "denials count nowhere")
		other := processOf(t, &remoteBackend{Store: backend.Store}, Options{Limits: limits})
		blockedFor(t, other, "key", 2*time.Minute-passed)
	})
}

// TestTakeUpToInAnOutageAndBlocks: as many units as fit are taken; a denial starts a block.
func TestTakeUpToInAnOutageAndBlocks(t *testing.T) {
	limit := FixedWindow(5, time.Minute).Block(time.Hour)
	synctest.Test(t, func(t *testing.T) {
		backend := &sharedBackend{remoteBackend: &remoteBackend{Store: memory(t, "backend")}}
		l := processOf(t, backend, Options{Limits: []Limit{limit}})
		startOutage(t, backend.remoteBackend, l, refused)
		for _, want := range []struct {
			granted int64
			wait    time.Duration
		}{{5, 0}, {0, time.Hour}, {0, time.Hour}} {
			granted, d, err := l.TakeUpTo(ctx, "key", 7)
			require.NoError(t, err)
			require.Equal(t, want.granted, granted)
			require.Equal(t, want.wait > 0, d.Blocked)
			require.Equal(t, want.wait, d.RetryAfter)
		}
		endOutage(t, backend.remoteBackend, l)
		require.NotZero(t, backend.blocked(t, "key", limit))
	})
}

// TestCostThatNeverFitsStartsNoBlockInAnOutage: also if another limit denies it for a time.
func TestCostThatNeverFitsStartsNoBlockInAnOutage(t *testing.T) {
	limits := []Limit{FixedWindow(5, time.Minute).Block(day), FixedWindow(10, time.Hour).Block(day)}
	remotely(t, Options{Limits: limits}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		for _, n := range []int64{6, 11} {
			took(t, l, "k", 1)
			d := decide(t, l, "k", n)
			require.Equal(t, Never, d.RetryAfter)
			require.False(t, d.Blocked)
		}
		took(t, l, "k", 3)
		endOutage(t, backend, l)
		require.Zero(t, backend.blocked(t, "k", limits[0]))
	})
}

// TestBlockByHandInAnOutage: with FallbackLocal it takes effect at once, and reaches the store
// later. The later end holds, and Reset lifts it here. Under other policies it is an error.
func TestBlockByHandInAnOutage(t *testing.T) {
	limit := FixedWindow(5, time.Minute)
	remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		for _, lasts := range []time.Duration{time.Hour, time.Minute, 2 * time.Hour} {
			require.NoError(t, l.Block(ctx, "key", lasts))
			blockedFor(t, l, "key", max(time.Hour, lasts))
		}
		require.NoError(t, l.Block(ctx, "reset", time.Hour))
		require.Error(t, l.Reset(ctx, "reset"), "the store has not been reset")
		took(t, l, "reset", 1)
		require.NoError(t, l.Refund(ctx, "key", 5))
		blockedFor(t, l, "key", 2*time.Hour)
		endOutage(t, backend, l)
		require.Equal(t, 2*time.Hour-1300*time.Millisecond, backend.blocked(t, "key", limit))
		require.Zero(t, backend.blocked(t, "reset", limit))
		require.NoError(t, l.Reset(ctx, "key"))
		took(t, l, "key", 5)
	})
	for _, policy := range []FailurePolicy{FailOpen, FailClosed} {
		remotely(t, Options{Limits: []Limit{limit}, OnFailure: policy, DenyRecheck: -1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			backend.set(refused)
			require.ErrorContains(t, l.Block(ctx, "key", time.Hour), `ratelimit: limiter "l": `)
			blockedFor(t, l, "key", time.Hour) // in this process alone
			require.Zero(t, l.Stats().Remote.Owed)
			require.Zero(t, backend.blocked(t, "key", limit))
		})
	}
	// Nobody knows whether the store has it: it is sent until the store has answered. Block
	// returns within five seconds or the caller's time.
	remotely(t, Options{Limits: []Limit{limit}, DenyRecheck: -1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.set(lost)
		start := time.Now()
		c, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		require.NoError(t, l.Block(c, "key", time.Hour))
		require.NoError(t, l.Block(ctx, "key", time.Hour))
		require.Equal(t, 6*time.Second, time.Since(start))
		require.True(t, decide(t, l, "key", 1).Blocked)
		backend.set(up)
		time.Sleep(10 * time.Second)
		decide(t, l, "other", 0)
		time.Sleep(time.Second)
		require.Zero(t, l.Stats().Remote.Owed)
		require.InDelta(t, time.Hour, backend.blocked(t, "key", limit), float64(time.Minute))
	})
}

// TestResetInAnOutageForgetsOwedBlocks: what was reset is not sent later.
func TestResetInAnOutageForgetsOwedBlocks(t *testing.T) {
	limit := FixedWindow(2, time.Minute).Block(time.Hour, day)
	remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		took(t, l, "key", 2)
		blockedFor(t, l, "key", time.Hour)
		require.Error(t, l.Reset(ctx, "key"))
		took(t, l, "key", 1)
		endOutage(t, backend, l)
		require.Zero(t, backend.blocks.Load())
		took(t, l, "key", 1)
		blockedFor(t, l, "key", time.Hour)
	})
}

// TestBlockOfTheStoreIsJoined: the store has a longer block and a higher rung from
// another process. An owed block changes neither.
func TestBlockOfTheStoreIsJoined(t *testing.T) {
	limit := FixedWindow(2, time.Minute).Block(time.Hour, 5*time.Hour, day)
	remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		other := processOf(t, &remoteBackend{Store: backend.Store}, Options{Limits: []Limit{limit}})
		took(t, l, "key", 2)
		blockedFor(t, l, "key", time.Hour)
		took(t, other, "key", 2)
		blockedFor(t, other, "key", time.Hour)
		require.NoError(t, other.Reset(ctx, "key"))
		require.NoError(t, backend.Store.(KindStore).Block(ctx, "key", Block{Left: 5 * time.Hour, Rung: 2, Forget: day}, []Limit{limit}))
		endOutage(t, backend, l)
		left := 5*time.Hour - 1300*time.Millisecond
		require.Equal(t, left, backend.blocked(t, "key", limit))
		blockedFor(t, l, "key", left)
		time.Sleep(left)
		took(t, l, "key", 2)
		blockedFor(t, l, "key", day)
	})
}

// TestEachProcessBlocksOnceInAnOutage: processes that block a key without the store do not
// add up their rungs.
func TestEachProcessBlocksOnceInAnOutage(t *testing.T) {
	limit := FixedWindow(2, time.Minute).Block(time.Hour, 2*time.Hour, day)
	synctest.Test(t, func(t *testing.T) {
		shared := memory(t, "backend")
		var backends []*remoteBackend
		var all []*Limiter
		for range 3 {
			b := &remoteBackend{Store: shared}
			backends, all = append(backends, b), append(all, processOf(t, b, Options{Limits: []Limit{limit}}))
		}
		for i, l := range all {
			startOutage(t, backends[i], l, silent)
			took(t, l, "key", 2)
			blockedFor(t, l, "key", time.Hour)
		}
		for i, l := range all {
			endOutage(t, backends[i], l)
		}
		time.Sleep(time.Hour)
		took(t, all[0], "key", 2)
		blockedFor(t, all[1], "key", 2*time.Hour)
	})
}

// TestForeignValueAndBlocks: while something else is in the place of the counter, this
// process blocks the key, and the store gets the block when the value is gone.
func TestForeignValueAndBlocks(t *testing.T) {
	limit := FixedWindow(2, time.Minute).Block(time.Hour)
	remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.setFor("key", junk)
		took(t, l, "key", 2)
		blockedFor(t, l, "key", time.Hour)
		require.NoError(t, l.Block(ctx, "by hand", 2*time.Hour))
		require.Error(t, l.Block(ctx, "key", 2*time.Hour), "the operator must know")
		time.Sleep(time.Minute)
		require.True(t, decide(t, l, "key", 1).Blocked)
		require.False(t, l.Stats().Remote.BreakerOpen)
		endOutage(t, backend, l)
		decide(t, l, "key", 0)
		time.Sleep(time.Second)
		require.NotZero(t, backend.blocked(t, "key", limit))
	})
}
