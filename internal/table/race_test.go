package table

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// goroutines is far larger than the number of processors of a test machine. So
// they are preempted anywhere, also while they hold a lock.
const goroutines = 64

// together runs f in all goroutines at once.
func together(f func(g int)) {
	var start, done sync.WaitGroup
	start.Add(1)
	for g := range goroutines {
		done.Go(func() {
			start.Wait()
			f(g)
		})
	}
	start.Done()
	done.Wait()
}

// TestExactOnOneKey: with any number of goroutines, exactly the limit is
// admitted.
func TestExactOnOneKey(t *testing.T) {
	const n, takes = 1000, 100
	for name, l := range hourly(n) {
		tab := newTimed(100)
		var admitted atomic.Int64
		together(func(int) {
			for range takes {
				if tab.take("k", 1, l) {
					admitted.Add(1)
				}
			}
		})
		if got := admitted.Load(); got != n || tab.left("k", l) != 0 {
			t.Errorf("%s: %d of %d admitted, want %d; %d left, want 0", name, got, goroutines*takes, n, tab.left("k", l))
		}
	}
}

// TestExactWhileEvicting: while a flood evicts other counters all the time, the
// keys that stay lose no unit and get none too many. They stay because the
// flood's counters are fresh before them.
func TestExactWhileEvicting(t *testing.T) {
	const n, keys, rounds = 40, 16, 20 // rounds*goroutines is well above n
	for name, l := range hourly(n) {
		t.Run(name, func(t *testing.T) {
			tab := newTimed(4096) // several shards
			var admitted [keys]atomic.Int64
			together(func(g int) {
				for i := range rounds {
					for k := range keys {
						if tab.take("hot"+strconv.Itoa(k), 1, l) {
							admitted[k].Add(1)
						}
						tab.take(fmt.Sprintf("flood %d %d %d", g, i, k), 1, fixed(9, minute))
					}
				}
			})
			for k := range keys {
				if got := admitted[k].Load(); got != n {
					t.Errorf("key %d: %d admitted, want %d", k, got, n)
				}
			}
			if got := tab.Stats(); got.Evicted == 0 || got.EvictedDenied != 0 {
				t.Errorf("%+v, want many evicted, none denied", got)
			}
			checkInvariants(t, tab.Table)
		})
	}
}

// TestAllOrNone: several limits are checked in one step. The tightest is never
// exceeded. The others are charged for the admitted units, and for nothing that
// was denied.
func TestAllOrNone(t *testing.T) {
	r := newRand(t)
	seeds := r.Uint64()
	tightest, loose := fixed(300, hour), []rule.Limit{sliding(100_000, hour), bucket(1, hour, 100_000), fixed(1_000_000, 2*hour)}
	for index := range MaxLimits / 2 { // any of them may be the one that denies
		limits := slices.Insert(slices.Clone(loose), index, tightest)
		tab := newTimed(100)
		var admitted atomic.Int64
		together(func(g int) {
			r := rand.New(rand.NewPCG(seeds, uint64(g)))
			for range 50 {
				if n := r.Int64N(4); tab.take("k", n, limits...) {
					admitted.Add(n)
				}
			}
		})
		sum := admitted.Load()
		if sum > tightest.N || sum < tightest.N-2 { // 3 units may not fit where 2 are left
			t.Errorf("%d units admitted, want %d", sum, tightest.N)
		}
		for _, l := range limits {
			if got, want := tab.left("k", l), l.Cap()-sum; got != want {
				t.Errorf("tightest limit at %d: %d units left under %+v, want %d", index, got, l, want)
			}
		}
	}
}

// decided is one Take and its result.
type decided struct {
	at, n   int64
	limits  []rule.Limit
	answers []rule.Answer
}

// TestDecisionsAreInOrder: while the clock moves, the decisions for a key are the
// ones that a single caller would get at the same instants.
func TestDecisionsAreInOrder(t *testing.T) {
	r := newRand(t)
	seeds := r.Uint64()
	var clock atomic.Int64 // each reading is different, so instants give the order
	var tab timed
	tab.Table = New(4096, func() int64 { return clock.Add(1) })
	all := []rule.Limit{fixed(20, 500), sliding(50, 1000), bucket(30, 700, 25)}
	keys := []string{"a", "b", "c", "d"}
	var mu sync.Mutex
	decisions := make(map[string][]decided)
	together(func(g int) {
		r := rand.New(rand.NewPCG(seeds, uint64(g)))
		for range 200 {
			key, d := keys[r.IntN(len(keys))], decided{n: r.Int64N(4), limits: all}
			if one := r.IntN(2 * len(all)); one < len(all) {
				d.limits = all[one : one+1]
			}
			d.answers = make([]rule.Answer, len(d.limits))
			d.at = tab.Take(key, d.n, d.limits, d.answers)
			mu.Lock()
			decisions[key] = append(decisions[key], d)
			mu.Unlock()
		}
	})
	for _, key := range keys {
		alone := newModel()
		slices.SortFunc(decisions[key], func(a, b decided) int { return cmp.Compare(a.at, b.at) })
		for _, d := range decisions[key] {
			if want := alone.take(key, d.at, d.n, d.limits); !slices.Equal(d.answers, want) {
				t.Fatalf("%q, %d units at %d:\n got %+v\nwant %+v", key, d.n, d.at, d.answers, want)
			}
		}
	}
	checkInvariants(t, tab.Table)
}

// TestConcurrentMix runs all methods concurrently in a table that is too small. It
// is for the race detector and the invariants; other tests check the answers.
func TestConcurrentMix(t *testing.T) {
	r := newRand(t)
	seeds := r.Uint64()
	for _, most := range []int{1, 3, 50, 2048} {
		tab := newTimed(most)
		together(func(g int) {
			r := rand.New(rand.NewPCG(seeds, uint64(g)))
			for range 200 {
				tab.clock.Add(r.Int64N(3))
				key, limits := strconv.Itoa(r.IntN(most*2)), randomLimits(r)
				switch r.IntN(8) {
				case 0:
					tab.Reset(key, limits)
				case 1:
					tab.Adjust(key, r.Int64N(5)-2, tab.clock.Load(), limits)
				case 2:
					if got := tab.Stats().Counters; got > most {
						t.Errorf("%d counters, at most %d", got, most)
					}
				default:
					tab.take(key, r.Int64N(3), limits...)
				}
			}
		})
		checkInvariants(t, tab.Table)
	}
}
