package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// redisHead begins the part of the report that is about Redis. It is the last one.
const redisHead = "\n## Redis\n"

// redisPart returns the part of a report that is about Redis, or an empty string.
func redisPart(file string) string {
	text, err := os.ReadFile(file)
	if _, after, ok := strings.Cut(string(text), redisHead); ok && err == nil {
		return redisHead + after
	}
	return ""
}

// redisGroups are the tables of that part, in order.
var redisGroups = []benchmarks.Group{benchmarks.OnRedis, benchmarks.RedisBlocks, benchmarks.RedisRolling, benchmarks.RedisCalendars, benchmarks.RedisHolds, benchmarks.OnCluster}

// compared returns the cases and libraries of a table.
func compared(g benchmarks.Group) (cases []benchmarks.Case, libraries []benchmarks.Library) {
	if !slices.Contains(redisGroups, g) {
		return benchmarks.Cases, benchmarks.Libraries
	}
	for _, c := range benchmarks.RedisCases {
		cases = append(cases, c.Case)
	}
	for _, l := range benchmarks.RedisLibraries {
		libraries = append(libraries, l.Library)
	}
	return cases, libraries
}

// runRedis runs the cases on Redis and writes their part of the report. Without a
// redis-server it logs that, and does not change the file.
func (r *results) runRedis(rounds int, benchtime, bench, out, charts string, log func(string, ...any)) error {
	if _, err := exec.LookPath("redis-server"); err != nil {
		log("redis-server is not installed, so what was measured on Redis is left as it is: apt-get install redis-server")
		return nil
	}
	r.command = fmt.Sprintf("go run ./cmd/report -only redis -rounds %d -benchtime %s", rounds, benchtime)
	start := time.Now()
	log("checking each library on Redis for exactness")
	if err := goTest(r.read, "-v", "-count=1", "-run", "^TestRedisExact$"); err != nil {
		return err
	}
	for round := range rounds {
		rows := 0
		err := goTest(func(line string) {
			if r.read(line); strings.HasPrefix(line, "Benchmark") {
				rows++
				log("Redis, round %d of %d, row %3d, %s: %s", round+1, rounds, rows, time.Since(start).Round(time.Second), line)
			}
		}, "-run", "^$", "-timeout", "0", "-bench", "^BenchmarkRedis$/"+bench, "-benchtime", benchtime)
		if err != nil {
			return err
		}
	}
	text, err := os.ReadFile(out)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	before, _, _ := strings.Cut(string(text), redisHead)
	for path, text := range map[string]string{
		out:                                      before + r.redisMarkdown(),
		filepath.Join(charts, "bench-redis.svg"): r.chart("On Redis", benchmarks.OnRedis, benchmarks.OnCluster),
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
		log("wrote %s", path)
	}
	return nil
}

// redisMarkdown is the part of the report that is about Redis.
func (r *results) redisMarkdown() string {
	var b strings.Builder
	server, _ := exec.Command("redis-server", "--version").Output()
	fmt.Fprintf(&b, redisHead+`
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
- Command, in the folder benchmarks: %s

![On Redis](docs/bench-redis.svg)

`, benchmarks.RedisConnections, r.cpu, r.machine, redisVersion(string(server)), "`"+r.command+"`")
	for _, group := range redisGroups {
		title, _ := strings.CutPrefix(string(group), "Redis, ")
		fmt.Fprintf(&b, "### On %s\n\n%s| case | this library | best rival | ratio | goal | | other rivals | floors |\n"+
			"|---|---|---|---|---|---|---|---|\n", title, notes[group])
		for _, w := range r.rows(group) {
			b.WriteString(r.line(w))
		}
		b.WriteString("\n")
	}
	cases, _ := compared(benchmarks.OnRedis)
	b.WriteString(r.missedOf("### Missed goals on Redis", cases, redisReasons))
	b.WriteString("### What was compared on Redis\n\n| name | module | configuration |\n|---|---|---|\n")
	for _, l := range benchmarks.RedisLibraries {
		module := cmp.Or(strings.TrimSpace(l.Module+" "+r.versions[l.Module]), "in this repository")
		fmt.Fprintf(&b, "| %s | %s | %s |\n", l.Name, module, l.Setup)
	}
	b.WriteString("\nBefore it was timed, each library was asked for 2,560 units of a limit of 1,000, by one goroutine and by 64, on the\n" +
		"server and on the cluster. ")
	if len(r.inexact) == 0 {
		b.WriteString("All admitted exactly 1,000.\n")
	} else {
		fmt.Fprintf(&b, "All admitted exactly 1,000, but:\n\n- %s\n", strings.Join(r.inexact, "\n- "))
	}
	return b.String()
}

const redisHotReason = "callers of one key share a command, so most of the time is spent waking them up. A floor that only " +
	"does that reaches the goal and more, but it has both cores to itself."

// redisReasons are the same for the cases on Redis.
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
