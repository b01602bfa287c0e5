package nearcache

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// These tests are about rolling windows.

func rolling(n, window int64) rule.Limit {
	return rule.Limit{Kind: rule.Rolling, N: n, Window: window}
}

// rollingRemote is a store with the log of one key.
type rollingRemote struct {
	rule.Limit
	log         rule.Log
	clockOffset int64
}

func (r *rollingRemote) take(n, now int64, logs bool) Reply {
	at := now + r.clockOffset
	a := r.Ask(&r.log, at, n)
	if a.Retry == 0 && n > 0 {
		r.Count(&r.log, at, n)
	}
	reply := Reply{N: n, Limits: []rule.Limit{r.Limit}, Answers: []rule.Answer{a}, At: at, Now: now, Recheck: -1}
	if logs {
		reply.States = make([]rule.State, 1)
		reply.Logs = []rule.Log{r.log.Map(func(at int64) int64 { return at })}
	}
	return reply
}

// settle sends what is owed, and returns how many units were sent.
func (r *rollingRemote) settle(c *Cache, now int64) (sent int64) {
	b := c.BeginSending("k", now)
	if b == nil {
		return 0
	}
	for i := range b.Owed {
		at, known := c.SendAt(&b.Owed[i])
		if !known {
			at = math.MaxInt64
		}
		r.AdjustLog(&r.log, now+r.clockOffset, b.Owed[i].Units, at)
		sent += b.Owed[i].Units
	}
	c.EndSending(b, len(b.Owed), now)
	return sent
}

func logOf(c *Cache, now int64, l rule.Limit) []int64 {
	g := c.memory.table.LogOf(c.at("k").Hash, now, &l)
	return g.AppendTo(nil)
}

// TestLearnRolling: with the store's logs, a denial is exact for each number of units.
// Without them it is cached for the number of units that were denied.
func TestLearnRolling(t *testing.T) {
	for _, logs := range []bool{true, false} {
		c, l := newCache(), rolling(3, minute)
		r := &rollingRemote{Limit: l, clockOffset: hour}
		for _, now := range []int64{0, 10 * second, 20 * second} {
			c.Learn("k", r.take(1, now, logs))
		}
		c.Learn("k", r.take(2, 30*second, logs))
		var answers [1]rule.Answer
		denied, _, _ := c.Denied("k", 2, 30*second, -1, []rule.Limit{l}, answers[:])
		require.True(t, denied)
		require.EqualValues(t, 40*second, answers[0].Retry, "logs: %v", logs)
		denied, _, _ = c.Denied("k", 1, 30*second, -1, []rule.Limit{l}, answers[:])
		require.Equal(t, logs, denied)
		if logs {
			require.EqualValues(t, 30*second, answers[0].Retry)
			require.Equal(t, []int64{0, 10 * second, 20 * second}, logOf(c, 30*second, l))
		}
		require.True(t, isDenied(c, "k", 2, 70*second-1, -1, l))
		require.False(t, isDenied(c, "k", 2, 70*second, -1, l))
	}
}

// TestOvertakingLogs: an answer that was overtaken does not hide units that are known.
func TestOvertakingLogs(t *testing.T) {
	for _, logs := range []bool{true, false} {
		c, l := newCache(), rolling(2, minute)
		r := &rollingRemote{Limit: l, clockOffset: hour}
		first, second := r.take(1, 1000, logs), r.take(1, 2000, logs)
		first.Now, second.Now = 4000, 3000
		c.Learn("k", second)
		c.Learn("k", first)
		require.Zero(t, left(c, "k", 4000, l))
		require.Len(t, logOf(c, 4000, l), 2)
	}
}

// TestLearnKeepsNothingOfTheReply: the table's log is not the reply's, and learning again
// and again takes no more memory of the table.
func TestLearnKeepsNothingOfTheReply(t *testing.T) {
	c, l := newCache(), rolling(100, minute)
	r := &rollingRemote{Limit: l, clockOffset: hour}
	for i := range int64(100) {
		r.take(1, i, false)
	}
	reply := r.take(0, 100, true)
	for range 10_000 {
		c.Learn("k", reply)
	}
	require.Equal(t, 1, c.memory.table.Stats().Counters)
	r.AdjustLog(&reply.Logs[0], hour+100, -50, hour+70)
	reply.Logs[0] = rule.Log{}
	require.Len(t, logOf(c, 100, l), 100)
	for i := range 100 { // counters that are forgotten take no memory
		c.Erase("k", 100, []rule.Limit{l})
		take(c, fmt.Sprint(i), 1, 100, false, l)
	}
	require.Empty(t, logOf(c, 100, l))
}

// TestOwedRollingIsLater: at the store, an owed unit counts for at most a 64th of the window
// too long and never too short, also if charges come out of order.
func TestOwedRollingIsLater(t *testing.T) {
	const part = minute / rollingParts
	c, l := newCache(), rolling(9, minute)
	limits := []rule.Limit{l}
	c.Observe(hour, 0)
	now := hour / 2
	require.True(t, take(c, "k", 1, now, true, l))
	c.Adjust("k", 1, Here(now-part*9/10), now, limits, true)
	now += part * 9 / 10
	require.True(t, take(c, "k", 1, now, true, l))
	b := c.BeginSending("k", now)
	var sent []int64
	for _, o := range b.Owed {
		for range o.Units {
			sent = append(sent, o.At.Here)
		}
	}
	slices.Sort(sent)
	taken := logOf(c, now, l)
	require.Len(t, sent, len(taken))
	for i := range taken {
		require.GreaterOrEqual(t, sent[i], taken[i])
		require.Less(t, sent[i]-taken[i], part)
	}
}

// TestThousandOwedUnits: the units of one key have a bounded number of records, and all of
// them are sent, also if the store fails in between.
func TestThousandOwedUnits(t *testing.T) {
	c, l := newCache(), rolling(rule.MaxRolling, minute)
	c.Observe(hour, 0)
	for i := range l.N {
		require.True(t, take(c, "k", 1, i*minute/1001, true, l))
	}
	now := l.N * minute / 1001
	require.False(t, take(c, "k", 1, now, true, l))
	b := c.BeginSending("k", now)
	require.LessOrEqual(t, len(b.Owed), rollingParts+2)
	r, half := &rollingRemote{Limit: l, clockOffset: hour}, len(b.Owed)/2
	for i := range half {
		at, _ := c.SendAt(&b.Owed[i])
		r.AdjustLog(&r.log, now+hour, b.Owed[i].Units, at)
	}
	c.EndSending(b, half, now)
	r.settle(c, now)
	require.Equal(t, l.N, r.log.N)
	require.Zero(t, c.Owing())
	require.Zero(t, c.Forgotten())
}

// TestRollingGivenBack: units of each origin that are given back in an outage.
func TestRollingGivenBack(t *testing.T) {
	l := rolling(9, minute)
	limits := []rule.Limit{l}
	begin := func() (*Cache, *rollingRemote) {
		c, r := newCache(), &rollingRemote{Limit: l, clockOffset: hour}
		c.Learn("k", r.take(2, second, true))
		take(c, "k", 3, 20*second, true, l)
		return c, r
	}
	for name, row := range map[string]struct {
		at   Instant
		n    int64
		want []int64
	}{
		"here":                    {Here(20 * second), -2, []int64{1, 1, 20}},
		"here, more than taken":   {Here(20 * second), -9, []int64{1, 1}},
		"here, another instant":   {Here(19 * second), -1, []int64{1, 1, 20, 20, 20}},
		"store":                   {Instant{second, hour + second}, -1, []int64{1, 20, 20, 20}},
		"any time":                {AnyTime, -1, []int64{1, 1, 20, 20}},
		"any time, also of store": {AnyTime, -4, []int64{1}},
		"any time, too many":      {AnyTime, -99, nil},
	} {
		c, r := begin()
		c.Adjust("k", row.n, row.at, 30*second, limits, true)
		r.settle(c, 40*second)
		var got []int64
		for _, at := range r.log.AppendTo(nil) {
			got = append(got, (at-hour)/second)
		}
		require.Equal(t, row.want, got, name)
	}
	c, r := begin() // the store's unit that was given back here has left
	c.Adjust("k", -4, AnyTime, 30*second, limits, true)
	r.take(1, 60*second, true)
	r.settle(c, 61*second)
	require.EqualValues(t, hour+60*second, r.log.T)

	c, _ = begin()
	c.Erase("k", 30*second, limits)
	require.Zero(t, c.Owing())
	require.Empty(t, logOf(c, 30*second, l))
}

// TestRollingClockJumps: a jump of the store's clock does not unblock a key that is denied.
func TestRollingClockJumps(t *testing.T) {
	c, l := newCache(), rolling(1, minute)
	r := &rollingRemote{Limit: l, clockOffset: hour}
	c.Learn("k", r.take(1, second, true))
	r.clockOffset += 2 * minute
	reply := r.take(1, 10*second, true)
	require.False(t, denied(reply))
	c.Observe(reply.At, reply.Now)
	var answers [1]rule.Answer
	still, _ := c.StillDenied("k", 1, 10*second, reply.Limits, answers[:])
	require.False(t, still, "the store has not denied it before")

	c, r = newCache(), &rollingRemote{Limit: l, clockOffset: hour}
	c.Learn("k", r.take(1, second, true))
	c.Learn("k", r.take(1, 2*second, true))
	r.clockOffset += 2 * minute
	reply = r.take(1, 10*second, true)
	c.Observe(reply.At, reply.Now)
	still, _ = c.StillDenied("k", 1, 10*second, reply.Limits, answers[:])
	require.True(t, still)
	require.EqualValues(t, 51*second, answers[0].Retry)
}

// TestLogsOfAHostileStore: whatever instants a store reports, the log here is in order, and
// no unit counts for longer than its window or is lost.
func TestLogsOfAHostileStore(t *testing.T) {
	l := rolling(9, 50*365*24*hour)
	for _, at := range []int64{0, 1, hour, math.MaxInt64} {
		for _, now := range []int64{1, hour, 60 * 365 * 24 * hour} {
			c := newCache()
			c.Learn("k", Reply{N: 1, Limits: []rule.Limit{l}, Answers: make([]rule.Answer, 1), States: make([]rule.State, 1), At: at, Now: now,
				Logs: []rule.Log{rule.LogOf([]int64{at, math.MaxInt64 - 1, math.MaxInt64})}})
			got := logOf(c, now, l)
			require.Len(t, got, 3, "at %d, now %d", at, now)
			require.True(t, slices.IsSorted(got), "at %d, now %d: %d", at, now, got)
			require.Equal(t, now, got[2])
			require.EqualValues(t, 6, left(c, "k", now, l))
		}
	}
}

// TestLogsWhileTheOffsetChanges: a log is moved to our clock by one offset, although answers
// of another server change it in the meantime.
func TestLogsWhileTheOffsetChanges(t *testing.T) {
	c, l := newCache(), rolling(rule.MaxRolling, minute)
	r := &rollingRemote{Limit: l, clockOffset: hour}
	for i := range l.N {
		r.take(1, i*1000, false)
	}
	reply := r.take(0, l.N*1000, true)
	reply.Now = 2 * hour
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				c.clock.offset.Store(hour)
				c.clock.offset.Store(0)
			}
		}
	})
	for range 2000 {
		logs := c.logsOf(&reply, 0, hour)
		if got := logs[0].AppendTo(nil); !slices.IsSorted(got) {
			t.Error("a log is not in order")
			break
		}
	}
	close(stop)
	wg.Wait()
}
