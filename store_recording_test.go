package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// recordingBackend is a remote store that notes what it gets for the records of its calls.
type recordingBackend struct {
	*remoteBackend
	records Recording
	err     error
	got     []string
}

func (s *recordingBackend) Records(Auditor) (Recording, error) { return s.records, s.err }

func (s *recordingBackend) note(ctx context.Context, call, key string) {
	if r, ok := RecordableFrom(ctx); ok {
		s.got = append(s.got, fmt.Sprintf("%s %s: %s %q by %q: %q %v %v", call, key, r.Event.Limiter, r.Event.Key, r.Event.Actor, r.Event.Reason, r.Policies, r.Event.Kind))
	}
}

func (s *recordingBackend) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	s.note(ctx, "take", key)
	return s.remoteBackend.Take(ctx, key, n, limits, results)
}

func (s *recordingBackend) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	s.note(ctx, "adjust", key)
	return s.remoteBackend.Adjust(ctx, key, n, at, limits)
}

func (s *recordingBackend) Reset(ctx context.Context, key string, limits []Limit) error {
	s.note(ctx, "reset", key)
	return s.remoteBackend.Reset(ctx, key, limits)
}

func (s *recordingBackend) Block(ctx context.Context, key string, b Block, limits []Limit) error {
	s.note(ctx, "block", key)
	return s.remoteBackend.Block(ctx, key, b, limits)
}

// A RecordingStore gets what the records of calls by hand need. The auditor does not get them,
// and observers learn who has recorded them. A change of limits goes to the auditor.
func TestRecordingStoreRecordsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &recordingBackend{remoteBackend: &remoteBackend{Store: memory(t, "backend")}, records: RecordsCalls}
		audited, observed := "", ""
		trail := auditOf(func(_ context.Context, e Event) error { audited += e.Kind.String() + " "; return nil })
		l := processOf(t, backend, Options{
			Limits: []Limit{FixedWindow(3, time.Hour)}, Audit: trail,
			Observe: func(ctx context.Context, e Event) { observed += fmt.Sprintf("%v %v, ", e.Kind, RecordedBy(ctx) != nil) },
		})
		by := WithReason(WithActor(t.Context(), "alice"), "ticket 7")
		took(t, l, "k", 3)
		require.False(t, decide(t, l, "k", 1).Allowed)
		require.NoError(t, l.Refund(t.Context(), "k", 1))
		require.NoError(t, l.Refund(by, "k", 1))
		require.NoError(t, l.Block(by, "k", time.Minute))
		require.NoError(t, l.Reset(by, "k"))
		require.NoError(t, l.SetLimitsContext(by, FixedWindow(4, time.Hour)))
		require.Equal(t, []string{
			`adjust k: l "k" by "alice": "ticket 7" [] refunded`, `block k: l "k" by "alice": "ticket 7" [] blocked`, `reset k: l "k" by "alice": "ticket 7" [] reset`,
		}, backend.got)
		require.Equal(t, "limits-changed ", audited)
		require.Equal(t, "denied false, refunded true, blocked true, reset true, limits-changed false, ", observed)
		done, cancel := context.WithCancel(by)
		cancel()
		require.ErrorIs(t, l.Reset(done, "k"), context.Canceled)
		require.Len(t, backend.got, 3)
	})
}

type auditOf func(context.Context, Event) error

func (a auditOf) Record(ctx context.Context, e Event) error { return a(ctx, e) }

// While a RecordingStore fails, calls by hand fail and change nothing in this process, and
// nothing is sent later. Without records they do.
func TestRecordingStoreThatFails(t *testing.T) {
	for _, records := range []Recording{RecordsNothing, RecordsCalls} {
		for _, m := range []mode{refused, silent} {
			if records == RecordsNothing && m == silent {
				continue
			}
			t.Run(fmt.Sprint(records, m), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					backend := &recordingBackend{remoteBackend: &remoteBackend{Store: memory(t, "backend")}, records: records}
					limit := FixedWindow(3, time.Hour)
					l := processOf(t, backend, Options{Limits: []Limit{limit}, Audit: auditOf(func(context.Context, Event) error { return nil })})
					by := WithActor(t.Context(), "alice")
					took(t, l, "full", 3)
					took(t, l, "used", 1)
					startOutage(t, backend.remoteBackend, l, m)
					isRecorded := records == RecordsCalls
					require.Equal(t, isRecorded, l.Block(by, "used", time.Hour) != nil)
					require.Equal(t, isRecorded, decide(t, l, "used", 1).Allowed)
					require.Error(t, l.Reset(by, "full"))
					require.Equal(t, !isRecorded, decide(t, l, "full", 1).Allowed)
					require.Equal(t, isRecorded, l.Refund(by, "refunded", 1) != nil)
					backend.set(up)
					time.Sleep(time.Minute)
					decide(t, l, "another", 1)
					time.Sleep(time.Minute)
					require.Equal(t, !isRecorded, backend.blocked(t, "used", limit) > 0)
					require.False(t, isRecorded && backend.remaining(t, "full", limit) > 0)
				})
			})
		}
	}
}

// With RecordsDecisions the store is asked about each decision, and gets what its record needs.
func TestRecordingStoreRecordsDecisions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &recordingBackend{remoteBackend: &remoteBackend{Store: memory(t, "backend")}, records: RecordsDecisions}
		limits := []Limit{FixedWindow(3, time.Hour), FixedWindow(5, 24*time.Hour).Named("daily")}
		observed := 0
		l := processOf(t, backend, Options{Limits: limits, OnFailure: FailClosed, Observe: func(ctx context.Context, e Event) {
			if e.Kind == EventDenied {
				require.Equal(t, Auditor(nil), RecordedBy(ctx)) // there is none
				observed++
			}
		}})
		for range 10 {
			_, err := l.Take(t.Context(), "k")
			require.NoError(t, err)
		}
		require.Equal(t, 7, observed)
		require.Len(t, backend.got, 10)
		require.Equal(t, `take k: l "" by "": "" [l-1h daily] EventKind(0)`, backend.got[9])
		require.NoError(t, l.Refund(t.Context(), "k", 1))
		require.Equal(t, `adjust k: l "" by "": "" [] EventKind(0)`, backend.got[10])
		_, err := l.TakeN(t.Context(), "k", 0)
		require.NoError(t, err)
		require.Len(t, backend.got, 11, "a look has no record")

		// Nothing is decided without the store, and nothing is owed.
		backend.set(refused)
		for range 20 {
			_, err := l.Take(t.Context(), "k")
			require.Error(t, err)
		}
		backend.set(up)
		time.Sleep(time.Minute)
		d, err := l.Take(t.Context(), "k")
		require.NoError(t, err)
		require.True(t, d.Allowed)
	})
}

// New returns the error of Records, and refuses options with which the process would decide.
func TestRecordingStoreRefuses(t *testing.T) {
	five := FixedWindow(5, time.Hour)
	for _, tc := range []struct {
		want string
		set  func(*Options, *recordingBackend)
	}{
		{"Options.Audit: it is odd", func(_ *Options, b *recordingBackend) { b.err = errors.New("it is odd") }},
		{"set FailClosed", func(o *Options, _ *recordingBackend) { o.OnFailure = FallbackLocal }},
		{"Options.Lease is 1s", func(o *Options, _ *recordingBackend) { o.Lease = time.Second }},
		{"Options.MaxWait is 1s", func(o *Options, _ *recordingBackend) { o.MaxWait = time.Second }},
		{"Options.Shadow is set", func(o *Options, _ *recordingBackend) { o.Shadow = true }},
		{"limit unlimited decides without the store", func(o *Options, _ *recordingBackend) { o.Limits = []Limit{Unlimited} }},
		{"implement RecordingStore in the wrapper", func(o *Options, b *recordingBackend) { o.Store = &wrapper{b} }},
	} {
		backend := &recordingBackend{remoteBackend: &remoteBackend{Store: memory(t, "backend")}, records: RecordsDecisions}
		opts := Options{Limits: []Limit{five}, Store: backend, OnFailure: FailClosed}
		tc.set(&opts, backend)
		_, err := new(Registry).New("l", opts)
		require.ErrorContains(t, err, tc.want)
	}
}

// An observer that acts on another limiter does not make its events recorded ones.
func TestObserverActsOnAnotherLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var observed []string
		note := func(ctx context.Context, e Event) {
			observed = append(observed, fmt.Sprintf("%s %v %v", e.Limiter, e.Kind, RecordedBy(ctx) != nil))
		}
		other := processOf(t, &remoteBackend{Store: memory(t, "other")}, Options{Limits: []Limit{FixedWindow(3, time.Hour)}, Observe: note})
		backend := &recordingBackend{remoteBackend: &remoteBackend{Store: memory(t, "backend")}, records: RecordsCalls}
		l := processOf(t, backend, Options{
			Limits: []Limit{FixedWindow(3, time.Hour)}, Audit: auditOf(func(context.Context, Event) error { return nil }),
			Observe: func(ctx context.Context, e Event) {
				note(ctx, e)
				if e.Kind == EventBlocked {
					require.NoError(t, other.Block(ctx, "k", time.Minute))
				}
			},
		})
		require.NoError(t, l.Block(t.Context(), "k", time.Minute))
		require.Len(t, observed, 2)
		require.Contains(t, observed[0], "blocked true")
		require.Contains(t, observed[1], "blocked false")
	})
}

// Wait could deny a call without asking the store, so it is an error if each decision has a
// record.
func TestWaitIsRefusedWithRecordedDecisions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &recordingBackend{remoteBackend: &remoteBackend{Store: memory(t, "backend")}, records: RecordsDecisions}
		l := processOf(t, backend, Options{
			Limits: []Limit{FixedWindow(3, time.Hour)}, Audit: auditOf(func(context.Context, Event) error { return nil }), OnFailure: FailClosed,
		})
		require.ErrorContains(t, l.Wait(t.Context(), "k", 1), "use Take")
		require.Empty(t, backend.got)
	})
}
