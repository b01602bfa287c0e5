package sim_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/sim"
)

// TestBlocks: in each mode an attacked key gets one window of units for each block, also
// if the block begins during an outage.
func TestBlocks(t *testing.T) {
	ladder := &rule.Ladder{Rungs: [rule.MaxRungs]int64{int64(10 * time.Second), int64(time.Minute), int64(time.Hour)}, N: 3}
	for _, mode := range modes {
		c := sim.Config{Mode: mode, Limit: fixed(50, time.Second), Ladder: ladder, Processes: 4, Rate: 400, Span: 2 * time.Minute}
		r := sim.Run(c)
		// Blocks end after 10 s, after another minute, and after the simulation.
		require.EqualValues(t, 3*50, r.Admitted, mode)
		require.LessOrEqual(t, r.Ideal-r.Admitted, int64(50), mode)
		if mode != sim.Exact {
			require.Greater(t, r.Blocked, r.Requests*9/10, mode)
		}

		c.Outages = []sim.Outage{{From: 5 * time.Second, To: 20 * time.Second}}
		r = sim.Run(c)
		require.GreaterOrEqual(t, r.Admitted, int64(3*50), mode)
		require.LessOrEqual(t, r.Admitted, int64((1+4+1)*50), mode, "each process has its own window in the outage")
	}
}
