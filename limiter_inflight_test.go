package ratelimit_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// This file has in-flight limits together with everything else that a limiter has.

// runs are requests that run until the test lets them finish.
type runs struct {
	handle func(http.Handler) http.Handler
	finish chan struct{}
	fields []string
}

func running(t *testing.T, handle func(http.Handler) http.Handler, fields ...string) *runs {
	r := &runs{handle, make(chan struct{}), fields}
	t.Cleanup(func() { close(r.finish) }) // a test that fails leaves requests
	return r
}

// begin begins a request, and returns its status: 0 if it runs. It is used in a bubble.
func (r *runs) begin(fields ...string) int {
	h := r.handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		<-r.finish
		w.WriteHeader(http.StatusNoContent)
	}))
	w, done := httptest.NewRecorder(), make(chan struct{})
	go func() {
		defer close(done)
		h.ServeHTTP(w, httpRequest("GET", append(fields, r.fields...)...))
	}()
	synctest.Wait()
	select {
	case <-done:
		return w.Code
	default:
		return 0
	}
}

// end lets n requests finish.
func (r *runs) end(n int) {
	for range n {
		r.finish <- struct{}{}
	}
	synctest.Wait()
}

// acquire calls Acquire, and requires that it is allowed or denied.
func acquire(t *testing.T, l *Limiter, key string, allowed bool) (release func(), d Decision) {
	t.Helper()
	release, d, err := l.Acquire(ctx, key)
	require.NoError(t, err)
	require.Equal(t, allowed, d.Allowed, "%v", d)
	return release, d
}

// inFlightStores are stores of each kind.
var inFlightStores = map[string]func(t *testing.T) Store{
	"memory":  func(t *testing.T) Store { return memory(t, "store") },
	"wrapper": func(t *testing.T) Store { return &heldWrapper{inside: memory(t, "store")} },
	"remote":  func(t *testing.T) Store { return &remoteBackend{Store: memory(t, "store")} },
}

// onEach runs a test on each kind of store, in a bubble.
func onEach(t *testing.T, test func(t *testing.T, store Store)) {
	for name, store := range inFlightStores {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, store(t)) })
		})
	}
}

// TestPlansWithInFlightLimits: a plan may have one, and all plans have the same holds.
func TestPlansWithInFlightLimits(t *testing.T) {
	onEach(t, func(t *testing.T, store Store) {
		opts := quiet(InFlight(1, time.Minute))
		opts.Key = StaticKey("k")
		opts.LimitsFor = func(r *http.Request) []Limit {
			switch r.Header.Get("Plan") {
			case "gold":
				return []Limit{InFlight(3, time.Minute).Named("gold"), FixedWindow(4, 2*time.Hour)}
			case "rates":
				return []Limit{hour}
			case "unlimited":
				return []Limit{Unlimited}
			case "deny":
				return []Limit{Deny.Named("suspended"), InFlight(3, time.Minute)}
			}
			return nil
		}
		l := processOf(t, store, opts)
		r := running(t, l.Middleware)
		require.Zero(t, r.begin())
		require.Equal(t, http.StatusTooManyRequests, r.begin())
		require.Zero(t, r.begin("Plan: gold"))
		require.Zero(t, r.begin("Plan: gold"))
		require.Equal(t, http.StatusTooManyRequests, r.begin("Plan: gold"))
		require.Equal(t, 3, l.Stats().InFlight)
		require.Zero(t, r.begin("Plan: rates"))
		require.Zero(t, r.begin("Plan: unlimited"))
		require.Equal(t, http.StatusTooManyRequests, r.begin("Plan: deny"))
		require.Equal(t, 3, l.Stats().InFlight, "these have no hold")
		r.end(5)
		require.Zero(t, l.Stats().InFlight)
		denied := make(map[string]uint64)
		for _, p := range l.Stats().Policies {
			denied[p.Name] = p.Denied
		}
		require.EqualValues(t, 1, denied["l"])
		require.EqualValues(t, 1, denied["gold"])
		require.EqualValues(t, 1, denied["suspended"])
		require.Zero(t, r.begin("Plan: gold"), "a denial took no unit: this is the third of four")
		require.Zero(t, r.begin("Plan: gold"))
		require.Equal(t, http.StatusTooManyRequests, r.begin("Plan: gold"))
		r.end(2)
	})
}

// TestSetLimitsToAndFromInFlight: holds of requests that run count under the new limit; those
// that began under other limits have none.
func TestSetLimitsToAndFromInFlight(t *testing.T) {
	onEach(t, func(t *testing.T, store Store) {
		opts := quiet(hour)
		opts.Key = StaticKey("k")
		l := processOf(t, store, opts)
		r := running(t, l.Middleware)
		require.Zero(t, r.begin())
		require.NoError(t, l.SetLimits(InFlight(2, time.Minute)))
		require.Zero(t, r.begin(), "the request before has no hold")
		require.Zero(t, r.begin())
		require.Equal(t, http.StatusTooManyRequests, r.begin())

		require.NoError(t, l.SetLimits(InFlight(3, time.Hour))) // another n and hold: the same counter
		require.Zero(t, r.begin())
		require.Equal(t, http.StatusTooManyRequests, r.begin())
		require.NoError(t, l.SetLimits(InFlight(1, time.Hour)))
		require.Equal(t, http.StatusTooManyRequests, r.begin())
		require.Equal(t, 3, l.Stats().InFlight)

		require.NoError(t, l.SetLimits(hour))
		d, err := l.Take(ctx, "k")
		require.NoError(t, err)
		require.EqualValues(t, 3, d.Remaining)
		require.NoError(t, l.SetLimits(InFlight(3, time.Hour), hour))
		_, d = acquire(t, l, "k", false)
		require.Equal(t, l.Name()+"-inflight", d.Policy)
		r.end(4)
		require.Zero(t, l.Stats().InFlight)
		release, d := acquire(t, l, "k", true)
		require.EqualValues(t, 2, d.Remaining)
		release()
	})
}

// TestReloadKeepsHolds: the holds of the generation before count in the next one, until their
// requests end. Acquire's hold ends when its release is called, also after the Reload.
func TestReloadKeepsHolds(t *testing.T) {
	onEach(t, func(t *testing.T, store Store) {
		var reg Registry
		defer reg.Close()
		opts := quiet(InFlight(2, time.Minute))
		opts.Key, opts.Store = StaticKey("k"), store
		old := Must(reg.New("export", opts))
		r := running(t, old.Middleware)
		require.Zero(t, r.begin())
		release, _ := acquire(t, old, "k", true)
		require.NoError(t, reg.Reload(func(next *Registry) error {
			Must(next.New("export", opts))
			return nil
		}))
		l, _ := reg.Lookup("export")
		require.Equal(t, 2, l.Stats().InFlight)
		acquire(t, l, "k", false)
		acquire(t, old, "k", false)
		release()
		synctest.Wait()
		again, _ := acquire(t, l, "k", true)
		acquire(t, l, "k", false)
		r.end(1)
		third, _ := acquire(t, l, "k", true)
		again()
		third()
		synctest.Wait()
		require.Zero(t, l.Stats().InFlight)
		require.Zero(t, old.Stats().InFlight)
	})
}

// TestReloadToAnotherStoreLeavesHoldsBehind: a store in this process has been closed and opened
// again, or a Reload gives the limiter another one of the same prefix. Nothing of the holds at
// the old store gets there, and the new one has no holds when its requests have ended.
func TestReloadToAnotherStoreLeavesHoldsBehind(t *testing.T) {
	const name = "reopened"
	for kind, wrap := range map[string]func(s *MemoryStore) Store{
		"memory":  func(s *MemoryStore) Store { return s },
		"wrapper": func(s *MemoryStore) Store { return &heldWrapper{inside: s} },
	} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				open := func(maxKeys int) *MemoryStore {
					s, err := NewMemoryStore(name, MemoryOptions{MaxKeys: maxKeys})
					require.NoError(t, err)
					t.Cleanup(func() { s.Close() })
					return s
				}
				first := open(2000)
				var reg Registry
				defer reg.Close()
				opts := quiet(InFlight(2, time.Hour))
				opts.Store = wrap(first)
				old := Must(reg.New("export", opts))
				var all []func()
				for i := range 100 {
					all = append(all, acquires(t, old, fmt.Sprint(i), 1)...)
				}
				require.NoError(t, first.Close())
				second := open(1000)
				opts.Store = wrap(second)
				var l *Limiter
				require.NoError(t, reg.Reload(func(next *Registry) (err error) {
					l, err = next.New("export", opts)
					return err
				}))
				require.Equal(t, 100, l.Stats().InFlight)
				for i := range 100 {
					all = append(all, acquires(t, l, fmt.Sprint(i), 2)...)
				}
				releaseAll(all)
				require.Zero(t, l.Stats().InFlight)
				backend := &remoteBackend{Store: second}
				for i := range 100 {
					require.Zero(t, backend.held(t, fmt.Sprint(i)), i)
				}
			})
		})
	}
}

// TestReloadThatLeavesALimiterOut: its holds go on, and what Acquire gave out ends by itself.
func TestReloadThatLeavesALimiterOut(t *testing.T) {
	onEach(t, func(t *testing.T, store Store) {
		var reg Registry
		defer reg.Close()
		opts := quiet(InFlight(2, time.Minute))
		opts.Store = store
		l := Must(reg.New("export", opts))
		defer l.Close()
		release, _ := acquire(t, l, "k", true)
		acquire(t, l, "k", true)
		require.NoError(t, reg.Reload(func(next *Registry) error { return nil }))
		require.Equal(t, 2, l.Stats().InFlight)
		release()
		require.Equal(t, 1, l.Stats().InFlight)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Zero(t, l.Stats().InFlight)
	})
}

// TestCloseReleasesWhatAcquireGaveOut, and the holds of requests go on until they end: the
// next limiter of the name finds them.
func TestCloseReleasesWhatAcquireGaveOut(t *testing.T) {
	onEach(t, func(t *testing.T, store Store) {
		opts := quiet(InFlight(3, time.Minute))
		opts.Key, opts.Store = StaticKey("k"), store
		first := Must(new(Registry).New("export", opts))
		r := running(t, first.Middleware)
		require.Zero(t, r.begin())
		release, _ := acquire(t, first, "k", true)
		acquire(t, first, "k", true)
		require.Equal(t, 3, first.Stats().InFlight)
		require.NoError(t, first.Close())
		synctest.Wait()
		require.Equal(t, 1, first.Stats().InFlight)
		release() // does nothing more
		_, _, err := first.Acquire(ctx, "k")
		require.ErrorIs(t, err, ErrClosed)
		require.Equal(t, http.StatusServiceUnavailable, r.begin())

		l := Must(new(Registry).New("export", opts))
		defer l.Close()
		_, d := acquire(t, l, "k", true)
		require.EqualValues(t, 1, d.Remaining, "the request that runs has a hold")
		r.end(1)
		require.Zero(t, first.Stats().InFlight)
		if _, ok := store.(RemoteStore); ok {
			time.Sleep(time.Minute) // a closed limiter does not call the store: its record ends by itself
			synctest.Wait()
			d, err = l.TakeN(ctx, "k", 0)
			require.NoError(t, err)
			require.EqualValues(t, 3, d.Remaining, "the hold of Acquire has ended, too")
			return
		}
		_, d = acquire(t, l, "k", true)
		require.EqualValues(t, 1, d.Remaining)
	})
}

// TestDenyAndUnlimitedBesideInFlight: Deny denies and asks for no hold. Unlimited changes nothing.
func TestDenyAndUnlimitedBesideInFlight(t *testing.T) {
	l := limiter(t, InFlight(2, time.Minute), Deny)
	_, d := acquire(t, l, "k", false)
	require.Equal(t, Never, d.RetryAfter)
	d, err := l.Take(ctx, "k")
	require.NoError(t, err, "it takes no hold")
	require.False(t, d.Allowed)
	require.NoError(t, l.SetLimits(Unlimited, InFlight(2, time.Minute)))
	release, d := acquire(t, l, "k", true)
	require.EqualValues(t, 1, d.Remaining)
	_, err = l.Take(ctx, "k")
	require.ErrorContains(t, err, "use Acquire")
	release()
	require.NoError(t, l.SetLimits(Unlimited))
	release, _ = acquire(t, l, "k", true)
	release()
	require.NoError(t, l.SetLimits(hour))
	release, d = acquire(t, l, "k", true) // without an in-flight limit it is Take
	require.EqualValues(t, 4, d.Remaining)
	release()
	require.EqualValues(t, 4, leftOf(t, l, "k"))
	require.Zero(t, l.Stats().InFlight)
}

// TestInFlightEventsAndStats counts decisions by result and by policy, and reports each denial
// with the policy that denied.
func TestInFlightEventsAndStats(t *testing.T) {
	onEach(t, func(t *testing.T, store Store) {
		var seen recorder
		opts := quiet(InFlight(5, time.Minute).Named("at once"), FixedWindow(7, time.Hour).Named("rate"))
		opts.Key, opts.Observe = StaticKey("k"), seen.observe
		l := processOf(t, store, opts)
		near := []uint64{0, 0, 0, 1, 2} // one of five is a fifth
		var releases []func()
		for i := range 5 {
			release, d := acquire(t, l, "k", true)
			releases = append(releases, release)
			require.Equal(t, "at once", d.Policy)
			require.Equal(t, near[i], l.Stats().NearLimit)
			require.Equal(t, i+1, l.Stats().InFlight)
		}
		require.Empty(t, seen.all())
		by := WithReason(WithActor(ctx, "job"), "nightly")
		_, d, err := l.Acquire(by, "k")
		require.NoError(t, err)
		require.Equal(t, []Event{{
			Kind: EventDenied, Time: time.Now(), Limiter: l.Name(), Key: "k", Policy: "at once", Actor: "job", Reason: "nightly",
			Limit: InFlight(5, time.Minute).Named("at once"), Decision: d, Units: 1,
		}}, seen.of(EventDenied))
		r := running(t, l.Middleware)
		require.Equal(t, http.StatusTooManyRequests, r.begin())
		for _, release := range releases {
			release()
		}
		synctest.Wait()
		require.Zero(t, r.begin())
		require.Zero(t, r.begin())
		require.Equal(t, http.StatusTooManyRequests, r.begin()) // by the rate
		events := seen.of(EventDenied)
		require.Len(t, events, 3)
		require.Equal(t, "at once", events[1].Policy)
		require.Equal(t, "rate", events[2].Policy)
		require.Equal(t, time.Hour, events[2].Decision.RetryAfter)

		stats := l.Stats()
		require.EqualValues(t, 7, stats.Allowed)
		require.EqualValues(t, 3, stats.Denied)
		require.EqualValues(t, 7, stats.AllowedUnits)
		require.EqualValues(t, 3, stats.DeniedUnits)
		require.Equal(t, 2, stats.InFlight)
		require.ElementsMatch(t, []PolicyStats{
			{Name: "at once", Limit: InFlight(5, time.Minute).Named("at once"), Denied: 2},
			{Name: "rate", Limit: FixedWindow(7, time.Hour).Named("rate"), Denied: 1},
		}, stats.Policies)
		r.end(2)
		require.Zero(t, l.Stats().InFlight)
	})
}

// TestShadowAndInFlight: a request that would be denied runs without a hold.
func TestShadowAndInFlight(t *testing.T) {
	onEach(t, func(t *testing.T, store Store) {
		var seen recorder
		opts := quiet(InFlight(1, time.Minute))
		opts.Key, opts.Shadow, opts.Observe = StaticKey("k"), true, seen.observe
		l := processOf(t, store, opts)
		r := running(t, l.Middleware)
		require.Zero(t, r.begin())
		require.Zero(t, r.begin())
		require.Equal(t, 1, l.Stats().InFlight)
		require.EqualValues(t, 1, l.Stats().ShadowDenied)
		require.Len(t, seen.of(EventShadowDenied), 1)
		require.Equal(t, "l", seen.of(EventShadowDenied)[0].Policy)
		r.end(2)
		require.Zero(t, l.Stats().InFlight)
		require.Zero(t, r.begin())
		require.EqualValues(t, 1, l.Stats().ShadowDenied)
		acquire(t, l, "k", false) // calls are not in Shadow
		r.end(1)
	})
}

// TestCountLeavesHolds: Options.Count gives back units, and the hold ends with its request.
func TestCountLeavesHolds(t *testing.T) {
	onEach(t, func(t *testing.T, store Store) {
		opts := quiet(InFlight(2, time.Minute), hour)
		opts.Key = StaticKey("k")
		opts.Count = func(_ *http.Request, status int) bool { return status != http.StatusNoContent }
		l := processOf(t, store, opts)
		r := running(t, l.Middleware)
		require.Zero(t, r.begin())
		require.EqualValues(t, 1, leftOf(t, l, "k"))
		r.end(1)
		d, err := l.TakeLimits(ctx, "k", 0, hour)
		require.NoError(t, err)
		require.EqualValues(t, 5, d.Remaining)
		require.Zero(t, l.Stats().InFlight)

		alone := opts
		alone.Limits = []Limit{InFlight(2, time.Minute)}
		require.NoError(t, l.SetLimits(alone.Limits...))
		require.Zero(t, r.begin())
		r.end(1)
		require.Zero(t, l.Stats().InFlight)
		require.EqualValues(t, 2, leftOf(t, l, "k"))
		require.Empty(t, l.Stats().Warnings)
	})
}

// TestCostAndHolds: a request has one hold whatever it costs, and none if it costs 0.
func TestCostAndHolds(t *testing.T) {
	onEach(t, func(t *testing.T, store Store) {
		opts := quiet(InFlight(2, time.Minute), FixedWindow(10, time.Hour))
		opts.Key = StaticKey("k")
		opts.Cost = func(r *http.Request) int64 {
			n, _ := strconv.ParseInt(r.Header.Get("Cost"), 10, 64)
			return n
		}
		l := processOf(t, store, opts)
		r := running(t, l.Middleware)
		require.Zero(t, r.begin("Cost: 4"))
		require.Equal(t, 1, l.Stats().InFlight)
		require.Zero(t, r.begin("Cost: 5"))
		require.Equal(t, 2, l.Stats().InFlight)
		require.Equal(t, http.StatusTooManyRequests, r.begin("Cost: 1"))
		require.Zero(t, r.begin("Cost: 0"))
		require.Equal(t, 2, l.Stats().InFlight, "a request of cost 0 has no hold")
		r.end(3)
		require.Equal(t, http.StatusTooManyRequests, r.begin("Cost: 2"), "9 of 10 units are taken")
		require.Equal(t, http.StatusTooManyRequests, r.begin("Cost: 11"))
		require.Zero(t, l.Stats().InFlight)
		require.Zero(t, r.begin("Cost: 1"))
		r.end(1)

		require.NoError(t, l.SetLimits(InFlight(2, time.Minute)))
		require.Zero(t, r.begin("Cost: 1000"), "the in-flight limit counts requests")
		require.Equal(t, 1, l.Stats().InFlight)
		r.end(1)
		require.Zero(t, l.Stats().InFlight)
	})
}

// TestCheckTwiceHasOneHold: the second call for a request answers as the first, and its hold
// ends with the request's context.
func TestCheckTwiceHasOneHold(t *testing.T) {
	onEach(t, func(t *testing.T, store Store) {
		opts := quiet(InFlight(2, time.Minute))
		opts.Key = StaticKey("k")
		l := processOf(t, store, opts)
		context, cancel := context.WithCancel(ctx)
		r := httpRequest("GET").WithContext(context)
		w := httptest.NewRecorder()
		require.True(t, l.Check(w, r))
		require.True(t, l.Check(w, r))
		require.Equal(t, 1, l.Stats().InFlight)
		time.Sleep(time.Hour) // it is renewed
		require.Equal(t, 1, l.Stats().InFlight)
		require.EqualValues(t, 1, leftOf(t, l, "k"))
		cancel()
		synctest.Wait()
		require.Zero(t, l.Stats().InFlight)
		require.EqualValues(t, 2, leftOf(t, l, "k"))
	})
}
