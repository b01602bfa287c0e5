package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// results are the numbers of all rounds of a part.
type results struct {
	command  string
	machine  string
	cpu      string
	versions map[string]string
	exact    map[string]bool      // the libraries that were found to be exact
	inexact  []string             // what was wrong with the others
	failed   map[failure]string   // why rows failed
	failing  failure              // the row whose messages are being read
	samples  map[sample][]float64 // in the order of the rounds
}

// sample identifies a measured value.
type sample struct{ bench, library, unit string }

// failure identifies a row that failed.
type failure struct{ bench, library string }

// read parses a line of go test's output. It stores the row's samples, or why it failed.
func (r *results) read(line string) {
	if _, text, ok := strings.Cut(line, "not exact: "); ok {
		r.inexact = append(r.inexact, text)
	} else if _, name, ok := strings.Cut(line, ": exact: "); ok {
		if r.exact == nil {
			r.exact = make(map[string]bool)
		}
		r.exact[strings.TrimSpace(name)] = true
	}
	if cpu, ok := strings.CutPrefix(line, "cpu: "); ok {
		r.cpu = strings.TrimSpace(cpu)
	}
	if _, name, ok := strings.Cut(line, "--- FAIL: Benchmark"); ok {
		if bench, library, ok := nameOf(name); ok {
			if r.failed == nil {
				r.failed = make(map[failure]string)
			}
			r.failing = failure{bench, library}
			r.failed[r.failing] = cmp.Or(r.failed[r.failing], "it failed")
		}
		return
	}
	if r.failing != (failure{}) {
		text, indented := strings.CutPrefix(line, "    ")
		if _, why, ok := strings.Cut(text, ".go:"); indented && ok {
			_, why, _ = strings.Cut(why, ": ")
			r.failed[r.failing] = strings.TrimSpace(why)
		}
		r.failing = failure{}
		return
	}
	fields := strings.Fields(line)
	if len(fields) < 4 || !strings.HasPrefix(line, "Benchmark") {
		return
	}
	bench, library, ok := nameOf(fields[0])
	if !ok {
		return
	}
	if r.samples == nil {
		r.samples = make(map[sample][]float64)
	}
	for pair := range slices.Chunk(fields[2:], 2) { // pairs of value and unit, after the number of iterations
		if len(pair) < 2 {
			return
		}
		if v, err := strconv.ParseFloat(pair[0], 64); err == nil {
			s := sample{bench, library, pair[1]}
			r.samples[s] = append(r.samples[s], v)
		}
	}
}

// nameOf returns the case and the library in a benchmark's name. The name has a suffix for
// GOMAXPROCS, unless that is 1.
func nameOf(name string) (bench, library string, ok bool) {
	_, name, _ = strings.Cut(strings.TrimSpace(name), "/")
	bench, library, ok = strings.Cut(name, "/")
	if i := strings.LastIndexByte(library, '-'); i >= 0 && !known(library) {
		if _, err := strconv.Atoi(library[i+1:]); err == nil {
			library = library[:i]
		}
	}
	return bench, library, ok
}

// known reports whether there is a library of this name.
func known(library string) bool {
	return slices.ContainsFunc(parts, func(p *part) bool {
		return slices.ContainsFunc(p.libraries, func(l benchmarks.Library) bool { return l.Name == library })
	})
}

// value is the median of all rounds.
func (r *results) value(s sample) (float64, bool) {
	all := r.samples[s]
	return benchmarks.Median(all), len(all) > 0
}

// ratios are the ratios of single rounds.
func (r *results) ratios(a, b sample) (all []float64) {
	x, y := r.samples[a], r.samples[b]
	for i := range min(len(x), len(y)) {
		all = append(all, x[i]/y[i])
	}
	return all
}

// ratio is the median of the ratios of single rounds, because a machine that is
// slower in one round is slower for both. If b is only noise, as the difference of
// two times can be, there is no ratio.
func (r *results) ratio(a, b sample) (float64, bool) {
	if slices.ContainsFunc(r.samples[b], func(v float64) bool { return v < 0.5 && slices.Contains(differences, b.unit) || v <= 0 }) {
		return 0, false
	}
	ratios := r.ratios(a, b)
	return benchmarks.Median(ratios), len(ratios) > 0
}

// differences are the units of values that are the difference of two measurements.
var differences = []string{"ms/GC"}

// number formats a library's value for the tables, with its allocations if there are any.
func (r *results) number(s sample) string {
	v, _ := r.value(s)
	v = max(0, v) // a difference of two times can be negative
	text := strconv.FormatFloat(v, 'f', 0, 64)
	switch {
	case strings.HasPrefix(s.unit, "x/"), s.unit == "cmd/op" && v < 1:
		text = strconv.FormatFloat(v, 'f', 2, 64)
	case v < 9.95 && v != math.Trunc(v):
		text = strconv.FormatFloat(v, 'f', 1, 64)
	}
	if allocs, _ := r.value(sample{s.bench, s.library, "allocs/op"}); allocs > 0 && slices.Contains(withAllocs, s.unit) {
		text += fmt.Sprintf(" (%.0f)", allocs)
	}
	return text
}

// withAllocs are the units of a case's first measure. Its value is shown with the allocations.
var withAllocs = []string{"ns/op", "us/op", "op/s"}

// timed are the units of values whose spread is judged.
var timed = []string{"ns/op", "us/op", "op/s", "req/s", "ns/key", "us-server/op", "us-client/op", "us-cpu/op"}

// row is a line of a table.
type row struct {
	benchmarks.Case
	benchmarks.Measure
	goal                 benchmarks.Goal
	ours, rivals, floors []sample          // values that are not void; rivals are sorted, the best first
	mine                 []sample          // this library's, void or not
	all                  []sample          // everybody's, void or not
	void                 map[sample]string // why values are void
	unknown              bool              // the server does not report it
}

// rows returns the rows of a table that were measured.
func (r *results) rows(g benchmarks.Group) (all []row) {
	p := partOf(g)
	for _, c := range p.cases {
		for _, m := range c.Measures {
			if m.Group != g {
				continue
			}
			w := row{Case: c, Measure: m, goal: benchmarks.GoalOf(c, m), void: make(map[sample]string)}
			var of [3][]sample
			rounds, measured := 0, false
			for _, l := range p.libraries {
				s := sample{c.Name, l.Name, m.Unit}
				rounds = max(rounds, len(r.samples[s]))
				measured = measured || r.measured(c.Name, l.Name)
			}
			for _, l := range p.libraries {
				s := sample{c.Name, l.Name, m.Unit}
				_, failed := r.failed[failure{c.Name, l.Name}]
				if len(r.samples[s]) == 0 && !failed {
					continue
				}
				w.all = append(w.all, s)
				if l.Kind == benchmarks.Ours {
					w.mine = append(w.mine, s)
				}
				if why := r.dishonest(s, l.Kind, rounds); why != "" {
					w.void[s] = why
				} else {
					of[l.Kind] = append(of[l.Kind], s)
				}
			}
			w.ours, w.rivals, w.floors = of[benchmarks.Ours], of[benchmarks.Rival], of[benchmarks.Floor]
			r.judgeSpread(&w)
			w.unknown = len(w.mine) == 0 && measured && m.ServerReports()
			if len(w.mine) > 0 || w.unknown {
				all = append(all, w)
			}
		}
	}
	return all
}

// measured reports whether there is any value of a row.
func (r *results) measured(bench, library string) bool {
	for s := range r.samples {
		if s.bench == bench && s.library == library {
			return true
		}
	}
	return false
}

// dishonest returns why a value says nothing about its library: its row failed, or it was not
// exact, or a round is missing.
func (r *results) dishonest(s sample, kind benchmarks.Kind, rounds int) string {
	if why, ok := r.failed[failure{s.bench, s.library}]; ok {
		return why
	}
	for _, text := range r.inexact {
		if strings.HasPrefix(text, s.library+" ") {
			return "not exact: it " + strings.TrimPrefix(text, s.library+" ")
		}
	}
	if kind != benchmarks.Floor && !r.exact[s.library] {
		return "it was not checked for exactness"
	}
	if n := len(r.samples[s]); n < rounds {
		return fmt.Sprintf("%d of %d rounds were measured", n, rounds)
	}
	return ""
}

// maxSpread is the spread above which a value is void.
const maxSpread = 0.25

// judgeSpread makes values void that differ too much between rounds, and sorts the rivals. A
// rival or floor is compared with each other value of its row. It is void only if it is steady
// beside none of them. This library is compared with the best rival if there is one, because
// that is the ratio that the row prints.
func (r *results) judgeSpread(w *row) {
	if !slices.Contains(timed, w.Unit) && !strings.HasPrefix(w.Unit, "x/") {
		r.sort(w.rivals, w.Higher)
		return
	}
	steady := func(some, others []sample) (good []sample) {
		for _, s := range some {
			if spread := r.spread(s, others); spread > maxSpread {
				w.void[s] = fmt.Sprintf("rounds differ: the spread is %.0f %%", 100*spread)
			} else {
				good = append(good, s)
			}
		}
		return good
	}
	all := slices.Concat(w.ours, w.rivals, w.floors)
	w.rivals, w.floors = steady(w.rivals, all), steady(w.floors, all)
	r.sort(w.rivals, w.Higher)
	if len(w.rivals) > 0 {
		all = w.rivals[:1]
	}
	w.ours = steady(w.ours, all)
}

// spread returns how much the ratio of s to one of others differs between rounds, for the one
// with which it differs least: the median of the distances from the median, by the median. A
// value that is a ratio already is not divided again. The spread is 0 if there is nothing to
// divide by, or only one round.
func (r *results) spread(s sample, others []sample) float64 {
	if strings.HasPrefix(s.unit, "x/") {
		return deviation(r.samples[s])
	}
	least := math.Inf(1)
	for _, other := range others {
		if other != s {
			least = min(least, deviation(r.ratios(s, other)))
		}
	}
	if math.IsInf(least, 1) {
		return 0
	}
	return least
}

// deviation returns the median distance from the median, by the median.
func deviation(all []float64) float64 {
	median := benchmarks.Median(all)
	if len(all) < 2 || median == 0 {
		return 0
	}
	distances := make([]float64, len(all))
	for i, v := range all {
		distances[i] = math.Abs(v/median - 1)
	}
	return benchmarks.Median(distances)
}

// sort puts the best first.
func (r *results) sort(samples []sample, higher bool) {
	slices.SortStableFunc(samples, func(a, b sample) int {
		x, _ := r.value(a)
		y, _ := r.value(b)
		if higher {
			x, y = y, x
		}
		return cmp.Compare(x, y)
	})
}

// line formats a row for the table.
func (r *results) line(w row) string {
	best := min(1, len(w.rivals))
	var numbers, ratios []string
	for _, s := range w.mine {
		number, ratio := "void", "—"
		if w.void[s] == "" {
			number = r.number(s)
			for _, rival := range w.rivals[:best] {
				if v, ok := r.ratio(s, rival); ok {
					ratio = strconv.FormatFloat(v, 'f', 2, 64)
				}
			}
		}
		numbers, ratios = append(numbers, number), append(ratios, ratio)
	}
	if w.unknown {
		numbers = []string{"not known"}
	}
	if best == 0 {
		ratios = []string{"—"}
	}
	others := append(slices.Clone(w.rivals[best:]), r.voidOf(w, benchmarks.Rival)...)
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %s |\n", w.Title, strings.Join(numbers, " / "),
		r.named(w, w.rivals[:best]), strings.Join(ratios, " / "), w.goal, r.verdict(w),
		r.named(w, others), r.named(w, append(slices.Clone(w.floors), r.voidOf(w, benchmarks.Floor)...)))
}

// voidOf returns the void values of the libraries of a kind.
func (r *results) voidOf(w row, kind benchmarks.Kind) (void []sample) {
	for _, l := range partOf(w.Group).libraries {
		s := sample{w.Name, l.Name, w.Unit}
		if w.void[s] != "" && l.Kind == kind {
			void = append(void, s)
		}
	}
	return void
}

// table formats a table, and says below it which values are void and why.
func (r *results) table(g benchmarks.Group) string {
	var b strings.Builder
	b.WriteString(notes[g] + "| case | this library | best rival | ratio | goal | | other rivals | floors |\n|---|---|---|---|---|---|---|---|\n")
	var void []string
	for _, w := range r.rows(g) {
		b.WriteString(r.line(w))
		for _, s := range w.all {
			if why := w.void[s]; why != "" {
				void = append(void, fmt.Sprintf("- *%s*: %s: %s\n", fullTitle(w), s.library, why))
			}
		}
	}
	b.WriteString("\n")
	if len(void) > 0 {
		b.WriteString("Void:\n\n" + strings.Join(void, "") + "\n")
	}
	return b.String()
}

func (r *results) named(w row, samples []sample) string {
	if len(samples) == 0 {
		return "—"
	}
	var all []string
	for _, s := range samples {
		number := "void"
		if w.void[s] == "" {
			number = r.number(s)
		}
		all = append(all, s.library+" "+number)
	}
	return strings.Join(all, ", ")
}

// notes are the texts before the tables.
var notes = map[benchmarks.Group]string{
	benchmarks.Speed:          "![In memory](docs/bench-memory.svg)\n\n",
	benchmarks.Blocks:         blockNote,
	benchmarks.RedisBlocks:    blockNote,
	benchmarks.Calendars:      calendarNote,
	benchmarks.RedisCalendars: calendarNote,
	benchmarks.Rolling:        rollingNote,
	benchmarks.RedisRolling:   rollingNote,
	benchmarks.Holds:          "Rows of this library alone. A ratio is the median of 20 turns of 1,000 calls each.\n\n",
	benchmarks.RedisHolds: `Rows of this library alone. The release of a hold is a command of its own, which the caller does not wait for. Holds that
last for 3 s are renewed each second. The time is that in which a renewal is under way. The server's time is what it uses
more than without these requests; 0 is below what can be measured. During that time, one caller takes a unit of another
limiter every 0.5 ms.

`,
	benchmarks.Middleware: `![Middleware](docs/bench-middleware.svg)

The garbage collector runs less often, the larger the live heap is. So each row states the live heap of the process, and
there are rows with 64 MB besides, as in a server that has other work. On all cores, the requests of each core come from an
address of their own. In the other rows, all requests come from one address.

`,
	benchmarks.Waiting: "Rows of this library alone. No request waits: the rows show what it costs that one could.\n\n",
	benchmarks.Growing: `Rows of this library alone. The limits differ in their windows, and the plans in their numbers. Each limiter has a store in
memory with default options.

`,
	benchmarks.Server: `net/http over loopback, with 64 keep-alive connections. Each sends its next request as soon as it has the response, a 204.
The middleware and the bare handler are loaded in turn, 200 ms each, and a value is the median of these pairs. Higher is
better. The load comes from the same process and uses a part of the same cores.

`,
	benchmarks.Stress: `Each decision is timed by itself, from one goroutine, so the times include other work of the machine. The rows on growth
also show how long an idle loop was delayed just after. The rows on expiry are for this library only: most rivals sweep
the whole map under a lock from time to time, and no p99.9 shows that. Only throttled-lru also has a maximum number of
keys; the other rivals grow during a flood. Before the flood, 1,000 keys had used up their limit. These cases run once, and
repeat their measurements.

`,
}

const (
	blockNote = "Rows of this library alone: other libraries have no blocks. The rows without Block are the same cases, timed in turn with\n" +
		"the others.\n\n"
	calendarNote = "Rows of this library alone. The rows of FixedWindow are the same cases, timed in turn with the others.\n\n"
	rollingNote  = "Rows of this library alone, beside the same cases with a fixed window.\n\n"
)
