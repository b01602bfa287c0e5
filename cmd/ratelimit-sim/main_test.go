package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/chart"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

func TestTable(t *testing.T) {
	c := base
	c.Rate, c.Limit, c.Span = 1000, perSecond(500), time.Second
	rows := strings.Split(strings.TrimSpace(table(sweep(c, []int{1, 4}))), "\n")
	require.Len(t, rows, 2+2*len(modes))
	require.Contains(t, rows[2], "| 1 | exact |")
	require.Contains(t, rows[7], "| 4 | leased |")
}

func TestRuleOf(t *testing.T) {
	l, err := ratelimit.ParseLimit("10/1s bucket burst=20")
	require.NoError(t, err)
	require.Equal(t, rule.Limit{Kind: rule.Bucket, N: 10, Window: int64(time.Second), Burst: 20}, ruleOf(l))
	require.Equal(t, rule.Limit{Kind: rule.Fixed, N: 5, Window: int64(time.Hour)}, ruleOf(ratelimit.FixedWindow(5, time.Hour)))

	// A day that begins with the simulation is a window of 24 hours that opens then.
	rows := func(limit string) string {
		var b strings.Builder
		require.NoError(t, run([]string{"-processes", "3", "-rate", "1000", "-span", "2s", "-limit", limit}, &b))
		_, rows, _ := strings.Cut(b.String(), "\n")
		return rows
	}
	require.Equal(t, rows("500/24h fixed"), rows("500/day calendar"))
	require.Contains(t, rows("500/day calendar"), "| 3 | leased |")
}

// TestPage checks that docs/scaling.md has marks and a chart for every scenario.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/scaling.md")
	require.NoError(t, err)
	for _, s := range scenarios {
		_, err := chart.Fill(string(page), s.name, "")
		require.NoError(t, err)
		if s.name == "algorithms" || s.name == "blocks" { // a table alone
			continue
		}
		require.Contains(t, string(page), "](scaling-"+s.name+".svg)")
		require.FileExists(t, "../../docs/scaling-"+s.name+".svg")
	}
	_, err = chart.Fill(string(page), "nothing", "")
	require.Error(t, err)
}

// TestDocument checks that only the text between the marks changes, that edits elsewhere in
// the meantime stay, and that a page without marks is refused before anything runs.
func TestDocument(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "scaling.md")
	write := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }
	const page = "# Page\n\n<!-- a -->\n\n%s\n<!-- end of a -->\n\ntext\n\n<!-- b -->\n\n%s\n<!-- end of b -->\n\n| x |\n|---|\n| 1 |\n%s"
	write(fmt.Sprintf(page, "", "old\n", ""))
	ran := 0
	scenarios := []scenario{
		{"a", func() (string, string) { ran++; return "A\n", "<svg>a</svg>" }},
		{"b", func() (string, string) {
			write(fmt.Sprintf(page, "", "old\n", "| 2 |\n"))
			return "B\n", "<svg>b</svg>"
		}},
	}
	for range 2 {
		require.NoError(t, document(dir, scenarios))
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf(page, "A\n", "B\n", "| 2 |\n"), string(got))
	}
	svg, err := os.ReadFile(filepath.Join(dir, "scaling-b.svg"))
	require.NoError(t, err)
	require.Equal(t, "<svg>b</svg>", string(svg))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 3)

	write("no marks\n")
	require.ErrorContains(t, document(dir, scenarios), `"<!-- a -->\n"`)
	require.Error(t, document(t.TempDir(), scenarios))
	require.Equal(t, 2, ran)
}

// TestHelp checks that a request for help is not an error.
func TestHelp(t *testing.T) {
	require.NoError(t, run([]string{"-h"}, io.Discard))
	require.NoError(t, run([]string{"-rate", "5", "--help"}, io.Discard))
	require.Error(t, run([]string{"-helpless"}, io.Discard))
}

func TestArguments(t *testing.T) {
	var b strings.Builder
	require.NoError(t, run([]string{"-processes", "2", "-rate", "100", "-span", "1s", "-down", "100ms-200ms"}, &b))
	command, _, _ := strings.Cut(b.String(), "\n")
	require.Equal(t, `ratelimit-sim -down 100ms-200ms -hot 0 -jitter 100µs -keys 1 -lease 250ms -limit "5000/1s fixed" -processes 2 -rate 100 `+
		`-recheck 1s -rtt 200µs -seed 1 -service 7µs -share 0 -span 1s -timeout 100ms -zipf 0`, command)
	require.NoError(t, run([]string{"-processes", "2", "-span", "1s", "-keys", "9", "-zipf", "1.1"}, io.Discard))
	for _, test := range []struct{ args, want string }{
		{"-processes 0", `-processes has "0"`},
		{"-limit x", `limit "x"`},
		{"-rate 0", "-rate"},
		{"-rate NaN", "-rate"},
		{"-keys 0", "-keys"},
		{"-lease 0", "-lease"},
		{"-rtt -1ms", "-rtt"},
		{"-jitter -1ms", "-jitter"},
		{"-share 2", "-share"},
		{"-keys 9 -hot 2", "-hot"},
		{"-keys 9 -zipf 0.5", "-zipf has to be above 1"},
		{"-keys 9 -zipf 2 -hot 0.5", "choose one"},
		{"-hot 0.5", "there is one key"},
		{"-down 5s", `-down is "5s": want from when to when, as 2s-5s`},
		{"-down 5s-2s", "-down"},
		{"foo -processes 3", `want flags only, not ["foo" "-processes" "3"]`},
		{"-out docs -rate 5", "-out goes with no other flag"},
	} {
		require.ErrorContains(t, run(strings.Fields(test.args), io.Discard), test.want, test.args)
	}
	for limit, want := range map[string]string{
		"20/30s inflight": "-limit is 20/30s inflight: requests of the simulation have no duration, so there is no number of them at the same time",
		"5/1h rolling":    "-limit is 5/1h rolling: the simulation counts only fixed, sliding, bucket and calendar limits",
		"unlimited":       "-limit is unlimited: the simulation counts only",
		"deny":            "-limit is deny: the simulation counts only",
	} {
		require.ErrorContains(t, run([]string{"-limit", limit}, io.Discard), want)
	}
}
