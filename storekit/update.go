package storekit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/batch"
)

// This file has the way of a call to the backend. The calls for one key are in a lane, which
// is a [batch.Queue]: it runs one update at a time, and each update carries out all calls
// that have arrived while the one before it was under way. A caller stops waiting at its
// deadline, whatever the backend does.

const (
	// maxCalls is the most calls in one update. Their arithmetic takes far less time than an
	// update, so no caller waits noticeably longer for the others.
	maxCalls = 256

	// maxUpdates is the most updates under way at the same time. It bounds the goroutines
	// that a backend which hangs can keep, and the connections that it needs.
	maxUpdates = 256

	// updateTimeout ends an update for callers without a deadline. A limiter's calls have one.
	updateTimeout = 30 * time.Second

	// An update's context ends before its callers stop waiting: by a tenth of the time that
	// they have left, and by maxEarly at most. A backend that has waited in vain for a lock or
	// a connection can then still say that it has written nothing. After a timeout, its
	// callers would not know that, and their units would be missing in the store.
	maxEarly = 50 * time.Millisecond

	// maxTries is how often a call is made that has written nothing. A backend which gives up
	// when it loses a race succeeds after fewer tries, also if 8 processes compete for one
	// record all the time: in TestRaceThatTheBackendGivesUp none of 280,000 calls failed. A
	// backend that is down and says so is asked for some 50 ms.
	maxTries = 12

	// maxBackoff is the longest pause between two tries. The first one is made at once, and
	// the others after a random time which doubles from minBackoff on.
	minBackoff = 500 * time.Microsecond
	maxBackoff = 16 * time.Millisecond
)

// op says what a call asks for.
type op uint8

const (
	opTake op = iota
	opHold
	opAdjust
	opBlock
	opReset
)

// An operation is one caller's call, and its outcome. It shares no memory with the caller,
// because the caller may return before the update ends.
type operation struct {
	op  op
	key string // of the limiter

	take   ratelimit.SharedRequest
	hold   ratelimit.HoldRequest
	units  int64             // of an opAdjust
	at     ratelimit.Instant // of an opAdjust
	block  ratelimit.Block
	limits []ratelimit.Limit // of an opAdjust, opBlock or opReset

	state   atomic.Int32 // stateWaiting, until an update takes the call or its caller leaves
	results []ratelimit.Result
	taken   ratelimit.SharedReply
	held    ratelimit.HoldReply
	charged int64
	err     error
}

// The states of a call. An update that has waited for its turn leaves out the calls whose
// callers have left. So these callers know that their calls have changed nothing.
const (
	stateWaiting int32 = iota
	stateHanded        // to the backend
	stateLeft
)

// own replaces the caller's memory by copies.
func (o *operation) own() {
	o.take.Limits, o.take.Pending = slices.Clone(o.take.Limits), slices.Clone(o.take.Pending)
	o.hold.Limits, o.hold.Pending = slices.Clone(o.hold.Limits), slices.Clone(o.hold.Pending)
	o.limits = slices.Clone(o.limits)
}

// run carries out the call on a record, and sets the outcome. An update may run it again, on
// another record.
func (o *operation) run(r *Record, now time.Time) (err error) {
	switch o.op {
	case opTake:
		o.taken, err = r.Take(now, o.take, o.results)
	case opHold:
		o.held, err = r.Hold(now, o.hold, o.results)
	case opAdjust:
		o.charged, err = r.Adjust(now, o.units, o.at, o.limits)
	case opBlock:
		err = r.Block(now, o.block, o.limits)
	case opReset:
		r.Reset(o.limits)
	}
	return err
}

// A lane has the calls for one key.
type lane struct {
	batch.Queue[*operation]
	callers int // that are in do; guarded by store.mu
}

type call = batch.Call[*operation]

// do carries out a call, alone or together with others for the same key. It waits until that
// is done, until ctx is done, or until the deadline if there is one.
func (s *store) do(ctx context.Context, deadline time.Time, o *operation) (*operation, error) {
	if o.key == "" {
		return nil, s.unchanged(errEmptyKey)
	}
	if s.unusable != nil {
		return nil, s.unchanged(s.unusable)
	}
	if of, ok := ctx.Deadline(); ok && (deadline.IsZero() || of.Before(deadline)) {
		deadline = of
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !deadline.IsZero() && !time.Now().Before(deadline) {
		return nil, &callError{s.prefix, ratelimit.FaultRefused, batch.ErrNotSent}
	}
	o.own()
	key := backendKey(s.prefix, o.key)
	l := s.enter(key)
	defer s.leave(key, l, 1)
	err := l.Do(ctx, 0, deadline, &call{Value: o}, false)
	switch {
	case err == nil:
		err = o.err
	case errors.Is(err, batch.ErrNotSent), errors.Is(err, batch.ErrUnknown) && o.state.CompareAndSwap(stateWaiting, stateLeft):
		err = &callError{s.prefix, ratelimit.FaultRefused, err}
	case errors.Is(err, batch.ErrUnknown):
		err = &callError{s.prefix, ratelimit.FaultUnknown, err}
	}
	if err != nil {
		return nil, err // the update may still write to o
	}
	return o, nil
}

// enter returns the lane of a key. It makes one if no other caller is in it.
func (s *store) enter(key string) *lane {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lanes[key]
	if l == nil {
		l = new(lane)
		// A caller that has given up makes room for another update, up to MaxStalled: so a
		// key is not lost if the backend hangs once.
		l.Settings = batch.Settings{MaxInFlight: 1, MaxStalled: 2, MaxCalls: maxCalls}
		l.Send = func(ctx context.Context, calls []*call) { s.send(ctx, key, calls) }
		l.OnPanic = func(c *call, with any) { c.Value.err = s.failed(fmt.Errorf("the backend has panicked: %v", with)) }
		l.OnDone = func([]*call) {}
		l.OnAbandoned = func(c *call) { giveBack(l, c) }
		l.OnIdle = func() { s.leave(key, l, 0) }
		s.lanes[key] = l
	}
	l.callers++
	return l
}

// leave ends calls in a lane. A lane without callers and updates leaves the table. As long as
// an update is under way, the lane stays, so that no more than its settings allow are under
// way for a key, also if all callers leave early.
func (s *store) leave(key string, l *lane, callers int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.callers -= callers; l.callers == 0 && l.Idle() {
		delete(s.lanes, key)
	}
}

// giveBack gives back the units of a call whose caller has cancelled it, and so does not use
// them. The units of a caller whose deadline has passed stay counted: it may have admitted its
// request. It does not wait. Holds need nothing: the process's next call says how many it has.
func giveBack(l *lane, c *call) {
	o, back := c.Value, &operation{op: opAdjust}
	switch {
	case !c.Cancelled || o.err != nil:
		return
	case o.op == opTake:
		back.units, back.at, back.limits = -o.taken.Granted, o.taken.At, o.take.Limits
	case o.op == opHold && o.hold.Action == ratelimit.HoldAdd && !isDenied(o.results):
		back.units, back.at, back.limits = -o.hold.Units, o.held.At, o.hold.Limits
	}
	if back.units < 0 && len(back.limits) > 0 {
		l.Post(&call{Value: back}) // if that fails, the units stay counted
	}
}

func isDenied(results []ratelimit.Result) bool {
	return slices.ContainsFunc(results, func(r ratelimit.Result) bool { return r.RetryAfter > 0 })
}

// send carries out the calls of one batch, and sets their errors. It runs on a goroutine of
// its own.
func (s *store) send(ctx context.Context, key string, calls []*call) {
	// The queue's context is never done.
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(updateTimeout)
	}
	early := max(0, min(time.Until(deadline)/10, maxEarly))
	ctx, cancel := context.WithDeadline(ctx, deadline.Add(-early))
	defer cancel()

	var err error
	select {
	case s.updates <- struct{}{}:
		defer func() { <-s.updates }() // also if the backend panics
		calls = slices.DeleteFunc(slices.Clone(calls), func(c *call) bool { return !c.Value.state.CompareAndSwap(stateWaiting, stateHanded) })
		if len(calls) > 0 {
			err = s.update(ctx, key, calls)
		}
	case <-ctx.Done():
		err = &callError{s.prefix, ratelimit.FaultRefused, fmt.Errorf("%d updates are under way: %w", maxUpdates, ctx.Err())}
	}
	if err != nil {
		for _, c := range calls {
			c.Value.err = err
		}
	}
}

// update carries out the calls in one update of the backend, which it repeats as long as
// nothing was written. The error is about all of the calls.
func (s *store) update(ctx context.Context, key string, calls []*call) error {
	for try := 1; ; try++ {
		run := updating{calls: calls}
		err := s.backend.Update(ctx, key, run.apply)
		ran, unusable := run.end()
		switch {
		case err == nil && !ran:
			return s.failed(errors.New("the backend has returned nil from Update, and has not called f"))
		case err == nil && errors.Is(unusable, errNotRecord):
			s.forget(ctx, key, calls)
			return nil
		case err == nil && unusable != nil:
			return s.unchanged(fmt.Errorf("the record %q: %w", key, unusable))
		case err == nil:
			for _, c := range calls {
				if c.Value.err != nil {
					c.Value.err = s.unchanged(c.Value.err)
				}
			}
			return nil
		case !errors.Is(err, ErrNotApplied) || try == maxTries || !pause(ctx, try):
			return s.failed(err)
		}
	}
}

// forget carries out calls on a record that cannot be read: a Reset deletes it, and all other
// calls fail.
func (s *store) forget(ctx context.Context, key string, calls []*call) {
	isReset := func(c *call) bool { return c.Value.op == opReset }
	var deleting error
	if slices.ContainsFunc(calls, isReset) {
		deleting = s.backend.Delete(ctx, key)
	}
	for _, c := range calls {
		switch {
		case !isReset(c):
			c.Value.err = s.unchanged(fmt.Errorf("the record %q: %w", key, errNotRecord))
		case deleting != nil:
			c.Value.err = s.failed(deleting)
		default:
			c.Value.err = nil
		}
	}
}

// updating is one call of a backend's Update. It hands out the function f, and takes care that
// f does nothing when Update has returned: a backend may have left a goroutine behind that
// calls it, but by then the calls belong to their callers again.
type updating struct {
	mu       sync.Mutex // held while f runs
	calls    []*call
	over     bool
	ran      bool
	unusable error // of the last run: the record, or the clock
}

func (u *updating) apply(old []byte, now time.Time) (record []byte, ttl time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		return old, ttlOf(old, now)
	}
	u.ran = true
	record, ttl, u.unusable = apply(old, now, u.calls)
	return record, ttl
}

func (u *updating) end() (ran bool, unusable error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	return u.ran, u.unusable
}

// pause waits before the next try. It returns false if ctx is done, or may be done before the
// next try begins: then the callers get the error of the last try, which says more than a timeout.
func pause(ctx context.Context, tries int) bool {
	if tries == 1 {
		return ctx.Err() == nil
	}
	longest := min(minBackoff<<(tries-2), maxBackoff)
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= longest {
		return false
	}
	time.Sleep(rand.N(longest))
	return true
}

// apply carries out calls on a record, one after the other, and sets their outcomes. If
// nothing changes it returns old.
func apply(old []byte, now time.Time, calls []*call) (record []byte, ttl time.Duration, err error) {
	if err := validateTime(now); err != nil {
		return old, ttlOf(old, time.Now()), err
	}
	r, err := DecodeRecord(old)
	if end, ok := endOf(old); ok && end <= now.UnixNano() && errors.As(err, new(errNewer)) {
		r, err = new(Record), nil // the backend may have deleted it already
	}
	if err != nil {
		return old, ttlOf(old, now), err
	}
	for i, c := range calls {
		o := c.Value
		o.err = o.run(r, now)
		o.taken.Newest = i == len(calls)-1
	}
	if !r.Changed() {
		return old, ttlOf(old, now), nil
	}
	record, ttl = r.Append(nil, now)
	return record, ttl, nil
}

// ttlOf returns for how long a record counts that stays as it is. Bytes that are no record
// have no end that is known: they get a day.
func ttlOf(record []byte, now time.Time) time.Duration {
	end, ok := endOf(record)
	switch {
	case len(record) == 0:
		return 0
	case !ok:
		return 24 * time.Hour
	}
	return max(time.Millisecond, time.Duration(end-now.UnixNano()))
}
