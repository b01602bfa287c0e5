package ratelimit_test

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// This file has calls of SetLimits that overlap with each other, or with the end of their
// limiter.

// TestSetLimitsWhoseLimiterEndsMeanwhile replaces or closes a limiter while the auditor records
// a SetLimits. That returns an error and changes nothing: neither the limits nor the record of
// the store, which belongs to another limiter now.
func TestSetLimitsWhoseLimiterEndsMeanwhile(t *testing.T) {
	for name, test := range map[string]struct {
		end   func(reg *Registry, l *Limiter, opts Options) (next *Limiter, err error)
		fails string
	}{
		"Reload": {func(reg *Registry, _ *Limiter, opts Options) (next *Limiter, err error) {
			err = reg.Reload(func(r *Registry) error {
				next, err = r.New("login", opts)
				return err
			})
			return next, err
		}, "SetLimits: a Reload has replaced this limiter: Lookup its successor"},
		"Close and New": {func(reg *Registry, l *Limiter, opts Options) (*Limiter, error) {
			require.NoError(t, l.Close())
			return reg.New("another", opts)
		}, ErrClosed.Error()[len("ratelimit: "):]},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
				store := redisStore(t, c, "rl:", RefuseSharedPrefix())
				recorded := make(chan bool)
				var seen recorder
				opts := Options{
					Limits: []Limit{hour}, Store: store, Timeout: time.Minute, OnFailure: FailClosed, DenyRecheck: 1, Logger: quietly,
					Audit:   auditor(func(context.Context, Event) error { <-recorded; return nil }),
					Observe: seen.observe,
				}
				reg := new(Registry)
				l := Must(reg.New("login", opts))
				result := make(chan error)
				go func() { result <- l.SetLimits(FixedWindow(9, time.Hour)) }()
				synctest.Wait()
				next, err := test.end(reg, l, opts)
				require.NoError(t, err)
				defer next.Close()
				decide(t, next, "k", 1)
				synctest.Wait() // the record is written

				recorded <- true
				require.ErrorContains(t, <-result, test.fails)
				require.Equal(t, []Limit{hour}, l.Limits())
				require.Empty(t, seen.of(EventLimitsChanged), "which an audit trail would take for the call's success")
				for range 3 {
					decide(t, next, "k", 1)
					synctest.Wait()
				}
				require.Zero(t, store.Stats().PrefixClaimed)
				require.Empty(t, next.Stats().Warnings)
				text, err := m.Get("rl:owner")
				require.NoError(t, err)
				require.Contains(t, text, next.Name())
			})
		})
	}
}

// TestSetLimitsAtOnceLeavesOneRecord: of two calls at once, the record of the store has the
// limits that are in force afterwards.
func TestSetLimitsAtOnceLeavesOneRecord(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		p := newProcess(t, c, "rl:", "login", plenty)
		many := windows(MaxLimits) // to write them takes longer
		for round := range 300 {
			var both sync.WaitGroup
			var ready atomic.Int32
			at := func(delay int, limits ...Limit) {
				both.Go(func() {
					for ready.Add(1); ready.Load() < 2; {
						runtime.Gosched()
					}
					for range delay {
						ready.Load()
					}
					p.SetLimits(limits...)
				})
			}
			at(0, many...)
			at(round%30*800, hour)
			both.Wait()
			takeErr(p.store, "k", 1, p.Limits())
			synctest.Wait()
			text, err := m.Get("rl:owner")
			require.NoError(t, err)
			for _, limit := range p.Limits() {
				require.Contains(t, text, limit.String())
			}
		}
	})
}
