package main

import (
	"net/http"

	"github.com/ratelimit-go/ratelimit"
)

// Chi returns limiter as a middleware of chi. chi uses net/http, so that is
// [ratelimit.Limiter.Middleware] itself: router.Use(limiter.Middleware) does the same.
//
// With ratelimit.PatternKey, use router.With(limiter.Middleware), where the route is known.
// Under router.Use the route is not known yet, and all routes would share a key.
//
// Do not put chi's RealIP before it. That middleware trusts any address that a client
// writes. ratelimit.ClientIP with its TrustedProxies does not.
func Chi(limiter *ratelimit.Limiter) func(http.Handler) http.Handler {
	return limiter.Middleware
}
