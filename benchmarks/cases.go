package benchmarks

import (
	"slices"
	"testing"
)

// Case is one benchmark. It runs on every library that has the feature it measures.
type Case struct {
	Name     string
	Measures []Measure
	Long     bool     // takes seconds, and runs once: see BenchmarkLong
	only     []string // the libraries that take part; nil means all
	skip     []string // the libraries that do not
	nofields bool     // the middleware's header fields are off
	http     bool     // measures middleware
	run      func(b *testing.B, open opener)
}

// opener sets up a library for a case.
type opener func(quota) subject

// Measure is one number of a case: one line of the report.
type Measure struct {
	Group  Group
	Title  string
	Unit   string // in the benchmark's output
	Higher bool   // higher is better
}

// Group is a table of the report.
type Group string

const (
	Speed      Group = "In memory, ns per decision"
	Size       Group = "In memory, a million keys"
	Blocks     Group = "In memory, limits with Block, ns per decision"
	Calendars  Group = "In memory, calendar limits, ns per decision"
	Rolling    Group = "In memory, rolling windows, ns per decision"
	Middleware Group = "Middleware, ns per request"
	Growing    Group = "What grows with limits, plans and limiters"
	Waiting    Group = "Middleware, requests that may wait, ns per request"
	Holds      Group = "In memory, in-flight limits, ns per decision"
	Server     Group = "A server under load"
	Stress     Group = "Expiry, growth and flooding"
)

// Cases are all benchmarks in memory.
var Cases = []Case{
	// This case is the first because the heap must not hold anything of other cases.
	{Name: "million", skip: []string{sliding}, run: million, Measures: []Measure{
		{Group: Size, Title: "insert, ns per new key", Unit: "ns/key"},
		{Group: Size, Title: "live heap, bytes per 15-byte key", Unit: "B/key"},
		{Group: Size, Title: "full GC, ms more than without them", Unit: "ms/GC"},
	}},
	// These are before the cases with many keys, which stay in the heap.
	{Name: "allowed", http: true, skip: []string{sliding}, run: allowed, Measures: onHeap("allowed, serial")},
	{Name: "allowed-64MB", http: true, skip: []string{sliding}, run: besideBallast(allowed), Measures: onHeap("allowed, serial, with a heap of 64 MB besides")},
	{Name: "allowed-parallel", http: true, skip: []string{sliding}, run: onAllCores, Measures: onHeap("allowed, all cores")},
	{Name: "allowed-parallel-64MB", http: true, skip: []string{sliding}, run: besideBallast(onAllCores), Measures: onHeap("allowed, all cores, with a heap of 64 MB besides")},
	{Name: "denied", http: true, skip: []string{sliding}, run: denied, Measures: onHeap("denied, serial")},
	{Name: "allowed-nofields", http: true, skip: []string{sliding}, nofields: true, run: allowed,
		Measures: onHeap("allowed, serial, header fields off")},
	{Name: "plans", http: true, only: fixed, run: plans, Measures: []Measure{
		{Group: Growing, Title: "a request under one of 1,000 plans, ns", Unit: "ns/op"},
		{Group: Growing, Title: "— by a request under one plan, in turn with it", Unit: "x/one-plan"},
	}},
	{Name: "limits", only: fixed, run: severalLimits, Measures: []Measure{
		{Group: Growing, Title: "a decision under 1 limit, ns", Unit: "ns/1"},
		{Group: Growing, Title: "— under 2 limits", Unit: "ns/2"},
		{Group: Growing, Title: "— under 4 limits", Unit: "ns/4"},
		{Group: Growing, Title: "— under 8 limits", Unit: "ns/8"},
		{Group: Growing, Title: "— each further limit, up to 8", Unit: "ns/further"},
	}},
	{Name: "limiters", only: fixed, run: manyLimiters, Measures: []Measure{
		{Group: Growing, Title: "heap of an idle limiter, bytes", Unit: "B/limiter"},
		{Group: Growing, Title: "Close of each of 10,000 limiters, µs", Unit: "us/close"},
		{Group: Growing, Title: "— by the same with 1,000 limiters", Unit: "x/close"},
		{Group: Growing, Title: "Reload of 10,000 limiters, µs for each", Unit: "us/reload"},
		{Group: Growing, Title: "— by the same with 1,000 limiters", Unit: "x/reload"},
		{Group: Growing, Title: "slowest Lookup while 10,000 limiters are reloaded, ms", Unit: "ms/lookup"},
	}},
	{Name: "hot", run: hot, Measures: nanoseconds(Speed, "one hot key, serial")},
	{Name: "hot-denied", run: hotDenied, Measures: nanoseconds(Speed, "one hot key, denied")},
	{Name: "hot-parallel", run: parallel(1, oneKey), Measures: nanoseconds(Speed, "one hot key, all cores")},
	{Name: "uniform", run: parallel(spread, uniform), Measures: nanoseconds(Speed, "100k keys uniform, all cores")},
	{Name: "zipf", run: parallel(spread, zipf), Measures: nanoseconds(Speed, "100k keys Zipf, all cores")},
	{Name: "block-allowed", only: ours, run: with(plenty.blocking(), hot), Measures: nanoseconds(Blocks, "one hot key, allowed, with Block")},
	{Name: "block-without-allowed", only: ours, run: hot, Measures: nanoseconds(Blocks, "— without Block")},
	{Name: "block-denied", only: ours, run: with(single.blocking(), hotDenied), Measures: nanoseconds(Blocks, "one hot key, denied by a block")},
	{Name: "block-without-denied", only: ours, run: hotDenied, Measures: nanoseconds(Blocks, "— denied without Block")},
	{Name: "calendar-allowed", only: fixed, run: with(plenty.daily(), hot), Measures: nanoseconds(Calendars, "one hot key, allowed, under Daily")},
	{Name: "calendar-fixed-allowed", only: fixed, run: hot, Measures: nanoseconds(Calendars, "— under FixedWindow")},
	{Name: "calendar-denied", only: fixed, run: with(single.daily(), hotDenied), Measures: nanoseconds(Calendars, "one hot key, denied, under Daily")},
	{Name: "calendar-fixed-denied", only: fixed, run: hotDenied, Measures: nanoseconds(Calendars, "— denied under FixedWindow")},
	{Name: "rolling-allowed", only: []string{"fixed"}, run: allowedInTurn(true), Measures: nanoseconds(Rolling, "64 keys in turn, 1,000 units per ms, allowed")},
	{Name: "rolling-not-allowed", only: []string{"fixed"}, run: allowedInTurn(false), Measures: nanoseconds(Rolling, "— with a fixed window")},
	{Name: "rolling-denied", only: []string{"fixed"}, run: deniedWhenFull(true), Measures: nanoseconds(Rolling, "one hot key with 1,000 units, denied")},
	{Name: "rolling-not-denied", only: []string{"fixed"}, run: deniedWhenFull(false), Measures: nanoseconds(Rolling, "— with a fixed window")},
	{Name: "wait-allowed", http: true, only: fixed, run: allowedUnder(plenty.waiting()), Measures: nanoseconds(Waiting, "allowed at once, with MaxWait")},
	{Name: "wait-not-allowed", http: true, only: fixed, run: allowed, Measures: nanoseconds(Waiting, "— without MaxWait")},
	{Name: "inflight-acquire", only: fixed, run: besideTake, Measures: []Measure{
		{Group: Holds, Title: "one hot key, Acquire and release", Unit: "ns/op"},
		{Group: Holds, Title: "— by a Take under FixedWindow", Unit: "x/take"},
	}},
	{Name: "inflight-take", only: fixed, run: hot, Measures: nanoseconds(Holds, "— Take under FixedWindow")},
	{Name: "inflight-request", http: true, only: fixed, run: besideRequest, Measures: []Measure{
		{Group: Holds, Title: "a request through Middleware", Unit: "ns/op"},
		{Group: Holds, Title: "— by a request under FixedWindow", Unit: "x/request"},
	}},
	{Name: "inflight-not-request", http: true, only: fixed, run: allowed, Measures: nanoseconds(Holds, "— a request under FixedWindow")},
	{Name: "server", http: true, skip: []string{sliding}, run: underLoad, Measures: []Measure{
		{Group: Server, Title: "by the bare handler's requests/s", Unit: "x/bare", Higher: true},
		{Group: Server, Title: "requests/s", Unit: "req/s", Higher: true},
	}},

	{Name: "expiry", Long: true, only: []string{"fixed", "bucket"}, run: expiry(10), Measures: expiring("every tenth")},
	{Name: "expiry-half", Long: true, only: []string{"fixed", "bucket"}, run: expiry(2), Measures: expiring("every other")},
	{Name: "growth", Long: true, only: []string{"fixed", "go-limiter", "httprate", "throttled", "sharded-map"}, run: growth, Measures: []Measure{
		{Group: Stress, Title: "10M new keys: the slowest, ms", Unit: "ms/slowest"},
		{Group: Stress, Title: "— p99.99 in µs", Unit: "us/p99.99"},
		{Group: Stress, Title: "— the slowest step of an idle loop just after, ms", Unit: "ms/idle"},
	}},
	{Name: "flood", Long: true, only: []string{"fixed", "bucket", "throttled-lru"}, run: flood, Measures: []Measure{
		{Group: Stress, Title: "10M new keys where 1M fit: live heap, MB", Unit: "MB/after"},
		{Group: Stress, Title: "— before them, MB", Unit: "MB/before"},
		{Group: Stress, Title: "— keys still denied, of 1,000", Unit: "denied", Higher: true},
		{Group: Stress, Title: "— evicted, in millions", Unit: "M-evicted"},
		{Group: Stress, Title: "— evicted while being denied", Unit: "evicted-denied"},
	}},
}

// ours are the names of this library's limits in the cases that no other library can run.
var ours = []string{"fixed", "bucket"}

// fixed is the name of this library's fixed window, which a calendar limit takes the place of.
var fixed = []string{"fixed"}

func expiring(which string) []Measure {
	return []Measure{
		{Group: Stress, Title: "a million keys expire, " + which + " decision on a new key: p99.9 by the one without", Unit: "x/p99.9"},
		{Group: Stress, Title: "— that p99.9 in µs", Unit: "us/p99.9"},
		{Group: Stress, Title: "— without, in µs", Unit: "us/p99.9-without"},
	}
}

func nanoseconds(g Group, title string) []Measure {
	return []Measure{{Group: g, Title: title, Unit: "ns/op"}}
}

// onHeap returns the measures of a request, with the heap that the garbage collector had to
// do with.
func onHeap(title string) []Measure {
	return append(nanoseconds(Middleware, title), Measure{Group: Middleware, Title: "— live heap, MB", Unit: "MB/heap"})
}

func (c Case) open(l Library) opener {
	return func(q quota) subject { return l.open(q, !c.nofields) }
}

// has reports whether c is meant for a library of this name.
func (c Case) has(name string) bool {
	switch name {
	case across, windowPipelined: // they are for Clusters
		if c.Measures[0].Group != OnCluster {
			return false
		}
	case windowCalls: // what one caller sends
		if c.Name != serial {
			return false
		}
	}
	return (c.only == nil || slices.Contains(c.only, name)) && !slices.Contains(c.skip, name)
}

// Has reports whether l takes part in c.
func (c Case) Has(l Library) bool {
	if !c.has(l.Name) {
		return false
	}
	s := c.open(l)(plenty)
	defer s.end()
	if c.http {
		return s.middleware != nil
	}
	return s.take != nil
}

func (s subject) end() {
	if s.close != nil {
		s.close()
	}
}
