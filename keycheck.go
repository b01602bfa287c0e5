package ratelimit

import (
	"net/http"
	"reflect"
	"strings"

	"github.com/ratelimit-go/ratelimit/internal/addr"
)

// This file finds mistakes in the choice of the key: wrong settings when a limiter is
// made, and keys that a request shows to be of no use.

// A probe asks the key functions of this package what they are made of, so that a
// wrong setting is found when a limiter is made and not with its first request. Of
// other functions nothing is known, and they are not called for it.
type probe struct {
	name   string                                        // of a NamedKey
	checks []func(*http.Request, string) (warning, bool) // of each ClientIP: see mistake
	usual  bool                                          // none of them reads a field that hasForwarding does not look for
	err    error
}

func (*probe) Error() string { return "ratelimit: a probe is no request" }

// probing is the RemoteAddr of the request that is a probe. No connection has it.
const probing = "\x00probe"

// probed has the code of the functions that understand a probe, whatever they are
// closed over. Functions that return one of them are not inlined, which would give
// their closures other code at each place.
var probed = map[uintptr]bool{}

// understandProbes is called while the package is initialised.
func understandProbes(fns ...func(*http.Request) (string, error)) {
	for _, fn := range fns {
		probed[reflect.ValueOf(fn).Pointer()] = true
	}
}

func probeKey(fn func(*http.Request) (string, error)) probe {
	if probed[reflect.ValueOf(fn).Pointer()] {
		_, err := fn(&http.Request{RemoteAddr: probing})
		if p, ok := err.(*probe); ok {
			return *p
		}
	}
	return probe{}
}

// mistake looks for what is probably a mistake in the choice of the key: a proxy
// whose clients all share one key, or a key that is different for every
// connection. It returns the warning to log, if there is one. It looks at every
// request, so it only does what is cheap; a mistake shows in most requests
// anyway.
func (p *probe) mistake(r *http.Request, key string) (w warning, found bool) {
	if len(p.checks) > 0 {
		if p.usual && !hasForwarding(r.Header) {
			return 0, false
		}
		for _, check := range p.checks {
			if w, found := check(r, key); found {
				return w, true
			}
		}
		return 0, false
	}
	if !strings.Contains(key, ":") {
		return 0, false
	}
	if _, marked, ok := strings.Cut(key, "="); ok { // a key of FirstKey
		key = marked
	}
	a, ok := addr.Parse(key)
	port := strings.Count(key, ":") == 1
	if strings.HasPrefix(key, "[") {
		port = !strings.HasSuffix(key, "]")
	}
	switch {
	case ok && port:
		return warnKeyWithPort, true
	case ok && a.Is6():
		return warnWholeIPv6, true
	}
	return 0, false
}

// hasForwarding reports whether a proxy has written one of the fields that most write.
func hasForwarding(h http.Header) bool {
	return h["X-Forwarded-For"] != nil || h["Forwarded"] != nil || h["X-Real-Ip"] != nil || h["Cf-Connecting-Ip"] != nil
}
