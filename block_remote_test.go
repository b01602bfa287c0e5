package ratelimit_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// These tests are about blocks of limits that are counted outside of this process, while
// the store works. Outages are in block_outage_test.go, and Options.Count is in
// underway_remote_test.go.

// onEachRemote runs a test on a KindStore of another make and on Redis. Time passes in
// whole milliseconds, because fixed windows end on them at Redis.
func onEachRemote(t *testing.T, opts Options, test func(t *testing.T, l *Limiter)) {
	t.Run("KindStore", func(t *testing.T) {
		remotely(t, opts, func(t *testing.T, _ *remoteBackend, l *Limiter) { test(t, l) })
	})
	t.Run("Redis", func(t *testing.T) {
		needMiniredis(t)
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Until(time.Now().Truncate(time.Millisecond).Add(time.Millisecond)))
			test(t, processOf(t, redisStore(t, piped(t, miniredis.NewMiniRedis()), "rl:"), opts))
		})
	})
}

// TestLadderOfBlocksAtARemoteStore: each denial after a block uses the next duration, until
// the ladder is forgotten. Nothing that the client does extends a block.
func TestLadderOfBlocksAtARemoteStore(t *testing.T) {
	for _, algorithm := range algorithms(3, time.Minute) {
		for _, recheck := range []time.Duration{-1, 1, 0} {
			limit := algorithm.Block(time.Hour, 2*time.Hour, day)
			onEachRemote(t, Options{Limits: []Limit{limit}, DenyRecheck: recheck}, func(t *testing.T, l *Limiter) {
				for range 2 {
					for _, rung := range []time.Duration{time.Hour, 2 * time.Hour, day, day} {
						took(t, l, "k", 3)
						for i := range 10 {
							blockedFor(t, l, "k", rung*time.Duration(10-i)/10)
							time.Sleep(rung / 10)
						}
					}
					time.Sleep(day - time.Millisecond)
					took(t, l, "k", 3)
					blockedFor(t, l, "k", day)
					time.Sleep(2 * day)
				}
			})
		}
	}
}

// TestRemoteBlocksAgreeWithMemory makes the same random calls on a limiter in memory and on
// limiters of remote stores.
func TestRemoteBlocksAgreeWithMemory(t *testing.T) {
	for seed := range uint64(30) {
		for _, recheck := range []time.Duration{-1, 0} {
			onEachRemote(t, Options{Limits: []Limit{hour}, DenyRecheck: recheck}, func(t *testing.T, l *Limiter) {
				agreeOnBlocks(t, rand.New(rand.NewPCG(seed, 1)), l)
			})
		}
	}
}

func agreeOnBlocks(t *testing.T, r *rand.Rand, l *Limiter) {
	limits := []Limit{
		algorithms(3, time.Second)[r.IntN(3)].Block(time.Minute, time.Hour),
		algorithms(10, time.Hour)[r.IntN(3)],
		algorithms(8, time.Minute)[r.IntN(3)].Block(2*time.Minute, 2*time.Minute, 3*time.Hour),
	}[:1+r.IntN(3)]
	control := limiter(t, limits...)
	require.NoError(t, l.SetLimits(limits...))
	blocks := 0
	for i := range 300 {
		key := []string{"a", "b"}[r.IntN(2)]
		time.Sleep([]time.Duration{0, 0, 0, time.Millisecond, 500 * time.Millisecond, time.Second, time.Minute, time.Hour, 4 * time.Hour}[r.IntN(9)])
		switch r.IntN(24) {
		case 0:
			for _, l := range []*Limiter{control, l} {
				require.NoError(t, l.Reset(ctx, key))
			}
		case 1, 2:
			for _, l := range []*Limiter{control, l} {
				require.NoError(t, l.Refund(ctx, key, 2))
			}
		case 3:
			lasts := []time.Duration{time.Second, time.Minute, time.Hour}[r.IntN(3)]
			for _, l := range []*Limiter{control, l} {
				require.NoError(t, l.Block(ctx, key, lasts))
			}
		case 4, 5:
			granted, want, err := control.TakeUpTo(ctx, key, 4)
			require.NoError(t, err)
			if l.Info().Store == "remoteBackend" { // it has no TakeUpTo with Block
				_, err = l.TakeN(ctx, key, max(1, granted))
				require.NoError(t, err)
				continue
			}
			got, d, err := l.TakeUpTo(ctx, key, 4)
			require.NoError(t, err)
			require.Equal(t, granted, got, i)
			requireSameDecision(t, want, d, fmt.Sprint(i))
		default:
			n := []int64{0, 1, 1, 1, 1, 2, 3, 4, 100}[r.IntN(9)]
			want, got := decide(t, control, key, n), decide(t, l, key, n)
			requireSameDecision(t, want, got, fmt.Sprintf("call %d: %d units of %s under %v", i, n, key, limits))
			if want.Blocked {
				blocks++
			}
		}
	}
	require.NotZero(t, blocks)
}

// requireSameDecision compares decisions of two limiters. Waits of Redis are rounded up to
// a microsecond.
func requireSameDecision(t *testing.T, want, got Decision, what string) {
	t.Helper()
	got.Source, got.Policy = want.Source, want.Policy
	for _, d := range []*time.Duration{&want.RetryAfter, &want.MoreAfter, &want.ResetAfter, &got.RetryAfter, &got.MoreAfter, &got.ResetAfter} {
		if *d != Never {
			*d = (*d + time.Microsecond - 1) / time.Microsecond * time.Microsecond
		}
	}
	require.Equal(t, want, got, what)
}

// TestBlockIsAnsweredWithoutACall: during a block this process answers by itself, with the
// end of the block in all fields, and also for other costs.
func TestBlockIsAnsweredWithoutACall(t *testing.T) {
	for _, algorithm := range algorithms(2, time.Minute) {
		limit := algorithm.Block(time.Hour)
		remotely(t, Options{Limits: []Limit{limit}, DenyRecheck: -1, Key: StaticKey("key")}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			h := l.Middleware(httpServed)
			took(t, l, "key", 2)
			blockedFor(t, l, "key", time.Hour)
			calls := backend.calls.Load()
			for _, passed := range []time.Duration{0, 10 * time.Minute, 20 * time.Minute, 30*time.Minute - 1} {
				time.Sleep(passed)
				d := decide(t, l, "key", 1)
				require.True(t, d.Blocked)
				require.Equal(t, SourceCache, d.Source)
				for n, want := range map[int64]time.Duration{1: d.RetryAfter, 2: d.RetryAfter, 3: Never} {
					got := decide(t, l, "key", n)
					require.Equal(t, want, got.RetryAfter, "%d units", n)
					require.True(t, got.Blocked)
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httpRequest("GET", "Accept: application/json"))
				require.Equal(t, 429, w.Code)
				after := int64((d.RetryAfter + time.Second - 1) / time.Second)
				require.Equal(t, fmt.Sprint(after), w.Header().Get("Retry-After"))
				require.Equal(t, fmt.Sprintf(`"l";r=0;t=%d`, after), w.Header().Get("RateLimit"))
				require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
				require.Contains(t, w.Body.String(), `"violated-policies":["l"]`)
			}
			require.Equal(t, calls, backend.calls.Load())
			time.Sleep(time.Nanosecond)
			took(t, l, "key", 2)
			require.Greater(t, backend.calls.Load(), calls)
		})
	}
}

// TestOneCallerRechecksABlock: one caller in each DenyRecheck asks the store. So this process
// learns that another one has lifted the block, or has made it longer.
func TestOneCallerRechecksABlock(t *testing.T) {
	limit := FixedWindow(2, time.Minute).Block(time.Hour, 2*time.Hour)
	remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		other := processOf(t, &remoteBackend{Store: backend.Store}, Options{Limits: []Limit{limit}})
		took(t, l, "key", 2)
		blockedFor(t, l, "key", time.Hour)
		for range 5 {
			time.Sleep(time.Second - time.Millisecond)
			calls := backend.calls.Load()
			for range 10 {
				require.Equal(t, SourceCache, decide(t, l, "key", 1).Source)
			}
			require.Equal(t, calls, backend.calls.Load())
			time.Sleep(time.Millisecond)
			for range 10 {
				require.True(t, decide(t, l, "key", 1).Blocked)
			}
			require.Equal(t, calls+1, backend.calls.Load())
		}
		require.NoError(t, other.Block(ctx, "key", 3*time.Hour))
		require.Less(t, decide(t, l, "key", 1).RetryAfter, time.Hour)
		time.Sleep(time.Second)
		blockedFor(t, l, "key", 3*time.Hour-time.Second)
		blockedFor(t, l, "key", 3*time.Hour-time.Second)

		require.NoError(t, other.Reset(ctx, "key"))
		require.True(t, decide(t, l, "key", 1).Blocked)
		time.Sleep(time.Second)
		took(t, l, "key", 2)
		blockedFor(t, l, "key", time.Hour) // the ladder is forgotten, too
	})
}

// TestResetLiftsABlockAtOnce: in the process that resets the key, also if a call is in flight
// that has seen the block.
func TestResetLiftsABlockAtOnce(t *testing.T) {
	limit := FixedWindow(2, time.Minute).Block(time.Hour, 2*time.Hour)
	remotely(t, Options{Limits: []Limit{limit}, DenyRecheck: -1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		took(t, l, "key", 2)
		blockedFor(t, l, "key", time.Hour)
		require.NoError(t, l.Reset(ctx, "key"))
		took(t, l, "key", 2)
		blockedFor(t, l, "key", time.Hour)

		// A look that the store has answered before the reset arrives after it.
		slow := &slowReplies{remoteBackend: &remoteBackend{Store: backend.Store}}
		other := processOf(t, slow, Options{Limits: []Limit{limit}, DenyRecheck: -1})
		slow.wait.Store(int64(50 * time.Millisecond))
		go other.TakeN(ctx, "key", 1)
		time.Sleep(10 * time.Millisecond)
		slow.wait.Store(0)
		require.NoError(t, other.Reset(ctx, "key"))
		time.Sleep(time.Second)
		took(t, other, "key", 1)
	})
}

// TestBlockByHandAtARemoteStore: it takes effect at once in this process, and in others as
// soon as they ask the store. The later one of two ends holds.
func TestBlockByHandAtARemoteStore(t *testing.T) {
	for _, limit := range algorithms(5, time.Minute) {
		remotely(t, Options{Limits: []Limit{limit}, DenyRecheck: -1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			other := processOf(t, &remoteBackend{Store: backend.Store}, Options{Limits: []Limit{limit}})
			took(t, l, "key", 1)
			require.NoError(t, l.Block(ctx, "key", time.Hour))
			calls := backend.calls.Load()
			blockedFor(t, l, "key", time.Hour)
			require.Equal(t, SourceCache, decide(t, l, "key", 1).Source)
			require.Equal(t, calls, backend.calls.Load())
			blockedFor(t, other, "key", time.Hour)
			require.NoError(t, l.Block(ctx, "key", time.Minute))
			blockedFor(t, l, "key", time.Hour)
			require.NoError(t, l.Block(ctx, "key", 2*time.Hour))
			blockedFor(t, l, "key", 2*time.Hour)
			time.Sleep(time.Second)
			blockedFor(t, other, "key", 2*time.Hour-time.Second)
			require.NoError(t, l.Reset(ctx, "key"))
			took(t, l, "key", 5)
			time.Sleep(time.Second)
			require.False(t, decide(t, other, "key", 1).Blocked)
		})
	}
}

// TestBlockAtARemoteStoreBelongsToTheCounter: it goes on under plans and after SetLimits,
// also in the near cache, and not under another window.
func TestBlockAtARemoteStoreBelongsToTheCounter(t *testing.T) {
	limit := FixedWindow(1, time.Minute)
	for _, recheck := range []time.Duration{-1, 1} {
		onEachRemote(t, Options{Limits: []Limit{limit.Block(time.Hour, 2*time.Hour)}, DenyRecheck: recheck}, func(t *testing.T, l *Limiter) {
			took(t, l, "k", 1)
			blockedFor(t, l, "k", time.Hour)
			require.NoError(t, l.SetLimits(FixedWindow(100, time.Minute)))
			blockedFor(t, l, "k", time.Hour)
			for _, plan := range []Limit{limit, limit.Block(time.Minute), limit.Named("gold")} {
				d, err := l.TakeLimits(ctx, "k", 1, plan)
				require.NoError(t, err)
				require.True(t, d.Blocked)
				require.Equal(t, time.Hour, d.RetryAfter)
			}
			d, err := l.TakeLimits(ctx, "k", 1, FixedWindow(1, time.Hour))
			require.NoError(t, err)
			require.True(t, d.Allowed)
			time.Sleep(time.Hour)
			require.NoError(t, l.SetLimits(limit.Block(5*time.Minute, 10*time.Minute)))
			took(t, l, "k", 1)
			blockedFor(t, l, "k", 10*time.Minute)
		})
	}
}

// TestRemoteBlockInShadow: blocks are kept and reported, once, and requests are let through.
func TestRemoteBlockInShadow(t *testing.T) {
	var seen recorder
	limit := FixedWindow(1, time.Minute).Block(time.Hour)
	opts := Options{Limits: []Limit{limit}, Key: StaticKey("k"), Shadow: true, Observe: seen.observe, Silence: []Code{CodeShadow}}
	onEachRemote(t, opts, func(t *testing.T, l *Limiter) {
		seen.all()
		h := l.Middleware(httpServed)
		for range 4 {
			require.Equal(t, 204, statusOf(h))
		}
		require.Len(t, seen.of(EventShadowDenied), 3)
		require.Len(t, seen.of(EventBlocked), 1)
		require.Equal(t, time.Hour, seen.of(EventBlocked)[0].Duration)
		blockedFor(t, l, "k", time.Hour)
	})
}

// TestRemoteBlockEvents: one EventBlocked for each block, with the limit that has started it
// and its duration.
func TestRemoteBlockEvents(t *testing.T) {
	limits := []Limit{FixedWindow(1, time.Minute).Block(time.Hour, day).Named("logins"), FixedWindow(100, day).Named("daily")}
	var seen recorder
	onEachRemote(t, Options{Limits: limits, Observe: seen.observe}, func(t *testing.T, l *Limiter) {
		seen.all()
		for i, rung := range []time.Duration{time.Hour, day, day} {
			took(t, l, "k", 1)
			for range 3 {
				blockedFor(t, l, "k", rung)
			}
			require.EqualValues(t, i+1, l.Stats().BlocksBegun)
			began := seen.of(EventBlocked)
			require.Len(t, began, 1)
			require.Len(t, seen.of(EventDenied), 3)
			require.Equal(t, "logins", began[0].Policy)
			require.Equal(t, limits[0], began[0].Limit)
			require.Equal(t, rung, began[0].Duration)
			require.Equal(t, "k", began[0].Key)
			require.Equal(t, SourceStore, began[0].Decision.Source)
			seen.all()
			time.Sleep(rung)
		}
		require.NoError(t, l.Block(WithActor(ctx, "ada"), "k", 2*time.Hour))
		hand := seen.of(EventBlocked)
		require.Len(t, hand, 1)
		require.Equal(t, []any{"", "ada", 2 * time.Hour}, []any{hand[0].Policy, hand[0].Actor, hand[0].Duration})
		require.EqualValues(t, 3, l.Stats().BlocksBegun, "blocks by hand are not counted")
	})
}

// TestFreeRequestsDuringARemoteBlock: requests of cost 0 pass, and looks say that the key is
// blocked.
func TestFreeRequestsDuringARemoteBlock(t *testing.T) {
	limit := FixedWindow(1, time.Minute).Block(time.Hour)
	onEachRemote(t, Options{Limits: []Limit{limit}, Key: StaticKey("k"), Cost: func(r *http.Request) int64 {
		if r.Method == "HEAD" {
			return 0
		}
		return 1
	}}, func(t *testing.T, l *Limiter) {
		h := l.Middleware(httpServed)
		for _, step := range []struct {
			method string
			want   int
		}{{"GET", 204}, {"HEAD", 204}, {"GET", 429}, {"HEAD", 204}, {"GET", 429}} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httpRequest(step.method))
			require.Equal(t, step.want, w.Code, step.method)
		}
		d := decide(t, l, "k", 0)
		require.True(t, d.Allowed)
		require.True(t, d.Blocked)
		require.Equal(t, time.Hour, d.MoreAfter)
		standings, err := l.LookKey(ctx, "k")
		require.NoError(t, err)
		require.True(t, standings[0].Blocked)
	})
}

// TestTakeUpToDuringARemoteBlock: as many units as fit are taken. Only a denial starts a
// block.
func TestTakeUpToDuringARemoteBlock(t *testing.T) {
	needMiniredis(t)
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, c *redis.Client) {
		l := processOf(t, redisStore(t, c, "rl:"), Options{Limits: []Limit{FixedWindow(5, time.Minute).Block(time.Hour)}})
		for _, step := range []struct {
			sleep, wait time.Duration
			granted     int64
		}{{0, 0, 5}, {0, time.Hour, 0}, {30 * time.Minute, 30 * time.Minute, 0}, {30 * time.Minute, 0, 5}} {
			time.Sleep(step.sleep)
			granted, d, err := l.TakeUpTo(ctx, "k", 7)
			require.NoError(t, err)
			require.Equal(t, step.granted, granted)
			require.Equal(t, step.wait > 0, d.Blocked)
			require.InDelta(t, step.wait, d.RetryAfter, float64(time.Millisecond))
		}
	})
}

// TestPartlyGrantedTakeUpToStartsNoBlock: with units of a lease it is an admission, also if
// the store has none left.
func TestPartlyGrantedTakeUpToStartsNoBlock(t *testing.T) {
	needMiniredis(t)
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, c *redis.Client) {
		limit := FixedWindow(400, time.Hour).Block(3 * time.Hour)
		store := redisStore(t, c, "rl:")
		l := processOf(t, store, Options{Limits: []Limit{limit}, Lease: 10 * time.Second})
		for range 100 {
			took(t, l, "k", 1)
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		results := make([]Result, 1)
		_, err := store.Take(ctx, "k", 0, []Limit{limit}, results)
		require.NoError(t, err)
		_, admitted := take(t, store, "k", results[0].Remaining, limit) // another process uses the rest
		require.True(t, admitted)
		granted, d, err := l.TakeUpTo(ctx, "k", 300)
		require.NoError(t, err)
		require.NotZero(t, granted, "of the lease")
		require.Less(t, granted, int64(300))
		require.False(t, d.Blocked)
		results, _ = take(t, store, "k", 0, limit)
		require.False(t, results[0].Blocked, "it got something")
		granted, d, err = l.TakeUpTo(ctx, "k", 300)
		require.NoError(t, err)
		require.Zero(t, granted)
		require.True(t, d.Blocked)
	})
}

// TestLeasesAndBlocks: nothing is leased while a key is blocked, a lease that is held when
// a block begins is given back, and more units for a lease start no block.
func TestLeasesAndBlocks(t *testing.T) {
	limit := FixedWindow(400, time.Hour).Block(3 * time.Hour)
	opts := Options{Limits: []Limit{limit}, Lease: time.Second, DenyRecheck: 1}
	remotely(t, opts, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		var used int64
		busy := func(times int) {
			for range times {
				if decide(t, l, "k", 1).Allowed {
					used++
				}
				time.Sleep(time.Millisecond)
			}
			synctest.Wait()
		}
		busy(100)
		require.Less(t, backend.remaining(t, "k", limit), 400-used, "a lease is held")
		require.NoError(t, l.Block(ctx, "k", time.Minute))
		synctest.Wait()
		busy(100)
		require.EqualValues(t, 100, used, "nothing is handed out during the block")
		require.Equal(t, time.Minute-100*time.Millisecond, backend.blocked(t, "k", limit))
		time.Sleep(time.Minute)
		require.Equal(t, 400-used, backend.remaining(t, "k", limit), "the lease was given back")

		// Another process blocks the key: this one learns it with its next call.
		busy(100)
		require.NoError(t, backend.Store.(KindStore).Block(ctx, "k", Block{Left: time.Minute}, []Limit{limit}))
		time.Sleep(3 * time.Second)
		require.True(t, decide(t, l, "k", 1).Blocked)
		time.Sleep(time.Minute)
		require.Equal(t, 400-used, backend.remaining(t, "k", limit))

		// All units are used one by one: only the denial of one of them starts a block.
		for i := 0; used < 400; i++ {
			require.Less(t, i, 400)
			d := decide(t, l, "k", 1)
			require.True(t, d.Allowed, "%d used: %v", used, d)
			used++
			if i%3 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		synctest.Wait()
		require.Zero(t, backend.blocked(t, "k", limit))
		require.True(t, decide(t, l, "k", 1).Blocked)
	})
}

// TestRequestForALeaseStartsNoBlock: another process leaves one unit, so the store denies the
// request for it and for more units for a lease. The unit is admitted, and the next one is not.
func TestRequestForALeaseStartsNoBlock(t *testing.T) {
	limit := FixedWindow(400, time.Hour).Block(3 * time.Hour)
	remotely(t, Options{Limits: []Limit{limit}, Lease: time.Second}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		took(t, l, "k", 100)
		synctest.Wait()
		others := backend.remaining(t, "k", limit) - 1
		require.NotZero(t, others)
		_, admitted := take(t, backend.Store, "k", others, limit)
		require.True(t, admitted)
		used := int64(100)
		for decide(t, l, "k", 1).Allowed {
			used++
		}
		require.EqualValues(t, 400, used+others)
		require.True(t, decide(t, l, "k", 1).Blocked)
	})
}

// TestBlockInAnOutageEndsTheLease: units of the lease are not handed out during a block that
// begins here.
func TestBlockInAnOutageEndsTheLease(t *testing.T) {
	limit := FixedWindow(400, time.Hour).Block(3 * time.Hour)
	remotely(t, Options{Limits: []Limit{limit}, Lease: time.Hour}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		took(t, l, "k", 100)
		synctest.Wait()
		backend.set(refused)
		require.Equal(t, SourceLease, decide(t, l, "k", 1).Source)
		require.True(t, decide(t, l, "k", 390).Blocked)
		for range 5 {
			require.True(t, decide(t, l, "k", 1).Blocked)
		}
		endOutage(t, backend, l)
		require.NotZero(t, backend.blocked(t, "k", limit))
	})
}

// TestRemoteBlockOutlivesReload: the next generation denies without a call, and goes on with
// the ladder.
func TestRemoteBlockOutlivesReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		reg := new(Registry)
		defer reg.Close()
		var l *Limiter
		reload := func(limit Limit) {
			require.NoError(t, reg.Reload(func(next *Registry) (err error) {
				l, err = next.New("l", Options{Limits: []Limit{limit}, Store: backend, Logger: quietly, DenyRecheck: -1})
				return err
			}))
		}
		limit := FixedWindow(1, time.Minute)
		reload(limit.Block(time.Hour, day))
		took(t, l, "k", 1)
		blockedFor(t, l, "k", time.Hour)
		reload(limit)
		calls := backend.calls.Load()
		blockedFor(t, l, "k", time.Hour)
		require.Equal(t, calls, backend.calls.Load())
		time.Sleep(time.Hour)
		reload(limit.Block(time.Hour, day))
		took(t, l, "k", 1)
		blockedFor(t, l, "k", day)
	})
}

// slowReplies is a remote store whose replies are late: calls are carried out at once.
type slowReplies struct {
	*remoteBackend
	wait atomic.Int64
}

func (s *slowReplies) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	at, err := s.remoteBackend.Take(ctx, key, n, limits, results)
	time.Sleep(time.Duration(s.wait.Load()))
	return at, err
}

func (s *slowReplies) TakePending(ctx context.Context, key string, n int64, pending []Pending, limits []Limit, results []Result) (Instant, error) {
	at, err := s.remoteBackend.TakePending(ctx, key, n, pending, limits, results)
	time.Sleep(time.Duration(s.wait.Load()))
	return at, err
}
