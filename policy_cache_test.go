package ratelimit_test

import (
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// cachedPlans is how many plans a limiter keeps ready, as CodeTooManyPlans says.
const cachedPlans = 2048

// TestRequestUnderManyPlansStaysWithinItsAllocations has 1,500 plans, each of which needs no
// more than a single one: see TestRequestStaysWithinItsAllocations.
func TestRequestUnderManyPlansStaysWithinItsAllocations(t *testing.T) {
	const n = 1_000_000_000
	log := new(logged)
	plans := make([][]Limit, 1500)
	for i := range plans {
		plans[i] = []Limit{FixedWindow(n+int64(i), time.Hour), TokenBucket(n+int64(i), time.Hour, n)}
	}
	next := 0
	l := httpLimiterNamed(t, "login", Options{
		Limits: []Limit{FixedWindow(n, time.Hour)}, Logger: log.logger(),
		LimitsFor: func(*http.Request) []Limit { next++; return plans[next%len(plans)] },
	})
	limited := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	w, r := &allocationFreeWriter{header: make(http.Header)}, httpRequest("GET")
	request := func() {
		clear(w.header)
		limited.ServeHTTP(w, r)
	}
	for range plans {
		request()
	}
	got, bytes := allocations(request)
	assert.LessOrEqual(t, got, 3.0, "allocations")
	assert.LessOrEqual(t, bytes, 600.0, "bytes")
	assert.Empty(t, log.codes(), "1,500 plans are not too many")
}

// dropPlans uses more plans than are kept ready, so that all others are dropped. They ask no
// store.
func dropPlans(t *testing.T, l *Limiter) {
	t.Helper()
	for i := range 2*cachedPlans + 2 {
		d, err := l.TakeLimits(ctx, "other", 1, Unlimited.Named(strconv.Itoa(i)))
		require.NoError(t, err)
		require.True(t, d.Allowed)
	}
}

// TestEverNewPlans has a LimitsFor that makes other limits for each request. They are counted
// like others, in bounded memory, and with one warning.
func TestEverNewPlans(t *testing.T) {
	log, calls := new(logged), int64(0)
	l := httpLimiterNamed(t, t.Name(), Options{Limits: []Limit{hour}, Logger: log.logger(), LimitsFor: func(*http.Request) []Limit {
		calls++
		return []Limit{FixedWindow(10_000-calls, time.Hour)}
	}})
	send := func(n int) {
		for range n {
			l.Middleware(httpServed).ServeHTTP(&allocationFreeWriter{header: make(http.Header)}, httpRequest("GET"))
		}
	}
	send(cachedPlans)
	assert.Empty(t, log.codes())
	send(cachedPlans)
	before := memLiveHeap()
	send(900) // the limit that falls meets the units that grow
	if grown := memLiveHeap() - before; grown > 200_000 {
		t.Errorf("%d bytes more after 900 new plans", grown)
	}
	assert.Equal(t, []Code{CodeTooManyPlans}, log.codes())
	stats := l.Stats()
	assert.EqualValues(t, 2*cachedPlans+900, stats.Allowed)
	assert.Zero(t, stats.Denied)
	assert.EqualValues(t, 2*cachedPlans+900-cachedPlans, stats.Warnings[CodeTooManyPlans])
	send(9) // 5,005 in all
	assert.EqualValues(t, 5, l.Stats().Denied, "request 5,001 is the first one above its limit")
	require.NoError(t, l.Reset(ctx, httpKey), "all had one window")
	send(1)
	assert.EqualValues(t, 5, l.Stats().Denied)
	runtime.KeepAlive(l)
}

// TestDroppedPlanLosesNothing uses so many other plans that a plan is dropped. Its
// counters, blocks, holds and statistics are as before, and a Reset reaches them.
func TestDroppedPlanLosesNothing(t *testing.T) {
	plan := []Limit{FixedWindow(3, 2*time.Hour).Named("plan").Block(time.Hour), SlidingWindow(100, 10*time.Hour).Named("slow")}
	holding := []Limit{InFlight(1, time.Hour).Named("one")}
	for name, store := range map[string]Store{"memory": memory(t, "a"), "Redis": redisStore(t, newMini(t).client(t), "rl:"), "wrapped": &wrapper{memory(t, "b")}} {
		t.Run(name, func(t *testing.T) {
			if name == "wrapped" {
				plan, holding = []Limit{FixedWindow(3, 2*time.Hour).Named("plan"), plan[1]}, nil
			}
			l := planned(t, t.Name(), Options{Store: store, Timeout: time.Minute, DenyRecheck: 1, OnFailure: FailClosed, Limits: []Limit{hour}},
				map[string][]Limit{"holding": holding})
			ask := func(n int64) Decision {
				d, err := l.TakeLimits(ctx, "key", n, plan...)
				require.NoError(t, err)
				return d
			}
			inside, leave := make(chan bool), make(chan bool)
			h := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { inside <- true; <-leave }))
			done := make(chan string)
			if holding != nil {
				go func() { done <- httpAnswer(h, httpRequest("GET", "Plan: holding")) }()
				<-inside
			}
			require.True(t, ask(3).Allowed)
			require.False(t, ask(1).Allowed)
			before := ask(0)
			dropPlans(t, l)
			after := ask(0)
			assert.Equal(t, before.Blocked, after.Blocked)
			assert.Equal(t, before.Remaining, after.Remaining)
			d := ask(1)
			assert.False(t, d.Allowed)
			assert.Equal(t, "plan", d.Policy)
			policies := make(map[string]uint64)
			for _, p := range l.Stats().Policies {
				policies[p.Name] = p.Denied
			}
			assert.EqualValues(t, 2, policies["plan"])
			if holding != nil {
				assert.Contains(t, httpAnswer(h, httpRequest("GET", "Plan: holding")), "429\n", "the request that holds the only unit still runs")
				close(leave)
				<-done
				assert.Zero(t, l.Stats().InFlight)
				go func() { done <- httpAnswer(h, httpRequest("GET", "Plan: holding")) }()
				select {
				case <-inside:
					<-done
				case answer := <-done:
					t.Error("the hold has not ended: ", answer)
				}
			}
			dropPlans(t, l)
			require.NoError(t, l.Reset(ctx, "key"))
			assert.EqualValues(t, 3, ask(0).Remaining)
			assert.True(t, ask(3).Allowed)
		})
	}
}

// TestResetReachesAPlanUntilItIsDropped keeps one plan in use while the limiter uses more
// windows than it remembers, and then drops the plan.
func TestResetReachesAPlanUntilItIsDropped(t *testing.T) {
	plan := FixedWindow(3, 2*time.Hour)
	l := httpLimiterNamed(t, t.Name(), Options{Limits: []Limit{hour}})
	use := func(n int64) Decision {
		d, err := l.TakeLimits(ctx, "key", n, plan)
		require.NoError(t, err)
		return d
	}
	require.True(t, use(3).Allowed)
	for i := range time.Duration(1100) {
		_, err := l.TakeLimits(ctx, "other", 1, FixedWindow(9, time.Minute+i))
		require.NoError(t, err)
		require.Zero(t, use(0).Remaining)
	}
	dropPlans(t, l)
	require.ErrorContains(t, l.Reset(ctx, "key"), "more than 1024 algorithms and windows")
	assert.EqualValues(t, 3, use(0).Remaining, "it was in use when the others were forgotten")
}

// TestOwedUnitsOutliveTheirPlan takes units while Redis is down, and drops their plan before
// it is back.
func TestOwedUnitsOutliveTheirPlan(t *testing.T) {
	m := newMini(t)
	client := redisClient(t, m.Addr(), func(o *redis.Options) { o.MaxRetries, o.DialerRetries = -1, 1 })
	l := httpLimiterNamed(t, t.Name(), Options{Redis: client, Limits: []Limit{hour}, Timeout: time.Minute})
	plan := FixedWindow(5, 2*time.Hour)
	use := func(n int64) Decision {
		d, err := l.TakeLimits(ctx, "key", n, plan)
		require.NoError(t, err)
		return d
	}
	require.True(t, use(1).Allowed)
	m.SetError("LOADING a data set")
	require.True(t, use(3).Allowed)
	require.NotZero(t, l.Stats().Remote.Owed)
	dropPlans(t, l)
	require.EqualValues(t, 1, l.Stats().Remote.Owed)
	m.SetError("")
	require.NoError(t, l.Close()) // it sends what is owed
	next := httpLimiterNamed(t, t.Name(), Options{Redis: client, Limits: []Limit{plan}, Timeout: time.Minute})
	assert.EqualValues(t, 1, leftOf(t, next, "key"))
}

// TestPlansWhileEverythingChanges has requests under more plans than are kept ready, while
// the limits change, the limiter is reloaded and keys are reset. All plans have one window,
// so each key has one counter, and no more than the largest limit is ever admitted.
func TestPlansWhileEverythingChanges(t *testing.T) {
	const most = 3000
	var reg Registry
	name := t.Name()
	t.Cleanup(func() { reg.Close(); Memory(name).Close() })
	build := func(next *Registry) error {
		_, err := next.New(name, Options{Limits: []Limit{hour}, Logger: quietly})
		return err
	}
	require.NoError(t, reg.Reload(build))
	var admitted, other atomic.Int64
	var all, changes sync.WaitGroup
	stop := make(chan bool)
	changes.Go(func() {
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			l, _ := reg.Lookup(name)
			switch i % 3 {
			case 0:
				assert.NoError(t, reg.Reload(build))
			case 1:
				if err := l.SetLimits(FixedWindow(1+i%9, 2*time.Hour)); err != nil {
					assert.ErrorContains(t, err, "SetLimits")
				}
			case 2:
				assert.NoError(t, l.Reset(ctx, "another key"))
			}
			runtime.Gosched()
		}
	})
	for g := range 4 {
		all.Go(func() {
			for i := range most {
				l, _ := reg.Lookup(name)
				d, err := l.TakeLimits(ctx, "key", 1, FixedWindow(int64(1+(i*7+g)%most), time.Hour))
				switch {
				case err != nil:
					assert.ErrorIs(t, err, ErrClosed)
					other.Add(1)
				case d.Allowed:
					admitted.Add(1)
				default:
					other.Add(1)
				}
			}
		})
	}
	all.Wait()
	close(stop)
	changes.Wait()
	assert.EqualValues(t, 4*most, admitted.Load()+other.Load())
	assert.LessOrEqual(t, admitted.Load(), int64(most))
	l, _ := reg.Lookup(name)
	d, err := l.TakeLimits(ctx, "key", 0, FixedWindow(most, time.Hour))
	require.NoError(t, err)
	assert.EqualValues(t, most-admitted.Load(), d.Remaining, "each admission has counted once")
	require.NoError(t, l.Close())
	_, err = l.TakeLimits(ctx, "key", 1, FixedWindow(most+1, time.Hour))
	assert.ErrorIs(t, err, ErrClosed)
}

// TestBytesPerIdleLimiter measures limiters that nobody has used yet, in memory and on
// Redis.
func TestBytesPerIdleLimiter(t *testing.T) {
	client := newMini(t).client(t)
	for kind, test := range map[string]struct {
		opts Options
		most int64
	}{
		"memory": {Options{}, 4096},
		"Redis":  {Options{Redis: client}, 5000},
	} {
		const n = 500
		var reg Registry
		make := func(i int) *Limiter {
			opts := test.opts
			opts.Limits, opts.Logger = []Limit{FixedWindow(5, time.Hour)}, quietly
			return Must(reg.New(kind+strconv.Itoa(i), opts))
		}
		make(n)
		var all [n]*Limiter
		before := memLiveHeap()
		for i := range all {
			all[i] = make(i)
		}
		got := (memLiveHeap() - before) / n
		t.Logf("%s: %d bytes", kind, got)
		assert.LessOrEqual(t, got, test.most, "%s: bytes of an idle limiter", kind)
		reg.Close()
		for i := range n + 1 {
			Memory(fmt.Sprint(kind, i)).Close()
		}
	}
}
