package batch_test

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/batch"
)

// This file has the tests of what Send gets, and of hooks in Send that panic or
// end their goroutine.

// The context of a batch has the latest deadline of its calls, and the values
// of the caller's context if there is one caller. It is never done, unless the
// call is inline.
func TestContextOfABatch(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		var seen []context.Context
		q := batch.Queue[int]{
			Settings:    batch.Settings{MaxInFlight: 1, MaxStalled: 1, MaxCalls: 9},
			OnDone:      func([]*call) {},
			OnAbandoned: func(*call) {},
		}
		q.Send = func(ctx context.Context, _ []*call) {
			seen = append(seen, ctx)
			time.Sleep(latency)
		}
		ctx := context.WithValue(t.Context(), key{}, "caller")
		now := time.Now()
		for _, deadline := range []time.Time{{}, now.Add(3 * latency), now.Add(4 * latency), now.Add(3 * latency)} {
			go q.Do(ctx, 0, deadline, &call{}, false)
			synctest.Wait()
		}
		time.Sleep(2 * latency)
		synctest.Wait()
		require.Len(t, seen, 2)
		deadline, ok := seen[0].Deadline()
		require.False(t, ok, "%v", deadline)
		require.Equal(t, "caller", seen[0].Value(key{}))
		deadline, ok = seen[1].Deadline()
		require.True(t, ok)
		require.Equal(t, now.Add(4*latency), deadline)
		require.Nil(t, seen[1].Value(key{}))
		for _, c := range seen {
			require.Nil(t, c.Done())
			require.NoError(t, c.Err())
		}
		q.Wait()

		q.Send = func(ctx context.Context, _ []*call) {
			deadline, _ := ctx.Deadline()
			require.Equal(t, time.Now().Add(latency), deadline)
			require.Equal(t, "caller", ctx.Value(key{}))
			require.NoError(t, ctx.Err())
			<-ctx.Done()
			require.Equal(t, context.DeadlineExceeded, ctx.Err())
		}
		c := &call{}
		for range 3 { // a call can be used again after its deadline was reached
			start := time.Now()
			require.NoError(t, q.Do(ctx, 0, start.Add(latency), c, true))
			require.Equal(t, latency, time.Since(start))
		}
	})
}

// A panic on a round trip's goroutine, which would end the process, is passed
// to OnPanic for each call, and the queue goes on.
func TestPanicIsReportedForEachCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		works := s.Send
		s.Send = func(context.Context, []*call) { panic("a bug") }
		s.OnPanic = func(c *call, with any) {
			require.Equal(t, "a bug", with)
			c.Value = 100 * c.Value
		}
		c := s.do(1, 0)
		c.requireDone(t, 0, nil)
		require.Equal(t, 100, c.call.Value)
		s.Wait()
		s.Send = works
		s.do(2, 0).requireDone(t, latency, nil)
	})
}

// A panic in an inline call goes on to its caller, where net/http would recover
// it, and leaves the queue in order.
func TestPanicInlineGoesToTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		send := s.Send
		s.Send = func(context.Context, []*call) { panic("hook") }
		for range 3 {
			require.PanicsWithValue(t, "hook", func() { s.Do(t.Context(), 0, time.Now().Add(latency), &call{}, true) })
		}
		s.Send = send
		s.do(1, 0).requireDone(t, latency, nil)
		s.Wait()
	})
}

// A hook that ends the goroutine ends its round trip alone.
func TestGoexitEndsOneRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		works := s.Send
		s.Send = func(context.Context, []*call) { runtime.Goexit() }
		s.do(1, 0).requireDone(t, 0, batch.ErrUnknown)
		s.Send = works
		s.do(2, 0).requireDone(t, latency, nil)
		s.Close()
	})
}
