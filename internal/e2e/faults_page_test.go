package e2e_test

import (
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

var update = flag.Bool("update", false, "with RATELIMIT_FAULTS=1: write docs/faults.md")

const (
	faultsPage    = "../../docs/faults.md"
	faultsCommand = "cd internal/e2e && RATELIMIT_FAULTS=1 go test -run TestFaults . -args -update"
)

// TestFaultsPageIsComplete checks that the page has a row for each fault, and no others.
func TestFaultsPageIsComplete(t *testing.T) {
	if *update {
		t.Skip("it is being written")
	}
	page, err := os.ReadFile(faultsPage)
	require.NoError(t, err)
	var want, got []string
	for _, f := range slices.Concat(faults, postgresFaults) {
		want = append(want, f.cell())
	}
	for _, m := range regexp.MustCompile(`(?m)^\| (.*?) +\| \d`).FindAllStringSubmatch(string(page), -1) {
		got = append(got, m[1])
	}
	require.Equal(t, want, got, "write the page again: "+faultsCommand)
	require.Contains(t, string(page), faultsIntro())
	require.Contains(t, string(page), faultsOfOtherTests)
	for _, line := range strings.Split(faultsOfOtherTests, "\n") {
		cells := strings.Split(line, " | ")
		tests := cells[len(cells)-1]
		var sources strings.Builder
		for _, folder := range []string{"internal/e2e", "internal/holds", "postgres", "."} {
			if folder == "." && sources.Len() > 0 || !strings.Contains(tests, "in "+folder) && folder != "." {
				continue
			}
			files, err := filepath.Glob("../../" + folder + "/*_test.go")
			require.NoError(t, err)
			for _, file := range files {
				text, err := os.ReadFile(file)
				require.NoError(t, err)
				sources.Write(text)
			}
		}
		for _, m := range regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(tests, -1) {
			require.True(t, strings.Contains(sources.String(), "func "+m[1]+"("), "%s is not in the folder that its row names", m[1])
		}
	}
}

// cell returns the first cell of a fault's row.
func (f *fault) cell() string {
	if f.on != FallbackLocal {
		return fmt.Sprintf("%s; `%v`", f.name, f.on)
	}
	return f.name
}

// faultsIntro returns the part of the page before its table.
func faultsIntro() string {
	return fmt.Sprintf(`# What happens when Redis or PostgreSQL fails

The test suite writes this page: `+"`%s`"+`.

Each fault is injected into real servers while %d callers keep calling four limiters, through `+"`Take`"+` and through
`+"`Middleware`"+`. Four of their keys have a role: one is used up, one is half used, one is used up by all callers during the
fault, and one is never used up. There are %d other keys. Denials of the fourth limiter block: one of its keys is blocked before
the fault, and %d others are used up before the fault, during it and after it. The limiters have `+"`FallbackLocal`"+`, unless the row names
another policy, and a `+"`Timeout`"+` of %v. A row without a name of a server is about Redis.

For each row the suite checks that

- no caller gets an error. With `+"`FailClosed`"+` the response is a 503 with Retry-After that says nothing about the store;
- no answer takes as long as a call that hangs (%d times `+"`Timeout`"+`);
- the admitted units stay within a bound: the limit, one unit for each call that the store has not answered, and one for
  each caller whose call was in flight when the store failed. If the store comes back without its counters, or without the latest
  ones, the bound includes the limit twice. With `+"`FailOpen`"+` there is no bound;
- a key that is used up stays denied, and a key with a [block](redis.md#what-happens-to-blocks) stays blocked, unless all
  counters are lost;
- no key gets a longer block than its first one, whatever replies are lost. The store has all blocks that have begun, except those
  that it has lost and at most one for each call that has failed;
- the store decides again when it is back, and receives the units that are
  [owed to it](redis.md#what-happens-to-units-admitted-while-redis-was-down). No goroutine and no connection is left when
  limiters and client are closed.

Counts are rounded to one digit. They were measured on a small machine, with several faults at the same time.

Times are rounded up to 2, 5, 10 or 20 times their unit. So "2 × `+"`Timeout`"+`" means that the slowest of all answers took
at most 200 ms, not that it took as long. The machine is busy, and the scheduling of goroutines comes on top of `+"`Timeout`"+`:
see [rule 13](rules.md#13-no-decision-and-no-answer-takes-longer-than-timeout). In another run, on two cores, the slowest answer took less than
110 ms in half of the rows, and 254 ms in the slowest row.
`, faultsCommand, faultCallers, spreadKeys, spreadKeys*9/10, faultTimeout, int(faultHangs/faultTimeout))
}

// faultsOfOtherTests is the part of the page about other tests.
const faultsOfOtherTests = `
## What other tests show

` + "`go test -run`" + ` with a name from the table runs the test: in the folder that the table names, otherwise in the folder of the root module.

| what happens | what holds | test |
|---|---|---|
| Cluster: a slot is half moved, and a key under two limits gets TRYAGAIN | the error is about the key, so this process decides it. Redis decides other keys, and the breaker stays closed | ` + "`TestMovingSlotIsNoOutage` in internal/e2e" + ` |
| a store, or the client that it uses, is closed under a live limiter | Take returns an error, and requests get 503. The process is shutting down, so the policy for outages does not apply | ` + "`TestClosedStoreIsAnErrorUnderEachPolicy`" + ` |
| a limiter is closed while requests reach it | Redis decides, or there is an error | ` + "`TestCallsDuringCloseAreDecidedOrRefused`" + ` |
| Reload while leases are held | the next generation goes on with them. No unit is lost, and no goroutine of the old generation is left | ` + "`TestReloadHandsLeasesOn`, `TestSuccessorGivesBackLeasesOfAClosedClient`" + ` |
| Redis's clock jumps ahead | a key that this process knows to be denied stays denied by this process's clock. Two cases cannot be prevented: a half-used key has its whole limit again, and so has every key in a process that has not seen it before | ` + "`TestServerClockThatJumpsAheadFreesNobody`" + ` |
| Redis's clock is ahead by less than a period of a calendar limit | keys are freed early by as much. When the clock is right again, the period that it has opened goes on: its units are given out once | ` + "`TestWrongServerClockGivesNoQuotaTwice`" + ` |
| the clocks of Redis and of a process are more than a period apart | the process sends each command of a calendar limit a second time. Redis's clock decides | ` + "`TestCalendarGoesByTheServersClock`" + ` |
| Redis hangs while units are given back | no answer waits for longer than ` + "`Timeout`" + ` | ` + "`TestAnswersDoNotWaitForUnitsToBeGivenBack`" + ` |
| a process with requests under an in-flight limit is killed | its holds are free when its record in Redis ends, and not before: at most ` + "`hold`" + ` later | ` + "`TestKilledProcessFreesItsHoldsWhenTheyEnd`" + ` in internal/e2e |
| a process is paused for longer than ` + "`hold`" + `, and goes on | its requests go on without holds, and others may have begun in the meantime. Redis counts exactly these, and the process can have holds again | ` + "`TestStoppedProcessLosesItsHolds`" + ` in internal/e2e |
| replies about holds are lost, connections are reset, or Redis hangs or is killed, while holds begin and end | when Redis is back, it counts exactly what runs, under each policy | ` + "`TestHoldsAreCountedRightAfterOutages`" + `, ` + "`TestLostRepliesLeaveNoHold`" + ` in internal/e2e |
| calls about holds reach Redis in another order than they began | there are never more holds than the limit | ` + "`TestBooksFitTheStore`" + ` in internal/holds |
| Redis loses its holds while requests run | each process stores its holds again when it renews them, before ` + "`hold`" + ` is over. Until then, others do not count them | ` + "`TestHoldsAreToldAgainToAnEmptyServer`" + ` in internal/e2e |
| Redis is down, with an in-flight limit and ` + "`FallbackLocal`" + ` | each process admits what it does not know to be held, at most the limit. When Redis is back, it counts all of these, and admits nothing until there is room | ` + "`TestHoldsInAnOutage`" + ` in internal/e2e |
| Redis is down, with an in-flight limit and ` + "`FailOpen`" + ` or ` + "`FailClosed`" + ` | requests are admitted without holds, or get 503. Neither leaves a hold | ` + "`TestPoliciesInAnOutageWithHolds`" + ` in internal/e2e |
| Sentinel: a replica is promoted while requests under an in-flight limit run | the new master counts what runs | ` + "`TestHoldsAfterAFailover`" + ` in internal/e2e |
| a foreign value in the place of holds | the error names the key. This process decides about the key, and Redis about all others. The value stays, and no unit is taken | ` + "`TestForeignValuesInThePlaceOfHolds`" + ` in internal/e2e |
| histories of calls of several processes, recorded during faults | there is an order of the calls that a model of a limit allows: no call counts twice, and no answer is wrong | ` + "`TestHistoriesFitTheModel`" + `, and on PostgreSQL ` + "`TestHistoriesOnPostgresFitTheModel`" + `, in internal/e2e |
| PostgreSQL: killed, with ` + "`Durable`" + `, or with a synchronous standby that is promoted | no unit is missing whose admission was answered | ` + "`TestDurableUnitsSurviveAKilledServer`" + ` in postgres, ` + "`TestHistoriesOnPostgresFitTheModel`" + ` in internal/e2e |
| PostgreSQL: the disk of the table is full | new keys get an error that says so; rows that exist are still counted as long as their page has room | ` + "`TestFullDisk`" + ` in postgres |
| PostgreSQL: the disk of the WAL is full | the server ends, and does not start before there is room. Then it goes on with what it had written | ` + "`TestFaultsKeepLimitsWithinBounds`" + ` in internal/e2e |
| PostgreSQL: the server has no free connection | the calls fail and say what to raise; nothing is counted | ` + "`TestTooManyConnections`" + ` in postgres |
| PostgreSQL: a reply is lost | the call counts once at most, and is never sent again | ` + "`TestLostReplyCountsOnce`" + ` in postgres |
| PostgreSQL: somebody locks the table | an answer within ` + "`Timeout`" + `; after a second the statement fails and says what to look for | ` + "`TestLockedTable`" + ` in postgres |
| PostgreSQL: somebody locks the row of one key | calls that share a round trip with it fail for about two seconds. After that, only calls for this key fail | ` + "`TestLockedRow`" + ` in postgres |
| PostgreSQL: a transaction elsewhere stays open, for 60 s with RATELIMIT_POSTGRES_IDLE=60s | a hot key gets slower, and no count is wrong | ` + "`TestIdleTransaction`" + ` in postgres |
| PostgreSQL: the server's clock is set back | no key gets units early, and none is denied for longer than two windows | ` + "`TestClockSetBack`" + `, ` + "`TestCountsLikeTheRules`" + ` in postgres |
| PostgreSQL: the schema is missing or dropped, the password is wrong, rights are missing, the server only reads, the isolation level is another one | an error that says what to do; ` + "`OnFailure`" + ` decides | ` + "`TestBadSetup`" + ` in postgres |
| PostgreSQL: something else has written a row | only this key fails | ` + "`TestBadSetup`" + ` in postgres |
| PostgreSQL: a process is killed | nothing that it has counted is lost, and no lock stays. Its holds end after their time | ` + "`TestKilledProcess`" + ` in postgres |
| PostgreSQL: a client disconnects while its request waits for a row | its units are given back | ` + "`TestCancelledCallerLosesNothing`" + ` in postgres |
`

// writeFaults writes the page.
func writeFaults(t *testing.T, rows []row) {
	var b strings.Builder
	b.WriteString(faultsIntro())
	b.WriteString("\n| fault | decisions | errors seen | slowest answer | calls to the store failed | counters lost | admitted above all limits | at most | blocks begun | missing at the store | the store decides again within | goroutines, connections left |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range rows {
		require.NotNil(t, r.fault, "a fault was skipped")
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
		fmt.Fprintf(&b, "| %s | %s | %s | %s × `Timeout` | %s | %s | %s | %s | %s | %s | %s s | none |\n", r.fault.cell(), oneDigit(r.decisions), errors,
			upTo(r.worst, faultTimeout), oneDigit(int64(r.failed)), r.fault.loss, over, most, oneDigit(r.blocks), oneDigit(r.unblocked), upTo(r.recovery, time.Second))
	}
	b.WriteString(faultsOfOtherTests)
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

// upTo rounds up to one of a few multiples of a unit.
func upTo(d, unit time.Duration) string {
	for _, n := range []time.Duration{2, 5, 10, 20} {
		if d <= n*unit {
			return fmt.Sprint(int(n))
		}
	}
	return fmt.Sprint(int(faultPatience / unit))
}
