package ratelimit_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the snippets of docs/limits.md. TestSnippetsOfLimitsPage compares them.
// The snippets leave Logger out.

// Failed logins lead to blocks, and the blocks get longer.
func Example_limitLogins() {
	login := ratelimit.Must(ratelimit.New("login", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, 15*time.Minute).Block(15*time.Minute, time.Hour, 24*time.Hour)},
		Count:  func(r *http.Request, status int) bool { return status >= 400 }, // only failures
		Logger: discard,
	}))
	defer forget(login)
	wrong := login.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401) }))
	for range 7 {
		w := httptest.NewRecorder()
		wrong.ServeHTTP(w, httptest.NewRequest("POST", "/login", nil))
		fmt.Println(strings.TrimSpace(fmt.Sprint(w.Code, " ", w.Header().Get("Retry-After"))))
	}
	// Output:
	// 401
	// 401
	// 401
	// 401
	// 401
	// 429 900
	// 429 900
}

// Two exports of a user run at the same time, and no more.
func Example_limitInFlight() {
	exports := ratelimit.Must(ratelimit.New("exports", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.InFlight(2, 30*time.Second), ratelimit.FixedWindow(100, 24*time.Hour)},
		Logger: discard,
	}))
	defer forget(exports)
	var server http.Handler
	server = exports.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w2 := httptest.NewRecorder()
		server.ServeHTTP(w2, httptest.NewRequest("GET", "/export", nil)) // another one, while this one runs
		fmt.Println(w2.Code, w2.Header().Get("RateLimit"))
	}))
	server.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/export", nil))

	ctx := context.Background()
	job := func() error {
		release, d, err := exports.Acquire(ctx, "nightly report")
		if err != nil || !d.Allowed {
			return err
		}
		defer release()
		fmt.Println(exports.Stats().InFlight, d.Remaining)
		return nil
	}
	job()
	fmt.Println(exports.Stats().InFlight)
	// Output:
	// 429 "exports-24h";r=98;t=86400, "exports-inflight";r=0
	// 200 "exports-24h";r=98;t=86400, "exports-inflight";r=0
	// 1 1
	// 0
}

// A request takes units of all limits or of none.
func Example_limitsTogether() {
	api := ratelimit.Must(ratelimit.New("api", ratelimit.Options{
		Limits: []ratelimit.Limit{
			ratelimit.TokenBucket(10, time.Second, 20).Named("burst"),
			ratelimit.Daily(1000, nil).Named("daily"),
		},
		Logger: discard,
	}))
	defer forget(api)
	ctx := context.Background()
	d, _ := api.TakeN(ctx, "ann", 20)
	fmt.Println(d.Allowed, d.Policy)
	d, _ = api.TakeN(ctx, "ann", 20)
	fmt.Println(d.Allowed, d.Policy)
	left, _ := api.LookKey(ctx, "ann")
	fmt.Println(left[1].Name, left[1].Remaining)
	// Output:
	// true burst
	// false burst
	// daily 980
}

// planOf returns the plan of a customer.
func planOf(r *http.Request) string { return r.Header.Get("Plan") }

// Two plans have numbers, and two have none.
func Example_limitPlans() {
	plans := map[string][]ratelimit.Limit{
		"free":      {ratelimit.TokenBucket(1, time.Second, 10), ratelimit.Daily(1_000, nil)},
		"pro":       {ratelimit.TokenBucket(20, time.Second, 100), ratelimit.Daily(100_000, nil)},
		"internal":  {ratelimit.Unlimited},
		"suspended": {ratelimit.Deny},
	}
	api := ratelimit.Must(ratelimit.New("api", ratelimit.Options{
		Limits:    plans["free"],
		LimitsFor: func(r *http.Request) []ratelimit.Limit { return plans[planOf(r)] }, // planOf is yours
		Logger:    discard,
	}))
	defer forget(api)
	for _, plan := range []string{"free", "pro", "internal", "suspended"} {
		r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
		r.Header.Set("Plan", plan)
		api.Middleware(welcome).ServeHTTP(w, r)
		fmt.Println(strings.TrimSpace(fmt.Sprint(plan, " ", w.Code, " ", w.Header().Get("RateLimit-Policy"))))
	}
	// Output:
	// free 200 "api-1s";q=1;w=1, "api-day";q=1000;w=86400
	// pro 200 "api-1s";q=20;w=1, "api-day";q=100000;w=86400
	// internal 200
	// suspended 429
}

// A customer has a quota of calendar periods.
type customer struct {
	zone  *time.Location
	quota []ratelimit.Limit
}

// Each customer has a quota per month, in a time zone of their own.
func Example_limitCalendar() {
	newYork, err := time.LoadLocation("America/New_York")
	if err != nil {
		fmt.Println(err)
		return
	}
	apiKey := ratelimit.HeaderKey("X-API-Key")
	customers := make(map[string]customer)
	customerOf := func(r *http.Request) customer { return customers[r.Header.Get("X-API-Key")] }
	ann := customer{zone: newYork, quota: []ratelimit.Limit{ratelimit.Monthly(50_000, 15, newYork)}} // billed on the 15th
	api := ratelimit.Must(ratelimit.New("api", ratelimit.Options{
		Key:       apiKey,
		Limits:    []ratelimit.Limit{ratelimit.Monthly(1_000, 1, nil)},
		LimitsFor: func(r *http.Request) []ratelimit.Limit { return customerOf(r).quota }, // customerOf is yours
		Logger:    discard,
	}))
	defer forget(api)
	customers["k-ann"] = ann
	for _, key := range []string{"k-ann", "k-bob"} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("X-API-Key", key)
		api.Middleware(welcome).ServeHTTP(httptest.NewRecorder(), r)
		left, _ := api.Look(r)
		fmt.Println(key, left[0].Remaining, "of", left[0].Limit)
	}
	ctx := context.Background()
	d, _ := api.TakeLimits(ctx, "k-ann", 50_000, ann.quota...)
	back := time.Now().Add(d.RetryAfter).In(ann.zone).Round(time.Minute)
	fmt.Println(d.Allowed, "- again on day", back.Day(), "at", back.Format("15:04"))
	// Output:
	// k-ann 49999 of 50000/month calendar day=15 tz=America/New_York
	// k-bob 999 of 1000/month calendar day=1
	// false - again on day 15 at 00:00
}

// Limits are text in configuration files and flags.
func Example_limitText() {
	limit, err := ratelimit.ParseLimit("5/15m fixed block=15m,1h,24h")
	fmt.Println(limit.N(), limit.Window(), limit.Ladder(), err)
	// Output:
	// 5 15m0s [15m0s 1h0m0s 24h0m0s] <nil>
}

// A rolling window has no border at which twice the limit fits.
func Example_limitInAnyInterval() {
	reset := ratelimit.Must(ratelimit.New("password-reset", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.Rolling(3, time.Hour)},
		Logger: discard,
	}))
	defer forget(reset)
	ctx := context.Background()
	for range 4 {
		d, _ := reset.Take(ctx, "ann@example.com")
		fmt.Println(d.Allowed, d.Remaining, d.RetryAfter.Round(time.Minute))
	}
	// Output:
	// true 2 0s
	// true 1 0s
	// true 0 0s
	// false 0 1h0m0s
}
