package audit_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
	"github.com/stretchr/testify/require"
)

// A recordingStore says that it records calls by hand.
type recordingStore struct {
	*ratelimit.MemoryStore
	calls int // with a record
}

func (s *recordingStore) Fault(error) ratelimit.Fault { return ratelimit.FaultUnknown }

func (s *recordingStore) Records(ratelimit.Auditor) (ratelimit.Recording, error) {
	return ratelimit.RecordsCalls, nil
}

func (s *recordingStore) Reset(ctx context.Context, key string, limits []ratelimit.Limit) error {
	if with, ok := ratelimit.RecordableFrom(ctx); ok {
		r, err := with.Auditor.(*audit.Trail).RecordOf(ctx, with.Event)
		if err != nil || r.Kind != "reset" || r.Key != key || r.Actor != "alice" || r.Outcome != "" {
			return err
		}
		s.calls++
	}
	return s.MemoryStore.Reset(ctx, key, limits)
}

// What a store has recorded is not recorded a second time, and a Reset still ends the episode.
// Another trail records it.
func TestRecordedByTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trail, sink := start(t, func(o *audit.Options) { o.PlainKeys = true })
		other, otherSink := start(t, nil)
		memory, err := ratelimit.NewMemoryStore("recorded", ratelimit.MemoryOptions{})
		require.NoError(t, err)
		store := &recordingStore{MemoryStore: memory}
		l := ratelimittest.New(t, ratelimit.Options{
			Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)}, Store: store, Audit: trail, OnFailure: ratelimit.FailClosed,
			Observe: func(ctx context.Context, e ratelimit.Event) { trail.Observe(ctx, e); other.Observe(ctx, e) },
		})
		for range 3 {
			_, err := l.Take(t.Context(), "key")
			require.NoError(t, err)
		}
		require.NoError(t, l.Reset(ratelimit.WithActor(t.Context(), "alice"), "key"))
		require.Equal(t, 1, store.calls)
		require.NoError(t, trail.Close())
		require.NoError(t, other.Close())
		_, text := sink.all()
		require.Equal(t, "denied 0\nreleased 2\n", text)
		_, text = otherSink.all()
		require.Equal(t, "denied 0\nresetdone 0\nreleased 2\n", text)
		_, err = trail.RecordOf(t.Context(), ratelimit.Event{})
		require.ErrorContains(t, err, "closed")
	})
}

// Options.Request is called for each record of an event, and not for the other denials of an
// episode.
func TestRequestIsAskedForRecordsOnly(t *testing.T) {
	calls := 0
	var trail *audit.Trail
	trail, sink := start(t, func(o *audit.Options) {
		o.Request = func(ctx context.Context) (route, id string) {
			calls++
			trail.Dropped() // no lock is held
			return "POST /login", "r-1"
		}
	})
	for range 1000 {
		trail.Observe(t.Context(), denial("login", "203.0.113.7"))
	}
	require.Equal(t, 1, calls)
	require.NoError(t, trail.Close())
	records, _ := sink.all()
	require.Equal(t, "POST /login", records[0].Route)
}
