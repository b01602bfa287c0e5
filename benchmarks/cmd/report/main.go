// Report runs all benchmarks of this module and writes BENCHMARKS.md. Run it in
// the folder benchmarks:
//
//	go run ./cmd/report
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

func main() {
	log := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	if err := run(os.Args[1:], log); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			log("report: %v", err)
		}
		os.Exit(1)
	}
}

func run(args []string, log func(format string, args ...any)) error {
	flags := flag.NewFlagSet("report", flag.ContinueOnError)
	rounds := flags.Int("rounds", 4, "how often to run everything: each round times every library once, in turn")
	benchtime := flags.String("benchtime", "150ms", "how long each benchmark runs, as for go test")
	bench := flags.String("bench", ".", "which cases, as for go test")
	out := flags.String("o", "../BENCHMARKS.md", "the file to write")
	charts := flags.String("charts", "../docs", "the folder to write charts to")
	only := flags.String("only", "", "the part to run: memory, redis or postgres; what the file has of the others stays")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *rounds < 1 {
		return fmt.Errorf("want flags only, and at least one round: %q", args)
	}

	r := &results{
		command: fmt.Sprintf("go run ./cmd/report -rounds %d -benchtime %s", *rounds, *benchtime),
		machine: fmt.Sprintf("%d cores, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version()),
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		r.versions = versions(info)
	}
	run := func(p *part) error {
		r := &results{machine: r.machine, versions: r.versions}
		return r.runPart(p, *rounds, *benchtime, *bench, *out, *charts, log)
	}
	for _, p := range parts {
		if *only == p.flag {
			return run(p)
		}
	}
	if *only != "" && *only != "memory" {
		return fmt.Errorf("-only is %q: want memory, redis or postgres", *only)
	}
	start := time.Now()
	log("checking each library for exactness")
	if err := goTest(r.read, "-v", "-count=1", "-run", "^TestExact$"); err != nil {
		return err
	}
	pass := func(name, function, benchtime string) error {
		rows := 0
		return goTest(func(line string) {
			if r.read(line); strings.HasPrefix(line, "Benchmark") {
				rows++
				log("%s, row %3d, %s: %s", name, rows, time.Since(start).Round(time.Second), line)
			}
		}, "-run", "^$", "-timeout", "0", "-bench", "^"+function+"$/"+*bench, "-benchtime", benchtime)
	}
	for round := range *rounds {
		if err := pass(fmt.Sprintf("round %d of %d", round+1, *rounds), "Benchmark", *benchtime); err != nil {
			return err
		}
	}
	if err := pass("the long ones", "BenchmarkLong", "1x"); err != nil {
		return err
	}
	for path, text := range map[string]string{
		*out: r.markdown() + textFrom(*out, parts),
		filepath.Join(*charts, "bench-memory.svg"):     r.chart("In memory", benchmarks.Speed, benchmarks.Size),
		filepath.Join(*charts, "bench-middleware.svg"): r.chart("Middleware", benchmarks.Middleware, benchmarks.Server),
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
		log("wrote %s", path)
	}
	if *only == "memory" {
		return nil
	}
	for _, p := range parts {
		if err := run(p); err != nil {
			return err
		}
	}
	return nil
}

// goTest runs the tests of the folder it is called in and hands over what they
// print, line by line.
func goTest(read func(line string), args ...string) error {
	cmd := exec.Command("go", append([]string{"test"}, args...)...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	var all strings.Builder
	lines := bufio.NewScanner(io.TeeReader(pipe, &all))
	for lines.Scan() {
		read(lines.Text())
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd, err, all.String())
	}
	return nil
}

// versions are the versions of the modules that are part of this program, by path.
func versions(info *debug.BuildInfo) map[string]string {
	all := make(map[string]string)
	for _, m := range info.Deps {
		all[m.Path] = m.Version
	}
	return all
}
