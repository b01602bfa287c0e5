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
	"github.com/ratelimit-go/ratelimit/internal/guard"
	"github.com/ratelimit-go/ratelimit/internal/nearcache"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Units that were admitted while the store was unavailable are owed to it. This
// file sends them when the store answers again. Until then the store cannot
// decide requests for their key, because it would admit the same units again.
// Which units are owed is in package nearcache.

// errOwing is the reason for a decision in this process although the store may
// be available.
var errOwing = errors.New("the store does not know yet of units that were admitted without it")

const (
	// settleWorkers is the number of goroutines that settle keys. With a store
	// nearby, they settle 65,536 keys in about a second.
	settleWorkers = 16
	// settlePause is the pause after a failure, in nanoseconds. There is a pause
	// because each attempt goes through all keys with owed units.
	settlePause = int64(100 * time.Millisecond)
)

// awaitSettled reports whether units of a key are still owed. If they can be sent
// to the store, it waits for that, and waited is true. It waits for at most wait,
// and for at most half of the timeout. Without this wait, a key in constant use
// would never be decided by the store again, because each decision here would owe
// more units. awaitSettled may start goroutines that settle.
func (r *Remote) awaitSettled(ctx context.Context, key string, wait time.Duration) (owes, waited bool) {
	owes, sending := r.near.Owes(key)
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
	timer := time.NewTimer(min(wait, most))
	defer timer.Stop()
	const rounds = 3 // other callers may decide here in the meantime, or the store may fail
	for range rounds {
		if sending == nil {
			r.settleKey(key)
			owes, sending = r.near.Owes(key)
		}
		if sending == nil {
			break
		}
		select {
		case <-sending:
		case <-timer.C:
			return true, true
		case <-ctx.Done():
			return true, true
		}
		if owes, sending = r.near.Owes(key); !owes {
			break
		}
	}
	return owes, true
}

// settleKey sends the store what is owed for a key, on its own goroutine. It
// does not wait.
func (r *Remote) settleKey(key string) {
	owed := r.near.BeginSending(key, clock.Now())
	if owed == nil {
		return
	}
	if !r.goOwner(func(o *Remote) { o.settle(o.closing, owed) }) {
		r.near.EndSending(owed, 0, clock.Now())
	}
}

// settleAll sends the store everything that it is owed. It starts a goroutine for
// that and does not wait. It does nothing during a pause, if the breaker allows no
// call, or if settling is already running. If first is not empty, it is a key in
// use, and is settled first.
func (r *Remote) settleAll(first string) {
	owner, now := r.owner.Load(), clock.Now()
	if now < owner.sendNotBefore.Load() || !r.breaker.Ready(now) || owner.sending.Load() {
		return
	}
	first = strings.Clone(first)
	r.goOwner(func(o *Remote) {
		if !o.sending.CompareAndSwap(false, true) {
			return
		}
		defer o.sending.Store(false)
		owingKeys := o.near.OwingKeys(now)
		if first != "" {
			owingKeys = append([]string{first}, owingKeys...)
		}
		if len(owingKeys) > 0 && o.storeAnswers(o.closing, owingKeys[0]) != nil {
			return
		}
		if complete := o.settleKeys(o.closing, owingKeys); !complete || len(owingKeys) == 0 {
			o.sendNotBefore.Store(clock.Now() + settlePause)
		}
	})
}

// settleUntilNone sends the store what it is owed, until nothing is owed any more. There
// is one such goroutine at most, and only after a block by hand: other units and blocks are
// sent when requests come, but nobody may ask this process about that key, and other
// processes must learn of the block. The pauses grow with the outage, to a sixteenth of it.
func (r *Remote) settleUntilNone() {
	r.goOwner(func(o *Remote) {
		start := clock.Now()
		resend := func() {
			for o.near.Owing() > 0 {
				o.settleAll("")
				timer := time.NewTimer(max(time.Second, time.Duration(clock.Now()-start)/16))
				select {
				case <-timer.C:
				case <-o.loopsStopped:
					timer.Stop()
					return
				}
			}
		}
		for o.near.Owing() > 0 && !o.areLoopsStopped() && guard.Alone(&o.resending, resend) {
			// A block may have been added just before: check once more.
		}
	})
}

// storeAnswers returns an error if the store cannot be sent what it is owed for a key. It asks
// first, with one call without units, unless the last call has succeeded and the store's
// clock is known. It waits for the answer. If the store only refuses this key, it can be sent
// units nevertheless.
//
// Units whose reply is lost are not sent again, because the store may have counted them. Just
// after a failure a lost reply is likely: the client may have more connections that are as
// dead as the one that has just failed, and each call finds one of them. A call without units
// loses nothing. It also closes a breaker that is open, which would let one of several
// settling goroutines call and refuse the others. And it teaches the store's clock: without
// that, units of long ago would be sent as of now, and count for too long.
func (r *Remote) storeAnswers(ctx context.Context, key string) error {
	start := clock.Now()
	if _, known := r.near.StoreTime(start); known && !r.breaker.Failing() {
		return nil
	}
	until := r.until(start)
	if until == 0 {
		until = start + int64(SideTimeout)
	}
	err := r.look(ctx, key, r.limits.Load(), until)
	if err != nil && r.fault(err) == engine.Key {
		return nil
	}
	return err
}

// settleKeys sends the store what is owed for these keys. It starts goroutines
// and waits for them. It reports whether the store now knows of all units. After
// an error that is not about a single key it stops, because the other keys would
// most likely fail, too.
func (r *Remote) settleKeys(ctx context.Context, owingKeys []string) (complete bool) {
	var next atomic.Int64
	var left atomic.Bool
	var workers sync.WaitGroup
	for range min(settleWorkers, len(owingKeys)) {
		workers.Go(r.recovering(func() {
			for i := next.Add(1) - 1; i < int64(len(owingKeys)); i = next.Add(1) - 1 {
				if err := r.settle(ctx, r.near.BeginSending(owingKeys[i], clock.Now())); err != nil {
					left.Store(true)
					if r.fault(err) != engine.Key {
						next.Store(int64(len(owingKeys)))
					}
				}
			}
		}))
	}
	workers.Wait()
	return !left.Load()
}

// settle sends a batch to the store and waits for the replies. It never sends units a
// second time if the store has counted them, or may have. A block is sent until the store
// has it: to join it again changes nothing.
func (r *Remote) settle(ctx context.Context, b *nearcache.Batch) (err error) {
	if b == nil {
		return nil
	}
	sent := 0
	defer func() { r.near.EndSending(b, sent, clock.Now()) }() // also if the store panics
	if err := r.storeAnswers(ctx, b.Key); err != nil {
		return err
	}
	for i := range b.Owed {
		o := &b.Owed[i]
		sent = i + 1
		limits := &engine.Limits{Rules: []rule.Limit{o.Limit}}
		if o.Units != 0 {
			_, err = r.move(ctx, b.Key, o.Units, r.sendAt(o.At), limits, SideTimeout)
		} else {
			err = r.sendBlock(ctx, b.Key, o.Block, limits)
		}
		if err != nil {
			if o.Units == 0 || r.storeUnchanged(err) {
				sent = i
			}
			return err
		}
	}
	return nil
}

// sendBlock sends the store a block that ends at an instant of our clock, and waits for
// the reply. The store gets the time for which it lasts from now on. So a block whose
// command is held up ends that much later.
func (r *Remote) sendBlock(ctx context.Context, key string, b rule.Block, limits *engine.Limits) error {
	start := clock.Now()
	b.Until -= start
	_, err := r.ask(ctx, start, 0, func(ctx context.Context) (int64, error) {
		ctx, cancel := context.WithTimeout(ctx, SideTimeout)
		defer cancel()
		return noInstant, r.opts.Engine.Block(ctx, key, b, limits)
	})
	return err
}
