package ratelimit_test

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
)

// These tests are about Rolling as users see it. The counting itself is tested in
// internal/rule and internal/table.

func TestRollingTextRoundTrips(t *testing.T) {
	for limit, text := range map[Limit]string{
		Rolling(5, time.Hour):                                   "5/1h rolling",
		Rolling(MaxRolling, 90*time.Second):                     "1000/1m30s rolling",
		Rolling(1, time.Millisecond).Named("my policy"):         `1/1ms rolling name="my policy"`,
		Rolling(5, time.Minute).Block(time.Minute, time.Hour):   "5/1m rolling block=1m,1h",
		Rolling(5, 50*365*24*time.Hour).Named("for a lifetime"): `5/438000h rolling name="for a lifetime"`,
	} {
		require.Equal(t, text, limit.String())
		parsed, err := ParseLimit(text)
		require.NoError(t, err)
		require.True(t, parsed == limit, "%s came back as %v", text, parsed)
		marshaled, err := json.Marshal(limit)
		require.NoError(t, err)
		var unmarshaled Limit
		require.NoError(t, json.Unmarshal(marshaled, &unmarshaled))
		require.Equal(t, limit, unmarshaled)
	}
	l := Rolling(5, time.Hour)
	require.Equal(t, "rolling", l.Algorithm())
	require.Equal(t, int64(5), l.N())
	require.Equal(t, int64(5), l.Burst())
	require.Equal(t, time.Hour, l.Window())
	require.Nil(t, l.Ladder())
	require.NotEqual(t, FixedWindow(5, time.Hour), l)
}

func TestRollingErrorsNameTheMistake(t *testing.T) {
	const tooMany = "it allows 1001 units, and a rolling window keeps the instant of each unit: want 1 to 1000; for more, use SlidingWindow"
	for text, want := range map[string]string{
		"1001/1h rolling":                 tooMany,
		"0/1h rolling":                    "it allows 0 units: want 1 to 1000",
		"-1/1h rolling":                   "it allows -1 units: want 1 to 1000",
		"-9223372036854775808/1h rolling": "it allows -9223372036854775808 units: want 1 to 1000",
		"99999999999999999999/1h rolling": `"99999999999999999999" is not a whole number of units`,
		"5e2/1h rolling":                  `"5e2" is not a whole number of units`,
		"0x10/1h rolling":                 `"0x10" is not a whole number of units`,
		"5/NaN rolling":                   `window "NaN": want a duration such as 1s, 15m or 24h`,
		"5/Infh rolling":                  `window "Infh": want a duration`,
		"5/9999999h rolling":              `window "9999999h": want a duration`,
		"5/60ns rolling":                  "its window is 60ns: want 1ms to 50 years; a number is of nanoseconds, so write 60*time.Second for 60 seconds",
		"5 / 1h rolling":                  "want a form such as",
		"5/1h rolling tz=UTC":             `option "tz": want block=… or name=…`,
		"5/1h rolling block = 1m":         `option "block = 1m": want block=… or name=…, without spaces around the =`,
		"5/0s rolling":                    "its window is 0s: want 1ms to",
		"5/999us rolling":                 "its window is 999µs",
		"5/438001h rolling":               "its window is 438001h0m0s",
		"5/1h rolling burst=5":            "option burst: only a bucket has one, not rolling",
		"5/1h Rolling":                    `algorithm "Rolling": want fixed, sliding, bucket, rolling, calendar or inflight`,
		"5/1h rolling rolling":            `option "rolling": want block`,
		"5/1h rolling block=1h,1m":        "block",
		"999999999999/1h rolling":         "it allows 999999999999 units, and a rolling window",
		"1000000000000000/1h rolling":     "it allows 1000000000000000 units",
	} {
		got, err := ParseLimit(text)
		require.ErrorContains(t, err, want, text)
		require.Zero(t, got)
	}
	_, err := new(Registry).New("login", quiet(Rolling(1001, time.Hour)))
	require.ErrorContains(t, err, `limiter "login"`)
	require.ErrorContains(t, err, "1001/1h rolling")
	require.ErrorContains(t, err, tooMany)
	_, err = Rolling(1001, time.Hour).MarshalText()
	require.ErrorContains(t, err, tooMany)

	l := limiter(t, Rolling(5, time.Hour))
	require.ErrorContains(t, l.SetLimits(Rolling(1001, time.Hour)), tooMany)
	_, err = l.TakeLimits(ctx, "k", 1, Rolling(1001, time.Hour))
	require.ErrorContains(t, err, tooMany)
	_, err = memory(t, "direct").Take(ctx, "k", 1, []Limit{Rolling(1001, time.Hour)}, make([]Result, 1))
	require.ErrorContains(t, err, "limit 1001/1h rolling is not valid")
}

// TestRollingAnswers checks whole decisions over a history.
func TestRollingAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, Rolling(3, time.Hour))
		take := func(n int64, allowed bool, remaining int64, retry, more, reset time.Duration) {
			t.Helper()
			d, err := l.TakeN(ctx, "k", n)
			require.NoError(t, err)
			require.Equal(t, []any{allowed, remaining, retry, more, reset}, []any{d.Allowed, d.Remaining, d.RetryAfter, d.MoreAfter, d.ResetAfter})
		}
		take(1, true, 2, 0, time.Hour, time.Hour)
		time.Sleep(10 * time.Minute)
		take(2, true, 0, 0, 50*time.Minute, time.Hour)
		time.Sleep(40 * time.Minute)
		take(1, false, 0, 10*time.Minute, 10*time.Minute, 20*time.Minute)
		take(2, false, 0, 20*time.Minute, 10*time.Minute, 20*time.Minute)
		take(4, false, 0, Never, 10*time.Minute, 20*time.Minute)
		time.Sleep(10*time.Minute - 1)
		take(1, false, 0, 1, 1, 10*time.Minute+1)
		time.Sleep(time.Nanosecond)
		take(1, true, 0, 0, 10*time.Minute, time.Hour) // a fixed window would have opened with 3 units
		time.Sleep(time.Hour)
		take(0, true, 3, 0, 0, 0)

		require.NoError(t, l.SetLimits(Rolling(2, time.Hour)))
		take(2, true, 0, 0, time.Hour, time.Hour)
		require.NoError(t, l.SetLimits(Rolling(5, time.Hour)))
		take(1, true, 2, 0, time.Hour, time.Hour)
		require.NoError(t, l.SetLimits(Rolling(1, time.Hour)))
		take(1, false, 0, time.Hour, time.Hour, time.Hour)
		require.NoError(t, l.SetLimits(Rolling(5, 2*time.Hour))) // another counter
		take(0, true, 5, 0, 0, 0)
	})
}

// TestRollingAdmitsNInAnyInterval: 64 goroutines hammer a key while time goes on. No
// interval as long as the window has more than n admitted units, and the limit is reached.
func TestRollingAdmitsNInAnyInterval(t *testing.T) {
	for _, limits := range [][]Limit{{Rolling(40, time.Second)}, {FixedWindow(1_000_000, time.Hour), Rolling(40, time.Second)}} {
		synctest.Test(t, func(t *testing.T) {
			l := limiter(t, limits...)
			var mu sync.Mutex
			var admitted []time.Duration
			began := time.Now()
			var done sync.WaitGroup
			for g := range 64 {
				done.Go(func() {
					r := rand.New(rand.NewPCG(7, uint64(g)))
					for range 60 {
						time.Sleep(time.Duration(r.IntN(150)) * time.Millisecond)
						n := 1 + r.Int64N(3)
						d, err := l.TakeN(ctx, "k", n)
						if err != nil {
							t.Error(err)
						}
						if d.Allowed {
							mu.Lock()
							for range n {
								admitted = append(admitted, time.Since(began)) // the clock does not move until all goroutines sleep
							}
							mu.Unlock()
						}
					}
				})
			}
			done.Wait()
			slices.Sort(admitted)
			most := 0
			for i, at := range admitted {
				end, _ := slices.BinarySearch(admitted, at+time.Second)
				most = max(most, end-i)
			}
			require.Equal(t, 40, most)
		})
	}
}

// TestRollingRetryAfterIsHonest: through a handler, a client that waits for Retry-After is
// admitted by its next request, and one that waits a second less is not.
func TestRollingRetryAfterIsHonest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, quiet(Rolling(4, time.Minute).Named("login")))
		handler := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		request := func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httpRequest("GET"))
			return w
		}
		r := rand.New(rand.NewPCG(1, 2))
		denied := 0
		for range 400 {
			time.Sleep(time.Duration(r.IntN(12)) * time.Second)
			w := request()
			require.Equal(t, `"login";q=4;w=60`, w.Header().Get("RateLimit-Policy"))
			if w.Code == http.StatusOK {
				require.Empty(t, w.Header().Get("Retry-After"))
				continue
			}
			denied++
			require.Equal(t, http.StatusTooManyRequests, w.Code)
			retry, err := strconv.Atoi(w.Header().Get("Retry-After"))
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf(`"login";r=0;t=%d`, retry), w.Header().Get("RateLimit"))
			time.Sleep(time.Duration(retry-1) * time.Second)
			require.Equal(t, http.StatusTooManyRequests, request().Code)
			time.Sleep(time.Second)
			require.Equal(t, http.StatusOK, request().Code)
		}
		require.Greater(t, denied, 50)
	})
}

// TestRollingCount: a request that does not count gives back its own unit, also if others
// of the key have come in the meantime.
func TestRollingCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := quiet(Rolling(3, time.Minute))
		o.Count = func(_ *http.Request, status int) bool { return status >= 400 }
		l := httpLimiter(t, o)
		handler := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				time.Sleep(20 * time.Second)
				return
			}
			w.WriteHeader(http.StatusForbidden)
		}))
		var slow sync.WaitGroup
		slow.Go(func() { handler.ServeHTTP(httptest.NewRecorder(), httpRequest("POST")) })
		for range 2 {
			time.Sleep(5 * time.Second)
			handler.ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
		}
		slow.Wait() // its unit was the oldest
		standing, err := l.LookKey(ctx, httpKey)
		require.NoError(t, err)
		require.Equal(t, int64(1), standing[0].Remaining)
		require.Equal(t, 45*time.Second, standing[0].MoreAfter)
		require.Equal(t, 50*time.Second, standing[0].ResetAfter)
	})
}

// TestRollingRefund: Refund gives back the youngest units, AddCost charges from now on, and
// TakeUpTo takes what fits.
func TestRollingRefund(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, Rolling(5, time.Minute))
		took(t, l, "k", 2)
		time.Sleep(10 * time.Second)
		took(t, l, "k", 2)
		require.NoError(t, l.Refund(ctx, "k", 3))
		left := func() Standing {
			all, err := l.LookKey(ctx, "k")
			require.NoError(t, err)
			return all[0]
		}
		require.Equal(t, int64(4), left().Remaining)
		require.Equal(t, 50*time.Second, left().ResetAfter)
		require.NoError(t, l.Refund(ctx, "k", math.MaxInt64))
		require.Equal(t, int64(5), left().Remaining)
		require.NoError(t, l.Refund(ctx, "k", 1))
		require.Equal(t, int64(5), left().Remaining)

		granted, d, err := l.TakeUpTo(ctx, "k", 9)
		require.NoError(t, err)
		require.Equal(t, int64(5), granted)
		require.True(t, d.Allowed)
		granted, d, err = l.TakeUpTo(ctx, "k", 9)
		require.NoError(t, err)
		require.Zero(t, granted)
		require.Equal(t, time.Minute, d.RetryAfter)
		require.NoError(t, l.Reset(ctx, "k"))
		require.Equal(t, int64(5), left().Remaining)
		require.Equal(t, MemoryStats{}, l.Stats().Memory)
	})
}

// TestRollingBeside: with other limits, a request takes its units from all limits or from
// none, whichever of them denies.
func TestRollingBeside(t *testing.T) {
	for at := range 4 {
		synctest.Test(t, func(t *testing.T) {
			limits := slices.Insert(algorithms(4, time.Hour), at, Rolling(2, time.Minute))
			l := limiter(t, limits...)
			for minute := range 2 {
				took(t, l, "k", 2)
				d, err := l.Take(ctx, "k")
				require.NoError(t, err)
				require.False(t, d.Allowed)
				if minute == 0 {
					require.Equal(t, limits[at], d.Limit)
					require.Equal(t, time.Minute, d.RetryAfter)
				}
				time.Sleep(time.Minute)
			}
			d, err := l.Take(ctx, "k") // the sliding window denies, or the fixed one
			require.NoError(t, err)
			require.NotEqual(t, "rolling", d.Limit.Algorithm())
			standing, err := l.LookKey(ctx, "k")
			require.NoError(t, err)
			require.Equal(t, int64(2), standing[at].Remaining)
		})
	}
}

// TestRollingBlocks: a rolling limit can have Block, and a denial that there would not be
// without requests in flight starts none.
func TestRollingBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen observed
		o := quiet(Rolling(2, time.Minute).Block(time.Minute, time.Hour))
		o.Observe = seen.add
		o.Count = func(_ *http.Request, status int) bool { return status >= 400 }
		l := httpLimiter(t, o)
		status := http.StatusOK
		handler := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			answer := status
			time.Sleep(time.Second)
			w.WriteHeader(answer)
		}))
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() { handler.ServeHTTP(httptest.NewRecorder(), httpRequest("GET")) })
			time.Sleep(time.Millisecond)
		}
		all.Wait() // two were let in, and did not count
		status = http.StatusForbidden
		for range 2 {
			handler.ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
		}
		require.False(t, slices.ContainsFunc(seen.events, func(e Event) bool { return e.Kind == EventBlocked }))
		blockedFor(t, l, httpKey, time.Minute)
		time.Sleep(time.Minute)
		took(t, l, httpKey, 2)
		blockedFor(t, l, httpKey, time.Hour)
		blocked := 0
		for _, e := range seen.events {
			if e.Kind == EventBlocked {
				blocked++
				require.Equal(t, "rolling", e.Limit.Algorithm())
			}
		}
		require.Equal(t, 2, blocked)
	})
}

// TestStoresRefuseRolling: New, SetLimits, TakeLimits and LimitsFor refuse a rolling limit
// for a store that does not name the kind. The error names both.
func TestStoresRefuseRolling(t *testing.T) {
	for name, tc := range map[string]struct {
		store Store
		want  string
	}{
		"a wrapped RedisStore": {&plainWrapper{redisStore(t, unreachableClient(t), "p:")}, `plainWrapper (prefix "p:") does not count rolling windows`},
		"a foreign store":      {&plainWrapper{memory(t, "plain")}, "does not count rolling windows"},
		"counts no kinds":      {&noKinds{&kindWrapper{inner: memory(t, "none")}}, "noKinds"},
		"embeds its store":     {&embedder{memory(t, "embeds")}, "embeds a store of this package"},
	} {
		t.Run(name, func(t *testing.T) {
			rolling := Rolling(5, time.Minute)
			o := quiet(rolling)
			o.Store, o.OnFailure = tc.store, FailClosed
			refuses(t, o, rolling, tc.want)
		})
	}
}

// TestLeaseRefusesRolling: a leased unit is used later than it is counted.
func TestLeaseRefusesRolling(t *testing.T) {
	o := quiet(hour)
	o.Store, o.Lease = redisStore(t, unreachableClient(t), "p:"), time.Second
	refuses(t, o, Rolling(5, time.Minute), "limit 5/1m rolling cannot be leased, and Options.Lease is 1s: leave Lease out, or use SlidingWindow")
}

// refuses checks that New, SetLimits, TakeLimits and LimitsFor refuse a limit.
func refuses(t *testing.T, o Options, limit Limit, want string) {
	t.Helper()
	o.Limits = []Limit{limit}
	_, err := new(Registry).New("login", o)
	require.ErrorContains(t, err, `ratelimit: limiter "login": `)
	require.ErrorContains(t, err, "limit "+limit.String())
	require.ErrorContains(t, err, want)

	o.Limits = []Limit{hour}
	o.LimitsFor = func(*http.Request) []Limit { return []Limit{limit} }
	reg := new(Registry)
	l, err := reg.New("login", o)
	require.NoError(t, err)
	defer reg.Close()
	require.ErrorContains(t, l.SetLimits(hour, limit), want)
	_, err = l.TakeLimits(ctx, "k", 1, limit)
	require.ErrorContains(t, err, want)
	w := httptest.NewRecorder()
	l.Middleware(http.NotFoundHandler()).ServeHTTP(w, httpRequest("GET"))
	require.Equal(t, http.StatusInternalServerError, w.Code)
}

// TestKindWrapperCountsRolling: a store in this process that implements KindStore is
// called through its own methods.
func TestKindWrapperCountsRolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := quiet(Rolling(2, time.Minute))
		o.Store = &kindWrapper{inner: memory(t, "inner")}
		l := httpLimiter(t, o)
		took(t, l, "k", 1)
		time.Sleep(20 * time.Second)
		took(t, l, "k", 1)
		d, err := l.Take(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, 40*time.Second, d.RetryAfter)
	})
}

// TestKindsPrint: Kinds are in errors.
func TestKindsPrint(t *testing.T) {
	require.Equal(t, "rolling windows", KindRolling.String())
	require.Equal(t, "blocks and rolling windows", (KindBlock | KindRolling).String())
	require.Equal(t, "blocks and rolling windows and calendar periods", (KindBlock | KindRolling | KindCalendar).String())
	require.Equal(t, KindBlock|KindRolling|KindCalendar|KindInFlight, memory(t, "m").Kinds())
	require.Equal(t, "in-flight limits", KindInFlight.String())
}

// TestRollingGivesBackCharges: a request that does not count gives back all that AddCost has
// charged to it, so that only failures lead to a block.
func TestRollingGivesBackCharges(t *testing.T) {
	for _, limit := range []Limit{Rolling(10, time.Hour), FixedWindow(10, time.Hour)} {
		synctest.Test(t, func(t *testing.T) {
			o := quiet(limit.Block(day))
			o.Count = onlyFailures
			l := httpLimiter(t, o)
			h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(time.Millisecond)
				if err := l.AddCost(r.Context(), 4); err != nil {
					t.Error(err)
				}
			}))
			for i := range 10 {
				w, _ := serveOnce(h)
				require.Equal(t, 200, w.Code, "%v, request %d", limit, i)
				time.Sleep(time.Second)
			}
			standing, err := l.LookKey(ctx, httpKey)
			require.NoError(t, err)
			require.EqualValues(t, 10, standing[0].Remaining, limit)
		})
	}
}

// TestRollingBesideACalendar: all or none.
func TestRollingBesideACalendar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, quiet(Rolling(3, time.Minute), Daily(5, nil)))
		took(t, l, "k", 3)
		d, err := l.Take(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, time.Minute, d.RetryAfter)
		time.Sleep(time.Minute)
		d, err = l.TakeN(ctx, "k", 3)
		require.NoError(t, err)
		require.False(t, d.Allowed, "two of the day are left")
		require.Equal(t, 24*time.Hour-time.Minute, d.RetryAfter)
		took(t, l, "k", 2)
		standing, err := l.LookKey(ctx, "k")
		require.NoError(t, err)
		require.EqualValues(t, 1, standing[0].Remaining)
		require.Zero(t, standing[1].Remaining)
	})
}

// TestRollingNeedsItsPlaces: a store that has no room for the units of one key is refused,
// and the error says how many places it needs.
func TestRollingNeedsItsPlaces(t *testing.T) {
	store, err := NewMemoryStore(t.Name(), MemoryOptions{MaxKeys: 300})
	require.NoError(t, err)
	defer store.Close()
	o := quiet(Rolling(MaxRolling, time.Hour))
	o.Store = store
	_, err = new(Registry).New("login", o)
	require.ErrorContains(t, err, "with room for 300 counters, and one key needs 345: raise MemoryOptions.MaxKeys")
	o.Limits = []Limit{Rolling(500, time.Hour)}
	l := ratelimittest.New(t, o)
	for i := range 2000 {
		took(t, l, fmt.Sprint(i), 1)
	}
	require.Equal(t, MemoryStats{Counters: 300, Evicted: 1700}, store.Stats())
}

// TestRollingSnapshot: the units of a rolling window outlive the process that has counted
// them, and leave as if nothing had happened.
func TestRollingSnapshot(t *testing.T) {
	file := t.TempDir() + "/counters"
	synctest.Test(t, func(t *testing.T) {
		for generation := range 3 {
			store, err := NewMemoryStore(t.Name(), MemoryOptions{SnapshotFile: file})
			require.NoError(t, err)
			o := quiet(Rolling(2, time.Minute))
			o.Store = store
			l, err := new(Registry).New("login", o)
			require.NoError(t, err)
			switch generation {
			case 0:
				took(t, l, "k", 1)
				time.Sleep(20 * time.Second)
				took(t, l, "k", 1)
			case 1:
				d, err := l.Take(ctx, "k")
				require.NoError(t, err)
				require.Equal(t, 30*time.Second, d.RetryAfter)
				require.Equal(t, 50*time.Second, d.ResetAfter)
			case 2:
				took(t, l, "k", 1)
			}
			require.NoError(t, l.Close())
			require.NoError(t, store.Close())
			time.Sleep([]time.Duration{10 * time.Second, 30 * time.Second, 0}[generation])
		}
	})
}

// TestRollingAllocatesNothing: decisions about a busy key allocate nothing.
func TestRollingAllocatesNothing(t *testing.T) {
	l := limiter(t, Rolling(100, time.Hour))
	took(t, l, "k", 100)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if d, _ := l.Take(ctx, "k"); d.Allowed {
			t.Fatal(d)
		}
	}))
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, Rolling(100, time.Second))
		for range 200 { // from here on, one unit leaves whenever one comes
			took(t, l, "k", 1)
			time.Sleep(10 * time.Millisecond)
		}
		var allocated int
		for range 100 {
			time.Sleep(20 * time.Millisecond)
			allocated += int(testing.AllocsPerRun(1, func() { // calls it twice
				if d, _ := l.Take(ctx, "k"); !d.Allowed {
					t.Fatal(d)
				}
			}))
		}
		require.Zero(t, allocated)
	})
}
