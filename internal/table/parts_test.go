package table

import (
	"fmt"
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
		run("engine, "+name, func() { _, at, _, held := tab.TakeOne(key, 1, l, 0); held.Unlock(); sink += at })
		run("engine, with a file, "+name, func() { _, at, _, held := kept.TakeOne(key, 1, l, 0); held.Unlock(); sink += at })
	}
}

// remoteLimits are limits of one key, and the states of a key that they all deny.
func remoteLimits(n int) (limits []rule.Limit, states []rule.State) {
	for i := range n {
		limits = append(limits, rule.Limit{Kind: rule.Kind(1 + i%2), N: 5, Window: hour + int64(i)})
		states = append(states, rule.State{T: 1, A: 5})
	}
	return limits, states
}

// BenchmarkRemote times what a cache of another store asks for, of one hot key and of
// many.
func BenchmarkRemote(b *testing.B) {
	for _, n := range []int{1, 2, MaxLimits} {
		for _, keys := range []int{1, 40_000} {
			limits, states := remoteLimits(n)
			answers := make([]rule.Answer, n)
			tab, owner := New(65_536*n*8/7, func() int64 { return 0 }), NewOwner()
			names := make([]string, keys)
			for i := range names {
				names[i] = fmt.Sprintf("198.51.%08d", i)
				tab.Learn(tab.Hash(names[i], owner), 1, 2, limits, Learnt{States: states})
			}
			run := func(name string, f func(h Hash)) {
				b.Run(fmt.Sprintf("%s/%d limits/%d keys", name, n, keys), func(b *testing.B) {
					for i := range b.N {
						f(tab.Hash(names[i%keys], owner))
					}
				})
			}
			run("Denied", func(h Hash) { tab.Denied(h, 1, 2, limits, answers) })
			run("Learn", func(h Hash) { tab.Learn(h, 1, 2, limits, Learnt{States: states}) })
			run("TakeAt", func(h Hash) { tab.TakeAt(h, 1, 2, limits, answers, nil) })
		}
	}
}
