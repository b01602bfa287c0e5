package table

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// TestSipHash compares with the vectors of the reference implementation. The secret
// is the bytes 0 to 15, and the keys are the first n bytes counted from 0.
func TestSipHash(t *testing.T) {
	secret := Secret{0x0706050403020100, 0x0f0e0d0c0b0a0908}
	for n, want := range map[int]string{
		0:  "a3817f04ba25a8e66df67214c7550293",
		1:  "da87c1d86b99af44347659119b22fc45",
		7:  "a1f1ebbed8dbc153c0b84aa61ff08239",
		8:  "3b62a9ba6258f5610f83e264f31497b4",
		15: "5493e99933b0a8117e08ec0f97cfc3d9",
		63: "5150d1772f50834a503e069a973fbd7c",
	} {
		key := make([]byte, n)
		for i := range key {
			key[i] = byte(i)
		}
		h := secret.hash(string(key))
		got := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, h.shard), h.slot)
		if fmt.Sprintf("%x", got) != want {
			t.Errorf("%d bytes: %x, want %s", n, got, want)
		}
	}
}

// replica has the contents that a file would have of a table.
type replica struct {
	mirror *Mirror
	log    []Changes
}

func (r *replica) update(all bool) {
	r.mirror.Update(all, func(c Changes) {
		r.log = append(r.log, Changes{c.Shard, slices.Clone(c.Removed), slices.Clone(c.Set)})
	})
}

// successor returns a table made from the replica: from its full copy if whole is
// true, and otherwise from one change after the other.
func (r *replica) successor(t *testing.T, most, shards int, shift int64, clock func() int64, whole bool) *Table {
	t.Helper()
	tab, shapes, log := NewKept(most, clock, *r.mirror.table.kept, shards), r.mirror.table.Shapes(), r.log
	if whole {
		log = nil
		r.mirror.All(func(c Changes) { log = append(log, Changes{c.Shard, nil, slices.Clone(c.Set)}) })
	}
	for _, c := range log {
		if err := tab.Apply(c, &shapes, shift); err != nil {
			t.Fatal(err)
		}
	}
	checkInvariants(t, tab)
	return tab
}

// TestSuccessor: a table that is made from the changes of another one answers as
// the other one would have, whatever has happened, and however often it is done.
func TestSuccessor(t *testing.T) {
	r := newRand(t)
	huge := []rule.Limit{sliding(rule.MaxUnits, 1000), bucket(rule.MaxUnits, rule.MaxSpan/2, rule.MaxUnits)}
	for most, shards := range map[int]int{1000: 1, 1 << 20: 4} {
		for range 30 {
			m, now := newModel(), int64(1)
			tab := newTimed(1)
			tab.Table = NewKept(most, tab.clock.Load, Secret{r.Uint64(), r.Uint64()}, shards)
			rep := &replica{mirror: tab.Mirror()}
			for range 300 {
				now += []int64{0, 0, 1, 2, r.Int64N(100), 1000}[r.IntN(6)]
				tab.at(now)
				key, limits, n := fmt.Sprint(r.IntN(40)), randomLimits(r), r.Int64N(4)
				if r.IntN(4) == 0 {
					limits, n = huge, r.Int64N(1<<45)
				}
				switch r.IntN(20) {
				case 0:
					tab.Reset(key, limits)
					m.reset(key, limits)
				case 1:
					tab.Adjust(key, -n, now, limits)
					m.adjust(key, now, -n, now, limits)
				case 2, 3, 4:
					rep.update(false)
				case 5:
					rep.update(true)
					whole, shift := r.IntN(2) == 0, r.Int64N(3)*1000
					now += shift
					tab.at(now)
					tab.Table = rep.successor(t, most, shards, 0, tab.clock.Load, whole)
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

// TestSuccessorOfManyShapes: counters whose limit has no number are exported, too.
func TestSuccessorOfManyShapes(t *testing.T) {
	tab := newTimed(1)
	tab.Table = NewKept(10_000, tab.clock.Load, Secret{1, 2}, 1)
	l := func(i int) rule.Limit {
		return []rule.Limit{fixed(1<<40, hour+int64(i)), sliding(1<<40, hour+int64(i)), bucket(1, hour+int64(i), 9)}[i%3]
	}
	for i := range 200 {
		tab.take("k", 5, l(i))
		tab.take("huge", 1<<39, l(i-i%3+i%2))
	}
	rep := &replica{mirror: tab.Mirror()}
	rep.update(false)
	next := newTimed(1)
	next.Table = rep.successor(t, 10_000, 1, 0, next.at(minute).clock.Load, false)
	if got, want := next.Stats(), tab.Stats(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	tab.at(minute)
	for i := range 200 {
		for _, key := range []string{"k", "huge"} {
			var got, want [1]rule.Answer
			next.Take(key, 0, []rule.Limit{l(i)}, got[:])
			tab.Take(key, 0, []rule.Limit{l(i)}, want[:])
			if got != want {
				t.Errorf("%s under %+v: %+v, want %+v", key, l(i), got, want)
			}
		}
	}
}

// TestSuccessorOfOtherSize: a table with fewer shards, or with room for fewer
// counters, finds all keys. A table that is too small keeps the denied ones.
func TestSuccessorOfOtherSize(t *testing.T) {
	const keys = 5000
	for _, row := range []struct{ from, to, shards, denied int }{
		{1 << 20, 10_000, 256, 2}, {1 << 20, 1 << 22, 256, 2}, {10_000, 1 << 20, 2, 2}, {1 << 20, keys / 2, 256, 3},
	} {
		tab := newTimed(1)
		tab.Table = NewKept(row.from, tab.clock.Load, Secret{3, 4}, MaxShards)
		for i := range keys {
			tab.take(fmt.Sprint(i), 1, fixed(1, hour))
			if i%row.denied == 0 {
				tab.take(fmt.Sprint(i), 1, fixed(1, hour))
			}
		}
		rep := &replica{mirror: tab.Mirror()}
		rep.update(false)
		next := newTimed(1)
		next.Table = rep.successor(t, row.to, row.shards, 0, next.clock.Load, true)
		if got := next.Shards(); got > row.shards {
			t.Errorf("%+v: %d shards", row, got)
		}
		if s := next.Stats(); s.EvictedDenied != 0 || s.Counters != min(keys, row.to) {
			t.Errorf("%+v: %+v", row, s)
		}
		for i := range keys {
			if i%row.denied == 0 && next.left(fmt.Sprint(i), fixed(1, hour)) != 0 {
				t.Errorf("%+v: key %d is let in", row, i)
			}
		}
	}
}

// TestSuccessorTime: time passes also while there is no table. A counter never reaches
// further than its window into the future, whatever the shift is.
func TestSuccessorTime(t *testing.T) {
	for _, row := range []struct{ shift, now, retry int64 }{
		{0, 10 * hour, hour}, {0, 10*hour + minute, hour - minute}, {0, 11 * hour, 0},
		{-minute, 10 * hour, hour - minute}, {-hour, 10 * hour, 0}, {math.MinInt64 / 2, 10 * hour, 0},
		{minute, 10 * hour, hour}, {math.MaxInt64 / 2, 10 * hour, hour}, {-9 * hour, hour, hour},
	} {
		tab := newTimed(1).at(10 * hour)
		tab.Table = NewKept(100, tab.clock.Load, Secret{5, 6}, 1)
		tab.take("k", 1, fixed(1, hour))
		rep := &replica{mirror: tab.Mirror()}
		rep.update(false)
		next := newTimed(1).at(row.now)
		next.Table = rep.successor(t, 100, 1, row.shift, next.clock.Load, true)
		var a [1]rule.Answer
		if next.Take("k", 1, []rule.Limit{fixed(1, hour)}, a[:]); a[0].Retry != row.retry {
			t.Errorf("shift %d at %d: denied for %d, want %d", row.shift, row.now, a[0].Retry, row.retry)
		}
	}
}

// TestUpdateOfNothing: counters that have not changed are not reported, and an
// unused shard is not copied. A change at the same instant as the last call is
// still found.
func TestUpdateOfNothing(t *testing.T) {
	tab := newTimed(1)
	tab.Table = NewKept(1<<20, tab.clock.Load, Secret{7, 8}, MaxShards)
	for i := range 10_000 {
		tab.take(fmt.Sprint(i), 1, fixed(9, hour))
	}
	m := tab.Mirror()
	count := func() (n int) {
		m.Update(false, func(c Changes) { n += len(c.Set) + len(c.Removed) })
		return n
	}
	for i, want := range []int{10_000, 0, 0} {
		if got := count(); got != want {
			t.Errorf("update %d: %d changes, want %d", i, got, want)
		}
	}
	tab.at(1).take("5", 1, fixed(9, hour))
	if got := count(); got != 1 {
		t.Errorf("%d changes, want 1", got)
	}
	tab.take("5", 1, fixed(9, hour))
	if got := count(); got != 1 {
		t.Errorf("%d changes within the instant, want 1", got)
	}
	tab.Reset("5", []rule.Limit{fixed(9, hour)})
	if got := count(); got != 0 {
		t.Errorf("%d changes of a quiet shard, want 0", got)
	}
	m.Update(true, func(c Changes) {
		if len(c.Removed) != 1 || len(c.Set) != 0 {
			t.Errorf("%+v, want one removed", c)
		}
	})
}

// FuzzApply: whatever counter Apply accepts, the table works afterwards.
func FuzzApply(f *testing.F) {
	f.Add(uint64(1<<20|1), uint64(flagSplit|5), uint64(1), int64(1), int64(0), uint8(2), int64(1), int64(hour), int64(1))
	f.Add(uint64(1<<20), uint64(0), uint64(math.MaxUint64), int64(math.MinInt64), int64(math.MaxInt64), uint8(0), int64(1), int64(hour), int64(1))
	f.Add(uint64(1<<20|63), uint64(flagRefused|1<<60), uint64(hour<<3|2), int64(0), int64(-hour), uint8(4), int64(1), int64(hour), int64(0))
	f.Fuzz(func(t *testing.T, id, when, what uint64, rest, shift int64, kind uint8, n, window, burst int64) {
		l := rule.Limit{Kind: rule.Kind(kind % 5), N: n, Window: window}
		if kind%5 == 4 {
			l.Kind = rule.Blocked
		}
		if n < 1 || n > rule.MaxUnits || window < rule.MinSpan || window > rule.MaxSpan {
			return
		}
		if l.Kind == rule.Bucket {
			if l.Burst = burst; burst < 1 || burst > rule.MaxUnits || l.Refill() > rule.MaxSpan {
				return
			}
		}
		var shapes Shapes
		shapes[id%maxShapes] = l
		tab := newTimed(1).at(40 * 365 * 24 * hour)
		tab.Table = NewKept(100, tab.clock.Load, Secret{}, 1)
		h := tab.hash("k")
		for i, id := range []uint64{id, uint64(h.id(&l)) | id%maxShapes} {
			if tab.Apply(Changes{Set: []Counter{{id, when, what, rest, nil}}}, &shapes, max(-rule.MaxSpan, min(shift, rule.MaxSpan))) != nil {
				return
			}
			if used := tab.Stats().Counters; used > i+1 {
				t.Fatalf("%d counters", used)
			}
		}
		checkInvariants(t, tab.Table)
		for range 10 {
			tab.clock.Add(rand.Int64N(hour))
			if l.Kind != 0 && l.Kind != rule.Blocked {
				tab.take("k", 1, l)
				tab.Adjust("k", -1, tab.clock.Load(), []rule.Limit{l})
			}
			flood(tab, 20, fixed(1, minute))
		}
	})
}
