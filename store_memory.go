package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// DefaultMaxKeys is how many counters a [MemoryStore] holds unless
// [MemoryOptions.MaxKeys] says otherwise.
const DefaultMaxKeys = 1 << 20

// MemoryOptions are the settings of a [MemoryStore]. Its zero value is ready to use.
type MemoryOptions struct {
	// MaxKeys is the most counters held at once, so it bounds memory whatever
	// clients send: about 28 bytes a counter, 30 MB for the default, and as much again
	// with a SnapshotFile. A key has one counter for each algorithm and window that it
	// is limited under. Zero means [DefaultMaxKeys].
	//
	// From about 93 % of the maximum on, a new key may find no place but that of
	// another counter: of those in its reach it takes one that has expired, else the
	// one that will be the first to, and one whose key is being denied only if all
	// 144 in reach are. Whoever loses a counter starts afresh. So MaxKeys should be
	// well above the number of keys in the longest window; [MemoryStats] tells.
	MaxKeys int

	// SnapshotFile is a file that the counters are kept in, so that they outlive the
	// process: what one writes, the next one reads when it makes the store. Empty means
	// that they live as long as the process. Its directory must exist, and the file
	// must be this store's alone; beside it there are SnapshotFile + ".lock", and at
	// times ".tmp".
	//
	// The store writes what has changed, every SnapshotEvery and on [MemoryStore.Close].
	// A process that ends without Close, in whatever way, loses the counts of the last
	// interval. Time goes on while there is no process. Keys are in the file as
	// hashes. See docs/snapshots.md for what holds when clocks are set, and what it costs.
	SnapshotFile string

	// SnapshotEvery is how much of its counts a process that is killed may lose: 10 ms
	// or more. Zero means one second.
	SnapshotEvery time.Duration

	// SnapshotWait is how long to wait for another process that has the file, such as
	// the one that this one is to replace. Zero means that NewMemoryStore then fails
	// at once.
	SnapshotWait time.Duration

	// SnapshotSetAside starts with no counters where the file has been damaged, is another
	// program's, or of a later version of this package. It is renamed to SnapshotFile +
	// ".damaged", and the first limiter on the store logs that. False means that
	// NewMemoryStore fails: with no counters, everybody who was blocked is let in.
	SnapshotSetAside bool
}

func (o MemoryOptions) withDefaults() MemoryOptions {
	if o.MaxKeys == 0 {
		o.MaxKeys = DefaultMaxKeys
	}
	if o.SnapshotFile != "" && o.SnapshotEvery == 0 {
		o.SnapshotEvery = time.Second
	}
	return o
}

func (o MemoryOptions) validate() error {
	if o.MaxKeys < 0 {
		return fmt.Errorf("MemoryOptions.MaxKeys is %d: want at least 1, or 0 for %d", o.MaxKeys, DefaultMaxKeys)
	}
	switch {
	case o.SnapshotEvery != 0 && o.SnapshotEvery < minSnapshotEvery:
		return fmt.Errorf("MemoryOptions.SnapshotEvery is %v: want at least %v, or 0 for 1s", o.SnapshotEvery, minSnapshotEvery)
	case o.SnapshotWait < 0:
		return fmt.Errorf("MemoryOptions.SnapshotWait is %v: want 0 or more", o.SnapshotWait)
	case o.SnapshotFile == "" && (o.SnapshotEvery != 0 || o.SnapshotWait != 0 || o.SnapshotSetAside):
		return errors.New("MemoryOptions.SnapshotFile is empty, and other options of snapshots are not: name a file, or leave them out")
	}
	return nil
}

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
}

// memoryStores are the stores of this process by name.
var memoryStores struct {
	sync.Mutex
	m map[string]*MemoryStore
}

// Memory returns the process-wide store of that name. It is made, with the
// options' defaults, on first use; after that it is the same one, with the options
// it was made with. A name that [New] would refuse is refused when a limiter takes the store.
func Memory(name string) *MemoryStore {
	memoryStores.Lock()
	defer memoryStores.Unlock()
	if s := memoryStores.m[name]; s != nil {
		return s
	}
	return openMemory(name, MemoryOptions{}.withDefaults())
}

// NewMemoryStore returns the process-wide store of that name, made with opts on
// first use, with the counters that are in the SnapshotFile, if there is one. It is
// an error if the store is there already with other options, or if its file cannot be
// used.
func NewMemoryStore(name string, opts MemoryOptions) (*MemoryStore, error) {
	err := validateName("its name", name, false)
	if err == nil {
		err = opts.validate()
	}
	if err != nil {
		return nil, fmt.Errorf("ratelimit: MemoryStore %q: %w", name, err)
	}
	opts = opts.withDefaults()
	if opts.SnapshotFile != "" {
		s, err := openKept(name, opts)
		if err != nil {
			return nil, fmt.Errorf("ratelimit: MemoryStore %q: %w", name, err)
		}
		return s, nil
	}
	memoryStores.Lock()
	defer memoryStores.Unlock()
	if s := memoryStores.m[name]; s != nil {
		if err := s.sameOptions(opts); err != nil {
			return nil, fmt.Errorf("ratelimit: MemoryStore %q: %w", name, err)
		}
		return s, nil
	}
	return openMemory(name, opts), nil
}

// openMemory makes a store; memoryStores is locked.
func openMemory(name string, opts MemoryOptions) *MemoryStore {
	s := &MemoryStore{name: name, opts: opts, table: table.New(opts.MaxKeys, clock.Now)}
	mapSet(&memoryStores.m, name, s)
	return s
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
	for i := range limits {
		if limits[i].rule.N < 1 || limits[i].rule.Window < rule.MinSpan {
			return 0, fmt.Errorf("ratelimit: MemoryStore %q: limit %v is not valid", s.name, limits[i])
		}
	}
	return s.take(key, n, limits, results), nil
}

// take is Take for limits that are known to be valid.
func (s *MemoryStore) take(key string, n int64, limits []Limit, results []Result) Instant {
	if len(limits) == 1 {
		result := &results[0] // nothing panics while the lock is held
		a, at, held := s.table.TakeOne(key, n, &limits[0].rule)
		*result = resultOf(a)
		held.Unlock()
		return Instant(at)
	}
	var rules [MaxLimits]rule.Limit
	var answers [MaxLimits]rule.Answer
	for i := range limits {
		rules[i] = limits[i].rule
	}
	at := s.table.Take(key, n, rules[:len(limits)], answers[:len(limits)])
	for i, a := range answers[:len(limits)] {
		results[i] = resultOf(a)
	}
	return Instant(at)
}

// Adjust implements [Store].
func (s *MemoryStore) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	if err := s.ready(ctx); err != nil {
		return 0, err
	}
	return s.table.Adjust(key, n, int64(at), rulesOf(limits)), nil
}

// Reset implements [Store].
func (s *MemoryStore) Reset(ctx context.Context, key string, limits []Limit) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	s.table.Reset(key, rulesOf(limits))
	return nil
}

func (s *MemoryStore) ready(ctx context.Context) error {
	if s.closed.Load() {
		return ErrStoreClosed
	}
	return ctx.Err()
}

// validateFor implements validatingStore.
func (s *MemoryStore) validateFor(limits []Limit) error {
	switch {
	case s.table == nil:
		return errors.New("Options.Store is a MemoryStore made by hand: get one with Memory or NewMemoryStore")
	case s.closed.Load():
		return fmt.Errorf("Options.Store is the MemoryStore %q, which has been closed: get it anew with Memory or NewMemoryStore", s.name)
	case s.opts.MaxKeys < len(limits):
		return fmt.Errorf("Options.Store is the MemoryStore %q with room for %d counters, and one key needs %d: raise MemoryOptions.MaxKeys",
			s.name, s.opts.MaxKeys, len(limits))
	}
	return nil
}

// unshare implements adviceStore.
func (s *MemoryStore) unshare() string {
	return "give each limiter a name of its own and leave Options.Store out, or set it to Memory of another name"
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

// MemoryStats tells how full a [MemoryStore] is, and what it had to give up.
type MemoryStats struct {
	// Counters held now. Some may have expired: they go as others come.
	Counters int
	// Evicted counts the counters that had to go before they expired, because
	// MaxKeys was reached. Those keys started afresh.
	Evicted uint64
	// EvictedDenied counts those of them whose key was being denied. It moves
	// only while nearly every key held is being denied; then MaxKeys is too small.
	EvictedDenied uint64
	// SnapshotsFailed counts the times that SnapshotFile could not be written. What
	// was counted is still counted here, and written when that works again.
	SnapshotsFailed uint64
}

// Stats returns how full the store is. It may be called at any time, and holds up
// each part of the store for a moment.
func (s *MemoryStore) Stats() MemoryStats {
	held := s.table.Stats()
	stats := MemoryStats{Counters: held.Counters, Evicted: held.Evicted, EvictedDenied: held.EvictedDenied}
	if s.snapshots != nil {
		stats.SnapshotsFailed = s.snapshots.failed.Load()
	}
	return stats
}

// Close ends the store and gives up its name; the next [Memory] of that name is a
// new, empty store. A limiter that is still on the closed one gets
// [ErrStoreClosed]. Closing a limiter does not do this: counters outlive limiters.
//
// With a SnapshotFile, Close writes what has not been written yet, and lets go of the
// file. Call it when the server has shut down: a decision that is made while Close
// runs may not be in the file. There is an error if it could not be written.
func (s *MemoryStore) Close() error {
	if s.snapshots != nil {
		return s.closeKept()
	}
	s.retire()
	return nil
}

// retire closes the store and frees its name; it reports whether it was open.
func (s *MemoryStore) retire() bool {
	memoryStores.Lock()
	defer memoryStores.Unlock()
	if !s.closed.CompareAndSwap(false, true) {
		return false
	}
	delete(memoryStores.m, s.name)
	return true
}
