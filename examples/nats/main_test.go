package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"
)

const (
	roleEnv   = "EXAMPLE_NATS_ROLE" // of a child process; see startChild
	targetEnv = "EXAMPLE_NATS_TARGET"
)

// roles are what this test binary does in child processes. The target is the URL of a NATS
// server, and for the role nats its address and its folder.
var roles = map[string]func(target string) error{"compete": compete, "count": count, "serve": serve, "nats": serveNATS}

// TestMain runs the tests. In a child process it plays the child's role instead.
func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := roles[role](os.Getenv(targetEnv)); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

// child is this test binary in another process.
type child struct {
	*exec.Cmd
	testing.TB
	in    io.WriteCloser
	lines *bufio.Scanner // of its standard output
}

// startChild starts a process that plays a role. It is killed when the test ends.
func startChild(t testing.TB, role, target string) *child {
	t.Helper()
	c := &child{Cmd: exec.Command(os.Args[0]), TB: t}
	c.Env = append(os.Environ(), roleEnv+"="+role, targetEnv+"="+target)
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

// kill ends the process with SIGKILL, and returns the lines that it has printed and that
// were not read yet.
func (c *child) kill() (lines []string) {
	c.Process.Kill()
	for c.lines.Scan() {
		lines = append(lines, c.lines.Text())
	}
	c.Wait()
	return lines
}

// natsServer is a NATS server in a process of its own, so that it can be killed.
type natsServer struct {
	*child
	address, folder string
}

func startNATS(t testing.TB) *natsServer {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // to find a free port
	require.NoError(t, err)
	listener.Close()
	s := &natsServer{address: listener.Addr().String(), folder: t.TempDir()}
	s.start(t)
	return s
}

// start starts the server, also after kill: with the records that it had then.
func (s *natsServer) start(t testing.TB) {
	s.child = startChild(t, "nats", s.address+" "+s.folder)
	require.Equal(t, "ready", s.line())
}

func (s *natsServer) url() string { return "nats://" + s.address }

func serveNATS(target string) error {
	address, folder, _ := strings.Cut(target, " ")
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	o := &server.Options{Host: host, JetStream: true, StoreDir: folder, NoSigs: true}
	if o.Port, err = strconv.Atoi(port); err != nil {
		return err
	}
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		return fmt.Errorf("no server at %s", address)
	}
	fmt.Println("ready")
	s.WaitForShutdown()
	return nil
}

// serve runs the program, on a port that it chooses.
func serve(url string) error {
	os.Args = []string{"nats", "-addr", "127.0.0.1:0", "-nats", url}
	timeout = time.Minute // a busy machine may be slow
	main()
	return nil
}

// TestProgram runs the program as its comment shows it: two processes count together, and
// nothing is lost when they or the server are killed.
func TestProgram(t *testing.T) {
	nats := startNATS(t)
	login := func(url string, status int, left string) {
		t.Helper()
		resp, err := http.Post(url+"/login", "", nil)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, status, resp.StatusCode)
		require.Contains(t, resp.Header.Get("RateLimit"), `"login";r=`+left+";")
	}
	start := func() (*child, string) {
		c := startChild(t, "serve", nats.url())
		return c, regexp.MustCompile(`http://[0-9.:]+[0-9]`).FindString(c.line())
	}
	a, atA := start()
	b, atB := start()
	login(atA, 200, "4")
	login(atB, 200, "3")
	login(atA, 200, "2")
	a.kill()
	if err := b.Process.Signal(os.Interrupt); err == nil { // there is none on Windows
		require.NoError(t, b.Wait())
	}
	nats.kill()
	nats.start(t)
	_, atA = start()
	login(atA, 200, "1")
	login(atA, 200, "0")
	login(atA, 429, "0")
}
