package admin

import (
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// This file decides who may see the page.

// A refusal is the answer to a request that may not see the page.
type refusal struct {
	status int
	text   string
}

// wayOut ends the text of a refusal without Options.Actor.
const wayOut = "Without admin.Options.Actor, the page is read-only and answers only requests that come from this machine " +
	"(a loopback address), to a loopback Host, and not through a proxy.\n" +
	"To let operators in, set Options.Actor to a function that checks who they are. " +
	"To look at it from elsewhere without that, forward a port: ssh -L 8080:127.0.0.1:8080 host\n"

// viewer returns who makes a request. An empty name, without Options.Actor, may only look.
func (h *handler) viewer(r *http.Request) (who string, refused *refusal) {
	if h.opts.Actor == nil {
		if why := notLocal(r); why != "" {
			return "", &refusal{http.StatusForbidden, "The admin page is closed: " + why + ".\n" + wayOut}
		}
		return "", nil
	}
	who, ok, err := h.callActor(r)
	switch {
	case err != nil:
		return "", &refusal{http.StatusInternalServerError, "The admin page is closed: " + err.Error() + ".\n"}
	case !ok:
		return "", &refusal{http.StatusForbidden, "The admin page is closed: Options.Actor has refused this request. Sign in first, if there is a way to.\n"}
	case who == "":
		return "", &refusal{http.StatusForbidden, "The admin page is closed: Options.Actor has let this request in without a name. Let it return one, for the audit trail.\n"}
	}
	return who, nil
}

// callActor calls Options.Actor. A panic is an error, and its text stays here.
func (h *handler) callActor(r *http.Request) (who string, ok bool, err error) {
	defer func() {
		if with := recover(); with != nil {
			if with == http.ErrAbortHandler {
				panic(with)
			}
			who, ok, err = "", false, fmt.Errorf("Options.Actor has panicked")
		}
	}()
	who, ok = h.opts.Actor(r)
	return who, ok, nil
}

// notLocal returns why a request may have come from another machine, or "" if nothing shows
// that it has.
func notLocal(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	switch {
	case err != nil:
		return "the connection has no IP address"
	case !peer.Addr().Unmap().IsLoopback():
		return fmt.Sprintf("the request comes from %v, which is no loopback address", peer.Addr())
	case !isLoopbackHost(r.Host):
		return fmt.Sprintf("the request is for the host %q, which is no loopback name or address", r.Host)
	case !r.ProtoAtLeast(1, 1):
		return "the request has come by " + r.Proto + ", which proxies speak and browsers do not"
	}
	for name := range r.Header {
		if isForwarding(name) {
			return "the request has come through a proxy, because it has the header field " + strconv.Quote(name)
		}
	}
	return ""
}

// isLoopbackHost reports whether a Host field names this machine: localhost or a loopback
// address, with or without a port. Any other name could be one that somebody else lets
// point here (DNS rebinding).
func isLoopbackHost(host string) bool {
	name := host
	if strings.HasPrefix(host, "[") {
		inside, port, ok := strings.Cut(host[1:], "]")
		a, err := netip.ParseAddr(inside)
		return ok && isPort(port) && err == nil && a.Is6() && a.Zone() == "" && a.Unmap().IsLoopback()
	}
	if colon := strings.IndexByte(host, ':'); colon >= 0 {
		if !isPort(host[colon:]) {
			return false
		}
		name = host[:colon]
	}
	name = strings.TrimSuffix(name, ".") // a name's root
	if strings.EqualFold(name, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(name)
	return err == nil && a.Is4() && a.IsLoopback()
}

// isPort reports whether s is empty, or a colon with digits behind it or nothing.
func isPort(s string) bool {
	digits, ok := strings.CutPrefix(s, ":")
	return s == "" || ok && strings.Trim(digits, "0123456789") == ""
}

// Header fields that proxies add. docs/admin.md has the list.
var (
	forwardingFields = []string{
		"forwarded", "via", "x-real-ip", "x-real-port", "x-client-ip", "x-cluster-client-ip", "x-remote-ip", "x-remote-addr", "client-ip", "true-client-ip",
		"cdn-loop", "proxy-client-ip", "wl-proxy-client-ip", "x-proxyuser-ip", "x-nf-client-connection-ip", "x-amzn-trace-id", "x-amz-cf-id",
		"do-connecting-ip", "ali-cdn-real-ip", "x-sucuri-clientip", "incap-client-ip", "x-source-ip", "x-realip", "x-request-start", "x-scheme",
		"x-replaced-path", "surrogate-capability", "x-cloud-trace-context", "x-varnish", "x-proxy-id", "front-end-https", "proxy-connection",
	}
	forwardingFamilies = []string{
		"x-forwarded", "cf-", "x-original-", "x-envoy-", "x-azure-", "x-appengine-", "x-vercel-", "x-akamai-", "akamai-", "fastly-", "fly-", "x-arr-",
		"x-goog-", "tailscale-", "cloudfront-", "l5d-", "x-auth-request-", "x-amzn-oidc-",
	}
)

// isForwarding reports whether a header field is one that proxies add. Underscores count as
// hyphens, because some proxies and servers make no difference.
func isForwarding(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	for _, field := range forwardingFields {
		if name == field {
			return true
		}
	}
	for _, family := range forwardingFamilies {
		if strings.HasPrefix(name, family) {
			return true
		}
	}
	return false
}
