package benchmarks

import (
	"net/http"

	"github.com/go-chi/httprate"
)

func openHTTPRate(q quota, fields bool) subject {
	noFields := httprate.WithResponseHeaders(httprate.ResponseHeaders{})
	var options []httprate.Option
	if !fields {
		options = append(options, noFields)
	}
	// OnLimit only decides. It needs the request only for its context. Without fields
	// to write, it does not use the writer.
	l := httprate.NewRateLimiter(int(q.units), q.window, noFields)
	r := newRequest()
	return subject{
		take:       func(key string) (bool, error) { return !l.OnLimit(nil, r, key), nil },
		middleware: httprate.LimitBy(int(q.units), q.window, canonicalAddress, options...),
	}
}

func canonicalAddress(r *http.Request) (string, error) {
	host, err := address(r)
	return httprate.CanonicalizeIP(host), err
}
