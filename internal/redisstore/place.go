package redisstore

import (
	"context"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// A client of a single server may be connected to a proxy in front of several. A
// proxy may send a command to the server of the command's first key, and the
// other keys would be counted where nobody looks for them. So a store finds out,
// once, before the first command for several keys.

// What is known of where the keys are.
const (
	placeUnknown uint32 = iota
	placeAsked          // and no answer yet
	placeOne
	placeSeveral
)

// keysAreTogether reports whether one command can be for several keys. It does
// not wait: the first call starts to find out.
func (s *Store) keysAreTogether() bool {
	if _, single := s.client.(*redis.Client); !single {
		return false
	}
	if s.place.Load() == placeUnknown && s.place.CompareAndSwap(placeUnknown, placeAsked) {
		s.beside(s.findPlace)
	}
	return s.place.Load() == placeOne
}

// placeKeys is how many keys are tried. A proxy in front of two servers sends all
// of them to one server only once in 65,536 times.
const placeKeys = 16

// findPlace writes one key, and then reads it in commands whose first key is
// another one.
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
		found = placeUnknown // the next command for several keys asks again
	}
	s.place.Store(found)
}
