package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// fake makes a program that prints a row as a benchmark does, and whose values vary a little: each
// run is noisier than the difference of 1 % between the halves of its rounds.
func fake(t *testing.T, name, text string) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the programs are shell scripts")
	}
	path := filepath.Join(t.TempDir(), name)
	script := fmt.Sprintf("#!/bin/sh\nn=$(cat %[1]s.n 2>/dev/null || echo 0)\necho $((n+1)) >%[1]s.n\nd=$((n%%3))\n%s\n", path, text)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheck(t *testing.T) {
	hot := func(ns int) string {
		return fmt.Sprintf("echo \"Benchmark/hot/fixed-2 \t 100\t %d.${d} ns/op\t 0 allocs/op\"\n", ns)
	}
	for name, test := range map[string]struct {
		old, new string
		want     string // in the output
		err      string
	}{
		"the same":                 {hot(50), hot(50), "0 slower, 0 faster, 2 unchanged, 0 void, 0 not in both\n", ""},
		"slower":                   {hot(50), hot(60), "slower\n", "at least one row became slower"},
		"faster":                   {hot(50), hot(40), "0 slower, 1 faster, 1 unchanged, 0 void, 0 not in both\n", ""},
		"slower by less than 3 %":  {hot(100), hot(101), "0 slower, 0 faster, 2 unchanged, 0 void, 0 not in both\n", ""},
		"slower in most runs only": {hot(50), "[ $n -eq 4 ] && d=00 && echo \"Benchmark/hot/fixed-2 1 40 ns/op 0 allocs/op\" && exit\n" + hot(60), "0 slower, 0 faster, 2 unchanged", ""},
		"it allocates":             {hot(50), strings.ReplaceAll(hot(50), " 0 allocs", " 1 allocs"), "slower\n", "at least one row became slower"},
		"fewer decisions a second": {
			"echo \"Benchmark/server/fixed-2 1 900$d req/s 0.9 x/bare\"", "echo \"Benchmark/server/fixed-2 1 800$d req/s 0.9 x/bare\"",
			"slower\n", "at least one row became slower",
		},
		"a row fails": {
			hot(50), "printf -- 'Benchmark/hot/fixed-2 \t--- FAIL: Benchmark/hot/fixed\\n    runs.go:1: denied\\n'\nexit 1",
			"void: denied\n", "it is not known whether it became slower",
		},
		"another row":       {hot(50), hot(50) + strings.ReplaceAll(hot(50), "/hot/", "/hot-denied/"), "not in both\n", ""},
		"nothing":           {":", ":", "", "no row was measured"},
		"it cannot be run":  {hot(50), "echo 'panic: oh no'\nexit 2", "", "panic: oh no"},
		"it ends with FAIL": {hot(50), "echo FAIL\nexit 1", "", "exit status 1"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			err := run([]string{"-check", fake(t, "old", test.old), fake(t, "new", test.new)}, &out, func(string, ...any) {})
			if !strings.Contains(out.String(), test.want) {
				t.Errorf("no %q in\n%s", test.want, out.String())
			}
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error %v, want %q", err, test.err)
			}
			if errors.Is(err, errSlower) != strings.Contains(test.err, "slower") && !strings.Contains(test.err, "known") {
				t.Errorf("error %v", err)
			}
		})
	}
}

// Both programs run in each round, and the one that is first changes.
func TestCheckInTurn(t *testing.T) {
	hot := "echo \"Benchmark/hot/fixed-2 1 50 ns/op\"\n"
	old, new := fake(t, "old", hot), fake(t, "new", hot)
	var order strings.Builder
	log := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); strings.HasPrefix(text, "round ") {
			order.WriteString(filepath.Base(text)[:1])
		}
	}
	if err := run([]string{"-check", "-rounds", "8", old, new}, io.Discard, log); err != nil {
		t.Fatal(err)
	}
	if got, want := order.String(), strings.Repeat("onno", 4); got != want {
		t.Errorf("the order is %s, want %s", got, want)
	}
}

func TestArguments(t *testing.T) {
	for want, args := range map[string][]string{
		"-only is \"disk\"":             {"-only", "disk"},
		"want two versions":             {"-check", "one"},
		"want flags only":               {"one"},
		"-rounds is 7":                  {"-check", "-rounds", "7", "old", "new"},
		"-rounds is -1":                 {"-rounds", "-1"},
		"neither a file nor a git revi": {"-check", "no-such-revision", "HEAD"},
	} {
		if err := run(args, io.Discard, func(string, ...any) {}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", args, err, want)
		}
	}
}

func TestInterval(t *testing.T) {
	for n, outside := range map[int]int{8: 0, 10: 0, 12: 1, 20: 3} {
		var all []float64
		for i := range n {
			all = append(all, float64(i))
		}
		if _, least, most := interval(all); least != float64(outside) || most != float64(n-1-outside) {
			t.Errorf("of %d, the interval is %v to %v", n, least, most)
		}
	}
}
