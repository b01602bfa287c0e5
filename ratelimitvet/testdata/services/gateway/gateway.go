// Package gateway sells plans, and counts for two services in one process.
package gateway

import (
	"net/http"
	"net/netip"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// Gateway serves one shop.
type Gateway struct {
	registry ratelimit.Registry
	store    ratelimit.Store
	limiter  *ratelimit.Limiter
	plans    map[string][]ratelimit.Limit
}

// Open makes the gateway of a shop.
func Open(shop string, plans map[string][]ratelimit.Limit) (g *Gateway, err error) {
	g = &Gateway{store: ratelimit.Memory("gateway-" + shop), plans: plans}
	g.limiter, err = g.registry.New("gateway", ratelimit.Options{
		Limits:    []ratelimit.Limit{ratelimit.TokenBucket(1, time.Second, 5), ratelimit.Monthly(1_000, 1, nil)},
		LimitsFor: func(r *http.Request) []ratelimit.Limit { return g.plans[r.Header.Get("X-Plan")] },
		Store:     g.store,
		Key: ratelimit.FirstKey(
			ratelimit.NamedKey("key", ratelimit.HeaderKey("X-API-Key")),
			ratelimit.NamedKey("ip", ratelimit.ClientIP{Header: "CF-Connecting-IP", TrustedProxies: []netip.Prefix{netip.MustParsePrefix("173.245.48.0/20")}}.Key),
		),
		Skip: func(r *http.Request) bool { return r.URL.Path == "/health" },
	})
	return g, err
}

// Two shops in one process.
func Two(next http.Handler) (http.Handler, error) {
	a, err := Open("a", nil)
	if err != nil {
		return nil, err
	}
	b, err := Open("b", nil)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("a.example/", a.limiter.Middleware(next))
	mux.Handle("b.example/", b.limiter.Middleware(next))
	return mux, nil
}
