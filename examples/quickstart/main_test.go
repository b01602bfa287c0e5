package main

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMain lets the test binary be the program, so that the test can start it as
// a user does, in a process of its own.
func TestMain(m *testing.M) {
	if os.Getenv("QUICKSTART_ADDR") != "" {
		os.Args = []string{"quickstart", "-addr", os.Getenv("QUICKSTART_ADDR")}
		main()
		return
	}
	os.Exit(m.Run())
}

func TestQuickstart(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "QUICKSTART_ADDR=127.0.0.1:0")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var logged strings.Builder
	cmd.Stderr = &logged
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill() })

	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	url := regexp.MustCompile(`http://[0-9.:]+`).FindString(lines.Text())
	require.NotEmpty(t, url, lines.Text())
	usage := readUntil(lines, "application/json")
	require.Contains(t, usage, "curl -i -X POST "+url+"/api/auth/signin")

	do := func(method, path string) (*http.Response, string) {
		req, err := http.NewRequest(method, url+path, nil)
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp, string(body)
	}
	for _, left := range []string{"4", "3", "2", "1", "0"} {
		resp, _ := do("POST", "/api/auth/signin")
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, `"sign-in";q=5;w=3600`, resp.Header.Get("RateLimit-Policy"))
		require.Contains(t, resp.Header.Get("RateLimit"), `"sign-in";r=`+left+";t=")
	}
	resp, body := do("POST", "/api/auth/signin")
	require.Equal(t, 429, resp.StatusCode)
	require.Equal(t, "Too many login attempts, please try again later.", body)
	require.Regexp(t, `^3[56]\d\d$`, resp.Header.Get("Retry-After"))

	for path, method := range map[string]string{"/api/": "GET", "/api/chat/token": "POST"} {
		resp, _ := do(method, path)
		require.Equal(t, 200, resp.StatusCode, "%s counts apart", path)
	}

	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Skipf("no interrupt on this system: %v", err)
	}
	require.Contains(t, readUntil(lines, "shutting down"), "shutting down")
	require.NoError(t, cmd.Wait())
	require.Contains(t, logged.String(), `denied route="POST /api/auth/signin"`)
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
