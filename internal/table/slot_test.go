package table

import (
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// magnitude returns a random number from [1, most], with all magnitudes equally likely.
func magnitude(r *rand.Rand, most int64) int64 {
	return 1 + r.Int64N(min(most, int64(1)<<(1+r.IntN(62))))
}

// randomPacked returns a limit of any size, or a tiny one, and a state in packed form that a
// slot may hold: also above the limit, and ahead of the clock.
func randomPacked(r *rand.Rand, wall int64) (l rule.Limit, x packed, now int64) {
	kind := []rule.Kind{rule.Fixed, rule.Sliding, rule.Bucket, rule.Calendar}[r.IntN(4)]
	for {
		l = rule.Limit{Kind: kind, N: magnitude(r, rule.MaxUnits), Window: magnitude(r, rule.MaxSpan)}
		if r.IntN(2) == 0 {
			l.N, l.Window = 1+r.Int64N(8), 1+r.Int64N(64)
		}
		if kind != rule.Bucket {
			break
		}
		l.Burst = magnitude(r, min(rule.MaxUnits, 4*l.N))
		if l.Refill() <= rule.MaxSpan {
			break
		}
	}
	t := magnitude(r, 1<<60)
	ages := []int64{0, 1, l.Window - 1, l.Window, l.Window + 1, 2 * l.Window, r.Int64N(l.Window), -1, -l.Window, -l.Window - 1, magnitude(r, 1<<60)}
	now = max(0, t+ages[r.IntN(len(ages))])
	if kind == rule.Calendar {
		t = now + r.Int64N(l.Window)
		l.Number, l.Burst = 1, t
	}
	s := rule.State{T: t, A: r.Int64N(2*l.Cap() + 1)}
	switch kind {
	case rule.Sliding:
		s.B = r.Int64N(2*l.N + 1)
	case rule.Bucket:
		s.B = r.Int64N(l.Window)
	}
	switch r.IntN(4) {
	case 0:
		s.A = min(s.A, l.Cap()-1)
	case 1:
		s.B = 0
	}
	if s.Fresh() {
		return l, packed{}, now
	}
	return l, pack(&l, s, wall), now
}

// TestPackedFollowsTheRule: a decision about a state as a slot has it is the one that the rule
// takes about the state, of all kinds and sizes. RATELIMIT_MODEL_SEEDS says how many times as
// many states there are.
func TestPackedFollowsTheRule(t *testing.T) {
	r := newRand(t)
	seeds, _ := strconv.Atoi(os.Getenv("RATELIMIT_MODEL_SEEDS"))
	split, denied := 0, 0
	for range 40_000 * max(1, seeds) {
		wall := r.Int64N(1 << 60)
		l, x, now := randomPacked(r, wall)
		before := x.unpack(&l, wall)
		if before.Fresh() != x.fresh() || !x.fresh() && pack(&l, before, wall) != x {
			t.Fatalf("%+v: %+v unpacks to %+v", l, x, before)
		}
		_, left := l.Take(before, now, 0)
		for _, n := range []int64{0, 1, left.Remaining, left.Remaining + 1, l.Cap() + 1, math.MaxInt64} {
			after, a := x.take(&l, now, n, wall)
			want, wantAnswer := l.Take(before, now, n)
			if a != wantAnswer || after.fresh() != want.Fresh() || !want.Fresh() && after != pack(&l, want, wall) {
				t.Fatalf("%+v, %+v at %d: %d units\n got %+v, %+v\nwant %+v, %+v", l, before, now, n, after, a, pack(&l, want, wall), wantAnswer)
			}
			if a.Retry != 0 {
				denied++
			}
		}
		if x.when&flagSplit != 0 {
			split++
		}
	}
	if split == 0 || denied == 0 {
		t.Errorf("%d split states, %d denials: want some of each", split, denied)
	}
}
