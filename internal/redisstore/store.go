// Package redisstore counts on a Redis server, Cluster, Ring or Sentinel setup. It
// implements [engine.Engine]. The public RedisStore wraps it.
//
// A decision passes through these files, in this order:
//
//	store.go    checks the call and puts it into a queue
//	nodes.go    chooses the queue: one for all, or in a Cluster one per master
//	exchange.go makes commands of the calls that share a round trip, and hands out the replies
//	command.go  writes one command, sends it and reads its reply
//	call.go     works out one caller's answer from a reply that may be for several
//
// across.go has the commands for keys of different slots of a Cluster.
//
// Three files have other tasks. owner.go keeps a record of which limiter uses
// the prefix, place.go finds out whether all keys are on one server, and
// errors.go classifies errors. limits.go prepares limits for commands. How calls
// wait for each other is in package batch. What the scripts do is in package
// redisscript.
package redisstore

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/batch"
	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/guard"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Batching has the settings by which calls share round trips to one server. Those for
// a master of a Cluster are in nodes.go.
var Batching = batch.Settings{
	// Two round trips at a time keep both client and server busy.
	MaxInFlight: 2,
	// If latency is high, further round trips may start, but only if that pays: each
	// costs client and server about 10 µs.
	Extra:       2,
	MinInterval: 100 * time.Microsecond,
	// Up to ten more replace round trips to a server that hangs, until the
	// client's own timeouts end those. Together with its other commands, a store
	// uses 16 connections at most.
	MaxStalled: 10,
	// The first caller of a batch waits for the last one. 256 scripts take about a
	// millisecond of a server's time.
	MaxCalls: 256,
}

// sideTimeout is the timeout of commands that are not part of a decision.
const sideTimeout = 5 * time.Second

// maxResetLimits is the most limits of a Reset or a Block: Lua unpacks at least this
// many arguments at once.
const maxResetLimits = 4096

// A Store counts under one prefix on the server or servers of its client. Methods
// may be called from any number of goroutines.
type Store struct {
	client  redis.UniversalClient
	prefix  string
	options Options

	queue    queue      // for calls to a single server, or to a Cluster whose masters are not known yet
	nodes    nodeQueues // for calls to each master of a Cluster
	sets     limitSets
	jobs     sync.Pool // of *job, for calls that have returned without an error
	owner    owner
	macs     sync.Pool     // of hash.Hash, for the method stored; New is nil if keys are stored unchanged
	topology atomic.Uint32 // whether all keys are on one server: see topology.go
	moved    movedSlots    // see across.go
	refused  atomic.Bool   // a server has refused a command for keys of different slots

	// keepsDeadlines means that the client ends a call when its context is done.
	// So a call can be made on its caller's goroutine.
	keepsDeadlines bool
	// answering means that the last command was answered, so the next one
	// probably will be, too.
	answering atomic.Bool

	closed  atomic.Bool
	mu      sync.Mutex // orders Close against the start of goroutines and queues
	running sync.WaitGroup
}

// Options are the settings of a Store.
type Options struct {
	RefuseClaimed bool   // refuse to count while a limiter of another name counts under the prefix
	KeySecret     []byte // keys the hashes that are stored in place of keys; if empty, keys are stored unchanged
	AcrossSlots   bool   // takes of keys of one master of a Cluster share commands: see across.go
}

type (
	queue = batch.Queue[call]
	job   = batch.Call[call] // a call in a queue
)

// New returns a store that writes to prefix, which must be valid. The store
// never closes the client. New sends nothing and starts no goroutine.
func New(client redis.UniversalClient, prefix string, options Options) *Store {
	s := &Store{client: client, prefix: prefix, options: options, keepsDeadlines: keepsDeadlines(client)}
	s.sets.Most = maxLimitSets
	s.open(&s.queue, Batching)
	if len(options.KeySecret) > 0 {
		s.macs.New = func() any { return hmac.New(sha256.New, options.KeySecret) }
	}
	return s
}

// stored returns the key that is written to Redis in place of a caller's key.
// That is the key itself, or the first 128 bits of its HMAC in 22 characters.
func (s *Store) stored(key string) string {
	if s.macs.New == nil {
		return key
	}
	mac := s.macs.Get().(hash.Hash)
	defer s.macs.Put(mac)
	mac.Reset()
	io.WriteString(mac, key)
	var sum [sha256.Size]byte
	return base64.RawURLEncoding.EncodeToString(mac.Sum(sum[:0])[:16])
}

func (s *Store) open(q *queue, settings batch.Settings) {
	q.Settings, q.Now = settings, clock.Now
	q.Send, q.OnDone, q.OnAbandoned, q.OnPanic = s.send, answered, s.giveBack, s.panicked
}

// keepsDeadlines reports whether a client ends its calls when their contexts are
// done. Other clients are called on separate goroutines, so that a caller can
// stop waiting. (A clone of such a client, made to keep deadlines, would not run
// its hooks.)
func keepsDeadlines(client redis.UniversalClient) bool {
	switch c := client.(type) {
	case *redis.Client:
		return c.Options().ContextTimeoutEnabled
	case *redis.ClusterClient:
		return c.Options().ContextTimeoutEnabled
	}
	return false
}

// Prefix returns the prefix that the store was made with.
func (s *Store) Prefix() string { return s.prefix }

// Take implements [engine.Engine].
func (s *Store) Take(ctx context.Context, r engine.Request, answers []rule.Answer) (engine.Reply, error) {
	rules := r.Limits.Rules
	if r.Units < 0 || len(answers) != len(rules) {
		return engine.Reply{}, s.callError(fmt.Errorf("Take of %d units, %d limits and %d results: "+
			"want 0 units or more, and as many results as limits", r.Units, len(rules), len(answers)))
	}
	op := take
	switch {
	case r.Holding != nil && len(rules) == 0:
		return s.hold(ctx, &r)
	case r.Holding != nil:
		op = takeHold
	}
	if err := validate(rules, rule.MaxLimits); err != nil {
		return engine.Reply{}, s.callError(err)
	}
	var of *ladders
	if r.StartsBlocks {
		of = r.Limits.Ladders
	}
	job := s.job(op, r.Key, rules, of)
	if op == takeHold {
		job.Value.holding = *r.Holding
	}
	job.Value.units, job.Value.upTo = min(r.Units, rule.MaxUnits+1), r.UpTo // no limit can hold more
	job.Value.pending = r.Pending
	if err := s.do(ctx, r.Now, r.Until, job); err != nil {
		return engine.Reply{}, err
	}
	c := &job.Value
	blocked, began, err := c.answer(answers)
	if op == takeHold {
		r.Holding.Held = c.held
	}
	reply := engine.Reply{
		At: c.now * 1000, Granted: c.taken(), Newest: c.newest, Blocked: blocked, Began: began,
		Exact: len(r.States) > 0 && c.states(r.States, r.Logs),
	}
	c.blocksAfter(r.Blocks)
	s.jobs.Put(job)
	if err != nil {
		return engine.Reply{}, s.callError(err)
	}
	return reply, nil
}

// hold is Take for a request about nothing but holds.
func (s *Store) hold(ctx context.Context, r *engine.Request) (engine.Reply, error) {
	job := s.job(hold, r.Key, nil, nil)
	job.Value.holding = *r.Holding
	if err := s.do(ctx, r.Now, r.Until, job); err != nil {
		return engine.Reply{}, err
	}
	r.Holding.Held = job.Value.held
	reply := engine.Reply{At: job.Value.now * 1000, Newest: true}
	s.jobs.Put(job)
	return reply, nil
}

// Adjust implements [engine.Engine].
func (s *Store) Adjust(ctx context.Context, key string, n, at int64, limits *engine.Limits) (charged int64, err error) {
	if err := validate(limits.Rules, rule.MaxLimits); err != nil {
		return 0, s.callError(err)
	}
	job := s.job(adjust, key, limits.Rules, nil)
	job.Value.units, job.Value.at = max(-rule.MaxUnits, min(n, rule.MaxUnits)), at
	if err := s.do(ctx, clock.Now(), 0, job); err != nil {
		return 0, err
	}
	charged = job.Value.charged()
	s.jobs.Put(job)
	return charged, nil
}

// Reset implements [engine.Engine].
func (s *Store) Reset(ctx context.Context, key string, limits *engine.Limits) error {
	if len(limits.Rules) == 0 {
		return ctx.Err()
	}
	if err := validate(limits.Rules, maxResetLimits); err != nil {
		return s.callError(err)
	}
	job := s.job(reset, key, limits.Rules, nil)
	if err := s.do(ctx, clock.Now(), 0, job); err != nil {
		return err
	}
	s.jobs.Put(job)
	return nil
}

// Block implements [engine.Engine].
func (s *Store) Block(ctx context.Context, key string, b rule.Block, limits *engine.Limits) error {
	if err := validate(limits.Rules, maxResetLimits); err != nil {
		return s.callError(err)
	}
	job := s.job(block, key, limits.Rules, nil)
	job.Value.given = b
	if err := s.do(ctx, clock.Now(), 0, job); err != nil {
		return err
	}
	s.jobs.Put(job)
	return nil
}

func (s *Store) callError(err error) error { return &Error{Cause: Call, Prefix: s.prefix, Err: err} }

// job returns a call that is ready for a queue. It reuses a call that has
// returned without an error.
func (s *Store) job(op op, key string, rules []rule.Limit, of *ladders) *job {
	j, _ := s.jobs.Get().(*job)
	if j == nil {
		j = new(job)
	}
	c := &j.Value
	c.op, c.key, c.set = op, s.stored(key), s.sets.of(rules, of)
	c.upTo, c.pending, c.group, c.err = false, nil, nil, nil
	return j
}

// do passes a call to its queue, which carries it out alone or with others, and
// waits for the result. It waits until ctx is done, or until the instant until
// if that is not 0. After an error the job must not be used again, because a
// round trip may still write to it.
func (s *Store) do(ctx context.Context, now, until int64, j *job) error {
	if s.closed.Load() {
		return s.closedError()
	}
	if until != 0 && now >= until {
		return &Error{Cause: Backend, Prefix: s.prefix, Fault: engine.Refused, Err: batch.ErrNotSent}
	}
	if other := s.owner.claimedBy.Load(); other != nil {
		s.checkOwner(now)
		return &Error{Cause: Claimed, Prefix: s.prefix, Fault: engine.Refused, Other: *other}
	}
	deadline, ok := ctx.Deadline()
	inline := false
	if until != 0 {
		if own := clock.Time(until); !ok || own.Before(deadline) {
			deadline = own
		}
		inline = s.keepsDeadlines && s.answering.Load()
	}
	switch err := s.queueOf(j.Value.key).Do(ctx, now, deadline, j, inline); err {
	case nil:
	case batch.ErrNotSent:
		return &Error{Cause: Backend, Prefix: s.prefix, Fault: engine.Refused, Err: err}
	case batch.ErrUnknown:
		return &Error{Cause: Backend, Prefix: s.prefix, Err: err}
	case batch.ErrClosed:
		return s.closedError()
	default:
		return s.callError(err)
	}
	if err := j.Value.err; err != nil {
		return err
	}
	s.checkOwner(now)
	return nil
}

func (s *Store) closedError() error {
	return &Error{Cause: Closed, Prefix: s.prefix, Fault: engine.Closed}
}

// giveBack gives back the units of a call that was carried out after its caller
// had gone. It does so only if the caller's context was cancelled: then its
// client has disconnected and does not use the units. A caller whose deadline has
// passed may have admitted its request anyway, so those units stay counted. The
// queue calls giveBack on the goroutine of a round trip. giveBack does not wait.
func (s *Store) giveBack(j *job) {
	c := &j.Value
	if !j.Cancelled || c.op != take && c.op != takeHold || c.err != nil || c.taken() == 0 {
		return
	}
	back := &job{Value: call{op: adjust, key: c.key, set: c.set, units: -c.taken(), at: c.now * 1000}}
	s.queueOf(c.key).Post(back) // if that fails, the units stay counted
}

// panicked sets the error of a call. The queue calls it for each call of a round
// trip in which a hook of the client has panicked.
func (s *Store) panicked(j *job, with any) {
	err := fmt.Errorf("the client has panicked: %v", with)
	j.Value.group = nil
	j.Value.err = &Error{Cause: Backend, Prefix: s.prefix, Err: err}
	s.recordOutcome(err)
}

// Close closes the store and waits until its round trips and goroutines have
// ended, which takes no longer than the client's timeouts. Later calls fail with
// the cause Closed. The counters and the client stay as they are.
func (s *Store) Close() {
	s.mu.Lock()
	s.closed.Store(true)
	s.mu.Unlock()
	s.queue.Close()
	s.nodes.close()
	s.running.Wait()
}

// goUntilClose runs f on its own goroutine, unless the store has been closed. Close
// waits for it. If a hook of the client or a logger panics there, that is reported.
// goUntilClose takes s.mu.
func (s *Store) goUntilClose(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed.Load() {
		s.running.Go(func() { guard.Run(f, s.reportPanic) })
	}
}

func (s *Store) reportPanic(p guard.Panic) {
	if c := s.owner.is.Load(); c != nil {
		c.report.SideCallFailed(&Error{Cause: Backend, Prefix: s.prefix, Err: p})
	}
}
