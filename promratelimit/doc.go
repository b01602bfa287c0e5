// Package promratelimit exports the counts of rate limiters to Prometheus.
//
//	prometheus.MustRegister(promratelimit.NewCollector(nil))
//	http.Handle("/metrics", promhttp.Handler())
//
// # Limiters
//
// Each metric of this section has the label limiter, which is the limiter's name.
//
//   - ratelimit_requests_total counts requests, and calls such as Take, by result. The
//     results are allowed, denied, shadow_denied, exempt, no_key and failed. Only requests
//     can be exempt, have no key, fail, or be let through by Shadow.
//   - ratelimit_denied_total has the requests with the result denied, by policy, which is
//     the name of the limit that has denied.
//   - ratelimit_blocks_total counts denials that have started a block, also in Shadow.
//   - ratelimit_near_limit_total counts allowed requests that left at most a fifth of a
//     limit.
//   - ratelimit_waiting is the number of requests and calls that wait until their units
//     fit. ratelimit_waited_total counts decisions that had to wait, whether they were allowed
//     or denied in the end, and ratelimit_wait_seconds_total adds up for how long.
//   - ratelimit_in_flight is the number of holds of a [ratelimit.InFlight] limit that the
//     process has.
//   - ratelimit_units_total counts the units that were asked for, by result: allowed or
//     denied.
//   - ratelimit_decisions_total counts decisions by source: store, cache, lease, fallback
//     or fail-open. The last four are for limiters with a remote store.
//   - ratelimit_limit_units and ratelimit_limit_window_seconds are gauges with the numbers
//     of each limit, by policy and algorithm. They have the latest limit of each name that
//     the limiter has used. The window of an in-flight limit is its hold.
//   - ratelimit_limiter_info is always 1. Its labels are store, the type of the store, and
//     on_failure.
//   - ratelimit_warnings_total counts warnings by code, logged or not.
//     Codes that had no cause yet are missing.
//
// # Remote stores
//
// These metrics have the label limiter, too. They are for limiters whose store is a
// [ratelimit.RemoteStore].
//
//   - ratelimit_store_seconds is a histogram of the duration of calls, as their callers saw
//     it. It is exported as a classic and as a native histogram; Prometheus chooses. It
//     has the bounds of [ratelimit.CallTimes].
//   - ratelimit_store_failures_total counts calls that failed.
//   - ratelimit_store_spared_total counts calls that were not made, because the breaker was
//     open or too many callers were waiting.
//   - ratelimit_store_outages_total counts how often the breaker has opened.
//   - ratelimit_store_breaker_open is 1 while it is open.
//   - ratelimit_store_owed_keys is the number of keys with units that the store does not
//     know of yet.
//   - ratelimit_store_forgotten_keys_total counts keys whose units the store will never
//     know of.
//
// # Memory stores
//
// These metrics have the label store, which is the store's prefix, such as "memory:login".
//
//   - ratelimit_memory_counters is the number of counters in the store, and
//     ratelimit_memory_capacity the most that it holds.
//   - ratelimit_memory_evicted_total counts counters that were dropped before they expired.
//     The label denied is "true" if their key was being denied, otherwise "false".
//   - ratelimit_memory_snapshots_failed_total counts failed writes of the snapshot file.
//
// # Series
//
// All labels come from the program: names of limiters and limits, types and codes. No
// label has a key, an address or a path. New keys add no series. A limiter that is used
// under ever new plans has series for 64 names of plans, and for 62 names of its own
// limits. All further names share the policy "other".
//
// Counters do not fall when a Reload replaces a limiter. They start from zero when a
// limiter is closed, or left out by a Reload, and a limiter of the same name is made
// later.
//
// # Cost
//
// Nothing is counted or stored for Prometheus between scrapes. A scrape calls Stats of
// each limiter, which locks each part of a memory store for less than a microsecond and
// never waits for a remote store. See BenchmarkScrape for the time of a scrape.
package promratelimit
