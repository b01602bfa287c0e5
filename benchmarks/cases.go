package benchmarks

import (
	"testing"
)

// Case is one benchmark, run on every library that has what it is about.
type Case struct {
	Name     string
	Measures []Measure
	quota    quota
	fields   bool // the middleware's header fields are on
	http     bool // it is about middleware
	run      func(b *testing.B, open func() subject)
}

// Measure is one number of a case: a line of the report.
type Measure struct {
	Group Group
	Title string
	Unit  string // as in the benchmark's output
	Goal  string // for this library: a ratio by the best rival's, or a value
}

// Group is a table of the report.
type Group string

const (
	Speed      Group = "In memory, ns per decision"
	Size       Group = "In memory, a million keys"
	Middleware Group = "Middleware, ns per request"
)

// Cases is all that is measured.
var Cases = []Case{
	// First, while the heap holds nothing else.
	{"million", []Measure{
		{Size, "insert, ns per new key", "ns/key", "≤ 0.5 ×"},
		{Size, "live heap, bytes per 15-byte key", "B/key", "≤ 32"},
		{Size, "full GC, ms more than without them", "ms/GC", "≤ 1"},
	}, plenty, true, false, million},
	{"hot", []Measure{{Speed, "one hot key, serial", "ns/op", "≤ 0.65 ×, 0 allocations"}}, plenty, true, false, hot},
	{"hot-denied", []Measure{{Speed, "one hot key, denied", "ns/op", "≤ 0.65 ×, 0 allocations"}}, single, true, false, hotDenied},
	{"hot-parallel", []Measure{{Speed, "one hot key, all cores", "ns/op", "≤ 0.9 ×"}}, plenty, true, false, parallel(1, oneKey)},
	{"uniform", []Measure{{Speed, "100k keys uniform, all cores", "ns/op", "≤ 0.5 ×"}}, plenty, true, false, parallel(spread, uniform)},
	{"zipf", []Measure{{Speed, "100k keys Zipf, all cores", "ns/op", "≤ 0.6 ×"}}, plenty, true, false, parallel(spread, zipf)},
	{"allowed", []Measure{{Middleware, "allowed", "ns/op", "≤ 0.5 ×, ≤ 4 allocations"}}, plenty, true, true, allowed},
	{"denied", []Measure{{Middleware, "denied", "ns/op", "≤ 0.5 ×"}}, single, true, true, denied},
	{"allowed-nofields", []Measure{{Middleware, "allowed, header fields off", "ns/op", "≤ 2 allocations"}}, plenty, false, true, allowed},
}

func (c Case) open(l Library) func() subject {
	return func() subject { return l.open(c.quota, c.fields) }
}

// Has reports whether l takes part in c.
func (c Case) Has(l Library) bool {
	s := l.open(c.quota, c.fields)
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
