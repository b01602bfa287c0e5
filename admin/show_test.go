package admin

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
)

func TestTimes(t *testing.T) {
	const day = 24 * time.Hour
	for _, test := range []struct {
		d          time.Duration
		ago, until string
	}{
		{0, "0 s", "0 s"},
		{1500 * time.Microsecond, "1 ms", "2 ms"},
		{999*time.Millisecond + 1, "999 ms", "1 s"},
		{1001 * time.Millisecond, "1 s", "2 s"},
		{119 * time.Second, "119 s", "119 s"},
		{119*time.Second + 1, "119 s", "2 m 00 s"},
		{41*time.Minute + 59*time.Second, "41 m", "41 m 59 s"},
		{time.Hour - 1, "59 m", "1 h"},
		{3*time.Hour + 12*time.Minute + 1, "3 h 12 m", "3 h 13 m"},
		{day - 1, "23 h 59 m", "1 d"},
		{2*day + 4*time.Hour, "2 d 4 h", "2 d 4 h"},
	} {
		require.Equal(t, test.ago, ago(test.d), "%v", test.d)
		require.Equal(t, test.until, until(test.d), "%v", test.d)
	}
}

func TestNumbers(t *testing.T) {
	require.Equal(t, "1\u202f234\u202f567", count(1234567))
	require.Equal(t, "999", count(999))
	for f, want := range map[float64]string{0: "0", 0.016: "0.02", 0.1: "0.1", 9.96: "10.0", 99.94: "99.9", 100: "100", 1234.6: "1\u202f235"} {
		require.Equal(t, want, rate(f), "%v", f)
	}
	for f, want := range map[float64]int{-1: 0, 0: 0, 1e-9: 1, 0.5: 50, 0.9999: 99, 1: 100, 2: 100} {
		require.Equal(t, want, percent(f), "%v", f)
	}
	var times ratelimit.CallTimes
	require.Zero(t, quantile(&times, 0.5))
	times[3], times[8] = 98, 2
	require.Equal(t, times.Bound(3), quantile(&times, 0.5))
	require.Equal(t, times.Bound(8), quantile(&times, 0.99))
	times = ratelimit.CallTimes{}
	times[len(times)-1] = 1
	require.Equal(t, 4.0, quantile(&times, 0.5), "the largest bound there is")
	for seconds, want := range map[float64]string{0: "–", 250e-6: "250 µs", 1.25e-3: "1.2 ms", 0.031: "31 ms", 4: "4.0 s"} {
		require.Equal(t, want, latency(seconds, ""))
	}
}

// A count that begins again, because a limiter was closed and made again, is no traffic.
func TestTrafficOfANewLimiter(t *testing.T) {
	now := time.Now()
	got := trafficOf([]sample{{at: now, requests: 500, denied: 7}, {at: now.Add(every), requests: 10, denied: 1}}, "FallbackLocal")
	require.Zero(t, got.Requests)
	require.Zero(t, got.Denials)
	require.Zero(t, trafficOf(nil, "").Seconds)
}

// Everything that a limiter can have to report is an alert.
func TestAlertTexts(t *testing.T) {
	before := sample{at: time.Now()}
	after := sample{at: before.at.Add(every), by: [sourceCount]uint64{1, 1, 1, 7, 9}, evicted: 3, breakerOpen: true, prefixClaimed: true, snapshotsFailed: 2}
	var codes []string
	for _, a := range trafficOf([]sample{before, after}, "FailClosed").Alerts {
		codes = append(codes, a.Code)
		require.NotContains(t, a.Text, "%!")
	}
	require.Equal(t, []string{"breaker-open", "fallback", "fail-open", "prefix-claimed", "evicted", "snapshot-failed"}, codes)
}

// FuzzShownKey shows keys of any bytes. What is shown has nothing that cannot be seen, and can be
// read back if it is not cut. Sealed keys are found again.
func FuzzShownKey(f *testing.F) {
	for _, key := range []string{"", "a", " a", `"a"`, `\`, "\x00", "\xff", "\u202e", "e\u0301\u0301\u0301", "\u3164", "\ufffd"} {
		f.Add("login", key)
	}
	f.Fuzz(func(t *testing.T, limiter, key string) {
		k := showKey(key, len(key))
		for _, c := range k.Text {
			require.True(t, strconv.IsPrint(c), "%q has %q", k.Text, c)
		}
		require.LessOrEqual(t, len(k.Text), 10*maxShown+2)
		if !k.Cut && k.Text != key {
			back, err := strconv.Unquote(k.Text)
			require.NoError(t, err)
			require.Equal(t, key, back)
		}
		gotLimiter, gotKey, ok := unsealKey(sealKey("login", key))
		require.True(t, ok)
		require.Equal(t, [2]string{"login", key}, [2]string{gotLimiter, gotKey})
		_, _, ok = unsealKey(seal(forNotice, key))
		require.False(t, ok, "it is for something else")
		_, _, ok = unsealKey(limiter)
		require.False(t, ok)
	})
}

// FuzzSketch counts random denials: no count is too low, and none is too high by more than its
// excess.
func FuzzSketch(f *testing.F) {
	f.Add([]byte("aaaabbbccd"))
	f.Fuzz(func(t *testing.T, keys []byte) {
		track := new(watch).track("login")
		exact := make(map[string]uint64)
		for _, b := range keys {
			for _, key := range []string{strconv.Itoa(int(b)), strconv.Itoa(int(b) % 7)} {
				exact[key]++
				track.denied(&ratelimit.Event{Key: key, Time: time.Unix(0, 0)})
			}
		}
		sum := uint64(0)
		for _, d := range track.top() {
			require.GreaterOrEqual(t, d.count, exact[d.key])
			require.LessOrEqual(t, d.count-d.excess, exact[d.key])
			sum += d.count
		}
		require.Equal(t, uint64(2*len(keys)), sum)
		require.LessOrEqual(t, len(track.top()), sketchSize)
	})
}

// A text that is no text is cut, and not lost.
func TestCutOfBytes(t *testing.T) {
	for s, want := range map[string]string{
		strings.Repeat("\x80", 9): strings.Repeat("\x80", 5), "user=\x80\x80\x80\x80\x80": "user=", "aaaaä": "aaaa", "aaa\u20ac": "aaa", "aaa": "aaa", "ä\x80\x80\x80\x80\x80": "ä\x80\x80\x80",
	} {
		require.Equal(t, want, cut(s, 5), "%q", s)
	}
}
