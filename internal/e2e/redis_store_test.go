package e2e_test

import (
	"fmt"
	"path"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/storetest"
)

// TestStoreConformsOnEverySetup runs the conformance suite on every kind of setup, by the
// servers' own clocks. How time passes does not depend on the setup, so these skip the cases
// that wait; see [TestStoreConformsInRealTime].
func TestStoreConformsOnEverySetup(t *testing.T) {
	for name, client := range map[string]func(t *testing.T) redis.UniversalClient{
		"cluster": func(t *testing.T) redis.UniversalClient {
			return redistest.StartCluster(t, redistest.ClusterOptions{}).Client()
		},
		"sentinel": func(t *testing.T) redis.UniversalClient {
			return redistest.StartSentinel(t, redistest.SentinelOptions{}).Client()
		},
		"ring": func(t *testing.T) redis.UniversalClient { return ring(t, redistest.Start(t), redistest.Start(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conform(t, client(t), func(int) bool { return true }, 0)
		})
	}
}

// TestStoreConformsInRealTime runs the conformance suite with the cases that wait. Their windows
// are long, so that a busy machine does not matter, and so they wait at the same time.
func TestStoreConformsInRealTime(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	const groups = 8 // within each, cases run one after the other
	var together sync.WaitGroup
	defer together.Wait()
	for group := range groups {
		together.Go(func() {
			t.Run(fmt.Sprint(group), func(t *testing.T) {
				conform(t, client, func(number int) bool { return number%groups == group }, 1500*time.Millisecond)
			})
		})
	}
}

// conform runs some cases of the conformance suite, chosen by their numbers.
func conform(t *testing.T, client redis.UniversalClient, choose func(number int) bool, window time.Duration) {
	number := 0
	storetest.Run(t, func(t *testing.T, prefix string) Store {
		if prefix == "storetest:" { // the first of a case
			if number++; !choose(number) {
				t.SkipNow()
			}
		}
		return redisStore(t, client, path.Base(t.Name())+":"+prefix)
	}, storetest.RealTime(window, 150*time.Millisecond))
}

// TestInstantsAreTheServers checks that an instant is the server's time, to the microsecond.
func TestInstantsAreTheServers(t *testing.T) {
	client := redistest.Start(t).Client()
	s := redisStore(t, client, "rl:")
	for range 100 {
		before := client.Time(ctx).Val()
		at, err := s.Take(ctx, "k", 1, []Limit{hour}, make([]Result, 1))
		require.NoError(t, err)
		after := client.Time(ctx).Val()
		require.GreaterOrEqual(t, int64(at), before.UnixNano())
		require.LessOrEqual(t, int64(at), after.UnixNano())
	}
}

// TestFixedWindowEndsWithinAMillisecond opens windows at many microseconds of the server's clock.
// Each ends less than a millisecond late and never early. A later call gets a millisecond more
// for each one that begins on the server between the commands of the script. That is one at
// most, unless the machine stops the server just there.
func TestFixedWindowEndsWithinAMillisecond(t *testing.T) {
	s := redisStore(t, redistest.Start(t).Client(), "rl:")
	const w = 61_234_567 * time.Microsecond
	limits, results := []Limit{FixedWindow(3, w)}, make([]Result, 1)
	stopped := 0
	for i := range 300 {
		var openedAt, ends Instant
		for range 5 { // the last two are denied
			at, err := s.Take(ctx, fmt.Sprint(i), 1, limits, results)
			require.NoError(t, err)
			if openedAt == 0 {
				openedAt, ends = at, at+Instant(results[0].ResetAfter)
			}
			reset := at + Instant(results[0].ResetAfter)
			require.GreaterOrEqual(t, reset, ends)
			if reset > ends+Instant(time.Millisecond) {
				stopped++
			}
			require.Equal(t, results[0].ResetAfter, results[0].MoreAfter)
		}
		require.Zero(t, ends%Instant(time.Millisecond))
		require.GreaterOrEqual(t, ends, openedAt+Instant(w))
		require.Less(t, ends, openedAt+Instant(w+time.Millisecond))
	}
	require.Less(t, stopped, 300*5/100)
}
