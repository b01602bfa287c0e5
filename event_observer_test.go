package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestObserversAreCalledInOrder adds observers, and stops some of them.
func TestObserversAreCalledInOrder(t *testing.T) {
	reg := new(Registry)
	defer reg.Close()
	var calls []string
	observer := func(name string) func(context.Context, Event) {
		return func(context.Context, Event) { calls = append(calls, name) }
	}
	opts := with(memory(t, "x"))
	opts.Observe = observer("own")
	reg.Observe(observer("first")) // before the limiter is there
	l, err := reg.New("x", opts)
	require.NoError(t, err)
	stopSecond := reg.Observe(observer("second"))
	reg.Observe(nil)() // observes nothing
	var stopItself func()
	stopItself = reg.Observe(func(context.Context, Event) {
		calls = append(calls, "once")
		stopItself()
		stopItself()
	})
	reg.Observe(observer("last"))
	want := func(names ...string) {
		t.Helper()
		calls = nil
		require.NoError(t, l.Reset(ctx, "key"))
		require.Equal(t, names, calls)
	}
	want("own", "first", "second", "once", "last")
	want("own", "first", "second", "last")
	stopSecond()
	stopSecond()
	want("own", "first", "last")

	// The limiter of another registry has other observers.
	other := httpLimiter(t, quiet(hour))
	calls = nil
	require.NoError(t, other.Reset(ctx, "key"))
	require.Empty(t, calls)

	// A Reload that fails leaves all as they are, and so does one that succeeds.
	var stopNext func()
	require.Error(t, reg.Reload(func(next *Registry) error {
		_, err := next.New("x", opts)
		require.NoError(t, err)
		stopNext = next.Observe(observer("next"))
		return errBackend
	}))
	want("own", "first", "last", "next")
	opts.Observe = nil
	was := l
	require.NoError(t, reg.Reload(func(next *Registry) (err error) {
		l, err = next.New("x", opts)
		return err
	}))
	want("first", "last", "next")
	stopNext()
	want("first", "last")
	l = was // it still reports
	want("own", "first", "last")
}

// TestObserverIsAddedWhileEventsAreReported adds and stops observers during a flood of
// events.
func TestObserverIsAddedWhileEventsAreReported(t *testing.T) {
	reg := new(Registry)
	defer reg.Close()
	l, err := reg.New("x", with(memory(t, "x")))
	require.NoError(t, err)
	var seen, always atomic.Int64
	defer reg.Observe(func(context.Context, Event) { always.Add(1) })()
	var denied atomic.Int64
	memTogether(func(g int) {
		for range 50 {
			if g%2 == 0 {
				stop := reg.Observe(func(context.Context, Event) { seen.Add(1) })
				stop()
				stop()
				continue
			}
			if d, err := l.Take(ctx, "key"); assert.NoError(t, err) && !d.Allowed {
				denied.Add(1)
			}
		}
	})
	require.EqualValues(t, denied.Load(), always.Load(), "each event arrives once")
	before := seen.Load()
	decide(t, l, "key", 1)
	require.Equal(t, before, seen.Load(), "all of them have stopped")
}

// observedLimiter is a limiter whose events of one kind are observed. Its limit is one unit.
type observedLimiter struct {
	kind    EventKind
	reg     *Registry
	l       *Limiter
	store   Store
	backend *remoteBackend // the store, or nil
	observe func(context.Context, Event)
	cause   func() // makes an event of the kind happen
}

// causes are, for each kind of event, a call that causes it.
var causes = map[EventKind]struct {
	cause func(t *testing.T, s *observedLimiter)
	async bool // the event comes from a goroutine of the limiter
}{
	EventDenied: {func(t *testing.T, s *observedLimiter) {
		s.l.Take(ctx, "key")
		d, err := s.l.Take(ctx, "key")
		require.NoError(t, err)
		require.False(t, d.Allowed)
	}, false},
	EventShadowDenied: {func(t *testing.T, s *observedLimiter) {
		h := s.l.Middleware(httpServed)
		statusOf(h)
		require.Equal(t, http.StatusNoContent, statusOf(h))
	}, false},
	EventBlocked: {func(t *testing.T, s *observedLimiter) {
		h := s.l.Middleware(httpServed)
		statusOf(h)
		require.Equal(t, http.StatusTooManyRequests, statusOf(h))
	}, false},
	EventReset: {func(t *testing.T, s *observedLimiter) { require.NoError(t, s.l.Reset(ctx, "key")) }, false},
	EventRefunded: {func(t *testing.T, s *observedLimiter) {
		require.NoError(t, s.l.Refund(WithActor(ctx, "x"), "key", 1))
	}, false},
	EventLimitsChanged: {func(t *testing.T, s *observedLimiter) {
		require.NoError(t, s.l.SetLimits(named(2, "new")))
	}, false},
	EventReplaced: {func(t *testing.T, s *observedLimiter) {
		require.NoError(t, s.reg.Reload(func(next *Registry) error {
			_, err := next.New(s.l.Name(), with(s.store))
			return err
		}))
	}, false},
	EventClosed: {func(t *testing.T, s *observedLimiter) { require.NoError(t, s.l.Close()) }, false},
	EventStoreDown: {func(t *testing.T, s *observedLimiter) {
		s.backend.set(refused)
		for i := range 5 {
			s.l.Take(ctx, fmt.Sprint(i))
		}
		synctest.Wait()
	}, true},
	EventStoreBack: {func(t *testing.T, s *observedLimiter) {
		s.backend.set(refused)
		for i := range 5 {
			s.l.Take(ctx, fmt.Sprint(i))
		}
		synctest.Wait()
		s.backend.set(up)
		time.Sleep(2 * time.Second)
		s.l.Take(ctx, "back")
		synctest.Wait()
	}, true},
	EventWarning: {func(t *testing.T, s *observedLimiter) {
		require.Equal(t, http.StatusTooManyRequests, statusOf(s.l.Middleware(httpServed)), "a cost above the limit")
	}, false},
}

// forEachKind runs a test in a bubble for each kind of event, on each kind of store that
// can cause it.
func forEachKind(t *testing.T, test func(t *testing.T, s *observedLimiter)) {
	require.Len(t, causes, int(EventWarning), "there is a cause for each kind")
	for kind, c := range causes {
		for _, name := range []string{"memory", "wrapped", "remote"} {
			if c.async && name != "remote" || kind == EventBlocked && name != "memory" {
				continue
			}
			t.Run(kind.String()+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &observedLimiter{kind: kind, reg: new(Registry), store: memory(t, "store")}
					switch name {
					case "wrapped":
						s.store = &wrapper{s.store}
					case "remote":
						s.backend = &remoteBackend{Store: s.store}
						s.store = s.backend
					}
					opts := quiet(named(1, "own"))
					opts.Store, opts.Shadow = s.store, kind == EventShadowDenied
					if kind == EventBlocked {
						opts.Limits = []Limit{named(1, "own").Block(time.Minute)}
						opts.Count = func(*http.Request, int) bool { return true }
					}
					if kind == EventWarning {
						opts.Cost = func(*http.Request) int64 { return 2 }
					}
					opts.Observe = func(ctx context.Context, e Event) {
						if e.Kind == kind {
							s.observe(ctx, e)
						}
					}
					var err error
					s.l, err = s.reg.New("lim", opts)
					require.NoError(t, err)
					defer s.reg.Close()
					s.cause = func() { c.cause(t, s) }
					test(t, s)
				})
			})
		}
	}
}

// TestNoLockIsHeldWhileAnObserverRuns calls everything that takes a lock from an
// observer, for each kind of event. If a lock were held, the test would hang.
func TestNoLockIsHeldWhileAnObserverRuns(t *testing.T) {
	forEachKind(t, func(t *testing.T, s *observedLimiter) {
		var calls, inside int
		s.observe = func(ctx context.Context, e Event) {
			if calls++; calls > 1 {
				return
			}
			s.l.Stats()
			s.l.Info()
			s.l.Take(ctx, "another key")
			s.l.TakeLimits(ctx, "another key", 1, named(3, "plan"))
			s.l.TakeUpTo(ctx, e.Key+"key", 1)
			s.l.Refund(WithActor(ctx, "observer"), "key", 1)
			s.l.Reset(ctx, "key")
			s.l.LookKey(ctx, "key")
			s.l.SetLimits(named(7, "by the observer"))
			statusOf(s.l.Middleware(httpServed))
			s.reg.Lookup("lim")
			for range s.reg.All() {
			}
			s.reg.Observe(func(context.Context, Event) { inside++ })()
			other, err := s.reg.New("another", with(Memory(t.Name()+" another")))
			assert.NoError(t, err)
			other.Close()
			assert.NoError(t, Memory(t.Name()+" another").Close())
			assert.NoError(t, s.reg.Reload(func(next *Registry) error {
				_, err := next.New("lim", with(s.store))
				return err
			}))
		}
		s.cause()
		require.Positive(t, calls)
	})
}

// TestObserverMayCloseTheLimiter closes it from an observer. If no request has caused the
// event, that needs a goroutine: see Options.Observe.
func TestObserverMayCloseTheLimiter(t *testing.T) {
	forEachKind(t, func(t *testing.T, s *observedLimiter) {
		calls := 0
		s.observe = func(context.Context, Event) {
			if calls++; causes[s.kind].async {
				go s.reg.Close()
				return
			}
			s.l.Close()
			s.reg.Close()
		}
		s.cause()
		synctest.Wait()
		require.Equal(t, 1, calls)
		_, err := s.l.Take(ctx, "key")
		if s.kind != EventReplaced { // its successor has been closed, and it as well
			require.ErrorIs(t, err, ErrClosed)
		}
	})
}

// TestObserverThatPanicsChangesNothing panics for each kind of event, with values of any
// kind. The observers after it are called.
func TestObserverThatPanicsChangesNothing(t *testing.T) {
	var noError *os.PathError
	for name, with := range map[string]any{
		"text": "a bug", "an error": errBackend, "a nil error": error(nil), "a typed nil": noError, "ErrAbortHandler": http.ErrAbortHandler,
		"a value whose text panics": panicky{},
	} {
		t.Run(name, func(t *testing.T) {
			forEachKind(t, func(t *testing.T, s *observedLimiter) {
				var after []EventKind
				var mu sync.Mutex
				s.reg.Observe(func(_ context.Context, e Event) {
					mu.Lock()
					defer mu.Unlock()
					after = append(after, e.Kind)
				})
				s.observe = func(context.Context, Event) { panic(with) }
				s.cause()
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				require.Contains(t, after, s.kind)
				require.EqualValues(t, 1, s.l.Stats().Warnings[CodeObserverPanicked])
				require.NotContains(t, after, EventKind(0))
			})
		})
	}
}

// panicky is a value that cannot be printed.
type panicky struct{}

func (panicky) String() string { panic("no text") }

// TestPanicOfAnObserverIsLogged is about the log, and its event, which is none.
func TestPanicOfAnObserverIsLogged(t *testing.T) {
	var log logged
	var seen recorder
	reg := new(Registry)
	defer reg.Close()
	opts := with(memory(t, "x"))
	opts.Logger = log.logger()
	opts.Observe = func(context.Context, Event) { panic("a bug") }
	l, err := reg.New("x", opts)
	require.NoError(t, err)
	reg.Observe(func(context.Context, Event) { panic("another bug") })
	reg.Observe(seen.observe)
	for range 3 {
		require.NoError(t, l.Reset(ctx, "key"))
	}
	require.Equal(t, []Code{CodeObserverPanicked}, log.codes(), "once a minute")
	require.Contains(t, log.text(), `event=reset panic="a bug"`)
	require.EqualValues(t, 6, l.Stats().Warnings[CodeObserverPanicked])
	require.Equal(t, []EventKind{EventReset, EventReset, EventReset}, seen.kinds(), "the warning is no event")
}

// TestObserverThatPanicsInsideAPanic reports an event while a handler's panic is on its
// way: the request does not count, and its units cannot be given back.
func TestObserverThatPanicsInsideAPanic(t *testing.T) {
	backend := &remoteBackend{Store: memory(t, "s")}
	var calls atomic.Int64
	opts := with(backend)
	opts.Count = func(_ *http.Request, status int) bool { return status != http.StatusInternalServerError }
	opts.OnFailure, opts.Timeout = FailClosed, time.Minute
	opts.Observe = func(context.Context, Event) { calls.Add(1); panic("the observer's") }
	l := httpLimiter(t, opts)
	h := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		backend.set(refused)
		panic("the handler's")
	}))
	require.PanicsWithValue(t, "the handler's", func() { h.ServeHTTP(httptest.NewRecorder(), httpRequest("GET")) })
	require.Eventually(t, func() bool { return calls.Load() == 1 }, 20*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return l.Stats().Warnings[CodeObserverPanicked] == 1 }, 20*time.Second, time.Millisecond)
}

// TestSlowObserverHoldsUpItsOwnRequestOnly blocks in an observer.
func TestSlowObserverHoldsUpItsOwnRequestOnly(t *testing.T) {
	for name, store := range map[string]func(t *testing.T) Store{
		"memory": func(t *testing.T) Store { return memory(t, "a") }, "remote": func(t *testing.T) Store { return &remoteBackend{Store: memory(t, "b")} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				opts := with(store(t))
				opts.Observe = func(_ context.Context, e Event) {
					if e.Key == "slow" {
						<-release
					}
				}
				l := httpLimiter(t, opts)
				decide(t, l, "slow", 5)
				var returned atomic.Bool
				go func() {
					l.Take(ctx, "slow")
					returned.Store(true)
				}()
				synctest.Wait()
				start := time.Now()
				for i := range 100 {
					require.Equal(t, i < 5, decide(t, l, "another", 1).Allowed)
					require.Zero(t, decide(t, l, "slow", 0).Remaining, "the same key, too")
				}
				require.NoError(t, l.Reset(ctx, "another"))
				require.NoError(t, l.SetLimits(FixedWindow(9, time.Hour)))
				require.EqualValues(t, 1+1+100, totalOf(l.Stats()))
				require.Equal(t, start, time.Now())
				require.False(t, returned.Load())
				close(release)
				synctest.Wait()
				require.True(t, returned.Load())
			})
		})
	}
}

// TestEventsAreReportedOnce denies from many goroutines, across Reloads.
func TestEventsAreReportedOnce(t *testing.T) {
	reg := new(Registry)
	defer reg.Close()
	var mu sync.Mutex
	var own, all uint64
	count := func(n *uint64) func(context.Context, Event) {
		return func(_ context.Context, e Event) {
			if e.Kind == EventDenied {
				mu.Lock()
				*n++
				mu.Unlock()
			}
		}
	}
	reg.Observe(count(&all))
	store := memory(t, "x")
	build := func(reg *Registry) error {
		opts := with(store)
		opts.Observe = count(&own)
		_, err := reg.New("x", opts)
		return err
	}
	require.NoError(t, build(reg))
	stop := make(chan struct{})
	var reloads sync.WaitGroup
	reloads.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				assert.NoError(t, reg.Reload(build))
			}
		}
	})
	memTogether(func(int) {
		for range 50 {
			l, _ := reg.Lookup("x")
			_, err := l.Take(ctx, "key")
			assert.NoError(t, err)
		}
	})
	close(stop)
	reloads.Wait()
	l, _ := reg.Lookup("x")
	require.EqualValues(t, 64*50-5, l.Stats().Denied)
	require.Equal(t, l.Stats().Denied, own)
	require.Equal(t, l.Stats().Denied, all)
}

// TestEventsCostNothingIfNobodyObserves counts allocations of denials.
func TestEventsCostNothingIfNobodyObserves(t *testing.T) {
	reg := new(Registry)
	defer reg.Close()
	l, err := reg.New("x", with(memory(t, "x")))
	require.NoError(t, err)
	reg.Observe(func(context.Context, Event) {})() // nobody observes any more
	decide(t, l, "key", 5)
	require.Zero(t, testing.AllocsPerRun(100, func() { l.Take(ctx, "key") }))
	calls := 0
	reg.Observe(func(context.Context, Event) { calls++ })
	l.Take(ctx, "key")
	require.Equal(t, 1, calls)
}

// TestObserverGetsTheRequestsContext observes denials with contexts of their own.
func TestObserverGetsTheRequestsContext(t *testing.T) {
	type traceKey struct{}
	var traces []any
	opts := quiet(named(1, "own"))
	opts.Observe = func(ctx context.Context, _ Event) { traces = append(traces, ctx.Value(traceKey{})) }
	l := httpLimiter(t, opts)
	h := l.Middleware(httpServed)
	for i := range 3 {
		r := httpRequest("GET")
		ctx := context.WithValue(WithActor(r.Context(), "x"), traceKey{}, i)
		h.ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx))
		_, err := l.Take(ctx, "key")
		require.NoError(t, err)
	}
	require.Equal(t, []any{1, 1, 2, 2}, traces)
	canceled, cancel := context.WithCancelCause(ctx)
	cancel(errors.New("gone"))
	_, err := l.Take(canceled, "key")
	require.ErrorIs(t, err, context.Canceled)
	require.Len(t, traces, 4, "nothing was decided")
}

// TestEachSetLimitsReportsItsOwnLimits changes the limits from many goroutines.
func TestEachSetLimitsReportsItsOwnLimits(t *testing.T) {
	var seen recorder
	opts := quiet(hour)
	opts.Observe = seen.observe
	l := httpLimiter(t, opts)
	memTogether(func(g int) {
		assert.NoError(t, l.SetLimitsContext(WithActor(ctx, fmt.Sprint(g)), named(int64(g+1), fmt.Sprint("of ", g))))
	})
	got := map[string]Limit{}
	for _, e := range seen.all() {
		require.Equal(t, EventLimitsChanged, e.Kind)
		require.Equal(t, "of "+e.Actor, e.Policy)
		got[e.Actor] = e.Limit
	}
	require.Len(t, got, 64)
	for g := range 64 {
		require.Equal(t, named(int64(g+1), fmt.Sprint("of ", g)), got[fmt.Sprint(g)])
	}
}

// TestLimitsSetInABuildAreReportedByTheReload calls SetLimits on a limiter of a
// generation that is being built.
func TestLimitsSetInABuildAreReportedByTheReload(t *testing.T) {
	reg := new(Registry)
	defer reg.Close()
	var seen recorder
	reg.Observe(seen.observe)
	store := memory(t, "x")
	build := func(limits ...Limit) func(next *Registry) error {
		return func(next *Registry) error {
			l, err := next.New("x", with(store))
			if err != nil || len(limits) == 0 {
				return err
			}
			return l.SetLimits(limits...)
		}
	}
	require.NoError(t, reg.Reload(build()))
	require.NoError(t, reg.Reload(build(named(9, "nine"))))
	require.Equal(t, []Event{
		{Kind: EventLimitsChanged, Limiter: "x", Policy: "nine", Limit: named(9, "nine")}, {Kind: EventReplaced, Limiter: "x"},
	}, seen.all())
	require.Error(t, reg.Reload(func(next *Registry) error {
		require.NoError(t, build(named(10, "ten"))(next))
		return errBackend
	}))
	require.Empty(t, seen.all())
	l, _ := reg.Lookup("x")
	require.Equal(t, []PolicyStats{{"x", hour, 0}, {"nine", named(9, "nine"), 0}}, l.Stats().Policies)
}

// TestSnapshotFailuresAreEventsWithoutLocks removes the folder of a snapshot file. The
// observer opens and closes stores, also on that file.
func TestSnapshotFailuresAreEventsWithoutLocks(t *testing.T) {
	opts := inFile(t)
	opts.SnapshotEvery = time.Hour
	store, err := NewMemoryStore(t.Name(), opts)
	require.NoError(t, err)
	var events []Event
	limiterOpts := with(store)
	limiterOpts.Observe = func(_ context.Context, e Event) {
		events = append(events, e)
		Memory(t.Name() + " another").Close()
		assert.NoError(t, store.Close(), "it is closed already")
		_, err := NewMemoryStore(t.Name(), opts)
		assert.Error(t, err, "there is no folder")
	}
	l := httpLimiter(t, limiterOpts)
	decide(t, l, "key", 1)
	require.NoError(t, os.RemoveAll(filepath.Dir(opts.SnapshotFile)))
	require.Error(t, store.Close())
	require.Len(t, events, 1)
	require.Equal(t, EventWarning, events[0].Kind)
	require.Equal(t, CodeSnapshotFailed, events[0].Code)
	require.Error(t, events[0].Err)
	require.EqualValues(t, 1, l.Stats().Warnings[CodeSnapshotFailed])
}

// TestClaimedPrefixIsAnEvent counts under a prefix of a limiter of another name.
func TestClaimedPrefixIsAnEvent(t *testing.T) {
	client := newMini(t).client(t)
	var seen recorder
	for _, name := range []string{"first", "second"} {
		opts := with(redisStore(t, client, "rl:shared:"))
		opts.Observe, opts.Timeout, opts.Limits = seen.observe, time.Minute, []Limit{FixedWindow(50, time.Hour)}
		l := httpLimiterNamed(t, name, opts)
		decide(t, l, "key", 1)
		require.Eventually(t, func() bool {
			n, err := client.Exists(ctx, "rl:shared:owner").Result()
			return err == nil && n == 1
		}, 20*time.Second, time.Millisecond)
	}
	require.Eventually(t, func() bool { return len(seen.of(EventWarning)) == 1 }, 20*time.Second, time.Millisecond)
	e := seen.all()[0]
	require.Equal(t, Event{Kind: EventWarning, Limiter: "second", Code: CodePrefixClaimed}, e)
}

// TestObserverAndLoggerThatPanic: an observer panics at an event of a goroutine of the library, and
// so does the logger when it gets that.
func TestObserverAndLoggerThatPanic(t *testing.T) {
	log, seen := &logged{panics: panicAt(CodeObserverPanicked)}, new(recorder)
	opts := Options{Limits: []Limit{hour}, Logger: log.logger(), Observe: func(ctx context.Context, e Event) {
		if e.Kind == EventStoreDown {
			seen.observe(ctx, e)
			panic("a bug")
		}
	}}
	remotely(t, opts, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		synctest.Wait()
		require.Len(t, seen.of(EventStoreDown), 1)
		require.Contains(t, log.codes(), CodeObserverPanicked)
		require.NoError(t, l.Close())
	})
}
