package e2e_test

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// shares divides a whole among processes. The first one's share is given, and the others
// get equal shares of the rest.
func shares(processes int, first float64) []float64 {
	s := slices.Repeat([]float64{(1 - first) / max(1, float64(processes-1))}, processes)
	s[0] = first
	return s
}

// TestLeasesAdmitTheWholeLimitWithFewCommands spreads a load evenly and unevenly over
// processes that share a server. They admit the whole limit and no more, and send far
// fewer commands than they make decisions.
func TestLeasesAdmitTheWholeLimitWithFewCommands(t *testing.T) {
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
				// On a busy machine, leases end unused.
				requireOnce(t, func() []string { return admitWithLeases(t, server, processes, first) })
			})
		}
	}
}

// admitWithLeases has processes send twice a limit, of which the first one sends a share, and
// returns what is wrong. That they admit more than the limit ends the test.
func admitWithLeases(t *testing.T, server *redistest.Server, processes int, first float64) (wrong []string) {
	server.Do("FLUSHDB")
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
		l.awaitReady()
	}
	server.ResetStats()
	reports := runLoaders(t, loaders)
	commands := server.Commands()["evalsha"]
	for _, l := range loaders {
		l.kill()
	}
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
		if admitted < n-n/100 {
			wrong = append(wrong, fmt.Sprintf("%v: the load went on for long enough to use all, but %d were admitted", l, admitted))
		}
		if leased <= admitted/2 {
			wrong = append(wrong, fmt.Sprintf("%v: %d of %d came from leases", l, leased, admitted))
		}
	}
	t.Logf("%.3f commands per decision, %d of %d units missing", float64(commands)/float64(requests), missing, len(limits)*n)
	if 3*commands >= requests {
		wrong = append(wrong, fmt.Sprintf("%d commands for %d decisions", commands, requests))
	}
	return wrong
}

// TestKilledProcessLosesAtMostItsLease kills processes that hold leases. Each one loses at
// most a 16th of what was left, and at most half of what it was asked for in the time of a
// lease.
func TestKilledProcessLosesAtMostItsLease(t *testing.T) {
	server := redistest.Start(t)
	const (
		n, killed = 2000, 4
		lease     = 10 * time.Second
	)
	limit := FixedWindow(n, time.Hour)
	var loaders []*loader
	for range killed {
		loaders = append(loaders, startLoader(t, []load{{server.Addr, "killed", limit, 1000, 200 * time.Millisecond, lease, 0}}))
	}
	used := int64(0)
	for _, r := range runLoaders(t, loaders) {
		used += r[0].Admitted
	}
	require.EqualValues(t, killed*200, used)
	for _, l := range loaders {
		l.kill()
	}
	rest := startLoader(t, []load{{server.Addr, "killed", limit, 5000, 400 * time.Millisecond, lease, 0}})
	used += runLoaders(t, []*loader{rest})[0][0].Admitted
	t.Logf("%d of %d units were lost with %d processes", n-used, n, killed)
	require.LessOrEqual(t, used, int64(n))
	require.GreaterOrEqual(t, used, int64(n-killed*min(n/16, 200/2)))
}

// TestCloseGivesLeasesBack ends processes that hold leases and close their limiters.
func TestCloseGivesLeasesBack(t *testing.T) {
	server := redistest.Start(t)
	limit := FixedWindow(2000, time.Hour)
	var loaders []*loader
	for range 4 {
		loaders = append(loaders, startLoader(t, []load{{server.Addr, "closed", limit, 1000, 200 * time.Millisecond, time.Minute, 0}}))
	}
	runLoaders(t, loaders)
	store := redisStore(t, server.Client(), "rl:closed:")
	left := func() int64 {
		results, _ := take(t, store, "key", 0, limit)
		return results[0].Remaining
	}
	require.Less(t, left(), int64(1200))
	for _, l := range loaders {
		l.closeLimiters()
	}
	eventually(t, "all leases to be back", func() bool { return left() == 1200 })
}

// TestHugeCostLeasesNothing takes costs near the largest number. A lease added to such a
// cost would overflow.
func TestHugeCostLeasesNothing(t *testing.T) {
	client := redistest.Start(t).Client()
	for _, limit := range []Limit{FixedWindow(1000, time.Hour), SlidingWindow(1000, time.Hour), TokenBucket(1, time.Hour, 1000)} {
		o := quiet(limit)
		o.Redis, o.Lease, o.Timeout = client, 200*time.Millisecond, time.Minute
		l := Must(new(Registry).New("huge "+limit.Algorithm(), o))
		defer l.Close()
		admitted := 0
		for i := range 5000 {
			if i%20 == 10 {
				d, err := l.TakeN(ctx, "key", math.MaxInt64-int64(i))
				require.NoError(t, err)
				require.False(t, d.Allowed)
				require.Equal(t, Never, d.RetryAfter)
			}
			if d, err := l.Take(ctx, "key"); err == nil && d.Allowed {
				admitted++
			}
		}
		require.Equal(t, 1000, admitted, limit)
	}
}
