// Report runs all benchmarks of this module and writes BENCHMARKS.md, with its charts. Run it in
// the folder benchmarks:
//
//	go run ./cmd/report
//
// That takes about 20 minutes on two idle cores. One part of it:
//
//	go run ./cmd/report -only redis
//
// With -check it compares two versions of this library instead, and writes no file:
//
//	go run ./cmd/report -check main HEAD
//	go run ./cmd/report -check -bench '^hot' main ./new.test
//
// A version is a git revision, or a file that go test -c has built in this folder. The rows of
// this library run from both in turn. The exit status is 1 if a row became slower.
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
	"slices"
	"strings"
)

const usage = `Usage: report [flags]
       report -check [flags] OLD NEW

Without -check, report runs all benchmarks and writes BENCHMARKS.md, all of its tables from one run. That takes about
20 minutes on two idle cores. With -check, it compares two versions of this library: git revisions, or
files that go test -c has built. Its exit status is 1 if a row became slower.

`

func main() {
	log := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	if err := run(os.Args[1:], os.Stdout, log); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			log("report: %v", err)
		}
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer, log func(format string, args ...any)) error {
	o := settings{log: log}
	flags := flag.NewFlagSet("report", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	flags.IntVar(&o.rounds, "rounds", 0, "how often to run everything: each round times every library once, in turn; 0 means 4, and 10 with -check")
	flags.StringVar(&o.benchtime, "benchtime", "", "how long each benchmark runs, as for go test; empty means 150ms, and 50ms with -check")
	flags.StringVar(&o.bench, "bench", ".", "which cases, as for go test; the page then has only these rows")
	flags.StringVar(&o.out, "o", "../BENCHMARKS.md", "the file to write")
	flags.StringVar(&o.files, "charts", "../docs", "the folder to write charts to")
	only := flags.String("only", "", "the part to run: memory, redis or postgres; what the file has of the others stays. Empty means all, and memory with -check")
	check := flags.Bool("check", false, "compare two versions of this library, which are the arguments")
	if err := flags.Parse(args); err != nil {
		return err
	}
	selected := slices.Clone(parts)
	if *only != "" {
		selected = slices.DeleteFunc(selected, func(p *part) bool { return p.flag != *only })
	}
	switch {
	case len(selected) == 0:
		return fmt.Errorf("-only is %q: want memory, redis or postgres", *only)
	case o.rounds < 0:
		return fmt.Errorf("-rounds is %d: want at least one round", o.rounds)
	case *check && flags.NArg() != 2:
		return fmt.Errorf("-check has the arguments %q: want two versions, the old one first", flags.Args())
	case !*check && flags.NArg() > 0:
		return fmt.Errorf("the arguments are %q: want flags only, except with -check", flags.Args())
	}
	if *check {
		if *only == "" {
			selected = []*part{memoryPart}
		}
		setDefaults(&o, 10, "50ms")
		return compare(flags.Arg(0), flags.Arg(1), selected[0], o, stdout)
	}
	setDefaults(&o, 4, "150ms")
	command := fmt.Sprintf("go run ./cmd/report -rounds %d -benchtime %s", o.rounds, o.benchtime)
	if *only != "" {
		command += " -only " + *only
	}
	if o.bench != "." {
		command += " -bench '" + o.bench + "'"
	}
	var known map[string]string
	if info, ok := debug.ReadBuildInfo(); ok {
		known = versions(info)
	}
	// All parts and rounds run from one binary, so that nobody's edits get into a part of them.
	dir, err := os.MkdirTemp("", "report-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o.tests = filepath.Join(dir, "benchmarks.test")
	if err := build(".", o.tests); err != nil {
		return err
	}
	for _, p := range selected {
		r := &results{
			command:  command,
			machine:  fmt.Sprintf("%d cores, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version()),
			versions: known,
		}
		if err := r.run(p, o); err != nil {
			return err
		}
	}
	return nil
}

func setDefaults(o *settings, rounds int, benchtime string) {
	if o.rounds == 0 {
		o.rounds = rounds
	}
	if o.benchtime == "" {
		o.benchtime = benchtime
	}
}

// build builds the tests in a folder.
func build(folder, file string) error {
	cmd := exec.Command("go", "test", "-c", "-o", file, ".")
	cmd.Dir = folder
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the tests in %s: %w\n%s", folder, err, text)
	}
	return nil
}

// lines runs a command and hands over what it prints, line by line. An error includes all of it.
func lines(cmd *exec.Cmd, read func(line string)) error {
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var all, stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(io.TeeReader(pipe, &all))
	for lines.Scan() {
		read(lines.Text())
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil {
		return fmt.Errorf("%v: %w\n%s%s", cmd, err, all.String(), stderr.String())
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
