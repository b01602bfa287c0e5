// Package addr reads client addresses from connections and from the header fields
// in which proxies pass them on. It ignores whatever it cannot parse. It
// allocates no memory that grows with its input. forwarded.go parses the
// Forwarded header; everything else is in addr.go.
package addr

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// maxText is longer than any address with a port or a zone in practice. Longer
// text is rejected without parsing.
const maxText = 96

// Parse reads an IP address, with or without a port: "192.0.2.1", "192.0.2.1:80",
// "2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:80". Brackets are also allowed
// around an IPv4 address. Several forms of one client's address give the same
// result: see canonical.
func Parse(s string) (netip.Addr, bool) {
	s = strings.Trim(s, " \t")
	if len(s) > maxText || s == "" {
		return netip.Addr{}, false
	}
	host := s
	if s[0] == '[' {
		inside, after, ok := strings.Cut(s[1:], "]")
		if !ok || after != "" && !isPort(after) {
			return netip.Addr{}, false
		}
		host = inside
	} else if strings.Count(s, ":") == 1 { // an IPv6 address has more
		colon := strings.IndexByte(s, ':')
		if !isPort(s[colon:]) {
			return netip.Addr{}, false
		}
		host = s[:colon]
	}
	a, err := netip.ParseAddr(host)
	return canonical(a), err == nil
}

// IPv4Host returns the address part of text such as "192.0.2.1:80", which is how
// net/http writes an IPv4 peer. For any other form it returns false.
func IPv4Host(s string) (string, bool) {
	i := 0
	for range 3 {
		if i = afterOctet(s, i); i >= len(s) || s[i] != '.' {
			return "", false
		}
		i++
	}
	if i = afterOctet(s, i); i >= len(s) || !isPort(s[i:]) {
		return "", false
	}
	return s[:i], true
}

// afterOctet returns the index after the number from 0 to 255 that begins at s[i], or
// len(s) if there is none. A number that begins with 0 ends there, and no number has more
// than three digits, so the caller finds a digit where it expects a dot or a colon.
func afterOctet(s string, i int) int {
	n := uint(0)
	for end := min(i+3, len(s)); i < end; i++ {
		digit := uint(s[i]) - '0'
		if digit > 9 {
			break
		}
		n = 10*n + digit
		if n == 0 {
			return i + 1
		}
	}
	if n == 0 || n > 255 {
		return len(s)
	}
	return i
}

// isPort reports whether s is a colon and a port.
func isPort(s string) bool {
	if len(s) < 2 || len(s) > len(":65535") || s[0] != ':' {
		return false
	}
	port := uint(0)
	for i := 1; i < len(s); i++ {
		digit := uint(s[i]) - '0'
		if digit > 9 {
			return false
		}
		port = 10*port + digit
	}
	return port <= 65535
}

// NAT64 is the prefix under which translators write IPv4 addresses (RFC 6052, section
// 2.1). On a server that only has IPv6, all IPv4 clients are in one /64 of it.
var NAT64 = netip.MustParsePrefix("64:ff9b::/96")

// canonical returns the same address for all forms of it. An IPv4 address in IPv6
// form, mapped or translated by NAT64, becomes the IPv4 address. A zone is removed. No
// private address is translated (RFC 6052, section 3.1): it could be a trusted one.
func canonical(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if NAT64.Contains(a) {
		bytes := a.As16()
		if inside := netip.AddrFrom4([4]byte(bytes[12:])); inside.IsGlobalUnicast() && !inside.IsPrivate() {
			return inside
		}
	}
	return a
}

// Network64 returns the /64 of an IPv6 address as package netip writes it, such as
// "2001:db8:1:2::/64". It is a fifth of the work of netip's String, because all that has
// to be written is the first four groups: the zeros of the other four are the longest run
// of zeros, so they are written as "::", with any zeros just before them.
func Network64(a netip.Addr) string {
	bytes := a.As16()
	groups := binary.BigEndian.Uint64(bytes[:8])
	var buf [len("ffff:ffff:ffff:ffff::/64")]byte
	b := buf[:0]
	for shift := 48; groups<<(48-shift) != 0; shift -= 16 {
		if shift < 48 {
			b = append(b, ':')
		}
		group := uint16(groups >> shift)
		for digit := 12; digit >= 0; digit -= 4 {
			if digit == 0 || group>>digit != 0 { // no leading zeros
				b = append(b, "0123456789abcdef"[group>>digit&0xf])
			}
		}
	}
	return string(append(b, "::/64"...))
}

// Found says how the address of a client was found.
type Found uint8

const (
	Direct     Found = iota // the connection's own address, because no proxy is trusted
	Untrusted               // the connection's own address, because it is not from a trusted proxy
	Silent                  // the connection is from a trusted proxy, which has named no client
	Named                   // a trusted proxy has named it
	Unreadable              // the next value in the header is not an address: this is the last address before it, or the connection's own
	TooFew                  // the connection's own address, because fewer proxies than expected have named a client
)

// Client finds the client that a request comes from. peer is the address of the
// connection, or the zero Addr for a peer that is trusted and has no address. lines
// are the values of the header field. Each hop was reported by the hop before it,
// starting with the nearest. So Client stops at the first hop that is not trusted,
// and before the first hop that is not an address. It returns the zero Addr if that
// leaves no address.
func Client(peer netip.Addr, trusted []netip.Prefix, f Format, lines []string) (netip.Addr, Found) {
	if peer.IsValid() && !contains(trusted, peer) {
		return peer, Untrusted
	}
	client, found := peer, Silent
	f.walk(lines, func(hop string) (more bool) {
		a, ok := Parse(hop)
		if !ok {
			found = Unreadable
			return false
		}
		client, found = a, Named
		return contains(trusted, a)
	})
	return client, found
}

// ClientBehind finds the client that a request comes from if n proxies are in front,
// whatever their addresses are. It takes the nth hop, counted from the nearest: the
// most distant proxy has added it. If there are fewer hops, or the nth is not an
// address, the result is peer. In a format with one address, the most distant proxy
// sets it and the others leave it unchanged, so n does not matter.
func ClientBehind(peer netip.Addr, n int, f Format, lines []string) (netip.Addr, Found) {
	client, found := peer, Silent
	if f == Single || f == SingleWithPort {
		n = 1
	}
	f.walk(lines, func(hop string) (more bool) {
		if found = TooFew; n > 1 {
			n--
			return true
		}
		found = Unreadable
		if a, ok := Parse(hop); ok {
			client, found = a, Named
		}
		return false
	})
	return client, found
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Format is how proxies write addresses into a header field.
type Format uint8

const (
	Unknown        Format = iota
	ForwardedFor          // a list to which each proxy adds, such as X-Forwarded-For
	Forwarded             // RFC 7239
	Single                // one line with one address
	SingleWithPort        // the same with a port after it, also for an IPv6 address without brackets: "2001:db8::1:443"
)

// walk calls visit with what each proxy has reported, the nearest proxy first,
// until visit returns false. It allocates nothing.
func (f Format) walk(lines []string, visit func(hop string) (more bool)) {
	switch f {
	case ForwardedFor:
		forwardedFor(lines, visit)
	case Forwarded:
		forwarded(lines, visit)
	case Single:
		single(lines, visit)
	case SingleWithPort:
		single(lines, func(line string) bool {
			line = strings.Trim(line, " \t")
			if colon := strings.LastIndexByte(line, ':'); colon >= 0 && isPort(line[colon:]) {
				return visit(line[:colon])
			}
			return visit("")
		})
	}
}

// forwardedFor visits the members of X-Forwarded-For, over all lines from the last to
// the first. It does not skip an empty member, because that is a hop whose address is
// unknown.
func forwardedFor(lines []string, visit func(string) bool) {
	for i := len(lines) - 1; i >= 0; i-- {
		line := lines[i]
		for {
			comma := strings.LastIndexByte(line, ',')
			if !visit(line[comma+1:]) {
				return
			}
			if comma < 0 {
				break
			}
			line = line[:comma]
		}
	}
}

// single visits the value of a header that must have one line with one address. If
// there are several lines, it visits "", which is not an address.
func single(lines []string, visit func(string) bool) {
	switch len(lines) {
	case 0:
	case 1:
		visit(lines[0])
	default:
		visit("")
	}
}
