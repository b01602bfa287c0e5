package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/ratelimit-go/ratelimit"
)

func TestPlansHaveTheirOwnNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		for key, want := range map[string]struct{ plan, policy string }{
			"":    {"anonymous", `"rate";q=10;w=60, "daily";q=50;w=86400`},
			"ada": {"free", `"rate";q=60;w=60, "daily";q=1000;w=86400`},
			"bob": {"pro", `"rate";q=600;w=60, "daily";q=50000;w=86400`},
		} {
			res := c.do("GET", "/search?q=bufio", key)
			if res.status != http.StatusOK {
				t.Errorf("key %q: status %d, want 200", key, res.status)
			}
			if got := res.header.Get("RateLimit-Policy"); got != want.policy {
				t.Errorf("key %q: RateLimit-Policy %s, want %s", key, got, want.policy)
			}
			if got := c.limits(key).Plan; got != want.plan {
				t.Errorf("key %q: plan %q, want %q", key, got, want.plan)
			}
		}
	})
}

func TestRoutesHaveTheirPrices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		for _, tt := range []struct {
			method, path string
			status       int
			cost         int64
		}{
			{"GET", "/search?q=bufio", http.StatusOK, 1},
			{"GET", "/search?q=net/http", http.StatusOK, 2}, // 6 results
			{"POST", "/reports", http.StatusAccepted, 10},
			{"GET", "/me/limits", http.StatusOK, 0},
		} {
			before := c.daily("ada").Left
			if res := c.do(tt.method, tt.path, "ada"); res.status != tt.status {
				t.Errorf("%s %s: status %d, want %d", tt.method, tt.path, res.status, tt.status)
			}
			if cost := before - c.daily("ada").Left; cost != tt.cost {
				t.Errorf("%s %s took %d units, want %d", tt.method, tt.path, cost, tt.cost)
			}
		}
	})
}

func TestUpgradeKeepsCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		c.do("POST", "/reports", "ada")
		if got, want := c.daily("ada"), (standing{Left: 990, Of: 1000}); got.Left != want.Left || got.Of != want.Of {
			t.Fatalf("before the upgrade: %d of %d left, want %d of %d", got.Left, got.Of, want.Left, want.Of)
		}
		if res := c.do("POST", "/me/upgrade", "ada"); res.status != http.StatusOK {
			t.Fatalf("upgrade: status %d, want 200", res.status)
		}
		if got, want := c.daily("ada"), (standing{Left: 49990, Of: 50000}); got.Left != want.Left || got.Of != want.Of {
			t.Errorf("after the upgrade: %d of %d left, want %d of %d", got.Left, got.Of, want.Left, want.Of)
		}
	})
}

func TestInventedKeysCountByAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		whole := c.daily("").Left
		for i := int64(0); ; i++ {
			// A free route, too: otherwise a client could guess API keys there.
			res := c.do("GET", []string{"/search?q=x", "/me/limits"}[i%2], fmt.Sprint("invented-", i))
			if res.status == http.StatusTooManyRequests {
				break
			}
			if res.status != http.StatusUnauthorized || res.header.Get("WWW-Authenticate") == "" {
				t.Fatalf("invented key %d: status %d, want 401 with WWW-Authenticate", i, res.status)
			}
			if left := c.daily("").Left; left != whole-i-1 {
				t.Fatalf("invented key %d: the address has %d left, want %d", i, left, whole-i-1)
			}
			if i > whole {
				t.Fatalf("%d invented keys, and none was denied", i)
			}
		}
		if res := c.do("GET", "/search?q=bufio", "ada"); res.status != http.StatusOK {
			t.Errorf("a customer at the same address: status %d, want 200", res.status)
		}
	})
}

func TestCustomersOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		for _, path := range []string{"/me/upgrade", "/reports"} {
			if res := c.do("POST", path, ""); res.status != http.StatusUnauthorized {
				t.Errorf("POST %s without a key: status %d, want 401", path, res.status)
			}
		}
	})
}

// TestLimitsOfWhoIsDenied checks that a caller who has nothing left under one limit still
// sees all limits.
func TestLimitsOfWhoIsDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		for i := 0; c.do("POST", "/reports", "ada").status != http.StatusTooManyRequests; i++ {
			if i > 100 { // 1,000 a day, 10 a report
				t.Fatal("100 reports, and none was denied")
			}
		}
		before := c.daily("ada")
		res := c.do("GET", "/me/limits", "ada")
		if res.status != http.StatusOK {
			t.Errorf("status %d, want 200", res.status)
		}
		if got, want := res.header.Get("RateLimit"), `"daily";r=`+strconv.FormatInt(before.Left, 10)+";"; !strings.Contains(got, want) {
			t.Errorf("the page says that %d are left, and RateLimit says %s", before.Left, got)
		}
		if after := c.daily("ada"); after.Left != before.Left {
			t.Errorf("looking took %d units", before.Left-after.Left)
		}
	})
}

func TestLimitsPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		c.do("POST", "/reports", "ada")
		res := c.do("GET", "/me/limits", "ada", "Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
		if got, want := res.header.Get("Content-Type"), "text/html; charset=utf-8"; got != want {
			t.Errorf("Content-Type %q, want %q", got, want)
		}
		for _, want := range []string{"Plan free", "<b>rate</b>", "(60/1m bucket burst=20)", "<b>daily</b>: 990 of 1000 left"} {
			if !strings.Contains(res.body, want) {
				t.Errorf("the page does not have %q:\n%s", want, res.body)
			}
		}
	})
}

// client sends requests to its own API. It is in a bubble, so that no test runs while a day
// ends.
type client struct {
	t   *testing.T
	api http.Handler
}

// start makes the API for two customers, whose API keys are their names: ada has the plan
// free, and bob has pro.
func start(t *testing.T) *client {
	t.Helper()
	store := ratelimit.Memory(t.Name())
	t.Cleanup(func() { store.Close() })
	registry := new(ratelimit.Registry)
	t.Cleanup(func() { registry.Close() })
	a, err := newAPI(registry, store)
	if err != nil {
		t.Fatal(err)
	}
	a.add("ada", "ada", free)
	a.add("bob", "bob", pro)
	return &client{t, a.handler()}
}

type response struct {
	status int
	header http.Header
	body   string
}

// do sends a request with an API key, if it is not empty, and header fields in
// pairs of name and value.
func (c *client) do(method, path, apiKey string, fields ...string) response {
	c.t.Helper()
	req, w := httptest.NewRequest(method, path, nil), httptest.NewRecorder()
	if apiKey != "" {
		req.Header.Set("X-API-Key", apiKey)
	}
	for i := 0; i < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	c.api.ServeHTTP(w, req)
	return response{w.Code, w.Header(), w.Body.String()}
}

type limitsAnswer struct {
	Plan   string
	Limits []standing
}

func (c *client) limits(apiKey string) (answer limitsAnswer) {
	c.t.Helper()
	res := c.do("GET", "/me/limits", apiKey)
	if err := json.Unmarshal([]byte(res.body), &answer); err != nil {
		c.t.Fatalf("GET /me/limits: %d %q: %v", res.status, res.body, err)
	}
	return answer
}

// daily returns a caller's state under the daily quota, the limit that does not refill while
// a test runs.
func (c *client) daily(apiKey string) standing {
	c.t.Helper()
	for _, s := range c.limits(apiKey).Limits {
		if s.Limit == "daily" {
			return s
		}
	}
	c.t.Fatal("GET /me/limits does not tell of the daily quota")
	return standing{}
}
