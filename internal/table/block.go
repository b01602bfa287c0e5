package table

import "github.com/ratelimit-go/ratelimit/internal/rule"

// This file has blocks; see [rule.Block]. The block of a counter is in a place of its
// own, which is called its sibling. It is in the counter's shard, under an id that
// follows from the counter's id. A shard counts the blocks that it holds. While there are
// none, a call does not look for one.
//
// A place that holds a block has the number blockShape for its shape. Its slot has the
// end of the block in place of the state's T, with flagRefused. The other word has the
// time for which the rung is remembered, shifted left by rungBits, plus the rung.

const (
	blockShape = maxShapes - 1
	rungBits   = 3 // so that 61 are left, which are enough for any span

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
	return rule.Block{Until: int64(s.when & timeMask), Rung: uint8(s.what & (1<<rungBits - 1)), Forget: int64(s.what >> rungBits)}
}

func (s *slot) setBlock(b rule.Block) {
	s.when = uint64(b.Until) | flagRefused
	s.what = uint64(b.Forget)<<rungBits | uint64(b.Rung)
}

// useBlocks makes the shape of blocks known. It takes no lock.
func (s *shapes) useBlocks() {
	if s[blockShape].Load() == nil {
		s[blockShape].Store(&blockLimit)
	}
}

// block returns the block of a counter.
func (s *shard) block(of id) rule.Block {
	if s.blocks == 0 {
		return rule.Block{}
	}
	if p := s.find(of.sibling()); p.group != nil && p.id().isBlock() {
		return p.slot().block()
	}
	return rule.Block{}
}

// setBlock writes the block of a counter. own has the counters of the key.
func (s *shard) setBlock(of id, own []id, shapes *shapes, b rule.Block, now int64) {
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
}

// unblock deletes the block of a counter.
func (s *shard) unblock(of id) {
	if s.blocks == 0 {
		return
	}
	if p := s.find(of.sibling()); p.group != nil && p.id().isBlock() {
		s.free(p)
	}
}

// deniesBlocked is take for a key of which a counter may be blocked. It reports whether
// one is, and then fills in the answers: the units are denied, and nothing changes.
// answers has the answers without blocks.
func (d *decision) deniesBlocked(s *shard, n, now int64, limits []rule.Limit, answers []rule.Answer) bool {
	var left [MaxLimits]int64
	blocked := false
	for i := range limits {
		left[i] = s.block(d.ids[i]).Left(now)
		blocked = blocked || left[i] > 0
	}
	if !blocked {
		return false
	}
	for i := range limits {
		if answers[i].Retry == 0 { // as if the units had not been taken
			_, answers[i] = limits[i].Take(d.before[i], now, 0)
		}
		if left[i] > 0 {
			answers[i] = answers[i].Over(left[i], n)
			d.marks.Blocked |= 1 << i
		}
	}
	return true
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
		if ladder == nil || answers[i].Retry == 0 || !l.DeniesWithout(d.blocking.Pending, d.before[i], now, n) {
			continue
		}
		b := s.block(d.ids[i]).Start(ladder, l.Window, answers[i].Retry, now)
		s.setBlock(d.ids[i], d.ids[:len(limits)], shapes, b, now)
		answers[i] = answers[i].Over(b.Left(now), n)
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
	asked := n
	if upTo {
		n = d.fitting(s, n, now, limits)
	}
	admitted := d.take(s, &t.shapes, n, asked, now, limits, answers)
	copy(after, d.after[:len(limits)])
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

// Block blocks the counters of key under every limit for d from now, or until the end of
// the block in force if that is later. A counter need not exist. The number of limits may
// be larger than [MaxLimits]. It locks the key's shard.
func (t *Table) Block(key string, d int64, limits []rule.Limit) {
	h := t.hash(key)
	s, now := t.lock(h)
	defer s.mu.Unlock()
	own := make([]id, len(limits))
	for i := range limits {
		own[i] = h.id(&limits[i])
	}
	for _, of := range own {
		s.setBlock(of, own, &t.shapes, s.block(of).Extend(d, now), now)
	}
}
