package otelratelimit

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
)

// TestCallsThatSucceededNeverFall has numbers that were read while calls were ending.
func TestCallsThatSucceededNeverFall(t *testing.T) {
	var l life
	for _, s := range []struct{ calls, failures, want uint64 }{
		{0, 0, 0}, {0, 1, 0}, {10, 3, 7}, {11, 5, 7}, {12, 13, 7}, {15, 5, 10},
	} {
		require.Equal(t, s.want, l.callsSucceeded(&ratelimit.RemoteStats{Calls: s.calls, Failures: s.failures}), s)
	}
}
