package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// takeFromMany has 64 callers take n units of each of the keys in turn. It returns how many
// units of each key were admitted, and how many calls failed.
func takeFromMany(s *RedisStore, calls int, keys []string, n func(i int) int64, limits []Limit) (admitted []atomic.Int64, failed *atomic.Int64) {
	admitted, failed = make([]atomic.Int64, len(keys)), new(atomic.Int64)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			results := make([]Result, len(limits))
			for j := range calls {
				k := (i + j) % len(keys)
				_, err := s.Take(ctx, keys[k], n(i), limits, results)
				var failure *RedisError
				switch {
				case errors.As(err, &failure) && failure.Unsent:
					failed.Add(1)
				case err != nil:
					panic(err)
				case !slices.ContainsFunc(results, func(r Result) bool { return r.RetryAfter > 0 }):
					admitted[k].Add(n(i))
				}
			}
		})
	}
	wg.Wait()
	return admitted, failed
}

// awaitSharedCommands waits until a store sends commands for several keys. It does so once it
// has found out that the server is not a cluster's node.
func awaitSharedCommands(t *testing.T, s *RedisStore, server *redistest.Server) {
	t.Helper()
	const calls = 256
	require.Eventually(t, func() bool {
		before := server.Commands()["evalsha"]
		var wg sync.WaitGroup
		for i := range calls {
			wg.Go(func() { s.Take(ctx, fmt.Sprint("warm", i), 0, []Limit{hour}, make([]Result, 1)) })
		}
		wg.Wait()
		return server.Commands()["evalsha"]-before < calls/2
	}, time.Minute, time.Millisecond)
}

// TestSharedCommandsCountExactly has many callers take units of many keys. Their calls share
// commands.
func TestSharedCommandsCountExactly(t *testing.T) {
	server := redistest.Start(t)
	keys := make([]string, 40)
	for i := range keys {
		keys[i] = fmt.Sprint("k", i)
	}
	one := func(int) int64 { return 1 }
	oneOrTwo := func(i int) int64 { return 1 + int64(i%2) }
	for name, tt := range map[string]struct {
		limits []Limit
		n      func(int) int64
	}{
		"fixed":              {[]Limit{FixedWindow(100, time.Hour)}, one},
		"sliding":            {[]Limit{SlidingWindow(100, time.Hour)}, one},
		"bucket":             {[]Limit{TokenBucket(1, time.Hour, 100)}, one},
		"several limits":     {[]Limit{FixedWindow(150, time.Minute), FixedWindow(100, time.Hour), TokenBucket(1, time.Hour, 120)}, one},
		"units of two sizes": {[]Limit{FixedWindow(100, time.Hour)}, oneOrTwo},
	} {
		t.Run(name, func(t *testing.T) {
			s := redisStore(t, server.Client(), "rl:"+name+":")
			awaitSharedCommands(t, s, server)
			server.ResetStats()
			admitted, failed := takeFromMany(s, 100, keys, tt.n, tt.limits)
			for i := range admitted {
				require.EqualValues(t, 100, admitted[i].Load(), "of key %d", i)
			}
			require.Zero(t, failed.Load())
			require.Less(t, server.Commands()["evalsha"], int64(64*100/2), "calls share commands")
		})
	}
}

// TestForeignValueFailsOnlyItsOwnKey shares commands with calls for keys that hold no counter.
func TestForeignValueFailsOnlyItsOwnKey(t *testing.T) {
	server := redistest.Start(t)
	keys := []string{"a", "junk", "list", "b", "c"}
	limits := []Limit{FixedWindow(1000, time.Hour), TokenBucket(1, time.Hour, 1000)}
	s := redisStore(t, server.Client(), "rl:junk:")
	awaitSharedCommands(t, s, server)
	server.Do("SET", "rl:junk:{junk}:bucket-1h", "12")
	server.Do("RPUSH", "rl:junk:{list}:fixed-1h", "12")
	admitted, failed := takeFromMany(s, 50, keys, func(int) int64 { return 1 }, limits)
	for i, key := range keys {
		want := 64 * 50 / int64(len(keys))
		if key == "junk" || key == "list" {
			want = 0
		}
		require.Equal(t, want, admitted[i].Load(), "of key %q", key)
	}
	require.EqualValues(t, 2*64*50/len(keys), failed.Load())
	require.Equal(t, "12", server.Do("GET", "rl:junk:{junk}:bucket-1h"))
	require.Nil(t, server.Do("GET", "rl:junk:{junk}:fixed-1h"), "all limits or none")
}

// TestKeysOfSeveralSlotsAreNotSentTogether uses a client for single servers with a node of a
// cluster. The node refuses commands for keys of several slots, and no caller sees that.
func TestKeysOfSeveralSlotsAreNotSentTogether(t *testing.T) {
	node := redistest.Start(t, "--cluster-enabled", "yes")
	node.Do("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
	require.Eventually(t, func() bool {
		return node.Client().Set(ctx, "up", 1, 0).Err() == nil
	}, time.Minute, 10*time.Millisecond)
	s := redisStore(t, node.Client(), "rl:slots:")
	admitted, failed := takeFromMany(s, 100, []string{"a", "b", "c", "d"}, func(int) int64 { return 1 }, []Limit{FixedWindow(1000, time.Hour)})
	for i := range admitted {
		require.EqualValues(t, 1000, admitted[i].Load())
	}
	require.Zero(t, failed.Load())
}

// mangle is a hook of a client that changes the replies of scripts.
type mangle struct {
	numbers int // changes replies of this many numbers or more
	change  func(reply []int64) []int64
}

func (mangle) DialHook(next redis.DialHook) redis.DialHook { return next }

func (m mangle) one(cmd redis.Cmder) {
	if c, ok := cmd.(interface {
		Val() []int64
		SetVal([]int64)
	}); ok && len(c.Val()) >= m.numbers {
		c.SetVal(m.change(c.Val()))
	}
}

func (m mangle) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		m.one(cmd)
		return err
	}
}

func (m mangle) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			m.one(cmd)
		}
		return err
	}
}

// TestMangledRepliesAreErrors changes the replies of the scripts for one key and for many. They
// are errors, and never a panic.
func TestMangledRepliesAreErrors(t *testing.T) {
	server := redistest.Start(t)
	keys := []string{"a", "b", "c", "d", "e", "f"}
	for name, change := range map[string]func(reply []int64) []int64{
		"nothing":                 func([]int64) []int64 { return []int64{} },
		"cut":                     func(reply []int64) []int64 { return reply[:len(reply)-1] },
		"half a pair":             func(reply []int64) []int64 { return append(reply, 1) },
		"of no call":              func(reply []int64) []int64 { return append(reply, 0, 0) },
		"of one too many":         func(reply []int64) []int64 { return append(reply, 1000, 0) },
		"of no counter":           func(reply []int64) []int64 { return append(reply, 1, -2) },
		"far off":                 func(reply []int64) []int64 { return append(reply, math.MinInt64, math.MinInt64) },
		"denied without a reason": func(reply []int64) []int64 { return append(reply, 1, 0) },
	} {
		for _, numbers := range []int{3, 5} { // all replies, and those for many keys
			client := server.Client()
			client.AddHook(mangle{numbers, change})
			s := redisStore(t, client, fmt.Sprintf("rl:%s-%d:", name, numbers))
			awaitSharedCommands(t, s, server)
			limits, failed := []Limit{FixedWindow(1e6, time.Hour)}, new(atomic.Int64)
			var wg sync.WaitGroup
			for i := range 32 {
				wg.Go(func() {
					for range 20 {
						if takeErr(s, keys[i%len(keys)], 1, limits) != nil {
							failed.Add(1)
						}
					}
				})
			}
			wg.Wait()
			require.Positive(t, failed.Load(), name)
			if name != "denied without a reason" && numbers == 3 {
				require.EqualValues(t, 32*20, failed.Load(), name)
				require.ErrorContains(t, takeErr(s, "a", 1, limits), "is there a proxy that changes replies?", name)
			}
		}
	}
}
