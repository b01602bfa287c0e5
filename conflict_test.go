package ratelimit_test

import (
	"errors"
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestRegistryRefusesWhatIsTaken(t *testing.T) {
	shared := &fakeStore{prefix: "rl:"}
	for _, tc := range []struct {
		what          string
		first, second Options
		name          string // of the second limiter; the first has "api"
		kind          error
		want          string
	}{
		{"name", with(&fakeStore{prefix: "a"}), with(&fakeStore{prefix: "b"}), "api", ErrNameTaken, "in tests, make limiters with package ratelimittest, or close them"},
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
			require.Contains(t, conflict.HeldAt, "conflict_test.go:")
			require.Contains(t, conflict.Site, "conflict_test.go:")
			for _, kind := range []error{ErrNameTaken, ErrStoreShared, ErrPrefixShared} {
				require.Equal(t, kind == tc.kind, errors.Is(err, kind))
			}

			// A refused limiter claims nothing, and a closed limiter frees everything.
			require.NoError(t, first.Close())
			require.NoError(t, first.Close())
			_, err = reg.New(tc.name, tc.second)
			require.NoError(t, err)
		})
	}
}

func TestConflictErrorHasBothPlacesInTheSource(t *testing.T) {
	var reg Registry
	t.Cleanup(func() { reg.Close() })
	here := func() string {
		_, _, line, _ := runtime.Caller(1)
		return fmt.Sprintf("(conflict_test.go:%d)", line)
	}
	memory(t, "x")
	Must(reg.New("api", with(memory(t, "x"))))
	first := here()
	_, err := reg.New("login", with(memory(t, "x")))
	second := here()
	line := func(s string) (n int) { fmt.Sscanf(s, "(conflict_test.go:%d)", &n); return n }
	require.ErrorContains(t, err, fmt.Sprintf(`limiter "login" (conflict_test.go:%d) and limiter "api" (conflict_test.go:%d) share one MemoryStore`, line(second)-1, line(first)-1))

	name := t.Name()
	t.Cleanup(func() { Memory(name).Close() })
	l := Must(New(name, quiet(hour)))
	first = here()
	t.Cleanup(func() { l.Close() })
	_, err = New(name, quiet(hour))
	require.ErrorContains(t, err, fmt.Sprintf("the name is taken by the limiter made at conflict_test.go:%d", line(first)-1))
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
		_, err := next.New("a", with(&fakeStore{prefix: "rl:"})) // as a new RedisStore
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

// TestPrefixesAreClaimedThroughEveryLayer uses wrappers that have their own
// prefix. They do not hide the prefix of the store inside.
func TestPrefixesAreClaimedThroughEveryLayer(t *testing.T) {
	m := newMini(t)
	client := m.client(t)
	options := func(s Store) Options { return Options{Limits: []Limit{hour}, Store: s, Logger: quietly} }
	inside := func() Store { return redisStore(t, client, "rl:inside:") }
	for name, wrap := range map[string]func(prefix string) Store{
		"once":     func(prefix string) Store { return &renamed{inside(), prefix} },
		"twice":    func(prefix string) Store { return &renamed{&renamed{inside(), prefix + "2"}, prefix} },
		"embedded": func(prefix string) Store { return &embeds{RedisStore: inside().(*RedisStore), prefix: prefix} },
	} {
		t.Run(name, func(t *testing.T) {
			reg := new(Registry)
			defer reg.Close()
			_, err := reg.New("one", options(wrap("one")))
			require.NoError(t, err)
			_, err = reg.New("two", options(wrap("two")))
			var conflict *ConflictError
			require.ErrorAs(t, err, &conflict)
			require.ErrorIs(t, err, ErrPrefixShared)
			require.Equal(t, "rl:inside:", conflict.Prefix)
			_, err = reg.New("three", options(inside()))
			require.ErrorIs(t, err, ErrPrefixShared)

			l, _ := reg.Lookup("one")
			require.NoError(t, l.Close())
			_, err = reg.New("three", options(inside()))
			require.NoError(t, err, "a limiter that is closed claims nothing")
			require.NoError(t, reg.Reload(func(next *Registry) error {
				_, err := next.New("three", options(wrap("three")))
				return err
			}), "its own prefix")
		})
	}
}

func TestStoreThatWrapsItselfIsRefused(t *testing.T) {
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

func TestConflictsOfRedisStoresSayWhatToDo(t *testing.T) {
	var reg Registry
	defer reg.Close()
	store := redisStore(t, unreachableClient(t), "rl:")
	Must(reg.New("api", with(store)))
	_, err := reg.New("login", with(store))
	require.ErrorIs(t, err, ErrStoreShared)
	require.Regexp(t, `^ratelimit: limiter "login" \(conflict_test.go:\d+\) and limiter "api" \(conflict_test.go:\d+\) `+
		`share one RedisStore \(prefix "rl:"\): a Store must not be shared across limiters; make a new RedisStore with a unique prefix for `+
		`each limiter \(the Redis client may be shared\)$`, err.Error())

	_, err = reg.New("login", with(redisStore(t, unreachableClient(t), "rl:")))
	require.ErrorIs(t, err, ErrPrefixShared)
	require.ErrorContains(t, err, `share the prefix "rl:"`)
	require.ErrorContains(t, err, "whatever client or server it comes with; give each limiter's RedisStore a unique prefix")

	_, err = reg.New("other", with(redisStore(t, unreachableClient(t), "rl:web:")))
	require.NoError(t, err)
	_, err = reg.New("web", withRedis(unreachableClient(t), hour))
	require.ErrorIs(t, err, ErrPrefixShared)
}
