package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/remote"
)

// Options are a limiter's settings. Only Limits is required: every other zero
// field is a safe default. A limiter keeps what it was made with; see
// [Limiter.SetLimits] for what can change.
type Options struct {
	// Limits are what a request must fit, all of them: it takes its units from
	// all or from none. At most [MaxLimits], and no two with the same algorithm
	// and window.
	Limits []Limit

	// Store is where the counters live. Nil means Memory(name), which outlives
	// the limiter. A store must not be shared by two limiters.
	Store Store

	// Redis is a client to count with in place of Store: the limiter makes a
	// [RedisStore] of its own with the prefix "rl:<name>:", and closes it, but never
	// the client, which any number of limiters may share: each uses 2 connections, 4 where
	// the server is far away, and up to 16 while it hangs.
	Redis redis.UniversalClient

	// Key returns the key of a request, which is what is limited. Nil means
	// ClientIP{}.Key.
	Key KeyFunc

	// LimitsFor gives a request other limits than Limits, for plans and tiers. Nil
	// or an empty result means Limits; [Unlimited] and [Deny] are plans without a
	// number. Outside of HTTP, [Limiter.TakeLimits] has the same.
	//
	// A counter belongs to a key, an algorithm and a window, so plans that differ
	// only in their numbers share counters: a customer who upgrades keeps what was
	// counted. Choose the plan by the client and not by the request. A bucket is
	// refilled at the rate of the request that asks it, so a route with a fast plan
	// would refill the bucket for a route with a slow one. Give routes windows or
	// limiters of their own instead.
	//
	// Results are checked like Limits; one that is not valid is answered with 500
	// and logged.
	LimitsFor func(*http.Request) []Limit

	// Cost is how many units a request takes; nil means 1. A request of cost 0
	// takes none and is admitted. A negative cost is answered with 500 and logged.
	Cost func(*http.Request) int64

	// Skip exempts a request: it is not counted and gets no header fields.
	Skip func(*http.Request) bool

	// SkipPreflight exempts CORS preflights: OPTIONS requests with an Origin and an
	// Access-Control-Request-Method. Browsers send them on their own account. Put CORS
	// middleware around the limiter: scripts of other origins can then read denials,
	// and preflights are answered before they are counted.
	SkipPreflight bool

	// Count says whether a request counts, by the status of its response: for
	// limits on failed logins, for example. The units are taken before the handler
	// and, if Count returns false, given back as soon as the handler has written the
	// status, before it is sent. A panic before anything was written has the status
	// 500, a hijacked connection 101. A handler that returns without writing anything
	// has 200, and [CodeNoResponse] is logged: frameworks that write their errors
	// later need [Limiter.Check] and [Limiter.Responded]. The header fields show what
	// was left before the handler, and requests that are under way at the same time
	// each hold their units until their status is known. Nil counts all.
	//
	// Prefer to name what does not count, such as success: return status >= 400
	// rather than status == 401. A request whose client has left counts whatever
	// Count returns, unless its handler has written a status below 400.
	Count func(r *http.Request, status int) bool

	// Headers are the response header fields. Zero means HeadersDraft10.
	Headers Headers

	// PartitionSecret adds the parameter pk to the fields of draft 10, a keyed
	// hash of the request's key, so that a client can distinguish its partitions.
	// Empty means none. It should be random, at least 16 bytes, and the same in
	// all processes.
	PartitionSecret []byte

	// Message is the body of a denial. Empty means "Too many requests, please
	// try again later."
	Message string

	// Denied answers denied requests in place of the limiter. The response's
	// RateLimit fields are set already, and Retry-After unless it is [Never]. A handler
	// that writes no status answers with 429. [http.ServeFile] and [http.ServeContent]
	// write a status of their own, 200 or 206 or 304: write a file's content instead.
	// Caches are forbidden to store the answer, whatever the handler says.
	// [DecisionFrom] has the decision, and [AnswerDenied] sends what the limiter would have
	// sent.
	Denied http.Handler

	// Failed answers requests that were not decided, in place of the limiter: with
	// status 400 if they have no key, 500 if one of the other functions here failed,
	// 503 if the store failed, the limiter is closed or the client has left. err is
	// for logs and [errors.Is]: it may hold text of the store or of those functions.
	// If Failed writes no status, status is sent. With 503, Retry-After is a second.
	// Nil answers with the status's text, or with problem details (RFC 9457) for
	// clients that accept JSON no less than plain text, as for denials. Caches are forbidden to store the answer.
	Failed func(w http.ResponseWriter, r *http.Request, status int, err error)

	// Shadow decides and reports, but never denies: for a limit that is being
	// tried out. [DecisionFrom] returns the decision that would have been made. The
	// log, at most once a minute, and [Limiter.Stats] have the number of denials. Header fields are sent only
	// if Headers is set. A limiter in Shadow still counts. Take is not changed by
	// it: what it returns is for the caller to act on. Blocks are kept in Shadow, too: a
	// key that is blocked stays so when Shadow ends. Reset it first, or use another name.
	Shadow bool

	// MaxWait makes a request that would be denied wait until its units fit, for at most
	// this long. It smooths bursts: TokenBucket(10, time.Second, 1) with a MaxWait of 5 s
	// lets a request through every 100 ms. Requests of one key wait in line and are
	// admitted in order of arrival, within this process. A request is denied at once if it
	// would have to wait longer than MaxWait or than its own deadline, or if 16 requests
	// of its key wait already. If others wait before it, that is not clear at once, and it
	// may be denied after MaxWait. If its client disconnects, it takes no units. (On
	// HTTP/1, net/http notices that only when the body of the request has been read.) With
	// several limits it waits until its units fit under all of them. Under an [InFlight] limit it
	// waits until a hold ends: one that ends in this process lets it go on at once, and one of
	// another process within DenyRecheck. Zero: no request waits. Take and Acquire
	// never wait; [Limiter.Wait] does. In Shadow no request waits. A limit with Block is
	// refused, because the denial would block the key. For a store outside of this
	// process, Timeout is for each time that it is asked.
	MaxWait time.Duration

	// MaxWaiting is how many requests wait at a time at this limiter and in this process, of
	// all keys together: each keeps a connection open. Those beyond are denied at once.
	// Calls of Wait do not count. Zero means 1,024.
	MaxWaiting int

	// Timeout is how long a decision may take at a store outside of this process.
	// Zero means [DefaultTimeout], negative no limit but the request's own. It holds
	// also for a Redis client that was made without ContextTimeoutEnabled.
	Timeout time.Duration

	// OnFailure says how requests are answered while a [RemoteStore], such as a
	// [RedisStore], fails. Zero means [FallbackLocal]. Like the other options for a
	// RemoteStore, it has no effect on counting in memory.
	OnFailure FailurePolicy

	// DenyRecheck is how long this process denies a key that a RemoteStore has denied,
	// without asking again. A Reset, a Refund or a raised limit takes effect after at
	// most that time in other processes, and at once in this one. One request in each
	// such time asks the store, and none is denied here longer than the store's
	// RetryAfter. Zero means a second. A negative value means: not before RetryAfter. The
	// store is always asked whether there is room for a hold of an [InFlight] limit.
	DenyRecheck time.Duration

	// NearKeys is how many counters this process remembers of a RemoteStore, some 40
	// bytes each: to deny keys that are known to be denied, and to go on counting in
	// case the store fails. A key has one for each algorithm and window. Keys that
	// are whole again are forgotten. If there is room for no more, a counter is
	// forgotten as by a [MemoryStore], and its key starts from zero in an outage.
	// In an outage, admitted units are noted for at least as many short keys under one
	// limit, until the store has them. That takes at most 0.2 MB for one key, 1 MB for
	// 1,000 and 4.2 MB for 8,192.
	//
	// Zero means that the limiter shares [DefaultNearKeys] with all others of the
	// process that do not set this. A flood of keys at one of them can then push out
	// what is known of another one's keys, if those are not denied.
	NearKeys int

	// Lease lets this process take units of a busy key ahead at a [RemoteStore] and hand
	// them out without asking: for keys that are used hundreds of times a second. It is
	// how long a unit may be held. Zero disables leasing. The minimum is 5 ms; 250 ms is typical.
	// More than a quarter of the window is allowed but useless: a fixed window's units end with
	// it. Units are counted when they are taken, so the limit is not exceeded. Units of a bucket
	// or a sliding window may be used that much later than they were counted.
	//
	// A process holds at most half of what it was asked for in that time, and at most a 16th of
	// what was left. With several limits, the one with the least left decides, and units are held
	// until the first fixed window ends. So a limit below 16 is never leased, and a bucket or a
	// sliding window that is over its limit saves nothing, because it has almost no units left.
	// Units that a process does not use are free for others after 1.5 times Lease, plus
	// DenyRecheck for a key that has been denied there. A process that is killed keeps its units
	// until the limit is whole. Decisions have [SourceLease]. See docs/scaling.md for the
	// savings. A store in this process needs no lease. A limiter with Lease refuses [Rolling],
	// which promises that no interval has more units.
	Lease time.Duration

	// Silence has the codes of warnings that must not be logged; see the constants
	// that begin with Code. They are still counted and observed.
	Silence []Code

	// Observe is called for each event of the limiter, such as a denial, on the
	// goroutine that causes it and with its context: for most events, that is a request
	// that waits. So it must not block. It is called from any number of goroutines at
	// the same time, with no lock held, and may call the limiter. A panic in it is
	// logged and counted, and the request goes on. It must not close the limiter or its
	// store in an event that no request has caused, such as EventStoreDown: Close waits
	// until it has returned. Nil observes nothing. See also [Registry.Observe], for all
	// limiters together.
	Observe func(context.Context, Event)

	// Audit records what is done to the limiter by hand before it takes effect: a
	// [Limiter.Reset], a [Limiter.Block], a SetLimits, and a [Limiter.Refund] in the name
	// of an actor. Nil records nothing. Package audit has one, with places to write to. A
	// [RecordingStore] records some of these calls itself, in the name of the auditor.
	Audit Auditor

	// Logger gets the limiter's warnings, and the store that it counts in. Nothing that
	// a client has sent is logged, with one exception: the name of a Redis key that does
	// not hold a counter, in which the client's key is escaped. Nil means
	// slog.Default().
	Logger *slog.Logger
}

// DefaultTimeout is what [Options.Timeout] is unless set: some hundred times what Redis
// takes nearby, and less than a user notices.
const DefaultTimeout = 100 * time.Millisecond

const _ = uint(-(DefaultTimeout ^ remote.DefaultTimeout | DefaultNearKeys ^ remote.SharedNearKeys)) // one number for both

// DefaultNearKeys is how many counters all limiters of a process together remember
// of their remote stores, unless [Options.NearKeys] is set.
const DefaultNearKeys = 1 << 18

// minLease is a few round trips to a store nearby: a shorter lease would be over when it comes.
const minLease = 5 * time.Millisecond

const defaultMaxWaiting = 1024

const defaultMessage = "Too many requests, please try again later."

// What most limiters have in common, so that each of them needs less memory.
var (
	defaultKey     = ClientIP{}.Key
	defaultDenial  = []byte(defaultMessage)
	defaultProblem = problemHead(defaultMessage)
)

func (o Options) withDefaults() Options {
	if o.Key == nil {
		o.Key = defaultKey
	}
	o.PartitionSecret, o.Silence = slices.Clone(o.PartitionSecret), slices.Clone(o.Silence)
	if o.Message == "" {
		o.Message = defaultMessage
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.DenyRecheck == 0 {
		o.DenyRecheck = remote.DefaultRecheck
	}
	if o.MaxWaiting == 0 {
		o.MaxWaiting = defaultMaxWaiting
	}
	if o.Headers == 0 {
		o.Headers = HeadersDraft10
		if o.Shadow {
			o.Headers = HeadersNone
		}
	}
	return o
}

// others are the options that not all limits go with.
func (o *Options) others(recording Recording) otherOptions {
	return otherOptions{o.Lease, o.MaxWait, recording == RecordsDecisions}
}

// validateRecorded returns an error for options with which a limiter would decide without
// its store, which records each decision.
func (o *Options) validateRecorded() error {
	const because = "but the store records each decision, so only the store may decide"
	switch {
	case o.OnFailure != FailClosed:
		return fmt.Errorf("Options.OnFailure is %v, %s: set FailClosed", o.OnFailure, because)
	case o.Lease != 0:
		return fmt.Errorf("Options.Lease is %v, %s: leave it out", o.Lease, because)
	case o.MaxWait != 0:
		return fmt.Errorf("Options.MaxWait is %v, %s, and a request that waits is denied there first: leave it out", o.MaxWait, because)
	case o.Shadow:
		return fmt.Errorf("Options.Shadow is set, %s, and the record of a denial that is let through would be wrong: leave it out", because)
	}
	return nil
}

// validate holds every rule for options as a whole. Its errors name the option,
// the value and the way out.
func (o Options) validate(limiter string) error {
	if err := validateLimits(limiter, o.Limits); err != nil {
		return fmt.Errorf("Options.Limits: %w", err)
	}
	if o.Key != nil {
		if err := probeKey(o.Key).err; err != nil {
			return fmt.Errorf("Options.Key: %w", err)
		}
	}
	if isNil(o.Store) && o.Store != nil {
		return fmt.Errorf("Options.Store is a nil %T: leave it out for the memory store of the limiter's name", o.Store)
	}
	if o.Redis != nil {
		if o.Store != nil {
			return errors.New("Options.Redis and Options.Store are both set: Redis makes a store of the limiter's own, so leave one of them out")
		}
		if isNil(o.Redis) {
			return fmt.Errorf("Options.Redis is a nil %T: leave it out to count in memory", o.Redis)
		}
	}
	all := layers(o.Store)
	if len(all) > maxLayers {
		return fmt.Errorf("Options.Store wraps more than %d stores, or itself", maxLayers)
	}
	for _, s := range all {
		if isNil(s) {
			return fmt.Errorf("Options.Store wraps a nil %T: pass a store to the wrapper, or leave Options.Store out", s)
		}
		if !reflect.ValueOf(s).Comparable() {
			return fmt.Errorf("Options.Store is a %T, which cannot be told from another one: pass a pointer to it", s)
		}
	}
	if err := validateStore(o.Store, counted(o.Limits)); err != nil {
		return err
	}
	for _, s := range all {
		if err := validateName("the prefix of Options.Store", s.Prefix(), false); err != nil {
			return err
		}
	}
	if int(o.OnFailure) >= len(failurePolicies) {
		return fmt.Errorf("Options.OnFailure is %d: want FallbackLocal, FailOpen or FailClosed", o.OnFailure)
	}
	if o.Lease < 0 || o.Lease > 0 && o.Lease < minLease {
		return fmt.Errorf("Options.Lease is %v: want at least %v, or 0 for none", o.Lease, minLease)
	}
	recording, err := recordingOf(o.Store, o.Audit)
	if err != nil {
		return fmt.Errorf("Options.Audit: %w", err)
	}
	if recording == RecordsDecisions {
		if err := o.validateRecorded(); err != nil {
			return err
		}
	}
	if err := o.others(recording).suit(o.Limits); err != nil {
		return err
	}
	if o.MaxWait < 0 {
		return fmt.Errorf("Options.MaxWait is %v: want more than 0, or 0 for requests that do not wait", o.MaxWait)
	}
	if o.MaxWaiting < 0 {
		return fmt.Errorf("Options.MaxWaiting is %d: want at least 1, or 0 for %d", o.MaxWaiting, defaultMaxWaiting)
	}
	if o.MaxWaiting > 0 && o.MaxWait == 0 {
		return fmt.Errorf("Options.MaxWaiting is %d, but no request waits: set MaxWait, or leave it out", o.MaxWaiting)
	}
	if n := places(counted(o.Limits)); o.NearKeys > 0 && o.NearKeys < n {
		return fmt.Errorf("Options.NearKeys is %d, and one key has %d counters: raise it, or leave it out", o.NearKeys, n)
	}
	if o.NearKeys < 0 {
		return fmt.Errorf("Options.NearKeys is %d: want at least 1, or 0 to share %d with the process", o.NearKeys, DefaultNearKeys)
	}
	if err := o.Headers.validate(); err != nil {
		return err
	}
	if len(o.PartitionSecret) > 0 {
		if err := validateSecret("Options.PartitionSecret", o.PartitionSecret); err != nil {
			return err
		}
	}
	for _, code := range o.Silence {
		if !isCode(code) {
			return fmt.Errorf("Options.Silence has %q, which is no code of a warning: use the constants that begin with Code", code)
		}
	}
	if isNil(o.Denied) && o.Denied != nil {
		return fmt.Errorf("Options.Denied is a nil %T: leave it out for the default answer", o.Denied)
	}
	return nil
}

func isNil(v any) bool {
	switch rv := reflect.ValueOf(v); rv.Kind() {
	case reflect.Invalid:
		return true
	case reflect.Pointer, reflect.Func, reflect.Map, reflect.Slice, reflect.Chan:
		return rv.IsNil()
	}
	return false
}
