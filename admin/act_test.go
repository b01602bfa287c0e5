package admin_test

import (
	"context"
	"errors"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/admin"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// newTrail opens an audit trail with the keys in it.
func newTrail(t *testing.T) *audit.Trail {
	t.Helper()
	file, err := audit.OpenFile(filepath.Join(t.TempDir(), "audit.jsonl"))
	require.NoError(t, err)
	trail, err := audit.New(audit.Options{Sink: file, PlainKeys: true, Service: "shop", Instance: "web-1", Logger: quiet})
	require.NoError(t, err)
	t.Cleanup(func() { trail.Close(); file.Close() })
	return trail
}

// Each action is asked about first, then done, and recorded in the name of the actor.
func TestActions(t *testing.T) {
	r, trail := new(ratelimit.Registry), newTrail(t)
	l := newLimiter(t, r, "login", ratelimit.Options{Audit: trail})
	s := newSite(t, admin.Options{Registry: r, Actor: anna, Audit: trail})
	const key = "203.0.113.7"
	for _, test := range []struct {
		form  url.Values
		asks  []string
		done  string
		check func(page map[string]any) bool
		kind  string
	}{
		{url.Values{"do": {"refund"}, "units": {"2"}}, []string{"Give units back?", "It gets 2 units back under each of the limits 5/1h fixed"}, "2 units given back by anna at",
			func(page map[string]any) bool { return at(page, "standings", 0, "remaining") == 2.0 }, "refunded"},
		{url.Values{"do": {"unblock"}}, []string{"Unblock this key?", "in this process, where its counters are"}, "Unblocked by anna at",
			func(page map[string]any) bool { return at(page, "standings", 0, "remaining") == 5.0 }, "reset"},
		{url.Values{"do": {"block"}, "for": {"7d"}}, []string{"Block this key?", "Its requests are denied for 7 d, until"}, "Blocked for 7 d by anna at",
			func(page map[string]any) bool { return at(page, "state") == "blocked" }, "blocked"},
	} {
		require.NoError(t, l.Reset(ctx, key))
		deny(t, l, key, 1)
		to := s.find("login", key)
		test.form.Set("k", at(s.json(to), "key", "link").(string))
		test.form.Set("reason", " ticket 7 & <b> ")

		before := s.json(to)
		confirm := s.send("POST", "confirm", test.form).Body.String()
		for _, part := range append(test.asks, key, "login", "ticket 7 &amp; &lt;b&gt;", "anna", `action="act"`) {
			require.Contains(t, confirm, part)
		}
		require.Equal(t, at(before, "standings", 0, "remaining"), at(s.json(to), "standings", 0, "remaining"), "to be asked changes nothing")

		to = s.post("act", test.form)
		require.True(t, test.check(s.json(to)), "%s: %v", test.kind, s.json(to))
		require.Contains(t, text(s.get(to)), test.done)
		require.Contains(t, s.get(to), "ticket 7 &amp; &lt;b&gt;")
		_, notice, _ := strings.Cut(to, "&n=")
		require.NotContains(t, s.get(s.find("login", "203.0.113.8")+"&n="+notice), "by anna", "it is about this key alone")

		record := at(s.json("audit?actor=anna"), "records", 0)
		require.Equal(t, test.kind, at(record, "kind"))
		require.Equal(t, "intended", at(record, "outcome"), "the record that is safe before anything changes")
		require.Equal(t, "ticket 7 & <b>", at(record, "reason"))
		require.Equal(t, key, at(record, "key"))
	}
}

// The limits of this process can be changed. The page says that it is this process alone.
func TestChangeLimits(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "login", ratelimit.Options{Limits: []ratelimit.Limit{hourly.Named("per hour"), ratelimit.TokenBucket(1, time.Second, 9)}})
	s := newSite(t, admin.Options{Registry: r, Actor: anna})
	page := s.get("limiter?name=login")
	require.Contains(t, page, "5/1h fixed name=&#34;per hour&#34;\n1/1s bucket burst=9</textarea>")
	form := url.Values{"do": {"limits"}, "limiter": {"login"}, "reason": {"launch"}, "limits": {"9/1h fixed name=\"per hour\"\r\n\r\n 1/1s bucket burst=9 \r\n"}}
	confirm := s.send("POST", "confirm", form).Body.String()
	require.Contains(t, confirm, "This changes this process only")
	require.Contains(t, confirm, "9/1h fixed name=&#34;per hour&#34;")
	require.Equal(t, int64(5), l.Limits()[0].N())
	to := s.post("act", formOf(t, confirm))
	require.Equal(t, "limiter?", to[:8])
	require.Contains(t, s.get(to), "Limits changed by anna")
	require.Equal(t, int64(9), l.Limits()[0].N())
	require.Equal(t, "per hour", l.Limits()[0].Name())

	for limits, want := range map[string]string{
		"":                                       "There are no limits",
		"five":                                   "five",
		"9/1h fixed\n8/1h fixed":                 "have the same algorithm and window",
		strings.Repeat("9/1h fixed name=a\n", 9): "want at most 8",
	} {
		form.Set("limits", limits)
		w := s.send("POST", "act", form)
		require.GreaterOrEqual(t, w.Code, 400)
		require.Contains(t, w.Body.String(), want)
		require.Equal(t, int64(9), l.Limits()[0].N())
	}
}

// Forms that are wrong do nothing, and say why.
func TestWrongForms(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "login", ratelimit.Options{})
	deny(t, l, "ada", 1)
	s := newSite(t, admin.Options{Registry: r, Actor: anna})
	form := func(pairs ...string) url.Values {
		f := url.Values{"do": {"unblock"}, "limiter": {"login"}, "key": {"ada"}, "reason": {"ticket"}}
		for i := 0; i < len(pairs); i += 2 {
			f.Set(pairs[i], pairs[i+1])
		}
		return f
	}
	for _, test := range []struct {
		form   url.Values
		status int
		want   string
	}{
		{form("reason", " "), 400, "Give a reason"},
		{form("reason", strings.Repeat("x", 501)), 400, "The reason has 501 characters"},
		{form("do", "forget"), 400, "The field do is &#34;forget&#34;"},
		{form("limiter", "none"), 404, "There is no limiter"},
		{form("key", ""), 400, "The field key is empty"},
		{form("k", "x"), 410, "Look the key up again"},
		{form("do", "block"), 400, "want one such as 30m, 24h or 7d"},
		{form("do", "block", "for", "-1h"), 400, "want one such as"},
		{form("do", "block", "for", "99999d"), 400, "want one such as"},
		{form("do", "refund", "units", "0"), 400, "want a whole number"},
		{form("do", "refund", "units", "9999999999999999999"), 400, "want a whole number"},
		{form("reason", "\u200b\u2800\x00"), 400, "Give a reason"},
		{form("do", "block", "for", "30000d"), 400, "50 years at most"},
		{form("reason", strings.Repeat("x", 70_000)), 400, "longer than 64 kB"},
	} {
		for _, page := range []string{"confirm", "act"} {
			w := s.send("POST", page, test.form)
			require.Equal(t, test.status, w.Code, "%v", test.form)
			require.Contains(t, w.Body.String(), test.want)
		}
	}
	d, err := l.Take(ctx, "ada")
	require.NoError(t, err)
	require.False(t, d.Allowed)
	w := s.send("POST", "act", form(), func(r *http.Request) { r.Header.Set("Content-Type", "multipart/form-data; boundary=x") })
	require.Equal(t, 415, w.Code, "it is no form of the page")
}

var newlines = regexp.MustCompile(`\r\n|\r|\n`)

// formOf returns what a browser sends for the form on a page: each newline as CRLF.
func formOf(t *testing.T, page string) url.Values {
	form := url.Values{}
	for _, m := range regexp.MustCompile(`<input type="hidden" name="(\w+)" value="([^"]*)">`).FindAllStringSubmatch(page, -1) {
		form.Set(m[1], newlines.ReplaceAllString(html.UnescapeString(m[2]), "\r\n"))
	}
	require.NotEmpty(t, form)
	return form
}

// A double click acts once.
func TestFormThatIsSentTwice(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "login", ratelimit.Options{})
	deny(t, l, "ada", 1)
	s := newSite(t, admin.Options{Registry: r, Actor: anna})
	refund := url.Values{"do": {"refund"}, "limiter": {"login"}, "key": {"ada"}, "units": {"2"}, "reason": {"ticket"}}
	form := formOf(t, s.send("POST", "confirm", refund).Body.String())
	require.Equal(t, 303, s.send("POST", "act", form).Code)
	again := s.send("POST", "act", form)
	require.Equal(t, 409, again.Code)
	require.Contains(t, again.Body.String(), "This form was sent before")
	d, err := l.TakeN(ctx, "ada", 0)
	require.NoError(t, err)
	require.EqualValues(t, 2, d.Remaining)
	require.Equal(t, 303, s.send("POST", "act", formOf(t, s.send("POST", "confirm", refund).Body.String())).Code, "a second form is another one")
}

// An operator does not undo what somebody else has changed in the meantime.
func TestLimitsThatHaveChanged(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "login", ratelimit.Options{})
	s := newSite(t, admin.Options{Registry: r, Actor: anna})
	form := formOf(t, s.send("POST", "confirm", url.Values{"do": {"limits"}, "limiter": {"login"}, "limits": {"9/1h fixed"}, "reason": {"ticket"}}).Body.String())
	tighter := ratelimit.FixedWindow(1, time.Hour)
	require.NoError(t, l.SetLimits(tighter))
	w := s.send("POST", "act", form)
	require.Equal(t, 409, w.Code)
	require.Contains(t, w.Body.String(), "Somebody has changed the limits since you saw them")
	require.Equal(t, []ratelimit.Limit{tighter}, l.Limits())
}

// The page does not say that a limiter in Shadow denies.
func TestShadow(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "login", ratelimit.Options{Shadow: true})
	deny(t, l, "ada", 1)
	s := newSite(t, admin.Options{Registry: r, Actor: anna})
	require.Contains(t, s.get(s.find("login", "ada")), "let through nevertheless, because of Options.Shadow")
	w := s.send("POST", "confirm", url.Values{"do": {"block"}, "limiter": {"login"}, "key": {"ada"}, "for": {"1h"}, "reason": {"ticket"}})
	require.Contains(t, w.Body.String(), "Options.Shadow of this limiter is set")
}

// A trail that panics fails its page only.
func TestAuditThatPanics(t *testing.T) {
	s := newSite(t, admin.Options{Registry: new(ratelimit.Registry), Audit: (*audit.Trail)(nil)})
	require.Contains(t, s.get("audit"), "Options.Audit has panicked")
}

// What cannot be recorded is not done, and the page says so.
func TestActionThatCannotBeRecorded(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "login", ratelimit.Options{Audit: failing{}})
	deny(t, l, "ada", 1)
	form := url.Values{"do": {"unblock"}, "limiter": {"login"}, "key": {"ada"}, "reason": {"ticket"}}
	for _, opts := range []admin.Options{{}, {KeyView: func(_ *http.Request, _, key string) string { return "…" }}} {
		opts.Registry, opts.Actor = r, anna
		w := newSite(t, opts).send("POST", "act", form)
		require.Equal(t, http.StatusInternalServerError, w.Code)
		if opts.KeyView == nil {
			require.Contains(t, w.Body.String(), "nothing was changed, because it could not be recorded: no disk for ada")
		} else {
			require.NotContains(t, w.Body.String(), "ada")
		}
		d, err := l.Take(ctx, "ada")
		require.NoError(t, err)
		require.False(t, d.Allowed)
	}
}

// failing is an auditor whose disk is full, and a trail that cannot be read.
type failing struct{}

func (failing) Record(_ context.Context, e ratelimit.Event) error {
	return fmt.Errorf("no disk for %s", e.Key)
}

func (failing) Read(_ context.Context, q audit.Query) ([]audit.Record, error) {
	return nil, errors.New("no disk for " + q.Key)
}

// The page "audit" finds records by limiter, actor and key.
func TestAudit(t *testing.T) {
	r, trail := new(ratelimit.Registry), newTrail(t)
	login := newLimiter(t, r, "login", ratelimit.Options{Audit: trail})
	api := newLimiter(t, r, "api", ratelimit.Options{Audit: trail})
	s := newSite(t, admin.Options{Registry: r, Actor: anna, Audit: trail})
	require.Contains(t, s.get("audit"), "No records.")
	for _, l := range []*ratelimit.Limiter{login, api} {
		for _, key := range []string{"2001:db8:1:2::/64", "<b>\u202e"} {
			for _, who := range []string{"anna", "<i>ben"} {
				_, err := l.Take(ctx, key)
				require.NoError(t, err)
				require.NoError(t, l.Reset(ratelimit.WithReason(ratelimit.WithActor(ctx, who), "why"), key))
			}
		}
	}
	count := func(page string) int { return len(at(s.json(page), "records").([]any)) }
	require.Equal(t, 8, count("audit"))
	for _, test := range []struct {
		form url.Values
		want int
	}{
		{url.Values{"limiter": {"login"}}, 4},
		{url.Values{"actor": {" anna "}}, 4},
		{url.Values{"actor": {"<i>ben"}, "limiter": {"api"}}, 2},
		{url.Values{"limiter": {"login"}, "key": {"2001:DB8:1:2::7"}}, 2},
		{url.Values{"key": {"2001:db8:1:2::/64"}}, 4},
		{url.Values{"key": {"none"}}, 0},
		{url.Values{}, 8},
	} {
		if _, ok := test.form["limiter"]; ok && test.form.Get("key") != "" {
			_, err := login.Take(ctx, "2001:db8:1:2::/64") // so that it is found
			require.NoError(t, err)
		}
		to := s.post("audit", test.form)
		require.NotContains(t, to, "2001")
		require.Equal(t, test.want, count(to), "%v", test.form)
	}
	page := s.get("audit")
	require.Contains(t, page, "&lt;i&gt;ben")
	require.Contains(t, page, `&#34;&lt;b&gt;\u202e&#34;`)
	require.NotRegexp(t, "<b>\u202e|<i>ben|\u202e", page)

	masked := newSite(t, admin.Options{Registry: r, Actor: anna, Audit: trail, KeyView: func(*http.Request, string, string) string { return "masked" }})
	require.NotContains(t, masked.get("audit"), "2001:db8")
	require.NotContains(t, fmt.Sprint(masked.json("audit")), "2001:db8")

	none := newSite(t, admin.Options{Registry: r, Actor: anna})
	require.Equal(t, 404, none.send("GET", "audit", nil).Code)
	require.NotContains(t, none.get(""), "Audit trail")
	broken := newSite(t, admin.Options{Registry: r, Actor: anna, Audit: failing{}})
	require.Contains(t, broken.get(broken.post("audit", url.Values{"key": {"ada"}})), "no disk for ada")
}

// An operator's action on Redis holds for another process within DenyRecheck.
func TestOtherProcessFeelsIt(t *testing.T) {
	if strconv.IntSize == 32 {
		t.Skip("miniredis does not work on 32-bit machines")
	}
	server := miniredis.RunT(t)
	var processes [2]*ratelimit.Limiter
	registries := [2]*ratelimit.Registry{new(ratelimit.Registry), new(ratelimit.Registry)}
	for i, r := range registries {
		processes[i] = newLimiter(t, r, "login", ratelimit.Options{Redis: redistest.Client(t, server.Addr()), DenyRecheck: 20 * time.Millisecond, Timeout: 10 * time.Second})
	}
	s := newSite(t, admin.Options{Registry: registries[0], Actor: anna})
	deny(t, processes[1], "203.0.113.7", 3)
	to := s.find("login", "203.0.113.7")
	require.Equal(t, "denied", at(s.json(to), "state"))
	require.NotContains(t, s.json(to), "uncertain")
	require.Contains(t, text(s.get(to)), "Counters are shared in RedisStore rl:login:; while it fails: FallbackLocal.")
	form := url.Values{"do": {"unblock"}, "k": {at(s.json(to), "key", "link").(string)}, "reason": {"ticket 7"}}
	require.Contains(t, s.send("POST", "confirm", form).Body.String(), "for all processes that count in RedisStore rl:login:.")
	s.post("act", form)
	require.Eventually(t, func() bool {
		d, err := processes[1].TakeN(ctx, "203.0.113.7", 1)
		return err == nil && d.Allowed
	}, 10*time.Second, 5*time.Millisecond)

	// While the store is away, the page says so, and shows what this process knows.
	server.Close()
	for range 50 {
		_, err := processes[0].Take(ctx, "203.0.113.7")
		require.NoError(t, err)
	}
	page := s.json("store")
	require.Equal(t, true, at(page, "remote", 0, "breaker_open"))
	require.Greater(t, at(page, "remote", 0, "failures"), 0.0)
	require.Greater(t, at(page, "remote", 0, "mean_seconds"), 0.0)
	require.Contains(t, s.get("store"), `<b class="hot">open</b>`)
	require.Equal(t, "denied", at(s.json(to), "state"))
	require.Equal(t, true, at(s.json(to), "uncertain"))
	require.Contains(t, s.get(to), "This is what this process knows of the key.")
	require.Eventually(t, func() bool { return strings.Contains(text(s.get("limiter?name=login")), "store-down") }, 10*time.Second, 10*time.Millisecond)
}

// Alerts are of the last minute.
func TestAlerts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := new(ratelimit.Registry)
		store, err := ratelimit.NewMemoryStore(t.Name(), ratelimit.MemoryOptions{MaxKeys: 1})
		require.NoError(t, err)
		defer store.Close()
		l := newLimiter(t, r, "login", ratelimit.Options{Store: store, Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)}})
		s := newSite(t, admin.Options{Registry: r})
		require.Empty(t, at(s.json(""), "limiters", 0, "alerts"))
		for i := range 5000 {
			deny(t, l, fmt.Sprint(i), 1)
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		require.Equal(t, "evicted", at(s.json(""), "limiters", 0, "alerts", 0, "code"))
		for _, page := range []string{"", "limiter?name=login"} {
			require.Contains(t, text(s.get(page)), "counters of denied keys had to go: MemoryOptions.MaxKeys is too small.")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.Empty(t, at(s.json(""), "limiters", 0, "alerts"))
	})
}
