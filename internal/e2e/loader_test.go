package e2e_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// load is what a process sends to one limiter: evenly spaced requests for one key.
// Processes with loads of the same name share that limiter's counters.
type load struct {
	Addr    string // of the Redis server
	Name    string // of the limiter
	Limit   Limit
	Rate    float64 // requests per second
	Span    time.Duration
	Lease   time.Duration
	Recheck time.Duration // Options.DenyRecheck
}

// loadReport is the result of a load. Failed counts errors and decisions without Redis.
type loadReport struct{ Requests, Admitted, Leased, Failed int64 }

// loader is a child process that sends loads; see [sendLoads].
type loader struct {
	*child
	t       *testing.T
	isReady bool
}

// loadsEnv is the environment variable with a loader's loads in JSON.
const loadsEnv = "RATELIMIT_E2E_LOADS"

// startLoader starts a process for some loads. Each load has its own limiter.
func startLoader(t *testing.T, loads []load) *loader {
	t.Helper()
	text, err := json.Marshal(loads)
	require.NoError(t, err)
	return &loader{child: startChild(t, "load", loadsEnv+"="+string(text)), t: t}
}

// awaitReady waits until the process has connected its limiters.
func (l *loader) awaitReady() {
	l.t.Helper()
	if !l.isReady {
		require.Equal(l.t, "ready", l.line(l.t))
	}
	l.isReady = true
}

// closeLimiters has the process close its limiters and end.
func (l *loader) closeLimiters() {
	l.t.Helper()
	require.NoError(l.t, l.in.Close())
	require.Equal(l.t, "closed", l.line(l.t))
	l.kill()
}

// runLoaders has all processes send their loads at the same time, and returns when they
// have. The processes keep their leases afterwards.
func runLoaders(t *testing.T, loaders []*loader) (reports [][]loadReport) {
	t.Helper()
	for _, l := range loaders {
		l.awaitReady()
	}
	for _, l := range loaders {
		l.proceed(t)
	}
	for _, l := range loaders {
		var report []loadReport
		line := l.line(t)
		require.NoError(t, json.Unmarshal([]byte(line), &report), line)
		for _, r := range report {
			require.Zero(t, r.Failed)
		}
		reports = append(reports, report)
	}
	return reports
}

// requireOnce measures, and measures again if something is wrong, because a busy machine holds
// processes up. It ends the test if something is wrong three times in a row.
func requireOnce(t *testing.T, measure func() (wrong []string)) {
	t.Helper()
	wrong := measure()
	for try := 1; try < 3 && len(wrong) > 0; try++ {
		t.Logf("once more: %v", wrong)
		wrong = measure()
	}
	require.Empty(t, wrong)
}

// sendLoads is what a loader process does: it sends its loads, prints the reports, and
// closes its limiters at the end of input.
func sendLoads() error {
	var loads []load
	if err := json.Unmarshal([]byte(os.Getenv(loadsEnv)), &loads); err != nil {
		return err
	}
	reports, limiters := make([]loadReport, len(loads)), make([]*Limiter, len(loads))
	for i, load := range loads {
		client := redis.NewClient(&redis.Options{Addr: load.Addr})
		l, err := New(load.Name, Options{
			Limits: []Limit{load.Limit}, Redis: client, Lease: load.Lease, DenyRecheck: load.Recheck, Timeout: 10 * time.Second,
		})
		if err != nil {
			return err
		}
		if _, err := l.TakeN(ctx, "key", 0); err != nil { // connects to the server
			return err
		}
		limiters[i] = l
	}
	fmt.Println("ready")
	in := bufio.NewReader(os.Stdin)
	awaitProceed(in)
	var sending sync.WaitGroup
	for i, load := range loads {
		sending.Go(func() { reports[i] = load.send(limiters[i]) })
	}
	sending.Wait()
	text, err := json.Marshal(reports)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n", text)
	awaitProceed(in)
	for _, l := range limiters {
		if err := l.Close(); err != nil {
			return err
		}
	}
	fmt.Println("closed")
	return nil
}

// send sends the requests and returns when the last one has been answered.
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
