package nearcache

import (
	"math"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file has blocks; see [rule.Block]: how blocks of the store are converted, and how a
// block begins here. All known blocks are in the table. Blocks that the store does not know
// of are in the ledger, too.

// bounded returns a block that ends at an instant of our clock, whatever somebody has
// passed for it: the table and the rules require an end of 0 to [rule.MaxUntil], at most
// [rule.MaxRungs] rungs and at most [rule.MaxSpan] of memory. If the block ended before
// our clock began, its rung is remembered for correspondingly less after 0.
func bounded(b rule.Block, ends int64) rule.Block {
	forget := max(0, min(b.Forget, rule.MaxSpan))
	return rule.Block{
		Until:  max(0, min(ends, rule.MaxUntil)),
		Rung:   min(b.Rung, rule.MaxRungs),
		Forget: max(0, forget+min(ends, 0)),
	}
}

// block returns a block of the store on our clock. If the conversion overflows, the end is
// the earliest or the latest one that there is.
func (k *clock) block(b rule.Block) rule.Block {
	if b == (rule.Block{}) {
		return b
	}
	offset := k.offset.Load()
	ends := b.Until - offset
	switch {
	case offset > 0 && ends > b.Until:
		ends = math.MinInt64
	case offset < 0 && ends < b.Until:
		ends = math.MaxInt64
	}
	return bounded(b, ends)
}

// blocksOf fills in the blocks of a reply on our clock. Bit i of blocked is set if the
// block under limit i was in force when the store answered, at on our clock. ends is when
// the last one of them ends.
func (c *Cache) blocksOf(r *Reply, at int64, blocks *[MaxLimits]rule.Block) (blocked uint8, ends int64) {
	for i := range r.Blocks {
		b := c.clock.block(r.Blocks[i])
		if blocks[i] = b; b.Until > at {
			blocked |= 1 << i
			ends = max(ends, b.Until)
		}
	}
	return blocked, ends
}

// Block joins a block with the blocks of key's counters under the limits. It is for a block
// by hand, which the store knows already, or is owed if owed is true. b.Until is on our
// clock. There may be more than [MaxLimits] limits, and counters need not exist. recheck is
// how long the key may be denied here before the store is asked, as for [Cache.Denied].
//
// From then on no unit of the key's lease is handed out. If ok is true, ended has the rest
// of the lease, and the caller must give it back to the store. Block locks the key's
// stripe.
func (c *Cache) Block(key string, b rule.Block, now, recheck int64, limits []rule.Limit, owed bool) (ended EndedLease, ok bool) {
	b = bounded(b, b.Until)
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	c.memory.table.BlockAt(p.Hash, b, c.clock.odd.Load(), now, limits)
	// Answers that are in flight do not include the block. They are treated as older, so
	// they do not remove it, and they give and take no permission.
	p.version.Add(1)
	c.countedHere(&p, now)
	ends := b.Until
	for i := range limits { // the key may be blocked for longer already
		known, _ := c.memory.table.BlockOf(p.Hash, now, &limits[i])
		ends = max(ends, known.Until)
	}
	if ends > now {
		c.permit(&p, 0, ends, now, recheck)
	}
	if owed {
		e := c.open(&p, key)
		for i := range limits {
			e.oweBlock(&limits[i], b, now)
		}
		c.changed(&p, e, now)
	}
	l := p.leases[key]
	if l == nil {
		return EndedLease{}, false
	}
	ended, ok = l.end(key)
	if !l.asking {
		delete(p.leases, key)
	}
	return ended, ok
}

// began notes that a denial here has started blocks at now: answers in flight do not
// include them, and the store is owed them. They are owed even if it is not known whether
// the failed call has changed anything at the store: this process has denied the units, so
// only this process knows of the blocks. The key's stripe must be locked.
func (c *Cache) began(p *keyRef, key string, under uint8, blocks *[MaxLimits]rule.Block, now int64, limits []rule.Limit) {
	c.countedHere(p, now)
	p.stopLease(key)
	e := c.open(p, key)
	for i := range limits {
		if under>>i&1 != 0 {
			e.oweBlock(&limits[i], blocks[i], now)
		}
	}
	c.changed(p, e, now)
}
