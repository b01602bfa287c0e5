package holds

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

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
