package main

import (
	"net/http"

	"github.com/ratelimit-go/ratelimit"
)

// Chi returns limiter as a middleware of chi. It is [ratelimit.Limiter.Middleware]
// itself, as chi is net/http: router.Use(limiter.Middleware) does the same.
//
// Do not put chi's RealIP before it. That middleware believes whatever address a
// client writes; ratelimit.ClientIP with its TrustedProxies does not.
func Chi(limiter *ratelimit.Limiter) func(http.Handler) http.Handler {
	return limiter.Middleware
}
