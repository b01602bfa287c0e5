package e2e_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// TestRefusedCommandIsUnsent checks the errors of a server that is down, and of one that
// is loading. They say that the command has changed nothing.
func TestRefusedCommandIsUnsent(t *testing.T) {
	server := redistest.Start(t)
	s := redisStore(t, server.Client(refusing), "rl:")
	take(t, s, "k", 1, hour)
	server.Kill()
	var e *RedisError
	require.Eventually(t, func() bool { // the first may find the old connection
		require.ErrorAs(t, takeErr(s, "k", 1, []Limit{hour}), &e)
		return e.Unsent
	}, time.Minute, time.Millisecond)
	require.ErrorContains(t, e, "connection refused")
	server.Restart()
	require.Eventually(t, func() bool { return takeErr(s, "k", 1, []Limit{hour}) == nil }, time.Minute, 10*time.Millisecond)

	server.RestartLoading(30 * time.Second)
	require.Eventually(t, func() bool {
		err := takeErr(s, "k", 1, []Limit{hour})
		require.ErrorAs(t, err, &e)
		return e.Unsent
	}, time.Minute, time.Millisecond)
	require.ErrorContains(t, e, "the server is reading its data")
}

// TestCloseUnderTrafficLeavesClientOpen closes limiters under traffic. Each call is decided or
// gets ErrClosed or ErrStoreClosed, and the client stays open.
func TestCloseUnderTrafficLeavesClientOpen(t *testing.T) {
	client := redistest.Start(t).Client()
	for range 20 {
		var reg Registry
		l := Must(reg.New("api", redisOptions(client, FixedWindow(1_000_000, time.Hour))))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					if _, err := l.Take(ctx, "k"); err != nil {
						if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrStoreClosed) {
							t.Error(err)
						}
						return
					}
				}
			})
		}
		l.Close()
		wg.Wait()
	}
	require.NoError(t, client.Ping(ctx).Err())
	s, err := NewRedisStore(client, "rl:")
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, takeErr(s, "k", 1, []Limit{hour}), ErrStoreClosed)
	require.ErrorIs(t, s.Reset(ctx, "k", []Limit{hour}), ErrStoreClosed)
}

// TestCallDelayedPastCloseSendsNothing delays a call between its first check and its command,
// and closes the store in between.
func TestCallDelayedPastCloseSendsNothing(t *testing.T) {
	server := redistest.Start(t)
	s := redisStore(t, server.Client(), "rl:")
	c := slowDeadline{ctx, make(chan struct{}), make(chan struct{})}
	done := make(chan error)
	go func() {
		_, err := s.Take(c, "key", 1, []Limit{hour}, make([]Result, 1))
		done <- err
	}()
	<-c.asked
	s.Close()
	close(c.answer)
	require.ErrorIs(t, <-done, ErrStoreClosed)
	require.Zero(t, server.Do("DBSIZE"))
}

// slowDeadline is a context whose Deadline blocks until the test closes answer.
type slowDeadline struct {
	context.Context
	asked, answer chan struct{}
}

func (c slowDeadline) Deadline() (time.Time, bool) {
	close(c.asked)
	<-c.answer
	return time.Time{}, false
}
