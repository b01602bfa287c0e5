package main

import (
	"fmt"
	"strings"
	"testing"
)

// reportOf returns the page of some output of go test.
func reportOf(r *results, p *part, output string) string {
	for line := range strings.Lines(output) {
		r.read(strings.TrimSuffix(line, "\n"))
	}
	return r.markdown(p)
}

// wantAll checks that a page has some texts.
func wantAll(t *testing.T, page string, texts ...string) {
	t.Helper()
	for _, want := range texts {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
}

const allExact = `
    redis_test.go:45: exact: fixed
    redis_test.go:45: exact: bucket
    redis_test.go:45: exact: ulule
    redis_test.go:45: exact: redis_rate
`

// A broken library has no value, no ratio and no verdict, and is nobody's best rival. The page
// says why.
func TestVoid(t *testing.T) {
	row := func(library string, rates ...float64) (text string) {
		for _, v := range rates {
			text += fmt.Sprintf("BenchmarkRedis/redis-hot/%s-2 	 1	 1.0 allocs/op	 %.0f op/s\n", library, v)
		}
		return text
	}
	good := row("fixed", 900, 450, 900, 450) + row("ulule", 100, 50, 100, 50) + row("redis_rate", 80, 40, 80, 40)
	const goal = "≥ 3 × (fixed), ≥ 3 × (bucket), ≥ 30 × (leased), ≤ 8 allocations"
	for name, test := range map[string]struct {
		output string
		want   []string
	}{
		"nothing is broken": {allExact + good, []string{
			"| 675 (1) | ulule 75 (1) | 9.00 | " + goal + " | met | redis_rate 60 (1) | — |\n",
		}},
		"this library fails in one round": {allExact + good + "BenchmarkRedis/redis-hot/bucket-2 \t--- FAIL: BenchmarkRedis/redis-hot/bucket\n" +
			"    entrant.go:217: 9 of 10 decisions were wrong: a decision comes from the fallback\n" + row("bucket", 9e6, 9e6, 9e6), []string{
			"| 675 (1) / void | ulule 75 (1) | 9.00 / — | " + goal + " | met / void | redis_rate 60 (1) | — |\n",
			"\nVoid:\n\n- *64 callers, one key, decisions/s*: bucket: 9 of 10 decisions were wrong: a decision comes from the fallback\n",
		}},
		"the best rival has errors": {allExact + good + "--- FAIL: BenchmarkRedis/redis-hot/ulule\n    entrant.go:217: 1 of 10 decisions were wrong: EOF\n", []string{
			"| 675 (1) | redis_rate 60 (1) | 11.25 | " + goal + " | met | ulule void | — |\n",
			"ulule: 1 of 10 decisions were wrong: EOF\n",
		}},
		"the best rival admits too much": {strings.Replace(allExact, "exact: ulule", "not exact: ulule admitted 1003 of 1000 (server, goroutines: 64)", 1) + good, []string{
			"| 675 (1) | redis_rate 60 (1) | 11.25 | " + goal + " | met | ulule void | — |\n",
			"ulule: not exact: it admitted 1003 of 1000 (server, goroutines: 64)\n",
		}},
		"this library was not checked": {strings.Replace(allExact, "exact: fixed", "", 1) + good, []string{
			"| void | ulule 75 (1) | — | " + goal + " | void | redis_rate 60 (1) | — |\n",
			"fixed: it was not checked for exactness\n",
		}},
		"this library varies": {allExact + row("fixed", 900, 2000, 900, 2000) + row("ulule", 100, 100, 100, 100) + row("redis_rate", 80, 80, 80, 80), []string{
			"| void | ulule 100 (1) | — | " + goal + " | void | redis_rate 80 (1) | — |\n",
			"fixed: rounds differ: the spread is 38 %\n",
		}},
		"the best rival varies": {allExact + row("fixed", 900, 900, 900, 900) + row("ulule", 100, 500, 100, 500) + row("redis_rate", 80, 80, 80, 80), []string{
			"| 900 (1) | redis_rate 80 (1) | 11.25 | " + goal + " | met | ulule void | — |\n",
			"ulule: rounds differ: the spread is 67 %\n",
		}},
		"a round is missing": {allExact + good + row("bucket", 900, 450, 900), []string{
			"| 675 (1) / void |", "bucket: 3 of 4 rounds were measured\n",
		}},
		"no rival is left": {strings.Replace(strings.Replace(allExact, "exact: ulule", "", 1), "exact: redis_rate", "", 1) + good, []string{
			"| 675 (1) | — | — | " + goal + " | no rival | ulule void, redis_rate void | — |\n",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got := reportOf(new(results), redisPart, test.output)
			wantAll(t, got, test.want...)
			if strings.Contains(got, "Void:") == (name == "nothing is broken") {
				t.Errorf("the list of void values in\n%s", got)
			}
		})
	}
}

// A library's name can look as if it ended in the number of cores.
func TestNames(t *testing.T) {
	for name, want := range map[string]string{
		"BenchmarkPostgres/a/upsert-of-64": "upsert-of-64", "BenchmarkPostgres/a/upsert-of-64-8": "upsert-of-64",
		"Benchmark/a/fixed-16": "fixed", "Benchmark/a/fixed": "fixed",
	} {
		if _, got, ok := nameOf(name); !ok || got != want {
			t.Errorf("%s has the library %q, want %q", name, got, want)
		}
	}
}
