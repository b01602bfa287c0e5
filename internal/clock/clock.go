// Package clock is the one place where this library reads the clocks.
//
// An instant is an int64: nanoseconds since an epoch that each process sets for
// itself. Differences between instants are monotonic, so setting the wall clock
// does not affect them. In a bubble of testing/synctest they follow its virtual
// time.
package clock

import "time"

// epoch is 40 years before the process started. Time in a bubble of
// testing/synctest begins with the year 2000, which may be decades before the
// process started. The distance keeps instants positive there, too.
var epoch = time.Now().Add(-beforeStart)

// Now returns the present instant.
func Now() int64 { return int64(time.Since(epoch)) }

// WallAhead returns what the wall clock, in nanoseconds since 1970 UTC, is ahead of Now. It
// changes when the wall clock is set, and when the machine sleeps.
func WallAhead() int64 {
	now := time.Now() // one reading for both
	return now.UnixNano() - int64(now.Sub(epoch))
}

// Virtual reports whether the caller runs in a bubble of testing/synctest: its
// time is before the start of the process. State that is shared by the whole
// process cannot be used there, because its instants would be in the future.
func Virtual() bool { return Now() < int64(beforeStart) }

const beforeStart = 40 * 365 * 24 * time.Hour

// Time returns an instant as a time, for deadlines and timers.
func Time(instant int64) time.Time { return epoch.Add(time.Duration(instant)) }
