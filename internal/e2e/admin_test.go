package e2e_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/admin"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// This file has the tests of package admin in a browser.

const attacker = "203.0.113.66"

// An office is a program with limiters on Redis and in memory, and with an admin page. Another
// process counts its logins, too.
type office struct {
	*page
	registry     *Registry
	login, other *Limiter // on the same Redis
	trail        *audit.Trail
	url          string // of the admin page
}

// newOffice starts the program. Its actor is anna.
func newOffice(t *testing.T, opts ...chromedp.ExecAllocatorOption) *office {
	o := &office{page: &page{t, browser(t, opts...)}, registry: new(Registry)}
	server := redistest.Start(t)
	file, err := audit.OpenFile(filepath.Join(t.TempDir(), "audit.jsonl"))
	require.NoError(t, err)
	o.trail, err = audit.New(audit.Options{Sink: file, PlainKeys: true, Service: "shop", Instance: "web-1"})
	require.NoError(t, err)
	t.Cleanup(func() { o.trail.Close(); file.Close() })
	t.Cleanup(o.registry.Observe(o.trail.Observe))

	logins := quiet(FixedWindow(5, 15*time.Minute).Block(15*time.Minute, time.Hour, 24*time.Hour))
	logins.Audit, logins.DenyRecheck, logins.Timeout = o.trail, 100*time.Millisecond, time.Minute
	logins.Redis = redistest.Client(t, server.Addr)
	o.login = o.limiter("login", logins)
	logins.Redis, logins.Audit = redistest.Client(t, server.Addr), nil
	o.other = newLimiter(t, "login", logins)

	mux := http.NewServeMux()
	mux.Handle("/admin/", admin.Handler(admin.Options{
		Registry: o.registry, Audit: o.trail, Actor: func(*http.Request) (string, bool) { return "anna", true },
	}))
	web := httptest.NewServer(mux)
	t.Cleanup(web.Close)
	o.url = web.URL + "/admin/"
	return o
}

// limiter makes one of the program's limiters.
func (o *office) limiter(name string, opts Options) *Limiter {
	o.Helper()
	if opts.Redis == nil {
		store := Memory(name)
		o.Cleanup(func() { store.Close() })
		opts.Store = store
	}
	l, err := o.registry.New(name, opts)
	require.NoError(o, err)
	o.Cleanup(func() { l.Close() })
	return l
}

// deny asks a limiter for n units, one by one.
func deny(t testing.TB, l *Limiter, key string, n int) {
	t.Helper()
	for range n {
		decide(t, l, key, 1)
	}
}

// open opens a page of the admin page.
func (o *office) open(page string) {
	o.Helper()
	o.do(chromedp.Navigate(o.url + page))
}

// find looks a key up in a limiter.
func (o *office) find(limiter, key string) {
	o.Helper()
	o.open("limiter?name=" + limiter)
	o.do(chromedp.SendKeys(css("#find"), key), chromedp.Click(css(".find button")))
	o.do(chromedp.WaitVisible(css("#state")))
}

// shows waits until an element has a text. The browser may be leaving the page in the meantime.
func (o *office) shows(selector, text string) {
	o.Helper()
	has := fmt.Sprintf(`!!document.querySelector(%q)?.innerText.includes(%q)`, selector, text)
	require.Eventually(o, func() bool {
		ok, err := chromedp.Run(o.ctx, chromedp.Evaluate[bool](has))
		return err == nil && ok
	}, time.Minute, 50*time.Millisecond, "want %q in %s", text, selector)
}

// text returns the text of the page.
func (o *office) text() string {
	o.Helper()
	return get(o.page, chromedp.Text(css("main")))
}

// TestAdminUnblocksAUser is the way of an operator: the attacker is among the keys that are denied
// most, is looked up and unblocked with a reason. Another process feels it, and the audit trail
// shows who did it.
func TestAdminUnblocksAUser(t *testing.T) {
	o := newOffice(t)
	deny(t, o.login, "198.51.100.1", 7)
	deny(t, o.login, attacker, 41)
	require.False(t, decide(t, o.other, attacker, 1).Allowed)

	o.open("")
	o.do(chromedp.Click(css(`a[href="limiter?name=login"]`)), chromedp.WaitVisible(css("#denied")))
	require.Equal(t, attacker, get(o.page, chromedp.Text(css("#denied tbody tr:first-child th"))), "the first of those that are denied most")
	require.Contains(t, o.text(), "Counters are shared in RedisStore rl:login:")
	o.do(chromedp.Click(css("#denied tbody tr:first-child a")), chromedp.WaitVisible(css("#state")))
	require.Contains(t, o.text(), "Blocked. It may come again in")
	require.NotContains(t, get(o.page, chromedp.Location()), attacker, "the address does not have the key")

	o.do(chromedp.SendKeys(css("#unblock-reason"), "ticket 7"), chromedp.Click(css(".act button")), chromedp.WaitVisible(css(".sure")))
	require.Contains(t, o.text(), "Unblock this key?")
	require.False(t, decide(t, o.other, attacker, 1).Allowed, "nothing has happened yet")
	o.do(chromedp.Click(css(".sure button")), chromedp.WaitVisible(css(".notice")))
	require.Contains(t, o.text(), "Unblocked by anna")
	require.Contains(t, o.text(), "Not denied.")
	require.Eventually(t, func() bool { return decide(t, o.other, attacker, 1).Allowed }, 5*time.Second, 10*time.Millisecond)

	o.open("audit")
	o.shows("#records", "reset, intended")
	for _, part := range []string{"by anna", "ticket 7", attacker} {
		require.Contains(t, o.text(), part)
	}
	o.do(chromedp.SendKeys(css("input[name=actor]"), "ben"), chromedp.Click(css(".filter button")))
	o.shows("#records", "No records.")
}

// TestAdminChangesLimits changes a limiter with two limits, twice.
func TestAdminChangesLimits(t *testing.T) {
	o := newOffice(t)
	l := o.limiter("checkout", quiet(TokenBucket(1, time.Second, 3), FixedWindow(50, 24*time.Hour)))
	for _, daily := range []int64{60, 70} {
		o.open("limiter?name=checkout")
		o.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`document.querySelector('#limits').value = '1/1s bucket burst=3\n%d/24h fixed\n'`, daily)),
			chromedp.SendKeys(css("#limits-reason"), "launch"), chromedp.Click(css(".act button")), chromedp.WaitVisible(css(".sure")),
			chromedp.Click(css(".sure button")))
		o.shows(".notice", "Limits changed by anna")
		require.Equal(t, []Limit{TokenBucket(1, time.Second, 3), FixedWindow(daily, 24*time.Hour)}, l.Limits())
	}
}

// TestAdminKeysAreInert shows keys with markup, a NUL, marks for right-to-left text, and 5 kB.
func TestAdminKeysAreInert(t *testing.T) {
	o := newOffice(t)
	for _, key := range []string{
		`<img src=x onerror="window.hacked=1">`, `"><script>window.hacked=1</script>`, "nul\x00", "\u202egnp.exe", strings.Repeat("<b>x", 1250), "\xff", `javascript:window.hacked=1`,
	} {
		deny(t, o.login, key, 8)
	}
	o.open("limiter?name=login")
	check := func() {
		t.Helper()
		require.False(t, get(o.page, chromedp.Evaluate[bool](`'hacked' in window`)))
		require.Zero(t, get(o.page, chromedp.Evaluate[int](`document.querySelectorAll('main img, main script, main b b, main [onerror]').length`)))
		require.True(t, get(o.page, chromedp.Evaluate[bool](`document.documentElement.scrollWidth <= innerWidth`)), "it is as wide as the window")
		require.NotRegexp(t, "[\x00\u202e]", get(o.page, chromedp.OuterHTML(css("main"))))
	}
	check()
	list := o.text()
	for _, shown := range []string{`"nul\x00"`, `"\u202egnp.exe"`, "5000 bytes", `"\xff"`, "javascript:window.hacked=1"} {
		require.Contains(t, list, shown)
	}
	keys := get(o.page, chromedp.Evaluate[int](`document.querySelectorAll('#denied tbody a').length`))
	require.Equal(t, 7, keys)
	for i := range keys {
		o.open("limiter?name=login")
		o.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`document.querySelectorAll('#denied tbody a')[%d].click()`, i)), chromedp.WaitVisible(css("#state")))
		require.Contains(t, o.text(), "Blocked.")
		check()
		o.do(chromedp.SendKeys(css("#unblock-reason"), `<img src=x onerror="window.hacked=1">`), chromedp.Click(css(".act button")), chromedp.WaitVisible(css(".sure")))
		check()
		o.do(chromedp.Click(css(".sure button")), chromedp.WaitVisible(css(".notice")))
		require.Contains(t, o.text(), "Not denied.")
		check()
	}
	o.open("audit")
	check()
}

// TestAdminRefusesOtherSites lets a page of another site send a form and put the page into a
// frame.
func TestAdminRefusesOtherSites(t *testing.T) {
	o := newOffice(t)
	deny(t, o.login, attacker, 6)
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		if r.URL.Path == "/frame" {
			fmt.Fprintf(w, `<iframe src="%s"></iframe>`, o.url)
			return
		}
		fmt.Fprintf(w, `<form method="post" action="%sact"><input name="do" value="unblock"><input name="limiter" value="login">
			<input name="key" value="%s"><input name="reason" value="evil"><button id="go">Win a hat</button></form>`, o.url, attacker)
	}))
	defer evil.Close()
	o.do(chromedp.Navigate(strings.Replace(evil.URL, "127.0.0.1", "localhost", 1)), chromedp.Click(css("#go")))
	o.shows("main .alert", "This form was sent by another site, so nothing was done.")
	require.False(t, decide(t, o.other, attacker, 1).Allowed)
	records, err := o.trail.Read(ctx, audit.Query{Actor: "anna"})
	require.NoError(t, err)
	require.Empty(t, records)

	o.do(chromedp.Navigate(evil.URL + "/frame"))
	require.NotContains(t, get(o.page, chromedp.Evaluate[string](`(() => { try { return frames[0].document.body.innerText } catch (e) { return String(e) } })()`)), "Limiters")
}

// TestAdminWithoutTLS uses the page under a name without TLS, where browsers do not send
// Sec-Fetch-Site: the page must still accept its own forms.
func TestAdminWithoutTLS(t *testing.T) {
	o := newOffice(t, chromedp.Flag("host-resolver-rules", "MAP shop.test 127.0.0.1"))
	deny(t, o.login, attacker, 6)
	o.url = strings.Replace(o.url, "127.0.0.1", "shop.test", 1)
	o.find("login", attacker)
	require.False(t, get(o.page, chromedp.Evaluate[bool](`isSecureContext`)))
	o.do(chromedp.SendKeys(css("#unblock-reason"), "ticket 7"), chromedp.Click(css(".act button")), chromedp.WaitVisible(css(".sure")), chromedp.Click(css(".sure button")))
	o.shows(".notice", "Unblocked by anna")
}

// TestAdminByKeyboard unblocks a user without a mouse.
func TestAdminByKeyboard(t *testing.T) {
	o := newOffice(t)
	deny(t, o.login, attacker, 6)
	focused := func(selector string) bool {
		return get(o.page, chromedp.Evaluate[bool](fmt.Sprintf(`document.activeElement.matches(%q)`, selector)))
	}
	// reach presses Tab until an element has the focus, which must be visible.
	reach := func(selector string) {
		t.Helper()
		for range 60 {
			o.do(chromedp.KeyEvent("\t"))
			if focused(selector) {
				require.NotEqual(t, "none", get(o.page, chromedp.Evaluate[string](`getComputedStyle(document.activeElement).outlineStyle`)), "the focus can be seen")
				return
			}
		}
		t.Fatalf("the focus never comes to %s", selector)
	}
	enter := chromedp.KeyEvent("\r")
	o.open("")
	o.do(chromedp.KeyEvent("\t"))
	require.True(t, focused(".skip"), "the first one leads to the content")
	reach(`a[href="limiter?name=login"]`)
	o.do(enter, chromedp.WaitVisible(css("#find")))
	reach("#find")
	o.do(chromedp.KeyEvent(attacker), enter, chromedp.WaitVisible(css("#state")))
	reach("#unblock-reason")
	o.do(chromedp.KeyEvent("ticket 7"), enter, chromedp.WaitVisible(css(".sure")))
	reach(".sure button")
	o.do(enter)
	o.shows(".notice", "Unblocked by anna")
}

// TestAdminRefreshMovesNothing lets numbers grow while a page is open.
func TestAdminRefreshMovesNothing(t *testing.T) {
	o := newOffice(t)
	deny(t, o.login, attacker, 15)
	deny(t, o.login, "198.51.100.1", 7)
	o.open("limiter?name=login")
	o.do(chromedp.Focus(css("#denied tbody tr:last-child a")))
	const places = `JSON.stringify([...document.querySelectorAll('main h1, main h2, main th, main td, main dd, footer button')].map(e => {
		const r = e.getBoundingClientRect(); return e.tagName + ' ' + [r.x, r.y + scrollY, r.width] }), null, 1)`
	before := get(o.page, chromedp.Evaluate[string](places))
	deny(t, o.login, attacker, 20)
	deny(t, o.login, "198.51.100.1", 90) // it is the first one now
	o.shows("#denied tbody tr:first-child", "30")
	o.shows("#denied tbody tr:last-child", "92")
	require.Equal(t, before, get(o.page, chromedp.Evaluate[string](places)))
	require.Equal(t, "198.51.100.1", get(o.page, chromedp.Evaluate[string](`document.activeElement.innerText`)), "the focus stays, and so does the order beneath it")
	o.do(chromedp.Blur(css("#denied tbody tr:last-child a")))
	o.shows("#denied tbody tr:first-child", "198.51.100.1")

	o.do(chromedp.Click(css("#pause")))
	o.shows("#pause", "Paused")
}

// TestAdminWithoutJavaScript is for a browser that runs no script: the pages are complete.
func TestAdminWithoutJavaScript(t *testing.T) {
	o := newOffice(t)
	deny(t, o.login, attacker, 6)
	_, err := chromedp.Call(o.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	require.NoError(t, err)
	o.open("limiter?name=login")
	o.do(chromedp.Click(css("#denied tbody a")), chromedp.WaitVisible(css("#state")))
	o.do(chromedp.SendKeys(css("#unblock-reason"), "ticket 7"), chromedp.Click(css(".act button")), chromedp.WaitVisible(css(".sure")),
		chromedp.Click(css(".sure button")), chromedp.WaitVisible(css(".notice")))
	require.True(t, decide(t, o.login, attacker, 1).Allowed)
	o.open("")
	require.Contains(t, get(o.page, chromedp.Attributes(css("#pause"))), "hidden", "there is no button without a use")
}
