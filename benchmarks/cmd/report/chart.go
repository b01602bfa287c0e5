package main

import (
	"slices"
	"strings"
	"text/template"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

const (
	panelWidth = 440
	nameWidth  = 118
	barsWidth  = 236
	barHeight  = 17
	panelTop   = 62 // title and legend above the first panels
	panelHead  = 24
	panelGap   = 20
)

type panel struct {
	X, Y   int
	Title  string
	Better string
	Bars   []bar
}

type bar struct {
	Y     int
	Width float64
	Class string
	Name  string
	Value string
}

// chart draws the rows of some tables as bars, two panels side by side.
func (r *results) chart(title string, groups ...benchmarks.Group) string {
	var panels []panel
	columns := [2]int{panelTop, panelTop} // the next free y in each column
	for _, g := range groups {
		for _, w := range r.rows(g) {
			// req/s repeats the row before, ms/GC is mostly zero, and "— " marks a detail of another row.
			if w.Unit == "req/s" || w.Unit == "ms/GC" || strings.HasPrefix(w.Title, "— ") {
				continue
			}
			p := r.panel(w)
			if g != benchmarks.Size { // its titles include the unit
				_, unit, _ := strings.Cut(string(g), ", ")
				p.Title = strings.TrimSuffix(w.Title+", "+unit, ", ")
			}
			i := 0
			if columns[1] < columns[0] {
				i = 1
			}
			p.X, p.Y = 14+i*panelWidth, columns[i]
			columns[i] += panelHead + len(p.Bars)*barHeight + panelGap
			panels = append(panels, p)
		}
	}
	var b strings.Builder
	err := chartTemplate.Execute(&b, map[string]any{
		"Title": title, "Panels": panels, "Width": 2*panelWidth + 14, "Height": max(columns[0], columns[1]),
		"NameEnd": nameWidth - 6, "Bars": nameWidth, "BarHeight": barHeight - 4,
	})
	if err != nil {
		panic(err) // the template is wrong
	}
	return b.String()
}

func (r *results) panel(w row) panel {
	p := panel{Title: w.Title, Better: "lower is better"}
	if w.Higher {
		p.Better = "higher is better"
	}
	all := slices.Concat(w.ours, w.rivals, w.floors)
	longest := 0.0
	for _, s := range all {
		v, _ := r.value(s)
		longest = max(longest, v)
	}
	r.sort(all, w.Higher)
	for i, s := range all {
		v, _ := r.value(s)
		b := bar{Y: panelHead + i*barHeight, Width: max(1, barsWidth*max(0, v)/max(longest, 1e-9)),
			Class: "rival", Name: s.library, Value: r.number(s)}
		switch {
		case slices.Contains(w.ours, s):
			b.Class, b.Name = "ours", "ratelimit "+s.library
		case slices.Contains(w.floors, s):
			b.Class = "floor"
		}
		p.Bars = append(p.Bars, b)
	}
	return p
}

var chartTemplate = template.Must(template.New("").Funcs(template.FuncMap{
	"add":   func(a, b int) int { return a + b },
	"right": func(width float64) float64 { return nameWidth + width + 5 },
	"esc":   template.HTMLEscapeString,
}).Parse(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{.Width}} {{.Height}}" font-family="system-ui, sans-serif" font-size="11.5" role="img" aria-label="{{esc .Title}}: this library beside others">
  <style>
    text { fill: #24292f } .dim { fill: #57606a } .name { text-anchor: end } .head { font-size: 13px; font-weight: 600 }
    .ours { fill: #0969da } .rival { fill: #afb8c1 } .floor { fill: #d8dee4 } .bold { font-weight: 600 } .back { fill: #fff }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .dim { fill: #9198a1 } .ours { fill: #4493f8 } .rival { fill: #656c76 } .floor { fill: #343941 } .back { fill: #0d1117 }
    }
  </style>
  <rect class="back" width="100%" height="100%"/>
  <text x="14" y="24" class="head">{{esc .Title}}</text>
  <g transform="translate(14,33)">
    <rect class="ours" width="11" height="11"/><text x="16" y="10">this library</text>
    <rect class="rival" x="100" width="11" height="11"/><text x="116" y="10">others</text>
    <rect class="floor" x="170" width="11" height="11"/><text x="186" y="10">floors: only what none can avoid</text>
    <text x="390" y="10" class="dim">in parentheses: allocations</text>
  </g>
{{- $bars := .Bars}}{{$nameEnd := .NameEnd}}{{$height := .BarHeight}}{{range .Panels}}
  <g transform="translate({{.X}},{{.Y}})">
    <text y="14"><tspan class="bold">{{esc .Title}}</tspan><tspan class="dim" dx="8">{{.Better}}</tspan></text>
{{- range .Bars}}
    <text class="name{{if eq .Class "ours"}} bold{{end}}" x="{{$nameEnd}}" y="{{add .Y 10}}">{{esc .Name}}</text><rect class="{{.Class}}" x="{{$bars}}" y="{{.Y}}" width="{{printf "%.1f" .Width}}" height="{{$height}}"/><text class="dim" x="{{printf "%.1f" (right .Width)}}" y="{{add .Y 10}}">{{esc .Value}}</text>
{{- end}}
  </g>
{{- end}}
</svg>
`))
