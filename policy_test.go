package ratelimit_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestPlansOfOneWindowShareACounter(t *testing.T) {
	plan := map[string][]Limit{
		"free":   {FixedWindow(2, time.Hour).Named("free")},
		"pro":    {FixedWindow(5, time.Hour).Named("pro")},
		"other":  {FixedWindow(2, time.Minute).Named("other")},
		"two":    {FixedWindow(3, time.Hour).Named("a"), TokenBucket(3, time.Hour, 3).Named("b")},
		"broken": {FixedWindow(2, time.Hour), FixedWindow(3, time.Hour)},
		"empty":  {},
	}
	synctest.Test(t, func(t *testing.T) {
		log := new(logged)
		l := httpLimiter(t, Options{
			Limits:    []Limit{FixedWindow(1, time.Hour).Named("none")},
			LimitsFor: func(r *http.Request) []Limit { return plan[r.Header.Get("Plan")] },
			Headers:   HeadersDraft10, Logger: log.logger(),
		})
		h := l.Middleware(httpServed)
		for i, row := range []struct{ plan, want string }{
			{"free", `"free";r=1;t=3600`},
			{"free", `"free";r=0;t=3600`},
			{"pro", `"pro";r=2;t=3600`}, // an upgrade keeps what was counted
			{"pro", `"pro";r=1;t=3600`},
			{"free", `"free";r=0;t=3600`}, // and so does a downgrade
			{"nobody", `"none";r=0;t=3600`},
			{"empty", `"none";r=0;t=3600`},
			{"other", `"other";r=1;t=60`},          // another window is another counter
			{"two", `"a";r=0;t=3600, "b";r=3;t=1`}, // denied: all or none
			{"pro", `"pro";r=0;t=3600`},
			{"broken", ``},
		} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httpRequest("GET", "Plan: "+row.plan))
			assert.Equal(t, row.want, w.Header().Get("RateLimit"), "request %d, %s", i, row.plan)
			if row.plan == "broken" {
				assert.Equal(t, http.StatusInternalServerError, w.Code)
			}
		}
		assert.Equal(t, []Code{CodeOptionFailed}, log.codes())
		assert.Contains(t, log.text(), "Options.LimitsFor: ")

		require.NoError(t, l.Reset(context.Background(), httpKey)) // under all limits that the key was ever used with
		for name := range plan {
			if d, err := l.Look(httpRequest("GET", "Plan: "+name)); name != "broken" {
				require.NoError(t, err)
				assert.Equal(t, d[0].Limit.N(), d[0].Remaining, name)
			}
		}
	})
}

func TestNewPlansForEachRequestWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := int64(0)
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Hour)}, LimitsFor: func(*http.Request) []Limit {
			n++
			return []Limit{FixedWindow(1000+n, time.Hour).Named(fmt.Sprint("p", n))}
		}})
		for range 200 {
			w := httptest.NewRecorder()
			l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
			require.Equal(t, fmt.Sprintf(`"p%d";r=1000;t=3600`, n), w.Header().Get("RateLimit"))
		}
	})
}

func TestCallerMayChangeItsPlans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mine := []Limit{FixedWindow(7, time.Hour).Named("a")}
		l := httpLimiter(t, Options{Limits: mine, LimitsFor: func(*http.Request) []Limit { return mine }})
		ask := func() string {
			w := httptest.NewRecorder()
			l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
			return w.Header().Get("RateLimit")
		}
		assert.Equal(t, `"a";r=6;t=3600`, ask())
		mine[0] = FixedWindow(9, time.Hour).Named("b")
		assert.Equal(t, `"b";r=7;t=3600`, ask())
		mine[0] = FixedWindow(7, time.Hour).Named("a")
		assert.Equal(t, `"a";r=4;t=3600`, ask())
	})
}

// TestPlanHoldsWhenItsCounterIsForgotten checks that a plan belongs to the
// request. A key that comes back after a long time has the same limits.
func TestPlanHoldsWhenItsCounterIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{hour}, LimitsFor: func(*http.Request) []Limit {
			return []Limit{FixedWindow(2, time.Hour)}
		}})
		h := l.Middleware(httpServed)
		for range 3 {
			require.Equal(t, []int{204, 204, 429}, []int{statusOf(h), statusOf(h), statusOf(h)})
			for i := range 1000 { // new keys make the store forget old counters
				time.Sleep(time.Hour)
				decide(t, l, fmt.Sprint(i), 1)
			}
			require.Less(t, Memory(t.Name()).Stats().Counters, 100)
		}
	})
}

func TestResetReachesEveryLimitOfAPlan(t *testing.T) {
	plan := []Limit{FixedWindow(1, 7*time.Hour)}
	limits := plan
	l := httpLimiter(t, Options{Limits: []Limit{hour}, LimitsFor: func(*http.Request) []Limit { return limits }})
	handler := l.Middleware(httpServed)
	send := func() int {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httpRequest("GET"))
		return w.Code
	}
	l.TakeN(ctx, httpKey, 5)
	require.Equal(t, []int{204, 429}, []int{send(), send()})
	for i := range 100 { // more windows than are remembered
		limits = []Limit{FixedWindow(9, time.Duration(i+1)*time.Second)}
		require.Equal(t, 204, send())
	}
	limits = plan
	require.Equal(t, 429, send())
	require.NoError(t, l.Reset(ctx, httpKey))
	require.Equal(t, 204, send())
	d, err := l.Take(ctx, httpKey)
	require.NoError(t, err)
	require.True(t, d.Allowed)
}

// TestPolicyNamesThatAreOneOnTheWireAreRefused compares names as clients see them: a
// name with characters outside of ASCII is percent-encoded.
func TestPolicyNamesThatAreOneOnTheWireAreRefused(t *testing.T) {
	for _, test := range []struct {
		limiter      string
		first, other string // names; empty for a limit without one
		want         string
	}{
		{"x", "é", "%C3%A9", `both go by the name "%C3%A9", which clients see as "%C3%A9"`},
		{"x", "%C3%A9", "é", `both go by the name "é", which clients see as "%C3%A9"`},
		{"x", "100%é", "100%25%C3%A9", "both go by the name"},
		{"x", "same", "same", "both go by the name"},
		{"é", "", "%C3%A9-1h", "both go by the name"},
		{"x", "é", "%c3%a9", ""},
		{"x", "é", "e\u0301", ""},
		{"x", "100%", "100%25", ""},
	} {
		limit := func(l Limit, name string) Limit {
			if name == "" {
				return l
			}
			return l.Named(name)
		}
		limits := []Limit{limit(FixedWindow(1, time.Hour), test.first), limit(SlidingWindow(1, time.Minute), test.other)}
		l, err := new(Registry).New(test.limiter, quiet(limits...))
		if test.want == "" {
			require.NoError(t, err, "%q and %q", test.first, test.other)
			require.NoError(t, l.Close())
		} else {
			require.ErrorContains(t, err, test.want, "%q and %q", test.first, test.other)
		}
		l, err = new(Registry).New(test.limiter, quiet(hour))
		require.NoError(t, err)
		assert.Equal(t, test.want == "", l.SetLimits(limits...) == nil, "SetLimits: %q and %q", test.first, test.other)
		require.NoError(t, l.Close())
		Memory(test.limiter).Close()
	}
}
