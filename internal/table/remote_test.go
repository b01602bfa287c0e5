package table

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// known is what the model knows about one counter.
type known struct {
	state   rule.State
	refused bool
}

// remoteModel is a simple and slow form of remote.go: a map of states, which are
// joined one by one.
type remoteModel map[modelID]known

func (m remoteModel) id(key string, l rule.Limit) modelID { return modelID{key, l.Kind, l.Window} }

func (m remoteModel) take(key string, n, now int64, limits []rule.Limit) (answers []rule.Answer, admitted bool) {
	admitted = true
	for _, l := range limits {
		_, a := l.Take(m[m.id(key, l)].state, now, n)
		answers, admitted = append(answers, a), admitted && a.Retry == 0
	}
	for i, l := range limits {
		id := m.id(key, l)
		switch retry := answers[i].Retry; {
		case n == 0:
		case admitted:
			state, _ := l.Take(m[id].state, now, n)
			m[id] = known{state, false}
		case retry == 0:
			_, answers[i] = l.Take(m[id].state, now, 0)
		case retry != rule.Never && m[id].state != rule.State{}:
			m[id] = known{m[id].state, true}
		}
	}
	return answers, admitted
}

func (m remoteModel) adjust(key string, n, at, now int64, limits []rule.Limit) (charged int64, moves []Move) {
	charged = max(0, n)
	for _, l := range limits {
		id := m.id(key, l)
		before := m[id]
		after := l.Adjust(before.state, now, n, now-min(at, now))
		charged = min(charged, l.Charged(before.state, after, now))
		moves = append(moves, Move{Units: unitsBetween(l, before.state, after, now), After: after})
		if after != before.state {
			m[id] = known{after, m.still(before, l, after, now)}
		}
	}
	return charged, moves
}

// still reports whether a counter that becomes after is as refused as it was before.
func (m remoteModel) still(before known, l rule.Limit, after rule.State, now int64) bool {
	_, was := l.Take(before.state, now, 0)
	_, is := l.Take(after, now, 0)
	return before.refused && was.Reset > 0 && is.Reset > 0 && is.Remaining <= was.Remaining
}

// unitsBetween returns how many units are between two states, rounded up. It finds a
// fraction by comparing both in Window-ths of a unit.
func unitsBetween(l rule.Limit, before, after rule.State, now int64) int64 {
	parts := func(s rule.State) int64 {
		whole := l
		whole.Burst = rule.MaxUnits
		if l.Kind != rule.Bucket { // N may have been lowered to less than there is
			whole.N = rule.MaxUnits
			_, a := whole.Take(s, now, 0)
			return whole.N - a.Remaining
		}
		s, _ = whole.Take(s, now, 1) // brings it to now
		return (s.A-1)*l.Window + s.B
	}
	between := parts(after) - parts(before)
	if l.Kind == rule.Bucket {
		between = (between + l.Window*1000 + l.Window - 1) / l.Window
		between -= 1000
	}
	return between
}

func (m remoteModel) learn(key string, refused, now int64, limits []rule.Limit, states []rule.State, older bool) {
	for i, l := range limits {
		id, was := m.id(key, l), m[m.id(key, l)]
		_, here := l.Take(was.state, now, 0)
		_, received := l.Take(states[i], now, 0)
		is := known{states[i], m.still(was, l, states[i], now)}
		left := received
		// Units above the limit count, too: the limit may have been higher.
		high := l
		if high.Burst = rule.MaxUnits; l.Kind != rule.Bucket {
			high.N = rule.MaxUnits
		}
		_, a := high.Take(was.state, now, 0)
		_, b := high.Take(states[i], now, 0)
		if older && (a.Remaining < b.Remaining || a.Remaining == b.Remaining && a.Reset > b.Reset) {
			is, left = was, here
		}
		if left.Reset == 0 {
			delete(m, id)
			continue
		}
		is.refused = is.refused || refused > left.Remaining && refused <= l.Cap()
		m[id] = is
	}
}

// denied returns the answers of Denied, or nil.
func (m remoteModel) denied(key string, n, now int64, limits []rule.Limit) (answers []rule.Answer) {
	denied := false
	for _, l := range limits {
		k := m[m.id(key, l)]
		_, a := l.Take(k.state, now, n)
		if a.Retry == 0 {
			_, a = l.Take(k.state, now, 0)
		} else if a.Retry != rule.Never && k.refused {
			denied = true
		}
		answers = append(answers, a)
	}
	if !denied {
		return nil
	}
	return answers
}

// sameState reports whether two states give the same answer: one may have expired,
// which the table forgets, and the model does not.
func sameState(l rule.Limit, a, b rule.State, now int64) bool {
	_, left := l.Take(a, now, 0)
	_, other := l.Take(b, now, 0)
	return a == b || left == other
}

// exactLimits returns random limits whose units a model can count. A sliding window
// weighs its older half, so the remaining units do not show how many were changed.
func exactLimits(r *rand.Rand) (limits []rule.Limit) {
	for _, l := range randomLimits(r) {
		if l.Kind != rule.Sliding {
			limits = append(limits, l)
		}
	}
	return limits
}

// TestAgainstRemoteModel: the methods that take an instant and a hash answer as a map
// of states would, also if several owners share the table.
func TestAgainstRemoteModel(t *testing.T) {
	r := newRand(t)
	for range 150 {
		tab := newTimed([]int{1000, 1 << 20}[r.IntN(2)])
		owners := []Owner{{}, NewOwner(), NewOwner()}
		models := []remoteModel{{}, {}, {}}
		now := int64(10_000)
		instants := []int64{0, now}
		for step := range 300 {
			now += []int64{0, 0, 0, 1, r.Int64N(8), r.Int64N(100), 1000, 3000}[r.IntN(8)]
			o := r.IntN(len(owners))
			m, key := models[o], []string{"", "a", "b"}[r.IntN(3)]
			h, limits, n := tab.Hash(key, owners[o]), randomLimits(r), r.Int64N(4)
			if r.IntN(30) == 0 {
				n = rule.MaxUnits
			}
			fail := func(op string, got, want any) {
				t.Helper()
				t.Fatalf("step %d at %d: %s of %d for %q of owner %d under %+v:\n got %+v\nwant %+v", step, now, op, n, key, o, limits, got, want)
			}
			answers := make([]rule.Answer, len(limits))
			switch r.IntN(7) {
			case 0, 1:
				after := make([]rule.State, len(limits))
				admitted, at := tab.TakeAt(h, n, now-r.Int64N(2), limits, answers, after) // the shard may have seen now, or not
				now = at
				want, ok := m.take(key, n, now, limits)
				if admitted != ok || !slices.Equal(answers, want) {
					fail("TakeAt", answers, want)
				}
				for i, l := range limits {
					if state := m[m.id(key, l)].state; !sameState(l, after[i], state, now) {
						fail("the state after TakeAt", after[i], state)
					}
				}
				instants = append(instants, at)
			case 2:
				limits = exactLimits(r)
				if r.IntN(2) == 0 {
					n = -n
				}
				at := instants[r.IntN(len(instants))]
				moves := make([]Move, len(limits))
				charged, used := tab.AdjustAt(h, n, at, now, limits, moves)
				now = used
				want, wantMoves := m.adjust(key, n, at, now, limits)
				sameUnits := func(a, b Move) bool { return a.Units == b.Units }
				if charged != want || !slices.EqualFunc(moves, wantMoves, sameUnits) {
					fail(fmt.Sprint("AdjustAt ", at), moves, wantMoves)
				}
				for i, l := range limits {
					if !sameState(l, moves[i].After, wantMoves[i].After, now) {
						fail("the state after AdjustAt", moves[i], wantMoves[i])
					}
				}
			case 3:
				var states []rule.State
				for _, l := range limits {
					state := rule.State{T: now - r.Int64N(2*l.Window), A: r.Int64N(l.Cap() + 2)}
					if l.Kind == rule.Sliding {
						state.B = r.Int64N(l.N + 2)
					}
					states = append(states, state)
				}
				older, refused := r.IntN(2) == 0, []int64{0, n}[r.IntN(2)]
				_, now = tab.TakeAt(h, 0, now, limits, answers, nil)
				tab.Learn(h, refused, now, limits, Learnt{States: states, StatesOlder: older})
				m.learn(key, refused, now, limits, states, older)
			case 4:
				_, now = tab.TakeAt(h, 0, now, limits, answers, nil)
				want := m.denied(key, n, now, limits)
				if got, _ := tab.Denied(h, n, now, limits, answers); got != (want != nil) || got && !slices.Equal(answers, want) {
					fail("Denied", answers, want)
				}
			case 5:
				_, now = tab.TakeAt(h, 0, now, limits, answers, nil)
				l := limits[0]
				got, held := tab.State(h, now, &l)
				want := m[m.id(key, l)].state
				if _, a := l.Take(want, now, 0); held && got != want || !held && a.Reset != 0 {
					fail("State", got, want)
				}
			default:
				if r.IntN(4) == 0 {
					tab.Forget(h, now, limits)
					for _, l := range limits {
						delete(m, m.id(key, l))
					}
				}
			}
		}
		checkInvariants(t, tab.Table)
		if s := tab.Stats(); s.Evicted != 0 {
			t.Fatalf("%+v: evicted below the maximum", s)
		}
	}
}

// TestAdjustAtReportsEachLimit: if one limit has no room for the units, the others
// are still charged, and a fraction of a unit counts as one.
func TestAdjustAtReportsEachLimit(t *testing.T) {
	tab := newTimed(100)
	h := tab.Hash("k", NewOwner())
	limits := []rule.Limit{fixed(5, hour), sliding(9, hour), bucket(1, hour, 4)}
	moves := make([]Move, 3)
	units := func(n, at, now int64) []int64 {
		charged, _ := tab.AdjustAt(h, n, at, now, limits, moves)
		for i := range moves {
			if n > 0 && charged > moves[i].Units || n <= 0 && charged != 0 {
				t.Errorf("%d units charged in all, and %+v", charged, moves)
			}
		}
		return []int64{moves[0].Units, moves[1].Units, moves[2].Units}
	}
	for _, row := range []struct {
		n, at, now int64
		want       []int64
	}{
		{3, 0, 0, []int64{3, 3, 3}},
		{3, 0, 0, []int64{2, 3, 1}},
		{2, minute, minute, []int64{0, 2, 1}}, // a 60th of a unit has leaked, and is filled again
		{0, minute, minute, []int64{0, 0, 0}},
		{-2, minute, minute, []int64{-2, -2, -2}},
		{-9, 0, minute, []int64{-3, -6, -2}}, // and a 60th has leaked of the bucket's last two
		{-1, minute, minute, []int64{0, 0, 0}},
	} {
		if got := units(row.n, row.at, row.now); !slices.Equal(got, row.want) {
			t.Errorf("%d units of %d at %d: moved %v, want %v", row.n, row.at, row.now, got, row.want)
		}
	}
}

// TestInstantsDoNotRunBack: a call with an earlier instant is decided at the shard's
// last instant. An instant that cannot be of the same clock is used unchanged.
func TestInstantsDoNotRunBack(t *testing.T) {
	for kind, l := range hourly(3) {
		tab := newTimed(100)
		h, answers := tab.Hash("k", NewOwner()), make([]rule.Answer, 1)
		take := func(n, now int64) (at int64) {
			_, at = tab.TakeAt(h, n, now, []rule.Limit{l}, answers, nil)
			return at
		}
		if at := take(3, 5*hour); at != 5*hour {
			t.Errorf("%s: decided at %d", kind, at)
		}
		if at := take(1, 5*hour-minute); at != 5*hour || answers[0].Retry < hour {
			t.Errorf("%s: a late call was decided at %d: %+v", kind, at, answers[0])
		}
		if at := take(1, 2*hour); at != 2*hour || answers[0].Retry < hour {
			t.Errorf("%s: a call by another clock was decided at %d: %+v", kind, at, answers[0])
		}
	}
}

// TestOwners: two owners never share a counter.
func TestOwners(t *testing.T) {
	tab, l := newTimed(1<<16), fixed(1, hour)
	limits, answers := []rule.Limit{l}, make([]rule.Answer, 1)
	for range 100 {
		o := NewOwner()
		for i := range 100 {
			if admitted, _ := tab.TakeAt(tab.Hash(strconv.Itoa(i), o), 1, 1, limits, answers, nil); !admitted {
				t.Fatal("two owners share a counter")
			}
		}
	}
	if !tab.take("1", 1, l) {
		t.Error("the table's own key is an owner's")
	}
}

// TestLearnBounds: no state of another process makes a counter that lasts longer
// than its window from now on, or that has a negative instant.
func TestLearnBounds(t *testing.T) {
	tab := newTimed(100)
	h := tab.Hash("k", NewOwner())
	for kind, l := range hourly(3) {
		for _, at := range []int64{-100 * hour, -1, 0, 9 * hour, 1000 * hour} {
			tab.Learn(h, 1, 3*hour, []rule.Limit{l}, Learnt{States: []rule.State{{T: at, A: 3}}})
			var answers [1]rule.Answer
			tab.TakeAt(h, 1, 3*hour, []rule.Limit{l}, answers[:], nil)
			if answers[0].Reset > 3*hour || answers[0].Retry > 2*hour {
				t.Errorf("%s, T of %d: %+v", kind, at, answers[0])
			}
			checkInvariants(t, tab.Table)
		}
	}
}

// TestRemoteAllocatesNothing: a known denial allocates nothing, and neither does
// learning the state of a known key.
func TestRemoteAllocatesNothing(t *testing.T) {
	for _, n := range []int{1, MaxLimits} {
		var limits []rule.Limit
		var states []rule.State
		for i := range n {
			limits = append(limits, rule.Limit{Kind: rule.Kind(1 + i%3), N: 5, Window: hour + int64(i), Burst: 5})
			states = append(states, rule.State{T: 1, A: 5})
		}
		tab, owner := newTimed(100), NewOwner()
		answers, moves, after := make([]rule.Answer, n), make([]Move, n), make([]rule.State, n)
		h, blocked := tab.Hash("k", owner), tab.Hash("blocked", owner)
		tab.Learn(h, 1, 2, limits, Learnt{States: states})
		blocks := make([]rule.Block, n)
		blocks[n-1] = rule.Block{Until: hour, Rung: 1, Forget: hour}
		for name, call := range map[string]func(){
			"Hash":     func() { h = tab.Hash("k", owner) },
			"Denied":   func() { tab.Denied(h, 1, 2, limits, answers) },
			"Learn":    func() { tab.Learn(h, 1, 2, limits, Learnt{States: states}) },
			"TakeAt":   func() { tab.TakeAt(h, 1, 2, limits, answers, after) },
			"AdjustAt": func() { tab.AdjustAt(h, -1, 2, 2, limits, moves); tab.AdjustAt(h, 1, 2, 2, limits, moves) },
			"State":    func() { tab.State(h, 2, &limits[0]) },
			"States":   func() { tab.States(h, 2, limits, after) },
			"BlockOf":  func() { tab.BlockOf(blocked, 2, &limits[0]) },
			"Learn with a block": func() {
				tab.Learn(blocked, 1, 2, limits, Learnt{States: states, Blocks: blocks})
			},
			"Denied during a block": func() { tab.Denied(blocked, 1, 2, limits, answers) },
		} {
			if got := testing.AllocsPerRun(100, call); got != 0 {
				t.Errorf("%s under %d limits: %v allocations", name, n, got)
			}
		}
	}
}

// TestRemoteConcurrently runs all methods concurrently in a table that is too
// small. It is for the race detector and the invariants.
func TestRemoteConcurrently(t *testing.T) {
	r := newRand(t)
	seeds := r.Uint64()
	for _, most := range []int{3, 50, 2048, 9000} {
		tab := newTimed(most)
		owners := []Owner{{}, NewOwner()}
		together(func(g int) {
			r := rand.New(rand.NewPCG(seeds, uint64(g)))
			for range 200 {
				now := tab.clock.Add(r.Int64N(3) * 1000)
				limits := randomLimits(r)
				h := tab.Hash(strconv.Itoa(r.IntN(most*2)), owners[r.IntN(2)])
				answers, states := make([]rule.Answer, len(limits)), make([]rule.State, len(limits))
				for i := range states {
					states[i] = rule.State{T: now, A: r.Int64N(4)}
				}
				block := rule.Block{Until: now + r.Int64N(100), Rung: 1, Forget: r.Int64N(100)}
				switch r.IntN(10) {
				case 7:
					tab.BlockAt(h, block, false, now, limits)
					tab.BlockOf(h, now, &limits[0])
				case 8:
					blocks := make([]rule.Block, len(limits))
					blocks[0] = block
					tab.Learn(h, 0, now, limits, Learnt{States: states, Blocks: blocks, BlocksOlder: r.IntN(2) == 0})
				case 9:
					all := [MaxLimits]*rule.Ladder{ladder(50), nil, ladder(20, 90)}
					tab.TakeBlocking(h, 1+r.Int64N(3), now, false, limits, answers, states, nil, &Blocking{Ladders: &all})
					tab.States(h, now, limits, states)
				case 0:
					tab.Forget(h, now, limits)
				case 1:
					tab.AdjustAt(h, r.Int64N(5)-2, now-r.Int64N(50), now, limits, make([]Move, len(limits)))
				case 2:
					tab.Learn(h, r.Int64N(3), now, limits, Learnt{States: states, StatesOlder: r.IntN(2) == 0})
				case 3:
					tab.Denied(h, 1, now, limits, answers)
				case 4:
					tab.take(strconv.Itoa(r.IntN(most)), 1, limits...)
				case 5:
					tab.State(h, now, &limits[0])
				default:
					tab.TakeAt(h, r.Int64N(3), now, limits, answers, states)
				}
			}
		})
		checkInvariants(t, tab.Table)
		if got := tab.Stats().Counters; got > most {
			t.Errorf("%d counters, at most %d", got, most)
		}
	}
}

// TestLearnedKeysSurvive: keys that another store has refused are as safe from a
// flood as keys that were refused here.
func TestLearnedKeysSurvive(t *testing.T) {
	most, keys := underRace(20_000, 10_000), underRace(5000, 2500)
	l, owner := fixed(5, hour), NewOwner()
	tab := newTimed(most)
	limits, answers := []rule.Limit{l}, make([]rule.Answer, 1)
	learn := func(key string, refused, used, now int64) {
		tab.Learn(tab.Hash(key, owner), refused, now, limits, Learnt{States: []rule.State{{T: now, A: used}}})
	}
	for i := range keys {
		learn("blocked"+strconv.Itoa(i), 1, 5, 1)
	}
	for i := range 10 * most {
		learn("flood"+strconv.Itoa(i), 0, 5, second)
	}
	for i := range keys {
		if denied, _ := tab.Denied(tab.Hash("blocked"+strconv.Itoa(i), owner), 1, second, limits, answers); !denied {
			t.Fatalf("the flood has unblocked a key: %+v", tab.Stats())
		}
	}
	if s := tab.Stats(); s.EvictedDenied != 0 || s.Counters > most {
		t.Errorf("%+v", s)
	}
}

// TestBlocksAgainstRemoteModel: blocks that are learnt, that begin here and that are joined
// are kept as a map of blocks would keep them, also if several owners share the table. So
// are the counters beside them.
func TestBlocksAgainstRemoteModel(t *testing.T) {
	type bitBlock struct {
		rule.Block
		odd bool
	}
	r := newRand(t)
	blocks := ladder(20, 70)
	for range 100 {
		tab, now := newTimed(1000), int64(10_000)
		owners := []Owner{{}, NewOwner()}
		models := []remoteModel{{}, {}}
		known := []map[modelID]bitBlock{{}, {}}
		for step := range 300 {
			now += []int64{0, 0, 1, r.Int64N(8), r.Int64N(100), 1000}[r.IntN(6)]
			o := r.IntN(len(owners))
			m, has, key := models[o], known[o], []string{"a", "b"}[r.IntN(2)]
			h, limits, n := tab.Hash(key, owners[o]), randomLimits(r), r.Int64N(4)
			answers, states := make([]rule.Answer, len(limits)), make([]rule.State, len(limits))
			of := func(l rule.Limit) bitBlock {
				if b := has[m.id(key, l)]; b.Until+b.Forget > now {
					return b
				}
				return bitBlock{}
			}
			// keep is what the table keeps of a block: it rounds Forget up.
			keep := func(l rule.Limit, b rule.Block, odd bool) {
				if has[m.id(key, l)] = (bitBlock{}); b.Until+b.Forget > now {
					b.Forget = (b.Forget + forgetUnit - 1) / forgetUnit * forgetUnit
					has[m.id(key, l)] = bitBlock{b, odd}
				}
			}
			join := func(l rule.Limit, b rule.Block, odd bool) {
				was := of(l)
				if was.Until > b.Until {
					odd = was.odd
				}
				keep(l, rule.Block{Until: max(was.Until, b.Until), Rung: max(was.Rung, b.Rung), Forget: max(was.Forget, b.Forget)}, odd)
			}
			some := func() rule.Block {
				return rule.Block{Until: max(0, now+r.Int64N(60)-20), Rung: uint8(r.IntN(rule.MaxRungs + 1)), Forget: r.Int64N(80)}
			}
			inForce := func() (blocked uint8) {
				for i, l := range limits {
					if of(l).Until > now {
						blocked |= 1 << i
					}
				}
				return blocked
			}
			// during has the answers for a key that is blocked.
			during := func() (want []rule.Answer) {
				for _, l := range limits {
					state := m[m.id(key, l)].state
					_, a := l.Take(state, now, n)
					if a.Retry == 0 {
						_, a = l.Take(state, now, 0)
					}
					if left := of(l).Until - now; left > 0 {
						a = a.Over(left, n)
					}
					want = append(want, a)
				}
				return want
			}
			op, odd := r.IntN(7), r.IntN(2) == 0
			fail := func(got, want any) {
				t.Helper()
				t.Fatalf("step %d at %d: operation %d, %d for %q of owner %d under %+v:\n got %+v\nwant %+v", step, now, op, n, key, o, limits, got, want)
			}
			_, now = tab.TakeAt(h, 0, now, limits, answers, nil)
			switch op {
			case 0, 1:
				learnt := Learnt{StatesOlder: r.IntN(2) == 0, BlocksOlder: r.IntN(2) == 0, Odd: odd}
				for _, l := range limits {
					b := some()
					if r.IntN(3) == 0 {
						b = rule.Block{}
					}
					learnt.States = append(learnt.States, rule.State{T: now - r.Int64N(l.Window), A: r.Int64N(l.Cap() + 2)})
					if r.IntN(8) > 0 && len(learnt.Blocks) == len(learnt.States)-1 {
						learnt.Blocks = append(learnt.Blocks, b)
					}
				}
				if len(learnt.Blocks) < len(limits) {
					learnt.Blocks = nil
				}
				m.learn(key, n, now, limits, learnt.States, learnt.StatesOlder)
				for i, b := range learnt.Blocks {
					if learnt.BlocksOlder {
						join(limits[i], b, odd)
					} else {
						keep(limits[i], b, odd)
					}
				}
				if got, want := tab.Learn(h, n, now, limits, learnt), inForce(); got != want {
					fail(got, want)
				}
			case 2:
				n++
				want, blocked := m.denied(key, n, now, limits), inForce()
				if blocked != 0 {
					want = during()
				}
				denied, marked := tab.Denied(h, n, now, limits, answers)
				if denied != (want != nil) || marked != blocked || denied && !slices.Equal(answers, want) {
					fail(answers, want)
				}
			case 3:
				b := some()
				tab.BlockAt(h, b, odd, now, limits)
				for _, l := range limits {
					join(l, b, odd)
				}
			case 4:
				if r.IntN(3) == 0 {
					tab.Forget(h, now, limits)
					for _, l := range limits {
						delete(m, m.id(key, l))
						delete(has, m.id(key, l))
					}
				}
			default:
				var all [MaxLimits]*rule.Ladder
				for i := range limits {
					all[i] = []*rule.Ladder{nil, blocks}[r.IntN(2)]
				}
				var began, started [MaxLimits]rule.Block
				want, marks := []rule.Answer(nil), Marks{Blocked: inForce()}
				if marks.Blocked != 0 {
					want = during()
				} else {
					want, _ = m.take(key, n, now, limits)
					never := slices.ContainsFunc(want, func(a rule.Answer) bool { return a.Retry == rule.Never })
					for i, l := range limits {
						if all[i] == nil || want[i].Retry == 0 || never {
							continue
						}
						b := of(l).Start(blocks, l.Window, want[i].Retry, now)
						started[i] = b
						keep(l, b, odd)
						want[i] = want[i].Over(b.Left(now), n)
						marks = Marks{marks.Blocked | 1<<i, marks.Began | 1<<i}
					}
				}
				_, _, got := tab.TakeBlocking(h, n, now, false, limits, answers, states, nil, &Blocking{Ladders: &all, Began: &began, Odd: odd})
				if got != marks || !slices.Equal(answers, want) {
					fail(answers, want)
				}
				if began != started {
					fail(began, started)
				}
			}
			if got, want := tab.States(h, now, limits, states), inForce(); got != want {
				fail(got, want)
			}
			for i, l := range limits {
				got, bit := tab.BlockOf(h, now, &l)
				if got.Forgotten() <= now {
					got, bit = rule.Block{}, false
				}
				if want := of(l); got != want.Block || got != (rule.Block{}) && bit != want.odd {
					fail(got, want)
				}
				if state := m[m.id(key, l)].state; !sameState(l, states[i], state, now) {
					fail(states[i], state)
				}
			}
			checkInvariants(t, tab.Table)
		}
	}
}

// TestLearntBlocksSurvive: keys that another store has blocked are as safe from a flood as
// keys that it denies, and need no counter.
func TestLearntBlocksSurvive(t *testing.T) {
	most, keys := underRace(20_000, 10_000), underRace(5000, 2500)
	l, owner := fixed(5, hour), NewOwner()
	tab := newTimed(most)
	limits, answers := []rule.Limit{l}, make([]rule.Answer, 1)
	for i := range keys {
		h := tab.Hash("blocked"+strconv.Itoa(i), owner)
		tab.Learn(h, 1, 1, limits, Learnt{States: []rule.State{{}}, Blocks: []rule.Block{{Until: hour, Rung: 1, Forget: hour}}})
	}
	for i := range 10 * most {
		tab.Learn(tab.Hash("flood"+strconv.Itoa(i), owner), 0, second, limits, Learnt{States: []rule.State{{T: second, A: 5}}, Blocks: []rule.Block{{}}})
	}
	for i := range keys {
		denied, blocked := tab.Denied(tab.Hash("blocked"+strconv.Itoa(i), owner), 1, second, limits, answers)
		if !denied || blocked != 1 || answers[0].Retry != hour-second {
			t.Fatalf("the flood has unblocked a key: %+v", tab.Stats())
		}
	}
	if s := tab.Stats(); s.EvictedDenied != 0 || s.Counters > most {
		t.Errorf("%+v", s)
	}
}

// TestLearntBlocksAreFreed: a block that is forgotten, or that the store does not have,
// takes no place.
func TestLearntBlocksAreFreed(t *testing.T) {
	tab, l := newTimed(100), fixed(5, hour)
	h, limits := tab.Hash("k", NewOwner()), []rule.Limit{l}
	learn := func(now int64, b rule.Block, older bool) {
		tab.Learn(h, 0, now, limits, Learnt{States: []rule.State{{}}, Blocks: []rule.Block{b}, BlocksOlder: older})
	}
	for name, free := range map[string]func(){
		"none":               func() { learn(2*hour, rule.Block{}, false) },
		"forgotten":          func() { learn(2*hour, rule.Block{Until: hour, Rung: 1, Forget: hour}, false) },
		"older, and too old": func() { learn(5*hour, rule.Block{}, true) },
		"by hand, too old":   func() { tab.BlockAt(h, rule.Block{Until: hour}, false, 6*hour, limits) },
	} {
		learn(hour, rule.Block{Until: 3 * hour, Rung: 1, Forget: hour}, false)
		if got := tab.Stats().Counters; got != 1 {
			t.Fatalf("%s: %d places, want 1", name, got)
		}
		if free(); tab.Stats().Counters != 0 {
			t.Errorf("%s: the block is kept", name)
		}
		checkInvariants(t, tab.Table)
		tab = newTimed(100)
	}
}

// TestLearnLogs: logs that are learnt replace each other and free the places of the rings
// before them, in a table that evicts, too. A log that may be older hides no unit.
func TestLearnLogs(t *testing.T) {
	r := newRand(t)
	for range 20 {
		tab, limits, now := newTimed(150), []rule.Limit{rolling(60, hour)}, 3*hour
		for range 300 {
			now += r.Int64N(minute)
			instants := make([]int64, r.IntN(60))
			for i := range instants {
				instants[i] = now - r.Int64N(2*hour)
			}
			slices.Sort(instants)
			h := tab.Hash(strconv.Itoa(r.IntN(9)), Owner{})
			g := tab.LogOf(h, now, &limits[0])
			before := limits[0].Ask(&g, now, 0)
			older := r.IntN(2) == 0
			is := rule.LogOf(instants)
			learnt := limits[0].Ask(&is, now, 0)
			tab.Learn(h, r.Int64N(2), now, limits, Learnt{States: make([]rule.State, 1), Logs: []rule.Log{is}, StatesOlder: older})
			checkRings(t, tab.Table, 150)
			g = tab.LogOf(h, now, &limits[0])
			after := limits[0].Ask(&g, now, 0)
			if want := learnt.Remaining; after.Remaining != want && !(older && after.Remaining == min(want, before.Remaining)) {
				t.Fatalf("%d left, after %d and %d, older: %v", after.Remaining, before.Remaining, want, older)
			}
			limits[0].AdjustLog(&g, now, -3, rule.Never) // the copy is the caller's
			checkRings(t, tab.Table, 150)
		}
	}
}
