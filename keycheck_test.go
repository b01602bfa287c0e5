package ratelimit_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestMistakenKeysCauseAWarning checks the warnings about keys. They are logged like all
// warnings.
func TestMistakenKeysCauseAWarning(t *testing.T) {
	keyed := func(key string) Options { return Options{Key: StaticKey(key)} }
	get := requestWithSecrets()
	testWarnings(t, map[Code]warningCase{
		CodeUntrustedProxy + " other":         {Options{Key: ClientIP{TrustedProxies: networksOf("10.0.0.0/8")}.Key}, from("192.0.2.1:1", "X-Forwarded-For: "+secret)},
		CodeUntrustedProxy + " header":        {Options{Key: ClientIP{TrustedProxies: networksOf("10.0.0.0/8"), Header: "X-Real-IP"}.Key}, from("10.0.0.1:1", "X-Forwarded-For: "+secret)},
		CodeUnreadableAddress + " joined":     {Options{Key: JoinKeys(StaticKey("route"), ClientIP{TrustedProxies: networksOf("10.0.0.0/8")}.Key)}, from("10.0.0.1:1", "X-Forwarded-For: unknown")},
		CodeUnreadableAddress + " first":      {Options{Key: FirstKey(HeaderKey("X-API-Key"), NamedKey("ip", ClientIP{TrustedProxies: networksOf("10.0.0.0/8")}.Key))}, from("10.0.0.1:1", "X-Forwarded-For: unknown")},
		CodeUnreadableAddress + " second hop": {Options{Key: ClientIP{TrustedProxies: networksOf("10.0.0.0/8")}.Key}, from("10.0.0.1:1", "X-Forwarded-For: "+secret+", 10.0.0.2")},
		CodeUnreadableAddress + " single":     {Options{Key: ClientIP{TrustedProxies: networksOf("10.0.0.0/8"), Header: "CF-Connecting-IP"}.Key}, from("10.0.0.1:1", "CF-Connecting-IP: "+secret)},
		CodeUnreadableAddress + " viewer":     {Options{Key: ClientIP{TrustedHops: 2, Header: "CloudFront-Viewer-Address"}.Key}, from("10.0.0.1:1", "CloudFront-Viewer-Address: "+secret)},
		CodeUnreadableAddress + " hop":        {Options{Key: ClientIP{TrustedHops: 1}.Key}, from("10.0.0.1:1", "X-Forwarded-For: "+secret)},
		CodeTooFewHops:                        {Options{Key: ClientIP{TrustedHops: 2}.Key}, from("10.0.0.1:1", "X-Forwarded-For: "+secret)},
		CodeUntrustedProxy + " other joined":  {Options{Key: JoinKeys(StaticKey("route"), ClientIP{TrustedProxies: networksOf("10.0.0.0/8")}.Key)}, from("192.0.2.1:1", "X-Forwarded-For: "+secret)},
		CodeTooManyHops:                       {Options{Key: ClientIP{TrustedHops: 1}.Key}, from("10.0.0.1:1", "X-Forwarded-For: 203.0.113.7, 10.0.0.3")},
		CodeTooManyHops + " shared":           {Options{Key: ClientIP{TrustedHops: 2}.Key}, from("10.0.0.1:1", "X-Forwarded-For: 203.0.113.7, 100.64.0.9, 10.0.0.3")},
		CodeUntrustedProxy + " hops":          {Options{Key: ClientIP{TrustedHops: 1, Header: "X-Real-IP"}.Key}, from("192.0.2.1:1", "X-Forwarded-For: "+secret)},
		CodeUnreadableAddress:                 {Options{Key: ClientIP{TrustedProxies: networksOf("10.0.0.0/8")}.Key}, from("10.0.0.1:1", "X-Forwarded-For: unknown")},
		CodeUntrustedProxy:                    {Options{}, from("192.0.2.1:1", "X-Forwarded-For: "+secret)},
		CodeUntrustedProxy + " 7239":          {Options{}, from("192.0.2.1:1", "Forwarded: for="+secret)},
		CodeUntrustedProxy + " real":          {Options{}, from("192.0.2.1:1", "X-Real-IP: "+secret)},
		CodeUntrustedProxy + " cdn":           {Options{}, from("192.0.2.1:1", "CF-Connecting-IP: "+secret)},
		CodeUntrustedProxy + " first":         {Options{Key: FirstKey(HeaderKey("X-API-Key"), ClientIP{}.Key)}, from("192.0.2.1:1", "X-Forwarded-For: "+secret)},
		CodeUntrustedProxy + " joined":        {Options{Key: JoinKeys(HeaderKey("X-Secret"), ClientIP{}.Key)}, from("192.0.2.1:1", "X-Secret: "+secret, "X-Forwarded-For: "+secret)},
		CodeKeyWithPort:                       {keyed("192.0.2.1:4711"), get},
		CodeKeyWithPort + " IPv6":             {keyed("[2001:db8::1]:4711"), get},
		CodeKeyWithPort + " RemoteAddr":       {Options{Key: func(r *http.Request) (string, error) { return r.RemoteAddr, nil }}, get},
		CodeKeyWithPort + " FirstKey":         {Options{Key: FirstKey(StaticKey("192.0.2.1:4711"))}, get},
		CodeWholeIPv6:                         {keyed("2001:db8::1"), get},
		CodeWholeIPv6 + " brackets":           {keyed("[2001:db8::1]"), get},
		CodeWholeIPv6 + " zone":               {keyed("fe80::1%eth0"), get},
	})
}

func TestSoundKeysCauseNoWarning(t *testing.T) {
	trusting := ClientIP{TrustedProxies: networksOf("10.0.0.0/8")}
	for name, test := range map[string]struct {
		key KeyFunc
		r   *http.Request
	}{
		"address":                    {nil, from("192.0.2.1:1")},
		"IPv6 address":               {nil, from("[2001:db8::1]:1")},
		"whole IPv6 by choice":       {ClientIP{IPv6Prefix: 128}.Key, from("[2001:db8::1]:1")},
		"proxy":                      {trusting.Key, from("10.0.0.1:1", "X-Forwarded-For: 198.51.100.1")},
		"proxy on the client's host": {trusting.Key, from("10.0.0.1:1", "X-Forwarded-For: 10.0.0.1")},
		"all hops are trusted":       {trusting.Key, from("10.0.0.1:1", "X-Forwarded-For: 10.0.0.3, 10.0.0.2")},
		"loopback in front":          {ClientIP{TrustedProxies: networksOf("127.0.0.0/8")}.Key, from("127.0.0.1:1", "X-Forwarded-For: 127.0.0.1")},
		"hops":                       {ClientIP{TrustedHops: 1}.Key, from("192.0.2.1:1", "X-Forwarded-For: 203.0.113.66, 198.51.100.1")},
		"the hop is the peer":        {ClientIP{TrustedHops: 1}.Key, from("192.0.2.1:1", "X-Forwarded-For: 192.0.2.1")},
		"hops inside":                {ClientIP{TrustedHops: 1}.Key, from("10.0.0.1:1", "X-Forwarded-For: 10.0.0.9, 10.0.0.3")},
		"a client inside":            {ClientIP{TrustedHops: 1}.Key, from("10.0.0.1:1", "X-Forwarded-For: 10.0.0.3")},
		"a health check":             {ClientIP{TrustedHops: 1}.Key, from("192.0.2.1:1")},
		"an address in a name":       {FirstKey(NamedKey("ip", trusting.Key)), from("10.0.0.1:1", "X-Forwarded-For: 198.51.100.1")},
		"API key with a colon":       {StaticKey("user:4711"), from("192.0.2.1:1")},
		"API key with brackets":      {StaticKey("[x]:4711"), from("192.0.2.1:1")},
		"a network":                  {StaticKey("2001:db8::/64"), from("192.0.2.1:1")},
		"no address needed":          {HeaderKey("X-Key"), from("@", "X-Key: k", "X-Forwarded-For: 198.51.100.1")},
		"first an API key":           {FirstKey(HeaderKey("X-Key"), trusting.Key), from("10.0.0.1:1", "X-Key: k", "X-Forwarded-For: 198.51.100.1")},
		"exempt":                     {func(*http.Request) (string, error) { return "", ErrExempt }, from("192.0.2.1:1")},
		"whole IPv6 of a first":      {FirstKey(ClientIP{IPv6Prefix: 128}.Key), from("[2001:db8::1]:1")},
	} {
		log := new(logged)
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Key: test.key, Logger: log.logger()})
		l.Middleware(httpServed).ServeHTTP(httptest.NewRecorder(), test.r)
		require.NoError(t, l.Close())
		assert.Empty(t, log.text(), name)
	}
}
