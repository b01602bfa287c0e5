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
var postgresPart = newPostgresPart()

func newPostgresPart() *part {
	cases, libraries := onServers(benchmarks.PostgresCases, benchmarks.PostgresLibraries)
	return &part{
		flag: "postgres", name: "PostgreSQL", needs: []string{postgresServers, "redis-server"},
		test: "TestPostgresExact", bench: "BenchmarkPostgres", head: "\n## PostgreSQL\n", level: "###", on: " on PostgreSQL",
		charts: []picture{{"bench-postgres.svg", "On PostgreSQL", []benchmarks.Group{benchmarks.OnPostgres}}},
		groups: []benchmarks.Group{benchmarks.OnPostgres},
		cases:  cases, libraries: libraries,
		intro: postgresIntro,
		exact: "Before it was timed, each library was asked for 2,560 units of a limit of 1,000, and of two limits, by one goroutine and by 64.",
	}
}

func postgresIntro(r *results) string {
	server := ""
	if found, _ := filepath.Glob(postgresServers); len(found) > 0 {
		server = version("", found[len(found)-1], "--version")
	}
	return fmt.Sprintf(`
Decisions on a PostgreSQL server of the same machine, over loopback. The server keeps its changes (fsync = on).

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

// postgresVersion returns the version in the output of postgres --version, without the
// distribution.
func postgresVersion(text string) string {
	fields := strings.Fields(text)
	if i := slices.Index(fields, "(PostgreSQL)"); i >= 0 && i+1 < len(fields) {
		return "PostgreSQL " + fields[i+1]
	}
	return "PostgreSQL"
}
