package rule

// This file has periods of a calendar: a day, a week or a month. A period ends at an
// instant that only a calendar knows, and the next one is not always as long. So the limit
// says when the period in force ends and how long it lasts, and the caller sets both
// before each call; see [Limit].
//
// The state holds the end of the period in which its units were counted. Until then that
// is the period in force, whatever the limit says. So if two processes disagree about an
// end, because their tz databases differ, the one that opens a period decides for both. If
// a clock is set back by less than a period, the period that it has opened too early goes
// on, with its units: its quota is given out early, but once.

// End returns when the period of a Calendar ends.
func (l *Limit) End() int64 { return l.Burst }

// Around returns the limit for a state that is on another clock than the limit's period:
// with the period that the state is of. For other kinds it returns the limit.
func (l Limit) Around(s State, now int64) Limit {
	if l.Kind == Calendar {
		if l.Burst = s.T; s.Fresh() || s.T <= now {
			l.Burst = now + l.Window
		}
	}
	return l
}

// inPeriod returns an instant within the period of the limit: the last one, if the period
// has ended since the caller has asked for it.
func (l *Limit) inPeriod(now int64) int64 { return min(now, l.End()-1) }

// atPeriod returns the state that counts at now, with the end of the period of the limit
// if there is none. A period that is later than the next one was opened by a clock that was
// wrong by as much: its units count in the period of the limit.
func (l *Limit) atPeriod(s State, now int64) State {
	switch {
	case s.Fresh():
		return State{T: l.End()}
	case s.T <= now && l.End()-s.T < l.Window/2:
		// The state's period is the one of the limit, and has ended by another clock, such as
		// the one of a store that is away now. The next period follows.
		return State{T: l.End() + l.Window}
	case s.T <= now:
		return State{T: l.End()}
	case s.T-l.End() > l.longestNext():
		s.T = l.End()
	}
	return s
}

// longestNext is how long the period after the limit's one is at most. It is not known how
// long it is. March is 1.11 times as long as February, and two months or days are more than
// 1.8 times as long as the one before them.
func (l *Limit) longestNext() int64 { return l.Window + l.Window/2 }

// takePeriod is Take.
func (l *Limit) takePeriod(s State, now, n int64) (State, Answer) {
	now = l.inPeriod(now)
	c := l.atPeriod(s, now)
	left := max(0, l.N-c.A)
	ends := c.T - now
	var a Answer
	switch {
	case n > l.N:
		a.Retry = Never
	case n > left:
		a.Retry = ends
	case n > 0:
		left -= n
		c.A += n
		s = c
	}
	if s.T > c.T { // as repair does: also if the units do not fit
		s = c
	}
	if a.Remaining = left; left < l.N {
		a.More, a.Reset = ends, ends
	}
	return s, a
}

// adjustPeriod is Adjust. Units belong to the period in which they were taken. If the state
// is of an earlier period than the limit's, that is taken to be as long. If it is of a later
// one, because a clock was set back, the units of the limit's period are counted in it, too.
func (l *Limit) adjustPeriod(s State, now, n, age int64) State {
	then := now - age
	c := l.atPeriod(s, l.inPeriod(now))
	if n == 0 || n < 0 && (c.Fresh() || then >= c.T) || then < min(c.T, l.End())-l.Window {
		return s
	}
	if c.A = l.shift(c.A, n); c.Fresh() {
		return State{}
	}
	return c
}
