package redisstore

import (
	"context"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// A client of a single server may be connected to a proxy in front of several
// servers. A proxy may send a command to the server of the command's first key.
// The other keys would then be counted on the wrong server. So a store finds out
// once whether all keys are on one server, before its first command for several
// keys. For Cluster and Ring clients it never sends such a command.

// The values of Store.topology.
const (
	topologyUnknown uint32 = iota
	topologyAsked          // findPlace is running
	oneServer
	severalServers
)

// keysAreTogether reports whether one command can have several keys. It does
// not wait: the first call starts a goroutine that finds out, and until that
// has ended the result is false.
func (s *Store) keysAreTogether() bool {
	if _, single := s.client.(*redis.Client); !single {
		return false
	}
	if s.topology.Load() == topologyUnknown && s.topology.CompareAndSwap(topologyUnknown, topologyAsked) {
		s.goUntilClose(s.findTopology)
	}
	return s.topology.Load() == oneServer
}

// topologyKeys is how many keys findPlace tries. A proxy in front of two servers
// sends all of them to the same server only once in 65,536 times.
const topologyKeys = 16

// findTopology writes one key, and then reads it in commands whose first key is
// another one. It waits for the replies, on its own goroutine. If there are none, or if a hook
// of the client panics, nothing is found out.
func (s *Store) findTopology() {
	ctx, cancel := context.WithTimeout(context.Background(), sideTimeout)
	defer cancel()
	topology := topologyUnknown // the next command for several keys tries again
	defer func() { s.topology.Store(topology) }()
	key := s.prefix + "place"
	err := s.client.Set(ctx, key, "one", time.Minute).Err()
	var replies []*redis.Cmd
	if err == nil {
		pipe := s.client.Pipeline()
		for i := range topologyKeys {
			replies = append(replies, pipe.Eval(ctx, "return redis.call('GET', KEYS[2])", []string{key + ":" + strconv.Itoa(i), key}))
		}
		pipe.Exec(ctx)
	}
	found := oneServer
	for _, cmd := range replies {
		switch text, failed := cmd.Text(); {
		case failed != nil && !isReply(failed):
			err = failed
		case failed != nil || text != "one":
			found = severalServers
		}
	}
	if err == nil || found == severalServers {
		topology = found
	}
}
