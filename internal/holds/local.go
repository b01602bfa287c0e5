package holds

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/guard"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Local has the holds of a limiter whose store is in this process. Nothing renews them:
// they last until they end, or the process does. Its zero value needs Engine set. Its methods
// may be called from any number of goroutines.
type Local struct {
	Engine engine.Engine

	// Panicked is called if the store panics when it gets a report that holds have ended: on a
	// goroutine of a request, a timer or a context. Nil is not called.
	Panicked func(guard.Panic)

	once      sync.Once
	book      *Book
	reporting atomic.Bool
}

// Share makes l go on with the book of a limiter that its own one replaces, on the same store.
// It must be called before any other method of l.
func (l *Local) Share(old *Local) { l.once.Do(func() { l.book = old.of() }) }

func (l *Local) of() *Book {
	l.once.Do(func() {
		l.book = NewBook(l.report)
		l.book.local = true
	})
	return l.book
}

// Take decides a request with r.Units. The hold is nil if the request is denied, or if it
// asks for 0 units, which is a look.
func (l *Local) Take(ctx context.Context, r engine.Request, ask Ask, answers []rule.Answer) (reply engine.Reply, hold *Hold, held rule.Answer, err error) {
	b := l.of()
	call, h := ask.Begin(b, r.Key, r.Units, rule.MaxSpan, clock.Now())
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
	hold, held = ask.Answered(b, r.Key, call, &h, !rule.Denied(answers), clock.Now())
	return reply, hold, held, nil
}

// report reports to the store which holds have ended. If that fails, it is tried again when the
// next one ends. It does not panic if the store does.
func (l *Local) report() {
	failed := false
	for !failed && l.book.Waits() && guard.Alone(&l.reporting, func() { failed = l.reportAll() }) {
		// A hold may have ended just before: check once more.
	}
}

func (l *Local) reportAll() (failed bool) {
	for {
		key, call, h, ok := l.book.Next(clock.Now())
		if !ok {
			return false
		}
		if !l.reportOne(key, call, &h) {
			return true
		}
	}
}

// reportOne makes one call of [Book.Next].
func (l *Local) reportOne(key string, call Call, h *rule.Holding) (answered bool) {
	defer func() { // also if the store ends the goroutine
		if !answered {
			l.book.Failed(call, false)
		}
	}()
	guard.Run(func() {
		_, err := l.Engine.Take(context.Background(), engine.Request{Key: key, Limits: &engine.Limits{}, Now: clock.Now(), Holding: h}, nil)
		answered = err == nil
	}, l.Panicked)
	if answered {
		l.book.Answered(call, h, false, 0, clock.Now())
	}
	return answered
}
