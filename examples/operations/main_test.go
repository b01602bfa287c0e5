package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
)

// TestMain lets the test binary run as the program.
func TestMain(m *testing.M) {
	if args := os.Getenv("OPERATIONS_ARGS"); args != "" {
		os.Args = append([]string{"operations", "-addr", "127.0.0.1:0"}, strings.Fields(args)...)
		main()
		return
	}
	os.Exit(m.Run())
}

// program is a running shop.
type program struct {
	*testing.T
	cmd *exec.Cmd
	url string
	log logged
}

// logged is what a process has written so far.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, args string) *program {
	p := &program{T: t, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), "OPERATIONS_ARGS="+args)
	p.cmd.Stderr = &p.log
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan(), "it does not start: %s", &p.log)
	p.url = regexp.MustCompile(`http://[0-9.:]+`).FindString(lines.Text())
	go io.Copy(io.Discard, out)
	return p
}

// send sends a request from an address, with more header fields as pairs.
func (p *program) send(method, path, address string, fields ...string) (*http.Response, string) {
	p.Helper()
	req, err := http.NewRequest(method, p.url+path, strings.NewReader(url.Values{"password": {"guess"}}.Encode()))
	require.NoError(p, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("X-Forwarded-For", address)
	for i := 0; i < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(p, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(p, err)
	return resp, string(body)
}

// unblock unblocks the attacker on the admin page, and returns the status of the answer.
func (p *program) unblock(who string) (status int) {
	p.Helper()
	form := url.Values{"do": {"unblock"}, "limiter": {"login"}, "key": {"203.0.113.66"}, "reason": {"ticket 7"}}
	req, err := http.NewRequest("POST", p.url+"/admin/act", strings.NewReader(form.Encode()))
	require.NoError(p, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if who != "" {
		req.SetBasicAuth(who, "secret")
	}
	resp, err := http.DefaultTransport.RoundTrip(req) // a client would follow the redirect
	require.NoError(p, err)
	resp.Body.Close()
	return resp.StatusCode
}

// metrics returns the lines of /metrics.
func (p *program) metrics() []string {
	p.Helper()
	_, body := p.send("GET", "/metrics", "192.0.2.1")
	return strings.Split(body, "\n")
}

// TestTrafficIsSeen checks that the visitors show up in the metrics, in the log and among
// the offenders, and that an interrupt ends the program.
func TestTrafficIsSeen(t *testing.T) {
	p := start(t, "-traffic")
	denied := regexp.MustCompile(`^ratelimit_requests_total\{limiter="login",result="denied"\} [1-9]`)
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(p.metrics(), denied.MatchString) &&
			strings.Contains(p.log.String(), `"kind":"denied","limiter":"login","key":"203.0.113.66"`)
	}, time.Minute, 100*time.Millisecond, "the attacker is not denied")
	_, body := p.send("GET", "/offenders", "192.0.2.1")
	require.Contains(t, body, `{"limiter":"login","key":"203.0.113.66","denied":`)

	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Skipf("no interrupt on this system: %v", err)
	}
	require.NoError(t, p.cmd.Wait(), "%s", &p.log)
}

// TestDenialsAreCountedByPlan checks the label policy, and the counter of the shop.
func TestDenialsAreCountedByPlan(t *testing.T) {
	p := start(t, "-traffic=false")
	for range 31 {
		p.send("GET", "/search", "192.0.2.7")
	}
	for range 3 {
		p.send("GET", "/search", "192.0.2.7", "X-API-Key", "pro-1")
	}
	p.send("GET", "/search", "192.0.2.7", "X-API-Key", "invented") // counts by address
	metrics := p.metrics()
	for _, want := range []string{
		`ratelimit_denied_total{limiter="search",policy="search-free"} 2`,
		`ratelimit_denied_total{limiter="search",policy="search-pro"} 0`,
		`shop_searches_total{plan="search-free"} 30`,
		`shop_searches_total{plan="search-pro"} 3`,
	} {
		require.Contains(t, metrics, want)
	}
}

// TestDenialsSayMore checks the three ways in which the shop adds to a 429: a message, a
// header field of a handler around the limiter, and a body of its own.
func TestDenialsSayMore(t *testing.T) {
	p := start(t, "-traffic=false")
	for range 5 {
		resp, _ := p.send("POST", "/login", "192.0.2.7")
		require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	}
	resp, body := p.send("POST", "/login", "192.0.2.7")
	require.Equal(t, http.StatusTooManyRequests, resp.StatusCode)
	require.Equal(t, "Too many failed logins. Try again later, or reset your password.", body)
	require.Equal(t, `</password-reset>; rel="help"`, resp.Header.Get("Link"))
	require.NotEmpty(t, resp.Header.Get("Retry-After"))

	for range 30 {
		p.send("GET", "/search", "192.0.2.7")
	}
	resp, body = p.send("GET", "/search", "192.0.2.7")
	require.Equal(t, http.StatusTooManyRequests, resp.StatusCode)
	require.JSONEq(t, `{"error": "search-free allows 30 a minute", "upgrade": "/plans"}`, body)
	require.NotEmpty(t, resp.Header.Get("Retry-After"))
	require.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
}

// TestLogHasOneLinePerKeyAndMinute checks that an attacker does not fill the log.
func TestLogHasOneLinePerKeyAndMinute(t *testing.T) {
	var log logged
	observe := logDenials(slog.New(slog.NewJSONHandler(&log, nil)))
	for _, key := range []string{"a", "b", "a", "a\nb", "b", "a"} {
		observe(context.Background(), ratelimit.Event{Kind: ratelimit.EventDenied, Limiter: "login", Key: key})
	}
	observe(context.Background(), ratelimit.Event{Kind: ratelimit.EventReset, Limiter: "login", Key: "a", Actor: "carol"})
	var keys []string
	for line := range strings.Lines(log.String()) {
		var record struct {
			Event struct{ Kind, Key, Actor string }
		}
		require.NoError(t, json.Unmarshal([]byte(line), &record))
		keys = append(keys, record.Event.Kind+" "+record.Event.Key+record.Event.Actor)
	}
	require.Equal(t, []string{"denied a", "denied b", "denied a\nb", "reset acarol"}, keys)
}

// The trail has the denials of a client as one episode, and can be asked for the client.
func TestTrail(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	p := start(t, "-traffic=false -audit "+name)
	for range 12 {
		p.send("POST", "/login", "203.0.113.66")
	}
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	require.NoError(t, p.cmd.Wait())

	trail, closeTrail, err := openTrail(name)
	require.NoError(t, err)
	defer closeTrail()
	found, err := trail.Read(t.Context(), audit.Query{Key: "203.0.113.66"})
	require.NoError(t, err)
	require.Len(t, found, 2)
	released, denied := found[0], found[1]
	require.EqualValues(t, "denied", denied.Kind)
	require.Equal(t, audit.Released, released.Kind)
	require.EqualValues(t, 7, released.Count)
	require.Equal(t, []string{"shop", "login", "5/15m fixed", "closed"}, []string{released.Service, released.Limiter, released.Limit, released.Ended})
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	require.NotContains(t, string(text), "203.0.113.66")
}

// The admin page shows the shop's limiters to this machine. An operator with the password
// unblocks a client, and the trail has who it was.
func TestAdminPage(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	closed := start(t, "-traffic=false")
	resp, err := http.Get(closed.url + "/admin/")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	resp, _ = closed.send("GET", "/admin/", "203.0.113.66") // by X-Forwarded-For, as through a proxy
	require.Equal(t, http.StatusForbidden, resp.StatusCode)
	require.Equal(t, http.StatusForbidden, closed.unblock("anna"))

	p := start(t, "-traffic=false -operators anna:secret -audit "+name)
	for range 6 {
		resp, _ = p.send("POST", "/login", "203.0.113.66")
	}
	require.Equal(t, http.StatusTooManyRequests, resp.StatusCode)
	for _, who := range []string{"", "ben"} {
		require.Equal(t, http.StatusUnauthorized, p.unblock(who))
	}
	require.Equal(t, http.StatusSeeOther, p.unblock("anna"))
	resp, _ = p.send("POST", "/login", "203.0.113.66")
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode, "it may guess again")

	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	require.NoError(t, p.cmd.Wait())
	trail, closeTrail, err := openTrail(name)
	require.NoError(t, err)
	defer closeTrail()
	found, err := trail.Read(t.Context(), audit.Query{Actor: "anna"})
	require.NoError(t, err)
	require.Len(t, found, 2)
	require.Equal(t, "ticket 7", found[0].Reason)
}

// Failed logins can be counted in PostgreSQL. The admin page says so.
func TestLoginsInPostgres(t *testing.T) {
	p := start(t, "-traffic=false -operators anna:secret -postgres "+pgtest.Start(t).URL(pgtest.Superuser))
	for range 6 {
		p.send("POST", "/login", "203.0.113.66")
	}
	resp, body := p.send("GET", "/admin/store", "127.0.0.1", "Authorization", "Basic YW5uYTpzZWNyZXQ=", "Accept", "application/json")
	require.Equal(t, http.StatusOK, resp.StatusCode)
	var page struct {
		Remote []struct {
			Name, Prefix string
			Calls        int
		}
	}
	require.NoError(t, json.Unmarshal([]byte(body), &page))
	require.Len(t, page.Remote, 1)
	require.Equal(t, "login", page.Remote[0].Name)
	require.Positive(t, page.Remote[0].Calls)
	require.Eventually(t, func() bool { return p.unblock("anna") == http.StatusSeeOther }, 20*time.Second, 100*time.Millisecond)
	resp, _ = p.send("POST", "/login", "203.0.113.66")
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode, "it may guess again")
}

// TestOffendersAreBounded checks that keys that are denied once do not displace the ones
// that are denied often.
func TestOffendersAreBounded(t *testing.T) {
	var o offenders
	deny := func(key string) {
		o.observe(context.Background(), ratelimit.Event{Kind: ratelimit.EventDenied, Limiter: "login", Key: key})
	}
	for i := range 5000 {
		deny(fmt.Sprint("once ", i))
		if i%10 == 0 {
			deny("often")
		}
	}
	require.Len(t, o.counts, maxOffenders)
	top := o.ranked()[0]
	require.Equal(t, offender{"login", "often"}, top)
	require.GreaterOrEqual(t, o.counts[top], uint64(500))
}
