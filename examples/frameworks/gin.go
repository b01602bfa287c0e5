package main

import (
	"github.com/gin-gonic/gin"

	"github.com/ratelimit-go/ratelimit"
)

// Gin returns a middleware of gin that admits requests or answers them with the
// limiter's denial. In handlers, ratelimit.DecisionFrom takes c.Request.Context().
func Gin(limiter *ratelimit.Limiter) gin.HandlerFunc {
	return func(c *gin.Context) {
		c.Request.Pattern = c.Request.Method + " " + c.FullPath() // for ratelimit.PatternKey; "GET " where no route matches
		if !limiter.Check(c.Writer, c.Request) {
			c.Abort() // or gin would go on to the handler
		}
	}
}
