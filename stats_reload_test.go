package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestReloadsThatFailDoNotCount stages limiters for the same store in Reloads that
// overlap, in those of another registry, and after a limiter was left out. The limiter
// that is in force goes on to count.
func TestReloadsThatFailDoNotCount(t *testing.T) {
	fails := errors.New("no")
	opts := func(t *testing.T) Options {
		opts := quiet(named(2, "two"))
		opts.Store = memory(t, "store")
		return opts
	}
	make := func(t *testing.T, into **Limiter, opts Options) func(next *Registry) error {
		return func(next *Registry) error {
			l, err := next.New("x", opts)
			if into != nil {
				*into = l
			}
			return err
		}
	}
	for name, test := range map[string]func(t *testing.T, reg *Registry, opts Options) *Limiter{
		"overlapping": func(t *testing.T, reg *Registry, opts Options) (l *Limiter) {
			require.Error(t, reg.Reload(func(next *Registry) error {
				if _, err := next.New("x", opts); err != nil {
					return err
				}
				require.NoError(t, reg.Reload(make(t, &l, opts)))
				return nil
			}))
			return l
		},
		"of another registry": func(t *testing.T, reg *Registry, opts Options) (l *Limiter) {
			require.NoError(t, reg.Reload(func(next *Registry) error {
				l, _ = next.New("x", opts)
				require.ErrorIs(t, new(Registry).Reload(func(other *Registry) error {
					require.NoError(t, make(t, nil, opts)(other))
					return fails
				}), fails)
				return nil
			}))
			return l
		},
		"after it was left out": func(t *testing.T, reg *Registry, opts Options) (l *Limiter) {
			require.NoError(t, reg.Reload(make(t, &l, opts)))
			require.NoError(t, reg.Reload(func(*Registry) error { return nil }))
			require.ErrorIs(t, reg.Reload(func(next *Registry) error { return errors.Join(make(t, nil, opts)(next), fails) }), fails)
			return l
		},
	} {
		t.Run(name, func(t *testing.T) {
			reg := new(Registry)
			defer reg.Close()
			l := test(t, reg, opts(t))
			for range 5 {
				decide(t, l, "key", 1)
			}
			stats := l.Stats()
			require.EqualValues(t, 2, stats.Allowed)
			require.EqualValues(t, 3, stats.Denied)
			require.Equal(t, 1, stats.Memory.Counters)
		})
	}
}

// TestNamesOfFailedReloadsAreFree uses up all names in Reloads that fail.
func TestNamesOfFailedReloadsAreFree(t *testing.T) {
	reg := new(Registry)
	defer reg.Close()
	reload := func(name string, fail error) error {
		return reg.Reload(func(next *Registry) error {
			_, err := next.New(t.Name(), quiet(named(1, name)))
			return errors.Join(err, fail)
		})
	}
	t.Cleanup(func() { Memory(t.Name()).Close() })
	require.NoError(t, reload("first", nil))
	for i := range 100 {
		require.Error(t, reload(fmt.Sprint("failed ", i), errBackend))
	}
	require.NoError(t, reload("real", nil))
	l, _ := reg.Lookup(t.Name())
	decide(t, l, "key", 2)
	require.Equal(t, []PolicyStats{{"first", named(1, "first"), 0}, {"real", named(1, "real"), 1}}, l.Stats().Policies)
}

// TestClosedStoresAreNotKept gives a limiter a new store with each Reload.
func TestClosedStoresAreNotKept(t *testing.T) {
	reg := new(Registry)
	defer reg.Close()
	var freed atomic.Int64
	for i := range 20 {
		store, err := NewMemoryStore(t.Name(), MemoryOptions{MaxKeys: 1000})
		require.NoError(t, err)
		runtime.AddCleanup(store, func(*int) { freed.Add(1) }, nil)
		opts := quiet(named(1, "one"))
		opts.Store = store
		require.NoError(t, reg.Reload(func(next *Registry) error {
			_, err := next.New("x", opts)
			return err
		}))
		l, _ := reg.Lookup("x")
		decide(t, l, "key", 1)
		require.EqualValues(t, i+1, l.Stats().Allowed)
		require.NoError(t, store.Close())
	}
	require.Eventually(t, func() bool { runtime.GC(); return freed.Load() >= 15 }, time.Minute, 10*time.Millisecond)
	require.NoError(t, reg.Close())
}

// TestLimitsInForceDecideWhetherTheyHaveChanged has limits that are not in force beside
// Unlimited and Deny.
func TestLimitsInForceDecideWhetherTheyHaveChanged(t *testing.T) {
	var seen recorder
	opts := quiet(Deny, named(2, "two"))
	opts.Observe = seen.observe
	l := httpLimiterNamed(t, "l", opts)
	for _, test := range []struct {
		set  []Limit
		want []string
	}{
		{[]Limit{named(2, "two")}, []string{"two"}},
		{[]Limit{named(2, "two"), Unlimited}, nil},
		{[]Limit{Unlimited}, []string{"l"}},
		{[]Limit{Unlimited}, nil},
		{[]Limit{Deny, named(3, "three")}, []string{"l"}},
		{[]Limit{Deny}, nil},
	} {
		require.NoError(t, l.SetLimits(test.set...))
		var got []string
		for _, e := range seen.all() {
			require.Equal(t, EventLimitsChanged, e.Kind)
			got = append(got, e.Policy)
		}
		require.Equal(t, test.want, got, "%v", test.set)
	}
}

// TestObserverThatEndsItsGoroutine ends the goroutine on which an outage is reported, as
// t.FailNow does. The next outages are reported, too.
func TestObserverThatEndsItsGoroutine(t *testing.T) {
	var seen recorder
	observe := func(e Event) {
		if e.Kind == EventStoreDown || e.Kind == EventStoreBack {
			seen.observe(ctx, e)
			runtime.Goexit()
		}
	}
	remotely(t, Options{Limits: []Limit{hour}, Observe: func(_ context.Context, e Event) { observe(e) }}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		for range 3 {
			startOutage(t, backend, l, refused)
			synctest.Wait()
			endOutage(t, backend, l)
			synctest.Wait()
			time.Sleep(time.Minute)
		}
		require.Equal(t, []EventKind{EventStoreDown, EventStoreBack, EventStoreDown, EventStoreBack, EventStoreDown, EventStoreBack}, seen.kinds())
	})
}

// A limiter may decide before the Reload that has made it has ended. These decisions count,
// whatever store it has, and also if another limiter had the store before.
func TestDecisionsInsideOfAReloadCount(t *testing.T) {
	stores := 0
	fresh := func(t *testing.T) *MemoryStore {
		stores++
		return memory(t, fmt.Sprint("inside of a Reload ", stores))
	}
	for _, ends := range []error{nil, errors.New("stop")} {
		for _, shadow := range []bool{false, true} {
			for name, store := range map[string]func(old, former *MemoryStore) *MemoryStore{
				"same":   func(old, _ *MemoryStore) *MemoryStore { return old },
				"new":    func(*MemoryStore, *MemoryStore) *MemoryStore { return fresh(t) },
				"former": func(_, former *MemoryStore) *MemoryStore { return former },
			} {
				t.Run(fmt.Sprint(name, " shadow=", shadow, " error=", ends), func(t *testing.T) {
					reg := new(Registry)
					defer reg.Close()
					old, former := fresh(t), fresh(t)
					limits := []Limit{FixedWindow(3, time.Hour)}
					other, err := reg.New("other", Options{Store: former, Limits: limits})
					require.NoError(t, err)
					_, err = other.Take(t.Context(), "key")
					require.NoError(t, err)
					require.NoError(t, other.Close())

					running, err := reg.New("login", Options{Store: old, Limits: limits, Shadow: shadow})
					require.NoError(t, err)
					take := func(l *Limiter) {
						_, err := l.Take(t.Context(), "another key")
						require.NoError(t, err)
						_, err = l.TakeN(t.Context(), "another key", 9)
						require.NoError(t, err)
						_, _, err = l.TakeUpTo(t.Context(), "another key", 1)
						require.NoError(t, err)
					}
					take(running)
					err = reg.Reload(func(reg *Registry) error {
						l, err := reg.New("login", Options{Store: store(old, former), Limits: limits, Shadow: shadow})
						require.NoError(t, err)
						take(l)
						take(running)
						return ends
					})
					require.ErrorIs(t, err, ends)
					now, ok := reg.Lookup("login")
					require.True(t, ok)
					take(now)
					s := now.Stats()
					require.EqualValues(t, 4*3, s.Allowed+s.Denied)
					require.EqualValues(t, 1, other.Stats().Allowed)
				})
			}
		}
	}
}
