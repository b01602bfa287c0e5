package otelratelimit

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/ratelimit-go/ratelimit"
)

// This file has how the counts of one limiter become measurements. Which attributes
// there are is decided here alone.

// Names of attributes, of metrics and of spans.
const (
	limiterKey   = attribute.Key("ratelimit.limiter")
	policyKey    = attribute.Key("ratelimit.policy")
	resultKey    = attribute.Key("ratelimit.result")
	sourceKey    = attribute.Key("ratelimit.source")
	codeKey      = attribute.Key("ratelimit.code")
	algorithmKey = attribute.Key("ratelimit.algorithm")
	deniedKey    = attribute.Key("ratelimit.denied")
	storeKey     = attribute.Key("ratelimit.store")
	errorTypeKey = attribute.Key("error.type")
)

// Values of ratelimit.result.
const (
	resultAllowed      = "allowed"
	resultDenied       = "denied"
	resultShadowDenied = "shadow_denied"
	resultExempt       = "exempt"
	resultNoKey        = "no_key"
	resultFailed       = "failed"
)

// collect is the callback. It may be called from several goroutines, one for each
// reader of a provider.
func (r *registration) collect(_ context.Context, to metric.Observer) error {
	r.collecting.Lock()
	defer r.collecting.Unlock()
	lives := make(map[string]*life, len(r.lives))
	for name, l := range r.registry.All() {
		s := l.Stats()
		lives[name] = r.lifeOf(l, s.Allowed+s.Denied+s.ShadowDenied+s.Exempt+s.NoKey+s.Failed)
		o := observation{&r.instruments, to, name, lives[name]}
		o.requests(&s)
		o.policies(s.Policies)
		o.store(l.Info(), &s)
	}
	r.lives = lives
	return nil
}

// lifeOf returns what is remembered of a limiter, and forgets it if the limiter is a
// new one of the same name. r.collecting must be held.
func (r *registration) lifeOf(l *ratelimit.Limiter, requests uint64) *life {
	before := r.lives[l.Name()]
	if before == nil || before.limiter != l && requests < before.requests {
		before = new(life)
	}
	before.limiter, before.requests = l, requests
	return before
}

// A life is what is remembered of a limiter between two collections. It spans all
// generations of a Reload.
type life struct {
	limiter  *ratelimit.Limiter
	requests uint64 // all of them

	// succeeded is the highest number of calls without an error that was observed.
	// It is the difference of two numbers that are read at slightly different times,
	// so the latest difference can be less. A counter that falls would look as if the
	// process had been restarted.
	succeeded uint64
}

// callsSucceeded returns the number of calls to the store without an error.
func (l *life) callsSucceeded(s *ratelimit.RemoteStats) uint64 {
	if s.Calls > s.Failures {
		l.succeeded = max(l.succeeded, s.Calls-s.Failures)
	}
	return l.succeeded
}

// An observation is what one collection reports of one limiter.
type observation struct {
	*instruments
	to      metric.Observer
	limiter string
	life    *life
}

// with returns the attributes of one series.
func (o *observation) with(further ...attribute.KeyValue) metric.ObserveOption {
	return metric.WithAttributeSet(attribute.NewSet(append(further, limiterKey.String(o.limiter))...))
}

// count reports a counter.
func (o *observation) count(c metric.Int64ObservableCounter, n uint64, further ...attribute.KeyValue) {
	o.to.ObserveInt64(c, int64(n), o.with(further...))
}

// requests reports what has happened to requests.
func (o *observation) requests(s *ratelimit.LimiterStats) {
	o.count(o.requestCount, s.Allowed, resultKey.String(resultAllowed))
	o.count(o.requestCount, s.Denied, resultKey.String(resultDenied))
	o.count(o.requestCount, s.ShadowDenied, resultKey.String(resultShadowDenied))
	o.count(o.requestCount, s.Exempt, resultKey.String(resultExempt))
	o.count(o.requestCount, s.NoKey, resultKey.String(resultNoKey))
	o.count(o.requestCount, s.Failed, resultKey.String(resultFailed))
	o.count(o.blocks, s.BlocksBegun)
	o.count(o.nearLimit, s.NearLimit)
	o.to.ObserveInt64(o.queued, int64(s.Waiting), o.with())
	o.count(o.waits, s.Waited)
	o.to.ObserveFloat64(o.waitTime, s.WaitTime.Seconds(), o.with())
	o.to.ObserveInt64(o.inFlight, int64(s.InFlight), o.with())
	o.count(o.units, s.AllowedUnits, resultKey.String(resultAllowed))
	o.count(o.units, s.DeniedUnits, resultKey.String(resultDenied))
	for code, n := range s.Warnings {
		o.count(o.warnings, n, codeKey.String(string(code)))
	}
}

// policies reports the denials and the limit of each policy.
func (o *observation) policies(all []ratelimit.PolicyStats) {
	for _, p := range all {
		o.count(o.denials, p.Denied, policyKey.String(p.Name))
		if p.Limit.N() == 0 { // there is no limit, or it has no number
			continue
		}
		with := o.with(policyKey.String(p.Name), algorithmKey.String(p.Limit.Algorithm()))
		o.to.ObserveInt64(o.limitUnits, p.Limit.N(), with)
		o.to.ObserveFloat64(o.limitWindow, p.Limit.Window().Seconds(), with)
	}
}

// store reports where requests were decided, and the state of the store.
func (o *observation) store(info ratelimit.Info, s *ratelimit.LimiterStats) {
	remote := &s.Remote
	elsewhere := remote.Cached + remote.Leased + remote.Fallback + remote.FailedOpen
	decided := s.Allowed + s.Denied + s.ShadowDenied
	o.count(o.decisions, decided-elsewhere, sourceKey.String(ratelimit.SourceStore.String()))
	if info.Capacity > 0 {
		o.memory(storeKey.String(info.Prefix), info.Capacity, s.Memory)
	}
	if info.Remote || *remote != (ratelimit.RemoteStats{}) { // or it had a remote store before a Reload
		o.remote(remote)
	}
}

// remote reports what only a remote store has.
func (o *observation) remote(remote *ratelimit.RemoteStats) {
	o.count(o.decisions, remote.Cached, sourceKey.String(ratelimit.SourceCache.String()))
	o.count(o.decisions, remote.Leased, sourceKey.String(ratelimit.SourceLease.String()))
	o.count(o.decisions, remote.Fallback, sourceKey.String(ratelimit.SourceFallback.String()))
	o.count(o.decisions, remote.FailedOpen, sourceKey.String(ratelimit.SourceFailOpen.String()))
	o.count(o.storeCalls, o.life.callsSucceeded(remote))
	o.count(o.storeCalls, remote.Failures, errorTypeKey.String(string(ratelimit.CodeStoreFailed)))
	o.to.ObserveFloat64(o.storeCallTime, remote.CallTime.Seconds(), o.with())
	o.count(o.sparedCalls, remote.Spared)
	o.count(o.outages, remote.BreakerOpened)
	o.to.ObserveInt64(o.breakerOpen, oneIf(remote.BreakerOpen), o.with())
	o.to.ObserveInt64(o.owedKeys, int64(remote.Owed), o.with())
	o.count(o.forgottenKeys, remote.Forgotten)
}

// memory reports how full a memory store is. The numbers are the store's, and begin again
// if a Reload gives the limiter another one.
func (o *observation) memory(store attribute.KeyValue, capacity int, s ratelimit.MemoryStats) {
	o.to.ObserveInt64(o.memoryCounters, int64(s.Counters), o.with(store))
	o.to.ObserveInt64(o.memoryCapacity, int64(capacity), o.with(store))
	o.count(o.evictions, s.Evicted-s.EvictedDenied, store, deniedKey.Bool(false))
	o.count(o.evictions, s.EvictedDenied, store, deniedKey.Bool(true))
	o.count(o.snapshotFailures, s.SnapshotsFailed, store)
}

func oneIf(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}
