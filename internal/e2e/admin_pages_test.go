package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// This file looks at all pages of package admin: with axe-core, at several widths, and in
// screenshots.

// accessible checks the page with axe-core, in light and in dark.
func (o *office) accessible(what, axe string) {
	o.Helper()
	for _, scheme := range []string{"light", "dark"} {
		o.scheme(scheme)
		o.do(chromedp.Evaluate[chromedp.Void](axe))
		found := get(o.page, chromedp.Evaluate[string](`axe.run(document, {resultTypes: ['violations']}).then(r => JSON.stringify(r.violations.map(v =>
			({id: v.id, help: v.help, nodes: v.nodes.map(n => n.html + ' ' + n.failureSummary)}))))`, chromedp.EvalAwaitPromise))
		require.Equal(o, "[]", found, "%s, %s", what, scheme)
	}
	o.scheme("light")
}

// scheme sets the color scheme that the user prefers.
func (o *office) scheme(name string) {
	o.Helper()
	_, err := chromedp.Call(o.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
	})
	require.NoError(o, err)
}

// axeCore returns the source of axe-core, an npm package. RATELIMIT_NODE_MODULES, or NODE_PATH,
// names the folder that it is in.
func axeCore(t *testing.T) string {
	required := os.Getenv("RATELIMIT_NODE_MODULES")
	folder := required
	if folder == "" {
		folder = os.Getenv("NODE_PATH")
	}
	source, err := os.ReadFile(filepath.Join(folder, "axe-core", "axe.min.js"))
	if err != nil && required != "" {
		t.Fatalf("npm package axe-core: %v, and RATELIMIT_NODE_MODULES is set", err)
	}
	if err != nil {
		t.Skip("npm package axe-core: not found in RATELIMIT_NODE_MODULES or NODE_PATH")
	}
	return string(source)
}

// A shot is a page and how to come there.
type shot struct {
	name string
	open func(o *office)
}

// shots are all pages, also with nothing to show, with errors and with alerts.
var shots = []shot{
	{"limiters", func(o *office) { o.open("") }},
	{"limiters-none", func(o *office) { o.open("?q=nothing") }},
	{"limiter", func(o *office) { o.open("limiter?name=login") }},
	{"limiter-quiet", func(o *office) { o.open("limiter?name=checkout") }},
	{"found", func(o *office) {
		o.open("")
		o.do(chromedp.SendKeys(css("#find"), attacker), chromedp.Click(css(".find button")), chromedp.WaitVisible(css(".keyname")))
	}},
	{"key", func(o *office) { o.find("login", attacker) }},
	{"key-free", func(o *office) { o.find("login", "2001:DB8:1:2::7") }},
	{"key-plan", func(o *office) { o.find("search", "customer=K-17") }},
	{"confirm", func(o *office) {
		o.find("login", attacker)
		o.do(chromedp.SendKeys(css("#unblock-reason"), "ticket 4711"), chromedp.Click(css(".act button")), chromedp.WaitVisible(css(".sure")))
	}},
	{"confirm-limits", func(o *office) {
		o.open("limiter?name=search")
		o.do(chromedp.SendKeys(css("#limits-reason"), "launch"), chromedp.Click(css(".act button")), chromedp.WaitVisible(css(".sure")))
	}},
	{"store", func(o *office) { o.open("store") }},
	{"audit", func(o *office) { o.open("audit") }},
	{"error", func(o *office) { o.open("limiter?name=none") }},
}

// fill lets an office have something to show.
func (o *office) fill() {
	search := quiet(SlidingWindow(30, time.Minute).Named("search-free"))
	free := o.limiter("search", search)
	pro := SlidingWindow(300, time.Minute).Named("search-pro")
	_, err := free.TakeLimits(ctx, "customer=K-17", 1, pro)
	require.NoError(o, err)
	o.limiter("checkout", quiet(TokenBucket(1, time.Second, 3), FixedWindow(50, 24*time.Hour)))
	small, err := NewMemoryStore("signup", MemoryOptions{MaxKeys: 1})
	require.NoError(o, err)
	o.Cleanup(func() { small.Close() })
	signup, err := o.registry.New("signup", Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Store: small, Logger: quiet().Logger})
	require.NoError(o, err)
	o.Cleanup(func() { signup.Close() })

	length := 6 * time.Second
	if os.Getenv("RATELIMIT_SCREENSHOTS") != "" {
		length = time.Minute
	}
	end := time.Now().Add(length)
	for i := 0; time.Now().Before(end); i++ {
		if i/100%3 != 1 {
			decide(o, o.login, attacker, 1)
		}
		decide(o, o.login, fmt.Sprint("192.0.2.", i%250), 1)
		for j := range 3 + i/100%5 {
			decide(o, free, fmt.Sprint("ip=198.51.100.", i%(9*(j+1))), 1)
		}
		if i%4 == 0 {
			decide(o, o.login, fmt.Sprintf("198.51.100.%d", i%40), 1)
			decide(o, o.login, "2001:db8:7:1::/64", 1)
		}
		if i%3 == 0 {
			decide(o, o.login, "<script>alert(1)</script>", 1)
		}
		for j := range 300 {
			decide(o, signup, fmt.Sprint(i, ".", j/2), 1)
		}
		time.Sleep(50 * time.Millisecond)
	}
	by := WithReason(WithActor(ctx, "ben"), "ticket 4702")
	require.NoError(o, o.login.Block(by, "198.51.100.23", 24*time.Hour))
	require.NoError(o, o.login.Reset(WithReason(WithActor(ctx, "anna"), "ticket 4707"), "2001:db8:7:1::/64"))
	require.NoError(o, o.login.SetLimitsContext(WithReason(WithActor(ctx, "ben"), "ticket 4709"), o.login.Limits()[0].Block(15*time.Minute, 2*time.Hour, 24*time.Hour)))
	deny(o, o.login, attacker, 3)
}

// TestAdminPages looks at each page on a phone, a tablet and a desktop, in light and in dark:
// axe-core finds nothing, and nothing is wider than the window. It saves screenshots as
// artifacts. TestAdminScreenshots is for docs/admin.md.
func TestAdminPages(t *testing.T) {
	o := newOffice(t)
	axe := axeCore(t)
	o.fill()
	for _, width := range []int64{360, 768, 1280} {
		o.do(chromedp.EmulateViewport(width, 800))
		for _, s := range shots {
			s.open(o)
			require.True(t, get(o.page, chromedp.Evaluate[bool](`document.documentElement.scrollWidth <= innerWidth`)), "%s is wider than %d pixels", s.name, width)
			if width != 768 {
				o.accessible(s.name, axe)
			}
			o.screenshot(fmt.Sprintf("%s-%d", s.name, width))
			if width == 360 || s.name == "limiter" {
				o.scheme("dark")
				o.screenshot(fmt.Sprintf("%s-%d-dark", s.name, width))
				o.scheme("light")
			}
		}
	}
}

// docShots are the screenshots of docs/admin.md.
var docShots = map[string]struct {
	page   string
	width  int64
	height int64
	scheme string
}{
	"admin-limiters.png": {"limiters", 1100, 470, "light"},
	"admin-limiter.png":  {"limiter", 1100, 640, "dark"},
	"admin-key.png":      {"key", 820, 760, "light"},
	"admin-phone.png":    {"key", 360, 640, "dark"},
	"admin-audit.png":    {"audit", 1100, 420, "light"},
}

// TestAdminScreenshots writes the screenshots of docs/admin.md if RATELIMIT_SCREENSHOTS is set.
// Otherwise it checks that they are there. Run it with -trimpath, so that the pages do not show
// where the sources are.
func TestAdminScreenshots(t *testing.T) {
	docs := filepath.Join("..", "..", "docs")
	if os.Getenv("RATELIMIT_SCREENSHOTS") == "" {
		text, err := os.ReadFile(filepath.Join(docs, "admin.md"))
		require.NoError(t, err)
		for name := range docShots {
			info, err := os.Stat(filepath.Join(docs, name))
			require.NoError(t, err)
			require.Less(t, info.Size(), int64(100_000), name)
			require.Contains(t, string(text), "("+name+")")
		}
		return
	}
	o := newOffice(t)
	o.fill()
	for name, shot := range docShots {
		o.do(chromedp.EmulateViewport(shot.width, shot.height))
		for _, s := range shots {
			if s.name == shot.page {
				s.open(o)
			}
		}
		o.scheme(shot.scheme)
		png := get(o.page, chromedp.CaptureScreenshot())
		require.NoError(t, os.WriteFile(filepath.Join(docs, name), png, 0o644))
	}
}
