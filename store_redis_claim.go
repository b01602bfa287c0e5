package ratelimit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
)

// A registry sees one process. So that two services do not count into each other
// either, a store keeps a record of its limiter beside the counters, and
// looks from time to time whether it is still its own.

// ErrPrefixClaimed is the error of a store made with [RefuseSharedPrefix] while a
// limiter of another name, in another process, counts under its prefix.
var ErrPrefixClaimed = errors.New("ratelimit: a limiter of another name counts under this prefix in another process")

// RefuseSharedPrefix makes a [RedisStore] refuse to count while a limiter of another
// name, in another process, counts under its prefix: calls fail with
// [ErrPrefixClaimed]. Without it that is logged, and counted in [RedisStats].
func RefuseSharedPrefix() RedisOption {
	return func(o *redisOptions) { o.refuseShared = true }
}

// RedisStats are counts over a [RedisStore]'s life.
type RedisStats struct {
	// PrefixClaimed counts how often the store has found its prefix to be in use by
	// a limiter of another name. It should stay 0.
	PrefixClaimed uint64
}

// Stats may be called at any time.
func (s *RedisStore) Stats() RedisStats {
	return RedisStats{PrefixClaimed: s.claim.foreign.Load()}
}

// The record lives for an hour after its limiter was last used, give or take a
// refresh. While another's stands in the way it is looked at more often.
const (
	claimLife    = time.Hour
	claimRefresh = 20 * time.Minute
	claimRetry   = time.Minute
)

// redisClaim is a store's claim on its prefix.
type redisClaim struct {
	owner   atomic.Pointer[claimant] // nil until a limiter takes the store
	next    atomic.Int64             // when to look again, by clock.Now
	foreign atomic.Uint64
	blocked atomic.Pointer[string] // the name of the other limiter, with RefuseSharedPrefix
}

// claimant is the limiter that a store belongs to.
type claimant struct {
	record  claimRecord
	limiter *Limiter
}

// claimRecord is what stands under the prefix and "owner".
type claimRecord struct {
	Limiter string   `json:"limiter"`
	Limits  []string `json:"limits"`
	Version string   `json:"version"`
}

// adopt tells the store whose it is, and under which limits.
func (s *RedisStore) adopt(l *Limiter, limits []Limit) {
	record := claimRecord{Limiter: l.name, Version: version()}
	for _, limit := range limits {
		record.Limits = append(record.Limits, limit.String())
	}
	slices.Sort(record.Limits)
	s.claim.owner.Store(&claimant{record, l})
	s.claim.next.Store(0)
}

func (c *redisClaim) refused() error {
	if other := c.blocked.Load(); other != nil {
		return fmt.Errorf("%w: it is %q; give each limiter a prefix of its own", ErrPrefixClaimed, *other)
	}
	return nil
}

// refresh looks after the record if it is time to, beside the decisions.
func (c *redisClaim) refresh(s *RedisStore, now int64) {
	next := c.next.Load()
	if now < next || c.owner.Load() == nil || !c.next.CompareAndSwap(next, now+int64(claimRefresh)) {
		return
	}
	s.beside(func() {
		ctx, cancel := context.WithTimeout(context.Background(), adjustTimeout)
		defer cancel()
		if err := c.check(ctx, s); err != nil {
			c.next.Store(clock.Now() + int64(claimRetry))
		}
	})
}

func (c *redisClaim) check(ctx context.Context, s *RedisStore) error {
	owner := c.owner.Load()
	key := s.prefix + "owner"
	mine, err := json.Marshal(owner.record)
	if err != nil {
		return err
	}
	made, err := s.client.SetNX(ctx, key, mine, claimLife).Result()
	if err != nil {
		return err
	}
	if made {
		c.blocked.Store(nil)
		return nil
	}
	text, err := s.client.Get(ctx, key).Result()
	if err != nil { // also where it has expired just now
		return err
	}
	var theirs claimRecord
	if json.Unmarshal([]byte(text), &theirs) != nil {
		theirs.Limiter = fmt.Sprintf("%.64q, which is no record of this library", text)
	}
	if theirs.Limiter != owner.record.Limiter {
		c.foreign.Add(1)
		if c.foreign.Load() == 1 {
			owner.limiter.report.warn(warnPrefixClaimed, "prefix", s.prefix, "other", theirs.Limiter,
				"other_limits", theirs.Limits, "other_version", theirs.Version)
		}
		if s.opts.refuseShared {
			c.blocked.Store(&theirs.Limiter)
		}
		return ErrPrefixClaimed
	}
	c.blocked.Store(nil)
	if !slices.Equal(theirs.Limits, owner.record.Limits) {
		owner.limiter.report.warn(warnOtherLimits, "prefix", s.prefix, "limits", owner.record.Limits, "other_limits", theirs.Limits)
	}
	return s.client.Set(ctx, key, mine, claimLife).Err()
}

// version is this library's, as the program was built with it.
var version = sync.OnceValue(func() string {
	const path = "github.com/ratelimit-go/ratelimit"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == path {
				return m.Version
			}
		}
	}
	return "unknown"
})
