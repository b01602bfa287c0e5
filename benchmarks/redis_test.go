package benchmarks

import (
	"net/http"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// BenchmarkRedis prints each row on Redis as case/library, on servers of its own.
func BenchmarkRedis(b *testing.B) {
	on := &servers{server: redistest.Start(b), cluster: redistest.StartCluster(b, redistest.ClusterOptions{})}
	for _, c := range RedisCases {
		for _, l := range RedisLibraries {
			if c.Has(l) {
				b.Run(c.Name+"/"+l.Name, func(b *testing.B) {
					on.server.Do("FLUSHALL")
					c.run(b, on, l)
				})
			}
		}
	}
}

// TestRedisExact checks that exactly the limit is admitted, as TestExact does.
func TestRedisExact(t *testing.T) {
	const limit, asked = 1000, 2560
	servers := map[string]target{
		"server":  onServer(redistest.Start(t)),
		"cluster": onCluster(redistest.StartCluster(t, redistest.ClusterOptions{})),
	}
	for j, l := range RedisLibraries {
		if l.Kind == Floor { // floors do not look at the number
			continue
		}
		for name, where := range servers {
			for i, goroutines := range []int{1, 64} {
				s := l.open(where, quota{units: limit, window: time.Hour, refill: time.Hour})
				admitted := count(goroutines, asked/goroutines, func(*writer, *http.Request) bool { return s.take(key(2*j + i)) })
				s.end()
				switch {
				case admitted == limit:
				case l.Kind == Rival:
					t.Logf("not exact: %s admitted %d of %d (%s, goroutines: %d)", l.Name, admitted, limit, name, goroutines)
				default:
					t.Errorf("%s admitted %d of %d (%s, goroutines: %d)", l.Name, admitted, limit, name, goroutines)
				}
			}
		}
	}
}

// TestRedisCommands checks the number of commands in the report.
func TestRedisCommands(t *testing.T) {
	server := redistest.Start(t)
	for _, l := range RedisLibraries {
		least, most := 1.0, 1.0
		switch l.Name {
		case "throttled":
			least, most = 3, 3.1
		case "leased":
			least = 0
		case "ulule-auto":
			least = 0.9
		case wake:
			least = 0
		case "incr-pipelined": // commands that are still in the pipeline are not sent
			least, most = 0, 1.01
		}
		s := l.open(onServer(server), plenty)
		s.take(key(0)) // loads the script and creates the key
		if got := commands(server, l, s, 1, keys(1), true); got < least || got > most {
			t.Errorf("%s: %v commands per decision, want %v to %v", l.Name, got, least, most)
		}
		s.end()
	}
}
