package table

import "github.com/ratelimit-go/ratelimit/internal/rule"

// This file is for limits of the kind [rule.Calendar]. Their periods end by the wall clock,
// and the table's clock is another one, which does not go on while the machine sleeps, for
// example. So a slot has the end of the period by the wall clock, in nanoseconds since
// 1970, where the slots of other kinds have an instant of the table's clock. It is converted
// when the slot is read and written: rules and callers get instants of the table's clock
// only. A table whose wall clock is never set has the same instants in all slots.
//
// A slot does not refer to the calendar. All counters of this kind have the number
// calendarShape for their shape: what determines when they expire is in the slot.

const calendarShape = blockShape - 1

// calendarLimit is the shape of all counters of calendars. Its numbers mean nothing.
var calendarLimit = rule.Limit{Kind: rule.Calendar, N: 1, Window: rule.MinSpan}

// SetWall sets what the wall clock, in nanoseconds since 1970 UTC, is ahead of the table's
// clock. It is for each call with a calendar, because the wall clock is set again and
// again.
func (t *Table) SetWall(ahead int64) {
	if t.wall.Load() != ahead {
		t.wall.Store(ahead)
	}
}

// useCalendars makes the shape of calendars known. It takes no lock.
func (s *shapes) useCalendars() id {
	if s[calendarShape].Load() == nil {
		s[calendarShape].Store(&calendarLimit)
	}
	return calendarShape
}

// HasCalendars reports whether there may be counters of calendars.
func (s *Shapes) HasCalendars() bool { return s[calendarShape].Kind == rule.Calendar }

// IsCalendars reports whether a number is the one that all counters of calendars have.
func IsCalendars(shape int) bool { return shape == calendarShape }

// toSlot returns the end of a period, by the table's clock, as a slot has it: without the
// high bits, for which a slot has no room. They are not needed. An instant of the table's
// clock has none, and so it is what is left when the wall clock is subtracted again,
// whatever year that shows.
func toSlot(end, wall int64) int64 { return (end + wall) & timeMask }

// fromSlot is the inverse of toSlot.
func fromSlot(when, wall int64) int64 { return (when - wall) & timeMask }

// inPeriods returns the instant at which to decide about limits that a caller has filled
// in shortly before: none of their periods may have ended, because the caller would count
// the units in a period that is over.
func inPeriods(now int64, limits []rule.Limit) int64 {
	for i := range limits {
		if limits[i].Kind == rule.Calendar {
			now = min(now, limits[i].End()-1)
		}
	}
	return now
}
