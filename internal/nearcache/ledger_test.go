package nearcache

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// TestSettling: a key is settled by one caller at a time, and others can wait for that.
// Until then nothing is learnt of it.
func TestSettling(t *testing.T) {
	l := fixed(9, minute)
	for name, end := range map[string]func(c *Cache, b *Batch){
		"sent":      func(c *Cache, b *Batch) { c.EndSending(b, 1, second) },
		"not sent":  func(c *Cache, b *Batch) { c.EndSending(b, 0, second) },
		"forgotten": func(c *Cache, b *Batch) { c.Erase("key", second, []rule.Limit{l}); c.EndSending(b, 0, second) },
		"forgotten, and used again": func(c *Cache, b *Batch) {
			c.Erase("key", second, []rule.Limit{l})
			take(c, "key", 1, second, true, l)
			c.EndSending(b, 0, second)
		},
		"pushed out": func(c *Cache, b *Batch) {
			for i := range 2000 {
				take(c, fmt.Sprint(i), 1, 0, true, l)
			}
			c.EndSending(b, 0, second)
		},
	} {
		c := New(NewMemory(1<<16), 1<<15)
		take(c, "key", 2, 0, true, l)
		owes, settling := c.Owes("key")
		require.True(t, owes)
		require.Nil(t, settling)
		b := c.BeginSending("key", second)
		require.Equal(t, []Owed{{Limit: l, Units: 2, At: Here(0)}}, b.Owed)
		require.Nil(t, c.BeginSending("key", second))
		require.Empty(t, c.OwingKeys(second))
		owes, settling = c.Owes("key")
		require.True(t, owes)
		select {
		case <-settling:
			t.Error("too early")
		default:
		}
		c.Learn("key", Reply{N: 1, Limits: []rule.Limit{l}, Answers: []rule.Answer{{Remaining: 9}}, At: 1, Now: second})
		require.EqualValues(t, 7, left(c, "key", second, l), "what is owed goes before what the store says")
		end(c, b)
		<-settling
		b = c.BeginSending("key", second)
		switch name {
		case "not sent":
			require.Equal(t, []Owed{{Limit: l, Units: 2, At: Here(0)}}, b.Owed)
		case "forgotten, and used again":
			require.Equal(t, []Owed{{Limit: l, Units: 1, At: Here(second)}}, b.Owed)
		default:
			require.Nil(t, b, name)
		}
		require.Equal(t, name == "pushed out", c.Forgotten() > 0, name)
	}
}

// TestOwedMeanwhile: units that are decided while a key is being settled are owed after
// that, and come after the units that could not be sent.
func TestOwedMeanwhile(t *testing.T) {
	c, l, m := newCache(), fixed(9, minute), sliding(9, hour)
	take(c, "key", 1, 0, true, l)
	take(c, "key", 2, 0, true, m)
	b := c.BeginSending("key", second)
	require.Len(t, b.Owed, 3)
	take(c, "key", 3, second, true, l)
	c.EndSending(b, 1, 2*second)
	require.Equal(t, 1, c.Owing())
	b = c.BeginSending("key", 2*second)
	require.Equal(t, []Owed{{Limit: m, Units: 1, At: Here(0)}, {Limit: m, Units: 1, At: Here(0)}, {Limit: l, Units: 3, At: Here(second)}}, b.Owed)
	c.EndSending(b, 3, 2*second)
	require.Zero(t, c.Owing())
}

// TestOwedEnds: units that no longer count are not owed.
func TestOwedEnds(t *testing.T) {
	for _, row := range []struct {
		l   rule.Limit
		end int64
	}{
		{fixed(9, minute), minute}, {sliding(9, minute), 2 * minute}, {bucket(9, minute, 9), minute},
	} {
		for _, sweep := range []bool{true, false} {
			c := newCache()
			take(c, "key", 9, 0, true, row.l)
			if row.l.Kind != rule.Bucket {
				require.Len(t, c.OwingKeys(row.end-1), 1)
				if sweep {
					require.Empty(t, c.OwingKeys(row.end))
				}
			}
			require.Nil(t, c.BeginSending("key", row.end), "%+v", row.l)
			require.Zero(t, c.Owing())
		}
	}
}

// TestBucketIsSentWhatIsLeft: the store's own units leak first, so owed units do not leak
// as well. A bucket whose counter was freed or evicted continues to leak from its last
// level.
func TestBucketIsSentWhatIsLeft(t *testing.T) {
	l := bucket(60, hour, 10) // one a minute
	for _, row := range []struct {
		name    string
		evicted bool
		after   int64
		want    int64
	}{
		{"at once", false, 0, 4},
		{"the store's have leaked", false, 5 * minute, 4},
		{"and one of those owed", false, 6 * minute, 3},
		{"all", false, 9 * minute, 0},
		{"evicted", true, 5 * minute, 4},
		{"evicted, and one of those owed has leaked", true, 6 * minute, 3},
		{"evicted, and two", true, 7 * minute, 2},
		{"evicted, and all", true, 9 * minute, 0},
	} {
		c, store, limits := newCache(), newRemote(hour), []rule.Limit{l}
		c.Learn("key", store.take("key", 5, hour, limits))
		take(c, "key", 4, hour, true, l)
		if row.evicted {
			p := c.at("key")
			c.memory.table.Forget(p.Hash, hour, limits)
		}
		b := c.BeginSending("key", hour+row.after)
		got := int64(0)
		if b != nil {
			got = b.Owed[0].Units
		}
		require.Equal(t, row.want, got, row.name)
	}
}

// TestGivenBackAfterLeaking: if units are given back to a bucket, the part of them that
// has leaked stays owed, because the same amount of the store's own units has leaked.
func TestGivenBackAfterLeaking(t *testing.T) {
	l := bucket(60, hour, 10) // one a minute
	c, store, limits := newCache(), newRemote(hour), []rule.Limit{l}
	c.Learn("key", store.take("key", 5, hour, limits))
	take(c, "key", 4, hour, true, l)
	now := hour + 2*minute
	c.Adjust("key", -4, Here(hour), now, limits, true)
	require.EqualValues(t, 5, left(c, "key", now, l))
	settle(c, store, "key", now)
	_, a := l.Take(store.states[counter{"key", l.Kind, l.Window}], now+store.clockOffset, 0)
	require.EqualValues(t, 5, a.Remaining)
}

// TestSlidingIsSentInTwo: the first unit opens the window at the store when it was opened
// here. The other units count there for at least as long as here.
func TestSlidingIsSentInTwo(t *testing.T) {
	c, l := newCache(), sliding(9, minute)
	take(c, "key", 2, hour, true, l)
	take(c, "key", 3, hour+50*second, true, l)
	b := c.BeginSending("key", hour+55*second)
	require.Equal(t, []Owed{{Limit: l, Units: 1, At: Here(hour)}, {Limit: l, Units: 4, At: Here(hour + 50*second)}}, b.Owed)
	c.EndSending(b, 0, hour+55*second)
	b = c.BeginSending("key", hour+70*second)
	require.Equal(t, []Owed{{Limit: l, Units: 1, At: Here(hour)}, {Limit: l, Units: 4, At: Here(hour + 50*second)}}, b.Owed)
	c.EndSending(b, 2, hour+70*second)

	// In the older of the two windows one unit may weigh nothing, and would not open a
	// window. (This uses another cache, because time never runs backwards in one.)
	c = newCache()
	take(c, "other", 2, hour, true, l)
	take(c, "other", 3, hour+50*second, true, l)
	b = c.BeginSending("other", hour+70*second)
	require.Equal(t, []Owed{{Limit: l, Units: 5, At: Here(hour + 50*second)}}, b.Owed)
}

// TestLateAnswerAfterUnclearTake: units of a call with an unknown effect still count
// after an answer from before the call. An answer from after the call replaces them.
func TestLateAnswerAfterUnclearTake(t *testing.T) {
	c, store, limits := newCache(), newRemote(hour), []rule.Limit{fixed(9, hour)}
	c.Learn("key", store.take("key", 1, hour, limits))
	late := store.take("key", 1, hour+ms, limits)
	take(c, "key", 5, hour+2*ms, false, limits...)
	late.Now = hour + 3*ms
	c.Learn("key", late)
	require.EqualValues(t, 3, left(c, "key", hour+3*ms, limits[0]))
	c.Learn("key", store.take("key", 1, hour+4*ms, limits))
	require.EqualValues(t, 6, left(c, "key", hour+4*ms, limits[0]))
}

// TestLedgerIsBounded: the ledger is bounded in bytes, whatever the keys are. The
// oldest keys are dropped, and counted as lost if their units still counted.
func TestLedgerIsBounded(t *testing.T) {
	for name, pad := range map[string]int{"short": 0, "long": 2000} {
		const bytes = 1 << 20
		c, l := New(NewMemory(1<<16), bytes), []rule.Limit{fixed(9, hour), sliding(9, hour)}
		before := liveHeap()
		answers := make([]rule.Answer, 2)
		n := 0
		for ; c.Forgotten() < 4000; n++ {
			c.Take(fmt.Sprint(n, strings.Repeat("x", pad)), Taking{Units: 1, Limits: l}, hour, answers, true)
		}
		table := New(NewMemory(1<<16), bytes)
		withLedger := liveHeap() - before
		before = liveHeap()
		for i := range n {
			table.Take(fmt.Sprint(i, strings.Repeat("x", pad)), Taking{Units: 1, Limits: l}, hour, answers, false)
		}
		got := withLedger - (liveHeap() - before)
		t.Logf("%s: %d keys in %d bytes of %d", name, c.Owing(), got, bytes)
		require.LessOrEqual(t, got, int64(bytes*5/4), name)
		require.Equal(t, n, c.Owing()+int(c.Forgotten()), name)
		owes, _ := c.Owes(fmt.Sprint(n-1, strings.Repeat("x", pad)))
		require.True(t, owes, name)
		owes, _ = c.Owes(fmt.Sprint(0, strings.Repeat("x", pad)))
		require.False(t, owes, name)
		runtime.KeepAlive(table)

		// Units that no longer count are not lost.
		lost := c.Forgotten()
		for i := range n {
			c.Take(fmt.Sprint("new", i, strings.Repeat("x", pad)), Taking{Units: 1, Limits: l}, 4*hour, answers, true)
		}
		require.Less(t, c.Forgotten()-lost, uint64(n-c.Owing()+n/10), name)
	}
}

// TestLedgerHasRoom: a ledger of LedgerBytes holds the given number of keys, although
// the keys are spread unevenly over the stripes. It is not much larger than that.
func TestLedgerHasRoom(t *testing.T) {
	l := fixed(9, hour)
	for _, keys := range []int{1, 2, 16, 140, 256, 1000, 8192, 1 << 16} {
		bytes := LedgerBytes(keys)
		for range min(100, 1+8192/keys) {
			c := New(NewMemory(keys), bytes)
			for i := range keys {
				take(c, fmt.Sprintf("198.51.%06d", i), 1, hour, true, l)
			}
			require.Equal(t, keys, c.Owing())
			require.Zero(t, c.Forgotten())
		}
		t.Logf("%d keys: %d bytes", keys, bytes)
		require.LessOrEqual(t, bytes, 256<<10+1200*keys)
	}
	require.Less(t, LedgerBytes(1<<20), 400<<20)
	require.Positive(t, LedgerBytes(math.MaxInt), "it does not overflow")
}

// TestLongKeysPushOutEachOther: keys of a megabyte never displace a short key from the
// ledger.
func TestLongKeysPushOutEachOther(t *testing.T) {
	c, l := newCache(), fixed(9, hour)
	for i := range 200 {
		take(c, fmt.Sprint(i), 1, hour, true, l)
	}
	for i := range 50 {
		require.True(t, take(c, fmt.Sprint(i)+strings.Repeat("x", 1<<20), 1, hour, true, l))
		take(c, fmt.Sprint(i)+strings.Repeat("x", 1000), 1, hour, true, l)
	}
	require.Equal(t, 300, c.Owing()+int(c.Forgotten()))
	require.Greater(t, c.Owing(), 230)
	for i := range 200 {
		owes, _ := c.Owes(fmt.Sprint(i))
		require.True(t, owes)
	}
}

// TestGiveBacksAreBounded: if units of a key are given back again and again, its
// number of records is bounded. It never gives back more than was requested.
func TestGiveBacksAreBounded(t *testing.T) {
	for _, l := range []rule.Limit{fixed(900, hour), sliding(900, hour), bucket(1, hour, 900)} {
		c, store, limits := newCache(), newRemote(9*hour), []rule.Limit{l}
		var at []int64
		for i := range int64(300) {
			reply := store.take("key", 1, hour+i*second, limits)
			c.Learn("key", reply)
			at = append(at, reply.At)
		}
		for _, at := range at {
			c.Adjust("key", -1, c.InstantOf(at), hour+300*second, limits, true)
		}
		require.LessOrEqual(t, len(c.at("key").ledger.keys[c.at("key").Hash].records), maxGivenBack)
		settle(c, store, "key", hour+300*second)
		_, a := l.Take(store.states[counter{"key", l.Kind, l.Window}], hour+300*second+store.clockOffset, 0)
		require.LessOrEqual(t, a.Remaining, int64(900))
		if l.Kind == rule.Fixed {
			require.EqualValues(t, 900, a.Remaining)
		}
	}
}

// TestBytesPerKey: a denied key costs less than 40 bytes, with its permission.
func TestBytesPerKey(t *testing.T) {
	const keys = 1 << 16
	limits := []rule.Limit{fixed(1, hour)}
	before := liveHeap()
	c := New(NewMemory(keys*8/7), 1<<20)
	reply := Reply{N: 1, Limits: limits, Answers: []rule.Answer{{Retry: hour, Reset: hour}}, States: []rule.State{{T: 2 * hour, A: 1}}, At: 2 * hour, Now: hour, Recheck: -1}
	for range 3 {
		for i := range keys {
			c.Learn("198.51."+fmt.Sprint(i), reply)
		}
	}
	empty := float64(stripes * unsafe.Sizeof(stripe{}))
	got := (float64(liveHeap()-before) - empty) / keys
	t.Logf("%.1f bytes per denied key", got)
	require.Less(t, got, 40.0)
	known := 0
	for i := range keys {
		if deny, _, _ := c.Denied("198.51."+fmt.Sprint(i), 1, hour, -1, limits, make([]rule.Answer, 1)); deny {
			known++
		}
	}
	t.Logf("%d of %d keys are denied without asking", known, keys)
	require.Greater(t, known, keys*95/100)
}

func liveHeap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestPermissionsGrow: there is room for the permissions of all keys that are denied at
// once, and no more.
func TestPermissionsGrow(t *testing.T) {
	limits, answers := []rule.Limit{fixed(1, hour)}, make([]rule.Answer, 1)
	for _, row := range []struct{ keys, most int }{{100, 512}, {40_000, 1 << 16}} {
		c, store := New(NewMemory(1<<16), 1<<20), newRemote(hour)
		asked := 0
		for round := range int64(30) {
			now := hour + round*second
			asked = 0
			for i := range row.keys {
				key := fmt.Sprint(i)
				if deny, _, _ := c.Denied(key, 1, now, -1, limits, answers); !deny {
					asked++
					store.take(key, 1, now, limits)
					c.Learn(key, store.take(key, 1, now, limits))
				}
			}
		}
		sets := len(*c.memory.permissions.sets.Load())
		t.Logf("%d keys: %d asked in the last round, room for %d", row.keys, asked, sets*setSize)
		require.LessOrEqual(t, asked, row.keys/1000)
		require.LessOrEqual(t, sets*setSize, row.most)
	}
}

// TestNoDenialNoPermissions: a cache that denies nothing allocates no memory for
// permissions.
func TestNoDenialNoPermissions(t *testing.T) {
	c, store := newCache(), newRemote(hour)
	c.Learn("key", store.take("key", 1, hour, []rule.Limit{fixed(9, hour)}))
	require.Nil(t, c.memory.permissions.sets.Load())
}
