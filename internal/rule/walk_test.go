package rule_test

import (
	"flag"
	"fmt"
	"iter"
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file has the helpers of all tests of this package: limits, instants, and
// random walks.

const (
	ms     = int64(time.Millisecond)
	second = int64(time.Second)
	minute = int64(time.Minute)
	hour   = int64(time.Hour)
)

var kinds = []rule.Kind{rule.Fixed, rule.Sliding, rule.Bucket}

func fixed(n, window int64) rule.Limit {
	return rule.Limit{Kind: rule.Fixed, N: n, Window: window}
}

func sliding(n, window int64) rule.Limit {
	return rule.Limit{Kind: rule.Sliding, N: n, Window: window}
}

func bucket(n, per, burst int64) rule.Limit {
	return rule.Limit{Kind: rule.Bucket, N: n, Window: per, Burst: burst}
}

// valid reports whether a limit meets the requirements of [rule.Limit], except
// for the window. The rules are exact to the nanosecond, so windows of a few
// nanoseconds reach every edge case.
func valid(l rule.Limit) bool {
	if l.N < 1 || l.N > rule.MaxUnits || l.Window < 1 || l.Window > rule.MaxSpan {
		return false
	}
	if l.Kind != rule.Bucket {
		return l.Burst == 0
	}
	return l.Burst >= 1 && l.Burst <= rule.MaxUnits && !product(l.N, rule.MaxSpan).less(product(l.Burst, l.Window))
}

// uint128 compares products of two int64 without rounding or wrapping.
type uint128 struct{ hi, lo uint64 }

func product(a, b int64) uint128 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	return uint128{hi, lo}
}

func (x uint128) less(y uint128) bool { return x.hi < y.hi || x.hi == y.hi && x.lo < y.lo }

// wellFormed checks what a store may rely on: no count is negative, and the
// fraction of a bucket's last unit is less than one.
func wellFormed(l rule.Limit, s rule.State) bool {
	return s.A >= 0 && s.B >= 0 && (l.Kind != rule.Bucket || s.B < l.Window) && (l.Kind != rule.Fixed || s.B == 0)
}

// look returns the answer for a key without taking anything.
func look(l rule.Limit, s rule.State, now int64) rule.Answer {
	_, a := l.Take(s, now, 0)
	return a
}

// after returns a key's state after some takes: {instant, units}, {instant,
// units}, ...
func after(l rule.Limit, takes [][2]int64) rule.State {
	var s rule.State
	for _, take := range takes {
		s, _ = l.Take(s, take[0], take[1])
	}
	return s
}

var seed = flag.Uint64("seed", 1, "seed of the random histories")

func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	t.Logf("random histories from -seed %d", *seed)
	return rand.New(rand.NewPCG(*seed, *seed))
}

// spread returns a random number from [1, most], with all magnitudes equally
// likely.
func spread(r *rand.Rand, most int64) int64 {
	top := int64(1) << r.IntN(bits.Len64(uint64(most)))
	return min(most, top+r.Int64N(top))
}

// randomLimit returns a tiny limit three times out of four, so that a short
// history reaches every edge case of it. Otherwise it returns a limit of any
// valid size.
func randomLimit(r *rand.Rand, kind rule.Kind) rule.Limit {
	for {
		l := rule.Limit{Kind: kind, N: 1 + r.Int64N(8), Window: 1 + r.Int64N(16)}
		burst := 1 + r.Int64N(8)
		if r.IntN(4) == 0 {
			l.N, l.Window, burst = spread(r, rule.MaxUnits), spread(r, rule.MaxSpan), spread(r, rule.MaxUnits)
		}
		if kind == rule.Bucket {
			l.Burst = burst
		}
		if valid(l) {
			return l
		}
	}
}

// relimit returns another limit for the same counter: only N and Burst may
// change.
func relimit(r *rand.Rand, l rule.Limit) rule.Limit {
	for {
		next := randomLimit(r, l.Kind)
		if next.Window = l.Window; valid(next) {
			return next
		}
	}
}

// span returns a time to wait under l, most often close to where something
// happens.
func span(r *rand.Rand, l rule.Limit) int64 {
	w := l.Window
	spans := []int64{0, 0, 1, w / l.N, w/l.N + 1, w - 1, w, w + 1, 2*w - 1, 2 * w, r.Int64N(w), r.Int64N(w), r.Int64N(3 * w)}
	return spans[r.IntN(len(spans))]
}

// units returns a number of units to take, most often close to what fits.
func units(r *rand.Rand, l rule.Limit, left int64) int64 {
	costs := []int64{1, 1, 1, left, left + 1, l.Cap(), l.Cap() + 1, 1 + r.Int64N(l.Cap()), math.MaxInt64}
	return costs[r.IntN(len(costs))]
}

// moment is a state that a history has led to, and an instant to look at it.
type moment struct {
	l   rule.Limit
	s   rule.State
	now int64
}

func (m moment) String() string { return fmt.Sprintf("%+v %+v at %d", m.l, m.s, m.now) }

// latest leaves room above an instant for the longest wait.
const latest = math.MaxInt64 / 4

// decades is the wait at which the answer for a bucket that was filled under a
// far larger limit stops being exact. No wait under the limit that filled it
// comes near.
const decades = math.MaxInt64 / 2

// walks goes through n random histories of takes, refunds, charges and new
// limits, with clocks that sometimes go backwards.
func walks(r *rand.Rand, n int) iter.Seq[moment] {
	return func(yield func(moment) bool) {
		for i := range n {
			m := moment{l: randomLimit(r, kinds[i%len(kinds)]), now: r.Int64N(100)}
			for range 1 + r.IntN(16) {
				if m = m.step(r); m.now > latest {
					break
				}
				if !yield(m) {
					return
				}
			}
		}
	}
}

func (m moment) step(r *rand.Rand) moment {
	if r.IntN(10) == 0 {
		m.now = max(0, m.now-span(r, m.l))
	} else {
		m.now += span(r, m.l)
	}
	n := units(r, m.l, look(m.l, m.s, m.now).Remaining)
	switch r.IntN(10) {
	case 0:
		m.s = m.l.Adjust(m.s, m.now, -n, span(r, m.l))
	case 1:
		m.s = m.l.Adjust(m.s, m.now, n, span(r, m.l))
	case 2:
		m.l = relimit(r, m.l)
	default:
		m.s, _ = m.l.Take(m.s, m.now, n)
	}
	return m
}
