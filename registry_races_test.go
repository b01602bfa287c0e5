package ratelimit_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// This file is about the time between two moments of a Reload: Lookup finds a new limiter, and the
// limiter begins to own its store. A test cannot stop a Reload in between. So the limiter is one of
// many, which begin in any order, and each test has some rounds.

const (
	raceRounds = 8
	raceOthers = 1000
)

// race is a registry with the limiter x and many others.
type race struct {
	*Registry
	seen recorder
	name string
}

func newRace(t *testing.T) *race {
	r := &race{Registry: new(Registry), name: t.Name()}
	r.Observe(r.seen.observe)
	t.Cleanup(func() {
		r.Close()
		for i := range raceOthers {
			Memory(r.other(i)).Close()
		}
	})
	return r
}

func (r *race) other(i int) string { return fmt.Sprint(r.name, "/", i) }

// reload replaces all limiters. It calls the function as soon as Lookup finds the next x.
func (r *race) reload(t *testing.T, x Options, meanwhile func(next *Limiter)) {
	t.Helper()
	old, _ := r.Lookup("x")
	done := make(chan error, 1)
	go func() {
		done <- r.Reload(func(next *Registry) error {
			for i := range raceOthers {
				if _, err := next.New(r.other(i), quiet(hour)); err != nil {
					return err
				}
			}
			_, err := next.New("x", x)
			return err
		})
	}()
	for {
		if l, ok := r.Lookup("x"); ok && l != old {
			meanwhile(l)
			break
		}
		select {
		case err := <-done:
			require.NoError(t, err)
			done <- nil
		default:
		}
		runtime.Gosched()
	}
	require.NoError(t, <-done)
}

func nothing(*Limiter) {}

// TestResetDuringAReloadReachesOldPlans resets a key that the limiter before has denied under a
// plan.
func TestResetDuringAReloadReachesOldPlans(t *testing.T) {
	r := newRace(t)
	opts := with(memory(t, "x"))
	r.reload(t, opts, nothing)
	for i := range raceRounds {
		l, _ := r.Lookup("x")
		_, err := l.TakeLimits(ctx, "key", 1, window(i))
		require.NoError(t, err)
		r.reload(t, opts, func(next *Limiter) { err = next.Reset(ctx, "key") })
		require.NoError(t, err)
		l, _ = r.Lookup("x")
		requireReset(t, l, i)
	}
}

// requireReset takes the only unit of the key under a window, which another limiter had taken
// before the Reset.
func requireReset(t *testing.T, l *Limiter, i int) {
	t.Helper()
	d, err := l.TakeLimits(ctx, "key", 1, window(i))
	require.NoError(t, err)
	require.True(t, d.Allowed, "window %d", i)
}

// TestResetReachesPlansOfLateRequests has a request that reaches the old limiter after the
// Reload, and is the first one under its plan.
func TestResetReachesPlansOfLateRequests(t *testing.T) {
	var reg Registry
	defer reg.Close()
	opts := with(memory(t, "x"))
	old := Must(reg.New("x", opts))
	var l *Limiter
	for range 2 {
		require.NoError(t, reg.Reload(func(next *Registry) (err error) {
			l, err = next.New("x", opts)
			return err
		}))
	}
	_, err := old.TakeLimits(ctx, "key", 1, window(1))
	require.NoError(t, err)
	require.NoError(t, l.Reset(ctx, "key"))
	requireReset(t, l, 1)
}

// TestResetReachesLimitsSetDuringABuild: the running limiter gets other limits after its
// successor has been made.
func TestResetReachesLimitsSetDuringABuild(t *testing.T) {
	var reg Registry
	defer reg.Close()
	opts := with(memory(t, "x"))
	old := Must(reg.New("x", opts))
	var l *Limiter
	require.NoError(t, reg.Reload(func(next *Registry) (err error) {
		if l, err = next.New("x", opts); err != nil {
			return err
		}
		if err = old.SetLimits(window(1)); err != nil {
			return err
		}
		_, err = old.Take(ctx, "key")
		return err
	}))
	require.NoError(t, l.Reset(ctx, "key"))
	requireReset(t, l, 1)
}

// TestSetLimitsDuringAReloadIsReported sets the limits of the new limiter.
func TestSetLimitsDuringAReloadIsReported(t *testing.T) {
	r := newRace(t)
	opts := with(memory(t, "x"))
	r.reload(t, opts, nothing)
	for i := range raceRounds {
		var err error
		r.reload(t, opts, func(next *Limiter) { err = next.SetLimits(window(i)) })
		require.NoError(t, err)
		var reported []Limit
		for _, e := range r.seen.all() {
			if e.Kind == EventLimitsChanged {
				reported = append(reported, e.Limit)
			}
		}
		require.Contains(t, reported, window(i), "round %d", i)
	}
}

// TestCloseDuringAReload closes the new limiter, and makes another one on its store. The close is
// reported once, and the record of the store is the other limiter's.
func TestCloseDuringAReload(t *testing.T) {
	m := newMini(t)
	client := m.client(t)
	r := newRace(t)
	for i := range raceRounds {
		prefix := fmt.Sprintf("rl:%d:", i)
		opts := with(redisStore(t, client, prefix))
		opts.Timeout = time.Minute
		var other *Limiter
		r.reload(t, opts, func(x *Limiter) {
			x.Close()
			other = Must(new(Registry).New("other", opts))
		})
		closed := 0
		for _, e := range r.seen.all() {
			if e.Kind == EventClosed && e.Limiter == "x" {
				closed++
			}
		}
		require.Equal(t, 1, closed, "round %d", i)
		decide(t, other, "k", 1)
		require.NoError(t, other.Close())
		require.NoError(t, opts.Store.(*RedisStore).Close(), "which waits for the record")
		text, err := m.Get(prefix + "owner")
		require.NoError(t, err)
		require.Contains(t, text, `"other"`, "round %d", i)
	}
}

// TestReloadDuringAReload replaces the new limiter at once. The last one knows all plans, and
// the record of the store has its limits.
func TestReloadDuringAReload(t *testing.T) {
	m := newMini(t)
	client := m.client(t)
	r := newRace(t)
	for i := range raceRounds {
		prefix := fmt.Sprintf("rl:%d:", i)
		store := redisStore(t, client, prefix)
		options := func(n int64) Options {
			opts := quiet(FixedWindow(n, time.Hour))
			opts.Store, opts.Timeout, opts.DenyRecheck = store, time.Minute, 1
			return opts
		}
		r.reload(t, options(5), nothing)
		first, _ := r.Lookup("x")
		_, err := first.TakeLimits(ctx, "key", 1, window(0))
		require.NoError(t, err)
		var last *Limiter
		r.reload(t, options(6), func(*Limiter) {
			err = r.Reload(func(next *Registry) (err error) {
				last, err = next.New("x", options(7))
				return err
			})
		})
		require.NoError(t, err)
		require.NoError(t, last.Reset(ctx, "key"))
		d, err := last.TakeLimits(ctx, "key", 1, window(0))
		require.NoError(t, err)
		require.True(t, d.Allowed, "round %d", i)
		require.NoError(t, r.Close())
		require.NoError(t, store.Close(), "which waits for the record")
		text, err := m.Get(prefix + "owner")
		require.NoError(t, err)
		require.Contains(t, text, `"7/1h fixed"`, "round %d", i)
	}
}
