package ratelimit_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// These tests are about blocks with Options.Count, when units cannot be given back or their
// requests are many.

// goodLogins sends successful logins one after the other until one is denied.
func goodLogins(t *testing.T, h http.Handler, most int) (admitted int, retry string) {
	for range most {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httpRequest("POST"))
		if w.Code == http.StatusTooManyRequests {
			return admitted, w.Header().Get("Retry-After")
		}
		require.Equal(t, http.StatusOK, w.Code)
		admitted++
		time.Sleep(time.Second)
	}
	return admitted, ""
}

// TestUnknownOutcomesBlockNobody: the units of successful requests whose calls get no reply
// cannot be given back, so they lead to a denial. They lead to no block, neither here nor at
// the store. Failures still do.
func TestUnknownOutcomesBlockNobody(t *testing.T) {
	for name, m := range map[string]mode{"applied": lost, "not applied": silent, "give back applied": adjustsLost, "give back not applied": adjustsHang} {
		for _, limit := range algorithms(5, time.Hour) {
			t.Run(fmt.Sprint(name, limit), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					backend := &remoteBackend{Store: memory(t, "backend")}
					limit := limit.Block(2*day, 3*day)
					_, h, begun := loginsAt(t, backend, Options{Limits: []Limit{limit}, Timeout: 50 * time.Millisecond})
					backend.set(m)
					goodLogins(t, h, 30)
					backend.set(up)
					time.Sleep(10 * time.Second)
					goodLogins(t, h, 30)
					require.Empty(t, begun.of(EventBlocked))
					require.Zero(t, backend.blocked(t, "k", limit))

					time.Sleep(2 * time.Hour) // no unit counts any more
					admitted, _ := goodLogins(t, h, 30)
					require.Equal(t, 30, admitted)
					together(h, 6, time.Second, "Wrong: yes")
					require.Len(t, begun.of(EventBlocked), 1)
					require.NotZero(t, backend.blocked(t, "k", limit))
				})
			})
		}
	}
}

// slowReturns is a backend whose Adjust takes longer than a response may wait.
type slowReturns struct{ *remoteBackend }

func (s slowReturns) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	time.Sleep(350 * time.Millisecond)
	return s.remoteBackend.Adjust(ctx, key, n, at, limits)
}

// TestUnitsOnTheirWayBackBlockNobody: units whose way back takes longer than their request, or
// that do not arrive, start no block. They are given back for a limiter further in that denies
// the request, or by Options.Count, with Middleware and with Check.
func TestUnitsOnTheirWayBackBlockNobody(t *testing.T) {
	limit := FixedWindow(3, time.Hour).Block(day)
	handlers := map[string]func(t *testing.T, out *Limiter) http.Handler{
		"Middleware": func(t *testing.T, out *Limiter) http.Handler {
			return out.Middleware(innerDenies(t).Middleware(httpServed))
		},
		"Check": func(t *testing.T, out *Limiter) http.Handler {
			in := innerDenies(t)
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				if r = r.WithContext(ctx); out.Check(w, r) && in.Check(w, r) {
					w.WriteHeader(http.StatusNoContent)
				}
			})
		},
		"Responded": func(t *testing.T, out *Limiter) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				if r = r.WithContext(ctx); out.Check(w, r) {
					out.Responded(r.Context(), http.StatusNoContent)
				}
			})
		},
	}
	for name, handler := range handlers {
		for _, isSlow := range []bool{true, false} {
			t.Run(fmt.Sprint(name, isSlow), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var seen recorder
					backend := &remoteBackend{Store: memory(t, "backend")}
					var store Store = backend
					if isSlow {
						store = slowReturns{backend}
					} else {
						backend.set(adjustsHang)
					}
					o := Options{Limits: []Limit{limit}, Key: StaticKey("k"), Observe: seen.observe}
					if name == "Responded" {
						o.Count = onlyFailures
					}
					h := handler(t, processOf(t, store, o))
					for range 6 {
						h.ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
						synctest.Wait()
					}
					time.Sleep(10 * time.Second)
					require.Empty(t, seen.of(EventBlocked))
					require.Zero(t, backend.blocked(t, "k", limit))
				})
			})
		}
	}
}

// innerDenies returns a limiter that denies all requests.
func innerDenies(t *testing.T) *Limiter {
	in := httpLimiterNamed(t, "in", quiet(FixedWindow(1, time.Hour)))
	took(t, in, httpKey, 1)
	return in
}

// TestChargesOfAFreeRequestAreUnderWay: units that AddCost charges to a request of cost 0 may be
// given back like others, and start no block before that is decided.
func TestChargesOfAFreeRequestAreUnderWay(t *testing.T) {
	test := func(t *testing.T, o Options, build func(Options) *Limiter) {
		var seen recorder
		o.Limits, o.Key, o.Count, o.Observe = []Limit{FixedWindow(5, time.Hour).Block(day)}, StaticKey("k"), onlyFailures, seen.observe
		o.Cost = func(r *http.Request) int64 {
			if r.Method == "PUT" {
				return 0
			}
			return 1
		}
		l, status := build(o), make(chan int)
		h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "PUT" {
				require.NoError(t, l.AddCost(r.Context(), 5))
				w.WriteHeader(<-status)
			}
		}))
		for _, end := range []int{200, 401} {
			go h.ServeHTTP(httptest.NewRecorder(), httpRequest("PUT"))
			synctest.Wait()
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httpRequest("GET"))
			require.Equal(t, http.StatusTooManyRequests, w.Code)
			require.Empty(t, seen.of(EventBlocked))
			status <- end
			time.Sleep(time.Second)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httpRequest("GET"))
		require.Equal(t, "86400", w.Header().Get("Retry-After"), "the second one counts")
	}
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			test(t, quiet(), func(o Options) *Limiter { return httpLimiter(t, o) })
		})
	})
	t.Run("remote", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			test(t, quiet(), func(o Options) *Limiter {
				return processOf(t, &remoteBackend{Store: memory(t, "backend")}, o)
			})
		})
	})
}

// TestPendingUnitsOfOtherCounters: requests under way excuse a denial only if they have
// taken their units from a counter of one of its limits.
func TestPendingUnitsOfOtherCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		guesses := FixedWindow(5, time.Minute).Block(day)
		o := quiet(guesses)
		o.Key, o.Count = StaticKey("k"), onlyFailures
		o.LimitsFor = func(r *http.Request) []Limit {
			if r.Method == "PUT" {
				return []Limit{FixedWindow(5, time.Hour)}
			}
			return nil
		}
		h := httpLimiter(t, o).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "PUT" {
				<-release
			}
			w.WriteHeader(http.StatusUnauthorized)
		}))
		go h.ServeHTTP(httptest.NewRecorder(), httpRequest("PUT"))
		synctest.Wait()
		together(h, 5, 0)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httpRequest("POST"))
		require.Equal(t, "86400", w.Header().Get("Retry-After"))
		close(release)
	})
}

// TestManyRequestsUnderWay: however many requests are under way and whenever they have
// begun, they block nobody as long as they may all succeed, and each of them counts if it
// fails.
func TestManyRequestsUnderWay(t *testing.T) {
	for _, limit := range algorithms(300, time.Minute) {
		for _, status := range []int{200, 401} {
			t.Run(fmt.Sprint(limit, status), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					release := make(chan struct{})
					o := quiet(limit.Block(day))
					o.Key, o.Count = StaticKey("k"), onlyFailures
					l := httpLimiter(t, o)
					h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						<-release
						w.WriteHeader(status)
					}))
					for _, pause := range []time.Duration{time.Millisecond, 100 * time.Millisecond, 0} {
						for range 100 {
							go h.ServeHTTP(httptest.NewRecorder(), httpRequest("POST"))
							time.Sleep(pause)
						}
						time.Sleep(3 * time.Second)
					}
					for taken := int64(1); taken > 0; { // what a bucket has leaked
						var err error
						taken, _, err = l.TakeUpTo(ctx, "k", 1000)
						require.NoError(t, err)
					}
					d := decide(t, l, "k", 1)
					require.False(t, d.Blocked)
					close(release)
					synctest.Wait()
					time.Sleep(100 * time.Millisecond)
					if d = decide(t, l, "k", 1); status == 200 {
						require.True(t, d.Allowed, "%v", d)
						return
					}
					for d.Allowed { // what has leaked in the meantime
						d = decide(t, l, "k", 1)
					}
					require.True(t, d.Blocked, "%v", d)
				})
			})
		}
	}
}

// TestPanickingStoreLeavesNothingUnderWay: units of a call that panicked excuse no denial.
func TestPanickingStoreLeavesNothingUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		_, h, begun := loginsAt(t, backend, Options{Limits: []Limit{hour.Block(day)}})
		backend.set(panics)
		for range 100 {
			func() {
				defer func() { require.NotNil(t, recover()) }()
				h.ServeHTTP(httptest.NewRecorder(), httpRequest("POST"))
			}()
			time.Sleep(time.Second)
		}
		backend.set(up)
		time.Sleep(10 * time.Second)
		together(h, 6, time.Second, "Wrong: yes")
		require.Len(t, begun.of(EventBlocked), 1)
	})
}

// TestBlocksAreSentUntilTheStoreHasThem: a block of an outage or by hand whose command gets
// no reply is sent again. To join it twice changes nothing.
func TestBlocksAreSentUntilTheStoreHasThem(t *testing.T) {
	for _, m := range []mode{lost, silent} {
		for _, byHand := range []bool{false, true} {
			t.Run(fmt.Sprint(m, byHand), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					backend := &remoteBackend{Store: memory(t, "backend")}
					limit := FixedWindow(2, time.Second).Block(day, 3*day)
					l := processOf(t, backend, Options{Limits: []Limit{limit}})
					if byHand {
						backend.set(m)
						require.NoError(t, l.Block(ctx, "k", day))
					} else {
						backend.set(refused)
						took(t, l, "k", 2)
						blockedFor(t, l, "k", day)
						backend.set(m)
					}
					for range 10 {
						require.False(t, decide(t, l, "k", 1).Allowed)
						time.Sleep(time.Second)
					}
					backend.set(up)
					for range 10 {
						require.False(t, decide(t, l, "k", 1).Allowed)
						decide(t, l, "other", 0)
						time.Sleep(time.Second)
					}
					require.Zero(t, l.Stats().Remote.Owed)
					require.InDelta(t, day-20*time.Second, backend.blocked(t, "k", limit), float64(15*time.Second))
					time.Sleep(day)
					took(t, l, "k", 2)
					want := 3 * day
					if byHand {
						want = day
					}
					blockedFor(t, l, "k", want)
				})
			})
		}
	}
}

// contradictory is a SharedStore that grants nothing and denies nothing, or both.
type contradictory struct {
	*remoteBackend
	granted int64
	denies  bool
}

func (s *contradictory) TakeShared(_ context.Context, r SharedRequest, results []Result) (SharedReply, error) {
	if s.denies {
		results[0].RetryAfter = time.Second
	}
	return SharedReply{At: 1, Granted: s.granted}, nil
}

// TestGrantedMustFitTheResults: what a SharedStore has granted and its results must agree.
func TestGrantedMustFitTheResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, s := range []contradictory{{granted: 0}, {granted: -1}, {granted: 6}, {granted: 1, denies: true}, {granted: -1, denies: true}} {
			s.remoteBackend = &remoteBackend{Store: memory(t, fmt.Sprint(s.granted, s.denies))}
			l := processOf(t, &s, Options{Limits: []Limit{hour}, OnFailure: FailClosed})
			granted, d, err := l.TakeUpTo(ctx, "k", 5)
			require.ErrorContains(t, err, fmt.Sprintf("TakeShared of up to 5 units has granted %d, and a RetryAfter in its results is %v", s.granted, s.denies))
			require.Zero(t, granted)
			require.Zero(t, d)
		}
	})
}

// TestDenialsFurtherInBlockNobody: the units of requests that a limiter further in denies
// are given back, so they lead to no block of the limiter around it. That limiter learns
// from the first request that there is one further in.
func TestDenialsFurtherInBlockNobody(t *testing.T) {
	for _, check := range []bool{false, true} {
		t.Run(fmt.Sprint(check), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend := &remoteBackend{Store: memory(t, "backend")}
				backend.delay(2 * time.Millisecond)
				perUser := httpLimiter(t, func() Options {
					o := quiet(FixedWindow(5, time.Minute).Block(day))
					o.Key = StaticKey("user")
					return o
				}())
				global := processOf(t, backend, Options{Limits: []Limit{FixedWindow(3, time.Hour)}, Key: StaticKey("all")})
				slow := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) })
				h := perUser.Middleware(global.Middleware(slow))
				if check {
					h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						c, end := context.WithCancel(r.Context()) // as a server's request has
						defer end()
						if r = r.WithContext(c); perUser.Check(w, r) && global.Check(w, r) {
							slow.ServeHTTP(w, r)
						}
					})
				}
				require.Equal(t, map[int]int{200: 3}, together(h, 3, 0))
				require.NoError(t, perUser.Reset(ctx, "user"))
				require.Equal(t, map[int]int{429: 20}, together(h, 20, 0))
				time.Sleep(time.Minute)
				require.EqualValues(t, 5, decide(t, perUser, "user", 0).Remaining)

				// Requests that it admits count, and so do requests that never get there.
				require.NoError(t, global.Reset(ctx, "all"))
				require.Equal(t, map[int]int{200: 3}, together(h, 3, 0))
				require.Equal(t, map[int]int{200: 2}, together(perUser.Middleware(slow), 2, 0))
				blockedFor(t, perUser, "user", day)
			})
		})
	}
}

// TestBlockByHandNeedsNoRequests: a block by hand in an outage reaches the store when that is
// back, also if nobody asks this process for anything.
func TestBlockByHandNeedsNoRequests(t *testing.T) {
	for _, m := range []mode{refused, silent, lost} {
		synctest.Test(t, func(t *testing.T) {
			backend := &remoteBackend{Store: memory(t, "backend")}
			l := processOf(t, backend, Options{Limits: []Limit{hour}})
			backend.set(m)
			require.NoError(t, l.Block(ctx, "k", day))
			time.Sleep(time.Minute)
			require.Equal(t, 1, l.Stats().Remote.Owed)
			backend.set(up)
			time.Sleep(10 * time.Second)
			require.Zero(t, l.Stats().Remote.Owed)
			require.InDelta(t, day-70*time.Second, backend.blocked(t, "k", hour), float64(10*time.Second))
		})
	}
}
