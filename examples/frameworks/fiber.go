package main

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gofiber/fiber/v3"

	"github.com/ratelimit-go/ratelimit"
)

// Fiber returns a middleware of fiber that admits requests or answers them with
// the limiter's denial. In handlers, ratelimit.DecisionFrom takes c.Context().
//
// Fiber uses fasthttp and not net/http, so the limiter gets a copy of the request. The
// copy has no body, all lines of each header field, and its own strings. Do not use fiber's
// adaptor for it:
//
//   - The adaptor reads the whole body before the limiter decides.
//   - Of a header field with several lines, such as X-Forwarded-For, it keeps only the last.
//   - Its strings change when fasthttp uses their memory for another request.
//
// The status is reported when the handlers have returned. Fiber sends the response after
// that, also for an error that a handler returns. The hold of a ratelimit.InFlight limit ends
// when the handlers have returned, and the one of a stream when that is written. Fiber's
// contexts do not end with a request, so the limiter gets one that does.
func Fiber(limiter *ratelimit.Limiter) fiber.Handler {
	return func(c fiber.Ctx) error {
		r, err := fiberRequest(c)
		if err != nil {
			return fiber.ErrBadRequest
		}
		ctx, over := context.WithCancel(r.Context()) // for the limiter, the request ends when over is called
		defer func() {
			if c.Response().IsBodyStream() || c.RequestCtx().Hijacked() {
				end := &fiberEnd{over}
				c.RequestCtx().SetUserValue(end, end) // the response goes on; fasthttp closes its values after it
				return
			}
			over()
		}()
		r = r.WithContext(ctx)
		w := newFiberWriter(c)
		admitted := limiter.Check(w, r)
		w.sendHeader()
		if !admitted {
			return nil
		}
		c.SetContext(fiberContext{c.Context(), r.Context()})      // this context has the decision
		status := fiber.StatusInternalServerError                 // if a handler panics
		defer func() { limiter.Responded(r.Context(), status) }() // an error means that the request is exempt
		err = c.Next()
		status = statusOf(c, err)
		return err
	}
}

// fiberContext is the context for the handlers. It has the decision, and ends together with the
// context that the middleware around the limiter has set.
type fiberContext struct {
	context.Context
	values context.Context // of the limiter
}

func (c fiberContext) Value(key any) any { return c.values.Value(key) }

// statusOf returns the status of the response after the handlers have returned err. It is
// wrong if the app has an error handler that sends another status.
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

// fiberEnd is called when fasthttp is done with a request.
type fiberEnd struct{ over context.CancelFunc }

func (e *fiberEnd) Close() error { e.over(); return nil }

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
		Pattern:    c.Route().Path, // for ratelimit.PatternKey: the path that this middleware is mounted on
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

// fiberWriter is an http.ResponseWriter in front of fiber's response. Its header has the fields
// that fiber's response has already, so that a refusal can remove the fields that let caches store it.
type fiberWriter struct {
	c      fiber.Ctx
	header http.Header
}

// fiberHeader is the key of the http.Header that all limiters on a request share. By it
// they see that they have one response. An inner limiter then adds its fields to the outer
// limiter's, and a limiter that is mounted twice counts once.
type fiberHeader struct{}

func newFiberWriter(c fiber.Ctx) fiberWriter {
	header, ok := c.Locals(fiberHeader{}).(http.Header)
	if !ok {
		header = make(http.Header)
		c.Locals(fiberHeader{}, header)
	}
	clear(header)
	maps.Copy(header, headerOf(c))
	return fiberWriter{c, header}
}

func (w fiberWriter) Header() http.Header         { return w.header }
func (w fiberWriter) WriteHeader(status int)      { w.c.Status(status) }
func (w fiberWriter) Write(p []byte) (int, error) { return w.c.Write(p) }

// sendHeader is called even if nothing was written, because the response of an admitted
// request has header fields, too. It writes the fields that have changed, and all fields with
// several lines: when fasthttp deletes a field, the others change their order.
func (w fiberWriter) sendHeader() {
	header, before := &w.c.Response().Header, headerOf(w.c)
	writes := func(name string) bool {
		return len(before[name]) > 1 || !slices.Equal(before[name], w.header[name])
	}
	for name := range before {
		if writes(name) {
			header.Del(name)
		}
	}
	for name, values := range w.header {
		if writes(name) {
			for _, value := range values {
				header.Add(name, value)
			}
		}
	}
}

// headerOf returns a copy of the header of fiber's response.
func headerOf(c fiber.Ctx) http.Header {
	header := make(http.Header)
	for key, value := range c.Response().Header.All() {
		name := string(key)
		header[name] = append(header[name], string(value))
	}
	return header
}
