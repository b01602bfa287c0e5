// This file has Call, the life cycle of a call, and the list of waiting calls.
// The code that moves a call through its life cycle is in the other files.

package batch

import (
	"context"
	"time"
)

// A Call is what one caller asks of the server, and the result. The zero Call
// is ready for use when its Value is set. A Call must not be copied after first
// use.
//
// A Call may be used again after a Do that returned nil, and only then. After
// an error, a round trip may still use it. To use calls again saves the
// allocation of a call and its channels.
type Call[T any] struct {
	// Value is what the call asks for, and what Send and the other callbacks
	// have made of it. From the start of Do, only the callbacks may use it,
	// until Do has returned nil.
	Value T

	// Cancelled is for Queue.OnAbandoned. It is true if the caller has stopped
	// waiting because its context was cancelled, and false if its deadline has
	// passed.
	Cancelled bool

	// The context and the deadline do not change while the call is in the
	// queue, so they are read without the lock. The queue's lock guards all
	// other fields.
	ctx      context.Context
	deadline time.Time // zero if there is none

	phase phase
	err   error         // what Do returns for a call that is done or abandoned
	trip  *roundTrip[T] // for a call in flight

	// The list of waiting calls, and the number of the call in order of
	// arrival. A call that has only been inline has no number.
	prev, next *Call[T]
	arrival    uint64

	// wake is how a caller in await learns that there is a result. It gets one
	// value for each Do, after the phase and the error are set, unless the
	// caller has abandoned the call itself. Its buffer holds that value, so
	// sending never blocks. It is nil for a posted call, which has no caller,
	// and for a call that has only been inline.
	wake chan struct{}

	// Only for inline calls, which need no other memory. inlineBatch is the
	// batch of inlineTrip: the call itself. expired is closed when the deadline
	// passes while Send runs. It is nil from then on, and a later Do makes
	// another one.
	inlineTrip  roundTrip[T]
	inlineBatch [1]*Call[T]
	expired     chan struct{}
}

// phase is where a call is in its life cycle. The table has all changes of a
// phase. The queue's lock is held at each of them.
//
//	from       to         when                                     where
//	---------  ---------  ---------------------------------------  -----------
//	(new)      waiting    the call arrives in Do or Post           push
//	(new)      in flight  the call arrives in Do and is inline     beginInline
//	waiting    in flight  a round trip takes it along              takeBatch
//	waiting    abandoned  the caller stops waiting: not sent       abandon
//	in flight  abandoned  the caller stops waiting: maybe sent     abandon
//	in flight  done       Send has returned                        complete
//	in flight  done       Send has ended its goroutine             endRun
//	in flight  done       Send has ended in any way, inline        endInline
//
// (new) is a zero Call, or one that is done and used again.
//
// The reply, the deadline and the cancellation of a call race with each other.
// The first to get the lock decides between done and abandoned, and the others
// find the phase changed. So each caller gets exactly one result.
//
// An abandoned call that is in flight stays in its batch, because Send uses the
// batch without the lock. When Send has returned, the call goes to OnAbandoned.
//
// The queue never abandons an inline call in flight, because its caller is in
// Send.
type phase uint8

const (
	phaseWaiting phase = iota
	phaseInFlight
	phaseDone
	phaseAbandoned
)

// push appends a new call to the list of waiting calls. q.mu must be held.
func (q *Queue[T]) push(call *Call[T]) {
	if q.newest == nil {
		q.oldest = call
	} else {
		q.newest.next, call.prev = call, q.newest
	}
	q.newest = call
	q.arrivals++
	call.phase, call.arrival = phaseWaiting, q.arrivals
}

// remove removes a waiting call from any place in the list. The code that calls
// it sets the next phase. q.mu must be held.
func (q *Queue[T]) remove(call *Call[T]) {
	if call.prev == nil {
		q.oldest = call.next
	} else {
		call.prev.next = call.next
	}
	if call.next == nil {
		q.newest = call.prev
	} else {
		call.next.prev = call.prev
	}
	call.prev, call.next = nil, nil
}
