package nearcache

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

func ladder(rungs ...int64) *rule.Ladder {
	l := &rule.Ladder{N: len(rungs)}
	copy(l.Rungs[:], rungs)
	return l
}

// ladders returns one ladder for all limits.
func ladders(l *rule.Ladder) *[MaxLimits]*rule.Ladder {
	var all [MaxLimits]*rule.Ladder
	for i := range all {
		all[i] = l
	}
	return &all
}

// takeBlocking takes n units under limits that all have one ladder.
func takeBlocking(c *Cache, key string, n, now int64, owed bool, l *rule.Ladder, limits ...rule.Limit) (taken int64, marks table.Marks) {
	taken, _, marks = c.Take(key, Taking{Units: n, Limits: limits, Ladders: ladders(l)}, now, make([]rule.Answer, len(limits)), owed)
	return taken, marks
}

// blockOf returns the block of a counter that is known here.
func blockOf(c *Cache, key string, now int64, l rule.Limit) rule.Block {
	b, _ := c.memory.table.BlockOf(c.at(key).Hash, now, &l)
	if b.Forgotten() <= now {
		return rule.Block{}
	}
	return b
}

// learnBlock learns an answer to a look, of a store whose clock shows the same as ours.
func learnBlock(c *Cache, key string, at, now int64, l rule.Limit, blocks ...rule.Block) {
	c.Learn(key, Reply{
		Limits: []rule.Limit{l}, Answers: []rule.Answer{{Remaining: l.N}}, States: []rule.State{{}}, Blocks: blocks,
		At: at, Now: now, Recheck: -1, Version: c.Version(key),
	})
}

func isDenied(c *Cache, key string, n, now, recheck int64, limits ...rule.Limit) bool {
	denied, _, _ := c.Denied(key, n, now, recheck, limits, make([]rule.Answer, len(limits)))
	return denied
}

// TestBlockedKeyIsDenied: a block that the store has reported denies any number of units
// until its end, under all limits of the call, and needs no counter.
func TestBlockedKeyIsDenied(t *testing.T) {
	limits := []rule.Limit{sliding(9, minute), fixed(9, minute), bucket(9, hour, 9)}
	for name, states := range map[string][]rule.State{"states": {{}, {}, {}}, "guessed": nil} {
		for _, asked := range []int64{0, 1, 5} {
			c, ends := newCache(), 2*hour
			reply := Reply{
				N: asked, Limits: limits, States: states, Answers: []rule.Answer{{Remaining: 9}, {Retry: hour, More: hour, Reset: hour}, {Remaining: 9}},
				Blocks: []rule.Block{1: {Until: ends + 7*hour, Rung: 1, Forget: hour}}, At: 8 * hour, Now: hour, Recheck: -1, Version: c.Version("key"),
			}
			reply.Blocks = append(reply.Blocks, rule.Block{})
			if asked == 0 {
				reply.Answers[1].Retry = 0
			}
			c.Learn("key", reply)
			for _, n := range []int64{1, 9, 10, rule.MaxUnits, math.MaxInt64} {
				answers := make([]rule.Answer, 3)
				denied, blocked, _ := c.Denied("key", n, ends-minute, -1, limits, answers)
				require.True(t, denied, "%s, %d asked, %d", name, asked, n)
				require.EqualValues(t, 1<<1, blocked)
				require.Equal(t, rule.Answer{Retry: minute, More: minute, Reset: minute}, rule.Answer{Retry: min(answers[1].Retry, minute), More: answers[1].More, Reset: answers[1].Reset})
				require.EqualValues(t, 9, answers[0].Remaining, "the others are unused")
			}
			require.False(t, isDenied(c, "key", 0, ends-minute, -1, limits...))
			require.False(t, isDenied(c, "other", 1, ends-minute, -1, limits...))
			require.False(t, isDenied(c, "key", 1, ends, -1, limits...))
			require.EqualValues(t, 9, left(c, "key", ends, limits[0]), "no state is guessed from a block")
			require.EqualValues(t, 9, left(c, "key", ends, limits[1]), "no state is guessed from a block")
		}
	}
}

// TestBlockKeepsKnownState: an answer without states says nothing about the units of a
// blocked counter, so what is known of them stays.
func TestBlockKeepsKnownState(t *testing.T) {
	for _, l := range []rule.Limit{fixed(9, 3*hour), sliding(9, 3*hour), bucket(9, 3*hour, 9)} {
		c := newCache()
		c.Observe(hour, hour)
		take(c, "key", 4, hour, false, l)
		before, _ := c.memory.table.State(c.at("key").Hash, hour, &l)
		c.Learn("key", Reply{
			N: 1, Limits: []rule.Limit{l}, Answers: []rule.Answer{{Retry: minute, More: minute, Reset: 2 * hour}},
			Blocks: []rule.Block{{Until: hour + 2*minute}}, At: hour + minute, Now: hour + minute, Recheck: -1,
		})
		after, _ := c.memory.table.State(c.at("key").Hash, hour+minute, &l)
		require.Equal(t, before, after)
		require.True(t, isDenied(c, "key", 1, hour+minute, -1, l))
		require.True(t, isDenied(c, "key", 2, hour+minute, -1, l), "the block denies every cost, although no state was reported")
	}
}

// TestRecheckOfBlocks: once in each recheck one caller asks the store about a blocked key.
func TestRecheckOfBlocks(t *testing.T) {
	l, ends := fixed(9, minute), hour+minute
	for name, begin := range map[string]func(c *Cache, recheck int64){
		"learnt": func(c *Cache, recheck int64) {
			c.Learn("key", Reply{
				N: 1, Limits: []rule.Limit{l}, Answers: []rule.Answer{{Retry: minute, More: minute, Reset: minute}}, States: []rule.State{{}},
				Blocks: []rule.Block{{Until: ends}}, At: hour, Now: hour, Recheck: recheck, Version: c.Version("key"),
			})
		},
		"by hand": func(c *Cache, recheck int64) {
			c.Block("key", rule.Block{Until: ends}, hour, recheck, []rule.Limit{l}, false)
		},
	} {
		for _, recheck := range []int64{second, -1, 0} {
			c, asked := newCache(), 0
			begin(c, recheck)
			for now := hour; now < ends+10*second; now += 100 * ms {
				denied := isDenied(c, "key", 1, now, recheck, l)
				require.False(t, denied && now >= ends, name)
				if !denied && now < ends {
					asked++
				}
			}
			switch recheck {
			case second:
				require.InDelta(t, 60, asked, 8, name)
			case -1:
				require.LessOrEqual(t, asked, 1, name) // the last 65 µs
			case 0:
				require.Equal(t, 600, asked, name)
			}
		}
	}
}

// TestLearnBlocks: a newer answer replaces the blocks that are known, and an answer that
// may be older is joined with them.
func TestLearnBlocks(t *testing.T) {
	l, now := fixed(9, minute), hour
	known := rule.Block{Until: now + 10*minute, Rung: 2, Forget: hour}
	for _, row := range []struct {
		name  string
		older bool
		word  []rule.Block
		want  rule.Block
	}{
		{"a later end", false, []rule.Block{{Until: now + hour, Rung: 3, Forget: 2 * hour}}, rule.Block{Until: now + hour, Rung: 3, Forget: 2 * hour}},
		{"an earlier end", false, []rule.Block{{Until: now + minute, Rung: 1}}, rule.Block{Until: now + minute, Rung: 1}},
		{"over, with its rung", false, []rule.Block{{Until: now - minute, Rung: 1, Forget: hour}}, rule.Block{Until: now - minute, Rung: 1, Forget: hour}},
		{"over and forgotten", false, []rule.Block{{Until: now - hour, Rung: 1, Forget: hour}}, rule.Block{}},
		{"none", false, []rule.Block{{}}, rule.Block{}},
		{"not counted", false, nil, known},
		{"older: a later end", true, []rule.Block{{Until: now + hour, Rung: 1, Forget: minute}}, rule.Block{Until: now + hour, Rung: 2, Forget: hour}},
		{"older: an earlier end, a higher rung", true, []rule.Block{{Until: now + minute, Rung: 3, Forget: 2 * hour}}, rule.Block{Until: now + 10*minute, Rung: 3, Forget: 2 * hour}},
		{"older: none", true, []rule.Block{{}}, known},
		{"older: forgotten", true, []rule.Block{{Until: now - 2*hour, Rung: 4, Forget: hour}}, rule.Block{Until: known.Until, Rung: 4, Forget: hour}},
	} {
		c := newCache()
		learnBlock(c, "key", now, now, l, known)
		at := now
		if !row.older {
			at++
		}
		learnBlock(c, "key", at, now+1, l, row.word...)
		require.Equal(t, row.want, blockOf(c, "key", now, l), row.name)
		require.Equal(t, row.want.Until > now, isDenied(c, "key", 3, now, -1, l), row.name)
	}
}

// TestFallbackUsesTheRung: a denial here goes on with the rung that the store has
// reported, although the block is over.
func TestFallbackUsesTheRung(t *testing.T) {
	l, blocks := fixed(1, minute), ladder(2*minute, hour, 9*hour)
	for rung, want := range []int64{2 * minute, hour, 9 * hour, 9 * hour, 9 * hour} {
		c := newCache()
		learnBlock(c, "key", hour, hour, l, rule.Block{Until: hour - second, Rung: uint8(rung), Forget: 9 * hour})
		take(c, "key", 1, hour, true, l)
		_, marks := takeBlocking(c, "key", 1, hour, true, blocks, l)
		require.EqualValues(t, 1, marks.Began)
		require.Equal(t, hour+want, blockOf(c, "key", hour, l).Until)
	}
}

// TestBlocksOfAHostileStore: no block that a store or a caller passes overflows. What is
// kept is within the bounds of the rules.
func TestBlocksOfAHostileStore(t *testing.T) {
	l := fixed(9, minute)
	extremes := []int64{math.MinInt64, math.MinInt64 + 1, -rule.MaxUntil, -1, 0, 1, hour, rule.MaxSpan, rule.MaxUntil, math.MaxInt64 - 1, math.MaxInt64}
	for _, until := range extremes {
		for _, forget := range extremes {
			for _, at := range []int64{0, 1, hour, 1000 * hour, rule.MaxUntil, -1000 * hour} {
				for _, now := range []int64{hour, 400_000 * hour} {
					c := newCache()
					b := rule.Block{Until: until, Rung: 255, Forget: forget}
					learnBlock(c, "key", at, now, l, b)
					c.Block("other", b, now, -1, []rule.Limit{l}, true)
					for _, key := range []string{"key", "other"} {
						got := blockOf(c, key, now, l)
						fail := fmt.Sprintf("%+v at %d, now %d: %+v", b, at, now, got)
						require.True(t, 0 <= got.Until && got.Until <= rule.MaxUntil, fail)
						require.True(t, 0 <= got.Forget && got.Forget <= rule.MaxSpan, fail)
						require.LessOrEqual(t, got.Rung, uint8(rule.MaxRungs), fail)
						require.Equal(t, got.Left(now) > 0, isDenied(c, key, 1, now, -1, l), fail)
						if key == "key" {
							require.Equal(t, until > at, got.Left(now) > 0, fail)
						}
					}
					if batch := c.BeginSending("other", now); batch != nil {
						known, sent := blockOf(c, "other", now, l), batch.Owed[0].Block
						require.Equal(t, known.Until, sent.Until)
						require.Equal(t, known.Rung, sent.Rung)
						require.InDelta(t, known.Forget, sent.Forget, 8) // the table rounds up
					}
				}
			}
		}
	}
}

// TestRungFromBeforeOurClock: of a block that ended before our clock began, the rung is
// remembered for exactly as long as at the store.
func TestRungFromBeforeOurClock(t *testing.T) {
	c, l := newCache(), fixed(9, minute)
	learnBlock(c, "key", 100*hour, hour, l, rule.Block{Until: 97 * hour, Rung: 2, Forget: 5 * hour}) // ended at -2 hours
	require.EqualValues(t, 2, blockOf(c, "key", 3*hour-1, l).Rung)
	require.Zero(t, blockOf(c, "key", 3*hour, l))
}

// TestOwedBlock: a block that begins here is owed to the store, also if the units before
// it are not. It is sent after the units, and until it is forgotten.
func TestOwedBlock(t *testing.T) {
	l, m, blocks := fixed(2, minute), fixed(9, hour), ladder(5*minute, 2*hour)
	for _, owed := range []bool{true, false} {
		c := newCache()
		take(c, "key", 2, hour, owed, l, m)
		taken, marks := takeBlocking(c, "key", 1, hour, owed, blocks, l, m)
		require.Zero(t, taken)
		require.Equal(t, table.Marks{Blocked: 1, Began: 1}, marks)
		block := rule.Block{Until: hour + 5*minute, Rung: 1, Forget: 2 * hour}
		require.Equal(t, block, blockOf(c, "key", hour, l))
		require.Equal(t, []string{"key"}, c.OwingKeys(hour))
		learnBlock(c, "key", hour+1, hour, l, rule.Block{})
		require.Equal(t, block, blockOf(c, "key", hour, l), "what is owed goes before what the store says")

		// It begins again, and the two are one block.
		now := block.Until
		take(c, "key", 2, now, owed, l, m)
		_, marks = takeBlocking(c, "key", 1, now, owed, blocks, l, m)
		require.EqualValues(t, 1, marks.Began)
		block = rule.Block{Until: now + 2*hour, Rung: 2, Forget: 2 * hour}

		now = block.Until + minute // its rung still counts
		require.Equal(t, []string{"key"}, c.OwingKeys(now))
		batch := c.BeginSending("key", now)
		require.Equal(t, []Owed{{Limit: l, Block: block}}, batch.Owed, "the units no longer count")
		require.Empty(t, c.OwingKeys(now))
		c.EndSending(batch, 0, now)

		now = block.Forgotten() - 1
		require.Equal(t, []string{"key"}, c.OwingKeys(now))
		require.Empty(t, c.OwingKeys(now+1))
		require.Nil(t, c.BeginSending("key", now+1))
		require.Zero(t, c.Owing())
		require.Zero(t, c.Forgotten())
	}
}

// TestOwedBlockIsDropped: a reset drops the block that is owed, also while it is sent.
func TestOwedBlockIsDropped(t *testing.T) {
	for _, sending := range []bool{false, true} {
		c, l := newCache(), fixed(1, hour)
		takeBlocking(c, "key", 1, hour, true, ladder(2*hour), l)
		takeBlocking(c, "key", 1, hour, true, ladder(2*hour), l)
		var batch *Batch
		if sending {
			batch = c.BeginSending("key", hour)
			require.Len(t, batch.Owed, 2)
		}
		c.Erase("key", hour, []rule.Limit{l})
		if sending {
			c.EndSending(batch, 0, hour)
		}
		require.Zero(t, c.Owing())
		require.Zero(t, blockOf(c, "key", hour, l))
		require.True(t, take(c, "key", 1, hour, true, l))
	}
}

// TestSettlingBlocks: of a batch of units and blocks, everything goes back that was not
// sent. A block that has begun in the meantime is joined with the one that goes back.
func TestSettlingBlocks(t *testing.T) {
	l, m := fixed(1, minute), bucket(1, hour, 1)
	first := rule.Block{Until: hour + 10*minute, Rung: 1, Forget: 3 * hour}
	hand := rule.Block{Until: hour + 2*minute, Rung: 3, Forget: hour}
	both := rule.Block{Until: first.Until, Rung: 3, Forget: 3 * hour}
	for sent := range 5 {
		for _, again := range []bool{false, true} {
			c := newCache()
			take(c, "key", 1, hour, true, l, m)
			_, marks := c.atTake("key", hour, []*rule.Ladder{ladder(10*minute, 3*hour), ladder(2 * hour)}, l, m)
			require.Equal(t, table.Marks{Blocked: 3, Began: 3}, marks)
			second := blockOf(c, "key", hour, m)
			batch := c.BeginSending("key", hour)
			all := []Owed{{Limit: l, Units: 1, At: Here(hour)}, {Limit: m, Units: 1, At: Here(hour)}, {Limit: l, Block: first}, {Limit: m, Block: second}}
			require.Equal(t, all, batch.Owed)
			if again {
				c.Block("key", hand, hour, -1, []rule.Limit{l}, true)
			}
			c.EndSending(batch, sent, hour)
			want := slices.Clone(all[sent:])
			if i := slices.IndexFunc(want, func(o Owed) bool { return o.Limit == l && o.Units == 0 }); again && i >= 0 {
				want[i].Block = both
			} else if again {
				want = append([]Owed{{Limit: l, Block: hand}}, want...)
			}
			if batch = c.BeginSending("key", hour); len(want) == 0 {
				require.Nil(t, batch)
				continue
			}
			require.Equal(t, want, batch.Owed, "%d sent, again %v", sent, again)
			c.EndSending(batch, len(want), hour)
			require.Zero(t, c.Owing())
		}
	}
}

// atTake takes one unit under limits with a ladder each.
func (c *Cache) atTake(key string, now int64, under []*rule.Ladder, limits ...rule.Limit) (taken int64, marks table.Marks) {
	var all [MaxLimits]*rule.Ladder
	copy(all[:], under)
	taken, _, marks = c.Take(key, Taking{Units: 1, Limits: limits, Ladders: &all}, now, make([]rule.Answer, len(limits)), true)
	return taken, marks
}

// TestPendingStartsNoBlock: a denial that there would not be without units that may yet be
// given back starts no block here either.
func TestPendingStartsNoBlock(t *testing.T) {
	c, l := newCache(), fixed(2, minute)
	take(c, "key", 2, hour, true, l)
	for _, row := range []struct {
		pending int64
		began   uint8
	}{{1, 0}, {0, 1}} {
		taking := Taking{Units: 1, Limits: []rule.Limit{l}, Ladders: ladders(ladder(hour)), Pending: []rule.Pending{{Units: row.pending, At: hour}}}
		_, _, marks := c.Take("key", taking, hour, make([]rule.Answer, 1), true)
		require.Equal(t, row.began, marks.Began)
	}
}

// TestTakeUpTo: as many units are taken as fit. If none fits, that is a denial, and starts
// a block.
func TestTakeUpTo(t *testing.T) {
	c, l := newCache(), fixed(5, minute)
	for _, want := range []int64{4, 1, 0, 0} {
		taken, at, marks := c.Take("key", Taking{Units: 4, UpTo: true, Limits: []rule.Limit{l}, Ladders: ladders(ladder(hour))}, hour, make([]rule.Answer, 1), true)
		require.Equal(t, want, taken)
		require.Equal(t, hour, at)
		require.Equal(t, want == 0, marks.Blocked != 0)
	}
	batch := c.BeginSending("key", hour)
	require.Equal(t, []Owed{{Limit: l, Units: 5, At: Here(hour)}, {Limit: l, Block: rule.Block{Until: 2 * hour, Rung: 1, Forget: hour}}}, batch.Owed)
}

// TestBlockByHand: a block by hand is in force at once. An answer from before it does not
// remove it, and a newer one does.
func TestBlockByHand(t *testing.T) {
	l, store := fixed(9, minute), newRemote(7*hour)
	limits := []rule.Limit{l, sliding(9, hour)}
	for _, owed := range []bool{false, true} {
		c := newCache()
		c.Learn("key", store.take("key", 1, hour, limits))
		inFlight := store.take("key", 1, hour+ms, limits)
		inFlight.Blocks, inFlight.Version = make([]rule.Block, 2), c.Version("key")
		block := rule.Block{Until: 3 * hour}
		ended, ok := c.Block("key", block, hour+2*ms, -1, limits, owed)
		require.False(t, ok, "%+v", ended)
		inFlight.Now = hour + 3*ms
		c.Learn("key", inFlight)
		for _, under := range limits {
			require.Equal(t, block, blockOf(c, "key", hour+3*ms, under))
		}
		answers := make([]rule.Answer, 2)
		denied, blocked, _ := c.Denied("key", 1, hour+3*ms, -1, limits, answers)
		require.True(t, denied)
		require.EqualValues(t, 3, blocked)
		require.Equal(t, 2*hour-3*ms, answers[0].Retry)
		require.Equal(t, owed, c.Owing() == 1)
		require.NotEqual(t, inFlight.Version, c.Version("key"))

		now := hour + minute
		if owed {
			batch := c.BeginSending("key", now)
			require.Equal(t, []Owed{{Limit: limits[0], Block: block}, {Limit: limits[1], Block: block}}, batch.Owed)
			c.EndSending(batch, 2, now)
		}
		newer := store.take("key", 1, now+ms, limits)
		newer.Blocks, newer.Version = make([]rule.Block, 2), c.Version("key")
		c.Learn("key", newer) // somebody has reset the key
		require.Zero(t, blockOf(c, "key", now+ms, l))
		require.False(t, isDenied(c, "key", 1, now+ms, -1, limits...))
	}
}

// TestAnswerFromBeforeABlock: an answer from before a block that began here does not remove
// it, even if the ledger had no room for the block.
func TestAnswerFromBeforeABlock(t *testing.T) {
	c, l := New(NewMemory(1000), 0), fixed(1, minute)
	learnBlock(c, "key", 8*hour, hour, l, rule.Block{})
	takeBlocking(c, "key", 1, hour+second, false, nil, l)
	_, marks := takeBlocking(c, "key", 1, hour+2*second, false, ladder(hour), l)
	require.EqualValues(t, 1, marks.Began)
	require.Zero(t, c.Owing())
	learnBlock(c, "key", 8*hour+second+ms, hour+2*second, l, rule.Block{})
	require.NotZero(t, blockOf(c, "key", hour+2*second, l))
	learnBlock(c, "key", 8*hour+3*second, hour+3*second, l, rule.Block{})
	require.Zero(t, blockOf(c, "key", hour+3*second, l))
}

// TestBlockUnderManyLimits: a block by hand may be under more limits than a call has, and
// is joined with the block that a counter has.
func TestBlockUnderManyLimits(t *testing.T) {
	c, limits := newCache(), []rule.Limit{}
	for i := range int64(3 * MaxLimits) {
		limits = append(limits, fixed(5, minute+i))
	}
	takeBlocking(c, "key", 5, hour, true, ladder(hour), limits[0])
	takeBlocking(c, "key", 1, hour, true, ladder(hour, 9*hour), limits[0])
	c.Block("key", rule.Block{Until: hour + minute}, hour, -1, limits, true)
	require.Equal(t, rule.Block{Until: 2 * hour, Rung: 1, Forget: 9 * hour}, blockOf(c, "key", hour, limits[0]))
	for _, l := range limits {
		require.True(t, isDenied(c, "key", 1, hour+minute-ms, -1, l))
	}
	require.Len(t, c.BeginSending("key", hour).Owed, 1+len(limits))
}

// TestBlockThatIsForgotten: a block that is forgotten by now leaves nothing behind.
func TestBlockThatIsForgotten(t *testing.T) {
	c, l := newCache(), fixed(5, minute)
	c.Block("key", rule.Block{Until: hour}, hour, -1, []rule.Limit{l}, true)
	require.Zero(t, c.Owing())
	require.Zero(t, blockOf(c, "key", hour, l))
	require.True(t, take(c, "key", 1, hour, true, l))
}

// TestNoLeaseWhileBlocked: from the instant at which a block is known, no unit of the lease
// is handed out, also not after the block. The rest is given back.
func TestNoLeaseWhileBlocked(t *testing.T) {
	const ends = 50 * ms // before the lease
	for name, block := range map[string]func(h *holder) (ended EndedLease, ok bool){
		"by hand": func(h *holder) (EndedLease, bool) {
			return h.cache.Block("key", rule.Block{Until: h.now + ends}, h.now, -1, h.limits, false)
		},
		"learnt": func(h *holder) (ended EndedLease, ok bool) {
			learnBlock(h.cache, "key", h.now, h.now, h.limits[0], rule.Block{Until: h.now + ends})
			return ended, false
		},
		"learnt while units are owed": func(h *holder) (ended EndedLease, ok bool) {
			take(h.cache, "key", 1, h.now, true, h.limits[0])
			learnBlock(h.cache, "key", h.now, h.now, h.limits[0], rule.Block{Until: h.now + ends})
			return ended, false
		},
		"begun here": func(h *holder) (ended EndedLease, ok bool) {
			_, marks := takeBlocking(h.cache, "key", 99_999, h.now, true, ladder(ends), h.limits[0])
			require.EqualValues(h.t, 1, marks.Began)
			return ended, false
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHolder(t, hourly(100_000))
			h.load(100)
			h.load(100)
			held := h.held()
			require.NotZero(t, held)
			ended, ok := block(h)
			for _, after := range []int64{0, ends - 1, ends, ends + ms} {
				_, leased, refill := h.cache.TakeLeased("key", 1, h.now+after, leaseTTL, h.limits, make([]rule.Answer, 1))
				require.False(t, leased || refill)
				require.Zero(t, h.cache.Leased("key", h.now+after, h.limits))
				require.False(t, h.cache.GiveBackLeased("key", 1, AnyTime, h.now+after, h.limits))
			}
			if all := h.cache.EndLeases(h.now, false); !ok {
				require.Len(t, all, 1)
				ended = all[0]
			} else {
				require.Empty(t, all)
			}
			require.Equal(t, held, ended.Units)
			require.Equal(t, h.limits, ended.Limits)
			require.False(t, h.cache.HasLeases())
		})
	}
}

// TestBlockedWantsNoLease: a blocked key gets no lease, and gets one after the block.
func TestBlockedWantsNoLease(t *testing.T) {
	h := newHolder(t, hourly(100_000))
	h.load(100)
	h.cache.Block("key", rule.Block{Until: h.now + ms}, h.now, -1, h.limits, false)
	require.Zero(t, h.cache.WantLease("key", h.now, leaseTTL, h.limits).Units)
	require.NotZero(t, h.cache.WantLease("key", h.now+ms, leaseTTL, h.limits).Units)
}

// TestBlockedWhileAsking: units for a lease that are granted after the key was blocked are
// given back, and so is the rest of the lease before.
func TestBlockedWhileAsking(t *testing.T) {
	for _, rest := range []bool{false, true} {
		for _, byHand := range []bool{false, true} {
			h := newHolder(t, hourly(100_000))
			h.load(100)
			h.load(100)
			for h.held() > 5 {
				_, _, refill := h.cache.TakeLeased("key", 1, h.now, leaseTTL, h.limits, make([]rule.Answer, 1))
				if refill {
					break
				}
			}
			if !rest {
				h.cache.EndLeases(0, true)
			}
			held := h.held()
			require.Equal(t, rest, held > 0)
			ask := h.cache.WantLease("key", h.now, leaseTTL, h.limits)
			require.NotZero(t, ask.Units)
			a := h.consult(ask.Units)
			back := int64(0)
			if byHand {
				ended, _ := h.cache.Block("key", rule.Block{Until: h.now + hour}, h.now, -1, h.limits, false)
				back += ended.Units
			} else {
				takeBlocking(h.cache, "key", 99_999, h.now, true, ladder(hour), h.limits[0])
			}
			got, ended, ok := h.cache.AddLease(ask, "key", h.now, h.now, leaseTTL, h.limits, []rule.Answer{a})
			require.Zero(t, got)
			require.True(t, ok)
			require.Equal(t, EndedLease{"key", ask.Units, h.cache.InstantOf(h.now), h.limits}, ended)
			for _, e := range h.cache.EndLeases(h.now, false) {
				back += e.Units
			}
			require.Equal(t, held, back)
			require.False(t, h.cache.HasLeases())
		}
	}
}

// TestClockJumpFreesNoBlock: if the store's clock has jumped ahead, a block from before the
// jump stays in force for as long as this process knows, and needs no counter. A key is
// unblocked if its block began after the jump, or if the jump does not explain the end.
func TestClockJumpFreesNoBlock(t *testing.T) {
	l, jump := fixed(9, minute), 10*minute
	for name, begin := range map[string]func(c *Cache, now, ends int64){
		"learnt": func(c *Cache, now, ends int64) {
			at, _ := c.StoreTime(now)
			learnBlock(c, "key", at, now, l, rule.Block{Until: ends + at - now})
		},
		"by hand": func(c *Cache, now, ends int64) {
			c.Block("key", rule.Block{Until: ends}, now, -1, []rule.Limit{l}, false)
		},
		"begun here": func(c *Cache, now, ends int64) {
			takeBlocking(c, "key", 9, now, true, nil, l)
			_, marks := takeBlocking(c, "key", 1, now, true, ladder(ends-now), l)
			require.NotZero(t, marks.Began)
		},
	} {
		t.Run(name, func(t *testing.T) {
			still := func(c *Cache, now int64) bool {
				answers := make([]rule.Answer, 1)
				is, blocked := c.StillDenied("key", 1, now, []rule.Limit{l}, answers)
				require.Equal(t, is, answers[0].Retry > 0)
				require.Equal(t, is, blocked == 1)
				return is
			}
			now, ends := hour, hour+30*minute
			c := newCache()
			c.Observe(now+hour, now)
			begin(c, now, ends)
			require.False(t, still(c, now), "no clock has jumped")
			c.Observe(now+hour+jump, now)
			require.False(t, still(c, ends-jump-1), "the jump is not long enough")
			require.True(t, still(c, ends-jump))
			require.True(t, still(c, ends-1))
			require.False(t, still(c, ends))

			c = newCache()
			c.Observe(now+hour, now)
			c.Observe(now+hour+jump, now)
			begin(c, now, ends)
			require.False(t, still(c, ends-1), "it began after the jump")
		})
	}
}

// TestBlocksInABoundedLedger: blocks count as bytes of the ledger. A key that is dropped
// with its block is counted, unless the block is forgotten.
func TestBlocksInABoundedLedger(t *testing.T) {
	const bytes = 1 << 20
	var limits []rule.Limit
	for i := range int64(3) {
		limits = append(limits, fixed(5, hour+i))
	}
	fill := func(c *Cache, prefix string, n int, now int64) {
		for i := range n {
			c.Block(fmt.Sprint(prefix, i), rule.Block{Until: now + hour, Rung: 1, Forget: hour}, now, -1, limits, true)
		}
	}
	const n = 10_000
	c := New(NewMemory(1<<17), bytes)
	before := liveHeap()
	fill(c, "a", n, hour)
	withLedger := liveHeap() - before
	without := New(NewMemory(1<<17), 0)
	before = liveHeap()
	fill(without, "a", n, hour)
	got := withLedger - (liveHeap() - before)
	t.Logf("%d keys in %d bytes of %d", c.Owing(), got, bytes)
	require.LessOrEqual(t, got, int64(bytes*5/4))
	require.Equal(t, n, c.Owing()+int(c.Forgotten()))
	require.Greater(t, c.Owing(), 2000)
	require.Zero(t, without.Owing())

	lost := c.Forgotten()
	fill(c, "b", n, 3*hour) // the blocks of before are forgotten
	require.Less(t, c.Forgotten()-lost, uint64(n-c.Owing()+n/10))
	for s := range c.made {
		sum := 0
		for _, e := range s.ledger.keys {
			sum += e.bytes
			require.Equal(t, entryBytes+len(e.key)+blockBytes*cap(e.blocks), e.bytes)
		}
		require.Equal(t, sum, s.ledger.lists[0].bytes)
	}

	long := strings.Repeat("x", 2*longKey)
	fill(c, long, 1, 3*hour)
	owes, _ := c.Owes(long + "0")
	require.True(t, owes)
	require.NotContains(t, c.OwingKeys(3*hour), long+"0")
	require.Len(t, c.BeginSending(long+"0", 3*hour).Owed, 3)
}

// TestBlocksAllocateNothing: a denial by a block allocates nothing.
func TestBlocksAllocateNothing(t *testing.T) {
	c, limits := newCache(), []rule.Limit{fixed(1, hour), sliding(1, hour)}
	c.Block("key", rule.Block{Until: 3 * hour}, hour, -1, limits, false)
	answers, under := make([]rule.Answer, 2), ladders(ladder(hour))
	for name, call := range map[string]func(){
		"Denied":     func() { c.Denied("key", 1, hour, -1, limits, answers) },
		"Take":       func() { c.Take("key", Taking{Units: 1, Limits: limits, Ladders: under}, hour, answers, true) },
		"TakeLeased": func() { c.TakeLeased("key", 1, hour, second, limits, answers) },
	} {
		require.Zero(t, testing.AllocsPerRun(100, call), name)
	}
}

// reference is a slow cache with blocks: maps of states and blocks, which are joined one by
// one.
type reference struct {
	*remote
	known, owed map[counter]rule.Block
	sending     map[counter]rule.Block
}

func idOf(key string, l rule.Limit) counter { return counter{key, l.Kind, l.Window} }

// joinAt joins a block into the one of a counter.
func joinAt(m map[counter]rule.Block, id counter, b rule.Block, now int64) {
	if was := at(m, id, now); was != (rule.Block{}) {
		b = rule.Block{Until: max(b.Until, was.Until), Rung: max(b.Rung, was.Rung), Forget: max(b.Forget, was.Forget)}
	}
	m[id] = b
}

// at returns the block of a counter, or none if it is forgotten.
func at(m map[counter]rule.Block, id counter, now int64) rule.Block {
	if b := m[id]; b.Until+b.Forget > now {
		return b
	}
	return rule.Block{}
}

// take is Cache.Take.
func (m *reference) take(key string, n, now int64, upTo bool, limits []rule.Limit, ladders *[MaxLimits]*rule.Ladder) (taken int64, answers []rule.Answer, marks table.Marks) {
	if upTo {
		for _, a := range m.remote.take(key, 0, now, limits).Answers {
			n = min(n, a.Remaining)
		}
		n = max(n, 1)
	}
	for i, l := range limits {
		if at(m.known, idOf(key, l), now).Until > now {
			marks.Blocked |= 1 << i
		}
	}
	if marks.Blocked != 0 {
		for i, l := range limits {
			state := m.states[idOf(key, l)]
			_, a := l.Take(state, now, n)
			if a.Retry == 0 {
				_, a = l.Take(state, now, 0)
			}
			if marks.Blocked>>i&1 != 0 {
				a = a.Over(m.known[idOf(key, l)].Until-now, n)
			}
			answers = append(answers, a)
		}
		return 0, answers, marks
	}
	reply := m.remote.take(key, n, now, limits)
	if !denied(reply) {
		return n, reply.Answers, marks
	}
	if slices.ContainsFunc(reply.Answers, func(a rule.Answer) bool { return a.Retry == rule.Never }) {
		return 0, reply.Answers, marks
	}
	for i, l := range limits {
		if ladders == nil || ladders[i] == nil || reply.Answers[i].Retry == 0 {
			continue
		}
		id, ladder := idOf(key, l), ladders[i]
		rung := int(at(m.known, id, now).Rung)
		lasts := max(reply.Answers[i].Retry, ladder.Rungs[min(rung, ladder.N-1)])
		b := rule.Block{Until: now + lasts, Rung: uint8(min(rung+1, rule.MaxRungs)), Forget: max(l.Window, ladder.Rungs[ladder.N-1])}
		m.known[id] = b
		joinAt(m.owed, id, b, now)
		reply.Answers[i] = reply.Answers[i].Over(lasts, n)
		marks.Blocked |= 1 << i
		marks.Began |= 1 << i
	}
	return 0, reply.Answers, marks
}

// owes returns the blocks of a key in one of the maps that are not forgotten.
func owes(m map[counter]rule.Block, key string, now int64) map[counter]rule.Block {
	all := make(map[counter]rule.Block)
	for id := range m {
		if b := at(m, id, now); id.key == key && b != (rule.Block{}) {
			all[id] = b
		}
	}
	return all
}

// TestBlocksAgainstReference runs random histories: requests that are decided here, blocks
// by hand, answers of the store in any order, settling, and resets.
func TestBlocksAgainstReference(t *testing.T) {
	all := []rule.Limit{fixed(2, 10*second), sliding(3, 7*second), bucket(1, 5*second, 2), fixed(5, minute)}
	some := []*rule.Ladder{nil, ladder(second), ladder(second, 40*second), ladder(5*second, 5*second, 20*second, minute)}
	const storeOffset = 100 * hour
	for seed := range uint64(*seeds / 5) {
		r := rand.New(rand.NewPCG(seed, 9))
		c, now := newCache(), hour
		m := &reference{newRemote(0), map[counter]rule.Block{}, map[counter]rule.Block{}, map[counter]rule.Block{}}
		c.Observe(now+storeOffset, now)
		batches := make(map[string]*Batch)
		for step := range 300 {
			now += []int64{0, 0, 1, r.Int64N(second), r.Int64N(5 * second), r.Int64N(40 * second)}[r.IntN(6)]
			key, limits := fmt.Sprint(r.IntN(2)), []rule.Limit{}
			for _, i := range r.Perm(len(all))[:1+r.IntN(len(all))] {
				limits = append(limits, all[i])
			}
			someBlock := func() rule.Block {
				return rule.Block{Until: now - 10*second + r.Int64N(40*second), Rung: uint8(r.IntN(rule.MaxRungs + 1)), Forget: 8 * r.Int64N(minute/8)}
			}
			op := r.IntN(12)
			fail := fmt.Sprintf("seed %d step %d, operation %d of %q", seed, step, op, key)
			switch op {
			case 0, 1:
				b, owed := someBlock(), r.IntN(2) == 0
				c.Block(key, b, now, -1, limits, owed)
				for _, l := range limits {
					joinAt(m.known, idOf(key, l), b, now)
					if owed && b.Forgotten() > now {
						joinAt(m.owed, idOf(key, l), b, now)
					}
				}
				if b.Until > now {
					require.True(t, isDenied(c, key, 1+r.Int64N(9), now, -1, limits...) || b.Until-now <= tagMask, fail)
				}
			case 2, 3:
				reply := Reply{N: 1, Limits: limits, At: now + storeOffset - r.Int64N(2), Now: now, Recheck: -1, Version: c.Version(key)}
				ends := int64(0)
				for _, l := range limits {
					b, state := rule.Block{}, m.states[idOf(key, l)]
					_, a := l.Take(state, now, 1)
					if r.IntN(3) > 0 {
						b = someBlock()
						if b.Left(now) > 0 {
							a = a.Over(b.Left(now), 1)
							ends = max(ends, b.Until)
						}
						b.Until += storeOffset
					}
					state.T += storeOffset
					reply.Answers, reply.States, reply.Blocks = append(reply.Answers, a), append(reply.States, state), append(reply.Blocks, b)
				}
				c.Observe(now+storeOffset, now)
				p := c.at(key)
				owing, _ := c.Owes(key)
				older := p.older(reply.At, now)
				c.Learn(key, reply)
				if owing {
					break
				}
				for i, l := range limits {
					b := reply.Blocks[i]
					if b != (rule.Block{}) {
						b.Until -= storeOffset
					}
					switch {
					case !older:
						m.known[idOf(key, l)] = b
					case b != (rule.Block{}):
						joinAt(m.known, idOf(key, l), b, now)
					}
				}
				if ends-now > tagMask {
					require.True(t, isDenied(c, key, 1+r.Int64N(9), now, -1, limits...), fail)
				}
			case 4:
				if r.IntN(4) == 0 {
					c.Erase(key, now, all)
					for _, l := range all {
						for _, of := range []map[counter]rule.Block{m.known, m.owed, m.sending} {
							delete(of, idOf(key, l))
						}
						delete(m.states, idOf(key, l))
					}
				}
			case 5:
				batch := c.BeginSending(key, now)
				if batches[key] != nil && len(owes(m.sending, key, 0)) > 0 {
					require.Nil(t, batch, fail)
				}
				if batch == nil {
					break
				}
				batches[key] = batch
				got := make(map[counter]rule.Block)
				units := true
				for _, o := range batch.Owed {
					require.True(t, units || o.Units == 0, "%s: units after a block", fail)
					if units = o.Units != 0; !units {
						got[idOf(key, o.Limit)] = o.Block
					}
				}
				require.Equal(t, owes(m.owed, key, now), got, fail)
				for id, b := range got {
					m.sending[id] = b
				}
				for _, l := range all {
					delete(m.owed, idOf(key, l))
				}
			case 6:
				batch := batches[key]
				if batch == nil {
					break
				}
				sent := r.IntN(len(batch.Owed) + 1)
				live := batch.entry.sending == batch
				c.EndSending(batch, sent, now)
				for _, o := range batch.Owed[sent:] {
					if b := o.Block; live && o.Units == 0 && b.Forgotten() > now {
						joinAt(m.owed, idOf(key, o.Limit), b, now)
					}
				}
				for _, o := range batch.Owed {
					delete(m.sending, idOf(key, o.Limit))
				}
				delete(batches, key)
			case 7:
				keys := c.OwingKeys(now)
				require.True(t, len(owes(m.owed, key, now)) == 0 || slices.Contains(keys, key), fail)
			default:
				n, upTo, under := r.Int64N(5), r.IntN(4) == 0, new([MaxLimits]*rule.Ladder)
				for i := range limits {
					under[i] = some[r.IntN(len(some))]
				}
				if r.IntN(4) == 0 {
					under = nil
				}
				if upTo {
					n++
				}
				answers := make([]rule.Answer, len(limits))
				taken, _, marks := c.Take(key, Taking{Units: n, UpTo: upTo, Limits: limits, Ladders: under}, now, answers, r.IntN(2) == 0)
				wantTaken, want, wantMarks := m.take(key, n, now, upTo, limits, under)
				require.Equal(t, want, answers, fail)
				require.Equal(t, wantMarks, marks, fail)
				require.Equal(t, wantTaken, taken, fail)
			}
			for _, l := range all {
				require.Equal(t, at(m.known, idOf(key, l), now), blockOf(c, key, now, l), "%s: %+v", fail, l)
			}
			if len(owes(m.owed, key, now)) > 0 {
				is, _ := c.Owes(key)
				require.True(t, is, fail)
			}
			n := 1 + r.Int64N(6)
			answers := make([]rule.Answer, len(limits))
			if deny, blocked, _ := c.Denied(key, n, now, -1, limits, answers); deny {
				before := *m.remote
				before.states = make(map[counter]rule.State)
				for id, s := range m.states {
					before.states[id] = s
				}
				_, want, marks := (&reference{remote: &before, known: m.known}).take(key, n, now, false, limits, nil)
				require.Equal(t, want, answers, fail)
				require.Equal(t, marks.Blocked, blocked, fail)
				require.True(t, slices.ContainsFunc(want, func(a rule.Answer) bool { return a.Retry > 0 }), fail)
			}
		}
		require.Zero(t, c.Forgotten())
	}
}

// TestBlocksConcurrently calls all methods concurrently, with little memory, under limits
// with ladders.
func TestBlocksConcurrently(t *testing.T) {
	memory := NewMemory(300)
	caches := []*Cache{New(memory, 1<<16), New(memory, 1<<14)}
	limits := []rule.Limit{fixed(5, minute), bucket(5, minute, 5), sliding(5, second)}
	under := ladders(ladder(second, minute))
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 4))
			answers := make([]rule.Answer, len(limits))
			for i := range int64(4000) {
				c, key, now := caches[r.IntN(2)], fmt.Sprint(r.IntN(200)), hour+i*second/100
				block := rule.Block{Until: now + r.Int64N(second), Rung: uint8(r.IntN(4)), Forget: r.Int64N(second)}
				switch r.IntN(10) {
				case 0, 1:
					reply := newRemote(hour).take(key, 1+r.Int64N(7), now, limits)
					reply.Blocks = []rule.Block{block, {}, block}
					c.Learn(key, reply)
				case 2, 3, 4:
					c.Take(key, Taking{Units: 1 + r.Int64N(3), UpTo: r.IntN(2) == 0, Limits: limits, Ladders: under}, now, answers, r.IntN(2) == 0)
				case 5:
					c.Block(key, block, now, second, limits, r.IntN(2) == 0)
				case 6:
					c.Erase(key, now, limits)
				case 7:
					c.Denied(key, 1, now, second, limits, answers)
					c.StillDenied(key, 1, now, limits, answers)
				case 8:
					if b := c.BeginSending(key, now); b != nil {
						c.EndSending(b, r.IntN(len(b.Owed)+1), now)
					}
					c.OwingKeys(now)
				default:
					if _, ok, _ := c.TakeLeased(key, 3, now, second, limits, answers); !ok {
						if req := c.WantLease(key, now, second, limits); req.Units > 0 {
							c.AddLease(req, key, now, now, second, limits, answers)
						}
					}
					c.EndLeases(now, r.IntN(9) == 0)
				}
			}
		})
	}
	all.Wait()
	for _, c := range caches {
		require.Empty(t, c.OwingKeys(100*hour))
		require.Zero(t, c.Owing())
		for s := range c.made {
			for _, q := range s.ledger.lists {
				require.True(t, q.bytes == 0 && q.oldest == nil && q.newest == nil)
			}
		}
	}
}
