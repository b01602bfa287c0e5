package addr_test

import (
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/addr"
)

func TestParse(t *testing.T) {
	for _, test := range []struct{ in, want string }{ // no want: not an address
		{"192.0.2.1", "192.0.2.1"},
		{"192.0.2.1:80", "192.0.2.1"},
		{"192.0.2.1:0", "192.0.2.1"},
		{" \t192.0.2.1\t ", "192.0.2.1"},
		{"2001:db8::1", "2001:db8::1"},
		{"2001:DB8:0:0:0:0:0:1", "2001:db8::1"},
		{"[2001:db8::1]", "2001:db8::1"},
		{"[2001:db8::1]:80", "2001:db8::1"},
		{"::1", "::1"},
		{"::", "::"},
		{"fe80::1%eth0", "fe80::1"},
		{"[fe80::1%eth0]", "fe80::1"},
		{"[fe80::1%eth0]:80", "fe80::1"},
		{"::ffff:192.0.2.1", "192.0.2.1"},
		{"::FFFF:c000:201", "192.0.2.1"},
		{"[::ffff:192.0.2.1]", "192.0.2.1"},
		{"[::ffff:192.0.2.1]:80", "192.0.2.1"},
		{"64:ff9b::192.0.2.1", "192.0.2.1"},
		{"[64:ff9b::c000:201]:80", "192.0.2.1"},
		{"64:ff9b::10.0.0.1", "64:ff9b::a00:1"},
		{"64:ff9b::127.0.0.1", "64:ff9b::7f00:1"},
		{"64:ff9b::1:c000:201", "64:ff9b::1:c000:201"},  // not in the /96
		{"64:ff9b:1::192.0.2.1", "64:ff9b:1::c000:201"}, // of local use (RFC 8215), where the form is not known
		{"[192.0.2.1]", "192.0.2.1"},
		{"[192.0.2.1]:80", "192.0.2.1"},

		{"", ""},
		{" ", ""},
		{"\n192.0.2.1", ""},
		{"192.0.2.1\x00", ""},
		{"192.0.2", ""},
		{"192.0.2.1.1", ""},
		{"192.0.2.256", ""},
		{"192.0.2.01", ""},
		{"0300.0.2.1", ""},
		{"0xc0.0.2.1", ""},
		{"3221225985", ""},
		{"192.0.2.1:", ""},
		{"192.0.2.1:80:80", ""},
		{"192.0.2.1:65536", ""},
		{"192.0.2.1:-1", ""},
		{"192.0.2.1:http", ""},
		{"192.0.2.1/32", ""},
		{"192.0.2.1, 192.0.2.2", ""},
		{"192.0.2.1 192.0.2.2", ""},
		{"[192.0.2.1]80", ""},
		{"[192.0.2.1]:", ""},
		{"[192.0.2.1:80]", ""},
		{"[]", ""},
		{"[", ""},
		{"]", ""},
		{"[]:80", ""},
		{"[2001:db8::1", ""},
		{"2001:db8::1]", ""},
		{"[[2001:db8::1]]", ""},
		{"[2001:db8::1]80", ""},
		{"[2001:db8::1]:", ""},
		{"[2001:db8::1]:80]", ""},
		{"2001:db8:::1", ""},
		{"1:2:3:4:5:6:7:8:9", ""},
		{"fe80::1%", ""},
		{"::ffff:192.0.2.1%eth0", "192.0.2.1"},
		{"localhost", ""},
		{"localhost:80", ""},
		{"unknown", ""},
		{"_hidden", ""},
		{":80", ""},
		{"@", ""},
		{"/run/app.sock", ""},
		{"fe80::1%" + strings.Repeat("z", 1000), ""},
		{strings.Repeat(" ", 1000) + "192.0.2.1", "192.0.2.1"},
	} {
		got, ok := addr.Parse(test.in)
		if want, _ := netip.ParseAddr(test.want); got != want || ok != (test.want != "") {
			t.Errorf("%q: %v %t, want %q", test.in, got, ok, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"192.0.2.1", "192.0.2.1:80", "[2001:db8::1]:80", "fe80::1%eth0", "::ffff:192.0.2.1", " [::1]\t", "[192.0.2.1]:80", "@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, ok := addr.Parse(s)
		if ok != a.IsValid() {
			t.Fatalf("%q: %v, %t", s, a, ok)
		}
		if !ok {
			return
		}
		if a.Is4In6() || a.Zone() != "" {
			t.Errorf("%q: %v is one of several forms of an address", s, a)
		}
		for _, form := range []string{"[" + a.String() + "]:80", a.String(), netip.AddrPortFrom(a, 80).String(), " " + a.String() + "\t", netip.AddrFrom16(a.As16()).String(), a.StringExpanded()} {
			if b, ok := addr.Parse(form); !ok || a != b {
				t.Errorf("%q is %v, and as %q %v", s, a, form, b)
			}
		}
	})
}

// networks reads trusted networks, separated by spaces.
func networks(s string) (list []netip.Prefix) {
	for _, one := range strings.Fields(s) {
		list = append(list, netip.MustParsePrefix(one))
	}
	return list
}

// forwardedFor writes hops, the nearest first, separated by |, as X-Forwarded-For.
func forwardedFor(hops string) (lines []string) {
	if hops == "" {
		return nil
	}
	members := strings.Split(hops, "|")
	slices.Reverse(members)
	return []string{strings.Join(members, ",")}
}

func TestClient(t *testing.T) {
	const trusted = "10.0.0.0/8 fd00::/8"
	for _, test := range []struct {
		name, peer, hops, want string // hops, the nearest first, are separated by |
		found                  addr.Found
	}{
		{"an untrusted peer says nothing", "192.0.2.1", "198.51.100.1", "192.0.2.1", addr.Untrusted},
		{"a trusted peer without hops", "10.0.0.1", "", "10.0.0.1", addr.Silent},
		{"one hop", "10.0.0.1", "198.51.100.1", "198.51.100.1", addr.Named},
		{"what is further away is hearsay", "10.0.0.1", "198.51.100.1|203.0.113.1", "198.51.100.1", addr.Named},
		{"trusted hops are passed over", "10.0.0.1", "10.0.0.2|fd00::3|198.51.100.1|203.0.113.1", "198.51.100.1", addr.Named},
		{"all are trusted: the furthest", "10.0.0.1", "10.0.0.2|10.0.0.3", "10.0.0.3", addr.Named},
		{"no address: the one who said so", "10.0.0.1", "unknown|203.0.113.1", "10.0.0.1", addr.Unreadable},
		{"no address behind a trusted hop", "10.0.0.1", "10.0.0.2|unknown|203.0.113.1", "10.0.0.2", addr.Unreadable},
		{"nothing said", "10.0.0.1", " |203.0.113.1", "10.0.0.1", addr.Unreadable},
		{"IPv6", "fd00::1", "2001:db8::1", "2001:db8::1", addr.Named},
		{"mapped forms are trusted too", "10.0.0.1", "::ffff:10.0.0.2|[::ffff:198.51.100.1]:80", "198.51.100.1", addr.Named},
		{"no peer: a unix socket", "", "198.51.100.1", "198.51.100.1", addr.Named},
		{"no peer and nothing said", "", "", "", addr.Silent},
		{"no peer and no address", "", "unknown|203.0.113.1", "", addr.Unreadable},
	} {
		peer, _ := netip.ParseAddr(test.peer)
		want, _ := netip.ParseAddr(test.want)
		if got, found := addr.Client(peer, networks(trusted), addr.ForwardedFor, forwardedFor(test.hops)); got != want || found != test.found {
			t.Errorf("%s: %v (%d), want %v (%d)", test.name, got, found, want, test.found)
		}
	}
}

func TestClientBehind(t *testing.T) {
	for _, test := range []struct {
		name  string
		n     int
		hops  string // the nearest first, separated by |
		want  string
		found addr.Found
	}{
		{"one proxy", 1, "198.51.100.1", "198.51.100.1", addr.Named},
		{"what is further away is hearsay", 1, "198.51.100.1|203.0.113.1", "198.51.100.1", addr.Named},
		{"two proxies", 2, "192.0.2.2|198.51.100.1|203.0.113.1", "198.51.100.1", addr.Named},
		{"a proxy in between may be called anything", 2, "unknown|198.51.100.1", "198.51.100.1", addr.Named},
		{"too few", 2, "198.51.100.1", "10.0.0.1", addr.TooFew},
		{"far too few", 9, "198.51.100.1|203.0.113.1", "10.0.0.1", addr.TooFew},
		{"none", 1, "", "10.0.0.1", addr.Silent},
		{"no address", 2, "192.0.2.2|unknown|203.0.113.1", "10.0.0.1", addr.Unreadable},
		{"nothing", 1, " ", "10.0.0.1", addr.Unreadable},
	} {
		want := netip.MustParseAddr(test.want)
		if got, found := addr.ClientBehind(netip.MustParseAddr("10.0.0.1"), test.n, addr.ForwardedFor, forwardedFor(test.hops)); got != want || found != test.found {
			t.Errorf("%s: %v (%d), want %v (%d)", test.name, got, found, want, test.found)
		}
	}
}

func TestForwardedFor(t *testing.T) {
	for _, test := range []struct{ lines, want []string }{
		{nil, nil},
		{[]string{""}, []string{""}},
		{[]string{"a"}, []string{"a"}},
		{[]string{"a, b,c"}, []string{"c", " b", "a"}},
		{[]string{"a, b", "c, d"}, []string{" d", "c", " b", "a"}},
		{[]string{"a,", ",b"}, []string{"b", "", "", "a"}},
	} {
		if got := slices.Collect(addr.Hops(addr.ForwardedFor, test.lines)); !slices.Equal(got, test.want) {
			t.Errorf("%q: %q, want %q", test.lines, got, test.want)
		}
	}
}

func TestSingle(t *testing.T) {
	for _, test := range []struct{ lines, want []string }{
		{nil, nil},
		{[]string{"a"}, []string{"a"}},
		{[]string{"a, b"}, []string{"a, b"}}, // no address
		{[]string{"a", "b"}, []string{""}},
		{[]string{"a", "a"}, []string{""}},
	} {
		if got := slices.Collect(addr.Hops(addr.Single, test.lines)); !slices.Equal(got, test.want) {
			t.Errorf("%q: %q, want %q", test.lines, got, test.want)
		}
	}
}

func TestSingleWithPort(t *testing.T) {
	for _, test := range []struct{ line, want string }{
		{"198.51.100.10:46532", "198.51.100.10"},
		{"2001:db8::1:443", "2001:db8::1"},
		{"2001:db8:1:2:3:4:5:6:443", "2001:db8:1:2:3:4:5:6"},
		{"[2001:db8::1]:443", "[2001:db8::1]"},
		{" 198.51.100.10:1\t", "198.51.100.10"},
		{"198.51.100.10", ""},
		{"2001:db8::", ""},
		{"198.51.100.10:", ""},
		{"198.51.100.10:x", ""},
		{"198.51.100.10:65536", ""},
		{":443", ""},
		{"", ""},
	} {
		if got := slices.Collect(addr.Hops(addr.SingleWithPort, []string{test.line})); !slices.Equal(got, []string{test.want}) {
			t.Errorf("%q: %q, want %q", test.line, got, test.want)
		}
	}
	if got := slices.Collect(addr.Hops(addr.SingleWithPort, []string{"198.51.100.10:1", "198.51.100.10:1"})); !slices.Equal(got, []string{""}) {
		t.Errorf("two lines: %q", got)
	}
	if got := slices.Collect(addr.Hops(addr.SingleWithPort, nil)); got != nil {
		t.Errorf("no line: %q", got)
	}
}

// TestWalkEndsEarly stops each sequence after its first member.
func TestWalkEndsEarly(t *testing.T) {
	lines := []string{"for=a, for=b", "for=c, for=d"}
	for _, seq := range []iter.Seq[string]{addr.Hops(addr.ForwardedFor, lines), addr.Hops(addr.Forwarded, lines), addr.Hops(addr.Single, lines), addr.Hops(addr.SingleWithPort, lines)} {
		n := 0
		for range seq {
			n++
			break
		}
		if n != 1 {
			t.Errorf("%d members, want 1", n)
		}
	}
}

// TestNothingGrowsWithJunk: lines of up to a megabyte allocate nothing.
func TestNothingGrowsWithJunk(t *testing.T) {
	trusted, peer := networks("10.0.0.0/8"), netip.MustParseAddr("10.0.0.1")
	for _, junk := range []string{",", "10.0.0.1,", "for=10.0.0.1,", `for="10.0.0.1",`, `"`, `x="\`, ";", "=", "[", ":", "fe80::1%z", "for=", "a=b;", "\\"} {
		lines := []string{strings.Repeat(junk, 1<<20/len(junk)), strings.Repeat(junk, 1<<16/len(junk))}
		n := testing.AllocsPerRun(2, func() {
			addr.Client(peer, trusted, addr.ForwardedFor, lines)
			addr.Client(peer, trusted, addr.Forwarded, lines)
			addr.Client(peer, trusted, addr.Single, lines[:1])
			addr.Client(peer, trusted, addr.SingleWithPort, lines[:1])
			addr.ClientBehind(peer, 32, addr.ForwardedFor, lines)
		})
		if n > 4 {
			t.Errorf("%q, repeated: %v allocations", junk, n)
		}
	}
}

// reference reads X-Forwarded-For as one would explain it: write all lines as one
// list, and read it backwards.
func reference(peer netip.Addr, trusted []netip.Prefix, list string) netip.Addr {
	isTrusted := func(a netip.Addr) bool {
		return slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	members := strings.Split(list, ",")
	for client := peer; ; {
		if !isTrusted(client) || len(members) == 0 {
			return client
		}
		last := members[len(members)-1]
		members = members[:len(members)-1]
		next, ok := addr.Parse(last)
		if !ok {
			return client
		}
		client = next
	}
}

// FuzzForwardedFor lets a client write any lines. The proxies add its address and
// their own, to the last line or as separate lines. What the client wrote is never
// trusted.
func FuzzForwardedFor(f *testing.F) {
	f.Add("203.0.113.66", "", "198.51.100.1", uint8(0))
	f.Add("10.0.0.9, 203.0.113.66", "10.0.0.9", "2001:db8::7", uint8(1))
	f.Add("\"", "unknown,", "198.51.100.1:4711", uint8(2))
	f.Add(",,,10.0.0.9", "[", "10.0.0.7", uint8(3))
	trusted := networks("10.0.0.0/8")
	peer := netip.MustParseAddr("10.0.0.1")
	f.Fuzz(func(t *testing.T, line1, line2, client string, how uint8) {
		theirs := []string{line1, line2}
		got, _ := addr.Client(peer, trusted, addr.ForwardedFor, theirs)
		if want := reference(peer, trusted, line1+","+line2); got != want {
			t.Fatalf("%q: %v, want %v", theirs, got, want)
		}
		from, ok := addr.Parse(client)
		if !ok || trusted[0].Contains(from) {
			return
		}
		add := func(hop string) {
			if how&1 == 0 {
				theirs = append(theirs, hop)
			} else {
				theirs[len(theirs)-1] += ", " + hop
			}
			how >>= 1
		}
		add(from.String())
		if how&4 != 0 {
			add("10.0.0.2")
		}
		if got, _ := addr.Client(peer, trusted, addr.ForwardedFor, theirs); got != from {
			t.Fatalf("%q: %v, want %v", theirs, got, from)
		}
	})
}

// TestIPv4Host: it reads an IPv4 address and a port as package netip does, but only in
// the form that netip writes.
func TestIPv4Host(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	texts := []string{"", ":", "1.2.3.4", "1.2.3.4:", ":80", "1.2.3:80", "1.2.3.4.5:80", "1.2.3.4:080x", "256.1.1.1:1", "1.2.3.4:123456",
		"01.2.3.4:80", "1.2.3.00:80", "1..3.4:80", "1.2.3.4 :80", "0.0.0.0:0", "255.255.255.255:65535", "[::1]:80", "1.2.3.1000:1", "99999999999999999999.1.1.1:1"}
	for range 100_000 {
		b := []byte("203.0.113.7:41234")
		for range 1 + r.IntN(3) {
			i := r.IntN(len(b))
			b[i] = "0123456789.:"[r.IntN(12)]
			b = append(b[:i], b[min(len(b), i+r.IntN(2)):]...)
		}
		texts = append(texts, string(b))
	}
	read := 0
	for _, s := range texts {
		want, err := netip.ParseAddrPort(s)
		host, ok := addr.IPv4Host(s)
		switch {
		case ok && err == nil && host != want.Addr().String(), !ok && err == nil && want.Addr().Is4() && want.String() == s:
			t.Fatalf("%q: %q, %v", s, host, ok)
		case ok && err != nil: // which must be for the port alone
			if a, err := netip.ParseAddr(host); err != nil || a.String() != host || len(s)-len(host) != len(":65536") && s[len(host)+1] != '0' {
				t.Fatalf("%q: %q, %v", s, host, err)
			}
		}
		if ok {
			read++
		}
	}
	if read < 1000 {
		t.Errorf("%d of %d were read", read, len(texts))
	}
}

// TestNetwork64: it writes a network as package netip does, whichever groups and digits
// are zero.
func TestNetwork64(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	texts := map[string]bool{}
	for range 100_000 {
		var b [16]byte
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		for range r.IntN(6) { // a digit, a byte, or a group that is zero
			switch i := r.IntN(16); r.IntN(3) {
			case 0:
				b[i] &= 0xf
			case 1:
				b[i] = 0
			case 2:
				b[i&^1], b[i|1] = 0, 0
			}
		}
		a := netip.AddrFrom16(b)
		got, want := addr.Network64(a), netip.PrefixFrom(a, 64).Masked().String()
		if got != want {
			t.Fatalf("%v: %q, want %q", a, got, want)
		}
		texts[got] = true
	}
	for _, s := range []string{"::", "::1", "0:0:0:1::", "1::", "0:1::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "64:ff9b::1"} {
		a := netip.MustParseAddr(s)
		if got, want := addr.Network64(a), netip.PrefixFrom(a, 64).Masked().String(); got != want {
			t.Errorf("%v: %q, want %q", a, got, want)
		}
	}
	if len(texts) < 90_000 {
		t.Errorf("%d different networks", len(texts))
	}
}
