package admin

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
)

// All handlers for a registry share one watch. It does not keep the registry in memory, and ends
// with it.
func TestWatchEndsWithItsRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := new(ratelimit.Registry)
		p := weak.Make(r)
		first, second := Handler(Options{Registry: r}).(*handler), Handler(Options{Registry: r}).(*handler)
		require.Same(t, first.watch, second.watch)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Contains(t, watched(), p)

		first, second, r = nil, nil, nil
		runtime.GC()
		time.Sleep(every)
		synctest.Wait()
		require.NotContains(t, watched(), p)
	})
}

// A registry that a Reload has built is gone after it, and leaves nothing behind that keeps
// following the limiters.
func TestHandlerInsideOfAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := new(ratelimit.Registry)
		var w *watch
		require.NoError(t, r.Reload(func(next *ratelimit.Registry) error {
			w = Handler(Options{Registry: next}).(*handler).watch
			return nil
		}))
		runtime.GC()
		time.Sleep(every)
		synctest.Wait()
		require.True(t, w.ended.Load())
		w.observe(t.Context(), ratelimit.Event{Kind: ratelimit.EventDenied, Limiter: "login", Key: "ada"})
		w.tracks.Range(func(name, _ any) bool { t.Errorf("it follows %v", name); return true })
	})
}

func watched() map[weak.Pointer[ratelimit.Registry]]*watch {
	watches.mu.Lock()
	defer watches.mu.Unlock()
	all := make(map[weak.Pointer[ratelimit.Registry]]*watch)
	for p, w := range watches.of {
		all[p] = w
	}
	return all
}

// What is known of a limiter is forgotten when it is gone, and long keys give their memory back.
func TestTracksEndWithTheirLimiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := new(ratelimit.Registry)
		store := ratelimit.Memory(t.Name())
		defer store.Close()
		l, err := r.New("login", ratelimit.Options{Store: store, Limits: []ratelimit.Limit{ratelimit.Deny}})
		require.NoError(t, err)
		w := watchOf(r)
		for range maxNotices + 1 {
			w.track("login").note(&ratelimit.Event{Kind: ratelimit.EventWarning, Code: ratelimit.CodeNoKey})
		}
		_, err = l.Take(context.Background(), string(make([]byte, 5000)))
		require.NoError(t, err)
		require.EqualValues(t, 5000, w.long.Load())
		require.Len(t, w.track("login").recent(), maxNotices)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Len(t, w.track("login").minute(), maxSamples)

		require.NoError(t, l.Close())
		time.Sleep(every)
		synctest.Wait()
		_, ok := w.tracks.Load("login")
		require.False(t, ok)
		require.Zero(t, w.long.Load())
	})
}
