package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"time"

	_ "modernc.org/sqlite" // it needs no cgo

	"github.com/ratelimit-go/ratelimit/storekit"
)

// backend is a [storekit.Backend] that keeps its records in a SQLite file, for all processes
// of one host. They have the same clock, so it passes time.Now().
type backend struct {
	read  *sql.DB
	write *sql.DB // it has one connection, because SQLite has one writer at a time
}

// A connection waits at most 10 ms for the lock of another process. Then storekit tries
// again, a few times. No update is lost if a process crashes. A power failure can lose the
// last few, unless synchronous is set to full: each update then waits for the disk.
const settings = "?_txlock=immediate&_pragma=busy_timeout(10)&_pragma=synchronous(normal)"

// In WAL mode, readers wait for no writer. The index finds records that have ended.
const schema = `
	PRAGMA journal_mode = wal;
	CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, record BLOB NOT NULL, ends INTEGER NOT NULL) WITHOUT ROWID;
	CREATE INDEX IF NOT EXISTS records_by_end ON records (ends)`

// openBackend opens a file, and creates it if there is none. It tries for about a second.
func openBackend(ctx context.Context, file string) (*backend, error) {
	name := "file:" + (&url.URL{Path: file}).EscapedPath() + settings
	read, errRead := sql.Open("sqlite", name)
	write, errWrite := sql.Open("sqlite", name)
	if err := errors.Join(errRead, errWrite); err != nil { // no file is open yet
		return nil, err
	}
	read.SetMaxOpenConns(4)
	read.SetMaxIdleConns(4)
	write.SetMaxOpenConns(1)
	b := &backend{read, write}
	var err error
	for range 100 { // other processes may create the table at the same time
		if _, err = write.ExecContext(ctx, schema); err == nil {
			return b, nil
		}
		time.Sleep(rand.N(20 * time.Millisecond))
	}
	return nil, errors.Join(fmt.Errorf("open %s: %w", file, err), b.Close())
}

func (b *backend) Close() error { return errors.Join(b.write.Close(), b.read.Close()) }

// Update implements [storekit.Backend]. It reads first, because a request that is denied
// changes nothing: it neither writes nor waits for a writer. Otherwise f is called again, in
// a transaction that has the write lock from the beginning and so never loses a race.
func (b *backend) Update(ctx context.Context, key string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
	old, err := scan(b.read.QueryRowContext(ctx, selectRecord, key))
	if err != nil {
		return notApplied(err)
	}
	if record, _ := f(old, time.Now()); bytes.Equal(record, old) {
		return nil
	}
	tx, err := b.write.BeginTx(ctx, nil)
	if err != nil {
		return notApplied(err)
	}
	defer tx.Rollback() // it does nothing after Commit
	if err := update(ctx, tx, key, f); err != nil {
		return notApplied(err)
	}
	return tx.Commit() // if this fails, nobody knows whether the record was written
}

// Delete implements [storekit.Backend].
func (b *backend) Delete(ctx context.Context, key string) error {
	return b.Update(ctx, key, func([]byte, time.Time) ([]byte, time.Duration) { return nil, 0 })
}

func notApplied(err error) error { return fmt.Errorf("%w: %w", storekit.ErrNotApplied, err) }

func update(ctx context.Context, tx *sql.Tx, key string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
	old, err := scan(tx.QueryRowContext(ctx, selectRecord, key))
	if err != nil {
		return err
	}
	now := time.Now()
	switch record, ttl := f(old, now); {
	case bytes.Equal(record, old):
		return nil
	case len(record) == 0:
		_, err = tx.ExecContext(ctx, "DELETE FROM records WHERE key = ?", key)
	default:
		_, err = tx.ExecContext(ctx, "REPLACE INTO records VALUES (?, ?, ?)", key, record, now.Add(ttl).UnixNano())
	}
	// One update in 32 deletes up to 64 records that have ended. In the meantime, 32 are
	// added at most. So the table does not grow, and nothing needs to run in the background.
	if err == nil && rand.N(32) == 0 {
		_, err = tx.ExecContext(ctx, "DELETE FROM records WHERE key IN (SELECT key FROM records WHERE ends <= ? LIMIT 64)", now.UnixNano())
	}
	return err
}

const selectRecord = "SELECT record FROM records WHERE key = ?"

// scan returns the record in a row, or nil if there is no row.
func scan(row *sql.Row) (record []byte, err error) {
	if err = row.Scan(&record); errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return record, err
}
