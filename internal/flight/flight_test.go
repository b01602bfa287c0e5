package flight_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/flight"
)

type job = flight.Job[int]

// server is what a queue sends to. Its round trips take an hour, but a minute less for each 10,000
// in its first value.
type server struct {
	flight.Queue[int]

	mu      sync.Mutex
	batches [][]int
	landed  []int // what was carried out for callers who waited
	left    []int // what was carried out for callers who did not wait
	gone    []bool
	under   int    // round trips under way now
	most    int    // and at most
	here    []bool // of each batch: it was on its caller's goroutine
}

const trip = time.Hour

func newServer(most, late, batch int) *server {
	s := new(server)
	s.Most, s.Late, s.Batch = most, late, batch
	begin := time.Now()
	s.Now = func() int64 { return int64(time.Since(begin)) }
	s.Send = func(ctx context.Context, jobs []*job) {
		s.mu.Lock()
		var values []int
		for _, j := range jobs {
			values = append(values, j.Value)
			j.Value = -j.Value
		}
		s.batches = append(s.batches, values)
		s.here = append(s.here, ctx.Done() != nil)
		s.under++
		s.most = max(s.most, s.under)
		s.mu.Unlock()
		time.Sleep(trip - time.Duration(values[0]/10_000)*time.Minute)
		s.mu.Lock()
		s.under--
		s.mu.Unlock()
	}
	s.Landed = func(jobs []*job) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, j := range jobs {
			s.landed = append(s.landed, -j.Value)
		}
	}
	s.Left = func(j *job) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.left, s.gone = append(s.left, -j.Value), append(s.gone, j.Gone)
	}
	return s
}

func (s *server) sent() [][]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.batches
}

func (s *server) carriedForNobody() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left
}

// call is one Do on its way.
type call struct {
	job    *job
	err    error
	after  time.Duration // how long it took
	cancel context.CancelFunc
	done   chan struct{}
}

// do starts a Do with a timeout of its own, unless that is 0, and waits until it is
// where it is to be.
func (s *server) do(value int, timeout time.Duration) *call {
	ctx, cancel := context.WithCancel(context.Background())
	c := &call{job: &job{Value: value}, cancel: cancel, done: make(chan struct{})}
	start := time.Now()
	var deadline time.Time
	if timeout > 0 {
		deadline = start.Add(timeout)
	}
	go func() {
		defer close(c.done)
		c.err = s.Do(ctx, s.Now(), deadline, c.job, false)
		c.after = time.Since(start)
	}()
	synctest.Wait()
	return c
}

func (c *call) requireDone(t *testing.T, after time.Duration, err error) {
	t.Helper()
	<-c.done
	require.Equal(t, after, c.after)
	require.Equal(t, err, c.err)
}

// Whoever comes while there is room sets off at once and alone; the others share.
func TestSharing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(2, 2, 4)
		one, two := s.do(1, 0), s.do(2, 0)
		require.Equal(t, [][]int{{1}, {2}}, s.sent())
		var waiting []*call
		for value := 3; value <= 9; value++ {
			waiting = append(waiting, s.do(value, 0))
		}
		one.requireDone(t, trip, nil)
		two.requireDone(t, trip, nil)
		require.Equal(t, -1, one.job.Value)
		synctest.Wait()
		require.Equal(t, [][]int{{1}, {2}, {3, 4, 5, 6}, {7, 8, 9}}, s.sent(), "in the order they came, at most so many")
		for _, c := range waiting {
			c.requireDone(t, 2*trip, nil)
			require.Negative(t, c.job.Value)
		}
		s.do(10, 0).requireDone(t, trip, nil)
		require.Equal(t, 2, s.most)
		require.Empty(t, s.carriedForNobody())
	})
}

// Who is done before it starts sends nothing.
func TestDoneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.Equal(t, context.Canceled, s.Do(ctx, 0, time.Time{}, &job{Value: 1}, false))
		s.Wait()
		require.Empty(t, s.sent())
	})
}

func TestLeavingWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		flying := s.do(1, 0)
		first, middle, last := s.do(2, 0), s.do(3, time.Minute), s.do(4, 0)
		middle.requireDone(t, time.Minute, flight.ErrUnsent)
		last.cancel()
		last.requireDone(t, time.Minute, context.Canceled)
		kept := s.do(5, 0)
		first.cancel()
		first.requireDone(t, time.Minute, context.Canceled)
		flying.requireDone(t, trip, nil)
		kept.requireDone(t, 2*trip-time.Minute, nil)
		s.Wait()
		require.Equal(t, [][]int{{1}, {5}}, s.sent())
		require.Empty(t, s.carriedForNobody(), "nothing was carried out for them")
	})
}

func TestLeavingInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		ahead := s.do(1, 0)
		cancelled, late, patient := s.do(2, 0), s.do(3, trip+time.Minute), s.do(4, 0)
		ahead.requireDone(t, trip, nil)
		synctest.Wait()
		cancelled.cancel()
		cancelled.requireDone(t, trip, context.Canceled)
		late.requireDone(t, trip+time.Minute, flight.ErrUnknown)
		require.Empty(t, s.carriedForNobody(), "nothing is known yet")
		patient.requireDone(t, 2*trip, nil)
		s.Wait()
		require.Equal(t, []int{2, 3}, s.carriedForNobody())
		require.Equal(t, []bool{true, false}, s.gone)
		require.Equal(t, []int{1, 4}, s.landed)
	})
}

// A context's own deadline is no client that has left: the caller may go on without a store.
func TestContextDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.Equal(t, flight.ErrUnknown, s.Do(ctx, 0, time.Time{}, &job{Value: 1}, false))
		s.Wait()
		require.Equal(t, []bool{false}, s.gone)
	})
}

// A flight that callers have given up on holds nobody up, but there are never more of
// them than Late.
func TestLateFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(2, 3, 9)
		for value := 1; value <= 5; value++ {
			s.do(value, time.Minute).requireDone(t, time.Minute, flight.ErrUnknown)
		}
		require.Len(t, s.sent(), 5)
		for value := 6; value <= 1000; value++ {
			s.do(value, time.Millisecond).requireDone(t, time.Millisecond, flight.ErrUnsent)
		}
		require.Len(t, s.sent(), 5)
		waiting := s.do(1001, 0)
		// It came after 5 minutes and 995 ms, and flew when the fourth flight had landed, which
		// had set off after 3 minutes and was the first that could not be late any more.
		waiting.requireDone(t, 3*time.Minute+trip+trip-5*time.Minute-995*time.Millisecond, nil)
		s.Wait()
		require.Equal(t, 5, s.most)
		require.Equal(t, []int{1, 2, 3, 4, 5}, s.carriedForNobody())
		require.Len(t, s.sent(), 6)

		// And then everything is as it was.
		s.most = 0
		a, b, c := s.do(1, 0), s.do(2, 0), s.do(3, 0)
		a.requireDone(t, trip, nil)
		b.requireDone(t, trip, nil)
		c.requireDone(t, 2*trip, nil)
		require.Equal(t, 2, s.most)
	})
}

// A client that cancels does not make a flight late: it is no sign of a server that hangs.
func TestCancelledFlightIsNotLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 5, 9)
		c := s.do(1, 0)
		c.cancel()
		c.requireDone(t, 0, context.Canceled)
		s.do(2, 0).requireDone(t, 2*trip, nil)
		require.Equal(t, 1, s.most)
	})
}

// Jobs can be used again and again, also with a deadline after one without, and the
// other way round.
func TestJobsAreReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		j := &job{}
		for i := range 10 {
			var deadline time.Time
			if i%3 > 0 {
				deadline = time.Now().Add(trip + time.Duration(i%3))
			}
			j.Value = i + 1
			if i%2 == 0 {
				require.NoError(t, s.Do(t.Context(), 0, deadline, j, false))
			} else {
				require.NoError(t, s.Do(t.Context(), 0, time.Now().Add(time.Duration(i)*trip), j, true))
				require.True(t, s.here[i])
			}
			require.Equal(t, -i-1, j.Value)
		}
		s.Wait()
	})
}

func TestHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		s.do(1, 0).requireDone(t, trip, nil)
		s.Wait()
		start, j := time.Now(), &job{Value: 2}
		go func() {
			time.Sleep(time.Minute)
			require.NoError(t, s.Do(t.Context(), 0, time.Now().Add(2*trip), &job{Value: 3}, true))
		}()
		require.NoError(t, s.Do(t.Context(), 0, start.Add(trip), j, true))
		require.Equal(t, trip, time.Since(start))
		require.Equal(t, -2, j.Value)
		synctest.Wait()
		require.Equal(t, [][]int{{1}, {2}, {3}}, s.sent(), "who waited has set off")
		require.Equal(t, []bool{false, true, false}, s.here, "there was no room for the last")
		time.Sleep(2 * trip)
		s.Wait()
	})
}

// Where another one waits already, it is that one's turn.
func TestHereDoesNotJumpTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 1)
		one, two := s.do(1, 0), s.do(2, 0)
		require.NoError(t, s.Do(t.Context(), 0, time.Now().Add(4*trip), &job{Value: 3}, true))
		require.Equal(t, [][]int{{1}, {2}, {3}}, s.sent())
		one.requireDone(t, trip, nil)
		two.requireDone(t, 2*trip, nil)
	})
}

// What the context of a flight is: the deadline of its last job, and the values of a
// lone one. Only one on the caller's own goroutine is ever done.
func TestContexts(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		var seen []context.Context
		q := flight.Queue[int]{Most: 1, Late: 1, Batch: 9, Landed: func([]*job) {}}
		q.Send = func(ctx context.Context, _ []*job) {
			seen = append(seen, ctx)
			time.Sleep(trip)
		}
		q.Left = func(*job) {}
		ctx := context.WithValue(t.Context(), key{}, "caller")
		now := time.Now()
		for _, deadline := range []time.Time{{}, now.Add(3 * trip), now.Add(4 * trip), now.Add(3 * trip)} {
			go q.Do(ctx, 0, deadline, &job{}, false)
			synctest.Wait()
		}
		time.Sleep(2 * trip)
		synctest.Wait()
		require.Len(t, seen, 2)
		deadline, ok := seen[0].Deadline()
		require.False(t, ok, "%v", deadline)
		require.Equal(t, "caller", seen[0].Value(key{}))
		deadline, ok = seen[1].Deadline()
		require.True(t, ok)
		require.Equal(t, now.Add(4*trip), deadline)
		require.Nil(t, seen[1].Value(key{}))
		for _, c := range seen {
			require.Nil(t, c.Done())
			require.NoError(t, c.Err())
		}
		q.Wait()

		q.Send = func(ctx context.Context, _ []*job) {
			deadline, _ := ctx.Deadline()
			require.Equal(t, time.Now().Add(trip), deadline)
			require.Equal(t, "caller", ctx.Value(key{}))
			require.NoError(t, ctx.Err())
			<-ctx.Done()
			require.Equal(t, context.DeadlineExceeded, ctx.Err())
		}
		j := &job{}
		for range 3 { // a deadline that was reached does not spoil the job
			start := time.Now()
			require.NoError(t, q.Do(ctx, 0, start.Add(trip), j, true))
			require.Equal(t, trip, time.Since(start))
		}
	})
}

// A panic in a client's hook, which net/http would recover, leaves the queue in order.
func TestPanicHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		send := s.Send
		s.Send = func(context.Context, []*job) { panic("hook") }
		for range 3 {
			require.PanicsWithValue(t, "hook", func() { s.Do(t.Context(), 0, time.Now().Add(trip), &job{}, true) })
		}
		s.Send = send
		s.do(1, 0).requireDone(t, trip, nil)
		s.Wait()
	})
}

// Wait outlasts flights that nobody waits for any more.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 2, 9)
		s.Wait()
		start := time.Now()
		s.do(1, time.Minute).requireDone(t, time.Minute, flight.ErrUnknown)
		s.do(2, time.Minute).requireDone(t, time.Minute, flight.ErrUnknown)
		s.Wait()
		require.Equal(t, trip+time.Minute, time.Since(start))
		require.Equal(t, []int{1, 2}, s.carriedForNobody())
	})
}

// TestRace: each job that was carried out is told to its caller, or to Left.
func TestRace(t *testing.T) {
	var q flight.Queue[int]
	var carried, left, under atomic.Int64
	q.Most, q.Late, q.Batch = 2, 3, 8
	q.Send = func(_ context.Context, batch []*job) {
		if n := under.Add(1); n > 5 {
			t.Errorf("%d flights", n)
		}
		carried.Add(int64(len(batch)))
		for _, j := range batch {
			j.Value++
		}
		under.Add(-1)
	}
	q.Left, q.Landed = func(*job) { left.Add(1) }, func([]*job) {}
	var told, failed atomic.Int64
	var callers sync.WaitGroup
	for range 16 {
		callers.Go(func() {
			j := new(job)
			for range 2000 {
				before := j.Value
				ctx, cancel := context.WithCancel(context.Background())
				deadline, here := time.Now().Add(time.Minute), false
				switch rand.IntN(8) {
				case 0:
					deadline = time.Now().Add(time.Duration(rand.IntN(20000)))
				case 1:
					go cancel()
				case 2:
					deadline = time.Time{}
				case 3:
					here = true
				case 4:
					here = true
					go cancel()
				}
				err := q.Do(ctx, 0, deadline, j, here)
				cancel()
				if err == nil {
					told.Add(1)
					if j.Value != before+1 {
						t.Errorf("%d became %d", before, j.Value)
					}
					continue
				}
				failed.Add(1)
				if !errors.Is(err, flight.ErrUnknown) && !errors.Is(err, flight.ErrUnsent) && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				j = new(job)
			}
		})
	}
	callers.Wait()
	q.Wait()
	require.Equal(t, carried.Load(), told.Load()+left.Load())
	require.EqualValues(t, 16*2000, told.Load()+failed.Load())
}

// TestWaitingForSilence: callers who have waited for flights that were out all the time
// make them late, too, as nobody else may: those may carry what nobody waits for.
func TestWaitingForSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		s.Post(&job{Value: 1})
		synctest.Wait()
		s.do(2, time.Minute).requireDone(t, time.Minute, flight.ErrUnsent)
		next := s.do(3, 0)
		next.requireDone(t, trip, nil)
		s.Wait()
		require.Equal(t, [][]int{{1}, {3}}, s.sent())
	})
}

// TestPanic: a panic where no caller's goroutine is to be blamed is told to all of the
// batch, and the queue goes on.
func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		works := s.Send
		s.Send = func(context.Context, []*job) { panic("a bug") }
		s.Panicked = func(j *job, with any) {
			require.Equal(t, "a bug", with)
			j.Value = 100 * j.Value
		}
		c := s.do(1, 0)
		c.requireDone(t, 0, nil)
		require.Equal(t, 100, c.job.Value)
		s.Wait()
		s.Send = works
		s.do(2, 0).requireDone(t, trip, nil)
	})
}

// TestCancelledHere: who cancels while he flies himself is told so, and what was carried out is
// for nobody.
func TestCancelledHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		start := time.Now()
		require.Equal(t, context.Canceled, s.Do(ctx, 0, start.Add(2*trip), &job{Value: 1}, true))
		require.Equal(t, trip, time.Since(start), "the reply is waited for")
		require.Equal(t, []int{1}, s.carriedForNobody())
		require.Equal(t, []bool{true}, s.gone)
	})
}

// TestManyDeadlines: each of many callers leaves at its own, and at the latest a grain later.
func TestManyDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		first := s.do(1, time.Minute)
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() {
				start, timeout := time.Now(), time.Minute+time.Duration(i*7919%1000)*50*time.Microsecond
				require.Equal(t, flight.ErrUnsent, s.Do(t.Context(), 0, start.Add(timeout), &job{Value: 2 + i}, i%2 == 0))
				late := time.Since(start) - timeout
				require.True(t, late >= 0 && late <= 200*time.Microsecond, "%v", late)
			})
		}
		all.Wait()
		first.requireDone(t, time.Minute, flight.ErrUnknown)
		s.Wait()
		require.Equal(t, [][]int{{1}}, s.sent())
	})
}

// TestLongWay: where round trips take longer than a pause, others need not wait for one to land,
// and those that were too many end when there is less to do.
func TestLongWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		s.More, s.Pause = 2, 10*time.Minute
		first := s.do(1, 0)
		soon := s.do(2, 0) // waits, for it is too soon
		time.Sleep(s.Pause - 1)
		still := s.do(3, 0)
		time.Sleep(time.Nanosecond)
		trigger := s.do(4, 0)
		require.Equal(t, [][]int{{1}, {2, 3, 4}}, s.sent(), "all that wait are taken along")
		time.Sleep(s.Pause)
		third := s.do(5, 0)
		require.Equal(t, [][]int{{1}, {2, 3, 4}, {5}}, s.sent())
		time.Sleep(s.Pause)
		last := s.do(6, 0) // there are no more than three
		first.requireDone(t, trip, nil)
		last.requireDone(t, trip-3*s.Pause+trip, nil)
		soon.requireDone(t, s.Pause+trip, nil)
		still.requireDone(t, 1+trip, nil)
		trigger.requireDone(t, trip, nil)
		third.requireDone(t, trip, nil)
		s.Wait()
		require.Equal(t, [][]int{{1}, {2, 3, 4}, {5}, {6}}, s.sent())
		require.Equal(t, 3, s.most)
	})
}

// TestTooMany: when two land one after the other, the second does not take along those who have
// come since: another one is out, and the way is not long.
func TestTooMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		s.More, s.Pause = 1, 10*time.Minute
		one := s.do(1, 0)
		time.Sleep(s.Pause)
		two := s.do(50_002, 0)
		three := s.do(3, 0) // for the first to land
		one.requireDone(t, trip, nil)
		four := s.do(4, 0)
		two.requireDone(t, trip-5*time.Minute, nil)
		synctest.Wait()
		require.Equal(t, [][]int{{1}, {50_002}, {3}}, s.sent())
		three.requireDone(t, trip-s.Pause+trip, nil)
		four.requireDone(t, 2*trip, nil)
		s.Wait()
		require.Equal(t, 2, s.most)
	})
}

// TestHereOnALongWay: one more may set off on its caller's own goroutine, too.
func TestHereOnALongWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		s.More, s.Pause = 1, time.Minute
		one := s.do(1, 0)
		time.Sleep(time.Minute)
		require.NoError(t, s.Do(t.Context(), s.Now(), time.Now().Add(2*trip), &job{Value: 2}, true))
		one.requireDone(t, trip, nil)
		require.Equal(t, []bool{false, true}, s.here)
	})
}

// TestGivenUp: for each flight that is given up another one sets off, if somebody waits.
func TestGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(2, 2, 1)
		first, second := s.do(1, 0), s.do(2, 0)
		s.do(3, time.Minute).requireDone(t, time.Minute, flight.ErrUnsent)
		third, fourth := s.do(4, 0), s.do(5, 0)
		first.requireDone(t, trip, nil)
		second.requireDone(t, trip, nil)
		third.requireDone(t, trip, nil)
		fourth.requireDone(t, trip, nil)

		one, two := s.do(6, 0), s.do(7, 0)
		waiting := []*call{s.do(8, 0), s.do(9, 0)}
		impatient := s.do(10, time.Minute)
		impatient.requireDone(t, time.Minute, flight.ErrUnsent)
		synctest.Wait()
		require.Len(t, s.sent(), 8, "both of those who still wait have set off")
		for _, c := range waiting {
			c.requireDone(t, time.Minute+trip, nil)
		}
		one.requireDone(t, trip, nil)
		two.requireDone(t, trip, nil)
		s.Wait()
	})
}

// TestClose: who comes later is told so, and what is to be given back then still is.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 1, 9)
		back := 0
		s.Left = func(*job) {
			if back++; back == 1 {
				s.Post(&job{Value: 2})
			}
		}
		c := s.do(1, 0)
		c.cancel()
		c.requireDone(t, 0, context.Canceled)
		s.Close()
		require.Equal(t, [][]int{{1}, {2}}, s.sent())
		require.Equal(t, flight.ErrClosed, s.Do(t.Context(), 0, time.Time{}, &job{}, true))
		require.Equal(t, flight.ErrClosed, s.Do(t.Context(), 0, time.Time{}, &job{}, false))
		s.Close()
	})
}

// TestGoexit: a hook that ends the goroutine ends its flight alone.
func TestGoexit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(1, 0, 9)
		works := s.Send
		s.Send = func(context.Context, []*job) { runtime.Goexit() }
		s.do(1, 0).requireDone(t, 0, flight.ErrUnknown)
		s.Send = works
		s.do(2, 0).requireDone(t, trip, nil)
		s.Close()
	})
}
