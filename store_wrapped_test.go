package ratelimit_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// renamed is a wrapper with a prefix of its own.
type renamed struct {
	Store
	prefix string
}

func (r *renamed) Prefix() string { return r.prefix }
func (r *renamed) Unwrap() Store  { return r.Store }

// embeds is a wrapper that embeds a RedisStore, counts its calls, and has no Unwrap.
type embeds struct {
	*RedisStore
	prefix string
	takes  int
}

func (e *embeds) Prefix() string { return e.prefix }

func (e *embeds) Take(ctx context.Context, key string, n int64, limits []Limit, results []Result) (Instant, error) {
	e.takes++
	return e.RedisStore.Take(ctx, key, n, limits, results)
}

// TestPrefixesAreClaimedThroughEveryLayer: a wrapper with a prefix of its own does
// not hide the one inside.
func TestPrefixesAreClaimedThroughEveryLayer(t *testing.T) {
	m := newMini(t)
	client := m.client(t)
	options := func(s Store) Options { return Options{Limits: []Limit{hour}, Store: s, Logger: quietly} }
	inside := func() Store { return redisStore(t, client, "rl:inside:") }
	for name, wrap := range map[string]func(own string) Store{
		"once":     func(own string) Store { return &renamed{inside(), own} },
		"twice":    func(own string) Store { return &renamed{&renamed{inside(), own + "2"}, own} },
		"embedded": func(own string) Store { return &embeds{RedisStore: inside().(*RedisStore), prefix: own} },
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

// TestEmbeddedRedisStore: a wrapper that embeds a RedisStore is called itself, and
// writes the record of its owner.
func TestEmbeddedRedisStore(t *testing.T) {
	m := newMini(t)
	s := &embeds{RedisStore: redisStore(t, m.client(t), "rl:"), prefix: "own"}
	l, err := new(Registry).New("login", Options{Limits: []Limit{hour}, Store: s, Logger: quietly})
	require.NoError(t, err)
	decide(t, l, "k", 1)
	require.Equal(t, 1, s.takes)
	require.NoError(t, l.Close())
	require.NoError(t, s.Close(), "which waits for the record")
	record, err := m.Get("rl:owner")
	require.NoError(t, err)
	require.Contains(t, record, `"limiter":"login"`)
}

// TestWrappedMemoryStoreIsValidated through every layer, when a limiter is made and
// when its limits change.
func TestWrappedMemoryStoreIsValidated(t *testing.T) {
	small, err := NewMemoryStore(t.Name(), MemoryOptions{MaxKeys: 1})
	require.NoError(t, err)
	two := []Limit{hour, FixedWindow(1, time.Minute)}
	for name, store := range map[string]Store{
		"itself": small, "wrapped": &renamed{small, "own"}, "twice": &wrapper{&renamed{small, "own"}},
	} {
		_, err := new(Registry).New("login", Options{Limits: two, Store: store, Logger: quietly})
		require.ErrorContains(t, err, "raise MemoryOptions.MaxKeys", name)
		l, err := new(Registry).New("login", Options{Limits: two[:1], Store: store, Logger: quietly})
		require.NoError(t, err)
		require.ErrorContains(t, l.SetLimits(two...), "raise MemoryOptions.MaxKeys", name)
		require.NoError(t, l.Close())
	}
	_, err = new(Registry).New("login", Options{Limits: two, Store: &wrapper{(*MemoryStore)(nil)}, Logger: quietly})
	require.ErrorContains(t, err, "Options.Store wraps a nil *ratelimit.MemoryStore")
	require.NoError(t, small.Close())
	_, err = new(Registry).New("login", Options{Limits: two[:1], Store: &renamed{small, "own"}, Logger: quietly})
	require.ErrorContains(t, err, "which has been closed")
}

// TestFailedReloadChangesNoRecord: the record of who owns a prefix is written when
// the Reload has succeeded.
func TestFailedReloadChangesNoRecord(t *testing.T) {
	wrong := errors.New("wrong")
	for _, test := range []struct {
		fails error
		want  string
	}{{wrong, `"5/1h fixed"`}, {nil, `"6/1h fixed"`}} {
		m := newMini(t)
		store := redisStore(t, m.client(t), "rl:")
		options := func(n int64) Options {
			return Options{Limits: []Limit{FixedWindow(n, time.Hour)}, Store: store, Logger: quietly}
		}
		reg := new(Registry)
		l, err := reg.New("login", options(5))
		require.NoError(t, err)
		decide(t, l, "k", 1)
		require.Eventually(t, func() bool { return m.Exists("rl:owner") }, 10*time.Second, time.Millisecond)
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

// TestCloseDuringAReload leaves nothing open: the Reload fails.
func TestCloseDuringAReload(t *testing.T) {
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
