package ratelimit

import (
	"fmt"
	"math"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/calendar"
	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Daily allows n units per calendar day in a time zone. A day begins at midnight, local
// time. If the clocks are put forward at midnight, it begins then. On days when the clocks
// are changed, it has 23 or 25 hours.
//
//	berlin, err := time.LoadLocation("Europe/Berlin")
//	…
//	ratelimit.Daily(1000, berlin)
//
// A zone counts by its name in the tz database, and nil is UTC. [time.Local] and a
// [time.FixedZone] are refused, because their names do not mean the same everywhere.
//
// The wall clock of the store decides. For a MemoryStore it is the machine's clock, and for
// a RedisStore the server's. A clock that is off by less than a day frees a key early by no
// more than it is off. While a store of several machines is away, each process goes by the
// clock of its machine. If two processes disagree about the end of a day, because their tz
// databases differ, the one that counts the first unit of the day decides for both.
//
// What is given back is given back to the day in which it was taken, and not if that is
// over. After a [Limiter.Reset] that may be units from before it: then the key has more
// left, but never more than n.
//
// Bound: at most n units in each day. An interval that is no longer than the shortest of
// its days sees at most 2n: n before midnight, and n after it.
//
// A [MemoryStore] and a [RedisStore] count calendar periods, and so do stores that
// implement [KindStore] with [KindCalendar]. [New] refuses the limit for other stores.
func Daily(n int64, loc *time.Location) Limit { return newCalendarLimit(n, calendar.Day, 0, loc) }

// Weekly allows n units per calendar week in a time zone. A week begins with the first
// day, such as [time.Monday]. [Daily] says what a day is, and what applies to zones, clocks
// and stores.
//
// Bound: at most n units in each week, and at most 2n in an interval that is no longer than
// the shortest of its weeks.
func Weekly(n int64, first time.Weekday, loc *time.Location) Limit {
	return newCalendarLimit(n, calendar.Week, int(first), loc)
}

// Monthly allows n units per calendar month in a time zone. A month begins on the given
// day, 1 to 31, or on its last day if it is shorter: with 31, the month after 31 January
// begins on 28 February, and the next one on 31 March. [Daily] says what a day is, and what
// applies to zones, clocks and stores.
//
// Bound: at most n units in each month, and at most 2n in an interval that is no longer than
// the shortest of its months.
func Monthly(n int64, day int, loc *time.Location) Limit {
	return newCalendarLimit(n, calendar.Month, day, loc)
}

func newCalendarLimit(n int64, unit calendar.Unit, first int, loc *time.Location) Limit {
	c := calendar.New(unit, first, loc)
	return Limit{rule: rule.Limit{Kind: rule.Calendar, Number: c.Number, N: n, Window: unit.Nominal()}, calendar: c}
}

// Period returns the period of [Daily], [Weekly] or [Monthly] in which a time lies: from
// begin up to end, which is the first instant of the next period. Both are in the limit's
// zone. ok is false for other limits, for limits that are not valid, and for times that are
// not in the years 1700 to 2200.
//
// A store that counts these limits starts a counter with the end of the period in force:
//
//	now := time.Now()
//	if !now.Before(counter.end) { // a new counter, or one of a period that is over
//		_, end, _ := limit.Period(now)
//		counter = counted{units: 0, end: end}
//	}
//
// [KindStore] has the rules for such a store.
func (l Limit) Period(at time.Time) (begin, end time.Time, ok bool) {
	if year := at.Year(); l.calendar == nil || l.calendar.Err() != nil || year < 1700 || year > 2200 {
		return time.Time{}, time.Time{}, false
	}
	p, zone := l.calendar.At(at.UnixNano()), l.calendar.Location()
	return time.Unix(0, p.Begin).In(zone), time.Unix(0, p.End).In(zone), true
}

// Calendar returns what identifies the periods of [Daily], [Weekly] or [Monthly]: the unit,
// the first day and the zone, such as "day-Europe/Berlin", "week-monday-UTC" or
// "month-15-UTC". It returns "" for other limits and for limits that are not valid. A store
// can use it in the names of its counters.
func (l Limit) Calendar() string {
	if l.calendar == nil || l.calendar.Err() != nil {
		return ""
	}
	return l.calendar.String()
}

// present returns the counting rule of a limit of a calendar, with the period that is in
// force. ahead is from clock.WallAhead.
func (l *Limit) present(ahead int64) rule.Limit {
	r := l.rule
	if l.calendar.Err() != nil { // a store was given a limit that is not valid
		r.Burst = math.MaxInt64 / 4
		return r
	}
	p := l.calendar.At(clock.Now() + ahead)
	r.Window, r.Burst = p.End-p.Begin, p.End-ahead
	return r
}

// validateCalendars returns an error for a limit whose calendar does not exist.
func validateCalendars(limits []Limit) error {
	for _, l := range limits {
		if l.calendar != nil && l.calendar.Err() != nil {
			return fmt.Errorf("limit %v: %w", l, l.calendar.Err())
		}
	}
	return nil
}

// anyCalendar reports whether any of the limits is of a calendar.
func anyCalendar(limits []Limit) bool {
	for i := range limits {
		if limits[i].calendar != nil {
			return true
		}
	}
	return false
}
