package ratelimit_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestOutageIsReportedOnceOverReloads reloads while a store is down, and once more
// between its return and the report of that.
func TestOutageIsReportedOnceOverReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen recorder
		backend := &remoteBackend{Store: memory(t, "backend")}
		opts := Options{Limits: []Limit{hour}, Store: backend, Observe: seen.observe, Logger: quietly}
		reg := new(Registry)
		defer reg.Close()
		reload := func() *Limiter {
			var l *Limiter
			require.NoError(t, reg.Reload(func(next *Registry) (err error) {
				l, err = next.New("l", opts)
				return err
			}))
			return l
		}
		outages := func() (kinds []EventKind) {
			synctest.Wait()
			for _, e := range seen.all() {
				if e.Kind == EventStoreDown || e.Kind == EventStoreBack {
					kinds = append(kinds, e.Kind)
				}
			}
			return kinds
		}
		l := reload()
		startOutage(t, backend, l, refused)
		require.Equal(t, []EventKind{EventStoreDown}, outages())
		for range 5 {
			l = reload()
			decide(t, l, "key", 1)
			time.Sleep(time.Second)
		}
		require.Empty(t, outages())
		endOutage(t, backend, l)
		reload()
		require.Equal(t, []EventKind{EventStoreBack}, outages())
		require.EqualValues(t, 1, l.Stats().Warnings[CodeStoreDown])
		require.EqualValues(t, 1, l.Stats().Warnings[CodeStoreBack])
	})
}

// TestBlockIsSentAfterAReload reloads while a block by hand is owed to a store that is down. The
// store gets it, although nobody asks this process for anything.
func TestBlockIsSentAfterAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		reg := new(Registry)
		defer reg.Close()
		var l *Limiter
		reload := func() {
			require.NoError(t, reg.Reload(func(next *Registry) (err error) {
				l, err = next.New("l", Options{Limits: []Limit{hour}, Store: backend, Logger: quietly})
				return err
			}))
		}
		reload()
		idle := goroutines()
		startOutage(t, backend, l, refused)
		require.NoError(t, l.Block(ctx, "key", 10*time.Hour))
		reload()
		time.Sleep(time.Minute)
		reload()
		synctest.Wait()
		backend.set(up)
		time.Sleep(time.Minute)
		require.Positive(t, backend.blocked(t, "key", hour))
		require.Zero(t, l.Stats().Remote.Owed)
		synctest.Wait()
		require.LessOrEqual(t, goroutines(), idle)
	})
}

// TestHastyCallersOfAReplacedLimiter: callers with too little time, which still reach a limiter
// that a Reload has replaced, have the store checked once.
func TestHastyCallersOfAReplacedLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &remoteBackend{Store: memory(t, "backend")}
		reg := new(Registry)
		defer reg.Close()
		var old *Limiter
		reload := func() {
			require.NoError(t, reg.Reload(func(next *Registry) (err error) {
				old, _ = reg.Lookup("l")
				_, err = next.New("l", Options{Limits: []Limit{hour}, Store: backend, Logger: quietly})
				return err
			}))
		}
		reload()
		reload()
		backend.delay(10 * time.Millisecond)
		idle := goroutines()
		for range 6 {
			hasty, cancel := context.WithTimeout(ctx, time.Millisecond)
			_, err := old.Take(hasty, "key")
			require.Error(t, err)
			cancel()
		}
		time.Sleep(time.Second)
		calls := backend.calls.Load()
		require.LessOrEqual(t, calls, int64(6+2))
		time.Sleep(time.Hour)
		require.Equal(t, calls, backend.calls.Load())
		require.LessOrEqual(t, goroutines(), idle)
	})
}

// TestReloadToAnotherStoreEndsTheWorkForTheOldOne reloads while the old store is down,
// and while it is up and is owed units. The new generation has the limiter on another store, or
// has no such limiter.
func TestReloadToAnotherStoreEndsTheWorkForTheOldOne(t *testing.T) {
	for i := range 4 {
		isUp, isLeftOut := i%2 == 1, i >= 2
		synctest.Test(t, func(t *testing.T) {
			old := &remoteBackend{Store: memory(t, "old")}
			reg := new(Registry)
			reload := func(store Store) *Limiter {
				var l *Limiter
				require.NoError(t, reg.Reload(func(next *Registry) (err error) {
					l, err = next.New("l", Options{Limits: []Limit{hour}, Store: store, Logger: quietly})
					return err
				}))
				return l
			}
			l := reload(old)
			idle := goroutines()
			startOutage(t, old, l, refused)
			decide(t, l, "owed", 2)
			if isUp {
				old.set(up)
				time.Sleep(time.Second) // the breaker allows a call
			}
			if isLeftOut {
				require.NoError(t, reg.Reload(func(*Registry) error { return nil }))
			} else {
				reload(memory(t, "new"))
			}
			time.Sleep(2 * time.Second) // Close has a second
			synctest.Wait()
			require.LessOrEqual(t, goroutines(), idle, "nothing of the old generation runs")
			if isUp {
				require.EqualValues(t, 3, old.remaining(t, "owed", hour), "it has got what it was owed")
			}
			require.True(t, decide(t, l, "in flight", 1).Allowed, "requests that still reach it are decided")
			require.NoError(t, reg.Close())
		})
	}
}

// TestStoreThatPanicsWhenItsLimiterEnds closes a limiter whose store is owed units and panics,
// and replaces one by a limiter on another store.
func TestStoreThatPanicsWhenItsLimiterEnds(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, reg *Registry, l *Limiter){
		"Close": func(t *testing.T, _ *Registry, l *Limiter) { require.NoError(t, l.Close()) },
		"Reload": func(t *testing.T, reg *Registry, _ *Limiter) {
			require.NoError(t, reg.Reload(func(next *Registry) error {
				_, err := next.New("l", with(memory(t, "new")))
				return err
			}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, reg := new(logged), new(Registry)
				backend := &remoteBackend{Store: memory(t, "old")}
				opts := with(backend)
				opts.Logger = log.logger()
				l := Must(reg.New("l", opts))
				startOutage(t, backend, l, refused)
				backend.set(panics)
				time.Sleep(2 * time.Minute) // a warning is logged once a minute
				calls := backend.calls.Load()
				end(t, reg, l)
				synctest.Wait()
				require.Greater(t, backend.calls.Load(), calls)
				require.Contains(t, log.text(), "panic: a bug")
				require.NoError(t, reg.Close())
			})
		})
	}
}
