package remote

import (
	"context"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/holds"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// The store has a record of the holds of each process and key. This file asks for holds,
// and reports to the store which ones go on or have ended. All generations of a limiter share
// the book of package holds, which has the totals to report.
//
// The end of a hold is reported at once, on another goroutine, so that a response does not
// wait for it. The next request of the key reports it, too. One call renews all holds of a key.

// reportWorkers is the number of goroutines that report holds to the store. Their calls share
// round trips, so it bounds how many keys a round trip renews.
const reportWorkers = 64

// beginHold returns what the store is asked about the holds of a request's key: nil if
// nothing.
func (r *Remote) beginHold(req *storeRequest) (holds.Call, *rule.Holding) {
	if req.Hold == nil {
		return holds.Call{}, nil
	}
	call, h := req.Hold.Begin(r.book, req.Key, req.Units, req.Hold.Lasts, req.now)
	return call, &h
}

// answerHold enters the store's answer into the book, and sets Hold and Held of the decision.
// admitted is about the units.
func (r *Remote) answerHold(req *storeRequest, call holds.Call, h *rule.Holding, admitted bool, now int64) {
	hold, held := req.Hold.Answered(r.book, req.Key, call, h, admitted, now)
	req.decided.Hold, req.decided.Held = hold, held
	if hold != nil || h.Held.Others > 0 { // what is known of others is forgotten in time
		r.renewHolds(req.Hold.Lasts)
	}
}

// failedHold notes that a call for a hold has ended without an answer.
func (r *Remote) failedHold(req *storeRequest, call holds.Call, unchanged bool) {
	r.book.Failed(call, unchanged)
	if !unchanged { // a report finds out
		r.renewHolds(req.Hold.Lasts)
	}
}

// heldHere is the answer of the in-flight limit from what this process knows.
func (r *Remote) heldHere(req *storeRequest, denied bool) rule.Answer {
	if req.Hold == nil {
		return rule.Answer{}
	}
	return req.Hold.Here(r.book, req.Key, denied, clock.Now())
}

// takeHoldHere decides a request for a hold in this process, after the store has failed with
// err. The units and the hold are taken together, or neither.
func (r *Remote) takeHoldHere(req *storeRequest, err error, answers []rule.Answer) (d Decision) {
	var hold *holds.Hold
	if req.Units > 0 {
		hold = r.book.TakeHere(req.Key, req.Hold.Most, req.Hold.Lasts, req.Hold.Until, clock.Now())
	}
	full := req.Units > 0 && hold == nil
	d = Decision{At: NothingTaken, Counted: NothingTaken, Source: FromFallback}
	if len(answers) > 0 {
		rates := *req
		if full {
			rates.Units = 0 // the other limits say what they have left
		}
		d = r.takeUnitsHere(&rates, err, answers)
	}
	if hold != nil && rule.Denied(answers) {
		hold.End()
		hold = nil
	}
	if hold != nil {
		r.renewHolds(req.Hold.Lasts)
	}
	if full {
		d.At, d.Counted, d.Granted = NothingTaken, NothingTaken, 0
	}
	d.Hold, d.Held = hold, r.heldHere(req, full)
	return d
}

// limitsToLook returns limits for a call that only looks whether the store answers.
func (r *Remote) limitsToLook(req *storeRequest) *engine.Limits {
	if len(req.Limits.Rules) == 0 {
		return r.limits.Load()
	}
	return req.Limits
}

// reportHolds makes sure that goroutines of the owner report what the book has to report. It
// does not wait. After Close, a goroutine tries once.
func (r *Remote) reportHolds() {
	if !r.book.Waits() || r.owner.Load().reporting.Load() >= reportWorkers {
		return
	}
	if !r.goReport() && r.owner.Load().finished.Load() { // otherwise finish does it, and waits for it
		r.goAfterClose(closeTimeout, func(ctx context.Context, o *Remote) { o.reportAndCount(ctx) })
	}
}

// goReport starts one more reporting goroutine. It does not after Close.
func (r *Remote) goReport() bool {
	return r.goOwner(func(o *Remote) { o.reportAndCount(o.closing) })
}

// reportAndCount is reportUntilNone as one of the reporting goroutines.
func (r *Remote) reportAndCount(ctx context.Context) {
	defer r.reporting.Add(-1) // also if the store panics
	if r.reporting.Add(1) <= reportWorkers {
		r.reportUntilNone(ctx)
	}
}

// reportUntilNone reports what the book has to report, until there is no more, a call fails
// or the breaker is open. What could not be reported is tried again by renewHolds.
func (r *Remote) reportUntilNone(ctx context.Context) {
	for ctx.Err() == nil {
		now := clock.Now()
		if !r.breaker.Ready(now) {
			r.renewHolds(0)
			return
		}
		key, call, h, ok := r.book.Next(now)
		if !ok {
			return
		}
		if r.book.Waits() && r.reporting.Load() < reportWorkers {
			r.goReport()
		}
		if r.report(ctx, key, call, &h, now) != nil {
			r.renewHolds(0)
			return
		}
	}
}

// report makes one call of [holds.Book.Next].
func (r *Remote) report(ctx context.Context, key string, call holds.Call, h *rule.Holding, now int64) (err error) {
	answered := false
	defer func() { // also if the store panics
		if !answered {
			r.book.Failed(call, err != nil && r.storeUnchanged(err))
		}
	}()
	end, err := r.ask(ctx, now, 0, func(ctx context.Context) (int64, error) {
		ctx, cancel := context.WithTimeout(ctx, SideTimeout)
		defer cancel()
		_, err := r.opts.Engine.Take(ctx, engine.Request{Key: key, Limits: &engine.Limits{}, Now: now, Holding: h}, nil)
		return noInstant, err
	})
	if err == nil {
		answered = true
		r.book.Answered(call, h, false, 0, end)
	}
	return err
}

// reportAllHolds reports all holds that have ended, and waits for that.
func (r *Remote) reportAllHolds(ctx context.Context) {
	if !r.book.Waits() {
		return
	}
	var workers sync.WaitGroup
	for range settleWorkers {
		workers.Go(r.recovering(func() { r.reportUntilNone(ctx) }))
	}
	workers.Wait()
}

// renewHolds makes sure that a goroutine of the owner has the holds renewed, of which a new one
// lasts for some time, and tries again what could not be reported: then lasts is 0. The
// goroutine ends when there are none.
func (r *Remote) renewHolds(lasts int64) {
	owner := r.owner.Load()
	if owner.renewing.Load() > 0 {
		owner.renewSooner(lasts)
		return
	}
	r.goOwner(func(o *Remote) {
		for period := o.book.Period(); period > 0 && !o.areLoopsStopped(); period = o.book.Period() {
			if !o.renewing.CompareAndSwap(0, period) {
				o.renewSooner(lasts)
				return
			}
			o.renewUntilNone() // a hold may have begun just before: check once more
		}
	})
}

// renewSooner wakes the goroutine of renewHolds if it sleeps for too long.
func (r *Remote) renewSooner(lasts int64) {
	if lasts > 0 && holds.PeriodOf(lasts) >= r.renewing.Load() {
		return
	}
	select {
	case r.shorterHold <- struct{}{}:
	default:
	}
}

// renewUntilNone shows the book that this process runs, often enough for its shortest holds.
// It returns when there are no more holds, or when the loops of r are stopped. Then renewing
// is 0.
func (r *Remote) renewUntilNone() {
	defer r.renewing.Store(0) // also after a panic: otherwise no goroutine would ever renew again
	next := clock.Now() + r.renewing.Load()
	timer := time.NewTimer(time.Duration(r.renewing.Load()))
	defer timer.Stop()
	for {
		due := false
		select {
		case <-timer.C:
			due = true
			r.book.Tick(clock.Now())
		case <-r.shorterHold:
		case <-r.loopsStopped:
			return
		}
		period, now := r.book.Period(), clock.Now()
		if period == 0 {
			return
		}
		if due || now+period < next {
			next = now + period
		}
		r.renewing.Store(period)
		timer.Reset(time.Duration(max(0, next-now)))
	}
}
