package ratelimit

import (
	"errors"
	"fmt"
	"time"
)

// DefaultMaxKeys is how many counters a [MemoryStore] holds unless
// [MemoryOptions.MaxKeys] says otherwise.
const DefaultMaxKeys = 1 << 20

// MemoryOptions are the settings of a [MemoryStore]. Its zero value is ready to use.
type MemoryOptions struct {
	// MaxKeys is the most counters held at once, so it bounds memory whatever
	// clients send: about 28 bytes a counter, 30 MB for the default, and as much again
	// with a SnapshotFile. A key has one counter for each algorithm and window that it
	// is limited under. A counter of a [Rolling] limit takes the place of several others,
	// so that the memory is the same. Zero means [DefaultMaxKeys].
	//
	// From about 93 % of the maximum on, a new key may have to replace another counter.
	// It can reach 144 of them, and takes one that has expired, or otherwise the one
	// that will expire first. It takes a counter whose key is being denied only if all
	// 144 are. A key that loses its counter starts from zero. So MaxKeys should be well
	// above the number of keys in the longest window; see [MemoryStats].
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
	// the one that this one replaces. Zero means that NewMemoryStore then fails
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

// minSnapshotEvery is below what a disk takes to make a write last.
const minSnapshotEvery = 10 * time.Millisecond
