package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// redisHead begins the part of the report that is about Redis. It is the last one.
const redisHead = "\n## Redis\n"

// redisPart returns what a report has on Redis, or nothing.
func redisPart(file string) string {
	text, err := os.ReadFile(file)
	if _, after, ok := strings.Cut(string(text), redisHead); ok && err == nil {
		return redisHead + after
	}
	return ""
}

// compared returns what a table is of.
func compared(g benchmarks.Group) (cases []benchmarks.Case, libraries []benchmarks.Library) {
	if g != benchmarks.OnRedis && g != benchmarks.OnCluster {
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
// redis-server it says so, and leaves the file as it is.
func (r *results) runRedis(rounds int, benchtime, out, charts string, log func(string, ...any)) error {
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
		}, "-run", "^$", "-timeout", "0", "-bench", "^BenchmarkRedis$", "-benchtime", benchtime)
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
Decisions on a redis-server of the same machine and a cluster of three, over loopback, with the numbers of several runs as above. Callers ask
for their next decision as soon as they have the last; they, the clients and the server share the cores, which is in
favour of what leaves most to the network. The line for one caller is timed in turn with an EVALSHA of INCR, 25 ms each, and
the ratio to that is the median of such pairs. Commands are those of INFO commandstats. Everybody has %d connections at
most, or a client's own choice. Floors count up a number and do not look at it. This library is a fixed window / a token bucket /
a fixed window with a lease of 250 ms. With a lease hardly anybody waits for Redis: the p99 of 1,000 callers on one key is then what it
takes until a goroutine that never waits has its next turn on a core, of which Go's scheduler gives out 10 ms at a time.

- Machine: %s; %s
- Server: %s
- Command, in the folder benchmarks: %s

![On Redis](docs/bench-redis.svg)

`, benchmarks.RedisConnections, r.cpu, r.machine, redisVersion(string(server)), "`"+r.command+"`")
	for _, group := range []benchmarks.Group{benchmarks.OnRedis, benchmarks.OnCluster} {
		title, _ := strings.CutPrefix(string(group), "Redis, ")
		fmt.Fprintf(&b, "### On %s\n\n| case | this library | best rival | ratio | goal | | other rivals | floors |\n"+
			"|---|---|---|---|---|---|---|---|\n", title)
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
	b.WriteString("\nBefore it was timed, each was asked for 2,560 units of a limit of 1,000, by one goroutine and by 64, on the server\n" +
		"and on the cluster. ")
	if len(r.inexact) == 0 {
		b.WriteString("All admitted exactly 1,000.\n")
	} else {
		fmt.Fprintf(&b, "All admitted exactly 1,000, but:\n\n- %s\n", strings.Join(r.inexact, "\n- "))
	}
	return b.String()
}

const redisHotReason = "callers of one key share a command, so that what is left is to wake them up: the floor that does " +
	"nothing else is what the goal asks for, and more, but it has both cores to itself."

// redisReasons tell why the goals of a case on Redis are missed where they are, by its name.
var redisReasons = map[string]string{
	"redis-serial": "the script takes some 3 µs on the server, a token bucket's 4, and one of INCR 1.5; over loopback that is most of the difference.",
	"redis-denied": "a denial is a round trip: what Redis has denied is asked there again.",
	"redis-spread": "client and server share two cores, and both are busy all the time. The script reads a counter, its time to live and the " +
		"clock, and writes; the rivals that come close have two calls for these four, and no header fields to know the end of a window for.",
	"redis-spread-1000": "more is allocated than the goal allows.",
	"redis-hot":         redisHotReason,
	"redis-hot-1000":    "more is allocated than the goal allows.",
	"cluster-spread": "a command has the keys of one slot, so that each key takes one, and a script costs a server as much as what it does: three " +
		"servers and their clients share two cores.",
	"cluster-hot": redisHotReason,
}

// redisVersion is what redis-server --version tells of the version, without its build.
func redisVersion(text string) string {
	for _, field := range strings.Fields(text) {
		if v, ok := strings.CutPrefix(field, "v="); ok {
			return "Redis " + v
		}
	}
	return "Redis"
}
