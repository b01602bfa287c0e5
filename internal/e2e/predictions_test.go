package e2e_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/sim"
)

// TestSimulatorPredictsRealProcesses compares internal/sim with real processes. It compares
// ratios only: the speed of a machine does not change how many commands a decision takes.
// But on a busy machine, processes send their requests late and in bursts.
func TestSimulatorPredictsRealProcesses(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for _, processes := range []int{1, 4, 16} {
		requireOnce(t, func() []string { return comparePrediction(t, processes) })
	}
}

// comparePrediction has processes send twice a limit, and returns where internal/sim differs.
func comparePrediction(t *testing.T, processes int) (wrong []string) {
	const (
		n        = 2000
		span     = 2 * time.Second
		cacheTTL = 100 * time.Millisecond // of leases and of cached denials
	)
	modes := []sim.Mode{sim.Exact, sim.Cached, sim.Leased}
	options := []load{{Recheck: 1}, {Recheck: cacheTTL}, {Recheck: cacheTTL, Lease: cacheTTL}}
	var servers []*redistest.Server // one per mode, to count its commands
	for range modes {
		servers = append(servers, redistest.Start(t))
	}
	var loaders []*loader
	for range processes {
		var loads []load
		for i, l := range options {
			l.Addr, l.Name, l.Limit = servers[i].Addr, fmt.Sprint("predicted-", i), FixedWindow(n, time.Hour)
			l.Rate, l.Span = 2*n/span.Seconds()/float64(processes), span
			loads = append(loads, l)
		}
		loaders = append(loaders, startLoader(t, loads))
	}
	for _, l := range loaders {
		l.awaitReady()
	}
	for _, s := range servers {
		s.ResetStats()
	}
	reports := runLoaders(t, loaders)
	for i, mode := range modes {
		want := sim.Run(sim.Config{Mode: mode, Limit: rule.Limit{Kind: rule.Fixed, N: n, Window: int64(time.Hour)},
			Processes: processes, Rate: 2 * n / span.Seconds(), Regular: true, Span: span, Lease: cacheTTL, Recheck: cacheTTL})
		got := sim.Report{Commands: servers[i].Commands()["evalsha"]}
		for _, r := range reports {
			got.Requests += r[i].Requests
			got.Admitted += r[i].Admitted
			got.Processes = append(got.Processes, sim.Share{Requests: r[i].Requests, Admitted: r[i].Admitted})
		}
		t.Logf("| %d | %v | %.3f | %.3f | %d | %d | %.3f | %.3f |", processes, mode,
			want.PerDecision(), got.PerDecision(), want.Admitted, got.Admitted, want.Jain(), got.Jain())
		require.LessOrEqual(t, got.Admitted, int64(n))
		compare := func(what string, want, got, delta float64) {
			if math.Abs(want-got) > delta {
				wrong = append(wrong, fmt.Sprintf("%s, %v, %d processes: %.3f instead of %.3f", what, mode, processes, got, want))
			}
		}
		compare("commands per decision", want.PerDecision(), got.PerDecision(), max(0.05, want.PerDecision()/2))
		compare("admitted", float64(want.Admitted), float64(got.Admitted), n/100)
		compare("Jain's index", want.Jain(), got.Jain(), 0.05)
	}
	for _, l := range loaders {
		l.closeLimiters()
	}
	return wrong
}
