package ratelimit

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/redisstore"
	"github.com/ratelimit-go/ratelimit/internal/remote"
)

// This file has what a user sees of a store that fails: what a limiter does about
// it, and which errors it returns. How a store classifies its errors is in store.go,
// and the code that acts on it, with timeout, breaker and fallback, in internal/remote.

// FailurePolicy says how requests are answered while a store fails.
type FailurePolicy uint8

const (
	// FallbackLocal decides in this process, from what it last knew of each key. A
	// blocked key stays blocked, and a half-used key stays half used. Keys that this
	// process does not know start from zero, so n processes together may admit up to
	// n times the limit for such a key. What was admitted is charged to the store
	// when it answers again. If the store returns without its counters, its keys
	// start from zero.
	FallbackLocal FailurePolicy = iota
	// FailOpen admits every request that the store would have decided. Header fields
	// then show what would be left of a whole limit. Keys that are known to be denied
	// are still denied, until their time is over: only one request in each
	// Options.DenyRecheck asks the store, and is admitted.
	FailOpen
	// FailClosed decides nothing: requests are answered with 503, and Take returns
	// the error. Keys that are known to be denied are still denied, with 429: only
	// one request in each Options.DenyRecheck asks the store.
	FailClosed
)

var failurePolicies = [...]string{FallbackLocal: "FallbackLocal", FailOpen: "FailOpen", FailClosed: "FailClosed"}

func (p FailurePolicy) String() string {
	if int(p) < len(failurePolicies) {
		return failurePolicies[p]
	}
	return fmt.Sprintf("FailurePolicy(%d)", p)
}

// MarshalText implements [encoding.TextMarshaler] with [FailurePolicy.String].
func (p FailurePolicy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler] for what MarshalText writes.
func (p *FailurePolicy) UnmarshalText(text []byte) error {
	i := slices.Index(failurePolicies[:], string(text))
	if i < 0 {
		return fmt.Errorf("ratelimit: failure policy %q: want FallbackLocal, FailOpen or FailClosed", text)
	}
	*p = FailurePolicy(i)
	return nil
}

// The numbers of internal packages are the public ones, so that converting them is
// free. This does not compile if one differs.
const _ = uint(-(int(FaultUnknown) ^ int(engine.Unknown) | int(FaultRefused) ^ int(engine.Refused) | int(FaultKey) ^ int(engine.Key) |
	int(FallbackLocal) ^ int(remote.FallbackLocal) | int(FailOpen) ^ int(remote.FailOpen) | int(FailClosed) ^ int(remote.FailClosed) |
	int(SourceStore) ^ int(remote.FromStore) | int(SourceCache) ^ int(remote.FromCache) | int(SourceLease) ^ int(remote.FromLease) |
	int(SourceFallback) ^ int(remote.FromFallback) | int(SourceFailOpen) ^ int(remote.FromFailOpen)))

// RedisError is an error of a [RedisStore] that says what it knows of the cause.
type RedisError struct {
	// Unsent: nothing has been changed at Redis, because the command was not sent,
	// or because Redis has refused it. If it is false, that is not known.
	Unsent bool

	cause *redisstore.Error
}

func (e *RedisError) Error() string { return e.cause.Detail() }

func (e *RedisError) Unwrap() error { return e.cause.Err }

// storeError is a public error with the internal one that it was made of, which
// RedisStore.Fault looks for.
type storeError struct {
	public   error
	internal *redisstore.Error
}

func (e *storeError) Error() string   { return e.public.Error() }
func (e *storeError) Unwrap() []error { return []error{e.public, e.internal} }

// publicError is the one place where an error of an internal package becomes one
// that users can test for. Other errors, and nil, stay as they are.
func publicError(err error) error {
	var e *redisstore.Error
	if err == nil || !errors.As(err, &e) {
		return err
	}
	public := e.Err
	switch e.Cause {
	case redisstore.Backend:
		public = &RedisError{Unsent: e.Fault != engine.Unknown, cause: e}
	case redisstore.Closed:
		public = fmt.Errorf("%w: make a new one with NewRedisStore", ErrStoreClosed)
	case redisstore.Claimed:
		public = fmt.Errorf("%w: it is %q; give each limiter a prefix of its own", ErrPrefixClaimed, e.Other)
	}
	return &storeError{fmt.Errorf("RedisStore (prefix %q): %w", e.Prefix, public), e}
}

// remoteReporter logs what a Remote reports of its store.
type remoteReporter struct {
	*reporter
	policy FailurePolicy
}

func (r remoteReporter) StoreFailed(err error) {
	r.warn(warnStoreFailed, "on_failure", r.policy, "error", publicError(err))
}

func (r remoteReporter) StoreDown(outages uint64, cause error) {
	r.always(warnStoreDown, 0, "outages", outages, "on_failure", r.policy, "error", publicError(cause))
}

func (r remoteReporter) StoreBack(outages uint64, lasted time.Duration) {
	r.always(warnStoreBack, lasted, "outages", outages, "lasted", lasted)
}
