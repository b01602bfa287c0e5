package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// verdict tells whether a row's goal was met, by each of this library's where they differ.
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

// missed lists the goals that were missed, where, and why.
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
					if strings.HasPrefix(title, "— ") { // it goes with the row before
						title = c.Measures[0].Title + " " + title
					}
					section, _ := strings.CutPrefix(string(m.Group), "Redis, ")
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
	hotReason = "the clock (104 cycles), the lock (46) and two hashes (42) are as much as the goal allows before anything is counted, and " +
		"three quarters of the whole; [docs/engine.md](docs/engine.md) has the rest, what was gained and what was tried."
	spreadReason = "the fixed part is that of one hot key; the rest is waiting for memory, and on two cores for lines of it that the other " +
		"one has written: a decision writes two, the shard's and the counter's, and the floor that changes one word writes one."
)

// reasons tell why the goals of a case are missed where they are, by its name.
var reasons = map[string]string{
	"hot":          hotReason,
	"hot-denied":   hotReason,
	"hot-parallel": hotReason + " Two cores hardly contend for one lock.",
	"uniform":      spreadReason + " That floor is hardly below the goal itself; [docs/engine.md](docs/engine.md) has both in cycles of one core.",
	"zipf":         spreadReason,
	"million": "the floors, which know less and keep more memory, miss it too. A quarter of the time is growth by a fifth at a time, so that " +
		"little memory is held for later: each counter is copied some five times on the way to a million. Doubling would do that about once, " +
		"and hold up to 50 bytes a counter.",
	"allowed": "the decision in the request's context (a copy of the request, and the context) and two structured fields are most of it: " +
		"see [docs/engine.md](docs/engine.md), and the floor for three plain fields.",
	"denied": "the decision in the request's context, two structured fields and an error's body are most of it.",
	"server": "what is added to the bare handler is mostly net/http's own work on an answer with header fields; the floor, three of them " +
		"with nothing counted, misses the goal too.",
	"expiry": "a shard whose keys have gone shrinks, and grows again with new ones: copies of some thousand slots.",
	"expiry-half": "a shard whose keys have gone shrinks, and grows again with new ones, in steps of a fifth. Each copies some thousand " +
		"slots, and with so many new keys more than one decision in a thousand meets one.",
}
