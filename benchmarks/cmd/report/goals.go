package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// verdict returns whether a row's goal was met, for each of this library's values if they differ.
func (r *results) verdict(w row) string {
	if len(w.Goal) == 0 {
		return ""
	}
	var all []string
	for _, s := range w.ours {
		word := "met"
		if slices.ContainsFunc(w.Goal, func(b benchmarks.Bound) bool { return !r.holds(b, s, w.rivals) }) {
			word = "**missed**"
		}
		all = append(all, word)
	}
	if len(slices.Compact(slices.Clone(all))) == 1 {
		return all[0]
	}
	return strings.Join(all, " / ")
}

func (r *results) holds(b benchmarks.Bound, s sample, rivals []sample) bool {
	v, _ := r.value(s)
	switch b.Of {
	case benchmarks.ByRival, benchmarks.TimesRival:
		if len(rivals) == 0 {
			return true
		}
		ratio, ok := r.ratio(s, rivals[0])
		if b.Of == benchmarks.TimesRival {
			return ok && ratio >= b.At
		}
		return ok && ratio <= b.At
	case benchmarks.AtLeast:
		return v >= b.At
	case benchmarks.Allocs:
		allocs, _ := r.value(sample{s.bench, s.library, "allocs/op"})
		return allocs <= b.At
	}
	return v <= b.At
}

// missed returns a list of the missed goals, with the case and the reason.
func (r *results) missed() string {
	return r.missedOf("## Missed goals", benchmarks.Cases, reasons)
}

func (r *results) missedOf(head string, cases []benchmarks.Case, reasons map[string]string) string {
	var b strings.Builder
	for _, c := range cases {
		for _, m := range c.Measures {
			for _, w := range r.rows(m.Group) {
				if w.Name == c.Name && w.Unit == m.Unit && strings.Contains(r.verdict(w), "missed") {
					why := reasons[c.Name]
					if why == "" {
						why = "Not looked into yet."
					}
					title := w.Title
					if strings.HasPrefix(title, "— ") { // it belongs to the row before
						title = c.Measures[0].Title + " " + title
					}
					section := string(m.Group)
					if p := partOf(m.Group); p != nil {
						section = strings.TrimPrefix(section, p.name+", ")
					}
					fmt.Fprintf(&b, "- %s: *%s*: %s\n", section, title, why)
				}
			}
		}
	}
	if b.Len() == 0 {
		return ""
	}
	return head + "\n\n" + b.String() + "\n"
}

const (
	hotReason = "the clock (104 cycles), the lock (46) and two hashes (42) are three quarters of the time, and as much as the goal allows, " +
		"before anything is counted. See [docs/engine.md](docs/engine.md) for the rest, for what helped and for what was tried."
	spreadReason = "the fixed part is the same as for one hot key. The rest is time spent waiting for memory, and on two cores for cache lines " +
		"that the other core has written. A decision writes two cache lines, the shard's and the counter's. The floor that changes one " +
		"word writes one."
)

// reasons are why the goals of a case are missed, if they are, by the case's name.
var reasons = map[string]string{
	"hot":          hotReason,
	"hot-denied":   hotReason,
	"hot-parallel": hotReason + " Two cores rarely contend for one lock.",
	"uniform":      spreadReason + " That floor is only just below the goal itself. See [docs/engine.md](docs/engine.md) for both in cycles of one core.",
	"zipf":         spreadReason,
	"million": "the floors, which store less per key and use more memory, miss it too. A quarter of the time is growth. The table grows by a fifth " +
		"at a time, to hold little unused memory, so each counter is copied about five times on the way to a million. Doubling would copy it " +
		"about once, and use up to 50 bytes per counter.",
	"allowed": "most of the time goes into two structured fields and into the decision in the request's context (a copy of the request, and the " +
		"context). See [docs/engine.md](docs/engine.md), and the floor for three plain fields.",
	"denied": "most of the time goes into the decision in the request's context, two structured fields and an error's body.",
	"server": "most of the added time is net/http's own work on a response with header fields. The floor, three fields with nothing counted, " +
		"misses the goal too.",
	"expiry": "a shard whose keys have expired shrinks, and grows again with new keys. Both copy some thousand slots.",
	"expiry-half": "a shard whose keys have expired shrinks, and grows again with new keys, in steps of a fifth. Each step copies some " +
		"thousand slots. With this number of new keys, more than one decision in a thousand meets a step.",
}
