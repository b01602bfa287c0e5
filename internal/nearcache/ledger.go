package nearcache

import (
	"slices"
	"strings"
	"unique"

	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// The ledger has the keys with units that the store is owed, and for each key records of
// these in the order in which they came about. Like the table it knows a key by its hash.
// It needs the key itself as well, to send it to the store. A key of more than longKey
// bytes is not kept: what is owed of it is sent when a caller comes with it.
//
// It is bounded in bytes. A key that would go beyond pushes out the keys that have been
// in the ledger for the longest, and what the store was owed of these is lost: it
// admits as many units more. That is counted, unless they do not count any more.
// Keys of more than longKey bytes have a quarter of the ledger, and push out only each
// other: a client that sends long keys cannot have short ones forgotten.

type ledger struct {
	keys   map[table.Hash]*entry
	queues [2]queue // of short keys and of long ones
}

type queue struct {
	oldest, newest *entry
	bytes          int
}

// entry is one key of the ledger.
type entry struct {
	hash         table.Hash
	key          string // empty for a long one
	records      []record
	settling     *Batch   // that is being sent now, or nil
	sending      []record // the records of the batch, in the order of its Owed
	older, newer *entry
	bytes        int // that the queue has accounted for
}

// record is units of one counter.
//
// If units is positive, they were taken: all in one window of the counter, if it is not
// of a bucket. If it is negative, they were given back, and first and last are the
// Instant at which they had been taken.
type record struct {
	limit       unique.Handle[rule.Limit] // a pointer: most records have the same few
	units       int64
	first, last int64 // when the first and the last of them were taken, on our clock
	window      int64 // when the counter's window opened
	level       int64 // of a bucket: the units in it after the last was taken, rounded up
}

const (
	longKey = 512
	// entryBytes is what a key costs beside its own bytes and its records: the entry
	// and its place in the map.
	entryBytes  = 160
	recordBytes = 48
	// maxGivenBack is how many records of units given back a key has at most.
	maxGivenBack = 16
)

func (e *entry) owes() bool { return len(e.records) > 0 || e.settling != nil }

// open returns the entry of a key, which it makes if there is none. The caller changes
// it and then calls changed.
func (c *Cache) open(p *place, key string) *entry {
	e := p.ledger.keys[p.Hash]
	if e == nil {
		e = &entry{hash: p.Hash}
		if len(key) <= longKey {
			e.key = strings.Clone(key)
		}
		if p.ledger.keys == nil {
			p.ledger.keys = make(map[table.Hash]*entry)
		}
		p.ledger.keys[e.hash] = e
		p.ledger.queueOf(e).push(e)
		c.owing.Add(1)
	}
	return e
}

// changed accounts for a change to an entry, drops it if it owes nothing, and makes room.
func (c *Cache) changed(p *place, e *entry, now int64) {
	led := &p.ledger
	if !e.owes() {
		c.drop(led, e)
		return
	}
	q := led.queueOf(e)
	bytes := entryBytes + len(e.key) + recordBytes*(cap(e.records)+cap(e.sending))
	q.bytes += bytes - e.bytes
	e.bytes = bytes
	for q.bytes > c.share(e) {
		oldest := q.oldest
		if bytes > c.share(e) {
			oldest = e // there is no room for it alone
		}
		if oldest.settling != nil || slices.ContainsFunc(oldest.records, func(r record) bool { return r.counts(now) }) {
			c.lost.Add(1)
		}
		c.drop(led, oldest)
	}
}

// share is how many bytes the queue of an entry may have.
func (c *Cache) share(e *entry) int {
	if e.key == "" {
		return c.queue / 4
	}
	return c.queue - c.queue/4
}

// drop takes an entry out. Callers that wait for it to be settled wait no longer.
func (c *Cache) drop(led *ledger, e *entry) {
	if e.settling != nil {
		close(e.settling.done)
		e.settling = nil
	}
	q := led.queueOf(e)
	q.unlink(e)
	q.bytes -= e.bytes
	delete(led.keys, e.hash)
	c.owing.Add(-1)
}

func (led *ledger) queueOf(e *entry) *queue {
	if e.key == "" {
		return &led.queues[1]
	}
	return &led.queues[0]
}

func (q *queue) push(e *entry) {
	e.older = q.newest
	if q.newest != nil {
		q.newest.newer = e
	} else {
		q.oldest = e
	}
	q.newest = e
}

func (q *queue) unlink(e *entry) {
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		q.newest = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		q.oldest = e.newer
	}
}

// sameCounter reports whether a record is of the counter that a limit names.
func (r *record) sameCounter(l *rule.Limit) bool {
	of := r.limit.Value()
	return of.Kind == l.Kind && of.Window == l.Window
}

// counts reports whether the units still count anywhere at now. A bucket's may have
// leaked, which Collect finds out.
func (r *record) counts(now int64) bool {
	l, opened := r.limit.Value(), r.window
	if r.units < 0 {
		opened = r.first
	}
	switch l.Kind {
	case rule.Fixed:
		return now-opened < l.Window
	case rule.Sliding:
		return now-opened < 2*l.Window
	}
	return true
}

// owe adds n units that were taken here at an instant, in a window of the counter. after
// is what the counter then holds.
func (e *entry) owe(l *rule.Limit, after rule.State, window, n, at int64) {
	if n <= 0 {
		return
	}
	level := levelOf(l, after, after.T)
	e.records = slices.DeleteFunc(e.records, func(r record) bool { return r.sameCounter(l) && !r.counts(at) })
	for i := len(e.records) - 1; i >= 0; i-- {
		r := &e.records[i]
		if !r.sameCounter(l) {
			continue
		}
		// Units that were given back stay in between: a store that is full would lose
		// units that are charged before those are given back.
		if r.units > 0 && (l.Kind == rule.Bucket || r.window == window) {
			before := rule.State{T: r.last, A: r.level}
			r.level = min(max(level, levelOf(l, before, max(r.last, at))+n), rule.MaxUnits)
			r.limit = unique.Make(*l)
			r.units = min(r.units+n, rule.MaxUnits)
			r.first, r.last = min(r.first, at), max(r.last, at)
			return
		}
		break
	}
	e.records = append(e.records, record{unique.Make(*l), n, at, at, window, level})
}

// giveBack adds n < 0 units that had been taken at an instant and were given back at
// now. move is what the table has done about its counter, if it has held one.
func (e *entry) giveBack(l *rule.Limit, n int64, at Instant, now int64, move table.Move, held bool) {
	given := -move.Units
	left := -n
	switch at.Store {
	case unknown:
		// They were decided here, so the store does not know of them if they are in a
		// record. If they are not, they have been sent to it, as long as they count here.
		// If the counter has been evicted, that is not known, and nothing is given back.
		left = max(0, min(left, given)-e.reduce(l, left, at.Here, now))
	case AnyTime.Store:
		if held {
			left = min(left, given)
		}
		left -= e.reduce(l, left, at.Here, now)
		at.Store = unknown
	}
	if l.Kind == rule.Bucket && held && at.Store == unknown && move.After.Fresh() {
		// Only parts of units can be left of what is owed, and those are gone, too.
		e.records = slices.DeleteFunc(e.records, func(r record) bool { return r.units > 0 && r.sameCounter(l) })
	}
	if left <= 0 {
		return
	}
	r := record{unique.Make(*l), -left, at.Here, at.Store, 0, 0}
	if !r.counts(now) {
		return
	}
	n, last := 0, -1
	for i := range e.records {
		if e.records[i].units < 0 && e.records[i].sameCounter(l) {
			n++
			last = i
		}
	}
	if n > 0 && (n >= maxGivenBack || e.records[last].first == r.first && e.records[last].last == r.last) {
		// As units of the older instant, of which the store gives back less, if anything.
		join := &e.records[last]
		join.units = max(join.units+r.units, -rule.MaxUnits)
		if r.first < join.first {
			join.first, join.last = r.first, r.last
		}
		return
	}
	e.records = append(e.records, r)
}

// reduce takes up to n units that were taken at an instant out of the records, which
// then need not be sent. It returns how many units have been found.
func (e *entry) reduce(l *rule.Limit, n, at, now int64) (found int64) {
	if l.Kind == rule.Bucket {
		// The table has only given back the units that have not leaked.
		n = unbounded(*l).Adjust(rule.State{}, now, n, now-at).A
	}
	for i := range e.records {
		r := &e.records[i]
		if r.units <= 0 || !r.sameCounter(l) || l.Kind != rule.Bucket && (at < r.window || at >= r.window+l.Window) {
			continue
		}
		k := min(n-found, r.units)
		r.units -= k
		found += k
	}
	e.records = slices.DeleteFunc(e.records, func(r record) bool { return r.units == 0 })
	return found
}

// unbounded is a limit that any number of units fits into.
func unbounded(l rule.Limit) rule.Limit {
	if l.Kind == rule.Bucket {
		l.Burst = rule.MaxUnits
	} else {
		l.N = rule.MaxUnits
	}
	return l
}

// Owed is units to send to the store.
type Owed struct {
	Limit rule.Limit
	Units int64   // negative if they were given back
	At    Instant // when they were taken; see [Cache.SendAt]
}

// SendAt is the instant, on the store's clock, to send with what it is owed. It is known
// if the store has ever answered.
func (c *Cache) SendAt(o *Owed) (at int64, known bool) {
	if o.At.Store != unknown {
		return o.At.Store, true
	}
	return c.clock.store(o.At.Here)
}

// Batch is what the store is owed of one key, to be sent by one caller.
type Batch struct {
	Key  string
	Owed []Owed // in the order to send them in

	entry *entry
	done  chan struct{}
}

// Owing is how many keys have units that the store is owed.
func (c *Cache) Owing() int { return int(c.owing.Load()) }

// Lost is how many keys have been pushed out of the ledger with units that still counted.
func (c *Cache) Lost() uint64 { return c.lost.Load() }

// Owes reports whether the store is owed units of a key. If they are being sent just now,
// settling is closed when that is over; otherwise it is nil.
func (c *Cache) Owes(key string) (owes bool, settling <-chan struct{}) {
	if c.owing.Load() == 0 {
		return false, nil
	}
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.ledger.keys[p.Hash]
	if e == nil {
		return false, nil
	}
	if e.settling == nil {
		return true, nil
	}
	return true, e.settling.done
}

// OwingKeys returns the keys of which the store is owed units that nobody is sending,
// except for long ones.
func (c *Cache) OwingKeys(now int64) (keys []string) {
	for i := range c.stripes {
		s := &c.stripes[i]
		s.mu.Lock()
		for _, e := range s.ledger.keys {
			p := place{Hash: e.hash}
			e.records = slices.DeleteFunc(e.records, func(r record) bool {
				l := r.limit.Value()
				return !r.counts(now) || l.Kind == rule.Bucket && r.units > 0 && c.notLeaked(&p, &l, &r, now) == 0
			})
			switch {
			case len(e.records) > 0 && e.key != "":
				keys = append(keys, e.key)
			case !e.owes():
				c.drop(&s.ledger, e)
			}
		}
		s.mu.Unlock()
	}
	return keys
}

// Collect hands out what the store is owed of a key, or nil if that is nothing or is being
// sent by another caller. The key goes on to be owing until [Cache.Settle] is called,
// which the caller must do.
func (c *Cache) Collect(key string, now int64) *Batch {
	if c.owing.Load() == 0 {
		return nil
	}
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.ledger.keys[p.Hash]
	if e == nil || e.settling != nil {
		return nil
	}
	b := &Batch{Key: strings.Clone(key), entry: e, done: make(chan struct{})}
	for i := range e.records {
		b.add(c, &p, &e.records[i], now)
	}
	e.records = nil
	if len(b.Owed) > 0 {
		e.settling = b
	} else {
		b = nil
	}
	c.changed(&p, e, now)
	return b
}

// add puts what still counts of a record into the batch.
func (b *Batch) add(c *Cache, p *place, r *record, now int64) {
	l := r.limit.Value()
	send := func(units int64, at Instant) {
		if units != 0 {
			b.Owed = append(b.Owed, Owed{l, units, at})
			b.entry.sending = append(b.entry.sending, record{r.limit, units, r.first, r.last, r.window, r.level})
		}
	}
	switch {
	case !r.counts(now):
	case r.units < 0:
		send(r.units, Instant{r.first, r.last})
	case l.Kind == rule.Fixed:
		// A window that is open at the store takes them, whenever it has opened. If none
		// is, the first of them opens one.
		send(r.units, Here(r.first))
	case l.Kind == rule.Sliding && r.first == r.window && now-r.window < l.Window:
		// The first opened a window here, and may have to at the store. The others are
		// sent as if all were as late as the last: so they count for long enough if
		// another process has opened a window in between.
		all := *r
		r.units, r.last = 1, all.first
		send(r.units, Here(r.first))
		r.first, r.last = all.last, all.last
		send(all.units-1, Here(all.last))
	case l.Kind == rule.Sliding:
		send(r.units, Here(r.last))
	default:
		send(min(r.units, c.notLeaked(p, &l, r, now)), Here(now))
	}
}

// notLeaked is how many units of a bucket's record may still be in the bucket. It is all
// of the bucket that is not gone, because the units of the store leak first: what is
// owed must not leak by itself as well, or the bucket would leak twice.
func (c *Cache) notLeaked(p *place, l *rule.Limit, r *record, now int64) int64 {
	state, held := c.memory.table.State(p.Hash, now, l)
	if !held { // it is whole, or it has been evicted
		state = rule.State{T: r.last, A: r.level}
	}
	return levelOf(l, state, now)
}

// levelOf is how many units of a bucket's state are left at now, rounded up; 0 for other
// kinds.
func levelOf(l *rule.Limit, s rule.State, now int64) int64 {
	if l.Kind != rule.Bucket {
		return 0
	}
	_, a := unbounded(*l).Take(s, now, 0)
	return rule.MaxUnits - a.Remaining
}

// Settle ends what Collect has begun, at now. The store has, or may have, counted the
// first elements of b.Owed: as many as sent says. It has certainly not counted the rest,
// which the ledger takes back.
func (c *Cache) Settle(b *Batch, sent int, now int64) {
	p := c.at(b.Key)
	p.mu.Lock()
	defer p.mu.Unlock()
	e := b.entry
	if e.settling != b {
		return // the key has been forgotten since, or was pushed out
	}
	close(b.done)
	e.settling = nil
	if sent > 0 {
		c.countedHere(&p, now)
	}
	e.records = append(e.sending[sent:], e.records...)
	e.sending = nil
	c.changed(&p, e, now)
}
