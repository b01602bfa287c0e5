package storekit_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/storekit"
	"github.com/ratelimit-go/ratelimit/storetest"
)

// backend is the example of the package comment.
type backend struct {
	mu      sync.Mutex
	records map[string][]byte
}

func (b *backend) Update(_ context.Context, key string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	record, _ := f(b.records[key], time.Now())
	if b.records[key] = record; record == nil {
		delete(b.records, key)
	}
	return nil
}

func (b *backend) Delete(_ context.Context, key string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.records, key)
	return nil
}

// TestMap runs the suite on the backend of the package comment, in 25 lines.
func TestMap(t *testing.T) {
	var b *backend // of one case
	name := ""
	storetest.Run(t, func(t *testing.T, prefix string) ratelimit.Store {
		if t.Name() != name {
			b, name = &backend{records: map[string][]byte{}}, t.Name()
		}
		return storekit.New(prefix, b)
	})
}
