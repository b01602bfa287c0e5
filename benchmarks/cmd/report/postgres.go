package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// postgresServers is where Debian's packages put the server.
const postgresServers = "/usr/lib/postgresql/*/bin/postgres"

// postgresPart is the part of the report about PostgreSQL.
var postgresPart = &part{
	flag: "postgres", name: "PostgreSQL", needs: []string{postgresServers, "redis-server"},
	test: "TestPostgresExact", bench: "BenchmarkPostgres", head: "\n## PostgreSQL\n", chart: "bench-postgres.svg",
	groups: []benchmarks.Group{benchmarks.OnPostgres},
	cases:  benchmarks.PostgresCases, libraries: benchmarks.PostgresLibraries, reasons: postgresReasons,
	intro: postgresIntro,
}

func postgresIntro(r *results) string {
	server := ""
	if found, _ := filepath.Glob(postgresServers); len(found) > 0 {
		server = version("", found[len(found)-1], "--version")
	}
	return fmt.Sprintf(`
Decisions on a PostgreSQL server of the same machine, over loopback. The server keeps its changes (fsync = on). The numbers
are from several runs, as above.

- The three values of this library are for a fixed window / a token bucket / a fixed window on Redis, in the same run. Redis
  keeps its changes, too (appendonly, everysec).
- If each call waits for the disk, the only value is for a fixed window with `+"`postgres.Durable`"+`. In the other rows, nobody
  waits for the disk, on either side.
- A caller asks for its next decision as soon as it has the last one. Callers, clients and servers share the cores.
- The row for one caller is timed in turn with an UPSERT, 25 ms each. The ratio to that is the median of these pairs.
- Each pool has %d connections at most. This library uses two to four of them.
- The rivals are statements, because there is no library for Go to compare with. The UPSERT counts denied calls, too. For two limits, rivals send
  a statement for each.
- All rows exist before a case is timed.
- Floors have no limit.

- Machine: %s; %s
- Servers: %s, %s
`, benchmarks.PostgresConnections, r.cpu, r.machine, postgresVersion(server), redisVersion(version("", "redis-server", "--version")))
}

// postgresReasons are why the goals of a case on PostgreSQL are missed, if they are.
var postgresReasons = map[string]string{
	"postgres-serial": "a statement for a batch has arrays and a larger plan. It takes some 115 µs on the server, where an UPSERT of one row takes 43 (pgbench, one " +
		"connection). The rest is the way to the goroutine of the batch and back, and the arrays. With scalars in place of arrays the statement takes 75 µs. That " +
		"would not reach the goal, and is not worth 34 functions more.",
	"postgres-spread":         postgresReason,
	"postgres-spread-two":     postgresReason,
	"postgres-spread-256":     postgresReason,
	"postgres-hot":            postgresReason,
	"postgres-spread-durable": "callers wait for the disk in turn, and the disk of this machine is fast: a rival's waits cost it little.",
}

const postgresReason = "client and server share two cores, and both are busy all the time. The server looks at each key, counts and answers; the floor " +
	"that only adds, for callers that wait for nothing, gets several times as many."

// postgresVersion returns the version in the output of postgres --version, without the
// distribution.
func postgresVersion(text string) string {
	fields := strings.Fields(text)
	if i := slices.Index(fields, "(PostgreSQL)"); i >= 0 && i+1 < len(fields) {
		return "PostgreSQL " + fields[i+1]
	}
	return "PostgreSQL"
}
