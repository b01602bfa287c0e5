package main

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
)

// TestMain lets the test binary run as the program, so that the tests can start it like a
// user, in a separate process.
func TestMain(m *testing.M) {
	if dir := os.Getenv("EXAMPLE_DIR"); dir != "" {
		os.Args = []string{"password-reset", "-addr", "127.0.0.1:0", "-dir", dir}
		main()
		return
	}
	os.Exit(m.Run())
}

// program returns a command that runs the program with its counters in dir.
func program(dir string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "EXAMPLE_DIR="+dir)
	return cmd
}

// TestNoDirectory checks that without its directory the program ends with the library's
// error, and that its parts return that error, too.
func TestNoDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	r, err := newReset(ratelimit.FixedWindow(3, time.Hour), dir)
	require.Nil(t, r)
	require.ErrorContains(t, err, "none does not exist: make it")

	out, failed := program(dir).CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, failed, &exit)
	require.Equal(t, 1, exit.ExitCode())
	require.True(t, strings.HasSuffix(string(out), " "+err.Error()+"\n"), "%s", out)
	require.Equal(t, 1, strings.Count(string(out), "\n"), "%s", out)
}

// TestSecondProcess checks that a second process waits for the directory of the first, and
// then returns an error that names the first.
func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	first := program(dir)
	out, err := first.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, first.Start())
	t.Cleanup(func() { first.Process.Kill() })
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r, err := newReset(ratelimit.FixedWindow(3, time.Hour), dir)
		require.Nil(t, r)
		require.ErrorContains(t, err, fmt.Sprint("the file is in use by process ", first.Process.Pid))
		require.ErrorContains(t, err, "reset-address.snapshot")
		require.InDelta(t, 10, time.Since(start).Seconds(), 0.1)
	})
	require.NoError(t, first.Process.Kill())
	require.Error(t, first.Wait())
	r, err := newReset(ratelimit.FixedWindow(3, time.Hour), dir)
	require.NoError(t, err)
	other, err := newReset(ratelimit.FixedWindow(3, time.Hour), t.TempDir())
	require.Nil(t, other)
	require.ErrorContains(t, err, "is open with MemoryOptions.SnapshotFile")
	require.Equal(t, 204, ask(r, "192.0.2.1", "ada@example.com").Code, "the first one goes on")
	require.NoError(t, r.close())
}

// ask asks for a code from an address. Without an e-mail, it asks whether a code is left.
func ask(r *reset, address, email string) *httptest.ResponseRecorder {
	req := httptest.NewRequest("GET", "/codes", nil)
	if email != "" {
		req = httptest.NewRequest("POST", "/codes", strings.NewReader(url.Values{"email": {email}}.Encode()))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.RemoteAddr = address + ":1234"
	w := httptest.NewRecorder()
	r.handler().ServeHTTP(w, req)
	return w
}

// TestCodes checks that an address and a mailbox get three codes each, within an hour of
// the first code, whatever happens to the program in between.
func TestCodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		start := func() *reset {
			r, err := newReset(ratelimit.FixedWindow(3, time.Hour), dir)
			require.NoError(t, err)
			return r
		}
		r := start()
		require.Equal(t, 204, ask(r, "192.0.2.1", "").Code)
		require.Equal(t, 400, ask(r, "192.0.2.1", "nobody").Code)
		require.Equal(t, 400, ask(r, "192.0.2.1", "Ada <ada@example.com>").Code)
		for _, email := range []string{"ada@example.com", "Ada@Example.com", "ADA@example.com"} {
			require.Equal(t, 204, ask(r, "192.0.2.1", email).Code)
			time.Sleep(time.Minute)
		}
		refused := func(address, email string, minutes string) {
			t.Helper()
			w := ask(r, address, email)
			require.Equal(t, http.StatusTooManyRequests, w.Code)
			require.Equal(t, minutes, w.Header().Get("Retry-After"))
		}
		for range 3 {
			refused("192.0.2.1", "", "3420")
			refused("192.0.2.1", "grace@example.com", "3420")
			refused("192.0.2.2", "aDa@example.com", "3420")
			require.Equal(t, 204, ask(r, "192.0.2.2", "").Code, "who is refused for the mailbox has spent nothing")
			require.NoError(t, r.close())
			r = start()
		}
		time.Sleep(57*time.Minute - time.Nanosecond)
		refused("192.0.2.1", "", "1")
		time.Sleep(time.Nanosecond)
		require.Equal(t, 204, ask(r, "192.0.2.1", "ada@example.com").Code)
		require.NoError(t, r.close())
	})
}

// TestPage checks that the page is served, and that other sites cannot ask for codes on a
// visitor's behalf.
func TestPage(t *testing.T) {
	r, err := newReset(ratelimit.FixedWindow(3, time.Hour), t.TempDir())
	require.NoError(t, err)
	defer r.close()
	w := httptest.NewRecorder()
	r.handler().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	require.Equal(t, 200, w.Code)
	require.Contains(t, w.Body.String(), "Forgot password")

	req := httptest.NewRequest("POST", "/codes", strings.NewReader("email=ada%40example.com"))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	w = httptest.NewRecorder()
	r.handler().ServeHTTP(w, req)
	require.Equal(t, 403, w.Code)
}
