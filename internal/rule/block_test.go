package rule_test

import (
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

func ladder(rungs ...int64) *rule.Ladder {
	l := &rule.Ladder{N: len(rungs)}
	copy(l.Rungs[:], rungs)
	return l
}

// slowBlock is the reference for a Block: it remembers everything that has happened.
type slowBlock struct {
	ends   []int64 // of all blocks, in the order of their beginnings
	rung   int     // denials that have blocked since the ladder was last forgotten
	forget int64   // of the last denial that has blocked
}

func (s *slowBlock) end() (end int64) {
	for _, e := range s.ends {
		end = max(end, e)
	}
	return end
}

func (s *slowBlock) forgetAt(now int64) {
	if len(s.ends) > 0 && now-s.end() >= s.forget {
		*s = slowBlock{}
	}
}

// TestBlockAgainstReference runs random denials and blocks by hand under ladders that
// change, and compares each block with the reference.
func TestBlockAgainstReference(t *testing.T) {
	r := newRand(t)
	ladders := []*rule.Ladder{ladder(5), ladder(5, 10), ladder(1, 1, 20), ladder(3, 7, 50, 200)}
	for range 3000 {
		var fast rule.Block
		var slow slowBlock
		now := r.Int64N(100)
		for range 60 {
			l, window := ladders[r.IntN(len(ladders))], []int64{4, 30, 90}[r.IntN(3)]
			switch {
			case r.IntN(6) == 0: // by hand
				d := 1 + r.Int64N(60)
				fast = fast.Join(rule.Block{Until: rule.Lasting(d, now)}, now)
				slow.forgetAt(now)
				slow.ends = append(slow.ends, now+d)
			case fast.Left(now) == 0:
				retry := 1 + r.Int64N(40)
				fast = fast.Start(l, window, retry, now)
				slow.forgetAt(now)
				slow.ends = append(slow.ends, now+max(retry, l.Rungs[min(slow.rung, l.N-1)]))
				slow.rung++
				slow.forget = max(window, l.Rungs[l.N-1])
			}
			if got, want := fast.Left(now), max(0, slow.end()-now); got != want {
				t.Fatalf("at %d: %d left of %+v, want %d of %+v", now, got, fast, want, slow)
			}
			steps := []int64{0, 1, r.Int64N(10), fast.Left(now), fast.Left(now) + r.Int64N(100), fast.Forgotten() - now, fast.Forgotten() - now - 1}
			now += max(0, steps[r.IntN(len(steps))])
		}
	}
}

// TestLadderIsForgotten: at exactly the longest duration or the window after the end of
// the last block, whichever is longer, the first rung is next again. 1 ns before it is not.
func TestLadderIsForgotten(t *testing.T) {
	for _, row := range []struct{ window, after int64 }{{hour, 3 * hour}, {5 * hour, 5 * hour}} {
		l := ladder(minute, 3*hour)
		first := rule.Block{}.Start(l, row.window, 1, 0)
		if got := first.Left(0); got != minute {
			t.Fatalf("the first block lasts %d", got)
		}
		again := minute + row.after
		if got := first.Start(l, row.window, 1, again-1).Left(again - 1); got != 3*hour {
			t.Errorf("window %d, 1 ns before: %d, want the second rung", row.window, got)
		}
		if got := first.Start(l, row.window, 1, again).Left(again); got != minute {
			t.Errorf("window %d: %d, want the first rung", row.window, got)
		}
	}
}

// TestBlockExtremes: nothing overflows, however late the clock and long the block.
func TestBlockExtremes(t *testing.T) {
	long := ladder(rule.MaxSpan, rule.MaxSpan, rule.MaxSpan, rule.MaxSpan)
	for _, now := range []int64{0, 1, rule.MaxSpan, rule.MaxUntil - 1, rule.MaxUntil, rule.Never} {
		for _, retry := range []int64{1, rule.MaxSpan, 2 * rule.MaxSpan, rule.Never / 2} {
			b := rule.Block{}
			for range 9 {
				b = b.Start(long, rule.MaxSpan, retry, now)
				if b.Rung > rule.MaxRungs || b.Left(now) < 0 || b.Forgotten() < b.Until && b.Until <= rule.MaxUntil || b.Until < now {
					t.Fatalf("at %d, retry %d: %+v", now, retry, b)
				}
			}
			if b = b.Join(rule.Block{Until: rule.Lasting(rule.MaxSpan, now)}, now); b.Left(now) < 0 || b.Until < now {
				t.Fatalf("at %d: joined %+v", now, b)
			}
		}
	}
}

// TestDeniesWithout: pending units that still count are given back, and others are not.
func TestDeniesWithout(t *testing.T) {
	for _, row := range []struct {
		name    string
		l       rule.Limit
		s       rule.State
		pending []rule.Pending
		n       int64
		want    bool
	}{
		{"none", fixed(5, hour), rule.State{T: minute, A: 5}, nil, 1, true},
		{"all of them", fixed(5, hour), rule.State{T: minute, A: 5}, []rule.Pending{{5, minute}}, 1, false},
		{"one of them", fixed(5, hour), rule.State{T: minute, A: 5}, []rule.Pending{{1, 2 * minute}}, 1, false},
		{"one, two are asked for", fixed(5, hour), rule.State{T: minute, A: 5}, []rule.Pending{{1, 2 * minute}}, 2, true},
		{"of the window before", fixed(5, hour), rule.State{T: minute, A: 5}, []rule.Pending{{5, minute - 1}}, 1, true},
		{"leaked in part", bucket(1, minute, 5), rule.State{T: 4 * minute, A: 5}, []rule.Pending{{2, 3 * minute}}, 1, false},
		{"one after the other", bucket(1, minute, 5), rule.State{T: 4 * minute, A: 5}, []rule.Pending{{1, minute}, {1, 2 * minute}}, 2, false},
		{"perhaps not leaked", bucket(1, minute, 3), rule.State{T: 4 * minute, A: 3}, []rule.Pending{{2, minute + 1}}, 2, false},
		{"leaked", bucket(1, minute, 3), rule.State{T: 4 * minute, A: 3}, []rule.Pending{{2, minute}}, 1, true},
	} {
		if got := row.l.DeniesWithout(row.pending, row.s, 4*minute, row.n); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
	}
}
