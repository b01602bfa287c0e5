package table

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This is shared by all tests of this package. A table of fewer than two times
// minPerShard counters has one shard, so that its order of eviction is exact.

const (
	second = int64(time.Second)
	minute = int64(time.Minute)
	hour   = int64(time.Hour)
)

func fixed(n, window int64) rule.Limit {
	return rule.Limit{Kind: rule.Fixed, N: n, Window: window}
}

func sliding(n, window int64) rule.Limit {
	return rule.Limit{Kind: rule.Sliding, N: n, Window: window}
}

func bucket(n, per, burst int64) rule.Limit {
	return rule.Limit{Kind: rule.Bucket, N: n, Window: per, Burst: burst}
}

// hourly has one limit of each kind that allows n units at once and, within an
// hour, not one more.
func hourly(n int64) map[string]rule.Limit {
	return map[string]rule.Limit{
		"fixed":   fixed(n, hour),
		"sliding": sliding(n, hour),
		"bucket":  bucket(1, hour, n),
	}
}

// timed is a table and its clock, which does not move between calls.
type timed struct {
	*Table
	clock atomic.Int64
	turn  atomic.Int64
}

func newTimed(most int) *timed {
	tab := new(timed)
	tab.Table = New(most, tab.clock.Load)
	return tab
}

// Take alternates between the two ways to take under one limit, so that each
// test uses both on the same counters.
func (tab *timed) Take(key string, n int64, limits []rule.Limit, answers []rule.Answer) (at int64) {
	if len(limits) == 1 && tab.turn.Add(1)%2 == 0 {
		answers[0], at = tab.TakeOne(key, n, &limits[0])
		return at
	}
	at, _ = tab.Table.Take(key, n, limits, answers, nil)
	return at
}

// TakeOne unlocks the shard that the table leaves locked.
func (tab *timed) TakeOne(key string, n int64, l *rule.Limit) (rule.Answer, int64) {
	a, now, _, held := tab.Table.TakeOne(key, n, l, 0)
	held.Unlock()
	return a, now
}

// at sets the clock.
func (tab *timed) at(now int64) *timed {
	tab.clock.Store(now)
	return tab
}

// take takes n units and reports whether they were admitted.
func (tab *timed) take(key string, n int64, limits ...rule.Limit) bool {
	answers := make([]rule.Answer, len(limits))
	tab.Take(key, n, limits, answers)
	for _, a := range answers {
		if a.Retry != 0 {
			return false
		}
	}
	return true
}

// left returns how many units remain of key under l.
func (tab *timed) left(key string, l rule.Limit) int64 {
	var answers [1]rule.Answer
	tab.Take(key, 0, []rule.Limit{l}, answers[:])
	return answers[0].Remaining
}

// holds reports whether key has a counter under l. Unlike a look it changes
// nothing.
func (tab *timed) holds(key string, l rule.Limit) bool {
	h := tab.secret.hash(key)
	s, _ := tab.lock(h)
	defer s.mu.Unlock()
	return s.find(h.id(&l)).group != nil
}

var seed = flag.Uint64("seed", 0, "seed of the random histories; 0 draws one")

func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("random histories from -seed %d", s)
	return rand.New(rand.NewPCG(s, s))
}

// TestLookMakesNoCounter: a call that takes nothing stores nothing, so a client
// cannot fill the table with it.
func TestLookMakesNoCounter(t *testing.T) {
	for name, l := range hourly(3) {
		tab := newTimed(100).at(10 * hour)
		tab.take("looked", 0, l)
		tab.take("above the limit", 4, l)
		tab.take("denied by the other", 2, l, fixed(1, minute))
		tab.Adjust("refunded", -1, 10*hour, []rule.Limit{l})
		tab.Adjust("charged long ago", 1, 0, []rule.Limit{l})
		if got := tab.Stats().Counters; got != 0 {
			t.Errorf("%s: %d counters, want 0", name, got)
		}
	}
}

// TestRefundToZeroRemoves: a key that was given back all of its units uses no
// memory, like an unused key.
func TestRefundToZeroRemoves(t *testing.T) {
	for name, l := range hourly(3) {
		tab := newTimed(100)
		tab.take("k", 3, l)
		tab.Adjust("k", -2, 0, []rule.Limit{l})
		if got := tab.Stats().Counters; got != 1 {
			t.Errorf("%s: %d counters with a unit counted, want 1", name, got)
		}
		tab.Adjust("k", -1, 0, []rule.Limit{l})
		if got := tab.Stats(); got != (Stats{}) {
			t.Errorf("%s: %+v after all was given back, want nothing", name, got)
		}
		checkInvariants(t, tab.Table)
	}
}

// TestResetRemoves: Reset deletes the key's counters under the given limits, and
// no others.
func TestResetRemoves(t *testing.T) {
	tab := newTimed(100)
	a, b, c := fixed(3, hour), sliding(3, hour), bucket(1, hour, 3)
	tab.take("k", 3, a, b, c)
	tab.take("other", 3, a, b, c)
	tab.Reset("k", []rule.Limit{a, c, fixed(3, minute)})
	tab.Reset("unknown", []rule.Limit{a})
	for _, row := range []struct {
		key  string
		l    rule.Limit
		want int64
	}{
		{"k", a, 3}, {"k", b, 0}, {"k", c, 3}, {"other", a, 0}, {"other", b, 0}, {"other", c, 0},
	} {
		if got := tab.left(row.key, row.l); got != row.want {
			t.Errorf("%s under %+v: %d left, want %d", row.key, row.l, got, row.want)
		}
	}
	if got := tab.Stats(); got != (Stats{Counters: 4}) {
		t.Errorf("%+v, want 4 counters", got)
	}
	checkInvariants(t, tab.Table)
}

// TestShrinks: without a goroutine to clean up, expired counters are freed faster
// than new ones arrive, denied ones included. In a full table, too, they make room
// before anything counts as evicted.
func TestShrinks(t *testing.T) {
	const n = 1000
	for _, row := range []struct {
		name  string
		max   int
		units int64 // of 3
	}{
		{"with units left", 2 * n, 1},
		{"with units left, full", n, 1},
		{"without", 2 * n, 3},
		{"without, full", n, 3},
	} {
		tab := newTimed(row.max)
		for i := range n {
			tab.take(fmt.Sprint("old", i), row.units, fixed(3, minute))
		}
		if got := tab.Stats().Counters; got != n {
			t.Fatalf("%s: %d counters, want %d", row.name, got, n)
		}
		tab.at(minute)
		for i := range n {
			tab.take(fmt.Sprint("new", i), 1, fixed(3, hour))
		}
		if got := tab.Stats(); got != (Stats{Counters: n}) {
			t.Errorf("%s: %+v after as many new keys as had expired, want only those %d", row.name, got, n)
		}
		checkInvariants(t, tab.Table)
	}
}

// TestLateCaller: a caller that reads the clock first and gets the lock last is
// decided at the time of the lock. So time does not run backwards for a key.
func TestLateCaller(t *testing.T) {
	for turn := range int64(2) {
		for name, l := range hourly(3) {
			var tab timed
			tab.turn.Store(turn)
			delayed := false // the next reading is hours behind the one after it
			tab.Table = New(100, func() int64 {
				if delayed {
					delayed = false
					return hour
				}
				return 3 * hour
			})
			limits, answers := []rule.Limit{l}, make([]rule.Answer, 1)
			tab.Take("k", 3, limits, answers)
			want := answers[0]

			delayed = true
			if at := tab.Take("k", 1, limits, answers); at != 3*hour || answers[0].Retry != want.More {
				t.Errorf("%s: a late Take was decided at %d: %+v; want a denial as at 3h, %+v", name, at, answers[0], want)
			}
			delayed = true
			tab.Adjust("k", -1, 3*hour, limits)
			delayed = true
			tab.Adjust("k", 1, 3*hour, limits)
			if tab.Take("k", 0, limits, answers); answers[0] != want {
				t.Errorf("%s: a unit given back late and charged late leaves %+v, want %+v", name, answers[0], want)
			}
			delayed = true
			tab.Reset("k", limits)
			delayed = true
			if at := tab.Take("k", 3, limits, answers); at != 3*hour || answers[0] != want {
				t.Errorf("%s: after a late Reset, at %d: %+v, want %+v", name, at, answers[0], want)
			}
		}
	}
}

// TestClockBehind: a clock that is behind, as in another bubble of testing/synctest,
// creates no units. A denied key stays denied for as long as the answer said, also
// by that clock.
func TestClockBehind(t *testing.T) {
	for name, l := range hourly(3) {
		for _, offset := range []int64{1, minute, hour, hour + 1, 2 * hour, 100 * hour} {
			tab := newTimed(100).at(200 * hour)
			tab.take("k", 3, l)
			var answers [1]rule.Answer
			behind := 200*hour - offset
			tab.at(behind).Take("k", 1, []rule.Limit{l}, answers[:])
			retry := answers[0].Retry
			if retry < hour || retry > 2*hour+1 { // the original wait, plus at most a window in which the counter does not age
				t.Errorf("%s, %d ns behind: denied for %d, want an hour to two", name, offset, retry)
			}
			if tab.at(behind+retry-1).take("k", 1, l) {
				t.Errorf("%s, %d ns behind: admitted before the RetryAfter of the denial", name, offset)
			}
			if !tab.at(behind+retry).take("k", 1, l) {
				t.Errorf("%s, %d ns behind: denied after the RetryAfter of the denial", name, offset)
			}
			checkInvariants(t, tab.Table)
		}
	}
}

// TestTakeAllocatesNothing: a decision on an existing key allocates nothing,
// whatever its result. So a denied client causes no garbage.
func TestTakeAllocatesNothing(t *testing.T) {
	few := []rule.Limit{fixed(rule.MaxUnits, hour)}
	many := make([]rule.Limit, 0, MaxLimits)
	for i := range int64(MaxLimits) / 2 {
		many = append(many, sliding(rule.MaxUnits, hour+i), bucket(rule.MaxUnits, hour+i, rule.MaxUnits))
	}
	for _, row := range []struct {
		name   string
		limits []rule.Limit
		fill   int64
		n      int64
		want   bool
	}{
		{"admitted, 1 limit", few, 1, 1, true},
		{"admitted, 8 limits", many, 1, 1, true},
		{"look, 8 limits", many, 1, 0, true},
		{"look, 1 limit", few, 1, 0, true},
		{"denied, 1 limit", few, rule.MaxUnits, rule.MaxUnits, false},
		{"denied, 8 limits", many, rule.MaxUnits, rule.MaxUnits, false},
		{"never, 8 limits", many, 1, rule.Never, false},
	} {
		tab := newTimed(100)
		if !tab.take("k", row.fill, row.limits...) {
			t.Fatalf("%s: the first Take was denied", row.name)
		}
		answers := make([]rule.Answer, len(row.limits))
		check := func(method string, take func()) {
			t.Helper()
			allocs := testing.AllocsPerRun(100, func() { tab.clock.Add(1); take() })
			if admitted := answers[0].Retry == 0; allocs != 0 || admitted != row.want {
				t.Errorf("%s, %s: %v allocations, admitted %v; want 0, %v", row.name, method, allocs, admitted, row.want)
			}
		}
		check("Take", func() { tab.Table.Take("k", row.n, row.limits, answers, nil) })
		if len(row.limits) == 1 {
			check("TakeOne", func() { answers[0], _ = tab.TakeOne("k", row.n, &row.limits[0]) })
		}
	}
}
