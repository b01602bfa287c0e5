package ratelimit_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// This file checks calendar limits under wrong clocks, and their keys and values at Redis.
// limit_calendar_test.go has their other tests.

// TestCalendarsHaveTheirOwnCounters: another zone, unit or first day is another counter.
func TestCalendarsHaveTheirOwnCounters(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	calendars := []Limit{
		Daily(3, nil), Daily(3, berlin), Weekly(3, time.Sunday, nil), Weekly(3, time.Monday, nil),
		Monthly(3, 1, nil), Monthly(3, 31, nil), Monthly(3, 1, berlin),
	}
	calendarStores(t, func(t *testing.T, with func(Options) *Limiter) {
		l := with(quiet(calendars...))
		for _, limit := range calendars {
			d, err := l.TakeLimits(ctx, "k", 3, limit)
			require.NoError(t, err)
			require.True(t, d.Allowed, "%v", limit)
			d, err = l.TakeLimits(ctx, "k", 1, limit)
			require.NoError(t, err)
			require.False(t, d.Allowed, "%v", limit)
		}
	})
}

// TestWrongServerClockGivesNoQuotaTwice: a clock that is an hour ahead frees a key an hour
// early. When it is right again, that day goes on: its units are there once.
func TestWrongServerClockGivesNoQuotaTwice(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		sleepUntil(t, "2001-06-13T12:00:00Z")
		s := redisStore(t, c, "rl:")
		daily := Daily(3, nil)
		at := func(server string) {
			now, err := time.Parse(time.RFC3339, server)
			require.NoError(t, err)
			m.SetTime(now)
		}
		at("2001-06-13T22:50:00Z")
		_, admitted := take(t, s, "k", 3, daily)
		require.True(t, admitted)
		at("2001-06-13T23:59:59Z") // an hour ahead
		_, admitted = take(t, s, "k", 1, daily)
		require.False(t, admitted)
		at("2001-06-14T00:00:00Z")
		m.FastForward(2 * time.Hour) // the key has expired
		_, admitted = take(t, s, "k", 2, daily)
		require.True(t, admitted, "an hour early")
		at("2001-06-13T23:10:00Z") // right again
		results, admitted := take(t, s, "k", 2, daily)
		require.False(t, admitted)
		require.EqualValues(t, 1, results[0].Remaining, "of 14 June")
		_, admitted = take(t, s, "k", 1, daily)
		require.True(t, admitted)
		_, admitted = take(t, s, "k", 1, daily)
		require.False(t, admitted, "the quota of 14 June was given out early, but once")
	})
}

// TestCalendarInAnOutage: while Redis is away, a new key has a day by the clock of this
// process. A key that Redis has decided about keeps the day that it has.
func TestCalendarInAnOutage(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		sleepUntil(t, "2001-06-13T22:30:00Z")
		m.SetTime(time.Now().Add(5 * time.Hour)) // 03:30 of the next day
		o := quiet(Daily(3, nil))
		o.Redis = c
		l := httpLimiter(t, o)
		d, err := l.Take(ctx, "known")
		require.NoError(t, err)
		require.Equal(t, 20*time.Hour+30*time.Minute, d.ResetAfter)
		m.SetError("LOADING Redis is loading the dataset in memory")
		d, err = l.Take(ctx, "known")
		require.NoError(t, err)
		require.Equal(t, SourceFallback, d.Source)
		require.EqualValues(t, 1, d.Remaining)
		require.InDelta(t, 20*time.Hour+30*time.Minute, d.ResetAfter, float64(time.Second))
		d, err = l.Take(ctx, "new")
		require.NoError(t, err)
		require.Equal(t, SourceFallback, d.Source)
		require.InDelta(t, 90*time.Minute, d.ResetAfter, float64(time.Second), "the calls may wait for Redis")
	})
}

// TestCalendarKeysAtRedis has the keys and values that docs/redis.md describes.
func TestCalendarKeysAtRedis(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		sleepUntil(t, "2001-06-13T12:00:00Z")
		m.SetTime(time.Now())
		o := quiet(Daily(3, zone(t, "Europe/Berlin")), Weekly(4, time.Monday, nil), Monthly(5, 15, nil), Monthly(1, 1, nil).Block(time.Hour))
		o.Store = redisStore(t, c, "rl:")
		l := httpLimiter(t, o)
		took(t, l, "k", 1)
		for key, end := range map[string]string{
			"rl:{k}:day-Europe/Berlin": "2001-06-13T22:00:00Z",
			"rl:{k}:week-monday-UTC":   "2001-06-18T00:00:00Z",
			"rl:{k}:month-15-UTC":      "2001-06-15T00:00:00Z",
			"rl:{k}:month-1-UTC":       "2001-07-01T00:00:00Z",
		} {
			value, err := m.Get(key)
			require.NoError(t, err)
			require.Equal(t, "1", value)
			ends, err := time.Parse(time.RFC3339, end)
			require.NoError(t, err)
			require.Equal(t, time.Until(ends), m.TTL(key), key)
		}

		d, err := l.Take(ctx, "k")
		require.NoError(t, err)
		require.True(t, d.Blocked)
		ends := time.Date(2001, 7, 1, 0, 0, 0, 0, time.UTC)
		value, err := m.Get("rl:{k}:month-1-UTC")
		require.NoError(t, err)
		var of, units, zero, until, lasts, rung, forget int64
		_, err = fmt.Sscanf(value, "%d %d %d !%d %d %d %d", &of, &units, &zero, &until, &lasts, &rung, &forget)
		require.NoError(t, err, value)
		require.Equal(t, ends.UnixMicro(), of, "T is the end of the period")
		require.Equal(t, []int64{1, 0, ends.UnixMicro(), 1}, []int64{units, zero, until, rung}, "the month ends after the hour")
		require.Positive(t, lasts)
		require.Positive(t, forget)
	})
}

// TestCalendarSnapshotHasVersion3: a snapshot file has version 3 from the first counter of
// a calendar on.
func TestCalendarSnapshotHasVersion3(t *testing.T) {
	opts := inFile(t)
	for i, limit := range []Limit{hour, Daily(3, nil)} {
		s := memStore(t, opts)
		memTake(t, s, "k", 1, limit)
		require.NoError(t, s.Close())
		file, err := os.ReadFile(opts.SnapshotFile)
		require.NoError(t, err)
		require.EqualValues(t, 1+2*i, binary.LittleEndian.Uint32(file[8:]))
	}
}

// TestStoresWithoutCalendarsAreRefused: the error names the limit.
func TestStoresWithoutCalendarsAreRefused(t *testing.T) {
	o := quiet(Weekly(3, time.Monday, nil))
	o.Store = plainWrapper{memory(t, "inner")}
	_, err := new(Registry).New("quota", o)
	require.ErrorContains(t, err, "3/week calendar first=monday")
	o.Store = memory(t, "other")
	l, err := new(Registry).New("quota", o)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}
