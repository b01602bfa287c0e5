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

// The registry of limiters only knows its own process. A store also protects
// different services from using one prefix by mistake. It keeps a record of its
// limiter beside the counters, and checks from time to time that the record is
// still its own. This file has that record; it counts nothing.

// An Owner is the limiter that a store belongs to.
type Owner struct {
	Limiter string
	Limits  []string // as text
	Report  Reporter
}

// A Reporter logs what a store finds out about its prefix. Its methods are
// called on a goroutine of the store.
type Reporter interface {
	// PrefixClaimed: a limiter of another name counts under the prefix. It is
	// called only the first time that the store finds this.
	PrefixClaimed(prefix string, by Record)
	// OtherLimits: another process has a limiter of the same name, with other
	// limits.
	OtherLimits(prefix string, own, other []string)
	// AcrossSlotsRefused: a server refuses commands for keys of different slots.
	// It is called at most once, and the store sends no more of them.
	AcrossSlotsRefused(prefix string, text string)
	// SideCallFailed: a call that no caller waits for has panicked.
	SideCallFailed(err error)
}

// A Record is the JSON value that a store writes to its prefix followed by
// "owner".
type Record struct {
	Limiter string   `json:"limiter"`
	Limits  []string `json:"limits"`
	Version string   `json:"version"`
}

// A record expires about an hour after its limiter was last used. It is read
// every recordRefresh, or every recordRetry while it is another limiter's or
// after an error.
const (
	recordLife    = time.Hour
	recordRefresh = 20 * time.Minute
	recordRetry   = time.Minute
)

// owner is what a store knows about the record.
type owner struct {
	is        atomic.Pointer[claim]  // nil until a limiter takes the store
	next      atomic.Int64           // when to look at the record again, by clock.Now
	foreign   atomic.Uint64          // how often the record was another limiter's
	claimedBy atomic.Pointer[string] // that limiter, if Options.RefuseClaimed is set
}

type claim struct {
	record Record
	report Reporter
}

// Adopt sets the limiter that the store belongs to. The record is written after
// the next decision.
func (s *Store) Adopt(o Owner) {
	record := Record{Limiter: o.Limiter, Limits: slices.Sorted(slices.Values(o.Limits)), Version: version()}
	s.owner.is.Store(&claim{record, o.Report})
	s.owner.next.Store(0)
}

// PrefixClaimed returns how often the prefix was found to be another limiter's.
func (s *Store) PrefixClaimed() uint64 { return s.owner.foreign.Load() }

// checkOwner checks the record if it is time for that. It does so on a goroutine
// and does not wait.
func (s *Store) checkOwner(now int64) {
	o := &s.owner
	next := o.next.Load()
	if now < next || o.is.Load() == nil || !o.next.CompareAndSwap(next, now+int64(recordRefresh)) {
		return
	}
	s.goUntilClose(func() {
		ctx, cancel := context.WithTimeout(context.Background(), sideTimeout)
		defer cancel()
		checked := false
		defer func() { // also if a hook of the client or the logger panics
			if !checked {
				o.next.Store(clock.Now() + int64(recordRetry))
			}
		}()
		checked = s.checkRecord(ctx, o.is.Load()) == nil
	})
}

var errClaimed = errors.New("the record is of another limiter")

// checkRecord writes the record if there is none, and refreshes it if it is the
// limiter's own. It waits for the server. An error means that the record must
// be checked again soon.
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
	if err != nil { // also if the record has just expired
		return err
	}
	var other Record
	if json.Unmarshal([]byte(text), &other) != nil {
		other.Limiter = fmt.Sprintf("%.64q, which is no record of this library", text)
	}
	if other.Limiter != own.record.Limiter {
		if s.options.RefuseClaimed {
			s.owner.claimedBy.Store(&other.Limiter)
		}
		if s.owner.foreign.Add(1) == 1 {
			own.report.PrefixClaimed(s.prefix, other)
		}
		return errClaimed
	}
	s.owner.claimedBy.Store(nil)
	if !slices.Equal(other.Limits, own.record.Limits) {
		own.report.OtherLimits(s.prefix, own.record.Limits, other.Limits)
	}
	return s.client.Set(ctx, key, mine, recordLife).Err()
}

// version returns the version of this library that the program was built with.
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
