package ratelimit_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestMustPanicsOnAnError(t *testing.T) {
	var reg Registry
	require.PanicsWithError(t, `ratelimit: limiter "x": Options.Limits: there is none: give at least one, such as FixedWindow(5, time.Hour)`,
		func() { Must(reg.New("x", Options{})) })
}

func TestLookupAndAllFindOpenLimiters(t *testing.T) {
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

func TestConcurrentNewHasOneWinner(t *testing.T) {
	var reg Registry
	defer reg.Close()
	s := &fakeStore{prefix: "rl:"}
	var wg sync.WaitGroup
	var mu sync.Mutex
	winners := 0
	for i := range 32 {
		wg.Go(func() {
			if _, err := reg.New(fmt.Sprint(i), with(s)); err == nil {
				mu.Lock()
				winners++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, winners)
}
