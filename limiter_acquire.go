package ratelimit

import (
	"context"
	"time"
)

// Acquire takes a hold of key under the limiter's [InFlight] limit, and one unit under each of
// its other limits, or nothing: for work at a time that is no request, such as jobs and calls
// to others. If the Decision is Allowed, call release when the work is over; it may be called
// from any goroutine, and more than once. The hold ends then, or when the limiter is closed, or
// after the limit's hold, whichever is first: it is not renewed. Units stay taken.
//
//	release, d, err := exports.Acquire(ctx, user)
//	if err != nil || !d.Allowed {
//		return busy(d, err)
//	}
//	defer release()
//
// A denial is a Decision, not an error, and release is never nil. Acquire does not wait. On a
// limiter without an InFlight limit it is [Limiter.Take], and release does nothing. It is an
// error where Take has one. The limits are [Limiter.Limits]. If a [Reload] replaces the
// limiter, its holds go on.
func (l *Limiter) Acquire(ctx context.Context, key string) (release func(), d Decision, err error) {
	nothing := func() {}
	p := l.policy.Load()
	var results [MaxLimits]Result
	t, err := l.take(ctx, key, 1, forAcquire, p, results[:p.width()])
	if err != nil {
		return nothing, d, err
	}
	d.fill(p, &t, &results[t.bound])
	switch {
	case !d.Allowed:
		l.reportDenial(ctx, EventDenied, key, 1, &d, p, &t, results[:])
		return nothing, d, nil
	case t.held == nil:
		return nothing, d, nil
	}
	end := t.held.end // which the hold's own time and Close call, too
	remove, ok := l.acquired.add(end)
	if !ok { // Close has let the others go already
		end()
		return nothing, Decision{}, l.wrap(ErrClosed)
	}
	timer := time.AfterFunc(p.inFlight.Window(), func() { remove(); end() })
	return func() {
		timer.Stop()
		remove()
		end()
	}, d, nil
}
