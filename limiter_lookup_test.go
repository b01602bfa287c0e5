package ratelimit_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestLookKeyIsLookForAnyKey looks at keys by their names, on each kind of store.
func TestLookKeyIsLookForAnyKey(t *testing.T) {
	for name, store := range map[string]func(t *testing.T) Store{
		"memory": func(t *testing.T) Store { return memory(t, "a") }, "wrapped": func(t *testing.T) Store { return &wrapper{memory(t, "b")} },
		"remote": func(t *testing.T) Store { return &remoteBackend{Store: memory(t, "c")} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limits := []Limit{FixedWindow(5, time.Hour), SlidingWindow(3, time.Minute).Named("m")}
				opts := quiet(limits...)
				opts.Store = store(t)
				opts.LimitsFor = func(*http.Request) []Limit { return []Limit{named(50, "plan")} }
				l := httpLimiterNamed(t, "lim", opts)
				decide(t, l, "alice", 3)
				for range 3 { // looking takes nothing
					got, err := l.LookKey(ctx, "alice")
					require.NoError(t, err)
					require.Equal(t, []Standing{
						{"lim-1h", limits[0], Result{Remaining: 2, MoreAfter: time.Hour, ResetAfter: time.Hour}},
						{"m", limits[1], Result{Remaining: 0, MoreAfter: got[1].MoreAfter, ResetAfter: got[1].ResetAfter}},
					}, got)
				}
				got, err := l.LookKey(ctx, "nobody")
				require.NoError(t, err)
				require.Equal(t, []Standing{{"lim-1h", limits[0], Result{Remaining: 5}}, {"m", limits[1], Result{Remaining: 3}}}, got)
				require.EqualValues(t, 1, totalOf(l.Stats()))

				plan := FixedWindow(50, time.Hour).Named("plan") // the same counter, with another number
				got, err = l.LookKey(ctx, "alice", plan)
				require.NoError(t, err)
				require.Equal(t, []Standing{{"plan", plan, Result{Remaining: 47, MoreAfter: time.Hour, ResetAfter: time.Hour}}}, got)
				_, err = l.LookKey(ctx, "alice", Limit{})
				require.ErrorContains(t, err, `ratelimit: limiter "lim": LookKey: `)

				require.NoError(t, l.SetLimits(Deny.Named("shut")))
				got, err = l.LookKey(ctx, "alice")
				require.NoError(t, err)
				require.Equal(t, []Standing{{"shut", Deny.Named("shut"), Result{RetryAfter: Never}}}, got)

				_, err = l.LookKey(ctx, "")
				require.ErrorIs(t, err, ErrNoKey)
				done, cancel := context.WithCancel(ctx)
				cancel()
				_, err = l.LookKey(done, "alice")
				require.ErrorIs(t, err, context.Canceled)
				require.NoError(t, l.Close())
				_, err = l.LookKey(ctx, "alice")
				require.ErrorIs(t, err, ErrClosed)
				require.ErrorContains(t, err, `ratelimit: limiter "lim": `)
			})
		})
	}
}

// TestLookKeyInAnOutage looks while the store is away.
func TestLookKeyInAnOutage(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		remotely(t, Options{Limits: []Limit{hour}, OnFailure: policy}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			decide(t, l, "key", 4)
			backend.set(refused)
			got, err := l.LookKey(ctx, "key")
			switch policy {
			case FailClosed:
				require.ErrorIs(t, err, errBackendRefused)
			default: // also with FailOpen: what is known here denies requests
				require.EqualValues(t, 1, got[0].Remaining)
			}
			require.EqualValues(t, 1, totalOf(l.Stats()))
		})
	}
}

// TestKeyOfIsTheKeyThatCounts asks for keys, and uses them.
func TestKeyOfIsTheKeyThatCounts(t *testing.T) {
	for _, test := range []struct {
		name string
		key  KeyFunc
		r    *http.Request
		want string
		err  error
	}{
		{"an address", nil, from("203.0.113.7:99"), "203.0.113.7", nil},
		{"a network", nil, from("[2001:db8::1]:99"), "2001:db8::/64", nil},
		{"a header", HeaderKey("X-API-Key"), httpRequest("GET", "X-API-Key: k"), "k", nil},
		{"the first of two", FirstKey(HeaderKey("X-API-Key"), ClientIP{}.Key), httpRequest("GET", "X-API-Key: k"), "0=k", nil},
		{"the second of two", FirstKey(HeaderKey("X-API-Key"), ClientIP{}.Key), httpRequest("GET"), "1=192.0.2.1", nil},
		{"the first by its name", FirstKey(NamedKey("key", HeaderKey("X-API-Key")), NamedKey("ip", ClientIP{}.Key)), httpRequest("GET", "X-API-Key: k"), "key=k", nil},
		{"the second by its name", FirstKey(NamedKey("key", HeaderKey("X-API-Key")), NamedKey("ip", ClientIP{}.Key)), httpRequest("GET"), "ip=192.0.2.1", nil},
		{"none", HeaderKey("X-API-Key"), httpRequest("GET"), "", ErrNoKey},
		{"an empty one", emptyKey, httpRequest("GET"), "", ErrNoKey},
		{"exempt", func(*http.Request) (string, error) { return "", ErrExempt }, httpRequest("GET"), "", ErrExempt},
		{"exempt with a key", func(*http.Request) (string, error) { return "key", ErrExempt }, httpRequest("GET"), "", ErrExempt},
		{"an error", func(*http.Request) (string, error) { return "key", errOfKey }, httpRequest("GET"), "", errOfKey},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := quiet(hour)
			opts.Key = test.key
			opts.Skip = func(*http.Request) bool { panic("KeyOf asks for the key only") }
			opts.LimitsFor = func(*http.Request) []Limit { panic("KeyOf asks for the key only") }
			l := httpLimiterNamed(t, "lim "+test.name, opts)
			got, err := l.KeyOf(test.r)
			require.Equal(t, test.want, got)
			require.ErrorIs(t, err, test.err)
			if err != nil {
				require.ErrorContains(t, err, `ratelimit: limiter "lim `+test.name+`": `)
				require.Zero(t, totalOf(l.Stats()), "not even the failure is counted")
				require.Empty(t, l.Stats().Warnings)
				return
			}
			opts.Skip, opts.LimitsFor = nil, nil
			used := httpLimiterNamed(t, "used "+test.name, opts)
			require.Equal(t, http.StatusNoContent, func() int {
				w := httptest.NewRecorder()
				used.Middleware(httpServed).ServeHTTP(w, test.r)
				return w.Code
			}())
			standings, err := used.LookKey(ctx, got)
			require.NoError(t, err)
			require.EqualValues(t, 4, standings[0].Remaining)
			require.NoError(t, used.Reset(ctx, got))
			require.EqualValues(t, 5, leftOf(t, used, got))
		})
	}
	l := httpLimiter(t, quiet(hour))
	require.NoError(t, l.Close())
	key, err := l.KeyOf(from("203.0.113.7:99"))
	require.NoError(t, err, "it asks no store, so it works after Close, too")
	require.Equal(t, "203.0.113.7", key)
}

// TestInfoSaysWhatALimiterIs makes limiters on each kind of store.
func TestInfoSaysWhatALimiterIs(t *testing.T) {
	store, err := NewMemoryStore(t.Name(), MemoryOptions{MaxKeys: 123})
	require.NoError(t, err)
	t.Cleanup(func() { store.Close() })
	client := newMini(t).client(t)
	for _, test := range []struct {
		name string
		opts Options
		want Info
	}{
		{"memory", with(store), Info{Store: "MemoryStore", Prefix: "memory:" + t.Name(), Capacity: 123}},
		{"Redis", Options{Redis: client, OnFailure: FailClosed}, Info{Store: "RedisStore", Prefix: "rl:info Redis:", OnFailure: FailClosed, Remote: true}},
		{"wrapped", with(&renamed{memory(t, "inside"), "outside:"}), Info{Store: "renamed", Prefix: "outside:"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.opts.Limits, test.opts.Logger = []Limit{hour}, quietly
			l := httpLimiterNamed(t, "info "+test.name, test.opts)
			info := l.Info()
			require.Regexp(t, `helpers_http_test\.go:\d+$`, info.Site)
			test.want.Name, test.want.Site = "info "+test.name, info.Site
			if test.name == "Redis" {
				test.want.Prefix = info.Prefix
				require.Contains(t, info.Prefix, "info")
			}
			require.Equal(t, test.want, info)
			require.NoError(t, l.Close())
			require.Equal(t, info, l.Info(), "also after Close")
		})
	}
}

// TestDecisionsHavePolicyAndMoreAfter reads both from calls, from requests and from JSON.
func TestDecisionsHavePolicyAndMoreAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, store := range map[string]Store{"memory": memory(t, "a"), "wrapped": &wrapper{memory(t, "b")}, "remote": &remoteBackend{Store: memory(t, "c")}} {
			bucket := TokenBucket(1, time.Minute, 10)
			opts := quiet(named(5, "hour"), bucket)
			opts.Store = store
			l := httpLimiterNamed(t, "lim "+name, opts)
			d := decide(t, l, "key", 0)
			require.Equal(t, "hour", d.Policy)
			require.Zero(t, d.MoreAfter, "the limit is whole")
			d = decide(t, l, "key", 2)
			require.Equal(t, Decision{
				Allowed: true, Limit: named(5, "hour"), Remaining: 3, ResetAfter: time.Hour, Policy: "hour", MoreAfter: time.Hour,
			}, d)
			d = decide(t, l, "key", 9)
			require.Equal(t, Never, d.RetryAfter)
			require.Equal(t, "hour", d.Policy)
			require.Equal(t, time.Hour, d.MoreAfter)

			d, err := l.TakeLimits(ctx, "other", 4, bucket)
			require.NoError(t, err)
			require.Equal(t, Decision{
				Allowed: true, Limit: bucket, Remaining: 6, ResetAfter: 4 * time.Minute, Policy: "lim " + name, MoreAfter: time.Minute,
			}, d)
			_, d, err = l.TakeUpTo(ctx, "third", 4)
			require.NoError(t, err)
			require.Equal(t, []any{"hour", time.Hour}, []any{d.Policy, d.MoreAfter})
			d, err = l.TakeLimits(ctx, "key", 1, Unlimited.Named("gold"))
			require.NoError(t, err)
			require.Equal(t, []any{"gold", time.Duration(0)}, []any{d.Policy, d.MoreAfter})

			r := httpRequest("GET")
			require.True(t, l.Check(httptest.NewRecorder(), r))
			d, ok := DecisionFrom(r.Context())
			require.True(t, ok)
			require.Equal(t, []any{"hour", time.Hour}, []any{d.Policy, d.MoreAfter})
			text, err := json.Marshal(d)
			require.NoError(t, err)
			assert.JSONEq(t, `{"allowed":true,"limit":"5/1h fixed name=hour","remaining":4,"reset_after":3600,"retry_after":0,"source":"store","policy":"hour","more_after":3600}`, string(text))
		}
	})
}
