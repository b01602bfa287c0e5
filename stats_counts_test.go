package ratelimit_test

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestNewLimiterCountsFromZero is about limiters that have the name, or the store, of
// one before them.
func TestNewLimiterCountsFromZero(t *testing.T) {
	store, remote := memory(t, "shared"), redisStore(t, newMini(t).client(t), "rl:shared:")
	for name, on := range map[string]func() Options{
		"memory":  func() Options { return with(store) },
		"wrapped": func() Options { return with(&wrapper{store}) },
		"Redis":   func() Options { return with(remote) },
	} {
		t.Run(name, func(t *testing.T) {
			reg := new(Registry)
			defer reg.Close()
			opts := on()
			opts.Timeout = time.Minute
			before, err := reg.New("a", opts)
			require.NoError(t, err)
			for range 7 {
				decide(t, before, name, 1)
			}
			require.NoError(t, before.Close())
			was := before.Stats()
			require.EqualValues(t, 7, was.Allowed+was.Denied)
			for _, next := range []string{"a", "b"} { // the same name, and another one on the same store
				l, err := reg.New(next, opts)
				require.NoError(t, err)
				require.Zero(t, totalOf(l.Stats()))
				require.Zero(t, l.Stats().Remote.Calls)
				require.False(t, decide(t, l, name, 1).Allowed, "the store's counters stay")
				require.EqualValues(t, 1, l.Stats().Denied)
				require.EqualValues(t, 1, l.Stats().DeniedUnits)
				require.Equal(t, countersOf(was), countersOf(before.Stats()), "it counts for the new limiter only")
				require.NoError(t, l.Close())
			}
		})
	}
}

// TestStoreCountsForEachOwnerInTurn hands a store back and forth between limiters, by
// Close and by Reload.
func TestStoreCountsForEachOwnerInTurn(t *testing.T) {
	reg := new(Registry)
	defer reg.Close()
	a, b := memory(t, "a"), memory(t, "b")
	made := func(name string, store Store, limits ...Limit) *Limiter {
		var l *Limiter
		opts := quiet(limits...)
		opts.Store = store
		require.NoError(t, reg.Reload(func(next *Registry) (err error) {
			l, err = next.New(name, opts)
			return err
		}))
		return l
	}
	used := func(l *Limiter, n int) {
		for i := range n {
			decide(t, l, "key", int64(1+i%2))
		}
	}
	x := made("x", a, FixedWindow(3, time.Hour).Named("first"))
	used(x, 5)
	x2 := made("x", b, FixedWindow(3, time.Hour).Named("second"))
	used(x2, 5)
	used(x, 1) // a request that still reaches the replaced generation
	require.EqualValues(t, 11, totalOf(x2.Stats()))
	y := made("y", a, FixedWindow(3, time.Hour).Named("third")) // x is left out, and its first store is free
	used(y, 2)
	require.EqualValues(t, 2, totalOf(y.Stats()))
	require.EqualValues(t, 11, totalOf(x2.Stats()))
	require.Equal(t, []PolicyStats{{"third", FixedWindow(3, time.Hour).Named("third"), 2}}, y.Stats().Policies)
	require.NoError(t, y.Close())
	z := made("x", a, hour) // a new x: it was left out in between
	require.Zero(t, totalOf(z.Stats()))
	require.EqualValues(t, 2, totalOf(y.Stats()))
}

// TestStoreThatIsCalledDirectlyCountsForNobody calls a limiter's store, as its wrappers
// do.
func TestStoreThatIsCalledDirectlyCountsForNobody(t *testing.T) {
	s := memory(t, "s")
	l := httpLimiter(t, with(s))
	take(t, s, "key", 5, hour)
	take(t, s, "key", 5, hour)
	take(t, s, "key", 5, hour, SlidingWindow(5, time.Hour))
	require.Zero(t, totalOf(l.Stats()))
	require.False(t, decide(t, l, "key", 1).Allowed)
	require.EqualValues(t, 1, l.Stats().Denied)
}

// TestNearLimitIsAFifthOfAnyLimit takes units until a limit is near.
func TestNearLimitIsAFifthOfAnyLimit(t *testing.T) {
	for _, test := range []struct {
		name   string
		limits []Limit
		taken  int64
		near   bool
	}{
		{"a fifth", []Limit{FixedWindow(10, time.Hour)}, 8, true},
		{"more than a fifth", []Limit{FixedWindow(10, time.Hour)}, 7, false},
		{"exactly a fifth of no whole number", []Limit{FixedWindow(9, time.Hour)}, 8, true},
		{"more than a fifth of no whole number", []Limit{FixedWindow(9, time.Hour)}, 7, false},
		{"one of one", []Limit{FixedWindow(1, time.Hour)}, 1, true},
		{"one of four", []Limit{FixedWindow(4, time.Hour)}, 3, false},
		{"a bucket's burst", []Limit{TokenBucket(1, time.Hour, 100)}, 80, true},
		{"not the bucket's rate", []Limit{TokenBucket(100, time.Hour, 10)}, 7, false},
		{"another limit than the one that binds", []Limit{FixedWindow(20, time.Hour), FixedWindow(100, time.Minute), SlidingWindow(4000, 24*time.Hour)}, 16, true},
		{"none of several", []Limit{FixedWindow(20, time.Hour), FixedWindow(100, time.Minute)}, 15, false},
		{"a limit with more left than another one", []Limit{FixedWindow(1000, time.Hour), TokenBucket(1, time.Hour, 200)}, 1, false},
		{"no limit", []Limit{Unlimited}, 1e9, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := quiet(test.limits...)
			opts.Redis = newMini(t).client(t)
			opts.Timeout = time.Minute
			for kind, l := range map[string]*Limiter{"memory": limiter(t, test.limits...), "Redis": httpLimiter(t, opts)} {
				require.True(t, decide(t, l, "key", test.taken).Allowed)
				require.Equal(t, uint64(b2i(test.near)), l.Stats().NearLimit, kind)
				decide(t, l, "key", 0)
				require.Equal(t, uint64(b2i(test.near)), l.Stats().NearLimit, "%s: looks are not counted", kind)
			}
		})
	}
	// 100 of 1,000 left is near, although 90 of 100 bind.
	l := limiter(t, FixedWindow(1000, time.Hour), FixedWindow(100, time.Minute))
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, FixedWindow(1000, time.Hour), FixedWindow(100, time.Minute))
		for range 9 {
			decide(t, l, "key", 99)
			time.Sleep(time.Minute)
		}
		was := l.Stats().NearLimit
		d := decide(t, l, "key", 1)
		require.EqualValues(t, 99, d.Remaining)
		require.Equal(t, FixedWindow(100, time.Minute), d.Limit)
		require.Equal(t, was+1, l.Stats().NearLimit)
	})
	require.False(t, decide(t, l, "key", 2000).Allowed)
	require.Zero(t, l.Stats().NearLimit, "a denial is not near")
}

// TestPoliciesAreCountedByName is about LimiterStats.Policies.
func TestPoliciesAreCountedByName(t *testing.T) {
	named := func(n int64, name string) Limit { return FixedWindow(n, time.Hour).Named(name) }
	policy := func(n int64, name string, denied uint64) PolicyStats {
		return PolicyStats{name, named(n, name), denied}
	}
	for name, store := range map[string]func(t *testing.T) Store{
		"memory":  func(t *testing.T) Store { return memory(t, "a") },
		"wrapped": func(t *testing.T) Store { return &wrapper{memory(t, "b")} },
	} {
		make := func(t *testing.T, limits ...Limit) *Limiter {
			opts := quiet(limits...)
			opts.Store = store(t)
			return httpLimiterNamed(t, "lim", opts)
		}
		denyBy := func(t *testing.T, l *Limiter, limits ...Limit) {
			d, err := l.TakeLimits(ctx, "key", 1_000, limits...)
			require.NoError(t, err)
			require.False(t, d.Allowed)
		}
		t.Run(name+", in the order of first use", func(t *testing.T) {
			l := make(t, named(1, "own"))
			require.Equal(t, []PolicyStats{policy(1, "own", 0)}, l.Stats().Policies)
			denyBy(t, l, named(2, "gold"))
			denyBy(t, l, named(3, "basic"))
			denyBy(t, l, named(2, "gold"))
			denyBy(t, l)
			require.NoError(t, l.SetLimits(named(4, "later")))
			denyBy(t, l)
			require.NoError(t, l.SetLimits(named(5, "own")))
			denyBy(t, l)
			require.Equal(t, []PolicyStats{
				policy(5, "own", 2), policy(2, "gold", 2), policy(3, "basic", 1), policy(4, "later", 1),
			}, l.Stats().Policies)
		})
		t.Run(name+", a plan with the name of the limiter's own limit", func(t *testing.T) {
			l := make(t, named(1, "own"))
			denyBy(t, l, named(7, "own"))
			denyBy(t, l)
			require.Equal(t, []PolicyStats{policy(1, "own", 2)}, l.Stats().Policies, "the limiter's own limit is shown")
		})
		t.Run(name+", without names", func(t *testing.T) {
			l := make(t, FixedWindow(2, time.Hour), FixedWindow(5, time.Minute))
			denyBy(t, l, Deny)
			denyBy(t, l, SlidingWindow(1, time.Second))
			var names []string
			for _, p := range l.Stats().Policies {
				names = append(names, p.Name)
			}
			require.Equal(t, []string{"lim-1h", "lim-1m", "lim"}, names)
			require.EqualValues(t, 2, l.Stats().Policies[2].Denied)
		})
		t.Run(name+", the limit that binds", func(t *testing.T) {
			l := make(t, named(1, "hour"), FixedWindow(1, time.Minute).Named("minute"), FixedWindow(10_000, time.Second).Named("second"))
			decide(t, l, "key", 1)
			d := decide(t, l, "key", 1)
			require.Equal(t, "hour", d.Policy, "it denies for the longest")
			policies := l.Stats().Policies
			require.EqualValues(t, []uint64{1, 0, 0}, []uint64{policies[0].Denied, policies[1].Denied, policies[2].Denied})
		})
		t.Run(name+", a thousand plans", func(t *testing.T) {
			l := make(t, named(1, "own"))
			for range 2 {
				for i := range 1000 {
					denyBy(t, l, named(int64(i+1)%900+1, fmt.Sprint("plan ", i)))
				}
			}
			denyBy(t, l)
			all := l.Stats().Policies
			require.Len(t, all, 1+64+1)
			require.Equal(t, policy(1, "own", 1), all[0])
			for i, p := range all[1:65] {
				require.Equal(t, policy(int64(i+1)%900+1, fmt.Sprint("plan ", i), 2), p)
			}
			require.Equal(t, PolicyStats{Name: "other", Denied: 2 * (1000 - 64)}, all[65])
			require.EqualValues(t, 2001, l.Stats().Denied)
		})
		t.Run(name+", ever new limits of the limiter", func(t *testing.T) {
			l := make(t, named(1, "name 0"))
			denyBy(t, l)
			for i := 1; i < 200; i++ {
				require.NoError(t, l.SetLimits(named(int64(i+1), fmt.Sprint("name ", i))))
				denyBy(t, l)
			}
			denyBy(t, l, named(2, "plan")) // has room of its own
			all := l.Stats().Policies
			require.Len(t, all, 62+1+1)
			require.Equal(t, policy(62, "name 61", 1), all[61])
			require.Equal(t, PolicyStats{Name: "other", Denied: 200 - 62}, all[62])
			require.Equal(t, policy(2, "plan", 1), all[63])
		})
		t.Run(name+", a limit with the name other", func(t *testing.T) {
			l := make(t, named(1, "other"))
			denyBy(t, l)
			for i := range 100 {
				denyBy(t, l, named(2, fmt.Sprint(i)))
			}
			all := l.Stats().Policies
			require.Len(t, all, 65)
			require.Equal(t, "other", all[0].Name)
			require.EqualValues(t, 1+100-64, all[0].Denied)
		})
	}
}

// TestShadowDenialsAreInNoPolicy sends requests that Shadow lets through.
func TestShadowDenialsAreInNoPolicy(t *testing.T) {
	opts := quiet(FixedWindow(1, time.Hour).Named("own"))
	opts.Shadow = true
	l := httpLimiter(t, opts)
	h := l.Middleware(httpServed)
	for range 5 {
		require.Equal(t, http.StatusNoContent, statusOf(h))
	}
	decide(t, l, httpKey, 1) // Take is not changed by Shadow
	stats := l.Stats()
	require.EqualValues(t, 4, stats.ShadowDenied)
	require.EqualValues(t, 1, stats.Denied)
	require.EqualValues(t, 1, stats.DeniedUnits)
	require.Equal(t, []PolicyStats{{"own", opts.Limits[0], 1}}, stats.Policies)
}

// TestWarningsAreCountedPerCause has more causes than log lines, and codes that are
// silenced.
func TestWarningsAreCountedPerCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logged
		var seen recorder
		opts := byHeader()
		opts.Logger, opts.Silence, opts.Observe = log.logger(), []Code{CodeNoKey}, seen.observe
		l := httpLimiter(t, opts)
		h := l.Middleware(httpServed)
		for range 3 {
			for range 5 {
				httpAnswer(h, httpRequest("GET", "Key: "))
				httpAnswer(h, httpRequest("GET", "Key: fail"))
				httpAnswer(h, httpRequest("GET", "Key: 10.0.0.1:99"))
				httpAnswer(h, httpRequest("GET", "Key: key", "Cost: 1000"))
			}
			time.Sleep(time.Minute + 1)
		}
		require.Equal(t, map[Code]uint64{CodeNoKey: 15, CodeOptionFailed: 15, CodeKeyWithPort: 15, CodeCostTooHigh: 15}, l.Stats().Warnings)
		lines := map[Code]int{}
		for _, code := range log.codes() {
			lines[code]++
		}
		require.Equal(t, map[Code]int{CodeOptionFailed: 3, CodeKeyWithPort: 3, CodeCostTooHigh: 3}, lines, "a line per minute, and none if silenced")
		events := map[Code]int{}
		for _, e := range seen.of(EventWarning) {
			events[e.Code]++
			require.Equal(t, e.Code == CodeOptionFailed, e.Err != nil)
		}
		require.Equal(t, map[Code]int{CodeNoKey: 3, CodeOptionFailed: 3, CodeKeyWithPort: 3, CodeCostTooHigh: 3}, events, "an event per minute, also if silenced")
		require.Empty(t, limiter(t, hour).Stats().Warnings)
		require.NotNil(t, limiter(t, hour).Stats().Warnings)
	})
}

// TestSilenceRefusesUnknownCodes is about the type of Options.Silence.
func TestSilenceRefusesUnknownCodes(t *testing.T) {
	opts := quiet(hour)
	opts.Silence = []Code{"no-such-code"}
	_, err := new(Registry).New("x", opts)
	require.ErrorContains(t, err, `Options.Silence has "no-such-code"`)
}

// TestCallTimesHaveTheDocumentedBounds makes calls of known length.
func TestCallTimesHaveTheDocumentedBounds(t *testing.T) {
	for i, want := range map[int]float64{0: 1.0 / 16384, 14: 1, 16: 4} {
		require.Equal(t, want, CallTimes{}.Bound(i))
	}
	require.True(t, CallTimes{}.Bound(17) > 1e300, "the last one has none")
	remotely(t, Options{Limits: []Limit{hour}, Timeout: -1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		var want CallTimes
		var total time.Duration
		for i := range len(want) - 1 {
			edge := time.Duration(CallTimes{}.Bound(i) * 1e9)
			for _, one := range []struct {
				took    time.Duration
				element int
			}{{edge, i}, {edge + 1, i + 1}} {
				backend.delay(one.took)
				decide(t, l, fmt.Sprint(one.took), 1)
				want[one.element]++
				total += one.took
			}
		}
		stats := l.Stats().Remote
		require.Equal(t, want, stats.CallTimes)
		require.Equal(t, total, stats.CallTime)
		require.EqualValues(t, 2*(len(want)-1), stats.Calls)
	})
}

// TestEachCallToTheStoreIsCounted is about RemoteStats.Calls: what counts as a call, and
// when.
func TestEachCallToTheStoreIsCounted(t *testing.T) {
	remotely(t, Options{Limits: []Limit{FixedWindow(5, time.Hour)}, DenyRecheck: -1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.delay(time.Millisecond)
		for _, test := range []struct {
			name  string
			call  func()
			calls uint64
		}{
			{"Take", func() { decide(t, l, "key", 1) }, 1},
			{"a look", func() { decide(t, l, "key", 0) }, 1},
			{"TakeUpTo", func() { l.TakeUpTo(ctx, "key", 2) }, 1},
			{"Refund", func() { require.NoError(t, l.Refund(ctx, "key", 1)) }, 1},
			{"Reset", func() { require.NoError(t, l.Reset(ctx, "key")) }, 1},
			{"a denial", func() { decide(t, l, "key", 5); decide(t, l, "key", 1) }, 2},
			{"a denial that is known", func() { decide(t, l, "key", 1) }, 0},
			{"a limit that needs no store", func() { l.TakeLimits(ctx, "key", 1, Unlimited) }, 0},
		} {
			was := l.Stats().Remote
			test.call()
			synctest.Wait()
			is := l.Stats().Remote
			assert.Equal(t, test.calls, is.Calls-was.Calls, test.name)
			assert.GreaterOrEqual(t, is.CallTime-was.CallTime, time.Duration(test.calls)*time.Millisecond, test.name)
		}
		// A call in flight is counted when it has ended.
		was := l.Stats().Remote.Calls
		backend.delay(50 * time.Millisecond)
		go l.Take(ctx, "new")
		time.Sleep(49 * time.Millisecond)
		require.Equal(t, was, l.Stats().Remote.Calls)
		time.Sleep(2 * time.Millisecond)
		require.Equal(t, was+1, l.Stats().Remote.Calls)
		// Calls that fail are calls, too, and take as long as they take.
		before := l.Stats().Remote
		backend.delay(0)
		backend.set(silent)
		decide(t, l, "newer", 1)
		after := l.Stats().Remote
		require.Equal(t, before.Calls+1, after.Calls)
		require.Equal(t, before.Failures+1, after.Failures)
		require.Equal(t, DefaultTimeout, after.CallTime-before.CallTime)
		require.Error(t, l.Reset(ctx, "newer"))
		require.Equal(t, after.Calls+1, l.Stats().Remote.Calls)
	})
}

// TestEachRequestIsCountedOnce sends requests whose counting is not obvious.
func TestEachRequestIsCountedOnce(t *testing.T) {
	var l *Limiter
	h := func(next http.Handler) http.Handler { return l.Middleware(next) }
	for _, test := range []struct {
		name   string
		change func(*Options)
		send   func(t *testing.T)
		want   LimiterStats // Remote, Memory, Policies and Warnings are not compared
	}{
		{"it passes the limiter twice", nil, func(t *testing.T) {
			require.Equal(t, 204, statusOf(h(h(httpServed))))
		}, LimiterStats{Allowed: 1, AllowedUnits: 1}},
		{"Options.Denied sends it round again", func(o *Options) {
			o.Denied = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h(httpServed).ServeHTTP(w, r) })
		}, func(t *testing.T) {
			decide(t, l, httpKey, 5)
			require.Equal(t, 429, statusOf(h(httpServed)))
		}, LimiterStats{Allowed: 1, AllowedUnits: 5, NearLimit: 1, Denied: 1, DeniedUnits: 1}},
		{"a handler makes another one of it", nil, func(t *testing.T) {
			require.Equal(t, 204, statusOf(h(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(statusOf(h(httpServed)))
			}))))
		}, LimiterStats{Allowed: 2, AllowedUnits: 2}},
		{"its units are given back", func(o *Options) {
			o.Count = func(*http.Request, int) bool { return false }
		}, func(t *testing.T) { statusOf(h(httpServed)) }, LimiterStats{Allowed: 1, AllowedUnits: 1}},
		{"it costs more in the end", nil, func(t *testing.T) {
			statusOf(h(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { require.NoError(t, l.AddCost(r.Context(), 3)) })))
			require.EqualValues(t, 1, leftOf(t, l, httpKey))
		}, LimiterStats{Allowed: 1, AllowedUnits: 1}},
		{"its client has left", nil, func(t *testing.T) {
			left, cancel := context.WithCancel(ctx)
			cancel()
			require.Contains(t, httpAnswer(h(httpServed), httpRequest("GET").WithContext(left)), "503")
		}, LimiterStats{Failed: 1}},
		{"its client has left, in Shadow", func(o *Options) { o.Shadow = true }, func(t *testing.T) {
			left, cancel := context.WithCancel(ctx)
			cancel()
			require.Contains(t, httpAnswer(h(httpServed), httpRequest("GET").WithContext(left)), "204")
		}, LimiterStats{Failed: 1}},
		{"the limiter is closed", nil, func(t *testing.T) {
			require.NoError(t, l.Close())
			require.Equal(t, 503, statusOf(h(httpServed)))
			_, err := l.Take(ctx, "key")
			require.ErrorIs(t, err, ErrClosed)
		}, LimiterStats{Failed: 1}},
		{"it is a preflight", func(o *Options) { o.SkipPreflight = true }, func(t *testing.T) {
			httpAnswer(h(httpServed), httpRequest("OPTIONS", "Origin: https://a.example", "Access-Control-Request-Method: PUT"))
		}, LimiterStats{Exempt: 1}},
		{"its handler panics", nil, func(t *testing.T) {
			require.Panics(t, func() { statusOf(h(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a bug") }))) })
		}, LimiterStats{Allowed: 1, AllowedUnits: 1}},
		{"the limiter is asked by Check", nil, func(t *testing.T) {
			for range 2 {
				require.True(t, l.Check(httptest.NewRecorder(), httpRequest("GET")))
			}
		}, LimiterStats{Allowed: 2, AllowedUnits: 2}},
		{"units are refunded and the key is reset", nil, func(t *testing.T) {
			decide(t, l, "key", 5)
			require.NoError(t, l.Refund(ctx, "key", 5))
			require.NoError(t, l.Reset(ctx, "key"))
		}, LimiterStats{Allowed: 1, AllowedUnits: 5, NearLimit: 1}},
		{"more units than fit into an int64 of denials", nil, func(t *testing.T) {
			for range 2 {
				decide(t, l, "key", math.MaxInt64)
			}
		}, LimiterStats{Denied: 2, DeniedUnits: math.MaxInt64}},
	} {
		for kind, store := range map[string]func(t *testing.T) Store{
			"memory": func(t *testing.T) Store { return memory(t, "m") }, "wrapped": func(t *testing.T) Store { return &wrapper{memory(t, "w")} },
		} {
			t.Run(test.name+", "+kind, func(t *testing.T) {
				opts := quiet(hour)
				opts.Store = store(t)
				if test.change != nil {
					test.change(&opts)
				}
				l = httpLimiter(t, opts)
				test.send(t)
				got := l.Stats()
				got.Remote, got.Memory, got.Policies, got.Warnings = RemoteStats{}, MemoryStats{}, nil, nil
				require.Equal(t, test.want, got)
			})
		}
	}
}

// TestReadsDoNotFallWhileUnitsAreTaken reads the statistics during a flood.
func TestReadsDoNotFallWhileUnitsAreTaken(t *testing.T) {
	for name, store := range map[string]Store{"memory": memory(t, "a"), "wrapped": &wrapper{memory(t, "b")}, "remote": &remoteBackend{Store: memory(t, "c")}} {
		opts := quiet(FixedWindow(5, time.Hour), SlidingWindow(1000, time.Minute))
		opts.Store = store
		l := httpLimiter(t, opts)
		memTogether(func(g int) {
			was := map[string]uint64{}
			for i := range 40 {
				_, err := l.TakeN(ctx, fmt.Sprint(i%7), int64(g%3))
				assert.NoError(t, err)
				if g%8 == 0 {
					s := l.Stats()
					is := countersOf(s)
					noneFalls(t, was, is)
					was = is
				}
			}
		})
		s := l.Stats()
		// Of 64 goroutines, 22 ask for none.
		assert.EqualValues(t, (64-22)*40, s.Allowed+s.Denied, name)
		assert.EqualValues(t, 21*40*1+21*40*2, s.AllowedUnits+s.DeniedUnits, name)
	}
}
