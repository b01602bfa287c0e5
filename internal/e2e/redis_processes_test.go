package e2e_test

import (
	"bufio"
	"fmt"
	"os"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

const contestedUnits = 700 // of each key that processes compete for

// TestProcessesAdmitExactlyTheLimit has several processes, each with many goroutines,
// compete for the same keys.
func TestProcessesAdmitExactlyTheLimit(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var processes []*child
	for range 4 {
		c := startChild(t, "compete", redisAddrEnv+"="+server.Addr)
		require.Equal(t, "ready", c.line(t))
		processes = append(processes, c)
	}
	for _, c := range processes {
		c.proceed(t)
	}
	sums := make([]int64, len(contestedSets(contestedUnits)))
	for _, c := range processes {
		for i := range sums {
			var n int64
			line := c.line(t)
			_, err := fmt.Sscanf(line, "admitted %d", &n)
			require.NoError(t, err, line)
			sums[i] += n
		}
	}
	for i, limits := range contestedSets(contestedUnits) {
		require.EqualValues(t, contestedUnits, sums[i], "%v", limits)
	}
}

// redisAddrEnv is the environment variable with the address of the server that a child
// process uses.
const redisAddrEnv = "RATELIMIT_E2E_REDIS"

// competeAtRedis is one of the processes. It prints how many units of each key it got.
func competeAtRedis() error {
	client := redis.NewClient(&redis.Options{Addr: os.Getenv(redisAddrEnv)})
	s, err := NewRedisStore(client, "rl:")
	if err != nil {
		return err
	}
	fmt.Println("ready")
	awaitProceed(bufio.NewReader(os.Stdin))
	for i, limits := range contestedSets(contestedUnits) {
		n, err := compete(s, fmt.Sprint("key", i), 16, 20, limits...)
		if err != nil {
			return err
		}
		fmt.Println("admitted", n)
	}
	return nil
}
