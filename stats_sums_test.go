package ratelimit_test

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// A generation is what a Reload makes of the limiters of sumTest.
type generation struct {
	limiters [2]*Limiter // the second one is in Shadow
	handlers [2]http.Handler
}

// sumTest sends everything that can be counted to two limiters, from 64 goroutines and
// across five Reloads, and compares what they have counted with what was sent.
// options returns the options of one of them in a generation.
func sumTest(t *testing.T, options func(generation int, limiter string) Options) {
	reg := new(Registry)
	defer reg.Close()
	names := [2]string{"plain", "shadow"}
	var current atomic.Pointer[generation]
	build := func(number int, reg *Registry) error {
		g := new(generation)
		for i, name := range names {
			opts := options(number, name)
			opts.Shadow = i == 1
			l, err := reg.New(name, opts)
			if err != nil {
				return err
			}
			g.limiters[i], g.handlers[i] = l, l.Middleware(showDecision)
		}
		current.Store(g) // its limiters are used from here on, also before the Reload has ended
		return nil
	}
	require.NoError(t, build(0, reg))
	first := current.Load()

	var tallies [2]tally
	var clients, watchers sync.WaitGroup
	var reloads [6]chan struct{}
	for i := range reloads {
		reloads[i] = make(chan struct{})
	}
	var progress atomic.Int64
	const clientCount, rounds = 64, 6
	for c := range clientCount {
		clients.Go(func() {
			for round := range rounds {
				progress.Add(1)
				<-reloads[round]
				g := current.Load()
				if c%16 == 0 {
					g = first // requests still reach a generation that has been replaced
				}
				key := fmt.Sprint("key ", (c+round)%3)
				for i, l := range g.limiters {
					sendEach(t, &tallies[i], l, g.handlers[i], key)
				}
			}
		})
	}
	stop := make(chan struct{})
	for i, name := range names {
		for _, find := range []func() *Limiter{
			func() *Limiter { l, _ := reg.Lookup(name); return l }, // as soon as it can be seen
			func() *Limiter { return first.limiters[i] },
		} {
			watchers.Go(func() {
				for was := map[string]uint64{}; ; {
					is := countersOf(find().Stats())
					noneFalls(t, was, is)
					was = is
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
				}
			})
		}
	}
	for i := range 5 {
		close(reloads[i])
		for progress.Load() < int64(clientCount*i+clientCount/2) { // some clients are on their way
			time.Sleep(time.Millisecond)
		}
		require.NoError(t, reg.Reload(func(next *Registry) error { return build(i+1, next) }))
	}
	close(reloads[5])
	clients.Wait()
	close(stop)
	watchers.Wait()

	var sent, counted uint64
	for i, name := range names {
		l, _ := reg.Lookup(name)
		stats := l.Stats()
		t.Run(name, func(t *testing.T) { tallies[i].check(t, stats) })
		sent, counted = sent+tallies[i].total(), counted+totalOf(stats)
		t.Run(name+", from the first generation", func(t *testing.T) { tallies[i].check(t, first.limiters[i].Stats()) })
	}
	assert.Equal(t, sent, counted, "the sum over all limiters")
}

// sendEach makes one call or request of each kind.
func sendEach(t *testing.T, s *tally, l *Limiter, h http.Handler, key string) {
	d, err := l.Take(ctx, key)
	s.noteCall(d, 1, err)
	d, err = l.TakeN(ctx, key, 3)
	s.noteCall(d, 3, err)
	granted, d, err := l.TakeUpTo(ctx, key, 2)
	s.noteCall(d, max(granted, 2*b2i(!d.Allowed)), err)
	for _, plan := range [][]Limit{{Unlimited}, {Deny}, {FixedWindow(30, time.Minute).Named("called"), TokenBucket(1e6, time.Second, 1e6)}, nil} {
		d, err = l.TakeLimits(ctx, key, 2, plan...)
		s.noteCall(d, 2, err)
	}
	// Looks and errors are not counted.
	_, err = l.TakeN(ctx, key, 0)
	_, err2 := l.LookKey(ctx, key)
	assert.Equal(t, err == nil, err2 == nil)
	_, err = l.Take(ctx, "")
	assert.ErrorIs(t, err, ErrNoKey)
	_, err = l.TakeN(ctx, key, -1)
	assert.Error(t, err)

	s.noteRequest(t, h, 1, nil, "Key: "+key)
	s.noteRequest(t, h, 0, nil, "Key: "+key, "Cost: 0")
	s.noteRequest(t, h, 4, nil, "Key: "+key, "Cost: 4")
	s.noteRequest(t, h, 1000, nil, "Key: "+key, "Cost: 1000")
	for _, plan := range []string{"gold", "bad", "two"} {
		s.noteRequest(t, h, 1, nil, "Key: "+key, "Plan: "+plan)
		s.noteRequest(t, h, 0, nil, "Key: "+key, "Cost: 0", "Plan: "+plan)
	}
	s.noteRequest(t, h, 1, &s.exempt, "Key: "+key, "Skip: 1")
	s.noteRequest(t, h, 1, &s.exempt, "Key: exempt")
	s.noteRequest(t, h, 1, &s.noKey, "Key: ")
	s.noteRequest(t, h, 1, &s.failed, "Key: fail")
	s.noteRequest(t, h, 1, &s.failed, "Key: "+key, "Cost: -1")
	s.noteRequest(t, h, 1, &s.failed, "Key: "+key, "Plan: invalid")
}

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// TestSumsAreExact is about rule 24, on each kind of store.
func TestSumsAreExact(t *testing.T) {
	on := func(store func(limiter string) Store) func(*testing.T) {
		return func(t *testing.T) {
			stores := map[string]Store{"plain": store("plain"), "shadow": store("shadow")}
			sumTest(t, func(_ int, limiter string) Options {
				opts := byHeader()
				opts.Store = stores[limiter]
				return opts
			})
		}
	}
	t.Run("memory", on(func(name string) Store { return memory(t, name) }))
	t.Run("wrapped", on(func(name string) Store { return &wrapper{memory(t, "wrapped "+name)} }))
	t.Run("Redis", func(t *testing.T) {
		client := newMini(t).client(t)
		sumTest(t, func(_ int, limiter string) Options {
			opts := byHeader()
			opts.Redis = client
			return opts
		})
	})
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		t.Run("down, "+policy.String(), func(t *testing.T) {
			sumTest(t, func(_ int, limiter string) Options {
				opts := byHeader()
				opts.OnFailure = policy
				opts.Store = &remoteBackend{Store: memory(t, policy.String()+limiter), mode: refused}
				return opts
			})
		})
	}
	t.Run("failing", func(t *testing.T) {
		sumTest(t, func(number int, limiter string) Options {
			opts := byHeader()
			opts.Store = &failing{fakeStore{prefix: fmt.Sprint(limiter, number)}}
			return opts
		})
	})
}

// TestSumsAreExactAcrossStores replaces the store by each Reload, and the names of the
// limits.
func TestSumsAreExactAcrossStores(t *testing.T) {
	client := newMini(t).client(t)
	sumTest(t, func(number int, limiter string) Options {
		opts := byHeader()
		a := memory(t, "a "+limiter)
		switch number {
		case 0, 5:
			opts.Store = a
		case 1:
			opts.Store = memory(t, "b "+limiter)
		case 2:
			opts.Redis = client
		case 3:
			opts.Store = &wrapper{a}
			opts.Limits = []Limit{FixedWindow(50, time.Hour).Named("renamed")}
		case 4:
			opts.Store = &remoteBackend{Store: memory(t, "c "+limiter), mode: refused}
			opts.Limits = []Limit{FixedWindow(50, time.Hour), SlidingWindow(1e6, time.Hour)}
		}
		return opts
	})
}

// TestRemoteCountsGoOnWithAnotherStore replaces a store by others, each of which has an
// outage. All generations report the same counts, and none falls.
func TestRemoteCountsGoOnWithAnotherStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := new(Registry)
		defer reg.Close()
		var all []*Limiter
		var last map[string]uint64
		for i := range 4 {
			backend := &remoteBackend{Store: memory(t, fmt.Sprint(i))}
			opts := with(backend)
			if i == 2 {
				opts = with(memory(t, "in this process"))
			}
			require.NoError(t, reg.Reload(func(next *Registry) error {
				l, err := next.New("x", opts)
				all = append(all, l)
				return err
			}))
			l := all[i]
			noneFalls(t, last, countersOf(l.Stats()))
			opened, calls := l.Stats().Remote.BreakerOpened, l.Stats().Remote.Calls
			if i != 2 {
				startOutage(t, backend, l, refused)
				require.Equal(t, opened+1, l.Stats().Remote.BreakerOpened)
				require.Equal(t, calls+5, l.Stats().Remote.Calls)
				endOutage(t, backend, l)
			}
			for _, one := range all {
				require.Equal(t, l.Stats(), one.Stats())
			}
			last = countersOf(l.Stats())
			require.Error(t, reg.Reload(func(next *Registry) error {
				opts := with(&remoteBackend{Store: memory(t, fmt.Sprint("refused ", i))})
				opts.Limits = []Limit{FixedWindow(9, time.Minute).Named("refused")}
				l, err := next.New("x", opts)
				require.NoError(t, err)
				require.NoError(t, l.SetLimits(FixedWindow(8, time.Minute).Named("refused, too")))
				noneFalls(t, last, countersOf(l.Stats()))
				return errBackend
			}))
			require.Equal(t, last, countersOf(l.Stats()), "a Reload that has failed changes nothing")
		}
		require.EqualValues(t, 3, all[3].Stats().Remote.BreakerOpened)
	})
}
