package promratelimit

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the collector: which limiters it reads, and which series it makes of
// what it reads. The form of a metric is in metric.go.

// NewCollector returns a collector for the limiters of reg. If reg is nil, the collector
// is for [ratelimit.DefaultRegistry]. On each scrape it exports the limiters that are in
// the registry at that moment, so it can be registered before the first limiter exists,
// and stays registered across [ratelimit.Reload].
//
// A [prometheus.Registry] takes one such collector. To export several registries, give
// each collector a label with [prometheus.WrapRegistererWith].
func NewCollector(reg *ratelimit.Registry) prometheus.Collector {
	if reg == nil {
		reg = ratelimit.DefaultRegistry
	}
	return &collector{registry: reg}
}

type collector struct{ registry *ratelimit.Registry }

// Describe implements [prometheus.Collector].
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descriptions {
		ch <- d
	}
}

// Collect implements [prometheus.Collector]. It may be called from any number of
// goroutines.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	var s scrape
	for _, limiter := range c.registry.All() {
		stats := limiter.Stats()
		s.limiter(limiter.Info(), &stats)
	}
	for _, m := range s.all {
		ch <- m
	}
}

// A scrape makes the metrics of one scrape.
type scrape struct{ all []prometheus.Metric }

func (s *scrape) counter(d *prometheus.Desc, n uint64, labels ...*dto.LabelPair) {
	s.all = append(s.all, &counter{d, labels, float64(n)})
}

func (s *scrape) gauge(d *prometheus.Desc, v float64, labels ...*dto.LabelPair) {
	s.all = append(s.all, &gauge{d, labels, v})
}

// limiter adds the metrics of one limiter. The labels of a metric are in the order of
// their names.
func (s *scrape) limiter(info ratelimit.Info, stats *ratelimit.LimiterStats) {
	name := label("limiter", info.Name)

	s.counter(requests, stats.Allowed, name, allowed)
	s.counter(requests, stats.Denied, name, denied)
	s.counter(requests, stats.ShadowDenied, name, shadowDenied)
	s.counter(requests, stats.Exempt, name, exempt)
	s.counter(requests, stats.NoKey, name, noKey)
	s.counter(requests, stats.Failed, name, failed)
	s.counter(blocksBegun, stats.BlocksBegun, name)
	s.counter(nearLimit, stats.NearLimit, name)
	s.gauge(waiting, float64(stats.Waiting), name)
	s.counter(waited, stats.Waited, name)
	s.all = append(s.all, &counter{waitSeconds, []*dto.LabelPair{name}, stats.WaitTime.Seconds()})
	s.gauge(inFlight, float64(stats.InFlight), name)
	s.counter(units, stats.AllowedUnits, name, allowed)
	s.counter(units, stats.DeniedUnits, name, denied)
	for _, p := range stats.Policies {
		policy := label("policy", p.Name)
		s.counter(deniedBy, p.Denied, name, policy)
		if n, window := p.Limit.N(), p.Limit.Window(); n > 0 && window > 0 {
			algorithm := label("algorithm", p.Limit.Algorithm())
			s.gauge(limitUnits, float64(n), algorithm, name, policy)
			s.gauge(limitWindow, window.Seconds(), algorithm, name, policy)
		}
	}
	for code, n := range stats.Warnings {
		s.counter(warnings, n, label("code", string(code)), name)
	}
	s.gauge(limiterInfo, 1, name, label("on_failure", info.OnFailure.String()), label("store", info.Store))
	r := &stats.Remote
	elsewhere := r.Cached + r.Leased + r.Fallback + r.FailedOpen
	s.counter(decisions, stats.Allowed+stats.Denied+stats.ShadowDenied-elsewhere, name, sources[ratelimit.SourceStore])
	if info.Remote || *r != (ratelimit.RemoteStats{}) { // a Reload may have replaced a remote store by another one
		s.remote(name, r)
	}
	if info.Capacity > 0 {
		s.memory(label("store", info.Prefix), info.Capacity, &stats.Memory)
	}
}

// remote adds the metrics of a limiter's remote store.
func (s *scrape) remote(name *dto.LabelPair, r *ratelimit.RemoteStats) {
	s.counter(decisions, r.Cached, name, sources[ratelimit.SourceCache])
	s.counter(decisions, r.Leased, name, sources[ratelimit.SourceLease])
	s.counter(decisions, r.Fallback, name, sources[ratelimit.SourceFallback])
	s.counter(decisions, r.FailedOpen, name, sources[ratelimit.SourceFailOpen])
	s.all = append(s.all, &histogram{storeSeconds, []*dto.LabelPair{name}, r.CallTimes, r.CallTime.Seconds()})
	s.counter(storeFailures, r.Failures, name)
	s.counter(storeSpared, r.Spared, name)
	s.counter(storeOutages, r.BreakerOpened, name)
	s.counter(storeForgotten, r.Forgotten, name)
	open := 0.0
	if r.BreakerOpen {
		open = 1
	}
	s.gauge(storeBreakerOpen, open, name)
	s.gauge(storeOwed, float64(r.Owed), name)
}

// memory adds the metrics of a limiter's memory store.
func (s *scrape) memory(store *dto.LabelPair, capacity int, m *ratelimit.MemoryStats) {
	s.gauge(memoryCounters, float64(m.Counters), store)
	s.gauge(memoryCapacity, float64(capacity), store)
	s.counter(memoryEvicted, m.Evicted-m.EvictedDenied, notDenied, store)
	s.counter(memoryEvicted, m.EvictedDenied, wasDenied, store)
	s.counter(memorySnapshotsFailed, m.SnapshotsFailed, store)
}
