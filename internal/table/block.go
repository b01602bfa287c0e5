package table

import "github.com/ratelimit-go/ratelimit/internal/rule"

// This file has blocks; see [rule.Block]. The block of a counter is in a place of its
// own, which is called its sibling. It is in the counter's shard, under an id that
// follows from the counter's id. A shard counts the blocks that it holds. While there are
// none, a call does not look for one.
//
// A place that holds a block has the number blockShape for its shape. Its slot has the
// low bits of the block's end in place of the state's T, with flagRefused. The other word
// has, from its low bits on: the rung, the high bits of the end, and the time for which the
// rung is remembered in units of forgetUnit. The bit of flagEmpty is [Blocking.Odd]; it
// has no effect here.

const (
	blockShape = maxShapes - 1
	rungBits   = 3
	forgetUnit = 8 // nanoseconds; what is rounded up to it needs 58 bits
	endBits    = 3 // of the end, above timeMask; so 58 bits are left

	_ = uint(1<<rungBits - 1 - rule.MaxRungs)

	// blockMask is the difference between the id of a counter and the id of its block. It
	// is random in both halves, because these select the groups.
	blockMask id = 0xd1b54a32d192ed03
)

// blockLimit is the shape of all places that hold a block. Its numbers mean nothing.
var blockLimit = rule.Limit{Kind: rule.Blocked, N: 1, Window: rule.MinSpan}

// Blocking says how a call starts blocks. A nil Blocking starts none. Blocks in force
// deny in both cases.
type Blocking struct {
	// Ladders has the ladder of each limit of the call, or nil for a limit that starts no
	// blocks. The table neither keeps nor changes it.
	Ladders *[MaxLimits]*rule.Ladder

	// Pending are units of the key that may yet be given back. A denial that there would
	// not be without them starts no block.
	Pending []rule.Pending

	// Began is filled with the block of each limit that has started one. It may be nil.
	Began *[MaxLimits]rule.Block

	// Odd is a bit that the table keeps with each block that starts, for package
	// nearcache; see [Table.BlockOf].
	Odd bool
}

// Marks says which counters of a call are blocked. Bit i is for limit i.
type Marks struct {
	Blocked uint8 // a block is in force
	Began   uint8 // this call has started it
}

const _ = uint(8 - MaxLimits)

// sibling returns the id of a counter's block, without the shape.
func (i id) sibling() id { return max((i ^ blockMask).fingerprint(), maxShapes) }

// isBlock reports whether the place with this id holds a block.
func (i id) isBlock() bool { return i%maxShapes == blockShape && i != 0 }

// counter returns the id of a counter, for the id of the counter or of its block.
func (i id) counter() id {
	if i.isBlock() {
		return i.sibling()
	}
	return i.fingerprint()
}

// block returns the block that a slot holds.
func (s *slot) block() rule.Block {
	high := s.what >> rungBits & (1<<endBits - 1)
	return rule.Block{
		Until:  int64(high*(timeMask+1) + s.when&timeMask),
		Rung:   uint8(s.what & (1<<rungBits - 1)),
		Forget: int64(s.what>>(rungBits+endBits)) * forgetUnit,
	}
}

func (s *slot) setBlock(b rule.Block) {
	forget := (uint64(b.Forget) + forgetUnit - 1) / forgetUnit
	s.when = uint64(b.Until)&timeMask | flagRefused
	s.what = forget<<(rungBits+endBits) | uint64(b.Until)/(timeMask+1)<<rungBits | uint64(b.Rung)
}

// useBlocks makes the shape of blocks known. It takes no lock.
func (s *shapes) useBlocks() {
	if s[blockShape].Load() == nil {
		s[blockShape].Store(&blockLimit)
	}
}

// findBlock returns the place of a counter's block, or the zero place.
func (s *shard) findBlock(of id) place {
	if s.blocks == 0 {
		return place{}
	}
	if p := s.find(of.sibling()); p.group != nil && p.id().isBlock() {
		return p
	}
	return place{}
}

// block returns the block of a counter.
func (s *shard) block(of id) rule.Block {
	if p := s.findBlock(of); p.group != nil {
		return p.slot().block()
	}
	return rule.Block{}
}

// isOdd reports whether the bit of a counter's block is set.
func (s *shard) isOdd(of id) bool { return s.flags(s.findBlock(of))&flagEmpty != 0 }

// setBlock writes the block of a counter and its bit. If the block is forgotten by now, it
// deletes the one that is there. own has the counters of the key.
func (s *shard) setBlock(of id, own []id, shapes *shapes, b rule.Block, odd bool, now int64) {
	if b.Forgotten() <= now {
		s.unblock(of)
		return
	}
	shapes.useBlocks()
	at := of.sibling()
	p := s.find(at)
	if p.group != nil && !p.id().isBlock() { // another counter with the same fingerprint
		s.free(p)
		p = place{}
	}
	if p.group == nil {
		p = s.insert(at, own, shapes, now)
		*p.id() = at | blockShape
		s.blocks++
	}
	p.slot().setBlock(b)
	if odd {
		p.slot().when |= flagEmpty
	}
}

// joinBlock joins a block with the block of a counter. The bit is the one of the block
// that ends later.
func (s *shard) joinBlock(of id, own []id, shapes *shapes, b rule.Block, odd bool, now int64) {
	was := s.block(of)
	if was.Until > b.Until && was.Forgotten() > now {
		odd = s.isOdd(of)
	}
	s.setBlock(of, own, shapes, was.Join(b, now), odd, now)
}

// unblock deletes the block of a counter.
func (s *shard) unblock(of id) {
	if p := s.findBlock(of); p.group != nil {
		s.free(p)
	}
}

// blocked returns which counters are blocked, and for how much longer. Bit i is for
// ids[i].
func (s *shard) blocked(ids []id, now int64) (blocked uint8, left [MaxLimits]int64) {
	for i := range ids {
		if left[i] = s.block(ids[i]).Left(now); left[i] > 0 {
			blocked |= 1 << i
		}
	}
	return blocked, left
}

// denyBlocked decides about n units of a key of which a counter may be blocked. It returns
// which counters are. If any is, the units are denied and denyBlocked fills in the
// answers. It changes nothing in the shard. states has the states under the limits, and
// answers has the answers without blocks.
func (s *shard) denyBlocked(ids []id, states []packed, n, now int64, limits []rule.Limit, answers []rule.Answer) uint8 {
	blocked, left := s.blocked(ids, now)
	if blocked == 0 {
		return 0
	}
	for i := range limits {
		if answers[i].Retry == 0 { // as if the units had not been taken
			answers[i] = s.ask(ids[i], &limits[i], states[i], now, 0)
		}
		if left[i] > 0 {
			answers[i] = answers[i].Over(left[i], n)
		}
	}
	return blocked
}

// startBlocks starts the blocks that follow from a denial of n units, and changes the
// answers of their limits. No counter of the key is blocked.
func (d *decision) startBlocks(s *shard, shapes *shapes, n, now int64, limits []rule.Limit, answers []rule.Answer) {
	for i := range answers {
		if answers[i].Retry == rule.Never {
			return
		}
	}
	for i := range limits {
		l, ladder := limits[i], d.blocking.Ladders[i]
		if ladder == nil || answers[i].Retry == 0 || !s.deniesWithout(d.blocking.Pending, d.ids[i], &l, d.before[i], n, now) {
			continue
		}
		b := s.block(d.ids[i]).Start(ladder, l.Window, answers[i].Retry, now)
		s.setBlock(d.ids[i], d.ids[:len(limits)], shapes, b, d.blocking.Odd, now)
		answers[i] = answers[i].Over(b.Left(now), n)
		if d.blocking.Began != nil {
			d.blocking.Began[i] = b
		}
		d.marks.Blocked |= 1 << i
		d.marks.Began |= 1 << i
	}
}

// TakeBlocking is [Table.TakeAt] that also starts blocks, and counts denials by their
// policies. If it is denied, upTo says that fewer units would do: then it takes as many
// as fit, and at least one. It returns how many it has taken, or 0 if it was denied.
func (t *Table) TakeBlocking(h Hash, n, now int64, upTo bool, limits []rule.Limit, answers []rule.Answer, after []rule.State, policies *Policies, blocking *Blocking) (taken, at int64, marks Marks) {
	d := decision{policies: policies, blocking: blocking}
	h.fill(&d.ids, limits)
	s, now := t.lockAt(h.keyHash, now)
	defer s.mu.Unlock()
	now = inPeriods(now, limits)
	asked := n
	if upTo {
		n = d.fitting(s, n, now, limits)
	}
	admitted := d.take(s, &t.shapes, n, asked, now, limits, answers)
	d.states(s, limits, after)
	if !admitted {
		n = 0
	}
	return n, now, d.marks
}

// takeOneBlocked is TakeOne for a key that is blocked. The shard must be locked.
//
//go:noinline
func (t *Table) takeOneBlocked(s *shard, of id, n, now int64, l *rule.Limit, policy uint8) rule.Answer {
	d := decision{policies: &Policies{policy}}
	d.ids[0] = of
	var answers [1]rule.Answer
	d.take(s, &t.shapes, n, n, now, []rule.Limit{*l}, answers[:])
	return answers[0]
}

// Block joins a block that ends at left from now with the block of key's counter under
// every limit; see [rule.Block.Join]. b.Until is not used. A counter need not exist. The
// number of limits may be larger than [MaxLimits]. It locks the key's shard.
func (t *Table) Block(key string, left int64, b rule.Block, limits []rule.Limit) {
	h := t.hash(key)
	s, now := t.lock(h)
	defer s.mu.Unlock()
	b.Until = rule.Lasting(left, now)
	s.blockAll(h, &t.shapes, b, false, now, limits)
}

// blockAll joins a block with the block of a key's counter under every limit.
func (s *shard) blockAll(h keyHash, shapes *shapes, b rule.Block, odd bool, now int64, limits []rule.Limit) {
	own := make([]id, len(limits))
	for i := range limits {
		own[i] = h.id(&limits[i])
	}
	for _, of := range own {
		s.joinBlock(of, own, shapes, b, odd, now)
	}
}
