package admin_test

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/admin"
)

// The list shows what each limiter is and what it has decided in the last minute.
func TestLimiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := new(ratelimit.Registry)
		l := newLimiter(t, r, "login", ratelimit.Options{})
		newLimiter(t, r, "search", ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.SlidingWindow(30, time.Minute), ratelimit.FixedWindow(900, time.Hour)}})
		s := newSite(t, admin.Options{Registry: r})
		require.Equal(t, float64(0), at(s.json(""), "limiters", 0, "measured_seconds"), "nothing is measured yet")
		require.Contains(t, s.get(""), `<span class="dim">–</span>`)

		time.Sleep(time.Second) // between two samples
		for range 12 {
			for range 10 {
				_, err := l.Take(ctx, "203.0.113.7")
				require.NoError(t, err)
			}
			time.Sleep(5 * time.Second)
		}
		synctest.Wait()
		row := at(s.json(""), "limiters", 0)
		require.Equal(t, "login", at(row, "name"))
		require.Equal(t, "5/1h fixed", at(row, "limits", 0))
		require.Equal(t, "MemoryStore", at(row, "store"))
		require.Contains(t, at(row, "site"), "helpers_test.go:")
		require.Equal(t, float64(60), at(row, "measured_seconds"))
		require.Equal(t, 2.0, at(row, "requests_per_second"))
		require.InDelta(t, 115.0/60, at(row, "denials_per_second"), 1e-9)
		require.Equal(t, []any{map[string]any{"source": "store", "percent": 100.0}}, at(row, "sources"))
		require.Len(t, at(row, "history"), 12)
		require.Equal(t, 2.0, at(row, "history", 3, "denials"))
		page := s.get("")
		require.Regexp(t, `30/1m sliding · 900/1h fixed`, page)
		require.Regexp(t, `>2\.0</td>\s*<td class="n hot">1\.9<`, page)
		require.Equal(t, 2, strings.Count(page, `<svg class="spark"`))

		time.Sleep(2 * time.Minute) // the minute moves on
		synctest.Wait()
		require.Equal(t, 0.0, at(s.json(""), "limiters", 0, "requests_per_second"))
	})
}

// The handler works wherever it is mounted, and all its links are relative.
func TestMounts(t *testing.T) {
	r := new(ratelimit.Registry)
	deny(t, newLimiter(t, r, "login", ratelimit.Options{}), "203.0.113.7", 1)
	handler := admin.Handler(admin.Options{Registry: r})
	mux := http.NewServeMux()
	mux.Handle("/plain/", handler)
	mux.Handle("/stripped/", http.StripPrefix("/stripped", handler))
	mux.Handle("/deep/er/", http.StripPrefix("/deep/er/", handler))
	mux.Handle("/noslash", http.StripPrefix("/noslash", handler))
	mux.Handle("/noslash/", http.StripPrefix("/noslash", handler))
	mux.Handle("/", handler)
	link := regexp.MustCompile(`(?:href|src|action)="([^"]*)"`)
	for _, mount := range []string{"/plain/", "/stripped/", "/deep/er/", "/noslash/", "/"} {
		s := &site{t, mux, mount}
		page := s.get("")
		for _, page := range []string{page, s.get("limiter?name=login"), s.get(s.find("login", "203.0.113.7"))} {
			for _, m := range link.FindAllStringSubmatch(page, -1) {
				require.NotRegexp(t, `^/|^[a-z]+:`, m[1], "%s", mount)
			}
		}
		for _, file := range []string{"style.css", "live.js", "icon.svg"} {
			require.NotEmpty(t, s.get(file))
		}
		require.Equal(t, http.StatusNotFound, s.send("GET", "nothing", nil).Code)
	}
	w := (&site{t, mux, "/noslash"}).send("GET", "?q=log", nil)
	require.Equal(t, http.StatusMovedPermanently, w.Code)
	require.Equal(t, "./noslash/?q=log", w.Header().Get("Location"))
}

// The page of a limiter has the keys that it denies most.
func TestDeniedKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := new(ratelimit.Registry)
		l := newLimiter(t, r, "login", ratelimit.Options{})
		s := newSite(t, admin.Options{Registry: r})
		require.Contains(t, s.get("limiter?name=login"), "This process has denied no key.")
		deny(t, l, "203.0.113.66", 36)
		deny(t, l, "198.51.100.1", 2)
		for range 41 {
			time.Sleep(time.Minute)
			_, err := l.Take(ctx, "203.0.113.66")
			require.NoError(t, err)
		}
		page := s.json("limiter?name=login")
		require.Equal(t, "203.0.113.66", at(page, "denied_keys", 0, "key", "text"))
		require.Equal(t, 77.0, at(page, "denied_keys", 0, "denied"))
		require.Equal(t, 0.0, at(page, "denied_keys", 0, "too_high_by_at_most"))
		require.Equal(t, "login", at(page, "denied_keys", 0, "policy"))
		require.Equal(t, "198.51.100.1", at(page, "denied_keys", 1, "key", "text"))
		html := text(s.get("limiter?name=login"))
		require.Contains(t, html, "203.0.113.66 77denied for 41 m")
		require.Contains(t, html, "198.51.100.1 2last denied 41 m ago")

		key := at(page, "denied_keys", 0, "key", "link").(string)
		require.NoError(t, l.Reset(ctx, "203.0.113.66"))
		require.Contains(t, text(s.get("limiter?name=login")), "203.0.113.66 77unblocked")
		html = text(s.get("key?k=" + key))
		require.Contains(t, html, "Not denied.")
		require.Contains(t, html, "This process has denied it 77 times, by login: unblocked.")
	})
}

// A flood of other keys neither hides the attacker nor takes memory.
func TestDeniedKeysAreBounded(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "login", ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)}})
	s := newSite(t, admin.Options{Registry: r})
	for i := range 20_000 {
		deny(t, l, fmt.Sprint("once ", i), 1)
		if i%20 == 0 {
			deny(t, l, "attacker", 1)
		}
	}
	denied := at(s.json("limiter?name=login"), "denied_keys").([]any)
	require.Len(t, denied, 64)
	require.Equal(t, "attacker", at(denied, 0, "key", "text"))
	count, excess := at(denied, 0, "denied").(float64), at(denied, 0, "too_high_by_at_most").(float64)
	require.GreaterOrEqual(t, count, 1999.0)
	require.LessOrEqual(t, count-excess, 1999.0)
	sum := 0.0
	for i := range denied {
		sum += at(denied, i, "denied").(float64)
	}
	require.Equal(t, 20_000+1999.0, sum, "each denial is counted once")
}

// The page of a key says when it may come again, under each limit.
func TestKeyPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := new(ratelimit.Registry)
		free, pro := ratelimit.FixedWindow(2, time.Hour).Named("free"), ratelimit.FixedWindow(9, time.Hour).Named("pro")
		l := newLimiter(t, r, "api", ratelimit.Options{Limits: []ratelimit.Limit{free, ratelimit.SlidingWindow(100, time.Minute)}})
		blocking := newLimiter(t, r, "login", ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour).Block(3*time.Hour, 24*time.Hour)}})
		newLimiter(t, r, "shut", ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.Deny}})
		newLimiter(t, r, "open", ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.Unlimited}})
		newLimiter(t, r, "busy", ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.InFlight(1, time.Hour)}})
		s := newSite(t, admin.Options{Registry: r, Actor: anna})

		page := s.json(s.find("api", "ada"))
		require.Equal(t, "free", at(page, "state"))
		require.Equal(t, "Not denied. A request for one unit is admitted now.", at(page, "verdict"))

		deny(t, l, "ada", 1)
		to := s.find("api", "ada")
		page = s.json(to)
		require.Equal(t, "denied", at(page, "state"))
		require.Equal(t, "Denied. One unit fits again in 1 h, at 01:00:00 UTC.", at(page, "verdict"))
		require.Equal(t, 0.0, at(page, "standings", 0, "remaining"))
		require.Equal(t, 98.0, at(page, "standings", 1, "remaining"))
		require.Equal(t, 1.0, at(page, "denied", "denied"))

		require.NotContains(t, page, "plans")
		_, err := l.TakeLimits(ctx, "ada", 1, pro)
		require.NoError(t, err)
		require.Equal(t, []any{"pro"}, at(s.json(to), "plans"))
		page = s.json(to + "&plan=pro")
		require.Equal(t, 6.0, at(page, "standings", 0, "remaining"), "the plan counts where the limit does")
		require.Equal(t, "free", at(page, "state"))

		deny(t, blocking, "ada", 1)
		page = s.json(s.find("login", "ada"))
		require.Equal(t, "blocked", at(page, "state"))
		require.Equal(t, "Blocked. It may come again in 3 h, at 03:00:00 UTC.", at(page, "verdict"))
		require.Equal(t, true, at(page, "standings", 0, "blocked"))
		require.Equal(t, "3 h, then 1 d", at(page, "standings", 0, "ladder"))

		require.Contains(t, at(s.json(s.find("shut", "ada")), "verdict"), "The limit admits nothing.")
		require.Equal(t, "free", at(s.json(s.find("open", "ada")), "state"))
		busy := s.get(s.find("busy", "ada"))
		require.NotContains(t, busy, "Give units back", "an in-flight limit has no units")
		for _, name := range []string{"api", "login", "shut", "open", "busy"} {
			require.Contains(t, s.get(s.find(name, "2001:db8::1")), "everybody in it shares this key")
		}
	})
}

// A look at a key under one limit of a plan adds no policy to the statistics, and changes none.
func TestLookUnderAPlanChangesNothing(t *testing.T) {
	r := new(ratelimit.Registry)
	l := newLimiter(t, r, "api", ratelimit.Options{Limits: []ratelimit.Limit{hourly, ratelimit.FixedWindow(2, time.Minute)}})
	daily := ratelimit.FixedWindow(100, 24*time.Hour)
	for _, plan := range [][]ratelimit.Limit{{ratelimit.FixedWindow(50, time.Hour), daily}, {ratelimit.FixedWindow(9, time.Second)}} {
		_, err := l.TakeLimits(ctx, "ada", 1, plan...)
		require.NoError(t, err)
	}
	before := l.Stats().Policies
	s := newSite(t, admin.Options{Registry: r})
	to := s.find("api", "ada")
	require.Equal(t, []any{"api-24h", "api"}, at(s.json(to), "plans"))
	for plan, left := range map[string]float64{"api-24h": 99, "api": 8} {
		page := s.json(to + "&plan=" + plan)
		require.Equal(t, plan, at(page, "standings", 0, "policy"))
		require.Equal(t, left, at(page, "standings", 0, "remaining"))
	}
	require.Equal(t, before, l.Stats().Policies)
}

// A thousand limiters are listed in pages, can be filtered and sorted, and those with alerts are
// named first.
func TestThousandLimiters(t *testing.T) {
	r := new(ratelimit.Registry)
	for i := range 1000 {
		newLimiter(t, r, fmt.Sprintf("limiter-%03d", i), ratelimit.Options{})
	}
	s := newSite(t, admin.Options{Registry: r})
	page := s.json("")
	require.Len(t, at(page, "limiters"), 50)
	require.Equal(t, 1000.0, at(page, "total"))
	require.Equal(t, 20.0, at(page, "pages"))
	require.Equal(t, "limiter-950", at(s.json("?page=20"), "limiters", 0, "name"))
	for _, page := range []string{"?page=21", "?page=999999999999999999999", "?page=20&sort=nothing"} {
		require.Equal(t, "limiter-950", at(s.json(page), "limiters", 0, "name"), page)
	}
	for _, page := range []string{"?page=0", "?page=-1", "?page=x"} {
		require.Equal(t, "limiter-000", at(s.json(page), "limiters", 0, "name"), page)
	}
	page = s.json("?q=LIMITER-77&sort=denied")
	require.Len(t, at(page, "limiters"), 10)
	require.Contains(t, s.get("?q=77"), "19 limiters of 1000.")
	require.Contains(t, s.get("?q=%3Cb%3E"), `No limiter has “&lt;b&gt;” in its name.`)
	require.Contains(t, s.get("?page=2"), `<a href="./?page=3&amp;q=&amp;sort=name" rel="next">`)
	require.Len(t, at(s.json("store?page=3"), "memory"), 50)
}

// A page without limiters says so.
func TestNoLimiters(t *testing.T) {
	s := newSite(t, admin.Options{Registry: new(ratelimit.Registry)})
	require.Contains(t, s.get(""), "This process has no limiters in this registry yet.")
	require.Empty(t, at(s.json(""), "limiters"))
	require.Contains(t, s.get("store"), "This process has no limiters in this registry yet.")
	w := s.send("GET", "limiter?name=%3Cb%3Elogin", nil)
	require.Equal(t, http.StatusNotFound, w.Code)
	require.Contains(t, w.Body.String(), "There is no limiter &#34;&lt;b&gt;login&#34; in this process.")
	w = s.send("GET", "limiter?name=login", nil, accepting("application/json"))
	require.Equal(t, http.StatusNotFound, w.Code)
	require.Contains(t, w.Body.String(), `"error": "There is no limiter \"login\" in this process."`)
}

// Pages are JSON for clients that prefer it.
func TestAccept(t *testing.T) {
	s := newSite(t, admin.Options{Registry: new(ratelimit.Registry)})
	for accept, kind := range map[string]string{
		"":    "text/html; charset=utf-8",
		"*/*": "text/html; charset=utf-8",
		"text/html,application/xml;q=0.9,*/*;q=0.8": "text/html; charset=utf-8",
		"text/html, application/json":               "text/html; charset=utf-8",
		"application/json":                          "application/json",
		"application/json, text/plain, */*":         "application/json",
		"application/*":                             "application/json",
	} {
		for _, page := range []string{"", "store", "limiter?name=none"} {
			w := s.send("GET", page, nil, accepting(accept))
			require.Equal(t, kind, w.Header().Get("Content-Type"), "%s: %q", page, accept)
			require.Equal(t, "Accept", w.Header().Get("Vary"))
		}
	}
	head := at(s.json(""), "process")
	require.NotEmpty(t, at(head, "since"))
	require.NotEmpty(t, at(head, "pid"))
	require.Regexp(t, `Numbers of this process, \S+ \(\d+\), since \S+ UTC`, text(s.get("")))
}

// The page looks limiters up at each request, and what was denied outlives a Reload and a new
// handler.
func TestReload(t *testing.T) {
	r, store := new(ratelimit.Registry), ratelimit.Memory(t.Name())
	t.Cleanup(func() { store.Close(); r.Close() })
	build := func(n int64, handler **site) error {
		return r.Reload(func(next *ratelimit.Registry) error {
			_, err := next.New("login", ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.FixedWindow(n, time.Hour)}, Store: store, Logger: quiet})
			*handler = newSite(t, admin.Options{Registry: r})
			return err
		})
	}
	var first, second *site
	require.NoError(t, build(5, &first))
	l, _ := r.Lookup("login")
	deny(t, l, "203.0.113.7", 3)
	require.NoError(t, build(9, &second))
	for _, s := range []*site{first, second} {
		page := s.json("limiter?name=login")
		require.Equal(t, "9/1h fixed", at(page, "limiter", "limits", 0))
		require.Equal(t, 3.0, at(page, "denied_keys", 0, "denied"))
		require.Equal(t, 4.0, at(s.json(s.find("login", "203.0.113.7")), "standings", 0, "remaining"))
		require.Contains(t, text(s.get("limiter?name=login")), "limits-changed 9/1h fixed")
	}
	require.NoError(t, r.Reload(func(*ratelimit.Registry) error { return nil }))
	require.Equal(t, http.StatusNotFound, first.send("GET", "limiter?name=login", nil).Code)
}

// Pages can be asked for while limiters deny, are reloaded and are closed.
func TestConcurrentUse(t *testing.T) {
	r, store := new(ratelimit.Registry), ratelimit.Memory(t.Name())
	t.Cleanup(func() { store.Close(); r.Close() })
	reload := func() {
		_ = r.Reload(func(next *ratelimit.Registry) error { // two Reloads at once: the second one fails
			_, err := next.New("login", ratelimit.Options{Limits: []ratelimit.Limit{hourly}, Store: store, Logger: quiet})
			return err
		})
	}
	reload()
	s := newSite(t, admin.Options{Registry: r, Actor: anna})
	to := s.find("login", "203.0.113.7")
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 50 {
				switch i {
				case 0:
					reload()
				case 1:
					if l, ok := r.Lookup("login"); ok {
						_, _ = l.Take(ctx, fmt.Sprint("key ", j%7))
					}
				case 2:
					s.send("GET", "limiter?name=login", nil)
					s.send("POST", "act", url.Values{"do": {"unblock"}, "limiter": {"login"}, "key": {"key 1"}, "reason": {"x"}})
				case 3:
					s.send("GET", to, nil)
					s.send("GET", "", nil)
				}
			}
		})
	}
	all.Wait()
	require.Equal(t, http.StatusOK, s.send("GET", "limiter?name=login", nil).Code)
}
