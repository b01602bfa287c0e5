package ratelimit_test

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestHugeRefundsDoNotOverflow makes refunds in an outage, in each combination. They give back
// the units that were taken, and no more.
func TestHugeRefundsDoNotOverflow(t *testing.T) {
	for _, limit := range algorithms(5, 24*time.Hour) {
		for _, refunds := range [][]int64{{1, 1}, {math.MaxInt64}, {math.MaxInt64, math.MaxInt64}, {math.MaxInt64, 1}, {math.MaxInt64/2 + 1, math.MaxInt64/2 + 1}} {
			remotely(t, Options{Limits: []Limit{limit}, DenyRecheck: -1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
				backend.Store.Take(ctx, "key", 3, []Limit{limit}, make([]Result, 1)) // by another process
				startOutage(t, backend, l, refused)
				sum := int64(0)
				for _, n := range refunds {
					require.NoError(t, l.Refund(ctx, "key", n))
					sum = min(3, sum+min(3, n))
				}
				endOutage(t, backend, l)
				if left := backend.remaining(t, "key", limit); left != 2+sum {
					t.Errorf("%v: refunds %v: %d left of 5, want %d", limit, refunds, left, 2+sum)
				}
			})
		}
	}
}

// TestReloadToFailOpenAdmitsNothingThatIsOwed uses up a key with units that the store does
// not know of yet. Until it knows them, the key is denied under every policy.
func TestReloadToFailOpenAdmitsNothingThatIsOwed(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen} {
		synctest.Test(t, func(t *testing.T) {
			reg := new(Registry)
			backend := &remoteBackend{Store: memory(t, fmt.Sprint("backend", policy))}
			opts := Options{Limits: []Limit{FixedWindow(5, time.Hour)}, Store: backend, Logger: quietly}
			l, err := reg.New("l", opts)
			require.NoError(t, err)
			defer reg.Close()
			backend.setFor("key", junk)
			admitted := 0
			for range 10 {
				if decide(t, l, "key", 1).Allowed {
					admitted++
				}
			}
			require.Equal(t, 5, admitted)
			opts.OnFailure = policy
			require.NoError(t, reg.Reload(func(next *Registry) error { l, err = next.New("l", opts); return err }))
			backend.set(up)
			backend.delay(60 * time.Millisecond) // more than half of Timeout, but without errors
			for range 20 {
				if d := decide(t, l, "key", 1); d.Allowed {
					admitted++
				}
			}
			if admitted > 5 {
				t.Errorf("%v: %d admitted of 5", policy, admitted)
			}
		})
	}
}

// TestSetLimitsInAnOutageKeepsTheBound lowers the limit during an outage and raises it again.
func TestSetLimitsInAnOutageKeepsTheBound(t *testing.T) {
	for _, kind := range []func(int64) Limit{
		func(n int64) Limit { return FixedWindow(n, 24*time.Hour) },
		func(n int64) Limit { return SlidingWindow(n, 24*time.Hour) },
		func(n int64) Limit { return TokenBucket(n, 1000*24*time.Hour, n) },
	} {
		limit := kind(10)
		remotely(t, Options{Limits: []Limit{limit}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			startOutage(t, backend, l, refused)
			admitted := 0
			try := func(n int) {
				for range n {
					if decide(t, l, "key", 1).Allowed {
						admitted++
					}
				}
			}
			try(8)
			require.NoError(t, l.SetLimits(kind(5)))
			try(3)
			require.NoError(t, l.Refund(ctx, "key", 4))
			try(3) // 4 units are used, so one more is admitted
			require.NoError(t, l.SetLimits(limit))
			net := admitted - 4
			endOutage(t, backend, l)
			if used := 10 - int(backend.remaining(t, "key", limit)); used < net {
				t.Errorf("%v: %d admitted net of refunds, the store knows of %d", limit, net, used)
			}
		})
	}
}
