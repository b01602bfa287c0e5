package table

import (
	"errors"
	"maps"
	"slices"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file lets counters outlive their table. NewKept makes a table whose key
// hashes are the same in another process. A Mirror reports what has changed in a
// table, and Apply makes these changes in a new one. The file format is in package
// snapshot.

// Counter is the exported form of one counter.
type Counter struct {
	// ID identifies the counter in its shard. The low 6 bits are the number of the
	// limit that it was last used under. The limit of a block has the kind
	// [rule.Blocked].
	ID uint64
	// When is the T of its state, or the end of a block. For a calendar it is the end of
	// the period in nanoseconds since 1970 UTC, by the wall clock. The high 3 bits are not
	// part of it: they say whether it was refused, was empty, and is split.
	When uint64
	// What holds A and B of its state. For a fixed window or a calendar it is the units.
	// For a sliding window it is the units of this window shifted left by 32 bits, plus
	// the units of the window before. For a bucket it is the level in Window-ths of
	// a unit. If the counter is split, What is A and Rest is B. For a block, What has the
	// rung in the low 3 bits, then 3 more bits of the end, above those in When, and then the
	// time for which the rung is remembered after the end, in units of 8 ns, rounded up.
	//
	// For a rolling window, When has the instant of the youngest unit, and What is the
	// number of units. If they are of different instants, the counter is split, and Log has
	// all instants in order. Otherwise Log is nil. The slice must not be changed.
	What uint64
	Rest int64
	Log  []int64
}

// Split reports whether Rest or Log belongs to the counter.
func (c *Counter) Split() bool { return c.When&flagSplit != 0 }

// Changes are the changes of one shard. Apply the removals first: an ID may be
// in both lists, and is then set.
type Changes struct {
	Shard   int
	Removed []uint64 // IDs
	Set     []Counter
}

// Shapes lists limits by their number in a counter's ID. The limits with the lowest
// numbers have no kind. They are shared by counters whose limit has no number of its own,
// and their window is the longest life of such a counter. The last one is of the kind
// [rule.Blocked] if the table has ever held a block.
type Shapes [maxShapes]rule.Limit

// HasRolling reports whether one of the limits is a rolling window.
func (s *Shapes) HasRolling() bool {
	return slices.ContainsFunc(s[:], func(l rule.Limit) bool { return l.Kind == rule.Rolling })
}

// HasBlocks reports whether there may be counters that are blocks.
func (s *Shapes) HasBlocks() bool { return s[blockShape].Kind == rule.Blocked }

// NewKept returns a table like New, but it hashes keys with the given secret and has
// at most mostShards shards. A counter stores only the part of a hash that its shard
// does not imply. So counters can be loaded into a table with fewer shards, but not
// with more.
func NewKept(max int, clock func() int64, secret Secret, mostShards int) *Table {
	t := newTable(max, min(shardsFor(max), mostShards), clock)
	t.kept = &secret
	return t
}

// Shards is how many shards the table has: a power of two, at most [MaxShards].
func (t *Table) Shards() int { return t.shards.len() }

// Shapes returns the limits that the table's counters may have been used under.
func (t *Table) Shapes() (all Shapes) {
	for i := range t.shapes {
		if l := t.shapes[i].Load(); l != nil {
			all[i] = *l
		}
	}
	return all
}

// errCounter means that no table can have stored such a counter.
var errCounter = errors.New("a counter is out of range")

// Apply makes changes to a new table. shapes are the limits that the numbers in
// the counters refer to. An instant t in the changes becomes t+shift here, except for the
// ends of calendars' periods, for which [Table.SetWall] must have been called. Apply
// locks the shard. It returns an error if a counter is out of range.
func (t *Table) Apply(changes Changes, shapes *Shapes, shift int64) error {
	s := t.shards.of(uint64(changes.Shard))
	now := t.clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	t.shards.use(uint64(changes.Shard))
	s.now, s.wall = now, t.wall.Load()
	for _, gone := range changes.Removed {
		if c := s.find(id(gone)); c.group != nil {
			s.free(c)
		}
	}
	for _, from := range changes.Set {
		of := id(from.ID).fingerprint()
		l := &shapes[from.ID%maxShapes]
		if of == 0 || min(l.N, l.Window) < 1 {
			return errCounter
		}
		if l.Kind == rule.Blocked {
			if err := s.applyBlock(of, slot{from.When, from.What}, &t.shapes, shift, now); err != nil {
				return err
			}
			continue
		}
		if l.Kind == rule.Rolling || from.Log != nil {
			if err := s.applyLog(of, &from, l, &t.shapes, shift, now); err != nil {
				return err
			}
			continue
		}
		// Instants in the future are moved to now: otherwise the units would count for longer
		// than their window.
		at := min(max(0, int64(from.When&timeMask)+shift), now)
		if l.Kind == rule.Calendar {
			at = int64(from.When & timeMask) // by the wall clock
		}
		c := slot{uint64(at) | from.When&^uint64(timeMask), from.What}
		state := packed{c.when & (flagSplit | timeMask), c.what, from.Rest}.unpack(l, 0)
		if l.Kind != 0 && (min(state.A, state.B) < 0 || max(state.A, state.B) > maxState) {
			return errCounter
		}
		as := of
		if l.Kind != 0 {
			as |= t.shapes.of(l, 0)
		} else {
			as |= t.shapes.class(l.Window)
		}
		to := s.find(of)
		if state.Fresh() || c.fresh(t.shapes.limit(as), t.wall.Load()) <= now { // it expired while there was no table
			if to.group != nil {
				s.free(to)
			}
			continue
		}
		if to.group == nil {
			to = s.insert(of, nil, &t.shapes, now)
		}
		if to.slot().when&flagSplit != 0 {
			delete(s.rest(), of)
			s.dropRing(to)
		}
		if from.Split() {
			s.keepRest(of, from.Rest)
		}
		*to.id(), *to.slot() = as, c
	}
	return nil
}

// applyBlock sets the block with this id, which is not the counter's.
func (s *shard) applyBlock(of id, c slot, shapes *shapes, shift, now int64) error {
	b := c.block()
	if b.Rung > rule.MaxRungs || b.Forget > rule.MaxSpan || c.when&(flagEmpty|flagSplit) != 0 {
		return errCounter
	}
	// A block that ended before the new clock began ends at 0. Its rung is remembered for
	// correspondingly less.
	ends := b.Until + shift
	b.Until = max(0, min(ends, rule.MaxUntil))
	b.Forget = max(0, b.Forget+min(ends, 0))
	s.setBlock(of.sibling(), nil, shapes, b, false, now)
	return nil
}

// maxState is the largest A or B of a state: the units of the largest limit, or
// the Window-ths of the longest window.
const maxState = max(rule.MaxUnits, rule.MaxSpan)

// Mirror is a copy of a table's counters, which Update brings up to date. It is not
// safe for concurrent use; the table may be in use.
type Mirror struct {
	table  *Table
	shards []mirrored
	spare  []group
	logs   bool // there have been logs
}

// HasLogs reports whether any counter has ever had a Log.
func (m *Mirror) HasLogs() bool { return m.logs }

type mirrored struct {
	groups []group
	rest   map[id]int64
	logs   map[id][]int64
	seen   int64 // shard.now at the last copy
	quiet  bool  // shard.now was the same at the copy before
}

// Mirror returns an empty copy of t.
func (t *Table) Mirror() *Mirror { return &Mirror{table: t, shards: make([]mirrored, t.Shards())} }

// Update calls yield with the changes of each shard since the last Update. It
// locks a shard while it copies its slots, about 100 kB. A shard that was not
// used since then is locked only for a comparison, unless all is true. yield runs
// without a lock, and must not keep the slices.
func (m *Mirror) Update(all bool, yield func(Changes)) {
	changes := Changes{}
	for i := range m.shards {
		s, was := m.table.shards.made(uint64(i)), &m.shards[i]
		if s == nil {
			continue
		}
		rest, logs, changed := m.copy(s, was, all)
		if !changed {
			continue
		}
		changes = Changes{Shard: i, Removed: changes.Removed[:0], Set: changes.Set[:0]}
		if len(m.spare) == len(was.groups) {
			changes.compare(was, m.spare, rest, logs)
		} else {
			changes.collate(was, m.spare, rest, logs)
		}
		m.spare, was.groups, was.rest, was.logs = was.groups, m.spare, rest, logs
		m.logs = m.logs || logs != nil
		if len(changes.Removed) > 0 || len(changes.Set) > 0 {
			yield(changes)
		}
	}
}

// copy copies a shard's counters into m.spare, unless nothing can have changed.
// It locks the shard.
//
// A call reads the clock before it takes the lock. So a call may change the shard after
// a copy without changing shard.now. Therefore a shard is copied once more after
// shard.now has stopped changing.
func (m *Mirror) copy(s *shard, was *mirrored, all bool) (rest map[id]int64, logs map[id][]int64, changed bool) {
	for {
		s.mu.Lock()
		if s.now == was.seen && was.quiet && !all {
			s.mu.Unlock()
			return nil, nil, false
		}
		if n := len(s.groups); n > cap(m.spare) { // allocate without the lock
			s.mu.Unlock()
			m.spare = make([]group, 0, n)
			continue
		}
		m.spare = append(m.spare[:0], s.groups...)
		rest, logs = maps.Clone(s.rest()), s.logsOf()
		was.quiet, was.seen = s.now == was.seen, s.now
		s.mu.Unlock()
		return rest, logs, true
	}
}

// compare finds the changes between two copies with the same number of groups.
func (ch *Changes) compare(was *mirrored, groups []group, rest map[id]int64, logs map[id][]int64) {
	for g := range groups {
		if groups[g] == was.groups[g] && len(rest) == 0 && len(logs) == 0 {
			continue
		}
		for i, of := range groups[g].ids {
			old, c := was.groups[g].ids[i], groups[g].slots[i]
			if of == old && c == was.groups[g].slots[i] &&
				(c.when&flagSplit == 0 || rest[of.fingerprint()] == was.rest[of.fingerprint()] &&
					slices.Equal(logs[of.fingerprint()], was.logs[of.fingerprint()])) {
				continue
			}
			if old != 0 && old.fingerprint() != of.fingerprint() {
				ch.Removed = append(ch.Removed, uint64(old))
			}
			ch.set(of, c, rest, logs)
		}
	}
}

// collate finds the changes if the shard has been resized, so that counters have
// moved.
func (ch *Changes) collate(was *mirrored, groups []group, rest map[id]int64, logs map[id][]int64) {
	type counter struct {
		as id
		slot
	}
	held := make(map[id]counter, len(was.groups)*groupSize)
	for g := range was.groups {
		for i, old := range was.groups[g].ids {
			if old != 0 {
				held[old.fingerprint()] = counter{old, was.groups[g].slots[i]}
			}
		}
	}
	for g := range groups {
		for i, as := range groups[g].ids {
			of, c := as.fingerprint(), groups[g].slots[i]
			if held[of] != (counter{as, c}) || rest[of] != was.rest[of] || !slices.Equal(logs[of], was.logs[of]) {
				ch.set(as, c, rest, logs)
			}
			delete(held, of)
		}
	}
	for gone := range held {
		ch.Removed = append(ch.Removed, uint64(gone))
	}
}

func (ch *Changes) set(of id, c slot, rest map[id]int64, logs map[id][]int64) {
	if of != 0 {
		ch.Set = append(ch.Set, Counter{uint64(of), c.when, c.what, rest[of.fingerprint()], logs[of.fingerprint()]})
	}
}

// All calls yield with all counters of each shard, as of the last Update. It takes
// no lock.
func (m *Mirror) All(yield func(Changes)) {
	var changes Changes
	for i := range m.shards {
		changes = Changes{Shard: i, Set: slices.Grow(changes.Set[:0], len(m.shards[i].groups)*groupSize)}
		for g := range m.shards[i].groups {
			b := &m.shards[i].groups[g]
			for j, of := range b.ids {
				changes.set(of, b.slots[j], m.shards[i].rest, m.shards[i].logs)
			}
		}
		if len(changes.Set) > 0 {
			yield(changes)
		}
	}
}
