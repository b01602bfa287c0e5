package table

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

func ladder(rungs ...int64) *rule.Ladder {
	l := &rule.Ladder{N: len(rungs)}
	copy(l.Rungs[:], rungs)
	return l
}

// marked is an answer with its marks.
type marked struct {
	rule.Answer
	Blocked, Began bool
}

func withMarks(answers []rule.Answer, m Marks) (all []marked) {
	for i, a := range answers {
		all = append(all, marked{a, m.Blocked>>i&1 != 0, m.Began>>i&1 != 0})
	}
	return all
}

// takeMarked takes n units without starting blocks. It alternates between the two ways to
// take under one limit.
func (tab *timed) takeMarked(key string, n int64, limits []rule.Limit) []marked {
	if len(limits) == 1 && tab.turn.Add(1)%2 == 0 {
		a, _, blocked, held := tab.Table.TakeOne(key, n, &limits[0], 0)
		held.Unlock()
		return []marked{{a, blocked, false}}
	}
	answers := make([]rule.Answer, len(limits))
	_, marks := tab.Table.Take(key, n, limits, answers, nil)
	return withMarks(answers, marks)
}

// takeBlocking takes n units under limits that all have one ladder.
func (tab *timed) takeBlocking(key string, n int64, pending []rule.Pending, l *rule.Ladder, limits ...rule.Limit) []marked {
	var ladders [MaxLimits]*rule.Ladder
	for i := range limits {
		ladders[i] = l
	}
	answers := make([]rule.Answer, len(limits))
	_, _, marks := tab.TakeBlocking(tab.Hash(key, Owner{}), n, tab.clock.Load(), false, limits, answers, nil, nil, &Blocking{Ladders: &ladders, Pending: pending})
	return withMarks(answers, marks)
}

// blockModel is a slow table with blocks. It keeps the ends of all blocks, and finds out
// what holds during a block by looking at its end.
type blockModel struct {
	*model
	blocks map[modelID]*modelBlock
}

type modelBlock struct {
	ends   []int64
	rung   int
	forget int64
}

func (b *modelBlock) end() int64 { return slices.Max(append([]int64{math.MinInt64}, b.ends...)) }

// of returns the block of a counter, without what is forgotten at now.
func (m *blockModel) of(id modelID, now int64) *modelBlock {
	b := m.blocks[id]
	if b == nil || b.end() <= now && now >= b.end()+b.forget {
		b = &modelBlock{}
		m.blocks[id] = b
	}
	return b
}

func (m *blockModel) reset(key string, limits []rule.Limit) {
	m.model.reset(key, limits)
	for _, l := range limits {
		delete(m.blocks, modelID{key, l.Kind, l.Window})
	}
}

func (m *blockModel) block(key string, d, now int64, limits []rule.Limit) {
	for _, l := range limits {
		b := m.of(modelID{key, l.Kind, l.Window}, now)
		b.ends = append(b.ends, now+d)
	}
}

// during returns the answer under a limit for a key that is blocked until end.
func (m *blockModel) during(id modelID, l rule.Limit, end, now, n int64) marked {
	_, fits := l.Take(m.states[id], end, n)
	_, then := l.Take(m.states[id], end, 0)
	a := marked{rule.Answer{Retry: end - now, More: end - now, Reset: end - now + then.Reset}, true, false}
	switch {
	case n == 0:
		a.Retry = 0
	case fits.Retry == rule.Never:
		a.Retry = rule.Never
	default:
		a.Retry += fits.Retry
	}
	if then.Remaining == 0 {
		a.More += then.More
	}
	return a
}

func (m *blockModel) take(key string, now, n int64, limits []rule.Limit, ladders []*rule.Ladder, pending []rule.Pending) []marked {
	blocked := false
	for _, l := range limits {
		blocked = blocked || m.of(modelID{key, l.Kind, l.Window}, now).end() > now
	}
	if !blocked {
		was := make([]rule.State, len(limits))
		for i, l := range limits {
			was[i] = m.states[modelID{key, l.Kind, l.Window}]
		}
		answers := withMarks(m.model.take(key, now, n, limits), Marks{})
		if slices.ContainsFunc(answers, func(a marked) bool { return a.Retry == rule.Never }) {
			return answers
		}
		for i, l := range limits {
			if answers[i].Retry == 0 || ladders[i] == nil {
				continue
			}
			without := was[i]
			for _, p := range pending {
				age := now - p.At
				if l.Kind == rule.Bucket {
					if age*l.N >= l.Burst*l.Window {
						continue
					}
					age = 0
				}
				without = l.Adjust(without, now, -p.Units, age)
			}
			if _, a := l.Take(without, now, n); a.Retry == 0 {
				continue
			}
			id := modelID{key, l.Kind, l.Window}
			b := m.of(id, now)
			end := now + max(answers[i].Retry, ladders[i].Rungs[min(b.rung, ladders[i].N-1)])
			forget := max(l.Window, ladders[i].Rungs[ladders[i].N-1])
			forget = (forget + forgetUnit - 1) / forgetUnit * forgetUnit // as the slot has it
			b.ends, b.rung, b.forget = append(b.ends, end), b.rung+1, forget
			answers[i] = m.during(id, l, end, now, n)
			answers[i].Began = true
		}
		return answers
	}
	answers := make([]marked, len(limits))
	for i, l := range limits {
		id := modelID{key, l.Kind, l.Window}
		if end := m.of(id, now).end(); end > now {
			answers[i] = m.during(id, l, end, now, n)
			continue
		}
		if _, answers[i].Answer = l.Take(m.states[id], now, n); answers[i].Retry == 0 {
			_, answers[i].Answer = l.Take(m.states[id], now, 0)
		}
	}
	return answers
}

// TestBlocksAgainstModel runs random histories under limits of which some have ladders:
// takes, takes of as many as fit, pending units, adjustments, blocks by hand, resets, and
// tables that are made of snapshots of the ones before.
func TestBlocksAgainstModel(t *testing.T) {
	r := newRand(t)
	ladders := []*rule.Ladder{nil, ladder(5), ladder(5, 40), ladder(1, 20, 20, 300), ladder(2000)}
	for _, most := range []int{2000, 1 << 20} {
		for range underRace(60, 20) {
			m := &blockModel{newModel(), make(map[modelID]*modelBlock)}
			tab, now, instants := newTimed(1), int64(1), []int64{0, math.MaxInt64}
			tab.Table = NewKept(most, tab.clock.Load, Secret{r.Uint64(), r.Uint64()}, MaxShards)
			rep := &replica{mirror: tab.Mirror()}
			for range 400 {
				steps := []int64{0, 0, 0, 1, 1, 2, r.Int64N(8), r.Int64N(100), 300, 3000}
				now += steps[r.IntN(len(steps))]
				tab.at(now)
				key, limits := []string{"a", "b"}[r.IntN(2)], randomLimits(r)
				under, blocking := make([]*rule.Ladder, len(limits)), &Blocking{Ladders: new([MaxLimits]*rule.Ladder)}
				for i := range limits {
					under[i] = ladders[r.IntN(len(ladders))]
					blocking.Ladders[i] = under[i]
				}
				n, answers := r.Int64N(5), make([]rule.Answer, len(limits))
				var got, want []marked
				op := fmt.Sprintf("take %d", n)
				switch r.IntN(14) {
				case 0:
					op = "reset"
					tab.Reset(key, limits)
					m.reset(key, limits)
				case 1:
					op = "adjust"
					at := instants[r.IntN(len(instants))]
					tab.Adjust(key, n-2, at, limits)
					m.adjust(key, now, n-2, at, limits)
				case 2:
					op = "block"
					d := 1 + r.Int64N(50)
					tab.Block(key, d, rule.Block{}, limits)
					m.block(key, d, now, limits)
				case 3:
					op = "snapshot"
					rep.update(true)
					tab.Table = rep.successor(t, most, MaxShards, 0, tab.clock.Load, r.IntN(2) == 0)
					rep = &replica{mirror: tab.Mirror()}
				case 4, 5: // starts no block
					clear(under)
					got = tab.takeMarked(key, n, limits)
					want = m.take(key, now, n, limits, under, nil)
				case 6:
					n++
					op = fmt.Sprintf("take up to %d", n)
					for _, a := range m.take(key, now, 0, limits, under, nil) {
						if !a.Blocked {
							n = min(n, a.Remaining)
						}
					}
					if slices.ContainsFunc(limits, func(l rule.Limit) bool { return m.of(modelID{key, l.Kind, l.Window}, now).end() > now }) {
						continue // the wait depends on what would fit; the other cases check it
					}
					n = max(n, 1)
					_, _, marks := tab.TakeBlocking(tab.Hash(key, Owner{}), n, now, true, limits, answers, nil, nil, blocking)
					got = withMarks(answers, marks)
					want = m.take(key, now, n, limits, under, nil)
				default:
					if r.IntN(15) == 0 {
						n = rule.MaxUnits
					}
					for range r.IntN(3) {
						blocking.Pending = append(blocking.Pending, rule.Pending{Units: 1 + r.Int64N(3), At: max(0, now-r.Int64N(70))})
					}
					_, _, marks := tab.TakeBlocking(tab.Hash(key, Owner{}), n, now, false, limits, answers, nil, nil, blocking)
					got = withMarks(answers, marks)
					want = m.take(key, now, n, limits, under, blocking.Pending)
				}
				if want != nil && !slices.Equal(got, want) {
					t.Fatalf("%s, %q at %d under %+v:\n got %+v\nwant %+v", op, key, now, limits, got, want)
				}
				got = tab.takeMarked(key, 0, limits)
				if want := m.take(key, now, 0, limits, under, nil); !slices.Equal(got, want) {
					t.Fatalf("look after %s, %q at %d under %+v:\n got %+v\nwant %+v", op, key, now, limits, got, want)
				}
				instants = append(instants, now)
				checkInvariants(t, tab.Table)
			}
		}
	}
}

// TestBlockedSurviveFlood: blocked keys survive a flood, also if they fill half of the
// table, whose other half is keys that are denied for a shorter time.
func TestBlockedSurviveFlood(t *testing.T) {
	const most, keys = 20_000, 5000
	l, blocks := fixed(5, minute), ladder(24*hour)
	tab := newTimed(most)
	for i := range keys {
		tab.take("blocked"+strconv.Itoa(i), 5, l)
		tab.takeBlocking("blocked"+strconv.Itoa(i), 1, nil, blocks, l)
	}
	tab.at(2 * minute) // the counters are whole again, and the blocks are not over
	flood(tab, 10*most, fixed(5, hour))
	for i := range most / 4 {
		tab.take("denied"+strconv.Itoa(i), 1, fixed(1, minute))
		tab.take("denied"+strconv.Itoa(i), 1, fixed(1, minute))
	}
	flood(tab, 5*most, sliding(5, 48*hour))
	for i := range keys {
		if tab.take("blocked"+strconv.Itoa(i), 1, l) {
			t.Fatalf("the flood has unblocked key %d", i)
		}
	}
	if got := tab.Stats(); got.EvictedDenied != 0 || got.Counters > most {
		t.Errorf("%+v, want at most %d counters, and no denied one evicted", got, most)
	}
	checkInvariants(t, tab.Table)
}

// TestRungIsKeptLonger: when a block is over, its rung goes after all counters with units
// left, and before the counters of denied keys. Its loss does not count as one of a denied key.
func TestRungIsKeptLonger(t *testing.T) {
	for _, row := range []struct {
		name    string
		other   int64 // units of the only other counter, of 3
		denied  bool
		want    bool // the rung is still there
		evicted Stats
	}{
		{"beside an open counter", 1, false, true, Stats{Counters: 2, Evicted: 1}},
		{"beside a denied one", 3, true, false, Stats{Counters: 2, Evicted: 1}},
	} {
		tab, l, blocks := newTimed(2), fixed(1, minute), ladder(hour, 24*hour)
		tab.take("k", 1, l)
		tab.takeBlocking("k", 1, nil, blocks, l)
		tab.at(hour + 1)
		tab.take("other", row.other, fixed(3, 100*hour)) // in the place of the counter, which has expired
		if row.denied {
			tab.take("other", 1, fixed(3, 100*hour))
		}
		tab.take("new", 1, fixed(3, hour))
		s, _ := tab.lock(tab.hash("k"))
		kept := s.block(tab.hash("k").id(&l)).Rung == 1
		s.mu.Unlock()
		if got := tab.Stats(); kept != row.want || got != row.evicted {
			t.Errorf("%s: kept %v, %+v", row.name, kept, got)
		}
	}
}

// TestBlocksExpire: a table without calls for blocked keys frees the blocks when their
// ladders are forgotten, and does not look for blocks any more.
func TestBlocksExpire(t *testing.T) {
	tab, l := newTimed(10_000), fixed(1, minute)
	for i := range 1000 {
		tab.take(strconv.Itoa(i), 1, l)
		tab.takeBlocking(strconv.Itoa(i), 1, nil, ladder(hour, 2*hour), l)
	}
	held := func() (blocks int) {
		for s := range tab.shards.used {
			blocks += int(s.blocks)
		}
		return blocks
	}
	sweepAll := func(now int64) {
		for range 1000 {
			tab.sweepSome(now)
			now += tab.Table.sweep.every
		}
	}
	sweepAll(3*hour - 3000*tab.Table.sweep.every)
	if got := held(); got != 1000 {
		t.Errorf("%d blocks are left before their ladders are forgotten, want 1000", got)
	}
	sweepAll(3 * hour)
	if got := held(); got != 0 || tab.Stats().Counters != 0 {
		t.Errorf("%d blocks and %d places are left, want none", got, tab.Stats().Counters)
	}
	checkInvariants(t, tab.Table)
}

// TestOneBlockOfManyDenials: of 64 goroutines that are denied at once, one starts the
// block, and the ladder moves by one rung.
func TestOneBlockOfManyDenials(t *testing.T) {
	tab, l, blocks := newTimed(1000), fixed(10, minute), ladder(minute, hour, 24*hour)
	for round, want := range []int64{minute, hour, 24 * hour, 24 * hour} {
		var began, admitted atomic.Int64
		together(func(int) {
			for range 20 {
				a := tab.takeBlocking("k", 1, nil, blocks, l)[0]
				switch {
				case a.Retry == 0:
					admitted.Add(1)
				case a.Retry != want || !a.Blocked:
					t.Errorf("round %d: %+v, want a block of %d", round, a, want)
				}
				if a.Began {
					began.Add(1)
				}
			}
		})
		if began.Load() != 1 || admitted.Load() != 10 {
			t.Errorf("round %d: %d blocks began and %d were admitted, want 1 and 10", round, began.Load(), admitted.Load())
		}
		tab.at(tab.clock.Load() + want)
	}
	checkInvariants(t, tab.Table)
}

// TestBlocksConcurrently runs everything at once in tables that are too small, for the
// race detector and the invariants.
func TestBlocksConcurrently(t *testing.T) {
	r := newRand(t)
	seeds := r.Uint64()
	for _, most := range []int{1, 3, 50, 9000} {
		tab := newTimed(most)
		together(func(g int) {
			r := rand.New(rand.NewPCG(seeds, uint64(g)))
			for range 150 {
				tab.clock.Add(r.Int64N(5))
				key, limits := strconv.Itoa(r.IntN(most*2)), randomLimits(r)
				switch r.IntN(6) {
				case 0:
					tab.Reset(key, limits)
				case 1:
					tab.Block(key, 1+r.Int64N(100), rule.Block{}, limits)
				case 2:
					tab.take(key, r.Int64N(3), limits...)
				default:
					tab.takeBlocking(key, r.Int64N(4), nil, ladder(3, 50), limits...)
				}
			}
		})
		checkInvariants(t, tab.Table)
	}
}

// TestLongBlocks: a block of any length keeps its end and its rung, in the table and in a
// table that is made of its changes, also if the clock shows what a process sees after decades.
func TestLongBlocks(t *testing.T) {
	l := fixed(1, 1000)
	for _, at := range []int64{0, 1, rule.MaxSpan * 4 / 5, rule.MaxSpan, rule.MaxSpan / 2 * 3} {
		for _, d := range []int64{rule.MinSpan, rule.MaxSpan - 1, rule.MaxSpan} {
			now := at
			tab := NewKept(100, func() int64 { return now }, Secret{1, 2}, 1)
			kept := replica{mirror: tab.Mirror()}
			given := rule.Block{Rung: 3, Forget: rule.MaxSpan / 8 * 8}
			tab.Block("k", d, given, []rule.Limit{l})
			given.Until = at + d
			kept.update(false)
			for name, tab := range map[string]*Table{"the table": tab, "its successor": kept.successor(t, 100, 1, 0, func() int64 { return now }, false)} {
				if got, _ := tab.BlockOf(tab.Hash("k", Owner{}), now, &l); got != given {
					t.Errorf("%s at %d: %+v, not %+v", name, at, got, given)
				}
				for _, step := range []struct{ at, left int64 }{{at + d - 1, 1}, {at + d, 0}} {
					now = step.at
					answers := make([]rule.Answer, 1)
					if tab.Take("k", 1, []rule.Limit{l}, answers, nil); answers[0].Retry != step.left {
						t.Errorf("%s, blocked at %d for %d: %d left at %d, not %d", name, at, d, answers[0].Retry, now, step.left)
					}
				}
				now = at
			}
		}
	}
}
