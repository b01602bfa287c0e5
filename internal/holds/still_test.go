package holds

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// TestProcessThatStandsStillLosesItsHolds: when it goes on, after its record has ended, it
// counts its holds as ended, and says so. Their requests end later, which changes nothing.
func TestProcessThatStandsStillLosesItsHolds(t *testing.T) {
	const lasts = int64(30 * time.Second)
	for name, goesOn := range map[string]func(b *Book, now int64){
		"with a tick": func(b *Book, now int64) { b.Tick(now) },
		"with a request": func(b *Book, now int64) {
			c, h := b.Begin(rule.LookHolds, "k", 3, lasts, now)
			require.Equal(t, h.Began, h.Ended)
			b.Failed(c, true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			changed := 0
			b := NewBook(func() { changed++ })
			var held []*Hold
			for i := range int64(2) {
				c, h := b.Begin(rule.AddHold, "k", 3, lasts, i)
				h.Held = rule.Held{Began: i + 1}
				held = append(held, b.Answered(c, &h, true, 0, i))
			}
			b.Tick(lasts)
			left, _ := b.Left("k", 3, lasts, lasts)
			require.EqualValues(t, 1, left, "the process has been seen in time")
			goesOn(b, 2*lasts)
			left, _ = b.Left("k", 3, lasts, 2*lasts)
			require.EqualValues(t, 3, left)
			key, c, h, ok := b.Next(2 * lasts)
			require.True(t, ok)
			require.Equal(t, "k", key)
			require.Equal(t, []int64{2, 2}, []int64{h.Began, h.Ended})
			h.Held = rule.Held{Began: 2, Ended: 2}
			b.Answered(c, &h, false, 0, 2*lasts)
			for _, hold := range held {
				require.True(t, hold.End())
				require.False(t, hold.End())
			}
			require.False(t, b.Waits())
			require.Zero(t, b.Period(), "nothing is left")
		})
	}
}
