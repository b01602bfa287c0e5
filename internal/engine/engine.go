// Package engine has the contract between a limiter and a backend that counts
// outside of this process's own table: a Redis server, a database, or a store
// that a user of the library has written. It has no implementation.
//
// The contract uses the terms of package rule. Between a limiter and its store
// there are timeouts, a breaker, the near cache and leases. That code depends
// neither on the public types of the library nor on a particular store.
package engine

import (
	"context"
	"math"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// An Engine takes, adjusts and resets units of keys under several limits. Each
// call is one atomic step at the backend. Methods may be called from any number
// of goroutines, and return as soon as their context is done.
//
// An error means that no decision was made. If it is not known whether a call
// took effect, neither the engine nor its caller repeats it.
type Engine interface {
	// Take takes the request's units under every limit, or under none if one of
	// them has too few left. It fills answers, which is as long as the limits.
	// A denied call changes nothing, except that it may start blocks, and that the
	// store keeps what Request.Holding says. A call for 0 units changes nothing else either.
	Take(ctx context.Context, r Request, answers []rule.Answer) (Reply, error)

	// Adjust changes the counters by n units that were taken at an instant of
	// the engine's clock. It gives units back if n < 0 and charges them if n >
	// 0, in both cases only as far as they still count. It returns how many
	// units it has charged under every limit.
	Adjust(ctx context.Context, key string, n, at int64, limits *Limits) (charged int64, err error)

	// Reset deletes the counters of key under each limit. There may be more
	// limits than a limiter has.
	Reset(ctx context.Context, key string, limits *Limits) error

	// Block joins a block with the block of key's counter under each limit: of two ends
	// the later one stays, of two rungs the higher one, and the rung is remembered for the
	// longer of the two times. b.Until is how long the block lasts from now on. It is
	// negative for a block that is over, whose rung is still remembered. There may be more
	// limits than a limiter has. An engine whose store counts no blocks returns an error.
	Block(ctx context.Context, key string, b rule.Block, limits *Limits) error

	// Fault classifies an error of one of the calls above.
	Fault(err error) Fault
}

// A Request asks for units of one key.
type Request struct {
	Key    string
	Units  int64
	UpTo   bool // take as many of the units as fit; Units is at least 1, and if none fits, the answer is a denial of one unit
	Limits *Limits
	Now    int64 // what clock.Now has just returned; a second reading would be a large part of a shared decision's cost
	Until  int64 // a deadline by that clock, in addition to the context's deadline; 0 is none

	// StartsBlocks means that a denial starts the blocks of Limits.Ladders. Without it a
	// denial starts none, as for units that no client has asked for.
	StartsBlocks bool
	// Pending are units of the key that may yet be given back. A denial that there would
	// not be without them starts no block.
	Pending []rule.Pending

	// States is a buffer for the states after the call, one for each limit, by the
	// engine's clock in nanoseconds. It may be nil. An engine that does not know the
	// states leaves it unchanged; see Reply.Exact.
	States []rule.State
	// Logs is a buffer as long as States for the logs of rolling windows, which have no
	// state, in nanoseconds, too.
	Logs []rule.Log

	// Blocks is a buffer for the blocks of the counters after the call, one for each
	// limit, by the engine's clock in nanoseconds. It may be nil; otherwise it has zero
	// Blocks. An engine that counts no blocks leaves it unchanged.
	Blocks []rule.Block

	// Holding is about the key's holds under an in-flight limit; nil without one. Limits may
	// then be empty. The engine fills in Held. An engine whose store counts no holds returns
	// an error.
	Holding *rule.Holding
}

// A Reply is what an engine returns in addition to the answers.
type Reply struct {
	At int64 // the instant of the decision, by the engine's clock

	Granted int64 // how many units were taken, if Request.UpTo is set

	// Newest is false if another caller gets a newer answer about the same key
	// from the same command. This answer need not be cached then.
	Newest bool

	// Blocked and Began have a bit for each limit whose counter is blocked, and for each
	// limit that has started a block now. Engines that count no blocks leave them 0.
	Blocked, Began uint8

	Exact bool // Request.States has been filled in
}

// Now means the instant at which the engine executes the call. Every other
// instant in the future means the same.
const Now = math.MaxInt64

// Limits are the limits of a call. A Limits never changes after it was made, so
// an engine may cache what it derives from it by its address.
type Limits struct {
	Rules []rule.Limit

	// Ladders has the ladder of each limit that starts blocks. It is nil if none does.
	Ladders *[rule.MaxLimits]*rule.Ladder

	// Refresh returns the limits with the periods of calendars that are in force. It is
	// nil if Rules has no calendars.
	Refresh func() *Limits

	// Public has the limits in the type that a public Store takes. Only the
	// wrapper of that Store knows the type. It is nil if there are only the
	// rules.
	Public any
}

// Present returns the limits with the periods that are in force now. A caller that has
// waited, for a backend for example, calls it before it counts by itself.
func (l *Limits) Present() *Limits {
	if l.Refresh == nil {
		return l
	}
	return l.Refresh()
}

// Fault says what an error means for the calls that follow. Only Unknown and
// Refused are outages of the backend.
type Fault uint8

const (
	// Unknown: the backend may be failing, and it is not known whether the call
	// took effect.
	Unknown Fault = iota
	// Refused: the backend may be failing, and the call has changed nothing.
	Refused
	// Key: the error is about the key, for example about what is stored for it or
	// where it is stored. The call has changed nothing, and calls for other keys
	// may succeed.
	Key
	// Closed: this process is shutting down, and has closed the engine or the
	// client that it uses. The call has changed nothing. No later call will
	// succeed.
	Closed
)

type recordableKey struct{}

// WithRecordable returns the context of a call that the store carries out together with a
// record of it, or not at all. So a call by hand changes nothing in this process unless the
// store has carried it out, and is not sent later. recordable is what the store needs for the
// record; this package does not know its type.
func WithRecordable(ctx context.Context, recordable any) context.Context {
	return context.WithValue(ctx, recordableKey{}, recordable)
}

// Recordable returns what WithRecordable has added to a context, or nil.
func Recordable(ctx context.Context) any { return ctx.Value(recordableKey{}) }
