package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// hookedStore calls a function after a denial, once, before it returns to the limiter.
type hookedStore struct {
	Store
	denied atomic.Pointer[func()]
}

func (s *hookedStore) Unwrap() Store { return s.Store }

func (s *hookedStore) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	at, err := s.Store.Take(ctx, key, n, limits, results)
	if err == nil && n > 0 && results[0].RetryAfter > 0 {
		if f := s.denied.Swap(nil); f != nil {
			(*f)()
		}
	}
	return at, err
}

// TestUnitsComeBackBeforeTheCallerWaits: units that come back after a denial, and before the
// denied caller is in the queue, are not missed.
func TestUnitsComeBackBeforeTheCallerWaits(t *testing.T) {
	for name, free := range map[string]func(t *testing.T, l *Limiter){
		"Refund":    func(t *testing.T, l *Limiter) { require.NoError(t, l.Refund(t.Context(), "k", 1)) },
		"Reset":     func(t *testing.T, l *Limiter) { require.NoError(t, l.Reset(t.Context(), "k")) },
		"SetLimits": func(t *testing.T, l *Limiter) { require.NoError(t, l.SetLimits(FixedWindow(3, time.Hour))) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &hookedStore{Store: memory(t, "m")}
				o := quiet(FixedWindow(2, time.Hour))
				o.Store = store
				l := httpLimiter(t, o)
				took(t, l, "k", 2)
				now := func() { free(t, l) }
				store.denied.Store(&now)
				start := time.Now()
				require.NoError(t, l.Wait(t.Context(), "k", 1))
				require.Zero(t, time.Since(start))
			})
		})
	}
}

// TestCloseBeforeTheCallerWaits: Close lets go of a caller that has been denied and is not in
// the queue yet.
func TestCloseBeforeTheCallerWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &hookedStore{Store: memory(t, "m")}
		o := quiet(FixedWindow(2, time.Hour))
		o.Store = store
		l := httpLimiter(t, o)
		took(t, l, "k", 2)
		now := func() { l.Close() }
		store.denied.Store(&now)
		start := time.Now()
		require.ErrorIs(t, l.Wait(t.Context(), "k", 1), ErrClosed)
		require.Zero(t, time.Since(start))
		require.Zero(t, l.Stats().Waiting)
	})
}

// TestClosedLimiterDoesNotWaitBehindItsSuccessor: a call of a closed limiter ends at once,
// also if a caller of its successor waits for the same key.
func TestClosedLimiterDoesNotWaitBehindItsSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := new(Registry)
		defer reg.Close()
		o := quiet(FixedWindow(1, time.Hour))
		o.Store = memory(t, "m")
		old := Must(reg.New("l", o))
		took(t, old, "k", 1)
		var next *Limiter
		require.NoError(t, reg.Reload(func(r *Registry) (err error) {
			next, err = r.New("l", o)
			return err
		}))
		go next.Wait(t.Context(), "k", 1)
		synctest.Wait()
		old.Close()
		start := time.Now()
		require.ErrorIs(t, old.Wait(t.Context(), "k", 1), ErrClosed)
		require.Zero(t, time.Since(start))
		next.Close()
		synctest.Wait()
		require.Zero(t, next.Stats().Waiting)
	})
}

// TestCloseEndsTheWaitingBeforeAReload: Close lets the callers go that wait at the limiters that
// its one has replaced. A limiter whose Reload fails is closed, too, and lets nobody else go.
func TestCloseEndsTheWaitingBeforeAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := new(Registry)
		defer reg.Close()
		o := quiet(FixedWindow(1, time.Hour))
		o.Store = memory(t, "m")
		var l *Limiter
		build := func(r *Registry) (err error) {
			l, err = r.New("l", o)
			return err
		}
		start, ended := time.Now(), make(chan error, 8)
		for range 3 {
			require.NoError(t, reg.Reload(build))
			l.Take(t.Context(), "k")
			for range 2 {
				go func() { ended <- l.Wait(context.Background(), "k", 1) }()
				synctest.Wait()
			}
		}
		last := l
		fails := errors.New("a mistake in the configuration")
		require.ErrorIs(t, reg.Reload(func(r *Registry) error {
			require.NoError(t, build(r))
			go func() { ended <- l.Wait(context.Background(), "k", 1) }()
			synctest.Wait()
			return fails
		}), fails)
		require.ErrorIs(t, <-ended, ErrClosed)
		require.Equal(t, 6, last.Stats().Waiting)
		reg.Close()
		for range 6 {
			require.ErrorIs(t, <-ended, ErrClosed)
		}
		require.Zero(t, time.Since(start))
		require.Zero(t, last.Stats().Waiting)
	})
}

// TestCallerWaitsDuringReload: a caller that waits at a new limiter while its Reload is not
// done yet stays in its queue.
func TestCallerWaitsDuringReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := new(Registry)
		defer reg.Close()
		o := quiet(TokenBucket(1, time.Second, 1))
		o.Store = memory(t, "m")
		old := Must(reg.New("l", o))
		took(t, old, "k", 1)
		ended := make(chan error, 1)
		require.NoError(t, reg.Reload(func(r *Registry) error {
			next, err := r.New("l", o)
			go func() { ended <- next.Wait(context.Background(), "k", 1) }()
			synctest.Wait()
			return err
		}))
		require.NoError(t, <-ended)
		require.Zero(t, old.Stats().Waiting)
	})
}

// TestWaitForMoreThanTheLimit: calls for more units than a limit can hold are denied when
// they are the first in line, and do not hold up the ones behind them.
func TestWaitForMoreThanTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, TokenBucket(1, time.Second, 5))
		took(t, l, "k", 5)
		ctx := context.Background()
		all := waitInTurn(ctx, l, "k", 1, 6, 7, 6, 1)
		require.Equal(t, waited{time.Second, nil}, all[0])
		for _, w := range all[1:4] {
			require.ErrorAs(t, w.err, new(*DeniedError))
			require.Less(t, w.at, 3*time.Second)
		}
		require.Equal(t, waited{2 * time.Second, nil}, all[4])
		require.Zero(t, l.Stats().Waiting)
	})
}

// TestDeniedHeadDoesNotDenyOthers: when a call for many units is denied, and with it the next
// one for as many, a call for few behind them is not.
func TestDeniedHeadDoesNotDenyOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, TokenBucket(1, time.Second, 10))
		took(t, l, "k", 10)
		done := make([]waited, 4)
		start := time.Now()
		var group sync.WaitGroup
		for i, c := range []struct {
			n    int64
			most time.Duration
		}{{1, time.Minute}, {10, 5 * time.Second}, {10, 5 * time.Second}, {1, 5 * time.Second}} {
			group.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), c.most)
				defer cancel()
				err := l.Wait(ctx, "k", c.n)
				done[i] = waited{time.Since(start), err}
			})
			synctest.Wait()
		}
		group.Wait()
		require.Equal(t, waited{time.Second, nil}, done[0])
		require.ErrorAs(t, done[1].err, new(*DeniedError))
		require.ErrorAs(t, done[2].err, new(*DeniedError))
		require.Equal(t, waited{2 * time.Second, nil}, done[3])
	})
}

// TestMaxWaitCountsFromArrival: a slow store does not make MaxWait longer.
func TestMaxWaitCountsFromArrival(t *testing.T) {
	o := quiet(TokenBucket(1, time.Second, 1))
	o.MaxWait, o.Timeout = time.Second, time.Second
	o.Key = func(*http.Request) (string, error) { return "k", nil }
	o.MaxWait = 900 * time.Millisecond
	remotely(t, o, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		take(t, backend.Store, "k", 1, o.Limits...)
		backend.delay(300 * time.Millisecond)
		start := time.Now()
		w := httptest.NewRecorder()
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
		require.Equal(t, 300*time.Millisecond, time.Since(start))
		require.Equal(t, http.StatusTooManyRequests, w.Code, "700 ms more are too long")
	})
}

// TestNewcomersAfterARefund: once units have come back, a caller is not denied because of the
// time until which the head of the line has slept.
func TestNewcomersAfterARefund(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, FixedWindow(2, time.Hour))
		took(t, l, "k", 2)
		head := make(chan error, 1)
		go func() { head <- l.Wait(t.Context(), "k", 1) }()
		synctest.Wait()
		require.NoError(t, l.Refund(t.Context(), "k", 2))
		short, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, l.Wait(short, "k", 1))
		require.NoError(t, <-head)
	})
}

// TestLimitsChangeBeforeTheRequestAsks: a request whose limits are replaced while Options.Cost
// runs waits under the new ones.
func TestLimitsChangeBeforeTheRequestAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *Limiter
		o := quiet(FixedWindow(1, time.Hour))
		o.MaxWait = 2 * time.Hour
		o.Cost = func(*http.Request) int64 {
			require.NoError(t, l.SetLimits(FixedWindow(2, time.Hour)))
			return 1
		}
		l = httpLimiter(t, o)
		took(t, l, httpKey, 1)
		start := time.Now()
		w := httptest.NewRecorder()
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
		require.Equal(t, http.StatusNoContent, w.Code)
		require.Zero(t, time.Since(start))
	})
}

// TestLeftRequestIsNotDenied: a request whose client has left is not counted as denied, also
// if the head of its line sleeps for too long.
func TestLeftRequestIsNotDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := quiet(FixedWindow(1, time.Hour))
		o.MaxWait = time.Minute
		l := httpLimiter(t, o)
		took(t, l, httpKey, 1)
		waits, leave := context.WithCancel(t.Context())
		go l.Wait(waits, httpKey, 1)
		synctest.Wait()
		left, cancel := context.WithCancel(t.Context())
		cancel()
		require.Equal(t, context.Canceled, l.Wait(left, httpKey, 1))
		w := httptest.NewRecorder()
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET").WithContext(left))
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.EqualValues(t, 0, l.Stats().Denied)
		require.EqualValues(t, 1, l.Stats().Failed)
		leave()
	})
}

// TestManyWaitersOfOneKey: all callers of a long line are denied, admitted or let go.
func TestManyWaitersOfOneKey(t *testing.T) {
	const n = 4000 // the race detector bounds the number of goroutines
	for _, way := range []string{"denied", "admitted", "left", "closed"} {
		l := limiter(t, FixedWindow(1, time.Hour))
		took(t, l, "k", 1)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour)
		defer cancel()
		var group sync.WaitGroup
		var ended sync.Map
		count := func(how string) {
			number, _ := ended.LoadOrStore(how, new(atomic.Int64))
			number.(*atomic.Int64).Add(1)
		}
		for range n {
			group.Go(func() {
				switch err := l.Wait(ctx, "k", 1); {
				case err == nil:
					count("admitted")
				case errors.As(err, new(*DeniedError)):
					count("denied")
				case errors.Is(err, context.Canceled):
					count("left")
				case errors.Is(err, ErrClosed):
					count("closed")
				}
			})
		}
		untilWaiting(t, l, n)
		switch way {
		case "denied":
			require.NoError(t, l.Block(ctx, "k", 4*time.Hour))
			require.NoError(t, l.Refund(ctx, "k", 1)) // wakes the head
		case "admitted":
			require.NoError(t, l.SetLimits(FixedWindow(n+1, time.Hour)))
		case "left":
			cancel()
		case "closed":
			require.NoError(t, l.Close())
		}
		group.Wait()
		number, _ := ended.Load(way)
		require.NotNil(t, number, way)
		require.EqualValues(t, n, number.(*atomic.Int64).Load(), way)
		require.Zero(t, l.Stats().Waiting)
	}
}

// TestRandomWaitingRequests: in random histories with plans, costs, outages, changed limits and
// reloads, each request is counted once, waits for no longer than MaxWait, and no count leaks.
func TestRandomWaitingRequests(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 7))
		synctest.Test(t, func(t *testing.T) {
			reg := new(Registry)
			var ls [2]atomic.Pointer[Limiter]
			backend := &remoteBackend{Store: memory(t, "backend")}
			o := quiet(TokenBucket(20, time.Second, 5))
			o.MaxWait, o.MaxWaiting = 700*time.Millisecond, 20
			o.OnFailure = []FailurePolicy{FallbackLocal, FailOpen, FailClosed}[seed%3]
			o.Key = func(r *http.Request) (string, error) { return r.Header.Get("K"), nil }
			o.Cost = func(r *http.Request) int64 { return int64(len(r.Header.Get("C"))) }
			o.Count = func(r *http.Request, status int) bool { return r.Header.Get("C") != "x" }
			o.Skip = func(r *http.Request) bool { return r.Header.Get("S") != "" }
			o.LimitsFor = func(r *http.Request) []Limit {
				if r.Header.Get("P") != "" {
					return []Limit{TokenBucket(20, time.Second, 6), FixedWindow(30, time.Second), Rolling(9, time.Second)}
				}
				return nil
			}
			if seed%2 == 0 {
				o.Store = backend
			} else {
				o.Store = memory(t, "m")
			}
			if seed%4 == 0 {
				o.Lease = 50 * time.Millisecond
			}
			first := Must(reg.New("l", o))
			ls[0].Store(first)
			var group sync.WaitGroup
			requests := 0
			for range 300 {
				at, leaves := time.Duration(r.IntN(3000))*time.Millisecond, time.Duration(r.IntN(900))*time.Millisecond
				fields := []string{"K: " + []string{"a", "b", "c", ""}[min(r.IntN(40)/13, 3)], "C: " + "xxx"[:r.IntN(4)]}
				if r.IntN(20) == 0 {
					fields = append(fields, "S: 1")
				}
				if r.IntN(4) == 0 {
					fields = append(fields, "P: 1")
				}
				quits, deadline := r.IntN(5) == 0, r.IntN(5) == 0
				requests++
				group.Go(func() {
					time.Sleep(at)
					ctx, cancel := context.WithCancel(context.Background())
					if deadline {
						ctx, cancel = context.WithTimeout(context.Background(), leaves)
					}
					defer cancel()
					if quits {
						defer time.AfterFunc(leaves, cancel).Stop()
					}
					w := httptest.NewRecorder()
					start := time.Now()
					ls[0].Load().Middleware(httpServed).ServeHTTP(w, httpRequest("GET", fields...).WithContext(ctx))
					most := o.MaxWait
					if seed%2 == 0 {
						most += 2 * time.Second // calls of a store that does not answer
					}
					if d := time.Since(start); d > most {
						t.Errorf("seed %d: a request took %v: status %d", seed, d, w.Code)
					}
				})
			}
			for range 25 {
				at, what := time.Duration(r.IntN(3000))*time.Millisecond, r.IntN(9)
				key, n := fmt.Sprint(string("abc"[r.IntN(3)])), int64(r.IntN(5))
				group.Go(func() {
					time.Sleep(at)
					l := ls[0].Load()
					switch what {
					case 0:
						l.SetLimits(TokenBucket(20, time.Second, 5), FixedWindow(25, time.Second))
					case 1:
						l.SetLimits(Unlimited)
						time.Sleep(20 * time.Millisecond)
						l.SetLimits(TokenBucket(20, time.Second, 5))
					case 2:
						l.SetLimits(Deny)
						time.Sleep(20 * time.Millisecond)
						l.SetLimits(Rolling(9, time.Second))
					case 3:
						l.Reset(context.Background(), key)
					case 4:
						l.Refund(context.Background(), key, n)
					case 5:
						backend.set(mode(n % 5))
						time.Sleep(300 * time.Millisecond)
						backend.set(up)
					case 6:
						reg.Reload(func(r *Registry) error {
							next, err := r.New("l", o)
							if err == nil {
								ls[1].Store(next)
							}
							return err
						})
						if next := ls[1].Load(); next != nil {
							ls[0].Store(next)
						}
					case 7:
						l.Block(context.Background(), key, 200*time.Millisecond)
					case 8:
						l.SetLimits(TokenBucket(20, time.Second, 2))
					}
				})
			}
			group.Wait()
			time.Sleep(10 * time.Second)
			s := ls[0].Load().Stats()
			sum := s.Allowed + s.Denied + s.ShadowDenied + s.Exempt + s.NoKey + s.Failed
			if sum != uint64(requests) || s.Waiting != 0 {
				t.Errorf("seed %d: sum %d of %d, waiting %d: %+v", seed, sum, requests, s.Waiting, s)
			}
			ls[0].Load().Close()
			first.Close()
			reg.Close()
		})
	}
}
