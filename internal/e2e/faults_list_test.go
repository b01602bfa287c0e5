package e2e_test

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// faults are the rows of docs/faults.md, in the same order.
var faults = []*fault{
	{name: "connection refused at start", lasts: 300 * time.Millisecond, setup: refusedAtStart, loss: lossNone},
	{name: "killed, and started again empty", lasts: 2 * time.Second, slow: true, setup: killed, loss: lossAll},
	{name: "killed, and started again empty", lasts: 2 * time.Second, slow: true, setup: killed, loss: lossAll, on: FailOpen},
	{name: "killed, and started again empty", lasts: 2 * time.Second, slow: true, setup: killed, loss: lossAll, on: FailClosed},
	{name: "hung", lasts: 5 * time.Second, slow: true, setup: hung, loss: lossNone},
	{name: "hung", lasts: time.Second, slow: true, setup: hung, loss: lossNone, on: FailClosed},
	{name: "1 s added to each round trip", lasts: 2 * time.Second, slow: true, setup: proxied(latency), loss: lossNone},
	{name: "10 % of connections reset", lasts: 500 * time.Millisecond, setup: proxied(resets), loss: lossNone},
	{name: "connections that swallow everything", lasts: 2 * time.Second, slow: true, setup: proxied(blackhole), loss: lossNone},
	{name: "connections that swallow everything", lasts: time.Second, slow: true, setup: proxied(blackhole), loss: lossNone, on: FailOpen},
	{name: "replies lost", lasts: time.Second, slow: true, setup: proxied(lostReplies), loss: lossNone},
	{name: "CLIENT PAUSE", lasts: 400 * time.Millisecond, setup: paused, loss: lossNone},
	{name: "SCRIPT FLUSH, again and again", lasts: 300 * time.Millisecond, setup: flushed, loss: lossNone},
	{name: "maxmemory reached with noeviction", lasts: 300 * time.Millisecond, setup: outOfMemory, loss: lossNone},
	{name: "MISCONF: snapshots fail", lasts: 300 * time.Millisecond, setup: unsaved, loss: lossNone},
	{name: "BUSY: a script that does not end", lasts: 500 * time.Millisecond, setup: busy, loss: lossNone},
	{name: "hung, behind a store that wraps RedisStore", lasts: 2 * time.Second, slow: true, setup: wrappedAndHung, loss: lossNone},
	{name: "LOADING", lasts: time.Second, slow: true, setup: loading, loss: lossLatest},
	{name: "password changed", lasts: 300 * time.Millisecond, setup: passwordChanged, loss: lossNone},
	{name: "a key of the wrong type", lasts: 300 * time.Millisecond, setup: wrongType, loss: lossLatest},
	{name: "reconnecting fails for want of DNS", lasts: 300 * time.Millisecond, setup: noDNS, loss: lossNone},
	{name: "Sentinel: master partitioned, replica promoted", lasts: 0, slow: true, setup: promoted, loss: lossLatest},
	{name: "Cluster: a master killed, replica promoted", lasts: 0, slow: true, setup: masterKilled, loss: lossLatest},
	{name: "Cluster: a slot moves to another master", lasts: 100 * time.Millisecond, slow: true, setup: slotMoved, loss: lossNone},
}

func refusedAtStart(s *stage) {
	server := redistest.Start(s)
	server.Kill()
	s.down = true
	s.mend = server.Restart
	s.connect(server.Addr)
}

func killed(s *stage) {
	server := redistest.Start(s)
	s.strike, s.mend = server.Kill, server.Restart
	s.connect(server.Addr)
}

func hung(s *stage) {
	server := redistest.Start(s)
	s.strike, s.mend = server.Hang, server.Continue
	s.connect(server.Addr)
}

// proxied is the setup of a fault on the network in front of a server.
func proxied(set func(p *redistest.Proxy, on bool)) func(*stage) {
	return func(s *stage) {
		p := redistest.NewProxy(s, redistest.Start(s).Addr)
		s.strike, s.mend = func() { set(p, true) }, func() { set(p, false) }
		s.connect(p.Addr)
	}
}

func latency(p *redistest.Proxy, on bool) {
	if on {
		p.Latency(500 * time.Millisecond) // each way
	} else {
		p.Latency(0)
	}
}

func resets(p *redistest.Proxy, on bool) {
	if on {
		p.ResetRate(0.1)
	} else {
		p.ResetRate(0)
	}
}

func blackhole(p *redistest.Proxy, on bool)   { p.Blackhole(on) }
func lostReplies(p *redistest.Proxy, on bool) { p.LoseReplies(on) }

func paused(s *stage) {
	server := redistest.Start(s)
	s.strike = func() { server.Do("CLIENT", "PAUSE", 400) }
	s.mend = func() { server.Do("PING") } // waits for the end of the pause
	s.connect(server.Addr)
}

func flushed(s *stage) {
	server := redistest.Start(s)
	s.strike = func() {
		for range 20 {
			server.Do("SCRIPT", "FLUSH")
		}
	}
	s.mend = s.strike
	s.connect(server.Addr)
}

func outOfMemory(s *stage) {
	server := redistest.Start(s, "--maxmemory-policy", "noeviction")
	s.strike = func() { server.Do("CONFIG", "SET", "maxmemory", "1") }
	s.mend = func() { server.Do("CONFIG", "SET", "maxmemory", "0") }
	s.connect(server.Addr)
}

func unsaved(s *stage) {
	server := redistest.Start(s)
	s.strike, s.mend = func() { server.FailSaves(true) }, func() { server.FailSaves(false) }
	s.connect(server.Addr)
}

// busy has the server run a script forever. It answers other commands with BUSY
// after 10 ms.
func busy(s *stage) {
	server := redistest.Start(s)
	server.Do("CONFIG", "SET", "lua-time-limit", "10")
	runaway := redis.NewClient(&redis.Options{Addr: server.Addr, ReadTimeout: time.Minute, MaxRetries: -1})
	s.Cleanup(func() { runaway.Close() })
	s.strike = func() { go runaway.Eval(ctx, "while true do end", nil) }
	s.mend = func() {
		s.eventually("the script to be killed", func() bool { return server.Client().ScriptKill(ctx).Err() == nil })
	}
	s.connect(server.Addr)
}

func wrappedAndHung(s *stage) {
	hung(s)
	s.wrap = func(store Store) Store { return &wrappingStore{store} }
}

// wrappingStore is a store around another one, like a wrapper for metrics. It counts blocks
// because it implements KindStore.
type wrappingStore struct{ Store }

func (w *wrappingStore) Unwrap() Store { return w.Store }
func (w *wrappingStore) Kinds() Kinds  { return KindBlock }
func (w *wrappingStore) TakePending(ctx context.Context, key string, n int64, pending []Pending, limits []Limit, results []Result) (Instant, error) {
	return w.Store.(KindStore).TakePending(ctx, key, n, pending, limits, results)
}
func (w *wrappingStore) Block(ctx context.Context, key string, b Block, limits []Limit) error {
	return w.Store.(KindStore).Block(ctx, key, b, limits)
}

func loading(s *stage) {
	server := redistest.Start(s)
	s.strike = func() { server.RestartLoading(8 * time.Second) }
	s.mend = server.AwaitReady
	s.connect(server.Addr)
}

func passwordChanged(s *stage) {
	server := redistest.Start(s, "--requirepass", "first")
	var password atomic.Value
	password.Store("first")
	s.strike = func() {
		server.Do("CONFIG", "SET", "requirepass", "second")
		server.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	}
	s.mend = func() { password.Store("second") }
	s.connect(server.Addr, func(o *redis.Options) {
		o.CredentialsProvider = func() (string, string) { return "", password.Load().(string) }
	})
}

// wrongType replaces the hot key by a hash. The key is counted from zero afterwards.
func wrongType(s *stage) {
	server := redistest.Start(s)
	const key = "rl:hot:{hot}:fixed-1h"
	s.strike = func() { server.Do("EVAL", "redis.call('DEL', KEYS[1]) redis.call('HSET', KEYS[1], 'a', 'b')", 1, key) }
	s.mend = func() { server.Do("DEL", key) }
	s.connect(server.Addr)
}

func noDNS(s *stage) {
	server := redistest.Start(s)
	s.strike = func() {
		s.refuse.Store(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "redis.internal", IsNotFound: true}})
		server.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	}
	s.mend = func() { s.refuse.Store(nil) }
	s.connect(server.Addr)
}

func promoted(s *stage) {
	sentinel := redistest.StartSentinel(s, redistest.SentinelOptions{DownAfter: 500 * time.Millisecond})
	s.strike = sentinel.Master.Hang // like a partition: the old master still acts as a master
	s.mend = func() { sentinel.AwaitPromoted(sentinel.Replica) }
	s.after = sentinel.Master.Continue
	s.client = sentinel.Client(func(o *redis.FailoverOptions) { o.Dialer = s.dial })
}

func masterKilled(s *stage) {
	cluster := redistest.StartCluster(s, redistest.ClusterOptions{Replicas: 1})
	s.strike = func() { cluster.Owner(cluster.Slot("hot")).Kill() }
	s.mend = cluster.AwaitOK
	s.client = cluster.Client(func(o *redis.ClusterOptions) { o.Dialer = s.dial })
}

func slotMoved(s *stage) {
	cluster := redistest.StartCluster(s, redistest.ClusterOptions{})
	move := func() {
		slot := cluster.Slot("hot")
		to := cluster.Nodes[0]
		if cluster.Owner(slot) == to {
			to = cluster.Nodes[1]
		}
		cluster.Migrate(slot, to)
	}
	s.strike, s.mend = move, move
	s.client = cluster.Client(func(o *redis.ClusterOptions) { o.Dialer = s.dial })
}
