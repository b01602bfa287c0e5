package ratelimit_test

import (
	"context"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestAddCostChargesAndGivesBack changes the cost of a request in steps. The
// limit is 20. Others have taken 5 units, and the request takes 2.
func TestAddCostChargesAndGivesBack(t *testing.T) {
	for _, test := range []struct {
		name  string
		steps []int64
		left  []int64 // after each step
		after int64   // when all of it has been given back, too
	}{
		{"nothing", []int64{0}, []int64{13}, 15},
		{"charge", []int64{3, 4}, []int64{10, 6}, 15},
		{"give back", []int64{-1, -1}, []int64{14, 15}, 15},
		{"never more than was taken", []int64{-3, -1, -100}, []int64{15, 15, 15}, 15},
		{"charge and give back", []int64{3, -5, -1}, []int64{10, 15, 15}, 15},
		{"give back and charge", []int64{-2, 7}, []int64{15, 8}, 15},
	} {
		for _, limit := range []Limit{FixedWindow(20, time.Hour), SlidingWindow(20, time.Hour), TokenBucket(20, time.Hour, 20)} {
			t.Run(test.name+"/"+limit.Algorithm(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var countedStatuses statuses
					l := httpLimiter(t, Options{Limits: []Limit{limit}, Count: countedStatuses.count, Cost: func(*http.Request) int64 { return 2 }})
					_, err := l.TakeN(t.Context(), httpKey, 5)
					require.NoError(t, err)
					var left []int64
					l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						for _, n := range test.steps {
							require.NoError(t, l.AddCost(r.Context(), n))
							left = append(left, leftOf(t, l, httpKey))
						}
					})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
					assert.Equal(t, test.left, left)
					assert.Equal(t, test.after, leftOf(t, l, httpKey))
				})
			})
		}
	}
}

// TestAddCostAboveTheLimitGivesNoOtherUnitsBack charges more than there is room
// for. The units beyond the limit were not taken, so they must not be given
// back: they would be units of other callers, which have taken 5 of 20.
func TestAddCostAboveTheLimitGivesNoOtherUnitsBack(t *testing.T) {
	const huge, least = math.MaxInt64, math.MinInt64
	for name, steps := range map[string][]int64{
		"charge":                         {100},
		"charge twice":                   {100, 1},
		"charge and give back":           {100, -100, -100},
		"charge and give back in parts":  {100, -3, -3, -3, -3, -3, -3, -3},
		"charge, give back, charge more": {100, -50, 30, -40, 1},
		"the largest number":             {huge, least},
		"the largest number, twice":      {huge, huge, least, least},
		"the largest number, thrice":     {huge, huge, huge, -5},
	} {
		for _, limit := range []Limit{FixedWindow(20, time.Hour), SlidingWindow(20, time.Hour), TokenBucket(20, time.Hour, 20)} {
			t.Run(name+"/"+limit.Algorithm(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var countedStatuses statuses
					l := httpLimiter(t, Options{Limits: []Limit{limit}, Count: countedStatuses.count, Cost: func(*http.Request) int64 { return 2 }})
					_, err := l.TakeN(t.Context(), httpKey, 5)
					require.NoError(t, err)
					before := leftOf(t, l, httpKey)
					l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						for i, n := range steps {
							was := leftOf(t, l, httpKey)
							require.NoError(t, l.AddCost(r.Context(), n))
							left := leftOf(t, l, httpKey)
							require.LessOrEqual(t, left, before, "step %d gave others' units away", i)
							if n > 0 {
								require.LessOrEqual(t, left, was, "step %d gave units back", i)
							} else {
								require.GreaterOrEqual(t, left, was, "step %d charged", i)
							}
						}
					})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
					assert.LessOrEqual(t, leftOf(t, l, httpKey), before, "others' units were given away")
				})
			})
		}
	}
}

// TestAddCostChargesEachLimitWhatFits has two limits. Only one of them has room
// for the charge.
func TestAddCostChargesEachLimitWhatFits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		narrow, wide := FixedWindow(10, time.Minute), FixedWindow(100, time.Hour)
		l := httpLimiter(t, Options{Limits: []Limit{narrow, wide}})
		_, err := l.TakeN(t.Context(), httpKey, 5) // by other callers
		require.NoError(t, err)
		look := func(r *http.Request) (narrow, wide int64) {
			standings, err := l.Look(r)
			require.NoError(t, err)
			return standings[0].Remaining, standings[1].Remaining
		}
		l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.NoError(t, l.AddCost(r.Context(), 50))
			n, m := look(r)
			assert.Equal(t, []int64{0, 44}, []int64{n, m})
			require.NoError(t, l.AddCost(r.Context(), -100))
			n, m = look(r)
			assert.LessOrEqual(t, n, int64(5))
			assert.LessOrEqual(t, m, int64(95))
		})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
	})
}

// TestAddCostNeedsAnAdmittedRequest checks the error, which says what to do.
func TestAddCostNeedsAnAdmittedRequest(t *testing.T) {
	limits := []Limit{FixedWindow(1, time.Hour)}
	refused := func(l *Limiter, ctx context.Context) {
		t.Helper()
		err := l.AddCost(ctx, 1)
		require.Error(t, err)
		assert.True(t, strings.HasPrefix(err.Error(), "ratelimit: limiter "), err)
		assert.ErrorContains(t, err, "use TakeN or Refund with a key")
	}
	other := httpLimiterNamed(t, t.Name()+" other", Options{Limits: limits})
	refused(other, context.Background())

	asked := 0
	var l *Limiter
	l = httpLimiter(t, Options{Limits: limits, Denied: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		refused(l, r.Context()) // denied, so nothing was taken
	})})
	h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		assert.NoError(t, l.AddCost(r.Context(), 1))
		refused(other, r.Context())
	}))
	h.ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
	h.ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
	assert.Equal(t, 2, asked)
}

// TestAddCostReachesEachNestedLimiter charges two limiters from within both.
func TestAddCostReachesEachNestedLimiter(t *testing.T) {
	out, in := stacked(t, Options{}, Options{}, 20, 30)
	out.Middleware(in.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		assert.NoError(t, out.AddCost(ctx, 4))
		assert.NoError(t, in.AddCost(ctx, 5))
	}))).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
	assert.EqualValues(t, 15, leftOf(t, out, httpKey))
	assert.EqualValues(t, 24, leftOf(t, in, httpKey))
}

// TestAddCostFromManyGoroutinesIsExact also calls AddCost after the response.
// All charges together are given back exactly.
func TestAddCostFromManyGoroutinesIsExact(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(10_000, time.Hour)}, Cost: func(*http.Request) int64 { return 10 }})
	_, err := l.TakeN(t.Context(), httpKey, 100)
	require.NoError(t, err)
	var requestCtx context.Context
	l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { requestCtx = r.Context() })).
		ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { assert.NoError(t, l.AddCost(requestCtx, 3)) })
	}
	wg.Wait()
	assert.EqualValues(t, 10_000-100-10-150, leftOf(t, l, httpKey))
	for range 50 {
		wg.Go(func() { assert.NoError(t, l.AddCost(requestCtx, -7)) })
	}
	wg.Wait()
	assert.EqualValues(t, 10_000-100, leftOf(t, l, httpKey))
}

// TestChargeInANewWindowStaysCharged charges after the window of the request's
// admission has ended. The store does not say in which window the charge is, so
// it cannot be given back.
func TestChargeInANewWindowStaysCharged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Minute)}})
		l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(90 * time.Second)
			assert.NoError(t, l.AddCost(r.Context(), 6))
			assert.EqualValues(t, 3, leftOf(t, l, httpKey))
			assert.NoError(t, l.AddCost(r.Context(), -100))
			assert.EqualValues(t, 3, leftOf(t, l, httpKey))
		})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
	})
}

// TestAddCostFillsAtTheRateInForce admits a request under a fast bucket and
// then makes the bucket slow with SetLimits. AddCost must not fill it at the
// fast rate.
func TestAddCostFillsAtTheRateInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{TokenBucket(60_000, time.Minute, 100)}})
		admitted := 0
		l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.NoError(t, l.SetLimits(TokenBucket(1, time.Minute, 100)))
			for range 60 {
				for {
					d, err := l.Take(r.Context(), httpKey)
					require.NoError(t, err)
					if !d.Allowed {
						break
					}
					admitted++
				}
				require.NoError(t, l.AddCost(r.Context(), 1))
				time.Sleep(time.Second)
			}
		})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
		require.LessOrEqual(t, admitted, 101, "a burst, and one in the minute")
	})
}

// wrongCharge is a store that reports a charge that nobody asked for.
type wrongCharge struct{ *MemoryStore }

func (s *wrongCharge) Adjust(ctx context.Context, key string, n int64, at Instant, limits []Limit) (int64, error) {
	_, err := s.MemoryStore.Adjust(ctx, key, n, at, limits)
	return -50, err
}

func TestWrongChargeOfAStoreMintsNothing(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(20, time.Hour)}, Store: &wrongCharge{memory(t, "s")}})
	_, err := l.TakeN(ctx, httpKey, 10)
	require.NoError(t, err)
	l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.NoError(t, l.AddCost(r.Context(), 3))
		assert.NoError(t, l.AddCost(r.Context(), -100))
	})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
	require.LessOrEqual(t, leftOf(t, l, httpKey), int64(10))
}
