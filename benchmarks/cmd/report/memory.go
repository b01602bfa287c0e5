package main

import (
	"fmt"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// memoryPart is the part of the report about decisions in memory. It starts with what holds
// for the whole page.
var memoryPart = &part{
	flag: "memory", name: "In memory",
	test: "TestExact", bench: "Benchmark", long: "BenchmarkLong", head: "# Benchmarks\n", level: "##",
	charts: []picture{
		{"bench-memory.svg", "In memory", []benchmarks.Group{benchmarks.Speed, benchmarks.Size}},
		{"bench-middleware.svg", "Middleware", []benchmarks.Group{benchmarks.Middleware, benchmarks.Server}},
	},
	groups: []benchmarks.Group{
		benchmarks.Speed, benchmarks.Blocks, benchmarks.Rolling, benchmarks.Calendars, benchmarks.Holds, benchmarks.Size,
		benchmarks.Middleware, benchmarks.Waiting, benchmarks.Growing, benchmarks.Server, benchmarks.Stress,
	},
	cases: benchmarks.Cases, libraries: benchmarks.Libraries,
	intro: memoryIntro,
	exact: "No library gets the number of keys in advance, and maxima are above it. Requests are limited by their address.\n" +
		"Before it was timed, each library was asked for 2,560 units of a limit of 1,000, by one goroutine and by 64, directly\n" +
		"and through its middleware.",
}

func memoryIntro(r *results) string {
	return fmt.Sprintf(`
This page compares this library with other libraries, and with floors: code that does only what no library can avoid.

- A value is the median of all rounds.
- A ratio is this library's value divided by the best rival's: the median of the ratios within single rounds, in which
  the libraries are timed one right after the other. So it is not the quotient of the two values beside it. For times, a
  ratio below 1 means that this library is ahead.
- If this library has three values, they are for a fixed window / a sliding window / a token bucket. Two are for a fixed
  window / a token bucket. On Redis, the third one is for a fixed window with a lease.
- Numbers in parentheses are allocations, if there are any.
- A bound of a goal that has a library's name in parentheses is for that one only.

A value is *void* if it does not show what the row is about. Then it has no ratio, meets no goal and is nobody's best rival.
The reason is below the table. A value is void if

- the library was not exact: before it was timed, it admitted more or less than its limit allows;
- a decision was not the expected one, or a call failed;
- what the row admitted is not what the limit allows, or not what this library's store has counted;
- a decision of this library came from a fallback, or from another place than the one that the row measures;
- its rounds differ: the spread of a time or a rate is above %.0f %%.

The spread is the median distance from the median, of the ratios to another library within rounds. That is the best rival if
there is one. Rivals are compared with the library beside which they are steadiest. A row of one library has no spread.

- Machine: %s; %s
`, 100*maxSpread, r.cpu, r.machine)
}
