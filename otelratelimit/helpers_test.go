package otelratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/otelratelimit"
)

var ctx = context.Background()

// quiet returns options for a limiter that logs nothing and reads the key from a
// header field. The caller gives the limits.
func quiet(limits ...ratelimit.Limit) ratelimit.Options {
	return ratelimit.Options{
		Limits: limits, Key: ratelimit.HeaderKey("X-Key"),
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// newLimiter makes a limiter on a memory store of its own.
func newLimiter(t testing.TB, reg *ratelimit.Registry, name string, opts ratelimit.Options) *ratelimit.Limiter {
	t.Helper()
	if opts.Store == nil {
		opts.Store = newMemory(t)
	}
	l, err := reg.New(name, opts)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

var stores atomic.Int64

func newMemory(t testing.TB) *ratelimit.MemoryStore {
	s := ratelimit.Memory(fmt.Sprintf("otelratelimit %d", stores.Add(1)))
	t.Cleanup(func() { s.Close() })
	return s
}

// register registers reg with a provider of its own.
func register(t testing.TB, reg *ratelimit.Registry) (*sdk.ManualReader, metric.Registration) {
	t.Helper()
	reader, provider := newProvider(t)
	registration, err := otelratelimit.Register(reg, provider)
	require.NoError(t, err)
	t.Cleanup(func() { registration.Unregister() })
	return reader, registration
}

func newProvider(t testing.TB, opts ...sdk.Option) (*sdk.ManualReader, *sdk.MeterProvider) {
	reader := sdk.NewManualReader()
	provider := sdk.NewMeterProvider(append(opts, sdk.WithReader(reader))...)
	t.Cleanup(func() { provider.Shutdown(ctx) })
	return reader, provider
}

// metrics collects all metrics.
func metrics(t testing.TB, reader *sdk.ManualReader) []metricdata.Metrics {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(ctx, &all))
	if len(all.ScopeMetrics) == 0 {
		return nil
	}
	require.Len(t, all.ScopeMetrics, 1)
	require.Equal(t, "github.com/ratelimit-go/ratelimit/otelratelimit", all.ScopeMetrics[0].Scope.Name)
	return all.ScopeMetrics[0].Metrics
}

// values collects all series. Their names look like
// "ratelimit.near_limit{ratelimit.limiter=x}".
func values(t testing.TB, reader *sdk.ManualReader) map[string]float64 {
	t.Helper()
	all := make(map[string]float64)
	for _, m := range metrics(t, reader) {
		eachPoint(t, m, func(attrs attribute.Set, value float64) {
			all[m.Name+"{"+attrs.Encoded(attribute.DefaultEncoder())+"}"] = value
		})
	}
	return all
}

func eachPoint(t testing.TB, m metricdata.Metrics, f func(attribute.Set, float64)) {
	switch data := m.Data.(type) {
	case metricdata.Sum[int64]:
		each(data.DataPoints, f)
	case metricdata.Sum[float64]:
		each(data.DataPoints, f)
	case metricdata.Gauge[int64]:
		each(data.DataPoints, f)
	case metricdata.Gauge[float64]:
		each(data.DataPoints, f)
	default:
		t.Fatalf("%s is a %T", m.Name, m.Data)
	}
}

func each[N int64 | float64](points []metricdata.DataPoint[N], f func(attribute.Set, float64)) {
	for _, p := range points {
		f(p.Attributes, float64(p.Value))
	}
}

// get sends a request through h, and returns the status.
func get(h http.Handler, key string, header ...string) int {
	r := httptest.NewRequest("GET", "/", nil)
	if key != "" {
		r.Header.Set("X-Key", key)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code
}

var served = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })

// A remoteStore is a memory store that can be out of reach.
type remoteStore struct {
	ratelimit.Store
	down atomic.Bool
}

var errDown = errors.New("connection refused")

func newRemote(t testing.TB) *remoteStore { return &remoteStore{Store: newMemory(t)} }

func (s *remoteStore) Fault(error) ratelimit.Fault { return ratelimit.FaultRefused }

func (s *remoteStore) Take(ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	if s.down.Load() {
		return 0, errDown
	}
	return s.Store.Take(ctx, key, n, limits, results)
}

func (s *remoteStore) Adjust(ctx context.Context, key string, n int64, at ratelimit.Instant, limits []ratelimit.Limit) (int64, error) {
	if s.down.Load() {
		return 0, errDown
	}
	return s.Store.Adjust(ctx, key, n, at, limits)
}

func (s *remoteStore) Reset(ctx context.Context, key string, limits []ratelimit.Limit) error {
	if s.down.Load() {
		return errDown
	}
	return s.Store.Reset(ctx, key, limits)
}

// hourly is a limit that no test outlives.
func hourly(n int64) ratelimit.Limit { return ratelimit.FixedWindow(n, time.Hour) }
