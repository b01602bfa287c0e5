package rule_test

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// levelOf returns a bucket's state as one number, if it fits into 64 bits.
func levelOf(l rule.Limit, s rule.State) (level uint64, ok bool) {
	hi, lo := bits.Mul64(uint64(s.A), uint64(l.Window))
	lo, carry := bits.Add64(lo, uint64(s.B), 0)
	return lo, hi+carry == 0
}

// compareLevel compares TakeLevel with Take, and reports whether TakeLevel has answered.
func compareLevel(t *testing.T, m moment, n int64) bool {
	t.Helper()
	level, fits := levelOf(m.l, m.s)
	if !fits {
		return false
	}
	after, a, ok := m.l.TakeLevel(level, m.s.T, m.now, n)
	if !ok {
		return false
	}
	want, wantAnswer := m.l.Take(m.s, m.now, n)
	wantLevel, _ := levelOf(m.l, want)
	wantAt := m.s.T
	if n > 0 && a.Retry == 0 {
		wantAt = m.now
	}
	if a != wantAnswer || after != wantLevel || want.T != wantAt {
		t.Fatalf("%v: %d units\n got %+v, level %d at %d\nwant %+v, level %d at %d", m, n, a, after, wantAt, wantAnswer, wantLevel, want.T)
	}
	return true
}

// TestLevelFollowsTheRule: for a bucket that is stored as one number, the short way returns
// what the rule does. Histories lead to some of the states, and others are random, so that no
// history need reach them. The limits are of all sizes. With RATELIMIT_MODEL_SEEDS=50 there are millions.
func TestLevelFollowsTheRule(t *testing.T) {
	r := newRand(t)
	seeds, _ := strconv.Atoi(os.Getenv("RATELIMIT_MODEL_SEEDS"))
	seeds = max(1, seeds)
	states, short := 0, 0
	compare := func(m moment, n int64) {
		states++
		if compareLevel(t, m, n) {
			short++
		}
	}
	for m := range walks(r, 9000*seeds) {
		if m.l.Kind == rule.Bucket {
			left := look(m.l, m.s, m.now).Remaining
			for _, n := range []int64{0, 1, left, left + 1, left + 2, m.l.Cap(), m.l.Cap() + 1, math.MaxInt64} {
				compare(m, n)
			}
		}
	}
	for range 60_000 * seeds {
		m := randomBucket(r)
		left := look(m.l, m.s, m.now).Remaining
		for _, n := range []int64{1, units(r, m.l, left)} {
			compare(m, n)
		}
	}
	if short < states/2 {
		t.Errorf("the short way was taken for %d of %d states, want most of them", short, states)
	}
	t.Logf("%d of %d states", short, states)
}

// randomBucket returns a bucket of any size in any state, above its limit, too, and most
// often near the instant at which it is whole or has room for a unit more.
func randomBucket(r *rand.Rand) moment {
	l := randomLimit(r, rule.Bucket)
	if r.IntN(2) == 0 { // a limit as people write it
		windows := []int64{ms, second, minute, hour, 24 * hour}
		l = bucket(spread(r, 10_000), windows[r.IntN(len(windows))], spread(r, 10_000))
	}
	s := rule.State{T: r.Int64N(latest / 2), A: r.Int64N(2 * l.Burst), B: r.Int64N(l.Window)}
	switch r.IntN(4) {
	case 0:
		s.B = 0
	case 1:
		s.A = l.Burst - 1
	}
	a := look(l, s, s.T)
	ages := []int64{0, 1, a.More - 1, a.More, a.More + 1, a.Reset - 1, a.Reset, a.Reset + 1, -1, -l.Window - 1, spread(r, latest/2), l.Window / l.N}
	return moment{l, s, max(0, min(latest, s.T+ages[r.IntN(len(ages))]))}
}

// TestLevelHasBounds: numbers that are too large, and clocks that are behind, are left to the
// rule.
func TestLevelHasBounds(t *testing.T) {
	day := bucket(1, 24*hour, 100)
	large := bucket(rule.MaxUnits, rule.MaxSpan, rule.MaxUnits)
	for name, c := range map[string]struct {
		l      rule.Limit
		level  uint64
		t, now int64
		ok     bool
	}{
		"a bucket of a day":                 {day, 5, 1, 2, true},
		"as old as a clock can be":          {day, 5, 0, math.MaxInt64, true},
		"the clock is behind":               {day, 5, 2, 1, false},
		"the full level is too large":       {large, 5, 1, 2, false},
		"the level is too large":            {day, 1 << 62, 1, 2, false},
		"the largest level":                 {day, 1<<62 - 1, 1, 2, true},
		"the largest full level, far leaks": {bucket(rule.MaxUnits, rule.MinSpan, 1<<42), 1 << 61, 0, math.MaxInt64, true},
	} {
		if _, _, ok := c.l.TakeLevel(c.level, c.t, c.now, 1); ok != c.ok {
			t.Errorf("%s: %v, want %v", name, ok, c.ok)
		}
	}
}
