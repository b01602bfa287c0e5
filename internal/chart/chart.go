// Package chart draws the charts of the documentation as SVG: panels of bars or lines beside
// each other. It also fills the tables of a page. The pictures follow the reader's light or dark mode. A scale is logarithmic
// where one value is a thousand times another. Labels get the room that they need.
package chart

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// A Picture is a whole chart.
type Picture struct {
	Title   string
	Command string // that draws the picture; shown below it
	Note    string // beside the legend; may be empty
	Legend  []Entry
	Panels  []Panel
	Columns int // of panels; 0 means 2
}

// An Entry explains a color.
type Entry struct {
	Color Color
	Name  string
}

// A Color is one of the colors of a picture.
type Color string

// The colors, each with a light and a dark form.
const (
	Blue  Color = "blue"
	Amber Color = "amber"
	Green Color = "green"
	Gray  Color = "gray"
	Pale  Color = "pale"
)

// A Panel has Bars or Lines.
type Panel struct {
	Title, Note string
	Bars        []Bar // from top to bottom
	Lines       []Line
	X, Y        Axis // of lines
	Band        Band // behind lines
}

// A Bar is a value of at least 0.
type Bar struct {
	Name, Label string
	Value       float64
	Color       Color
	Bold        bool
}

// A Line connects points. Lines that are drawn later are thinner, so lines in the same place
// are all visible.
type Line struct {
	Color  Color
	Points []Point
}

// A Point is a point of a line. On a logarithmic axis it must be above 0.
type Point struct{ X, Y float64 }

// An Axis is linear with Ticks, and otherwise logarithmic. From and To of a logarithmic axis
// are taken from the points if they are 0.
type Axis struct {
	Title    string
	From, To float64
	Ticks    []float64
}

// A Band marks a part of the x axis. The zero value marks nothing.
type Band struct {
	From, To float64
	Label    string
}

const (
	margin     = 14
	panelWidth = 440
	panelGap   = 20
	headHeight = 24 // of a panel whose title has one line
	lineHeight = 15 // of further lines of the title
	barHeight  = 17
	plotHeight = 140
	letter     = 6.5 // the width of a letter, rounded up
	logFrom    = 1000
)

type drawing struct{ strings.Builder }

func (d *drawing) add(format string, args ...any) { fmt.Fprintf(d, format, args...) }

// text writes a text with classes of the style sheet.
func (d *drawing) text(x, y float64, class, text string) {
	d.add(`<text x="%.1f" y="%.1f" class="%s">%s</text>`, x, y, class, html.EscapeString(text))
}

func width(text string) float64 { return letter * float64(len([]rune(text))) }

const style = `<style>
text { fill: #24292f } .dim { fill: #57606a } .end { text-anchor: end } .mid { text-anchor: middle } .head { font-size: 13px } .head, .bold { font-weight: 600 }
.grid { stroke: #d8dee4; stroke-width: 1 } .line { fill: none; stroke-linejoin: round } .back { fill: #fff } .band { fill: #eef1f4 }
.blue { fill: #0969da; stroke: #0969da } .amber { fill: #bf8700; stroke: #bf8700 } .green { fill: #1a7f37; stroke: #1a7f37 } .gray { fill: #afb8c1; stroke: #afb8c1 } .pale { fill: #d8dee4; stroke: #d8dee4 }
rect { stroke: none !important } .line { fill: none !important }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .dim { fill: #9198a1 } .grid { stroke: #343941 } .back { fill: #0d1117 } .band { fill: #1c2129 }
.blue { fill: #4493f8; stroke: #4493f8 } .amber { fill: #d29922; stroke: #d29922 } .green { fill: #3fb950; stroke: #3fb950 } .gray { fill: #656c76; stroke: #656c76 } .pale { fill: #3d444d; stroke: #3d444d }
}
</style>
`

// SVG returns the picture as a file of SVG.
func (p *Picture) SVG() string {
	columns := p.Columns
	if columns == 0 {
		columns = 2
	}
	columns = max(1, min(columns, len(p.Panels)))
	full := float64(columns*panelWidth + margin)
	title := wrap(p.Title, full-2*margin, letter*1.2)
	legend := wrap(p.Note, full-2*margin, letter)
	top := 12 + 17*float64(len(title))
	var body drawing
	for i, line := range title {
		body.text(margin, 22+17*float64(i), "head", line)
	}
	body.add("\n")
	if x := float64(margin); len(p.Legend) > 0 {
		for _, e := range p.Legend {
			body.add(`<rect x="%.1f" y="%.1f" width="11" height="11" class="%s"/>`, x, top+6, e.Color)
			body.text(x+16, top+16, "", e.Name)
			x += 16 + width(e.Name) + 18
		}
		if x+width(p.Note) <= full-margin {
			legend = nil
			body.text(x, top+16, "dim", p.Note)
		}
		top += 22
	}
	for _, line := range legend {
		body.text(margin, top+16, "dim", line)
		top += 17
	}
	next := make([]float64, columns) // the next free y in each column
	for i := range next {
		next[i] = top + 12
	}
	for i := range p.Panels {
		at := 0
		for j := range next { // the shortest column
			if next[j] < next[at] {
				at = j
			}
		}
		body.add("\n<g transform=\"translate(%d,%.1f)\">\n", margin+at*panelWidth, next[at])
		next[at] += p.Panels[i].draw(&body) + panelGap
		body.add("</g>")
	}
	bottom := 0.0
	for _, y := range next {
		bottom = max(bottom, y)
	}
	for _, line := range wrap("Drawn by: "+p.Command, full-2*margin, letter) {
		body.text(margin, bottom, "dim", line)
		bottom += 17
	}
	var d drawing
	d.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="system-ui, sans-serif" font-size="11.5" role="img" aria-label="%s">`+"\n", full, bottom, html.EscapeString(p.Title))
	d.add("<desc>Drawn by: %s</desc>\n%s<rect class=\"back\" width=\"100%%\" height=\"100%%\"/>\n%s\n</svg>\n", html.EscapeString(p.Command), style, body.String())
	return d.String()
}

// wrap breaks a text into lines of a width, at spaces.
func wrap(text string, most, letter float64) (lines []string) {
	for word := range strings.FieldsSeq(text) {
		if n := len(lines); n > 0 && letter*float64(len([]rune(lines[n-1]+" "+word))) <= most {
			lines[n-1] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return lines
}

// draw draws the panel and returns its height. The note is beside the title if there is room,
// and otherwise below it.
func (p *Panel) draw(d *drawing) float64 {
	const room = panelWidth - panelGap
	lines := wrap(p.Title, room, letter)
	last := max(0, len(lines)-1)
	for i, line := range lines {
		d.add(`<text y="%d"><tspan class="bold">%s</tspan>`, 14+i*lineHeight, html.EscapeString(line))
		if i == last && width(line)+8+width(p.Note) <= room {
			d.add(`<tspan class="dim" dx="8">%s</tspan>`, html.EscapeString(p.Note))
		} else if i == last {
			last++
			d.add(`<tspan class="dim" x="0" y="%d">%s</tspan>`, 14+last*lineHeight, html.EscapeString(p.Note))
		}
		d.add("</text>\n")
	}
	more := last * lineHeight
	d.add(`<g transform="translate(0,%d)">`, more)
	defer d.add("</g>")
	if p.Bars != nil {
		return float64(more) + p.drawBars(d)
	}
	return float64(more) + p.drawLines(d)
}

// logBars reports whether the lengths of the bars are logarithmic.
func (p *Panel) logBars() bool {
	least, most := p.extent()
	return least < math.Inf(1) && most/least >= logFrom
}

// extent returns the least value above 0 of the bars, and the most.
func (p *Panel) extent() (least, most float64) {
	least = math.Inf(1)
	for _, b := range p.Bars {
		most = max(most, b.Value)
		if b.Value > 0 {
			least = min(least, b.Value)
		}
	}
	return least, most
}

func (p *Panel) drawBars(d *drawing) float64 {
	names, labels := 0.0, 0.0
	for _, b := range p.Bars {
		names, labels = max(names, width(b.Name)), max(labels, width(b.Label))
	}
	if p.logBars() {
		names = max(names, width("logarithmic"))
	}
	names += 6
	room := max(40, panelWidth-panelGap-names-labels-5)
	least, most := p.extent()
	bottom := float64(headHeight + len(p.Bars)*barHeight)
	length := func(v float64) float64 { return room * v / max(most, 1e-9) }
	if p.logBars() {
		low, high := math.Log10(least/2), math.Log10(most) // so the shortest bar is visible
		length = func(v float64) float64 { return room * (math.Log10(max(v, least/2)) - low) / (high - low) }
		for e := math.Ceil(low); e <= high; e++ {
			x := names + length(math.Pow(10, e))
			d.add(`<path class="grid" d="M%.1f %dV%.1f"/>`, x, headHeight-2, bottom)
			d.text(x, bottom+10, "dim mid", Short(math.Pow(10, e)))
		}
		d.text(names-6, bottom+10, "dim end", "logarithmic")
		d.add("\n")
	}
	for i, b := range p.Bars {
		y, class := float64(headHeight+i*barHeight), "end"
		if b.Bold {
			class = "end bold"
		}
		w := max(1, length(max(0, b.Value)))
		d.text(names-6, y+10, class, b.Name)
		d.add(`<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%d"/>`, b.Color, names, y, w, barHeight-4)
		d.text(names+w+5, y+10, "dim", b.Label)
		d.add("\n")
	}
	if p.logBars() {
		bottom += 14
	}
	return bottom
}

// scale returns the ticks of an axis, and where on it, from 0 to 1, a value is.
func (a *Axis) scale(values []float64) (ticks []float64, at func(float64) float64) {
	if a.Ticks != nil {
		from, to := a.Ticks[0], a.Ticks[len(a.Ticks)-1]
		return a.Ticks, func(v float64) float64 { return min(1, max(0, (v-from)/(to-from))) }
	}
	low, high := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		low, high = min(low, math.Floor(math.Log10(v))), max(high, math.Ceil(math.Log10(v)))
	}
	if a.From > 0 {
		low = math.Log10(a.From)
	}
	if a.To > 0 {
		high = math.Log10(a.To)
	}
	high = max(high, low+1)
	for e := low; e <= high; e++ {
		ticks = append(ticks, math.Pow(10, e))
	}
	return ticks, func(v float64) float64 { return min(1, max(0, (math.Log10(v)-low)/(high-low))) }
}

func (p *Panel) drawLines(d *drawing) float64 {
	var xs, ys []float64
	for _, l := range p.Lines {
		for _, at := range l.Points {
			xs, ys = append(xs, at.X), append(ys, at.Y)
		}
	}
	xTicks, toX := p.X.scale(xs)
	yTicks, toY := p.Y.scale(ys)
	left := 0.0
	for _, v := range yTicks {
		left = max(left, width(Short(v))+6)
	}
	const top, bottom, right = headHeight + 4, headHeight + 4 + plotHeight, panelWidth - panelGap - 16
	x := func(v float64) float64 { return left + toX(v)*(right-left) }
	y := func(v float64) float64 { return bottom - toY(v)*plotHeight }
	if b := p.Band; b != (Band{}) {
		d.add(`<rect class="band" x="%.1f" y="%d" width="%.1f" height="%d"/>`, x(b.From), top, x(b.To)-x(b.From), plotHeight)
		d.text(x(b.From)+4, bottom-5, "dim", b.Label)
	}
	for _, v := range yTicks {
		d.add(`<path class="grid" d="M%.1f %.1fH%d"/>`, left, y(v), right)
		d.text(left-6, y(v)+4, "dim end", Short(v))
	}
	for _, v := range xTicks {
		d.text(x(v), bottom+15, "dim mid", Short(v))
	}
	d.text(right, bottom+29, "dim end", p.X.Title)
	for i, l := range p.Lines {
		stroke := 2 + 2.5*float64(len(p.Lines)-1-i)
		d.add("\n"+`<path class="line %s" stroke-width="%.1f" d="`, l.Color, stroke)
		for j, at := range l.Points {
			d.add("%c%.1f %.1f", "ML"[min(j, 1)], x(at.X), y(at.Y))
		}
		d.add(`"/>`)
	}
	d.add("\n")
	return bottom + 32
}

// Short returns a number as the label of an axis: 1k for a thousand, 1M for a million, 1G for
// a billion.
func Short(v float64) string {
	unit := ""
	for _, u := range []string{"k", "M", "G"} {
		if v < 999.5 {
			break
		}
		v, unit = v/1000, u
	}
	return strconv.FormatFloat(v, 'g', 3, 64) + unit
}

// Fill replaces the text between the marks <!-- name --> and <!-- end of name --> of a page.
func Fill(page, name, text string) (string, error) {
	begin, end := "<!-- "+name+" -->\n", "<!-- end of "+name+" -->"
	before, rest, ok := strings.Cut(page, begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", fmt.Errorf("the page has no %q and %q", begin, end)
	}
	return before + begin + "\n" + text + "\n" + end + after, nil
}
