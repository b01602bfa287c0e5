package addr_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/addr"
)

func TestForwarded(t *testing.T) {
	for _, test := range []struct {
		name  string
		lines []string
		want  []string
	}{
		{"no line", nil, nil},
		{"an empty line", []string{""}, []string{""}},
		{"one", []string{"for=192.0.2.1"}, []string{"192.0.2.1"}},
		{"several", []string{"for=192.0.2.1, for=192.0.2.2,for=192.0.2.3"}, []string{"192.0.2.3", "192.0.2.2", "192.0.2.1"}},
		{"several lines", []string{"for=a, for=b", "for=c"}, []string{"c", "b", "a"}},
		{"any case", []string{"For=a, FOR=b"}, []string{"b", "a"}},
		{"among others", []string{`by=10.0.0.1;for=192.0.2.1;host="example.org";proto=https`}, []string{"192.0.2.1"}},
		{"RFC 7239, section 4", []string{`for="_gazonk"`, `For="[2001:db8:cafe::17]:4711"`, `for=192.0.2.60;proto=http;by=203.0.113.43`, `for=192.0.2.43, for=198.51.100.17`},
			[]string{"198.51.100.17", "192.0.2.43", "192.0.2.60", "[2001:db8:cafe::17]:4711", "_gazonk"}},
		{"quoted", []string{`for="192.0.2.1:80"`}, []string{"192.0.2.1:80"}},
		{"what should be quoted", []string{`for=[2001:db8::1]:80, for=192.0.2.1:80`}, []string{"192.0.2.1:80", "[2001:db8::1]:80"}},
		{"a comma in quotes", []string{`for=a;x="1,for=b"`}, []string{"a"}},
		{"a semicolon in quotes", []string{`for=a;x="1;for=b"`}, []string{"a"}},
		{"an escaped quote", []string{`x="1\",for=b";for=a`}, []string{"a"}},
		{"an escaped backslash", []string{`x="1\\",for=b`}, []string{"b", ""}},
		{"an escape in an address does not make one", []string{`for="192.0.2.\1"`}, []string{`192.0.2.\1`}},
		{"unknown", []string{"for=unknown"}, []string{"unknown"}},
		{"obfuscated", []string{"for=_hidden, for=_SEVKISEK"}, []string{"_SEVKISEK", "_hidden"}},
		{"an obfuscated port", []string{`for="192.0.2.1:_p.1-2", for="[2001:db8::1]:_x"`}, []string{"[2001:db8::1]", "192.0.2.1"}},
		{"an obfuscated port of nobody", []string{`for="unknown:_x", for="_a:_b"`}, []string{"_a", "unknown"}},
		{"white space", []string{" \tfor=a\t; x=y \t,\tfor=b "}, []string{"b", "a"}},
		{"a semicolon at the end", []string{"for=a;, for=b; "}, []string{"b", "a"}},
		{"a semicolon at the start", []string{";for=a"}, []string{"a"}},
		{"no for", []string{"for=a, by=b;proto=http"}, []string{"", "a"}},
		{"empty elements", []string{"for=a,,for=b,"}, []string{"", "b", "", "a"}},
		{"twice in an element", []string{"for=a;for=b"}, []string{""}},
		{"twice the same", []string{"for=a;FOR=a"}, []string{""}},
		{"three times", []string{"for=a;for=b;for=c"}, []string{""}},
		{"twice is no reason to go on", []string{"for=x, for=a;for=b"}, []string{"", "x"}},

		// Nothing of a line is read beyond a malformed element.
		{"no value", []string{"for=, for=b"}, []string{""}},
		{"no parameter", []string{"junk"}, []string{""}},
		{"no parameter, then one", []string{"junk;for=b"}, []string{""}},
		{"no parameter behind one", []string{"for=a;junk"}, []string{""}},
		{"a bare address", []string{"192.0.2.1, for=b"}, []string{""}},
		{"white space in a value", []string{"for=192.0.2.1 192.0.2.2"}, []string{""}},
		{"an open quote", []string{`for="a`}, []string{""}},
		{"an open quote swallows the rest", []string{`for=x, for="a, for=b`}, []string{"", "x"}},
		{"an escape at the end", []string{`for="a\`}, []string{""}},
		{"text behind a quote", []string{`for="a"b, for=c`}, []string{""}},
		{"a quote within a token", []string{`for=a"b", for=c`}, []string{""}},
		{"white space in a name", []string{"for =a"}, []string{""}},
		{"the line before a malformed one", []string{"for=a", "for=b;junk"}, []string{"", "a"}},
	} {
		if got := slices.Collect(addr.Hops(addr.Forwarded, test.lines)); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q: %q, want %q", test.name, test.lines, got, test.want)
		}
	}
}

// TestForwardedLong: of a line with more elements than any chain of proxies
// writes, only the last elements are read.
func TestForwardedLong(t *testing.T) {
	var line string
	for i := range 100 {
		line += fmt.Sprintf("for=10.0.0.%d,", i)
	}
	got := slices.Collect(addr.Hops(addr.Forwarded, []string{"for=203.0.113.66", line + "for=10.0.0.100"}))
	if len(got) != 33 || got[0] != "10.0.0.100" || got[31] != "10.0.0.69" || got[32] != "" {
		t.Errorf("%d: %q", len(got), got)
	}
}

// FuzzForwarded lets a client write any lines and the Host header. Its proxy adds the
// client's address, and another proxy adds the address of the first, to the last line
// or as separate lines. Whatever the client wrote, it is counted under its own address
// or under the address of a proxy. If it could not write into the same line, it is
// counted under its own address.
func FuzzForwarded(f *testing.F) {
	for _, spoofed := range []string{
		"", "for=203.0.113.66", `for="`, `for=203.0.113.66;x="`, `for=203.0.113.66;x="\`, `for=203.0.113.66;x="a\"`,
		"for=203.0.113.66,", "for=203.0.113.66;for", `x=", for=203.0.113.66, y="`, strings.Repeat("for=203.0.113.66,", 40), "for=10.0.0.9",
	} {
		for how := range 8 {
			f.Add(spoofed, "for=203.0.113.66", "example.org", "198.51.100.1", uint8(how))
			f.Add("for=203.0.113.66", spoofed, ",for=203.0.113.66;y=", "2001:db8::7", uint8(how))
		}
	}
	trusted := networks("10.0.0.0/8")
	peer, first := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.1")
	f.Fuzz(func(t *testing.T, line1, line2, host, client string, how uint8) {
		from, ok := addr.Parse(client)
		if !ok || trusted[0].Contains(from) || strings.ContainsAny(host, `"\`) {
			return
		}
		lines := []string{line1, line2}
		sameLine := false
		add := func(element string) {
			if how&1 == 0 {
				lines = append(lines, element)
			} else {
				sameLine = sameLine || len(lines) == 2
				lines[len(lines)-1] += ", " + element
			}
			how >>= 1
		}
		add(fmt.Sprintf(`for="%v";host="%s";proto=https`, netip.AddrPortFrom(from, 4711), host))
		if how&2 != 0 {
			add("for=" + first.String() + `;by="[fd00::1]:_x"`)
		}
		got, _ := addr.Client(peer, trusted, addr.Forwarded, lines)
		if got != from && !(sameLine && (got == first || got == peer)) {
			t.Fatalf("%q: %v, want %v", lines, got, from)
		}
	})
}

// FuzzForwardedReadsWhatIsWritten writes elements as in RFC 7239 and reads them back.
func FuzzForwardedReadsWhatIsWritten(f *testing.F) {
	f.Add("192.0.2.1", "a,b;c=\"d\"", "_x", true)
	f.Add("\\", "\"", "", false)
	f.Fuzz(func(t *testing.T, node, other, second string, split bool) {
		if strings.ContainsAny(node+second, `"\`) || strings.Contains(node+second, ":_") {
			return // the value would be an escaped form, or cut
		}
		quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(other)
		elements := []string{
			fmt.Sprintf(`x="%s";For="%s" ; y="%s"`, quoted, node, quoted),
			fmt.Sprintf(`for="%s";z="%s"`, second, quoted),
		}
		if !split {
			elements = []string{strings.Join(elements, " ,\t")}
		}
		if got := slices.Collect(addr.Hops(addr.Forwarded, elements)); !slices.Equal(got, []string{second, node}) {
			t.Fatalf("%q: %q", elements, got)
		}
	})
}
