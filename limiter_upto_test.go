package ratelimit_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// upTo takes as many of n units as fit. An error ends the test.
func upTo(t testing.TB, l *Limiter, key string, n int64) (int64, Decision) {
	t.Helper()
	granted, d, err := l.TakeUpTo(ctx, key, n)
	require.NoError(t, err)
	require.Equal(t, granted > 0, d.Allowed)
	require.LessOrEqual(t, granted, n)
	return granted, d
}

// upToStores are stores of each kind, for tests that run in a bubble.
func upToStores(t *testing.T, m *miniredis.Miniredis) map[string]func() Store {
	m.ClockTTL(true)
	client := pipe(t, m)
	n := 0
	name := func() string { n++; return fmt.Sprint(n) }
	return map[string]func() Store{
		"memory":           func() Store { return memory(t, name()) },
		"wrapped memory":   func() Store { return &wrapper{memory(t, name())} },
		"Redis":            func() Store { return redisStore(t, client, "rl:"+name()+":") },
		"wrapped Redis":    func() Store { return &wrapper{redisStore(t, client, "rl:"+name()+":")} },
		"of another make":  func() Store { return &remoteBackend{Store: memory(t, name())} },
		"that cannot wait": func() Store { return &renamed{memory(t, name()), name()} },
	}
}

// TestTakeUpToGrantsWhatFits takes random numbers of units, with TakeUpTo and TakeN in
// turn, and waits in between. It compares the grants with a look just before.
func TestTakeUpToGrantsWhatFits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := miniredis.NewMiniRedis()
		for name, store := range upToStores(t, m) {
			for _, limits := range [][]Limit{
				{FixedWindow(10, time.Minute)}, {SlidingWindow(10, time.Minute)}, {TokenBucket(10, time.Minute, 7)},
				{FixedWindow(10, time.Minute), SlidingWindow(6, 10*time.Second)}, {TokenBucket(3, time.Second, 9), FixedWindow(20, time.Minute), SlidingWindow(15, 30*time.Second)},
			} {
				r := rand.New(rand.NewPCG(1, 2))
				opts := quiet(limits...)
				opts.Store, opts.DenyRecheck = store(), 1
				l, err := new(Registry).New("x", opts)
				require.NoError(t, err)
				denied, partly := 0, 0
				for range 300 {
					time.Sleep(time.Duration(r.IntN(4000)) * time.Millisecond)
					m.SetTime(time.Now())
					n := 1 + r.Int64N(12)
					left := leftOf(t, l, "key")
					if r.IntN(3) == 0 {
						require.Equal(t, n <= left, decide(t, l, "key", n).Allowed)
						continue
					}
					granted, d := upTo(t, l, "key", n)
					require.Equal(t, min(n, left), granted, "%s, %v: %d of %d", name, limits, n, left)
					require.Equal(t, left-granted, leftOf(t, l, "key"), "%s, %v", name, limits)
					switch {
					case granted == 0:
						denied++
						require.Positive(t, d.RetryAfter)
						require.Zero(t, d.Remaining)
					case granted < n:
						partly++
						require.Zero(t, d.RetryAfter)
						require.Zero(t, d.Remaining, "%s, %v", name, limits)
					default:
						require.Equal(t, left-granted, d.Remaining)
					}
				}
				require.Greater(t, denied, 5, "%s, %v", name, limits)
				require.Greater(t, partly, 5, "%s, %v", name, limits)
				require.NoError(t, l.Close())
			}
		}
	})
}

// TestTakeUpToRetryAfterIsHonest waits for RetryAfter, and for 1 ms less.
func TestTakeUpToRetryAfterIsHonest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := miniredis.NewMiniRedis()
		wait := func(d time.Duration) { time.Sleep(d); m.SetTime(time.Now()) }
		for name, store := range upToStores(t, m) {
			for _, limit := range append(algorithms(3, time.Minute), TokenBucket(60, time.Minute, 3)) {
				wait(time.Until(time.Now().Truncate(time.Millisecond).Add(time.Millisecond))) // Redis counts microseconds
				opts := quiet(limit)
				opts.Store, opts.DenyRecheck = store(), 1
				l, err := new(Registry).New("x", opts)
				require.NoError(t, err)
				granted, _ := upTo(t, l, "key", math.MaxInt64)
				require.EqualValues(t, 3, granted, "%s: above what the limit can hold", name)
				for range 3 {
					granted, d := upTo(t, l, "key", 100)
					require.Zero(t, granted)
					require.NotEqual(t, Never, d.RetryAfter)
					wait(d.RetryAfter - time.Millisecond)
					granted, _ = upTo(t, l, "key", 100)
					require.Zero(t, granted, "%s, %v", name, limit)
					wait(time.Millisecond)
					granted, _ = upTo(t, l, "key", 100)
					require.Positive(t, granted, "%s, %v", name, limit)
				}
				require.NoError(t, l.Close())
			}
		}
	})
}

// TestTakeUpToIsAtomic has many goroutines. Together they get exactly what the limit
// allows, and nobody is denied while something is left.
func TestTakeUpToIsAtomic(t *testing.T) {
	for name, store := range map[string]Store{
		"memory": memory(t, "a"), "wrapped memory": &wrapper{memory(t, "b")},
		"Redis": redisStore(t, newMini(t).client(t), "rl:"), "wrapped Redis": &wrapper{redisStore(t, newMini(t).client(t), "rl:")},
	} {
		for i, limits := range [][]Limit{{FixedWindow(1000, time.Hour)}, {TokenBucket(1000, 1000*time.Hour, 1000)}, {FixedWindow(1000, time.Hour), SlidingWindow(1300, 2*time.Hour)}} {
			l, err := new(Registry).New("x", Options{Limits: limits, Store: store, Timeout: time.Minute, OnFailure: FailClosed, DenyRecheck: 1, Logger: quietly})
			require.NoError(t, err)
			key := fmt.Sprint("key", i)
			var total atomic.Int64
			var all sync.WaitGroup
			for g := range 8 {
				all.Go(func() {
					r := rand.New(rand.NewPCG(uint64(g), 7))
					for denied := false; !denied; {
						n := 1 + r.Int64N(30)
						granted, d, err := l.TakeUpTo(context.Background(), key, n)
						if !assert.NoError(t, err) {
							return
						}
						denied = !d.Allowed
						total.Add(granted)
					}
				})
			}
			all.Wait()
			assert.EqualValues(t, 1000, total.Load(), "%s, %v", name, limits)
			require.NoError(t, l.Close())
		}
	}
}

// TestTakeUpToFollowsTheFailurePolicy has a store that does not answer, and later does
// again.
func TestTakeUpToFollowsTheFailurePolicy(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		remotely(t, Options{Limits: []Limit{FixedWindow(10, time.Hour)}, OnFailure: policy, DenyRecheck: time.Minute}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			granted, d := upTo(t, l, "key", 4)
			require.EqualValues(t, 4, granted)
			require.Equal(t, SourceStore, d.Source)
			backend.set(refused)
			granted, d, err := l.TakeUpTo(ctx, "key", 20)
			switch policy {
			case FallbackLocal:
				require.NoError(t, err)
				require.EqualValues(t, 6, granted)
				require.Equal(t, SourceFallback, d.Source)
				granted, d = upTo(t, l, "key", 20)
				require.Zero(t, granted)
				require.Equal(t, time.Hour, d.RetryAfter.Round(time.Minute))
			case FailOpen:
				require.NoError(t, err)
				require.EqualValues(t, 20, granted)
				require.Equal(t, SourceFailOpen, d.Source)
			case FailClosed:
				require.ErrorIs(t, err, errBackendRefused)
				require.Zero(t, granted)
			}
			backend.set(up)
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if policy == FallbackLocal {
				require.True(t, decide(t, l, "other", 1).Allowed) // sends the owed units
				time.Sleep(5 * time.Second)
				require.Zero(t, backend.remaining(t, "key", FixedWindow(10, time.Hour)), "what was granted is charged to the store")
			}
			granted, d = upTo(t, l, "new", 99)
			require.EqualValues(t, 10, granted)
			require.Equal(t, SourceStore, d.Source)
			calls := backend.calls.Load()
			granted, d = upTo(t, l, "new", 99)
			require.Zero(t, granted)
			if d.Source == SourceStore { // from now on this process denies the key itself
				calls = backend.calls.Load()
				_, d = upTo(t, l, "new", 99)
			}
			require.Equal(t, SourceCache, d.Source)
			require.Equal(t, calls, backend.calls.Load())
		})
	}
}

// TestTakeUpToSpendsLeases has a busy key, so that this process holds units of it. All
// of them are granted, and no more than the limit allows.
func TestTakeUpToSpendsLeases(t *testing.T) {
	remotely(t, Options{Limits: []Limit{FixedWindow(1000, time.Hour)}, Lease: 250 * time.Millisecond}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		for range 100 {
			require.True(t, decide(t, l, "key", 1).Allowed)
			time.Sleep(time.Millisecond)
		}
		total, leased := int64(100), 0
		for {
			granted, d := upTo(t, l, "key", 30)
			if total += granted; granted == 0 {
				break
			}
			if d.Source == SourceLease {
				leased++
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Second) // leases are given back
		granted, _ := upTo(t, l, "key", 2000)
		assert.EqualValues(t, 1000, total+granted)
		assert.Positive(t, leased)
	})
}

func TestTakeUpToErrors(t *testing.T) {
	l := limiter(t, hour)
	for _, n := range []int64{0, -1, math.MinInt64} {
		_, d, err := l.TakeUpTo(ctx, "key", n)
		assert.ErrorContains(t, err, fmt.Sprintf("cannot take up to %d units: want 1 or more; TakeN with 0 looks", n))
		assert.Zero(t, d)
	}
	_, _, err := l.TakeUpTo(ctx, "", 1)
	assert.ErrorIs(t, err, ErrNoKey)
	done, cancel := context.WithCancel(ctx)
	cancel()
	_, _, err = l.TakeUpTo(done, "key", 1)
	assert.ErrorIs(t, err, context.Canceled)
	assert.EqualValues(t, 5, leftOf(t, l, "key"))
	require.NoError(t, l.SetLimits(Unlimited))
	granted, d := upTo(t, l, "key", 1<<40)
	assert.Equal(t, int64(1<<40), granted)
	assert.Equal(t, Unlimited, d.Limit)
	require.NoError(t, l.SetLimits(Deny))
	granted, d = upTo(t, l, "key", 1)
	assert.Zero(t, granted)
	assert.Equal(t, Never, d.RetryAfter)
	require.NoError(t, l.Close())
	_, _, err = l.TakeUpTo(ctx, "key", 1)
	assert.ErrorIs(t, err, ErrClosed)
}

// TestTakeUpToAllocatesNothingInMemory checks that TakeUpTo allocates nothing, like TakeN.
func TestTakeUpToAllocatesNothingInMemory(t *testing.T) {
	l := limiter(t, FixedWindow(math.MaxInt32, time.Hour))
	count, _ := allocations(func() { l.TakeUpTo(ctx, "key", 2) })
	assert.Zero(t, count)
}

// closedForNow is a wrapper that denies everything, and says that much is left.
type closedForNow struct {
	Store
	calls atomic.Int64
}

func (c *closedForNow) Unwrap() Store { return c.Store }

func (c *closedForNow) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	c.calls.Add(1)
	at, err := c.Store.Take(ctx, key, 0, limits, results)
	results[0].RetryAfter = time.Minute
	return at, err
}

// TestTakeUpToAsksAStoreAFewTimes has a store whose answers do not fit together.
func TestTakeUpToAsksAStoreAFewTimes(t *testing.T) {
	store := &closedForNow{Store: memory(t, "x")}
	l, err := new(Registry).New("x", Options{Limits: []Limit{FixedWindow(999_999_999_999_999, time.Hour)}, Store: store, Logger: quietly})
	require.NoError(t, err)
	granted, d := upTo(t, l, "key", math.MaxInt64)
	assert.Zero(t, granted)
	assert.Equal(t, time.Minute, d.RetryAfter)
	assert.LessOrEqual(t, store.calls.Load(), int64(60))
	require.NoError(t, l.Close())
}
