package ratelimit

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
)

// This file has the log messages of the library: the codes, the texts, and the
// reporter that writes them. Limiters, stores and the code between them share it. How
// a mistake in the keys is recognised is in keycheck.go.

// Code names a warning that a limiter logs, as the attribute "code". Each warning says
// what does not fit together and what to do. A limiter logs each code at most once a
// minute, except [CodeStoreDown] and [CodeStoreBack], and counts each time in
// LimiterStats.Warnings. [Options.Silence] keeps a code out of the log.
type Code string

// Codes of warnings.
const (
	// CodeStoreFailed: the store could not decide. For a [RemoteStore] the
	// attribute "on_failure" says how requests are answered instead; for other
	// stores clients get 503. An error.
	CodeStoreFailed Code = "store-failed"
	// CodeStoreDown: a [RemoteStore] has failed so often that only one call at a
	// time asks it. An outage that begins within ten seconds of the last one
	// logged is logged when the ten seconds are over, if it still lasts. The attribute
	// "outages" counts all of them. An error.
	CodeStoreDown Code = "store-down"
	// CodeStoreBack: a RemoteStore answers again after that. It is logged at once.
	CodeStoreBack Code = "store-back"
	// CodePrefixClaimed: a limiter of another name counts under a [RedisStore]'s
	// prefix, in another process. An error.
	CodePrefixClaimed Code = "prefix-claimed"
	// CodeOtherLimits: a limiter has other limits in another process, as in a
	// rolling deploy.
	CodeOtherLimits Code = "other-limits"
	// CodeAcrossSlotsRefused: a server has refused a script for keys of different slots.
	// The [RedisStore] goes on without [AcrossSlots].
	CodeAcrossSlotsRefused Code = "across-slots-refused"
	// CodeClosed: requests reach a limiter that has been closed; clients get 503.
	// An error.
	CodeClosed Code = "limiter-closed"
	// CodeOptionFailed: Key, Cost or LimitsFor of the options failed; clients get
	// 500. An error.
	CodeOptionFailed Code = "option-failed"
	// CodeNoKey: requests have no key; clients get 400.
	CodeNoKey Code = "no-key"
	// CodeCostTooHigh: a request costs more than a limit can ever hold; the client
	// gets 429 without a Retry-After, each time.
	CodeCostTooHigh Code = "cost-too-high"
	// CodeNoAddress: connections have no IP address to limit by; clients get 400.
	CodeNoAddress Code = "no-address"
	// CodeUntrustedProxy: requests carry a forwarding header and are counted by
	// the address of the connection, because no proxy is trusted, or not this one,
	// or ClientIP.Header names another header. If there is a proxy, all of its
	// clients share one key.
	CodeUntrustedProxy Code = "untrusted-proxy"
	// CodeUnreadableAddress: a trusted proxy names the client of a request by
	// something that is no IP address, so that the request is counted by the address
	// of a proxy. All such requests share one key.
	CodeUnreadableAddress Code = "unreadable-address"
	// CodeTooFewHops: requests carry a forwarding header with fewer members than
	// ClientIP.TrustedHops, and are counted by the address of the connection.
	CodeTooFewHops Code = "too-few-hops"
	// CodeTooManyHops: requests have passed more proxies than ClientIP.TrustedHops, and
	// are counted by the address of a proxy: it is private, and the one behind is not.
	CodeTooManyHops Code = "too-many-hops"
	// CodeKeyWithPort: a key reads like an address with a port, so that each
	// connection has a key of its own.
	CodeKeyWithPort Code = "key-with-port"
	// CodeWholeIPv6: a key reads like a single IPv6 address, of which each client
	// has 2^64 to choose from.
	CodeWholeIPv6 Code = "whole-ipv6"
	// CodeCountedOnce: a request passed the limiter twice; it was counted once.
	CodeCountedOnce Code = "counted-once"
	// CodeInHandler: a limiter was made while a request was being served. The
	// next request that makes it again gets ErrNameTaken.
	CodeInHandler Code = "limiter-in-handler"
	// CodeCountIgnored: Options.Count is set and the limiter is used through Check,
	// which does not see the response, and two requests were over before anybody has
	// called Responded.
	CodeCountIgnored Code = "count-ignored"
	// CodeNoResponse: Options.Count is set, and a handler has returned without
	// writing a response, so that Count was given 200. A framework that writes the
	// response later, such as an error's, needs Check and Responded.
	CodeNoResponse Code = "no-response"
	// CodeTooManyPlans: within a minute, Options.LimitsFor and callers of TakeLimits have used
	// more than 2,048 different lists of limits. Everything is counted as usual, but a
	// request under limits that are not cached costs several times as much.
	CodeTooManyPlans Code = "too-many-plans"
	// CodeShadow: in Shadow, requests are let through that would be denied.
	CodeShadow Code = "shadow"
	// CodeSnapshotFailed: MemoryOptions.SnapshotFile could not be written. Counters
	// go on in memory, and the write is tried again every SnapshotEvery. An error.
	CodeSnapshotFailed Code = "snapshot-failed"
	// CodeSnapshotSetAside: MemoryOptions.SnapshotFile could not be used and was
	// set aside, so that every key starts from zero. An error.
	CodeSnapshotSetAside Code = "snapshot-set-aside"
	// CodeObserverPanicked: a function that observes events has panicked. The request
	// that has caused the event goes on as if it had not. An error.
	CodeObserverPanicked Code = "observer-panicked"
)

// warning is the place of a code in the table warnings.
type warning int

const (
	warnStoreFailed warning = iota
	warnStoreDown
	warnStoreBack
	warnPrefixClaimed
	warnOtherLimits
	warnAcrossSlotsRefused
	warnClosed
	warnOptionFailed
	warnNoKey
	warnCostTooHigh
	warnNoAddress
	warnUntrustedProxy
	warnUnreadableAddress
	warnTooFewHops
	warnTooManyHops
	warnKeyWithPort
	warnWholeIPv6
	warnCountedOnce
	warnInHandler
	warnCountIgnored
	warnNoResponse
	warnTooManyPlans
	warnShadow
	warnSnapshotFailed
	warnSnapshotSetAside
	warnObserverPanicked
	warningCount
)

var warnings = [warningCount]struct {
	code  Code
	level slog.Level
	text  string
}{
	warnStoreFailed:        {CodeStoreFailed, slog.LevelError, "the store failed"},
	warnStoreDown:          {CodeStoreDown, slog.LevelError, "the store has failed so often that only one request at a time asks it, until one succeeds"},
	warnStoreBack:          {CodeStoreBack, slog.LevelInfo, "the store answers again"},
	warnPrefixClaimed:      {CodePrefixClaimed, slog.LevelError, "a limiter of another name counts under this limiter's prefix in another process, so that they count into each other: give each limiter a prefix of its own"},
	warnOtherLimits:        {CodeOtherLimits, slog.LevelInfo, "this limiter has other limits in another process, as in a rolling deploy"},
	warnAcrossSlotsRefused: {CodeAcrossSlotsRefused, slog.LevelWarn, "the server refuses scripts for keys of different slots, so that each key has a call of its own from now on: leave AcrossSlots out"},
	warnClosed:             {CodeClosed, slog.LevelError, "the limiter is closed, and requests are answered with 503: rebuild the handlers that it is in"},
	warnOptionFailed:       {CodeOptionFailed, slog.LevelError, "a function of the options failed, and requests are answered with 500"},
	warnNoKey:              {CodeNoKey, slog.LevelWarn, "requests have no key, and are answered with 400: combine keys with FirstKey, or refuse such requests before the limiter"},
	warnCostTooHigh:        {CodeCostTooHigh, slog.LevelWarn, "a request costs more than the limit can ever hold, and will always be denied: raise the limit or the burst, or lower the cost"},
	warnNoAddress:          {CodeNoAddress, slog.LevelWarn, "connections have no IP address, and requests are answered with 400: set Options.Key, or ClientIP.TrustedProxies where a proxy connects over a unix socket"},
	warnUntrustedProxy:     {CodeUntrustedProxy, slog.LevelWarn, "requests carry a forwarding header and are counted by the connection's address: behind a proxy, set ClientIP.TrustedProxies to its network, or TrustedHops, and ClientIP.Header to what it writes, or all of its clients share one key; without a proxy, add CodeUntrustedProxy to Options.Silence"},
	warnUnreadableAddress:  {CodeUnreadableAddress, slog.LevelWarn, "a trusted proxy names clients by something that is no IP address, so that their requests share the key of a proxy: see what it writes into ClientIP.Header"},
	warnTooFewHops:         {CodeTooFewHops, slog.LevelWarn, "requests have passed fewer proxies than ClientIP.TrustedHops, and are counted by the connection's address: lower it, or keep clients from reaching the server around a proxy"},
	warnTooManyHops:        {CodeTooManyHops, slog.LevelWarn, "requests have passed more proxies than ClientIP.TrustedHops, and those of a proxy's clients share its key: raise TrustedHops"},
	warnKeyWithPort:        {CodeKeyWithPort, slog.LevelWarn, "a key reads like an address with a port, so that every connection counts for itself: use ClientIP.Key instead of r.RemoteAddr"},
	warnWholeIPv6:          {CodeWholeIPv6, slog.LevelWarn, "a key reads like a single IPv6 address, and a client has 2^64 of them: use ClientIP.Key, which counts by /64"},
	warnCountedOnce:        {CodeCountedOnce, slog.LevelWarn, "a request passed this limiter twice and was counted once: mount it on the routes or around them, not both"},
	warnInHandler:          {CodeInHandler, slog.LevelWarn, "a limiter was made while a request was being served: make limiters once, at start, or inside Reload"},
	warnCountIgnored:       {CodeCountIgnored, slog.LevelWarn, "Options.Count is set, and Check does not see the response, so every request counts: use Middleware, or call Responded with the status"},
	warnNoResponse:         {CodeNoResponse, slog.LevelWarn, "a handler has returned without writing a response, and Options.Count was given 200: write the status in the handler, or use Check and Responded if a framework writes it later"},
	warnTooManyPlans:       {CodeTooManyPlans, slog.LevelWarn, "Options.LimitsFor or TakeLimits uses more than 2,048 different lists of limits within a minute, and requests under them are slow: choose limits by the client's plan, not by the request"},
	warnShadow:             {CodeShadow, slog.LevelWarn, "requests would be denied: the limiter is in Shadow and lets them through"},

	warnSnapshotFailed:   {CodeSnapshotFailed, slog.LevelError, "the snapshot file could not be written: counters go on in memory, and are lost if the process ends before that works again"},
	warnSnapshotSetAside: {CodeSnapshotSetAside, slog.LevelError, "the snapshot file could not be used and was set aside: every key starts from zero"},

	warnObserverPanicked: {CodeObserverPanicked, slog.LevelError, "a function that observes events has panicked: mend Options.Observe, or what was given to Registry.Observe"},
}

// isCode reports whether a warning has this code.
func isCode(code Code) bool {
	for _, w := range warnings {
		if w.code == code {
			return true
		}
	}
	return false
}

// warnEvery is how often one reporter repeats a warning.
const warnEvery = time.Minute

// A reporter logs in the name of one limiter, or of a store that no limiter has
// taken yet. Its methods may be called from any number of goroutines, but only where no
// lock is held: observed may run functions of the user's.
type reporter struct {
	name    string
	logger  *slog.Logger   // nil: whatever slog.Default returns at the time
	silence []Code         // codes that are not logged
	counts  *warningCounts // where causes of warnings are counted; nil: nowhere

	// When each warning was logged last, by clock.Now; 0 for never. Nil until the first one.
	last atomic.Pointer[[warningCount]atomic.Int64]

	// observed is called for each warning that it is time to log, with the error in its
	// attributes, and for warnStoreBack with how long the outage lasted. It may be nil.
	observed func(w warning, err error, lasted time.Duration)
}

// warningCounts is how often each warning had a cause. The zero value has counted nothing,
// and is small: most limiters never warn.
type warningCounts struct {
	of atomic.Pointer[[warningCount]atomic.Uint64]
}

// add counts a cause.
func (c *warningCounts) add(w warning) { made(&c.of)[w].Add(1) }

// load returns how often a warning had a cause.
func (c *warningCounts) load(w warning) uint64 {
	if of := c.of.Load(); of != nil {
		return of[w].Load()
	}
	return 0
}

// made returns what p points to, and makes it if there is nothing yet.
func made[T any](p *atomic.Pointer[T]) *T {
	if p.Load() == nil {
		p.CompareAndSwap(nil, new(T)) // another caller may have been first
	}
	return p.Load()
}

// warn counts w, and logs it unless this reporter has logged it within the last minute.
// The attributes are this library's own words, never what a client has sent, except for
// a key of Redis, in which a client's key is escaped.
func (r *reporter) warn(w warning, args ...any) {
	if r.count(w) {
		r.log(w, 0, args...)
	}
}

// always logs w, however recently it was logged.
func (r *reporter) always(w warning, lasted time.Duration, args ...any) {
	r.count(w)
	r.log(w, lasted, args...)
}

// count counts w, and reports whether it is time to log it.
func (r *reporter) count(w warning) bool {
	if r.counts != nil {
		r.counts.add(w)
	}
	at := &made(&r.last)[w]
	last, now := at.Load(), max(1, clock.Now())
	if last != 0 && now-last < int64(warnEvery) && now >= last {
		return false
	}
	return at.CompareAndSwap(last, now)
}

// log writes w to the log, and hands it on, also if the logger panics.
func (r *reporter) log(w warning, lasted time.Duration, args ...any) {
	if r.observed != nil {
		defer r.observed(w, causeIn(args), lasted)
	}
	r.print(w, args...)
}

// causeIn returns the last error among the attributes of a warning, or nil.
func causeIn(args []any) (cause error) {
	for _, arg := range args {
		if err, ok := arg.(error); ok {
			cause = err
		}
	}
	return cause
}

// print writes w to the log, unless its code is silenced.
func (r *reporter) print(w warning, args ...any) {
	if slices.Contains(r.silence, warnings[w].code) {
		return
	}
	args = append([]any{"limiter", r.name, "code", string(warnings[w].code)}, args...)
	r.sink().Log(context.Background(), warnings[w].level, "ratelimit: "+warnings[w].text, args...)
}

// info logs what is no warning: which store a limiter counts in.
func (r *reporter) info(text string, args ...any) {
	r.sink().Info("ratelimit: "+text, append([]any{"limiter", r.name}, args...)...)
}

func (r *reporter) sink() *slog.Logger {
	if r.logger != nil {
		return r.logger
	}
	return slog.Default()
}
