package admin_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/admin"
)

// Without Actor the page answers only requests that come from this machine.
func TestClosedByDefault(t *testing.T) {
	r := new(ratelimit.Registry)
	newLimiter(t, r, "login", ratelimit.Options{})
	s := newSite(t, admin.Options{Registry: r})
	pages := []string{"", "limiter?name=login", "key?k=x", "store", "audit", "style.css", "live.js", "icon.svg", "nothing"}
	for _, test := range []struct {
		name string
		do   func(*http.Request)
		want string // part of the reason; empty if the request is answered
	}{
		{"loopback", func(*http.Request) {}, ""},
		{"loopback, another of its addresses", func(r *http.Request) { r.RemoteAddr = "127.8.8.8:1" }, ""},
		{"loopback, IPv6", func(r *http.Request) { r.RemoteAddr = "[::1]:1" }, ""},
		{"loopback, mapped", func(r *http.Request) { r.RemoteAddr = "[::ffff:127.0.0.1]:1" }, ""},
		{"private network", func(r *http.Request) { r.RemoteAddr = "10.1.2.3:1" }, "10.1.2.3, which is no loopback address"},
		{"link-local", func(r *http.Request) { r.RemoteAddr = "[fe80::1%eth0]:1" }, "which is no loopback address"},
		{"the internet, IPv6", func(r *http.Request) { r.RemoteAddr = "[2001:db8::1]:1" }, "which is no loopback address"},
		{"unspecified", func(r *http.Request) { r.RemoteAddr = "0.0.0.0:1" }, "which is no loopback address"},
		{"unix socket", func(r *http.Request) { r.RemoteAddr = "@" }, "no IP address"},
		{"no peer", func(r *http.Request) { r.RemoteAddr = "" }, "no IP address"},
		{"a name as peer", func(r *http.Request) { r.RemoteAddr = "localhost:1" }, "no IP address"},
		{"the Host of an attacker", func(r *http.Request) { r.Host = "rebind.example" }, `host "rebind.example"`},
		{"HTTP/1.0", func(r *http.Request) { r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.0", 1, 0 }, "HTTP/1.0"},
		{"HTTP/2", func(r *http.Request) { r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0 }, ""},
		{"a proxy", with("X-Forwarded-For", "127.0.0.1"), `"X-Forwarded-For"`},
	} {
		for _, page := range pages {
			for _, method := range []string{"GET", "HEAD", "POST", "DELETE"} {
				w := s.send(method, page, nil, test.do)
				if test.want == "" {
					require.NotContains(t, w.Body.String(), "closed", "%s: %s %s", test.name, method, page)
					continue
				}
				require.Equal(t, http.StatusForbidden, w.Code, "%s: %s %s", test.name, method, page)
				require.Contains(t, w.Body.String(), test.want)
				require.Contains(t, w.Body.String(), "set Options.Actor to a function", "the way out")
				require.NotContains(t, w.Body.String(), "login")
				require.Equal(t, "text/plain; charset=utf-8", w.Header().Get("Content-Type"))
				require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
			}
		}
	}
}

// The Host must be a loopback name or address, in any spelling.
func TestLoopbackHosts(t *testing.T) {
	s := newSite(t, admin.Options{Registry: new(ratelimit.Registry)})
	hosts := map[bool][]string{
		true: {
			"localhost", "localhost:8080", "LocalHost:80", "localhost.", "localhost.:8080", "localhost:", "127.0.0.1", "127.0.0.1:8080", "127.1.2.3",
			"127.0.0.1.:80", "[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]:1", "[::ffff:127.0.0.1]", "[::FFFF:7f00:1]:80",
		},
		false: {
			"", ":8080", ".", "..", "localhost..", "example.com", "localhost.example.com", "localhost.:x", "localhost:80:80", "a.localhost", "localhost:8080@example.com",
			"0.0.0.0", "0.0.0.0:8080", "[::]", "128.0.0.1", "127.0.0.1.example.com", "2130706433", "0x7f.1", "127.1", "[::1", "::1", "::1:8080", "[::1]x", "[::1]:x",
			"[::1%25lo]", "[::1%lo]", "[127.0.0.1]", "[::ffff:10.0.0.1]", "[fe80::1]", "10.0.0.1", "[]", "[]:80", "localhost,example.com", "localhost example.com", "ⓛocalhost",
		},
	}
	for ok, hosts := range hosts {
		for _, host := range hosts {
			w := s.send("GET", "", nil, func(r *http.Request) { r.Host = host })
			require.Equal(t, ok, w.Code == http.StatusOK, "%q: %d", host, w.Code)
		}
	}
}

// Every header field that proxies add closes the page, also if it is empty.
func TestForwardingFields(t *testing.T) {
	s := newSite(t, admin.Options{Registry: new(ratelimit.Registry)})
	for _, name := range []string{
		"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Prefix", "X-Forwarded",
		"X-Forwarded-Anything-New", "X-Real-Ip", "Via", "True-Client-Ip", "Cf-Connecting-Ip", "Cf-Connecting-Ipv6", "Cf-Ray", "Cdn-Loop", "X-Client-Ip",
		"X-Cluster-Client-Ip", "Fastly-Client-Ip", "Fly-Client-Ip", "X-Azure-Clientip", "X-Envoy-External-Address", "X-Original-Forwarded-For", "X-Original-Host",
		"X-Amz-Cf-Id", "Cloudfront-Viewer-Address", "X-Appengine-User-Ip", "X-Vercel-Forwarded-For", "Akamai-Origin-Hop", "X-Varnish", "Wl-Proxy-Client-Ip",
		"X_forwarded_for", "x-forwarded-for", "x_real_ip",
	} {
		for _, value := range []string{"127.0.0.1", ""} {
			w := s.send("GET", "", nil, with(name, value))
			require.Equal(t, http.StatusForbidden, w.Code, "%s: %q", name, value)
			require.Contains(t, w.Body.String(), fmt.Sprintf("%q", name))
		}
	}
	for _, name := range []string{"User-Agent", "Accept-Language", "Origin", "Referer", "Sec-Fetch-Site", "X-Requested-With", "Traceparent", "Forwarding"} {
		require.Equal(t, http.StatusOK, s.send("GET", "", nil, with(name, "x")).Code, name)
	}
}

// A real connection that does not come over the loopback interface is refused.
func TestPeerOfARealConnection(t *testing.T) {
	handler := admin.Handler(admin.Options{Registry: new(ratelimit.Registry)})
	get := func(network, address string) (int, string) {
		listener, err := net.Listen(network, net.JoinHostPort(address, "0"))
		if err != nil {
			t.Skipf("this machine has no address %s: %v", address, err)
		}
		server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: handler}}
		server.Start()
		defer server.Close()
		r, err := http.NewRequest("GET", server.URL, nil)
		require.NoError(t, err)
		r.Host = "localhost"
		resp, err := server.Client().Do(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	for network, address := range map[string]string{"tcp4": "127.0.0.1", "tcp6": "::1"} {
		t.Run(network, func(t *testing.T) {
			status, body := get(network, address)
			require.Equal(t, http.StatusOK, status, body)
		})
	}
	t.Run("another address of this machine", func(t *testing.T) {
		addresses, err := net.InterfaceAddrs()
		require.NoError(t, err)
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				status, body := get("tcp", n.IP.String())
				require.Equal(t, http.StatusForbidden, status)
				require.Contains(t, body, "no loopback address")
				return
			}
		}
		t.Skip("this machine has no other address")
	})
}

// With Actor, Actor alone decides.
func TestActorDecides(t *testing.T) {
	r := new(ratelimit.Registry)
	newLimiter(t, r, "login", ratelimit.Options{})
	for _, test := range []struct {
		name   string
		actor  func(*http.Request) (string, bool)
		status int
		want   string
	}{
		{"in", anna, 200, "anna"},
		{"not in", func(*http.Request) (string, bool) { return "anna", false }, 403, "Options.Actor has refused"},
		{"without a name", func(*http.Request) (string, bool) { return "", true }, 403, "without a name"},
		{"panics", func(*http.Request) (string, bool) { panic("the secret is 7") }, 500, "Options.Actor has panicked"},
		{"a hostile name", func(*http.Request) (string, bool) { return "<script>alert(1)</script>", true }, 200, "&lt;script&gt;"},
	} {
		s := newSite(t, admin.Options{Registry: r, Actor: test.actor})
		for _, page := range []string{"", "limiter?name=login", "store"} {
			w := s.send("GET", page, nil, with("X-Forwarded-For", "203.0.113.7"), func(r *http.Request) { r.RemoteAddr, r.Host = "203.0.113.7:1", "shop.example" })
			require.Equal(t, test.status, w.Code, "%s: %s", test.name, page)
			require.Contains(t, w.Body.String(), test.want, test.name)
			require.NotContains(t, w.Body.String(), "secret")
		}
	}
	require.PanicsWithValue(t, http.ErrAbortHandler, func() {
		newSite(t, admin.Options{Registry: r, Actor: func(*http.Request) (string, bool) { panic(http.ErrAbortHandler) }}).send("GET", "", nil)
	})
}

// All answers have the header fields that keep the page to itself.
func TestHeaderFields(t *testing.T) {
	s := newSite(t, admin.Options{Registry: new(ratelimit.Registry), Actor: anna})
	for _, page := range []string{"", "limiter?name=none", "key", "confirm", "act", "store", "audit", "style.css", "live.js", "nothing"} {
		for _, method := range []string{"GET", "POST", "OPTIONS"} {
			h := s.send(method, page, nil).Header()
			require.Equal(t, "no-store", h.Get("Cache-Control"), page)
			require.Equal(t, "nosniff", h.Get("X-Content-Type-Options"))
			require.Equal(t, "same-origin", h.Get("Referrer-Policy"))
			for _, part := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'", "script-src 'self'"} {
				require.Contains(t, h.Get("Content-Security-Policy"), part)
			}
			require.NotContains(t, h.Get("Content-Security-Policy"), "unsafe")
			require.Empty(t, h.Get("Access-Control-Allow-Origin"))
			require.Empty(t, h.Get("Set-Cookie"))
		}
	}
}

// Pages answer the methods that they have, and name them otherwise.
func TestMethods(t *testing.T) {
	s := newSite(t, admin.Options{Registry: new(ratelimit.Registry), Actor: anna})
	for page, allow := range map[string]string{
		"": "GET, HEAD", "limiter": "GET, HEAD", "store": "GET, HEAD", "style.css": "GET, HEAD", "key": "GET, HEAD, POST", "audit": "GET, HEAD, POST", "confirm": "POST", "act": "POST",
	} {
		for _, method := range []string{"PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "GET", "POST"} {
			w := s.send(method, page, nil)
			if strings.Contains(allow, method) {
				require.NotEqual(t, http.StatusMethodNotAllowed, w.Code, "%s %s", method, page)
				continue
			}
			require.Equal(t, http.StatusMethodNotAllowed, w.Code, "%s %s", method, page)
			require.Equal(t, allow, w.Header().Get("Allow"))
		}
	}
	server := httptest.NewServer(s.handler)
	defer server.Close()
	resp, err := http.Head(server.URL + "/")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "text/html; charset=utf-8", resp.Header.Get("Content-Type"))
}

// Without Actor nothing can be changed, also from this machine.
func TestReadOnlyWithoutActor(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "login", ratelimit.Options{})
	deny(t, l, "203.0.113.7", 1)
	s := newSite(t, admin.Options{Registry: r})
	require.Contains(t, s.get(s.find("login", "203.0.113.7")), "This page is read-only")
	for _, page := range []string{"confirm", "act"} {
		for _, do := range []string{"unblock", "block", "refund", "limits"} {
			w := s.send("POST", page, url.Values{
				"do": {do}, "limiter": {"login"}, "key": {"203.0.113.7"}, "reason": {"ticket"}, "for": {"1h"}, "units": {"5"}, "limits": {"9/1h fixed"},
			})
			require.Equal(t, http.StatusForbidden, w.Code)
			require.Contains(t, w.Body.String(), "admin.Options.Actor is not set")
		}
	}
	for _, page := range []string{"limiter?name=login", "", s.find("login", "203.0.113.7")} {
		require.NotContains(t, s.get(page), `action="confirm"`)
	}
	require.Equal(t, []ratelimit.Limit{hourly}, l.Limits())
	d, err := l.Take(ctx, "203.0.113.7")
	require.NoError(t, err)
	require.False(t, d.Allowed)
}

// A form that another site has sent does nothing.
func TestCrossSiteForms(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "login", ratelimit.Options{})
	s := newSite(t, admin.Options{Registry: r, Actor: anna})
	form := url.Values{"do": {"unblock"}, "limiter": {"login"}, "key": {"203.0.113.7"}, "reason": {"ticket"}}
	for _, test := range []struct {
		fields [2]string
		status int
	}{
		{[2]string{"Sec-Fetch-Site", "cross-site"}, 403},
		{[2]string{"Sec-Fetch-Site", "same-site"}, 403},
		{[2]string{"Sec-Fetch-Site", "same-origin"}, 303},
		{[2]string{"Sec-Fetch-Site", "none"}, 303},
		{[2]string{"Origin", "http://evil.example"}, 403},
		{[2]string{"Origin", "null"}, 403},
		{[2]string{"Origin", "http://127.0.0.1:8080"}, 303},
	} {
		deny(t, l, "203.0.113.7", 1)
		for _, page := range []string{"act", "confirm", "key", "audit"} {
			w := s.send("POST", page, form, with(test.fields[0], test.fields[1]))
			if test.status == 403 {
				require.Equal(t, 403, w.Code, "%s: %s", page, test.fields)
				require.Contains(t, w.Body.String(), "sent by another site")
			} else if page == "act" {
				require.Equal(t, 303, w.Code, "%s: %s: %s", page, test.fields, w.Body)
			}
		}
		d, err := l.Take(ctx, "203.0.113.7")
		require.NoError(t, err)
		require.Equal(t, test.status == 303, d.Allowed, "%s", test.fields)
		require.NoError(t, l.Reset(ctx, "203.0.113.7"))
	}
}
