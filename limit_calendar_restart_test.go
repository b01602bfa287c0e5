package ratelimit_test

import (
	"encoding/binary"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestCalendarOverRestart: a period ends by the wall clock, however long no process runs.
// The file has version 3 from the first counter of a calendar on.
func TestCalendarOverRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := inFile(t)
		version := func() uint32 {
			file, err := os.ReadFile(opts.SnapshotFile)
			require.NoError(t, err)
			return binary.LittleEndian.Uint32(file[8:])
		}
		s := memStore(t, opts)
		memTake(t, s, "k", 1, hour)
		require.NoError(t, s.Close())
		require.EqualValues(t, 1, version())

		daily, monthly := Daily(3, zone(t, "Asia/Kathmandu")), Monthly(3, 31, nil)
		sleepUntil(t, "2001-02-27T18:00:00Z")
		s = memStore(t, opts)
		memTake(t, s, "k", 3, daily)
		memTake(t, s, "k", 2, monthly)
		require.NoError(t, s.Close())
		require.EqualValues(t, 3, version())

		time.Sleep(10 * time.Minute)
		s = memStore(t, opts)
		require.Equal(t, 5*time.Minute, memTake(t, s, "k", 1, daily)[0].RetryAfter)
		left := memTake(t, s, "k", 0, monthly)[0]
		require.EqualValues(t, 1, left.Remaining)
		require.Equal(t, 5*time.Hour+50*time.Minute, left.ResetAfter)
		require.NoError(t, s.Close())

		time.Sleep(5 * time.Minute)
		s = memStore(t, opts)
		require.EqualValues(t, 3, memTake(t, s, "k", 0, daily)[0].Remaining)
		require.NoError(t, s.Close())
	})
}
