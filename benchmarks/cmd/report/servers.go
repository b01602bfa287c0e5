package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// A part is a section of the report about decisions on servers. The parts follow what was
// measured in memory, and can be measured by themselves.
type part struct {
	flag   string   // what -only calls it
	name   string   // in texts
	needs  []string // programs, and how to install them
	test   string   // functions of the module's tests
	bench  string
	head   string // the heading of the part
	chart  string // the file name
	groups []benchmarks.Group

	cases     []benchmarks.ServerCase
	libraries []benchmarks.ServerLibrary
	reasons   map[string]string // why goals are missed, by the case's name

	intro func(r *results) string
	exact string // how it was checked that libraries admit what they should
}

// parts are in the order of the report.
var parts = []*part{redisPart, postgresPart}

// partOf returns the part that has a table, or nil.
func partOf(g benchmarks.Group) *part {
	for _, p := range parts {
		if slices.Contains(p.groups, g) {
			return p
		}
	}
	return nil
}

// textFrom returns the text of a file from the first of some parts on, or an empty string.
func textFrom(file string, parts []*part) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for _, p := range parts {
		if i := strings.Index(string(text), p.head); i >= 0 {
			return string(text[i:])
		}
	}
	return ""
}

// compared returns the cases and libraries of a table.
func compared(g benchmarks.Group) (cases []benchmarks.Case, libraries []benchmarks.Library) {
	p := partOf(g)
	if p == nil {
		return benchmarks.Cases, benchmarks.Libraries
	}
	for _, c := range p.cases {
		cases = append(cases, c.Case)
	}
	for _, l := range p.libraries {
		libraries = append(libraries, l.Library)
	}
	return cases, libraries
}

// runPart runs the cases of a part and writes it. If a program is missing, it logs that, and
// does not change the file.
func (r *results) runPart(p *part, rounds int, benchtime, bench, out, charts string, log func(string, ...any)) error {
	for _, program := range p.needs {
		if found, _ := filepath.Glob(program); len(found) == 0 {
			if _, err := exec.LookPath(program); err != nil {
				log("%s is not there, so what was measured on %s is left as it is: install the Debian packages redis-server and postgresql", program, p.name)
				return nil
			}
		}
	}
	r.command = fmt.Sprintf("go run ./cmd/report -only %s -rounds %d -benchtime %s", p.flag, rounds, benchtime)
	start := time.Now()
	log("checking each library on %s for exactness", p.name)
	if err := goTest(r.read, "-v", "-count=1", "-run", "^"+p.test+"$"); err != nil {
		return err
	}
	for round := range rounds {
		rows := 0
		err := goTest(func(line string) {
			if r.read(line); strings.HasPrefix(line, "Benchmark") {
				rows++
				log("%s, round %d of %d, row %3d, %s: %s", p.name, round+1, rounds, rows, time.Since(start).Round(time.Second), line)
			}
		}, "-run", "^$", "-timeout", "0", "-bench", "^"+p.bench+"$/"+bench, "-benchtime", benchtime)
		if err != nil {
			return err
		}
	}
	text, err := os.ReadFile(out)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	at := slices.Index(parts, p)
	after := textFrom(out, parts[at+1:])
	before := strings.TrimSuffix(string(text), textFrom(out, parts[at:]))
	for path, text := range map[string]string{
		out:                            before + r.partMarkdown(p) + after,
		filepath.Join(charts, p.chart): r.chart("On "+p.name, p.groups[0], p.groups[len(p.groups)-1]),
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
		log("wrote %s", path)
	}
	return nil
}

// partMarkdown is the text of a part.
func (r *results) partMarkdown(p *part) string {
	var b strings.Builder
	b.WriteString(p.head + p.intro(r))
	fmt.Fprintf(&b, "- Command, in the folder benchmarks: `%s`\n\n![On %s](docs/%s)\n\n", r.command, p.name, p.chart)
	for _, group := range p.groups {
		fmt.Fprintf(&b, "### On %s\n\n%s| case | this library | best rival | ratio | goal | | other rivals | floors |\n"+
			"|---|---|---|---|---|---|---|---|\n", strings.TrimPrefix(string(group), p.name+", "), notes[group])
		for _, w := range r.rows(group) {
			b.WriteString(r.line(w))
		}
		b.WriteString("\n")
	}
	cases, _ := compared(p.groups[0])
	b.WriteString(r.missedOf("### Missed goals on "+p.name, cases, p.reasons))
	fmt.Fprintf(&b, "### What was compared on %s\n\n| name | module | configuration |\n|---|---|---|\n", p.name)
	for _, l := range p.libraries {
		module := cmp.Or(strings.TrimSpace(l.Module+" "+r.versions[l.Module]), "in this repository")
		fmt.Fprintf(&b, "| %s | %s | %s |\n", l.Name, module, l.Setup)
	}
	b.WriteString("\nBefore it was timed, each library was asked for 2,560 units of a limit of 1,000, by one goroutine and by 64" + p.exact + ". ")
	if len(r.inexact) == 0 {
		b.WriteString("All admitted exactly 1,000.\n")
	} else {
		fmt.Fprintf(&b, "All admitted exactly 1,000, but:\n\n- %s\n", strings.Join(r.inexact, "\n- "))
	}
	return b.String()
}

// version returns what a program says that it is, or fallback.
func version(fallback, program string, args ...string) string {
	out, err := exec.Command(program, args...).Output()
	if err != nil {
		return fallback
	}
	return string(out)
}
