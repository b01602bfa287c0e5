package otelratelimit

import "go.opentelemetry.io/otel/metric"

// This file has the names, units and descriptions of the metrics. The package
// documentation has the same table.

// instruments are all instruments of a registration. They do not change.
type instruments struct {
	requestCount metric.Int64ObservableCounter
	denials      metric.Int64ObservableCounter
	blocks       metric.Int64ObservableCounter
	nearLimit    metric.Int64ObservableCounter
	queued       metric.Int64ObservableUpDownCounter
	inFlight     metric.Int64ObservableUpDownCounter
	waits        metric.Int64ObservableCounter
	waitTime     metric.Float64ObservableCounter
	decisions    metric.Int64ObservableCounter
	units        metric.Int64ObservableCounter
	warnings     metric.Int64ObservableCounter

	limitUnits  metric.Int64ObservableGauge
	limitWindow metric.Float64ObservableGauge

	storeCalls    metric.Int64ObservableCounter
	storeCallTime metric.Float64ObservableCounter
	sparedCalls   metric.Int64ObservableCounter
	outages       metric.Int64ObservableCounter
	breakerOpen   metric.Int64ObservableGauge
	owedKeys      metric.Int64ObservableUpDownCounter
	forgottenKeys metric.Int64ObservableCounter

	memoryCounters   metric.Int64ObservableUpDownCounter
	memoryCapacity   metric.Int64ObservableUpDownCounter
	evictions        metric.Int64ObservableCounter
	snapshotFailures metric.Int64ObservableCounter
}

// A builder makes instruments, and keeps the errors until the end.
type builder struct {
	meter metric.Meter
	all   []metric.Observable
	errs  []error
}

func (b *builder) instruments() instruments {
	return instruments{
		requestCount: b.counter("ratelimit.requests", "{request}", "Requests, and calls that asked for units, by result."),
		denials:      b.counter("ratelimit.denials", "{request}", "Denied requests, by the policy that has denied them."),
		blocks:       b.counter("ratelimit.blocks", "{block}", "Denials that have started a block."),
		nearLimit:    b.counter("ratelimit.near_limit", "{request}", "Allowed requests that left at most a fifth of a limit."),
		queued:       b.upDownCounter("ratelimit.queued_requests", "{request}", "Requests, and calls, that wait until their units fit."),
		waits:        b.counter("ratelimit.waits", "{request}", "Decided requests, and calls, that have waited."),
		waitTime:     b.floatCounter("ratelimit.wait.time", "s", "Time for which they have waited together."),
		inFlight:     b.upDownCounter("ratelimit.in_flight", "{hold}", "Holds of in-flight limits that the process has."),
		decisions:    b.counter("ratelimit.decisions", "{request}", "Decided requests, by where they were decided."),
		units:        b.counter("ratelimit.units", "{unit}", "Units of allowed and of denied requests."),
		warnings:     b.counter("ratelimit.warnings", "{warning}", "Causes of warnings, logged or not."),

		limitUnits:  b.gauge("ratelimit.limit.units", "{unit}", "Units per window of the latest limit of each policy."),
		limitWindow: b.floatGauge("ratelimit.limit.window", "s", "Window of the latest limit of each policy. Of an in-flight limit, its hold."),

		storeCalls:    b.counter("ratelimit.store.calls", "{call}", "Calls to a remote store. Calls that failed have error.type."),
		storeCallTime: b.floatCounter("ratelimit.store.call.time", "s", "Time that all calls to a remote store took together."),
		sparedCalls:   b.counter("ratelimit.store.spared_calls", "{call}", "Calls to a remote store that were not made, because it fails or too many callers were waiting."),
		outages:       b.counter("ratelimit.store.outages", "{outage}", "How often the breaker of a remote store has opened."),
		breakerOpen:   b.gauge("ratelimit.store.breaker_open", "1", "1 while the breaker of a remote store is open, otherwise 0."),
		owedKeys:      b.upDownCounter("ratelimit.store.owed_keys", "{key}", "Keys with units that the remote store does not know of yet."),
		forgottenKeys: b.counter("ratelimit.store.forgotten_keys", "{key}", "Keys whose units could not be kept for the remote store."),

		memoryCounters:   b.upDownCounter("ratelimit.memory.counters", "{counter}", "Counters that a memory store holds."),
		memoryCapacity:   b.upDownCounter("ratelimit.memory.capacity", "{counter}", "The most counters that a memory store can hold."),
		evictions:        b.counter("ratelimit.memory.evictions", "{counter}", "Counters that a memory store has removed before they expired."),
		snapshotFailures: b.counter("ratelimit.memory.snapshot_failures", "{failure}", "Times that the snapshot file of a memory store could not be written."),
	}
}

func (b *builder) counter(name, unit, description string) metric.Int64ObservableCounter {
	return add[metric.Int64ObservableCounterOption](b, b.meter.Int64ObservableCounter, name, metric.WithUnit(unit), metric.WithDescription(description))
}

func (b *builder) floatCounter(name, unit, description string) metric.Float64ObservableCounter {
	return add[metric.Float64ObservableCounterOption](b, b.meter.Float64ObservableCounter, name, metric.WithUnit(unit), metric.WithDescription(description))
}

func (b *builder) upDownCounter(name, unit, description string) metric.Int64ObservableUpDownCounter {
	return add[metric.Int64ObservableUpDownCounterOption](b, b.meter.Int64ObservableUpDownCounter, name, metric.WithUnit(unit), metric.WithDescription(description))
}

func (b *builder) gauge(name, unit, description string) metric.Int64ObservableGauge {
	return add[metric.Int64ObservableGaugeOption](b, b.meter.Int64ObservableGauge, name, metric.WithUnit(unit), metric.WithDescription(description))
}

func (b *builder) floatGauge(name, unit, description string) metric.Float64ObservableGauge {
	return add[metric.Float64ObservableGaugeOption](b, b.meter.Float64ObservableGauge, name, metric.WithUnit(unit), metric.WithDescription(description))
}

// add creates an instrument. It notes the instrument for the callback, or the error.
func add[O any, I metric.Observable](b *builder, create func(string, ...O) (I, error), name string, options ...O) I {
	instrument, err := create(name, options...)
	if err != nil {
		b.errs = append(b.errs, err)
	} else {
		b.all = append(b.all, instrument)
	}
	return instrument
}
