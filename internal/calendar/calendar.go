// Package calendar has the periods of calendars: days, weeks and months in a time zone.
// It says when the period in force has begun and when it ends. It does not count.
//
// A period begins at the first instant at which the local date is its first day, or a
// later one. The period in force is the one that has begun last. So there is exactly one
// at each instant, whatever the zone's clocks do: where midnight does not exist, because
// the clocks are put forward then, the day begins when they are; and where they are turned
// back over midnight, the day has begun the first time. Days have 23 to 25 hours in most
// zones, and had 17 to 31 in some since 1970.
package calendar

import (
	"fmt"
	"hash/fnv"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Unit is what a period is.
type Unit uint8

const (
	Day Unit = iota + 1
	Week
	Month
)

// String returns "day", "week" or "month".
func (u Unit) String() string { return [...]string{Day: "day", Week: "week", Month: "month"}[u] }

// Nominal is the length of a usual period in nanoseconds: 24 hours, 7 days or 31 days.
func (u Unit) Nominal() int64 {
	return int64([...]time.Duration{Day: 24 * time.Hour, Week: 7 * 24 * time.Hour, Month: 31 * 24 * time.Hour}[u])
}

// A Calendar divides time into periods. There is one for each unit, first day and zone in
// a process, so calendars can be compared by their addresses. Methods may be called
// concurrently.
type Calendar struct {
	Unit Unit

	// First is the first day of each period: a time.Weekday of a week, and the day of
	// the month, 1 to 31, of a month. It is 0 for a day. A month that is shorter begins
	// on its last day.
	First int

	// Zone is the name of the time zone in the tz database.
	Zone string

	// Number identifies the calendar, in this process and in others. It is 0 only if there
	// is an error.
	Number uint32

	err  error
	zone *time.Location

	// like has zones that show the same times: the last ones that New was given. So a
	// program that makes its limits for each request is fast.
	like    [4]atomic.Pointer[time.Location]
	turn    atomic.Uint32 // the one of them that is replaced next
	present atomic.Pointer[Period]
}

// A Period is from one instant up to another, in nanoseconds since 1970 UTC.
type Period struct{ Begin, End int64 }

// The bits of a Number: the upper ones are for the unit and the first day.
const zoneBits = 26

var known struct {
	sync.RWMutex
	calendars map[uint32]*Calendar
}

// New returns the calendar of a unit, a first day and a zone. A nil zone is UTC. If there
// is no such calendar, it returns one whose Err says why, and which has no other use. It
// takes a lock.
func New(unit Unit, first int, zone *time.Location) *Calendar {
	if zone == nil {
		zone = time.UTC
	}
	c := &Calendar{Unit: unit, First: first, Zone: zone.String()}
	if unit == Week && (first < 0 || first > 6) {
		c.err = fmt.Errorf("its first day is weekday %d: want time.Sunday to time.Saturday", first)
		return c
	}
	if unit == Month && (first < 1 || first > 31) {
		c.err = fmt.Errorf("it begins on day %d of the month: want 1 to 31", first)
		return c
	}
	id := number(unit, first, c.Zone)
	if was := Of(id); was != nil && was.Zone == c.Zone && was.isLike(zone) {
		return was
	}
	if c.zone, c.err = Load(c.Zone); c.err != nil {
		return c
	}
	if !sameZone(c.zone, zone) {
		c.err = fmt.Errorf("time zone %q is not the one of this name in the tz database: %s; a FixedZone has no name there", c.Zone, wayOut)
		return c
	}
	known.Lock()
	defer known.Unlock()
	if was := known.calendars[id]; was != nil {
		if was.Zone == c.Zone {
			return was
		}
		c.err = fmt.Errorf("time zone %q cannot be told from %q, which this process uses, too: use another name of the zone", c.Zone, was.Zone)
		return c
	}
	if known.calendars == nil {
		known.calendars = make(map[uint32]*Calendar)
	}
	c.Number = id
	known.calendars[id] = c
	return c
}

// isLike reports whether the calendar's zone shows the same times as another one.
func (c *Calendar) isLike(zone *time.Location) bool {
	for i := range c.like {
		if c.like[i].Load() == zone {
			return true
		}
	}
	if !sameZone(c.zone, zone) {
		return false
	}
	c.like[c.turn.Add(1)%uint32(len(c.like))].Store(zone)
	return true
}

const wayOut = `name a zone of the tz database, such as "Europe/Berlin", with time.LoadLocation`

// Err returns why New could not make the calendar, or nil.
func (c *Calendar) Err() error { return c.err }

// Location returns the zone of a calendar that has no error.
func (c *Calendar) Location() *time.Location { return c.zone }

// Load returns a zone by its name in the tz database. It reads files.
func Load(name string) (*time.Location, error) {
	switch name {
	case "", "Local", "localtime", "posixrules", "Factory":
		return nil, fmt.Errorf("time zone %q depends on the machine: %s", name, wayOut)
	}
	if path.Clean(name) != name { // another spelling would be another calendar
		return nil, fmt.Errorf("time zone %q is %q in the tz database: %s", name, path.Clean(name), wayOut)
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("time zone %q: %w: %s; if this machine has no tz database, import time/tzdata", name, err, wayOut)
	}
	return zone, nil
}

// sameZone reports whether two zones show the same times, in each month of 40 years.
func sameZone(a, b *time.Location) bool {
	for month := range 12 * 40 {
		t := time.Date(1998, time.Month(1+month), 10, 0, 0, 0, 0, time.UTC)
		_, x := t.In(a).Zone()
		_, y := t.In(b).Zone()
		if x != y {
			return false
		}
	}
	return true
}

// number returns what identifies a calendar. The zone is hashed, because other processes
// have to arrive at the same number. No two names of the tz database have the same hash.
func number(unit Unit, first int, zone string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(zone))
	which := uint32(unit) // 1: a day; 2 to 8: a week; 9 to 39: a month
	switch unit {
	case Week:
		which = 2 + uint32(first)
	case Month:
		which = 8 + uint32(first)
	}
	return which<<zoneBits | (h.Sum32()^h.Sum32()>>zoneBits)&(1<<zoneBits-1)
}

// Of returns the calendar with a number, or nil if New has not made it in this process.
func Of(number uint32) *Calendar {
	known.RLock()
	defer known.RUnlock()
	return known.calendars[number]
}

// String returns the calendar as in the name of a Redis key: "day-Europe/Berlin",
// "week-monday-UTC", "month-15-UTC".
func (c *Calendar) String() string {
	switch c.Unit {
	case Week:
		return "week-" + c.FirstText() + "-" + c.Zone
	case Month:
		return "month-" + c.FirstText() + "-" + c.Zone
	}
	return "day-" + c.Zone
}

// FirstText returns the first day: "monday", or "15". It returns "" for days.
func (c *Calendar) FirstText() string {
	switch c.Unit {
	case Week:
		if c.First < 0 || c.First > 6 {
			return strconv.Itoa(c.First) // of a calendar with an error
		}
		return strings.ToLower(time.Weekday(c.First).String())
	case Month:
		return strconv.Itoa(c.First)
	}
	return ""
}

// At returns the period that is in force at an instant, in nanoseconds since 1970 UTC.
// It takes no lock. It remembers the last period, so that it is cheap while the period
// lasts.
func (c *Calendar) At(unix int64) Period {
	if p := c.present.Load(); p != nil && p.Begin <= unix && unix < p.End {
		return *p
	}
	y, m, d := time.Unix(0, unix).In(c.zone).Date()
	day := c.firstDay(date(y, m, d))
	p := Period{Begin: c.begin(day)}
	for {
		day = c.next(day)
		if p.End = c.begin(day); unix < p.End {
			c.present.Store(&p)
			return p
		}
		p.Begin = p.End // the clocks have been turned back, or the day has been left out
	}
}

// Before returns the period before one that At has returned.
func (c *Calendar) Before(p Period) Period { return c.At(p.Begin - 1) }

// date returns midnight of a day in UTC, which is used for this date in any zone.
func date(y int, m time.Month, d int) time.Time { return time.Date(y, m, d, 0, 0, 0, 0, time.UTC) }

// firstDay returns the first day of the period that a date is in.
func (c *Calendar) firstDay(of time.Time) time.Time {
	switch c.Unit {
	case Week:
		return of.AddDate(0, 0, -(int(of.Weekday())-c.First+7)%7)
	case Month:
		first := c.inMonth(of.Year(), of.Month())
		if first.After(of) {
			first = c.inMonth(of.Year(), of.Month()-1)
		}
		return first
	}
	return of
}

// next returns the first day of the period after the one that begins on a day.
func (c *Calendar) next(day time.Time) time.Time {
	switch c.Unit {
	case Week:
		return day.AddDate(0, 0, 7)
	case Month:
		return c.inMonth(day.Year(), day.Month()+1)
	}
	return day.AddDate(0, 0, 1)
}

// inMonth returns the first day of the period that begins in a month: the day that the
// calendar names, or the last one of a shorter month.
func (c *Calendar) inMonth(y int, m time.Month) time.Time {
	last := date(y, m+1, 0)
	if c.First > last.Day() {
		return last
	}
	return date(y, m, c.First)
}

// begin returns the first instant at which the local date is a day, or a later one.
//
// It goes through the spans in which the zone's clocks are not changed, from one that ends
// after the day before. In such a span the local date becomes the day at midnight, or has
// been a later one when the span begins.
func (c *Calendar) begin(day time.Time) int64 {
	at := day.Add(-26 * time.Hour).In(c.zone) // no clock is ahead of UTC by so much that it is the day there
	for {
		_, offset := at.Zone()
		midnight := day.Add(-time.Duration(offset) * time.Second)
		if !midnight.After(at) {
			return at.UnixNano()
		}
		_, changed := at.ZoneBounds()
		if !changed.IsZero() && !changed.After(at) {
			// So it is on 31 December of leap years after the last change that is in the tz
			// database, for which there is only a rule (Go 1.26). An hour later is safe.
			changed = at.Add(time.Hour)
		}
		if changed.IsZero() || midnight.Before(changed) {
			return midnight.UnixNano()
		}
		at = changed.In(c.zone)
	}
}
