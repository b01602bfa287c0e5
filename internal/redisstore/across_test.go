package redisstore

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMovedSlots: a slot is remembered for movedFor, with all keys that it has.
func TestMovedSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m movedSlots
		require.False(t, (*movedSlots)(nil).has("a"))
		require.False(t, m.has("a"))
		m.add("a")
		time.Sleep(movedFor - 1)
		require.True(t, m.has("a"))
		require.False(t, m.has("b"))
		m.add("b")
		time.Sleep(time.Nanosecond)
		require.False(t, m.has("a"))
		require.True(t, m.has("b"))
		time.Sleep(movedFor)
		require.False(t, m.has("b"))
		require.Empty(t, m.until)
	})
}

// TestSlotOf has slots that CLUSTER KEYSLOT returns.
func TestSlotOf(t *testing.T) {
	for tag, slot := range map[string]uint16{"": 0, "a": 15495, "foo": 12182, "bar": 5061, "123456789": 12739} {
		if got := slotOf(tag); got != slot {
			t.Errorf("%q: %d, not %d", tag, got, slot)
		}
	}
}
