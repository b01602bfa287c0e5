package redistest_test

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// once sends nothing twice, so that a client shows the first error.
func once(o *redis.Options) { o.MaxRetries, o.DialerRetries = -1, 1 }

// TestServer: a server keeps its address after Kill and after Hang, and its data
// only after Hang.
func TestServer(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := redistest.Start(t)
	c := s.Client(once)
	require.NoError(t, c.Set(ctx, "key", "value", 0).Err())

	s.Hang()
	shortTimeout := s.Client(once, func(o *redis.Options) { o.ReadTimeout = 100 * time.Millisecond })
	require.ErrorContains(t, shortTimeout.Get(ctx, "key").Err(), "timeout")
	require.True(t, s.Running())
	s.Continue()
	require.Equal(t, "value", c.Get(ctx, "key").Val())

	pid := s.Pid()
	s.Hang()
	s.Kill()
	require.False(t, s.Running())
	require.Error(t, c.Ping(ctx).Err())
	s.Restart()
	require.NotEqual(t, pid, s.Pid())
	require.ErrorIs(t, s.Client().Get(ctx, "key").Err(), redis.Nil)
}

// TestStatistics: what clients have sent can be counted.
func TestStatistics(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := redistest.Start(t)
	require.Eventually(t, func() bool { return s.Connections() == 0 }, patience, time.Millisecond)
	c := s.Client()
	for range 3 {
		require.NoError(t, redis.NewScript("return redis.call('INCR', KEYS[1])").Run(ctx, c, []string{"n"}).Err())
	}
	calls := s.Commands()
	require.EqualValues(t, 3, calls["evalsha"])
	require.EqualValues(t, 1, calls["eval"], "after the first NOSCRIPT")
	require.EqualValues(t, 3, calls["incr"])
	require.Eventually(t, func() bool { return s.Connections() == 1 }, patience, time.Millisecond)
	s.ResetStats()
	require.Zero(t, s.Commands()["evalsha"])
}

// TestDo: the helpers work when the default user has no access.
func TestDo(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, "--requirepass", "first")
	require.ErrorContains(t, s.Client().Ping(t.Context()).Err(), "NOAUTH")
	s.Do("CONFIG", "SET", "requirepass", "second")
	c := s.Client(func(o *redis.Options) { o.Password = "second" })
	require.Equal(t, "PONG", c.Ping(t.Context()).Val())
	require.Nil(t, s.Do("GET", "nothing"))
}

// TestRestartLoading: the data is there again, once.
func TestRestartLoading(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	require.NoError(t, s.Client().Set(t.Context(), "key", "value", 0).Err())
	s.RestartLoading(8 * time.Second)
	require.ErrorContains(t, s.Client(once).Get(t.Context(), "key").Err(), "LOADING")
	s.AwaitReady()
	require.Equal(t, "value", s.Client().Get(t.Context(), "key").Val())
	s.Restart()
	require.EqualValues(t, 0, s.Client().Exists(t.Context(), "key").Val(), "a restart is an empty one")
}

// TestFailSaves: writes are refused for a while; no snapshot stays behind.
func TestFailSaves(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	c := s.Client()
	s.FailSaves(true)
	require.ErrorContains(t, c.Set(t.Context(), "key", 1, 0).Err(), "MISCONF")
	s.FailSaves(false)
	require.NoError(t, c.Set(t.Context(), "key", 1, 0).Err())
	s.Restart()
	require.EqualValues(t, 0, s.Client().Exists(t.Context(), "key").Val(), "a restart is an empty one")
}

// TestMissing: without the binary a test is skipped, or fails where Redis is required.
func TestMissing(t *testing.T) {
	if os.Getenv("REDISTEST_MISSING") != "" {
		redistest.Start(t)
		return
	}
	for required, want := range map[string]string{"": "--- SKIP: TestMissing", "1": "--- FAIL: TestMissing"} {
		cmd := exec.Command(executable(t), "-test.run=^TestMissing$", "-test.v")
		cmd.Env = append(os.Environ(), "REDISTEST_MISSING=1", "PATH=", "RATELIMIT_REQUIRE_REDIS="+required)
		out, err := cmd.CombinedOutput()
		require.Equal(t, required != "", err != nil, "%s", out)
		require.Contains(t, string(out), want)
		require.Contains(t, string(out), "apt-get install redis-server")
	}
}

// TestOrphan: a server does not outlive a test binary that is killed.
func TestOrphan(t *testing.T) {
	if os.Getenv("REDISTEST_ORPHAN") != "" {
		os.Stdout.WriteString("addr=" + redistest.Start(t).Addr + "\n")
		select {}
	}
	if runtime.GOOS != "linux" {
		t.Skip("only Linux kills the children of the dead")
	}
	redistest.Start(t) // skips where there is no Redis
	cmd := exec.Command(executable(t), "-test.run=^TestOrphan$")
	cmd.Env = append(os.Environ(), "REDISTEST_ORPHAN=1", "TMPDIR="+t.TempDir())
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait(), "it was killed")
	require.NoError(t, err)
	addr := strings.TrimSpace(strings.TrimPrefix(line, "addr="))
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err != nil
	}, 30*time.Second, 10*time.Millisecond)
}

func executable(t *testing.T) string {
	path, err := os.Executable()
	require.NoError(t, err)
	return path
}
