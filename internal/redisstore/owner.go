package redisstore

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
// either, a store keeps a record of its limiter beside the counters, and looks
// from time to time whether it is still its own.

// An Owner is the limiter that a store belongs to.
type Owner struct {
	Limiter string
	Limits  []string // as text
	Report  Reporter
}

// A Reporter logs what a store finds out about its prefix.
type Reporter interface {
	// PrefixClaimed: a limiter of another name counts under the prefix. It is
	// called the first time that this is found.
	PrefixClaimed(prefix string, by Record)
	// OtherLimits: the limiter has other limits in another process.
	OtherLimits(prefix string, own, other []string)
}

// A Record is what a store writes to its prefix followed by "owner", as JSON.
type Record struct {
	Limiter string   `json:"limiter"`
	Limits  []string `json:"limits"`
	Version string   `json:"version"`
}

// A record lives for an hour after its limiter was last used, give or take a
// refresh. While another limiter's record is there, it is read more often.
const (
	recordLife    = time.Hour
	recordRefresh = 20 * time.Minute
	recordRetry   = time.Minute
)

// owner is what a store knows of the record.
type owner struct {
	is        atomic.Pointer[claim]  // nil until a limiter takes the store
	next      atomic.Int64           // when to look at the record again, by clock.Now
	foreign   atomic.Uint64          // how often it was another limiter's
	claimedBy atomic.Pointer[string] // that limiter, with Options.RefuseClaimed
}

type claim struct {
	record Record
	report Reporter
}

// Adopt says whose store this is. The record is written with the next decision.
func (s *Store) Adopt(o Owner) {
	record := Record{Limiter: o.Limiter, Limits: slices.Sorted(slices.Values(o.Limits)), Version: version()}
	s.owner.is.Store(&claim{record, o.Report})
	s.owner.next.Store(0)
}

// PrefixClaimed returns how often the prefix was found to be another limiter's.
func (s *Store) PrefixClaimed() uint64 { return s.owner.foreign.Load() }

// checkOwner looks after the record if it is time for that, on a goroutine of its
// own.
func (s *Store) checkOwner(now int64) {
	o := &s.owner
	next := o.next.Load()
	if now < next || o.is.Load() == nil || !o.next.CompareAndSwap(next, now+int64(recordRefresh)) {
		return
	}
	s.beside(func() {
		ctx, cancel := context.WithTimeout(context.Background(), sideTimeout)
		defer cancel()
		if err := s.checkRecord(ctx, o.is.Load()); err != nil {
			o.next.Store(clock.Now() + int64(recordRetry))
		}
	})
}

var errClaimed = errors.New("the record is of another limiter")

// checkRecord writes the record if there is none, and refreshes it if it is the
// limiter's own. An error means that it has to be looked at again soon.
func (s *Store) checkRecord(ctx context.Context, own *claim) error {
	key := s.prefix + "owner"
	mine, err := json.Marshal(own.record)
	if err != nil {
		return err
	}
	made, err := s.client.SetNX(ctx, key, mine, recordLife).Result()
	if err != nil {
		return err
	}
	if made {
		s.owner.claimedBy.Store(nil)
		return nil
	}
	text, err := s.client.Get(ctx, key).Result()
	if err != nil { // also if it has just expired
		return err
	}
	var other Record
	if json.Unmarshal([]byte(text), &other) != nil {
		other.Limiter = fmt.Sprintf("%.64q, which is no record of this library", text)
	}
	if other.Limiter != own.record.Limiter {
		if s.owner.foreign.Add(1) == 1 {
			own.report.PrefixClaimed(s.prefix, other)
		}
		if s.options.RefuseClaimed {
			s.owner.claimedBy.Store(&other.Limiter)
		}
		return errClaimed
	}
	s.owner.claimedBy.Store(nil)
	if !slices.Equal(other.Limits, own.record.Limits) {
		own.report.OtherLimits(s.prefix, own.record.Limits, other.Limits)
	}
	return s.client.Set(ctx, key, mine, recordLife).Err()
}

// version is the version of this library that the program was built with.
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
