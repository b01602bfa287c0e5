package redisscript_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// These tests have the takes that the fast paths of Take leave to the general
// path. Keys expire by the server's clock.

var (
	ctx      = context.Background()
	unshimed = redis.NewScript(redisscript.Take.Text.(string))
)

func ask(c redis.Scripter, limits []rule.Limit, asks ...asked) (redisscript.Takes, error) {
	var keys []string
	var args []any
	for _, l := range limits {
		args = append(args, redisscript.Args(l, redisscript.Periods{}, nil)...)
	}
	for i, a := range asks {
		for _, l := range limits {
			keys = append(keys, a.key+shapeOf(l))
		}
		args = redisscript.AppendTake(args, i, a.cost, a.callers)
	}
	reply, err := unshimed.Run(ctx, c, keys, args...).Int64Slice()
	if err != nil {
		return redisscript.Takes{}, err
	}
	return redisscript.ParseTakes(reply, nil, len(asks), limits)
}

const hourly = 3_600_000_000

// TestTakeFixed: what the key of a fixed window of 10 units holds before and after
// a take, and how many callers are admitted, for every kind of time to live.
func TestTakeFixed(t *testing.T) {
	limits := []rule.Limit{{Kind: rule.Fixed, N: 10, Window: hourly}}
	const none, huge = -1, 1 << 60
	for name, client := range map[string]func(testing.TB) *redis.Client{"server": server, "gopher-lua": mini} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t)
			for _, tc := range []struct {
				before        string
				cost, callers int64
				admitted      int64
				after         string
			}{
				{"", 1, 1, 1, "1"}, {"", 0, 1, 1, ""}, {"", 3, 3, 3, "9"}, {"", 3, 4, 3, "9"}, {"", 11, 1, 0, ""}, {"", huge, huge, 0, ""},
				{"0", 1, 1, 1, "1"}, {"4", 1, 1, 1, "5"}, {"4", 0, 1, 1, "4"}, {"9", 1, 1, 1, "10"}, {"8", 2, 1, 1, "10"}, {"4", 3, 2, 2, "10"},
				{"10", 1, 1, 0, "10"}, {"9", 2, 1, 0, "9"}, {"4", 3, 3, 2, "10"}, {"4", 5, 2, 1, "9"}, {"10", 5, 2, 0, "10"}, {"10", 0, 1, 1, "10"},
				{"4", 11, 1, 0, "4"}, {"4", 1, 64, 6, "10"}, {"4", huge, 2, 0, "4"}, {"20", 1, 1, 0, "20"}, {"20", 1, 3, 0, "20"}, {"20", 0, 2, 2, "20"},
				{"999999999999999", 1, 1, 0, "999999999999999"}, {"1000000000000000", 1, 1, none, "1000000000000000"},
				{"-1", 1, 1, none, "-1"}, {"-3", 2, 5, none, "-3"}, {"-9223372036854775808", 1, 1, none, "-9223372036854775808"},
				{"9223372036854775807", 1, 1, none, "9223372036854775807"}, {"9223372036854775806", 1, 1, none, "9223372036854775806"},
				{"9007199254740993", 3, 1, none, "9007199254740993"}, {"x", 1, 1, none, "x"}, {"3.5", 1, 1, none, "3.5"}, {" 3", 1, 1, none, " 3"},
				{"1e3", 1, 1, none, "1e3"}, {"007", 1, 1, none, "007"}, {"012", 1, 1, none, "012"}, {"00", 1, 1, none, "00"}, {"1e3", 5, 2, none, "1e3"},
				{"18446744073709551616", 1, 1, none, "18446744073709551616"},
			} {
				if name == "gopher-lua" && len(tc.before) > 1 && tc.before[0] == '0' {
					continue // miniredis adds to those what Redis does not
				}
				what := fmt.Sprintf("%+v", tc)
				key := "a" + shapeOf(limits[0])
				for ttl, ends := range map[time.Duration]time.Duration{0: time.Hour, time.Minute: time.Minute, 2 * time.Hour: 2 * time.Hour, 3 * time.Hour: time.Hour} {
					require.NoError(t, c.FlushAll(ctx).Err())
					if tc.before == "" || tc.before == "0" { // a new window
						ends = time.Hour
					}
					if tc.before != "" {
						require.NoError(t, c.Set(ctx, key, tc.before, ttl).Err())
					}
					takes, err := ask(c, limits, asked{"a", tc.cost, tc.callers})
					require.NoError(t, err, what)
					incomplete := map[int]int64{0: tc.admitted}
					if tc.admitted == tc.callers {
						incomplete = map[int]int64{}
					}
					require.Equal(t, incomplete, maps.Collect(takes.Incomplete()), "%s %v", what, ttl)
					require.Equal(t, tc.after, c.Get(ctx, key).Val(), "%s %v", what, ttl)
					if tc.admitted == none {
						require.InDelta(t, max(-1, ttl), c.PTTL(ctx, key).Val(), float64(slack), "%s %v", what, ttl)
						continue
					}
					if tc.after != "" {
						require.InDelta(t, ends, c.PTTL(ctx, key).Val(), float64(slack), "%s %v", what, ttl)
					}
					states := make([]rule.State, 1)
					takes.States(0, states)
					require.Equal(t, max("0", tc.before), fmt.Sprint(states[0].A), what)
				}
			}
		})
	}
}

const slack = 10 * time.Second // between two commands

// TestTakeManyFixed: takes of all kinds in one command, under a fixed window.
func TestTakeManyFixed(t *testing.T) {
	limits := []rule.Limit{{Kind: rule.Fixed, N: 10, Window: hourly}}
	for name, client := range map[string]func(testing.TB) *redis.Client{"server": server, "gopher-lua": mini} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t)
			for key, count := range map[string]any{"b": 4, "c": 10, "text": "x", "e": 4, "below": -7, "g": 7} {
				require.NoError(t, c.Set(ctx, key+shapeOf(limits[0]), count, time.Minute).Err())
			}
			require.NoError(t, c.Set(ctx, "endless"+shapeOf(limits[0]), 5, 0).Err())
			require.NoError(t, c.RPush(ctx, "list"+shapeOf(limits[0]), "x").Err())
			takes, err := ask(c, limits, asked{"a", 1, 1}, asked{"b", 1, 1}, asked{"list", 2, 2}, asked{"c", 1, 1}, asked{"text", 1, 1},
				asked{"e", 4, 3}, asked{"below", 1, 1}, asked{"endless", 3, 2}, asked{"g", 0, 1}, asked{"new", 4, 3}, asked{"last", 1, 2})
			require.NoError(t, err)
			require.Equal(t, map[int]int64{2: -1, 3: 0, 4: -1, 5: 1, 6: -1, 7: 1, 9: 2}, maps.Collect(takes.Incomplete()))
			states := make([]rule.State, 1)
			for i, want := range []int64{0, 4, 0, 10, 0, 4, 0, 5, 7, 0, 0} {
				takes.States(i, states)
				require.Equal(t, want, states[0].A, "of take %d", i)
			}
			for key, want := range map[string]string{
				"a": "1", "b": "5", "c": "10", "text": "x", "e": "8", "below": "-7", "endless": "8", "g": "7", "new": "8", "last": "2",
			} {
				require.Equal(t, want, c.Get(ctx, key+shapeOf(limits[0])).Val(), "of key %q", key)
				require.Positive(t, c.PTTL(ctx, key+shapeOf(limits[0])).Val(), "of key %q", key)
			}
		})
	}
}

// TestTakeManyStates: the same under a sliding window and under a bucket.
func TestTakeManyStates(t *testing.T) {
	for name, client := range map[string]func(testing.TB) *redis.Client{"server": server, "gopher-lua": mini} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t)
			for _, l := range []rule.Limit{{Kind: rule.Sliding, N: 10, Window: hourly}, {Kind: rule.Bucket, N: 1, Window: hourly, Burst: 10}} {
				limits := []rule.Limit{l}
				now := time.Now().UnixMicro()
				for key, state := range map[string]any{
					"b": fmt.Sprint(now, " 4 0"), "full": fmt.Sprint(now, " 10 0"), "text": "x", "short": "1 2", "long": fmt.Sprint(now, " 1000000000000000 0"),
					"ahead": fmt.Sprint(now+hourly/2, " 4 0"), "far": fmt.Sprint(now+2*hourly, " 4 0"), "over": fmt.Sprint(now, " 999999999999999 0"), "wide": fmt.Sprint(now, " 1 9999999999999999"),
				} {
					require.NoError(t, c.Set(ctx, key+shapeOf(l), state, time.Minute).Err())
				}
				for _, key := range []string{"endless", "endless full", "endless look"} {
					require.NoError(t, c.Set(ctx, key+shapeOf(l), fmt.Sprint(now, " 9 0"), 0).Err())
				}
				for _, key := range []string{"list", "list look", "list full"} {
					require.NoError(t, c.RPush(ctx, key+shapeOf(l), "x").Err())
				}
				require.NoError(t, c.Expire(ctx, "list look"+shapeOf(l), time.Hour).Err())
				takes, err := ask(c, limits, asked{"a", 1, 1}, asked{"b", 1, 1}, asked{"list", 2, 2}, asked{"full", 1, 1}, asked{"text", 1, 1},
					asked{"short", 1, 1}, asked{"long", 0, 1}, asked{"ahead", 4, 3}, asked{"far", 1, 2}, asked{"over", 0, 2}, asked{"endless", 1, 1},
					asked{"endless full", 2, 1}, asked{"endless look", 0, 1}, asked{"new", 4, 3}, asked{"look", 0, 1}, asked{"list look", 0, 1}, asked{"list full", 11, 1},
					asked{"new full", 11, 1}, asked{"last", 1, 2}, asked{"wide", 1, 1})
				require.NoError(t, err)
				require.Equal(t, map[int]int64{2: -1, 3: 0, 4: -1, 5: -1, 6: -1, 7: 1, 11: 0, 13: 2, 15: -1, 16: -1, 17: 0, 19: -1}, maps.Collect(takes.Incomplete()))
				for i, want := range []int64{0, 4, 0, 10, 0, 0, 0, 4, 4, 999999999999999, 9, 9, 9, 0, 0, 0, 0, 0, 0} {
					states := make([]rule.State, 1)
					takes.States(i, states)
					if states[0].B > 0 { // a fraction has leaked in the meantime
						states[0].A++
					}
					require.Equal(t, want, states[0].A, "of take %d", i)
				}
				for _, key := range []string{"a", "b", "full", "ahead", "far", "endless", "endless full", "endless look", "new", "last"} {
					require.Greater(t, c.PTTL(ctx, key+shapeOf(l)).Val(), 40*time.Second, "of key %q", key)
				}
				require.Zero(t, c.Exists(ctx, "look"+shapeOf(l), "new full"+shapeOf(l)).Val())
				require.Equal(t, int64(1), c.LLen(ctx, "list"+shapeOf(l)).Val())
				require.Equal(t, "x", c.Get(ctx, "text"+shapeOf(l)).Val())
				require.NoError(t, c.FlushAll(ctx).Err())
			}
		})
	}
}

// TestTakeRefused: a server that refuses writes still denies takes that do not
// fit, and a server that refuses a command has counted nothing.
func TestTakeRefused(t *testing.T) {
	s := redistest.Start(t)
	c := s.Client()
	for _, l := range []rule.Limit{
		{Kind: rule.Fixed, N: 10, Window: hourly}, {Kind: rule.Sliding, N: 10, Window: hourly}, {Kind: rule.Bucket, N: 10, Window: hourly, Burst: 10},
	} {
		limits := []rule.Limit{l}
		require.NoError(t, c.FlushAll(ctx).Err())
		_, err := ask(c, limits, asked{"full", 10, 1}, asked{"half", 5, 1})
		require.NoError(t, err)
		before := c.Dump(ctx, "half"+shapeOf(l)).Val()
		refused := func(c *redis.Client, want string) {
			for _, asks := range [][]asked{{{"half", 1, 1}}, {{"new", 1, 1}}, {{"half", 1, 1}, {"new", 1, 1}}, {{"half", 1, 1}, {"full", 1, 1}}} {
				_, err := ask(c, limits, asks...)
				require.ErrorContains(t, err, want, "%v %v", l.Kind, asks)
			}
		}

		require.NoError(t, c.ConfigSet(ctx, "maxmemory", "1").Err())
		for _, n := range []int64{1, 11} {
			takes, err := ask(c, limits, asked{"full", n, 1})
			require.NoError(t, err)
			require.Equal(t, map[int]int64{0: 0}, maps.Collect(takes.Incomplete()))
		}
		refused(c, "OOM")
		require.NoError(t, c.ConfigSet(ctx, "maxmemory", "0").Err())

		s.Do("ACL", "SETUSER", "timeless", "reset", "on", ">pw", "~*", "+@all", "-time")
		refused(s.Client(func(o *redis.Options) { o.Username, o.Password = "timeless", "pw" }), "can't run this command")
		require.Equal(t, before, c.Dump(ctx, "half"+shapeOf(l)).Val())
		require.Zero(t, c.Exists(ctx, "new"+shapeOf(l)).Val())
	}
}

// denyingLimits has the algorithms alone, and all of them together with one that is full
// before the others.
func denyingLimits() (cases [][]rule.Limit) {
	all := []rule.Limit{{Kind: rule.Fixed, N: 20, Window: hourly}, {Kind: rule.Sliding, N: 20, Window: hourly}, {Kind: rule.Bucket, N: 10, Window: hourly, Burst: 20}}
	for i, l := range all {
		cases = append(cases, []rule.Limit{l})
		together := slices.Clone(all)
		if l.Kind == rule.Bucket {
			together[i].Burst = 10
		} else {
			together[i].N = 10
		}
		cases = append(cases, together)
	}
	return cases
}

// fill takes as many units of keys as fit under limits, and returns how many.
func fill(t *testing.T, c *redis.Client, limits []rule.Limit, keys ...string) (n int64) {
	t.Helper()
	n = math.MaxInt64
	var asks []asked
	for _, l := range limits {
		n = min(n, l.Cap())
	}
	for _, key := range keys {
		asks = append(asks, asked{key, n, 1})
	}
	takes, err := ask(c, limits, asks...)
	require.NoError(t, err)
	require.Empty(t, maps.Collect(takes.Incomplete()))
	return n
}

// TestDenialsChangeNothing: a denial writes nothing at the server, not even what
// is already there. If one of several limits denies, the others are not charged.
func TestDenialsChangeNothing(t *testing.T) {
	s := redistest.Start(t)
	c := s.Client()
	changes := func() string {
		info := s.Do("INFO", "persistence").(string)
		_, after, _ := strings.Cut(info, "rdb_changes_since_last_save:")
		count, _, _ := strings.Cut(after, "\r")
		return count
	}
	for _, limits := range denyingLimits() {
		for _, asks := range [][]asked{{{"full", 1, 1}}, {{"full", 1, 3}}, {{"full", 1, 1}, {"also full", 2, 1}}} {
			require.NoError(t, c.FlushAll(ctx).Err())
			fill(t, c, limits, "full", "also full")
			before := changes()
			takes, err := ask(c, limits, asks...)
			require.NoError(t, err)
			require.Len(t, maps.Collect(takes.Incomplete()), len(asks))
			require.Equal(t, before, changes(), "%v %v", limits, asks)
		}
	}
}

// TestDenialsRepairTimesToLive is the exception of TestDenialsChangeNothing: a denial
// sets a time to live if it is missing, and if it is of a clock that was more than a
// window ahead. The units stay.
func TestDenialsRepairTimesToLive(t *testing.T) {
	c := server(t)
	for _, limits := range denyingLimits() {
		for _, ahead := range []bool{false, true} {
			require.NoError(t, c.FlushAll(ctx).Err())
			n := fill(t, c, limits, "full")
			for _, l := range limits {
				key := "full" + shapeOf(l)
				switch {
				case !ahead:
					require.NoError(t, c.Persist(ctx, key).Err())
				case l.Kind == rule.Fixed:
					require.NoError(t, c.PExpire(ctx, key, 30*time.Hour).Err())
				default:
					state := fmt.Sprint(time.Now().UnixMicro()+30*hourly, " ", n, " 0")
					require.NoError(t, c.Set(ctx, key, state, 40*time.Hour).Err())
				}
			}
			takes, err := ask(c, limits, asked{"full", 1, 1})
			require.NoError(t, err)
			require.Equal(t, map[int]int64{0: 0}, maps.Collect(takes.Incomplete()))
			for _, l := range limits {
				key := "full" + shapeOf(l)
				life := c.PTTL(ctx, key).Val()
				require.Positive(t, life, "%v", limits)
				require.LessOrEqual(t, life, 3*time.Hour, "%v", limits)
			}
			states := make([]rule.State, len(limits))
			takes.States(0, states)
			for i, s := range states {
				if s.B > 0 { // a fraction has leaked in the meantime
					s.A++
				}
				require.Equal(t, n, s.A, "%v", limits[i])
			}
		}
	}
}

// packed returns a state as a later version may write it.
func packed(t, a, b float64) string {
	var value []byte
	for _, number := range []float64{t, a, b} {
		value = binary.BigEndian.AppendUint64(value, math.Float64bits(number))
	}
	return string(value)
}

// TestPackedStates: a state in three doubles is the same as one in text, and is replaced
// by text. Other values of 24 bytes are no counters.
func TestPackedStates(t *testing.T) {
	c := server(t)
	for _, l := range []rule.Limit{{Kind: rule.Sliding, N: 10, Window: hourly}, {Kind: rule.Bucket, N: 1, Window: hourly, Burst: 10}} {
		limits, now := []rule.Limit{l}, float64(time.Now().UnixMicro())
		require.NoError(t, c.FlushAll(ctx).Err())
		for key, value := range map[string]string{
			"half": packed(now, 4, 0), "full": packed(now, 10, 0), "text": fmt.Sprintf("%.0f 123 456", now),
			"fraction": packed(now, 4.5, 0), "negative": packed(now, -1, 0), "nan": packed(now, math.NaN(), 0),
			"infinite": packed(now, math.Inf(1), 0), "large": packed(now, 1e15, 0), "C": "C" + strings.Repeat("x", 23),
		} {
			require.Len(t, value, 24, key)
			require.NoError(t, c.Set(ctx, key+shapeOf(l), value, time.Hour).Err())
		}
		takes, err := ask(c, limits, asked{"half", 2, 1}, asked{"full", 1, 1}, asked{"text", 0, 1}, asked{"fraction", 1, 1},
			asked{"negative", 1, 1}, asked{"nan", 1, 1}, asked{"infinite", 1, 1}, asked{"large", 1, 1}, asked{"C", 1, 1})
		require.NoError(t, err)
		require.Equal(t, map[int]int64{1: 0, 3: -1, 4: -1, 5: -1, 6: -1, 7: -1, 8: -1}, maps.Collect(takes.Incomplete()))
		value := c.Get(ctx, "half"+shapeOf(l)).Val()
		if l.Kind == rule.Sliding {
			require.Equal(t, fmt.Sprintf("%.0f 6 0", now), value)
		} else {
			require.Regexp(t, `^\d{16} [56] \d+$`, value)
		}
		require.Equal(t, packed(now, 10, 0), c.Get(ctx, "full"+shapeOf(l)).Val(), "a denial changes nothing")
		fixed := rule.Limit{Kind: rule.Fixed, N: 10, Window: hourly}
		require.NoError(t, c.Set(ctx, "half"+shapeOf(fixed), packed(now, 4, 0), time.Hour).Err())
		takes, err = ask(c, []rule.Limit{fixed}, asked{"half", 1, 1})
		require.NoError(t, err)
		require.Equal(t, map[int]int64{0: -1}, maps.Collect(takes.Incomplete()))
	}
}

// TestForeignBlocks: a value that ends like one with a block, but is none, is no counter,
// and stays as it is.
func TestForeignBlocks(t *testing.T) {
	for name, client := range map[string]func(testing.TB) *redis.Client{"server": server, "gopher-lua": mini} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t)
			for _, l := range []rule.Limit{
				{Kind: rule.Fixed, N: 10, Window: hourly}, {Kind: rule.Sliding, N: 10, Window: hourly}, {Kind: rule.Bucket, N: 1, Window: hourly, Burst: 10},
			} {
				limits := []rule.Limit{l}
				now := time.Now().UnixMicro()
				for i, value := range []string{
					" !", "5 !1 1 1 1", "1 2 3 !", "1 2 3 !1 2 3", "1 2 3 !1 2 3 4 5", "1 2 3 !-1 2 3 4", "1 2 3 !1 2 33 4", "1 2 3 !1.5 2 3 4",
					"1 2 3 !12345678901234567 1 1 1", "1 2 3 !1 12345678901234567 1 1", "1 2 3 !1 1 1 12345678901234567", "1 2 3 !1 1 1 1 !1 1 1 1",
					"1 2 3 4 !1 1 1 1", "a b c !1 1 1 1", "1 2 3 !0x1 1 1 1", "1 2 3 !1 1 5 1",
					"1 2 3 !9007199254740994 1 1 1", "1 2 3 !1 9999999999999999 1 1", "1 2 3 !1 1 1 9999999999999999", "1 2 9999999999999999 !1 1 1 1", "1 2 3  !1 1 1 1", "1 2 3 !1 1 1 1 ",
				} {
					require.NoError(t, c.Set(ctx, "k"+shapeOf(l), value, time.Hour).Err())
					for _, cost := range []int64{0, 1, 11} {
						takes, err := ask(c, limits, asked{"k", cost, 1})
						require.NoError(t, err)
						require.Equal(t, map[int]int64{0: -1}, maps.Collect(takes.Incomplete()), "%d: %q", i, value)
					}
					require.Equal(t, value, c.Get(ctx, "k"+shapeOf(l)).Val())
				}
				// The largest numbers that a block may have are one, which ends.
				value := fmt.Sprintf("%d 1 0 !9007199254740992 3600000000 4 9007199254740992", now)
				require.NoError(t, c.Set(ctx, "k"+shapeOf(l), value, time.Hour).Err())
				takes, err := ask(c, limits, asked{"k", 1, 1})
				require.NoError(t, err)
				blocks := maps.Collect(takes.Blocks())
				require.Len(t, blocks, 1)
				require.Equal(t, takes.Now+hourly, blocks[0].Block.Until)
			}
		})
	}
}
