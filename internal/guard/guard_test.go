package guard_test

import (
	"errors"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/guard"
)

// TestRun: a panic is reported once, and a panic of the report is dropped.
func TestRun(t *testing.T) {
	var reported []string
	guard.Run(func() {}, func(p guard.Panic) { reported = append(reported, p.Error()) })
	guard.Run(func() { panic("a bug") }, func(p guard.Panic) {
		reported = append(reported, p.Error())
		panic("another bug")
	})
	require.Equal(t, []string{"panic: a bug"}, reported)
	guard.Run(func() { panic("a bug") }, nil)
}

// TestRunLetsGoroutinesEnd: Goexit is no panic, and goes on.
func TestRunLetsGoroutinesEnd(t *testing.T) {
	returned, over := false, make(chan struct{})
	go func() {
		defer close(over)
		guard.Run(runtime.Goexit, func(guard.Panic) { returned = true })
		returned = true
	}()
	<-over
	require.False(t, returned)
}

func TestError(t *testing.T) {
	full := errors.New("full")
	require.NoError(t, guard.Error(func() error { return nil }))
	require.Equal(t, full, guard.Error(func() error { return full }))
	require.Equal(t, guard.Panic{With: "a bug"}, guard.Error(func() error { panic("a bug") }))
}

// TestAlone: the second one does not run, and a panic leaves nothing behind.
func TestAlone(t *testing.T) {
	var running atomic.Bool
	require.True(t, guard.Alone(&running, func() {
		require.False(t, guard.Alone(&running, func() { panic("it runs already") }))
	}))
	require.Panics(t, func() { guard.Alone(&running, func() { panic("a bug") }) })
	require.True(t, guard.Alone(&running, func() {}))
}
