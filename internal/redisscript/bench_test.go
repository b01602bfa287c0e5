package redisscript_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// mainThread returns the processor time that the server's main thread has used, in
// microseconds.
func mainThread(b *testing.B, c *redis.Client) (micros float64) {
	for line := range strings.Lines(c.Info(ctx, "cpu").Val()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_user_main_thread" || name == "used_cpu_sys_main_thread" {
			seconds, err := strconv.ParseFloat(value, 64)
			if err != nil {
				b.Fatal(err)
			}
			micros += seconds * 1e6
		}
	}
	if micros == 0 {
		b.Skip("this server does not report the time of its main thread: that needs Redis 7 or later")
	}
	return micros
}

// BenchmarkServer reports the processor time of the server for a take, in commands of some
// keys each, out of 10,000. The commands are pipelined, so the client does not matter.
func BenchmarkServer(b *testing.B) {
	const all, pipelined = 10_000, 16
	for _, n := range []int64{1e9, 1} { // with 1 unit, all takes but the first one of a key are denied
		for _, l := range []rule.Limit{
			{Kind: rule.Fixed, N: n, Window: hourly}, {Kind: rule.Sliding, N: n, Window: hourly}, {Kind: rule.Bucket, N: n, Window: hourly, Burst: n},
		} {
			for _, keys := range []int{1, 20, 64} {
				b.Run(fmt.Sprintf("%v/units=%d/keys=%d", l.Kind, n, keys), func(b *testing.B) {
					c, script, next := server(b), redisscript.Take, 0
					run := func(takes int) (done int) {
						pipe := c.Pipeline()
						for done < takes {
							args := []any{"evalsha", script.Hash, keys}
							for range keys {
								args = append(args, fmt.Sprintf("rl:api:{203.0.%d.%d}:%s", next/250, next%250, shapeOf(l)))
								next = (next + 1) % all
							}
							pipe.Do(ctx, append(args, redisscript.Args(l, redisscript.Periods{}, nil)...)...)
							if done += keys; pipe.Len() == pipelined || done >= takes {
								if _, err := pipe.Exec(ctx); err != nil {
									b.Fatal(err)
								}
							}
						}
						return done
					}
					if err := c.ScriptLoad(ctx, script.Text.(string)).Err(); err != nil {
						b.Fatal(err)
					}
					run(all) // so that all keys exist
					before := mainThread(b, c)
					b.ResetTimer()
					done := run(b.N)
					b.ReportMetric((mainThread(b, c)-before)/float64(done), "server-us/take")
					b.ReportMetric(0, "ns/op")
				})
			}
		}
	}
}
