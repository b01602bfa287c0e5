package e2e_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/promratelimit"
)

// This file checks the dashboard and the alerts of docs/operating with a real Prometheus.

const operatingDocs = "../../docs/operating"

// startShop builds examples/operations and runs it until the test ends. It returns its
// host:port.
func startShop(t *testing.T, args ...string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "operations")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Dir = "../../examples/operations"
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	log := new(logBuffer)
	cmd := exec.Command(binary, append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	cmd.Stderr = log
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("examples/operations has logged:\n%s", log)
		}
	})
	lines := bufio.NewScanner(stdout)
	require.True(t, lines.Scan(), "it does not start: %s", log)
	go io.Copy(io.Discard, stdout)
	_, addr, _ := strings.Cut(lines.Text(), "http://")
	return addr
}

// TestDashboardHasSeries evaluates each query of the dashboard on the metrics of
// examples/operations. All of them must have a number, also if Prometheus stores native
// histograms.
func TestDashboardHasSeries(t *testing.T) {
	t.Parallel()
	prometheusProgram(t, "prometheus")
	targets := map[string]string{"shop": startShop(t, "-redis", redistest.Start(t).Addr)}
	servers := map[string]*prometheusServer{
		"classic histograms": startPrometheus(t, targets, ""),
		"native histograms":  startPrometheus(t, targets, "", "--enable-feature=native-histograms"),
	}

	var dashboard struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct {
				Expr    string
				Instant bool
			}
		}
		Templating struct {
			List []struct{ Name, Definition string }
		}
	}
	text, err := os.ReadFile(filepath.Join(operatingDocs, "dashboard.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &dashboard))

	var rows []string
	ids, queries := make(map[int]bool), 0
	variables := strings.NewReplacer("$job", "shop", "$limiter", ".+", "$__rate_interval", "5s")
	for _, panel := range dashboard.Panels {
		require.False(t, ids[panel.ID], "two panels have the id %d", panel.ID)
		ids[panel.ID] = true
		if panel.Type == "row" {
			rows = append(rows, panel.Title)
			continue
		}
		require.NotEmpty(t, panel.Targets, panel.Title)
		for _, target := range panel.Targets {
			queries++
			expr := variables.Replace(target.Expr)
			require.NotContains(t, expr, "$", panel.Title)
			for kind, p := range servers {
				deadline := time.Now().Add(time.Minute)
				for found := 0; found == 0; {
					var err error
					found, err = p.numbers(expr, target.Instant)
					require.NoError(t, err, "%s: %s", panel.Title, expr)
					if found == 0 {
						require.True(t, time.Now().Before(deadline), "%s, with %s: no series: %s", panel.Title, kind, expr)
						time.Sleep(200 * time.Millisecond)
					}
				}
			}
		}
	}
	require.Equal(t, []string{"Traffic and denials", "Near limit, Shadow, waiting and in flight", "Source and failure", "Store", "Memory", "Warnings"}, rows)
	t.Logf("%d queries of %d panels have series", queries, len(ids)-len(rows))

	// The variables of the dashboard.
	definitions := make(map[string]string)
	for _, v := range dashboard.Templating.List {
		definitions[v.Name] = v.Definition
	}
	require.Equal(t, map[string]string{
		"datasource": "",
		"job":        "label_values(ratelimit_limiter_info, job)",
		"limiter":    `label_values(ratelimit_limiter_info{job=~"$job"}, limiter)`,
	}, definitions)
	p := servers["classic histograms"]
	require.Equal(t, []string{"shop"}, p.labels("job", "ratelimit_limiter_info"))
	require.Equal(t, []string{"browse", "checkout", "login", "search"}, p.labels("limiter", `ratelimit_limiter_info{job=~"shop"}`))
}

// TestEachMetricIsDocumented checks that docs/operating.md explains each metric, and that
// the dashboard shows it.
func TestEachMetricIsDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/operating.md")
	require.NoError(t, err)
	dashboard, err := os.ReadFile(filepath.Join(operatingDocs, "dashboard.json"))
	require.NoError(t, err)
	descriptions := make(chan *prometheus.Desc, 100)
	promratelimit.NewCollector(new(Registry)).Describe(descriptions)
	close(descriptions)
	for d := range descriptions {
		name := regexp.MustCompile(`ratelimit_\w+`).FindString(d.String())
		require.Regexp(t, "(?m)^\\|[^|]*`"+name+"`", string(page), "no row of a table")
		require.Regexp(t, `\b`+name+`(_bucket)?\b`, string(dashboard), "no panel or variable")
	}
}

// TestAlertRules checks the rules and runs their tests. Each rule must have a severity, a
// summary and a section in docs/operating.md.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	program := prometheusProgram(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		cmd := exec.Command(program, args...)
		cmd.Dir = operatingDocs
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "promtool %s: %s", strings.Join(args, " "), out)
	}
	page, err := os.ReadFile("../../docs/operating.md")
	require.NoError(t, err)
	tests, err := os.ReadFile(filepath.Join(operatingDocs, "alerts_test.yml"))
	require.NoError(t, err)
	rules, err := os.ReadFile(filepath.Join(operatingDocs, "alerts.yml"))
	require.NoError(t, err)
	all := strings.Split(string(rules), "- alert: ")[1:]
	require.Len(t, all, 7)
	for _, rule := range all {
		name, _, _ := strings.Cut(rule, "\n")
		require.Regexp(t, `severity: (warning|critical)\n`, rule)
		require.Contains(t, rule, " summary: ")
		require.Contains(t, rule, "runbook_url: https://github.com/ratelimit-go/ratelimit/blob/main/docs/operating.md#"+strings.ToLower(name)+"\n")
		require.Contains(t, string(page), "\n### "+name+"\n")
		require.Regexp(t, "alertname: "+name+"\\b.*\n +eval_time: .*\n +exp_alerts:\n", string(tests), "no test in which it fires")
		require.Regexp(t, "alertname: "+name+"\\b.*\n +eval_time: .*\n +exp_alerts: \\[\\]\n", string(tests), "no test in which it does not fire")
	}
}

// TestAlertsFire lets each alert fire for the reason that it is for, and no other one.
// It uses the rules of docs/operating with shorter times.
func TestAlertsFire(t *testing.T) {
	t.Parallel()
	prometheusProgram(t, "prometheus")
	text, err := os.ReadFile(filepath.Join(operatingDocs, "alerts.yml"))
	require.NoError(t, err)
	short := regexp.MustCompile(`for: \w+`).ReplaceAllString(string(text), "for: 1s")
	short = strings.NewReplacer("[10m]", "[5s]", "[1d]", "[10m]").Replace(short)
	rules := filepath.Join(t.TempDir(), "alerts.yml")
	require.NoError(t, os.WriteFile(rules, []byte(short), 0o600))

	server := redistest.Start(t)
	shared := redistest.Start(t).Client()
	dead := redistest.Client(t, "127.0.0.1:1", refusing)
	quiet := slog.New(slog.DiscardHandler)
	plenty := []Limit{FixedWindow(1<<40, time.Hour)}
	scenarios := map[string]struct {
		firing string
		drive  func(*Registry) (tick func())
	}{
		"healthy": {"", func(reg *Registry) func() {
			l := Must(reg.New("healthy", Options{Limits: plenty, Logger: quiet}))
			return func() { l.Take(ctx, "a") }
		}},
		"denying": {"DeniedShareHigh", func(reg *Registry) func() {
			l := Must(reg.New("denying", Options{Limits: plenty, Logger: quiet}))
			n := 0
			return func() {
				if n++; n < 300 {
					for range 100 {
						l.Take(ctx, "a")
					}
					return
				}
				l.Take(ctx, "a")
				l.TakeN(ctx, "a", 1<<40) // is denied
			}
		}},
		"fail-closed": {"BreakerOpen RequestsFailed", func(reg *Registry) func() {
			l := Must(reg.New("fail-closed", Options{Limits: plenty, Logger: quiet, Redis: dead, OnFailure: FailClosed}))
			h := l.Middleware(http.NotFoundHandler())
			return func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)) }
		}},
		"option": {"RequestsFailed", func(reg *Registry) func() {
			l := Must(reg.New("option", Options{Limits: plenty, Logger: quiet, Cost: func(*http.Request) int64 { return -1 }}))
			h := l.Middleware(http.NotFoundHandler())
			return func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)) }
		}},
		"fail-open": {"BreakerOpen FallbackInUse", func(reg *Registry) func() {
			l := Must(reg.New("fail-open", Options{Limits: plenty, Logger: quiet, Redis: dead, OnFailure: FailOpen}))
			return func() { l.Take(ctx, "a") }
		}},
		"evicting": {"BlockedKeysEvicted", func(reg *Registry) func() {
			store, err := NewMemoryStore(t.Name(), MemoryOptions{MaxKeys: 8})
			require.NoError(t, err)
			l := Must(reg.New("evicting", Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Logger: quiet, Store: store}))
			n := 0
			return func() {
				n++
				l.Take(ctx, fmt.Sprint(n))
				l.Take(ctx, fmt.Sprint(n)) // is denied
			}
		}},
		"snapshot": {"SnapshotFailed", func(reg *Registry) func() {
			dir := filepath.Join(t.TempDir(), "disk")
			require.NoError(t, os.Mkdir(dir, 0o700))
			store, err := NewMemoryStore(t.Name()+"/snapshot", MemoryOptions{SnapshotFile: filepath.Join(dir, "file"), SnapshotEvery: 100 * time.Millisecond})
			require.NoError(t, err)
			t.Cleanup(func() { store.Close() })
			require.NoError(t, os.RemoveAll(dir))
			l := Must(reg.New("snapshot", Options{Limits: plenty, Logger: quiet, Store: store}))
			return func() { l.Take(ctx, "a") }
		}},
		"prefix": {"PrefixClaimed", func(reg *Registry) func() {
			var limiters []*Limiter
			for i, reg := range []*Registry{new(Registry), reg} { // the first one is another process
				store, err := NewRedisStore(shared, "shop:")
				require.NoError(t, err)
				t.Cleanup(func() { store.Close() })
				limiters = append(limiters, Must(reg.New(fmt.Sprint("prefix-", i), Options{Limits: plenty, Logger: quiet, Store: store, Timeout: time.Minute})))
				limiters[0].Take(ctx, "a")
				require.Eventually(t, func() bool { return shared.Exists(ctx, "shop:owner").Val() == 1 }, time.Minute, time.Millisecond)
			}
			return func() { limiters[1].Take(ctx, "a") }
		}},
	}

	targets := map[string]string{"shop": startShop(t, "-redis", server.Addr)}
	want := make(map[string]string)
	var ticks []func()
	for job, s := range scenarios {
		reg := new(Registry)
		ticks = append(ticks, s.drive(reg))
		t.Cleanup(func() { reg.Close() })
		metrics := prometheus.NewRegistry()
		metrics.MustRegister(promratelimit.NewCollector(reg))
		web := httptest.NewServer(promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
		t.Cleanup(web.Close)
		targets[job] = web.Listener.Addr().String()
		if s.firing != "" {
			want[job] = s.firing
		}
	}
	p := startPrometheus(t, targets, rules)
	began := time.Now()
	for _, tick := range ticks {
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for every := time.Tick(20 * time.Millisecond); ; {
				select {
				case <-every:
					tick()
				case <-stop:
					return
				}
			}
		}()
		t.Cleanup(func() { close(stop); <-stopped })
	}
	await := func(what string) {
		t.Helper()
		var firing map[string]string
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
			firing = p.firing()
			// In five seconds, a burst of the shop's visitors is a large share. And if this machine is
			// busy, Redis misses the shop's timeout now and then.
			names := slices.DeleteFunc(strings.Fields(firing["shop"]), func(name string) bool {
				return name == "DeniedShareHigh" || name == "FallbackInUse" && want["shop"] == ""
			})
			if firing["shop"] = strings.Join(names, " "); firing["shop"] == "" {
				delete(firing, "shop")
			}
			if maps.Equal(firing, want) {
				break
			}
			if time.Now().After(deadline) {
				require.Equal(t, want, firing, what)
			}
		}
		t.Logf("after %.1f s: %s", time.Since(began).Seconds(), what)
	}
	await("each alert fires for its own reason")

	// The shop loses its Redis, and gets it back.
	server.Kill()
	want["shop"] = "BreakerOpen FallbackInUse"
	await("Redis is down")
	server.Restart()
	want["shop"] = "FallbackInUse" // for five minutes, which is the range of its rate
	await("Redis is back")
}
