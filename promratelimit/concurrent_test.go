package promratelimit_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	dto "github.com/prometheus/client_model/go"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
)

// TestScrapesDuringReloads makes 50 Reloads, each of which replaces, adds and removes
// limiters, while requests are served and two goroutines scrape. No scrape fails.
//
// The limiter "kept" is in all of them, in turn on a memory store and on Redis. None of
// its counters falls, and at the end all decisions are in them.
func TestScrapesDuringReloads(t *testing.T) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { client.Close() })
	reg := registry(t)
	build := func(generation int) func(*ratelimit.Registry) error {
		return func(next *ratelimit.Registry) error {
			opts := byHeader(ratelimit.FixedWindow(5, time.Hour), ratelimit.TokenBucket(int64(generation+1), time.Minute, 100))
			opts.Shadow = generation%3 == 0
			opts.Timeout = time.Minute
			if generation%2 == 0 {
				opts.Store = ratelimit.Memory(t.Name())
			} else {
				opts.Redis = client
			}
			_, err := next.New("kept", opts)
			for i := range 6 {
				opts.Redis, opts.Store = nil, ratelimit.Memory(fmt.Sprint(t.Name(), i))
				if err == nil && rand.N(2) == 0 {
					_, err = next.New(fmt.Sprint("limiter ", i), opts)
				}
			}
			return err
		}
	}
	t.Cleanup(func() {
		ratelimit.Memory(t.Name()).Close()
		for i := range 6 {
			ratelimit.Memory(fmt.Sprint(t.Name(), i)).Close()
		}
	})
	require.NoError(t, reg.Reload(build(0)))

	stop := make(chan struct{})
	stopped := func() bool {
		select {
		case <-stop:
			return true
		default:
			return false
		}
	}
	metrics := gatherer(reg)
	var all sync.WaitGroup
	var requests [2]int
	for i := range requests {
		all.Go(func() {
			for ; !stopped(); requests[i]++ {
				l, _ := reg.Lookup("kept")
				serve(l, "/", "Key", fmt.Sprint(requests[i]%100))
				for name, l := range reg.All() {
					if name != "kept" {
						l.Take(ctx, fmt.Sprint(requests[i]%100))
					}
				}
			}
		})
	}
	for range 2 {
		all.Go(func() {
			var before map[string]float64
			for !stopped() {
				families, err := metrics.Gather()
				assert.NoError(t, err)
				now := countersOf(families, "kept")
				for name, was := range before { // a series of a store that was never called may go
					if was > 0 && !assert.Contains(t, now, name) || !assert.GreaterOrEqual(t, now[name], was, name) {
						return
					}
				}
				before = now
			}
		})
	}
	for generation := range 50 {
		require.NoError(t, reg.Reload(build(generation+1)))
		count(t, metrics)
	}
	close(stop)
	all.Wait()

	families, err := metrics.Gather()
	require.NoError(t, err)
	kept, n := countersOf(families, "kept"), float64(requests[0]+requests[1])
	result := func(name string) float64 { return kept["ratelimit_requests_total limiter=kept result="+name] }
	require.Equal(t, n, result("allowed")+result("denied")+result("shadow_denied"))
	require.Equal(t, result("denied"), kept["ratelimit_denied_total limiter=kept policy=kept-1h"]+kept["ratelimit_denied_total limiter=kept policy=kept-1m"])
	require.Equal(t, n-result("shadow_denied"), kept["ratelimit_units_total limiter=kept result=allowed"]+kept["ratelimit_units_total limiter=kept result=denied"])
}

// countersOf returns the counters and histograms with a limiter's name.
func countersOf(families []*dto.MetricFamily, limiter string) map[string]float64 {
	all := make(map[string]float64)
	for name, n := range series(families) {
		if strings.Contains(name+" ", " limiter="+limiter+" ") && (strings.Contains(name, "_total ") || strings.HasPrefix(name, "ratelimit_store_seconds ")) {
			all[name] = n
		}
	}
	return all
}

// TestANewLimiterOfTheSameNameStartsFromZero has counters that fall, because they are
// another limiter's.
func TestANewLimiterOfTheSameNameStartsFromZero(t *testing.T) {
	reg := registry(t)
	metrics := gatherer(reg)
	for range 3 {
		opts := quiet(hour)
		opts.Store = ratelimit.Memory(t.Name())
		l := limiter(t, reg, "x", opts)
		take(t, l, "a", 5, true)
		take(t, l, "a", 1, false)
		all := text(t, metrics)
		require.Contains(t, all, `ratelimit_requests_total{limiter="x",result="denied"} 1`)
		require.Contains(t, all, `ratelimit_decisions_total{limiter="x",source="store"} 2`)
		require.NoError(t, l.Close())
		require.Empty(t, lines(text(t, metrics)))
		require.NoError(t, opts.Store.(*ratelimit.MemoryStore).Close())
	}
	take(t, limiter(t, reg, "x", quiet(hour)), "a", 5, true)
	require.Contains(t, text(t, metrics), `ratelimit_decisions_total{limiter="x",source="store"} 1`)
}

// TestDerivedCountersDoNotFall scrapes while requests are let through by Shadow, or denied by
// what is known of Redis, so that the counts that are subtracted grow during a scrape.
func TestDerivedCountersDoNotFall(t *testing.T) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { client.Close() })
	reg := registry(t)
	opts := byHeader(hour)
	opts.Shadow, opts.Redis, opts.Timeout = true, client, time.Minute
	l := limiter(t, reg, "x", opts)
	take(t, l, "a", 5, true)
	metrics := gatherer(reg)
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				done <- n
				return
			default:
			}
			serve(l, "/", "Key", "a")              // denied
			serve(l, "/", "Key", "b", "Cost", "0") // allowed
		}
	}()
	var before map[string]float64
	scrape := func() {
		families, err := metrics.Gather()
		require.NoError(t, err)
		now := countersOf(families, "x")
		for name, was := range before {
			require.GreaterOrEqual(t, now[name], was, name)
		}
		// A request without a cost may be seen with one unit for a moment.
		require.InDelta(t, 5, now["ratelimit_units_total limiter=x result=allowed"], 1)
		before = now
	}
	for range 500 {
		scrape()
	}
	close(stop)
	n := <-done
	scrape()
	require.EqualValues(t, n, before["ratelimit_requests_total limiter=x result=shadow_denied"])
	require.EqualValues(t, n+1, before["ratelimit_requests_total limiter=x result=allowed"])
	require.EqualValues(t, 2*n+1, before["ratelimit_decisions_total limiter=x source=store"]+before["ratelimit_decisions_total limiter=x source=cache"])
	require.LessOrEqual(t, before["ratelimit_requests_total limiter=x result=denied"], 1.0)
}
