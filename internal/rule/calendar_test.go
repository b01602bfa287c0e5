package rule_test

import (
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A diary counts the units of one key in periods, in a slow way: it keeps each unit.
type diary struct {
	ends  []int64 // of all periods, ascending; the first one begins at 0
	units []int64 // when each unit was taken
}

// period returns the number of the period at an instant.
func (d *diary) period(at int64) int {
	p := 0
	for d.ends[p] <= at {
		p++
	}
	return p
}

func (d *diary) begin(p int) int64 {
	if p == 0 {
		return 0
	}
	return d.ends[p-1]
}

// limit returns the limit for a call at an instant.
func (d *diary) limit(n, at int64) rule.Limit {
	p := d.period(at)
	return rule.Limit{Kind: rule.Calendar, Number: 7, N: n, Window: d.ends[p] - d.begin(p), Burst: d.ends[p]}
}

// in returns how many units were taken in a period.
func (d *diary) in(p int) (n int64) {
	for _, at := range d.units {
		if d.period(at) == p {
			n++
		}
	}
	return n
}

func (d *diary) take(at, n int64) {
	for range n {
		d.units = append(d.units, at)
	}
}

// giveBack removes up to n units of the period of an instant.
func (d *diary) giveBack(at, n int64) {
	for i := 0; i < len(d.units) && n > 0; {
		if d.period(d.units[i]) == d.period(at) {
			d.units, n = append(d.units[:i], d.units[i+1:]...), n-1
			continue
		}
		i++
	}
}

// newDiary has periods of different lengths, as days and months have.
func newDiary(lengths func() int64) *diary {
	d, end := new(diary), int64(0)
	for range 40 {
		end += lengths()
		d.ends = append(d.ends, end)
	}
	return d
}

// TestPeriodsAgainstDiary: in each period as many units fit as the limit has, and each wait
// ends with the period. Units are given back and charged to the period in which they were
// taken, and to no other.
func TestPeriodsAgainstDiary(t *testing.T) {
	r := newRand(t)
	for range 3000 {
		d := newDiary(func() int64 { return 1000 + r.Int64N(100) })
		n, now := 1+r.Int64N(6), int64(0)
		var s rule.State
		for range 60 {
			now += r.Int64N(400)
			if now >= d.ends[30] {
				break
			}
			p := d.period(now)
			l := d.limit(n, now)
			if begin := d.begin(p); now-begin < 5 && p > 0 && r.IntN(2) == 0 {
				// The caller has asked for the period just before it ended.
				l, p = d.limit(n, begin-1), p-1
			}
			decided := min(now, l.End()-1)
			switch r.IntN(4) {
			case 0: // of units that were taken earlier, perhaps in another period
				age := r.Int64N(1500)
				if age > decided {
					continue
				}
				then := decided - age
				units := 1 + r.Int64N(3)
				if d.period(then) != p && now-then > l.Window {
					continue // periods before this one count no longer
				}
				if r.IntN(2) == 0 {
					s = l.Adjust(s, decided, -units, age)
					if d.period(then) == p {
						d.giveBack(then, units)
					}
					continue
				}
				before := s
				s = l.Adjust(s, decided, units, age)
				if d.period(then) == p {
					fits := max(0, min(units, n-d.in(p)))
					d.take(then, fits)
					if got := l.Charged(before, s, decided); got != fits {
						t.Fatalf("%v at %d: charged %d units, want %d", l, now, got, fits)
					}
				}
			default:
				units := r.Int64N(n + 2)
				var a rule.Answer
				s, a = l.Take(s, now, units)
				held := d.in(p)
				want := rule.Answer{Remaining: n - held}
				switch {
				case units > n:
					want.Retry = rule.Never
				case held+units > n:
					want.Retry = l.End() - decided
				default:
					want.Remaining -= units
					d.take(decided, units)
				}
				if want.Remaining < n {
					want.More, want.Reset = l.End()-decided, l.End()-decided
				}
				if a != want {
					t.Fatalf("%v at %d: %d units of a period with %d: %+v, want %+v", l, now, units, held, a, want)
				}
			}
			if guess := l.Guess(func() rule.Answer { _, a := l.Take(s, now, 0); return a }(), now); guess.A != d.in(p) {
				t.Fatalf("%v at %d: Guess has %d units, want %d", l, now, guess.A, d.in(p))
			}
		}
	}
}

// TestPeriodsAndWrongClocks: a clock that is wrong opens at most the next period. It goes on
// when the clock is right again, and is used up then.
func TestPeriodsAndWrongClocks(t *testing.T) {
	d := newDiary(func() int64 { return 1000 })
	take := func(s rule.State, now, n int64) (rule.State, rule.Answer) {
		l := d.limit(5, now)
		return l.Take(s, now, n)
	}
	s, _ := take(rule.State{}, 500, 5)
	s, a := take(s, 1500, 4) // the clock is a period ahead
	if a.Retry != 0 || s.T != 2000 {
		t.Fatalf("%+v, %+v", s, a)
	}
	s, a = take(s, 600, 2) // and right again: the later period goes on, to its end
	if a.Retry != 1400 || a.Remaining != 1 {
		t.Fatalf("%+v", a)
	}
	s, a = take(s, 1999, 2)
	if a.Retry != 1 {
		t.Fatalf("%+v", a)
	}
	s, a = take(s, 2000, 5)
	if a.Retry != 0 {
		t.Fatalf("%+v", a)
	}

	// Meanwhile, units of the present period are in the later one, too: they are given back,
	// charged, and pending there.
	set, _ := take(rule.State{}, 1001, 1)
	l := d.limit(5, 999)
	set, _ = l.Take(set, 999, 3)
	if left := l.Adjust(set, 999, -2, 0); left.A != 2 {
		t.Fatalf("%+v", left)
	}
	if more := l.Adjust(set, 999, 1, 0); more.A != 5 {
		t.Fatalf("%+v", more)
	}
	if l.DeniesWithout([]rule.Pending{{Units: 3, At: 999}}, set, 999, 2) {
		t.Fatal("a denial because of units that may be given back would start a block")
	}

	// The period of the state has just ended, by another clock, and goes on by this one.
	other := rule.State{T: 950, A: 5}
	next, a := l.Take(other, 960, 5)
	if a.Retry != 0 || next.T != 2000 {
		t.Fatalf("%+v, %+v", next, a)
	}
	if _, a = take(next, 1000, 1); a.Retry != 1000 {
		t.Fatalf("%+v: the units of one day are there twice", a)
	}

	// The next period is longer than the present one, as March is. A clock that is a little
	// ahead opens it, and it goes on, with its units.
	months := &diary{ends: []int64{31, 59, 90}}
	month := func(at int64) *rule.Limit { l := months.limit(5, at); return &l }
	march, _ := month(59).Take(rule.State{}, 59, 5)
	for _, at := range []int64{58, 59, 58} {
		if march, a = month(at).Take(march, at, 1); a.Retry != 90-at {
			t.Fatalf("on day %d: %+v, %+v", at, march, a)
		}
	}

	// More than a period ahead: the units count in the present period.
	s, _ = take(s, 9500, 5)
	s, a = take(s, 2500, 1)
	if a.Retry != 500 || s != (rule.State{T: 3000, A: 5}) {
		t.Fatalf("%+v, %+v", s, a)
	}
}
