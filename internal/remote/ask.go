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

type panicError struct{ with any }

func (p panicError) Error() string { return fmt.Sprintf("panic: %v", p.with) }

// consult asks the store, waits for its answer, and stores the answer in the
// near cache.
func (r *Remote) consult(ctx context.Context, req *storeRequest, answers []rule.Answer) (at int64, err error) {
	states := stateBuffers.Get().(*[rule.MaxLimits]rule.State)
	defer stateBuffers.Put(states)
	req.states = states[:len(answers)]
	var reply engine.Reply
	now, err := r.ask(ctx, req.now, func(ctx context.Context) (err error) {
		reply, err = r.call(ctx, req, answers)
		return err
	})
	if err != nil {
		return 0, err
	}
	r.near.Observe(reply.At, now)
	// If a jump of the store's clock has unblocked the key early, an admission is
	// changed to a denial, and the units are given back. A denial is not learnt then.
	// Units that were given back may not have reached the store yet, so it may deny
	// because of them. Learning its state would replace the better one here. A store
	// that has denied has taken no units, so there is nothing to give back.
	taken := req.units
	if req.upTo {
		taken = reply.Granted
	}
	admitted := !isDenial(answers)
	if r.near.StillDenied(req.key, req.least(), now, req.limits.Rules, answers) {
		if admitted {
			r.returnUnits(req, taken, reply.At)
		}
		return NothingTaken, nil
	}
	if req.granted = taken; !admitted {
		req.granted = 0
	}
	if !reply.Newest {
		return reply.At, nil
	}
	learnt := nearcache.Reply{
		N: max(req.least(), req.granted), Limits: req.limits.Rules, Answers: answers,
		At: reply.At, Now: now, Recheck: int64(r.opts.Recheck), Version: req.version,
	}
	if reply.Exact {
		learnt.States = req.states
	}
	r.near.Learn(req.key, learnt)
	return reply.At, nil
}

// returnUnits gives back what the store has taken for a request that is denied here.
// It does so on a goroutine and does not wait.
func (r *Remote) returnUnits(req *storeRequest, n, at int64) {
	key, limits := strings.Clone(req.key), req.limits
	r.goOwner(func(o *Remote) { o.move(o.closing, key, -n, at, limits, SideTimeout) })
}

// stateBuffers has the buffers for Request.States. A buffer on the stack would
// be moved to the heap, because it is passed to a method of an interface.
var stateBuffers = sync.Pool{New: func() any { return new([rule.MaxLimits]rule.State) }}

// look asks the store for 0 units, to find out whether it answers. It waits for
// the reply.
func (r *Remote) look(ctx context.Context, key string, limits *engine.Limits, until int64) error {
	req := storeRequest{key: key, limits: limits, now: clock.Now(), until: until}
	var reply engine.Reply
	now, err := r.ask(ctx, req.now, func(ctx context.Context) (err error) {
		reply, err = r.call(ctx, &req, make([]rule.Answer, len(limits.Rules)))
		return err
	})
	if err == nil {
		r.near.Observe(reply.At, now)
	}
	return err
}

// call asks the store, within what is left of the timeout.
func (r *Remote) call(ctx context.Context, req *storeRequest, answers []rule.Answer) (engine.Reply, error) {
	if req.until != 0 && req.now >= req.until {
		return engine.Reply{}, nothingTakenError{context.DeadlineExceeded}
	}
	return r.opts.Engine.Take(ctx, engine.Request{Key: req.key, Units: req.units, UpTo: req.upTo, Limits: req.limits, Now: req.now, Until: req.until, States: req.states}, answers)
}

// move adjusts units at the store. It waits for the reply, but not longer than
// wait.
func (r *Remote) move(ctx context.Context, key string, n, at int64, limits *engine.Limits, wait time.Duration) (charged int64, err error) {
	_, err = r.ask(ctx, clock.Now(), func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		charged, err = r.opts.Engine.Adjust(ctx, key, n, at, limits)
		return err
	})
	return charged, err
}

// ask makes a call to the store and waits until it has ended. If the breaker is
// open or MaxWaiting callers wait, it returns an error without a call. start is
// what the clock has just returned. ask reports to the breaker how the call has
// ended, even if the store panics. After a success it may start a goroutine that
// settles what is owed.
func (r *Remote) ask(ctx context.Context, start int64, call func(context.Context) error) (end int64, err error) {
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
	outcome := breaker.Unclear
	defer func() {
		end = clock.Now()
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
	err = call(ctx)
	if outcome = r.outcome(ctx, start, err); outcome == breaker.Unclear && ctx.Err() != context.Canceled {
		if probe {
			outcome = breaker.Failed // otherwise each caller would be the next probe
		}
		r.callerTooHasty()
	}
	return end, err
}

// hastyInRow is how many calls in a row must be ended by their callers' deadlines
// before the store is checked.
const hastyInRow = 5

// callerTooHasty is called when a caller's own deadline has ended a call. That says
// nothing about the store. But if all callers have such deadlines and the store hangs,
// no other failure opens the breaker. So after hastyInRow of them a goroutine calls the
// store with the whole timeout. It repeats this until a call succeeds or the breaker
// opens.
func (r *Remote) callerTooHasty() {
	if r.hasty.Add(1) < hastyInRow || r.looking.Load() {
		return
	}
	r.goOwner(func(o *Remote) {
		if !r.looking.CompareAndSwap(false, true) {
			return
		}
		defer r.looking.Store(false)
		for r.hasty.Load() > 0 && !o.breaker.Open() && o.closing.Err() == nil {
			if o.look(o.closing, "?", o.limits.Load(), o.until(clock.Now())) == errTooMany {
				return
			}
		}
	})
}

// outcome returns what the end of a call means for the breaker. It counts
// failures.
func (r *Remote) outcome(ctx context.Context, start int64, err error) breaker.Outcome {
	switch {
	case err == nil:
		return breaker.Succeeded
	case ctx.Err() == context.Canceled, r.callerDeadlineFirst(ctx, start), r.fault(err) == engine.Closed:
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

// storeUnchanged reports whether a failed call has certainly changed nothing at the
// store.
func (r *Remote) storeUnchanged(err error) bool { return r.fault(err) != engine.Unknown }

func (r *Remote) fault(err error) engine.Fault {
	if _, ok := err.(nothingTakenError); ok || err == errBreakerOpen || err == errTooMany || err == errOwing {
		return engine.Refused
	}
	return r.opts.Engine.Fault(err)
}
