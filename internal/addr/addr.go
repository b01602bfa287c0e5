// Package addr reads client addresses from connections and from the header fields
// in which proxies pass them on. It believes nothing that it cannot parse, and
// allocates nothing that grows with what it reads.
package addr

import (
	"iter"
	"net/netip"
	"strings"
)

// maxText is longer than any address with a port or a zone that is used in
// earnest. Longer text is not looked at.
const maxText = 96

// Parse reads an IP address, with or without a port: "192.0.2.1", "192.0.2.1:80",
// "2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:80". An IPv4 address in IPv6 form
// comes back as IPv4, and a zone is dropped: both are the same client.
func Parse(s string) (netip.Addr, bool) {
	s = strings.Trim(s, " \t")
	if len(s) > maxText || s == "" {
		return netip.Addr{}, false
	}
	host := s
	switch {
	case s[0] == '[' && s[len(s)-1] == ']':
		host = s[1 : len(s)-1]
		if !strings.Contains(host, ":") { // brackets are for IPv6
			return netip.Addr{}, false
		}
	case s[0] == '[', strings.Count(s, ":") == 1:
		ap, err := netip.ParseAddrPort(s)
		return canonical(ap.Addr()), err == nil
	}
	a, err := netip.ParseAddr(host)
	return canonical(a), err == nil
}

// IPv4Host returns the address of "192.0.2.1:80", as it stands there: the one form
// in which net/http writes an IPv4 peer. Of other forms it knows nothing.
func IPv4Host(s string) (string, bool) {
	n, digits, dots := uint(0), 0, 0
	for i := range len(s) {
		switch d := uint(s[i]) - '0'; {
		case d <= 9:
			if n = 10*n + d; n > 255 || digits > 0 && n < 10 { // too large, or begins with 0
				return "", false
			}
			digits++
		case digits == 0:
			return "", false
		case s[i] == '.' && dots < 3:
			n, digits, dots = 0, 0, dots+1
		default:
			return s[:i], s[i] == ':' && dots == 3 && isPort(s[i+1:])
		}
	}
	return "", false
}

func isPort(s string) bool {
	for i := range len(s) {
		if uint(s[i])-'0' > 9 {
			return false
		}
	}
	return s != "" && len(s) <= 5
}

// Covers reports whether text is an address or a network that a is, or is in.
func Covers(text string, a netip.Addr) bool {
	if strings.Contains(text, "/") {
		p, err := netip.ParsePrefix(text)
		return err == nil && p.Contains(a)
	}
	b, ok := Parse(text)
	return ok && a == b
}

func canonical(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// Client finds who a request comes from. The peer is whom the connection is from,
// or the zero Addr for a peer that is trusted and has no address; hops are what
// proxies have said, the nearest first. Each hop was vouched for by the one before
// it, so the walk ends at the first that is not trusted, and before the first that
// is no address. Client returns the zero Addr if that leaves nobody.
func Client(peer netip.Addr, trusted []netip.Prefix, hops iter.Seq[string]) netip.Addr {
	client := peer
	if peer.IsValid() && !contains(trusted, peer) {
		return client
	}
	for hop := range hops {
		a, ok := Parse(hop)
		if !ok {
			break
		}
		client = a
		if !contains(trusted, a) {
			break
		}
	}
	return client
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// ForwardedFor yields the members of X-Forwarded-For, over all of its lines from
// the last to the first. An empty member is yielded too: it is a hop that nothing
// is known of, and not one to step over.
func ForwardedFor(lines []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := len(lines) - 1; i >= 0; i-- {
			line := lines[i]
			for {
				comma := strings.LastIndexByte(line, ',')
				if !yield(line[comma+1:]) {
					return
				}
				if comma < 0 {
					break
				}
				line = line[:comma]
			}
		}
	}
}

// Single yields the value of a header that is to have one line with one address,
// and something that is no address if it has several lines.
func Single(lines []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		switch len(lines) {
		case 0:
		case 1:
			yield(lines[0])
		default:
			yield("")
		}
	}
}
