package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// farStore is a store somewhere else: a memory store, and faults on the way to it.
type farStore struct {
	Store // over there

	calls    atomic.Int64 // that were made
	unknown  atomic.Int64 // takes of units of which the limiter does not know what became
	adjusted atomic.Int64

	mu   sync.Mutex
	mode mode
	wait time.Duration // on the way there
	only string        // the key that the mode is for, if not for all
}

// mode is what becomes of calls.
type mode int

const (
	up      mode = iota
	refused      // answered with an error
	silent       // never there, and no answer
	lost         // carried out, and no answer
	junk         // the key holds something else
	panics
	adjustsLost // carried out, and no answer; but others are answered
	adjustsHang // not carried out, and no answer; but others are answered
)

var (
	errFarRefused = errors.New("10.9.8.7:6379: refused")
	errFarJunk    = errors.New("10.9.8.7:6379: wrong type")
)

func (s *farStore) set(m mode) { s.setFor("", m) }

func (s *farStore) setFor(key string, m mode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode, s.only = m, key
}

func (s *farStore) delay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wait = d
}

func (s *farStore) call(ctx context.Context, key string, carryOut func() error) error {
	s.calls.Add(1)
	s.mu.Lock()
	m, wait := s.mode, s.wait
	if s.only != "" && s.only != key {
		m = up
	}
	s.mu.Unlock()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	switch m {
	case refused:
		return errFarRefused
	case junk:
		return errFarJunk
	case panics:
		panic("a bug")
	case silent, lost:
		if m == lost {
			carryOut()
		}
		<-ctx.Done()
		return ctx.Err()
	}
	return carryOut()
}

func (s *farStore) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (at Instant, err error) {
	err = s.call(ctx, key, func() (err error) {
		at, err = s.Store.Take(context.WithoutCancel(ctx), key, n, limits, results)
		return err
	})
	if errors.Is(err, context.DeadlineExceeded) && n > 0 {
		s.unknown.Add(1)
	}
	return at, err
}

func (s *farStore) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (charged int64, err error) {
	s.adjusted.Add(1)
	err = s.call(ctx, key, func() (err error) {
		s.mu.Lock()
		m := s.mode
		s.mu.Unlock()
		if m == adjustsHang {
			<-ctx.Done()
			return ctx.Err()
		}
		charged, err = s.Store.Adjust(context.WithoutCancel(ctx), key, n, at, limits)
		if m == adjustsLost {
			<-ctx.Done()
			return ctx.Err()
		}
		return err
	})
	return charged, err
}

func (s *farStore) Reset(ctx context.Context, key string, limits []Limit) error {
	return s.call(ctx, key, func() error { return s.Store.Reset(context.WithoutCancel(ctx), key, limits) })
}

func (s *farStore) Fault(err error) Fault {
	switch {
	case errors.Is(err, errFarRefused):
		return FaultRefused
	case errors.Is(err, errFarJunk):
		return FaultKey
	}
	return FaultUnknown
}

// remotely is a test in a bubble, with a limiter on a store somewhere else.
func remotely(t *testing.T, opts Options, test func(t *testing.T, far *farStore, l *Limiter)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		far := &farStore{Store: memory(t, "far")}
		l := processOf(t, far, opts)
		test(t, far, l)
	})
}

// processOf makes the limiter of another process.
func processOf(t *testing.T, store Store, opts Options) *Limiter {
	opts.Store = store
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	l := Must(new(Registry).New("l", opts))
	t.Cleanup(func() { l.Close() })
	return l
}

// there is how a key stands in the store, as another process sees it.
func (s *farStore) there(t *testing.T, key string, limits ...Limit) int64 {
	t.Helper()
	results := make([]Result, len(limits))
	_, err := s.Store.Take(ctx, key, 0, limits, results)
	require.NoError(t, err)
	return results[0].Remaining
}

func decide(t *testing.T, l *Limiter, key string, n int64) Decision {
	t.Helper()
	d, err := l.TakeN(ctx, key, n)
	require.NoError(t, err)
	return d
}

// breakDown has the breaker open, with calls for other keys.
func breakDown(t *testing.T, far *farStore, l *Limiter, m mode) {
	t.Helper()
	far.set(m)
	for i := range 5 {
		decide(t, l, fmt.Sprint("breaks down ", i), 1)
	}
	require.True(t, l.Stats().Remote.BreakerOpen)
}

// recover has the store back, known to be so, and told of everything.
func comeBack(t *testing.T, far *farStore, l *Limiter) {
	t.Helper()
	far.set(up)
	time.Sleep(1100 * time.Millisecond)
	decide(t, l, "comes back", 0)
	time.Sleep(200 * time.Millisecond)
	decide(t, l, "comes back", 0)
	synctest.Wait()
	require.False(t, l.Stats().Remote.BreakerOpen)
	require.Zero(t, l.Stats().Remote.Owed)
}

// TestDeniedHere: a denied key is denied here, without a call, and told what the store
// would tell it, until the very moment at which that would admit it.
func TestDeniedHere(t *testing.T) {
	for _, limit := range algorithms(5, time.Minute) {
		t.Run(limit.Algorithm(), func(t *testing.T) {
			remotely(t, Options{Limits: []Limit{limit}, DenyRecheck: -1, Key: StaticKey("key")}, func(t *testing.T, far *farStore, l *Limiter) {
				control := limiter(t, limit)
				for range 6 {
					control.Take(ctx, "key")
					l.Take(ctx, "key")
				}
				want, _ := control.Take(ctx, "key")
				calls, retry := far.calls.Load(), want.RetryAfter
				handler := l.Middleware(http.NotFoundHandler())
				for i := range 11 {
					want, err := control.Take(ctx, "key")
					require.NoError(t, err)
					got := decide(t, l, "key", 1)
					require.Equal(t, SourceCache, got.Source, i)
					got.Source = SourceStore
					require.Equal(t, want, got, i)
					w := httptest.NewRecorder()
					handler.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
					require.Equal(t, 429, w.Code)
					after := int64((want.RetryAfter + time.Second - 1) / time.Second)
					require.Equal(t, fmt.Sprint(after), w.Header().Get("Retry-After"))
					require.Equal(t, fmt.Sprintf(`"l";r=0;t=%d`, after), w.Header().Get("RateLimit"))
					if i < 9 {
						time.Sleep(retry / 10)
					} else if i == 9 {
						time.Sleep(want.RetryAfter - 1)
					}
				}
				require.Equal(t, calls, far.calls.Load())
				require.EqualValues(t, 22, l.Stats().Remote.Cached)
				time.Sleep(time.Nanosecond)
				got := decide(t, l, "key", 1)
				require.True(t, got.Allowed)
				require.Equal(t, SourceStore, got.Source)
			})
		})
	}
}

// TestDenyRecheck: once in a while one caller asks, and only one, so that what others
// have given the key is felt.
func TestDenyRecheck(t *testing.T) {
	for _, recheck := range []time.Duration{0, 300 * time.Millisecond} {
		remotely(t, Options{Limits: []Limit{hour}, DenyRecheck: recheck}, func(t *testing.T, far *farStore, l *Limiter) {
			every := recheck
			if every == 0 {
				every = time.Second
			}
			decide(t, l, "key", 5)
			decide(t, l, "key", 1)
			far.delay(10 * time.Millisecond)
			for range 5 {
				calls := far.calls.Load()
				time.Sleep(every - time.Millisecond)
				decide(t, l, "key", 1)
				require.Equal(t, calls, far.calls.Load())
				time.Sleep(time.Millisecond)
				for range 64 {
					go l.Take(ctx, "key")
				}
				synctest.Wait()
				require.Equal(t, calls+1, far.calls.Load())
				time.Sleep(10 * time.Millisecond)
			}
			far.Store.Reset(ctx, "key", []Limit{hour}) // by another process
			require.False(t, decide(t, l, "key", 1).Allowed)
			time.Sleep(every)
			require.True(t, decide(t, l, "key", 1).Allowed)
		})
	}
}

// TestDenialsByCost: a denial says nothing of smaller costs, and of larger ones not for how long.
func TestDenialsByCost(t *testing.T) {
	for _, limits := range [][]Limit{
		algorithms(10, 10*time.Second)[:1], algorithms(10, 10*time.Second)[1:2], algorithms(10, 10*time.Second)[2:],
		{TokenBucket(10, 10*time.Second, 10), FixedWindow(12, time.Minute)},
		{SlidingWindow(10, 10*time.Second), FixedWindow(12, time.Minute)},
	} {
		t.Run(fmt.Sprint(limits), func(t *testing.T) {
			remotely(t, Options{Limits: limits, DenyRecheck: -1}, func(t *testing.T, far *farStore, l *Limiter) {
				control := limiter(t, limits...)
				for _, n := range []int64{4, 4, 3, 4, 3, 1, 1, 1, 5, 3, 9, 10, 13, 3, 1, 10, 2} {
					got, want := decide(t, l, "key", n), decide(t, control, "key", n)
					got.Source = SourceStore
					require.Equal(t, want, got, n)
					time.Sleep(200 * time.Millisecond)
				}
				require.NotZero(t, l.Stats().Remote.Cached)
			})
		})
	}
}

// TestFeltAtOnce: what is done to a key here is felt here at once, also where a call that
// has seen it otherwise is still under way.
func TestFeltAtOnce(t *testing.T) {
	for name, do := range map[string]func(l *Limiter) error{
		"reset":        func(l *Limiter) error { return l.Reset(ctx, "key") },
		"refund":       func(l *Limiter) error { return l.Refund(ctx, "key", 1) },
		"raised limit": func(l *Limiter) error { return l.SetLimits(FixedWindow(6, time.Hour)) },
	} {
		for _, racing := range []bool{false, true} {
			t.Run(fmt.Sprint(name, racing), func(t *testing.T) {
				remotely(t, Options{Limits: []Limit{hour}, DenyRecheck: -1, Timeout: time.Minute}, func(t *testing.T, far *farStore, l *Limiter) {
					decide(t, l, "key", 5)
					if racing {
						slow := make(chan struct{})
						far.Store = &slowReply{Store: far.Store, until: slow}
						go l.Take(ctx, "key")
						synctest.Wait()
						require.NoError(t, do(l))
						close(slow)
						synctest.Wait()
					} else {
						require.False(t, decide(t, l, "key", 1).Allowed)
						require.Equal(t, SourceCache, decide(t, l, "key", 1).Source)
						require.NoError(t, do(l))
					}
					require.True(t, decide(t, l, "key", 1).Allowed)
				})
			})
		}
	}
}

// slowReply holds the answers to takes back.
type slowReply struct {
	Store
	until chan struct{}
}

func (s *slowReply) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	at, err := s.Store.Take(ctx, key, n, limits, results)
	<-s.until
	return at, err
}

// TestRaisedLimitInAnOutage: a denial under the old limit does not outlive it.
func TestRaisedLimitInAnOutage(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}, DenyRecheck: -1}, func(t *testing.T, far *farStore, l *Limiter) {
		decide(t, l, "key", 5)
		require.False(t, decide(t, l, "key", 1).Allowed)
		require.NoError(t, l.SetLimits(FixedWindow(10, time.Hour)))
		far.set(refused)
		for range 5 {
			require.True(t, decide(t, l, "key", 1).Allowed)
		}
		require.False(t, decide(t, l, "key", 1).Allowed)
		comeBack(t, far, l)
		require.Zero(t, far.there(t, "key", FixedWindow(10, time.Hour)))
	})
}

// TestPlansAreNotConfused: who is denied under one plan is not so under another.
func TestPlansAreNotConfused(t *testing.T) {
	opts := Options{Limits: []Limit{hour}, DenyRecheck: -1, Key: StaticKey("key"), LimitsFor: func(r *http.Request) []Limit {
		switch r.Header.Get("Plan") {
		case "large":
			return []Limit{FixedWindow(8, time.Hour)}
		case "other":
			return []Limit{FixedWindow(2, time.Minute)}
		case "both":
			return []Limit{FixedWindow(8, time.Hour), FixedWindow(2, time.Minute)}
		}
		return nil
	}}
	remotely(t, opts, func(t *testing.T, far *farStore, l *Limiter) {
		handler := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		for i, step := range []struct {
			plan string
			want int
		}{
			{"", 200}, {"", 200}, {"", 200}, {"", 200}, {"", 200}, {"", 429}, {"", 429},
			{"large", 200}, {"", 429}, {"large", 200}, {"both", 200}, {"both", 429}, {"other", 200}, {"other", 429}, {"large", 429}, {"", 429},
		} {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Plan", step.plan)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			require.Equal(t, step.want, w.Code, "%d %v", i, step)
		}
	})
}

// TestFallbackIsWarm: in an outage a blocked key stays blocked and a half-used one half
// used; afterwards the store knows what was admitted, as far as it still counts.
func TestFallbackIsWarm(t *testing.T) {
	for _, limit := range algorithms(6, time.Hour) {
		for _, m := range []mode{refused, silent} {
			t.Run(fmt.Sprint(limit.Algorithm(), m), func(t *testing.T) {
				remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, far *farStore, l *Limiter) {
					decide(t, l, "blocked", 6)
					decide(t, l, "half", 3)
					breakDown(t, far, l, m)
					for range 5 { // also past the time for a recheck
						time.Sleep(time.Second)
						require.False(t, decide(t, l, "blocked", 1).Allowed)
					}
					for i := range 5 {
						d := decide(t, l, "half", 1)
						require.Equal(t, i < 3, d.Allowed)
						require.Equal(t, SourceFallback, d.Source)
						require.EqualValues(t, max(0, 2-i), d.Remaining)
					}
					require.EqualValues(t, 3, far.there(t, "half", limit))
					require.EqualValues(t, 6, decide(t, l, "unknown", 0).Remaining)
					comeBack(t, far, l)
					require.Zero(t, far.there(t, "half", limit))
					require.False(t, decide(t, l, "half", 1).Allowed)
					require.False(t, decide(t, l, "blocked", 1).Allowed)
				})
			})
		}
	}
}

// TestFlipping: a store that fails and comes back a hundred times a minute hands out no
// more than one that does not. Calls that were sent and not answered are the only ones of which it does
// not know whether to count them.
func TestFlipping(t *testing.T) {
	for _, m := range []mode{refused, silent, lost} {
		for _, limit := range algorithms(2500, 24*time.Hour) {
			t.Run(fmt.Sprint(limit.Algorithm(), m), func(t *testing.T) {
				remotely(t, Options{Limits: []Limit{limit}, Timeout: 10 * time.Millisecond}, func(t *testing.T, far *farStore, l *Limiter) {
					admitted, start := int64(0), time.Now()
					for i := range 100 {
						far.set(m * mode(i%2))
						for until := time.Now().Add(600 * time.Millisecond); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
							if decide(t, l, "key", 1).Allowed {
								admitted++
							}
						}
					}
					bound := int64(2500) + far.unknown.Load()
					if limit.Algorithm() == "bucket" {
						bound += int64(time.Since(start) * 2500 / (24 * time.Hour))
					}
					require.LessOrEqual(t, admitted, bound)
					require.GreaterOrEqual(t, admitted, int64(2500)-far.unknown.Load())
					require.Greater(t, l.Stats().Remote.BreakerOpened, uint64(20))
					comeBack(t, far, l)
					for range 2600 {
						if decide(t, l, "key", 1).Allowed {
							admitted++
						}
					}
					require.LessOrEqual(t, admitted, bound+1)
				})
			})
		}
	}
}

// TestDebtsThatStillCount: what is told afterwards is what the store would by then still count.
func TestDebtsThatStillCount(t *testing.T) {
	for _, tc := range []struct {
		limit Limit
		after time.Duration
		want  int64 // remaining of 10, at the store
	}{
		{FixedWindow(10, time.Minute), 30 * time.Second, 4},
		{FixedWindow(10, time.Minute), time.Minute, 10},
		{SlidingWindow(10, time.Minute), 30 * time.Second, 4},
		{SlidingWindow(10, time.Minute), 90 * time.Second, 7},
		{SlidingWindow(10, time.Minute), 3 * time.Minute, 10},
		{TokenBucket(10, time.Minute, 10), 6 * time.Second, 4}, // a part of a unit counts as one
		{TokenBucket(10, time.Minute, 10), 37 * time.Second, 10},
	} {
		t.Run(fmt.Sprint(tc.limit, tc.after), func(t *testing.T) {
			remotely(t, Options{Limits: []Limit{tc.limit}}, func(t *testing.T, far *farStore, l *Limiter) {
				breakDown(t, far, l, refused)
				decide(t, l, "key", 6)
				for range 5 { // wide of the probes
					decide(t, l, "other", 1)
				}
				time.Sleep(tc.after - 1300*time.Millisecond)
				comeBack(t, far, l) // which takes that long
				require.Equal(t, tc.want, far.there(t, "key", tc.limit))
				require.Zero(t, l.Stats().Remote.Forgotten)
			})
		})
	}
}
