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

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// These tests are about blocks with Options.Count: only requests that count lead to a
// block.

// onlyFailures counts responses of 400 and above.
func onlyFailures(_ *http.Request, status int) bool { return status >= 400 }

// logins is a handler whose requests stay under way until a test ends them.
type logins struct {
	handler http.Handler
	limiter *Limiter
	waiting map[string]chan int // by the name of a request: the status to answer with
}

// newLogins makes a handler behind a limiter that counts failures.
func newLogins(t *testing.T, o Options) *logins {
	o.Count = onlyFailures
	if o.Limits == nil {
		o.Limits = []Limit{FixedWindow(5, time.Hour).Block(3*time.Hour, day)}
	}
	s := &logins{limiter: httpLimiter(t, o), waiting: make(map[string]chan int)}
	s.handler = s.limiter.Middleware(s.serve())
	return s
}

func (s *logins) serve() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(<-s.waiting[r.Header.Get("Name")])
	})
}

// begin starts a request that stays under way until end.
func (s *logins) begin(names ...string) {
	for _, name := range names {
		s.waiting[name] = make(chan int)
		go s.handler.ServeHTTP(httptest.NewRecorder(), httpRequest("POST", "Name: "+name))
		synctest.Wait()
	}
}

// end ends requests with a status.
func (s *logins) end(status int, names ...string) {
	for _, name := range names {
		s.waiting[name] <- status
		synctest.Wait()
	}
}

// try makes a request with the given status, unless it is denied. It returns what the
// client gets.
func (s *logins) try(status int) *httptest.ResponseRecorder {
	s.waiting["try"] = make(chan int, 1)
	s.waiting["try"] <- status
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, httpRequest("POST", "Name: try"))
	return w
}

// denied makes a request that is denied for that long.
func (s *logins) denied(t *testing.T, wait time.Duration, blocked bool) {
	t.Helper()
	w := s.try(200)
	require.Equal(t, 429, w.Code)
	require.Equal(t, fmt.Sprint(int64(wait/time.Second)), w.Header().Get("Retry-After"))
	standings, err := s.limiter.LookKey(ctx, httpKey)
	require.NoError(t, err)
	require.Equal(t, blocked, standings[0].Blocked)
}

// TestOnlyFailuresLeadToABlock: five logins at once that all succeed block nobody, although
// the sixth is denied. Five logins that fail do block the key, at the next attempt.
func TestOnlyFailuresLeadToABlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLogins(t, Options{})
		s.begin("a", "b", "c", "d", "e")
		s.denied(t, time.Hour, false)
		s.end(200, "a", "b", "c", "d", "e")
		require.Equal(t, 200, s.try(200).Code)

		s.begin("a", "b", "c", "d", "e")
		s.end(401, "a", "b", "c", "d")
		s.denied(t, time.Hour, false) // e may yet succeed
		s.end(401, "e")
		s.denied(t, 3*time.Hour, true)
		time.Sleep(3 * time.Hour)
		for range 5 {
			require.Equal(t, 401, s.try(401).Code)
		}
		s.denied(t, day, true)
	})
}

// TestHeldRequestsCannotPreventABlock: requests of a window that is over are not counted
// any more, so to hold them open does not keep failures from blocking.
func TestHeldRequestsCannotPreventABlock(t *testing.T) {
	for _, l := range algorithms(5, time.Hour) {
		synctest.Test(t, func(t *testing.T) {
			s := newLogins(t, Options{Limits: []Limit{l.Block(3 * time.Hour)}})
			s.begin("a", "b", "c", "d", "e")
			time.Sleep(6 * time.Hour)
			for range 5 {
				require.Equal(t, 401, s.try(401).Code)
			}
			s.denied(t, 3*time.Hour, true)
			s.end(200, "a", "b", "c", "d", "e")
			s.denied(t, 3*time.Hour, true)
		})
	}
}

// TestPendingUnitsFollowAddCost: units that a request has added may be given back, too, and
// units that it has given back are not counted twice.
func TestPendingUnitsFollowAddCost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *Limiter
		proceed := make(chan int)
		l = httpLimiter(t, Options{Limits: []Limit{hour.Block(day)}, Count: onlyFailures})
		h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.NoError(t, l.AddCost(r.Context(), 4))
			if status := <-proceed; status != 0 {
				w.WriteHeader(status)
				return
			}
			require.NoError(t, l.AddCost(r.Context(), -5))
			w.WriteHeader(<-proceed)
		}))
		begin := func() {
			go h.ServeHTTP(httptest.NewRecorder(), httpRequest("POST"))
			synctest.Wait()
		}
		begin()
		d := decide(t, l, httpKey, 1)
		require.False(t, d.Allowed)
		require.False(t, d.Blocked, "all five units may be given back")
		proceed <- 200
		synctest.Wait()

		begin()
		proceed <- 0 // gives all of its units back, and is still under way
		synctest.Wait()
		took(t, l, httpKey, 5)
		blockedFor(t, l, httpKey, day)
		proceed <- 200
		synctest.Wait()
	})
}

// TestPendingUnitsOfCheck: for a caller of Check, units may be given back until Responded,
// or until the request is over.
func TestPendingUnitsOfCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Hour).Block(day)}, Count: onlyFailures, Silence: []Code{CodeCountIgnored}})
		check := func() (r *http.Request, end func()) {
			c, cancel := context.WithCancel(ctx)
			r = httpRequest("POST").WithContext(c)
			require.True(t, l.Check(httptest.NewRecorder(), r))
			return r, cancel
		}
		r, end := check()
		require.False(t, decide(t, l, httpKey, 1).Blocked)
		require.NoError(t, l.Responded(r.Context(), 200))
		end()
		r, end = check()
		require.NoError(t, l.Responded(r.Context(), 401))
		require.True(t, decide(t, l, httpKey, 1).Blocked)
		end()
		require.NoError(t, l.Reset(ctx, httpKey))
		_, end = check()
		require.False(t, decide(t, l, httpKey, 1).Blocked)
		end()
		synctest.Wait()
		require.True(t, decide(t, l, httpKey, 1).Blocked, "nobody has called Responded, so the request counts")

		require.NoError(t, l.Reset(ctx, httpKey))
		r = httpRequest("POST").WithContext(ctx) // a context that never ends
		require.True(t, l.Check(httptest.NewRecorder(), r))
		require.True(t, decide(t, l, httpKey, 1).Blocked, "nobody would say when the request is over")
	})
}

// TestPendingUnitsSurviveReload: a request of the generation before may still succeed.
func TestPendingUnitsSurviveReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := new(Registry)
		defer reg.Close()
		name := t.Name()
		defer func() { Memory(name).Close() }()
		o := quiet(FixedWindow(1, time.Hour).Block(day))
		o.Count = onlyFailures
		s := &logins{waiting: make(map[string]chan int)}
		build := func(r *Registry) (err error) {
			s.limiter, err = r.New(name, o)
			return err
		}
		require.NoError(t, build(reg))
		s.handler = s.limiter.Middleware(s.serve())
		s.begin("a")
		require.NoError(t, reg.Reload(build))
		require.False(t, decide(t, s.limiter, httpKey, 1).Blocked)
		s.end(200, "a")
		took(t, s.limiter, httpKey, 1)
		require.True(t, decide(t, s.limiter, httpKey, 1).Blocked)
	})
}

// TestReloadWithoutCount: without Options.Count every request counts, so the next denial is not
// excused by units that the generation before could give back.
func TestReloadWithoutCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen recorder
		reg := new(Registry)
		defer reg.Close()
		o := quiet(FixedWindow(2, time.Minute).Block(time.Hour))
		o.Store, o.Count, o.Observe = memory(t, "m"), onlyFailures, seen.observe
		s := &logins{waiting: make(map[string]chan int)}
		build := func(r *Registry) (err error) {
			s.limiter, err = r.New("l", o)
			return err
		}
		require.NoError(t, build(reg))
		s.handler = s.limiter.Middleware(s.serve())
		s.try(200)
		o.Count = nil
		require.NoError(t, reg.Reload(build))
		s.handler = s.limiter.Middleware(s.serve())
		s.try(200)
		s.try(200)
		s.denied(t, time.Hour, true)
	})
}

// TestFirstRequestsOfAReload: the generations know each other's requests under way, also if the
// first ones come while the Reload is not done yet.
func TestFirstRequestsOfAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := new(Registry)
		defer reg.Close()
		o := quiet(FixedWindow(2, time.Hour).Block(day))
		o.Store, o.Count = memory(t, "m"), onlyFailures
		s := &logins{waiting: make(map[string]chan int)}
		s.limiter = Must(reg.New("l", o))
		s.handler = s.limiter.Middleware(s.serve())
		require.NoError(t, reg.Reload(func(r *Registry) (err error) {
			s.limiter, err = r.New("l", o)
			s.begin("a", "b")
			return err
		}))
		require.False(t, decide(t, s.limiter, httpKey, 1).Blocked)
		s.end(200, "a", "b")
		took(t, s.limiter, httpKey, 2)
		require.True(t, decide(t, s.limiter, httpKey, 1).Blocked)
	})
}

// TestCountThatPanics: its request counts.
func TestCountThatPanics(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Hour).Block(day)}, Count: func(*http.Request, int) bool { panic("oh") }})
	require.Panics(t, func() { l.Middleware(httpServed).ServeHTTP(httptest.NewRecorder(), httpRequest("POST")) })
	require.True(t, decide(t, l, httpKey, 1).Blocked)
}

// TestParallelSuccessesBlockNobody: 64 clients of one key succeed all the time, under a
// limit for far fewer at once. Denials come and go, and no block starts.
func TestParallelSuccessesBlockNobody(t *testing.T) {
	for _, wrapped := range []bool{false, true} {
		t.Run(fmt.Sprint("wrapped ", wrapped), func(t *testing.T) {
			var blocks, served, refused atomic.Int64
			o := Options{Limits: []Limit{TokenBucket(1, day, 7).Block(time.Hour), FixedWindow(5, time.Hour).Block(time.Hour)}, Count: onlyFailures}
			o.Timeout = time.Minute // also on a busy machine, all units are given back
			o.Observe = func(_ context.Context, e Event) {
				if e.Kind == EventBlocked {
					blocks.Add(1)
				}
			}
			if wrapped {
				o.Store = &kindWrapper{inner: memory(t, "inner")}
			}
			l := httpLimiter(t, o)
			h := l.Middleware(httpServed)
			memTogether(func(int) {
				for range 100 {
					w := httptest.NewRecorder()
					if h.ServeHTTP(w, httpRequest("POST")); w.Code == http.StatusTooManyRequests {
						refused.Add(1)
					} else {
						served.Add(1)
					}
				}
			})
			require.Zero(t, blocks.Load())
			require.EqualValues(t, 6400, served.Load()+refused.Load())
			took(t, l, httpKey, 5)
			d, err := l.Take(ctx, httpKey)
			require.NoError(t, err)
			require.True(t, d.Blocked, "nothing is under way any more")
		})
	}
}

// TestParallelFailuresBlockOnce: of 64 clients that all fail, as many are served as the
// limit allows, and a block starts, once.
func TestParallelFailuresBlockOnce(t *testing.T) {
	for range 20 {
		var blocks, served atomic.Int64
		o := Options{Limits: []Limit{FixedWindow(10, time.Hour).Block(day)}, Count: onlyFailures}
		o.Observe = func(_ context.Context, e Event) {
			if e.Kind == EventBlocked {
				blocks.Add(1)
			}
		}
		l := httpLimiter(t, o)
		var wg sync.WaitGroup
		h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			served.Add(1)
			w.WriteHeader(401)
		}))
		for range 64 {
			wg.Go(func() { h.ServeHTTP(httptest.NewRecorder(), httpRequest("POST")) })
		}
		wg.Wait()
		h.ServeHTTP(httptest.NewRecorder(), httpRequest("POST"))
		require.EqualValues(t, 10, served.Load())
		require.EqualValues(t, 1, blocks.Load())
	}
}

// TestPendingUnitsReachTheStore: a KindStore of another make is asked with the units under
// way.
func TestPendingUnitsReachTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &kindWrapper{inner: memory(t, "inner")}
		s := newLogins(t, Options{Store: store})
		s.begin("a", "b", "c", "d", "e")
		before := store.pending
		s.denied(t, time.Hour, false)
		require.Greater(t, store.pending, before)
		s.end(200, "a", "b", "c", "d", "e")
		require.Equal(t, 200, s.try(200).Code)
	})
}
