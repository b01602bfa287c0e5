package ratelimit_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestRedisStoreAgreesWithMemoryStore does the same random operations, under controlled time, on
// a memory store and on Redis. The decisions are the same.
//
// The clock of Redis counts microseconds, and a fixed window ends on a whole millisecond, rounded
// up. Decisions must not depend on that, so time moves in whole milliseconds. Then all numbers of
// units are equal, and waits are the memory store's, rounded up to a microsecond.
func TestRedisStoreAgreesWithMemoryStore(t *testing.T) {
	inBubbles(t, 20, 2, agree)
}

const years = 50 * 365 * 24 * time.Hour // the longest window

func agree(t *testing.T, r *rand.Rand) {
	memoryStore := memory(t, "")
	redis := redisStore(t, piped(t, miniredis.NewMiniRedis()), "rl:")
	time.Sleep(time.Until(time.Now().Truncate(time.Millisecond).Add(time.Millisecond)))

	windows := []time.Duration{time.Millisecond, 7 * time.Millisecond, time.Second, time.Hour, years}
	among := func(n ...int64) int64 { return n[r.IntN(len(n))] }
	units := func() int64 {
		return among(1, 2, 3, 5, 10, 1000, 1<<40, 999_999_999_999_999, 1+r.Int64N(100), 1+r.Int64N(999_999_999_999_999))
	}
	rates := make(map[time.Duration]Limit) // buckets expire by the rate of their last use
	for _, w := range windows {
		n, burst := units(), units()
		if float64(burst)/float64(n)*float64(w) > float64(years)*0.99 {
			burst = max(1, n/2)
		}
		rates[w] = TokenBucket(n, w, burst)
	}
	pick := func() Limit {
		w := windows[r.IntN(len(windows))]
		switch r.IntN(4) {
		case 0:
			return FixedWindow(units(), w)
		case 1:
			return SlidingWindow(units(), w)
		case 2:
			return Rolling(min(units(), MaxRolling), w)
		}
		b := rates[w]
		if r.IntN(4) == 0 && b.Burst() > 1 {
			return TokenBucket(b.N(), w, 1+r.Int64N(b.Burst()))
		}
		return b
	}
	ladders := [][]time.Duration{
		{time.Millisecond}, {7 * time.Millisecond, time.Second}, {time.Second, time.Second, time.Hour}, {time.Hour, 2 * time.Hour, 3 * time.Hour, 24 * time.Hour},
	}
	blocked, began := 0, 0
	defer func() { t.Logf("%d blocked, %d began", blocked, began) }()
	type instant struct {
		memory, redis Instant
		when          time.Time
	}
	begin, instants := time.Now(), []instant{{Now, Now, time.Now().Add(years)}}
	var ops []time.Time
	for range 100 {
		limits := []Limit{pick()}
		for range r.IntN(3) {
			l := pick()
			if !slices.ContainsFunc(limits, func(o Limit) bool { return o.Algorithm() == l.Algorithm() && o.Window() == l.Window() }) {
				limits = append(limits, l)
			}
		}
		for i, l := range limits {
			// Not if a block could end later than a memory store's clock.
			if r.IntN(2) == 0 && float64(l.Burst())/float64(l.N())*float64(l.Window()) < float64(years)/8 {
				limits[i] = l.Block(ladders[r.IntN(len(ladders))]...)
			}
		}
		key := []string{"a", "b", "a{}\x00"}[r.IntN(3)]
		l := limits[0]
		const ms = int64(time.Millisecond)
		w := int64(l.Window())
		sleep := among(0, 0, 0, 0, 1, 2*ms, w-ms, w, w+ms, w/l.N(), r.Int64N(w), 2*w-ms, 2*w, r.Int64N(3*w))
		if d := time.Duration((sleep + ms - 1) / ms * ms); time.Since(begin)+d < years+years/8 { // a memory store's clock lasts for 73 years
			time.Sleep(d)
		}
		n := among(0, 0, 1, 1, 1, 2, l.Burst(), l.Burst()/2, l.Burst()+1, math.MaxInt64, r.Int64N(l.Burst())+1)
		at := instants[r.IntN(len(instants))]
		// Redis cannot exclude that units taken up to two milliseconds before a fixed window
		// began were the ones that began it.
		if slices.ContainsFunc(ops, func(op time.Time) bool { return op.After(at.when) && op.Sub(at.when) <= 2*time.Millisecond }) {
			at = instants[0]
		}
		ops = append(ops, time.Now())
		what := fmt.Sprintf("%d units of %q under %v", n, key, limits)
		switch r.IntN(16) {
		case 0:
			b := Block{Left: time.Duration(among(-w, 0, ms, min(w, int64(24*time.Hour)), int64(time.Hour))), Rung: r.IntN(5), Forget: time.Duration(among(0, ms, int64(time.Hour)))}
			if b.Left < Never/8 && b.Left > -Never/8 {
				require.NoError(t, memoryStore.Block(ctx, key, b, limits))
				require.NoError(t, redis.Block(ctx, key, b, limits))
			}
		case 1:
			require.NoError(t, memoryStore.Reset(ctx, key, limits))
			require.NoError(t, redis.Reset(ctx, key, limits))
		case 2, 3, 4:
			if r.IntN(2) == 0 {
				n = -n
			}
			want, err := memoryStore.Adjust(ctx, key, n, at.memory, limits)
			require.NoError(t, err)
			got, err := redis.Adjust(ctx, key, n, at.redis, limits)
			require.NoError(t, err)
			require.Equal(t, want, got, "charged: %s", what)
		default:
			want, got := make([]Result, len(limits)), make([]Result, len(limits))
			var pendingMemory, pendingRedis []Pending
			for range among(0, 0, 1, 3) {
				units := 1 + r.Int64N(l.Burst())
				pendingMemory, pendingRedis = append(pendingMemory, Pending{units, at.memory}), append(pendingRedis, Pending{units, at.redis})
			}
			a, err := memoryStore.TakePending(ctx, key, n, pendingMemory, limits, want)
			require.NoError(t, err)
			b, err := redis.TakePending(ctx, key, n, pendingRedis, limits, got)
			require.NoError(t, err)
			instants = append(instants, instant{a, b, time.Now()})
			for i := range want {
				for _, d := range []*time.Duration{&want[i].RetryAfter, &want[i].MoreAfter, &want[i].ResetAfter} {
					if *d < Never/2-time.Microsecond {
						*d = (*d + time.Microsecond - 1) / time.Microsecond * time.Microsecond
					}
				}
				require.Equal(t, want[i], got[i], "%v: %s", limits[i], what)
				if want[i].Blocked {
					blocked++
				}
				if want[i].BlockBegan {
					began++
				}
			}
		}
	}
}
