package nearcache_test

import (
	"math"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/nearcache"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

const (
	ms  = int64(time.Millisecond)
	age = 200 * ms
)

// holder is a process and a store of one key that only it uses: what is left there is
// what it was, less all that has been asked for.
type holder struct {
	t      *testing.T
	cache  *nearcache.Cache
	limits []rule.Limit
	state  rule.State
	now    int64
}

func newHolder(t *testing.T, l rule.Limit) *holder {
	return &holder{t: t, cache: nearcache.New(1 << 10), limits: []rule.Limit{l}, now: 1000 * ms}
}

func hourly(n int64) rule.Limit {
	return rule.Limit{Kind: rule.Fixed, N: n, Window: int64(time.Hour)}
}

// consult takes n units at the store.
func (h *holder) consult(n int64) rule.Answer {
	state, a := h.limits[0].Take(h.state, h.now, n)
	h.state = state
	h.cache.Learn("key", n, h.limits, []rule.Answer{a}, h.now, h.now, age, h.cache.Version("key"))
	return a
}

// request is what a limiter does for a request of n units.
func (h *holder) request(n int64) (leased bool) {
	_, ok, refill := h.cache.Spend("key", n, h.limits, h.now, age, make([]rule.Answer, 1))
	if ok && refill {
		h.ask(0)
	} else if !ok && !h.ask(n) {
		h.consult(n)
	}
	return ok
}

// ask takes n units and those of a lease, if one is wanted.
func (h *holder) ask(n int64) bool {
	ask := h.cache.Want("key", h.limits, h.now)
	if ask.Units == 0 {
		return false
	}
	a := h.consult(n + ask.Units)
	require.Zero(h.t, a.Retry)
	h.leased(ask, a)
	return true
}

func (h *holder) leased(ask nearcache.Ask, a rule.Answer) (held int64) {
	held, _, _ = h.cache.Leased(ask, "key", h.limits, []rule.Answer{a}, h.now, h.now, age)
	return held
}

func (h *holder) held() int64 { return h.cache.Held("key", h.limits, h.now) }

// load is requests for an age, evenly spaced.
func (h *holder) load(requests int) (leased int) {
	for range requests {
		if h.request(1) {
			leased++
		}
		h.now += age / int64(requests)
	}
	return leased
}

func TestLeaseIsOfBusyKeysOnly(t *testing.T) {
	h := newHolder(t, hourly(1_000_000))
	for range 20 {
		require.Zero(t, h.load(6))
	}
	h.load(20)
	require.Greater(t, h.load(20), 15)
}

func TestLeaseFollowsTheRate(t *testing.T) {
	for _, rate := range []int64{10, 100, 10_000} {
		h := newHolder(t, hourly(1_000_000_000))
		h.load(int(rate))
		h.load(int(rate))
		require.InDelta(t, rate/2, h.held(), float64(rate)/2, "%d an age", rate)
		require.LessOrEqual(t, h.held(), rate/2+1)
	}
}

// TestLeaseIsASixteenth: at all times a process holds no more of a key than a 16th of what
// was left when it last asked.
func TestLeaseIsASixteenth(t *testing.T) {
	for _, l := range []rule.Limit{hourly(1000), {Kind: rule.Sliding, N: 1000, Window: int64(time.Hour)},
		{Kind: rule.Bucket, N: 1, Window: int64(time.Hour), Burst: 1000}} {
		h := newHolder(t, l)
		last := int64(0)
		for left := int64(1000); left > 0; {
			h.request(1 + left%3)
			_, a := l.Take(h.state, h.now, 0)
			if h.held() > last {
				require.LessOrEqual(t, h.held(), left/16, "of %d", left)
			}
			last = h.held()
			if h.held() == 0 && a.Remaining < 16 {
				require.Zero(t, h.cache.Want("key", h.limits, h.now).Units, "the last units are for everybody")
			}
			if left = a.Remaining; left < 3 {
				break
			}
			h.now += ms / 10
		}
	}
}

// TestLeaseEndsWithItsAge: no unit is handed out later than an age after it was asked for,
// also where a refill came meanwhile.
func TestLeaseEndsWithItsAge(t *testing.T) {
	h := newHolder(t, hourly(1_000_000))
	h.load(100)
	h.load(100)
	for range 3 { // refilled, and then no more than a trickle
		h.load(100)
		for h.held() > 5 {
			h.request(1)
		}
	}
	asked := h.now
	require.NotZero(t, h.held())
	h.now = asked + age
	require.Zero(t, h.held())
	lapsed := h.cache.Lapse(h.now, false)
	require.Len(t, lapsed, 1)
	require.Positive(t, lapsed[0].Units)
	require.Less(t, h.now-lapsed[0].Told, 2*age, "it is known when they were counted")
	require.False(t, h.cache.Leases())
}

func TestLeaseEndsWithItsWindow(t *testing.T) {
	h := newHolder(t, rule.Limit{Kind: rule.Fixed, N: 1_000_000, Window: age / 2})
	h.load(1000)
	ends := h.state.T + h.limits[0].Window
	for h.held() == 0 || h.state.T+h.limits[0].Window == ends { // in a window that has begun meanwhile
		h.request(1)
		h.now += age / 1000
	}
	h.now = h.state.T + h.limits[0].Window - 1
	require.NotZero(t, h.held())
	h.now++
	require.Zero(t, h.held())
	require.False(t, h.request(1), "the next window's are to be asked for")
}

func TestLeaseTakesBack(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.load(100)
	h.load(100)
	size := h.held()
	told, ok, _ := h.cache.Spend("key", 5, h.limits, h.now, age, make([]rule.Answer, 1))
	require.True(t, ok)
	back := func(n, at int64) bool { return h.cache.Unspend("key", n, h.limits, h.now, at) }
	require.False(t, back(1, told-1), "units from before the lease are the store's")
	require.True(t, back(2, told))
	require.True(t, back(3, math.MaxInt64))
	require.Equal(t, size, h.held())
	require.False(t, back(1000, math.MaxInt64), "a lease grows by no refund")
	h.now += age
	require.False(t, back(1, told), "it is over")
}

func TestLeaseIsOfItsLimits(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.load(100)
	h.load(100)
	require.NotZero(t, h.held())
	other := []rule.Limit{hourly(50_000)}
	_, ok, _ := h.cache.Spend("key", 1, other, h.now, age, make([]rule.Answer, 1))
	require.False(t, ok)
	_, a := other[0].Take(h.state, h.now, 0)
	h.cache.Learn("key", 0, other, []rule.Answer{a}, h.now, h.now, age, h.cache.Version("key"))
	require.Zero(t, h.cache.Want("key", other, h.now).Units, "two plans of one key do not push out each other's")
}

func TestLeaseOfPushedOutCounters(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.load(100)
	h.load(100)
	for i := range int64(8) {
		l := []rule.Limit{{Kind: rule.Fixed, N: 10, Window: (i + 1) * int64(time.Minute)}}
		h.cache.Learn("key", 0, l, []rule.Answer{{Remaining: 10}}, h.now, h.now, age, h.cache.Version("key"))
	}
	h.request(1) // and it does not panic
}

// TestResetWhileAsking: units that the store may have forgotten are not handed out.
func TestResetWhileAsking(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.load(100)
	h.cache.Lapse(0, true)
	ask := h.cache.Want("key", h.limits, h.now)
	require.NotZero(t, ask.Units)
	a := h.consult(ask.Units)
	h.cache.Forget("key")
	h.state = rule.State{}
	h.cache.Learn("key", ask.Units, h.limits, []rule.Answer{a}, h.now, h.now, age, h.cache.Version("key"))
	require.Zero(t, h.leased(ask, a))
	require.Empty(t, h.cache.Lapse(0, true), "nor given back: that would lift what is counted since")
}

func TestResetDropsLease(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.load(100)
	h.load(100)
	h.cache.Forget("key")
	require.Zero(t, h.held())
	require.Empty(t, h.cache.Lapse(0, true))
}

// TestEvictedLease is given back when its time is over.
func TestEvictedLease(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.cache = nearcache.New(64)
	h.load(100)
	h.load(100)
	held := h.held()
	require.NotZero(t, held)
	for i := 0; h.held() > 0; i++ {
		h.cache.Learn(strconv.Itoa(i), 1, h.limits, make([]rule.Answer, 1), h.now, h.now, age, 0)
	}
	require.True(t, h.cache.Leases())
	lapsed := h.cache.Lapse(h.now+age, false)
	require.Len(t, lapsed, 1)
	require.Equal(t, held, lapsed[0].Units)
}

func TestLongKeyHasNoLease(t *testing.T) {
	c, key, limits := nearcache.New(1<<10), string(make([]byte, 600)), []rule.Limit{hourly(100_000)}
	for i := range int64(100) {
		c.Spend(key, 1, limits, i, age, make([]rule.Answer, 1))
		c.Learn(key, 1, limits, []rule.Answer{{Remaining: 100_000}}, i, i, age, c.Version(key))
	}
	require.Zero(t, c.Want(key, limits, 100).Units, "it could not be given back")
}

func TestLeaseOfExtremeCosts(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	for range 10 {
		_, ok, _ := h.cache.Spend("key", math.MaxInt64, h.limits, h.now, age, make([]rule.Answer, 1))
		require.False(t, ok)
		h.consult(1)
	}
	require.EqualValues(t, (100_000-10)/16, h.cache.Want("key", h.limits, h.now).Units)
}
