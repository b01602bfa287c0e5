package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// Limits of histories: their windows do not end during a test.
var (
	oneLimit  = []Limit{FixedWindow(20, time.Hour)}
	twoLimits = []Limit{FixedWindow(20, time.Hour), FixedWindow(23, 2*time.Hour)}
	bigLimit  = []Limit{FixedWindow(96, time.Hour)} // of which a part can be leased or lost
	withBlock = []Limit{FixedWindow(5, blockSpans[notBlocked]).Block(blockSpans[firstBlock], blockSpans[secondBlock])}
)

// callsForMuch are the calls after which much of bigLimit is used, so that a fault
// that loses more than what was in flight shows.
const callsForMuch = 300

// scenarios are the faults of which histories are recorded.
var scenarios = []scenario{
	{name: "no fault", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onServer(func(r *run, _ *redistest.Server) {})},
	{name: "SCRIPT FLUSH", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onServer(flushScripts)},
	{name: "SCRIPT FLUSH, leases", limits: bigLimit, lease: 50 * time.Millisecond, onFailure: FailClosed, refunds: true, setup: onServer(flushScripts)},
	{name: "connections killed", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onServer(func(r *run, s *redistest.Server) {
		for range 5 {
			s.Do("CLIENT", "KILL", "TYPE", "normal")
			r.awaitCalls(20)
		}
	})},
	// The exact excess is everything: Redis has no counters when it is back.
	{name: "restarted without persistence", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onServer(func(r *run, s *redistest.Server) {
		r.lose(r.keys, -1, s.Restart)
	})},
	{name: "replies lost", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onProxy(loseReplies)},
	{name: "replies lost, two limits", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onProxy(loseReplies)},
	{name: "connections reset", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onProxy(resetConnections(0.1))},
	// The exact excess is the whole limit for each process.
	{name: "unreachable, FallbackLocal", slow: true, limits: oneLimit, onFailure: FallbackLocal, setup: onProxy(refuseConnections)},

	// The window and the blocks are longer than a history. A reset lifts a block.
	{name: "blocks, no fault", limits: withBlock, blocks: true, onFailure: FailClosed, refunds: true, setup: onServer(func(r *run, _ *redistest.Server) {})},
	{name: "blocks, SCRIPT FLUSH", limits: withBlock, blocks: true, onFailure: FailClosed, refunds: true, setup: onServer(flushScripts)},
	{name: "blocks, restarted without persistence", limits: withBlock, blocks: true, onFailure: FailClosed, refunds: true, setup: onServer(func(r *run, s *redistest.Server) {
		r.lose(r.keys, -1, s.Restart)
	})},
	{name: "blocks, replies lost", limits: withBlock, blocks: true, onFailure: FailClosed, refunds: true, setup: onProxy(loseReplies)},
	// With more resets the checker takes too long.
	{name: "blocks, connections reset", limits: withBlock, blocks: true, onFailure: FailClosed, refunds: true, setup: onProxy(resetConnections(0.03))},
	{name: "blocks, Cluster, a slot moves there and back", limits: withBlock, blocks: true, onFailure: FailClosed, refunds: true, setup: onCluster(0, moveSlot)},

	{name: "Cluster, a slot moves there and back", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onCluster(0, moveSlot)},
	{name: "Cluster, a slot moves there and back, two limits", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onCluster(0, moveSlot)},
	{name: "Cluster, CLUSTER FAILOVER", slow: true, limits: twoLimits, onFailure: FailClosed, refunds: true, setup: once(onCluster(1, failOver))},
	// Nobody is admitted above the limit. The units that the killed process held are
	// counted, but not admitted.
	{name: "process with a lease killed", limits: bigLimit, lease: time.Second, onFailure: FailClosed, setup: func(t *testing.T) site {
		s := onServer(func(r *run, s *redistest.Server) { killProcess(r, redisAddrEnv+"="+s.Addr) })(t)
		s.extra = bigLimit[0].N() / 16
		return s
	}},

	// The excess is what the replica has not received yet. The model assumes that these are
	// the calls in flight. Redis promises no such bound, but it holds on a machine that is
	// not overloaded.
	{name: "Cluster, master killed", slow: true, lags: true, limits: bigLimit, onFailure: FailClosed, refunds: true, setup: onCluster(1, killMaster)},
	{name: "Sentinel, master killed", slow: true, lags: true, limits: bigLimit, onFailure: FailClosed, refunds: true, setup: once(onSentinel)},
}

// onServer returns the setup of a fault of a single server.
func onServer(strike func(*run, *redistest.Server)) func(t *testing.T) site {
	return func(t *testing.T) site {
		server := redistest.Start(t)
		client := func() redis.UniversalClient { return server.Client() }
		return redisSite(client, server.Client(), func(r *run) { strike(r, server) })
	}
}

// onProxy returns the setup of a fault of the network in front of a single server.
func onProxy(strike func(*run, *redistest.Proxy)) func(t *testing.T) site {
	return func(t *testing.T) site {
		server := redistest.Start(t)
		proxy := redistest.NewProxy(t, server.Addr)
		client := func() redis.UniversalClient { return redistest.Client(t, proxy.Addr) }
		return redisSite(client, server.Client(), func(r *run) { strike(r, proxy) })
	}
}

// flushScripts has Redis forget the scripts, again and again.
func flushScripts(r *run, s *redistest.Server) {
	for range 10 {
		s.Do("SCRIPT", "FLUSH")
		r.awaitCalls(10)
	}
}

// loseReplies loses replies for a while, three times.
func loseReplies(r *run, p *redistest.Proxy) {
	for range 3 {
		p.LoseReplies(true)
		time.Sleep(20 * time.Millisecond)
		p.LoseReplies(false)
		r.awaitCalls(20)
	}
}

// refuseConnections makes the server unreachable for a while. That begins between two calls:
// while connections are lost one after the other, units that are owed because of the first
// one may be sent on the next one, and would not be sent again.
func refuseConnections(r *run, p *redistest.Proxy) {
	r.calls.Lock()
	p.Refuse(true)
	r.calls.Unlock()
	r.awaitCalls(callsAfter)
	p.Refuse(false)
}

// resetConnections returns a fault that resets connections for a while.
// The more calls are not answered, the longer the checker takes: exponentially.
func resetConnections(rate float64) func(*run, *redistest.Proxy) {
	return func(r *run, p *redistest.Proxy) {
		p.ResetRate(rate)
		r.awaitCalls(callsAfter)
		p.ResetRate(0)
	}
}

// onCluster returns the setup of a fault of a Redis Cluster.
func onCluster(replicas int, strike func(*run, *redistest.Cluster)) func(t *testing.T) site {
	return func(t *testing.T) site {
		cluster := redistest.StartCluster(t, redistest.ClusterOptions{Replicas: replicas})
		client := func() redis.UniversalClient { return cluster.Client() }
		return redisSite(client, cluster.Client(), func(r *run) { strike(r, cluster) })
	}
}

// once returns a setup for which only one history is recorded. Otherwise the next failover
// would have to wait until the old master is a replica again.
func once(setup func(t *testing.T) site) func(t *testing.T) site {
	return func(t *testing.T) site {
		s := setup(t)
		s.once = true
		return s
	}
}

// owner returns the slot of one of a run's keys, and the master that has it.
func (r *run) owner(c *redistest.Cluster, key string) (slot int, master *redistest.Server) {
	slot = c.Slot("rl:" + r.name + ":{" + key + "}:any")
	return slot, c.Owner(slot)
}

// moveSlot moves the slot of the first key to another master and back, one counter
// after the other.
func moveSlot(r *run, c *redistest.Cluster) {
	slot, from := r.owner(c, r.keys[0])
	to := c.Nodes[0]
	if to == from {
		to = c.Nodes[1]
	}
	for range 2 {
		m := c.BeginMigration(slot, to)
		r.awaitCalls(20)
		for m.MoveKeys(1) > 0 {
			r.awaitCalls(20)
		}
		m.Finish()
		r.awaitCalls(20)
		from, to = to, from
	}
}

// failOver has the replica of the first key's master take over. Nothing is lost: the
// master executes no more commands until the replica has caught up and taken over.
func failOver(r *run, c *redistest.Cluster) {
	slot, master := r.owner(c, r.keys[0])
	replica := partner(c, master)
	awaitReplicating(r, replica)
	takeOver(r, c, slot, replica)
}

// takeOver has a replica take over from its master, and returns when it owns the slot.
func takeOver(t require.TestingT, c *redistest.Cluster, slot int, replica *redistest.Server) {
	var asked time.Time
	require.Eventually(t, func() bool {
		// The nodes may ignore the request of a replica that they do not know yet.
		if time.Since(asked) > 2*time.Second && strings.Contains(fmt.Sprint(replica.Do("INFO", "replication")), "role:slave") {
			asked = time.Now()
			replica.Do("CLUSTER", "FAILOVER")
		}
		return c.Owner(slot) == replica
	}, time.Minute, 10*time.Millisecond)
}

// killMaster kills the first key's master. Its replica takes over, and it comes back
// as a replica.
func killMaster(r *run, c *redistest.Cluster) {
	_, master := r.owner(c, r.keys[0])
	r.awaitCalls(callsForMuch)
	var its []string
	for _, key := range r.keys {
		if _, m := r.owner(c, key); m == master {
			its = append(its, key)
		}
	}
	r.lose(its, r.inFlight(), func() {
		master.Kill()
		c.AwaitOK()
	})
	r.awaitCalls(20)
	master.Restart()
	awaitReplicating(r, master)
}

// partner returns the replica of a node of a cluster, or the master of a replica.
func partner(c *redistest.Cluster, node *redistest.Server) *redistest.Server {
	half := len(c.Nodes) / 2
	return c.Nodes[(slices.Index(c.Nodes, node)+half)%len(c.Nodes)]
}

// awaitReplicating waits until a server is a replica that is in sync.
func awaitReplicating(r *run, replica *redistest.Server) {
	require.Eventually(r, func() bool {
		return strings.Contains(fmt.Sprint(replica.Do("INFO", "replication")), "master_link_status:up")
	}, time.Minute, 10*time.Millisecond)
}

// onSentinel is the setup in which a master is killed that sentinels watch.
func onSentinel(t *testing.T) site {
	s := redistest.StartSentinel(t, redistest.SentinelOptions{Sentinels: 3, DownAfter: 500 * time.Millisecond})
	client := func() redis.UniversalClient { return s.Client() }
	return redisSite(client, s.Client(), func(r *run) {
		r.awaitCalls(callsForMuch)
		r.lose(r.keys, r.inFlight(), func() {
			s.Master.Kill()
			s.AwaitPromoted(s.Replica)
		})
	})
}
