package calendar

import (
	"archive/zip"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// zoneNames are the names of the tz database of this version of Go.
func zoneNames(t *testing.T) (names []string) {
	root, err := exec.Command("go", "env", "GOROOT").Output() // the test itself may be built with -trimpath
	require.NoError(t, err)
	archive, err := zip.OpenReader(filepath.Join(strings.TrimSpace(string(root)), "lib", "time", "zoneinfo.zip"))
	if err != nil {
		t.Skip("there is no tz database in GOROOT: ", err)
	}
	defer archive.Close()
	for _, f := range archive.File {
		if !strings.HasSuffix(f.Name, "/") {
			names = append(names, f.Name)
		}
	}
	require.Greater(t, len(names), 500)
	return names
}

func zone(t *testing.T, name string) *time.Location {
	z, err := time.LoadLocation(name)
	require.NoError(t, err)
	return z
}

func calendar(t *testing.T, unit Unit, first int, name string) *Calendar {
	c := New(unit, first, zone(t, name))
	require.NoError(t, c.Err())
	return c
}

// TestPeriods has the cases that make calendars hard: what is in force at an instant.
func TestPeriods(t *testing.T) {
	for _, tc := range []struct {
		unit             Unit
		first            int
		zone, at         string
		begin, end, what string
	}{
		{Day, 0, "UTC", "2026-11-28T16:00:00Z", "2026-11-28T00:00:00Z", "2026-11-29T00:00:00Z", "a usual day"},
		{Day, 0, "UTC", "2026-11-28T00:00:00Z", "2026-11-28T00:00:00Z", "2026-11-29T00:00:00Z", "its first instant"},
		{Day, 0, "UTC", "2026-11-27T23:59:59.999999999Z", "2026-11-27T00:00:00Z", "2026-11-28T00:00:00Z", "and the one before"},
		{Day, 0, "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", "23 hours"},
		{Day, 0, "Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", "25 hours"},
		{Day, 0, "America/Santiago", "2026-09-06T12:00:00Z", "2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z", "no midnight: 00:00 becomes 01:00"},
		{Day, 0, "America/Sao_Paulo", "2018-11-04T03:00:00Z", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z", "no midnight"},
		{Day, 0, "America/Sao_Paulo", "2018-11-04T02:59:59Z", "2018-11-03T03:00:00Z", "2018-11-04T03:00:00Z", "the day before"},
		{Day, 0, "America/St_Johns", "2006-10-29T03:00:00Z", "2006-10-29T02:30:00Z", "2006-10-30T03:30:00Z", "00:01 became 23:01: the day has begun"},
		{Day, 0, "Pacific/Apia", "2011-12-30T10:30:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z", "30 December is left out"},
		{Day, 0, "Pacific/Apia", "2011-12-30T09:59:59Z", "2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z", "and the day before it"},
		{Day, 0, "Asia/Kathmandu", "2026-11-28T18:20:00Z", "2026-11-28T18:15:00Z", "2026-11-29T18:15:00Z", "an offset of 5:45"},
		{Week, 1, "UTC", "2026-11-28T16:00:00Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z", "from Monday"},
		{Week, 0, "UTC", "2026-11-28T16:00:00Z", "2026-11-22T00:00:00Z", "2026-11-29T00:00:00Z", "from Sunday"},
		{Week, 6, "UTC", "2026-11-28T16:00:00Z", "2026-11-28T00:00:00Z", "2026-12-05T00:00:00Z", "from Saturday, on one"},
		{Week, 1, "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-22T23:00:00Z", "2026-03-29T22:00:00Z", "167 hours"},
		{Month, 1, "UTC", "2026-11-28T16:00:00Z", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z", "a usual month"},
		{Month, 15, "UTC", "2026-01-10T00:00:00Z", "2025-12-15T00:00:00Z", "2026-01-15T00:00:00Z", "over the end of the year"},
		{Month, 31, "UTC", "2026-02-10T00:00:00Z", "2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z", "February begins on its last day"},
		{Month, 31, "UTC", "2026-02-28T00:00:00Z", "2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z", "and has 31 days"},
		{Month, 31, "UTC", "2028-02-29T12:00:00Z", "2028-02-29T00:00:00Z", "2028-03-31T00:00:00Z", "a leap year"},
		{Month, 30, "UTC", "2026-04-30T12:00:00Z", "2026-04-30T00:00:00Z", "2026-05-30T00:00:00Z", "the last day of April"},
		{Month, 1, "America/New_York", "2026-03-15T12:00:00Z", "2026-03-01T05:00:00Z", "2026-04-01T04:00:00Z", "an hour less"},
	} {
		c := calendar(t, tc.unit, tc.first, tc.zone)
		at, err := time.Parse(time.RFC3339Nano, tc.at)
		require.NoError(t, err)
		text := func(unix int64) string { return time.Unix(0, unix).UTC().Format(time.RFC3339Nano) }
		p := c.At(at.UnixNano())
		require.Equal(t, []string{tc.begin, tc.end}, []string{text(p.Begin), text(p.End)}, "%v at %s: %s", c, tc.at, tc.what)
	}
}

// TestPeriodsOfAllZones walks through random times in all zones. A period begins when the
// local date first reaches its first day, and each period ends where the next one begins.
func TestPeriodsOfAllZones(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	from, to := time.Date(1971, 1, 1, 0, 0, 0, 0, time.UTC).Unix(), time.Date(2060, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	names := zoneNames(t)
	tried := 0
	for _, name := range names {
		z, err := time.LoadLocation(name)
		if err != nil || name == "Factory" || name == "localtime" {
			continue
		}
		tried++
		for _, unit := range []Unit{Day, Week, Month} {
			first := 0
			switch unit {
			case Week:
				first = rng.IntN(7)
			case Month:
				first = 1 + rng.IntN(31)
			}
			c := New(unit, first, z)
			require.NoError(t, c.Err(), name)
			for range 6 {
				at := time.Unix(from+rng.Int64N(to-from), 0)
				if _, changed := at.In(z).ZoneBounds(); !changed.IsZero() && rng.IntN(2) == 0 {
					at = changed.Add(time.Duration(rng.IntN(180)-90) * time.Minute) // where it is hard
				}
				unix := at.UnixNano()
				p := c.At(unix)
				require.True(t, p.Begin <= unix && unix < p.End, "%v at %v: %v", c, at, p)
				require.Equal(t, p, c.At(p.Begin), "%v at %v", c, at)
				require.Equal(t, p, c.At(p.End-1), "%v at %v", c, at)
				require.Equal(t, p.End, c.At(p.End).Begin, "%v at %v", c, at)
				length := time.Duration(p.End - p.Begin)
				most := time.Duration(unit.Nominal()) + 26*time.Hour
				require.True(t, length >= 16*time.Hour && length <= most, "%v at %v lasts %v", c, at, length)
				begin := time.Unix(0, p.Begin)
				require.True(t, c.starts(begin.In(z)), "%v begins at %v", c, begin.In(z))
				before := begin.Add(-time.Nanosecond).In(z)
				require.Less(t, before.Format(time.DateOnly), begin.In(z).Format(time.DateOnly), "%v", c)
			}
		}
	}
	require.Greater(t, tried, 500)
}

// starts reports whether a period can begin on the date of a time: the date is a first day,
// or the first days before it were left out.
func (c *Calendar) starts(t time.Time) bool {
	y, m, d := t.Date()
	day := date(y, m, d)
	for range 2 {
		if c.firstDay(day).Equal(day) {
			return true
		}
		day = day.AddDate(0, 0, -1) // Samoa and the like: the date was left out
	}
	return false
}

// TestNumbers: no two zones of the tz database have the same number.
func TestNumbers(t *testing.T) {
	names := zoneNames(t)
	seen := make(map[uint32]string)
	add := func(unit Unit, first int, name string) {
		n := number(unit, first, name)
		require.NotZero(t, n)
		require.Empty(t, seen[n], "%s has the number of it", name)
		seen[n] = name
	}
	for _, name := range names {
		add(Day, 0, name)
		for d := range 7 {
			add(Week, d, name)
		}
		for d := range 31 {
			add(Month, 1+d, name)
		}
	}
}

// TestOneCalendar: whatever names a calendar, there is one of it.
func TestOneCalendar(t *testing.T) {
	a, b := calendar(t, Month, 15, "Europe/Berlin"), calendar(t, Month, 15, "Europe/Berlin")
	require.Same(t, a, b)
	require.Same(t, a, Of(a.Number))
	require.NotSame(t, a, calendar(t, Month, 16, "Europe/Berlin"))
	utc := New(Day, 0, nil)
	require.NoError(t, utc.Err())
	require.Same(t, utc, calendar(t, Day, 0, "UTC"))
	require.Nil(t, Of(1))
	require.Equal(t, "month-15-Europe/Berlin", a.String())
	require.Equal(t, "week-monday-UTC", calendar(t, Week, 1, "UTC").String())
	require.Equal(t, "day-UTC", utc.String())
}

// TestZonesThatAreRefused: the name of a zone has to mean the same everywhere.
func TestZonesThatAreRefused(t *testing.T) {
	for name, z := range map[string]*time.Location{
		`"Local" depends on the machine`:                          time.Local,
		`"Berlin": unknown time zone Berlin`:                      time.FixedZone("Berlin", 3600),
		`"CET" is not the one of this name`:                       time.FixedZone("CET", 3600),
		`"UTC" is not the one of this name`:                       time.FixedZone("UTC", 3600),
		`"" depends on the machine`:                               time.FixedZone("", 3600),
		`"localtime" depends on the machine`:                      time.FixedZone("localtime", 3600),
		`"Europe//Berlin" is "Europe/Berlin" in the tz database`:  time.FixedZone("Europe//Berlin", 3600),
		`"Europe/./Berlin" is "Europe/Berlin" in the tz database`: time.FixedZone("Europe/./Berlin", 3600),
		`"Europe/Berlin/" is "Europe/Berlin" in the tz database`:  time.FixedZone("Europe/Berlin/", 3600),
	} {
		err := New(Day, 0, z).Err()
		require.ErrorContains(t, err, name)
		require.ErrorContains(t, err, "such as \"Europe/Berlin\"")
	}
	require.ErrorContains(t, New(Month, 32, nil).Err(), "day 32 of the month: want 1 to 31")
	require.ErrorContains(t, New(Month, 0, nil).Err(), "day 0 of the month")
	require.ErrorContains(t, New(Week, 7, nil).Err(), "weekday 7: want time.Sunday to time.Saturday")
}

// FuzzPeriod: each instant is in the period that is in force at it.
func FuzzPeriod(f *testing.F) {
	f.Add(int64(1_800_000_000), uint8(0), uint8(0), "Europe/Berlin")
	f.Add(int64(951_826_000), uint8(2), uint8(30), "America/St_Johns")
	f.Add(int64(1_325_239_200), uint8(1), uint8(3), "Pacific/Apia")
	f.Fuzz(func(t *testing.T, seconds int64, unit, first uint8, name string) {
		z, err := time.LoadLocation(name)
		if err != nil || name == "" || name == "Local" || seconds < 0 || seconds > 4_000_000_000 {
			t.Skip()
		}
		c := &Calendar{Unit: Day + Unit(unit%3), First: 1 + int(first)%31, zone: z}
		if c.Unit == Week {
			c.First %= 7
		}
		unix := seconds * 1_000_000_000
		p := c.At(unix)
		if p.Begin > unix || p.End <= unix || c.At(p.End).Begin != p.End || c.At(p.Begin) != p {
			t.Errorf("%v at %d: %v, and then %v", c.Unit, unix, p, c.At(p.End))
		}
	})
}
