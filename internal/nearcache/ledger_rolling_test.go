package nearcache

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// owedOf returns how many units are owed for a key, and how many records they are in.
func owedOf(c *Cache, key string, now int64) (units, records int64) {
	b := c.BeginSending(key, now)
	for _, o := range b.Owed {
		units += o.Units
	}
	c.EndSending(b, 0, now)
	return units, int64(len(b.Owed))
}

// TestRollingRecordsAreNarrow: units of one record are sent with the last of their instants,
// so no two of them are further from each other than a 64th of the window. Charges are of
// earlier instants than the units before them.
func TestRollingRecordsAreNarrow(t *testing.T) {
	const part = hour / rollingParts
	c, l := newCache(), rolling(9, hour)
	const start = 10 * part
	take(c, "key", 1, start, true, l)
	require.EqualValues(t, 1, c.Adjust("key", 1, Here(start-part+1), start, []rule.Limit{l}, true))
	take(c, "key", 1, start+part-1, true, l)
	require.EqualValues(t, 1, c.Adjust("key", 1, Here(start+1), start+part-1, []rule.Limit{l}, true))
	b := c.BeginSending("key", start+part)
	require.Equal(t, []Owed{{Limit: l, Units: 3, At: Here(start + part - 1)}, {Limit: l, Units: 1, At: Here(start - part + 1)}}, b.Owed)
}

// TestRollingChargesFillNoLedger: requests are charged once more when they end, with the
// instant at which they came. The records of a key stay few, however the two alternate.
func TestRollingChargesFillNoLedger(t *testing.T) {
	c, l := newCache(), rolling(1000, minute)
	units := int64(0)
	for now := int64(0); units < 1000; now += minute / 600 {
		require.True(t, take(c, "key", 1, now, true, l))
		units++
		if now >= 2*second {
			units += c.Adjust("key", 1, Here(now-2*second), now, []rule.Limit{l}, true)
		}
	}
	require.Zero(t, c.Forgotten())
	owed, records := owedOf(c, "key", minute-1)
	require.EqualValues(t, 1000, owed)
	require.LessOrEqual(t, records, int64(2*rollingParts))
}

// TestRollingUnitIsGivenBackOnce: a request's unit is given back by a refund of the youngest
// units, and again when the request does not count. Another unit of the same record stays
// owed.
func TestRollingUnitIsGivenBackOnce(t *testing.T) {
	c, l := newCache(), rolling(9, hour)
	take(c, "key", 1, 0, true, l)
	take(c, "key", 1, second, true, l)
	take(c, "key", 1, 2*second, true, l)
	c.Adjust("key", -1, AnyTime, 3*second, []rule.Limit{l}, true)
	c.Adjust("key", -1, Here(2*second), 4*second, []rule.Limit{l}, true)
	require.EqualValues(t, 7, left(c, "key", 5*second, l))
	owed, _ := owedOf(c, "key", 5*second)
	require.EqualValues(t, 2, owed)
	c.Adjust("key", -1, Here(second), 4*second, []rule.Limit{l}, true)
	owed, _ = owedOf(c, "key", 5*second)
	require.EqualValues(t, 1, owed)
}

// TestRollingIsSentTheYoungestFirst: what is given back comes first, then the youngest units.
// A store that is full has no room for the oldest ones, which may have left.
func TestRollingIsSentTheYoungestFirst(t *testing.T) {
	c, l, m := newCache(), rolling(9, hour), fixed(9, hour)
	c.Learn("key", Reply{N: 1, Limits: []rule.Limit{l}, Answers: []rule.Answer{{Remaining: 6}}, States: make([]rule.State, 1), Logs: []rule.Log{rule.LogOf([]int64{1, 1, 1})}, At: 1, Now: 1})
	take(c, "key", 1, minute, true, l)
	take(c, "key", 1, 2*minute, true, m)
	c.Adjust("key", -2, AnyTime, 3*minute, []rule.Limit{l}, true) // one of these and one of the store's
	take(c, "key", 2, 4*minute, true, l)
	c.Adjust("key", -1, Instant{1, 1}, 5*minute, []rule.Limit{l}, true)
	take(c, "key", 3, 6*minute, true, l)
	b := c.BeginSending("key", 7*minute)
	require.Equal(t, []Owed{
		{Limit: m, Units: 1, At: Here(2 * minute)},
		{Limit: l, Units: -1, At: Instant{1, AnyTime.Store}}, {Limit: l, Units: -1, At: Instant{1, 1}},
		{Limit: l, Units: 3, At: Here(6 * minute)}, {Limit: l, Units: 2, At: Here(4 * minute)},
	}, b.Owed)
	c.EndSending(b, 4, 7*minute) // the last of them could not be sent
	take(c, "key", 1, 7*minute, true, l)
	b = c.BeginSending("key", 8*minute)
	require.Equal(t, []Owed{{Limit: l, Units: 1, At: Here(7 * minute)}, {Limit: l, Units: 2, At: Here(4 * minute)}}, b.Owed)
}

// TestRollingIsSentWithTheHighestNumber: units that were admitted under a plan with a lower
// number arrive, too, after the younger units of another plan.
func TestRollingIsSentWithTheHighestNumber(t *testing.T) {
	c, low, high := newCache(), rolling(2, hour), rolling(5, hour)
	c.Observe(hour, 0)
	require.True(t, take(c, "k", 2, 1, true, low))
	require.True(t, take(c, "k", 2, minute, true, high))
	b := c.BeginSending("k", 2*minute)
	r := &rollingRemote{clockOffset: hour}
	for i := range b.Owed {
		o := &b.Owed[i]
		at, _ := c.SendAt(o)
		moved, _ := o.Limit.AdjustLog(&r.log, hour+2*minute, o.Units, at)
		require.Equal(t, o.Units, moved)
	}
	require.EqualValues(t, 4, r.log.N)
}
