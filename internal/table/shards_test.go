package table

import (
	"strconv"
	"sync"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// blocksOf returns how many blocks of shards a table has.
func blocksOf(tab *Table) (n int) {
	for i := range tab.shards.blocks {
		if tab.shards.blocks[i].Load() != nil {
			n++
		}
	}
	return n
}

// TestMissingShardsStayMissing: whatever goes through all shards makes none, and finds them
// empty.
func TestMissingShardsStayMissing(t *testing.T) {
	tab := newTimed(1 << 20)
	mirror := tab.Mirror()
	check := func(blocks, counters int) {
		t.Helper()
		if got, decisions := tab.Counts(); got.Counters != counters || int(decisions.Allowed) != counters {
			t.Errorf("%+v, %+v, want %d", got, decisions, counters)
		}
		found := 0
		for _, all := range []bool{false, true} {
			mirror.Update(all, func(c Changes) { found += len(c.Set) })
		}
		if found != counters {
			t.Errorf("%d counters in the mirror, want %d", found, counters)
		}
		for range 2 * tab.Shards() {
			tab.sweepSome(tab.sweep.due.Load())
		}
		if keys := tab.HeldKeys(); keys != 0 {
			t.Errorf("%d keys with holds", keys)
		}
		if got := blocksOf(tab.Table); got != blocks {
			t.Errorf("%d blocks of shards, want %d", got, blocks)
		}
	}
	check(0, 0)
	l := fixed(5, hour)
	tab.TakeOne("k", 1, &l)
	check(1, 1)
	if got := tab.left("k", l); got != 4 {
		t.Errorf("%d left, want 4", got)
	}
}

// TestShardsAreMadeOnce: goroutines that use a new table at the same time count in the same
// shards.
func TestShardsAreMadeOnce(t *testing.T) {
	const keys, callers = 100, 8
	for range 20 {
		tab := newTimed(1 << 18)
		l := fixed(keys*callers, hour)
		var start, all sync.WaitGroup
		start.Add(1)
		for range callers {
			all.Go(func() {
				start.Wait()
				for i := range keys {
					tab.TakeOne(strconv.Itoa(i), 1, &l)
				}
			})
		}
		start.Done()
		all.Wait()
		if got := tab.Stats().Counters; got != keys {
			t.Fatalf("%d counters, want %d", got, keys)
		}
		for i := range keys {
			if got := tab.left(strconv.Itoa(i), l); got != keys*callers-callers {
				t.Fatalf("%d left of key %d", got, i)
			}
		}
		checkInvariants(t, tab.Table)
	}
}

// TestBytesPerEmptyTable measures a table that nobody uses.
func TestBytesPerEmptyTable(t *testing.T) {
	const n = 200
	all := make([]*Table, n)
	before := liveHeap()
	for i := range all {
		all[i] = New(1<<20, func() int64 { return 0 })
	}
	if got := (liveHeap() - before) / n; got > 1200 {
		t.Errorf("an empty table has %d bytes, want at most 1,200", got)
	}
	l := rule.Limit{Kind: rule.Fixed, N: 5, Window: hour}
	for _, tab := range all {
		_, _, _, held := tab.TakeOne("k", 1, &l, 0)
		held.Unlock()
	}
	if got := (liveHeap() - before) / n; got > 3600 {
		t.Errorf("a table with one key has %d bytes, want at most 3,600", got)
	}
}
