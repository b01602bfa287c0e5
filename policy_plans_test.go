package ratelimit_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// planned makes a limiter whose requests name their plan in a header.
func planned(t *testing.T, name string, opts Options, plans map[string][]Limit) *Limiter {
	opts.LimitsFor = func(r *http.Request) []Limit { return plans[r.Header.Get("Plan")] }
	if opts.Limits == nil {
		opts.Limits = []Limit{FixedWindow(2, time.Hour).Named("free")}
	}
	return httpLimiterNamed(t, name, opts)
}

// TestPlansCanHaveNoLimitOrNothing has requests under every combination of limits with
// Unlimited and Deny.
func TestPlansCanHaveNoLimitOrNothing(t *testing.T) {
	calls := 0
	plans := map[string][]Limit{
		"unlimited": {Unlimited}, "named": {Unlimited.Named("gold")}, "twice": {Unlimited, Unlimited.Named("gold")},
		"mixed": {Unlimited, FixedWindow(2, time.Hour).Named("free")}, "mixed, last": {FixedWindow(2, time.Hour).Named("free"), Unlimited},
		"mixed, two": {Unlimited, FixedWindow(2, time.Hour).Named("free"), SlidingWindow(9, time.Minute).Named("burst")},
		"deny":       {Deny}, "deny, named": {Deny.Named("suspended")},
		"deny, mixed": {FixedWindow(2, time.Hour), Deny}, "both": {Unlimited, Deny},
	}
	const free, freeLeft = `Ratelimit-Policy: "free";q=2;w=3600`, `Ratelimit: "free";r=`
	log := new(logged)
	l := planned(t, t.Name(), Options{Logger: log.logger(), Cost: func(r *http.Request) int64 {
		if r.Header.Get("Free") != "" {
			return 0
		}
		return 1
	}}, plans)
	h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		d, ok := DecisionFrom(r.Context())
		assert.True(t, ok && d.Allowed)
		if r.Header.Get("Plan") == "named" {
			assert.Equal(t, Decision{Allowed: true, Limit: Unlimited.Named("gold"), Remaining: 999_999_999_999_999, Policy: "gold"}, d)
			assert.NoError(t, l.AddCost(r.Context(), 5), "it changes nothing")
			assert.NoError(t, l.AddCost(r.Context(), -5))
		}
		w.WriteHeader(204)
	}))
	for _, test := range []struct {
		plan, want string
		admitted   int // of 3 requests
	}{
		{"unlimited", "204", 3}, {"named", "204", 3}, {"twice", "204", 3},
		{"mixed", free, 2}, {"mixed, last", free, 2}, {"mixed, two", free + `, "burst";q=9;w=60`, 2}, {"", free, 2},
		{"deny", "Too many requests", 0}, {"deny, named", "Too many requests", 0}, {"deny, mixed", "Too many requests", 0}, {"both", "Too many requests", 0},
	} {
		before := calls
		for i := range 3 {
			got := httpAnswer(h, httpRequest("GET", "Plan: "+test.plan))
			assert.Contains(t, got, test.want, test.plan)
			switch {
			case strings.HasPrefix(test.want, "204"):
				assert.Equal(t, "204", got, "no fields")
			case test.admitted == 0:
				assert.Contains(t, got, "429\n")
				assert.NotContains(t, got, "Ratelimit", test.plan)
				assert.NotContains(t, got, "Retry-After", test.plan)
			case i < 2:
				assert.Contains(t, got, freeLeft)
			}
		}
		assert.Equal(t, test.admitted, calls-before, test.plan)
		require.NoError(t, l.Reset(ctx, httpKey))
	}
	assert.Contains(t, httpAnswer(h, httpRequest("GET", "Plan: deny, named", "Accept: application/json")), `"violated-policies":["suspended"]`)
	assert.Contains(t, httpAnswer(h, httpRequest("GET", "Plan: deny", "Accept: application/json")), `"violated-policies":["TestPlansCanHaveNoLimitOrNothing"]`)
	assert.Contains(t, httpAnswer(h, httpRequest("GET", "Plan: deny", "Free: yes")), "429\n", "everything, also what costs nothing")
	assert.EqualValues(t, 2, leftOf(t, l, httpKey), "nothing was counted")
	assert.Empty(t, log.text())

	standings, err := l.Look(httpRequest("GET", "Plan: deny, named"))
	require.NoError(t, err)
	assert.Equal(t, []Standing{{"suspended", Deny.Named("suspended"), Result{RetryAfter: Never}}}, standings)
	standings, err = l.Look(httpRequest("GET", "Plan: unlimited"))
	require.NoError(t, err)
	assert.Equal(t, []Standing{{l.Name(), Unlimited, Result{Remaining: 999_999_999_999_999}}}, standings)
	standings, err = l.Look(httpRequest("GET", "Plan: mixed"))
	require.NoError(t, err)
	assert.Len(t, standings, 1)
}

// TestUnlimitedAsksNoStore has a store that fails. The other options apply like for other
// plans.
func TestUnlimitedAsksNoStore(t *testing.T) {
	plans := map[string][]Limit{"gold": {Unlimited}, "bad": {Deny}}
	broken := planned(t, t.Name(), Options{Store: &brokenStore{err: errors.New("no")}}, plans)
	assert.Equal(t, "204", httpAnswer(broken.Middleware(httpServed), httpRequest("GET", "Plan: gold")))
	assert.Contains(t, httpAnswer(broken.Middleware(httpServed), httpRequest("GET", "Plan: bad")), "429\n")
	assert.Contains(t, httpAnswer(broken.Middleware(httpServed), httpRequest("GET")), "503\n")

	var countedStatuses statuses
	counting := planned(t, "counting", Options{Count: countedStatuses.count}, plans)
	httpAnswer(counting.Middleware(httpServed), httpRequest("GET", "Plan: gold"))
	assert.Equal(t, []int{204}, countedStatuses.all())

	shadow := planned(t, "shadow", Options{Shadow: true}, plans)
	assert.Equal(t, "204", httpAnswer(shadow.Middleware(httpServed), httpRequest("GET", "Plan: bad")))
	assert.EqualValues(t, 1, shadow.Stats().ShadowDenied)

	noKey := planned(t, "no key", Options{Key: emptyKey}, plans)
	assert.Contains(t, httpAnswer(noKey.Middleware(httpServed), httpRequest("GET", "Plan: gold")), "400\n")
	require.NoError(t, counting.Close())
	assert.Contains(t, httpAnswer(counting.Middleware(httpServed), httpRequest("GET", "Plan: gold")), "503\n")
}

// TestUnlimitedBetweenLimitersHasNoFields nests three limiters. The one in the middle
// is Unlimited, and the others' fields stay one set.
func TestUnlimitedBetweenLimitersHasNoFields(t *testing.T) {
	for _, styles := range []Headers{HeadersDraft10, HeadersDraft7, HeadersDraft6 | HeadersLegacy} {
		for name, between := range betweens {
			if strings.Contains(name, "another address") {
				continue // this handler changes the key
			}
			out, in := stacked(t, Options{Headers: styles}, Options{Headers: styles}, 9, 9)
			mid := httpLimiterNamed(t, "mid", Options{Headers: styles, Limits: []Limit{Unlimited}})
			want := httpFields(out.Middleware(in.Middleware(httpServed)), httptest.NewRequest("GET", "/api/x", nil))
			require.NoError(t, out.Reset(ctx, httpKey))
			require.NoError(t, in.Reset(ctx, httpKey))
			got := httpFields(out.Middleware(between(mid.Middleware(between(in.Middleware(httpServed))))), httptest.NewRequest("GET", "/api/x", nil))
			if !strings.Contains(name, "shorter path") && name != "all of them" { // the path is shortened twice, which is too short
				assert.Equal(t, want, got, "%v, %s", styles, name)
			}
			for _, l := range []*Limiter{out, in, mid} {
				require.NoError(t, l.Close())
				Memory(l.Name()).Close()
			}
		}
	}
}

// TestLimiterCanBeUnlimited has a limiter without limits on each kind of store, and changes
// its limits.
func TestLimiterCanBeUnlimited(t *testing.T) {
	for name, store := range map[string]Store{
		"memory": memory(t, "a"), "Redis": redisStore(t, newMini(t).client(t), "rl:"), "wrapped": &wrapper{memory(t, "b")},
		"remote": &remoteBackend{Store: memory(t, "c")},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := new(Registry).New("x", Options{Limits: []Limit{Unlimited}, Store: store, Timeout: time.Minute, Logger: quietly})
			require.NoError(t, err)
			for range 9 {
				require.Equal(t, Decision{Allowed: true, Limit: Unlimited, Remaining: 999_999_999_999_999, Policy: "x"}, decide(t, l, "key", 1000))
			}
			require.NoError(t, l.Refund(ctx, "key", 5))
			require.NoError(t, l.Reset(ctx, "key"))
			assert.Equal(t, []Limit{Unlimited}, l.Limits())
			d, err := l.TakeLimits(ctx, "key", 2, FixedWindow(3, time.Hour))
			require.NoError(t, err)
			assert.EqualValues(t, 1, d.Remaining)
			require.NoError(t, l.SetLimits(FixedWindow(3, time.Hour)))
			require.True(t, decide(t, l, "key", 1).Allowed)
			require.False(t, decide(t, l, "key", 1).Allowed)
			require.NoError(t, l.SetLimits(Deny))
			d = decide(t, l, "another", 1)
			assert.Equal(t, Decision{Limit: Deny, RetryAfter: Never, Policy: "x"}, d)
			require.NoError(t, l.SetLimits(Unlimited))
			require.True(t, decide(t, l, "key", 1).Allowed)
			require.NoError(t, l.Close())
		})
	}
}

// TestTakeLimitsIsLimitsForOutsideOfHTTP takes units under plans, while requests use the
// same plans.
func TestTakeLimitsIsLimitsForOutsideOfHTTP(t *testing.T) {
	pro := []Limit{FixedWindow(5, time.Hour).Named("pro"), SlidingWindow(4, time.Minute).Named("burst")}
	for name, store := range map[string]Store{"memory": memory(t, "a"), "Redis": redisStore(t, newMini(t).client(t), "rl:"), "wrapped": &wrapper{memory(t, "b")}} {
		t.Run(name, func(t *testing.T) {
			l := planned(t, t.Name(), Options{Store: store, Timeout: time.Minute}, map[string][]Limit{"pro": pro})
			httpAnswer(l.Middleware(httpServed), httpRequest("GET", "Plan: pro"))
			d, err := l.TakeLimits(ctx, httpKey, 2, pro...)
			require.NoError(t, err)
			assert.Equal(t, "burst", d.Limit.Name())
			assert.EqualValues(t, 1, d.Remaining, "one counter with the requests")
			d, err = l.TakeLimits(ctx, httpKey, 2, pro...)
			require.NoError(t, err)
			assert.False(t, d.Allowed)
			assert.Equal(t, "burst", d.Limit.Name())
			d, err = l.TakeLimits(ctx, "other", 1) // without limits, the limiter's apply
			require.NoError(t, err)
			assert.Equal(t, FixedWindow(2, time.Hour).Named("free"), d.Limit)
			d, err = l.TakeLimits(ctx, "other", 0, pro...)
			require.NoError(t, err)
			assert.True(t, d.Allowed)
			assert.EqualValues(t, 4, d.Remaining)

			require.NoError(t, l.Reset(ctx, httpKey))
			d, err = l.TakeLimits(ctx, httpKey, 4, pro...)
			require.NoError(t, err)
			assert.True(t, d.Allowed, "Reset reaches the counters of plans")

			d, err = l.TakeLimits(ctx, httpKey, 99, Unlimited)
			require.NoError(t, err)
			assert.True(t, d.Allowed)
			d, err = l.TakeLimits(ctx, httpKey, 1, Deny)
			require.NoError(t, err)
			assert.Equal(t, Never, d.RetryAfter)

			for want, call := range map[string]func() (Decision, error){
				"cannot take -1 units: want 0 or more":                  func() (Decision, error) { return l.TakeLimits(ctx, httpKey, -1, pro...) },
				"TakeLimits: number 1 (no limit): it is the zero Limit": func() (Decision, error) { return l.TakeLimits(ctx, httpKey, 1, Limit{}) },
				"have the same algorithm and window": func() (Decision, error) {
					return l.TakeLimits(ctx, httpKey, 1, FixedWindow(1, time.Hour), FixedWindow(2, time.Hour))
				},
				"the request has no key": func() (Decision, error) { return l.TakeLimits(ctx, "", 1, pro...) },
			} {
				d, err := call()
				assert.ErrorContains(t, err, want)
				assert.Zero(t, d)
			}
		})
	}
}
