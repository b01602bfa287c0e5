package ratelimit_test

import (
	"context"
	"encoding/json"
	"fmt"
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

// These tests are about limits with Block, counted in memory. Those about Options.Count
// are in underway_test.go.

const day = 24 * time.Hour

// took takes a unit that must be admitted.
func took(t *testing.T, l *Limiter, key string, times int) {
	t.Helper()
	for range times {
		d, err := l.Take(ctx, key)
		require.NoError(t, err)
		require.True(t, d.Allowed, "%v", d)
	}
}

// blockedFor takes a unit that must be denied by a block for that long.
func blockedFor(t *testing.T, l *Limiter, key string, wait time.Duration) {
	t.Helper()
	d, err := l.Take(ctx, key)
	require.NoError(t, err)
	require.False(t, d.Allowed)
	require.True(t, d.Blocked)
	require.Equal(t, wait, d.RetryAfter)
	require.Zero(t, d.Remaining)
}

// TestBlockEndsAtAFixedInstant: a denial blocks the key for the duration. Nothing that the
// client does extends the block, and RetryAfter is its end.
func TestBlockEndsAtAFixedInstant(t *testing.T) {
	for _, algorithm := range algorithms(3, time.Minute) {
		t.Run(algorithm.Algorithm(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := limiter(t, algorithm.Block(time.Hour))
				took(t, l, "k", 3)
				blockedFor(t, l, "k", time.Hour)
				for minute := range 59 {
					time.Sleep(time.Minute)
					for range 3 {
						blockedFor(t, l, "k", time.Hour-time.Duration(minute+1)*time.Minute)
					}
					took(t, l, "another", 1)
				}
				time.Sleep(time.Minute - time.Nanosecond)
				blockedFor(t, l, "k", time.Nanosecond)
				time.Sleep(time.Nanosecond)
				took(t, l, "k", 3) // what was denied has counted nowhere
			})
		})
	}
}

// TestBlockIsNeverShorterThanTheLimit: a block that is shorter than the limit's own wait
// lasts as long as that. During a block, RetryAfter is the later of the two for the units
// asked for, and Never stays Never.
func TestBlockIsNeverShorterThanTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, hour.Block(time.Minute))
		took(t, l, "k", 5)
		time.Sleep(time.Minute)
		blockedFor(t, l, "k", 59*time.Minute)

		l = limiter(t, TokenBucket(1, time.Minute, 10).Block(2*time.Minute))
		took(t, l, "k", 10)
		blockedFor(t, l, "k", 2*time.Minute)
		for n, want := range map[int64]time.Duration{1: 2 * time.Minute, 2: 2 * time.Minute, 5: 5 * time.Minute, 11: Never} {
			d, err := l.TakeN(ctx, "k", n)
			require.NoError(t, err)
			require.Equal(t, want, d.RetryAfter, "%d units", n)
			require.True(t, d.Blocked)
		}
		time.Sleep(2 * time.Minute)
		took(t, l, "k", 2)
	})
}

// TestLadderOfBlocks: each denial after a block uses the next duration, and the last one
// repeats. The ladder is forgotten when the key has not been blocked for as long as the
// longest duration, or the window if that is longer; 1 ns before it is not.
func TestLadderOfBlocks(t *testing.T) {
	for _, tc := range []struct {
		limit   Limit
		rungs   []time.Duration
		forgets time.Duration
	}{
		{FixedWindow(1, time.Second), []time.Duration{time.Minute, time.Hour, day}, day},
		{FixedWindow(1, 3*time.Hour), []time.Duration{4 * time.Hour, 5 * time.Hour}, 5 * time.Hour},
		{TokenBucket(1, 3*time.Hour, 1), []time.Duration{3 * time.Hour}, 3 * time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := limiter(t, tc.limit.Block(tc.rungs...))
			for range 2 {
				for i := range len(tc.rungs) + 2 {
					took(t, l, "k", 1)
					rung := tc.rungs[min(i, len(tc.rungs)-1)]
					blockedFor(t, l, "k", rung)
					time.Sleep(rung)
				}
				time.Sleep(tc.forgets - time.Nanosecond)
				took(t, l, "k", 1)
				blockedFor(t, l, "k", tc.rungs[len(tc.rungs)-1])
				time.Sleep(tc.rungs[len(tc.rungs)-1] + tc.forgets)
			}
		})
	}
}

// TestCostThatNeverFitsStartsNoBlock: one wrong batch size bans nobody, also if another
// limit denies it for a time.
func TestCostThatNeverFitsStartsNoBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, FixedWindow(5, time.Minute).Block(day), FixedWindow(10, time.Hour).Block(day))
		for _, n := range []int64{6, 11} {
			took(t, l, "k", 1)
			d, err := l.TakeN(ctx, "k", n)
			require.NoError(t, err)
			require.Equal(t, Never, d.RetryAfter)
			require.False(t, d.Blocked)
		}
		took(t, l, "k", 3)
	})
}

// TestBlocksOfSeveralLimits: every limit that has Block and denies starts its own block.
// While one is in force, no limit counts and none starts another block.
func TestBlocksOfSeveralLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t,
			FixedWindow(2, time.Second).Block(time.Minute, time.Hour).Named("second"),
			FixedWindow(3, day).Named("day"),
			FixedWindow(2, 2*time.Second).Block(2*time.Minute).Named("two"))
		took(t, l, "k", 2)
		blockedFor(t, l, "k", 2*time.Minute)
		d, err := l.Take(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "two", d.Policy)
		standings, err := l.LookKey(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, []bool{true, false, true}, []bool{standings[0].Blocked, standings[1].Blocked, standings[2].Blocked})
		require.Equal(t, []int64{0, 1, 0}, []int64{standings[0].Remaining, standings[1].Remaining, standings[2].Remaining})
		require.Equal(t, []time.Duration{time.Minute, day, 2 * time.Minute},
			[]time.Duration{standings[0].MoreAfter, standings[1].MoreAfter, standings[2].MoreAfter})

		time.Sleep(time.Minute) // the first of the blocks is over
		blockedFor(t, l, "k", time.Minute)
		time.Sleep(time.Minute)
		took(t, l, "k", 1) // the third of the day
		d, err = l.Take(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "day", d.Policy)
		require.False(t, d.Blocked, "the day's limit has no Block, and no other one denies")
		require.False(t, d.Allowed)

		// A longer denial by another limit binds, and the decision says that a block is in force, too.
		l = limiter(t, FixedWindow(1, time.Second).Block(time.Minute).Named("second"), FixedWindow(1, day).Named("day"))
		took(t, l, "k", 1)
		for range 2 {
			d, err = l.Take(ctx, "k")
			require.NoError(t, err)
			require.Equal(t, "day", d.Policy)
			require.Equal(t, day, d.RetryAfter)
			require.True(t, d.Blocked)
		}
	})
}

// TestLooksAndFreeRequestsDuringABlock: both are allowed, start no block and say that the
// key is blocked.
func TestLooksAndFreeRequestsDuringABlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, FixedWindow(2, time.Minute).Block(time.Hour))
		took(t, l, "k", 2)
		d, err := l.TakeN(ctx, "k", 0)
		require.NoError(t, err)
		require.False(t, d.Blocked, "a look starts no block")
		blockedFor(t, l, "k", time.Hour)
		for _, passed := range []time.Duration{0, time.Minute, 58 * time.Minute} {
			time.Sleep(passed)
			d, err = l.TakeN(ctx, "k", 0)
			require.NoError(t, err)
			require.True(t, d.Allowed)
			require.True(t, d.Blocked)
			require.Zero(t, d.Remaining)
			require.Zero(t, d.RetryAfter)
			require.Equal(t, d.MoreAfter, d.ResetAfter)
		}
		require.Equal(t, time.Minute, d.MoreAfter)
		require.Equal(t, "allowed, blocked by 2/1m fixed block=1h for 1m0s", d.String())

		free := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Minute).Block(time.Hour)}, Cost: func(r *http.Request) int64 {
			if r.Method == "HEAD" {
				return 0
			}
			return 1
		}})
		h := free.Middleware(httpServed)
		for _, step := range []struct {
			method string
			want   int
		}{{"GET", 204}, {"HEAD", 204}, {"GET", 429}, {"HEAD", 204}, {"GET", 429}} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httpRequest(step.method))
			require.Equal(t, step.want, w.Code, step.method)
		}
		stats := free.Stats()
		require.EqualValues(t, 3, stats.Allowed)
		require.EqualValues(t, 2, stats.Denied)
	})
}

// TestTakeUpToDuringABlock: as many units as fit are taken, a denial starts a block, and
// during a block none fits.
func TestTakeUpToDuringABlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, FixedWindow(5, time.Minute).Block(time.Hour))
		upTo := func(want int64, wait time.Duration) {
			t.Helper()
			granted, d, err := l.TakeUpTo(ctx, "k", 7)
			require.NoError(t, err)
			require.Equal(t, want, granted)
			require.Equal(t, wait, d.RetryAfter)
			require.Equal(t, wait > 0, d.Blocked)
		}
		upTo(5, 0)
		upTo(0, time.Hour)
		time.Sleep(30 * time.Minute)
		upTo(0, 30*time.Minute)
		time.Sleep(30 * time.Minute)
		upTo(5, 0)
	})
}

// TestRefundsAndChargesMoveNoBlock: Refund, AddCost and a charge move what is counted. They
// neither lift, move nor start a block. Reset lifts it and forgets the ladder.
func TestRefundsAndChargesMoveNoBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, hour.Block(2*time.Hour, day))
		took(t, l, "k", 5)
		blockedFor(t, l, "k", 2*time.Hour)
		require.NoError(t, l.Refund(ctx, "k", 5))
		blockedFor(t, l, "k", 2*time.Hour)
		time.Sleep(2 * time.Hour)
		took(t, l, "k", 5)
		blockedFor(t, l, "k", day)
		require.NoError(t, l.Reset(ctx, "k"))
		took(t, l, "k", 5)
		blockedFor(t, l, "k", 2*time.Hour)

		charged := httpLimiter(t, Options{Limits: []Limit{hour.Block(2 * time.Hour)}})
		h := charged.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.NoError(t, charged.AddCost(r.Context(), 100))
		}))
		h.ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
		standings, err := charged.LookKey(ctx, httpKey)
		require.NoError(t, err)
		require.Zero(t, standings[0].Remaining)
		require.False(t, standings[0].Blocked, "a charge starts no block")
		time.Sleep(time.Minute)
		blockedFor(t, charged, httpKey, 2*time.Hour)
	})
}

// TestBlockBelongsToTheCounter: a block goes on under limits of the same algorithm and
// window, with or without Block. Under another window the key is not blocked. The limit
// that denies has the ladder. If it is too short, its last duration is used.
func TestBlockBelongsToTheCounter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(1, time.Minute)
		l := limiter(t, limit.Block(time.Hour, 2*time.Hour, 3*time.Hour))
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
		blockedFor(t, l, "k", 10*time.Minute) // the second rung, of another ladder
		time.Sleep(10 * time.Minute)
		require.NoError(t, l.SetLimits(limit.Block(5*time.Minute)))
		took(t, l, "k", 1)
		blockedFor(t, l, "k", 5*time.Minute) // the third rung, and the ladder has one
		require.NoError(t, l.Reset(ctx, "k"))
		took(t, l, "k", 1)
	})
}

// TestBlockOutlivesReload: a block goes on after a Reload, also one that removes Block.
func TestBlockOutlivesReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := new(Registry)
		defer reg.Close()
		name := t.Name()
		defer func() { Memory(name).Close() }()
		l, err := reg.New(name, quiet(FixedWindow(1, time.Second).Block(time.Hour)))
		require.NoError(t, err)
		took(t, l, "k", 1)
		blockedFor(t, l, "k", time.Hour)
		for _, limit := range []Limit{FixedWindow(1, time.Second).Block(time.Minute), FixedWindow(9, time.Second)} {
			require.NoError(t, reg.Reload(func(r *Registry) error {
				l, err = r.New(name, quiet(limit))
				return err
			}))
			blockedFor(t, l, "k", time.Hour)
		}
		require.NoError(t, l.Reset(ctx, "k"))
		took(t, l, "k", 9)
	})
}

// TestBlockOutlivesRestart: a block and its ladder are in the SnapshotFile.
func TestBlockOutlivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := inFile(t)
		limit := FixedWindow(1, time.Second).Block(time.Hour, day)
		start := func() (*Limiter, func()) {
			store, err := NewMemoryStore(t.Name(), opts)
			require.NoError(t, err)
			o := quiet(limit)
			o.Store = store
			l, err := new(Registry).New("login", o)
			require.NoError(t, err)
			return l, func() { l.Close(); require.NoError(t, store.Close()) }
		}
		l, stop := start()
		took(t, l, "k", 1)
		blockedFor(t, l, "k", time.Hour)
		require.NoError(t, l.Block(ctx, "by hand", 2*time.Hour))
		stop()
		l, stop = start()
		blockedFor(t, l, "k", time.Hour)
		blockedFor(t, l, "by hand", 2*time.Hour)
		time.Sleep(time.Hour)
		took(t, l, "k", 1)
		blockedFor(t, l, "k", day)
		blockedFor(t, l, "by hand", time.Hour)
		stop()
	})
}

// TestFloodUnblocksNobody: as many new keys as the store holds several times over do not
// push out a block, also when the counter under it has expired.
func TestFloodUnblocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := quiet(FixedWindow(1, time.Second).Block(day))
		o.Store = memStore(t, MemoryOptions{MaxKeys: 2000})
		l, err := new(Registry).New("login", o)
		require.NoError(t, err)
		for i := range 100 {
			took(t, l, fmt.Sprint("k", i), 1)
			blockedFor(t, l, fmt.Sprint("k", i), day)
		}
		time.Sleep(time.Minute)
		for i := range 20_000 {
			_, err := l.Take(ctx, fmt.Sprint("flood", i))
			require.NoError(t, err)
		}
		for i := range 100 {
			blockedFor(t, l, fmt.Sprint("k", i), day-time.Minute)
		}
		require.Zero(t, l.Stats().Memory.EvictedDenied)
	})
}

// TestPlacesOfAKeyWithBlocks: a store must have room for the counters of one key and for
// their blocks.
func TestPlacesOfAKeyWithBlocks(t *testing.T) {
	o := quiet(hour.Block(day), FixedWindow(9, day))
	o.Store = memStore(t, MemoryOptions{MaxKeys: 2})
	_, err := new(Registry).New("login", o)
	require.ErrorContains(t, err, "with room for 2 counters, and one key needs 3: raise MemoryOptions.MaxKeys")
}

// TestManyDenialsStartOneBlock: 64 goroutines use one key at once. What is admitted is
// exactly the limit, and the ladder moves by one rung.
func TestManyDenialsStartOneBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var began atomic.Int64
		o := quiet(FixedWindow(100, time.Second).Block(time.Minute, time.Hour, day), FixedWindow(1000, day))
		o.Observe = func(_ context.Context, e Event) {
			if e.Kind == EventBlocked {
				began.Add(1)
			}
		}
		l := httpLimiter(t, o)
		for _, rung := range []time.Duration{time.Minute, time.Hour, day} {
			began.Store(0)
			var admitted atomic.Int64
			memTogether(func(int) {
				for range 30 {
					d, err := l.Take(ctx, "k")
					if err != nil || !d.Allowed && (d.RetryAfter != rung || !d.Blocked) {
						t.Errorf("%v, %v: want a block of %v", d, err, rung)
					}
					if d.Allowed {
						admitted.Add(1)
					}
				}
			})
			require.EqualValues(t, 100, admitted.Load())
			require.EqualValues(t, 1, began.Load(), "EventBlocked")
			time.Sleep(rung)
		}
		require.EqualValues(t, 3, l.Stats().BlocksBegun)
		require.NoError(t, l.Block(ctx, "k", day))
		require.EqualValues(t, 3, l.Stats().BlocksBegun, "blocks by hand are not counted")
	})
}

// TestBlockByHand: it denies under limits with and without Block and under the plans that
// were used, with the first limit's policy. The later of two ends holds. It moves no
// rung, and its end counts for when the ladder is forgotten. Reset lifts it.
func TestBlockByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, FixedWindow(10, time.Minute).Named("first"), FixedWindow(1, day).Named("second"))
		plan := TokenBucket(10, time.Second, 10)
		_, err := l.TakeLimits(ctx, "other", 1, plan)
		require.NoError(t, err)
		require.NoError(t, l.Block(ctx, "k", time.Hour))
		blockedFor(t, l, "k", time.Hour)
		d, err := l.TakeN(ctx, "k", 1)
		require.NoError(t, err)
		require.Equal(t, "first", d.Policy)
		d, err = l.TakeLimits(ctx, "k", 1, plan)
		require.NoError(t, err)
		require.Equal(t, time.Hour, d.RetryAfter)
		took(t, l, "another", 1)

		require.NoError(t, l.Block(ctx, "k", time.Minute))
		blockedFor(t, l, "k", time.Hour)
		require.NoError(t, l.Block(ctx, "k", 2*time.Hour))
		blockedFor(t, l, "k", 2*time.Hour)
		require.NoError(t, l.Reset(ctx, "k"))
		took(t, l, "k", 1)

		l = limiter(t, FixedWindow(1, time.Second).Block(time.Minute, 2*time.Minute, 3*time.Minute))
		took(t, l, "k", 1)
		blockedFor(t, l, "k", time.Minute)
		require.NoError(t, l.Block(ctx, "k", time.Hour))
		time.Sleep(time.Hour + 3*time.Minute - time.Nanosecond)
		took(t, l, "k", 1)
		blockedFor(t, l, "k", 2*time.Minute) // the rung after the first denial, not forgotten yet

		for _, wrong := range []time.Duration{0, -time.Second, time.Millisecond - 1, 50*365*day + 1} {
			require.ErrorContains(t, l.Block(ctx, "k", wrong), fmt.Sprintf("Block has a duration of %v: want 1ms to 50 years", wrong))
		}
		require.ErrorIs(t, l.Block(ctx, "", time.Hour), ErrNoKey)
		require.ErrorContains(t, limiter(t, Unlimited).Block(ctx, "k", time.Hour), "its limits count nothing, so it cannot block")
		l.Close()
		require.ErrorIs(t, l.Block(ctx, "k", time.Hour), ErrClosed)
	})
}

// observed is a list of events without their times.
type observed struct {
	mu     sync.Mutex
	events []Event
}

func (o *observed) add(_ context.Context, e Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e.Time = time.Time{}
	o.events = append(o.events, e)
}

// TestBlockEvents: EventDenied comes for every denial, and EventBlocked right after the
// denial that has started a block. A block by hand has the actor, the reason and no policy.
func TestBlockEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen observed
		limit := FixedWindow(1, time.Minute).Block(time.Hour, day).Named("logins")
		o := quiet(limit, FixedWindow(100, day))
		o.Observe = seen.add
		l := httpLimiterNamed(t, "login", o)
		for range 3 {
			_, err := l.Take(ctx, "k")
			require.NoError(t, err)
		}
		byHand := WithReason(WithActor(ctx, "ada"), "stolen password")
		require.NoError(t, l.Block(byHand, "k2", 2*time.Hour))
		require.Len(t, seen.events, 4)
		first, began, second, hand := seen.events[0], seen.events[1], seen.events[2], seen.events[3]
		require.Equal(t, EventDenied, first.Kind)
		require.Equal(t, Event{
			Kind: EventBlocked, Limiter: "login", Key: "k", Policy: "logins", Limit: limit, Decision: first.Decision, Units: 1, Duration: time.Hour,
		}, began)
		require.True(t, began.Decision.Blocked)
		require.Equal(t, EventDenied, second.Kind)
		require.True(t, second.Decision.Blocked)
		require.Equal(t, Event{
			Kind: EventBlocked, Limiter: "login", Key: "k2", Actor: "ada", Reason: "stolen password", Duration: 2 * time.Hour,
		}, hand)
		text, err := json.Marshal(hand)
		require.NoError(t, err)
		require.Contains(t, string(text), `"kind":"blocked"`)
		require.Contains(t, string(text), `"duration":7200`)
		var kind EventKind
		require.NoError(t, kind.UnmarshalText([]byte("blocked")))
		require.Equal(t, EventBlocked, kind)
	})
}

// TestShadowKeepsBlocks: in Shadow, blocks are kept and reported, and requests are let
// through. Take is not in Shadow.
func TestShadowKeepsBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen observed
		o := Options{Limits: []Limit{FixedWindow(1, time.Minute).Block(time.Hour)}, Shadow: true, Observe: seen.add, Silence: []Code{CodeShadow}}
		l := httpLimiter(t, o)
		var decisions []Decision
		h := l.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			d, _ := DecisionFrom(r.Context())
			decisions = append(decisions, d)
		}))
		for range 3 {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httpRequest("GET"))
			require.Equal(t, 200, w.Code)
		}
		require.Equal(t, []bool{false, true, true}, []bool{decisions[0].Blocked, decisions[1].Blocked, decisions[2].Blocked})
		require.Equal(t, time.Hour, decisions[2].RetryAfter)
		var kinds []string
		for _, e := range seen.events {
			if e.Kind != EventWarning {
				kinds = append(kinds, e.Kind.String())
			}
		}
		require.Equal(t, "shadow-denied blocked shadow-denied", strings.Join(kinds, " "))
		blockedFor(t, l, httpKey, time.Hour)
		require.EqualValues(t, 2, l.Stats().ShadowDenied)
	})
}

// TestAnswersDuringABlock: t of draft 10, the resets of the older styles and Retry-After
// are the end of the block, also after the limit itself is whole again.
func TestAnswersDuringABlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(1, time.Minute).Block(time.Hour)
		h := httpLimiterNamed(t, "login", Options{Limits: []Limit{limit}}).Middleware(httpServed)
		older := httpLimiterNamed(t, "older", Options{Limits: []Limit{limit}, Headers: HeadersDraft6 | HeadersLegacy}).Middleware(httpServed)
		for _, handler := range []http.Handler{h, older} {
			handler.ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
			handler.ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
		}
		time.Sleep(30 * time.Minute)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httpRequest("GET", "Accept: application/json"))
		require.Equal(t, 429, w.Code)
		require.Equal(t, []string{`"login";r=0;t=1800`}, w.Header()["Ratelimit"])
		require.Equal(t, []string{`"login";q=1;w=60`}, w.Header()["Ratelimit-Policy"])
		require.Equal(t, "1800", w.Header().Get("Retry-After"))
		require.Contains(t, w.Body.String(), `"violated-policies":["login"]`)
		w = httptest.NewRecorder()
		older.ServeHTTP(w, httpRequest("GET"))
		require.Equal(t, []string{"0", "1800", "1800"},
			[]string{w.Header().Get("Ratelimit-Remaining"), w.Header().Get("Ratelimit-Reset"), w.Header().Get("Retry-After")})
		require.Equal(t, fmt.Sprint(time.Now().Add(30*time.Minute).Unix()), w.Header().Get("X-Ratelimit-Reset"))
	})
}

// TestDecisionPrintsBlocks checks the text forms of a decision and of a standing.
func TestDecisionPrintsBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, FixedWindow(1, time.Minute).Block(time.Hour))
		took(t, l, "k", 1)
		d, err := l.Take(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "blocked by 1/1m fixed block=1h for 1h0m0s", d.String())
		require.Contains(t, d.LogValue().String(), "blocked=true")
		text, err := json.Marshal(d)
		require.NoError(t, err)
		require.Contains(t, string(text), `"blocked":true`)
		standings, err := l.LookKey(ctx, "k")
		require.NoError(t, err)
		text, err = json.Marshal(standings[0])
		require.NoError(t, err)
		require.JSONEq(t, `{"name":"TestDecisionPrintsBlocks","limit":"1/1m fixed block=1h","remaining":0,"retry_after":0,"more_after":3600,"reset_after":3600,"blocked":true}`, string(text))
	})
}
