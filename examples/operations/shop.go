package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the shop: four routes, and a limiter for each of them.

// client is who a request is from. The traffic comes from this machine and names its
// clients in X-Forwarded-For, as a proxy does. Without a proxy, use ClientIP{}.
var client = ratelimit.ClientIP{TrustedProxies: []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
}}

// The names of these limits are the label "policy" of the metrics, so denials are counted
// by plan. The plans have the same algorithm and window, so a customer who changes plans
// keeps their count.
var (
	free = ratelimit.SlidingWindow(30, time.Minute).Named("search-free")
	pro  = ratelimit.SlidingWindow(300, time.Minute).Named("search-pro")
)

// customers has the plans of the API keys that the shop has issued.
var customers = map[string]ratelimit.Limit{"pro-1": pro, "pro-2": pro}

// addShop adds the routes of the shop to mux. Failed logins are counted where logins says. If
// auditor is not nil, it records what operators do to the login limiter.
func addShop(mux *http.ServeMux, logins ratelimit.Options, metrics prometheus.Registerer, auditor ratelimit.Auditor) error {
	browse, err := ratelimit.New("browse", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.TokenBucket(10, time.Second, 20)},
		Key:    client.Key,
	})
	if err != nil {
		return err
	}
	search, err := ratelimit.New("search", ratelimit.Options{
		Limits:    []ratelimit.Limit{free},
		LimitsFor: plan,
		Key:       ratelimit.FirstKey(ratelimit.NamedKey("customer", customer), ratelimit.NamedKey("ip", client.Key)),
		Denied:    http.HandlerFunc(offerPro),
	})
	if err != nil {
		return err
	}
	login, err := ratelimit.New("login", ratelimit.Options{
		Limits:  []ratelimit.Limit{ratelimit.FixedWindow(5, 15*time.Minute)},
		Redis:   logins.Redis,
		Store:   logins.Store,
		Audit:   auditor,
		Key:     client.Key,
		Count:   func(_ *http.Request, status int) bool { return status >= 400 }, // only failed logins
		Message: "Too many failed logins. Try again later, or reset your password.",
		Denied:  http.HandlerFunc(linkHelp),
	})
	if err != nil {
		return err
	}
	// This limit is being tried out. The metrics say how many requests it would deny.
	checkout, err := ratelimit.New("checkout", ratelimit.Options{
		Limits: []ratelimit.Limit{
			ratelimit.TokenBucket(1, time.Second, 3),
			ratelimit.FixedWindow(50, 24*time.Hour),
		},
		Key:    client.Key,
		Shadow: true,
	})
	if err != nil {
		return err
	}

	// Denials are counted by plan without this. It counts what was allowed.
	searches := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "shop_searches_total", Help: "Searches by plan.",
	}, []string{"plan"})
	metrics.MustRegister(searches)

	mux.Handle("GET /browse", browse.Middleware(text("three shirts and a hat\n")))
	mux.Handle("GET /search", search.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d, ok := ratelimit.DecisionFrom(r.Context()); ok {
			searches.WithLabelValues(d.Policy).Inc()
		}
		io.WriteString(w, "a hat\n")
	})))
	mux.Handle("POST /login", login.Middleware(http.HandlerFunc(signIn)))
	mux.Handle("POST /checkout", checkout.Middleware(text("thank you\n")))
	return nil
}

// customer counts by API key. A key that the shop has not issued is no key: a request
// with it is counted by its address, so inventing more of them gains nothing.
func customer(r *http.Request) (string, error) {
	key := r.Header.Get("X-API-Key")
	if _, ok := customers[key]; !ok {
		return "", ratelimit.ErrNoKey
	}
	return key, nil
}

func plan(r *http.Request) []ratelimit.Limit {
	if limit, ok := customers[r.Header.Get("X-API-Key")]; ok {
		return []ratelimit.Limit{limit}
	}
	return nil // Options.Limits
}

// offerPro is the body of a denied search. The limiter has set the header fields, and it
// sends 429 if this function writes no status.
func offerPro(w http.ResponseWriter, r *http.Request) {
	d, _ := ratelimit.DecisionFrom(r.Context())
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusTooManyRequests)
	json.NewEncoder(w).Encode(map[string]any{ // an error is the client's connection
		"error": fmt.Sprintf("%s allows %v a minute", d.Policy, d.Limit.N()), "upgrade": "/plans",
	})
}

// linkHelp adds a header field to the limiter's own answer to denied logins.
func linkHelp(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Link", `</password-reset>; rel="help"`)
	ratelimit.AnswerDenied(w, r)
}

func signIn(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("password") != "correct horse" {
		http.Error(w, "wrong password", http.StatusUnauthorized)
		return
	}
	io.WriteString(w, "welcome\n")
}

func text(s string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, s) })
}
