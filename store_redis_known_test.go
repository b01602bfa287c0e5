package ratelimit_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestSameCountInAnotherWindow: a process takes a unit of a key that it knows. The key
// has the number of units that the process last saw, but the counter was deleted in the
// meantime and others have counted up to that number again. The number alone does
// not show that, so an answer must not rely on it: the process gets the end of the
// present window, as a process gets it that knows nothing of the key.
func TestSameCountInAnotherWindow(t *testing.T) {
	deletions := map[string]func(m *mini, other *Limiter) error{
		"reset by another process":   func(m *mini, other *Limiter) error { return other.Reset(ctx, "k") },
		"deleted by hand or evicted": func(m *mini, other *Limiter) error { m.FlushAll(); return nil },
	}
	for what, remove := range deletions {
		for _, limit := range algorithms(10, time.Hour) {
			t.Run(fmt.Sprint(what, "/", limit), func(t *testing.T) {
				m := newMini(t)
				process := func() *Limiter {
					l := Must(new(Registry).New("api", withRedis(m.client(t), limit)))
					t.Cleanup(func() { l.Close() })
					return l
				}
				l, other := process(), process()
				require.EqualValues(t, 6, decide(t, l, "k", 4).Remaining)
				m.advance(20 * time.Minute)
				require.NoError(t, remove(m, other))
				require.EqualValues(t, 6, decide(t, other, "k", 4).Remaining, "the other process counts to the same number")
				m.advance(10 * time.Minute)

				got, want := decide(t, l, "k", 1), decide(t, process(), "k", 0)
				require.True(t, got.Allowed)
				require.Equal(t, SourceStore, got.Source)
				require.Equal(t, want.Remaining, got.Remaining)
				require.Equal(t, want.ResetAfter, got.ResetAfter)
				if limit == FixedWindow(10, time.Hour) {
					require.Equal(t, 50*time.Minute, got.ResetAfter)
				}
			})
		}
	}
}
