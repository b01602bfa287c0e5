package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	roleEnv = "EXAMPLE_SQLITE_ROLE" // of a child process; see startChild
	fileEnv = "EXAMPLE_SQLITE_FILE"
)

// roles are what this test binary does in child processes.
var roles = map[string]func(file string) error{"compete": compete, "count": count, "serve": serve}

// TestMain runs the tests. In a child process it plays the child's role instead.
func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := roles[role](os.Getenv(fileEnv)); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

// child is this test binary in another process.
type child struct {
	*exec.Cmd
	*testing.T
	in    io.WriteCloser
	lines *bufio.Scanner // of its standard output
}

// startChild starts a process that plays a role. It is killed when the test ends.
func startChild(t *testing.T, role, file string) *child {
	t.Helper()
	c := &child{Cmd: exec.Command(os.Args[0]), T: t}
	c.Env = append(os.Environ(), roleEnv+"="+role, fileEnv+"="+file)
	c.Stderr = os.Stderr
	var err error
	c.in, err = c.StdinPipe()
	require.NoError(t, err)
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	c.lines = bufio.NewScanner(out)
	require.NoError(t, c.Start())
	t.Cleanup(func() { c.kill() })
	return c
}

// line returns the next line that the process prints.
func (c *child) line() string {
	c.Helper()
	require.True(c, c.lines.Scan(), "the process has ended")
	require.NotContains(c, c.lines.Text(), "failed")
	return c.lines.Text()
}

// number returns the number in the next line.
func (c *child) number() int {
	c.Helper()
	n, err := strconv.Atoi(c.line())
	require.NoError(c, err)
	return n
}

// kill ends the process with SIGKILL, and returns how many lines it has printed that were
// not read yet.
func (c *child) kill() (lines int) {
	c.Process.Kill()
	for c.lines.Scan() {
		lines++
	}
	c.Wait()
	return lines
}

// serve runs the program, on a port that it chooses.
func serve(file string) error {
	os.Args = []string{"sqlite", "-addr", "127.0.0.1:0", "-file", file}
	timeout = time.Minute // a busy machine may be slow
	main()
	return nil
}

// TestProgram runs the program as its comment shows it: two processes count together, and
// nothing is lost when they are stopped or killed.
func TestProgram(t *testing.T) {
	file := filepath.Join(t.TempDir(), "limits 100%.db")
	login := func(c *child, url string, status int, left string) {
		t.Helper()
		resp, err := http.Post(url+"/login", "", nil)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, status, resp.StatusCode)
		require.Contains(t, resp.Header.Get("RateLimit"), `"login";r=`+left+";")
	}
	start := func() (*child, string) {
		c := startChild(t, "serve", file)
		return c, regexp.MustCompile(`http://[0-9.:]+[0-9]`).FindString(c.line())
	}
	a, atA := start()
	b, atB := start()
	login(a, atA, 200, "4")
	login(b, atB, 200, "3")
	login(a, atA, 200, "2")
	a.kill()
	if err := b.Process.Signal(os.Interrupt); err == nil { // there is none on Windows
		require.NoError(t, b.Wait())
	}
	a, atA = start()
	login(a, atA, 200, "1")
	login(a, atA, 200, "0")
	login(a, atA, 429, "0")
	require.FileExists(t, file)
}
