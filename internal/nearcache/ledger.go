package nearcache

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"unique"

	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// The ledger has the units and the blocks that the store is owed. For each key it has
// records of units in the order in which they were made, and one block for each counter
// that was blocked here. This file has the ledger and how it is settled; sending is up to
// package remote. Like the table, the ledger identifies a key by its hash. It also needs
// the key itself, to send it to the store. A key longer than longKey bytes is not stored:
// what is owed for it is sent when a caller passes the key again.
//
// The ledger is bounded in bytes. When it is full, the keys that have been in it for
// the longest time are dropped. The store never learns of their units, so it may admit
// the same number of units again, and it does not block these keys. Forgotten counts them,
// unless their units and blocks no longer count. Each stripe has an equal part of the
// bytes. Keys longer than longKey bytes have a quarter of the ledger to themselves. So a
// client that sends long keys cannot displace short ones.
//
// The lock of a stripe guards its ledger, with all entries and records. All functions
// here that get a keyRef, an entry or a ledger require that it is held. The exported
// methods take it.

type ledger struct {
	keys  map[table.Hash]*entry
	lists [2]entryList // of short keys and of long ones
}

// entryList has entries in the order in which they were created.
type entryList struct {
	oldest, newest *entry
	bytes          int // of all entries
}

// entry is one key of the ledger.
type entry struct {
	hash       table.Hash
	key        string // empty for a long one
	records    []record
	blocks     []owedBlock
	sending    *Batch // the batch that is being sent now, or nil
	prev, next *entry
	bytes      int // as counted in entryList.bytes
}

// owedBlock is the block of one counter that the store is owed. Its end is on our clock.
type owedBlock struct {
	limit unique.Handle[rule.Limit]
	block rule.Block
}

// record has units of one counter that the store is owed.
//
// If units is positive, the units were taken. Unless the counter is a bucket, all of
// them belong to one window. Units of a rolling window are of instants close to each other;
// see rollingParts. If units is negative, they were given back, and the record
// is made by givenBack. The fields first and last have another meaning then, so that
// records stay small: see takenAt.
type record struct {
	limit  unique.Handle[rule.Limit] // a pointer, because most records have the same few limits
	units  int64
	first  int64 // taken: when the first of them was taken, on our clock. Given back: takenAt().Here
	last   int64 // taken: when the last of them was taken, on our clock. Given back: takenAt().Store
	window int64 // taken: when the counter's window opened, or its period ends; of a rolling window, an instant of the part that they are in. Given back: 0
	level  int64 // taken from a bucket: its level after the last of these were taken; see levelOf
}

// givenBack returns a record of units > 0 that were taken at an instant and were given
// back.
func givenBack(l *rule.Limit, units int64, at Instant) record {
	return record{limit: unique.Make(*l), units: -units, first: at.Here, last: at.Store}
}

// takenAt returns when the units of a record were taken that were given back.
func (r *record) takenAt() Instant { return Instant{Here: r.first, Store: r.last} }

const (
	longKey = 512
	// entryBytes is the cost of a key without its own bytes and its records: the
	// entry and its slot in the map.
	entryBytes  = 160
	recordBytes = 48
	blockBytes  = 32
	// roomyKey is the cost of a key of 48 bytes with one record.
	roomyKey = entryBytes + recordBytes + 48
	// rollingParts is into how many parts the ledger divides a rolling window. Parts begin
	// at fixed instants. The units of one part are in one record, and are sent with the last
	// of their instants. So a key has few records, the store is sent few commands, and there
	// a unit counts for at most a 64th of the window too long. It counts too short only by the
	// time that an answer travels; see clock.
	rollingParts = 64
	// maxGivenBack is the largest number of records of units given back that a
	// key has.
	maxGivenBack = 16
)

// LedgerBytes returns how large the ledger of a [Cache] must be to hold the given number
// of keys, of at most 48 bytes each and with one record each.
//
// The stripes have equal parts of the ledger, and the keys are spread over them at
// random. So some stripes get more keys than others. In a stripe that gets m keys on
// average, the number of keys has a standard deviation of about √m. LedgerBytes adds
// five of them, and eight keys for a small m. Then the chance that any stripe is too
// small is about 1 in 10,000 or less.
func LedgerBytes(keys int) int {
	mean := float64(keys) / stripes
	perStripe := math.Ceil(mean + 5*math.Sqrt(mean) + 8)
	bytes := perStripe * roomyKey * 4 / 3 * stripes // a quarter is for keys longer than longKey
	return int(min(bytes, math.MaxInt/2))
}

// owes reports whether the store is owed anything for the key, including what is being
// sent.
func (e *entry) owes() bool { return e.hasUnsent() || e.sending != nil }

// hasUnsent reports whether there is anything that is not being sent.
func (e *entry) hasUnsent() bool { return len(e.records) > 0 || len(e.blocks) > 0 }

// counts reports whether the store would miss anything at now if the entry were dropped.
func (e *entry) counts(now int64) bool {
	return e.sending != nil ||
		slices.ContainsFunc(e.records, func(r record) bool { return r.counts(now) }) ||
		slices.ContainsFunc(e.blocks, func(o owedBlock) bool { return o.counts(now) })
}

// open returns the entry of a key, and creates it if there is none. The caller must
// call changed after it has changed the entry. The stripe must be locked.
func (c *Cache) open(p *keyRef, key string) *entry {
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
		p.ledger.listOf(e).push(e)
		c.owing.Add(1)
	}
	return e
}

// changed updates the size of the ledger after a change to an entry. It drops the entry
// if it owes nothing, and drops the oldest entries if the ledger is too large. The stripe
// must be locked.
func (c *Cache) changed(p *keyRef, e *entry, now int64) {
	led := &p.ledger
	if !e.owes() {
		c.drop(led, e)
		return
	}
	q := led.listOf(e)
	bytes := entryBytes + len(e.key) + recordBytes*cap(e.records) + blockBytes*cap(e.blocks)
	if e.sending != nil {
		bytes += recordBytes * cap(e.sending.records)
	}
	q.bytes += bytes - e.bytes
	e.bytes = bytes
	for q.bytes > c.share(e) {
		oldest := q.oldest
		if bytes > c.share(e) {
			oldest = e // the entry alone is too large
		}
		if oldest.counts(now) {
			c.forgotten.Add(1)
		}
		c.drop(led, oldest)
	}
}

// share returns how many bytes the list of an entry may use.
func (c *Cache) share(e *entry) int {
	if e.key == "" {
		return c.stripeBytes / 4
	}
	return c.stripeBytes - c.stripeBytes/4
}

// drop removes an entry, and wakes the callers that wait until it is settled. The
// stripe must be locked.
func (c *Cache) drop(led *ledger, e *entry) {
	if e.sending != nil {
		close(e.sending.done)
		e.sending = nil
	}
	q := led.listOf(e)
	q.unlink(e)
	q.bytes -= e.bytes
	delete(led.keys, e.hash)
	c.owing.Add(-1)
}

func (led *ledger) listOf(e *entry) *entryList {
	if e.key == "" {
		return &led.lists[1]
	}
	return &led.lists[0]
}

func (q *entryList) push(e *entry) {
	e.prev = q.newest
	if q.newest != nil {
		q.newest.next = e
	} else {
		q.oldest = e
	}
	q.newest = e
}

func (q *entryList) unlink(e *entry) {
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		q.newest = e.prev
	}
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		q.oldest = e.next
	}
}

// sameCounter reports whether a record is of the counter that a limit names.
func (r *record) sameCounter(l *rule.Limit) bool { return sameCounter(r.limit, l) }

func sameCounter(of unique.Handle[rule.Limit], l *rule.Limit) bool {
	other := of.Value()
	return other.SameCounter(l)
}

// counts reports whether the block is worth sending at now. The rung counts after the end
// of the block, until it is forgotten.
func (o *owedBlock) counts(now int64) bool { return o.block.Forgotten() > now }

// oweBlock adds a block of a counter, whose end is on our clock. It joins the block with
// an earlier one of the same counter. It also drops the blocks that are forgotten by now.
func (e *entry) oweBlock(l *rule.Limit, b rule.Block, now int64) {
	e.dropForgotten(now)
	if b.Forgotten() <= now {
		return
	}
	for i := range e.blocks {
		if o := &e.blocks[i]; sameCounter(o.limit, l) {
			o.block = o.block.Join(b, now)
			return
		}
	}
	e.blocks = append(e.blocks, owedBlock{unique.Make(*l), b})
}

// dropForgotten drops the blocks that are forgotten by now.
func (e *entry) dropForgotten(now int64) {
	e.blocks = slices.DeleteFunc(e.blocks, func(o owedBlock) bool { return !o.counts(now) })
}

// counts reports whether the units still count at now. It returns true for a
// bucket, whose units may have leaked: notLeaked says how many.
func (r *record) counts(now int64) bool {
	l, began := r.limit.Value(), r.window
	switch {
	case r.units < 0:
		began = r.takenAt().Here
	case l.Kind == rule.Rolling:
		began = r.last
	}
	switch l.Kind {
	case rule.Fixed, rule.Rolling:
		return now-began < l.Window
	case rule.Sliding:
		return now-began < 2*l.Window
	case rule.Calendar:
		if r.units < 0 {
			return now < l.End()
		}
		return now < r.window
	}
	return true
}

// owe adds a record of n units that were taken here at an instant, in a window of the
// counter. after is the state of the counter after that. owe joins the units to an
// earlier record of the same counter and window, if possible.
func (e *entry) owe(l *rule.Limit, after rule.State, window, n, at int64) {
	if n <= 0 {
		return
	}
	level := levelOf(l, after, after.T)
	if l.Kind == rule.Rolling {
		window = at // in the part of which the units are
	}
	e.records = slices.DeleteFunc(e.records, func(r record) bool { return r.sameCounter(l) && !r.counts(at) })
	for i := len(e.records) - 1; i >= 0; i-- {
		r := &e.records[i]
		if !r.sameCounter(l) {
			continue
		}
		// A record of units given back is not passed over. If later charges were sent
		// before it, a store whose limit is full would ignore them, because the units
		// were not given back yet.
		if r.units > 0 && (l.Kind == rule.Bucket || r.isIn(l, window)) {
			before := rule.State{T: r.last, A: r.level}
			r.level = min(max(level, levelOf(l, before, max(r.last, at))+n), rule.MaxUnits)
			r.limit = unique.Make(*l)
			r.units = min(r.units+n, rule.MaxUnits)
			r.first, r.last = min(r.first, at), max(r.last, at)
			return
		}
		if l.Kind == rule.Rolling {
			// A charge is of an earlier instant than the units before it. If it did not
			// find their record, each charge would make two more. The order of the records
			// does not matter: see sortRolling.
			continue
		}
		break
	}
	e.records = append(e.records, record{unique.Make(*l), n, at, at, window, level})
}

// giveBack notes that n < 0 units, which had been taken at an instant, were given
// back at now. It first takes the units out of records that have not been sent. It
// adds a record for the rest. move is what the table has changed, and found says
// whether the table had a counter.
func (e *entry) giveBack(l *rule.Limit, n int64, at Instant, now int64, move table.Move, found bool) {
	given := -move.Units
	left := -n
	decidedHere, anyTime := at.Store == unknown, at.Store == AnyTime.Store
	switch {
	case decidedHere:
		// As long as a record has the units, the store does not know of them. If no
		// record has them, but they still count here, they have been sent to the store.
		// If the counter was evicted, it is not known whether they still count, and
		// nothing is given back.
		if l.Kind == rule.Rolling && found {
			// The record may have units of other instants, too. It keeps these if the units to
			// give back are gone already, because a refund of any instant has removed them.
			left = min(left, given)
		}
		left = max(0, min(left, given)-e.reduce(l, left, at.Here, now))
	case anyTime:
		// The units may have been decided here or by the store.
		if found {
			left = min(left, given)
		}
		if l.Kind == rule.Rolling {
			// These are the youngest units. Those that are not in records are the youngest
			// ones at the store, whatever their instants are there. They must not be given
			// back when they have left, because then other units are the youngest.
			left -= e.reduceYoungest(l, left, move.Oldest)
			if at.Here = move.Oldest; !found {
				left = 0 // it is not known for how long the youngest units at the store count
			}
			break
		}
		left -= e.reduce(l, left, at.Here, now)
		at.Store = unknown
	default:
		// The store has counted the units, so no record has them.
	}
	if l.Kind == rule.Bucket && found && (decidedHere || anyTime) && move.After.Fresh() {
		// The key is unused again. So the records can only have fractions of units
		// left, and these have leaked, too.
		e.records = slices.DeleteFunc(e.records, func(r record) bool { return r.units > 0 && r.sameCounter(l) })
	}
	if left <= 0 {
		return
	}
	r := givenBack(l, left, at)
	if !r.counts(now) {
		return
	}
	others, newest := 0, -1 // records of units given back to this counter
	for i := range e.records {
		if e.records[i].units >= 0 || !e.records[i].sameCounter(l) {
			continue
		}
		others++
		// Youngest units of a rolling window, and units of an instant, stay apart.
		if l.Kind != rule.Rolling || (e.records[i].last == AnyTime.Store) == anyTime {
			newest = i
		}
	}
	if newest < 0 && others >= maxGivenBack {
		return
	}
	if newest >= 0 && (others >= maxGivenBack || e.records[newest].takenAt() == r.takenAt()) {
		// Join the two records with the earlier of their instants. The store then gives
		// back the same or less, never more.
		join := &e.records[newest]
		join.units = max(join.units+r.units, -rule.MaxUnits)
		if r.takenAt().Here < join.takenAt().Here {
			join.first, join.last = r.first, r.last
		}
		return
	}
	e.records = append(e.records, r)
}

// reduce takes up to n units that were taken at an instant out of the records, so
// that they are not sent. It returns how many units it has found.
func (e *entry) reduce(l *rule.Limit, n, at, now int64) (found int64) {
	if l.Kind == rule.Bucket {
		// The table has only given back the units that have not leaked.
		whole := unbounded(*l)
		n = whole.Adjust(rule.State{}, now, n, now-at).A
	}
	// A part of a rolling window may have two records if sending one of them has failed. The
	// one with the earlier instant is reduced first, so that the other units count for long
	// enough. Of other kinds it is the older record.
	before := func(r, than *record) bool { return l.Kind == rule.Rolling && r.last < than.last }
	return e.reduceBy(n, before, func(r *record) bool { return r.sameCounter(l) && r.covers(l, at) })
}

// reduceYoungest is reduce for the youngest units of a rolling window, from the instant
// oldest on.
func (e *entry) reduceYoungest(l *rule.Limit, n, oldest int64) (found int64) {
	return e.reduceBy(n, func(r, than *record) bool { return r.last > than.last }, func(r *record) bool { return r.sameCounter(l) && r.last >= oldest })
}

// reduceBy takes up to n units out of the records that match, so that they are not sent. It
// begins with the record that comes before all others, and with the oldest one if none does.
// It returns how many units it has found.
func (e *entry) reduceBy(n int64, before func(r, than *record) bool, matches func(*record) bool) (found int64) {
	for found < n {
		var first *record
		for i := range e.records {
			if r := &e.records[i]; r.units > 0 && matches(r) && (first == nil || before(r, first)) {
				first = r
			}
		}
		if first == nil {
			break
		}
		k := min(n-found, first.units)
		first.units -= k
		found += k
	}
	e.records = slices.DeleteFunc(e.records, func(r record) bool { return r.units == 0 })
	return found
}

// isIn reports whether the units of a record belong to a window that opened, or a period
// that ends, at an instant. The end of one period is worked out again and again, from two
// clocks. For a rolling window, isIn reports whether the instant is in the same part as theirs.
func (r *record) isIn(l *rule.Limit, window int64) bool {
	switch l.Kind {
	case rule.Calendar:
		return max(r.window-window, window-r.window) < l.Window/2
	case rule.Rolling:
		return partOf(l, r.window) == partOf(l, window)
	}
	return r.window == window
}

// covers reports whether units that were taken at an instant may be units of the record.
func (r *record) covers(l *rule.Limit, at int64) bool {
	switch l.Kind {
	case rule.Bucket:
		return true
	case rule.Calendar:
		return at >= r.window-l.Window && at < r.window
	case rule.Rolling:
		return r.isIn(l, at)
	}
	return at >= r.window && at < r.window+l.Window
}

// partOf returns the number of the part of a rolling window that an instant is in; see
// rollingParts.
func partOf(l *rule.Limit, at int64) int64 { return at / (l.Window / rollingParts) }

// unbounded returns a limit of the same kind and rate that any number of units
// fits into.
func unbounded(l rule.Limit) rule.Limit {
	if l.Kind == rule.Bucket {
		l.Burst = rule.MaxUnits
	} else {
		l.N = rule.MaxUnits
	}
	return l
}

// Owed has units or a block to send to the store.
type Owed struct {
	Limit rule.Limit
	Units int64   // negative if they were given back; 0 for a block
	At    Instant // when they were taken; see [Cache.SendAt]

	// Block is what to join with the counter's block at the store. Its end is on our
	// clock: the store must get what is left of it, which is negative if only the rung
	// still counts. A block that is sent twice changes nothing.
	Block rule.Block
}

// SendAt returns the instant on the store's clock at which the units were taken, to be
// sent with them. known is false if it is unknown because the store has never answered.
func (c *Cache) SendAt(o *Owed) (at int64, known bool) {
	if o.At.Store != unknown {
		return o.At.Store, true
	}
	return c.clock.store(o.At.Here)
}

// Batch has the units and blocks of one key that the store is owed. One caller sends it.
type Batch struct {
	Key  string
	Owed []Owed // in the order to send them in: first units, then blocks

	entry   *entry
	records []record // the records of the first elements of Owed; the other elements are blocks
	done    chan struct{}
}

// Owing returns how many keys have units or blocks that the store is owed. It takes no
// lock.
func (c *Cache) Owing() int { return int(c.owing.Load()) }

// Forgotten returns how many keys were dropped from the ledger while their units or blocks
// still counted. It takes no lock.
func (c *Cache) Forgotten() uint64 { return c.forgotten.Load() }

// Owes reports whether the store is owed anything for a key. If that is being sent,
// sending is a channel that is closed when that has ended. Otherwise sending is nil.
// Owes takes no lock if the ledger is empty.
func (c *Cache) Owes(key string) (owes bool, sending <-chan struct{}) {
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
	if e.sending == nil {
		return true, nil
	}
	return true, e.sending.done
}

// OwingKeys returns the keys with owed units or blocks that no caller is sending, without
// keys longer than longKey. It locks one stripe at a time. It also drops the units that no
// longer count, and blocks that are forgotten.
func (c *Cache) OwingKeys(now int64) (keys []string) {
	for s := range c.made {
		s.mu.Lock()
		for _, e := range s.ledger.keys {
			p := keyRef{Hash: e.hash}
			e.records = slices.DeleteFunc(e.records, func(r record) bool {
				l := r.limit.Value()
				return !r.counts(now) || l.Kind == rule.Bucket && r.units > 0 && c.notLeaked(&p, &l, &r, now) == 0
			})
			e.dropForgotten(now)
			switch {
			case e.hasUnsent() && e.key != "":
				keys = append(keys, e.key)
			case !e.owes():
				c.drop(&s.ledger, e)
			}
		}
		s.mu.Unlock()
	}
	return keys
}

// BeginSending returns what is owed for a key as a Batch. It returns nil if nothing is
// owed, or if another caller is sending it. The caller must send the batch and then call
// [Cache.EndSending]. Until then the key still counts as owing. BeginSending locks the
// key's stripe.
func (c *Cache) BeginSending(key string, now int64) *Batch {
	if c.owing.Load() == 0 {
		return nil
	}
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.ledger.keys[p.Hash]
	if e == nil || e.sending != nil {
		return nil
	}
	b := &Batch{Key: strings.Clone(key), entry: e, done: make(chan struct{})}
	e.sortRolling()
	for i := range e.records {
		b.add(c, &p, &e.records[i], now)
	}
	e.dropForgotten(now)
	for _, o := range e.blocks {
		b.Owed = append(b.Owed, Owed{Limit: o.limit.Value(), Block: o.block})
	}
	e.records, e.blocks = nil, nil
	if len(b.Owed) > 0 {
		e.sending = b
	} else {
		b = nil
	}
	c.changed(&p, e, now)
	return b
}

// sortRolling puts the records of rolling windows into the order in which they are sent.
// Units given back come first: the store has counted them, and so it removes none that it is
// sent after that. Then come the units taken, the youngest first. The store has room for N
// units. The oldest ones may have left already, although the last of their record has not.
// If they were sent first, there might be no room for the youngest ones, which count for
// longest.
//
// Records may be of limits with other numbers, as of plans, and a lower one may have no room
// after the others. So all are sent with the highest number.
func (e *entry) sortRolling() {
	order := func(r *record) int64 {
		l := r.limit.Value()
		switch {
		case l.Kind != rule.Rolling:
			return math.MinInt64
		case r.units < 0:
			return math.MinInt64 + 1
		}
		return -r.last
	}
	slices.SortStableFunc(e.records, func(a, b record) int { return cmp.Compare(order(&a), order(&b)) })
	for i := range e.records {
		r := &e.records[i]
		l := r.limit.Value()
		if l.Kind != rule.Rolling {
			continue
		}
		for j := range e.records {
			if other := e.records[j].limit.Value(); r.sameCounter(&other) && other.N > l.N {
				r.limit, l = e.records[j].limit, other
			}
		}
	}
}

// add adds the units of a record that still count to the batch. The stripe must
// be locked.
func (b *Batch) add(c *Cache, p *keyRef, r *record, now int64) {
	l := r.limit.Value()
	send := func(r record, at Instant) {
		if r.units != 0 {
			b.Owed = append(b.Owed, Owed{Limit: l, Units: r.units, At: at})
			b.records = append(b.records, r)
		}
	}
	switch {
	case !r.counts(now):
	case r.units < 0:
		send(*r, r.takenAt())
	case l.Kind == rule.Fixed:
		// If a window is open at the store, the units are charged to it, whenever it has
		// opened. If none is open, the instant of the first unit opens one.
		send(*r, Here(r.first))
	case l.Kind == rule.Rolling:
		send(*r, Here(r.last))
	case l.Kind == rule.Calendar:
		// All of them are of one period. The last one is the surest to be in it by the
		// store's clock, too.
		send(*r, Here(r.last))
	case l.Kind == rule.Sliding && r.first == r.window && now-r.window < l.Window:
		// The first unit opened a window here, and may have to open one at the store.
		// The others are sent with the instant of the last one. So they count for long
		// enough if another process has opened a window in between.
		first, others := *r, *r
		first.units, first.last = 1, r.first
		others.units, others.first = r.units-1, r.last
		send(first, Here(first.first))
		send(others, Here(others.last))
	case l.Kind == rule.Sliding:
		send(*r, Here(r.last))
	default:
		rest := *r
		rest.units = min(r.units, c.notLeaked(p, &l, r, now))
		send(rest, Here(now))
	}
}

// notLeaked returns how many units of a bucket's record may not have leaked yet. The
// store's own units leak first, so the owed units are the last to leak: as many of
// them count as units of the bucket are used and not yet leaked. Otherwise the bucket would leak twice: at the
// store, and in the ledger.
func (c *Cache) notLeaked(p *keyRef, l *rule.Limit, r *record, now int64) int64 {
	state, found := c.memory.table.State(p.Hash, now, l)
	if !found { // the bucket is unused again or was evicted: use the record's own level
		state = rule.State{T: r.last, A: r.level}
	}
	return levelOf(l, state, now)
}

// levelOf returns how many units of a bucket are used and not yet leaked at now, rounded
// up. It returns 0 for other kinds.
func levelOf(l *rule.Limit, s rule.State, now int64) int64 {
	if l.Kind != rule.Bucket {
		return 0
	}
	whole := unbounded(*l)
	_, a := whole.Take(s, now, 0)
	return rule.MaxUnits - a.Remaining
}

// EndSending ends at now what BeginSending has begun, and wakes the callers that wait for
// it. sent is how many of the first elements of b.Owed the store has, or may have,
// counted, or joined if they are blocks. The other elements go back into the ledger. Units
// among them are certainly not counted by the store. A block is joined with one that began
// in the meantime. EndSending locks the key's stripe.
func (c *Cache) EndSending(b *Batch, sent int, now int64) {
	p := c.at(b.Key)
	p.mu.Lock()
	defer p.mu.Unlock()
	e := b.entry
	if e.sending != b {
		return // the key was reset or dropped in the meantime
	}
	close(b.done)
	e.sending = nil
	if sent > 0 {
		c.countedHere(&p, now)
	}
	units := len(b.records)
	e.records = append(b.records[min(sent, units):], e.records...)
	for _, o := range b.Owed[max(sent, units):] {
		e.oweBlock(&o.Limit, o.Block, now)
	}
	c.changed(&p, e, now)
}
