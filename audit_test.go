package ratelimit_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
	"github.com/stretchr/testify/require"
)

// auditor is an Auditor made of a function.
type auditor func(ctx context.Context, e ratelimit.Event) error

func (a auditor) Record(ctx context.Context, e ratelimit.Event) error { return a(ctx, e) }

// Each call by hand is recorded before it takes effect, with its actor and its reason. What
// cannot be recorded is not done.
func TestCallsByHandAreRecordedFirst(t *testing.T) {
	ctx := ratelimit.WithReason(ratelimit.WithActor(t.Context(), "alice"), "ticket 7")
	hourly := ratelimit.FixedWindow(3, time.Hour)
	lowered := ratelimit.FixedWindow(2, time.Hour)
	for _, tc := range []struct {
		name string
		call func(l *ratelimit.Limiter) error
		want ratelimit.Event
		left int64 // of 3 units, of which 2 are taken, if the call takes effect
	}{
		{"Reset", func(l *ratelimit.Limiter) error { return l.Reset(ctx, "key") }, ratelimit.Event{Kind: ratelimit.EventReset, Key: "key"}, 3},
		{"Block", func(l *ratelimit.Limiter) error { return l.Block(ctx, "key", time.Minute) }, ratelimit.Event{Kind: ratelimit.EventBlocked, Key: "key", Duration: time.Minute}, 0},
		{"Refund", func(l *ratelimit.Limiter) error { return l.Refund(ctx, "key", 1) }, ratelimit.Event{Kind: ratelimit.EventRefunded, Key: "key", Units: 1}, 2},
		{"SetLimits", func(l *ratelimit.Limiter) error { return l.SetLimitsContext(ctx, lowered) }, ratelimit.Event{Kind: ratelimit.EventLimitsChanged, Policy: t.Name() + "/SetLimits", Limit: lowered}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var recorded, observed []ratelimit.Event
			var result func() error
			var l *ratelimit.Limiter
			left := func() int64 {
				d, err := l.TakeN(t.Context(), "key", 0)
				require.NoError(t, err)
				return d.Remaining
			}
			l = ratelimittest.New(t, ratelimit.Options{
				Limits:  []ratelimit.Limit{hourly},
				Observe: func(_ context.Context, e ratelimit.Event) { observed = append(observed, e) },
				Audit: auditor(func(got context.Context, e ratelimit.Event) error {
					require.Equal(t, ctx, got)
					require.EqualValues(t, 1, left(), "it has not taken effect yet")
					recorded = append(recorded, e)
					return result()
				}),
			})
			_, err := l.TakeN(t.Context(), "key", 2)
			require.NoError(t, err)
			for _, result = range []func() error{
				func() error { return errors.New("disk full") },
				func() error { panic("disk full") },
			} {
				err := tc.call(l)
				require.ErrorContains(t, err, "disk full")
				require.ErrorContains(t, err, "nothing was changed")
				require.EqualValues(t, 1, left())
				require.Empty(t, observed)
			}
			result = func() error { return nil }
			require.NoError(t, tc.call(l))
			require.Equal(t, tc.left, left())
			require.Len(t, recorded, 3)
			require.Len(t, observed, 1)
			for _, e := range []ratelimit.Event{recorded[2], observed[0]} {
				require.False(t, e.Time.IsZero())
				require.NotEmpty(t, e.Limiter)
				want := tc.want
				if want.Policy != "" {
					want.Policy = e.Policy
					require.NotEmpty(t, e.Policy)
				}
				want.Time, want.Limiter, want.Actor, want.Reason = e.Time, e.Limiter, "alice", "ticket 7"
				require.Equal(t, want, e)
			}
		})
	}
}

// What no operator has caused is not recorded: refunds without an actor, limits that stay as
// they are, and calls that are refused.
func TestWhatIsNotRecorded(t *testing.T) {
	recorded := 0
	hourly := ratelimit.FixedWindow(3, time.Hour)
	l := ratelimittest.New(t, ratelimit.Options{Limits: []ratelimit.Limit{hourly}, Audit: auditor(func(context.Context, ratelimit.Event) error {
		recorded++
		return nil
	})})
	ctx := ratelimit.WithActor(t.Context(), "alice")
	require.NoError(t, l.Refund(t.Context(), "key", 1))
	require.NoError(t, l.Refund(ctx, "key", 0))
	require.NoError(t, l.SetLimitsContext(ctx, hourly))
	require.Error(t, l.SetLimitsContext(ctx, ratelimit.Limit{}))
	require.Error(t, l.Block(ctx, "key", -1))
	require.Error(t, l.Reset(ctx, ""))
	done, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, l.Reset(done, "key"), context.Canceled)
	_, err := l.Take(ctx, "key")
	require.NoError(t, err)
	require.Zero(t, recorded)
}
