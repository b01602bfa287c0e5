package batch_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/batch"
)

// This file measures what a call costs. The numbers in the comments of Do and run
// are from BenchmarkDo, with and without the line that the comment explains.

// newBusyQueue returns a queue with the settings of a store. A round trip takes
// as long as given, and keeps a processor busy.
func newBusyQueue(takes time.Duration) (q *batch.Queue[int], batches *atomic.Int64) {
	q, batches = new(batch.Queue[int]), new(atomic.Int64)
	q.Settings = batch.Settings{
		MaxInFlight: 2, Extra: 2, MinInterval: 100 * time.Microsecond, MaxStalled: 10, MaxCalls: 256,
	}
	begin := time.Now()
	q.Now = func() int64 { return int64(time.Since(begin)) }
	q.Send = func(context.Context, []*call) {
		batches.Add(1)
		for start := time.Now(); takes > 0 && time.Since(start) < takes; {
		}
	}
	q.OnDone, q.OnAbandoned = func([]*call) {}, func(*call) {}
	return q, batches
}

// BenchmarkDo/lone and BenchmarkDo/lone-inline are one caller, with a round
// trip that takes no time. BenchmarkDo/64-callers reports the calls per batch,
// too.
func BenchmarkDo(b *testing.B) {
	for _, c := range []struct {
		name    string
		callers int
		takes   time.Duration
		inline  bool
	}{
		{"lone", 1, 0, false},
		{"lone-inline", 1, 0, true},
		{"64-callers", 64, 10 * time.Microsecond, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			q, batches := newBusyQueue(c.takes)
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			var started atomic.Int64
			var callers sync.WaitGroup
			b.ReportAllocs()
			for range c.callers {
				callers.Go(func() {
					call := new(call)
					for started.Add(1) <= int64(b.N) {
						now := q.Now()
						if err := q.Do(ctx, now, time.Now().Add(time.Second), call, c.inline); err != nil {
							b.Error(err)
						}
					}
				})
			}
			callers.Wait()
			b.ReportMetric(float64(b.N)/float64(batches.Load()), "calls/batch")
		})
	}
}

// An inline call allocates nothing but the context that Send gets.
func TestInlineCallAllocatesOneContext(t *testing.T) {
	q, _ := newBusyQueue(0)
	c, deadline := new(call), time.Now().Add(time.Hour)
	require.EqualValues(t, 1, testing.AllocsPerRun(100, func() {
		if err := q.Do(t.Context(), q.Now(), deadline, c, true); err != nil {
			t.Error(err)
		}
	}))
}
