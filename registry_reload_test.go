package ratelimit_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestPasswordResetStaysLimitedThroughReloads checks the failure that led to this
// library: a page refresh, a hot reload or a rebuilt handler tree must not
// unlock a form that is blocked.
func TestPasswordResetStaysLimitedThroughReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reg Registry
		name := t.Name()
		t.Cleanup(func() { Memory(name).Close() })
		var handler http.Handler
		build := func(next *Registry) error {
			l, err := next.New(name, quiet(FixedWindow(3, time.Hour)))
			if err != nil {
				return err
			}
			mux := http.NewServeMux()
			mux.Handle("POST /reset", l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})))
			handler = mux
			return nil
		}
		send := func() int {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest("POST", "/reset", nil))
			return w.Code
		}
		require.NoError(t, reg.Reload(build))
		start := time.Now()
		for range 3 {
			require.Equal(t, 200, send())
			time.Sleep(10 * time.Minute)
		}
		require.Equal(t, 429, send())
		for range 5 {
			require.NoError(t, reg.Reload(build))
			require.Equal(t, 429, send())
		}
		time.Sleep(time.Until(start.Add(time.Hour - time.Nanosecond)))
		require.Equal(t, 429, send())
		time.Sleep(time.Nanosecond)
		require.Equal(t, 200, send(), "an hour after the first attempt, not after the last")
	})
}

func TestReloadReplacesAllAtOnce(t *testing.T) {
	var reg Registry
	kept := Must(reg.New("kept", with(memory(t, "kept"))))
	Must(reg.New("dropped", with(&fakeStore{prefix: "dropped:"})))
	kept.Take(ctx, "k")

	var next *Registry
	require.NoError(t, reg.Reload(func(n *Registry) error {
		next = n
		Must(n.New("kept", with(memory(t, "kept"))))
		_, err := n.New("kept", with(memory(t, "other")))
		require.ErrorIs(t, err, ErrNameTaken, "within a generation every refusal holds")
		_, err = n.New("new", with(memory(t, "kept")))
		require.ErrorIs(t, err, ErrStoreShared)
		Must(n.New("new", with(memory(t, "new"))))
		running, _ := reg.Lookup("kept")
		require.Same(t, kept, running, "the running generation runs on")
		_, ok := reg.Lookup("new")
		require.False(t, ok)
		return nil
	}))
	successor, _ := reg.Lookup("kept")
	require.NotSame(t, kept, successor)
	_, ok := reg.Lookup("dropped")
	require.False(t, ok)
	d, err := successor.Take(ctx, "k")
	require.NoError(t, err)
	require.EqualValues(t, 3, d.Remaining, "counters carry over")
	d, err = kept.Take(ctx, "k")
	require.NoError(t, err, "a request in flight on the old one finishes")
	require.EqualValues(t, 2, d.Remaining)

	_, err = next.New("late", quiet(hour))
	require.ErrorContains(t, err, "the Reload that this registry was for has ended")
	require.ErrorContains(t, kept.SetLimits(hour), "a Reload has replaced this limiter: Lookup its successor")
	require.NoError(t, successor.SetLimits(hour))
	require.NoError(t, kept.Close(), "closing what was replaced frees nothing of its successor's")
	_, err = reg.New("kept", with(memory(t, "x")))
	require.ErrorIs(t, err, ErrNameTaken)
	Must(reg.New("again", with(&fakeStore{prefix: "dropped:"})))
	reg.Close()
}

func TestReloadThatFailsChangesNothing(t *testing.T) {
	var reg Registry
	defer reg.Close()
	s := &fakeStore{prefix: "rl:"}
	old := Must(reg.New("a", with(s)))
	var leaked *Limiter
	partly := func(next *Registry) {
		leaked = Must(next.New("a", with(s)))
		Must(next.New("b", with(&fakeStore{prefix: "b:"})))
	}
	unchanged := func() {
		l, ok := reg.Lookup("a")
		require.True(t, ok)
		require.Same(t, old, l)
		_, ok = reg.Lookup("b")
		require.False(t, ok)
		_, err := reg.New("c", with(s))
		require.ErrorIs(t, err, ErrStoreShared, "the old limiter still has its store")
		_, err = leaked.Take(ctx, "k")
		require.ErrorIs(t, err, ErrClosed, "what was built is of no use")
	}
	broken := errors.New("broken file")
	err := reg.Reload(func(next *Registry) error { partly(next); return broken })
	require.ErrorIs(t, err, broken)
	require.ErrorContains(t, err, "nothing has changed")
	unchanged()
	require.PanicsWithValue(t, "boom", func() { reg.Reload(func(next *Registry) error { partly(next); panic("boom") }) })
	unchanged()
	done := make(chan struct{})
	go func() { // like t.FailNow
		defer close(done)
		reg.Reload(func(next *Registry) error { partly(next); runtime.Goexit(); return nil })
	}()
	<-done
	unchanged()
	require.ErrorContains(t, reg.Reload(nil), "needs a build function")
	require.ErrorContains(t, reg.Reload(func(next *Registry) error {
		return next.Reload(func(*Registry) error { return nil })
	}), "inside of a Reload's build function")
}

func TestReloadFailsIfTheRegistryHasChanged(t *testing.T) {
	var reg Registry
	defer reg.Close()
	err := reg.Reload(func(next *Registry) error {
		return reg.Reload(func(inner *Registry) error {
			Must(inner.New("inner", with(&fakeStore{prefix: "i:"})))
			return nil
		})
	})
	require.ErrorContains(t, err, "another Reload finished meanwhile; call it again")
	_, ok := reg.Lookup("inner")
	require.True(t, ok, "the inner one was there first")

	err = reg.Reload(func(next *Registry) error {
		Must(reg.New("made meanwhile", with(&fakeStore{prefix: "m:"})))
		return nil
	})
	require.ErrorContains(t, err, "a limiter was made")
	_, ok = reg.Lookup("made meanwhile")
	require.True(t, ok, "it must not be forgotten")
}

// TestReloadUnderTrafficKeepsCountsExact reloads and looks up a limiter while
// requests are decided.
func TestReloadUnderTrafficKeepsCountsExact(t *testing.T) {
	var reg Registry
	defer reg.Close()
	store := memory(t, "s")
	build := func(next *Registry) error {
		_, err := next.New("a", with(store))
		return err
	}
	require.NoError(t, reg.Reload(build))
	running, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex
	admitted := 0
	for range 8 {
		wg.Go(func() {
			for running.Err() == nil {
				l, ok := reg.Lookup("a")
				if !ok {
					t.Error("there must always be one")
					return
				}
				d, err := l.Take(ctx, "k")
				if err != nil {
					t.Error(err)
					return
				}
				if d.Allowed {
					mu.Lock()
					admitted++
					mu.Unlock()
				}
			}
		})
	}
	all := func() bool { mu.Lock(); defer mu.Unlock(); return admitted >= 5 }
	for i := 0; i < 200 || !all(); i++ {
		require.NoError(t, reg.Reload(build))
	}
	cancel()
	wg.Wait()
	require.Equal(t, 5, admitted)
}

// TestFailedReloadChangesNoRecord checks the record of a prefix's owner. It
// changes only if the Reload succeeds.
func TestFailedReloadChangesNoRecord(t *testing.T) {
	wrong := errors.New("wrong")
	for _, test := range []struct {
		fails error
		want  string
	}{{wrong, `"5/1h fixed"`}, {nil, `"6/1h fixed"`}} {
		m := newMini(t)
		store := redisStore(t, m.client(t), "rl:")
		options := func(n int64) Options {
			return Options{Limits: []Limit{FixedWindow(n, time.Hour)}, Store: store, Timeout: time.Minute, Logger: quietly}
		}
		reg := new(Registry)
		l, err := reg.New("login", options(5))
		require.NoError(t, err)
		decide(t, l, "k", 1)
		require.Eventually(t, func() bool { return m.Exists("rl:owner") }, 20*time.Second, time.Millisecond)
		require.ErrorIs(t, reg.Reload(func(next *Registry) error {
			_, err := next.New("login", options(6))
			return errors.Join(err, test.fails)
		}), test.fails)
		l, _ = reg.Lookup("login")
		decide(t, l, "k", 1)
		require.NoError(t, reg.Close())
		require.NoError(t, store.Close(), "which waits for the record")
		text, err := m.Get("rl:owner")
		require.NoError(t, err)
		require.Contains(t, text, test.want)
	}
}

// TestCloseFailsARunningReload checks that nothing stays open.
func TestCloseFailsARunningReload(t *testing.T) {
	reg := new(Registry)
	options := Options{Limits: []Limit{hour}, Store: memory(t, ""), Logger: quietly}
	_, err := reg.New("login", options)
	require.NoError(t, err)
	var made *Limiter
	err = reg.Reload(func(next *Registry) (err error) {
		made, err = next.New("login", options)
		require.NoError(t, reg.Close())
		return err
	})
	require.ErrorContains(t, err, "the registry was closed")
	_, err = made.Take(ctx, "k")
	require.ErrorIs(t, err, ErrClosed)
	_, there := reg.Lookup("login")
	require.False(t, there)
	_, err = reg.New("login", options)
	require.NoError(t, err, "the registry can be used again")
	require.NoError(t, reg.Close())
}

// TestResetReachesPlansOfBeforeAReload has a key that was denied under a plan that the
// new limiter has not seen yet.
func TestResetReachesPlansOfBeforeAReload(t *testing.T) {
	var reg Registry
	defer reg.Close()
	opts := with(memory(t, "x"))
	l, err := reg.New("x", opts)
	require.NoError(t, err)
	plan := FixedWindow(1, 2*time.Hour)
	for range 2 {
		_, err = l.TakeLimits(ctx, "key", 1, plan)
		require.NoError(t, err)
	}
	for range 2 {
		require.NoError(t, reg.Reload(func(next *Registry) (err error) {
			l, err = next.New("x", opts)
			return err
		}))
	}
	require.NoError(t, l.Reset(ctx, "key"))
	d, err := l.TakeLimits(ctx, "key", 1, plan)
	require.NoError(t, err)
	require.True(t, d.Allowed)
}
