package redisstore

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// rollingTake returns the command of a take by some callers under a rolling window.
func rollingTake(l rule.Limit, units int64, callers int) *command {
	set := newLimitSet([]rule.Limit{l}, nil)
	g := new(group)
	for i := range callers {
		j := new(job)
		j.Value = call{op: take, key: "k", set: set, units: units, index: int64(i)}
		g.callers = append(g.callers, j)
	}
	c := &command{groups: []*group{g}}
	c.build(ctx, "rl:", set.argsNow())
	return c
}

// written returns the value of a log at Redis.
func written(instants []int64) string {
	var value []byte
	for _, at := range instants {
		value = append(value, binary.BigEndian.AppendUint64(nil, uint64(at))[1:]...)
	}
	return string(value)
}

// TestRollingGroup: the callers of a group get the answers and the logs that they would get
// one after the other.
func TestRollingGroup(t *testing.T) {
	const now = 1_000_000_000
	for range 2000 {
		l := rule.Limit{Kind: rule.Rolling, N: 1 + rand.Int64N(12), Window: 1_000_000_000}
		units, callers := rand.Int64N(4), 1+rand.IntN(8)
		c := rollingTake(l, units, callers)
		micro, g := c.set().micros[0], c.groups[0]
		var log rule.Log
		for range rand.IntN(12) {
			at := now - rand.Int64N(2*micro.Window)
			micro.AdjustLog(&log, at, 1, at)
		}
		reply, logs := []int64{now, 0}, []string(nil)
		if log.N > 0 {
			reply[1], logs = 1, []string{written(log.AppendTo(nil))}
		}
		var answers []rule.Answer
		var after []rule.Log
		admitted := int64(0)
		for range callers {
			a := micro.Ask(&log, now, units)
			if a.Retry == 0 {
				admitted++
				if units > 0 {
					micro.Count(&log, now, units)
				}
			}
			answers, after = append(answers, a), append(after, log.Map(func(at int64) int64 { return at * 1000 }))
		}
		if admitted < int64(callers) {
			reply = append(reply, 1, admitted)
		}
		require.NoError(t, new(Store).readTakes(c, reply, logs))
		require.NoError(t, g.err)
		for i, j := range g.callers {
			j.Value.copyFrom(&g.result, take, 1)
			var got [1]rule.Answer
			_, _, err := j.Value.answer(got[:])
			require.NoError(t, err)
			want := answers[i]
			want.Retry, want.More, want.Reset = int64(redisscript.Nanos(want.Retry)), int64(redisscript.Nanos(want.More)), int64(redisscript.Nanos(want.Reset))
			require.Equal(t, want, got[0])
			var found [1]rule.Log
			require.True(t, j.Value.states(make([]rule.State, 1), found[:]))
			require.Equal(t, after[i].AppendTo(nil), found[0].AppendTo(nil))
			micro.AdjustLog(&found[0], now*1000, -1, math.MaxInt64) // a caller's log is its own
		}
	}
}

// TestRollingReplies: a reply that admits more than fits is an error. It never makes a log
// longer than its limit.
func TestRollingReplies(t *testing.T) {
	const now = 1_000_000_000
	l := rule.Limit{Kind: rule.Rolling, N: 5, Window: 1_000_000_000}
	full := written([]int64{now - 3, now - 2, now - 1, now, now})
	for _, row := range []struct {
		units    int64
		callers  int
		reply    []int64
		log      string
		accepted bool
	}{
		{1, 2, []int64{now, 1}, full, false},
		{1, 2, []int64{now, 1, 1, 0}, full, true},
		{1, 2, []int64{now, 1, 1, 1}, full, false},
		{0, 2, []int64{now, 1}, full, true},
		{1, 2, []int64{now, 1, 1, math.MaxInt64}, full[:14], false},
		{1, 2, []int64{now, 1, 1, 3}, full[:14], false},
		{rule.MaxUnits, 9, []int64{now, 1}, full[:14], false},
		{4, 1, []int64{now, 1}, full[:14], false},
		{3, 1, []int64{now, 1}, full[:14], true},
		{1, 1, []int64{now, 1, 1, 0}, full[:13], false},
		{1, 1, []int64{now, 1, 1, 0}, full[7:14] + full[:7], false},
		{1, 1, []int64{now, 1, 1, 0}, "\xff\xff\xff\xff\xff\xff\xff", false},
	} {
		c := rollingTake(l, row.units, row.callers)
		require.NoError(t, new(Store).readTakes(c, row.reply, []string{row.log}))
		require.Equal(t, row.accepted, c.groups[0].err == nil, "%+v", row)
	}
}
