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

// results are the numbers of all rounds.
type results struct {
	command  string
	machine  string
	cpu      string
	versions map[string]string
	inexact  []string
	samples  map[sample][]float64 // in the order of the rounds
}

// sample identifies a measured value.
type sample struct{ bench, library, unit string }

// read parses a line of go test's output and stores its samples.
func (r *results) read(line string) {
	if _, text, ok := strings.Cut(line, "not exact: "); ok {
		r.inexact = append(r.inexact, text)
	}
	if cpu, ok := strings.CutPrefix(line, "cpu: "); ok {
		r.cpu = strings.TrimSpace(cpu)
	}
	fields := strings.Fields(line)
	if len(fields) < 4 || !strings.HasPrefix(line, "Benchmark") {
		return
	}
	_, name, _ := strings.Cut(fields[0], "/")
	if i := strings.LastIndexByte(name, '-'); i >= 0 { // the suffix for GOMAXPROCS, absent if that is 1
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
	for pair := range slices.Chunk(fields[2:], 2) { // pairs of value and unit, after the number of iterations
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
	return benchmarks.Median(all), len(all) > 0
}

// ratio is the median of the ratios of single rounds, because a machine that is
// slower in one round is slower for both. If b is only noise, as the difference of
// two times can be, there is no ratio.
func (r *results) ratio(a, b sample) (float64, bool) {
	x, y := r.samples[a], r.samples[b]
	var ratios []float64
	for i := range min(len(x), len(y)) {
		if y[i] < 0.5 && !strings.HasPrefix(b.unit, "x/") {
			return 0, false
		}
		ratios = append(ratios, x[i]/y[i])
	}
	return benchmarks.Median(ratios), len(ratios) > 0
}

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
	if allocs, _ := r.value(sample{s.bench, s.library, "allocs/op"}); allocs > 0 && slices.Contains(timed, s.unit) {
		text += fmt.Sprintf(" (%.0f)", allocs)
	}
	return text
}

// timed are the units of a case's first measure. Its value is shown with the allocations.
var timed = []string{"ns/op", "us/op", "op/s"}

// row is a line of a table.
type row struct {
	benchmarks.Case
	benchmarks.Measure
	ours, rivals, floors []sample // rivals are sorted, the best first
}

// rows returns the rows of a table that were measured.
func (r *results) rows(g benchmarks.Group) (all []row) {
	cases, libraries := compared(g)
	for _, c := range cases {
		for _, m := range c.Measures {
			if m.Group != g {
				continue
			}
			var of [3][]sample
			for _, l := range libraries {
				s := sample{c.Name, l.Name, m.Unit}
				if _, ok := r.value(s); ok {
					of[l.Kind] = append(of[l.Kind], s)
				}
			}
			r.sort(of[benchmarks.Rival], m.Higher)
			if len(of[benchmarks.Ours]) > 0 {
				all = append(all, row{c, m, of[benchmarks.Ours], of[benchmarks.Rival], of[benchmarks.Floor]})
			}
		}
	}
	return all
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
	for _, s := range w.ours {
		numbers = append(numbers, r.number(s))
		for _, rival := range w.rivals[:best] {
			text := "—"
			if ratio, ok := r.ratio(s, rival); ok {
				text = strconv.FormatFloat(ratio, 'f', 2, 64)
			}
			ratios = append(ratios, text)
		}
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %s |\n", w.Title, strings.Join(numbers, " / "),
		r.named(w.rivals[:best]), cmp.Or(strings.Join(ratios, " / "), "—"), w.Goal, r.verdict(w),
		r.named(w.rivals[best:]), r.named(w.floors))
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

const blockNote = "Rows of this library alone: other libraries have no blocks. The rows without Block are the same cases, timed in turn with\n" +
	"the others. Command for these rows, in the folder benchmarks: "

const calendarNote = "Rows of this library alone. The rows of FixedWindow are the same cases, timed in turn with the others. Command for these\n" +
	"rows, in the folder benchmarks: "

const rollingNote = "Rows of this library alone, beside the same cases with a fixed window. Command for these rows, in the folder benchmarks: "

const redisHoldsNote = "Rows of this library alone. The release of a hold is a command of its own, which the caller does not wait for. Holds that\n" +
	"last for 3 s are renewed each second. The time is that in which a renewal is under way. The\n" +
	"server's time is what it uses more than without these requests; 0 is below what can be measured. During that time, one caller\n" +
	"takes a unit of another limiter every 0.5 ms. Command for these rows, in the folder benchmarks: "

// notes are the texts before the tables.
var notes = map[benchmarks.Group]string{
	benchmarks.Speed:          "![In memory](docs/bench-memory.svg)\n\n",
	benchmarks.Blocks:         blockNote + "`go run ./cmd/report -only memory -rounds 9 -benchtime 50ms -bench block-`\n\n",
	benchmarks.RedisBlocks:    blockNote + "`go run ./cmd/report -only redis -rounds 9 -benchtime 200ms -bench redis-block`\n\n",
	benchmarks.Calendars:      calendarNote + "`go run ./cmd/report -only memory -rounds 9 -benchtime 50ms -bench calendar-`\n\n",
	benchmarks.RedisCalendars: calendarNote + "`go run ./cmd/report -only redis -rounds 9 -benchtime 200ms -bench redis-calendar`\n\n",
	benchmarks.Rolling:        rollingNote + "`go run ./cmd/report -only memory -rounds 9 -benchtime 50ms -bench rolling-`\n\n",
	benchmarks.RedisRolling:   rollingNote + "`go run ./cmd/report -only redis -rounds 9 -benchtime 200ms -bench redis-rolling`\n\n",
	benchmarks.Middleware:     "![Middleware](docs/bench-middleware.svg)\n\n",
	benchmarks.Holds: "Rows of this library alone. A ratio is the median of 20 turns of 1,000 calls each. Command for these rows, in the folder\n" +
		"benchmarks: `go run ./cmd/report -only memory -rounds 9 -benchtime 50ms -bench inflight-`\n\n",
	benchmarks.RedisHolds: redisHoldsNote + "`go run ./cmd/report -only redis -rounds 5 -benchtime 100ms -bench redis-inflight`\n\n",
	benchmarks.Waiting: "Rows of this library alone. No request waits: the rows show what it costs that one could. Command for these rows, in the folder\n" +
		"benchmarks: `go run ./cmd/report -only memory -rounds 9 -benchtime 50ms -bench wait-`\n\n",
	benchmarks.Server: `net/http over loopback, with 64 keep-alive connections. Each sends its next request as soon as it has the response, a 204.
The middleware and the bare handler are loaded in turn, 200 ms each, and a value is the median of these pairs. Higher is
better. The load comes from the same process and uses a part of the same cores.

`,
	benchmarks.Stress: `Each decision is timed by itself, from one goroutine, so the times include other work of the machine. The rows on growth
also show how long an idle loop was delayed just after. The rows on expiry are for this library only: most rivals sweep
the whole map under a lock from time to time, and no p99.9 shows that. Only throttled-lru also has a maximum number of
keys; the other rivals grow during a flood. Before the flood, 1,000 keys had used up their limit.

`,
}

// markdown is the whole report.
func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Benchmarks

This page compares this library with other libraries, and with floors: code that does only what no library can avoid.

- A value is the median of all rounds.
- A ratio is this library's value divided by the best rival's: the median of the ratios within single rounds, in which
  the libraries are timed one right after the other. So it is not the quotient of the two values beside it. For times, a
  ratio below 1 means that this library is ahead.
- If this library has two values, they are for a fixed window / a token bucket. A third one, on Redis, is for a fixed
  window with a lease.
- Numbers in parentheses are allocations, if there are any.

- Machine: %s; %s
- Command, in the folder benchmarks: %s

`, r.cpu, r.machine, "`"+r.command+"`")
	for _, group := range []benchmarks.Group{benchmarks.Speed, benchmarks.Blocks, benchmarks.Rolling, benchmarks.Calendars, benchmarks.Holds, benchmarks.Size, benchmarks.Middleware, benchmarks.Waiting, benchmarks.Server, benchmarks.Stress} {
		rows := r.rows(group)
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintf(&b, "## %s\n\n%s| case | this library | best rival | ratio | goal | | other rivals | floors |\n"+
			"|---|---|---|---|---|---|---|---|\n", group, notes[group])
		for _, w := range rows {
			b.WriteString(r.line(w))
		}
		b.WriteString("\n")
	}
	b.WriteString(r.missed())
	b.WriteString("## What was compared\n\n| name | module | configuration |\n|---|---|---|\n")
	for _, l := range benchmarks.Libraries {
		module := "in this repository"
		if l.Module != "" {
			module = strings.TrimSpace(l.Module + " " + r.versions[l.Module])
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", l.Name, module, l.Setup)
	}
	b.WriteString("\nNo library gets the number of keys in advance, and maxima are above it. Requests are limited by their address.\n" +
		"Before it was timed, each library was asked for 2,560 units of a limit of 1,000, by one goroutine and by 64, directly\n" +
		"and through its middleware. ")
	if len(r.inexact) == 0 {
		b.WriteString("All admitted exactly 1,000.\n")
	} else {
		fmt.Fprintf(&b, "All admitted exactly 1,000, but:\n\n- %s\n", strings.Join(r.inexact, "\n- "))
	}
	return b.String()
}
