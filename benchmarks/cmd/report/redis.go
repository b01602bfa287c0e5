package main

import (
	"fmt"
	"strings"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// redisPart is the part of the report about Redis.
var redisPart = &part{
	flag: "redis", name: "Redis", needs: []string{"redis-server"},
	test: "TestRedisExact", bench: "BenchmarkRedis", head: "\n## Redis\n", chart: "bench-redis.svg",
	groups: []benchmarks.Group{benchmarks.OnRedis, benchmarks.RedisBlocks, benchmarks.RedisRolling, benchmarks.RedisCalendars, benchmarks.RedisHolds, benchmarks.OnCluster},
	cases:  benchmarks.RedisCases, libraries: benchmarks.RedisLibraries, reasons: redisReasons,
	intro: redisIntro, exact: ", on the\nserver and on the cluster",
}

func redisIntro(r *results) string {
	return fmt.Sprintf(`
Decisions on a redis-server of the same machine and on a cluster of three, over loopback. The numbers are from several
runs, as above.

- A caller asks for its next decision as soon as it has the last one. Callers, clients and servers share the cores, which
  favors libraries that leave most of the work to the network.
- The row for one caller is timed in turn with an EVALSHA of INCR, 25 ms each. The ratio to that is the median of these
  pairs.
- Commands are counted with INFO commandstats.
- Each client has %d connections at most, or its own default.
- Floors increment a number and do not look at it.
- The three values of this library are for a fixed window / a token bucket / a fixed window with a lease of 250 ms.
- With a lease, callers rarely wait for Redis. The p99 of 1,000 callers on one key is then the time until a goroutine that
  never waits gets its next turn on a core. Go's scheduler gives out turns of 10 ms.

- Machine: %s; %s
- Server: %s
`, benchmarks.RedisConnections, r.cpu, r.machine, redisVersion(version("", "redis-server", "--version")))
}

const redisHotReason = "callers of one key share a command, so most of the time is spent waking them up. A floor that only " +
	"does that reaches the goal and more, but it has both cores to itself."

// redisReasons are why the goals of a case on Redis are missed, if they are.
var redisReasons = map[string]string{
	"redis-serial": "the script takes about 3 µs on the server, the script of a token bucket 4, and a script of INCR 1.5. Over loopback that is most of the difference.",
	"redis-denied": "a denial costs a round trip, because a denied key is asked for at Redis again.",
	"redis-spread": "client and server share two cores, and both are busy all the time. The script reads a counter, its time to live and the " +
		"clock, and writes. The closest rivals make two calls instead of these four. They have no header fields that need the end of a window.",
	"redis-spread-1000": "more is allocated than the goal allows.",
	"redis-hot":         redisHotReason,
	"redis-hot-1000":    "more is allocated than the goal allows.",
	"cluster-spread": "a command has keys of one slot only, so each key takes its own command. Running a script costs a server as much as the " +
		"script's work, and three servers and their clients share two cores.",
	"cluster-hot": redisHotReason,
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
