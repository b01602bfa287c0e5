package ratelimit_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestHashedKeysShowNothing counts addresses and e-mail addresses, under all
// algorithms. Afterwards it reads everything at Redis.
func TestHashedKeysShowNothing(t *testing.T) {
	m := newMini(t)
	client := m.client(t)
	secret := []byte("0123456789abcdef")
	store := redisStore(t, client, "rl:", HashKeys(secret))
	clear(secret) // the store has its own copy
	keys := []string{"203.0.113.7", "ann@example.com", strings.Repeat("long", 100), "{brace}", "\x00\xff"}
	opts := quiet(algorithms(5, time.Hour)...)
	opts.Store, opts.Timeout = store, time.Minute
	l, err := new(Registry).New("login", opts)
	require.NoError(t, err)
	for _, key := range keys {
		require.True(t, decide(t, l, key, 2).Allowed)
	}
	found, err := client.Keys(ctx, "*").Result()
	require.NoError(t, err)
	counters := 0
	for _, k := range found {
		for _, key := range keys {
			assert.NotContains(t, k, key)
		}
		assert.NotContains(t, k, "sha256", "which anybody can compute")
		if strings.Contains(k, "{") {
			assert.Regexp(t, `^rl:\{[A-Za-z0-9_-]{22}\}:(fixed|sliding|bucket)-1h$`, k)
			counters++
		}
	}
	assert.Equal(t, 15, counters)

	// Another process with the same secret finds the counters, and so do refunds and
	// resets. Another secret means another counter.
	other := quiet(algorithms(5, time.Hour)...)
	other.Store, other.Timeout = redisStore(t, client, "rl:", HashKeys([]byte("0123456789abcdef"))), time.Minute
	otherProcess, err := new(Registry).New("login", other)
	require.NoError(t, err)
	for _, key := range keys {
		assert.EqualValues(t, 3, leftOf(t, otherProcess, key))
		require.NoError(t, l.Refund(ctx, key, 1))
		assert.EqualValues(t, 4, leftOf(t, otherProcess, key))
		require.NoError(t, l.Reset(ctx, key))
		assert.EqualValues(t, 5, leftOf(t, otherProcess, key))
	}
	results, _ := take(t, redisStore(t, client, "rl:", HashKeys([]byte("another secret..."))), keys[0], 1, algorithms(5, time.Hour)...)
	assert.EqualValues(t, 4, results[0].Remaining)
	results, _ = take(t, redisStore(t, client, "rl:"), keys[0], 0, algorithms(5, time.Hour)...)
	assert.EqualValues(t, 5, results[0].Remaining)
}

func TestHashKeysNeedsASecret(t *testing.T) {
	for _, secret := range [][]byte{nil, {}, make([]byte, 15)} {
		_, err := NewRedisStore(unreachableClient(t), "rl:", HashKeys(secret))
		require.ErrorContains(t, err, `ratelimit: RedisStore "rl:": the secret of HashKeys is`)
		require.ErrorContains(t, err, "want at least 16 random ones")
	}
}
