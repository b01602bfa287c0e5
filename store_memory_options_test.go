package ratelimit_test

import (
	"fmt"
	"testing"

	. "github.com/ratelimit-go/ratelimit"
)

// TestOpenMemoryStoreKeepsItsOptions asks for an open store with the same
// options, and with others, which is an error.
func TestOpenMemoryStoreKeepsItsOptions(t *testing.T) {
	for _, row := range []struct {
		name        string
		first, then MemoryOptions
		conflict    bool
	}{
		{"the same", MemoryOptions{MaxKeys: 10}, MemoryOptions{MaxKeys: 10}, false},
		{"zero and the default", MemoryOptions{}, MemoryOptions{MaxKeys: DefaultMaxKeys}, false},
		{"the default and zero", MemoryOptions{MaxKeys: DefaultMaxKeys}, MemoryOptions{}, false},
		{"others", MemoryOptions{MaxKeys: 10}, MemoryOptions{MaxKeys: 20}, true},
		{"zero is not whatever there is", MemoryOptions{MaxKeys: 10}, MemoryOptions{}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := memStore(t, row.first)
			second, err := NewMemoryStore(t.Name(), row.then)
			if Memory(t.Name()) != s {
				t.Error("Memory returned another store")
			}
			if !row.conflict {
				if err != nil || second != s {
					t.Errorf("got %p, %v; want the open store, %p", second, err, s)
				}
				return
			}
			if err == nil || second != nil {
				t.Fatalf("got %p, %v; want an error", second, err)
			}
			then := row.then.MaxKeys
			if then == 0 {
				then = DefaultMaxKeys
			}
			memErrorNames(t, err, t.Name(), fmt.Sprintf("is open with MemoryOptions.MaxKeys %d, not %d: ", row.first.MaxKeys, then))
		})
	}
}
