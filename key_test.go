package ratelimit_test

import (
	"errors"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestClientIPFindsTheClientsAddress(t *testing.T) {
	const none = "" // no key
	proxied := ClientIP{TrustedProxies: networksOf("10.0.0.0/8 2001:db8:ffff::/48")}
	forwarded, single, viewer := proxied, proxied, proxied
	forwarded.Header, single.Header, viewer.Header = "forwarded", "cf-connecting-ip", "CloudFront-Viewer-Address"
	for _, test := range []struct {
		name   string
		c      ClientIP
		peer   string
		fields []string
		want   string
	}{
		{"IPv4", ClientIP{}, "192.0.2.1:1234", nil, "192.0.2.1"},
		{"another port is the same client", ClientIP{}, "192.0.2.1:4321", nil, "192.0.2.1"},
		{"no port", ClientIP{}, "192.0.2.1", nil, "192.0.2.1"},
		{"IPv6 by its /64", ClientIP{}, "[2001:db8:1:2:3:4:5:6]:1234", nil, "2001:db8:1:2::/64"},
		{"rotation in the /64", ClientIP{}, "[2001:db8:1:2:ffff::1]:1", nil, "2001:db8:1:2::/64"},
		{"another /64", ClientIP{}, "[2001:db8:1:3:3:4:5:6]:1234", nil, "2001:db8:1:3::/64"},
		{"zone", ClientIP{}, "[fe80::1%eth0]:1234", nil, "fe80::/64"},
		{"mapped", ClientIP{}, "[::ffff:192.0.2.1]:1234", nil, "192.0.2.1"},
		{"mapped, in hexadecimal", ClientIP{}, "[::ffff:c000:201]:1234", nil, "192.0.2.1"},
		{"mapped addresses do not share", ClientIP{}, "[::ffff:192.0.2.2]:1234", nil, "192.0.2.2"},
		{"loopback", ClientIP{}, "[::1]:1234", nil, "::/64"},
		{"no address", ClientIP{}, "", nil, none},
		{"a host name", ClientIP{}, "example.org:80", nil, none},
		{"a unix socket", ClientIP{}, "@", nil, none},
		{"IPv4 by /24", ClientIP{IPv4Prefix: 24}, "192.0.2.77:1", nil, "192.0.2.0/24"},
		{"IPv4 by /31", ClientIP{IPv4Prefix: 31}, "192.0.2.77:1", nil, "192.0.2.76/31"},
		{"IPv4 by /32", ClientIP{IPv4Prefix: 32}, "192.0.2.77:1", nil, "192.0.2.77"},
		{"mapped by /24", ClientIP{IPv4Prefix: 24}, "[::ffff:192.0.2.77]:1", nil, "192.0.2.0/24"},
		{"IPv6 by /48", ClientIP{IPv6Prefix: 48}, "[2001:db8:1:2::1]:1", nil, "2001:db8:1::/48"},
		{"IPv6 by /128", ClientIP{IPv6Prefix: 128}, "[2001:db8:1:2::1%x]:1", nil, "2001:db8:1:2::1"},
		{"IPv4 has a prefix of its own", ClientIP{IPv6Prefix: 16}, "192.0.2.77:1", nil, "192.0.2.77"},

		{"nobody is trusted unasked", ClientIP{}, "10.0.0.1:1", []string{"X-Forwarded-For: 198.51.100.1", "Forwarded: for=198.51.100.1", "X-Real-Ip: 198.51.100.1"}, "10.0.0.1"},
		{"a peer that is not trusted", proxied, "192.0.2.1:1", []string{"X-Forwarded-For: 198.51.100.1"}, "192.0.2.1"},
		{"one hop", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 198.51.100.1"}, "198.51.100.1"},
		{"no field", proxied, "10.0.0.1:1", nil, "10.0.0.1"},
		{"a trusted peer in IPv6", proxied, "[2001:db8:ffff::1]:1", []string{"X-Forwarded-For: 198.51.100.1"}, "198.51.100.1"},
		{"a trusted peer in mapped form", proxied, "[::ffff:10.0.0.1]:1", []string{"X-Forwarded-For: 198.51.100.1"}, "198.51.100.1"},
		{"trusted hops are passed over", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 198.51.100.1, 10.9.9.9,2001:db8:ffff::7 , 10.0.0.2"}, "198.51.100.1"},
		{"the left part is the client's own", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 203.0.113.66, 10.0.0.3, 198.51.100.1"}, "198.51.100.1"},
		{"two lines are one list", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 203.0.113.66", "X-Forwarded-For: 198.51.100.1"}, "198.51.100.1"},
		{"three lines, the last of proxies", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 203.0.113.66", "X-Forwarded-For: 1.1.1.1, 198.51.100.1", "X-Forwarded-For: 10.0.0.2"}, "198.51.100.1"},
		{"all are trusted", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"what is no address ends it", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 203.0.113.66, unknown, 10.0.0.2"}, "10.0.0.2"},
		{"at once", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 203.0.113.66, 198.51.100.1.example"}, "10.0.0.1"},
		{"an empty member ends it", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 203.0.113.66,"}, "10.0.0.1"},
		{"an empty line ends it", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 203.0.113.66", "X-Forwarded-For: "}, "10.0.0.1"},
		{"ports", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 198.51.100.1:4711, 10.0.0.2:80"}, "198.51.100.1"},
		{"brackets", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: [2001:db8:1:2::3]"}, "2001:db8:1:2::/64"},
		{"brackets and a port", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: [2001:db8:1:2::3]:4711"}, "2001:db8:1:2::/64"},
		{"a zone", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: fe80::1%eth0"}, "fe80::/64"},
		{"a mapped client", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: ::ffff:198.51.100.1"}, "198.51.100.1"},
		{"a mapped hop is trusted like itself", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 198.51.100.1, ::ffff:10.0.0.2"}, "198.51.100.1"},
		{"another field is not looked at", proxied, "10.0.0.1:1", []string{"Forwarded: for=198.51.100.1", "X-Real-Ip: 198.51.100.1"}, "10.0.0.1"},
		{"a unix peer", proxied, "@", []string{"X-Forwarded-For: 203.0.113.66, 198.51.100.1, 10.0.0.2"}, "198.51.100.1"},
		{"a unix peer without a word", proxied, "@", nil, none},
		{"a peer without an address is not unix for that", proxied, "", []string{"X-Forwarded-For: 198.51.100.1"}, none},
		{"nor is one with a name", proxied, "proxy.internal:80", []string{"X-Forwarded-For: 198.51.100.1"}, none},

		{"Forwarded", forwarded, "10.0.0.1:1", []string{`Forwarded: for=203.0.113.66, for=198.51.100.1;proto=https;by=10.0.0.2`, `Forwarded: for="10.0.0.2:80"`}, "198.51.100.1"},
		{"Forwarded from anybody", forwarded, "192.0.2.1:1", []string{"Forwarded: for=198.51.100.1"}, "192.0.2.1"},
		{"Forwarded, IPv6", forwarded, "10.0.0.1:1", []string{`Forwarded: For="[2001:db8:1:2::3]:4711"`}, "2001:db8:1:2::/64"},
		{"Forwarded, obfuscated port", forwarded, "10.0.0.1:1", []string{`Forwarded: for="198.51.100.1:_x"`}, "198.51.100.1"},
		{"Forwarded, unknown", forwarded, "10.0.0.1:1", []string{"Forwarded: for=203.0.113.66, for=unknown, for=10.0.0.2"}, "10.0.0.2"},
		{"Forwarded, obfuscated", forwarded, "10.0.0.1:1", []string{"Forwarded: for=203.0.113.66, for=_hidden"}, "10.0.0.1"},
		{"Forwarded, twice", forwarded, "10.0.0.1:1", []string{"Forwarded: for=203.0.113.66;for=198.51.100.1"}, "10.0.0.1"},
		{"Forwarded, open quote", forwarded, "10.0.0.1:1", []string{`Forwarded: for="203.0.113.66, for=198.51.100.1`}, "10.0.0.1"},
		{"Forwarded, a comma in quotes", forwarded, "10.0.0.1:1", []string{`Forwarded: for=198.51.100.1;host="a, for=203.0.113.66"`}, "198.51.100.1"},
		{"Forwarded, an escape", forwarded, "10.0.0.1:1", []string{`Forwarded: for=198.51.100.1;host="a\", for=203.0.113.66"`}, "198.51.100.1"},
		{"Forwarded, no for", forwarded, "10.0.0.1:1", []string{"Forwarded: for=203.0.113.66, by=10.0.0.2"}, "10.0.0.1"},
		{"Forwarded, and not the other", forwarded, "10.0.0.1:1", []string{"X-Forwarded-For: 203.0.113.66"}, "10.0.0.1"},

		{"translated by NAT64", ClientIP{}, "[64:ff9b::192.0.2.1]:1", nil, "192.0.2.1"},
		{"translated clients do not share", ClientIP{}, "[64:ff9b::c000:202]:1", nil, "192.0.2.2"},
		{"translated by /24", ClientIP{IPv4Prefix: 24}, "[64:ff9b::192.0.2.77]:1", nil, "192.0.2.0/24"},
		{"a translated client", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 64:ff9b::198.51.100.1"}, "198.51.100.1"},
		{"no private address is translated", proxied, "[64:ff9b::10.0.0.1]:1", []string{"X-Forwarded-For: 198.51.100.1"}, "64:ff9b::/64"},
		{"an IPv4 address in brackets", ClientIP{}, "[192.0.2.1]:1234", nil, "192.0.2.1"},
		{"the same without a port", ClientIP{}, "[192.0.2.1]", nil, "192.0.2.1"},
		{"the same from a proxy", proxied, "[10.0.0.1]:1", []string{"X-Forwarded-For: [198.51.100.1]:80"}, "198.51.100.1"},
		{"a trusted client of a trusted proxy", proxied, "10.0.0.1:1", []string{"X-Forwarded-For: 10.0.0.1"}, "10.0.0.1"},

		{"one hop trusted", ClientIP{TrustedHops: 1}, "192.0.2.1:1", []string{"X-Forwarded-For: 203.0.113.66, 198.51.100.1"}, "198.51.100.1"},
		{"two hops trusted", ClientIP{TrustedHops: 2}, "192.0.2.1:1", []string{"X-Forwarded-For: 203.0.113.66, 198.51.100.1, 192.0.2.9"}, "198.51.100.1"},
		{"two hops, two lines", ClientIP{TrustedHops: 2}, "192.0.2.1:1", []string{"X-Forwarded-For: 203.0.113.66, 198.51.100.1", "X-Forwarded-For: 192.0.2.9"}, "198.51.100.1"},
		{"two hops, IPv6", ClientIP{TrustedHops: 2}, "[2001:db8:9::1]:1", []string{"X-Forwarded-For: 2001:db8:1:2::3, 192.0.2.9"}, "2001:db8:1:2::/64"},
		{"fewer hops: the connection", ClientIP{TrustedHops: 2}, "192.0.2.1:1", []string{"X-Forwarded-For: 203.0.113.66"}, "192.0.2.1"},
		{"far fewer hops", ClientIP{TrustedHops: 32}, "192.0.2.1:1", []string{"X-Forwarded-For: 203.0.113.66, 203.0.113.67"}, "192.0.2.1"},
		{"no hops", ClientIP{TrustedHops: 1}, "192.0.2.1:1", nil, "192.0.2.1"},
		{"a hop that is no address", ClientIP{TrustedHops: 2}, "192.0.2.1:1", []string{"X-Forwarded-For: 203.0.113.66, unknown, 192.0.2.9"}, "192.0.2.1"},
		{"a nearer hop may be anything", ClientIP{TrustedHops: 2}, "192.0.2.1:1", []string{"X-Forwarded-For: 198.51.100.1, unknown"}, "198.51.100.1"},
		{"hops of Forwarded", ClientIP{TrustedHops: 2, Header: "Forwarded"}, "192.0.2.1:1", []string{`Forwarded: for=203.0.113.66, for="[2001:db8:1:2::3]", for=192.0.2.9`}, "2001:db8:1:2::/64"},
		{"a single address that two proxies left alone", ClientIP{TrustedHops: 2, Header: "CF-Connecting-IP"}, "192.0.2.1:1", []string{"CF-Connecting-IP: 198.51.100.1"}, "198.51.100.1"},
		{"a hop on a unix socket", ClientIP{TrustedHops: 1}, "@", []string{"X-Forwarded-For: 198.51.100.1"}, "198.51.100.1"},
		{"fewer hops on a unix socket", ClientIP{TrustedHops: 2}, "@", []string{"X-Forwarded-For: 198.51.100.1"}, none},
		{"hops by /24", ClientIP{TrustedHops: 1, IPv4Prefix: 24}, "192.0.2.1:1", []string{"X-Forwarded-For: 198.51.100.1"}, "198.51.100.0/24"},

		{"CloudFront, IPv4", viewer, "10.0.0.1:1", []string{"CloudFront-Viewer-Address: 198.51.100.10:46532"}, "198.51.100.10"},
		{"CloudFront, IPv6 without brackets", viewer, "10.0.0.1:1", []string{"CloudFront-Viewer-Address: 2001:db8:1:2::3:46532"}, "2001:db8:1:2::/64"},
		{"CloudFront, all groups", viewer, "10.0.0.1:1", []string{"CloudFront-Viewer-Address: 2001:0db8:0001:0002:0003:0004:0005:0006:443"}, "2001:db8:1:2::/64"},
		{"CloudFront, another port", viewer, "10.0.0.1:1", []string{"CloudFront-Viewer-Address: 2001:db8:1:2::3:1"}, "2001:db8:1:2::/64"},
		{"CloudFront, compressed to the end", viewer, "10.0.0.1:1", []string{"CloudFront-Viewer-Address: 2001:db8:1:2:::443"}, "2001:db8:1:2::/64"},
		{"CloudFront, brackets", viewer, "10.0.0.1:1", []string{"CloudFront-Viewer-Address: [2001:db8:1:2::3]:443"}, "2001:db8:1:2::/64"},
		{"CloudFront without a port", viewer, "10.0.0.1:1", []string{"CloudFront-Viewer-Address: 198.51.100.10"}, "10.0.0.1"},
		{"CloudFront, twice", viewer, "10.0.0.1:1", []string{"CloudFront-Viewer-Address: 198.51.100.10:1", "CloudFront-Viewer-Address: 198.51.100.10:1"}, "10.0.0.1"},

		{"single", single, "10.0.0.1:1", []string{"CF-Connecting-IP: 198.51.100.1"}, "198.51.100.1"},
		{"single, IPv6", single, "10.0.0.1:1", []string{"CF-Connecting-IP: 2001:db8:1:2::3"}, "2001:db8:1:2::/64"},
		{"single, from anybody", single, "192.0.2.1:1", []string{"CF-Connecting-IP: 198.51.100.1"}, "192.0.2.1"},
		{"single, twice", single, "10.0.0.1:1", []string{"CF-Connecting-IP: 203.0.113.66", "CF-Connecting-IP: 198.51.100.1"}, "10.0.0.1"},
		{"single, a list", single, "10.0.0.1:1", []string{"CF-Connecting-IP: 203.0.113.66, 198.51.100.1"}, "10.0.0.1"},
		{"single, junk", single, "10.0.0.1:1", []string{"CF-Connecting-IP: localhost"}, "10.0.0.1"},
		{"single, a unix peer", single, "@", []string{"CF-Connecting-IP: 198.51.100.1"}, "198.51.100.1"},
	} {
		got, err := test.c.Key(from(test.peer, test.fields...))
		assert.Equal(t, test.want, got, test.name)
		if test.want == none {
			assert.ErrorIs(t, err, ErrNoKey, test.name)
		} else {
			assert.NoError(t, err, test.name)
		}
	}
}

// TestAliasesOfAnAddressShareAKey also checks that other addresses do not.
func TestAliasesOfAnAddressShareAKey(t *testing.T) {
	behind := ClientIP{TrustedProxies: networksOf("10.0.0.0/8")}
	for i, aliases := range [][]string{
		{"192.0.2.1", "192.0.2.1:1", "::ffff:192.0.2.1", "[::ffff:c000:0201]:9", "0:0:0:0:0:ffff:192.0.2.1"},
		{"192.0.2.2", "::ffff:192.0.2.2"},
		{"2001:db8::1", "2001:DB8:0::0:1", "[2001:db8::1]:443", "2001:0db8:0000:0000:0000:0000:0000:0001", "2001:db8::ffff", "2001:db8:0:0:ffff:ffff:ffff:ffff"},
		{"2001:db8:0:1::1"},
	} {
		want := []string{"192.0.2.1", "192.0.2.2", "2001:db8::/64", "2001:db8:0:1::/64"}[i]
		for _, alias := range aliases {
			got, err := behind.Key(from("10.0.0.1:1", "X-Forwarded-For: "+alias))
			require.NoError(t, err)
			assert.Equal(t, want, got, alias)
		}
	}
}

// TestUnsafeClientIPIsRefused checks that New finds the setting in any
// combination of keys, and that Key refuses it, too.
func TestUnsafeClientIPIsRefused(t *testing.T) {
	all4, all6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	lan := netip.MustParsePrefix("10.0.0.0/8")
	for _, test := range []struct {
		c    ClientIP
		want string
	}{
		{ClientIP{TrustedProxies: []netip.Prefix{all4}}, "ClientIP.TrustedProxies has 0.0.0.0/0: it trusts every client to name its own address; name the networks of your proxies"},
		{ClientIP{TrustedProxies: []netip.Prefix{lan, all6}}, "ClientIP.TrustedProxies has ::/0: it trusts every client"},
		{ClientIP{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/0")}}, "it trusts every client"},
		{ClientIP{TrustedProxies: []netip.Prefix{{}}}, "ClientIP.TrustedProxies has an invalid network"},
		{ClientIP{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("64:ff9b::10.0.0.0/104")}}, "write it as the IPv4 network inside"},
		{ClientIP{TrustedHops: -1}, "ClientIP.TrustedHops is -1: want 1 to 32, or 0 for none"},
		{ClientIP{TrustedHops: 33}, "ClientIP.TrustedHops is 33: want 1 to 32"},
		{ClientIP{TrustedHops: 1, TrustedProxies: []netip.Prefix{lan}}, "ClientIP.TrustedHops is 1, and ClientIP.TrustedProxies has [10.0.0.0/8]: set TrustedProxies if"},
		{ClientIP{TrustedHops: 1, Header: "X-Our-Client"}, `ClientIP.Header is "X-Our-Client", and it is not known how an address is written there: let the proxy write X-Real-IP`},
		{ClientIP{TrustedHops: 1, Header: "x-azure-clientip"}, `ClientIP.Header is "x-azure-clientip": Azure Front Door takes it from what the client has sent: use X-Azure-SocketIP`},
		{ClientIP{TrustedHops: 1, Header: "X-Original-Forwarded-For"}, `it is what the client has sent: use X-Forwarded-For`},
		{ClientIP{TrustedHops: 1, Header: "X-Forwarded-Host"}, `ClientIP.Header is "X-Forwarded-Host"`},
		{ClientIP{TrustedProxies: []netip.Prefix{lan}, Header: "CloudFront-Viewer-Country"}, `ClientIP.Header is "CloudFront-Viewer-Country"`},
		{ClientIP{TrustedProxies: []netip.Prefix{lan}, Header: "a b"}, `ClientIP.Header is "a b"`},
		{ClientIP{TrustedProxies: []netip.Prefix{lan}, Header: "Host"}, `ClientIP.Header is "Host"`},
		{ClientIP{Header: "CF-Connecting-IP"}, `ClientIP.Header is "CF-Connecting-IP", and no proxy is trusted to write it: set ClientIP.TrustedProxies or TrustedHops`},
		{ClientIP{IPv4Prefix: 1}, "ClientIP.IPv4Prefix is 1: want 8 to 32, or 0 for 32"},
		{ClientIP{IPv4Prefix: 7}, "ClientIP.IPv4Prefix is 7: want 8 to 32"},
		{ClientIP{IPv6Prefix: 1}, "ClientIP.IPv6Prefix is 1: want 16 to 128, or 0 for 64"},
		{ClientIP{IPv6Prefix: 15}, "ClientIP.IPv6Prefix is 15: want 16 to 128"},
		{ClientIP{IPv4Prefix: -1}, "ClientIP.IPv4Prefix is -1: want 8 to 32, or 0 for 32"},
		{ClientIP{IPv4Prefix: 33}, "ClientIP.IPv4Prefix is 33"},
		{ClientIP{IPv6Prefix: -1}, "ClientIP.IPv6Prefix is -1: want 16 to 128, or 0 for 64"},
		{ClientIP{IPv6Prefix: 129}, "ClientIP.IPv6Prefix is 129"},
	} {
		for nesting, key := range map[string]KeyFunc{
			"itself": test.c.Key, "a pointer": (&test.c).Key,
			"FirstKey": FirstKey(HeaderKey("X-API-Key"), test.c.Key), "JoinKeys": JoinKeys(PatternKey, test.c.Key),
			"both": JoinKeys(StaticKey("x"), FirstKey(CookieKey("c"), test.c.Key)),
		} {
			var reg Registry
			_, err := reg.New(t.Name(), Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Key: key})
			assert.ErrorContains(t, err, test.want, nesting)
			assert.ErrorContains(t, err, `ratelimit: limiter "TestUnsafeClientIPIsRefused": Options.Key: `, nesting)
		}
		_, err := test.c.Key(from("192.0.2.1:1", "X-Forwarded-For: 203.0.113.66"))
		assert.ErrorContains(t, err, test.want)
		assert.NotErrorIs(t, err, ErrNoKey)
		_, err = func(r *http.Request) (string, error) { return test.c.Key(r) }(from("192.0.2.1:1"))
		assert.ErrorContains(t, err, test.want)
	}
}

// TestMappedProxyNetworksAreUnderstoodOrRefused uses networks of mapped
// addresses. Addresses are compared in their own form, so such a network would
// never be trusted.
func TestMappedProxyNetworksAreUnderstoodOrRefused(t *testing.T) {
	c := ClientIP{TrustedProxies: networksOf("::ffff:10.0.0.0/104")}
	got, err := c.Key(from("10.0.0.1:1", "X-Forwarded-For: 198.51.100.1"))
	if err == nil {
		assert.Equal(t, "198.51.100.1", got)
	}
	c = ClientIP{TrustedProxies: networksOf("::ffff:0.0.0.0/96")} // all of IPv4
	got, err = c.Key(from("192.0.2.1:1", "X-Forwarded-For: 198.51.100.1"))
	if err == nil {
		assert.Equal(t, "192.0.2.1", got)
	}
	assert.False(t, errors.Is(err, ErrNoKey))
}

// TestHeadersOfVendorsAreRead has each header that is known to have one address.
func TestHeadersOfVendorsAreRead(t *testing.T) {
	for _, header := range []string{
		"X-Real-IP", "X-Client-IP", "X-Cluster-Client-IP", "CF-Connecting-IP", "True-Client-IP", "Fastly-Client-IP", "Fly-Client-IP",
		"X-Azure-SocketIP", "X-Appengine-User-IP", "X-Nf-Client-Connection-Ip", "X-Envoy-External-Address", "X-Vercel-Forwarded-For",
		"Ali-Cdn-Real-Ip", "EO-Connecting-IP", "DO-Connecting-IP", "Incap-Client-IP", "X-Sucuri-ClientIP",
	} {
		for _, c := range []ClientIP{{Header: header, TrustedHops: 1}, {Header: header, TrustedHops: 3}, {Header: header, TrustedProxies: networksOf("192.0.2.0/24")}} {
			for value, want := range map[string]string{"198.51.100.7": "198.51.100.7", "2001:db8:1:2::3": "2001:db8:1:2::/64", "198.51.100.7, 198.51.100.8": httpKey, "": httpKey} {
				got, err := c.Key(from(httpKey+":1", header+": "+value, "X-Forwarded-For: 203.0.113.66"))
				assert.NoError(t, err, header)
				assert.Equal(t, want, got, "%s: %s", header, value)
			}
			var reg Registry
			opts := quiet(hour)
			opts.Key = c.Key
			l, err := reg.New(header, opts)
			require.NoError(t, err)
			require.NoError(t, l.Close())
		}
	}
}

// TestClientCanChooseItsKeyIfProxiesLetIt shows two cases that a library cannot detect; see
// docs/keys.md: a proxy that passes a client's header on, and a client that bypasses it.
func TestClientCanChooseItsKeyIfProxiesLetIt(t *testing.T) {
	for name, test := range map[string]struct {
		c      ClientIP
		fields []string
	}{
		"the proxy does not replace X-Real-IP": {ClientIP{TrustedHops: 1, Header: "X-Real-IP"}, []string{"X-Real-IP: 203.0.113.66"}},
		"around the first of two proxies":      {ClientIP{TrustedHops: 2}, []string{"X-Forwarded-For: 203.0.113.66, 198.51.100.1"}},
	} {
		got, err := test.c.Key(from("192.0.2.1:1", test.fields...))
		require.NoError(t, err)
		assert.Equal(t, "203.0.113.66", got, name)
	}
}
