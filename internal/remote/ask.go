package remote

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/breaker"
	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/nearcache"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file has one call to the store, from the check of the breaker to the
// meaning of its error.
//
// These errors say why a call was not made.
var (
	errBreakerOpen = errors.New("the store has failed so often that it is asked only now and then")
	errTooMany     = fmt.Errorf("%d callers are waiting for the store", MaxWaiting)
)

// nothingTakenError wraps the error of a decision that has certainly taken no units at
// the store.
type nothingTakenError struct{ error }

func (u nothingTakenError) Unwrap() error { return u.error }

// consult asks the store, waits for its answer, and stores the answer in the
// near cache.
func (r *Remote) consult(ctx context.Context, req *storeRequest, answers []rule.Answer) error {
	buffers := replyBuffers.Get().(*replyBuffer)
	defer replyBuffers.Put(buffers)
	call, holding := r.beginHold(req)
	unanswered, unchanged := holding != nil, false
	defer func() { // also if the store panics
		if unanswered {
			r.failedHold(req, call, unchanged)
		}
	}()
	states, logs, blocks := buffers.states[:len(answers)], buffers.logs[:len(answers)], buffers.blocks[:len(answers)]
	clear(logs)
	clear(blocks)
	var reply engine.Reply
	now, err := r.ask(ctx, req.now, req.until, func(ctx context.Context) (at int64, err error) {
		reply, err = r.call(ctx, req, answers, buffers, holding)
		return reply.At, err
	})
	req.Limits = req.Limits.Present()
	if err != nil {
		unchanged = r.storeUnchanged(err)
		return err
	}
	// If a jump of the store's clock has unblocked the key early, an admission is
	// changed to a denial, and the units are given back. A denial is not learnt then.
	// Units that were given back may not have reached the store yet, so it may deny
	// because of them. Learning its state would replace the better one here. A store
	// that has denied has taken no units, so there is nothing to give back.
	taken := req.Units + req.more
	if req.UpTo {
		taken = reply.Granted
	}
	admitted := !rule.Denied(answers)
	if unanswered {
		unanswered = false
		if r.answerHold(req, call, holding, admitted, now); req.decided.Held.Retry > 0 {
			if admitted && !holding.Held.Denied { // the store has begun a hold, for which there is no room here
				r.returnUnits(req, taken, reply.At)
			}
			admitted, taken = false, 0
		}
	}
	hold, answer := req.decided.Hold, req.decided.Held
	if denied, blocked := r.stillDenied(req, now, answers); denied {
		if admitted {
			r.returnUnits(req, taken, reply.At)
		}
		if hold != nil {
			hold.End()
		}
		req.decided = Decision{At: NothingTaken, Counted: NothingTaken, Blocked: blocked, Held: answer}
		return nil
	}
	req.decided = Decision{At: reply.At, Counted: NothingTaken, Blocked: reply.Blocked, Began: reply.Began, Hold: hold, Held: answer}
	if admitted {
		req.decided.Counted, req.decided.Granted = reply.At, taken
	}
	if !reply.Newest || len(answers) == 0 || r.opts.AskAlways {
		return nil
	}
	asked := max(req.least(), req.decided.Granted)
	if answer.Retry > 0 && !rule.Denied(answers) {
		asked = 0 // only the in-flight limit has denied: to the others it was a look
	}
	learnt := nearcache.Reply{
		N: asked, Limits: req.Limits.Rules, Answers: answers,
		At: reply.At, Now: now, Recheck: r.recheck(req, reply.Blocked), Version: req.version, Blocks: blocks,
	}
	if reply.Exact {
		learnt.States, learnt.Logs = states, logs
	}
	r.near.Learn(req.Key, learnt)
	return nil
}

// stillDenied is [nearcache.Cache.StillDenied]: whether the key is known to be denied, whatever
// the store says.
func (r *Remote) stillDenied(req *storeRequest, now int64, answers []rule.Answer) (denied bool, blocked uint8) {
	if r.opts.AskAlways {
		return false, 0
	}
	return r.near.StillDenied(req.Key, req.least(), now, req.Limits.Rules, answers)
}

// returnUnits gives back what the store has taken for a request that is denied here.
// It does so on a goroutine and does not wait.
func (r *Remote) returnUnits(req *storeRequest, n, at int64) {
	key, limits := strings.Clone(req.Key), req.Limits
	r.goAlways(func(ctx context.Context, o *Remote) { o.move(ctx, key, -n, at, limits, SideTimeout) })
}

// A replyBuffer has the buffers of an engine.Request. On the stack they would be moved to
// the heap, because they are passed to a method of an interface.
type replyBuffer struct {
	states [rule.MaxLimits]rule.State
	logs   [rule.MaxLimits]rule.Log
	blocks [rule.MaxLimits]rule.Block
}

var replyBuffers = sync.Pool{New: func() any { return new(replyBuffer) }}

// look asks the store for 0 units, to find out whether it answers. It waits for
// the reply.
func (r *Remote) look(ctx context.Context, key string, limits *engine.Limits, until int64) error {
	req := storeRequest{Request: Request{Key: key, Limits: limits}, now: clock.Now(), until: until}
	_, err := r.ask(ctx, req.now, req.until, func(ctx context.Context) (at int64, err error) {
		reply, err := r.call(ctx, &req, make([]rule.Answer, len(limits.Rules)), nil, nil)
		return reply.At, err
	})
	return err
}

// call asks the store, within what is left of the timeout. buffers and holding may be nil.
func (r *Remote) call(ctx context.Context, req *storeRequest, answers []rule.Answer, buffers *replyBuffer, holding *rule.Holding) (engine.Reply, error) {
	if req.until != 0 && req.now >= req.until {
		return engine.Reply{}, nothingTakenError{context.DeadlineExceeded}
	}
	q := engine.Request{
		Key: req.Key, Units: req.Units + req.more, UpTo: req.UpTo, Limits: req.Limits, Now: req.now, Until: req.until,
		Holding: holding,
	}
	if n := len(answers); buffers != nil {
		q.States, q.Logs, q.Blocks = buffers.states[:n], buffers.logs[:n], buffers.blocks[:n]
	}
	if req.startsBlocks() {
		// A jump of the store's clock may have ended a denial there that still holds here. The
		// store then counts units that are given back, and must start no block because of them.
		if still, _ := r.stillDenied(req, req.now, answers); !still {
			q.StartsBlocks, q.Pending = true, r.pending(req, (*Remote).sendAt)
		}
	}
	return r.opts.Engine.Take(ctx, q, answers)
}

// move adjusts units at the store. It waits for the reply, but not longer than
// wait.
func (r *Remote) move(ctx context.Context, key string, n, at int64, limits *engine.Limits, wait time.Duration) (charged int64, err error) {
	_, err = r.ask(ctx, clock.Now(), 0, func(ctx context.Context) (_ int64, err error) {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		charged, err = r.opts.Engine.Adjust(ctx, key, n, at, limits)
		return noInstant, err
	})
	return charged, err
}

// ask makes a call to the store and waits until it has ended. If the breaker is
// open or MaxWaiting callers wait, it returns an error without a call. start is
// what the clock has just returned, and until is when the call must have ended, where 0
// means that it has all the time it needs. ask reports to the breaker how the call has
// ended, even if the store panics. After a success it may start a goroutine that
// settles what is owed.
//
// call returns the store's instant of its answer, or noInstant. The near cache learns from it
// what the store's clock shows, before anything is settled: that needs the clock.
func (r *Remote) ask(ctx context.Context, start, until int64, call func(context.Context) (at int64, err error)) (end int64, err error) {
	ok, probe := r.breaker.Allow(start)
	if !ok {
		r.opts.Counts.spared.Add(1)
		return start, errBreakerOpen
	}
	if r.waiting.Add(1) > MaxWaiting {
		r.waiting.Add(-1)
		r.opts.Counts.spared.Add(1)
		r.breaker.Done(start, start, probe, breaker.Unclear)
		return start, errTooMany
	}
	outcome, at := breaker.Unclear, int64(noInstant)
	defer func() {
		end = clock.Now()
		if err == nil && at != noInstant {
			r.near.Observe(at, end)
		}
		r.waiting.Add(-1)
		r.opts.Counts.called(end - start)
		if r.breaker.Done(start, end, probe, outcome) {
			r.breakerChanged(end, err)
		}
		if outcome == breaker.Succeeded {
			r.hasty.Store(0)
			if r.near.Owing() > 0 {
				r.settleAll("")
			}
		}
	}()
	at, err = call(ctx)
	if outcome = r.outcome(ctx, start, until, err); outcome == breaker.Unclear && ctx.Err() != context.Canceled {
		if probe {
			outcome = breaker.Failed // otherwise each caller would be the next probe
		}
		r.callerTooHasty()
	}
	return end, err
}

// noInstant is what a call returns to ask if its answer has no instant. Instants of the store
// are not negative.
const noInstant = -1

// hastyInRow is how many calls in a row must be ended by their callers' deadlines
// before the store is checked.
const hastyInRow = 5

// callerTooHasty is called when a call has ended that had too little time: because of its
// caller's own deadline, or because its caller had waited for its turn. That says nothing
// about the store. But if all callers have so little time and the store hangs,
// no other failure opens the breaker. So after hastyInRow of them a goroutine of the owner
// calls the store with the whole timeout. It repeats this until a call succeeds or the breaker
// opens, or until it is no longer the owner: the next call then starts another one.
func (r *Remote) callerTooHasty() {
	if r.hasty.Add(1) < hastyInRow || r.looking.Load() {
		return
	}
	r.goOwner(func(o *Remote) {
		if !r.looking.CompareAndSwap(false, true) {
			return
		}
		defer r.looking.Store(false)
		for r.hasty.Load() > 0 && !o.breaker.Open() && !o.areLoopsStopped() {
			err := o.look(o.closing, "?", o.limits.Load(), o.until(clock.Now()))
			if err == nil || err == errTooMany || o.fault(err) == engine.Closed {
				return
			}
		}
	})
}

// outcome returns what the end of a call means for the breaker. It counts
// failures.
func (r *Remote) outcome(ctx context.Context, start, until int64, err error) breaker.Outcome {
	switch {
	case err == nil:
		return breaker.Succeeded
	case ctx.Err() == context.Canceled, r.callerDeadlineFirst(ctx, start), r.tooLate(start, until, err), r.fault(err) == engine.Closed:
		return breaker.Unclear // the store is not to blame
	case r.opts.Engine.Fault(err) == engine.Key:
		r.opts.Counts.failures.Add(1)
		return breaker.Succeeded // it does answer
	}
	r.opts.Counts.failures.Add(1)
	return breaker.Failed
}

// callerDeadlineFirst reports whether the deadline of the caller's context has
// passed, and was earlier than the end of the timeout. The context itself may
// report that slightly later.
func (r *Remote) callerDeadlineFirst(ctx context.Context, start int64) bool {
	deadline, ok := ctx.Deadline()
	if !ok || time.Until(deadline) > 0 {
		return false
	}
	until := r.until(start)
	return until == 0 || deadline.Before(clock.Time(until))
}

// tooLate reports whether a call has timed out that had less than half of the timeout,
// because the caller had waited for its turn.
func (r *Remote) tooLate(start, until int64, err error) bool {
	return until != 0 && until-start < int64(r.opts.Timeout/2) && errors.Is(err, context.DeadlineExceeded)
}

// storeUnchanged reports whether a failed call has certainly changed nothing at the
// store.
func (r *Remote) storeUnchanged(err error) bool { return r.fault(err) != engine.Unknown }

func (r *Remote) fault(err error) engine.Fault {
	if _, ok := err.(nothingTakenError); ok || err == errBreakerOpen || err == errTooMany || err == errOwing {
		return engine.Refused
	}
	return r.opts.Engine.Fault(err)
}
