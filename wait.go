package ratelimit

import (
	"context"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file has callers that wait until their units fit: requests of a limiter with
// Options.MaxWait, and calls of Wait.
//
// The callers that wait for a key are in its queue, in order of arrival. Only the first one,
// the head of the queue, asks for its units. If it is denied, it sleeps until RetryAfter, and
// asks again. So a key has one timer, and one decision for each unit that comes back, however
// many wait. When the head leaves, the next one is the head. The results of the head often
// say until when the units of the next one cannot fit, and then it sleeps before it asks.
//
// The others have no timers. A caller is denied at once if the head is asleep, or goes to
// sleep, until after the caller's time. So the head wakes before the time of any caller
// behind it is over.
//
// If only an in-flight limit has denied the head, nobody knows when a hold ends. The head
// sleeps until one ends in this process, and asks again from time to time if other processes
// have holds, too. It wakes to deny each caller behind it whose time is over.

// maxKeyWaiting is how many requests of one key wait.
const maxKeyWaiting = 16

// after returns an instant some time later, or the latest one if that is too late.
func after(now int64, wait time.Duration) int64 {
	if int64(wait) > math.MaxInt64-now {
		return math.MaxInt64
	}
	return now + int64(wait)
}

// lines are the queues of a limiter. The zero lines are empty.
type lines struct {
	made       atomic.Pointer[waits]
	generation int64 // how many limiters have shared the queues before this one
}

// waits has the queues of a limiter and of its successors by Reload.
type waits struct {
	seed     maphash.Seed
	all      atomic.Int64 // callers that wait
	requests atomic.Int64 // the requests among them
	early    atomic.Int64 // how often units may have come back early, of any key
	open     atomic.Int64 // the first generation that was not closed, nor a later one
	shards   [64]waitShard
}

type waitShard struct {
	mu     sync.Mutex
	queues map[string]*queue
}

// A queue has the callers that wait for one key. The lock of its shard guards it.
type queue struct {
	waiters  []*waiter // in order of arrival; the first one is the head
	requests int
	soonest  int64         // no time of those behind the head is over before this instant
	wake     int64         // when the head asks again, by package clock; 0 while it asks, or if it waits for a hold
	nap      int64         // when the head looks at those behind it, if it waits for a hold
	early    chan struct{} // receives if units may fit earlier
}

// A waiter is a caller that wants n units of a key, and waits for them if they do not fit.
type waiter struct {
	limiter waitedFor
	counts  *counts // of the limiter
	all     *waits  // of the limiter
	key     string
	n       int64
	until   int64 // when it does not wait any more, by package clock
	most    int64 // Options.MaxWaiting if it is a request, and otherwise 0
	recheck int64 // how often to ask for a hold that another process may have ended; 0 for never
	early   int64 // all.early before it last asked

	// What it has got last:
	policy  *policy // SetLimits may change the limits while it waits
	taken   taken
	results [MaxLimits]Result
	err     error

	asked  bool        // it has asked, and was denied
	wake   int64       // its units do not fit before this instant
	hold   bool        // there was no room for its hold, whose time nobody knows
	waited int64       // for how long it has waited, in nanoseconds
	turn   chan turnOf // receives once, if it has joined behind the head
}

// waitedFor is what a waiter needs of its limiter.
type waitedFor interface {
	// askFor asks for the waiter's units under the limits in force, without counting the
	// decision: it sets policy, taken, results and err. After Close, err is ErrClosed.
	askFor(ctx context.Context, w *waiter)

	// lookFor looks at what is left under the waiter's policy: it sets taken, results and err.
	// Nothing is taken.
	lookFor(ctx context.Context, w *waiter)

	// isClosed reports whether the limiter was closed, or the one that has replaced it.
	isClosed() bool

	// wrap says whose error it is.
	wrap(err error) error
}

// turnOf is what ends the time of a waiter behind the head.
type turnOf uint8

const (
	turnHead   turnOf = iota // it is the head now, and wake is set
	turnDenied               // its time is over, or will not suffice; wake is the head's
	turnClosed               // its limiter was closed
	turnLeft                 // its context is done
)

// place says where join has put a waiter.
type place uint8

const (
	placeNone    place = iota // nowhere: nobody waits, and it has not asked yet
	placeHead                 // it is the head
	placeBehind               // it is behind the head
	placeFull                 // nowhere: too many requests wait
	placeTooLate              // nowhere: the head sleeps until after its time
	placeClosed               // nowhere: its limiter was closed
)

// take is [Limiter.take] for a waiter: it fills in policy, taken, results and err. It
// counts the decision.
func (w *waiter) take(ctx context.Context) {
	for at := placeNone; at == placeNone; {
		if !w.asked && !w.all.someoneWaits(w.key) && !w.ask(ctx) || w.asked && w.tooLong() {
			break
		}
		switch at = w.join(); {
		case at == placeHead || at == placeBehind:
			w.inQueue(ctx, at)
		case at == placeFull && !w.asked:
			w.ask(ctx)
		case at == placeTooLate && !w.asked:
			w.lookDenied(ctx)
		case at == placeClosed:
			w.limiter.askFor(ctx, w) // and get the error
		}
	}
	if w.err == nil {
		w.counts.decided(w.n, w.policy, &w.taken, w.results[:])
		if w.waited > 0 {
			w.counts.waited.Add(1)
			w.counts.waitTime.Add(w.waited)
		}
	}
}

// binds returns the result of the limit that binds.
func (w *waiter) binds() *Result { return &w.results[w.taken.bound] }

// tooLong reports whether the units that it was denied do not fit within its time.
func (w *waiter) tooLong() bool {
	return w.binds().RetryAfter == Never || w.wake > w.until || w.hold && clock.Now() >= w.until
}

// ask asks for the units, and reports whether they do not fit. Then wake is set. It does not
// count the decision.
func (w *waiter) ask(ctx context.Context) (denied bool) {
	if (w.wake > 0 || w.hold) && ctx.Err() == context.DeadlineExceeded {
		ctx = context.WithoutCancel(ctx) // the units fit just before the deadline, or at it
	}
	w.early = w.all.early.Load()
	w.limiter.askFor(ctx, w)
	w.asked = false
	if w.err == nil && w.binds().RetryAfter > 0 {
		w.denied()
	}
	return w.asked
}

// denied notes that the waiter has asked, and was denied.
func (w *waiter) denied() {
	longest := time.Duration(0)
	for i := range w.policy.limits {
		longest = max(longest, w.results[i].RetryAfter)
	}
	w.asked, w.wake = true, after(clock.Now(), longest)
	w.hold = w.policy.inFlight != nil && w.results[len(w.policy.limits)].RetryAfter > 0
}

// lookDenied is for a waiter that is denied because of the head, without having asked: it
// might get units that the head waits for. It looks at what is left, and fills in a denial.
// The RetryAfter of a request for several units may be longer than needed.
func (w *waiter) lookDenied(ctx context.Context) {
	if ctx.Err() == context.Canceled { // it has left, which is no decision
		w.err = w.limiter.wrap(ctx.Err())
		return
	}
	if w.limiter.lookFor(context.WithoutCancel(ctx), w); w.err != nil { // its deadline may have passed
		return
	}
	results := w.results[:w.policy.width()]
	var answers [MaxLimits]rule.Answer // what rule.Binding compares
	for i := range results {
		r, n := &results[i], w.n
		if i == len(w.policy.limits) {
			n = 1 // hold
		}
		switch missing := n - r.Remaining; {
		case n > w.policy.limit(i).rule.Cap():
			r.RetryAfter = Never
		case missing > 1:
			r.RetryAfter = r.ResetAfter
		case missing == 1:
			r.RetryAfter = r.MoreAfter
		}
		answers[i] = rule.Answer{Remaining: r.Remaining, Retry: int64(r.RetryAfter)}
	}
	w.taken.bound = rule.Binding(answers[:len(results)])
	if r := w.binds(); r.RetryAfter == 0 { // the units would fit, if the head did not wait for more
		r.RetryAfter = time.Duration(max(1, w.wake-clock.Now()))
	}
}

// inQueue waits in the queue that the waiter has joined, until it is admitted, is denied,
// or gives up.
func (w *waiter) inQueue(ctx context.Context, at place) {
	if at == placeBehind {
		switch w.waitForTurn(ctx) {
		case turnDenied:
			w.lookDenied(ctx)
			return
		case turnClosed:
			w.limiter.askFor(ctx, w) // and get the error
			return
		case turnLeft:
			w.err = w.limiter.wrap(ctx.Err())
			return
		}
	}
	defer w.passOn() // also if the store panics
	for w.sleep(ctx) {
		if !w.ask(ctx) || w.tooLong() {
			return
		}
	}
	w.err = w.limiter.wrap(ctx.Err())
}

// join puts the waiter into the queue of its key.
func (w *waiter) join() place {
	all := w.all
	s := all.lock(w.key)
	defer s.mu.Unlock()
	q := s.queues[w.key]
	switch {
	case w.limiter.isClosed(): // Close may have let all others go already
		return placeClosed
	case q == nil && !w.asked:
		return placeNone
	case q != nil && q.wake > w.until:
		w.wake = q.wake
		return placeTooLate
	}
	if w.most > 0 {
		if q != nil && q.requests >= maxKeyWaiting || all.requests.Load() >= w.most {
			return placeFull
		}
		if all.requests.Add(1) > w.most {
			all.requests.Add(-1)
			return placeFull
		}
	}
	at := placeBehind
	if q == nil {
		at, q = placeHead, &queue{soonest: math.MaxInt64, wake: w.wake, early: make(chan struct{}, 1)}
		if s.queues == nil {
			s.queues = make(map[string]*queue)
		}
		s.queues[w.key] = q
	} else {
		w.turn = make(chan turnOf, 1)
		q.soonest = min(q.soonest, w.until)
		if w.until < q.nap {
			q.askNow() // the head sleeps for too long
		}
	}
	q.waiters = append(q.waiters, w)
	if w.most > 0 {
		q.requests++
	}
	all.all.Add(1)
	w.counts.waiting.Add(1)
	if at == placeHead && all.early.Load() != w.early {
		q.askNow() // units that came back after it had asked could not wake it
	}
	return at
}

// remove removes a waiter from its queue, by its number there. The queue's shard must be
// locked.
func (all *waits) remove(q *queue, i int) {
	all.removed(q, q.waiters[i])
	if i > 0 {
		q.waiters = slices.Delete(q.waiters, i, i+1)
		return
	}
	q.waiters[0] = nil
	q.waiters = q.waiters[1:] // the others need not move
}

// removed counts a waiter no longer. The queue's shard must be locked.
func (all *waits) removed(q *queue, w *waiter) {
	if w.most > 0 {
		q.requests--
		all.requests.Add(-1)
	}
	all.all.Add(-1)
	w.counts.waiting.Add(-1)
}

// denyBehind denies those behind the head whose time is over before an instant. The queue's
// shard must be locked.
func (all *waits) denyBehind(q *queue, instant int64) {
	if q.soonest >= instant {
		return
	}
	q.soonest = math.MaxInt64
	stay := q.waiters[:1]
	for _, w := range q.waiters[1:] {
		if w.until >= instant {
			stay = append(stay, w)
			q.soonest = min(q.soonest, w.until)
			continue
		}
		w.wake = instant
		all.removed(q, w)
		w.turn <- turnDenied
	}
	clear(q.waiters[len(stay):])
	q.waiters = stay
}

// waitForTurn waits behind the head.
func (w *waiter) waitForTurn(ctx context.Context) turnOf {
	start := clock.Now()
	defer func() { w.waited += clock.Now() - start }()
	select {
	case turn := <-w.turn:
		return turn
	case <-ctx.Done():
	}
	all := w.all
	s := all.lock(w.key)
	defer s.mu.Unlock()
	q := s.queues[w.key]
	if q != nil {
		if i := slices.Index(q.waiters, w); i > 0 {
			w.wake = q.wake
			all.remove(q, i)
			if ctx.Err() == context.DeadlineExceeded {
				return turnDenied
			}
			return turnLeft
		}
	}
	return <-w.turn // it was sent at the same time
}

// sleep sleeps at the head of the queue, until wake or until units may fit earlier. It
// returns false if ctx was done before.
func (w *waiter) sleep(ctx context.Context) bool {
	start := clock.Now()
	forHold := w.hold && w.wake <= start
	wake := w.wake
	if forHold {
		if wake = w.until; w.recheck > 0 {
			wake = min(wake, after(start, time.Duration(w.recheck)))
		}
	}
	for now := start; now < wake && !w.nap(ctx, wake, now, forHold); {
		now = clock.Now()
	}
	w.waited += clock.Now() - start
	s := w.all.lock(w.key)
	q := s.queues[w.key]
	q.wake, q.nap = 0, 0
	s.mu.Unlock()
	switch ctx.Err() {
	case nil:
		return true
	case context.DeadlineExceeded:
		return forHold || w.wake > 0 && clock.Now() >= w.wake
	}
	return false
}

// nap sleeps until wake. If the head waits for a hold, it sleeps at most until the time of a
// caller behind it is over, and denies that caller. nap reports whether something else has
// ended it.
func (w *waiter) nap(ctx context.Context, wake, now int64, forHold bool) (ended bool) {
	s := w.all.lock(w.key)
	q := s.queues[w.key]
	if len(q.early) == 0 { // otherwise it asks at once
		if forHold {
			w.all.denyBehind(q, now+1)
			wake = min(wake, q.soonest)
			q.nap = wake
		} else {
			q.wake = wake
			w.all.denyBehind(q, max(wake, now))
		}
	}
	s.mu.Unlock()
	timer := time.NewTimer(time.Duration(wake - now))
	defer timer.Stop()
	select {
	case <-timer.C:
		return false
	case <-q.early:
	case <-ctx.Done():
	}
	return true
}

// passOn makes the next waiter the head, in place of this one. If its time is over before
// its units can fit, it is denied, and the one after it is next.
func (w *waiter) passOn() {
	all := w.all
	s := all.lock(w.key)
	defer s.mu.Unlock()
	q := s.queues[w.key]
	all.remove(q, 0)
	now := clock.Now()
	for len(q.waiters) > 0 {
		next := q.waiters[0]
		next.wake, next.hold = w.wakeOf(next, now)
		if next.until >= max(next.wake, now) {
			q.wake = next.wake
			next.turn <- turnHead
			return
		}
		all.remove(q, 0)
		next.turn <- turnDenied
	}
	delete(s.queues, w.key)
}

// wakeOf returns before which instant the units of the next waiter do not fit, and whether
// there is no room for its hold, by what this one has got last. 0 means that it must ask.
func (w *waiter) wakeOf(next *waiter, now int64) (wake int64, hold bool) {
	switch {
	case w.err != nil || w.policy != next.policy:
		return 0, false
	case w.asked && next.n >= w.n && w.binds().RetryAfter != Never:
		return w.wake, w.hold
	case w.asked:
		return 0, false
	}
	wait := time.Duration(0)
	for i := range w.policy.limits {
		if r := &w.results[i]; r.Remaining < next.n {
			wait = max(wait, r.MoreAfter)
		}
	}
	full := w.policy.inFlight != nil && w.results[len(w.policy.limits)].Remaining < 1
	return after(now, wait), full
}

// get returns the queues.
func (ls *lines) get() *waits {
	if ls.made.Load() == nil {
		ls.made.CompareAndSwap(nil, &waits{seed: maphash.MakeSeed()})
	}
	return ls.made.Load()
}

// share makes ls the queues of a limiter that is replaced by the one of ls.
func (ls *lines) share(old *lines) {
	ls.made.Store(old.get())
	ls.generation = old.generation + 1
}

// close makes isClosed true for ls, and for the queues of the limiters that its one has
// replaced: nobody else ends the waiting there when a program shuts down. wakeAll then lets the
// waiters go.
func (ls *lines) close() {
	all := ls.made.Load()
	if all == nil {
		return
	}
	for next := ls.generation + 1; ; {
		if open := all.open.Load(); open >= next || all.open.CompareAndSwap(open, next) {
			return
		}
	}
}

// isClosed reports whether close was called for ls, or for the queues of a limiter that has
// replaced its one.
func (ls *lines) isClosed() bool {
	all := ls.made.Load()
	return all != nil && ls.generation < all.open.Load()
}

// wake makes the head of a key's queue ask at once, because units may fit earlier than it
// knows.
func (ls *lines) wake(key string) {
	all := ls.made.Load()
	if all == nil {
		return
	}
	all.early.Add(1) // for a caller that has been denied, and is in no queue yet
	if all.all.Load() == 0 {
		return
	}
	s := all.lock(key)
	defer s.mu.Unlock()
	if q := s.queues[key]; q != nil {
		q.askNow()
	}
}

// wakeAll is wake for all keys. It also lets the waiters behind a head go whose limiter was
// closed.
func (ls *lines) wakeAll() {
	all := ls.made.Load()
	if all == nil {
		return
	}
	all.early.Add(1)
	for i := range all.shards {
		s := &all.shards[i]
		s.mu.Lock()
		for _, q := range s.queues {
			q.askNow()
			for i := len(q.waiters) - 1; i > 0; i-- {
				if w := q.waiters[i]; w.limiter.isClosed() {
					all.remove(q, i)
					w.turn <- turnClosed
				}
			}
		}
		s.mu.Unlock()
	}
}

// askNow wakes the head. The queue's shard must be locked.
func (q *queue) askNow() {
	q.wake = 0
	select {
	case q.early <- struct{}{}:
	default: // the head has not seen the last one yet
	}
}

// lock locks the shard of a key.
func (all *waits) lock(key string) *waitShard {
	s := &all.shards[maphash.String(all.seed, key)%uint64(len(all.shards))]
	s.mu.Lock()
	return s
}

// someoneWaits reports whether there is a queue for a key.
func (all *waits) someoneWaits(key string) bool {
	if all.all.Load() == 0 {
		return false
	}
	s := all.lock(key)
	defer s.mu.Unlock()
	return s.queues[key] != nil
}
