package main

import (
	"net/http"
	"strings"

	"github.com/labstack/echo/v5"

	"github.com/ratelimit-go/ratelimit"
)

// Echo returns a middleware of echo that admits requests or answers them with the
// limiter's denial. In handlers, ratelimit.DecisionFrom takes c.Request().Context().
//
// Echo writes an error that a handler returns only after all middleware has returned. So
// the status is reported just before echo sends it. Options.Count gets 401 for
// echo.NewHTTPError(http.StatusUnauthorized), and an open stream holds no units.
//
// The hold of a ratelimit.InFlight limit ends with the request's context: when the handler
// has returned, or when the client leaves. Handlers should stop then, too.
func Echo(limiter *ratelimit.Limiter) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			if path := c.Path(); strings.HasSuffix(path, "/") { // for ratelimit.PatternKey
				c.Request().Pattern = c.Request().Method + " " + path + "{$}" // this path only, not the paths below it
			} else {
				c.Request().Pattern = c.Request().Method + " " + path
			}
			if !limiter.Check(c.Response(), c.Request()) {
				return nil // Check has written the response; echo would write an error as a second one
			}
			res, err := echo.UnwrapResponse(c.Response())
			if err != nil {
				return err
			}
			ctx := c.Request().Context()
			res.Before(func() { limiter.Responded(ctx, res.Status) }) // an error means that the request is exempt
			if err = next(c); err == nil && !res.Committed {
				limiter.Responded(ctx, http.StatusOK) // nothing was written, and net/http sends 200
			}
			return err
		}
	}
}
