package ratelimit_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestLimitTextRoundTrips(t *testing.T) {
	for _, tc := range []struct {
		limit Limit
		text  string
	}{
		{FixedWindow(5, time.Hour), "5/1h fixed"},
		{SlidingWindow(100, time.Minute), "100/1m sliding"},
		{TokenBucket(10, time.Second, 20), "10/1s bucket burst=20"},
		{FixedWindow(1, 24*time.Hour), "1/24h fixed"},
		{FixedWindow(1, 90*time.Minute), "1/1h30m fixed"},
		{FixedWindow(1, 10*time.Minute), "1/10m fixed"},
		{FixedWindow(1, time.Hour+time.Second), "1/1h0m1s fixed"},
		{FixedWindow(1, 1500*time.Millisecond), "1/1.5s fixed"},
		{FixedWindow(1, time.Millisecond), "1/1ms fixed"},
		{FixedWindow(999_999_999_999_999, 50*365*24*time.Hour), "999999999999999/438000h fixed"},
		{FixedWindow(5, time.Hour).Named("login"), "5/1h fixed name=login"},
		{TokenBucket(1, time.Second, 2).Named("my policy"), `1/1s bucket burst=2 name="my policy"`},
		{FixedWindow(5, time.Hour).Named(`a"b\c`), `5/1h fixed name="a\"b\\c"`},
		{FixedWindow(5, time.Hour).Named("a=b"), "5/1h fixed name=a=b"},
		{FixedWindow(5, time.Hour).Named("größe"), "5/1h fixed name=größe"},
		{Unlimited, "unlimited"},
		{Deny, "deny"},
		{Unlimited.Named("gold"), "unlimited name=gold"},
		{Deny.Named("over due"), `deny name="over due"`},
	} {
		require.Equal(t, tc.text, tc.limit.String())
		parsed, err := ParseLimit(tc.text)
		require.NoError(t, err, tc.text)
		require.True(t, parsed == tc.limit, "%s came back as %v", tc.text, parsed)
	}
}

func TestParseLimitIsLenientAboutSpaceAndOrder(t *testing.T) {
	got, err := ParseLimit(" \t10/1s  bucket\tname=x   burst=20 ")
	require.NoError(t, err)
	require.Equal(t, TokenBucket(10, time.Second, 20).Named("x"), got)
}

func TestParseLimitErrorsNameTheMistake(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"", `want a form such as "5/1h fixed"`},
		{"5", `want a form such as`},
		{"5/1h", `want a form such as`},
		{"x/1h fixed", `"x" is not a whole number of units`},
		{"1.5/1h fixed", `"1.5" is not a whole number`},
		{"99999999999999999999/1h fixed", `is not a whole number`},
		{"unlimited burst=3", "option burst: only a bucket has one, not unlimited"},
		{"deny fixed", `option "fixed": want name=…`},
		{"deny name=", "option name: it is empty"},
		{"unlimited 5", `option "5": want name=…`},
		{"5 unlimited", `or "unlimited" or "deny"`},
		{"10/1s bucket depth=20", `option "depth": want burst=…, block=… or name=…`},
		{"5/h fixed", `window "h": want a duration such as 1s, 15m or 24h`},
		{"5/1d fixed", `window "1d": want a duration`},
		{"5/1h fixd", `algorithm "fixd": want fixed, sliding, bucket, rolling, calendar or inflight`},
		{"5/1h Fixed", `algorithm "Fixed"`},
		{"0/1h fixed", "it allows 0 units: want 1 to 999999999999999"},
		{"-5/1h fixed", "it allows -5 units"},
		{"1000000000000000/1h fixed", "it allows 1000000000000000 units"},
		{"5/0s fixed", "its window is 0s: want 1ms to"},
		{"5/-1h fixed", "its window is -1h0m0s"},
		{"5/999us fixed", "its window is 999µs"},
		{"5/438001h fixed", "its window is 438001h0m0s"},
		{"5/1h bucket", "a bucket needs burst=…"},
		{"5/1h bucket burst=0", "its burst is 0 units"},
		{"5/1h bucket burst=", `burst: "" is not a whole number`},
		{"5/1h bucket burst=2 burst=3", "option burst is there twice"},
		{"5/1h fixed burst=2", "only a bucket has one"},
		{"5/1h fixed color=red", `option "color": want block=… or name=…`},
		{"5/1h fixed red", `option "red"`},
		{"5/1h fixed name=", "option name: it is empty"},
		{`5/1h fixed name=""`, "option name: it is empty"},
		{`5/1h fixed name="a`, "the closing quote is missing"},
		{"5/1h fixed name=\"a\\x00\"", "has a control or invisible character"},
		{"5/1h fixed name=\xff", "is not valid UTF-8"},
		{"5/1h fixed name=" + strings.Repeat("x", 129), "its name is 129 bytes long"},
		{"1/438000h bucket burst=2", "takes more than 50 years to refill"},
	} {
		got, err := ParseLimit(tc.text)
		require.ErrorContains(t, err, tc.want, tc.text)
		require.ErrorContains(t, err, "ratelimit: limit ")
		require.Zero(t, got)
	}
}

func TestLimitRoundTripsInJSON(t *testing.T) {
	type config struct {
		Login Limit `json:"login"`
	}
	var c config
	require.NoError(t, json.Unmarshal([]byte(`{"login":"5/1h fixed"}`), &c))
	require.Equal(t, FixedWindow(5, time.Hour), c.Login)
	text, err := json.Marshal(c)
	require.NoError(t, err)
	require.JSONEq(t, `{"login":"5/1h fixed"}`, string(text))

	require.ErrorContains(t, json.Unmarshal([]byte(`{"login":"5/1h"}`), &c), "want a form such as")
	require.Equal(t, FixedWindow(5, time.Hour), c.Login, "a text that is refused must not change the limit")
	_, err = json.Marshal(config{})
	require.ErrorContains(t, err, "it is the zero Limit")
}

func TestLimitAccessorsReturnTheArguments(t *testing.T) {
	l := TokenBucket(10, time.Second, 20).Named("x")
	require.Equal(t, []any{int64(10), time.Second, int64(20), "bucket", "x"}, []any{l.N(), l.Window(), l.Burst(), l.Algorithm(), l.Name()})
	l = FixedWindow(10, time.Second)
	require.Equal(t, []any{int64(10), time.Second, int64(10), "fixed", ""}, []any{l.N(), l.Window(), l.Burst(), l.Algorithm(), l.Name()})
	require.Equal(t, "sliding", SlidingWindow(1, 1).Algorithm())
	require.Equal(t, "", Limit{}.Algorithm())
	require.Equal(t, "no limit", Limit{}.String())
	require.Equal(t, FixedWindow(1, time.Hour), FixedWindow(1, time.Hour).Named("x").Named(""))
}

func FuzzParseLimit(f *testing.F) {
	for _, s := range []string{"5/1h fixed", "100/1m sliding name=x", `10/1s bucket burst=20 name="a b"`, "9223372036854775807/9223372036854775807ns bucket burst=9223372036854775807", "5/1h fixed name=\"\\\"", "-0/1h fixed", "5/1e9h fixed"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLimit(s)
		if err != nil {
			if l != (Limit{}) {
				t.Fatalf("ParseLimit(%q) returned %v and an error", s, l)
			}
			return
		}
		parsed, err := ParseLimit(l.String())
		if err != nil || parsed != l {
			t.Fatalf("ParseLimit(%q) = %v, which came back as %v, %v", s, l, parsed, err)
		}
		text, err := l.MarshalText()
		if err != nil || string(text) != l.String() {
			t.Fatalf("MarshalText: %q, %v", text, err)
		}
	})
}

// FuzzLimit makes limits of any numbers. Each one is refused, or it round-trips
// as text.
func FuzzLimit(f *testing.F) {
	f.Add(int64(5), int64(time.Hour), int64(0), byte(0), "")
	f.Add(int64(math.MaxInt64), int64(math.MaxInt64), int64(math.MaxInt64), byte(2), "x\x00")
	f.Fuzz(func(t *testing.T, n, window, burst int64, kind byte, name string) {
		l := [...]Limit{FixedWindow(n, time.Duration(window)), SlidingWindow(n, time.Duration(window)), TokenBucket(n, time.Duration(window), burst)}[kind%3].Named(name)
		text, err := l.MarshalText()
		if err != nil {
			return
		}
		if parsed, err := ParseLimit(string(text)); err != nil || parsed != l {
			t.Fatalf("%q came back as %v, %v", text, parsed, err)
		}
	})
}
