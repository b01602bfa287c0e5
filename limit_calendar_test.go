package ratelimit_test

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func zone(t testing.TB, name string) *time.Location {
	z, err := time.LoadLocation(name)
	require.NoError(t, err)
	return z
}

// sleepUntil advances the time of a bubble, which begins with the year 2000.
func sleepUntil(t *testing.T, at string) {
	to, err := time.Parse(time.RFC3339Nano, at)
	require.NoError(t, err)
	require.True(t, to.After(time.Now()), at)
	time.Sleep(time.Until(to))
}

// TestCalendarText: each limit has one text, which is read again.
func TestCalendarText(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	for _, tc := range []struct {
		limit Limit
		text  string
		also  []string
	}{
		{Daily(1000, nil), "1000/day calendar", []string{"1000/day calendar tz=UTC"}},
		{Daily(1000, time.UTC), "1000/day calendar", nil},
		{Daily(1000, berlin), "1000/day calendar tz=Europe/Berlin", nil},
		{Weekly(5, time.Monday, nil), "5/week calendar first=monday", []string{"5/week calendar", "5/week calendar first=Monday"}},
		{Weekly(5, time.Sunday, berlin), "5/week calendar first=sunday tz=Europe/Berlin", []string{"5/week calendar tz=Europe/Berlin first=sunday"}},
		{Monthly(50000, 15, nil), "50000/month calendar day=15", nil},
		{Monthly(1, 1, nil), "1/month calendar day=1", []string{"1/month calendar"}},
		{
			Monthly(7, 31, berlin).Block(time.Minute, time.Hour).Named("my quota"),
			`7/month calendar day=31 tz=Europe/Berlin block=1m,1h name="my quota"`,
			[]string{`7/month calendar name="my quota" day=31 block=1m,1h tz=Europe/Berlin`},
		},
	} {
		require.Equal(t, tc.text, tc.limit.String())
		for _, text := range append(tc.also, tc.text) {
			read, err := ParseLimit(text)
			require.NoError(t, err)
			require.True(t, read == tc.limit, "%q was read as %v", text, read)
		}
		asJSON, err := json.Marshal(tc.limit)
		require.NoError(t, err)
		var back Limit
		require.NoError(t, json.Unmarshal(asJSON, &back))
		require.True(t, back == tc.limit)
		require.Equal(t, "calendar", tc.limit.Algorithm())
		require.Equal(t, tc.limit.N(), tc.limit.Burst())
	}
	require.Equal(t, 24*time.Hour, Daily(1, berlin).Window())
	require.Equal(t, 7*24*time.Hour, Weekly(1, 0, nil).Window())
	require.Equal(t, 31*24*time.Hour, Monthly(1, 5, nil).Window())
}

// TestBadCalendarsAreRefused: each error names the value and the way out.
func TestBadCalendarsAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"5/day calendar tz=Berlin":                  `time zone "Berlin": unknown time zone Berlin: name a zone of the tz database, such as "Europe/Berlin"`,
		"5/day calendar tz=Local":                   `time zone "Local" depends on the machine`,
		"5/day calendar tz=":                        `time zone "" depends on the machine`,
		"5/day calendar first=monday":               "option first: only a week has one, not a day",
		"5/day calendar day=3":                      "option day: only a month has one, not a day",
		"5/week calendar first=someday":             `option first: "someday": want a day of the week, such as monday`,
		"5/month calendar day=0":                    "it begins on day 0 of the month: want 1 to 31",
		"5/month calendar day=32":                   "it begins on day 32 of the month: want 1 to 31",
		"5/month calendar day=x":                    `option day: "x": want 1 to 31`,
		"5/month calendar burst=9":                  "option burst: only a bucket has one, not calendar",
		"5/year calendar":                           `period "year": want day, week or month`,
		"5/24h calendar":                            `period "24h": want day, week or month`,
		"5/day":                                     `or for a period of the calendar "5/day calendar"`,
		"5/day fixed":                               `or for a period of the calendar "5/day calendar"`,
		"0/day calendar":                            "it allows 0 units",
		"5/day calendar tz=UTC tz=UTC":              "option tz is there twice",
		"5/day calendar zone=UTC":                   `option "zone": want tz=…`,
		"5/1h fixed tz=UTC":                         `option "tz": want block=… or name=…`,
		"1000000000000000/month calendar day=1":     "it allows 1000000000000000 units",
		"5/day calendar tz=../../etc/passwd":        `time zone "../../etc/passwd": time: invalid location name: name a zone of the tz database`,
		"5/day calendar tz=/etc/localtime":          `time zone "/etc/localtime": time: invalid location name`,
		"5/day calendar tz=Europe/../Europe/Berlin": `time zone "Europe/../Europe/Berlin" is "Europe/Berlin" in the tz database`,
		"5/day calendar tz=Europe":                  `time zone "Europe": `,
		"5/day calendar tz=zone.tab":                `time zone "zone.tab": `,
		"5/day calendar tz=Europe/Berlin\x00":       `time zone "Europe/Berlin\x00": `,
		"5/day calendar tz=+01:00":                  `time zone "+01:00": `,
		"5/day calendar tz=GMT+1":                   `time zone "GMT+1": `,
		`5/day calendar tz="America/New York"`:      `time zone "\"America/New": `,
		"5/day calendar tz = UTC":                   `option "tz = UTC": want tz=…, first=… of a week, day=… of a month, block=… or name=…, without spaces around the =`,
		"5/day calendar monday":                     `option "monday": want tz=…, first=… of a week`,
		"5/Day calendar":                            `period "Day": want day, week or month`,
		"5/ day calendar":                           `window "": want a duration`,
		"5/day CALENDAR":                            `or for a period of the calendar "5/day calendar"`,
		"5/week calendar first=":                    `option first: "": want a day of the week`,
		"5/week calendar first=1":                   `option first: "1": want a day of the week`,
		"5/week calendar first=mon":                 `option first: "mon": want a day of the week`,
		"5/month calendar day=":                     `option day: "": want 1 to 31`,
		"5/month calendar day=1.5":                  `option day: "1.5": want 1 to 31`,
		"5/month calendar day=-1":                   "it begins on day -1 of the month: want 1 to 31",
		"5/month calendar day=99999999999999999999": `option day: "99999999999999999999": want 1 to 31`,
	} {
		_, err := ParseLimit(text)
		require.ErrorContains(t, err, want, text)
		require.ErrorContains(t, err, fmt.Sprintf("limit %q", text))
	}
	for want, limit := range map[string]Limit{
		`time zone "Local" depends on the machine`:                                 Daily(5, time.Local),
		`time zone "CET" is not the one of this name in the tz database`:           Daily(5, time.FixedZone("CET", 3600)),
		`time zone "UTC+1": unknown time zone UTC+1`:                               Monthly(5, 1, time.FixedZone("UTC+1", 3600)),
		`its first day is weekday 9: want time.Sunday to time.Saturday`:            Weekly(5, 9, nil),
		"it begins on day 40 of the month":                                         Monthly(5, 40, nil),
		"it allows 0 units":                                                        Daily(0, nil),
		`time zone "" depends on the machine`:                                      Daily(5, time.FixedZone("", 0)),
		`time zone "a b": unknown time zone a b`:                                   Daily(5, time.FixedZone("a b", 0)),
		`time zone "../zone": time: invalid location name`:                         Daily(5, time.FixedZone("../zone", 0)),
		"it allows 9223372036854775807 units":                                      Daily(math.MaxInt64, nil),
		fmt.Sprintf("it begins on day %d of the month", math.MinInt):               Monthly(5, math.MinInt, nil),
		"its block has 0 durations":                                                Daily(5, nil).Block(),
		`such as "Europe/Berlin", with time.LoadLocation; a FixedZone has no name`: Daily(5, time.FixedZone("Europe/Berlin", 3600)),
		`its first day is weekday -1: want time.Sunday to time.Saturday`:           Weekly(5, -1, nil),
		"it begins on day -3 of the month: want 1 to 31":                           Monthly(5, -3, time.UTC),
	} {
		_, err := new(Registry).New("quota", quiet(limit))
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, `limiter "quota"`)
		_, err = limit.MarshalText()
		require.ErrorContains(t, err, want)
		require.NotPanics(t, func() { _ = limit.String() })
	}
	_, err := new(Registry).New("quota", quiet(Daily(5, nil), Daily(6, nil)))
	require.ErrorContains(t, err, "6/day calendar")
}

// TestStoresRefuseBadCalendars: a store that is called by hand does not panic.
func TestStoresRefuseBadCalendars(t *testing.T) {
	bad := []Limit{Daily(5, time.Local)}
	for _, s := range []Store{memory(t, "bad"), redisStore(t, unreachableClient(t), "rl:")} {
		require.ErrorContains(t, takeErr(s, "k", 1, bad), "calendar")
		require.NotPanics(t, func() {
			s.Adjust(ctx, "k", -1, Now, bad)
			s.Reset(ctx, "k", bad)
		})
	}
}

// TestPeriodOfALimit: a period ends at midnight in the limit's zone, and each calendar has
// a name of its own.
func TestPeriodOfALimit(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	at := time.Date(2026, 3, 29, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		limit                Limit
		begin, end, calendar string
	}{
		{Daily(5, nil), "2026-03-29T00:00:00Z", "2026-03-30T00:00:00Z", "day-UTC"},
		{Daily(5, berlin), "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00", "day-Europe/Berlin"},
		{Weekly(5, time.Monday, berlin), "2026-03-23T00:00:00+01:00", "2026-03-30T00:00:00+02:00", "week-monday-Europe/Berlin"},
		{Monthly(5, 31, nil).Block(time.Hour).Named("quota"), "2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z", "month-31-UTC"},
	} {
		begin, end, ok := tc.limit.Period(at)
		require.True(t, ok)
		require.Equal(t, []string{tc.begin, tc.end}, []string{begin.Format(time.RFC3339Nano), end.Format(time.RFC3339Nano)}, tc.limit)
		next, _, ok := tc.limit.Period(end)
		require.True(t, ok)
		require.True(t, next.Equal(end), "%v: the next period begins at %v", tc.limit, next)
		require.Equal(t, tc.calendar, tc.limit.Calendar())
	}
	for _, limit := range []Limit{FixedWindow(5, 24*time.Hour), Unlimited, Deny, {}, Daily(5, time.Local), Monthly(5, 40, nil)} {
		_, _, ok := limit.Period(at)
		require.False(t, ok, "%v", limit)
		require.Empty(t, limit.Calendar())
	}
	for _, year := range []int{-5, 1, 1699, 2201, 9999} {
		_, _, ok := Daily(5, nil).Period(time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC))
		require.False(t, ok, year)
	}
}

// calendarStores runs a test in a bubble, with a limiter in memory, at a server, and at
// both through wrappers.
func calendarStores(t *testing.T, test func(t *testing.T, with func(o Options) *Limiter)) {
	limiterOf := func(t *testing.T, store Store) func(Options) *Limiter {
		return func(o Options) *Limiter {
			o.Store = store
			return httpLimiter(t, o)
		}
	}
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, limiterOf(t, memory(t, "calendar"))) })
	})
	t.Run("memory, wrapped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, limiterOf(t, &kindWrapper{inner: memory(t, "inner")})) })
	})
	t.Run("memory, as if elsewhere", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, limiterOf(t, &remoteBackend{Store: memory(t, "backend")})) })
	})
	t.Run("redis", func(t *testing.T) {
		bubble(t, func(t *testing.T, _ *miniredis.Miniredis, c *redis.Client) {
			test(t, limiterOf(t, redisStore(t, c, "rl:")))
		})
	})
	t.Run("redis, wrapped", func(t *testing.T) {
		bubble(t, func(t *testing.T, _ *miniredis.Miniredis, c *redis.Client) {
			test(t, limiterOf(t, &remoteBackend{Store: redisStore(t, c, "rl:")}))
		})
	})
}

// TestCalendarQuota: n units fit into each day, and a denial lasts until midnight, local
// time, to the nanosecond in memory.
func TestCalendarQuota(t *testing.T) {
	calendarStores(t, func(t *testing.T, with func(Options) *Limiter) {
		l := with(quiet(Daily(3, zone(t, "Europe/Berlin"))))
		sleepUntil(t, "2001-03-24T22:59:59Z") // the day before the clocks are put forward: a second to midnight
		took(t, l, "k", 3)
		d, err := l.Take(ctx, "k")
		require.NoError(t, err)
		require.False(t, d.Allowed)
		require.Equal(t, time.Second, d.RetryAfter)
		time.Sleep(time.Second - time.Millisecond)
		d, err = l.Take(ctx, "k")
		require.NoError(t, err)
		require.False(t, d.Allowed)
		time.Sleep(time.Millisecond)
		took(t, l, "k", 1)
		d, err = l.TakeN(ctx, "k", 0)
		require.NoError(t, err)
		require.EqualValues(t, 2, d.Remaining)
		require.Equal(t, 23*time.Hour, d.ResetAfter, "a day of 23 hours")
		took(t, l, "k", 2)
		sleepUntil(t, "2001-03-25T21:59:59.999Z")
		d, err = l.Take(ctx, "k")
		require.NoError(t, err)
		require.False(t, d.Allowed)
		require.Equal(t, time.Millisecond, d.RetryAfter)
		time.Sleep(time.Millisecond)
		took(t, l, "k", 3)
		d, err = l.TakeN(ctx, "k", 4)
		require.NoError(t, err)
		require.Equal(t, Never, d.RetryAfter)
	})
}

// TestCalendarBesideOtherLimits: all or none, with limits of other kinds and of other
// calendars. What is given back is given back to the period in which it was taken.
func TestCalendarBesideOtherLimits(t *testing.T) {
	calendarStores(t, func(t *testing.T, with func(Options) *Limiter) {
		day, month := Daily(5, nil), Monthly(8, 15, nil)
		l := with(quiet(TokenBucket(100, time.Second, 4), day, month))
		sleepUntil(t, "2001-06-13T12:00:00Z")
		remaining := func() (left []int64) {
			standing, err := l.LookKey(ctx, "k")
			require.NoError(t, err)
			for _, s := range standing {
				left = append(left, s.Remaining)
			}
			return left
		}
		took(t, l, "k", 4)
		time.Sleep(time.Second)
		d, err := l.TakeN(ctx, "k", 2)
		require.NoError(t, err)
		require.False(t, d.Allowed)
		require.Equal(t, 12*time.Hour-time.Second, d.RetryAfter)
		require.Equal(t, []int64{4, 1, 4}, remaining(), "all or none")
		took(t, l, "k", 1)
		time.Sleep(time.Second)
		require.NoError(t, l.Refund(ctx, "k", 2))
		require.Equal(t, []int64{4, 2, 5}, remaining())

		sleepUntil(t, "2001-06-14T12:00:00Z")
		require.Equal(t, []int64{4, 5, 5}, remaining())
		took(t, l, "k", 4)
		time.Sleep(time.Second)
		took(t, l, "k", 1)
		time.Sleep(time.Second)
		d, err = l.Take(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, 12*time.Hour-2*time.Second, d.RetryAfter, "both calendars deny; the new month begins with the new day")
		time.Sleep(d.RetryAfter)
		require.Equal(t, []int64{4, 5, 8}, remaining())
	})
}

// TestCalendarGivesBackToItsPeriod: a request that began before midnight and does not
// count gives its unit back to the day that is over, and to no other.
func TestCalendarGivesBackToItsPeriod(t *testing.T) {
	calendarStores(t, func(t *testing.T, with func(Options) *Limiter) {
		o := quiet(Daily(3, nil))
		o.Count = onlyFailures
		l := with(o)
		sleepUntil(t, "2001-06-13T23:59:59Z")
		r := httpRequest("POST")
		require.True(t, l.Check(httptest.NewRecorder(), r))
		key, err := l.KeyOf(r)
		require.NoError(t, err)
		remaining := func() int64 {
			standing, err := l.LookKey(ctx, key)
			require.NoError(t, err)
			return standing[0].Remaining
		}
		require.EqualValues(t, 2, remaining())
		time.Sleep(2 * time.Second) // over midnight
		took(t, l, key, 2)
		require.NoError(t, l.Responded(r.Context(), 200))
		time.Sleep(time.Second)
		require.EqualValues(t, 1, remaining(), "nothing is given back to the new day")

		r = httpRequest("POST")
		require.True(t, l.Check(httptest.NewRecorder(), r))
		require.EqualValues(t, 0, remaining())
		require.NoError(t, l.Responded(r.Context(), 200))
		time.Sleep(time.Second)
		require.EqualValues(t, 1, remaining())
	})
}

// TestChargeAfterMidnightStays: what a request is charged after its window or period counts
// in the next one, and is not given back there. The unit of its admission is not, either.
func TestChargeAfterMidnightStays(t *testing.T) {
	for _, limit := range []Limit{Daily(9, nil), FixedWindow(9, time.Minute)} {
		synctest.Test(t, func(t *testing.T) {
			o := quiet(limit)
			o.Count = onlyFailures
			l := httpLimiter(t, o)
			sleepUntil(t, "2001-06-13T23:59:59Z")
			r := httpRequest("POST")
			require.True(t, l.Check(httptest.NewRecorder(), r))
			require.NoError(t, l.AddCost(r.Context(), 2))
			require.EqualValues(t, 6, leftOf(t, l, httpKey))
			time.Sleep(2 * time.Minute)
			require.EqualValues(t, 9, leftOf(t, l, httpKey))
			require.NoError(t, l.AddCost(r.Context(), 4))
			require.EqualValues(t, 5, leftOf(t, l, httpKey))
			require.NoError(t, l.AddCost(r.Context(), -3))
			require.NoError(t, l.Responded(r.Context(), 200))
			require.EqualValues(t, 5, leftOf(t, l, httpKey), "%v: neither -3 nor Count reaches this one", limit)
		})
	}
}

// TestCalendarHeaderFields: w of RateLimit-Policy is the length of this period, and t is
// the time to its end.
func TestCalendarHeaderFields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := quiet(Daily(2, zone(t, "America/New_York")), Monthly(50, 1, zone(t, "America/New_York")))
		o.Headers = HeadersDraft10 | HeadersDraft6
		l := httpLimiterNamed(t, "api", o)
		h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
		sleepUntil(t, "2001-04-01T10:00:00Z") // 06:00, on a day of 23 hours, in a month of 719
		w, _ := serveOnce(h)
		require.Equal(t, `"api-day";q=2;w=82800, "api-month";q=50;w=2588400`, w.Header().Get("RateLimit-Policy"))
		require.Equal(t, `"api-day";r=1;t=64800, "api-month";r=49;t=2570400`, w.Header().Get("RateLimit"))
		time.Sleep(24 * time.Hour)
		w, _ = serveOnce(h)
		require.Equal(t, `"api-day";q=2;w=86400, "api-month";q=50;w=2588400`, w.Header().Get("RateLimit-Policy"))
	})
}

// TestCalendarIsExactUnderRaces: n units fit into each day, whatever the number of
// callers, and however close to midnight they come.
func TestCalendarIsExactUnderRaces(t *testing.T) {
	calendarStores(t, func(t *testing.T, with func(Options) *Limiter) {
		l := with(quiet(Daily(50, nil)))
		sleepUntil(t, "2001-06-13T23:59:59.999Z")
		var mu sync.Mutex
		admitted := make(map[int]int)
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 300 * time.Microsecond)
				for range 30 {
					d, err := l.Take(ctx, "k")
					if err == nil && d.Allowed {
						mu.Lock()
						admitted[time.Now().UTC().Day()]++
						mu.Unlock()
					}
				}
			})
		}
		all.Wait()
		require.Equal(t, map[int]int{13: 50, 14: 50}, admitted)
	})
}
