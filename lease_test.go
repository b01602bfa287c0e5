package ratelimit_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestLeasesAdmitExactlyTheLimit(t *testing.T) {
	for _, limit := range leaseLimits {
		for _, processes := range []int{1, 4, 16} {
			for _, share := range []float64{1 / float64(processes), 0.9} {
				if processes == 1 && share != 1 {
					continue
				}
				t.Run(fmt.Sprintf("%v/%d/%.2f", limit, processes, share), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						f := newFleet(t, processes, Options{Limits: []Limit{limit}})
						admitted := f.drive(4*time.Second, 4000, share)
						require.EqualValues(t, 8000, sum(admitted), "all of it, and no more")
						var calls, leased int64
						for i, l := range f.all {
							calls += f.connections[i].calls.Load()
							leased += int64(l.Stats().Remote.Leased)
						}
						require.Less(t, calls, int64(3200), "of 16,000 decisions")
						require.Greater(t, leased, int64(6000))
						if share < 0.9 {
							for _, n := range admitted {
								require.InDelta(t, 8000/processes, n, 8000/float64(processes)/5)
							}
						}
					})
				})
			}
		}
	}
}

// TestLeasesOverShortWindowsLoseLittle also checks that no unit of one window
// is used in the next.
func TestLeasesOverShortWindowsLoseLittle(t *testing.T) {
	for _, c := range []struct {
		limit       Limit
		least, most int64 // in 4.9 s
	}{
		{FixedWindow(1000, time.Second), 4700, 5000},
		{TokenBucket(1000, time.Second, 1000), 5700, 5905}, // calls that begin at the end take a few ms
	} {
		for _, processes := range []int{1, 4, 16} {
			for _, share := range []float64{1 / float64(processes), 0.9} {
				synctest.Test(t, func(t *testing.T) {
					f := newFleet(t, processes, Options{Limits: []Limit{c.limit}, DenyRecheck: 50 * time.Millisecond})
					admitted := sum(f.drive(4900*time.Millisecond, 4000, min(share, 1)))
					require.LessOrEqual(t, admitted, c.most, "%v, %d processes", c.limit, processes)
					require.GreaterOrEqual(t, admitted, c.least, "%v, %d processes, share %v", c.limit, processes, share)
				})
			}
		}
	}
}

// TestUnusedLeasesGoBackInTime checks how many units of other processes are
// missing, and that they are back after the time that Options.Lease documents.
func TestUnusedLeasesGoBackInTime(t *testing.T) {
	for _, limit := range leaseLimits {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 16, Options{Limits: []Limit{limit}})
			used := f.busy()
			for _, l := range f.all {
				d, _ := l.TakeN(ctx, "key", 0)
				require.LessOrEqual(t, d.Remaining-f.left(limit), int64(500), "a 16th of 8000")
			}
			missing := 8000 - used - f.left(limit)
			require.Positive(t, missing)
			require.LessOrEqual(t, missing, used/2, "half of what was asked for within leaseTTL")
			time.Sleep(leaseReturnTime)
			require.InDelta(t, 8000-used, f.left(limit), 1, "but for a unit of a bucket that has begun to leak")
		})
	}
}

func TestKilledProcessLosesAtMostASixteenth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(8000, time.Hour)
		f := newFleet(t, 4, Options{Limits: []Limit{limit}, OnFailure: FailClosed})
		used := f.busy()
		used += sum(f.drive(time.Second, 4000, 0.9)) // leases of the first are large
		f.connections[0].cut.Store(true)             // and never come back
		f.connections, f.all = f.connections[1:], f.all[1:]
		used += sum(f.drive(5*time.Second, 4000, 1./3))
		require.LessOrEqual(t, used, int64(8000))
		require.GreaterOrEqual(t, used, int64(8000-8000/16))
		require.Less(t, used, int64(8000), "the first held some")
	})
}

func TestLeaseGoesBackWhenItEnds(t *testing.T) {
	limit := FixedWindow(8000, time.Hour)
	for name, end := range map[string]func(l *Limiter){
		"idle":      func(*Limiter) { time.Sleep(leaseTTL*3/2 + 5*time.Millisecond) },
		"close":     func(l *Limiter) { l.Close() },
		"SetLimits": func(l *Limiter) { l.SetLimits(FixedWindow(9000, time.Hour)); time.Sleep(5 * time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 1, Options{Limits: []Limit{limit}})
				used := f.busy()
				require.Less(t, f.left(limit), 8000-used)
				end(f.all[0])
				require.Equal(t, 8000-used, f.left(limit))
			})
		})
	}
}

func TestRefundWithLeasesIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(1000, time.Hour)
		f := newFleet(t, 2, Options{Limits: []Limit{limit}})
		used := f.busy()
		require.NoError(t, f.all[0].Refund(ctx, "key", used))
		require.EqualValues(t, 1000, sum(f.drive(4*time.Second, 1000, 0.5)), "as if nothing had been")
	})
}

func TestCountAndAddCostWithLeasesAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(1000, time.Hour)
		f := newFleet(t, 1, Options{
			Limits: []Limit{limit}, Key: func(*http.Request) (string, error) { return "key", nil },
			Count: func(_ *http.Request, status int) bool { return status != 204 },
		})
		l, added := f.all[0], 0
		handler := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/free":
				w.WriteHeader(204)
			case "/dear":
				added++
				require.NoError(t, l.AddCost(r.Context(), 4))
			}
		}))
		for i := range 300 {
			path := [3]string{"/free", "/one", "/dear"}[i%3]
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			require.Less(t, w.Code, 300)
		}
		require.NotZero(t, l.Stats().Remote.Leased)
		time.Sleep(leaseReturnTime)
		require.EqualValues(t, 1000-100-500, f.left(limit))
	})
}

// TestAddCostChargesTheLease charges a request when the store has no units
// left.
func TestAddCostChargesTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(8000, time.Hour)
		f := newFleet(t, 1, Options{Limits: []Limit{limit}, Key: func(*http.Request) (string, error) { return "key", nil }})
		f.busy()
		left := f.left(limit)
		_, err := f.store.Take(ctx, "key", left, []Limit{limit}, make([]Result, 1)) // by other processes
		require.NoError(t, err)
		l := f.all[0]
		held := func() int64 {
			d, err := l.TakeN(ctx, "key", 0)
			require.NoError(t, err)
			return d.Remaining
		}
		before := held()
		require.Greater(t, before, int64(10))
		l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.NoError(t, l.AddCost(r.Context(), 4))
		})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		require.Equal(t, before-5, held())
	})
}

func TestResetForgetsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(1000, time.Hour)
		f := newFleet(t, 1, Options{Limits: []Limit{limit}})
		f.busy()
		require.NoError(t, f.all[0].Reset(ctx, "key"))
		require.EqualValues(t, 1000, f.left(limit))
		d, err := f.all[0].Take(ctx, "key")
		require.NoError(t, err)
		require.Equal(t, SourceStore, d.Source)
		time.Sleep(leaseReturnTime)
		require.EqualValues(t, 999, f.left(limit), "what was leased is forgotten, and not given back")
	})
}

// TestRemainingIncludesTheLease has one process. For its callers, Remaining
// falls by one each time, whether the store decides or the lease does.
func TestRemainingIncludesTheLease(t *testing.T) {
	for _, limit := range leaseLimits {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 1, Options{Limits: []Limit{limit}})
			var sources [SourceFailOpen + 1]int
			for left := int64(7999); left >= 0; left-- {
				d, err := f.all[0].Take(ctx, "key")
				require.NoError(t, err)
				require.True(t, d.Allowed)
				sources[d.Source]++
				require.InDelta(t, left, d.Remaining, 500, "a refill may be under way")
				require.LessOrEqual(t, d.Remaining, left)
				require.Positive(t, d.ResetAfter)
				if left%50 == 0 {
					time.Sleep(5 * time.Millisecond) // it no longer is
					look, err := f.all[0].TakeN(ctx, "key", 0)
					require.NoError(t, err)
					require.Equal(t, left, look.Remaining)
				}
			}
			require.Greater(t, sources[SourceLease], 7000)
			d, err := f.all[0].Take(ctx, "key")
			require.NoError(t, err)
			require.False(t, d.Allowed)
			require.Positive(t, d.RetryAfter)
		})
	}
}

// TestLeaseIsUsedWhileTheStoreFails uses the lease first, and then OnFailure.
// When the store is back, no more than the limit has been admitted.
func TestLeaseIsUsedWhileTheStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(1000, time.Hour)
		f := newFleet(t, 1, Options{Limits: []Limit{limit}})
		used := f.busy()
		f.connections[0].cut.Store(true)
		d, err := f.all[0].Take(ctx, "key")
		require.NoError(t, err)
		require.Equal(t, SourceLease, d.Source)
		used++
		used += sum(f.drive(500*time.Millisecond, 1000, 1))
		f.connections[0].cut.Store(false)
		used += sum(f.drive(5*time.Second, 1000, 1))
		require.LessOrEqual(t, used, int64(1000))
		require.GreaterOrEqual(t, used, int64(1000-1000/16))
	})
}

func TestEvictedLeaseGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := FixedWindow(1000, time.Hour)
		f := newFleet(t, 1, Options{Limits: []Limit{limit}, NearKeys: 64})
		used := f.busy()
		require.Less(t, f.left(limit), 1000-used)
		for i := range 1000 {
			f.all[0].Take(ctx, fmt.Sprint(i))
		}
		time.Sleep(leaseReturnTime)
		require.Equal(t, 1000-used, f.left(limit))
	})
}

func TestConcurrentLeasesLoseNoUnit(t *testing.T) {
	f := newFleet(t, 4, Options{Limits: []Limit{FixedWindow(50_000, time.Hour)}, Timeout: -1})
	var admitted atomic.Int64
	var clients sync.WaitGroup
	for i := range 64 {
		clients.Go(func() {
			for range 1500 {
				d, err := f.all[i%4].Take(ctx, "key")
				if err != nil {
					t.Error(err)
				}
				if d.Allowed {
					admitted.Add(1)
				}
			}
		})
	}
	clients.Wait()
	for _, l := range f.all {
		l.Close()
	}
	results := make([]Result, 1)
	_, err := f.store.Take(ctx, "key", 0, f.all[0].Limits(), results)
	require.NoError(t, err)
	require.Equal(t, 50_000-admitted.Load(), results[0].Remaining, "each unit is used, or given back")
}

// TestRefundIntoALeaseIsBounded refunds a million units. No more goes back into
// a lease than was taken from it.
func TestRefundIntoALeaseIsBounded(t *testing.T) {
	limit := FixedWindow(1000, time.Hour)
	remotely(t, Options{Limits: []Limit{limit}, Lease: 250 * time.Millisecond}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		admitted := int64(0)
		for range 100 {
			if decide(t, l, "key", 1).Allowed {
				admitted++
			}
			time.Sleep(time.Millisecond)
		}
		require.NotZero(t, l.Stats().Remote.Leased)
		require.NoError(t, l.Refund(ctx, "key", 1_000_000))
		for range 5000 {
			if decide(t, l, "key", 1).Allowed {
				admitted++
			}
			time.Sleep(time.Millisecond)
		}
		require.LessOrEqual(t, admitted, int64(1000+100+1000/16), "the limit, what was given back, and what was leased then")
	})
}

func TestLeasedTakeAllocatesNothing(t *testing.T) {
	f := newFleet(t, 1, Options{Limits: []Limit{FixedWindow(1_000_000_000, time.Hour)}})
	l := f.all[0]
	for l.Stats().Remote.Leased < 10_000 {
		_, err := l.Take(ctx, "key")
		require.NoError(t, err)
	}
	allocs := testing.AllocsPerRun(10_000, func() { l.Take(ctx, "key") })
	require.Less(t, allocs, 1.0, "except for refills")
}
