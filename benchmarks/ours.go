package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/postgres"
)

// This file sets up this library: in memory, on Redis and on PostgreSQL.

func fixedWindow(q quota) ratelimit.Limit {
	if q.holds {
		return ratelimit.InFlight(q.units, time.Minute)
	}
	if q.perDay {
		return q.withBlock(ratelimit.Daily(q.units, zoneOfNow()))
	}
	if q.rolling {
		return ratelimit.Rolling(q.units, q.window)
	}
	return q.withBlock(ratelimit.FixedWindow(q.units, q.window))
}

func slidingWindow(q quota) ratelimit.Limit {
	return q.withBlock(ratelimit.SlidingWindow(q.units, q.window))
}

func tokenBucket(q quota) ratelimit.Limit {
	return q.withBlock(ratelimit.TokenBucket(1, q.refill, q.units))
}

func (q quota) withBlock(l ratelimit.Limit) ratelimit.Limit {
	if q.block > 0 {
		l = l.Block(q.block)
	}
	return l
}

// limitsOf returns the limits of a case. Further ones differ in their windows.
func (q quota) limitsOf(limit func(quota) ratelimit.Limit) []ratelimit.Limit {
	limits := []ratelimit.Limit{limit(q)}
	if q.two {
		limits = append(limits, ratelimit.TokenBucket(4, 2*q.refill, q.units).Named("second"))
	}
	for i := range q.further {
		limits = append(limits, ratelimit.FixedWindow(q.units, time.Duration(i+2)*q.window))
	}
	return limits
}

// opened makes the names of stores unique. Stores in memory live as long as the process.
var opened atomic.Int64

// limiter makes a limiter of this library in a registry of its own, with the options of
// the case and what set adds: its store.
func (q quota) limiter(limit func(quota) ratelimit.Limit, set func(*ratelimit.Options)) *ratelimit.Limiter {
	o := ratelimit.Options{
		Limits:      q.limitsOf(limit),
		MaxWait:     q.wait,
		DenyRecheck: q.recheck,
		// The timeout that go-redis, and so every rival, uses for a reply. A busy machine
		// should not favor anybody.
		Timeout: 3 * time.Second,
		Logger:  slog.New(slog.DiscardHandler),
	}
	set(&o)
	return must(new(ratelimit.Registry).New("api", o))
}

func openInMemory(limit func(quota) ratelimit.Limit) func(quota, bool) subject {
	return func(q quota, fields bool) subject {
		store := must(ratelimit.NewMemoryStore("s"+strconv.FormatInt(opened.Add(1), 10), ratelimit.MemoryOptions{MaxKeys: q.most()}))
		s := q.subject(q.limiter(limit, func(o *ratelimit.Options) {
			o.Store = store
			if !fields {
				o.Headers = ratelimit.HeadersNone
			} else {
				o.Headers = ratelimit.HeadersDraft10
			}
		}), false, func() { store.Close() })
		s.stats = store.Stats
		return s
	}
}

func openOursOnRedis(limit func(quota) ratelimit.Limit, lease time.Duration) func(target, quota) subject {
	return func(where target, q quota) subject {
		client := where.goRedis(func(o *redis.UniversalOptions) { o.ContextTimeoutEnabled = true })
		l := q.limiter(limit, func(o *ratelimit.Options) { o.Redis, o.Lease = client, lease })
		return q.subject(l, lease > 0, func() { client.Close() })
	}
}

// across is the name of the library with AcrossSlots. It takes part in the cases on a Cluster.
const across = "across"

func openAcross(where target, q quota) subject {
	client := where.goRedis(func(o *redis.UniversalOptions) { o.ContextTimeoutEnabled = true })
	store := must(ratelimit.NewRedisStore(client, "rl:api:", ratelimit.AcrossSlots()))
	l := q.limiter(fixedWindow, func(o *ratelimit.Options) { o.Store = store })
	return q.subject(l, false, func() { store.Close(); client.Close() })
}

func openOnPostgres(limit func(quota) ratelimit.Limit, opts ...postgres.Option) func(target, quota) subject {
	return func(where target, q quota) subject {
		pool := where.pool("on")
		store := must(postgres.NewStore(pool, "bench-"+strconv.FormatInt(opened.Add(1), 10), opts...))
		l := q.limiter(limit, func(o *ratelimit.Options) { o.Store = store })
		return q.subject(l, false, func() { store.Close(); pool.Close() })
	}
}

// subject returns what a case uses of l. end closes what l uses.
func (q quota) subject(l *ratelimit.Limiter, leased bool, end func()) subject {
	begun := time.Now()
	s := subject{
		middleware: l.Middleware,
		close:      func() { l.Close(); end() },
	}
	s.audit = func(keys []string, admitted int64) error {
		if err := failures(l); err != nil {
			return err
		}
		// A caller that has read the clock before the answer to another one is denied by that answer.
		if s := l.Stats(); q.recheck != 0 && s.Remote.Cached > s.Denied/1000 {
			return fmt.Errorf("%d of %d denials come from the near cache", s.Remote.Cached, s.Denied)
		}
		if q.holds || q.rolling || q.window < time.Hour {
			return nil // the store has forgotten some units already
		}
		counted, err := unitsOf(l, keys)
		if err != nil {
			return err
		}
		least, most := admitted, admitted
		if l.Limits()[0].Algorithm() == "bucket" {
			least -= int64(len(keys)) * int64(time.Since(begun)/q.refill+1)
		}
		if leased {
			most = counted // it has counted units that nobody has asked for yet
		}
		if counted < least || counted > most {
			return fmt.Errorf("%d units were admitted, and the store has counted %d", admitted, counted)
		}
		return nil
	}
	ctx := context.Background()
	if q.holds {
		s.take = func(key string) (bool, error) {
			release, d, err := l.Acquire(ctx, key)
			release()
			return d.Allowed, checkSource(d, err, ratelimit.SourceStore)
		}
		return s
	}
	// A decision must come from where the case measures it: from the store, unless this
	// process has leased units, or may answer for a key that the store has denied. If the
	// store has to deny again each time, audit bounds how many denials it has not made.
	admits, denies := ratelimit.SourceStore, ratelimit.SourceCache
	if leased {
		admits = ratelimit.SourceLease
	}
	s.take = func(key string) (bool, error) {
		d, err := l.Take(ctx, key)
		if err != nil || d.Source != ratelimit.SourceStore {
			also := denies
			if d.Allowed {
				also = admits
			}
			err = checkSource(d, err, also)
		}
		return d.Allowed, err
	}
	return s
}

// checkSource returns err, or an error if d comes neither from the store nor from also.
func checkSource(d ratelimit.Decision, err error, also ratelimit.Source) error {
	if err == nil && d.Source != ratelimit.SourceStore && d.Source != also {
		return fmt.Errorf("a decision comes from the %v", d.Source)
	}
	return err
}

// failures returns an error if a call to the store has failed, or if a decision was made
// without the store because of that.
func failures(l *ratelimit.Limiter) error {
	s := l.Stats().Remote
	if s.Failures > 0 || s.Fallback > 0 || s.FailedOpen > 0 {
		return fmt.Errorf("%d calls to the store failed, and %d decisions were made without it", s.Failures, s.Fallback+s.FailedOpen)
	}
	return nil
}

// unitsOf returns how many units of some keys a limiter's store has counted under the first limit.
func unitsOf(l *ratelimit.Limiter, keys []string) (int64, error) {
	var sum atomic.Int64
	var mu sync.Mutex
	var failed error
	each(keys, func(key string) {
		standing, err := l.LookKey(background, key)
		if err != nil {
			mu.Lock()
			failed = errors.Join(failed, err)
			mu.Unlock()
			return
		}
		first := standing[0]
		sum.Add(first.Limit.Burst() - first.Remaining)
	})
	return sum.Load(), failed
}

// each calls f for each key, from 64 goroutines.
func each(keys []string, f func(key string)) {
	var at atomic.Int64
	var done sync.WaitGroup
	for range min(64, len(keys)) {
		done.Go(func() {
			for i := at.Add(1); i <= int64(len(keys)); i = at.Add(1) {
				f(keys[i-1])
			}
		})
	}
	done.Wait()
}
