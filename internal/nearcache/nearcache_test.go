package nearcache

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

var seeds = flag.Int("seeds", 1500, "how many random histories of a store that comes and goes")

const (
	ms     = int64(time.Millisecond)
	second = int64(time.Second)
	minute = int64(time.Minute)
	hour   = int64(time.Hour)
)

func fixed(n, window int64) rule.Limit   { return rule.Limit{Kind: rule.Fixed, N: n, Window: window} }
func sliding(n, window int64) rule.Limit { return rule.Limit{Kind: rule.Sliding, N: n, Window: window} }
func bucket(n, per, burst int64) rule.Limit {
	return rule.Limit{Kind: rule.Bucket, N: n, Window: per, Burst: burst}
}

func newCache() *Cache { return New(NewMemory(1<<16), 1<<20) }

func take(c *Cache, key string, n, now int64, owed bool, limits ...rule.Limit) bool {
	taken, _, _ := c.Take(key, Taking{Units: n, Limits: limits}, now, make([]rule.Answer, len(limits)), owed)
	return taken == n
}

func left(c *Cache, key string, now int64, l rule.Limit) int64 {
	var answers [1]rule.Answer
	c.Take(key, Taking{Limits: []rule.Limit{l}}, now, answers[:], false)
	return answers[0].Remaining
}

// remote is a store: a map with its own clock.
type remote struct {
	states      map[counter]rule.State
	clockOffset int64
}

type counter struct {
	key    string
	kind   rule.Kind
	window int64
}

func newRemote(clockOffset int64) *remote {
	return &remote{states: make(map[counter]rule.State), clockOffset: clockOffset}
}

func (r *remote) take(key string, n, now int64, limits []rule.Limit) Reply {
	at := now + r.clockOffset
	reply := Reply{N: n, Limits: limits, At: at, Now: now, Recheck: -1}
	admitted := true
	for _, l := range limits {
		_, a := l.Take(r.states[counter{key, l.Kind, l.Window}], at, n)
		reply.Answers, admitted = append(reply.Answers, a), admitted && a.Retry == 0
	}
	for i, l := range limits {
		id := counter{key, l.Kind, l.Window}
		if admitted {
			r.states[id], _ = l.Take(r.states[id], at, n)
		} else if reply.Answers[i].Retry == 0 {
			_, reply.Answers[i] = l.Take(r.states[id], at, 0)
		}
		reply.States = append(reply.States, r.states[id])
	}
	return reply
}

func (r *remote) adjust(key string, n, at, now int64, limits ...rule.Limit) (charged int64) {
	charged = max(0, n)
	for _, l := range limits {
		id := counter{key, l.Kind, l.Window}
		before := r.states[id]
		r.states[id] = l.Adjust(before, now+r.clockOffset, n, now+r.clockOffset-min(at, now+r.clockOffset))
		charged = min(charged, l.Charged(before, r.states[id], now+r.clockOffset))
	}
	return charged
}

func denied(reply Reply) bool {
	return slices.ContainsFunc(reply.Answers, func(a rule.Answer) bool { return a.Retry > 0 })
}

// settle sends what is owed of a key.
func settle(c *Cache, r *remote, key string, now int64) {
	b := c.BeginSending(key, now)
	if b == nil {
		return
	}
	for i := range b.Owed {
		at, known := c.SendAt(&b.Owed[i])
		if !known {
			at = math.MaxInt64
		}
		r.adjust(key, b.Owed[i].Units, at, now, b.Owed[i].Limit)
	}
	c.EndSending(b, len(b.Owed), now)
}

// TestManyWindows: every limit is enforced here, however many windows a key is used
// under.
func TestManyWindows(t *testing.T) {
	c := newCache()
	admitted := 0
	for range 50 {
		for i := range int64(12) {
			if take(c, "key", 1, hour, true, fixed(3, minute+i), bucket(1, hour+i, 3)) {
				admitted++
			}
		}
	}
	require.Equal(t, 12*3, admitted)
	r := newRemote(7)
	c.Observe(hour+7, hour)
	settle(c, r, "key", hour)
	require.Zero(t, c.Owing())
	require.Len(t, r.states, 24)
	for id, s := range r.states {
		require.EqualValues(t, 3, s.A, "%+v", id)
	}
}

// TestChargeAboveWhatIsLeft: units without room are not charged, and giving them back
// gives nothing.
func TestChargeAboveWhatIsLeft(t *testing.T) {
	for _, l := range []rule.Limit{fixed(5, hour), sliding(5, hour), bucket(1, hour, 5)} {
		c, r := newCache(), newRemote(100*hour)
		limits := []rule.Limit{l, fixed(100, 2*hour)}
		require.True(t, take(c, "key", 2, hour, true, limits...))
		require.EqualValues(t, 3, c.Adjust("key", 38, AnyTime, hour, limits, true))
		require.False(t, take(c, "key", 1, hour, true, limits...))
		c.Adjust("key", -3, AnyTime, hour, limits, true)
		require.EqualValues(t, 3, left(c, "key", hour, l))
		c.Observe(101*hour, hour)
		settle(c, r, "key", hour)
		require.EqualValues(t, 2, r.states[counter{"key", l.Kind, l.Window}].A)
		require.EqualValues(t, 37, r.states[counter{"key", rule.Fixed, 2 * hour}].A, "each limit is charged what there was room for under it")
	}
}

// TestGivenBackLate: units of a window that has ended are not given back into the next
// one, neither here nor at the store.
func TestGivenBackLate(t *testing.T) {
	for name, at := range map[string]func(c *Cache) Instant{
		"decided here":         func(c *Cache) Instant { return Here(hour) },
		"decided by the store": func(c *Cache) Instant { return c.InstantOf(101 * hour) },
	} {
		c, r := newCache(), newRemote(100*hour)
		l := fixed(3, minute)
		c.Observe(101*hour, hour)
		taken := at(c)
		require.True(t, take(c, "key", 3, hour, taken.Store == unknown, l))
		now := hour + minute
		require.True(t, take(c, "key", 3, now, true, l))
		c.Adjust("key", -3, taken, now, []rule.Limit{l}, true)
		require.False(t, take(c, "key", 1, now, true, l), name)
		settle(c, r, "key", now)
		require.EqualValues(t, 3, r.states[counter{"key", rule.Fixed, minute}].A, name)
	}
}

// TestGivenBackAfterSettling: units that were decided here and sent to the store since
// are given back to the store. Units that the store never had are not.
func TestGivenBackAfterSettling(t *testing.T) {
	for _, l := range []rule.Limit{fixed(9, hour), sliding(9, hour), bucket(1, hour, 9)} {
		limits := []rule.Limit{l}
		id := counter{"key", l.Kind, l.Window}
		c, r := newCache(), newRemote(100*hour)
		c.Observe(101*hour, hour)
		take(c, "key", 4, hour, true, l)
		settle(c, r, "key", hour)
		take(c, "key", 2, hour, true, l)
		c.Adjust("key", -3, Here(hour), hour, limits, true)
		settle(c, r, "key", hour)
		require.EqualValues(t, 3, r.states[id].A, "%+v", l)
		require.EqualValues(t, 6, left(c, "key", hour, l), "%+v", l)

		// The counter is gone here, and so is the record: nothing is known of the units.
		c.Erase("key", hour, limits)
		c.Adjust("key", -3, Here(hour), hour, limits, true)
		require.Zero(t, c.Owing(), "%+v", l)
		c.Adjust("key", -1, c.InstantOf(101*hour), hour, limits, true)
		settle(c, r, "key", hour)
		require.EqualValues(t, 2, r.states[id].A, "%+v: the store has counted them", l)
	}
}

// TestLongKeys: a long key shares nothing with any other key, and is settled when a
// caller passes it again.
func TestLongKeys(t *testing.T) {
	c, r, l := newCache(), newRemote(0), fixed(9, hour)
	a := strings.Repeat("x", 700)
	take(c, a, 2, hour, true, l)
	require.EqualValues(t, 9, left(c, a[:699]+"y", hour, l))
	require.Empty(t, c.OwingKeys(hour), "it is sent when a caller comes with it")
	c.Observe(hour, hour)
	settle(c, r, a, hour)
	require.EqualValues(t, 2, r.states[counter{a, rule.Fixed, hour}].A)
	require.Zero(t, c.Owing())
}

// TestAwayIsMemory: while the store is unavailable, decisions here are the same as
// decisions by a map of states, to the nanosecond and under any number of windows.
func TestAwayIsMemory(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		c, m := newCache(), newRemote(0)
		now := hour
		instants := []int64{0, now, math.MaxInt64}
		for step := range 300 {
			now += []int64{0, 0, 1, r.Int64N(second), r.Int64N(20 * second)}[r.IntN(5)]
			key, limits := fmt.Sprint(r.IntN(3)), randomLimits(r)
			fail := fmt.Sprintf("seed %d step %d", seed, step)
			switch n := r.Int64N(5); r.IntN(6) {
			case 0:
				n = 2*n - 5
				at := instants[r.IntN(len(instants))]
				where := Here(at)
				if at == math.MaxInt64 {
					where = AnyTime
				}
				require.Equal(t, m.adjust(key, n, at, now, limits...), c.Adjust(key, n, where, now, limits, true), fail)
			case 1:
				if r.IntN(5) == 0 {
					c.Erase(key, now, limits)
					for _, l := range limits {
						delete(m.states, counter{key, l.Kind, l.Window})
					}
				}
			default:
				answers := make([]rule.Answer, len(limits))
				taken, at, _ := c.Take(key, Taking{Units: n, Limits: limits}, now, answers, true)
				admitted := taken == n
				want := m.take(key, n, now, limits)
				require.Equal(t, want.Answers, answers, fail)
				require.Equal(t, !denied(want), admitted, fail)
				require.Equal(t, now, at, fail)
				if n > 0 && admitted {
					instants = append(instants, at)
				}
			}
		}
		require.Zero(t, c.Forgotten())
	}
}

func randomLimits(r *rand.Rand) (limits []rule.Limit) {
	for _, i := range r.Perm(14)[:1+r.IntN(4)] {
		n, w := 1+r.Int64N(6), second*int64(1+3*i)
		limits = append(limits, []rule.Limit{fixed(n, w), sliding(n, w), bucket(1+int64(i)%4, w, n)}[i%3])
	}
	return limits
}

// process is a limiter: a cache, and all units that it has admitted for one key under a
// limit.
type process struct {
	*Cache
	taken   []takenUnits
	pending []Reply // answers that are still in flight
}

func (p *process) learnOne(r *rand.Rand, now int64) {
	i := r.IntN(len(p.pending))
	reply := p.pending[i]
	reply.Now = now
	p.Learn("key", reply)
	p.pending = slices.Delete(p.pending, i, i+1)
}

type takenUnits struct {
	n  int64
	at int64 // here
	of Instant
}

// TestComesAndGoes: a store fails and recovers, and keeps its counters. Whatever fails,
// the units that each process admits stay within the limit's bound in every interval.
func TestComesAndGoes(t *testing.T) {
	for seed := range uint64(*seeds) {
		comesAndGoes(t, seed)
	}
}

func comesAndGoes(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 3))
	n, w := 2+r.Int64N(9), 10*second
	l := []rule.Limit{fixed(n, w), sliding(n, w), bucket(n, w, 1+r.Int64N(12))}[seed%3]
	limits := []rule.Limit{l}
	if r.IntN(3) == 0 {
		limits = append(limits, fixed(1000, hour))
	}
	store := newRemote(r.Int64N(100 * hour))
	processes := []*process{{Cache: newCache()}, {Cache: newCache()}}[:1+r.IntN(2)]
	tellsStates, up := r.IntN(2) == 0, true
	refunds := r.IntN(2) == 0
	now := 1000 * hour
	const certain, unclear = true, false
	for range 400 {
		step := []int64{0, 1, r.Int64N(second / 10), r.Int64N(second), r.Int64N(4 * second)}[r.IntN(5)]
		for _, p := range processes {
			for step > second/4 && len(p.pending) > 0 {
				p.learnOne(r, now) // no answer is later than that
			}
		}
		now += step
		if r.IntN(12) == 0 {
			up = !up
		}
		p := processes[r.IntN(len(processes))]
		if up && r.IntN(3) == 0 {
			p.Observe(now+store.clockOffset, now)
			settle(p.Cache, store, "key", now)
		}
		// Answers overtake each other. A decision here does not know of the units of an
		// answer that is still in flight. So all answers arrive before the store is known to
		// be unavailable.
		for len(p.pending) > 0 && (!up || r.IntN(2) == 0) {
			p.learnOne(r, now)
		}
		owes, _ := p.Owes("key")
		if refunds && r.IntN(4) == 0 && len(p.taken) > 0 {
			i := r.IntN(len(p.taken))
			u := p.taken[i]
			k := 1 + r.Int64N(u.n)
			if u.of == (Instant{}) {
				continue // the store may not have them
			}
			if at, known := p.SendAt(&Owed{At: u.of}); up && !owes && known {
				store.adjust("key", -k, at, now, limits...)
				p.Adjust("key", -k, u.of, now, limits, false)
			} else {
				p.Adjust("key", -k, u.of, now, limits, true)
			}
			p.taken[i].n -= k
			p.taken = slices.DeleteFunc(p.taken, func(u takenUnits) bool { return u.n == 0 })
			continue
		}
		k := 1 + r.Int64N(3)
		answers := make([]rule.Answer, len(limits))
		deny, _, version := p.Denied("key", k, now, -1, limits, answers)
		switch {
		case deny:
		case up && !owes:
			reply := store.take("key", k, now, limits)
			if !tellsStates {
				reply.States = nil
			}
			reply.Version = version
			if !denied(reply) {
				p.clock.observe(reply.At, now)
				p.taken = append(p.taken, takenUnits{k, now, p.InstantOf(reply.At)})
			}
			if r.IntN(3) == 0 {
				p.pending = append(p.pending, reply)
			} else {
				p.Learn("key", reply)
			}
		case !owes && r.IntN(4) == 0: // the answer is lost, on the way there or back
			// If the store has not counted the units, they are not sent later, because they
			// might be counted twice. So these units are admitted beyond the bound, and the
			// check leaves them out.
			counted := r.IntN(2) == 0 && !denied(store.take("key", k, now, limits))
			if taken, _, _ := p.Take("key", Taking{Units: k, Limits: limits}, now, answers, unclear); taken > 0 && counted {
				p.taken = append(p.taken, takenUnits{k, now, Instant{}})
			}
		default:
			if taken, at, _ := p.Take("key", Taking{Units: k, Limits: limits}, now, answers, certain); taken > 0 {
				p.taken = append(p.taken, takenUnits{k, now, Here(at)})
			}
		}
		for _, p := range processes {
			require.Zero(t, p.Forgotten())
		}
	}
	for _, p := range processes {
		checkBound(t, seed, l, len(processes) == 1, p.taken)
	}
}

// checkBound checks every interval that begins and ends with a decision. An interval of a
// window's length can overlap two windows. If another process has opened a window at the
// store in between, it can overlap three, because that window need not end with ours.
func checkBound(t *testing.T, seed uint64, l rule.Limit, alone bool, taken []takenUnits) {
	t.Helper()
	windows := int64(3)
	if alone {
		windows = 2
	}
	for i := range taken {
		sum := int64(0)
		for j := i; j < len(taken); j++ {
			span := taken[j].at - taken[i].at
			sum += taken[j].n
			most := windows * l.N
			if l.Kind == rule.Bucket {
				most = l.Burst + (span*l.N+l.Window-1)/l.Window
			} else if span >= l.Window {
				break
			}
			if sum > most {
				t.Fatalf("seed %d, %+v: %d units admitted within %v, at most %d are allowed: %+v", seed, l, sum, time.Duration(span), most, taken[i:j+1])
			}
		}
	}
}

// TestStoreIsSentAll: a store fails and recovers, and no other process uses the key. In
// the end the store is in the same state as if it had never failed.
func TestStoreIsSentAll(t *testing.T) {
	for seed := range uint64(600) {
		r := rand.New(rand.NewPCG(seed, 5))
		l := []rule.Limit{fixed(900, 10*second), sliding(900, 10*second), bucket(9, 10*second, 900)}[seed%3]
		limits := []rule.Limit{l}
		c, store, always := newCache(), newRemote(77*hour), newRemote(77*hour)
		now := 1000 * hour
		for range 60 {
			now += r.Int64N(2 * second)
			k := 1 + r.Int64N(3)
			if up := r.IntN(3) > 0; up {
				c.Observe(now+store.clockOffset, now)
				settle(c, store, "key", now)
				reply := store.take("key", k, now, limits)
				c.Learn("key", reply)
			} else {
				take(c, "key", k, now, true, l)
			}
			always.take("key", k, now, limits)
		}
		c.Observe(now+77*hour, now)
		settle(c, store, "key", now)
		id := counter{"key", l.Kind, l.Window}
		_, got := l.Take(store.states[id], now+store.clockOffset, 0)
		_, want := l.Take(always.states[id], now+store.clockOffset, 0)
		if l.Kind == rule.Bucket { // only whole units are sent, and a part of one has leaked
			require.LessOrEqual(t, got.Remaining, want.Remaining, "seed %d", seed)
			require.InDelta(t, want.Remaining, got.Remaining, 2, "seed %d", seed)
			continue
		}
		require.Equal(t, want, got, "seed %d, %+v", seed, l)
	}
}

// TestOvertaking: if answers overtake each other, the stricter one counts. A server whose
// clock is behind is trusted after a second.
func TestOvertaking(t *testing.T) {
	c, l := newCache(), fixed(9, minute)
	learn := func(remaining, at, now int64) {
		c.Learn("key", Reply{N: 1, Limits: []rule.Limit{l}, Answers: []rule.Answer{{Remaining: remaining, Reset: minute}}, At: at, Now: now, Recheck: -1})
	}
	learn(5, 100, second)
	learn(6, 99, second)
	require.EqualValues(t, 5, left(c, "key", second, l))
	learn(4, 98, second)
	require.EqualValues(t, 4, left(c, "key", second, l), "stricter, so it counts although it is older")
	learn(5, 100, second)
	require.EqualValues(t, 4, left(c, "key", second, l), "equal is no newer")
	learn(7, 101, second)
	require.EqualValues(t, 7, left(c, "key", second, l))
	learn(8, 50, second+second/2)
	require.EqualValues(t, 7, left(c, "key", second, l))
	learn(8, 50, 2*second+1)
	require.EqualValues(t, 8, left(c, "key", 2*second+1, l))
}

// TestTwoDenialsAtOnce: a denial is learnt even if another answer has the same instant.
func TestTwoDenialsAtOnce(t *testing.T) {
	c, store, limits := newCache(), newRemote(hour), []rule.Limit{fixed(2, minute)}
	c.Learn("key", store.take("key", 2, hour, limits))
	c.Learn("key", store.take("key", 1, hour, limits))
	deny, _, _ := c.Denied("key", 1, hour, -1, limits, make([]rule.Answer, 1))
	require.True(t, deny)
}

// TestStoreClockJumps: if the store's clock jumps, what is known here counts
// for as long as before.
func TestStoreClockJumps(t *testing.T) {
	c, store, limits := newCache(), newRemote(hour), []rule.Limit{fixed(2, 10*minute)}
	c.Learn("key", store.take("key", 2, hour, limits))
	c.Learn("key", store.take("key", 1, hour+1, limits))
	for i, clockOffset := range []int64{100 * hour, -hour, 3 * hour, hour - 2*second} {
		store.clockOffset = clockOffset
		c.Learn("other", store.take("other", 0, hour+int64(i+1)*second, limits))
		answers := make([]rule.Answer, 1)
		deny, _, _ := c.Denied("key", 1, hour+minute, -1, limits, answers)
		require.True(t, deny)
		require.EqualValues(t, 9*minute, answers[0].Retry)
		got, known := c.StoreTime(hour + minute)
		require.True(t, known)
		if i < 3 {
			require.Equal(t, hour+minute+clockOffset, got)
		}
	}
	// A clock that was set back slightly is used after two periods.
	store.clockOffset -= 2 * second
	for now := hour + minute; now < hour+4*minute; now += second {
		c.Observe(now+store.clockOffset, now)
	}
	got, _ := c.StoreTime(2 * hour)
	require.Equal(t, 2*hour+store.clockOffset, got)
}

// TestLatencyMovesNoWindow: the latency of answers varies, and the windows do not
// move.
func TestLatencyMovesNoWindow(t *testing.T) {
	c, store, l := newCache(), newRemote(hour), fixed(9, minute)
	limits := []rule.Limit{l}
	r := rand.New(rand.NewPCG(1, 1))
	c.Observe(2*hour-ms, hour) // one answer took only a millisecond
	var openedAt int64
	for i := range int64(20) {
		reply := store.take("key", 1, hour+i*ms, limits)
		reply.Now += ms + r.Int64N(50*ms)
		c.Learn("key", reply)
		state, held := c.memory.table.State(c.at("key").Hash, reply.Now, &l)
		require.True(t, held)
		if i == 0 {
			openedAt = state.T
		}
		require.Equal(t, openedAt, state.T)
		if i < 9 {
			require.GreaterOrEqual(t, c.InstantOf(reply.At).Here, state.T)
		}
	}
}

// TestRecheck: once in each recheck one caller asks the store; a denial that has ended
// needs no permission.
func TestRecheck(t *testing.T) {
	for _, recheck := range []int64{second, -1, 0} {
		c, store, limits := newCache(), newRemote(hour), []rule.Limit{fixed(1, minute)}
		store.take("key", 1, hour, limits)
		reply := store.take("key", 1, hour, limits)
		reply.Recheck = recheck
		c.Learn("key", reply)
		asked, end := 0, hour+minute
		for now := hour; now < end+10*second; now += 100 * ms {
			deny, _, _ := c.Denied("key", 1, now, recheck, limits, make([]rule.Answer, 1))
			if !deny && now < end {
				asked++
			}
			require.False(t, deny && now >= end)
		}
		switch recheck {
		case second:
			require.InDelta(t, 60, asked, 8)
		case -1:
			require.LessOrEqual(t, asked, 1) // the last 65 µs
		case 0:
			require.Equal(t, 600, asked)
		}
	}
}

// TestDenialsByCost: for another cost than the denied one, the state decides. A
// guessed state of a sliding window is not used for that.
func TestDenialsByCost(t *testing.T) {
	for name, states := range map[string]bool{"states": true, "guessed": false} {
		for _, l := range []rule.Limit{fixed(9, minute), sliding(9, minute), bucket(9, minute, 9)} {
			c, store, limits := newCache(), newRemote(hour), []rule.Limit{l}
			store.take("key", 4, hour, limits)
			store.take("key", 3, hour+70*second, limits)
			reply := store.take("key", 8, hour+80*second, limits)
			require.True(t, denied(reply))
			if !states {
				reply.States = nil
			}
			c.Learn("key", reply)
			for n := int64(0); n < 12; n++ {
				answers, want := make([]rule.Answer, 1), store.take("key", n, hour+80*second, limits).Answers
				deny, _, _ := c.Denied("key", n, hour+80*second, -1, limits, answers)
				if want[0].Retry == 0 {
					store.adjust("key", -n, math.MaxInt64, hour+80*second, l)
				}
				switch {
				case deny:
					require.Positive(t, want[0].Retry)
					require.Equal(t, want[0].Retry, answers[0].Retry, "%s, %+v, %d units", name, l, n)
				case want[0].Retry > 0 && want[0].Retry != rule.Never:
					require.True(t, !states && l.Kind == rule.Sliding, "%s, %+v, %d units", name, l, n)
				}
			}
		}
	}
}

// TestLookKeepsDenial: a look at a denied key does not change what is known about it.
func TestLookKeepsDenial(t *testing.T) {
	c, store, limits := newCache(), newRemote(hour), []rule.Limit{fixed(1, hour)}
	store.take("key", 1, hour, limits)
	c.Learn("key", store.take("key", 1, hour, limits))
	c.Learn("key", store.take("key", 0, hour+second, limits))
	c.Take("key", Taking{Limits: limits}, hour+second, make([]rule.Answer, 1), false)
	deny, _, _ := c.Denied("key", 1, hour+second, -1, limits, make([]rule.Answer, 1))
	require.True(t, deny)
}

// TestRefundEndsDenial: after units were given back here, the next request asks the
// store, even if a denial from before that arrives late.
func TestRefundEndsDenial(t *testing.T) {
	c, store, limits := newCache(), newRemote(hour), []rule.Limit{fixed(2, hour)}
	c.Learn("key", store.take("key", 2, hour, limits))
	delayed := store.take("key", 1, hour, limits)
	c.Learn("key", delayed)
	known := func() bool {
		deny, _, _ := c.Denied("key", 1, hour+second, -1, limits, make([]rule.Answer, 1))
		return deny
	}
	require.True(t, known())
	store.adjust("key", -1, math.MaxInt64, hour, limits...)
	c.Adjust("key", -1, AnyTime, hour, limits, false)
	require.False(t, known())
	delayed.Now += ms
	c.Learn("key", delayed)
	require.False(t, known())
}

// TestAllocations: a known denial allocates nothing.
func TestAllocations(t *testing.T) {
	for _, n := range []int{1, MaxLimits} {
		c, store := newCache(), newRemote(hour)
		var limits []rule.Limit
		for i := range n {
			limits = append(limits, rule.Limit{Kind: rule.Kind(1 + i%3), N: 1, Window: hour + int64(i), Burst: 1})
		}
		store.take("key", 1, hour, limits)
		reply := store.take("key", 1, hour, limits)
		answers := make([]rule.Answer, n)
		for name, call := range map[string]func(){
			"Learn":  func() { c.Learn("key", reply) },
			"Denied": func() { c.Denied("key", 1, hour, -1, limits, answers) },
			"Owes":   func() { c.Owes("key") },
			"Take":   func() { c.Take("key", Taking{Units: 1, Limits: limits}, hour, answers, true) },
		} {
			require.Zero(t, testing.AllocsPerRun(100, call), "%s under %d limits", name, n)
		}
	}
}

// TestConcurrently calls all methods concurrently, with little memory.
func TestConcurrently(t *testing.T) {
	m := NewMemory(300)
	caches := []*Cache{New(m, 1<<16), New(m, 1<<14)}
	limits := []rule.Limit{fixed(5, minute), bucket(5, minute, 5), sliding(5, second)}
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 2))
			answers := make([]rule.Answer, len(limits))
			for i := range int64(5000) {
				c, key, now := caches[r.IntN(2)], fmt.Sprint(r.IntN(500)), hour+i*second/100
				switch r.IntN(10) {
				case 0:
					c.Learn(key, newRemote(hour).take(key, 1+r.Int64N(7), now, limits))
				case 1, 2:
					c.Take(key, Taking{Units: r.Int64N(3), Limits: limits}, now, answers, r.IntN(2) == 0)
				case 3:
					c.Adjust(key, r.Int64N(5)-2, []Instant{AnyTime, Here(now - second), c.InstantOf(now)}[r.IntN(3)], now, limits, r.IntN(2) == 0)
				case 4:
					c.Erase(key, now, limits)
				case 5:
					c.Denied(key, 1, now, second, limits, answers)
				case 6:
					if b := c.BeginSending(key, now); b != nil {
						c.EndSending(b, r.IntN(len(b.Owed)+1), now)
					}
				case 7:
					if _, ok, refill := c.TakeLeased(key, 3, now, second, limits, answers); refill || !ok {
						if req := c.WantLease(key, now, second, limits); req.Units > 0 {
							c.AddLease(req, key, now, now, second, limits, answers)
						}
					}
				case 8:
					c.EndLeases(now, r.IntN(9) == 0)
				default:
					if _, settling := c.Owes(key); settling != nil && r.IntN(2) == 0 {
						c.OwingKeys(now)
					}
				}
			}
		})
	}
	all.Wait()
	for _, c := range caches {
		for _, key := range c.OwingKeys(hour) {
			settle(c, newRemote(0), key, hour)
		}
		require.Zero(t, c.Owing())
		for s := range c.made {
			for _, q := range s.ledger.lists {
				require.True(t, q.bytes == 0 && q.oldest == nil && q.newest == nil)
			}
		}
	}
}
