// Package otelratelimit exports what limiters count to OpenTelemetry, and marks
// the spans of denied requests.
//
// [Register] reports the numbers of [ratelimit.LimiterStats] as metrics:
//
//	registration, err := otelratelimit.Register(nil, nil)
//
// [AnnotateSpan] sets attributes on the current span when a request is denied:
//
//	stop := ratelimit.DefaultRegistry.Observe(otelratelimit.AnnotateSpan)
//
// # Metrics
//
// All instruments are observable. The numbers are read when a reader collects
// them, so requests cost the same with and without Register. Each measurement has
// the attribute ratelimit.limiter.
//
//	Name                           Kind             Unit        Further attributes
//	ratelimit.requests             Counter          {request}   ratelimit.result
//	ratelimit.denials              Counter          {request}   ratelimit.policy
//	ratelimit.blocks               Counter          {block}
//	ratelimit.near_limit           Counter          {request}
//	ratelimit.queued_requests      UpDownCounter    {request}
//	ratelimit.waits                Counter          {request}
//	ratelimit.wait.time            Counter          s
//	ratelimit.in_flight            UpDownCounter    {hold}
//	ratelimit.decisions            Counter          {request}   ratelimit.source
//	ratelimit.units                Counter          {unit}      ratelimit.result
//	ratelimit.warnings             Counter          {warning}   ratelimit.code
//	ratelimit.limit.units          Gauge            {unit}      ratelimit.policy, ratelimit.algorithm
//	ratelimit.limit.window         Gauge            s           ratelimit.policy, ratelimit.algorithm
//	ratelimit.store.calls          Counter          {call}      error.type
//	ratelimit.store.call.time      Counter          s
//	ratelimit.store.spared_calls   Counter          {call}
//	ratelimit.store.outages        Counter          {outage}
//	ratelimit.store.breaker_open   Gauge            1
//	ratelimit.store.owed_keys      UpDownCounter    {key}
//	ratelimit.store.forgotten_keys Counter          {key}
//	ratelimit.memory.counters      UpDownCounter    {counter}   ratelimit.store
//	ratelimit.memory.capacity      UpDownCounter    {counter}   ratelimit.store
//	ratelimit.memory.evictions     Counter          {counter}   ratelimit.store, ratelimit.denied
//	ratelimit.memory.snapshot_failures Counter      {failure}   ratelimit.store
//
// Metrics that need an explanation:
//
//   - ratelimit.requests has one result for each request: allowed, denied,
//     shadow_denied, exempt, no_key or failed. Calls such as Take count, too. The
//     sum over all results is the number of requests.
//   - ratelimit.denials has the requests with the result denied, by the policy
//     that has denied them.
//   - ratelimit.units has the units of allowed and of denied requests.
//   - ratelimit.blocks counts denials that have started a block, also in Shadow.
//   - ratelimit.near_limit counts allowed requests that left at most a fifth of
//     a limit.
//   - ratelimit.queued_requests is the number of requests, and calls of Wait, that wait
//     until their units fit. ratelimit.waits counts decisions that had to wait, whether
//     they were allowed or denied in the end. ratelimit.wait.time adds up for how long.
//   - ratelimit.in_flight is the number of holds of a [ratelimit.InFlight] limit that the
//     process has.
//   - ratelimit.decisions has the requests that were allowed, denied or
//     shadow-denied, by where that was decided: store, cache, lease, fallback or
//     fail-open. Requests that cost 0 count as decided by the store.
//   - ratelimit.limit.units and ratelimit.limit.window have the latest limit of each
//     policy, to compare other metrics with. A policy keeps them after it has gone
//     out of use. [ratelimit.Unlimited] and [ratelimit.Deny] have neither. The window of an
//     in-flight limit is its hold.
//   - ratelimit.store.calls has error.type only for calls that failed. Its value is
//     then "store-failed", the code of the warning.
//   - ratelimit.store.call.time is the time that all calls took together. Its rate
//     divided by the rate of ratelimit.store.calls is the mean. OpenTelemetry has no
//     observable histogram, so the distribution in RemoteStats.CallTimes is not
//     exported.
//   - ratelimit.store.spared_calls counts calls that were not made, because the
//     breaker was open or too many callers were waiting.
//   - ratelimit.store.outages counts how often the breaker has opened.
//     ratelimit.store.breaker_open is 1 while it is open, otherwise 0.
//   - ratelimit.store.owed_keys is the number of keys with units that the store
//     does not know of yet. ratelimit.store.forgotten_keys counts keys whose units
//     could not be kept.
//   - ratelimit.memory.evictions counts counters of a MemoryStore that were removed
//     before they expired. ratelimit.denied says whether their key was being denied.
//
// A limiter on a MemoryStore has the metrics below ratelimit.memory. A limiter on a
// RemoteStore has those below ratelimit.store and all sources. If a Reload has moved
// it from there into memory, it has both. A limiter on another store has neither.
//
// # Attributes
//
// Attributes of metrics come from code alone: names of limiters and policies, and
// constants of this library. There is never a key or an address, and a flood of
// new keys adds no series. A limiter has at most 127 policies: 62 of its own, 64 of
// plans, and "other" for the rest.
//
// The SDK of OpenTelemetry keeps 2,000 series per instrument by default. If there
// are more, it puts the rest into one series with the attribute
// otel.metric.overflow. Programs with more than 30 limiters that each have 64 plans
// should raise the limit with WithCardinalityLimit of the SDK, or drop
// ratelimit.policy with a view.
//
// # Lifetime
//
// Metrics follow the registry. A limiter is exported as soon as it is made, and no
// longer once it is closed. A Reload continues its counts. A limiter that is made
// with the name of a closed one starts from zero.
package otelratelimit
