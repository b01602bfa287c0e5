package redistest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

const (
	slots   = 16384 // of every Redis Cluster
	masters = 3     // the smallest number that can elect a replica when one master is lost
)

// A Cluster is a Redis Cluster of three masters.
type Cluster struct {
	Nodes []*Server // the first three start as masters; their replicas follow, in the same order

	t   testing.TB
	ids map[*Server]string
}

// ClusterOptions are the settings of a cluster. The zero value means three
// masters without replicas.
type ClusterOptions struct {
	Replicas int      // of each master
	Args     []string // more of redis-server's command line, for all nodes
}

// StartCluster starts a cluster, with the slots spread evenly over its masters. It waits
// until all nodes agree on the state of the cluster. A failed node is noticed after two
// seconds. A cluster that has lost some slots still serves the others.
func StartCluster(t testing.TB, o ClusterOptions) *Cluster {
	t.Helper()
	args := append([]string{
		"--cluster-enabled", "yes",
		"--cluster-require-full-coverage", "no",
		"--cluster-node-timeout", "2000",
		"--cluster-replica-validity-factor", "0", // any replica may take over
		"--cluster-allow-replica-migration", "no", // replicas stay where they are put
		"--cluster-announce-ip", "127.0.0.1", // nodes need not find out
	}, o.Args...)
	c := &Cluster{t: t, ids: make(map[*Server]string)}
	for range masters * (1 + o.Replicas) {
		c.Nodes = append(c.Nodes, launch(t, args...))
	}
	for i, node := range c.Nodes {
		node.AwaitReady()
		c.ids[node] = fmt.Sprint(node.Do("CLUSTER", "MYID"))
		node.Do("CLUSTER", "SET-CONFIG-EPOCH", i+1) // different from the start, so there is no collision to resolve
		if i < masters {
			node.Do("CLUSTER", "ADDSLOTSRANGE", i*slots/masters, (i+1)*slots/masters-1)
		}
		if i > 0 {
			host, port := hostPort(c.Nodes[0].Addr)
			node.Do("CLUSTER", "MEET", host, port)
		}
	}
	for i, replica := range c.Nodes[masters:] {
		master := c.Nodes[i%masters]
		await(t, "replica to be accepted", func() error {
			_, err := replica.do("CLUSTER", "REPLICATE", c.ids[master]) // unknown until gossip brings it
			return err
		})
	}
	c.await("the cluster to form", func(v *view) error {
		if want := 1 + o.Replicas; v.fewest != want {
			return fmt.Errorf("slots have %d nodes, not %d", v.fewest, want)
		}
		return nil
	})
	return c
}

// Addrs returns the addresses of all nodes.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, node := range c.Nodes {
		addrs = append(addrs, node.Addr)
	}
	return addrs
}

// Client returns a client with go-redis's defaults, closed when the test ends.
func (c *Cluster) Client(opts ...func(*redis.ClusterOptions)) *redis.ClusterClient {
	o := &redis.ClusterOptions{Addrs: c.Addrs()}
	for _, opt := range opts {
		opt(o)
	}
	client := redis.NewClusterClient(o)
	c.t.Cleanup(func() { client.Close() }) // the test may have closed it
	return client
}

// AwaitOK waits until all running nodes agree that each slot is served by one of them.
// Use it after a Restart, or after the replica of a killed master has taken over.
func (c *Cluster) AwaitOK() {
	c.t.Helper()
	c.await("all slots to be served", func(*view) error { return nil })
}

// Slot returns the slot of a key.
func (c *Cluster) Slot(key string) int {
	c.t.Helper()
	return int(c.running().Do("CLUSTER", "KEYSLOT", key).(int64))
}

// Owner returns the master of a slot, or nil if no running node has it.
func (c *Cluster) Owner(slot int) *Server {
	c.t.Helper()
	v, err := c.view(c.running())
	if err != nil {
		c.t.Fatalf("redistest: owner of slot %d: %v", slot, err)
	}
	return v.owners[slot]
}

// running returns a running node.
func (c *Cluster) running() *Server {
	c.t.Helper()
	i := slices.IndexFunc(c.Nodes, (*Server).Running)
	if i < 0 {
		c.t.Fatal("redistest: no node of the cluster runs")
	}
	return c.Nodes[i]
}

// A view is what one node knows about the slots.
type view struct {
	ok     bool      // the state that it reports
	owners []*Server // by slot; nil if there is no owner or it does not run
	fewest int       // the smallest number of online nodes of a slot, its master included
}

func (c *Cluster) view(s *Server) (*view, error) {
	v := &view{owners: make([]*Server, slots), fewest: len(c.Nodes)}
	return v, s.asAdmin(func(ctx context.Context, client *redis.Client) error {
		info, err := client.ClusterInfo(ctx).Result()
		if err != nil {
			return err
		}
		v.ok = strings.Contains(info, "cluster_state:ok")
		shards, err := client.ClusterShards(ctx).Result()
		for _, shard := range shards {
			if len(shard.Slots) > 0 {
				v.add(shard, c.Nodes)
			}
		}
		return err
	})
}

// add adds a shard to the view: some slots, their master and its replicas.
func (v *view) add(shard redis.ClusterShard, nodes []*Server) {
	online := 0
	for _, node := range shard.Nodes {
		if node.Health == "online" {
			online++
		}
		if node.Role != "master" {
			continue
		}
		addr := address(int(node.Port))
		i := slices.IndexFunc(nodes, func(s *Server) bool { return s.Addr == addr && s.Running() })
		if i < 0 {
			continue
		}
		for _, r := range shard.Slots {
			for slot := r.Start; slot <= r.End; slot++ {
				v.owners[slot] = nodes[i]
			}
		}
	}
	v.fewest = min(v.fewest, online)
}

// await waits until all running nodes see the same owners, one for each slot, and
// check passes on the view of each node.
func (c *Cluster) await(what string, check func(*view) error) {
	c.t.Helper()
	await(c.t, what, func() error {
		var owners []*Server
		for _, node := range c.Nodes {
			if !node.Running() {
				continue
			}
			v, err := c.view(node)
			if owners == nil {
				owners = v.owners
			}
			switch slot := slices.Index(v.owners, nil); {
			case err != nil:
			case !v.ok:
				err = errors.New("the cluster's state is not ok")
			case slot >= 0:
				err = fmt.Errorf("slot %d is not served", slot)
			case !slices.Equal(owners, v.owners):
				err = errors.New("not the owners that another node sees")
			default:
				err = check(v)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", node.Addr, err)
			}
		}
		return nil
	})
}
