package storekit_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/storekit"
	"github.com/stretchr/testify/require"
)

// compareAndSwap is a backend whose records have revisions, as in etcd and NATS.
// It deletes a record when its time to live is over, and has faults.
type compareAndSwap struct {
	latency time.Duration    // of each of the two steps of an Update
	now     func() time.Time // its clock
	begin   func() error     // called at the beginning of an Update, and its error returned

	twice bool // calls f twice for each revision
	loses bool // loses the first race of each Update to another writer, and says so

	mu      sync.Mutex
	records map[string]stored
	updates int // calls of Update
	writes  int
	deletes int
}

type stored struct {
	record   []byte
	revision int
	ends     time.Time
}

func newBackend() *compareAndSwap {
	return &compareAndSwap{now: time.Now, records: map[string]stored{}, begin: func() error { return nil }}
}

func (b *compareAndSwap) Update(ctx context.Context, key string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
	b.mu.Lock()
	b.updates++
	b.mu.Unlock()
	if err := b.begin(); err != nil {
		return err
	}
	for lost := !b.loses; ; lost = true {
		if err := b.wait(ctx); err != nil {
			return fmt.Errorf("%w: %w", storekit.ErrNotApplied, err)
		}
		b.mu.Lock()
		now, old := b.now(), b.records[key]
		b.mu.Unlock()
		if len(old.record) > 0 && !old.ends.After(now) {
			old.record = nil
		}
		record, ttl := f(bytes.Clone(old.record), now)
		if b.twice {
			record, ttl = f(bytes.Clone(old.record), now)
		}
		if bytes.Equal(record, old.record) {
			return nil
		}
		if err := b.wait(ctx); err != nil {
			return fmt.Errorf("%w: %w", storekit.ErrNotApplied, err)
		}
		if !lost {
			continue
		}
		if b.swap(key, old.revision, stored{record, old.revision + 1, now.Add(ttl)}) {
			return nil
		}
	}
}

func (b *compareAndSwap) swap(key string, revision int, record stored) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.records[key].revision != revision {
		return false
	}
	b.records[key] = record
	b.writes++
	return true
}

func (b *compareAndSwap) Delete(_ context.Context, key string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deletes++
	delete(b.records, key)
	return nil
}

func (b *compareAndSwap) wait(ctx context.Context) error {
	if b.latency == 0 {
		return nil // a write that arrives late is a write, too
	}
	select {
	case <-time.After(b.latency):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// put stores a record as it is.
func (b *compareAndSwap) put(key string, record []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records[key] = stored{record, b.records[key].revision + 1, b.now().Add(time.Hour)}
}

func (b *compareAndSwap) get(key string) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.records[key].record
}

// written returns the numbers of updates and writes so far.
func (b *compareAndSwap) written() (updates, writes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.updates, b.writes
}

// fullStore is what a store of New implements.
type fullStore interface {
	ratelimit.SharedStore
	ratelimit.HoldStore
}

func newStore(t *testing.T, b storekit.Backend) fullStore {
	s, ok := storekit.New("test", b).(fullStore)
	require.True(t, ok)
	return s
}

// take takes units under one limit.
func take(s ratelimit.Store, key string, n int64, l ratelimit.Limit) (ratelimit.Result, error) {
	results := make([]ratelimit.Result, 1)
	_, err := s.Take(context.Background(), key, n, []ratelimit.Limit{l}, results)
	return results[0], err
}
