package main

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/gofiber/fiber/v3"

	"github.com/ratelimit-go/ratelimit"
)

// Fiber returns a middleware of fiber that admits requests or answers them with
// the limiter's denial. In handlers, ratelimit.DecisionFrom takes c.Context().
//
// Fiber stands on fasthttp, not on net/http, so the limiter sees a copy of the
// request. Fiber's own adaptor makes one too, but reads the whole body before
// the limiter has decided, keeps the last line of a header field that has several,
// X-Forwarded-For among them, and its strings change when fasthttp uses their
// memory again. This copy has no body, all lines, and strings of its own.
//
// The status is reported when the handlers have returned: fiber sends the response
// after that, also the error that a handler returns.
func Fiber(limiter *ratelimit.Limiter) fiber.Handler {
	return func(c fiber.Ctx) error {
		r, err := fiberRequest(c)
		if err != nil {
			return fiber.ErrBadRequest
		}
		ctx, over := context.WithCancel(r.Context()) // to the limiter, the request is over with its handlers
		defer over()
		r = r.WithContext(ctx)
		w := newFiberWriter(c)
		admitted := limiter.Check(w, r)
		w.sendHeader()
		if !admitted {
			return nil
		}
		c.SetContext(context.WithoutCancel(r.Context()))          // which has the decision
		status := fiber.StatusInternalServerError                 // if a handler panics
		defer func() { limiter.Responded(r.Context(), status) }() // its error says that the request is exempt
		err = c.Next()
		status = statusOf(c, err)
		return err
	}
}

// statusOf is the status of the response if the handlers have returned err, unless
// the app has an error handler that answers with another one.
func statusOf(c fiber.Ctx, err error) int {
	var e *fiber.Error
	switch {
	case err == nil:
		return c.Response().StatusCode()
	case errors.As(err, &e):
		return e.Code
	}
	return fiber.StatusInternalServerError
}

func fiberRequest(c fiber.Ctx) (*http.Request, error) {
	uri := strings.Clone(c.OriginalURL())
	parsed, err := url.ParseRequestURI(uri)
	if err != nil {
		return nil, err
	}
	r := &http.Request{
		Method:     c.Method(),
		URL:        parsed,
		RequestURI: uri,
		Pattern:    c.Route().Path, // for ratelimit.PatternKey: the path that this is mounted on
		Host:       string(c.Request().Host()),
		RemoteAddr: c.RequestCtx().RemoteAddr().String(),
		TLS:        c.RequestCtx().TLSConnectionState(),
		Header:     make(http.Header),
		Body:       http.NoBody,
	}
	for name, value := range c.Request().Header.All() {
		r.Header.Add(string(name), string(value))
	}
	return r.WithContext(c.Context()), nil
}

// fiberWriter is an http.ResponseWriter in front of fiber's response.
type fiberWriter struct {
	c      fiber.Ctx
	header http.Header
}

func newFiberWriter(c fiber.Ctx) fiberWriter {
	w := fiberWriter{c, make(http.Header)}
	for _, list := range []string{"RateLimit", "RateLimit-Policy"} { // of limiters around this one, which adds to them
		if value := c.GetRespHeader(list); value != "" {
			w.header.Set(list, value)
		}
	}
	return w
}

func (w fiberWriter) Header() http.Header         { return w.header }
func (w fiberWriter) WriteHeader(status int)      { w.c.Status(status) }
func (w fiberWriter) Write(p []byte) (int, error) { return w.c.Write(p) }

// sendHeader is called even where nothing was written: an admitted request's
// response has header fields too.
func (w fiberWriter) sendHeader() {
	header := &w.c.Response().Header
	for name, values := range w.header {
		header.Del(name)
		for _, value := range values {
			header.Add(name, value)
		}
	}
}
