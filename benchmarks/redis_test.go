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
			if c.has(l.Name) {
				b.Run(c.Name+"/"+l.Name, func(b *testing.B) {
					on.empty(b)
					c.run(b, on, l)
				})
			}
		}
	}
}

// TestRedisExact checks that exactly the limit is admitted, as TestExact does.
func TestRedisExact(t *testing.T) {
	servers := map[string]target{
		"server":  onServer(redistest.Start(t)),
		"cluster": onCluster(redistest.StartCluster(t, redistest.ClusterOptions{})),
	}
	for j, l := range RedisLibraries {
		if l.Kind == Floor { // floors do not look at the number
			continue
		}
		var wrong []string
		for name, where := range servers {
			for i, goroutines := range []int{1, 64} {
				s := l.open(where, quota{units: exactLimit, window: time.Hour, refill: time.Hour})
				wrong = append(wrong, inexact(goroutines, name, func(*writer, *http.Request) (bool, error) { return s.take(key(2*j + i)) })...)
				s.end()
			}
		}
		logExact(t, l.Library, wrong)
	}
}

// TestRedisCommands checks the number of commands in the report.
func TestRedisCommands(t *testing.T) {
	server := redistest.Start(t)
	for _, l := range RedisLibraries {
		least, most := 1.0, 1.0
		switch l.Name {
		case across, windowPipelined: // they are for Clusters
			continue
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
		e := &entrant{subject: l.open(onServer(server), plenty), ServerLibrary: l, on: &servers{server: server}, quota: plenty, keys: keys(1)}
		e.ask(e.keys[0]) // loads the script and creates the key
		if got := e.commands(1, true); got < least || got > most {
			t.Errorf("%s: %v commands per decision, want %v to %v", l.Name, got, least, most)
		}
		if err := e.check(); err != nil {
			t.Errorf("%s: %v", l.Name, err)
		}
		e.end()
	}
}
