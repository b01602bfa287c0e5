package remote

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/guard"
	"github.com/ratelimit-go/ratelimit/internal/nearcache"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A lease has units of a busy key that the store has already counted, so that this
// process may hand them out without asking. This file takes the units at the store
// and gives them back. Package nearcache decides which keys are busy, how many
// units are taken and how long they are held.

// leases reports whether leases are turned on.
func (r *Remote) leases() bool { return r.opts.Lease > 0 }

// takeLeased decides from the key's lease, if the lease has enough units. If the
// lease runs low, a goroutine takes more units at the store.
func (r *Remote) takeLeased(req *storeRequest, answers []rule.Answer) (ok bool) {
	if !r.leases() || req.Units == 0 {
		return false
	}
	at, ok := r.spend(req.Key, req.Units, req.Limits, req.now, answers)
	if ok {
		req.decided = Decision{At: at, Counted: at, Source: FromLease}
	}
	return ok
}

// spendUpTo takes as many of the units as the key's lease has, and returns how
// many.
func (r *Remote) spendUpTo(req *storeRequest, answers []rule.Answer) (taken int64) {
	if !r.leases() {
		return 0
	}
	held := min(req.Units, r.near.Leased(req.Key, req.now, req.Limits.Rules))
	if held == 0 {
		return 0
	}
	at, ok := r.spend(req.Key, held, req.Limits, req.now, answers)
	if !ok {
		return 0
	}
	req.decided.At = at
	return held
}

// spend takes n units out of the key's lease, and may start a refill. It does not wait
// for the store.
func (r *Remote) spend(key string, n int64, limits *engine.Limits, now int64, answers []rule.Answer) (at int64, ok bool) {
	taken, ok, refill := r.near.TakeLeased(key, n, now, int64(r.opts.Lease), limits.Rules, answers)
	if refill {
		r.refill(key, limits)
	}
	return taken.Store, ok
}

// takeAndLease takes the caller's units at the store. For a busy key it takes
// more units for a lease, so that the next requests need not ask. It waits for
// the store, a second time if the store has denied the larger request.
func (r *Remote) takeAndLease(ctx context.Context, req *storeRequest, answers []rule.Answer) error {
	ask := r.wantLease(req.Key, req.now, req.Limits)
	asked := ask.Units > 0
	defer func() {
		if asked { // the store has panicked
			ask.Units = 0
			r.keep(req.Key, req.Limits, ask, 0, answers)
		}
	}()
	req.more = ask.Units
	err := r.consult(ctx, req, answers)
	req.more = 0
	if !asked {
		return err
	}
	asked = false
	if err == nil && !rule.Denied(answers) {
		addHeld(answers, req.Limits.Rules, r.keep(req.Key, req.Limits, ask, req.decided.At, answers))
		return nil
	}
	ask.Units = 0
	r.keep(req.Key, req.Limits, ask, 0, answers)
	if err != nil {
		return err
	}
	// Fewer units are left than expected. The caller's units alone may fit.
	req.now = clock.Now()
	return r.consult(ctx, req, answers)
}

// wantLease is [nearcache.Cache.WantLease]: how many units to take for a key's lease. After
// Close it is none, because no goroutine would give them back.
func (r *Remote) wantLease(key string, now int64, limits *engine.Limits) nearcache.LeaseRequest {
	if r.owner.Load().areLoopsStopped() {
		return nearcache.LeaseRequest{}
	}
	return r.near.WantLease(key, now, int64(r.opts.Lease), limits.Rules)
}

// addHeld adds the units of the lease to the remaining units in answers.
func addHeld(answers []rule.Answer, rules []rule.Limit, held int64) {
	for i := range answers {
		answers[i].Remaining = min(answers[i].Remaining+held, rules[i].Cap())
	}
}

// adjustLease gives units back to the key's lease, or charges them to it, and
// reports whether it did. A charge goes to the lease first, because the lease
// may have all units that are left, and the store none.
func (r *Remote) adjustLease(key string, n int64, taken nearcache.Instant, limits *engine.Limits) bool {
	now := clock.Now()
	if n < 0 {
		return r.near.GiveBackLeased(key, -n, taken, now, limits.Rules)
	}
	_, ok := r.spend(key, n, limits, now, make([]rule.Answer, len(limits.Rules)))
	return ok
}

// refill takes units at the store for a lease that runs low, on its own
// goroutine. It does not wait.
func (r *Remote) refill(key string, limits *engine.Limits) {
	ask := r.wantLease(key, clock.Now(), limits)
	if ask.Units == 0 {
		return
	}
	key = strings.Clone(key)
	r.goOwner(func(o *Remote) {
		now, answers := clock.Now(), make([]rule.Answer, len(limits.Rules))
		req := storeRequest{
			Request: Request{Key: key, Limits: limits}, more: ask.Units, now: now, until: o.until(now), version: o.near.Version(key),
		}
		at, answered := int64(0), false
		defer func() { // also if the store panics
			if !answered {
				ask.Units = 0
			}
			o.keep(key, limits, ask, at, answers)
		}()
		err := o.consult(o.closing, &req, answers)
		at, answered = req.decided.At, err == nil && !rule.Denied(answers)
	})
}

// keep adds the units that the store has counted to the lease, if any. It returns
// how many units the lease has now. It may start goroutines, which give ended
// leases back.
func (r *Remote) keep(key string, limits *engine.Limits, ask nearcache.LeaseRequest, at int64, answers []rule.Answer) (held int64) {
	held, ended, ok := r.near.AddLease(ask, key, at, clock.Now(), int64(r.opts.Lease), limits.Rules, answers)
	if ok {
		r.goAlways(func(ctx context.Context, o *Remote) { o.giveBack(ctx, ended) })
	}
	if held > 0 && !r.sweep() { // Close may have ended all leases before this one was there
		r.goAfterClose(closeTimeout, func(ctx context.Context, o *Remote) { o.endLeases(ctx) })
	}
	return held
}

// sweep makes sure that a goroutine of the owner gives leases back when their time
// is over, and reports whether there is one. There is none after Close. The goroutine ends
// when there are no more leases.
func (r *Remote) sweep() bool {
	if r.owner.Load().sweeping.Load() {
		return true
	}
	return r.goOwner(func(o *Remote) {
		for o.near.HasLeases() && !o.areLoopsStopped() && guard.Alone(&o.sweeping, o.sweepUntilNone) {
			// A lease may have been added just before: check once more.
		}
	})
}

// sweepUntilNone gives back expired leases twice per lease time. It returns when there
// are no more leases, or when the loops of r are stopped.
func (r *Remote) sweepUntilNone() {
	tick := time.NewTicker(max(r.opts.Lease/2, time.Millisecond))
	defer tick.Stop()
	for r.near.HasLeases() {
		select {
		case <-tick.C:
		case <-r.loopsStopped:
			return
		}
		r.giveBackAll(r.closing, r.near.EndLeases(clock.Now(), false))
	}
}

// endLeases gives all leases back and waits for that. It is for changed limits
// and for Close.
func (r *Remote) endLeases(ctx context.Context) { r.giveBackAll(ctx, r.near.EndLeases(0, true)) }

// giveBackAll gives ended leases back to the store, on up to settleWorkers goroutines,
// and waits for them.
func (r *Remote) giveBackAll(ctx context.Context, ended []nearcache.EndedLease) {
	var workers sync.WaitGroup
	for part := range slices.Chunk(ended, 1+len(ended)/settleWorkers) {
		workers.Go(r.recovering(func() {
			for _, l := range part {
				if r.giveBack(ctx, l) != nil {
					return // do not try the rest: their units stay counted at the store
				}
			}
		}))
	}
	workers.Wait()
}

// giveBack gives the units of a lease back to the store, and waits for the reply.
// If another generation has become the owner in the meantime, the client of r may
// be closed. Then giveBack uses the owner's client.
func (r *Remote) giveBack(ctx context.Context, l nearcache.EndedLease) error {
	limits := &engine.Limits{Rules: l.Limits}
	_, err := r.move(ctx, l.Key, -l.Units, l.At.Store, limits, SideTimeout)
	if owner := r.owner.Load(); err != nil && owner != r && r.storeUnchanged(err) {
		_, err = owner.move(owner.closing, l.Key, -l.Units, l.At.Store, limits, SideTimeout)
	}
	return err
}
