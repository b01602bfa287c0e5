package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// TestMain lets the test binary run as the program, so that the tests can start it like a
// user, in separate processes.
func TestMain(m *testing.M) {
	if os.Getenv("EXAMPLE_REDIS") != "" {
		os.Args = []string{"redis", "-addr", "127.0.0.1:0", "-redis", os.Getenv("EXAMPLE_REDIS")}
		timeout = time.Minute // a busy machine may be slow
		main()
		return
	}
	os.Exit(m.Run())
}

func TestTwoProcesses(t *testing.T) {
	server := redistest.Start(t)
	a, b := start(t, server.Addr), start(t, server.Addr)
	for _, step := range []struct {
		at     *process
		status int
		left   string
	}{{a, 200, "4"}, {b, 200, "3"}, {a, 200, "2"}, {b, 200, "1"}, {a, 200, "0"}, {b, 429, "0"}, {a, 429, "0"}} {
		resp, body := step.at.do("POST", "/login")
		require.Equal(t, step.status, resp.StatusCode)
		require.Contains(t, resp.Header.Get("RateLimit"), `"login";r=`+step.left+";t=")
		if step.status == 200 {
			require.Equal(t, "welcome, from "+strings.TrimPrefix(step.at.url, "http://")+"\n", body)
		}
	}
	resp, _ := b.do("GET", "/api/")
	require.Equal(t, 200, resp.StatusCode, "the api counts apart")
	require.Equal(t, `"api-1s";q=10;w=1, "api-24h";q=1000;w=86400`, resp.Header.Get("RateLimit-Policy"))

	require.Equal(t, "5", server.Do("GET", "rl:login:{127.0.0.1}:fixed-1h"))
	require.Equal(t, "1", server.Do("GET", "rl:api:{127.0.0.1}:fixed-24h"))
	life := server.Do("PTTL", "rl:login:{127.0.0.1}:fixed-1h").(int64)
	require.InDelta(t, time.Hour.Milliseconds(), life, 60_000)

	a.stop()
	resp, _ = start(t, server.Addr).do("POST", "/login")
	require.Equal(t, 429, resp.StatusCode, "a process that is new knows what was counted")
}

// TestTwoProcessesAtOnce sends many requests to both processes at once. Together they admit
// the limit.
func TestTwoProcessesAtOnce(t *testing.T) {
	server := redistest.Start(t)
	all := []*process{start(t, server.Addr), start(t, server.Addr)}
	var admitted, denied atomic.Int64
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			req, _ := http.NewRequest("POST", all[i%2].url+"/login", nil)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			switch resp.StatusCode {
			case http.StatusOK:
				admitted.Add(1)
			case http.StatusTooManyRequests:
				denied.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 5, admitted.Load())
	require.EqualValues(t, 35, denied.Load())
}

// TestAddressInUse checks that the program reports only this error. It has not made a
// limiter or asked Redis before.
func TestAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	err = run(t.Context(), taken.Addr().String(), "127.0.0.1:1", io.Discard)
	require.ErrorContains(t, err, "listen tcp "+taken.Addr().String())
	_, made := ratelimit.DefaultRegistry.Lookup("api")
	require.False(t, made)
}

// TestNoRedis checks that the log has the cause, and not only a timeout.
func TestNoRedis(t *testing.T) {
	p := start(t, "127.0.0.1:1")
	resp, _ := p.do("GET", "/api/")
	require.Equal(t, 200, resp.StatusCode)
	p.stop()
	require.Contains(t, p.logged.String(), "refused")
	require.NotContains(t, p.logged.String(), "deadline exceeded")
}

// process is a running program.
type process struct {
	*testing.T
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	logged strings.Builder
	url    string
}

// start starts the program and waits until it serves.
func start(t *testing.T, redisAddr string) *process {
	p := &process{T: t, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), "EXAMPLE_REDIS="+redisAddr)
	p.cmd.Stderr = io.MultiWriter(os.Stderr, &p.logged)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { p.cmd.Process.Kill() })
	p.lines = bufio.NewScanner(out)
	require.True(t, p.lines.Scan())
	p.url = regexp.MustCompile(`http://[0-9.:]+[0-9]`).FindString(p.lines.Text())
	require.NotEmpty(t, p.url, p.lines.Text())
	return p
}

func (p *process) do(method, path string) (*http.Response, string) {
	req, err := http.NewRequest(method, p.url+path, nil)
	require.NoError(p, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(p, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(p, err)
	return resp, string(body)
}

// stop interrupts the program and waits for its end.
func (p *process) stop() {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.Skipf("no interrupt on this system: %v", err)
	}
	require.True(p, p.lines.Scan())
	require.Equal(p, "shutting down", p.lines.Text())
	require.NoError(p, p.cmd.Wait())
}
