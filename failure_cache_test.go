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

// TestDeniedKeyIsAnsweredWithoutACall compares the limiter's answers with the
// store's, until the instant at which the store would admit the key.
func TestDeniedKeyIsAnsweredWithoutACall(t *testing.T) {
	for _, limit := range algorithms(5, time.Minute) {
		t.Run(limit.Algorithm(), func(t *testing.T) {
			remotely(t, Options{Limits: []Limit{limit}, DenyRecheck: -1, Key: StaticKey("key")}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
				control := limiter(t, limit)
				for range 6 {
					control.Take(ctx, "key")
					l.Take(ctx, "key")
				}
				want, _ := control.Take(ctx, "key")
				calls, retry := backend.calls.Load(), want.RetryAfter
				handler := l.Middleware(http.NotFoundHandler())
				for i := range 11 {
					want, err := control.Take(ctx, "key")
					require.NoError(t, err)
					got := decide(t, l, "key", 1)
					require.Equal(t, SourceCache, got.Source, i)
					got.Source, got.Policy = SourceStore, want.Policy
					require.Equal(t, want, got, i)
					w := httptest.NewRecorder()
					handler.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
					require.Equal(t, 429, w.Code)
					after := int64((want.RetryAfter + time.Second - 1) / time.Second)
					require.Equal(t, fmt.Sprint(after), w.Header().Get("Retry-After"))
					announced := max(1, int64((want.RetryAfter-2*time.Millisecond+time.Second-1)/time.Second))
					require.Equal(t, fmt.Sprintf(`"l";r=0;t=%d`, announced), w.Header().Get("RateLimit"))
					if i < 9 {
						time.Sleep(retry / 10)
					} else if i == 9 {
						time.Sleep(want.RetryAfter - 1)
					}
				}
				require.Equal(t, calls, backend.calls.Load())
				require.EqualValues(t, 22, l.Stats().Remote.Cached)
				time.Sleep(time.Nanosecond)
				got := decide(t, l, "key", 1)
				require.True(t, got.Allowed)
				require.Equal(t, SourceStore, got.Source)
			})
		})
	}
}

// TestOneCallerRechecksADenial checks that a key that another process has reset
// is admitted after Options.DenyRecheck.
func TestOneCallerRechecksADenial(t *testing.T) {
	for _, recheck := range []time.Duration{0, 300 * time.Millisecond} {
		remotely(t, Options{Limits: []Limit{hour}, DenyRecheck: recheck}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			every := recheck
			if every == 0 {
				every = time.Second
			}
			decide(t, l, "key", 5)
			decide(t, l, "key", 1)
			backend.delay(10 * time.Millisecond)
			for range 5 {
				calls := backend.calls.Load()
				time.Sleep(every - time.Millisecond)
				decide(t, l, "key", 1)
				require.Equal(t, calls, backend.calls.Load())
				time.Sleep(time.Millisecond)
				for range 64 {
					go l.Take(ctx, "key")
				}
				synctest.Wait()
				require.Equal(t, calls+1, backend.calls.Load())
				time.Sleep(10 * time.Millisecond)
			}
			synctest.Wait()
			backend.Store.Reset(ctx, "key", []Limit{hour}) // by another process
			require.False(t, decide(t, l, "key", 1).Allowed)
			time.Sleep(every)
			require.True(t, decide(t, l, "key", 1).Allowed)
		})
	}
}

// TestDenialHoldsForItsCost takes different costs. A denial does not apply to
// smaller costs, and does not show how long a larger cost is denied.
func TestDenialHoldsForItsCost(t *testing.T) {
	for _, limits := range [][]Limit{
		algorithms(10, 10*time.Second)[:1], algorithms(10, 10*time.Second)[1:2], algorithms(10, 10*time.Second)[2:],
		{TokenBucket(10, 10*time.Second, 10), FixedWindow(12, time.Minute)},
		{SlidingWindow(10, 10*time.Second), FixedWindow(12, time.Minute)},
	} {
		t.Run(fmt.Sprint(limits), func(t *testing.T) {
			remotely(t, Options{Limits: limits, DenyRecheck: -1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
				control := limiter(t, limits...)
				for _, n := range []int64{4, 4, 3, 4, 3, 1, 1, 1, 5, 3, 9, 10, 13, 3, 1, 10, 2} {
					got, want := decide(t, l, "key", n), decide(t, control, "key", n)
					got.Source, got.Policy = SourceStore, want.Policy
					require.Equal(t, want, got, n)
					time.Sleep(200 * time.Millisecond)
				}
				require.NotZero(t, l.Stats().Remote.Cached)
			})
		})
	}
}

// TestOwnChangesTakeEffectAtOnce changes a key in this process, also while a
// call is in flight that has seen the key before.
func TestOwnChangesTakeEffectAtOnce(t *testing.T) {
	for name, do := range map[string]func(l *Limiter) error{
		"reset":        func(l *Limiter) error { return l.Reset(ctx, "key") },
		"refund":       func(l *Limiter) error { return l.Refund(ctx, "key", 1) },
		"raised limit": func(l *Limiter) error { return l.SetLimits(FixedWindow(6, time.Hour)) },
	} {
		for _, racing := range []bool{false, true} {
			t.Run(fmt.Sprint(name, racing), func(t *testing.T) {
				remotely(t, Options{Limits: []Limit{hour}, DenyRecheck: -1, Timeout: time.Minute}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
					decide(t, l, "key", 5)
					if racing {
						slow := make(chan struct{})
						backend.Store = &blockedReply{Store: backend.Store, until: slow}
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

// blockedReply holds the answers to takes back.
type blockedReply struct {
	Store
	until chan struct{}
}

func (s *blockedReply) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	at, err := s.Store.Take(ctx, key, n, limits, results)
	<-s.until
	return at, err
}

func TestDenialUnderOnePlanHoldsForItsPlan(t *testing.T) {
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
	remotely(t, opts, func(t *testing.T, backend *remoteBackend, l *Limiter) {
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

// TestKnownDenialsHoldUnderEachPolicy denies a key and then has the store fail. Only
// one call in each Options.DenyRecheck is decided by the policy.
func TestKnownDenialsHoldUnderEachPolicy(t *testing.T) {
	for policy, allowed := range map[FailurePolicy]bool{FallbackLocal: false, FailOpen: true, FailClosed: false} {
		opts := Options{Limits: []Limit{hour}, OnFailure: policy, DenyRecheck: 10 * time.Second}
		remotely(t, opts, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			for range 6 {
				decide(t, l, "key", 1)
			}
			backend.set(refused)
			for range 3 {
				for range 20 {
					d := decide(t, l, "key", 1)
					require.Equal(t, SourceCache, d.Source, policy)
					require.False(t, d.Allowed, policy)
				}
				time.Sleep(11 * time.Second)
				d, err := l.Take(ctx, "key")
				require.Equal(t, policy == FailClosed, err != nil, policy)
				require.Equal(t, allowed, d.Allowed, policy)
				require.NotEqual(t, SourceCache, d.Source, policy)
			}
		})
	}
}
