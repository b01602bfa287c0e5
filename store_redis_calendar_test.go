package ratelimit_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// commandCounter counts the commands that a client sends.
type commandCounter struct {
	redis.Hook
	sent int
}

func (c *commandCounter) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *commandCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if strings.HasPrefix(cmd.Name(), "eval") {
			c.sent++
		}
		return next(ctx, cmd)
	}
}

func (c *commandCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// TestCalendarGoesByTheServersClock: the clock of the server decides which day it is. If it
// is more than a day from this process's clock, a command is sent a second time.
func TestCalendarGoesByTheServersClock(t *testing.T) {
	needMiniredis(t)
	const noon = 12 * time.Hour
	for _, tc := range []struct {
		apart time.Duration // the server's clock is ahead
		sent  int           // commands of each call
	}{
		{0, 1}, {time.Second, 1}, {-time.Second, 1}, {noon, 1}, {-noon, 1}, {24 * time.Hour, 1}, {-24 * time.Hour, 1},
		{50 * time.Hour, 2}, {-50 * time.Hour, 2}, {1000 * 24 * time.Hour, 2}, {-1000 * 24 * time.Hour, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := miniredis.NewMiniRedis()
			client := piped(t, m)
			count := &commandCounter{}
			sleepUntil(t, "2006-05-04T12:00:00Z")
			now := time.Now().UTC().Add(tc.apart)
			m.SetTime(now)
			s := redisStore(t, client, "rl:")
			l := Daily(3, nil)
			take(t, s, "warm", 1, l)
			_, err := s.Adjust(ctx, "warm", -1, Now, []Limit{l})
			require.NoError(t, err)
			client.AddHook(count)

			midnight := now.Truncate(24 * time.Hour).Add(24 * time.Hour)
			results, admitted := take(t, s, "k", 3, l)
			require.True(t, admitted)
			require.Equal(t, midnight.Sub(now), results[0].ResetAfter, "%v apart", tc.apart)
			results, admitted = take(t, s, "k", 1, l)
			require.False(t, admitted)
			require.Equal(t, midnight.Sub(now), results[0].RetryAfter, "%v apart", tc.apart)
			charged, err := s.Adjust(ctx, "k", -2, Now, []Limit{l})
			require.NoError(t, err)
			require.Zero(t, charged)
			results, _ = take(t, s, "k", 0, l)
			require.EqualValues(t, 2, results[0].Remaining)
			require.Equal(t, 4*tc.sent, count.sent, "%v apart", tc.apart)

			m.SetTime(midnight.Add(-time.Millisecond))
			_, admitted = take(t, s, "k", 3, l)
			require.False(t, admitted)
			m.SetTime(midnight)
			results, admitted = take(t, s, "k", 3, l)
			require.True(t, admitted)
			require.Equal(t, 24*time.Hour, results[0].ResetAfter)
		})
	}
}

// TestOlderServerClockDoesNotOpenADayAgain fails over to a server whose clock is behind: the
// later day goes on, and what was used up stays used up.
func TestOlderServerClockDoesNotOpenADayAgain(t *testing.T) {
	for _, setBack := range []time.Duration{time.Millisecond, time.Minute, 5 * time.Hour, 20 * time.Hour, 24 * time.Hour, 40 * 24 * time.Hour} {
		m := newMini(t) // at 03:04:05.678
		s := redisStore(t, m.client(t), "rl:")
		l := Daily(3, nil)
		take(t, s, "full", 3, l)
		take(t, s, "half", 1, l)
		ends := m.now.Truncate(24 * time.Hour).Add(24 * time.Hour)
		m.now = m.now.Add(-setBack)
		m.SetTime(m.now)

		results, admitted := take(t, s, "full", 1, l)
		require.False(t, admitted, setBack)
		if setBack < 24*time.Hour { // miniredis counts times to live, and does not add to them
			require.LessOrEqual(t, results[0].RetryAfter, ends.Sub(m.now), setBack)
			require.GreaterOrEqual(t, results[0].RetryAfter, ends.Sub(m.now)-setBack, setBack)
		}
		_, admitted = take(t, s, "half", 3, l)
		require.False(t, admitted, setBack)
		_, admitted = take(t, s, "half", 2, l)
		require.True(t, admitted, setBack)
		results, _ = take(t, s, "full", 1, l)
		require.LessOrEqual(t, results[0].RetryAfter, 48*time.Hour, setBack)
		m.advance(results[0].RetryAfter)
		_, admitted = take(t, s, "full", 3, l)
		require.True(t, admitted, setBack)
	}
}

// TestCalendarKeysEndWithPeriods: the names say what is counted, and the keys expire with their
// periods.
func TestCalendarKeysEndWithPeriods(t *testing.T) {
	m := newMini(t)
	c := m.client(t)
	s := redisStore(t, c, "rl:")
	berlin := zone(t, "Europe/Berlin")
	limits := []Limit{Daily(5, nil), Daily(5, berlin), Weekly(5, time.Monday, nil), Monthly(5, 31, berlin)}
	_, admitted := take(t, s, "k", 2, limits...)
	require.True(t, admitted)
	for name, ends := range map[string]string{
		"rl:{k}:day-UTC":                "2026-01-03T00:00:00Z",
		"rl:{k}:day-Europe/Berlin":      "2026-01-02T23:00:00Z",
		"rl:{k}:week-monday-UTC":        "2026-01-05T00:00:00Z",
		"rl:{k}:month-31-Europe/Berlin": "2026-01-30T23:00:00Z",
	} {
		value, err := m.Get(name)
		require.NoError(t, err, name)
		require.Equal(t, "2", value)
		require.Equal(t, ends, m.now.Add(m.TTL(name)).Format(time.RFC3339Nano), name)
	}
	for i, l := range limits {
		results, _ := take(t, s, "k", 0, l)
		require.EqualValues(t, 3, results[0].Remaining, i)
	}
	require.NoError(t, s.Reset(ctx, "k", limits))
	require.False(t, m.Exists("rl:{k}:day-UTC"))

	// A value that is not a counter, and a key without a time to live.
	require.NoError(t, m.Set("rl:{bad}:day-UTC", "x"))
	_, err := s.Take(ctx, "bad", 1, limits[:1], make([]Result, 1))
	require.ErrorContains(t, err, "rl:{bad}:day-UTC")
	require.NoError(t, m.Set("rl:{forever}:day-UTC", "4"))
	results, admitted := take(t, s, "forever", 1, limits[0])
	require.True(t, admitted)
	require.Zero(t, results[0].Remaining)
	require.Equal(t, "2026-01-03T00:00:00Z", m.now.Add(m.TTL("rl:{forever}:day-UTC")).Format(time.RFC3339Nano))
	require.NoError(t, m.Set("rl:{look}:day-UTC", "4"))
	take(t, s, "look", 0, limits[0])
	require.NotZero(t, m.TTL("rl:{look}:day-UTC"))
}

// TestProcessesOfOneDay: several processes share the units of a day, and of a month beside
// it, whatever each of them leases.
func TestProcessesOfOneDay(t *testing.T) {
	for _, lease := range []time.Duration{0, 100 * time.Millisecond} {
		bubble(t, func(t *testing.T, _ *miniredis.Miniredis, c *redis.Client) {
			sleepUntil(t, "2006-05-04T23:59:58Z")
			var processes []*Limiter
			for range 3 {
				o := quiet(Daily(1000, nil), Monthly(2500, 1, nil))
				o.Lease = lease
				processes = append(processes, processOf(t, redisStore(t, c, "rl:"), o))
			}
			for day, want := range []int{1000, 1000, 500} {
				admitted := 0
				for range 60 {
					for _, l := range processes {
						for range 10 {
							d, err := l.Take(ctx, "k")
							require.NoError(t, err)
							if d.Allowed {
								admitted++
							}
						}
					}
					time.Sleep(time.Millisecond)
				}
				require.Equal(t, want, admitted, "day %d, lease %v", day, lease)
				time.Sleep(24 * time.Hour)
			}
		})
	}
}

// TestServerClockThatJumpsAheadFreesNoCalendar: a key that this process knows to be denied
// stays denied in it.
func TestServerClockThatJumpsAheadFreesNoCalendar(t *testing.T) {
	for _, limit := range []Limit{FixedWindow(5, 24*time.Hour), Daily(5, nil), Monthly(5, 1, nil)} {
		m := newMini(t)
		o := quiet(limit)
		o.Store, o.DenyRecheck, o.Timeout = redisStore(t, m.client(t), "rl:"), time.Nanosecond, time.Minute
		l := httpLimiter(t, o)
		took(t, l, "key", 5)
		require.False(t, decide(t, l, "key", 1).Allowed)
		m.advance(35 * 24 * time.Hour)
		for range 20 {
			require.False(t, decide(t, l, "key", 1).Allowed, limit)
		}
	}
}
