package ratelimit

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// KeyFunc returns the key of a request: the client, user or route that is limited.
// Requests with the same key share counters. It may be called from any number of
// goroutines.
//
// A request that cannot be attributed gets an error: [ErrNoKey], or one that
// wraps it, is answered with 400; so is an empty key. [ErrExempt] lets the request
// through without counting it. Any other error is answered with 500 and logged,
// so its text should not contain what the client has sent.
type KeyFunc func(*http.Request) (string, error)

var (
	// ErrNoKey means that a request cannot be attributed to a client. The request is
	// refused. It is not let through, and does not share a bucket with all others.
	ErrNoKey = errors.New("ratelimit: the request has no key")

	// ErrExempt is returned by a KeyFunc for a request that must not be limited.
	ErrExempt = errors.New("ratelimit: the request is exempt")
)

// HeaderKey makes keys from a request header, such as X-API-Key. A request where it
// is absent, empty, or there twice has no key. "Host" is what the request's target
// or its Host header says, in lower case. A limiter is not made if name is no header's,
// or is Trailer or Transfer-Encoding, which net/http takes out of requests.
//
// A client can write any value, and a new value is a new key: check the key before
// the limiter, or limit by address as well.
//
//go:noinline
func HeaderKey(name string) KeyFunc {
	canonical := http.CanonicalHeaderKey(name)
	noKey := fmt.Errorf("%w: want one header %s", ErrNoKey, canonical)
	return func(r *http.Request) (string, error) {
		if r.RemoteAddr == probing {
			return "", &probe{err: validateHeader("HeaderKey", canonical)}
		}
		if canonical == "Host" && r.Host != "" {
			return strings.ToLower(r.Host), nil
		}
		if v := r.Header[canonical]; len(v) == 1 && v[0] != "" {
			return v[0], nil
		}
		return "", noKey
	}
}

func validateHeader(what, name string) error {
	switch {
	case name == "Trailer", name == "Transfer-Encoding":
		return fmt.Errorf("%s(%q): net/http takes this header out of requests, so that no request would have a key", what, name)
	case !isToken(name):
		return fmt.Errorf("%s(%q): this is no header's name", what, name)
	}
	return nil
}

// isToken reports whether s is a token (RFC 9110, section 5.6.2), as are the names of
// headers and cookies.
func isToken(s string) bool {
	for _, c := range []byte(s) {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}

// CookieKey makes keys from a cookie. A request where it is absent, empty, or there
// twice has no key. As with [HeaderKey], a client can write any value. A limiter is
// not made if name is no cookie's.
//
//go:noinline
func CookieKey(name string) KeyFunc {
	noKey := fmt.Errorf("%w: want one cookie %s", ErrNoKey, name)
	return func(r *http.Request) (string, error) {
		if r.RemoteAddr == probing {
			if !isToken(name) {
				return "", &probe{err: fmt.Errorf("CookieKey(%q): this is no cookie's name", name)}
			}
			return "", &probe{}
		}
		if v := r.CookiesNamed(name); len(v) == 1 && v[0].Value != "" {
			return v[0].Value, nil
		}
		return "", noKey
	}
}

// PatternKey makes keys from the pattern that the request matched in an
// [http.ServeMux], such as "GET /users/{id}": never from the path, which a client
// can spell in endless ways. It works in handlers that are registered with the mux;
// around the mux, where no pattern is known yet, it returns an error.
//
// A pattern for a whole subtree, such as "/api/" or "/api/{rest...}", can lead to
// another router, whose routes would all share a key. So it is an error, unless the
// path is the subtree's own, or the limiter's handler is registered with the mux itself
// or through [http.StripPrefix] and the like, but not [http.TimeoutHandler]. So with such a pattern,
// put other middleware inside of the limiter. Routers that set r.Pattern, as ServeMux
// does, give their own patterns. If two of them repeat a pattern under different
// prefixes, join it with a [StaticKey] for each.
func PatternKey(r *http.Request) (string, error) {
	if r.Pattern == "" {
		return "", errors.New("ratelimit: PatternKey: the request has no pattern: " +
			"put the limiter around the handlers registered with a ServeMux, not around the ServeMux")
	}
	subtree := strings.HasSuffix(r.Pattern, "/") || strings.HasSuffix(r.Pattern, "...}")
	path := strings.IndexByte(r.Pattern, '/')                                                  // the pattern of a router may have none
	root := r.URL != nil && (r.URL.Path == "/" || path >= 0 && r.URL.Path == r.Pattern[path:]) // or as after StripPrefix
	if subtree && !root && !mountedInMux() {
		return "", fmt.Errorf("ratelimit: PatternKey: the pattern %q is for a whole subtree, and something stands between the ServeMux and the limiter: "+
			"if it is a router, all of its routes would share this key. Let it set r.Pattern, or register the limiter's handler with the ServeMux itself, "+
			"or use StaticKey if one key for all is right", r.Pattern)
	}
	return r.Pattern, nil
}

// StaticKey gives all requests the same key: one bucket for everybody. A limiter is
// not made if s is empty.
//
//go:noinline
func StaticKey(s string) KeyFunc {
	return func(r *http.Request) (string, error) {
		if r.RemoteAddr == probing {
			if s == "" {
				return "", &probe{err: errors.New("StaticKey(\"\"): no request would have a key: give it a text")}
			}
			return "", &probe{}
		}
		return s, nil
	}
}

// JoinKeys makes a key of the keys of all fns, for example per route and user.
// No two lists of keys give the same: ("a,b", "c") is `a\,b,c` and ("a", "b,c") is
// `a,b\,c`. The first error of fns is the error; [ErrExempt] exempts.
//
//go:noinline
func JoinKeys(fns ...KeyFunc) KeyFunc {
	return func(r *http.Request) (string, error) {
		if r.RemoteAddr == probing {
			return "", probeAll("JoinKeys", fns)
		}
		var b []byte
		for i, fn := range fns {
			key, err := fn(r)
			if err != nil {
				return "", err
			}
			if key == "" {
				return "", ErrNoKey
			}
			if i > 0 {
				b = append(b, ',')
			}
			for _, c := range []byte(key) {
				if c == ',' || c == '\\' {
					b = append(b, '\\')
				}
				b = append(b, c)
			}
		}
		return string(b), nil
	}
}

// FirstKey takes the key of the first of fns that has one: an API key, or otherwise
// the address. The key says which of them it is from, so that an API key that reads like
// an address is not that address: as "name=…" for functions with a name (see
// [NamedKey]), and otherwise by its position, as "0=…" or "1=…". Errors other than
// [ErrNoKey] are not passed over.
//
// A position changes if a function is added or removed before it, and with it every
// key and counter. An old counter can then be another function's. Names stay.
//
//go:noinline
func FirstKey(fns ...KeyFunc) KeyFunc {
	all := probeAll("FirstKey", fns)
	marks := make([]string, len(fns))
	for i, fn := range fns {
		marks[i] = cmp.Or(probeKey(fn).name, strconv.Itoa(i)) + "="
	}
	return func(r *http.Request) (string, error) {
		if r.RemoteAddr == probing {
			return "", all
		}
		if all.err != nil { // New has not seen it, inside of a function
			return "", fmt.Errorf("ratelimit: %w", all.err)
		}
		last := ErrNoKey
		for i, fn := range fns {
			key, err := fn(r)
			if err == nil && key != "" {
				return marks[i] + key, nil
			}
			if err != nil {
				if !errors.Is(err, ErrNoKey) {
					return "", err
				}
				last = err
			}
		}
		return "", last
	}
}

// NamedKey gives fn the name by which [FirstKey] marks its keys, instead of fn's
// position. Elsewhere it makes no difference. A limiter is not made if the name is
// empty, too long for a limiter's, has '=' or invisible characters, or is a number,
// or if two functions of a FirstKey have the same.
//
//go:noinline
func NamedKey(name string, fn KeyFunc) KeyFunc {
	return func(r *http.Request) (string, error) {
		if r.RemoteAddr == probing {
			p := probeAll("NamedKey", []KeyFunc{fn})
			p.name = name
			p.err = cmp.Or(validateMark(name), p.err)
			return "", p
		}
		return fn(r)
	}
}

func validateMark(name string) error {
	const what = "the name of a NamedKey"
	if err := validateName(what, name, false); err != nil {
		return err
	}
	if strings.Contains(name, "=") {
		return fmt.Errorf("%s is %q: it ends with a '=' in keys, so leave that out", what, name)
	}
	if strings.Trim(name, "0123456789") == "" {
		return fmt.Errorf("%s is %q, which is what the function at this position has without a name: use a word", what, name)
	}
	return nil
}

func init() {
	understandProbes(HeaderKey("x"), CookieKey("x"), StaticKey("x"), JoinKeys(), FirstKey(), NamedKey("x", nil))
}

// probeAll probes functions that what is made of.
func probeAll(what string, fns []KeyFunc) *probe {
	all := probe{usual: true}
	names := map[string]int{}
	for i, fn := range fns {
		if fn == nil {
			all.err = cmp.Or(all.err, fmt.Errorf("function %d of %s is nil", i+1, what))
			continue
		}
		p := probeKey(fn)
		all.checks = append(all.checks, p.checks...)
		all.usual = all.usual && (p.usual || len(p.checks) == 0)
		all.err = cmp.Or(all.err, p.err)
		if other := names[p.name]; p.name != "" && other > 0 && what == "FirstKey" {
			all.err = cmp.Or(all.err, fmt.Errorf("functions %d and %d of FirstKey have the same name %q: their keys would be one client's", other, i+1, p.name))
		}
		names[p.name] = i + 1
	}
	if len(fns) == 0 {
		all.err = fmt.Errorf("%s has no functions", what)
	}
	return &all
}
