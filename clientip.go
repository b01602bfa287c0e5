package ratelimit

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/ratelimit-go/ratelimit/internal/addr"
)

// ClientIP makes keys from the client's address. IPv4 addresses count one by one
// and IPv6 addresses by their /64, the least that one customer of a network is
// given (RFC 6177), as 2001:db8:1:2::/64. An IPv4 address in IPv6 form, as mapped or
// as translated by NAT64 (RFC 6052), is that IPv4 address; zones and ports are ignored.
//
// The zero ClientIP trusts the connection alone. Behind a proxy that is the proxy's
// address: set TrustedProxies, or TrustedHops if its addresses change. See docs/keys.md
// for the settings behind each proxy.
type ClientIP struct {
	// TrustedProxies are the networks of one's own proxies. Where the
	// connection comes from one of them, Header is read from the right, skipping
	// trusted addresses: the first other one is the client. What cannot be
	// parsed ends the search, at the last address that a trusted proxy vouched
	// for: the connection's own where the header is absent, the leftmost where all
	// are trusted. [CodeUnreadableAddress] is logged then. A peer on a unix socket
	// is trusted if any network is.
	//
	// A network of all addresses is refused: it would trust everybody.
	TrustedProxies []netip.Prefix

	// TrustedHops is for proxies whose addresses change, such as a CDN and a load
	// balancer. It is how many of them are in front, at most 32: 1 for a load
	// balancer alone, 2 for a CDN before it. The client is then the one that the first
	// of them has named: that many members from the right of Header. (A proxy that adds
	// two members counts as two, see docs/keys.md.) If there are fewer, or that one
	// cannot be parsed, it is the connection's own address, and [CodeTooFewHops] or
	// [CodeUnreadableAddress] is logged. TrustedProxies must be empty.
	//
	// A client that can reach the server, or one of the proxies, without passing
	// those before it, can choose its key. Let each accept connections from the
	// one before it alone.
	TrustedHops int

	// Header is the field that the proxies write. Empty means X-Forwarded-For,
	// of which all lines are read as one list; "Forwarded" is read as in RFC 7239.
	// Other fields must have one line with one address, and the proxies must
	// overwrite them, or a client could write them. Those that are known are in
	// docs/keys.md, among them X-Real-IP, CF-Connecting-IP, True-Client-IP and
	// CloudFront-Viewer-Address. Others are refused, because a field that looks like
	// an address can have another format.
	Header string

	IPv4Prefix int // bits of the address that are in the key, at least 8; 0 means 32
	IPv6Prefix int // bits of the address that are in the key, at least 16; 0 means 64
}

// Key is a [KeyFunc]: it returns the client's address or network as text. Its error
// is [ErrNoKey] where there is none, as on a unix socket without a trusted proxy's
// word, and another one if the settings are not valid, which [New] finds too.
func (c ClientIP) Key(r *http.Request) (string, error) {
	if r.RemoteAddr == probing {
		return "", c.probe()
	}
	if err := c.validate(); err != nil {
		return "", fmt.Errorf("ratelimit: %w", err)
	}
	if len(c.TrustedProxies) == 0 && c.TrustedHops == 0 && (c.IPv4Prefix == 0 || c.IPv4Prefix == 32) && !isUnix(r) {
		// The usual connection: RemoteAddr has its address in the form of a key.
		if host, ok := addr.IPv4Host(r.RemoteAddr); ok {
			return host, nil
		}
	}
	client, _ := c.find(r)
	if !client.IsValid() {
		return "", errNoAddress
	}
	return c.key(client), nil
}

func (c ClientIP) probe() *probe {
	return &probe{checks: []func(*http.Request, string) (warning, bool){c.mistake}, usual: c.Header == "", err: c.validate()}
}

var errNoAddress = fmt.Errorf("%w: the connection has no IP address", ErrNoKey)

// find returns the client's address, which is not valid if there is none, and how it
// was found.
func (c ClientIP) find(r *http.Request) (client netip.Addr, found addr.Found) {
	unix := isUnix(r)
	if !unix { // otherwise RemoteAddr is a name that the peer has chosen
		client, _ = addr.Parse(r.RemoteAddr)
	}
	trusting := len(c.TrustedProxies) > 0 || c.TrustedHops > 0
	if !trusting || !unix && !client.IsValid() {
		return client, addr.Direct
	}
	name := c.header()
	if c.TrustedHops > 0 {
		return addr.ClientBehind(client, c.TrustedHops, headers[name], r.Header[name])
	}
	return addr.Client(client, c.TrustedProxies, headers[name], r.Header[name])
}

// header is the canonical name of the field that is read.
func (c ClientIP) header() string {
	if c.Header == "" {
		return "X-Forwarded-For"
	}
	return http.CanonicalHeaderKey(c.Header)
}

// headers are the fields that proxies are known to write, and how each is read.
// docs/keys.md has where their makers say so, and what to switch on.
var headers = map[string]addr.Format{
	"X-Forwarded-For": addr.ForwardedFor,
	"Forwarded":       addr.Forwarded,

	"Ali-Cdn-Real-Ip":           addr.Single, // Alibaba Cloud
	"Cf-Connecting-Ip":          addr.Single, // Cloudflare
	"Do-Connecting-Ip":          addr.Single, // DigitalOcean
	"Eo-Connecting-Ip":          addr.Single, // Tencent EdgeOne
	"Fastly-Client-Ip":          addr.Single, // Fastly
	"Fly-Client-Ip":             addr.Single, // Fly.io
	"Incap-Client-Ip":           addr.Single, // Imperva
	"True-Client-Ip":            addr.Single, // Cloudflare, Akamai
	"X-Appengine-User-Ip":       addr.Single, // App Engine
	"X-Azure-Socketip":          addr.Single, // Azure Front Door
	"X-Client-Ip":               addr.Single, // one's own proxies
	"X-Cluster-Client-Ip":       addr.Single, // one's own proxies
	"X-Envoy-External-Address":  addr.Single, // Envoy
	"X-Nf-Client-Connection-Ip": addr.Single, // Netlify
	"X-Real-Ip":                 addr.Single, // nginx, Traefik, Vercel, and one's own
	"X-Sucuri-Clientip":         addr.Single, // Sucuri
	"X-Vercel-Forwarded-For":    addr.Single, // Vercel

	"Cloudfront-Viewer-Address": addr.SingleWithPort, // Amazon CloudFront
}

// chosenByClients are fields that look like the client's address and are what the
// client says, with what to use instead.
var chosenByClients = map[string]string{
	"X-Azure-Clientip":         "Azure Front Door takes it from what the client has sent: use X-Azure-SocketIP",
	"X-Original-Forwarded-For": "it is what the client has sent: use X-Forwarded-For",
	"Cf-Connecting-Ipv6":       "Cloudflare sends it in one mode alone, and otherwise the client can: use CF-Connecting-IP",
	"Cf-Pseudo-Ipv4":           "it is no address of the client: use CF-Connecting-IP",
}

const maxHops = 32 // as many elements as are read of Forwarded

func (c ClientIP) validate() error {
	switch {
	case c.TrustedHops < 0 || c.TrustedHops > maxHops:
		return fmt.Errorf("ClientIP.TrustedHops is %d: want 1 to %d, or 0 for none", c.TrustedHops, maxHops)
	case c.TrustedHops > 0 && len(c.TrustedProxies) > 0:
		return fmt.Errorf("ClientIP.TrustedHops is %d, and ClientIP.TrustedProxies has %v: "+
			"set TrustedProxies if the proxies' networks are known, and otherwise TrustedHops", c.TrustedHops, c.TrustedProxies)
	case c.Header != "" && c.TrustedHops == 0 && len(c.TrustedProxies) == 0:
		return fmt.Errorf("ClientIP.Header is %q, and no proxy is trusted to write it: set ClientIP.TrustedProxies or TrustedHops", c.Header)
	case c.Header != "" && chosenByClients[c.header()] != "":
		return fmt.Errorf("ClientIP.Header is %q: %s", c.Header, chosenByClients[c.header()])
	case c.Header != "" && headers[c.header()] == addr.Unknown:
		return fmt.Errorf("ClientIP.Header is %q, and it is not known how an address is written there: "+
			"let the proxy write X-Real-IP, or use a KeyFunc of your own. Known are %s",
			c.Header, strings.Join(slices.Sorted(maps.Keys(headers)), ", "))
	}
	for _, p := range c.TrustedProxies {
		if !p.IsValid() {
			return errors.New("ClientIP.TrustedProxies has an invalid network: use netip.ParsePrefix and check its error")
		}
		if p.Addr().Is4In6() {
			return fmt.Errorf("ClientIP.TrustedProxies has %v: write it as the IPv4 network that it is, because addresses are compared as IPv4", p)
		}
		if addr.NAT64.Contains(p.Addr()) {
			return fmt.Errorf("ClientIP.TrustedProxies has %v: write it as the IPv4 network inside, because addresses are compared as IPv4", p)
		}
		if p.Bits() < 7 || p.Addr().Is4() && p.Bits() < 8 { // the largest private networks are fc00::/7 and 10.0.0.0/8
			return fmt.Errorf("ClientIP.TrustedProxies has %v: it trusts every client to name its own address; "+
				"name the networks of your proxies", p)
		}
	}
	// Those are the largest blocks that one network holds, such as 17.0.0.0/8 and
	// 2630::/16. Clients of different networks must not share a key.
	if b := c.IPv4Prefix; b != 0 && (b < 8 || b > 32) {
		return fmt.Errorf("ClientIP.IPv4Prefix is %d: want 8 to 32, or 0 for 32", b)
	}
	if b := c.IPv6Prefix; b != 0 && (b < 16 || b > 128) {
		return fmt.Errorf("ClientIP.IPv6Prefix is %d: want 16 to 128, or 0 for 64", b)
	}
	return nil
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
	if client.Is6() && bits == 64 {
		return addr.Network64(client)
	}
	return netip.PrefixFrom(client, bits).Masked().String()
}

// mistake looks for a proxy whose clients all share one key.
func (c *ClientIP) mistake(r *http.Request, key string) (w warning, found bool) {
	if !hasForwarding(r.Header) && (c.Header == "" || r.Header[c.header()] == nil) {
		return 0, false
	}
	switch client, how := c.find(r); how {
	case addr.Named:
		return warnTooManyHops, c.TrustedHops > 0 && c.passedMore(r, client)
	case addr.Unreadable:
		return warnUnreadableAddress, true
	case addr.TooFew:
		return warnTooFewHops, true
	case addr.Direct:
		return warnUntrustedProxy, true
	default: // unless another function has found another key
		return warnUntrustedProxy, client.IsValid() && strings.Contains(key, c.key(client))
	}
}

// passedMore reports whether a request has passed more proxies than TrustedHops: the
// address that was found is inside of a network, and the next one is not.
func (c *ClientIP) passedMore(r *http.Request, client netip.Addr) bool {
	if !isInside(client) {
		return false
	}
	next := *c
	next.TrustedHops++
	outside, how := next.find(r)
	return how == addr.Named && outside != client && !isInside(outside)
}

// isInside reports whether an address is none of the internet's (RFC 1918, 4193, 6598).
func isInside(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || carrierNAT.Contains(a)
}

var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

func init() { understandProbes(ClientIP{}.Key) }
