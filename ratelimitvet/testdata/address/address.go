package address

import (
	"net"
	"net/http"

	"github.com/ratelimit-go/ratelimit"
)

func byHost(r *http.Request) (string, error) {
	host, _, err := net.SplitHostPort(r.RemoteAddr) // want `this key reads RemoteAddr by itself`
	return host, err
}

func byForwarded(r *http.Request) (string, error) {
	if f := r.Header.Get("X-Forwarded-For"); f != "" { // want `this key reads X-Forwarded-For by itself`
		return f, nil
	}
	return r.RemoteAddr, nil // want `this key reads RemoteAddr by itself`
}

func byUser(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil }

// It is no key.
func logged(r *http.Request) string { return r.RemoteAddr }

type service struct{}

func (service) key(r *http.Request) (string, error) {
	return r.Header["Cf-Connecting-Ip"][0], nil // want `this key reads Cf-Connecting-Ip by itself`
}

func limiters(s service) {
	_ = ratelimit.Options{Key: byHost}
	_ = ratelimit.Options{Key: byHost} // reported once, where it reads
	_ = ratelimit.Options{Key: byForwarded}
	_ = ratelimit.Options{Key: s.key}
	_ = ratelimit.Options{Key: func(r *http.Request) (string, error) { return r.RemoteAddr, nil }} // want `this key reads RemoteAddr by itself`
	_ = ratelimit.NamedKey("ip", func(r *http.Request) (string, error) {
		return r.Header.Get("x-real-ip"), nil // want `this key reads x-real-ip by itself`
	})
	_ = ratelimit.Options{Key: ratelimit.HeaderKey("True-Client-IP")} // want `HeaderKey\("True-Client-IP"\) trusts what any client writes`
	var opts ratelimit.Options
	opts.Key = func(r *http.Request) (string, error) {
		return r.Method + " " + r.RemoteAddr, nil // want `this key reads RemoteAddr by itself`
	}

	_ = ratelimit.Options{Key: byUser}
	_ = ratelimit.Options{Key: ratelimit.HeaderKey("X-API-Key")}
	_ = ratelimit.Options{Key: ratelimit.ClientIP{}.Key, Skip: func(r *http.Request) bool { return r.RemoteAddr == "@" }}
}
