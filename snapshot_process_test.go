package ratelimit_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestMain lets the test binary be a program that counts, for tests that kill it.
func TestMain(m *testing.M) {
	if file := os.Getenv("RATELIMIT_COUNT_IN"); file != "" {
		if err := countIn(file); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

var (
	unlimited = FixedWindow(1_000_000_000, 24*time.Hour)
	once      = FixedWindow(1, 24*time.Hour)
)

// countIn counts in a file until SIGTERM, and then closes the store. It prints what it
// has found, how much it has counted, and how much that was in the end. "hot" is
// counted without end, "once" is denied, and thousands of others make the file
// so big that it is often being written.
func countIn(file string) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	opts := MemoryOptions{SnapshotFile: file, SnapshotEvery: 10 * time.Millisecond}
	if os.Getenv("RATELIMIT_WAIT") != "" {
		opts.SnapshotWait = time.Minute
		fmt.Println("waiting")
	}
	s, err := NewMemoryStore("child", opts)
	if err != nil {
		return err
	}
	take := func(key string, n int64, l Limit) Result {
		var results [1]Result
		if _, err2 := s.Take(ctx, key, n, []Limit{l}, results[:]); err2 != nil {
			err = err2
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

// child is a process that runs countIn.
type child struct {
	*exec.Cmd
	found  int64 // at its start
	once   int64 // what was left of it
	hot    atomic.Int64
	failed string
	over   chan struct{}
}

// start starts a child and waits until it has its store, or has failed.
func start(t *testing.T, file string, env ...string) *child {
	t.Helper()
	c := launch(t, file, env...)
	line := <-c.lines
	if _, err := fmt.Sscanf(line, "found %d %d", &c.found, &c.once); err != nil {
		for more := range c.lines {
			line += more
		}
		c.failed = line
	}
	c.follow()
	return c.child
}

type launched struct {
	*child
	lines chan string
}

func launch(t *testing.T, file string, env ...string) launched {
	t.Helper()
	c := &child{Cmd: exec.Command(os.Args[0]), over: make(chan struct{})}
	c.Env = append(append(os.Environ(), "RATELIMIT_COUNT_IN="+file), env...)
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	c.Stderr = os.Stderr
	require.NoError(t, c.Start())
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return launched{c, lines}
}

// follow reads what the child prints until it has ended.
func (c launched) follow() {
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

func (c *child) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, c.Process.Kill())
	<-c.over
	c.Wait()
}

func (c *child) terminate(t *testing.T) {
	t.Helper()
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Skipf("no SIGTERM here: %v", err)
	}
	<-c.over
	require.NoError(t, c.Wait())
}

// written waits until the file has been written twice from now on, so that what
// has been counted by now is in it.
func written(t *testing.T, file string) {
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

// TestSnapshotSurvivesKills: killed at any instant, often in the middle of a write,
// a process leaves a file with all that was counted before the last write, and never
// more than was counted; who was denied is denied at once.
func TestSnapshotSurvivesKills(t *testing.T) {
	file := inFile(t).SnapshotFile
	var floor, ceiling int64
	torn := 0
	for i := range 30 {
		c := start(t, file)
		require.Empty(t, c.failed)
		require.GreaterOrEqual(t, c.found, floor, "kill %d has lost what was written", i)
		require.LessOrEqual(t, c.found, ceiling+1000, "kill %d has made counts up", i)
		if i > 0 {
			require.Zero(t, c.once, "who was denied is let in")
		}
		if i%3 == 0 {
			sure := c.hot.Load()
			written(t, file)
			floor = max(floor, sure)
		} else {
			time.Sleep(time.Duration(rand.IntN(50_000)) * time.Microsecond)
			floor = c.found
		}
		c.kill(t)
		ceiling = c.hot.Load()
		ceiling = max(ceiling, c.found)
		if _, err := os.Stat(file + ".tmp"); err == nil {
			torn++
		}
	}
	require.NotZero(t, floor)
	t.Logf("%d units counted; %d of 30 kills were in the middle of a write aside", ceiling, torn)
}

// TestSnapshotSurvivesTermination: with Close on SIGTERM nothing at all is lost.
func TestSnapshotSurvivesTermination(t *testing.T) {
	file := inFile(t).SnapshotFile
	var closed int64
	for range 5 {
		c := start(t, file)
		require.Empty(t, c.failed)
		require.Equal(t, closed, c.found)
		written(t, file)
		c.terminate(t)
		closed = c.hot.Load()
		require.Greater(t, closed, c.found)
	}
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm()&0o077, "others may read it")
}

// TestSnapshotOfTwoProcesses: the second process on a file is told which the first one
// is; or it waits for it to end, however it does.
func TestSnapshotOfTwoProcesses(t *testing.T) {
	file := inFile(t).SnapshotFile
	first := start(t, file)
	require.Empty(t, first.failed)
	second := start(t, file)
	require.Contains(t, second.failed, fmt.Sprintf("SnapshotFile %s: the file is in use by process %d", file, first.Process.Pid))
	require.Contains(t, second.failed, "SnapshotWait")
	_, err := NewMemoryStore(t.Name(), MemoryOptions{SnapshotFile: file})
	memErrorNames(t, err, fmt.Sprint("in use by process ", first.Process.Pid))

	for _, end := range []func(*child, *testing.T){(*child).terminate, (*child).kill} {
		written(t, file)
		waiting := launch(t, file, "RATELIMIT_WAIT=yes")
		require.Equal(t, "waiting", <-waiting.lines)
		end(first, t)
		line := <-waiting.lines
		require.True(t, strings.HasPrefix(line, "found "), line)
		var left int64
		_, err := fmt.Sscanf(line, "found %d %d", &waiting.found, &left)
		require.NoError(t, err)
		require.Zero(t, left)
		require.Positive(t, waiting.found)
		waiting.follow()
		first = waiting.child
	}
}

// TestSnapshotLockIsRemoved: the second process on a file is kept out also if
// somebody removes the lock again and again, and the first one loses nothing.
func TestSnapshotLockIsRemoved(t *testing.T) {
	file := inFile(t).SnapshotFile
	first := start(t, file)
	require.Empty(t, first.failed)
	written(t, file)
	for range 10 {
		if err := os.Remove(file + ".lock"); err != nil {
			t.Skipf("the lock cannot be removed here: %v", err)
		}
		second := start(t, file)
		require.Contains(t, second.failed, "the file is in use by")
		require.Eventually(t, func() bool { // it is made again
			pid, err := os.ReadFile(file + ".lock")
			return err == nil && strings.TrimSpace(string(pid)) == fmt.Sprint(first.Process.Pid)
		}, time.Minute, time.Millisecond)
	}
	os.Remove(file + ".lock")
	first.terminate(t)
	next := start(t, file)
	require.Empty(t, next.failed)
	require.Equal(t, first.hot.Load(), next.found)
	require.Zero(t, next.once)
}
