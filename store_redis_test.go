package ratelimit_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/storetest"
)

func TestRedisStoreConformsOnMiniredis(t *testing.T) {
	var m *mini
	storetest.Run(t, func(t *testing.T, prefix string) Store {
		if prefix == "storetest:" { // the first of a case
			m = newMini(t)
		}
		return redisStore(t, m.client(t), prefix)
	}, storetest.Clock(func(d time.Duration) { m.advance(d) }, 2*time.Millisecond), storetest.WallClock(func() time.Time { return m.now }))
}

// TestFailedCommandIsNotSentAgain has commands that fail and replies that are lost.
// The script may have counted before that. So the store returns the error and does
// not send the command again.
func TestFailedCommandIsNotSentAgain(t *testing.T) {
	for _, failure := range []error{
		io.EOF, context.DeadlineExceeded, errors.New("ERR of any kind"), errors.New("OOM command not allowed"), errors.New("READONLY replica"),
		errors.New("LOADING the dataset"), errors.New("TRYAGAIN keys in two places"), errors.New("BUSY running a script"),
	} {
		client := newMini(t).client(t)
		s := redisStore(t, client, "rl:")
		take(t, s, "k", 1, hour) // Redis knows the script now
		sent, fails := 0, true
		client.AddHook(redistest.Hook(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			err := next(ctx, cmd)
			if fails && strings.HasPrefix(cmd.Name(), "eval") {
				sent++
				cmd.SetErr(failure)
				return failure
			}
			return err
		}))
		require.Error(t, takeErr(s, "k", 1, []Limit{hour}), failure)
		require.Equal(t, 1, sent, failure)
		fails = false
		results, _ := take(t, s, "k", 0, hour)
		require.EqualValues(t, 3, results[0].Remaining, failure)
	}
}

// TestClosedLimitersLeaveNoGoroutines makes, uses and closes limiters on one
// client.
func TestClosedLimitersLeaveNoGoroutines(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		use := func() {
			opts := withRedis(c, FixedWindow(1000, time.Hour))
			opts.Lease = 10 * time.Millisecond
			l, err := new(Registry).New("login", opts)
			require.NoError(t, err)
			for range 50 {
				decide(t, l, "k", 1)
				time.Sleep(time.Millisecond)
			}
			require.NoError(t, l.Close())
			synctest.Wait()
		}
		use() // the first use connects
		before := goroutines()
		for range 20 {
			use()
		}
		require.Less(t, goroutines(), before+10, "goroutines after 20 limiters")
	})
}
