package table

import (
	"math"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// shapes assigns numbers to the limits that a table has seen. It only distinguishes
// what determines when a counter expires: kind, window and, for buckets, rate. A
// slot has 6 bits for the number. The first 54 shapes get one each. All other shapes
// share the numbers below classes, by the longest life of their counters. The last
// two numbers are for calendars and blocks; see calendar.go and block.go. Methods take no lock and may be called
// concurrently.
type shapes [maxShapes]atomic.Pointer[rule.Limit]

// classes is how many numbers are for limits without a number of their own.
const classes = 8

// classLives is the longest life in nanoseconds of a counter in each class. The first
// class has all counters that live longer. A counter of a class is kept as long as the
// longest-lived shape of that class that the table has seen. So counters with short
// lives are kept for at most ten times as long as necessary, or for a second.
var classLives = [classes]int64{
	math.MaxInt64, 1e9, 10e9, 60e9, 600e9, 3600e9, 6 * 3600e9, 24 * 3600e9,
}

// of returns the number of a limit's shape. A counter that was last used under the limit
// has that number already: likely is its id, or any other one.
func (s *shapes) of(l *rule.Limit, likely id) id {
	if l.Kind == rule.Calendar {
		return s.useCalendars()
	}
	if known := s.limit(likely); known != nil && hasShape(known, l) {
		return likely % maxShapes
	}
	for i := classes; i < calendarShape; i++ {
		known := s[i].Load()
		if known == nil {
			copied := *l
			if s[i].CompareAndSwap(nil, &copied) {
				return id(i)
			}
			known = s[i].Load()
		}
		if hasShape(known, l) {
			return id(i)
		}
	}
	if l.Kind == rule.Bucket {
		return s.class(l.Refill())
	}
	return s.class(2 * l.Window)
}

// hasShape reports whether known, whose number may be a shared one, is of the shape of l.
func hasShape(known, l *rule.Limit) bool {
	return known.Kind == l.Kind && known.Window == l.Window && (known.N == l.N || l.Kind != rule.Bucket)
}

// class returns the shared number for limits that have no number of their own and whose
// counters live up to life nanoseconds. The number refers to a limit without a kind,
// whose window is the longest life so far.
func (s *shapes) class(life int64) id {
	c := 1
	for c < classes && life > classLives[c] {
		c++
	}
	c %= classes
	for {
		longest := s[c].Load()
		if longest != nil && longest.Window >= life {
			return id(c)
		}
		if s[c].CompareAndSwap(longest, &rule.Limit{Window: life, N: 1}) {
			return id(c)
		}
	}
}

// limit returns the limit of a slot's shape. If it has no kind, its window is the
// longest life of the counter.
func (s *shapes) limit(of id) *rule.Limit { return s[of%maxShapes].Load() }
