package ratelimit_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// These tests are about blocks with Options.Count at a remote store: the requests of a key
// take turns there.

// loginsAt makes a handler of logins behind a limiter of a remote store. A request with the
// header field Wrong fails. It takes a while to check a password.
func loginsAt(t *testing.T, store Store, o Options) (l *Limiter, h http.Handler, begun *recorder) {
	begun = new(recorder)
	o.Key, o.Count, o.Observe = StaticKey("k"), onlyFailures, begun.observe
	l = processOf(t, store, o)
	h = l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(3 * time.Millisecond)
		if r.Header.Get("Wrong") != "" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	return l, h, begun
}

// together sends requests, with a pause between them, and counts the statuses of the
// responses. It returns when all have ended.
func together(h http.Handler, n int, pause time.Duration, fields ...string) map[int]int {
	var mu sync.Mutex
	var all sync.WaitGroup
	statuses := make(map[int]int)
	for range n {
		all.Go(func() {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httpRequest("POST", fields...))
			mu.Lock()
			defer mu.Unlock()
			statuses[w.Code]++
		})
		time.Sleep(pause)
	}
	all.Wait()
	return statuses
}

// TestParallelGoodLoginsBlockNobodyAtARemoteStore: the store takes longer than the time
// between two requests, so a request is decided while others are on their way. Wrong
// passwords do block, once.
func TestParallelGoodLoginsBlockNobodyAtARemoteStore(t *testing.T) {
	for _, limit := range algorithms(5, time.Hour) {
		for _, lease := range []time.Duration{0, 100 * time.Millisecond} {
			for _, recheck := range []time.Duration{-1, 0, 1} {
				t.Run(fmt.Sprint(limit, lease, recheck), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						backend := &remoteBackend{Store: memory(t, "backend")}
						backend.delay(4 * time.Millisecond)
						limit := limit.Block(3*time.Hour, day)
						l, h, begun := loginsAt(t, backend, Options{Limits: []Limit{limit}, Lease: lease, DenyRecheck: recheck})
						for _, pause := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond} {
							for range 5 {
								statuses := together(h, 20, pause)
								require.Equal(t, 20, statuses[200]+statuses[429])
								require.GreaterOrEqual(t, statuses[200], 5)
								time.Sleep(2 * time.Second)
							}
						}
						require.Empty(t, begun.of(EventBlocked))
						require.Zero(t, backend.blocked(t, "k", limit))
						require.EqualValues(t, 5, backend.remaining(t, "k", limit), "nothing counts")

						calls := backend.calls.Load()
						statuses := together(h, 1000, 0, "Wrong: yes")
						require.Equal(t, map[int]int{401: 5, 429: 995}, statuses)
						if recheck != 1 {
							require.Less(t, backend.calls.Load(), calls+20, "the others learn of the denial from the first ones")
						}
						time.Sleep(2 * time.Second)
						require.Equal(t, map[int]int{429: 10}, together(h, 10, 0, "Wrong: yes"))
						require.Len(t, begun.of(EventBlocked), 1)
						require.NotZero(t, backend.blocked(t, "k", limit))
						require.Zero(t, l.Stats().Remote.Owed)

						time.Sleep(3 * time.Hour)
						begun.all()
						together(h, 100, 7*time.Millisecond, "Wrong: yes")
						began := begun.of(EventBlocked)
						require.Len(t, began, 1)
						require.Equal(t, day, began[0].Duration)
					})
				})
			}
		}
	}
}

// TestParallelGoodLoginsBlockNobodyAtRedis does the same with the scripts.
func TestParallelGoodLoginsBlockNobodyAtRedis(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, c *redis.Client) {
		limit := SlidingWindow(5, time.Hour).Block(3*time.Hour, day)
		_, h, begun := loginsAt(t, redisStore(t, c, "rl:"), Options{Limits: []Limit{limit}})
		for range 20 {
			require.Equal(t, 20, func() int { s := together(h, 20, 0); return s[200] + s[429] }())
			time.Sleep(time.Second)
		}
		require.Empty(t, begun.of(EventBlocked))
		statuses := together(h, 1000, 0, "Wrong: yes")
		require.Equal(t, map[int]int{401: 5, 429: 995}, statuses)
		time.Sleep(2 * time.Second)
		require.Equal(t, map[int]int{429: 10}, together(h, 10, 0, "Wrong: yes"))
		require.Len(t, begun.of(EventBlocked), 1)
	})
}

// TestBlockStartsWhenRequestsUnderWayHaveFailed: a denial that starts no block, because
// requests are under way, does not keep the next one from starting it, also if denials are
// answered without the store.
func TestBlockStartsWhenRequestsUnderWayHaveFailed(t *testing.T) {
	for _, recheck := range []time.Duration{-1, 0} {
		synctest.Test(t, func(t *testing.T) {
			backend := &remoteBackend{Store: memory(t, "backend")}
			s := newLogins(t, Options{Store: backend, DenyRecheck: recheck})
			s.begin("a", "b", "c", "d", "e")
			calls := backend.calls.Load()
			for range 10 {
				require.Equal(t, "3600", s.try(200).Header().Get("Retry-After"))
			}
			require.Equal(t, calls+1, backend.calls.Load(), "denials are cached meanwhile")
			s.end(401, "a", "b", "c", "d", "e")
			s.denied(t, 3*time.Hour, true)
			calls = backend.calls.Load()
			for range 10 {
				require.Equal(t, 429, s.try(200).Code)
			}
			require.Equal(t, calls, backend.calls.Load())

			// While one of them may yet succeed, a request that would not fit without it, either,
			// starts a block.
			time.Sleep(3 * time.Hour)
			s.begin("a", "b", "c", "d", "e")
			s.denied(t, time.Hour, false)
			s.end(401, "a", "b", "c", "d")
			d := decide(t, s.limiter, httpKey, 5)
			require.True(t, d.Blocked)
			require.Equal(t, day, d.RetryAfter)
			s.end(200, "e")
		})
	}
}

// TestOnlyFailuresLeadToABlockInAnOutage: this process decides, and knows which requests are
// under way.
func TestOnlyFailuresLeadToABlockInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		s := newLogins(t, Options{Store: backend})
		startOutage(t, backend, s.limiter, refused)
		s.begin("a", "b", "c", "d", "e")
		s.denied(t, time.Hour, false)
		s.end(200, "a", "b", "c", "d", "e")
		for range 5 {
			require.Equal(t, 401, s.try(401).Code)
		}
		s.denied(t, 3*time.Hour, true)
		endOutage(t, backend, s.limiter)
		require.Equal(t, 3*time.Hour-1300*time.Millisecond, backend.blocked(t, httpKey, FixedWindow(5, time.Hour)))
	})
}

// TestRequestsWithoutATurnStartNoBlock: the store hangs, and good logins do not get their
// turns.
func TestRequestsWithoutATurnStartNoBlock(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			backend := &remoteBackend{Store: memory(t, "backend")}
			_, h, begun := loginsAt(t, backend, Options{Limits: []Limit{hour.Block(day)}})
			backend.set(silent)
			together(h, 40, 0)
			require.Empty(t, begun.of(EventBlocked))
			backend.set(up)
			time.Sleep(10 * time.Second)
		})
	}
}

// TestDecisionsAreTimelyWhileTurnsWait: a store that hangs holds up no request of the key
// for longer than Timeout, although they take turns. FailOpen admits only what the store
// has not answered. The requests that did not get their turn are limited in this process.
func TestDecisionsAreTimelyWhileTurnsWait(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		for _, pause := range []time.Duration{0, time.Millisecond / 2} {
			for _, owing := range []bool{false, true} {
				if owing && policy != FallbackLocal {
					continue
				}
				t.Run(fmt.Sprint(policy, pause, owing), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { timelyTurns(t, policy, pause, owing) })
				})
			}
		}
	}
}

func timelyTurns(t *testing.T, policy FailurePolicy, pause time.Duration, owing bool) {
	const timeout = 100 * time.Millisecond
	backend := &remoteBackend{Store: memory(t, "backend")}
	limit := FixedWindow(10, time.Hour).Block(3 * time.Hour)
	l, _, _ := loginsAt(t, backend, Options{Limits: []Limit{limit}, Timeout: timeout, OnFailure: policy})
	idle := goroutines()
	backend.set(silent)
	if owing { // the store is owed a unit, and is slow to take it
		backend.set(refused)
		took(t, l, "k", 1)
		backend.set(up)
		backend.delay(45 * time.Millisecond)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var worst time.Duration
	sources, allowed, failed := map[Source]int{}, 0, 0
	for range 100 {
		all.Go(func() {
			start := time.Now()
			d, err := l.Take(ctx, "k")
			mu.Lock()
			defer mu.Unlock()
			worst = max(worst, time.Since(start))
			switch {
			case err != nil:
				failed++
			case d.Allowed:
				allowed++
				sources[d.Source]++
			}
		})
		time.Sleep(pause)
	}
	all.Wait()
	require.LessOrEqual(t, worst, timeout)
	switch policy {
	case FailClosed:
		require.Equal(t, 100, failed)
	case FailOpen:
		require.Equal(t, map[Source]int{SourceFailOpen: 100}, sources)
	default:
		require.LessOrEqual(t, allowed, 10)
	}
	backend.set(up)
	backend.delay(0)
	time.Sleep(10 * time.Second)
	decide(t, l, "other", 0)
	time.Sleep(10 * time.Second)
	synctest.Wait()
	require.Zero(t, l.Stats().Remote.Owed)
	require.LessOrEqual(t, goroutines(), idle, "nothing is left")
}

// TestBusyKeyWithTurnsOpensNoBreaker: more requests of one key than the store can decide in
// turn say nothing about the store.
func TestBusyKeyWithTurnsOpensNoBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		backend.delay(4 * time.Millisecond)
		limit := FixedWindow(100_000, time.Hour).Block(day)
		l, h, _ := loginsAt(t, backend, Options{Limits: []Limit{limit}})
		statuses := together(h, 3000, time.Millisecond+time.Microsecond)
		require.Equal(t, map[int]int{200: 3000}, statuses)
		require.Zero(t, l.Stats().Remote.BreakerOpened)
		time.Sleep(time.Second)
		require.EqualValues(t, 100_000, backend.remaining(t, "k", limit))
	})
	// But a store that hangs is found out.
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		l, h, _ := loginsAt(t, backend, Options{Limits: []Limit{FixedWindow(100_000, time.Hour).Block(day)}})
		together(h, 1, 0)
		backend.set(silent)
		together(h, 3000, time.Millisecond+time.Microsecond)
		require.NotZero(t, l.Stats().Remote.BreakerOpened)
		backend.set(up)
		time.Sleep(10 * time.Second)
	})
}

// TestTurnsOfCallersThatLeave: a caller whose context ends gives up its place, and the others
// get their turns.
func TestTurnsOfCallersThatLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		backend.delay(10 * time.Millisecond)
		l, _, _ := loginsAt(t, backend, Options{Limits: []Limit{FixedWindow(10, time.Hour).Block(day)}, Timeout: time.Second})
		var all sync.WaitGroup
		var left, admitted atomic.Int64
		for i := range 30 {
			all.Go(func() {
				c, cancel := context.WithTimeout(ctx, time.Second)
				if i%3 != 0 {
					c, cancel = context.WithTimeout(ctx, time.Duration(i)*time.Millisecond)
				}
				defer cancel()
				d, err := l.Take(c, "k")
				if err != nil {
					require.ErrorIs(t, err, context.DeadlineExceeded)
					left.Add(1)
				} else if d.Allowed {
					admitted.Add(1)
				}
			})
		}
		all.Wait()
		require.LessOrEqual(t, admitted.Load(), int64(10))
		require.NotZero(t, left.Load())
		require.Less(t, backend.calls.Load(), int64(30), "no call for those that have left")
		calls := backend.calls.Load()
		decide(t, l, "k", 0)
		require.Equal(t, calls+1, backend.calls.Load(), "the turn of the last one has ended")
	})
}

// TestAddCostWithTurns: units that a request adds may be given back with it, so a denial
// because of them starts no block until the request has failed.
func TestAddCostWithTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		backend.delay(5 * time.Millisecond)
		var l *Limiter
		proceed := make(chan int)
		l = processOf(t, backend, Options{Limits: []Limit{hour.Block(day)}, Key: StaticKey("k"), Count: onlyFailures})
		h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.NoError(t, l.AddCost(r.Context(), 4))
			w.WriteHeader(<-proceed)
		}))
		for _, status := range []int{200, 401} {
			go h.ServeHTTP(httptest.NewRecorder(), httpRequest("POST"))
			time.Sleep(time.Second)
			d := decide(t, l, "k", 1)
			require.False(t, d.Allowed)
			require.False(t, d.Blocked, "all five units may be given back")
			proceed <- status
			time.Sleep(time.Second)
			if status == 200 {
				require.EqualValues(t, 5, decide(t, l, "k", 0).Remaining)
			}
		}
		blockedFor(t, l, "k", day)
	})
}
