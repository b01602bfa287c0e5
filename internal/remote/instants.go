package remote

import (
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/nearcache"
)

// Units must be given back into the window that they were taken from. So each
// decision has an instant. Units that the store has counted have the store's
// instant. Units that were counted here have ours, because the store's clock may be
// unknown, or may be another one when the store is available again. A caller stores
// one number for both: instants of the store are not negative, and ours are passed
// as negative numbers.

// takenHere returns the number for units that were counted here at an instant of
// our clock.
func takenHere(here int64) int64 { return -here }

// taken converts a number that Take has returned to an instant on both clocks.
func (r *Remote) taken(at int64) nearcache.Instant {
	switch {
	case at == engine.Now:
		return nearcache.AnyTime
	case at < 0:
		return nearcache.Here(-at)
	}
	return r.near.InstantOf(at)
}

// sendAt returns the instant to send to the store for units that were taken
// then.
func (r *Remote) sendAt(taken nearcache.Instant) int64 {
	if at, known := r.near.SendAt(&nearcache.Owed{At: taken}); known {
		return at
	}
	return engine.Now
}
