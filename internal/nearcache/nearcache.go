// Package nearcache caches what this process knows about the keys of a store in
// another process, such as Redis. With it a limiter denies keys that are known to
// be denied without asking the store, and continues to count while the store is
// unavailable.
//
// It does not implement counting: the states are in a table.Table, and the rules are in
// internal/rule. It does not call the store either: package remote does. This package
// adds what the table cannot hold:
//
//   - permissions: until when a known denial may be answered here ([Cache.Denied]). A
//     permission that is lost means that the store is asked.
//   - marks: the instant of the newest answer that was learnt, by which answers that
//     overtake each other are put in order.
//   - the ledger: units and blocks that were decided here and that the store does not know
//     of, with their key. The store is owed these.
//   - leases: units that the store has counted and this process has not handed out yet.
//
// # Words
//
// Units or a block are owed if the store does not know of them and this process must send
// them to it. Settling a key means sending what is owed for it. A key is blocked if one of
// its counters has a block in force: it is denied then, even if units are left. A key is
// unused under a limit if all of its units are left: it was never used, or its units no
// longer count.
//
// # Two clocks
//
// This process counts on its own monotonic clock, and the store on another one. An
// [Instant] has the time on both clocks. States and blocks are converted when they are
// learnt, so a jump of the store's clock does not change what is already known here.
// Callers pass the store's instants unchanged; clock.go and blocks.go convert them.
//
// # How a limiter uses it
//
// A process has one Memory, and a limiter with its own budget has another one. Each limiter
// has one Cache. A limiter that replaces another one on the same store takes over its
// Cache.
//
// For a request:
//
//  1. If leases are on, [Cache.TakeLeased]. If it is admitted, that is the answer.
//  2. [Cache.Denied]. If it is true, that is the answer. Otherwise keep the version.
//  3. If [Cache.Owes] is true, settle the key first, or go to step 5.
//  4. Ask the store. On success pass its answer to [Cache.Learn] with the version of
//     step 2, and with the key's blocks. The units are taken at Cache.InstantOf the store's
//     instant.
//  5. If the store has failed, [Cache.Take]. owed is true if the failed call has certainly
//     changed nothing at the store. If that is not known, the units must never be given
//     back: they may be somebody else's at the store. Otherwise they are taken at
//     [Here] of the instant that Take returned. A block that a denial has started here is
//     owed in both cases.
//
// When units are given back or charged later, pass the Instant at which they were taken, or
// [AnyTime]. If nothing is owed for the key, send the change to the store first. Then call
// [Cache.Adjust]. Pass owed = false if the store has made the change, and owed = true if it
// has certainly not. If that is not known, do not call Adjust.
//
// To block a key by hand, send the block to the store first. Then call [Cache.Block], with
// owed = true if the store may not have it. Give the lease that Block has ended back to the
// store.
//
// To settle a key, call [Cache.BeginSending]. Send each element of the batch in order and
// under one limit each: units with Engine.Adjust, and a block with Engine.Block, as the time
// that is left of it. Then call [Cache.EndSending] with the number of elements that the
// store has or may have counted. Units that may have been counted must not be sent again.
// A block may be.
//
// To reset a key, wait until no caller settles it, call [Cache.Erase], and reset the
// store. Then call Erase again, because answers that were in flight may have been learnt
// in the meantime.
package nearcache

import (
	"sync"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// MaxLimits is the most limits that one call may have.
const MaxLimits = table.MaxLimits

// Memory has the state that the caches of a process can share: a bounded number of
// counters, and permissions to deny. It is safe for concurrent use.
type Memory struct {
	table       *table.Table
	permissions permissions
}

// NewMemory returns a Memory of at most the given number of counters. A key has one
// counter for each algorithm and window that it is limited under, and a block takes the
// place of a counter. The Memory starts small and grows to 30 bytes per counter. If that
// many keys are denied at once, it uses up to 8 more bytes for each.
func NewMemory(counters int) *Memory {
	counters = max(counters, 1)
	noClock := func() int64 { return 0 } // only for methods that are not used here
	return &Memory{table.New(counters, noClock), permissions{most: counters / setSize}}
}

// Evicted returns how many counters were evicted, from all caches that share the
// Memory.
func (c *Cache) Evicted() uint64 { return c.memory.table.Stats().Evicted }

// Cache has the knowledge of one limiter about its store's keys. It is safe for
// concurrent use. Its methods never wait for the store; they only take locks that are
// held for a short time. This file has the requests and the store's answers. The
// ledger, the leases, the blocks, the permissions and the clocks are in files of these
// names.
type Cache struct {
	memory *Memory
	owner  table.Owner
	clock  clock

	stripes     [stripes / stripesPerBlock]atomic.Pointer[stripeBlock] // access it with stripe and made
	demands     atomic.Pointer[[marks]demandSet]                       // nil until leases are asked for
	stripeBytes int                                                    // the most bytes of one stripe's ledger

	owing     atomic.Int64 // keys with units that the store is owed
	forgotten atomic.Uint64
}

const (
	// stripes is large enough that 64 concurrent callers rarely need the same
	// lock.
	stripes = 64
	// Stripes are made in blocks when they are first needed: a process may have thousands
	// of limiters that nobody uses.
	stripesPerBlock = 8
	// marks is the number of marks. All keys whose hash selects the same mark share it.
	// That is harmless: an answer may be treated as older than it is, and then the
	// stricter state stays until the next answer.
	marks = 512
)

// mark orders answers. The lock of its stripe guards it, except for version.
type mark struct {
	newest  int64         // the store's instant of the newest answer learnt
	learnt  int64         // when that was, on our clock
	version atomic.Uint64 // increased when units are given back here or the key is reset
}

// stripe has the ledger, the leases and the marks of some keys; mu guards them. While a
// key's stripe is locked, no other caller changes the key's counters in the table.
type stripe struct {
	mu     sync.Mutex
	ledger ledger
	leases map[string]*lease
	erases uint64
	_      [40]byte // keeps the locks of two stripes out of one cache line
	marks  [marks / stripes]mark
}

type stripeBlock [stripesPerBlock]stripe

// stripe returns stripe i, and makes it if it is missing.
func (c *Cache) stripe(i uint64) *stripe {
	at := &c.stripes[i/stripesPerBlock]
	b := at.Load()
	if b == nil {
		at.CompareAndSwap(nil, new(stripeBlock)) // another caller may have been first
		b = at.Load()
	}
	return &b[i%stripesPerBlock]
}

// made calls yield with each stripe that has been made, and without its lock. A stripe
// that is missing has nothing in it.
func (c *Cache) made(yield func(*stripe) bool) {
	for i := range c.stripes {
		b := c.stripes[i].Load()
		for j := 0; b != nil && j < len(b); j++ {
			if !yield(&b[j]) {
				return
			}
		}
	}
}

// New returns an empty Cache with a ledger of at most ledgerBytes. Two caches never
// share keys, even if they share a Memory.
func New(m *Memory, ledgerBytes int) *Cache {
	return &Cache{memory: m, owner: table.NewOwner(), stripeBytes: ledgerBytes / stripes}
}

// NewSeeded returns a Cache with a Memory of its own, for simulations. Its behaviour
// depends only on its calls and the seed. Keys that an attacker chooses can collide
// in it.
func NewSeeded(counters, ledgerBytes int, seed uint64) *Cache {
	noClock := func() int64 { return 0 }
	m := &Memory{table.NewKept(counters, noClock, table.Secret{seed, ^seed}, 1), permissions{most: max(counters, 1) / setSize}}
	return &Cache{memory: m, stripeBytes: ledgerBytes / stripes}
}

// keyRef says where the parts of a cache store what they know about a key.
type keyRef struct {
	table.Hash
	bits uint64
	*stripe
	*mark
}

func (c *Cache) at(key string) keyRef {
	h := c.memory.table.Hash(key, c.owner)
	bits := h.Bits()
	i := bits >> 32 % marks
	s := c.stripe(i % stripes)
	return keyRef{h, bits, s, &s.marks[i/stripes]}
}

// Denied reports whether n units of a key are known to be denied, and if so fills
// answers, which must be as long as limits. A key that is blocked is denied for every
// n > 0. Bit i of blocked is set if the counter under limit i is blocked. When a
// permission to deny has expired, Denied returns false to one caller, which then asks the
// store. It denies for all others for another recheck. If recheck is negative, a
// permission lasts as long as the denial. The version is for [Cache.Learn]. Denied does
// not lock the stripe.
func (c *Cache) Denied(key string, n, now, recheck int64, limits []rule.Limit, answers []rule.Answer) (denied bool, blocked uint8, version uint64) {
	p := c.at(key)
	version = p.version.Load()
	if n == 0 {
		return false, 0, version
	}
	permission, until := c.memory.permissions.find(p.bits, n)
	if permission == nil {
		return false, 0, version
	}
	if denied, blocked = c.memory.table.Denied(p.Hash, n, now, limits, answers); !denied {
		return false, 0, version
	}
	// If the permission has expired, only the caller that extends it asks the store.
	if until&^tagMask <= now && (recheck <= 0 || permission.extend(until, now+recheck)) {
		return false, 0, version
	}
	return true, blocked, version
}

// StillDenied reports whether the store's clock has jumped ahead while n units of a key
// were denied, and the denial is not over by our clock. Call it for units that the
// store has admitted. The store's counter may have expired early, and a wrong clock
// must not unblock a key that this process knows to be denied. If StillDenied returns
// true, it fills answers, and returns which limits are blocked. It does not lock the
// stripe.
//
// A jump unblocks a key early only if the denial is from before the jump, and if its rest
// is no longer than the jump. Otherwise another event has unblocked the key, such as a
// reset. That a block is from before the jump shows in the table's bit of it: Learn, Take
// and Block write whether the number of jumps so far is odd. If the clock jumps twice
// during one block, the second jump is not noticed.
func (c *Cache) StillDenied(key string, n, now int64, limits []rule.Limit, answers []rule.Answer) (denied bool, blocked uint8) {
	jumped := c.clock.jumped.Load()
	if jumped == 0 || n == 0 {
		return false, 0
	}
	p := c.at(key)
	var denial [MaxLimits]rule.Answer
	denied, blocked = c.memory.table.Denied(p.Hash, n, now, limits, denial[:len(limits)])
	if !denied {
		return false, 0
	}
	by := c.clock.jumpedBy.Load()
	for i := range limits {
		if blocked>>i&1 != 0 {
			b, odd := c.memory.table.BlockOf(p.Hash, now, &limits[i])
			if b.Left(now) <= by && odd != c.clock.odd.Load() {
				copy(answers, denial[:len(limits)])
				return true, blocked
			}
			continue
		}
		retry := denial[i].Retry
		if retry == 0 || retry > by {
			continue
		}
		state, found := c.memory.table.State(p.Hash, now, &limits[i])
		if limits[i].Kind == rule.Calendar {
			state.T -= limits[i].Window // when its period began
		}
		if found && state.T < jumped {
			copy(answers, denial[:len(limits)])
			return true, blocked
		}
	}
	return false, 0
}

// Version returns the version of a key before the store is asked, for [Cache.Learn].
func (c *Cache) Version(key string) uint64 { return c.at(key).version.Load() }

// Reply is the store's answer to a Take.
type Reply struct {
	N       int64         // units asked for; 0 is a look
	Limits  []rule.Limit  // under which they were asked for
	Answers []rule.Answer // under each limit
	States  []rule.State  // after the call, on the store's clock; nil if the store does not report them
	Logs    []rule.Log    // as long as States; the logs of rolling windows, which have no state
	Blocks  []rule.Block  // after the call, on the store's clock, zero where there is none; nil if the store counts no blocks
	At      int64         // the store's instant of the decision
	Now     int64         // ours, when the answer arrived
	Recheck int64         // how long a denial may be answered here; negative is as long as it lasts
	Version uint64        // from before the store was asked
}

// Learn stores what the store has answered for a key. While units or blocks of the key are
// owed, Learn ignores the answer, because the store does not know of them. If the answer
// may be older than what is known, the stricter state stays under each limit, and the
// blocks are joined. Otherwise the states and the blocks are replaced, and a block that the
// store does not have is deleted here. A block that is over is stored, too, so that a
// denial here uses the right rung. Learn locks the key's stripe.
//
// If the key is blocked by now, no unit of its lease is handed out any more.
//
// If the store does not report its states, Learn guesses them from the answers (see
// [rule.Limit.Guess]). A denial by a sliding or a rolling window whose state was guessed is
// used with care. It is only used for the number of units that were asked for, and only if
// the guess is exact for them.
func (c *Cache) Learn(key string, r Reply) {
	c.clock.observe(r.At, r.Now)
	at := c.clock.here(r.At)
	var blocks [MaxLimits]rule.Block
	blocked, ends := c.blocksOf(&r, at, &blocks)
	states, guessed := c.statesOf(&r, blocked, at)
	logs := c.logsOf(&r, blocked, at)
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.ledger.keys[p.Hash]; e != nil && e.owes() {
		if blocked != 0 {
			p.stopLease(key)
		}
		return
	}
	// If units were given back since then, the denial may already be out of date.
	// The state is still learnt, but the next request asks the store.
	valid := p.version.Load() == r.Version
	refused, retry := int64(0), int64(0)
	for i := range r.Answers {
		if wait := r.Answers[i].Retry; wait > 0 && valid {
			refused = r.N
			if wait != rule.Never {
				retry = max(retry, wait)
			}
		}
	}
	older := p.older(r.At, r.Now)
	learnt := table.Learnt{States: states[:len(r.Limits)], Logs: logs, StatesOlder: older || r.uncertain(blocked), BlocksOlder: older, Odd: c.clock.odd.Load()}
	if r.Blocks != nil {
		learnt.Blocks = blocks[:len(r.Blocks)]
	}
	if c.memory.table.Learn(p.Hash, refused, r.Now, r.Limits, learnt) != 0 {
		p.stopLease(key)
	}
	if !older {
		p.set(r.At, r.Now)
	}
	switch {
	case retry > 0 && !guessed:
		c.permit(&p, 0, at+retry, r.Now, r.Recheck)
	case retry > 0 && blocked == 0 && exact(&r, states[:], at):
		c.permit(&p, r.N, at+retry, r.Now, r.Recheck)
	case blocked != 0 && valid:
		c.permit(&p, 0, ends, r.Now, r.Recheck)
	case r.N > 0 && refused == 0 && !older:
		c.memory.permissions.drop(p.bits)
	}
}

// permit permits this process to deny n units of a key, or any number of units if n is 0,
// until the denial ends, and at most for recheck unless that is negative. A permission
// ends up to 65 µs early. The permission for the whole denial may end later than the
// denial, because the table knows when the denial ends.
func (c *Cache) permit(p *keyRef, n, ends, now, recheck int64) {
	until := ends + tagMask
	if recheck >= 0 && now+recheck < ends {
		until = now + recheck
	}
	c.memory.permissions.put(p.bits, n, until, now)
}

// statesOf returns the states of a reply on our clock. guessed is true if the store
// has not reported its states and a sliding or a rolling window denies that is not blocked.
// The answer for a limit that is blocked does not show its state, so its state is fresh then,
// and the reply is uncertain.
func (c *Cache) statesOf(r *Reply, blocked uint8, at int64) (states [MaxLimits]rule.State, guessed bool) {
	for i := range r.Limits {
		l := &r.Limits[i]
		if r.States == nil && blocked>>i&1 != 0 {
			continue
		}
		if r.States == nil {
			states[i] = l.Guess(r.Answers[i], at)
			guessed = guessed || (l.Kind == rule.Sliding || l.Kind == rule.Rolling) && r.Answers[i].Retry > 0
			continue
		}
		s := r.States[i]
		most := int64(rule.MaxUnits)
		states[i] = rule.State{T: c.clock.here(s.T), A: max(0, min(s.A, most)), B: max(0, min(s.B, most))}
		if l.Kind == rule.Bucket {
			states[i].B = min(states[i].B, l.Window-1)
		}
	}
	return states, guessed
}

// logsOf returns the logs of a reply on our clock, as statesOf returns the states. It returns
// nil if no limit is a rolling window. The table keeps them, so they are new.
func (c *Cache) logsOf(r *Reply, blocked uint8, at int64) (logs []rule.Log) {
	offset := c.clock.offset.Load() // one for all instants, so that they stay in order
	for i := range r.Limits {
		l := &r.Limits[i]
		if l.Kind != rule.Rolling {
			continue
		}
		if logs == nil {
			logs = make([]rule.Log, len(r.Limits))
		}
		within := func(instant int64) int64 { // in the future, it would count for longer than its window
			return max(0, min(instant, r.Now))
		}
		switch {
		case r.States != nil:
			logs[i] = r.Logs[i].Map(func(instant int64) int64 { return within(before(instant, offset)) })
		case blocked>>i&1 == 0:
			guess := l.GuessLog(r.Answers[i], at, r.N)
			logs[i] = guess.Map(within)
		}
	}
	return logs
}

// uncertain reports whether the states are guessed and may count for less than the
// store's own. That can happen for a sliding window. It can also happen for a counter
// that is at its limit: it may really be above the limit, if it was filled under a
// higher one. The answer for a blocked counter says nothing about its units. Then the state
// that is known here is the better one.
func (r *Reply) uncertain(blocked uint8) bool {
	for i, a := range r.Answers {
		if r.States == nil && (a.Remaining == 0 || blocked != 0 || r.Limits[i].Kind == rule.Sliding) {
			return true
		}
	}
	return false
}

// exact reports whether the guessed states deny for exactly as long as the
// store has answered. The guess of a log does.
func exact(r *Reply, states []rule.State, at int64) bool {
	for i := range r.Limits {
		if r.Answers[i].Retry > 0 && r.Limits[i].Kind != rule.Rolling {
			if _, a := r.Limits[i].Take(states[i], at, r.N); a.Retry != r.Answers[i].Retry {
				return false
			}
		}
	}
	return true
}

// maxOvertaken is how far answers can overtake each other, in nanoseconds. If the
// store's clock is behind by more than that, it is the clock of another server.
const maxOvertaken = 1_000_000_000

// older reports whether an answer from the store's instant at may be older than what is
// known. The key's stripe must be locked.
func (m *mark) older(at, now int64) bool {
	return m.learnt != 0 && at <= m.newest && now-m.learnt < maxOvertaken
}

func (m *mark) set(at, now int64) { m.newest, m.learnt = at, now }

// countedHere notes that units of a key were counted here at now. So answers that are
// already in flight, and do not include these units, are treated as older. The key's
// stripe must be locked.
func (c *Cache) countedHere(p *keyRef, now int64) {
	if at, ok := c.clock.store(now); ok && (at > p.newest || now-p.learnt >= maxOvertaken) {
		p.set(at, now)
	}
}

// Taking is a request that is decided here.
type Taking struct {
	Units  int64
	UpTo   bool // take as many of the units as fit; Units is at least 1, and if none fits, the answer is a denial of one unit
	Limits []rule.Limit

	// Ladders has the ladder of each limit that starts a block when it denies, and Pending
	// has the units that may yet be given back: see [table.Blocking]. A nil Ladders starts
	// none.
	Ladders *[MaxLimits]*rule.Ladder
	Pending []rule.Pending
}

// Take takes units of key under every limit, or under none. It is for requests that the
// store cannot decide. It fills answers, which must be as long as the limits. It returns
// how many units were taken, the instant of the decision on our clock, and which limits are
// blocked. owed must be true only if the store certainly does not know of the units. A block
// that starts is owed in any case. Take locks the key's stripe.
func (c *Cache) Take(key string, t Taking, now int64, answers []rule.Answer, owed bool) (taken, at int64, marks table.Marks) {
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	var after [MaxLimits]rule.State
	var began [MaxLimits]rule.Block
	var starting *table.Blocking
	if t.Ladders != nil {
		starting = &table.Blocking{Ladders: t.Ladders, Pending: t.Pending, Began: &began, Odd: c.clock.odd.Load()}
	}
	taken, at, marks = c.memory.table.TakeBlocking(p.Hash, t.Units, now, t.UpTo, t.Limits, answers, after[:len(t.Limits)], nil, starting)
	if marks.Began != 0 {
		c.began(&p, key, marks.Began, &began, at, t.Limits)
	}
	c.took(&p, key, taken, at, t.Limits, &after, owed)
	return taken, at, marks
}

// took notes that n units were taken here: answers in flight do not include them, and
// if owed is true, the store is owed them. The key's stripe must be locked.
func (c *Cache) took(p *keyRef, key string, n, at int64, limits []rule.Limit, after *[MaxLimits]rule.State, owed bool) {
	if n == 0 {
		return
	}
	c.countedHere(p, at)
	if !owed {
		return
	}
	e := c.open(p, key)
	for i := range limits {
		e.owe(&limits[i], after[i], after[i].T, n, at)
	}
	c.changed(p, e, at)
}

// Adjust changes the counters of a key here by n units that were taken at an instant. It
// gives units back if n < 0, and charges them if n > 0. If owed is false, the store has
// made the change already. If owed is true, the store has certainly not made it, and
// Adjust adds the units to the ledger. Adjust returns how many units were charged here
// under every limit. It locks the key's stripe.
func (c *Cache) Adjust(key string, n int64, at Instant, now int64, limits []rule.Limit, owed bool) (charged int64) {
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	if n < 0 {
		p.version.Add(1)
		c.memory.permissions.drop(p.bits)
	}
	var found [MaxLimits]bool // whether there is a counter under each limit
	for i := range limits {
		if owed && n < 0 {
			_, found[i] = c.memory.table.State(p.Hash, now, &limits[i])
		}
	}
	var moves [MaxLimits]table.Move
	charged, now = c.memory.table.AdjustAt(p.Hash, n, at.Here, now, limits, moves[:len(limits)])
	if n > 0 {
		c.countedHere(&p, now)
	}
	if !owed || n == 0 {
		return charged
	}
	e := c.open(&p, key)
	for i := range limits {
		l, taken := &limits[i], min(at.Here, now)
		if n > 0 {
			window := moves[i].After.T
			if l.Kind == rule.Sliding && taken < window {
				window -= l.Window // into the older of its two windows
			}
			e.owe(l, moves[i].After, window, moves[i].Units, taken)
		} else {
			e.giveBack(l, n, Instant{taken, at.Store}, now, moves[i], found[i])
		}
	}
	c.changed(&p, e, now)
	return charged
}

// Erase deletes the counters and blocks of a key under any number of limits, all units and
// blocks of the key that are owed, and its lease. It locks the key's stripe.
func (c *Cache) Erase(key string, now int64, limits []rule.Limit) {
	p := c.at(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.version.Add(1)
	p.erases++
	c.memory.permissions.drop(p.bits)
	c.memory.table.Forget(p.Hash, now, limits)
	if e := p.ledger.keys[p.Hash]; e != nil {
		c.drop(&p.ledger, e)
	}
	delete(p.leases, key)
}

// DeniesWithout reports whether n units of a key are denied here under a limit even if all
// pending units, on our clock, are given back. It does not lock the stripe.
func (c *Cache) DeniesWithout(key string, pending []rule.Pending, n, now int64, l *rule.Limit) bool {
	return c.memory.table.DeniesWithout(c.memory.table.Hash(key, c.owner), pending, n, now, l)
}
