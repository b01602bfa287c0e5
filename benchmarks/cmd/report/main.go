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
	"runtime"
	"runtime/debug"
	"strings"
	"time"
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
	rounds := flags.Int("rounds", 5, "how often to run everything: each round times every library once, in turn")
	count := flags.Int("count", 1, "how often each benchmark runs within a round")
	benchtime := flags.String("benchtime", "150ms", "how long each benchmark runs, as for go test")
	bench := flags.String("bench", ".", "which benchmarks, as for go test")
	out := flags.String("o", "../BENCHMARKS.md", "the file to write")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *rounds < 1 || *count < 1 {
		return fmt.Errorf("want flags only, and at least one round and count: %q", args)
	}

	r := &results{
		command: fmt.Sprintf("go run ./cmd/report -rounds %d -count %d -benchtime %s", *rounds, *count, *benchtime),
		machine: fmt.Sprintf("%d cores, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version()),
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		r.versions = versions(info)
	}
	start := time.Now()
	log("checking each library for exactness")
	if err := goTest(r.read, "-v", "-count=1", "-run", "^TestExact$"); err != nil {
		return err
	}
	for round := range *rounds {
		rows := 0
		read := func(line string) {
			if r.read(line); strings.HasPrefix(line, benchPrefix) {
				rows++
				log("round %d of %d, row %3d, %s: %s", round+1, *rounds, rows, time.Since(start).Round(time.Second), line)
			}
		}
		err := goTest(read, "-run", "^$", "-timeout", "0", "-bench", *bench,
			"-benchtime", *benchtime, fmt.Sprintf("-count=%d", *count))
		if err != nil {
			return err
		}
	}
	if err := os.WriteFile(*out, []byte(r.markdown()), 0o644); err != nil {
		return err
	}
	log("wrote %s", *out)
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
