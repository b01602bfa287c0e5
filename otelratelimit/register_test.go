package otelratelimit_test

import (
	"errors"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/otelratelimit"
)

// TestEachValueOfAMemoryLimiter has a request of each result, and expects each
// series that there is.
func TestEachValueOfAMemoryLimiter(t *testing.T) {
	var reg ratelimit.Registry
	reader, _ := register(t, &reg)
	opts := quiet(hourly(5).Named("calls"), ratelimit.SlidingWindow(100, time.Minute))
	opts.Skip = func(r *http.Request) bool { return r.Header.Get("Skip") != "" }
	opts.LimitsFor = func(r *http.Request) []ratelimit.Limit {
		return map[string][]ratelimit.Limit{
			"gold": {ratelimit.TokenBucket(1, time.Minute, 1).Block(time.Hour).Named("gold")},
			"deny": {ratelimit.Deny.Named("nobody")},
			"bad":  {hourly(0)},
		}[r.Header.Get("Plan")]
	}
	l := newLimiter(t, &reg, "api", opts)
	h := l.Middleware(served)
	for range 7 {
		get(h, "a")
	}
	get(h, "a", "Skip", "1")
	get(h, "")
	get(h, "")
	get(h, "a", "Plan", "bad")
	for range 3 {
		get(h, "b", "Plan", "gold")
	}
	get(h, "b", "Plan", "deny")
	for _, n := range []int64{4, 0, 4} {
		_, err := l.TakeN(ctx, "c", n)
		require.NoError(t, err)
	}
	want := map[string]float64{
		"ratelimit.requests{ratelimit.limiter=api,ratelimit.result=allowed}":       7,
		"ratelimit.requests{ratelimit.limiter=api,ratelimit.result=denied}":        6,
		"ratelimit.requests{ratelimit.limiter=api,ratelimit.result=shadow_denied}": 0,
		"ratelimit.requests{ratelimit.limiter=api,ratelimit.result=exempt}":        1,
		"ratelimit.requests{ratelimit.limiter=api,ratelimit.result=no_key}":        2,
		"ratelimit.requests{ratelimit.limiter=api,ratelimit.result=failed}":        1,

		"ratelimit.denials{ratelimit.limiter=api,ratelimit.policy=calls}":  3,
		"ratelimit.denials{ratelimit.limiter=api,ratelimit.policy=api-1m}": 0,
		"ratelimit.denials{ratelimit.limiter=api,ratelimit.policy=gold}":   2,
		"ratelimit.denials{ratelimit.limiter=api,ratelimit.policy=nobody}": 1,

		"ratelimit.blocks{ratelimit.limiter=api}":                                1,
		"ratelimit.near_limit{ratelimit.limiter=api}":                            4,
		"ratelimit.queued_requests{ratelimit.limiter=api}":                       0,
		"ratelimit.waits{ratelimit.limiter=api}":                                 0,
		"ratelimit.wait.time{ratelimit.limiter=api}":                             0,
		"ratelimit.in_flight{ratelimit.limiter=api}":                             0,
		"ratelimit.decisions{ratelimit.limiter=api,ratelimit.source=store}":      13,
		"ratelimit.units{ratelimit.limiter=api,ratelimit.result=allowed}":        10,
		"ratelimit.units{ratelimit.limiter=api,ratelimit.result=denied}":         9,
		"ratelimit.warnings{ratelimit.code=no-key,ratelimit.limiter=api}":        2,
		"ratelimit.warnings{ratelimit.code=option-failed,ratelimit.limiter=api}": 1,

		"ratelimit.limit.units{ratelimit.algorithm=fixed,ratelimit.limiter=api,ratelimit.policy=calls}":     5,
		"ratelimit.limit.units{ratelimit.algorithm=sliding,ratelimit.limiter=api,ratelimit.policy=api-1m}":  100,
		"ratelimit.limit.units{ratelimit.algorithm=bucket,ratelimit.limiter=api,ratelimit.policy=gold}":     1,
		"ratelimit.limit.window{ratelimit.algorithm=fixed,ratelimit.limiter=api,ratelimit.policy=calls}":    3600,
		"ratelimit.limit.window{ratelimit.algorithm=sliding,ratelimit.limiter=api,ratelimit.policy=api-1m}": 60,
		"ratelimit.limit.window{ratelimit.algorithm=bucket,ratelimit.limiter=api,ratelimit.policy=gold}":    60,

		"ratelimit.memory.counters{ratelimit.limiter=api,ratelimit.store=" + l.Info().Prefix + "}":                         6,
		"ratelimit.memory.capacity{ratelimit.limiter=api,ratelimit.store=" + l.Info().Prefix + "}":                         ratelimit.DefaultMaxKeys,
		"ratelimit.memory.evictions{ratelimit.denied=false,ratelimit.limiter=api,ratelimit.store=" + l.Info().Prefix + "}": 0,
		"ratelimit.memory.evictions{ratelimit.denied=true,ratelimit.limiter=api,ratelimit.store=" + l.Info().Prefix + "}":  0,
		"ratelimit.memory.snapshot_failures{ratelimit.limiter=api,ratelimit.store=" + l.Info().Prefix + "}":                0,
	}
	require.Equal(t, want, values(t, reader))
	require.Equal(t, want, values(t, reader), "reading changes nothing")
}

// TestEachValueOfARemoteLimiter has an outage.
func TestEachValueOfARemoteLimiter(t *testing.T) {
	var reg ratelimit.Registry
	reader, _ := register(t, &reg)
	store := newRemote(t)
	opts := quiet(hourly(5))
	opts.Store, opts.Timeout, opts.DenyRecheck = store, time.Minute, time.Hour
	l := newLimiter(t, &reg, "api", opts)
	take := func(key string) {
		_, err := l.Take(ctx, key)
		require.NoError(t, err)
	}
	for range 8 { // two of them are denied by the cache
		take("a")
	}
	store.down.Store(true)
	outage := 0.0 // requests
	for ; outage < 20 || l.Stats().Remote.Spared == 0; outage++ {
		take("b")
	}
	require.Eventually(t, func() bool { return l.Stats().Warnings[ratelimit.CodeStoreDown] == 1 }, time.Minute, time.Millisecond)

	// The limiter calls the store in the background, too: collect while it does not.
	var stats ratelimit.RemoteStats
	var got map[string]float64
	require.Eventually(t, func() bool {
		stats = l.Stats().Remote
		got = values(t, reader)
		return stats == l.Stats().Remote
	}, time.Minute, time.Millisecond)
	require.Positive(t, stats.Failures)
	require.Positive(t, stats.Spared)
	require.Positive(t, stats.CallTime)

	maps.DeleteFunc(got, func(name string, _ float64) bool {
		return strings.HasPrefix(name, "ratelimit.requests") || strings.HasPrefix(name, "ratelimit.units") || strings.HasPrefix(name, "ratelimit.limit.")
	})
	failed := float64(stats.Failures)
	require.Equal(t, map[string]float64{
		"ratelimit.denials{ratelimit.limiter=api,ratelimit.policy=api}": 3 + outage - 5,
		"ratelimit.blocks{ratelimit.limiter=api}":                       0,
		"ratelimit.near_limit{ratelimit.limiter=api}":                   4,
		"ratelimit.queued_requests{ratelimit.limiter=api}":              0,
		"ratelimit.waits{ratelimit.limiter=api}":                        0,
		"ratelimit.wait.time{ratelimit.limiter=api}":                    0,
		"ratelimit.in_flight{ratelimit.limiter=api}":                    0,

		"ratelimit.decisions{ratelimit.limiter=api,ratelimit.source=store}":     6,
		"ratelimit.decisions{ratelimit.limiter=api,ratelimit.source=cache}":     2,
		"ratelimit.decisions{ratelimit.limiter=api,ratelimit.source=lease}":     0,
		"ratelimit.decisions{ratelimit.limiter=api,ratelimit.source=fallback}":  outage,
		"ratelimit.decisions{ratelimit.limiter=api,ratelimit.source=fail-open}": 0,

		"ratelimit.store.calls{ratelimit.limiter=api}":                         float64(stats.Calls) - failed,
		"ratelimit.store.calls{error.type=store-failed,ratelimit.limiter=api}": failed,
		"ratelimit.store.call.time{ratelimit.limiter=api}":                     stats.CallTime.Seconds(),
		"ratelimit.store.spared_calls{ratelimit.limiter=api}":                  float64(stats.Spared),
		"ratelimit.store.outages{ratelimit.limiter=api}":                       1,
		"ratelimit.store.breaker_open{ratelimit.limiter=api}":                  1,
		"ratelimit.store.owed_keys{ratelimit.limiter=api}":                     1,
		"ratelimit.store.forgotten_keys{ratelimit.limiter=api}":                0,

		"ratelimit.warnings{ratelimit.code=store-failed,ratelimit.limiter=api}": float64(l.Stats().Warnings[ratelimit.CodeStoreFailed]),
		"ratelimit.warnings{ratelimit.code=store-down,ratelimit.limiter=api}":   1,
	}, got)
}

// TestStoresOfOtherSources has decisions that the other tests do not have.
func TestStoresOfOtherSources(t *testing.T) {
	var reg ratelimit.Registry
	reader, _ := register(t, &reg)
	store := newRemote(t)
	store.down.Store(true)
	opts := quiet(hourly(5))
	opts.Store, opts.OnFailure, opts.Shadow = store, ratelimit.FailOpen, true
	h := newLimiter(t, &reg, "open", opts).Middleware(served)
	for range 7 {
		require.Equal(t, http.StatusNoContent, get(h, "a"))
	}
	opts = quiet(hourly(5))
	opts.Shadow = true
	h = newLimiter(t, &reg, "shadow", opts).Middleware(served)
	for range 7 {
		require.Equal(t, http.StatusNoContent, get(h, "a"))
	}
	got := values(t, reader)
	require.EqualValues(t, 7, got["ratelimit.decisions{ratelimit.limiter=open,ratelimit.source=fail-open}"])
	require.EqualValues(t, 0, got["ratelimit.decisions{ratelimit.limiter=open,ratelimit.source=store}"])
	require.EqualValues(t, 7, got["ratelimit.requests{ratelimit.limiter=open,ratelimit.result=allowed}"])
	require.EqualValues(t, 7, got["ratelimit.decisions{ratelimit.limiter=shadow,ratelimit.source=store}"])
	require.EqualValues(t, 5, got["ratelimit.requests{ratelimit.limiter=shadow,ratelimit.result=allowed}"])
	require.EqualValues(t, 0, got["ratelimit.requests{ratelimit.limiter=shadow,ratelimit.result=denied}"])
	require.EqualValues(t, 2, got["ratelimit.requests{ratelimit.limiter=shadow,ratelimit.result=shadow_denied}"])
	require.EqualValues(t, 0, got["ratelimit.denials{ratelimit.limiter=shadow,ratelimit.policy=shadow}"])
}

// TestInFlight has holds of calls and of a request that runs.
func TestInFlight(t *testing.T) {
	var reg ratelimit.Registry
	reader, _ := register(t, &reg)
	l := newLimiter(t, &reg, "export", quiet(ratelimit.InFlight(20, 30*time.Second)))
	release, _, err := l.Acquire(ctx, "b")
	require.NoError(t, err)
	requireHolds := func(want float64) {
		t.Helper()
		got := values(t, reader)
		require.Equal(t, want, got["ratelimit.in_flight{ratelimit.limiter=export}"])
		const limit = "{ratelimit.algorithm=inflight,ratelimit.limiter=export,ratelimit.policy=export}"
		require.EqualValues(t, 20, got["ratelimit.limit.units"+limit])
		require.EqualValues(t, 30, got["ratelimit.limit.window"+limit])
	}
	get(l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requireHolds(2) })), "a")
	requireHolds(1)
	release()
	requireHolds(0)
}

// TestWrappedStore has a store that is neither a memory store nor a remote store.
func TestWrappedStore(t *testing.T) {
	var reg ratelimit.Registry
	reader, _ := register(t, &reg)
	opts := quiet(hourly(5))
	opts.Store = &struct{ ratelimit.Store }{newMemory(t)}
	newLimiter(t, &reg, "x", opts).Take(ctx, "a")
	got := values(t, reader)
	require.EqualValues(t, 1, got["ratelimit.decisions{ratelimit.limiter=x,ratelimit.source=store}"])
	for series := range got {
		require.NotRegexp(t, `^ratelimit\.(store|memory)\.`, series)
	}
}

// TestEvictionsOfDeniedKeys fills a small store with keys that are being denied.
func TestEvictionsOfDeniedKeys(t *testing.T) {
	var reg ratelimit.Registry
	reader, _ := register(t, &reg)
	store, err := ratelimit.NewMemoryStore(t.Name(), ratelimit.MemoryOptions{MaxKeys: 100})
	require.NoError(t, err)
	defer store.Close()
	opts := quiet(hourly(1))
	opts.Store = store
	l := newLimiter(t, &reg, "x", opts)
	for i := range 3000 {
		for range 1 + i/2000 {
			_, err := l.Take(ctx, strings.Repeat("k", 1+i))
			require.NoError(t, err)
		}
	}
	s, got := store.Stats(), values(t, reader)
	require.Positive(t, s.Evicted)
	require.Positive(t, s.EvictedDenied)
	require.EqualValues(t, s.EvictedDenied, got["ratelimit.memory.evictions{ratelimit.denied=true,ratelimit.limiter=x,ratelimit.store="+store.Prefix()+"}"])
	require.EqualValues(t, s.Evicted-s.EvictedDenied, got["ratelimit.memory.evictions{ratelimit.denied=false,ratelimit.limiter=x,ratelimit.store="+store.Prefix()+"}"])
	require.EqualValues(t, s.Counters, got["ratelimit.memory.counters{ratelimit.limiter=x,ratelimit.store="+store.Prefix()+"}"])
	require.LessOrEqual(t, got["ratelimit.memory.counters{ratelimit.limiter=x,ratelimit.store="+store.Prefix()+"}"], got["ratelimit.memory.capacity{ratelimit.limiter=x,ratelimit.store="+store.Prefix()+"}"])
}

// TestTheDocumentationHasEachMetric compares the table of the package documentation
// with what a reader collects.
func TestTheDocumentationHasEachMetric(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments)
	require.NoError(t, err)
	row := regexp.MustCompile(`(?m)^\t(ratelimit\.[a-z_.]+) +(\w+) +(\S+)(?: +(\S.*))?$`)
	type about struct{ kind, unit, attributes string }
	documented := make(map[string]about)
	for _, m := range row.FindAllStringSubmatch(file.Doc.Text(), -1) {
		documented[m[1]] = about{m[2], m[3], m[4]}
	}

	var reg ratelimit.Registry
	reader, _ := register(t, &reg)
	get(newLimiter(t, &reg, "memory", quiet(hourly(1))).Middleware(served), "") // a warning
	opts := quiet(hourly(1))
	opts.Store = newRemote(t)
	newLimiter(t, &reg, "remote", opts)
	collected := make(map[string]about)
	for _, m := range metrics(t, reader) {
		var kind string
		switch data := m.Data.(type) {
		case metricdata.Sum[int64]:
			require.Equal(t, metricdata.CumulativeTemporality, data.Temporality)
			if kind = "Counter"; !data.IsMonotonic {
				kind = "UpDownCounter"
			}
		case metricdata.Sum[float64]:
			require.True(t, data.IsMonotonic)
			kind = "Counter"
		default:
			kind = "Gauge"
		}
		attributes := make(map[string]bool)
		eachPoint(t, m, func(set attribute.Set, _ float64) {
			for _, a := range set.ToSlice() {
				attributes[string(a.Key)] = true
			}
		})
		require.True(t, attributes["ratelimit.limiter"], m.Name)
		delete(attributes, "ratelimit.limiter")
		collected[m.Name] = about{kind, m.Unit, strings.Join(slices.Sorted(maps.Keys(attributes)), ", ")}
		require.NotEmpty(t, m.Description, m.Name)
		require.NotContains(t, m.Name, "total")
	}
	for name, d := range documented {
		d.attributes = strings.Join(slices.Sorted(slices.Values(strings.Split(d.attributes, ", "))), ", ")
		documented[name] = d
	}
	require.Equal(t, documented, collected)
}

func TestRegisterTwice(t *testing.T) {
	var reg, other ratelimit.Registry
	reader, provider := newProvider(t)
	first, err := otelratelimit.Register(&reg, provider)
	require.NoError(t, err)
	_, err = otelratelimit.Register(&reg, provider)
	require.ErrorContains(t, err, "registered with this MeterProvider already")

	newLimiter(t, &reg, "x", quiet(hourly(5))).Take(ctx, "a")
	newLimiter(t, &other, "y", quiet(hourly(5))).Take(ctx, "a")
	x, y := "ratelimit.requests{ratelimit.limiter=x,ratelimit.result=allowed}", "ratelimit.requests{ratelimit.limiter=y,ratelimit.result=allowed}"
	require.EqualValues(t, 1, values(t, reader)[x], "not counted twice")
	require.NotContains(t, values(t, reader), y)

	// Another registry, and another provider.
	second, err := otelratelimit.Register(&other, provider)
	require.NoError(t, err)
	defer second.Unregister()
	elsewhere, _ := register(t, &reg)
	require.EqualValues(t, 1, values(t, reader)[x])
	require.EqualValues(t, 1, values(t, reader)[y])
	require.EqualValues(t, 1, values(t, elsewhere)[x])

	// Again, once the first one is over.
	require.NoError(t, first.Unregister())
	require.NotContains(t, values(t, reader), x)
	require.EqualValues(t, 1, values(t, reader)[y])
	require.EqualValues(t, 1, values(t, elsewhere)[x])
	third, err := otelratelimit.Register(&reg, provider)
	require.NoError(t, err)
	require.NoError(t, first.Unregister(), "it has ended already")
	_, err = otelratelimit.Register(&reg, provider)
	require.Error(t, err, "the first registration does not end the third one")
	require.EqualValues(t, 1, values(t, reader)[x])
	require.NoError(t, third.Unregister())
	require.NotContains(t, values(t, reader), x)
}

// providerIsSet is whether the global provider has been replaced. Only the first one
// can be replaced by a provider that is set after Register.
var providerIsSet bool

// TestNilArguments registers before there is a provider, as init functions do.
func TestNilArguments(t *testing.T) {
	reader, provider := newProvider(t)
	if providerIsSet { // by a run before this one
		otel.SetMeterProvider(provider)
	}
	registration, err := otelratelimit.Register(nil, nil)
	require.NoError(t, err)
	defer registration.Unregister()
	otel.SetMeterProvider(provider)
	providerIsSet = true
	newLimiter(t, ratelimit.DefaultRegistry, t.Name(), quiet(hourly(5))).Take(ctx, "a")
	name := "ratelimit.requests{ratelimit.limiter=" + t.Name() + ",ratelimit.result=allowed}"
	require.EqualValues(t, 1, values(t, reader)[name])
	require.NoError(t, registration.Unregister())
	require.Empty(t, values(t, reader))
}

// A brokenMeter refuses one instrument, or the callback.
type brokenMeter struct {
	metric.Meter
	refuses string
}

type brokenProvider struct {
	metric.MeterProvider
	refuses string
	notes   []string // so that it cannot be compared
}

var errRefused = errors.New("refused")

func (p brokenProvider) Meter(name string, opts ...metric.MeterOption) metric.Meter {
	return brokenMeter{p.MeterProvider.Meter(name, opts...), p.refuses}
}

func (m brokenMeter) Int64ObservableGauge(name string, opts ...metric.Int64ObservableGaugeOption) (metric.Int64ObservableGauge, error) {
	if name == m.refuses {
		return nil, errRefused
	}
	return m.Meter.Int64ObservableGauge(name, opts...)
}

func (m brokenMeter) RegisterCallback(f metric.Callback, instruments ...metric.Observable) (metric.Registration, error) {
	registration, err := m.Meter.RegisterCallback(f, instruments...)
	if m.refuses == "callback" {
		err = errRefused
	}
	return registration, err
}

func TestProviderThatRefuses(t *testing.T) {
	var reg ratelimit.Registry
	newLimiter(t, &reg, "x", quiet(hourly(5)))
	reader, provider := newProvider(t)
	for _, refuses := range []string{"ratelimit.limit.units", "callback"} {
		for range 2 { // nothing is left of the first attempt
			_, err := otelratelimit.Register(&reg, &brokenProvider{provider, refuses, nil})
			require.ErrorIs(t, err, errRefused)
			require.ErrorContains(t, err, "otelratelimit: Register: ")
		}
		require.Empty(t, values(t, reader))
	}
	registration, err := otelratelimit.Register(&reg, brokenProvider{provider, "", nil})
	require.NoError(t, err, "a provider that is no pointer")
	require.NotEmpty(t, values(t, reader))
	require.NoError(t, registration.Unregister())
	require.Empty(t, values(t, reader))

	registration, err = otelratelimit.Register(&reg, noop.NewMeterProvider())
	require.NoError(t, err)
	require.NoError(t, registration.Unregister())
}

// TestViewsDropAttributes drops the policies, as a program with many plans would.
func TestViewsDropAttributes(t *testing.T) {
	var reg ratelimit.Registry
	l := newLimiter(t, &reg, "x", quiet(hourly(1), ratelimit.FixedWindow(3, 2*time.Hour)))
	reader, provider := newProvider(t, sdk.WithView(sdk.NewView(
		sdk.Instrument{Name: "ratelimit.denials"},
		sdk.Stream{AttributeFilter: func(a attribute.KeyValue) bool { return a.Key != "ratelimit.policy" }},
	)))
	registration, err := otelratelimit.Register(&reg, provider)
	require.NoError(t, err)
	defer registration.Unregister()
	for _, n := range []int64{1, 1, 4} {
		_, err := l.TakeN(ctx, "a", n)
		require.NoError(t, err)
	}
	require.EqualValues(t, 2, values(t, reader)["ratelimit.denials{ratelimit.limiter=x}"])
}
