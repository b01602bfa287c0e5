package e2e_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// roleEnv is the environment variable with the role of a child process; see
// [startChild].
const roleEnv = "RATELIMIT_E2E_ROLE"

// roles are the functions that this test binary runs in child processes.
var roles = map[string]func() error{
	"compete": competeAtRedis,
	"deny":    denyAtRedis,
	"count":   countInFile,
	"history": takeUntilKilled,
	"hold":    holdAtRedis,
	"keep":    keepHolds,
	"load":    sendLoads,
}

// TestMain runs the tests. In a child process it plays the child's role instead.
func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := roles[role](); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

// child is this test binary in another process.
type child struct {
	*exec.Cmd
	in    io.WriteCloser
	lines chan string // of its standard output; closed when the process has ended
}

// startChild starts a process that plays a role. It is killed when the test ends, if it
// is still running.
func startChild(t *testing.T, role string, env ...string) *child {
	t.Helper()
	c := &child{Cmd: exec.Command(os.Args[0]), lines: make(chan string)}
	c.Env = append(append(os.Environ(), env...), roleEnv+"="+role)
	c.Stderr = os.Stderr
	var err error
	c.in, err = c.StdinPipe()
	require.NoError(t, err)
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	t.Cleanup(c.kill)
	go func() {
		defer close(c.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.lines <- s.Text()
		}
	}()
	return c
}

// line returns the next line that the process prints.
func (c *child) line(t *testing.T) string {
	t.Helper()
	line, ok := <-c.lines
	require.True(t, ok, "the process has ended")
	return line
}

// proceed sends a line of input to a process that waits for it.
func (c *child) proceed(t *testing.T) {
	t.Helper()
	_, err := fmt.Fprintln(c.in, "go on")
	require.NoError(t, err)
}

// awaitProceed waits, in a child process, for proceed or for the end of input.
func awaitProceed(in *bufio.Reader) { in.ReadString('\n') }

// kill ends the process with SIGKILL if it runs, and waits for its end.
func (c *child) kill() {
	c.Process.Kill()
	for range c.lines { // unread output
	}
	c.Wait()
}
