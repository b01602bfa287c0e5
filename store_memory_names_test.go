package ratelimit_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// TestMemoryIsOnePerName makes stores with both functions, at the same time.
func TestMemoryIsOnePerName(t *testing.T) {
	var stores [64]*MemoryStore
	memTogether(func(g int) {
		if g%2 == 0 {
			stores[g] = Memory(t.Name())
			return
		}
		s, err := NewMemoryStore(t.Name(), MemoryOptions{})
		if err != nil {
			t.Error(err)
		}
		stores[g] = s
	})
	t.Cleanup(func() { stores[0].Close() })
	for g, s := range stores {
		if s == nil || s != stores[0] {
			t.Fatalf("goroutine %d got store %p, goroutine 0 got %p", g, s, stores[0])
		}
	}
	other := Memory(t.Name() + "/other")
	defer other.Close()
	if other == stores[0] {
		t.Error("two names have one store")
	}
	if got, want := stores[0].Prefix(), "memory:"+t.Name(); got != want || stores[0].Name() != t.Name() {
		t.Errorf("prefix %q of %q, want %q of %q", got, stores[0].Name(), want, t.Name())
	}
}

// TestNewMemoryStoreRefusesInvalidNames checks that names are printable and
// short, because logs and header fields have them. An error has the field and
// the value.
func TestNewMemoryStoreRefusesInvalidNames(t *testing.T) {
	for _, row := range []struct {
		name string
		opts MemoryOptions
		want string
	}{
		{"", MemoryOptions{}, "empty"},
		{"a\nb", MemoryOptions{}, `"a\nb" has a control`},
		{"a\x00b", MemoryOptions{}, `"a\x00b" has a control`},
		{"a\u202eb", MemoryOptions{}, "invisible"},
		{"a\xffb", MemoryOptions{}, `"a\xffb" is not valid UTF-8`},
		{strings.Repeat("a", 129), MemoryOptions{}, "129 bytes"},
		{t.Name(), MemoryOptions{MaxKeys: -1}, "MaxKeys is -1"},
	} {
		s, err := NewMemoryStore(row.name, row.opts)
		if s != nil {
			t.Errorf("%q, %+v: got a store", row.name, row.opts)
			s.Close()
		}
		memErrorNames(t, err, row.want)
	}
	longest, err := NewMemoryStore(strings.Repeat("é", 64), MemoryOptions{MaxKeys: 1})
	if err != nil {
		t.Fatalf("a name of 128 bytes: %v", err)
	}
	longest.Close()
	memStore(t, MemoryOptions{MaxKeys: 3}) // no refused call has made a store with other options
}

// TestMemoryCloseForgetsNameAndCounters also closes the store twice.
func TestMemoryCloseForgetsNameAndCounters(t *testing.T) {
	closed := memStore(t, MemoryOptions{MaxKeys: 10})
	l := FixedWindow(1, time.Hour)
	memTake(t, closed, "k", 1, l)
	for range 2 {
		if err := closed.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	results := []Result{{Remaining: -1}}
	if _, err := closed.Take(t.Context(), "k", 1, []Limit{l}, results); !errors.Is(err, ErrStoreClosed) || results[0].Remaining != -1 {
		t.Errorf("Take: %v, %+v; want %v and results as they were", err, results, ErrStoreClosed)
	}
	if _, err := closed.Adjust(t.Context(), "k", -1, Now, []Limit{l}); !errors.Is(err, ErrStoreClosed) {
		t.Errorf("Adjust: %v, want %v", err, ErrStoreClosed)
	}
	if err := closed.Reset(t.Context(), "k", []Limit{l}); !errors.Is(err, ErrStoreClosed) {
		t.Errorf("Reset: %v, want %v", err, ErrStoreClosed)
	}

	next := memStore(t, MemoryOptions{MaxKeys: 20}) // other options are no longer a conflict
	if next == closed || next.Stats() != (MemoryStats{}) {
		t.Errorf("the next store is the closed one: %v, or not empty: %+v", next == closed, next.Stats())
	}
	if r := memTake(t, next, "k", 1, l); r[0].RetryAfter != 0 {
		t.Errorf("the next store remembers: %+v", r)
	}
	closed.Close()
	if Memory(t.Name()) != next {
		t.Error("closing a store again took the name from the next one")
	}
}

// TestMemoryCloseUnderTrafficIsClean checks that a call during Close is decided
// or gets ErrStoreClosed, and that all later calls get the error.
func TestMemoryCloseUnderTrafficIsClean(t *testing.T) {
	s, l := memStore(t, MemoryOptions{}), []Limit{FixedWindow(1000, time.Hour)}
	var admitted atomic.Int64
	memTogether(func(g int) {
		for i := range 100 {
			if g == 0 && i == 50 {
				s.Close()
			}
			var results [1]Result
			_, err := s.Take(context.Background(), "k", 1, l, results[:])
			switch {
			case err != nil && !errors.Is(err, ErrStoreClosed):
				t.Errorf("Take: %v, want %v", err, ErrStoreClosed)
			case err == nil && g == 0 && i >= 50:
				t.Error("a Take after Close was decided")
			case err == nil && results[0].RetryAfter == 0:
				admitted.Add(1)
			}
		}
	})
	if got := admitted.Load(); got > 1000 {
		t.Errorf("%d admitted, at most 1000", got)
	}
}
