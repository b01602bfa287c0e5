package batch_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/batch"
)

// This file has the tests of when calls are sent and which of them share a
// round trip: regular, extra and inline ones; posted calls; Close and Wait; and
// one test that does everything at random.

// A call starts a round trip if one may start. Calls that wait share the next
// one.
func TestWaitingCallsShareARoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(2, 2, 4)
		one, two := s.do(1, 0), s.do(2, 0)
		require.Equal(t, [][]int{{1}, {2}}, s.sent())
		var waiting []*caller
		for value := 3; value <= 9; value++ {
			waiting = append(waiting, s.do(value, 0))
		}
		one.requireDone(t, latency, nil)
		two.requireDone(t, latency, nil)
		require.Equal(t, -1, one.call.Value)
		synctest.Wait()
		require.ElementsMatch(t, [][]int{{1}, {2}, {3, 4, 5, 6}, {7, 8, 9}}, s.sent(), "in order of arrival, at most MaxCalls in each")
		for _, c := range waiting {
			c.requireDone(t, 2*latency, nil)
			require.Negative(t, c.call.Value)
		}
		s.do(10, 0).requireDone(t, latency, nil)
		require.Equal(t, 2, s.maxInFlight)
		require.Empty(t, s.carriedOutForNobody())
	})
}

// Calls that arrive while a round trip hands out its replies wait for the next batch of this
// round trip, and start no other one, although one might be in flight beside it. If they are more
// than MaxCalls, another one takes the rest.
func TestCallsJoinARoundTripThatIsAboutToTakeCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(2, 2, 4)
		var more []*caller
		s.OnDone = func([]*call) {
			for value := 2; len(more) < 6; value++ {
				more = append(more, s.do(value, 0))
			}
		}
		first := s.do(1, 0)
		first.requireDone(t, latency, nil)
		for _, c := range more {
			c.requireDone(t, latency, nil)
		}
		s.Wait()
		require.ElementsMatch(t, [][]int{{1}, {2, 3, 4, 5}, {6, 7}}, s.sent())
	})
}

// A round trip that is about to take calls, but is held up, becomes stalled like one in flight: other
// calls do not wait for it.
func TestRoundTripThatTakesNoCallsIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(2, 2, 4)
		resume := make(chan struct{})
		held := false
		s.OnDone = func([]*call) {
			if !held {
				held = true
				<-resume
			}
		}
		first := s.do(1, 0)
		time.Sleep(2 * latency)
		s.do(2, time.Minute).requireDone(t, time.Minute, batch.ErrNotSent)
		s.do(3, 0).requireDone(t, latency, nil)
		close(resume)
		first.requireDone(t, 3*latency+time.Minute, nil)
		s.Wait()
		require.Equal(t, [][]int{{1}, {3}}, s.sent())
	})
}

// A call whose context is cancelled already is not sent.
func TestCancelledContextSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.Equal(t, context.Canceled, s.Do(ctx, 0, time.Time{}, &call{Value: 1}, false))
		s.Wait()
		require.Empty(t, s.sent())
	})
}

// A call can be used again and again after a Do that returned nil: with and
// without a deadline, inline and not, in any order.
func TestCallCanBeUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		c := &call{}
		for i := range 10 {
			var deadline time.Time
			if i%3 > 0 {
				deadline = time.Now().Add(latency + time.Duration(i%3))
			}
			c.Value = i + 1
			if i%2 == 0 {
				require.NoError(t, s.Do(t.Context(), 0, deadline, c, false))
				synctest.Wait() // the round trip ends after its calls
			} else {
				require.NoError(t, s.Do(t.Context(), 0, time.Now().Add(time.Duration(i)*latency), c, true))
				require.True(t, s.inline[i])
			}
			require.Equal(t, -i-1, c.Value)
		}
		s.Wait()
	})
}

// An inline call is sent on its caller's goroutine if a round trip may start.
// Otherwise it waits like any other call. Calls that have arrived in the
// meantime are sent when it ends.
func TestInlineCallNeedsNoOtherGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		s.do(1, 0).requireDone(t, latency, nil)
		s.Wait()
		start, c := time.Now(), &call{Value: 2}
		go func() {
			time.Sleep(time.Minute)
			require.NoError(t, s.Do(t.Context(), 0, time.Now().Add(2*latency), &call{Value: 3}, true))
		}()
		require.NoError(t, s.Do(t.Context(), 0, start.Add(latency), c, true))
		require.Equal(t, latency, time.Since(start))
		require.Equal(t, -2, c.Value)
		synctest.Wait()
		require.Equal(t, [][]int{{1}, {2}, {3}}, s.sent(), "the waiting call was sent")
		require.Equal(t, []bool{false, true, false}, s.inline, "no round trip could start for the last call")
		time.Sleep(2 * latency)
		s.Wait()
	})
}

// If another call waits already, that one is sent first.
func TestInlineCallDoesNotJumpTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 1)
		one, two := s.do(1, 0), s.do(2, 0)
		require.NoError(t, s.Do(t.Context(), 0, time.Now().Add(4*latency), &call{Value: 3}, true))
		require.Equal(t, [][]int{{1}, {2}, {3}}, s.sent())
		one.requireDone(t, latency, nil)
		two.requireDone(t, 2*latency, nil)
	})
}

// If round trips take longer than MinInterval, a call that arrives need not wait
// for one of them to end. Extra round trips end when there is less to do.
func TestHighLatencyStartsExtraRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		s.Extra, s.MinInterval = 2, 10*time.Minute
		first := s.do(1, 0)
		soon := s.do(2, 0) // waits, because it is too soon for an extra round trip
		time.Sleep(s.MinInterval - 1)
		still := s.do(3, 0)
		time.Sleep(time.Nanosecond)
		trigger := s.do(4, 0)
		require.Equal(t, [][]int{{1}, {2, 3, 4}}, s.sent(), "all waiting calls are taken along")
		time.Sleep(s.MinInterval)
		third := s.do(5, 0)
		require.Equal(t, [][]int{{1}, {2, 3, 4}, {5}}, s.sent())
		time.Sleep(s.MinInterval)
		last := s.do(6, 0) // waits, because there are no more than three
		first.requireDone(t, latency, nil)
		last.requireDone(t, latency-3*s.MinInterval+latency, nil)
		soon.requireDone(t, s.MinInterval+latency, nil)
		still.requireDone(t, 1+latency, nil)
		trigger.requireDone(t, latency, nil)
		third.requireDone(t, latency, nil)
		s.Wait()
		require.Equal(t, [][]int{{1}, {2, 3, 4}, {5}, {6}}, s.sent())
		require.Equal(t, 3, s.maxInFlight)
	})
}

// If two round trips end shortly after each other, the second one does not take
// along the calls that have arrived since: another round trip is in flight, and
// there is no use for an extra one.
func TestExtraRoundTripEndsWhenItIsOfNoUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		s.Extra, s.MinInterval = 1, 10*time.Minute
		one := s.do(1, 0)
		time.Sleep(s.MinInterval)
		two := s.do(50_002, 0)
		three := s.do(3, 0) // waits for the first round trip to end
		one.requireDone(t, latency, nil)
		synctest.Wait() // its round trip takes the next call
		four := s.do(4, 0)
		two.requireDone(t, latency-5*time.Minute, nil)
		synctest.Wait()
		require.Equal(t, [][]int{{1}, {50_002}, {3}}, s.sent())
		three.requireDone(t, latency-s.MinInterval+latency, nil)
		four.requireDone(t, 2*latency, nil)
		s.Wait()
		require.Equal(t, 2, s.maxInFlight)
	})
}

// While a round trip of Crowd calls is in flight, other calls wait for its end, also if
// another round trip ends before. One of fewer calls holds up nobody.
func TestCrowdedRoundTripIsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(2, 1, 9)
		s.Crowd = 3
		s.do(1, 0)
		time.Sleep(2 * time.Minute)
		s.do(2, 0)
		for value := 3; value <= 5; value++ {
			s.do(value, 0)
		}
		time.Sleep(latency - time.Minute) // the first one has ended a minute ago
		six := s.do(6, 0)
		time.Sleep(2 * time.Minute) // the second one has ended a minute ago
		seven := s.do(7, 0)
		require.Equal(t, [][]int{{1}, {2}, {3, 4, 5}}, s.sent())
		six.requireDone(t, latency-time.Minute+latency, nil)
		seven.requireDone(t, latency-3*time.Minute+latency, nil)
		s.do(8, 0)
		s.do(9, 0)
		require.Equal(t, [][]int{{1}, {2}, {3, 4, 5}, {6, 7}, {8}, {9}}, s.sent())
		s.Wait()
	})
}

// Calls need not wait for a crowded round trip that takes longer than MinInterval, nor for one that stalls.
func TestCrowdedRoundTripCanBeReplaced(t *testing.T) {
	for name, row := range map[string]struct {
		extra int
		wait  time.Duration // of a call that arrives 10 minutes after the crowded round trip has started
	}{
		"extra":   {extra: 1, wait: 20 * time.Minute}, // another call arrives after MinInterval
		"stalled": {wait: 25 * time.Minute},           // the deadline of a call passes
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(1, 1, 9)
				s.Crowd, s.Extra, s.MinInterval = 2, row.extra, 25*time.Minute
				s.do(1, 0)
				s.do(3, latency+35*time.Minute)
				s.do(4, 0)
				time.Sleep(latency + 10*time.Minute)
				five := s.do(5, 0)
				time.Sleep(20 * time.Minute)
				s.do(6, 0)
				five.requireDone(t, row.wait+latency, nil)
				s.Wait()
				require.Equal(t, [][]int{{1}, {3, 4}, {5, 6}}, s.sent())
			})
		})
	}
}

// An extra round trip can be inline, too.
func TestExtraRoundTripCanBeInline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		s.Extra, s.MinInterval = 1, time.Minute
		one := s.do(1, 0)
		time.Sleep(time.Minute)
		require.NoError(t, s.Do(t.Context(), s.Now(), time.Now().Add(2*latency), &call{Value: 2}, true))
		one.requireDone(t, latency, nil)
		require.Equal(t, []bool{false, true}, s.inline)
	})
}

// Close makes later calls fail, but Post still works until it returns.
func TestCloseRefusesCallsButNotPosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		reported := 0
		s.OnAbandoned = func(*call) {
			if reported++; reported == 1 {
				s.Post(&call{Value: 2})
			}
		}
		c := s.do(1, 0)
		c.cancel()
		c.requireDone(t, 0, context.Canceled)
		s.Close()
		require.Equal(t, [][]int{{1}, {2}}, s.sent())
		require.Equal(t, batch.ErrClosed, s.Do(t.Context(), 0, time.Time{}, &call{}, true))
		require.Equal(t, batch.ErrClosed, s.Do(t.Context(), 0, time.Time{}, &call{}, false))
		s.Close()
	})
}

// Wait waits for round trips that no caller waits for.
func TestWaitIncludesStalledRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 2, 9)
		s.Wait()
		start := time.Now()
		s.do(1, time.Minute).requireDone(t, time.Minute, batch.ErrUnknown)
		s.do(2, time.Minute).requireDone(t, time.Minute, batch.ErrUnknown)
		s.Wait()
		require.Equal(t, latency+time.Minute, time.Since(start))
		require.Equal(t, []int{1, 2}, s.carriedOutForNobody())
	})
}

// Each call that was carried out is reported exactly once, to its caller or to
// OnAbandoned, and never are more round trips in flight than the settings allow.
func TestEachCallIsReportedOnce(t *testing.T) {
	for _, crowd := range []int{0, 2} {
		t.Run(fmt.Sprintf("Crowd=%d", crowd), func(t *testing.T) { testEachCallIsReportedOnce(t, crowd) })
	}
}

func testEachCallIsReportedOnce(t *testing.T, crowd int) {
	var q batch.Queue[int]
	q.Crowd = crowd
	var carriedOut, abandoned, inFlight atomic.Int64
	q.MaxInFlight, q.MaxStalled, q.MaxCalls = 2, 3, 8
	q.Send = func(_ context.Context, calls []*call) {
		if n := inFlight.Add(1); n > 5 {
			t.Errorf("%d round trips in flight", n)
		}
		carriedOut.Add(int64(len(calls)))
		for _, c := range calls {
			c.Value++
		}
		inFlight.Add(-1)
	}
	q.OnAbandoned, q.OnDone = func(*call) { abandoned.Add(1) }, func([]*call) {}
	var succeeded, failed atomic.Int64
	var callers sync.WaitGroup
	for range 16 {
		callers.Go(func() {
			c := new(call)
			for range 2000 {
				before := c.Value
				ctx, cancel := context.WithCancel(context.Background())
				deadline, inline := time.Now().Add(time.Minute), false
				switch rand.IntN(8) {
				case 0:
					deadline = time.Now().Add(time.Duration(rand.IntN(20000)))
				case 1:
					go cancel()
				case 2:
					deadline = time.Time{}
				case 3:
					inline = true
				case 4:
					inline = true
					go cancel()
				}
				err := q.Do(ctx, 0, deadline, c, inline)
				cancel()
				if err == nil {
					succeeded.Add(1)
					if c.Value != before+1 {
						t.Errorf("%d became %d", before, c.Value)
					}
					continue
				}
				failed.Add(1)
				if !errors.Is(err, batch.ErrUnknown) && !errors.Is(err, batch.ErrNotSent) && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				c = new(call)
			}
		})
	}
	callers.Wait()
	q.Wait()
	require.Equal(t, carriedOut.Load(), succeeded.Load()+abandoned.Load())
	require.EqualValues(t, 16*2000, succeeded.Load()+failed.Load())
}
