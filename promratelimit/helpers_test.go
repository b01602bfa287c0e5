package promratelimit_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/promratelimit"
)

// ctx is for calls that nothing cancels.
var ctx = context.Background()

// hour is a limit whose window does not end during a test.
var hour = ratelimit.FixedWindow(5, time.Hour)

// quiet returns options for a limiter that logs nothing.
func quiet(limits ...ratelimit.Limit) ratelimit.Options {
	return ratelimit.Options{Limits: limits, Logger: slog.New(slog.DiscardHandler)}
}

// memory returns a memory store that is closed when the test ends.
func memory(t testing.TB, name string, opts ratelimit.MemoryOptions) *ratelimit.MemoryStore {
	t.Helper()
	s, err := ratelimit.NewMemoryStore(t.Name()+"/"+name, opts)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// registry returns a registry that is closed when the test ends.
func registry(t testing.TB) *ratelimit.Registry {
	reg := new(ratelimit.Registry)
	t.Cleanup(func() { reg.Close() })
	return reg
}

// limiter makes a limiter. Without a store it gets a memory store of its own.
func limiter(t testing.TB, reg *ratelimit.Registry, name string, opts ratelimit.Options) *ratelimit.Limiter {
	t.Helper()
	if opts.Store == nil && opts.Redis == nil {
		opts.Store = memory(t, name, ratelimit.MemoryOptions{})
	}
	l, err := reg.New(name, opts)
	require.NoError(t, err)
	return l
}

// take takes n units, and requires that they were allowed, or denied.
func take(t testing.TB, l *ratelimit.Limiter, key string, n int64, allowed bool) {
	t.Helper()
	d, err := l.TakeN(ctx, key, n)
	require.NoError(t, err)
	require.Equal(t, allowed, d.Allowed)
}

// gatherer returns a Prometheus registry that has the collector of reg. It checks each
// metric against its description.
func gatherer(reg *ratelimit.Registry) *prometheus.Registry {
	metrics := prometheus.NewPedanticRegistry()
	metrics.MustRegister(promratelimit.NewCollector(reg))
	return metrics
}

// requireScrape requires that a scrape returns exactly these series, in any order.
func requireScrape(t testing.TB, reg *ratelimit.Registry, want string) {
	t.Helper()
	require.Equal(t, lines(want), lines(text(t, gatherer(reg))))
}

// lines returns the series of a scrape, sorted.
func lines(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			all = append(all, line)
		}
	}
	slices.Sort(all)
	return all
}

// text returns a scrape in Prometheus's text format.
func text(t testing.TB, g prometheus.Gatherer) string {
	t.Helper()
	families, err := g.Gather()
	require.NoError(t, err)
	var b bytes.Buffer
	for _, f := range families {
		_, err := expfmt.MetricFamilyToText(&b, f)
		require.NoError(t, err)
	}
	return b.String()
}

// series returns the values of a scrape by series. A histogram has its count.
func series(families []*dto.MetricFamily) map[string]float64 {
	all := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.Metric {
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			all[nameOf(f, m)] = value
		}
	}
	return all
}

// nameOf returns a series' name with its labels.
func nameOf(f *dto.MetricFamily, m *dto.Metric) string {
	name := f.GetName()
	for _, l := range m.Label {
		name += " " + l.GetName() + "=" + l.GetValue()
	}
	return name
}

// count returns how many series a scrape has.
func count(t testing.TB, g prometheus.Gatherer) int {
	t.Helper()
	n, err := testutil.GatherAndCount(g)
	require.NoError(t, err)
	return n
}

// serve sends a request with header fields through the limiter.
func serve(l *ratelimit.Limiter, path string, fields ...string) int {
	r := httptest.NewRequest("GET", path, nil)
	for pair := range slices.Chunk(fields, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	w := httptest.NewRecorder()
	l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
	return w.Code
}
