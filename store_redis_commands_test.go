package ratelimit_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// TestRedisOneCommand: each call on a store is one EVALSHA, and the text of a script is
// sent once.
func TestRedisOneCommand(t *testing.T) {
	server := redistest.Start(t)
	s := redisStore(t, server.Client(), "rl:")
	for _, limits := range append([][]Limit{slow(5)}, slow(5)[:1], slow(5)[1:2], slow(5)[2:]) {
		for _, op := range every {
			require.NoError(t, op.do(s, "warm", limits))
		}
	}
	sent := server.Commands()
	require.EqualValues(t, 3, sent["eval"], "one for each of the scripts")
	require.EqualValues(t, 4*len(every), sent["evalsha"])

	before := server.Commands()
	for _, limits := range append([][]Limit{slow(5)}, slow(5)[:1], slow(5)[1:2], slow(5)[2:]) {
		for _, op := range every {
			for range 10 {
				require.NoError(t, op.do(s, "k", limits))
			}
		}
	}
	after := server.Commands()
	require.EqualValues(t, 10*4*len(every), after["evalsha"]-before["evalsha"])
	require.Equal(t, before["eval"], after["eval"])
	for _, name := range []string{"exec", "multi", "script|load", "expire", "pexpire"} {
		require.Zero(t, after[name], name)
	}
}

// TestRedisLimiterOneCommand: the same for a limiter, whose calls are made on its caller's
// goroutine, and whose record costs one command.
func TestRedisLimiterOneCommand(t *testing.T) {
	server := redistest.Start(t)
	var reg Registry
	defer reg.Close()
	l := Must(reg.New("api", withRedis(server.Client(), FixedWindow(500, time.Hour))))
	for range 500 {
		d, err := l.Take(ctx, "k")
		require.NoError(t, err)
		require.True(t, d.Allowed)
	}
	require.NoError(t, l.Close()) // and so its record has been written
	sent := server.Commands()
	require.EqualValues(t, 1, sent["eval"])
	require.LessOrEqual(t, sent["evalsha"], int64(501))
	require.GreaterOrEqual(t, sent["evalsha"], int64(500))
	// What the scripts do is counted too: the first unit is a SET, as is the record.
	require.EqualValues(t, 2, sent["set"])
	require.EqualValues(t, 499, sent["incrby"])
}

// TestRedisSharing: callers who come together share commands, and are told as if they had
// come one by one.
func TestRedisSharing(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	proxy.Latency(time.Millisecond) // so that they do come together
	client := redisClient(t, proxy.Addr)
	s := redisStore(t, client, "rl:")
	for _, limits := range append([][]Limit{slow(500)}, slow(500)[:1], slow(500)[1:2], slow(500)[2:]) {
		require.NoError(t, client.FlushDB(ctx).Err())
		before := server.Commands()["evalsha"]
		var mu sync.Mutex
		var denied int
		seen := make(map[int64]int) // how many were told so many remaining
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				results := make([]Result, len(limits))
				for range 10 {
					if _, err := s.Take(ctx, "k", 1, limits, results); err != nil {
						t.Error(err)
					}
					mu.Lock()
					if results[0].RetryAfter > 0 {
						denied++
					} else {
						seen[results[0].Remaining]++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		require.Equal(t, 140, denied, "%v", limits)
		require.Len(t, seen, 500, "each remaining number of units was told")
		for n, times := range seen {
			require.Equal(t, 1, times, "%d remaining, %v", n, limits)
		}
		require.Less(t, server.Commands()["evalsha"]-before, int64(320), "%v", limits)
	}
}

// TestRedisScriptFlush: that the server forgets the scripts in mid-traffic is not seen.
func TestRedisScriptFlush(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	s := redisStore(t, client, "rl:")
	for _, limits := range append([][]Limit{slow(1000)}, slow(1000)[:1], slow(1000)[1:2], slow(1000)[2:]) {
		require.NoError(t, client.FlushDB(ctx).Err())
		done := make(chan struct{})
		var flushing sync.WaitGroup
		flushing.Go(func() {
			for {
				if err := client.ScriptFlush(ctx).Err(); err != nil {
					t.Error(err)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
		require.EqualValues(t, 1000, hammer(t, s, "k", 8, 200, limits...), "%v", limits)
		close(done)
		flushing.Wait()
	}
	require.Greater(t, server.Commands()["eval"], int64(4), "it did forget")
}

// TestRedisProcesses: several processes, each with many goroutines, admit exactly the
// limit of a key.
func TestRedisProcesses(t *testing.T) {
	const processes, goroutines, each, limit = 4, 16, 20, 700
	if addr := os.Getenv("RATELIMIT_TEST_REDIS"); addr != "" { // one of them
		s := redisStore(t, redisClient(t, addr), "rl:")
		fmt.Println("ready")
		bufio.NewReader(os.Stdin).ReadString('\n')
		for i, limits := range contested(limit) {
			fmt.Println("admitted", hammer(t, s, fmt.Sprint("key", i), goroutines, each, limits...))
		}
		return
	}
	t.Parallel()
	server := redistest.Start(t)
	self, err := os.Executable()
	require.NoError(t, err)
	var outputs []*bufio.Scanner
	var start []func()
	for range processes {
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestRedisProcesses$")
		cmd.Env = append(os.Environ(), "RATELIMIT_TEST_REDIS="+server.Addr)
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(stdout)
		require.True(t, lines.Scan())
		require.Equal(t, "ready", lines.Text())
		outputs = append(outputs, lines)
		start = append(start, func() { stdin.Write([]byte("\n")) })
		defer cmd.Wait()
	}
	for _, start := range start {
		start()
	}
	sums := make([]int64, len(contested(limit)))
	for _, lines := range outputs {
		for i := range sums {
			require.True(t, lines.Scan())
			n, ok := strings.CutPrefix(lines.Text(), "admitted ")
			require.True(t, ok, lines.Text())
			admitted, err := strconv.ParseInt(n, 10, 64)
			require.NoError(t, err)
			sums[i] += admitted
		}
		for lines.Scan() { // how the test went over there
		}
	}
	for i, limits := range contested(limit) {
		require.EqualValues(t, limit, sums[i], "%v", limits)
	}
}

// contested are what processes fight for: one limit of each algorithm, two at once, and three.
func contested(n int64) [][]Limit {
	l := slow(n)
	loose := FixedWindow(n+50, time.Hour)
	return [][]Limit{l[:1], l[1:2], l[2:], {loose, l[1]}, {l[0], loose}, l}
}

// TestRedisLimitersCountApart: two limiters on one client, whose names begin alike and whose
// keys look like each other's.
func TestRedisLimitersCountApart(t *testing.T) {
	client := redistest.Start(t).Client()
	var reg Registry
	defer reg.Close()
	limiters := make(map[string]*Limiter)
	for _, name := range []string{"api", "api:login", "login", "{api}", "a b", "a%20b"} {
		limiters[name] = Must(reg.New(name, withRedis(client, FixedWindow(3, time.Hour))))
	}
	admitted := 0
	for _, l := range limiters {
		for _, key := range []string{"login:k", "k", "}:k", "{k}"} {
			for range 4 {
				d, err := l.Take(ctx, key)
				require.NoError(t, err)
				if d.Allowed {
					admitted++
				}
			}
		}
	}
	require.Equal(t, len(limiters)*4*3, admitted)
}
