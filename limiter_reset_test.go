package ratelimit_test

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// remembered is how many algorithms and windows a limiter remembers for Reset.
const remembered = 1024

// window returns a limit of one unit. Each number gives another window.
func window(i int) Limit { return FixedWindow(1, time.Hour+time.Duration(i)*time.Second) }

// under sets a limiter's limit to each of some windows in turn, and returns how
// many of them have admitted a call for n units of the key.
func under(t *testing.T, l *Limiter, from, to int, n int64) (admitted int) {
	t.Helper()
	for i := from; i < to; i++ {
		require.NoError(t, l.SetLimits(window(i)))
		if decide(t, l, "key", n).Allowed {
			admitted++
		}
	}
	return admitted
}

// eachPlace runs a test on a limiter that counts in memory, and on one with a
// remote store.
func eachPlace(t *testing.T, opts Options, test func(t *testing.T, l *Limiter)) {
	opts.DenyRecheck = -1
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, processOf(t, memory(t, "near"), opts)) })
	})
	t.Run("remote", func(t *testing.T) {
		remotely(t, opts, func(t *testing.T, _ *remoteBackend, l *Limiter) { test(t, l) })
	})
}

// TestResetForgetsAllWindows uses a key under as many windows as a limiter
// remembers. After Reset, it has all its units again.
func TestResetForgetsAllWindows(t *testing.T) {
	eachPlace(t, Options{Limits: []Limit{window(0)}}, func(t *testing.T, l *Limiter) {
		require.Equal(t, remembered, under(t, l, 0, remembered, 1))
		require.Zero(t, under(t, l, 0, remembered, 1))
		for range 2 { // windows that are used again are not counted as new
			require.NoError(t, l.Reset(ctx, "key"))
			require.Equal(t, remembered, under(t, l, 0, remembered, 1))
		}
	})
}

// TestResetOfTooManyWindows uses more windows than that. Reset forgets the
// counts of the last windows, and returns an error that there may be more.
func TestResetOfTooManyWindows(t *testing.T) {
	eachPlace(t, Options{Limits: []Limit{window(0)}}, func(t *testing.T, l *Limiter) {
		const more = 30
		require.Equal(t, remembered+more, under(t, l, 0, remembered+more, 1))
		for range 2 {
			require.EqualError(t, l.Reset(ctx, "key"), `ratelimit: limiter "l": Reset: it has used limits of more than 1024 algorithms and windows: `+
				"the key was reset under the last 1024, and may be counted under others until their windows end: "+
				"use fewer in Options.LimitsFor and SetLimits")
		}
		const first = more - 1 // the window in force is reset beside the remembered ones
		require.Equal(t, remembered+1, under(t, l, first, remembered+more, 1))
		require.Zero(t, under(t, l, 0, first, 1))
	})
}

// TestResetForgetsPlans does the same with Options.LimitsFor. Reset always forgets
// the current limits and the plans that are in constant use, however many other
// plans are used in between.
func TestResetForgetsPlans(t *testing.T) {
	opts := Options{Limits: []Limit{window(0)}, Key: StaticKey("key"), LimitsFor: func(r *http.Request) []Limit {
		i, err := strconv.Atoi(r.Header.Get("Plan"))
		if err != nil {
			return nil
		}
		return []Limit{window(i), SlidingWindow(1, time.Hour+time.Duration(i)*time.Second)}
	}}
	eachPlace(t, opts, func(t *testing.T, l *Limiter) {
		handler := l.Middleware(httpServed)
		send := func(plan string) int {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Plan", plan)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			return w.Code
		}
		use := func(from, to, want int) {
			t.Helper()
			for i := from; i < to; i++ {
				require.Equal(t, want, send(strconv.Itoa(i)), i)
			}
		}
		require.Equal(t, 204, send(""))
		use(1, 500, 204)
		require.NoError(t, l.Reset(ctx, "key"))
		require.Equal(t, 204, send(""))
		use(1, 500, 204)
		use(500, 1000, 204)
		require.ErrorContains(t, l.Reset(ctx, "key"), "it has used limits of more than 1024 algorithms and windows")
		require.Equal(t, 204, send(""))
		use(1, 1000, 204) // all of these plans are kept ready, so Reset finds their limits
	})
}

// TestResetOnRedis checks that one call forgets all windows.
func TestResetOnRedis(t *testing.T) {
	l := httpLimiterNamed(t, "l", Options{Limits: []Limit{window(0)}, Redis: newMini(t).client(t), OnFailure: FailClosed, Timeout: 5 * time.Second})
	require.Equal(t, remembered, under(t, l, 0, remembered, 1))
	require.Zero(t, under(t, l, 0, remembered, 1))
	require.NoError(t, l.Reset(ctx, "key"))
	require.Equal(t, remembered, under(t, l, 0, remembered, 1))
}
