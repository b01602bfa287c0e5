package promratelimit_test

import (
	"fmt"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/promratelimit"
)

// BenchmarkScrape reads 1,000 limiters in memory. Its parts are Stats alone, the
// collector, a Prometheus registry's Gather, and an HTTP response in text. Each part
// includes the ones before it. With traffic, another goroutine takes units of all
// limiters in turn; "none" has that traffic without a scrape.
func BenchmarkScrape(b *testing.B) {
	reg := registry(b)
	limiters := make([]*ratelimit.Limiter, 1000)
	for i := range limiters {
		limiters[i] = limiter(b, reg, fmt.Sprintf("limiter-%d", i), quiet(ratelimit.FixedWindow(50, time.Hour)))
		for range 100 {
			limiters[i].Take(ctx, "key")
		}
	}
	collector := promratelimit.NewCollector(reg)
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collector)
	handler := promhttp.HandlerFor(metrics, promhttp.HandlerOpts{DisableCompression: true})

	for _, part := range []struct {
		name   string
		scrape func()
	}{
		{"none", func() { time.Sleep(10 * time.Millisecond) }},
		{"stats", func() {
			for _, l := range reg.All() {
				l.Stats()
			}
		}},
		{"collect", func() {
			ch := make(chan prometheus.Metric, 1000)
			go func() {
				collector.Collect(ch)
				close(ch)
			}()
			for range ch {
			}
		}},
		{"gather", func() {
			_, err := metrics.Gather()
			require.NoError(b, err)
		}},
		{"http", func() {
			handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
		}},
	} {
		if part.name != "none" {
			b.Run(part.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					part.scrape()
				}
			})
		}
		b.Run(part.name+"/traffic", func(b *testing.B) {
			var stop atomic.Bool
			decided := make(chan int)
			go func() {
				n := 0
				for ; !stop.Load(); n++ {
					limiters[n%len(limiters)].Take(ctx, "key")
				}
				decided <- n
			}()
			for b.Loop() {
				part.scrape()
			}
			elapsed := b.Elapsed()
			stop.Store(true)
			b.ReportMetric(float64(elapsed.Nanoseconds())/float64(<-decided), "ns/decision")
		})
	}
}
