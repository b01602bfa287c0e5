package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestREADMEProgram runs the program at the top of the README, and compares the answer to
// the sixth login with the README's.
func TestREADMEProgram(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	blocks := blocksOf("README.md", string(readme))
	at := slices.IndexFunc(blocks, func(b codeBlock) bool { return strings.HasPrefix(b.code, "package main\n") })
	require.GreaterOrEqual(t, at, 0, "README.md has no program")
	answer := slices.IndexFunc(blocks, func(b codeBlock) bool { return strings.HasPrefix(b.code, "HTTP/1.1 429") })
	require.GreaterOrEqual(t, answer, 0, "README.md has no answer")

	const documented = "127.0.0.1:8080"
	require.Contains(t, blocks[at].code, documented)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := listener.Addr().String()
	listener.Close() // for the program

	dir, err := os.MkdirTemp(".", "_readme-*") // in a module that requires the library
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	source := strings.ReplaceAll(blocks[at].code, documented, addr)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600))
	program := filepath.Join(t.TempDir(), "readme")
	out, err := exec.Command("go", "build", "-o", program, "./"+filepath.ToSlash(dir)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	server := exec.Command(program)
	require.NoError(t, server.Start())
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })

	login := func() (*http.Response, error) { return http.Post("http://"+addr+"/login", "", nil) }
	require.Eventually(t, func() bool {
		response, err := http.Get("http://" + addr + "/") // not a login: it does not count
		if err == nil {
			response.Body.Close()
		}
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	for range 5 {
		response, err := login()
		require.NoError(t, err)
		response.Body.Close()
		require.Equal(t, http.StatusOK, response.StatusCode)
	}
	response, err := login()
	require.NoError(t, err)
	defer response.Body.Close()
	got, err := httputil.DumpResponse(response, true)
	require.NoError(t, err)
	// The README shows only the fields that this library sets, and some time has passed.
	fields := regexp.MustCompile(`(?m)^(Ratelimit|Retry-After)`)
	var lines []string
	head, body, _ := strings.Cut(strings.ReplaceAll(string(got), "\r\n", "\n"), "\n\n")
	for i, line := range strings.Split(head, "\n") {
		if i == 0 || fields.MatchString(line) {
			lines = append(lines, line)
		}
	}
	seconds := regexp.MustCompile(`(t=|Retry-After: )3[56]\d\d`)
	text := func(answer string) string {
		return strings.TrimSpace(seconds.ReplaceAllString(answer, "${1}3542"))
	}
	require.Equal(t, text(blocks[answer].code), text(fmt.Sprintf("%s\n\n%s", strings.Join(lines, "\n"), body)))
}
