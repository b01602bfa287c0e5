package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/chart"
	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/sim"
)

// document writes the charts of scaling.md to dir, and its tables between their marks. That
// takes a while, and somebody may edit the page in the meantime. So document reads the page
// again before it writes, and changes only the tables.
func document(dir string, scenarios []scenario) error {
	path := filepath.Join(dir, "scaling.md")
	tables := make([]string, len(scenarios))
	if _, err := fill(path, scenarios, tables); err != nil { // fails early if the page has no marks
		return err
	}
	for i, s := range scenarios {
		fmt.Fprintln(os.Stderr, s.name)
		var svg string
		tables[i], svg = s.run()
		if svg == "" {
			continue
		}
		if err := replace(filepath.Join(dir, "scaling-"+s.name+".svg"), svg); err != nil {
			return err
		}
	}
	page, err := fill(path, scenarios, tables)
	if err != nil {
		return err
	}
	return replace(path, page)
}

// fill returns a page with the tables of scenarios in their places.
func fill(path string, scenarios []scenario, tables []string) (string, error) {
	text, err := os.ReadFile(path)
	page := string(text)
	for i, s := range scenarios {
		if err == nil {
			page, err = chart.Fill(page, s.name, tables[i])
		}
	}
	return page, err
}

// replace writes a file atomically: a reader never sees half of it.
func replace(path, text string) error {
	aside := path + ".new"
	if err := os.WriteFile(aside, []byte(text), 0o666); err != nil {
		return err
	}
	return os.Rename(aside, path)
}

type scenario struct {
	name string
	run  func() (table, chart string) // chart is empty if there is none
}

var scenarios = []scenario{{"commands", commands}, {"algorithms", algorithms}, {"keys", manyKeys}, {"share", share}, {"outage", outage}, {"blocks", blocks}}

// How the pictures show the modes, and their axes.
var (
	colors    = map[sim.Mode]chart.Color{sim.Exact: chart.Gray, sim.Cached: chart.Amber, sim.Leased: chart.Blue}
	processes = chart.Axis{Title: "processes", From: 1, To: 1000}
	percents  = chart.Axis{Ticks: []float64{90, 92, 94, 96, 98, 100}}
)

// picture returns a chart of panels whose lines are the modes.
func picture(title string, panels []chart.Panel) string {
	p := chart.Picture{Title: title, Command: "go run ./cmd/ratelimit-sim -out docs", Panels: panels}
	for _, mode := range modes {
		p.Legend = append(p.Legend, chart.Entry{Color: colors[mode], Name: mode.String()})
	}
	return p.SVG()
}

var fleets = []int{1, 3, 10, 30, 100, 300, 1000}

// base is the common part of all scenarios: Redis is nearby.
var base = sim.Config{Seed: 1, Jitter: 100 * time.Microsecond, Span: 2 * time.Second}

func perSecond(n int64) rule.Limit {
	return rule.Limit{Kind: rule.Fixed, N: n, Window: int64(time.Second)}
}

// sweep runs a configuration in each mode with each number of processes.
func sweep(c sim.Config, fleets []int) []result {
	var configs []sim.Config
	for _, c.Processes = range fleets {
		for _, c.Mode = range modes {
			configs = append(configs, c)
		}
	}
	return simulate(configs)
}

// blocks simulates an attack of a day: ten keys, two requests a second for each.
func blocks() (string, string) {
	var configs []sim.Config
	limits := []string{
		"5/15m fixed", "5/15m fixed block=15m,1h,24h", "5/15m sliding", "5/15m sliding block=15m,1h,24h",
		"5/15m bucket burst=5", "5/15m bucket burst=5 block=15m,1h,24h", "600/1m bucket burst=10", "600/1m bucket burst=10 block=10s,1m,10m",
	}
	for i, text := range limits {
		l, err := ratelimit.ParseLimit(text)
		if err != nil {
			panic(err)
		}
		c := base
		c.Mode, c.Processes, c.Keys.Count, c.Rate, c.Span = sim.Cached, 4, 10, 20, 24*time.Hour
		if i >= 6 { // a limit of requests, and 50 a second for each key
			c.Rate, c.Span = 500, time.Hour
		}
		c.Limit, c.Ladder = ruleOf(l), ladderOf(l)
		configs = append(configs, c)
	}
	var b strings.Builder
	b.WriteString("| limit | requests per key and second | admitted per key and day | commands per decision |\n|---|---|---|---|\n")
	for i, r := range simulate(configs) {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", limits[i], number(r.Rate/float64(r.Keys.Count)), number(r.perDay()), small(r.PerDecision()))
	}
	return b.String(), ""
}

// lines draws a number of each result against the processes.
func lines(results []result, of func(result) float64) (all []chart.Line) {
	for _, mode := range modes {
		l := chart.Line{Color: colors[mode]}
		for _, r := range results {
			if r.Mode == mode {
				l.Points = append(l.Points, chart.Point{X: float64(r.Config.Processes), Y: of(r)})
			}
		}
		all = append(all, l)
	}
	return all
}

func commands() (string, string) {
	var b strings.Builder
	b.WriteString("| requests a second | processes | exact | 99 % wait at most | deny-cached | at most | leased | at most |\n|---|---|---|---|---|---|---|---|\n")
	var panels []chart.Panel
	for _, rate := range []float64{10_000, 100_000, 1_000_000} {
		c := base
		c.Rate, c.Limit = rate, perSecond(int64(rate)/2)
		results := sweep(c, fleets)
		for i := 0; i < len(results); i += len(modes) {
			if n := results[i].Config.Processes; n == 3 || n == 30 || n == 300 {
				continue
			}
			fmt.Fprintf(&b, "| %s | %s |", number(rate), number(float64(results[i].Config.Processes)))
			for _, r := range results[i : i+len(modes)] {
				fmt.Fprintf(&b, " %s | %s |", number(r.perSecond()), span(r.Wait(0.99)))
			}
			b.WriteString("\n")
		}
		panels = append(panels, chart.Panel{Title: number(rate) + " requests a second", Lines: lines(results, result.perSecond), X: processes, Y: chart.Axis{From: 10}})
	}
	return b.String(), picture("Commands a second at Redis, by number of processes: one hot key, a fixed window, half of its requests admitted", panels)
}

// algorithms has one hot key with a load below its limit, above it, and far above it. The
// first two seconds, in which a bucket's burst is used up, do not count.
func algorithms() (string, string) {
	var b strings.Builder
	b.WriteString("| limit | requests a second | exact | deny-cached | leased |\n|---|---|---|---|---|\n")
	for _, text := range []string{"10000/1s fixed", "10000/1s sliding", "10000/1s bucket burst=1000"} {
		limit, err := ratelimit.ParseLimit(text)
		if err != nil {
			panic(err) // the text is wrong
		}
		for _, rate := range []float64{8_000, 12_000, 50_000} {
			c := base
			c.Rate, c.Limit, c.Span = rate, ruleOf(limit), 4*time.Second
			fmt.Fprintf(&b, "| `%v` | %s |", limit, number(rate))
			for _, r := range sweep(c, []int{20}) {
				commands := int64(0)
				for _, s := range r.Slices[2*time.Second/sim.SliceSpan:] {
					commands += s.Commands
				}
				fmt.Fprintf(&b, " %s |", number(float64(commands)/2))
			}
			b.WriteString("\n")
		}
	}
	return b.String(), ""
}

func manyKeys() (string, string) {
	c := base
	c.Rate, c.Keys, c.Limit = 100_000, sim.Keys{Count: 10_000, Zipf: 1.1}, perSecond(1000)
	zipf := sweep(c, fleets)
	c.Keys = sim.Keys{Count: 10_000}
	uniform := sweep(c, fleets)
	var b strings.Builder
	b.WriteString("| keys | processes | exact | deny-cached | leased |\n|---|---|---|---|---|\n")
	for i, results := range [][]result{zipf, uniform} {
		for j := 0; j < len(results); j += 2 * len(modes) {
			fmt.Fprintf(&b, "| %s | %d |", [...]string{"Zipf, 1.1", "uniform"}[i], results[j].Config.Processes)
			for _, r := range results[j : j+len(modes)] {
				fmt.Fprintf(&b, " %s |", small(r.PerDecision()))
			}
			b.WriteString("\n")
		}
	}
	axis := chart.Axis{From: 10_000, To: 100_000}
	return b.String(), picture("Commands a second at Redis, by number of processes: 100,000 requests a second for 10,000 keys, 1,000 a second each", []chart.Panel{
		{Title: "some keys much busier than others", Lines: lines(zipf, result.perSecond), X: processes, Y: axis},
		{Title: "uniform", Note: "the three lines are in the same place", Lines: lines(uniform, result.perSecond), X: processes, Y: axis},
	})
}

// share measures how much each process admits, in windows of a second that are not used up
// long before they end.
func share() (string, string) {
	var b strings.Builder
	b.WriteString("| load | processes | mode | admitted of the limit | fairness | smallest and largest share of its requests that a process admitted |\n|---|---|---|---|---|---|\n")
	var panels []chart.Panel
	for _, skew := range []float64{0, 0.9} {
		c := base
		c.Rate, c.Share, c.Span = 20_000, skew, 3*time.Second
		c.Limit = rule.Limit{Kind: rule.Fixed, N: 15_000, Window: int64(time.Second)}
		results := sweep(c, fleets)
		load := "even"
		if skew > 0 {
			load = "90 % at one"
		}
		for i, r := range results {
			if i/len(modes)%2 == 1 || r.Mode == sim.Exact {
				continue
			}
			least, most := 1.0, 0.0
			for _, p := range r.Report.Processes {
				part := float64(p.Admitted) / float64(max(1, p.Requests))
				least, most = min(least, part), max(most, part)
			}
			fmt.Fprintf(&b, "| %s | %s | %v | %s | %.3f | %s to %s |\n", load, number(float64(r.Config.Processes)), r.Mode,
				percent(r.OfIdeal()), r.Jain(), percent(least), percent(most))
		}
		panels = append(panels,
			chart.Panel{Title: "admitted of the limit, %, load " + load, X: processes, Y: percents, Lines: lines(results, func(r result) float64 { return 100 * r.OfIdeal() })})
		if skew > 0 {
			panels = append(panels, chart.Panel{Title: "fairness, %, load " + load, X: processes, Y: percents, Lines: lines(results, func(r result) float64 { return 100 * r.Jain() })})
		}
	}
	return b.String(), picture("Admitted, by number of processes: 20,000 requests a second, 15,000 a second admitted", panels)
}

// outage has Redis down for three of eight seconds.
func outage() (string, string) {
	c := base
	c.Rate, c.Limit, c.Span = 20_000, perSecond(1000), 8*time.Second
	down := sim.Outage{From: 2500 * time.Millisecond, To: 5500 * time.Millisecond}
	c.Outages = []sim.Outage{down}
	var b strings.Builder
	b.WriteString("| processes | mode | before | while Redis is down | after | bound: processes × limit |\n|---|---|---|---|---|---|\n")
	var panels []chart.Panel
	for _, n := range []int{4, 16, 64} {
		p := chart.Panel{
			Title: fmt.Sprint(n, " processes"), X: chart.Axis{Title: "seconds", Ticks: []float64{0, 1, 2, 3, 4, 5, 6, 7, 8}}, Y: chart.Axis{From: 100, To: 100_000},
			Band: chart.Band{From: down.From.Seconds(), To: down.To.Seconds(), Label: "Redis is down"},
		}
		for _, r := range sweep(c, []int{n}) {
			l := chart.Line{Color: colors[r.Mode]}
			const window = int(time.Second / sim.SliceSpan)
			var perWindow [8]int64
			for i := range perWindow {
				for _, s := range r.Slices[i*window : (i+1)*window] {
					perWindow[i] += s.Admitted
				}
				l.Points = append(l.Points, chart.Point{X: float64(i), Y: float64(perWindow[i])}, chart.Point{X: float64(i + 1), Y: float64(perWindow[i])})
			}
			p.Lines = append(p.Lines, l)
			if r.Mode != sim.Exact {
				fmt.Fprintf(&b, "| %d | %v | %s | %s | %s | %s |\n", n, r.Mode, number(float64(perWindow[1])), number(float64(perWindow[4])),
					number(float64(perWindow[7])), number(float64(n*1000)))
			}
		}
		panels = append(panels, p)
	}
	return b.String(), picture("Admitted in each window, of a limit of 1,000 a second, 20,000 requested; Redis is down from 2.5 s to 5.5 s", panels)
}
