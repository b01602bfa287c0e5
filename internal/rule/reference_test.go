package rule_test

import (
	"math/big"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// reference counts in a simple and slow way: with exact fractions, and with
// waits that are found by trying instants instead of by formula.
type reference struct {
	rule.Limit
	since      int64    // Fixed, Sliding: when this window opened. Bucket: when level was true
	this, last int64    // Fixed, Sliding: units in this window, and in the one before
	level      *big.Rat // Bucket: units in it; never changed in place, so that copies are cheap
}

func newReference(l rule.Limit) reference { return reference{Limit: l, level: new(big.Rat)} }

// portion returns units*span/window.
func portion(units, span, window int64) *big.Rat {
	x := new(big.Int).Mul(big.NewInt(units), big.NewInt(span))
	return new(big.Rat).SetFrac(x, big.NewInt(window))
}

// weight returns what the older window counts for, in whole units.
func (r reference) weight(now int64) int64 {
	x := portion(r.last, r.Window-max(0, now-r.since), r.Window)
	return new(big.Int).Quo(x.Num(), x.Denom()).Int64()
}

func (r reference) at(now int64) reference {
	if r.since-now > r.Window {
		r.since = now
	}
	elapsed := max(0, now-r.since)
	switch r.Kind {
	case rule.Fixed:
		if elapsed >= r.Window {
			r.this = 0
		}
	case rule.Sliding:
		switch {
		case elapsed >= 2*r.Window:
			r.this, r.last = 0, 0
		case elapsed >= r.Window:
			r.this, r.last, r.since = 0, r.this, r.since+r.Window
		}
		if r.this == 0 && r.last > 0 && r.weight(now) == 0 {
			r.last = 0
		}
	case rule.Bucket:
		r.level = new(big.Rat).Sub(r.level, portion(r.N, elapsed, r.Window))
		if r.level.Sign() < 0 {
			r.level = new(big.Rat)
		}
		r.since = max(r.since, now)
	}
	if r.empty() {
		r.since = now
	}
	return r
}

func (r reference) empty() bool { return r.this == 0 && r.last == 0 && r.level.Sign() == 0 }

func (r reference) remaining(now int64) int64 {
	r = r.at(now)
	used := r.this
	switch r.Kind {
	case rule.Sliding:
		used += r.weight(now)
	case rule.Bucket: // rounded up: Euclidean division rounds -level down
		used = -new(big.Int).Div(new(big.Int).Neg(r.level.Num()), r.level.Denom()).Int64()
	}
	return max(0, r.Cap()-used)
}

// wait tries ever later instants until n units fit.
func (r reference) wait(now, n int64) int64 {
	if n > r.Cap() {
		return rule.Never
	}
	tooShort, enough := int64(-1), int64(1) // at the one they do not fit, at the other they do
	fits := func(wait int64) bool { return r.remaining(now+wait) >= n }
	for !fits(enough) {
		tooShort, enough = enough, 2*enough
	}
	for enough-tooShort > 1 {
		if middle := tooShort + (enough-tooShort)/2; fits(middle) {
			enough = middle
		} else {
			tooShort = middle
		}
	}
	return enough
}

func (r *reference) take(now, n int64) rule.Answer {
	if r.since-now > r.Window {
		r.since = now
	}
	var a rule.Answer
	if left := r.remaining(now); n > left {
		a.Retry = r.wait(now, n)
	} else if n > 0 {
		*r = r.at(now)
		if r.Kind == rule.Bucket {
			r.level = new(big.Rat).Add(r.level, portion(n, 1, 1))
		} else {
			r.this += n
		}
	}
	if a.Remaining = r.remaining(now); a.Remaining < r.Cap() {
		a.More, a.Reset = r.wait(now, a.Remaining+1), r.wait(now, r.Cap())
	}
	return a
}

// adjust is for clocks that go forward, and for charges of no more than the
// limit.
func (r *reference) adjust(now, n, age int64) {
	if n == 0 || n < 0 && r.at(now).empty() {
		return // the state before, not the present one: they differ at a new rate
	}
	if *r = r.at(now); r.empty() {
		*r = newReference(r.Limit)
		r.take(now-age, n)
		*r = r.at(now)
		return
	}
	switch taken := now - age; {
	case r.Kind == rule.Bucket:
		alone := newReference(r.Limit)
		alone.since, alone.level = taken, portion(max(n, -n), 1, 1)
		r.moveLevel(n > 0, alone.at(now).level)
	case taken >= r.since, r.Kind == rule.Fixed && n > 0 && age < r.Window:
		r.this = move(r.this, n, r.N)
	case r.Kind == rule.Sliding && taken >= r.since-r.Window:
		r.last = move(r.last, n, r.N)
	}
}

// move changes a count by n. It does not go below 0, and a charge does not
// raise it above the limit.
func move(count, n, limit int64) int64 {
	if n < 0 {
		return max(0, count+n)
	}
	return max(count, min(count+n, limit))
}

func (r *reference) moveLevel(up bool, by *big.Rat) {
	brim := portion(r.Burst, 1, 1)
	switch sum := new(big.Rat).Add(r.level, by); {
	case !up && r.level.Cmp(by) <= 0:
		r.level = new(big.Rat)
	case !up:
		r.level = new(big.Rat).Sub(r.level, by)
	case sum.Cmp(brim) <= 0:
		r.level = sum
	case r.level.Cmp(brim) < 0:
		r.level = brim
	}
}

// TestAgainstReference compares every answer over random histories. Half of them
// have a clock that also goes backwards, and no refunds or charges: the
// reference cannot know by which of the clocks an age is meant.
func TestAgainstReference(t *testing.T) {
	r := newRand(t)
	for i := range 3000 {
		m := moment{l: randomLimit(r, kinds[i%len(kinds)])}
		ref := newReference(m.l)
		backwards := r.IntN(2) == 0
	history:
		for range 20 {
			before := m
			if m.now += span(r, m.l); m.now > latest {
				break
			}
			if backwards && r.IntN(5) == 0 {
				m.now = max(0, m.now-2*span(r, m.l))
			}
			n := units(r, m.l, look(m.l, m.s, m.now).Remaining)
			switch op := r.IntN(10); {
			case op == 0:
				// A counter does not know the rate it was filled at: the new one holds
				// from the last change on, in the reference too.
				m.l = relimit(r, m.l)
				ref.Limit = m.l
			case op <= 2 && !backwards:
				age := span(r, m.l)
				n = min(n, m.l.Cap())
				if r.IntN(2) == 0 {
					n = -n
				}
				m.s = m.l.Adjust(m.s, m.now, n, age)
				ref.adjust(m.now, n, age)
				if got, want := look(m.l, m.s, m.now).Remaining, ref.remaining(m.now); got != want {
					t.Fatalf("%v: Adjust(%d units, age %d) at %d leaves %d, want %d", before, n, age, m.now, got, want)
				}
			default:
				var a rule.Answer
				m.s, a = m.l.Take(m.s, m.now, n)
				if a.Retry >= decades && a.Retry != rule.Never || a.Reset >= decades {
					break history // saturated, and too long for the reference to try
				}
				if want := ref.take(m.now, n); a != want {
					t.Fatalf("%v: Take(%d units) at %d\n got %+v\nwant %+v", before, n, m.now, a, want)
				}
			}
		}
	}
}
