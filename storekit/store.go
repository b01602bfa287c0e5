package storekit

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// Backend keeps one record per key, of some 30 to 10,000 bytes. Its methods may be called
// from any number of goroutines. They return as soon as their context is done, which is
// shortly before their callers stop waiting.
//
// A key has up to 577 bytes, which are letters A to Z in both cases, digits and the
// characters / = - _ and period. Upper and lower case are different keys: in a database,
// that depends on the column's collation.
//
// An error that wraps [ErrNotApplied] means that nothing was written. The store repeats the
// call then: up to 12 times, within some 50 ms, and as long as its caller waits. After any
// other error it is not known whether the record was written, and the call is not repeated.
type Backend interface {
	// Update changes the record of a key in one atomic step. It calls f with the record, or
	// with nil if there is none, and with the backend's time. It then writes the record that
	// f returns, to be deleted after the time to live, rounded up to what the backend has. A
	// record of nil means that the key should have none.
	//
	// If another writer has changed the record in the meantime, Update calls f again with the
	// new record, as often as needed, or returns an error that wraps ErrNotApplied. f has no
	// side effects, and the last call counts. When Update has returned, f does nothing any
	// more. f keeps no reference to old, and the backend may keep what f returns.
	//
	// If f returns the bytes that it was given, nothing has changed, and Update need not
	// write: bytes.Equal(old, record). Denied requests then cost no write.
	//
	// The time should be the one of the backend, not of this process, so that all processes
	// have the same. A backend without a clock passes time.Now(). The windows of processes
	// then differ by as much as their clocks do.
	Update(ctx context.Context, key string, f func(old []byte, now time.Time) (record []byte, ttl time.Duration)) error

	// Delete deletes the record of a key, whatever it is. To delete what is not there is no
	// error. Only Limiter.Reset calls it, for a record that cannot be read, so Update must not
	// change it.
	Delete(ctx context.Context, key string) error
}

// ErrNotApplied is for the errors of a [Backend] that has written nothing:
//
//	return fmt.Errorf("%w: %w", storekit.ErrNotApplied, err)
var ErrNotApplied = errors.New("storekit: nothing was written")

// New returns a store that keeps its counters in a backend, under keys that begin with the
// prefix. Two stores may have one backend, with two prefixes. No other limiter, of any
// process, may have the prefix; see [ratelimit.Store].
//
// The store counts every kind of limit, and implements [ratelimit.SharedStore] and
// [ratelimit.HoldStore], too. All limits of a key are in one [Record], so several limits are
// one atomic step on every backend.
//
// The calls of this process for one key share an update: while one is under way, the others
// wait for the next one. So a process never competes with itself for a record. At most 256
// updates are under way at the same time.
//
// New sends nothing. There is nothing to close. ratelimit.New refuses the store if the
// backend is nil.
func New(prefix string, b Backend) ratelimit.RemoteStore {
	s := &store{prefix: prefix, backend: b, lanes: make(map[string]*lane), updates: make(chan struct{}, maxUpdates)}
	if isNil(b) {
		s.unusable = fmt.Errorf("the backend of the store %q is nil: hand storekit.New the backend that keeps its records", prefix)
	}
	return s
}

// isNil reports whether a backend is nil, also if it has a type.
func isNil(b Backend) bool {
	switch v := reflect.ValueOf(b); v.Kind() {
	case reflect.Invalid:
		return true
	case reflect.Pointer, reflect.Func, reflect.Map, reflect.Chan, reflect.Slice:
		return v.IsNil()
	}
	return false
}

// A store is what [New] returns.
type store struct {
	prefix   string
	backend  Backend
	unusable error         // why every call fails; nil if the store can be used
	updates  chan struct{} // has an element for each update that is under way

	mu    sync.Mutex
	lanes map[string]*lane // of keys that have callers or updates
}

var _ interface {
	ratelimit.SharedStore
	ratelimit.HoldStore
	ratelimit.Validator
} = (*store)(nil)

// Prefix implements [ratelimit.Store].
func (s *store) Prefix() string { return s.prefix }

// Validate implements [ratelimit.Validator].
func (s *store) Validate([]ratelimit.Limit) error { return s.unusable }

// Kinds implements [ratelimit.KindStore].
func (s *store) Kinds() ratelimit.Kinds {
	return ratelimit.KindBlock | ratelimit.KindRolling | ratelimit.KindCalendar | ratelimit.KindInFlight
}

// Take implements [ratelimit.Store].
func (s *store) Take(ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	reply, err := s.TakeShared(ctx, ratelimit.SharedRequest{Key: key, Units: n, Limits: limits}, results)
	return reply.At, err
}

// TakePending implements [ratelimit.KindStore].
func (s *store) TakePending(ctx context.Context, key string, n int64, pending []ratelimit.Pending, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	reply, err := s.TakeShared(ctx, ratelimit.SharedRequest{Key: key, Units: n, Limits: limits, Pending: pending}, results)
	return reply.At, err
}

// TakeShared implements [ratelimit.SharedStore].
func (s *store) TakeShared(ctx context.Context, q ratelimit.SharedRequest, results []ratelimit.Result) (ratelimit.SharedReply, error) {
	o, err := s.do(ctx, q.Deadline, &operation{op: opTake, key: q.Key, take: q, results: make([]ratelimit.Result, len(results))})
	if err != nil {
		return ratelimit.SharedReply{}, err
	}
	copy(results, o.results)
	return o.taken, nil
}

// Hold implements [ratelimit.HoldStore].
func (s *store) Hold(ctx context.Context, q ratelimit.HoldRequest, results []ratelimit.Result) (ratelimit.HoldReply, error) {
	o, err := s.do(ctx, q.Deadline, &operation{op: opHold, key: q.Key, hold: q, results: make([]ratelimit.Result, len(results))})
	if err != nil {
		return ratelimit.HoldReply{}, err
	}
	copy(results, o.results)
	return o.held, nil
}

// Adjust implements [ratelimit.Store].
func (s *store) Adjust(ctx context.Context, key string, n int64, at ratelimit.Instant, limits []ratelimit.Limit) (charged int64, err error) {
	o, err := s.do(ctx, time.Time{}, &operation{op: opAdjust, key: key, units: n, at: at, limits: limits})
	if err != nil {
		return 0, err
	}
	return o.charged, nil
}

// Block implements [ratelimit.KindStore].
func (s *store) Block(ctx context.Context, key string, b ratelimit.Block, limits []ratelimit.Limit) error {
	_, err := s.do(ctx, time.Time{}, &operation{op: opBlock, key: key, block: b, limits: limits})
	return err
}

// Reset implements [ratelimit.Store]. A record that cannot be read is deleted as a whole,
// unless it is of a later version.
func (s *store) Reset(ctx context.Context, key string, limits []ratelimit.Limit) error {
	_, err := s.do(ctx, time.Time{}, &operation{op: opReset, key: key, limits: limits})
	return err
}

// Fault implements [ratelimit.RemoteStore].
func (s *store) Fault(err error) ratelimit.Fault {
	if e := (*callError)(nil); errors.As(err, &e) {
		return e.fault
	}
	return ratelimit.FaultUnknown
}

// A callError is the error of a call, and what it means for others.
type callError struct {
	prefix string
	fault  ratelimit.Fault
	err    error
}

func (e *callError) Error() string { return fmt.Sprintf("ratelimit: store %q: %v", e.prefix, e.err) }

func (e *callError) Unwrap() error { return e.err }

// failed returns the error of a call that the backend has ended with an error.
func (s *store) failed(err error) *callError {
	fault := ratelimit.FaultUnknown
	if errors.Is(err, ErrNotApplied) {
		fault = ratelimit.FaultRefused
	}
	return &callError{s.prefix, fault, err}
}

// unchanged returns the error of a call that has changed nothing, because of its arguments or
// of what is stored for its key. A wrong clock is the backend's.
func (s *store) unchanged(err error) *callError {
	if errors.Is(err, errClock) {
		return &callError{s.prefix, ratelimit.FaultRefused, err}
	}
	return &callError{s.prefix, ratelimit.FaultKey, err}
}
