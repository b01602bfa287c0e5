package ratelimit

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/guard"
	"github.com/ratelimit-go/ratelimit/internal/snapshot"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

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

// openSnapshots opens the SnapshotFile of the store of that name, and makes the
// store's table: of what is in the file if there is one. Nothing is saved before
// run is called.
func openSnapshots(name string, opts MemoryOptions) (k *snapshots, err error) {
	file, err := snapshot.Open(opts.SnapshotFile, opts.SnapshotWait)
	if errors.Is(err, snapshot.ErrInUse) {
		return nil, fmt.Errorf("%w: give each process a file of its own, or set MemoryOptions.SnapshotWait "+
			"(it is %v) to wait for that process to end", err, opts.SnapshotWait)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	k = &snapshots{
		file: file, every: opts.SnapshotEvery,
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	k.reporter.Store(&reporter{name: name}) // until a limiter takes the store
	err = k.read(opts.MaxKeys)
	if errors.Is(err, snapshot.ErrDamaged) {
		if !opts.SnapshotSetAside {
			return nil, fmt.Errorf("%w: put a good copy in its place, remove it, or set MemoryOptions.SnapshotSetAside "+
				"to start with no counters", err)
		}
		k.damage = err
		k.aside, err = file.SetAside()
	}
	if err != nil {
		return nil, err
	}
	if k.table == nil {
		var secret [16]byte
		rand.Read(secret[:])
		k.header.Secret = table.Secret{binary.LittleEndian.Uint64(secret[:]), binary.LittleEndian.Uint64(secret[8:])}
		k.table = table.NewKept(opts.MaxKeys, clock.Now, k.header.Secret, table.MaxShards)
	}
	k.header.Shards = k.table.Shards()
	k.mirror = k.table.Mirror()
	return k, nil
}

// read makes a table of what is in the file, if it is there.
func (k *snapshots) read(maxKeys int) error {
	contents, err := k.file.Read()
	if contents == nil || err != nil {
		return err
	}
	t := table.NewKept(maxKeys, clock.Now, contents.Secret, contents.Shards)
	t.SetWall(clock.WallAhead())
	if err := contents.Restore(t, snapshot.StampOf(clock.Now())); err != nil {
		return err
	}
	k.restored = true
	if t.Stats().Counters > 0 { // otherwise the secret and the number of shards are of no use
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
		err := k.save(false)
		took = time.Since(start)
		guard.Run(func() { k.report(err) }, nil) // the logger may panic
	}
}

func (k *snapshots) save(all bool) error {
	err := k.file.Save(k.header, k.table, k.mirror, all, func() snapshot.Stamp { return snapshot.StampOf(clock.Now()) })
	if err != nil {
		k.failed.Add(1)
	}
	return err
}

// report warns if the file could not be written. No lock may be held.
func (k *snapshots) report(err error) {
	if err != nil {
		k.reporter.Load().warn(warnSnapshotFailed, "error", err)
	}
}

// close ends run, saves what has not been saved, and lets go of the file. It waits for
// a save that is under way.
func (k *snapshots) close() (saved, closed error) {
	close(k.stop)
	<-k.done
	return k.save(true), k.file.Close()
}
