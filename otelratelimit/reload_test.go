package otelratelimit_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/otelratelimit"
)

// TestCountersOnlyGrow makes requests from several goroutines, on a memory store and
// on a remote store that fails at times, while limiters are reloaded and two readers
// collect. No counter ever falls, and in the end each has the number of requests.
func TestCountersOnlyGrow(t *testing.T) {
	const goroutines, rounds = 4, 300
	var reg ratelimit.Registry
	readers := []*sdk.ManualReader{sdk.NewManualReader(), sdk.NewManualReader()}
	provider := sdk.NewMeterProvider(sdk.WithReader(readers[0]), sdk.WithReader(readers[1]))
	defer provider.Shutdown(ctx)
	registration, err := otelratelimit.Register(&reg, provider)
	require.NoError(t, err)
	defer registration.Unregister()

	remote := newRemote(t)
	options := map[string]ratelimit.Options{}
	for _, name := range []string{"memory", "shadow", "remote"} {
		opts := quiet(hourly(goroutines * rounds / 2))
		opts.Shadow, opts.Timeout = name == "shadow", time.Minute
		if opts.Store = newMemory(t); name == "remote" {
			opts.Store = remote
		}
		options[name] = opts
	}
	var handlers sync.Map // of the latest generation
	build := func(reg *ratelimit.Registry) error {
		for name, opts := range options {
			l, err := reg.New(name, opts)
			if err != nil {
				return err
			}
			handlers.Store(name, l.Middleware(served))
		}
		return nil
	}
	require.NoError(t, build(&reg))
	defer reg.Close()

	var requests, others sync.WaitGroup
	var done atomic.Bool
	for range goroutines {
		requests.Go(func() {
			for i := range rounds {
				remote.down.Store(i%100 < 20)
				for name := range options {
					h, _ := handlers.Load(name)
					get(h.(http.Handler), "key")
				}
			}
		})
	}
	for _, reader := range readers {
		others.Go(func() {
			before := make(map[string]int64)
			for !done.Load() {
				var all metricdata.ResourceMetrics
				if !assert.NoError(t, reader.Collect(ctx, &all)) || !assert.Len(t, all.ScopeMetrics, 1) {
					return
				}
				for _, m := range all.ScopeMetrics[0].Metrics {
					sum, ok := m.Data.(metricdata.Sum[int64])
					if !ok || !sum.IsMonotonic {
						continue
					}
					for _, p := range sum.DataPoints {
						series := m.Name + p.Attributes.Encoded(attribute.DefaultEncoder())
						assert.GreaterOrEqual(t, p.Value, before[series], series)
						before[series] = p.Value
					}
				}
			}
		})
	}
	others.Go(func() {
		for reloads := 0; reloads < 3 || !done.Load(); reloads++ {
			time.Sleep(time.Millisecond)
			assert.NoError(t, reg.Reload(build))
		}
	})
	requests.Wait()
	done.Store(true)
	others.Wait()

	for _, reader := range readers {
		got := values(t, reader)
		for name := range options {
			sum, decided := 0.0, 0.0
			for series, value := range got {
				if strings.Contains(series, "ratelimit.limiter="+name) {
					switch {
					case strings.HasPrefix(series, "ratelimit.requests{"):
						sum += value
					case strings.HasPrefix(series, "ratelimit.decisions{"):
						decided += value
					}
				}
			}
			require.EqualValues(t, goroutines*rounds, sum, name)
			require.EqualValues(t, goroutines*rounds, decided, name)
			allowed := got["ratelimit.requests{ratelimit.limiter="+name+",ratelimit.result=allowed}"]
			denied := got["ratelimit.requests{ratelimit.limiter="+name+",ratelimit.result=denied}"]
			shadow := got["ratelimit.requests{ratelimit.limiter="+name+",ratelimit.result=shadow_denied}"]
			require.Equal(t, denied, got["ratelimit.denials{ratelimit.limiter="+name+",ratelimit.policy="+name+"}"])
			require.Equal(t, allowed, got["ratelimit.units{ratelimit.limiter="+name+",ratelimit.result=allowed}"])
			require.Equal(t, denied, got["ratelimit.units{ratelimit.limiter="+name+",ratelimit.result=denied}"])
			switch name {
			case "memory":
				require.EqualValues(t, goroutines*rounds/2, allowed)
				require.EqualValues(t, goroutines*rounds/2, denied)
			case "shadow":
				require.EqualValues(t, goroutines*rounds/2, allowed)
				require.EqualValues(t, goroutines*rounds/2, shadow)
			}
		}
	}
}

// TestSeriesFollowTheRegistry has limiters that are made and closed, left out by a
// Reload, moved to another store, and made again.
func TestSeriesFollowTheRegistry(t *testing.T) {
	var reg ratelimit.Registry
	defer reg.Close()
	reader, _ := register(t, &reg)
	require.Empty(t, values(t, reader), "there is no limiter yet")
	allowed := func(name string) (float64, bool) {
		n, ok := values(t, reader)["ratelimit.requests{ratelimit.limiter="+name+",ratelimit.result=allowed}"]
		return n, ok
	}
	fromStore := func(name string) float64 {
		return values(t, reader)["ratelimit.decisions{ratelimit.limiter="+name+",ratelimit.source=store}"]
	}
	a, b := newLimiter(t, &reg, "a", quiet(hourly(9))), newLimiter(t, &reg, "b", quiet(hourly(9)))
	for range 3 {
		a.Take(ctx, "k")
		b.Take(ctx, "k")
	}
	n, _ := allowed("a")
	require.EqualValues(t, 3, n)
	require.EqualValues(t, 3, fromStore("a"))
	require.NoError(t, a.Close())
	_, ok := allowed("a")
	require.False(t, ok, "a closed limiter")
	a = newLimiter(t, &reg, "a", quiet(hourly(9)))
	n, ok = allowed("a")
	require.True(t, ok)
	require.Zero(t, n, "a new limiter")
	require.Zero(t, fromStore("a"))
	a.Take(ctx, "k")
	require.EqualValues(t, 1, fromStore("a"))

	// Closed and made again between two collections.
	for _, n := range []int{5, 2} {
		a.Close()
		opts := quiet(hourly(9))
		opts.Store, opts.Timeout = newRemote(t), time.Minute
		a = newLimiter(t, &reg, "a", opts)
		for range n {
			a.Take(ctx, "k")
		}
		require.EqualValues(t, n, fromStore("a"))
		require.Eventually(t, func() bool { // there are calls in the background
			return float64(a.Stats().Remote.Calls) == values(t, reader)["ratelimit.store.calls{ratelimit.limiter=a}"]
		}, time.Minute, time.Millisecond)
	}

	remote := newRemote(t)
	for _, store := range []ratelimit.Store{newMemory(t), remote, newMemory(t)} {
		before := fromStore("b")
		require.NoError(t, reg.Reload(func(next *ratelimit.Registry) (err error) { // without a
			opts := quiet(hourly(9))
			opts.Store, opts.Timeout = store, time.Minute
			b, err = next.New("b", opts)
			return err
		}))
		_, err := b.Take(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, before+1, fromStore("b"))
	}
	_, ok = allowed("a")
	require.False(t, ok, "the Reload has left it out")
	n, _ = allowed("b")
	require.EqualValues(t, 6, n)
	got := values(t, reader)
	require.Contains(t, got, "ratelimit.memory.counters{ratelimit.limiter=b,ratelimit.store="+b.Info().Prefix+"}")
	require.Positive(t, got["ratelimit.store.calls{ratelimit.limiter=b}"], "counters go on")

	require.NoError(t, b.SetLimits(ratelimit.TokenBucket(7, time.Minute, 9)))
	got = values(t, reader)
	require.EqualValues(t, 7, got["ratelimit.limit.units{ratelimit.algorithm=bucket,ratelimit.limiter=b,ratelimit.policy=b}"])
	require.NotContains(t, got, "ratelimit.limit.units{ratelimit.algorithm=fixed,ratelimit.limiter=b,ratelimit.policy=b}")
	require.NoError(t, reg.Close())
	require.Empty(t, values(t, reader))
}

// TestLimitersComeAndGo makes and closes limiters, and registers and unregisters,
// while readers collect.
func TestLimitersComeAndGo(t *testing.T) {
	var reg ratelimit.Registry
	defer reg.Close()
	reader, provider := newProvider(t)
	var all sync.WaitGroup
	for g := range 3 {
		all.Go(func() {
			for i := range 30 {
				opts := quiet(hourly(2))
				opts.Store = newMemory(t)
				l, err := reg.New(fmt.Sprint(g, "-", i%5), opts)
				if assert.NoError(t, err) {
					for range 3 {
						l.Take(ctx, "k")
					}
					l.Close()
				}
			}
		})
	}
	all.Go(func() {
		for range 50 {
			registration, err := otelratelimit.Register(&reg, provider)
			if assert.NoError(t, err) {
				var both sync.WaitGroup
				both.Go(func() { assert.NoError(t, registration.Unregister()) })
				both.Go(func() { assert.NoError(t, registration.Unregister()) })
				both.Wait()
			}
		}
	})
	all.Go(func() {
		for range 100 {
			var collected metricdata.ResourceMetrics
			assert.NoError(t, reader.Collect(ctx, &collected))
		}
	})
	all.Wait()
	require.Empty(t, values(t, reader))
}

const secret = "203.0.113."

// TestFloodAddsNoSeries sends 100,000 keys, a tenth of them to a remote store, and then a thousand plans. No attribute
// has a key.
func TestFloodAddsNoSeries(t *testing.T) {
	var reg ratelimit.Registry
	reader, _ := register(t, &reg)
	plan := func(r *http.Request) []ratelimit.Limit {
		if name := r.Header.Get("Plan"); name != "" {
			return []ratelimit.Limit{hourly(1).Named(name)}
		}
		return nil
	}
	memory, remote := quiet(hourly(1)), quiet(hourly(1))
	memory.LimitsFor, remote.LimitsFor = plan, plan
	store := newRemote(t)
	remote.Store, remote.Timeout = store, time.Minute
	limiters := []*ratelimit.Limiter{newLimiter(t, &reg, "memory", memory), newLimiter(t, &reg, "remote", remote)}
	flood := func(from, to int) {
		for i := from; i < to; i++ {
			for j, l := range limiters {
				if j == 1 && i%10 != 0 { // to save time
					continue
				}
				for range 2 {
					_, err := l.Take(ctx, fmt.Sprint(secret, i))
					require.NoError(t, err)
				}
			}
		}
	}
	warm := func() {
		for _, l := range limiters {
			get(l.Middleware(served), "") // a warning
		}
	}
	warm()
	flood(0, 10)
	store.down.Store(true)
	flood(10, 50)
	before := values(t, reader)
	flood(50, 50_000)
	store.down.Store(false)
	flood(50_000, 100_000)
	flooded := values(t, reader)
	allowed := "ratelimit.requests{ratelimit.limiter=memory,ratelimit.result=allowed}"
	require.EqualValues(t, 100_000, flooded[allowed])
	for series := range flooded {
		if !strings.Contains(series, "ratelimit.code=") { // there is one for each warning
			require.Contains(t, before, series)
		}
	}
	require.Less(t, len(flooded), len(before)+10)

	for i := range 1000 {
		for _, l := range limiters {
			for range 2 {
				get(l.Middleware(served), secret+"x", "Plan", fmt.Sprint("plan", i))
			}
		}
	}
	got := values(t, reader)
	perLimiter := map[string]int{}
	var denied float64
	for series, value := range got {
		require.NotContains(t, series, secret)
		require.NotContains(t, series, "overflow")
		if strings.HasPrefix(series, "ratelimit.denials{ratelimit.limiter=memory,") {
			perLimiter["memory"]++
			denied += value
		}
	}
	require.Equal(t, 66, perLimiter["memory"], "its own limit, 64 plans, and other")
	require.Equal(t, got["ratelimit.requests{ratelimit.limiter=memory,ratelimit.result=denied}"], denied)
	require.Positive(t, got["ratelimit.denials{ratelimit.limiter=memory,ratelimit.policy=other}"])
	require.NotContains(t, got, "ratelimit.limit.units{ratelimit.algorithm=fixed,ratelimit.limiter=memory,ratelimit.policy=other}")

	for i := range 1000 { // a thousand limits of its own
		require.NoError(t, limiters[0].SetLimits(hourly(1).Named(fmt.Sprint("own", i))))
		_, err := limiters[0].Take(ctx, secret+"0")
		require.NoError(t, err)
	}
	again, policies := values(t, reader), 0
	for series := range again {
		if strings.HasPrefix(series, "ratelimit.denials{ratelimit.limiter=memory,") {
			policies++
		}
	}
	require.Equal(t, 127, policies)
	require.Equal(t, again["ratelimit.requests{ratelimit.limiter=memory,ratelimit.result=denied}"],
		sumOf(again, "ratelimit.denials{ratelimit.limiter=memory,"))
	require.Less(t, len(again), len(got)+3*64)
}

func sumOf(all map[string]float64, prefix string) (sum float64) {
	for series, value := range all {
		if strings.HasPrefix(series, prefix) {
			sum += value
		}
	}
	return sum
}
