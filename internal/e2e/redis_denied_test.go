package e2e_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// TestDenialOfAKeyThatHadRoomChangesNothing: a process has seen a key with most of its units
// left, and another process has taken them since. The denial that the first process gets
// is no write, not even one that is taken back in the same script: the server reports no
// event of the key.
func TestDenialOfAKeyThatHadRoomChangesNothing(t *testing.T) {
	for _, limits := range limitSets(20) {
		server := redistest.Start(t)
		client := server.Client()
		require.NoError(t, client.ConfigSet(ctx, "notify-keyspace-events", "KA").Err())
		first := newLimiter(t, "api", redisOptions(server.Client(), limits...))
		other := newLimiter(t, "api", redisOptions(server.Client(), limits...))
		require.EqualValues(t, 19, decide(t, first, "k", 1).Remaining)
		require.EqualValues(t, 0, decide(t, other, "k", 19).Remaining)

		const end = "rl:api:{k}:end" // no counter; it shows that all earlier events have arrived
		events := client.PSubscribe(ctx, "__keyspace@0__:rl:api:{k}:*")
		defer events.Close()
		_, err := events.Receive(ctx)
		require.NoError(t, err)
		for range 2 { // the first one teaches the process that the key is denied
			require.False(t, decide(t, first, "k", 1).Allowed, "%v", limits)
		}
		require.NoError(t, client.Set(ctx, end, "", 0).Err())
		event, err := events.ReceiveMessage(ctx)
		require.NoError(t, err)
		require.True(t, strings.HasSuffix(event.Channel, end), "%v: %s of %s", limits, event.Payload, event.Channel)
	}
}
