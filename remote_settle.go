package ratelimit

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/near"
)

// errOwing is why a decision is made here although the store may answer: it does not yet
// know of units that were admitted without it, and would admit them again.
var errOwing = errors.New("the store is yet to be told of units that were admitted without it")

// owes reports whether the store is yet to be told of units of a key. If it can be, that is
// waited for, half the timeout at most, and late is true. Whoever decided here
// instead would owe more: a key in constant use would never get back to the store.
func (r *remote) owes(ctx context.Context, key string) (owes, late bool) {
	owes, told := r.near.Owes(key)
	if !owes {
		return false, false
	}
	if r.breaker.Open() {
		r.settleAll(key)
		return true, false
	}
	defer r.waiting.Add(-1)
	if r.waiting.Add(1) > maxWaiting {
		return true, false
	}
	most := r.l.opts.Timeout / 2
	if r.l.opts.Timeout < 0 {
		most = adjustTimeout
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	const rounds = 3 // others may have decided here meanwhile, or telling fails
	for range rounds {
		if told == nil {
			r.tell(key)
			owes, told = r.near.Owes(key)
		}
		if told == nil {
			break
		}
		select {
		case <-told:
		case <-timer.C:
			return true, true
		case <-ctx.Done():
			return true, true
		}
		if owes, told = r.near.Owes(key); !owes {
			break
		}
	}
	return owes, true
}

// tell has the store told what is owed for a key, beside the decisions.
func (r *remote) tell(key string) {
	debts := r.near.Collect(key, clock.Now())
	if debts == nil {
		return
	}
	key = strings.Clone(key)
	if !r.beside(func() { r.settle(key, debts) }) {
		r.near.Settle(key, debts)
	}
}

// settleAll tells the store of everything that is owed, beside the decisions, if it
// is worth a try. It begins with a key that is in use, if that is not empty.
func (r *remote) settleAll(first string) {
	now := clock.Now()
	if now < r.resettle.Load() || !r.breaker.Ready(now) || !r.settling.CompareAndSwap(false, true) {
		return
	}
	first = strings.Clone(first)
	r.beside(func() {
		defer r.settling.Store(false)
		debtors := r.near.Debtors(now)
		if first != "" {
			debtors = append([]string{first}, debtors...)
		}
		if len(debtors) > 0 && r.breaker.Open() {
			if err := r.look(r.closing, debtors[0], r.until(clock.Now())); err != nil && r.fault(err) != FaultKey {
				return
			}
		}
		var next atomic.Int64
		var left atomic.Bool
		var workers sync.WaitGroup
		for range min(settleWorkers, len(debtors)) {
			workers.Go(r.safely(func() {
				for i := next.Add(1) - 1; i < int64(len(debtors)); i = next.Add(1) - 1 {
					if err := r.settle(debtors[i], r.near.Collect(debtors[i], clock.Now())); err != nil {
						left.Store(true)
						if r.fault(err) != FaultKey { // then the others have no better chance
							next.Store(int64(len(debtors)))
						}
					}
				}
			}))
		}
		workers.Wait()
		if left.Load() || len(debtors) == 0 {
			r.resettle.Store(clock.Now() + settlePause)
		}
	})
}

const (
	// settleWorkers tell a store nearby of some 65,536 keys in about a second.
	settleWorkers = 16
	// What could not be told is tried again after a pause: to find it takes a walk through all keys.
	settlePause = int64(100 * time.Millisecond)
)

// untaken is an error of a call that has taken nothing, whatever became of it.
type untaken struct{ error }

func (u untaken) Unwrap() error { return u.error }

// look asks the store for nothing, to see whether it answers.
func (r *remote) look(ctx context.Context, key string, until int64) error {
	limits := r.l.policy.Load().limits
	q := question{key: key, limits: limits, now: clock.Now(), until: until}
	_, err := r.ask(ctx, q.now, func(ctx context.Context) error {
		_, _, err := r.call(ctx, q, make([]Result, len(limits)))
		return err
	})
	return err
}

// settle tells the store what was owed for a key and has been collected.
func (r *remote) settle(key string, debts []near.Debt) (err error) {
	if debts == nil {
		return nil
	}
	defer func() { r.near.Settle(key, debts) }()
	for len(debts) > 0 && err == nil {
		d := debts[0]
		_, err = r.move(r.closing, key, d.Units, r.instant(d.At), []Limit{{rule: d.Limit}})
		if err == nil || !r.unchanged(err) {
			debts = debts[1:] // told, or perhaps told: it is not told twice
		}
	}
	return err
}
