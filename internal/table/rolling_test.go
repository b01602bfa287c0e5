package table

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// These tests are about the counters of rolling windows.

func rolling(n, window int64) rule.Limit {
	return rule.Limit{Kind: rule.Rolling, N: n, Window: window}
}

// rollingModel adds rolling windows to a model: a map of logs, which forgets nothing.
type rollingModel struct {
	*model
	logs map[modelID]*rule.Log
}

func newRollingModel() *rollingModel {
	return &rollingModel{newModel(), make(map[modelID]*rule.Log)}
}

func (m *rollingModel) log(key string, l rule.Limit) *rule.Log {
	id := modelID{key, l.Kind, l.Window}
	if m.logs[id] == nil {
		m.logs[id] = new(rule.Log)
	}
	return m.logs[id]
}

// ask returns the answer under one limit.
func (m *rollingModel) ask(key string, now, n int64, l rule.Limit) (a rule.Answer) {
	if l.Kind == rule.Rolling {
		return l.Ask(m.log(key, l), now, n)
	}
	_, a = l.Take(m.states[modelID{key, l.Kind, l.Window}], now, n)
	return a
}

func (m *rollingModel) take(key string, now, n int64, limits []rule.Limit) []rule.Answer {
	answers, admitted := make([]rule.Answer, len(limits)), true
	for i, l := range limits {
		answers[i] = m.ask(key, now, n, l)
		admitted = admitted && answers[i].Retry == 0
	}
	for i, l := range limits {
		id := modelID{key, l.Kind, l.Window}
		switch {
		case !admitted && answers[i].Retry == 0:
			answers[i] = m.ask(key, now, 0, l)
		case !admitted || n == 0:
		case l.Kind == rule.Rolling:
			l.Count(m.log(key, l), now, n)
		default:
			m.states[id], _ = l.Take(m.states[id], now, n)
		}
	}
	return answers
}

func (m *rollingModel) adjust(key string, now, n, at int64, limits []rule.Limit) (charged int64) {
	charged = max(0, n)
	for _, l := range limits {
		if l.Kind == rule.Rolling {
			moved, _ := l.AdjustLog(m.log(key, l), now, n, at)
			charged = min(charged, moved)
		} else {
			charged = min(charged, m.model.adjust(key, now, n, at, []rule.Limit{l}))
		}
	}
	return charged
}

func (m *rollingModel) reset(key string, limits []rule.Limit) {
	m.model.reset(key, limits)
	for _, l := range limits {
		delete(m.logs, modelID{key, l.Kind, l.Window})
	}
}

// randomRolling is randomLimits with one or two rolling windows among the limits, in any
// place.
func randomRolling(r *rand.Rand) []rule.Limit {
	limits := randomLimits(r)
	for i, window := range []int64{15, 1000} {
		if i == 0 || r.IntN(3) == 0 {
			limits = slices.Insert(limits, r.IntN(len(limits)+1), rolling(1+r.Int64N(8), window))
		}
	}
	if r.IntN(3) == 0 {
		return slices.DeleteFunc(limits, func(l rule.Limit) bool { return l.Kind != rule.Rolling })
	}
	return limits
}

// checkRings checks the rings of every shard: each is of one split counter, and the places
// that they take are missing in the shard's maximum. most is the maximum of the table.
func checkRings(t *testing.T, tab *Table, most int) {
	t.Helper()
	checkInvariants(t, tab)
	sum := 0
	for i := range tab.Shards() {
		s := tab.shards.of(uint64(i))
		sum += s.max
		if s.rings() == nil {
			continue
		}
		places := 0
		for of, r := range s.rings().of {
			p := s.find(of)
			places += placesOf(r)
			if p.group == nil || p.slot().when&flagSplit == 0 || of != of.fingerprint() {
				t.Fatalf("shard %d: a ring of no counter", i)
			}
			g := s.log(p)
			all := g.AppendTo(nil)
			if !slices.IsSorted(all) || g.T != all[g.N-1] || all[0] == g.T || int(g.N) > r.Cap() {
				t.Fatalf("shard %d: %+v has %v", i, g, all)
			}
		}
		if sum += places; places != s.rings().places || len(s.rings().of) == 0 {
			t.Fatalf("shard %d: %d rings take %d places, not %d", i, len(s.rings().of), places, s.rings().places)
		}
	}
	if sum != most {
		t.Fatalf("the maxima and the rings' places are %d, want %d", sum, most)
	}
}

// TestRollingAgainstModel: below its maximum the table answers exactly as if it never
// forgot a counter, under rolling windows beside limits of the other kinds.
func TestRollingAgainstModel(t *testing.T) {
	for name, most := range map[string]int{"one shard": 1000, "many shards": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			r := newRand(t)
			for range 100 {
				tab, m := newTimed(most), newRollingModel()
				now, instants := int64(1), []int64{0, math.MaxInt64}
				for range 300 {
					steps := []int64{0, 0, 0, 1, 1, 2, r.Int64N(8), r.Int64N(100), 1000, 3000}
					now += steps[r.IntN(len(steps))]
					tab.at(now)
					key := []string{"", "a", "b", "\x00"}[r.IntN(4)]
					limits, n := randomRolling(r), r.Int64N(4)
					if r.IntN(20) == 0 {
						n = rule.MaxUnits
					}
					op := fmt.Sprintf("Take %d", n)
					switch r.IntN(10) {
					case 0:
						op, n = "Reset", 0
						tab.Reset(key, limits)
						m.reset(key, limits)
					case 1, 2, 3:
						if r.IntN(2) == 0 {
							n = -n
						}
						at := instants[max(0, len(instants)-1-r.IntN(10))]
						if got, want := tab.Adjust(key, n, at, limits), m.adjust(key, now, n, at, limits); got != want {
							t.Fatalf("Adjust %d of %d, %q at %d under %+v: %d charged, want %d", n, at, key, now, limits, got, want)
						}
						op, n = fmt.Sprintf("Adjust %d of %d", n, at), 0
					}
					got := make([]rule.Answer, len(limits))
					at := tab.Take(key, n, limits, got)
					if want := m.take(key, now, n, limits); at != now || !slices.Equal(got, want) {
						t.Fatalf("%s, %q at %d under %+v:\n got %+v at %d\nwant %+v", op, key, now, limits, got, at, want)
					}
					instants = append(instants, at)
				}
				checkRings(t, tab.Table, most)
				if s := tab.Stats(); s.Evicted != 0 || s.EvictedDenied != 0 {
					t.Fatalf("%+v: evicted below the maximum", s)
				}
			}
		})
	}
}

// TestRollingInvariants checks the structure after every step of random histories in
// tables that are too small for them, by clocks that also go backwards.
func TestRollingInvariants(t *testing.T) {
	r := newRand(t)
	for range 40 {
		most := 60 + r.IntN(100)
		tab := newTimed(most)
		now := int64(1000)
		for range 300 {
			now += r.Int64N(20)
			tab.at(now - r.Int64N(3))
			if r.IntN(50) == 0 {
				tab.at(max(0, now-r.Int64N(5000)))
			}
			key, limits := string(rune('a'+r.IntN(26))), randomRolling(r)
			switch r.IntN(8) {
			case 0:
				tab.Reset(key, limits)
			case 1:
				tab.Adjust(key, r.Int64N(9)-4, now-r.Int64N(20), limits)
			default:
				tab.take(key, r.Int64N(4), limits...)
			}
			checkRings(t, tab.Table, most)
		}
		for i := range tab.shards.of(0).groups { // whatever is left can be freed
			tab.shards.of(0).freeExpired(i, &tab.shapes, math.MaxInt64)
		}
		if s := tab.shards.of(0); s.max != most || s.used != 0 || s.rings() != nil {
			t.Fatalf("when all counters have expired, %d are left, of at most %d", s.used, s.max)
		}
	}
}

// TestRingLargerThanTheTable: the units of a key that needs more places than the table has
// are still counted. It is the only key then, until another one comes.
func TestRingLargerThanTheTable(t *testing.T) {
	tab, l := newTimed(20), rolling(200, hour)
	for i := range 30 {
		tab.take(strconv.Itoa(i), 1, fixed(1, hour))
	}
	for i := range int64(200) {
		if tab.at(i); !tab.take("k", 1, l) {
			t.Fatalf("unit %d is denied", i)
		}
	}
	if s := tab.Stats(); s.Counters != 1 || tab.take("k", 1, l) {
		t.Fatalf("%+v, and %d left", s, tab.left("k", l))
	}
	tab.take("another", 1, fixed(1, hour))
	if s := tab.shards.of(0); s.used != 1 || s.max != 20 || tab.holds("k", l) {
		t.Fatalf("%d counters of at most %d", s.used, s.max)
	}
}

// TestRingStaysInItsCall: if a key alone needs more places than the table has, the counter
// whose ring grows stays, and the other counter of the call goes.
func TestRingStaysInItsCall(t *testing.T) {
	for more := range int64(8) { // windows with different ids, so in different groups
		tab, beside, l := newTimed(20), fixed(1000, hour), rolling(200, minute+more)
		for i := range int64(30) {
			tab.at(i).take("k", 1, l)
		}
		tab.take("k", 1, beside)
		if !tab.take("k", 100, beside, l) || !tab.holds("k", l) || tab.holds("k", beside) || tab.left("k", l) != 70 {
			t.Errorf("%+v: %d units are left, and the other counter is held: %v", l, tab.left("k", l), tab.holds("k", beside))
		}
	}
}

// TestRingsEvictInOrder: a ring that grows takes the places of counters whose loss matters
// least, and never the place of another counter of its key.
func TestRingsEvictInOrder(t *testing.T) {
	tab, l, beside := newTimed(100), rolling(200, hour), fixed(1000, minute)
	for i := range 30 {
		tab.take(fmt.Sprint("denied", i), 1, fixed(1, hour))
		tab.take(fmt.Sprint("denied", i), 1, fixed(1, hour))
		tab.take(fmt.Sprint("open", i), 1, fixed(9, minute))
	}
	for i := range int64(200) {
		tab.at(i).take("k", 1, l, beside)
	}
	checkRings(t, tab.Table, 100)
	denied := 0
	for i := range 30 {
		if tab.left(fmt.Sprint("denied", i), fixed(1, hour)) == 0 {
			denied++
		}
	}
	want := 100 - placesOf(tab.shards.of(0).rings().of[tab.secret.hash("k").id(&l)]) - 2
	if denied != want || tab.left("k", l) != 0 || tab.left("k", beside) != 800 {
		t.Errorf("%d denied keys are left, want %d; %d and %d of the key", denied, want, tab.left("k", l), tab.left("k", beside))
	}
	if s := tab.Stats(); s.Evicted != 60-uint64(denied) || s.EvictedDenied != 30-uint64(denied) {
		t.Errorf("%+v", s)
	}
}

// TestDeniedRollingSurvives: a flood of keys does not evict a rolling counter whose key is
// denied.
func TestDeniedRollingSurvives(t *testing.T) {
	tab, l := newTimed(500), rolling(5, hour)
	for i := range int64(6) {
		tab.at(i).take("k", 1, l)
	}
	flood(tab, 20_000, fixed(9, hour))
	if tab.take("k", 1, l) {
		t.Error("the flood has evicted the denied key")
	}
	checkRings(t, tab.Table, 500)
}

// TestRollingMemory: whatever the limits are, a full table takes no more memory than its
// maximum of other counters does. The rings of all keys grow in turn, as they would.
func TestRollingMemory(t *testing.T) {
	most := underRace(300_000, 30_000)
	for _, n := range []int64{1, 2, 3, 5, 17, 100, 600, 1000} {
		l := rolling(n, hour)
		before := liveHeap()
		tab := newTimed(most)
		keys := min(most, most/max(1, int(n)/3))
		for unit := range n {
			tab.at(unit)
			for key := range keys {
				tab.TakeOne(strconv.Itoa(key), 1, &l)
			}
		}
		held := tab.Stats()
		got := float64(liveHeap()-before) / float64(most)
		t.Logf("%d units: %d keys, %d evicted, %.1f bytes for a place", n, held.Counters, held.Evicted, got)
		if got > 32 {
			t.Errorf("%d units: %.1f bytes for a place, want at most 32", n, got)
		}
		if n > 1 && held.Evicted == 0 {
			t.Errorf("%d units: the table is not full", n)
		}
		runtime.KeepAlive(tab)
	}
}

// TestRingsUseTheMemoryOfSlots: rings that evict the counters of a full table use the memory
// of their slots, too.
func TestRingsUseTheMemoryOfSlots(t *testing.T) {
	most := underRace(300_000, 60_000)
	before := liveHeap()
	tab, l := newTimed(most), rolling(rule.MaxRolling, hour)
	for i := range most {
		tab.take(strconv.Itoa(i), 1, fixed(9, minute))
	}
	for unit := range l.N {
		tab.at(unit)
		for key := range most / RollingPlaces(l.N) {
			tab.TakeOne(strconv.Itoa(key), 1, &l)
		}
	}
	if got := float64(liveHeap()-before) / float64(most); got > 34 {
		t.Errorf("%.1f bytes for a place, want at most 34", got)
	}
	checkRings(t, tab.Table, most)
}

// TestBytesPerRollingUnit: a unit takes less than 10 bytes beside what its key takes.
func TestBytesPerRollingUnit(t *testing.T) {
	keys := int64(underRace(500, 200))
	for _, n := range []int64{100, 513, 865, 1000}[:underRace(4, 3)] { // some of them just do not fit a size
		before := liveHeap()
		tab, l := newTimed(1<<20), rolling(n, hour)
		for unit := range n {
			tab.at(unit)
			for key := range keys {
				tab.TakeOne(strconv.FormatInt(key, 10), 1, &l)
			}
		}
		all := float64(liveHeap() - before)
		if perUnit := (all - float64(150*keys) - 100_000) / float64(keys*n); perUnit >= 10 { // and an empty table
			t.Errorf("%d units: %.2f bytes each", n, perUnit)
		} else {
			t.Logf("%d units: %.2f bytes each", n, perUnit)
		}
		runtime.KeepAlive(tab)
	}
}

// TestRingsGiveMemoryBack: when the units have left, their memory is free again, also that
// of the map of rings.
func TestRingsGiveMemoryBack(t *testing.T) {
	tab, l, longer := newTimed(1<<17), rolling(20, minute), rolling(20, hour)
	before := liveHeap()
	for unit := range int64(20) {
		tab.at(unit)
		for key := range 3000 {
			tab.TakeOne(strconv.Itoa(key), 1, &l)
		}
		tab.TakeOne("stays", 1, &longer)
	}
	full := liveHeap()
	for now := 2 * minute; now < 30*minute; now += second {
		tab.at(now).TakeOne("busy", 1, &l)
	}
	if after := liveHeap(); after > before+(full-before)/10 {
		t.Errorf("%d bytes when full, %d when all units have left", full-before, after-before)
	}
	for i := range tab.Shards() {
		s := tab.shards.of(uint64(i))
		if all := s.rings(); all != nil && all.most > 64 {
			t.Errorf("shard %d: the map of %d rings has memory for %d", i, len(all.of), all.most)
		}
	}
	if left := tab.left("stays", longer); left != 0 {
		t.Errorf("%d units of another key are back", left)
	}
	checkRings(t, tab.Table, 1<<17)
}

// TestRollingInterval: 64 goroutines and a moving clock. No interval as long as the window
// has more than N admitted units.
func TestRollingInterval(t *testing.T) {
	const n, window = 50, 1000
	var clock atomic.Int64
	tab := &timed{Table: New(4096, func() int64 { return clock.Add(1) })}
	l := rolling(n, window)
	var at [goroutines][]int64
	together(func(g int) {
		for i := range 400 {
			if a, now := tab.TakeOne("k", 1, &l); a.Retry == 0 {
				at[g] = append(at[g], now)
			}
			if i%8 == 0 {
				tab.Adjust("k", 1, math.MaxInt64, []rule.Limit{rolling(n, window+1)}) // another counter
				tab.take("other", 1, l, fixed(3, window))
			}
		}
	})
	all := slices.Sorted(slices.Values(slices.Concat(at[:]...)))
	most := 0
	for i, begins := range all {
		end, _ := slices.BinarySearch(all, begins+window)
		most = max(most, end-i)
	}
	if most != n {
		t.Errorf("at most %d units within a window, want %d", most, n)
	}
	checkRings(t, tab.Table, 4096)
}

// TestRollingConcurrentMix runs all methods concurrently in a table that is too small.
func TestRollingConcurrentMix(t *testing.T) {
	r := newRand(t)
	seeds := r.Uint64()
	for _, most := range []int{1, 50, 2048, 20_000} {
		tab := newTimed(1)
		tab.Table = NewKept(most, tab.clock.Load, Secret{r.Uint64(), 1}, MaxShards)
		mirror := tab.Mirror()
		together(func(g int) {
			r := rand.New(rand.NewPCG(seeds, uint64(g)))
			for range 200 {
				tab.clock.Add(r.Int64N(3))
				key, limits := strconv.Itoa(r.IntN(most*2)%300), randomRolling(r)
				switch r.IntN(8) {
				case 0:
					tab.Reset(key, limits)
				case 1:
					tab.Adjust(key, r.Int64N(5)-2, tab.clock.Load(), limits)
				case 2:
					if g == 0 {
						mirror.Update(false, func(Changes) {})
					}
					tab.Stats()
				default:
					tab.take(key, r.Int64N(3), limits...)
				}
			}
		})
		if most > 1 { // otherwise a ring may be larger than the table
			checkRings(t, tab.Table, most)
		}
	}
}

// TestRollingLook: a look writes nothing, and makes no counter evictable.
func TestRollingLook(t *testing.T) {
	tab, l := newTimed(100), rolling(2, hour)
	tab.take("k", 2, l)
	tab.take("k", 1, l)
	slotOf := func() slot { return *tab.shards.of(0).find(tab.secret.hash("k").id(&l)).slot() }
	was := slotOf()
	if was.when&flagRefused == 0 || was.when&flagEmpty == 0 {
		t.Fatalf("%x: not marked as refused and empty", was.when)
	}
	tab.at(10).take("k", 0, l)
	tab.take("k", 9, l) // can never fit
	tab.Adjust("k", 1, math.MaxInt64, []rule.Limit{l})
	if is := slotOf(); is != was {
		t.Errorf("%x became %x", was, is)
	}
	tab.Adjust("k", -1, 0, []rule.Limit{l})
	if is := slotOf(); is.when&(flagRefused|flagEmpty) != 0 || is.what != 1 {
		t.Errorf("after a refund: %x", is)
	}
	tab.take("k", 2, l) // one is left
	if tab.Adjust("k", 1, math.MaxInt64, []rule.Limit{l}); slotOf().when&flagRefused == 0 {
		t.Error("a charge has removed the mark of a denial")
	}
	tab.take("unused", 0, l)
	tab.take("unused", 3, l)
	tab.Adjust("unused", -1, 0, []rule.Limit{l})
	if got := tab.Stats().Counters; got != 1 {
		t.Errorf("%d counters, want 1", got)
	}
}

// TestRollingRepair: if the clock is more than a window behind, a denial moves the units to
// now, so that the client is let in after a window.
func TestRollingRepair(t *testing.T) {
	l := rolling(2, minute)
	for name, limits := range map[string][]rule.Limit{"alone": {l}, "beside another": {fixed(9, hour), l}} {
		tab := newTimed(100).at(10 * hour)
		tab.take("k", 1, limits...)
		tab.at(10*hour+1).take("k", 1, limits...)
		tab.at(hour)
		for _, wait := range []int64{0, 1, minute - 1} {
			if tab.at(hour+wait).take("k", 1, limits...) {
				t.Errorf("%s: admitted after %d", name, wait)
			}
		}
		if !tab.at(hour+minute).take("k", 2, limits...) {
			t.Errorf("%s: denied a window after the repair", name)
		}
	}
}

// TestRollingMoves: AdjustAt returns how many units it has moved under each limit.
func TestRollingMoves(t *testing.T) {
	tab, limits := newTimed(100).at(5), []rule.Limit{rolling(3, hour), fixed(9, hour)}
	h := tab.Hash("k", Owner{})
	var moves [2]Move
	for _, row := range []struct{ n, at, charged, rolled int64 }{{5, 5, 3, 3}, {1, 5, 0, 0}, {-2, 4, 0, 0}, {-2, 5, 0, -2}, {-2, math.MaxInt64, 0, -1}} {
		charged, _ := tab.AdjustAt(h, row.n, row.at, 5, limits, moves[:])
		if charged != row.charged || moves[0].Units != row.rolled {
			t.Errorf("%d of %d: %d charged, %+v", row.n, row.at, charged, moves)
		}
	}
}

// TestRollingIDs: windows and kinds make different counters.
func TestRollingIDs(t *testing.T) {
	h := newTimed(1).secret.hash("k")
	ids := make(map[id]rule.Limit)
	for w := int64(1); w < rule.MaxSpan; w *= 2 {
		for _, w := range []int64{w + 2, w + 3, w + 4, rule.MaxSpan - w} {
			for _, l := range []rule.Limit{fixed(1, w), sliding(1, w), bucket(1, w, 1), rolling(1, w)} {
				if other, exists := ids[h.id(&l)]; exists && other != l {
					t.Errorf("%+v and %+v have one counter", l, other)
				}
				ids[h.id(&l)] = l
			}
		}
	}
	l, mixed := fixed(1, hour), uint64(hour)<<2|1
	if got, want := h.id(&l), id(h.slot^mixed*0x9e3779b97f4a7c15).fingerprint(); got != want {
		t.Errorf("a fixed window has the id %x, and in the files of earlier versions %x", got, want)
	}
}

// TestRollingSuccessor: a table that is made from the changes of another one answers as
// the other one would have.
func TestRollingSuccessor(t *testing.T) {
	r := newRand(t)
	for most, shards := range map[int]int{5000: 1, 1 << 20: 4} {
		for range 30 {
			m, now := newRollingModel(), int64(1)
			tab := newTimed(1)
			tab.Table = NewKept(most, tab.clock.Load, Secret{r.Uint64(), r.Uint64()}, shards)
			rep := &replica{mirror: tab.Mirror()}
			for range 300 {
				now += []int64{0, 0, 1, 2, r.Int64N(100), 1000}[r.IntN(6)]
				tab.at(now)
				key, limits, n := fmt.Sprint(r.IntN(40)), randomRolling(r), r.Int64N(4)
				switch r.IntN(20) {
				case 0:
					tab.Reset(key, limits)
					m.reset(key, limits)
				case 1, 2:
					at := max(0, now-r.Int64N(5))
					if r.IntN(2) == 0 {
						n = -n
					}
					tab.Adjust(key, n, at, limits)
					m.adjust(key, now, n, at, limits)
					n = 0
				case 3, 4, 5:
					rep.update(false)
				case 6:
					rep.update(true)
					whole, shift := r.IntN(2) == 0, r.Int64N(3)*1000
					now += shift
					tab.at(now)
					tab.Table = rep.successor(t, most, shards, 0, tab.clock.Load, whole)
					checkRings(t, tab.Table, most)
					rep = &replica{mirror: tab.Mirror()}
				}
				got := make([]rule.Answer, len(limits))
				tab.Take(key, n, limits, got)
				if want := m.take(key, now, n, limits); !slices.Equal(got, want) {
					t.Fatalf("%q at %d under %+v:\n got %+v\nwant %+v", key, now, limits, got, want)
				}
			}
		}
	}
}

// TestRollingSuccessorTime: instants move with the clock, and none is in the future.
func TestRollingSuccessorTime(t *testing.T) {
	l := rolling(2, hour)
	for _, row := range []struct{ shift, now, first, all int64 }{
		{0, 10 * hour, 50 * minute, hour},
		{0, 10*hour + 20*minute, 30 * minute, 40 * minute},
		{0, 10*hour + 55*minute, 0, 5 * minute},
		{0, 11 * hour, 0, 0},
		{-9 * hour, hour, 50 * minute, hour},
		{20 * minute, 10 * hour, hour, hour},
		{math.MaxInt64 / 2, 10 * hour, hour, hour},
		{math.MinInt64 / 2, 10 * hour, 0, 0},
	} {
		tab := newTimed(1).at(9*hour + 50*minute)
		tab.Table = NewKept(100, tab.clock.Load, Secret{5, 6}, 1)
		tab.take("k", 1, l)
		tab.at(10*hour).take("k", 1, l)
		rep := &replica{mirror: tab.Mirror()}
		rep.update(false)
		if !rep.mirror.HasLogs() {
			t.Fatal("the mirror has no logs")
		}
		next := newTimed(1).at(row.now)
		next.Table = rep.successor(t, 100, 1, row.shift, next.clock.Load, true)
		checkRings(t, next.Table, 100)
		var one, all [1]rule.Answer
		next.Take("k", 1, []rule.Limit{l}, one[:])
		if one[0].Retry == 0 {
			next.Adjust("k", -1, row.now, []rule.Limit{l})
		}
		next.Take("k", 2, []rule.Limit{l}, all[:])
		if one[0].Retry != row.first || all[0].Retry != row.all {
			t.Errorf("shift %d at %d: a unit is denied for %d, two for %d, want %d and %d", row.shift, row.now, one[0].Retry, all[0].Retry, row.first, row.all)
		}
	}
}

// TestUpdateFindsLogs: a change that leaves the slot as it was is found in the log.
func TestUpdateFindsLogs(t *testing.T) {
	for _, others := range []int{0, 500} { // with them, the shard grows in between
		tab, limits := newTimed(1), []rule.Limit{rolling(9, hour)}
		tab.Table = NewKept(1000, tab.clock.Load, Secret{7, 8}, 1)
		for _, at := range []int64{1, 5, 9} {
			tab.at(at).take("k", 1, limits...)
		}
		m := tab.Mirror()
		m.Update(false, func(Changes) {})
		tab.at(10).Adjust("k", -1, 5, limits)
		tab.Adjust("k", 1, 3, limits)
		for i := range others {
			tab.take(strconv.Itoa(i), 1, fixed(9, hour))
		}
		var logs [][]int64
		m.Update(false, func(c Changes) {
			for _, c := range c.Set {
				if c.Log != nil {
					logs = append(logs, slices.Clone(c.Log))
				}
			}
		})
		if len(logs) != 1 || !slices.Equal(logs[0], []int64{1, 3, 9}) {
			t.Errorf("with %d others, the changes are %v", others, logs)
		}
	}
}

// FuzzApplyLog: whatever log Apply accepts, the table works afterwards.
func FuzzApplyLog(f *testing.F) {
	f.Add(uint64(1<<20|20), uint64(flagSplit|9), uint64(3), []byte{1, 5, 9}, int64(5), int64(hour), int64(0))
	f.Add(uint64(1<<20), uint64(flagRefused|9), uint64(1000), []byte{}, int64(5), int64(hour), int64(-hour))
	f.Fuzz(func(t *testing.T, of, when, what uint64, instants []byte, n, window, shift int64) {
		if n < 1 || n > rule.MaxRolling || window < rule.MinSpan || window > rule.MaxSpan {
			return
		}
		var log []int64
		for _, at := range instants {
			log = append(log, int64(at))
		}
		l := rolling(n, window)
		var shapes Shapes
		shapes[20], shapes[3] = l, rule.Limit{N: 1, Window: window}
		tab := newTimed(1).at(40 * 365 * 24 * hour)
		tab.Table = NewKept(1000, tab.clock.Load, Secret{}, 1)
		h := tab.hash("k")
		for _, counter := range []uint64{of, uint64(h.id(&l)) | 20, uint64(h.id(&l)) | 3} {
			if tab.Apply(Changes{Set: []Counter{{counter, when, what, 0, log}}}, &shapes, max(-rule.MaxSpan, min(shift, rule.MaxSpan))) != nil {
				return
			}
		}
		checkRings(t, tab.Table, 1000)
		for range 10 {
			tab.clock.Add(rand.Int64N(hour))
			tab.take("k", 1, l)
			tab.Adjust("k", -1, tab.clock.Load(), []rule.Limit{l})
			flood(tab, 200, fixed(1, minute))
		}
		checkRings(t, tab.Table, 1000)
	})
}
