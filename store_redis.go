package ratelimit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/redisstore"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// RedisStore is a [Store] on a Redis server, Cluster, Ring or Sentinel setup, for
// several processes that share their limits. Each call is one command: a script
// that decides and writes in one step, by the server's clock. Calls that arrive
// while others are under way share a round trip. Calls that take the same units of
// one key under the same limits share a command, and on a single server so do calls
// for different keys under the same limits. In a Cluster, a call to one master never waits for a
// round trip to another.
//
// A counter's key reads "rl:login:{203.0.113.7}:fixed-1h", and a fixed window is a
// plain number with a time to live. Every key has a time to live: until the
// counter is as good as new, rounded up to a millisecond. "rl:login:owner" is a record of
// the limiter that owns the prefix, kept for an hour, and "rl:login:place", kept
// for a minute, shows whether all keys are on one server. Braces, %, quotes, spaces
// and bytes that are not printable ASCII are written as %XX, and a key of more than
// 128 bytes as its SHA-256. With [HashKeys] every key is a hash. Time has a resolution of a microsecond, and the end of
// a fixed window one of a millisecond, rounded up.
//
// It needs Redis 6.2 or later, or a compatible server. The client's user needs
// EVAL, EVALSHA, GET, MGET, SET, INCRBY, DEL, PTTL and TIME, and in a Cluster also
// CLUSTER SLOTS and COMMAND. A Cluster needs a client for Clusters:
// redis.NewUniversalClient makes one if it is given several addresses, or
// IsClusterMode.
//
// A command that may have been carried out is never sent again, whatever the
// client's MaxRetries. A call takes no longer than its context, even if the client
// was made without ContextTimeoutEnabled. With ContextTimeoutEnabled, a limiter's
// call that is cancelled may wait for its reply, until its deadline at most. What
// such calls leave behind is bounded.
type RedisStore struct {
	_      noCopy
	engine *redisstore.Store
}

// RedisOption is a setting of a [RedisStore].
type RedisOption func(*redisOptions)

type redisOptions struct {
	refuseShared bool
	hashKeys     bool
	secret       []byte
	acrossSlots  bool
}

// RefuseSharedPrefix makes a [RedisStore] refuse to count while a limiter of
// another name, in another process, counts under its prefix: calls fail with
// [ErrPrefixClaimed]. Without it that is logged, and counted in [RedisStats].
func RefuseSharedPrefix() RedisOption {
	return func(o *redisOptions) { o.refuseShared = true }
}

// HashKeys makes a [RedisStore] write keyed hashes in place of keys, so that Redis
// holds no addresses, e-mail addresses or names: the first 128 bits of an HMAC-SHA-256
// under the secret, which should be random, has at least 16 bytes, and is the same in
// all processes. Without the secret nobody can find out whether a key is there.
//
// Under another secret, or without HashKeys, keys are other keys and start from zero.
// A key is then found in redis-cli by its hash alone; Reset takes the key itself.
func HashKeys(secret []byte) RedisOption {
	return func(o *redisOptions) { o.hashKeys, o.secret = true, slices.Clone(secret) }
}

// AcrossSlots makes a [RedisStore] on a Redis Cluster send one script call per
// master for keys of different slots, where callers share a round trip. Without it
// each key has a call of its own. A busy Cluster then does more with less work;
// docs/redis.md says how much. Calls that ask for units are shared. Calls
// about holds and calls that give units back are not.
//
// Such a script uses keys that it does not declare, because a server refuses a
// declaration of several slots. Redis's documentation says that scripts must declare
// all keys. Redis 6 to 8 and Valkey allow this for scripts like these, and their own tests
// rely on it. A future version may refuse it. A server that refuses it is sent one
// call per key from then on, and CodeAcrossSlotsRefused is logged once.
//
// Counts are as exact as without it, also while slots move and masters fail over. The
// script does nothing at all if the server does not serve one of its keys. Such keys
// are then sent in calls of their own, and so are the keys of their slots for the next
// second.
//
// It is for a client for Clusters. It changes nothing with a client for a single
// server, where such calls always share a script. With other clients, such as a Ring,
// NewRedisStore returns an error.
func AcrossSlots() RedisOption {
	return func(o *redisOptions) { o.acrossSlots = true }
}

// NewRedisStore returns a store that writes to the given prefix of what client is
// connected to. The client is lent: it may serve other stores and other purposes,
// and is never closed. The prefix is what the store's keys begin with, such as
// "rl:login:". It is not empty, and has no braces and no control characters. No
// other limiter, of any process, may have it. Nothing is sent yet: Redis may be
// down.
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
	var settings redisOptions
	for _, opt := range opts {
		if opt != nil {
			opt(&settings)
		}
	}
	if settings.hashKeys {
		if err := validateSecret("the secret of HashKeys", settings.secret); err != nil {
			return nil, fmt.Errorf("ratelimit: RedisStore %q: %w", prefix, err)
		}
	}
	if settings.acrossSlots {
		switch client.(type) {
		case *redis.ClusterClient, *redis.Client:
		default:
			return nil, fmt.Errorf("ratelimit: RedisStore %q: AcrossSlots is for a *redis.ClusterClient, and the client is a %T: "+
				"leave AcrossSlots out, or make the client with redis.NewClusterClient", prefix, client)
		}
	}
	return newRedisStore(client, prefix, settings), nil
}

func newRedisStore(client redis.UniversalClient, prefix string, settings redisOptions) *RedisStore {
	return &RedisStore{engine: redisstore.New(client, prefix, redisstore.Options{
		RefuseClaimed: settings.refuseShared, KeySecret: settings.secret, AcrossSlots: settings.acrossSlots,
	})}
}

// limiterRedisStore makes the store of a limiter with Options.Redis.
func limiterRedisStore(client redis.UniversalClient, limiter string) *RedisStore {
	prefix := append(redisscript.AppendEscaped([]byte("rl:"), limiter), ':')
	return newRedisStore(client, string(prefix), redisOptions{})
}

// Prefix returns the prefix that the store was made with.
func (s *RedisStore) Prefix() string { return s.engine.Prefix() }

// Take implements [Store].
func (s *RedisStore) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	reply, err := s.TakeShared(ctx, SharedRequest{Key: key, Units: n, Limits: limits}, results)
	return reply.At, err
}

// TakePending implements [KindStore].
func (s *RedisStore) TakePending(ctx context.Context, key string, n int64, pending []Pending, limits []Limit, results []Result) (Instant, error) {
	reply, err := s.TakeShared(ctx, SharedRequest{Key: key, Units: n, Limits: limits, Pending: pending}, results)
	return reply.At, err
}

// TakeShared implements [SharedStore].
func (s *RedisStore) TakeShared(ctx context.Context, r SharedRequest, results []Result) (SharedReply, error) {
	var rules [MaxLimits]rule.Limit
	var answers [MaxLimits]rule.Answer
	of, _, _ := appendRules(rules[:0], r.Limits)
	under := engine.Limits{Rules: of, Ladders: laddersOf(r.Limits)}
	if under.Ladders != nil {
		if err := validateLadders(r.Limits); err != nil {
			return SharedReply{}, fmt.Errorf("ratelimit: RedisStore %q: %w", s.Prefix(), err)
		}
	}
	given := answers[:min(len(results), MaxLimits)]
	request := engine.Request{Key: r.Key, Units: r.Units, UpTo: r.UpTo, Limits: &under, Now: clock.Now(), StartsBlocks: true}
	if !r.Deadline.IsZero() {
		request.Until = request.Now + int64(time.Until(r.Deadline))
	}
	request.Pending = pendingRules(r.Pending)
	var states [MaxLimits]rule.State
	var logs [MaxLimits]rule.Log
	var blocks [MaxLimits]rule.Block
	if len(given) > 0 && results[0].state != nil {
		request.States, request.Logs, request.Blocks = states[:len(given)], logs[:len(given)], blocks[:len(given)]
	}
	reply, err := s.engine.Take(ctx, request, given)
	if err != nil {
		return SharedReply{}, publicError(err)
	}
	for i, a := range given {
		if reply.Exact {
			results[i].report(a, states[i], logs[i], blocks[i])
		} else {
			results[i] = resultOf(a)
		}
	}
	mark(results, reply.Blocked, reply.Began)
	return SharedReply{At: Instant(reply.At), Granted: reply.Granted, Newest: reply.Newest}, nil
}

// Kinds implements [KindStore]. It returns all kinds.
func (s *RedisStore) Kinds() Kinds { return allKinds }

// Hold implements [HoldStore].
func (s *RedisStore) Hold(ctx context.Context, r HoldRequest, results []Result) (HoldReply, error) {
	if err := r.validate(len(results)); err != nil {
		return HoldReply{}, fmt.Errorf("ratelimit: RedisStore %q: %w", s.Prefix(), err)
	}
	if err := validateLadders(r.Limits); err != nil {
		return HoldReply{}, fmt.Errorf("ratelimit: RedisStore %q: %w", s.Prefix(), err)
	}
	rates := len(r.Limits)
	var answers [MaxLimits]rule.Answer
	request := engine.Request{
		Key: r.Key, Units: r.Units, Limits: &engine.Limits{Rules: rulesOf(r.Limits), Ladders: laddersOf(r.Limits)}, Now: clock.Now(),
		StartsBlocks: true, Pending: pendingRules(r.Pending), Holding: r.holding(),
	}
	if !r.Deadline.IsZero() {
		request.Until = request.Now + int64(time.Until(r.Deadline))
	}
	reply, err := s.engine.Take(ctx, request, answers[:rates])
	if err != nil {
		return HoldReply{}, publicError(err)
	}
	for i := range rates {
		results[i] = resultOf(answers[i])
	}
	mark(results[:rates], reply.Blocked, reply.Began)
	results[rates] = resultOf(request.Holding.Answer())
	return holdReply(Instant(reply.At), request.Holding.Held), nil
}

// Block implements [KindStore].
func (s *RedisStore) Block(ctx context.Context, key string, b Block, limits []Limit) error {
	if err := b.validate(); err != nil {
		return fmt.Errorf("ratelimit: RedisStore %q: Block has %w", s.Prefix(), err)
	}
	given := b.rule()
	given.Until = int64(b.Left)
	return publicError(s.engine.Block(ctx, key, given, &engine.Limits{Rules: rulesOf(limits)}))
}

// Adjust implements [Store].
func (s *RedisStore) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (charged int64, err error) {
	charged, err = s.engine.Adjust(ctx, key, n, int64(at), &engine.Limits{Rules: rulesOf(limits)})
	return charged, publicError(err)
}

// Reset implements [Store].
func (s *RedisStore) Reset(ctx context.Context, key string, limits []Limit) error {
	return publicError(s.engine.Reset(ctx, key, &engine.Limits{Rules: rulesOf(limits)}))
}

// Fault implements [RemoteStore]. After Close it is FaultRefused.
func (s *RedisStore) Fault(err error) Fault {
	fault := s.engine.Fault(err)
	if fault == engine.Closed {
		return FaultRefused
	}
	return Fault(fault)
}

// Close ends the store when the calls that are under way have ended, which takes
// as long as the client's timeouts at most. It leaves the counters and the client
// as they are. Calls that come later fail with [ErrStoreClosed]. A limiter closes
// the store that it has made for Options.Redis itself. The error is always nil.
func (s *RedisStore) Close() error {
	s.engine.Close()
	return nil
}

// RedisStats are counts over a [RedisStore]'s life.
type RedisStats struct {
	// PrefixClaimed counts how often the store has found its prefix to be in use by
	// a limiter of another name. It should stay 0.
	PrefixClaimed uint64
	// AcrossSlotsRefused reports whether a server has refused what [AcrossSlots] asks
	// for. Each key has a call of its own since then.
	AcrossSlotsRefused bool
}

// Stats may be called at any time.
func (s *RedisStore) Stats() RedisStats {
	return RedisStats{PrefixClaimed: s.engine.PrefixClaimed(), AcrossSlotsRefused: s.engine.AcrossSlotsRefused()}
}

// embedded implements embeddable.
func (s *RedisStore) embedded() Store { return s }

// engineOf implements engineStore.
func (s *RedisStore) engineOf() engine.Engine { return s.engine }

// adopt implements recordStore.
func (s *RedisStore) adopt(limiter string, limits []Limit, report *reporter) {
	owner := redisstore.Owner{Limiter: limiter, Report: redisReporter{report}}
	for _, l := range limits {
		owner.Limits = append(owner.Limits, l.String())
	}
	s.engine.Adopt(owner)
}

// unshare implements adviceStore.
func (s *RedisStore) unshare() string {
	return "make a new RedisStore with a unique prefix for each limiter (the Redis client may be shared)"
}

// redisReporter logs what a store finds out about its prefix.
type redisReporter struct{ *reporter }

func (r redisReporter) PrefixClaimed(prefix string, by redisstore.Record) {
	r.warn(warnPrefixClaimed, "prefix", prefix, "other", by.Limiter, "other_limits", by.Limits, "other_version", by.Version)
}

func (r redisReporter) OtherLimits(prefix string, own, other []string) {
	r.warn(warnOtherLimits, "prefix", prefix, "limits", own, "other_limits", other)
}

func (r redisReporter) AcrossSlotsRefused(prefix, text string) {
	r.warn(warnAcrossSlotsRefused, "prefix", prefix, "error", text)
}

func (r redisReporter) SideCallFailed(err error) {
	r.warn(warnStoreFailed, "error", publicError(err))
}
