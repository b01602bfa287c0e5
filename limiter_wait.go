package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/remote"
)

// This file has calls of Wait and requests that wait. Their queues are in wait.go.

// Wait takes n units of key as [Limiter.TakeN] does, and waits until they fit. It returns
// nil when it has them, and n of 0 waits for nothing. Calls of Wait, and requests that wait
// because of Options.MaxWait, get their units in order of arrival, for each key and within
// this process: a call for many units holds up calls for few. Take does not wait in line: a
// loop that takes the units of the key can keep the line waiting for ever. The limits are
// [Limiter.Limits].
//
// Wait returns a [*DeniedError] as soon as it is clear that the units will not fit before
// the deadline of ctx, or never, and ctx.Err() if ctx is done before. A call behind others
// in line learns that when the first of them has to wait too long, or when its deadline
// has come. Without a deadline it can take as long as the limit's windows. A block is waited
// for like any other denial. The number of calls that wait is not bounded: each is on a
// goroutine of its caller's. While the store fails, Options.OnFailure decides. It is an error
// where TakeN has one, [ErrClosed] when the limiter is closed while it waits, or the one that has
// replaced it by a Reload, and always for a limiter whose store records each decision: see
// [RecordingStore].
func (l *Limiter) Wait(ctx context.Context, key string, n int64) error {
	if n < 0 {
		return l.negative(n)
	}
	if l.events.inStore == RecordsDecisions {
		return l.wrap(errors.New("Wait: its store records each decision, and a call that waits in line can be denied without one: use Take"))
	}
	var results [MaxLimits]Result
	t, p, _, err := l.takeWaiting(ctx, key, n, forAll, l.policy.Load(), results[:], math.MaxInt64)
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	case n == 0 || results[t.bound].RetryAfter == 0:
		return nil
	}
	denied := new(DeniedError)
	denied.Decision.fill(p, &t, &results[t.bound])
	l.reportDenial(ctx, EventDenied, key, n, &denied.Decision, p, &t, results[:])
	return denied
}

// DeniedError is what [Limiter.Wait] returns if the units do not fit in time, or never: then
// RetryAfter of the Decision is [Never]. RetryAfter runs from when Wait has returned. It is no
// [context.DeadlineExceeded].
type DeniedError struct{ Decision Decision }

// Error names the policy, which is the limiter unless its limits have names.
func (e *DeniedError) Error() string {
	d := &e.Decision
	if d.RetryAfter == Never {
		return fmt.Sprintf("ratelimit: %s: %v can never hold that many units", d.Policy, d.Limit)
	}
	return fmt.Sprintf("ratelimit: %s: the units do not fit before the deadline: %v", d.Policy, d)
}

// takeWaiting is take for a caller that may wait for some time: of a request forRequest. It
// also returns the policy in force in the end, and for how long the caller has waited.
// results has room for any policy's.
func (l *Limiter) takeWaiting(ctx context.Context, key string, n int64, how asking, p *policy, results []Result, most time.Duration) (t taken, under *policy, waited time.Duration, err error) {
	arrived, all := clock.Now(), l.lines.get()
	early := all.early.Load()
	if !p.plan {
		p = l.policy.Load() // SetLimits before this is known, and after this is early
	}
	if n == 0 || p.always != nil { // nothing to wait for
		t, err = l.take(ctx, key, n, how, p, results[:p.width()])
		return t, p, 0, err
	}
	// Most callers need not wait, and need no memory for that.
	asked := !all.someoneWaits(key)
	if asked {
		t, err = l.take(ctx, key, n, how|uncounted, p, results[:p.width()])
		if err != nil || results[t.bound].RetryAfter == 0 {
			if err == nil {
				l.count(n, p, how, &t, results[:p.width()])
			}
			return t, p, 0, err
		}
	}
	w := &waiter{
		limiter: l, counts: l.counts, all: all, key: key, n: n, until: after(arrived, most), early: early, policy: p, taken: t,
	}
	if how == forRequest {
		w.most = int64(l.opts.MaxWaiting)
	}
	if l.remote != nil {
		w.recheck = int64(max(l.opts.DenyRecheck, shortestRecheck))
		if l.opts.DenyRecheck < 0 {
			w.recheck = int64(remote.DefaultRecheck)
		}
	}
	if deadline, ok := ctx.Deadline(); ok {
		w.until = min(w.until, after(clock.Now(), time.Until(deadline)))
	}
	if copy(w.results[:], results); asked {
		w.denied()
	}
	w.take(ctx)
	copy(results, w.results[:])
	return w.taken, w.policy, time.Duration(w.waited), w.err
}

// shortestRecheck bounds how often a request asks a store for a hold that another process may
// have ended.
const shortestRecheck = 10 * time.Millisecond

// askFor implements waitedFor.
func (l *Limiter) askFor(ctx context.Context, w *waiter) {
	if !w.policy.plan {
		w.policy = l.policy.Load()
	}
	if l.isClosed() {
		w.err = l.wrap(ErrClosed)
		return
	}
	how := forAll | uncounted
	if w.most > 0 {
		how = forRequest | uncounted
	}
	w.taken, w.err = l.take(ctx, w.key, w.n, how, w.policy, w.results[:w.policy.width()])
}

// isClosed implements waitedFor.
func (l *Limiter) isClosed() bool { return l.closed.Load() || l.lines.isClosed() }

// lookFor implements waitedFor.
func (l *Limiter) lookFor(ctx context.Context, w *waiter) {
	w.taken, w.err = l.take(ctx, w.key, 0, forAll, w.policy, w.results[:w.policy.width()])
	w.taken.at, w.taken.counted = nothingTaken, nothingTaken
}
