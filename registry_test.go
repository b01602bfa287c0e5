package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// quiet are options for a limiter whose log does not matter.
func quiet(limits ...Limit) Options {
	return Options{Limits: limits, Logger: slog.New(slog.DiscardHandler)}
}

// memory returns a memory store of the test's own, gone when the test is over.
func memory(t *testing.T, name string) *MemoryStore {
	s := Memory(t.Name() + "/" + name)
	t.Cleanup(func() { s.Close() })
	return s
}

// fakeStore is a store of another make: its prefix is all there is to it.
type fakeStore struct {
	Store
	prefix string
}

func (s *fakeStore) Prefix() string { return s.prefix }

// wrapped is a store around another one.
type wrapped struct{ Store }

func (w *wrapped) Unwrap() Store { return w.Store }

var hour = FixedWindow(5, time.Hour)

func with(store Store) Options {
	o := quiet(hour)
	o.Store = store
	return o
}

func TestRegistryRefusesWhatIsTaken(t *testing.T) {
	shared := &fakeStore{prefix: "rl:"}
	for _, tc := range []struct {
		what          string
		first, second Options
		name          string // of the second limiter; the first is "api"
		kind          error
		want          string
	}{
		{"name", with(&fakeStore{prefix: "a"}), with(&fakeStore{prefix: "b"}), "api", ErrNameTaken, "the name is taken by the limiter made at registry_test.go:"},
		{"store", with(shared), with(shared), "login", ErrStoreShared, `share one fakeStore (prefix "rl:"): a Store must not be shared across limiters; make a new fakeStore with a unique prefix for each limiter`},
		{"store in a wrapper", with(shared), with(&wrapped{shared}), "login", ErrStoreShared, `share one wrapped (prefix "rl:")`},
		{"store out of a wrapper", with(&wrapped{shared}), with(shared), "login", ErrStoreShared, `share one fakeStore`},
		{"store in two wrappers", with(&wrapped{shared}), with(&wrapped{&wrapped{shared}}), "login", ErrStoreShared, `share one wrapped`},
		{"prefix", with(&fakeStore{prefix: "rl:"}), with(&fakeStore{prefix: "rl:"}), "login", ErrPrefixShared, `share the prefix "rl:": a prefix must not be shared across limiters, whatever client or server it comes with; give each limiter's fakeStore a unique prefix`},
		{"memory store", with(memory(t, "m")), with(memory(t, "m")), "login", ErrStoreShared, "share one MemoryStore"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			var reg Registry
			defer reg.Close()
			first, err := reg.New("api", tc.first)
			require.NoError(t, err)
			second, err := reg.New(tc.name, tc.second)
			require.Nil(t, second)
			require.ErrorIs(t, err, tc.kind)
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, err, "ratelimit: limiter ")

			var conflict *ConflictError
			require.ErrorAs(t, err, &conflict)
			require.Equal(t, tc.name, conflict.Limiter)
			require.Equal(t, "api", conflict.Holder)
			require.Contains(t, conflict.HeldAt, "registry_test.go:")
			require.Contains(t, conflict.Site, "registry_test.go:")
			for _, kind := range []error{ErrNameTaken, ErrStoreShared, ErrPrefixShared} {
				require.Equal(t, kind == tc.kind, errors.Is(err, kind))
			}

			// What was refused claims nothing, and what is closed frees everything.
			require.NoError(t, first.Close())
			require.NoError(t, first.Close())
			_, err = reg.New(tc.name, tc.second)
			require.NoError(t, err)
		})
	}
}

func TestConflictErrorTellsWhereTheFirstWasMade(t *testing.T) {
	var reg Registry
	t.Cleanup(func() { reg.Close() })
	here := func() string {
		_, _, line, _ := runtime.Caller(1)
		return fmt.Sprintf("(registry_test.go:%d)", line)
	}
	memory(t, "x")
	Must(reg.New("api", with(memory(t, "x"))))
	first := here()
	_, err := reg.New("login", with(memory(t, "x")))
	second := here()
	line := func(s string) (n int) { fmt.Sscanf(s, "(registry_test.go:%d)", &n); return n }
	require.ErrorContains(t, err, fmt.Sprintf(`limiter "login" (registry_test.go:%d) and limiter "api" (registry_test.go:%d) share one MemoryStore`, line(second)-1, line(first)-1))

	name := t.Name()
	t.Cleanup(func() { Memory(name).Close() })
	l := Must(New(name, quiet(hour)))
	first = here()
	t.Cleanup(func() { l.Close() })
	_, err = New(name, quiet(hour))
	require.ErrorContains(t, err, fmt.Sprintf("the name is taken by the limiter made at registry_test.go:%d", line(first)-1))
}

func TestStoreInstanceIsRefusedAcrossRegistries(t *testing.T) {
	var a, b Registry
	s := &fakeStore{prefix: "rl:"}
	l := Must(a.New("api", with(s)))
	_, err := b.New("login", with(s))
	require.ErrorIs(t, err, ErrStoreShared)
	_, err = b.New("api", with(&fakeStore{prefix: "rl:"}))
	require.NoError(t, err, "names and prefixes are a registry's own")
	l.Close()
	_, err = b.New("login", with(&wrapped{s}))
	require.ErrorIs(t, err, ErrPrefixShared, "the store is free, the prefix is not")
	b.Close()
}

func TestRefusedOptions(t *testing.T) {
	valid := quiet(hour)
	change := func(f func(*Options)) Options { o := valid; f(&o); return o }
	var reg Registry
	tiny, err := NewMemoryStore(t.Name(), MemoryOptions{MaxKeys: 2})
	require.NoError(t, err)
	defer tiny.Close()
	closed := Memory(t.Name() + "closed")
	closed.Close()
	for _, tc := range []struct {
		name string
		opts Options
		want string
	}{
		{"", valid, "its name is empty"},
		{"a\nb", valid, `its name "a\nb" has a control or invisible character`},
		{"a\u200bb", valid, "has a control or invisible character"},
		{"a\xff", valid, "is not valid UTF-8"},
		{strings.Repeat("x", 129), valid, "its name is 129 bytes long: want at most 128"},
		{"x", Options{}, "Options.Limits: there is none: give at least one"},
		{"x", quiet(Limit{}), "Options.Limits: number 1 (no limit): it is the zero Limit"},
		{"x", quiet(hour, FixedWindow(0, time.Hour)), "Options.Limits: number 2 (0/1h fixed): it allows 0 units: want 1 to"},
		{"x", quiet(FixedWindow(-1, time.Hour)), "it allows -1 units"},
		{"x", quiet(SlidingWindow(1, 0)), "its window is 0s: want 1ms to"},
		{"x", quiet(SlidingWindow(1, -time.Second)), "its window is -1s"},
		{"x", quiet(TokenBucket(1, time.Second, 0)), "its burst is 0 units"},
		{"x", quiet(hour, FixedWindow(7, time.Hour)), "numbers 1 (5/1h fixed) and 2 (7/1h fixed) have the same algorithm and window"},
		{"x", quiet(hour.Named("a"), SlidingWindow(1, time.Hour).Named("a")), `both go by the name "a"`},
		{"x", quiet(hour.Named("x-1m"), SlidingWindow(1, time.Minute)), `both go by the name "x-1m"`},
		{"x", quiet(hour.Named("a\tb")), `its name "a\tb" has a control`},
		{"x", quiet(windows(9)...), "Options.Limits: there are 9: want at most 8"},
		{"x", change(func(o *Options) { o.Store = (*MemoryStore)(nil) }), "Options.Store is a nil *ratelimit.MemoryStore"},
		{"x", change(func(o *Options) { o.Store = &fakeStore{} }), "the prefix of Options.Store is empty"},
		{"x", change(func(o *Options) { o.Store = &fakeStore{prefix: "a\x00"} }), "has a control or invisible character"},
		{"x", change(func(o *Options) { o.Store = byValue{f: func() {}} }), "Options.Store is a ratelimit_test.byValue, which cannot be told from another one"},
		{"x", change(func(o *Options) { o.Store = new(MemoryStore) }), "Options.Store is a MemoryStore made by hand"},
		{"x", change(func(o *Options) { o.Store, o.Limits = tiny, windows(3) }), "with room for 2 counters, and one key needs 3: raise MemoryOptions.MaxKeys"},
		{"x", change(func(o *Options) { o.Store = closed }), "which has been closed: get it anew"},
		{"x", change(func(o *Options) { o.Silence = []string{"shaddow"} }), `Options.Silence has "shaddow", which is no code`},
		{"x", change(func(o *Options) { o.Key = ClientIP{Header: "X-Real-IP"}.Key }), `Options.Key: ClientIP.Header is "X-Real-IP", and no proxy is trusted to write it`},
		{"x", change(func(o *Options) { o.Key = JoinKeys(ClientIP{IPv4Prefix: 33}.Key) }), "Options.Key: ClientIP.IPv4Prefix is 33"},
		{"x", change(func(o *Options) { o.Key = FirstKey() }), "has no functions"},
		{"x", change(func(o *Options) { o.Key = FirstKey(PatternKey, nil) }), "function 2 of JoinKeys or FirstKey is nil"},
		{"x", change(func(o *Options) { o.Denied = http.HandlerFunc(nil) }), "Options.Denied is a nil http.HandlerFunc"},
	} {
		l, err := reg.New(tc.name, tc.opts)
		require.Nil(t, l)
		require.ErrorContains(t, err, tc.want)
		require.ErrorContains(t, err, fmt.Sprintf("ratelimit: limiter %q: ", tc.name))
	}
	for name := range reg.All() {
		t.Errorf("%q was refused and is there", name)
	}
}

// byValue is a store that cannot be a key of a map.
type byValue struct {
	Store
	f func()
}

func (byValue) Prefix() string { return "x" }

func windows(n int) (limits []Limit) {
	for i := range n {
		limits = append(limits, FixedWindow(1, time.Duration(i+1)*time.Second))
	}
	return limits
}

func TestMustPanics(t *testing.T) {
	var reg Registry
	require.PanicsWithError(t, `ratelimit: limiter "x": Options.Limits: there is none: give at least one, such as FixedWindow(5, time.Hour)`,
		func() { Must(reg.New("x", Options{})) })
}

func TestLookupAndAll(t *testing.T) {
	var reg Registry
	for _, name := range []string{"c", "a", "b"} {
		Must(reg.New(name, with(memory(t, name))))
	}
	a, ok := reg.Lookup("a")
	require.True(t, ok)
	require.Equal(t, "a", a.Name())
	_, ok = reg.Lookup("z")
	require.False(t, ok)
	var names []string
	for name, l := range reg.All() {
		require.Equal(t, name, l.Name())
		names = append(names, name)
		l.Close() // while iterating
	}
	require.Equal(t, []string{"a", "b", "c"}, names)
	for range reg.All() {
		t.Fatal("all are closed")
	}
	for _, name := range []string{"a", "b"} {
		Must(reg.New(name, with(memory(t, name))))
	}
	for name := range reg.All() {
		require.Equal(t, "a", name)
		break
	}
	require.NoError(t, reg.Close())
	require.NoError(t, reg.Close())
}

// The failure that this library is for: a page refresh, a hot reload or a rebuilt
// handler tree must not unlock a form that is blocked.
func TestPasswordReset(t *testing.T) {
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
	go func() { // as t.FailNow does it
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

func TestReloadRefusesToHandOverToAnotherName(t *testing.T) {
	var reg, other Registry
	defer reg.Close()
	defer other.Close()
	s := &fakeStore{prefix: "rl:"}
	Must(reg.New("a", with(s)))
	for _, store := range []Store{s, &wrapped{s}, &fakeStore{prefix: "rl:"}} {
		err := reg.Reload(func(next *Registry) error {
			_, err := next.New("b", with(store))
			return err
		})
		var conflict *ConflictError
		require.ErrorAs(t, err, &conflict, "requests in flight would count into it")
	}
	require.NoError(t, reg.Reload(func(next *Registry) error {
		_, err := next.New("a", with(&fakeStore{prefix: "rl:"})) // as a RedisStore made anew
		return err
	}))

	// A store that another registry claims while build runs.
	free := &fakeStore{prefix: "free:"}
	err := reg.Reload(func(next *Registry) error {
		Must(next.New("a", with(free)))
		Must(other.New("thief", with(free)))
		return nil
	})
	require.ErrorIs(t, err, ErrStoreShared)
	_, ok := reg.Lookup("a")
	require.True(t, ok)
}

func TestOverlappingReloads(t *testing.T) {
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

// Requests are decided exactly while limiters are reloaded, changed and looked up.
func TestReloadUnderTraffic(t *testing.T) {
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

func TestConcurrentNewHasOneWinner(t *testing.T) {
	var reg Registry
	defer reg.Close()
	s := &fakeStore{prefix: "rl:"}
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 32 {
		wg.Go(func() {
			if _, err := reg.New(fmt.Sprint(i), with(s)); err == nil {
				mu.Lock()
				won++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, won)
}

func TestStoreThatWrapsItself(t *testing.T) {
	var reg Registry
	defer reg.Close()
	w := &wrapped{}
	w.Store = &loop{w}
	_, err := reg.New("a", with(w))
	require.ErrorContains(t, err, "Options.Store wraps more than 16 stores, or itself")
	_, err = (*Registry)(nil).New("a", quiet(hour))
	require.ErrorContains(t, err, "the Registry is nil")
}

type loop struct{ Store }

func (l *loop) Unwrap() Store  { return l.Store }
func (l *loop) Prefix() string { return "loop:" }
func (w *wrapped) Prefix() string {
	if w.Store == nil {
		return ""
	}
	return w.Store.Prefix()
}
