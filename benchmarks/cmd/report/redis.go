package main

import (
	"fmt"
	"strings"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// redisPart is the part of the report about Redis.
var redisPart = newRedisPart()

func newRedisPart() *part {
	cases, libraries := onServers(benchmarks.RedisCases, benchmarks.RedisLibraries)
	return &part{
		flag: "redis", name: "Redis", needs: []string{"redis-server"},
		test: "TestRedisExact", bench: "BenchmarkRedis", head: "\n## Redis\n", level: "###", on: " on Redis",
		charts: []picture{{"bench-redis.svg", "On Redis", []benchmarks.Group{benchmarks.OnRedis, benchmarks.OnCluster}}},
		groups: []benchmarks.Group{benchmarks.OnRedis, benchmarks.RedisBlocks, benchmarks.RedisRolling, benchmarks.RedisCalendars,
			benchmarks.RedisHolds, benchmarks.OnCluster},
		cases: cases, libraries: libraries,
		intro: redisIntro,
		exact: "Before it was timed, each library was asked for 2,560 units of a limit of 1,000, by one goroutine and by 64, on the\n" +
			"server and on the cluster.",
	}
}

func redisIntro(r *results) string {
	return fmt.Sprintf(`
Decisions on a redis-server of the same machine and on a cluster of three, over loopback.

- A caller asks for its next decision as soon as it has the last one. Callers, clients and servers share the cores, which
  favors libraries that leave most of the work to the network.
- The row for one caller is timed in turn with an EVALSHA of INCR, 25 ms each. The ratio to that is the median of these
  pairs.
- Commands are counted with INFO commandstats.
- The processor time of the servers is the time of their main threads, from INFO cpu: of all commands, and of reading and
  writing. On the cluster it is the sum over the masters. The processor time of the client is the time of the benchmark's
  process. Servers are processes of their own.
- Each client has %d connections at most, or its own default.
- Floors increment a number and do not look at it. Those that begin with *window* do so with the commands that a fixed
  window needs, sent as this library sends them. So they are what it could reach at most without other commands.
- The three values of this library are for a fixed window / a token bucket / a fixed window with a lease of 250 ms.
- With a lease, callers rarely wait for Redis. The p99 of 1,000 callers on one key is then the time until a goroutine that
  never waits gets its next turn on a core. Go's scheduler gives out turns of 10 ms.

- Machine: %s; %s
- Server: %s
`, benchmarks.RedisConnections, r.cpu, r.machine, redisVersion(version("", "redis-server", "--version")))
}

// redisVersion returns the version in the output of redis-server --version, without the build.
func redisVersion(text string) string {
	for _, field := range strings.Fields(text) {
		if v, ok := strings.CutPrefix(field, "v="); ok {
			return "Redis " + v
		}
	}
	return "Redis"
}
