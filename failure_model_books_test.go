package ratelimit_test

import (
	"fmt"
	"math/bits"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// This file counts what limiters admit, from outside: what was admitted when,
// and what was given back. It checks each algorithm's documented bound in every
// interval. If it cannot know how many units a limiter has given back, it
// assumes the most. So a limiter that keeps its bounds never fails.
//
// Units that AddCost charges are not counted. They only leave less for others.

// books are the accounts of all keys. Times are since the beginning of the
// history.
type books struct {
	begin    time.Time
	slack    time.Duration // units may be admitted this much later than the store has counted them
	shared   bool          // several processes share the store
	lasting  bool          // no window ends before the history does
	synced   time.Duration // when the store last knew of all units
	accounts map[counterID]*account
	stale    map[string]bool // keys whose last Reset may not have reached the store
}

// A counterID identifies a counter at the store.
type counterID struct {
	key       string
	algorithm string
	window    time.Duration
}

// An account has the admissions of a key under one algorithm and window.
type account struct {
	limit         Limit // the largest limit that the key was used under
	stale         bool  // the store's windows may have begun before the account
	unknown       bool  // the store may have charged units that the process does not know
	entries       []*entry
	excess        []excess
	windows       map[time.Duration]int64 // units kept, by the end of their window
	level         level
	unsentUnits   int64 // units admitted without the store since the last sync
	returnedUnits int64 // units given back since then
}

// An entry has units that were admitted together. An entry without units means that
// a window may have begun.
type entry struct {
	account  *account
	at       time.Duration // when the store has counted them; for others, when they were admitted
	kept     int64         // units that were not given back
	charged  int64         // units that AddCost has charged, or fewer
	refunded int64         // units, taken or charged, that Refund may have given back
	window   time.Duration // the end of their window; 0 if that is not known
	local    bool          // admitted without the store
}

// An excess has units that may be above the bound, in every interval that
// contains this instant.
type excess struct {
	at time.Duration
	n  int64
}

// A level is the level of a bucket that all admitted units go through. It counts
// units times the length of the window.
type level struct {
	at    time.Duration
	full  int64
	spare int64 // how much it may be above the brim
}

func newBooks(w *world) *books {
	return &books{
		begin: time.Now().Add(-1), slack: w.opts.Lease, // no entry is at 0
		accounts: map[counterID]*account{}, stale: map[string]bool{},
	}
}

func (b *books) now() time.Duration { return time.Since(b.begin) }

// account returns the account of a key for a limit.
func (b *books) account(key string, l Limit) *account {
	id := counterID{key, l.Algorithm(), l.Window()}
	a := b.accounts[id]
	if a == nil {
		a = &account{limit: l, stale: b.stale[key], windows: map[time.Duration]int64{}}
		b.accounts[id] = a
	}
	if l.Burst() > a.limit.Burst() {
		a.limit = l
	}
	return a
}

// An admission describes units that were admitted.
type admission struct {
	at     time.Duration // see entry.at
	window time.Duration // when the window ends, if there is only one; 0 if not known
	local  bool          // the store does not know of them
	leased bool          // the store has counted them before
}

// admit enters n units of key. It returns which bound they exceed, or "".
func (b *books) admit(key string, limits []Limit, n int64, how admission) (entries []*entry, exceeded string) {
	for _, l := range limits {
		a := b.account(key, l)
		e := &entry{account: a, at: how.at, kept: n, local: how.local && (b.shared || a.forgot())}
		if len(limits) == 1 && l.Algorithm() == "fixed" && how.window != 0 {
			e.window = how.window
			a.windows[e.window] += n
		}
		a.entries = append(a.entries, e)
		entries = append(entries, e)
		if e.local {
			a.excess = append(a.excess, excess{how.at, n})
			a.unsentUnits += n
		}
		if b.levels(l) {
			a.level.leak(l, how.at)
			a.level.full += n * int64(l.Window())
			if how.leased && len(a.excess) > 0 {
				a.level.cap(a.limit) // the store counted them before it was full
			}
		}
		// Units fit the limit that they were admitted under, unless it has been
		// lowered since they were leased. If another process has admitted units
		// alone, the store counts them only up to that process's limit. Then
		// the check uses the largest limit.
		if how.leased || (b.shared || a.forgot()) && len(a.excess) > 0 {
			l = a.limit
		}
		if exceeded == "" {
			exceeded = b.exceeded(a, e, l)
		}
	}
	return entries, exceeded
}

// forgot reports whether the store may count units that the process does not know: after a
// Reset that has not reached it, or a charge that was not answered. A full rolling
// window takes no more units, so the store may not count the units that it gets then.
func (a *account) forgot() bool {
	return (a.stale || a.unknown) && a.limit.Algorithm() == "rolling"
}

// mayNotKnow enters that the store has charged units of key without an answer.
func (b *books) mayNotKnow(key string, limits []Limit) {
	for _, l := range limits {
		b.account(key, l).unknown = true
	}
}

// open enters that a window may have begun, although no unit was admitted.
func (b *books) open(key string, limits []Limit, at time.Duration) (entries []*entry) {
	for _, l := range limits {
		a := b.account(key, l)
		e := &entry{account: a, at: at}
		a.entries = append(a.entries, e)
		entries = append(entries, e)
	}
	return entries
}

// charge enters that AddCost has charged a request for n units or fewer. A
// charge may begin a window, too.
func (b *books) charge(f *inflight, entries []*entry, n int64) {
	for _, e := range entries {
		most := e.account.limit.Burst()
		e.charged = min(e.charged+min(n, most), most)
	}
	b.open(f.key, f.limits, b.now())
}

// mayExceed enters that n units of key may be above the bound, if they were
// admitted before now.
func (b *books) mayExceed(key string, limits []Limit, n int64) {
	for _, l := range limits {
		a := b.account(key, l)
		a.excess = append(a.excess, excess{b.now(), n})
	}
}

// exceeded checks all intervals that end with the last entry, which was admitted
// under l.
func (b *books) exceeded(a *account, last *entry, l Limit) string {
	n, window := l.N(), l.Window()
	var units, allowed int64
	fails := func(units int64, where string, at ...any) string {
		return fmt.Sprintf("%v: %d units kept %s, with %d in excess allowed", l, units, fmt.Sprintf(where, at...), allowed)
	}
	if l.Algorithm() == "calendar" {
		begin, _, _ := l.Period(b.begin.Add(last.at))
		for _, e := range a.entries {
			if e.at >= begin.Sub(b.begin) {
				units += e.kept
			}
		}
		for _, e := range a.excess {
			if e.at >= begin.Sub(b.begin) {
				allowed += e.n
			}
		}
		if units-allowed > n {
			return fails(units, "in the period of %v", last.at)
		}
		return ""
	}
	next, rolls := len(a.excess)-1, l.Algorithm() == "rolling"
	for i := len(a.entries) - 1; i >= 0; i-- {
		first := a.entries[i]
		units += first.kept
		for ; next >= 0 && a.excess[next].at >= first.at; next-- {
			allowed += a.excess[next].n
		}
		span := last.at - first.at
		switch over := units - allowed; {
		case l.Algorithm() == "bucket":
			if over > l.Burst() && less(n, int64(span+b.slack), over-l.Burst(), int64(window)) {
				return fails(units, "from %v to %v", first.at, last.at)
			}
		case rolls:
			// Any interval, and all of them as long as the window.
			if span < window && over > n {
				return fails(units, "from %v to %v", first.at, last.at)
			}
		case i == 0 && !a.stale && span < window && over > n:
			return fails(units, "in the first window, from %v to %v", first.at, last.at)
		case span+b.slack < window && over > n+a.limit.N():
			return fails(units, "from %v to %v", first.at, last.at)
		}
	}
	for ; next >= 0; next-- {
		allowed += a.excess[next].n
	}
	if kept := a.windows[last.window]; last.window != 0 && kept > n+allowed {
		return fails(kept, "in the window that ends at %v", last.window)
	}
	if b.shared {
		allowed = a.unsentUnits
		if !b.lasting && len(a.excess) > 0 {
			return "" // the store has counted them up to limits of all sizes
		}
	}
	brim := (l.Burst()+allowed)*int64(window) + n*int64(b.slack) + a.level.spare
	if b.levels(l) && a.level.full > brim {
		return fails(a.level.full/int64(window), "in a bucket")
	}
	return ""
}

// less reports whether a*b < c*d.
func less(a, b, c, d int64) bool {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	hi2, lo2 := bits.Mul64(uint64(c), uint64(d))
	return hi < hi2 || hi == hi2 && lo < lo2
}

// levels reports whether a level is kept under l. A fixed or rolling window that does not
// end is a bucket that does not leak.
func (b *books) levels(l Limit) bool {
	return l.Algorithm() == "bucket" || (l.Algorithm() == "fixed" || l.Algorithm() == "rolling") && b.lasting
}

func (l *level) leak(limit Limit, now time.Duration) {
	if limit.Algorithm() != "bucket" {
		return
	}
	hi, leaked := bits.Mul64(uint64(limit.N()), uint64(now-l.at))
	l.at = now
	if hi > 0 || leaked >= uint64(l.full) {
		l.full = 0
		return
	}
	l.full -= int64(leaked)
}

// cap lowers the level to the brim, because the store does not count units for
// which it has no room.
func (l *level) cap(limit Limit) { l.full = min(l.full, limit.Burst()*int64(limit.Window())) }

// sync enters that the store now knows of all units that processes have
// admitted.
func (b *books) sync(processes int64) {
	now := b.now()
	for _, a := range b.accounts {
		a.level.leak(a.limit, now)
		a.level.cap(a.limit)
		if a.unsentUnits > 0 {
			// The store may have had no room for them before it knew of units
			// that were given back. Also, two buckets have leaked: the store's
			// and the process's.
			window := int64(a.limit.Window())
			a.level.spare += a.returnedUnits * window
			if a.limit.Algorithm() == "bucket" {
				a.level.spare += processes * (a.limit.N()*int64(now-b.synced) + window)
			}
		}
		a.unsentUnits, a.returnedUnits = 0, 0
	}
	b.synced = now
}

// refund enters a Refund, which gives back the units that were taken last.
func (b *books) refund(key string, limits []Limit, n int64) {
	for _, l := range limits {
		a := b.account(key, l)
		a.drain(n, b.now())
		a.refund(n, b.now())
	}
}

// giveBack enters that a request gives back n units, or as many as it has taken
// or was charged for.
func (b *books) giveBack(entries []*entry, n int64) {
	for _, e := range entries {
		a := e.account
		a.drain(n, b.now())
		rest := n - e.giveBack(n, b.now())
		if charged := min(rest, e.charged); charged > 0 && b.shared {
			// They may have been charged alone; see entry.giveBack.
			e.charged -= charged
			a.excess = append(a.excess, excess{b.now(), charged})
		}
		// Units that Refund has given back are given back again, at others'
		// expense.
		if returnedTwice := min(rest, e.refunded); returnedTwice > 0 {
			e.refunded -= returnedTwice
			a.refund(returnedTwice, b.now())
		}
	}
}

// drain takes n units out of the level. Units above the brim may not have been
// counted by then.
func (a *account) drain(n int64, now time.Duration) {
	a.level.leak(a.limit, now)
	a.level.cap(a.limit)
	window := int64(a.limit.Window())
	n = min(n, a.level.full/window+1)
	a.returnedUnits += n
	a.level.full = max(0, a.level.full-n*window)
}

// refund gives back n units of the last entries. Instead of them, Refund may
// have given back units that requests were charged for.
func (a *account) refund(n int64, now time.Duration) {
	for i := len(a.entries) - 1; i >= 0 && n > 0; i-- {
		given := a.entries[i].giveBack(n, now)
		a.entries[i].refunded += given
		n -= given
	}
	for _, e := range a.entries {
		e.refunded, e.charged = e.refunded+e.charged, 0
	}
}

// giveBack gives back n units of the entry, or all that are left, and returns
// how many.
func (e *entry) giveBack(n int64, now time.Duration) int64 {
	n = min(n, e.kept)
	e.kept -= n
	if e.window != 0 {
		e.account.windows[e.window] -= n
	}
	if e.local && n > 0 {
		// The store may have been full, and not have counted these units.
		// Giving them back then leaves room for as many of others.
		e.account.excess = append(e.account.excess, excess{now, n})
	}
	return n
}

// refundable is how many units of key were taken at this very instant.
func (b *books) refundable(key string, limits []Limit) (n int64) {
	n = most
	for _, l := range limits {
		entries := b.account(key, l).entries
		if len(entries) == 0 || entries[len(entries)-1].at != b.now() {
			return 0
		}
		n = min(n, entries[len(entries)-1].kept)
	}
	return n
}

// reset forgets a key. If the store has perhaps not been reset, its windows go
// on.
func (b *books) reset(key string, certain bool) {
	b.stale[key] = !certain
	for id := range b.accounts {
		if id.key == key {
			delete(b.accounts, id)
		}
	}
}
