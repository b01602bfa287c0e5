package ratelimit_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// nasty keys are meant to break a hash tag or to meet one another.
func nasty() []string {
	k := func(n int) string { return strings.Repeat("k", n) }
	return []string{
		"{", "}", "{}", "{}x", "x{}", "}{", "{a}", "{a}b", "a}b", "a{b", "a", "{a", "a}", "{{a}}", "a}:fixed-1h", "{}:fixed-1h",
		"\x00", "a\x00", "\x00a", "\n", "a\n", "a\r\n", "\xff", "\xfe", "\xc3\x28", "\ufffd", "á", " ", "a ", "\t",
		"%", "%7B", "%7b", "%257B", "%%", "%00", "%sha256:", `"`, `\`, `\x00`, "*", "?", "[a]",
		k(127), k(128), k(129), k(1 << 20), k(1<<20) + "!", strings.Repeat("{", 128), strings.Repeat("\x00", 128), strings.Repeat("{", 129),
		"%sha256:" + strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 64),
		// How the hash of the 129 bytes above is written, as a key of its own.
		"%sha256:" + sha256Hex(k(129)), "sha256:" + sha256Hex(k(129)), sha256Hex(k(129)),
	}
}

func sha256Hex(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

// eachSetup runs a test on a cluster's and a ring's client.
func eachSetup(t *testing.T, test func(t *testing.T, client redis.UniversalClient, servers []*redistest.Server)) {
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		c := redistest.StartCluster(t, redistest.ClusterOptions{})
		test(t, c.Client(), c.Nodes)
	})
	t.Run("ring", func(t *testing.T) {
		t.Parallel()
		servers := []*redistest.Server{redistest.Start(t), redistest.Start(t)}
		test(t, ring(t, servers...), servers)
	})
}

func TestRedisShards(t *testing.T) {
	t.Parallel()
	eachSetup(t, func(t *testing.T, client redis.UniversalClient, servers []*redistest.Server) {
		s := redisStore(t, client, "rl:")

		// Hostile keys neither collide nor fail, and all limits of a key are in one slot.
		limits := append(slow(1), FixedWindow(1, time.Hour), SlidingWindow(1, time.Hour))
		for _, key := range nasty() {
			_, admitted := take(t, s, key, 1, limits...)
			require.True(t, admitted, "%.200q", key)
			_, err := s.Adjust(ctx, key, -1, Now, limits)
			require.NoError(t, err)
			_, admitted = take(t, s, key, 1, limits...)
			require.True(t, admitted, "%.200q", key)
		}
		for _, key := range nasty() {
			_, admitted := take(t, s, key, 1, limits...)
			require.False(t, admitted, "%.200q", key)
			require.NoError(t, s.Reset(ctx, key, limits))
			_, admitted = take(t, s, key, 1, limits...)
			require.True(t, admitted, "%.200q", key)
		}

		// Callers of many keys at once share round trips to every server.
		var wg sync.WaitGroup
		var admitted atomic.Int64
		for i := range 64 {
			wg.Go(func() {
				results := make([]Result, 3)
				for j := range 12 {
					if _, err := s.Take(ctx, fmt.Sprintf("user:%d:%d", i, j%4), 1, slow(2), results); err != nil {
						t.Error(err)
					} else if results[0].RetryAfter == 0 {
						admitted.Add(1)
					}
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 64*4*2, admitted.Load())
		for _, server := range servers {
			require.NotZero(t, server.Do("DBSIZE"), "keys spread over all servers")
		}

		// As exact as on one server, also in its pipelines.
		for _, limits := range contested(150) {
			key := fmt.Sprint(limits)
			require.EqualValues(t, 150, hammer(t, s, key, 16, 20, limits...), key)
		}
	})
}

// TestRedisSlotMigration: a slot that moves to another master in mid-traffic loses no count.
func TestRedisSlotMigration(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	s := redisStore(t, c.Client(), "rl:")
	l := FixedWindow(1_000_000, time.Hour)
	keys := []string{"a", "b"} // b's slot stays, and its calls share pipelines with a's
	slot := c.Slot("rl:{a}:fixed-1h")
	done := make(chan struct{})
	var wg sync.WaitGroup
	var taken [2]atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			results := make([]Result, 1)
			for {
				if _, err := s.Take(ctx, keys[i%2], 1, []Limit{l}, results); err != nil {
					t.Error(err)
				}
				taken[i%2].Add(1)
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	from := c.Owner(slot)
	to := c.Nodes[0]
	if to == from {
		to = c.Nodes[1]
	}
	busy := func() { // until there has been traffic in this state
		before := taken[0].Load()
		require.Eventually(t, func() bool { return taken[0].Load() > before+50 }, time.Minute, time.Millisecond)
	}
	for range 2 {
		busy()
		m := c.BeginMigration(slot, to)
		busy()
		for m.MoveKeys(1) > 0 {
		}
		busy()
		m.Finish()
		busy()
		from, to = to, from
	}
	close(done)
	wg.Wait()
	for i, key := range keys {
		results, _ := take(t, s, key, 0, l)
		require.Equal(t, l.N()-taken[i].Load(), results[0].Remaining, key)
	}
}

// TestRedisFailover: a Sentinel setup whose master is replaced goes on counting. What the
// new master had not been told is lost, which is Redis's own doing, and nothing else is.
func TestRedisFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	setup := redistest.StartSentinel(t, redistest.SentinelOptions{})
	s := redisStore(t, setup.Client(), "rl:")
	take(t, s, "k", 3, hour)
	require.Eventually(t, func() bool { return setup.Replica.Do("GET", "rl:{k}:fixed-1h") == "3" }, time.Minute, time.Millisecond)
	setup.Failover()
	setup.Master.Kill()
	results := make([]Result, 1)
	require.Eventually(t, func() bool {
		_, err := s.Take(ctx, "k", 0, []Limit{hour}, results)
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	require.EqualValues(t, 2, results[0].Remaining)
	take(t, s, "k", 2, hour)
	require.Equal(t, "5", setup.Replica.Do("GET", "rl:{k}:fixed-1h"))
}

// TestRedisMasterHangs: who asks one master does not wait for another that hangs.
func TestRedisMasterHangs(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	l := httpLimiterNamed(t, "api", Options{
		Limits: []Limit{FixedWindow(1_000_000, time.Hour)}, Redis: c.Client(), Timeout: time.Second, OnFailure: FailClosed,
	})
	hung := c.Nodes[0]
	var theirs, others []string
	for i := range 60 {
		key := [...]string{"user:", "GET /v1/{id}/", strings.Repeat("k", 130)}[i%3] + fmt.Sprint(i)
		if c.Owner(c.Slot(string(redisscript.AppendKey(nil, "rl:api:", key)))) == hung {
			theirs = append(theirs, key)
		} else {
			others = append(others, key)
		}
		_, err := l.Take(ctx, key)
		require.NoError(t, err)
	}
	hung.Hang()
	defer hung.Continue()
	var waiting, busy sync.WaitGroup
	var over atomic.Bool
	var done atomic.Int64
	for i := range 8 {
		busy.Go(func() {
			for j := i; !over.Load(); j++ {
				if _, err := l.Take(ctx, others[j%len(others)]); err != nil {
					t.Error(err)
				}
				done.Add(1)
			}
		})
	}
	for i := range 4 { // one less than what opens the breaker
		waiting.Go(func() {
			_, err := l.Take(ctx, theirs[i])
			require.ErrorIs(t, err, context.DeadlineExceeded)
		})
	}
	waiting.Wait()
	over.Store(true)
	busy.Wait()
	require.Greater(t, done.Load(), int64(100))
	require.False(t, l.Stats().Remote.BreakerOpen)
}
