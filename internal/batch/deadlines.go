// This file has how a caller waits and stops waiting, the timer that watches
// the deadlines of all callers, and how round trips become stalled. What happens
// to an abandoned call when its reply has arrived is in roundtrip.go.
//
// One timer watches all deadlines. A timer for each caller would need an
// allocation, two changes of the runtime's timers and one more case in the
// caller's select. That takes about 0.4 µs per call, more than a whole inline
// call.
//
// The timer is set to the earliest deadline. Timeouts mostly have the same
// length, so a later call has a later deadline and leaves the timer as it is:
// its cost is one comparison. A call that is done leaves the timer as it is,
// too. So the timer fires about once per timeout. It then looks at all calls in
// the queue, and is set to the earliest deadline among them.

package batch

import (
	"context"
	"errors"
	"time"
)

// await waits for the result of a call that was pushed, and returns it. It runs
// on the goroutine of the caller. It takes q.mu only if the call's context is
// done before there is a result, and may start goroutines for round trips then.
func (q *Queue[T]) await(call *Call[T]) error {
	if call.ctx.Done() == nil {
		<-call.wake // expire sends a value, too
		return call.err
	}
	select {
	case <-call.wake:
		return call.err
	case <-call.ctx.Done():
	}
	q.mu.Lock()
	if call.phase == phaseDone || call.phase == phaseAbandoned {
		// There was a result just before. The value for wake was sent or will
		// be soon. Receive it, or the next Do would take it for its own.
		q.mu.Unlock()
		<-call.wake
		return call.err
	}
	q.abandon(call, errors.Is(call.ctx.Err(), context.Canceled))
	q.mu.Unlock()
	return call.err
}

// watch makes sure that expire runs when a deadline passes. A zero deadline is
// none. q.mu must be held.
func (q *Queue[T]) watch(deadline time.Time) {
	if deadline.IsZero() || !q.timerAt.IsZero() && !deadline.Before(q.timerAt) {
		return
	}
	q.timerAt = deadline
	if wait := time.Until(deadline); q.timer == nil {
		q.timer = time.AfterFunc(wait, q.expire)
	} else {
		q.timer.Reset(wait)
	}
}

// expireEvery is the least time from one run of expire to the next that it sets
// the timer for. Each run looks at all calls in the queue. If thousands of them
// have slightly different deadlines, it must not run for each. A caller may
// wait for this much longer than its deadline says.
const expireEvery = 200 * time.Microsecond

// expire ends the wait of all callers whose deadline has passed, and sets the
// timer to the next deadline. It runs on the timer's goroutine. It takes q.mu,
// and may start goroutines for round trips.
func (q *Queue[T]) expire() {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	overdue, earliest := q.overdue(now)
	for _, call := range overdue {
		if call.phase == phaseInFlight && call.trip.inline {
			// The caller is in Send, and Send returns because its context is
			// done.
			close(call.expired)
			call.expired = nil
			continue
		}
		q.abandon(call, false)
		call.wake <- struct{}{}
	}
	q.timerAt = time.Time{}
	if soonest := now.Add(expireEvery); !earliest.IsZero() && earliest.Before(soonest) {
		earliest = soonest
	}
	q.watch(earliest)
}

// overdue returns the calls in the queue whose deadline has passed, if expire
// has not ended their wait already. It also returns the earliest deadline of
// the other calls, or zero. It changes nothing, because expire must not change
// the lists of calls and round trips while they are read. q.mu must be held.
func (q *Queue[T]) overdue(now time.Time) (overdue []*Call[T], earliest time.Time) {
	look := func(call *Call[T]) {
		switch {
		case call.deadline.IsZero():
		case !call.deadline.After(now):
			overdue = append(overdue, call)
		case earliest.IsZero() || call.deadline.Before(earliest):
			earliest = call.deadline
		}
	}
	for call := q.oldest; call != nil; call = call.next {
		look(call)
	}
	for _, trip := range q.trips {
		for _, call := range trip.calls {
			ended := call.phase == phaseAbandoned || trip.inline && call.expired == nil
			if !ended {
				look(call)
			}
		}
	}
	return overdue, earliest
}

// abandon notes that a caller has stopped waiting: its context was cancelled,
// or its deadline has passed. It sets the error of the call. The call must wait
// or be in flight, and must not be inline. q.mu must be held. abandon may start
// goroutines for round trips.
//
// If a deadline has passed, the server or a connection may hang, so the caller
// gives up on the round trips that have kept it waiting. A cancelled context is
// no such sign: it only means that a client has disconnected.
func (q *Queue[T]) abandon(call *Call[T], cancelled bool) {
	sent := call.phase == phaseInFlight
	if !sent {
		q.remove(call)
	}
	call.phase, call.Cancelled = phaseAbandoned, cancelled
	switch {
	case cancelled:
		call.err = call.ctx.Err()
	case sent:
		call.err = ErrUnknown
		q.giveUpOn(call.trip)
	default:
		call.err = ErrNotSent
		// The caller gives up on each round trip that was in flight for the
		// whole time that the call has waited. There may be no other caller to
		// do so: a batch may have only posted calls, or calls whose callers
		// have cancelled.
		for _, trip := range q.trips {
			if trip.lastArrival < call.arrival {
				q.giveUpOn(trip)
			}
		}
	}
}

// giveUpOn marks a round trip as stalled, so that another one can start in its
// place and later calls do not wait for it. It does nothing if MaxStalled round
// trips are stalled. An inline round trip never becomes stalled, because Send
// returns by its deadline. q.mu must be held. giveUpOn may start a goroutine.
func (q *Queue[T]) giveUpOn(trip *roundTrip[T]) {
	if trip.inline || trip.stalled || q.stalled >= q.MaxStalled {
		return
	}
	trip.stalled = true
	q.setTaking(trip, false)
	q.active--
	q.stalled++
	q.start(noExtra)
}
