package ratelimit_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestHeaderStylesWriteTheirFields checks the first, the fifth and the sixth
// request of six, under two limits. In a bubble, time begins at 946684800.
func TestHeaderStylesWriteTheirFields(t *testing.T) {
	limits := []Limit{FixedWindow(5, time.Hour).Named("h"), TokenBucket(10, 90*time.Second, 20).Named("b")}
	const (
		policy10 = `
			Ratelimit-Policy: "h";q=5;w=3600, "b";q=10;w=90`
		older = `
			Ratelimit-Policy: 5;w=3600, 10;w=90`
		six1 = `
			Ratelimit-Limit: 5` + older + `
			Ratelimit-Remaining: 4
			Ratelimit-Reset: 3600`
		six6 = `
			Ratelimit-Limit: 5` + older + `
			Ratelimit-Remaining: 0
			Ratelimit-Reset: 3600`
		legacy1 = `
			X-Ratelimit-Limit: 5
			X-Ratelimit-Remaining: 4
			X-Ratelimit-Reset: 946688400`
		legacy6 = `
			X-Ratelimit-Limit: 5
			X-Ratelimit-Remaining: 0
			X-Ratelimit-Reset: 946688400`
		retry = `
			Retry-After: 3600`
		ten1 = `
			Ratelimit: "h";r=4;t=3600, "b";r=19;t=9`
		ten6 = `
			Ratelimit: "h";r=0;t=3600, "b";r=15;t=9`
		seven1 = `
			Ratelimit: limit=5, remaining=4, reset=3600`
		seven6 = `
			Ratelimit: limit=5, remaining=0, reset=3600`
		both1 = `
			Ratelimit-Limit: 5` + policy10 + `
			Ratelimit-Remaining: 4
			Ratelimit-Reset: 3600`
		both6 = `
			Ratelimit-Limit: 5` + policy10 + `
			Ratelimit-Remaining: 0
			Ratelimit-Reset: 3600`
	)
	for _, test := range []struct {
		styles             Headers
		name, first, sixth string
	}{
		{0, "default", ten1 + policy10, ten6 + policy10 + retry},
		{HeadersDraft10, "10", ten1 + policy10, ten6 + policy10 + retry},
		{HeadersDraft7, "7", seven1 + older, seven6 + older + retry},
		{HeadersDraft6, "6", six1, six6 + retry},
		{HeadersLegacy, "legacy", legacy1, retry + legacy6},
		{HeadersNone, "none", "", retry},
		{HeadersDraft10 | HeadersDraft6, "10 and 6", ten1 + both1, ten6 + both6 + retry},
		{HeadersDraft10 | HeadersLegacy, "10 and legacy", ten1 + policy10 + legacy1, ten6 + policy10 + retry + legacy6},
		{HeadersDraft10 | HeadersDraft6 | HeadersLegacy, "10, 6 and legacy", ten1 + both1 + legacy1, ten6 + both6 + retry + legacy6},
		{HeadersDraft7 | HeadersDraft6, "7 and 6", seven1 + six1, seven6 + six6 + retry},
		{HeadersDraft7 | HeadersLegacy, "7 and legacy", seven1 + older + legacy1, seven6 + older + retry + legacy6},
		{HeadersDraft6 | HeadersLegacy, "6 and legacy", six1 + legacy1, six6 + retry + legacy6},
		{HeadersDraft7 | HeadersDraft6 | HeadersLegacy, "7, 6 and legacy", seven1 + six1 + legacy1, seven6 + six6 + retry + legacy6},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := httpLimiter(t, Options{Limits: limits, Headers: test.styles}).Middleware(httpServed)
				r := httpRequest("GET")
				assert.Equal(t, unindent(test.first), httpFields(h, r))
				for range 4 {
					httpFields(h, r)
				}
				assert.Equal(t, unindent(test.sixth), httpFields(h, r))
			})
		})
	}
}

// TestHeaderSecondsAreRoundedUp sends requests within a second.
func TestHeaderSecondsAreRoundedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, 2500*time.Millisecond).Named("x")}, Headers: HeadersDraft10 | HeadersDraft6 | HeadersLegacy})
		h, r := l.Middleware(httpServed), httpRequest("GET")
		time.Sleep(700 * time.Millisecond) // the reset is at .2 of a second and is rounded up
		assert.Equal(t, unindent(`
			Ratelimit: "x";r=0;t=3
			Ratelimit-Limit: 1
			Ratelimit-Policy: "x";q=1;w=3
			Ratelimit-Remaining: 0
			Ratelimit-Reset: 3
			X-Ratelimit-Limit: 1
			X-Ratelimit-Remaining: 0
			X-Ratelimit-Reset: 946684804`), httpFields(h, r))
		time.Sleep(2499 * time.Millisecond)
		assert.Equal(t, unindent(`
			Ratelimit: "x";r=0;t=1
			Ratelimit-Limit: 1
			Ratelimit-Policy: "x";q=1;w=3
			Ratelimit-Remaining: 0
			Ratelimit-Reset: 1
			Retry-After: 1
			X-Ratelimit-Limit: 1
			X-Ratelimit-Remaining: 0
			X-Ratelimit-Reset: 946684804`), httpFields(h, r))
	})
}

func TestInvalidHeaderOptionsAreRefused(t *testing.T) {
	for _, test := range []struct {
		styles Headers
		secret []byte
		want   string
	}{
		{HeadersNone | HeadersDraft10, nil, "HeadersNone and other styles: leave one of them out"},
		{HeadersNone | HeadersLegacy, nil, "HeadersNone and other styles: leave one of them out"},
		{HeadersDraft10 | HeadersDraft7, nil, "HeadersDraft10 and HeadersDraft7, which write the same two fields: choose one of them"},
		{HeadersDraft10 | HeadersDraft7 | HeadersLegacy, nil, "HeadersDraft10 and HeadersDraft7"},
		{HeadersNone << 1, nil, "Options.Headers is 0x20: want HeadersDraft10"},
		{255, nil, "Options.Headers is 0xff: want HeadersDraft10"},
		{0, make([]byte, 15), "Options.PartitionSecret is 15 bytes long: want at least 16 random ones"},
	} {
		var reg Registry
		_, err := reg.New(t.Name(), Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Headers: test.styles, PartitionSecret: test.secret})
		require.ErrorContains(t, err, test.want)
		require.ErrorContains(t, err, `ratelimit: limiter "TestInvalidHeaderOptionsAreRefused": `)
	}
}

func TestPartitionNeedsASecret(t *testing.T) {
	h := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}}).Middleware(httpServed)
	assert.NotContains(t, httpAnswer(h, httpRequest("GET")), "pk")
}

// TestHeaderValuesAreNotShared changes header values in place, as a middleware
// may. Other responses do not change.
func TestHeaderValuesAreNotShared(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Hour)}})
	for range 3 {
		w := httptest.NewRecorder()
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
		for name, values := range w.Header() {
			require.NotContains(t, values[0], "changed", name)
			values[0] += "changed"
		}
	}
}

// TestDenialReportsWhenARetrySucceeds takes random costs. All times in a
// denial's header fields are at least a second. Retry-After is no earlier than
// the time at which the limit that denied has more units. A client that waits
// for RetryAfter is admitted. A client that waits 1 ms less is not.
func TestDenialReportsWhenARetrySucceeds(t *testing.T) {
	limits := []Limit{FixedWindow(7, 2500*time.Millisecond).Named("f"), SlidingWindow(9, 4*time.Second).Named("s"), TokenBucket(3, 1700*time.Millisecond, 5).Named("b")}
	synctest.Test(t, func(t *testing.T) {
		cost, denied := int64(0), 0
		var decision Decision
		l := httpLimiter(t, Options{Limits: limits, Cost: func(*http.Request) int64 { return cost }})
		h := l.Middleware(httpServed)
		for i := range int64(4000) {
			cost = 1 + (i*i*31+i*7)%6
			time.Sleep(time.Duration((i*i*97 + i*13) % 800 * int64(time.Millisecond)))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httpRequest("GET"))
			if w.Code == http.StatusNoContent {
				require.Empty(t, w.Header().Get("Retry-After"))
				continue
			}
			decision, _ = l.TakeN(context.Background(), httpKey, cost)
			if cost == 6 {
				require.Equal(t, Never, decision.RetryAfter)
				require.Empty(t, w.Header().Get("Retry-After"))
				continue
			}
			denied++
			require.Equal(t, fmt.Sprint(int64((decision.RetryAfter+time.Second-1)/time.Second)), w.Header().Get("Retry-After"))
			requireHonestFields(t, w.Header())
			time.Sleep(decision.RetryAfter - time.Millisecond)
			early, err := l.TakeN(context.Background(), httpKey, cost)
			require.NoError(t, err)
			require.False(t, early.Allowed, "%v and %v", decision, early)
			time.Sleep(time.Millisecond)
			require.Equal(t, http.StatusNoContent, statusOf(h))
		}
		require.Greater(t, denied, 500)
	})
}

// limitField is one limit in the RateLimit field of draft 10.
var limitField = regexp.MustCompile(`^"[a-z]+";r=([0-9]+);t=([0-9]+)$`)

// requireHonestFields checks the header fields of a denial. Each time in them is at least
// a second, and a limit with no units left reports no later time than Retry-After.
func requireHonestFields(t testing.TB, h http.Header) {
	t.Helper()
	number := func(s string) int {
		t.Helper()
		n, err := strconv.Atoi(s)
		require.NoError(t, err)
		return n
	}
	retry := number(h.Get("Retry-After"))
	require.GreaterOrEqual(t, retry, 1)
	for _, field := range strings.Split(h.Get("RateLimit"), ", ") {
		m := limitField.FindStringSubmatch(field)
		require.NotNil(t, m, field)
		left, wait := number(m[1]), number(m[2])
		require.GreaterOrEqual(t, wait, 1)
		if left == 0 {
			require.LessOrEqual(t, wait, retry, "%v: a limit with no units left denied the request", h)
		}
	}
}

// TestTimesDoNotExceedTheWindowByRounding has the first request of a key, and the
// first that is denied. Redis counts milliseconds, and a sliding window has more
// units a nanosecond after its end. Retry-After is never too short.
func TestTimesDoNotExceedTheWindowByRounding(t *testing.T) {
	for _, window := range []time.Duration{time.Second, time.Minute, time.Hour, 1500 * time.Millisecond} {
		for _, limit := range []Limit{FixedWindow(1, window), SlidingWindow(1, window), TokenBucket(1, window, 1)} {
			bubble(t, func(t *testing.T, _ *miniredis.Miniredis, c *redis.Client) {
				time.Sleep(678_901_234 * time.Nanosecond) // no whole second or millisecond
				for name, store := range map[string]Store{"memory": memory(t, fmt.Sprint(limit)), "Redis": redisStore(t, c, "rl:")} {
					l, err := new(Registry).New("x", Options{
						Limits: []Limit{limit}, Store: store, Logger: quietly,
						Headers: HeadersDraft10 | HeadersDraft6 | HeadersLegacy,
					})
					require.NoError(t, err)
					h := l.Middleware(httpServed)
					most := (window + time.Second - 1) / time.Second
					for _, status := range []int{http.StatusNoContent, http.StatusTooManyRequests} {
						w := httptest.NewRecorder()
						before := time.Now()
						h.ServeHTTP(w, httpRequest("GET"))
						after := time.Now()
						require.Equal(t, status, w.Code)
						_, list, _ := strings.Cut(w.Header().Get("RateLimit"), "t=")
						for what, value := range map[string]string{"t": list, "reset": w.Header().Get("RateLimit-Reset")} {
							n, err := strconv.Atoi(value)
							require.NoError(t, err)
							sliding := what == "reset" && limit.Algorithm() == "sliding" // is whole after two windows
							assert.True(t, n >= 1 && (n <= int(most) || sliding && n <= 2*int(most)), "%v in %s: %s=%d", limit, name, what, n)
						}
						at, err := strconv.ParseInt(w.Header().Get("X-RateLimit-Reset"), 10, 64)
						require.NoError(t, err)
						if limit.Algorithm() != "sliding" {
							assert.LessOrEqual(t, at, after.Add(window+time.Second-1).Unix(), "%v in %s", limit, name)
						}
						if status == http.StatusTooManyRequests {
							retry, err := strconv.Atoi(w.Header().Get("Retry-After"))
							require.NoError(t, err)
							d := decide(t, l, httpKey, 1)
							assert.GreaterOrEqual(t, time.Duration(retry)*time.Second, d.RetryAfter-time.Since(before), "%v in %s", limit, name)
						}
					}
					require.NoError(t, l.Close())
				}
			})
		}
	}
}

// TestTimeoutBetweenLimitersLosesNothing puts an [http.TimeoutHandler], whose
// responses have their own header, between two limiters. The fields are the same as
// without it, whether the inner limiter admits or denies. If the handler is too slow,
// the response has the fields of the outer limiter only.
func TestTimeoutBetweenLimitersLosesNothing(t *testing.T) {
	const h10, h7, h6, old, none = HeadersDraft10, HeadersDraft7, HeadersDraft6, HeadersLegacy, HeadersNone
	styles := []Headers{h10, h7, h6, old, none, h10 | h6 | old, h7 | h6 | old}
	for _, outer := range styles {
		for _, inner := range styles {
			for _, nIn := range []int64{1, 9} {
				t.Run(fmt.Sprint(outer, inner, nIn), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						fields := func(between func(http.Handler) http.Handler) (answers []string) {
							out, in := stacked(t, Options{Headers: outer}, Options{Headers: inner}, 5, nIn)
							defer func() {
								for _, l := range []*Limiter{out, in} {
									l.Close()
									Memory(l.Name()).Close()
								}
							}()
							h := out.Middleware(between(in.Middleware(httpServed)))
							for range 3 {
								answers = append(answers, httpFields(h, httpRequest("GET")))
							}
							return answers
						}
						same := func(next http.Handler) http.Handler { return next }
						timeout := func(next http.Handler) http.Handler { return http.TimeoutHandler(next, time.Hour, "") }
						twice := func(next http.Handler) http.Handler { return timeout(timeout(next)) }
						want := fields(same)
						assert.Equal(t, want, fields(timeout))
						assert.Equal(t, want, fields(twice))
					})
				})
			}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		out, in := stacked(t, Options{}, Options{}, 5, 5)
		slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		h := out.Middleware(http.TimeoutHandler(in.Middleware(slow), time.Second, ""))
		assert.Equal(t, "Ratelimit: \"out\";r=4;t=3600\nRatelimit-Policy: \"out\";q=5;w=3600", httpFields(h, httpRequest("GET")))
	})
}

// TestFieldsOfAHandlerMakeOneSet has handlers that add a set of an older style, and end in
// different ways. The set with the least remaining is sent, also if the handler writes
// nothing, or panics and a handler around the limiter recovers.
func TestFieldsOfAHandlerMakeOneSet(t *testing.T) {
	recovers := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { recover() }()
			next.ServeHTTP(w, r)
		})
	}
	for name, end := range map[string]func(http.ResponseWriter){
		"status":  func(w http.ResponseWriter) { w.WriteHeader(200) },
		"body":    func(w http.ResponseWriter) { w.Write([]byte("x")) },
		"nothing": func(http.ResponseWriter) {},
		"panic":   func(http.ResponseWriter) { panic("no") },
	} {
		for _, count := range []func(*http.Request, int) bool{nil, func(*http.Request, int) bool { return true }} {
			l := httpLimiterNamed(t, fmt.Sprint(name, count != nil), Options{Limits: []Limit{FixedWindow(9, time.Hour)}, Headers: HeadersLegacy, Count: count})
			w := httptest.NewRecorder()
			recovers(l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Add("X-RateLimit-Limit", "5")
				w.Header().Add("X-RateLimit-Remaining", "3")
				end(w)
			}))).ServeHTTP(w, httpRequest("GET"))
			assert.Equal(t, http.Header{"X-Ratelimit-Limit": {"5"}, "X-Ratelimit-Remaining": {"3"}}, limitFields(w.Result().Header), name)
		}
	}
}

// TestFieldsOfAPageMakeOneSet has a page for denied requests that adds a set.
func TestFieldsOfAPageMakeOneSet(t *testing.T) {
	for _, body := range []string{"", "x"} {
		page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("X-RateLimit-Limit", "50")
			w.Header().Add("X-RateLimit-Remaining", "30")
			io.WriteString(w, body)
		})
		l := httpLimiterNamed(t, t.Name()+body, Options{Limits: []Limit{FixedWindow(9, time.Hour)}, Headers: HeadersLegacy, Cost: func(*http.Request) int64 { return 10 }, Denied: page})
		w := httptest.NewRecorder()
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
		assert.Equal(t, 429, w.Code)
		assert.Equal(t, []string{"9"}, w.Result().Header["X-Ratelimit-Limit"])
		assert.Equal(t, []string{"9"}, w.Result().Header["X-Ratelimit-Remaining"])
	}
}

// TestLinesOfDraft10StayBesideDraft7 has an outer limiter with draft 10, whose list it is,
// and an inner one with draft 7.
func TestLinesOfDraft10StayBesideDraft7(t *testing.T) {
	out, in := stacked(t, Options{}, Options{Headers: HeadersDraft7}, 9, 9)
	h := out.Middleware(in.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("RateLimit", `"upstream";r=1;t=5`)
		w.Header().Add("RateLimit-Policy", `"upstream";q=2;w=5`)
	})))
	assert.Equal(t, unindent(`
			Ratelimit: "out";r=8;t=3600
			Ratelimit: "upstream";r=1;t=5
			Ratelimit-Policy: "out";q=9;w=3600
			Ratelimit-Policy: "upstream";q=2;w=5`), httpFields(h, httpRequest("GET")))
}

// limitFields returns the fields about limits in h.
func limitFields(h http.Header) http.Header {
	about := http.Header{}
	for name, values := range h {
		if strings.Contains(name, "Ratelimit") {
			about[name] = values
		}
	}
	return about
}
