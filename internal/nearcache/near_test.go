package nearcache_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/nearcache"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

const (
	second = int64(time.Second)
	minute = int64(time.Minute)
)

func fixed(n, window int64) rule.Limit   { return rule.Limit{Kind: rule.Fixed, N: n, Window: window} }
func sliding(n, window int64) rule.Limit { return rule.Limit{Kind: rule.Sliding, N: n, Window: window} }
func bucket(n, per int64) rule.Limit {
	return rule.Limit{Kind: rule.Bucket, N: n, Window: per, Burst: n}
}

func taken(c *nearcache.Cache, key string, n, now int64, owed bool, limits ...rule.Limit) bool {
	var answers [8]rule.Answer
	return c.Take(key, n, limits, now, owed, answers[:len(limits)])
}

func left(c *nearcache.Cache, key string, now int64, limit rule.Limit) int64 {
	var answers [1]rule.Answer
	c.Take(key, 0, []rule.Limit{limit}, now, false, answers[:])
	return answers[0].Remaining
}

func owes(c *nearcache.Cache, key string) bool {
	owes, _ := c.Owes(key)
	return owes
}

// model is the same without bounds, locks, and lists: a map.
type model map[string]*modelKey

type modelKey struct {
	states [3]rule.State // one for each of modelLimits
	owed   [3]int64
	denied int64 // until when n units or more are
	n      int64
	told   int64
}

var modelLimits = []rule.Limit{fixed(5, minute), sliding(7, minute), bucket(6, minute)}

// TestModel does at random what a limiter does, to a cache and to a map.
func TestModel(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		c, m := nearcache.New(1_000_000), make(model)
		now := int64(1000) * minute
		answers := make([]rule.Answer, 3)
		for range 400 {
			now += r.Int64N(20 * second)
			key := fmt.Sprint(r.IntN(4))
			k := m[key]
			if k == nil {
				k = new(modelKey)
			}
			n := r.Int64N(4)
			switch r.IntN(6) {
			case 0: // the store has answered
				want := k.states
				for i, l := range modelLimits {
					want[i], answers[i] = l.Take(rule.State{T: now - r.Int64N(minute), A: r.Int64N(l.N + 1)}, now, 0)
					want[i] = l.Guess(answers[i], now)
				}
				var retry int64
				if n > 0 && r.IntN(2) == 0 {
					retry = 1 + r.Int64N(minute)
					answers[0].Retry = retry
				}
				c.Learn(key, n, modelLimits, answers, now, now, -1, c.Version(key))
				if k.owed == ([3]int64{}) {
					k.states, k.denied, k.n, k.told = want, now+retry, n, now
					m[key] = k
				}
			case 1, 2: // it has not
				owed := r.IntN(2) == 0
				states, admitted := k.states, true
				for i, l := range modelLimits {
					var a rule.Answer
					states[i], a = l.Take(k.states[i], now, n)
					admitted = admitted && a.Retry == 0
				}
				require.Equal(t, admitted, c.Take(key, n, modelLimits, now, owed, answers))
				for i, a := range answers {
					_, want := modelLimits[i].Take(k.states[i], now, n)
					if !admitted && want.Retry == 0 {
						_, want = modelLimits[i].Take(k.states[i], now, 0)
					}
					require.Equal(t, want, a)
				}
				if admitted && n > 0 {
					k.states, k.denied = states, 0
					m[key] = k
					for i := range k.owed {
						if owed {
							k.owed[i] += n
						}
					}
				}
			case 3: // units are given back, or charged
				n -= 2
				owed := r.IntN(2) == 0
				c.Adjust(key, n, modelLimits, now, owed)
				if m[key] != nil || owed {
					m[key] = k
					k.denied = 0
					for i, l := range modelLimits {
						k.states[i] = l.Adjust(k.states[i], now, n, 0)
						if owed {
							k.owed[i] += n
						}
					}
				}
			case 4:
				got, _ := c.Denied(key, n, modelLimits, now, -1, answers)
				if want := k.denied > now && n >= k.n; want != got {
					_, a := modelLimits[1].Take(k.states[1], now, n)
					require.True(t, want && a.Retry > 0, "only the store knows for how long")
				} else if got && n == k.n {
					require.Equal(t, k.denied-now, answers[0].Retry)
				}
			default: // the store is told, or not
				debts := c.Collect(key, now)
				for i, d := range debts {
					require.Contains(t, modelLimits, d.Limit)
					require.LessOrEqual(t, d.At, now, i)
				}
				sum := map[rule.Limit]int64{}
				for _, d := range debts {
					sum[d.Limit] += d.Units
				}
				for i, l := range modelLimits {
					if k.owed[i] <= 0 {
						require.Equal(t, k.owed[i], sum[l])
					} else {
						_, a := l.Take(k.states[i], now, 0)
						require.LessOrEqual(t, sum[l], k.owed[i])
						require.GreaterOrEqual(t, sum[l], min(k.owed[i], l.Cap()-a.Remaining), "what still counts is told")
					}
				}
				if debts != nil {
					require.True(t, owes(c, key))
					require.Nil(t, c.Collect(key, now))
				}
				if r.IntN(2) == 0 {
					c.Settle(key, nil)
					k.owed = [3]int64{}
				} else {
					c.Settle(key, debts)
					for i, l := range modelLimits {
						k.owed[i] = sum[l]
					}
				}
			}
			debtors := 0
			for key, k := range m {
				if k.owed != ([3]int64{}) {
					debtors++
				}
				require.Equal(t, k.owed != ([3]int64{}), owes(c, key))
			}
			require.Equal(t, debtors, c.Debts())
			require.Len(t, c.Debtors(now), debtors)
		}
		for key := range m {
			c.Collect(key, now)
			c.Settle(key, nil)
		}
		require.Zero(t, c.Debts())
		require.Zero(t, c.Lost())
		for key := range m {
			c.Forget(key)
			for _, l := range modelLimits {
				require.Equal(t, l.N, left(c, key, now, l))
			}
		}
	}
}

// TestEviction: who has spent all goes last, who owes something before that, and else by use.
func TestEviction(t *testing.T) {
	limit := fixed(3, minute)
	c := nearcache.New(64 * 100) // a hundred in each shard
	for i := range 10 {
		for range 3 {
			taken(c, fmt.Sprint("spent", i), 1, 0, false, limit)
		}
		taken(c, fmt.Sprint("owing", i), 2, 0, true, limit)
		taken(c, fmt.Sprint("used", i), 1, 0, false, limit)
		taken(c, fmt.Sprint("idle", i), 1, 0, false, limit)
	}
	for i := range 100_000 {
		taken(c, fmt.Sprint("flood", i), 1, second, false, limit)
		for i := range 10 {
			if key := fmt.Sprint("used", i); left(c, key, second, limit) > 0 {
				var answers [1]rule.Answer
				c.Learn(key, 1, []rule.Limit{limit}, []rule.Answer{{Remaining: 2, Reset: minute}}, int64(i), second, -1, 0)
				c.Denied(key, 1, []rule.Limit{limit}, second, -1, answers[:])
			}
		}
	}
	for i := range 10 {
		require.EqualValues(t, 0, left(c, fmt.Sprint("spent", i), second, limit))
		require.EqualValues(t, 1, left(c, fmt.Sprint("owing", i), second, limit))
		require.EqualValues(t, 2, left(c, fmt.Sprint("used", i), second, limit))
		require.EqualValues(t, 3, left(c, fmt.Sprint("idle", i), second, limit))
	}
	require.Zero(t, c.Lost())

	// Debts are not for ever in the way of those that have spent all.
	for i := range 100_000 {
		taken(c, fmt.Sprint("debt", i), 1, second, true, limit)
	}
	for i := range 10 {
		require.EqualValues(t, 0, left(c, fmt.Sprint("spent", i), second, limit))
	}
	require.LessOrEqual(t, c.Debts(), 6400)
	require.EqualValues(t, 100_000+10-c.Debts(), c.Lost())

	// Nor are those that had spent all, when that is over.
	for i := range 10_000 {
		taken(c, fmt.Sprint("attack", i), 3, 2*second, false, limit)
	}
	for i := range 20_000 {
		taken(c, fmt.Sprint("later", i), 1, 10*minute, false, limit)
	}
	kept := 0
	for i := range 6400 {
		if left(c, fmt.Sprint("later", 20_000-1-i), 10*minute, limit) == 2 {
			kept++
		}
	}
	require.Greater(t, kept, 3200)
}

// TestManyWindows: a key keeps eight counters, those of the last call among them.
func TestManyWindows(t *testing.T) {
	c := nearcache.New(6400)
	windows := func(from, to int64) (limits []rule.Limit) {
		for w := from; w < to; w++ {
			limits = append(limits, fixed(5, (1+w)*minute))
		}
		return limits
	}
	require.True(t, taken(c, "key", 1, 0, true, windows(0, 8)...))
	require.True(t, taken(c, "key", 1, 0, true, append(windows(0, 1), windows(8, 15)...)...))
	require.EqualValues(t, 3, left(c, "key", 0, windows(0, 1)[0]))
	require.EqualValues(t, 4, left(c, "key", 0, windows(14, 15)[0]))
	require.EqualValues(t, 5, left(c, "key", 0, windows(7, 8)[0]))
	require.EqualValues(t, 7, c.Lost())
	c.Adjust("key", 2, windows(20, 28), 0, false)
	require.Zero(t, c.Debts(), "all counters that owed something are gone")
	require.False(t, owes(c, "key"))
	require.EqualValues(t, 15, c.Lost())
	c.Learn("key", 1, windows(30, 38), make([]rule.Answer, 8), 1, 1, -1, c.Version("key"))
	require.Zero(t, c.Debts())
}

// TestSettling: while debts are being told, those that wait are told when that is over.
func TestSettling(t *testing.T) {
	limit := fixed(9, minute)
	for name, end := range map[string]func(c *nearcache.Cache, debts []nearcache.Debt){
		"told":      func(c *nearcache.Cache, debts []nearcache.Debt) { c.Settle("key", nil) },
		"not told":  func(c *nearcache.Cache, debts []nearcache.Debt) { c.Settle("key", debts) },
		"forgotten": func(c *nearcache.Cache, debts []nearcache.Debt) { c.Forget("key"); c.Settle("key", debts) },
		"evicted": func(c *nearcache.Cache, debts []nearcache.Debt) {
			for i := range 10_000 {
				taken(c, fmt.Sprint(i), 9, 0, false, limit)
			}
			c.Settle("key", debts)
		},
	} {
		c := nearcache.New(64)
		taken(c, "key", 2, 0, true, limit)
		owed, told := c.Owes("key")
		require.True(t, owed)
		require.Nil(t, told)
		debts := c.Collect("key", second)
		require.Equal(t, []nearcache.Debt{{Limit: limit, Units: 2, At: 0}}, debts)
		owed, told = c.Owes("key")
		require.True(t, owed)
		select {
		case <-told:
			t.Error("too early")
		default:
		}
		c.Learn("key", 1, []rule.Limit{limit}, []rule.Answer{{Remaining: 9}}, 1, second, -1, c.Version("key"))
		require.EqualValues(t, 7, left(c, "key", second, limit), "what is owed goes before what the store says")
		end(c, debts)
		<-told
		require.Equal(t, name == "not told", c.Debts() == 1, name)
		require.Equal(t, name == "not told", owes(c, "key"), name)
		require.Equal(t, name == "evicted", c.Lost() > 0, name)
	}
}

// TestLate: answers overtake each other; but a server with another clock is believed in the end.
func TestLate(t *testing.T) {
	c := nearcache.New(6400)
	limit := fixed(9, minute)
	learn := func(remaining, told, now int64) {
		c.Learn("key", 1, []rule.Limit{limit}, []rule.Answer{{Remaining: remaining, Reset: minute}}, told, now, -1, c.Version("key"))
	}
	learn(5, 100, second)
	learn(6, 99, second)
	require.EqualValues(t, 5, left(c, "key", second, limit))
	learn(4, 101, second)
	require.EqualValues(t, 4, left(c, "key", second, limit))
	learn(8, 50, second+second/2)
	require.EqualValues(t, 4, left(c, "key", second, limit))
	learn(7, 50, 2*second)
	require.EqualValues(t, 7, left(c, "key", 2*second, limit))
}

// TestLongKeys are kept as hashes: they are told apart, owe like others, and are not listed.
func TestLongKeys(t *testing.T) {
	c := nearcache.New(6400)
	limit := fixed(9, minute)
	a, b := strings.Repeat("x", 1<<20), strings.Repeat("x", 1<<20-1)+"y"
	taken(c, a, 2, 0, true, limit)
	require.EqualValues(t, 9, left(c, b, 0, limit))
	require.True(t, owes(c, a))
	require.Empty(t, c.Debtors(0))
	require.Len(t, c.Collect(a, 0), 1)
	c.Settle(a, nil)
	require.Zero(t, c.Debts())
	taken(c, b, 2, 0, true, limit)
	require.Empty(t, c.Debtors(2*minute))
	require.Zero(t, c.Debts(), "what does not count any more is not owed")
}

// TestRace does everything at once, in little space.
func TestRace(t *testing.T) {
	c := nearcache.New(64 * 4)
	limits := []rule.Limit{fixed(5, minute), bucket(5, minute)}
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 2))
			answers := make([]rule.Answer, 2)
			for i := range int64(5000) {
				key, now := fmt.Sprint(r.IntN(500)), i*second/100
				switch r.IntN(8) {
				case 0:
					c.Learn(key, 1, limits, answers, now, now, second, c.Version(key))
				case 1, 2:
					c.Take(key, r.Int64N(3), limits, now, r.IntN(2) == 0, answers)
				case 3:
					c.Adjust(key, r.Int64N(5)-2, limits, now, r.IntN(2) == 0)
				case 4:
					c.Forget(key)
				case 5:
					c.Denied(key, 1, limits, now, second, answers)
				case 6:
					c.Settle(key, c.Collect(key, now)[:0])
				default:
					if _, told := c.Owes(key); told != nil && r.IntN(2) == 0 {
						c.Debtors(now)
					}
				}
			}
		})
	}
	all.Wait()
	for _, key := range c.Debtors(0) {
		c.Collect(key, 0)
		c.Settle(key, nil)
	}
	require.Zero(t, c.Debts())
}
