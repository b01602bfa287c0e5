package rule_test

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file checks rolling windows against rollingReference, which keeps a plain list of
// instants and finds waits by trying instants.

func rolling(n, window int64) rule.Limit {
	return rule.Limit{Kind: rule.Rolling, N: n, Window: window}
}

// rollingReference is a list of the instants of all units, including units that have left.
type rollingReference struct {
	rule.Limit
	units []int64
}

// counting returns the units that count at an instant. From the instant now on, an instant
// that is further than a window ahead of now is now.
func (r *rollingReference) counting(now, at int64) (counting []int64) {
	moves := false
	for _, unit := range r.units {
		moves = moves || unit > now+r.Window
	}
	for _, unit := range r.units {
		if moves {
			unit = min(unit, now)
		}
		if at < unit+r.Window {
			counting = append(counting, unit)
		}
	}
	return counting
}

func (r *rollingReference) remaining(now, at int64) int64 {
	return max(0, r.N-int64(len(r.counting(now, at))))
}

// wait tries all instants at which something changes, from now on.
func (r *rollingReference) wait(now, n int64) int64 {
	if n > r.N {
		return rule.Never
	}
	waits := []int64{0}
	for _, unit := range r.counting(now, now) {
		waits = append(waits, unit+r.Window-now)
	}
	slices.Sort(waits)
	return waits[sort.Search(len(waits), func(i int) bool { return r.remaining(now, now+waits[i]) >= n })]
}

// bring is what every call does that changes the units.
func (r *rollingReference) bring(now int64) { r.units = r.counting(now, now) }

func (r *rollingReference) take(now, n int64) (a rule.Answer) {
	if a.Retry = r.wait(now, n); a.Retry == 0 && n > 0 {
		r.bring(now)
		for range n {
			r.units = append(r.units, now)
		}
	}
	if a.Remaining = r.remaining(now, now); a.Remaining < r.N {
		a.More, a.Reset = r.wait(now, a.Remaining+1), r.wait(now, r.N)
	}
	return a
}

func (r *rollingReference) adjust(now, n, at int64) (moved, oldest int64) {
	if n == 0 {
		return 0, 0
	}
	r.bring(now)
	at = max(0, at)
	if n > 0 {
		for at = min(at, now); moved < n && now < at+r.Window && r.remaining(now, now) > 0; moved++ {
			r.units = append(r.units, at)
		}
		return moved, at
	}
	if !slices.Contains(r.units, at) && at > now {
		slices.Sort(r.units)
		gone := min(int64(len(r.units)), -max(n, -rule.MaxUnits))
		if gone == 0 {
			return 0, 0
		}
		oldest = r.units[int64(len(r.units))-gone]
		r.units = r.units[:int64(len(r.units))-gone]
		return gone, oldest
	}
	for ; n < 0; n++ {
		i := slices.Index(r.units, at)
		if i < 0 {
			return moved, at
		}
		r.units = slices.Delete(r.units, i, i+1)
		moved++
	}
	return moved, at
}

// rollingRun is a log and its reference.
type rollingRun struct {
	log  rule.Log
	ref  rollingReference
	now  int64
	seen []int64 // instants of calls
}

func (r *rollingRun) String() string {
	return fmt.Sprintf("%+v at %d with %v", r.ref.Limit, r.now, r.ref.units)
}

// take makes a call as a store does, and checks everything that it changes and returns.
func (r *rollingRun) take(t *testing.T, n int64) rule.Answer {
	t.Helper()
	before, was := r.String(), r.log.AppendTo(nil)
	l := &r.ref.Limit
	a := l.Ask(&r.log, r.now, n)
	if is := r.log.AppendTo(nil); !slices.Equal(is, was) {
		t.Fatalf("%s: Ask has changed %v to %v", before, was, is)
	}
	if want := r.ref.take(r.now, n); a != want {
		t.Fatalf("%s: %d units\n got %+v\nwant %+v", before, n, a, want)
	}
	switch {
	case n == 0:
	case a.Retry == 0:
		l.Count(&r.log, r.now, n)
		if is := l.Ask(&r.log, r.now, 0); is != a {
			t.Fatalf("%s: %d units: Ask says %+v, and afterwards %+v", before, n, a, is)
		}
	default:
		repairs := l.Repairs(&r.log, r.now)
		if l.Repair(&r.log, r.now); repairs { // only then the reference has to keep it
			r.ref.bring(r.now)
		}
		if is := l.Ask(&r.log, r.now, n); is != a {
			t.Fatalf("%s: %d units denied: Ask says %+v, and afterwards %+v", before, n, a, is)
		}
	}
	r.seen = append(r.seen, r.now)
	r.check(t, before)
	return a
}

func (r *rollingRun) adjust(t *testing.T, n, at int64) {
	t.Helper()
	before := r.String()
	got, oldest := r.ref.Limit.AdjustLog(&r.log, r.now, n, at)
	if want, from := r.ref.adjust(r.now, n, at); got != want || got > 0 && oldest != from {
		t.Fatalf("%s: Adjust by %d of %d moves %d from %d on, want %d from %d on", before, n, at, got, oldest, want, from)
	}
	r.check(t, before)
}

// check checks the log by itself, and that it has the units of the reference that count.
func (r *rollingRun) check(t *testing.T, before string) {
	t.Helper()
	all := r.log.AppendTo(nil)
	counting := r.ref.counting(r.now, r.now)
	slices.Sort(counting)
	since, _ := slices.BinarySearch(all, r.now-r.ref.Window+1)
	got := slices.Clone(all[since:])
	if len(got) > 0 && r.ref.Limit.Repairs(&r.log, r.now) {
		for i := range got {
			got[i] = min(got[i], r.now)
		}
	}
	sorted, n := slices.IsSorted(all), len(all)
	switch {
	case !sorted || !slices.Equal(got, counting):
		t.Fatalf("%s: the log has %v, and %v count, want %v", before, all, got, counting)
	case r.log.N != int64(n) || n > 0 && r.log.T != all[n-1] || n == 0 && r.log != rule.Log{}:
		t.Fatalf("%s: %+v has %v", before, r.log, all)
	case (r.log.Ring != nil) != (n > 0 && all[0] != all[n-1]):
		t.Fatalf("%s: %v in a ring of %d", before, all, r.log.Ring.Cap())
	}
	if most := max(2*n+1, 16); r.log.Ring.Cap() > most+most/5 {
		t.Fatalf("%s: %d units in a ring of %d", before, n, r.log.Ring.Cap())
	}
}

// step makes a random call.
func (r *rollingRun) step(t *testing.T, rnd *rand.Rand, backwards bool) {
	w := r.ref.Window
	steps := []int64{0, 0, 0, 1, 1, 2, w / 2, w - 1, w, w + 1, rnd.Int64N(w + 1), rnd.Int64N(3*w + 1)}
	r.now += steps[rnd.IntN(len(steps))]
	if backwards && rnd.IntN(6) == 0 {
		r.now = max(0, r.now-2*rnd.Int64N(w+2))
	}
	n := []int64{0, 1, 1, 1, 2, r.ref.N, r.ref.N + 1, rnd.Int64N(r.ref.N + 1), math.MaxInt64}[rnd.IntN(9)]
	switch rnd.IntN(10) {
	case 0:
		r.ref.N = 1 + rnd.Int64N(12)
	case 1, 2, 3:
		if rnd.IntN(2) == 0 {
			n = -n
		}
		at := []int64{math.MaxInt64, r.now, r.now + 1, r.now - w, r.now - w + 1, r.now - rnd.Int64N(w+1), -5}[rnd.IntN(7)]
		if len(r.seen) > 0 && rnd.IntN(2) == 0 {
			at = r.seen[len(r.seen)-1-rnd.IntN(min(8, len(r.seen)))]
		}
		r.adjust(t, n, at)
	default:
		r.take(t, n)
	}
}

// TestRollingAgainstReference compares every answer over random histories, of which half
// have a clock that also goes backwards.
func TestRollingAgainstReference(t *testing.T) {
	rnd := newRand(t)
	for i := range 4000 {
		run := rollingRun{ref: rollingReference{Limit: rolling(1+rnd.Int64N(12), 1+rnd.Int64N(20))}, now: rnd.Int64N(100)}
		for range 60 {
			run.step(t, rnd, i%2 == 0)
		}
	}
}

// TestLongLogs is TestRollingAgainstReference for logs of up to MaxRolling units.
func TestLongLogs(t *testing.T) {
	rnd := newRand(t)
	for i := range 4 {
		run := rollingRun{ref: rollingReference{Limit: rolling(rule.MaxRolling, 3000)}}
		for range 1500 {
			if run.now += rnd.Int64N(6); rnd.IntN(200) == 0 {
				run.now += rnd.Int64N(4000)
			}
			switch n := 1 + rnd.Int64N(4); {
			case rnd.IntN(8) > 0 || len(run.seen) == 0:
				run.take(t, n)
			case rnd.IntN(2) == 0 && i%2 == 0:
				run.adjust(t, n, run.now-rnd.Int64N(2000))
			default:
				run.adjust(t, -n, run.seen[rnd.IntN(len(run.seen))])
			}
		}
	}
}

// FuzzRolling compares histories that the fuzzer writes with the reference.
func FuzzRolling(f *testing.F) {
	f.Add(int64(3), int64(10), []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 200, 100, 50})
	f.Add(int64(1), int64(1), []byte{0, 0, 0, 255, 255, 255, 128, 64, 32})
	f.Fuzz(func(t *testing.T, n, window int64, calls []byte) {
		if n < 1 || n > 60 || window < 1 || window > 1000 {
			return
		}
		run := rollingRun{ref: rollingReference{Limit: rolling(n, window)}, now: 500}
		for ; len(calls) >= 3; calls = calls[3:] {
			run.now = max(0, run.now+int64(int8(calls[0])))
			units := int64(int8(calls[1]) / 8)
			switch at := run.now - int64(int8(calls[2])); {
			case calls[2] == 0:
				run.ref.N = 1 + max(units, -units)
			case calls[2]%4 == 0:
				run.adjust(t, units, at)
			case calls[2]%4 == 1:
				run.adjust(t, units, math.MaxInt64)
			default:
				run.take(t, max(units, -units))
			}
		}
	})
}

// TestRollingAnswers checks complete answers. The rows are histories of their own.
func TestRollingAnswers(t *testing.T) {
	five, never := rolling(5, hour), int64(rule.Never)
	for _, row := range []struct {
		name string
		past takes
		now  int64
		n    int64
		want rule.Answer // Remaining, Retry, More, Reset
	}{
		{"fresh", nil, 0, 0, answer(5, 0, 0, 0)},
		{"one unit", nil, 0, 1, answer(4, 0, hour, hour)},
		{"the units leave one by one", takes{{0, 2}, {10 * minute, 1}, {20 * minute, 2}}, 30 * minute, 1, answer(0, 30*minute, 30*minute, 50*minute)},
		{"three of them", takes{{0, 2}, {10 * minute, 1}, {20 * minute, 2}}, 30 * minute, 3, answer(0, 40*minute, 30*minute, 50*minute)},
		{"all of them", takes{{0, 2}, {10 * minute, 1}, {20 * minute, 2}}, 30 * minute, 5, answer(0, 50*minute, 30*minute, 50*minute)},
		{"never", takes{{0, 2}}, minute, 6, answer(3, never, 59*minute, 59*minute)},
		{"never, the largest number", nil, 0, never, answer(5, never, 0, 0)},
		{"the last instant", takes{{0, 5}}, hour - 1, 1, answer(0, 1, 1, 1)},
		{"a unit of t counts until t+window, exclusive", takes{{0, 5}}, hour, 5, answer(0, 0, hour, hour)},
		{"some have left", takes{{0, 2}, {10 * minute, 3}}, hour, 2, answer(0, 0, 10*minute, hour)},
		{"no border to wait for", takes{{59 * minute, 5}}, 61 * minute, 1, answer(0, 58*minute, 58*minute, 58*minute)},
		{"the clock is behind: the units stay", takes{{hour, 2}}, 30 * minute, 1, answer(2, 0, hour, 90*minute)},
		{"the clock is more than a window behind", takes{{9*hour + 1, 2}, {10 * hour, 3}}, hour, 1, answer(0, hour, hour, hour)},
	} {
		t.Run(row.name, func(t *testing.T) {
			var g rule.Log
			for _, take := range row.past {
				five.Count(&g, take[0], take[1])
			}
			if got := five.Ask(&g, row.now, row.n); got != row.want {
				t.Errorf("\n got %+v\nwant %+v", got, row.want)
			}
		})
	}
}

// TestRollingLowered: if N is lowered below what is held, the units stay and leave by
// themselves, and the waits are exact.
func TestRollingLowered(t *testing.T) {
	run := rollingRun{ref: rollingReference{Limit: rolling(6, hour)}}
	for i := range int64(6) {
		run.now = i * minute
		run.take(t, 1)
	}
	run.ref.N = 2
	if a := run.take(t, 1); a != answer(0, 59*minute, 59*minute, hour) { // the units of 0 to 4 min have to leave
		t.Errorf("lowered to 2: %+v", a)
	}
	run.now = hour + 4*minute
	if a := run.take(t, 0); a != answer(1, 0, minute, minute) {
		t.Errorf("when five units have left: %+v", a)
	}
}

// TestBoundRolling: whatever a client does, no interval as long as the window has more
// than N admitted units. Refunds are of units that were taken: their place is free again.
func TestBoundRolling(t *testing.T) {
	rnd := newRand(t)
	most := int64(0)
	for range 2000 {
		l := rolling(1+rnd.Int64N(8), 1+rnd.Int64N(30))
		var g rule.Log
		var units []int64 // admitted, and not given back
		for now := int64(0); now < 6*l.Window; now += rnd.Int64N(2 + l.Window/2) {
			n := 1 + rnd.Int64N(l.N)
			if a := l.Ask(&g, now, n); a.Retry == 0 {
				l.Count(&g, now, n)
				for range n {
					units = append(units, now)
				}
			}
			if rnd.IntN(4) == 0 && len(units) > 0 {
				i := rnd.IntN(len(units))
				if moved, _ := l.AdjustLog(&g, now, -1, units[i]); moved == 1 {
					units = slices.Delete(units, i, i+1)
				}
			}
		}
		for i, begins := range units {
			ends, _ := slices.BinarySearchFunc(units, begins+l.Window, cmp.Compare[int64])
			if got := int64(ends - i); got > l.N {
				t.Fatalf("%+v: %d units from %d on: %v", l, got, begins, units)
			} else if got == l.N {
				most++
			}
		}
	}
	if most < 1000 {
		t.Errorf("the limit was reached %d times: the test does not test what it means to", most)
	}
}

// TestRollingWaitsAreExact waits for what was answered, and for 1 ns less.
func TestRollingWaitsAreExact(t *testing.T) {
	rnd := newRand(t)
	for range 3000 {
		run := rollingRun{ref: rollingReference{Limit: rolling(1+rnd.Int64N(8), 1+rnd.Int64N(30))}}
		for range rnd.IntN(20) {
			run.step(t, rnd, false)
		}
		l := &run.ref.Limit
		standing := l.Ask(&run.log, run.now, 0)
		try := func(what string, wait, n int64) {
			if wait == 0 || wait == rule.Never {
				return
			}
			if got := l.Ask(&run.log, run.now+wait, n); got.Retry != 0 {
				t.Fatalf("%v: %s of %d is too short for %d units: %+v", &run, what, wait, n, got)
			}
			if got := l.Ask(&run.log, run.now+wait-1, n); got.Retry != 1 {
				t.Fatalf("%v: %s of %d is too long for %d units: %+v", &run, what, wait, n, got)
			}
		}
		for n := range l.N + 2 {
			try("Retry", l.Ask(&run.log, run.now, n).Retry, n)
		}
		try("More", standing.More, standing.Remaining+1)
		try("Reset", standing.Reset, l.N)
	}
}

// TestRollingRefunds: a refund names the units that it gives back.
func TestRollingRefunds(t *testing.T) {
	l := rolling(6, 10)
	for _, row := range []struct {
		name   string
		now    int64
		n, at  int64
		moved  int64
		leaves []int64
		holds  []int64 // before it, and {0, 3, 3, 5, 7} if nil
	}{
		{"of an instant", 8, -2, 3, 2, []int64{0, 5, 7}, nil},
		{"one of two of an instant", 8, -1, 3, 1, []int64{0, 3, 5, 7}, nil},
		{"more than were taken then", 8, -9, 3, 2, []int64{0, 5, 7}, nil},
		{"of an instant without units", 8, -1, 4, 0, []int64{0, 3, 3, 5, 7}, nil},
		{"of the present, when none was taken", 8, -1, 8, 0, []int64{0, 3, 3, 5, 7}, nil},
		{"of the present, when one was taken", 7, -2, 7, 1, []int64{0, 3, 3, 5}, nil},
		{"now", 8, -2, rule.Never, 2, []int64{0, 3, 3}, nil},
		{"of the future", 8, -1, 9, 1, []int64{0, 3, 3, 5}, nil},
		{"now, more than there are", 8, -rule.MaxUnits, rule.Never, 5, []int64{}, nil},
		{"the smallest number", 8, math.MinInt64, rule.Never, 5, []int64{}, nil},
		{"of units that have left", 13, -2, 3, 0, []int64{5, 7}, nil},
		{"now, when some have left", 13, -1, rule.Never, 1, []int64{5}, nil},
		{"now, when all have left", 30, -1, rule.Never, 0, []int64{}, nil},
		{"of a unit ahead of the clock", 2, -1, 3, 1, []int64{0, 3, 5, 7}, nil},
		{"of units that are in the ring's middle", 9, -1, 8, 1, []int64{7, 9}, []int64{7, 8, 9}},

		{"a charge now", 8, 1, rule.Never, 1, []int64{0, 3, 3, 5, 7, 8}, nil},
		{"a charge of the past, in order", 8, 1, 4, 1, []int64{0, 3, 3, 4, 5, 7}, nil},
		{"a charge into a full log", 8, 3, 1, 1, []int64{0, 1, 3, 3, 5, 7}, nil},
		{"a charge that has left", 11, 1, 1, 0, []int64{3, 3, 5, 7}, nil},
		{"a charge that has nearly left", 10, 1, 1, 1, []int64{1, 3, 3, 5, 7}, nil},
		{"a charge to an empty log", 30, 9, 25, 6, []int64{25, 25, 25, 25, 25, 25}, nil},
		{"the largest charge", 30, math.MaxInt64, 30, 6, []int64{30, 30, 30, 30, 30, 30}, nil},
		{"nothing", 13, 0, 3, 0, []int64{0, 3, 3, 5, 7}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.holds == nil {
				row.holds = []int64{0, 3, 3, 5, 7}
			}
			g := rule.LogOf(row.holds)
			moved, _ := l.AdjustLog(&g, row.now, row.n, row.at)
			if got := g.AppendTo([]int64{}); moved != row.moved || !slices.Equal(got, row.leaves) {
				t.Errorf("%d moved, and %v are left, want %d and %v", moved, got, row.moved, row.leaves)
			}
		})
	}
}

// TestRollingPending: pending units of an instant count as given back for as long as a
// unit of that instant counts.
func TestRollingPending(t *testing.T) {
	l := rolling(4, 10)
	for _, row := range []struct {
		now, n  int64
		pending []rule.Pending
		denies  bool
	}{
		{8, 1, nil, true},
		{8, 1, []rule.Pending{{Units: 1, At: 3}}, false},
		{8, 2, []rule.Pending{{Units: 1, At: 3}}, true},
		{8, 2, []rule.Pending{{Units: 1, At: 3}, {Units: 1, At: rule.Never}}, false},
		{8, 4, []rule.Pending{{Units: math.MaxInt64, At: 3}, {Units: math.MaxInt64, At: 3}}, false},
		{8, 5, []rule.Pending{{Units: math.MaxInt64, At: 3}}, true},
		{9, 1, []rule.Pending{{Units: 1, At: -1}}, true},
		{9, 1, []rule.Pending{{Units: 1, At: 0}}, false},
		{10, 1, nil, false},
		{10, 2, []rule.Pending{{Units: 1, At: 0}}, true},
		{10, 2, []rule.Pending{{Units: -7, At: 3}}, true},
	} {
		g := rule.LogOf([]int64{0, 3, 5, 7})
		if got := l.LogDeniesWithout(row.pending, &g, row.now, row.n); got != row.denies {
			t.Errorf("%d units at %d with %v: denied is %v, want %v", row.n, row.now, row.pending, got, row.denies)
		}
	}
}

// TestLogMemory: a log of any length reserves less than 10 bytes for each unit, and no
// memory for units of one instant.
func TestLogMemory(t *testing.T) {
	l := rolling(rule.MaxRolling, hour)
	var g rule.Log
	if l.Count(&g, 1, 100); g.Ring.Cap() != 0 {
		t.Errorf("a ring of %d for units of one instant", g.Ring.Cap())
	}
	g = rule.Log{}
	for n := int64(1); n <= rule.MaxRolling; n++ {
		l.Count(&g, n, 1)
		if got := 8 * float64(g.Ring.Cap()) / float64(n); got >= 10 && n > 1 {
			t.Errorf("%d units: %.1f bytes for each", n, got)
		}
	}
}

// TestRollingText: the text of a rolling limit is in log lines and names.
func TestRollingText(t *testing.T) {
	if got := rolling(5, hour).String(); got != "5/1h rolling" {
		t.Errorf("%q", got)
	}
	l := rolling(5, hour)
	if l.Cap() != 5 || l.Lasts() != hour || !l.IsNear(1) || l.IsNear(2) {
		t.Errorf("%+v holds %d units for %d", l, l.Cap(), l.Lasts())
	}
}

// TestGuessLog: at no later instant does a guess leave more units than the real log. It
// denies the same number of units for as long.
func TestGuessLog(t *testing.T) {
	for range 20_000 {
		l := rolling(1+rand.Int64N(6), 1+rand.Int64N(40))
		var real rule.Log
		now := int64(1000)
		for range rand.Int64N(9) {
			at := now - rand.Int64N(l.Window+5)
			l.AdjustLog(&real, now, 1, at)
		}
		n := rand.Int64N(l.N + 2)
		a := l.Ask(&real, now, n)
		if a.Retry == 0 && n > 0 {
			l.Count(&real, now, n)
		}
		g := l.GuessLog(a, now, n)
		if got := l.Ask(&g, now, n); a.Retry != 0 && got.Retry != a.Retry {
			t.Fatalf("%+v: %d units of %v wait %d, of the guess %v %d", l, n, real.AppendTo(nil), a.Retry, g.AppendTo(nil), got.Retry)
		}
		if all := g.AppendTo(nil); !slices.IsSorted(all) {
			t.Fatalf("the guess %v is not in order", all)
		}
		for at := now; at <= now+l.Window; at++ {
			if is, guess := l.Ask(&real, at, 0), l.Ask(&g, at, 0); guess.Remaining > is.Remaining {
				t.Fatalf("%+v at %d: of %v there are %d left, of the guess %v %d", l, at, real.AppendTo(nil), is.Remaining, g.AppendTo(nil), guess.Remaining)
			}
		}
	}
}

// TestLogMapCopies: a log that Map returns shares nothing with the other one.
func TestLogMapCopies(t *testing.T) {
	l := rolling(9, 100)
	g := rule.LogOf([]int64{1, 2, 3})
	moved := g.Map(func(at int64) int64 { return at + 50 })
	l.Count(&moved, 60, 2)
	l.AdjustLog(&g, 60, -1, 2)
	if a, b := g.AppendTo(nil), moved.AppendTo(nil); !slices.Equal(a, []int64{1, 3}) || !slices.Equal(b, []int64{51, 52, 53, 60, 60}) {
		t.Errorf("%v and %v", a, b)
	}
	same := moved.Map(func(int64) int64 { return 7 })
	if empty := new(rule.Log); same.Ring != nil || same.N != 5 || empty.Map(nil) != (rule.Log{}) {
		t.Errorf("%+v", same)
	}
}

// TestAdjustLogOldest: the oldest of the units that a refund removes.
func TestAdjustLogOldest(t *testing.T) {
	for _, row := range []struct{ n, at, moved, oldest int64 }{
		{-1, rule.Never, 1, 30}, {-3, rule.Never, 3, 10}, {-9, rule.Never, 4, 10},
		{-9, 30, 2, 30}, {-1, 10, 1, 10}, {-1, 11, 0, 0}, {2, 5, 2, 5}, {1, rule.Never, 1, 40}, {0, 30, 0, 0},
	} {
		l, g := rolling(9, 100), rule.LogOf([]int64{10, 10, 30, 30})
		if moved, oldest := l.AdjustLog(&g, 40, row.n, row.at); moved != row.moved || oldest != row.oldest {
			t.Errorf("%d of %d: %d, from %d on", row.n, row.at, moved, oldest)
		}
	}
}
