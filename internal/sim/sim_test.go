package sim_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/sim"
)

func fixed(n int64, window time.Duration) rule.Limit {
	return rule.Limit{Kind: rule.Fixed, N: n, Window: int64(window)}
}

var modes = []sim.Mode{sim.Exact, sim.Cached, sim.Leased}

func TestSameSeedSameReport(t *testing.T) {
	for _, mode := range modes {
		c := sim.Config{Mode: mode, Limit: fixed(50, time.Second), Processes: 20, Rate: 20_000, Span: 2 * time.Second,
			Keys: sim.Keys{Count: 500, Zipf: 1.1}, Jitter: 100 * time.Microsecond,
			Outages: []sim.Outage{{From: 500 * time.Millisecond, To: 900 * time.Millisecond}}}
		first := sim.Run(c)
		require.Equal(t, first, sim.Run(c), mode)
		c.Seed++
		require.NotEqual(t, first, sim.Run(c), mode)
	}
}

// TestAllOfTheLimit: in one window each mode admits exactly the limit, whatever the algorithm is.
func TestAllOfTheLimit(t *testing.T) {
	for _, l := range []rule.Limit{fixed(5000, time.Hour), {Kind: rule.Sliding, N: 5000, Window: int64(time.Hour)},
		{Kind: rule.Bucket, N: 1, Window: int64(time.Hour), Burst: 5000}} {
		for _, mode := range modes {
			for _, processes := range []int{1, 10, 100} {
				for _, share := range []float64{0, 0.9} {
					t.Run(fmt.Sprint(l.Kind, mode, processes, share), func(t *testing.T) {
						r := sim.Run(sim.Config{Mode: mode, Limit: l, Processes: processes, Share: share, Rate: 5000, Span: 4 * time.Second})
						require.EqualValues(t, 5000, r.Ideal)
						require.LessOrEqual(t, r.Admitted, int64(5000))
						require.GreaterOrEqual(t, r.Admitted, int64(4999), "a bucket's unit that leaks as it is given back")
					})
				}
			}
		}
	}
}

// TestCommands: each decision needs one command, unless callers share commands.
// With leases, far fewer are needed.
func TestCommands(t *testing.T) {
	c := sim.Config{Limit: fixed(100_000, time.Hour), Processes: 10, Rate: 10_000, Span: 4 * time.Second}
	r := sim.Run(c)
	require.InDelta(t, 1, r.PerDecision(), 0.05, "a process has two at once on the way and seldom more")
	require.InDelta(t, r.Requests, r.From[sim.FromStore], 10, "some are under way at the end")
	c.Mode = sim.Leased
	require.Less(t, sim.Run(c).PerDecision(), 0.05)

	c.Limit, c.Mode = fixed(1000, time.Hour), sim.Cached
	r = sim.Run(c)
	require.InDelta(t, 1000+10*4, r.Commands, 30, "what is admitted, and a look of each process once a second")
}

// TestBusyServer: a server that gets more commands than it can carry out still works at its full
// rate. Processes wait only for the commands that they may have in flight together, and no
// longer.
func TestBusyServer(t *testing.T) {
	r := sim.Run(sim.Config{Limit: fixed(1<<40, time.Hour), Processes: 100, Rate: 500_000, Span: time.Second, Service: 10 * time.Microsecond})
	require.InDelta(t, 1, r.Busy, 0.02)
	require.InDelta(t, 100_000, r.Commands, 2000)
	require.InDelta(t, 1, r.OfIdeal(), 0.02, "callers share what commands there are")
	require.Less(t, r.Wait(0.99), 10*time.Millisecond)
}

// TestOutage: each process continues from the state in which it knew the key. In a new window each
// process has the whole limit.
func TestOutage(t *testing.T) {
	for _, mode := range modes {
		c := sim.Config{Mode: mode, Limit: fixed(1000, time.Hour), Processes: 10, Rate: 10_000, Span: 4 * time.Second,
			Outages: []sim.Outage{{From: 50 * time.Millisecond, To: 2 * time.Second}}}
		r := sim.Run(c)
		require.Greater(t, r.Admitted, int64(1000))
		require.LessOrEqual(t, r.Admitted, int64(500+10*600), "what each process knew to be left, when it last asked")
		require.NotZero(t, r.From[sim.FromFallback])

		c.Outages[0].From = time.Second
		require.EqualValues(t, 1000, sim.Run(c).Admitted, "a key that is blocked stays so")
	}
}

// TestAfterOutage: owed units are sent, also for a key that is never denied and that all processes
// use. After that all processes share one limit again.
func TestAfterOutage(t *testing.T) {
	for _, mode := range modes {
		r := sim.Run(sim.Config{Mode: mode, Limit: fixed(1000, time.Second), Processes: 50, Rate: 20_000, Span: 5 * time.Second,
			Outages: []sim.Outage{{From: 500 * time.Millisecond, To: 2 * time.Second}}})
		admitted := int64(0)
		for _, s := range r.Slices[30:50] { // two windows and the edges of another
			admitted += s.Admitted
		}
		require.LessOrEqual(t, admitted, int64(3000))
	}
}

func TestFairness(t *testing.T) {
	for _, mode := range modes {
		r := sim.Run(sim.Config{Mode: mode, Limit: fixed(20_000, time.Hour), Processes: 20, Rate: 20_000, Span: 4 * time.Second})
		require.Greater(t, r.Jain(), 0.97, mode)
	}
}
