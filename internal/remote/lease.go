package remote

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/nearcache"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A lease is units of a busy key that the store has counted already, so that this
// process may hand them out without asking. This file takes them at the store and
// gives them back; which keys are busy, how many units are taken and how long they
// are held is in package nearcache.

// leases reports whether units are leased at all.
func (r *Remote) leases() bool { return r.opts.Lease > 0 }

// takeLeased decides out of the key's lease, if it has units enough. If the lease
// runs low, more units are taken beside the decisions.
func (r *Remote) takeLeased(q *question, answers []rule.Answer) (at int64, ok bool) {
	if !r.leases() || q.units == 0 {
		return 0, false
	}
	return r.spend(q.key, q.units, q.limits, q.now, answers)
}

// spendUpTo takes as many of the units as the key's lease has.
func (r *Remote) spendUpTo(q *question, answers []rule.Answer) (taken int64) {
	if !r.leases() {
		return 0
	}
	held := min(q.units, r.near.Leased(q.key, q.now, q.limits.Rules))
	if held == 0 {
		return 0
	}
	if _, ok := r.spend(q.key, held, q.limits, q.now, answers); !ok {
		return 0
	}
	r.leased.Add(1)
	return held
}

func (r *Remote) spend(key string, n int64, limits *engine.Limits, now int64, answers []rule.Answer) (at int64, ok bool) {
	taken, ok, refill := r.near.TakeLeased(key, n, now, int64(r.opts.Lease), limits.Rules, answers)
	if refill {
		r.refill(key, limits)
	}
	return taken.Store, ok
}

// takeAndLease takes the caller's units at the store, and for a busy key more of
// them for a lease, so that the next requests need not ask.
func (r *Remote) takeAndLease(ctx context.Context, q *question, answers []rule.Answer) (at int64, err error) {
	ask := r.near.WantLease(q.key, q.now, int64(r.opts.Lease), q.limits.Rules)
	more := *q
	more.units += ask.Units
	asked := ask.Units > 0
	defer func() {
		if asked { // the store has panicked
			ask.Units = 0
			r.keep(q.key, q.limits, ask, 0, answers)
		}
	}()
	at, err = r.consult(ctx, &more, answers)
	if !asked {
		return at, err
	}
	asked = false
	if err == nil && !isDenial(answers) {
		addHeld(answers, q.limits.Rules, r.keep(q.key, q.limits, ask, at, answers))
		return at, nil
	}
	ask.Units = 0
	r.keep(q.key, q.limits, ask, 0, answers)
	if err != nil {
		return 0, err
	}
	// There is less left than was thought: the caller's units alone may fit.
	q.now = clock.Now()
	return r.consult(ctx, q, answers)
}

// addHeld counts the units that this process holds as remaining.
func addHeld(answers []rule.Answer, rules []rule.Limit, held int64) {
	for i := range answers {
		answers[i].Remaining = min(answers[i].Remaining+held, rules[i].Cap())
	}
}

func isDenial(answers []rule.Answer) bool {
	return slices.ContainsFunc(answers, func(a rule.Answer) bool { return a.Retry > 0 })
}

// adjustLease gives units back to the key's lease, or charges it, and reports
// whether that was possible. A charge goes to the lease first, because the store
// may have nothing left: it is all here.
func (r *Remote) adjustLease(key string, n int64, taken nearcache.Instant, limits *engine.Limits) bool {
	now := clock.Now()
	if n < 0 {
		return r.near.GiveBackLeased(key, -n, taken, now, limits.Rules)
	}
	_, ok := r.spend(key, n, limits, now, make([]rule.Answer, len(limits.Rules)))
	return ok
}

// refill takes units for a lease that runs low, on a goroutine of its own.
func (r *Remote) refill(key string, limits *engine.Limits) {
	ask := r.near.WantLease(key, clock.Now(), int64(r.opts.Lease), limits.Rules)
	if ask.Units == 0 {
		return
	}
	key = strings.Clone(key)
	r.beside(func(o *Remote) {
		now, answers := clock.Now(), make([]rule.Answer, len(limits.Rules))
		q := question{key: key, units: ask.Units, limits: limits, now: now, until: o.until(now), version: o.near.Version(key)}
		at, answered := int64(0), false
		defer func() { // also if the store panics
			if !answered {
				ask.Units = 0
			}
			o.keep(key, limits, ask, at, answers)
		}()
		var err error
		at, err = o.consult(o.closing, &q, answers)
		answered = err == nil && !isDenial(answers)
	})
}

// keep adds to the lease what the store has counted for it, which may be nothing.
// It returns how many units the lease has now.
func (r *Remote) keep(key string, limits *engine.Limits, ask nearcache.LeaseRequest, at int64, answers []rule.Answer) (held int64) {
	held, ended, ok := r.near.AddLease(ask, key, at, clock.Now(), int64(r.opts.Lease), limits.Rules, answers)
	if ok {
		r.beside(func(o *Remote) { o.giveBack(o.closing, ended) })
	}
	if held > 0 {
		r.sweep()
	}
	return held
}

// sweep makes sure that a goroutine of the owner gives leases back when their time
// is over. The goroutine ends when there is no lease left.
func (r *Remote) sweep() {
	if r.owner.Load().sweeping.Load() {
		return
	}
	r.beside(func(o *Remote) {
		for o.near.HasLeases() && !o.isReplaced() && o.sweeping.CompareAndSwap(false, true) {
			o.sweepUntilNone()
			o.sweeping.Store(false) // a lease may have come just before: look once more
		}
	})
}

func (r *Remote) sweepUntilNone() {
	tick := time.NewTicker(max(r.opts.Lease/2, time.Millisecond))
	defer tick.Stop()
	for r.near.HasLeases() {
		select {
		case <-tick.C:
		case <-r.replaced:
			return
		}
		r.giveBackAll(r.closing, r.near.EndLeases(clock.Now(), false))
	}
}

// endLeases gives all leases back: the limits have changed, or the limiter is
// closed.
func (r *Remote) endLeases(ctx context.Context) { r.giveBackAll(ctx, r.near.EndLeases(0, true)) }

func (r *Remote) giveBackAll(ctx context.Context, ended []nearcache.EndedLease) {
	var workers sync.WaitGroup
	for part := range slices.Chunk(ended, 1+len(ended)/settleWorkers) {
		workers.Go(r.recovering(func() {
			for _, l := range part {
				if r.giveBack(ctx, l) != nil {
					return // the units of the others stay counted, too
				}
			}
		}))
	}
	workers.Wait()
}

// giveBack gives units of a lease back to the store. If another generation has
// become the owner in the meantime, this one's client may be closed, and the owner
// gives them back.
func (r *Remote) giveBack(ctx context.Context, l nearcache.EndedLease) error {
	limits := &engine.Limits{Rules: l.Limits}
	_, err := r.move(ctx, l.Key, -l.Units, l.At.Store, limits, SideTimeout)
	if owner := r.owner.Load(); err != nil && owner != r && r.unchanged(err) {
		_, err = owner.move(owner.closing, l.Key, -l.Units, l.At.Store, limits, SideTimeout)
	}
	return err
}
