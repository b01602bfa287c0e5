package main

import (
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// A transport sends requests at the pace of a limiter, with one pace for each host. If a
// server nevertheless answers with Retry-After, nobody calls that host until then, and the
// request is sent again.
type transport struct {
	limiter *ratelimit.Limiter
	next    http.RoundTripper
}

// maxAttempts is how often a request is sent if the server keeps denying it.
const maxAttempts = 3

// RoundTrip implements [http.RoundTripper]. It waits for as long as the request's context
// allows.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		if err := t.limiter.Wait(r.Context(), r.URL.Host, 1); err != nil {
			if r.Body != nil {
				r.Body.Close() // a RoundTripper closes it also if it sends nothing
			}
			return nil, err
		}
		response, err := t.next.RoundTrip(r)
		if err != nil || attempt == maxAttempts {
			return response, err
		}
		wait := retryAfter(response)
		if wait == 0 {
			return response, nil
		}
		if err := t.limiter.Block(r.Context(), r.URL.Host, wait); err != nil {
			return response, nil
		}
		again, ok := copyOf(r)
		if !ok {
			return response, nil
		}
		io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10)) // so that the connection is used again
		response.Body.Close()
		r = again
	}
}

// retryAfter returns how long a server wants to be left alone, or 0 if it does not say.
func retryAfter(response *http.Response) time.Duration {
	if response.StatusCode != http.StatusTooManyRequests && response.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	value := response.Header.Get("Retry-After")
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		return time.Duration(min(max(seconds, 0), 24*3600)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(time.Until(at), 0), 24*time.Hour)
	}
	return 0
}

// copyOf returns a request that can be sent after r was sent. There is none if r has a body
// that cannot be read again.
func copyOf(r *http.Request) (again *http.Request, ok bool) {
	again = r.Clone(r.Context())
	if r.Body == nil || r.Body == http.NoBody {
		return again, true
	}
	if r.GetBody == nil {
		return nil, false
	}
	body, err := r.GetBody()
	again.Body = body
	return again, err == nil
}
