package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// results are the numbers of all rounds.
type results struct {
	command  string
	machine  string
	cpu      string
	versions map[string]string
	inexact  []string
	samples  map[sample][]float64 // in the order of the rounds
}

// sample names what was measured.
type sample struct{ bench, library, unit string }

const benchPrefix = "Benchmark/"

// read takes what there is to learn from a line of go test's output.
func (r *results) read(line string) {
	if _, text, ok := strings.Cut(line, "not exact: "); ok {
		r.inexact = append(r.inexact, text)
	}
	if cpu, ok := strings.CutPrefix(line, "cpu: "); ok {
		r.cpu = strings.TrimSpace(cpu)
	}
	fields := strings.Fields(line)
	if len(fields) < 4 || !strings.HasPrefix(line, benchPrefix) {
		return
	}
	name := strings.TrimPrefix(fields[0], benchPrefix)
	if i := strings.LastIndexByte(name, '-'); i >= 0 { // of GOMAXPROCS, unless that is 1
		if _, err := strconv.Atoi(name[i+1:]); err == nil {
			name = name[:i]
		}
	}
	bench, library, ok := strings.Cut(name, "/")
	if !ok {
		return
	}
	if r.samples == nil {
		r.samples = make(map[sample][]float64)
	}
	for pair := range slices.Chunk(fields[2:], 2) { // after the number of iterations: a value and its unit each
		v, err := strconv.ParseFloat(pair[0], 64)
		if err == nil && len(pair) == 2 {
			s := sample{bench, library, pair[1]}
			r.samples[s] = append(r.samples[s], v)
		}
	}
}

// value is the median of all rounds.
func (r *results) value(s sample) (float64, bool) {
	all := r.samples[s]
	return median(all), len(all) > 0
}

// ratio is the median of the ratios of single rounds, because a machine that is
// slower in one round is slower for both. By what is nothing but noise, as the
// difference of two times can be, there is none.
func (r *results) ratio(a, b sample) string {
	x, y := r.samples[a], r.samples[b]
	var ratios []float64
	for i := range min(len(x), len(y)) {
		if y[i] < 0.5 {
			return "—"
		}
		ratios = append(ratios, x[i]/y[i])
	}
	return strconv.FormatFloat(median(ratios), 'f', 2, 64)
}

func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(all))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// number is a library's value as the tables show it, with its allocations if any.
func (r *results) number(s sample) string {
	v, _ := r.value(s)
	v = max(0, v) // a difference of two times can be less
	text := strconv.FormatFloat(v, 'f', 0, 64)
	if v < 9.95 {
		text = strconv.FormatFloat(v, 'f', 1, 64)
	}
	if allocs, _ := r.value(sample{s.bench, s.library, "allocs/op"}); allocs > 0 {
		text += fmt.Sprintf(" (%.0f)", allocs)
	}
	return text
}

// row is a line of a table, or "" if it was not measured.
func (r *results) row(c benchmarks.Case, m benchmarks.Measure) string {
	var of [3][]sample // ours, rivals, floors
	for _, l := range benchmarks.Libraries {
		s := sample{c.Name, l.Name, m.Unit}
		if _, ok := r.value(s); ok {
			of[l.Kind] = append(of[l.Kind], s)
		}
	}
	ours, rivals, floors := of[benchmarks.Ours], of[benchmarks.Rival], of[benchmarks.Floor]
	if len(ours) == 0 {
		return ""
	}
	slices.SortStableFunc(rivals, func(a, b sample) int { return cmp.Compare(median(r.samples[a]), median(r.samples[b])) })
	best := min(1, len(rivals))
	var numbers, ratios []string
	for _, s := range ours {
		numbers = append(numbers, r.number(s))
		for _, rival := range rivals[:best] {
			ratios = append(ratios, r.ratio(s, rival))
		}
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s |\n", m.Title, strings.Join(numbers, " / "),
		r.named(rivals[:best]), strings.Join(ratios, " / "), m.Goal, r.named(rivals[best:]), r.named(floors))
}

func (r *results) named(samples []sample) string {
	if len(samples) == 0 {
		return "—"
	}
	var all []string
	for _, s := range samples {
		all = append(all, s.library+" "+r.number(s))
	}
	return strings.Join(all, ", ")
}

// markdown is the whole report.
func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Benchmarks

This library beside others and beside floors: code that does only what none of them can avoid. A time is the median of
all rounds. A ratio is this library's time by the best rival's, below 1 where this library is ahead: the median of the
ratios within single rounds, in which the libraries are timed one right after the other. Where there are two of this
library, they are of a fixed window / a token bucket. In parentheses: allocations, where there are any.

- Machine: %s; %s
- Command, in the folder benchmarks: %s

`, r.cpu, r.machine, "`"+r.command+"`")
	for _, group := range []benchmarks.Group{benchmarks.Speed, benchmarks.Size, benchmarks.Middleware} {
		rows := ""
		for _, c := range benchmarks.Cases {
			for _, m := range c.Measures {
				if m.Group == group {
					rows += r.row(c, m)
				}
			}
		}
		if rows != "" {
			fmt.Fprintf(&b, "## %s\n\n| case | this library | best rival | ratio | goal | other rivals | floors |\n"+
				"|---|---|---|---|---|---|---|\n%s\n", group, rows)
		}
	}
	b.WriteString("## What was compared\n\n| name | module | configuration |\n|---|---|---|\n")
	for _, l := range benchmarks.Libraries {
		module := "in this repository"
		if l.Module != "" {
			module = strings.TrimSpace(l.Module + " " + r.versions[l.Module])
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", l.Name, module, l.Setup)
	}
	b.WriteString("\nNobody is told the number of keys beforehand, and maxima are above it. Requests are limited by their address.\n" +
		"Before it was timed, each was asked for 2,560 units of a limit of 1,000, by one goroutine and by 64, directly and\n" +
		"through its middleware. ")
	if len(r.inexact) == 0 {
		b.WriteString("All admitted exactly 1,000.\n")
	} else {
		fmt.Fprintf(&b, "All admitted exactly 1,000, but:\n\n- %s\n", strings.Join(r.inexact, "\n- "))
	}
	return b.String()
}
