package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/guard"
	"github.com/ratelimit-go/ratelimit/internal/remote"
)

// requestState is what a limiter knows of one request that it has decided: a link
// in the request's chain of contexts. It also carries what the header fields need,
// so that all of this costs a request one allocation.
type requestState struct {
	context.Context
	limiter  *Limiter
	request  *http.Request
	response http.Header   // what the answer to request is written to
	outer    *requestState // of the limiter around this one
	key      string
	bound    bound
	fields   fields
	charge   charge
}

// charge is what a request has taken of its key, and may give back or add to after it
// was admitted.
type charge struct {
	busy    atomic.Bool // locks the next two, also while the store is asked
	decided atomic.Bool // Options.Count has been asked whether the request counts
	units   int64
	at      Instant // when they were taken
}

// lockUntil locks the charge, which is held while the store is asked. It seldom waits:
// only if the units of one request are adjusted twice at the same time.
func (t *charge) lockUntil(deadline time.Time) bool {
	for !t.busy.CompareAndSwap(false, true) {
		if time.Until(deadline) <= 0 {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

func (t *charge) unlock() { t.busy.Store(false) }

type requestStateKey struct{}

// Value implements [context.Context].
func (s *requestState) Value(key any) any {
	if key == (requestStateKey{}) {
		return s
	}
	return s.Context.Value(key)
}

// stateOf returns the state of the innermost limiter that has decided the request
// with this context, or nil.
func stateOf(ctx context.Context) *requestState {
	s, _ := ctx.Value(requestStateKey{}).(*requestState)
	return s
}

// isOf reports whether s is the state of r, whose response is written to h. It is a
// limiter's criterion for "the same request": see [Limiter.Middleware] for the rule.
// s is from r's context. So the question is only whether a handler has copied the
// request on its way, or made another one for a purpose of its own.
//
// Clone copies everything that r points to, so pointers say nothing. RequestURI says
// much: only a server sets it. But a handler can also clone its request to make
// another one, whose path may even be the client's choice. That has a response of its
// own, so the response decides. Only [http.TimeoutHandler] gives one request another
// response: ofTimeout says that h is of one.
func (s *requestState) isOf(r *http.Request, h http.Header, ofTimeout bool) bool {
	return s.request.RequestURI == r.RequestURI && (s.request == r || ofTimeout || sameMap(s.response, h))
}

// isOfInner is isOf for the request of another state, further in.
func (s *requestState) isOfInner(inner *requestState) bool {
	return s.isOf(inner.request, inner.response, inner.bound.flags&timeoutWriter != 0)
}

// sameMap reports whether two headers are one map.
func sameMap(a, b http.Header) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

// DecisionFrom returns the decision on the request whose context this is: inside a
// handler behind [Limiter.Middleware], after [Limiter.Check], and in
// Options.Denied. If several limiters are nested, it is the innermost one's. A
// request that was not decided has none: one that is exempt, or was answered with
// 400, 500 or 503.
func DecisionFrom(ctx context.Context) (Decision, bool) {
	if s := stateOf(ctx); s != nil {
		return s.bound.decision(), true
	}
	return Decision{}, false
}

// AddCost changes what the request whose context this is has cost, once its handler
// knows: a query's complexity, an upload's size, the tokens of an answer. n > 0
// charges the key that was admitted, even above what is left, but never above
// the limit; n < 0 gives units back, at most as many as the request has taken, and
// as far as those taken when it was admitted still count. A charge counts from now on, and
// under a rolling window from when the request came. So what is charged after the window or
// the period of the calendar in which the request was admitted, is not given back: neither
// by AddCost, nor because of Options.Count or a limiter further in. It does not change the
// response's header fields.
//
// It is an error if the request was not admitted and counted by l, if l has nothing but an
// [InFlight] limit, or if the store fails. AddCost waits for at most Options.Timeout; after
// that it is not known
// whether the units were moved. It may be called any number of times, also after the
// client has left.
func (l *Limiter) AddCost(ctx context.Context, n int64) error {
	for s := stateOf(ctx); s != nil; s = s.outer {
		if s.limiter == l && s.admitted() {
			if err := s.bound.policy.countsUnits(); err != nil {
				return fmt.Errorf("ratelimit: limiter %q: AddCost: %w", l.name, err)
			}
			return s.addCost(context.Background(), n, l.timeout())
		}
	}
	return fmt.Errorf("ratelimit: limiter %q: AddCost: %w", l.name, errNotAdmitted)
}

var errAdjusting = errors.New("other units of this request are still being moved; nothing was changed")

var errNotAdmitted = errors.New("this context is not of a request that the limiter has counted; use TakeN or Refund with a key")

// admitted reports whether the request went on to its handler.
func (s *requestState) admitted() bool { return s.bound.allowed() || s.limiter.opts.Shadow }

// Responded applies Options.Count to the response of the request whose context this
// is, for callers of [Limiter.Check]: call it as soon as the status is known, which
// for a framework may be after the handler has returned an error. [Limiter.Middleware]
// does this itself. It does nothing if Count is nil, if it has been called for the
// request before, or if the request was denied.
//
// It is an error if l has not decided the request, which may be because it was
// exempt. That units could not be given back is logged. Responded waits for the store
// for at most what the decision has left of Options.Timeout. It may be called from
// any goroutine, but not while a handler changes the request. For a stream, call it before the first byte: until then the request
// holds its units.
func (l *Limiter) Responded(ctx context.Context, status int) error {
	var found *requestState
	for s := stateOf(ctx); s != nil; s = s.outer {
		if s.limiter != l || found != nil && !s.isOfInner(found) {
			continue
		}
		if found == nil {
			found = s
		}
		if l.opts.Count != nil && s.admitted() {
			s.settle(s.request.WithContext(ctx), status, true)
		}
	}
	if found == nil {
		return fmt.Errorf("ratelimit: limiter %q: Responded: %w", l.name, errNotDecided)
	}
	l.responded.Store(true)
	return nil
}

var errNotDecided = errors.New("the limiter has not decided the request of this context: it may be exempt, or of another limiter")

// expectStatus warns if requests that were admitted by Check are over, and nobody has
// reported their status. One such request says nothing: its client may have left while its
// handler goes on to call Responded. It does not look any more once a caller has shown that it
// knows of Responded.
func (s *requestState) expectStatus() {
	l := s.limiter
	if l.responded.Load() {
		return
	}
	if s.Context.Done() == nil { // nobody will say when the request is over
		l.endsWithoutStatus()
		return
	}
	if !l.expecting.CompareAndSwap(false, true) {
		return // one request at a time is enough, and a context may need a goroutine for it
	}
	context.AfterFunc(s.Context, func() {
		l.expecting.Store(false)
		if !s.charge.decided.Load() && !l.responded.Load() {
			guard.Run(l.endsWithoutStatus, nil)
		}
	})
}

// endsWithoutStatus is called when a request is over, or when nobody will say that. It warns
// from the second call on.
func (l *Limiter) endsWithoutStatus() {
	if l.noStatus.Swap(true) {
		l.report.warn(warnCountIgnored)
	}
}

// decidedInside is called when the limiter of s has decided. If it admits the request, the
// limiters around it that have Block and no Count keep their units for good. It also makes
// them expect that a limiter further in gives units back: they learn that from the first
// request that passes both.
func (s *requestState) decidedInside() {
	for outer := s.outer; outer != nil && outer.isOfInner(s); outer = outer.outer {
		l := outer.limiter
		if l == s.limiter || l.opts.Count != nil || outer.bound.policy.ladders == nil {
			continue
		}
		if !l.nested.Load() {
			l.nested.Store(true)
		}
		if s.admitted() {
			outer.pending().decided()
		}
	}
}

// forgetAtEnd is for a request of Check. When it is over, its units count, also if
// nobody calls Responded.
func (s *requestState) forgetAtEnd() {
	switch p := s.pending(); {
	case p == nil:
	case s.Context.Done() == nil: // nobody will say when the request is over
		p.decided()
	default:
		context.AfterFunc(s.Context, p.over)
	}
}

// pending returns what other requests of the key know of the request's units, or nil. It
// is kept in the context, so that requests without it need no room for it.
func (s *requestState) pending() *pendingRequest {
	p, _ := s.Context.(*pendingRequest)
	return p
}

// held returns the request's hold, or nil. It is kept in the context, like what pending
// returns.
func (s *requestState) held() *held {
	ctx := s.Context
	if p, ok := ctx.(*pendingRequest); ok {
		ctx = p.Context
	}
	h, _ := ctx.(*held)
	return h
}

// holdToEnd is for a request of Check: it ends the hold when the request is over.
func (s *requestState) holdToEnd() {
	switch h := s.held(); {
	case h == nil:
	case s.Context.Done() == nil: // nobody will say when the request is over
		time.AfterFunc(s.bound.policy.inFlight.Window(), h.end)
	default:
		h.hold.EndsWith(s.Context)
		context.AfterFunc(s.Context, h.end)
	}
}

// settle asks Options.Count whether the request counts, and gives its units back if
// it does not. It does nothing the second time. A request whose client has left
// counts, whatever Count says, unless it is known to have succeeded: middleware that
// answers a cancelled context with 503 would otherwise make each guess free whose
// client hangs up in time. written is false if the status is not the handler's.
func (s *requestState) settle(r *http.Request, status int, written bool) {
	if !s.charge.decided.CompareAndSwap(false, true) {
		return
	}
	givesBack := false
	defer func() {
		if !givesBack { // also if Count panics
			s.pending().decided()
		}
	}()
	counts := s.limiter.opts.Count(r, status)
	succeeded := written && status < http.StatusBadRequest
	left := r.Context().Err() != nil || s.Context.Err() != nil
	if givesBack = !counts && (succeeded || !left); givesBack {
		s.giveBackInTime([]*requestState{s})
	}
}

// addCost adjusts the request's units. It waits for the store, for so long at most
// and not after closing is done, and for another addCost of the same request.
func (s *requestState) addCost(closing context.Context, n int64, wait time.Duration) (err error) {
	deadline := time.Now().Add(wait)
	if !s.charge.lockUntil(deadline) {
		return s.limiter.wrap(errAdjusting)
	}
	defer s.charge.unlock()
	n = min(max(n, -s.charge.units), math.MaxInt64-s.charge.units)
	if n == 0 {
		return nil
	}
	at := s.charge.at
	if n > 0 && !s.bound.policy.rolling {
		// A rolling window gives back only units of the instant that a call names. So
		// there the charges of a request are of the instant of its first unit.
		at = Now
	}
	ctx := context.WithoutCancel(s.Context) // the units have to be right even if the client has left
	if closing.Done() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(closing, cancel)()
	}
	if p := s.pending(); p != nil {
		update := p.update
		if s.limiter.remote == nil {
			p.shard.mu.Lock()
			defer p.shard.mu.Unlock()
			update = p.set
		} else {
			// The lock must not be held while the store is asked. Meanwhile the units that may
			// be given back are the larger number, so that no block starts because of them.
			update(max(s.charge.units, s.charge.units+n))
		}
		defer func() {
			if err == nil || n > 0 { // units that may not have been given back stay
				update(s.charge.units)
			}
		}()
	}
	charged, err := s.limiter.adjust(ctx, s.key, n, at, s.limits(), max(0, time.Until(deadline)))
	if err != nil {
		if n < 0 { // it may have been carried out, and is not sent twice
			s.charge.units += n
		}
		return err
	}
	if n > 0 { // what there was no room for was not taken, and must not be given back
		n = max(0, min(n, charged))
	}
	s.charge.units += n
	return nil
}

// limits returns the limits that the request was admitted under, with the numbers
// that are in force by now. A bucket must not be filled at the rate of before a SetLimits.
func (s *requestState) limits() *engine.Limits {
	then, now := s.bound.policy, s.limiter.policy.Load()
	if now == then || then.plan {
		return then.present().under
	}
	limits := slices.Clone(then.limits)
	for i := range limits {
		for _, l := range now.limits {
			if l.sameCounter(limits[i]) {
				limits[i] = l
			}
		}
	}
	return engineLimits(limits)
}

// giveBack returns all that the request has taken of this limiter. It does nothing the
// second time. It waits for the store, for so long at most. Units that it cannot give back,
// because the store may not have counted them or does not answer, go on to count, but they
// start no block.
func (s *requestState) giveBack(closing context.Context, wait time.Duration) {
	err := s.addCost(closing, math.MinInt64, wait)
	if err != nil {
		s.limiter.report.warn(warnStoreFailed, "error", err)
	}
	if err != nil || s.charge.at == nothingTaken {
		s.pending().keep()
	} else {
		s.pending().decided()
	}
}

// giveBackOuter is for a request that was denied here: the limiters around this one
// get their units back, so that a client which is refused by one limiter does not
// drain the others. If the handler of an outer limiter has made this request as one
// of its own, that limiter's units stay taken.
func (s *requestState) giveBackOuter() {
	same := make([]*requestState, 0, 4) // seldom are more of them nested
	for outer := s.outer; outer != nil && outer.isOfInner(s); outer = outer.outer {
		same = append(same, outer)
	}
	s.giveBackInTime(same)
}

// giveBackInTime returns the units of states. If a store is outside of this process, it
// waits for the store, but no longer than the answer may still take: net/http sends a
// small response only when the handler has returned. If the stores are well, the
// client's next request finds the units given back. Otherwise a goroutine goes on, and
// the client has its answer in time.
//
// If the decision has used up the time, the store is not asked again. With
// FallbackLocal it is owed what is given back.
func (s *requestState) giveBackInTime(states []*requestState) {
	timeout := s.limiter.timeout()
	left := timeout - time.Duration(s.bound.spent.Load())*time.Microsecond
	var mayBlock []*requestState
	for _, state := range states {
		switch {
		case state.limiter.remote == nil:
			state.giveBack(context.Background(), timeout)
		case left <= 0 && state.limiter.opts.OnFailure == FallbackLocal:
			state.giveBack(context.Background(), 0)
		default:
			mayBlock = append(mayBlock, state)
		}
	}
	if mayBlock == nil {
		return
	}
	var beside sync.WaitGroup
	for _, state := range mayBlock {
		state.pending().returns()
		beside.Add(1)
		l := state.limiter
		l.remote.Go(l.timeout(), func(closing context.Context) { defer beside.Done(); state.giveBack(closing, remote.SideTimeout) })
	}
	done := make(chan struct{})
	go func() { beside.Wait(); close(done) }()
	start := time.Now()
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
	waited := time.Since(start).Microseconds()
	for outer := s.outer; outer != nil; outer = outer.outer { // which may have to give back as well
		outer.bound.spend(waited)
	}
}

// watch serves r, and looks at the response just before its header is sent: to
// leave one set of the older header fields, and to let Options.Count decide as soon
// as the status is known. So a stream that does not count holds no units while it
// lasts. A panic before anything was written has the status 500.
func (s *requestState) watch(next http.Handler, w http.ResponseWriter, r *http.Request) {
	count, styles := s.limiter.opts.Count != nil, Headers(s.bound.styles)
	response := watchResponse(w, http.StatusOK, styles, func(status int) {
		settleFields(w.Header(), styles)
		if count {
			s.settle(r, status, true)
		}
	})
	returned := false
	defer func() {
		if response.status == 0 { // net/http, or a handler around the limiter, sends the header later
			response.restore()
			settleFields(w.Header(), styles)
		}
		switch {
		case response.status != 0 || !count:
		case returned: // net/http sends 200, unless somebody around the limiter writes something else
			left := r.Context().Err() != nil // then the request counts
			s.settle(r, http.StatusOK, false)
			if !left {
				s.limiter.report.warn(warnNoResponse) // after settle, because the logger may panic
			}
		default:
			s.settle(r, http.StatusInternalServerError, false)
		}
	}()
	next.ServeHTTP(response.w, r)
	returned = true
}
