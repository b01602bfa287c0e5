package benchmarks

import (
	"net/http"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// startBoth starts a PostgreSQL server that keeps its changes, and a Redis server that keeps
// them as well as is usual.
func startBoth(t testing.TB) *servers {
	on := &servers{server: redistest.Start(t), postgres: pgtest.Start(t, "fsync=on", "autovacuum=on", "shared_buffers=256MB")}
	for _, setting := range [][2]string{{"appendonly", "yes"}, {"appendfsync", "everysec"}} {
		on.server.Do("CONFIG", "SET", setting[0], setting[1])
	}
	if err := migrate(on.postgres); err != nil {
		t.Fatal(err)
	}
	return on
}

// BenchmarkPostgres prints each row on PostgreSQL as case/library, on servers of its own.
func BenchmarkPostgres(b *testing.B) {
	on := startBoth(b)
	for _, c := range PostgresCases {
		for _, l := range PostgresLibraries {
			if c.has(l.Name) {
				b.Run(c.Name+"/"+l.Name, func(b *testing.B) {
					on.empty(b)
					c.run(b, on, l)
				})
			}
		}
	}
}

// TestPostgresExact checks that exactly the limit is admitted, as TestExact does.
func TestPostgresExact(t *testing.T) {
	on := startBoth(t)
	for j, l := range PostgresLibraries {
		if l.Kind == Floor { // floors do not look at the number
			continue
		}
		var wrong []string
		for i, goroutines := range []int{1, 64} {
			for k, two := range []bool{false, true} {
				s := l.open(on.of(l), quota{units: exactLimit, window: time.Hour, refill: time.Hour, two: two})
				how := map[bool]string{false: "one limit", true: "two limits"}[two]
				wrong = append(wrong, inexact(goroutines, how, func(*writer, *http.Request) (bool, error) { return s.take(key(4*j + 2*i + k)) })...)
				s.end()
			}
		}
		logExact(t, l.Library, wrong)
	}
}
