package main

import (
	"slices"
	"strings"

	"github.com/ratelimit-go/ratelimit/benchmarks"
	"github.com/ratelimit-go/ratelimit/internal/chart"
)

// chart draws the rows of some tables as bars, two panels side by side.
func (r *results) chart(title string, groups ...benchmarks.Group) string {
	p := chart.Picture{
		Title: title, Command: "cd benchmarks && " + r.command, Note: "in parentheses: allocations",
		Legend: []chart.Entry{
			{Color: chart.Blue, Name: "this library"}, {Color: chart.Gray, Name: "others"},
			{Color: chart.Pale, Name: "floors: only what none can avoid"},
		},
	}
	for _, g := range groups {
		for _, w := range r.rows(g) {
			// req/s repeats the row before, ms/GC is mostly zero, and "— " marks a detail of another row.
			if w.Unit == "req/s" || w.Unit == "ms/GC" || strings.HasPrefix(w.Title, "— ") {
				continue
			}
			panel := r.panel(w)
			if g != benchmarks.Size { // its titles include the unit
				_, unit, _ := strings.Cut(string(g), ", ")
				panel.Title = strings.TrimSuffix(w.Title+", "+unit, ", ")
			}
			p.Panels = append(p.Panels, panel)
		}
	}
	return p.SVG()
}

func (r *results) panel(w row) chart.Panel {
	p := chart.Panel{Title: w.Title, Note: "lower is better"}
	if w.Higher {
		p.Note = "higher is better"
	}
	all := slices.Concat(w.ours, w.rivals, w.floors)
	r.sort(all, w.Higher)
	for _, s := range all {
		v, _ := r.value(s)
		b := chart.Bar{Name: s.library, Label: r.number(s), Value: max(0, v), Color: chart.Gray}
		switch {
		case slices.Contains(w.ours, s):
			b.Color, b.Name, b.Bold = chart.Blue, "ratelimit "+s.library, true
		case slices.Contains(w.floors, s):
			b.Color = chart.Pale
		}
		p.Bars = append(p.Bars, b)
	}
	return p
}
