package redisscript_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// holdModel runs calls about the holds of one key here and at a server, by a clock of the
// test's own; see shim_test.lua.
type holdModel struct {
	*testing.T
	c     *redis.Client
	now   int64
	holds rule.Holds
}

var holdScript = redis.NewScript(shim + redisscript.Hold.Text.(string))

// micro is a holding in microseconds, for package rule to count in the server's unit.
func micro(h rule.Holding) *rule.Holding {
	h.Lasts /= 1000
	return &h
}

// call carries out a call at the server, and then here at the instant at which the server has.
func (m *holdModel) call(h rule.Holding) rule.Held {
	require.NoError(m, m.c.Set(ctx, "clock", m.now, 0).Err())
	if ends, err := m.c.Get(ctx, "holds:ends").Int64(); err == nil && m.now/1000 > ends {
		m.holds = nil // the hash has expired, also if the clock is set back later
	}
	reply, err := holdScript.Run(ctx, m.c, []string{"holds"}, redisscript.HoldArgs(nil, &h)...).Int64Slice()
	require.NoError(m, err)
	held, rest, err := redisscript.ParseHold(reply)
	require.NoError(m, err)
	require.Equal(m, []int64{m.now}, rest)
	own, begun := micro(h), int64(0)
	if h.Action == rule.AddHold && m.holds.Room(own, m.now) >= 1 {
		begun = 1
	}
	m.holds = m.holds.Apply(own, m.now, begun)
	want := own.Held
	want.OthersLeft, want.Soonest = want.OthersLeft*1000, want.Soonest*1000
	require.Equal(m, want, held, "%+v with %+v", h, m.holds)
	require.Equal(m, m.stored(), m.live())
	if latest := m.latest(); latest > m.now {
		ends, err := m.c.Get(ctx, "holds:ends").Int64()
		require.NoError(m, err)
		require.GreaterOrEqual(m, ends*1000, latest, "the hash lasts as long as its records")
	}
	return held
}

// latest returns when the last of the records ends.
func (m *holdModel) latest() (latest int64) {
	for _, r := range m.holds {
		latest = max(latest, min(r.Until, m.now+r.Lasts))
	}
	return latest
}

// stored returns the fields of the hash whose records have not ended.
func (m *holdModel) stored() (records []string) {
	for process, value := range m.c.HGetAll(ctx, "holds").Val() {
		if fields := strings.Fields(value); must(fields[2]) > m.now {
			records = append(records, process+" "+value)
		}
	}
	slices.Sort(records)
	return records
}

// live returns the same of what is counted here.
func (m *holdModel) live() (records []string) {
	for _, r := range m.holds {
		if r.Until > m.now {
			records = append(records, fmt.Sprintln(r.Process, r.Began, r.Ended, r.Until, r.Lasts))
		}
	}
	for i := range records {
		records[i] = strings.TrimSpace(records[i])
	}
	slices.Sort(records)
	return records
}

func must(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

// TestHoldsFollowTheRule runs random calls of some processes: adds, renewals and looks, with
// totals that are old, new, or higher than what the server knows.
func TestHoldsFollowTheRule(t *testing.T) {
	for name, client := range map[string]func(testing.TB) *redis.Client{"server": server, "gopher-lua": mini} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t)
			for seed := range 40 {
				rng := rand.New(rand.NewPCG(uint64(seed), 1))
				require.NoError(t, c.FlushAll(ctx).Err())
				m := &holdModel{T: t, c: c, now: 1_800_000_000_000_000}
				var began, ended [3]int64
				for range 60 {
					m.now += rng.Int64N(1_000_000)
					if rng.IntN(8) == 0 {
						m.now -= rng.Int64N(3_000_000) // the clock is set back
					}
					i := rng.IntN(len(began))
					if held := began[i] - ended[i]; held > 0 && rng.IntN(2) == 0 {
						ended[i] += 1 + rng.Int64N(held)
					}
					h := rule.Holding{
						Action: rule.HoldAction(rng.IntN(3)), Most: 1 + rng.Int64N(5), Lasts: int64(time.Millisecond) * (10 + rng.Int64N(5000)),
						Process: fmt.Sprint("p", i), Began: began[i], Ended: ended[i], Alone: rng.IntN(2) == 0,
					}
					switch rng.IntN(6) {
					case 0: // a call from a while ago
						h.Began, h.Ended = h.Began/2, h.Ended/2
					case 1: // holds that have begun without the server
						began[i] += rng.Int64N(3)
						h.Began = began[i]
					}
					held := m.call(h)
					if h.Action != rule.LookHolds {
						began[i], ended[i] = max(began[i], held.Began), max(ended[i], held.Ended)
					}
				}
			}
		})
	}
}

// TestTakeHold has takes with holds: units and a hold are taken together, or neither.
func TestTakeHold(t *testing.T) {
	limits := []rule.Limit{{Kind: rule.Fixed, N: 5, Window: hourly}, {Kind: rule.Fixed, N: 9, Window: 2 * hourly}}
	for name, client := range map[string]func(testing.TB) *redis.Client{"server": server, "gopher-lua": mini} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t)
			take := func(action rule.HoldAction, cost, most int64) (admitted int64, held rule.Held, left []int64) {
				var args []any
				for _, l := range limits {
					args = append(args, redisscript.Args(l, redisscript.Periods{}, nil)...)
				}
				h := rule.Holding{Action: action, Most: most, Lasts: 60e9, Process: "p"}
				args = redisscript.HoldArgs(redisscript.AppendTake(args, 0, cost, 1), &h)
				reply, err := redis.NewScript(redisscript.TakeHold.Text.(string)).Run(ctx, c, []string{"hour", "hours", "holds"}, args...).Int64Slice()
				require.NoError(t, err)
				held, reply, err = redisscript.ParseHold(reply)
				require.NoError(t, err)
				takes, err := redisscript.ParseTakes(reply, nil, 1, limits)
				require.NoError(t, err)
				admitted = 1
				for _, n := range takes.Incomplete() {
					admitted = n
				}
				var states [2]rule.State
				takes.States(0, states[:])
				for i := range states {
					left = append(left, states[i].A+cost*admitted)
				}
				return admitted, held, left
			}
			admitted, held, used := take(rule.AddHold, 2, 2)
			require.Equal(t, []any{int64(1), int64(1), false, []int64{2, 2}}, []any{admitted, held.Began, held.Denied, used})
			admitted, held, used = take(rule.AddHold, 4, 2)
			require.Equal(t, []any{int64(0), int64(1), false, []int64{2, 2}}, []any{admitted, held.Began, held.Denied, used}, "a denied rate takes no hold")
			admitted, held, _ = take(rule.AddHold, 1, 2)
			require.Equal(t, []any{int64(1), int64(2)}, []any{admitted, held.Began})
			admitted, held, used = take(rule.AddHold, 1, 2)
			require.Equal(t, []any{int64(0), int64(2), true, []int64{3, 3}}, []any{admitted, held.Began, held.Denied, used}, "a denied hold takes no units")
			admitted, held, used = take(rule.LookHolds, 0, 2)
			require.Equal(t, []any{int64(1), int64(2), false, []int64{3, 3}}, []any{admitted, held.Began, held.Denied, used}, "a look is admitted")

			require.NoError(t, c.Del(ctx, "holds").Err())
			require.NoError(t, c.HSet(ctx, "holds", "p", "x").Err())
			_, err := redis.NewScript(redisscript.Hold.Text.(string)).Run(ctx, c, []string{"holds"}, redisscript.HoldArgs(nil, &rule.Holding{Most: 1, Lasts: 1e9, Process: "q"})...).Result()
			i, junk := redisscript.Junk(err)
			require.True(t, junk, err)
			require.Equal(t, -1, i)
		})
	}
}
