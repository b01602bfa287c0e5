package table

import (
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// model is a simple and slow table: a map under one lock, which forgets nothing
// before a reset.
type model struct {
	mu     sync.Mutex
	states map[modelID]rule.State
}

type modelID struct {
	key    string
	kind   rule.Kind
	window int64
}

func newModel() *model { return &model{states: make(map[modelID]rule.State)} }

func (m *model) take(key string, now, n int64, limits []rule.Limit) []rule.Answer {
	m.mu.Lock()
	defer m.mu.Unlock()
	admitted := true
	answers := make([]rule.Answer, len(limits))
	for i, l := range limits {
		_, answers[i] = l.Take(m.states[modelID{key, l.Kind, l.Window}], now, n)
		admitted = admitted && answers[i].Retry == 0
	}
	for i, l := range limits {
		id := modelID{key, l.Kind, l.Window}
		if admitted {
			m.states[id], _ = l.Take(m.states[id], now, n)
		} else if answers[i].Retry == 0 {
			_, answers[i] = l.Take(m.states[id], now, 0)
		}
	}
	return answers
}

func (m *model) adjust(key string, now, n, at int64, limits []rule.Limit) (charged int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	charged = max(0, n)
	for _, l := range limits {
		id := modelID{key, l.Kind, l.Window}
		before := m.states[id]
		m.states[id] = l.Adjust(before, now, n, max(0, now-at))
		charged = min(charged, l.Charged(before, m.states[id], now))
	}
	return charged
}

func (m *model) reset(key string, limits []rule.Limit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range limits {
		delete(m.states, modelID{key, l.Kind, l.Window})
	}
}

// randomLimits returns 1 to 4 limits, with random N and Burst over the same few
// counters. The N of a bucket is fixed. A counter expires by the rate that it was
// last used at, and the model, which keeps the counter, would drain it at the next
// rate.
func randomLimits(r *rand.Rand) []rule.Limit {
	windows := []int64{4, 15, 60, 1000}
	limits := make([]rule.Limit, 1+r.IntN(4))
	for i := range limits {
		for {
			w := windows[r.IntN(len(windows))]
			n := 1 + r.Int64N(6)
			limits[i] = []rule.Limit{fixed(n, w), sliding(n, w), bucket(1+w%7, w, n)}[r.IntN(3)]
			same := func(o rule.Limit) bool { return o.Kind == limits[i].Kind && o.Window == limits[i].Window }
			if !slices.ContainsFunc(limits[:i], same) {
				break
			}
		}
	}
	return limits
}

// TestAgainstModel: below its maximum the table answers exactly as if it never
// forgot a counter. Callers cannot see that counters expire, or how they are
// stored.
func TestAgainstModel(t *testing.T) {
	for name, most := range map[string]int{"one shard": 1000, "many shards": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			r := newRand(t)
			for range 100 {
				tab := newTimed(most)
				randomHistory(t, r, tab)
				checkInvariants(t, tab.Table)
				if s := tab.Stats(); s.Evicted != 0 || s.EvictedDenied != 0 {
					t.Fatalf("%+v: evicted below the maximum", s)
				}
			}
		})
	}
}

func randomHistory(t *testing.T, r *rand.Rand, tab *timed) {
	t.Helper()
	m := newModel()
	now, instants := int64(1), []int64{0, math.MaxInt64}
	for range 300 {
		steps := []int64{0, 0, 0, 1, 1, 2, r.Int64N(8), r.Int64N(100), 1000, 3000}
		now += steps[r.IntN(len(steps))]
		tab.at(now)
		key := []string{"", "a", "b", "\x00"}[r.IntN(4)]
		limits := randomLimits(r)
		n := r.Int64N(4)
		if r.IntN(20) == 0 {
			n = rule.MaxUnits
		}
		op := fmt.Sprintf("Take %d", n)
		switch r.IntN(10) {
		case 0:
			op, n = "Reset", 0
			tab.Reset(key, limits)
			m.reset(key, limits)
		case 1, 2:
			if r.IntN(2) == 0 {
				n = -n
			}
			at := instants[r.IntN(len(instants))]
			got, want := tab.Adjust(key, n, at, limits), m.adjust(key, now, n, at, limits)
			if got != want {
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
}

// places returns all places of a shard.
func places(s *shard) iter.Seq[place] {
	return func(yield func(place) bool) {
		for i := range s.groups {
			for at := range uint(groupSize) {
				if !yield(place{&s.groups[i], at}) {
					return
				}
			}
		}
	}
}

// checkInvariants checks every shard. Each counter is in one of the two groups that
// its id names, and only once. No counter is fresh. The number of blocks is right. No shard is above its maximum,
// and so neither is the table. The split counters are in the map rest, or have a ring.
func checkInvariants(t *testing.T, tab *Table) {
	t.Helper()
	for i := range tab.Shards() {
		s := tab.shards.made(uint64(i))
		if s == nil {
			continue
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		ids, split, blocks := make(map[id]bool), 0, 0
		for p := range places(s) {
			of, c := *p.id(), p.slot()
			if of == 0 {
				if *c != (slot{}) {
					t.Fatalf("shard %d: a free slot holds %+v", i, c)
				}
				continue
			}
			a, b := s.pair(of)
			found := s.find(of)
			switch {
			case p.group != &s.groups[a] && p.group != &s.groups[b]:
				t.Fatalf("shard %d: %x is not in bucket %d or %d", i, of, a, b)
			case ids[of]:
				t.Fatalf("shard %d: %x is there twice", i, of)
			case found.group == nil || found.id() != p.id():
				t.Fatalf("shard %d: %x is not found", i, of)
			case of.isBlock():
				blocks++
			case c.what == 0 && s.rest()[of.fingerprint()] == 0:
				t.Fatalf("shard %d: %x counts nothing", i, of)
			}
			if c.when&flagSplit != 0 {
				split++
			}
			ids[of] = true
		}
		if blocks != int(s.blocks) {
			t.Fatalf("shard %d: %d blocks, want %d", i, s.blocks, blocks)
		}
		rings := 0
		if s.rings() != nil {
			rings = len(s.rings().of)
		}
		if len(ids) != s.used || s.used > s.max || len(s.rest())+rings != split {
			t.Fatalf("shard %d: %d counters, used is %d of %d; %d are split, the rest is of %d, and there are %d rings", i, len(ids), s.used, s.max, split, len(s.rest()), rings)
		}
	}
}

// TestInvariants checks the structure after every step of random histories in
// tables that are too small for them, by clocks that also go backwards.
func TestInvariants(t *testing.T) {
	r := newRand(t)
	for range 60 {
		tab := newTimed(1 + r.IntN(20))
		now := int64(1000)
		for range 300 {
			now += r.Int64N(20)
			tab.at(now - r.Int64N(3))
			key := string(rune('a' + r.IntN(12)))
			limits := randomLimits(r)
			switch r.IntN(8) {
			case 0:
				tab.Reset(key, limits)
			case 1:
				tab.Adjust(key, r.Int64N(9)-4, now-r.Int64N(20), limits)
			default:
				tab.take(key, r.Int64N(4), limits...)
			}
			checkInvariants(t, tab.Table)
		}
	}
}

// TestShards: the maxima of the shards add up to the table's maximum. The number
// of shards is a power of two, because a mask selects one.
func TestShards(t *testing.T) {
	for _, most := range []int{1, 2, 3, 1000, 8191, 8192, 8193, 16_385, 100_000, 1 << 20, 1<<20 + 1} {
		tab := New(most, func() int64 { return 0 })
		sum, n := 0, tab.Shards()
		for i := range n {
			sum += tab.shards.of(uint64(i)).max
		}
		if sum != most || n&(n-1) != 0 || n > 1 && most/n < perShard {
			t.Errorf("New(%d): %d shards of %d in all", most, n, sum)
		}
	}
}

// TestHash: a key's identity has 128 bits that are different in each table, so
// that a client cannot search for keys that collide.
func TestHash(t *testing.T) {
	a, b := newTimed(1), newTimed(1)
	for _, key := range []string{"", "k", "203.0.113.7"} {
		ha, hb := a.secret.hash(key), b.secret.hash(key)
		if ha.shard == ha.slot || ha.shard == hb.shard || ha.slot == hb.slot || ha.slot == 0 || ha != a.secret.hash(key) {
			t.Errorf("%q: %x in one table, %x in another", key, ha, hb)
		}
	}
}

// TestCounterIDs: all counters and blocks that a key can have are distinct.
func TestCounterIDs(t *testing.T) {
	windows := map[int64]bool{rule.MaxSpan: true, rule.MaxSpan - 1: true}
	for w := int64(1); w <= rule.MaxSpan; w *= 2 {
		windows[w], windows[w+1] = true, true
	}
	h := newTimed(1).secret.hash("k")
	ids := make(map[id]rule.Limit)
	for w := range windows {
		for _, l := range []rule.Limit{fixed(1, w), sliding(1, w), bucket(1, w, 1)} {
			for _, of := range []id{h.id(&l), h.id(&l).sibling()} {
				if other, exists := ids[of]; exists {
					t.Errorf("%+v and %+v have one counter or block", l, other)
				}
				ids[of] = l
			}
			if block := h.id(&l).sibling() | blockShape; block.counter() != h.id(&l) {
				t.Errorf("%+v: the block's counter is %x", l, block.counter())
			}
		}
	}
}
