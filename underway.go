package ratelimit

import (
	"context"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/remote"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// underway has the units of requests for which Options.Count has not decided yet, or that a
// limiter further in may still deny. They may be given back, so a denial that there would
// not be without them starts no block; see Limit.Block. Without it, parallel requests that
// all succeed, or that the other limiter denies, would block their key.
//
// So a decision has to see all units that are under way: the units of a request must be
// recorded before the next request of the key is decided. If the counters are in this
// process, the key's shard is locked from one to the other. A lock must not be held while
// a store elsewhere is asked. So the requests of a key then take turns; see turn.
type underway struct {
	seed   maphash.Seed
	shards [underwayShards]underwayShard
}

const (
	underwayShards = 64

	// joinShare is the part of the time for which units count within which requests are
	// recorded together, with the last of their instants. So a key has about that many
	// records, however many requests are under way, and a denial is excused for at most
	// that much longer than it should be.
	joinShare = 64

	// maxTurns bounds how many requests of one key wait for their turns.
	maxTurns = remote.MaxWaiting
)

type underwayShard struct {
	mu   sync.Mutex
	keys map[string]*underwayKey
	_    [48]byte // two locks are in different cache lines
}

// underwayKey is one key. It is in the map of its shard as long as it has something.
type underwayKey struct {
	held  []*pendingUnits // in the order in which they were recorded
	taken bool            // a request has its turn
	turns []chan struct{} // of the requests that wait for theirs; closed when it begins
}

// pendingUnits are units of one key that were taken at an instant of the store.
type pendingUnits struct {
	units, at int64
	requests  int
	policy    *policy // under whose limits they were taken
	first     int64   // when the first of them were recorded, by the clock of this process
	until     int64   // when they count no longer, by that clock
	own       bool    // they are of one request: no others join
}

// A pendingRequest is what one request has recorded. It is the context of the request's
// state. Methods of a nil pendingRequest do nothing.
type pendingRequest struct {
	context.Context
	shard *underwayShard
	key   string
	in    *pendingUnits // nil if nothing can change any more; guarded by shard.mu, as are the others
	units int64

	returning bool // a goroutine gives the units back, and ends what is recorded
}

func newUnderway() *underway { return &underway{seed: maphash.MakeSeed()} }

// lock locks the shard of a key.
func (u *underway) lock(key string) *underwayShard {
	s := &u.shards[maphash.String(u.seed, key)%underwayShards]
	s.mu.Lock()
	return s
}

// of returns a key, which it makes if there is none. The shard must be locked.
func (s *underwayShard) of(key string) *underwayKey {
	k := s.keys[key]
	if k == nil {
		if s.keys == nil {
			s.keys = make(map[string]*underwayKey)
		}
		k = new(underwayKey)
		s.keys[key] = k
	}
	return k
}

// tidy drops units of a key that count no longer, and forgets the key if it has nothing.
// The shard must be locked.
func (s *underwayShard) tidy(key string) {
	k := s.keys[key]
	if k == nil {
		return
	}
	now := clock.Now()
	k.held = slices.DeleteFunc(k.held, func(p *pendingUnits) bool { return p.until <= now })
	if len(k.held) == 0 && !k.taken {
		delete(s.keys, key)
	}
}

// pending returns the units of a key that were taken from a counter of one of the
// policy's limits. The shard must be locked.
func (s *underwayShard) pending(key string, of *policy) (pending []rule.Pending) {
	s.tidy(key)
	if k := s.keys[key]; k != nil {
		for _, p := range k.held {
			if p.units > 0 && p.policy.sharesCounter(of) {
				pending = append(pending, rule.Pending{Units: p.units, At: p.at})
			}
		}
	}
	return pending
}

// add records units that a request has taken. The shard must be locked.
func (s *underwayShard) add(key string, units int64, at Instant, under *policy, own bool) *pendingRequest {
	k, now := s.of(key), clock.Now()
	var in *pendingUnits
	if len(k.held) > 0 && !own {
		last := k.held[len(k.held)-1]
		// The instants of units that were counted in this process are negative.
		if !last.own && last.policy.same(under) && (last.at < 0) == (at < 0) && now-last.first < under.lasts/joinShare {
			in = last
		}
	}
	if in == nil {
		in = &pendingUnits{policy: under, first: now, own: own}
		k.held = append(k.held, in)
	}
	in.at, in.until = int64(at), now+min(under.lasts, math.MaxInt64-now)
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

// update is set for a caller that has not locked the shard.
func (r *pendingRequest) update(units int64) {
	r.shard.mu.Lock()
	defer r.shard.mu.Unlock()
	r.set(units)
}

// keep leaves what is recorded until it counts no longer: the request does not count, but
// its units cannot be given back. It locks the shard.
func (r *pendingRequest) keep() {
	if r == nil {
		return
	}
	r.shard.mu.Lock()
	defer r.shard.mu.Unlock()
	if r.units == 0 {
		r.remove()
	}
	r.in = nil
}

// returns notes that a goroutine gives the units back. It locks the shard.
func (r *pendingRequest) returns() {
	if r == nil {
		return
	}
	r.shard.mu.Lock()
	defer r.shard.mu.Unlock()
	r.returning = true
}

// over is decided for a request that has ended. If a goroutine still gives the units back, they
// stay recorded until it has done so: until then the store counts them. It locks the shard.
func (r *pendingRequest) over() {
	if r == nil {
		return
	}
	r.shard.mu.Lock()
	defer r.shard.mu.Unlock()
	if !r.returning {
		r.remove()
	}
}

// decided removes what is recorded: the request counts, or its units were given back. It
// locks the shard. It does nothing the second time.
func (r *pendingRequest) decided() {
	if r == nil {
		return
	}
	r.shard.mu.Lock()
	defer r.shard.mu.Unlock()
	r.remove()
}

// remove is decided for a shard that is locked.
func (r *pendingRequest) remove() {
	if r.in == nil {
		return
	}
	in := r.in
	r.set(0)
	r.in = nil
	if in.requests--; in.requests > 0 {
		return
	}
	if k := r.shard.keys[r.key]; k != nil {
		if i := slices.Index(k.held, in); i >= 0 {
			k.held = slices.Delete(k.held, i, i+1)
		}
		r.shard.tidy(r.key)
	}
}

// A turn is one request that a store outside of this process decides, or that is decided
// in its place. At most one request of a key has its turn, from Begin until end. In
// between its units are taken and recorded. It is a remote.Turn.
//
// A request whose turn does not come in time is decided without it, and starts no block.
// Its units are recorded before it is decided, and removed again if it has got none. So a
// request that has its turn may see more units than will be given back, but never less.
type turn struct {
	underway *underway
	key      string
	policy   *policy
	units    int64 // asked for, if they may be given back later
	begun    bool
	early    *pendingRequest // the units, if they were recorded without a turn
}

// Begin waits until it is the request's turn. begun reports whether that has come, and
// waited whether another request had its turn. Begin waits until ctx is done, or until an
// instant of the clock, where 0 means never. It returns at once the second time.
func (t *turn) Begin(ctx context.Context, until int64) (begun, waited bool) {
	if t.begun || t.early != nil {
		return t.begun, false
	}
	s := t.underway.lock(t.key)
	k := s.of(t.key)
	if !k.taken {
		k.taken, t.begun = true, true
		s.mu.Unlock()
		return true, false
	}
	if len(k.turns) >= maxTurns {
		t.early = s.add(t.key, t.units, Now, t.policy, true)
		s.mu.Unlock()
		return false, false
	}
	own := make(chan struct{})
	k.turns = append(k.turns, own)
	s.mu.Unlock()

	var over <-chan time.Time
	if until != 0 {
		timer := time.NewTimer(time.Duration(until - clock.Now()))
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-own:
		t.begun = true
		return true, true
	case <-ctx.Done():
	case <-over:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(k.turns, own); i >= 0 {
		k.turns = slices.Delete(k.turns, i, i+1)
		t.early = s.add(t.key, t.units, Now, t.policy, true)
		return false, true
	}
	t.begun = true // it has come in the meantime
	return true, true
}

// Begun reports whether the request has its turn.
func (t *turn) Begun() bool { return t.begun }

// Pending returns the units of the key that may yet be given back, at the instants that
// remote.Remote.Take has returned.
func (t *turn) Pending() []rule.Pending {
	s := t.underway.lock(t.key)
	defer s.mu.Unlock()
	return s.pending(t.key, t.policy)
}

// end gives the turn to the next request of the key. If took is true, it first records units as
// taken at an instant. It locks the shard.
func (t *turn) end(took bool, units int64, at Instant) (recorded *pendingRequest) {
	s := t.underway.lock(t.key)
	defer s.mu.Unlock()
	switch {
	case t.early != nil && took:
		recorded, t.early.in.at = t.early, int64(at)
	case t.early != nil:
		t.early.remove()
	case took:
		recorded = s.add(t.key, units, at, t.policy, false)
	}
	if !t.begun {
		return recorded
	}
	t.begun = false
	k := s.keys[t.key]
	if len(k.turns) > 0 {
		close(k.turns[0])
		k.turns = slices.Delete(k.turns, 0, 1)
		return recorded
	}
	k.taken = false
	s.tidy(t.key)
	return recorded
}
