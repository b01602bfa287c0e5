package ratelimit

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// underway has the units of requests for which Options.Count has not decided yet. They may
// be given back, so a denial that there would not be without them starts no block; see
// Limit.Block. Without it, parallel requests that all succeed would block their key.
//
// Taking units and recording them here is one step, and so is giving them back: for both,
// the key's shard is locked. Otherwise another request could see one without the other.
type underway struct {
	used   atomic.Bool // a limit with Block has been in force; until then nothing is recorded
	seed   maphash.Seed
	shards [underwayShards]underwayShard
}

const (
	underwayShards = 64

	// maxPending bounds the work that requests under way for one key cause under the
	// lock. The units of further requests are recorded as taken with the last ones
	// before, which is earlier: so a block may start that would not otherwise.
	maxPending = 64
)

type underwayShard struct {
	mu   sync.Mutex
	keys map[string][]*pendingUnits // in the order in which they were taken
	_    [48]byte                   // two locks are in different cache lines
}

// pendingUnits are units of one key that were taken at an instant.
type pendingUnits struct {
	units, at int64
	requests  int
}

// A pendingRequest is what one request has recorded. It is the context of the request's
// state. Methods of a nil pendingRequest do nothing.
type pendingRequest struct {
	context.Context
	shard *underwayShard
	key   string
	in    *pendingUnits // nil if nothing is recorded any more; guarded by shard.mu, as is units
	units int64
}

func newUnderway() *underway { return &underway{seed: maphash.MakeSeed()} }

// lock locks the shard of a key.
func (u *underway) lock(key string) *underwayShard {
	s := &u.shards[maphash.String(u.seed, key)%underwayShards]
	s.mu.Lock()
	return s
}

// pending returns the units of a key. The shard must be locked.
func (s *underwayShard) pending(key string) []rule.Pending {
	held := s.keys[key]
	if len(held) == 0 {
		return nil
	}
	pending := make([]rule.Pending, len(held))
	for i, p := range held {
		pending[i] = rule.Pending{Units: p.units, At: p.at}
	}
	return pending
}

// add records units that a request has taken. The shard must be locked.
func (s *underwayShard) add(key string, units int64, at Instant) *pendingRequest {
	if s.keys == nil {
		s.keys = make(map[string][]*pendingUnits)
	}
	held := s.keys[key]
	var in *pendingUnits
	if len(held) < maxPending {
		in = &pendingUnits{at: int64(at)}
		s.keys[key] = append(held, in)
	} else {
		in = held[len(held)-1]
	}
	in.units += units
	in.requests++
	return &pendingRequest{shard: s, key: key, in: in, units: units}
}

// set changes the units of the request, unless it has been decided. The shard must be
// locked.
func (r *pendingRequest) set(units int64) {
	if r.in != nil {
		r.in.units += units - r.units
		r.units = units
	}
}

// decided removes what is recorded. It locks the shard. It does nothing the second time.
func (r *pendingRequest) decided() {
	if r == nil {
		return
	}
	r.shard.mu.Lock()
	defer r.shard.mu.Unlock()
	if r.in == nil {
		return
	}
	in := r.in
	r.set(0)
	r.in = nil
	if in.requests--; in.requests > 0 {
		return
	}
	held := r.shard.keys[r.key]
	for i := range held {
		if held[i] == in {
			held = append(held[:i], held[i+1:]...)
			break
		}
	}
	if len(held) == 0 {
		delete(r.shard.keys, r.key)
	} else {
		r.shard.keys[r.key] = held
	}
}
