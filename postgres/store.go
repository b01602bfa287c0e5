package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/batch"
	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Store is a [ratelimit.Store] on a PostgreSQL server, for several processes that share their
// limits. It counts all kinds of limits, by the server's clock. Each key has one row, so
// several limits are all or none. Calls that arrive while others are under way share a round
// trip. A denied call writes nothing.
//
// Make one with [NewStore]. Methods may be called from any number of goroutines. A statement
// that may have been carried out is never sent again.
type Store struct {
	pool    *pgxpool.Pool
	prefix  string
	durable bool

	audited    bool // there is an option WithAudit
	sink       *AuditSink
	recordsAll bool // each decision

	queue  batch.Queue[call]
	sets   limitSets
	jobs   sync.Pool // of *job, for calls that have returned without an error
	opens  sync.Mutex
	isOpen atomic.Pointer[opened] // nil before the first call
	ahead  atomic.Int64           // what the server's clock was ahead of this process's when it last answered
	sweeps sweeper
	locked lockedKeys

	panicLogged sync.Once // see logPanic

	closed  atomic.Bool
	mu      sync.Mutex // orders Close against the start of goroutines
	running sync.WaitGroup
}

var (
	_ ratelimit.SharedStore = (*Store)(nil)
	_ ratelimit.HoldStore   = (*Store)(nil)
)

// Option is a setting of a [Store].
type Option func(*Store)

// Durable makes the server wait for its disk before it answers that units were taken, as the
// server's own setting of synchronous_commit says. Then what was admitted survives a crash of
// the server. Without it, a crash loses the units of its last moments: by default up to 0.6
// seconds (three times wal_writer_delay).
func Durable() Option { return func(s *Store) { s.durable = true } }

// settings are how calls share round trips.
var settings = batch.Settings{
	// Two at a time keep client and server busy.
	MaxInFlight: 2,
	// If latency is high, further ones may start.
	Extra:       2,
	MinInterval: time.Millisecond,
	// Four replace round trips to a server that hangs, for up to callTimeout. So a store uses
	// 8 connections at most, and one more for its cleanup.
	MaxStalled: 4,
	// The first caller of a batch waits for the last one.
	MaxCalls: 256,
}

// NewStore returns a store that counts under a prefix, such as "login", in the database that
// the pool is connected to. The pool is lent: it may serve other stores and other purposes,
// and is never closed. Nothing is sent yet: the server may be down. The schema must be there
// before the first call: see [Migrate].
//
// A prefix is 1 to 128 printable characters. It belongs to the role that first counts under
// it. A store with another role gets [ratelimit.ErrPrefixClaimed]. Within a role, no two
// limiters may have one prefix.
func NewStore(pool *pgxpool.Pool, prefix string, opts ...Option) (*Store, error) {
	if pool == nil {
		return nil, fmt.Errorf("ratelimit: postgres.Store %q: the pool is nil: make one with pgxpool.New", prefix)
	}
	if err := validatePrefix(prefix); err != nil {
		return nil, fmt.Errorf("ratelimit: postgres.Store %q: %w: use one such as %q", prefix, err, "login")
	}
	s := &Store{pool: pool, prefix: prefix}
	for _, opt := range opts {
		if opt != nil {
			opt(s)
		}
	}
	if err := s.validateAudit(); err != nil {
		return nil, fmt.Errorf("ratelimit: postgres.Store %q: %w", prefix, err)
	}
	q := &s.queue
	q.Settings, q.Now = settings, clock.Now
	q.Send, q.OnDone, q.OnAbandoned, q.OnPanic = s.send, answered, s.giveBack, s.panicked
	return s, nil
}

func validatePrefix(prefix string) error {
	const maxPrefix = 128
	switch {
	case prefix == "":
		return errors.New("its prefix is empty")
	case len(prefix) > maxPrefix:
		return fmt.Errorf("its prefix is %d bytes long: want at most %d", len(prefix), maxPrefix)
	case !utf8.ValidString(prefix):
		return errors.New("its prefix is not valid UTF-8")
	}
	for _, r := range prefix {
		if !unicode.IsPrint(r) {
			return errors.New("its prefix has a control or invisible character")
		}
	}
	return nil
}

// Prefix returns the prefix that the store was made with.
func (s *Store) Prefix() string { return s.prefix }

// Kinds implements [ratelimit.KindStore]. It returns all kinds.
func (s *Store) Kinds() ratelimit.Kinds {
	return ratelimit.KindBlock | ratelimit.KindRolling | ratelimit.KindCalendar | ratelimit.KindInFlight
}

// Take implements [ratelimit.Store].
func (s *Store) Take(ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	reply, err := s.TakeShared(ctx, ratelimit.SharedRequest{Key: key, Units: n, Limits: limits}, results)
	return reply.At, err
}

// TakePending implements [ratelimit.KindStore].
func (s *Store) TakePending(ctx context.Context, key string, n int64, pending []ratelimit.Pending, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	reply, err := s.TakeShared(ctx, ratelimit.SharedRequest{Key: key, Units: n, Limits: limits, Pending: pending}, results)
	return reply.At, err
}

// TakeShared implements [ratelimit.SharedStore].
func (s *Store) TakeShared(ctx context.Context, r ratelimit.SharedRequest, results []ratelimit.Result) (ratelimit.SharedReply, error) {
	if r.Units < 0 || r.UpTo && r.Units < 1 || len(results) != len(r.Limits) {
		return ratelimit.SharedReply{}, s.callError("Take of %d units, %d limits and %d results: want 0 units or more, and as many results as limits",
			r.Units, len(r.Limits), len(results))
	}
	if err := checkLimits(r.Limits, 1); err != nil {
		return ratelimit.SharedReply{}, s.callError("%w", err)
	}
	j, err := s.job(ctx, take, r.Key, min(r.Units, rule.MaxUnits+1), r.Limits, s.recordsAll && r.Units > 0)
	if err != nil {
		return ratelimit.SharedReply{}, err
	}
	j.Value.upTo = r.UpTo
	j.Value.pending = slices.Clone(r.Pending)
	if err := s.do(ctx, r.Deadline, j); err != nil {
		return ratelimit.SharedReply{}, err
	}
	c := &j.Value
	copy(results, c.results[:])
	reply := ratelimit.SharedReply{At: ratelimit.Instant(c.decided), Newest: c.newest}
	if r.UpTo {
		reply.Granted = c.taken
	}
	s.jobs.Put(j)
	return reply, nil
}

// Hold implements [ratelimit.HoldStore].
func (s *Store) Hold(ctx context.Context, r ratelimit.HoldRequest, results []ratelimit.Result) (ratelimit.HoldReply, error) {
	if len(results) != len(r.Limits)+1 {
		return ratelimit.HoldReply{}, s.callError("Hold with %d limits and %d results: want one result more than limits", len(r.Limits), len(results))
	}
	if err := checkLimits(r.Limits, 0); err != nil {
		return ratelimit.HoldReply{}, s.callError("%w", err)
	}
	j, err := s.job(ctx, hold, r.Key, 0, r.Limits, false)
	if err != nil {
		return ratelimit.HoldReply{}, err
	}
	c := &j.Value
	c.holding = r
	c.holding.Limits, c.holding.Pending = c.set.limits, slices.Clone(r.Pending)
	if err := s.do(ctx, r.Deadline, j); err != nil {
		return ratelimit.HoldReply{}, err
	}
	copy(results, c.results[:])
	reply := c.held
	s.jobs.Put(j)
	return reply, nil
}

// Adjust implements [ratelimit.Store].
func (s *Store) Adjust(ctx context.Context, key string, n int64, at ratelimit.Instant, limits []ratelimit.Limit) (charged int64, err error) {
	if err := checkLimits(limits, 1); err != nil {
		return 0, s.callError("%w", err)
	}
	j, err := s.job(ctx, adjust, key, max(-rule.MaxUnits, min(n, rule.MaxUnits)), limits, false)
	if err != nil {
		return 0, err
	}
	j.Value.at = int64(at)
	if err := s.do(ctx, time.Time{}, j); err != nil {
		return 0, err
	}
	charged = j.Value.charged
	s.jobs.Put(j)
	return charged, nil
}

// Reset implements [ratelimit.Store].
func (s *Store) Reset(ctx context.Context, key string, limits []ratelimit.Limit) error {
	if len(limits) == 0 && !s.audited {
		return ctx.Err()
	}
	j, err := s.job(ctx, reset, key, 0, limits, s.audited)
	if err != nil {
		return err
	}
	return s.do(ctx, time.Time{}, j)
}

// Block implements [ratelimit.KindStore].
func (s *Store) Block(ctx context.Context, key string, b ratelimit.Block, limits []ratelimit.Limit) error {
	j, err := s.job(ctx, block, key, 0, limits, s.audited && b.Rung == 0)
	if err != nil {
		return err
	}
	j.Value.given = b // one with a rung is of a denial while the store was away
	return s.do(ctx, time.Time{}, j)
}

// checkLimits returns an error for a number of limits that no call has.
func checkLimits(limits []ratelimit.Limit, least int) error {
	if len(limits) < least || len(limits) > ratelimit.MaxLimits {
		return fmt.Errorf("%d limits: want %d to %d", len(limits), least, ratelimit.MaxLimits)
	}
	return nil
}

// job returns a call that is ready for the queue. It reuses a call that has returned without
// an error. With mustRecord it is an error if ctx has nothing for a record.
func (s *Store) job(ctx context.Context, op op, key string, units int64, limits []ratelimit.Limit, mustRecord bool) (*job, error) {
	if key == "" {
		return nil, s.callError("the key is empty")
	}
	set, err := s.sets.of(limits)
	if err != nil {
		return nil, s.callError("%w", err)
	}
	recording, err := s.recordingOf(ctx, op, key, units, limits, mustRecord)
	if err != nil {
		return nil, err
	}
	j, _ := s.jobs.Get().(*job)
	if j == nil {
		j = new(job)
	}
	var buf [3 * maxKey]byte
	c := &j.Value
	c.op, c.key, c.set, c.units, c.recording = op, string(appendKey(buf[:0], key)), set, units, recording
	c.upTo, c.pending, c.of, c.newest, c.err = false, nil, nil, false, nil
	return j, nil
}

// do passes a call to the queue, and waits for the result until ctx is done or the deadline
// has passed. After an error the job must not be used again: a round trip may write to it.
func (s *Store) do(ctx context.Context, deadline time.Time, j *job) error {
	if s.closed.Load() {
		return s.closedError()
	}
	if own, ok := ctx.Deadline(); ok && (deadline.IsZero() || own.Before(deadline)) {
		deadline = own
	}
	switch err := s.queue.Do(ctx, clock.Now(), deadline, j, false); {
	case err == nil:
		return j.Value.err
	case errors.Is(err, batch.ErrNotSent):
		return s.fail(ratelimit.FaultRefused, err, "")
	case errors.Is(err, batch.ErrUnknown):
		return s.fail(ratelimit.FaultUnknown, err, "")
	case errors.Is(err, batch.ErrClosed):
		return s.closedError()
	default:
		return s.fail(ratelimit.FaultUnknown, err, "")
	}
}

func (s *Store) closedError() error {
	return s.fail(ratelimit.FaultRefused, ratelimit.ErrStoreClosed, "make a new one with postgres.NewStore")
}

// giveBack gives back the units of a call that was carried out after its caller had gone, if
// the caller's context was cancelled: then its client has disconnected. A caller whose
// deadline has passed may have admitted its request anyway. giveBack does not wait.
func (s *Store) giveBack(j *job) {
	c := &j.Value
	if !j.Cancelled || c.op != take && c.op != hold || c.err != nil || c.taken == 0 || len(c.set.limits) == 0 {
		return
	}
	// If that fails, the units stay counted.
	s.queue.Post(&job{Value: call{op: adjust, key: c.key, set: c.set, units: -c.taken, at: c.decided, recording: c.recording.giveBack()}})
}

// panicked sets the error of a call in whose round trip a hook of the pool has panicked.
func (s *Store) panicked(j *job, with any) {
	j.Value.of = nil
	j.Value.err = s.fail(ratelimit.FaultUnknown, fmt.Errorf("the pool has panicked: %v", with), "")
}

// Close ends the store when the calls that are under way have ended, after some seconds at
// most. It leaves the counters and the pool as they are. Calls that come later fail with
// [ratelimit.ErrStoreClosed]. The error is always nil.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed.Store(true)
	s.mu.Unlock()
	s.queue.Close()
	s.running.Wait()
	return nil
}

// opened returns what the store knows of the schema. The first call asks the server, and so
// does the first one after an error that calls it in question. Others wait in the meantime.
func (s *Store) opened(ctx context.Context, conn *pgxpool.Conn) (*opened, error) {
	if o := s.isOpen.Load(); o != nil {
		return o, nil
	}
	s.opens.Lock()
	defer s.opens.Unlock()
	if o := s.isOpen.Load(); o != nil {
		return o, nil
	}
	var server, isolation string
	err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num'), current_setting('default_transaction_isolation')").Scan(&server, &isolation)
	if err != nil {
		return nil, s.explain(err, false)
	}
	if err := checkServer(server); err != nil {
		return nil, s.fail(ratelimit.FaultRefused, err, "")
	}
	if isolation != "read committed" {
		return nil, s.fail(ratelimit.FaultRefused, fmt.Errorf("the isolation level is %s, and READ COMMITTED is needed", isolation), isolationHint)
	}
	var id string
	if err := conn.QueryRow(ctx, "SELECT ratelimit.open($1, $2)", s.prefix, schemaVersion).Scan(&id); err != nil {
		return nil, s.explain(err, false)
	}
	o := &opened{prefix: id + ":", ids: make(map[string]int32), limits: make(map[int32][]string)}
	s.isOpen.Store(o)
	return o, nil
}

// forget makes the next call open the prefix again.
func (s *Store) forget(o *opened) { s.isOpen.CompareAndSwap(o, nil) }

// serverNow returns about the time of the server's clock, in nanoseconds since 1970.
func (s *Store) serverNow() int64 { return time.Now().UnixNano() + s.ahead.Load() }

func (s *Store) learnTime(now int64) {
	if ahead := now - time.Now().UnixNano(); ahead > math.MinInt64/2 {
		s.ahead.Store(ahead)
	}
}
