package ratelimit_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// named is a limit of the tests of events.
func named(n int64, name string) Limit { return FixedWindow(n, time.Hour).Named(name) }

// TestEachDenialIsAnEvent denies in every way that there is, on each kind of store.
func TestEachDenialIsAnEvent(t *testing.T) {
	own, plan := named(5, "own"), named(2, "plan")
	type call struct {
		name  string
		deny  func(t *testing.T, l *Limiter, ctx context.Context) Decision
		key   string
		units int64
		limit Limit
	}
	request := func(ctx context.Context, fields ...string) *http.Request {
		return httpRequest("GET", append(fields, "Key: "+httpKey)...).WithContext(ctx)
	}
	var answered Decision
	denied := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answered, _ = DecisionFrom(r.Context())
		w.WriteHeader(http.StatusTooManyRequests)
	})
	calls := []call{
		{"Take", func(t *testing.T, l *Limiter, ctx context.Context) Decision {
			d, err := l.Take(ctx, "key")
			require.NoError(t, err)
			return d
		}, "key", 1, own},
		{"TakeN", func(t *testing.T, l *Limiter, ctx context.Context) Decision {
			d, err := l.TakeN(ctx, "key", 3)
			require.NoError(t, err)
			return d
		}, "key", 3, own},
		{"TakeN of more than the limit", func(t *testing.T, l *Limiter, ctx context.Context) Decision {
			d, err := l.TakeN(ctx, "key", 30)
			require.NoError(t, err)
			require.Equal(t, Never, d.RetryAfter)
			return d
		}, "key", 30, own},
		{"TakeUpTo", func(t *testing.T, l *Limiter, ctx context.Context) Decision {
			_, d, err := l.TakeUpTo(ctx, "key", 4)
			require.NoError(t, err)
			return d
		}, "key", 4, own},
		{"TakeLimits", func(t *testing.T, l *Limiter, ctx context.Context) Decision {
			d, err := l.TakeLimits(ctx, "key", 2, plan)
			require.NoError(t, err)
			return d
		}, "key", 2, plan},
		{"Deny", func(t *testing.T, l *Limiter, ctx context.Context) Decision {
			d, err := l.TakeLimits(ctx, "key", 1, Deny.Named("banned"))
			require.NoError(t, err)
			return d
		}, "key", 1, Deny.Named("banned")},
		{"Middleware", func(t *testing.T, l *Limiter, ctx context.Context) Decision {
			w := httptest.NewRecorder()
			l.Middleware(httpServed).ServeHTTP(w, request(ctx, "Cost: 6"))
			require.Equal(t, http.StatusTooManyRequests, w.Code)
			return answered
		}, httpKey, 6, own},
		{"Middleware, of no cost", func(t *testing.T, l *Limiter, ctx context.Context) Decision {
			l.Middleware(httpServed).ServeHTTP(httptest.NewRecorder(), request(ctx, "Cost: 0", "Plan: bad"))
			return answered
		}, httpKey, 0, Deny},
		{"Check", func(t *testing.T, l *Limiter, ctx context.Context) Decision {
			r := request(ctx, "Cost: 7")
			require.False(t, l.Check(httptest.NewRecorder(), r))
			d, ok := DecisionFrom(r.Context())
			require.True(t, ok)
			return d
		}, httpKey, 7, own},
	}
	for kind, store := range map[string]func(t *testing.T) Store{
		"memory": func(t *testing.T) Store { return memory(t, "memory") }, "wrapped": func(t *testing.T) Store { return &wrapper{memory(t, "wrapped")} },
		"remote": func(t *testing.T) Store { return &remoteBackend{Store: memory(t, "remote")} },
	} {
		for _, c := range calls {
			t.Run(kind+", "+c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var seen recorder
					opts := byHeader()
					opts.Limits, opts.Store, opts.Observe, opts.Denied = []Limit{own}, store(t), seen.observe, denied
					l := httpLimiter(t, opts)
					decide(t, l, "key", 5)
					require.Empty(t, seen.all(), "an admission is no event")
					by := WithReason(WithActor(t.Context(), "job"), "nightly")
					d := c.deny(t, l, by)
					require.False(t, d.Allowed)
					events := seen.of(EventDenied)
					require.Len(t, events, 1)
					name := c.limit.Name()
					if name == "" {
						name = l.Name()
					}
					require.Equal(t, Event{
						Kind: EventDenied, Time: time.Now(), Limiter: l.Name(), Key: c.key, Policy: name, Actor: "job", Reason: "nightly",
						Limit: c.limit, Decision: d, Units: c.units,
					}, events[0])
					seen.mu.Lock()
					require.Equal(t, by, seen.contexts[0], "the context is the caller's")
					seen.mu.Unlock()
				})
			})
		}
	}
}

// TestShadowDenialIsAnEventOfItsOwn lets a request through.
func TestShadowDenialIsAnEventOfItsOwn(t *testing.T) {
	var seen recorder
	opts := quiet(named(1, "own"))
	opts.Observe, opts.Shadow, opts.Silence = seen.observe, true, []Code{CodeShadow}
	l := httpLimiter(t, opts)
	h := l.Middleware(showDecision)
	statusOf(l.Middleware(httpServed))
	require.Empty(t, seen.all())
	var d Decision
	r := httpRequest("GET")
	h.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithValue(r.Context(), decisionKey{}, &d)))
	require.Equal(t, []Event{
		{Kind: EventWarning, Limiter: l.Name(), Code: CodeShadow},
		{Kind: EventShadowDenied, Limiter: l.Name(), Key: httpKey, Policy: "own", Limit: named(1, "own"), Decision: d, Units: 1},
	}, seen.all())
	decide(t, l, httpKey, 1)
	require.Equal(t, []EventKind{EventDenied}, seen.kinds(), "Take is not changed by Shadow")
}

// TestAdministrativeCallsAreEvents resets, refunds and changes limits.
func TestAdministrativeCallsAreEvents(t *testing.T) {
	var seen recorder
	one, two, three := named(5, "one"), SlidingWindow(9, time.Minute), named(6, "three")
	opts := quiet(one)
	opts.Observe = seen.observe
	l := httpLimiterNamed(t, "lim", opts)
	by := WithReason(WithActor(ctx, "anna"), "ticket 7")
	for _, test := range []struct {
		name string
		call func() error
		want []Event
		err  bool
	}{
		{"Reset", func() error { return l.Reset(ctx, "key") }, []Event{{Kind: EventReset, Limiter: "lim", Key: "key"}}, false},
		{"Reset by an actor", func() error { return l.Reset(by, "key") }, []Event{{Kind: EventReset, Limiter: "lim", Key: "key", Actor: "anna", Reason: "ticket 7"}}, false},
		{"Reset without a key", func() error { return l.Reset(by, "") }, nil, true},
		{"Refund", func() error { return l.Refund(ctx, "key", 2) }, nil, false},
		{"Refund with a reason only", func() error { return l.Refund(WithReason(ctx, "why"), "key", 2) }, nil, false},
		{"Refund by an actor", func() error { return l.Refund(by, "key", 2) }, []Event{{Kind: EventRefunded, Limiter: "lim", Key: "key", Units: 2, Actor: "anna", Reason: "ticket 7"}}, false},
		{"Refund of nothing", func() error { return l.Refund(by, "key", 0) }, nil, false},
		{"Refund of less than nothing", func() error { return l.Refund(by, "key", -1) }, nil, true},
		{"SetLimits to the same", func() error { return l.SetLimits(one) }, nil, false},
		{"SetLimits", func() error { return l.SetLimits(one, two, three.Named("new")) }, nil, true}, // two counters in one
		{"SetLimits to one more", func() error { return l.SetLimits(one, two) }, []Event{
			{Kind: EventLimitsChanged, Limiter: "lim", Policy: "one", Limit: one},
			{Kind: EventLimitsChanged, Limiter: "lim", Policy: "lim-1m", Limit: two},
		}, false},
		{"SetLimits to one less", func() error { return l.SetLimits(one) }, []Event{{Kind: EventLimitsChanged, Limiter: "lim", Policy: "one", Limit: one}}, false},
		{"SetLimitsContext", func() error { return l.SetLimitsContext(by, three) }, []Event{{Kind: EventLimitsChanged, Limiter: "lim", Policy: "three", Limit: three, Actor: "anna", Reason: "ticket 7"}}, false},
		{"SetLimitsContext with a context that is done", func() error {
			done, cancel := context.WithCancel(by)
			cancel()
			return l.SetLimitsContext(done, one, two)
		}, []Event{
			{Kind: EventLimitsChanged, Limiter: "lim", Policy: "one", Limit: one, Actor: "anna", Reason: "ticket 7"},
			{Kind: EventLimitsChanged, Limiter: "lim", Policy: "lim-1m", Limit: two, Actor: "anna", Reason: "ticket 7"},
		}, false},
		{"SetLimits to another name", func() error { return l.SetLimits(one.Named("renamed")) }, []Event{{Kind: EventLimitsChanged, Limiter: "lim", Policy: "renamed", Limit: one.Named("renamed")}}, false},
		{"SetLimits to none", func() error { return l.SetLimits() }, nil, true},
		{"SetLimits to Unlimited", func() error { return l.SetLimits(Unlimited) }, []Event{{Kind: EventLimitsChanged, Limiter: "lim", Policy: "lim", Limit: Unlimited}}, false},
		{"SetLimits to Deny", func() error { return l.SetLimits(Deny.Named("shut")) }, []Event{{Kind: EventLimitsChanged, Limiter: "lim", Policy: "shut", Limit: Deny.Named("shut")}}, false},
		{"Close", l.Close, []Event{{Kind: EventClosed, Limiter: "lim"}}, false},
		{"Close again", l.Close, nil, false},
		{"Reset after Close", func() error { return l.Reset(by, "key") }, nil, true},
		{"SetLimitsContext after Close", func() error { return l.SetLimitsContext(by, one) }, nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.call()
			require.Equal(t, test.err, err != nil, "%v", err)
			require.Equal(t, test.want, seen.all())
		})
	}
}

// TestCallsThatFailAreNoEvents makes administrative calls while the store is away.
func TestCallsThatFailAreNoEvents(t *testing.T) {
	var seen recorder
	remotely(t, Options{Limits: []Limit{hour}, Observe: seen.observe, OnFailure: FailClosed}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		backend.set(refused)
		require.Error(t, l.Reset(WithActor(ctx, "anna"), "key"))
		require.Error(t, l.Refund(WithActor(ctx, "anna"), "key", 1))
		require.Empty(t, seen.all())
	})
}

// TestReloadReportsWhatHasChanged compares the limits of two generations, and reports
// each limiter that is replaced or left out.
func TestReloadReportsWhatHasChanged(t *testing.T) {
	reg := new(Registry)
	defer reg.Close()
	var seen recorder
	defer reg.Observe(seen.observe)()
	reload := func(fail error, limiters map[string][]Limit) error {
		return reg.Reload(func(next *Registry) error {
			for name, limits := range limiters {
				l, err := next.New(t.Name()+name, quiet(limits...))
				require.NoError(t, err)
				decide(t, l, "key", 100) // denied
				t.Cleanup(func() { Memory(l.Name()).Close() })
			}
			require.ElementsMatch(t, denials(len(limiters)), seen.kinds(), "it reports nothing yet but what its limiters do")
			return fail
		})
	}
	require.NoError(t, reload(nil, map[string][]Limit{"a": {named(1, "one")}, "b": {named(2, "two")}}))
	require.Empty(t, seen.all(), "new limiters are no events")
	require.ErrorIs(t, reload(errBackend, map[string][]Limit{"a": {named(5, "five")}}), errBackend)
	require.Empty(t, seen.all(), "a Reload that fails reports nothing")
	require.NoError(t, reload(nil, map[string][]Limit{"a": {named(1, "one"), SlidingWindow(3, time.Minute)}, "c": {named(3, "three")}}))
	require.ElementsMatch(t, []Event{
		{Kind: EventLimitsChanged, Limiter: t.Name() + "a", Policy: "one", Limit: named(1, "one")},
		{Kind: EventLimitsChanged, Limiter: t.Name() + "a", Policy: t.Name() + "a-1m", Limit: SlidingWindow(3, time.Minute)},
		{Kind: EventReplaced, Limiter: t.Name() + "a"},
		{Kind: EventClosed, Limiter: t.Name() + "b"},
	}, seen.all())
	old, _ := reg.Lookup(t.Name() + "a")
	require.NoError(t, reload(nil, map[string][]Limit{"a": {named(1, "one"), SlidingWindow(3, time.Minute)}, "c": {named(3, "three")}}))
	require.ElementsMatch(t, []Event{{Kind: EventReplaced, Limiter: t.Name() + "a"}, {Kind: EventReplaced, Limiter: t.Name() + "c"}}, seen.all())
	require.Error(t, old.SetLimits(hour))
	require.NoError(t, old.Close())
	require.Empty(t, seen.all(), "a generation that was replaced does not close")
	decide(t, must(reg.Lookup(t.Name()+"a")), "key", 100)
	require.Equal(t, []EventKind{EventDenied}, seen.kinds())
	require.NoError(t, reg.Close())
	require.Equal(t, []EventKind{EventClosed, EventClosed}, seen.kinds())
	require.NoError(t, reg.Close())
	require.Empty(t, seen.all())
}

func denials(n int) (kinds []EventKind) {
	for range n {
		kinds = append(kinds, EventDenied)
	}
	return kinds
}

func must(l *Limiter, ok bool) *Limiter {
	if !ok {
		panic("no such limiter")
	}
	return l
}

// TestOutagesAreEvents lets a store fail and come back, twice.
func TestOutagesAreEvents(t *testing.T) {
	var seen recorder
	opts := Options{Limits: []Limit{hour}, Observe: seen.observe, Silence: []Code{CodeStoreDown, CodeStoreBack, CodeStoreFailed}}
	remotely(t, opts, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		for range 2 {
			began := time.Now()
			startOutage(t, backend, l, refused)
			synctest.Wait()
			down := seen.of(EventStoreDown)
			require.Len(t, down, 1)
			require.ErrorIs(t, down[0].Err, errBackendRefused)
			require.Equal(t, Event{Kind: EventStoreDown, Time: began, Limiter: "l", Code: CodeStoreDown, Err: down[0].Err}, down[0])
			time.Sleep(20 * time.Second)
			require.Empty(t, seen.of(EventStoreBack))
			backend.set(up)
			decide(t, l, "comes back", 0)
			synctest.Wait()
			back := seen.of(EventStoreBack)
			require.Len(t, back, 1)
			require.Equal(t, Event{Kind: EventStoreBack, Time: time.Now(), Limiter: "l", Code: CodeStoreBack, Duration: 20 * time.Second}, back[0])
			warned := seen.of(EventWarning)
			require.Len(t, warned, 1, "what is of another kind is no warning, and each code comes once a minute")
			require.Equal(t, CodeStoreFailed, warned[0].Code)
			require.ErrorIs(t, warned[0].Err, errBackendRefused)
			seen.all()
			time.Sleep(time.Minute)
		}
		require.EqualValues(t, 2, l.Stats().Warnings[CodeStoreDown])
		require.EqualValues(t, 2, l.Stats().Warnings[CodeStoreBack])
		require.GreaterOrEqual(t, l.Stats().Warnings[CodeStoreFailed], uint64(10))
	})
}

// TestLooksAreNoEvents looks at a key that is denied, in every way that there is.
func TestLooksAreNoEvents(t *testing.T) {
	var seen recorder
	opts := byHeader()
	opts.Observe = seen.observe
	l := httpLimiter(t, opts)
	decide(t, l, "key", 50)
	for range 3 {
		_, err := l.TakeN(ctx, "key", 0)
		require.NoError(t, err)
		_, err = l.TakeLimits(ctx, "key", 0, Deny)
		require.NoError(t, err)
		_, err = l.LookKey(ctx, "key")
		require.NoError(t, err)
		_, err = l.Look(httpRequest("GET", "Key: key"))
		require.NoError(t, err)
		_, err = l.Look(httpRequest("GET", "Key: "))
		require.Error(t, err)
		_, err = l.KeyOf(httpRequest("GET", "Key: fail"))
		require.Error(t, err)
		l.Stats()
		l.Info()
	}
	require.Empty(t, seen.all())
	require.EqualValues(t, 1, totalOf(l.Stats()))
}

// TestRequestThatIsNotDecidedIsNoDenial sends requests that are exempt, or that fail.
func TestRequestThatIsNotDecidedIsNoDenial(t *testing.T) {
	var seen recorder
	opts := byHeader()
	opts.Observe = seen.observe
	l := httpLimiter(t, opts)
	h := l.Middleware(httpServed)
	for _, field := range []string{"Skip: 1", "Key: exempt", "Key: ", "Key: fail"} {
		httpAnswer(h, httpRequest("GET", field))
	}
	require.Equal(t, []EventKind{EventWarning, EventWarning}, seen.kinds())
}

// TestActorsAreRead reads what the contexts of calls have.
func TestActorsAreRead(t *testing.T) {
	var seen recorder
	opts := quiet(hour)
	opts.Observe = seen.observe
	l := httpLimiter(t, opts)
	for _, test := range []struct {
		ctx           context.Context
		actor, reason string
	}{
		{ctx, "", ""},
		{WithActor(ctx, "a"), "a", ""},
		{WithActor(WithActor(ctx, "a"), "b"), "b", ""},
		{WithActor(WithActor(ctx, "a"), ""), "", ""},
		{WithReason(ctx, "r"), "", "r"},
		{WithReason(WithActor(ctx, "a\n\x00\xff"), "r\""), "a\n\x00\xff", "r\""},
	} {
		require.NoError(t, l.Reset(test.ctx, "key"))
		e := seen.all()
		require.Len(t, e, 1)
		assert.Equal(t, test.actor, e[0].Actor)
		assert.Equal(t, test.reason, e[0].Reason)
	}
}
