// Package holds keeps the book of one process about holds: units of in-flight limits, each
// from the admission of a request until the request is over. A store decides whether a
// request gets one. Several processes may share it.
//
// The store has a record of each process and key: how many holds have begun there, how many
// have ended, and until when the record counts. What a process says in a call is not "one
// more" or "one less" but both totals, and the store keeps the larger ones. This is what
// makes the count right again after any fault:
//
//   - A call that was lost, or is carried out twice or late, changes nothing for good: the
//     next call has the totals.
//   - A hold that the store has given to a call without a reply is one that has begun
//     there and not here. The next reply shows it, and the process says that it has ended.
//   - The totals of a key never fall, also if the process forgets the key for a while.
//   - Holds that were admitted here while the store was away are in the totals, so the store
//     learns of them with the next call.
//   - A process that was killed says nothing more, and its record ends by itself.
//
// A Book asks no store. Its caller does, and enters the replies; see [Book.Begin]. [Local] is
// that caller for a store in this process, and package remote for others.
package holds

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"slices"
	"strings"
	"sync"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A Book has the holds of this process at one store. Instants and spans are in nanoseconds
// by one monotonic clock, which the caller reads. Its methods may be called from any number
// of goroutines.
type Book struct {
	process string
	changed func()
	local   bool // the store is in this process: it is asked each time, and never away

	mu    sync.Mutex
	keys  map[string]*record
	queue []*record // whose totals have to be reported to the store
	most  int64     // the highest total of a key that was forgotten: new ones begin with it
}

// A record is what the process knows of one key. Book.mu guards it.
type record struct {
	key          string
	began, ended int64 // totals of this process
	lasts        int64 // for how long the store's record counts, at most
	alive        int64 // when this process has last shown that it runs
	calls        int   // calls that the store has not answered yet
	last         int64 // the number of the last one
	acquired     []*Hold
	watched      map[*Hold]context.Context // see Hold.EndsWith
	lost         uint32                    // how often all holds of the record have ended because the process had stood still

	// What the store has said last: in the answer to the call with the number reported, these
	// totals. stored is whether it may have a record, which was renewed by a call that began at
	// renewed. No call began after asked.
	reportedBegan, reportedEnded, reported int64
	stored                                 bool
	renewed, asked                         int64
	doubt                                  bool // a call has ended without an answer, and may have begun a hold
	queued                                 bool

	others, othersUntil int64 // holds of other processes, and until when they count
}

// held returns how many holds there are now.
func (r *record) held() int64 { return r.began - r.ended }

// news reports whether the store does not know the totals, or has a record that it can delete.
func (r *record) news() bool {
	if r.held() == 0 && r.calls == 0 {
		return r.stored
	}
	return r.stored && (r.began > r.reportedBegan || r.ended > r.reportedEnded)
}

// due reports whether the store's record has to be renewed.
func (r *record) due(now int64) bool { return r.held() > 0 && now-r.renewed >= r.lasts/renewals }

// toReport reports whether the store has to be called about the record, without a request.
func (r *record) toReport(now int64) bool { return r.due(now) || r.doubt || r.news() }

// A Hold is one hold of this process. It is not copied.
type Hold struct {
	book   *Book
	record *record
	lost   uint32
	until  int64 // when it ends by itself; 0 for the hold of a request
	ended  bool
	over   bool // End was called
}

// NewBook returns an empty book. It calls changed, on any goroutine and without a lock, when
// [Book.Next] has something to report to the store.
func NewBook(changed func()) *Book {
	var id [12]byte
	rand.Read(id[:])
	return &Book{process: base64.RawURLEncoding.EncodeToString(id[:]), changed: changed, keys: make(map[string]*record)}
}

// of returns the record of a key, which it makes if there is none. b.mu must be held.
func (b *Book) of(key string, lasts, now int64) *record {
	r := b.keys[key]
	if r == nil {
		r = &record{key: strings.Clone(key), alive: now, lasts: lasts, began: b.most, ended: b.most}
		b.keys[r.key] = r
	}
	b.touch(r, now)
	if r.held() == 0 && r.calls == 0 {
		r.lasts = lasts
	}
	r.lasts = max(r.lasts, lasts)
	return r
}

// touch notes that this process runs. If it has stood still for so long that the store's
// record has ended, so have all of its holds: their requests go on without one. b.mu must be
// held.
func (b *Book) touch(r *record, now int64) {
	if r.held() > 0 && now-r.alive >= r.lasts {
		r.ended, r.acquired, r.watched = r.began, nil, nil
		r.lost++
		b.enqueue(r)
	}
	r.alive = max(r.alive, now)
}

// A Call is a call to the store for one hold, or one that looks or renews.
type Call struct {
	record *record
	number int64
	start  int64
}

// Begin notes that the store is asked about a key's holds, and returns what to ask. Each
// Begin is followed by one call of Answered or Failed. Several calls for a key may be under
// way.
func (b *Book) Begin(action rule.HoldAction, key string, most, lasts, now int64) (Call, rule.Holding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.begin(action, b.of(key, lasts, now), most, now)
}

func (b *Book) begin(action rule.HoldAction, r *record, most, now int64) (Call, rule.Holding) {
	if action == rule.AddHold {
		b.hasRoom(r, most, now) // if not, holds that are over are ended first
	}
	r.calls++
	r.last++
	r.asked = max(r.asked, now)
	return Call{r, r.last, now}, rule.Holding{
		Action: action, Most: most, Lasts: r.lasts, Process: b.process, Began: r.began, Ended: r.ended, Alone: r.calls == 1,
	}
}

// Failed notes that a call has ended without an answer. unchanged means that it has
// certainly changed nothing at the store.
func (b *Book) Failed(c Call, unchanged bool) {
	b.mu.Lock()
	r := c.record
	r.calls--
	if !unchanged {
		r.stored, r.doubt = true, true
	}
	b.forget(r, c.start)
	b.mu.Unlock() // Retry and Tick try again
}

// Answered enters the answer to a call. granted means that the store has begun a hold for
// it, which ends by itself at until; 0 for the hold of a request. The returned hold is nil if
// the store has not, or if this process has most holds already, which can be when the store
// was away; then the hold has ended again.
func (b *Book) Answered(c Call, h *rule.Holding, granted bool, until, now int64) (hold *Hold) {
	b.mu.Lock()
	defer b.unlock()
	r := c.record
	b.touch(r, now)
	r.calls--
	if granted {
		full := !b.local && r.held() >= h.Most
		r.began++
		if full {
			r.ended++
		} else {
			hold = b.hold(r, until)
		}
	}
	if r.calls == 0 {
		// What the store has more of than this process, nobody has got.
		if unknown := h.Held.Began - r.began; unknown > 0 {
			r.began += unknown
			r.ended += unknown
		}
	}
	if c.number > r.reported && h.Action != rule.LookHolds {
		r.reported, r.reportedBegan, r.reportedEnded = c.number, h.Held.Began, h.Held.Ended
		r.doubt = r.doubt && r.calls > 0
		switch {
		case h.Held.Began > h.Held.Ended:
			r.stored = true
		case h.Alone:
			r.stored = false
		}
	}
	if granted || h.Action == rule.RenewHolds {
		r.renewed = max(r.renewed, c.start)
	}
	if !b.local {
		r.others, r.othersUntil = h.Held.Others, rule.Lasting(h.Held.OthersLeft, now)
	}
	if r.news() || r.due(now) { // due, if the answer has taken as long as a hold lasts
		b.enqueue(r)
	}
	b.forget(r, now)
	return hold
}

// hold returns a hold that has begun. b.mu must be held.
func (b *Book) hold(r *record, until int64) *Hold {
	h := &Hold{book: b, record: r, lost: r.lost, until: until}
	if until > 0 {
		r.acquired = append(r.acquired, h)
	}
	return h
}

// TakeHere begins a hold without the store, if this process knows of less than most. until
// is when it ends by itself; 0 for the hold of a request. It returns nil if there is no room.
func (b *Book) TakeHere(key string, most, lasts, until, now int64) *Hold {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.of(key, lasts, now)
	if !b.hasRoom(r, most, now) {
		b.forget(r, now)
		return nil
	}
	r.began++
	return b.hold(r, until)
}

// hasRoom reports whether this process knows of less than most holds. Before it says no, it
// ends the holds whose context is done. b.mu must be held.
func (b *Book) hasRoom(r *record, most, now int64) bool {
	if r.heldByAll(now) >= most {
		b.endWatched(r)
	}
	return r.heldByAll(now) < most
}

// heldByAll returns how many holds this process knows of.
func (r *record) heldByAll(now int64) int64 {
	if r.othersUntil <= now {
		return r.held()
	}
	return r.held() + r.others
}

// Left returns how many of most holds are free, as far as this process knows, and for how
// long the first of the others lasts, at most: a hold from Acquire until its own end, and the
// others for as long as lasts.
func (b *Book) Left(key string, most, lasts, now int64) (left, soonest int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.keys[key]
	if r == nil {
		return most, 0
	}
	held := r.heldByAll(now)
	if held > 0 {
		soonest = lasts
	}
	for _, h := range r.acquired {
		soonest = min(soonest, max(1, h.until-now))
	}
	return max(0, most-held), soonest
}

// End ends the hold, and reports whether it was not called before.
func (h *Hold) End() bool {
	b := h.book
	b.mu.Lock()
	first := !h.over
	h.over = true
	if h.isOver() {
		b.mu.Unlock()
		return first
	}
	b.end(h)
	b.forget(h.record, h.record.alive)
	b.unlock()
	return first
}

// isOver reports whether the hold counts no longer. b.mu must be held.
func (h *Hold) isOver() bool { return h.ended || h.lost != h.record.lost }

// end ends a hold that counts. b.mu must be held.
func (b *Book) end(h *Hold) {
	r := h.record
	h.ended = true
	r.ended++
	delete(r.watched, h)
	if h.until > 0 {
		if i := slices.Index(r.acquired, h); i >= 0 {
			r.acquired = slices.Delete(r.acquired, i, i+1)
		}
	}
	if r.news() {
		b.enqueue(r)
	}
}

// EndsWith says that the caller calls End when ctx is done. A context calls nobody before
// the one that has cancelled it goes on. So End may be late: the client may have sent its next
// request already. If there is no room for a hold, the book first ends those whose context is
// done.
func (h *Hold) EndsWith(ctx context.Context) {
	b, r := h.book, h.record
	b.mu.Lock()
	defer b.mu.Unlock()
	if h.isOver() {
		return
	}
	if r.watched == nil {
		r.watched = make(map[*Hold]context.Context)
	}
	r.watched[h] = ctx
}

// endWatched ends the holds whose context is done. b.mu must be held.
func (b *Book) endWatched(r *record) {
	for h, ctx := range r.watched {
		if ctx.Err() != nil {
			b.end(h)
		}
	}
}

// enqueue notes that the totals of a record have to be reported to the store. b.mu must be held.
func (b *Book) enqueue(r *record) {
	if !r.queued {
		r.queued = true
		b.queue = append(b.queue, r)
	}
}

// Waits reports whether there is something to report to the store.
func (b *Book) Waits() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queue) > 0
}

// unlock unlocks the book, and calls changed if there is something to report to the store.
func (b *Book) unlock() {
	waits := len(b.queue) > 0
	b.mu.Unlock()
	if waits {
		b.changed()
	}
}

// forget forgets a record that is of no use any more: this process knows of no hold, and the
// store has no record of it, or one that has ended by itself. b.mu must be held.
func (b *Book) forget(r *record, now int64) {
	if r.held() > 0 || r.calls > 0 || r.queued || b.keys[r.key] != r || r.others > 0 && r.othersUntil > now {
		return
	}
	if known := !r.doubt && !r.stored; known || now-r.asked >= r.lasts {
		delete(b.keys, r.key)
		b.most = max(b.most, r.began)
	}
}

// Next returns a call that reports the totals of a key to the store, if there is one to make. It is
// followed by Answered or Failed, as for Begin.
func (b *Book) Next(now int64) (key string, c Call, h rule.Holding, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.queue) > 0 {
		r := b.queue[0]
		b.queue[0] = nil
		b.queue = b.queue[1:]
		r.queued = false
		if r.toReport(now) {
			c, h = b.begin(rule.RenewHolds, r, 0, now)
			return r.key, c, h, true
		}
		b.forget(r, now)
	}
	b.queue = nil
	return "", Call{}, rule.Holding{}, false
}

// renewals is how often a record is renewed while it lasts. If one call is lost, the next one
// is still in time.
const renewals = 3

// Tick must be called at least once in each [Book.Period] as long as the book is not empty. It
// shows that this process runs, and renews what is due; it tries again to report what
// could not be reported.
func (b *Book) Tick(now int64) {
	b.Retry(now)
	if b.Waits() {
		b.changed()
	}
}

// Retry is Tick without the call of changed.
func (b *Book) Retry(now int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.keys {
		b.touch(r, now)
		if r.toReport(now) {
			b.enqueue(r)
		}
		b.forget(r, now)
	}
}

// Period returns how often Tick must be called, or 0 if the book is empty.
func (b *Book) Period() (period int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.keys {
		p := PeriodOf(r.lasts)
		if r.queued || r.doubt || r.news() {
			p = min(p, retryPeriod)
		}
		if period == 0 || p < period {
			period = p
		}
	}
	return period
}

// retryPeriod is how often a report is tried again, at least.
const retryPeriod = 1_000_000_000

// PeriodOf returns how often Tick must be called for holds that outlive their process for so
// long: twice for each renewal, so that none is late by more than half of the time between.
func PeriodOf(lasts int64) int64 { return max(1, lasts/renewals/2) }
