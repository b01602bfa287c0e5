package ratelimit_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// useOften makes calls for a key in a bubble, enough to lease units, and returns how many are
// admitted.
func useOften(t *testing.T, l *Limiter, calls int) (admitted int64) {
	for range calls {
		if decide(t, l, "key", 1).Allowed {
			admitted++
		}
		time.Sleep(100 * time.Microsecond)
	}
	return admitted
}

// TestReloadHandsLeasesOn checks that a replaced limiter leaves no goroutine
// running, however busy a key is, and that its successor uses the leased units.
func TestReloadHandsLeasesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &remoteBackend{Store: memory(t, "")}
		opts := Options{Limits: []Limit{FixedWindow(100_000, time.Hour)}, Store: store, Lease: 20 * time.Millisecond, Logger: quietly}
		reg := new(Registry)
		l, err := reg.New("hot", opts)
		require.NoError(t, err)
		admitted := useOften(t, l, 200)
		require.NotZero(t, l.Stats().Remote.Leased)
		before := goroutines()
		for range 30 {
			require.NoError(t, reg.Reload(func(next *Registry) error {
				_, err := next.New("hot", opts)
				return err
			}))
			old := l
			l, _ = reg.Lookup("hot")
			decide(t, old, "key", 1) // a request in flight
			admitted += 1 + useOften(t, l, 200)
			synctest.Wait()
		}
		require.Less(t, goroutines(), before+5, "goroutines, of 30 reloads")
		time.Sleep(time.Second)
		synctest.Wait()
		d, err := l.TakeN(ctx, "key", 0)
		require.NoError(t, err)
		require.EqualValues(t, 100_000-admitted, d.Remaining, "no unit is lost")
		require.NoError(t, reg.Close())
		synctest.Wait()
		results := make([]Result, 1)
		_, err = store.Store.Take(ctx, "key", 0, opts.Limits, results)
		require.NoError(t, err)
		require.EqualValues(t, 100_000-admitted, results[0].Remaining, "at the store")
	})
}

func TestSuccessorGivesBackLeasesOfAClosedClient(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, old *redis.Client) {
		successor := pipe(t, m)
		limits := []Limit{FixedWindow(100_000, time.Hour)}
		options := func(c redis.UniversalClient) Options {
			return Options{Limits: limits, Redis: c, Lease: 50 * time.Millisecond, Logger: quietly}
		}
		reg := new(Registry)
		l, err := reg.New("hot", options(old))
		require.NoError(t, err)
		admitted := useOften(t, l, 400)
		require.NotZero(t, l.Stats().Remote.Leased)
		require.NoError(t, reg.Reload(func(next *Registry) error {
			_, err := next.New("hot", options(successor))
			return err
		}))
		require.NoError(t, l.Close())
		require.NoError(t, old.Close())
		require.NoError(t, reg.Close(), "gives back what is leased")
		left, _ := take(t, redisStore(t, successor, "rl:hot:"), "key", 0, limits[0])
		require.EqualValues(t, 100_000-admitted, left[0].Remaining)
	})
}
