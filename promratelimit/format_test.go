package promratelimit_test

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/promratelimit"
)

// scrape asks for a format, as Prometheus does, and returns what it would read.
func scrape(t *testing.T, g prometheus.Gatherer, accept string) (families []*dto.MetricFamily) {
	t.Helper()
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(g, promhttp.HandlerOpts{}).ServeHTTP(w, r)
	require.Equal(t, 200, w.Code, w.Body)
	format := expfmt.ResponseFormat(w.Result().Header)
	require.NotEqual(t, expfmt.TypeUnknown, format.FormatType(), w.Result().Header)
	for decoder := expfmt.NewDecoder(w.Body, format); ; {
		var f dto.MetricFamily
		err := decoder.Decode(&f)
		if err == io.EOF {
			return families
		}
		require.NoError(t, err)
		families = append(families, &f)
	}
}

const (
	asText     = "text/plain;version=0.0.4"
	asProtobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)

// TestStoreSecondsIsClassicAndNative makes calls of known times and reads them from both forms
// of the histogram.
func TestStoreSecondsIsClassicAndNative(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := registry(t)
		store := &remoteStore{Store: memory(t, "a", ratelimit.MemoryOptions{})}
		opts := quiet(ratelimit.FixedWindow(100, time.Hour))
		opts.Store, opts.Timeout = store, time.Minute
		l := limiter(t, reg, "x", opts)
		sum := 0.0
		for _, latency := range []time.Duration{
			0, 60 * time.Microsecond, // in the first element
			100 * time.Microsecond, 3 * time.Millisecond, 3 * time.Millisecond,
			time.Second / 4, time.Second/4 + 1, // on a bound, and above
			4 * time.Second, 7 * time.Second, 20 * time.Second,
		} {
			store.latency = latency
			take(t, l, "a", 1, true)
			sum += latency.Seconds()
		}

		h := histogram(t, scrape(t, gatherer(reg), asProtobuf))
		require.EqualValues(t, 10, h.GetSampleCount())
		require.InDelta(t, sum, h.GetSampleSum(), 1e-9)

		classic := make(map[float64]uint64)
		for _, b := range h.Bucket {
			classic[b.GetUpperBound()] = b.GetCumulativeCount()
		}
		require.Len(t, classic, 17)
		for bound, want := range map[float64]uint64{1. / 16384: 2, 1. / 8192: 3, 1. / 512: 3, 1. / 256: 5, 1. / 4: 6, 1. / 2: 7, 2: 7, 4: 8} {
			require.Contains(t, classic, bound)
			require.Equal(t, want, classic[bound], bound)
		}

		require.Zero(t, h.GetSchema())
		require.Equal(t, 1./16384, h.GetZeroThreshold())
		require.EqualValues(t, 2, h.GetZeroCount())
		require.Equal(t, map[float64]int64{1. / 8192: 1, 1. / 256: 2, 1. / 4: 1, 1. / 2: 1, 4: 1, 8: 2}, native(h))

		text := histogram(t, scrape(t, gatherer(reg), asText))
		require.EqualValues(t, 10, text.GetSampleCount())
		require.Empty(t, text.GetPositiveSpan())
		for _, b := range text.Bucket {
			if !math.IsInf(b.GetUpperBound(), 1) {
				require.Equal(t, classic[b.GetUpperBound()], b.GetCumulativeCount())
			}
		}
	})
}

// histogram returns the histogram of a scrape.
func histogram(t *testing.T, families []*dto.MetricFamily) *dto.Histogram {
	t.Helper()
	for _, f := range families {
		if f.GetName() == "ratelimit_store_seconds" {
			require.Equal(t, dto.MetricType_HISTOGRAM, f.GetType())
			require.Len(t, f.Metric, 1)
			return f.Metric[0].Histogram
		}
	}
	t.Fatal("there is no histogram")
	return nil
}

// native returns the counts of a native histogram of schema 0 by their upper bounds,
// without empty buckets. It reads spans and deltas as Prometheus does.
func native(h *dto.Histogram) map[float64]int64 {
	all := make(map[float64]int64)
	index, i, count := int32(0), 0, int64(0)
	for _, span := range h.PositiveSpan {
		index += span.GetOffset()
		for range span.GetLength() {
			count += h.PositiveDelta[i]
			if count != 0 {
				all[math.Ldexp(1, int(index))] = count
			}
			index++
			i++
		}
	}
	return all
}

// TestNames has names that have to be escaped, in each format. A name that is not
// printable UTF-8 cannot reach the collector.
func TestNames(t *testing.T) {
	reg := registry(t)
	names := []string{
		`"quotes" and \back\slashes`, "a,b{c}=d # e", "ключ 鍵 🔑", "\u00e9 and e\u0301", strings.Repeat("ü", 64),
		"limiter", "le", "other", "__name__", " ",
	}
	for _, name := range names {
		opts := quiet(hour.Named(name), ratelimit.TokenBucket(1, time.Second, 1))
		t.Cleanup(func() { ratelimit.Memory(name).Close() }) // the limiter's store
		l, err := reg.New(name, opts)
		require.NoError(t, err)
		take(t, l, "a", 1, true)
	}
	for _, format := range []string{asText, asProtobuf, "application/openmetrics-text;version=1.0.0"} {
		found := make(map[string]bool)
		for _, f := range scrape(t, gatherer(reg), format) {
			if f.GetName() == "ratelimit_requests_total" {
				for _, m := range f.Metric {
					found[m.Label[0].GetValue()] = true
				}
			}
		}
		require.Len(t, found, len(names))
		for _, name := range names {
			require.True(t, found[name], name)
		}
	}
	for _, name := range []string{"\xff", "a\nb", "a\x00b", ""} {
		_, err := reg.New(name, quiet(hour))
		require.Error(t, err, name)
		_, err = reg.New("x", quiet(hour.Named(name), hour.Named(name)))
		require.Error(t, err, name)
		_, err = ratelimit.NewMemoryStore(name, ratelimit.MemoryOptions{})
		require.Error(t, err, name)
	}
}

// TestFloods sends a million keys and a thousand plans. They add no series, and no key
// is in a scrape.
func TestFloods(t *testing.T) {
	reg := registry(t)
	opts := quiet(ratelimit.FixedWindow(1, time.Hour))
	opts.Store = memory(t, "x", ratelimit.MemoryOptions{MaxKeys: 10_000})
	l := limiter(t, reg, "x", opts)
	metrics := gatherer(reg)
	const secret = "198.51.100.7/"
	plans := func(from, to int) {
		for i := from; i < to; i++ {
			for range 2 { // the second is denied
				_, err := l.TakeLimits(ctx, secret, 1, ratelimit.FixedWindow(1, time.Hour).Named(fmt.Sprint("plan ", i)))
				require.NoError(t, err)
			}
		}
	}
	take(t, l, "a", 1, true)
	take(t, l, "a", 1, false)
	before := count(t, metrics)
	keys := 1_000_000
	if testing.Short() {
		keys = 10_000
	}
	for i := range keys {
		_, err := l.Take(ctx, fmt.Sprint(secret, i))
		require.NoError(t, err)
	}
	require.Equal(t, before, count(t, metrics))

	plans(0, 65)
	before = count(t, metrics)
	plans(65, 1000)
	require.Equal(t, before, count(t, metrics))
	all := text(t, metrics)
	require.Contains(t, all, `policy="plan 63"`)
	require.NotContains(t, all, `policy="plan 64"`)
	require.Contains(t, all, `ratelimit_denied_total{limiter="x",policy="other"} 1872`)
	require.NotContains(t, all, `ratelimit_limit_units{algorithm="fixed",limiter="x",policy="other"}`)
	require.NotContains(t, all, "198.51")
}

// TestPromtool runs promtool's linter on a scrape with every metric.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("RATELIMIT_REQUIRE_PROMETHEUS") == "1" {
			t.Fatal("promtool is not installed, and RATELIMIT_REQUIRE_PROMETHEUS is set")
		}
		t.Skip("promtool is not installed; it is in Debian's package prometheus")
	}
	reg := registry(t)
	serve(limiter(t, reg, "a", byHeader(hour)), "/") // a warning
	opts := quiet(hour)
	opts.Store = &remoteStore{Store: memory(t, "b", ratelimit.MemoryOptions{})}
	take(t, limiter(t, reg, "b", opts), "key", 1, true)
	metrics := gatherer(reg)
	families, err := metrics.Gather()
	require.NoError(t, err)
	descriptions := make(chan *prometheus.Desc, 100)
	promratelimit.NewCollector(reg).Describe(descriptions)
	require.Len(t, families, len(descriptions), "a metric is missing")

	lint := exec.Command(promtool, "check", "metrics")
	lint.Stdin = strings.NewReader(text(t, metrics))
	var out bytes.Buffer
	lint.Stdout, lint.Stderr = &out, &out
	require.NoError(t, lint.Run(), out.String())
	require.Empty(t, out.String())
}
