package remote

import (
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/nearcache"
)

// Units are given back into the window that they were taken in, so a decision comes
// with its instant. Units that the store has counted have the store's instant; units
// that were counted here have ours, because the store's clock may not be known, or
// may be another one when the store is back. A caller keeps one number for both:
// store instants are not negative, and ours are handed out as negative numbers.

// takenHere is the instant of units that were counted here at an instant of ours.
func takenHere(here int64) int64 { return -here }

// taken is the inverse: an instant that Take has returned, on both clocks.
func (r *Remote) taken(at int64) nearcache.Instant {
	switch {
	case at == engine.Now:
		return nearcache.AnyTime
	case at < 0:
		return nearcache.Here(-at)
	}
	return r.near.InstantOf(at)
}

// sendAt is the instant to send to the store with units that were taken then.
func (r *Remote) sendAt(taken nearcache.Instant) int64 {
	if at, known := r.near.SendAt(&nearcache.Owed{At: taken}); known {
		return at
	}
	return engine.Now
}
