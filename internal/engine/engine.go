// Package engine is the contract between a limiter and whatever counts for it
// outside of this process's own table: a Redis server, a database, or a store
// that a user of the library has written.
//
// The contract is in the terms of package rule, so that the code between a
// limiter and its store (timeouts, breaker, near cache, leases) knows neither the
// public types of the library nor any particular store.
package engine

import (
	"context"
	"math"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// An Engine takes, moves and forgets units of keys under several limits. Each
// call is one atomic step at the backend. Methods may be called from any number
// of goroutines, and return as soon as their context is done.
//
// An error means that no decision was made. A call of unknown effect is never
// repeated, neither by the engine nor by its caller.
type Engine interface {
	// Take takes the request's units under every limit, or under none if one of
	// them has less left. It fills answers, which is as long as the
	// limits. A denied call changes nothing, and neither does one for 0 units.
	Take(ctx context.Context, r Request, answers []rule.Answer) (Reply, error)

	// Adjust moves what is counted by n units that were taken at an instant of
	// the engine's clock: n < 0 gives back, n > 0 charges, both only as far as
	// those units still count. It returns how many units it has charged under
	// every limit.
	Adjust(ctx context.Context, key string, n, at int64, limits *Limits) (charged int64, err error)

	// Reset forgets what is counted for key under each limit, of which there may
	// be more than a limiter has.
	Reset(ctx context.Context, key string, limits *Limits) error

	// Fault classifies an error of one of the calls above.
	Fault(err error) Fault
}

// A Request asks for units of one key.
type Request struct {
	Key    string
	Units  int64
	UpTo   bool // take as many of the units, which are at least 1, as fit; if none fits, the answer is that to one unit
	Limits *Limits
	Now    int64 // what clock.Now has just shown: reading a clock is a good part of what a shared decision costs
	Until  int64 // a deadline by that clock, beside the one of the context; 0 is none

	// States has room for the state under each limit after the call, by the
	// engine's clock in nanoseconds. It may be nil, and an engine that does not know
	// the states leaves it as it is. See Reply.Exact.
	States []rule.State
}

// A Reply is what an engine answers beside the state of the limits.
type Reply struct {
	At int64 // the instant of the decision, by the engine's clock

	Granted int64 // how many units were taken, if Request.UpTo is set

	// Newest is false if another caller gets a newer answer about the same key
	// out of the same command, so that this one need not be remembered.
	Newest bool

	Exact bool // Request.States has been filled in
}

// Now is the instant at which an engine sees a call. Every instant that is still to
// come means the same.
const Now = math.MaxInt64

// Limits are the limits of a call. They are made once and never change, so that
// an engine may remember what it has derived from them by their address.
type Limits struct {
	Rules []rule.Limit

	// Public is what a public Store is called with, of a type that only its
	// wrapper knows, and nil if there are only the rules.
	Public any
}

// Fault is what an error means for the calls that follow. Only the first two
// are an outage of the backend.
type Fault uint8

const (
	// Unknown: the backend is in doubt, and so is whether the call took effect.
	Unknown Fault = iota
	// Refused: the backend is in doubt, and the call has changed nothing.
	Refused
	// Key: the error is about the key: about what is stored for it, or about where
	// it is at the backend. The call has changed nothing, and calls for other keys
	// may well succeed.
	Key
	// Closed: this process is shutting down, and has closed the engine or what
	// it works with. The call has changed nothing. No later call will succeed.
	Closed
)
