package nearcache

import (
	"math"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

const leaseTTL = 200 * ms

// holder is a process and a store with one key that no other process uses. So the
// units left at the store are the original ones minus all that this process has
// requested.
type holder struct {
	t      *testing.T
	cache  *Cache
	limits []rule.Limit
	state  rule.State
	now    int64
}

func newHolder(t *testing.T, l rule.Limit) *holder {
	return &holder{t: t, cache: newCache(), limits: []rule.Limit{l}, now: 1000 * ms}
}

func hourly(n int64) rule.Limit { return fixed(n, hour) }

// consult takes n units at the store.
func (h *holder) consult(n int64) rule.Answer {
	state, a := h.limits[0].Take(h.state, h.now, n)
	h.state = state
	h.learn(h.limits, n, state, a)
	return a
}

func (h *holder) learn(limits []rule.Limit, n int64, state rule.State, a rule.Answer) {
	h.cache.Learn("key", Reply{N: n, Limits: limits, Answers: []rule.Answer{a}, States: []rule.State{state}, At: h.now, Now: h.now, Recheck: leaseTTL, Version: h.cache.Version("key")})
}

// request is what a limiter does for a request of n units.
func (h *holder) request(n int64) (leased bool) {
	_, ok, refill := h.cache.TakeLeased("key", n, h.now, leaseTTL, h.limits, make([]rule.Answer, 1))
	if ok && refill {
		h.ask(0)
	} else if !ok && !h.ask(n) {
		h.consult(n)
	}
	return ok
}

// ask takes n units, and units for a lease if one is wanted.
func (h *holder) ask(n int64) bool {
	ask := h.cache.WantLease("key", h.now, leaseTTL, h.limits)
	if ask.Units == 0 {
		return false
	}
	a := h.consult(n + ask.Units)
	require.Zero(h.t, a.Retry)
	h.leased(ask, a)
	return true
}

func (h *holder) leased(ask LeaseRequest, a rule.Answer) (held int64) {
	held, _, _ = h.cache.AddLease(ask, "key", h.now, h.now, leaseTTL, h.limits, []rule.Answer{a})
	return held
}

func (h *holder) held() int64 { return h.cache.Leased("key", h.now, h.limits) }

// load is requests for an age, evenly spaced.
func (h *holder) load(requests int) (leased int) {
	for range requests {
		if h.request(1) {
			leased++
		}
		h.now += leaseTTL / int64(requests)
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
// was left when it last asked the store.
func TestLeaseIsASixteenth(t *testing.T) {
	for _, l := range []rule.Limit{hourly(1000), {Kind: rule.Sliding, N: 1000, Window: hour},
		{Kind: rule.Bucket, N: 1, Window: hour, Burst: 1000}} {
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
				require.Zero(t, h.cache.WantLease("key", h.now, leaseTTL, h.limits).Units, "the last units are for everybody")
			}
			if left = a.Remaining; left < 3 {
				break
			}
			h.now += ms / 10
		}
	}
}

// TestLeaseEndsWithItsAge: no unit is handed out later than an age after it was requested,
// even if the lease was refilled in between.
func TestLeaseEndsWithItsAge(t *testing.T) {
	h := newHolder(t, hourly(1_000_000))
	h.load(100)
	h.load(100)
	for range 3 { // refilled, and then only a few requests
		h.load(100)
		for h.held() > 5 {
			h.request(1)
		}
	}
	asked := h.now
	require.NotZero(t, h.held())
	h.now = asked + leaseTTL
	require.Zero(t, h.held())
	ended := h.cache.EndLeases(h.now, false)
	require.Len(t, ended, 1)
	require.Positive(t, ended[0].Units)
	require.Less(t, h.now-ended[0].At.Store, 2*leaseTTL, "it is known when they were counted")
	require.False(t, h.cache.HasLeases())
}

func TestLeaseEndsWithItsWindow(t *testing.T) {
	h := newHolder(t, rule.Limit{Kind: rule.Fixed, N: 1_000_000, Window: leaseTTL / 2})
	h.load(1000)
	ends := h.state.T + h.limits[0].Window
	for h.held() == 0 || h.state.T+h.limits[0].Window == ends { // until there is a lease in a new window
		h.request(1)
		h.now += leaseTTL / 1000
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
	taken, ok, _ := h.cache.TakeLeased("key", 5, h.now, leaseTTL, h.limits, make([]rule.Answer, 1))
	require.True(t, ok)
	back := func(n int64, at Instant) bool { return h.cache.GiveBackLeased("key", n, at, h.now, h.limits) }
	require.False(t, back(1, Instant{taken.Here, taken.Store - 1}), "units from before the lease are the store's")
	require.True(t, back(2, taken))
	require.True(t, back(3, AnyTime))
	require.Equal(t, size, h.held())
	require.False(t, back(1000, AnyTime), "a lease grows by no refund")
	h.now += leaseTTL
	require.False(t, back(1, taken), "it is over")
}

func TestLeaseIsOfItsLimits(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.load(100)
	h.load(100)
	require.NotZero(t, h.held())
	other := []rule.Limit{hourly(50_000)}
	_, ok, _ := h.cache.TakeLeased("key", 1, h.now, leaseTTL, other, make([]rule.Answer, 1))
	require.False(t, ok)
	_, a := other[0].Take(h.state, h.now, 0)
	h.learn(other, 0, h.state, a)
	require.Zero(t, h.cache.WantLease("key", h.now, leaseTTL, other).Units, "two plans of one key do not push out each other's")
}

// TestResetWhileAsking: units that the store may have forgotten are not handed out.
func TestResetWhileAsking(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.load(100)
	h.cache.EndLeases(0, true)
	ask := h.cache.WantLease("key", h.now, leaseTTL, h.limits)
	require.NotZero(t, ask.Units)
	a := h.consult(ask.Units)
	state := h.state
	h.cache.Erase("key", h.now, h.limits)
	h.state = rule.State{}
	h.learn(h.limits, ask.Units, state, a)
	require.Zero(t, h.leased(ask, a))
	require.Empty(t, h.cache.EndLeases(0, true), "nor given back: that would lift what is counted since")
}

func TestResetDropsLease(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.load(100)
	h.load(100)
	h.cache.Erase("key", h.now, h.limits)
	require.Zero(t, h.held())
	require.Empty(t, h.cache.EndLeases(0, true))
}

// TestLeaseOutlivesItsCounter: a flood that evicts a key's counter does not end its
// lease. A flood of keys that are used once does not erase the demand of a key.
func TestLeaseOutlivesItsCounter(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.cache = New(NewMemory(100), 1<<20)
	h.load(100)
	h.load(100)
	held := h.held()
	require.NotZero(t, held)
	for i := range 10_000 {
		key := strconv.Itoa(i)
		h.cache.TakeLeased(key, 1, h.now, leaseTTL, h.limits, make([]rule.Answer, 1))
		take(h.cache, key, 90_000, h.now, false, h.limits[0])
	}
	require.Equal(t, held, h.held())
	require.Positive(t, h.load(20))
	ended := h.cache.EndLeases(h.now+leaseTTL, false)
	require.Len(t, ended, 1)
	require.False(t, h.cache.HasLeases())
}

// TestEndWhileAsking: the units of a lease that is being requested while all leases
// end are not lost.
func TestEndWhileAsking(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.load(100)
	h.cache.EndLeases(0, true)
	ask := h.cache.WantLease("key", h.now, leaseTTL, h.limits)
	require.NotZero(t, ask.Units)
	require.Empty(t, h.cache.EndLeases(0, true))
	require.Equal(t, ask.Units, h.leased(ask, h.consult(ask.Units)))
	ended := h.cache.EndLeases(0, true)
	require.Len(t, ended, 1)
	require.Equal(t, ask.Units, ended[0].Units)
}

func TestNoLeaseWhileOwing(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.load(100)
	h.cache.EndLeases(0, true)
	take(h.cache, "key", 1, h.now, true, h.limits[0])
	require.Zero(t, h.cache.WantLease("key", h.now, leaseTTL, h.limits).Units)
}

func TestLongKeyHasNoLease(t *testing.T) {
	c, key, limits := newCache(), string(make([]byte, 600)), []rule.Limit{hourly(100_000)}
	for i := range int64(100) {
		c.TakeLeased(key, 1, i, leaseTTL, limits, make([]rule.Answer, 1))
	}
	require.Zero(t, c.WantLease(key, 100, leaseTTL, limits).Units, "its bytes are the client's choice")
}

func TestLeaseOfExtremeCosts(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	for range 10 {
		_, ok, _ := h.cache.TakeLeased("key", math.MaxInt64, h.now, leaseTTL, h.limits, make([]rule.Answer, 1))
		require.False(t, ok)
		h.consult(1)
	}
	require.EqualValues(t, (100_000-10)/16, h.cache.WantLease("key", h.now, leaseTTL, h.limits).Units)
}
