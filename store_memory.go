package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// MemoryStore is a [Store] in this process's memory. There is one per name for
// the life of the process, whatever is rebuilt around it: handlers, limiters,
// configuration. Get it with [Memory] or [NewMemoryStore]; a limiter without a store
// takes the one of its own name.
//
// Time is the monotonic clock of package time, so setting the wall clock changes
// nothing and testing/synctest controls it. There is no background goroutine:
// counters expire as others come, and an idle store costs nothing. With a
// SnapshotFile there is one, which writes nothing if nothing has changed and ends with Close.
type MemoryStore struct {
	name      string
	opts      MemoryOptions // with its defaults filled in
	table     *table.Table
	snapshots *snapshots  // nil if there is no SnapshotFile
	taken     atomic.Bool // by a limiter, at some time
	closed    atomic.Bool
	counted   atomic.Pointer[countedTable] // for the limiter that has it now, or had it last
}

// A countedTable is what a limiter counts of the decisions in a store's table: those
// between two instants.
type countedTable struct {
	store  *MemoryStore
	before table.Decisions // what the table had counted when the limiter got the store

	mu    sync.Mutex
	after *table.Decisions // set when another limiter has got the store; guarded by mu
}

// countFor begins to count for a limiter that has counted in some tables before. It
// returns what to add to them, or nil if it counts for that limiter already. Calls for
// one store must not overlap. The limiter must not have decided in the table before: what
// the table has counted until now is of another limiter.
func (s *MemoryStore) countFor(tables []*countedTable) *countedTable {
	begun, previous := &countedTable{store: s}, s.counted.Load()
	switch {
	case previous == nil:
		_, begun.before = s.table.Counts()
	case slices.Contains(tables, previous):
		return nil
	default:
		begun.before = previous.end()
	}
	s.counted.Store(begun)
	return begun
}

// end ends the counting, and returns what the table has counted until now.
func (t *countedTable) end() table.Decisions {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.after == nil {
		_, now := t.store.table.Counts()
		t.after = &now
	}
	return *t.after
}

// addTo adds the decisions to a sum. If they are still being counted, it also returns how
// full the table is.
func (t *countedTable) addTo(sum *table.Decisions) (held table.Stats) {
	t.mu.Lock()
	defer t.mu.Unlock()
	until := t.after
	if until == nil {
		stats, now := t.store.table.Counts()
		held, until = stats, &now
	}
	sum.Allowed += until.Allowed - t.before.Allowed
	sum.Denied += until.Denied - t.before.Denied
	sum.AllowedUnits = table.AddUnits(sum.AllowedUnits, until.AllowedUnits-t.before.AllowedUnits)
	sum.DeniedUnits = table.AddUnits(sum.DeniedUnits, until.DeniedUnits-t.before.DeniedUnits)
	sum.NearLimit += until.NearLimit - t.before.NearLimit
	sum.ShadowDenied += until.ShadowDenied - t.before.ShadowDenied
	for i, denied := range until.DeniedBy {
		if i < len(t.before.DeniedBy) {
			denied -= t.before.DeniedBy[i]
		}
		if i == len(sum.DeniedBy) {
			sum.DeniedBy = append(sum.DeniedBy, 0)
		}
		sum.DeniedBy[i] += denied
	}
	return held
}

// isOver reports whether nothing will be added any more, because another limiter has the
// store, or because it has been closed.
func (t *countedTable) isOver() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.after != nil || t.store.closed.Load()
}

// Name returns the name that the store is known by in this process.
func (s *MemoryStore) Name() string { return s.name }

// Prefix returns "memory:" and the store's name.
func (s *MemoryStore) Prefix() string { return "memory:" + s.name }

// Take implements [Store].
func (s *MemoryStore) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	if err := s.ready(ctx); err != nil {
		return 0, err
	}
	if n < 0 {
		return 0, fmt.Errorf("ratelimit: MemoryStore %q: Take of %d units: want 0 units or more", s.name, n)
	}
	if err := s.validateCall(limits); err != nil {
		return 0, err
	}
	return s.takeFor(key, n, limits, results, startsBlocks(laddersOf(limits), nil)), nil
}

// TakePending implements [KindStore].
func (s *MemoryStore) TakePending(ctx context.Context, key string, n int64, pending []Pending, limits []Limit, results []Result) (Instant, error) {
	ladders := laddersOf(limits)
	if ladders == nil || n <= 0 {
		return s.Take(ctx, key, n, limits, results)
	}
	if err := s.ready(ctx); err != nil {
		return 0, err
	}
	if err := s.validateCall(limits); err != nil {
		return 0, err
	}
	return s.takeFor(key, n, limits, results, startsBlocks(ladders, pendingRules(pending))), nil
}

// takeFor is Take for a caller that may want the states, too.
func (s *MemoryStore) takeFor(key string, n int64, limits []Limit, results []Result, blocking *table.Blocking) Instant {
	if len(results) > 0 && results[0].state != nil {
		return s.takeReporting(key, n, limits, results, blocking)
	}
	at, _ := s.take(key, n, limits, results, nil, blocking)
	return at
}

// startsBlocks returns how a call starts blocks, or nil if no limit has a ladder.
func startsBlocks(ladders *[MaxLimits]*rule.Ladder, pending []rule.Pending) *table.Blocking {
	if ladders == nil {
		return nil
	}
	return &table.Blocking{Ladders: ladders, Pending: pending}
}

// Kinds implements [KindStore]. It returns all kinds.
func (s *MemoryStore) Kinds() Kinds { return allKinds }

// Hold implements [HoldStore].
func (s *MemoryStore) Hold(ctx context.Context, r HoldRequest, results []Result) (HoldReply, error) {
	if err := s.ready(ctx); err != nil {
		return HoldReply{}, err
	}
	if err := r.validate(len(results)); err != nil {
		return HoldReply{}, fmt.Errorf("ratelimit: MemoryStore %q: %w", s.name, err)
	}
	if err := s.validateCall(r.Limits); err != nil {
		return HoldReply{}, err
	}
	var rules [MaxLimits]rule.Limit
	var answers [MaxLimits]rule.Answer
	under, h := s.rules(rules[:0], r.Limits), r.holding()
	at, marks := s.table.Hold(r.Key, r.Units, under, answers[:len(under)], startsBlocks(laddersOf(r.Limits), pendingRules(r.Pending)), h)
	for i := range under {
		results[i] = resultOf(answers[i])
	}
	mark(results[:len(under)], marks.Blocked, marks.Began)
	results[len(under)] = resultOf(h.Answer())
	return holdReply(Instant(at), h.Held), nil
}

// Block implements [KindStore].
func (s *MemoryStore) Block(ctx context.Context, key string, b Block, limits []Limit) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	if err := b.validate(); err != nil {
		return fmt.Errorf("ratelimit: MemoryStore %q: Block has %w", s.name, err)
	}
	if err := s.validateCall(limits); err != nil {
		return err
	}
	s.table.Block(key, int64(b.Left), b.rule(), s.rules(nil, limits))
	return nil
}

// validateCall returns an error if a limit of a call is not valid.
func (s *MemoryStore) validateCall(limits []Limit) error {
	for i := range limits {
		l := &limits[i].rule
		if l.N < 1 || l.Window < rule.MinSpan || l.Kind == rule.Rolling && l.N > rule.MaxRolling {
			return fmt.Errorf("ratelimit: MemoryStore %q: limit %v is not valid", s.name, limits[i])
		}
	}
	if err := validateCalendars(limits); err != nil {
		return fmt.Errorf("ratelimit: MemoryStore %q: %w", s.name, err)
	}
	if err := validateLadders(limits); err != nil {
		return fmt.Errorf("ratelimit: MemoryStore %q: %w", s.name, err)
	}
	return nil
}

// takeReporting is take for a limiter that wants to know what the counters hold, too.
func (s *MemoryStore) takeReporting(key string, n int64, limits []Limit, results []Result, blocking *table.Blocking) Instant {
	var rules [MaxLimits]rule.Limit
	var answers [MaxLimits]rule.Answer
	var states [MaxLimits]rule.State
	under, h := s.rules(rules[:0], limits), s.table.Hash(key, table.Owner{})
	_, at, marks := s.table.TakeBlocking(h, n, clock.Now(), false, under, answers[:len(limits)], states[:len(limits)], nil, blocking)
	for i := range limits {
		b, _ := s.table.BlockOf(h, at, &under[i])
		results[i].report(answers[i], states[i], s.table.LogOf(h, at, &under[i]), b)
	}
	mark(results, marks.Blocked, marks.Began)
	return Instant(at)
}

// take is Take for limits that are known to be valid. It also returns which of them
// binds. Without policies the table does not count the decision: a limiter that calls
// the store through a wrapper counts its decisions itself.
func (s *MemoryStore) take(key string, n int64, limits []Limit, results []Result, policies *table.Policies, blocking *table.Blocking) (at Instant, bound int) {
	var rules [MaxLimits]rule.Limit
	return s.takeUnder(key, n, s.rules(rules[:0], limits), results, policies, blocking)
}

// takeUnder is take for limits whose rules are known.
func (s *MemoryStore) takeUnder(key string, n int64, under []rule.Limit, results []Result, policies *table.Policies, blocking *table.Blocking) (at Instant, bound int) {
	if blocking != nil {
		_, at, bound = s.takeBlocking(key, n, false, under, results, policies, blocking)
		return at, bound
	}
	var answers [MaxLimits]rule.Answer
	now, marks := s.table.Take(key, n, under, answers[:len(under)], policies)
	for i := range under {
		results[i] = resultOf(answers[i])
	}
	mark(results[:len(under)], marks.Blocked, marks.Began)
	return Instant(now), rule.Binding(answers[:len(under)])
}

// rules are the counting rules of limits for a call of the table, which must follow at
// once.
func (s *MemoryStore) rules(rules []rule.Limit, limits []Limit) []rule.Limit {
	rules, ahead, calendars := appendRules(rules, limits)
	if calendars {
		s.table.SetWall(ahead)
	}
	return rules
}

// takeUpTo takes as many of n units as fit under every limit, which are valid. It also
// returns which of them binds.
func (s *MemoryStore) takeUpTo(key string, n int64, limits []Limit, results []Result, policies *table.Policies, blocking *table.Blocking) (granted int64, bound int) {
	var rules [MaxLimits]rule.Limit
	granted, _, bound = s.takeBlocking(key, n, true, s.rules(rules[:0], limits), results, policies, blocking)
	return granted, bound
}

// takeBlocking takes n units, or with upTo as many of them as fit. If blocking is not nil,
// a denial may start blocks.
func (s *MemoryStore) takeBlocking(key string, n int64, upTo bool, under []rule.Limit, results []Result, policies *table.Policies, blocking *table.Blocking) (granted int64, at Instant, bound int) {
	var answers [MaxLimits]rule.Answer
	granted, now, marks := s.table.TakeBlocking(s.table.Hash(key, table.Owner{}), n, clock.Now(), upTo, under, answers[:len(under)], nil, policies, blocking)
	for i := range under {
		results[i] = resultOf(answers[i])
	}
	mark(results[:len(under)], marks.Blocked, marks.Began)
	return granted, Instant(now), rule.Binding(answers[:len(under)])
}

// Adjust implements [Store].
func (s *MemoryStore) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	if err := s.ready(ctx); err != nil {
		return 0, err
	}
	if err := s.validateCall(limits); err != nil {
		return 0, err
	}
	return s.table.Adjust(key, n, int64(at), s.rules(nil, limits)), nil
}

// Reset implements [Store].
func (s *MemoryStore) Reset(ctx context.Context, key string, limits []Limit) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	if err := s.validateCall(limits); err != nil {
		return err
	}
	s.table.Reset(key, s.rules(nil, limits))
	return nil
}

func (s *MemoryStore) ready(ctx context.Context) error {
	if s.closed.Load() {
		return errMemoryClosed
	}
	return ctx.Err()
}

var errMemoryClosed = fmt.Errorf("%w: get it again with Memory or NewMemoryStore", ErrStoreClosed)

// Validate implements [Validator]. It refuses limits that take more places than the store
// has, and all limits if the store has been closed.
func (s *MemoryStore) Validate(limits []Limit) error {
	switch {
	case s.table == nil:
		return errors.New("Options.Store is a MemoryStore made by hand: get one with Memory or NewMemoryStore")
	case s.closed.Load():
		return fmt.Errorf("Options.Store is the MemoryStore %q, which has been closed: get it again with Memory or NewMemoryStore", s.name)
	case s.opts.MaxKeys < places(limits):
		return fmt.Errorf("Options.Store is the MemoryStore %q with room for %d counters, and one key needs %d: raise MemoryOptions.MaxKeys",
			s.name, s.opts.MaxKeys, places(limits))
	}
	return nil
}

// places returns how many places of MaxKeys one key needs at most: one for each counter
// and for each block, and more for the units of rolling windows.
func places(limits []Limit) int {
	n := len(limits)
	for _, l := range limits {
		if l.isInFlight() {
			n-- // holds have no places
		}
		if l.blocks() {
			n++
		}
		if l.rule.Kind == rule.Rolling {
			n += table.RollingPlaces(l.rule.N) - 1
		}
	}
	return n
}

// embedded implements embeddable.
func (s *MemoryStore) embedded() Store { return s }

// unshare implements adviceStore.
func (s *MemoryStore) unshare() string {
	return "give each limiter a name of its own and leave Options.Store out, or set it to Memory of another name; " +
		"in tests, make limiters with package ratelimittest"
}

// reportTo is called for each limiter that takes the store. It logs whether the
// store has found counters, or starts without any, and from then on what goes
// wrong with the SnapshotFile.
func (s *MemoryStore) reportTo(report *reporter) {
	first, kept, state := !s.taken.Swap(true), s.snapshots, "created"
	switch {
	case !first:
		state = "reused"
	case kept != nil && kept.restored:
		state = "restored"
	}
	args := []any{"store", s.name, "state", state, "counters", s.Stats().Counters}
	if kept != nil {
		kept.reporter.Store(report)
		args = append(args, "file", s.opts.SnapshotFile)
	}
	report.info("limiter counts in memory", args...)
	if first && kept != nil && kept.damage != nil {
		report.warn(warnSnapshotSetAside, "file", kept.aside, "error", kept.damage)
	}
}

// MemoryStats are how full a [MemoryStore] is, and how many counters it had to give up.
type MemoryStats struct {
	// Counters held now. Some may have expired: they go as others come.
	Counters int
	// Evicted counts the counters that had to go before they expired, because
	// MaxKeys was reached. Their keys start from zero.
	Evicted uint64
	// EvictedDenied counts evicted counters whose key was being denied. It grows
	// only while nearly every key held is being denied; then MaxKeys is too small.
	EvictedDenied uint64
	// SnapshotsFailed counts the times that SnapshotFile could not be written. What
	// was counted is still counted here, and written when that works again.
	SnapshotsFailed uint64
}

// Stats returns how full the store is. It may be called at any time, and holds up
// each part of the store for a moment.
func (s *MemoryStore) Stats() MemoryStats { return s.statsOf(s.table.Stats()) }

func (s *MemoryStore) statsOf(held table.Stats) MemoryStats {
	stats := MemoryStats{Counters: held.Counters, Evicted: held.Evicted, EvictedDenied: held.EvictedDenied}
	if s.snapshots != nil {
		stats.SnapshotsFailed = s.snapshots.failed.Load()
	}
	return stats
}
