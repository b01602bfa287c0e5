package holds_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/guard"
	"github.com/ratelimit-go/ratelimit/internal/holds"
	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// tableEngine is an engine of a table.
type tableEngine struct {
	engine.Engine
	table  *table.Table
	fails  atomic.Bool
	panics atomic.Bool
}

var errFails = errors.New("it fails")

func (e *tableEngine) Take(_ context.Context, r engine.Request, answers []rule.Answer) (engine.Reply, error) {
	if e.fails.Load() {
		return engine.Reply{}, errFails
	}
	if e.panics.Load() {
		panic("a bug")
	}
	runtime.Gosched()
	at, _ := e.table.Hold(r.Key, r.Units, r.Limits.Rules, answers, nil, r.Holding)
	runtime.Gosched()
	return engine.Reply{At: at}, nil
}

// TestLocalNeverExceeds: many goroutines begin and end holds of a few keys. There are never more
// than may be, and nothing is left of them.
func TestLocalNeverExceeds(t *testing.T) {
	e := &tableEngine{table: table.New(1000, clock.Now)}
	locals := []*holds.Local{{Engine: e}, {Engine: e}} // two limiters, one after the other on one store
	keys := []string{"a", "b", "c"}
	ask := holds.Ask{Most: 3, Lasts: int64(time.Minute)}
	limits := &engine.Limits{Rules: []rule.Limit{{Kind: rule.Fixed, N: rule.MaxUnits, Window: int64(time.Hour)}}}
	var running [3]atomic.Int64
	var admitted, denied atomic.Int64
	var all sync.WaitGroup
	for g := range 32 {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 0))
			for range 2000 {
				k := rng.IntN(len(keys))
				r := engine.Request{Key: keys[k], Units: 1, Limits: limits}
				_, hold, held, err := locals[g%2].Take(context.Background(), r, ask, make([]rule.Answer, 1))
				require.NoError(t, err)
				if hold == nil {
					require.Positive(t, held.Retry)
					denied.Add(1)
					continue
				}
				require.LessOrEqual(t, running[k].Add(1), ask.Most)
				for range rng.IntN(3) {
					runtime.Gosched()
				}
				running[k].Add(-1)
				require.True(t, hold.End())
				require.False(t, hold.End())
				admitted.Add(1)
			}
		})
	}
	all.Wait()
	t.Log(admitted.Load(), "admitted,", denied.Load(), "denied")
	require.Positive(t, admitted.Load())
	require.Positive(t, denied.Load())
	require.Zero(t, e.table.HeldKeys(), "the store has records")
}

// TestLocalReportsAgain: if the end of a hold could not be reported, it is reported with the next one.
func TestLocalReportsAgain(t *testing.T) {
	e := &tableEngine{table: table.New(1000, clock.Now)}
	l := &holds.Local{Engine: e}
	ask := holds.Ask{Most: 2, Lasts: int64(time.Minute)}
	take := func() (*holds.Hold, error) {
		_, hold, _, err := l.Take(context.Background(), engine.Request{Key: "k", Units: 1, Limits: &engine.Limits{}}, ask, nil)
		return hold, err
	}
	first, err := take()
	require.NoError(t, err)
	second, err := take()
	require.NoError(t, err)
	e.fails.Store(true)
	first.End()
	_, err = take()
	require.ErrorIs(t, err, errFails)
	e.fails.Store(false)
	require.Equal(t, 1, e.table.HeldKeys())
	second.End()
	require.Zero(t, e.table.HeldKeys())
}

// lateEngine is a tableEngine whose answers to calls with Most 1 are late.
type lateEngine struct {
	*tableEngine
	decided, goOn chan struct{}
}

func (e *lateEngine) Take(ctx context.Context, r engine.Request, answers []rule.Answer) (engine.Reply, error) {
	reply, err := e.tableEngine.Take(ctx, r, answers)
	if r.Holding.Most == 1 {
		close(e.decided)
		<-e.goOn
	}
	return reply, err
}

// TestLocalPlansWithOtherNumbers: the answer to a call under a smaller limit comes after more
// holds have begun under a larger one. The store has admitted both.
func TestLocalPlansWithOtherNumbers(t *testing.T) {
	e := &lateEngine{&tableEngine{table: table.New(1000, clock.Now)}, make(chan struct{}), make(chan struct{})}
	l := &holds.Local{Engine: e}
	take := func(most int64) *holds.Hold {
		request := engine.Request{Key: "k", Units: 1, Limits: &engine.Limits{}}
		_, hold, held, err := l.Take(context.Background(), request, holds.Ask{Most: most, Lasts: int64(time.Minute)}, nil)
		require.NoError(t, err)
		require.Zero(t, held.Retry)
		return hold
	}
	first := make(chan *holds.Hold)
	go func() { first <- take(1) }()
	<-e.decided
	second := take(3)
	close(e.goOn)
	require.True(t, (<-first).End())
	require.True(t, second.End())
	require.Zero(t, e.table.HeldKeys())
}

// TestLocalGoesOnAfterAPanic: the store panics at a report. The holds that end later are
// reported, and so is that one, with the next hold of its key.
func TestLocalGoesOnAfterAPanic(t *testing.T) {
	e := &tableEngine{table: table.New(1000, clock.Now)}
	var panics []string
	l := &holds.Local{Engine: e, Panicked: func(p guard.Panic) { panics = append(panics, p.Error()) }}
	take := func(key string) *holds.Hold {
		request := engine.Request{Key: key, Units: 1, Limits: &engine.Limits{}}
		_, hold, _, err := l.Take(context.Background(), request, holds.Ask{Most: 1, Lasts: int64(time.Minute)}, nil)
		require.NoError(t, err)
		return hold
	}
	var all []*holds.Hold
	for _, key := range []string{"a", "b", "c"} {
		all = append(all, take(key))
	}
	e.panics.Store(true)
	require.True(t, all[0].End())
	require.Equal(t, []string{"panic: a bug"}, panics)
	e.panics.Store(false)
	all[1].End()
	all[2].End()
	require.Equal(t, 1, e.table.HeldKeys())
	take("a").End()
	require.Zero(t, e.table.HeldKeys())
}
