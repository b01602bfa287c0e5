package ratelimit_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"

	"github.com/ratelimit-go/ratelimit"
)

func ExampleClientIP() {
	key := ratelimit.ClientIP{
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}.Key
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "10.0.0.1:4711"
	r.Header.Set("X-Forwarded-For", "192.0.2.66, 2001:db8:1:2:3:4:5:6, 10.0.0.7") // the first is made up
	fmt.Println(key(r))
	// Output: 2001:db8:1:2::/64 <nil>
}

// Behind a CDN and a load balancer whose addresses change, the CDN has written the second
// member from the right.
func ExampleClientIP_trustedHops() {
	key := ratelimit.ClientIP{TrustedHops: 2}.Key
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("X-Forwarded-For", "192.0.2.66, 198.51.100.7, 203.0.113.9") // the client invented the first, the last is the CDN's address
	fmt.Println(key(r))
	r.Header.Set("X-Forwarded-For", "192.0.2.66") // from a client that bypasses the CDN
	fmt.Println(key(r))
	// Output:
	// 198.51.100.7 <nil>
	// 192.0.2.1 <nil>
}

func ExampleNamedKey() {
	key := ratelimit.FirstKey(
		ratelimit.NamedKey("user", ratelimit.HeaderKey("X-User")), // set by the authentication proxy in front
		ratelimit.NamedKey("ip", ratelimit.ClientIP{}.Key),
	)
	r := httptest.NewRequest("GET", "/", nil)
	fmt.Println(key(r))
	r.Header.Set("X-User", "ann")
	fmt.Println(key(r))
	// Output:
	// ip=192.0.2.1 <nil>
	// user=ann <nil>
}

func ExampleFirstKey() {
	issued := map[string]string{"k-123": "ann"}
	apiKey := func(r *http.Request) (string, error) {
		if name, ok := issued[r.Header.Get("X-API-Key")]; ok {
			return name, nil
		}
		return "", ratelimit.ErrNoKey // also for an invented key, which must not get a bucket
	}
	key := ratelimit.FirstKey(apiKey, ratelimit.ClientIP{}.Key)
	r := httptest.NewRequest("GET", "/", nil)
	fmt.Println(key(r))
	r.Header.Set("X-API-Key", "k-123")
	fmt.Println(key(r))
	// Output:
	// 1=192.0.2.1 <nil>
	// 0=ann <nil>
}

func ExampleNormalize() {
	fmt.Println(ratelimit.Normalize("  Ann@Example.COM\u200b"))
	// Output: ann@example.com
}
