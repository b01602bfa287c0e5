package ratelimit_test

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

// TestRedisHooks: a client's hooks, such as those that trace, see each command.
func TestRedisHooks(t *testing.T) {
	for _, prompt := range []bool{false, true} {
		client := redistest.Start(t).Client(func(o *redis.Options) { o.ContextTimeoutEnabled = prompt })
		var seen atomic.Int64
		client.AddHook(hook(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			if strings.HasPrefix(cmd.Name(), "eval") {
				seen.Add(1)
			}
			return next(ctx, cmd)
		}))
		l := httpLimiterNamed(t, "api", Options{Limits: []Limit{hour}, Redis: client})
		for i := range 10 {
			require.Equal(t, SourceStore, decide(t, l, fmt.Sprint("key", i), 1).Source)
		}
		require.EqualValues(t, 10+1, seen.Load(), "and once more for the script that was unknown")
	}
}

// TestRedisShardingProxy: behind a client of one server may be a proxy of several, which goes by a
// command's first key. What many callers send it is exact all the same.
func TestRedisShardingProxy(t *testing.T) {
	servers := []*redis.Client{redistest.Start(t).Client(), redistest.Start(t).Client()}
	client := redistest.Start(t).Client()
	client.AddHook(hook(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
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

// TestRedisNothingAfterClose: a call that was held up between its check and its command sends none.
func TestRedisNothingAfterClose(t *testing.T) {
	server := redistest.Start(t)
	s := redisStore(t, server.Client(), "rl:")
	c := heldUp{ctx, make(chan struct{}), make(chan struct{})}
	done := make(chan error)
	go func() {
		_, err := s.Take(c, "key", 1, []Limit{hour}, make([]Result, 1))
		done <- err
	}()
	<-c.asked
	s.Close()
	close(c.goOn)
	require.ErrorIs(t, <-done, ErrStoreClosed)
	require.Zero(t, server.Do("DBSIZE"))
}

// heldUp is a context whose deadline is a long time coming.
type heldUp struct {
	context.Context
	asked, goOn chan struct{}
}

func (c heldUp) Deadline() (time.Time, bool) {
	close(c.asked)
	<-c.goOn
	return time.Time{}, false
}
