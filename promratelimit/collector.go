package promratelimit

import (
	"math"
	"sync"

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

type collector struct {
	registry *ratelimit.Registry

	mu    sync.Mutex       // held while a scrape reads the limiters
	lives map[string]*life // by limiter name, of the limiters that the last scrape has read
}

// Describe implements [prometheus.Collector].
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descriptions {
		ch <- d
	}
}

// Collect implements [prometheus.Collector]. It may be called from any number of
// goroutines. Calls read the limiters one after the other; see [life].
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for _, m := range c.read() {
		ch <- m
	}
}

// read returns the metrics of all limiters. It takes c.mu.
func (c *collector) read() []prometheus.Metric {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := scrape{all: make([]prometheus.Metric, 0, 32*len(c.lives))}
	lives := make(map[string]*life, len(c.lives))
	for name, limiter := range c.registry.All() {
		l := c.lives[name]
		if l == nil {
			l = new(life)
		}
		lives[name] = l
		stats := limiter.Stats()
		if stats.ShadowDenied > 0 && stats.Denied > l.denied+stats.ShadowDenied {
			// Stats has read ShadowDenied first. Requests that Shadow has let through
			// after that must not be taken for denied ones. This leaves requests that were
			// denied before the first call and let through after the second one.
			stats.ShadowDenied = limiter.Stats().ShadowDenied
		}
		info := limiter.Info()
		l.update(info, &stats)
		s.limiter(info, &stats, l)
	}
	c.lives = lives
	return s.all
}

// A life is what the last scrape has read of the limiter with one name, and of those
// that a Reload has put in its place.
//
// Counters that are sums or differences of several counts need it. The counts grow while
// Limiter.Stats reads them one after the other, so that the result may be smaller when it
// is read again. Prometheus takes a counter that falls for one that has restarted, and
// would add all of it to the increase.
type life struct {
	counts [8]uint64 // none of them falls while the life lasts

	// Counters that are not exported as Limiter.Stats has them.
	denied                    uint64 // by requests and calls that Shadow has not let through
	allowedUnits, deniedUnits uint64
	fromStore                 uint64
	breakerOpened, forgotten  uint64

	remote bool // the limiter has, or had, a remote store
}

// update takes over what a scrape has read. If a count has fallen, another limiter of the
// same name was made after the last one was closed or left out by a Reload, and a new
// life begins.
func (l *life) update(info ratelimit.Info, s *ratelimit.LimiterStats) {
	counts := [...]uint64{s.Allowed, s.Denied, s.NearLimit, s.Exempt, s.NoKey, s.Failed, s.ShadowDenied, s.Remote.Calls}
	for i, n := range counts {
		if n < l.counts[i] {
			*l = life{}
			break
		}
	}
	l.counts = counts
	r := &s.Remote
	l.denied = max(l.denied, minus(s.Denied, s.ShadowDenied))
	l.allowedUnits = max(l.allowedUnits, positive(s.AllowedUnits))
	l.deniedUnits = max(l.deniedUnits, positive(s.DeniedUnits))
	l.fromStore = max(l.fromStore, minus(s.Allowed+s.Denied, r.Cached+r.Leased+r.Fallback+r.FailedOpen))
	l.breakerOpened = max(l.breakerOpened, r.BreakerOpened)
	l.forgotten = max(l.forgotten, r.Forgotten)
	l.remote = l.remote || hasRemoteStore(info, r)
}

// hasRemoteStore reports whether the limiter has a [ratelimit.RemoteStore], or had one
// before a Reload. A store of another make is known by its first call.
func hasRemoteStore(info ratelimit.Info, r *ratelimit.RemoteStats) bool {
	return *r != ratelimit.RemoteStats{} || info.Store == "RedisStore" && info.Capacity == 0
}

// positive returns a sum of units, or 0 if it is below 0: while requests that cost
// nothing are counted, they are subtracted from a sum that does not have them yet.
func positive(n uint64) uint64 {
	if n > math.MaxInt64 {
		return 0
	}
	return n
}

// minus returns a-b, or 0 if b is larger.
func minus(a, b uint64) uint64 { return a - min(a, b) }

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
func (s *scrape) limiter(info ratelimit.Info, stats *ratelimit.LimiterStats, l *life) {
	name := label("limiter", info.Name)

	s.counter(requests, stats.Allowed, name, allowed)
	s.counter(requests, l.denied, name, denied)
	s.counter(requests, stats.ShadowDenied, name, shadowDenied)
	s.counter(requests, stats.Exempt, name, exempt)
	s.counter(requests, stats.NoKey, name, noKey)
	s.counter(requests, stats.Failed, name, failed)
	s.counter(nearLimit, stats.NearLimit, name)
	s.counter(units, l.allowedUnits, name, allowed)
	s.counter(units, l.deniedUnits, name, denied)
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
	s.counter(decisions, l.fromStore, name, sources[ratelimit.SourceStore])
	if l.remote {
		s.remote(name, &stats.Remote, l)
	}
	if info.Capacity > 0 {
		s.memory(label("store", info.Prefix), info.Capacity, &stats.Memory)
	}
}

// remote adds the metrics of a limiter's remote store.
func (s *scrape) remote(name *dto.LabelPair, r *ratelimit.RemoteStats, l *life) {
	s.counter(decisions, r.Cached, name, sources[ratelimit.SourceCache])
	s.counter(decisions, r.Leased, name, sources[ratelimit.SourceLease])
	s.counter(decisions, r.Fallback, name, sources[ratelimit.SourceFallback])
	s.counter(decisions, r.FailedOpen, name, sources[ratelimit.SourceFailOpen])
	s.all = append(s.all, &histogram{storeSeconds, []*dto.LabelPair{name}, r.CallTimes, r.CallTime.Seconds()})
	s.counter(storeFailures, r.Failures, name)
	s.counter(storeSpared, r.Spared, name)
	s.counter(storeOutages, l.breakerOpened, name)
	s.counter(storeForgotten, l.forgotten, name)
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
	s.counter(memoryEvicted, minus(m.Evicted, m.EvictedDenied), notDenied, store)
	s.counter(memoryEvicted, m.EvictedDenied, wasDenied, store)
	s.counter(memorySnapshotsFailed, m.SnapshotsFailed, store)
}
