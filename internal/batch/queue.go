// Package batch lets the callers of one process share round trips to a server.
//
// A caller passes a [Call] to [Queue.Do] and waits for the reply. If few enough
// round trips are in flight, one starts at once for this call alone. So a lone
// caller never waits for others, and no timer delays a batch until it is full.
// Otherwise the call waits. The next round trip takes along all calls that wait
// by then, as one batch. The busier the callers are, the larger the batches
// get.
//
//	Do, Post ---> waiting ---> in flight ---> done
//	                 |             |
//	                 +------+------+
//	                        v
//	                    abandoned
//
// A caller stops waiting when its deadline passes or its context is cancelled,
// whatever its round trip does. Its call is then abandoned. What was sent
// cannot be called back, so the round trip goes on. [Queue.OnAbandoned] gets the
// call when the reply has arrived.
//
// The package does not know what a call asks for, how a batch is sent, or which
// calls of a batch can share a command. That is all in [Queue.Send].
//
// The files:
//
//	queue.go      Settings and Queue, Do and Post, when a round trip may start
//	call.go       Call, its life cycle, the list of waiting calls
//	roundtrip.go  a round trip from its start to its end
//	deadlines.go  callers that stop waiting, and stalled round trips
//	context.go    the context that Send gets
package batch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// ErrClosed is the error of calls that arrive after [Queue.Close].
var ErrClosed = errors.New("closed")

// A caller whose deadline has passed gets ErrNotSent if its call was never
// handed to Send. It gets ErrUnknown if the call was handed to Send: whether it
// reached the server is not known. Both wrap [context.DeadlineExceeded].
var (
	ErrNotSent = fmt.Errorf("timed out before the command could be sent: %w", context.DeadlineExceeded)
	ErrUnknown = fmt.Errorf("timed out: no connection in time, or no reply: %w", context.DeadlineExceeded)
)

// Settings bound how many round trips a [Queue] has in flight, and how many
// calls share one. Set them before the first use of the queue. MaxInFlight and
// MaxCalls must be at least 1. The zero values of the others turn off what they
// are for. There are never more than MaxInFlight + Extra + MaxStalled
// round trips in flight.
type Settings struct {
	// MaxInFlight is the number of round trips that may be in flight at the
	// same time. Two is a good value. With one, the server has nothing to do
	// while its reply travels and the next batch is written, and the client has
	// nothing to do while the server works. With two, one batch is at the
	// server while the other one travels or is prepared. More of them only make
	// batches smaller, and each batch costs client and server a fixed amount of
	// work.
	MaxInFlight int

	// Extra is the number of further round trips that may be in flight.
	// They are for a busy queue whose server is far away. Without them, a call
	// that arrives just after MaxInFlight round trips have started waits for
	// one of them to end, and then for its own. Its caller waits for almost two
	// round trips, although client and server could both do more.
	//
	// An extra round trip starts when a call arrives and no round trip has
	// started within the last MinInterval. If round trips take less time than
	// that, one of them ends first and the call goes along with the next
	// regular one. So extra round trips only start if latency is high, and
	// there is no need to measure it. They need no timer either: if no further
	// call arrives, the waiting ones go along with the next regular round trip.
	Extra int

	// MinInterval is the least time from the last start of a round trip to the
	// start of an extra one. Each round trip costs client and server some work,
	// and MinInterval must be well above the time that this work takes.
	// Otherwise extra round trips slow down the queue that they should speed
	// up. It must not be zero if Extra is not.
	MinInterval time.Duration

	// Crowd makes batches larger where that pays most. While a round trip with Crowd
	// calls or more is in flight, no other one starts but an extra one: the calls that
	// arrive wait for its end, and go together.
	//
	// This is for a queue beside others, such as the queue of a Cluster's master. While
	// its batch is in flight, client and servers work on the batches of the other queues.
	// A second batch would only divide the same calls into more pieces. A lone server
	// would have nothing to do until the next batch arrives. Fewer callers than Crowd do
	// not notice it. If latency is high, calls wait for at most MinInterval more.
	Crowd int

	// MaxStalled is the largest number of stalled round trips. A round trip
	// becomes stalled when a caller gives up on it, because a deadline has
	// passed. It no longer counts towards MaxInFlight then, so another one can replace it.
	//
	// This is for a server or a connection that hangs. Then only the client's
	// own timeouts end the round trips in flight, which may take seconds. If
	// they were not replaced, all later calls would wait for them and fail
	// without being sent, even if the server has recovered in the meantime.
	//
	// Each stalled round trip occupies a goroutine and a connection until it
	// ends, so their number has a bound. Once MaxStalled round trips are
	// stalled, no other one becomes stalled, and calls wait until one of them
	// ends.
	MaxStalled int

	// MaxCalls is the largest number of calls in one round trip. The first
	// caller of a batch waits until the last call is carried out, so a batch
	// should not take the server much longer than the rest of the round trip
	// takes.
	MaxCalls int
}

// A Queue lets callers share round trips. Set its exported fields before first
// use. Send, OnPanic, OnDone and OnAbandoned are required. Now is required if
// Extra is above zero. A Queue must not be copied after first use.
//
// All methods may be called concurrently. Each takes the queue's lock, but does
// not wait while it holds it.
//
// The callbacks are called without the lock, except Now. Each belongs to a
// round trip and runs on the goroutine that the queue has started for it. For
// an inline call (see [Queue.Do]) that is the goroutine of the caller.
// Different round trips call them concurrently. Only Send may panic or end its
// goroutine.
type Queue[T any] struct {
	Settings

	// Send carries out a batch. It stores each result in the Value of the call,
	// and returns when the outcome of all calls is known. It must not use the
	// calls after that.
	//
	// The context has the latest deadline of the batch, for clients that set
	// the timeouts of a connection by it. It is never done, with one exception:
	// the context of an inline call is done at its deadline. See context.go for
	// the reasons.
	//
	// Send may run hooks that users have added to a client. If one panics, the
	// queue recovers and calls OnPanic; in an inline call the panic goes on to
	// the caller. If one calls runtime.Goexit, the round trip ends and its
	// callers get ErrUnknown; an inline call ends with the goroutine of its
	// caller. In each case the queue goes on with the calls that wait.
	Send func(ctx context.Context, calls []*Call[T])

	// OnPanic gets what Send has panicked with, once for each call of the
	// batch. It should store a failure in the Value of the call, which then
	// counts as carried out. It is not called for inline calls.
	OnPanic func(call *Call[T], with any)

	// OnDone gets the calls of a batch that are done, in order of arrival.
	// They are all calls of the batch except the abandoned ones, so there may
	// be none. It runs after Send, and before Do returns to any of these
	// callers. It must not keep the slice. It is not called for inline calls.
	OnDone func(calls []*Call[T])

	// OnAbandoned gets each call whose caller has stopped waiting while the call
	// was in flight. The result of the call is in its Value, so OnAbandoned can
	// undo what the server has done for nobody, with Post. It runs when Send has
	// returned, after OnDone, and before the same goroutine calls Send again. In
	// an inline call it runs before Do returns. It does not get calls that were
	// never handed to Send.
	OnAbandoned func(call *Call[T])

	// OnIdle is called when a round trip has ended and the queue is idle; see
	// [Queue.Idle]. Nil is not called. It is not called after inline calls.
	OnIdle func()

	// Now returns nanoseconds of a clock that never runs backwards, and is
	// never negative. It is called with the lock held, so it must be fast and
	// must not use the queue.
	Now func() int64

	mu sync.Mutex // guards all fields below; see Call and roundTrip for theirs

	oldest, newest *Call[T] // the ends of the list of waiting calls
	arrivals       uint64   // how many calls have ever been in the list

	trips   []*roundTrip[T] // all round trips in flight
	active  int             // how many of them are not stalled
	stalled int             // how many of them are stalled, at most MaxStalled
	taking  int             // how many of them are about to take calls; none of these is stalled

	// lastStart is when a round trip has last started, by Now. A goroutine that
	// has looked for waiting calls and found none has set it, too. It is only
	// used, and only kept up to date, if Extra is above zero.
	lastStart int64

	timer   *time.Timer // runs expire; nil before the first deadline
	timerAt time.Time   // when timer fires; zero if it is not set

	closed bool
	ended  sync.Cond // a round trip has ended; L is nil until Wait is called
}

// Do queues a call and waits for the result. It returns nil when Send has carried
// out the call: the result is in call.Value. Otherwise the error is one of these:
//
//   - ctx.Err() if ctx is done at the start, or is cancelled before the reply
//   - [ErrNotSent] or [ErrUnknown] if deadline or the deadline of ctx is first
//   - [ErrUnknown] if a hook in Send has called runtime.Goexit
//   - [ErrClosed] if the queue is closed
//
// A zero deadline means none. now is the instant at which the call arrives: what
// Queue.Now has just returned. It is a parameter because most callers have just
// read the clock anyway. If Extra is 0, now is not used, and may be 0.
//
// The caller must not use call while Do runs. It may use call again after Do has
// returned nil, and must drop it after an error.
//
// If inline is true, no call waits, and a round trip may start, Do calls Send
// on its own goroutine. This saves starting one goroutine and waking up
// another, the larger part of what a lone call costs: BenchmarkDo has 0.2 µs
// instead of 1 µs. The price is that Do cannot return before Send does. So
// inline must be false if deadline is zero, or if Send may run on after its
// context is done. An inline call ignores the deadline of ctx: pass the earlier
// one. If ctx is cancelled, Do still waits for the reply, because the reply
// says whether there is anything to give back. It then passes call to
// OnAbandoned and returns ctx.Err().
//
// Do may start a goroutine for a round trip, which may outlast the call.
func (q *Queue[T]) Do(ctx context.Context, now int64, deadline time.Time, call *Call[T], inline bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	call.ctx, call.deadline, call.err = ctx, deadline, nil
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	q.watch(deadline)

	// If other calls wait, they are next. They cannot go along with an inline
	// call, because its context is done at the deadline of its own caller. So
	// this call must wait with them.
	if inline && q.oldest == nil && q.mayStart(now) {
		expired := q.beginInline(call, now)
		q.mu.Unlock()
		return q.runInline(call, expired)
	}

	if call.wake == nil {
		call.wake = make(chan struct{}, 1)
	}
	q.push(call)
	q.start(now)
	q.mu.Unlock()
	return q.await(call)
}

// Post queues a call that no caller waits for, and returns at once. The call
// must be a new one, and must not be used again. Post works on a closed queue,
// too, so that OnAbandoned can give back what calls have taken. It may start a
// goroutine for a round trip, but no extra one: no caller would gain from it.
func (q *Queue[T]) Post(call *Call[T]) {
	call.ctx = context.Background()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.push(call)
	q.start(noExtra)
}

// Close makes Do return [ErrClosed] for all calls that arrive from now on.
// Calls that have arrived before are carried out. Then it waits as [Queue.Wait]
// does. It may be called more than once.
func (q *Queue[T]) Close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.Wait()
}

// Wait returns when no round trip is in flight: regular, extra, stalled or
// inline. The callbacks must not call it, because their own round trip is in flight.
func (q *Queue[T]) Wait() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended.L = &q.mu
	for len(q.trips) > 0 {
		q.ended.Wait()
	}
}

// Idle reports whether no call waits and no round trip is in flight. An idle
// queue has no timer, so nothing refers to it but its owner.
func (q *Queue[T]) Idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.oldest != nil || len(q.trips) > 0 {
		return false
	}
	if q.timer != nil && !q.timerAt.IsZero() {
		q.timer.Stop()
		q.timerAt = time.Time{}
	}
	return true
}

// noExtra is passed in place of an instant by Now if no caller has just arrived,
// so that no extra round trip starts: 0 is never MinInterval after lastStart,
// which is not negative.
const noExtra int64 = 0

// mayStart reports whether one more round trip may start. now is an instant by
// Now, or noExtra. q.mu must be held.
//
// None may start while another one is about to take the calls that wait: its goroutine
// has been started, or has the replies to its last batch and wakes their callers. Such
// callers often want another decision at once. If the first of them could start a
// round trip for its call alone, batches would get smaller: with 64 callers on
// 10,000 keys, 7 calls in place of 9 in a Cluster of three masters, and 22 in
// place of 26 on a single server.
func (q *Queue[T]) mayStart(now int64) bool {
	if q.taking > 0 {
		return false
	}
	return q.hasRoom(now, q.active)
}

// hasRoom reports whether one more round trip may be in flight beside others, which are
// not stalled. now is as in mayStart. q.mu must be held.
func (q *Queue[T]) hasRoom(now int64, others int) bool {
	return others < q.MaxInFlight && !q.crowded() ||
		q.Extra > 0 && others < q.MaxInFlight+q.Extra && now-q.lastStart >= int64(q.MinInterval)
}

// crowded reports whether a round trip with Crowd calls or more is in flight and not
// stalled. q.mu must be held.
func (q *Queue[T]) crowded() bool {
	return q.Crowd > 0 && slices.ContainsFunc(q.trips, func(trip *roundTrip[T]) bool {
		return len(trip.calls) >= q.Crowd && !trip.stalled
	})
}

// start starts a round trip on a new goroutine if a call waits and a round trip
// may start at now. It is called whenever that may have become true: a call
// arrives, a round trip ends or becomes stalled, or one has taken MaxCalls and
// left others. The goroutine takes its calls when it runs, so calls that arrive
// until then are taken along. q.mu must be held.
func (q *Queue[T]) start(now int64) {
	if q.oldest != nil && q.mayStart(now) {
		trip := &roundTrip[T]{lastArrival: q.arrivals}
		q.begin(trip, now)
		q.setTaking(trip, true)
		go q.run(trip)
	}
}
