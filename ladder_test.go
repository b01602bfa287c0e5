package ratelimit_test

import (
	"encoding/json"
	"math"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestLimitWithBlockRoundTrips(t *testing.T) {
	for _, tc := range []struct {
		limit Limit
		text  string
	}{
		{FixedWindow(5, time.Hour).Block(time.Minute), "5/1h fixed block=1m"},
		{FixedWindow(5, time.Hour).Block(time.Minute, time.Hour, 24*time.Hour), "5/1h fixed block=1m,1h,24h"},
		{SlidingWindow(5, time.Hour).Block(time.Millisecond, time.Millisecond, 50*365*24*time.Hour).Named("a b"), `5/1h sliding block=1ms,1ms,438000h name="a b"`},
		{TokenBucket(1, time.Second, 2).Named("x").Block(1, 2, 3, 4).Block(90 * time.Second), "1/1s bucket burst=2 block=1m30s name=x"},
	} {
		require.Equal(t, tc.text, tc.limit.String())
		parsed, err := ParseLimit(tc.text)
		require.NoError(t, err, tc.text)
		require.True(t, parsed == tc.limit, "%s came back as %v", tc.text, parsed)
		asJSON, err := json.Marshal(tc.limit)
		require.NoError(t, err)
		var back Limit
		require.NoError(t, json.Unmarshal(asJSON, &back))
		require.True(t, back == tc.limit, "%s came back as %v", asJSON, back)
	}
	require.NotEqual(t, hour, hour.Block(time.Minute))
	require.NotEqual(t, hour.Block(time.Minute, time.Minute), hour.Block(time.Minute))
}

func TestLadder(t *testing.T) {
	require.Nil(t, hour.Ladder())
	ladder := hour.Block(time.Minute, time.Hour).Ladder()
	require.Equal(t, []time.Duration{time.Minute, time.Hour}, ladder)
	ladder[0] = 7
	require.Equal(t, []time.Duration{time.Minute, time.Hour}, hour.Block(time.Minute, time.Hour).Ladder(), "the slice is the caller's")
}

func TestLimitStaysSmall(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) == 8 {
		require.LessOrEqual(t, unsafe.Sizeof(Limit{}), uintptr(64))
	}
}

// TestBadBlocksAreRefused checks that each way to give limits to a limiter refuses a bad
// block, and names the value.
func TestBadBlocksAreRefused(t *testing.T) {
	l := limiter(t, hour)
	for _, tc := range []struct {
		limit Limit
		want  string
	}{
		{hour.Block(), "its block has 0 durations: want 1 to 4"},
		{hour.Block(time.Minute, time.Minute, time.Minute, time.Minute, time.Minute), "(5/1h fixed block=1m,1m,1m,1m,…): its block has 5 durations: want 1 to 4"},
		{hour.Block(0), "its block has a duration of 0s: want 1ms to 50 years"},
		{hour.Block(-time.Second), "a duration of -1s: want 1ms to 50 years"},
		{hour.Block(60), "a duration of 60ns: want 1ms to 50 years; a number is of nanoseconds, so write 60*time.Second for 60 seconds"},
		{hour.Block(math.MaxInt64), "a duration of 2562047h47m16.854775807s: want 1ms to 50 years"},
		{hour.Block(math.MinInt64), "a duration of -2562047h47m16.854775808s: want 1ms to 50 years"},
		{hour.Block(time.Hour, 0), "a duration of 0s: want 1ms to 50 years"},
		{hour.Block(make([]time.Duration, 1000)...), "its block has 1000 durations: want 1 to 4"},
		{InFlight(5, time.Minute).Block(time.Hour), "its block is 1h, and how many requests run says nothing about the next one"},
		{Limit{}.Block(time.Hour), "it is the zero Limit"},
		{hour.Block(time.Hour, time.Minute), "its block has 1m0s after 1h0m0s: want no duration shorter than the one before"},
		{hour.Block(time.Millisecond - 1), "a duration of 999.999µs: want"},
		{hour.Block(time.Hour, 50*365*24*time.Hour+1), "a duration of 438000h0m0.000000001s: want"},
		{Unlimited.Block(time.Minute), "its block is 1m, and unlimited counts nothing, so it cannot block: remove Block"},
		{Deny.Block(time.Minute), "its block is 1m, and deny counts nothing"},
	} {
		_, err := new(Registry).New("login", quiet(tc.limit))
		require.ErrorContains(t, err, tc.want)
		require.ErrorContains(t, err, `ratelimit: limiter "login": Options.Limits: number 1`)
		require.ErrorContains(t, l.SetLimits(tc.limit), tc.want)
		_, err = l.TakeLimits(ctx, "k", 1, tc.limit)
		require.ErrorContains(t, err, tc.want)
		_, err = tc.limit.MarshalText()
		require.Error(t, err)
		_, err = ParseLimit(tc.limit.String())
		require.Error(t, err, tc.limit.String())
	}
	require.Equal(t, []Limit{hour}, l.Limits())
	for _, tc := range []struct{ text, want string }{
		{"5/1h fixed block=", "option block: it is empty; give 1 to 4 durations, such as block=1m,1h,24h"},
		{"5/1h fixed block=1m,,1h", `option block: "" in "1m,,1h": want durations such as 1m or 24h with commas, and no spaces, between them`},
		{"5/1h fixed block=1d", `option block: "1d" in "1d": want durations`},
		{"5/1h fixed block=1m, 1h", `option block: "" in "1m,": want durations`},
		{"5/1h fixed block=1m block=1h", "option block is there twice"},
		{"5/1h fixed block=1m,", `option block: "" in "1m,": want durations`},
		{"5/1h fixed block=NaN", `option block: "NaN" in "NaN": want durations`},
		{"5/1h fixed block=9999999h", `option block: "9999999h" in "9999999h": want durations`},
		{"5/1h fixed block=1h;24h", `option block: "1h;24h" in "1h;24h": want durations`},
		{"5/1h fixed block=60", `option block: "60" in "60": want durations`},
		{"5/1h fixed block=1M", `option block: "1M" in "1M": want durations`},
		{"5/1h fixed BLOCK=1m", `option "BLOCK": want block=… or name=…`},
		{"5/1h fixed block = 1m", `option "block = 1m": want block=… or name=…, without spaces around the =`},
		{"5/1h fixed block=1h,1m", "its block has 1m0s after 1h0m0s: want no duration shorter than the one before"},
		{"5/1h fixed block=1m,1h,2h,3h,4h", "its block has 5 durations: want 1 to 4"},
		{"unlimited block=1m", "option block: unlimited counts nothing, so it cannot block: remove it"},
		{"deny block=1m", "option block: deny counts nothing"},
	} {
		_, err := ParseLimit(tc.text)
		require.ErrorContains(t, err, tc.want, tc.text)
	}
}
