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

// The values of Store.place.
const (
	placeUnknown uint32 = iota
	placeAsked          // findPlace is running
	placeOne
	placeSeveral
)

// keysAreTogether reports whether one command can have several keys. It does
// not wait: the first call starts a goroutine that finds out, and until that
// has ended the result is false.
func (s *Store) keysAreTogether() bool {
	if _, single := s.client.(*redis.Client); !single {
		return false
	}
	if s.place.Load() == placeUnknown && s.place.CompareAndSwap(placeUnknown, placeAsked) {
		s.beside(s.findPlace)
	}
	return s.place.Load() == placeOne
}

// placeKeys is how many keys findPlace tries. A proxy in front of two servers
// sends all of them to the same server only once in 65,536 times.
const placeKeys = 16

// findPlace writes one key, and then reads it in commands whose first key is
// another one. It waits for the replies, on its own goroutine.
func (s *Store) findPlace() {
	ctx, cancel := context.WithTimeout(context.Background(), sideTimeout)
	defer cancel()
	key := s.prefix + "place"
	err := s.client.Set(ctx, key, "one", time.Minute).Err()
	var seen []*redis.Cmd
	if err == nil {
		pipe := s.client.Pipeline()
		for i := range placeKeys {
			seen = append(seen, pipe.Eval(ctx, "return redis.call('GET', KEYS[2])", []string{key + ":" + strconv.Itoa(i), key}))
		}
		pipe.Exec(ctx)
	}
	found := placeOne
	for _, cmd := range seen {
		switch text, failed := cmd.Text(); {
		case failed != nil && !isReply(failed):
			err = failed
		case failed != nil || text != "one":
			found = placeSeveral
		}
	}
	if err != nil && found == placeOne {
		found = placeUnknown // the next command for several keys tries again
	}
	s.place.Store(found)
}
