package e2e_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// These tests are about rolling windows on real servers.

// packed returns the value of a rolling window with these instants, as docs/redis.md has it.
func packed(instants ...int64) string {
	var b []byte
	for _, micros := range instants {
		b = append(b, binary.BigEndian.AppendUint64(nil, uint64(micros))[1:]...)
	}
	return string(b)
}

// TestDamagedLogsAreKeptAndReported puts values in the place of a rolling window that are
// not one. Each of them causes an error that names the key, and does not change.
//
// The scripts do not check that the instants between the oldest and the youngest one are in
// order, because that would take a tenth of a millisecond of the server's time for 1,000 of
// them. This process checks it when it reads the reply to a take.
func TestDamagedLogsAreKeptAndReported(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:login:")
	l := Rolling(7, time.Hour)
	const key = "rl:login:{k}:rolling-1h"
	now := c.Time(ctx).Val().UnixMicro()
	doubles := func(numbers ...float64) string {
		var b []byte
		for _, n := range numbers {
			b = binary.BigEndian.AppendUint64(b, math.Float64bits(n))
		}
		return string(b)
	}
	block := fmt.Sprintf("!%d %d 1 %d ", now+3_600_000_000, int64(3_600_000_000), int64(7_200_000_000))
	disorder := []string{packed(now-2, now, now-1), packed(now-9, now-8, now-7, now-3, now-6, now-2), block + packed(now-2, now, now-1)}
	for i, value := range append([]string{
		"", "\x00", "junk", "sixteen", "fourteen bytes", "3", "1234567", "1795853210413711 3 0",
		packed(now)[:6], packed(now) + "\x00", packed(now) + "\n",
		packed(now, now-1), packed(now-2, now-3, now-3), packed(1 << 53), packed(1<<56 - 1), packed(make([]int64, 1001)...),
		doubles(float64(now), 2, 0), doubles(float64(now), 0, 0), doubles(float64(now), 2, 3), doubles(float64(now), 2, float64(time.Hour.Microseconds())),
		"!", strings.TrimSuffix(block, " "), block + "junk", block + packed(now)[:5], block + packed(now, now-1), block + block + packed(now),
		packed(now) + " " + strings.TrimSuffix(block, " "), strings.Replace(block, " 1 ", " 5 ", 1) + packed(now),
	}, disorder...) {
		inOrder := !slices.Contains(disorder, value)
		for _, ttl := range []time.Duration{0, time.Hour} {
			require.NoError(t, c.FlushDB(ctx).Err())
			require.NoError(t, c.Set(ctx, key, value, ttl).Err())
			before := c.Dump(ctx, key).Val()
			for _, limits := range [][]Limit{{l}, {l.Block(time.Minute)}, {FixedWindow(5, time.Minute), l}, {l, Rolling(5, time.Minute)}} {
				for _, op := range operations {
					if op.name == "reset" || !inOrder && (strings.HasPrefix(op.name, "refund") || op.name == "charge") {
						continue
					}
					what := fmt.Sprintf("value %d, %q, %s, %v", i, value[:min(len(value), 60)], op.name, limits)
					err := op.do(s, "k", limits)
					var redisErr *RedisError
					require.ErrorAs(t, err, &redisErr, what)
					require.ErrorContains(t, err, fmt.Sprintf("the key %q holds something else than a counter", key), what)
					require.True(t, redisErr.Unsent, what)
					if inOrder {
						require.Equal(t, before, c.Dump(ctx, key).Val(), what)
						require.EqualValues(t, 1, c.DBSize(ctx).Val(), "%s: and nothing else was written", what)
					} else {
						require.NoError(t, c.FlushDB(ctx).Err())
						require.NoError(t, c.Set(ctx, key, value, ttl).Err())
					}
				}
			}
			require.NoError(t, s.Reset(ctx, "k", []Limit{l}))
			_, admitted := take(t, s, "k", 7, l)
			require.True(t, admitted)
		}
	}
}

// TestForeignValueOfARollingKeyFailsAlone: in one command, keys with a foreign value are
// errors, and the others are decided.
func TestForeignValueOfARollingKeyFailsAlone(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:")
	l := Rolling(1000, time.Hour)
	packedState := "C" + strings.Repeat("\x01", 23)
	require.NoError(t, c.Set(ctx, "rl:{bad0}:rolling-1h", packedState, 0).Err())
	require.NoError(t, c.RPush(ctx, "rl:{bad1}:rolling-1h", "x").Err())
	require.NoError(t, c.Set(ctx, "rl:{bad2}:rolling-1h", "text", 0).Err())
	var all sync.WaitGroup
	for g := range 32 {
		all.Go(func() {
			for i := range 50 {
				bad, key := g%8 == 0, fmt.Sprint("good", g)
				if bad {
					key = fmt.Sprint("bad", i%3)
				}
				err := takeErr(s, key, 1, []Limit{l})
				if bad && (err == nil || !strings.Contains(err.Error(), key)) || !bad && err != nil {
					t.Errorf("%s: %v", key, err)
					return
				}
			}
		})
	}
	all.Wait()
	for g := range 32 {
		if g%8 != 0 {
			require.EqualValues(t, 7*50, c.StrLen(ctx, fmt.Sprintf("rl:{good%d}:rolling-1h", g)).Val())
		}
	}
	require.Equal(t, packedState, c.Get(ctx, "rl:{bad0}:rolling-1h").Val())
}

// TestRollingAdmitsNInAnyInterval: limiters of several clients take units of one key at once,
// one by one, several together and as many as fit, alone and beside other limits. By the
// server's clock, no interval as long as a window has more than n units.
func TestRollingAdmitsNInAnyInterval(t *testing.T) {
	server := redistest.Start(t)
	const n, window = 40, 150 * time.Millisecond
	for i, limits := range [][]Limit{
		{Rolling(n, window)},
		{Rolling(n, window), Rolling(3*n, 5*window)},
		{FixedWindow(1_000_000, time.Hour), Rolling(n, window), SlidingWindow(1_000_000, time.Minute), TokenBucket(1_000_000, time.Second, 1_000_000)},
		{Rolling(n, window), Rolling(1, time.Millisecond)},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var units []Instant
			var all sync.WaitGroup
			until := time.Now().Add(10 * window)
			for range 3 {
				s := redisStore(t, server.Client(), fmt.Sprintf("rl:%d:", i))
				for g := range 16 {
					all.Go(func() {
						r, results := rand.New(rand.NewPCG(uint64(g), 3)), make([]Result, len(limits))
						for i := 0; i < 5 || time.Now().Before(until); i++ {
							want := int64(1)
							if r.IntN(3) == 0 && len(limits) != 2 {
								want += r.Int64N(4)
							}
							at, err := s.Take(ctx, "k", want, limits, results)
							if err != nil {
								t.Error(err)
								return
							}
							if admitted(results) {
								mu.Lock()
								for range want {
									units = append(units, at)
								}
								mu.Unlock()
							} else if r.IntN(2) == 0 {
								time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
							}
						}
					})
				}
			}
			all.Wait()
			slices.Sort(units)
			for _, l := range limits {
				if l.Algorithm() != "rolling" {
					continue
				}
				most := 0
				for first, at := range units {
					end, _ := slices.BinarySearch(units, at+Instant(l.Window()))
					most = max(most, end-first)
				}
				require.LessOrEqual(t, int64(most), l.N(), "%v", l)
				if len(limits) == 1 {
					require.EqualValues(t, l.N(), most)
				}
			}
			require.NotEmpty(t, units)
		})
	}
}

// TestRollingKeysOfABatch: callers of many keys share commands, with costs from 1 to 1,000 and
// keys of any length. Each key gets its units, and no other.
func TestRollingKeysOfABatch(t *testing.T) {
	onClusterAndRing(t, func(t *testing.T, client redis.UniversalClient, _ []*redistest.Server) {
		s := redisStore(t, client, "rl:")
		costs := []int64{1, 2, 3, 250, 999, 1000}
		var all sync.WaitGroup
		for i := range 60 {
			key, cost := fmt.Sprintf("%d%s", i, strings.Repeat("x", i*90)), costs[i%len(costs)]
			var got atomic.Int64
			for range 4 {
				all.Go(func() {
					limits := []Limit{Rolling(1000, 1000*time.Hour), Rolling(1000, time.Hour)}
					for range 1000/cost/4 + 1 {
						results := make([]Result, 2)
						if _, err := s.Take(ctx, key, cost, limits, results); err != nil {
							t.Error(err)
						} else if admitted(results) {
							got.Add(cost)
						}
						if results[0].Remaining != results[1].Remaining {
							t.Error(results)
						}
					}
				})
			}
			defer func() { require.EqualValues(t, 1000/cost*cost, got.Load(), "%.10s, cost %d", key, cost) }()
		}
		all.Wait()
	})
}

// TestRollingOutlivesAServer: the log is the same after the server was killed, with an
// append-only file or a snapshot, and at a replica that is promoted.
func TestRollingOutlivesAServer(t *testing.T) {
	limits := []Limit{Rolling(500, time.Hour), Rolling(400, 2*time.Hour).Block(time.Hour)}
	use := func(t *testing.T, client redis.UniversalClient) (same func() bool) {
		s := redisStore(t, client, "rl:login:")
		for range 399 {
			_, ok := take(t, s, "k", 1, limits...)
			require.True(t, ok)
		}
		results, _ := take(t, s, "k", 2, limits...)
		require.True(t, results[1].BlockBegan)
		names := []string{"rl:login:{k}:rolling-1h", "rl:login:{k}:rolling-2h"}
		logs := client.MGet(ctx, names...).Val()
		require.Len(t, logs[0], 399*7)
		require.True(t, strings.HasSuffix(logs[1].(string), logs[0].(string)))
		require.True(t, strings.HasPrefix(logs[1].(string), "!"))
		ends := client.PExpireTime(ctx, names[0]).Val()
		return func() bool {
			results := make([]Result, 2)
			_, err := s.Take(ctx, "k", 0, limits, results)
			return err == nil && slices.Equal(logs, client.MGet(ctx, names...).Val()) && ends == client.PExpireTime(ctx, names[0]).Val() &&
				results[0].Remaining == 101 && results[1].Blocked
		}
	}
	for name, args := range map[string][]string{"AOF": {"--appendonly", "yes", "--appendfsync", "always"}, "RDB": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, args...)
			same := use(t, server.Client())
			if args == nil {
				server.Do("SAVE")
			}
			server.Restart()
			eventually(t, "the log to be the same", same)
		})
	}
	t.Run("failover", func(t *testing.T) {
		t.Parallel()
		sentinel := redistest.StartSentinel(t, redistest.SentinelOptions{})
		same := use(t, sentinel.Client())
		awaitReplicated(t, sentinel, "rl:login:{k}:rolling-2h")
		sentinel.Failover()
		eventually(t, "the log to be the same", same)
	})
}

// TestRollingThroughAnOutage: the server is killed while a process is in use. The process goes
// on from what it knows, and afterwards the server, which has saved its log, has the rest.
func TestRollingThroughAnOutage(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	limit := Rolling(20, time.Hour)
	o := quiet(limit)
	o.Redis, o.Timeout = server.Client(refusing), time.Minute
	l := newLimiter(t, "login", o)
	for range 12 {
		require.Equal(t, SourceStore, decide(t, l, "k", 1).Source)
	}
	server.Kill()
	admitted := 0
	for range 40 {
		if d := decide(t, l, "k", 1); d.Allowed {
			admitted++
		} else {
			require.Less(t, d.RetryAfter, time.Hour)
		}
	}
	require.LessOrEqual(t, admitted, 8)
	require.GreaterOrEqual(t, admitted, 7, "one call may have been under way")
	server.Restart()
	client := server.Client()
	eventually(t, "the server to have what is owed", func() bool {
		d := decide(t, l, "another", 0)
		return d.Source == SourceStore && l.Stats().Remote.Owed == 0
	})
	value := client.Get(ctx, "rl:login:{k}:rolling-1h").Val()
	units := len(value) / 7
	require.LessOrEqual(t, units, 12+admitted)
	require.GreaterOrEqual(t, units, 12+admitted-3, "units of calls on a connection that ends are not sent again")
	var instants []string
	for ; value != ""; value = value[7:] {
		instants = append(instants, value[:7])
	}
	require.True(t, slices.IsSorted(instants))
	_, ok := take(t, redisStore(t, client, "rl:login:"), "k", int64(20-units)+1, limit)
	require.False(t, ok)
}
