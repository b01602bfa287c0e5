package limiter

import (
	"net"
	"net/http"
	"strings"

	"github.com/ratelimit-go/ratelimit"
)

var (
	DefaultIPv4Mask = net.CIDRMask(32, 32)
	DefaultIPv6Mask = net.CIDRMask(128, 128)
)

// GetIPKey returns what ClientIP makes of a request, without the length of the prefix.
// TrustForwardHeader is one trusted hop.
func (limiter *Limiter) GetIPKey(r *http.Request) string {
	var c ratelimit.ClientIP
	c.IPv4Prefix, _ = limiter.Options.IPv4Mask.Size()
	c.IPv6Prefix, _ = limiter.Options.IPv6Mask.Size()
	if limiter.Options.TrustForwardHeader {
		c.TrustedHops = 1
	}
	key, _ := c.Key(r) // an error comes with no key
	return strings.Split(key, "/")[0]
}

func (limiter *Limiter) GetIPWithMask(r *http.Request) net.IP {
	ip := net.ParseIP(limiter.GetIPKey(r))
	if ip4 := ip.To4(); ip4 != nil {
		return ip4
	}
	return ip
}
