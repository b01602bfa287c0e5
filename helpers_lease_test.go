package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// leaseTTL is the Options.Lease of these tests.
const leaseTTL = 200 * time.Millisecond

// leaseLimits are limits of which no unit comes back during a test.
var leaseLimits = []Limit{
	FixedWindow(8000, time.Hour), SlidingWindow(8000, time.Hour), TokenBucket(1, time.Hour, 8000),
}

// leaseReturnTime is how long it takes until an unused unit has gone back and all
// processes know it.
const leaseReturnTime = leaseTTL*3/2 + time.Second + 10*time.Millisecond

// storeConnection is one process's connection to a shared store. A call takes a
// millisecond, and fails while the connection is cut.
type storeConnection struct {
	*MemoryStore
	cut   atomic.Bool
	calls atomic.Int64
}

func (f *storeConnection) Fault(error) Fault { return FaultRefused }

// reach waits for the latency of a call, or fails.
func (f *storeConnection) reach(ctx context.Context) error {
	n := f.calls.Add(1)
	if f.cut.Load() {
		return errCut
	}
	select {
	case <-time.After(time.Millisecond + time.Duration(n)): // no two at the same instant
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *storeConnection) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	if err := f.reach(ctx); err != nil {
		return 0, err
	}
	return f.MemoryStore.Take(ctx, key, n, limits, results)
}

func (f *storeConnection) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	if err := f.reach(ctx); err != nil {
		return 0, err
	}
	return f.MemoryStore.Adjust(ctx, key, n, at, limits)
}

// errCut is the error of a connection that is cut.
var errCut = errors.New("cut")

// fleet is a number of processes that share a store.
type fleet struct {
	t           *testing.T
	store       *MemoryStore
	connections []*storeConnection
	all         []*Limiter
}

// drive sends requests for a while, at a rate per second. The first process
// gets its share of them, the others the rest. It returns how many each one
// admitted.
func (f *fleet) drive(span time.Duration, rate int, share float64) (admitted []int64) {
	admitted = make([]int64, len(f.all))
	start := time.Now()
	var clients sync.WaitGroup
	for i, l := range f.all {
		mine := share * float64(rate)
		if i > 0 {
			mine = (1 - share) * float64(rate) / float64(len(f.all)-1)
		}
		for c := range 4 {
			clients.Go(func() {
				pause := time.Duration(4 * float64(time.Second) / mine)
				time.Sleep(pause * time.Duration(c) / 4)
				for ; time.Since(start) < span; time.Sleep(pause) {
					d, err := l.Take(ctx, "key")
					if err != nil {
						f.t.Error(err)
					}
					if d.Allowed {
						atomic.AddInt64(&admitted[i], 1)
					}
				}
			})
		}
	}
	clients.Wait()
	return admitted
}

// left returns how many units are left in the store.
func (f *fleet) left(limits ...Limit) int64 {
	results := make([]Result, len(limits))
	_, err := f.store.Take(ctx, "key", 0, limits, results)
	require.NoError(f.t, err)
	return results[0].Remaining
}

// busy uses a key until all processes hold leases. It returns the units used.
func (f *fleet) busy() (used int64) {
	for _, l := range f.all {
		for range 100 {
			d, err := l.Take(ctx, "key")
			require.NoError(f.t, err)
			require.True(f.t, d.Allowed)
			used++
		}
	}
	time.Sleep(5 * time.Millisecond) // the last refills
	return used
}

// fleets counts fleets, for their names.
var fleets atomic.Int64

// newFleet makes processes with the same limiter.
func newFleet(t *testing.T, processes int, opts Options) *fleet {
	store := Memory(fmt.Sprint(t.Name(), fleets.Add(1)))
	f := &fleet{t: t, store: store}
	opts.Lease = leaseTTL
	for range processes {
		connection := &storeConnection{MemoryStore: store}
		opts.Store = connection
		l, err := new(Registry).New("hot", opts)
		require.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		f.connections, f.all = append(f.connections, connection), append(f.all, l)
	}
	return f
}

// sum returns the sum of counts.
func sum(of []int64) (total int64) {
	for _, n := range of {
		total += n
	}
	return total
}
