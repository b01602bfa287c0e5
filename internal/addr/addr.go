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
	i := 0
	for part := range 4 {
		n, start := 0, i
		for ; i < len(s) && s[i] >= '0' && s[i] <= '9' && i-start < 3; i++ {
			n = 10*n + int(s[i]-'0')
		}
		if i == start || n > 255 || s[start] == '0' && i-start > 1 {
			return "", false
		}
		if i == len(s) || part < 3 && s[i] != '.' || part == 3 && s[i] != ':' {
			return "", false
		}
		i++
	}
	host, port := s[:i-1], s[i:]
	for j := range len(port) {
		if port[j] < '0' || port[j] > '9' {
			return "", false
		}
	}
	return host, port != "" && len(port) <= 5
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
