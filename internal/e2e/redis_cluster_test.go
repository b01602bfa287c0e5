package e2e_test

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

// hostileKeys returns keys that try to break a hash tag or to collide with each other.
func hostileKeys() []string {
	k := func(n int) string { return strings.Repeat("k", n) }
	return []string{
		"{", "}", "{}", "{}x", "x{}", "}{", "{a}", "{a}b", "a}b", "a{b", "a", "{a", "a}", "{{a}}", "a}:fixed-1h", "{}:fixed-1h",
		"\x00", "a\x00", "\x00a", "\n", "a\n", "a\r\n", "\xff", "\xfe", "\xc3\x28", "\ufffd", "á", " ", "a ", "\t",
		"%", "%7B", "%7b", "%257B", "%%", "%00", "%sha256:", `"`, `\`, `\x00`, "*", "?", "[a]",
		k(127), k(128), k(129), k(1 << 20), k(1<<20) + "!", strings.Repeat("{", 128), strings.Repeat("\x00", 128), strings.Repeat("{", 129),
		"%sha256:" + strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 64),
		// The key of 129 bytes above is stored as a hash. These keys look like that hash.
		"%sha256:" + sha256Hex(k(129)), "sha256:" + sha256Hex(k(129)), sha256Hex(k(129)),
	}
}

// sha256Hex returns a hash in hexadecimal.
func sha256Hex(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

// onClusterAndRing runs a test on a client of a cluster, and on one of a ring.
func onClusterAndRing(t *testing.T, test func(t *testing.T, client redis.UniversalClient, servers []*redistest.Server)) {
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

// TestShardsCountExactly spreads hostile keys, many callers, and callers that compete for
// one key over several servers.
func TestShardsCountExactly(t *testing.T) {
	t.Parallel()
	onClusterAndRing(t, func(t *testing.T, client redis.UniversalClient, servers []*redistest.Server) {
		s := redisStore(t, client, "rl:")

		// Hostile keys do not collide or fail, and all limits of a key are in one slot.
		limits := append(algorithms(1), FixedWindow(1, time.Hour), SlidingWindow(1, time.Hour), Rolling(1, time.Hour))
		for _, key := range hostileKeys() {
			_, admitted := take(t, s, key, 1, limits...)
			require.True(t, admitted, "%.200q", key)
			_, err := s.Adjust(ctx, key, -1, Now, limits)
			require.NoError(t, err)
			_, admitted = take(t, s, key, 1, limits...)
			require.True(t, admitted, "%.200q", key)
		}
		for _, key := range hostileKeys() {
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
				results := make([]Result, 4)
				for j := range 12 {
					if _, err := s.Take(ctx, fmt.Sprintf("user:%d:%d", i, j%4), 1, algorithms(2), results); err != nil {
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

		// Counts are as exact as on one server, also in pipelines.
		for _, limits := range contestedSets(150) {
			key := fmt.Sprint(limits)
			n, err := compete(s, key, 16, 20, limits...)
			require.NoError(t, err, key)
			require.EqualValues(t, 150, n, key)
		}
	})
}

// TestSlotMigrationUnderTrafficLosesNoCounts moves a slot to another master and back.
func TestSlotMigrationUnderTrafficLosesNoCounts(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	s := redisStore(t, c.Client(), "rl:")
	l := FixedWindow(1_000_000, time.Hour)
	keys := []string{"a", "b"} // the slot of b stays; its calls share pipelines with those for a
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
	awaitTraffic := func() {
		before := taken[0].Load()
		require.Eventually(t, func() bool { return taken[0].Load() > before+50 }, time.Minute, time.Millisecond)
	}
	for range 2 {
		awaitTraffic()
		m := c.BeginMigration(slot, to)
		awaitTraffic()
		for m.MoveKeys(1) > 0 {
		}
		awaitTraffic()
		m.Finish()
		awaitTraffic()
		from, to = to, from
	}
	close(done)
	wg.Wait()
	for i, key := range keys {
		results, _ := take(t, s, key, 0, l)
		require.Equal(t, l.N()-taken[i].Load(), results[0].Remaining, key)
	}
}

// TestLimitsInTwoPlacesAreAnError moves one of a key's limits to another master, and the rest
// later. In between calls are errors, because Redis runs no script on half of its keys. No
// count is wrong afterwards.
func TestLimitsInTwoPlacesAreAnError(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	s := redisStore(t, c.Client(), "rl:")
	limits := algorithms(5)
	take(t, s, "k", 2, limits...)
	slot := c.Slot("rl:{k}:any")
	to := c.Nodes[0]
	if c.Owner(slot) == to {
		to = c.Nodes[1]
	}
	m := c.BeginMigration(slot, to)
	take(t, s, "k", 1, limits...)
	m.MoveKeys(1)
	var e *RedisError
	require.ErrorAs(t, takeErr(s, "k", 1, limits), &e)
	require.True(t, e.Unsent)
	require.ErrorContains(t, e, "TRYAGAIN")
	for m.MoveKeys(1) > 0 {
	}
	take(t, s, "k", 1, limits...)
	m.Finish()
	results, _ := take(t, s, "k", 0, limits...)
	for _, r := range results {
		require.EqualValues(t, 1, r.Remaining)
	}
}

// TestMovingSlotIsNoOutage moves a slot of a Cluster. Calls for its keys may fail in
// the meantime. The store goes on deciding about all other keys, and the breaker stays
// closed.
func TestMovingSlotIsNoOutage(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	o := quiet(algorithms(30)[:2]...)
	o.Redis, o.OnFailure, o.Timeout = c.Client(), FailClosed, time.Minute
	l := Must(new(Registry).New("api", o))
	defer l.Close()
	decide := func(key string) Decision {
		d, err := l.Take(ctx, key)
		require.NoError(t, err)
		return d
	}
	decide("moves")
	slot := c.Slot("rl:api:{moves}:any")
	to := c.Nodes[0]
	if c.Owner(slot) == to {
		to = c.Nodes[1]
	}
	m := c.BeginMigration(slot, to)
	m.MoveKeys(1) // of the two that the key has
	for range 20 {
		_, err := l.Take(ctx, "moves")
		require.ErrorContains(t, err, "TRYAGAIN")
	}
	require.Equal(t, SourceStore, decide("stays").Source)
	require.Zero(t, l.Stats().Remote.BreakerOpened)
	m.MoveKeys(1)
	m.Finish()
	require.EqualValues(t, 28, decide("moves").Remaining)
}

// TestSentinelFailoverKeepsReplicatedCounts replaces a master by its replica. Replicated units
// are still counted.
func TestSentinelFailoverKeepsReplicatedCounts(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	setup := redistest.StartSentinel(t, redistest.SentinelOptions{})
	s := redisStore(t, setup.Client(), "rl:")
	take(t, s, "k", 3, hour)
	awaitReplicated(t, setup, "rl:{k}:fixed-1h")
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

// TestHangingMasterDelaysOnlyItsKeys stops one master of a cluster. Calls for keys of the
// others succeed in the meantime.
func TestHangingMasterDelaysOnlyItsKeys(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	l := newLimiter(t, "api", Options{
		Limits: []Limit{FixedWindow(1_000_000, time.Hour)}, Timeout: 4 * time.Second, OnFailure: FailClosed,
		Redis: c.Client(func(o *redis.ClusterOptions) { o.ReadTimeout = time.Minute }),
	})
	hung := c.Nodes[0]
	var its, others []string // keys of the master that hangs, and keys of the others
	for i := range 60 {
		key := [...]string{"user:", "GET /v1/{id}/", strings.Repeat("k", 130)}[i%3] + fmt.Sprint(i)
		if c.Owner(c.Slot(string(redisscript.AppendKey(nil, "rl:api:", key)))) == hung {
			its = append(its, key)
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
	for i := range 4 { // a fifth call would open the breaker
		waiting.Go(func() {
			_, err := l.Take(ctx, its[i])
			require.ErrorIs(t, err, context.DeadlineExceeded)
		})
	}
	waiting.Wait()
	over.Store(true)
	busy.Wait()
	require.Greater(t, done.Load(), int64(100))
	require.False(t, l.Stats().Remote.BreakerOpen)
}

// TestSingleServerClientOfAClusterIsAnError uses a client for single servers with a node of a
// cluster. The error says how to make the client.
func TestSingleServerClientOfAClusterIsAnError(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	for _, clusterMode := range []bool{false, true} {
		client := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: c.Addrs()[:1], IsClusterMode: clusterMode})
		defer client.Close()
		err := callAll(redisStore(t, client, fmt.Sprint("rl:", clusterMode, ":")))
		if clusterMode {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, "MOVED ")
			require.ErrorContains(t, err, "this is a node of a Cluster: make the client with redis.NewClusterClient, or with IsClusterMode: true")
		}
	}
}
