package rule_test

import (
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// These tests check the most that each algorithm admits. They only look at
// which units were admitted when.

// admitted are units that were admitted at an instant.
type admitted struct{ at, n int64 }

// within checks every interval of a log, from its first unit to its last. A bucket
// admits at most Burst + N*span/Window. A window admits at most inWindows in less
// than a Window.
func within(t *testing.T, l rule.Limit, log []admitted, inWindows int64) {
	t.Helper()
	for i, first := range log {
		units := int64(0)
		for _, last := range log[i:] {
			units += last.n
			span := last.at - first.at
			ok := span >= l.Window || units <= inWindows
			if l.Kind == rule.Bucket {
				ok = units <= l.Burst || !product(l.N, span).less(product(units-l.Burst, l.Window))
			}
			if !ok {
				t.Fatalf("%+v: %d units from %d to %d, in %+v", l, units, first.at, last.at, log)
			}
		}
	}
}

// TestBound takes at random. In any interval a bucket admits Burst + N*t/Window,
// and the windows 2N-1 in any interval of their length.
func TestBound(t *testing.T) {
	r := newRand(t)
	for i := range 12_000 {
		l := randomLimit(r, kinds[i%len(kinds)])
		var (
			s   rule.State
			log []admitted
		)
		// The clock may go backwards; time itself does not, and the bound is about time.
		backwards := r.IntN(2) == 0
		clock, elapsed := int64(0), int64(0)
		for range 40 {
			step := span(r, l)
			if clock, elapsed = clock+step, elapsed+step; elapsed > latest {
				break
			}
			if backwards && r.IntN(5) == 0 {
				clock = max(0, clock-2*span(r, l))
			}
			var a rule.Answer
			n := units(r, l, look(l, s, clock).Remaining)
			if s, a = l.Take(s, clock, n); a.Retry == 0 {
				log = append(log, admitted{elapsed, n})
			}
		}
		within(t, l, log, 2*l.N-1)
	}
}

// TestWindowBound takes many units, and counts them by the key's own windows. State.T
// distinguishes the windows. Each admits N, and none opens before another one has
// ended.
func TestWindowBound(t *testing.T) {
	r := newRand(t)
	for i := range 6000 {
		l := randomLimit(r, kinds[i%2])
		var s rule.State
		openedAt, held, now := -l.Window, int64(0), int64(0)
		for range 40 {
			if now += span(r, l); now > latest {
				break
			}
			n := min(look(l, s, now).Remaining, 1+r.Int64N(l.N))
			if n == 0 {
				continue
			}
			s, _ = l.Take(s, now, n)
			switch {
			case s.T == openedAt:
				held += n
			case s.T-openedAt < l.Window || s.T > now || now-s.T >= l.Window:
				t.Fatalf("%+v: at %d a window opened at %d, after one at %d", l, now, s.T, openedAt)
			default:
				openedAt, held = s.T, n
			}
			if held > l.N {
				t.Fatalf("%+v: %d units in the window opened at %d", l, held, openedAt)
			}
		}
	}
}

// TestFixedWindows recounts fixed windows by the stated rule alone: a window opens
// at the key's first unit, and at the first unit after a window has ended.
func TestFixedWindows(t *testing.T) {
	r := newRand(t)
	for range 6000 {
		l := randomLimit(r, rule.Fixed)
		var (
			s              rule.State
			openedAt, held int64
		)
		for now := int64(0); now < latest && r.IntN(40) > 0; now += span(r, l) {
			if now-openedAt >= l.Window || held == 0 {
				openedAt, held = now, 0
			}
			n := units(r, l, l.N-held)
			next, a := l.Take(s, now, n)
			if s = next; (a.Retry == 0) != (n <= l.N-held) {
				t.Fatalf("%+v: %d units at %d, with %d since %d: %+v", l, n, now, held, openedAt, a)
			} else if a.Retry == 0 {
				held += n
			}
		}
	}
}

// TestSlidingWorstCase reaches the bound of a sliding window. One unit opens it
// and all others follow in its last instant. Then as many follow again as early
// as they fit, which is less than a window later.
func TestSlidingWorstCase(t *testing.T) {
	for _, l := range []rule.Limit{sliding(2, 6), sliding(3, 9), sliding(10, minute), sliding(1_000_000, hour)} {
		s := after(l, takes{{0, 1}, {l.Window - 1, l.N - 1}})
		now, got := l.Window-1, l.N-1
		for now <= 2*l.Window-2 { // the last instant of an interval that begins at Window-1
			var a rule.Answer
			if s, a = l.Take(s, now, 1); a.Retry == 0 {
				got++
			}
			now += a.Retry
		}
		if got != 2*l.N-1 {
			t.Errorf("%+v: %d units in an interval of its length, want %d", l, got, 2*l.N-1)
		}
	}
}

// TestSlidingSearch tries every history of small limits: at each instant each
// number of units that fits. None puts more than 2N-1 into an interval as long as
// the window, be it open at one end or closed at both. 2N-1 is met wherever a unit
// of the older half takes longer than an instant to weigh less.
func TestSlidingSearch(t *testing.T) {
	for n := int64(1); n <= 5; n++ {
		for w := int64(1); w <= 8 && n*w <= 32; w++ {
			open, closed := search(sliding(n, w))
			if most := 2*n - 1; closed > most || open > most || w > 2*n-2 && closed < most {
				t.Errorf("N=%d Window=%d: %d units in [t, t+Window), %d in [t, t+Window], want 2N-1 = %d", n, w, open, closed, most)
			}
		}
	}
}

// recent is a counter one instant after the last take. It also has how many
// units each of the latest instants admitted, the last one first.
type recent struct {
	s    rule.State
	past [8]int8
}

func search(l rule.Limit) (open, closed int64) {
	visited := map[recent]bool{{}: true}
	for todo := []recent{{}}; len(todo) > 0; {
		x := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for n := range look(l, x.s, 0).Remaining + 1 {
			s, _ := l.Take(x.s, 0, n)
			in := n // the last Window instants
			for _, m := range x.past[:l.Window-1] {
				in += int64(m)
			}
			open, closed = max(open, in), max(closed, in+int64(x.past[l.Window-1]))

			y := recent{past: [8]int8{int8(n)}}
			copy(y.past[1:l.Window], x.past[:])
			if look(l, s, 1).Remaining < l.N { // otherwise it is equal to a fresh one
				y.s = rule.State{T: s.T - 1, A: s.A, B: s.B}
			}
			if !visited[y] {
				visited[y] = true
				todo = append(todo, y)
			}
		}
	}
	return open, closed
}

// TestBoundWithRefunds gives units back from time to time, at their true age. The
// units that are kept stay within a bucket's bound. For windows the bound is 2N. A
// unit that opens a window and is given back does not close it. So N kept units
// can be at its very end, and N more can follow.
func TestBoundWithRefunds(t *testing.T) {
	r := newRand(t)
	for i := range 12_000 {
		l := randomLimit(r, kinds[i%len(kinds)])
		var (
			s    rule.State
			kept []admitted
		)
		now := int64(0)
		for range 40 {
			if now += span(r, l); now > latest {
				break
			}
			if len(kept) > 0 && r.IntN(3) == 0 {
				refunded := &kept[r.IntN(len(kept))]
				if r.IntN(3) == 0 {
					refunded = &kept[len(kept)-1]
				}
				n := min(refunded.n, 1+r.Int64N(l.Cap()))
				s = l.Adjust(s, now, -n, now-refunded.at)
				refunded.n -= n
			}
			if left := look(l, s, now).Remaining; left > 0 {
				n := 1 + r.Int64N(left)
				s, _ = l.Take(s, now, n)
				kept = append(kept, admitted{now, n})
			}
		}
		within(t, l, kept, 2*l.N)
	}
}

// TestRefundedOpening reaches that 2N.
func TestRefundedOpening(t *testing.T) {
	l := sliding(3, 10)
	s := after(l, takes{{0, 1}, {9, 2}})
	s = l.Adjust(s, 9, -1, 9)
	for _, at := range []int64{9, 11, 14, 17} {
		var a rule.Answer
		if s, a = l.Take(s, at, 1); a.Retry != 0 {
			t.Errorf("at %d: %+v", at, a)
		}
	}
}
