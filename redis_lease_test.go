package ratelimit_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// load is what a process sends to one limiter: requests for one key, evenly spaced. Processes
// with a load of the same name share that limiter's counters.
type load struct {
	Addr    string
	Name    string
	Limit   Limit
	Rate    float64 // a second
	Span    time.Duration
	Lease   time.Duration
	Recheck time.Duration
}

type loadReport struct{ Requests, Admitted, Leased, Failed int64 }

// loader is a process of its own: this test binary, which runs [TestLoader] alone.
type loader struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader

	isReady bool
}

const loaderEnv = "RATELIMIT_TEST_LOADER"

func startLoader(t *testing.T, loads []load) *loader {
	args, err := json.Marshal(loads)
	require.NoError(t, err)
	l := &loader{t: t, cmd: exec.Command(os.Args[0], "-test.run=^TestLoader$", "-test.v")}
	l.cmd.Env = append(os.Environ(), loaderEnv+"="+string(args))
	l.cmd.Stderr = os.Stderr
	l.in, err = l.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := l.cmd.StdoutPipe()
	require.NoError(t, err)
	l.out = bufio.NewReader(out)
	require.NoError(t, l.cmd.Start())
	t.Cleanup(l.kill)
	return l
}

// read returns what the process says next.
func (l *loader) read() string {
	for {
		line, err := l.out.ReadString('\n')
		require.NoError(l.t, err)
		if said, ok := strings.CutPrefix(line, "loader: "); ok {
			return said
		}
	}
}

// ready returns when the process waits to be told to go.
func (l *loader) ready() {
	if !l.isReady {
		l.read()
	}
	l.isReady = true
}

// kill is with SIGKILL. A process that has ended stays so.
func (l *loader) kill() {
	l.cmd.Process.Kill()
	l.cmd.Wait()
}

// end lets the process close its limiters.
func (l *loader) end() {
	l.in.Close()
	l.read()
	l.kill()
}

// runLoaders has all processes send their load at once, and returns when they have. They
// go on to hold what they hold.
func runLoaders(t *testing.T, loaders []*loader) (reports [][]loadReport) {
	for _, l := range loaders {
		l.ready()
	}
	for _, l := range loaders {
		fmt.Fprintln(l.in, "go")
	}
	for _, l := range loaders {
		var r []loadReport
		require.NoError(t, json.Unmarshal([]byte(l.read()), &r))
		for _, r := range r {
			require.Zero(t, r.Failed)
		}
		reports = append(reports, r)
	}
	return reports
}

// TestLoader is what the other processes do. It skips in this one.
func TestLoader(t *testing.T) {
	text, ok := os.LookupEnv(loaderEnv)
	if !ok {
		t.Skip("runs in the processes of other tests")
	}
	var loads []load
	require.NoError(t, json.Unmarshal([]byte(text), &loads))
	reports, limiters := make([]loadReport, len(loads)), make([]*Limiter, len(loads))
	for i, load := range loads {
		client := redis.NewClient(&redis.Options{Addr: load.Addr})
		limiters[i] = Must(New(load.Name, Options{
			Limits: []Limit{load.Limit}, Redis: client, Lease: load.Lease, DenyRecheck: load.Recheck, Timeout: 10 * time.Second,
		}))
		_, err := limiters[i].TakeN(ctx, "key", 0) // connected
		require.NoError(t, err)
	}
	fmt.Println("loader: ready")
	in := bufio.NewReader(os.Stdin)
	in.ReadString('\n')
	var sending sync.WaitGroup
	for i, load := range loads {
		sending.Go(func() { reports[i] = load.send(limiters[i]) })
	}
	sending.Wait()
	said, err := json.Marshal(reports)
	require.NoError(t, err)
	fmt.Printf("loader: %s\n", said)
	in.ReadString('\n') // until it is to end
	for _, l := range limiters {
		l.Close()
	}
	fmt.Println("loader: closed")
}

func (load load) send(l *Limiter) (r loadReport) {
	total := int64(load.Rate * load.Span.Seconds())
	gap := time.Duration(float64(time.Second) / load.Rate)
	for start := time.Now(); r.Requests < total; r.Requests++ {
		time.Sleep(time.Until(start.Add(time.Duration(r.Requests) * gap)))
		d, err := l.Take(ctx, "key")
		if err != nil || d.Source >= SourceFallback {
			r.Failed++
		}
		if d.Allowed {
			r.Admitted++
		}
	}
	r.Leased = int64(l.Stats().Remote.Leased)
	return r
}

// shares are parts of a whole: the first one's, and the rest evenly.
func shares(processes int, first float64) []float64 {
	s := slices.Repeat([]float64{(1 - first) / max(1, float64(processes-1))}, processes)
	s[0] = first
	return s
}

// TestRedisLeases: processes on one server admit all of a limit and no more, however the load is spread, and
// with far fewer commands than decisions.
func TestRedisLeases(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	server := redistest.Start(t)
	for _, processes := range []int{1, 4, 16} {
		for _, first := range []float64{1 / float64(processes), 0.9} {
			if processes == 1 && first != 1 {
				continue
			}
			t.Run(fmt.Sprintf("%d/%.2f", processes, first), func(t *testing.T) {
				const n = 2000
				limits := []Limit{FixedWindow(n, time.Hour), SlidingWindow(n, time.Hour), TokenBucket(1, time.Hour, n)}
				var loaders []*loader
				for _, share := range shares(processes, first) {
					var loads []load
					for i, l := range limits {
						loads = append(loads, load{server.Addr, fmt.Sprint(t.Name(), i), l, share * 2 * n, 2 * time.Second, 100 * time.Millisecond, 100 * time.Millisecond})
					}
					loaders = append(loaders, startLoader(t, loads))
				}
				for _, l := range loaders {
					l.ready()
				}
				server.ResetStats()
				reports := runLoaders(t, loaders)
				commands := server.Commands()["evalsha"]
				requests, missing := int64(0), int64(0)
				for i, l := range limits {
					admitted, leased := int64(0), int64(0)
					for _, r := range reports {
						requests += r[i].Requests
						admitted += r[i].Admitted
						leased += r[i].Leased
					}
					missing += n - admitted
					require.LessOrEqual(t, admitted, int64(n), "%v", l)
					require.GreaterOrEqual(t, admitted, int64(n-n/100), "%v: the load went on for long enough to use all", l)
					require.Greater(t, leased, admitted/2, "%v", l)
				}
				t.Logf("%.3f commands a decision, %d of %d units missing", float64(commands)/float64(requests), missing, len(limits)*n)
				require.Less(t, 3*commands, requests)
			})
		}
	}
}

// TestRedisLeasesKilled: processes that are killed take along a 16th of what was left, each,
// and half of what they were asked for in an age.
func TestRedisLeasesKilled(t *testing.T) {
	server := redistest.Start(t)
	const (
		n, killed = 2000, 4
		age       = 10 * time.Second
	)
	limit := FixedWindow(n, time.Hour)
	var loaders []*loader
	for range killed {
		loaders = append(loaders, startLoader(t, []load{{server.Addr, "killed", limit, 1000, 200 * time.Millisecond, age, 0}}))
	}
	used := int64(0)
	for _, r := range runLoaders(t, loaders) {
		used += r[0].Admitted
	}
	require.EqualValues(t, killed*200, used)
	for _, l := range loaders {
		l.kill()
	}
	rest := startLoader(t, []load{{server.Addr, "killed", limit, 5000, 400 * time.Millisecond, age, 0}})
	used += runLoaders(t, []*loader{rest})[0][0].Admitted
	t.Logf("%d of %d units went with %d processes", n-used, n, killed)
	require.LessOrEqual(t, used, int64(n))
	require.GreaterOrEqual(t, used, int64(n-killed*min(n/16, 200/2)))
}

// TestRedisLeasesClosed: processes that end give back what they hold.
func TestRedisLeasesClosed(t *testing.T) {
	server := redistest.Start(t)
	limit := FixedWindow(2000, time.Hour)
	var loaders []*loader
	for range 4 {
		loaders = append(loaders, startLoader(t, []load{{server.Addr, "closed", limit, 1000, 200 * time.Millisecond, time.Minute, 0}}))
	}
	runLoaders(t, loaders)
	store := redisStore(t, server.Client(), "rl:closed:")
	left := func() int64 {
		results := make([]Result, 1)
		_, err := store.Take(ctx, "key", 0, []Limit{limit}, results)
		require.NoError(t, err)
		return results[0].Remaining
	}
	require.Less(t, left(), int64(1200))
	for _, l := range loaders {
		l.end()
	}
	require.EqualValues(t, 1200, left())
}
