// This file has the steps of a round trip, from its start to its end. It runs
// on a goroutine that the queue has started (run), or inline, on the goroutine
// of its one caller (runInline). When a round trip may start is in queue.go.
// How callers wait, and what happens if they stop waiting, is in deadlines.go.

package batch

import (
	"context"
	"errors"
	"runtime"
	"slices"
)

// roundTrip is a round trip in flight. When the replies to its batch have
// arrived and other calls wait, the same goroutine goes on with the next batch,
// and uses the roundTrip for it, too. A roundTrip ends when its goroutine finds
// no more calls. An inline one ends after its one call. The queue's lock guards
// all fields.
type roundTrip[T any] struct {
	calls  []*Call[T] // the batch that is in flight; empty before and after that
	inline bool       // it runs on the goroutine of its one caller

	// stalled is set when a caller gives up on the round trip, and stays set. A
	// stalled round trip takes no further batch, because another one may have
	// replaced it.
	stalled bool

	// taking is set while the goroutine is about to take calls: before its first
	// batch, and from the replies to a batch until it takes the next one. See mayStart.
	taking bool

	// lastArrival is Queue.arrivals when the goroutine last took calls, or was
	// started. A call with a higher number arrived later, so the round trip has
	// been in flight for the whole time that this call has waited.
	lastArrival uint64
}

// begin adds a round trip that starts at now, an instant by Now or noExtra.
// q.mu must be held.
func (q *Queue[T]) begin(trip *roundTrip[T], now int64) {
	q.trips = append(q.trips, trip)
	q.active++
	q.lastStart = max(q.lastStart, now)
}

// setTaking sets trip.taking. q.mu must be held.
func (q *Queue[T]) setTaking(trip *roundTrip[T], taking bool) {
	switch {
	case taking && !trip.taking:
		q.taking++
	case !taking && trip.taking:
		q.taking--
	}
	trip.taking = taking
}

// end removes a round trip, and starts another one if calls wait. For example,
// a call that has arrived during an inline round trip may have no other one to
// go along with. q.mu must be held.
func (q *Queue[T]) end(trip *roundTrip[T]) {
	q.setTaking(trip, false)
	if trip.stalled {
		q.stalled--
	} else {
		q.active--
	}
	i := slices.Index(q.trips, trip)
	q.trips = slices.Delete(q.trips, i, i+1)
	q.start(noExtra)
	if q.ended.L != nil {
		q.ended.Broadcast()
	}
}

// run carries out one batch after another, until no call waits. It is the whole
// life of the goroutine that start starts. It takes q.mu in short steps, and
// calls all callbacks without it.
func (q *Queue[T]) run(trip *roundTrip[T]) {
	defer q.reportIdle() // after the next one
	defer q.endRun(trip)
	var batch, abandoned []*Call[T] // all batches use the same memory
	for isFirst := true; ; isFirst = false {
		batch = q.takeBatch(trip, batch[:0], isFirst)
		if len(batch) == 0 {
			return
		}
		q.send(batch)

		var answered []*Call[T]
		answered, abandoned = q.complete(trip, batch, abandoned[:0])
		q.OnDone(answered)
		for _, call := range answered {
			if call.wake != nil {
				call.wake <- struct{}{} // from here on the caller may use it again
			}
		}
		for _, call := range abandoned {
			q.OnAbandoned(call)
		}
		clear(batch) // let the garbage collector have the calls
		clear(abandoned)

		if len(batch) > 1 {
			// Callers that have just got a reply often want another decision at
			// once, but have not run yet. Gosched lets them run first, so that
			// their calls share the next batch. Without it, this goroutine
			// would find no call and end, and the first of them would start the
			// next round trip for its call alone. With 64 callers and round
			// trips of 10 µs, batches then have 1.2 calls instead of about 10,
			// and the callers together make a fifth of the calls per second.
			//
			// A batch of one has woken at most one caller. There are no others
			// to wait for, and a lone caller would only lose time.
			runtime.Gosched()
		}
	}
}

// takeBatch takes up to MaxCalls calls off the list of waiting calls. They are
// in flight from then on. It appends them to batch, which is empty and only
// lends its memory. If it returns none, the round trip must end. isFirst says
// that the round trip has had no batch yet. takeBatch takes q.mu.
func (q *Queue[T]) takeBatch(trip *roundTrip[T], batch []*Call[T], isFirst bool) []*Call[T] {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.setTaking(trip, false)
	now := noExtra
	if q.Extra > 0 {
		now = q.Now()
	}
	if trip.stalled || !isFirst && !q.hasRoom(now, q.active-1) {
		// A round trip that could not start now beside the others must not go on either.
		// They take the waiting calls along soon. If there are extra ones, it does not
		// matter which were started as extra ones: the first to get here end until
		// MaxInFlight are left.
		return nil
	}
	q.lastStart = max(q.lastStart, now)
	for q.oldest != nil && len(batch) < q.MaxCalls {
		call := q.oldest
		q.remove(call)
		call.phase, call.trip = phaseInFlight, trip
		batch = append(batch, call)
	}
	trip.calls, trip.lastArrival = batch, q.arrivals
	q.start(noExtra) // there may be more than MaxCalls
	return batch
}

// send calls Send for a batch, and OnPanic for each call of it if Send panics.
// It returns when Send does, and takes no lock.
func (q *Queue[T]) send(batch []*Call[T]) {
	defer func() {
		if with := recover(); with != nil {
			for _, call := range batch {
				q.OnPanic(call, with)
			}
		}
	}()
	q.Send(contextOf(batch), batch)
}

// complete notes that Send has returned for a batch. It returns the calls whose
// callers still wait, which are done now, in the memory of batch. It appends
// the abandoned calls to abandoned. Both keep the order of arrival. It takes
// q.mu.
func (q *Queue[T]) complete(trip *roundTrip[T], batch, abandoned []*Call[T]) (answered, _ []*Call[T]) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.setTaking(trip, !trip.stalled)
	trip.calls = nil // before the memory that it shares with batch changes
	answered = batch[:0]
	for _, call := range batch {
		if call.phase == phaseAbandoned {
			abandoned = append(abandoned, call)
		} else {
			call.phase = phaseDone
			answered = append(answered, call)
		}
	}
	return answered, abandoned
}

// reportIdle calls OnIdle if the queue is idle. It takes q.mu.
func (q *Queue[T]) reportIdle() {
	if q.OnIdle != nil && q.Idle() {
		q.OnIdle()
	}
}

// endRun ends the round trip of a goroutine that ends. It is deferred, because
// a hook in Send may call runtime.Goexit. Then trip.calls still has the batch,
// and callers that still wait get ErrUnknown. The abandoned calls of that batch
// are not reported, because there is no outcome. It takes q.mu and may start a
// goroutine.
func (q *Queue[T]) endRun(trip *roundTrip[T]) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, call := range trip.calls {
		if call.phase == phaseInFlight && call.wake != nil {
			call.phase, call.err = phaseDone, ErrUnknown
			call.wake <- struct{}{}
		}
	}
	q.end(trip)
}

// beginInline starts the round trip of an inline call at now. It returns the
// channel that is closed at the call's deadline. q.mu must be held, and must be
// unlocked before runInline.
func (q *Queue[T]) beginInline(call *Call[T], now int64) (expired <-chan struct{}) {
	if call.expired == nil {
		call.expired = make(chan struct{})
	}
	call.inlineBatch[0] = call
	trip := &call.inlineTrip
	trip.calls, trip.inline = call.inlineBatch[:], true
	call.phase, call.trip = phaseInFlight, trip
	q.begin(trip, now)
	return call.expired
}

// runInline carries out an inline call on the goroutine of its caller. It
// returns when Send does, with the result of Do. It calls the callbacks without
// q.mu, and takes it at the end.
func (q *Queue[T]) runInline(call *Call[T], expired <-chan struct{}) error {
	defer q.endInline(call)
	ctx := contextOf(call.inlineBatch[:])
	ctx.expired = expired
	q.Send(ctx, call.inlineBatch[:])
	if err := call.ctx.Err(); errors.Is(err, context.Canceled) {
		call.Cancelled = true
		q.OnAbandoned(call)
		return err
	}
	return nil
}

// endInline ends the round trip of an inline call. It is deferred, because a
// hook in Send may panic or call runtime.Goexit. It takes q.mu, and may start a
// goroutine for calls that have arrived in the meantime.
func (q *Queue[T]) endInline(call *Call[T]) {
	q.mu.Lock()
	defer q.mu.Unlock()
	call.phase = phaseDone
	q.end(&call.inlineTrip)
}
