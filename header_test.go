package ratelimit_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunglas/httpsfv"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// httpFields are the header fields of h's answer about limits, in the order of
// their names.
func httpFields(h http.Handler, r *http.Request) string {
	var about []string
	for line := range strings.Lines(httpAnswer(h, r)) {
		if strings.Contains(line, "Ratelimit") || strings.HasPrefix(line, "Retry-After") {
			about = append(about, strings.TrimSpace(line))
		}
	}
	return strings.Join(about, "\n")
}

// TestHeaders tells of the first, the fifth and the sixth request of six, under two
// limits. In a bubble, time begins at 946684800.
func TestHeaders(t *testing.T) {
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

// TestSecondsAreRoundedUp: half way through a second, a client is told the whole one.
func TestSecondsAreRoundedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, 2500*time.Millisecond).Named("x")}, Headers: HeadersDraft10 | HeadersDraft6 | HeadersLegacy})
		h, r := l.Middleware(httpServed), httpRequest("GET")
		time.Sleep(700 * time.Millisecond) // the reset, at .2 of a second, is told as the next one
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

func TestRefusedHeaders(t *testing.T) {
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
		require.ErrorContains(t, err, `ratelimit: limiter "TestRefusedHeaders": `)
	}
}

// parsedNames parses the fields of draft 10 with a parser of another make and
// returns the policy names in them.
func parsedNames(t testing.TB, h http.Header) (names []string) {
	t.Helper()
	policies, err := httpsfv.UnmarshalList(h["Ratelimit-Policy"])
	require.NoError(t, err, h["Ratelimit-Policy"])
	limits, err := httpsfv.UnmarshalList(h["Ratelimit"])
	require.NoError(t, err, h["Ratelimit"])
	require.Equal(t, len(policies), len(limits))
	for i := range policies {
		policy, limit := policies[i].(httpsfv.Item), limits[i].(httpsfv.Item)
		require.Equal(t, policy.Value, limit.Value)
		names = append(names, policy.Value.(string))
		for item, params := range map[*httpsfv.Item][]string{&policy: {"q", "w"}, &limit: {"r", "t"}} {
			require.Equal(t, params, item.Params.Names())
			for _, name := range params {
				v, _ := item.Params.Get(name)
				require.GreaterOrEqual(t, v.(int64), int64(0))
			}
		}
	}
	return names
}

// checkTold reads a denial's fields as a client would.
func checkTold(t testing.TB, h http.Header) {
	t.Helper()
	retry, err := strconv.ParseInt(h.Get("Retry-After"), 10, 64)
	require.NoError(t, err)
	require.GreaterOrEqual(t, retry, int64(1))
	list, err := httpsfv.UnmarshalList(h["Ratelimit"])
	require.NoError(t, err)
	for _, member := range list {
		params := member.(httpsfv.Item).Params
		left, _ := params.Get("r")
		wait, _ := params.Get("t")
		require.GreaterOrEqual(t, wait, int64(1))
		if left == int64(0) {
			require.LessOrEqual(t, wait, retry, "%v: a limit without a unit left denied the request", h)
		}
	}
}

// policyHeader is the header that tells of a limit with this name.
func policyHeader(t testing.TB, name string) http.Header {
	t.Helper()
	l := httpLimiterNamed(t, "policy", Options{Limits: []Limit{FixedWindow(999_999_999_999_999, 50*365*24*time.Hour).Named(name)}})
	defer l.Close()
	w := httptest.NewRecorder()
	l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
	return w.Header()
}

var hostileNames = []string{
	"login", "a b", `a"b`, `a\b`, `\`, `"`, `\"`, `a";q=1, "b`, ";q=1", "a,b", "a=b", "~", "!", "'", "<script>", "é", "日本語",
	"🚦", strings.Repeat(`"`, 128), strings.Repeat(`\`, 128), strings.Repeat("x", 128), strings.Repeat("é", 64), "€\"\\",
	"50%", "%41", "%", "%zz", "%C3%A9", "50% é", "é%41", "%é",
}

// checkPolicyName reads a policy's name back from the fields. One in ASCII stands
// there as it is; what a structured field's String cannot hold is percent-encoded.
func checkPolicyName(t *testing.T, name string) {
	names := parsedNames(t, policyHeader(t, name))
	require.Len(t, names, 1)
	if strings.ContainsFunc(name, func(r rune) bool { return r > '~' }) {
		decoded, err := url.PathUnescape(names[0])
		require.NoError(t, err, "%q as %q", name, names[0])
		names[0] = decoded
	}
	require.Equal(t, name, names[0])
}

func TestPolicyNames(t *testing.T) {
	for _, name := range hostileNames {
		checkPolicyName(t, name)
	}
}

// FuzzFieldString puts any text in the place of a policy's name.
func FuzzFieldString(f *testing.F) {
	for _, name := range hostileNames {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if _, err := FixedWindow(1, time.Hour).Named(name).MarshalText(); err != nil {
			return // no name for a limit
		}
		if name == "" {
			name = "policy" // the limiter's
		}
		checkPolicyName(t, name)
	})
}

// TestDefaultNames: a limit without a name goes by its limiter's, and by as much of
// itself as tells it from the others.
func TestDefaultNames(t *testing.T) {
	for _, test := range []struct {
		limits []Limit
		want   []string
	}{
		{[]Limit{FixedWindow(5, time.Hour)}, []string{"api"}},
		{[]Limit{FixedWindow(5, time.Minute), FixedWindow(50, time.Hour)}, []string{"api-1m", "api-1h"}},
		{[]Limit{FixedWindow(5, 90*time.Second), SlidingWindow(50, 90*time.Second)}, []string{"api-1m30s-fixed", "api-1m30s-sliding"}},
		{[]Limit{FixedWindow(5, time.Minute).Named("x"), SlidingWindow(50, time.Minute)}, []string{"x", "api-1m"}},
	} {
		l := httpLimiterNamed(t, "api", Options{Limits: test.limits})
		w := httptest.NewRecorder()
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
		assert.Equal(t, test.want, parsedNames(t, w.Header()))
		require.NoError(t, l.Close())
	}
}

// TestProblem reads the body of a denial as a client would: as JSON, with names
// that are those of the limits that denied.
func TestProblem(t *testing.T) {
	hostile := `a"b\c é </script>`
	limits := []Limit{FixedWindow(2, time.Hour).Named(hostile), FixedWindow(9, time.Minute).Named("calm"), FixedWindow(1, time.Second).Named("s")}
	for _, test := range []struct {
		cost int64
		want []string
	}{{2, []string{"s"}}, {3, []string{hostile, "s"}}, {10, []string{hostile, "calm", "s"}}} {
		l := httpLimiter(t, Options{Limits: limits, Message: `"no" </p>`, Cost: func(*http.Request) int64 { return test.cost }})
		w := httptest.NewRecorder()
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET", "Accept: application/problem+json"))
		require.NoError(t, l.Close())

		body, _ := io.ReadAll(w.Result().Body)
		var problem struct {
			Type, Title, Detail string
			Status              int
			Violated            []string `json:"violated-policies"`
		}
		decoder := json.NewDecoder(strings.NewReader(string(body)))
		decoder.DisallowUnknownFields()
		require.NoError(t, decoder.Decode(&problem))
		assert.Equal(t, "https://iana.org/assignments/http-problem-types#quota-exceeded", problem.Type)
		assert.Equal(t, "Request cannot be satisfied as assigned quota has been exceeded", problem.Title)
		assert.Equal(t, `"no" </p>`, problem.Detail)
		assert.Equal(t, w.Code, problem.Status)
		assert.Equal(t, test.want, problem.Violated)
		assert.Equal(t, strconv.Itoa(len(body)), w.Header().Get("Content-Length"))
	}
}

// TestPartition: the parameter pk is the same for a key and another one for another
// key, limiter or secret; it is in both fields, and no key is in it.
func TestPartition(t *testing.T) {
	secret := []byte("sixteen bytes ...")
	partition := func(name string, secret []byte, key string) string {
		mine := slices.Clone(secret)
		l := httpLimiterNamed(t, name, Options{Limits: []Limit{FixedWindow(9, time.Hour), FixedWindow(9, time.Minute)}, PartitionSecret: mine, Key: StaticKey(key)})
		defer l.Close()
		clear(mine) // the limiter keeps what it was made with
		w := httptest.NewRecorder()
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
		var pk []byte
		for _, field := range []string{"Ratelimit", "Ratelimit-Policy"} {
			list, err := httpsfv.UnmarshalList(w.Header()[field])
			require.NoError(t, err)
			require.Len(t, list, 2)
			for _, member := range list {
				v, _ := member.(httpsfv.Item).Params.Get("pk")
				require.Len(t, v, 16)
				if pk == nil {
					pk = v.([]byte)
				}
				require.Equal(t, pk, v)
			}
		}
		return string(pk)
	}
	seen := make(map[string]string)
	for _, name := range []string{"a", "b"} {
		for _, s := range [][]byte{secret, append(slices.Clone(secret), 'x')} {
			for _, key := range []string{"192.0.2.1", "192.0.2.2", "b"} {
				pk := partition(name, s, key)
				what := fmt.Sprint(name, string(s), key)
				assert.Empty(t, seen[pk], what)
				seen[pk] = what
				assert.Equal(t, pk, partition(name, s, key), what)
			}
		}
	}
}

func TestNoPartitionUnasked(t *testing.T) {
	h := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}}).Middleware(httpServed)
	assert.NotContains(t, httpAnswer(h, httpRequest("GET")), "pk")
}
