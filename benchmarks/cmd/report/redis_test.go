package main

import (
	"testing"
)

func TestRedisReport(t *testing.T) {
	r := &results{machine: "8 cores", versions: map[string]string{"github.com/go-redis/redis_rate/v10": "v10.9.8"}}
	got := reportOf(r, redisPart, `
    redis_test.go:45: exact: fixed
    redis_test.go:45: exact: ulule
    redis_test.go:45: not exact: throttled admitted 1003 of 1000 (server, goroutines: 64)
BenchmarkRedis/redis-serial/fixed-8    	 2	 6.000 allocs/op	 1.000 cmd/op	 84.0 us/op	 1.04 x/evalsha
BenchmarkRedis/redis-serial/ulule-8    	 2	16.000 allocs/op	 1.000 cmd/op	 90.0 us/op	 1.12 x/evalsha
BenchmarkRedis/redis-serial/evalsha-8  	 2	 8.000 allocs/op	 1.000 cmd/op	 80.0 us/op	 1.00 x/evalsha
BenchmarkRedis/redis-hot/fixed-8       	 2	 3.000 allocs/op	 900000 op/s
BenchmarkRedis/redis-hot/ulule-8       	 2	16.000 allocs/op	 100000 op/s
BenchmarkRedis/cluster-spread/fixed-8     	 2	 3.000 allocs/op	 70000 op/s
BenchmarkRedis/cluster-spread/ulule-8     	 2	16.000 allocs/op	 100000 op/s
`)
	wantAll(t, got,
		"| one caller, µs | 84 (6) | ulule 90 (16) | 0.93 | ≤ 8 allocations | met | — | evalsha 80 (8) |\n",
		"| — by an EVALSHA of INCR, in turn with it | 1.04 | ulule 1.12 | 0.93 | ≤ 1.3 | met | — | evalsha 1.00 |\n",
		"| 64 callers, one key, decisions/s | 900000 (3) | ulule 100000 (16) | 9.00 | ≥ 3 × (fixed), ≥ 3 × (bucket), ≥ 30 × (leased), ≤ 8 allocations | met | — | — |\n",
		"### On a cluster\n\n| case",
		"| 64 callers, 10,000 keys, decisions/s | 70000 (3) | ulule 100000 (16) | 0.70 | ≥ 1 × (fixed), ≥ 1 × (bucket), ≥ 1.6 × (across), ≤ 8 allocations | **missed** | — | — |\n",
		"| — processor time of the servers, µs | not known | — | — | — |  | — | — |\n", // this server is old
		"- a cluster: *64 callers, 10,000 keys, decisions/s*: ",
		"| redis_rate | github.com/go-redis/redis_rate/v10 v10.9.8 |",
		"except:\n\n- throttled admitted 1003 of 1000 (server, goroutines: 64)\n",
	)
}

func TestRedisVersion(t *testing.T) {
	if got := redisVersion("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1"); got != "Redis 7.0.15" {
		t.Error(got)
	}
}
