// Package flight lets callers share round trips to a server. Whoever comes while
// fewer than Most are under way sets off at once, alone; whoever comes while all are
// out waits, and the next one takes all of those along. So a lone caller pays for
// nothing, no timer fills a batch, and the busier it is, the more is shared.
//
// A caller waits no longer than its context or its deadline says, whatever becomes of the flight.
package flight

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// ErrUnsent and ErrUnknown are what a caller gets whose deadline has passed: the first if its job was never
// sent, the second if it was and there is no saying what became of it. Both are a
// [context.DeadlineExceeded].
var (
	ErrUnsent  = fmt.Errorf("timed out before the command could be sent: %w", context.DeadlineExceeded)
	ErrUnknown = fmt.Errorf("timed out: no connection in time, or no reply: %w", context.DeadlineExceeded)
)

// A Queue is where callers wait. Its exported fields are set before first use.
type Queue[T any] struct {
	// Send carries out a batch and comes back when it knows what became of all of
	// it. Its context has no end, but a deadline, which a client may make use of.
	Send func(ctx context.Context, batch []*Job[T])

	// Panicked is told what Send has panicked with, where no caller's own goroutine
	// does, for each job of the batch: it counts as carried out then.
	Panicked func(job *Job[T], with any)

	// Left is told of each job that was carried out for a caller who did not wait
	// for it, before Send is called again by the same flight.
	Left func(job *Job[T])

	Most  int // flights under way at once
	Late  int // and how many more, where callers have given up on one of those
	Batch int // jobs in one flight

	mu     sync.Mutex
	first  *Job[T] // of those waiting
	last   *Job[T]
	flying int
	late   int
	active []*flight // those that are not late; DoHere's are none
	pushed uint64    // counts jobs
	landed sync.Cond // uses mu; told when a flight ends
}

// Job is one caller's. It may be used again after a Do that returned nil, and only then.
type Job[T any] struct {
	Value T

	// Gone is set, for Queue.Left, if the caller's context was cancelled; else its time was over.
	Gone bool

	alone      [1]*Job[T] // itself, as a batch
	over       overdue    // of a DoHere
	ctx        context.Context
	deadline   time.Time
	done       chan struct{}
	timer      *time.Timer
	phase      phase
	flight     *flight
	number     uint64 // of pushed
	prev, next *Job[T]
}

// DoHere is Do on the caller's own goroutine, which saves waking up another, if
// nobody else would have to wait for it; else it does nothing and returns false. The
// caller sees to it that Send comes back by the deadline. Its context is done then, for what
// Send may have to wait for before anything is sent.
func (q *Queue[T]) DoHere(ctx context.Context, deadline time.Time, job *Job[T]) bool {
	q.mu.Lock()
	if q.first != nil || q.flying == q.Most {
		q.mu.Unlock()
		return false
	}
	q.flying++
	q.mu.Unlock()
	job.ctx, job.deadline, job.alone[0] = ctx, deadline, job
	defer func() { // also where a client's hook panics
		job.over.stop()
		q.mu.Lock()
		q.flying--
		q.takeOff()
		q.land()
		q.mu.Unlock()
	}()
	alone := contextOf(job.alone[:])
	alone.over = job.over.start(deadline)
	q.Send(alone, job.alone[:])
	return true
}

// overdue is a channel that is closed at a deadline, and used again where it was not.
type overdue struct {
	closed chan struct{}
	timer  *time.Timer
}

func (o *overdue) start(deadline time.Time) <-chan struct{} {
	if o.timer != nil {
		o.timer.Reset(time.Until(deadline))
		return o.closed
	}
	closed := make(chan struct{})
	o.closed, o.timer = closed, time.AfterFunc(time.Until(deadline), func() { close(closed) })
	return closed
}

func (o *overdue) stop() {
	if !o.timer.Stop() {
		*o = overdue{}
	}
}

type phase uint8

const (
	waiting phase = iota
	flying
	left // its caller does not wait any more
	done
)

type flight struct {
	late    bool   // callers have given up on it
	boarded uint64 // the pushed of when its batch went on board
}

// Do has job carried out, and returns nil when it has been. Where ctx is done at the start, or
// cancelled before, the error is ctx's; where its deadline or the other one is over before,
// [ErrUnsent] or [ErrUnknown]. A zero deadline is none.
func (q *Queue[T]) Do(ctx context.Context, deadline time.Time, job *Job[T]) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var over <-chan time.Time
	if !deadline.IsZero() {
		if job.timer == nil {
			job.timer = time.NewTimer(time.Until(deadline))
		} else {
			job.timer.Reset(time.Until(deadline))
		}
		defer job.timer.Stop()
		over = job.timer.C
	}
	if job.done == nil {
		job.done = make(chan struct{}, 1)
	}
	job.ctx, job.deadline, job.phase = ctx, deadline, waiting

	q.mu.Lock()
	q.push(job)
	q.takeOff()
	q.mu.Unlock()

	select {
	case <-job.done:
		return nil
	case <-ctx.Done():
	case <-over:
	}
	return q.leave(job)
}

func (q *Queue[T]) leave(job *Job[T]) error {
	q.mu.Lock()
	was := job.phase
	if was == done {
		q.mu.Unlock()
		<-job.done
		return nil
	}
	defer q.mu.Unlock()
	gone := errors.Is(job.ctx.Err(), context.Canceled)
	switch was {
	case waiting:
		q.remove(job)
		if !gone { // it has waited for flights that were out all the time
			q.giveUp(func(f *flight) bool { return f.boarded < job.number })
		}
	case flying:
		if !gone {
			q.giveUp(func(f *flight) bool { return f == job.flight })
		}
	}
	job.phase = left
	switch {
	case gone:
		job.Gone = true
		return job.ctx.Err()
	case was == waiting:
		return ErrUnsent
	}
	return ErrUnknown
}

// giveUp makes flights late, so that others need not wait for them as well. q.mu is held.
func (q *Queue[T]) giveUp(which func(*flight) bool) {
	q.active = slices.DeleteFunc(q.active, func(f *flight) bool {
		if !which(f) || q.late == q.Late {
			return false
		}
		f.late = true
		q.flying--
		q.late++
		return true
	})
	q.takeOff()
}

// takeOff starts a flight if there is somebody to take along. q.mu is held.
func (q *Queue[T]) takeOff() {
	if q.first != nil && q.flying < q.Most {
		q.flying++
		f := &flight{boarded: q.pushed}
		q.active = append(q.active, f)
		go q.fly(f)
	}
}

func (q *Queue[T]) fly(f *flight) {
	var batch, gone []*Job[T]
	q.mu.Lock()
	for {
		batch = q.board(f, batch[:0])
		if len(batch) == 0 || f.late {
			break
		}
		q.mu.Unlock()
		q.send(batch)
		q.mu.Lock()

		kept := batch[:0]
		for _, job := range batch {
			if job.phase == left {
				gone = append(gone, job)
			} else {
				job.phase = done
				kept = append(kept, job)
			}
		}
		q.mu.Unlock()
		for _, job := range kept {
			if job.done != nil {
				job.done <- struct{}{} // and from here on it is its caller's again
			}
		}
		for _, job := range gone {
			q.Left(job)
		}
		clear(batch[:cap(batch)])
		clear(gone)
		gone = gone[:0]
		q.mu.Lock()
	}
	if f.late {
		q.late--
	} else {
		q.flying--
		q.active = slices.DeleteFunc(q.active, func(other *flight) bool { return other == f })
	}
	q.land()
	q.mu.Unlock()
}

func (q *Queue[T]) send(batch []*Job[T]) {
	defer func() {
		if with := recover(); with != nil {
			for _, job := range batch {
				q.Panicked(job, with)
			}
		}
	}()
	q.Send(contextOf(batch), batch)
}

// Post has a job carried out that nobody waits for.
func (q *Queue[T]) Post(job *Job[T]) {
	job.ctx, job.phase = context.Background(), waiting
	q.mu.Lock()
	defer q.mu.Unlock()
	q.push(job)
	q.takeOff()
}

// land tells those who wait for the end of all flights. q.mu is held.
func (q *Queue[T]) land() {
	if q.landed.L != nil {
		q.landed.Broadcast()
	}
}

// board takes along who waits, unless the flight is late already. q.mu is held.
func (q *Queue[T]) board(f *flight, batch []*Job[T]) []*Job[T] {
	for !f.late && q.first != nil && len(batch) < q.Batch {
		job := q.first
		q.remove(job)
		job.phase, job.flight = flying, f
		batch = append(batch, job)
	}
	f.boarded = q.pushed
	return batch
}

// Wait returns when no flight is under way.
func (q *Queue[T]) Wait() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.landed.L = &q.mu
	for q.flying+q.late > 0 {
		q.landed.Wait()
	}
}

func (q *Queue[T]) push(job *Job[T]) {
	if q.last == nil {
		q.first = job
	} else {
		q.last.next, job.prev = job, q.last
	}
	q.last = job
	q.pushed++
	job.number = q.pushed
}

func (q *Queue[T]) remove(job *Job[T]) {
	if job.prev == nil {
		q.first = job.next
	} else {
		job.prev.next = job.next
	}
	if job.next == nil {
		q.last = job.prev
	} else {
		job.next.prev = job.prev
	}
	job.prev, job.next = nil, nil
}

// flightContext has the values of the caller who flies alone, so that a trace goes on,
// and the latest deadline of all. Unless that caller flies it itself it is never done: what
// has been sent is waited for.
type flightContext struct {
	context.Context
	deadline time.Time
	over     <-chan struct{}
}

func (c *flightContext) Deadline() (time.Time, bool) { return c.deadline, !c.deadline.IsZero() }
func (c *flightContext) Done() <-chan struct{}       { return c.over }

func (c *flightContext) Err() error {
	select {
	case <-c.over:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func contextOf[T any](batch []*Job[T]) *flightContext {
	c := &flightContext{Context: context.Background(), deadline: batch[0].deadline}
	if len(batch) == 1 {
		c.Context = batch[0].ctx
	}
	for _, job := range batch[1:] {
		if job.deadline.IsZero() || !c.deadline.IsZero() && job.deadline.After(c.deadline) {
			c.deadline = job.deadline
		}
	}
	return c
}
