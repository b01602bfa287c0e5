package interop_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunglas/httpsfv"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// parsedNames parses the fields of draft 10 and returns the policy names in them. Both
// fields must have the same names in the same order, each with its parameters.
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

// hostileNames are policy names that break a field that is not escaped.
var hostileNames = []string{
	"login", "a b", `a"b`, `a\b`, `\`, `"`, `\"`, `a";q=1, "b`, ";q=1", "a,b", "a=b", "~", "!", "'", "<script>", "é", "日本語",
	"🚦", strings.Repeat(`"`, 128), strings.Repeat(`\`, 128), strings.Repeat("x", 128), strings.Repeat("é", 64), "€\"\\",
	"50%", "%41", "%", "%zz", "%C3%A9", "50% é", "é%41", "%é",
}

// checkPolicyName makes a limit with a name and reads the name back from the fields.
// A name in ASCII is sent as it is. A name with other characters, which a structured
// field's String cannot hold, is percent-encoded.
func checkPolicyName(t *testing.T, name string) {
	l := newLimiter(t, "policy", Options{Limits: []Limit{FixedWindow(999_999_999_999_999, 50*365*24*time.Hour).Named(name)}})
	defer closeLimiter(t, l)
	names := parsedNames(t, fieldsOf(l))
	require.Len(t, names, 1)
	if strings.ContainsFunc(name, func(r rune) bool { return r > '~' }) {
		decoded, err := url.PathUnescape(names[0])
		require.NoError(t, err, "%q as %q", name, names[0])
		names[0] = decoded
	}
	require.Equal(t, name, names[0])
}

func TestPolicyNamesCanBeParsed(t *testing.T) {
	for _, name := range hostileNames {
		checkPolicyName(t, name)
	}
}

// FuzzPolicyNames tries any text as the name of a policy.
func FuzzPolicyNames(f *testing.F) {
	for _, name := range hostileNames {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if _, err := FixedWindow(1, time.Hour).Named(name).MarshalText(); err != nil {
			return // not a valid name of a limit
		}
		if name == "" {
			name = "policy" // the limiter's
		}
		checkPolicyName(t, name)
	})
}

// TestUnnamedPoliciesGetDistinctNames checks limits without a name. Their policies are
// named after the limiter, followed by as much of the limit as is needed to distinguish them.
func TestUnnamedPoliciesGetDistinctNames(t *testing.T) {
	for _, test := range []struct {
		limits []Limit
		want   []string
	}{
		{[]Limit{FixedWindow(5, time.Hour)}, []string{"api"}},
		{[]Limit{FixedWindow(5, time.Minute), FixedWindow(50, time.Hour)}, []string{"api-1m", "api-1h"}},
		{[]Limit{FixedWindow(5, 90*time.Second), SlidingWindow(50, 90*time.Second)}, []string{"api-1m30s-fixed", "api-1m30s-sliding"}},
		{[]Limit{FixedWindow(5, time.Minute).Named("x"), SlidingWindow(50, time.Minute)}, []string{"x", "api-1m"}},
	} {
		l := newLimiter(t, "api", Options{Limits: test.limits})
		assert.Equal(t, test.want, parsedNames(t, fieldsOf(l)))
		closeLimiter(t, l)
	}
}

// TestInFlightLimitsCanBeParsed reads the fields of an in-flight limit beside a rate: its
// members have a quota unit, and no times.
func TestInFlightLimitsCanBeParsed(t *testing.T) {
	l := newLimiter(t, "api", Options{
		Limits:          []Limit{InFlight(20, 30*time.Second).Named(`a "b"`), FixedWindow(5, time.Hour)},
		PartitionSecret: []byte("sixteen bytes ..."),
	})
	header := fieldsOf(l)
	want := map[string][]map[string]any{
		"Ratelimit-Policy": {{"q": int64(5), "w": int64(3600)}, {"q": int64(20), "qu": "concurrent-requests"}},
		"Ratelimit":        {{"r": int64(4), "t": int64(3600)}, {"r": int64(19)}},
	}
	for field, members := range want {
		list, err := httpsfv.UnmarshalList(header[field])
		require.NoError(t, err, header[field])
		require.Len(t, list, len(members))
		for i, params := range members {
			item := list[i].(httpsfv.Item)
			require.Equal(t, []string{"api-1h", `a "b"`}[i], item.Value)
			got := make(map[string]any)
			for _, name := range item.Params.Names() {
				got[name], _ = item.Params.Get(name)
			}
			require.IsType(t, []byte{}, got["pk"])
			delete(got, "pk")
			require.Equal(t, params, got, "%s, member %d", field, i)
		}
	}
	older, err := httpsfv.UnmarshalList(fieldsOf(newLimiter(t, "older", Options{Limits: []Limit{InFlight(20, time.Minute)}, Headers: HeadersDraft7}))["Ratelimit-Policy"])
	require.NoError(t, err)
	require.EqualValues(t, 20, older[0].(httpsfv.Item).Value)
}

// TestPartitionIdentifiesKeyLimiterAndSecret checks that the parameter pk is the same in
// both fields and in all responses for one key, that it differs for another key, limiter
// or secret, and that it is the hash and not the key.
func TestPartitionIdentifiesKeyLimiterAndSecret(t *testing.T) {
	secret := []byte("sixteen bytes ...")
	partition := func(name string, secret []byte, key string) string {
		clone := slices.Clone(secret)
		l := newLimiter(t, name, Options{Limits: []Limit{FixedWindow(9, time.Hour), FixedWindow(9, time.Minute)}, PartitionSecret: clone, Key: StaticKey(key)})
		defer closeLimiter(t, l)
		clear(clone) // the limiter has its own copy
		header := fieldsOf(l)
		var pk []byte
		for _, field := range []string{"Ratelimit", "Ratelimit-Policy"} {
			list, err := httpsfv.UnmarshalList(header[field])
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
	originOf := make(map[string]string)
	for _, name := range []string{"a", "b"} {
		for _, s := range [][]byte{secret, append(slices.Clone(secret), 'x')} {
			for _, key := range []string{"192.0.2.1", "192.0.2.2", "b"} {
				pk := partition(name, s, key)
				what := fmt.Sprint(name, string(s), key)
				assert.Empty(t, originOf[pk], what)
				originOf[pk] = what
				assert.Equal(t, pk, partition(name, s, key), what)
			}
		}
	}
}

// validStyles returns all combinations of styles that a limiter accepts.
func validStyles() (all []Headers) {
	for h := HeadersDraft10; h <= HeadersNone; h++ {
		if h == HeadersNone || h < HeadersNone && h&(HeadersDraft10|HeadersDraft7) != HeadersDraft10|HeadersDraft7 {
			all = append(all, h)
		}
	}
	return all
}

// TestNestedLimitersOfAnyStylesAgree nests limiters of every pair of styles, with the
// binding limit inside and outside. Each field is of one style throughout, and all styles
// that report a single limit report the same one.
func TestNestedLimitersOfAnyStylesAgree(t *testing.T) {
	combined := regexp.MustCompile(`^limit=\d+, remaining=\d+, reset=\d+$`)
	for _, outer := range validStyles() {
		for _, inner := range validStyles() {
			t.Run(fmt.Sprintf("%#x around %#x", uint8(outer), uint8(inner)), func(t *testing.T) {
				for _, n := range [][2]int64{{2, 9}, {9, 2}} {
					out := newLimiter(t, "out", Options{Headers: outer, Limits: []Limit{FixedWindow(n[0], time.Hour).Named("out")}})
					in := newLimiter(t, "in", Options{Headers: inner, Limits: []Limit{SlidingWindow(n[1], time.Minute).Named("in")}})
					w := httptest.NewRecorder()
					out.Middleware(in.Middleware(served)).ServeHTTP(w, request())
					closeLimiter(t, out)
					closeLimiter(t, in)

					h := w.Header()
					for name, values := range h {
						require.Len(t, values, 1, name)
					}
					named := false
					if v := h.Get("RateLimit-Policy"); v != "" {
						list, err := httpsfv.UnmarshalList([]string{v})
						require.NoError(t, err, v)
						_, named = list[0].(httpsfv.Item).Value.(string)
						for _, member := range list {
							_, isName := member.(httpsfv.Item).Value.(string)
							require.Equal(t, named, isName, "RateLimit-Policy: %s", v)
						}
					}
					if v := h.Get("RateLimit"); v != "" && !combined.MatchString(v) {
						list, err := httpsfv.UnmarshalList([]string{v})
						require.NoError(t, err, "RateLimit: %s", v)
						require.True(t, named, "RateLimit-Policy: %s", h.Get("RateLimit-Policy"))
						for _, member := range list {
							require.IsType(t, "", member.(httpsfv.Item).Value, v)
						}
					} else if v != "" {
						require.False(t, named, "RateLimit: %s, RateLimit-Policy: %s", v, h.Get("RateLimit-Policy"))
					}
					binding := "1"
					if n[0] == 2 && outer == HeadersNone || n[1] == 2 && inner == HeadersNone {
						binding = "8" // the other limiter sends no fields
					}
					for _, name := range []string{"RateLimit-Remaining", "X-RateLimit-Remaining"} {
						if v := h.Get(name); v != "" {
							assert.Equal(t, binding, v, name)
						}
					}
					if v := h.Get("RateLimit"); combined.MatchString(v) {
						assert.Contains(t, v, "remaining="+binding)
					}
				}
			})
		}
	}
}
