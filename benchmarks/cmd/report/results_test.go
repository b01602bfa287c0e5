package main

import (
	"encoding/xml"
	"slices"
	"strings"
	"testing"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// Two rounds, as go test prints them. The machine was half as fast in the second.
const output = `
    bench_test.go:39: exact: fixed
    bench_test.go:39: exact: bucket
    bench_test.go:39: exact: go-limiter
    bench_test.go:39: exact: httprate
    bench_test.go:39: exact: ulule
    bench_test.go:39: not exact: tollbooth admitted 1003 of 1000 (take, goroutines: 64)
goos: linux
cpu: A Processor @ 2.00GHz
Benchmark/hot/fixed-8         	  984235	        50.0 ns/op	       0 B/op	       0 allocs/op
Benchmark/hot/bucket-8        	  877622	        60.0 ns/op	       0 B/op	       0 allocs/op
Benchmark/hot/go-limiter-8    	 1550235	       100.0 ns/op	       0 B/op	       0 allocs/op
Benchmark/hot/ulule-8         	  501015	       200.4 ns/op	      32 B/op	       2 allocs/op
Benchmark/hot/xsync-cas-8     	 3090541	        25.0 ns/op	       0 B/op	       0 allocs/op
Benchmark/million/fixed-8     	       1	        31.5 B/key	         0.92 ms/GC	       200.0 ns/key
Benchmark/million/httprate    	       1	        38.0 B/key	        -0.1 ms/GC	       100.0 ns/key
Benchmark/server/fixed-8      	       1	      90000 req/s	         0.95 x/bare
Benchmark/server/bucket-8     	       1	      90000 req/s	         0.92 x/bare
Benchmark/server/httprate-8   	       1	      70000 req/s	         0.70 x/bare
Benchmark/server/ulule-8      	       1	      80000 req/s	         0.80 x/bare
Benchmark/server/three-fields-8 	       1	      85000 req/s	         0.91 x/bare
BenchmarkLong/flood/fixed-8   	       1	      28.33 MB/after	         0 evicted-denied
PASS
Benchmark/hot/fixed-8         	  984235	       100.0 ns/op	       0 B/op	       0 allocs/op
Benchmark/hot/bucket-8        	  877622	       120.0 ns/op	       0 B/op	       0 allocs/op
Benchmark/hot/go-limiter-8    	 1550235	       200.0 ns/op	       0 B/op	       0 allocs/op
Benchmark/hot/ulule-8         	  501015	       400.0 ns/op	      32 B/op	       2 allocs/op
Benchmark/hot/xsync-cas-8     	 3090541	        50.0 ns/op	       0 B/op	       0 allocs/op
Benchmark/hot/tollbooth-8     	 1550235	        10.0 ns/op	       0 B/op	       0 allocs/op
Benchmark/hot/broken-8
ok  	github.com/ratelimit-go/ratelimit/benchmarks	84.843s
`

func TestReport(t *testing.T) {
	r := &results{
		command:  "go run ./cmd/report",
		machine:  "8 cores",
		versions: map[string]string{"github.com/ulule/limiter/v3": "v3.1.4"},
	}
	got := reportOf(r, memoryPart, output)
	wantAll(t, got,
		"- Machine: A Processor @ 2.00GHz; 8 cores\n",
		"`go run ./cmd/report`",
		"| one hot key, serial | 75 / 90 | go-limiter 150 | 0.50 / 0.60 | ≤ 0.75 × (fixed), ≤ 0.9 × (sliding), ≤ 0.85 × (bucket), 0 allocations | met | ulule 300 (2), tollbooth void | xsync-cas 38 |\n",
		"| insert, ns per new key | 200 | httprate 100 | 2.00 | ≤ 0.75 × | **missed** | — | — |\n", // a rival is ahead
		"| full GC, ms more than without them | 0.9 | httprate 0 | — | ≤ 1 | met | — | — |\n",
		"| by the bare handler's requests/s | 0.95 / 0.92 | ulule 0.80 | 1.19 / 1.15 | ≥ 0.93 | met / **missed** | httprate 0.70 | three-fields 0.91 |\n",
		"| — evicted while being denied | 0 | — | — | 0 | met | — | — |\n",
		"## Missed goals\n\n- a million keys: *insert, ns per new key*: a part of the time",
		"| ulule | github.com/ulule/limiter/v3 v3.1.4 |",
		"Void:\n\n- *one hot key, serial*: tollbooth: not exact: it admitted 1003 of 1000 (take, goroutines: 64)\n",
		"except:\n\n- tollbooth admitted 1003 of 1000 (take, goroutines: 64)\n",
	)
	if strings.Contains(got, "Zipf") || strings.Contains(got, "## Middleware") {
		t.Errorf("rows that were not measured in\n%s", got)
	}
}

// Each reason and each goal is for a case that there is.
func TestReasons(t *testing.T) {
	there := make(map[string]bool)
	for _, p := range parts {
		for _, c := range p.cases {
			there[c.Name] = true
			for _, m := range c.Measures {
				there[c.Name+" "+m.Unit] = true
				for _, b := range benchmarks.GoalOf(c, m) {
					if b.For != "" && !slices.ContainsFunc(p.libraries, func(l benchmarks.Library) bool { return l.Name == b.For }) {
						t.Errorf("%s: a goal is for %s, which is no library", c.Name, b.For)
					}
				}
			}
		}
	}
	for name := range reasons {
		if !there[name] {
			t.Errorf("there is a reason for %s, which is no case", name)
		}
	}
	for _, name := range benchmarks.GoalNames() {
		if !there[name] {
			t.Errorf("there is a goal for %s, which is no measure", name)
		}
	}
}

func TestChart(t *testing.T) {
	r := new(results)
	for line := range strings.Lines(output) {
		r.read(strings.TrimSuffix(line, "\n"))
	}
	got := r.chart("In memory & more", benchmarks.Speed, benchmarks.Size)
	if err := xml.Unmarshal([]byte(got), new(struct{})); err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		"In memory &amp; more", "one hot key, serial, ns per decision", "lower is better", ">ratelimit fixed<", ">go-limiter<", ">300 (2)<",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Index(got, ">ratelimit fixed<") > strings.Index(got, ">go-limiter<") {
		t.Error("the slower comes first")
	}
}
