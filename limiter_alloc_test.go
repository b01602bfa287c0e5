package ratelimit_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestTakeOfFewUnitsAllocatesNothing(t *testing.T) {
	for _, limits := range [][]Limit{
		{FixedWindow(5, time.Hour)}, {SlidingWindow(5, time.Hour)}, {TokenBucket(5, time.Hour, 5)},
		{FixedWindow(math.MaxInt32, time.Hour)}, windows(8),
	} {
		l := limiter(t, limits...)
		l.Take(ctx, "key")
		require.Zero(t, testing.AllocsPerRun(1000, func() { l.Take(ctx, "key") }), "%v", limits)
		l.Close()
	}
}

// TestTakeOnExistingKeyAllocatesNothing pins that a decision in memory costs no
// allocation, with one limit and with several, admitted or denied.
func TestTakeOnExistingKeyAllocatesNothing(t *testing.T) {
	const n = 1_000_000_000
	eight := make([]Limit, 0, MaxLimits)
	for i := range MaxLimits {
		eight = append(eight, SlidingWindow(n, time.Duration(i+1)*time.Hour))
	}
	for _, test := range []struct {
		name   string
		limits []Limit
		denied bool
	}{
		{"fixed", []Limit{FixedWindow(n, time.Hour)}, false},
		{"sliding", []Limit{SlidingWindow(n, time.Hour)}, false},
		{"bucket", []Limit{TokenBucket(n, time.Hour, n)}, false},
		{"one of each", []Limit{FixedWindow(n, time.Hour), SlidingWindow(n, time.Hour), TokenBucket(n, time.Hour, n)}, false},
		{"the most", eight, false},
		{"denied", []Limit{FixedWindow(1, time.Hour)}, true},
		{"denied by the last", []Limit{SlidingWindow(n, time.Hour), FixedWindow(1, time.Hour)}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var registry Registry
			l, err := registry.New("take", Options{Limits: test.limits})
			require.NoError(t, err)
			t.Cleanup(func() {
				l.Close()
				Memory("take").Close()
			})
			d, err := l.Take(t.Context(), "key")
			require.NoError(t, err)
			require.True(t, d.Allowed)

			ctx := t.Context()
			count, bytes := allocations(func() { d, err = l.Take(ctx, "key") })
			require.NoError(t, err)
			require.Equal(t, test.denied, !d.Allowed)
			require.Zero(t, count, "allocations")
			require.Zero(t, bytes, "bytes")
		})
	}
}
