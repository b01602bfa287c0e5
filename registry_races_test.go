package ratelimit_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// This file has what happens to a limiter of a Reload between two moments: when Lookup finds it,
// and when it begins to own its store. A test cannot stop a Reload there. So the limiter is one of
// many, which begin in any order, and there are some rounds.

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

// reload replaces all limiters. As soon as there is the next x, meanwhile is called.
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
		d, err := l.TakeLimits(ctx, "key", 1, window(i))
		require.NoError(t, err)
		require.True(t, d.Allowed, "round %d", i)
	}
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
	d, err := l.TakeLimits(ctx, "key", 1, window(1))
	require.NoError(t, err)
	require.True(t, d.Allowed)
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
	d, err := l.TakeLimits(ctx, "key", 1, window(1))
	require.NoError(t, err)
	require.True(t, d.Allowed)
}
