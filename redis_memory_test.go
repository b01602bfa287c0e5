package ratelimit_test

import (
	"fmt"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/nearcache"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// TestRedisMemory: a counter of a key of 15 bytes takes as much at Redis as docs/production.md
// says.
func TestRedisMemory(t *testing.T) {
	says := map[string]int64{"fixed": 140, "sliding": 190, "bucket": 190}
	const keys = 50_000
	for _, l := range slow(5) {
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
		t.Logf("%s: %d bytes a counter", l.Algorithm(), each)
		require.InDelta(t, says[l.Algorithm()], each, 30)
	}
}

// TestNearMemory: a key that a process remembers takes as much there as Options.NearKeys says.
func TestNearMemory(t *testing.T) {
	limits := []rule.Limit{{Kind: rule.Fixed, N: 5, Window: int64(time.Hour)}}
	before := memLiveHeap()
	c := nearcache.New(DefaultNearKeys)
	for i := range 2 * DefaultNearKeys {
		key := fmt.Sprintf("198.51.%08d", i)
		c.Learn(key, 1, limits, []rule.Answer{{Retry: int64(time.Hour), Reset: int64(time.Hour)}}, 1, 1, int64(time.Second), c.Version(key))
	}
	each := (memLiveHeap() - before) / DefaultNearKeys
	t.Logf("%d bytes a key", each)
	require.InDelta(t, 400, each, 100)
	runtime.KeepAlive(c)
}
