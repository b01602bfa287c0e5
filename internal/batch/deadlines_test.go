package batch_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/batch"
)

// This file has the tests of callers that stop waiting, and of stalled round
// trips.

// A caller can stop waiting before its call is sent, and the call never is.
func TestAbandonedWaitingCallIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		ahead := s.do(1, 0)
		first, middle, last := s.do(2, 0), s.do(3, time.Minute), s.do(4, 0)
		middle.requireDone(t, time.Minute, batch.ErrNotSent)
		last.cancel()
		last.requireDone(t, time.Minute, context.Canceled)
		patient := s.do(5, 0)
		first.cancel()
		first.requireDone(t, time.Minute, context.Canceled)
		ahead.requireDone(t, latency, nil)
		patient.requireDone(t, 2*latency-time.Minute, nil)
		s.Wait()
		require.Equal(t, [][]int{{1}, {5}}, s.sent())
		require.Empty(t, s.carriedOutForNobody(), "nothing was carried out for them")
	})
}

// A caller can stop waiting after its call was sent. OnAbandoned gets the call
// when the reply is there, and knows why the caller is gone.
func TestAbandonedCallInFlightIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		ahead := s.do(1, 0)
		cancelled, overdue, patient := s.do(2, 0), s.do(3, latency+time.Minute), s.do(4, 0)
		ahead.requireDone(t, latency, nil)
		synctest.Wait()
		cancelled.cancel()
		cancelled.requireDone(t, latency, context.Canceled)
		overdue.requireDone(t, latency+time.Minute, batch.ErrUnknown)
		require.Empty(t, s.carriedOutForNobody(), "nothing is known yet")
		patient.requireDone(t, 2*latency, nil)
		s.Wait()
		require.Equal(t, []int{2, 3}, s.carriedOutForNobody())
		require.Equal(t, []bool{true, false}, s.cancelled)
		require.Equal(t, []int{1, 4}, s.answered)
	})
}

// The deadline of the context counts as the deadline of the call, not as a
// client that has disconnected: the caller may decide without a reply.
func TestContextDeadlineIsNotCancellation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.Equal(t, batch.ErrUnknown, s.Do(ctx, 0, time.Time{}, &call{Value: 1}, false))
		s.Wait()
		require.Equal(t, []bool{false}, s.cancelled)
	})
}

// An inline caller whose context is cancelled waits for the reply, then gets
// the context's error. What was carried out is reported to OnAbandoned.
func TestCancelledInlineCallWaitsForTheReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		start := time.Now()
		require.Equal(t, context.Canceled, s.Do(ctx, 0, start.Add(2*latency), &call{Value: 1}, true))
		require.Equal(t, latency, time.Since(start), "Do waits for the reply")
		require.Equal(t, []int{1}, s.carriedOutForNobody())
		require.Equal(t, []bool{true}, s.cancelled)
	})
}

// Each of many callers stops waiting at its own deadline, and at most 200 µs
// later.
func TestManyDeadlinesAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		first := s.do(1, time.Minute)
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() {
				start, timeout := time.Now(), time.Minute+time.Duration(i*7919%1000)*50*time.Microsecond
				require.Equal(t, batch.ErrNotSent, s.Do(t.Context(), 0, start.Add(timeout), &call{Value: 2 + i}, i%2 == 0))
				overrun := time.Since(start) - timeout
				require.True(t, overrun >= 0 && overrun <= 200*time.Microsecond, "%v", overrun)
			})
		}
		all.Wait()
		first.requireDone(t, time.Minute, batch.ErrUnknown)
		s.Wait()
		require.Equal(t, [][]int{{1}}, s.sent())
	})
}

// Stalled round trips do not hold up other calls, but at most MaxStalled of them
// are replaced.
func TestStalledRoundTripsAreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(2, 3, 9)
		for value := 1; value <= 5; value++ {
			s.do(value, time.Minute).requireDone(t, time.Minute, batch.ErrUnknown)
		}
		require.Len(t, s.sent(), 5)
		for value := 6; value <= 1000; value++ {
			s.do(value, time.Millisecond).requireDone(t, time.Millisecond, batch.ErrNotSent)
		}
		require.Len(t, s.sent(), 5)
		waiting := s.do(1001, 0)
		// It arrived after 5 minutes and 995 ms. It was sent when the fourth
		// round trip ended, which had started after 3 minutes and was the first
		// that was not stalled, because three others were.
		waiting.requireDone(t, 3*time.Minute+latency+latency-5*time.Minute-995*time.Millisecond, nil)
		s.Wait()
		require.Equal(t, 5, s.maxInFlight)
		require.Equal(t, []int{1, 2, 3, 4, 5}, s.carriedOutForNobody())
		require.Len(t, s.sent(), 6)

		// After that, everything is as it was before.
		s.maxInFlight = 0
		a, b, c := s.do(1, 0), s.do(2, 0), s.do(3, 0)
		a.requireDone(t, latency, nil)
		b.requireDone(t, latency, nil)
		c.requireDone(t, 2*latency, nil)
		require.Equal(t, 2, s.maxInFlight)
	})
}

// A caller that cancels does not make its round trip stalled: that is no sign of
// a server that hangs.
func TestCancellationStallsNoRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 5, 9)
		c := s.do(1, 0)
		c.cancel()
		c.requireDone(t, 0, context.Canceled)
		s.do(2, 0).requireDone(t, 2*latency, nil)
		require.Equal(t, 1, s.maxInFlight)
	})
}

// A caller whose call was never sent gives up on the round trips that it has
// waited for. There may be no other caller that can: here, no caller waits for
// the posted call.
func TestWaitingCallerGivesUpOnRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		s.Post(&call{Value: 1})
		synctest.Wait()
		s.do(2, time.Minute).requireDone(t, time.Minute, batch.ErrNotSent)
		next := s.do(3, 0)
		next.requireDone(t, latency, nil)
		s.Wait()
		require.Equal(t, [][]int{{1}, {3}}, s.sent())
	})
}

// For each stalled round trip another one starts, if calls wait.
func TestEachStalledRoundTripIsReplacedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(2, 2, 1)
		first, second := s.do(1, 0), s.do(2, 0)
		s.do(3, time.Minute).requireDone(t, time.Minute, batch.ErrNotSent)
		third, fourth := s.do(4, 0), s.do(5, 0)
		first.requireDone(t, latency, nil)
		second.requireDone(t, latency, nil)
		third.requireDone(t, latency, nil)
		fourth.requireDone(t, latency, nil)

		one, two := s.do(6, 0), s.do(7, 0)
		waiting := []*caller{s.do(8, 0), s.do(9, 0)}
		impatient := s.do(10, time.Minute)
		impatient.requireDone(t, time.Minute, batch.ErrNotSent)
		synctest.Wait()
		require.Len(t, s.sent(), 8, "both calls that still wait are sent")
		for _, c := range waiting {
			c.requireDone(t, time.Minute+latency, nil)
		}
		one.requireDone(t, latency, nil)
		two.requireDone(t, latency, nil)
		s.Wait()
	})
}
