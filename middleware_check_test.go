package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestCheck serves a framework that has a writer, a request, and handlers of its own.
func TestCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(2, time.Hour).Named("x")}})
		for i, want := range []string{
			"200\nRatelimit: \"x\";r=1;t=3600\nRatelimit-Policy: \"x\";q=2;w=3600",
			"200\nRatelimit: \"x\";r=0;t=3600\nRatelimit-Policy: \"x\";q=2;w=3600",
			unindent(`429` + denialHead + `
			Ratelimit: "x";r=0;t=3600
			Ratelimit-Policy: "x";q=2;w=3600
			Retry-After: 3600
			X-Content-Type-Options: nosniff
			> Too many requests, please try again later.`),
		} {
			r := httpRequest("GET")
			same := r // frameworks hold on to the pointer
			var admitted bool
			got := httpAnswer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { admitted = l.Check(w, r) }), r)
			assert.Equal(t, want, got)
			assert.Equal(t, i < 2, admitted)

			d, ok := DecisionFrom(same.Context())
			assert.Equal(t, admitted, ok)
			assert.Equal(t, admitted, d.Allowed)
			if admitted {
				assert.NoError(t, l.AddCost(same.Context(), 0))
			}
		}
	})
}

// TestCheckKeepsTheRequest: all that hung on the request still does.
func TestCheckKeepsTheRequest(t *testing.T) {
	type key struct{}
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(2, time.Hour)}, Skip: func(r *http.Request) bool { return r.Method == "HEAD" }})
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "kept"))
	r := httpRequest("GET").WithContext(ctx)
	r.SetPathValue("id", "7")
	require.True(t, l.Check(httptest.NewRecorder(), r))
	assert.Equal(t, "kept", r.Context().Value(key{}))
	assert.Equal(t, "7", r.PathValue("id"))
	derived, cancelDerived := context.WithCancel(r.Context())
	defer cancelDerived()
	cancel()
	assert.ErrorIs(t, r.Context().Err(), context.Canceled)
	assert.ErrorIs(t, derived.Err(), context.Canceled)

	skipped := httpRequest("HEAD")
	require.True(t, l.Check(httptest.NewRecorder(), skipped))
	_, ok := DecisionFrom(skipped.Context())
	assert.False(t, ok)
}

func TestDecisionFrom(t *testing.T) {
	_, ok := DecisionFrom(context.Background())
	assert.False(t, ok)

	b, f := TokenBucket(10, 10*time.Second, 2), FixedWindow(9, time.Minute)
	synctest.Test(t, func(t *testing.T) {
		var got Decision
		h := httpLimiter(t, Options{Limits: []Limit{b, f}, Shadow: true}).Middleware(http.HandlerFunc(
			func(w http.ResponseWriter, r *http.Request) { got, _ = DecisionFrom(r.Context()) }))
		for _, want := range []Decision{
			{Allowed: true, Limit: b, Remaining: 1, ResetAfter: time.Second},
			{Allowed: true, Limit: b, Remaining: 0, ResetAfter: 2 * time.Second},
			{Limit: b, Remaining: 0, ResetAfter: 2 * time.Second, RetryAfter: time.Second},
		} {
			h.ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
			assert.Equal(t, want, got)
			assert.Equal(t, "store", got.Source.String())
		}
	})
}

// TestDecisionOfTheInnermost: stacked limiters have one decision each, and the handler
// sees the last.
func TestDecisionOfTheInnermost(t *testing.T) {
	out, in := stacked(t, Options{}, Options{}, 2, 9)
	seen := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			d, ok := DecisionFrom(r.Context())
			assert.True(t, ok)
			assert.Equal(t, name, d.Limit.Name())
			if name == "out" {
				in.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					d, _ := DecisionFrom(r.Context())
					assert.Equal(t, "in", d.Limit.Name())
				})).ServeHTTP(w, r)
			}
		}
	}
	out.Middleware(seen("out")).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
}

// TestShadowNeverDenies, whatever goes wrong, and whether or not the client waits for
// it; and it counts what it would have denied.
func TestShadowNeverDenies(t *testing.T) {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for _, test := range []struct {
		name string
		opts Options
		ctx  context.Context
		want uint64
	}{
		{"limit", Options{}, context.Background(), 3},
		{"cost that never fits", Options{Cost: func(*http.Request) int64 { return math.MaxInt64 }}, context.Background(), 5},
		{"no key", Options{Key: StaticKey("")}, context.Background(), 0},
		{"broken store", Options{Store: &brokenStore{err: errors.New("no")}}, context.Background(), 0},
		{"client gone", Options{}, gone, 0},
		{"denied handler", Options{Denied: http.NotFoundHandler()}, context.Background(), 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.opts.Shadow, test.opts.Limits = true, []Limit{FixedWindow(2, time.Hour)}
			l := httpLimiter(t, test.opts)
			for range 5 {
				assert.Equal(t, "204", httpAnswer(l.Middleware(httpServed), httpRequest("GET").WithContext(test.ctx)))
			}
			assert.Equal(t, test.want, l.Stats().ShadowDenied)
		})
	}
}

// TestPlans: plans that differ in their numbers share a key's counter.
func TestPlans(t *testing.T) {
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
		assert.Equal(t, []string{CodeOptionFailed}, log.codes())
		assert.Contains(t, log.text(), "Options.LimitsFor: ")

		require.NoError(t, l.Reset(context.Background(), httpKey)) // under all that it was ever limited by
		for name := range plan {
			if d, err := l.Look(httpRequest("GET", "Plan: "+name)); name != "broken" {
				require.NoError(t, err)
				assert.Equal(t, d[0].Limit.N(), d[0].Remaining, name)
			}
		}
	})
}

// TestManyPlans: a LimitsFor that makes up ever new limits works, too.
func TestManyPlans(t *testing.T) {
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

// TestPlansAreNotKept: what LimitsFor returns may be the caller's own to change.
func TestPlansAreNotKept(t *testing.T) {
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

func TestLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := []Limit{FixedWindow(5, time.Hour), SlidingWindow(3, time.Minute).Named("m")}
		pro := []Limit{FixedWindow(50, time.Hour).Named("pro")}
		l := httpLimiterNamed(t, "look", Options{
			Limits: limits,
			LimitsFor: func(r *http.Request) []Limit {
				if r.Header.Get("Plan") == "pro" {
					return pro
				}
				return nil
			},
			Key: FirstKey(HeaderKey("X-API-Key"), func(r *http.Request) (string, error) {
				return "", map[string]error{"HEAD": ErrExempt, "GET": ErrNoKey}[r.Method]
			}),
		})
		alice := httpRequest("GET", "X-API-Key: alice")
		httpAnswer(l.Middleware(httpServed), alice)
		for range 3 { // looking takes nothing
			got, err := l.Look(alice)
			require.NoError(t, err)
			assert.Equal(t, []Standing{
				{"look-1h", limits[0], Result{Remaining: 4, MoreAfter: time.Hour, ResetAfter: time.Hour}},
				{"m", limits[1], Result{Remaining: 2, MoreAfter: time.Minute + 1, ResetAfter: time.Minute + 1}},
			}, got)
		}
		got, err := l.Look(httpRequest("GET", "X-API-Key: alice", "Plan: pro"))
		require.NoError(t, err)
		assert.Equal(t, []Standing{{"pro", pro[0], Result{Remaining: 49, MoreAfter: time.Hour, ResetAfter: time.Hour}}}, got)

		for method, want := range map[string]error{"GET": ErrNoKey, "HEAD": ErrExempt} {
			_, err := l.Look(httpRequest(method))
			assert.ErrorIs(t, err, want)
		}
		require.NoError(t, l.Close())
		_, err = l.Look(alice)
		assert.ErrorIs(t, err, ErrClosed)
	})
}

func TestClosedLimiterAnswers503(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(5, time.Hour)}})
	require.NoError(t, l.Close())
	assert.Contains(t, httpAnswer(l.Middleware(httpServed), httpRequest("GET")), "503\n")
}

// TestHonestDenials takes at random costs. Where a request is denied, all that the
// client is told is at least 1 s, Retry-After is no earlier than when more of what
// denied is there, a client that waits so long is admitted, and one that waits 1 ms
// less than the decision says is not.
func TestHonestDenials(t *testing.T) {
	limits := []Limit{FixedWindow(7, 2500*time.Millisecond).Named("f"), SlidingWindow(9, 4*time.Second).Named("s"), TokenBucket(3, 1700*time.Millisecond, 5).Named("b")}
	synctest.Test(t, func(t *testing.T) {
		cost, denied := int64(0), 0
		var decision Decision
		l := httpLimiter(t, Options{Limits: limits, Cost: func(*http.Request) int64 { return cost }})
		h := l.Middleware(httpServed)
		for i := range int64(4000) {
			cost = 1 + (i*i*31+i*7)%6
			time.Sleep(time.Duration((i*i*97 + i*13) % 800 * int64(time.Millisecond)))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httpRequest("GET"))
			if w.Code == http.StatusNoContent {
				require.Empty(t, w.Header().Get("Retry-After"))
				continue
			}
			decision, _ = l.TakeN(context.Background(), httpKey, cost)
			if cost == 6 {
				require.Equal(t, Never, decision.RetryAfter)
				require.Empty(t, w.Header().Get("Retry-After"))
				continue
			}
			denied++
			require.Equal(t, fmt.Sprint(int64((decision.RetryAfter+time.Second-1)/time.Second)), w.Header().Get("Retry-After"))
			requireHonestFields(t, w.Header())
			time.Sleep(decision.RetryAfter - time.Millisecond)
			early, err := l.TakeN(context.Background(), httpKey, cost)
			require.NoError(t, err)
			require.False(t, early.Allowed, "%v and %v", decision, early)
			time.Sleep(time.Millisecond)
			require.Equal(t, http.StatusNoContent, statusOf(h))
		}
		require.Greater(t, denied, 500)
	})
}

func statusOf(h http.Handler) int {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httpRequest("GET"))
	return w.Code
}

// limitField is one limit in the RateLimit field of draft 10.
var limitField = regexp.MustCompile(`^"[a-z]+";r=([0-9]+);t=([0-9]+)$`)

// requireHonestFields checks the header fields of a denial. Each time in them is at least
// a second, and a limit with no units left reports no later time than Retry-After.
func requireHonestFields(t testing.TB, h http.Header) {
	t.Helper()
	number := func(s string) int {
		t.Helper()
		n, err := strconv.Atoi(s)
		require.NoError(t, err)
		return n
	}
	retry := number(h.Get("Retry-After"))
	require.GreaterOrEqual(t, retry, 1)
	for _, field := range strings.Split(h.Get("RateLimit"), ", ") {
		m := limitField.FindStringSubmatch(field)
		require.NotNil(t, m, field)
		left, wait := number(m[1]), number(m[2])
		require.GreaterOrEqual(t, wait, 1)
		if left == 0 {
			require.LessOrEqual(t, wait, retry, "%v: a limit with no units left denied the request", h)
		}
	}
}
