// Package flight lets callers share round trips to a server. Whoever comes while
// fewer than Most are under way sets off at once, alone; whoever comes while all are
// out waits, and the next one takes all of those along. So a lone caller pays for
// nothing, no timer fills a batch, and the busier it is, the more is shared.
//
// Where the way is long, to wait for the next landing is too: whoever comes a Pause after the last
// one has set off needs no landing, as long as no more than More are under way beside those.
//
// A caller waits no longer than its context or its deadline says, whatever becomes of the flight;
// one that carries out its own, no longer than its deadline.
package batch

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
)

// ErrClosed is what a caller gets who comes after Close.
var ErrClosed = errors.New("closed")

// ErrNotSent and ErrUnknown are what a caller gets whose deadline has passed: the first if its job was never
// sent, the second if it was and there is no saying what became of it. Both are a
// [context.DeadlineExceeded].
var (
	ErrNotSent = fmt.Errorf("timed out before the command could be sent: %w", context.DeadlineExceeded)
	ErrUnknown = fmt.Errorf("timed out: no connection in time, or no reply: %w", context.DeadlineExceeded)
)

type Settings struct {
	MaxInFlight   int
	ExtraInFlight int
	ExtraAfter    time.Duration
	MaxLate       int
	MaxCalls      int
}

// A Queue is where callers wait. Its exported fields are set before first use.
type Queue[T any] struct {
	// Send carries out a batch and comes back when it knows what became of all of
	// it. Its context has a deadline, which a client may make use of, but is never done, unless
	// it is called on the goroutine of the batch's one caller.
	Send func(ctx context.Context, batch []*Call[T])

	// Panicked is told what Send has panicked with, where no caller's own goroutine
	// does, for each job of the batch: it counts as carried out then.
	Panicked func(job *Call[T], with any)

	// Landed is told of those of a batch whose callers have waited for it, before they are told,
	// unless it is one on its own goroutine.
	Answered func(jobs []*Call[T])

	// Left is told of each job that was carried out for a caller who did not wait
	// for it, before Send is called again by the same flight.
	Abandoned func(job *Call[T])

	Settings
	Now func() int64

	mu      sync.Mutex
	first   *Call[T] // of those waiting
	last    *Call[T]
	flights []*flight[T] // all that are under way
	flying  int          // of them, those that are not late
	late    int
	set     int64  // when the last one has set off
	pushed  uint64 // counts jobs
	timer   *time.Timer
	due     time.Time // when the timer goes off; zero if it is not set
	closed  bool
	landed  sync.Cond // uses mu; told when a flight ends
}

// Call is one caller's. It may be used again after a Do that returned nil, and only then.
type Call[T any] struct {
	Value T

	// Cancelled is set, for Queue.Left, if the caller's context was cancelled; else its time was over.
	Cancelled bool

	ctx        context.Context
	deadline   time.Time
	phase      phase
	err        error         // for a caller that was not told by its context
	done       chan struct{} // told once for each Do
	over       chan struct{} // of a flight of its own: closed at its deadline
	flight     *flight[T]
	here       flight[T] // of its own, on its caller's goroutine
	alone      [1]*Call[T]
	number     uint64 // of pushed
	prev, next *Call[T]
}

type phase uint8

const (
	waiting phase = iota
	flying
	left // its caller does not wait any more
	done
)

type flight[T any] struct {
	batch   []*Call[T]
	here    bool   // on its caller's goroutine, and so over by its deadline
	late    bool   // callers have given up on it
	boarded uint64 // the pushed of when its batch went on board
}

// Do has job carried out, and returns nil when it has been. Where ctx is done at the start, or
// cancelled before, the error is ctx's; where its deadline or the other one is over before,
// [ErrNotSent] or [ErrUnknown]. A zero deadline is none, and now is what Queue.Now has just shown.
//
// If here is true and nobody else would have to wait for it, that is done on the caller's own
// goroutine, which saves waking up another. The caller sees to it that Send comes back by the
// deadline then: its context is done at that, for what Send may have to wait for before anything
// is sent.
func (q *Queue[T]) Do(ctx context.Context, now int64, deadline time.Time, job *Call[T], here bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	job.ctx, job.deadline, job.err = ctx, deadline, nil
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	q.watch(deadline)
	if here && q.first == nil && q.mayFly(now) {
		return q.flyHere(now, job)
	}
	if job.done == nil {
		job.done = make(chan struct{}, 1)
	}
	q.push(job)
	q.takeOff(now)
	q.mu.Unlock()

	// A timer for each caller, and a select that has it, would cost more than all of the rest.
	// So it is the queue that watches deadlines.
	if ctx.Done() == nil {
		<-job.done
		return job.err
	}
	select {
	case <-job.done:
		return job.err
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if job.phase == done || job.phase == left { // just now
		<-job.done
		return job.err
	}
	q.leave(job, errors.Is(ctx.Err(), context.Canceled))
	return job.err
}

// flyHere is a flight on the goroutine of its one caller. q.mu is held, and let go of.
func (q *Queue[T]) flyHere(now int64, job *Call[T]) error {
	if job.over == nil {
		job.over = make(chan struct{})
	}
	f := &job.here
	job.alone[0] = job
	job.phase, job.flight = flying, f
	f.batch, f.here = job.alone[:], true
	q.begin(f, now)
	q.mu.Unlock()
	defer func() { // also where a client's hook panics
		q.mu.Lock()
		defer q.mu.Unlock()
		if job.phase == left {
			job.over = nil
		}
		q.end(f)
	}()
	alone := contextOf(f.batch)
	alone.over = job.over
	q.Send(alone, f.batch)
	if err := job.ctx.Err(); errors.Is(err, context.Canceled) {
		job.Cancelled = true
		q.Abandoned(job)
		return err
	}
	return nil
}

// grain is how far apart the queue looks for callers whose time is over, while there are
// many of them: the first is told at once.
const grain = 200 * time.Microsecond

// watch sees to it that overdue runs at a deadline. q.mu is held.
func (q *Queue[T]) watch(deadline time.Time) {
	if deadline.IsZero() || !q.due.IsZero() && !deadline.Before(q.due) {
		return
	}
	q.due = deadline
	if wait := time.Until(deadline); q.timer == nil {
		q.timer = time.AfterFunc(wait, q.overdue)
	} else {
		q.timer.Reset(wait)
	}
}

// overdue ends the waiting of callers whose time is over.
func (q *Queue[T]) overdue() {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	var over []*Call[T]
	var next time.Time
	look := func(job *Call[T]) {
		switch {
		case job.deadline.IsZero() || job.phase == left:
		case !job.deadline.After(now):
			over = append(over, job)
		case next.IsZero() || job.deadline.Before(next):
			next = job.deadline
		}
	}
	for job := q.first; job != nil; job = job.next {
		look(job)
	}
	for _, f := range q.flights {
		for _, job := range f.batch {
			look(job)
		}
	}
	for _, job := range over {
		if job.phase == flying && job.flight.here {
			job.phase = left
			close(job.over)
			continue
		}
		q.leave(job, false)
		job.done <- struct{}{}
	}
	q.due = time.Time{}
	if soonest := now.Add(grain); !next.IsZero() && next.Before(soonest) {
		next = soonest
	}
	q.watch(next)
}

// leave notes that a job's caller waits no longer: it has gone, or its time is over. q.mu is held.
func (q *Queue[T]) leave(job *Call[T], gone bool) {
	was := job.phase
	job.phase, job.Cancelled = left, gone
	switch {
	case was == waiting:
		q.remove(job)
		job.err = ErrNotSent
		if !gone { // it has waited for flights that were out all the time
			q.giveUp(func(f *flight[T]) bool { return f.boarded < job.number })
		}
	case !gone:
		job.err = ErrUnknown
		q.giveUp(func(f *flight[T]) bool { return f == job.flight })
	}
	if gone {
		job.err = job.ctx.Err()
	}
}

// giveUp makes flights late, so that others need not wait for them as well. q.mu is held.
func (q *Queue[T]) giveUp(which func(*flight[T]) bool) {
	for _, f := range q.flights {
		if !f.here && !f.late && which(f) && q.late < q.MaxLate {
			f.late = true
			q.flying--
			q.late++
			q.takeOff(0)
		}
	}
}

// mayFly reports whether one more flight may set off now; 0 is no Pause after any. q.mu is held.
func (q *Queue[T]) mayFly(now int64) bool {
	return q.flying < q.MaxInFlight || q.flying < q.MaxInFlight+q.ExtraInFlight && now-q.set >= int64(q.ExtraAfter)
}

// takeOff starts a flight if there is somebody to take along. q.mu is held.
func (q *Queue[T]) takeOff(now int64) {
	if q.first != nil && q.mayFly(now) {
		f := &flight[T]{boarded: q.pushed}
		q.begin(f, now)
		go q.fly(f)
	}
}

// begin counts a flight that sets off. q.mu is held.
func (q *Queue[T]) begin(f *flight[T], now int64) {
	q.flights = append(q.flights, f)
	q.flying++
	q.set = max(q.set, now)
}

func (q *Queue[T]) fly(f *flight[T]) {
	var batch, kept, gone []*Call[T]
	defer func() { // also where a client's hook has ended this goroutine
		q.mu.Lock()
		defer q.mu.Unlock()
		for _, job := range f.batch {
			if job.phase == flying && job.done != nil {
				job.phase, job.err = left, ErrUnknown
				job.done <- struct{}{}
			}
		}
		q.end(f)
	}()
	q.mu.Lock()
	for again := false; ; again = true {
		if q.ExtraInFlight > 0 {
			now := q.Now()
			if again && q.flying > q.MaxInFlight && now-q.set < int64(q.ExtraAfter) {
				break // it was one too many: others are out, and the way is short
			}
			q.set = now
		}
		batch = q.board(f, batch[:0])
		if len(batch) == 0 {
			break
		}
		q.mu.Unlock()
		q.send(batch)
		q.mu.Lock()

		f.batch = nil
		for _, job := range batch {
			if job.phase == left {
				gone = append(gone, job)
			} else {
				job.phase = done
				kept = append(kept, job)
			}
		}
		q.mu.Unlock()
		q.Answered(kept)
		for _, job := range kept {
			if job.done != nil {
				job.done <- struct{}{} // and from here on it is its caller's again
			}
		}
		for _, job := range gone {
			q.Abandoned(job)
		}
		clear(batch)
		clear(kept)
		clear(gone)
		kept, gone = kept[:0], gone[:0]
		if len(batch) > 1 {
			// Who was told of this one may well want another decision at once. They run before
			// the next flight sets off, so that it is not the first of them alone.
			runtime.Gosched()
		}
		q.mu.Lock()
	}
	q.mu.Unlock()
}

// end is that of a flight, which those who wait for all to be over are told of. q.mu is held.
func (q *Queue[T]) end(f *flight[T]) {
	if f.late {
		q.late--
	} else {
		q.flying--
	}
	q.takeOff(0)
	i := slices.Index(q.flights, f)
	q.flights = slices.Delete(q.flights, i, i+1)
	if q.landed.L != nil {
		q.landed.Broadcast()
	}
}

func (q *Queue[T]) send(batch []*Call[T]) {
	defer func() {
		if with := recover(); with != nil {
			for _, job := range batch {
				q.Panicked(job, with)
			}
		}
	}()
	q.Send(contextOf(batch), batch)
}

// Post has a job carried out that nobody waits for, also from Left after Close.
func (q *Queue[T]) Post(job *Call[T]) {
	job.ctx = context.Background()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.push(job)
	q.takeOff(0)
}

// board takes along who waits, unless the flight is late already. q.mu is held.
func (q *Queue[T]) board(f *flight[T], batch []*Call[T]) []*Call[T] {
	for !f.late && q.first != nil && len(batch) < q.MaxCalls {
		job := q.first
		q.remove(job)
		job.phase, job.flight = flying, f
		batch = append(batch, job)
	}
	f.batch, f.boarded = batch, q.pushed
	return batch
}

// Close has all who come later told [ErrClosed], and returns when no flight is under way.
func (q *Queue[T]) Close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.Wait()
}

// Wait returns when no flight is under way.
func (q *Queue[T]) Wait() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.landed.L = &q.mu
	for len(q.flights) > 0 {
		q.landed.Wait()
	}
}

func (q *Queue[T]) push(job *Call[T]) {
	if q.last == nil {
		q.first = job
	} else {
		q.last.next, job.prev = job, q.last
	}
	q.last = job
	q.pushed++
	job.phase, job.number = waiting, q.pushed
}

func (q *Queue[T]) remove(job *Call[T]) {
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

func contextOf[T any](batch []*Call[T]) *flightContext {
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
