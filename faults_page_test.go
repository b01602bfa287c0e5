package ratelimit_test

import (
	"flag"
	"fmt"
	"math"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

var update = flag.Bool("update", false, "with RATELIMIT_FAULTS=1: write docs/faults.md anew")

const faultsPage = "docs/faults.md"

// TestFaultsPage: the page has the suite's faults, all of them and no others.
func TestFaultsPage(t *testing.T) {
	if *update {
		t.Skip("it is being written")
	}
	page, err := os.ReadFile(faultsPage)
	require.NoError(t, err)
	var want, got []string
	for _, f := range faults {
		want = append(want, f.cell())
	}
	for _, m := range regexp.MustCompile(`(?m)^\| (.*?) +\| \d`).FindAllStringSubmatch(string(page), -1) {
		got = append(got, m[1])
	}
	require.Equal(t, want, got, "write it anew: RATELIMIT_FAULTS=1 go test -run TestFaults . -args -update")
	require.Contains(t, string(page), faultsIntro())
}

// cell is the first of a fault's row.
func (f *fault) cell() string {
	if f.on != FallbackLocal {
		return fmt.Sprintf("%s; `%v`", f.name, f.on)
	}
	return f.name
}

func faultsIntro() string {
	return fmt.Sprintf(`# What happens when Redis fails

This page is written by the test suite: `+"`RATELIMIT_FAULTS=1 go test -run TestFaults . -args -update`"+`.

Each fault is injected into real Redis servers while %d callers keep calling three limiters, through `+"`Take`"+` and through
`+"`Middleware`"+`: a key that is used up, one that is half used, one that all of them use up meanwhile, one that never is, and
%d others. The limiters have `+"`FallbackLocal`"+`, unless the row says otherwise, and a `+"`Timeout`"+` of %v.

For each row the suite asserts that

- no caller sees an error, but with `+"`FailClosed`"+`, and then it is a 503 with Retry-After that says nothing of Redis;
- no answer takes as long as a call that hangs (%d times `+"`Timeout`"+`);
- what is admitted stays within its bound: the limit, and one unit for each call that Redis was asked and has not answered, and
  for each caller whose call was under way when it failed. Where Redis comes back without its counters it is twice
  the limit. With `+"`FailOpen`"+` there is none;
- a blocked key stays blocked all the time, unless Redis has lost that, too;
- Redis decides again when it is back, is told of all units that were admitted without it, and no goroutine and no
  connection is left when limiters and client are closed.

Numbers are rounded: counts to one digit, times up. They are of a small machine, on which several faults were going on at a time.
`, faultCallers, spreadKeys, faultTimeout, int(faultHangs/faultTimeout))
}

// writeFaults writes the page.
func writeFaults(t *testing.T, rows []row) {
	var b strings.Builder
	b.WriteString(faultsIntro())
	b.WriteString("\n| fault | decisions | errors seen | slowest answer | calls to Redis failed | counters lost by Redis | admitted above all limits | at most | Redis decides again within | goroutines, connections left |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range rows {
		errors, over, most := "0", oneDigit(r.over), oneDigit(int64(r.failed)+faultCallers)
		if r.errors > 0 {
			errors = "503s"
		}
		switch {
		case r.fault.on == FailOpen:
			over, most = "what is asked for", "no bound"
		case r.fault.loss != lossNone:
			most = "the limits again"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s × `Timeout` | %s | %s | %s | %s | %s s | none |\n", r.fault.cell(), oneDigit(r.decisions), errors,
			upTo(r.worst, faultTimeout), oneDigit(int64(r.failed)), r.fault.loss, over, most, upTo(r.recovery, time.Second))
	}
	require.NoError(t, os.WriteFile(faultsPage, []byte(b.String()), 0o644))
}

// oneDigit rounds to one digit.
func oneDigit(n int64) string {
	if n == 0 {
		return "0"
	}
	unit := int64(math.Pow10(int(math.Log10(float64(n)))))
	return fmt.Sprint((n + unit/2) / unit * unit)
}

// upTo rounds up, to a few multiples of a unit.
func upTo(d, unit time.Duration) string {
	for _, n := range []time.Duration{2, 5, 10, 20} {
		if d <= n*unit {
			return fmt.Sprint(int(n))
		}
	}
	return fmt.Sprint(int(faultPatience / unit))
}
