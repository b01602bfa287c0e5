package ratelimit_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
)

// This file checks translations in docs/limits.md: the algorithms that vendors document
// decide random arrivals as this library's limits do.

// TestVendorSettingsDecideTheSame compares each request's decision.
func TestVendorSettingsDecideTheSame(t *testing.T) {
	const (
		requests = 20_000
		second   = time.Second
	)
	for name, test := range map[string]struct {
		other admitter
		limit Limit
		clock time.Duration // arrivals are multiples of it
	}{
		"nginx rate=10r/s burst=20":  {&limitReq{rate: 10_000, burst: 20}, TokenBucket(10, second, 21), time.Millisecond},
		"nginx rate=1r/s":            {&limitReq{rate: 1_000}, TokenBucket(1, second, 1), time.Millisecond},
		"nginx rate=300r/s burst=50": {&limitReq{rate: 300_000, burst: 50}, TokenBucket(300, second, 51), time.Millisecond},
		// 500 is 30 per minute in thousandths per second. They are exact at multiples of 2 ms.
		"nginx rate=30r/m burst=5": {&limitReq{rate: 500, burst: 5}, TokenBucket(30, time.Minute, 6), 2 * time.Millisecond},

		"AWS rate 100, burst 200": {newTokens(100, 1, 200), TokenBucket(100, second, 200), time.Millisecond},
		"AWS rate 50, burst 10":   {newTokens(50, 1, 10), TokenBucket(50, second, 10), time.Millisecond},
		"AWS rate 0.5, burst 3":   {newTokens(1, 2, 3), TokenBucket(1, 2*second, 3), time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, start := ratelimittest.New(t, quiet(test.limit)), time.Now()
				random, admitted := rand.New(rand.NewPCG(1, 2)), 0
				for range requests {
					time.Sleep(gap(random, test.limit, test.clock))
					now := time.Since(start)
					d, err := l.Take(ctx, "client")
					require.NoError(t, err)
					require.Equal(t, test.other.admit(now.Milliseconds()), d.Allowed, "at %v", now)
					if d.Allowed {
						admitted++
					}
				}
				require.Greater(t, admitted, requests/10)
				require.Less(t, admitted, requests*9/10)
			})
		})
	}
}

// gap returns the time to the next request: none in a burst, mostly less than the limit
// needs for two units, and rarely as long as it needs for all of them.
func gap(random *rand.Rand, limit Limit, clock time.Duration) time.Duration {
	unit := int64(limit.Window()) / limit.N()
	most := unit * 3 / 2
	switch {
	case random.IntN(5) == 0:
		return 0
	case random.Int64N(10*limit.Burst()) == 0:
		most = unit * (limit.Burst() + 5)
	}
	return time.Duration(random.Int64N(most)) / clock * clock
}

// An admitter is the algorithm of a vendor for one client.
type admitter interface {
	admit(ms int64) bool
}

// limitReq is limit_req of nginx, the "leaky bucket" of ngx_http_limit_req_module. It
// keeps the excess over the rate: a request adds 1, and it leaks away at the rate, but
// not below 0. A request that would take it above burst is refused and not counted. The
// first request of a client has no excess. Its numbers are thousandths, in integers, as
// in nginx. Without nodelay, a request that is not refused waits for excess/rate.
type limitReq struct {
	rate, burst int64 // the rate in thousandths per second
	excess      int64
	last        int64
	known       bool
}

func (l *limitReq) admit(ms int64) bool {
	if !l.known {
		l.known, l.last = true, ms
		return true
	}
	excess := max(0, l.excess-l.rate*(ms-l.last)/1000+1000)
	if excess > 1000*l.burst {
		return false
	}
	l.excess, l.last = excess, ms
	return true
}

// tokens is a token bucket as AWS describes it for API Gateway: it holds up to the burst,
// is refilled at the rate, and each request takes a token. The state is in parts of which
// a token has 1,000 times per, so that it is exact.
type tokens struct {
	rate, token, full int64 // parts per millisecond, in a token, in a full bucket
	left, last        int64
}

// newTokens returns a full bucket that gets n tokens in a number of seconds.
func newTokens(n, seconds, burst int64) *tokens {
	token := 1000 * seconds
	return &tokens{rate: n, token: token, full: burst * token, left: burst * token}
}

func (b *tokens) admit(ms int64) bool {
	b.left, b.last = min(b.full, b.left+b.rate*(ms-b.last)), ms
	if b.left < b.token {
		return false
	}
	b.left -= b.token
	return true
}

// TestVendorCalendarsDecideTheSame compares each request's decision over four months. On
// 1 April the clocks are put forward in California.
func TestVendorCalendarsDecideTheSame(t *testing.T) {
	const requests = 20_000
	pacific := zone(t, "America/Los_Angeles")
	for name, test := range map[string]struct {
		other *resets
		limit Limit
	}{
		"Kong day 100":            {&resets{n: 100, format: "2006-01-02", zone: time.UTC}, Daily(100, nil)},
		"Kong month 3000":         {&resets{n: 3000, format: "2006-01", zone: time.UTC}, Monthly(3000, 1, nil)},
		"Google Play 100 per day": {&resets{n: 100, format: "2006-01-02", zone: pacific}, Daily(100, pacific)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := ratelimittest.New(t, quiet(test.limit))
				random, admitted := rand.New(rand.NewPCG(3, 4)), 0
				sleepUntil(t, "2001-03-20T00:00:00Z")
				for range requests {
					time.Sleep(time.Duration(random.Int64N(int64(18 * time.Minute)))) // 160 a day
					d, err := l.Take(ctx, "client")
					require.NoError(t, err)
					require.Equal(t, test.other.admit(time.Now()), d.Allowed, "at %v", time.Now())
					if d.Allowed {
						admitted++
					}
				}
				require.Greater(t, admitted, requests/10)
				require.Less(t, admitted, requests*9/10)
			})
		})
	}
}

// resets is a quota that is there again on another date. Kong's plugin rate-limiting has a
// counter for the date in UTC, which get_timestamps of kong/tools/timestamp.lua makes. It
// does not count denied requests.
type resets struct {
	n      int
	format string // what of a date the counter has
	zone   *time.Location
	date   string
	used   int
}

func (r *resets) admit(now time.Time) bool {
	if date := now.In(r.zone).Format(r.format); date != r.date {
		r.date, r.used = date, 0
	}
	if r.used == r.n {
		return false
	}
	r.used++
	return true
}

// TestVendorBursts checks how many requests at once each setting admits.
func TestVendorBursts(t *testing.T) {
	for _, test := range []struct {
		other admitter
		want  int
	}{
		{&limitReq{rate: 10_000, burst: 20}, 21},
		{newTokens(10, 1, 20), 20},
	} {
		n := 0
		for test.other.admit(0) {
			n++
		}
		require.Equal(t, test.want, n, fmt.Sprintf("%T", test.other))
	}
}
