package ratelimit_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestRecheckOverAJumpMintsNothing has the store's clock jump. The first answer after
// the jump is a denial. It took no units, so no units may be given back.
func TestRecheckOverAJumpMintsNothing(t *testing.T) {
	m := newMini(t)
	store := redisStore(t, m.client(t), "rl:")
	limit := FixedWindow(5, time.Hour)
	l, err := new(Registry).New("login", Options{Limits: []Limit{limit}, Store: store, DenyRecheck: time.Nanosecond, Timeout: time.Minute, Logger: quietly})
	require.NoError(t, err)
	for range 5 {
		require.True(t, decide(t, l, "key", 1).Allowed)
	}
	require.False(t, decide(t, l, "key", 1).Allowed)
	m.advance(10 * time.Second) // like a failover; the window still has 59 min 50 s
	require.False(t, decide(t, l, "key", 3).Allowed)
	time.Sleep(300 * time.Millisecond)
	results, _ := take(t, store, "key", 0, limit)
	require.NoError(t, l.Close())
	require.Zero(t, results[0].Remaining, "the store has taken 5 of 5, and nobody has given back")
}

// TestCallersInFlightOverAJumpMintNothing has 20 callers in flight during the jump. The
// store denies them, and none of them gives back a unit.
func TestCallersInFlightOverAJumpMintNothing(t *testing.T) {
	m := newMini(t)
	limit := FixedWindow(5, time.Hour)
	inner := redisStore(t, m.client(t), "rl:")
	gate := &gated{Store: inner, pass: make(chan struct{})}
	l, err := new(Registry).New("login", Options{Limits: []Limit{limit}, Store: gate, Timeout: time.Minute, Logger: quietly})
	require.NoError(t, err)
	require.True(t, decide(t, l, "other", 1).Allowed) // the limiter learns the store's clock
	require.True(t, decide(t, l, "key", 5).Allowed)
	gate.hold.Store(true)
	m.advance(10 * time.Second)
	done := make(chan bool)
	for range 20 {
		go func() {
			d, err := l.Take(ctx, "key")
			done <- err == nil && d.Allowed
		}()
	}
	require.Eventually(t, func() bool { return gate.held.Load() == 20 }, 20*time.Second, time.Millisecond)
	gate.hold.Store(false)
	close(gate.pass)
	for range 20 {
		require.False(t, <-done)
	}
	time.Sleep(300 * time.Millisecond)
	results, _ := take(t, inner, "key", 0, limit)
	require.Zero(t, results[0].Remaining, "20 calls were denied by the store")
	require.NoError(t, l.Close())
}

// gated holds calls after the store has decided.
type gated struct {
	Store
	hold atomic.Bool
	held atomic.Int64
	pass chan struct{}
}

func (g *gated) Unwrap() Store { return g.Store }

func (g *gated) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	hold := g.hold.Load()
	at, err := g.Store.Take(ctx, key, n, limits, results)
	if hold {
		g.held.Add(1)
		<-g.pass
	}
	return at, err
}

// TestJumpLeavesTheRecheck fails over to a server whose clock is 10 s ahead. A Reset by
// another process then takes effect in this process, too, also for a key whose window
// began before the failover.
func TestJumpLeavesTheRecheck(t *testing.T) {
	for _, jump := range []time.Duration{0, 10 * time.Second} {
		m := newMini(t)
		limit := FixedWindow(5, 24*time.Hour)
		a, b := redisStore(t, m.client(t), "rl:"), redisStore(t, m.client(t), "rl:")
		l, err := new(Registry).New("login", Options{Limits: []Limit{limit}, Store: a, DenyRecheck: time.Millisecond, Timeout: time.Minute, Logger: quietly})
		require.NoError(t, err)
		admin, err := new(Registry).New("login", Options{Limits: []Limit{limit}, Store: b, Timeout: time.Minute, Logger: quietly})
		require.NoError(t, err)
		require.True(t, decide(t, l, "key", 1).Allowed)
		m.advance(jump)
		require.True(t, decide(t, l, "other", 1).Allowed)
		for range 4 { // most of the four calls are after the jump
			require.True(t, decide(t, l, "key", 1).Allowed)
		}
		require.False(t, decide(t, l, "key", 1).Allowed, "denied by the store, after the jump")
		require.NoError(t, admin.Reset(ctx, "key"))
		allowed := false
		for range 20 {
			time.Sleep(5 * time.Millisecond)
			allowed = allowed || decide(t, l, "key", 1).Allowed
		}
		require.NoError(t, l.Close())
		require.NoError(t, admin.Close())
		if !allowed {
			t.Errorf("jump %v: the user that was unblocked elsewhere is denied here for the rest of 24 h", jump)
		}
	}
}

// delayedReply is a store that decides in time but returns its answers late, and without states.
type delayedReply struct {
	remoteBackend
	replyDelay  atomic.Int64
	clockOffset atomic.Int64
}

func (s *delayedReply) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	withoutStates := make([]Result, len(results))
	at, err := s.Store.Take(context.WithoutCancel(ctx), key, n, limits, withoutStates)
	copy(results, withoutStates)
	if wait := s.replyDelay.Load(); wait > 0 {
		time.Sleep(time.Duration(wait))
	}
	return at + Instant(s.clockOffset.Load()), err
}

func (s *delayedReply) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	if at != Now {
		at -= Instant(s.clockOffset.Load())
	}
	return s.Store.Adjust(ctx, key, n, at, limits)
}

func (s *delayedReply) Reset(ctx context.Context, key string, limits []Limit) error {
	return s.Store.Reset(ctx, key, limits)
}

// TestOneLateAnswerIsNoJump delays one answer by 6 s, like a process that is stopped with a
// call in flight. That changes nothing for any key.
func TestOneLateAnswerIsNoJump(t *testing.T) {
	for _, delay := range []time.Duration{0, 6 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			backend := &delayedReply{remoteBackend: remoteBackend{Store: memory(t, "backend")}}
			limit := FixedWindow(5, 24*time.Hour)
			l := processOf(t, backend, Options{Limits: []Limit{limit}, Timeout: 10 * time.Second, DenyRecheck: time.Second})
			decide(t, l, "key", 5)
			require.False(t, decide(t, l, "key", 1).Allowed)
			backend.replyDelay.Store(int64(delay))
			decide(t, l, "other", 1)
			backend.replyDelay.Store(0)
			decide(t, l, "other", 1)
			require.NoError(t, backend.Store.Reset(ctx, "key", []Limit{limit})) // by another process
			time.Sleep(time.Hour)
			decide(t, l, "key", 1)
			if !decide(t, l, "key", 1).Allowed {
				t.Errorf("late by %v: key is denied an hour after it was reset elsewhere", delay)
			}
		})
	}
}

// TestTwoClocksMintNothing has a Ring or Cluster of servers whose clocks differ by 10 s.
func TestTwoClocksMintNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(5, time.Hour)
		shared := memory(t, "backend")
		process := func() (*delayedReply, *Limiter) {
			backend := &delayedReply{remoteBackend: remoteBackend{Store: shared}}
			return backend, processOf(t, backend, Options{Limits: []Limit{limit}, DenyRecheck: time.Millisecond})
		}
		admitted := 0
		for range 10 { // processes
			backend, l := process()
			for i := range 20 {
				backend.clockOffset.Store(0)
				if decide(t, l, "key", 1).Allowed {
					admitted++
				}
				time.Sleep(2 * time.Millisecond)
				if i == 10 {
					backend.clockOffset.Store(int64(10 * time.Second)) // the other server
					decide(t, l, "other", 0)
				}
			}
			synctest.Wait()
		}
		require.LessOrEqual(t, admitted, 5)
	})
}

// perKey is a store of two servers whose clocks differ by 10 s. Answers take 5 ms.
type perKey struct{ delayedReply }

func (s *perKey) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	at, err := s.delayedReply.Take(ctx, key, n, limits, results)
	if key == "other" {
		at += Instant(10 * time.Second)
	}
	return at, err
}

// TestTwoClocksAndManyCallersMintNothing has many callers in each of ten processes use up a
// key together. Its units stay taken for the next process.
func TestTwoClocksAndManyCallersMintNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(5, time.Hour)
		shared := memory(t, "backend")
		var admitted atomic.Int64
		for range 10 { // processes
			backend := &perKey{delayedReply{remoteBackend: remoteBackend{Store: shared}}}
			backend.replyDelay.Store(int64(5 * time.Millisecond))
			l := processOf(t, backend, Options{Limits: []Limit{limit}})
			decide(t, l, "warm", 0)
			for i := range 40 {
				go func() {
					time.Sleep(time.Duration(i) * time.Millisecond / 10)
					if i%4 == 3 {
						l.TakeN(ctx, "other", 0)
					} else if d, err := l.Take(ctx, "key"); err == nil && d.Allowed {
						admitted.Add(1)
					}
				}()
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		require.LessOrEqual(t, admitted.Load(), int64(5))
	})
}

// slowToAdjust blocks Adjust until pass is closed.
type slowToAdjust struct {
	Store
	pass chan struct{}
}

func (s *slowToAdjust) Unwrap() Store { return s.Store }

func (s *slowToAdjust) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	<-s.pass
	return s.Store.Adjust(ctx, key, n, at, limits)
}

// TestUnitsOnTheirWayBackAfterAJumpFreeNobody has a store that has counted as many
// overruled units as the limit allows, and so denies before they are given back.
// That denial does not replace the one from before the jump.
func TestUnitsOnTheirWayBackAfterAJumpFreeNobody(t *testing.T) {
	for _, limit := range algorithms(5, time.Hour) {
		m := newMini(t)
		inner := redisStore(t, m.client(t), "rl:")
		store := &slowToAdjust{inner, make(chan struct{})}
		l, err := new(Registry).New("login", Options{Limits: []Limit{limit}, Store: store, DenyRecheck: time.Nanosecond, Timeout: time.Minute, Logger: quietly})
		require.NoError(t, err)
		for range 5 {
			require.True(t, decide(t, l, "key", 1).Allowed)
		}
		require.False(t, decide(t, l, "key", 1).Allowed)
		m.advance(2 * time.Hour)
		for range 7 {
			require.False(t, decide(t, l, "key", 1).Allowed)
		}
		results, _ := take(t, inner, "key", 0, limit)
		require.Zero(t, results[0].Remaining, "five units are on their way back")
		close(store.pass)
		require.Eventually(t, func() bool {
			results, _ := take(t, inner, "key", 0, limit)
			return results[0].Remaining == 5
		}, 20*time.Second, time.Millisecond)
		for range 7 {
			require.False(t, decide(t, l, "key", 1).Allowed, "%v", limit)
		}
		require.NoError(t, l.Close())
	}
}
