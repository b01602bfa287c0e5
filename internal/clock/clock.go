// Package clock is the one place where this library reads the monotonic clock.
//
// An instant is an int64: nanoseconds since an epoch that each process sets for
// itself. Differences between instants are monotonic, so setting the wall clock
// changes nothing, and testing/synctest controls them.
package clock

import "time"

// epoch is 40 years before the process started. Time in a bubble of
// testing/synctest begins with the year 2000, which may be decades before the
// process started: the distance keeps instants positive there, too.
var epoch = time.Now().Add(-beforeStart)

// Now returns the present instant.
func Now() int64 { return int64(time.Since(epoch)) }

// Virtual reports whether this is a bubble of testing/synctest: its time is before
// the start of the process. What is shared by the whole process
// cannot be used there: its instants would lie in the future.
func Virtual() bool { return Now() < int64(beforeStart) }

const beforeStart = 40 * 365 * 24 * time.Hour

// Time returns an instant as a time, for deadlines and timers.
func Time(instant int64) time.Time { return epoch.Add(time.Duration(instant)) }
