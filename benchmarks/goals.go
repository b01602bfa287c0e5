package benchmarks

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Goal is what this library should reach in one measure: all of these bounds.
type Goal []Bound

// Bound is one bound of a goal.
type Bound struct {
	Of  Of
	At  float64
	For string // the library that it is for; empty means each
}

// An Of is the quantity that a Bound applies to.
type Of int

const (
	ByRival    Of = iota // the value is at most At times the best rival's
	AtMost               // the value is at most At
	AtLeast              // the value is at least At
	Allocs               // at most At allocations
	TimesRival           // the value is at least At times the best rival's
)

// goals are the goals of all measures, by the names of the case and of its unit.
var goals = map[string]Goal{
	"hot ns/op":                   {{ByRival, 0.75, "fixed"}, {ByRival, 0.9, sliding}, {ByRival, 0.85, "bucket"}, {Allocs, 0, ""}},
	"hot-denied ns/op":            {{ByRival, 0.75, "fixed"}, {ByRival, 0.9, sliding}, {ByRival, 0.85, "bucket"}, {Allocs, 0, ""}},
	"hot-parallel ns/op":          {{ByRival, 0.6, ""}},
	"uniform ns/op":               {{ByRival, 0.6, ""}},
	"zipf ns/op":                  {{ByRival, 0.65, ""}},
	"million ns/key":              {{ByRival, 0.75, ""}},
	"million B/key":               {{AtMost, 32, ""}},
	"million ms/GC":               {{AtMost, 1, ""}},
	"allowed ns/op":               {{ByRival, 0.5, ""}, {Allocs, 2, ""}},
	"allowed-64MB ns/op":          {{Allocs, 2, ""}},
	"allowed-parallel ns/op":      {{ByRival, 0.75, ""}, {Allocs, 2, ""}},
	"allowed-parallel-64MB ns/op": {{ByRival, 0.5, ""}, {Allocs, 2, ""}},
	"denied ns/op":                {{ByRival, 0.5, ""}},
	"allowed-nofields ns/op":      {{Allocs, 2, ""}},
	"wait-allowed ns/op":          {{Allocs, 4, ""}},
	"wait-not-allowed ns/op":      {{Allocs, 4, ""}},
	"plans x/one-plan":            {{AtMost, 1.1, ""}},
	"limits ns/further":           {{AtMost, 45, ""}},
	"limiters B/limiter":          {{AtMost, 4000, ""}},
	"limiters us/close":           {{AtMost, 1, ""}},
	"limiters x/close":            {{AtMost, 1.5, ""}},
	"limiters us/reload":          {{AtMost, 1, ""}},
	"limiters x/reload":           {{AtMost, 1.5, ""}},
	"server x/bare":               {{AtLeast, 0.93, ""}},
	"expiry x/p99.9":              {{AtMost, 2, ""}},
	"expiry-half x/p99.9":         {{AtMost, 2, ""}},
	"flood MB/after":              {{AtMost, 32, ""}},
	"flood denied":                {{AtLeast, 1000, ""}},
	"flood evicted-denied":        {{AtMost, 0, ""}},

	"block-allowed ns/op":          {{Allocs, 0, ""}},
	"block-without-allowed ns/op":  {{Allocs, 0, ""}},
	"block-denied ns/op":           {{Allocs, 0, ""}},
	"block-without-denied ns/op":   {{Allocs, 0, ""}},
	"calendar-allowed ns/op":       {{Allocs, 0, ""}},
	"calendar-fixed-allowed ns/op": {{Allocs, 0, ""}},
	"calendar-denied ns/op":        {{Allocs, 0, ""}},
	"calendar-fixed-denied ns/op":  {{Allocs, 0, ""}},
	"rolling-allowed ns/op":        {{Allocs, 0, ""}},
	"rolling-not-allowed ns/op":    {{Allocs, 0, ""}},
	"rolling-denied ns/op":         {{Allocs, 0, ""}},
	"rolling-not-denied ns/op":     {{Allocs, 0, ""}},

	"redis-serial us/op":           {{Allocs, 8, ""}},
	"redis-serial x/evalsha":       {{AtMost, 1.3, ""}},
	"redis-serial cmd/op":          {{AtMost, 1, ""}},
	"redis-denied us/op":           {{AtMost, 1, ""}},
	"redis-denied cmd/op":          {{AtMost, 0, ""}},
	"redis-spread op/s":            {{TimesRival, 1.6, "fixed"}, {TimesRival, 1.2, "bucket"}, {Allocs, 8, ""}},
	"redis-spread " + serverTime:   {{ByRival, 0.5, "fixed"}, {ByRival, 0.75, "bucket"}},
	"redis-spread cmd/op":          {{AtMost, 1, ""}},
	"redis-hot op/s":               {{TimesRival, 3, "fixed"}, {TimesRival, 3, "bucket"}, {TimesRival, 30, "leased"}, {Allocs, 8, ""}},
	"redis-hot cmd/op":             {{AtMost, 1, ""}},
	"redis-spread-1000 op/s":       {{Allocs, 8, ""}},
	"redis-hot-1000 op/s":          {{Allocs, 8, ""}},
	"redis-near B/key":             {{AtMost, 40, ""}},
	"redis-block-spread op/s":      {{Allocs, 8, ""}},
	"redis-block-cached op/s":      {{Allocs, 8, ""}},
	"redis-block-server op/s":      {{Allocs, 8, ""}},
	"redis-calendar-spread op/s":   {{Allocs, 8, ""}},
	"redis-calendar-hot op/s":      {{Allocs, 8, ""}},
	"redis-rolling-spread op/s":    {{Allocs, 8, ""}},
	"redis-rolling-denied op/s":    {{Allocs, 8, ""}},
	"redis-rolling-full op/s":      {{Allocs, 8, ""}},
	"cluster-spread op/s":          {{TimesRival, 1, "fixed"}, {TimesRival, 1, "bucket"}, {TimesRival, 1.6, across}, {Allocs, 8, ""}},
	"cluster-hot op/s":             {{Allocs, 8, ""}},
	"postgres-serial x/upsert":     {{AtMost, 1.5, ""}},
	"postgres-spread op/s":         {{TimesRival, 2.5, ""}},
	"postgres-spread-two op/s":     {{TimesRival, 2, ""}},
	"postgres-spread-256 op/s":     {{TimesRival, 4, ""}},
	"postgres-hot op/s":            {{TimesRival, 8, ""}},
	"postgres-spread-durable op/s": {{TimesRival, 3, ""}},
	"postgres-hot-durable op/s":    {{TimesRival, 10, ""}},
}

// GoalOf returns the goal of a case's measure. There may be none.
func GoalOf(c Case, m Measure) Goal { return goals[c.Name+" "+m.Unit] }

// Of returns the bounds of a goal that a library must meet.
func (g Goal) Of(library string) Goal {
	return slices.DeleteFunc(slices.Clone(g), func(b Bound) bool { return b.For != "" && b.For != library })
}

func (g Goal) String() string {
	if len(g) == 0 {
		return "—"
	}
	var all []string
	for _, b := range g {
		text := b.String()
		if b.For != "" {
			text += " (" + b.For + ")"
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

func (b Bound) String() string {
	at := strconv.FormatFloat(b.At, 'f', -1, 64)
	switch {
	case b.Of == ByRival:
		return "≤ " + at + " ×"
	case b.Of == TimesRival:
		return "≥ " + at + " ×"
	case b.Of == AtLeast:
		return "≥ " + at
	case b.Of == Allocs && b.At == 0:
		return "0 allocations"
	case b.Of == Allocs:
		return "≤ " + at + " allocations"
	case b.At == 0:
		return "0"
	}
	return "≤ " + at
}

// NeedsRival reports whether the bound depends on the best rival's value.
func (b Bound) NeedsRival() bool { return b.Of == ByRival || b.Of == TimesRival }

// GoalNames returns the names of all measures that have a goal: a case and a unit.
func GoalNames() []string { return slices.Collect(maps.Keys(goals)) }
