package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// verdict returns whether a row's goal was met, for each of this library's values if they
// differ. A value that is void meets no goal.
func (r *results) verdict(w row) string {
	if len(w.goal) == 0 {
		return ""
	}
	if w.unknown {
		return "not known"
	}
	var all []string
	for _, s := range w.mine {
		all = append(all, r.verdictOf(w, s))
	}
	if len(slices.Compact(slices.Clone(all))) == 1 {
		return all[0]
	}
	return strings.Join(all, " / ")
}

func (r *results) verdictOf(w row, s sample) string {
	if w.void[s] != "" {
		return "void"
	}
	bounds := w.goal.Of(s.library)
	if len(bounds) == 0 {
		return "—"
	}
	word := "met"
	for _, b := range bounds {
		if b.NeedsRival() && len(w.rivals) == 0 {
			word = "no rival"
		} else if !r.holds(b, s, w.rivals) {
			return "**missed**"
		}
	}
	return word
}

func (r *results) holds(b benchmarks.Bound, s sample, rivals []sample) bool {
	v, _ := r.value(s)
	switch b.Of {
	case benchmarks.ByRival, benchmarks.TimesRival:
		ratio, ok := r.ratio(s, rivals[0])
		if b.Of == benchmarks.TimesRival {
			return ok && ratio >= b.At
		}
		return ok && ratio <= b.At
	case benchmarks.AtLeast:
		return v >= b.At
	case benchmarks.Allocs:
		allocs, ok := r.value(sample{s.bench, s.library, "allocs/op"})
		return ok && allocs <= b.At
	}
	return v <= b.At
}

// missed returns a list of the missed goals of a part, with the case and the reason.
func (r *results) missed(p *part) string {
	var b strings.Builder
	for _, c := range p.cases {
		for _, m := range c.Measures {
			for _, w := range r.rows(m.Group) {
				if w.Name != c.Name || w.Unit != m.Unit || !strings.Contains(r.verdict(w), "missed") {
					continue
				}
				why := cmp.Or(reasons[c.Name+" "+m.Unit], reasons[c.Name], "the reason is not known.")
				section := strings.TrimPrefix(string(m.Group), p.name+", ")
				fmt.Fprintf(&b, "- %s: *%s*: %s\n", section, fullTitle(w), why)
			}
		}
	}
	return b.String()
}

// fullTitle returns the title of a row. A row that belongs to the one before has both titles.
func fullTitle(w row) string {
	before := ""
	for _, m := range w.Case.Measures {
		if m.Unit == w.Unit {
			break
		}
		if !strings.HasPrefix(m.Title, "— ") {
			before = m.Title + " "
		}
	}
	if strings.HasPrefix(w.Title, "— ") {
		return before + w.Title
	}
	return w.Title
}
