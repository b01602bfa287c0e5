package ratelimit

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/snapshot"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// minSnapshotEvery is below what a disk takes to make a write last.
const minSnapshotEvery = 10 * time.Millisecond

// snapshots keep the counters of a [MemoryStore] in its SnapshotFile.
type snapshots struct {
	file   *snapshot.File
	header snapshot.Header
	table  *table.Table
	mirror *table.Mirror
	every  time.Duration
	stop   chan struct{}
	done   chan struct{}

	restored bool   // from a file
	aside    string // what a damaged file was renamed to
	damage   error  // and why

	failed   atomic.Uint64
	reporter atomic.Pointer[reporter] // logs what goes wrong
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
	// One file has one path, whether or not it is there yet; and a link is not replaced.
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
	s := &MemoryStore{name: name, opts: opts}
	if err := s.restore(); err != nil {
		return nil, fmt.Errorf("MemoryOptions.SnapshotFile %s: %w", path, err)
	}
	memoryStores.Lock()
	defer memoryStores.Unlock()
	if other, err := findKept(name, opts); other != nil || err != nil { // since it was looked up
		s.snapshots.file.Close()
		return other, err
	}
	mapSet(&memoryStores.m, name, s)
	go s.snapshots.run()
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
		if what := snapshot.Beside(theirs, path); what != "" {
			return nil, fmt.Errorf("MemoryOptions.SnapshotFile %s is where the MemoryStore %q has the %s of its own, %s: choose another name",
				path, other.name, what, theirs)
		}
		if what := snapshot.Beside(path, theirs); what != "" {
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

// restore makes the store's table, of what is in the file if there is one.
func (s *MemoryStore) restore() (err error) {
	file, err := snapshot.Open(s.opts.SnapshotFile, s.opts.SnapshotWait)
	if errors.Is(err, snapshot.ErrInUse) {
		return fmt.Errorf("%w: give each process a file of its own, or set MemoryOptions.SnapshotWait "+
			"(it is %v) to wait for that process to end", err, s.opts.SnapshotWait)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	k := &snapshots{
		file: file, every: s.opts.SnapshotEvery,
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	k.reporter.Store(&reporter{name: s.name}) // until a limiter takes the store
	s.snapshots = k
	err = k.read(s.opts.MaxKeys)
	if errors.Is(err, snapshot.ErrDamaged) {
		if !s.opts.SnapshotSetAside {
			return fmt.Errorf("%w: put a good copy in its place, remove it, or set MemoryOptions.SnapshotSetAside "+
				"to start with no counters", err)
		}
		k.damage = err
		k.aside, err = file.SetAside()
	}
	if err != nil {
		return err
	}
	if k.table == nil {
		var secret [16]byte
		rand.Read(secret[:])
		k.header.Secret = table.Secret{binary.LittleEndian.Uint64(secret[:]), binary.LittleEndian.Uint64(secret[8:])}
		k.table = table.NewKept(s.opts.MaxKeys, clock.Now, k.header.Secret, table.MaxShards)
	}
	k.header.Shards = k.table.Shards()
	k.mirror = k.table.Mirror()
	s.table = k.table
	return nil
}

// read makes a table of what is in the file, if it is there.
func (k *snapshots) read(maxKeys int) error {
	contents, err := k.file.Read()
	if contents == nil || err != nil {
		return err
	}
	t := table.NewKept(maxKeys, clock.Now, contents.Secret, contents.Shards)
	if err := contents.Restore(t, snapshot.StampOf(clock.Now())); err != nil {
		return err
	}
	k.restored = true
	if t.Stats().Counters > 0 { // else the secret and the number of shards are of no more use
		k.table, k.header.Secret = t, contents.Secret
	}
	return nil
}

// run saves from time to time, until it is stopped.
func (k *snapshots) run() {
	defer close(k.done)
	for took := time.Duration(0); ; {
		// The interval is not to pass between the moment that a counter is read and
		// the moment that its successor is on the disk, with a tenth to spare.
		timer := time.NewTimer(max(k.every/2, k.every/10*9-2*took))
		select {
		case <-k.stop:
			timer.Stop()
			return
		case <-timer.C:
		}
		start := time.Now()
		k.save(false)
		took = time.Since(start)
	}
}

func (k *snapshots) save(all bool) error {
	err := k.file.Save(k.header, k.table, k.mirror, all, func() snapshot.Stamp { return snapshot.StampOf(clock.Now()) })
	if err != nil {
		k.failed.Add(1)
		k.reporter.Load().warn(warnSnapshotFailed, "error", err)
	}
	return err
}

// closeKept closes a store that has snapshots, with a last one.
func (s *MemoryStore) closeKept() error {
	defer lockPath(s.opts.SnapshotFile).Unlock()
	if !s.retire() {
		return nil
	}
	k := s.snapshots
	close(k.stop)
	<-k.done
	err := errors.Join(k.save(true), k.file.Close())
	if err != nil {
		return fmt.Errorf("ratelimit: MemoryStore %q: Close: MemoryOptions.SnapshotFile %s: %w", s.name, s.opts.SnapshotFile, err)
	}
	return nil
}
