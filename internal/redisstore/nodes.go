package redisstore

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
)

// nodeQueues are the queues of a Cluster, one for each master: a call to one
// master never waits for a round trip to another, which may be slow or gone. The
// zero value, which knows of no masters, is what every other client has.
type nodeQueues struct {
	known atomic.Bool // the client has found out which master has which slots
	all   sync.Map    // *redis.Client, of a master, to *queue
	n     int         // of all; guarded by Store.mu
}

// maxNodes bounds what a Cluster that changes its masters again and again leaves
// behind.
const maxNodes = 1024

// queueOf returns the queue for calls of a key.
func (s *Store) queueOf(key string) *queue {
	if !s.nodes.known.Load() {
		return &s.queue
	}
	master, err := s.client.(*redis.ClusterClient).MasterForKey(context.Background(), redisscript.Tag(key))
	if err != nil {
		return &s.queue
	}
	if q, ok := s.nodes.all.Load(master); ok {
		return q.(*queue)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() || s.nodes.n == maxNodes {
		return &s.queue
	}
	q := new(queue)
	s.open(q)
	made, old := s.nodes.all.LoadOrStore(master, q)
	if !old {
		s.nodes.n++
	}
	return made.(*queue)
}

// noteOutcome learns from the end of a command. Masters are asked for only after
// the first answer: before that, the client would look for them on the goroutine
// of a caller. And if a command is not answered, the client must look for a new
// master: by itself it does so only when it sends a command again.
func (n *nodeQueues) noteOutcome(client redis.UniversalClient, answered bool) {
	cluster, ok := client.(*redis.ClusterClient)
	switch {
	case !ok:
	case !answered:
		cluster.ReloadState(context.Background())
	case !n.known.Load():
		n.known.Store(true)
	}
}

// close closes the queues, and waits for their round trips.
func (n *nodeQueues) close() {
	for _, q := range n.all.Range {
		q.(*queue).Close()
	}
}
