package ratelimit

import (
	"net/http"
	"strings"

	"github.com/ratelimit-go/ratelimit/internal/addr"
)

// mistake looks for what is probably a mistake in the choice of the key: a proxy
// whose clients all share one key, or a key that is different for every
// connection. It returns the warning to log, if there is one. It looks at every
// request, so it only does what is cheap; a mistake shows in most requests
// anyway.
func (p *probe) mistake(r *http.Request, key string) (w warning, found bool) {
	forwarded := p.byAddress && hasForwarding(r.Header)
	if !forwarded && (p.byAddress || !strings.Contains(key, ":")) {
		return 0, false
	}
	if _, marked, ok := strings.Cut(key, "="); ok { // a key of FirstKey
		key = marked
	}
	if forwarded {
		peer, ok := addr.Parse(r.RemoteAddr)
		return warnUntrustedProxy, p.noProxies || ok && addr.Covers(key, peer)
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

func hasForwarding(h http.Header) bool {
	return h["X-Forwarded-For"] != nil || h["Forwarded"] != nil || h["X-Real-Ip"] != nil || h["Cf-Connecting-Ip"] != nil
}
