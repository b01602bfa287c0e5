package table

import (
	"fmt"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// walled is a table with a wall clock: days of 24 hours begin at the multiples of a day
// after 2020, and the wall clock can be set.
type walled struct {
	*timed
	ahead int64
}

const (
	day  = 24 * hour
	year = 1_577_836_800 * second // 2020, since 1970
)

func newWalled(most int) *walled {
	w := &walled{timed: newTimed(most), ahead: year}
	w.at(40 * 365 * day) // as package clock has it
	w.ahead = year + 10*day - w.clock.Load()
	return w
}

// daily returns a limit for a call now.
func (w *walled) daily(n int64, number uint32) rule.Limit {
	wall := w.clock.Load() + w.ahead
	w.SetWall(w.ahead)
	return rule.Limit{Kind: rule.Calendar, Number: number, N: n, Window: day, Burst: wall/day*day + day - w.ahead}
}

func (w *walled) pass(d int64) { w.clock.Add(d) }

func (w *walled) answer(key string, n int64, number uint32) rule.Answer {
	var a [1]rule.Answer
	w.Table.Take(key, n, []rule.Limit{w.daily(3, number)}, a[:], nil)
	return a[0]
}

func (w *walled) want(t *testing.T, what string, n int64, want rule.Answer) {
	t.Helper()
	if a := w.answer("k", n, 1); a != want {
		t.Errorf("%s: %+v, want %+v", what, a, want)
	}
}

// TestCalendarGoesByTheWallClock: a period ends when the wall clock says so, also if the
// table's clock has stood still, because the machine slept, or if the wall clock
// was set.
func TestCalendarGoesByTheWallClock(t *testing.T) {
	w := newWalled(100)
	w.want(t, "a new day", 2, rule.Answer{Remaining: 1, More: day, Reset: day})
	w.pass(10 * hour)
	w.want(t, "after 10 hours", 2, rule.Answer{Remaining: 1, Retry: 14 * hour, More: 14 * hour, Reset: 14 * hour})
	w.ahead += 13 * hour // asleep
	w.want(t, "an hour before midnight", 0, rule.Answer{Remaining: 1, More: hour, Reset: hour})
	w.ahead += 13 * hour
	w.want(t, "the next day, at noon", 1, rule.Answer{Remaining: 2, More: 12 * hour, Reset: 12 * hour})

	w.ahead -= 14 * hour
	w.want(t, "set back over midnight: the later day goes on", 2, rule.Answer{Remaining: 0, More: 26 * hour, Reset: 26 * hour})
	w.want(t, "and denies", 1, rule.Answer{Retry: 26 * hour, More: 26 * hour, Reset: 26 * hour})
	w.pass(26*hour - 1)
	w.want(t, "until its end", 1, rule.Answer{Retry: 1, More: 1, Reset: 1})
	w.pass(1)
	w.want(t, "and no longer", 1, rule.Answer{Remaining: 2, More: day, Reset: day})

	w.ahead += 40 * day
	w.want(t, "a clock that is wrong", 3, rule.Answer{Remaining: 0, More: day, Reset: day})
	w.ahead -= 40 * day
	w.want(t, "is right again: the units count today", 1, rule.Answer{Retry: day, More: day, Reset: day})
	w.pass(day)
	w.want(t, "and not tomorrow", 1, rule.Answer{Remaining: 2, More: day, Reset: day})
	// The year does not matter: 1995, 1970 on a machine without a clock of its own, 2080, 2220.
	for _, years := range []int64{-25, -50, 60, 200} {
		w := newWalled(100)
		w.ahead = (year + years*365*day - w.clock.Load()) / day * day
		for range 3 {
			midnight := day - (w.clock.Load()+w.ahead)%day
			if a := w.answer("k", 3, 1); a.Retry != 0 {
				t.Errorf("%d years: %+v", years, a)
			}
			if a := w.answer("k", 1, 1); a.Retry != midnight {
				t.Errorf("%d years: %+v, want until midnight, %d", years, a, midnight)
			}
			w.pass(midnight)
		}
	}
}

// TestCalendarsAreApart: calendars have counters of their own, also beside other kinds
// whose window is the number of a calendar.
func TestCalendarsAreApart(t *testing.T) {
	w := newWalled(10_000)
	for number := uint32(1); number < 100; number++ {
		if a := w.answer("k", 3, number); a.Retry != 0 {
			t.Fatalf("calendar %d: %+v", number, a)
		}
		if a := w.answer("k", 1, number); a.Retry != day {
			t.Fatalf("calendar %d: %+v", number, a)
		}
	}
	for window := int64(1); window < 100; window++ {
		for _, kind := range []rule.Kind{rule.Fixed, rule.Sliding, rule.Bucket} {
			l := rule.Limit{Kind: kind, N: 1, Window: window, Burst: 1}
			calendar := rule.Limit{Kind: rule.Calendar, Number: uint32(window)}
			if h := w.hash("k"); h.id(&l) == h.id(&calendar) {
				t.Errorf("%v and calendar %d have one counter", l, window)
			}
		}
	}
}

// TestCalendarsAreFreed: counters of days that are over are freed, by sweeps and when there
// is no room, and no others.
func TestCalendarsAreFreed(t *testing.T) {
	w := newWalled(4000)
	const keys = 1000
	for i := range keys {
		w.answer(fmt.Sprint("old ", i), 1, 1)
	}
	w.pass(23 * hour)
	for i := range keys {
		w.answer(fmt.Sprint("old ", i), 1, 1)
	}
	w.pass(hour)
	for range 100 {
		w.pass(minute)
		w.answer("k", 0, 1)
	}
	for i := range keys {
		w.answer(fmt.Sprint("new ", i), 3, 1)
	}
	w.pass(12 * hour)
	for range 100 {
		w.pass(minute)
		w.answer("k", 0, 1)
	}
	if got := w.Stats(); got.Counters != keys || got.Evicted != 0 {
		t.Errorf("%+v, want the %d counters of this day", got, keys)
	}
	for i := range keys {
		if a := w.answer(fmt.Sprint("new ", i), 1, 1); a.Retry == 0 {
			t.Fatalf("key %d of this day was forgotten", i)
		}
	}
}

// TestCalendarsInAnotherTable: the periods keep their ends by the wall clock, wherever the
// clock of the new table begins. Counters of a day that has ended are left out.
func TestCalendarsInAnotherTable(t *testing.T) {
	for _, slept := range []int64{0, hour, 14 * hour, 15 * hour, 100 * day, -hour} {
		w := newWalled(100)
		w.Table = NewKept(100, w.clock.Load, Secret{1, 2}, 1)
		w.answer("k", 2, 1)
		w.pass(10 * hour)
		w.answer("refused", 3, 1)
		w.answer("refused", 1, 1)
		rep := &replica{mirror: w.Mirror()}
		rep.update(false)
		if shapes := w.Shapes(); !shapes.HasCalendars() {
			t.Fatal("the file would have a version without calendars")
		}
		next := &walled{timed: newTimed(1), ahead: w.ahead + 10*hour - 7*hour + slept}
		next.at(40*365*day + 7*hour)
		next.Table = NewKept(100, next.clock.Load, Secret{1, 2}, 1)
		next.SetWall(next.ahead)
		shapes := w.Shapes()
		rep.mirror.All(func(ch Changes) {
			if err := next.Apply(ch, &shapes, -123*day); err != nil {
				t.Fatal(err)
			}
		})
		left, counters := 14*hour-slept, 2
		want := rule.Answer{Remaining: 1, More: left, Reset: left}
		if left <= 0 {
			left, counters = day-(slept-14*hour)%day, 0
			want = rule.Answer{Remaining: 3}
		}
		if got := next.Stats().Counters; got != counters {
			t.Errorf("after %d h: %d counters, want %d", slept/hour, got, counters)
		}
		next.want(t, fmt.Sprint("after ", slept/hour, " h"), 0, want)
		if a := next.answer("refused", 1, 1); counters > 0 && a.Retry != left || counters == 0 && a.Retry != 0 {
			t.Errorf("after %d h: %+v", slept/hour, a)
		}
	}
}
