package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// discard keeps the examples' output to what they show; leave Logger out to log
// to slog.Default().
var discard = slog.New(slog.DiscardHandler)

// request sends one request and prints what a client sees of it.
func request(h http.Handler, change ...func(*http.Request)) {
	r := httptest.NewRequest("POST", "/login", nil)
	for _, f := range change {
		f(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	fmt.Println(strings.TrimSpace(fmt.Sprint(w.Code, " ", w.Header().Get("RateLimit"), " ", w.Body)))
}

// forget ends an example as no program does: it forgets the counters, so that
// the example can run again.
func forget(l *ratelimit.Limiter) {
	l.Close()
	ratelimit.Memory(l.Name()).Close()
}

var welcome = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "welcome") })

func Example() {
	login := ratelimit.Must(ratelimit.New("login", ratelimit.Options{
		Limits:  []ratelimit.Limit{ratelimit.FixedWindow(2, time.Hour)},
		Message: "Too many login attempts, please try again later.",
		Logger:  discard,
	}))
	defer forget(login)
	handler := login.Middleware(welcome)
	for range 3 {
		request(handler)
	}
	// Output:
	// 200 "login";r=1;t=3600 welcome
	// 200 "login";r=0;t=3600 welcome
	// 429 "login";r=0;t=3600 Too many login attempts, please try again later.
}

func ExampleNew_severalLimits() {
	api := ratelimit.Must(ratelimit.New("several", ratelimit.Options{
		Limits: []ratelimit.Limit{
			ratelimit.TokenBucket(10, time.Second, 20).Named("burst"),
			ratelimit.FixedWindow(1000, 24*time.Hour).Named("daily"),
		},
		Logger: discard,
	}))
	defer forget(api)
	request(api.Middleware(welcome))
	// Output:
	// 200 "burst";r=19;t=1, "daily";r=999;t=86400 welcome
}

func ExampleNew_conflict() {
	var registry ratelimit.Registry
	defer registry.Close()
	store := ratelimit.Memory("shared")
	defer store.Close()
	limits := []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)}
	_, err := registry.New("api", ratelimit.Options{Limits: limits, Store: store, Logger: discard})
	fmt.Println(err)
	_, err = registry.New("login", ratelimit.Options{Limits: limits, Store: store, Logger: discard})
	fmt.Println(errors.Is(err, ratelimit.ErrStoreShared))
	var conflict *ratelimit.ConflictError
	if errors.As(err, &conflict) {
		fmt.Println(conflict.Limiter, "wants the", conflict.Store, "of", conflict.Holder)
	}
	// Output:
	// <nil>
	// true
	// login wants the MemoryStore of api
}

func ExampleLimiter_Take() {
	mails := ratelimit.Must(ratelimit.New("mails", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
		Logger: discard,
	}))
	defer forget(mails)
	for range 2 {
		decision, err := mails.Take(context.Background(), "ann@example.com")
		if err != nil {
			fmt.Println("no decision:", err)
			return
		}
		fmt.Println(decision.Allowed, decision.Remaining, decision.RetryAfter.Round(time.Minute))
	}
	// Output:
	// true 0 0s
	// false 0 1h0m0s
}

func ExampleLimiter_TakeN() {
	uploads := ratelimit.Must(ratelimit.New("uploads", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(100, time.Hour)}, // megabytes
		Logger: discard,
	}))
	defer forget(uploads)
	ctx := context.Background()
	for _, size := range []int64{60, 60, 40, 200, 0} { // 0 only looks
		d, _ := uploads.TakeN(ctx, "ann", size)
		fmt.Println(size, d.Allowed, d.Remaining, d.RetryAfter == ratelimit.Never)
	}
	// Output:
	// 60 true 40 false
	// 60 false 40 false
	// 40 true 0 false
	// 200 false 0 true
	// 0 true 0 false
}

func ExampleLimiter_Refund() {
	jobs := ratelimit.Must(ratelimit.New("jobs", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
		Logger: discard,
	}))
	defer forget(jobs)
	ctx := context.Background()
	jobs.TakeN(ctx, "ann", 3)
	jobs.Refund(ctx, "ann", 2) // two of them were not needed
	d, _ := jobs.TakeN(ctx, "ann", 0)
	fmt.Println(d.Remaining)
	// Output: 4
}

func ExampleLimiter_Reset() {
	login := ratelimit.Must(ratelimit.New("reset", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
		Logger: discard,
	}))
	defer forget(login)
	ctx := context.Background()
	login.Take(ctx, "203.0.113.7")
	login.Reset(ctx, "203.0.113.7") // the support desk unblocks somebody
	d, _ := login.Take(ctx, "203.0.113.7")
	fmt.Println(d.Allowed)
	// Output: true
}

func ExampleLimiter_SetLimits() {
	api := ratelimit.Must(ratelimit.New("set-limits", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
		Logger: discard,
	}))
	defer forget(api)
	ctx := context.Background()
	api.TakeN(ctx, "ann", 5)
	if err := api.SetLimits(ratelimit.FixedWindow(8, time.Hour)); err != nil {
		fmt.Println(err)
	}
	d, _ := api.TakeN(ctx, "ann", 0)
	fmt.Println(d.Remaining, api.Limits())
	// Output: 3 [8/1h fixed]
}

func ExampleLimiter_Check() {
	limiter := ratelimit.Must(ratelimit.New("check", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
		Logger: discard,
	}))
	defer forget(limiter)
	// Any framework that shows its http.ResponseWriter and *http.Request can do this.
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !limiter.Check(w, r) {
			return
		}
		fmt.Fprint(w, "hello")
	})
	request(handler)
	request(handler)
	// Output:
	// 200 "check";r=0;t=3600 hello
	// 429 "check";r=0;t=3600 Too many requests, please try again later.
}

func ExampleLimiter_TakeUpTo() {
	mails := ratelimit.Must(ratelimit.New("mails", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(500, time.Hour)},
		Logger: discard,
	}))
	defer forget(mails)
	queue := 800
	for queue > 0 {
		granted, d, err := mails.TakeUpTo(context.Background(), "customer 7", int64(queue))
		if err != nil || granted == 0 {
			fmt.Println("wait:", d.RetryAfter > 59*time.Minute, err)
			break // and go on after d.RetryAfter
		}
		queue -= int(granted) // send as many
		fmt.Println(granted, "sent,", queue, "left")
	}
	// Output:
	// 500 sent, 300 left
	// wait: true <nil>
}

func ExampleLimiter_Responded() {
	login := ratelimit.Must(ratelimit.New("responded", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
		Count:  func(r *http.Request, status int) bool { return status >= 400 },
		Logger: discard,
	}))
	defer forget(login)
	// A framework in which handlers return errors, and something else writes them.
	adapter := func(handle func(w http.ResponseWriter, r *http.Request) (status int)) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !login.Check(w, r) {
				return
			}
			status := handle(w, r)
			login.Responded(r.Context(), status) // its error says that the request is exempt
			w.WriteHeader(status)
		})
	}
	request(adapter(func(http.ResponseWriter, *http.Request) int { return http.StatusOK }))
	request(adapter(func(http.ResponseWriter, *http.Request) int { return http.StatusUnauthorized }))
	request(adapter(func(http.ResponseWriter, *http.Request) int { return http.StatusOK }))
	// Output:
	// 200 "responded";r=0;t=3600
	// 401 "responded";r=0;t=3600
	// 429 "responded";r=0;t=3600 Too many requests, please try again later.
}

func ExampleLimiter_AddCost() {
	queries := ratelimit.Must(ratelimit.New("queries", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(100, time.Hour)},
		Logger: discard,
	}))
	defer forget(queries)
	handler := queries.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rows := int64(30) // what it took is known only now
		if err := queries.AddCost(r.Context(), rows); err != nil {
			fmt.Println(err)
		}
	}))
	request(handler)
	request(handler)
	// Output:
	// 200 "queries";r=99;t=3600
	// 200 "queries";r=68;t=3600
}

func ExampleLimiter_Look() {
	api := ratelimit.Must(ratelimit.New("look", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.TokenBucket(10, time.Second, 20), ratelimit.FixedWindow(1000, 24*time.Hour)},
		Logger: discard,
	}))
	defer forget(api)
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		standings, err := api.Look(r)
		if err != nil {
			http.Error(w, "no limits", http.StatusBadRequest)
			return
		}
		for _, s := range standings {
			fmt.Fprintf(w, "%s: %d of %d left; ", s.Name, s.Remaining, s.Limit.Burst())
		}
	})
	request(api.Middleware(page))
	// Output: 200 "look-1s";r=19;t=1, "look-24h";r=999;t=86400 look-1s: 19 of 20 left; look-24h: 999 of 1000 left;
}

func ExampleDecisionFrom() {
	limiter := ratelimit.Must(ratelimit.New("decision", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(3, time.Hour)},
		Logger: discard,
	}))
	defer forget(limiter)
	request(limiter.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d, ok := ratelimit.DecisionFrom(r.Context()); ok {
			fmt.Fprintf(w, "%d of %d left", d.Remaining, d.Limit.N())
		}
	})))
	// Output: 200 "decision";r=2;t=3600 2 of 3 left
}

func ExampleReload() {
	build := func(next *ratelimit.Registry) error {
		_, err := next.New("reloaded", ratelimit.Options{
			Limits: []ratelimit.Limit{ratelimit.FixedWindow(3, time.Hour)},
			Logger: discard,
		})
		return err
	}
	defer func() {
		limiter, _ := ratelimit.DefaultRegistry.Lookup("reloaded")
		forget(limiter)
	}()
	for range 3 { // at start, and whenever the configuration changes
		if err := ratelimit.Reload(build); err != nil {
			fmt.Println(err) // and the limiters of before go on
		}
		limiter, _ := ratelimit.DefaultRegistry.Lookup("reloaded")
		d, _ := limiter.Take(context.Background(), "ann")
		fmt.Println(d.Remaining)
	}
	// Output:
	// 2
	// 1
	// 0
}

func ExampleJoinKeys() {
	limiter := ratelimit.Must(ratelimit.New("join", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
		Key:    ratelimit.JoinKeys(ratelimit.PatternKey, ratelimit.ClientIP{}.Key), // per route and address
		Logger: discard,
	}))
	defer forget(limiter)
	mux := http.NewServeMux()
	mux.Handle("POST /login", limiter.Middleware(welcome))
	mux.Handle("GET /login", limiter.Middleware(welcome))
	request(mux)
	request(mux, func(r *http.Request) { r.Method = "GET" })
	// Output:
	// 200 "join";r=0;t=3600 welcome
	// 200 "join";r=0;t=3600 welcome
}

func ExampleOptions_count() {
	login := ratelimit.Must(ratelimit.New("failures", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(2, time.Hour)},
		Count:  func(r *http.Request, status int) bool { return status >= 400 },
		Logger: discard,
	}))
	defer forget(login)
	handler := login.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Password") != "right" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, "welcome")
	}))
	right := func(r *http.Request) { r.Header.Set("Password", "right") }
	request(handler, right)
	request(handler, right)
	request(handler)
	request(handler)
	request(handler, right)
	// Output:
	// 200 "failures";r=1;t=3600 welcome
	// 200 "failures";r=1;t=3600 welcome
	// 401 "failures";r=1;t=3600
	// 401 "failures";r=0;t=3600
	// 429 "failures";r=0;t=3600 Too many requests, please try again later.
}

func ExampleOptions_failed() {
	limiter := ratelimit.Must(ratelimit.New("failed", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(3, time.Hour)},
		Key:    ratelimit.HeaderKey("X-API-Key"),
		Failed: func(w http.ResponseWriter, r *http.Request, status int, err error) {
			if errors.Is(err, ratelimit.ErrNoKey) {
				fmt.Fprint(w, "send an X-API-Key") // with the limiter's status
				return
			}
			fmt.Fprint(w, "something went wrong")
		},
		Logger: discard,
	}))
	defer forget(limiter)
	request(limiter.Middleware(welcome))
	// Output: 400  send an X-API-Key
}

func ExampleOptions_limitsFor() {
	free := []ratelimit.Limit{ratelimit.FixedWindow(2, time.Hour)}
	paid := []ratelimit.Limit{ratelimit.FixedWindow(1000, time.Hour)}
	api := ratelimit.Must(ratelimit.New("plans", ratelimit.Options{
		Limits: free,
		LimitsFor: func(r *http.Request) []ratelimit.Limit {
			if r.Header.Get("Plan") == "paid" {
				return paid
			}
			return nil
		},
		Logger: discard,
	}))
	defer forget(api)
	handler := api.Middleware(welcome)
	request(handler)
	request(handler, func(r *http.Request) { r.Header.Set("Plan", "paid") }) // what was counted stays counted
	// Output:
	// 200 "plans";r=1;t=3600 welcome
	// 200 "plans";r=998;t=3600 welcome
}

func ExampleOptions_cost() {
	api := ratelimit.Must(ratelimit.New("cost", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(100, time.Hour)},
		Cost: func(r *http.Request) int64 {
			if r.URL.Path == "/reports" {
				return 10
			}
			return 1
		},
		Logger: discard,
	}))
	defer forget(api)
	request(api.Middleware(welcome), func(r *http.Request) { r.URL.Path = "/reports" })
	// Output: 200 "cost";r=90;t=3600 welcome
}

func ExampleOptions_denied() {
	api := ratelimit.Must(ratelimit.New("denied", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
		Denied: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d, _ := ratelimit.DecisionFrom(r.Context())
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprintf(w, "come back in %v", d.RetryAfter.Round(time.Minute))
		}),
		Logger: discard,
	}))
	defer forget(api)
	handler := api.Middleware(welcome)
	request(handler)
	request(handler)
	// Output:
	// 200 "denied";r=0;t=3600 welcome
	// 429 "denied";r=0;t=3600 come back in 1h0m0s
}

func ExampleOptions_shadow() {
	api := ratelimit.Must(ratelimit.New("shadow", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
		Shadow: true,
		Logger: discard,
	}))
	defer forget(api)
	handler := api.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, _ := ratelimit.DecisionFrom(r.Context())
		fmt.Fprint(w, "would be allowed: ", d.Allowed)
	}))
	request(handler)
	request(handler)
	fmt.Println(api.Stats().ShadowDenied)
	// Output:
	// 200  would be allowed: true
	// 200  would be allowed: false
	// 1
}

// Limiters around each other: a request that the inner one denies costs nothing at
// the outer one.
func ExampleLimiter_Middleware_stacked() {
	limiter := func(name string, n int64, key ratelimit.KeyFunc) *ratelimit.Limiter {
		return ratelimit.Must(ratelimit.New(name, ratelimit.Options{
			Limits: []ratelimit.Limit{ratelimit.FixedWindow(n, time.Hour)},
			Key:    key,
			Logger: discard,
		}))
	}
	perClient, global := limiter("per-client", 10, nil), limiter("global", 1, ratelimit.StaticKey("all"))
	defer forget(perClient)
	defer forget(global)
	handler := perClient.Middleware(global.Middleware(welcome))
	request(handler)
	request(handler)
	look, _ := perClient.TakeN(context.Background(), "192.0.2.1", 0)
	fmt.Println(look.Remaining)
	// Output:
	// 200 "per-client";r=9;t=3600, "global";r=0;t=3600 welcome
	// 429 "per-client";r=8;t=3600, "global";r=0;t=3600 Too many requests, please try again later.
	// 9
}

// Counters that survive a restart of the program, planned or not.
func ExampleNewMemoryStore_snapshotFile() {
	dir, err := os.MkdirTemp("", "counters")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	for range 2 { // as two processes do, one after the other
		store, err := ratelimit.NewMemoryStore("reset", ratelimit.MemoryOptions{
			SnapshotFile: filepath.Join(dir, "reset.snapshot"),
			SnapshotWait: 10 * time.Second, // for the process that this one replaces
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		limiter := ratelimit.Must(ratelimit.New("reset", ratelimit.Options{
			Limits: []ratelimit.Limit{ratelimit.FixedWindow(3, time.Hour)},
			Store:  store,
			Logger: discard,
		}))
		for range 2 {
			d, err := limiter.Take(context.Background(), "ann")
			fmt.Println(d.Allowed, d.Remaining, err)
		}
		limiter.Close()
		if err := store.Close(); err != nil { // writes what has changed since the last second
			fmt.Println(err)
		}
	}
	// Output:
	// true 2 <nil>
	// true 1 <nil>
	// true 0 <nil>
	// false 0 <nil>
}

func ExampleNewMemoryStore() {
	store, err := ratelimit.NewMemoryStore("small", ratelimit.MemoryOptions{MaxKeys: 10_000})
	if err != nil {
		fmt.Println(err)
		return
	}
	limiter := ratelimit.Must(ratelimit.New("small", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
		Store:  store,
		Logger: discard,
	}))
	defer forget(limiter)
	limiter.Take(context.Background(), "ann")
	fmt.Printf("%+v\n", store.Stats())
	// Output: {Counters:1 Evicted:0 EvictedDenied:0 SnapshotsFailed:0}
}
