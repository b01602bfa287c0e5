package ratelimit_test

import (
	"context"
	"errors"

	. "github.com/ratelimit-go/ratelimit"
)

// fakeStore is a store of a type that the package does not know. It only has a
// prefix.
type fakeStore struct {
	Store
	prefix string
}

func (s *fakeStore) Prefix() string { return s.prefix }

// wrapped is a wrapper with the prefix of the store inside.
type wrapped struct{ Store }

func (w *wrapped) Unwrap() Store { return w.Store }
func (w *wrapped) Prefix() string {
	if w.Store == nil {
		return ""
	}
	return w.Store.Prefix()
}

// wrapper is a wrapper that only has Unwrap, like a wrapper for metrics.
type wrapper struct{ Store }

func (w *wrapper) Unwrap() Store { return w.Store }

// failing is a store whose calls all fail.
type failing struct{ fakeStore }

func (*failing) Take(context.Context, string, int64, []Limit, []Result) (Instant, error) {
	return 0, errBackend
}
func (*failing) Adjust(context.Context, string, int64, Instant, []Limit) (int64, error) {
	return 0, errBackend
}
func (*failing) Reset(context.Context, string, []Limit) error { return errBackend }

// errBackend is the error of failing.
var errBackend = errors.New("dial tcp 10.0.0.5:6379: refused")

// brokenStore is a store whose Take fails with an error of the test.
type brokenStore struct {
	Store
	err error
}

func (s *brokenStore) Prefix() string { return "broken:" }
func (s *brokenStore) Take(context.Context, string, int64, []Limit, []Result) (Instant, error) {
	return 0, s.err
}

// renamed is a wrapper that has its own prefix.
type renamed struct {
	Store
	prefix string
}

func (r *renamed) Prefix() string { return r.prefix }
func (r *renamed) Unwrap() Store  { return r.Store }

// embeds is a wrapper that embeds a RedisStore, counts its calls, and has no
// Unwrap.
type embeds struct {
	*RedisStore
	prefix string
	takes  int
}

func (e *embeds) Prefix() string { return e.prefix }

func (e *embeds) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	e.takes++
	return e.RedisStore.Take(ctx, key, n, limits, results)
}
