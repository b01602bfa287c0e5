package remote

import (
	"math"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestBucketsHaveExactBounds tries the last nanosecond of each element, and the next one.
func TestBucketsHaveExactBounds(t *testing.T) {
	require.Equal(t, 0, bucket(0))
	require.Equal(t, 0, bucket(1))
	for i := range TimeBuckets - 1 {
		// The bound is 2^(i-14) seconds, in nanoseconds: 10^9 / 2^14 is no whole number.
		nanoseconds := math.Ldexp(1e9, i+FirstBound)
		last := int64(nanoseconds)
		require.Equal(t, i, bucket(last), "%d ns", last)
		require.Equal(t, i+1, bucket(last+1), "%d ns", last+1)
	}
	require.Equal(t, TimeBuckets-1, bucket(int64(4*time.Second)+1))
	require.Equal(t, TimeBuckets-1, bucket(math.MaxInt64))
}

// TestBucketsAgreeWithTheirDefinition compares random times with a search.
func TestBucketsAgreeWithTheirDefinition(t *testing.T) {
	for took := int64(1); took > 0 && took < math.MaxInt64/3; took = took*9/8 + 1 {
		want := 0
		for want < TimeBuckets-1 && float64(took) > math.Ldexp(1e9, want+FirstBound) {
			want++
		}
		require.Equal(t, want, bucket(took), "%d ns", took)
	}
}

// TestCountsAddUp counts calls from many goroutines.
func TestCountsAddUp(t *testing.T) {
	var c Counts
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 1000 {
				c.called(int64(g*i) * 1000)
			}
			c.called(-1) // a clock that has been read in the wrong order
		})
	}
	all.Wait()
	got := c.Load()
	require.EqualValues(t, 8*1001, got.Calls)
	require.Equal(t, time.Duration(28*999*1000/2*1000), got.CallTime)
	var sum uint64
	for _, n := range got.CallTimes {
		sum += n
	}
	require.Equal(t, got.Calls, sum)
}
