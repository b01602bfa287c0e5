package ratelimit_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestManyGoroutinesGetExactlyTheLimit(t *testing.T) {
	for _, limit := range algorithms(1000, time.Hour) {
		t.Run(limit.Algorithm(), func(t *testing.T) {
			l := limiter(t, limit)
			var admitted atomic.Int64
			var wg sync.WaitGroup
			for range 64 {
				wg.Go(func() {
					for range 100 {
						if d, err := l.Take(ctx, "key"); err != nil {
							t.Error(err)
						} else if d.Allowed {
							admitted.Add(1)
						}
					}
				})
			}
			wg.Wait()
			// A bucket gains units while the test runs: 1000 an hour, one in 3.6 s.
			require.GreaterOrEqual(t, admitted.Load(), int64(1000))
			if limit.Algorithm() != "bucket" {
				require.EqualValues(t, 1000, admitted.Load())
			}
		})
	}
}

// TestManyGoroutinesGetExactlyTheBurst runs in a bubble. No time passes there,
// so the bucket gains no units.
func TestManyGoroutinesGetExactlyTheBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter(t, TokenBucket(1000, time.Hour, 1000))
		var admitted atomic.Int64
		for range 64 {
			go func() {
				for range 100 {
					if d, _ := l.Take(ctx, "key"); d.Allowed {
						admitted.Add(1)
					}
				}
			}()
		}
		synctest.Wait()
		require.EqualValues(t, 1000, admitted.Load())
	})
}

// TestFloodNeitherExceedsMaxKeysNorUnlocksKeys sends a million new keys. A key
// that is denied stays denied.
func TestFloodNeitherExceedsMaxKeysNorUnlocksKeys(t *testing.T) {
	var reg Registry
	store, err := NewMemoryStore(t.Name(), MemoryOptions{MaxKeys: 100_000})
	require.NoError(t, err)
	defer store.Close()
	opts := quiet(FixedWindow(3, time.Hour))
	opts.Store = store
	l := Must(reg.New("flooded", opts))
	defer l.Close()
	for range 3 {
		l.Take(ctx, "blocked")
	}
	d, _ := l.Take(ctx, "blocked")
	require.False(t, d.Allowed)
	for i := range 1_000_000 {
		l.Take(ctx, fmt.Sprint(i))
	}
	d, _ = l.Take(ctx, "blocked")
	require.False(t, d.Allowed)
	stats := store.Stats()
	require.LessOrEqual(t, stats.Counters, 100_000)
	require.EqualValues(t, 1_000_001-stats.Counters, stats.Evicted)
	require.Zero(t, stats.EvictedDenied)
}

func TestDecisionIsOfTheBindingLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hourly, burst := FixedWindow(4, time.Hour).Named("hourly"), TokenBucket(1, time.Second, 2).Named("burst")
		policies := map[Limit]string{hourly: "hourly", burst: "burst"}
		l := limiter(t, hourly, burst)
		for _, tc := range []struct {
			wait time.Duration
			n    int64
			want Decision
		}{
			{0, 0, Decision{Allowed: true, Limit: burst, Remaining: 2}},
			{0, 1, Decision{Allowed: true, Limit: burst, Remaining: 1, ResetAfter: time.Second, MoreAfter: time.Second}},
			{0, 2, Decision{Limit: burst, Remaining: 1, ResetAfter: time.Second, RetryAfter: time.Second, MoreAfter: time.Second}},
			{time.Second - 1, 2, Decision{Limit: burst, Remaining: 1, ResetAfter: 1, RetryAfter: 1, MoreAfter: 1}},
			{1, 2, Decision{Allowed: true, Limit: burst, Remaining: 0, ResetAfter: 2 * time.Second, MoreAfter: time.Second}},
			{0, 2, Decision{Limit: hourly, Remaining: 1, ResetAfter: time.Hour - time.Second, RetryAfter: time.Hour - time.Second, MoreAfter: time.Hour - time.Second}},
			{0, 3, Decision{Limit: burst, Remaining: 0, ResetAfter: 2 * time.Second, RetryAfter: Never, MoreAfter: time.Second}},
			{0, 5, Decision{Limit: burst, Remaining: 0, ResetAfter: 2 * time.Second, RetryAfter: Never, MoreAfter: time.Second}},
			{2 * time.Second, 0, Decision{Allowed: true, Limit: hourly, Remaining: 1, ResetAfter: time.Hour - 3*time.Second, MoreAfter: time.Hour - 3*time.Second}},
		} {
			time.Sleep(tc.wait)
			got, err := l.TakeN(ctx, "key", tc.n)
			require.NoError(t, err)
			tc.want.Policy = policies[tc.want.Limit]
			require.Equal(t, tc.want, got, "%+v", tc)
		}
		require.Equal(t, "store", Decision{}.Source.String())
	})
}

func TestInvalidCallsAreErrorsAndTakeNothing(t *testing.T) {
	l := limiter(t, FixedWindow(5, time.Hour))
	l.Take(ctx, "key")
	gone, cancel := context.WithCancel(ctx)
	cancel()
	for _, tc := range []struct {
		what string
		do   func() error
		is   error
		want string
	}{
		{"negative cost", func() error { _, err := l.TakeN(ctx, "key", -1); return err }, nil, "cannot take -1 units: want 0 or more"},
		{"least cost", func() error { _, err := l.TakeN(ctx, "key", math.MinInt64); return err }, nil, "cannot take -9223372036854775808 units"},
		{"negative refund", func() error { return l.Refund(ctx, "key", -1) }, nil, "cannot refund -1 units"},
		{"take without a key", func() error { _, err := l.Take(ctx, ""); return err }, ErrNoKey, "the request has no key"},
		{"refund without a key", func() error { return l.Refund(ctx, "", 1) }, ErrNoKey, ""},
		{"reset without a key", func() error { return l.Reset(ctx, "") }, ErrNoKey, ""},
		{"take when nobody waits", func() error { _, err := l.Take(gone, "key"); return err }, context.Canceled, ""},
		{"refund when nobody waits", func() error { return l.Refund(gone, "key", 1) }, context.Canceled, ""},
		{"no limits", func() error { return l.SetLimits() }, nil, "SetLimits: there is none"},
		{"bad limits", func() error { return l.SetLimits(FixedWindow(0, time.Hour)) }, nil, "SetLimits: number 1 (0/1h fixed): it allows 0 units"},
		{"cost without a request", func() error { return l.AddCost(ctx, 1) }, nil, "this context is not of a request that the limiter has counted"},
	} {
		err := tc.do()
		require.ErrorContains(t, err, fmt.Sprintf("ratelimit: limiter %q: ", t.Name()), tc.what)
		require.ErrorContains(t, err, tc.want, tc.what)
		if tc.is != nil {
			require.ErrorIs(t, err, tc.is, tc.what)
		}
	}
	d, err := l.TakeN(ctx, "key", 0)
	require.NoError(t, err)
	require.EqualValues(t, 4, d.Remaining, "none of it took or gave anything")
	require.NoError(t, l.Refund(ctx, "key", 0))

	require.NoError(t, l.Close())
	_, err = l.Take(ctx, "key")
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, l.Refund(ctx, "key", 1), ErrClosed)
	require.ErrorIs(t, l.Reset(ctx, "key"), ErrClosed)
	require.ErrorIs(t, l.SetLimits(hour), ErrClosed)
}

func TestSetLimitsKeepsCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, kind := range []func(n int64) Limit{
			func(n int64) Limit { return FixedWindow(n, time.Hour) },
			func(n int64) Limit { return SlidingWindow(n, time.Hour) },
			func(n int64) Limit { return TokenBucket(n, time.Hour, n) },
		} {
			l := limiter(t, kind(5))
			look := func() int64 { d, _ := l.TakeN(ctx, kind(1).Algorithm(), 0); return d.Remaining }
			l.TakeN(ctx, kind(1).Algorithm(), 4)
			require.NoError(t, l.SetLimits(kind(10)))
			require.EqualValues(t, 6, look())
			require.NoError(t, l.SetLimits(kind(3)))
			require.EqualValues(t, 0, look())
			require.NoError(t, l.SetLimits(kind(5)))
			require.EqualValues(t, 1, look())
			require.NoError(t, l.SetLimits(FixedWindow(7, time.Minute)))
			require.EqualValues(t, 7, look(), "another window is another counter")
			require.Equal(t, []Limit{FixedWindow(7, time.Minute)}, l.Limits())
			l.Limits()[0] = Limit{}
			require.Equal(t, []Limit{FixedWindow(7, time.Minute)}, l.Limits(), "a copy is handed out")

			// Reset also forgets the counts under earlier limits.
			require.NoError(t, l.Reset(ctx, kind(1).Algorithm()))
			require.NoError(t, l.SetLimits(kind(5)))
			require.EqualValues(t, 5, look())
			l.Close()
		}
	})
}

// TestLimitsBelongToTheLimiter: the caller of New or SetLimits may change its slice afterwards.
func TestLimitsBelongToTheLimiter(t *testing.T) {
	limits := []Limit{hour}
	l := limiter(t, limits...)
	limits[0] = FixedWindow(1, time.Hour)
	require.EqualValues(t, 5, leftOf(t, l, "k"))
	limits[0] = FixedWindow(7, time.Hour)
	require.NoError(t, l.SetLimits(limits...))
	limits[0] = FixedWindow(1, time.Hour)
	require.EqualValues(t, 7, leftOf(t, l, "k"))
}

func TestSetLimitsUnderTrafficKeepsCountsExact(t *testing.T) {
	l := limiter(t, FixedWindow(10, time.Hour))
	done := make(chan struct{})
	var wg sync.WaitGroup
	var admitted atomic.Int64
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				d, err := l.Take(ctx, "key")
				if err != nil {
					t.Error(err)
					return
				}
				if d.Allowed {
					admitted.Add(1)
				}
				l.Refund(ctx, "other", 1)
				l.Reset(ctx, "other")
			}
		})
	}
	for i := range 300 {
		require.NoError(t, l.SetLimits(FixedWindow(int64(10+i%40), time.Hour), SlidingWindow(1000, time.Hour)))
	}
	require.NoError(t, l.SetLimits(FixedWindow(50, time.Hour)))
	for admitted.Load() < 50 {
		if d, _ := l.Take(ctx, "key"); d.Allowed {
			admitted.Add(1)
		}
	}
	close(done)
	wg.Wait()
	require.EqualValues(t, 50, admitted.Load())
}

func TestLogSaysWhetherCountersWereFound(t *testing.T) {
	var reg Registry
	var log bytes.Buffer
	name := t.Name()
	defer Memory(name).Close()
	opts := Options{Limits: []Limit{hour}, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	l := Must(reg.New(name, opts))
	require.Contains(t, log.String(), `level=INFO msg="ratelimit: limiter counts in memory" limiter=`+name+` store=`+name+` state=created counters=0`)
	l.Take(ctx, "203.0.113.7")
	l.Take(ctx, "203.0.113.8")
	l.Close()
	log.Reset()
	l = Must(reg.New(name, opts))
	require.Contains(t, log.String(), "state=reused counters=2")
	require.NotContains(t, log.String(), "203.0.113")
	l.Close()
}

// TestCallersOfDifferentKeysDoNotWaitForEachOther makes 6,400 calls for 64 keys
// of a store that takes a millisecond for each. The callers of a key make 100 of
// them one after the other.
func TestCallersOfDifferentKeysDoNotWaitForEachOther(t *testing.T) {
	remotely(t, Options{Limits: []Limit{FixedWindow(100, time.Hour)}}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.delay(time.Millisecond)
		start := time.Now()
		var callers sync.WaitGroup
		for i := range 64 {
			callers.Go(func() {
				for range 100 {
					if d, err := l.Take(ctx, fmt.Sprint(i)); err != nil || !d.Allowed {
						t.Errorf("%+v, %v", d, err)
					}
				}
			})
		}
		callers.Wait()
		require.Equal(t, 100*time.Millisecond, time.Since(start))
	})
}
