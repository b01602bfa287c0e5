package chart

import (
	"encoding/xml"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func drawn(t *testing.T, p Picture) string {
	t.Helper()
	svg := p.SVG()
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); err == io.EOF {
			return svg
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// attributes returns the values of an attribute, as numbers, in the elements that match.
func attributes(t *testing.T, svg, element, name string) (all []float64) {
	for _, m := range regexp.MustCompile(`<`+element+`[^>]* `+name+`="([\d.]+)"`).FindAllStringSubmatch(svg, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		require.NoError(t, err)
		all = append(all, v)
	}
	return all
}

func bars(values ...float64) (all []Bar) {
	for _, v := range values {
		all = append(all, Bar{Name: "a & b", Label: "<" + Short(v) + ">", Value: v, Color: Blue})
	}
	return all
}

func TestBarsAreLogarithmicFromAThousand(t *testing.T) {
	for _, row := range []struct {
		values []float64
		log    bool
	}{{[]float64{1, 999}, false}, {[]float64{1, 1000}, true}, {[]float64{0, 5}, false}, {[]float64{0, 1, 5000}, true}, {[]float64{0, 0}, false}} {
		svg := drawn(t, Picture{Title: "x < y", Command: "go run --flag", Panels: []Panel{{Title: "p", Bars: bars(row.values...)}}})
		require.Equal(t, row.log, strings.Contains(svg, "logarithmic"), "%v", row.values)
		widths := attributes(t, svg, `rect class="blue"`, "width")
		require.Len(t, widths, len(row.values))
		for i, w := range widths {
			require.GreaterOrEqual(t, w, 1.0, "every bar is visible")
			if i > 0 && row.values[i] > row.values[i-1] {
				require.Greater(t, w, widths[i-1])
			}
		}
	}
}

func TestLinesHaveRoomForTheirLabels(t *testing.T) {
	lines := []Line{{Gray, []Point{{1, 900_000}, {1000, 1_000_000}}}, {Amber, []Point{{1, 900_000}, {1000, 1_000_000}}}, {Blue, []Point{{1, 1}, {1000, 20}}}}
	svg := drawn(t, Picture{Title: "t", Command: "c", Panels: []Panel{{Title: "p", Lines: lines, X: Axis{Title: "processes"}}}})
	require.Contains(t, svg, ">1M<")
	for _, x := range attributes(t, svg, "text", "x") {
		require.Greater(t, x, 0.0)
	}
	strokes := attributes(t, svg, `path class="line`, "stroke-width")
	require.Len(t, strokes, 3)
	require.True(t, strokes[0] > strokes[1] && strokes[1] > strokes[2], "a line below another one is wider")
}

// TestLongTitlesStayInTheirPanel checks that a title and its note do not reach into the next
// panel, and that the bars are below them.
func TestLongTitlesStayInTheirPanel(t *testing.T) {
	row := regexp.MustCompile(`<tspan class="(bold|dim)"([^>]*)>([^<]*)</tspan>`)
	top := regexp.MustCompile(`</text>\s*<g transform="translate\(0,(\d+)\)">`)
	for words, lines := range map[int]int{2: 1, 8: 2, 9: 2, 12: 2, 30: 4, 32: 5} { // of "abcdefg " in a title; the note has a line, too
		title, note := strings.TrimSpace(strings.Repeat("abcdefg ", words)), "higher is better"
		svg := drawn(t, Picture{Title: "t", Command: "c", Panels: []Panel{{Title: title, Note: note, Bars: bars(1, 2)}}})
		var texts []string
		for _, m := range row.FindAllStringSubmatch(svg, -1) {
			if m[1] == "dim" && strings.Contains(m[2], "dx") {
				texts[len(texts)-1] += " " + m[3]
			} else {
				texts = append(texts, m[3])
			}
		}
		require.Len(t, texts, lines, "%d words", words)
		require.Equal(t, title+" "+note, strings.Join(texts, " "))
		for _, text := range texts {
			require.LessOrEqual(t, width(text), float64(panelWidth-panelGap))
		}
		require.Equal(t, strconv.Itoa((lines-1)*lineHeight), top.FindStringSubmatch(svg)[1])
	}
}

func TestPictureNamesItsCommand(t *testing.T) {
	svg := drawn(t, Picture{Title: strings.Repeat("long title ", 20), Command: "go run ./cmd/growth --x", Note: "note",
		Legend: []Entry{{Blue, "this"}}, Panels: []Panel{{Title: "p", Bars: bars(1, 2)}}})
	require.Equal(t, 2, strings.Count(svg, "Drawn by: go run ./cmd/growth --x"))
	require.Contains(t, svg, "prefers-color-scheme: dark")
	require.Greater(t, strings.Count(svg, `class="head"`), 2, "the title has several lines")
}

func TestAxisWithTicksIsLinear(t *testing.T) {
	svg := drawn(t, Picture{Title: "t", Command: "c", Panels: []Panel{{Title: "p", Lines: []Line{{Blue, []Point{{0, 50}, {8, 150}}}},
		X: Axis{Ticks: []float64{0, 4, 8}}, Y: Axis{Ticks: []float64{0, 100}}, Band: Band{2, 6, "down"}}}})
	require.Contains(t, svg, ">down<")
	require.Contains(t, svg, "M", "a line")
	require.NotContains(t, svg, "NaN")
}

func TestShort(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.1: "0.1", 1: "1", 999: "999", 1000: "1k", 1500: "1.5k", 100_000: "100k", 1e6: "1M", 1e9: "1G"} {
		require.Equal(t, want, Short(v))
	}
}
