package ratelimit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestEventsHaveOneForm writes events as JSON and to logs.
func TestEventsHaveOneForm(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)
	limit := named(5, "login")
	for _, test := range []struct {
		e         Event
		json, log string
	}{
		{
			Event{
				Kind: EventDenied, Time: at, Limiter: "login", Key: "203.0.113.7", Policy: "login", Limit: limit, Units: 2,
				Decision: Decision{Limit: limit, Remaining: 1, ResetAfter: time.Hour, RetryAfter: 90 * time.Second, Source: SourceCache, Policy: "login", MoreAfter: time.Minute},
			},
			`{"kind":"denied","time":"2026-01-02T03:04:05.6Z","limiter":"login","key":"203.0.113.7","policy":"login","limit":"5/1h fixed name=login","decision":` +
				`{"allowed":false,"limit":"5/1h fixed name=login","remaining":1,"reset_after":3600,"retry_after":90,"source":"cache","policy":"login","more_after":60},"units":2}`,
			`e.kind=denied e.limiter=login e.key=203.0.113.7 e.policy=login e.limit="5/1h fixed name=login" e.retry_after=1m30s e.units=2`,
		},
		{
			Event{Kind: EventShadowDenied, Time: at, Limiter: "l", Key: "k", Decision: Decision{Limit: Deny, RetryAfter: Never, Policy: "l"}, Limit: Deny},
			`{"kind":"shadow-denied","time":"2026-01-02T03:04:05.6Z","limiter":"l","key":"k","limit":"deny","decision":` +
				`{"allowed":false,"limit":"deny","remaining":0,"reset_after":0,"retry_after":null,"source":"store","policy":"l"}}`,
			`e.kind=shadow-denied e.limiter=l e.key=k e.limit=deny`,
		},
		{
			Event{Kind: EventReset, Time: at, Limiter: "l", Key: "k", Actor: "anna", Reason: "ticket 7"},
			`{"kind":"reset","time":"2026-01-02T03:04:05.6Z","limiter":"l","key":"k","actor":"anna","reason":"ticket 7"}`,
			`e.kind=reset e.limiter=l e.key=k e.actor=anna e.reason="ticket 7"`,
		},
		{
			Event{Kind: EventRefunded, Time: at, Limiter: "l", Key: "k", Actor: "anna", Units: 3},
			`{"kind":"refunded","time":"2026-01-02T03:04:05.6Z","limiter":"l","key":"k","actor":"anna","units":3}`,
			`e.kind=refunded e.limiter=l e.key=k e.actor=anna e.units=3`,
		},
		{
			Event{Kind: EventLimitsChanged, Time: at, Limiter: "l", Policy: "login", Limit: limit},
			`{"kind":"limits-changed","time":"2026-01-02T03:04:05.6Z","limiter":"l","policy":"login","limit":"5/1h fixed name=login"}`,
			`e.kind=limits-changed e.limiter=l e.policy=login e.limit="5/1h fixed name=login"`,
		},
		{Event{Kind: EventReplaced, Time: at, Limiter: "l"}, `{"kind":"replaced","time":"2026-01-02T03:04:05.6Z","limiter":"l"}`, `e.kind=replaced e.limiter=l`},
		{Event{Kind: EventClosed, Time: at, Limiter: "l"}, `{"kind":"closed","time":"2026-01-02T03:04:05.6Z","limiter":"l"}`, `e.kind=closed e.limiter=l`},
		{
			Event{Kind: EventStoreDown, Time: at, Limiter: "l", Code: CodeStoreDown, Err: errors.New(`dial "x"`)},
			`{"kind":"store-down","time":"2026-01-02T03:04:05.6Z","limiter":"l","code":"store-down","error":"dial \"x\""}`,
			`e.kind=store-down e.limiter=l e.code=store-down e.error="dial \"x\""`,
		},
		{
			Event{Kind: EventStoreBack, Time: at, Limiter: "l", Code: CodeStoreBack, Duration: 1500 * time.Millisecond},
			`{"kind":"store-back","time":"2026-01-02T03:04:05.6Z","limiter":"l","duration":1.5,"code":"store-back"}`,
			`e.kind=store-back e.limiter=l e.code=store-back e.duration=1.5s`,
		},
		{
			Event{Kind: EventWarning, Time: at, Limiter: "l", Code: CodeNoKey},
			`{"kind":"warning","time":"2026-01-02T03:04:05.6Z","limiter":"l","code":"no-key"}`,
			`e.kind=warning e.limiter=l e.code=no-key`,
		},
		{Event{}, `{"kind":"EventKind(0)","time":"0001-01-01T00:00:00Z","limiter":""}`, `e.kind=EventKind(0) e.limiter=""`},
	} {
		got, err := json.Marshal(test.e)
		require.NoError(t, err)
		assert.Equal(t, test.json, string(got))
		got, err = json.Marshal(&test.e)
		require.NoError(t, err)
		assert.Equal(t, test.json, string(got), "by pointer")
		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "e", test.e)
		_, line, _ := strings.Cut(strings.TrimSpace(out.String()), "msg=x ")
		assert.Equal(t, test.log, line)
	}
}

// TestEventKindsHaveTexts writes each kind and reads it back.
func TestEventKindsHaveTexts(t *testing.T) {
	seen := map[string]bool{}
	for kind := EventDenied; kind <= EventWarning; kind++ {
		text, err := kind.MarshalText()
		require.NoError(t, err)
		require.Equal(t, kind.String(), string(text))
		require.Regexp(t, `^[a-z]+(-[a-z]+)*$`, kind.String())
		require.False(t, seen[kind.String()])
		seen[kind.String()] = true
		var got EventKind
		require.NoError(t, got.UnmarshalText(text))
		require.Equal(t, kind, got)
		asKey, err := json.Marshal(map[EventKind]int{kind: 1})
		require.NoError(t, err)
		var counted map[EventKind]int
		require.NoError(t, json.Unmarshal(asKey, &counted))
		require.Equal(t, map[EventKind]int{kind: 1}, counted)
	}
	require.Equal(t, "EventKind(0)", EventKind(0).String())
	require.Equal(t, "EventKind(12)", EventKind(12).String())
	require.Equal(t, "EventKind(255)", EventKind(255).String())
	kind := EventReset
	for _, text := range []string{"", "Denied", "denied ", "EventKind(1)", "EventKind(12)", "\xff", "store_down"} {
		require.EqualError(t, kind.UnmarshalText([]byte(text)), fmt.Sprintf("ratelimit: event kind %q: want one of "+
			"denied, shadow-denied, blocked, reset, refunded, limits-changed, replaced, closed, store-down, store-back, warning", text))
		require.Equal(t, EventReset, kind, "an error changes nothing")
	}
}

// FuzzEventKindText reads any text: what is read can be written again.
func FuzzEventKindText(f *testing.F) {
	for kind := EventKind(0); kind < 13; kind++ {
		f.Add([]byte(kind.String()))
	}
	f.Add([]byte("denied\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var kind EventKind
		if err := kind.UnmarshalText(text); err != nil {
			require.Zero(t, kind)
			require.True(t, utf8.ValidString(err.Error()))
			require.NotContains(t, err.Error(), "\n")
			return
		}
		again, err := kind.MarshalText()
		require.NoError(t, err)
		require.Equal(t, string(text), string(again))
	})
}

// FuzzEventJSON writes events of keys, actors and reasons with any bytes. The JSON is
// valid, one line, and has the text if it is valid UTF-8.
func FuzzEventJSON(f *testing.F) {
	f.Add("key", "anna", "why", int64(1), int64(time.Second))
	f.Add("\x00\xff\"\\\n\u2028</script>", "\x1b[31m", "'", int64(-1), int64(Never))
	f.Add(strings.Repeat("\xed\xa0\x80", 50), "", "", int64(0), int64(0))
	f.Fuzz(func(t *testing.T, key, actor, reason string, units, wait int64) {
		e := Event{
			Kind: EventDenied, Time: time.Now(), Limiter: "l", Key: key, Policy: key, Actor: actor, Reason: reason, Units: units,
			Limit: hour, Decision: Decision{Limit: hour, RetryAfter: time.Duration(wait), Policy: key}, Duration: time.Duration(wait), Err: errors.New(reason),
		}
		text, err := json.Marshal(e)
		require.NoError(t, err)
		require.True(t, json.Valid(text))
		for _, b := range text {
			require.False(t, b < ' ' || b == 0x7f && !strings.Contains(key+actor+reason, "\x7f"), "control characters are escaped")
		}
		require.NotContains(t, string(text), "<", "so that it may be written into a page")
		var got struct{ Key, Actor, Reason string }
		require.NoError(t, json.Unmarshal(text, &got))
		for want, got := range map[string]string{key: got.Key, actor: got.Actor, reason: got.Reason} {
			if utf8.ValidString(want) {
				require.Equal(t, want, got)
			}
		}
		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "event", e)
		require.Equal(t, 1, strings.Count(out.String(), "\n"), "a log line is one line")
		out.Reset()
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "event", e)
		require.True(t, json.Valid(out.Bytes()))
	})
}
