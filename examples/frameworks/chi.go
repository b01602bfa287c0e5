package main

import (
	"net/http"

	"github.com/ratelimit-go/ratelimit"
)

// Chi returns limiter as a middleware of chi. It is [ratelimit.Limiter.Middleware]
// itself, as chi is net/http: router.Use(limiter.Middleware) does the same.
//
// With ratelimit.PatternKey use router.With(limiter.Middleware), where the route is
// known; under router.Use it is not yet, and routes would share a key.
//
// Do not put chi's RealIP before it. That middleware believes whatever address a
// client writes; ratelimit.ClientIP with its TrustedProxies does not.
func Chi(limiter *ratelimit.Limiter) func(http.Handler) http.Handler {
	return limiter.Middleware
}
