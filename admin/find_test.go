package admin_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/admin"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// An operator finds a key by any of its spellings, and the page says which one it took.
func TestKeyIsFound(t *testing.T) {
	r := new(ratelimit.Registry)
	byIP := ratelimit.NamedKey("ip", ratelimit.ClientIP{}.Key)
	newLimiter(t, r, "login", ratelimit.Options{})
	newLimiter(t, r, "wide", ratelimit.Options{Key: ratelimit.ClientIP{IPv6Prefix: 48}.Key})
	newLimiter(t, r, "api", ratelimit.Options{Key: ratelimit.FirstKey(ratelimit.NamedKey("customer", ratelimit.HeaderKey("X-Api-Key")), byIP)})
	newLimiter(t, r, "codes", ratelimit.Options{Key: func(*http.Request) (string, error) { panic("no form") }})
	for _, test := range []struct {
		limiter, counted string
		typed            []string
	}{
		{"login", "203.0.113.7", []string{"203.0.113.7", " 203.0.113.7\t", "203.0.113.7:4711", "::ffff:203.0.113.7", `"203.0.113.7"`, "64:ff9b::203.0.113.7", "203.0.113.7/32"}},
		{"login", "2001:db8:1:2::/64", []string{
			"2001:db8:1:2::/64", "2001:DB8:1:2::7", "2001:0db8:0001:0002:0003:0004:0005:0006", "[2001:db8:1:2::7]:443", "[2001:db8:1:2::7]", "2001:db8:1:2::7%eth0", "2001:0DB8:1:2::1/64",
		}},
		{"wide", "2001:db8:1::/48", []string{"2001:db8:1:2::7", "2001:db8:1::/48", "2001:db8:1:2::/64"}},
		{"api", "ip=203.0.113.7", []string{"203.0.113.7", "ip=203.0.113.7", "ip= 203.0.113.7", "ip=::ffff:203.0.113.7"}},
		{"api", "ip=2001:db8:1:2::/64", []string{"2001:DB8:1:2::7", "ip=2001:db8:1:2::7", "ip=2001:DB8:1:2:0::/64"}},
		{"api", "customer=K-1", []string{"customer=K-1", `"customer=K-1"`}},
		{"codes", "ada@example.com", []string{"ada@example.com", "Ada@Example.com", " ADA@EXAMPLE.COM ", "ａｄａ@example.com"}},
		{"codes", "a\x00\xff\u202e\"", []string{`"a\x00\xff\u202e\""`}},
		{"codes", " padded ", []string{" padded ", `" padded "`}},
		{"codes", "192.0.2.1", []string{"192.0.2.1"}},
	} {
		l, _ := r.Lookup(test.limiter)
		s := newSite(t, admin.Options{Registry: r})
		for _, typed := range test.typed {
			require.NoError(t, l.Reset(ctx, test.counted))
			_, err := l.Take(ctx, test.counted)
			require.NoError(t, err)
			page := s.json(s.find(test.limiter, typed))
			require.Equal(t, 4.0, at(page, "standings", 0, "remaining"), "%s: %q: it took %v", test.limiter, typed, at(page, "key"))
			if typed != test.counted {
				require.NotEmpty(t, at(page, "typed"), "it says what was typed")
				require.Contains(t, s.get(s.find(test.limiter, typed)), "This is the key that was found for")
			}
		}
		require.NoError(t, l.Reset(ctx, test.counted))
	}
}

// A key is found in all limiters that know it.
func TestFindInAllLimiters(t *testing.T) {
	r := new(ratelimit.Registry)
	s := newSite(t, admin.Options{Registry: r})
	for i := range 80 {
		newLimiter(t, r, fmt.Sprintf("limiter-%02d", i), ratelimit.Options{})
	}
	api := newLimiter(t, r, "api", ratelimit.Options{Key: ratelimit.FirstKey(ratelimit.NamedKey("ip", ratelimit.ClientIP{}.Key))})
	deny(t, api, "ip=2001:db8:1:2::/64", 1)
	for _, name := range []string{"limiter-10", "limiter-60", "limiter-70"} {
		l, _ := r.Lookup(name)
		_, err := l.Take(ctx, "2001:db8:1:2::/64")
		require.NoError(t, err)
		if name == "limiter-70" {
			deny(t, l, "2001:db8:1:2::/64", 1)
		}
	}
	to := s.post("key", url.Values{"key": {"2001:DB8:1:2::9"}})
	require.NotContains(t, to, "2001")
	page := s.json(to)
	var found []string
	for i := range at(page, "limiters").([]any) {
		found = append(found, fmt.Sprint(at(page, "limiters", i, "limiter"), " ", at(page, "limiters", i, "key", "text"), " ", at(page, "limiters", i, "state")))
	}
	require.Equal(t, []string{"api ip=2001:db8:1:2::/64 denied", "limiter-10 2001:db8:1:2::/64 free", "limiter-70 2001:db8:1:2::/64 denied"}, found,
		"the first limiters are asked, and those that have denied it here")
	require.Contains(t, text(s.get(to)), "52 of 81 limiters were asked. The others were asked only if")
	require.Contains(t, s.get(s.post("key", url.Values{"key": {"<b>nobody"}})), "No limiter has anything counted for it.")
	require.Equal(t, http.StatusGone, s.send("GET", "found?t=x", nil).Code)
}

// Without anything counted, the key is the one that Options.Key would make.
func TestKeyWithoutCounter(t *testing.T) {
	r := new(ratelimit.Registry)
	newLimiter(t, r, "login", ratelimit.Options{})
	newLimiter(t, r, "api", ratelimit.Options{Key: ratelimit.FirstKey(ratelimit.HeaderKey("X-Api-Key"), ratelimit.ClientIP{}.Key)})
	s := newSite(t, admin.Options{Registry: r})
	for _, test := range [][3]string{
		{"login", "2001:DB8::7", "2001:db8::/64"},
		{"api", "203.0.113.7", "1=203.0.113.7"},
		{"login", "ada", "ada"},
		{"login", "Ada", "Ada"},
	} {
		page := s.json(s.find(test[0], test[1]))
		require.Equal(t, test[2], at(page, "key", "text"))
		require.Equal(t, "free", at(page, "state"))
	}
	// The other keys that the text can mean are one click away.
	page := s.json(s.find("login", "2001:DB8::7"))
	var others []string
	for i := range at(page, "others").([]any) {
		others = append(others, at(page, "others", i, "text").(string))
	}
	require.Equal(t, []string{"2001:DB8::7", "2001:db8::7"}, others)
	require.Equal(t, "2001:db8::7", at(s.json("key?k="+at(page, "others", 1, "link").(string)), "key", "text"))

	for _, form := range []url.Values{{"limiter": {"login"}}, {"limiter": {"login"}, "key": {"  "}}, {"limiter": {"login"}, "key": {strings.Repeat("x", 40_000)}}} {
		require.Equal(t, http.StatusBadRequest, s.send("POST", "key", form).Code)
	}
	require.Equal(t, http.StatusNotFound, s.send("POST", "key", url.Values{"limiter": {"none"}, "key": {"a"}}).Code)
	require.Equal(t, http.StatusBadRequest, s.send("POST", "key", url.Values{"key": {strings.Repeat("x", 70_000)}}).Code)
}

// While a store does not answer, the page does not say that nothing is counted there.
func TestFindDuringAnOutage(t *testing.T) {
	r := new(ratelimit.Registry)
	newLimiter(t, r, "login", ratelimit.Options{Redis: redistest.Client(t, "127.0.0.1:1")}) // nobody listens there
	s := newSite(t, admin.Options{Registry: r})
	page := text(s.get(s.post("key", url.Values{"key": {"ada"}})))
	require.Contains(t, page, "No limiter that could be asked has anything counted for it.")
	require.Contains(t, page, "1 of the limiters could not say, because their store does not answer.")
	require.NotContains(t, page, "their key may be another one")
	require.Contains(t, s.get(s.find("login", "ada")), "This is what this process knows of the key.")
}
