package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

var ctx = context.Background()

// within returns a context with a timeout.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(ctx, d)
	t.Cleanup(cancel)
	return ctx
}

// Limits

// hour is a limit whose window does not end during a test.
var hour = FixedWindow(5, time.Hour)

// algorithms returns a limit of each algorithm but the calendar, for n units in windows so long that no
// units come back during a test.
func algorithms(n int64) []Limit {
	const window = 1000 * time.Hour
	return []Limit{FixedWindow(n, window), SlidingWindow(n, window), TokenBucket(n, window, n), Rolling(n, window)}
}

// limitSets returns the algorithms together and each alone.
func limitSets(n int64) [][]Limit {
	l := algorithms(n)
	return [][]Limit{l, l[:1], l[1:2], l[2:3], l[3:]}
}

// contestedSets returns the limits for callers that compete for n units: each algorithm
// alone, and sets of several of which one is the narrowest.
func contestedSets(n int64) [][]Limit {
	l := algorithms(n)
	loose := FixedWindow(n+50, time.Hour)
	return [][]Limit{l[:1], l[1:2], l[2:3], l[3:], {loose, l[1]}, {l[0], loose}, {loose, l[3]}, {l[3], loose}, l}
}

// windowOf returns a limit's window as it is written in keys and in ParseLimit.
func windowOf(l Limit) string {
	_, rest, _ := strings.Cut(l.String(), "/")
	window, _, _ := strings.Cut(rest, " ")
	return window
}

// Limiters

// quiet returns options for a limiter that logs nothing.
func quiet(limits ...Limit) Options {
	return Options{Limits: limits, Logger: slog.New(slog.DiscardHandler)}
}

// redisOptions returns options for a limiter that asks Redis about each request, waits as
// long as it takes, and returns Redis's errors.
func redisOptions(client redis.UniversalClient, limits ...Limit) Options {
	o := quiet(limits...)
	o.Redis, o.Timeout, o.OnFailure, o.DenyRecheck = client, time.Minute, FailClosed, 1
	return o
}

// newLimiter makes a limiter in a registry of its own. It is closed when the test ends.
func newLimiter(t testing.TB, name string, opts Options) *Limiter {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	l, err := new(Registry).New(name, opts)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// decide takes n units from a limiter. An error ends the test.
func decide(t testing.TB, l *Limiter, key string, n int64) Decision {
	t.Helper()
	d, err := l.TakeN(ctx, key, n)
	require.NoError(t, err)
	return d
}

// Stores

// redisStore makes a store that is closed when the test ends.
func redisStore(t testing.TB, client redis.UniversalClient, prefix string, opts ...RedisOption) *RedisStore {
	t.Helper()
	s, err := NewRedisStore(client, prefix, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// take takes n units from a store, and returns the results and whether the units were
// admitted. An error ends the test.
func take(t testing.TB, s Store, key string, n int64, limits ...Limit) ([]Result, bool) {
	t.Helper()
	results := make([]Result, len(limits))
	_, err := s.Take(ctx, key, n, limits, results)
	require.NoError(t, err)
	return results, admitted(results)
}

// takeErr takes n units from a store and returns the error alone.
func takeErr(s Store, key string, n int64, limits []Limit) error {
	_, err := s.Take(ctx, key, n, limits, make([]Result, len(limits)))
	return err
}

// admitted reports whether none of the limits denied the call.
func admitted(results []Result) bool {
	return !slices.ContainsFunc(results, func(r Result) bool { return r.RetryAfter > 0 })
}

// compete takes single units of a key from many goroutines at once, and returns how many
// were admitted.
func compete(s Store, key string, goroutines, each int, limits ...Limit) (units int64, err error) {
	var total atomic.Int64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			results := make([]Result, len(limits))
			for range each {
				if _, err := s.Take(ctx, key, 1, limits, results); err != nil {
					failed.Store(&err)
					return
				}
				if admitted(results) {
					total.Add(1)
				}
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return total.Load(), *err
	}
	return total.Load(), nil
}

// operations are all kinds of calls of a store.
var operations = []struct {
	name string
	do   func(s Store, key string, limits []Limit) error
}{
	{"take", func(s Store, key string, limits []Limit) error { return takeErr(s, key, 1, limits) }},
	{"take all", func(s Store, key string, limits []Limit) error { return takeErr(s, key, limits[0].Burst(), limits) }},
	{"denied", func(s Store, key string, limits []Limit) error { return takeErr(s, key, limits[0].Burst()+1, limits) }},
	{"look", func(s Store, key string, limits []Limit) error { return takeErr(s, key, 0, limits) }},
	{"refund", func(s Store, key string, limits []Limit) error {
		_, err := s.Adjust(ctx, key, -1, Now, limits)
		return err
	}},
	{"charge", func(s Store, key string, limits []Limit) error {
		_, err := s.Adjust(ctx, key, 2, Now, limits)
		return err
	}},
	{"refund all", func(s Store, key string, limits []Limit) error {
		_, err := s.Adjust(ctx, key, -limits[0].Burst(), Now, limits)
		return err
	}},
	{"reset", func(s Store, key string, limits []Limit) error { return s.Reset(ctx, key, limits) }},
}

// Redis clients

// patient sets a client's own timeouts to an hour, so that only the library's timeouts
// end a call. It also makes the client retry more often than by default.
func patient(o *redis.Options) {
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = time.Hour, time.Hour, time.Hour, time.Hour
	o.MaxRetries, o.DialerRetries = 10, 1
}

// refusing makes a client report at once that a server is down. So a limiter's timeout may be
// long, and a busy machine does not reach it.
func refusing(o *redis.Options) { o.DialerRetries, o.MaxRetries = 1, -1 }

// ring returns a client that spreads keys over servers.
func ring(t testing.TB, servers ...*redistest.Server) *redis.Ring {
	addrs := make(map[string]string)
	for i, s := range servers {
		addrs[fmt.Sprint("shard", i)] = s.Addr
	}
	c := redis.NewRing(&redis.RingOptions{Addrs: addrs})
	t.Cleanup(func() { c.Close() })
	return c
}

// awaitReplicated waits until the replica has the same value of a key as the master.
func awaitReplicated(t testing.TB, s *redistest.Sentinel, key string) {
	t.Helper()
	eventually(t, "the replica to have "+key, func() bool {
		value := s.Master.Do("GET", key)
		return value != nil && value == s.Replica.Do("GET", key)
	})
}

// Logs

// logBuffer is a log that several goroutines and processes may write to.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write adds to the log.
func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns the whole log.
func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
