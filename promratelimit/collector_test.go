package promratelimit_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/promratelimit"
)

// byHeader returns options that take the key, the cost and the plan of a request from
// its header fields.
func byHeader(limits ...ratelimit.Limit) ratelimit.Options {
	opts := quiet(limits...)
	opts.Key = func(r *http.Request) (string, error) {
		if key := r.Header.Get("Key"); key != "" {
			return key, nil
		}
		return "", ratelimit.ErrNoKey
	}
	opts.Cost = func(r *http.Request) int64 {
		n, err := strconv.ParseInt(r.Header.Get("Cost"), 10, 64)
		if err != nil {
			return 1
		}
		return n
	}
	opts.LimitsFor = func(r *http.Request) []ratelimit.Limit {
		return map[string][]ratelimit.Limit{
			"gold":      {ratelimit.TokenBucket(100, time.Minute, 10).Block(time.Hour).Named("gold")},
			"suspended": {ratelimit.Deny.Named("suspended")},
			"unlimited": {ratelimit.Unlimited.Named("unlimited")},
		}[r.Header.Get("Plan")]
	}
	opts.Skip = func(r *http.Request) bool { return r.URL.Path == "/health" }
	return opts
}

// TestMemoryLimiter has a limiter in Shadow, with requests of every result. Take denies
// even in Shadow.
func TestMemoryLimiter(t *testing.T) {
	reg := registry(t)
	opts := byHeader(hour)
	opts.Shadow, opts.Store = true, memory(t, "login", ratelimit.MemoryOptions{MaxKeys: 1000})
	l := limiter(t, reg, "login", opts)
	for range 7 { // 5 fit
		require.Equal(t, 200, serve(l, "/", "Key", "a"))
	}
	take(t, l, "a", 1, false)
	take(t, l, "b", 3, true)
	take(t, l, "b", 3, false)
	for _, fields := range [][]string{
		{"Key", "c", "Plan", "gold", "Cost", "4"},
		{"Key", "c", "Plan", "gold", "Cost", "7"}, // does not fit
		{"Key", "c", "Plan", "suspended"},
		{"Key", "c", "Plan", "unlimited"},
		{"Key", "c", "Cost", "0"},
		{"Key", "c", "Cost", "-1"}, // fails
		{}, {}, {},
	} {
		require.Equal(t, 200, serve(l, "/", fields...))
	}
	serve(l, "/health")
	serve(l, "/health")
	requireScrape(t, reg, `
		ratelimit_requests_total{limiter="login",result="allowed"} 9
		ratelimit_requests_total{limiter="login",result="denied"} 2
		ratelimit_requests_total{limiter="login",result="shadow_denied"} 4
		ratelimit_requests_total{limiter="login",result="exempt"} 2
		ratelimit_requests_total{limiter="login",result="no_key"} 3
		ratelimit_requests_total{limiter="login",result="failed"} 1
		ratelimit_denied_total{limiter="login",policy="login"} 2
		ratelimit_denied_total{limiter="login",policy="gold"} 0
		ratelimit_denied_total{limiter="login",policy="suspended"} 0
		ratelimit_denied_total{limiter="login",policy="unlimited"} 0
		ratelimit_blocks_total{limiter="login"} 1
		ratelimit_near_limit_total{limiter="login"} 2
		ratelimit_waiting{limiter="login"} 0
		ratelimit_waited_total{limiter="login"} 0
		ratelimit_wait_seconds_total{limiter="login"} 0
		ratelimit_in_flight{limiter="login"} 0
		ratelimit_units_total{limiter="login",result="allowed"} 13
		ratelimit_units_total{limiter="login",result="denied"} 4
		ratelimit_decisions_total{limiter="login",source="store"} 15
		ratelimit_limit_units{algorithm="fixed",limiter="login",policy="login"} 5
		ratelimit_limit_window_seconds{algorithm="fixed",limiter="login",policy="login"} 3600
		ratelimit_limit_units{algorithm="bucket",limiter="login",policy="gold"} 100
		ratelimit_limit_window_seconds{algorithm="bucket",limiter="login",policy="gold"} 60
		ratelimit_limiter_info{limiter="login",on_failure="FallbackLocal",store="MemoryStore"} 1
		ratelimit_warnings_total{code="no-key",limiter="login"} 3
		ratelimit_warnings_total{code="option-failed",limiter="login"} 1
		ratelimit_warnings_total{code="shadow",limiter="login"} 4
		ratelimit_memory_counters{store="memory:TestMemoryLimiter/login"} 4
		ratelimit_memory_capacity{store="memory:TestMemoryLimiter/login"} 1000
		ratelimit_memory_evicted_total{denied="false",store="memory:TestMemoryLimiter/login"} 0
		ratelimit_memory_evicted_total{denied="true",store="memory:TestMemoryLimiter/login"} 0
		ratelimit_memory_snapshots_failed_total{store="memory:TestMemoryLimiter/login"} 0
	`)
}

// TestRedisLimiter has an outage. The bubble's clock does not advance during a
// call, so that every call takes no time.
func TestRedisLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := miniredis.NewMiniRedis()
		t.Cleanup(m.Close)
		reg := registry(t)
		opts := byHeader(hour)
		opts.Redis = pipe(t, m)
		l := limiter(t, reg, "api", opts)
		info := `
			ratelimit_limit_units{algorithm="fixed",limiter="api",policy="api"} 5
			ratelimit_limit_window_seconds{algorithm="fixed",limiter="api",policy="api"} 3600
			ratelimit_limiter_info{limiter="api",on_failure="FallbackLocal",store="RedisStore"} 1
		`
		for range 5 {
			take(t, l, "a", 1, true)
		}
		take(t, l, "a", 1, false) // Redis has denied it
		take(t, l, "a", 1, false) // it is known
		require.Equal(t, 429, serve(l, "/", "Key", "a", "Plan", "suspended"))
		require.Equal(t, 400, serve(l, "/"))
		synctest.Wait()
		requireScrape(t, reg, info+`
			ratelimit_requests_total{limiter="api",result="allowed"} 5
			ratelimit_requests_total{limiter="api",result="denied"} 3
			ratelimit_requests_total{limiter="api",result="shadow_denied"} 0
			ratelimit_requests_total{limiter="api",result="exempt"} 0
			ratelimit_requests_total{limiter="api",result="no_key"} 1
			ratelimit_requests_total{limiter="api",result="failed"} 0
			ratelimit_denied_total{limiter="api",policy="api"} 2
			ratelimit_denied_total{limiter="api",policy="suspended"} 1
			ratelimit_blocks_total{limiter="api"} 0
			ratelimit_near_limit_total{limiter="api"} 2
			ratelimit_waiting{limiter="api"} 0
			ratelimit_waited_total{limiter="api"} 0
			ratelimit_wait_seconds_total{limiter="api"} 0
			ratelimit_in_flight{limiter="api"} 0
			ratelimit_units_total{limiter="api",result="allowed"} 5
			ratelimit_units_total{limiter="api",result="denied"} 3
			ratelimit_decisions_total{limiter="api",source="store"} 7
			ratelimit_decisions_total{limiter="api",source="cache"} 1
			ratelimit_decisions_total{limiter="api",source="lease"} 0
			ratelimit_decisions_total{limiter="api",source="fallback"} 0
			ratelimit_decisions_total{limiter="api",source="fail-open"} 0
			ratelimit_warnings_total{code="no-key",limiter="api"} 1
			ratelimit_store_failures_total{limiter="api"} 0
			ratelimit_store_spared_total{limiter="api"} 0
			ratelimit_store_outages_total{limiter="api"} 0
			ratelimit_store_breaker_open{limiter="api"} 0
			ratelimit_store_owed_keys{limiter="api"} 0
			ratelimit_store_forgotten_keys_total{limiter="api"} 0
		`+storeSeconds("api", 6))

		m.SetError("ERR out of order")
		for _, key := range []string{"b", "c", "d", "e", "f", "g", "h"} { // the breaker opens at the fifth
			take(t, l, key, 1, true)
		}
		take(t, l, "b", 9, false)
		synctest.Wait() // for the goroutine that reports the outage
		metrics, err := gatherer(reg).Gather()
		require.NoError(t, err)
		outage := series(metrics)
		calls := outage["ratelimit_store_seconds limiter=api"]
		for name, want := range map[string]float64{
			"ratelimit_requests_total limiter=api result=allowed":       12,
			"ratelimit_requests_total limiter=api result=denied":        4,
			"ratelimit_decisions_total limiter=api source=store":        7,
			"ratelimit_decisions_total limiter=api source=fallback":     8,
			"ratelimit_store_breaker_open limiter=api":                  1,
			"ratelimit_store_outages_total limiter=api":                 1,
			"ratelimit_store_owed_keys limiter=api":                     2, // the five calls may have reached Redis
			"ratelimit_store_failures_total limiter=api":                calls - 6,
			"ratelimit_store_spared_total limiter=api":                  14 - calls,
			"ratelimit_warnings_total code=store-down limiter=api":      1,
			"ratelimit_warnings_total code=store-failed limiter=api":    8,
			"ratelimit_store_forgotten_keys_total limiter=api":          0,
			"ratelimit_units_total limiter=api result=denied":           12,
			"ratelimit_denied_total limiter=api policy=api":             3,
			"ratelimit_decisions_total limiter=api source=fail-open":    0,
			"ratelimit_requests_total limiter=api result=shadow_denied": 0,
		} {
			require.Contains(t, outage, name)
			require.Equal(t, want, outage[name], name)
		}

		m.SetError("")
		time.Sleep(time.Minute)
		take(t, l, "i", 1, true)
		time.Sleep(time.Minute)
		synctest.Wait()
		metrics, err = gatherer(reg).Gather()
		require.NoError(t, err)
		after := series(metrics)
		require.Zero(t, after["ratelimit_store_breaker_open limiter=api"])
		require.Zero(t, after["ratelimit_store_owed_keys limiter=api"])
		require.EqualValues(t, 1, after["ratelimit_store_outages_total limiter=api"])
		require.EqualValues(t, 8, after["ratelimit_decisions_total limiter=api source=store"])
	})
}

// storeSeconds returns the series of a histogram with n calls that have taken no time.
func storeSeconds(limiter string, n int) (text string) {
	for i := range len(ratelimit.CallTimes{}) {
		bound := strconv.FormatFloat(ratelimit.CallTimes{}.Bound(i), 'g', -1, 64)
		text += `ratelimit_store_seconds_bucket{limiter="` + limiter + `",le="` + bound + `"} ` + strconv.Itoa(n) + "\n"
	}
	return text + `ratelimit_store_seconds_sum{limiter="` + limiter + `"} 0
		ratelimit_store_seconds_count{limiter="` + limiter + `"} ` + strconv.Itoa(n) + "\n"
}

// pipe returns a client that works in a bubble of testing/synctest.
func pipe(t testing.TB, m *miniredis.Miniredis) *redis.Client {
	c := redis.NewClient(&redis.Options{
		Addr:                     "127.0.0.1:1", // nothing to look up
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		Dialer:                   func(context.Context, string, string) (net.Conn, error) { return m.Dial() },
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// wrapper is a store of another make, in this process.
type wrapper struct{ ratelimit.Store }

// remoteStore is a remote store of another make.
type remoteStore struct {
	ratelimit.Store
	latency time.Duration
	err     error
}

func (s *remoteStore) Take(ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	time.Sleep(s.latency)
	if s.err != nil {
		return 0, s.err
	}
	return s.Store.Take(ctx, key, n, limits, results)
}

func (s *remoteStore) Fault(error) ratelimit.Fault { return ratelimit.FaultRefused }

// TestInFlight has holds of calls and of a request that runs.
func TestInFlight(t *testing.T) {
	reg := registry(t)
	opts := quiet(ratelimit.InFlight(20, 30*time.Second))
	opts.Key = func(*http.Request) (string, error) { return "a", nil }
	l := limiter(t, reg, "export", opts)
	release, _, err := l.Acquire(ctx, "b")
	require.NoError(t, err)
	requireHolds := func(want string) {
		t.Helper()
		require.Subset(t, lines(text(t, gatherer(reg))), lines(want))
	}
	const limit = `
		ratelimit_limit_units{algorithm="inflight",limiter="export",policy="export"} 20
		ratelimit_limit_window_seconds{algorithm="inflight",limiter="export",policy="export"} 30
	`
	h := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		requireHolds(`ratelimit_in_flight{limiter="export"} 2` + limit)
	}))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	requireHolds(`ratelimit_in_flight{limiter="export"} 1` + limit)
	release()
	requireHolds(`ratelimit_in_flight{limiter="export"} 0` + limit)
}

// TestStoresOfOtherMakes has series about a remote store, and none about a store in this
// process.
func TestStoresOfOtherMakes(t *testing.T) {
	reg := registry(t)
	opts := quiet(hour)
	opts.Store = wrapper{memory(t, "a", ratelimit.MemoryOptions{})}
	local := limiter(t, reg, "local", opts)
	opts.Store = &remoteStore{Store: memory(t, "b", ratelimit.MemoryOptions{})}
	opts.OnFailure = ratelimit.FailOpen
	remote := limiter(t, reg, "remote", opts)
	metrics := gatherer(reg)
	require.Contains(t, text(t, metrics), `ratelimit_store_seconds_count{limiter="remote"} 0`)
	take(t, local, "a", 1, true)
	take(t, remote, "a", 1, true)
	all := text(t, metrics)
	require.Contains(t, all, `ratelimit_limiter_info{limiter="local",on_failure="FallbackLocal",store="wrapper"} 1`)
	require.Contains(t, all, `ratelimit_limiter_info{limiter="remote",on_failure="FailOpen",store="remoteStore"} 1`)
	require.Contains(t, all, `ratelimit_store_seconds_count{limiter="remote"} 1`)
	require.Contains(t, all, `ratelimit_decisions_total{limiter="remote",source="store"} 1`)
	require.NotContains(t, all, `ratelimit_store_seconds_count{limiter="local"}`)
	require.NotContains(t, all, "ratelimit_memory")

	opts.Store.(*remoteStore).err = errors.New("down")
	take(t, remote, "b", 1, true)
	require.Contains(t, text(t, metrics), `ratelimit_decisions_total{limiter="remote",source="fail-open"} 1`)
}

// TestEvictions compares the series of a full store with the store's own counts.
func TestEvictions(t *testing.T) {
	reg := registry(t)
	opts := quiet(ratelimit.FixedWindow(1, time.Hour))
	store := memory(t, "small", ratelimit.MemoryOptions{MaxKeys: 100})
	opts.Store = store
	l := limiter(t, reg, "x", opts)
	for i := range 2000 {
		l.Take(ctx, strconv.Itoa(i))
		l.Take(ctx, strconv.Itoa(i)) // denied
	}
	families, err := gatherer(reg).Gather()
	require.NoError(t, err)
	all, stats := series(families), store.Stats()
	require.NotZero(t, stats.EvictedDenied)
	require.EqualValues(t, stats.EvictedDenied, all["ratelimit_memory_evicted_total denied=true store="+store.Prefix()])
	require.EqualValues(t, stats.Evicted-stats.EvictedDenied, all["ratelimit_memory_evicted_total denied=false store="+store.Prefix()])
	require.EqualValues(t, stats.Counters, all["ratelimit_memory_counters store="+store.Prefix()])
	require.EqualValues(t, 2000, all["ratelimit_requests_total limiter=x result=denied"])
}

// TestTwoRegistries needs a label for each of them.
func TestTwoRegistries(t *testing.T) {
	public, internal := registry(t), registry(t)
	take(t, limiter(t, public, "api", quiet(hour)), "a", 1, true)
	opts := quiet(hour)
	opts.Store = memory(t, "other", ratelimit.MemoryOptions{})
	take(t, limiter(t, internal, "api", opts), "a", 2, true)

	metrics := prometheus.NewPedanticRegistry()
	metrics.MustRegister(promratelimit.NewCollector(public))
	require.ErrorAs(t, metrics.Register(promratelimit.NewCollector(internal)), new(prometheus.AlreadyRegisteredError))

	metrics = prometheus.NewPedanticRegistry()
	for name, reg := range map[string]*ratelimit.Registry{"public": public, "internal": internal} {
		prometheus.WrapRegistererWith(prometheus.Labels{"registry": name}, metrics).MustRegister(promratelimit.NewCollector(reg))
	}
	for range 2 { // labels that scrapes share are not changed
		all := text(t, metrics)
		require.Contains(t, all, `ratelimit_units_total{limiter="api",registry="internal",result="allowed"} 2`)
		require.Contains(t, all, `ratelimit_units_total{limiter="api",registry="public",result="allowed"} 1`)
	}
}

// TestDefaultRegistry has a collector without a registry.
func TestDefaultRegistry(t *testing.T) {
	metrics := gatherer(nil)
	before := count(t, metrics)
	l, err := ratelimit.New(t.Name(), quiet(hour))
	require.NoError(t, err)
	t.Cleanup(func() { ratelimit.Memory(t.Name()).Close() })
	take(t, l, "a", 1, true)
	require.Contains(t, text(t, metrics), `ratelimit_requests_total{limiter="`+t.Name()+`",result="allowed"} 1`)
	require.NoError(t, l.Close())
	require.Equal(t, before, count(t, metrics))
}
