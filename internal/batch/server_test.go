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

// This file has the server that the tests send to, and a caller that waits on
// its own goroutine. Both are for tests in a synctest bubble, whose time is
// virtual.

type call = batch.Call[int]

// latency is how long a round trip to a server takes, but a minute less for
// each 10,000 in the first value of its batch.
const latency = time.Hour

// server is a queue and what it sends to. The result of a call is its value,
// negated.
type server struct {
	batch.Queue[int]

	mu          sync.Mutex
	batches     [][]int // all that was sent
	inline      []bool  // of each batch: it was sent on its caller's goroutine
	answered    []int   // what OnDone got
	abandoned   []int   // what OnAbandoned got
	cancelled   []bool  // of each of those: its caller's context was cancelled
	inFlight    int     // round trips now
	maxInFlight int     // the most there ever were
}

func newServer(maxInFlight, maxStalled, maxCalls int) *server {
	s := new(server)
	s.MaxInFlight, s.MaxStalled, s.MaxCalls = maxInFlight, maxStalled, maxCalls
	begin := time.Now()
	s.Now = func() int64 { return int64(time.Since(begin)) }
	s.Send = func(ctx context.Context, calls []*call) {
		s.mu.Lock()
		var values []int
		for _, c := range calls {
			values = append(values, c.Value)
			c.Value = -c.Value
		}
		s.batches = append(s.batches, values)
		s.inline = append(s.inline, ctx.Done() != nil)
		s.inFlight++
		s.maxInFlight = max(s.maxInFlight, s.inFlight)
		s.mu.Unlock()
		time.Sleep(latency - time.Duration(values[0]/10_000)*time.Minute)
		s.mu.Lock()
		s.inFlight--
		s.mu.Unlock()
	}
	s.OnDone = func(calls []*call) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range calls {
			s.answered = append(s.answered, -c.Value)
		}
	}
	s.OnAbandoned = func(c *call) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.abandoned, s.cancelled = append(s.abandoned, -c.Value), append(s.cancelled, c.Cancelled)
	}
	return s
}

// sent returns the batches that were sent until now.
func (s *server) sent() [][]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.batches
}

// carriedOutForNobody returns the calls that OnAbandoned got until now.
func (s *server) carriedOutForNobody() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.abandoned
}

// caller is a goroutine in Do. Its results may be read once requireDone
// returns.
type caller struct {
	call   *call
	err    error
	took   time.Duration
	cancel context.CancelFunc // of the context that Do got
	done   chan struct{}
}

// do starts a caller, with a deadline unless timeout is 0. It returns when its
// call waits or is in flight.
func (s *server) do(value int, timeout time.Duration) *caller {
	ctx, cancel := context.WithCancel(context.Background())
	c := &caller{call: &call{Value: value}, cancel: cancel, done: make(chan struct{})}
	start := time.Now()
	var deadline time.Time
	if timeout > 0 {
		deadline = start.Add(timeout)
	}
	go func() {
		defer close(c.done)
		c.err = s.Do(ctx, s.Now(), deadline, c.call, false)
		c.took = time.Since(start)
	}()
	synctest.Wait()
	return c
}

// requireDone waits for the caller, and requires that Do took the given time
// and returned err.
func (c *caller) requireDone(t *testing.T, took time.Duration, err error) {
	t.Helper()
	<-c.done
	require.Equal(t, took, c.took)
	require.Equal(t, err, c.err)
}
