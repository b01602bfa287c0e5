package holds

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// An Ask says what a request wants of the holds of its key.
type Ask struct {
	Most  int64 // how many there may be at the same time
	Lasts int64 // how long one outlives its process
	Until int64 // when it ends by itself; 0 for the hold of a request
}

// Answer returns the answer about holds of a key of which some are left, if the first of them
// lasts for soonest. denied is about one more.
func (a *Ask) Answer(left, soonest int64, denied bool) (answer rule.Answer) {
	answer.Remaining = max(0, left)
	if left < a.Most {
		answer.More, answer.Reset = max(1, min(soonest, a.Lasts)), a.Lasts
	}
	if denied {
		answer.Retry = max(1, answer.More)
	}
	return answer
}

// Left returns how many of the holds are free after a reply of the store, and for how long the
// first one lasts.
func (a *Ask) Left(h *rule.Held) (left, soonest int64) {
	return a.Most - h.Others - (h.Began - h.Ended), h.Soonest
}

// Local has the holds of a limiter whose store is in this process. Nothing renews them:
// they last until they end, or the process does. Its zero value needs Engine set. Its methods
// may be called from any number of goroutines.
type Local struct {
	Engine engine.Engine

	once      sync.Once
	book      *Book
	reporting atomic.Bool
}

// Share makes l go on with the book of a limiter that its own one replaces, on the same store.
// It must be called before any other method of l.
func (l *Local) Share(old *Local) { l.once.Do(func() { l.book = old.of() }) }

func (l *Local) of() *Book {
	l.once.Do(func() { l.book = NewBook(l.report) })
	return l.book
}

// Take decides a request with r.Units. The hold is nil if the request is denied, or if it
// asks for 0 units, which is a look.
func (l *Local) Take(ctx context.Context, r engine.Request, ask Ask, answers []rule.Answer) (reply engine.Reply, hold *Hold, held rule.Answer, err error) {
	b, action := l.of(), rule.AddHold
	if r.Units == 0 {
		action = rule.LookHolds
	}
	now := clock.Now()
	call, h := b.Begin(action, r.Key, ask.Most, rule.MaxSpan, now)
	answered := false
	defer func() { // also if the store panics
		if !answered {
			// If the store has begun a hold nevertheless, the next answer shows it.
			b.Failed(call, true)
		}
	}()
	r.Holding = &h
	if reply, err = l.Engine.Take(ctx, r, answers); err != nil {
		return reply, nil, held, err
	}
	answered = true
	granted := action == rule.AddHold && !h.Held.Denied && !rule.Denied(answers)
	left, soonest := ask.Left(&h.Held)
	h.Held.Others = 0      // the store is always asked, so nobody needs to know
	h.Most = rule.MaxUnits // it alone decides, also if it was asked with another number meanwhile
	hold = b.Answered(call, &h, granted, ask.Until, clock.Now())
	if own, ends := b.Left(r.Key, ask.Most, ask.Lasts, now); own < ask.Most {
		soonest = min(soonest, ends) // a hold of Acquire ends by itself before the record does
	}
	return reply, hold, ask.Answer(left, soonest, h.Held.Denied), nil
}

// report reports to the store which holds have ended. If that fails, it is tried again when the
// next one ends.
func (l *Local) report() {
	for l.book.Waits() && l.reporting.CompareAndSwap(false, true) {
		failed := l.reportAll()
		l.reporting.Store(false)
		if failed {
			return
		}
	}
}

func (l *Local) reportAll() (failed bool) {
	for {
		key, call, h, ok := l.book.Next(clock.Now())
		if !ok {
			return false
		}
		_, err := l.Engine.Take(context.Background(), engine.Request{Key: key, Limits: &engine.Limits{}, Now: clock.Now(), Holding: &h}, nil)
		if err != nil {
			l.book.Failed(call, false)
			return true
		}
		l.book.Answered(call, &h, false, 0, clock.Now())
	}
}
