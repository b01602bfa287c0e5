package main

import (
	"fmt"
	"math"
	"strings"
	"text/template"
)

type panel struct {
	Title    string
	Linear   bool // the y axis is linear; otherwise it is logarithmic
	From, To float64
	Bottom   float64   // the lowest value of a logarithmic y axis
	Ticks    []float64 // of a linear x axis; empty means logarithmic, 1 to 1000
	Lines    []line
}

type line struct {
	Name   string
	Points []point
}

type point struct{ X, Y float64 }

const (
	panelWidth, panelHeight = 300, 190
	plotLeft, plotTop       = 46, 28
	plotWidth, plotHeight   = 232, 124
	panelsTop               = 56
	columns                 = 3
)

// drawn is a panel in the coordinates of the picture.
type drawn struct {
	X, Y        int
	Title       string
	Rows, Ticks []tick
	Lines       []drawnLine
}

type tick struct {
	At    float64
	Label string
}

type drawnLine struct{ Class, Path string }

// chart draws panels beside each other.
func chart(title, axis string, panels []panel) string {
	var all []drawn
	for i, p := range panels {
		d := p.draw()
		d.X, d.Y = 14+i%columns*panelWidth, panelsTop+i/columns*panelHeight
		all = append(all, d)
	}
	var b strings.Builder
	err := chartTemplate.Execute(&b, map[string]any{
		"Title": title, "Axis": axis, "Panels": all, "Modes": modes,
		"Width": 20 + columns*panelWidth, "Height": panelsTop + (len(panels)+columns-1)/columns*panelHeight,
		"Left": plotLeft, "Top": plotTop, "Right": plotLeft + plotWidth, "Bottom": plotTop + plotHeight,
	})
	if err != nil {
		panic(err) // the template is wrong
	}
	return b.String()
}

func (p *panel) draw() drawn {
	d := drawn{Title: p.Title}
	low, high := p.From, p.To
	if !p.Linear {
		low, high = 1, math.Log10(100)
		for _, l := range p.Lines {
			for _, at := range l.Points {
				high = max(high, math.Ceil(math.Log10(max(1, at.Y))))
			}
		}
		if p.Bottom > 0 {
			low = math.Log10(p.Bottom)
		}
	}
	y := func(v float64) float64 {
		if !p.Linear {
			v = math.Log10(max(v, 1e-9))
		}
		return plotTop + plotHeight - plotHeight*min(1, max(0, (v-low)/(high-low)))
	}
	step := 1.0
	if p.Linear {
		step = (high - 1 - low) / 5
	}
	for v := low; v <= high; v += step {
		label := v
		if !p.Linear {
			label = math.Pow(10, v)
		}
		d.Rows = append(d.Rows, tick{y(label), number(label)})
	}
	left, right, ticks := 0.0, 3.0, []float64{1, 10, 100, 1000}
	if p.Ticks != nil {
		left, right, ticks = p.Ticks[0], p.Ticks[len(p.Ticks)-1], p.Ticks
	}
	x := func(v float64) float64 {
		if p.Ticks == nil {
			v = math.Log10(v)
		}
		return plotLeft + plotWidth*(v-left)/(right-left)
	}
	for _, v := range ticks {
		d.Ticks = append(d.Ticks, tick{x(v), number(v)})
	}
	for i, l := range p.Lines {
		var path strings.Builder
		for j, at := range l.Points {
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(j, 1)], x(at.X), y(at.Y))
		}
		d.Lines = append(d.Lines, drawnLine{fmt.Sprint("mode", i), path.String()})
	}
	return d
}

var chartTemplate = template.Must(template.New("").Funcs(template.FuncMap{
	"add": func(a, b int) int { return a + b },
	"mul": func(a, b int) int { return a * b },
	"esc": template.HTMLEscapeString,
}).Parse(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{.Width}} {{.Height}}" font-family="system-ui, sans-serif" font-size="11.5" role="img" aria-label="{{esc .Title}}">
  <style>
    text { fill: #24292f } .dim { fill: #57606a } .end { text-anchor: end } .mid { text-anchor: middle } .head { font-size: 13px; font-weight: 600 } .bold { font-weight: 600 }
    path { fill: none; stroke-width: 2 } .row { stroke: #d8dee4 } .back { fill: #fff }
    .mode0 { stroke: #afb8c1 } .mode1 { stroke: #bf8700 } .mode2 { stroke: #0969da }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .dim { fill: #9198a1 } .row { stroke: #343941 } .back { fill: #0d1117 }
      .mode0 { stroke: #656c76 } .mode1 { stroke: #d29922 } .mode2 { stroke: #4493f8 }
    }
  </style>
  <rect class="back" width="100%" height="100%"/>
  <text x="14" y="20" class="head">{{esc .Title}}</text>
  <g transform="translate(14,36)">
{{- range $i, $mode := .Modes}}
    <path class="mode{{$i}}" d="M{{mul $i 110}} 0h18"/><text x="{{add (mul $i 110) 23}}" y="4">{{$mode}}</text>
{{- end}}
  </g>
{{- $axis := .Axis}}{{$left := .Left}}{{$right := .Right}}{{$bottom := .Bottom}}{{range .Panels}}
  <g transform="translate({{.X}},{{.Y}})">
    <text class="bold" y="14">{{esc .Title}}</text>
{{- range .Rows}}
    <path class="row" d="M{{$left}} {{printf "%.1f" .At}}H{{$right}}" style="stroke-width:1"/><text class="dim end" x="{{add $left -5}}" y="{{printf "%.1f" .At}}" dy="4">{{.Label}}</text>
{{- end}}
{{- range .Ticks}}
    <text class="dim mid" x="{{printf "%.1f" .At}}" y="{{add $bottom 15}}">{{.Label}}</text>
{{- end}}
    <text class="dim end" x="{{$right}}" y="{{add $bottom 29}}">{{$axis}}</text>
{{- range .Lines}}
    <path class="{{.Class}}" d="{{.Path}}"/>
{{- end}}
  </g>
{{- end}}
</svg>
`))
