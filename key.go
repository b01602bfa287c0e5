package ratelimit

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"strconv"

	"github.com/ratelimit-go/ratelimit/internal/addr"
)

// KeyFunc tells who is being limited by a request. Requests with the same key
// share counters. It may be called from any number of goroutines.
//
// A request that cannot be attributed gets an error: [ErrNoKey], or one that
// wraps it, is answered with 400; so is an empty key. [ErrExempt] lets the request
// through without counting it. Any other error is answered with 500 and logged,
// so its text should not contain what the client has sent.
type KeyFunc func(*http.Request) (string, error)

var (
	// ErrNoKey means that there is nothing to tell the client by: it is refused,
	// and neither let through nor put into one bucket with all others.
	ErrNoKey = errors.New("ratelimit: the request has no key")

	// ErrExempt is returned by a KeyFunc for a request that is not to be limited.
	ErrExempt = errors.New("ratelimit: the request is exempt")
)

// ClientIP makes keys from the client's address. IPv4 addresses count one by one
// and IPv6 addresses by their /64, the least that one customer of a network is
// given (RFC 6177), as 2001:db8:1:2::/64. An IPv4 address in IPv6 form is that IPv4
// address; zones and ports are ignored.
//
// The zero ClientIP believes the connection alone. Behind a proxy that is the
// proxy's address: name the proxies whose word is to be taken.
type ClientIP struct {
	// TrustedProxies are the networks of one's own proxies. Where the
	// connection comes from one of them, Header is read from the right, skipping
	// trusted addresses: the first other one is the client. What cannot be
	// parsed ends the search, at the last address that a trusted proxy vouched
	// for: the connection's own where the header is absent, the leftmost where all
	// are trusted. A peer on a unix socket is trusted if any network is.
	//
	// A network of all addresses is refused: it would believe everybody.
	TrustedProxies []netip.Prefix

	// Header is the field that the proxies write. Empty means X-Forwarded-For,
	// of which all lines are read as one list; "Forwarded" is read as in RFC 7239;
	// any other, such as CF-Connecting-IP, is to have one line with one address.
	// The proxies must overwrite such a field, or a client could write it.
	Header string

	IPv4Prefix int // bits that tell clients apart; 0 means 32
	IPv6Prefix int // bits that tell clients apart; 0 means 64
}

// Key is a [KeyFunc]: it returns the client's address or network as text. Its error
// is [ErrNoKey] where there is none, as on a unix socket without a trusted proxy's
// word, and another one if the settings are not valid, which [New] finds too.
func (c ClientIP) Key(r *http.Request) (string, error) {
	if r.RemoteAddr == probing {
		return "", &probe{byAddress: true, noProxies: len(c.TrustedProxies) == 0, err: c.validate()}
	}
	if err := c.validate(); err != nil {
		return "", fmt.Errorf("ratelimit: %w", err)
	}
	var client netip.Addr
	unix := isUnix(r)
	if !unix { // where RemoteAddr is a name that the peer has chosen
		if len(c.TrustedProxies) == 0 && (c.IPv4Prefix == 0 || c.IPv4Prefix == 32) {
			// The usual connection: its address stands there as it is to be written.
			if host, ok := addr.IPv4Host(r.RemoteAddr); ok {
				return host, nil
			}
		}
		client, _ = addr.Parse(r.RemoteAddr)
	}
	if len(c.TrustedProxies) > 0 && (unix || client.IsValid()) {
		client = addr.Client(client, c.TrustedProxies, c.hops(r.Header))
	}
	if !client.IsValid() {
		return "", errNoAddress
	}
	return c.key(client), nil
}

var errNoAddress = fmt.Errorf("%w: the connection has no IP address", ErrNoKey)

func (c ClientIP) validate() error {
	if c.Header != "" && len(c.TrustedProxies) == 0 {
		return fmt.Errorf("ClientIP.Header is %q, and no proxy is trusted to write it: set ClientIP.TrustedProxies", c.Header)
	}
	for i := range len(c.Header) {
		if b := c.Header[i]; b <= ' ' || b >= 0x7f || b == ':' {
			return fmt.Errorf("ClientIP.Header is %q, which is no header's name", c.Header)
		}
	}
	for _, p := range c.TrustedProxies {
		if !p.IsValid() {
			return errors.New("ClientIP.TrustedProxies has an invalid network: use netip.ParsePrefix and check its error")
		}
		if p.Addr().Is4In6() {
			return fmt.Errorf("ClientIP.TrustedProxies has %v: write it as the IPv4 network that it is, because addresses are compared as IPv4", p)
		}
		if p.Bits() < 7 || p.Addr().Is4() && p.Bits() < 8 { // the largest private networks are fc00::/7 and 10.0.0.0/8
			return fmt.Errorf("ClientIP.TrustedProxies has %v: it trusts every client to name its own address; "+
				"name the networks of your proxies", p)
		}
	}
	if b := c.IPv4Prefix; b < 0 || b > 32 {
		return fmt.Errorf("ClientIP.IPv4Prefix is %d: want 1 to 32, or 0 for 32", b)
	}
	if b := c.IPv6Prefix; b < 0 || b > 128 {
		return fmt.Errorf("ClientIP.IPv6Prefix is %d: want 1 to 128, or 0 for 64", b)
	}
	return nil
}

func (c ClientIP) hops(h http.Header) func(func(string) bool) {
	switch name := http.CanonicalHeaderKey(c.Header); name {
	case "", "X-Forwarded-For":
		return addr.ForwardedFor(h["X-Forwarded-For"])
	case "Forwarded":
		return addr.Forwarded(h[name])
	default:
		return addr.Single(h[name])
	}
}

// isUnix reports whether the request came over a unix socket, whose peers have no
// address that could be parsed.
func isUnix(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return r.RemoteAddr == "@" || local != nil && local.Network() == "unix"
}

func (c ClientIP) key(client netip.Addr) string {
	bits, all := c.IPv4Prefix, 32
	if client.Is6() {
		bits, all = c.IPv6Prefix, 128
		if bits == 0 {
			bits = 64
		}
	}
	if bits == 0 || bits == all {
		return client.String()
	}
	return netip.PrefixFrom(client, bits).Masked().String()
}

// HeaderKey makes keys from a request header, such as X-API-Key. A request where it
// is absent, empty, or there twice has no key.
//
// A client can write any value, and a new value is a new key: check the key before
// the limiter, or limit by address as well.
func HeaderKey(name string) KeyFunc {
	canonical := http.CanonicalHeaderKey(name)
	noKey := fmt.Errorf("%w: want one header %s", ErrNoKey, canonical)
	return func(r *http.Request) (string, error) {
		if v := r.Header[canonical]; len(v) == 1 && v[0] != "" {
			return v[0], nil
		}
		return "", noKey
	}
}

// CookieKey makes keys from a cookie. A request where it is absent, empty, or there
// twice has no key. As with [HeaderKey], a client can write any value.
func CookieKey(name string) KeyFunc {
	noKey := fmt.Errorf("%w: want one cookie %s", ErrNoKey, name)
	return func(r *http.Request) (string, error) {
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
func PatternKey(r *http.Request) (string, error) {
	if r.Pattern == "" {
		return "", errors.New("ratelimit: PatternKey: the request has no pattern: " +
			"put the limiter around the handlers registered with a ServeMux, not around the ServeMux")
	}
	return r.Pattern, nil
}

// StaticKey gives all requests the same key: one bucket for everybody.
func StaticKey(s string) KeyFunc {
	return func(*http.Request) (string, error) { return s, nil }
}

// JoinKeys makes a key of the keys of all fns, for limits per route and user, say.
// No two lists of keys give the same: ("a,b", "c") is `a\,b,c` and ("a", "b,c") is
// `a,b\,c`. The first error of fns is the error; [ErrExempt] exempts.
//
//go:noinline
func JoinKeys(fns ...KeyFunc) KeyFunc {
	return func(r *http.Request) (string, error) {
		if r.RemoteAddr == probing {
			return "", probeAll(fns)
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

// FirstKey takes the key of the first of fns that has one: an API key, else the
// address. The key says which of them it is from, as "0=…" or "1=…": an API key
// that reads like an address is not that address. Errors other than [ErrNoKey]
// are not passed over.
//
//go:noinline
func FirstKey(fns ...KeyFunc) KeyFunc {
	return func(r *http.Request) (string, error) {
		if r.RemoteAddr == probing {
			return "", probeAll(fns)
		}
		last := ErrNoKey
		for i, fn := range fns {
			key, err := fn(r)
			if err == nil && key != "" {
				return strconv.Itoa(i) + "=" + key, nil
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

// A probe asks the key functions of this package what they are made of, so that a
// wrong setting is found when a limiter is made and not with its first request. Of
// other functions nothing is known, and they are not called for it.
type probe struct {
	byAddress bool // a ClientIP is among them
	noProxies bool // that trusts no proxy
	err       error
}

func (*probe) Error() string { return "ratelimit: a probe is no request" }

// probing is the RemoteAddr of the request that is a probe. No connection has it.
const probing = "\x00probe"

func probeKey(fn KeyFunc) probe {
	switch reflect.ValueOf(fn).Pointer() {
	case codeClientIP, codeJoinKeys, codeFirstKey:
		_, err := fn(&http.Request{RemoteAddr: probing})
		if p, ok := err.(*probe); ok {
			return *p
		}
	}
	return probe{}
}

// The code of those functions, whatever they are closed over. JoinKeys and FirstKey
// are not inlined, which would give their closures other code at each place.
var codeClientIP, codeJoinKeys, codeFirstKey uintptr

func init() {
	codeClientIP = reflect.ValueOf(ClientIP{}.Key).Pointer()
	codeJoinKeys = reflect.ValueOf(JoinKeys()).Pointer()
	codeFirstKey = reflect.ValueOf(FirstKey()).Pointer()
}

func probeAll(fns []KeyFunc) *probe {
	var all probe
	for i, fn := range fns {
		if fn == nil {
			all.err = cmp.Or(all.err, fmt.Errorf("function %d of JoinKeys or FirstKey is nil", i+1))
			continue
		}
		p := probeKey(fn)
		all.byAddress = all.byAddress || p.byAddress
		all.noProxies = all.noProxies || p.noProxies
		all.err = cmp.Or(all.err, p.err)
	}
	if len(fns) == 0 {
		all.err = errors.New("JoinKeys or FirstKey has no functions")
	}
	return &all
}
