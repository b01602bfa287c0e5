package main

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain lets the test binary run as the program.
func TestMain(m *testing.M) {
	if config := os.Getenv("HOTRELOAD_CONFIG"); config != "" {
		os.Args = []string{"hotreload", "-addr", "127.0.0.1:0", "-admin", "127.0.0.1:0", "-config", config}
		main()
		return
	}
	os.Exit(m.Run())
}

// program is a running hotreload.
type program struct {
	*testing.T
	cmd        *exec.Cmd
	url, admin string
	config     string
	log        logged
}

// logged is what a process has written so far.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, config string) *program {
	p := &program{T: t, config: filepath.Join(t.TempDir(), "limits.conf")}
	p.write(config)
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), "HOTRELOAD_CONFIG="+p.config)
	p.cmd.Stderr = &p.log
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan(), "it does not start: %s", &p.log)
	urls := regexp.MustCompile(`http://[0-9.:]+`).FindAllString(lines.Text(), -1)
	require.Len(t, urls, 2, lines.Text())
	p.url, p.admin = urls[0], urls[1]
	go io.Copy(io.Discard, out)
	return p
}

func (p *program) write(config string) {
	p.Helper()
	require.NoError(p, os.WriteFile(p.config, []byte(config), 0o600))
}

func (p *program) do(method, url, body string) (*http.Response, string) {
	p.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	require.NoError(p, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(p, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(p, err)
	return resp, string(text)
}

// expect sends a request to a route and checks the status and what is left.
func (p *program) expect(route string, status int, left string) {
	p.Helper()
	resp, _ := p.do("GET", p.url+"/"+route, "")
	require.Equal(p, status, resp.StatusCode)
	require.Contains(p, resp.Header.Get("RateLimit"), `r=`+left+";")
}

// await waits until the log, from byte since on, has a line with all parts.
func (p *program) await(since int, parts ...string) {
	p.Helper()
	require.Eventually(p, func() bool {
		for line := range strings.Lines(p.log.String()[since:]) {
			found := 0
			for _, part := range parts {
				if strings.Contains(line, part) {
					found++
				}
			}
			if found == len(parts) {
				return true
			}
		}
		return false
	}, time.Minute, 10*time.Millisecond, "not logged: %q", parts)
}

// TestReload checks that the limits follow the file and SIGHUP, that a broken file changes
// nothing, and that no counts are lost.
func TestReload(t *testing.T) {
	p := start(t, "login: 3/1h fixed\n")
	for _, left := range []string{"2", "1", "0"} {
		p.expect("login", 200, left)
	}
	p.expect("login", 429, "0")

	mark := len(p.log.String())
	p.write("# more\nlogin: 5/1h fixed\nsearch: 10/1m sliding, 99/24h fixed\n")
	p.await(mark, "reloaded", "limiter=search")
	p.expect("login", 200, "1")
	p.expect("search", 200, "9")

	for _, broken := range []struct{ config, line, field, message string }{
		{"login: 9/1h fixed\nsearch: 10/1m sliding, 99/1d fixed\n", "line=2", `field="search, limit 2"`, "99/1d"},
		{"login: 9/1h fixed\n\nlogin: 5/1h fixed\n", "line=3", "field=name", "on line 1 already"},
		{"# login: 9/1h fixed\n", "line=1", "field=name", "there is no route"},
		{"login 9/1h fixed\n", "line=1", "field=name", "no colon"},
		{"../etc: 9/1h fixed\n", "line=1", "field=name", "small letters"},
		{"search: 1/1m fixed\nlogin: 9/1h fixed, 8/1h fixed\n", "line=2", "field=login", "the same algorithm and window"},
	} {
		mark = len(p.log.String())
		p.write(broken.config)
		p.await(mark, " ERROR ", "the limits stay as they were", broken.line, broken.field, broken.message)
	}
	p.expect("login", 200, "0")
	p.expect("login", 429, "0")
	p.expect("search", 200, "8")

	// A deployment replaces the file by a new one.
	mark = len(p.log.String())
	aside := p.config + ".new"
	require.NoError(t, os.WriteFile(aside, []byte("login: 6/1h fixed\n"), 0o600))
	require.NoError(t, os.Rename(aside, p.config))
	p.await(mark, "reloaded", "limiter=login", "6/1h")
	p.expect("login", 200, "0")
	resp, _ := p.do("GET", p.url+"/search", "")
	require.Equal(t, 404, resp.StatusCode)

	// The admin handler's limits hold until the next reload.
	resp, body := p.do("PUT", p.admin+"/limits/login", "8/1h fixed")
	require.Equal(t, 200, resp.StatusCode, body)
	p.expect("login", 200, "1")
	resp, body = p.do("PUT", p.admin+"/limits/login", "8/1h sometimes")
	require.Equal(t, 400, resp.StatusCode)
	require.Contains(t, body, "sometimes")
	resp, _ = p.do("PUT", p.admin+"/limits/nobody", "8/1h fixed")
	require.Equal(t, 404, resp.StatusCode)
	p.expect("login", 200, "0")

	mark = len(p.log.String())
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Skipf("no SIGHUP here: %v", err)
	}
	p.await(mark, "reloaded", "limiter=login", "6/1h")
	p.expect("login", 429, "0")

	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, p.cmd.Wait())
}

// TestBrokenAtStart checks that the program does not start with a broken file, and that it
// names the reason.
func TestBrokenAtStart(t *testing.T) {
	config := filepath.Join(t.TempDir(), "limits.conf")
	require.NoError(t, os.WriteFile(config, []byte("login: often\n"), 0o600))
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "HOTRELOAD_CONFIG="+config)
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "line 1: login, limit 1: ")
}

// TestExampleConfig checks that the file of the example is valid.
func TestExampleConfig(t *testing.T) {
	text, err := os.ReadFile("limits.conf")
	require.NoError(t, err)
	routes, err := parse(string(text))
	require.NoError(t, err)
	require.Len(t, routes, 2)
}
