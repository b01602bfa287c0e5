package storekit_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/storekit"
	"github.com/stretchr/testify/require"
)

var hourly = ratelimit.FixedWindow(5, time.Hour)

// takeWithin takes a unit with a deadline.
func takeWithin(s ratelimit.Store, key string, d time.Duration) (ratelimit.Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	results := make([]ratelimit.Result, 1)
	_, err := s.Take(ctx, key, 1, []ratelimit.Limit{hourly}, results)
	return results[0], err
}

// A backend that ignores its context and hangs holds up no caller longer than its deadline,
// and no other key. The key itself counts again with the next caller.
func TestBackendThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		release := make(chan struct{})
		var hung atomic.Bool
		b.begin = func() error {
			if !hung.Swap(true) {
				<-release
			}
			return nil
		}
		s := newStore(t, b)
		began := time.Now()
		_, err := takeWithin(s, "a", 50*time.Millisecond)
		require.Equal(t, 50*time.Millisecond, time.Since(began))
		require.Equal(t, ratelimit.FaultUnknown, s.Fault(err))

		for _, key := range []string{"b", "a"} {
			got, err := takeWithin(s, key, 50*time.Millisecond)
			require.NoError(t, err)
			require.EqualValues(t, 4, got.Remaining)
		}
		close(release) // the late update counts its unit: its caller may have admitted the request
		synctest.Wait()
		got, err := take(s, "a", 0, hourly)
		require.NoError(t, err)
		require.EqualValues(t, 3, got.Remaining)
	})
}

// A backend that has returned may still call f. That has no effect, also not on other calls.
func TestBackendThatCallsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		late := lateBackend{b}
		s := newStore(t, late)
		for range 3 {
			_, err := takeWithin(s, "key", 50*time.Millisecond)
			require.Error(t, err)
			require.Equal(t, ratelimit.FaultUnknown, s.Fault(err))
		}
		time.Sleep(time.Minute)
		require.Empty(t, b.get("test/key"))
	})
}

// lateBackend does its work on a goroutine for which it does not wait.
type lateBackend struct{ *compareAndSwap }

func (b lateBackend) Update(ctx context.Context, key string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
	go func() {
		time.Sleep(time.Second)
		_ = b.compareAndSwap.Update(context.Background(), key, f)
	}()
	<-ctx.Done()
	return ctx.Err()
}

// lockedBackend waits for a lock that it does not get.
type lockedBackend struct{ storekit.Backend }

func (lockedBackend) Update(ctx context.Context, _ string, _ func([]byte, time.Time) ([]byte, time.Duration)) error {
	<-ctx.Done()
	return fmt.Errorf("%w: no lock: %w", storekit.ErrNotApplied, ctx.Err())
}

// A backend that waits until its context is done can say that nothing was written, before
// its callers stop waiting.
func TestBackendThatWaitsInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct{ timeout, took time.Duration }{
			{50 * time.Millisecond, 45 * time.Millisecond},
			{5 * time.Second, 4950 * time.Millisecond},
		} {
			s := newStore(t, lockedBackend{})
			began := time.Now()
			_, err := takeWithin(s, "key", test.timeout)
			require.Equal(t, test.took, time.Since(began))
			require.Equal(t, ratelimit.FaultRefused, s.Fault(err))
			require.ErrorContains(t, err, "no lock")
		}
	})
}

// If a backend hangs for good, no more than 256 goroutines wait for it.
func TestBackendThatHangsForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		release := make(chan struct{})
		b.begin = func() error { <-release; return errors.New("hung") }
		s := newStore(t, b)
		var mu sync.Mutex
		faults := map[ratelimit.Fault]int{}
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				_, err := takeWithin(s, "key"+string(rune('A'+i)), 50*time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				faults[s.Fault(err)]++
			})
		}
		wg.Wait()
		updates, _ := b.written()
		require.Equal(t, 256, updates)
		require.Equal(t, map[ratelimit.Fault]int{ratelimit.FaultUnknown: 256, ratelimit.FaultRefused: 44}, faults)
		time.Sleep(time.Second)
		_, err := takeWithin(s, "one more", 50*time.Millisecond)
		require.Equal(t, ratelimit.FaultRefused, s.Fault(err))
		updates, _ = b.written()
		require.Equal(t, 256, updates)
		close(release)
		synctest.Wait()
	})
}

// One key whose updates hang takes three of the 256, however many callers it has, one after
// the other. The other callers learn that nothing was written.
func TestKeyThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		release := make(chan struct{})
		s := newStore(t, hangingKey{b, release})
		for i := range 300 {
			_, err := takeWithin(s, "hung", 10*time.Millisecond)
			require.Error(t, err)
			if i >= 3 {
				require.Equal(t, ratelimit.FaultRefused, s.Fault(err))
			}
		}
		_, err := takeWithin(s, "another", 10*time.Millisecond)
		require.NoError(t, err)
		close(release)
		time.Sleep(time.Minute)
		_, err = takeWithin(s, "hung", 10*time.Millisecond)
		require.NoError(t, err, "it counts again")
	})
}

// hangingKey hangs for one key, whatever its context says.
type hangingKey struct {
	*compareAndSwap
	release chan struct{}
}

func (b hangingKey) Update(ctx context.Context, key string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
	if key == "test/hung" {
		<-b.release
	}
	return b.compareAndSwap.Update(ctx, key, f)
}

// Clients that connect and disconnect all the time do not make a process compete with itself,
// and all of their units are given back.
func TestCallersThatLeaveAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		b.latency = 5 * time.Millisecond
		s := newStore(t, b)
		l := ratelimit.FixedWindow(10_000, time.Hour)
		for range 1000 {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { _, _ = s.Take(ctx, "key", 1, []ratelimit.Limit{l}, make([]ratelimit.Result, 1)) }()
			time.Sleep(time.Millisecond)
			cancel()
		}
		time.Sleep(time.Second)
		updates, _ := b.written()
		require.Less(t, updates, 300)
		got, err := take(s, "key", 0, l)
		require.NoError(t, err)
		require.EqualValues(t, 10_000, got.Remaining)
	})
}

// A backend that panics does not use up the updates.
func TestBackendThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		panics := true
		b.begin = func() error {
			if panics {
				panic("oops")
			}
			return nil
		}
		s := newStore(t, b)
		for range 300 {
			_, err := take(s, "key", 1, hourly)
			require.ErrorContains(t, err, "panicked: oops")
		}
		panics = false
		_, err := take(s, "key", 1, hourly)
		require.NoError(t, err)
	})
}

// A Delete that hangs holds up its caller no longer than an Update does.
func TestDeleteThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		release := make(chan struct{})
		s := newStore(t, hangingDelete{b, release})
		b.put("test/key", []byte("junk"))
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		began := time.Now()
		err := s.Reset(ctx, "key", []ratelimit.Limit{hourly})
		require.Error(t, err)
		require.Equal(t, ratelimit.FaultUnknown, s.Fault(err))
		require.Equal(t, 50*time.Millisecond, time.Since(began))
		close(release)
		synctest.Wait()
		require.Equal(t, 1, b.deletes)
	})
}

type hangingDelete struct {
	*compareAndSwap
	release chan struct{}
}

func (b hangingDelete) Delete(ctx context.Context, key string) error {
	<-b.release
	return b.compareAndSwap.Delete(ctx, key)
}

// A caller that cancels gets back what the update takes for it. What a caller takes whose
// deadline has passed stays counted.
func TestCallersThatLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		b.latency = 10 * time.Millisecond
		s := newStore(t, b)
		limits := []ratelimit.Limit{hourly, ratelimit.Rolling(5, time.Hour)}
		left := func() (remaining []int64) {
			results := make([]ratelimit.Result, 2)
			_, err := s.Take(context.Background(), "key", 0, limits, results)
			require.NoError(t, err)
			return []int64{results[0].Remaining, results[1].Remaining}
		}
		cancelled := func(call func(ctx context.Context) error) error {
			ctx, cancel := context.WithCancel(context.Background())
			time.AfterFunc(5*time.Millisecond, cancel)
			return call(ctx)
		}
		for name, call := range map[string]func(ctx context.Context) error{
			"Take": func(ctx context.Context) error {
				_, err := s.Take(ctx, "key", 2, limits, make([]ratelimit.Result, 2))
				return err
			},
			"UpTo": func(ctx context.Context) error {
				_, err := s.TakeShared(ctx, ratelimit.SharedRequest{Key: "key", Units: 50, UpTo: true, Limits: limits}, make([]ratelimit.Result, 2))
				return err
			},
			"Hold": func(ctx context.Context) error {
				_, err := s.Hold(ctx, ratelimit.HoldRequest{
					Action: ratelimit.HoldAdd, Key: "key", Most: 9, Lasts: time.Hour, Process: "p", Units: 3, Limits: limits,
				}, make([]ratelimit.Result, 3))
				return err
			},
		} {
			require.Equal(t, context.Canceled, cancelled(call), name)
			time.Sleep(time.Second)
			require.Equal(t, []int64{5, 5}, left(), name)
		}
		require.NoError(t, s.Reset(context.Background(), "key", limits))

		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Millisecond) // between reading and writing
		defer cancel()
		_, err := s.Take(ctx, "key", 2, limits, make([]ratelimit.Result, 2))
		require.Error(t, err)
		time.Sleep(time.Second)
		require.Equal(t, []int64{5, 5}, left(), "the backend has said that it wrote nothing")
	})
}

// Callers that share an update get the answers of callers that come one after the other.
func TestSharedUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		b.latency = time.Millisecond
		s := newStore(t, b)
		go func() { _, _ = take(s, "key", 1, hourly) }() // the others come during its update
		synctest.Wait()
		var mu sync.Mutex
		left, newest := map[int64]int{}, 0
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				results := make([]ratelimit.Result, 1)
				reply, err := s.TakeShared(context.Background(), ratelimit.SharedRequest{Key: "key", Units: 1, Limits: []ratelimit.Limit{hourly}}, results)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				left[results[0].Remaining]++
				if reply.Newest {
					newest++
				}
			})
		}
		wg.Wait()
		updates, _ := b.written()
		require.Equal(t, 2, updates)
		require.Equal(t, map[int64]int{3: 1, 2: 1, 1: 1, 0: 5}, left)
		require.Equal(t, 1, newest)
	})
}

// A clock that is set back frees no units, and one that was far ahead denies no longer than it
// would with another clock.
func TestBackendWithAWrongClock(t *testing.T) {
	for _, l := range []ratelimit.Limit{
		hourly, ratelimit.SlidingWindow(5, time.Hour), ratelimit.TokenBucket(5, time.Hour, 5), ratelimit.Rolling(5, time.Hour), ratelimit.Daily(5, nil),
	} {
		t.Run(l.Algorithm(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBackend()
				off := time.Duration(0)
				b.now = func() time.Time { return time.Now().Add(off) }
				s := newStore(t, b)
				_, err := take(s, "key", 5, l)
				require.NoError(t, err)
				off = -59 * time.Minute
				got, err := take(s, "key", 1, l)
				require.NoError(t, err)
				require.Positive(t, got.RetryAfter)

				off = 1000 * time.Hour
				_, err = take(s, "far", 5, l)
				require.NoError(t, err)
				off = 0
				got, err = take(s, "far", 1, l)
				require.NoError(t, err)
				require.Positive(t, got.RetryAfter)
				require.LessOrEqual(t, got.RetryAfter, 2*l.Window())
			})
		})
	}
}

// A limiter on a backend that is down enforces its limits locally, and the backend gets what
// was admitted in the meantime when it is back.
func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		b.latency = time.Millisecond
		var down atomic.Bool
		b.begin = func() error {
			if down.Load() {
				return storekit.ErrNotApplied
			}
			return nil
		}
		reg := new(ratelimit.Registry)
		limiter, err := reg.New("login", ratelimit.Options{Store: storekit.New("login", b), Limits: []ratelimit.Limit{hourly}})
		require.NoError(t, err)
		defer limiter.Close()
		allowed := func(key string, calls int) (n int) {
			for range calls {
				if d, err := limiter.Take(t.Context(), key); err != nil {
					t.Error(err)
				} else if d.Allowed {
					n++
				}
			}
			return n
		}
		require.Equal(t, 5, allowed("used", 7))
		down.Store(true)
		require.Zero(t, allowed("used", 3))
		require.Equal(t, 5, allowed("new", 7))
		down.Store(false)
		time.Sleep(time.Minute)
		require.Zero(t, allowed("used", 1))
		require.Zero(t, allowed("new", 1))
		got, err := take(storekit.New("login", b), "new", 0, hourly)
		require.NoError(t, err)
		require.Zero(t, got.Remaining)
		require.Zero(t, limiter.Stats().Failed)
	})
}

// TestNew has the mistakes that a limiter reports when it is built.
func TestNew(t *testing.T) {
	b := newBackend()
	reg := new(ratelimit.Registry)
	build := func(name string, s ratelimit.Store) error {
		_, err := reg.New(name, ratelimit.Options{Store: s, Limits: []ratelimit.Limit{hourly}})
		return err
	}
	var none *compareAndSwap
	require.ErrorContains(t, build("a", storekit.New("a", nil)), "the backend of the store \"a\" is nil")
	require.ErrorContains(t, build("a", storekit.New("a", none)), "is nil")
	require.ErrorContains(t, build("a", storekit.New("a", updateFunc(nil))), "is nil")
	require.ErrorContains(t, build("a", storekit.New("", b)), "is empty")
	_, err := take(storekit.New("a", nil), "key", 1, hourly)
	require.ErrorContains(t, err, "is nil")

	s := storekit.New("login", b)
	require.NoError(t, build("login", s))
	require.ErrorContains(t, build("api", s), "login", "one store for two limiters")
	require.ErrorContains(t, build("api", storekit.New("login", newBackend())), "login", "one prefix for two limiters")
	require.NoError(t, build("api", storekit.New("api", b)), "one backend for two limiters, with two prefixes")
}

// A record forgets nothing for a minute after it has ended, so a process whose clock is behind
// finds what it counts.
func TestProcessWhoseClockIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		s := newStore(t, b)
		second := ratelimit.FixedWindow(5, time.Second)
		_, err := take(s, "key", 5, second)
		require.NoError(t, err)
		b.now = func() time.Time { return time.Now().Add(50 * time.Second) }
		_, err = take(s, "key", 1, hourly) // it writes the record
		require.NoError(t, err)
		b.now = time.Now
		got, err := take(s, "key", 1, second)
		require.NoError(t, err)
		require.Equal(t, time.Second, got.RetryAfter)
	})
}
