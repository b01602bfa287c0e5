package redisstore

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// takeOf sets the groups of a command: a take of one unit for each key.
func (c *command) takeOf(set *limitSet, keys []string) {
	c.groups = c.groups[:0]
	for _, key := range keys {
		c.groups = append(c.groups, &group{callers: []*job{{Value: call{op: take, key: key, set: set, units: 1}}}})
	}
}

// TestNamesOfACommand: a command that is used again and again names the counters of its
// present keys, in order, and the names of an earlier round trip do not change.
func TestNamesOfACommand(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var sets []*limitSet
	for limits := range rule.MaxLimits {
		var rules []rule.Limit
		for i := range limits + 1 {
			rules = append(rules, rule.Limit{Kind: rule.Fixed, N: 5, Window: int64(i+1) * int64(time.Minute)})
		}
		sets = append(sets, newLimitSet(rules, nil))
	}
	alphabet := []string{"a", "{", "}", "%", "é", "\x00", ":", strings.Repeat("long", 40)}
	c := new(command)
	var before []any
	var wanted []any
	for range 500 {
		set, prefix := sets[r.IntN(len(sets))], strings.Repeat("p:", 1+r.IntN(4))
		var keys []string
		for range 1 + r.IntN(9) {
			key := ""
			for range 1 + r.IntN(5) {
				key += alphabet[r.IntN(len(alphabet))]
			}
			keys = append(keys, key)
		}
		var want []any
		for _, key := range keys {
			for _, suffix := range set.suffixes {
				want = append(want, string(redisscript.AppendKey(nil, prefix, key))+suffix)
			}
		}
		c.takeOf(set, keys)
		c.build(ctx, prefix, set.argsNow())
		require.Equal(t, want, c.keys()[:len(want)])
		require.Equal(t, c.args, c.cmd.Args())
		require.Equal(t, wanted, before)
		before, wanted = append([]any(nil), c.keys()[:len(want)]...), want
	}
}

// A command allocates one string for the names of all its counters, and for each of them the
// argument that refers to its part.
func TestCommandAllocatesOneString(t *testing.T) {
	set := newLimitSet([]rule.Limit{{Kind: rule.Fixed, N: 5, Window: int64(time.Hour)}}, nil)
	for _, keys := range []int{1, maxScriptKeys} {
		c, args := new(command), set.argsNow()
		c.takeOf(set, strings.Split(strings.Repeat("k,", keys-1)+"k", ","))
		require.EqualValues(t, 1+keys, testing.AllocsPerRun(100, func() { c.build(ctx, "rl:", args) }))
	}
}
