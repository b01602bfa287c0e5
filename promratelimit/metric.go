package promratelimit

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the names, help texts and labels of the metrics, and the form in which
// they are handed to Prometheus.

// descriptions has all metrics. describe fills it.
var descriptions []*prometheus.Desc

func describe(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("ratelimit_"+name, help, labels, nil)
	descriptions = append(descriptions, d)
	return d
}

var (
	requests = describe("requests_total",
		"Requests, and calls that asked for units, by result.", "limiter", "result")
	deniedBy = describe("denied_total",
		"Requests, and calls that asked for units, that were denied, by the limit that has denied.", "limiter", "policy")
	blocksBegun = describe("blocks_total",
		"Denials that have started a block.", "limiter")
	nearLimit = describe("near_limit_total",
		"Allowed requests that left at most a fifth of a limit.", "limiter")
	waiting = describe("waiting",
		"Requests and calls that wait now until their units fit.", "limiter")
	waited = describe("waited_total",
		"Decided requests, and calls that asked for units, that have waited.", "limiter")
	waitSeconds = describe("wait_seconds_total",
		"Time for which they have waited together.", "limiter")
	inFlight = describe("in_flight",
		"Holds of in-flight limits that the process has.", "limiter")
	units = describe("units_total",
		"Units that were asked for, by result.", "limiter", "result")
	decisions = describe("decisions_total",
		"Decisions by where they were made.", "limiter", "source")
	limitUnits = describe("limit_units",
		"Units per window of a limit.", "algorithm", "limiter", "policy")
	limitWindow = describe("limit_window_seconds",
		"Window of a limit. Of an in-flight limit, its hold.", "algorithm", "limiter", "policy")
	limiterInfo = describe("limiter_info",
		"Always 1. The type of the limiter's store, and what the limiter does while the store fails.", "limiter", "on_failure", "store")
	warnings = describe("warnings_total",
		"Warnings by their code, logged or not.", "code", "limiter")

	storeSeconds = describe("store_seconds",
		"Duration of calls to the remote store, as their callers saw it.", "limiter")
	storeFailures = describe("store_failures_total",
		"Calls to the remote store that failed.", "limiter")
	storeSpared = describe("store_spared_total",
		"Calls to the remote store that were not made, because it was failing or too many callers were waiting.", "limiter")
	storeOutages = describe("store_outages_total",
		"Times that the breaker of the remote store has opened.", "limiter")
	storeBreakerOpen = describe("store_breaker_open",
		"1 while the breaker of the remote store is open, otherwise 0.", "limiter")
	storeOwed = describe("store_owed_keys",
		"Keys with units that the remote store does not know of yet.", "limiter")
	storeForgotten = describe("store_forgotten_keys_total",
		"Keys whose units the remote store will never know of, because this process could not keep them.", "limiter")

	memoryCounters = describe("memory_counters",
		"Counters in the memory store.", "store")
	memoryCapacity = describe("memory_capacity",
		"The most counters that the memory store holds.", "store")
	memoryEvicted = describe("memory_evicted_total",
		"Counters that the memory store has dropped before they expired, by whether their key was being denied.", "denied", "store")
	memorySnapshotsFailed = describe("memory_snapshots_failed_total",
		"Times that the snapshot file of the memory store could not be written.", "store")
)

var (
	allowed      = label("result", "allowed")
	denied       = label("result", "denied")
	shadowDenied = label("result", "shadow_denied")
	exempt       = label("result", "exempt")
	noKey        = label("result", "no_key")
	failed       = label("result", "failed")

	wasDenied = label("denied", "true")
	notDenied = label("denied", "false")

	sources = [...]*dto.LabelPair{
		label("source", ratelimit.SourceStore.String()),
		label("source", ratelimit.SourceCache.String()),
		label("source", ratelimit.SourceLease.String()),
		label("source", ratelimit.SourceFallback.String()),
		label("source", ratelimit.SourceFailOpen.String()),
	}
)

func label(name, value string) *dto.LabelPair {
	return &dto.LabelPair{Name: &name, Value: &value}
}

// The metrics do not change after they are made. Their label slices have no spare
// capacity, because wrapped registerers append to them.
type (
	counter struct {
		desc   *prometheus.Desc
		labels []*dto.LabelPair
		value  float64
	}
	gauge struct {
		desc   *prometheus.Desc
		labels []*dto.LabelPair
		value  float64
	}
	histogram struct {
		desc   *prometheus.Desc
		labels []*dto.LabelPair
		times  ratelimit.CallTimes
		sum    float64 // in seconds
	}
)

func (m *counter) Desc() *prometheus.Desc { return m.desc }

func (m *counter) Write(out *dto.Metric) error {
	out.Label, out.Counter = m.labels, &dto.Counter{Value: &m.value}
	return nil
}

func (m *gauge) Desc() *prometheus.Desc { return m.desc }

func (m *gauge) Write(out *dto.Metric) error {
	out.Label, out.Gauge = m.labels, &dto.Gauge{Value: &m.value}
	return nil
}

func (m *histogram) Desc() *prometheus.Desc { return m.desc }

// Write fills both forms of a histogram. The classic form has a bucket for each bound of
// the CallTimes. The native form has schema 0, whose bounds are powers of two: bucket i is
// for values above 2^(i-1) and at most 2^i.
//
// The first element of the CallTimes begins at 0, and is the native form's zero bucket.
// The last element has no upper bound. In the native form it is the bucket above the
// last bound, as if no call took longer than twice that bound.
func (m *histogram) Write(out *dto.Metric) error {
	last := len(m.times) - 1
	h := &dto.Histogram{
		SampleSum:     &m.sum,
		Bucket:        make([]*dto.Bucket, last),
		Schema:        new(int32(0)),
		ZeroThreshold: new(m.times.Bound(0)),
		ZeroCount:     &m.times[0],
		PositiveSpan:  []*dto.BucketSpan{{Offset: new(int32(math.Ilogb(m.times.Bound(1)))), Length: new(uint32(last))}},
		PositiveDelta: make([]int64, last),
	}
	count, before := m.times[0], int64(0)
	for i := range last {
		h.Bucket[i] = &dto.Bucket{UpperBound: new(m.times.Bound(i)), CumulativeCount: new(count)}
		here := m.times[i+1]
		h.PositiveDelta[i] = int64(here) - before
		count, before = count+here, int64(here)
	}
	h.SampleCount = &count
	out.Label, out.Histogram = m.labels, h
	return nil
}
