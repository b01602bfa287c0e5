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
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// TestMain lets the test binary run as the program, so that the test can start it like a
// user, in a separate process.
func TestMain(m *testing.M) {
	if os.Getenv("QUICKSTART_ADDR") != "" {
		os.Args = []string{"quickstart", "-addr", os.Getenv("QUICKSTART_ADDR"), "-redis", os.Getenv("QUICKSTART_REDIS")}
		timeout = time.Minute // a busy machine may be slow
		main()
		return
	}
	os.Exit(m.Run())
}

// process is a running program.
type process struct {
	*testing.T
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	logged strings.Builder
	url    string
}

// start starts the program and waits until it serves. redisAddr is empty for no Redis.
func start(t *testing.T, redisAddr string) *process {
	p := &process{T: t, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), "QUICKSTART_ADDR=127.0.0.1:0", "QUICKSTART_REDIS="+redisAddr)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.cmd.Stderr = &p.logged
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { p.cmd.Process.Kill() })

	p.lines = bufio.NewScanner(out)
	require.True(t, p.lines.Scan())
	p.url = regexp.MustCompile(`http://[0-9.:]+`).FindString(p.lines.Text())
	require.NotEmpty(t, p.url, p.lines.Text())
	require.Contains(t, readUntil(p.lines, "application/json"), "curl -i -X POST "+p.url+"/api/auth/signin")
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

// signIn uses up the limit of one address, and sends one more request.
func (p *process) signIn(left ...string) {
	for _, left := range left {
		resp, _ := p.do("POST", "/api/auth/signin")
		require.Equal(p, 200, resp.StatusCode)
		require.Equal(p, `"sign-in";q=5;w=3600`, resp.Header.Get("RateLimit-Policy"))
		require.Contains(p, resp.Header.Get("RateLimit"), `"sign-in";r=`+left+";t=")
	}
	resp, body := p.do("POST", "/api/auth/signin")
	require.Equal(p, 429, resp.StatusCode)
	require.Equal(p, "Too many login attempts, please try again later.", body)
	require.Regexp(p, `^3[56]\d\d$`, resp.Header.Get("Retry-After"))
}

// stop interrupts the program and waits for its end.
func (p *process) stop() {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.Skipf("no interrupt on this system: %v", err)
	}
	require.Contains(p, readUntil(p.lines, "shutting down"), "shutting down")
	require.NoError(p, p.cmd.Wait())
}

func TestQuickstart(t *testing.T) {
	p := start(t, "")
	p.signIn("4", "3", "2", "1", "0")
	for path, method := range map[string]string{"/api/": "GET", "/api/chat/token": "POST"} {
		resp, _ := p.do(method, path)
		require.Equal(t, 200, resp.StatusCode, "%s counts apart", path)
	}
	p.stop()
	require.Contains(t, p.logged.String(), `denied route="POST /api/auth/signin"`)
}

// TestQuickstartOnRedis checks that the counts survive a restart of the program.
func TestQuickstartOnRedis(t *testing.T) {
	server := redistest.Start(t)
	p := start(t, server.Addr)
	p.signIn("4", "3", "2", "1", "0")
	require.Equal(t, "5", server.Do("GET", "rl:sign-in:{127.0.0.1}:fixed-1h"))
	p.stop()

	p = start(t, server.Addr)
	p.signIn()
	resp, _ := p.do("GET", "/api/")
	require.Equal(t, 200, resp.StatusCode, "/api/ counts apart")
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
	resp, _ := p.do("POST", "/api/auth/signin")
	require.Equal(t, 200, resp.StatusCode)
	p.stop()
	require.Contains(t, p.logged.String(), "refused")
	require.NotContains(t, p.logged.String(), "deadline exceeded")
}

func readUntil(lines *bufio.Scanner, last string) string {
	var all strings.Builder
	for lines.Scan() {
		all.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), last) {
			break
		}
	}
	return all.String()
}
