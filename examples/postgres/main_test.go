package main

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/pgtest"
)

// TestMain lets the test binary run as the program, so that the tests can start it like a
// user, in separate processes.
func TestMain(m *testing.M) {
	if os.Getenv("EXAMPLE_POSTGRES") != "" {
		os.Args = []string{"postgres", "-addr", "127.0.0.1:0", "-db", os.Getenv("EXAMPLE_POSTGRES")}
		timeout = time.Minute // a busy machine may be slow
		main()
		return
	}
	os.Exit(m.Run())
}

// TestOneProcessIsKilled lets two processes share their limits and kills one of them. What
// it has counted stays counted, for the other process and for a new one.
func TestOneProcessIsKilled(t *testing.T) {
	db := pgtest.Start(t).URL(pgtest.Superuser)
	a, b := start(t, db), start(t, db)
	require.Equal(t, []int{200, 200, 200, 200}, []int{login(t, a), login(t, b), login(t, a), login(t, a)})
	a.Process.Kill()
	a.Wait()
	require.Equal(t, 200, login(t, b))
	require.Equal(t, 429, login(t, b))
	c := start(t, db)
	require.Equal(t, 429, login(t, c))
	resp, err := http.Get(c.url + "/api/")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, 200, resp.StatusCode, "the api counts apart")
	c.Process.Signal(os.Interrupt)
	rest, _ := io.ReadAll(c.out)
	require.Contains(t, string(rest), "shutting down")
	require.NoError(t, c.Wait())
}

// process is a running program.
type process struct {
	*exec.Cmd
	out *bufio.Reader
	url string
}

// start starts the program and waits until it serves.
func start(t *testing.T, db string) *process {
	p := &process{Cmd: exec.Command(os.Args[0])}
	p.Env = append(os.Environ(), "EXAMPLE_POSTGRES="+db)
	p.Stderr = os.Stderr
	out, err := p.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	t.Cleanup(func() { p.Process.Kill() })
	p.out = bufio.NewReader(out)
	line, err := p.out.ReadString('\n')
	require.NoError(t, err)
	p.url = regexp.MustCompile(`http://[0-9.:]+[0-9]`).FindString(line)
	require.NotEmpty(t, p.url, line)
	return p
}

// login returns the status of a login.
func login(t *testing.T, p *process) int {
	resp, err := http.Post(p.url+"/login", "", nil)
	require.NoError(t, err)
	resp.Body.Close()
	return resp.StatusCode
}
