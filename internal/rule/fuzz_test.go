package rule_test

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// The fuzz targets run short scripts on limits and at instants of any size. The
// answers of the rules may be useless there, but they must be consistent.

// step is one line of a script; its numbers are made non-negative.
type step struct {
	op   byte
	x, y int64
}

const (
	opTake     = iota // x units
	opRefund          // x units, taken y ago
	opCharge          // x units, taken y ago
	opForward         // the clock goes on by x
	opBackward        // the clock goes back by x, not below 0
	opRelimit         // N becomes x, Burst y, where that is a limit
	ops
)

const stepSize, longest = 17, 32

func script(steps ...step) (b []byte) {
	for _, s := range steps {
		b = append(b, s.op)
		b = binary.LittleEndian.AppendUint64(b, uint64(s.x))
		b = binary.LittleEndian.AppendUint64(b, uint64(s.y))
	}
	return b
}

func parse(b []byte) (steps []step) {
	number := func(b []byte) int64 { return int64(binary.LittleEndian.Uint64(b) & math.MaxInt64) }
	for ; len(b) >= stepSize && len(steps) < longest; b = b[stepSize:] {
		steps = append(steps, step{b[0] % ops, number(b[1:]), number(b[9:])})
	}
	return steps
}

// scripts are seeds for every target, about a limit of n units per window w.
func scripts(n, w int64) [][]byte {
	const huge = math.MaxInt64
	return [][]byte{
		script(step{opTake, 1, 0}, step{opTake, n, 0}, step{opForward, w, 0}, step{opTake, n, 0}, step{opForward, w / 2, 0}, step{opTake, n / 2, 0}),
		script(step{opTake, n, 0}, step{opForward, w + w/3, 0}, step{opTake, n / 3, 0}, step{opForward, w, 0}, step{opTake, huge, 0}),
		script(step{opTake, n, 0}, step{opBackward, w, 0}, step{opTake, 1, 0}, step{opBackward, w, 0}, step{opTake, 1, 0}, step{opForward, 3 * w, 0}),
		script(step{opTake, n, 0}, step{opForward, w - 1, 0}, step{opRefund, n, w - 1}, step{opTake, 1, 0}, step{opRefund, huge, huge}),
		script(step{opCharge, n, w / 2}, step{opTake, 1, 0}, step{opCharge, huge, 0}, step{opCharge, 1, huge}, step{opRefund, 1, 1}),
		script(step{opTake, n, 0}, step{opRelimit, 1, 1}, step{opTake, 1, 0}, step{opRelimit, rule.MaxUnits, 1}, step{opForward, 1, 0}, step{opTake, 1, 0}),
		script(step{opTake, n, 0}, step{opForward, huge, 0}, step{opTake, n, 0}, step{opBackward, huge, 0}, step{opTake, n, 0}),
	}
}

func FuzzFixed(f *testing.F)   { fuzzWindows(f, rule.Fixed) }
func FuzzSliding(f *testing.F) { fuzzWindows(f, rule.Sliding) }

func fuzzWindows(f *testing.F, kind rule.Kind) {
	for _, l := range []rule.Limit{
		{N: 3, Window: hour}, {N: 10, Window: 4}, {N: 1, Window: 1}, {N: 1, Window: rule.MaxSpan},
		{N: rule.MaxUnits, Window: 1}, {N: rule.MaxUnits, Window: rule.MaxSpan}, {N: rule.MaxUnits, Window: rule.MinSpan},
	} {
		for _, b := range scripts(l.N, l.Window) {
			f.Add(l.N, l.Window, int64(0), b)
			f.Add(l.N, l.Window, int64(math.MaxInt64), b)
		}
	}
	f.Fuzz(func(t *testing.T, n, window, start int64, b []byte) {
		run(t, rule.Limit{Kind: kind, N: n, Window: window}, start, parse(b))
	})
}

func FuzzBucket(f *testing.F) {
	for _, l := range []rule.Limit{
		bucket(3, second, 3), bucket(10, second, 20), bucket(10, 4, 10), bucket(1, 1, 1), bucket(1, rule.MaxSpan, 1),
		bucket(rule.MaxUnits, 1, rule.MaxUnits), bucket(rule.MaxUnits, rule.MaxSpan, rule.MaxUnits),
		bucket(1, 1, rule.MaxUnits), bucket(rule.MaxUnits, rule.MaxSpan, 1), bucket(rule.MaxUnits-1, rule.MinSpan, 7),
	} {
		for _, b := range scripts(l.Burst, l.Window) {
			f.Add(l.N, l.Window, l.Burst, int64(0), b)
			f.Add(l.N, l.Window, l.Burst, int64(math.MaxInt64), b)
		}
	}
	f.Fuzz(func(t *testing.T, n, window, burst, start int64, b []byte) {
		run(t, bucket(n, window, burst), start, parse(b))
	})
}

func run(t *testing.T, l rule.Limit, start int64, steps []step) {
	if !valid(l) || start < 0 {
		t.Skip("no such limit, or no such clock")
	}
	m := moment{l: l, now: start}
	for _, step := range steps {
		switch step.op {
		case opTake:
			m.s = soundTake(t, m, step.x)
		case opRefund:
			m.s = soundAdjust(t, m, -step.x, step.y)
		case opCharge:
			m.s = soundAdjust(t, m, step.x, step.y)
		case opForward:
			// Two instants whose difference is no int64 are more than 292 years apart:
			// a charge can date a state before 0, and then the clock stops short of them.
			m.now += min(step.x, math.MaxInt64+min(0, m.s.T)-m.now)
		case opBackward:
			m.now = max(0, m.now-step.x)
		case opRelimit:
			next := rule.Limit{Kind: l.Kind, N: step.x, Window: l.Window}
			if l.Kind == rule.Bucket {
				next.Burst = step.y
			}
			if valid(next) {
				m.l = next
			}
		}
		soundTake(t, m, 0)
	}
}

func soundTake(t *testing.T, m moment, n int64) rule.State {
	s, a := m.l.Take(m.s, m.now, n)
	left, whole := look(m.l, m.s, m.now).Remaining, m.l.Cap()
	switch {
	case a.Remaining < 0 || a.Retry < 0 || a.More < 0 || a.Reset < 0 || a.Remaining > whole || a.More > a.Reset:
		t.Fatalf("%v: Take(%d) = %+v", m, n, a)
	case (a.Reset == 0) != (a.Remaining == whole) || (a.More == 0) != (a.Reset == 0):
		t.Fatalf("%v: Take(%d) = %+v, of %d", m, n, a, whole)
	case (a.Retry == 0) != (n <= left) || (a.Retry == rule.Never) != (n > whole):
		t.Fatalf("%v: Take(%d) = %+v, of %d left", m, n, a, left)
	case (n == 0 || n > left) && s != repaired(m):
		t.Fatalf("%v: Take(%d) = %+v takes nothing, yet makes it %+v", m, n, a, s)
	case n > left && a.Remaining != left || n <= left && a.Remaining != left-n:
		t.Fatalf("%v: Take(%d) = %+v, of %d left", m, n, a, left)
	}
	if !wellFormed(m.l, s) {
		t.Fatalf("%v: Take(%d) makes it %+v", m, n, s)
	}
	is := moment{m.l, s, m.now}
	soundWait(t, is, a.Retry, n)
	soundWait(t, is, a.More, a.Remaining+1)
	soundWait(t, is, a.Reset, whole)
	return s
}

// soundWait checks a wait to the nanosecond, where it ends on this clock.
func soundWait(t *testing.T, m moment, wait, n int64) {
	if wait > 0 && wait < rule.Never && m.now <= math.MaxInt64+min(0, m.s.T)-wait {
		exact(t, m, "wait", wait, n)
	}
}

func soundAdjust(t *testing.T, m moment, n, age int64) rule.State {
	was := look(m.l, m.s, m.now).Remaining
	s := m.l.Adjust(m.s, m.now, n, age)
	is := look(m.l, s, m.now).Remaining
	switch {
	case is < 0 || is > m.l.Cap() || !wellFormed(m.l, s):
		t.Fatalf("%v: Adjust(%d, %d) leaves %d in %+v", m, n, age, is, s)
	case n >= 0 && (is > was || was-is > n), n <= 0 && (is < was || is-was > -n):
		t.Fatalf("%v: Adjust(%d, %d): %d were left, then %d in %+v", m, n, age, was, is, s)
	case n < 0 && was == m.l.Cap() && s != repaired(m):
		t.Fatalf("%v: Adjust(%d, %d) of a whole limit makes it %+v", m, n, age, s)
	}
	return s
}
