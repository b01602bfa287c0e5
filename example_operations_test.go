package ratelimit_test

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// This file has recipes for the operation of a service.

// Log each denial, with the values of the request's context. An event is a group of
// attributes.
func ExampleOptions_observe() {
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == "retry_after" { // they differ each time this runs
				return slog.Attr{}
			}
			return a
		},
	}))
	login := ratelimit.Must(ratelimit.New("observed", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
		Observe: func(ctx context.Context, e ratelimit.Event) {
			if e.Kind == ratelimit.EventDenied {
				logger.InfoContext(ctx, "rate limit", "event", e)
			}
		},
		Logger: discard,
	}))
	defer forget(login)
	handler := login.Middleware(welcome)
	request(handler)
	request(handler)
	// Output:
	// 200 "observed";r=0;t=3600 welcome
	// level=INFO msg="rate limit" event.kind=denied event.limiter=observed event.key=192.0.2.1 event.policy=observed event.limit="1/1h fixed" event.units=1
	// 429 "observed";r=0;t=3600 Too many requests, please try again later.
}

// offenders counts the denials of the keys that are denied most often. It has room for
// 1,000 keys. A key that has more than a 1,001st of all denials is always among them
// (Misra and Gries, 1982), however many other keys there are.
type offenders struct {
	mu     sync.Mutex
	denied map[string]int
}

func (o *offenders) observe(_ context.Context, e ratelimit.Event) {
	if e.Kind != ratelimit.EventDenied {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, known := o.denied[e.Key]; known || len(o.denied) < 1000 {
		o.denied[e.Key]++
		return
	}
	for key := range o.denied { // each call that comes here undoes 1,000 others
		if o.denied[key]--; o.denied[key] == 0 {
			delete(o.denied, key)
		}
	}
}

func (o *offenders) top(n int) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	keys := slices.SortedFunc(maps.Keys(o.denied), func(a, b string) int { return cmp.Compare(o.denied[b], o.denied[a]) })
	return keys[:min(n, len(keys))]
}

// Find the keys that are denied most often, over all limiters of the program.
func ExampleRegistry_Observe() {
	top := &offenders{denied: make(map[string]int)}
	stop := ratelimit.DefaultRegistry.Observe(top.observe)
	defer stop()

	api := ratelimit.Must(ratelimit.New("offenders", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
		Logger: discard,
	}))
	defer forget(api)
	for i := range 10_000 {
		client := fmt.Sprint("client ", i)
		if i%10 == 0 {
			client = "scraper"
		}
		for range 2 {
			api.Take(context.Background(), client)
		}
	}
	fmt.Println(top.top(1))
	// Output: [scraper]
}

// Count denials by plan: each limit has a name, and counts under it.
func ExampleLimiter_Stats() {
	plans := map[string][]ratelimit.Limit{
		"free": {ratelimit.FixedWindow(1, time.Hour).Named("free")},
		"pro":  {ratelimit.FixedWindow(3, time.Hour).Named("pro")},
	}
	api := ratelimit.Must(ratelimit.New("counted", ratelimit.Options{
		Limits:    plans["free"],
		Key:       ratelimit.HeaderKey("X-API-Key"),
		LimitsFor: func(r *http.Request) []ratelimit.Limit { return plans[r.Header.Get("Plan")] },
		Logger:    discard,
	}))
	defer forget(api)
	handler := api.Middleware(welcome)
	for plan := range plans {
		for range 5 {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("X-API-Key", plan+" customer")
			r.Header.Set("Plan", plan)
			handler.ServeHTTP(httptest.NewRecorder(), r)
		}
	}
	stats := api.Stats()
	fmt.Println("allowed", stats.Allowed, "denied", stats.Denied)
	for _, p := range stats.Policies {
		fmt.Println(p.Name, p.Limit, p.Denied)
	}
	// Output:
	// allowed 4 denied 6
	// free 1/1h fixed name=free 4
	// pro 3/1h fixed name=pro 2
}

// Add a header field to the limiter's own answer to denied requests.
func ExampleAnswerDenied() {
	api := ratelimit.Must(ratelimit.New("added", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
		Denied: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", `</docs/limits>; rel="help"`)
			ratelimit.AnswerDenied(w, r)
		}),
		Logger: discard,
	}))
	defer forget(api)
	handler := api.Middleware(welcome)
	for range 2 {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		fmt.Println(w.Code, w.Header().Get("Link"), w.Body)
	}
	// Output:
	// 200  welcome
	// 429 </docs/limits>; rel="help" Too many requests, please try again later.
}

// Show an operator what a client has left, and let the client in again. The event names
// the actor and the reason.
func ExampleLimiter_LookKey() {
	login := ratelimit.Must(ratelimit.New("unblock", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
		Observe: func(_ context.Context, e ratelimit.Event) {
			if e.Actor != "" {
				fmt.Println(e.Kind, e.Key, "by", e.Actor, "for", e.Reason)
			}
		},
		Logger: discard,
	}))
	defer forget(login)
	r := httptest.NewRequest("POST", "/login", nil)
	login.Middleware(welcome).ServeHTTP(httptest.NewRecorder(), r)

	ctx := ratelimit.WithReason(ratelimit.WithActor(context.Background(), "anna"), "ticket 7")
	key, err := login.KeyOf(r)
	if err != nil {
		fmt.Println(err)
		return
	}
	left := func() {
		standings, err := login.LookKey(ctx, key) // for a user with a plan: LookKey(ctx, key, plan...)
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, s := range standings {
			fmt.Println(key, "has", s.Remaining, "left of", s.Limit)
		}
	}
	left()
	if err := login.Reset(ctx, key); err != nil {
		fmt.Println(err)
	}
	left()
	// Output:
	// 192.0.2.1 has 0 left of 1/1h fixed
	// reset 192.0.2.1 by anna for ticket 7
	// 192.0.2.1 has 1 left of 1/1h fixed
}
