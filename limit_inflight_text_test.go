package ratelimit_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// This file has what an in-flight limit is as text, and the mistakes that are refused.

func TestInFlightTextRoundTrips(t *testing.T) {
	for limit, text := range map[Limit]string{
		InFlight(20, 30*time.Second):                             "20/30s inflight",
		InFlight(1, 10*time.Millisecond):                         "1/10ms inflight",
		InFlight(20, 90*time.Second).Named("my policy"):          `20/1m30s inflight name="my policy"`,
		InFlight(999_999_999_999_999, 50*365*24*time.Hour):       "999999999999999/438000h inflight",
		InFlight(5, 1500*time.Millisecond).Named("for a moment"): `5/1.5s inflight name="for a moment"`,
	} {
		require.Equal(t, text, limit.String())
		parsed, err := ParseLimit(text)
		require.NoError(t, err)
		require.True(t, parsed == limit, "%s came back as %v", text, parsed)
		marshaled, err := json.Marshal(limit)
		require.NoError(t, err)
		var unmarshaled Limit
		require.NoError(t, json.Unmarshal(marshaled, &unmarshaled))
		require.Equal(t, limit, unmarshaled)
	}
	l := InFlight(20, 30*time.Second)
	require.Equal(t, "inflight", l.Algorithm())
	require.Equal(t, int64(20), l.N())
	require.Equal(t, int64(20), l.Burst())
	require.Equal(t, 30*time.Second, l.Window())
	require.Nil(t, l.Ladder())
	require.Empty(t, l.Calendar())
	require.NotEqual(t, FixedWindow(20, 30*time.Second), l)
}

func TestInFlightErrorsNameTheMistake(t *testing.T) {
	for text, want := range map[string]string{
		"0/30s inflight":                    "it allows 0 ",
		"-1/30s inflight":                   "it allows -1 ",
		"20/9ms inflight":                   "10ms",
		"20/0s inflight":                    "10ms",
		"20/9.999999ms inflight":            "10ms",
		"20/438001h inflight":               "its hold is 438001h0m0s: want 10ms to 50 years",
		"20/5ns inflight":                   "its hold is 5ns: want 10ms to 50 years; a number is of nanoseconds, so write 5*time.Second for 5 seconds",
		"20/-1s inflight":                   "its hold is -1s: want 10ms to 50 years",
		"20/NaN inflight":                   `window "NaN": want a duration`,
		"20/9999999h inflight":              `window "9999999h": want a duration`,
		"20/30s in-flight":                  `algorithm "in-flight": want fixed, sliding, bucket, rolling, calendar or inflight`,
		"20/30s inflight 5":                 `option "5": want name=…`,
		"20/30s inflight tz=UTC":            `option "tz": want name=…`,
		"20/30s inflight name=two words":    `option "words": want name=…`,
		"99999999999999999999/30s inflight": `"99999999999999999999" is not a whole number of units`,
		"20/30s inflight burst=5":           "option burst: only a bucket has one, not inflight",
		"20/30s inflight block=1m":          "Block",
		"20/day inflight":                   `window "day": want a duration`,
		"20/30s InFlight":                   `algorithm "InFlight": want fixed, sliding, bucket, rolling, calendar or inflight`,
		"20 inflight":                       "want a form such as",
		"1000000000000000/30s inflight":     "it allows 1000000000000000 ",
	} {
		got, err := ParseLimit(text)
		require.ErrorContains(t, err, want, text)
		require.Zero(t, got)
	}
	for _, bad := range []Limit{InFlight(0, time.Second), InFlight(20, 9*time.Millisecond), InFlight(20, time.Second).Block(time.Minute)} {
		_, err := new(Registry).New("login", quiet(bad))
		require.ErrorContains(t, err, `ratelimit: limiter "login"`)
		require.ErrorContains(t, err, bad.String())
		_, err = bad.MarshalText()
		require.Error(t, err)
		l := limiter(t, hour)
		require.ErrorContains(t, l.SetLimits(bad), bad.String())
		_, err = l.TakeLimits(ctx, "k", 0, bad)
		require.ErrorContains(t, err, bad.String())
	}
	_, err := new(Registry).New("login", quiet(InFlight(20, time.Minute), hour, InFlight(5, time.Second).Named("two")))
	require.ErrorContains(t, err, "20/1m inflight")
	require.ErrorContains(t, err, "5/1s inflight name=two")
	require.ErrorContains(t, err, "are both of InFlight, and a request has one hold: keep the stricter one")
}

// TestStoresThatCountNoHoldsAreRefused: New, SetLimits, LimitsFor and TakeLimits refuse an
// in-flight limit for a store that does not count holds, and name both.
func TestStoresThatCountNoHoldsAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		store func(*MemoryStore) Store
		want  string
	}{
		"foreign":         {func(m *MemoryStore) Store { return &plainWrapper{m} }, "plainWrapper (prefix"},
		"no method Hold":  {func(m *MemoryStore) Store { return &kindWrapper{inner: m} }, "kindWrapper (prefix"},
		"no KindInFlight": {func(m *MemoryStore) Store { return &heldNot{&heldWrapper{inside: m}} }, "does not count in-flight limits: implement KindStore"},
		"embeds":          {func(m *MemoryStore) Store { return &embedder{m} }, "embeds a store of this package"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, given := range [][]Limit{{export}, {hour, export}} {
				o := quiet(given...)
				o.Store = tc.store(memory(t, name))
				_, err := new(Registry).New("login", o)
				require.ErrorContains(t, err, tc.want)
				require.ErrorContains(t, err, `ratelimit: limiter "login": `)
				require.ErrorContains(t, err, "limit 20/30s inflight name=export")

				o.Limits, o.Key = []Limit{hour}, StaticKey("k")
				o.LimitsFor = func(*http.Request) []Limit { return given }
				l, err := new(Registry).New("login", o)
				require.NoError(t, err)
				err = l.SetLimits(given...)
				require.ErrorContains(t, err, tc.want)
				require.ErrorContains(t, err, "limit 20/30s inflight name=export")
				require.Equal(t, []Limit{hour}, l.Limits())
				for _, n := range []int64{0, 1} {
					_, err = l.TakeLimits(ctx, "k", n, given...)
					require.ErrorContains(t, err, tc.want)
				}
				require.Equal(t, http.StatusInternalServerError, statusOf(l.Middleware(httpServed)))
				l.Close()
			}
		})
	}
}

// heldNot has a method Hold, and does not count holds.
type heldNot struct{ *heldWrapper }

func (*heldNot) Kinds() Kinds { return KindBlock }

// TestCallsThatCouldNotEndAHold are errors that name the limit and Acquire. Calls
// of 0 units look.
func TestCallsThatCouldNotEndAHold(t *testing.T) {
	for name, limits := range map[string][]Limit{"alone": {export}, "with a rate": {hour, export}} {
		t.Run(name, func(t *testing.T) {
			l := limiter(t, limits...)
			refused := func(err error) {
				t.Helper()
				require.ErrorContains(t, err, "ratelimit: limiter \""+l.Name()+"\": ")
				require.ErrorContains(t, err, "limit 20/30s inflight name=export")
				require.ErrorContains(t, err, "use Acquire")
			}
			_, err := l.Take(ctx, "k")
			refused(err)
			_, err = l.TakeN(ctx, "k", 2)
			refused(err)
			_, err = l.TakeLimits(ctx, "k", 1)
			refused(err)
			_, err = l.TakeLimits(ctx, "k", 1, export)
			refused(err)
			refused(l.Wait(ctx, "k", 1))
			granted, _, err := l.TakeUpTo(ctx, "k", 3)
			refused(err)
			require.Zero(t, granted)
			require.Zero(t, l.Stats().InFlight)
			require.Zero(t, l.Stats().Allowed+l.Stats().Denied)

			release, _, err := l.Acquire(ctx, "k")
			require.NoError(t, err)
			defer release()
			d, err := l.TakeN(ctx, "k", 0)
			require.NoError(t, err)
			require.True(t, d.Allowed)
			require.EqualValues(t, map[bool]int64{true: 4, false: 19}[len(limits) == 2], d.Remaining)
			d, err = l.TakeLimits(ctx, "k", 0, InFlight(3, time.Hour))
			require.NoError(t, err)
			require.EqualValues(t, 2, d.Remaining, "another hold is the same counter")
			require.EqualValues(t, 1, l.Stats().InFlight)
		})
	}
	rates := limiter(t, hour) // a plan with an in-flight limit
	_, err := rates.TakeLimits(ctx, "k", 1, export)
	require.ErrorContains(t, err, "use Acquire")
	d, err := rates.Take(ctx, "k")
	require.NoError(t, err)
	require.True(t, d.Allowed)
}

// TestUnitsOfALimiterWithNothingButInFlight: there are none to give back or to charge.
func TestUnitsOfALimiterWithNothingButInFlight(t *testing.T) {
	const want = "limit 20/30s inflight name=export counts requests at the same time, and no units: add a limit that does"
	opts := quiet(export)
	opts.Key = StaticKey("k")
	l := httpLimiter(t, opts)
	require.ErrorContains(t, l.Refund(ctx, "k", 1), `ratelimit: limiter "`+l.Name()+`": Refund: `+want)
	served := 0
	l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served++
		for _, n := range []int64{3, -1} {
			require.ErrorContains(t, l.AddCost(r.Context(), n), "AddCost: "+want)
		}
	})).ServeHTTP(nopWriter{}, httpRequest("GET"))
	require.Equal(t, 1, served)
	require.ErrorContains(t, l.Block(ctx, "k", time.Minute), "its limits count nothing, so it cannot block")
	require.NoError(t, l.Reset(ctx, "k"))

	// With a rate they are about its units alone.
	opts.Limits = []Limit{hour, export}
	l = httpLimiterNamed(t, strings.ReplaceAll(t.Name(), "/", "-")+"both", opts)
	l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.NoError(t, l.AddCost(r.Context(), 3))
		require.EqualValues(t, 1, leftOf(t, l, "k"))
		require.NoError(t, l.AddCost(r.Context(), -1))
		require.NoError(t, l.Refund(ctx, "k", 1))
		require.EqualValues(t, 3, leftOf(t, l, "k"))
		require.NoError(t, l.Reset(ctx, "k"))
		require.EqualValues(t, 5, leftOf(t, l, "k"))
		d, err := l.TakeLimits(ctx, "k", 0, export)
		require.NoError(t, err)
		require.EqualValues(t, 19, d.Remaining, "the hold is as it was")
	})).ServeHTTP(nopWriter{}, httpRequest("GET"))
	require.Zero(t, l.Stats().InFlight)
}

// nopWriter is a ResponseWriter of a test that is not about the response.
type nopWriter struct{}

func (nopWriter) Header() http.Header         { return http.Header{} }
func (nopWriter) Write(b []byte) (int, error) { return len(b), nil }
func (nopWriter) WriteHeader(int)             {}
