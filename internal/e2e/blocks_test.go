package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// These tests are about blocks on real servers: processes that share a ladder, times to
// live, and servers that fail. The fault suite has blocks, too.

// ladder is what processes share. Its first block ends during the test.
var ladder = FixedWindow(10, 200*time.Millisecond).Block(5*time.Second, time.Hour, 24*time.Hour)

// TestProcessesEscalateOneLadder: processes that use up a key at the same time start one
// block. After its end they start one more, with the next duration.
func TestProcessesEscalateOneLadder(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var processes []*child
	for range 4 {
		c := startChild(t, "deny", redisAddrEnv+"="+server.Addr)
		require.Equal(t, "ready", c.line(t))
		processes = append(processes, c)
	}
	for _, rung := range ladder.Ladder()[:2] {
		for _, c := range processes {
			c.proceed(t)
		}
		began := 0
		for _, c := range processes {
			for _, lasts := range strings.Fields(c.line(t)) {
				nanos, err := strconv.ParseInt(lasts, 10, 64)
				require.NoError(t, err)
				require.Equal(t, rung, time.Duration(nanos))
				began++
			}
		}
		require.Equal(t, 1, began, "blocks of %v", rung)
	}
}

// denyAtRedis is one of the processes. In each round it takes units until the key is blocked,
// and then prints the durations of the blocks that it has started.
func denyAtRedis() error {
	var began []string
	o := redisOptions(redis.NewClient(&redis.Options{Addr: os.Getenv(redisAddrEnv)}), ladder)
	o.Observe = func(_ context.Context, e Event) {
		if e.Kind == EventBlocked {
			began = append(began, fmt.Sprint(int64(e.Duration)))
		}
	}
	l, err := New("login", o)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	in := bufio.NewReader(os.Stdin)
	for round := range 2 {
		awaitProceed(in)
		deadline := time.Now().Add(time.Minute)
		for first := round == 1; first; { // until the first block is over
			d, err := l.TakeN(context.Background(), "k", 0)
			if err != nil {
				return err
			}
			if first = d.Blocked && d.MoreAfter <= ladder.Ladder()[0]; time.Now().After(deadline) {
				return fmt.Errorf("still %v", d)
			}
		}
		began = nil
		for blocked := false; !blocked; {
			d, err := l.TakeN(context.Background(), "k", 1)
			if err != nil {
				return err
			}
			if blocked = d.Blocked; time.Now().After(deadline) {
				return fmt.Errorf("no block: %v", d)
			}
		}
		fmt.Println(strings.Join(began, " "))
	}
	return nil
}

// TestBlocksHaveATTL does every pair of operations on a blocked key, under every algorithm.
// The key lives until the block is forgotten, and not longer. Then the short form is used
// again.
func TestBlocksHaveATTL(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:ttl:")
	for _, l := range algorithms(7) {
		short := Limit{}
		switch l.Algorithm() {
		case "fixed":
			short = FixedWindow(7, time.Minute)
		case "sliding":
			short = SlidingWindow(7, time.Minute)
		case "rolling":
			short = Rolling(7, time.Minute)
		default:
			short = TokenBucket(7, time.Minute, 7)
		}
		limits := []Limit{short.Block(time.Hour, 2*time.Hour)}
		name := "rl:ttl:{k}:" + l.Algorithm() + "-1m"
		lives := func(what string) {
			t.Helper()
			pttl := c.PTTL(ctx, name).Val()
			require.LessOrEqual(t, pttl, 3*time.Hour+time.Millisecond, what)
			require.Greater(t, pttl, 3*time.Hour-slack, what)
		}
		for _, first := range operations {
			for _, second := range operations {
				if first.name == "reset" || second.name == "reset" {
					continue
				}
				require.NoError(t, s.Reset(ctx, "k", limits))
				_, admitted := take(t, s, "k", 7, limits...)
				require.True(t, admitted)
				results, _ := take(t, s, "k", 1, limits...)
				require.True(t, results[0].BlockBegan)
				lives("the denial")
				for _, op := range []func(Store, string, []Limit) error{first.do, second.do} {
					require.NoError(t, op(s, "k", limits), "%s, then %s: %v", first.name, second.name, limits)
					lives(first.name + ", then " + second.name)
					require.True(t, c.Persist(ctx, name).Val())
				}
				// A missing time to live is repaired, and the block goes on.
				require.NoError(t, takeErr(s, "k", 0, limits))
				lives("look")
				results, _ = take(t, s, "k", 1, limits...)
				require.True(t, results[0].Blocked)
				require.False(t, results[0].BlockBegan)
			}
		}
		require.NoError(t, s.Reset(ctx, "k", limits))
		require.Zero(t, c.Exists(ctx, name).Val())

		// By hand, without a counter. The key expires with the block.
		require.NoError(t, s.Block(ctx, "k", Block{Left: 150 * time.Millisecond, Rung: 1, Forget: 100 * time.Millisecond}, limits))
		if pttl := c.PTTL(ctx, name).Val(); pttl != -2 { // it has not expired yet
			require.Positive(t, pttl)
			require.LessOrEqual(t, pttl, 251*time.Millisecond)
		}
		eventually(t, "the key to expire", func() bool { return c.Exists(ctx, name).Val() == 0 })

		// With a counter: the long form, until the block is forgotten.
		take(t, s, "k", 2, limits...)
		before := c.Get(ctx, name).Val()
		require.NoError(t, s.Block(ctx, "k", Block{Left: 150 * time.Millisecond, Forget: 100 * time.Millisecond}, limits))
		require.True(t, hasBlock(l, c.Get(ctx, name).Val()))
		eventually(t, "the block to be forgotten", func() bool {
			_, admitted := take(t, s, "k", 1, limits...)
			if admitted {
				_, err := s.Adjust(ctx, "k", -1, Now, limits)
				require.NoError(t, err)
			}
			return admitted && !hasBlock(l, c.Get(ctx, name).Val())
		})
		if l.Algorithm() == "rolling" {
			require.Len(t, c.Get(ctx, name).Val(), len(before))
		} else {
			require.Equal(t, len(strings.Fields(before)), len(strings.Fields(c.Get(ctx, name).Val())))
		}
		require.Positive(t, c.PTTL(ctx, name).Val())
	}
}

// hasBlock reports whether the value of a counter has a block. The log of a rolling window
// may have any byte, so its block is before it.
func hasBlock(l Limit, value string) bool {
	if l.Algorithm() == "rolling" {
		return strings.HasPrefix(value, "!")
	}
	return strings.Contains(value, " !")
}

// TestBlockedCounterIsReadable checks what redis-cli shows of a blocked key.
func TestBlockedCounterIsReadable(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:login:")
	for _, l := range []Limit{FixedWindow(5, time.Hour), SlidingWindow(5, 15*time.Minute), TokenBucket(5, time.Minute, 5)} {
		limit := l.Block(2*time.Hour, 24*time.Hour)
		take(t, s, "203.0.113.7", 5, limit)
		now := c.Time(ctx).Val()
		take(t, s, "203.0.113.7", 1, limit)
		value := c.Get(ctx, "rl:login:{203.0.113.7}:"+l.Algorithm()+"-"+windowOf(l)).Val()
		var since, units, rest, ends, lasts, rung, forget int64
		n, err := fmt.Sscanf(value, "%d %d %d !%d %d %d %d", &since, &units, &rest, &ends, &lasts, &rung, &forget)
		require.NoError(t, err, value)
		require.Equal(t, 7, n)
		require.InDelta(t, now.UnixMicro(), since, float64(slack.Microseconds()), value)
		require.Contains(t, []int64{4, 5}, units, value)
		require.InDelta(t, now.Add(2*time.Hour).UnixMicro(), ends, float64(slack.Microseconds()), value)
		require.Equal(t, []int64{2 * time.Hour.Microseconds(), 1, 24 * time.Hour.Microseconds()}, []int64{lasts, rung, forget}, value)
	}
}

// blockAt blocks a key by a denial, and checks that a limiter of another process denies it.
func blockAt(t *testing.T, client redis.UniversalClient) (limit Limit, stillBlocked func() bool) {
	t.Helper()
	limit = FixedWindow(3, time.Second).Block(time.Hour, 2*time.Hour)
	s := redisStore(t, client, "rl:login:")
	take(t, s, "k", 3, limit)
	eventually(t, "a block to begin", func() bool {
		results, _ := take(t, s, "k", 1, limit)
		return results[0].BlockBegan
	})
	return limit, func() bool {
		results := make([]Result, 1)
		_, err := s.Take(ctx, "k", 0, []Limit{limit}, results)
		return err == nil && results[0].Blocked && results[0].MoreAfter <= time.Hour && results[0].MoreAfter > time.Hour-time.Minute
	}
}

// TestBlockOutlivesAKilledServer: with an append-only file, or a snapshot.
func TestBlockOutlivesAKilledServer(t *testing.T) {
	t.Run("AOF", func(t *testing.T) {
		server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
		_, stillBlocked := blockAt(t, server.Client())
		server.Restart()
		eventually(t, "the block to be there", stillBlocked)
	})
	t.Run("RDB", func(t *testing.T) {
		server := redistest.Start(t)
		_, stillBlocked := blockAt(t, server.Client())
		server.Do("SAVE")
		server.Restart()
		eventually(t, "the block to be there", stillBlocked)
	})
}

// TestBlockOutlivesAFailover: a replica that is promoted has the block, and the ladder.
func TestBlockOutlivesAFailover(t *testing.T) {
	t.Parallel()
	sentinel := redistest.StartSentinel(t, redistest.SentinelOptions{})
	_, stillBlocked := blockAt(t, sentinel.Client())
	require.True(t, stillBlocked())
	awaitReplicated(t, sentinel, "rl:login:{k}:fixed-1s")
	sentinel.Failover()
	eventually(t, "the block to be there", stillBlocked)
}

// TestServerThatComesBackEmpty: the process that knows the block goes on with it until it asks
// the server, and the ladder starts again.
func TestServerThatComesBackEmpty(t *testing.T) {
	server := redistest.Start(t)
	limit := FixedWindow(3, time.Hour).Block(2*time.Hour, 24*time.Hour)
	o := quiet(limit)
	o.Redis, o.Timeout = server.Client(refusing), time.Minute
	l := newLimiter(t, "login", o)
	for range 3 {
		require.True(t, decide(t, l, "k", 1).Allowed)
	}
	require.True(t, decide(t, l, "k", 1).Blocked)
	server.Kill()
	require.True(t, decide(t, l, "k", 1).Blocked)
	server.Restart()
	eventually(t, "the server to decide", func() bool {
		d := decide(t, l, "k", 1)
		return d.Allowed && d.Source == SourceStore
	})
	eventually(t, "the key to be blocked", func() bool { return decide(t, l, "k", 1).Blocked })
	require.LessOrEqual(t, decide(t, l, "k", 1).RetryAfter, 2*time.Hour)
}

// TestLostReplyStartsABlockOnce: the server starts a block, and its reply is lost. The denial
// is not sent again, and the next block has the second duration.
func TestLostReplyStartsABlockOnce(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := redistest.NewProxy(t, server.Addr)
	limit := FixedWindow(3, time.Hour).Block(4*time.Second, time.Hour, 24*time.Hour)
	var events atomic.Int64
	o := quiet(limit)
	client := redistest.Client(t, p.Addr)
	o.Redis, o.Timeout = client, 3*time.Second // what the lost reply costs
	o.Observe = func(_ context.Context, e Event) {
		if e.Kind == EventBlocked {
			events.Add(1)
		}
	}
	l := newLimiter(t, "login", o)
	eventually(t, "the owner record, beside the decisions", func() bool {
		decide(t, l, "k", 0)
		return server.Client().Exists(ctx, "rl:login:owner").Val() == 1
	})
	d := decide(t, l, "k", 3)
	require.Equal(t, SourceStore, d.Source)
	connect(t, client, []*redistest.Proxy{p})
	p.LoseReplies(true)
	before := server.Commands()["evalsha"]
	d = decide(t, l, "k", 3)
	require.Equal(t, SourceFallback, d.Source)
	require.True(t, d.Blocked)
	direct, key := server.Client(), "rl:login:{k}:fixed-1h"
	eventually(t, "the server to start the block", func() bool { return hasBlock(limit, direct.Get(ctx, key).Val()) })
	p.LoseReplies(false)
	require.LessOrEqual(t, server.Commands()["evalsha"]-before, int64(2), "the denial, and what is owed")
	eventually(t, "the server to decide", func() bool {
		d := decide(t, l, "k", 0)
		return d.Source == SourceStore && l.Stats().Remote.Owed == 0
	})
	value := direct.Get(ctx, key).Val()
	require.Contains(t, value, " 1 ", "one denial has blocked the key: %s", value)
	require.EqualValues(t, 1, events.Load())
	eventually(t, "the second block, when the first has ended", func() bool {
		d = decide(t, l, "k", 3)
		return d.Blocked && d.MoreAfter > time.Minute
	})
	require.InDelta(t, time.Hour, d.MoreAfter, float64(time.Minute), "the second duration")
}

// eventually waits until a condition holds. It ends the test if it takes too long.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(faultPatience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", faultPatience, what)
		}
	}
}
