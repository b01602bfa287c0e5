package ratelimit_test

import (
	"context"
	"fmt"
	"math"
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

// waited is when a call of Wait has ended, and how.
type waited struct {
	at  time.Duration
	err error
}

// waitInTurn starts calls of Wait, each a millisecond after the one before, and returns when
// each of them has ended, since the first one has begun.
func waitInTurn(ctx context.Context, l *Limiter, key string, costs ...int64) []waited {
	all := make([]waited, len(costs))
	start := time.Now()
	var group sync.WaitGroup
	for i, n := range costs {
		group.Go(func() {
			time.Sleep(time.Duration(i) * time.Millisecond)
			err := l.Wait(ctx, key, n)
			all[i] = waited{time.Since(start), err}
		})
	}
	group.Wait()
	return all
}

func ones(n int) (costs []int64) {
	for range n {
		costs = append(costs, 1)
	}
	return costs
}

// TestWaitAdmitsInOrder: callers get their units in order of arrival, each exactly when its
// units fit, under every algorithm.
func TestWaitAdmitsInOrder(t *testing.T) {
	for _, limit := range []Limit{TokenBucket(10, time.Second, 1), FixedWindow(3, time.Second), SlidingWindow(3, time.Second), Rolling(3, time.Second)} {
		t.Run(limit.Algorithm(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := limiter(t, limit)
				all := waitInTurn(t.Context(), l, "k", ones(20)...)
				for i, w := range all {
					require.NoError(t, w.err)
					if i > 0 {
						require.LessOrEqual(t, all[i-1].at, w.at, "number %d", i)
					}
				}
				switch limit.Algorithm() {
				case "bucket":
					for i, w := range all {
						require.Equal(t, time.Duration(i)*100*time.Millisecond, w.at, "number %d", i)
					}
				case "rolling":
					for i, w := range all[3:] {
						require.GreaterOrEqual(t, w.at-all[i].at, time.Second)
					}
				case "fixed":
					require.Equal(t, 2*time.Millisecond, all[2].at)
					require.Equal(t, time.Second, all[3].at)
					require.Equal(t, 6*time.Second, all[19].at)
				}
				stats := l.Stats()
				require.EqualValues(t, 20, stats.Allowed)
				require.EqualValues(t, 0, stats.Denied)
				require.Zero(t, stats.Waiting)
			})
		})
	}
}

// TestWaitTakesOneDecisionForEachUnit: 50 callers that wait for 40 units take about 40
// decisions. A loop of each caller's own took 1,325.
func TestWaitTakesOneDecisionForEachUnit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := &countingStore{Store: memory(t, "m")}
		o := quiet(TokenBucket(10, time.Second, 10))
		o.Store = asked
		l := httpLimiter(t, o)
		took(t, l, "k", 10)
		asked.takes.Store(0)
		ctx, cancel := context.WithTimeout(t.Context(), 4050*time.Millisecond)
		defer cancel()
		admitted := 0
		for _, w := range waitInTurn(ctx, l, "k", ones(50)...) {
			if w.err == nil {
				admitted++
			} else {
				require.ErrorAs(t, w.err, new(*DeniedError))
			}
		}
		require.Equal(t, 40, admitted)
		require.LessOrEqual(t, asked.takes.Load(), int64(45))
		require.LessOrEqual(t, asked.looks.Load(), int64(10))
		stats := l.Stats()
		require.EqualValues(t, 50, stats.Allowed)
		require.EqualValues(t, 10, stats.Denied)
	})
}

// countingStore counts how often it is asked.
type countingStore struct {
	Store
	takes, looks atomic.Int64
}

func (s *countingStore) Unwrap() Store { return s.Store }

func (s *countingStore) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	if n > 0 {
		s.takes.Add(1)
	} else {
		s.looks.Add(1)
	}
	return s.Store.Take(ctx, key, n, limits, results)
}

// TestWaitEnds lists how Wait ends without the units.
func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, FixedWindow(2, time.Minute))
		took(t, l, "k", 2)

		start := time.Now()
		soon, cancel := context.WithTimeout(t.Context(), time.Minute-1)
		defer cancel()
		var denied *DeniedError
		require.ErrorAs(t, l.Wait(soon, "k", 1), &denied)
		require.Equal(t, time.Minute, denied.Decision.RetryAfter)
		require.Equal(t, "ratelimit: "+denied.Decision.Policy+": the units do not fit before the deadline: denied by 2/1m fixed for 1m0s", denied.Error())
		require.Zero(t, time.Since(start), "it is clear at once")

		require.ErrorAs(t, l.Wait(t.Context(), "k", 3), &denied)
		require.Equal(t, Never, denied.Decision.RetryAfter)
		require.ErrorContains(t, denied, ": 2/1m fixed can never hold that many units")
		require.Zero(t, time.Since(start))

		enough, cancel := context.WithTimeout(t.Context(), time.Minute+1)
		defer cancel()
		require.NoError(t, l.Wait(enough, "k", 1))
		require.Equal(t, time.Minute, time.Since(start))
		took(t, l, "k", 1)

		leaves, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		require.Equal(t, context.Canceled, l.Wait(leaves, "k", 1))
		require.Equal(t, time.Minute+time.Second, time.Since(start))
		require.Equal(t, context.Canceled, l.Wait(leaves, "k", 1))
		require.Zero(t, leftOf(t, l, "k"))

		require.NoError(t, l.Wait(t.Context(), "k", 0))
		require.ErrorContains(t, l.Wait(t.Context(), "k", -1), "cannot take -1 units")
		require.ErrorIs(t, l.Wait(t.Context(), "", 1), ErrNoKey)
		require.NoError(t, l.Wait(t.Context(), "other", 2))

		time.AfterFunc(time.Second, func() { l.Close() })
		for _, w := range waitInTurn(t.Context(), l, "k", 1, 1, 1) {
			require.ErrorIs(t, w.err, ErrClosed)
			require.Equal(t, time.Second, w.at)
		}
		require.Zero(t, l.Stats().Waiting)
	})
}

// TestWaitersBehindADearOne: a call for many units holds up calls for few. Those whose time
// does not suffice are denied at once, without taking the units that the head waits for.
func TestWaitersBehindADearOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, TokenBucket(1, time.Second, 10))
		took(t, l, "k", 8) // 2 are left
		done := make(chan waited, 3)
		start := time.Now()
		wait := func(n int64, most time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), most)
			defer cancel()
			err := l.Wait(ctx, "k", n)
			done <- waited{time.Since(start), err}
		}
		go wait(10, time.Minute) // fits in 8 s
		synctest.Wait()
		go wait(1, 7*time.Second)
		short := <-done
		require.Zero(t, short.at)
		var denied *DeniedError
		require.ErrorAs(t, short.err, &denied)
		require.Equal(t, 8*time.Second, denied.Decision.RetryAfter)
		go wait(1, 9*time.Second+1)
		require.Equal(t, waited{8 * time.Second, nil}, <-done)
		require.Equal(t, waited{9 * time.Second, nil}, <-done)
		require.EqualValues(t, 1, l.Stats().Denied)
	})
}

// TestWaitersAreWoken: units that come back early are used early.
func TestWaitersAreWoken(t *testing.T) {
	for name, free := range map[string]func(t *testing.T, l *Limiter){
		"Refund":    func(t *testing.T, l *Limiter) { require.NoError(t, l.Refund(t.Context(), "k", 1)) },
		"Reset":     func(t *testing.T, l *Limiter) { require.NoError(t, l.Reset(t.Context(), "k")) },
		"SetLimits": func(t *testing.T, l *Limiter) { require.NoError(t, l.SetLimits(FixedWindow(3, time.Hour))) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := limiter(t, FixedWindow(2, time.Hour))
				took(t, l, "k", 2)
				time.AfterFunc(time.Minute, func() { free(t, l) })
				start := time.Now()
				require.NoError(t, l.Wait(t.Context(), "k", 1))
				require.Equal(t, time.Minute, time.Since(start))
			})
		})
	}
}

// TestMaxWait: requests wait for MaxWait at most, in line, and each is one decision.
func TestMaxWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen observed
		o := quiet(TokenBucket(10, time.Second, 1))
		o.MaxWait, o.Observe = 500*time.Millisecond, seen.add
		l := httpLimiter(t, o)
		h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d, ok := DecisionFrom(r.Context())
			require.True(t, ok && d.Allowed)
		}))
		start := time.Now()
		var group sync.WaitGroup
		var codes, ends [8]int
		for i := range codes {
			group.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httpRequest("GET"))
				codes[i], ends[i] = w.Code, int(time.Since(start)/time.Millisecond)
			})
		}
		group.Wait()
		// The request of 5 ms waits for 495 ms. When it is admitted, it is clear that the ones
		// after it would have to wait for more than 500.
		require.Equal(t, [8]int{200, 200, 200, 200, 200, 200, 429, 429}, codes)
		require.Equal(t, [8]int{0, 100, 200, 300, 400, 500, 500, 500}, ends)
		stats := l.Stats()
		require.EqualValues(t, 6, stats.Allowed)
		require.EqualValues(t, 2, stats.Denied)
		require.EqualValues(t, 7, stats.Waited)
		require.Equal(t, (99+198+297+396+495+494+493)*time.Millisecond, stats.WaitTime)
		require.Len(t, seen.events, 2)
	})
}

// TestMaxWaiting: too many requests of one key, or of all, are denied at once.
func TestMaxWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := quiet(FixedWindow(1, time.Hour))
		o.MaxWait, o.MaxWaiting = 2*time.Hour, 20
		o.Key = func(r *http.Request) (string, error) { return r.Header.Get("K"), nil }
		l := httpLimiter(t, o)
		h := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		var denied atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		request := func(key string) {
			group.Go(func() {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httpRequest("GET", "K: "+key).WithContext(ctx))
				if w.Code == 429 {
					denied.Add(1)
				}
			})
			synctest.Wait()
		}
		for range 1 + 16 + 2 { // one is admitted
			request("a")
		}
		require.EqualValues(t, 2, denied.Load())
		require.Equal(t, 16, l.Stats().Waiting)
		for range 3 {
			request("b")
			request("c")
		}
		require.Equal(t, 20, l.Stats().Waiting)
		request("d")
		require.EqualValues(t, 2, denied.Load(), "the first request of a key need not wait")
		request("d")
		require.EqualValues(t, 3, denied.Load())
		go l.Wait(ctx, "a", 1) // is not bounded
		synctest.Wait()
		require.Equal(t, 21, l.Stats().Waiting)
		cancel()
		group.Wait()
		synctest.Wait()
		require.Zero(t, l.Stats().Waiting)
	})
}

// TestMaxWaitRefuses lists options that make no sense.
func TestMaxWaitRefuses(t *testing.T) {
	for want, change := range map[string]func(o *Options){
		"Options.MaxWait is -1s: want more than 0":                 func(o *Options) { o.MaxWait = -time.Second },
		"Options.MaxWaiting is 5, but no request waits":            func(o *Options) { o.MaxWaiting = 5 },
		"Options.MaxWaiting is -5: want at least 1, or 0 for 1024": func(o *Options) { o.MaxWait, o.MaxWaiting = time.Second, -5 },
	} {
		o := quiet(hour)
		change(&o)
		_, err := new(Registry).New("l", o)
		require.ErrorContains(t, err, want)
	}
	o := quiet(hour)
	o.MaxWait = time.Second
	refuses(t, o, FixedWindow(5, time.Minute).Block(time.Hour), "blocks a key whose request is denied, and Options.MaxWait is 1s")
}

// TestWaitRaces: many callers of some keys wait, leave and are woken, all at once. Each key
// gets what its limit allows, and nobody is forgotten.
func TestWaitRaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, TokenBucket(100, time.Second, 10))
		var group sync.WaitGroup
		var admitted, left, denied atomic.Int64
		for i := range 600 {
			group.Go(func() {
				time.Sleep(time.Duration(i%50) * time.Millisecond)
				ctx, cancel := context.WithCancel(t.Context())
				if i%3 == 0 {
					ctx, cancel = context.WithTimeout(t.Context(), time.Duration(1+i%700)*time.Millisecond)
				}
				defer cancel()
				if i%7 == 0 {
					time.AfterFunc(time.Duration(i%300)*time.Millisecond, cancel)
				}
				switch err := l.Wait(ctx, fmt.Sprint(i%3), 1+int64(i%2)); {
				case err == nil:
					admitted.Add(1 + int64(i%2))
				case ctx.Err() != nil && err == ctx.Err():
					left.Add(1)
				default:
					require.ErrorAs(t, err, new(*DeniedError))
					denied.Add(1)
				}
			})
			if i%20 == 0 {
				group.Go(func() {
					time.Sleep(time.Duration(i) * time.Millisecond)
					l.Refund(t.Context(), fmt.Sprint(i%3), 0)
				})
			}
		}
		start := time.Now()
		group.Wait()
		took := time.Since(start)
		require.LessOrEqual(t, admitted.Load(), 3*(10+int64(100*took/time.Second)+100))
		require.Positive(t, denied.Load())
		require.Positive(t, left.Load())
		stats := l.Stats()
		require.EqualValues(t, admitted.Load(), stats.AllowedUnits)
		require.EqualValues(t, denied.Load(), stats.Denied)
		require.Zero(t, stats.Waiting)
		require.Less(t, took, time.Duration(math.MaxInt64))
	})
}
