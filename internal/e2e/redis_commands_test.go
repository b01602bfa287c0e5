package e2e_test

import (
	"context"
	"fmt"
	"hash/fnv"
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

// TestStoreCallIsOneEvalsha counts the commands of each operation. The text of a script is
// sent once, and each call after that is one EVALSHA.
func TestStoreCallIsOneEvalsha(t *testing.T) {
	server := redistest.Start(t)
	s := redisStore(t, server.Client(), "rl:")
	for _, limits := range limitSets(5) {
		for _, op := range operations {
			require.NoError(t, op.do(s, "warm", limits))
		}
	}
	sent := server.Commands()
	require.EqualValues(t, 3, sent["eval"], "one for each of the scripts")
	require.EqualValues(t, len(limitSets(5))*len(operations), sent["evalsha"])

	before := server.Commands()
	for _, limits := range limitSets(5) {
		for _, op := range operations {
			for range 10 {
				require.NoError(t, op.do(s, "k", limits))
			}
		}
	}
	after := server.Commands()
	require.EqualValues(t, 10*len(limitSets(5))*len(operations), after["evalsha"]-before["evalsha"])
	require.Equal(t, before["eval"], after["eval"])
	for _, name := range []string{"exec", "multi", "script|load", "expire", "pexpire"} {
		require.Zero(t, after[name], name)
	}
}

// TestLimiterCallIsOneEvalsha counts the commands of a limiter. It makes its calls on the
// callers' goroutines, and writes its ownership record with one command.
func TestLimiterCallIsOneEvalsha(t *testing.T) {
	server := redistest.Start(t)
	var reg Registry
	defer reg.Close()
	l := Must(reg.New("api", redisOptions(server.Client(), FixedWindow(500, time.Hour))))
	for range 500 {
		d, err := l.Take(ctx, "k")
		require.NoError(t, err)
		require.True(t, d.Allowed)
	}
	require.NoError(t, l.Close()) // its record has been written when Close returns
	sent := server.Commands()
	require.EqualValues(t, 1, sent["eval"])
	require.LessOrEqual(t, sent["evalsha"], int64(501))
	require.GreaterOrEqual(t, sent["evalsha"], int64(500))
	// The server also counts the scripts' own commands. The first unit is a SET, and so is the record.
	require.EqualValues(t, 2, sent["set"])
	require.EqualValues(t, 499, sent["incrby"])
}

// TestSimultaneousCallersShareCommands makes calls for one key at the same time. They share
// commands, and get the same results as calls made one by one.
func TestSimultaneousCallersShareCommands(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	proxy.Latency(time.Millisecond) // so that calls overlap
	client := redistest.Client(t, proxy.Addr)
	s := redisStore(t, client, "rl:")
	for _, limits := range limitSets(500) {
		require.NoError(t, client.FlushDB(ctx).Err())
		before := server.Commands()["evalsha"]
		var mu sync.Mutex
		var denied int
		callsByRemaining := make(map[int64]int) // number of calls by the Remaining that they got
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				results := make([]Result, len(limits))
				for range 10 {
					if _, err := s.Take(ctx, "k", 1, limits, results); err != nil {
						t.Error(err)
					}
					mu.Lock()
					if results[0].RetryAfter > 0 {
						denied++
					} else {
						callsByRemaining[results[0].Remaining]++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		require.Equal(t, 140, denied, "%v", limits)
		require.Len(t, callsByRemaining, 500, "each number of remaining units was returned")
		for n, times := range callsByRemaining {
			require.Equal(t, 1, times, "%d remaining, %v", n, limits)
		}
		require.Less(t, server.Commands()["evalsha"]-before, int64(320), "%v", limits)
	}
}

// TestScriptFlushUnderTrafficIsNotSeen makes the server forget the scripts all the time. Callers
// do not notice it.
func TestScriptFlushUnderTrafficIsNotSeen(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	s := redisStore(t, client, "rl:")
	for _, limits := range limitSets(1000) {
		require.NoError(t, client.FlushDB(ctx).Err())
		done := make(chan struct{})
		var flushing sync.WaitGroup
		flushing.Go(func() {
			for {
				if err := client.ScriptFlush(ctx).Err(); err != nil {
					t.Error(err)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
		n, err := compete(s, "k", 8, 200, limits...)
		close(done)
		flushing.Wait()
		require.NoError(t, err)
		require.EqualValues(t, 1000, n, "%v", limits)
	}
	require.Greater(t, server.Commands()["eval"], int64(4), "it did forget")
}

// TestClientHooksSeeEachCommand uses a client with a hook, such as a hook for tracing.
func TestClientHooksSeeEachCommand(t *testing.T) {
	for _, honoursDeadline := range []bool{false, true} {
		client := redistest.Start(t).Client(func(o *redis.Options) { o.ContextTimeoutEnabled = honoursDeadline })
		var evals atomic.Int64
		client.AddHook(redistest.Hook(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			if strings.HasPrefix(cmd.Name(), "eval") {
				evals.Add(1)
			}
			return next(ctx, cmd)
		}))
		l := newLimiter(t, "api", Options{Limits: []Limit{hour}, Redis: client, Timeout: time.Minute})
		for i := range 10 {
			require.Equal(t, SourceStore, decide(t, l, fmt.Sprint("key", i), 1).Source)
		}
		require.EqualValues(t, 10+1, evals.Load(), "and once more for the script that was unknown")
	}
}

// TestShardingProxyCountsExactly uses a client of one address behind which a proxy
// distributes commands over several servers by their first key.
func TestShardingProxyCountsExactly(t *testing.T) {
	servers := []*redis.Client{redistest.Start(t).Client(), redistest.Start(t).Client()}
	client := redistest.Start(t).Client()
	client.AddHook(redistest.Hook(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
		args := cmd.Args()
		if len(args) < 2 {
			return next(ctx, cmd)
		}
		key := fmt.Sprint(args[1])
		if strings.HasPrefix(cmd.Name(), "eval") {
			key = fmt.Sprint(args[3])
		}
		h := fnv.New32()
		h.Write([]byte(key))
		return servers[h.Sum32()%2].Process(ctx, cmd)
	}))
	s := redisStore(t, client, "rl:")
	const limit, keys, callers = 50, 40, 32
	var admitted [keys]atomic.Int64
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for i := range 10 * keys {
				results := make([]Result, 1)
				if _, err := s.Take(ctx, fmt.Sprint("key", i%keys), 1, []Limit{FixedWindow(limit, time.Hour)}, results); err != nil {
					t.Error(err)
				} else if results[0].RetryAfter == 0 {
					admitted[i%keys].Add(1)
				}
			}
		})
	}
	all.Wait()
	for i := range admitted {
		require.EqualValues(t, limit, admitted[i].Load(), i)
	}
}
