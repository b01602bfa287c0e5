package remote

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/nearcache"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Units that were admitted while the store was away are owed to it. This file
// charges them to the store when it answers again. Until it knows of them, it
// cannot decide about their key: it would admit the same units again.

// errOwing is why a decision is made here although the store may answer.
var errOwing = errors.New("the store does not know yet of units that were admitted without it")

const (
	// settleWorkers settle some 65,536 keys at a store nearby in about a second.
	settleWorkers = 16
	// settlePause is how long to wait after a failure: to find what is left takes
	// a walk through all keys.
	settlePause = int64(100 * time.Millisecond)
)

// awaitSettled reports whether units of a key are owed. If they can be sent to the
// store, it waits for that, for half of the timeout at most, and reports that it
// has waited. If it did not wait, a key in constant use would never get back to the
// store: each decision made here would owe more.
func (r *Remote) awaitSettled(ctx context.Context, key string) (owes, waited bool) {
	owes, settled := r.near.Owes(key)
	if !owes {
		return false, false
	}
	if r.breaker.Open() {
		r.settleAll(key)
		return true, false
	}
	defer r.waiting.Add(-1)
	if r.waiting.Add(1) > MaxWaiting {
		return true, false
	}
	most := r.opts.Timeout / 2
	if r.opts.Timeout < 0 {
		most = SideTimeout
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	const rounds = 3 // others may decide here in the meantime, or the store may fail
	for range rounds {
		if settled == nil {
			r.settleKey(key)
			owes, settled = r.near.Owes(key)
		}
		if settled == nil {
			break
		}
		select {
		case <-settled:
		case <-timer.C:
			return true, true
		case <-ctx.Done():
			return true, true
		}
		if owes, settled = r.near.Owes(key); !owes {
			break
		}
	}
	return owes, true
}

// settleKey sends the store what is owed for a key, on a goroutine of its own.
func (r *Remote) settleKey(key string) {
	owed := r.near.Collect(key, clock.Now())
	if owed == nil {
		return
	}
	if !r.beside(func(o *Remote) { o.settle(o.closing, owed) }) {
		r.near.Settle(owed, 0, clock.Now())
	}
}

// settleAll sends the store everything that it is owed, on goroutines of their own,
// if it is worth a try. It begins with a key that is in use, if first is not empty.
func (r *Remote) settleAll(first string) {
	owner, now := r.owner.Load(), clock.Now()
	if now < owner.settleNot.Load() || !r.breaker.Ready(now) || owner.settling.Load() {
		return
	}
	first = strings.Clone(first)
	r.beside(func(o *Remote) {
		if !o.settling.CompareAndSwap(false, true) {
			return
		}
		defer o.settling.Store(false)
		debtors := o.near.OwingKeys(now)
		if first != "" {
			debtors = append([]string{first}, debtors...)
		}
		if len(debtors) > 0 && !o.answers(o.closing, debtors[0]) {
			return
		}
		if complete := o.settleKeys(o.closing, debtors); !complete || len(debtors) == 0 {
			o.settleNot.Store(clock.Now() + settlePause)
		}
	})
}

// answers reports whether the store can be sent what it is owed. While the breaker is
// open that is found out with a look: it allows one call, so all but
// one of several goroutines that settle would be refused.
func (r *Remote) answers(ctx context.Context, key string) bool {
	if !r.breaker.Open() {
		return true
	}
	err := r.look(ctx, key, r.limits.Load(), r.until(clock.Now()))
	return err == nil || r.fault(err) == engine.Key
}

// settleKeys sends the store what is owed for these keys, and waits for it. It
// reports whether the store knows of all now. After an error that is not about a
// single key it gives up: the others have no better chance.
func (r *Remote) settleKeys(ctx context.Context, debtors []string) (complete bool) {
	var next atomic.Int64
	var left atomic.Bool
	var workers sync.WaitGroup
	for range min(settleWorkers, len(debtors)) {
		workers.Go(r.recovering(func() {
			for i := next.Add(1) - 1; i < int64(len(debtors)); i = next.Add(1) - 1 {
				if err := r.settle(ctx, r.near.Collect(debtors[i], clock.Now())); err != nil {
					left.Store(true)
					if r.fault(err) != engine.Key {
						next.Store(int64(len(debtors)))
					}
				}
			}
		}))
	}
	workers.Wait()
	return !left.Load()
}

// settle sends the store what was collected of a key. What the store knows, or may
// know, is not sent twice.
func (r *Remote) settle(ctx context.Context, b *nearcache.Batch) (err error) {
	if b == nil {
		return nil
	}
	sent := 0
	defer func() { r.near.Settle(b, sent, clock.Now()) }() // also if the store panics
	for i := range b.Owed {
		o := &b.Owed[i]
		sent = i + 1
		_, err = r.move(ctx, b.Key, o.Units, r.sendAt(o.At), &engine.Limits{Rules: []rule.Limit{o.Limit}}, SideTimeout)
		if err != nil {
			if r.unchanged(err) {
				sent = i
			}
			return err
		}
	}
	return nil
}
