package ratelimit

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/snapshot"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// This file has the stores of this process by name: how one is found or made, and
// how it ends.

var memoryStores = struct {
	sync.Mutex
	m map[string]*MemoryStore
}{m: make(map[string]*MemoryStore)}

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
	memoryStores.m[name] = s
	return s
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

// closeKept closes a store that has snapshots, with a last one.
func (s *MemoryStore) closeKept() error {
	var saved, closed error
	path := lockPath(s.opts.SnapshotFile)
	if s.retire() {
		saved, closed = s.snapshots.close()
	}
	path.Unlock()
	s.snapshots.report(saved)
	if err := errors.Join(saved, closed); err != nil {
		return fmt.Errorf("ratelimit: MemoryStore %q: Close: MemoryOptions.SnapshotFile %s: %w", s.name, s.opts.SnapshotFile, err)
	}
	return nil
}

// snapshotPaths has a lock for each SnapshotFile that was ever used, so that nobody
// opens one that is being closed. Opening and closing take their time.
var snapshotPaths sync.Map // of *sync.Mutex by path

func lockPath(path string) *sync.Mutex {
	mu, _ := snapshotPaths.LoadOrStore(path, new(sync.Mutex))
	mu.(*sync.Mutex).Lock()
	return mu.(*sync.Mutex)
}

// openKept returns the open store of that name, or makes it with the counters that
// are in its SnapshotFile.
func openKept(name string, opts MemoryOptions) (*MemoryStore, error) {
	path, err := filepath.Abs(opts.SnapshotFile)
	if err != nil {
		return nil, fmt.Errorf("MemoryOptions.SnapshotFile %q: %w", opts.SnapshotFile, err)
	}
	// One file has one path, whether or not it exists yet; and a link is not replaced.
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	opts.SnapshotFile = path
	defer lockPath(path).Unlock()
	if s, err := lookupKept(name, opts); s != nil || err != nil {
		return s, err
	}
	kept, err := openSnapshots(name, opts)
	if err != nil {
		return nil, fmt.Errorf("MemoryOptions.SnapshotFile %s: %w", path, err)
	}
	memoryStores.Lock()
	defer memoryStores.Unlock()
	if other, err := findKept(name, opts); other != nil || err != nil { // since it was looked up
		kept.file.Close()
		return other, err
	}
	s := &MemoryStore{name: name, opts: opts, table: kept.table, snapshots: kept}
	memoryStores.m[name] = s
	go kept.run()
	return s, nil
}

// lookupKept returns the store of that name, or nil if there is none. It is an
// error if that has other options, or if another store has the file or one beside it.
func lookupKept(name string, opts MemoryOptions) (*MemoryStore, error) {
	memoryStores.Lock()
	defer memoryStores.Unlock()
	return findKept(name, opts)
}

// findKept is lookupKept while memoryStores is locked.
func findKept(name string, opts MemoryOptions) (*MemoryStore, error) {
	if s := memoryStores.m[name]; s != nil {
		if err := s.sameOptions(opts); err != nil {
			return nil, err
		}
		return s, nil
	}
	path := opts.SnapshotFile
	for _, other := range memoryStores.m {
		theirs := other.opts.SnapshotFile
		if theirs == "" {
			continue
		}
		if theirs == path {
			return nil, fmt.Errorf("MemoryOptions.SnapshotFile %s belongs to the MemoryStore %q: give each store a file of its own",
				path, other.name)
		}
		if what := snapshot.Companion(theirs, path); what != "" {
			return nil, fmt.Errorf("MemoryOptions.SnapshotFile %s is where the MemoryStore %q has the %s of its own, %s: choose another name",
				path, other.name, what, theirs)
		}
		if what := snapshot.Companion(path, theirs); what != "" {
			return nil, fmt.Errorf("MemoryOptions.SnapshotFile %s would have its %s at %s, which belongs to the MemoryStore %q: choose another name",
				path, what, theirs, other.name)
		}
	}
	return nil, nil
}

// sameOptions returns an error if a store has other options than these.
func (s *MemoryStore) sameOptions(opts MemoryOptions) error {
	was := s.opts
	if was == opts {
		return nil
	}
	if (was.SnapshotFile == "") != (opts.SnapshotFile == "") { // the other options of snapshots differ for that
		was.SnapshotEvery, was.SnapshotWait, was.SnapshotSetAside = opts.SnapshotEvery, opts.SnapshotWait, opts.SnapshotSetAside
	}
	var differ []string
	field := func(name string, was, now any) {
		if was != now {
			differ = append(differ, fmt.Sprintf("%s %v, not %v", name, was, now))
		}
	}
	field("MaxKeys", was.MaxKeys, opts.MaxKeys)
	field("SnapshotFile", strconv.Quote(was.SnapshotFile), strconv.Quote(opts.SnapshotFile))
	field("SnapshotEvery", was.SnapshotEvery, opts.SnapshotEvery)
	field("SnapshotWait", was.SnapshotWait, opts.SnapshotWait)
	field("SnapshotSetAside", was.SnapshotSetAside, opts.SnapshotSetAside)
	return fmt.Errorf("is open with MemoryOptions.%s: give the same options each time, or use another name", strings.Join(differ, ", and "))
}
