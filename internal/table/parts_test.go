package table

import (
	"sync"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// BenchmarkParts times what a decision is made of, for docs/engine.md.
func BenchmarkParts(b *testing.B) {
	const key = "203.0.113.7"
	epoch := time.Now()
	clock := func() int64 { return int64(time.Since(epoch)) }
	limits := map[string]*rule.Limit{
		"fixed":  {Kind: rule.Fixed, N: 1e12, Window: hour},
		"bucket": {Kind: rule.Bucket, N: 1e12, Window: second, Burst: 1e12},
	}
	tab := New(1<<20, clock)
	kept := NewKept(1<<20, clock, Secret{1, 2}, MaxShards)
	var mu sync.Mutex
	var sink int64
	run := func(name string, f func()) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				f()
			}
		})
	}
	run("clock", func() { sink += clock() })
	run("hash", func() { sink += int64(tab.hash(key).slot) })
	run("hash that can be kept", func() { sink += int64(kept.hash(key).slot) })
	run("lock and unlock", func() { mu.Lock(); sink++; mu.Unlock() })
	for name, l := range limits {
		var state rule.State
		now := int64(1)
		run("rule, "+name, func() { now++; state, _ = l.Take(state, now, 1) })
		run("engine, "+name, func() { _, at, held := tab.TakeOne(key, 1, l); held.Unlock(); sink += at })
		run("engine, with a file, "+name, func() { _, at, held := kept.TakeOne(key, 1, l); held.Unlock(); sink += at })
	}
}
