package ratelimit_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestDecisionsPrintWell prints decisions like a program that logs them.
func TestDecisionsPrintWell(t *testing.T) {
	login := FixedWindow(5, time.Hour).Named("login")
	for _, test := range []struct {
		d               Decision
		text, log, json string
	}{
		{
			Decision{Allowed: true, Limit: login, Remaining: 4, ResetAfter: time.Hour}, "allowed, 4 left of 5/1h fixed name=login",
			`d.allowed=true d.limit="5/1h fixed name=login" d.remaining=4 d.source=store`,
			`{"allowed":true,"limit":"5/1h fixed name=login","remaining":4,"reset_after":3600,"retry_after":0,"source":"store"}`,
		},
		{
			Decision{Limit: login, ResetAfter: 90 * time.Second, RetryAfter: 1500 * time.Millisecond, Source: SourceCache}, "denied by 5/1h fixed name=login for 1.5s",
			`d.allowed=false d.limit="5/1h fixed name=login" d.remaining=0 d.retry_after=1.5s d.source=cache`,
			`{"allowed":false,"limit":"5/1h fixed name=login","remaining":0,"reset_after":90,"retry_after":1.5,"source":"cache"}`,
		},
		{
			Decision{Limit: login, Remaining: 5, RetryAfter: Never}, "denied by 5/1h fixed name=login for ever",
			`d.allowed=false d.limit="5/1h fixed name=login" d.remaining=5 d.source=store`,
			`{"allowed":false,"limit":"5/1h fixed name=login","remaining":5,"reset_after":0,"retry_after":null,"source":"store"}`,
		},
		{
			Decision{Allowed: true, Limit: Unlimited, Remaining: 999_999_999_999_999}, "allowed by unlimited",
			`d.allowed=true d.limit=unlimited d.remaining=999999999999999 d.source=store`,
			`{"allowed":true,"limit":"unlimited","remaining":999999999999999,"reset_after":0,"retry_after":0,"source":"store"}`,
		},
		{Decision{Limit: Deny, RetryAfter: Never}, "denied by deny for ever", `d.allowed=false d.limit=deny d.remaining=0 d.source=store`, `{"allowed":false,"limit":"deny","remaining":0,"reset_after":0,"retry_after":null,"source":"store"}`},
		{Decision{}, "no decision", `d.allowed=false d.limit="no limit" d.remaining=0 d.source=store`, `{"allowed":false,"remaining":0,"reset_after":0,"retry_after":0,"source":"store"}`},
	} {
		assert.Equal(t, test.text, test.d.String())
		assert.Equal(t, test.text, fmt.Sprint(test.d))
		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "d", test.d)
		assert.Equal(t, test.log, strings.TrimSpace(out.String()[strings.Index(out.String(), "msg=x")+6:]))
		got, err := json.Marshal(test.d)
		require.NoError(t, err)
		assert.Equal(t, test.json, string(got))
		out.Reset()
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "d", test.d)
		assert.True(t, json.Valid(out.Bytes()), out.String())
		assert.NotContains(t, out.String()+string(got)+test.d.String(), "9223372036854", "Never is no number")
	}
}

// TestStandingsAreJSONForAPage checks what a program shows to its callers.
func TestStandingsAreJSONForAPage(t *testing.T) {
	got, err := json.Marshal([]Standing{
		{"pro", FixedWindow(5, time.Hour), Result{Remaining: 4, MoreAfter: time.Hour, ResetAfter: time.Hour}},
		{"suspended", Deny, Result{RetryAfter: Never}},
	})
	require.NoError(t, err)
	assert.JSONEq(t, `[{"name":"pro","limit":"5/1h fixed","remaining":4,"retry_after":0,"more_after":3600,"reset_after":3600},
		{"name":"suspended","limit":"deny","remaining":0,"retry_after":null,"more_after":0,"reset_after":0}]`, string(got))
}

func TestFailurePolicyTextRoundTrips(t *testing.T) {
	for _, policy := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
		text, err := policy.MarshalText()
		require.NoError(t, err)
		var got FailurePolicy
		require.NoError(t, got.UnmarshalText(text))
		assert.Equal(t, policy, got)
	}
	var p FailurePolicy
	assert.EqualError(t, p.UnmarshalText([]byte("failopen")), `ratelimit: failure policy "failopen": want FallbackLocal, FailOpen or FailClosed`)
}

func TestWordsPrintWell(t *testing.T) {
	for _, test := range []struct {
		value fmt.Stringer
		want  string
	}{
		{SourceStore, "store"}, {SourceCache, "cache"}, {SourceLease, "lease"}, {SourceFallback, "fallback"}, {SourceFailOpen, "fail-open"}, {Source(99), "Source(99)"},
		{FallbackLocal, "FallbackLocal"}, {FailOpen, "FailOpen"}, {FailClosed, "FailClosed"}, {FailurePolicy(99), "FailurePolicy(99)"},
	} {
		assert.Equal(t, test.want, test.value.String())
		got, err := json.Marshal(map[string]any{"x": test.value})
		require.NoError(t, err)
		assert.Equal(t, `{"x":"`+test.want+`"}`, string(got))
		var out bytes.Buffer
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "value", test.value)
		assert.Contains(t, out.String(), `"value":"`+test.want+`"`)
	}
}

// TestStandingsAreSentences prints what an operator reads.
func TestStandingsAreSentences(t *testing.T) {
	for want, s := range map[string]Standing{
		"login: 3 left of 5/1h fixed":                   {"login", hour, Result{Remaining: 3, MoreAfter: time.Minute}},
		"login: 0 left of 5/1h fixed, more after 59m2s": {"login", hour, Result{MoreAfter: 59*time.Minute + 2*time.Second}},
		"gold: unlimited":                               {"gold", Unlimited, Result{Remaining: 999_999_999_999_999}},
		"shut: denied by deny for ever":                 {"shut", Deny, Result{RetryAfter: Never}},
	} {
		require.Equal(t, want, fmt.Sprint(s))
	}
}
