package storetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

var calendarFaults = []fault{
	{caught: "calendar", does: "begins a period with the first unit", breaks: otherEnd(func(l ratelimit.Limit, now, _ int64) int64 {
		return now + int64(l.Window())
	})},
	{caught: "calendar", does: "ends days at midnight in UTC", breaks: otherEnd(func(l ratelimit.Limit, now, end int64) int64 {
		if l.Window() == 24*time.Hour {
			return ends(ratelimit.Daily(1, nil), now)
		}
		return end
	})},
	{caught: "calendar", does: "begins each week on Monday", breaks: otherEnd(func(l ratelimit.Limit, now, end int64) int64 {
		if l.Window() == 7*24*time.Hour {
			return ends(ratelimit.Weekly(1, time.Monday, zoneOf(l)), now)
		}
		return end
	})},
	{caught: "calendar", does: "begins each month on its first day", breaks: otherEnd(func(l ratelimit.Limit, now, end int64) int64 {
		if l.Window() == 31*24*time.Hour {
			return ends(ratelimit.Monthly(1, 1, zoneOf(l)), now)
		}
		return end
	})},
	{caught: "calendar", does: "returns the length of the period as the wait", breaks: calendarResults(func(c *call, l ratelimit.Limit, res *ratelimit.Result) {
		if begin, end, _ := l.Period(time.Unix(0, int64(c.at))); res.RetryAfter > 0 {
			res.RetryAfter = end.Sub(begin)
			res.ResetAfter = res.RetryAfter
		}
	})},
	{caught: "calendar", does: "spreads the units over the period", breaks: calendarResults(func(_ *call, l ratelimit.Limit, res *ratelimit.Result) {
		res.MoreAfter /= time.Duration(l.N())
	})},
	{caught: "calendar", does: "returns waits with a look at a new key", breaks: calendarResults(func(c *call, l ratelimit.Limit, res *ratelimit.Result) {
		_, end, _ := l.Period(time.Unix(0, int64(c.at)))
		res.MoreAfter, res.ResetAfter = end.Sub(time.Unix(0, int64(c.at))), end.Sub(time.Unix(0, int64(c.at)))
	})},
	{caught: "calendar-never", does: "returns the end of the period for a cost above n", breaks: calendarResults(func(_ *call, _ ratelimit.Limit, res *ratelimit.Result) {
		if res.RetryAfter == ratelimit.Never {
			res.RetryAfter = time.Hour
		}
	})},
	{caught: "calendar-never", does: "takes n units for a cost above n", breaks: func(s *reference) {
		s.beforeTake(func(c *call) {
			if isCalendar(c.limits[0]) {
				c.n = min(c.n, c.limits[0].N())
			}
		})
	}},
	{caught: "calendar-counter", does: "knows a period by its usual length", breaks: otherNames(func(key string, l ratelimit.Limit) string {
		return fmt.Sprint(key, "\x00", l.Algorithm(), l.Window())
	})},
	{caught: "calendar-counter", does: "ignores the zone", breaks: otherNames(func(key string, l ratelimit.Limit) string {
		unitAndFirst := strings.TrimSuffix(l.Calendar(), zoneOf(l).String())
		return fmt.Sprint(key, "\x00", l.Algorithm(), l.Window(), unitAndFirst)
	})},
	{caught: "calendar-counter", does: "ignores the first day", breaks: otherNames(func(key string, l ratelimit.Limit) string {
		return fmt.Sprint(key, "\x00", l.Algorithm(), l.Window(), zoneOf(l))
	})},
	{caught: "calendar-counter", does: "knows a period by its end", breaks: func(s *reference) {
		otherNames(func(key string, l ratelimit.Limit) string {
			return fmt.Sprint(key, "\x00", l.Algorithm(), l.Window(), isCalendar(l) && ends(l, s.clock()) > 0, endOf(l, s.clock()))
		})(s)
	}},
	{caught: "calendar-counter", does: "knows a limit by its text", breaks: otherNames(func(key string, l ratelimit.Limit) string { return key + "\x00" + l.String() })},
	{caught: "calendar-counter", does: "counts a period and a window as long as one in the same counter", breaks: otherNames(func(key string, l ratelimit.Limit) string {
		if l.Calendar() == "day-"+zoneOf(l).String() || !isCalendar(l) {
			return fmt.Sprint(key, "\x00", l.Window())
		}
		return key + "\x00" + l.Calendar()
	})},
	{caught: "calendar-adjust", does: "gives nothing back", breaks: calendarMove(func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
		return move(l, c, max(0, n), now, age)
	})},
	{caught: "calendar-adjust", does: "lifts a key above its limit", breaks: func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
			if isCalendar(l) && !c.empty() && n < 0 {
				c.units = max(-1<<50, c.units+max(n, -1<<50))
				return c
			}
			return move(l, c, n, now, age)
		}
	}},
	{caught: "calendar-adjust", does: "charges above the limit", breaks: calendarMove(func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
		if c.units += min(max(0, n), 1<<50); n > 0 {
			return c
		}
		return move(l, c, n, now, age)
	})},
	{caught: "calendar-adjust", does: "charges nothing if a key has no counter", breaks: calendarMove(func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
		if c.empty() {
			return c
		}
		return move(l, c, n, now, age)
	})},
	{caught: "calendar-adjust", does: "begins a period with a charge", breaks: calendarMove(func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
		if c.empty() {
			c.t = now + int64(l.Window())
		}
		return move(l, c, n, now, age)
	})},
	{caught: "calendar-instants", does: "ignores the instant", breaks: calendarMove(func(l ratelimit.Limit, c counter, n int64, now, _ int64) counter {
		return move(l, c, n, now, 0)
	})},
	{caught: "calendar-instants", does: "charges units of less than a period ago, as in a fixed window", breaks: calendarMove(chargesAsFixed)},
	{caught: "calendar-instants", does: "gives back units of less than a period ago", breaks: calendarMove(func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
		if n < 0 && age < int64(l.Window()) {
			age = 0
		}
		return move(l, c, n, now, age)
	})},
	{caught: "calendar-instants", does: "adjusts only units that were taken after the first one", breaks: func(s *reference) {
		first := map[string]ratelimit.Instant{}
		s.afterTake(func(c *call) {
			if _, ok := first[c.key]; !ok && c.n > 0 {
				first[c.key] = c.at
			}
		})
		beforeAdjust(func(c *call) {
			if at, ok := first[c.key]; ok && c.at < at {
				c.at = 0
			}
		})(s)
	}},
	{caught: "calendar-instants", does: "has the first instant of a period in the one before", fine: true, breaks: calendarMove(
		func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
			if now-age == begins(l, c.t) {
				age++
			}
			return move(l, c, n, now, age)
		})},
	{caught: "calendar-several", does: "takes under one limit after the other", breaks: inTurn(false)},
	{caught: "calendar-several", does: "counts in a calendar period although another limit denies", breaks: countsAlthoughDenied(isCalendar)},
	{caught: "calendar-several", does: "counts under other limits although a calendar period is full", breaks: countsAlthoughDenied(
		func(l ratelimit.Limit) bool { return !isCalendar(l) })},
	{caught: "calendar-several", does: "adjusts no calendar period beside other limits", breaks: beforeAdjust(func(c *call) {
		if len(c.limits) > 1 {
			c.limits = slices.DeleteFunc(slices.Clone(c.limits), isCalendar)
		}
	})},
	{caught: "calendar-several", does: "returns the wait of the first calendar for each", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if i := slices.IndexFunc(c.limits, isCalendar); i >= 0 {
				for j := range c.results {
					if isCalendar(c.limits[j]) {
						c.results[j].RetryAfter = c.results[i].RetryAfter
					}
				}
			}
		})
	}},
	{caught: "calendar-reset", does: "forgets no calendar period", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			c.limits = slices.DeleteFunc(slices.Clone(c.limits), isCalendar)
			return s.reset(c)
		}
	}},
	{caught: "calendar-reset", does: "forgets all calendar periods of a key", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			for name := range s.counters {
				if strings.HasPrefix(name, s.begins(c.key)) && strings.Contains(name, "calendar") {
					delete(s.counters, name)
				}
			}
			return s.reset(c)
		}
	}},
	{caught: "calendar-reset", does: "forgets all keys in a calendar period", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			for _, l := range c.limits {
				for name := range s.counters {
					if isCalendar(l) && strings.HasSuffix(name, l.Calendar()) {
						delete(s.counters, name)
					}
				}
			}
			return s.reset(c)
		}
	}},
	{caught: "calendar-reset", does: "forgets the first MaxLimits only", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			c.limits = c.limits[:min(len(c.limits), ratelimit.MaxLimits)]
			return s.reset(c)
		}
	}},
	{caught: "calendar-extremes", does: "counts in single precision", breaks: calendarAged(func(l ratelimit.Limit, c counter, now int64) counter {
		c = aged(l, c, now)
		c.units = int64(float32(c.units))
		return c
	})},
	{caught: "calendar-extremes", does: "gives back 32 bits", breaks: calendarMove(func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
		return move(l, c, int64(int32(n)), now, age)
	})},
	{caught: "calendar-concurrent", does: "looks first and takes then", breaks: func(s *reference) {
		take := s.onTake
		s.onTake = func(c *call) error {
			n := c.n
			c.n = 0
			if err := take(c); err != nil || n == 0 {
				return err
			}
			c.n = n
			for i, l := range c.limits {
				if isCalendar(l) && n <= c.results[i].Remaining {
					time.Sleep(time.Microsecond)
					s.edit(c, func(l ratelimit.Limit, was *counter, _ int64) { *was = add(l, *was, n) })
					return nil
				}
			}
			return take(c)
		}
	}},
}

var calendarTimeFaults = []fault{
	{caught: "calendar-ends", does: "ends a period a moment too late", breaks: otherEnd(func(_ ratelimit.Limit, _, end int64) int64 { return end + 1 })},
	{caught: "calendar-ends", does: "ends a period a moment too early", breaks: otherEnd(func(_ ratelimit.Limit, _, end int64) int64 { return end - 1 })},
	{caught: "calendar-ends", does: "ends a period after its usual length", breaks: otherEnd(func(l ratelimit.Limit, _, end int64) int64 {
		return begins(l, end) + int64(l.Window())
	})},
	{caught: "calendar-ends", does: "ends a period at the last second of the day", breaks: otherEnd(func(_ ratelimit.Limit, _, end int64) int64 {
		return end - int64(time.Second)
	})},
	{caught: "calendar-ends", does: "asks for the period only once", breaks: func(s *reference) {
		asked := map[string]int64{}
		otherEnd(func(l ratelimit.Limit, _, end int64) int64 {
			if asked[l.Calendar()] == 0 {
				asked[l.Calendar()] = end
			}
			return asked[l.Calendar()]
		})(s)
	}},
	{caught: "calendar-ends", does: "ends no period of a key that is denied", breaks: calendarAged(func(l ratelimit.Limit, c counter, now int64) counter {
		if c.units == l.N() {
			return c
		}
		return aged(l, c, now)
	})},
	{caught: "calendar-ends", does: "hands what was left on to the next period", breaks: calendarAged(func(l ratelimit.Limit, c counter, now int64) counter {
		if now >= c.t && c.units == 1 {
			return counter{t: ends(l, now), units: 1 - l.N()}
		}
		return aged(l, c, now)
	})},
	{caught: "calendar-ends", does: "counts half of the units in the next period", breaks: calendarAged(func(l ratelimit.Limit, c counter, now int64) counter {
		if next := ends(l, now); !c.empty() && now >= c.t && begins(l, next) == c.t {
			return counter{t: next, units: c.units / 2}
		}
		return aged(l, c, now)
	})},
	{caught: "calendar-uneven", does: "has days of 24 hours", breaks: otherEnd(func(l ratelimit.Limit, _, end int64) int64 {
		return begins(l, end) + int64(24*time.Hour)
	})},
	{caught: "calendar-uneven", does: "does not change the clocks", breaks: otherEnd(func(l ratelimit.Limit, now, _ int64) int64 {
		_, offset := time.Date(time.Unix(0, now).Year(), 1, 1, 0, 0, 0, 0, zoneOf(l)).Zone()
		y, m, d := time.Unix(0, now).In(time.FixedZone("", offset)).Date()
		return time.Date(y, m, d+1, 0, 0, -offset, 0, time.UTC).UnixNano()
	})},
	{caught: "calendar-uneven", does: "goes by the time of the clock at the moment", breaks: otherEnd(func(l ratelimit.Limit, now, _ int64) int64 {
		at := time.Unix(0, now).In(zoneOf(l))
		passed := time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute + time.Duration(at.Second())*time.Second + time.Duration(at.Nanosecond())
		return now + int64(24*time.Hour-passed)
	})},
	{caught: "calendar-uneven", does: "asks time.Date for a midnight that does not exist", breaks: otherEnd(func(l ratelimit.Limit, now, _ int64) int64 {
		y, m, d := time.Unix(0, now).In(zoneOf(l)).Date()
		return time.Date(y, m, d+1, 0, 0, 0, 0, zoneOf(l)).UnixNano()
	})},
	{caught: "calendar-late", does: "ignores the instant", breaks: calendarMove(func(l ratelimit.Limit, c counter, n int64, now, _ int64) counter {
		return move(l, c, n, now, 0)
	})},
	{caught: "calendar-late", does: "charges units of less than a period ago, as in a fixed window", breaks: calendarMove(chargesAsFixed)},
	{caught: "calendar-late", does: "gives units back to the period that is in force", breaks: calendarMove(func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
		if n < 0 {
			age = 0
		}
		return move(l, c, n, now, age)
	})},
	{caught: "calendar-late", does: "adjusts nothing that was taken some time ago", breaks: calendarMove(func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
		if age >= int64(time.Hour) {
			return c
		}
		return move(l, c, n, now, age)
	})},
	{caught: "calendar-late", does: "opens the period of an instant again", breaks: calendarMove(func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
		if c.empty() && n > 0 {
			c.units = min(n, l.N())
			return c
		}
		return move(l, c, n, now, age)
	})},
}

var calendarBlockFaults = []fault{
	{caught: "calendar-block", does: "blocks until the period ends, although the duration is longer", breaks: afterStart(func(l ratelimit.Limit, b *block, now int64) {
		b.until = min(b.until, endOf(l, now))
	})},
	{caught: "calendar-block", does: "has one block for all calendars", breaks: func(s *reference) {
		s.blockName = func(key string, l ratelimit.Limit) string { return s.begins(key) + l.Algorithm() }
	}},
	{caught: "calendar-block", does: "ignores blocks by hand", breaks: beforeBlock(func(_ *reference, c *call) {
		c.limits = slices.DeleteFunc(slices.Clone(c.limits), isCalendar)
	})},
	{caught: "calendar-block", does: "does not lift a block with a reset", breaks: changedReset(func(_ *reference, was block, _ int64) block { return was })},
	{caught: "calendar-pending", does: "ignores pending units", breaks: otherPending(func([]ratelimit.Pending) []ratelimit.Pending { return nil })},
	{caught: "calendar-pending", does: "gives pending units back as if they had just been taken", breaks: otherPending(
		func(pending []ratelimit.Pending) []ratelimit.Pending {
			pending = slices.Clone(pending)
			for i := range pending {
				pending[i].At = ratelimit.Now
			}
			return pending
		})},
	{caught: "calendar-block-ends", does: "blocks for the duration, although the period lasts longer", breaks: func(s *reference) {
		s.start = func(l ratelimit.Limit, b block, _ time.Duration, now int64) block { return start(l, b, 0, now) }
	}},
	{caught: "calendar-block-ends", does: "lifts a block at the end of the period", breaks: func(s *reference) {
		s.recall = func(l ratelimit.Limit, b block, now int64) block {
			if isCalendar(l) && begins(l, ends(l, now)) == now {
				b.until = min(b.until, now)
			}
			return recall(l, b, now)
		}
	}},
	{caught: "calendar-block-ends", does: "goes on with a short block in the next period", breaks: afterStart(func(l ratelimit.Limit, b *block, now int64) {
		if b.until == endOf(l, now) {
			b.until += int64(time.Minute)
		}
	})},
	{caught: "calendar-block-ends", does: "charges what it denies in a block", breaks: func(s *reference) {
		s.afterTake(func(c *call) {
			if c.results[0].Blocked && c.n > 0 {
				s.edit(c, func(l ratelimit.Limit, was *counter, now int64) { *was = move(l, *was, c.n, now, 0) })
			}
		})
	}},
}

// The rest are parts of faults.

// zoneOf returns the zone of a limit of a calendar, and UTC for other limits.
func zoneOf(l ratelimit.Limit) *time.Location {
	begin, _, _ := l.Period(time.Unix(0, 0))
	return begin.Location()
}

// endOf returns the end of the present period of a calendar, and 0 for other limits.
func endOf(l ratelimit.Limit, now int64) int64 {
	if !isCalendar(l) {
		return 0
	}
	return ends(l, now)
}

// calendarAged changes how time passes for the counters of calendars.
func calendarAged(change func(l ratelimit.Limit, c counter, now int64) counter) func(*reference) {
	return func(s *reference) {
		s.aged = func(l ratelimit.Limit, c counter, now int64) counter {
			if isCalendar(l) {
				return change(l, c, now)
			}
			return aged(l, c, now)
		}
	}
}

// otherEnd changes the end of a period when it is written.
func otherEnd(change func(l ratelimit.Limit, now, end int64) int64) func(*reference) {
	return calendarAged(func(l ratelimit.Limit, c counter, now int64) counter {
		if c = aged(l, c, now); c.empty() {
			c.t = change(l, now, c.t)
		}
		return c
	})
}

// calendarMove changes how the counters of calendars are adjusted.
func calendarMove(change func(l ratelimit.Limit, c counter, n int64, now, age int64) counter) func(*reference) {
	return func(s *reference) {
		s.move = func(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
			if isCalendar(l) {
				return change(l, c, n, now, age)
			}
			return move(l, c, n, now, age)
		}
	}
}

// chargesAsFixed charges units of less than a window ago in the period that is in force.
func chargesAsFixed(l ratelimit.Limit, c counter, n int64, now, age int64) counter {
	if n > 0 && age < int64(l.Window()) {
		age = 0
	}
	return move(l, c, n, now, age)
}

// calendarResults changes the results under calendars.
func calendarResults(change func(c *call, l ratelimit.Limit, res *ratelimit.Result)) func(*reference) {
	return eachResult(func(c *call, l ratelimit.Limit, res *ratelimit.Result) {
		if isCalendar(l) {
			change(c, l, res)
		}
	})
}

// countsAlthoughDenied counts under some limits when another one denies.
func countsAlthoughDenied(some func(l ratelimit.Limit) bool) func(*reference) {
	return func(s *reference) {
		s.afterTake(func(c *call) {
			for i, l := range c.limits {
				if !admitted(c.results) && c.results[i].RetryAfter == 0 && some(l) {
					s.adjust(&call{ctx: c.ctx, key: c.key, n: c.n, at: ratelimit.Now, limits: []ratelimit.Limit{l}})
				}
			}
		})
	}
}

// TestCalendarCasesAreSkipped checks the reasons for which a calendar case does not run.
func TestCalendarCasesAreSkipped(t *testing.T) {
	clock := inBubble()
	Clock(time.Sleep, 1)(&clock)
	wall := clock
	WallClock(time.Now)(&wall)
	realTime := inBubble()
	RealTime(time.Second, time.Millisecond)(&realTime)
	counting, blocking, plain := newServer().store("all"), newServer().store("blocks"), newServer().store("none")
	blocking.kinds, plain.kinds = ratelimit.KindBlock, 0
	calendar, both := testCase{calendar: true}, testCase{calendar: true, blocks: true}
	for _, tc := range []struct {
		c    testCase
		s    ratelimit.Store
		cfg  config
		want string
	}{
		{calendar, counting, inBubble(), ""},
		{calendar, counting, realTime, ""},
		{calendar, counting, wall, ""},
		{calendar, counting, clock, "the time of the store's wall clock is not known: use WallClock"},
		{calendar, blocking, inBubble(), "the store is not a KindStore with KindCalendar"},
		{calendar, blocking, clock, "the store is not a KindStore with KindCalendar"},
		{both, blocking, inBubble(), "the store is not a KindStore with KindCalendar"},
		{both, plain, inBubble(), "the store is not a KindStore with KindBlock"},
		{testCase{blocks: true}, counting, clock, ""},
	} {
		if got := tc.c.missing(tc.s, tc.cfg); got != tc.want {
			t.Errorf("a case with calendar %v and blocks %v on a store with %v is skipped for %q, want %q",
				tc.c.calendar, tc.c.blocks, tc.s.(ratelimit.KindStore).Kinds(), got, tc.want)
		}
	}
}

// TestCalendarCasesPassAtAnyTime runs the cases that do not advance the clock at many times
// of the day and the year, on a store that counts no blocks and whose clock is off by almost
// a minute.
func TestCalendarCasesPassAtAnyTime(t *testing.T) {
	for i := range 30 {
		for _, c := range calendarCases {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Duration(i) * (12*24*time.Hour + 49*time.Minute))
				server := newServer()
				off := []time.Duration{-55 * time.Second, 55 * time.Second}[i%2]
				server.clock = func() int64 { return time.Now().Add(off).UnixNano() }
				server.delay = slowCall
				for _, p := range c.run(t, onOwnClock(), func(_ *testing.T, prefix string) ratelimit.Store {
					s := server.store(prefix)
					s.kinds = ratelimit.KindCalendar
					return s
				}) {
					t.Errorf("at %v: case %q: %s", time.Now(), c.name, p)
				}
			})
		}
	}
}
