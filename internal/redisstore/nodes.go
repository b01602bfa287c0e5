package redisstore

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/batch"
	"github.com/ratelimit-go/ratelimit/internal/redisscript"
)

// nodeQueues has the queues of a Cluster, one for each master. So a call to one
// master never waits for a round trip to another, which may be slow or gone. For
// all other clients it stays the zero value, which knows no masters.
type nodeQueues struct {
	known atomic.Bool // the client has found out which master has which slots
	all   sync.Map    // *redis.Client, of a master, to *queue
	n     int         // the number of queues in all; guarded by Store.mu
}

// masterBatching returns the settings by which calls share round trips to a master of a
// Cluster. With 64 callers on 10,000 keys of three masters, Crowd makes the processor time
// of a decision 0.9 of what it is without, and 0.8 if keys of different slots share
// commands. On a single server it is as long, and there are fewer decisions per second.
func masterBatching() batch.Settings {
	s := Batching
	s.Crowd, s.MinInterval = 4, 500*time.Microsecond
	return s
}

// maxNodes bounds the number of queues if a Cluster changes its masters again
// and again.
const maxNodes = 1024

// queueOf returns the queue for calls of a key. It takes Store.mu only to make
// a queue.
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
	s.open(q, masterBatching())
	if s.options.AcrossSlots {
		q.Send = s.sendToMaster
	}
	made, old := s.nodes.all.LoadOrStore(master, q)
	if !old {
		s.nodes.n++
	}
	return made.(*queue)
}

// recordOutcome learns from the end of a command. Masters are used only after the
// first answer: before that, the client would look them up on the goroutine of a
// caller. If a command is not answered, the client must look for a new master.
// By itself the client does so only when it sends a command again.
func (n *nodeQueues) recordOutcome(client redis.UniversalClient, answered bool) {
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
