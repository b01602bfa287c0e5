package table

import (
	"math/bits"
	"sync/atomic"
)

// MaxShards is how many shards a table has at most.
const MaxShards = 1 << 16

// shards are the shards of a table. They are made in blocks, and a block is made when one
// of its shards is first needed: a process may have thousands of tables that nobody uses.
// The number of shards never changes. All methods may be called concurrently.
//
// No other file accesses the blocks. A function that goes through all shards uses made or
// used, which make none: a shard that is missing is empty.
type shards struct {
	blocks []atomic.Pointer[shardBlock]
	isUsed []atomic.Uint64 // a bit for each shard that was ever locked for a key
	last   uint64          // the number of shards, a power of two, minus 1
	max    int             // counters, of all shards together
}

// perBlock is how many shards a block has: a table of 256 shards needs 256 bytes for its
// pointers, and 1,152 for its first key.
const perBlock = 8

type shardBlock [perBlock]shard

// newShards returns n shards, which must be a power of two, for max counters.
func newShards(max, n int) shards {
	return shards{
		blocks: make([]atomic.Pointer[shardBlock], (n+perBlock-1)/perBlock),
		isUsed: make([]atomic.Uint64, (n+63)/64),
		last:   uint64(n - 1),
		max:    max,
	}
}

func (all *shards) len() int { return int(all.last) + 1 }

// share returns the most counters that shard i may have.
func (all *shards) share(i int) int {
	n := all.len()
	if i < all.max%n {
		return all.max/n + 1
	}
	return all.max / n
}

// made returns the shard that a hash or a number selects, or nil if it is missing. It is
// small enough for the compiler to inline it.
func (all *shards) made(hash uint64) *shard {
	i := hash & all.last
	if b := all.blocks[i/perBlock].Load(); b != nil {
		return &b[i%perBlock]
	}
	return nil
}

// of returns the shard that a hash or a number selects, and makes it if it is missing.
func (all *shards) of(hash uint64) *shard {
	if s := all.made(hash); s != nil {
		return s
	}
	return all.make(hash)
}

// make makes the block of a shard, and returns the shard. If two callers make one block at
// the same time, both use the same one.
func (all *shards) make(hash uint64) *shard {
	i := hash & all.last
	b := new(shardBlock)
	first := i - i%perBlock
	for j := range b {
		b[j].max = all.share(int(first) + j)
	}
	at := &all.blocks[i/perBlock]
	if !at.CompareAndSwap(nil, b) {
		b = at.Load()
	}
	return &b[i%perBlock]
}

// use notes that the shard that a hash selects is used. It must be called before the
// shard's clock is set for the first time: [Table.lock] calls it if the clock is at 0.
func (all *shards) use(hash uint64) {
	i := hash & all.last
	all.isUsed[i/64].Or(1 << (i % 64))
}

// used calls yield with each shard that was ever used, and without its lock.
func (all *shards) used(yield func(*shard) bool) {
	for word := range all.isUsed {
		for rest := all.isUsed[word].Load(); rest != 0; rest &= rest - 1 {
			if !yield(all.made(uint64(word*64 + bits.TrailingZeros64(rest)))) {
				return
			}
		}
	}
}
