package rule_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// These tests check what is true for every state that a history can lead to.

// costsOf returns every cost that fits a small limit, and the edge cases of a
// large one.
func costsOf(r *rand.Rand, l rule.Limit, left int64) []int64 {
	costs := []int64{left, left + 1, l.Cap(), 1 + r.Int64N(l.Cap()), l.Cap() + 1, math.MaxInt64}
	for n := int64(0); n <= min(l.Cap(), 8); n++ {
		costs = append(costs, n)
	}
	return costs
}

// TestTakeOrNothing: admitted units are counted in full and at once. No other
// call changes a counter.
func TestTakeOrNothing(t *testing.T) {
	r := newRand(t)
	for m := range walks(r, 12_000) {
		standing, whole := look(m.l, m.s, m.now), m.l.Cap()
		for _, n := range costsOf(r, m.l, standing.Remaining) {
			next, a := m.l.Take(m.s, m.now, n)
			fits := n <= standing.Remaining
			switch {
			case fits != (a.Retry == 0):
				t.Fatalf("%v: %d units of %d left wait %d", m, n, standing.Remaining, a.Retry)
			case (n > whole) != (a.Retry == rule.Never):
				t.Fatalf("%v: %d units of at most %d wait %d", m, n, whole, a.Retry)
			case fits && n > 0 && a.Remaining != standing.Remaining-n:
				t.Fatalf("%v: %d units taken of %d left, then %d are left", m, n, standing.Remaining, a.Remaining)
			case fits && look(m.l, next, m.now) != a:
				t.Fatalf("%v: %d units taken: Take says %+v, a look then says %+v", m, n, a, look(m.l, next, m.now))
			case (!fits || n == 0) && next != repaired(m):
				t.Fatalf("%v: %d units, retry %d: nothing taken, yet it became %+v", m, n, a.Retry, next)
			case !fits && look(m.l, next, m.now) != standing:
				t.Fatalf("%v: %d units denied: was %+v, is %+v", m, n, standing, look(m.l, next, m.now))
			}
		}
	}
}

// repaired returns m's state, moved to now if it is more than a window ahead.
func repaired(m moment) rule.State {
	if m.s.T-m.now > m.l.Window {
		m.s.T = m.now
	}
	return m.s
}

// TestWaitsAreExact tries each wait that was answered, and 1 ns less.
func TestWaitsAreExact(t *testing.T) {
	r := newRand(t)
	for m := range walks(r, 12_000) {
		standing := look(m.l, m.s, m.now)
		for _, n := range costsOf(r, m.l, standing.Remaining) {
			s, a := m.l.Take(m.s, m.now, n)
			if a.Retry > 0 && a.Retry != rule.Never {
				exact(t, moment{m.l, s, m.now}, "Retry", a.Retry, n)
			}
			if whole := a.Remaining == m.l.Cap(); whole != (a.Reset == 0) || whole != (a.More == 0) {
				t.Fatalf("%v: %d units: %+v", m, n, a)
			} else if !whole {
				exact(t, moment{m.l, s, m.now}, "More", a.More, a.Remaining+1)
				exact(t, moment{m.l, s, m.now}, "Reset", a.Reset, m.l.Cap())
			}
		}
	}
}

// exact checks that n units fit after a wait, and 1 ns earlier do not.
func exact(t *testing.T, m moment, what string, wait, n int64) {
	t.Helper()
	if m.l.Kind == rule.Bucket && wait >= decades {
		return
	}
	if got := look(m.l, m.s, m.now+wait).Remaining; got < n {
		t.Fatalf("%v: %s of %d is too short for %d units, %d fit", m, what, wait, n, got)
	}
	if got := look(m.l, m.s, m.now+wait-1).Remaining; got >= n {
		t.Fatalf("%v: %s of %d is too long for %d units, %d fit before", m, what, wait, n, got)
	}
}

// TestRefund: units given back never raise a key above its limit, nor by more
// than their number, now or later. A counter without units stays unchanged.
func TestRefund(t *testing.T) {
	r := newRand(t)
	for m := range walks(r, 12_000) {
		m.s = repaired(m)
		was := look(m.l, m.s, m.now).Remaining
		n, age := units(r, m.l, was), span(r, m.l)
		s := m.l.Adjust(m.s, m.now, -n, age)
		is := look(m.l, s, m.now).Remaining
		if is < was || is > m.l.Cap() || is-was > n || !wellFormed(m.l, s) {
			t.Fatalf("%v: refund of %d, age %d: %d were left, then %d in %+v", m, n, age, was, is, s)
		}
		if was == m.l.Cap() && s != m.s {
			t.Fatalf("%v: refund of %d to a whole limit made it %+v", m, n, s)
		}
		later := m.now + span(r, m.l)
		if with, without := look(m.l, s, later).Remaining, look(m.l, m.s, later).Remaining; with < without || with-without > n {
			t.Fatalf("%v: refund of %d, age %d: %d left at %d, %d without", m, n, age, with, later, without)
		}
	}
}

// TestRefundOfAll: on a key without other traffic, a take and its refund, however
// much later, leave no trace.
func TestRefundOfAll(t *testing.T) {
	r := newRand(t)
	for i := range 6000 {
		l := randomLimit(r, kinds[i%len(kinds)])
		n, age, start := 1+r.Int64N(l.Cap()), span(r, l), r.Int64N(100)
		s, _ := l.Take(rule.State{}, start, n)
		s = l.Adjust(s, start+age, -n, age)
		for range 5 {
			later := start + age + span(r, l)
			if got := look(l, s, later); got != (rule.Answer{Remaining: l.Cap()}) {
				t.Fatalf("%+v: %d units taken at %d and given back %d later: at %d %+v", l, n, start, age, later, got)
			}
		}
	}
}

// TestRefundAmongOthers: in a bucket with other traffic, a take that was given
// back leaves no more units than if it had never happened. (In a window it can:
// the units that were given back opened the window of the others earlier, so it
// ends earlier. TestBoundWithRefunds has the bound for that.)
func TestRefundAmongOthers(t *testing.T) {
	r := newRand(t)
	for range 6000 {
		l := randomLimit(r, rule.Bucket)
		var with, without rule.State
		now, taken, n := int64(0), int64(-1), int64(0)
		for range 12 {
			if now += span(r, l); now > latest {
				break
			}
			left := look(l, with, now).Remaining
			switch {
			case taken < 0 && left > 0 && r.IntN(3) == 0:
				taken, n = now, 1+r.Int64N(left)
				with, _ = l.Take(with, now, n)
			case taken >= 0 && n > 0 && r.IntN(4) == 0:
				with, n = l.Adjust(with, now, -n, now-taken), 0
			case left > 0:
				others := 1 + r.Int64N(left)
				with, _ = l.Take(with, now, others)
				without, _ = l.Take(without, now, others)
			}
			if a, b := look(l, with, now).Remaining, look(l, without, now).Remaining; a > b {
				t.Fatalf("%+v at %d: %d left after a refund, %d if its take had never been", l, now, a, b)
			}
		}
	}
}

// TestCharge: charged units never add room, now or later. They never take more
// than their number, and never count above the limit.
func TestCharge(t *testing.T) {
	r := newRand(t)
	for m := range walks(r, 12_000) {
		m.s = repaired(m)
		was := look(m.l, m.s, m.now).Remaining
		n, age := units(r, m.l, was), span(r, m.l)
		s := m.l.Adjust(m.s, m.now, n, age)
		is := look(m.l, s, m.now).Remaining
		if is > was || is < 0 || was-is > n || !wellFormed(m.l, s) {
			t.Fatalf("%v: charge of %d, age %d: %d were left, then %d in %+v", m, n, age, was, is, s)
		}
		if most := max(m.s.A, m.l.Cap()); s.A > most || m.l.Kind == rule.Sliding && s.B > max(most, m.s.B) {
			t.Fatalf("%v: charge of %d, age %d made it %+v", m, n, age, s)
		}
		later := m.now + span(r, m.l)
		if with, without := look(m.l, s, later).Remaining, look(m.l, m.s, later).Remaining; with > without {
			t.Fatalf("%v: charge of %d, age %d: %d left at %d, %d without", m, n, age, with, later, without)
		}
	}
}

// TestChargeIsATake: charged at once, on a key with room for them, units count
// exactly as if they had been asked for.
func TestChargeIsATake(t *testing.T) {
	r := newRand(t)
	for m := range walks(r, 12_000) {
		if left := look(m.l, m.s, m.now).Remaining; left > 0 {
			n := 1 + r.Int64N(left)
			taken, want := m.l.Take(m.s, m.now, n)
			charged := m.l.Adjust(m.s, m.now, n, 0)
			if got := look(m.l, charged, m.now); got != want || charged != taken {
				t.Fatalf("%v: %d units taken %+v, charged %+v", m, n, want, got)
			}
		}
	}
}

// TestNewLimitMintsNothing: a new N or Burst keeps the counted units. Used units
// stay used, whatever the limit was and is.
func TestNewLimitMintsNothing(t *testing.T) {
	r := newRand(t)
	for m := range walks(r, 12_000) {
		next := relimit(r, m.l)
		if m.l.Kind == rule.Bucket && m.s.T < m.now {
			next.N = m.l.N // a new rate is TestNewRateIsNotRetroactive
			if !valid(next) {
				continue
			}
		}
		was, is := look(m.l, m.s, m.now).Remaining, look(next, m.s, m.now).Remaining
		want := max(0, next.Cap()-(m.l.Cap()-was))
		overfull := was == 0 // then more may be used than the old limit could show
		if is > want || is < want && !overfull {
			t.Fatalf("%v: %d of %d left, then %d of %d, want %d", m, was, m.l.Cap(), is, next.Cap(), want)
		}
	}
}

// TestClockMintsNothing: at an earlier instant a counter never has more units
// left than at a later one, however far the clock goes back.
func TestClockMintsNothing(t *testing.T) {
	r := newRand(t)
	for m := range walks(r, 12_000) {
		at, before := m.now, look(m.l, m.s, m.now).Remaining
		for range 6 {
			at = max(0, at-span(r, m.l))
			left := look(m.l, m.s, at).Remaining
			if left > before {
				t.Fatalf("%v: %d left at %d, more than the %d later", m, left, at, before)
			}
			before = left
		}
	}
}

// TestRepair: a state that is up to a window ahead comes from a skewed clock, and
// waits. A state further ahead comes from a wrong clock: it stays full, but starts
// to age at once.
func TestRepair(t *testing.T) {
	for _, l := range []rule.Limit{fixed(3, minute), sliding(3, minute), bucket(3, minute, 3)} {
		const then = hour
		full, a := l.Take(rule.State{}, then, 3)
		if got := look(l, full, then-minute).Reset; got != minute+a.Reset {
			t.Errorf("%+v: a window ahead, whole in %d, want %d", l, got, minute+a.Reset)
		}
		now := int64(then - minute - 1)
		want := full
		want.T = now
		for n := range int64(5) { // looks at it, or is denied
			next, got := l.Take(full, now, n)
			if next != want || got.Remaining != 0 || got.Reset != a.Reset {
				t.Errorf("%+v: Take %d more than a window behind: %+v, %+v", l, n, next, got)
			}
		}
		if next := l.Adjust(full, now, 0, 0); next != want {
			t.Errorf("%+v: Adjust more than a window behind: %+v", l, next)
		}
	}
}
