package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestSnapshotSurvivesKills kills a process at any instant, often in the middle of a
// write. The file then has all units that were counted before the last complete write, and
// never more than were counted. A key that was denied is denied at once after the restart.
func TestSnapshotSurvivesKills(t *testing.T) {
	file := snapshotFile(t)
	var floor, ceiling int64
	torn := 0
	for i := range 30 {
		c := startCounter(t, file)
		require.Empty(t, c.failed)
		require.GreaterOrEqual(t, c.found, floor, "kill %d has lost what was written", i)
		require.LessOrEqual(t, c.found, ceiling+1000, "kill %d has invented counts", i)
		if i > 0 {
			require.Zero(t, c.once, "a denied key is admitted")
		}
		if i%3 == 0 {
			sure := c.hot.Load()
			awaitTwoWrites(t, file)
			floor = max(floor, sure)
		} else {
			time.Sleep(time.Duration(rand.IntN(50_000)) * time.Microsecond)
			floor = c.found
		}
		c.kill(t)
		ceiling = max(c.hot.Load(), c.found)
		if _, err := os.Stat(file + ".tmp"); err == nil {
			torn++
		}
	}
	require.NotZero(t, floor)
	t.Logf("%d units counted; %d of 30 kills interrupted a write", ceiling, torn)
}

// TestCloseOnSIGTERMLosesNothing ends processes that close their store on SIGTERM.
func TestCloseOnSIGTERMLosesNothing(t *testing.T) {
	file := snapshotFile(t)
	var closed int64
	for range 5 {
		c := startCounter(t, file)
		require.Empty(t, c.failed)
		require.Equal(t, closed, c.found)
		awaitTwoWrites(t, file)
		c.terminate(t)
		closed = c.hot.Load()
		require.Greater(t, closed, c.found)
	}
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm()&0o077, "others may read it")
}

// TestSnapshotFileHasOneProcess opens a file in a second process. The second one gets an
// error that names the first, or with SnapshotWait it waits until the first one has ended,
// by SIGTERM or by SIGKILL.
func TestSnapshotFileHasOneProcess(t *testing.T) {
	file := snapshotFile(t)
	first := startCounter(t, file)
	require.Empty(t, first.failed)
	second := startCounter(t, file)
	require.Contains(t, second.failed, fmt.Sprintf("SnapshotFile %s: the file is in use by process %d", file, first.Process.Pid))
	require.Contains(t, second.failed, "SnapshotWait")
	_, err := NewMemoryStore(t.Name(), MemoryOptions{SnapshotFile: file})
	require.ErrorContains(t, err, "ratelimit: ")
	require.ErrorContains(t, err, fmt.Sprint("in use by process ", first.Process.Pid))

	for _, end := range []func(*counter, *testing.T){(*counter).terminate, (*counter).kill} {
		awaitTwoWrites(t, file)
		waiting := launchCounter(t, file, waitEnv+"=yes")
		require.Equal(t, "waiting", waiting.line(t))
		end(first, t)
		waiting.open()
		require.Empty(t, waiting.failed)
		require.Zero(t, waiting.once)
		require.Positive(t, waiting.found)
		first = waiting
	}
}

// TestSecondProcessIsKeptOutWithoutTheLock removes the .lock file again and again: a
// second process is kept out nevertheless, and the first one loses nothing.
func TestSecondProcessIsKeptOutWithoutTheLock(t *testing.T) {
	file := snapshotFile(t)
	first := startCounter(t, file)
	require.Empty(t, first.failed)
	awaitTwoWrites(t, file)
	for range 10 {
		if err := os.Remove(file + ".lock"); err != nil {
			t.Skipf("the lock cannot be removed here: %v", err)
		}
		second := startCounter(t, file)
		require.Contains(t, second.failed, "the file is in use by")
		require.Eventually(t, func() bool { // the process makes it again
			pid, err := os.ReadFile(file + ".lock")
			return err == nil && strings.TrimSpace(string(pid)) == fmt.Sprint(first.Process.Pid)
		}, time.Minute, time.Millisecond)
	}
	os.Remove(file + ".lock")
	first.terminate(t)
	next := startCounter(t, file)
	require.Empty(t, next.failed)
	require.Equal(t, first.hot.Load(), next.found)
	require.Zero(t, next.once)
}

// snapshotFile returns a path for a snapshot file in a directory of its own.
func snapshotFile(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	return filepath.Join(dir, "counters.snapshot")
}

// awaitTwoWrites waits until the file has been written twice from now on. It then holds
// everything that has been counted before the call.
func awaitTwoWrites(t *testing.T, file string) {
	t.Helper()
	state := func() string {
		info, err := os.Stat(file)
		if err != nil {
			return "not there"
		}
		return fmt.Sprint(info.Size(), info.ModTime().UnixNano())
	}
	deadline := time.Now().Add(time.Minute)
	for range 2 {
		for was := state(); state() == was; time.Sleep(time.Millisecond) {
			require.True(t, time.Now().Before(deadline), "the file is not written")
		}
	}
}

// counter is a child process that counts in a snapshot file; see [countInFile].
type counter struct {
	*child
	failed string        // its error, if it could not open the file
	found  int64         // units of "hot" in the file that it opened
	once   int64         // units left of "once" in that file
	hot    atomic.Int64  // units of "hot" that it has counted since, by its latest report
	over   chan struct{} // closed when it has ended and its last report is in hot
}

// startCounter starts a counter and returns when it has opened the file, or failed to.
func startCounter(t *testing.T, file string, env ...string) *counter {
	t.Helper()
	c := launchCounter(t, file, env...)
	c.open()
	return c
}

// launchCounter starts a counter. The caller must call open.
func launchCounter(t *testing.T, file string, env ...string) *counter {
	t.Helper()
	return &counter{child: startChild(t, "count", append(env, fileEnv+"="+file)...), over: make(chan struct{})}
}

// open waits until the process has opened the file, or failed to. From then on a
// goroutine reads its reports.
func (c *counter) open() {
	line := <-c.lines
	if _, err := fmt.Sscanf(line, "found %d %d", &c.found, &c.once); err != nil {
		for more := range c.lines {
			line += more
		}
		c.failed = line
	}
	go func() {
		defer close(c.over)
		for line := range c.lines {
			var n int64
			if _, err := fmt.Sscanf(line, "counted %d", &n); err == nil {
				c.hot.Store(n)
			} else if _, err := fmt.Sscanf(line, "closed %d", &n); err == nil {
				c.hot.Store(n)
			}
		}
	}()
}

// kill ends the process with SIGKILL.
func (c *counter) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, c.Process.Kill())
	<-c.over
	c.Wait()
}

// terminate ends the process with SIGTERM. It must end without an error.
func (c *counter) terminate(t *testing.T) {
	t.Helper()
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Skipf("no SIGTERM here: %v", err)
	}
	<-c.over
	require.NoError(t, c.Wait())
}

const (
	fileEnv = "RATELIMIT_E2E_FILE" // the environment variable with a counter's file
	waitEnv = "RATELIMIT_E2E_WAIT" // set if a counter waits for another process to release the file
)

// countInFile counts in a snapshot file until SIGTERM, and then closes the store. The key
// "hot" is counted all the time, "once" is denied, and 50,000 other keys make the file so
// large that it is being written most of the time. It prints what it has found in the
// file, from time to time how often it has counted "hot", and the final number.
func countInFile() error {
	unlimited, once := FixedWindow(1_000_000_000, 24*time.Hour), FixedWindow(1, 24*time.Hour)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	opts := MemoryOptions{SnapshotFile: os.Getenv(fileEnv), SnapshotEvery: 10 * time.Millisecond}
	if os.Getenv(waitEnv) != "" {
		opts.SnapshotWait = time.Minute
		fmt.Println("waiting")
	}
	s, err := NewMemoryStore("child", opts)
	if err != nil {
		return err
	}
	take := func(key string, n int64, l Limit) Result {
		var results [1]Result
		if _, takeErr := s.Take(ctx, key, n, []Limit{l}, results[:]); takeErr != nil {
			err = takeErr
		}
		return results[0]
	}
	hot := unlimited.N() - take("hot", 0, unlimited).Remaining
	fmt.Printf("found %d %d\n", hot, take("once", 0, once).Remaining)
	take("once", 1, once)
	for i := 0; err == nil; i++ {
		hot = unlimited.N() - take("hot", 1, unlimited).Remaining
		take(fmt.Sprint(i%50_000), 1, unlimited)
		if i%500 == 0 {
			fmt.Println("counted", hot)
		}
		select {
		case <-stop:
			if err := s.Close(); err != nil {
				return err
			}
			fmt.Println("closed", hot)
			return nil
		default:
		}
	}
	return err
}
