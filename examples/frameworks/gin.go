package main

import (
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/ratelimit-go/ratelimit"
)

// Gin returns a middleware of gin that admits requests or answers them with the
// limiter's denial. In handlers, ratelimit.DecisionFrom takes c.Request.Context().
//
// The status is reported when the handlers have returned. A handler that streams can call
// limiter.Responded itself when it begins, so that Options.Count decides at that time.
//
// The hold of a ratelimit.InFlight limit ends with the request's context: when the handlers
// have returned, or when the client leaves. Handlers should stop then, too.
func Gin(limiter *ratelimit.Limiter) gin.HandlerFunc {
	return func(c *gin.Context) {
		c.Request.Pattern = c.Request.Method + " " + c.FullPath() // for ratelimit.PatternKey; "GET " if no route matches
		if strings.HasSuffix(c.FullPath(), "/") {
			c.Request.Pattern += "{$}" // this path only, not the paths below it
		}
		if !limiter.Check(c.Writer, c.Request) {
			c.Abort() // otherwise gin would call the handler
			return
		}
		ctx := c.Request.Context()
		status := http.StatusInternalServerError          // if a handler panics
		defer func() { limiter.Responded(ctx, status) }() // an error means that the request is exempt
		c.Next()
		status = c.Writer.Status()
	}
}
