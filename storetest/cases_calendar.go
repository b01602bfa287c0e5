package storetest

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the cases of limits with periods of a calendar. The first group does not
// wait, and checks the periods that are in force when it runs. The others advance the
// clock, one of them by more than a year.

// Calendar periods at one moment.
var calendarCases = []testCase{
	{
		name:     "calendar",
		rules:    []int{1, 2, 3},
		rule:     "n units per calendar period, and then none until it ends: each wait is the time to its end",
		calendar: true,
		check: func(r *run) {
			for _, limit := range r.allCalendars() {
				l := limit(4)
				if res := r.take("key", 0, l)[0]; res != (ratelimit.Result{Remaining: 4}) {
					r.problem("a new key under %v: %+v, want 4 remaining and no waits", l, res)
				}
				r.admits("key", 1, l)
				r.lastsToEnd("key", 0, 3, l)
				r.lastsToEnd("key", 4, 3, l)
				r.admits("key", 3, l)
				for _, n := range []int64{0, 1, 4} {
					r.lastsToEnd("key", n, 0, l)
				}
			}
		},
	},
	{
		name:     "calendar-never",
		rules:    []int{2, 6},
		rule:     "a cost above n fits into no calendar period: RetryAfter is Never, and nothing changes",
		calendar: true,
		check: func(r *run) {
			for _, l := range r.calendars(4) {
				for _, taken := range []int64{0, 1, 3} {
					r.admits("key", taken, l)
					for _, n := range []int64{5, 1 << 32, math.MaxInt64} {
						if res := r.take("key", n, l)[0]; res.RetryAfter != ratelimit.Never {
							r.problem("RetryAfter of %d units under %v is %v, want Never", n, l, res.RetryAfter)
						}
					}
				}
				r.lastsToEnd("key", 1, 0, l)
			}
		},
	},
	{
		name:     "calendar-counter",
		rules:    []int{7, 9},
		rule:     "another unit, first day or zone is another counter, and so is a window that is as long; another n, name or Block is not",
		calendar: true,
		check: func(r *run) {
			limits := r.allCalendars()
			for _, limit := range limits {
				r.admits("key", 2, limit(2))
				r.admits("together", 1, limit(2))
			}
			for _, days := range []int{1, 7, 31} {
				r.admits("key", 2, ratelimit.FixedWindow(2, time.Duration(days)*24*time.Hour))
			}
			for _, limit := range limits {
				r.denies("key", 1, limit(2))
				r.denies("key", 1, limit(2).Named("other"))
				r.remains("key", 3, limit(5))
				r.remains("key", 0, limit(1))
				r.remains("key2", 2, limit(2))
				if counts(r.store, ratelimit.KindBlock) {
					r.remains("key", 3, limit(5).Block(time.Hour))
				}
			}
			for len(limits) > 0 { // no two of one call share a counter
				n := min(len(limits), ratelimit.MaxLimits)
				var some []ratelimit.Limit
				for _, limit := range limits[:n] {
					some = append(some, limit(2))
				}
				r.admits("together", 1, some...)
				limits = limits[n:]
			}
		},
	},
	{
		name:     "calendar-adjust",
		rules:    []int{1, 2},
		rule:     "a refund gives back in the present period, and a charge takes what is left of it, also of a key without a counter",
		calendar: true,
		check: func(r *run) {
			for _, l := range r.calendars(5) {
				r.admits("key", 3, l)
				r.refunds("key", 1, r.at, l)
				r.lastsToEnd("key", 0, 3, l)
				r.refunds("key", math.MaxInt64, ratelimit.Now, l)
				r.remains("key", 5, l)
				r.charges("key", math.MinInt64, 0, r.at, l)
				r.charges("key", 2, 2, r.at, l)
				r.lastsToEnd("key", 0, 3, l)
				r.charges("key", math.MaxInt64, 3, ratelimit.Now, l)
				r.charges("key", 1, 0, ratelimit.Now, l)
				r.lastsToEnd("key", 1, 0, l)

				r.charges("new", 2, 2, ratelimit.Now, l)
				r.lastsToEnd("new", 0, 3, l)
				r.refunds("unknown", 2, r.at, l)
				if res := r.take("unknown", 0, l)[0]; res != (ratelimit.Result{Remaining: 5}) {
					r.problem("after a refund of a new key under %v: %+v, want 5 remaining and no waits", l, res)
				}
			}
		},
	},
	{
		name:     "calendar-instants",
		rules:    []int{1, 2, 5},
		rule:     "Adjust has no effect on units of an instant before the present period, and has one from its first instant on",
		calendar: true,
		check: func(r *run) {
			for _, l := range r.calendars(5) {
				before, first, ok := r.border("new", l)
				if !ok {
					continue
				}
				r.admits("key", 3, l)
				r.refunds("key", 2, before, l)
				r.remains("key", 2, l)
				r.charges("key", 2, 0, before, l)
				r.remains("key", 2, l)
				r.refunds("key", 2, first, l)
				r.remains("key", 4, l)
				r.charges("key", 1, 1, first, l)
				r.lastsToEnd("key", 0, 3, l)

				r.charges("new", 2, 0, before, l)
				r.remains("new", 5, l)
				r.charges("new", 2, 2, first, l)
				r.lastsToEnd("new", 0, 3, l)
			}
		},
	},
	{
		name:     "calendar-several",
		rules:    []int{2, 4},
		rule:     "calendar periods and other limits together take all or none, and each is adjusted as far as it has room",
		calendar: true,
		check: func(r *run) {
			day, week := r.calendars(5)[0], r.calendars(9)[1]
			for _, other := range r.three(3) {
				for _, limits := range [][]ratelimit.Limit{{other, day, week}, {day, week, other}, {week, other, day}} {
					key := fmt.Sprint("from ", limits[0].Algorithm(), limits[0].N())
					left := func(fromOther, fromDay, fromWeek int64) {
						r.remains(key, fromOther, other)
						r.remains(key, fromDay, day)
						r.remains(key, fromWeek, week)
					}
					r.admits(key, 3, limits...)
					r.denies(key, 1, limits...)
					left(0, 2, 6)
					r.reset(key, other)
					for i, res := range r.take(key, 3, limits...) {
						if denies := limits[i] == day; denies != (res.RetryAfter > 0) {
							r.problem("3 units under %v, of which %v denies: RetryAfter under %v is %v", limits, day, limits[i], res.RetryAfter)
						} else if denies {
							r.toEnd("RetryAfter", res.RetryAfter, day)
						}
					}
					left(3, 2, 6)
					r.admits(key, 2, limits...)
					left(1, 0, 4)
					r.refunds(key, 2, r.at, limits...)
					left(3, 2, 6)
					r.charges(key, 9, 2, ratelimit.Now, limits...)
					left(0, 0, 0)
					r.reset(key, limits...)
				}
			}
		},
	},
	{
		name:     "calendar-reset",
		rules:    []int{9},
		rule:     "a reset forgets the calendar periods that it is given, also more than MaxLimits, and no other",
		calendar: true,
		check: func(r *run) {
			var limits []ratelimit.Limit
			for _, limit := range r.allCalendars() {
				limits = append(limits, limit(2))
			}
			all := append(slices.Clone(limits), r.three(2)...)
			for _, l := range all {
				r.admits("key", 2, l)
				r.admits("other", 2, l)
			}
			r.reset("key", limits[0])
			for i, l := range all {
				r.remains("key", []int64{2, 0}[min(i, 1)], l)
			}
			r.admits("key", 2, limits[0])
			r.denies("key", 1, limits[0])
			r.reset("key", limits...)
			r.reset("key", limits...)
			for i, l := range all {
				left := int64(2)
				if i >= len(limits) {
					left = 0
				}
				r.remains("key", left, l)
				r.remains("other", 0, l)
			}
		},
	},
	{
		name:     "calendar-extremes",
		rules:    []int{6},
		rule:     "no arithmetic overflows with the largest number of units in a calendar period",
		calendar: true,
		check: func(r *run) {
			const most = 999_999_999_999_999
			for _, l := range r.calendars(most) {
				r.admits("key", most-1, l)
				r.lastsToEnd("key", 2, 1, l)
				r.charges("key", math.MaxInt64, 1, r.at, l)
				r.lastsToEnd("key", most, 0, l)
				r.refunds("key", 1<<40+1, r.at, l)
				r.lastsToEnd("key", most, 1<<40+1, l)
				r.admits("key", 1<<40, l)
				r.remains("key", 1, l)
				r.charges("key", math.MinInt64, 0, ratelimit.Now, l)
				r.remains("key", most, l)
			}
		},
	},
	{
		name:     "calendar-concurrent",
		rules:    []int{1, 4},
		rule:     "exactly n units are admitted in a calendar period, however many goroutines ask, also beside another limit",
		calendar: true,
		check: func(r *run) {
			for _, l := range r.calendars(100) {
				other := ratelimit.FixedWindow(150, r.window)
				if got, _ := r.hammer([]ratelimit.Store{r.store}, "key", 1, l); got != 100 {
					r.problem("%d units were admitted under %v, want 100", got, l)
				}
				if got, _ := r.hammer([]ratelimit.Store{r.store}, l.String(), 1, l, other); got != 100 {
					r.problem("%d units were admitted under %v and %v, want 100", got, l, other)
				}
				r.remains(l.String(), 50, other)
			}
		},
	},
}

// How calendar periods follow each other.
var calendarTimeCases = []testCase{
	{
		name:     "calendar-ends",
		rules:    []int{1, 3},
		rule:     "a calendar period ends at midnight in its zone, whenever its first unit came; then n units fit into the next one",
		calendar: true,
		days:     true,
		check: func(r *run) {
			for _, l := range []ratelimit.Limit{
				ratelimit.Daily(3, r.zone("America/New_York")),
				ratelimit.Weekly(3, time.Wednesday, r.zone("Asia/Kolkata")),
				ratelimit.Monthly(3, 31, r.zone("Europe/Berlin")),
			} {
				for range 3 {
					begin, end := r.period(l)
					r.to(begin.Add(end.Sub(begin) / 3))
					r.admits("key", 1, l)
					r.to(end.Add(-time.Hour))
					r.lastsToEnd("key", 0, 2, l)
					r.admits("key", 2, l)
					r.lastsToEnd("key", 1, 0, l)
					r.to(end.Add(-r.step()))
					r.denies("key", 1, l)
					r.to(end)
					r.remains("key", 3, l)
					r.admits("key", 3, l)
					r.lastsToEnd("key", 1, 0, l)
					_, end = r.period(l)
					r.to(end.Add(time.Hour))
				}
				r.admits("key", 1, l) // and leaves some
				_, end := r.period(l)
				r.to(end.Add(time.Hour))
				r.admits("key", 3, l)
				r.lastsToEnd("key", 1, 0, l)
				_, end = r.period(l)
				_, end, _ = l.Period(end)
				r.to(end.Add(time.Hour)) // a period without units
				r.admits("key", 3, l)
				r.lastsToEnd("key", 1, 0, l)
			}
		},
	},
	{
		name:     "calendar-uneven",
		rules:    []int{1, 3},
		rule:     "a day on which the clocks are changed has 23 or 25 hours and n units; if they skip midnight, it begins when they do",
		calendar: true,
		days:     true,
		check: func(r *run) {
			for _, next := range []func() (begin, end time.Time){
				func() (begin, end time.Time) { return r.nextDay(23 * time.Hour) },
				func() (begin, end time.Time) { return r.nextDay(25 * time.Hour) },
				r.nextWithoutMidnight,
			} {
				begin, end := next()
				if begin.IsZero() {
					continue
				}
				l, lasts := ratelimit.Daily(2, begin.Location()), end.Sub(begin)
				r.to(begin.Add(-time.Hour))
				r.admits("key", 2, l)
				r.about(fmt.Sprintf("RetryAfter under %v, an hour before midnight,", l), r.take("key", 1, l)[0].RetryAfter, time.Hour)
				r.to(begin)
				r.admits("key", 1, l)
				r.resets("key", lasts, l)
				r.to(begin.Add(lasts / 2))
				r.admits("key", 1, l)
				r.about(fmt.Sprintf("RetryAfter under %v, on a day of %v,", l, lasts), r.take("key", 1, l)[0].RetryAfter, lasts-lasts/2)
				r.to(end.Add(-r.step()))
				r.denies("key", 1, l)
				r.to(end)
				r.remains("key", 2, l)
			}
		},
	},
	{
		name:     "calendar-late",
		rules:    []int{1, 2, 5},
		rule:     "a late refund or charge reaches the calendar period in which its units were taken, and never a later one",
		calendar: true,
		days:     true,
		check: func(r *run) {
			for _, l := range r.calendars(5) {
				_, end := r.period(l)
				r.to(end.Add(-2 * time.Hour))
				r.admits("key", 3, l)
				r.admits("no units since", 3, l)
				at := r.at
				r.to(end.Add(-time.Hour))
				r.refunds("key", 2, at, l)
				r.lastsToEnd("key", 0, 4, l)
				r.charges("key", 1, 1, at, l)
				r.lastsToEnd("key", 0, 3, l)
				r.to(end.Add(time.Hour))
				r.admits("key", 2, l)
				r.refunds("key", 2, at, l)
				r.remains("key", 3, l)
				r.charges("key", 2, 0, at, l)
				r.lastsToEnd("key", 0, 3, l)
				r.refunds("no units since", 2, at, l)
				r.charges("no units since", 2, 0, at, l)
				r.charges("new", 2, 0, at, l)
				for _, key := range []string{"no units since", "new"} {
					if res := r.take(key, 0, l)[0]; res != (ratelimit.Result{Remaining: 5}) {
						r.problem("%s, after an Adjust for the period before under %v: %+v, want 5 remaining and no waits", key, l, res)
					}
				}
			}
		},
	},
}

// Blocks under calendar periods.
var calendarBlockCases = []testCase{
	{
		name:     "calendar-block",
		rules:    []int{7, 9, 19},
		rule:     "a denial in a calendar period blocks for the duration, or until the period ends if that is later",
		calendar: true,
		blocks:   true,
		check: func(r *run) {
			const long = 50 * 24 * time.Hour // longer than any period
			limits := r.calendars(2)
			for i, l := range limits {
				r.admits("long", 2, l)
				r.begins("long", 1, long, l.Block(long))
				r.blocked("long", long, l)
				r.admits("short", 2, l)
				for _, began := range []bool{true, false} {
					res := r.take("short", 1, l.Block(time.Millisecond))[0]
					if !res.Blocked || res.BlockBegan != began {
						r.problem("a denial under %v: %+v, want Blocked true and BlockBegan %v", l.Block(time.Millisecond), res, began)
					}
					r.toEnd("RetryAfter in a block that is shorter than the period", res.RetryAfter, l)
				}
				for _, other := range limits[i+1:] {
					r.free("short", other)
				}
				r.reset("long", l)
				r.free("long", l)
				r.admits("long", 2, l)

				r.block("by hand", ratelimit.Block{Left: long}, l)
				r.blocked("by hand", long, l)
				for _, other := range limits[i+1:] {
					r.free("by hand", other)
				}
			}
		},
	},
	{
		name:     "calendar-pending",
		rules:    []int{5, 19},
		rule:     "pending units of the present calendar period keep a block from starting, and those of an earlier one do not",
		calendar: true,
		blocks:   true,
		check: func(r *run) {
			const long = 50 * 24 * time.Hour
			for _, l := range r.calendars(2) {
				before, first, ok := r.border("key", l)
				r.admits("key", 2, l)
				for _, pending := range []struct {
					at     ratelimit.Instant
					known  bool
					blocks bool
				}{{r.at, true, false}, {first, ok, false}, {before, ok, true}} {
					if !pending.known {
						continue
					}
					res := r.takePending("key", 1, []ratelimit.Pending{{Units: 1, At: pending.at}}, l.Block(long))[0]
					if res.RetryAfter == 0 || res.BlockBegan != pending.blocks {
						r.problem("a unit under %v, with one that is pending: %+v, want a denial and BlockBegan %v", l, res, pending.blocks)
					}
				}
			}
		},
	},
	{
		name:     "calendar-block-ends",
		rules:    []int{3, 19},
		rule:     "a block outlasts the calendar period in which it began, and the next period counts beneath it",
		calendar: true,
		blocks:   true,
		days:     true,
		check: func(r *run) {
			for _, l := range r.calendars(2) {
				_, end := r.period(l)
				r.to(end.Add(-time.Hour))
				blocking := l.Block(3*time.Hour, 5*time.Hour)
				r.admits("long", 2, l)
				r.begins("long", 1, 3*time.Hour, blocking)
				short := l.Block(time.Minute)
				r.admits("short", 2, l)
				r.begins("short", 1, time.Hour, short)

				r.to(end.Add(-r.step()))
				r.blocked("short", r.step(), short)
				r.to(end)
				r.free("short", short)
				r.admits("short", 2, short)
				r.blocked("long", 2*time.Hour, blocking)

				r.to(end.Add(2*time.Hour - r.step()))
				r.blocked("long", r.step(), blocking)
				r.to(end.Add(2 * time.Hour))
				r.free("long", blocking)
				r.remains("long", 2, l)
			}
		},
	},
}

// zone returns a zone of the tz database.
func (r *run) zone(name string) *time.Location {
	zone, err := time.LoadLocation(name)
	if err != nil {
		r.problem("%v: if this machine has no tz database, import time/tzdata in the test", err)
		return time.UTC
	}
	return zone
}

// zones returns zones in which no day begins or ends soon: a case that does not wait is
// over before. The first two have the same time.
func (r *run) zones() []*time.Location {
	apart := func(names ...string) (zones []*time.Location) {
		for _, name := range names {
			zone := r.zone(name)
			now := r.wallTime()
			if begin, end, _ := ratelimit.Daily(1, zone).Period(now); now.Sub(begin) >= time.Hour && end.Sub(now) >= time.Hour {
				zones = append(zones, zone)
			}
		}
		return zones
	}
	zones := apart("America/New_York", "America/Toronto")
	if len(zones) < 2 {
		zones = apart("Europe/Berlin", "Europe/Paris")
	}
	return append(zones, apart("UTC", "Asia/Kolkata", "Australia/Sydney")...)
}

// calendars returns limits of n units per day, week and month. No period begins or ends
// within an hour.
func (r *run) calendars(n int64) []ratelimit.Limit {
	zone := r.zones()[0]
	return []ratelimit.Limit{ratelimit.Daily(n, zone), ratelimit.Weekly(n, time.Wednesday, zone), ratelimit.Monthly(n, 15, zone)}
}

// allCalendars returns limits of n units that differ in their unit, first day or zone. No
// period begins or ends within an hour.
func (r *run) allCalendars() (limits []func(n int64) ratelimit.Limit) {
	zones := r.zones()
	for _, zone := range zones {
		limits = append(limits,
			func(n int64) ratelimit.Limit { return ratelimit.Daily(n, zone) },
			func(n int64) ratelimit.Limit { return ratelimit.Weekly(n, time.Monday, zone) },
			func(n int64) ratelimit.Limit { return ratelimit.Monthly(n, 1, zone) })
	}
	for first := time.Tuesday; first <= time.Saturday; first++ {
		limits = append(limits, func(n int64) ratelimit.Limit { return ratelimit.Weekly(n, first, zones[0]) })
	}
	for _, first := range []int{2, 6, 15, 28, 30, 31} {
		limits = append(limits, func(n int64) ratelimit.Limit { return ratelimit.Monthly(n, first, zones[0]) })
	}
	return limits
}

// wallTime returns the time by the store's wall clock.
func (r *run) wallTime() time.Time {
	wall, _ := r.wallClock()
	return wall()
}

// period returns the period of a limit that is in force.
func (r *run) period(l ratelimit.Limit) (begin, end time.Time) {
	begin, end, _ = l.Period(r.wallTime())
	return begin, end
}

// to lets time pass until the wall clock shows a time.
func (r *run) to(at time.Time) {
	if d := at.Sub(r.wallTime()); d > 0 {
		r.waited += d
		r.advance(d)
	}
}

// toEnd reports a problem if a wait of the last take is not the time to the end of the
// present period.
func (r *run) toEnd(what string, got time.Duration, l ratelimit.Limit) {
	begin, end, _ := l.Period(r.called)
	// In real time, the clock of the store may be another one.
	if want := end.Sub(r.called); got > want+r.slack+max(r.resolution, 1) || got < want-r.slack-r.resolution {
		r.problem("%s under %v is %v, want %v: the period is from %v to %v", what, l, got, want, begin, end)
	}
}

// lastsToEnd takes n units that do not fit, or looks. It is a problem if another number
// of units is left, or if a wait does not last to the end of the period.
func (r *run) lastsToEnd(key string, n, want int64, l ratelimit.Limit) {
	res := r.take(key, n, l)[0]
	if res.Remaining != want || (res.RetryAfter > 0) != (n > 0) {
		r.problem("%d units of %.40q under %v: %+v, want %d remaining and a denial of any units", n, key, l, res, want)
	}
	if n > 0 {
		r.toEnd("RetryAfter", res.RetryAfter, l)
	}
	r.toEnd("MoreAfter", res.MoreAfter, l)
	r.toEnd("ResetAfter", res.ResetAfter, l)
}

// border looks at a key, and returns an instant just before the present period and the first
// one in it. ok is false if the store's clock began in this period.
func (r *run) border(key string, l ratelimit.Limit) (before, first ratelimit.Instant, ok bool) {
	r.take(key, 0, l)
	begin, _, _ := l.Period(r.called)
	first = r.at - ratelimit.Instant(r.called.Sub(begin))
	before, first = first-ratelimit.Instant(r.step()), first+ratelimit.Instant(r.step()-1)
	return before, first, before >= 0
}

// nextDay returns the next day of this length, in its zone. A zone may stop changing its
// clocks, so there are several to look in. It returns zero times if there is none.
func (r *run) nextDay(lasts time.Duration) (begin, end time.Time) {
	now := r.wallTime().Add(2 * time.Hour)
	for _, name := range []string{"America/New_York", "Europe/Berlin", "Australia/Sydney"} {
		zone := r.zone(name)
		y, m, d := now.In(zone).Date()
		for i := 1; i <= 400; i++ {
			from, to := time.Date(y, m, d+i, 0, 0, 0, 0, zone), time.Date(y, m, d+i+1, 0, 0, 0, 0, zone)
			if to.Sub(from) == lasts {
				if begin.IsZero() || from.Before(begin) {
					begin, end = from, to
				}
				break
			}
		}
	}
	return begin, end
}

// nextWithoutMidnight returns the next day whose midnight the clocks skip, in its zone. It
// returns zero times if there is none.
func (r *run) nextWithoutMidnight() (begin, end time.Time) {
	l := ratelimit.Daily(1, r.zone("America/Santiago"))
	_, begin, _ = l.Period(r.wallTime().Add(2 * time.Hour))
	for range 400 {
		if _, end, _ = l.Period(begin); begin.Hour() != 0 {
			return begin, end
		}
		begin = end
	}
	return time.Time{}, time.Time{}
}
