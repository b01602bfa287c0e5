package main

import (
	"github.com/labstack/echo/v5"

	"github.com/ratelimit-go/ratelimit"
)

// Echo returns a middleware of echo that admits requests or answers them with the
// limiter's denial. In handlers, ratelimit.DecisionFrom takes c.Request().Context().
func Echo(limiter *ratelimit.Limiter) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			c.Request().Pattern = c.Request().Method + " " + c.Path() // for ratelimit.PatternKey
			if !limiter.Check(c.Response(), c.Request()) {
				return nil // it has been answered: an error would be answered again
			}
			return next(c)
		}
	}
}
