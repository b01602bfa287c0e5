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

// A part is a section of the report. Each can be measured by itself.
type part struct {
	flag   string   // what -only calls it
	name   string   // in texts
	needs  []string // programs
	test   string   // the test that checks libraries for exactness
	bench  string   // the benchmark function
	long   string   // a benchmark function that runs once; there may be none
	head   string   // the heading of the part, from which on the file is its text
	level  string   // the headings below
	on     string   // follows the names of tables
	charts []picture
	groups []benchmarks.Group

	cases     []benchmarks.Case
	libraries []benchmarks.Library

	intro func(r *results) string
	exact string // how it was checked that libraries admit what they should
}

// A picture shows some tables.
type picture struct {
	file, title string
	groups      []benchmarks.Group
}

// parts are in the order of the report.
var parts = []*part{memoryPart, redisPart, postgresPart}

// partOf returns the part that has a table.
func partOf(g benchmarks.Group) *part {
	return parts[slices.IndexFunc(parts, func(p *part) bool { return slices.Contains(p.groups, g) })]
}

// onServers returns the cases and libraries of a part about servers in the form of any part.
func onServers(serverCases []benchmarks.ServerCase, serverLibraries []benchmarks.ServerLibrary) (cases []benchmarks.Case, libraries []benchmarks.Library) {
	for _, c := range serverCases {
		cases = append(cases, c.Case)
	}
	for _, l := range serverLibraries {
		libraries = append(libraries, l.Library)
	}
	return cases, libraries
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

// missing returns a program that a part needs and this machine does not have, or an empty string.
func (p *part) missing() string {
	for _, program := range p.needs {
		if found, _ := filepath.Glob(program); len(found) == 0 {
			if _, err := exec.LookPath(program); err != nil {
				return program
			}
		}
	}
	return ""
}

// settings are the flags of a run.
type settings struct {
	rounds                       int
	tests                        string // the binary
	benchtime, bench, out, files string
	log                          func(format string, args ...any)
}

// run runs the cases of a part and writes it. If a program is missing, it logs that, and does
// not change the file.
func (r *results) run(p *part, o settings) error {
	if program := p.missing(); program != "" {
		o.log("%s is not there, so what was measured on %s is left as it is: install the Debian packages redis-server and postgresql", program, p.name)
		return nil
	}
	start := time.Now()
	o.log("%s: checking each library for exactness", p.name)
	if err := lines(exec.Command(o.tests, "-test.v", "-test.run", "^"+p.test+"$"), r.read); err != nil && len(r.exact) == 0 {
		return err // otherwise the rows of libraries that were not exact are void
	}
	pass := func(name, function, benchtime string) error {
		rows := 0
		cmd := exec.Command(o.tests, "-test.run", "^$", "-test.bench", "^"+function+"$/"+o.bench, "-test.benchtime", benchtime)
		err := lines(cmd, func(line string) {
			if r.read(line); strings.HasPrefix(line, "Benchmark") {
				rows++
				o.log("%s, %s, row %3d, %s: %s", p.name, name, rows, time.Since(start).Round(time.Second), line)
			}
		})
		if err != nil && len(r.failed) > 0 && !crashed(err) {
			o.log("some rows are void: %v", r.failed)
			return nil
		}
		return err
	}
	for round := range o.rounds {
		if err := pass(fmt.Sprintf("round %d of %d", round+1, o.rounds), p.bench, o.benchtime); err != nil {
			return err
		}
	}
	if p.long != "" {
		if err := pass("the long ones", p.long, "1x"); err != nil {
			return err
		}
	}
	return r.write(p, o)
}

// crashed reports whether the output in an error of lines is of tests that did not end by themselves.
// Then there can be rows of which nothing was printed.
func crashed(err error) bool {
	for line := range strings.Lines(err.Error()) {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") || strings.HasPrefix(line, "signal: ") {
			return true
		}
	}
	return false
}

// write replaces the part in the file, and leaves the other parts as they are.
func (r *results) write(p *part, o settings) error {
	text, err := os.ReadFile(o.out)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	at := slices.Index(parts, p)
	after := textFrom(o.out, parts[at+1:])
	before := strings.TrimSuffix(string(text), textFrom(o.out, parts[at:]))
	files := map[string]string{o.out: before + r.markdown(p) + after}
	for _, c := range p.charts {
		files[filepath.Join(o.files, c.file)] = r.chart(c.title, c.groups...)
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
		o.log("wrote %s", path)
	}
	return nil
}

// markdown is the text of a part.
func (r *results) markdown(p *part) string {
	var b strings.Builder
	b.WriteString(p.head + p.intro(r))
	fmt.Fprintf(&b, "- Command, in the folder benchmarks: `%s`\n\n", r.command)
	for _, g := range p.groups {
		if len(r.rows(g)) > 0 {
			title := string(g)
			if p.on != "" { // the heading of the part has its name
				title = "On " + strings.TrimPrefix(title, p.name+", ")
			}
			fmt.Fprintf(&b, "%s %s\n\n%s", p.level, title, r.table(g))
		}
	}
	if missed := r.missed(p); missed != "" {
		fmt.Fprintf(&b, "%s Missed goals%s\n\n%s\n", p.level, p.on, missed)
	}
	fmt.Fprintf(&b, "%s What was compared%s\n\n| name | module | configuration |\n|---|---|---|\n", p.level, p.on)
	for _, l := range p.libraries {
		module := cmp.Or(strings.TrimSpace(l.Module+" "+r.versions[l.Module]), "in this repository")
		fmt.Fprintf(&b, "| %s | %s | %s |\n", l.Name, module, l.Setup)
	}
	fmt.Fprintf(&b, "\n%s ", p.exact)
	if len(r.inexact) == 0 {
		b.WriteString("All admitted exactly 1,000.\n")
	} else {
		fmt.Fprintf(&b, "All admitted exactly 1,000, except:\n\n- %s\n", strings.Join(r.inexact, "\n- "))
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
