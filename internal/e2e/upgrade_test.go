package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// before is the version that runs side by side with this one: the last version before
// the packages in internal were split.
const before = "680219c1f6ea"

// versions builds testdata/upgrade with that version and with this one.
func versions(t *testing.T) (old, new string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	source, err := filepath.Abs("testdata/upgrade/main.go.txt")
	require.NoError(t, err)
	dir := t.TempDir()
	archive := exec.Command("git", "-C", root, "archive", before)
	tar, err := archive.Output()
	if err != nil {
		if os.Getenv("RATELIMIT_REQUIRE_UPGRADE") != "" {
			t.Fatalf("git archive %s: %v", before, err)
		}
		t.Skipf("the version %s is not in this checkout: clone it with its history", before)
	}
	unpack := exec.Command("tar", "-x", "-C", dir)
	unpack.Stdin = bytes.NewReader(tar)
	require.NoError(t, unpack.Run())
	build := func(module, name string) string {
		overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(module, "cmd", "upgrade", "main.go"): source}})
		require.NoError(t, err)
		file, binary := filepath.Join(dir, name+".json"), filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, overlay, 0o600))
		cmd := exec.Command("go", "build", "-overlay", file, "-o", binary, "./cmd/upgrade")
		cmd.Dir = module
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return binary
	}
	return build(dir, "old"), build(root, "new")
}

// counting is a running program.
type counting struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
}

func startCounting(t *testing.T, program, kind, where string, limits []string) *counting {
	t.Helper()
	c := &counting{t: t, cmd: exec.Command(program, append([]string{kind, where}, limits...)...)}
	c.cmd.Stderr = os.Stderr
	var err error
	c.in, err = c.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := c.cmd.StdoutPipe()
	require.NoError(t, err)
	c.lines = bufio.NewScanner(out)
	require.NoError(t, c.cmd.Start())
	t.Cleanup(func() { c.cmd.Process.Kill(); c.cmd.Wait() })
	require.Equal(t, "ready", c.line())
	return c
}

func (c *counting) line() string {
	c.t.Helper()
	require.True(c.t, c.lines.Scan(), "the program has ended")
	return c.lines.Text()
}

func (c *counting) do(what, key string, n int64) string {
	c.t.Helper()
	fmt.Fprintln(c.in, what, key, n)
	return c.line()
}

func (c *counting) end() {
	c.t.Helper()
	c.in.Close()
	require.NoError(c.t, c.cmd.Wait())
}

// upgraded are the limits of the programs. Their windows do not end during a test.
var upgraded = [][]string{
	{"20/1000h fixed"}, {"20/1000h sliding"}, {"20/1000h bucket burst=15"},
	{"20/1000h fixed", "15/500h sliding", "20/700h bucket burst=18"},
}

// TestTwoVersionsShareCountersAtRedis has two versions count for the same keys on one
// server, in turn and at random. Each answers as one limiter would.
func TestTwoVersionsShareCountersAtRedis(t *testing.T) {
	old, new := versions(t)
	for _, limits := range upgraded {
		server := redistest.Start(t)
		memory := filepath.Join(t.TempDir(), "control")
		one := []*counting{startCounting(t, old, "redis", server.Addr, limits), startCounting(t, new, "redis", server.Addr, limits)}
		control := startCounting(t, new, "memory", memory, limits)
		r := rand.New(rand.NewPCG(1, 2))
		for i := range 600 {
			what := []string{"take", "take", "take", "take", "refund", "reset"}[r.IntN(6)]
			if what == "reset" && r.IntN(5) > 0 {
				what = "take"
			}
			key, n := []string{"a", "192.0.2.1", "2001:db8::/64", strings.Repeat("long", 60), "{b}%20"}[r.IntN(5)], r.Int64N(4)
			version := r.IntN(2)
			require.Equal(t, control.do(what, key, n), one[version].do(what, key, n), "%v, operation %d, version %d: %s %s %d", limits, i, version, what, key, n)
		}
		for _, c := range append(one, control) {
			c.end()
		}
	}
}

// TestBlocksBesideAVersionWithoutThem has a limiter with blocks beside a version that knows
// none. The old version takes a blocked counter for a foreign value: it admits nothing and
// changes nothing. Keys that are not blocked are counted together. The new version goes on
// with its block, and after a Reset both count the key again.
func TestBlocksBesideAVersionWithoutThem(t *testing.T) {
	oldProgram, newProgram := versions(t)
	for _, limits := range upgraded[:3] {
		server := redistest.Start(t)
		client := server.Client()
		old := startCounting(t, oldProgram, "redis", server.Addr, limits)
		new := startCounting(t, newProgram, "redis", server.Addr, []string{limits[0] + " block=1h,24h"})
		most := int64(20)
		if strings.Contains(limits[0], "bucket") {
			most = 15
		}
		require.Equal(t, fmt.Sprintf("true %d", most-5), old.do("take", "k", 5))
		require.Equal(t, "true 0", new.do("take", "k", most-5))
		require.Equal(t, "false 0", old.do("take", "k", 1))
		require.Equal(t, "false 0", new.do("take", "k", 1))
		keys := client.Keys(ctx, "rl:{k}:*").Val()
		require.Len(t, keys, 1)
		value, life := client.Get(ctx, keys[0]).Val(), client.PTTL(ctx, keys[0]).Val()
		require.Contains(t, value, " !")
		for _, n := range []int64{1, 0, 3} {
			answer := old.do("try", "k", n)
			require.Contains(t, answer, "error: ", "%d units", n)
			require.Contains(t, answer, "holds something else than a counter", "%d units", n)
			require.Equal(t, value, client.Get(ctx, keys[0]).Val(), "it is not overwritten")
		}
		require.LessOrEqual(t, client.PTTL(ctx, keys[0]).Val(), life)
		require.Equal(t, "false 0", new.do("take", "k", 1))
		require.Equal(t, value, client.Get(ctx, keys[0]).Val())
		require.Equal(t, fmt.Sprintf("true %d", most-1), old.do("take", "other", 1))
		require.Equal(t, fmt.Sprintf("true %d", most-2), new.do("take", "other", 1))
		require.Equal(t, "ok", new.do("reset", "k", 0))
		require.Equal(t, fmt.Sprintf("true %d", most-1), old.do("take", "k", 1))
		require.Equal(t, fmt.Sprintf("true %d", most-2), new.do("take", "k", 1))
		old.end()
		new.end()
	}
}

// TestTwoVersionsReadOneSnapshotFile has the versions take turns with a file, for upgrades and
// downgrades. Each finds exactly the counters that the one before has left.
func TestTwoVersionsReadOneSnapshotFile(t *testing.T) {
	old, new := versions(t)
	for _, limits := range upgraded {
		dir := t.TempDir()
		file, controlFile := filepath.Join(dir, "counters"), filepath.Join(dir, "control")
		control := startCounting(t, new, "memory", controlFile, limits)
		r := rand.New(rand.NewPCG(3, 4))
		for turn, version := range []string{old, new, old, new, new, old} {
			c := startCounting(t, version, "memory", file, limits)
			for range 100 {
				key, n := fmt.Sprint("key", r.IntN(50)), r.Int64N(4)
				require.Equal(t, control.do("take", key, n), c.do("take", key, n), "%v, turn %d: take %s %d", limits, turn, key, n)
			}
			c.end()
		}
		control.end()
	}
}
