package e2e_test

import (
	"fmt"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// TestRedisMemoryPerCounterIsAsDocumented measures what a counter of a key of 15 bytes takes
// at Redis. docs/production.md has the numbers.
func TestRedisMemoryPerCounterIsAsDocumented(t *testing.T) {
	documented := map[string]int64{"fixed": 140, "sliding": 190, "bucket": 190, "calendar": 155, "rolling": 170}
	const keys = 50_000
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	for _, l := range append(algorithms(5), Daily(5, berlin)) {
		server := redistest.Start(t)
		s := redisStore(t, server.Client(), "rl:login:")
		used := func() int64 {
			field := regexp.MustCompile(`used_memory:(\d+)`).FindStringSubmatch(fmt.Sprint(server.Do("INFO", "memory")))
			n, err := strconv.ParseInt(field[1], 10, 64)
			require.NoError(t, err)
			return n
		}
		before := used()
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				for j := i; j < keys; j += 100 {
					if err := takeErr(s, fmt.Sprintf("198.51.%09d", j), 1, []Limit{l}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		each := (used() - before) / keys
		t.Logf("%s: %d bytes per counter", l.Algorithm(), each)
		require.InDelta(t, documented[l.Algorithm()], each, 30)
	}
}
