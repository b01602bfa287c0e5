package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/batch"
	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// RedisStore is a [Store] on a Redis server, Cluster, Ring or Sentinel setup, for
// several processes that share their limits. Each call is one command: a script
// that decides and writes in one step, by the server's clock. Calls that come while others
// are under way share a round trip, and those that take the same units of one key
// share a command. So do, on a single server, those of many keys under the same limits. In a
// Cluster calls to one master wait for none to another.
//
// A counter's key reads "rl:login:{203.0.113.7}:fixed-1h", and a fixed window is a plain
// number with a time to live. Every key has one, and it is no longer than until the
// counter is as good as new, rounded up to a millisecond, so that the first request of an hour is
// told of 3601 seconds. "rl:login:owner" is a record of whose prefix it is, kept for an hour, and "rl:login:place",
// for a minute, tells whether all keys are on one server. Braces, %, quotes, spaces and
// what is not printable ASCII stand as %XX; a key of more than 128 bytes as its SHA-256.
// Time has a resolution of a microsecond, and the end of a fixed window of a
// millisecond, rounded up.
//
// It needs Redis 6.2 or later, or what is compatible with it, and EVAL, EVALSHA, GET, MGET,
// SET, INCRBY, DEL, PTTL and TIME for the client's user, in a Cluster also CLUSTER SLOTS and COMMAND.
// A Cluster needs a client of its own: redis.NewUniversalClient makes one where it is given
// several addresses, or IsClusterMode.
//
// A command that may have been carried out is never sent again, whatever the
// client's MaxRetries. A call takes no longer than its context, also where the client
// was made without ContextTimeoutEnabled; with it, a limiter's call that is cancelled may wait for its
// reply, until its deadline at most. What a call leaves behind is bounded.
type RedisStore struct {
	client redis.UniversalClient
	prefix string
	opts   redisOptions
	queue  redisQueue
	nodes  nodeQueues
	shapes shapeSets
	jobs   sync.Pool   // of *redisJob
	prompt bool        // the client keeps to deadlines: a call can be made on its caller's goroutine
	proven atomic.Bool // the last command was answered: the next one can be waited for there
	claim  redisClaim
	place  atomic.Uint32 // whether all keys are in one

	closed  atomic.Bool
	mu      sync.Mutex // of closing against what begins
	running sync.WaitGroup
}

// RedisOption is a setting of a [RedisStore].
type RedisOption func(*redisOptions)

type redisOptions struct{ refuseShared bool }

// NewRedisStore returns a store that writes to the given prefix of what client is
// connected to. The client is lent: it may serve other stores and anything else, and
// is never closed. The prefix is what the store's keys begin with, such as
// "rl:login:". It is not empty, and has no braces and no control characters. No other
// limiter, of any process, may have it. Nothing is sent yet: Redis may be down.
func NewRedisStore(client redis.UniversalClient, prefix string, opts ...RedisOption) (*RedisStore, error) {
	if isNil(client) {
		return nil, fmt.Errorf("ratelimit: RedisStore %q: the client is nil: make one with redis.NewUniversalClient", prefix)
	}
	if err := validateName("its prefix", prefix, false); err != nil {
		return nil, fmt.Errorf("ratelimit: RedisStore %q: %w: use one such as %q", prefix, err, "rl:login:")
	}
	if strings.ContainsAny(prefix, "{}") {
		return nil, fmt.Errorf("ratelimit: RedisStore %q: its prefix has a brace, which would make a hash tag "+
			"of it: use one such as %q", prefix, "rl:login:")
	}
	return newRedisStore(client, prefix, opts...), nil
}

func newRedisStore(client redis.UniversalClient, prefix string, opts ...RedisOption) *RedisStore {
	s := &RedisStore{client: client, prefix: prefix, prompt: isPrompt(client)}
	for _, opt := range opts {
		if opt != nil {
			opt(&s.opts)
		}
	}
	s.open(&s.queue)
	return s
}

func (s *RedisStore) open(q *redisQueue) {
	q.Send, q.Answered, q.Abandoned, q.Panicked = s.send, landed, s.giveBack, s.panicked
	q.MaxInFlight, q.ExtraInFlight, q.MaxLate, q.MaxCalls = maxFlights, moreFlights, maxLate, maxBatch
	q.ExtraAfter, q.Now = flightPause, monotonic
}

const (
	// Two round trips at once keep client and server both at work. In a cluster that is to each
	// master.
	maxFlights = 2
	// To a server that is further away than they take, and busy, others set off, but no sooner than
	// it pays: each costs client and server some 10 µs.
	moreFlights = 2
	flightPause = 100 * time.Microsecond
	// So many more are waiting for a server that hangs, until the client's own timeouts end it. With
	// what is asked beside the decisions that makes 16 connections.
	maxLate = 10
	// A batch's first caller waits for its last: some 256 scripts are a millisecond of a server's time.
	maxBatch = 256
)

// ownRedisStore makes the store of a limiter with Options.Redis.
func ownRedisStore(client redis.UniversalClient, limiter string) *RedisStore {
	return newRedisStore(client, string(append(redisscript.AppendEscaped([]byte("rl:"), limiter), ':')))
}

// Prefix returns the prefix that the store was made with.
func (s *RedisStore) Prefix() string { return s.prefix }

// Take implements [Store].
func (s *RedisStore) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	at, _, err := s.takeBy(monotonic(), 0, ctx, key, n, limits, results)
	return at, err
}

// takeBy is Take at an instant that the caller has just read off the clock, with a deadline beside
// that of ctx, unless it is 0. A context with a timer in it would cost as much as the rest of the call.
// Of those that shared a command and are still there, only the last is told the latest.
func (s *RedisStore) takeBy(now, until int64, ctx context.Context, key string, n int64, limits []Limit, results []Result) (at Instant, latest bool, err error) {
	if n < 0 || len(results) != len(limits) {
		return 0, false, s.wrap(fmt.Errorf("Take of %d units, %d limits and %d results: want 0 units or more, and as many results as limits", n, len(limits), len(results)))
	}
	if err := validateShapes(limits, MaxLimits); err != nil {
		return 0, false, s.wrap(err)
	}
	job := s.job(redisTake, key, limits)
	job.Value.n = min(n, rule.MaxUnits+1) // which no limit can hold
	if err := s.do(ctx, now, until, job); err != nil {
		return 0, false, err
	}
	c := &job.Value
	err = c.results(results)
	at, latest = Instant(c.now*1000), c.latest
	s.jobs.Put(job)
	if err != nil {
		return 0, false, s.wrap(err)
	}
	return at, latest, nil
}

// Adjust implements [Store].
func (s *RedisStore) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (charged int64, err error) {
	if err := validateShapes(limits, MaxLimits); err != nil {
		return 0, s.wrap(err)
	}
	job := s.job(redisAdjust, key, limits)
	job.Value.n, job.Value.at = max(-rule.MaxUnits, min(n, rule.MaxUnits)), at
	if err := s.do(ctx, monotonic(), 0, job); err != nil {
		return 0, err
	}
	charged = job.Value.charged()
	s.jobs.Put(job)
	return charged, nil
}

// Reset implements [Store].
func (s *RedisStore) Reset(ctx context.Context, key string, limits []Limit) error {
	if len(limits) == 0 {
		return ctx.Err()
	}
	if err := validateShapes(limits, maxUnpacked); err != nil {
		return s.wrap(err)
	}
	job := s.job(redisReset, key, limits)
	err := s.do(ctx, monotonic(), 0, job)
	if err == nil {
		s.jobs.Put(job)
	}
	return err
}

// maxUnpacked is the most keys of a Reset: Lua hands so many arguments on at once, at least.
const maxUnpacked = 4096

// validateShapes checks what a script would stumble over.
func validateShapes(limits []Limit, most int) error {
	if len(limits) == 0 || len(limits) > most {
		return fmt.Errorf("%d limits: want 1 to %d", len(limits), most)
	}
	for i := range limits {
		if l := &limits[i].rule; l.N < 1 || l.Window < rule.MinSpan {
			return fmt.Errorf("limit %v is not valid: want one that a constructor or ParseLimit has made", limits[i])
		}
	}
	return nil
}

// Close ends the store, when what it has under way is over, which takes as long as
// the client's timeouts at most. It leaves the counters, and the client, as they are.
// Calls that come later get [ErrStoreClosed]. A limiter closes the store that it has
// made for Options.Redis itself. The error is always nil.
func (s *RedisStore) Close() error {
	s.mu.Lock()
	s.closed.Store(true)
	s.mu.Unlock()
	s.queue.Close()
	s.nodes.close()
	s.running.Wait()
	return nil
}

// beside runs f beside the calls, unless the store has been closed.
func (s *RedisStore) beside(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed.Load() {
		s.running.Go(f)
	}
}

func (s *RedisStore) wrap(err error) error {
	return fmt.Errorf("RedisStore (prefix %q): %w", s.prefix, err)
}

func (s *RedisStore) job(op redisOp, key string, limits []Limit) *redisJob {
	job, _ := s.jobs.Get().(*redisJob)
	if job == nil {
		job = new(redisJob)
	}
	c := &job.Value
	c.op, c.key, c.shapes, c.err = op, key, s.shapes.of(limits), nil
	return job
}

func (s *RedisStore) do(ctx context.Context, now, until int64, job *redisJob) error {
	if s.closed.Load() {
		return s.wrap(ErrStoreClosed)
	}
	if err := s.claim.refused(); err != nil {
		s.claim.refresh(s, now)
		return s.wrap(err)
	}
	if err := s.fly(ctx, now, until, job); err != nil {
		switch err {
		case batch.ErrNotSent, batch.ErrUnknown:
			err = &RedisError{Unsent: err == batch.ErrNotSent, err: err}
		case batch.ErrClosed:
			err = ErrStoreClosed
		}
		return s.wrap(err)
	}
	if err := job.Value.err; err != nil {
		return s.wrap(err)
	}
	s.claim.refresh(s, now)
	return nil
}

// fly has a job sent, alone or with others, and waits for what comes of it.
func (s *RedisStore) fly(ctx context.Context, now, until int64, job *redisJob) error {
	queue := s.queueOf(job.Value.key)
	deadline, ok := ctx.Deadline()
	if until == 0 {
		return queue.Do(ctx, now, deadline, job, false)
	}
	if own := timeOf(until); !ok || own.Before(deadline) {
		deadline = own
	}
	return queue.Do(ctx, now, deadline, job, s.prompt && s.proven.Load())
}

type redisQueue = batch.Queue[redisCall]

// nodeQueues are a cluster's, one for each master: who waits for one need not wait for another,
// which may be slow or gone.
type nodeQueues struct {
	known atomic.Bool // the client has found out which master has what
	all   sync.Map    // *redis.Client, of a master, to *redisQueue
	n     int         // of all; guarded by the store's mu
}

// maxNodes bounds what a cluster that changes its masters again and again leaves behind.
const maxNodes = 1024

// queueOf is where the calls of a key wait for each other.
func (s *RedisStore) queueOf(key string) *redisQueue {
	if !s.nodes.known.Load() {
		return &s.queue
	}
	master, err := s.client.(*redis.ClusterClient).MasterForKey(context.Background(), redisscript.Tag(key))
	if err != nil {
		return &s.queue
	}
	if queue, ok := s.nodes.all.Load(master); ok {
		return queue.(*redisQueue)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() || s.nodes.n == maxNodes {
		return &s.queue
	}
	queue := new(redisQueue)
	s.open(queue)
	made, old := s.nodes.all.LoadOrStore(master, queue)
	if !old {
		s.nodes.n++
	}
	return made.(*redisQueue)
}

func (n *nodeQueues) close() {
	for _, queue := range n.all.Range {
		queue.(*redisQueue).Close()
	}
}

// isPrompt reports whether a client ends its calls when their contexts' time is over. Others are
// called on goroutines that their callers can leave. A clone of those that does would not run
// their hooks.
func isPrompt(client redis.UniversalClient) bool {
	switch c := client.(type) {
	case *redis.Client:
		return c.Options().ContextTimeoutEnabled
	case *redis.ClusterClient:
		return c.Options().ContextTimeoutEnabled
	}
	return false
}

// shapeSet is what the limits of a call come to in commands: made once and used by
// all calls with the same limits.
type shapeSet struct {
	limits   []Limit
	rules    []rule.Limit // in microseconds
	suffixes []string     // of the counters' keys
	args     []any        // of the scripts
}

func newShapeSet(limits []Limit) *shapeSet {
	set := &shapeSet{limits: slices.Clone(limits)}
	for _, l := range limits {
		micro := redisscript.Micro(l.rule)
		set.rules = append(set.rules, micro)
		set.args = append(set.args, redisscript.Args(micro)...)
		set.suffixes = append(set.suffixes, l.Algorithm()+"-"+shortDuration(l.Window()))
	}
	return set
}

// shapeSets remembers the sets of a limiter: its own, and those of its plans.
type shapeSets struct {
	known atomic.Pointer[[]*shapeSet]
}

// maxShapeSets bounds what ever new limits pile up. The last ones stay.
const maxShapeSets = 32

func (s *shapeSets) of(limits []Limit) *shapeSet {
	known := s.known.Load()
	if known != nil {
		for _, set := range *known {
			if slices.Equal(set.limits, limits) {
				return set
			}
		}
	}
	set := newShapeSet(limits)
	sets := []*shapeSet{set}
	if known != nil {
		sets = append(sets, (*known)[:min(len(*known), maxShapeSets-1)]...)
	}
	s.known.CompareAndSwap(known, &sets)
	return set
}

// RedisError is an error of a [RedisStore] that says what it knows of the cause.
type RedisError struct {
	// Unsent: nothing has been changed at Redis: the command was not sent, or Redis
	// has refused it. Else there is no saying.
	Unsent bool
	junk   bool // what the key holds is to blame, not the server
	err    error
	hint   string
}

func (e *RedisError) Error() string {
	if e.hint != "" {
		return e.err.Error() + ": " + e.hint
	}
	return e.err.Error()
}

func (e *RedisError) Unwrap() error { return e.err }

// explain says what to do about an error of the server or the client, of a command with
// these keys.
func explain(err error, keys []any) error {
	if i, ok := redisscript.Junk(err); ok {
		return junk(keys[i])
	}
	e := &RedisError{err: err, Unsent: isRefused(err)}
	for _, h := range redisHints {
		if redis.HasErrorPrefix(err, h.prefix) {
			e.hint = h.hint
			break
		}
	}
	return e
}

func junk(key any) error {
	return &RedisError{
		Unsent: true,
		junk:   true,
		err:    fmt.Errorf("the key %q holds something else than a counter", key),
		hint:   "delete it, and keep what writes it off this prefix",
	}
}

// isRefused reports whether nothing was changed: Redis has answered with an error,
// before any write of a script, or there was no connection to it.
func isRefused(err error) bool {
	if isReply(err) { // a script may have written before a command that its user has no right to
		return !strings.Contains(err.Error(), "The user executing the script")
	}
	return isDialError(err) || errors.Is(err, redis.ErrPoolTimeout)
}

// isReply reports whether err is what the server has answered.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// Fault implements [RemoteStore].
func (s *RedisStore) Fault(err error) Fault {
	var e *RedisError
	switch {
	case errors.Is(err, ErrPrefixClaimed), errors.Is(err, ErrStoreClosed):
		return FaultRefused
	case !errors.As(err, &e):
		return FaultUnknown
	case e.junk:
		return FaultKey
	case e.Unsent:
		return FaultRefused
	}
	return FaultUnknown
}

const permissions = "let the client's user run EVAL, EVALSHA, GET, MGET, SET, INCRBY, DEL, PTTL and TIME on the prefix's keys, " +
	"and in a Cluster CLUSTER SLOTS and COMMAND; docs/production.md has what a Sentinel asks for"

const notCluster = "this is a node of a Cluster: make the client with redis.NewClusterClient, or with IsClusterMode: true"

// The prefixes are without "ERR ".
var redisHints = []struct{ prefix, hint string }{
	{"NOAUTH", "give the client the server's password"},
	{"WRONGPASS", "give the client the right user name and password"},
	{"NOPERM", permissions},
	{"The user executing the script can't run this command", permissions},
	{"The user executing the script can't access", permissions},
	{"MOVED", notCluster},
	{"ASK", notCluster},
	{"READONLY", "connect to the master; this is a replica"},
	{"OOM", "the server is at its maxmemory: raise it; to let it evict would unblock keys"},
	{"MISCONF", "the server cannot save its data, and so takes no writes"},
	{"LOADING", "the server is reading its data"},
	{"MASTERDOWN", "the replica has lost its master"},
	{"CLUSTERDOWN", "the cluster has no master for the key's slot"},
	{"DB index is out of range", "give the client another database number"},
	{"unknown command", "Redis 6.2 or later is needed, with scripting"},
}
