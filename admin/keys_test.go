package admin_test

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/admin"
)

// Keys do not land in addresses: not in the clear, and the same key always has the same link.
func TestLinksHideKeys(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "login", ratelimit.Options{})
	s := newSite(t, admin.Options{Registry: r})
	deny(t, l, "ada@example.com", 1)
	to := s.find("login", "ADA@example.com")
	require.NotContains(t, strings.ToLower(to), "ada")
	require.Equal(t, to, s.find("login", "ADA@example.com"), "a page that is fetched again has the same links")
	link, err := url.ParseQuery(strings.TrimPrefix(to, "key?"))
	require.NoError(t, err)
	require.Equal(t, link.Get("k"), at(s.json("limiter?name=login"), "denied_keys", 0, "key", "link"))
	require.Equal(t, link.Get("k"), at(newSite(t, admin.Options{Registry: r}).json("limiter?name=login"), "denied_keys", 0, "key", "link"), "also of a new handler")
	for _, k := range []string{"", "x", link.Get("k")[1:], link.Get("k") + "A", link.Get("t"), strings.Repeat("A", 100), "%00"} {
		w := s.send("GET", "key?"+url.Values{"k": {k}}.Encode(), nil)
		require.Equal(t, http.StatusGone, w.Code, "%q", k)
		require.Contains(t, w.Body.String(), "Look the key up again")
	}
	// A link that somebody else has made cannot carry a notice.
	require.NotContains(t, s.get(to+"&n=All+is+well"), "All is well")
	require.NotContains(t, s.get(to+"&n="+link.Get("k")), `class="notice"`)
}

// hidden matches a field of a form that is not shown: its value has to be exact.
var hidden = regexp.MustCompile(`<input type="hidden"[^>]*>`)

// A key is inert on every page, whatever bytes it holds.
func TestHostileKeys(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "login", ratelimit.Options{})
	s := newSite(t, admin.Options{Registry: r, Actor: anna})
	for key, shown := range map[string]string{
		`<script>alert(1)</script>`:     `&lt;script&gt;alert(1)&lt;/script&gt;`,
		`" onmouseover="alert(1)`:       `&#34;\&#34; onmouseover=\&#34;alert(1)&#34;`,
		"a\x00b":                        `&#34;a\x00b&#34;`,
		"\u202egro.elpmaxe":             `&#34;\u202egro.elpmaxe&#34;`,
		"a\u200bb":                      `&#34;a\u200bb&#34;`,
		"\u3164":                        `&#34;\u3164&#34;`,
		"zalgo\u0301\u0301\u0301\u0301": `&#34;zalgo\u0301\u0301\u0301\u0301&#34;`,
		"\xff\xfe":                      `&#34;\xff\xfe&#34;`,
		"line\r\nSet-Cookie: a=b":       `&#34;line\r\nSet-Cookie: a=b&#34;`,
		"{{.Actor}}":                    `{{.Actor}}`,
		"javascript:alert(1)":           `javascript:alert(1)`,
		strings.Repeat("<b>", 1700):     strings.Repeat("&lt;b&gt;", 32) + "…</bdi> <span class=\"dim\">5100 bytes",
		strings.Repeat("é", 3000):       strings.Repeat("é", 48) + "…</bdi> <span class=\"dim\">6000 bytes",
		"zoë@example.com":               "zoë@example.com",
		"שלום":                          "שלום",
	} {
		deny(t, l, key, 3)
		page := s.get("limiter?name=login")
		require.Contains(t, page, `<bdi class="key">`+shown, "%q", key)
		to := s.find("login", key)
		w := s.send("GET", to, nil)
		require.Contains(t, w.Body.String(), `<bdi class="key">`+shown, "%q", key)
		require.Equal(t, 0.0, at(s.json(to), "standings", 0, "remaining"), "it is the key")
		confirm := s.send("POST", "confirm", url.Values{"do": {"unblock"}, "reason": {"<i>why</i>" + key[:min(3, len(key))]}, "k": {at(s.json(to), "key", "link").(string)}})
		require.Contains(t, confirm.Body.String(), `<bdi class="key">`+shown, "%q", key)
		for _, page := range []string{page, w.Body.String(), confirm.Body.String()} {
			page = hidden.ReplaceAllString(page, "")
			require.NotRegexp(t, `<script>|<b>a|<i>|\x00|\x{202e}|\x{200b}|onmouseover="a`, page)
			require.NotContains(t, page, strings.Repeat("&lt;b&gt;", 40))
		}
		require.NoError(t, l.Reset(ctx, key))
	}
	// What the page shows of a key can be pasted, unless it is cut.
	for _, key := range []string{"a\x00b", "\u202egro", "\xff\xfe", `"quoted" \ `, "\u3164"} {
		deny(t, l, key, 1)
		shown := at(s.json(s.find("login", key)), "key", "text").(string)
		require.Equal(t, shown, at(s.json(s.find("login", shown)), "key", "text"), "%q", key)
	}
	// A key that is too long to keep is known by its beginning, and can be pasted.
	long := strings.Repeat("long ", 2000)
	deny(t, l, long, 50)
	row := at(s.json("limiter?name=login"), "denied_keys", 0)
	require.Equal(t, 10_000.0, at(row, "key", "length"))
	require.NotContains(t, at(row, "key"), "link")
	require.Equal(t, 50.0, at(s.json(s.find("login", long)), "denied", "denied"))
}

// Long keys take bounded memory. When there is no room, they are known by their beginning.
func TestLongKeysAreBounded(t *testing.T) {
	r := new(ratelimit.Registry)
	s := newSite(t, admin.Options{Registry: r})
	whole := 0
	for i := range 60 {
		name := fmt.Sprint("limiter ", i)
		l := newLimiter(t, r, name, ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)}})
		for j := range 100 {
			deny(t, l, fmt.Sprint(strings.Repeat("x", 5000), j), 1)
		}
		for _, row := range at(s.json("limiter?"+url.Values{"name": {name}}.Encode()), "denied_keys").([]any) {
			if at(row, "key", "link") != nil {
				whole++
			}
		}
	}
	require.InDelta(t, 16<<20/5002, whole, 10)
}

// KeyView hides keys from viewers, in every form.
func TestKeyView(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "login", ratelimit.Options{})
	mask := func(r *http.Request, limiter, key string) string {
		if r.Header.Get("X-Panic") != "" {
			panic(key)
		}
		return limiter + ":" + key[:1] + "…<i>"
	}
	s := newSite(t, admin.Options{Registry: r, Actor: anna, KeyView: mask})
	deny(t, l, "ada@example.com", 4)
	to := s.find("login", "Ada@example.com")
	link, _ := url.ParseQuery(strings.TrimPrefix(to, "key?"))
	confirm := url.Values{"do": {"unblock"}, "reason": {"ticket 7"}, "k": {link.Get("k")}}
	for _, page := range []string{
		s.get("limiter?name=login"), s.get("key?k=" + link.Get("k")), s.send("POST", "confirm", confirm).Body.String(),
		fmt.Sprint(s.json("limiter?name=login")), fmt.Sprint(s.json("key?k=" + link.Get("k"))),
		s.send("GET", "key?k="+link.Get("k"), nil, with("X-Panic", "1")).Body.String(),
		s.get(to), s.get(s.post("key", url.Values{"key": {"ada@example.com"}})),
	} {
		require.NotContains(t, strings.ToLower(page), "ada@example.com")
		require.NotContains(t, page, "YWRhQGV4YW1wbGUuY29t", "in base64")
		require.Regexp(t, `login:a…(&lt;i&gt;|<i>)|KeyView has panicked`, page)
	}
	require.Contains(t, s.post("act", confirm), "key?k=", "the encrypted form is good for an action")
	d, err := l.Take(ctx, "ada@example.com")
	require.NoError(t, err)
	require.True(t, d.Allowed)
}
