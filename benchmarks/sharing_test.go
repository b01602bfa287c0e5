package benchmarks

import (
	"log/slog"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// BenchmarkSharing compares the ways in which 64 callers can share commands to one server:
// the same script, of a fixed window, for 10,000 keys. See docs/scaling.md for the results.
func BenchmarkSharing(b *testing.B) {
	server := redistest.Start(b)
	client := server.Client(func(o *redis.Options) { o.PoolSize = RedisConnections })
	window := rule.Limit{Kind: rule.Fixed, N: 1e12, Window: int64(time.Hour)}
	if err := client.ScriptLoad(background, redisscript.Take.Text.(string)).Err(); err != nil {
		b.Fatal(err)
	}
	limit := redisscript.Args(redisscript.Micro(window), redisscript.Periods{}, nil)
	script := func(c redis.Scripter) func(key string) error {
		return func(key string) error {
			return c.EvalSha(background, redisscript.Take.Hash.(string), []string{"rl:x:{" + key + "}:fixed-1h"}, limit...).Err()
		}
	}
	limiter := func(name string, c redis.UniversalClient) func(key string) error {
		l := must(new(ratelimit.Registry).New(name, ratelimit.Options{
			Limits: []ratelimit.Limit{ratelimit.FixedWindow(1e12, time.Hour)}, Redis: c, Timeout: 3 * time.Second,
			Logger: slog.New(slog.DiscardHandler),
		}))
		b.Cleanup(func() { l.Close() })
		return func(key string) error { _, err := l.Take(background, key); return err }
	}
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"one": server.Addr}, PoolSize: RedisConnections})
	b.Cleanup(func() { ring.Close() })
	for _, method := range []struct {
		name string
		take func(key string) error
	}{
		{"one by one", script(client)},
		{"AutoPipeline, blocking", script(must(client.AutoPipeline()))},
		{"AutoPipeline, deferred", script(must(client.AsyncAutoPipeline()))},
		{"limiter, a Pipeline filled by waiting callers", limiter("ring", ring)},
		{"limiter, one script for many keys", limiter("many", client)},
	} {
		b.Run(method.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(32)
			var next atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := method.take(strconv.FormatInt(next.Add(1)%10_000, 10)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
