package breaker_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/breaker"
)

const (
	ms     = int64(time.Millisecond)
	second = int64(time.Second)
)

// call makes calls that end in the given ways.
func call(b *breaker.Breaker, now int64, outcomes ...breaker.Outcome) {
	for _, how := range outcomes {
		if ok, probe := b.Allow(now); ok {
			b.Done(now, now, probe, how)
		}
	}
}

func times(n int, outcomes ...breaker.Outcome) (all []breaker.Outcome) {
	for range n {
		all = append(all, outcomes...)
	}
	return all
}

const ok, bad, unclear = breaker.Succeeded, breaker.Failed, breaker.Unclear

func TestOpens(t *testing.T) {
	for name, tc := range map[string]struct {
		calls []breaker.Outcome
		open  bool
	}{
		"none":                              {nil, false},
		"four in a row":                     {times(4, bad), false},
		"five in a row":                     {times(5, bad), true},
		"a success between":                 {append(append(times(4, bad), ok), times(4, bad)...), false},
		"clients that leave are no success": {append(append(times(4, bad), unclear), bad), true},
		"clients that leave":                {times(1000, unclear), false},
		"half of nineteen":                  {append(times(9, ok, bad), bad), false},
		"half of twenty":                    {times(10, ok, bad), true},
		"less than half of many":            {append(times(2, ok), times(500, ok, bad)...), false},
		"a third":                           {times(500, ok, ok, bad), false},
	} {
		var b breaker.Breaker
		call(&b, 0, tc.calls...)
		require.Equal(t, tc.open, b.Open(), name)
		require.Equal(t, tc.open, b.Opened() == 1, name)
		require.Equal(t, !tc.open, b.Ready(0), name)
	}
}

// TestRateCountsRecentCalls: only recent calls count for a rate.
func TestRateCountsRecentCalls(t *testing.T) {
	var b breaker.Breaker
	call(&b, 0, times(9, ok, bad)...)
	call(&b, 5*second+1, times(9, ok, bad)...)
	require.False(t, b.Open())
	call(&b, 6*second, ok, bad)
	require.True(t, b.Open())
}

// TestProbes: an open breaker allows one call at a time, after pauses that grow up to a
// second, until one succeeds.
func TestProbes(t *testing.T) {
	var b breaker.Breaker
	call(&b, 0, times(5, bad)...)
	now := int64(0)
	for _, pause := range []int64{100, 200, 400, 800, 1000, 1000, 1000} {
		now += pause * ms
		allowed, _ := b.Allow(now - 1)
		require.False(t, allowed)
		require.False(t, b.Ready(now-1))
		require.True(t, b.Ready(now))
		allowed, probe := b.Allow(now)
		require.True(t, allowed)
		require.True(t, probe)
		for range 3 {
			allowed, _ = b.Allow(now + second)
			require.False(t, allowed, "one at a time")
		}
		require.False(t, b.Ready(now+second))
		require.False(t, b.Done(now, now, probe, bad), "it was open before")
	}
	now += second
	_, probe := b.Allow(now)
	require.False(t, b.Done(now, now, probe, unclear))
	require.True(t, b.Ready(now), "whoever leaves has found nothing out, and makes room for the next one")
	_, probe = b.Allow(now)
	require.True(t, b.Done(now, now, probe, ok))
	require.False(t, b.Open())
	require.EqualValues(t, 1, b.Opened())

	// The breaker is then like a new one.
	call(&b, now, times(4, bad)...)
	require.False(t, b.Open())
	call(&b, now, bad)
	require.True(t, b.Open())
	require.EqualValues(t, 2, b.Opened())
	require.True(t, b.Ready(now+100*ms))
}

// TestStragglers: calls from before the breaker opened neither close it nor count
// afterwards.
func TestStragglers(t *testing.T) {
	var b breaker.Breaker
	for range 10 {
		b.Allow(0)
	}
	for i := range 10 {
		require.Equal(t, i == 4, b.Done(0, 0, false, bad))
	}
	require.False(t, b.Done(0, 0, false, ok))
	require.True(t, b.Open())
	require.False(t, b.Ready(100*ms-1))
	require.True(t, b.Ready(100*ms))
}

// TestManyCallers: whatever the callers do, at most one of them probes, and in the
// end the breaker closes.
func TestManyCallers(t *testing.T) {
	var b breaker.Breaker
	var now, probes atomic.Int64
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			for n := range 5000 {
				at := now.Add(ms)
				ok, probe := b.Allow(at)
				if probe && probes.Add(1) > 1 {
					t.Error("two probes at once")
				}
				if !ok {
					continue
				}
				if probe {
					probes.Add(-1)
				}
				b.Done(at, at, probe, breaker.Outcome((i+n)%3))
			}
		})
	}
	callers.Wait()
	for b.Open() {
		call(&b, now.Add(second), ok)
	}
	require.NotZero(t, b.Opened())
}
