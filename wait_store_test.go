package ratelimit_test

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// TestWaitOnARemoteStore: callers wait for units of a store outside of this process, and
// sleep without asking it.
func TestWaitOnARemoteStore(t *testing.T) {
	remotely(t, quiet(TokenBucket(10, time.Second, 1)), func(t *testing.T, backend *remoteBackend, l *Limiter) {
		for i, w := range waitInTurn(t.Context(), l, "k", ones(10)...) {
			require.NoError(t, w.err)
			require.Equal(t, time.Duration(i)*100*time.Millisecond, w.at)
		}
		require.LessOrEqual(t, l.Stats().Remote.Calls, uint64(14))
		require.EqualValues(t, 10, l.Stats().Allowed)
	})
}

// TestOutageWhileCallersWait: with FallbackLocal callers go on waiting, with FailOpen they are
// admitted, and with FailClosed they get the error, as soon as one of them asks again.
func TestOutageWhileCallersWait(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		t.Run(policy.String(), func(t *testing.T) {
			o := quiet(TokenBucket(10, time.Second, 1))
			o.OnFailure = policy
			remotely(t, o, func(t *testing.T, backend *remoteBackend, l *Limiter) {
				time.AfterFunc(150*time.Millisecond, func() { backend.set(refused) })
				all := waitInTurn(t.Context(), l, "k", ones(6)...)
				for i, w := range all {
					switch at := time.Duration(i) * 100 * time.Millisecond; {
					case i < 2 || policy == FallbackLocal:
						require.Equal(t, waited{at, nil}, w, "number %d", i)
					case policy == FailOpen:
						require.Equal(t, waited{200 * time.Millisecond, nil}, w, "number %d", i)
					default:
						require.ErrorIs(t, w.err, errBackendRefused)
						require.Equal(t, 200*time.Millisecond, w.at)
					}
				}
				require.Zero(t, l.Stats().Waiting)
			})
		})
	}
}

// TestResetThatFailsWakes: a Reset that the store refuses has forgotten the key in this process,
// so a caller that waits for it asks again.
func TestResetThatFailsWakes(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		took(t, l, "k", 5)
		start, ended := time.Now(), make(chan error, 1)
		go func() { ended <- l.Wait(context.Background(), "k", 1) }()
		synctest.Wait()
		require.Error(t, l.Reset(ctx, "k"))
		require.NoError(t, <-ended)
		require.Zero(t, time.Since(start))
	})
}

// TestWaitInSeveralProcesses: callers of two processes share what comes back. Each process
// keeps the order of its own callers.
func TestWaitInSeveralProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		o := quiet(TokenBucket(10, time.Second, 1))
		o.DenyRecheck = -1
		one, two := processOf(t, backend, o), processOf(t, &remoteBackend{Store: backend.Store}, o)
		var group sync.WaitGroup
		var all [2][]waited
		for i, l := range []*Limiter{one, two} {
			group.Go(func() { all[i] = waitInTurn(t.Context(), l, "k", ones(10)...) })
		}
		group.Wait()
		last := time.Duration(0)
		for _, of := range all {
			for i, w := range of {
				require.NoError(t, w.err)
				require.True(t, i == 0 || of[i-1].at <= w.at)
				last = max(last, w.at)
			}
		}
		require.Equal(t, 1900*time.Millisecond, last)
	})
}

// TestWaitUnderSeveralLimits: a caller waits until its units fit under all limits.
func TestWaitUnderSeveralLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, TokenBucket(10, time.Second, 1), FixedWindow(5, 10*time.Second))
		all := waitInTurn(t.Context(), l, "k", ones(7)...)
		for i, at := range []time.Duration{0, 100, 200, 300, 400, 10_000, 10_100} {
			require.Equal(t, waited{at * time.Millisecond, nil}, all[i], "number %d", i)
		}
	})
}

// TestWaitersOutliveAReload: callers that wait at a limiter when a Reload replaces it keep
// their places, before the callers of its successor.
func TestWaitersOutliveAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := new(Registry)
		defer reg.Close()
		o := quiet(TokenBucket(10, time.Second, 1))
		o.Store = memory(t, "m")
		old := Must(reg.New("l", o))
		took(t, old, "k", 1)
		var group sync.WaitGroup
		start, ends := time.Now(), [4]time.Duration{}
		wait := func(i int, l *Limiter) {
			group.Go(func() {
				require.NoError(t, l.Wait(t.Context(), "k", 1))
				ends[i] = time.Since(start)
			})
			synctest.Wait()
		}
		wait(0, old)
		wait(1, old)
		var next *Limiter
		require.NoError(t, reg.Reload(func(r *Registry) (err error) {
			next, err = r.New("l", o)
			return err
		}))
		wait(2, next)
		wait(3, next)
		require.Equal(t, 4, next.Stats().Waiting)
		group.Wait()
		for i, at := range ends {
			require.Equal(t, time.Duration(i+1)*100*time.Millisecond, at)
		}
	})
}

// TestInnerLimiterWaits: a request that waits at an inner limiter keeps what it has taken of
// the outer one, and gives it back if it is denied in the end.
func TestInnerLimiterWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outside, inside := quiet(FixedWindow(3, time.Hour)), quiet(TokenBucket(1, time.Second, 1))
		inside.MaxWait = 1500 * time.Millisecond
		out, in := httpLimiterNamed(t, "out", outside), httpLimiterNamed(t, "in", inside)
		h := out.Middleware(in.Middleware(httpServed))
		var group sync.WaitGroup
		var codes [3]int
		for i := range codes {
			group.Go(func() {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httpRequest("GET"))
				codes[i] = w.Code
			})
			synctest.Wait()
		}
		require.EqualValues(t, 0, leftOf(t, out, httpKey))
		group.Wait()
		require.Equal(t, [3]int{204, 204, 429}, codes)
		require.EqualValues(t, 1, leftOf(t, out, httpKey))
	})
}

// TestPlansWaitInOneLine: requests of one key under two plans are in one queue. Their buckets
// have one counter, because the windows are equal.
func TestPlansWaitInOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := quiet(hour)
		o.MaxWait = 10 * time.Second
		slow, fast := TokenBucket(1, time.Second, 1).Named("slow"), TokenBucket(10, time.Second, 1).Named("fast")
		o.LimitsFor = func(r *http.Request) []Limit {
			if r.Header.Get("Plan") == "fast" {
				return []Limit{FixedWindow(100, time.Hour), fast}
			}
			return []Limit{slow}
		}
		l := httpLimiter(t, o)
		h := l.Middleware(httpServed)
		start := time.Now()
		var group sync.WaitGroup
		var ends [4]time.Duration
		for i, plan := range []string{"slow", "slow", "fast", "fast"} {
			group.Go(func() {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httpRequest("GET", "Plan: "+plan))
				require.Equal(t, 204, w.Code)
				ends[i] = time.Since(start)
			})
			synctest.Wait()
		}
		group.Wait()
		require.Equal(t, [4]time.Duration{0, time.Second, 1100 * time.Millisecond, 1200 * time.Millisecond}, ends)
	})
}

// TestRandomWaiters: in random histories of one key, callers are admitted in order of
// arrival, within their time, and exactly when their units fit: each as early as the ones
// before it allow.
func TestRandomWaiters(t *testing.T) {
	limits := []Limit{
		TokenBucket(10, time.Second, 5), TokenBucket(3, 100*time.Millisecond, 3),
		FixedWindow(5, time.Second), SlidingWindow(5, time.Second), Rolling(5, time.Second),
	}
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		synctest.Test(t, func(t *testing.T) {
			limit := limits[r.IntN(len(limits))]
			l := limiter(t, limit)
			start := time.Now()
			type caller struct {
				n, arrives, until, leaves int64 // instants since start; leaves is 0 if it does not
				ended                     int64
				err                       error
			}
			callers := make([]caller, 30)
			at := int64(0)
			for i := range callers {
				at += 1 + r.Int64N(int64(50*time.Millisecond))
				c := caller{n: 1 + r.Int64N(3), arrives: at, until: at + r.Int64N(int64(4*time.Second))}
				if r.IntN(4) == 0 {
					c.leaves = at + 1 + r.Int64N(int64(time.Second))
				}
				callers[i] = c
			}
			var group sync.WaitGroup
			for i := range callers {
				c := &callers[i]
				group.Go(func() {
					time.Sleep(time.Duration(c.arrives))
					ctx, cancel := context.WithDeadline(t.Context(), start.Add(time.Duration(c.until)))
					defer cancel()
					if c.leaves > 0 {
						defer time.AfterFunc(time.Duration(c.leaves-c.arrives), cancel).Stop()
					}
					c.err = l.Wait(ctx, "k", c.n)
					c.ended = int64(time.Since(start))
				})
			}
			group.Wait()
			replay := newReplay(limit)
			ahead := int64(0) // when all before this caller had ended
			for i := range callers {
				c := &callers[i]
				if c.err == nil {
					if c.ended > c.until || c.ended < ahead && c.ended != c.arrives {
						t.Fatalf("seed %d, %v: number %d was admitted at %d, the ones before it ended at %d, its time was over at %d", seed, limit, i, c.ended, ahead, c.until)
					}
					if since := max(ahead, c.arrives); c.ended > since && replay.fits(c.n, c.ended-1) {
						t.Fatalf("seed %d, %v: number %d was admitted at %d, and its units fitted earlier, since %d", seed, limit, i, c.ended, since)
					}
					if !replay.take(c.n, c.ended) {
						t.Fatalf("seed %d, %v: the units of number %d did not fit at %d", seed, limit, i, c.ended)
					}
				}
				ahead = max(ahead, c.ended)
			}
			require.Zero(t, l.Stats().Waiting)
		})
	}
}

// A replay takes units by the rule of a limit, at instants of its caller's.
type replay struct {
	limit rule.Limit
	state rule.State
	log   rule.Log
}

func newReplay(l Limit) *replay {
	kind := map[string]rule.Kind{"bucket": rule.Bucket, "fixed": rule.Fixed, "sliding": rule.Sliding, "rolling": rule.Rolling}[l.Algorithm()]
	r := &replay{limit: rule.Limit{Kind: kind, N: l.N(), Window: int64(l.Window())}}
	if kind == rule.Bucket {
		r.limit.Burst = l.Burst()
	}
	return r
}

func (r *replay) fits(n, at int64) bool {
	if r.limit.Kind == rule.Rolling {
		return r.limit.Ask(&r.log, at, n).Retry == 0
	}
	_, a := r.limit.Take(r.state, at, n)
	return a.Retry == 0
}

func (r *replay) take(n, at int64) (fits bool) {
	switch fits = r.fits(n, at); {
	case !fits:
	case r.limit.Kind == rule.Rolling:
		r.limit.Count(&r.log, at, n)
	default:
		r.state, _ = r.limit.Take(r.state, at, n)
	}
	return fits
}
